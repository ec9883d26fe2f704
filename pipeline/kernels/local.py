"""Gaussian denoising and thresholds that differ from voxel to voxel, on one plane, reflected where it ends.

Each stage has a support: with that many voxels more on every side, a window gives the same bits as the whole plane.
So sums over a box are sums of integers, which no order of adding changes; SciPy and scikit-image keep running sums of
floats, where a voxel's level depends on how far from the edge its row was begun. A Gaussian is summed for each voxel by
itself, always in the order of SciPy.

Only some rows are held, never a plane of floats: less than 1 MB at a width of 8026 voxels, or 4 MB for medians, where
scikit-image takes 8 to 40 bytes a voxel. Measured on one core of an EPYC (Zen 4), per 512x512 tile of 8 bit: Gaussian
of sigma 1 0.5 ms, of sigma 5 2.2; with a window of 31, local mean 0.5, local Gaussian 2.4, Niblack and Sauvola 2.2;
local median: see `kernels.sliding`. A slice of 17480x8026 has 535 such tiles. 16 bit takes the same, but the median.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, ShapeMismatchError
from pipeline.kernels.compiled import kernel
from pipeline.kernels.sliding import mark_above_medians

Method = Literal["local_mean", "local_gaussian", "local_median", "niblack", "sauvola"]

Voxels = NDArray[Any]
Indices = NDArray[np.int64]
Floats = NDArray[np.float64]

_TRUNCATE = 4.0  # standard deviations at which SciPy ends a Gaussian
_STEPS = 2.0**20  # of a Gaussian level, in a grey level: see `local_mask`


def gaussian_halo(sigma: float) -> int:
    """Voxels on each side, along y and x, that `gaussian` needs; as ``scipy.ndimage.gaussian_filter`` takes.

    Examples
    --------
    >>> gaussian_halo(1.0), gaussian_halo(0.1)
    (4, 0)
    """
    return int(_TRUNCATE * sigma + 0.5)


def gaussian(plane: NDArray[Any], sigma: float, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Smooth a plane with a Gaussian.

    Parameters
    ----------
    plane
        ``(h, w)`` uint8 or uint16 grey levels.
    sigma
        Standard deviation, in voxels.
    out
        Output, ``(h, w)`` of the dtype of the plane, not the plane itself; a new array if None.

    Returns
    -------
    ndarray
        The output: ``scipy.ndimage.gaussian_filter`` of the plane as float64, rounded half to even.

    Raises
    ------
    ShapeMismatchError
        The output has not the shape and dtype of the plane.
    """
    target = _target(plane, plane.dtype, out)
    weights = _gaussian_weights(sigma)
    _gaussian(plane, *_reflected(plane, weights.size - 1), weights, target)
    return target


def local_halo(method: Method, size: int) -> int:
    """Voxels on each side, along y and x, that `local_mask` needs.

    Examples
    --------
    >>> local_halo("local_mean", 31), local_halo("local_gaussian", 31)
    (15, 20)
    """
    return gaussian_halo(_window_sigma(size)) if method == "local_gaussian" else size // 2


def local_mask(
    plane: NDArray[Any], method: Method, size: int, offset: float, k: float, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Mark the voxels that are above the level of their own neighbourhood.

    Parameters
    ----------
    plane
        ``(h, w)`` uint8 or uint16 grey levels; foreground is bright.
    method
        What the level is, of a window of ``size`` by ``size`` voxels with mean m and standard deviation s:
        ``local_mean`` m; ``local_median`` the median; ``local_gaussian`` the mean with the weights of a Gaussian
        of sigma ``(size - 1) / 6``; ``niblack`` m - k s [1]_; ``sauvola`` m (1 + k (s / R - 1)) [2]_, where R is half
        the range of the dtype.
    size
        Side of the window, in voxels, odd.
    offset
        Subtracted from every level, in grey levels.
    k
        Weight of s; the other methods do not use it. These two were made for dark writing on paper, and with k > 0
        their level lies below the mean: among bright foreground a negative k lifts it above the background.
    out
        Output, ``(h, w)`` uint8, not the plane itself; a new array if None.

    Returns
    -------
    ndarray
        The output: 255 where a voxel is above its level, else 0.

    Raises
    ------
    ConfigError
        The size is even, or not positive.
    ShapeMismatchError
        The output has not the shape of the plane, or is not uint8.

    Notes
    -----
    Levels are those of ``threshold_local``, ``threshold_niblack`` and ``threshold_sauvola`` of ``skimage.filters``
    within rounding, but all methods reflect with the edge repeated, as SciPy's ``reflect``; the last two of
    scikit-image leave it out. Levels of a Gaussian are rounded to 2**-20 grey level, else its weights, which sum to a
    little less than 1, would mark a plane of one value.

    References
    ----------
    .. [1] W. Niblack, "An Introduction to Digital Image Processing", Prentice-Hall (1986), 115-116.
    .. [2] J. Sauvola and M. Pietikainen, "Adaptive document image binarization", Pattern Recognition 33 (2000),
       225-236. :doi:`10.1016/S0031-3203(99)00055-2`

    Examples
    --------
    >>> local_mask(np.array([[3, 3, 9, 3, 3]], np.uint8), "local_mean", 3, 0, 0)
    array([[  0,   0, 255,   0,   0]], dtype=uint8)
    """
    if size < 1 or size % 2 == 0:
        raise ConfigError(f"size: got {size}, a window has a voxel in its middle; use an odd number")
    target = _target(plane, np.dtype(np.uint8), out)
    rows, columns = _reflected(plane, local_halo(method, size))
    match method:
        case "local_mean":
            _mean_mask(plane, rows, columns, offset, target)
        case "local_gaussian":
            _gaussian_mask(plane, rows, columns, _gaussian_weights(_window_sigma(size)), offset, target)
        case "local_median":
            mark_above_medians(plane, rows, columns, offset, target)
        case "niblack":
            _contrast_mask(plane, rows, columns, (offset, k, 0.0), target)
        case "sauvola":
            _contrast_mask(plane, rows, columns, (offset, k, np.iinfo(plane.dtype).max / 2), target)
    return target


def _target(plane: Voxels, dtype: np.dtype[Any], out: Voxels | None) -> Voxels:
    """Array to write a result of this dtype to."""
    if out is None:
        return np.empty(plane.shape, dtype)
    if out.shape != plane.shape or out.dtype != dtype:
        raise ShapeMismatchError(f"out: got {out.dtype} {out.shape}, the plane needs {dtype} {plane.shape}")
    return out


def _reflected(plane: Voxels, radius: int) -> tuple[Indices, Indices]:
    """Rows and columns in the order in which windows of this radius meet them, from beyond one edge to the other."""
    rows, columns = (np.pad(np.arange(length), radius, mode="symmetric") for length in plane.shape)
    return rows, columns


def _window_sigma(size: int) -> float:
    """Sigma of a window, which then holds more than 99 % of the weight; as scikit-image takes it."""
    return (size - 1) / 6


def _gaussian_weights(sigma: float) -> Floats:
    """Weights from the middle outwards, as SciPy computes them."""
    radius = gaussian_halo(sigma)
    if radius == 0:
        return np.ones(1)
    weights: Floats = np.exp(-0.5 / (sigma * sigma) * np.arange(-radius, radius + 1) ** 2)
    weights /= weights.sum()
    return weights[radius:].copy()


@kernel
def _gaussian(plane: Voxels, rows: Indices, columns: Indices, weights: Floats, out: Voxels) -> None:
    padded, line = np.empty(columns.size), np.empty(plane.shape[1])
    for y in range(plane.shape[0]):
        _smooth_row(plane, rows[y : y + 2 * weights.size - 1], columns, weights, padded, line)
        for x in range(line.size):
            out[y, x] = out.dtype.type(np.rint(line[x]))


@kernel
def _gaussian_mask(
    plane: Voxels, rows: Indices, columns: Indices, weights: Floats, offset: float, out: NDArray[np.uint8]
) -> None:
    padded, line = np.empty(columns.size), np.empty(plane.shape[1])
    for y in range(plane.shape[0]):
        _smooth_row(plane, rows[y : y + 2 * weights.size - 1], columns, weights, padded, line)
        for x in range(line.size):
            level = np.rint(line[x] * _STEPS) / _STEPS
            out[y, x] = 255 if float(plane[y, x]) > level - offset else 0


@kernel
def _smooth_row(plane: Voxels, rows: Indices, columns: Indices, weights: Floats, padded: Floats, line: Floats) -> None:
    """Smooth one row, along y and then along x; neighbours are added in pairs and from the outside, as SciPy does."""
    radius, width = weights.size - 1, line.size
    inside, middle = padded[radius : radius + width], plane[rows[radius]]
    for x in range(width):
        inside[x] = float(middle[x]) * weights[0]
    for distance in range(radius, 0, -1):
        above, below, weight = plane[rows[radius - distance]], plane[rows[radius + distance]], weights[distance]
        for x in range(width):
            inside[x] += (float(above[x]) + float(below[x])) * weight
    for x in range(radius):
        padded[x] = inside[columns[x]]
        padded[radius + width + x] = inside[columns[radius + width + x]]
    for x in range(width):
        line[x] = inside[x] * weights[0]
    for distance in range(radius, 0, -1):
        left, right, weight = padded[radius - distance :], padded[radius + distance :], weights[distance]
        for x in range(width):
            line[x] += (left[x] + right[x]) * weight


@kernel
def _mean_mask(plane: Voxels, rows: Indices, columns: Indices, offset: float, out: NDArray[np.uint8]) -> None:
    size = rows.size - plane.shape[0] + 1
    sums, box = np.zeros(plane.shape[1], np.int64), np.empty(plane.shape[1], np.int64)
    for row in rows[: size - 1]:
        _add_row(plane[row], 1, sums)
    for y in range(plane.shape[0]):
        _add_row(plane[rows[y + size - 1]], 1, sums)
        _sum_boxes(sums, columns, box)
        for x in range(box.size):
            out[y, x] = 255 if float(plane[y, x]) > float(box[x]) / (size * size) - offset else 0
        _add_row(plane[rows[y]], -1, sums)


@kernel
def _contrast_mask(
    plane: Voxels, rows: Indices, columns: Indices, rule: tuple[float, float, float], out: NDArray[np.uint8]
) -> None:
    size = rows.size - plane.shape[0] + 1
    sums, squares = np.zeros((2, plane.shape[1]), np.int64)
    box, square_box = np.empty((2, plane.shape[1]), np.int64)
    for row in rows[: size - 1]:
        _add_row(plane[row], 1, sums)
        _add_squares(plane[row], 1, squares)
    for y in range(plane.shape[0]):
        _add_row(plane[rows[y + size - 1]], 1, sums)
        _add_squares(plane[rows[y + size - 1]], 1, squares)
        _sum_boxes(sums, columns, box)
        _sum_boxes(squares, columns, square_box)
        for x in range(box.size):
            level = _contrast_level(box[x], square_box[x], size * size, rule)
            out[y, x] = 255 if float(plane[y, x]) > level else 0
        _add_row(plane[rows[y]], -1, sums)
        _add_squares(plane[rows[y]], -1, squares)


@kernel
def _contrast_level(total: int, squares: int, number: int, rule: tuple[float, float, float]) -> float:
    """Level by Niblack, or by Sauvola where half the range is given, of the sums over one window."""
    offset, k, half_range = rule
    mean = float(total) / number
    # Of squares about a whole number near the mean, which are small: those about 0 leave no digits of a small variance.
    # No integer overflows: of 2**30 voxels of 16 bit the squares sum to less than 2**62.
    near = int(mean)
    rest = total - near * number
    about = squares - near * (total + rest)
    deviation = math.sqrt(max(float(about) / number - (float(rest) / number) ** 2, 0.0))
    if half_range == 0.0:
        return mean - k * deviation - offset
    return mean * (1.0 + k * (deviation / half_range - 1.0)) - offset


@kernel
def _add_row(line: Voxels, sign: int, sums: Indices) -> None:
    for x in range(sums.size):
        sums[x] += sign * np.int64(line[x])


@kernel
def _add_squares(line: Voxels, sign: int, sums: Indices) -> None:
    for x in range(sums.size):
        sums[x] += sign * np.int64(line[x]) * np.int64(line[x])


@kernel
def _sum_boxes(sums: Indices, columns: Indices, box: Indices) -> None:
    """Sum the columns of each window along one row."""
    size = columns.size - box.size + 1
    total = np.int64(0)
    for x in range(size - 1):
        total += sums[columns[x]]
    for x in range(box.size):
        total += sums[columns[x + size - 1]]
        box[x] = total
        total -= sums[columns[x]]
