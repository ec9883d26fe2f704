"""The levels of one slice: each half the size of the one before, in the plane only.

An image keeps its mean; a label keeps its vessels, because a capillary one voxel wide must not vanish when a person
zooms out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.geometry import ceil_div

Plane = NDArray[Any]
Reduce = Callable[[Plane, Plane], None]

TOP_SIDE = 512  # the last level fits into one tile


def level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Shapes (y, x) of all levels of a slice, from full size until both sides are at most 512."""
    shapes = [shape]
    while max(shapes[-1]) > TOP_SIDE:
        shapes.append((ceil_div(shapes[-1][0], 2), ceil_div(shapes[-1][1], 2)))
    return shapes


def reduced_levels(plane: Plane, reduce: Reduce) -> Iterator[Plane]:
    """Levels 1, 2, ... of a whole slice.

    Parameters
    ----------
    plane : ndarray
        Level 0, (y, x), uint8 or uint16.
    reduce : callable
        ``reduce_image`` or ``reduce_label``.
    """
    for shape in level_shapes((plane.shape[0], plane.shape[1]))[1:]:
        smaller = np.empty(shape, plane.dtype)
        reduce(plane, smaller)
        yield smaller
        plane = smaller


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def reduce_image(plane: Plane, out: Plane) -> None:
    """Mean of the voxels that exist in each 2x2 group, rounded half up.

    Parameters
    ----------
    plane : ndarray
        (y, x), uint8 or uint16.
    out : ndarray
        (ceil(y / 2), ceil(x / 2)), of the same type; written.
    """
    height, width = plane.shape
    for row in range(out.shape[0]):
        upper = plane[2 * row]
        lower = plane[min(2 * row + 1, height - 1)]  # an odd last row counts twice, which leaves its mean as it is
        for column in range(width // 2):
            left, right = 2 * column, 2 * column + 1
            total = np.uint32(upper[left]) + np.uint32(upper[right]) + np.uint32(lower[left]) + np.uint32(lower[right])
            out[row, column] = (total + np.uint32(2)) >> np.uint32(2)
        if width % 2:
            total = np.uint32(upper[width - 1]) + np.uint32(lower[width - 1])
            out[row, out.shape[1] - 1] = (total + np.uint32(1)) >> np.uint32(1)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def reduce_label(plane: Plane, out: Plane) -> None:
    """Reduce 2x2 groups of a label: vessel (255) where any is, not annotated (127) where all are, else background.

    Parameters
    ----------
    plane : ndarray
        (y, x) uint8 of 0, 127 and 255.
    out : ndarray
        (ceil(y / 2), ceil(x / 2)) uint8; written.
    """
    height, width = plane.shape
    for row in range(out.shape[0]):
        upper = plane[2 * row]
        lower = plane[min(2 * row + 1, height - 1)]
        for column in range(width // 2):
            left, right = 2 * column, 2 * column + 1
            # 255 is the only value with its top bit set, and of 0 and 127 `and` leaves 127 only where all are
            some = upper[left] | upper[right] | lower[left] | lower[right]
            every = upper[left] & upper[right] & lower[left] & lower[right]
            out[row, column] = np.uint8(255) if some & np.uint8(128) else every
        if width % 2:
            some = upper[width - 1] | lower[width - 1]
            every = upper[width - 1] & lower[width - 1]
            out[row, out.shape[1] - 1] = np.uint8(255) if some & np.uint8(128) else every
