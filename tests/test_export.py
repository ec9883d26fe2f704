"""What is exported is what is stored, in any format, and comes back the same."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.events import JobDone, JobsStarted
from pipeline.geometry import Box
from pipeline.segmentation.runs import run
from pipeline.storage.keys import pyramid_key
from pipeline.storage.store import create_document
from pipeline.storage.tables import RunTables, Status
from pipeline.storage.volume import Volume
from pipeline.views.export import BAND, Target, Wanted, choose_form, export, in_order, is_slice_file
from pipeline.views.rendition import Rendition, open_rendition
from tests.builders import build_volume, run_config
from tests.command import KESM, kesm
from tests.contract import check_document

SHAPE = (5, 2100, 2200)  # two by two shards; slices 0, 2 and 4 are annotated, 3 is absent
THERE = [0, 1, 2, 4]
REGION = "z=0:3,y=70:2090,x=1000:2200"  # not along tiles or shards


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    volume = build_volume(tmp_path_factory.mktemp("export") / "brain.zarr", SHAPE, absent=(3,))
    run(run_config(volume))
    return volume


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return build_volume(tmp_path_factory.mktemp("small") / "brain.zarr", (3, 600, 1100))


@pytest.fixture
def volume(built: Volume, tmp_path: Path) -> Volume:
    return Volume(shutil.copytree(built.path, tmp_path / "brain.zarr"))


def stored(volume: Volume, label: str | None, level: int = 0) -> NDArray[np.integer]:
    """All of a level, by zarr alone."""
    path = volume.path / (f"labels/{label}" if label else "") / str(level)
    return np.asarray(zarr.open_array(path, mode="r")[:])


def exported(volume: Volume, out: Path, *words: object) -> dict[str, object]:
    answer = kesm("export", volume.path, "--out", out, *words, "--json")
    assert answer.code == 0, answer
    document = check_document("export", answer.document)
    assert document["files"] == (1 if out.is_file() else len(list(out.iterdir())))
    paths = [out] if out.is_file() else [*out.iterdir()]
    assert document["bytes"] == sum(path.stat().st_size for path in paths)
    return document


def read_folder(folder: Path) -> dict[int, NDArray[np.integer]]:
    """Slices by their number."""
    found = {}
    for path in sorted(folder.iterdir()):
        number = int(re.fullmatch(r".+_z(\d+)\.(?:tif|png)", path.name)[1])
        if path.suffix == ".png":
            with Image.open(path) as image:
                found[number] = np.asarray(image)
        else:
            found[number] = tifffile.imread(path)
    return found


def what(label: str | None) -> list[str]:
    return ["--image"] if label is None else ["--label", label]


@pytest.mark.parametrize("label", [None, "groundtruth", "otsu"])
@pytest.mark.parametrize("form", ["tiff-stack", "png"])
def test_slices_are_what_is_stored(built, tmp_path, label, form):
    values, wanted = stored(built, label), [0, 2, 4] if label == "groundtruth" else THERE
    document = exported(built, tmp_path / "out", *what(label), "--format", form, "--partial")
    found = read_folder(tmp_path / "out")
    assert list(found) == wanted
    assert document["left_out"] == sorted({*range(5)} - {*wanted})
    assert document["shape"] == [len(wanted), *SHAPE[1:]]
    for z, plane in found.items():
        np.testing.assert_array_equal(plane, values[z], strict=True)
    assert all(is_slice_file(path.name) for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("label", [None, "otsu"])
def test_part_as_one_file_is_what_is_stored(built, tmp_path, label):
    exported(built, tmp_path / "part.ome.tif", *what(label), "--region", REGION)
    expected = stored(built, label)[0:3, 70:2090, 1000:2200]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "part.ome.tif"), expected, strict=True)


@pytest.mark.parametrize("label", [None, "groundtruth", "otsu"])
@pytest.mark.parametrize("level", [1, 3])
def test_level_covers_the_region(built, tmp_path, label, level):
    step = 2**level
    document = exported(built, tmp_path / "out", *what(label), "--level", level, "--region", "z=0:1,y=3:1001,x=5:2199")
    part = np.s_[0, 3 // step : -(-1001 // step), 5 // step : -(-2199 // step)]
    np.testing.assert_array_equal(read_folder(tmp_path / "out")[0], stored(built, label, level)[part], strict=True)
    assert document["region"].startswith(f"z=0:1,y={3 // step}:")


def test_16_bit_and_voxel_sizes_are_kept(tmp_path):
    volume = Volume.create(tmp_path / "brain.zarr", (1, 600, 700), "uint16", (1.0, 0.7, 0.6))
    values = np.random.default_rng(2).integers(0, 65536, (600, 700), np.uint16)
    volume.staging.mkdir()
    volume.slices.record(0, volume.image.write_slice(0, values, volume.staging), "0.png", 0)
    for form in ("png", "tiff-stack"):
        exported(volume, tmp_path / form, "--image", "--format", form)
        np.testing.assert_array_equal(read_folder(tmp_path / form)[0], values, strict=True)
    exported(volume, tmp_path / "half.ome.tif", "--image", "--level", 1)
    with tifffile.TiffFile(tmp_path / "half.ome.tif") as file:
        above, below = file.pages[0].tags["XResolution"].value
        assert above / below == pytest.approx(1e4 / 1.2, rel=1e-6)
        assert 'PhysicalSizeX="1.2"' in file.ome_metadata
        assert 'PhysicalSizeZ="1.0"' in file.ome_metadata


@pytest.mark.parametrize("form", ["tiff-stack", "png", "ome-tiff"])
def test_ingested_again_the_bits_are_the_same(small, tmp_path, form):
    """Image and truth of two slices become a volume with the same digests and levels."""
    ending = ".ome.tif" if form == "ome-tiff" else ""
    for z in (0, 2):
        part = ["--region", f"z={z}:{z + 1}", "--format", form]
        exported(small, tmp_path / f"image{z}{ending}", "--image", *part)
        exported(small, tmp_path / f"truth{z}{ending}", "--label", "groundtruth", *part)
    again, sources = tmp_path / "again.zarr", [tmp_path / f"{{}}{z}{ending}" for z in (0, 2)]
    images, truths = ([str(source).format(name) for source in sources] for name in ("image", "truth"))
    assert kesm("ingest", *images, "--volume", again).code == 0
    words = ["--label", "groundtruth", "--unlabelled", 127, "--start-z", 0]
    assert kesm("ingest", *truths, "--volume", again, *words).code == 0
    copy = Volume(again)
    for ours, theirs in ((small.slices, copy.slices), (small.truth("groundtruth")[1], copy.truth("groundtruth")[1])):
        np.testing.assert_array_equal(theirs.shard_digests(), ours.shard_digests()[[0, 2]])
    for label in (None, "groundtruth"):
        for level in range(2):
            np.testing.assert_array_equal(stored(copy, label, level), stored(small, label, level)[[0, 2]])


def test_bytes_do_not_depend_on_threads(built, tmp_path):
    for form in ("tiff-stack", "png"):
        for threads in (1, 3):
            words = ["--format", form, "--threads", threads, "--region", "z=0:3,x=0:600"]
            exported(built, tmp_path / f"{form}{threads}", "--image", *words)
        for path in (tmp_path / f"{form}1").iterdir():
            assert path.read_bytes() == (tmp_path / f"{form}3" / path.name).read_bytes()


# what is not there


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--image", "--out", "o"], r"has no slices 3, or not whole; leave them out with", id="gap"),
        pytest.param(["--label", "groundtruth", "--out", "o"], r"'groundtruth' has no slices 1, 3, or not", id="truth"),
        pytest.param(["--label", "groundtruth", "--out", "o", "--region", "z=1:2"], r"no slices 1, so that nothing is "
                     r"left", id="nothing"),
        pytest.param(["--image", "--out", "o.ome.tif", "--partial"], r"pages of one file cannot say which", id="pages"),
        pytest.param(["--label", "no", "--out", "o"], r"has no label 'no'; it has: groundtruth, otsu", id="label"),
        pytest.param(["--out", "o"], r"--label, --image: got neither, expected one", id="neither"),
        pytest.param(["--image", "--label", "otsu", "--out", "o"], r"--label, --image: got both", id="both"),
        pytest.param(["--image", "--out", "o", "--level", "9"], r"--level: got 9, .* has levels 0 to 3", id="level"),
        pytest.param(["--image", "--out", "o", "--format", "jpeg"], r"got 'jpeg', expected one of: tiff", id="form"),
        pytest.param(["--image", "--out", "no/o", "--region", "z=0:1"], r"the folder no does not exist", id="folder"),
        pytest.param(["--image", "--out", "o", "--region", "z=7:9"], r"the volume has z=0:5", id="region"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_message(built, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert re.search(message, kesm("export", built.path, *words).message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "form", "expected"),
    [
        ("slices", None, "tiff-stack"),
        ("slices", "png", "png"),
        ("mask.ome.tif", None, "ome-tiff"),
        ("mask.TIFF", None, "ome-tiff"),
        ("mask.ome.tif", "ome-tiff", "ome-tiff"),
        ("slices.v2", None, "tiff-stack"),
    ],
)
def test_format_follows_the_ending(out, form, expected):
    assert choose_form(Path(out), form) == expected


@pytest.mark.parametrize(
    ("out", "form", "message"),
    [
        ("a.tif", "png", r"got a.tif, expected a folder for --format png"),
        ("slices", "ome-tiff", r"got slices, expected a file that ends in .tif for --format ome-tiff"),
        ("a.png", None, r"name a folder, with --format png"),
    ],
)
def test_ending_that_contradicts_the_format_is_refused(out, form, message):
    with pytest.raises(ConfigError, match=message):
        choose_form(Path(out), form)


def test_slices_that_a_run_has_not_done_are_not_background(volume, tmp_path):
    RunTables(volume, "otsu").status.write((slice(1, 2), slice(0, 5), slice(0, 5)), Status.FAILED)
    message = kesm("export", volume.path, "--label", "otsu", "--out", tmp_path / "out", "--region", "z=0:3").message
    assert "'otsu' has no slices 1, or not whole" in message
    document = exported(volume, tmp_path / "out", "--label", "otsu", "--region", "z=0:3", "--partial")
    assert document["left_out"] == [1]
    assert sorted(read_folder(tmp_path / "out")) == [0, 2]


def test_levels_of_a_mask_that_are_older_than_it_are_left_out(volume, tmp_path):
    tables = RunTables(volume, "otsu")
    tables.pyramid_key.write((slice(2, 3),), pyramid_key(tables, 2) + 1)
    words = ["--label", "otsu", "--region", "z=0:3"]
    assert exported(volume, tmp_path / "full", *words)["left_out"] == []
    assert "has no slices 2" in kesm("export", volume.path, "--out", tmp_path / "out", *words, "--level", 1).message


@pytest.mark.parametrize("label", [None, "otsu"])
@pytest.mark.parametrize("out", ["out", "out.ome.tif"])
def test_lost_shard_is_an_error_and_leaves_nothing(volume, tmp_path, label, out):
    shard = volume.path / (f"labels/{label}" if label else "") / "0/c/1/1/0"
    shard.unlink()
    answer = kesm("export", volume.path, *what(label), "--out", tmp_path / out, "--region", "z=0:3")
    way_out = "the next `kesm run` makes it again" if label else "restore it from a copy"
    assert re.search(rf"shard c/1/1/0 is missing; .*{way_out}", answer.message)
    assert [path.name for path in tmp_path.iterdir()] == ["brain.zarr"]


def test_label_of_another_program_is_exported_or_refused(volume, tmp_path):
    path = volume.path / "labels" / "napari"
    create_document(path, {"ome": {"image-label": {}}})
    for level in range(4):
        zarr.create_array(path / str(level), shape=(5, 9, 9), dtype="uint8", chunks=(1, 9, 9), zarr_format=3)
    volume.publish_label("napari")
    message = kesm("export", volume.path, "--label", "napari", "--out", tmp_path / "out").message
    assert "label 'napari' is of another program, and not stored as kesm stores labels" in message


# how it is written


def test_bands_bound_what_is_held(built, tmp_path, monkeypatch):
    """No read is larger than a band, and no more bands than threads, and one, are ahead of what is written."""
    sizes, active, most = [], set(), []
    read = Rendition.read

    def watched(source, box, out):
        active.add(threading.get_ident())
        sizes.append(box.shape)
        most.append(len(active))
        return read(source, box, out)

    monkeypatch.setattr(Rendition, "read", watched)
    for out, form in (("a.ome.tif", "ome-tiff"), ("b", "tiff-stack"), ("c", "png")):
        export(built, Wanted(None, Box((0, 0, 0), (3, *SHAPE[1:]))), Target(tmp_path / out, form), threads=2)
    assert {shape[1] for shape in sizes} == {BAND, SHAPE[1] - BAND}
    assert max(most) <= 3 * 2  # threads of three pools


def test_results_come_in_order_and_few_are_ahead():
    started, events = [], []
    gate = threading.Semaphore(0)

    def work(item: int) -> int:
        started.append(item)
        gate.acquire()
        return item * 10

    results = in_order(work, range(20), 3, events.append)
    found = []
    for _ in range(20):
        gate.release(1)
        gate.release(1)
        found.append(next(results))
        assert len(started) <= len(found) + 3 + 1
    assert found == [item * 10 for item in range(20)]
    assert list(results) == []
    assert events[0] == JobsStarted(20, "")
    assert events.count(JobDone()) == 20


def test_error_of_one_ends_all():
    started = []

    def work(item: int) -> int:
        started.append(item)
        if item == 2:
            raise ValueError("a bug")
        return item

    with pytest.raises(ValueError, match="a bug"):
        list(in_order(work, range(1000), 2, lambda event: None))
    assert len(started) < 10


@pytest.mark.parametrize(("out", "form"), [("out", "png"), ("out", "tiff-stack"), ("out.ome.tif", "ome-tiff")])
def test_broken_off_leaves_what_was_there(built, tmp_path, monkeypatch, out, form):
    target = Target(tmp_path / out, form, replace=True)
    wanted = Wanted(None, Box((0, 0, 0), (3, *SHAPE[1:])))
    export(built, wanted, target)
    paths = [tmp_path / out] if form == "ome-tiff" else sorted((tmp_path / out).iterdir())
    before = [path.read_bytes() for path in paths]
    read, calls = Rendition.read, []

    def dying(source, box, buffer):
        calls.append(box)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(source, box, buffer)

    monkeypatch.setattr(Rendition, "read", dying)
    with pytest.raises(KeyboardInterrupt):
        export(built, wanted, target)
    assert [path.name for path in tmp_path.iterdir()] == [out]
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("out", ["out", "out.ome.tif"])
def test_system_that_refuses_to_write_is_said_in_words(built, tmp_path, out):
    words = f"export {built.path} --image --out {tmp_path / out} --region z=0:3 --threads 2"
    limited = f"ulimit -f 600; exec {KESM} {words}"  # blocks of 1024 bytes: no slice fits
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done
    assert re.search(rf"error: .*/{out}: the file would be larger than the system allows; raise the limit", done.stderr)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_export_that_is_there_is_replaced_only_when_asked(built, tmp_path):
    words = ["--image", "--region", "z=0:3"]
    for out in ("out", "out.ome.tif"):
        exported(built, tmp_path / out, *words)
        again = kesm("export", built.path, "--out", tmp_path / out, *words)
        assert "exists already; overwrite it with --replace" in again.message
    (tmp_path / "out" / "notes.txt").write_text("mine")
    again = kesm("export", built.path, "--out", tmp_path / "out", *words, "--replace")
    assert "holds notes.txt, which is not of an export and is not replaced" in again.message
    (tmp_path / "out" / "notes.txt").unlink()
    exported(built, tmp_path / "out", "--label", "otsu", "--region", "z=1:2", "--replace")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["otsu_z0001.tif"]


def test_label_of_any_kind_has_a_rendition(built):
    for label, is_label in ((None, False), ("groundtruth", True), ("otsu", True)):
        source = open_rendition(built, label)
        assert source.is_label == is_label
        present = source.present(Box.whole(SHAPE)).tolist()
        assert present == [z in ([0, 2, 4] if label == "groundtruth" else THERE) for z in range(5)]


def test_person_is_told_what_was_written(built, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = kesm("export", built.path, "--image", "--out", "slices", "--partial")
    assert answer.code == 0
    assert re.search(r"slices: 4 slices of 2,100 x 2,200 uint8, [\d.]+ MB as tiff-stack\n", answer.out)
    assert "left out, as they are not there, or not done: slices 3" in answer.out
