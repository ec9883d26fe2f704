"""Image stacks and labels into volumes: voxel for voxel, and nothing left behind by what fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaozarrs
from PIL import Image

from pipeline.errors import (
    ConfigError,
    ExistsError,
    ImageFileError,
    LabelValueError,
    LockedError,
    MissingInputError,
    ShapeMismatchError,
)
from pipeline.geometry import Box
from pipeline.images.stack import Page, find_pages
from pipeline.intake.ingest import Ingested, ingest_image, ingest_label, ingest_threads
from pipeline.intake.mapping import LabelOptions
from pipeline.segmentation.engine import ThreadRunner
from pipeline.segmentation.runs import run
from pipeline.settings.config import RunConfig, ThreadsCluster
from pipeline.storage.lock import locked
from pipeline.storage.ome import VoxelSize
from pipeline.storage.store import ShardedArray
from pipeline.storage.volume import Volume, staging_folder

SHAPE = (40, 56)
OPEN = {"vessel": None, "vessel_above": None, "unlabelled": None}


def planes(count: int, shape: tuple[int, int] = SHAPE, dtype: str = "uint8", seed: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype) for _ in range(count)]


def drawing(*values: int, shape: tuple[int, int] = SHAPE, seed: int = 5) -> np.ndarray:
    """Truth file that holds exactly these values."""
    drawn = np.random.default_rng(seed).choice(np.array(values, np.uint8), shape)
    drawn.flat[: len(values)] = values
    return drawn


def write(folder: Path, files: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        if name.endswith(".tif"):
            tifffile.imwrite(folder / name, data, photometric="minisblack")
        else:
            Image.fromarray(data).save(folder / name)
    return folder


def numbered(stack: Sequence[np.ndarray], first: int = 1, name: str = "slice_{}.png") -> dict[str, np.ndarray]:
    return {name.format(first + offset): plane for offset, plane in enumerate(stack)}


def image(
    source: Path | str, path: Path, size: VoxelSize | None = None, append: bool = False, threads: int = 2
) -> Ingested:
    return ingest_image(find_pages([source]), path, ThreadRunner(threads), size, append)


def truth(source: Path | str, path: Path, name: str = "traced", threads: int = 2, **options: float) -> Ingested:
    return ingest_label(find_pages([source]), path, ThreadRunner(threads), LabelOptions(name, **options))


def volume_of(tmp_path: Path, count: int = 4, name: str = "slice_{}.png") -> Path:
    """Volume of some slices, numbered from 1."""
    image(write(tmp_path / "image", numbered(planes(count), name=name)), tmp_path / "brain.zarr")
    return tmp_path / "brain.zarr"


def read(array: ShardedArray) -> np.ndarray:
    return array.read(Box.whole(array.shape))


def stored(path: Path, name: str = "traced") -> np.ndarray:
    return read(Volume(path).truth(name)[0].full)


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def halved_mean(plane: np.ndarray) -> np.ndarray:
    """Mean of the voxels that exist in each 2x2 group, rounded half up: the slow way."""
    height, width = plane.shape
    out = np.empty((-(-height // 2), -(-width // 2)), plane.dtype)
    for y, x in np.ndindex(out.shape):
        group = plane[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].astype(int)
        out[y, x] = (2 * group.sum() + group.size) // (2 * group.size)
    return out


def halved_label(plane: np.ndarray) -> np.ndarray:
    height, width = plane.shape
    out = np.empty((-(-height // 2), -(-width // 2)), plane.dtype)
    for y, x in np.ndindex(out.shape):
        group = plane[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        out[y, x] = 255 if (group == 255).any() else 127 if (group == 127).all() else 0
    return out


# images


def test_new_volume_holds_the_files_voxel_for_voxel_with_its_levels(tmp_path):
    slices = planes(3, (601, 523))
    files = {"slice_10.png": slices[2], "slice_2.png": slices[1], "slice_1.png": slices[0]}
    path = tmp_path / "brain.zarr"
    done = image(write(tmp_path / "image", files), path, size=(1.0, 0.7, 0.6))

    assert done == Ingested(path, None, (0, 1, 2), (3, 601, 523), "in natural order", {}, (1.0, 0.7, 0.6))
    volume = Volume(path)
    np.testing.assert_array_equal(read(volume.image.full), np.stack(slices))
    assert [array.shape for array in volume.image.levels] == [(3, 601, 523), (3, 301, 262)]
    np.testing.assert_array_equal(read(volume.image.levels[1]), np.stack([halved_mean(plane) for plane in slices]))
    assert [volume.slices.source(z) for z in range(3)] == ["slice_1.png", "slice_2.png", "slice_10.png"]
    assert volume.slices.present().all()
    assert volume.voxel_size_um == (1.0, 0.7, 0.6)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["brain.zarr", "brain.zarr.lock", "image"]


def test_what_is_written_is_valid_ome_zarr(tmp_path):
    path = volume_of(tmp_path, 1)
    truth(write(tmp_path / "truth", {"slice_1.png": drawing(0, 255)}), path)
    yaozarrs.validate_zarr_store(path)
    yaozarrs.validate_zarr_store(path / "labels" / "traced")


@pytest.mark.parametrize(
    ("files", "shape"),
    [
        pytest.param({"one.png": planes(1)[0]}, (1, *SHAPE), id="one png"),
        pytest.param({"one.tif": planes(1, dtype="uint16")[0]}, (1, *SHAPE), id="2-d tiff of 16 bit"),
        pytest.param({"many.tif": np.stack(planes(5))}, (5, *SHAPE), id="multi-page tiff"),
    ],
)
def test_any_number_of_slices_in_any_number_of_files_is_a_volume(tmp_path, files, shape):
    image(write(tmp_path / "image", files), tmp_path / "brain.zarr")
    volume = Volume(tmp_path / "brain.zarr")
    assert volume.shape == shape
    np.testing.assert_array_equal(read(volume.image.full), np.stack([*files.values()]).reshape(shape))


def test_sixteen_bits_keep_the_window_of_their_histograms(tmp_path):
    dim = np.random.default_rng(1).integers(300, 4000, (3, *SHAPE)).astype(np.uint16)
    dim[1, 3, 4], dim[2, 0, 0] = 211, 4095
    image(write(tmp_path / "image", numbered(dim, name="{}.tif")), tmp_path / "brain.zarr")
    volume = Volume(tmp_path / "brain.zarr")
    assert (volume.dtype, volume.window) == (np.uint16, (211, 4095))
    np.testing.assert_array_equal(read(volume.image.full), dim)


def test_number_of_threads_changes_no_byte(tmp_path):
    slices, traced = write(tmp_path / "image", numbered(planes(5))), tmp_path / "truth"
    write(traced, {"slice_2.png": drawing(0, 1), "slice_5.png": drawing(0, 1, seed=6)})
    for threads in (1, 2):
        image(slices, tmp_path / f"{threads}.zarr", threads=threads)
        truth(traced, tmp_path / f"{threads}.zarr", threads=threads)
    named = tree(tmp_path / "2.zarr")
    named["zarr.json"] = named["zarr.json"].replace(b'"name": "2"', b'"name": "1"')
    assert named == tree(tmp_path / "1.zarr")


def test_fewer_threads_work_where_memory_does_not_hold_a_slice_for_each():
    page = Page(Path("huge.tif"), 0, 1, (10**6, 10**6), "uint16")
    assert ingest_threads(page, 16) == 1
    assert ingest_threads(replace(page, shape=(8, 8)), 16) == 16


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(("damage", "suffix"), [(cut, "png"), (flip, "png"), (cut, "jpg")])
def test_broken_file_in_the_middle_leaves_nothing(tmp_path, damage: Callable[[Path], None], suffix):
    files = write(tmp_path / "image", numbered(planes(5, (200, 200)), name="{}." + suffix))
    damage(files / f"3.{suffix}")
    (tmp_path / "out").mkdir()
    with pytest.raises(ImageFileError, match=rf"^3\.{suffix}: "):
        image(files, tmp_path / "out" / "brain.zarr")
    assert list((tmp_path / "out").iterdir()) == []


def test_volume_that_exists_is_not_touched(tmp_path):
    path = volume_of(tmp_path, 2)
    before = tree(path)
    with pytest.raises(ExistsError, match=r"exists already; add slices with --append, or choose another --volume"):
        image(tmp_path / "image", path)
    assert tree(path) == before


def test_folder_of_the_volume_must_exist(tmp_path):
    files = write(tmp_path / "image", numbered(planes(1)))
    with pytest.raises(MissingInputError, match=r"no such folder; make it first"):
        image(files, tmp_path / "not" / "there" / "brain.zarr")
    assert not (tmp_path / "not").exists()


# more slices


def test_appended_slices_follow_the_last_one_in_image_and_labels(tmp_path):
    path = volume_of(tmp_path, 3)
    truth(write(tmp_path / "truth", {"slice_2.png": drawing(0, 255)}), path)
    run(RunConfig(volume=path, truth="traced"))
    more = planes(2, seed=9)
    done = image(write(tmp_path / "more", numbered(more, first=4)), path, append=True)

    assert (done.slices, done.shape, done.placed) == ((3, 4), (5, *SHAPE), "after the last slice")
    volume = Volume(path)
    np.testing.assert_array_equal(read(volume.image.full), np.stack(planes(3) + more))
    assert stored(path).shape == (5, *SHAPE)
    assert (stored(path)[[0, 2, 3, 4]] == 127).all()
    again = run(RunConfig(volume=path, truth="traced"))
    assert (again.tiles.done, again.tiles.reused) == (5, 3)


@pytest.mark.parametrize(
    ("files", "size", "error", "message"),
    [
        pytest.param(
            {"slice_4.png": planes(1, (40, 57))[0]}, None, ShapeMismatchError,
            r"slice_4\.png: is 40 x 57, the slices of .* are 40 x 56; crop it or leave it out", id="size",
        ),
        pytest.param(
            {"slice_4.tif": planes(1, dtype="uint16")[0]}, None, ShapeMismatchError,
            r"slice_4\.tif: is uint16, .* is uint8; convert it", id="type",
        ),
        pytest.param(
            {"slice_4.png": planes(1)[0]}, (1.0, 1.0, 1.0), ConfigError,
            r"--voxel-size: got .*; leave it out with --append", id="voxel size",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_not_appended(tmp_path, files, size, error, message):
    path = volume_of(tmp_path, 3)
    before = tree(path)
    with pytest.raises(error, match=message):
        image(write(tmp_path / "more", files), path, size=size, append=True)
    assert tree(path) == before
    assert not (tmp_path / "brain.zarr.staging").exists()


def ome(path: Path, z: float | None = 1.5, y: float = 0.7, x: float = 0.6, seed: int = 3) -> Path:
    """OME-TIFF of one slice that states the size of its voxels."""
    sizes = {"PhysicalSizeZ": z, "PhysicalSizeY": y, "PhysicalSizeX": x}
    path.parent.mkdir(exist_ok=True)
    stated = {key: size for key, size in sizes.items() if size is not None}
    tifffile.imwrite(path, planes(1, seed=seed)[0], ome=True, metadata={"axes": "YX"} | stated)
    return path


def test_voxel_size_is_the_one_that_the_files_state(tmp_path):
    path = tmp_path / "brain.zarr"
    done = image(ome(tmp_path / "in" / "slice_1.tif"), path)
    assert done.voxel_size_um == Volume(path).voxel_size_um == (1.5, 0.7, 0.6)
    assert image(ome(tmp_path / "slice_2.tif", x=0.6001), path, append=True).voxel_size_um == (1.5, 0.7, 0.6)
    assert image(ome(tmp_path / "slice_3.tif", z=None), path, append=True).slices == (2,)
    done = image(tmp_path / "in", tmp_path / "given.zarr", (3.0, 2.0, 1.0))
    assert done.voxel_size_um == Volume(tmp_path / "given.zarr").voxel_size_um == (3.0, 2.0, 1.0)


def test_size_that_is_not_known_along_z_is_not_stored(tmp_path):
    ome(tmp_path / "in" / "slice_1.tif", z=None)
    ome(tmp_path / "in" / "slice_2.tif", z=None, x=7)
    assert image(tmp_path / "in", tmp_path / "brain.zarr").voxel_size_um is None
    assert Volume(tmp_path / "brain.zarr").voxel_size_um is None
    assert image(ome(tmp_path / "slice_3.tif"), tmp_path / "brain.zarr", append=True).voxel_size_um is None


@pytest.mark.parametrize("other", [{"z": 1.6}, {"y": 0.6}, {"z": None, "x": 0.61}], ids=["z", "y", "x"])
def test_files_that_contradict_each_other_are_refused(tmp_path, other):
    ome(tmp_path / "in" / "slice_1.tif")
    ome(tmp_path / "in" / "slice_2.tif", **other)
    with pytest.raises(
        ConfigError,
        match=r"^slice_2\.tif: states voxels of \S+ x 0\.\d+ x 0\.\d+ um \(z, y, x\), slice_1\.tif of "
        r"1\.5 x 0\.7 x 0\.6; give the right one with --voxel-size Z,Y,X$",
    ):
        image(tmp_path / "in", tmp_path / "brain.zarr")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]
    assert image(tmp_path / "in", tmp_path / "brain.zarr", (1.0, 0.7, 0.6)).voxel_size_um == (1.0, 0.7, 0.6)


def test_files_that_contradict_the_volume_are_not_appended(tmp_path):
    path = tmp_path / "brain.zarr"
    image(ome(tmp_path / "slice_1.tif"), path)
    before = tree(path)
    other = ome(tmp_path / "slice_2.tif", z=None, x=0.7)
    with pytest.raises(
        ConfigError,
        match=r"^slice_2\.tif: states voxels of \? x 0\.7 x 0\.7 um \(z, y, x\), .*brain\.zarr of 1\.5 x 0\.7 x 0\.6; "
        r"leave the file out, or give --voxel-size 1\.5,0\.7,0\.6 if that is right$",
    ):
        image(other, path, append=True)
    assert tree(path) == before
    assert image(other, path, (1.5, 0.70001, 0.6), append=True).voxel_size_um == (1.5, 0.7, 0.6)


def test_file_that_is_a_slice_already_is_not_appended(tmp_path):
    path = volume_of(tmp_path, 3)
    before = tree(path)
    with pytest.raises(ConfigError, match=r"^slice_1\.png: is slice 0 of .* already; leave it out"):
        image(tmp_path / "image", path, append=True)
    copy = write(tmp_path / "copy", {"slice_2.png": planes(1)[0]}) / "slice_2.png"
    when = (tmp_path / "image" / "slice_2.png").stat().st_mtime_ns
    os.utime(copy, ns=(when, when))
    with pytest.raises(ConfigError, match=r"^slice_2\.png: is slice 1 of .* already; leave it out"):
        image(copy, path, append=True)
    assert tree(path) == before


def test_nightly_folders_have_the_same_file_names(tmp_path):
    path = volume_of(tmp_path, 3)
    second, third = planes(2, seed=8), planes(3, seed=9)
    image(write(tmp_path / "second", numbered(second)), path, append=True)
    assert image(write(tmp_path / "third", numbered(third)), path, append=True).slices == (5, 6, 7)
    np.testing.assert_array_equal(read(Volume(path).image.full), np.stack(planes(3) + second + third))
    assert [Volume(path).slices.source(z) for z in (0, 3, 5)] == ["slice_1.png"] * 3


def test_append_needs_a_volume(tmp_path):
    files = write(tmp_path / "image", numbered(planes(1)))
    with pytest.raises(MissingInputError, match=r"no such volume; make one with `kesm ingest"):
        image(files, tmp_path / "brain.zarr", append=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["image"]


def test_append_that_fails_half_way_leaves_every_byte_as_it_was(tmp_path):
    path = volume_of(tmp_path, 3)
    truth(write(tmp_path / "truth", {"slice_2.png": drawing(0, 255)}), path)
    first = run(RunConfig(volume=path, truth="traced"))
    before = tree(path)
    more = write(tmp_path / "more", numbered(planes(4, seed=9), first=4))
    cut(more / "slice_6.png")
    with pytest.raises(ImageFileError, match=r"^slice_6\.png: "):
        image(more, path, append=True, threads=1)

    assert tree(path) == before
    assert not (tmp_path / "brain.zarr.staging").exists()
    again = run(RunConfig(volume=path, truth="traced"))
    assert (again.counts, again.tiles.reused) == (first.counts, 3)
    (more / "slice_6.png").unlink()
    assert image(more, path, append=True).slices == (3, 4, 5)


def test_append_goes_on_where_a_killed_one_has_stopped(tmp_path):
    path = volume_of(tmp_path, 2)
    volume = Volume(path)
    volume.resize(5)  # what a process that dies right after its resize leaves
    with staging_folder(path, "ingest-image") as staging:
        volume.image.write_slice(2, planes(1, seed=1)[0], staging)
    more = planes(2, seed=9)
    done = image(write(tmp_path / "more", numbered(more, first=3)), path, append=True)
    assert done.slices == (2, 3)
    volume = Volume(path)
    np.testing.assert_array_equal(volume.slices.present(), [True] * 4 + [False])
    np.testing.assert_array_equal(read(volume.image.full)[:4], np.stack(planes(2) + more))


class Interrupted(ThreadRunner):
    """Stops after the first slices, as Ctrl-C does."""

    def __call__(self, function, items, what=""):
        super().__call__(function, items[:2], what)
        raise KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class Meddling(ThreadRunner):
    """Does something before the jobs of a step."""

    step: str = ""
    meddle: Callable[[], object] = int

    def __call__(self, function, items, what=""):
        if what == self.step:
            self.meddle()
        return ThreadRunner.__call__(self, function, items, what)


def test_interrupted_ingest_leaves_nothing(tmp_path):
    pages = find_pages([write(tmp_path / "image", numbered(planes(4)))])
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "brain.zarr"
    with pytest.raises(KeyboardInterrupt):
        ingest_image(pages, path, Interrupted(1))
    assert list((tmp_path / "out").iterdir()) == []

    image(tmp_path / "image", path)
    before = tree(path)
    with pytest.raises(KeyboardInterrupt):
        ingest_image(
            find_pages([write(tmp_path / "more", numbered(planes(4), first=5))]), path, Interrupted(1), None, True
        )
    assert tree(path) == before


def test_interrupted_label_leaves_nothing(tmp_path, monkeypatch):
    path = volume_of(tmp_path, 4)
    before = tree(path)
    pages = find_pages([write(tmp_path / "truth", numbered([drawing(0, 255)] * 4))])
    with pytest.raises(KeyboardInterrupt):
        ingest_label(pages, path, Interrupted(1), LabelOptions("traced"))
    assert tree(path) == before


KILLED = """
import os, sys
from pathlib import Path
from pipeline.segmentation.engine import ThreadRunner
from pipeline.intake.ingest import ingest_image, ingest_label
from pipeline.intake.mapping import LabelOptions
from pipeline.images.stack import find_pages
from pipeline.storage.volume import Ledger

record, kind, files, path, left = Ledger.record, sys.argv[1], sys.argv[2], Path(sys.argv[3]), [2]

def record_some(self, *arguments):
    if not left[0]:
        os._exit(9)
    left[0] -= 1
    record(self, *arguments)

Ledger.record = record_some
pages, runner = find_pages([files]), ThreadRunner(2)
if kind == "image":
    ingest_image(pages, path, runner, None, append=True)
else:
    ingest_label(pages, path, runner, LabelOptions("traced"))
"""


@pytest.mark.parametrize(("kind", "present"), [("image", [True] * 5 + [False] * 2), ("label", [True] * 2 + [False])])
def test_slices_that_exist_have_no_gap_whenever_it_is_killed(tmp_path, kind, present):
    path = volume_of(tmp_path, 3)
    drawn = numbered([drawing(0, 255, seed=seed) for seed in range(4 if kind == "image" else 3)])
    files = write(tmp_path / "files", drawn)
    if kind == "label":
        truth(files, path)
    done = subprocess.run([sys.executable, "-c", KILLED, kind, str(files), str(path)], check=False)
    assert done.returncode == 9
    volume = Volume(path)
    ledger = volume.slices if kind == "image" else volume.truth("traced")[1]
    np.testing.assert_array_equal(ledger.present(), present)
    if kind == "label":
        truth(files, path)
        assert Volume(path).truth("traced")[1].present().all()
        np.testing.assert_array_equal(stored(path), np.stack([*drawn.values()]))


def test_what_another_process_did_before_it_let_go_of_the_lock_is_seen(tmp_path, monkeypatch):
    path = volume_of(tmp_path, 3)
    lock = Volume.lock

    def wait_for(other: Callable[[], object]) -> None:
        @contextmanager
        def late(volume):
            monkeypatch.setattr(Volume, "lock", lock)
            other()
            with lock(volume):
                yield

        monkeypatch.setattr(Volume, "lock", late)

    fourth, fifth = (write(tmp_path / f"more{n}", numbered(planes(1, seed=n), first=n)) for n in (4, 5))
    wait_for(lambda: image(fourth, path, append=True))
    assert image(fifth, path, append=True).slices == (4,)

    wait_for(lambda: image(write(tmp_path / "more6", numbered(planes(1), first=6)), path, append=True))
    assert truth(write(tmp_path / "truth", {"slice_6.png": drawing(0, 255)}), path).slices == (5,)

    wait_for(lambda: truth(write(tmp_path / "first", {"slice_1.png": drawing(0, 9)}), path, name="other"))
    with pytest.raises(LabelValueError, match=r"its first files were read as 0 background, 9 vessel"):
        truth(tmp_path / "truth", path, name="other")

    wait_for(lambda: image(fourth, path, append=True))
    with pytest.raises(ConfigError, match=r"slice_4\.png: is slice 3"):
        image(fifth, path, append=True)


def test_file_that_vanishes_is_named(tmp_path):
    path = volume_of(tmp_path, 2)
    before = tree(path)
    files = write(tmp_path / "files", numbered([drawing(0, 255)] * 2, first=3))
    pages = find_pages([files])
    gone = files / "slice_4.png"
    for runner in (Meddling(2, step="", meddle=gone.unlink), ThreadRunner(2)):
        with pytest.raises(MissingInputError, match=r"^slice_4\.png: no such file"):
            ingest_image(pages, path, runner, None, append=True)
    with pytest.raises(MissingInputError, match=r"^slice_4\.png: no such file"):
        ingest_image(pages, tmp_path / "new.zarr", ThreadRunner(2))
    assert tree(path) == before


def test_volume_in_the_making_belongs_to_one_process(tmp_path):
    files = write(tmp_path / "image", numbered(planes(1)))
    with (
        locked(tmp_path / "brain.zarr.lock", "held"),
        pytest.raises(LockedError, match=r"another process is making it"),
    ):
        image(files, tmp_path / "brain.zarr")
    assert not (tmp_path / "brain.zarr").exists()


# labels


def test_label_is_stored_where_its_names_say(tmp_path):
    path = volume_of(tmp_path, 4)
    drawn = {"slice_2.png": drawing(0, 9), "slice_4.png": drawing(0, 9, seed=6)}
    done = truth(write(tmp_path / "truth", drawn), path)
    assert done == Ingested(path, "traced", (1, 3), (4, *SHAPE), "by file name", OPEN | {"vessel": 9})
    expected = np.full((4, *SHAPE), 127, np.uint8)
    expected[[1, 3]] = [np.where(plane == 9, 255, 0) for plane in drawn.values()]
    np.testing.assert_array_equal(stored(path), expected)
    np.testing.assert_array_equal(Volume(path).truth("traced")[1].present(), [False, True, False, True])


def test_pages_of_a_label_are_placed_in_order_or_from_a_start(tmp_path):
    path = volume_of(tmp_path, 4)
    stack = np.stack([drawing(0, 255, seed=seed) for seed in range(4)])
    files = write(tmp_path / "truth", {"all.tif": stack})
    assert truth(files, path).placed == "in natural order"
    np.testing.assert_array_equal(stored(path), stack)
    write(tmp_path / "some", {"some.tif": stack[:2]})
    assert truth(tmp_path / "some", path, name="some", start_z=2).slices == (2, 3)


def test_label_without_a_place_or_a_meaning_changes_nothing(tmp_path):
    path = volume_of(tmp_path, 4)
    before = tree(path)
    with pytest.raises(MissingInputError, match=r"slice_9\.png: cannot be placed: .* of the 4 slices of "):
        truth(write(tmp_path / "nowhere", {"slice_9.png": drawing(0, 255)}), path)
    with pytest.raises(LabelValueError, match=r"hold 3 values \(0, 1, 2\)"):  # over all files
        truth(write(tmp_path / "odd", {"slice_1.png": drawing(0, 1), "slice_2.png": drawing(0, 2)}), path)
    assert tree(path) == before
    assert not (tmp_path / "brain.zarr.staging").exists()


def test_label_of_another_size_is_refused(tmp_path):
    path = volume_of(tmp_path, 1)
    files = write(tmp_path / "truth", {"slice_1.png": drawing(0, 255, shape=(40, 57))})
    with pytest.raises(ShapeMismatchError, match=r"slice_1\.png: is 40 x 57, the slices of .* are 40 x 56"):
        truth(files, path)
    assert not (path / "labels").exists()


def test_name_of_a_run_is_no_name_for_a_label(tmp_path):
    path = volume_of(tmp_path, 1)
    run(RunConfig(volume=path))
    before = tree(path)
    files = write(tmp_path / "truth", {"slice_1.png": drawing(0, 255)})
    with pytest.raises(ExistsError, match=r"--label: 'otsu' is the mask of a run of .*; choose another name"):
        truth(files, path, name="otsu")
    assert tree(path) == before


@pytest.mark.parametrize("name", ["a b", ".hidden", "a/b", "", "ä"])
def test_name_of_a_label_is_one_of_a_folder(tmp_path, name):
    path = volume_of(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"--label: got "):
        truth(tmp_path / "image", path, name=name)


def test_levels_of_a_label_keep_its_vessels(tmp_path):
    shape = (601, 523)
    image(write(tmp_path / "image", numbered(planes(1, shape))), tmp_path / "brain.zarr")
    traced = np.random.default_rng(2).choice(np.array([0, 127, 255], np.uint8), shape, p=[0.5, 0.4, 0.1])
    truth(write(tmp_path / "truth", {"slice_1.png": traced}), tmp_path / "brain.zarr", unlabelled=127)
    levels = Volume(tmp_path / "brain.zarr").truth("traced")[0].levels
    np.testing.assert_array_equal(read(levels[0])[0], traced)
    np.testing.assert_array_equal(read(levels[1])[0], halved_label(traced))


def test_sixteen_bit_labels_are_mapped_alike(tmp_path):
    path = volume_of(tmp_path, 1)
    drawn = np.where(drawing(0, 1) > 0, np.uint16(40000), np.uint16(0))
    assert truth(write(tmp_path / "truth", {"slice_1.tif": drawn}), path).mapping == OPEN | {"vessel": 40000}
    np.testing.assert_array_equal(stored(path)[0], np.where(drawn > 0, 255, 0))


def test_meaning_of_the_first_files_is_kept(tmp_path):
    path = volume_of(tmp_path, 3)
    truth(write(tmp_path / "one", {"slice_1.png": drawing(0, 4)}), path, unlabelled=4)
    drawn = drawing(0, 4, 9)
    assert truth(write(tmp_path / "two", {"slice_2.png": drawn}), path).mapping == OPEN | {"vessel": 9, "unlabelled": 4}
    assert Volume(path).labels()["traced"].mapping == OPEN | {"vessel": 9, "unlabelled": 4}
    np.testing.assert_array_equal(stored(path)[0], np.where(drawing(0, 4) == 4, 127, 0))
    np.testing.assert_array_equal(stored(path)[1], np.select([drawn == 4, drawn == 9], [127, 255], 0))
    before = tree(path)
    with pytest.raises(LabelValueError, match=r"its first files were read as 0 background, 9 vessel, 4 not annotated"):
        truth(write(tmp_path / "three", {"slice_3.png": drawing(0, 8)}), path)
    assert tree(path) == before


def test_value_of_the_vessel_is_decided_over_all_files(tmp_path):
    path = volume_of(tmp_path, 3)
    files = numbered([drawing(0), drawing(6), drawing(0, 6)])
    assert truth(write(tmp_path / "truth", files), path).mapping == OPEN | {"vessel": 6}
    np.testing.assert_array_equal(stored(path), np.where(np.stack([*files.values()]) == 6, 255, 0))


def test_slice_that_is_traced_again_replaces_the_old_one(tmp_path):
    path = volume_of(tmp_path, 3)
    first = numbered([drawing(0, 255, seed=seed) for seed in range(3)])
    truth(write(tmp_path / "one", first), path)
    run(RunConfig(volume=path, truth="traced"))
    better = drawing(0, 255, seed=77)
    truth(write(tmp_path / "two", {"slice_2.png": better}), path)

    expected = np.stack([*first.values()])
    expected[1] = better
    np.testing.assert_array_equal(stored(path), expected)
    assert Volume(path).truth("traced")[1].present().all()
    again = run(RunConfig(volume=path, truth="traced"))
    assert (again.tiles.done, again.tiles.reused) == (3, 2)
    assert again == replace(run(RunConfig(volume=path, truth="traced", name="fresh")), name="otsu",
                            tiles=again.tiles, elapsed_s=again.elapsed_s)  # fmt: skip


def test_old_truth_stays_where_its_replacement_cannot_be_read(tmp_path):
    path = volume_of(tmp_path, 3)
    first = numbered([drawing(0, 255, seed=seed) for seed in range(3)])
    truth(write(tmp_path / "one", first), path)
    files = write(tmp_path / "two", {"slice_2.png": drawing(0, 255, seed=8), "slice_3.png": drawing(0, 255, seed=9)})
    steps: list[str] = []
    runner = Meddling(1, lambda event: steps.append(getattr(event, "what", "")), "writing",
                      lambda: cut(files / "slice_3.png"))  # fmt: skip
    with pytest.raises(ImageFileError, match=r"^slice_3\.png: "):
        ingest_label(find_pages([files]), path, runner, LabelOptions("traced"))
    assert [step for step in steps if step] == ["checking", "writing"]
    assert Volume(path).truth("traced")[1].present()[[0, 2]].all()
    np.testing.assert_array_equal(stored(path)[[0, 2]], [first["slice_1.png"], first["slice_3.png"]])


def test_broken_file_of_a_label_leaves_nothing(tmp_path):
    path = volume_of(tmp_path, 3)
    before = tree(path)
    files = write(tmp_path / "truth", numbered([drawing(0, 255)] * 3))
    cut(files / "slice_2.png")
    with pytest.raises(ImageFileError, match=r"^slice_2\.png: "):
        truth(files, path)
    assert tree(path) == before
    assert Volume(path).labels() == {}


def test_label_of_a_process_that_died_is_made_anew(tmp_path):
    path = volume_of(tmp_path, 2)
    half, ledger = Volume(path).create_truth("traced", OPEN | {"vessel": 3})
    with staging_folder(path, "ingest-label") as staging:
        ledger.record(0, half.write_slice(0, drawing(0, 255), staging), "x.png", 0)
    assert "traced" not in Volume(path).labels()
    truth(write(tmp_path / "truth", {"slice_2.png": drawing(0, 9)}), path)
    assert Volume(path).labels()["traced"].mapping == OPEN | {"vessel": 9}
    np.testing.assert_array_equal(Volume(path).truth("traced")[1].present(), [False, True])
    assert (stored(path)[0] == 127).all()


def test_runs_see_a_label_at_once(tmp_path):
    path = volume_of(tmp_path, 2)
    drawn = drawing(0, 255)
    truth(write(tmp_path / "truth", {"slice_1.png": drawn}), path)
    summary = run(RunConfig(volume=path, truth="traced", cluster=ThreadsCluster(threads=1)))
    assert summary.annotated == drawn.size
    assert summary.voxels == 2 * drawn.size
