"""Voxel counts of a mask against a truth, and the scores that follow from them.

Counts are Python integers: a volume has 1e11 voxels, and the product under the root of MCC then needs 142 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import ShapeMismatchError

SCORE_PARTS = 7  # integers that `score_parts` makes of the scores of a tile
_NOT_ANNOTATED = 127  # as truth labels are stored; the only value of a truth that is neither background nor vessel


@dataclass(frozen=True, slots=True)
class Counts:
    """Annotated voxels by truth and mask. ``Counts()`` is the identity of ``+``."""

    tp: int = 0
    """Vessel in both."""
    fp: int = 0
    """Vessel in the mask only."""
    fn: int = 0
    """Vessel in the truth only."""
    tn: int = 0
    """Background in both."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @classmethod
    def from_images(cls, truth: ArrayLike, mask: ArrayLike) -> Counts:
        """Count the voxels of two images.

        Parameters
        ----------
        truth
            Any shape, boolean or integer: 0 is background, 127 is not annotated and counts nowhere, any other value is
            vessel. So 0 / 255 with or without 127, 0 / 1 and booleans are all read as they are meant.
        mask
            The same shape: 0 is background, any other value is vessel.

        Returns
        -------
        Counts
            Over the annotated voxels.

        Raises
        ------
        ShapeMismatchError
            The shapes differ.
        """
        truth, mask = np.asarray(truth), np.asarray(mask)
        if truth.shape != mask.shape:
            raise ShapeMismatchError(
                f"mask: got shape {mask.shape}, the truth has {truth.shape}; compare equal regions"
            )
        annotated = truth != _NOT_ANNOTATED
        vessel = annotated & (truth != 0)
        marked = annotated & (mask != 0)
        tp, positive, predicted, total = map(int, map(np.count_nonzero, (vessel & marked, vessel, marked, annotated)))
        return cls(tp, predicted - tp, positive - tp, total - positive - predicted + tp)

    @property
    def total(self) -> int:
        """Annotated voxels."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def accuracy(self) -> float | None:
        """Part of the annotated voxels that is right; None without any."""
        return (self.tp + self.tn) / self.total if self.total else None

    @property
    def f1(self) -> float | None:
        """``2 tp / (2 tp + fp + fn)``; 1 where neither image has a vessel, None without annotated voxels."""
        if not self.total:
            return None
        vessels = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / vessels if vessels else 1.0

    @property
    def mcc(self) -> float | None:
        """Matthews correlation coefficient [1]_, correctly rounded whatever the number of voxels.

        ``(tp tn - fp fn) / sqrt((tp + fp) (tp + fn) (tn + fp) (tn + fn))``; where that is 0 / 0, 1 if everything is one
        class and right, else -1. None without annotated voxels.

        References
        ----------
        .. [1] B. W. Matthews, "Comparison of the predicted and observed secondary structure of T4 phage lysozyme",
           Biochimica et Biophysica Acta 405 (1975), 442-451. :doi:`10.1016/0005-2795(75)90109-9`
        """
        if not self.total:
            return None
        product = (self.tp + self.fp) * (self.tp + self.fn) * (self.tn + self.fp) * (self.tn + self.fn)
        if not product:
            return -1.0 if self.fp or self.fn else 1.0
        covariance = self.tp * self.tn - self.fp * self.fn
        # The square root of an exact fraction as an integer of 128 bits or more; the division then rounds once.
        shift = product.bit_length() // 2 + 128
        root = math.isqrt((covariance * covariance << 2 * shift) // product)
        return math.copysign(root / (1 << shift), covariance)


@dataclass(frozen=True, slots=True)
class Scores:
    """How well a mask agrees with a truth; None where no voxel is annotated."""

    accuracy: float | None
    f1: float | None
    mcc: float | None


def scores(counts: Counts) -> Scores:
    """Accuracy, F1 and MCC of summed counts.

    Parameters
    ----------
    counts
        Of any number of voxels; sum counts, never scores.

    Returns
    -------
    Scores
        See the properties of `Counts` for the formulas and what holds where they are 0 / 0.

    Examples
    --------
    >>> scores(Counts(tp=3, fp=1, fn=1, tn=4))
    Scores(accuracy=0.7777777777777778, f1=0.75, mcc=0.55)
    """
    return Scores(counts.accuracy, counts.f1, counts.mcc)


def tile_scores(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scores of many tiles at once.

    Parameters
    ----------
    counts
        ``(..., 4)`` int64: tp, fp, fn, tn of each tile, up to 2**31 voxels a tile (products of two then fit int64).

    Returns
    -------
    ndarray of float64
        ``(..., 3)``: accuracy, F1 and MCC as `scores` gives them, MCC within 1e-14; NaN where nothing is annotated.

    Raises
    ------
    ShapeMismatchError
        The last axis has not four entries.
    """
    if counts.shape[-1:] != (4,):
        raise ShapeMismatchError(f"counts: got shape {counts.shape}, expected (..., 4) for tp, fp, fn, tn")
    tp, fp, fn, tn = np.moveaxis(counts.astype(np.int64, copy=False), -1, 0)
    total = tp + fp + fn + tn
    vessels = 2 * tp + fp + fn
    # Multiplied as floats under one root: for a right mask both factors equal tp * tn, and sqrt(x * x) is x exactly.
    product = ((tp + fp) * (tn + fn)).astype(np.float64) * ((tp + fn) * (tn + fp))
    result = np.empty((*total.shape, 3))
    with np.errstate(invalid="ignore"):  # every 0 / 0 is replaced by what it means
        result[..., 0] = (tp + tn) / total
        result[..., 1] = np.where(vessels == 0, 1.0, 2 * tp / vessels)
        single = np.where(fp + fn == 0, 1.0, -1.0)
        result[..., 2] = np.where(product == 0, single, (tp * tn - fp * fn) / np.sqrt(product))
    result[total == 0] = np.nan
    return result


def score_parts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Scores of tiles as integers that add up exactly, so that every reduction tree gives the same mean.

    Parameters
    ----------
    counts : ndarray
        int64 (..., 4): tp, fp, fn, tn of each tile.

    Returns
    -------
    ndarray
        int64 (..., 7): accuracy, F1 and MCC in units of 2^-27, what is left of each in units of 2^-53, and 1; all 0
        where nothing is annotated. Sums of up to 2^34 tiles fit.
    """
    tiles = tile_scores(counts)
    annotated = ~np.isnan(tiles[..., :1])
    units = np.where(annotated, tiles, 0.0) * _HIGH
    high = np.floor(units)
    return np.concatenate([high, np.rint((units - high) * _LOW), annotated], axis=-1).astype(np.int64)


def mean_scores(parts: NDArray[np.int64]) -> tuple[Scores, int] | None:
    """Mean scores over the annotated tiles, and their number, from summed `score_parts`; None without such tiles."""
    *sums, tiles = (int(part) for part in parts)
    if not tiles:
        return None
    return Scores(
        *((high * _LOW + low) / (_HIGH * _LOW * tiles) for high, low in zip(sums[:3], sums[3:], strict=True))
    ), tiles


_HIGH, _LOW = 2**27, 2**26
