"""Quality control: a few numbers for each tile, and the tiles and slices whose numbers are unlike the others'.

The numbers are made while a tile is segmented, so they must cost little: one look at its raw voxels, the joint table
that there is anyway, and a Fourier transform of its row and column means. Measured on one core of an EPYC (Zen 4), per
512x512 tile: 8 bit 0.08 ms, 16 bit 0.2 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from pipeline.compiled import kernel
from pipeline.errors import ShapeMismatchError
from pipeline.histogram import count_tiles, level_counts, otsu_level, tile_bounds
from pipeline.scratch import scratch

Voxels = NDArray[Any]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_Tiles = tuple[tuple[int, int], int, int]  # shape of a plane, side of its tiles, and the first that is asked for
_Lanes = tuple[Voxels, Voxels, Voxels]  # of nothing: their dtypes are what counts
_Place = tuple[int, int, int, int]  # a tile in a flat plane: its first voxel, voxels from row to row, height, width


class Measure(IntEnum):
    """Columns of a table of measures; see `measure_tiles`."""

    FOCUS = 0
    SATURATION = 1
    MEAN = 2
    CONTRAST = 3
    SEPARABILITY = 4
    EMPTINESS = 5
    CHATTER = 6


class Flag(IntFlag):
    """In what a tile or slice is unlike the others; see `outliers`."""

    BLURRED = 1
    SATURATED = 2
    DARK = 4
    BRIGHT = 8
    LOW_CONTRAST = 16
    EMPTY = 32
    CHATTER = 64


CHATTER_SIDE = 32
"""Voxels that a tile must have along both axes for its bands to be told from anything else."""

MOSTLY_EMPTY = 0.5
"""A tile of more emptiness sets no norm for others."""

LEAST_TILES = 9
"""Tiles of a slice that set a norm: with fewer, none of them is flagged."""

LEAST_SLICES = 5
"""Slices that set a norm: with fewer, none of them is flagged."""

DEVIATIONS = 4.0
"""Standard deviations, estimated robustly, that a value may lie from the median."""

_NONE = Flag(0)

_SIGMA = 1.4826  # of median absolute deviations in a standard deviation, where values are distributed normally

_SAMPLES = 32  # along each axis of a tile, at least: they find its quartiles within 4 % of its standard deviation
_ROWS = 256  # of 8 bit, whose sum 16 bits hold
_SEGMENT = 2048  # voxels of a row of 8 bit, whose squared Laplacians sum up to less than 2**31

# A band of chatter is a line in a spectrum. It repeats at least 8 times in a tile, each time in 2.5 voxels or more, and
# stands out from what is around it: further than the line is wide (3 bins to each side), but near (10 bins). What is
# around takes off four times its power, as chance alone makes a few of the 200 bins that much stronger.
_REPEATS, _HIGHEST, _NEAR, _FAR, _EXCESS = 8, 0.4, 3, 10, 4.0


def measure_tiles(plane: Voxels, side: int, tables: NDArray[np.uint32], first: int = 0) -> NDArray[np.float32]:
    """Measure some of the tiles that a plane is cut into.

    Parameters
    ----------
    plane
        ``(h, w)`` uint8 or uint16 raw grey levels, not inverted, from the corner of a tile on. A part of a larger plane
        is read where it is; copied, unless the voxels of a row follow each other.
    side
        Of a tile, in voxels; those at the far edges may be smaller.
    tables
        ``(tiles, 3, levels)`` uint32: the joint tables of these tiles, of filtered levels, inverted or not.
    first
        Number of the first tile, in C order.

    Returns
    -------
    ndarray
        ``(tiles, len(Measure))`` float32, the same bits whatever else is in the plane:

        - ``FOCUS``: variance of the Laplacian, with four neighbours [1]_, of the inner voxels; in grey levels squared.
        - ``SATURATION``: share of the voxels at the lowest or highest level that the dtype has.
        - ``MEAN``: grey level.
        - ``CONTRAST``: of the table, from the lowest level with a hundredth of the voxels at or below it, to the
          highest with as many at or above it; in grey levels.
        - ``SEPARABILITY``: of the table, the variance between the classes of Otsu's level, over the variance; 0 to 1,
          and 0 where all voxels have one level.
        - ``EMPTINESS``: share of the inner voxels that equal all their four neighbours. Noise leaves few of them, and
          whatever was not imaged has nothing else: a mosaic's padding, of any level, or a lake of saturated voxels.
        - ``CHATTER``: amplitude of the strongest periodic band of rows or columns, over the mean; see the notes.

        Inner voxels are those whose neighbours lie in the tile. FOCUS and EMPTINESS are NaN in a tile without any, that
        is under 3 voxels a side, CHATTER under `CHATTER_SIDE`, and everything in a tile of nothing.

    Raises
    ------
    ShapeMismatchError
        There are fewer tiles, or the plane or the tables are of another kind.

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
    if tables.ndim != 3 or tables.shape[1] != 3:
        raise ShapeMismatchError(f"tables: got shape {tables.shape}, expected (tiles, 3, levels)")
    if not 0 <= first <= first + len(tables) <= count_tiles(plane.shape, side):
        raise ShapeMismatchError(f"tables: got {len(tables)} from tile {first}, the plane {plane.shape} has fewer")
    tiles, size = len(tables), 1 << max(0, side - 1).bit_length()
    measures = scratch.array("measures", (tiles, len(Measure)), np.float64)
    profiles = scratch.array("profiles", (tiles, 2, size), np.float64)
    flat, stride = _flat(plane)
    _measure_voxels(flat, stride, (plane.shape, side, first), _LANES[plane.itemsize], measures, profiles)
    _measure_tables(tables, measures)
    # A transform is made for each profile by itself, so its bits do not depend on how many there are.
    _measure_profiles(np.fft.rfft(profiles), (plane.shape, side, first), measures)
    return measures.astype(np.float32)


_LANES: dict[int, _Lanes] = {
    1: (np.empty(0, np.uint16), np.empty(0, np.int16), np.empty(0, np.int32)),
    2: (np.empty(0, np.uint32), np.empty(0, np.int32), np.empty(0, np.int64)),
}
# Their dtypes are the narrowest for the sum of `_ROWS` voxels, for a Laplacian, and for the sum of the squares of a
# segment's: the wider they are, the fewer fit into a vector.


def _flat(plane: Voxels) -> tuple[Voxels, int]:
    """All voxels from a plane's first to its last, read-only, and how many there are from row to row."""
    height, width = plane.shape
    row, voxel = plane.strides
    if not plane.flags.c_contiguous and (voxel != plane.itemsize or row % voxel or row < width * voxel):
        plane = np.ascontiguousarray(plane)
    stride = width if plane.flags.c_contiguous else plane.strides[0] // plane.itemsize
    length = (height - 1) * stride + width if plane.size else 0
    return as_strided(plane, (length,), (plane.itemsize,), writeable=False), stride


@kernel
def _measure_voxels(
    flat: Voxels, stride: int, tiles: _Tiles, lanes: _Lanes, measures: Floats, profiles: Floats
) -> None:
    shape, side, first = tiles
    line, sums = np.empty(side, lanes[0].dtype), np.empty((2, side), np.int64)
    for index in range(measures.shape[0]):
        top, bottom, left, right = tile_bounds(first + index, shape, side)
        height, width = bottom - top, right - left
        tile = top * stride + left, stride, height, width
        measures[index, :] = np.nan
        profiles[index] = 0
        if height and width:
            rows, columns = sums[0, :height], sums[1, :width]
            total, saturated, equal, squares = _sum_tile(flat, tile, lanes, line, rows, columns)
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
def _sum_tile(
    flat: Voxels, tile: _Place, lanes: _Lanes, line: Voxels, rows: Counts, columns: Counts
) -> tuple[int, int, int, int]:
    """Sum up voxels, saturated ones, inner ones in a flat place, and squared Laplacians; write the sums of lines."""
    begin, stride, height, width = tile
    limits = _limits(flat, tile)
    total = saturated = equal = squares = 0
    columns[:] = 0
    for y in range(height):
        rows[y] = 0
        inner = 0 < y < height - 1 and width > 2
        for x in range(0, width, _SEGMENT):
            at, count = begin + y * stride + x, min(_SEGMENT, width - x)
            part = line[x : x + count]
            if y % _ROWS == 0:
                part[:] = 0
            some = _sum_segment(flat, at, limits, part)
            total, rows[y], saturated = total + some[0], rows[y] + some[1], saturated + some[2]
            if inner:
                more = _sum_inner(flat, at, stride, lanes, count)
                equal, squares = equal + more[0], squares + more[1]
        if inner:  # what was summed up beyond the inner voxels, so that the loop above is of whole vectors
            for x in (0, width - 1):
                more = _sum_inner(flat, begin + y * stride + x, stride, lanes, 1)
                equal, squares = equal - more[0], squares - more[1]
        if y % _ROWS == _ROWS - 1 or y == height - 1:
            for x in range(width):
                columns[x] += line[x]
    return total, saturated, equal, squares


@kernel
def _sum_segment(flat: Voxels, at: int, limits: tuple[Any, Any], line: Voxels) -> tuple[Any, Any, Any]:
    """Sum up the voxels of a part of a row, the same with far ones brought in, and the saturated ones."""
    begin, (low, high), count = np.uint64(at), limits, line.dtype.type
    lowest, highest = flat.dtype.type(0), flat.dtype.type(~flat.dtype.type(0))
    total = inside = np.uint32(0)
    saturated = count(0)
    for x in range(np.uint64(line.size)):
        voxel = flat[begin + x]
        near = min(max(voxel, low), high)
        total = np.uint32(total + voxel)
        inside = np.uint32(inside + near)
        saturated = count(saturated + ((voxel == lowest) | (voxel == highest)))
        line[x] += near
    return total, inside, saturated


@kernel
def _sum_inner(flat: Voxels, at: int, stride: int, lanes: _Lanes, length: int) -> tuple[Any, Any]:
    """Count the voxels of a part of a row that equal their four neighbours, and sum up the squares of the Laplacian."""
    here, above, below = np.uint64(at), np.uint64(at - stride), np.uint64(at + stride)
    before, after = np.uint64(at - 1), np.uint64(at + 1)
    count, narrow, wide = lanes[0].dtype.type, lanes[1].dtype.type, lanes[2].dtype.type
    equal, squares = count(0), wide(0)
    for x in range(np.uint64(length)):
        voxel, a, b, c, d = flat[here + x], flat[above + x], flat[below + x], flat[before + x], flat[after + x]
        step = narrow(narrow(a) + narrow(b) + narrow(c) + narrow(d) - 4 * narrow(voxel))
        squares = wide(squares + wide(step) * wide(step))
        equal = count(equal + ((a == voxel) & (b == voxel) & (c == voxel) & (d == voxel)))
    return equal, squares


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
def _measure_profiles(spectra: NDArray[np.complex128], tiles: _Tiles, measures: Floats) -> None:
    shape, side, first = tiles
    power = np.empty(spectra.shape[2])
    for index in range(measures.shape[0]):
        top, bottom, left, right = tile_bounds(first + index, shape, side)
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


@dataclass(frozen=True, slots=True)
class _Rule:
    """How far a measure may be from its median.

    As a logarithm of ``1 + measure``, where only ratios mean something. ``tile`` and ``slice`` are the least distances
    that matter, however alike the others are: what vessels alone do to a tile of the phantom, or less to a slice.
    """

    measure: Measure
    ratio: bool
    tile: float
    slice: float
    below: Flag = _NONE
    above: Flag = _NONE


_RULES = (
    _Rule(Measure.FOCUS, True, math.log(2), math.log(1.25), below=Flag.BLURRED),
    _Rule(Measure.SATURATION, False, 0.05, 0.02, above=Flag.SATURATED),
    _Rule(Measure.MEAN, True, math.log(1.25), math.log(1.1), below=Flag.DARK, above=Flag.BRIGHT),
    _Rule(Measure.CONTRAST, True, math.log(3), math.log(1.5), below=Flag.LOW_CONTRAST),
    _Rule(Measure.EMPTINESS, False, 0.1, 0.05, above=Flag.EMPTY),
    _Rule(Measure.CHATTER, False, 0.0075, 0.005, above=Flag.CHATTER),
)


def outliers(values: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Flag the tiles of one slice that are unlike its others.

    Parameters
    ----------
    values
        ``(rows, columns, len(Measure))`` float32, see `measure_tiles`.
    present
        ``(rows, columns)`` bool: tiles that were measured.

    Returns
    -------
    ndarray
        ``(rows, columns)`` uint8, a sum of `Flag`: a measure is further from the median than `DEVIATIONS` standard
        deviations, these being 1.4826 times the median absolute deviation, and than a least distance (a ratio of 2 of
        focus, 1.25 of mean and 3 of contrast; 0.05 of saturation, 0.1 of emptiness, 0.0075 of chatter). Median and
        deviation are those of the tiles that are present and not `MOSTLY_EMPTY`. 0 where a tile is absent, everywhere
        where fewer than `LEAST_TILES` set the norm, and for a measure that is NaN.

    Raises
    ------
    ShapeMismatchError
        The shapes do not belong together.
    """
    _check_values(values, present, axes=2)
    rows = np.where(present[..., None], values, np.nan).reshape(-1, len(Measure))
    return _flag(rows, [rule.tile for rule in _RULES], LEAST_TILES).reshape(present.shape)


def flag_tiles(values: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Flag the tiles of each slice of a volume, ``(z, rows, columns, len(Measure))``, as `outliers` does."""
    _check_values(values, present, axes=3)
    flags = np.zeros(present.shape, np.uint8)
    for z in range(len(flags)):
        flags[z] = outliers(values[z], present[z])
    return flags


def slice_outliers(values: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Flag the slices of a volume that are unlike its others: an out-of-focus one is like itself everywhere.

    Parameters
    ----------
    values
        ``(z, rows, columns, len(Measure))`` float32, see `measure_tiles`.
    present
        ``(z, rows, columns)`` bool: tiles that were measured.

    Returns
    -------
    ndarray
        ``(z,)`` uint8, a sum of `Flag`, from `slice_medians` as those of a tile are from its measures, but with lower
        least distances (a ratio of 1.25 of focus, 1.1 of mean and 1.5 of contrast; 0.02 of saturation, 0.05 of
        emptiness, 0.005 of chatter), and `LEAST_SLICES`.

    Raises
    ------
    ShapeMismatchError
        The shapes do not belong together.
    """
    return _flag(slice_medians(values, present), [rule.slice for rule in _RULES], LEAST_SLICES)


def slice_medians(values: NDArray[np.float32], present: NDArray[np.bool_]) -> Floats:
    """Median of each measure over the tiles of each slice, of a table as `slice_outliers` takes it.

    Returns
    -------
    ndarray
        ``(z, len(Measure))`` float64, over the tiles that are present and not `MOSTLY_EMPTY`, or over all that are
        present where they all are; NaN where no tile is, or none has the measure.

    Raises
    ------
    ShapeMismatchError
        The shapes do not belong together.
    """
    _check_values(values, present, axes=3)
    medians = np.full((len(values), len(Measure)), np.nan)
    for z, (tiles, there) in enumerate(zip(values, present, strict=True)):
        rows = tiles[there].astype(np.float64)
        full = _is_full(rows)
        for measure in Measure:
            column = rows[full if full.any() else slice(None), measure]
            column = column[np.isfinite(column)]
            if column.size:
                medians[z, measure] = np.median(column)
    return medians


def _check_values(values: NDArray[np.float32], present: NDArray[np.bool_], axes: int) -> None:
    if present.ndim != axes or values.shape != (*present.shape, len(Measure)):
        raise ShapeMismatchError(
            f"values: got shape {values.shape}, and {present.shape} of what is present; expected {len(Measure)} "
            f"measures for each tile, on {axes} axes"
        )


def _is_full(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether most of a tile or slice shows something."""
    return ~(rows[:, Measure.EMPTINESS] > MOSTLY_EMPTY)


def _flag(rows: NDArray[Any], least: list[float], members: int) -> NDArray[np.uint8]:
    """Flag rows ``(n, len(Measure))`` at so many distances from the median, if enough of them set the norm."""
    flags = np.zeros(len(rows), np.uint8)
    full = _is_full(rows)
    for rule, distance in zip(_RULES, least, strict=True):
        column = rows[:, rule.measure].astype(np.float64)
        if rule.ratio:
            column = np.log1p(column)
        norm = column[full & np.isfinite(column)]
        if norm.size >= members:
            median = np.median(norm)
            reach = max(distance, DEVIATIONS * _SIGMA * float(np.median(abs(norm - median))))
            flags[column < median - reach] |= np.uint8(rule.below)
            flags[column > median + reach] |= np.uint8(rule.above)
    return flags
