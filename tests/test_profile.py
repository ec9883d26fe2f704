"""Profiles over the slices against the numbers of each tile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.findings.census import NOT_COUNTED, Census
from pipeline.findings.profile import profile_of
from pipeline.geometry import Box, Grid
from pipeline.kernels.confusion import SCORES, Counts, scores
from pipeline.storage.tables import Status

SHAPE = (4, 2, 3)


@pytest.fixture
def tiles() -> Census:
    """Tiles of which those of slice 3 are not done, and those of slice 1 are not annotated."""
    rng = np.random.default_rng(4)
    grid = Grid((4, 20, 30), (1, 10, 10))
    counts = rng.integers(0, 20, (*SHAPE, 4))
    counts[[1, 3]] = 0
    done = np.broadcast_to(np.arange(4)[:, None, None] < 3, SHAPE)
    level = np.where(done, rng.integers(0, 256, SHAPE), np.nan)
    level[0, 1] = np.nan
    return Census(
        volume=Path("brain.zarr"), name="otsu", truth="t", grid=grid, tiles=Box.whole(SHAPE),
        status=np.where(done, Status.DONE, Status.PENDING).astype(np.uint8), done=done, voxels=np.full(SHAPE, 100),
        level=level, signal=np.zeros(SHAPE, np.uint8), vessel=np.where(done, rng.integers(0, 100, SHAPE), NOT_COUNTED),
        counts=counts, annotated=counts.sum(axis=-1), quality=None, seam=np.zeros_like(counts),
    )  # fmt: skip


def test_slices_are_sums_of_tiles(tiles):
    found = profile_of(tiles)
    assert not found.where_annotated
    for z in range(3):
        known = tiles.level[z][np.isfinite(tiles.level[z])]
        assert (found.low[z], found.middle[z], found.high[z]) == (known.min(), np.median(known), known.max())
        assert found.vessel[z] == tiles.vessel[z].sum() / 600
    for z in (0, 2):
        counts = Counts(*tiles.counts[z].sum(axis=(0, 1)).tolist())
        for name in SCORES:
            assert found.score(name)[z] == pytest.approx(getattr(scores(counts), name), abs=1e-14)
        assert found.truth[z] == (counts.tp + counts.fn) / counts.total
    for values in (found.score("mcc"), found.truth):
        np.testing.assert_array_equal(np.isnan(values), [False, True, False, True])
    assert all(np.isnan(values[3]) for values in (found.low, found.middle, found.high, found.vessel))


def test_run_that_did_not_count_its_vessels_has_those_of_the_annotated_voxels(tiles):
    vessel = tiles.vessel.copy()
    vessel[0, 0, 0] = NOT_COUNTED
    found = profile_of(replace(tiles, vessel=vessel))
    tp, fp, _, _ = tiles.counts[0].sum(axis=(0, 1))
    assert found.where_annotated
    assert found.vessel[0] == (tp + fp) / tiles.counts[0].sum()
    assert np.isnan(found.vessel[1])


def test_without_a_truth_there_are_no_scores(tiles):
    vessel = tiles.vessel.copy()
    vessel[0, 0, 0] = NOT_COUNTED
    found = profile_of(replace(tiles, truth=None, counts=None, vessel=vessel))
    assert not found.where_annotated
    assert np.isnan(found.scores).all()
    assert np.isnan(found.truth).all()
    assert found.vessel[0] == vessel[0].ravel()[1:].sum() / 500
