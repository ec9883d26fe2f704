"""What figures are drawn on: pages that are laid out in inches, so that nothing is cut off and no pixel is blurred."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextToPath
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.storage.draft import check_place, draft_file
from pipeline.storage.ome import VoxelSize
from pipeline.views.overlay import PALETTES, Palette

FORMATS = ("png", "svg", "pdf")
FONT = "DejaVu Sans"  # comes with matplotlib, so that every machine draws the same letters
TITLE_PT, TEXT_PT = 11.0, 8.5
MARGIN, GAP = 0.2, 0.18  # inches
MOST_ZOOM = 400  # output pixels for one of the image

# Without hinting, lines are as long as they were measured.
# A user's own settings change neither what a command draws nor are they changed: these hold while it draws.
_SETTINGS = {key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith(("backend", "interactive"))}
_SETTINGS |= {
    "font.family": FONT, "font.size": TEXT_PT, "axes.titlesize": TEXT_PT, "axes.labelsize": TEXT_PT,
    "xtick.labelsize": 8.0, "ytick.labelsize": 8.0, "legend.fontsize": 8.0, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4",
    "axes.axisbelow": True, "text.parse_math": False, "svg.hashsalt": "kesm", "text.hinting": "none",
    "figure.dpi": 100.0,
}  # fmt: skip
# What the font has not is drawn as boxes, and joined scripts as single letters: no user can mend it.
_STRANGE = "Glyph|Matplotlib currently does not support"
# Dates make equal figures differ, and so does the version of what drew them.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}


@dataclass(frozen=True, slots=True)
class Style:
    """How figures look.

    Attributes
    ----------
    palette : Palette
        Colours of right and wrong.
    alpha : float
        Weight of the image under them, 0 to 1.
    dpi : int
        Output pixels an inch.
    """

    palette: Palette = PALETTES["article"]
    alpha: float = 0.5
    dpi: int = 200

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"--alpha: got {self.alpha:g}, expected a weight of the image from 0 to 1")
        if not 30 <= self.dpi <= 1200:
            raise ConfigError(f"--dpi: got {self.dpi}, expected 30 to 1200 pixels an inch")


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture on a page: pixels, (y, x) grey or (y, x, 3), shown as they are, and the lines above them."""

    pixels: NDArray[np.uint8]
    lines: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Swatch:
    """An entry of a legend: a colour, and its words."""

    colour: str
    text: str


@contextmanager
def settings() -> Iterator[None]:
    """Draw with settings of our own, whatever the user's are, which come back afterwards."""
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_STRANGE)
        yield


def format_of(path: Path) -> str:
    """Format by a file's ending.

    Raises
    ------
    ConfigError
        If it is not one of the three.
    ExistsError, MissingInputError, StorageError
        If it cannot be written; see `check_place`.
    """
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        got = f"the ending {path.suffix!r}" if path.suffix else "no ending"
        raise ConfigError(f"--out: got {path} with {got}, expected {', '.join(f'.{each}' for each in FORMATS)}")
    check_place(path, replace=True)
    return ending


def save(figure: Figure, path: Path, dpi: int | None = None) -> None:
    """Write a figure in the format of the file's ending; the file appears under its name when it is whole.

    The same figure gives the same bytes.

    Raises
    ------
    ConfigError, ExistsError, MissingInputError, StorageError
        As `format_of`, and if the system refuses to write.
    """
    kind = format_of(path)
    buffer = io.BytesIO()
    quiet = logging.getLogger("fontTools")  # it reports each font that it makes smaller
    before = quiet.level
    try:
        quiet.setLevel(logging.ERROR)
        with settings():
            figure.savefig(buffer, format=kind, dpi=dpi or figure.dpi, metadata=_METADATA[kind])
    finally:
        quiet.setLevel(before)
    with draft_file(path, replace=True) as draft:
        draft.write_bytes(buffer.getvalue())


def share_text(share: tuple[int, int]) -> str:
    """``; 18 of 36 tiles done``, where not all are: scores and levels are of these alone."""
    done, tiles = share
    return "" if done == tiles else f"; {done:,} of {tiles:,} tiles done"


def hexadecimal(colour: tuple[int, int, int]) -> str:
    """Colour as matplotlib takes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def text_width(text: str, points: float, bold: bool = False) -> float:
    """Width of a line in inches."""
    font = FontProperties(family=FONT, size=points, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_STRANGE)
        width, _, _ = TextToPath().get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def wrapped(text: str, width: float, points: float, bold: bool = False) -> list[str]:
    """Cut a text into lines that fit a width in inches; a word that does not is cut."""
    lines: list[str] = []
    for word in text.split(" "):  # a no-break space keeps a number with its name
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, points, bold) <= width:
            lines[-1] = longer
            continue
        rest = word
        while text_width(rest, points, bold) > width and len(rest) > 1:
            fits = next(n for n in range(len(rest) - 1, 0, -1) if n == 1 or text_width(rest[:n], points, bold) <= width)
            lines.append(rest[:fits])
            rest = rest[fits:]
        lines.append(rest)
    return lines or [""]


def line_height(points: float) -> float:
    """Distance of lines in inches."""
    return points * 1.35 / 72


class Page:
    """A figure in inches from its upper left corner."""

    def __init__(self, width: float, height: float, dpi: int) -> None:
        # Whole output pixels: pictures are placed on them.
        self.width, self.height, self.dpi = math.ceil(width * dpi) / dpi, math.ceil(height * dpi) / dpi, dpi
        self.figure = Figure(figsize=(self.width, self.height), dpi=dpi)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes."""
        found: Axes = self.figure.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        )
        return found

    def picture(self, left: float, top: float, pixels: NDArray[np.uint8], zoom: int) -> Axes:
        """Add pixels, each so many of the output wide, on whole pixels of the output."""
        height, width = (length * zoom / self.dpi for length in pixels.shape[:2])
        left, top = round(left * self.dpi) / self.dpi, round(top * self.dpi) / self.dpi
        axes = self.axes(left, top, width, height)
        # Enlarged here: some versions of matplotlib are a row off at the edges of pixels that they enlarge.
        large = pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
        edges = (-0.5, pixels.shape[1] - 0.5, pixels.shape[0] - 0.5, -0.5)
        axes.imshow(large, cmap="gray", vmin=0, vmax=255, interpolation="none", aspect="auto", extent=edges)
        axes.set_axis_off()
        return axes

    def text(self, left: float, top: float, text: str, points: float = TEXT_PT, bold: bool = False) -> None:
        """Add a line."""
        self.figure.text(
            left / self.width, 1 - top / self.height, text, size=points, weight="bold" if bold else "normal",
            va="top", ha="left", parse_math=False,
        )  # fmt: skip

    def lines(
        self, left: float, top: float, lines: Sequence[str], points: float = TEXT_PT, bold: bool = False
    ) -> float:
        """Add lines; where they end."""
        for line in lines:
            self.text(left, top, line, points, bold)
            top += line_height(points)
        return top

    def swatch(self, left: float, top: float, colour: str) -> None:
        """Add a square of a colour."""
        side = TEXT_PT / 72
        self.figure.add_artist(
            Rectangle(
                (left / self.width, 1 - (top + side) / self.height), side / self.width, side / self.height,
                facecolor=colour, edgecolor="#555555", linewidth=0.5, transform=self.figure.transFigure,
            )
        )  # fmt: skip


def swatch_rows(swatches: Sequence[Swatch], width: float) -> list[list[tuple[float, Swatch]]]:
    """Lines of a legend: the left edge of each entry, in inches."""
    rows: list[list[tuple[float, Swatch]]] = []
    left = math.inf
    for swatch in swatches:
        wide = 0.18 + text_width(swatch.text, TEXT_PT) + 0.2
        if left + wide - 0.2 > width:
            rows.append([])
            left = 0.0
        rows[-1].append((left, swatch))
        left += wide
    return rows


def draw_pictures(  # noqa: PLR0913  (what a page of pictures has)
    *,
    title: str,
    notes: Sequence[str],
    panels: Sequence[Panel],
    columns: int,
    style: Style,
    side: float,
    legend: Sequence[Swatch] = (),
    scale: tuple[int, VoxelSize | None] | None = None,
) -> Figure:
    """Draw pictures in rows, each pixel of theirs a whole number of output pixels wide.

    Parameters
    ----------
    title : str
    notes : sequence of str
        Below the title.
    panels : sequence of Panel
    columns : int
        Pictures in a row.
    style : Style
    side : float
        Inches that the longer side of the largest picture should have at most; it has more if its pixels need them.
    legend : sequence of Swatch
    scale : tuple, optional
        Voxels of a pixel's side, and the size of a voxel: for a bar in the first of the widest pictures.
    """
    columns = min(columns, len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    height, width = (max(panel.pixels.shape[axis] for panel in panels) for axis in (0, 1))
    zoom = min(MOST_ZOOM, max(1, int(side * style.dpi / max(height, width))))
    longest = max((text_width(line, TEXT_PT) for panel in panels for line in panel.lines), default=0.0)
    wide = max(width * zoom / style.dpi, longest)  # nothing above a picture runs into the next one
    inner = max(columns * wide + (columns - 1) * GAP, 4.6)
    widest = max(panels, key=lambda panel: panel.pixels.shape[1])  # the first of them: room for a bar
    heading = wrapped(title, inner, TITLE_PT, bold=True)
    below = [line for note in notes for line in wrapped(note, inner, TEXT_PT)]
    entries = swatch_rows(legend, inner)
    caption = max((len(panel.lines) for panel in panels), default=0) * line_height(TEXT_PT)
    top = MARGIN + len(heading) * line_height(TITLE_PT) + len(below) * line_height(TEXT_PT) + 0.08
    heights = [caption + max(panel.pixels.shape[0] for panel in row) * zoom / style.dpi for row in rows]
    tall = sum(heights) + (len(rows) - 1) * GAP
    page = Page(inner + 2 * MARGIN, top + tall + (0.12 + len(entries) * 0.2 if entries else 0.0) + MARGIN, style.dpi)
    page.lines(MARGIN, page.lines(MARGIN, MARGIN, heading, TITLE_PT, bold=True), below)
    for row_number, row in enumerate(rows):
        upper = top + sum(heights[:row_number]) + row_number * GAP
        for column, panel in enumerate(row):
            left = MARGIN + column * (wide + GAP)
            page.lines(left, upper, panel.lines)
            axes = page.picture(left, upper + caption, panel.pixels, zoom)
            if panel is widest and scale is not None:
                draw_scale_bar(axes, panel.pixels.shape[1], panel.pixels.shape[0], *scale)
    for number, entry in enumerate(entries):
        for left, swatch in entry:
            upper = top + tall + 0.12 + number * 0.2
            page.swatch(MARGIN + left, upper - 0.01, swatch.colour)
            page.text(MARGIN + left + 0.18, upper, swatch.text)
    return page.figure


def round_length(about: float) -> float:
    """The longest of 1, 2, 5, 10, 20, 50, ... that is not longer than a length."""
    power = 10.0 ** math.floor(math.log10(about))
    return next(factor * power for factor in (5, 2, 1) if factor * power <= about * (1 + 1e-9))


def length_text(length: float, unit: str) -> str:
    """``200 µm``, ``1 mm``, ``50 voxels``."""
    if unit == "µm" and length >= 1000:
        length, unit = length / 1000, "mm"
    return f"{length:g} {unit[:-1] if unit == 'voxels' and length == 1 else unit}"


def draw_scale_bar(axes: Axes, width: int, height: int, step: int, voxel_size_um: VoxelSize | None) -> None:
    """Draw a bar of a round length into a picture of so many pixels, and one upright where voxels are not square."""
    unit = "voxels" if voxel_size_um is None else "µm"
    down, across = (step, step) if voxel_size_um is None else (step * voxel_size_um[1], step * voxel_size_um[2])
    if text_width(length_text(5000, unit), TEXT_PT, bold=True) * axes.figure.dpi > axes.get_window_extent().width:
        return  # a strip of a few voxels
    if min(axes.get_window_extent().size) < 2 * axes.figure.dpi * line_height(TEXT_PT):
        return  # of a few voxels the other way
    length = round_length(max(width * across * 0.25, across if unit == "voxels" else 0.0))
    margin = 0.035 * min(width, height)
    right, bottom, wide, tall = width - margin - 0.5, height - margin - 0.5, length / across, length / down
    upright = not math.isclose(down, across, rel_tol=0.01) and tall < height * 0.8
    corners = [(right - wide, bottom), (right, bottom), *([(right, bottom - tall)] if upright else [])]
    for thick, colour in ((4.5, "black"), (2.5, "white")):
        axes.plot(*zip(*corners, strict=True), color=colour, linewidth=thick, solid_capstyle="projecting",
                  solid_joinstyle="miter")  # fmt: skip
    label = axes.annotate(
        length_text(length, unit), (right, bottom), xytext=(-5 if upright else 0, 4), textcoords="offset points",
        ha="right", va="bottom", color="white", size=TEXT_PT, weight="bold", parse_math=False,
    )  # fmt: skip
    label.set_path_effects([withStroke(linewidth=2.0, foreground="black")])
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
