"""The table of tiles for people's own analysis: its columns, and its rows as CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.findings.census import NOT_COUNTED, Census
from pipeline.geometry import Box
from pipeline.kernels.confusion import SCORES, Undefined
from pipeline.kernels.flags import Flag, flag_tiles
from pipeline.kernels.quality import Measure
from pipeline.storage.ome import VoxelSize
from pipeline.storage.tables import Signal, Status

Kind = Literal["int64", "float64", "float32", "text"]

ROWS_AT_ONCE = 2**14  # 5 MB of columns, 40 MB of text


@dataclass(frozen=True, slots=True)
class Part:
    """Tiles whose rows are made at once."""

    census: Census
    voxel_size_um: VoxelSize | None
    flags: NDArray[np.uint8] | None
    scores: NDArray[np.float64] | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes
    ----------
    name : str
    kind : str
        Type of its values.
    meaning : str
        For the documentation; with the unit.
    values : callable
        Makes the values of some tiles, (z, y, x) or what broadcasts to it: numbers (NaN and what is masked are empty),
        or of text the positions in ``words``.
    words : tuple of str
        Of text; an empty one is an empty cell.
    """

    name: str
    kind: Kind
    meaning: str
    values: Callable[[Part], NDArray[Any]]
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Values:
    """Values of one column in the order of the rows.

    Attributes
    ----------
    column : Column
    values : ndarray
        (rows,) of its type; of text the positions in its words.
    empty : ndarray
        bool (rows,): empty cells.
    """

    column: Column
    values: NDArray[Any]
    empty: NDArray[np.bool_]

    def texts(self) -> list[str]:
        """The cells as CSV has them: a number is the shortest text that reads back as the same bits."""
        match self.column.kind:
            case "text":
                return [self.column.words[position] for position in self.values.tolist()]
            case "float32":
                texts = [str(value) for value in self.values]
            case "float64":
                texts = [repr(value) for value in self.values.tolist()]
            case "int64":
                texts = [str(value) for value in self.values.tolist()]
        for row in np.flatnonzero(self.empty).tolist():
            texts[row] = ""
        return texts


def rows(
    census: Census, tiles: Box, voxel_size_um: VoxelSize | None, undefined: Undefined = "article"
) -> Iterator[list[Values]]:
    """Columns of the table, some slices at a time: one row for each tile, in C order.

    Parameters
    ----------
    census : Census
        Of whole slices, as the other tiles of its slice say what is unusual of a tile.
    tiles : Box
        Those that become rows, a box of the tile grid.
    voxel_size_um : tuple or None
    undefined
        What a score is where it is 0 / 0; see `kernels.confusion.scores`.
    """
    step = max(1, ROWS_AT_ONCE // max(1, tiles.shape[1] * tiles.shape[2]))
    for first in range(tiles.start[0], tiles.stop[0], step):
        last = min(first + step, tiles.stop[0])
        whole = census.cut(Box((first, *census.tiles.start[1:]), (last, *census.tiles.stop[1:])))
        wanted = Box((first, *tiles.start[1:]), (last, *tiles.stop[1:]))
        part = whole.cut(wanted)
        flags = _flags(whole, wanted)
        scores = None if part.counts is None else part.scores(undefined)
        yield [_column_values(column, Part(part, voxel_size_um, flags, scores)) for column in COLUMNS]


def _flags(whole: Census, wanted: Box) -> NDArray[np.uint8] | None:
    if whole.quality is None:
        return None
    measured = ~np.isnan(whole.quality[..., Measure.MEAN])
    flags = flag_tiles(whole.quality, measured)
    return flags[wanted.relative_to(whole.tiles.start).slices]


def _column_values(column: Column, part: Part) -> Values:
    values = column.values(part)
    empty = np.ma.getmaskarray(values)
    if column.kind in ("float32", "float64"):
        empty = empty | np.isnan(np.ma.getdata(values))
    if column.kind == "text":
        empty = np.array([not word for word in column.words])[values]
    dtype = "uint8" if column.kind == "text" else column.kind
    shape = part.census.tiles.shape
    flat = np.broadcast_to(np.ma.getdata(values), shape).astype(dtype, copy=False).ravel()
    return Values(column, flat, np.broadcast_to(empty, shape).ravel())


def write_csv(path: Path, parts: Iterator[list[Values]]) -> int:
    """Write rows as CSV [1]_, some at a time, and return how many; no cell has a comma or a quote.

    References
    ----------
    .. [1] RFC 4180, with the line ends of Unix.
    """
    written = 0
    with path.open("w", encoding="ascii", newline="") as file:
        file.write(",".join(column.name for column in COLUMNS) + "\n")
        for part in parts:
            lines = map(",".join, zip(*(values.texts() for values in part), strict=True))
            written += len(part[0].values)
            file.writelines(f"{line}\n" for line in lines)
    return written


def _cells(axis: int, in_voxels: bool) -> Callable[[Part], NDArray[Any]]:
    """Index of each tile along an axis, or the first of its voxels."""

    def values(part: Part) -> NDArray[Any]:
        box = part.census.tiles
        step = part.census.grid.step[axis] if in_voxels else 1
        return _along(axis, np.arange(box.start[axis], box.stop[axis]) * step)

    return values


def _lengths(axis: int) -> Callable[[Part], NDArray[Any]]:
    """Voxels of each tile along an axis."""

    def values(part: Part) -> NDArray[Any]:
        grid, first = part.census.grid, _cells(axis, in_voxels=True)(part)
        lengths: NDArray[np.int64] = np.minimum(grid.shape[axis] - first, grid.step[axis])
        return lengths

    return values


def _place_um(axis: int) -> Callable[[Part], NDArray[Any]]:
    def values(part: Part) -> NDArray[Any]:
        size = np.nan if part.voxel_size_um is None else part.voxel_size_um[axis]
        return np.round(_cells(axis, in_voxels=True)(part) * size, 6)  # no 921.5999999999999

    return values


def _along(axis: int, values: NDArray[Any]) -> NDArray[Any]:
    shape = [1, 1, 1]
    shape[axis] = len(values)
    return values.reshape(shape)


def _count(position: int) -> Callable[[Part], NDArray[Any]]:
    def values(part: Part) -> NDArray[Any]:
        counts = part.census.counts
        return _nothing() if counts is None else np.ma.array(counts[..., position], mask=~part.census.done)

    return values


def _annotated(part: Part) -> NDArray[Any]:
    known = part.census.done & (part.census.counts is not None)
    return np.ma.array(part.census.annotated, mask=~known)


def _vessel(part: Part) -> NDArray[Any]:
    return np.ma.array(part.census.vessel, mask=part.census.vessel == NOT_COUNTED)


def _score(position: int) -> Callable[[Part], NDArray[Any]]:
    return lambda part: np.full((1, 1, 1), np.nan) if part.scores is None else part.scores[..., position]


def _measure(measure: Measure) -> Callable[[Part], NDArray[Any]]:
    def values(part: Part) -> NDArray[Any]:
        quality = part.census.quality
        return np.full((1, 1, 1), np.nan) if quality is None else quality[..., measure]

    return values


def _flag_words() -> tuple[str, ...]:
    """Names of the flags of every sum of them, ``blurred+dark``."""
    sums = range(2 * max(Flag))
    return tuple("+".join(flag.name.lower() for flag in Flag if flag & number and flag.name) for number in sums)


def _nothing() -> NDArray[Any]:
    return np.ma.array(np.zeros((1, 1, 1), np.int64), mask=True)


_SCORE_MEANINGS = {
    "accuracy": "part of the annotated voxels that is right",
    "f1": "F1, or Dice, of the vessels",
    "mcc": "Matthews correlation coefficient",
    "precision": "part of the mask's vessel that is right",
    "recall": "part of the truth's vessel that is found",
    "specificity": "part of the truth's background that is left alone",
    "iou": "intersection over union of the vessels, or Jaccard",
    "balanced_accuracy": "mean of recall and specificity",
    "kappa": "Cohen's kappa",
}
_MEASURE_MEANINGS = {
    Measure.FOCUS: "variance of the Laplacian, in grey levels squared",
    Measure.SATURATION: "part of the voxels at the lowest or highest grey level that there is",
    Measure.MEAN: "mean grey level of the image, not inverted",
    Measure.CONTRAST: "from the first to the last hundredth of the filtered grey levels",
    Measure.SEPARABILITY: "part of the variance that lies between the two classes of Otsu's level",
    Measure.EMPTINESS: "part of the voxels that equal all their neighbours",
    Measure.CHATTER: "amplitude of the strongest periodic band, over the mean",
}

COLUMNS: Sequence[Column] = (
    Column("z", "int64", "slice", _cells(0, in_voxels=False)),
    Column("row", "int64", "row of the tile in its slice", _cells(1, in_voxels=False)),
    Column("column", "int64", "column of the tile in its slice", _cells(2, in_voxels=False)),
    Column("y", "int64", "first voxel of the tile along y", _cells(1, in_voxels=True)),
    Column("x", "int64", "first voxel of the tile along x", _cells(2, in_voxels=True)),
    Column("height", "int64", "voxels along y; fewer at the edge of the volume", _lengths(1)),
    Column("width", "int64", "voxels along x", _lengths(2)),
    Column("voxels", "int64", "voxels of the tile", lambda part: part.census.voxels),
    Column("z_um", "float64", "place of that first voxel in micrometres; empty if its size is not known", _place_um(0)),
    Column("y_um", "float64", "the same along y", _place_um(1)),
    Column("x_um", "float64", "the same along x", _place_um(2)),
    Column("status", "text", "`done`, `pending`, `failed` or `absent`; of what is not done, the rest is empty",
           lambda part: part.census.status, tuple(status.name.lower() for status in Status)),
    Column("level", "float64", "threshold on the filtered scale; empty where the method found none",
           lambda part: part.census.level),
    Column("signal", "text", "`there` or `none`; empty where the recipe does not ask",
           lambda part: part.census.signal, tuple("" if not signal else signal.name.lower() for signal in Signal)),
    Column("vessel", "int64", "voxels of the mask that are vessel", _vessel),
    Column("vessel_fraction", "float64", "the same over the voxels of the tile", lambda part: part.census.fraction()),
    Column("annotated", "int64", "voxels that have a truth; without a truth, this and the rest down to the scores are "
           "empty", _annotated),
    *(
        Column(name, "int64", meaning, _count(position))
        for position, (name, meaning) in enumerate(
            {
                "tp": "vessel in truth and mask, in voxels",
                "fp": "vessel in the mask only",
                "fn": "vessel in the truth only",
                "tn": "background in both",
            }.items()
        )
    ),
    *(Column(name, "float64", _SCORE_MEANINGS[name], _score(position)) for position, name in enumerate(SCORES)),
    *(
        Column(measure.name.lower(), "float32", _MEASURE_MEANINGS[measure], _measure(measure))
        for measure in Measure
    ),
    Column("flags", "text", "in what the tile is unlike the others of its slice, such as `blurred+dark`",
           lambda part: _no_flags() if part.flags is None else part.flags, _flag_words()),
)  # fmt: skip


def _no_flags() -> NDArray[Any]:
    return np.zeros((1, 1, 1), np.uint8)
