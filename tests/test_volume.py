"""A specimen on disk: created, opened, extended, locked; slices, labels and levels."""

from __future__ import annotations

import getpass
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import zarr

from pipeline.errors import DamageError, ExistsError, LockedError, MissingInputError, NotAVolumeError
from pipeline.geometry import Box
from pipeline.kernels.histogram import TRUTH_UNLABELLED
from pipeline.storage import volume as volume_module
from pipeline.storage.store import create_document, read_document
from pipeline.storage.volume import LabelInfo, Volume, beside, publish
from tests.builders import shard_digests

SHAPE = (3, 2100, 700)  # two shards a slice, four levels
PLANE = Box((0, 0, 0), (1, 2100, 700))


def build(folder, shape=SHAPE, dtype="uint8", slices=()):
    """Volume with these slices of noise written and recorded."""
    volume = Volume.create(folder / "brain.zarr", shape, dtype)
    volume.staging.mkdir()
    for z in slices:
        volume.slices.record(z, volume.image.write_slice(z, plane(z, shape, dtype), volume.staging), f"s{z}.png", z + 5)
    return volume


def plane(seed, shape=SHAPE, dtype="uint8"):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape[1:], dtype, endpoint=True)


def traced(seed, shape=SHAPE):
    return np.random.default_rng(seed).choice(np.array([0, 127, 255], np.uint8), shape[1:])


def at(z, box=PLANE):
    return Box((z, *box.start[1:]), (z + 1, *box.stop[1:]))


# ---- created and opened


@pytest.mark.parametrize(
    ("dtype", "size", "window", "expected"),
    [
        ("uint8", None, None, (0, 255)),
        ("uint16", (1.0, 0.7, 0.6), None, (0, 65535)),
        ("uint16", None, (300, 4000), (300, 4000)),
    ],
    ids=["uint8", "uint16", "window"],
)
def test_a_volume_is_opened_as_it_was_created(tmp_path, dtype, size, window, expected):
    Volume.create(tmp_path / "brain.zarr", SHAPE, dtype, size, window)
    volume = Volume(str(tmp_path / "brain.zarr"))
    assert volume.shape == SHAPE
    assert volume.dtype == dtype
    assert volume.voxel_size_um == size
    assert volume.window == expected
    assert volume.labels() == {}
    assert not volume.slices.present().any()
    assert [array.shape for array in volume.image.levels] == [SHAPE, (3, 1050, 350), (3, 525, 175), (3, 263, 88)]
    assert volume.staging == tmp_path / "brain.zarr.staging"
    assert not volume.staging.exists()


def test_a_volume_is_not_created_twice(tmp_path):
    build(tmp_path, slices=[0])
    with pytest.raises(ExistsError, match=r"brain\.zarr: exists already; add slices with --append, or choose another"):
        build(tmp_path)
    assert Volume(tmp_path / "brain.zarr").slices.present().tolist() == [True, False, False]


def write_group(path, **attributes):
    zarr.create_group(path, attributes=attributes)


OTHERS = {
    "empty-folder": (lambda path: path.mkdir(), "is not an OME-Zarr volume; make one with `kesm ingest`"),
    "plain-file": (lambda path: path.write_text("x"), "is not an OME-Zarr volume; make one with `kesm ingest`"),
    "zip": (lambda path: zipfile.ZipFile(path, "w").close(), "is not an OME-Zarr volume"),
    "zarr-group": (write_group, "is a Zarr group, but not a volume made by `kesm ingest`"),
    "zarr-2-group": (lambda path: zarr.create_group(path, zarr_format=2), "is not an OME-Zarr volume"),
    "foreign-image": (lambda path: write_group(path, ome={"version": "0.5"}), "is a Zarr group, but not a volume"),
    "array": (
        lambda path: zarr.create_array(path, shape=(1,), dtype="uint8"),
        "is a Zarr array; name the folder of the volume that it belongs to",
    ),
    "newer": (
        lambda path: write_group(path, ome={}, kesm={"version": 99}),
        "has format version 99, this program reads 4; use the kesm that made it",
    ),
}


@pytest.mark.parametrize(("make", "text"), OTHERS.values(), ids=OTHERS)
def test_something_else_is_refused(tmp_path, make, text):
    make(tmp_path / "other.zarr")
    with pytest.raises(NotAVolumeError, match=rf"other\.zarr: {text}"):
        Volume(tmp_path / "other.zarr")


def test_nothing_is_refused(tmp_path):
    with pytest.raises(
        MissingInputError, match=r"no such volume; make one with `kesm ingest SLICES --volume .*b\.zarr`"
    ):
        Volume(tmp_path / "b.zarr")


def test_only_zarr_lies_in_a_volume(tmp_path):
    volume = build(tmp_path, slices=[0, 2])
    truth, ledger = volume.create_truth("truth", {})
    ledger.record(0, truth.write_slice(0, traced(0), volume.staging), "t.png", 1)
    volume.publish_label("truth")
    with volume.lock():
        files = [path for path in volume.path.rglob("*") if path.is_file()]
    assert all(path.name == "zarr.json" or path.name.isdigit() for path in files)
    assert not any(volume.staging.iterdir())
    # Warnings are errors here: zarr would warn of a foreign file.
    names = {name for name, _ in zarr.open_group(volume.path, mode="r").members(max_depth=None)}
    assert {"0", "3", "labels/truth/0", "slices/image/digest", "slices/labels/truth/files/000000"} <= names


# ---- slices


def test_a_slice_exists_once_it_is_recorded(tmp_path):
    volume = build(tmp_path)
    digests = volume.image.write_slice(1, plane(1), volume.staging)
    assert digests.shape == (2, 1)
    np.testing.assert_array_equal(digests, shard_digests(volume.image.full, PLANE, plane(1)[None])[0])
    assert not volume.slices.present().any()
    assert not volume.slices.shard_digests().any()
    volume.slices.record(1, digests, "s1.png", 42)
    again = Volume(volume.path).slices
    assert again.present().tolist() == [False, True, False]
    np.testing.assert_array_equal(again.shard_digests(), [np.zeros((2, 1)), digests, np.zeros((2, 1))])
    np.testing.assert_array_equal(again.shard_digests(1, 2), digests[None])
    assert [again.source(z) for z in range(3)] == [None, "s1.png", None]


def test_a_slice_that_is_forgotten_does_not_exist(tmp_path):
    volume = build(tmp_path, slices=[0, 1])
    volume.slices.forget(1)
    assert volume.slices.present().tolist() == [True, False, False]
    assert volume.slices.shard_digests()[0].any()
    assert not volume.slices.shard_digests()[1].any()
    volume.slices.record(1, volume.image.write_slice(1, plane(9), volume.staging), "again.png", 1)
    assert volume.slices.present().tolist() == [True, True, False]
    assert volume.slices.source(1) == "again.png"


def test_slices_that_are_cut_off_are_forgotten(tmp_path):
    volume = build(tmp_path, slices=[0, 2])
    volume.resize(1)
    volume.resize(3)
    assert volume.slices.present().tolist() == [True, False, False]
    assert [volume.slices.source(z) for z in range(3)] == ["s0.png", None, None]
    assert not volume.image.full.read(at(2)).any()


def test_a_black_slice_exists_too(tmp_path):
    volume = build(tmp_path)
    volume.slices.record(0, volume.image.write_slice(0, np.zeros(SHAPE[1:], np.uint8), volume.staging), "black.png", 1)
    assert volume.slices.present().tolist() == [True, False, False]
    assert not (volume.path / "0" / "c").exists()
    assert not read_checked(volume, 0).any()


def read_checked(volume, z):
    """A slice, of which every shard is compared with its record."""
    array, digests = volume.image.full, volume.slices.shard_digests(z, z + 1)[0]
    parts = array.shards.parts(Box.of_slice(z, volume.shape))
    return np.concatenate([array.read_checked(part, digests)[0].copy() for part in parts])


def test_a_lost_shard_is_named(tmp_path):
    volume = build(tmp_path, slices=[0, 1])
    np.testing.assert_array_equal(read_checked(volume, 1), plane(1))
    volume.image.full.shard_file((1, 1, 0)).unlink()
    with pytest.raises(DamageError, match="0: shard c/1/1/0 is missing; restore it from a copy"):
        read_checked(volume, 1)
    np.testing.assert_array_equal(read_checked(volume, 0), plane(0))
    volume.slices.forget(1)
    assert not read_checked(volume, 1)[2048:].any()


def test_a_shard_with_other_voxels_is_named(tmp_path):
    volume = build(tmp_path, slices=[0, 1])
    files = [volume.image.full.shard_file((z, 0, 0)) for z in (0, 1)]
    contents = [file.read_bytes() for file in files]
    files[0].write_bytes(contents[1])
    with pytest.raises(
        DamageError, match="0: shard c/0/0/0 has other voxels than were recorded; restore it from a copy"
    ):
        read_checked(volume, 0)


# ---- labels


def test_labels_are_listed_once_published(tmp_path):
    volume = build(tmp_path)
    volume.create_mask("otsu")
    volume.create_truth("expert", {"vessel": 1, "vessel_above": None, "unlabelled": None})
    assert volume.labels() == {}
    for name in ("otsu", "expert", "otsu"):
        volume.publish_label(name)
    assert volume.labels() == {
        "expert": LabelInfo("expert", "truth", {"vessel": 1, "vessel_above": None, "unlabelled": None}),
        "otsu": LabelInfo("otsu", "mask", {}),
    }
    assert read_document(volume.path / "labels") == {"ome": {"version": "0.5", "labels": ["expert", "otsu"]}}


def test_a_mask_is_background_and_a_truth_is_not_annotated_where_nothing_was_written(tmp_path):
    volume = build(tmp_path)
    mask, (truth, ledger) = volume.create_mask("otsu"), volume.create_truth("expert", {})
    assert (mask.full.read(PLANE) == 0).all()
    assert all((array.read(Box((0, 0, 0), (1, 9, 9))) == TRUTH_UNLABELLED).all() for array in truth.levels)
    assert not ledger.present().any()
    assert [array.shape for array in mask.levels] == [array.shape for array in volume.image.levels]
    assert [array.shape for array in truth.levels] == [array.shape for array in volume.image.levels]
    assert truth.full.dtype == mask.full.dtype == np.uint8


def test_a_truth_is_read_back(tmp_path):
    volume = build(tmp_path)
    label, ledger = volume.create_truth("expert", {})
    ledger.record(2, label.write_slice(2, traced(2), volume.staging), "t.png", 1)
    with pytest.raises(MissingInputError, match="has no label 'expert'"):  # one that is being made is not there yet
        Volume(volume.path).truth("expert")
    volume.publish_label("expert")
    truth, ledger = Volume(volume.path).truth("expert")
    np.testing.assert_array_equal(truth.full.read(at(2))[0], traced(2))
    assert ledger.present().tolist() == [False, False, True]


def test_what_is_no_truth_is_refused(tmp_path):
    volume = build(tmp_path)
    with pytest.raises(MissingInputError, match="has no label 'expert'; it has: none yet"):
        volume.truth("expert")
    for name in ("otsu", "yen"):
        volume.create_mask(name)
        volume.publish_label(name)
    with pytest.raises(MissingInputError, match="has no label 'expert'; it has: otsu, yen"):
        volume.label("expert")
    with pytest.raises(MissingInputError, match="'otsu' is the mask of a run, not a truth"):
        volume.truth("otsu")


def test_a_label_of_another_program_is_listed_as_foreign(tmp_path):
    volume = build(tmp_path)
    volume.create_mask("otsu")
    create_document(volume.path / "labels" / "napari", {"ome": {}})
    volume.publish_label("napari")
    assert volume.labels()["napari"].kind == "foreign"


def test_a_truth_that_was_never_published_is_removed(tmp_path):
    volume = build(tmp_path)
    volume.create_truth("expert", {})
    volume.remove_truth("expert")
    volume.remove_truth("expert")
    assert not (volume.path / "labels" / "expert").exists()
    assert not (volume.path / "slices" / "labels" / "expert").exists()
    volume.create_truth("expert", {})


# ---- growth


def test_extend_keeps_what_is_there_and_makes_labels_as_long_as_the_image(tmp_path):
    volume = build(tmp_path, slices=[0, 2])
    truth, ledger = volume.create_truth("expert", {})
    ledger.record(2, truth.write_slice(2, traced(2), volume.staging), "t.png", 1)
    mask = volume.create_mask("otsu")
    mask.write_slice(0, np.where(traced(0) == 255, 255, 0).astype(np.uint8), volume.staging)
    for name in ("expert", "otsu"):
        volume.publish_label(name)
    volume.resize(5)
    for grown in (volume, Volume(volume.path)):
        assert grown.shape == (5, *SHAPE[1:])
        assert grown.slices.present().tolist() == [True, False, True, False, False]
        np.testing.assert_array_equal(grown.image.full.read(at(2))[0], plane(2))
        assert not grown.image.full.read(at(4)).any()
    truth, ledger = volume.truth("expert")
    assert ledger.present().tolist() == [False, False, True, False, False]
    np.testing.assert_array_equal(truth.full.read(at(2))[0], traced(2))
    assert (truth.full.read(at(4)) == TRUTH_UNLABELLED).all()
    for pyramid in (volume.image, truth, volume.label("otsu")):
        assert {array.shape[0] for array in pyramid.levels} == {5}
    volume.image.write_slice(4, plane(4), volume.staging)
    np.testing.assert_array_equal(Volume(volume.path).image.full.read(at(4))[0], plane(4))


def test_the_image_grows_last_so_that_no_label_is_ever_too_short(tmp_path):
    volume = build(tmp_path)
    volume.create_mask("otsu")
    volume.publish_label("otsu")
    level_0 = volume.path / "0" / "zarr.json"
    metadata = level_0.read_text()
    level_0.write_text("{")  # it cannot be resized: as if the process were killed before
    with pytest.raises(DamageError, match=r"brain\.zarr/0: is missing or cannot be opened"):
        volume.resize(4)
    level_0.write_text(metadata)
    stopped = Volume(volume.path)
    assert stopped.shape == SHAPE
    assert {array.shape[0] for array in (*stopped.label("otsu").levels, *stopped.image.levels[1:])} == {4}
    stopped.resize(4)
    assert Volume(volume.path).shape == (4, *SHAPE[1:])


@pytest.mark.parametrize("table", ["digest", "shard_digest"])
@pytest.mark.parametrize("damage", ["missing", "flipped", "of another slice"])
def test_a_record_that_is_lost_or_damaged_is_named_and_its_slice_not_taken_for_absent(tmp_path, table, damage):
    volume = build(tmp_path, slices=[0, 1])
    folder = volume.path / "slices" / "image" / table / "c"
    chunk, other = (folder.joinpath(str(z), *["0"] * (2 * (table == "shard_digest"))) for z in (1, 0))
    content = chunk.read_bytes()
    if damage == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(other.read_bytes() if damage == "of another slice" else content[:-3] + b"???")
    slices = Volume(volume.path).slices
    assert slices.present().tolist() == [True, True, False]
    with pytest.raises(DamageError, match=r"slices/image.*1.*; restore it from a copy, or ingest the slice again"):
        slices.shard_digests()
    assert slices.shard_digests(0, 1).all()
    chunk.write_bytes(content)
    assert slices.shard_digests().any(axis=(1, 2)).tolist() == [True, True, False]


def test_a_fingerprint_follows_what_the_slices_hold(tmp_path):
    volume = build(tmp_path, slices=[0, 1])
    before = volume.slices.fingerprint()
    assert len(before) == 16
    volume.slices.forget(1)
    assert volume.slices.fingerprint() != before


# ---- locks and publishing

HOLD = """
import sys
from pathlib import Path
from pipeline.storage.volume import Volume
with Volume(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_volume_that_another_process_changes_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(volume_module, "LOCK_WAIT_S", 0.05)
    volume = build(tmp_path)
    command = [sys.executable, "-c", HOLD, str(volume.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            who = rf"{re.escape(getpass.getuser())} on .*, process {other.pid}, since 20[-T:+\d]+"
            problem = rf"another process is changing it: {who} \(lock file .*brain\.zarr\.lock\); wait for it to end"
            with pytest.raises(LockedError, match=problem), volume.lock():
                pass
        finally:
            other.kill()  # the lock of a process ends with it
    with volume.lock():
        pass


def test_what_a_killed_process_had_not_renamed_is_swept(tmp_path):
    volume = build(tmp_path, slices=[0])
    kept = sorted(volume.path.rglob("*"))
    for folder in ("", "0", "labels", "slices/image/digest/c", "slices/image/files/000000"):
        (volume.path / folder).mkdir(exist_ok=True)
        (volume.path / folder / "zarr.1f.partial").touch()
    shards = volume.path / "labels" / "otsu" / "0" / "c"  # where runs write, which hold another lock
    shards.mkdir(parents=True)
    (shards / "0.1f.partial").touch()
    with volume.lock():
        pass
    left = {path.name for path in volume.path.rglob("*.partial")}
    assert left == {"0.1f.partial"}
    assert set(kept) <= set(volume.path.rglob("*"))


def test_companions_lie_beside_the_store(tmp_path):
    assert beside(tmp_path / "brain.zarr", "lock") == tmp_path / "brain.zarr.lock"


def test_a_volume_that_was_built_aside_is_moved(tmp_path):
    (tmp_path / "aside").mkdir()
    volume = build(tmp_path / "aside", slices=[0])
    publish(volume.path, tmp_path / "brain.zarr")
    assert not volume.path.exists()
    np.testing.assert_array_equal(Volume(tmp_path / "brain.zarr").image.full.read(PLANE)[0], plane(0))


@pytest.mark.parametrize("make", ["mkdir", "touch"])
def test_nothing_is_published_over_something(tmp_path, make):
    (tmp_path / "aside").mkdir()
    volume = build(tmp_path / "aside")
    getattr(tmp_path / "brain.zarr", make)()
    with pytest.raises(ExistsError, match=r"brain\.zarr: exists already"):
        publish(volume.path, tmp_path / "brain.zarr")
    assert Volume(volume.path).shape == SHAPE
