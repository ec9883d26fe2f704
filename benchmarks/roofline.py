"""Only the reading and writing of a run, as a bound on how fast it can be: the child process of `full_volume.py`.

    python benchmarks/roofline.py VOLUME MASK SLICES TASKS ours|zarrs

A thread pool, with one task a slice, reads image and truth into buffers that each thread keeps, and writes the mask;
then the levels of the mask. There is no filter, no histogram, no threshold, and no table. The mask is one that a run
has made of the first slices; it is read into memory before, and repeated, as the slices of the volume are.

`ours` is the code of a run, shard by shard: arrays, codec, digests, staging and renaming. `zarrs` is the fastest codec
pipeline for zarr that others have, a row of shards at a time, with as many codec threads; it writes in place.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr
import zarr.buffer.cpu
import zarrs  # noqa: F401  (registers its codec pipeline)
from numpy.typing import NDArray
from specimen import DISTINCT, TRUTH

from pipeline.geometry import Box
from pipeline.scratch import scratch
from pipeline.storage.pyramid import Pyramid
from pipeline.storage.store import SHARD, ShardedArray
from pipeline.storage.volume import Volume, staging_folder

Levels = list[NDArray[np.uint8]]
Copy = Callable[[int, Levels], None]
NAME = "roofline"


def copy_ours(sources: list[ShardedArray], mask: Pyramid, folder: Any) -> Copy:
    """Return what reads a slice of each source, and writes that of the mask, level by level."""

    def copy(z: int, levels: Levels) -> None:
        for part in mask.full.shards.parts(Box.of_slice(z, mask.full.shape)):
            for source in sources:
                source.read(part, scratch.array(str(source.path), part.shape, source.dtype))
            mask.full.write(part, levels[0][:, *part.slices[1:]], folder)
        for array, values in zip(mask.levels[1:], levels[1:], strict=True):
            array.write(Box.of_slice(z, array.shape), values, folder)

    return copy


def copy_zarrs(sources: list[ShardedArray], mask: Pyramid, tasks: int) -> Copy:
    """Return what does the same through `zarrs`."""
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": tasks}):
        inputs = [zarr.open_array(source.path, mode="r") for source in sources]
        outputs: list[Any] = [zarr.open_array(array.path, mode="r+") for array in mask.levels]

    def copy(z: int, levels: Levels) -> None:
        height, width = mask.full.shape[1:]
        for top in range(0, height, SHARD[1]):
            rows = slice(z, z + 1), slice(top, min(top + SHARD[1], height)), slice(0, width)
            for source in inputs:
                buffer: Any = scratch.array(str(source.store_path), (1, rows[1].stop - top, width), source.dtype)
                source.get_basic_selection(rows, out=zarr.buffer.cpu.NDBuffer.from_ndarray_like(buffer))
            outputs[0].set_basic_selection(rows, levels[0][:, rows[1]])
        for array, values in zip(outputs[1:], levels[1:], strict=True):
            array.set_basic_selection(slice(z, z + 1), values)

    return copy


def measure(volume: Volume, name: str, slices: int, tasks: int, pipeline: str) -> dict[str, Any]:
    """Copy so many slices, and return how long that took; what was written is removed."""
    made = volume.label(name)
    known = min(DISTINCT, volume.shape[0])
    masks = [[array.read(Box.of_slice(z, array.shape)) for array in made.levels] for z in range(known)]
    sources = [volume.image.full, volume.truth(TRUTH)[0].full]
    target = volume.create_mask(NAME)
    _ = target.levels  # opened before the clock starts
    with staging_folder(volume.path, NAME) as staging, ThreadPoolExecutor(tasks) as pool:
        copy = copy_ours(sources, target, staging) if pipeline == "ours" else copy_zarrs(sources, target, tasks)
        start = time.perf_counter()
        list(pool.map(lambda z: copy(z, masks[z % known]), range(slices)))
        seconds = time.perf_counter() - start
    last = slices - 1
    for array, values in zip(target.levels, masks[last % known], strict=True):
        if not np.array_equal(array.read(Box.of_slice(last, array.shape)), values):
            sys.exit(f"{array.path}: its last slice is not what the run has written")
    shutil.rmtree(target.path)
    return {"seconds": seconds, "voxels": Box.whole((slices, *volume.shape[1:])).size}


def main() -> None:
    path, name, slices, tasks, pipeline = sys.argv[1:]
    print(json.dumps(measure(Volume(path), name, int(slices), int(tasks), pipeline)))


if __name__ == "__main__":
    main()
