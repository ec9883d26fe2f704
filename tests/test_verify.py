"""Everything read back: damage is found and named wherever it lies, and what a run has made is made again."""

from __future__ import annotations

import re
import shutil
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checks import audit, readback
from pipeline.checks import verify as verifying
from pipeline.checks.readback import only_values
from pipeline.checks.verify import Verified, slice_bytes, verify, verify_threads
from pipeline.errors import StorageError, UnavailableError
from pipeline.findings.summary import summarise
from pipeline.geometry import Box
from pipeline.segmentation.budget import PROCESS_BYTES, smallest_block, task_bytes
from pipeline.segmentation.engine import ThreadRunner
from pipeline.segmentation.runs import run
from pipeline.settings.recipe import Recipe
from pipeline.storage import disk
from pipeline.storage.ledger import Ledger
from pipeline.storage.store import ShardedArray
from pipeline.storage.table import Table
from pipeline.storage.tables import RunTables, Status, run_lock
from pipeline.storage.volume import Volume
from tests import crashing
from tests.builders import MAPPING, build_volume, run_config, textured
from tests.command import kesm
from tests.contract import check_document
from tests.test_cli import read_only

SHAPE = (2, 2100, 4200)  # two by three shards: two whole ones, and others cut at the edges and in the corner
PLACES = {"interior": (0, 0, 1), "edge": (1, 0, 2), "corner": (1, 1, 2)}
RUNS = ("whole", "parts")
TABLES = ("status", "mask_key", "threshold", "signal", "seam", "vessel", "quality", "shard_digest")
TRUTH_TABLES = ("counts", "counts_key", "histogram")


def looked(volume: Volume, mark: bool = True) -> Verified:
    """What `verify` finds, in a volume that is opened anew."""
    return verify(Volume(volume.path), ThreadRunner(2), mark)


def places(verified: Verified) -> set[str]:
    return {finding.place for finding in verified.findings}


def in_parts(volume: Volume) -> dict[str, Any]:
    """Options of a run that has only the memory for blocks of one shard."""
    needed = PROCESS_BYTES + task_bytes(volume, Recipe(), smallest_block(volume, Recipe()))
    return {"memory": needed, "cluster": {"threads": 1}}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Volume whose shards at the three places hold something, run by whole slices and by single shards."""
    volume = Volume.create(tmp_path_factory.mktemp("built") / "brain.zarr", SHAPE, "uint8")
    volume.staging.mkdir()
    truth, ledger = volume.create_truth("groundtruth", MAPPING)
    rng = np.random.default_rng(3)
    for z in range(SHAPE[0]):
        image, traced = np.full(SHAPE[1:], 200, np.uint8), np.full(SHAPE[1:], 127, np.uint8)
        for _, row, column in PLACES.values():
            part = slice(2048 * row, 2048 * row + 52), slice(2048 * column, 2048 * column + 104)
            image[part] = textured(rng, (52, 104))
            traced[part] = rng.choice(np.array([0, 127, 255], np.uint8), (52, 104))
        volume.slices.record(z, volume.image.write_slice(z, image, volume.staging), f"{z}.png", 0)
        ledger.record(z, truth.write_slice(z, traced, volume.staging), f"{z}.png", 0)
    volume.publish_label("groundtruth")
    volume.staging.rmdir()
    run(run_config(volume, "whole"))
    run(run_config(volume, "parts", **in_parts(volume)))
    return volume


@pytest.fixture
def volume(built: Volume, tmp_path: Path) -> Volume:
    """Copy of the built volume."""
    return Volume(shutil.copytree(built.path, tmp_path / "brain.zarr"))


@pytest.fixture(scope="module")
def small_built(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    volume = build_volume(tmp_path_factory.mktemp("small") / "brain.zarr", (2, 600, 700))
    run(run_config(volume))
    return volume


@pytest.fixture
def small(small_built: Volume, tmp_path: Path) -> Volume:
    """Volume of two slices and four tiles each, with run `otsu`."""
    return Volume(shutil.copytree(small_built.path, tmp_path / "brain.zarr"))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    for place in range(len(data) // 4, len(data) // 2):
        data[place] ^= 0x5A
    file.write_bytes(bytes(data))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove(file: Path) -> None:
    file.unlink()


def replace(file: Path) -> None:
    """Put the shard or chunk of the same place in the other slice there."""
    parts = list(file.parts)
    place = len(parts) - parts[::-1].index("c")
    parts[place] = "1" if parts[place] == "0" else "0"
    file.write_bytes(Path(*parts).read_bytes())


DAMAGES = [flip, truncate, remove, replace]


def assert_as_built(volume: Volume, built: Volume) -> None:
    """Nothing differs, and the tables, of which one holds the digests of the masks, are as they were made first."""
    assert looked(volume).findings == ()
    for name in RUNS:
        now, then = RunTables(volume, name), RunTables(built, name)
        for table in (*TABLES, "pyramid_key"):
            np.testing.assert_array_equal(getattr(now, table).read(), getattr(then, table).read(), err_msg=table)
        for table in TRUTH_TABLES:
            ours, theirs = (getattr(tables.truth("groundtruth"), table).read() for tables in (now, then))
            np.testing.assert_array_equal(ours, theirs, err_msg=table)


# volumes that are as they were written


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_what_was_never_touched_is_as_recorded(tmp_path: Path, dtype: str) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (5, 600, 700), dtype, absent=(1, 4))
    assert looked(volume).findings == ()  # no runs
    truth, ledger = volume.create_truth("second", MAPPING)
    with volume_staging(volume) as staging:
        ledger.record(3, truth.write_slice(3, np.full((600, 700), 255, np.uint8), staging), "3.png", 0)
    volume.publish_label("second")
    run(run_config(volume))
    run(run_config(volume, truth="second"))
    run(run_config(volume, "alone", truth=None))
    run(run_config(volume, "fixed", threshold={"method": "fixed", "level": 70}, tile=256))
    run(run_config(volume, "part", region="z=0:1,y=0:512"))
    verified = looked(volume)
    assert verified.findings == ()
    assert verified.lines()[:-1] == []
    assert (verified.truths, verified.runs, verified.checked.slices) == (2, 4, 3)
    # image, truths; three masks of all slices and one of one
    assert verified.checked.shards == 3 + 3 + 3 * 3 + 1
    # otsu against both, fixed in smaller tiles, part
    assert verified.checked.tiles == 2 * 3 * 4 + 3 * 9 + 4


def test_volume_without_truth_or_runs(tmp_path: Path) -> None:
    volume = Volume.create(tmp_path / "brain.zarr", (1, 40, 50), "uint8")
    with volume_staging(volume) as staging:
        volume.slices.record(0, volume.image.write_slice(0, np.ones((40, 50), np.uint8), staging), "0.png", 0)
    verified = looked(volume)
    assert verified.lines() == ["verified 1 slice, 0 truths, 0 runs, 0.00 GB: all as recorded"]
    assert verified.checked.bytes == 40 * 50


@contextmanager
def volume_staging(volume: Volume) -> Iterator[Path]:
    volume.staging.mkdir()
    yield volume.staging
    volume.staging.rmdir()


def test_everything_is_read_once(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[Path, Box]] = []
    plain = ShardedArray.read_shard

    def counted(array: ShardedArray, shard: Any, part: Box, out: Any) -> int:
        read.append((array.path, part))
        return plain(array, shard, part, out)

    monkeypatch.setattr(ShardedArray, "read_shard", counted)
    verified = looked(volume)
    assert verified.findings == ()
    assert len(set(read)) == len(read)
    assert verified.checked.bytes == sum(
        array.shape[0] * array.shape[1] * array.shape[2]
        for pyramid in (volume.image, *(volume.label(name) for name in ("groundtruth", *RUNS)))
        for array in pyramid.levels
    )
    assert (verified.checked.shards, verified.checked.tiles) == (4 * 2 * 6, 2 * 2 * 5 * 9)


def test_failed_blocks_are_no_differences(small: Volume) -> None:
    small.image.full.shard_file((1, 0, 0)).unlink()
    run(run_config(small, "second"))
    assert [finding.array for finding in looked(small).findings] == ["0"]


# damage


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_image_and_truth_are_named_and_restored(volume: Volume, damage: Callable[[Path], None]) -> None:
    arrays = {"0": volume.image.full, "labels/groundtruth/0": volume.label("groundtruth").full}
    files = [array.shard_file(place) for array in arrays.values() for place in PLACES.values()]
    whole = {file: file.read_bytes() for file in files}
    for file in files:
        damage(file)
    answer = kesm("verify", volume.path, "--json")
    assert answer.code == 3
    document = check_document("verify", answer.document)
    assert {Path(found["array"], found["shard"]) for found in document["findings"]} == {
        file.relative_to(volume.path) for file in files
    }
    assert all("restore it from a copy, or ingest the slice again" in found["reason"] for found in document["findings"])
    assert {found["run"] for found in document["findings"]} == {None}
    corner = next(found for found in document["findings"] if found["shard"] == "c/1/1/2")
    assert corner["region"] == "z=1:2,y=2048:2100,x=4096:4200"
    assert document["marked"] == {}
    for file, content in whole.items():
        file.write_bytes(content)
    assert looked(volume).findings == ()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_mask_is_named_marked_and_made_again(
    volume: Volume, built: Volume, damage: Callable[[Path], None]
) -> None:
    files = [volume.label(name).full.shard_file(place) for name in RUNS for place in PLACES.values()]
    for file in files:
        damage(file)
    answer = kesm("verify", volume.path)
    assert answer.code == 3
    assert all(f"{file.relative_to(volume.path)}: z=" in answer.out for file in files)
    assert "run whole: 2 blocks marked as failed; the next run of this name makes them again\n" in answer.out
    assert "run parts: 3 blocks marked as failed; the next run of this name makes them again\n" in answer.out
    assert answer.out.endswith(": 6 differences\n")
    status = check_document("status", kesm("status", volume.path, "--json").document)
    reasons = [failure["reason"] for of_run in status["runs"] for failure in of_run["failures"]]
    assert len(reasons) == 2 + 3
    assert all(any(str(file.relative_to(volume.path)) in reason for reason in reasons) for file in files)
    assert [of_run["tiles"]["failed"] for of_run in status["runs"]] == [16 + 4 + 1, 2 * 45]
    for name in RUNS:
        assert kesm("run", volume.path, "--truth", "groundtruth", "--name", name).code == 0
    assert_as_built(volume, built)


def table_files(volume: Volume) -> dict[str, Path]:
    """A chunk of each table of the run in parts, each of another block: those with vessels hold what differs."""
    blocks = {
        "threshold": (0, 0, 1), "shard_digest": (0, 0, 2), "truth/groundtruth/counts": (1, 0, 2),
        "truth/groundtruth/histogram": (1, 1, 2), "status": (1, 0, 1), "mask_key": (1, 0, 0),
        "truth/groundtruth/counts_key": (0, 1, 1),
    }  # fmt: skip
    folder = volume.path / "tiles" / "parts"
    files = {}
    for name, block in blocks.items():
        trailing = {"truth/groundtruth/counts": "/0", "truth/groundtruth/histogram": "/0/0"}.get(name, "")
        files[name] = folder / f"{name}/c/{'/'.join(map(str, block))}{trailing}"
    return files


@pytest.mark.parametrize("damage", [flip, truncate, remove])
def test_damaged_tables_are_named_marked_and_made_again(
    volume: Volume, built: Volume, damage: Callable[[Path], None]
) -> None:
    files = table_files(volume)
    for file in files.values():
        damage(file)
    verified = looked(volume)
    assert places(verified) == {str(file.relative_to(volume.path)) for file in files.values()}
    assert verified.marked == {"parts": len(files)}
    reasons = " ".join(reason for _, reason in RunTables(volume, "parts").journal.failures("groundtruth"))
    assert all(str(file.relative_to(volume.path)) in reasons for file in files.values())
    assert summarise(volume, "parts", "groundtruth").tiles.failed == 16 + 4 + 4 + 1 + 16 + 16 + 4
    run(run_config(volume, "parts"))
    assert_as_built(volume, built)


REPLACED = ("threshold", "truth/groundtruth/counts", "truth/groundtruth/histogram")


def test_replaced_tables_are_named_or_made_again(volume: Volume, built: Volume) -> None:
    files = table_files(volume)
    for name, other in {
        "threshold": "0/0/2", "shard_digest": "0/0/1", "truth/groundtruth/counts": "1/0/0/0",
        "truth/groundtruth/histogram": "1/0/0/0/0", "mask_key": "1/1/1", "truth/groundtruth/counts_key": "0/0/0",
    }.items():  # fmt: skip
        shutil.copy(volume.path / "tiles" / "parts" / name / "c" / other, files[name])
    assert places(looked(volume)) == {
        "labels/parts/0/c/0/0/2",  # which is not what the table now says
        *(str(files[name].relative_to(volume.path)) for name in files if name in REPLACED),
    }
    # A key that is not that of the inputs tells of nothing but work to do: they may have changed since.
    tiles = summarise(volume, "parts", "groundtruth").tiles
    assert (tiles.failed, tiles.pending) == (16 + 4 + 4 + 1, 16 + 4)
    run(run_config(volume, "parts"))
    assert_as_built(volume, built)


def renumber(file: Path) -> None:
    Table(file.parents[1]).write((slice(1, 2),), 5)


@pytest.mark.parametrize("damage", [truncate, remove, renumber])
def test_damaged_record_of_the_levels(volume: Volume, built: Volume, damage: Callable[[Path], None]) -> None:
    files = {name: volume.path / "tiles" / name / "pyramid_key" / "c" / "1" for name in RUNS}
    for file in files.values():
        damage(file)
    # Levels of many blocks are made after these: where they are not recorded, or as others, that is to be done yet.
    named = RUNS if damage is truncate else ("whole",)
    verified = looked(volume)
    assert places(verified) == {str(files[name].relative_to(volume.path)) for name in named}
    assert verified.marked == dict(zip(RUNS, (1, 6), strict=True)) if damage is truncate else {"whole": 1}
    for name in RUNS:
        run(run_config(volume, name))
    assert looked(volume).findings == ()
    if named == RUNS:
        assert_as_built(volume, built)


@pytest.mark.parametrize("damage", [remove, replace])
def test_damaged_level_is_named_and_made_again(volume: Volume, built: Volume, damage: Callable[[Path], None]) -> None:
    image = volume.image.levels[1].shard_file((1, 0, 1))
    masks = [volume.label(name).levels[1].shard_file((0, 0, 0)) for name in RUNS]
    whole = image.read_bytes()
    for file in (image, *masks):
        damage(file)
    verified = looked(volume)
    assert [(finding.place, str(finding.region)) for finding in verified.findings] == [
        ("labels/parts/1/c/0/0/0", "z=0:1,y=0:2100,x=0:4096"),
        ("labels/whole/1/c/0/0/0", "z=0:1,y=0:2100,x=0:4096"),
        ("1/c/1/0/1", "z=1:2,y=0:2100,x=4096:4200"),
    ]
    assert verified.marked == {"parts": 4, "whole": 1}
    image.write_bytes(whole)
    for name in RUNS:
        run(run_config(volume, name))
    assert_as_built(volume, built)


@pytest.mark.parametrize("damage", DAMAGES[:3])
def test_damaged_ledgers_are_named(small: Volume, damage: Callable[[Path], None]) -> None:
    tables = ["digest/c/0", "shard_digest/c/0/0/0", "files/000000/zarr.json", "mtime/c/0"]
    if damage is remove:  # a slice of which nothing is recorded any more is one that never was
        tables.pop()
    files = [
        small.path / ledger / table for ledger in ("slices/image", "slices/labels/groundtruth") for table in tables
    ]
    whole = {file: file.read_bytes() for file in files}
    for file in files:
        damage(file)
    verified = looked(small)
    assert places(verified) == {str(file.relative_to(small.path)) for file in files}
    assert all(
        found.reason.endswith("restore it from a copy, or ingest the slice again") for found in verified.findings
    )
    assert (verified.marked, verified.checked.slices) == ({}, 2)
    for file, content in whole.items():
        file.write_bytes(content)
    assert looked(small).findings == ()


def test_digest_of_another_slice(small: Volume) -> None:
    replace(small.path / "slices" / "image" / "digest" / "c" / "0")
    assert [str(finding) for finding in looked(small).findings] == [
        "slices/image/digest/c/0: z=0:1,y=0:600,x=0:700: is not that of the slice's shards; restore it from a copy, or "
        "ingest the slice again"
    ]


def test_damaged_table_of_a_whole_slice(small: Volume) -> None:
    for name in TABLES:
        (chunk,) = (path for path in (small.path / "tiles" / "otsu" / name / "c" / "1").rglob("*") if path.is_file())
        truncate(chunk)
    verified = looked(small)
    assert len(verified.findings) == len(TABLES)
    assert verified.marked == {"otsu": 1}
    again = run(run_config(small))
    assert (again.tiles.done, again.tiles.reused) == (8, 4)
    assert looked(small).findings == ()


# what is written as it should be, and wrong


EDITS: dict[str, tuple[str, Callable[[RunTables], tuple[Table, Any]], str]] = {
    "counts": (
        "truth/groundtruth/counts/c/0/0/0/0", lambda tables: (tables.truth("groundtruth").counts, (1, 1)),
        r"tile 0, 0, 1 has \[\d+, \d+, \d+, \d+\] where mask and truth give",
    ),
    "histogram": (
        "truth/groundtruth/histogram/c/0/0/0/0/0", lambda tables: (tables.truth("groundtruth").histogram, 1),
        "tile 0, 0, 1 does not give the counts of mask and truth",
    ),
    "threshold": ("threshold/c/0/0/0", lambda tables: (tables.threshold, 1), "tile 0, 0, 1 is not the level"),
    "no threshold": ("threshold/c/0/0/0", lambda tables: (tables.threshold, np.nan), "tile 0, 0, 1 has no level"),
    "status": ("status/c/0/0/0", lambda tables: (tables.status, 1), "tile 0, 0, 1 is failed where a mask is recorded"),
    "vessel": (
        "vessel/c/0/0/0", lambda tables: (tables.vessel, 1), r"tile 0, 0, 1 has \d+ where the mask has \d+ voxels",
    ),
    "no measures": (
        "quality/c/0/0/0/0", lambda tables: (tables.quality, np.nan), "tile 0, 0, 1 has no measures",
    ),
    "odd status": ("status/c/0/0/0", lambda tables: (tables.status, 7), "tile 0, 0, 1 is 9 where a mask is recorded"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_table_that_was_edited(small: Volume, edit: str) -> None:
    chunk, choose, reason = EDITS[edit]
    table, change = choose(RunTables(small, "otsu"))
    values = table.read((slice(0, 1),))
    before = values.copy()
    if isinstance(change, tuple):
        values[0, 0, 1, :2] += 1
    else:
        values[0, 0, 1] += np.asarray(change, values.dtype)
    table.write((slice(0, 1),), values)
    verified = looked(small)
    assert [finding.place for finding in verified.findings] == [f"tiles/otsu/{chunk}"]
    assert verified.findings[0].region == Box((0, 0, 512), (1, 512, 700))
    assert re.match(reason, verified.findings[0].reason)
    assert verified.marked == {"otsu": 1}
    assert summarise(small, "otsu", "groundtruth").tiles.failed == 4
    run(run_config(small))
    assert looked(small).findings == ()
    np.testing.assert_array_equal(table.read((slice(0, 1),)), before)


def test_histogram_of_another_mask(small: Volume) -> None:
    table = RunTables(small, "otsu").truth("groundtruth").histogram
    values = table.read((slice(0, 1),))
    values[0, 0, 0] = values[0, 0, 0, :, ::-1]  # as many voxels of each class
    table.write((slice(0, 1),), values)
    threshold = RunTables(small, "otsu").threshold
    level = threshold.read((slice(0, 1),))
    level[0, 0, 0] = Recipe().threshold.levels(values[0, 0])[0]
    threshold.write((slice(0, 1),), level)
    assert places(looked(small)) == {"tiles/otsu/truth/groundtruth/histogram/c/0/0/0/0/0"}


def test_several_tiles_are_one_finding(small: Volume) -> None:
    table = RunTables(small, "otsu").threshold
    values = table.read((slice(0, 1),))
    table.write((slice(0, 1),), values + 1)
    (finding,) = looked(small).findings
    assert finding.reason == "tile 0, 0, 0 is not the level that the histogram gives (and 3 more)"
    assert finding.region == Box((0, 0, 0), (1, 600, 700))


def rewrite(volume: Volume, label: str, level: int, change: Callable[[Any], None]) -> np.uint64:
    """Change voxels of the first slice as a program would that knows how they are stored, but of no record."""
    array = volume.label(label).levels[level]
    box = Box((0, 0, 0), (1, *array.shape[1:]))
    values = array.read(box)
    change(values)
    with volume_staging(volume) as staging:
        digest: np.uint64 = array.write(box, values, staging)[0, 0, 0]
    return digest


def invert(values: Any) -> None:
    values[0, 5, 5] = 255 - values[0, 5, 5]


def stain(values: Any) -> None:
    values[0, 5, 5] = 3


@pytest.mark.parametrize(
    ("level", "reason"), [(0, "has other voxels than"), (1, "does not show the voxels of level 0")]
)
def test_mask_that_was_painted_in(small: Volume, level: int, reason: str) -> None:
    rewrite(small, "otsu", level, invert)
    (finding,) = looked(small).findings
    assert finding.place == f"labels/otsu/{level}/c/0/0/0"
    assert reason in finding.reason
    run(run_config(small))
    assert looked(small).findings == ()


def test_mask_where_none_was_made(small: Volume) -> None:
    run(run_config(small, "fixed", threshold={"method": "fixed", "level": 255}))
    rewrite(small, "fixed", 0, invert)
    (finding,) = looked(small).findings
    assert finding.reason == "has voxels where only fill was recorded"
    run(run_config(small, "fixed", threshold={"method": "fixed", "level": 255}))
    assert looked(small).findings == ()


@pytest.mark.parametrize("label", ["otsu", "groundtruth"])
def test_values_that_no_label_has(small: Volume, label: str) -> None:
    digest = rewrite(small, label, 0, stain)
    if label == "otsu":
        RunTables(small, "otsu").shard_digest.write((slice(0, 1),), digest)
    else:
        small.truth("groundtruth")[1].record(0, np.full((1, 1), digest), "0.png", 0)
    found = [finding for finding in looked(small).findings if finding.array == f"labels/{label}/0"]
    assert [finding.reason.partition(";")[0] for finding in found] == [
        "has voxels other than 0, 255" if label == "otsu" else "has voxels other than 0, 127, 255"
    ]


@pytest.mark.parametrize("values", [(0, 255, 255), (0, 127, 255)])
def test_only_values(values: tuple[int, int, int]) -> None:
    plane = np.random.default_rng(1).choice(np.array(values, np.uint8), (37, 53))
    assert only_values(plane, *values)
    for value in set(range(256)) - set(values):
        plane[36, 52] = value
        assert not only_values(plane, *values)
        assert not only_values(plane[1:, 1:], *values)


def test_mask_that_was_removed(small: Volume) -> None:
    shutil.rmtree(small.path / "labels" / "otsu")
    verified = looked(small)
    assert verified.lines() == [
        "labels/otsu: z=0:2,y=0:600,x=0:700: is missing; the next run of this name makes it again",
        "verified 2 slices, 1 truth, 0 runs, 0.00 GB: 1 difference",
    ]
    run(run_config(small))
    assert looked(small).findings == ()


def test_array_that_cannot_be_opened_is_one_message(small: Volume) -> None:
    flip(small.path / "labels" / "otsu" / "0" / "zarr.json")
    assert "labels/otsu/0: is missing or cannot be opened" in kesm("verify", small.path).message


# who else works there


def test_dry_run_marks_nothing(small: Volume) -> None:
    small.label("otsu").full.shard_file((0, 0, 0)).unlink()
    before = {path: path.read_bytes() for path in small.path.rglob("*") if path.is_file()}
    answer = kesm("verify", small.path, "--dry-run", "--json")
    assert (answer.code, len(answer.document["findings"]), answer.document["marked"]) == (3, 1, {})
    assert {path: path.read_bytes() for path in small.path.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in small.path.parent.iterdir() if path.suffix != ".lock") == ["brain.zarr"]


def test_run_at_work_is_left_alone(small: Volume) -> None:
    run(run_config(small, "second"))
    for name in ("otsu", "second"):
        small.label(name).full.shard_file((0, 0, 0)).unlink()
    with run_lock(small, "otsu"):
        answer = kesm("verify", small.path, "--json")
    document = check_document("verify", answer.document)
    assert answer.code == 3
    assert len(document["findings"]) == 2
    assert document["marked"] == {"second": 1}
    (note,) = document["notes"]
    assert note.startswith("run otsu: what differs is not marked as failed: ")
    assert note in answer.err


def test_read_only_volume(small: Volume) -> None:
    shard = small.label("otsu").full.shard_file((0, 0, 0))
    with read_only(small.path.parent):
        assert kesm("verify", small.path).code == 0
    shard.unlink()
    with read_only(small.path.parent):
        answer = kesm("verify", small.path)
    assert answer.code == 3
    assert "labels/otsu/0/c/0/0/0: z=0:1,y=0:600,x=0:700: is missing\n" in answer.out
    assert "run otsu: what differs is not marked as failed: " in answer.err
    assert RunTables(small, "otsu").status.read().tolist() == [[[Status.DONE] * 2] * 2] * 2


@pytest.mark.parametrize("which", ["run", "image"])
def test_what_is_written_meanwhile_is_no_difference(small: Volume, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = audit.RunSlice if which == "run" else readback.RecordSlice
    (small.label("otsu") if which == "run" else small.image).full.shard_file((0, 0, 0)).unlink()
    again = part.again

    def written(self: Any) -> Any:
        if which == "run":
            RunTables(small, "otsu").take_back((0, 0, 0))
        else:
            small.slices.forget(0)
        return again(self)

    monkeypatch.setattr(part, "again", written)
    assert looked(small).findings == ()


def test_what_was_made_again_before_it_was_marked_is_no_difference(small: Volume) -> None:
    small.label("otsu").full.shard_file((0, 0, 0)).unlink()
    tables = RunTables(small, "otsu")

    def slowly(function: Callable[[Any], Any], items: Sequence[Any], what: str = "") -> list[Any]:
        results = [function(item) for item in items]
        tables.disown((0, 0, 0), "by another verify")
        return results

    assert verify(small, slowly).findings == ()
    assert [reason for _, reason in tables.journal.failures("groundtruth")] == ["by another verify"]


def test_storage_that_does_not_answer_costs_no_mask(small: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ShardedArray.read_shard

    def refuse(array: ShardedArray, shard: Any, part: Box, out: Any) -> int:
        if array.path == small.path / "labels" / "otsu" / "0" and shard[0] == 1:
            raise UnavailableError("the storage does not answer")
        return plain(array, shard, part, out)

    monkeypatch.setattr(ShardedArray, "read_shard", refuse)
    (finding,) = looked(small).findings
    assert (finding.place, finding.run) == ("labels/otsu/0/c/1/0/0", None)
    assert finding.reason == "the storage does not answer"
    assert not list(RunTables(small, "otsu").journal.failures("groundtruth"))


def refusing(plain: Callable[..., Any], refused: Path | int, error: Exception) -> Callable[..., Any]:
    """Return a method that fails for one path, or one slice."""

    def call(self: Any, *arguments: Any) -> Any:
        if refused in (getattr(self, "path", None), *arguments[:1]):
            raise error
        return plain(self, *arguments)

    return call


REFUSALS: dict[str, tuple[type, str, str | int, Exception, list[str]]] = {
    "document": (Ledger, "source", 1, StorageError("permission denied"), ["slices/image"]),
    "truth": (Table, "survey", "slices/labels/groundtruth/mtime", UnavailableError("no answer"),
              ["slices/labels/groundtruth"] * 2),
    "image": (Table, "stored", "slices/image/digest", PermissionError(13, "denied"), ["slices/image"] * 2),
    "table": (Table, "survey", "tiles/second/truth/groundtruth/histogram", StorageError("too many open files"),
              ["tiles/second"] * 2),
    "chunk": (Table, "stored", "tiles/second/mask_key", OSError(116, "stale"), ["tiles/second"] * 2),
    "voxels": (ShardedArray, "read_shard", "labels/second/0", UnavailableError("no answer"), ["labels/second/0"] * 2),
}  # fmt: skip


@pytest.mark.parametrize("which", REFUSALS)
def test_what_is_refused_ends_nothing_and_costs_nothing(
    small: Volume, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(run_config(small, "second"))
    before = {path: path.read_bytes() for path in small.path.glob("tiles/second/**/c/**/*") if path.is_file()}
    small.label("otsu").full.shard_file((0, 0, 0)).unlink()
    owner, method, refused, error, folders = REFUSALS[which]
    place = refused if isinstance(refused, int) else small.path / refused
    monkeypatch.setattr(owner, method, refusing(getattr(owner, method), place, error))
    verified = looked(small)
    others = [found for found in verified.findings if found.place != "labels/otsu/0/c/0/0/0"]
    assert [found.array for found in others] == folders
    assert {(found.run, str(error) in found.reason) for found in others} == {(None, True)}
    assert (len(verified.findings), verified.marked, verified.notes) == (len(others) + 1, {"otsu": 1}, ())
    assert not list(RunTables(small, "second").journal.failures("groundtruth"))
    assert {path: path.read_bytes() for path in before} == before


def test_storage_that_is_away_is_not_asked_for_every_shard(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def away(array: ShardedArray, shard: Any, part: Box, out: Any) -> int:
        asked.append(part)
        raise UnavailableError("the storage does not answer")

    monkeypatch.setattr(ShardedArray, "read_shard", away)
    verified = looked(volume)
    assert len(verified.findings) == 2 * 4
    assert {finding.shard for finding in verified.findings} == {None}
    assert len(asked) == 2 * 4 * (disk.SILENT_FILES + 1)


def test_marking_that_is_refused_is_a_note(small: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    for z in range(2):
        small.label("otsu").full.shard_file((z, 0, 0)).unlink()
    disown = RunTables.disown

    def once(tables: RunTables, block: Any, reason: str) -> None:
        if block[0] == 1:
            raise PermissionError(13, "denied")
        disown(tables, block, reason)

    monkeypatch.setattr(RunTables, "disown", once)
    verified = looked(small)
    assert (len(verified.findings), verified.marked) == (2, {"otsu": 1})
    assert verified.notes == ("run otsu: what differs is not marked as failed: [Errno 13] denied",)


def test_run_that_is_replaced_meanwhile_is_left_alone(small: Volume) -> None:
    small.label("otsu").full.shard_file((0, 0, 0)).unlink()

    def slowly(function: Callable[[Any], Any], items: Sequence[Any], what: str = "") -> list[Any]:
        results = [function(item) for item in items]
        run(run_config(small, tile=256), replace=True)
        return results

    verified = verify(small, slowly)
    assert verified.marked == {}
    assert verified.notes == (
        "run otsu: what differs is not marked as failed: another process has changed the run meanwhile; verify again",
    )
    assert looked(small).findings == ()


def test_what_was_found_before_an_interrupt_is_marked(small: Volume) -> None:
    for z in range(2):
        small.label("otsu").full.shard_file((z, 0, 0)).unlink()

    def interrupted(function: Callable[[Any], Any], items: Sequence[Any], what: str = "") -> list[Any]:
        function(items[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(small, interrupted, mark=False)
    assert not list(RunTables(small, "otsu").journal.failures("groundtruth"))
    with pytest.raises(KeyboardInterrupt):
        verify(small, interrupted)
    (failure,) = RunTables(small, "otsu").journal.failures("groundtruth")
    assert failure == (Box((0, 0, 0), (1, 600, 700)), "labels/otsu/0/c/0/0/0 is missing")


def test_one_slice_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (6, 40, 50))
    run(run_config(volume))
    for z in range(6):
        volume.label("otsu").full.shard_file((z, 0, 0)).unlink()
    held: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Counted(audit.RunSlice):
        def __init__(self, *arguments: Any) -> None:
            nonlocal most
            super().__init__(*arguments)
            held.add(self)
            most = max(most, len(held))

    def looks_done(function: Callable[[Any], Any], items: Sequence[Any], what: str = "") -> list[Any]:
        results = [function(item) for item in items]
        monkeypatch.setattr(verifying, "RunSlice", Counted)
        return results

    assert verify(volume, looks_done).marked == {"otsu": 6}
    assert most == 1


def verify_killed(path: Path, log: Path, kill_at: int) -> None:
    """Verify a volume in a process that is killed at its n-th write."""
    crashing._watch(log, kill_at)
    looked(Volume(path))


CRASH_DAMAGES = ("truth/groundtruth/counts/c/0/0/0/0", "threshold/c/0/0/0", "mask_key/c/1/0/0", "status/c/1/0/0")


@pytest.mark.parametrize("damaged", [CRASH_DAMAGES[:2], CRASH_DAMAGES[2:]], ids=["values", "keys"])
def test_verify_that_is_killed_while_it_marks(small: Volume, tmp_path: Path, damaged: Sequence[str]) -> None:
    reference = crashing.arrays(small.path, "otsu")
    for name in damaged:
        truncate(small.path / "tiles" / "otsu" / name)
    code, kill_at = -signal.SIGKILL, 0
    while code == -signal.SIGKILL:
        kill_at += 1
        path = shutil.copytree(small.path, tmp_path / str(kill_at) / "brain.zarr")
        process = crashing._processes.Process(target=verify_killed, args=(path, tmp_path / "log", kill_at))
        process.start()
        process.join()
        code = process.exitcode
        if run(run_config(Volume(path))).tiles.failed:  # of damage that was not marked yet: so much it says itself
            run(run_config(Volume(path)))
        for name, values in crashing.arrays(path, "otsu").items():
            np.testing.assert_array_equal(values, reference[name], err_msg=f"{name}, killed at write {kill_at}")
        assert looked(Volume(path)).findings == ()
        shutil.rmtree(path)
    assert code == 0
    assert kill_at > 8


def test_pending_work_is_no_difference(small: Volume) -> None:
    tables = RunTables(small, "otsu")
    tables.take_back((0, 0, 0))
    small.label("otsu").full.shard_file((0, 0, 0)).unlink()
    with volume_staging(small) as staging:  # another image: the mask is still that which its run has made
        image = np.full((600, 700), 9, np.uint8)
        small.slices.record(1, small.image.write_slice(1, image, staging), "1.png", 0)
    assert looked(small).findings == ()


# the command


def test_verify_says_what_it_has_read(small: Volume) -> None:
    answer = kesm("verify", small.path, "--threads", "1")
    assert answer.code == 0
    assert answer.out == "verified 2 slices, 1 truth, 1 run, 0.00 GB: all as recorded\n"
    assert answer.err.startswith("verify: 2/2, ")
    document = check_document("verify", kesm("verify", small.path, "--json").document)
    assert document["checked"] == {"slices": 2, "shards": 5, "tiles": 8, "bytes": 5 * 525000, "truths": 1, "runs": 1}


def test_threads_fit_the_memory(small: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    each, peak = slice_bytes(small)
    assert each == 3 * 600 * 700
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 3 * peak}))
    assert (verify_threads(small, 8), verify_threads(small, 1)) == (2, 1)
