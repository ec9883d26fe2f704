"""A run slice by slice: scores, levels and vessels, from what it knows of its tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.findings.census import NOT_COUNTED, Census
from pipeline.kernels.confusion import SCORES, tile_scores

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Profile:
    """Numbers of each slice, float64 (z,), NaN where there is none.

    Attributes
    ----------
    scores : ndarray
        (z, len(SCORES)), of the summed counts.
    low, middle, high : ndarray
        Lowest, median and highest level of the tiles.
    vessel : ndarray
        Part of the voxels that the mask calls vessel.
    where_annotated : bool
        Whether that is of the annotated voxels alone, because the run has not counted the vessels of all of its tiles.
    truth : ndarray
        Part of the annotated voxels that is vessel in the truth.
    """

    scores: Values
    low: Values
    middle: Values
    high: Values
    vessel: Values
    where_annotated: bool
    truth: Values

    def score(self, name: str) -> Values:
        """One of `kernels.confusion.SCORES`."""
        return self.scores[:, SCORES.index(name)]


def profile_of(tiles: Census) -> Profile:
    """Sum a census over each slice."""
    depth = len(tiles.done)
    low, middle, high = _levels(tiles.level)
    counted = tiles.vessel != NOT_COUNTED
    traced = np.zeros((depth, 4), np.int64) if tiles.counts is None else tiles.counts.sum(axis=(1, 2))
    tp, fp, fn, _ = traced.T
    annotated = traced.sum(axis=1)
    where_annotated = tiles.counts is not None and not bool(counted[tiles.done].all())
    if where_annotated:
        vessel = _ratio(tp + fp, annotated)
    else:
        marked, voxels = (np.where(counted, part, 0).sum(axis=(1, 2)) for part in (tiles.vessel, tiles.voxels))
        vessel = _ratio(marked, voxels)
    scores = tile_scores(traced)  # a slice has less than 2**31 voxels
    return Profile(scores, low, middle, high, vessel, where_annotated, _ratio(tp + fn, annotated))


def _levels(levels: Values) -> Values:
    """Lowest, median and highest of each slice, (3, z)."""
    three = np.full((3, len(levels)), np.nan)
    for z, of_slice in enumerate(levels):
        known = of_slice[~np.isnan(of_slice)]
        if known.size:
            three[:, z] = known.min(), np.median(known), known.max()
    return three


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> Values:
    found = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=found, where=whole > 0)
    return found
