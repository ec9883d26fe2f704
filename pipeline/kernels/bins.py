"""Bins of grey levels: the 256 in which the joint tables of 16-bit tiles are stored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShapeMismatchError
from pipeline.kernels.compiled import kernel

WINDOWED_LEVELS = 256
"""Levels of a stored table: all of an 8-bit volume, bins over a window of a 16-bit one."""


def rebin(tables: NDArray[np.uint32], window: tuple[int, int], out: NDArray[np.uint32]) -> None:
    """Narrow the tables of 16-bit tiles to the 256 bins that are stored.

    Parameters
    ----------
    tables
        ``(tiles, 3, levels)`` uint32.
    window
        First and last grey level of the bins, both included; the outermost bins also take what lies beyond.
    out
        Output, ``(tiles, 3, 256)`` uint32. Level v counts in bin ``clip((v - low) * 256 // (high - low + 1), 0, 255)``;
        tables that have 256 levels already are copied as they are.

    Raises
    ------
    ShapeMismatchError
        The output has not 256 levels, or another number of tiles.
    ValueError
        The window is empty.
    """
    low, high = window
    if out.shape != (len(tables), 3, WINDOWED_LEVELS):
        raise ShapeMismatchError(f"out: got shape {out.shape}, expected {(len(tables), 3, WINDOWED_LEVELS)}")
    if high < low:
        raise ValueError(f"window: got {low} to {high}, expected the lower level first")
    if tables.shape == out.shape:
        out[...] = tables
    else:
        _rebin(tables.reshape(-1, tables.shape[-1]), low, high - low + 1, out.reshape(-1, WINDOWED_LEVELS))


@kernel
def _rebin(rows: NDArray[np.uint32], low: int, width: int, out: NDArray[np.uint32]) -> None:
    bins, levels = out.shape[1], rows.shape[1]
    for row in range(out.shape[0]):
        start = 0
        for index in range(bins):
            # The next bin starts at the lowest v with (v - low) * bins >= (index + 1) * width.
            edge = low - (-(index + 1) * width) // bins
            stop = levels if index == bins - 1 else min(max(edge, 0), levels)
            total = 0
            for level in range(start, stop):
                total += rows[row, level]
            out[row, index] = total
            start = stop


def bin_top(index: int, window: tuple[int, int]) -> int:
    """Highest grey level of the window that `rebin` counts in a bin; -1, below every level, where the bin is -1."""
    low, high = window
    return -1 if index < 0 else low - (-(index + 1) * (high - low + 1)) // WINDOWED_LEVELS - 1


def bin_tops(window: tuple[int, int]) -> NDArray[np.int64]:
    """Highest grey level of each bin of a stored histogram, int64 (`WINDOWED_LEVELS`,)."""
    return np.array([bin_top(index, window) for index in range(WINDOWED_LEVELS)], np.int64)
