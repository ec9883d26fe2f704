"""What a block returns of each of its tiles: numbers that add up to the result of a run."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Box
from pipeline.storage.tables import RunTables, Signal
from pipeline.storage.volume import Volume


class Column(IntEnum):
    """Columns of what a block returns of each tile, all int64 that add up."""

    TP = 0
    FP = 1
    FN = 2
    TN = 3
    VOXELS = 4
    DONE = 5
    REUSED = 6
    FAILED = 7
    ABSENT = 8
    SILENT = 9
    BORDER = 10
    BORDER_CHANGES = 11
    INSIDE = 12
    INSIDE_CHANGES = 13


def recorded(
    volume: Volume, tables: RunTables, truth: str | None, tiles: Box, unfinished: Sequence[int]
) -> NDArray[np.int64]:
    """What the slices that need no work add to the result: int64 (z, y, x, len(Column)), zero for the others."""
    record = np.zeros((*tiles.shape, len(Column)), np.int64)
    settled = np.ones(tiles.shape[0], np.bool_)
    settled[[z - tiles.start[0] for z in unfinished]] = False
    present = volume.slices.present()[tiles.start[0] : tiles.stop[0]]
    record[settled & ~present, ..., Column.ABSENT] = 1
    if (reused := settled & present).any():
        counts, _ = tables.truth(truth).counts.survey(tiles.slices) if truth else (0, ())
        done = done_record(tables, tiles, counts)
        done[..., Column.REUSED] = 1
        record[reused] = done[reused]
    return record


def done_record(tables: RunTables, tiles: Box, counts: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """What tiles that are done, and so can be read, add to the result."""
    record = np.zeros((*tiles.shape, len(Column)), np.int64)
    record[..., : Column.VOXELS] = counts
    record[..., Column.VOXELS] = tables.grids.tiles.sizes(tiles)
    record[..., Column.DONE] = 1
    signal, _ = tables.signal.survey(tiles.slices)
    record[..., Column.SILENT] = signal == Signal.NONE
    record[..., Column.BORDER :], _ = tables.seam.survey(tiles.slices)
    return record
