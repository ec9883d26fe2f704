"""The work on one tile: a pure function of arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pipeline.geometry import Triple
from pipeline.histogram import binarize, joint_histogram, level_counts
from pipeline.median import median_tile
from pipeline.scratch import scratch

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class TileRule:
    """How a tile becomes a mask: plain values, unpacked from a recipe."""

    window: Triple
    invert: bool
    level: Callable[[Array], float]


def segment_tile(
    stack: Array, start: tuple[int, int], truth: Array | None, mask: Array, table: Array, rule: TileRule
) -> float:
    """Filter, count, threshold and mask one tile.

    Parameters
    ----------
    stack : ndarray
        (z, y, x) uint8 or uint16: the planes that the filter's window covers, with the tile's halo in the plane unless
        the tile lies at the volume's edge, where values reflect.
    start : tuple
        (y, x) of the tile in the planes.
    truth : ndarray or None
        (h, w) uint8: 0 background, 255 vessel, anything else not annotated.
    mask : ndarray
        (h, w) uint8; written: 255 vessel, 0 background.
    table : ndarray
        (3, levels) uint32; written: joint histogram of filtered grey level by truth.
    rule : TileRule

    Returns
    -------
    float
        The level; vessels are above it, on the filtered scale.
    """
    filtered = scratch.array("filtered", mask.shape, stack.dtype)
    median_tile(stack, start, rule.window, rule.invert, filtered)
    joint_histogram(filtered, truth, table)
    level = rule.level(level_counts(table))
    binarize(filtered, level, mask)
    return level
