"""Masks that are cleaned in three dimensions: the voxels are SciPy's, and nothing half-made is ever found."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.errors import ConfigError, MemoryLimitError
from pipeline.images.pixels import write_png
from pipeline.kernels.components import Components
from pipeline.objects.derived import Cleaning, clean, slab_room
from pipeline.segmentation.engine import ThreadRunner
from pipeline.segmentation.runs import run
from pipeline.settings.recipe import Recipe
from pipeline.storage.extent import complete_resize
from pipeline.storage.ledger import Ledger
from pipeline.storage.pyramid import reduce_label, reduced_levels
from pipeline.storage.tables import RunTables, Status, run_lock
from pipeline.storage.volume import Volume
from tests.builders import MAPPING, build_volume, run_config
from tests.command import kesm
from tests.contract import check_document

SHAPE = (5, 2060, 2070)  # two by two shards; the vessels lie where they meet
SEAM = np.s_[:, 2030:2060, 2030:2070]
GAP = 3
CLEANING = Cleaning("otsu", "clean", min_size=12, max_hole=3)
WORDS = ("--name", "otsu", "--out", "clean", "--min-size", 12, "--max-hole", 3)

Mask = NDArray[np.bool_]


def noisy_mask() -> Mask:
    rng = np.random.default_rng(11)
    mask = np.zeros(SHAPE, np.bool_)
    vessels = ndimage.gaussian_filter(rng.standard_normal(mask[SEAM].shape), 1.0) > 0
    mask[SEAM] = (vessels & (rng.random(vessels.shape) > 0.1)) | (rng.random(vessels.shape) < 0.05)
    mask[:, 5, 7:10] = True  # 15 voxels, less the gap's: 9 and 3
    mask[1, 400:420, 300:320], mask[1, 410, 310] = True, False
    mask[0] |= rng.random(SHAPE[1:]) < 0.0005
    return mask


def add_run(volume: Volume, mask: Mask, name: str = "otsu") -> None:
    """Store a mask as a run does that has made it."""
    label = volume.create_mask(name)
    tables = RunTables.create(volume, name, Recipe().document(), (1, *SHAPE[1:]))
    volume.staging.mkdir()
    for z in np.flatnonzero(volume.slices.present()).tolist():
        digests = label.write_slice(z, np.where(mask[z], 255, 0).astype(np.uint8), volume.staging)
        tables.shard_digest.write((slice(z, z + 1),), digests)
        tables.status.write((slice(z, z + 1),), Status.DONE)
    volume.staging.rmdir()
    volume.publish_label(name)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    volume = Volume.create(tmp_path_factory.mktemp("built") / "brain.zarr", SHAPE, "uint8")
    truth, ledger = volume.create_truth("groundtruth", MAPPING)
    grey, traced = np.full(SHAPE[1:], 200, np.uint8), np.full(SHAPE[1:], 127, np.uint8)
    traced[1000:], traced[2040:2050] = 0, 255
    volume.staging.mkdir()
    for z in (0, 1, 2, 4):
        volume.slices.record(z, volume.image.write_slice(z, grey, volume.staging), f"{z}.png", 0)
    ledger.record(2, truth.write_slice(2, traced, volume.staging), "2.png", 0)
    volume.staging.rmdir()
    volume.publish_label("groundtruth")
    add_run(volume, noisy_mask())
    return volume


@pytest.fixture(scope="module")
def cleaned(built: Volume, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """A volume with a label that was derived."""
    volume = Volume(shutil.copytree(built.path, tmp_path_factory.mktemp("cleaned") / "brain.zarr"))
    answered(volume)
    return Volume(volume.path)


@pytest.fixture
def volume(built: Volume, tmp_path: Path) -> Volume:
    return Volume(shutil.copytree(built.path, tmp_path / "brain.zarr"))


@pytest.fixture
def copy(cleaned: Volume, tmp_path: Path) -> Volume:
    return Volume(shutil.copytree(cleaned.path, tmp_path / "brain.zarr"))


@pytest.fixture(scope="module")
def expected() -> Mask:
    """The mask without objects of fewer than 12 voxels and holes of up to 3, by SciPy."""
    left = noisy_mask()
    left[GAP] = False
    for part in (left[:GAP], left[GAP + 1 :]):
        labels, _ = ndimage.label(part, np.ones((3, 3, 3)))
        part[np.bincount(labels.reshape(-1))[labels] < 12] = False
        labels, count = ndimage.label(~part)
        small = np.bincount(labels.reshape(-1)) <= 3
        for axis in range(3):
            small[np.unique(np.take(labels, [0, -1], axis=axis))] = False
        part[small[labels]] = True
        assert count > 5
    return left


def answered(volume: Volume, *words: object) -> dict[str, Any]:
    answer = kesm("clean", volume.path, *WORDS, *words, "--json")
    assert answer.code == 0, answer
    return check_document("clean", answer.document)


def voxels(volume: Volume, name: str, level: int = 0) -> NDArray[np.uint8]:
    """A whole label, by zarr alone."""
    return np.asarray(zarr.open_array(volume.path / "labels" / name / str(level), mode="r")[:])


def parts_of(volume: Volume) -> set[str]:
    """What there is of a label and what stands beside the volume, but for locks."""
    inside = [path for folder in ("labels", "slices/labels") for path in (volume.path / folder).glob("[!z]*")]
    beside = [path for path in volume.path.parent.iterdir() if not path.name.endswith(".lock")]
    return {path.relative_to(volume.path.parent).as_posix() for path in (*inside, *beside)}


# ---- what is made


def test_the_label_is_what_scipy_leaves(cleaned: Volume, expected: Mask) -> None:
    found = voxels(cleaned, "clean")
    np.testing.assert_array_equal(found == 255, expected)
    assert set(np.unique(found)) == {0, 255}


def test_the_mask_stays(cleaned: Volume) -> None:
    mask = noisy_mask()
    mask[GAP] = False
    np.testing.assert_array_equal(voxels(cleaned, "otsu") == 255, mask)


def test_the_label_has_levels_and_records(cleaned: Volume) -> None:
    label, ledger = cleaned.derived("clean")
    full = voxels(cleaned, "clean")
    for level, plane in enumerate(reduced_levels(full[1], reduce_label), 1):
        np.testing.assert_array_equal(voxels(cleaned, "clean", level)[1], plane)
    assert len(label.levels) == len(cleaned.image.levels) > 2
    assert ledger.present().tolist() == [z != GAP for z in range(5)]
    for part in label.full.shards.parts(cleaned.image.full.shards.box((1, 0, 0))):
        np.testing.assert_array_equal(label.full.read_checked(part, ledger.shard_digests(1, 2)[0]), full[part.slices])
    assert ledger.source(1) == "otsu"


def test_the_label_says_how_it_was_made(cleaned: Volume) -> None:
    attributes = zarr.open_group(cleaned.path / "labels" / "clean", mode="r").attrs.asdict()
    made = attributes["kesm"]["provenance"]
    assert attributes["kesm"]["kind"] == "derived"
    assert {key: made["inputs"][key] for key in ("run", "min_size", "max_hole")} == {
        "run": "otsu", "min_size": 12, "max_hole": 3
    }  # fmt: skip
    assert made["started"] <= made["ended"]
    check_document("clean", made["result"])


def test_the_document_counts(volume: Volume, expected: Mask) -> None:
    found, before = answered(volume), noisy_mask()
    before[GAP] = False
    removed, filled = before & ~expected, expected & ~before
    assert found["vessel_voxels"] == {"before": before.sum(), "after": expected.sum()}
    assert found["slices"] == {"cleaned": 4, "absent": 1, "left_out": 0}
    assert found["objects"]["removed_voxels"] >= removed.sum() > 0  # some were in holes that were filled
    assert found["holes"]["filled_voxels"] >= filled.sum() > 0
    assert found["holes"]["filled_voxels"] - found["objects"]["removed_voxels"] == filled.sum() - removed.sum()
    assert found["reused"] is False


def test_objects_alone(volume: Volume) -> None:
    words = ("--name", "otsu", "--min-size", 12, "--connectivity", 6)
    found = check_document("clean", kesm("clean", volume.path, *words, "--json").document)
    assert (found["label"], found["holes"], found["max_hole"]) == ("otsu-clean", None, None)
    left = noisy_mask()
    for part in (left[:GAP], left[GAP + 1 :]):
        labels, _ = ndimage.label(part)
        part[np.bincount(labels.reshape(-1))[labels] < 12] = False
    left[GAP] = False
    np.testing.assert_array_equal(voxels(volume, "otsu-clean") == 255, left)


@pytest.mark.parametrize("spans", [0, 3000], ids=["slice by slice", "some slices"])
def test_memory_and_threads_change_nothing(volume: Volume, cleaned: Volume, spans: int) -> None:
    room = slab_room(volume, 2)
    small = type(room)(spans, room.kept_bytes)
    found = clean(volume.path, CLEANING, ThreadRunner(2), small).document()
    before = answered(cleaned)
    assert found | {"volume": "", "elapsed_s": 0, "reused": True} == before | {"volume": "", "elapsed_s": 0}
    np.testing.assert_array_equal(voxels(volume, "clean"), voxels(cleaned, "clean"))


def test_for_a_person(copy: Volume) -> None:
    shutil.rmtree(copy.path / "labels" / "clean")
    answer = kesm("clean", copy.path, *WORDS)
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[0] == "clean: 4 slices of otsu cleaned, 1 absent"
    assert "with fewer than 12 voxels removed" in lines[1]
    assert "with at most 3 voxels filled" in lines[2]
    assert lines[4] == f"next: kesm validate {copy.path} --mask clean --truth groundtruth"
    assert kesm("clean", copy.path, *WORDS).out.startswith("clean: 4 slices of otsu cleaned, 1 absent, as they were")


# ---- what other commands make of it


def test_validate_compares_it(cleaned: Volume, expected: Mask) -> None:
    answer = kesm("validate", cleaned.path, "--mask", "clean", "--truth", "groundtruth", "--json")
    truth, known = voxels(cleaned, "groundtruth"), voxels(cleaned, "groundtruth") != 127
    counts = answer.document["counts"]
    assert (counts["tp"], counts["fp"]) == ((expected & (truth == 255)).sum(), (expected & (truth == 0)).sum())
    assert sum(counts.values()) == known.sum()
    again = kesm("validate", cleaned.path, "--mask", "otsu", "--truth", "clean", "--json").document
    assert again["annotated"] == 4 * SHAPE[1] * SHAPE[2]  # not the gap


def test_status_lists_it(cleaned: Volume) -> None:
    labels = check_document("status", kesm("status", cleaned.path, "--json").document)["labels"]
    assert {label["name"]: label["kind"] for label in labels} == {
        "clean": "derived", "groundtruth": "truth", "otsu": "mask"
    }  # fmt: skip
    assert "\ncleaned mask clean\n" in kesm("status", cleaned.path).out


def test_its_name_is_taken(cleaned: Volume) -> None:
    assert "'clean' is a label of" in kesm("run", cleaned.path, "--name", "clean").message
    assert "'clean' is derived from a mask, not a truth" in kesm("run", cleaned.path, "--truth", "clean").message
    image = cleaned.path.parent / "0.png"
    write_png(image, np.zeros(SHAPE[1:], np.uint8))
    answer = kesm("ingest", image, "--volume", cleaned.path, "--label", "clean")
    assert (answer.code, "'clean' is derived from a mask" in answer.err) == (2, True)


def test_verify_reads_it(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 300, 700))
    run(run_config(volume))
    answered(volume)
    assert kesm("verify", volume.path).code == 0
    volume.label("clean").levels[1].shard_file((0, 0, 0)).unlink()
    volume.label("clean").full.shard_file((1, 0, 0)).unlink()
    answer = kesm("verify", volume.path, "--json")
    findings = check_document("verify", answer.document)["findings"]
    assert [(found["array"], found["shard"]) for found in findings] == [
        ("labels/clean/1", "c/0/0/0"),
        ("labels/clean/0", "c/1/0/0"),
    ]
    assert all("kesm clean --replace" in found["reason"] for found in findings)
    assert (answer.code, answer.document["marked"]) == (3, {})
    assert answered(volume)["reused"] is True  # it is not read
    assert answered(volume, "--replace")["reused"] is False
    assert kesm("verify", volume.path).code == 0


def test_it_grows_with_the_volume(copy: Volume) -> None:
    with copy.lock():
        copy.resize(7)
    label, ledger = Volume(copy.path).derived("clean")
    assert {array.shape[0] for array in label.levels} == {7}
    assert ledger.present().tolist() == [True, True, True, False, True, False, False]
    for slices in (9, 6):  # as a process leaves it that is killed
        Ledger(copy.path / "slices" / "labels" / "clean").resize(slices)
        copy.label("clean").levels[0].resize(slices)
        complete_resize(Volume(copy.path))
        label, ledger = Volume(copy.path).derived("clean")
        assert (label.full.shape[0], ledger.lengths()) == (7, {7})


# ---- a second time


def test_nothing_is_done_twice(copy: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    first = answered(copy)
    monkeypatch.setattr(Components, "of", None)
    again = answered(copy)
    assert (first["reused"], again["reused"]) == (True, True)
    assert {**again, "elapsed_s": 0} == {**first, "elapsed_s": 0}


def test_other_settings_are_refused_unless_it_is_replaced(copy: Volume, expected: Mask) -> None:
    words = ("--name", "otsu", "--out", "clean", "--min-size", 2)
    message = kesm("clean", copy.path, *words).message
    assert "label 'clean' was derived from something else (min_size 12 -> 2, max_hole 3 -> None)" in message
    np.testing.assert_array_equal(voxels(copy, "clean") == 255, expected)
    assert kesm("clean", copy.path, *words, "--replace").code == 0
    assert voxels(copy, "clean").astype(bool).sum() > expected.sum()
    assert sorted(Volume(copy.path).labels()) == ["clean", "groundtruth", "otsu"]


def test_another_mask_is_something_else(copy: Volume) -> None:
    mask = noisy_mask()
    mask[4] = False
    shutil.rmtree(copy.path / "tiles" / "otsu")
    shutil.rmtree(copy.path / "labels" / "otsu")
    add_run(copy, mask)
    assert "derived from something else (mask " in kesm("clean", copy.path, *WORDS).message


# ---- what is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "yen", "--min-size", "5"], "has no run 'yen'; it has: otsu"),
        (["--name", "groundtruth", "--min-size", "5"], "has no run 'groundtruth'; it has: otsu"),
        (
            ["--name", "otsu", "--min-size", "5", "--out", "otsu"],
            "--out: got 'otsu', which is the mask that is cleaned",
        ),
        (["--name", "otsu", "--min-size", "5", "--out", "groundtruth"], "--out: 'groundtruth' is a label or run of"),
        (["--name", "otsu", "--min-size", "5", "--out", "../x"], "--out: got '../x'"),
        (["--name", "otsu", "--min-size", "0"], "--min-size"),
        (["--name", "otsu", "--min-size", "5", "--max-hole", "0"], "--max-hole"),
        (["--name", "otsu", "--min-size", "5", "--connectivity", "8"], "--connectivity: got 8, expected 6, 18 or 26"),
        (["--name", "otsu", "--min-size", "5", "--hole-connectivity", "4"], "--hole-connectivity: got 4"),
        (["--name", "otsu", "--min-size", "5", "--memory", "some"], "--memory: got 'some'"),
        (["--name", "otsu", "--min-size", "5", "--memory", "500MB"], "memory: 0.50 GB are allowed, "),
        (["--min-size", "5"], "Missing option '--name'"),
        (["--name", "otsu"], "Missing option '--min-size'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input(built: Volume, words: list[str], message: str) -> None:
    before = parts_of(built)
    assert message in kesm("clean", built.path, *words).message
    assert parts_of(built) == before


@pytest.mark.parametrize("option", ["min_size", "max_hole"])
def test_sizes_count_from_one(option: str) -> None:
    with pytest.raises(ConfigError, match="got -1, expected at least 1 voxel"):
        Cleaning(**{"run": "otsu", "label": "clean", "min_size": 1, option: -1}).check()


def test_no_volume(tmp_path: Path) -> None:
    assert "no such volume" in kesm("clean", tmp_path / "no.zarr", *WORDS).message


def test_slices_that_are_not_done_are_refused_or_left_out(volume: Volume) -> None:
    tables = RunTables(volume, "otsu")
    tables.status.write((slice(1, 2),), Status.FAILED)
    message = kesm("clean", volume.path, *WORDS).message
    assert "run 'otsu' has not done slices 1 whole; finish it: give the command that started it again (`kesm" in message
    found = answered(volume, "--partial")
    assert found["slices"] == {"cleaned": 3, "absent": 1, "left_out": 1}
    assert not voxels(volume, "clean")[1].any()
    assert volume.derived("clean")[1].present().tolist() == [True, False, True, False, True]
    tables.status.write((), Status.PENDING)
    assert "not done slices 0 to 2, 4 whole" in kesm("clean", volume.path, *WORDS, "--replace").message
    message = kesm("clean", volume.path, *WORDS, "--replace", "--partial").message
    assert "run 'otsu' has no slice that is done" in message
    assert "clean" in Volume(volume.path).labels()


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("harm", [damage, Path.unlink], ids=["truncated", "missing"])
def test_a_mask_that_cannot_be_read_leaves_nothing(volume: Volume, harm: Any) -> None:
    before = parts_of(volume)
    harm(volume.label("otsu").full.shard_file((2, 1, 1)))
    assert "c/2/1/1" in kesm("clean", volume.path, *WORDS).message
    assert parts_of(volume) == before


def test_a_digest_that_is_lost(volume: Volume) -> None:
    table = RunTables(volume, "otsu").shard_digest
    (table.path / "c" / "2" / "0" / "0").unlink()
    assert "the digests of slice 2 are missing; do run 'otsu' again" in kesm("clean", volume.path, *WORDS).message


def test_a_run_that_is_worked_on_is_locked(volume: Volume) -> None:
    with run_lock(volume, "otsu"):
        answer = kesm("clean", volume.path, *WORDS)
    assert (answer.code, answer.out) == (4, "")
    assert "run 'otsu' is being worked on by another process" in answer.err


def test_memory_is_shared_out(built: Volume) -> None:
    little, much = (slab_room(built, 1, memory) for memory in (10**9, 10**10))
    assert little.spans < much.spans <= 5 * 2048 * 1024
    assert little.kept_bytes < much.kept_bytes
    with pytest.raises(MemoryLimitError, match="are needed for 16 slabs of one slice of a shard"):
        slab_room(built, 16, 10**9)


# ---- killed


class Killed(BaseException):
    """A signal."""


@pytest.fixture(params=["write_slice", "rebuild_levels", "record"])
def killed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise Killed

    target = {
        "write_slice": "pipeline.storage.store.ShardedArray.write",
        "rebuild_levels": "pipeline.storage.pyramid.Pyramid.rebuild_levels",
        "record": "pipeline.storage.ledger.Ledger.record",
    }[request.param]
    monkeypatch.setattr(target, fail)
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("killed")
def test_stopped_half_way_nothing_is_left(volume: Volume) -> None:
    before = parts_of(volume)
    with pytest.raises(Killed):
        clean(volume.path, CLEANING, ThreadRunner(1), slab_room(volume, 1))
    assert parts_of(volume) == before
    assert sorted(Volume(volume.path).labels()) == ["groundtruth", "otsu"]


def test_what_a_killed_process_has_left_is_swept(volume: Volume, expected: Mask) -> None:
    before = parts_of(volume)
    label, _ = volume.create_derived("clean", "otsu")
    left = volume.staging / "clean"
    left.mkdir(parents=True)
    label.write_slice(0, np.full(SHAPE[1:], 255, np.uint8), left)
    (left / "shard").write_bytes(b"half")
    assert sorted(Volume(volume.path).labels()) == ["groundtruth", "otsu"]
    answered(volume)
    np.testing.assert_array_equal(voxels(volume, "clean") == 255, expected)
    assert parts_of(volume) == before | {"brain.zarr/labels/clean", "brain.zarr/slices/labels/clean"}
