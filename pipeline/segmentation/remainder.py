"""What is left of a plan: found from the tables and the shards that there are, as a run finds it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import ceil_div
from pipeline.segmentation.plan import Plan, with_bytes
from pipeline.storage.keys import has_shards, valid_tiles
from pipeline.storage.painting import Painting
from pipeline.storage.store import ShardedArray
from pipeline.storage.table import Table
from pipeline.storage.tables import RunTables, run_names
from pipeline.storage.volume import Volume

Flags = NDArray[np.bool_]


def look_ahead(plan: Plan) -> Plan:
    """The plan with what is done of it already: its tiles, and the bytes of what is left, by the rules of a run.

    What a level of the whole volume that is still to be found leaves as it is cannot be known: bytes are of all then.
    """
    volume = Volume(plan.volume)
    if plan.name not in run_names(volume) or plan.replaces:
        return plan
    tables, tiles = RunTables(volume, plan.name), plan.grids.tiles
    worked = tiles.cover(plan.grids.blocks.voxels(plan.blocks))
    if plan.truth in (None, *tables.truths()):
        compared = valid_tiles(volume, tables, plan.truth, worked, plan.confusion)
    else:
        compared = np.zeros(worked.shape, np.bool_)
    made = compared if compared.all() else valid_tiles(volume, tables, None, worked)
    if plan.name not in volume.labels():
        return plan
    there = _there(plan, volume.label(plan.name).full, tables.shard_digest)
    compared &= _of_tiles(plan, there)
    scored = tiles.cover(plan.region).relative_to(worked.start).slices
    plan = replace(plan, tiles_done=int(compared[scored].sum()))
    if plan.pools:
        return plan
    shown, painting = _whole_blocks(plan, compared), Painting.of(volume, tables)
    if plan.confusion and painting is not None:
        shown &= _there(plan, painting.label.full, painting.tables.digest)
    return with_bytes(plan, volume, _whole_blocks(plan, made) & there, shown)


def _whole_blocks(plan: Plan, tiles: Flags) -> Flags:
    """Blocks all of whose tiles are so."""
    for axis, (block, tile) in enumerate(zip(plan.block, plan.grids.tiles.step, strict=True)):
        tiles = np.logical_and.reduceat(tiles, np.arange(0, tiles.shape[axis], ceil_div(block, tile)), axis=axis)
    return tiles


def _of_tiles(plan: Plan, blocks: Flags) -> Flags:
    """What is said of blocks, of each of their tiles."""
    cells = plan.grids.tiles.cover(plan.grids.blocks.voxels(plan.blocks))
    for axis, (block, tile, length) in enumerate(zip(plan.block, plan.grids.tiles.step, cells.shape, strict=True)):
        blocks = np.repeat(blocks, ceil_div(block, tile), axis=axis).take(range(length), axis=axis)
    return blocks


def _there(plan: Plan, label: ShardedArray, digest: Table) -> Flags:
    """Blocks whose shards are recorded and there."""
    digests, _ = digest.survey()
    there = [has_shards(label, plan.grids.blocks.box(block), digests[block[0] :]) for block in plan.blocks]
    return np.array(there, np.bool_).reshape(plan.blocks.shape)
