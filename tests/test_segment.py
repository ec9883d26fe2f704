"""The work on one tile and one block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter
from skimage.filters import threshold_otsu
from skimage.io import imread

from pipeline import segment
from pipeline.config import Recipe
from pipeline.histogram import otsu_level
from pipeline.runs import run
from pipeline.segment import Column, Job, Scratch, TileRule, run_block, segment_tile
from pipeline.tables import RunTables, Status
from tests.builders import build_volume, run_config

TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    side=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(["uint8", "uint16"]),
    window=st.sampled_from([(1, 1, 1), (1, 3, 3), (1, 5, 5)]),
    invert=st.booleans(),
    traced=st.booleans(),
)
def test_segment_tile_equals_the_slow_way(
    seed: int, side: tuple[int, int], dtype: str, window: tuple[int, int, int], invert: bool, traced: bool
) -> None:
    rng = np.random.default_rng(seed)
    top = int(np.iinfo(dtype).max)
    stack = rng.integers(0, top + 1, (1, *side), dtype=dtype)
    truth = rng.choice(np.array([0, 127, 255], np.uint8), side) if traced else None
    mask, table = np.empty(side, np.uint8), np.empty((3, top + 1), np.uint32)
    level = segment_tile(stack, (0, 0), truth, mask, table, TileRule(window, invert, otsu_level))
    filtered = median_filter(top - stack if invert else stack, window, mode="reflect")[0]
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


def test_scratch_reuses_its_memory_and_grows() -> None:
    scratch = Scratch()
    large = scratch.array("a", (10, 10), np.uint16)
    small = scratch.array("a", (5,), np.uint8)
    assert np.shares_memory(large, small)
    assert small.flags.c_contiguous
    assert not np.shares_memory(large, scratch.array("b", (5,), np.uint8))
    assert scratch.array("a", (1000,), np.float64).shape == (1000,)


def test_block_of_an_absent_slice_counts_nothing(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (3, 64, 600), absent=(1,))
    run(run_config(volume))
    record = run_block(Job(volume.path, "otsu", Recipe(), "groundtruth", "token"), (1, 0, 0))
    assert record.shape == (1, 1, 2, len(Column))
    assert record[..., Column.ABSENT].all()
    assert record.sum() == 2


@pytest.mark.parametrize("which", ["image", "truth"])
def test_inputs_that_change_meanwhile_fail_the_block(
    tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 64, 64))
    ledger = volume.slices if which == "image" else volume.truth("groundtruth")[1]

    def change(*arguments: object) -> float:
        ledger.record(0, np.full((1, 1), 12345, np.uint64), "changed.png", 1)
        return 0.0

    monkeypatch.setattr(segment, "segment_tile", change)
    summary = run(run_config(volume))
    assert summary.tiles.failed == 1
    assert "changed while it was worked on" in summary.failures[0][1]
    tables = RunTables(volume, "otsu")
    assert tables.status.read().tolist() == [[[Status.FAILED]]]
    assert not tables.mask_key.read().any()


def test_record_that_was_not_finished_vouches_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 64, 64))
    run(run_config(volume))
    job = Job(volume.path, "otsu", Recipe(tile=64), "groundtruth", "token")  # another recipe: its keys do not match

    def die(*arguments: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(segment, "segment_tile", die)
    with pytest.raises(KeyboardInterrupt):
        run_block(job, (0, 0, 0))
    tables = RunTables(volume, "otsu")
    assert tables.status.read().tolist() == [[[Status.PENDING]]]
    assert not tables.mask_key.read().any()
    assert not tables.truth("groundtruth").counts_key.read().any()


def test_failed_filter_keeps_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))

    def fail(*arguments: object) -> float:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(segment, "segment_tile", fail)
        assert [reason for _, reason in run(run_config(volume)).failures] == ["ZeroDivisionError: a bug"] * 2
    assert run(run_config(volume)).failures == []
