"""The work on one tile and one block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import segment
from pipeline.config import Recipe
from pipeline.runs import run
from pipeline.segment import Column, Job, run_block
from pipeline.tables import RunTables, Status
from tests.builders import build_volume, run_config

TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"


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
