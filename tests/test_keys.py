"""Keys change with what a tile is made from, and with nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.geometry import Box
from pipeline.settings.config import RunConfig
from pipeline.settings.recipe import FixedThreshold, MedianDenoise, NoDenoise, Recipe
from pipeline.storage import keys
from pipeline.storage.keys import counts_keys, mask_keys, recipe_key
from pipeline.storage.store import SHARD
from pipeline.storage.tables import Grids

SHAPE = (5, 4600, 4300)  # three by three shards a slice
GRIDS = Grids.of(SHAPE, 512, (1, *SHAPE[1:]))
TILES = GRIDS.block_tiles((2, 0, 0))
RECIPES = {
    "none": Recipe(denoise=NoDenoise()),
    "in-plane": Recipe(denoise=MedianDenoise(size=3)),
    "wide": Recipe(denoise=MedianDenoise(size=99)),
    "volumetric": Recipe(denoise=MedianDenoise(size=(3, 5, 5))),
}


def digests(depth, seed=3):
    return np.random.default_rng(seed).integers(2, 2**63, (depth, *GRIDS.shards.cells[1:]), np.uint64)


def depth(recipe):
    return recipe.denoise.window[0]


def touched(shard, halo):
    """Tiles of a slice that read a shard, by trying them all."""
    voxels = Box((0, *(index * step for index, step in zip(shard, SHARD[1:], strict=True))), (1, 0, 0))
    voxels = Box(voxels.start, (1, voxels.start[1] + SHARD[1], voxels.start[2] + SHARD[2]))
    reached = np.zeros(TILES.shape, bool)
    for local, tile in zip(np.ndindex(TILES.shape), TILES, strict=True):
        box = GRIDS.tiles.box((0, *tile[1:])).grow((0, *halo[1:]))
        reached[local] = (box & voxels).size > 0
    return reached


@settings(deadline=None, max_examples=25)
@given(
    recipe=st.sampled_from(list(RECIPES.values())),
    place=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
    absent=st.booleans(),
)
def test_a_key_changes_where_the_halo_touches_the_shard(recipe, place, absent):
    before = digests(depth(recipe))
    plane = place[0] % depth(recipe)
    after = before.copy()
    after[(plane, *place[1:])] = 0 if absent else before[(plane, *place[1:])] + np.uint64(1)
    changed = mask_keys(recipe, before, GRIDS, TILES) != mask_keys(recipe, after, GRIDS, TILES)
    np.testing.assert_array_equal(changed, touched(place[1:], recipe.halo))


def test_a_far_shard_changes_nothing_and_a_near_one_only_across_its_edge():
    before, after = digests(1), digests(1)
    after[0, 0, 1] += np.uint64(1)
    changed = mask_keys(RECIPES["in-plane"], before, GRIDS, TILES) != mask_keys(
        RECIPES["in-plane"], after, GRIDS, TILES
    )
    # Shard (0, 1) holds tiles 4 to 7 of rows 0 to 3; its neighbours read one voxel of it.
    assert sorted({tuple(map(int, place[1:])) for place in np.argwhere(changed)}) == [
        (row, column) for row in range(5) for column in range(3, 9)
    ]


def test_keys_do_not_depend_on_the_slice_or_on_which_tiles_are_asked():
    recipe, found = RECIPES["volumetric"], digests(3)
    whole = mask_keys(recipe, found, GRIDS, TILES)
    assert whole.shape == TILES.shape
    assert whole.dtype == np.uint64
    part = Box((4, 2, 3), (5, 6, 9))
    np.testing.assert_array_equal(mask_keys(recipe, found, GRIDS, part), whole[:, 2:6, 3:9])
    assert (whole > 1).all()


def test_equal_inputs_give_equal_keys():
    recipe = RECIPES["wide"]
    np.testing.assert_array_equal(
        mask_keys(recipe, digests(1), GRIDS, TILES),
        mask_keys(recipe.model_copy(), digests(1), GRIDS, TILES),
    )


@pytest.mark.parametrize(
    "other",
    [
        Recipe(foreground="bright"),
        Recipe(tile=256),
        Recipe(denoise=NoDenoise()),
        Recipe(denoise=MedianDenoise(size=5)),
        Recipe(threshold=FixedThreshold(level=79)),
        Recipe(threshold=FixedThreshold(level=80)),
    ],
    ids=["foreground", "tile", "denoise", "size", "threshold", "level"],
)
def test_every_part_of_a_recipe_changes_every_key(other):
    assert recipe_key(other) != recipe_key(Recipe())
    if other.halo == Recipe().halo:
        found = digests(1)
        assert (mask_keys(other, found, GRIDS, TILES) != mask_keys(Recipe(), found, GRIDS, TILES)).all()


@pytest.mark.parametrize(
    "options",
    [
        {"name": "mine"},
        {"truth": "groundtruth"},
        {"region": "z=0:1"},
        {"memory": "4GB"},
        {"cluster": {"engine": "local"}},
        {"volume": "other.zarr"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_run_options_are_in_no_key(options):
    config = RunConfig.model_validate({"volume": "brain.zarr", **options})
    assert recipe_key(config.recipe) == recipe_key(Recipe())


def test_a_new_algorithm_changes_every_key(monkeypatch):
    before = recipe_key(Recipe())
    monkeypatch.setattr(keys, "ALGORITHM", keys.ALGORITHM + 1)
    assert recipe_key(Recipe()) != before


@settings(deadline=None, max_examples=15)
@given(place=st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_the_key_of_counts_changes_with_the_truth_of_the_tile_itself(place):
    masks = mask_keys(RECIPES["wide"], digests(1), GRIDS, TILES)
    before, after = digests(1, seed=4), digests(1, seed=4)
    after[(0, *place)] = 0
    changed = counts_keys(masks, before, GRIDS, TILES) != counts_keys(masks, after, GRIDS, TILES)
    np.testing.assert_array_equal(changed, touched(place, (0, 0, 0)))


def test_the_key_of_counts_changes_with_the_mask_of_the_tile_itself():
    masks = mask_keys(RECIPES["none"], digests(1), GRIDS, TILES)
    truth = digests(1, seed=4)
    before = counts_keys(masks, truth, GRIDS, TILES)
    masks[0, 5, 6] += np.uint64(1)
    changed = counts_keys(masks, truth, GRIDS, TILES) != before
    assert np.argwhere(changed).tolist() == [[0, 5, 6]]
