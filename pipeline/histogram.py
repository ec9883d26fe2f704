"""Joint histograms of one tile by truth, and what is read from them: thresholds, counts at a level, narrower tables.

A joint table has one row of grey levels for each of background, vessel and not annotated voxels; it holds all that the
threshold methods and the scores need, so no voxel is looked at twice. Measured on one core of an EPYC (Zen 4), per
512x512 tile of 8 bit with truth: table 0.09 ms (``np.bincount`` without truth: 0.3), mask 0.007; Otsu's level 0.001.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import kernel
from pipeline.errors import ShapeMismatchError

BACKGROUND, VESSEL, UNLABELLED = 0, 1, 2
"""Rows of a joint table."""

TRUTH_BACKGROUND, TRUTH_VESSEL, TRUTH_UNLABELLED = 0, 255, 127
"""Voxel values of a truth label as it is stored; whatever is neither background nor vessel counts as not annotated."""

WINDOWED_LEVELS = 256
"""Levels of a stored table: all of an 8-bit volume, bins over a window of a 16-bit one."""


def joint_histogram(tile: NDArray[Any], truth: NDArray[np.uint8] | None, table: NDArray[np.uint32]) -> None:
    """Count the voxels of a tile by grey level and truth.

    Parameters
    ----------
    tile
        ``(h, w)`` uint8 or uint16 grey levels.
    truth
        ``(h, w)`` uint8: 0 background, 255 vessel, anything else not annotated. None: nothing is annotated.
    table
        Output, ``(3, levels)`` uint32, overwritten: rows `BACKGROUND`, `VESSEL`, `UNLABELLED`; 256 levels for uint8,
        65536 for uint16.

    Raises
    ------
    ShapeMismatchError
        The truth has not the shape of the tile, or the table not the levels of its dtype.
    """
    if truth is not None and truth.shape != tile.shape:
        raise ShapeMismatchError(f"truth: got shape {truth.shape}, the tile has {tile.shape}")
    levels = 1 << 8 * tile.dtype.itemsize
    if table.shape != (3, levels):
        raise ShapeMismatchError(f"table: got shape {table.shape}, {tile.dtype} needs {(3, levels)}")
    (_count_uint8 if levels == 256 else _count_uint16)(tile, truth, table)


@kernel
def _fill_bins(tile: NDArray[Any], truth: NDArray[np.uint8] | None, y: int, levels: int, bins: NDArray[Any]) -> None:
    """Index of each voxel of row `y` in a flat table of `levels`; apart from the counting, because this vectorises."""
    for x in range(bins.size):
        if truth is None:
            row = UNLABELLED
        else:
            value = truth[y, x]
            row = BACKGROUND if value == TRUTH_BACKGROUND else VESSEL if value == TRUTH_VESSEL else UNLABELLED
        bins[x] = row * levels + int(tile[y, x])


@kernel
def _count_uint8(tile: NDArray[np.uint8], truth: NDArray[np.uint8] | None, table: NDArray[np.uint32]) -> None:
    # Neighbours are often equal, and adding to the counter just stored waits for that store: four tables in turn
    # take 0.09 ms where one takes 0.23.
    height, width = tile.shape
    bins = np.empty(width, np.uint16)
    parts = np.zeros((4, 3 * 256), np.uint32)
    for y in range(height):
        _fill_bins(tile, truth, y, 256, bins)
        for x in range(width):
            parts[x & 3, bins[x]] += 1
    for row in range(3):
        for level in range(256):
            index = row * 256 + level
            table[row, level] = parts[0, index] + parts[1, index] + parts[2, index] + parts[3, index]


@kernel
def _count_uint16(tile: NDArray[np.uint16], truth: NDArray[np.uint8] | None, table: NDArray[np.uint32]) -> None:
    height, width = tile.shape
    bins = np.empty(width, np.uint32)
    table[:] = 0
    for y in range(height):
        _fill_bins(tile, truth, y, 65536, bins)
        for x in range(width):
            table[bins[x] >> 16, bins[x] & 65535] += 1


@kernel
def otsu_level(counts: NDArray[Any]) -> float:
    """Level that maximises the variance between the classes ``<= level`` and ``> level`` [1]_.

    Parameters
    ----------
    counts
        ``(levels,)`` of any integer dtype: voxels at each grey level, up to 2**53 in all.

    Returns
    -------
    float
        The first of the best levels; foreground is ``> level``. With all voxels at one level that level, so that the
        mask is empty; NaN without any voxel.

    Notes
    -----
    Agrees with ``skimage.filters.threshold_otsu`` on an image within one level; that one rounds counts to float32.
    Sums are exact in float64 (1e11 voxels of 16 bit sum to 6.6e15, below 2**53), and no integer can overflow.

    References
    ----------
    .. [1] N. Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on Systems, Man, and
       Cybernetics 9 (1979), 62-66. :doi:`10.1109/TSMC.1979.4310076`

    Examples
    --------
    >>> otsu_level(np.array([5, 1, 0, 0, 6]))
    1.0
    """
    total = 0.0
    total_moment = 0.0
    for level in range(counts.size):
        total += counts[level]
        total_moment += float(counts[level]) * level
    below = 0.0
    below_moment = 0.0
    best_level = np.nan
    best_variance = -1.0
    for level in range(counts.size):
        if counts[level] == 0:  # the same two classes as one level before, and the first maximum wins
            continue
        below += counts[level]
        below_moment += float(counts[level]) * level
        above = total - below
        if above == 0.0:
            variance = 0.0
        else:
            # Of the difference of means, times both sizes: integers, exact on a tile, so that equals tie exactly.
            difference = above * below_moment - below * (total_moment - below_moment)
            variance = difference * difference / (below * above)
        if variance > best_variance:
            best_level, best_variance = float(level), variance
    return best_level


@kernel
def counts_above(table: NDArray[Any], level: float) -> tuple[int, int, int, int]:
    """Compare the mask ``> level`` with the truth, from the joint table alone.

    Parameters
    ----------
    table
        ``(3, levels)`` of any integer dtype, see `joint_histogram`.
    level
        Grey level; NaN means an empty mask, as in `binarize`.

    Returns
    -------
    tuple of int
        ``tp, fp, fn, tn`` in voxels; what is not annotated counts nowhere.
    """
    tp = fp = fn = tn = 0
    for grey in range(table.shape[1]):
        if grey > level:
            tp += int(table[VESSEL, grey])
            fp += int(table[BACKGROUND, grey])
        else:
            fn += int(table[VESSEL, grey])
            tn += int(table[BACKGROUND, grey])
    return tp, fp, fn, tn


def binarize(tile: NDArray[Any], level: float, out: NDArray[np.uint8]) -> None:
    """Write 255 where a tile is above a level and 0 elsewhere.

    Parameters
    ----------
    tile
        ``(h, w)`` uint8 or uint16.
    level
        Grey level, as precise as float64 is; NaN gives an empty mask.
    out
        Output, ``(h, w)`` uint8; may be a part of a larger array.

    Raises
    ------
    ShapeMismatchError
        The output has not the shape of the tile.
    """
    if out.shape != tile.shape:
        raise ShapeMismatchError(f"out: got shape {out.shape}, the tile has {tile.shape}")
    if level < 0:
        out[...] = 255
    elif level < np.iinfo(tile.dtype).max:
        # Of integers, v > level where v > floor(level); both of one type, because only then the loop vectorises.
        _binarize(tile, tile.dtype.type(level), out)
    else:  # NaN comes here
        out[...] = 0


@kernel
def _binarize(tile: NDArray[Any], level: Any, out: NDArray[np.uint8]) -> None:
    height, width = tile.shape
    for y in range(height):
        for x in range(width):
            out[y, x] = 255 if tile[y, x] > level else 0


def rebin(table: NDArray[np.uint32], window: tuple[int, int], out: NDArray[np.uint32]) -> None:
    """Narrow the table of a 16-bit tile to the 256 bins that are stored.

    Parameters
    ----------
    table
        ``(3, levels)`` uint32.
    window
        First and last grey level of the bins, both included; the outermost bins also take what lies beyond.
    out
        Output, ``(3, 256)`` uint32. Level v counts in bin ``clip((v - low) * 256 // (high - low + 1), 0, 255)``;
        a table that has 256 levels already is copied as it is.

    Raises
    ------
    ShapeMismatchError
        The output has not 256 levels.
    ValueError
        The window is empty.
    """
    low, high = window
    if out.shape != (3, WINDOWED_LEVELS):
        raise ShapeMismatchError(f"out: got shape {out.shape}, expected {(3, WINDOWED_LEVELS)}")
    if high < low:
        raise ValueError(f"window: got {low} to {high}, expected the lower level first")
    if table.shape == out.shape:
        out[...] = table
    else:
        _rebin(table, low, high - low + 1, out)


@kernel
def _rebin(table: NDArray[np.uint32], low: int, width: int, out: NDArray[np.uint32]) -> None:
    bins, levels = out.shape[1], table.shape[1]
    for row in range(3):
        start = 0
        for index in range(bins):
            # The next bin starts at the lowest v with (v - low) * bins >= (index + 1) * width.
            edge = low - (-(index + 1) * width) // bins
            stop = levels if index == bins - 1 else min(max(edge, 0), levels)
            total = 0
            for level in range(start, stop):
                total += table[row, level]
            out[row, index] = total
            start = stop
