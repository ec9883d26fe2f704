"""Voxels above the median of their window: by NumPy's medians of all windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pipeline.kernels.sliding import mark_above_medians


def marked(plane: NDArray[Any], size: int, offset: float) -> NDArray[np.uint8]:
    out = np.full(plane.shape, 7, np.uint8)
    rows, columns = (np.pad(np.arange(length), size // 2, mode="symmetric") for length in plane.shape)
    mark_above_medians(plane, rows, columns, offset, out)
    return out


def expected(plane: NDArray[Any], size: int, offset: float) -> NDArray[np.int64]:
    windows = sliding_window_view(np.pad(plane, size // 2, mode="symmetric"), (size, size))
    return 255 * (plane > np.median(windows, axis=(2, 3)) - offset)


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(["uint8", "uint16"]),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 60)),
    size=st.sampled_from([1, 3, 5, 17, 33]),
    levels=st.sampled_from([2, 15, 40, 256]),
    offset=st.sampled_from([0.0, 0.5, -3.25]),
    seed=st.integers(0, 2**32 - 1),
)
def test_voxels_are_marked_as_numpy_finds_medians(
    dtype: str, shape: tuple[int, int], size: int, levels: int, offset: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # The median goes from block to block of levels, and comes back to one that it left a few columns or long before.
    ramp = np.abs(np.sin(np.arange(shape[1]) / 5)) * (256 - levels)
    plane = (rng.integers(0, levels, shape) + ramp).astype(dtype) * (np.iinfo(dtype).max // 255)
    np.testing.assert_array_equal(marked(plane, size, offset), expected(plane, size, offset))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_as_many_voxels_of_one_level_as_there_can_be(dtype: str) -> None:
    plane = np.full((3, 5), np.iinfo(dtype).max, dtype)
    plane[1, 2] = 0
    np.testing.assert_array_equal(marked(plane, 999, 0.5), np.where(plane > 0, 255, 0))
