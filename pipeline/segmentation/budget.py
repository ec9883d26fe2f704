"""How many tasks share the memory, what one of them needs, and the largest block for which that is there."""

from __future__ import annotations

from pipeline.geometry import Triple
from pipeline.kernels.bins import WINDOWED_LEVELS
from pipeline.kernels.median import is_fast
from pipeline.machine import available_cpus
from pipeline.segmentation.tile import TABLES_BYTES
from pipeline.settings.config import AddressCluster, LocalCluster, RunConfig
from pipeline.settings.recipe import PythonDenoise, Recipe
from pipeline.storage.store import CHUNK, SHARD
from pipeline.storage.tables import Grids
from pipeline.storage.volume import Volume

# Measured: resident memory of a process after its imports and with its compiled kernels (benchmarks/README.md).
PROCESS_BYTES = 400 * 10**6
# Shards that a task holds at once: of truth and of mask, one that is encoded, and chunks of it. Measured as above.
CODEC_SHARDS = 4
TARGET_BYTES = 64  # for each voxel of its block, what a function of the user's is thought to need
QUEUE_BYTES = 8  # for each voxel of the smallest object, or hole, that stays: those that are looked at are queued


def parallelism(config: RunConfig) -> tuple[int, int]:
    """Processes, and threads of each, that this machine's part of the run will have."""
    cpus = available_cpus()
    if isinstance(config.cluster, LocalCluster):
        return config.cluster.workers or max(1, cpus // config.cluster.threads), config.cluster.threads
    if isinstance(config.cluster, AddressCluster):
        return 1, 1
    return 1, config.cluster.threads or cpus


def choose_block(volume: Volume, recipe: Recipe, allowed: int, confusion: bool = False) -> Triple:
    """Largest block whose task stays within ``allowed`` bytes: whole slices, else rows of shards, else fewer shards.

    The smallest block is taken where none fits.
    """
    if recipe.slicewise:
        return smallest_block(volume, recipe)
    _, height, width = volume.shape
    rows = [height, *range((height - 1) // SHARD[1] * SHARD[1], 0, -SHARD[1])]
    columns = [width, *range((width - 1) // SHARD[2] * SHARD[2], 0, -SHARD[2])]
    candidates: list[Triple] = [(1, row, width) for row in rows] + [(1, rows[-1], column) for column in columns]
    for block in candidates:
        if task_bytes(volume, recipe, block, confusion) <= allowed:
            return block
    return smallest_block(volume, recipe)


def smallest_block(volume: Volume, recipe: Recipe) -> Triple:
    """Block of one shard, or of a slice where the recipe looks at whole ones."""
    _, height, width = volume.shape
    if recipe.slicewise:
        return 1, height, width
    return 1, min(height, SHARD[1]), min(width, SHARD[2])


def task_bytes(volume: Volume, recipe: Recipe, block: Triple, confusion: bool = False) -> int:
    """Planned peak memory of one task on a block of this shape.

    The image with its halo; the upper levels of the mask, which are a third of it, and which the task that makes them
    for several blocks needs in a thread that has kept the rest; the tile tables; what is filtered at once, with its
    halo and without; and chunks or shards of image, truth and mask, decoded and encoded. With the confusion its own
    upper levels, its shard, encoded, and what is compared and weighed at once.
    """
    itemsize = volume.dtype.itemsize
    _, height, width = block
    _, whole_height, whole_width = volume.shape
    depth, halo_y, halo_x = 2 * recipe.halo[0] + 1, *recipe.halo[1:]
    window = depth * min(height + 2 * halo_y, whole_height) * min(width + 2 * halo_x, whole_width) * itemsize
    levels = whole_height * whole_width // 3
    tiles = Grids.of(volume.shape, recipe.tile, block).block_tiles((0, 0, 0)).size
    table = 3 * 4 << 8 * itemsize
    tables = tiles * 3 * WINDOWED_LEVELS * 4 * 3 + max(TABLES_BYTES, table)
    part_y, part_x = (min(max(chunk, recipe.tile), length) for chunk, length in zip(CHUNK[1:], block[1:], strict=True))
    padded = depth * (part_y + 2 * halo_y) * (part_x + 2 * halo_x)
    copies = 1 if is_fast(recipe.denoise.window) else 2
    part = (padded * copies + part_y * part_x) * itemsize
    planes = _plane_bytes(volume, recipe, block) + padded * _drawn_bytes(recipe)
    if confusion:
        planes += levels + SHARD[1] * SHARD[2] + 3 * part_y * part_x
    return window + levels + tables + part + planes + CODEC_SHARDS * SHARD[1] * SHARD[2] * itemsize


def _plane_bytes(volume: Volume, recipe: Recipe, block: Triple) -> int:
    """Memory of what stages hold of a whole block beside its image."""
    voxel, voxels = 0, block[1] * block[2]
    if recipe.valid is not None:
        voxel += 1
    if recipe.correct is not None:
        voxel += volume.dtype.itemsize * ((recipe.correct.match, recipe.correct.clahe) != (None, None))
    queue = 0
    if recipe.clean is not None and recipe.clean.slicewise:
        voxel += 1  # its mask
        queue = QUEUE_BYTES * min(max(recipe.clean.small_objects or 0, recipe.clean.small_holes or 0), voxels)
    return voxel * voxels + queue


def _drawn_bytes(recipe: Recipe) -> int:
    """Memory for each voxel of what is drawn at once: copies of the mask, and what a function of the user's makes."""
    if recipe.segmenter is not None or isinstance(recipe.denoise, PythonDenoise):
        return TARGET_BYTES
    return 3 if recipe.drawn else 0
