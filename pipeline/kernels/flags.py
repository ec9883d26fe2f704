"""Flags: tiles that are unlike the others of their slice, and slices that are unlike the others, by their measures.

What is usual is found from the volume itself, robustly, so nothing is to be set for another stain or microscope.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShapeMismatchError
from pipeline.kernels.quality import Measure

Floats = NDArray[np.float64]


class Flag(IntFlag):
    """In what a tile or slice is unlike the others; see `flag_tiles`."""

    BLURRED = 1
    SATURATED = 2
    DARK = 4
    BRIGHT = 8
    LOW_CONTRAST = 16
    EMPTY = 32
    CHATTER = 64


NOTHING = Flag(0)

FLAG_NAMES = tuple(flag.name.lower() for flag in Flag if flag.name)
"""Names of the flags, as users write them."""

MOSTLY_EMPTY = 0.5
"""A tile of more emptiness sets no norm for others."""

LEAST_TILES = 9
"""Tiles of a slice that set a norm: with fewer, none of them is flagged."""

LEAST_SLICES = 5
"""Slices that set a norm: with fewer, none of them is flagged."""

DEVIATIONS = 4.0
"""Standard deviations, estimated robustly, that a value may lie from the median."""

_SIGMA = 1.4826  # of median absolute deviations in a standard deviation, where values are distributed normally


@dataclass(frozen=True, slots=True)
class Rule:
    """How far a measure may be from its median.

    As a logarithm of ``1 + measure``, where only ratios mean something. ``tile`` and ``slice`` are the least distances
    that matter, however alike the others are: what vessels alone do to a tile of the phantom, or less to a slice.
    """

    measure: Measure
    ratio: bool
    tile: float
    slice: float
    below: Flag = NOTHING
    above: Flag = NOTHING


RULES = (
    Rule(Measure.FOCUS, True, math.log(2), math.log(1.25), below=Flag.BLURRED),
    Rule(Measure.SATURATION, False, 0.05, 0.02, above=Flag.SATURATED),
    Rule(Measure.MEAN, True, math.log(1.25), math.log(1.1), below=Flag.DARK, above=Flag.BRIGHT),
    Rule(Measure.CONTRAST, True, math.log(3), math.log(1.5), below=Flag.LOW_CONTRAST),
    Rule(Measure.EMPTINESS, False, 0.1, 0.05, above=Flag.EMPTY),
    Rule(Measure.CHATTER, False, 0.0075, 0.005, above=Flag.CHATTER),
)


def tile_distances(values: NDArray[np.float32], present: NDArray[np.bool_]) -> Floats:
    """Find how far the measures of tiles are from the medians of their slice.

    Parameters
    ----------
    values
        ``(z, rows, columns, len(Measure))`` float32, see `kernels.quality`.
    present
        ``(z, rows, columns)`` bool: tiles that were measured.

    Returns
    -------
    ndarray
        ``(z, rows, columns, len(RULES))`` float64, of the measure of each rule: its distance from the median of the
        slice, divided by the limit, which is `DEVIATIONS` standard deviations, these being 1.4826 times the median
        absolute deviation, or a least distance, if that is more (a ratio of 2 of focus, 1.25 of mean and 3 of contrast;
        0.05 of saturation, 0.1 of emptiness, 0.0075 of chatter). Median and deviation are those of the tiles that are
        present and not `MOSTLY_EMPTY`. NaN where a tile is absent, everywhere in a slice where fewer than `LEAST_TILES`
        set the norm, and for a measure that is NaN.

    Raises
    ------
    ShapeMismatchError
        The shapes do not belong together.
    """
    _check_values(values, present)
    least = [rule.tile for rule in RULES]
    distances = np.empty((*present.shape, len(RULES)))
    for z, (tiles, there) in enumerate(zip(values, present, strict=True)):
        rows = np.where(there[..., None], tiles, np.nan).reshape(-1, len(Measure))
        distances[z] = _distances(rows, least, LEAST_TILES).reshape(*there.shape, -1)
    return distances


def slice_distances(medians: Floats) -> Floats:
    """Find how far slices are from the others: an out-of-focus one is like itself everywhere.

    Parameters
    ----------
    medians
        ``(z, len(Measure))``, of `slice_medians`.

    Returns
    -------
    ndarray
        ``(z, len(RULES))`` float64, as `tile_distances`, but with lower least distances (a ratio of 1.25 of focus, 1.1
        of mean and 1.5 of contrast; 0.02 of saturation, 0.05 of emptiness, 0.005 of chatter), and `LEAST_SLICES`.
    """
    return _distances(medians, [rule.slice for rule in RULES], LEAST_SLICES)


def flags_of(distances: Floats) -> NDArray[np.uint8]:
    """Sum of the `Flag` of every rule whose limit is exceeded, on the leading axes of distances."""
    flags = np.zeros(distances.shape[:-1], np.uint8)
    for at, rule in enumerate(RULES):
        flags[distances[..., at] < -1] |= np.uint8(rule.below)
        flags[distances[..., at] > 1] |= np.uint8(rule.above)
    return flags


def flag_tiles(values: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Flag the tiles that are unlike the others of their slice: `flags_of` their `tile_distances`."""
    return flags_of(tile_distances(values, present))


def flag_of(names: Sequence[str]) -> Flag:
    """All flags of these names."""
    return Flag(sum(Flag[name.upper()] for name in set(names)))


def names_of(flags: Flag) -> list[str]:
    """Names of what a tile or slice is flagged for."""
    return [name for name in FLAG_NAMES if Flag[name.upper()] in flags]


def count_flags(flags: NDArray[np.uint8]) -> dict[str, int]:
    """How many have each flag, by its name; one may have several."""
    return {name: int(np.count_nonzero(flags & Flag[name.upper()])) for name in FLAG_NAMES}


def slice_medians(values: NDArray[np.float32], present: NDArray[np.bool_]) -> Floats:
    """Median of each measure over the tiles of each slice, of a table as `tile_distances` takes it.

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
    _check_values(values, present)
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


def _check_values(values: NDArray[np.float32], present: NDArray[np.bool_]) -> None:
    if present.ndim != 3 or values.shape != (*present.shape, len(Measure)):
        raise ShapeMismatchError(
            f"values: got shape {values.shape}, and {present.shape} of what is present; expected {len(Measure)} "
            "measures for each tile, on 3 axes"
        )


def _is_full(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether most of a tile or slice shows something."""
    return ~(rows[:, Measure.EMPTINESS] > MOSTLY_EMPTY)


def _distances(rows: NDArray[Any], least: Sequence[float], members: int) -> Floats:
    """Distances of rows ``(n, len(Measure))`` from their median, in limits, if enough of them set the norm."""
    distances, full = np.full((len(rows), len(RULES)), np.nan), _is_full(rows)
    for at, (rule, distance) in enumerate(zip(RULES, least, strict=True)):
        column = rows[:, rule.measure].astype(np.float64)
        if rule.ratio:
            column = np.log1p(column)
        norm = column[full & np.isfinite(column)]
        if norm.size >= members:
            median = np.median(norm)
            limit = max(distance, DEVIATIONS * _SIGMA * float(np.median(abs(norm - median))))
            distances[:, at] = (column - median) / limit
    return distances
