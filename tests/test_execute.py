"""Blocks of any shape, their reduction, on any engine: the same bits from each, equal to the slow way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import distributed
import numpy as np
import pytest
from scipy.ndimage import median_filter
from skimage.filters import threshold_otsu

import pipeline as kesm
from pipeline.events import BlockDone, BlocksSettled, Event, JobsStarted, Started, ignore
from pipeline.findings.summary import Summary, summarise
from pipeline.geometry import Box, Grid
from pipeline.kernels.confusion import mean_scores, score_parts
from pipeline.segmentation.execute import lazy_array
from pipeline.segmentation.plan import Plan, make_plan
from pipeline.segmentation.runs import run, run_plan
from pipeline.settings.config import AddressCluster, LocalCluster, ThreadsCluster
from pipeline.storage.store import SHARD, ShardedArray
from pipeline.storage.tables import Grids, RunTables
from pipeline.storage.volume import Volume
from tests.builders import build_volume, run_config
from tests.workers import workers_here

SHAPE = (3, 2100, 2600)  # two by two shards a slice, all but the first smaller than a shard; tiles cut at the edges
TABLES = ("threshold", "status", "signal", "seam", "vessel", "quality", "mask_key", "shard_digest")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return build_volume(tmp_path_factory.mktemp("volume") / "brain.zarr", SHAPE)


@pytest.fixture(scope="module")
def reference(volume: Volume) -> Summary:
    """Run with whole slices in one thread, which the others are compared with."""
    return run(run_config(volume, "reference", cluster=ThreadsCluster(threads=1)))


def with_blocks(plan: Plan, block: tuple[int, int, int]) -> Plan:
    grids = Grids.of(plan.grids.tiles.shape, plan.recipe.tile, block)
    return replace(plan, block=block, grids=grids, blocks=grids.blocks.cover(plan.region))


def assert_same(volume: Volume, summary: Summary, reference: Summary) -> None:
    assert (summary.counts, summary.macro, summary.levels) == (reference.counts, reference.macro, reference.levels)
    assert summary.tiles.done == reference.tiles.done
    ours, theirs = RunTables(volume, summary.name), RunTables(volume, reference.name)
    for table in TABLES:
        np.testing.assert_array_equal(getattr(ours, table).read(), getattr(theirs, table).read(), err_msg=table)
    np.testing.assert_array_equal(
        ours.truth("groundtruth").histogram.read(), theirs.truth("groundtruth").histogram.read()
    )
    for mine, its in zip(volume.label(summary.name).levels, volume.label(reference.name).levels, strict=True):
        whole = Box.whole(mine.shape)
        np.testing.assert_array_equal(mine.read(whole), its.read(whole), err_msg=str(mine.path))


def test_run_equals_scipy_and_scikit_image_on_every_tile(volume: Volume, reference: Summary) -> None:
    tables = RunTables(volume, "reference")
    whole = Box.whole(SHAPE)
    image, mask = volume.image.full.read(whole), volume.label("reference").full.read(whole)
    truth = volume.truth("groundtruth")[0].full.read(whole)
    levels = tables.threshold.read()
    expected = np.zeros(4, np.int64)
    for z in range(SHAPE[0]):
        filtered = median_filter(255 - image[z], size=3, mode="reflect")
        for tile in Grid(SHAPE, (1, 512, 512)).cover(whole):
            if tile[0] != z:
                continue
            _, rows, columns = Grid(SHAPE, (1, 512, 512)).box(tile).slices
            assert abs(levels[tile] - threshold_otsu(filtered[rows, columns])) <= 1
            np.testing.assert_array_equal(mask[z, rows, columns] > 0, filtered[rows, columns] > levels[tile])
    for name, (traced, marked) in enumerate([(255, True), (0, True), (255, False), (0, False)]):
        expected[name] = ((truth == traced) & ((mask > 0) == marked)).sum()
    assert reference.counts is not None
    assert [reference.counts.tp, reference.counts.fp, reference.counts.fn, reference.counts.tn] == list(expected)
    assert reference.annotated == int((truth != 127).sum())


@pytest.mark.parametrize(
    "block", [(1, 2048, 2600), (1, 2048, 2048), (1, 2100, 2048)], ids=["rows of shards", "one shard", "columns"]
)
def test_block_shape_changes_no_bit(volume: Volume, reference: Summary, block: tuple[int, int, int]) -> None:
    plan = with_blocks(make_plan(run_config(volume, f"block-{block[1]}-{block[2]}")), block)
    assert_same(volume, run_plan(plan, ThreadsCluster(threads=2), ignore), reference)


def test_engines_change_no_bit(volume: Volume, reference: Summary) -> None:
    events: list[Event] = []
    local = run(run_config(volume, "local", cluster=LocalCluster(workers=2)), events.append)
    assert_same(volume, local, reference)
    link = next(event.dashboard for event in events if isinstance(event, Started))
    assert link is not None
    assert link.startswith("http://127.0.0.1:")
    blocks = [event for event in events if isinstance(event, BlockDone)]
    assert sum(event.voxels for event in blocks) == local.voxels
    with workers_here() as scheduler, distributed.Client(scheduler) as client:
        address = AddressCluster(engine="address", address=scheduler.scheduler_address)
        assert_same(volume, run(run_config(volume, "address", cluster=address)), reference)
        assert_same(volume, run(run_config(volume, "client"), client=client), reference)
        assert client.status == "running"


def test_events_tell_every_block_once(volume: Volume, reference: Summary) -> None:
    events: list[Event] = []
    summary = run(run_config(volume, "events"), events.append)
    blocks = [event for event in events if isinstance(event, BlockDone)]
    assert len(blocks) == SHAPE[0]
    assert sum(event.voxels for event in blocks) == summary.voxels == int(np.prod(SHAPE))
    assert reference.counts is not None
    assert sum(event.counts[0] for event in blocks) == reference.counts.tp
    RunTables(volume, "events").disown((1, 0, 0), "to be made again")
    again: list[Event] = []
    run(run_config(volume, "events"), again.append)
    assert JobsStarted(SHAPE[0]) in again
    (settled,) = (event for event in again if isinstance(event, BlocksSettled))
    (made,) = (event for event in again if isinstance(event, BlockDone))
    assert (settled.count, settled.reused, made.reused) == (SHAPE[0] - 1, SHAPE[0] - 1, False)
    assert settled.counts[0] + made.counts[0] == reference.counts.tp


def test_second_run_does_nothing_and_a_new_truth_only_counts(volume: Volume, reference: Summary) -> None:
    first = run(run_config(volume, "again", truth=None))
    assert first.counts is None
    mask = volume.label("again").full
    before = {shard: mask.shard_file(shard).stat().st_mtime_ns for shard in mask.shards.cover(Box.whole(mask.shape))}
    counted = run(run_config(volume, "again"))
    assert counted.counts == reference.counts
    assert counted.tiles.reused == 0
    assert {shard: mask.shard_file(shard).stat().st_mtime_ns for shard in before} == before
    assert run(run_config(volume, "again")).tiles.reused == counted.tiles.total
    assert len(RunTables(volume, "again").journal.attempts()) == 2


def test_parts_of_slices_are_reused_and_made_again_one_by_one(volume: Volume, reference: Summary) -> None:
    plan = with_blocks(make_plan(run_config(volume, "parts")), (1, 2048, 2048))
    total = run_plan(plan, ThreadsCluster(), ignore).tiles.total
    assert run(run_config(volume, "parts")).tiles.reused == total
    volume.label("parts").full.shard_file((1, 1, 1)).unlink()
    again = run(run_config(volume, "parts"))
    assert total - again.tiles.reused == 2  # the tiles of that shard
    assert_same(volume, again, reference)


def test_mask_that_is_found_damaged_when_its_levels_are_made_is_made_again(volume: Volume, reference: Summary) -> None:
    run_plan(with_blocks(make_plan(run_config(volume, "levels")), (1, 2048, 2048)), ThreadsCluster(), ignore)
    mask = volume.label("levels").full
    mask.shard_file((1, 0, 0)).write_bytes(b"rotten")
    RunTables(volume, "levels").pyramid_key.write((slice(1, 2),), 0)  # as if killed before the levels were made
    again = run(run_config(volume, "levels"))
    assert (again.tiles.failed, list(again.failures)) == (0, [])
    assert_same(volume, again, reference)
    for level in volume.label("levels").levels[1:]:
        theirs = volume.label("reference").path / level.path.name
        np.testing.assert_array_equal(
            level.read(Box.whole(level.shape)), ShardedArray(theirs).read(Box.whole(level.shape))
        )


def test_region_equals_that_part_of_a_whole_run(volume: Volume, reference: Summary) -> None:
    part = run(run_config(volume, "part", region="z=1:3,y=600:700,x=0:513"))
    assert str(part.region) == "z=1:3,y=512:1024,x=0:1024"
    assert part == replace(
        kesm.summarise(volume, "reference", "groundtruth", part.region), name="part", elapsed_s=part.elapsed_s
    )
    assert part.tiles.total == 4


@pytest.mark.parametrize("size", [1, 5, 7, [3, 3, 3], [3, 1, 5]], ids=str)
def test_filter_has_no_seams(tmp_path: Path, size: int | list[int]) -> None:
    shape = (2, 2056, 2056)  # a strip and a block end eight voxels before the far edges
    volume = build_volume(tmp_path / "brain.zarr", shape, "uint16")
    recipe = {"denoise": {"method": "median", "size": size}, "foreground": "bright", "tile": 256}
    plan = with_blocks(make_plan(run_config(volume, **recipe)), (1, 2048, 2048))
    run_plan(plan, ThreadsCluster(), ignore)
    filtered = median_filter(volume.image.full.read(Box.whole(shape)), plan.recipe.denoise.window, mode="reflect")
    levels = RunTables(volume, "otsu").threshold.read().repeat(256, axis=1).repeat(256, axis=2)[:, :2056, :2056]
    np.testing.assert_array_equal(volume.label("otsu").full.read(Box.whole(shape)) > 0, filtered > levels)


def test_filter_reflects_at_absent_slices(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (5, 64, 64), absent=(2,))
    summary = run(run_config(volume, "otsu", denoise={"method": "median", "size": [5, 3, 3]}))
    assert (summary.tiles.absent, summary.tiles.done, summary.voxels) == (1, 4, 4 * 64 * 64)
    whole = Box.whole(volume.shape)
    image, mask = volume.image.full.read(whole), volume.label("otsu").full.read(whole)
    levels = RunTables(volume, "otsu").threshold.read()
    for part in (slice(0, 2), slice(3, 5)):
        filtered = median_filter(255 - image[part], (5, 3, 3), mode="reflect")
        np.testing.assert_array_equal(mask[part] > 0, filtered > levels[part])
    assert not mask[2].any()


@pytest.mark.parametrize(
    "damage",
    [lambda content: None, lambda content: content[:1000], lambda content: content[:5000] + bytes(99) + content[5099:]],
    ids=["missing", "truncated", "flipped"],
)
def test_damaged_shard_fails_its_block_and_is_mended(tmp_path: Path, damage: Callable[[bytes], bytes | None]) -> None:
    volume = build_volume(tmp_path / "brain.zarr", SHAPE)
    shard = volume.image.full.shard_file((1, 0, 1))
    content = shard.read_bytes()
    damaged = damage(content)
    shard.unlink() if damaged is None else shard.write_bytes(damaged)
    bad = run(run_config(volume, "otsu"))
    assert (bad.tiles.failed, bad.tiles.done) == (15, 75)  # with the tiles that need a voxel of it
    ((box, reason),) = bad.failures
    assert str(box) == "z=1:2,y=0:2100,x=1536:2600"
    assert f"{volume.path.name}" in reason
    assert "c/1/0/1" in reason
    good = run(run_config(volume, "part", region="x=0:1536"))
    mask = volume.label("otsu").full.read(Box.whole(SHAPE))
    assert not mask[1, :, 1536:].any()
    np.testing.assert_array_equal(mask[..., :1536], volume.label("part").full.read(Box.whole(SHAPE))[..., :1536])
    assert good.counts == summarise(volume, "otsu", "groundtruth", good.region).counts
    again = run(run_config(volume, "otsu"))
    assert (again.tiles.failed, again.tiles.reused, again.failures) == (15, 60, bad.failures)
    shard.write_bytes(content)
    mended = run(run_config(volume, "otsu"))
    assert (mended.tiles.failed, mended.tiles.done, list(mended.failures)) == (0, 90, [])
    assert_same(volume, mended, run(run_config(volume, "good")))


def test_lazy_array_has_the_chunks_of_its_shards(volume: Volume, reference: Summary) -> None:
    mask = volume.label("reference").full
    lazy = lazy_array(mask)
    assert lazy.chunks == ((1, 1, 1), (2048, 52), (2048, 552))
    np.testing.assert_array_equal(
        lazy[1, 2000:2090:7, 5].compute(), mask.read(Box.whole(mask.shape))[1, 2000:2090:7, 5]
    )
    assert lazy.sum(dtype=np.int64).compute(scheduler="threads") == 255 * (mask.read(Box.whole(mask.shape)) > 0).sum()


def test_mean_of_scores_is_the_same_for_any_tree() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 70000, (500, 4))
    tiles[::7] = 0
    whole = mean_scores(score_parts(tiles).sum(axis=0))
    assert whole is not None
    for size in (1, 3, 64, 499):
        parts = [score_parts(tiles[start : start + size]).sum(axis=0) for start in range(0, 500, size)]
        assert mean_scores(np.sum(parts, axis=0)) == whole
    assert whole[1] == 500 - 72


def test_shards_are_two_by_two() -> None:
    assert Grid(SHAPE, SHARD).cells == (3, 2, 2)
