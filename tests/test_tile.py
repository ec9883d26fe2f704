"""The work on tiles: against SciPy, scikit-image and NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter
from skimage.filters import threshold_otsu
from skimage.io import imread

from pipeline.kernels.histogram import otsu_levels
from pipeline.kernels.median import median_tile
from pipeline.kernels.quality import measure_tables, measure_voxels
from pipeline.segmentation.denoise import denoiser
from pipeline.segmentation.tile import TileRule, count_vessels, segment_tiles
from pipeline.settings.recipe import Recipe

TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    side=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    tile=st.sampled_from([7, 16, 40]),
    dtype=st.sampled_from(["uint8", "uint16"]),
    window=st.sampled_from([(1, 1, 1), (1, 3, 3), (1, 5, 5), (3, 3, 3), (1, 7, 7)]),
    invert=st.booleans(),
    traced=st.booleans(),
    around=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_segment_tiles_equals_the_slow_way(
    seed: int,
    side: tuple[int, int],
    tile: int,
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
    mask = np.empty(side, np.uint8)
    bins = 0, top

    def denoise(planes, start, out):
        median_tile(planes, start, window, invert, out)

    found = segment_tiles(stack, (before, before), truth, mask, TileRule(tile, denoise, otsu_levels, bins))
    filtered = median_filter(top - stack if invert else stack, window, mode="reflect")[window[0] // 2]
    filtered = filtered[before : before + height, before : before + width]
    classes = np.full(side, 2) if truth is None else np.select([truth == 0, truth == 255], [0, 1], 2)
    assert found.threshold.shape == (-(-height // tile), -(-width // tile))
    for row, column in np.ndindex(found.threshold.shape):
        cut = np.s_[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
        values, labels = filtered[cut], classes[cut]
        level = found.threshold[row, column]
        assert level == otsu_levels(np.array([[np.bincount(values.ravel(), minlength=top + 1)] * 3], np.uint32))[0]
        assert np.array_equal(mask[cut], np.where(values > level, 255, 0))
        assert found.vessel[row, column] == count_vessels(mask[cut], tile).sum() == np.count_nonzero(values > level)
        raw = stack[window[0] // 2, before : before + height, before : before + width][cut]
        measures = measure_voxels(raw, (0, 0), raw.shape, tile)
        measure_tables(
            np.array([[np.bincount(values.ravel(), minlength=top + 1)] + [np.zeros(top + 1)] * 2], np.uint32), measures
        )
        np.testing.assert_array_equal(found.quality[row, column], measures[0].astype(np.float32))
        expected = np.zeros((3, 256), np.uint32)
        np.add.at(expected, (labels, values.astype(np.int64) * 256 // (top + 1)), 1)
        assert np.array_equal(found.histogram[row, column], expected)
        sides = (values > level, values <= level)
        counts = [np.count_nonzero(side & (labels == label)) for side in sides for label in (1, 0)]
        assert found.counts[row, column].tolist() == counts


@pytest.mark.skipif(not TILE.is_dir(), reason="the real tile is not at hand")
def test_real_tile_has_its_published_mask() -> None:
    image, truth = imread(TILE / "grayscale.png"), imread(TILE / "groundtruth.png")
    mask = np.empty_like(image)
    rule = TileRule(512, denoiser(Recipe()), otsu_levels, (0, 255))
    found = segment_tiles(image[None], (0, 0), np.where(truth > 0, 255, 0).astype(np.uint8), mask, rule)
    filtered = median_filter(255 - image, 3)
    assert found.threshold.tolist() == [[threshold_otsu(filtered)]] == [[79]]
    assert found.counts.tolist() == [[[5595, 122, 1863, 254564]]]
    assert np.array_equal(mask > 0, filtered > 79)
