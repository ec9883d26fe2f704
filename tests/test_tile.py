"""The work on one tile: against SciPy, scikit-image and NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter
from skimage.filters import threshold_otsu
from skimage.io import imread

from pipeline.histogram import otsu_level
from pipeline.tile import TileRule, segment_tile

TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    side=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(["uint8", "uint16"]),
    window=st.sampled_from([(1, 1, 1), (1, 3, 3), (1, 5, 5), (3, 3, 3), (1, 7, 7)]),
    invert=st.booleans(),
    traced=st.booleans(),
    around=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_segment_tile_equals_the_slow_way(
    seed: int,
    side: tuple[int, int],
    dtype: str,
    window: tuple[int, int, int],
    invert: bool,
    traced: bool,
    around: tuple[int, int],
) -> None:
    rng = np.random.default_rng(seed)
    top = int(np.iinfo(dtype).max)
    (before, after), (height, width) = around, side
    stack = rng.integers(0, top + 1, (window[0], before + height + after, before + width + after), dtype=dtype)
    truth = rng.choice(np.array([0, 127, 255], np.uint8), side) if traced else None
    mask, table = np.empty(side, np.uint8), np.empty((3, top + 1), np.uint32)
    level = segment_tile(stack, (before, before), truth, mask, table, TileRule(window, invert, otsu_level))
    filtered = median_filter(top - stack if invert else stack, window, mode="reflect")[window[0] // 2]
    filtered = filtered[before : before + height, before : before + width]
    assert np.array_equal(mask, np.where(filtered > level, 255, 0))
    classes = np.full(side, 2) if truth is None else np.select([truth == 0, truth == 255], [0, 1], 2)
    expected = np.zeros_like(table)
    np.add.at(expected, (classes, filtered), 1)
    assert np.array_equal(table, expected)


@pytest.mark.skipif(not TILE.is_dir(), reason="the real tile is not at hand")
def test_real_tile_has_its_published_mask() -> None:
    image, truth = imread(TILE / "grayscale.png"), imread(TILE / "groundtruth.png")
    mask, table = np.empty_like(image), np.empty((3, 256), np.uint32)
    assert segment_tile(image[None], (0, 0), truth, mask, table, TileRule((1, 3, 3), True, otsu_level)) == 79
    filtered = median_filter(255 - image, 3)
    assert threshold_otsu(filtered) == 79
    assert np.array_equal(mask > 0, filtered > 79)
