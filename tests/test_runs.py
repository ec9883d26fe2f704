"""One run from start to end: what it leaves behind, and what it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.errors import LockedError, SchedulerError
from pipeline.findings.summary import describe
from pipeline.segmentation.runs import run
from pipeline.storage.store import read_document
from pipeline.storage.tables import RunTables, run_lock, run_names
from pipeline.storage.volume import Volume, beside
from tests.builders import build_volume, run_config


def test_run_leaves_only_zarr_inside_and_no_staging_beside(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    run(run_config(volume))
    foreign = [
        path.relative_to(volume.path)
        for path in volume.path.rglob("*")
        if path.is_file() and path.name != "zarr.json" and "c" not in path.relative_to(volume.path).parts
    ]
    assert foreign == []
    assert {path.suffix for path in tmp_path.iterdir()} == {".zarr", ".lock"}


def test_attempts_are_appended_with_who_and_what(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    run(run_config(volume, region="z=0:1"))
    run(run_config(volume))
    first, second = RunTables(volume, "otsu").journal.attempts()
    assert first["region"] == "z=0:1,y=0:64,x=0:64"
    assert (first["ending"], second["ending"]) == ("finished", "finished")
    assert set(first["packages"]) >= {"kesm-pipeline", "zarr", "numpy", "python"}
    assert {"host", "user", "command", "started", "ended"} <= set(first)


def test_run_of_what_is_done_leaves_every_byte_as_it_was(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (3, 600, 600), absent=(1,))
    first = run(run_config(volume))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    again = run(run_config(volume))
    assert (again.counts, again.macro, again.levels) == (first.counts, first.macro, first.levels)
    assert again.tiles == replace(first.tiles, reused=first.tiles.done)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_mask_says_how_it_was_made(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    summary = run(run_config(volume))
    document = read_document(volume.path / "labels" / "otsu")
    assert document is not None
    provenance = document["kesm"]["provenance"]
    assert provenance == RunTables(volume, "otsu").journal.latest_attempt()
    assert provenance["recipe"] == RunTables(volume, "otsu").recipe
    assert provenance["counts"] == summary.document()["counts"]
    assert provenance["inputs"]["image"] == volume.slices.fingerprint()
    assert document["ome"]["image-label"]


def test_staging_of_other_runs_that_died_is_swept(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 64, 64))
    dead, alive = (beside(volume.path, "staging") / f"run-{name}" / "half" for name in ("dead", "alive"))
    for left in (dead, alive):
        left.mkdir(parents=True)
    with run_lock(volume, "alive"):
        run(run_config(volume))
    assert not dead.exists()
    assert alive.exists()


def test_second_run_of_a_name_is_refused_and_another_name_is_not(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 64, 64))
    with FileLock(beside(volume.path, "run-otsu.lock")):
        with pytest.raises(LockedError, match="run 'otsu' is being worked on by another process"):
            run(run_config(volume))
        assert run(run_config(volume, "other")).tiles.done == 1


def test_remains_of_a_dead_run_are_swept(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 64, 64))
    volume.create_mask("otsu")  # died before its tables were there
    left = beside(volume.path, "staging") / "run-otsu" / "half"
    left.mkdir(parents=True)
    assert "otsu" not in volume.labels()
    assert run(run_config(volume)).tiles.done == 1
    assert "otsu" in volume.labels()
    assert not beside(volume.path, "staging").exists()


def test_run_that_cannot_start_creates_nothing(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 64, 64))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SchedulerError, match="no Dask scheduler answers"):
        run(run_config(volume, cluster={"engine": "address", "address": "tcp://127.0.0.1:1"}))
    assert sorted(tmp_path.rglob("*")) == before
    assert run_names(volume) == []


def test_what_was_removed_by_hand_stops_no_other_run(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    expected = run(run_config(volume))
    for folder in ("labels", "tiles", "runs"):
        run(run_config(volume, "gone"))
        shutil.rmtree(volume.path / folder / "gone")
        assert run(run_config(volume)).tiles.reused == 2
        if folder == "labels":
            again = run(run_config(volume, "gone"))  # its mask alone is made again
            assert (again.tiles.reused, again.counts) == (0, expected.counts)
        for rest in ("labels", "tiles", "runs"):
            shutil.rmtree(volume.path / rest / "gone", ignore_errors=True)
        assert "gone" not in volume.labels()
    shutil.rmtree(volume.path / "labels" / "groundtruth")
    document, summaries = describe(Volume(volume.path))
    assert [label["name"] for label in document["labels"]] == ["otsu"]
    assert [summary.truth for summary in summaries] == [None]
