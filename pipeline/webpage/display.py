"""What of a report is looked at: the map of all tiles, and pictures of some."""

from __future__ import annotations

import math
from shlex import join as join_words

import numpy as np

from pipeline.geometry import Box, Triple
from pipeline.views.overlay import PALETTES
from pipeline.webpage.gallery import Picture, Room
from pipeline.webpage.markup import Markup, join, tag
from pipeline.webpage.page import Page
from pipeline.webpage.verdict import undefined_scores
from pipeline.webpage.wording import level_words

_MEASURES = {"mcc": "Score (MCC)", "level": "Level", "vessel": "Part that is vessel", "flags": "Quality flags"}
_STATES = {"none": "done, no number", "pending": "not done", "failed": "failed", "absent": "no slice"}
_PICTURE = 256  # longer side of the frame that a picture is drawn in
_SHARP = 4  # sides of voxels in it from which on they are drawn as squares: a blur would look like an image of that


def view_line(path: str, name: str, truth: str | None) -> str:
    """Command that opens a volume with a run and what that was compared with: not the run worked on last."""
    words = ["kesm", "view", path, "--name", name, *([] if truth is None else ["--truth", truth])]
    return join_words(words)


def tile_display(page: Page) -> Markup:
    """Map of the tiles of a slice, what chooses the slice and the tile, and the figures of that."""
    tile_map = page.tile_map
    depth, _, _ = tile_map.cells
    start = first_cell(page)[0]
    options = [tag("option", words, value=name) for name, words in _MEASURES.items() if name in tile_map.columns]
    if not options:
        options = [tag("option", "State", value="state")]
    controls = tag(
        "div",
        tag("label", "Show ", tag("select", *options, id="measure")),
        tag("label", "Slice ", tag("input", type="range", id="slice", min=0, max=depth - 1, value=start, step=1),
            class_="slider"),
        class_="controls",
    )  # fmt: skip
    canvas = tag(
        "canvas", "A map of the tiles of one slice.", id="map", tabindex=0, role="application",
        aria_label="Map of the tiles of a slice. Arrow keys choose a tile, Page Up and Page Down the slice, Home and "
        "End the first and last column.",
    )  # fmt: skip
    states = [tag("li", tag("span", class_=f"state {kind}"), words) for kind, words in _STATES.items()]
    keys = join([
        tag("div", tag("span", id="low"), tag("i"), tag("span", id="top"), class_="scale"),
        tag("ul", *states, class_="legend"),
    ])  # fmt: skip
    figures = tag(
        "div",
        tag("h3", "The chosen tile"),
        tag("div", tag("dl", id="figures-list", class_="facts"), tag("p", "To see it in the viewer:"),
            tag("code", id="view-line", class_="command"), id="figures"),
    )  # fmt: skip
    grouped = (
        tag("p", f"There are too many tiles to send around: each cell is a square of {tile_map.group} × "
            f"{tile_map.group} of them.") if tile_map.group > 1 else None
    )  # fmt: skip
    note = "Click a tile, or choose one with the arrow keys; Page Up and Page Down change the slice."
    return join(filter(None, [
        tag("noscript", tag("p", "The map needs JavaScript; all else on this page does not.", class_="warning")),
        grouped, tag("p", note, class_="soft screen", id="map-note"), controls, tag("p", id="slice-words"),
        tag("p", id="tile-words", class_="unseen", aria_live="polite"),
        tag("div", tag("div", canvas, keys), figures, class_="map"),
    ]))  # fmt: skip


def first_cell(page: Page) -> Triple:
    """The tile that is chosen first: the first that there is a picture of."""
    return page.gallery[0].pictures[0].cell if page.gallery and page.gallery[0].pictures else (0, 0, 0)


def picture_display(page: Page) -> Markup:
    """Pictures of tiles, what changes how they are shown, and one of them larger."""
    compared = page.summary.truth is not None and page.summary.annotated > 0
    kinds = (
        [("tp", "found (TP)"), ("fp", "too much (FP)"), ("fn", "missed (FN)"), ("tn", "background (TN)")]
        if compared else [("marked", "vessel in the mask")]
    )  # fmt: skip
    entries = [tag("li", tag("span", class_=f"swatch {kind}"), words) for kind, words in kinds]
    if _has_edges(page):  # it is no kind of voxel, so it keeps its colour
        entries.append(tag("li", tag("span", class_="state absent"), "outside of the volume"))
    colours = tag("ul", *entries, class_="legend")
    controls = [
        tag("label", tag("input", type="checkbox", id="overlay-choice", checked=True), "Overlay"),
        tag("label", "Strength ", tag("input", type="range", id="alpha", min=0, max=100, value=50)),
    ]
    if compared:
        blind = tag("input", type="checkbox", id="colour-blind-choice")
        controls.append(tag("label", blind, "Colours for colour-blind eyes"))
    rooms = [_room(page, room) for room in page.gallery if room.pictures]
    dialog = tag(
        "dialog", tag("div", id="enlarged-picture", class_="sharp"), tag("p", id="enlarged-words"),
        tag("code", id="enlarged-line", class_="command"),
        tag("form", tag("button", "Show on the map", type="button", id="to-map"), " ", tag("button", "Close"),
            method="dialog", class_="controls"),
        id="enlarged", aria_label="A tile, larger",
    )  # fmt: skip
    return join([colours, tag("div", *controls, class_="controls"), *rooms, dialog])


def _has_edges(page: Page) -> bool:
    """Whether some picture does not fill its frame."""
    _, rows, columns = page.volume["shape"]
    whole = (min(page.recipe["tile"], rows), min(page.recipe["tile"], columns))
    return any(picture.box.shape[1:] != whole for room in page.gallery for picture in room.pictures)


def _room(page: Page, room: Room) -> Markup:
    shown = [_picture(page, picture) for picture in room.pictures]
    return tag("div", tag("h3", f"{room.title} ({len(shown)})"), tag("p", room.note, class_="soft"),
               tag("div", *shown, class_="tiles"), id=f"room-{room.name}")  # fmt: skip


def _picture(page: Page, picture: Picture) -> Markup:
    z, y, x = picture.cell
    words = [f"Slice {z}, row {y}, column {x}"]
    if math.isfinite(picture.score):
        undefined = " (undefined)" if "mcc" in undefined_scores(picture.counts) else ""
        words.append(f"MCC {picture.score:.4f}{undefined}".replace("-", "−"))
    if math.isfinite(picture.level):
        words.append(f"level {level_words(picture.level)}")
    if picture.counts is not None and picture.counts.total:
        counts = picture.counts
        words.append(f"found {counts.tp:,}, too much {counts.fp:,}, missed {counts.fn:,}")
    elif math.isfinite(picture.fraction):
        words.append(f"{100 * picture.fraction:.2f} % vessel")
    frame, scale, times = _frame(page, picture.box)
    if times > 1 and not picture.problem:
        words.append(f"drawn {times} times as large")
    caption = tag("figcaption", "; ".join(words))
    if picture.problem:
        return tag("figure", tag("p", f"Cannot be shown: {picture.problem}", class_="unreadable"), caption)
    _, high, wide = page.volume["voxel_size_um"] or (1, 1, 1)
    _, rows, columns = picture.box.shape
    size = {"width": f"{columns * wide * scale:.1f}", "height": f"{rows * high * scale:.1f}"}
    middle = ",".join(str((first + last) // 2) for first, last in zip(picture.box.start, picture.box.stop, strict=True))
    drawing = tag(
        "svg",
        tag("image", href=picture.image, preserveAspectRatio="none", **size),
        tag("image", href=picture.overlay, preserveAspectRatio="none", class_="overlay", **size),
        viewBox=f"0 0 {frame[1]:.1f} {frame[0]:.1f}", role="img",
        class_="sharp" if scale * min(high, wide) >= _SHARP else None, aria_label=f"Picture: {'; '.join(words)}",
    )  # fmt: skip
    button = tag("button", drawing, type="button", data_cell=f"{z},{y},{x}", data_at=middle, title="Enlarge")
    return tag("figure", button, caption)


def _frame(page: Page, box: Box) -> tuple[tuple[float, float], float, int]:
    """Sides (y, x) of a picture's frame, length of a micrometre in it, and how many times as large as others that is.

    The frame is that of a whole tile, or of the whole volume where that is smaller. All tiles are drawn to one scale,
    but those of which only a corner is in the volume are larger by a whole factor: nobody would see them.
    """
    _, high, wide = page.volume["voxel_size_um"] or (1, 1, 1)
    _, rows, columns = page.volume["shape"]
    tile = page.recipe["tile"]
    whole = (min(tile, rows) * high, min(tile, columns) * wide)
    times = int(max(1, min(whole[0] // (box.shape[1] * high), whole[1] // (box.shape[2] * wide))))
    scale = _PICTURE / max(whole)
    return (whole[0] * scale, whole[1] * scale), scale * times, times


def colour_filter() -> Markup:
    """Filter that turns the article's colours into those for colour-blind eyes: three colours make a matrix."""
    article, other = PALETTES["article"], PALETTES["colour-blind"]
    before = np.array([article.tp, article.fp, article.fn], np.float64).T
    after = np.array([other.tp, other.fp, other.fn], np.float64).T
    matrix = after @ np.linalg.inv(before)
    numbers = [*(" ".join(f"{value:.5f}" for value in row) + " 0 0" for row in matrix), "0 0 0 1 0"]
    effect = tag("feColorMatrix", type="matrix", values=" ".join(numbers))
    made = tag("filter", effect, id="colour-blind", color_interpolation_filters="sRGB")
    return tag("svg", made, width=0, height=0, aria_hidden="true", focusable="false")
