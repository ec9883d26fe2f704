"""Syncs of real folders: what is taken, what is left out and why, and that nothing else is touched."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from pipeline.errors import LockedError, StorageError
from pipeline.geometry import Box
from pipeline.intake import sync as sync_module
from pipeline.intake.arrivals import gather
from pipeline.intake.ingest import SliceJob
from pipeline.intake.sync import Synced, sync
from pipeline.settings.configfile import load_config
from pipeline.storage.ledger import Ledger
from pipeline.storage.lock import locked
from pipeline.storage.tables import RunTables, Status, run_lock
from pipeline.storage.volume import Volume
from tests.builders import textured
from tests.command import kesm
from tests.contract import check_document

SHAPE = (300, 530)  # two tiles a slice, and a second level
KESM = Path(sys.executable).with_name("kesm")
CONFIGS = Path(__file__).parents[1] / "configs"
TEXT = """\
volume: brain.zarr
truth: traced
denoise: {size: [3, 3, 3]}
cluster: {threads: 2}
sync:
  images: {folder: in, number: 's_(\\d+)', first: 1}
  truth: {folder: traced}
  settle: 0s
"""
IN_ORDER = TEXT.replace(", number: 's_(\\d+)', first: 1", "")


def grey(seed: int, shape: tuple[int, int] = SHAPE, dtype: str = "uint8") -> np.ndarray:
    return textured(np.random.default_rng(seed), shape, dtype)


def drawing(seed: int, *values: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    drawn = np.random.default_rng(seed).choice(np.array(values or (0, 255), np.uint8), shape)
    drawn.flat[: len(values or (0, 255))] = values or (0, 255)
    return drawn


def save(path: Path, pixels: np.ndarray) -> Path:
    """Write an image file, with a time of its own however fast the tests are."""
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="minisblack")
    else:
        Image.fromarray(pixels).save(path)
    save.clock += 10**9  # type: ignore[attr-defined]
    os.utime(path, ns=(save.clock, save.clock))  # type: ignore[attr-defined]
    return path


save.clock = 10**18  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Lab:
    """A folder with a configuration, its source folders and its volume."""

    folder: Path

    @property
    def images(self) -> Path:
        return self.folder / "in"

    @property
    def traced(self) -> Path:
        return self.folder / "traced"

    @property
    def config(self) -> Path:
        return self.folder / "sync.yaml"

    @property
    def path(self) -> Path:
        return self.folder / "brain.zarr"

    @property
    def volume(self) -> Volume:
        return Volume(self.path)

    def image(self, number: int, seed: int | None = None, suffix: str = "png") -> Path:
        return save(self.images / f"s_{number:03d}.{suffix}", grey(number if seed is None else seed))

    def truth(self, number: int, seed: int | None = None, values: tuple[int, ...] = ()) -> Path:
        return save(self.traced / f"s_{number:03d}.png", drawing(number if seed is None else seed, *values))

    def sync(self, **options: Any) -> Synced:
        done = sync(load_config(self.config), **options)
        check_document("sync", json.loads(json.dumps(done.document())))
        return done


def empty_lab(folder: Path, text: str = TEXT) -> Lab:
    """Empty source folders, and a configuration."""
    lab = Lab(folder)
    lab.images.mkdir(parents=True)
    lab.traced.mkdir()
    lab.config.write_text(text)
    return lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Empty source folders."""
    return empty_lab(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Four slices, two of them traced, in a volume; not to be touched."""
    lab = empty_lab(tmp_path_factory.mktemp("built"))
    for number in (1, 2, 3, 4):
        lab.image(number)
    for number in (2, 3):
        lab.truth(number)
    assert lab.sync().images.added == (0, 1, 2, 3)
    return lab


@pytest.fixture
def synced(built: Lab, tmp_path: Path) -> Lab:
    """A copy of those slices and their volume."""
    shutil.copytree(built.folder, tmp_path, dirs_exist_ok=True)
    return Lab(tmp_path)


def tree(path: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder, and when it was written."""
    return {
        str(file.relative_to(path)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in path.rglob("*")
        if file.is_file()
    }


def voxels(lab: Lab, label: str | None = None) -> np.ndarray:
    array = (lab.volume.image if label is None else lab.volume.label(label)).full
    return array.read(Box.whole(array.shape))


def cut(path: Path) -> bytes:
    """Leave the first part of a file; return the whole."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    return whole


def refusal(lab: Lab) -> str:
    """The one message of a sync that is refused, which has touched nothing."""
    before = tree(lab.path)
    answer = kesm("sync", lab.config)
    assert (answer.code, answer.out) == (2, ""), answer
    assert tree(lab.path) == before
    assert not (lab.folder / "brain.zarr.staging").exists()
    _, _, message = f"\n{answer.err}".rpartition("\nerror: ")
    assert answer.err.count("error: ") == 1
    return message.rstrip("\n").replace(f"{lab.folder}/", "")


# what is taken


def test_first_sync_makes_the_volume_and_runs_it(lab):
    for number in (1, 2, 3):
        lab.image(number)
    lab.truth(2)
    done = lab.sync()
    assert (done.images.added, done.images.replaced, done.truths.added) == ((0, 1, 2), (), (1,))
    assert (done.waiting, done.set_aside, done.gaps, done.partial) == ((), (), (), False)
    assert (done.run.name, done.run.truth, done.run.tiles.done, done.run.annotated) == ("otsu", "traced", 6, 159000)
    np.testing.assert_array_equal(voxels(lab), np.stack([grey(number) for number in (1, 2, 3)]))
    np.testing.assert_array_equal(voxels(lab, "traced")[1], drawing(2))
    assert (voxels(lab, "traced")[[0, 2]] == 127).all()
    assert [lab.volume.slices.source(z) for z in range(3)] == ["s_001.png", "s_002.png", "s_003.png"]


def test_second_sync_does_nothing(synced):
    before = tree(synced.path)
    done = synced.sync()
    assert (done.images.added, done.truths.added, done.run.tiles.reused) == ((), (), 8)
    assert tree(synced.path) == before
    again = synced.sync()
    assert (again.run.counts, again.run.scores) == (done.run.counts, done.run.scores)


def test_new_slices_cost_themselves_and_their_neighbours(synced):
    synced.image(5)
    synced.image(6)
    done = synced.sync()
    assert (done.images.added, done.images.replaced) == ((4, 5), ())
    assert (done.run.tiles.done, done.run.tiles.reused) == (12, 6)  # slice 3 has a new neighbour


def test_changed_slice_costs_itself_and_its_neighbours(synced):
    for number in (5, 6):
        synced.image(number)
    synced.sync()
    levels = [synced.path / str(level) / "c" for level in range(2)]
    before = [tree(level) for level in levels]
    synced.image(2, seed=99)
    done = synced.sync()
    assert (done.images.added, done.images.replaced) == ((), (1,))
    assert (done.run.tiles.done, done.run.tiles.reused) == (12, 6)
    for level, old in zip(levels, before, strict=True):
        new = tree(level)
        assert {name.split("/")[0] for name in new if new[name] != old[name]} == {"1"}
    np.testing.assert_array_equal(voxels(synced)[1], grey(99))


def test_what_was_touched_only_is_not_computed_again(synced):
    os.utime(synced.images / "s_002.png", ns=(1, 1))
    done = synced.sync()
    assert (done.images.replaced, done.run.tiles.reused) == ((1,), 8)


def test_changed_truth_is_counted_again_and_the_mask_is_not_written(synced):
    levels = [synced.path / "labels" / "otsu" / str(level) for level in range(2)]
    before, first = [tree(level) for level in levels], synced.sync().run
    synced.truth(2, seed=99)
    synced.truth(4)
    done = synced.sync()
    assert (done.truths.added, done.truths.replaced, done.images.replaced) == ((3,), (1,), ())
    assert done.run.counts != first.counts
    assert done.run.annotated == 3 * SHAPE[0] * SHAPE[1]
    assert [tree(level) for level in levels] == before


def test_slice_under_another_name_is_replaced(synced):
    (synced.images / "s_003.png").unlink()
    synced.image(3, seed=50, suffix="tif")
    done = synced.sync()
    assert (done.images.replaced, done.images.vanished) == ((2,), {})
    assert synced.volume.slices.source(2) == "s_003.tif"


def test_sixteen_bits(lab):
    for number in (1, 2):
        save(lab.images / f"s_{number}.tif", grey(number, dtype="uint16"))
    done = lab.sync()
    assert done.images.added == (0, 1)
    stack = np.stack([grey(number, dtype="uint16") for number in (1, 2)])
    assert lab.volume.window == (stack.min(), stack.max())
    np.testing.assert_array_equal(voxels(lab), stack)


def test_options_of_the_sources(lab):
    text = TEXT.replace("first: 1", "first: 1, channel: green").replace("{folder: traced}", "{folder: traced, "
        "number: 'of(\\d+)', first: 1, channel: 0, vessel_above: 99.5}")  # fmt: skip
    lab.config.write_text(text + "  voxel_size_um: [1, 0.7, 0.6]\n")
    save(lab.images / "s_1.png", np.stack([grey(1), grey(2), grey(3)], axis=-1))
    save(lab.traced / "of1.png", drawing(1, 3, 99, 100, 200))
    done = lab.sync()
    assert (done.images.added, done.truths.added) == ((0,), (0,))
    np.testing.assert_array_equal(voxels(lab)[0], grey(2))
    np.testing.assert_array_equal(voxels(lab, "traced")[0], np.where(drawing(1, 3, 99, 100, 200) >= 100, 255, 0))
    assert lab.volume.voxel_size_um == (1, 0.7, 0.6)
    assert lab.sync().run.tiles.reused == 2


def ome(lab: Lab, number: int, z: float) -> Path:
    """Image that states the size of its voxels."""
    path = lab.images / f"s_{number}.tif"
    sizes = {"PhysicalSizeZ": z, "PhysicalSizeY": 0.7, "PhysicalSizeX": 0.6}
    tifffile.imwrite(path, grey(number), ome=True, metadata={"axes": "YX"} | sizes)
    return path


def test_voxel_size_is_the_one_that_the_files_state(lab):
    ome(lab, 1, 1.5)
    other = ome(lab, 2, 3)
    assert refusal(lab) == (
        "s_2.tif: states voxels of 3 x 0.7 x 0.6 um (z, y, x), s_1.tif of 1.5 x 0.7 x 0.6; set the right one as "
        "`sync.voxel_size_um: [z, y, x]`"
    )
    assert not lab.path.exists()
    other.unlink()
    lab.sync()
    assert lab.volume.voxel_size_um == (1.5, 0.7, 0.6)
    ome(lab, 2, 3)
    assert refusal(lab) == (
        "s_2.tif: states voxels of 3 x 0.7 x 0.6 um (z, y, x), brain.zarr of 1.5 x 0.7 x 0.6; leave the file out, or "
        "set `sync.voxel_size_um: [1.5, 0.7, 0.6]` if that is right"
    )
    lab.config.write_text(TEXT + "  voxel_size_um: [1.5, 0.70001, 0.6]\n")
    assert lab.sync().images.added == (1,)


def test_nothing_has_arrived_yet(lab):
    done = lab.sync()
    assert (done.run, done.gaps, done.partial) == (None, (), False)
    assert not lab.path.exists()
    lab.truth(1)
    assert lab.sync().waiting[0].reason == "waits for an image of its name"
    assert not lab.path.exists()


# in order


def test_without_numbers_files_go_after_the_last_slice(lab):
    lab.config.write_text(IN_ORDER)
    for name in ("s_2.png", "s_10.png"):
        save(lab.images / name, grey(int(name[2:-4])))
    assert lab.sync().images.added == (0, 1)
    save(lab.images / "s_11.png", grey(11))
    save(lab.images / "s_3.png", grey(3))
    done = lab.sync()
    assert (done.images.added, done.partial) == ((2,), True)
    ((note),) = done.set_aside
    assert note.file == "s_3.png"
    assert note.reason.startswith("does not come after s_10.png, the last slice")
    np.testing.assert_array_equal(voxels(lab), np.stack([grey(n) for n in (2, 10, 11)]))


def test_bad_file_in_order_leaves_no_gap_and_a_late_one_keeps_its_place(lab):
    lab.config.write_text(IN_ORDER.replace("0s", "5s"))
    for number in (1, 2, 3, 4):
        lab.image(number)
    cut(lab.images / "s_002.png")
    os.utime(lab.images / "s_002.png", ns=(1, 1))
    late = lab.images / "s_004.png"
    os.utime(late, ns=(4 * 10**18, 4 * 10**18))
    save(lab.images / "s_005.png", grey(5))

    def write_on(_: float) -> None:
        os.utime(late, ns=(4 * 10**18 + 1, 4 * 10**18 + 1))

    done = lab.sync(pause=write_on)
    assert (done.images.added, done.gaps) == ((0, 1), ())
    assert [note.file for note in done.set_aside] == ["s_002.png"]
    assert [(note.file, note.reason) for note in done.waiting] == [
        ("s_004.png", "is still being written"),
        ("s_005.png", "comes after s_004.png, which is still being written"),
    ]
    assert lab.sync(pause=lambda _: None).images.added == (2, 3)
    np.testing.assert_array_equal(voxels(lab), np.stack([grey(n) for n in (1, 3, 4, 5)]))


def lose_name(lab: Lab, z: int) -> Path:
    """Remove the document that says which file a slice came from."""
    folder = lab.path / "slices" / "image" / "files" / f"{z:06d}"
    return Path(shutil.move(folder, lab.folder / "lost"))


@pytest.mark.parametrize("z", [1, 3], ids=["inside", "last"])
def test_order_needs_the_name_of_every_slice(synced, z):
    synced.config.write_text(IN_ORDER)
    lost = lose_name(synced, z)
    assert refusal(synced) == (
        f"sync.images: the name of the file of slice {z} is lost from brain.zarr, and names alone say where files "
        "belong; give `sync.images.number`, a pattern that finds the slice in each name, or restore "
        f"slices/image/files/00000{z}/zarr.json from a copy of the volume"
    )
    shutil.move(lost, synced.path / "slices" / "image" / "files" / f"{z:06d}")
    assert synced.sync().images.added == ()


def test_lost_name_is_found_again_by_number(synced):
    lose_name(synced, 3)
    done = synced.sync()
    assert (done.images.added, done.images.replaced, done.truths.replaced) == ((), (3,), ())
    assert done.run.tiles.reused == 8
    assert synced.volume.slices.source(3) == "s_004.png"


def test_lost_name_is_not_missed(synced):
    lose_name(synced, 1)
    (synced.images / "s_002.png").unlink()
    done = synced.sync()
    assert (done.images.vanished, done.set_aside, done.run.tiles.reused) == ({}, (), 8)
    assert [note.reason for note in done.waiting] == ["waits for an image of its name"]  # its truth does


def spoil(*paths: Path) -> Callable[[object], None]:
    """Observer that cuts files once they have been decoded and are about to be written."""

    def observe(event: object) -> None:
        if getattr(event, "what", "") == "image":
            for path in paths:
                cut(path)

    return observe


def test_file_that_is_spoilt_late_holds_up_those_behind_it_where_order_counts(synced):
    synced.config.write_text(IN_ORDER)
    for number in (5, 6, 7):
        synced.image(number)
        synced.truth(number)
    done = synced.sync(observer=spoil(synced.images / "s_006.png"))
    assert (done.images.added, done.truths.added) == ((4,), (4,))
    assert [note.file for note in done.set_aside] == ["s_006.png"]
    assert [(note.file, note.reason) for note in done.waiting] == [
        ("s_007.png", "comes after s_006.png, which cannot be read"),
        ("s_006.png", "waits for its image"),
        ("s_007.png", "waits for its image"),
    ]
    done = synced.sync()
    assert (done.images.added, done.truths.added) == ((5,), (5,))  # where the spoilt one would have gone
    assert [synced.volume.slices.source(z) for z in (4, 5)] == ["s_005.png", "s_007.png"]
    assert (voxels(synced, "traced")[6:] == 127).all()


def test_slice_that_cannot_be_recorded_leaves_no_gap(synced, monkeypatch):
    synced.config.write_text(IN_ORDER)
    for number in (5, 6):
        synced.image(number)
    write, record = SliceJob.write, Ledger.record
    both, refused = threading.Barrier(2), threading.Event()

    def write_second_after_refusal(job: SliceJob, task: tuple[Any, int]) -> Any:
        both.wait(20)
        if task[1] == 5:
            assert refused.wait(20)
        return write(job, task)

    def refuse_once(ledger: Ledger, z: int, *rest: Any) -> None:
        if z == 4 and not refused.is_set():
            refused.set()
            raise StorageError("the disk is full")
        record(ledger, z, *rest)

    monkeypatch.setattr(SliceJob, "write", write_second_after_refusal)
    monkeypatch.setattr(Ledger, "record", refuse_once)
    with pytest.raises(StorageError, match="the disk is full"):
        synced.sync()
    monkeypatch.undo()
    here = synced.volume.slices.present()
    assert here[4] >= here[5]
    synced.sync()
    assert [synced.volume.slices.source(z) for z in (4, 5)] == ["s_005.png", "s_006.png"]
    np.testing.assert_array_equal(voxels(synced)[4:], np.stack([grey(5), grey(6)]))


# what has to wait


def test_file_that_grows_is_taken_when_it_is_whole(synced):
    synced.config.write_text(TEXT.replace("0s", "5s"))
    synced.image(6)
    path = synced.image(5)
    whole = cut(path)  # written to just now
    pauses: list[float] = []

    def write_more(seconds: float) -> None:
        pauses.append(seconds)
        path.write_bytes(whole[:-9])

    done = synced.sync(pause=write_more)
    assert pauses == [5]
    assert (done.images.added, done.gaps) == ((5,), ((4, 5),))
    assert [(note.file, note.reason) for note in done.waiting] == [("s_005.png", "is still being written")]
    assert not done.partial
    path.write_bytes(whole)
    done = synced.sync(pause=lambda _: None)
    assert (done.images.added, done.waiting, done.gaps) == ((4,), (), ())
    np.testing.assert_array_equal(voxels(synced)[4], grey(5))


def test_truth_waits_for_its_image(synced):
    synced.truth(6)
    done = synced.sync()
    assert [(note.file, note.reason) for note in done.waiting] == [("s_006.png", "waits for an image of its name")]
    assert not done.partial
    synced.image(6)
    assert synced.sync().truths.added == (5,)
    numbered = TEXT.replace("{folder: traced}", "{folder: traced, number: '(\\d+)', first: 1}")
    synced.config.write_text(numbered)
    synced.truth(9)
    assert [note.reason for note in synced.sync().waiting] == ["waits for the image of slice 8"]


# what is set aside


def test_truncated_file_is_set_aside_until_it_is_whole(synced):
    path = synced.image(5, suffix="tif")
    whole = cut(path)
    synced.image(6)
    done = synced.sync()
    assert (done.images.added, done.gaps, done.partial) == ((5,), ((4, 5),), True)
    ((note),) = done.set_aside
    assert note.file == "s_005.tif"
    assert "re-export it" in note.reason
    assert not note.reason.startswith("s_005")
    path.write_bytes(whole)
    done = synced.sync()
    assert (done.images.added, done.set_aside, done.gaps) == ((4,), (), ())
    assert (done.run.tiles.done, done.run.tiles.absent) == (12, 0)


def test_damaged_file_does_not_replace_a_slice(synced):
    cut(synced.images / "s_002.png")
    done = synced.sync()
    assert ([note.file for note in done.set_aside], done.images.replaced) == (["s_002.png"], ())
    assert done.run.tiles.reused == 8
    np.testing.assert_array_equal(voxels(synced)[1], grey(2))


def colour(path: Path) -> None:
    save(path, np.stack([grey(5)] * 3, axis=-1))


def text(path: Path) -> None:
    path.write_text("no image")


def pages(path: Path) -> None:
    save(path.with_suffix(".tif"), np.stack([grey(5), grey(6)]))


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        pytest.param(colour, "s_5.png", "is a colour image", id="colour"),
        pytest.param(text, "s_5.png", "is not a PNG, JPEG, BMP or TIFF image", id="text"),
        pytest.param(Path.touch, "s_5.png", "is empty", id="empty"),
        pytest.param(pages, "s_5.tif", "holds 2 slices, expected one", id="several slices"),
        pytest.param(colour, "s_0.png", "its number 0 is below `first: 1`", id="below the first"),
        pytest.param(colour, "s_20260301.png", "would make it slice 20260300", id="a date"),
        pytest.param(colour, "x.png", "does not match the pattern", id="no number"),
    ],
)  # fmt: skip
def test_bad_file_is_set_aside_and_the_others_go_on(synced, make: Callable[[Path], None], name, reason):
    make(synced.images / name)
    synced.image(6)
    done = synced.sync()
    assert (done.images.added, done.gaps, done.partial) == ((5,), ((4, 5),), True)
    assert [note.file for note in done.set_aside] == [name]
    assert reason in done.set_aside[0].reason


def test_bad_file_behind_the_last_slice_does_not_make_the_volume_longer(synced):
    text(synced.images / "s_99.png")
    done = synced.sync()
    assert (done.gaps, synced.volume.shape[0], done.partial) == ((), 4, True)


def test_where_no_file_can_be_read_there_is_no_volume(lab):
    cut(lab.image(1))
    assert lab.sync().run is None
    assert not lab.path.exists()


def test_file_that_is_spoilt_after_it_was_decoded_is_set_aside(synced, monkeypatch):
    synced.truth(5)
    synced.image(6)
    gathered = []
    monkeypatch.setattr(sync_module, "gather", lambda *given: gathered.append(gather(*given)) or gathered[0])
    done = synced.sync(observer=spoil(synced.image(5)))
    assert (done.images.added, [note.file for note in done.set_aside], done.gaps) == ((5,), ["s_005.png"], ((4, 5),))
    assert (done.truths.added, [note.reason for note in done.waiting]) == ((), ["waits for its image"])
    ((arrivals),) = gathered
    assert (arrivals.set_aside, arrivals.waiting) == ((), ())  # what was found is not what became of it


def test_truth_of_another_meaning_is_set_aside(synced):
    synced.truth(1, values=(0, 7))
    synced.truth(4)
    done = synced.sync()
    assert (done.truths.added, [note.file for note in done.set_aside]) == ((3,), ["s_001.png"])
    assert "its first files were read as 0 background, 255 vessel" in done.set_aside[0].reason


def test_meaning_that_was_open_is_decided_by_the_first_that_has_one(lab):
    for number in (1, 2, 3):
        lab.image(number)
    lab.truth(1, values=(0,))
    lab.sync()
    assert lab.volume.labels()["traced"].mapping["vessel"] is None
    lab.truth(2, values=(0, 9))
    lab.truth(3, values=(0, 8))
    done = lab.sync()
    assert (done.truths.added, [note.file for note in done.set_aside]) == ((1,), ["s_003.png"])
    assert lab.volume.labels()["traced"].mapping["vessel"] == 9


# gaps and slices that disappear


def test_gap_stays_absent_and_is_filled_later(lab):
    for number in (1, 2, 5, 7):
        lab.image(number)
    done = lab.sync()
    assert (done.gaps, done.run.tiles.done, done.run.tiles.absent, done.partial) == (((2, 4), (5, 6)), 8, 6, False)
    assert done.run.voxels == 4 * SHAPE[0] * SHAPE[1]
    assert "gaps: 2 to 3, 5;" in done.line()
    for number in (3, 4, 6):
        lab.image(number)
    done = lab.sync()
    assert (done.images.added, done.gaps, done.run.tiles.absent) == ((2, 3, 5), (), 0)
    np.testing.assert_array_equal(voxels(lab), np.stack([grey(number) for number in range(1, 8)]))


def test_slices_that_disappear_are_reported_and_stay(synced):
    before = tree(synced.path)
    (synced.images / "s_002.png").unlink()
    (synced.traced / "s_003.png").unlink()
    done = synced.sync()
    assert (done.images.vanished, done.truths.vanished, done.partial) == ({1: "s_002.png"}, {2: "s_003.png"}, False)
    assert tree(synced.path) == before
    shutil.rmtree(synced.images)
    synced.images.mkdir()
    assert len(synced.sync().images.vanished) == 4
    assert tree(synced.path) == before


# what is refused, and touches nothing


def write_config(old: str, new: str) -> Callable[[Lab], None]:
    def write(lab: Lab) -> None:
        assert old in TEXT
        lab.config.write_text(TEXT.replace(old, new))

    return write


def new_slice(name: str, pixels: np.ndarray) -> Callable[[Lab], object]:
    return lambda lab: save(lab.images / name, pixels)


def rename_all(lab: Lab) -> None:
    for path in list(lab.images.iterdir()):
        path.rename(path.with_name(path.name.replace("s_", "s_0")))


REFUSED = [
    pytest.param(write_config(r"s_(\d+)", r"s_(\d+"), "number: got", id="no regular expression"),
    pytest.param(write_config(r"s_(\d+)", r"s_\d+"), "which has no groups; put one pair of parentheses", id="no group"),
    pytest.param(write_config(r"s_(\d+)", r"t_(\d+)"), "`t_(\\d+)` is found in none of the 5 names of in, such as",
                 id="no match"),
    pytest.param(new_slice("s_5.png", grey(5)), "", id="two files for one slice"),
    pytest.param(new_slice("s_7.png", grey(5, (300, 531))), "s_7.png: is 300 x 531, the slices of brain.zarr are 300 x "
                 "530; crop it or leave it out", id="size"),
    pytest.param(new_slice("s_7.tif", grey(5, dtype="uint16")), "s_7.tif: is uint16, brain.zarr is uint8; convert it",
                 id="type"),
    pytest.param(lambda lab: save(lab.traced / "s_001.png", drawing(1, shape=(9, 9))), "s_001.png: is 9 x 9, the "
                 "slices of brain.zarr are 300 x 530", id="size of a truth"),
    pytest.param(lambda lab: shutil.rmtree(lab.images), "sync.images.folder: in: no such folder; is its disk mounted?",
                 id="no images"),
    pytest.param(lambda lab: shutil.rmtree(lab.traced), "sync.truth.folder: traced: no such folder", id="no truths"),
    pytest.param(rename_all, "sync.images.folder: in holds no file that brain.zarr was made from, such as s_004.png of "
                 "slice 3; name that folder, or another volume", id="another volume"),
    pytest.param(write_config("first: 1", "first: 0"), "sync.images: s_001.png is slice 0 of brain.zarr and would be "
                 "slice 1; set `first: 1`, or name another volume", id="another first"),
    pytest.param(write_config("size: [3, 3, 3]", "size: 5"), "run 'otsu'", id="changed recipe"),
    pytest.param(write_config("truth: traced\n", "truth: otsu\n"), "truth: 'otsu' is the name of the run too",
                 id="truth named as the run"),
    pytest.param(write_config("truth: traced\n", "truth: otsu\nname: other\n"), "truth: 'otsu' is the mask of a run of "
                 "brain.zarr; choose another name", id="truth named as a mask"),
    pytest.param(write_config("{folder: traced}", "{folder: traced, vessel_above: 3}"), "truth traced: its first files "
                 "were read as 0 background, 255 vessel, got vessel above 3", id="another meaning"),
    pytest.param(write_config("settle: 0s", "settle: 0s\n  voxel_size_um: [1, 1, 1]"), "sync.voxel_size_um: got "
                 "1 x 1 x 1, brain.zarr has none", id="voxel size"),
    pytest.param(write_config("cluster:", "region: z=0:1\ncluster:"), "region: a sync runs everything; leave it out",
                 id="region"),
    pytest.param(write_config("settle: 0s", "settle: soon"), "sync.settle: got 'soon', which is no duration",
                 id="duration"),
    pytest.param(lambda lab: lab.config.write_text("volume: brain.zarr\n"), "sync: the configuration has no section "
                 "`sync`; add one as in configs/sync.yaml", id="no section"),
    pytest.param(write_config("brain.zarr", "no/brain.zarr"), "no: no such folder; make it first", id="no folder"),
    pytest.param(write_config("cluster:", "memory: 1MB\ncluster:"), "memory: ", id="memory"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_wrong_input_is_one_message_and_touches_nothing(synced, change: Callable[[Lab], object], message):
    synced.image(5)
    change(synced)
    said = refusal(synced)
    assert message in said
    if message == "":
        assert said in {f"{a} and {b}: both are for slice 4; leave one out, or mend the pattern"
                        for a, b in [("s_005.png", "s_5.png"), ("s_5.png", "s_005.png")]}  # fmt: skip


def first_sizes(lab: Lab) -> None:
    save(lab.images / "s_2.png", grey(2, (9, 9)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(first_sizes, "s_2.png: is uint8, 9 x 9; s_001.png is uint8, 300 x 530; leave one out", id="size"),
        pytest.param(lambda lab: lab.truth(1, values=(0, 1, 2)), "truth traced: its files hold 3 values (0, 1, 2), "
                     "expected 0 and one other; say which are vessel with `vessel_above: LEVEL`, and what nobody "
                     "annotated with `unlabelled: VALUE`", id="values of the truth"),
        pytest.param(write_config("  truth: {folder: traced}\n", ""), "truth: 'traced' has no files; add `sync.truth`",
                     id="truth without files"),
        pytest.param(write_config("cluster:", "memory: 1MB\ncluster:"), "memory: ", id="memory"),
        pytest.param(write_config("cluster:", "threshold: {method: fixed, level: 999}\ncluster:"), "threshold",
                     id="level"),
    ],
)  # fmt: skip
def test_wrong_input_makes_no_volume(lab, change: Callable[[Lab], object], message):
    lab.image(1)
    change(lab)
    assert message in refusal(lab)
    assert not lab.path.exists()


def test_path_that_is_no_volume_is_refused(lab):
    lab.image(1)
    lab.path.mkdir()
    assert "brain.zarr: is not an OME-Zarr volume" in refusal(lab)


# one at a time


def test_second_sync_says_who_is_at_work(synced):
    synced.image(5)
    before = tree(synced.path)
    with locked(synced.folder / "brain.zarr.sync.lock", "held"):
        answer = kesm("sync", synced.config, "--json")
    assert (answer.code, answer.out) == (4, "")
    assert f"error: {synced.path}: another sync is at work" in answer.err
    assert f"process {os.getpid()}" in answer.err
    assert tree(synced.path) == before
    assert kesm("sync", synced.config).code == 0


def test_slices_are_not_replaced_under_a_run(synced):
    synced.image(2, seed=99)
    before = tree(synced.path)
    with run_lock(synced.volume, "otsu"), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        synced.sync()
    assert tree(synced.path) == before
    assert synced.sync().images.replaced == (1,)


def test_added_slices_do_not_wait_for_a_run_as_replaced_ones_do(synced):
    synced.image(2, seed=99)
    synced.image(5)
    synced.truth(5)
    with run_lock(synced.volume, "otsu"):
        answer = kesm("sync", synced.config)
    assert (answer.code, answer.out) == (4, "")
    np.testing.assert_array_equal(voxels(synced)[[1, 4]], np.stack([grey(2), grey(5)]))
    np.testing.assert_array_equal(voxels(synced, "traced")[4], drawing(5))
    done = synced.sync()
    assert (done.images.added, done.images.replaced, done.truths.added) == ((), (1,), ())
    assert (done.run.tiles.done, done.gaps) == (10, ())


def test_slices_that_another_process_has_added_meanwhile_are_not_overwritten(synced):
    more = save(synced.folder / "more.png", grey(9))

    def meddle(_: float) -> None:
        assert kesm("ingest", more, "--volume", synced.path, "--append").code == 0

    synced.config.write_text(TEXT.replace("0s", "5s"))
    os.utime(synced.image(5), ns=(4 * 10**18, 4 * 10**18))
    with pytest.raises(LockedError, match="another process has changed its slices meanwhile; sync again"):
        synced.sync(pause=meddle)
    assert synced.volume.slices.source(4) == "more.png"


KILLED = """
import os, signal, sys, time
from pathlib import Path
from pipeline.settings.configfile import load_config
from pipeline.intake.sync import sync

def pause(_):
    print("waiting", flush=True)
    time.sleep(60)

sync(load_config(Path(sys.argv[1])), pause=pause)
"""


def test_dead_process_holds_nothing(synced):
    synced.config.write_text(TEXT.replace("0s", "5s"))
    os.utime(synced.image(5), ns=(4 * 10**18, 4 * 10**18))
    with subprocess.Popen([sys.executable, "-c", KILLED, str(synced.config)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"waiting\n"
        with pytest.raises(LockedError, match=f"another sync is at work.*process {other.pid}"):
            synced.sync()
        other.kill()
    assert synced.sync(pause=lambda _: None).images.added == (4,)


# killed, and done again


def sync_and_kill(lab: Lab, delay_s: float) -> None:
    """Kill a sync so long after its volume is there, unless it is done by then."""
    with subprocess.Popen([KESM, "sync", lab.config], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not lab.path.exists():
            time.sleep(0.002)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay_s)
        process.kill()


@pytest.mark.parametrize("text", [TEXT, IN_ORDER], ids=["numbers", "order"])
def test_killed_sync_goes_on_to_the_same_volume(tmp_path, text):
    whole, killed = empty_lab(tmp_path / "whole", text), empty_lab(tmp_path / "killed", text)
    for number in range(1, 9):
        whole.image(number)
        whole.truth(number)
    for folder in ("in", "traced"):
        shutil.copytree(whole.folder / folder, killed.folder / folder, dirs_exist_ok=True)
    expected = whole.sync().run
    sync_and_kill(killed, random.uniform(0, 0.7))  # a moment of its own each time: the store must outlive them all
    done = killed.sync()
    assert (done.gaps, done.set_aside, done.waiting, done.run.tiles.done) == ((), (), (), 16)
    assert (done.run.counts, done.run.levels) == (expected.counts, expected.levels)
    assert not (killed.folder / "brain.zarr.staging").exists()
    for name in (None, "traced", "otsu"):
        np.testing.assert_array_equal(voxels(killed, name), voxels(whole, name))
    parts = [RunTables(lab.volume, "otsu") for lab in (whole, killed)]
    for table in ("threshold", "mask_key", "shard_digest", "pyramid_key"):
        np.testing.assert_array_equal(*(getattr(part, table).read() for part in parts))
    np.testing.assert_array_equal(*(lab.volume.slices.shard_digests() for lab in (whole, killed)))
    assert [killed.volume.slices.source(z) for z in range(8)] == [f"s_{number:03d}.png" for number in range(1, 9)]


@pytest.mark.parametrize("number", [2, 4, 5], ids=["inside", "last", "new"])
def test_slice_that_was_being_written_keeps_its_place_without_a_number(synced, number):
    synced.config.write_text(IN_ORDER)
    synced.image(number, seed=99)
    volume = synced.volume
    volume.slices.forget(number - 1) if number < 5 else volume.resize(5)  # as a process that dies there leaves it
    synced.image(6)
    done = synced.sync()
    assert (done.images.added, done.gaps, done.set_aside) == (tuple(sorted({number - 1, 4 + (number == 5)})), (), ())
    np.testing.assert_array_equal(voxels(synced)[number - 1], grey(99))
    np.testing.assert_array_equal(voxels(synced)[-1], grey(6))


@pytest.mark.parametrize("end", [Path.unlink, cut], ids=["gone", "bad"])
@pytest.mark.parametrize("gone", [[2], [1, 2, 3, 4]], ids=["one", "all"])
def test_slice_that_was_lost_while_it_was_replaced_leaves_nothing_in_the_run(lab, end: Callable[[Path], object], gone):
    lab.config.write_text(TEXT.replace("[3, 3, 3]", "[1, 3, 3]"))  # no neighbour is to be done again
    for number in (1, 2, 3, 4):
        lab.image(number)
    lab.truth(2)
    lab.sync()
    assert voxels(lab, "otsu").any(axis=(1, 2)).all()
    for number in gone:
        lab.volume.slices.forget(number - 1)  # as a process that dies there leaves it
        end(lab.images / f"s_{number:03d}.png")
    done = lab.sync()
    assert (done.run.tiles.done, done.run.tiles.absent) == (8 - 2 * len(gone), 2 * len(gone))
    assert (done.run.annotated, done.images.added, done.gaps) == (0, (), ((gone[0] - 1, gone[-1]),))
    lost = [number - 1 for number in gone]
    assert not voxels(lab, "otsu")[lost].any()
    assert (RunTables(lab.volume, "otsu").status.read()[lost] == Status.ABSENT).all()
    before = tree(lab.path)
    lab.sync()
    assert tree(lab.path) == before


# the command


def test_command_prints_one_line(lab):
    lab.image(1)
    lab.image(4)
    cut(lab.image(3))
    lab.truth(9)
    answer = kesm("sync", lab.config)
    assert answer.code == 3
    line = answer.out.removesuffix("\n")
    assert line.startswith(
        f"sync {lab.path}: 2 added, 1 waiting, 1 set aside, gaps: 1 to 2; run otsu: 4 of 8 tiles done"
    )
    assert "\n" not in line
    assert "\nwaiting: s_009.png: waits for an image of its name\n" in answer.err
    assert "\nset aside: s_003.png: cannot be decoded" in answer.err
    (lab.images / "s_001.png").unlink()
    assert "\nvanished: s_001.png: slice 0 stays as it is\n" in kesm("sync", lab.config).err


def test_command_prints_one_object(synced):
    synced.image(5)
    cut(synced.image(7))
    (synced.images / "s_001.png").unlink()
    answer = kesm("sync", synced.config, "--json")
    document = check_document("sync", json.loads(answer.out))
    assert (answer.code, answer.out.count("\n")) == (3, 1)
    assert {key: document[key] for key in ("schema", "volume", "added", "replaced", "vanished", "gaps", "waiting")} == {
        "schema": 1, "volume": str(synced.path), "added": [4], "replaced": [], "gaps": [], "waiting": [],
        "vanished": [{"slice": 0, "file": "s_001.png"}],
    }  # fmt: skip
    assert [note["file"] for note in document["set_aside"]] == ["s_007.png"]
    assert document["run"]["tiles"]["done"] == 10
    assert kesm("sync", "--help").out.startswith("Usage: kesm sync ")


def test_tiles_that_fail_are_partial(synced):
    next((synced.path / "0" / "c" / "1").rglob("*/0")).unlink()  # the only copy of a slice
    synced.image(3, seed=99)
    answer = kesm("sync", synced.config, "--json")
    assert answer.code == 3
    assert json.loads(answer.out)["run"]["tiles"]["failed"] > 0


@pytest.mark.parametrize(
    ("every", "message"),
    [
        ("soon", "which is no duration; write it as 10s, 15m or 2h"),
        ("15", "which is no duration"),
        ("0.5s", "at least 1s"),
    ],
)
def test_intervals_that_make_no_sense(synced, every, message):
    answer = kesm("sync", synced.config, "--every", every)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: --every: got ")
    assert message in answer.err


def test_every_does_not_begin_with_a_wrong_configuration(lab):
    lab.config.write_text("volume: brain.zarr\n")
    answer = kesm("sync", lab.config, "--every", "1h")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: sync: the configuration has no section")


def start(lab: Lab, *words: str) -> subprocess.Popen[str]:
    """Sync every second, in a process that hears Ctrl-C also where the tests run in the background of a shell."""
    return subprocess.Popen(
        [KESM, "sync", lab.config, "--every", "1s", *words],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def test_every_outlives_a_folder_that_disappears(synced):
    with start(synced, "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = check_document("sync", json.loads(process.stdout.readline()))
        assert (first["added"], first["run"]["tiles"]["reused"]) == ([], 8)
        synced.images.rename(synced.folder / "away")
        assert " error: sync.images.folder: " in process.stderr.readline()
        save(synced.folder / "away" / "s_005.png", grey(5))
        (synced.folder / "away").rename(synced.images)
        while not (document := json.loads(process.stdout.readline()))["added"]:
            pass
        assert check_document("sync", document)["added"] == [4]
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
        assert process.stderr.read().endswith("terminated\n")


def test_every_logs_lines_with_their_times_and_ends_on_ctrl_c(synced):
    with start(synced) as process:
        assert process.stdout is not None
        time_, _, line = process.stdout.readline().partition(" ")
        assert time.strptime(time_, "%Y-%m-%dT%H:%M:%S%z")
        assert line.startswith(f"sync {synced.path}: nothing new; run otsu: 8 of 8 tiles done, 0 now, MCC ")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130


# examples


def test_examples_of_schedules():
    cron = [line for line in (CONFIGS / "kesm-sync.cron").read_text().splitlines() if line and line[0] not in "#S"]
    assert [line.split()[:6] for line in cron] == [["*/15", "*", "*", "*", "*", "kesm"]]
    job = yaml.safe_load((CONFIGS / "kesm-sync-cronjob.yaml").read_text())
    assert (job["kind"], job["spec"]["concurrencyPolicy"]) == ("CronJob", "Forbid")
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][:2] == ["kesm", "sync"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_units_are_valid(tmp_path):
    true = shutil.which("true")
    for name in ("kesm-sync.service", "kesm-sync.timer"):
        unit = (CONFIGS / name).read_text().replace("/opt/kesm/.venv/bin/kesm", str(true)).replace("User=kesm\n", "")
        (tmp_path / name).write_text(unit)
    verified = subprocess.run(
        ["systemd-analyze", "verify", *sorted(tmp_path.iterdir())], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, [line for line in verified.stderr.splitlines() if "kesm-sync" in line]) == (0, [])
