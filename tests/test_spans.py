"""Spans of planes and slabs: the voxels that they were found in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import ShapeMismatchError
from pipeline.kernels.spans import Spans, complement, find_spans, paint, stack

quick = settings(max_examples=60, deadline=None)  # a kernel may be compiled in the first example


@st.composite
def masks(draw: st.DrawFn, longest: int = 5) -> NDArray[np.bool_]:
    shape = draw(st.tuples(st.integers(1, longest), st.integers(1, longest), st.integers(1, 2 * longest)))
    share, seed = draw(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9])), draw(st.integers(0, 2**32))
    return np.random.default_rng(seed).random(shape) < share


def spans_of(mask: NDArray[Any]) -> Spans:
    return stack([find_spans(plane) for plane in mask])


def painted(spans: Spans) -> NDArray[np.bool_]:
    out = np.full(spans.shape, 7, np.uint8)
    for z, plane in enumerate(out):
        paint(spans, z, plane)
    assert set(np.unique(out)) <= {0, 255}
    return out == 255


def test_spans_of_a_plane() -> None:
    plane = np.array([[255, 255, 0, 255], [0, 0, 0, 0], [0, 255, 255, 0]], np.uint8)
    spans = find_spans(plane)
    assert spans.rows.tolist() == [0, 2, 2, 3]
    assert list(zip(spans.starts.tolist(), spans.stops.tolist(), strict=True)) == [(0, 2), (3, 4), (1, 3)]
    assert spans.shape == (1, 3, 4)


@pytest.mark.parametrize("width", [1, 7, 8, 63, 64, 65, 128, 191, 512])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("dtype", ["bool", "uint8"])
def test_planes_are_painted_as_they_were(width: int, share: float, dtype: str) -> None:
    plane = np.random.default_rng(width).random((5, width)) < share
    spans = find_spans(plane if dtype == "bool" else plane.astype(np.uint8) * 255)
    np.testing.assert_array_equal(painted(spans)[0], plane)
    assert (spans.starts < spans.stops).all()
    for row in range(5):  # they are the longest
        inside = slice(spans.rows[row], spans.rows[row + 1])
        assert (spans.starts[inside][1:] > spans.stops[inside][:-1]).all()


def test_a_plane_that_is_part_of_another() -> None:
    plane = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (6, 300))
    np.testing.assert_array_equal(painted(find_spans(plane[1::2, 5:69]))[0], plane[1::2, 5:69] == 255)


def test_not_annotated_is_no_vessel() -> None:
    assert find_spans(np.array([[127, 128, 0, 255] * 16], np.uint8)).starts.tolist() == [*range(1, 64, 2)]


def test_a_row_may_be_as_wide_as_two_bytes_tell() -> None:
    plane = np.ones((1, 2**16 - 1), np.bool_)
    assert find_spans(plane).stops.tolist() == [2**16 - 1]
    with pytest.raises(ShapeMismatchError, match="got 65536 voxels in a row, at most 65535 can have spans"):
        find_spans(np.ones((1, 2**16), np.bool_))


@quick
@given(mask=masks())
def test_the_complement_is_what_is_left(mask: NDArray[np.bool_]) -> None:
    np.testing.assert_array_equal(painted(complement(spans_of(mask))), ~mask)
    np.testing.assert_array_equal(painted(complement(complement(spans_of(mask)))), mask)


@quick
@given(mask=masks(), cuts=st.sets(st.integers(1, 4)))
def test_slabs_are_stacked(mask: NDArray[np.bool_], cuts: set[int]) -> None:
    parts = [part for part in np.split(mask, sorted(cuts)) if len(part)]
    np.testing.assert_array_equal(painted(stack([spans_of(part) for part in parts])), mask)
