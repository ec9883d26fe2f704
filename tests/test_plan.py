"""Blocks, memory and refusal before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigError, ExistsError, MemoryLimitError, MissingInputError, RegionError
from pipeline.segmentation.budget import PROCESS_BYTES, task_bytes
from pipeline.segmentation.plan import make_plan
from pipeline.segmentation.runs import run
from pipeline.storage.volume import Volume
from tests.builders import build_volume, run_config

FULL = (2, 8026, 17480)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Full-size volume that holds nothing yet."""
    return Volume.create(tmp_path_factory.mktemp("full") / "brain.zarr", FULL, "uint8")


def test_whole_slices_are_chosen_where_they_fit(full: Volume) -> None:
    plan = make_plan(run_config(full, truth=None, memory="8GB", cluster={"engine": "threads", "threads": 2}))
    assert plan.block == (1, 8026, 17480)
    assert (plan.blocks.size, plan.tasks) == (2, 2)
    assert (plan.read_bytes, plan.written_bytes) == (0, 0)  # no slice is there yet
    assert plan.peak_bytes == PROCESS_BYTES + 2 * plan.task_bytes < plan.limit_bytes == 8 * 10**9


def test_process_that_starts_the_others_needs_memory_too(full: Volume) -> None:
    plan = make_plan(
        run_config(full, truth=None, memory="8GB", cluster={"engine": "local", "workers": 2, "threads": 1})
    )
    assert plan.tasks == 2
    assert plan.peak_bytes == 3 * PROCESS_BYTES + 2 * plan.task_bytes


def test_levels_of_whole_slices_must_fit_whatever_the_block(full: Volume) -> None:
    recipe = run_config(full).recipe
    least = task_bytes(full, recipe, (1, 2048, 2048))
    assert least > 8026 * 17480 // 3
    cluster = {"engine": "threads", "threads": 2}
    assert make_plan(run_config(full, truth=None, memory=PROCESS_BYTES + 2 * least, cluster=cluster)).block[0] == 1
    with pytest.raises(MemoryLimitError):
        make_plan(run_config(full, truth=None, memory=PROCESS_BYTES + 2 * least - 1, cluster=cluster))


def test_too_little_memory_is_refused_with_both_numbers(full: Volume) -> None:
    with pytest.raises(MemoryLimitError, match=r"memory: 0\.41 GB are allowed, 0\.54 GB are needed for 2 tasks"):
        make_plan(run_config(full, truth=None, memory="410MB", cluster={"engine": "threads", "threads": 2}))


def test_block_shape_of_a_run_is_kept_and_refused_where_it_does_not_fit(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 2100, 2100))
    small = PROCESS_BYTES + 2 * task_bytes(volume, run_config(volume).recipe, (1, 2048, 2048)) + 1000
    cluster = {"engine": "threads", "threads": 2}
    parts = make_plan(run_config(volume, memory=small, cluster=cluster))
    assert parts.block == (1, 2048, 2048)
    run(run_config(volume, memory=small, cluster=cluster))
    assert make_plan(run_config(volume, memory="8GB", cluster=cluster)).block == (1, 2048, 2048)
    run(run_config(volume, "whole"))
    with pytest.raises(
        MemoryLimitError, match=r"are allowed, \d\.\d\d GB are needed for 2 tasks on blocks of 2100 x 2100"
    ):
        make_plan(run_config(volume, "whole", memory=small, cluster=cluster))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tile": 500}, ConfigError, "tile: got 500, which does not divide the shard of 2048"),
        ({"truth": "nobody"}, MissingInputError, "has no label 'nobody'; it has: groundtruth"),
        ({"truth": "otsu"}, MissingInputError, "'otsu' is the mask of a run, not a truth"),
        ({"name": "groundtruth"}, ConfigError, "'groundtruth' is a label .* already"),
        ({"region": "z=0:9"}, RegionError, "got z=0:9, the volume has z=0:2"),
        (
            {"name": "otsu", "tile": 256, "denoise": {"method": "none"}},
            ExistsError,
            "another recipe:\n  denoise.method: median -> none\n  denoise.size: 3 -> -\n  tile: 512 -> 256\nkeep it, "
            "and give this one a name of its own with --name; or throw it away with --replace$",
        ),
        ({"threshold": {"method": "fixed", "level": 300}}, ConfigError, "got 300, uint8 images have levels 0 to 255"),
    ],
    ids=["tile", "no such label", "mask as truth", "name of a label", "region", "other recipe", "level"],
)
def test_what_cannot_be_run_is_refused(
    tmp_path: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    run(run_config(volume))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        make_plan(run_config(volume, **{"name": "new", **options}))  # type: ignore[arg-type]
    assert sorted(tmp_path.rglob("*")) == before


def test_region_rounds_out_to_tiles_for_scores_and_to_blocks_for_work(full: Volume) -> None:
    plan = make_plan(run_config(full, truth=None, region="z=1:2,y=10:11,x=600:1025", memory="8GB"))
    assert str(plan.region) == "z=1:2,y=0:512,x=512:1536"
    assert plan.grids.blocks.voxels(plan.blocks).shape == (1, 8026, 17480)
    assert not plan.whole


def test_plan_tells_what_is_slow(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (3, 64, 600))
    plan = make_plan(run_config(volume, denoise={"method": "median", "size": 7}))
    assert not plan.fast_filter
