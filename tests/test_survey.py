"""Levels that a whole slice, or the volume, shares: against SciPy and the method on all of its voxels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from pipeline.errors import DamageError
from pipeline.events import ignore
from pipeline.geometry import Box
from pipeline.kernels.histogram import otsu_level
from pipeline.segmentation import survey
from pipeline.segmentation.plan import make_plan
from pipeline.segmentation.runs import run, run_plan
from pipeline.segmentation.survey import Survey, decide_levels, slice_counts
from pipeline.settings.config import LocalCluster, ThreadsCluster
from pipeline.storage.tables import RunTables, Status
from pipeline.storage.volume import Volume
from tests.builders import build_volume, run_config, textured
from tests.test_execute import with_blocks

SHAPE = (3, 2100, 2600)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return build_volume(tmp_path_factory.mktemp("volume") / "brain.zarr", SHAPE)


def filtered_slices(volume: Volume) -> NDArray[np.uint8]:
    image = volume.image.full.read(Box.whole(volume.shape))
    return np.stack([median_filter(255 - plane, 3, mode="reflect") for plane in image])


def counts_of(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.bincount(values.ravel(), minlength=256)


def assert_masked(volume: Volume, name: str, levels: list[float]) -> None:
    mask = volume.label(name).full.read(Box.whole(volume.shape))
    expected = filtered_slices(volume) > np.array(levels)[:, None, None]
    np.testing.assert_array_equal(mask, np.where(expected, 255, 0))
    threshold = RunTables(volume, name).threshold.read()
    np.testing.assert_array_equal(threshold, np.broadcast_to(np.array(levels)[:, None, None], threshold.shape))


@pytest.mark.parametrize("block", [(1, 2100, 2600), (1, 2048, 2048)], ids=["whole slices", "shards"])
@pytest.mark.parametrize("method", ["otsu", "yen"])
def test_level_of_a_slice_is_that_of_all_its_voxels(volume: Volume, method: str, block: tuple[int, int, int]) -> None:
    name = f"{method}-{block[1]}"
    config = run_config(volume, name, threshold={"method": method, "scope": "slice"})
    plan = with_blocks(make_plan(config), block)
    summary = run_plan(plan, ThreadsCluster(threads=2), ignore)
    expected = [config.threshold.level(counts_of(values)) for values in filtered_slices(volume)]
    assert_masked(volume, name, expected)
    assert summary.counts is not None
    assert summary.tiles.done == summary.tiles.total
    assert run(config).tiles.reused == summary.tiles.done


def test_pooled_counts_do_not_depend_on_the_block(volume: Volume) -> None:
    recipe = run_config(volume, denoise={"method": "median", "size": [3, 3, 3]}).recipe
    whole = slice_counts(volume, recipe, 1, (1, 2100, 2600))
    image = volume.image.full.read(Box.whole(volume.shape))
    np.testing.assert_array_equal(whole, counts_of(median_filter(255 - image, 3, mode="reflect")[1]))
    np.testing.assert_array_equal(slice_counts(volume, recipe, 1, (1, 2048, 2048)), whole)


@pytest.mark.parametrize("cluster", [ThreadsCluster(threads=2), LocalCluster(workers=2)], ids=["threads", "local"])
def test_level_of_a_volume_is_that_of_all_its_voxels(volume: Volume, cluster: ThreadsCluster | LocalCluster) -> None:
    name = f"volume-{cluster.engine}"
    config = run_config(volume, name, threshold={"scope": "volume"}, cluster=cluster, region="z=0:1")
    level = otsu_level(counts_of(filtered_slices(volume)))
    assert make_plan(config).passes == 2
    assert run(config).levels == (level, level, level)  # of the whole volume, region or not
    assert make_plan(config).passes == 1
    run(run_config(volume, name, threshold={"scope": "volume"}, cluster=cluster))
    assert_masked(volume, name, [level] * 3)


def test_level_of_a_volume_is_frozen_until_it_is_fitted_again(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (3, 64, 64))
    config = run_config(volume, threshold={"scope": "volume"})
    first = run(config).levels
    rng = np.random.default_rng(1)
    volume.staging.mkdir()
    plane = textured(rng, (64, 64)) // 3
    volume.slices.record(1, volume.image.write_slice(1, plane, volume.staging), "1.png", 1)
    volume.staging.rmdir()
    again = run(config)
    assert (again.levels, again.tiles.reused) == (first, 2)
    fitted = run(config.model_copy(update={"refit": True}))
    assert fitted.levels != first
    assert fitted.tiles.reused == 0
    assert_masked(volume, "otsu", [otsu_level(counts_of(filtered_slices(volume)))] * 3)
    assert run(config.model_copy(update={"refit": True})).tiles.reused == 3


@pytest.mark.parametrize("scope", ["slice", "volume"])
def test_level_needs_all_voxels_that_it_is_of(tmp_path: Path, scope: str) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 2100))
    volume.image.full.shard_file((1, 0, 1)).unlink()
    config = run_config(volume, threshold={"scope": scope})
    if scope == "volume":
        with pytest.raises(DamageError, match="slice 1 has no level, which all of it is needed for"):
            run(config)
    else:
        summary = run(config)
        assert (summary.tiles.done, summary.tiles.failed) == (5, 5)
        assert "slice 1 has no level" in summary.failures[0][1]


def test_new_slice_far_away_changes_the_key_of_all_tiles_of_a_pooled_slice(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 64, 2100))
    config = run_config(volume, threshold={"scope": "slice"})
    run(config)
    volume.staging.mkdir()
    plane = volume.image.full.read(Box.whole(volume.shape))[0]
    plane[5, 2099] ^= 3
    volume.slices.record(0, volume.image.write_slice(0, plane, volume.staging), "0.png", 1)
    volume.staging.rmdir()
    assert run(config).tiles.reused == 0


def test_tile_without_a_level_is_empty_and_done(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 64, 64))
    volume.staging.mkdir()
    flat = np.full((64, 64), 9, np.uint8)
    volume.slices.record(0, volume.image.write_slice(0, flat, volume.staging), "0.png", 1)
    volume.staging.rmdir()
    config = run_config(volume, threshold={"method": "minimum"})
    summary = run(config)
    assert (summary.tiles.done, summary.tiles.undecided) == (1, 1)
    assert not volume.label("otsu").full.read(Box.whole(volume.shape)).any()
    assert RunTables(volume, "otsu").status.read().tolist() == [[[Status.DONE]]]
    assert run(config).tiles.reused == 1


def survey_of(levels: list[float], counts: list[int]) -> Survey:
    """Two tiles, the second without a signal."""
    tiles = np.array([levels])
    return Survey(np.array(counts), tiles, np.ones_like(tiles), np.array([[90.0, 2.0]]))


@pytest.mark.parametrize("scope", ["tile", "smooth"])
@pytest.mark.parametrize("then", ["slice", "empty"])
def test_tile_without_signal_is_empty_where_its_slice_has_no_level(tmp_path: Path, scope: str, then: str) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 16, 32))
    threshold = {"method": "minimum", "scope": scope, "min_contrast": 30, "on_no_signal": then}
    recipe = run_config(volume, tile=16, threshold=threshold).recipe
    found = decide_levels(survey_of([5.0, 7.0], [0, 9, 0, 0]), recipe, volume, None)  # of one value: no two maxima
    np.testing.assert_array_equal(found.levels, [[5.0, np.nan]])
    if scope == "smooth":
        assert found.surface is not None
        assert (found.surface.levels[0, 0], found.surface.empty.tolist()) == (5.0, [[False, True]])


def test_volume_without_a_level_is_empty_where_nothing_is_valid(volume: Volume) -> None:
    threshold = {"scope": "volume", "min_contrast": 30}
    recipe = run_config(volume, threshold=threshold).recipe
    nothing = survey_of([np.nan, np.nan], [0, 0, 0, 0])
    np.testing.assert_array_equal(decide_levels(nothing, recipe, volume, None).levels, [[np.nan, np.nan]])
    with pytest.raises(DamageError, match="the volume has no level yet; run again"):
        decide_levels(survey_of([1.0, 2.0], [3, 4, 0, 2]), recipe, volume, None)


@pytest.mark.parametrize("scope", ["slice", "smooth"])
def test_slice_is_surveyed_once_for_all_its_blocks(volume: Volume, scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    surveyed: list[int] = []

    def scenes(*arguments: Any) -> Any:
        surveyed.append(arguments[2])
        return read(*arguments)

    read = survey._scenes
    monkeypatch.setattr(survey, "_scenes", scenes)
    plan = with_blocks(make_plan(run_config(volume, f"once-{scope}", threshold={"scope": scope})), (1, 2048, 2048))
    survey._slice_counts.cache_clear()
    assert run_plan(plan, ThreadsCluster(threads=1), ignore).tiles.failed == 0
    assert sorted(surveyed) == [0, 1, 2]
