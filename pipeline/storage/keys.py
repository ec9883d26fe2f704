"""What a stored result was made from, in one number per tile: equal keys mean equal bits, so the work need not be done.

The mask's key holds the recipe, the algorithm's number and the digests of every shard that the tile and its halo touch,
in its own slice and in the neighbours that the filter reads; absent ones count as such. The key of the counts holds
the mask's key and the truth's digests.
"""

from __future__ import annotations

import json
import struct
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamageError
from pipeline.geometry import Box, Triple
from pipeline.settings.recipe import Recipe
from pipeline.storage.confusion_label import confusion_name
from pipeline.storage.disk import is_file
from pipeline.storage.store import ABSENT, ALL_FILL, ShardedArray, digest_bytes
from pipeline.storage.table import Table
from pipeline.storage.tables import ConfusionTables, Grids, RunTables, Status
from pipeline.storage.volume import Volume

ALGORITHM = 1  # raised only when the bits of a mask change for the same recipe and image


def recipe_key(recipe: Recipe) -> int:
    """Key of a recipe under the present algorithm."""
    return digest_bytes(json.dumps([ALGORITHM, recipe.document()], sort_keys=True).encode())


def other_inputs(volume: Volume, recipe: Recipe, first: int, last: int) -> list[bytes]:
    """Digests of what masks of some slices are made from beside the image: valid area and reference slice."""
    inputs = [b""] * (last - first)
    if recipe.valid is not None and recipe.valid.label is not None:
        _, ledger = volume.truth(recipe.valid.label)
        inputs = [digests.tobytes() for digests in ledger.shard_digests(first, last)]
    if recipe.correct is not None and (z := recipe.correct.match) is not None:
        reference = volume.slices.shard_digests(z, z + 1).tobytes() if z < volume.shape[0] else b"none"
        inputs = [of_slice + reference for of_slice in inputs]
    return inputs


def mask_keys(
    recipe: Recipe,
    image_digests: NDArray[np.uint64],
    grids: Grids,
    tiles: Box,
    level: float | None = None,
    others: bytes = b"",
) -> NDArray[np.uint64]:
    """Keys of the masks of a box of tiles of one slice.

    Parameters
    ----------
    recipe : Recipe
    image_digests : ndarray
        uint64 digests of the shards of the slices that the filter reads, (z, y, x), absent ones 0.
    grids : Grids
    tiles : Box
        Of the tile grid, one slice.
    level : float, optional
        Of the whole volume, where the recipe has one.
    others : bytes, optional
        Of `other_inputs`.

    Returns
    -------
    ndarray
        uint64, of the shape of ``tiles``.
    """
    seed = recipe_key(recipe).to_bytes(8, "little") + (b"" if level is None else struct.pack("<d", level)) + others
    depth, *halo = recipe.halo
    support = grids.tiles.shape[1:] if recipe.shares or recipe.slicewise else halo
    return _keys(seed, image_digests, grids, tiles, (depth, *support))


def counts_keys(
    masks: NDArray[np.uint64], truth_digests: NDArray[np.uint64], grids: Grids, tiles: Box
) -> NDArray[np.uint64]:
    """Keys of the counts of a box of tiles: from the keys of their masks and the truth's shard digests, (1, y, x)."""
    truths = _keys(b"truth", truth_digests, grids, tiles, (0, 0, 0))
    pairs, which = np.unique(np.stack([masks.ravel(), truths.ravel()], axis=1), axis=0, return_inverse=True)
    keys = np.array([digest_bytes(pair.tobytes()) for pair in pairs], np.uint64)
    return keys[which.ravel()].reshape(masks.shape)


def valid_tiles(
    volume: Volume, tables: RunTables, truth: str | None, tiles: Box, confusion: bool = False
) -> NDArray[np.bool_]:
    """Tiles whose recorded mask, and counts against a truth, were made from what the volume holds now.

    What cannot be read, or has been lost, vouches for nothing.

    Parameters
    ----------
    volume : Volume
    tables : RunTables
    truth : str or None
        Without it, only masks are looked at.
    tiles : Box
        Of the tile grid.
    confusion : bool
        Whether the label that shows the confusion with the truth must be of the same, too.

    Returns
    -------
    ndarray
        bool, of the shape of ``tiles``.
    """
    try:
        return _valid(volume, tables, truth, tiles, confusion)
    except DamageError:
        first, last = tiles.start[0], tiles.stop[0]
        if last - first == 1:
            return np.zeros(tiles.shape, np.bool_)
        middle = (first + last) // 2  # by halves: a few damaged chunks must not cost a look at each of 799 slices
        halves = Box(tiles.start, (middle, *tiles.stop[1:])), Box((middle, *tiles.start[1:]), tiles.stop)
        return np.concatenate([valid_tiles(volume, tables, truth, half, confusion) for half in halves])


def _valid(volume: Volume, tables: RunTables, truth: str | None, tiles: Box, confusion: bool) -> NDArray[np.bool_]:
    recipe = Recipe.model_validate(tables.recipe)
    depth = recipe.halo[0]
    first, last = tiles.start[0], tiles.stop[0]
    low, high = max(0, first - depth), min(volume.shape[0], last + depth)
    beyond = (low - first + depth, last + depth - high)
    digests = np.pad(volume.slices.shard_digests(low, high), (beyond, (0, 0), (0, 0)))
    traced = None if truth is None else volume.truth(truth)[1].shard_digests(first, last)
    recorded = _counts_recorded(tables, truth, tiles, confusion)
    valid: NDArray[np.bool_] = tables.status.read(tiles.slices) == Status.DONE
    for table in tables.of_mask.values():
        valid &= _kept(table, tiles)
    if truth is not None:
        valid &= _kept(tables.truth(truth).counts, tiles)
        valid &= tables.truth(truth).histogram.stored(tiles.slices)  # a gigabyte: only looked for
    masks = tables.mask_key.read(tiles.slices)
    others = other_inputs(volume, recipe, first, last)
    for z in range(first, last):
        row = slice(z - first, z - first + 1)
        if not valid[row].any():
            continue
        of_slice = Box((z, *tiles.start[1:]), (z + 1, *tiles.stop[1:]))
        around = digests[z - first : z - first + 2 * depth + 1]
        keys = mask_keys(recipe, around, tables.grids, of_slice, tables.level, others[z - first])
        valid[row] &= masks[row] == keys
        if traced is not None and recorded is not None:
            valid[row] &= recorded[row] == counts_keys(keys, traced[row], tables.grids, of_slice)
    return valid


def _counts_recorded(tables: RunTables, truth: str | None, tiles: Box, confusion: bool) -> NDArray[np.uint64] | None:
    """Keys of the counts that are recorded; ``ABSENT`` where the confusion is wanted, and shows others."""
    if truth is None:
        return None
    recorded: NDArray[np.uint64] = tables.truth(truth).counts_key.read(tiles.slices)
    if confusion:
        kept = tables.truth(truth).confusion
        recorded = np.where(recorded == (ABSENT if kept is None else kept.key.read(tiles.slices)), recorded, ABSENT)
    return recorded


def _kept(table: Table, tiles: Box) -> NDArray[np.bool_]:
    """Tiles whose entries were written and have not been lost; raises `DamageError` where they cannot be read."""
    table.read(tiles.slices)
    return table.stored(tiles.slices)


def unfinished(volume: Volume, tables: RunTables, truth: str | None, tiles: Box, confusion: bool = False) -> list[int]:
    """Slices that a run must look at again: for the tiles of a box, what is recorded is not what it would make now.

    The mask's shards are looked for, and not read: 28,764 of a full volume are a second's work. Those of the confusion
    are, too, where that is wanted.
    """
    valid = [bool(of_slice.all()) for of_slice in valid_tiles(volume, tables, truth, tiles, confusion)]
    present = volume.slices.present()[tiles.start[0] : tiles.stop[0]]
    status, damaged = tables.status.survey(tiles.slices)
    untouched = [not damaged and bool((of_slice == Status.ABSENT).all()) for of_slice in status]
    digests, _ = tables.shard_digest.survey()
    shards = [(volume.label(tables.name).full, digests)]
    if truth is not None and confusion and (kept := tables.truth(truth).confusion) is not None:
        shards.append((volume.label(confusion_name(tables.name)).full, kept.digest.survey()[0]))
    window = tables.grids.tiles.voxels(tiles)
    again = []
    states = zip(present.tolist(), valid, untouched, strict=True)
    for z, (exists, right, empty) in enumerate(states, tiles.start[0]):
        box = Box((z, *window.start[1:]), (z + 1, *window.stop[1:]))
        if not (right and all(has_shards(label, box, each[z : z + 1]) for label, each in shards) if exists else empty):
            again.append(z)
    return again


def has_shards(label: ShardedArray, box: Box, digests: NDArray[np.uint64]) -> bool:
    """Whether the shards of a mask, or of a confusion, in a box of one slice are recorded and there."""
    for shard in label.shards.cover(box):
        digest = digests[shard[0] - box.start[0], shard[1], shard[2]]
        if digest == ABSENT or (digest != ALL_FILL and not is_file(label.shard_file(shard))):
            return False
    return True


def stale_pyramids(tables: RunTables, slices: range) -> list[int]:
    """Slices whose mask was written since their pyramid was."""
    recorded = tables.pyramid_key.read()
    return [z for z in slices if recorded[z] != pyramid_key(tables, z)]


def stale_confusions(tables: ConfusionTables, slices: range) -> list[int]:
    """Slices whose confusion was written since its pyramid was."""
    recorded = tables.pyramid_key.read()
    return [z for z in slices if recorded[z] != levels_key(tables.digest, z)]


def pyramid_key(tables: RunTables, z: int) -> int:
    """Digest of the mask that a slice's pyramid shows; 0 where no mask was written."""
    return levels_key(tables.shard_digest, z)


def levels_key(table: Table, z: int) -> int:
    """Digest of the shards of a slice, whose digests are in a table; 0 where none was written."""
    digests = table.read((slice(z, z + 1),))
    return digest_bytes(digests.tobytes()) if digests.any() else ABSENT


def _keys(seed: bytes, digests: NDArray[np.uint64], grids: Grids, tiles: Box, halo: Triple) -> NDArray[np.uint64]:
    windows, which = _windows(grids, Box((0, *tiles.start[1:]), (1, *tiles.stop[1:])), halo)
    keys = [digest_bytes(seed + digests[:, rows, columns].tobytes()) for rows, columns in windows]
    return np.array(keys, np.uint64)[which].reshape(tiles.shape)


@lru_cache(maxsize=64)  # the same for every slice: a full volume asks 799 times
def _windows(grids: Grids, tiles: Box, halo: Triple) -> tuple[list[tuple[slice, slice]], list[int]]:
    """Distinct rows and columns of shards that tiles with their halo touch, and which of them each tile has."""
    found: dict[tuple[int, ...], int] = {}
    windows: list[tuple[slice, slice]] = []
    which: list[int] = []
    for tile in tiles:
        cover = grids.shards.cover(grids.tiles.box(tile).grow((0, halo[1], halo[2])))
        position = found.setdefault((*cover.start, *cover.stop), len(found))
        if position == len(windows):
            windows.append(cover.slices[1:])
        which.append(position)
    return windows, which
