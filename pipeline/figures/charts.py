"""Figures of numbers: grey levels, scores over the slices, and curves."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator, PercentFormatter
from numpy.typing import NDArray

from pipeline.figures.canvas import (
    MARGIN,
    TEXT_PT,
    TITLE_PT,
    Page,
    Style,
    line_height,
    settings,
    share_text,
    wrapped,
)
from pipeline.figures.exhibit import Profile as Exhibit
from pipeline.figures.pictures import NAMES
from pipeline.figures.tryout import Distribution
from pipeline.findings.profile import Profile, profile_of
from pipeline.kernels.confusion import Counts, scores
from pipeline.kernels.histogram import BACKGROUND, UNLABELLED, VESSEL
from pipeline.methods.comparison import average_precision, ceiling, curves, roc_auc

# Of Okabe and Ito, who chose them for every kind of colour vision; markers and dashes tell them apart, too.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
PROFILE_SCORES = ("mcc", "f1", "precision", "recall")


def draw_histogram(found: Distribution, style: Style) -> Figure:
    """Voxels by grey level, with the level of every method; background and vessel apart where there is truth."""
    subject = found.subject
    with settings():
        title = f"{subject.title}, {subject.where}: grey levels"
        figure = _sheet(title, _run_text(found, found.table), (8.6, 4.2), style)
        axes = figure.subplots()
        rows = [(UNLABELLED, "all voxels", "#777777")]
        if found.split:
            rows = [(BACKGROUND, "background", "#777777"), (VESSEL, "vessel", "#d55e00")]
            rows += [(UNLABELLED, "not annotated", "#b8cfe0")] if found.table[UNLABELLED].any() else []
        first = found.tops[0] - (found.tops[1] - found.tops[0])
        edges = np.concatenate([[first], found.tops]) + 0.5
        for row, name, colour in rows:
            voxels = found.table[row].astype(np.float64)
            filled = row != UNLABELLED or not found.split
            words = f"{name}: {int(voxels.sum()):,}"
            if filled:
                axes.stairs(np.maximum(voxels, 0.5), edges, baseline=0.5, label=words, color=colour, fill=True,
                            alpha=0.55, linewidth=0)  # fmt: skip
            axes.stairs(np.maximum(voxels, 0.5), edges, baseline=None, color=colour, linewidth=1.0,
                        label=None if filled else words)  # fmt: skip
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda voxels, _: f"{voxels:,.0f}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(0.5, float(found.table.max()) * 2)
        if found.own is not None:
            low, middle, high = found.own
            spread = f"levels {low:g} to {high:g}, median {middle:g}" if low < high else f"level {middle:g}"
            axes.axvspan(low - 0.5, high + 0.5, color="#0072b2", alpha=0.12, linewidth=0, label=f"run: {spread}")
        for index, (method, level) in enumerate(found.levels.items()):
            grey = found.grey(level)
            score = scores(found.counts_at(level)).mcc if found.split else None
            words = f"{method}: {grey:g}" + ("" if score is None else f", MCC {score:.3f}")
            axes.axvline(grey + 0.5, color=COLOURS[index], linestyle=DASHES[index], linewidth=1.6, label=words)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel("grey level after the filter" + (" (inverted: vessels are bright)" if found.dark else ""))
        axes.set_ylabel("voxels")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), alignment="left", title_fontsize=TEXT_PT,
                    title="Voxels, and the level of each method\nfor all of them together")  # fmt: skip
        return figure


def draw_curves(found: Distribution, style: Style) -> Figure:
    """ROC and precision-recall curves of all levels, with the methods' and the run's operating points."""
    subject = found.subject
    false, true, precision = curves(found.table)
    auc, average = roc_auc(found.table), average_precision(found.table)
    with settings():
        title = f"{subject.title}, {subject.where}: every level there is"
        figure = _sheet(title, _run_text(found, found.table[:UNLABELLED]), (10.1, 4.0), style)
        roc, pr = figure.subplots(1, 2)
        roc.plot(false, true, color="#777777", linewidth=1.5)
        roc.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8, linestyle=":")
        pr.step(true, precision, where="post", color="#777777", linewidth=1.5)
        for number, (name, counts) in enumerate(_operating_points(found)):
            found_at = scores(counts)
            wrong = counts.fp / (counts.fp + counts.tn)
            special = {"run": ("*", "#d62728", 13), "best": ("P", "#000000", 9)}.get(name.split()[0])
            marker, colour, size = special or (MARKERS[number % 7], COLOURS[number % 7], 7)
            points = {  # as outlines: often several are at the same place
                "marker": marker, "color": colour, "markersize": size, "linestyle": "none", "markerfacecolor": "none",
                "markeredgewidth": 1.3, "clip_on": False, "zorder": 4 if special else 3,
            }  # fmt: skip
            roc.plot([wrong], [found_at.recall], label=f"{name}, MCC {found_at.mcc:.3f}", **points)
            pr.plot([found_at.recall], [found_at.precision], **points)
        for axes, title, across, up in (
            (roc, f"ROC, area {auc:.4f}", "false positive rate (1 - specificity)", "recall (true positive rate)"),
            (pr, f"Precision and recall, average precision {average:.4f}", "recall", "precision"),
        ):
            axes.set_title(title, loc="left")
            axes.set_xlabel(across)
            axes.set_ylabel(up)
            axes.set_xlim(-0.02, 1.02)
            axes.set_ylim(-0.02, 1.02)
            axes.set_aspect("equal")
        pr.legend(*roc.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(1.03, 1.0),
                  title="One level for all voxels", alignment="left", title_fontsize=TEXT_PT)  # fmt: skip
        return figure


def draw_profile(profile: Exhibit, style: Style) -> Figure:
    """Scores, levels and vessel fraction of every slice."""
    subject, found = profile.subject, profile.census
    slices = np.arange(found.tiles.start[0], found.tiles.stop[0])
    with settings():
        parts = 3 if found.counts is not None else 2
        against = f" against {found.truth}" if found.truth else ""
        done = "{:,} of {:,} tiles done".format(*found.share)
        title, note = f"{subject.title}, {subject.where}: slice by slice", f"run {found.name}{against}, {done}"
        figure = _sheet(title, note, (8.6, 0.4 + 1.9 * parts), style)
        panels = list(np.atleast_1d(figure.subplots(parts, 1, sharex=True)))
        of_slices = profile_of(found)
        if found.counts is not None:
            _plot_scores(panels[0], slices, of_slices)
        _plot_levels(panels[-2], slices, of_slices)
        _plot_vessel(panels[-1], slices, of_slices)
        panels[-1].set_ylabel("vessel, part of voxels")
        panels[-1].yaxis.set_major_formatter(PercentFormatter(1.0))
        panels[-1].set_ylim(0, max(panels[-1].get_ylim()[1] * 1.05, 1e-3))
        for axes in panels:
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
            axes.xaxis.set_major_locator(MaxNLocator(min(10, len(slices)), integer=True, min_n_ticks=1))
            axes.set_xlim(slices[0] - 0.5, slices[-1] + 0.5)
        panels[-1].set_xlabel("slice")
        figure.align_ylabels(panels)
        return figure


def _plot_scores(axes: Axes, slices: NDArray[np.int64], found: Profile) -> None:
    for number, name in enumerate(PROFILE_SCORES):
        _plot(axes, slices, found.score(name), NAMES[name], number)
    if np.isnan(found.scores).all():
        _say_none(axes, "nothing is annotated here")
    axes.set_ylabel("score of the slice")
    axes.set_ylim(min(0.0, float(np.nanmin(found.scores, initial=0.0))) - 0.03, 1.03)


def _plot_levels(axes: Axes, slices: NDArray[np.int64], found: Profile) -> None:
    axes.set_ylabel("level, grey levels")
    if np.isnan(found.middle).all():
        _say_none(axes, "this method has no level of tiles")
        axes.yaxis.set_major_locator(NullLocator())
        return
    axes.fill_between(slices, found.low, found.high, color="#0072b2", alpha=0.15, linewidth=0,
                      label="lowest to highest")  # fmt: skip
    _plot(axes, slices, found.middle, "median of tiles", 0, gaps=True)


def _plot_vessel(axes: Axes, slices: NDArray[np.int64], found: Profile) -> None:
    _plot(axes, slices, found.vessel, "mask, where annotated" if found.where_annotated else "mask", 0,
          gaps=not found.where_annotated)  # fmt: skip
    _plot(axes, slices, found.truth, "truth, where annotated", 5)


def _say_none(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center")


def _plot(
    axes: Axes, slices: NDArray[np.int64], values: NDArray[np.float64], label: str, number: int, gaps: bool = False
) -> None:
    """Plot a line over the slices; what is annotated here and there is joined by a thin line, unless gaps are shown."""
    known = ~np.isnan(values)
    if not known.any():
        return
    few = known.sum() <= 80
    shown = np.ones_like(known) if gaps else known
    axes.plot(
        slices[shown], values[shown], color=COLOURS[number], linewidth=1.2 if known.all() else 0.9, label=label,
        linestyle=DASHES[number % 4], marker=MARKERS[number] if few else None, markersize=4,
    )  # fmt: skip


def _operating_points(found: Distribution) -> list[tuple[str, Counts]]:
    points = [
        (f"{method}: level {found.grey(level):g}", found.counts_at(level)) for method, level in found.levels.items()
    ]
    best = ceiling(found.table)
    if best is not None:
        points.append((f"best level: {found.grey(best.level):g}", found.counts_at(best.level)))
    if found.counts is not None:
        points.append((f"run {found.subject.name} as it is", found.counts))
    return points


def _run_text(found: Distribution, table: NDArray[np.int64]) -> str:
    subject = found.subject
    against = f" against {subject.truth}" if subject.truth else ""
    what = "annotated voxels" if len(table) == UNLABELLED else "voxels"
    return f"run {subject.name}{against}, {int(table.sum()):,} {what}{share_text(found.share)}"


def _sheet(title: str, note: str, size: tuple[float, float], style: Style) -> Figure:
    """Figure with title and note where those of pictures are; charts are laid on the rest.

    Parameters
    ----------
    title, note : str
        Wrapped, so that they are not cut off.
    size : tuple of float
        Width and height of the charts in inches.
    style : Style
    """
    wide, tall = size
    heading, below = wrapped(title, wide, TITLE_PT, bold=True), wrapped(note, wide, TEXT_PT)
    top = MARGIN + len(heading) * line_height(TITLE_PT) + len(below) * line_height(TEXT_PT) + 0.1
    page = Page(wide + 2 * MARGIN, top + tall + MARGIN, style.dpi)
    page.lines(MARGIN, page.lines(MARGIN, MARGIN, heading, TITLE_PT, bold=True), below)
    part = (MARGIN / page.width, MARGIN / page.height, wide / page.width, tall / page.height)
    page.figure.set_layout_engine("constrained", rect=part, w_pad=0.0, h_pad=0.0, wspace=0.04, hspace=0.04)
    return page.figure
