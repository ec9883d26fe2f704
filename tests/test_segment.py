"""The work on one tile and one block."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import LockedError, MemoryLimitError
from pipeline.findings.summary import summarise
from pipeline.geometry import Box
from pipeline.segmentation import segment
from pipeline.segmentation.job import Job
from pipeline.segmentation.record import Column
from pipeline.segmentation.runs import run
from pipeline.segmentation.segment import run_block
from pipeline.segmentation.tile import TileTables, segment_tiles
from pipeline.settings.recipe import Recipe
from pipeline.storage.store import ShardedArray
from pipeline.storage.table import Table
from pipeline.storage.tables import RunTables, Status
from tests.builders import build_volume, run_config
from tests.command import kesm

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

    def change(*arguments: Any) -> TileTables:
        ledger.record(0, np.full((1, 1), 12345, np.uint64), "changed.png", 1)
        return segment_tiles(*arguments)

    monkeypatch.setattr(segment, "segment_tiles", change)
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

    monkeypatch.setattr(segment, "segment_tiles", die)
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
        patch.setattr(segment, "segment_tiles", fail)
        assert [reason for _, reason in run(run_config(volume)).failures] == ["ZeroDivisionError: a bug"] * 2
    assert run(run_config(volume)).failures == []


def test_mask_shard_that_is_lost_is_made_again(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    run(run_config(volume))
    mask = volume.label("otsu").full
    before = mask.read(Box.whole(volume.shape))
    mask.shard_file((1, 0, 0)).unlink()
    again = run(run_config(volume))
    assert (again.tiles.done, again.tiles.reused) == (2, 1)
    assert np.array_equal(mask.read(Box.whole(volume.shape)), before)


def test_damaged_truth_costs_no_mask(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 64, 64))
    run(run_config(volume, truth=None))
    before = volume.label("otsu").full.read(Box.whole(volume.shape))
    shard = volume.truth("groundtruth")[0].full.shard_file((0, 0, 0))
    content = shard.read_bytes()
    shard.unlink()
    assert run(run_config(volume)).tiles.failed == 1
    assert np.array_equal(volume.label("otsu").full.read(Box.whole(volume.shape)), before)
    assert summarise(volume, "otsu", None).tiles.done == 1
    shard.write_bytes(content)
    mended = run(run_config(volume))
    assert (mended.tiles.done, mended.tiles.reused, list(mended.failures)) == (1, 0, [])


def test_task_that_was_overtaken_records_nothing(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 64, 64))
    done = run(run_config(volume))
    late = Job(volume.path, "otsu", Recipe(tile=64), "groundtruth", "its staging is swept")
    with pytest.raises(LockedError, match="another process has taken over"):
        run_block(late, (0, 0, 0))
    tables = RunTables(volume, "otsu")
    assert not tables.truth("groundtruth").counts_key.read().any()
    assert list(tables.journal.failures(None)) == []
    assert run(run_config(volume)).counts == done.counts


@pytest.mark.parametrize("raised", [MemoryError(), MemoryLimitError("planned too much")], ids=["system", "ours"])
def test_run_without_memory_ends_with_one_message_and_goes_on_later(
    tmp_path: Path, raised: MemoryError, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 64, 64))

    def fail(*arguments: object) -> TileTables:
        raise raised

    monkeypatch.setattr(segment, "segment_tiles", fail)
    message = str(raised) or r"brain\.zarr, z=0:1,y=0:64,x=0:64: there is no memory left for this block; run again with"
    with pytest.raises(MemoryLimitError, match=message):
        run(run_config(volume))
    assert re.search(message, kesm("run", volume.path, "--name", "otsu").message)
    monkeypatch.undo()
    assert run(run_config(volume)).tiles.done == 1


@pytest.mark.parametrize("stop", range(1, 14))
def test_run_that_dies_at_any_write_goes_on(tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 600, 64))
    expected = run(run_config(volume, "reference"))
    run(run_config(volume))
    tables = RunTables(volume, "otsu")
    tables.mask_key.write((), 0)  # everything is to be done again
    writes = []

    def die(write: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: object, **options: object) -> None:
            writes.append(1)
            if len(writes) == stop:
                raise KeyboardInterrupt
            return write(*arguments, **options)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(Table, "write", die(Table.write))
        patch.setattr(ShardedArray, "publish", die(ShardedArray.publish))
        with suppress(KeyboardInterrupt):
            run(run_config(volume))
    assert len(writes) >= stop
    summary = run(run_config(volume))
    assert (summary.counts, summary.levels, summary.macro) == (expected.counts, expected.levels, expected.macro)
    assert summarise(volume, "otsu", "groundtruth").tiles.done == 2
    for table in ("threshold", "status", "mask_key", "shard_digest", "pyramid_key"):
        assert np.array_equal(getattr(tables, table).read(), getattr(RunTables(volume, "reference"), table).read())
    for ours, theirs in zip(volume.label("otsu").levels, volume.label("reference").levels, strict=True):
        assert np.array_equal(ours.read(Box.whole(ours.shape)), theirs.read(Box.whole(ours.shape)))
