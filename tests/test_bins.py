"""Stored bins of grey levels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ShapeMismatchError
from pipeline.kernels import bins


@settings(max_examples=30, deadline=None)
@given(
    ends=st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(sorted),
    narrow=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rebin(ends, narrow, seed):
    low, high = ends
    high = min(high, low + 300) if narrow else high
    tables = np.random.default_rng(seed).integers(0, 5, (2, 3, 65536), np.uint32)
    bin_of = np.clip((np.arange(65536) - low) * 256 // (high - low + 1), 0, 255)
    out = np.full((2, 3, 256), 77, np.uint32)
    bins.rebin(tables, (low, high), out)
    np.testing.assert_array_equal(out, [[np.bincount(bin_of, row, 256) for row in table] for table in tables])


@given(low=st.integers(0, 65535), width=st.integers(1, 65536), index=st.integers(-1, 255))
def test_bin_top_is_the_last_level_of_a_bin(low, width, index):
    high = min(low + width - 1, 65535)
    grey = np.arange(low, high + 1)
    below = grey[(grey - low) * 256 // (high - low + 1) <= index]
    assert bins.bin_top(index, (low, high)) == (-1 if index < 0 else below[-1] if below.size else low - 1)


def test_rebin_leaves_256_levels_alone():
    tables = np.arange(1536, dtype=np.uint32).reshape(2, 3, 256)
    out = np.zeros_like(tables)
    bins.rebin(tables, (10, 20), out)
    np.testing.assert_array_equal(out, tables)


@pytest.mark.parametrize(
    ("window", "shape", "error", "message"),
    [
        ((9, 8), (1, 3, 256), ValueError, "window: got 9 to 8, expected the lower level first"),
        ((0, 8), (1, 3, 255), ShapeMismatchError, r"out: got shape \(1, 3, 255\), expected \(1, 3, 256\)"),
        ((0, 8), (2, 3, 256), ShapeMismatchError, r"out: got shape \(2, 3, 256\), expected \(1, 3, 256\)"),
    ],
    ids=["window", "levels", "tiles"],
)
def test_rebin_refuses(window, shape, error, message):
    with pytest.raises(error, match=message):
        bins.rebin(np.zeros((1, 3, 65536), np.uint32), window, np.zeros(shape, np.uint32))


def test_kernel_as_plain_python():
    rows = np.arange(60, dtype=np.uint32).reshape(3, 20)
    expected, got = np.empty((2, 3, 4), np.uint32)
    bins._rebin(rows, 4, 9, expected)
    bins._rebin.py_func(rows, 4, 9, got)
    np.testing.assert_array_equal(got, expected)
