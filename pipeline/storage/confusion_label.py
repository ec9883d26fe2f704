"""A mask against a truth as an image: where it is right, where it is wrong, and how that looks from far away.

At each level a voxel shows the error, FP or FN, that most of the voxels below it are, counted at full resolution; as
many of both show as FN, because what was missed is in no mask either. Where there is no error, TP shows if there is
any. So a single wrong voxel is seen at every zoom, and never outvoted by right ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Box
from pipeline.kernels.compiled import kernel
from pipeline.scratch import scratch
from pipeline.storage.pyramid import Levels, Plane, Pyramid, level_shapes
from pipeline.storage.store import BY_A_RUN

SUFFIX = "-confusion"
TP, FP, FN = 1, 2, 3  # the rest is 0: background in both, and what nobody annotated

Weights = NDArray[Any]


def confusion_name(run: str) -> str:
    """Name of the label that shows the confusion of a run."""
    return run + SUFFIX


@kernel
def confuse(mask: NDArray[np.uint8], truth: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Compare a mask with a truth, voxel by voxel.

    Parameters
    ----------
    mask : ndarray
        (y, x) uint8: 0 background, 255 vessel.
    truth : ndarray
        (y, x) uint8: 0 background, 255 vessel, 127 not annotated.
    out : ndarray
        (y, x) uint8; written: 1 TP, 2 FP, 3 FN, 0 else.
    """
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            # Of 0, 127 and 255 only 255 has the top bit, and only 0 not the lowest: so these are 0 or 1.
            marked, vessel = mask[row, column] >> np.uint8(7), truth[row, column] >> np.uint8(7)
            background = ~truth[row, column] & np.uint8(1)
            right, wrong = marked & vessel, (marked & background) << np.uint8(1)
            missed = (vessel & ~marked) * np.uint8(FN)
            out[row, column] = right | wrong | missed


class ConfusionPyramid(Pyramid):
    """A confusion with its levels."""

    def __init__(self, path: Path, levels: int) -> None:
        super().__init__(path, levels, add_weights, BY_A_RUN)

    def start_levels(self, buffer: str) -> Levels:
        """See `Pyramid.start_levels`."""
        return ErrorLevels(self, buffer)


class ErrorLevels(Levels):
    """Levels of a confusion, from the weights of what their voxels cover.

    A weight is four times the number of FP less that of FN, plus 1 where there is any TP, plus 2 where there is any
    error: so weights of voxels without a common one add up, but for the last two bits, which are joined.
    """

    def __init__(self, pyramid: Pyramid, buffer: str) -> None:
        self._reduce = pyramid.reduction
        self._first = [
            scratch.array(f"{buffer} of errors", array.shape[1:], weight_type(1)) for array in pyramid.levels[1:2]
        ]

    def take(self, part: Box, values: NDArray[Any]) -> None:
        """See `Levels.take`."""
        weights = scratch.array("error weights", values.shape[1:], np.int8)
        weigh(values[0], weights)
        super().take(part, weights[None])

    def planes(self) -> Iterator[Plane]:
        """See `Levels.planes`."""
        for first in self._first:
            weights, shapes = first, level_shapes((first.shape[0], first.shape[1]))
            for level, shape in enumerate(shapes[1:], 2):
                smaller = np.empty(shape, weight_type(level))
                self._reduce(weights, smaller)
                yield _shown(weights)
                weights = smaller
            yield _shown(weights)


def weight_type(level: int) -> type[np.signedinteger[Any]]:
    """The smallest type that holds the weights of a level, each of 4**level voxels."""
    if level <= 2:
        return np.int8
    return np.int16 if level <= 6 else np.int32


def _shown(weights: Weights) -> Plane:
    """What a level shows, (y, x) uint8; in the place of its weights, where those are bytes."""
    out = weights.view(np.uint8) if weights.itemsize == 1 else np.empty(weights.shape, np.uint8)
    show(weights, out)
    return out


@kernel
def weigh(plane: NDArray[np.uint8], out: NDArray[np.int8]) -> None:
    """Weigh single voxels of a confusion; see `ErrorLevels`.

    Parameters
    ----------
    plane : ndarray
        (y, x) uint8: 0, TP, FP and FN.
    out : ndarray
        (y, x) int8; written.
    """
    for row in range(plane.shape[0]):
        for column in range(plane.shape[1]):
            value = plane[row, column]
            # 0, 1, 4 + 2 and -4 + 2
            error = np.int8(6) if value == FP else np.int8(-2)
            out[row, column] = error if value & np.uint8(2) else np.int8(value)


@kernel
def add_weights(weights: Weights, out: Weights) -> None:
    """Add the weights of 2x2 groups; of those at an odd edge, what there is of them.

    Parameters
    ----------
    weights : ndarray
        (y, x), of `weight_type`.
    out : ndarray
        (ceil(y / 2), ceil(x / 2)), of that of the next level; written.
    """
    height, width = weights.shape
    for row in range(out.shape[0]):
        upper = weights[2 * row]
        lower = weights[min(2 * row + 1, height - 1)]
        there = 2 * row + 1 < height
        for column in range(width // 2):
            left, right = 2 * column, 2 * column + 1
            kinds = upper[left] | upper[right]
            total = np.int32(upper[left] >> 2) + np.int32(upper[right] >> 2)
            if there:
                kinds |= lower[left] | lower[right]
                total += np.int32(lower[left] >> 2) + np.int32(lower[right] >> 2)
            out[row, column] = (total << 2) | (kinds & 3)
        if width % 2:
            kinds, total = upper[width - 1], np.int32(upper[width - 1] >> 2)
            if there:
                kinds |= lower[width - 1]
                total += np.int32(lower[width - 1] >> 2)
            out[row, out.shape[1] - 1] = (total << 2) | (kinds & 3)


@kernel
def show(weights: Weights, out: NDArray[np.uint8]) -> None:
    """Say what voxels of these weights show.

    Parameters
    ----------
    weights : ndarray
        (y, x), of `weight_type`.
    out : ndarray
        (y, x) uint8; written; may be the same memory.
    """
    for row in range(weights.shape[0]):
        for column in range(weights.shape[1]):
            weight = weights[row, column]
            error = np.uint8(FP) if weight >> 2 > 0 else np.uint8(FN)
            out[row, column] = error if weight & 2 else np.uint8(weight & 1)
