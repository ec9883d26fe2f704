"""What a stored result was made from, in one number per tile: equal keys mean equal bits, so the work need not be done.

The mask's key holds the recipe, the algorithm's number and the digests of every shard that the tile and its halo touch,
in its own slice and in the neighbours that the filter reads; absent ones count as such. The key of the counts holds
the mask's key and the truth's digests.
"""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.geometry import Box, Triple
from pipeline.store import digest_bytes
from pipeline.tables import Grids

ALGORITHM = 1  # raised only when the bits of a mask change for the same recipe and image


def recipe_key(recipe: Recipe) -> int:
    """Key of a recipe under the present algorithm."""
    return digest_bytes(json.dumps([ALGORITHM, recipe.document()], sort_keys=True).encode())


def mask_keys(recipe: Recipe, image_digests: NDArray[np.uint64], grids: Grids, tiles: Box) -> NDArray[np.uint64]:
    """Keys of the masks of a box of tiles of one slice.

    Parameters
    ----------
    recipe : Recipe
    image_digests : ndarray
        uint64 digests of the shards of the slices that the filter reads, (z, y, x), absent ones 0.
    grids : Grids
    tiles : Box
        Of the tile grid, one slice.

    Returns
    -------
    ndarray
        uint64, of the shape of ``tiles``.
    """
    seed = recipe_key(recipe).to_bytes(8, "little")
    return _keys(seed, image_digests, grids, tiles, recipe.halo)


def counts_keys(
    masks: NDArray[np.uint64], truth_digests: NDArray[np.uint64], grids: Grids, tiles: Box
) -> NDArray[np.uint64]:
    """Keys of the counts of a box of tiles: from the keys of their masks and the truth's shard digests, (1, y, x)."""
    truths = _keys(b"truth", truth_digests, grids, tiles, (0, 0, 0))
    pairs = np.stack([masks, truths], axis=-1)
    keys = np.empty(masks.shape, np.uint64)
    for tile in np.ndindex(masks.shape):
        keys[tile] = digest_bytes(pairs[tile].tobytes())
    return keys


def _keys(seed: bytes, digests: NDArray[np.uint64], grids: Grids, tiles: Box, halo: Triple) -> NDArray[np.uint64]:
    windows = _windows(grids, Box((0, *tiles.start[1:]), (1, *tiles.stop[1:])), halo)
    keys = [digest_bytes(seed + digests[:, rows, columns].tobytes()) for rows, columns in windows]
    return np.array(keys, np.uint64).reshape(tiles.shape)


@lru_cache(maxsize=64)  # the same for every slice: a full volume asks 799 times
def _windows(grids: Grids, tiles: Box, halo: Triple) -> list[tuple[slice, slice]]:
    """Rows and columns of the shards that each tile and its halo touch."""
    covers = (grids.shards.cover(grids.tiles.box(tile).grow((0, halo[1], halo[2]))) for tile in tiles)
    return [cover.slices[1:] for cover in covers]
