"""The confusion as a label: equal to mask and truth, at every level, whatever the blocks, crashes and changes."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from yaozarrs import validate_zarr_store

from pipeline.checks.validate import open_label
from pipeline.checks.verify import Verified, verify
from pipeline.errors import ConfigError, MissingInputError
from pipeline.findings.summary import describe
from pipeline.geometry import Box
from pipeline.kernels.confusion import Counts
from pipeline.segmentation.budget import PROCESS_BYTES, smallest_block, task_bytes
from pipeline.segmentation.engine import ThreadRunner
from pipeline.segmentation.plan import make_plan
from pipeline.segmentation.remainder import look_ahead
from pipeline.segmentation.runs import run
from pipeline.settings.recipe import Recipe
from pipeline.storage.confusion_label import ConfusionPyramid, add_weights, confuse, show, weigh, weight_type
from pipeline.storage.extent import resize_volume
from pipeline.storage.keys import levels_key, pyramid_key
from pipeline.storage.painting import Painting
from pipeline.storage.pyramid import Pyramid, level_shapes, reduce_label
from pipeline.storage.store import ABSENT
from pipeline.storage.tables import RunTables, Status
from pipeline.storage.volume import Volume, beside
from pipeline.views.rendition import open_rendition
from tests.builders import MAPPING, build_volume, run_config, textured
from tests.command import kesm
from tests.contract import check_document
from tests.crashing import assert_same_arrays, start

Plane = NDArray[np.uint8]
SHAPE = (4, 530, 600)
LARGE = (1, 2100, 2300)  # two by two shards


def slow_confusion(mask: NDArray[Any], truth: NDArray[Any]) -> Plane:
    found = np.zeros(mask.shape, np.uint8)
    for value, of_mask, of_truth in ((1, 255, 255), (2, 255, 0), (3, 0, 255)):
        found[(mask == of_mask) & (truth == of_truth)] = value
    return found


def slow_level(plane: Plane, level: int) -> Plane:
    """What each voxel of a level shows: from counts of all voxels of the full plane that it covers."""
    side = 2**level
    padded = np.pad(plane, [(0, -length % side) for length in plane.shape])
    below = padded.reshape(padded.shape[0] // side, side, -1, side)
    tp, fp, fn = ((below == value).sum(axis=(1, 3)) for value in (1, 2, 3))
    return np.where(fp > fn, 2, np.where(fn > 0, 3, tp > 0)).astype(np.uint8)


def read(volume: Volume, name: str, level: int = 0) -> NDArray[Any]:
    array = Volume(volume.path).label(name).levels[level]
    return array.read(Box.whole(array.shape))


def kept(volume: Volume, name: str = "otsu") -> Painting:
    found = Painting.of(opened := Volume(volume.path), RunTables(opened, name))
    assert found is not None
    return found


def tile_values(tables: RunTables, plane: NDArray[Any]) -> NDArray[np.int64]:
    """How many 1, 2 and 3 each tile has."""
    counts = np.zeros((*tables.grids.tiles.cells, 3), np.int64)
    for cell in Box.whole(tables.grids.tiles.cells):
        of_tile = plane[tables.grids.tiles.box(cell).slices]
        counts[cell] = [(of_tile == value).sum() for value in (1, 2, 3)]
    return counts


def assert_shows(volume: Volume, name: str = "otsu", truth: str = "groundtruth") -> None:
    """Check label, levels and records of a run that is done."""
    opened = Volume(volume.path)
    tables = RunTables(opened, name)
    shown = read(volume, f"{name}-confusion")
    expected = slow_confusion(read(volume, name), read(volume, truth))
    if tables.recipe.get("valid"):  # voxels that are not valid are not missed
        expected[(shown == 0) & (expected == 3)] = 0
    np.testing.assert_array_equal(shown, expected)
    assert {1, 2, 3} <= set(np.unique(shown))
    np.testing.assert_array_equal(tile_values(tables, shown), tables.truth(truth).counts.read()[..., :3])
    for level in range(1, len(opened.label(name).levels)):
        stored = read(volume, f"{name}-confusion", level)
        for z in range(len(stored)):
            np.testing.assert_array_equal(stored[z], slow_level(shown[z], level), err_msg=f"level {level}")
    painting = kept(volume, name)
    np.testing.assert_array_equal(painting.tables.key.read(), tables.truth(truth).counts_key.read())
    levels = [levels_key(painting.tables.digest, z) for z in range(len(shown))]
    np.testing.assert_array_equal(painting.tables.pyramid_key.read(), levels)


def parts(volume: Volume, confusion: bool = True) -> dict[str, Any]:
    """Options of a run with only the memory for blocks of one shard."""
    least = task_bytes(volume, Recipe(), smallest_block(volume, Recipe()), confusion)
    return {"memory": PROCESS_BYTES + least, "cluster": {"threads": 1}, "confusion": confusion}


def change_slice(volume: Volume, z: int, seed: int = 1) -> None:
    image = textured(np.random.default_rng(seed), volume.shape[1:])
    volume.staging.mkdir(exist_ok=True)
    volume.slices.record(z, volume.image.write_slice(z, image, volume.staging), f"{z}.png", 1)
    with suppress(OSError):  # a run that was killed has left something there
        volume.staging.rmdir()


def change_truth(volume: Volume, z: int, name: str = "groundtruth", seed: int = 2) -> None:
    traced = np.random.default_rng(seed).choice(np.array([0, 127, 255], np.uint8), volume.shape[1:])
    truth, ledger = volume.truth(name)
    volume.staging.mkdir()
    ledger.record(z, truth.write_slice(z, traced, volume.staging), f"{z}.png", 1)
    volume.staging.rmdir()


def add_truth(volume: Volume, name: str) -> None:
    volume.create_truth(name, MAPPING)
    volume.publish_label(name)
    for z in np.flatnonzero(volume.slices.present()).tolist():
        change_truth(volume, z, name, seed=50 + z)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return build_volume(tmp_path / "brain.zarr", SHAPE, absent=(1,))


@pytest.mark.parametrize("vessel", [0, 255])
@pytest.mark.parametrize("traced", [0, 127, 255])
def test_each_pair_of_values_has_its_own(vessel: int, traced: int) -> None:
    mask, truth, out = (np.full((3, 5), value, np.uint8) for value in (vessel, traced, 9))
    confuse(mask, truth, out)
    expected = {(255, 255): 1, (255, 0): 2, (0, 255): 3}.get((vessel, traced), 0)
    assert (out == expected).all()


@pytest.mark.parametrize(
    ("below", "shown"),
    [
        ([0, 0, 0, 0], 0),
        ([0, 1, 0, 0], 1),
        ([1, 1, 1, 2], 2),
        ([1, 1, 1, 3], 3),
        ([2, 3, 2, 1], 2),
        ([3, 2, 3, 1], 3),
        ([2, 3, 1, 1], 3),
        ([2, 2, 3, 3], 3),
    ],
    ids=["nothing", "right", "one-fp", "one-fn", "more-fp", "more-fn", "tie", "even"],
)
def test_error_with_the_most_voxels_shows(below: list[int], shown: int) -> None:
    weights, sums, out = np.empty((2, 2), np.int8), np.empty((1, 1), np.int8), np.empty((1, 1), np.uint8)
    weigh(np.array(below, np.uint8).reshape(2, 2), weights)
    add_weights(weights, sums)
    show(sums, out)
    assert out[0, 0] == shown


def pyramid_of(plane: Plane, folder: Path) -> list[Plane]:
    pyramid = Pyramid.create(folder / "label", (1, *plane.shape), "uint8", 0, reduce_label)
    label = ConfusionPyramid(pyramid.path, len(level_shapes(plane.shape)))
    levels = label.start_levels("test")
    for part in label.full.chunks.parts(Box.of_slice(0, plane.shape)):
        levels.take(part, plane[None][part.slices])
    return [level.copy() for level in levels.planes()]


@settings(deadline=None, max_examples=20)
@given(
    st.sampled_from([(513, 1), (1, 1030), (1025, 515), (700, 2051)]),
    st.sampled_from([(0.9, 0.05, 0.03, 0.02), (0.0, 0.98, 0.01, 0.01), (0.0, 0.0, 0.5, 0.5), (0.25, 0.25, 0.25, 0.25)]),
    st.integers(0, 99),
)
def test_levels_equal_counts_at_full_resolution(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], odds: tuple[float, ...], seed: int
) -> None:
    plane = np.random.default_rng(seed).choice(4, shape, p=odds).astype(np.uint8)
    levels = pyramid_of(plane, tmp_path_factory.mktemp("pyramid"))
    assert [level.shape for level in levels] == level_shapes(shape)[1:]
    for level, found in enumerate(levels, 1):
        np.testing.assert_array_equal(found, slow_level(plane, level))


@pytest.mark.parametrize("value", [1, 2, 3])
def test_weights_of_all_levels_fit_their_type(value: int) -> None:
    weights = np.empty((1, 1), np.int8)
    weigh(np.full((1, 1), value, np.uint8), weights)
    four = np.full((2, 2), weights[0, 0], np.int8)
    for level in range(1, 13):
        out, shown = np.empty((1, 1), weight_type(level)), np.empty((1, 1), np.uint8)
        add_weights(four, out)
        show(out, shown)
        errors = {1: 0, 2: 4**level, 3: -(4**level)}[value]
        assert (out[0, 0] >> 2, shown[0, 0]) == (errors, value)
        four = np.full((2, 2), out[0, 0], out.dtype)


def test_single_error_is_seen_at_every_level(tmp_path: Path) -> None:
    plane = np.ones((3000, 1100), np.uint8)
    plane[2999, 700] = 2
    for level, found in enumerate(pyramid_of(plane, tmp_path), 1):
        assert np.argwhere(found == 2).tolist() == [[2999 >> level, 700 >> level]]


def test_label_shows_mask_and_truth_and_costs_the_mask_nothing(volume: Volume) -> None:
    summary = run(run_config(volume, confusion=True))
    assert_shows(volume)
    run(run_config(volume, "reference"))
    assert_same_arrays(volume.path, "otsu", "reference")
    assert "reference-confusion" not in volume.labels()
    shown = read(volume, "otsu-confusion")
    assert Counts(*((shown == value).sum() for value in (1, 2, 3)), tn=summary.counts.tn) == summary.counts  # type: ignore[union-attr]
    assert shown[[1, 3]].max() == 0  # absent, and not annotated
    assert not beside(volume.path, "staging").exists()


DRAWN = {
    "local": {"threshold": {"method": "sauvola", "size": 15}},
    "cleaned": {"clean": {"small_objects": 20, "closing": 1}},
    "valid": {"valid": {"padding": 150}},
    "corrected": {"correct": {"gamma": 1.2}},
    "volumetric": {"denoise": {"method": "median", "size": [3, 3, 3]}},
    "small-tiles": {"tile": 64},
    "shard-tiles": {"tile": 2048},
    "slice-level": {"threshold": {"method": "otsu", "scope": "slice"}},
}


@pytest.mark.parametrize("recipe", DRAWN)
def test_label_shows_masks_of_any_recipe(volume: Volume, recipe: str) -> None:
    run(run_config(volume, confusion=True, **DRAWN[recipe]))
    assert_shows(volume)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_blocks_of_shards_make_the_same_label(tmp_path: Path, dtype: str) -> None:
    large = build_volume(tmp_path / "brain.zarr", LARGE if dtype == "uint8" else (1, 2060, 520), dtype)
    run(run_config(large, "whole", confusion=True))
    run(run_config(large, "parts", **parts(large)))
    assert RunTables(large, "parts").grids.blocks.cells[1] == 2
    assert_shows(large, "parts")
    for level in range(len(large.label("whole").levels)):
        np.testing.assert_array_equal(
            read(large, "whole-confusion", level), read(large, "parts-confusion", level), err_msg=str(level)
        )


def test_workers_of_a_scheduler_make_the_same_label(volume: Volume) -> None:
    workers = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, silence_logs=50
    )
    with workers as cluster, distributed.Client(cluster) as client:
        run(run_config(volume, confusion=True), client=client)
    assert_shows(volume)


def test_label_is_valid_ome_zarr_with_colours_and_names(volume: Volume) -> None:
    run(run_config(volume, confusion=True))
    validate_zarr_store(str(volume.path))
    attributes = dict(zarr.open_group(volume.path / "labels" / "otsu-confusion", mode="r").attrs)
    metadata: Any = attributes["ome"]
    assert metadata["image-label"]["colors"] == [
        {"label-value": 1, "rgba": [0, 255, 255, 255]},
        {"label-value": 2, "rgba": [255, 0, 255, 255]},
        {"label-value": 3, "rgba": [255, 255, 0, 255]},
    ]
    assert [each["name"] for each in metadata["image-label"]["properties"]] == [
        "true positive", "false positive", "false negative"
    ]  # fmt: skip
    assert attributes["kesm"] == {"kind": "confusion", "mapping": {}, "run": "otsu", "truth": "groundtruth"}


def test_label_is_made_for_a_run_that_is_done_and_kept_from_then_on(volume: Volume) -> None:
    run(run_config(volume))
    assert look_ahead(make_plan(run_config(volume, confusion=True))).tiles_done == 0
    assert run(run_config(volume, confusion=True)).tiles.reused == 0
    assert_shows(volume)
    for asked in (True, False):
        tiles = run(run_config(volume, confusion=asked)).tiles
        assert tiles.reused == tiles.done == 12
    change_slice(volume, 2)
    assert run(run_config(volume)).tiles.reused == 8
    assert_shows(volume)
    change_truth(volume, 0)
    assert run(run_config(volume)).tiles.reused == 8
    assert_shows(volume)


def test_run_without_the_truth_erases_what_its_new_masks_would_belie(volume: Volume) -> None:
    run(run_config(volume, confusion=True))
    before = read(volume, "otsu-confusion")
    change_slice(volume, 2)
    run(run_config(volume, truth=None))
    after = read(volume, "otsu-confusion")
    assert before[2].any()
    assert not after[2].any()
    np.testing.assert_array_equal(after[0], before[0])
    assert not read(volume, "otsu-confusion", 1)[2].any()
    assert (kept(volume).tables.key.read()[2] == ABSENT).all()
    assert looked(volume).findings == ()
    run(run_config(volume))
    assert_shows(volume)


def test_erased_shards_leave_the_levels_of_their_slice(tmp_path: Path) -> None:
    large = build_volume(tmp_path / "brain.zarr", LARGE)
    run(run_config(large, **parts(large)))
    RunTables(large, "otsu").disown((0, 0, 1), "a reason")
    run(run_config(large, **parts(large, confusion=False), truth=None))
    shown = read(large, "otsu-confusion")
    assert shown[0, :, :2048].any()
    assert not shown[0, :2048, 2048:].any()
    np.testing.assert_array_equal(read(large, "otsu-confusion", 2)[0], slow_level(shown[0], 2))
    assert looked(large).findings == ()


def test_another_truth_takes_the_label_over(volume: Volume) -> None:
    add_truth(volume, "second")
    run(run_config(volume, confusion=True))
    run(run_config(volume, truth="second"))  # the mask is the same: the label goes on showing the first
    assert_shows(volume)
    run(run_config(volume, truth="second", confusion=True))
    assert_shows(volume, truth="second")
    tables = RunTables(volume, "otsu")
    assert (tables.truth("groundtruth").confusion, volume.confusion("otsu").truth) == (None, "second")  # type: ignore[union-attr]


def test_added_slice_is_shown(volume: Volume) -> None:
    run(run_config(volume, confusion=True))
    resize_volume(volume, 5)
    volume = Volume(volume.path)
    change_slice(volume, 4)
    change_truth(volume, 4)
    assert run(run_config(volume)).tiles.reused == 12
    assert read(volume, "otsu-confusion").shape[0] == 5
    assert_shows(volume)


def test_new_recipe_leaves_no_old_label(volume: Volume) -> None:
    run(run_config(volume, confusion=True))
    run(run_config(volume, tile=256), replace=True)
    assert "otsu-confusion" not in volume.labels()
    assert not (volume.path / "labels" / "otsu-confusion").exists()
    assert RunTables(volume, "otsu").truth("groundtruth").confusion is None
    run(run_config(volume, confusion=True), replace=True)
    assert_shows(volume)


@pytest.mark.parametrize("lost", ["labels/otsu-confusion", "labels/otsu-confusion/0/c/0/0/0",
                                  "tiles/otsu/truth/groundtruth/confusion_key/c/0/0/0",
                                  "tiles/otsu/truth/groundtruth/confusion_digest/c/0/0/0",
                                  "tiles/otsu/truth/groundtruth/confusion_key"])  # fmt: skip
def test_what_is_lost_is_made_again(volume: Volume, lost: str) -> None:
    run(run_config(volume, confusion=True))
    path = volume.path / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    run(run_config(volume, confusion=True))
    assert_shows(volume)


def test_lost_truth_shows_nothing(tmp_path: Path) -> None:
    large = build_volume(tmp_path / "brain.zarr", LARGE)
    run(run_config(large, "reference", confusion=True))
    shard = large.path / "labels/groundtruth/0/c/0/0/1"
    content = shard.read_bytes()
    shard.write_bytes((shard.parent / "0").read_bytes())  # another one, which is known when all of it was read
    summary = run(run_config(large, confusion=True))
    assert summary.tiles.failed == 4
    shown = read(large, "otsu-confusion")
    expected = read(large, "reference-confusion")
    expected[0, :2048, 2048:] = 0
    np.testing.assert_array_equal(shown, expected)
    np.testing.assert_array_equal(read(large, "otsu-confusion", 1)[0], slow_level(shown[0], 1))
    shard.write_bytes(content)
    run(run_config(large))
    assert_shows(large)


def test_lost_image_shows_nothing(tmp_path: Path) -> None:
    large = build_volume(tmp_path / "brain.zarr", LARGE)
    run(run_config(large, confusion=True))
    (large.path / "0/c/0/0/1").write_bytes(b"damaged")
    RunTables(large, "otsu").disown((0, 0, 0), "a reason")
    summary = run(run_config(large))
    failed = RunTables(large, "otsu").status.read() == Status.FAILED
    assert failed.sum() == summary.tiles.failed > 0
    values = tile_values(RunTables(large, "otsu"), read(large, "otsu-confusion")).sum(axis=-1)
    assert not values[failed].any()
    assert values[0][~failed[0]].all()
    assert (kept(large).tables.key.read()[failed] == ABSENT).all()


def test_truth_is_needed(volume: Volume) -> None:
    message = "got true, but no truth to compare the mask with"
    with pytest.raises(ValueError, match=message):
        run_config(volume, truth=None, confusion=True)


@pytest.mark.parametrize("kind", ["truth", "run"])
def test_name_that_is_taken_is_refused(volume: Volume, kind: str) -> None:
    if kind == "truth":
        add_truth(volume, "otsu-confusion")
    else:
        run(run_config(volume, "otsu-confusion"))
    before = read(volume, "otsu-confusion")
    with pytest.raises(ConfigError, match="'otsu-confusion' is another label or run"):
        run(run_config(volume, confusion=True))
    run(run_config(volume))
    run(run_config(volume, tile=256), replace=True)
    np.testing.assert_array_equal(read(volume, "otsu-confusion"), before)


def test_label_is_no_run_and_no_truth(volume: Volume) -> None:
    run(run_config(volume, confusion=True))
    with pytest.raises(ConfigError, match="'otsu-confusion' is a label"):
        run(run_config(volume, "otsu-confusion"))
    with pytest.raises(MissingInputError, match="'otsu-confusion' is the confusion of a run, not a truth"):
        run(run_config(volume, "other", truth="otsu-confusion"))


# -- killed at any instant ---------------------------------------------------------------------------------------------

CRASH = (3, 600, 520)
WRITES = 60  # of such a run, roughly


def assert_no_lies(volume: Volume) -> None:
    """Check that what the keys vouch for is so, and that no shard shows what mask and truth do not say."""
    opened = Volume(volume.path)
    if "otsu" not in opened.labels() or opened.confusion("otsu") is None:
        return
    tables, painting = RunTables(opened, "otsu"), Painting.of(opened, RunTables(opened, "otsu"))
    if painting is None:
        return
    right = read(volume, "otsu-confusion") == slow_confusion(read(volume, "otsu"), read(volume, "groundtruth"))
    for cell in np.argwhere(painting.tables.key.read() != ABSENT):
        assert right[tables.grids.tiles.box(tuple(cell)).slices].all()


def test_killed_runs_go_on(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", CRASH)
    chance, in_time = random.Random(5), 0
    for number in range(6):
        process = start(volume.path, tmp_path / "log", chance.randrange(10, WRITES) if number % 2 else None,
                        name="otsu", confusion=True)  # fmt: skip
        if number % 2 == 0:
            time.sleep(chance.uniform(0.05, 0.4))
            process.kill()
        process.join(60)
        in_time += process.exitcode == -signal.SIGKILL
        assert_no_lies(volume)
        if number % 3 == 2:
            change_slice(volume, number % 3, seed=number)
    assert in_time > 1
    run(run_config(volume, confusion=True))
    assert_shows(volume)
    assert not beside(volume.path, "staging").exists()


@pytest.mark.parametrize("kill_at", [14, 19, 24, 29])
def test_killed_run_without_the_truth_leaves_no_old_errors(tmp_path: Path, kill_at: int) -> None:
    volume = build_volume(tmp_path / "brain.zarr", CRASH)
    run(run_config(volume, confusion=True))
    for z in range(CRASH[0]):
        change_slice(volume, z, seed=z)
    before = read(volume, "otsu")
    start(volume.path, tmp_path / "log", kill_at, name="otsu", truth=None).join(60)
    shown, mask = read(volume, "otsu-confusion"), read(volume, "otsu")
    for z in range(CRASH[0]):
        new = (mask[z] != before[z]).any()
        assert not (new and shown[z].any()), z
    assert_no_lies(volume)
    run(run_config(volume))
    assert_shows(volume)


@pytest.mark.parametrize("kill_at", [4, 8, 12, 16])
def test_killed_change_of_the_truth_goes_on(tmp_path: Path, kill_at: int) -> None:
    volume = build_volume(tmp_path / "brain.zarr", CRASH)
    add_truth(volume, "second")
    run(run_config(volume, truth="second", confusion=True))
    start(volume.path, tmp_path / "log", kill_at, name="otsu", confusion=True).join(60)
    run(run_config(volume, truth="second"))
    run(run_config(volume, confusion=True))
    assert_shows(volume)


# -- what others make of it --------------------------------------------------------------------------------------------


def looked(volume: Volume) -> Verified:
    return verify(Volume(volume.path), ThreadRunner(2))


def test_verify_finds_it_right(volume: Volume) -> None:
    run(run_config(volume, confusion=True))
    assert looked(volume).findings == ()
    RunTables(volume, "otsu").disown((0, 0, 0), "a reason")
    assert looked(volume).findings == ()


def rewrite(volume: Volume, level: int, recorded: bool) -> None:
    """Change a voxel of the first shard of a level; with its digest, so that only mask and truth can tell."""
    painting = kept(volume)
    array = painting.label.levels[level]
    box = array.shards.box((0, 0, 0))
    values = array.read(box)
    values[0, 5, 7] = (values[0, 5, 7] + 1) % 4
    volume.staging.mkdir()
    digests = array.write(box, values, volume.staging)
    volume.staging.rmdir()
    if recorded:
        painting.tables.digest.write((slice(0, 1), slice(0, 1), slice(0, 1)), digests)
        painting.tables.pyramid_key.write((slice(0, 1),), levels_key(painting.tables.digest, 0))


SHARD_FILE = "labels/otsu-confusion/0/c/0/0/0"
DAMAGE = {
    "lost": (lambda volume: (volume.path / SHARD_FILE).unlink(), SHARD_FILE, "is missing"),
    "cut": (lambda volume: (volume.path / SHARD_FILE).write_bytes(b"x"), SHARD_FILE, "cannot be decoded"),
    "other": (lambda volume: rewrite(volume, 0, recorded=False), SHARD_FILE, "has other voxels"),
    "wrong": (lambda volume: rewrite(volume, 0, recorded=True), SHARD_FILE, "does not show what mask and truth"),
    "level": (lambda volume: rewrite(volume, 1, recorded=False), "labels/otsu-confusion/1/c/0/0/0",
              "does not show the voxels of level 0"),
    "key": (lambda volume: (volume.path / "tiles/otsu/truth/groundtruth/confusion_key/c/0/0/0").unlink(),
            "tiles/otsu/truth/groundtruth/confusion_key/c/0/0/0", "is missing"),
    "digest": (lambda volume: (volume.path / "tiles/otsu/truth/groundtruth/confusion_digest/c/0/0/0").write_bytes(b""),
               "tiles/otsu/truth/groundtruth/confusion_digest/c/0/0/0", "cannot be decoded"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "in_parts"), [*((damage, False) for damage in DAMAGE), ("wrong", True), ("level", True)]
)
def test_verify_names_what_differs_and_has_it_made_again(tmp_path: Path, damage: str, in_parts: bool) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 2100, 600) if in_parts else (1, 600, 600))
    options = parts(volume) if in_parts else {"confusion": True}
    run(run_config(volume, **options))
    assert looked(volume).findings == ()
    make, place, reason = DAMAGE[damage]
    make(volume)
    found = looked(volume)
    assert [(finding.place, finding.run) for finding in found.findings] == [(place, "otsu")]
    assert reason in found.findings[0].reason
    assert found.marked == {"otsu": 2 if in_parts and damage == "level" else 1}  # two blocks have the level in common
    run(run_config(volume, **options))
    assert_shows(volume)
    assert looked(volume).findings == ()


def test_verify_knows_of_the_valid_area(volume: Volume) -> None:
    run(run_config(volume, confusion=True, **DRAWN["valid"]))
    assert looked(volume).findings == ()
    rewrite(volume, 0, recorded=True)
    assert [finding.place for finding in looked(volume).findings][:1] == [SHARD_FILE]


def test_verify_asks_nothing_of_what_is_not_current(volume: Volume) -> None:
    run(run_config(volume, confusion=True))
    change_truth(volume, 0)
    assert looked(volume).findings == ()


def test_status_names_it(volume: Volume) -> None:
    run(run_config(volume, confusion=True))
    document, _ = describe(volume)
    assert {"name": "otsu-confusion", "kind": "confusion", "run": "otsu", "truth": "groundtruth"} in document["labels"]


def test_plan_counts_it(volume: Volume) -> None:
    plain, shown = (make_plan(run_config(volume, confusion=confusion)) for confusion in (False, True))
    assert shown.task_bytes > plain.task_bytes + 2048 * 2048
    assert (plain.document()["confusion"], shown.document()["confusion"]) == (False, True)
    assert (plain.written_bytes, shown.written_bytes) == (3 * 530 * 600, 5 * 530 * 600)  # two slices have a truth


def test_commands_take_and_name_it(volume: Volume) -> None:
    options = "--truth", "groundtruth", "--confusion", "--threads", "1"
    planned = check_document("plan", json.loads(kesm("plan", volume.path, *options, "--json").out))
    assert (planned["confusion"], planned["written_bytes"]) == (True, 5 * 530 * 600)
    assert "otsu-confusion" in kesm("plan", volume.path, *options).out
    assert "otsu-confusion" in kesm("run", volume.path, *options).out
    check_document("status", json.loads(kesm("status", volume.path, "--json").out))
    assert "confusion otsu-confusion of otsu with groundtruth" in kesm("status", volume.path).out
    assert "`truth: NAME`" in kesm("run", volume.path, "--confusion").message
    refused = kesm("validate", volume.path, "--mask", "otsu-confusion", "--truth", "groundtruth").message
    assert "name 'otsu'" in refused


def test_validate_says_what_it_is(volume: Volume) -> None:
    run(run_config(volume, confusion=True))
    with pytest.raises(ConfigError, match="'otsu-confusion' shows where run 'otsu' differs from 'groundtruth'"):
        open_label(volume, "otsu-confusion", is_truth=False)


def test_export_reads_what_is_vouched_for(volume: Volume) -> None:
    run(run_config(volume, confusion=True))
    source = open_rendition(volume, "otsu-confusion")
    box = Box.of_slice(2, SHAPE[1:])
    np.testing.assert_array_equal(source.read(box), read(volume, "otsu-confusion")[2])
    assert source.present(Box.whole(SHAPE)).tolist() == [True, False, True, True]
    RunTables(volume, "otsu").disown((2, 0, 0), "a reason")
    assert source.present(Box.whole(SHAPE)).tolist() == [True, False, False, True]
    assert pyramid_key(RunTables(volume, "otsu"), 0) != ABSENT
