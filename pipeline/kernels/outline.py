"""Scores of shape of one slice: how well outlines and centre lines agree, where counts of voxels see little.

Both are of annotated voxels alone: what is not annotated is neither vessel nor background, in truth and mask, so that
nothing there can change a score. Their counts are integers that add up over slices. Measured on one core of an EPYC
(Zen 4), on a slice of 17480 x 8026 voxels with the vessels of the real tile: outlines 0.8 s within 2 voxels or 10, in
10 MB beside the labels; centre lines 7 s, in 0.42 GB beside them, nearly all of it scikit-image's.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, MissingInputError, ShapeMismatchError
from pipeline.kernels.compiled import kernel
from pipeline.kernels.confusion import Undefined
from pipeline.kernels.histogram import TRUTH_BACKGROUND, TRUTH_VESSEL
from pipeline.scratch import scratch

MAX_TOLERANCE = 100
"""Largest tolerance, in voxels: a few times the width of a vessel, and its rows fit into a byte."""

Label = NDArray[np.uint8]
Rates = tuple[float | None, float | None, float | None]

_OF_MASK, _OF_TRUTH = 1, 2  # bits of a voxel that lies on an outline
_FAR = 255  # rows, or more
_BAND = 256  # rows at a time: what is kept of them fits into the cache


@dataclass(frozen=True, slots=True)
class Matches:
    """Voxels of the outlines, or of the centre lines, of a mask and a truth. ``Matches()`` is the identity of ``+``."""

    mask: int = 0
    """On the line of the mask."""
    mask_matched: int = 0
    """Those of them that the truth agrees with."""
    truth: int = 0
    """On the line of the truth."""
    truth_matched: int = 0
    """Those of them that the mask agrees with."""
    annotated: int = 0
    """Of the slice, on a line or not."""
    wrong: int = 0
    """Annotated, and vessel in one of the two only."""

    def __add__(self, other: Matches) -> Matches:
        return Matches(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class BoundaryF1:
    """How well two outlines agree. A score is None where `boundary_f1` cannot, or is told not to, give a number."""

    precision: float | None
    """Part of the mask's outline that is near the truth's."""
    recall: float | None
    """Part of the truth's outline that is near the mask's."""
    f1: float | None
    """Harmonic mean of the two."""
    counts: Matches

    @classmethod
    def of(cls, counts: Matches, undefined: Undefined = "article") -> BoundaryF1:
        """Scores of summed counts; see `boundary_f1` for what is 0 / 0."""
        return cls(*_rates(counts, undefined), counts)


@dataclass(frozen=True, slots=True)
class ClDice:
    """How well two trees of vessels agree. A score is None where `cl_dice` cannot, or is told not to, give a number."""

    precision: float | None
    """Part of the mask's centre line that is vessel in the truth."""
    sensitivity: float | None
    """Part of the truth's centre line that is vessel in the mask."""
    cl_dice: float | None
    """Harmonic mean of the two."""
    counts: Matches

    @classmethod
    def of(cls, counts: Matches, undefined: Undefined = "article") -> ClDice:
        """Scores of summed counts; see `boundary_f1` for what is 0 / 0."""
        return cls(*_rates(counts, undefined), counts)


def boundary_f1(mask: Label, truth: Label, tolerance: int, undefined: Undefined = "article") -> BoundaryF1:
    """Compare the outlines of a mask and a truth.

    The outline of a label is its vessel voxels of which one of the four neighbours is background; beyond the image's
    edge, and where nobody annotated, there is none.

    Parameters
    ----------
    mask
        ``(h, w)`` uint8: 0 is background, any other value is vessel.
    truth
        ``(h, w)`` uint8: 0 background, 255 vessel, anything else not annotated.
    tolerance
        Voxels between the centres of two voxels of the outlines up to which they match, 0 to `MAX_TOLERANCE`.
    undefined
        What a score is where it is 0 / 0; see the notes.

    Returns
    -------
    BoundaryF1
        With the counts that it comes from: sum those of slices, never scores. All scores are None without annotated
        voxels, whatever ``undefined`` says.

    Raises
    ------
    ShapeMismatchError
        The two have not the same shape, or are no planes of uint8.
    ConfigError
        The tolerance is not one.

    Notes
    -----
    What is 0 / 0 follows the rules of `kernels.confusion.scores`: by ``"article"`` 1 if the mask is right everywhere,
    else 0; by ``"zero"`` 0; by ``"nan"`` None. For centre lines read "line" for "outline".

    =================  ================================  ======================  ====  ====
    score              is 0 / 0 where there is           article                 zero  nan
    =================  ================================  ======================  ====  ====
    precision          no outline in the mask            1 if all right, else 0  0     None
    recall             no outline in the truth           1 if all right, else 0  0     None
    their mean         no outline in mask and truth      1 if all right, else 0  0     None
    =================  ================================  ======================  ====  ====

    Where one of them has an outline, and nothing of it is matched, the harmonic mean is 0 by every rule.

    Examples
    --------
    >>> truth = np.array([[0, 255, 255, 0, 0, 0]], np.uint8)
    >>> mask = np.array([[0, 0, 255, 255, 255, 255]], np.uint8)  # its outline is one voxel, for the edge is none
    >>> boundary_f1(mask, truth, 0).f1, boundary_f1(mask, truth, 1).f1
    (0.6666666666666666, 1.0)
    """
    mask, truth = _planes(mask, truth)
    if not 0 <= tolerance <= MAX_TOLERANCE:
        raise ConfigError(f"tolerance: got {tolerance}, expected 0 to {MAX_TOLERANCE} voxels")
    heights = np.array([isqrt(tolerance**2 - step**2) for step in range(tolerance + 1)], np.int64)
    (height, width), counts = mask.shape, np.zeros(6, np.int64)
    for top in range(0, height, _BAND):
        bottom = min(top + _BAND, height)
        first, last = max(0, top - tolerance), min(height, bottom + tolerance)
        lines = scratch.array("outlines", (last - first, width), np.uint8)
        rows = scratch.array("rows to an outline", lines.shape, np.uint8)
        _mark_outlines(mask, truth, first, lines)
        for at, own, other in ((0, _OF_MASK, _OF_TRUTH), (2, _OF_TRUTH, _OF_MASK)):
            _measure_rows(lines, other, rows)
            counts[at : at + 2] += _count_matches(
                lines[top - first : bottom - first], own, rows[top - first :], heights
            )
        counts[4:] += _count_voxels(mask[top:bottom], truth[top:bottom])
    return BoundaryF1.of(Matches(*counts.tolist()), undefined)


def cl_dice(mask: Label, truth: Label, undefined: Undefined = "article") -> ClDice:
    """Compare the centre lines of a mask and a truth, each with the vessels of the other [1]_.

    Parameters
    ----------
    mask, truth, undefined
        As for `boundary_f1`.

    Returns
    -------
    ClDice
        As `boundary_f1` does.

    Raises
    ------
    ShapeMismatchError
        The two have not the same shape, or are no planes of uint8.
    MissingInputError
        scikit-image is not installed.

    References
    ----------
    .. [1] S. Shit et al., "clDice - a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation", IEEE
       Conference on Computer Vision and Pattern Recognition (2021), 16555-16564. :doi:`10.1109/CVPR46437.2021.01629`
    .. [2] T. Y. Zhang and C. Y. Suen, "A fast parallel algorithm for thinning digital patterns", Communications of the
       ACM 27 (1984), 236-239: the centre lines, as scikit-image has them. :doi:`10.1145/357994.358023`

    Examples
    --------
    >>> truth = np.array([[0] * 6, [255] * 6, [0] * 6], np.uint8)
    >>> mask = truth.copy()
    >>> mask[1, 3:] = 0
    >>> found = cl_dice(mask, truth)
    >>> found.precision, found.sensitivity, found.cl_dice
    (1.0, 0.5, 0.6666666666666666)
    """
    mask, truth = _planes(mask, truth)
    vessels = scratch.array("vessels", mask.shape, np.bool_)
    _mark_vessels(mask, truth, vessels)
    line = _centre_line(vessels)
    of_mask = int(np.count_nonzero(line)), int(np.count_nonzero(truth[line] == TRUTH_VESSEL))
    del line  # before the next: each is as large as a label
    line = _centre_line(np.equal(truth, TRUTH_VESSEL, out=vessels))
    of_truth = int(np.count_nonzero(line)), int(np.count_nonzero(mask[line]))
    return ClDice.of(Matches(*of_mask, *of_truth, *_count_voxels(mask, truth)), undefined)


def _planes(mask: Label, truth: Label) -> tuple[Label, Label]:
    """Both, C-contiguous."""
    for name, plane in (("mask", mask), ("truth", truth)):
        if plane.ndim != 2 or plane.dtype != np.uint8:
            raise ShapeMismatchError(f"{name}: got {plane.dtype} of shape {plane.shape}, expected uint8 of (y, x)")
    if mask.shape != truth.shape:
        raise ShapeMismatchError(f"mask: got shape {mask.shape}, the truth has {truth.shape}; compare equal regions")
    return np.ascontiguousarray(mask), np.ascontiguousarray(truth)


def _centre_line(vessels: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Thin the vessels of a plane until they are one voxel wide."""
    try:
        from skimage.morphology import skeletonize  # noqa: PLC0415  # a quarter of a second that only this needs
    except ImportError as error:
        raise MissingInputError(f"clDice: needs scikit-image ({error}); do `pip install scikit-image`") from error
    line: NDArray[np.bool_] = skeletonize(vessels)
    return line


def _rates(counts: Matches, undefined: Undefined) -> Rates:
    """Matched part of the mask's line, of the truth's, and their harmonic mean; each is rounded once."""
    if not counts.annotated:
        return None, None, None
    otherwise = {"article": float(not counts.wrong), "zero": 0.0, "nan": None}[undefined]
    precision = counts.mask_matched / counts.mask if counts.mask else otherwise
    recall = counts.truth_matched / counts.truth if counts.truth else otherwise
    if not counts.mask and not counts.truth:
        return precision, recall, otherwise
    above = 2 * counts.mask_matched * counts.truth_matched
    below = counts.mask_matched * counts.truth + counts.truth_matched * counts.mask
    return precision, recall, above / below if above else 0.0


@kernel
def _is_annotated(value: Any) -> Any:
    return value == TRUTH_BACKGROUND or value == TRUTH_VESSEL  # noqa: PLR1714  # a set costs the compiler much


@kernel
def _count_voxels(mask: Label, truth: Label) -> tuple[int, int]:
    """How many voxels are annotated, and how many of them are vessel in one only."""
    annotated = wrong = 0
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            known = _is_annotated(truth[y, x])
            annotated += known
            wrong += known & ((mask[y, x] != 0) != (truth[y, x] == TRUTH_VESSEL))
    return annotated, wrong


@kernel
def _mark_vessels(mask: Label, truth: Label, vessels: NDArray[np.bool_]) -> None:
    """Mark the annotated vessels of a mask."""
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            vessels[y, x] = _is_annotated(truth[y, x]) & (mask[y, x] != 0)


@kernel
def _mark_outlines(mask: Label, truth: Label, first: int, lines: Label) -> None:
    """Mark the outlines by their bits, in the rows from ``first`` on."""
    height, width = mask.shape
    for row in range(lines.shape[0]):
        y = first + row
        for x in range(width):
            lines[row, x] = 0
            vessel = truth[y, x] == TRUTH_VESSEL
            if not (vessel or (mask[y, x] != 0 and truth[y, x] == TRUTH_BACKGROUND)):
                continue
            by_mask = by_truth = False
            for down, right in ((-1, 0), (0, -1), (0, 1), (1, 0)):
                if 0 <= y + down < height and 0 <= x + right < width:
                    beside = truth[y + down, x + right]
                    by_mask |= _is_annotated(beside) and mask[y + down, x + right] == 0
                    by_truth |= beside == TRUTH_BACKGROUND
            if by_mask and mask[y, x] != 0:
                lines[row, x] |= _OF_MASK
            if by_truth and vessel:
                lines[row, x] |= _OF_TRUTH


@kernel
def _measure_rows(lines: Label, bit: int, rows: Label) -> None:
    """Rows between each voxel and the nearest of an outline in its column, above or below."""
    height, width = lines.shape
    for y in range(height):
        for x in range(width):
            before = rows[y - 1, x] if y else np.uint8(_FAR)
            rows[y, x] = 0 if lines[y, x] & bit else before + np.uint8(before < _FAR)
    for y in range(height - 2, -1, -1):
        for x in range(width):
            after = rows[y + 1, x]
            rows[y, x] = min(rows[y, x], after + np.uint8(after < _FAR))


@kernel
def _count_matches(lines: Label, bit: int, rows: Label, heights: NDArray[np.int64]) -> tuple[int, int]:
    """Voxels of an outline, and how many of them have one of the other in the disk around them.

    ``heights`` are those of the disk, from its middle to the right, and ``rows`` those to the other outline.
    """
    count = matched = 0
    for y in range(lines.shape[0]):
        for x in range(lines.shape[1]):
            if lines[y, x] & bit:
                count += 1
                for step in range(heights.size):
                    left, right = x - step, x + step
                    if (left >= 0 and rows[y, left] <= heights[step]) or (
                        right < lines.shape[1] and rows[y, right] <= heights[step]
                    ):
                        matched += 1
                        break
    return count, matched
