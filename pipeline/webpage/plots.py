"""The charts of a report: profile over slices, histogram, curves."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.histogram import BACKGROUND, UNLABELLED, VESSEL
from pipeline.methods.comparison import average_precision, ceiling, curves, roc_auc
from pipeline.webpage.chart import LEAST_LEFT, Chart, left_room, legend, span
from pipeline.webpage.markup import Markup, join, tag
from pipeline.webpage.page import Page
from pipeline.webpage.wording import level_words


def profile_charts(page: Page) -> Markup:
    """Scores, level and vessel of each slice, below each other."""
    profile = page.profile
    limits = _profile_limits(page)
    left = max(map(left_room, limits.values()), default=0.0)
    parts: list[Markup] = []
    if "score" in limits:
        mcc, f1 = profile.score("mcc"), profile.score("f1")
        chart = _chart(page, ("score", "Scores of each slice", "score"), _said("MCC", mcc), limits, left)
        chart.line(_known_points(f1), "two")
        chart.line(_known_points(mcc), "one")
        parts += [chart.svg(), legend([("line", "one", "MCC"), ("line", "two", "F1")])]
    if "level" in limits:
        said = _said("Median level", profile.middle)
        chart = _chart(page, ("level", "Levels of each slice", "grey level"), said, limits, left)
        chart.band(list(zip(range(len(profile.low)), profile.low, profile.high, strict=True)), "one")
        chart.line(_points(profile.middle), "one")
        parts += [chart.svg(), legend([("line", "one", "median of the tiles"), ("band", "one", "lowest to highest")])]
    if "vessel" in limits:
        percent, traced = 100 * profile.vessel, 100 * profile.truth
        said = _said("Percent vessel", percent)
        chart = _chart(page, ("vessel", "Vessel in each slice", "% vessel"), said, limits, left)
        chart.line(_known_points(traced), "two")
        chart.line(_points(percent), "one")
        which = "annotated voxels" if profile.where_annotated else "voxels"
        entries = [("line", "one", f"part of the {which} that the mask calls vessel")]
        if np.isfinite(traced).any():
            entries.append(("line", "two", "part of the annotated voxels that is vessel in the truth"))
        parts += [chart.svg(), legend(entries)]
    return tag("div", *parts, class_="wide profile")


def _profile_limits(page: Page) -> dict[str, tuple[float, float]]:
    """Limits of y of each chart that there is something to draw in; none shows a score or a part that cannot be."""
    profile, limits = page.profile, {}
    mcc, f1 = profile.score("mcc"), profile.score("f1")
    if np.isfinite(mcc).any():
        limits["score"] = span([*mcc, *f1], 0.02, (-1.0 if np.nanmin(mcc) < 0 else 0.0, 1.0))
    if np.isfinite(profile.middle).any():
        limits["level"] = span([*profile.low, *profile.high], 1.0)
    if np.isfinite(profile.vessel).any():
        limits["vessel"] = (0.0, span([*100 * profile.vessel, *100 * profile.truth], 0.1, (0.0, 100.0))[1])
    return limits


def _chart(
    page: Page, names: tuple[str, str, str], description: str, limits: dict[str, tuple[float, float]], left: float
) -> Chart:
    name, title, label = names
    x = (-0.5, page.volume["shape"][0] - 0.5)
    return Chart(f"profile-{name}", title, description, x, limits[name], left, "slice (z)", label, height=180,
                 whole=True)  # fmt: skip


def _points(values: NDArray[np.float64]) -> list[tuple[float, float]]:
    return [(float(z), float(value)) for z, value in enumerate(values)]


def _known_points(values: NDArray[np.float64]) -> list[tuple[float, float]]:
    """The same without gaps: often every second slice is annotated, or fewer."""
    return [(z, value) for z, value in _points(values) if math.isfinite(value)]


def _said(what: str, values: NDArray[np.float64]) -> str:
    """What is seen of a profile, in words."""
    known = np.flatnonzero(np.isfinite(values))
    low, high = (int(known[pick(values[known])]) for pick in (np.argmin, np.argmax))
    return (
        f"{what} of {known.size} of {values.size} slices: lowest {values[low]:.4g} at slice {low}, highest "
        f"{values[high]:.4g} at slice {high}, median {np.median(values[known]):.4g}. The numbers are below."
    )


def histogram_chart(page: Page) -> Markup:
    """Voxels by filtered grey level and truth, with the run's levels."""
    pooled, levels = page.evidence.pooled, page.top_levels
    total = int(pooled.sum())
    if not total:
        return tag("p", "There is no histogram.")
    first, last = np.flatnonzero(pooled.any(axis=0))[[0, -1]]
    across = span([levels[first], levels[last]], 1.0)
    top = float(pooled.max())
    found = page.summary.levels
    said = f"{total:,} voxels by filtered grey level, on a logarithmic scale"
    said += (
        "; the run's levels have a lowest of {}, a median of {} and a highest of {}.".format(*map(level_words, found))
        if found
        else "."
    )
    up = (0.5, max(10.0, 2 * top))
    chart = Chart("histogram", "Histogram", said, across, up, x_label="filtered grey level", y_label="voxels",
                  height=280, log=True)  # fmt: skip
    entries = []
    kinds = [(BACKGROUND, "one", "background"), (VESSEL, "two", "vessel"), (UNLABELLED, "four", "not annotated")]
    for row, kind, words in kinds:
        if pooled[row].any():
            begin, end = np.flatnonzero(pooled[row])[[0, -1]]
            heights = np.maximum(pooled[row], 0.5)
            chart.line([(levels[at], heights[at]) for at in range(begin, end + 1)], kind)
            entries.append(("line", kind, words))
    if found:
        chart.rule(found[1], "three", f"median level {level_words(found[1])}")
        entries.append(("rule", "three", f"median level of the tiles, {level_words(found[1])}"))
    return join([tag("div", chart.svg(), class_="wide"), legend(entries)])


def curve_charts(page: Page) -> Markup | None:
    """ROC and precision-recall curves over one level for all, and where the run is; None without both classes."""
    pooled, counts = page.evidence.pooled, page.summary.counts
    area = roc_auc(pooled)
    if area is None or counts is None:
        return None
    wrong, recall, precision = curves(pooled)
    best = ceiling(pooled)
    at = 0 if best is None else int(best.level) + 1  # the mask is what is above the level
    average = average_precision(pooled) or 0.0
    roc = _square("roc", "ROC curve", f"Area under the curve {area:.4f}.", "background called vessel", "vessel found")
    roc.line([(0, 0), (1, 1)], "four")
    roc.line(_thinned(wrong, recall), "one")
    pr = _square("pr", "Precision and recall", f"Average precision {average:.4f}.", "recall", "precision")
    pr.line(_thinned(recall, precision), "one")
    own = (counts.tp / max(1, counts.tp + counts.fn), counts.tp / max(1, counts.tp + counts.fp))
    for chart, best_place, own_place in (
        (roc, (wrong[at], recall[at]), (counts.fp / max(1, counts.fp + counts.tn), own[0])),
        (pr, (recall[at], precision[at]), own),
    ):
        if all(map(math.isfinite, best_place)):
            chart.dot((float(best_place[0]), float(best_place[1])), "three", "best single level")
        chart.dot(own_place, "two", "this run")
    level = (
        "" if best is None else f" (level {page.top_levels[at - 1]:g}, MCC {best.mcc:.4f})" if at else " (below all)"
    )
    entries = [("line", "one", "one level for the whole volume"), ("dot", "two", "this run"),
               ("dot", "three", f"best single level{level}"), ("line", "four", "chance (ROC)")]  # fmt: skip
    words = tag("p", f"Area under the ROC curve {area:.4f}; average precision {average:.4f}.")
    return join([words, tag("div", roc.svg(), pr.svg(), class_="pair"), legend(entries)])


def _square(name: str, title: str, description: str, x_label: str, y_label: str) -> Chart:
    limits = (-0.02, 1.02)
    return Chart(name, title, description, limits, limits, LEAST_LEFT, x_label, y_label, height=330, width=350)


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Points of a curve but for those that are drawn where the one before is."""
    points: list[tuple[float, float]] = []
    for point in zip(np.round(x, 3).tolist(), np.round(y, 3).tolist(), strict=True):
        if not points or point != points[-1]:
            points.append(point)
    return points
