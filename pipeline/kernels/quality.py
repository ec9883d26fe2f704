"""Quality of tiles: a few numbers for each, by which one is told from the others; see `kernels.flags`.

They are made while a tile is segmented, so they must cost little: one look at its raw voxels, the joint table that
there is anyway, and a Fourier transform of its row and column means. Measured on one core of an EPYC (Zen 4), per
512x512 tile: 8 bit 0.06 ms, 16 bit 0.2 ms.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShapeMismatchError
from pipeline.kernels import chatter
from pipeline.kernels.chatter import fill_profile, strongest_line
from pipeline.kernels.compiled import kernel
from pipeline.kernels.histogram import count_tiles, level_counts, otsu_level, tile_bounds
from pipeline.scratch import scratch

Voxels = NDArray[Any]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_Cut = tuple[tuple[int, int], tuple[int, int], int]  # corner and shape of a part of a plane, and side of its tiles
_Place = tuple[int, int, int, int]  # a tile in a flat plane: its first voxel, voxels from row to row, height, width
_Band = tuple[int, int, int]  # up to four rows in a flat plane: first voxel, voxels from row to row, rows
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


_SAMPLES = 32  # along each axis of a tile, at least: they find its quartiles within 4 % of its standard deviation
_ROWS = 252  # which 8 bits count, and of 8 bit, whose sum 16 bits hold
_SUMMED = 256  # voxels of 8 bit, whose sum 16 bits hold
_STRIP = 512  # columns; squared Laplacians of four rows, of 8 bit, sum up to less than 2**31


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
        is under 3 voxels a side, CHATTER under `kernels.chatter.SIDE`, and everything in a tile of nothing.

    Raises
    ------
    ShapeMismatchError
        The plane is of another kind, or the part is not in it.

    Notes
    -----
    For CHATTER, see `kernels.chatter`, voxels further than the interquartile range beyond the quartiles are brought in
    to there, or vessels would make the profile. The quartiles are those of a grid of voxels.

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
# Their dtypes are the narrowest for sums of `_SUMMED` or `_ROWS` voxels, for a Laplacian, and for the squares of four
# rows of a strip: the wider they are, the fewer fit into a vector.


@kernel
def _measure_voxels(plane: Voxels, cut: _Cut, lanes: _Lanes, measures: Floats, profiles: Floats) -> None:
    corner, shape, side = cut
    stride = plane.shape[1]
    flat, sums = plane.reshape(-1), np.empty((2, side + 4), np.int64)
    for index in range(measures.shape[0]):
        top, bottom, left, right = tile_bounds(index, shape, side)
        height, width = bottom - top, right - left
        tile = (corner[0] + top) * stride + corner[1] + left, stride, height, width
        measures[index, :] = np.nan
        profiles[index] = 0
        if height and width:
            total, saturated, equal, squares = _sum_tile(flat, tile, lanes, sums[0], sums[1])
            measures[index, Measure.MEAN.value] = total / (height * width)
            measures[index, Measure.SATURATION.value] = saturated / (height * width)
            if min(height, width) >= 3:
                inner = (height - 2) * (width - 2)
                mean = _sum_laplacian(flat, tile) / inner
                measures[index, Measure.FOCUS.value] = squares / inner - mean * mean
                measures[index, Measure.EMPTINESS.value] = equal / inner
            fill_profile(sums[0, :height], width, profiles[index, 0])
            fill_profile(sums[1, :width], height, profiles[index, 1])


@kernel
def _sum_tile(flat: Voxels, tile: _Place, lanes: _Lanes, rows: Counts, columns: Counts) -> tuple[int, int, int, int]:
    """Sum up voxels, saturated ones, inner ones in a flat place, and squared Laplacians; write the sums of lines.

    Loops are along four rows at a time, whose voxels are so looked up once for several of them. A band that is not
    whole gets its last row instead of those below it, which count nothing, but in spare entries of ``rows``.
    """
    begin, stride, height, width = tile
    limits = _limits(flat, tile, lanes[0].dtype.type)
    lines, steps = np.empty(2 * _STRIP, lanes[0].dtype), np.empty(4 * _STRIP, lanes[1].dtype)
    full, level = np.empty(_STRIP, np.uint8), np.empty(_STRIP, np.uint8)
    total = saturated = equal = squares = 0
    rows[:] = 0
    for left in range(0, width, _STRIP):
        size = min(_STRIP, width - left)
        edges = left == 0, left + size == width
        columns[left : left + size], steps[:] = 0, 0
        for first in range(0, height, _ROWS):
            lines[:], full[:], level[:] = 0, 0, 0
            for top in range(first, min(first + _ROWS, height), 4):
                at, inner = begin + top * stride + left, min(4, height - 2 - top)
                band = at, stride, min(4, height - top)
                _count_saturated(flat, band, size, full)
                for x in range(0, size, _SUMMED):
                    _add_rows(flat, band, limits, (x, min(x + _SUMMED, size)), lines, rows[top : top + 4])
                if inner > 0 and width > 2:
                    _fill_steps(flat, (at + stride, stride, inner), size, steps, level)
                    squares += _sum_squares(steps, (inner, size), edges, lanes[2])
            for x in range(size):
                total += int(lines[x])
                columns[left + x] += lines[_STRIP + x]
                saturated += int(full[x])
            for x in range(edges[0], size - edges[1]):
                equal += int(level[x])
    return total, saturated, equal, squares


@kernel
def _places(band: _Band) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Where six rows begin: the one above a band, its four, and the one below; none is beyond that one."""
    at, stride, there = band
    second, third, fourth = at + min(1, there) * stride, at + min(2, there) * stride, at + min(3, there) * stride
    above, below = np.uint64(at - stride), np.uint64(at + there * stride)
    return above, np.uint64(at), np.uint64(second), np.uint64(third), np.uint64(fourth), below


@kernel
def _count_saturated(flat: Voxels, band: _Band, size: int, full: NDArray[np.uint8]) -> None:
    """Count, in each column, the voxels of a band that are saturated."""
    there, grey = band[2], flat.dtype.type
    _, p, q, r, s, _ = _places((band[0], band[1], there - 1))
    keep_b, keep_c, keep_d = np.uint8(there > 1), np.uint8(there > 2), np.uint8(there > 3)
    one = grey(1)
    for x in range(np.uint64(size)):  # one more than the highest level is the lowest
        a, b = grey(flat[p + x] + one) <= one, (grey(flat[q + x] + one) <= one) & keep_b
        c, d = (grey(flat[r + x] + one) <= one) & keep_c, (grey(flat[s + x] + one) <= one) & keep_d
        full[x] = np.uint8(full[x] + np.uint8(np.uint8(a + b) + np.uint8(c + d)))


@kernel
def _add_rows(
    flat: Voxels, band: _Band, limits: tuple[Any, Any], part: tuple[int, int], lines: Voxels, rows: Counts
) -> None:
    """Add a part of a band to the sums of columns; and as it is within limits, to those of columns and rows."""
    there, (low, high), wide = band[2], limits, lines.dtype.type
    _, p, q, r, s, _ = _places((band[0], band[1], there - 1))
    keep_b, keep_c, keep_d = wide(there > 1), wide(there > 2), wide(there > 3)
    sum_a = sum_b = sum_c = sum_d = wide(0)
    near = np.uint64(_STRIP)
    for x in range(np.uint64(part[0]), np.uint64(part[1])):
        a, b, c, d = wide(flat[p + x]), wide(flat[q + x]), wide(flat[r + x]), wide(flat[s + x])
        some, more = wide(a + wide(b * keep_b)), wide(wide(c * keep_c) + wide(d * keep_d))
        lines[x] = wide(lines[x] + wide(some + more))
        a, b, c, d = min(max(a, low), high), min(max(b, low), high), min(max(c, low), high), min(max(d, low), high)
        some, more = wide(a + wide(b * keep_b)), wide(wide(c * keep_c) + wide(d * keep_d))
        lines[near + x] = wide(lines[near + x] + wide(some + more))
        sum_a, sum_b, sum_c, sum_d = wide(sum_a + a), wide(sum_b + b), wide(sum_c + c), wide(sum_d + d)
    rows[0] += sum_a
    rows[1] += sum_b
    rows[2] += sum_c
    rows[3] += sum_d


@kernel
def _fill_steps(flat: Voxels, band: _Band, size: int, steps: Voxels, level: NDArray[np.uint8]) -> None:
    """Write the Laplacian of a band, and count, in each column, the voxels that equal their four neighbours."""
    there, one = band[2], np.uint64(1)
    p, q, r, s, t, u = _places(band)
    keep_c, keep_d, keep_e = np.uint8(there > 1), np.uint8(there > 2), np.uint8(there > 3)
    to_c, to_d, to_e = np.uint64(_STRIP), np.uint64(2 * _STRIP), np.uint64(3 * _STRIP)
    for x in range(np.uint64(size)):
        a, b, c, d, e, f = flat[p + x], flat[q + x], flat[r + x], flat[s + x], flat[t + x], flat[u + x]
        b_left, b_right, c_left, c_right = flat[q - one + x], flat[q + one + x], flat[r - one + x], flat[r + one + x]
        d_left, d_right, e_left, e_right = flat[s - one + x], flat[s + one + x], flat[t - one + x], flat[t + one + x]
        some = np.uint8(_is_level(b, a, c, b_left, b_right) + (_is_level(c, b, d, c_left, c_right) & keep_c))
        more = np.uint8((_is_level(d, c, e, d_left, d_right) & keep_d) + (_is_level(e, d, f, e_left, e_right) & keep_e))
        level[x] = np.uint8(level[x] + np.uint8(some + more))
        steps[x] = _laplacian(steps, b, a, c, b_left, b_right)
        steps[to_c + x] = _laplacian(steps, c, b, d, c_left, c_right)
        steps[to_d + x] = _laplacian(steps, d, c, e, d_left, d_right)
        steps[to_e + x] = _laplacian(steps, e, d, f, e_left, e_right)


@kernel
def _is_level(voxel: Any, above: Any, below: Any, left: Any, right: Any) -> Any:
    return np.uint8((above == voxel) & (below == voxel) & (left == voxel) & (right == voxel))


@kernel
def _laplacian(steps: Voxels, voxel: Any, above: Any, below: Any, left: Any, right: Any) -> Any:
    """Of the dtype of ``steps``, at every step of it: else all of it is done in 64 bits."""
    step = steps.dtype.type
    around = step(step(step(above) + step(below)) + step(step(left) + step(right)))
    return step(around - step(step(4) * step(voxel)))


@kernel
def _sum_squares(steps: Voxels, shape: tuple[int, int], edges: tuple[bool, bool], square: Voxels) -> Any:
    """Sum of the squares of a band, but for the columns at the edges of its tile, of the dtype of ``square``."""
    there, size = shape
    for row in range(0, there * _STRIP, _STRIP):
        if edges[0]:
            steps[row] = 0
        if edges[1]:
            steps[row + size - 1] = 0
    wide, total = square.dtype.type, square.dtype.type(0)
    for x in range(np.uint64(there * _STRIP)):
        step = wide(steps[x])
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
def _limits(flat: Voxels, tile: _Place, wide: Any) -> tuple[Any, Any]:
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
    return wide(low), wide(high)


@kernel
def _ranked(sample: Voxels, rank: int) -> int:
    """Value with so many before it, were the sample sorted: half of the levels are ruled out at a time."""
    low, high = 0, 256**sample.itemsize - 1
    while low < high:
        middle = (low + high) // 2
        level, count = sample.dtype.type(middle), np.uint16(0)
        for index in range(sample.size):
            count = np.uint16(count + (sample[index] <= level))
        if count > rank:
            high = middle
        else:
            low = middle + 1
    return low


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
            measures[index, Measure.CONTRAST.value] = _contrast(counts[first:last])
            measures[index, Measure.SEPARABILITY.value] = _separability(counts[first:last])


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
        if min(lengths) < chatter.SIDE:
            continue
        line = 0.0
        for axis in range(2):
            for at in range(power.size):
                value = spectra[index, axis, at]
                power[at] = value.real * value.real + value.imag * value.imag
            line = max(line, strongest_line(power, 2 * (power.size - 1) / lengths[axis]))
        mean = measures[index, Measure.MEAN.value]
        measures[index, Measure.CHATTER.value] = np.sqrt(line) / mean if mean else 0.0
