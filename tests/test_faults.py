"""What goes wrong around a run: damaged tables, a store that does not answer, no rights, no file handles, no space."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.errors import DamageError, StorageError, UnavailableError
from pipeline.findings.summary import summarise
from pipeline.geometry import Box
from pipeline.segmentation.budget import PROCESS_BYTES, smallest_block, task_bytes
from pipeline.segmentation.runs import run
from pipeline.settings.recipe import Recipe
from pipeline.storage import disk, store
from pipeline.storage.extent import resize_volume
from pipeline.storage.ledger import Ledger
from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume
from tests.builders import MAPPING, build_volume, run_config
from tests.crashing import assert_same_arrays

SHAPE = (3, 600, 600)
Damage = Callable[[Path], None]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def remove(file: Path) -> None:
    file.unlink()


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = build_volume(tmp_path / "brain.zarr", SHAPE)
    run(run_config(volume))
    run(run_config(volume, "reference"))
    return volume


TABLES = {
    "status": "tiles/otsu/status/c/0/0/0",
    "mask_key": "tiles/otsu/mask_key/c/0/0/0",
    "threshold": "tiles/otsu/threshold/c/0/0/0",
    "shard_digest": "tiles/otsu/shard_digest/c/0/0/0",
    "counts": "tiles/otsu/truth/groundtruth/counts/c/0/0/0/0",
    "counts_key": "tiles/otsu/truth/groundtruth/counts_key/c/0/0/0",
}


@pytest.mark.parametrize("damage", [flip, truncate], ids=["flipped", "truncated"])
@pytest.mark.parametrize("table", TABLES)
def test_damaged_table_fails_its_block_by_name_and_is_mended_by_the_next_run(
    volume: Volume, table: str, damage: Damage
) -> None:
    damage(volume.path / TABLES[table])
    bad = run(run_config(volume))
    assert (bad.tiles.failed, bad.tiles.reused) == (4, 8)
    ((box, reason),) = bad.failures
    assert str(box) == "z=0:1,y=0:600,x=0:600"
    array, _, chunk = TABLES[table].partition("/c/")
    assert f"{volume.path / array}: chunk c/{chunk} cannot be decoded" in reason
    assert summarise(volume, "otsu", "groundtruth").failures == bad.failures
    mended = run(run_config(volume))
    assert (mended.tiles.failed, mended.tiles.done, list(mended.failures)) == (0, 12, [])
    assert_same_arrays(volume.path, "otsu", "reference")


@pytest.mark.parametrize("table", [*TABLES, "histogram", "mask"])
def test_what_is_missing_is_made_again(volume: Volume, table: str) -> None:
    more = {
        "histogram": "tiles/otsu/truth/groundtruth/histogram/c/0/0/0/0/0",
        "mask": "labels/otsu/0/c/0/0/0",
    }
    remove(volume.path / (TABLES | more)[table])
    again = run(run_config(volume)).tiles
    assert (again.failed, again.done, again.reused) == (0, 12, 8)
    assert_same_arrays(volume.path, "otsu", "reference")


@pytest.mark.parametrize("damage", [flip, truncate, remove], ids=["flipped", "truncated", "missing"])
@pytest.mark.parametrize("record", ["digest/c/1", "shard_digest/c/1/0/0"])
def test_slice_whose_record_is_damaged_is_failed_and_not_absent(volume: Volume, record: str, damage: Damage) -> None:
    file = volume.path / "slices" / "image" / record
    content = file.read_bytes()
    damage(file)
    bad = run(run_config(volume)).tiles
    assert (bad.failed, bad.absent, bad.reused) == (4, 0, 8)
    assert [str(file.parent).startswith(reason.partition(":")[0]) for _, reason in run(run_config(volume)).failures]
    file.write_bytes(content)
    assert run(run_config(volume)).tiles.failed == 0
    assert_same_arrays(volume.path, "otsu", "reference")


@pytest.fixture
def stale(monkeypatch: pytest.MonkeyPatch) -> list[OSError]:
    """Errors with which the storage refuses to read slice 1, one a time, until there are none left."""
    errors: list[OSError] = []
    read = store.read_file

    def refuse(path: Path, buffer: str) -> memoryview:
        if path.parts[-3] == "1" and errors:
            raise errors.pop()
        return read(path, buffer)

    monkeypatch.setattr(store, "read_file", refuse)
    monkeypatch.setattr(disk.time, "sleep", lambda pause_s: None)
    return errors


def test_storage_that_answers_late_costs_nothing(tmp_path: Path, stale: list[OSError]) -> None:
    volume = build_volume(tmp_path / "brain.zarr", SHAPE)
    stale += [OSError(errno.ESTALE, "Stale file handle")] * 3
    assert run(run_config(volume)).tiles.done == 12
    assert stale == []


def test_storage_that_does_not_answer_fails_the_block_and_not_the_run(tmp_path: Path, stale: list[OSError]) -> None:
    volume = build_volume(tmp_path / "brain.zarr", SHAPE)
    stale += [OSError(errno.ETIMEDOUT, "Connection timed out")] * 4
    bad = run(run_config(volume))
    assert (bad.tiles.failed, bad.tiles.done) == (4, 8)
    ((box, reason),) = bad.failures
    assert str(box) == "z=1:2,y=0:600,x=0:600"
    assert "the storage does not answer ([Errno 110] Connection timed out)" in reason
    assert run(run_config(volume)).tiles.reused == 8


@pytest.mark.parametrize("silent", [True, False], ids=["does not answer", "damaged"])
def test_record_of_a_truth_that_cannot_be_read_costs_no_mask(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    mask = volume.label("otsu").full
    before = {path: path.stat().st_mtime_ns for path in mask.path.rglob("*") if path.is_file()}
    record = volume.path / "slices" / "labels" / "groundtruth" / "digest" / "c" / "0"
    content = record.read_bytes()
    flip(record)
    with monkeypatch.context() as patch:
        if silent:
            flip(record)

            def refuse(self: Ledger, start: int = 0, stop: int | None = None) -> object:
                if "groundtruth" in str(self._path) and stop == 1:
                    raise UnavailableError("the storage does not answer")
                return digests(self, start, stop)

            digests = Ledger.shard_digests
            RunTables(volume, "otsu").truth("groundtruth").counts_key.write((slice(0, 1),), 1)
            patch.setattr(Ledger, "shard_digests", refuse)
        bad = run(run_config(volume))
    assert (bad.tiles.failed, bad.tiles.reused) == (4, 8)
    record.write_bytes(content)
    assert run(run_config(volume)).tiles.failed == 0
    if not silent:  # a store that is away is not asked whether the mask is still right
        assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_same_arrays(volume.path, "otsu", "reference")


def test_failed_comparison_is_told_of_its_truth_only(volume: Volume) -> None:
    shard = volume.truth("groundtruth")[0].full.shard_file((0, 0, 0))
    content = shard.read_bytes()
    other, ledger = volume.create_truth("other", MAPPING)
    volume.staging.mkdir(parents=True)
    ledger.record(0, other.write_slice(0, np.full(SHAPE[1:], 255, np.uint8), volume.staging), "0.png", 0)
    volume.publish_label("other")
    RunTables(volume, "otsu").truth("groundtruth").counts_key.write((), 0)
    remove(shard)
    assert run(run_config(volume)).tiles.failed == 4
    for truth in ("other", None):
        assert list(run(run_config(volume, truth=truth)).failures) == []
    ((_, reason),) = summarise(volume, "otsu", "groundtruth").failures
    assert "labels/groundtruth/0: shard c/0/0/0 is missing" in reason
    shard.write_bytes(content)
    assert list(run(run_config(volume)).failures) == []


def test_image_lost_after_its_mask_was_done_fails_the_comparison_only(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", SHAPE)
    run(run_config(volume, truth=None))
    remove(volume.image.full.shard_file((0, 0, 0)))
    assert run(run_config(volume)).tiles.failed == 4
    again = run(run_config(volume, truth=None))
    assert (again.tiles.done, list(again.failures)) == (12, [])


@pytest.mark.parametrize("which", ["image", "truth"])
def test_shard_that_is_another_one_fails_its_tiles(volume: Volume, which: str) -> None:
    array = volume.image.full if which == "image" else volume.truth("groundtruth")[0].full
    file = array.shard_file((0, 0, 0))
    content = file.read_bytes()
    volume.staging.mkdir()
    array.write(Box.of_slice(0, SHAPE), 255 - array.read(Box.of_slice(0, SHAPE)), volume.staging)
    tables = RunTables(volume, "otsu")
    compared = tables.truth("groundtruth")
    (tables.mask_key if which == "image" else compared.counts_key).write((), 0)
    bad = run(run_config(volume))
    assert (bad.tiles.failed, bad.tiles.done) == (4, 8)
    ((box, reason),) = bad.failures
    assert str(box) == "z=0:1,y=0:600,x=0:600"
    assert f"{array.path}: shard c/0/0/0 has other voxels than were recorded" in reason
    assert not compared.counts.read()[0].any()
    assert not compared.histogram.read()[0].any()
    assert volume.label("otsu").full.read(Box.of_slice(0, SHAPE)).any() == (which == "truth")
    file.write_bytes(content)
    assert run(run_config(volume)).tiles.failed == 0
    assert_same_arrays(volume.path, "otsu", "reference")


def test_edge_of_a_shard_that_is_another_one_is_not_trusted(tmp_path: Path) -> None:
    shape = (1, 600, 4100)
    volume = build_volume(tmp_path / "brain.zarr", shape)
    run(run_config(volume, "reference"))
    array, part = volume.image.full, Box((0, 0, 2048), (1, 600, 4096))
    content = array.shard_file((0, 0, 1)).read_bytes()
    volume.staging.mkdir()
    array.write(part, 255 - array.read(part), volume.staging)
    config = run_config(volume, memory=PROCESS_BYTES + task_bytes(volume, Recipe(), smallest_block(volume, Recipe())),
                        cluster={"engine": "threads", "threads": 1})  # fmt: skip
    assert run(config).tiles.failed == 2 * (4 + 1 + 1)  # its own, and those beside it in the next blocks
    array.shard_file((0, 0, 1)).write_bytes(content)
    assert run(config).tiles.failed == 0
    assert_same_arrays(volume.path, "otsu", "reference")


def test_grey_levels_of_what_was_never_read_are_not_counted(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 40, 2600))
    remove(volume.image.full.shard_file((0, 0, 1)))
    assert run(run_config(volume)).tiles.failed == 3  # of six: its own, and one that needs its edge
    tables = RunTables(volume, "otsu")
    grey = tables.grey.read().sum(axis=(0, 1, 2))
    assert grey.sum() == 40 * 3 * 512
    np.testing.assert_array_equal(grey, tables.truth("groundtruth").histogram.read().sum(axis=(0, 1, 2, 3)))


def test_label_of_another_program_is_in_nobody_s_way(volume: Volume) -> None:
    label = volume.path / "labels" / "napari"
    zarr.create_group(label, zarr_format=3)
    zarr.create_array(label / "0", shape=(1, 9, 9), dtype="float32", fill_value=None, zarr_format=3)
    volume.publish_label("napari")
    RunTables(volume, "otsu").mask_key.write((), 0)
    assert run(run_config(volume)).tiles.done == 12
    resize_volume(volume, 4)
    assert Volume(volume.path).label("otsu").full.shape[0] == 4


def test_damaged_table_of_counts_is_met_before_anything_is_taken_back(volume: Volume) -> None:
    compared = RunTables(volume, "otsu").truth("groundtruth")
    keys = compared.counts_key.read()
    RunTables(volume, "otsu").mask_key.write((slice(0, 1),), 0)
    (compared.histogram.path / "zarr.json").write_text("{")
    with pytest.raises(DamageError, match="histogram: is missing or cannot be opened"):
        run(run_config(volume))
    np.testing.assert_array_equal(compared.counts_key.read(), keys)


FEW_FILES = """
import resource, sys
from pathlib import Path
from pipeline.cli import app, main
import pipeline.segmentation.runs, pipeline.terminal.meter, pipeline.terminal.results
sys.argv = ["kesm", *sys.argv[1:]]
open_now = len(list(Path("/proc/self/fd").iterdir()))
resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 2, open_now + 2))
main()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_too_many_open_files_are_named_and_the_run_goes_on_later(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", SHAPE)
    words = [sys.executable, "-c", FEW_FILES, "run", str(volume.path), "--truth", "groundtruth"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "too many open files; raise the limit (`ulimit -n 4096`)" in done.stderr
    assert "Traceback" not in done.stderr
    assert run(run_config(volume)).tiles.done == 12


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root may")
def test_rights_that_are_lost_are_named_and_the_run_goes_on_later() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        volume = build_volume(Path(folder) / "brain.zarr", SHAPE)
        run(run_config(volume, region="z=0:1"))
        for companion in Path(folder).iterdir():
            companion.chmod(0o777)
        os.seteuid(65534)
        try:
            with pytest.raises(StorageError, match=r"permission denied; check the owner and mode of the folder"):
                run(run_config(volume))
        finally:
            os.seteuid(0)
        assert run(run_config(volume)).tiles.reused == 4
        run(run_config(volume, "reference"))
        assert_same_arrays(volume.path, "otsu", "reference")
