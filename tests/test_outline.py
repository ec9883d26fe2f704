"""Outlines and centre lines against slow oracles: all pairs of voxels, SciPy's morphology, scikit-image's skeletons."""

from __future__ import annotations

import sys
from dataclasses import astuple
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import distance
from skimage.morphology import skeletonize

from pipeline.errors import ConfigError, MissingInputError, ShapeMismatchError
from pipeline.kernels import outline
from pipeline.kernels.outline import MAX_TOLERANCE, BoundaryF1, ClDice, Matches, boundary_f1, cl_dice

TRUTH_VALUES = [0, 0, 255, 255, 127, 1]
MASK_VALUES = [0, 0, 255, 255, 1, 127]
RULES = ["article", "zero", "nan"]

Plane = NDArray[np.uint8]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Plane, Plane]:
    shape = draw(array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))
    fill = draw(st.sampled_from([None, 0, 255]))
    values = st.sampled_from(TRUTH_VALUES)
    filled = None if fill is None else st.just(np.uint8(fill))
    return (
        draw(arrays(np.uint8, shape, elements=st.sampled_from(MASK_VALUES), fill=filled)),
        draw(arrays(np.uint8, shape, elements=values, fill=filled)),
    )


def vessels(rng: np.random.Generator, shape: tuple[int, int], share: float = 0.2) -> Plane:
    """Blobs of a few voxels."""
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), 2)
    return np.where(smooth > np.quantile(smooth, 1 - share), np.uint8(255), np.uint8(0))


def outline_points(label: NDArray[np.bool_], background: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Voxels of a label beside its background."""
    cross = ndimage.generate_binary_structure(2, 1)
    return np.argwhere(label & ndimage.binary_dilation(background, cross))


def near(points: NDArray[np.int64], others: NDArray[np.int64], tolerance: float) -> int:
    if not len(points) or not len(others):
        return 0
    return int((distance.cdist(points, others).min(axis=1) <= tolerance).sum())


def voxels(mask: Plane, truth: Plane) -> tuple[int, int]:
    known = (truth == 0) | (truth == 255)
    return int(known.sum()), int((known & ((mask != 0) != (truth == 255))).sum())


def expected_outlines(mask: Plane, truth: Plane, tolerance: int) -> Matches:
    known = (truth == 0) | (truth == 255)
    of_mask = outline_points(known & (mask != 0), known & (mask == 0))
    of_truth = outline_points(truth == 255, truth == 0)
    found, matched = near(of_mask, of_truth, tolerance), near(of_truth, of_mask, tolerance)
    return Matches(len(of_mask), found, len(of_truth), matched, *voxels(mask, truth))


def expected_lines(mask: Plane, truth: Plane) -> Matches:
    known = (truth == 0) | (truth == 255)
    marked, vessel = known & (mask != 0), truth == 255
    of_mask, of_truth = skeletonize(marked), skeletonize(vessel)
    found, matched = (of_mask & vessel).sum(), (of_truth & marked).sum()
    return Matches(*map(int, (of_mask.sum(), found, of_truth.sum(), matched)), *voxels(mask, truth))


# counts


@settings(max_examples=150, deadline=None)
@given(planes=pairs(), tolerance=st.integers(0, 6))
def test_outlines_are_those_of_every_pair_of_voxels(planes: tuple[Plane, Plane], tolerance: int) -> None:
    mask, truth = planes
    assert boundary_f1(mask, truth, tolerance).counts == expected_outlines(mask, truth, tolerance)


@pytest.mark.parametrize("tolerance", [0, 1, 2, 5, 10, MAX_TOLERANCE])
@pytest.mark.parametrize("band", [1, 7, 256])
def test_outlines_in_bands(monkeypatch: pytest.MonkeyPatch, band: int, tolerance: int) -> None:
    rng = np.random.default_rng(band)
    mask, truth = vessels(rng, (90, 70), 0.03), vessels(rng, (90, 70), 0.03)
    truth[30:50, 20:40] = 127
    monkeypatch.setattr(outline, "_BAND", band)
    assert boundary_f1(mask, truth, tolerance).counts == expected_outlines(mask, truth, tolerance)


def test_outlines_of_more_rows_than_a_band() -> None:
    rng = np.random.default_rng(8)
    mask, truth = vessels(rng, (600, 40), 0.02), vessels(rng, (600, 40), 0.02)
    assert boundary_f1(mask, truth, 9).counts == expected_outlines(mask, truth, 9)


@settings(max_examples=100, deadline=None)
@given(planes=pairs())
def test_lines_are_those_of_scikit_image(planes: tuple[Plane, Plane]) -> None:
    mask, truth = planes
    assert cl_dice(mask, truth).counts == expected_lines(mask, truth)


def test_lines_of_vessels() -> None:
    rng = np.random.default_rng(9)
    mask, truth = vessels(rng, (300, 200)), vessels(rng, (300, 200))
    truth[rng.random(truth.shape) < 0.01] = 127
    found = cl_dice(mask, truth)
    assert found.counts == expected_lines(mask, truth)
    precision, sensitivity = found.precision, found.sensitivity
    assert precision is not None
    assert sensitivity is not None
    assert found.cl_dice == pytest.approx(2 * precision * sensitivity / (precision + sensitivity), rel=1e-15)


@settings(max_examples=60, deadline=None)
@given(planes=pairs(), other=st.sampled_from([0, 255]), tolerance=st.integers(0, 3))
def test_what_is_not_annotated_counts_nowhere(planes: tuple[Plane, Plane], other: int, tolerance: int) -> None:
    mask, truth = planes
    changed = np.where((truth == 0) | (truth == 255), mask, np.uint8(other))
    assert boundary_f1(changed, truth, tolerance) == boundary_f1(mask, truth, tolerance)
    assert cl_dice(changed, truth) == cl_dice(mask, truth)


@settings(max_examples=60, deadline=None)
@given(planes=pairs(), tolerance=st.integers(0, 3), undefined=st.sampled_from(["article", "nan"]))
def test_a_right_mask_has_nothing_but_ones(planes: tuple[Plane, Plane], tolerance: int, undefined: Any) -> None:
    _, truth = planes
    right = np.where(truth == 255, np.uint8(255), np.uint8(0))
    allowed: set[float | None] = (
        {1.0} if undefined == "article" and ((truth == 0) | (truth == 255)).any() else {1, None}
    )
    for found in (boundary_f1(right, truth, tolerance, undefined), cl_dice(right, truth, undefined)):
        assert set(astuple(found)[:3]) <= allowed


def test_views_are_read_as_they_are() -> None:
    rng = np.random.default_rng(10)
    mask, truth = vessels(rng, (80, 90))[3:60:2, 5:82], vessels(rng, (90, 80)).T[3:60:2, 5:82]
    assert boundary_f1(mask, truth, 2) == boundary_f1(mask.copy(), truth.copy(), 2)
    assert cl_dice(mask, truth) == cl_dice(mask.copy(), truth.copy())


def test_the_edge_of_the_image_is_no_background() -> None:
    truth = np.full((5, 5), 255, np.uint8)
    truth[:, 0] = 0
    assert boundary_f1(truth, truth, 0).counts == Matches(5, 5, 5, 5, annotated=25)


@pytest.mark.parametrize(("apart", "tolerance", "matched"), [(3, 2, 0), (3, 3, 1), (1, 0, 0), (0, 0, 1)])
def test_distances_are_those_of_centres(apart: int, tolerance: int, matched: int) -> None:
    mask, truth = np.zeros((2, 9, 9), np.uint8)
    mask[4, 4] = 255
    truth[4, 4 + apart] = 255
    assert boundary_f1(mask, truth, tolerance).counts.mask_matched == matched
    assert boundary_f1(mask.T, truth.T, tolerance).counts.truth_matched == matched


def test_distances_are_euclidean() -> None:
    mask, truth = np.zeros((2, 9, 9), np.uint8)
    mask[1, 1] = truth[4, 5] = 255  # 3 down and 4 right
    assert [boundary_f1(mask, truth, tolerance).f1 for tolerance in (4, 5)] == [0, 1]


def test_no_voxels_at_all() -> None:
    empty = np.zeros((0, 4), np.uint8)
    assert boundary_f1(empty, empty, 2) == BoundaryF1(None, None, None, Matches())
    assert cl_dice(empty, empty) == ClDice(None, None, None, Matches())


# scores


def plane(*rows: str) -> Plane:
    return np.array([[{".": 0, "#": 255, "?": 127}[voxel] for voxel in row] for row in rows], np.uint8)


@pytest.mark.parametrize("undefined", RULES)
@pytest.mark.parametrize(
    ("mask", "truth", "expected"),
    [
        pytest.param(["..."], ["..."], {"article": (1, 1, 1), "zero": (0, 0, 0), "nan": (None,) * 3}, id="neither"),
        pytest.param(["..."], [".#."], {"article": (0, 0, 0), "zero": (0, 0, 0), "nan": (None, 0, 0)}, id="truth"),
        pytest.param([".#."], ["..."], {"article": (0, 0, 0), "zero": (0, 0, 0), "nan": (0, None, 0)}, id="mask"),
        pytest.param(["#..."], ["...#"], dict.fromkeys(RULES, (0, 0, 0)), id="nothing matched"),
        pytest.param(["#"], ["?"], dict.fromkeys(RULES, (None,) * 3), id="not annotated"),
        pytest.param(
            ["##?.."], ["##?#."], dict.fromkeys(["nan"], (None, 0, 0)), id="no outline beside what is unknown"
        ),
    ],
)
def test_what_is_0_of_0(
    mask: list[str], truth: list[str], expected: dict[str, tuple[Any, ...]], undefined: Any
) -> None:
    if undefined in expected:
        assert astuple(boundary_f1(plane(*mask), plane(*truth), 0, undefined))[:3] == expected[undefined]
    if undefined in expected and "?" not in mask[0]:
        assert astuple(cl_dice(plane(*mask), plane(*truth), undefined))[:3] == expected[undefined]


@pytest.mark.parametrize(("undefined", "score"), [("article", 0), ("zero", 0), ("nan", None)])
def test_a_wrong_mask_without_an_outline_is_not_right(undefined: Any, score: float | None) -> None:
    found = boundary_f1(plane("###"), plane("..."), 1, undefined)
    assert (found.precision, found.recall, found.f1) == (score,) * 3
    assert found.counts == Matches(annotated=3, wrong=3)


def test_scores_of_a_volume_are_of_summed_counts() -> None:
    rng = np.random.default_rng(12)
    slices = [(vessels(rng, (40, 50)), vessels(rng, (40, 50))) for _ in range(3)]
    for each in (lambda pair: boundary_f1(*pair, 1), lambda pair: cl_dice(*pair)):
        found = [each(pair) for pair in slices]
        total = sum((one.counts for one in found), Matches())
        whole = type(found[0]).of(total)
        assert astuple(total) == tuple(np.sum([astuple(one.counts) for one in found], axis=0))
        assert whole.precision == sum(one.counts.mask_matched for one in found) / total.mask


def test_scores_of_a_whole_volume_are_rounded_once() -> None:
    counts = Matches(3 * 10**11, 10**11, 7 * 10**11, 10**11 + 1, 10**12, 5)
    third, seventh = Fraction(1, 3), Fraction(10**11 + 1, 7 * 10**11)
    found = BoundaryF1.of(counts)
    assert (found.precision, found.recall) == (float(third), float(seventh))
    assert found.f1 == float(2 * third * seventh / (third + seventh))


# what is wrong


@pytest.mark.parametrize("score", [lambda mask, truth: boundary_f1(mask, truth, 1), cl_dice], ids=["outline", "line"])
@pytest.mark.parametrize(
    ("mask", "truth", "message"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), r"mask: got shape \(2, 3\), the truth has \(3, 2\)"),
        (np.zeros((2, 3), bool), np.zeros((2, 3), np.uint8), r"mask: got bool of shape \(2, 3\), expected uint8"),
        (np.zeros((2, 3), np.uint8), np.zeros((1, 2, 3), np.uint8), r"truth: got uint8 of shape \(1, 2, 3\)"),
    ],
    ids=["shape", "dtype", "axes"],
)
def test_planes_that_do_not_fit(score: Any, mask: Plane, truth: Plane, message: str) -> None:
    with pytest.raises(ShapeMismatchError, match=message):
        score(mask, truth)


@pytest.mark.parametrize("tolerance", [-1, MAX_TOLERANCE + 1])
def test_tolerances_that_are_none(tolerance: int) -> None:
    with pytest.raises(ConfigError, match=f"tolerance: got {tolerance}, expected 0 to 100 voxels"):
        boundary_f1(plane("#."), plane("#."), tolerance)


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.morphology", None)
    assert boundary_f1(plane("#."), plane("#."), 0).f1 == 1
    with pytest.raises(MissingInputError, match=r"needs scikit-image .*; do `pip install scikit-image`"):
        cl_dice(plane("#."), plane("#."))
