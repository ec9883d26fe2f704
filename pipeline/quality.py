"""Quality of tiles: a few numbers for each, by which one is told from the others; see `pipeline.flags`.

They are made while a tile is segmented, so they must cost little: one look at its raw voxels, the joint table that
there is anyway, and a Fourier transform of its row and column means. Measured on one core of an EPYC (Zen 4), per
512x512 tile: 8 bit 0.08 ms, 16 bit 0.2 ms.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import kernel
from pipeline.errors import ShapeMismatchError
from pipeline.histogram import count_tiles, level_counts, otsu_level, tile_bounds
from pipeline.scratch import scratch

Voxels = NDArray[Any]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_Cut = tuple[tuple[int, int], tuple[int, int], int]  # corner and shape of a part of a plane, and side of its tiles
_Place = tuple[int, int, int, int]  # a tile in a flat plane: its first voxel, voxels from row to row, height, width
_Lanes = tuple[Voxels, Voxels, Voxels]  # of nothing: their dtypes are what counts


class Measure(IntEnum):
    """Columns of a table of measures; see `measure_voxels` and `measure_tables`."""

    FOCUS = 0
    SATURATION = 1
    MEAN = 2
    CONTRAST = 3
    SEPARABILITY = 4
    EMPTINESS = 5
    CHATTER = 6


CHATTER_SIDE = 32
"""Voxels that a tile must have along both axes for its bands to be told from anything else."""

_SAMPLES = 32  # along each axis of a tile, at least: they find its quartiles within 4 % of its standard deviation
_ROWS = 255  # which 8 bits count, and of 8 bit, whose sum 16 bits hold
_SUMMED = 256  # voxels of 8 bit, whose sum 16 bits hold
_SQUARED = 2048  # voxels of 8 bit, whose squared Laplacians sum up to less than 2**31

# A band of chatter is a line in a spectrum. It repeats at least 8 times in a tile, each time in 2.5 voxels or more, and
# stands out from what is around it: further than the line is wide (3 bins to each side), but near (10 bins). What is
# around takes off four times its power, as chance alone makes a few of the 200 bins that much stronger.
_REPEATS, _HIGHEST, _NEAR, _FAR, _EXCESS = 8, 0.4, 3, 10, 4.0


def measure_voxels(plane: Voxels, corner: tuple[int, int], shape: tuple[int, int], side: int) -> Floats:
    """Measure the voxels of the tiles that a part of a plane is cut into.

    Parameters
    ----------
    plane
        ``(h, w)`` uint8 or uint16 raw grey levels, not inverted; copied, unless C-contiguous.
    corner, shape
        First voxel and size of the part, (y, x); a tile begins there. What is around it is not looked at.
    side
        Of a tile, in voxels; those at the far edges of the part may be smaller.

    Returns
    -------
    ndarray
        ``(tiles, len(Measure))`` float64, in C order, valid until the next call of this thread:

        - ``FOCUS``: variance of the Laplacian, with four neighbours [1]_, of the inner voxels; in grey levels squared.
        - ``SATURATION``: share of the voxels at the lowest or highest level that the dtype has.
        - ``MEAN``: grey level.
        - ``CONTRAST``, ``SEPARABILITY``: NaN, until `measure_tables` writes them.
        - ``EMPTINESS``: share of the inner voxels that equal all their four neighbours. Noise leaves few of them, and
          whatever was not imaged has nothing else: a mosaic's padding, of any level, or a lake of saturated voxels.
        - ``CHATTER``: amplitude of the strongest periodic band of rows or columns, over the mean; see the notes.

        Inner voxels are those whose neighbours lie in the tile. FOCUS and EMPTINESS are NaN in a tile without any, that
        is under 3 voxels a side, CHATTER under `CHATTER_SIDE`, and everything in a tile of nothing.

    Raises
    ------
    ShapeMismatchError
        The plane is of another kind, or the part is not in it.

    Notes
    -----
    A knife that vibrates cuts sections that are now thicker, now thinner, and lights them so: bands along its edge.
    Their profile is the mean of each row (and column), with voxels further than the interquartile range beyond the
    quartiles brought in to there, or vessels would make the profile. The quartiles are those of a grid of voxels. The
    profile is windowed by ``(1 - u**2)**2``, for u from -1 to 1, and transformed. A line's power, less four times the
    geometric mean of what is around it on its two sides, is the square of the amplitude. It comes out up to a third too
    low, as the window and the quartiles take something off. Bands at another angle are not seen, nor may be weak ones
    beside a vessel that runs along them from end to end.

    References
    ----------
    .. [1] J. L. Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study", ICPR 2000,
       vol. 3, 314-317. :doi:`10.1109/ICPR.2000.903548`
    """
    if plane.ndim != 2 or plane.dtype not in (np.uint8, np.uint16):
        raise ShapeMismatchError(f"plane: got {plane.dtype} {plane.shape}, expected uint8 or uint16 of two axes")
    if any(not 0 <= at <= at + size <= length for at, size, length in zip(corner, shape, plane.shape, strict=True)):
        raise ShapeMismatchError(f"shape: got {shape} from {corner} on, the plane has {plane.shape}")
    tiles, size = count_tiles(shape, side), 1 << max(0, side - 1).bit_length()
    measures = scratch.array("measures", (tiles, len(Measure)), np.float64)
    profiles = scratch.array("profiles", (tiles, 2, size), np.float64)
    cut = corner, shape, side
    _measure_voxels(np.ascontiguousarray(plane), cut, _LANES[plane.itemsize], measures, profiles)
    # A transform is made for each profile by itself, so its bits do not depend on how many there are.
    _measure_profiles(np.fft.rfft(profiles), cut, measures)
    return measures


def measure_tables(tables: NDArray[np.uint32], measures: Floats) -> None:
    """Measure the joint tables of tiles, and write what is found beside what was of their voxels.

    Parameters
    ----------
    tables
        ``(tiles, 3, levels)`` uint32, of grey levels that may be corrected, filtered, inverted, or only valid ones.
    measures
        Output, ``(tiles, len(Measure))`` float64, of which two columns are written, unless a table is empty:

        - ``CONTRAST``: from the lowest level with a hundredth of the voxels at or below it, to the highest with as many
          at or above it; in grey levels.
        - ``SEPARABILITY``: the variance between the classes of Otsu's level, over the variance; 0 to 1, and 0 where all
          voxels have one level.

    Raises
    ------
    ShapeMismatchError
        The tables are of another kind, or not as many.
    """
    if tables.ndim != 3 or tables.shape[1] != 3 or measures.shape != (len(tables), len(Measure)):
        raise ShapeMismatchError(f"tables: got shape {tables.shape}, expected ({len(measures)}, 3, levels)")
    _measure_tables(tables, measures)


_LANES: dict[int, _Lanes] = {
    1: (np.empty(0, np.uint16), np.empty(0, np.int16), np.empty(0, np.int32)),
    2: (np.empty(0, np.uint32), np.empty(0, np.int32), np.empty(0, np.int64)),
}
# Their dtypes are the narrowest for sums of `_SUMMED` or `_ROWS` voxels, for a Laplacian, and for the sum of the
# squares of `_SQUARED`: the wider they are, the fewer fit into a vector.


@kernel
def _measure_voxels(plane: Voxels, cut: _Cut, lanes: _Lanes, measures: Floats, profiles: Floats) -> None:
    corner, shape, side = cut
    stride = plane.shape[1]
    flat, sums = plane.reshape(-1), np.empty((2, side), np.int64)
    for index in range(measures.shape[0]):
        top, bottom, left, right = tile_bounds(index, shape, side)
        height, width = bottom - top, right - left
        tile = (corner[0] + top) * stride + corner[1] + left, stride, height, width
        measures[index, :] = np.nan
        profiles[index] = 0
        if height and width:
            rows, columns = sums[0, :height], sums[1, :width]
            total, saturated, equal, squares = _sum_tile(flat, tile, lanes, rows, columns)
            measures[index, Measure.MEAN] = total / (height * width)
            measures[index, Measure.SATURATION] = saturated / (height * width)
            if min(height, width) >= 3:
                inner = (height - 2) * (width - 2)
                mean = _sum_laplacian(flat, tile) / inner
                measures[index, Measure.FOCUS] = squares / inner - mean * mean
                measures[index, Measure.EMPTINESS] = equal / inner
            _fill_profile(rows, width, profiles[index, 0])
            _fill_profile(columns, height, profiles[index, 1])


@kernel
def _sum_tile(flat: Voxels, tile: _Place, lanes: _Lanes, rows: Counts, columns: Counts) -> tuple[int, int, int, int]:
    """Sum up voxels, saturated ones, inner ones in a flat place, and squared Laplacians; write the sums of lines.

    Loops are over lines, and each has one width of integers: so all of them are of full vectors.
    """
    begin, stride, height, width = tile
    limits = _limits(flat, tile)
    near, line, steps = np.empty(width, flat.dtype), np.zeros(width, lanes[0].dtype), np.empty(width, lanes[1].dtype)
    full, level = np.zeros(width, np.uint8), np.zeros(width, np.uint8)
    total = saturated = equal = squares = 0
    columns[:] = 0
    for y in range(height):
        at = begin + y * stride
        if _bring_in(flat, at, limits, near):
            _count_saturated(flat, at, full)
        rows[y] = 0
        for x in range(0, width, _SUMMED):
            count = min(_SUMMED, width - x)
            total += _sum_segment(flat, at + x, count, line)
            rows[y] += _add_segment(near, x, count, line)
        if 0 < y < height - 1 and width > 2:
            _fill_steps(flat, at, stride, steps, level)
            steps[0] = steps[width - 1] = 0
            for x in range(0, width, _SQUARED):
                squares += _sum_squares(steps, x, min(_SQUARED, width - x), lanes[2])
        if y % _ROWS == _ROWS - 1 or y == height - 1:
            for x in range(width):
                columns[x] += line[x]
                saturated += full[x]
                equal += level[x] if 0 < x < width - 1 else 0
            line[:], full[:], level[:] = 0, 0, 0
    return total, saturated, equal, squares


@kernel
def _bring_in(flat: Voxels, at: int, limits: tuple[Any, Any], near: Voxels) -> bool:
    """Bring the voxels of a line within limits; return whether there are saturated ones."""
    begin, (low, high) = np.uint64(at), limits
    least, most = flat.dtype.type(~flat.dtype.type(0)), flat.dtype.type(0)
    for x in range(np.uint64(near.size)):
        voxel = flat[begin + x]
        near[x] = min(max(voxel, low), high)
        least, most = min(least, voxel), max(most, voxel)
    return bool(least == 0 or most == 256**flat.itemsize - 1)


@kernel
def _count_saturated(flat: Voxels, at: int, full: NDArray[np.uint8]) -> None:
    """Count, in each column, the voxels that are saturated."""
    begin = np.uint64(at)
    lowest, highest = flat.dtype.type(0), flat.dtype.type(~flat.dtype.type(0))
    for x in range(np.uint64(full.size)):
        voxel = flat[begin + x]
        full[x] = np.uint8(full[x] + ((voxel == lowest) | (voxel == highest)))


@kernel
def _sum_segment(flat: Voxels, at: int, length: int, line: Voxels) -> Any:
    """Sum of a part of a line, of the dtype of ``line``."""
    begin, wide = np.uint64(at), line.dtype.type
    total = wide(0)
    for x in range(np.uint64(length)):
        total = wide(total + flat[begin + x])
    return total


@kernel
def _add_segment(near: Voxels, first: int, length: int, line: Voxels) -> Any:
    """Sum of a part of a line, which is added to the sums of columns."""
    begin, wide = np.uint64(first), line.dtype.type
    total = wide(0)
    for x in range(np.uint64(length)):
        voxel = near[begin + x]
        line[begin + x] = wide(line[begin + x] + voxel)
        total = wide(total + voxel)
    return total


@kernel
def _fill_steps(flat: Voxels, at: int, stride: int, steps: Voxels, level: NDArray[np.uint8]) -> None:
    """Write the Laplacian of a line, and count, in each column, the voxels that equal their four neighbours."""
    here, above, below = np.uint64(at), np.uint64(at - stride), np.uint64(at + stride)
    before, after, step = np.uint64(at - 1), np.uint64(at + 1), steps.dtype.type
    for x in range(np.uint64(steps.size)):
        voxel, a, b, c, d = flat[here + x], flat[above + x], flat[below + x], flat[before + x], flat[after + x]
        level[x] = np.uint8(level[x] + ((a == voxel) & (b == voxel) & (c == voxel) & (d == voxel)))
        steps[x] = step(step(a) + step(b) + step(c) + step(d) - 4 * step(voxel))


@kernel
def _sum_squares(steps: Voxels, first: int, length: int, square: Voxels) -> Any:
    """Sum of the squares of a part of a line, of the dtype of ``square``."""
    begin, wide = np.uint64(first), square.dtype.type
    total = wide(0)
    for x in range(np.uint64(length)):
        step = wide(steps[begin + x])
        total = wide(total + step * step)
    return total


@kernel
def _sum_laplacian(flat: Voxels, tile: _Place) -> int:
    """Sum of the Laplacian of the inner voxels: everything but the steps at the border cancels."""
    begin, stride, height, width = tile
    last, total = begin + (height - 1) * stride, np.int64(0)
    for x in range(1, width - 1):
        total += np.int64(flat[begin + x]) - np.int64(flat[begin + stride + x])
        total += np.int64(flat[last + x]) - np.int64(flat[last - stride + x])
    for y in range(1, height - 1):
        row = begin + y * stride
        total += np.int64(flat[row]) - np.int64(flat[row + 1])
        total += np.int64(flat[row + width - 1]) - np.int64(flat[row + width - 2])
    return int(total)


@kernel
def _limits(flat: Voxels, tile: _Place) -> tuple[Any, Any]:
    """Levels an interquartile range below and above the quartiles of a grid of voxels."""
    begin, stride, height, width = tile
    down, right = max(1, height // _SAMPLES), max(1, width // _SAMPLES)
    sample = np.empty(-(-height // down) * -(-width // right), flat.dtype)
    count = 0
    for y in range(0, height, down):
        for x in range(0, width, right):
            sample[count] = flat[begin + y * stride + x]
            count += 1
    lower, upper = _ranked(sample, count // 4), _ranked(sample, count - 1 - count // 4)
    highest = 256**flat.itemsize - 1
    low, high = max(0, 2 * lower - upper), min(highest, 2 * upper - lower)
    return flat.dtype.type(low), flat.dtype.type(high)


@kernel
def _ranked(sample: Voxels, rank: int) -> int:
    """Value with so many before it, were the sample sorted: half of the levels are ruled out at a time."""
    low, high = 0, 256**sample.itemsize - 1
    while low < high:
        middle = (low + high) // 2
        level, count = sample.dtype.type(middle), np.int32(0)
        for index in range(sample.size):
            count = np.int32(count + (sample[index] <= level))
        if count > rank:
            high = middle
        else:
            low = middle + 1
    return low


@kernel
def _fill_profile(sums: Counts, across: int, profile: Floats) -> None:
    """Write the means of rows (or columns), less their mean, windowed, so that a transform gives amplitudes."""
    length = sums.size
    mean, weight = 0.0, 0.0
    for at in range(length):
        mean += sums[at] / (across * length)
        weight += _weight(at, length)
    for at in range(length):
        profile[at] = (sums[at] / across - mean) * _weight(at, length) * (2.0 / weight)


@kernel
def _weight(at: int, length: int) -> float:
    """Weight of one value of a profile."""
    place = (2 * at + 1 - length) / length
    return (1.0 - place * place) ** 2


@kernel
def _measure_tables(tables: NDArray[np.uint32], measures: Floats) -> None:
    for index in range(measures.shape[0]):
        counts = level_counts(tables[index])
        first, last = 0, counts.size
        while first < last and counts[first] == 0:
            first += 1
        while first < last and counts[last - 1] == 0:
            last -= 1
        if first < last:
            measures[index, Measure.CONTRAST] = _contrast(counts[first:last])
            measures[index, Measure.SEPARABILITY] = _separability(counts[first:last])


@kernel
def _contrast(counts: Counts) -> int:
    """Steps from the lowest level with a hundredth of the voxels at or below it to the highest with as many above."""
    total = counts.sum()
    low, below = 0, counts[0]
    while 100 * below < total:
        low += 1
        below += counts[low]
    high, above = counts.size - 1, counts[-1]
    while 100 * above < total:
        high -= 1
        above += counts[high]
    return high - low


@kernel
def _separability(counts: Counts) -> float:
    """Share of the variance that lies between the two classes of Otsu's level."""
    level = otsu_level(counts)
    size = moment = square = size_below = moment_below = 0.0
    for value in range(counts.size):
        count = counts[value]
        if count:  # most of 16 bit are not there
            step = value - level  # from the mean it is not far: so squares are small, and little is lost
            size += count
            moment += count * step
            square += count * step * step
            if value <= level:
                size_below += count
                moment_below += count * step
    if size_below == size:
        return 0.0
    difference = size * moment_below - size_below * moment
    variance = size * square - moment * moment
    return min(1.0, difference * difference / (size_below * (size - size_below) * variance))


@kernel
def _measure_profiles(spectra: NDArray[np.complex128], cut: _Cut, measures: Floats) -> None:
    _, shape, side = cut
    power = np.empty(spectra.shape[2])
    for index in range(measures.shape[0]):
        top, bottom, left, right = tile_bounds(index, shape, side)
        lengths = bottom - top, right - left
        if min(lengths) < CHATTER_SIDE:
            continue
        line = 0.0
        for axis in range(2):
            for at in range(power.size):
                value = spectra[index, axis, at]
                power[at] = value.real * value.real + value.imag * value.imag
            line = max(line, _strongest_line(power, 2 * (power.size - 1) / lengths[axis]))
        mean = measures[index, Measure.MEAN]
        measures[index, Measure.CHATTER] = np.sqrt(line) / mean if mean else 0.0


@kernel
def _strongest_line(power: Floats, spread: float) -> float:
    """Power of the strongest line of a spectrum beyond what is around it, for so many bins to a repeat in the tile."""
    near, far, last = int(np.ceil(_NEAR * spread)), int(_FAR * spread), power.size - 1
    strongest = 0.0
    for at in range(int(np.ceil(_REPEATS * spread)), int(2 * _HIGHEST * last) + 1):
        if power[at] > strongest:
            left = _mean(power, max(1, at - far), at - near)
            right = _mean(power, at + near, min(last, at + far))
            strongest = max(strongest, power[at] - _EXCESS * np.sqrt(left * right))
    return strongest


@kernel
def _mean(values: Floats, first: int, last: int) -> float:
    total = 0.0
    for at in range(first, last + 1):
        total += values[at]
    return total / (last + 1 - first)
