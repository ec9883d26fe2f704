"""Only the reading and writing of a run, as a bound on how fast it can be: the child process of `full_volume.py`.

    python benchmarks/roofline.py VOLUME MASK SLICES TASKS

A thread pool, with one task a slice, goes from shard to shard: it reads image and truth into buffers that each thread
keeps, and writes the mask; then the levels of the mask. Arrays, codecs, digests, staging and renaming are those of a
run, since it is the same code. There is no filter, no histogram, no threshold, and no table. The mask is one that a run
has made of the first slices; it is read into memory before, and repeated, as the slices of the volume are.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from specimen import DISTINCT, TRUTH

from pipeline.geometry import Box
from pipeline.pyramid import Pyramid
from pipeline.scratch import scratch
from pipeline.store import ShardedArray
from pipeline.volume import Volume, staging_folder

Levels = list[NDArray[np.uint8]]
NAME = "roofline"


def copy_slice(z: int, sources: list[ShardedArray], mask: Pyramid, levels: Levels, staging: Path) -> None:
    """Read a slice of each source, and write that of the mask, level by level."""
    for part in mask.full.shards.parts(Box.of_slice(z, mask.full.shape)):
        for source in sources:
            source.read(part, scratch.array(str(source.path), part.shape, source.dtype))
        mask.full.write(part, levels[0][:, *part.slices[1:]], staging)
    for array, values in zip(mask.levels[1:], levels[1:], strict=True):
        array.write(Box.of_slice(z, array.shape), values, staging)


def measure(volume: Volume, name: str, slices: int, tasks: int) -> dict[str, Any]:
    """Copy so many slices, and return how long that took; what was written is removed."""
    made = volume.label(name)
    known = min(DISTINCT, volume.shape[0])
    masks = [[array.read(Box.of_slice(z, array.shape)) for array in made.levels] for z in range(known)]
    sources = [volume.image.full, volume.truth(TRUTH)[0].full]
    target = volume.create_mask(NAME)
    _ = target.levels  # opened before the clock starts
    with staging_folder(volume.path, NAME) as staging, ThreadPoolExecutor(tasks) as pool:

        def copy(z: int) -> None:
            copy_slice(z, sources, target, masks[z % known], staging)

        start = time.perf_counter()
        list(pool.map(copy, range(slices)))
        seconds = time.perf_counter() - start
    if stored(target, slices - 1) != stored(made, (slices - 1) % known):
        sys.exit(f"{target.path}: its last slice is not what the run has written")
    shutil.rmtree(target.path)
    return {"seconds": seconds, "voxels": Box.whole((slices, *volume.shape[1:])).size}


def stored(pyramid: Pyramid, z: int) -> dict[tuple[int, Path], bytes]:
    """Content of the files of one slice, by level and shard."""
    folders = [(level, array.path / "c" / str(z)) for level, array in enumerate(pyramid.levels)]
    return {
        (level, file.relative_to(folder)): file.read_bytes()
        for level, folder in folders
        for file in folder.rglob("*")
        if file.is_file()
    }


def main() -> None:
    path, name, slices, tasks = sys.argv[1:]
    print(json.dumps(measure(Volume(path), name, int(slices), int(tasks))))


if __name__ == "__main__":
    main()
