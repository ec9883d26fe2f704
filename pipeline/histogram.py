"""Joint histograms of one tile by truth, and what is read from them: thresholds, counts at a level, narrower tables.

A joint table has one row of grey levels for each of background, vessel and not annotated voxels; it holds all that the
threshold methods and the scores need, so no voxel is looked at twice. Measured on one core of an EPYC (Zen 4), per
512x512 tile of 8 bit with truth: table 0.07 ms, or 0.15 where vessels are everywhere (``np.bincount`` of the three
classes: 0.6); mask 0.01; Otsu's level 0.001. 16 bit: table 0.2 ms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import kernel
from pipeline.errors import ShapeMismatchError
from pipeline.scratch import scratch

BACKGROUND, VESSEL, UNLABELLED = 0, 1, 2
"""Rows of a joint table."""

TRUTH_BACKGROUND, TRUTH_VESSEL, TRUTH_UNLABELLED = 0, 255, 127
"""Voxel values of a truth label as it is stored; whatever is neither background nor vessel counts as not annotated."""

WINDOWED_LEVELS = 256
"""Levels of a stored table: all of an 8-bit volume, bins over a window of a 16-bit one."""


Voxels = NDArray[Any]
Words = NDArray[np.uint64]
Table = NDArray[np.uint32]


def joint_histogram(tile: NDArray[Any], truth: NDArray[np.uint8] | None, table: NDArray[np.uint32]) -> None:
    """Count the voxels of a tile by grey level and truth.

    Parameters
    ----------
    tile
        ``(h, w)`` uint8 or uint16 grey levels.
    truth
        ``(h, w)`` uint8: 0 background, 255 vessel, anything else not annotated. None: nothing is annotated.
    table
        Output, ``(3, levels)`` uint32, C-contiguous, overwritten: rows `BACKGROUND`, `VESSEL`, `UNLABELLED`; 256 levels
        for uint8, 65536 for uint16.

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
    if levels == 256:
        words, rest = (None, None) if truth is None else _words_and_rest(truth)
        pairs = scratch.array("pairs", (256 * 256,), np.uint32)
        _count_uint8(np.ascontiguousarray(tile).reshape(-1), words, rest, pairs, table)
    else:
        _count_uint16(tile, truth, table)


def _words_and_rest(truth: NDArray[np.uint8]) -> tuple[Words, NDArray[np.uint8]]:
    """Truth in words of eight voxels, as these follow each other in a tile, and what is left after the last word."""
    if truth.size and truth.strides[1] == 1 and truth.shape[1] % 8 == 0:  # in place: a copy would take 0.02 ms
        words = truth.view(np.uint64)
        if words.flags.aligned:
            return words, truth[:0, 0]
    flat = scratch.array("flat truth", (truth.size,), np.uint8)
    flat.reshape(truth.shape)[...] = truth
    whole = truth.size // 8 * 8
    return flat[:whole].view(np.uint64)[None], flat[whole:]


@kernel
def _row_starts(levels: int) -> NDArray[np.uint32]:
    """Where the row of each truth value starts in a flat table."""
    starts = np.full(256, UNLABELLED * levels, np.uint32)
    starts[TRUTH_BACKGROUND], starts[TRUTH_VESSEL] = BACKGROUND * levels, VESSEL * levels
    return starts


@kernel
def _count_uint8(
    voxels: Voxels, label_words: Words | None, label_rest: NDArray[np.uint8] | None, pairs: Table, table: Table
) -> None:
    # One counter is stored in a cycle, and that is the limit. So most voxels are counted in pairs of neighbours, which
    # are alike: the counters in use fit into the L1 cache. Levels of noise do not, and take as long as one by one.
    whole, usual, starts, flat = voxels.size // 8 * 8, UNLABELLED, _row_starts(256), table.reshape(-1)
    words = voxels[:whole].view(np.uint64)
    pairs[:] = 0
    flat[:] = 0
    if label_words is None:
        for word in words:
            _count_pairs(word, pairs)
    else:
        usual = _usual_row(label_words)
        _count_labelled(words, label_words, usual, pairs, table)
    for at in range(whole, voxels.size):
        label = TRUTH_UNLABELLED if label_rest is None else label_rest[at - whole]
        flat[starts[label] + voxels[at]] += 1
    for second in range(256):
        total = np.uint32(0)
        for first in range(256):  # of two neighbours, in the lower byte
            number = pairs[256 * second + first]
            total += number
            table[usual, first] += number
        table[usual, second] += total


@kernel
def _count_labelled(words: Words, label_words: Words, usual: int, pairs: Table, table: Table) -> None:
    """Count eight voxels as four pairs where all are of the usual row, and each by itself elsewhere."""
    # Neighbours are often equal, and adding to the counter just stored waits for that store: hence four tables in turn.
    singles, starts = np.zeros((4, 3 * 256), np.uint32), _row_starts(256)
    usual_word = _usual_word(usual)
    index = np.uint64(0)
    for y in range(label_words.shape[0]):
        for x in range(label_words.shape[1]):
            word, labels = words[index], label_words[y, x]
            index += np.uint64(1)
            if labels == usual_word:
                _count_pairs(word, pairs)
            else:
                for voxel in range(np.uint64(8)):
                    shift = np.uint64(8) * voxel
                    start = np.uint64(starts[(labels >> shift) & np.uint64(255)])
                    singles[voxel & np.uint64(3), start + ((word >> shift) & np.uint64(255))] += 1
    for row in range(3):
        for level in range(256):
            at = row * 256 + level
            table[row, level] = singles[0, at] + singles[1, at] + singles[2, at] + singles[3, at]


@kernel
def _count_pairs(word: Any, pairs: Table) -> None:
    """Count the four pairs of neighbours in eight voxels."""
    pairs[word & np.uint64(65535)] += 1
    pairs[(word >> np.uint64(16)) & np.uint64(65535)] += 1
    pairs[(word >> np.uint64(32)) & np.uint64(65535)] += 1
    pairs[word >> np.uint64(48)] += 1


@kernel
def _usual_row(label_words: Words) -> int:
    """Background or not annotated, whichever has more of the words in a row from the middle."""
    background = unlabelled = 0
    for word in label_words[label_words.shape[0] // 2]:
        background += word == _usual_word(BACKGROUND)
        unlabelled += word == _usual_word(UNLABELLED)
    return UNLABELLED if unlabelled > background else BACKGROUND


@kernel
def _usual_word(row: int) -> Any:
    """Eight voxels of background or not annotated."""
    value = TRUTH_BACKGROUND if row == BACKGROUND else TRUTH_UNLABELLED
    return np.uint64(value) * np.uint64(0x0101010101010101)


@kernel
def _count_uint16(tile: Voxels, truth: NDArray[np.uint8] | None, table: Table) -> None:
    starts, flat = _row_starts(65536), table.reshape(-1)
    flat[:] = 0
    for y in range(tile.shape[0]):
        for x in range(tile.shape[1]):
            start = starts[TRUTH_UNLABELLED if truth is None else truth[y, x]]
            flat[np.uint64(start) + np.uint64(tile[y, x])] += 1


@kernel
def level_counts(table: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Sum a joint table over truth.

    Parameters
    ----------
    table
        ``(3, levels)`` uint32, see `joint_histogram`.

    Returns
    -------
    ndarray
        ``(levels,)`` int64: voxels at each grey level.
    """
    counts = np.empty(table.shape[1], np.int64)
    for level in range(counts.size):
        counts[level] = np.int64(table[0, level]) + np.int64(table[1, level]) + np.int64(table[2, level])
    return counts


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
    Agrees with ``skimage.filters.threshold_otsu`` on an image of 8 bit within one level; that one rounds counts to
    float32, which on 16 bit can be dozens of levels where the variance is flat.
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
    elif level < (1 << 8 * tile.itemsize) - 1:
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
