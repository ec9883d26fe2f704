"""Contrast limited adaptive histogram equalisation (CLAHE) of a whole slice, as scikit-image computes it, row by row.

What CLAHE does to a voxel depends on the range of the whole slice. Only the tables of two rows of regions are held:
1 kB a column of regions, where ``skimage.exposure.equalize_adapthist`` takes 40 bytes a voxel. Measured on one core of
an EPYC (Zen 4), on a slice of 17480x8026: 1.7 s with regions of 64 voxels, 1.5 with 512; scikit-image 24 and 12.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, ShapeMismatchError
from pipeline.kernels.compiled import kernel

Voxels = NDArray[Any]
Indices = NDArray[np.int64]
Maps = NDArray[np.uint16]

_GREYS, _BINS = 2**14, 256  # as scikit-image has them
_BIN_WIDTH = 1 + _GREYS // _BINS


def clahe(plane: NDArray[Any], kernel_size: int, clip: float, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Equalise contrast region by region, no further than a limit (CLAHE [1]_).

    Parameters
    ----------
    plane
        ``(h, w)`` uint8 or uint16 grey levels; a whole slice.
    kernel_size
        Side of a region, in voxels, at least 1.
    clip
        Part of a region's voxels that one of 256 bins counts at most; the rest is spread over all bins. 0 for no limit.
    out
        Output, ``(h, w)`` of the dtype of the plane, not the plane itself; a new array if None.

    Returns
    -------
    ndarray
        The output: ``skimage.exposure.equalize_adapthist`` of the plane, times the top of the dtype, rounded half to
        even. A plane that would become one value, as one of one value does, stays as it is.

    Raises
    ------
    ConfigError
        The side is not positive, or the clip negative.
    ShapeMismatchError
        The output has not the shape and dtype of the plane.

    Notes
    -----
    The result fills the range of the dtype from its least to its greatest voxel; so it is made twice, first to learn
    these two.

    References
    ----------
    .. [1] K. Zuiderveld, "Contrast Limited Adaptive Histogram Equalization", Graphics Gems IV, Academic Press (1994),
       474-485.
    """
    if kernel_size < 1 or clip < 0:
        raise ConfigError(f"clahe: got regions of {kernel_size} voxels and a clip of {clip}, expected 1 and 0 or more")
    target = np.empty_like(plane) if out is None else out
    if target.shape != plane.shape or target.dtype != plane.dtype:
        raise ShapeMismatchError(f"out: got {target.dtype} {target.shape}, the plane is {plane.dtype} {plane.shape}")
    rows, columns = (_region_voxels(length, kernel_size) for length in plane.shape)
    limit = max(1, int(clip * kernel_size**2)) if clip > 0 else kernel_size**2
    bins = _bins_of(plane)
    low, high = _equalize(plane, bins, rows, columns, (kernel_size, limit), None)
    if low == high:
        target[...] = plane
        return target
    top = np.iinfo(plane.dtype).max
    levels = np.rint(np.clip((np.arange(_GREYS) - low) / (high - low), 0, 1) * top).astype(plane.dtype)
    _equalize(plane, bins, rows, columns, (kernel_size, limit), (levels, target))
    return target


def _bins_of(plane: Voxels) -> NDArray[np.uint8]:
    """Bin of each grey level, from the least to the greatest of the plane."""
    low, high = float(plane.min()), float(plane.max())
    levels = np.clip(np.arange(1 << 8 * plane.itemsize), low, high)
    greys = (levels - low) / ((high - low) or 1.0) * (_GREYS - 1)
    return (np.round(greys).astype(np.int64) // _BIN_WIDTH).astype(np.uint8)


def _region_voxels(length: int, side: int) -> Indices:
    """Positions of the voxels of all regions along an axis; those of the last are mirrored beyond the edge."""
    return np.pad(np.arange(length), (0, -length % side), mode="reflect")


@kernel
def _equalize(
    plane: Voxels,
    bins: NDArray[np.uint8],
    rows: Indices,
    columns: Indices,
    region: tuple[int, int],
    result: tuple[Voxels, Voxels] | None,
) -> tuple[int, int]:
    """Equalise row by row, give the range of the result, and write the levels of it, if there is where to.

    `region` holds side and limit, `result` a level of each grey and the output.
    """
    side, limit = region
    count = rows.size // side
    maps = np.empty((2, columns.size // side, _BINS), np.uint16)
    line = np.empty(plane.shape[1], np.uint16)
    low, high = _GREYS, 0
    for number in range(count + 1):  # strips between the middles of two rows of regions
        if number < count:
            _map_regions(plane, bins, rows[number * side : (number + 1) * side], columns, limit, maps[number % 2])
        upper, lower = maps[max(number - 1, 0) % 2], maps[min(number, count - 1) % 2]
        start = number * side - side // 2
        for y in range(max(start, 0), min(start + side, plane.shape[0])):
            _equalize_row(plane[y], bins, upper, lower, (side, (y - start) / side), line)
            for x in range(line.size):
                low, high = min(low, int(line[x])), max(high, int(line[x]))
            if result is not None:
                for x in range(line.size):
                    result[1][y, x] = result[0][line[x]]
    return low, high


@kernel
def _map_regions(
    plane: Voxels, bins: NDArray[np.uint8], rows: Indices, columns: Indices, limit: int, maps: Maps
) -> None:
    """Map the bins of each region of one row of regions to greys."""
    side = rows.size
    counts = np.empty(_BINS, np.int64)
    for index in range(maps.shape[0]):
        counts[:] = 0
        for row in rows:
            for column in columns[index * side : (index + 1) * side]:
                counts[bins[plane[row, column]]] += 1
        _clip_counts(counts, limit)
        total = 0
        for level in range(_BINS):
            total += counts[level]
            maps[index, level] = np.uint16(min(float(total) * ((_GREYS - 1) / (side * side)), _GREYS - 1.0))


@kernel
def _clip_counts(counts: Indices, limit: int) -> None:
    """Cut counts at a limit, and spread what was cut over all bins as far as they have room: as scikit-image does."""
    excess = 0
    for level in range(counts.size):
        excess += max(counts[level] - limit, 0)
        counts[level] = min(counts[level], limit)
    increment = excess // counts.size
    room = limit - increment
    for level in range(counts.size):
        if counts[level] < room:
            counts[level] += increment
            excess -= increment
    for level in range(counts.size):
        if counts[level] >= room:
            excess -= limit - counts[level]
            counts[level] = limit
    _spread(counts, limit, excess)


@kernel
def _spread(counts: Indices, limit: int, excess: int) -> None:
    """Spread the last voxels that were cut one by one, over the bins below the limit."""
    before = excess + 1
    while 0 < excess < before:
        before = excess
        for start in range(counts.size):
            step = max(1, int((counts < limit).sum()) // excess)
            for level in range(start, counts.size, step):
                if counts[level] < limit:
                    counts[level] += 1
                    excess -= 1
            if excess <= 0:
                break


@kernel
def _equalize_row(
    voxels: Voxels, bins: NDArray[np.uint8], upper: Maps, lower: Maps, place: tuple[int, float], line: Maps
) -> None:
    """Greys of one row, between the maps of four regions about each voxel; `place`: side, way from upper to lower."""
    side, down = place
    count = upper.shape[0]
    for number in range(count + 1):
        left, right = max(number - 1, 0), min(number, count - 1)
        start = number * side - side // 2
        for x in range(max(start, 0), min(start + side, voxels.size)):
            level, along = bins[voxels[x]], (x - start) / side
            # In the order and the precision of scikit-image, whose bits these are.
            grey = np.float32(upper[left, level] * ((1 - along) * (1 - down)))
            grey += np.float32(upper[right, level] * (along * (1 - down)))
            grey += np.float32(lower[left, level] * ((1 - along) * down))
            grey += np.float32(lower[right, level] * (along * down))
            line[x] = np.uint16(grey)
