"""Maps of all tiles of a run, small enough to be sent around: one byte a tile, compressed."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.findings.census import NOT_COUNTED, Census
from pipeline.geometry import ceil_div
from pipeline.kernels.confusion import SCORES, tile_scores
from pipeline.kernels.flags import flag_tiles
from pipeline.storage.tables import Signal, Status

MAP_CELLS = 460_000
"""Cells of a map: the 447,440 tiles of a full volume fit; of smaller tiles, some share a cell."""

EXACT_CELLS = 8192
"""Up to here a map keeps numbers as they are, and counts beside them."""

STATES = ("absent", "done", "no signal", "pending", "failed")  # where tiles share a cell, the last of them shows

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Column:
    """One number of every cell, C order.

    Attributes
    ----------
    low, step : float
        Code 0 says that there is none, code c stands for ``low + (c - 1) * step``. ``step`` is 0 where numbers are not
        coded, but float64, NaN where there is none.
    data : str
        uint8 or little-endian float64, compressed by zlib, in base64.
    """

    low: float
    step: float
    data: str

    def document(self) -> dict[str, Any]:
        """The column for JSON."""
        return {"low": self.low, "step": self.step, "data": self.data}


@dataclass(frozen=True, eq=False)
class TileMap:
    """What a run knows of its tiles, or of squares of them.

    Attributes
    ----------
    cells : tuple of int
        (z, y, x) of the map.
    group : int
        Tiles along the side of a cell: 1 unless there are too many.
    side : int
        Voxels along the side of a cell.
    columns : dict of Column
        ``state``, a position in `STATES`; ``flags``, sums of `kernels.flags.Flag`; ``level``, ``vessel`` (a part of
        the voxels), ``mcc``; of few cells ``tp``, ``fp``, ``fn``, ``tn``. What a run does not have is left out.
    """

    cells: tuple[int, int, int]
    group: int
    side: int
    columns: dict[str, Column]

    def document(self) -> dict[str, Any]:
        """The map for JSON."""
        return {
            "cells": list(self.cells),
            "group": self.group,
            "side": self.side,
            "columns": {name: column.document() for name, column in self.columns.items()},
        }


def make_map(tiles: Census) -> TileMap:
    """Make the map of a census of a whole volume."""
    depth, height, width = tiles.tiles.shape
    group = 1
    while depth * ceil_div(height, group) * ceil_div(width, group) > MAP_CELLS and group < max(height, width):
        group += 1
    cells = (depth, ceil_div(height, group), ceil_div(width, group))
    exact = depth * cells[1] * cells[2] <= EXACT_CELLS
    columns = {"state": _coded(_largest(_states(tiles), group).astype(np.float64))}
    if tiles.quality is not None:
        flags = flag_tiles(tiles.quality, tiles.done)
        merged = _reduced(np.bitwise_or, flags, group)
        columns["flags"] = _coded(np.where(_largest(tiles.done, group), merged, np.nan))
    numbers = {"level": _mean(tiles.level, group), "vessel": _fraction(tiles, group)}
    if tiles.counts is not None:
        counts = _sum(tiles.counts, group)
        numbers["mcc"] = tile_scores(counts)[..., SCORES.index("mcc")]
        if exact:
            annotated = counts.any(axis=-1)
            for position, kind in enumerate(("tp", "fp", "fn", "tn")):
                numbers[kind] = np.where(annotated, counts[..., position], np.nan)
    for name, values in numbers.items():
        if not np.isnan(values).all():
            columns[name] = _plain(values) if exact else _coded(values)
    return TileMap(cells, group, group * tiles.grid.step[1], columns)


def _coded(values: Values) -> Column:
    """One byte a number: whole numbers near each other as they are, others in 254 equal steps."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    whole = bool((known == np.floor(known)).all()) and high - low <= 254
    step = 1.0 if whole or high == low else (high - low) / 254
    codes = np.where(np.isfinite(values), np.rint((np.nan_to_num(values) - low) / step) + 1, 0).astype(np.uint8)
    return Column(low, step, _packed(codes.tobytes()))


def _plain(values: Values) -> Column:
    return Column(0.0, 0.0, _packed(np.ascontiguousarray(values, "<f8").tobytes()))


def _packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def _states(tiles: Census) -> NDArray[np.uint8]:
    names = {Status.ABSENT: "absent", Status.PENDING: "pending", Status.DONE: "done", Status.FAILED: "failed"}
    states = np.array([STATES.index(names[state]) for state in Status], np.uint8)[tiles.status]
    states[tiles.done & (tiles.signal == Signal.NONE)] = STATES.index("no signal")
    return states


def _fraction(tiles: Census, group: int) -> Values:
    """Part of a cell's voxels that is vessel, over its tiles of which it is known."""
    known = tiles.vessel != NOT_COUNTED
    voxels = _sum(np.where(known, tiles.voxels, 0)[..., None], group)[..., 0]
    vessel = _sum(np.where(known, tiles.vessel, 0)[..., None], group)[..., 0]
    return _quotient(vessel, voxels)


def _mean(values: Values, group: int) -> Values:
    if group == 1:
        return values
    known = np.isfinite(values)
    total = _reduced(np.add, np.where(known, values, 0.0), group)
    number = _reduced(np.add, known.astype(np.int64), group)
    return _quotient(total, number)


def _quotient(above: NDArray[Any], below: NDArray[Any]) -> Values:
    quotient: Values = np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)
    return quotient


def _sum(counts: NDArray[np.int64], group: int) -> NDArray[np.int64]:
    return _reduced(np.add, counts, group)


def _largest(values: NDArray[Any], group: int) -> NDArray[Any]:
    return _reduced(np.maximum, values, group)


def _reduced(rule: np.ufunc, values: NDArray[Any], group: int) -> NDArray[Any]:
    """Bring together squares of so many tiles a side, (z, y, x, ...), fewer at the far edges."""
    for axis in (1, 2) if group > 1 else ():
        values = rule.reduceat(values, np.arange(0, values.shape[axis], group), axis=axis)
    return values
