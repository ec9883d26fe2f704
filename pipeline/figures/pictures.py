"""Figures that show voxels: overview, overlay, every method on a tile, a map of tiles, the worst and the best."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.figures.canvas import (
    GAP,
    MARGIN,
    TEXT_PT,
    TITLE_PT,
    Page,
    Panel,
    Style,
    Swatch,
    draw_pictures,
    hexadecimal,
    line_height,
    settings,
    share_text,
    wrapped,
)
from pipeline.figures.exhibit import Gallery, Sample, TileMap, View
from pipeline.figures.subject import Subject
from pipeline.figures.tryout import Trial
from pipeline.kernels.confusion import SCORES, Counts, scores
from pipeline.kernels.histogram import TRUTH_UNLABELLED
from pipeline.views.excerpt import Excerpt
from pipeline.views.overlay import blend

OVERVIEW_IN, OVERLAY_IN, MAP_IN = 4.5, 11.0, 7.0
"""Longer side of a picture in inches, at most: so fine a level of the pyramid is read."""

_OVERVIEW_ZOOM_IN, _OVERLAY_ZOOM_IN, _TILE_IN = 3.4, 7.0, 2.6  # of what has few pixels

NAMES = {
    "accuracy": "accuracy", "f1": "F1", "mcc": "MCC", "precision": "precision", "recall": "recall",
    "specificity": "specificity", "iou": "IoU", "balanced_accuracy": "balanced accuracy", "kappa": "kappa",
    "level": "level (grey level, filtered)", "vessel": "part of the tile that is vessel", "focus": "focus",
    "saturation": "part that is saturated", "mean": "mean grey level", "contrast": "contrast in grey levels",
    "separability": "separability", "emptiness": "part that is empty", "chatter": "chatter",
}  # fmt: skip


def draw_overview(view: View, style: Style) -> Figure:
    """Image, inverted image and truth, side by side, as in the article."""
    excerpt, subject = view.excerpt, view.subject
    panels = [Panel(excerpt.image, ["image"]), Panel(255 - excerpt.image, ["inverted"])]
    legend = []
    if excerpt.truth is not None:
        hidden = excerpt.truth == TRUTH_UNLABELLED
        panels.append(Panel(np.where(hidden, np.uint8(TRUTH_UNLABELLED), excerpt.truth), [f"truth {subject.truth}"]))
        legend = [Swatch("#ffffff", "vessel"), Swatch("#000000", "background")]
        legend += [Swatch(hexadecimal((TRUTH_UNLABELLED,) * 3), "not annotated")] if hidden.any() else []
    with settings():
        return draw_pictures(
            title=f"{subject.title}, {subject.where}", notes=_level_notes(view, excerpt.truth is not None),
            panels=panels, columns=3, style=style, side=_OVERVIEW_ZOOM_IN, legend=legend,
            scale=(excerpt.step, excerpt.voxel_size_um),
        )  # fmt: skip


def draw_overlay(view: View, style: Style) -> Figure:
    """The image under the colours of its confusion."""
    excerpt, subject = view.excerpt, view.subject
    pixels = blend(excerpt.image, excerpt.kinds(), style.alpha, style.palette)
    notes = [f"run {subject.name} against {subject.truth}" + (f": {_sentence(view.counts)}" if view.counts else "")]
    if excerpt.errors is not None:
        notes.append(_level_notes(view, labels=False)[0].rstrip(".") + "; where any is wrong or missed, it shows that.")
    elif excerpt.level:
        notes.append(_level_notes(view, labels=True)[0].rstrip(".") + ", so right and wrong are approximate here.")
    with settings():
        return draw_pictures(
            title=f"{subject.title}, {subject.where}", notes=notes, panels=[Panel(pixels)], columns=1, style=style,
            side=_OVERLAY_ZOOM_IN, legend=_legend(subject, style, [excerpt]),
            scale=(excerpt.step, excerpt.voxel_size_um),
        )  # fmt: skip


def draw_trial(trial: Trial, style: Style) -> Figure:
    """Mask of every method on one tile, with its level and MCC."""
    excerpt, subject = trial.excerpt, trial.subject
    panels = [Panel(excerpt.image, ["image"])]
    if excerpt.truth is not None:
        panels.append(
            Panel(excerpt.truth, [f"truth {subject.truth}", *["grey: not annotated"] * _partly(excerpt.truth)])
        )
    for attempt in trial.attempts:
        score = [] if attempt.mcc is None else [f"MCC {attempt.mcc:.4f}"]
        pixels = np.where(attempt.mask, np.uint8(255), np.uint8(0))
        panels.append(Panel(pixels, [f"{attempt.method}: level {attempt.level:g}", *score]))
    of = "the default recipe" if subject.name is None else f"run {subject.name}"
    notes = [f"Each method on this tile by itself, after the filter of {of} ({_filter_text(trial)})."]
    if trial.without:
        notes.append(f"No level on this tile: {', '.join(trial.without)}.")
    if excerpt.truth is None:
        notes.append("No truth here, so there is no MCC and no best level.")
    with settings():
        return draw_pictures(
            title=f"{subject.title}, tile {subject.box}", notes=notes, panels=panels, columns=5, style=style,
            side=_TILE_IN, scale=(1, excerpt.voxel_size_um),
        )  # fmt: skip


def draw_gallery(gallery: Gallery, style: Style) -> Figure:
    """The worst and the best tiles under the colours of their confusion, with their counts."""
    subject, metric = gallery.subject, NAMES[gallery.metric]
    panels = []
    for title, samples in (("worst", gallery.worst), ("best", gallery.best)):
        panels += [
            _sample_panel(f"{title} {number}", metric, sample, style) for number, sample in enumerate(samples, 1)
        ]
    excerpts = [sample.excerpt for sample in (*gallery.worst, *gallery.best)]
    notes = [
        f"run {subject.name} against {subject.truth}, tile by tile: the lowest {metric} where anything is wrong, "
        f"and the highest where there is vessel{share_text(gallery.share)}"
    ]
    with settings():
        return draw_pictures(
            title=f"{subject.title}, {subject.where}: worst and best tiles", notes=notes, panels=panels, columns=4,
            style=style, side=_TILE_IN, legend=_legend(subject, style, excerpts), scale=(1, excerpts[0].voxel_size_um),
        )  # fmt: skip


def draw_map(tile_map: TileMap, style: Style) -> Figure:
    """A number of every tile as a colour over the slice."""
    excerpt, subject, values = tile_map.excerpt, tile_map.subject, tile_map.values
    name = NAMES[tile_map.metric]
    height, width = excerpt.box.shape[1:]
    scale = MAP_IN / max(height, width)
    wide, tall = max(width * scale, 1.5), max(height * scale, 1.5)
    left, bar = MARGIN + 0.75, 0.25
    inner = max(left + wide + GAP + bar + 0.9 - MARGIN, 4.6)
    heading = wrapped(f"{subject.title}, {subject.where}: {name}", inner, TITLE_PT, bold=True)
    missing = int(np.isnan(values).sum())
    words = f"run {subject.name}" + (f" against {subject.truth}" if tile_map.metric in SCORES else "")
    known = values.size - missing
    words += f", {known} tile{'s' * (known != 1)} of {tile_map.grid.step[1]} x {tile_map.grid.step[2]} voxels"
    words += f"; {missing} without a value show the plain image" if missing else ""
    notes = wrapped(words, inner, TEXT_PT)
    top = MARGIN + len(heading) * line_height(TITLE_PT) + len(notes) * line_height(TEXT_PT) + 0.1
    with settings():
        page = Page(inner + 2 * MARGIN, top + tall + 0.6, style.dpi)
        page.lines(MARGIN, page.lines(MARGIN, MARGIN, heading, TITLE_PT, bold=True), notes)
        axes = page.axes(left, top, wide, tall)
        (_, y0, x0), (_, y1, x1) = excerpt.box.start, excerpt.box.stop
        shown, mappable = _shaded(tile_map)
        axes.imshow(shown, extent=(x0, x1, y1, y0), interpolation="antialiased", aspect="auto")
        axes.grid(visible=False)
        axes.set_xlabel("x in voxels")
        axes.set_ylabel("y in voxels")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        below = "min" if np.nanmin(values) < (mappable.get_clim()[0] or 0) else "neither"
        colours = page.figure.colorbar(mappable, cax=page.axes(left + wide + GAP, top, bar, tall), extend=below)
        colours.set_label(name)
        colours.ax.grid(visible=False)
        return page.figure


def _shaded(tile_map: TileMap) -> tuple[NDArray[np.uint8], ScalarMappable]:
    """The colour of every tile, shaded by the image, which then is to be seen and leaves the hue as it is."""
    excerpt, values = tile_map.excerpt, tile_map.values
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    equal = math.isclose(low, high, rel_tol=1e-6, abs_tol=1e-9)
    if tile_map.metric in SCORES:
        if high > 0:
            low = max(0.0, low)  # or one tile of -1 makes all others equal
        if equal:
            low, high = (-1.0, 0.0) if high < 0 else (0.0, 1.0)
    elif equal:
        low, high = low - 0.05 * (abs(low) or 1), high + 0.05 * (abs(high) or 1)
    mappable = ScalarMappable(Normalize(low, high), "viridis")
    colours = mappable.to_rgba(np.nan_to_num(values))[..., :3]
    dark, bright = np.percentile(excerpt.image, (0.5, 99.5))
    shade = np.clip((excerpt.image - dark) / max(1.0, bright - dark), 0, 1)[..., None]
    _, top, left = tile_map.grid.voxels(tile_map.tiles).start
    (_, y0, x0), (height, width) = excerpt.box.start, excerpt.image.shape
    rows = (np.arange(height) * excerpt.step + y0 - top) // tile_map.grid.step[1]
    columns = (np.arange(width) * excerpt.step + x0 - left) // tile_map.grid.step[2]
    places = rows[:, None], columns
    known = ~np.isnan(values)[places][..., None]
    pixels = np.where(known, 255 * colours[places] * (0.5 + 0.5 * shade), excerpt.image[..., None])
    return np.rint(pixels).astype(np.uint8), mappable


def _sample_panel(title: str, metric: str, sample: Sample, style: Style) -> Panel:
    excerpt, counts = sample.excerpt, sample.counts
    z, y, x = excerpt.box.start
    lines = [
        f"{title}: {metric} {sample.score:.3f}",
        f"at {z},{y},{x}",
        f"TP {counts.tp:,}  FP {counts.fp:,}  FN {counts.fn:,}",
    ]
    return Panel(blend(excerpt.image, excerpt.kinds(), style.alpha, style.palette), lines)


def _legend(subject: Subject, style: Style, excerpts: Sequence[Excerpt]) -> list[Swatch]:
    palette = style.palette
    names = (("tp", "right: vessel in both"), ("fp", "false: only in the mask"), ("fn", "missed: only in the truth"))
    swatches = [Swatch(hexadecimal(getattr(palette, kind)), text) for kind, text in names]
    swatches.append(Swatch(hexadecimal(palette.tn), "background in both, darkened"))
    if any((excerpt.known_truth() == TRUTH_UNLABELLED).any() for excerpt in excerpts):
        whole = all(excerpt.done is None or excerpt.done.all() for excerpt in excerpts)
        why = ["not annotated", *["not valid"] * (subject.recipe.valid is not None), *["no mask yet"] * (not whole)]
        swatches.append(Swatch("#b0b0b0", f"{', or '.join(why)}: the plain image"))
    return swatches


def _level_notes(view: View, labels: bool) -> list[str]:
    step = view.excerpt.step
    if step == 1:
        return []
    note = f"Level {view.excerpt.level}: a pixel is {step} x {step} voxels"
    return [f"{note}, and vessel where any of them is." if labels else f"{note}."]


def _sentence(counts: Counts) -> str:
    found = scores(counts)
    parts = [f"MCC {found.mcc:.4f}, F1 {found.f1:.4f}"] if found.mcc is not None and found.f1 is not None else []
    voxels = f"TP {counts.tp:,}, FP {counts.fp:,}, FN {counts.fn:,}, TN {counts.tn:,}"
    text = "; ".join([*parts, f"{voxels} voxels"])
    return re.sub(r"(?<![,;]) ", "\u00a0", text)


def _partly(truth: np.ndarray) -> bool:
    return bool((truth == TRUTH_UNLABELLED).any())


def _filter_text(trial: Trial) -> str:
    recipe = trial.subject.recipe
    window = " x ".join(map(str, recipe.denoise.window))
    filtered = "none" if recipe.denoise.method == "none" else f"{recipe.denoise.method}, {window} voxels"
    return f"{filtered}{'; inverted' if recipe.foreground == 'dark' else ''}"
