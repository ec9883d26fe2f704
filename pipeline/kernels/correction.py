"""Correction of uneven light in a slice, and of levels that differ from slice to slice: flat field, tables of levels.

A flat field is of a whole slice, for what it does to a voxel depends on all others. It holds some rows and cells, less
than 1 MB, never a plane of floats. Measured on one core of an EPYC (Zen 4), on a slice of 17480x8026: flat field 0.6 s,
of 16 bit 0.9; a table of levels 0.05 and 0.08.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.errors import ConfigError, ShapeMismatchError
from pipeline.kernels.compiled import kernel

CELL = 64
"""Side of the squares that `flat_field` estimates light in, in voxels: much wider than a vessel."""

Voxels = NDArray[Any]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def flat_field(plane: NDArray[Any], sigma: float, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Divide a slice by its own smooth field of light.

    Parameters
    ----------
    plane
        ``(h, w)`` uint8 or uint16 grey levels as they were recorded, bright where there is light; a whole slice.
    sigma
        Standard deviation of the Gaussian that smooths the field, in voxels; below `CELL` it smooths little.
    out
        Output, ``(h, w)`` of the dtype of the plane, may be the plane itself; a new array if None.

    Returns
    -------
    ndarray
        The output: voxel times mean field by field, rounded half to even, at most the top of the dtype.

    Raises
    ------
    ConfigError
        The sigma is not positive.
    ShapeMismatchError
        The output has not the shape and dtype of the plane.

    Notes
    -----
    The light of a cell of `CELL` by `CELL` voxels is the mean of the middle half of its voxels: vessels fill far less
    than a quarter of a cell, so that they fall away, as they do in a median; but a median is a whole level, and the
    step from 40 to 41 would show. Voxels of 0 (the padding of a mosaic, or the blackest ink) say nothing of the light
    and are left out; a cell weighs as much as it has others. Between the middles of cells the field is linear, beyond
    the outermost constant.
    """
    if not sigma > 0:
        raise ConfigError(f"sigma: got {sigma} voxels, expected more than 0")
    target = _target(plane, out)
    light, weights = np.zeros((2, *(-(-length // CELL) for length in plane.shape)))
    _measure_light(plane, light, weights)
    field, mean = _smooth_light(light, weights, sigma / CELL)
    _divide(plane, field, mean, _between_cells(plane.shape[0]), _between_cells(plane.shape[1]), target)
    return target


def histogram_map(counts: NDArray[Any], reference_counts: NDArray[Any]) -> NDArray[Any]:
    """Give each grey level the level that has the same quantile in another histogram.

    Parameters
    ----------
    counts, reference_counts
        ``(levels,)`` of any integer dtype, 256 or 65536 levels: voxels at each grey level of a slice, and of what it
        shall look like.

    Returns
    -------
    ndarray
        ``(levels,)`` uint8 or uint16, for `apply_table`: as ``skimage.exposure.match_histograms``, rounded half to
        even. Of a slice without voxels, every level itself.

    Raises
    ------
    ConfigError
        The reference has no voxels.
    ShapeMismatchError
        The histograms have not 256 or 65536 levels each.

    Examples
    --------
    >>> counts, reference = np.zeros((2, 256), np.int64)
    >>> counts[[10, 20]] = reference[[40, 50]] = 3, 1
    >>> histogram_map(counts, reference)[[10, 20]]
    array([40, 50], dtype=uint8)
    """
    if counts.shape != reference_counts.shape or counts.shape not in ((256,), (65536,)):
        raise ShapeMismatchError(
            f"histogram: got {counts.shape}, the reference {reference_counts.shape}; expected 256 or 65536 levels each"
        )
    dtype = np.uint8 if counts.size == 256 else np.uint16
    total, reference_total = int(counts.sum()), int(reference_counts.sum())
    if not reference_total:
        raise ConfigError("reference: its histogram has no voxels; take a slice that is there")
    if not total:
        return np.arange(counts.size, dtype=dtype)
    levels = np.flatnonzero(reference_counts)
    quantiles = np.cumsum(reference_counts[levels], dtype=np.int64) / reference_total
    return np.rint(np.interp(np.cumsum(counts, dtype=np.int64) / total, quantiles, levels)).astype(dtype)


def gamma_table(dtype: Any, gamma: float) -> NDArray[Any]:
    """Raise each grey level, as a part of the highest, to a power.

    Parameters
    ----------
    dtype
        uint8 or uint16.
    gamma
        The power, above 0: below 1 brightens.

    Returns
    -------
    ndarray
        ``(levels,)`` of the dtype, for `apply_table`: as ``skimage.exposure.adjust_gamma``, rounded half to even also
        for uint16, where that one rounds down.

    Raises
    ------
    ConfigError
        The gamma is not positive.
    """
    if not gamma > 0:
        raise ConfigError(f"gamma: got {gamma}, expected more than 0")
    top = np.iinfo(dtype).max
    return np.rint(top * np.linspace(0, 1, top + 1) ** gamma).astype(dtype)


def apply_table(plane: NDArray[Any], table: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Look every voxel up in a table.

    Parameters
    ----------
    plane
        ``(h, w)`` uint8 or uint16.
    table
        ``(levels,)`` of the dtype of the plane: 256 or 65536 levels.
    out
        Output, ``(h, w)`` of the dtype of the plane, may be the plane itself; a new array if None.

    Returns
    -------
    ndarray
        The output.

    Raises
    ------
    ShapeMismatchError
        The table has not the levels of the plane, or another dtype; or the output is not as the plane.
    """
    if table.dtype != plane.dtype or table.size != 1 << 8 * plane.itemsize:
        raise ShapeMismatchError(f"table: got {table.dtype} {table.shape}, the plane is {plane.dtype}")
    target = _target(plane, out)
    _look_up(plane, table, target)
    return target


def _target(plane: Voxels, out: Voxels | None) -> Voxels:
    """Array to write a corrected plane to."""
    if out is None:
        return np.empty_like(plane)
    if out.shape != plane.shape or out.dtype != plane.dtype:
        raise ShapeMismatchError(f"out: got {out.dtype} {out.shape}, the plane is {plane.dtype} {plane.shape}")
    return out


@kernel
def _measure_light(plane: Voxels, light: Floats, weights: Floats) -> None:
    """Mean of the middle half of the voxels above 0 of each cell, and how many there are above 0."""
    shift = np.uint64(8 * (plane.itemsize - 1))  # blocks of 1 or 256 levels, for 65536 counters leave the cache
    counts, sums = np.empty((2, 256), np.int64)
    for row in range(light.shape[0]):
        for column in range(light.shape[1]):
            cell = plane[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            counts[:], sums[:] = 0, 0
            black = 0
            for y in range(cell.shape[0]):
                for x in range(cell.shape[1]):
                    block = np.uint64(cell[y, x]) >> shift
                    counts[block] += 1
                    sums[block] += np.int64(cell[y, x])
                    black += cell[y, x] == 0
            counts[0] -= black
            number = cell.size - black
            weights[row, column] = number
            if number:
                first, last = number // 4, number - number // 4
                middle = _sum_lowest(cell, counts, sums, last) - _sum_lowest(cell, counts, sums, first)
                light[row, column] = float(middle) / (last - first)


@kernel
def _sum_lowest(cell: Voxels, counts: Indices, sums: Indices, rank: int) -> int:
    """Sum of the lowest so many voxels above 0, of numbers and sums by block of levels."""
    block, left, total = 0, rank, 0
    while left and counts[block] <= left:
        total += sums[block]
        left -= counts[block]
        block += 1
    if left == 0 or cell.itemsize == 1:
        return total + left * block
    floor = block << 8
    within = np.zeros(256, np.int64)
    for y in range(cell.shape[0]):
        for x in range(cell.shape[1]):
            if np.int64(cell[y, x]) >> 8 == block and cell[y, x] > 0:
                within[np.int64(cell[y, x]) - floor] += 1
    for index in range(256):
        taken = min(left, within[index])
        total += taken * (floor + index)
        left -= taken
    return total


def _smooth_light(light: Floats, weights: Floats, sigma: float) -> tuple[Floats, float]:
    """Field of light cell by cell, and its mean over the voxels that it was measured on; sigma in cells."""
    if not weights.any():
        return np.ones_like(light), 1.0
    weight = ndimage.gaussian_filter(weights, sigma, mode="reflect")
    field = ndimage.gaussian_filter(light * weights, sigma, mode="reflect")
    measured = weight > 0
    np.divide(field, weight, out=field, where=measured)
    mean = float((field * weights)[measured].sum() / weights.sum())
    field[~measured] = mean
    return field, mean


def _between_cells(length: int) -> tuple[Indices, Floats]:
    """For each voxel along an axis: the cell whose middle comes before it, and how far it is on the way to the next."""
    position = (np.arange(length) + 0.5) / CELL - 0.5
    last = -(-length // CELL) - 1
    before = np.clip(np.floor(position), 0, max(last - 1, 0)).astype(np.int64)
    return before, np.clip(position - before, 0.0, min(last, 1))


@kernel
def _divide(
    plane: Voxels,
    field: Floats,
    mean: float,
    rows: tuple[Indices, Floats],
    columns: tuple[Indices, Floats],
    out: Voxels,
) -> None:
    """Divide each voxel by the field at its place, which is linear between the middles of cells."""
    top = float((1 << 8 * plane.itemsize) - 1)
    line = np.empty(plane.shape[1])
    for y in range(plane.shape[0]):
        cell, part = rows[0][y], rows[1][y]
        upper, lower = field[cell], field[min(cell + 1, field.shape[0] - 1)]
        between = upper + (lower - upper) * part
        for x in range(line.size):
            left = between[columns[0][x]]
            line[x] = left + (between[min(columns[0][x] + 1, between.size - 1)] - left) * columns[1][x]
        for x in range(line.size):
            out[y, x] = out.dtype.type(min(np.rint(float(plane[y, x]) * mean / line[x]), top))


@kernel
def _look_up(plane: Voxels, table: Voxels, out: Voxels) -> None:
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            out[y, x] = table[plane[y, x]]
