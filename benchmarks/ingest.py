"""`kesm ingest` beside the plain cost of its decoder and its codec, for the formats that slices come in.

    python benchmarks/ingest.py [--slices 4] [--threads N] [--folder DIR] [--quick] [--json FILE]

Slices are 8026 x 17480 with the real tile's texture, a file each, of one format after the other. `kesm ingest` is a
fresh process on as many CPUs as it has threads; what it also takes for one slice of 64 x 64 (Python's start, imports,
the metadata of a volume) is that of `the whole process`, and is taken off in `kesm ingest`.

The plain cost is another fresh process with as many threads, a slice each: `read_page`, as ingest calls it, and
`ShardCodec.encode` of every shard. It makes no pyramid and no file, and records nothing. Formats, and in each the two
processes, take turns, and each time is the best of three, because the machine's speed drifts. `CPU / plain` is the same
ratio as `time / plain`, of CPU time, which is less at the mercy of what else the machine does.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import tifffile
from command import call, kesm
from numpy.typing import NDArray
from record import parse, save, show
from specimen import volume_bytes, warm_cache, work_folder
from texture import SHAPE, slice_pair, tile_pair

from pipeline.geometry import Box, Grid
from pipeline.images.stack import Page, find_pages, read_page
from pipeline.storage.shard import ShardCodec
from pipeline.storage.store import CHUNK, CODEC, SHARD

Plane = NDArray[Any]
Spent = dict[str, float]

SMALL = (64, 64)
# PNG at zlib's fastest level, as cameras' software has it; TIFF with the predictor that goes with its compression.
FORMATS: dict[str, tuple[str, Callable[[Path, Plane], object]]] = {
    "PNG": ("png", lambda path, plane: path.write_bytes(imagecodecs.png_encode(plane, level=1))),
    "TIFF": ("tif", tifffile.imwrite),
    "TIFF, LZW": ("tif", lambda path, plane: tifffile.imwrite(path, plane, compression="lzw", predictor=True)),
    "TIFF, zstd": ("tif", lambda path, plane: tifffile.imwrite(path, plane, compression="zstd", predictor=True)),
}
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--slices", {"type": int, "default": 4, "quick": 2, "help": "slices of the stack"}),
    SHAPE,
    ("--repeats", {"type": int, "default": 3, "quick": 1, "help": "of which the best is reported"}),
    ("--threads", {"type": int, "default": os.cpu_count(), "help": "threads of both"}),
    ("--folder", {"type": Path, "help": "where files and volumes are made; needs 0.8 GB a slice"}),
    ("--plain", {"type": Path, "metavar": "STACK", "help": "only print the plain cost of a stack, as the child does"}),
)


def write_stacks(folder: Path, slices: int, shape: tuple[int, int], threads: int) -> dict[str, Path]:
    """Write slices as files, a folder for each format."""
    stacks = {name: folder / name.replace(", ", "-") for name in FORMATS}
    for stack in stacks.values():
        stack.mkdir(parents=True)

    def write(z: int) -> None:
        image, _ = slice_pair(shape, seed=z)
        for name, (suffix, encode) in FORMATS.items():
            encode(stacks[name] / f"{z:04d}.{suffix}", image)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(slices)))
    return stacks


def time_ingest(stack: Path, volume: Path, threads: int) -> Spent:
    """Seconds, and CPU seconds, of `kesm ingest` from nothing to a volume, which is removed."""
    os.sync()
    before = cpu_seconds(resource.RUSAGE_CHILDREN)
    finished = kesm("ingest", stack, "--volume", volume, "--threads", threads, cpus=threads)
    shutil.rmtree(volume)
    return {"process": finished.seconds, "process CPU": cpu_seconds(resource.RUSAGE_CHILDREN) - before}


def cpu_seconds(who: int) -> float:
    """CPU seconds of this process, or of those that it has started and that have ended."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def plain_cost(stack: Path, threads: int) -> Spent:
    """Seconds to decode a stack, to encode as many slices, and to do both; of that, CPU seconds as well."""
    pages = find_pages([stack])
    first = [read_page(page) for page in pages[:threads]]  # also what libraries do on their first call
    encode_shards(first[0][:1])

    def both(page: Page) -> int:
        return encode_shards(read_page(page))

    before = cpu_seconds(resource.RUSAGE_SELF)
    plain = time_tasks(both, pages, threads)
    return {
        "plain": plain,
        "plain CPU": cpu_seconds(resource.RUSAGE_SELF) - before,
        "decode": time_tasks(lambda page: read_page(page).nbytes, pages, threads),
        "compress": time_tasks(lambda z: encode_shards(first[z % len(first)]), range(len(pages)), threads),
    }


def time_tasks(task: Callable[[Any], int], items: Sequence[Any], threads: int) -> float:
    """Seconds of a call for every item in a pool of threads."""
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(task, items))
        return time.perf_counter() - start


def encode_shards(plane: Plane) -> int:
    """Encode every shard of a slice as ingest does, forget them, and return their bytes."""
    codec = ShardCodec(SHARD[1:], CHUNK[1:], plane.dtype.newbyteorder("<").str, 0, CODEC.level)
    box = Box.of_slice(0, plane.shape)
    encoded = (codec.encode(plane[part.slices[1:]]) for part in Grid(box.shape, SHARD).parts(box))
    return sum(len(data) for shard in encoded if shard is not None for data in shard[0])


def measure(folder: Path, slices: int, shape: tuple[int, int], threads: int, repeats: int) -> dict[str, Any]:
    """Write the files, run all of it, and return rows and the seconds they are from."""
    small = write_stacks(folder / "small", 1, SMALL, 1)["TIFF"]
    stacks = write_stacks(folder / "stacks", slices, shape, threads)
    warm_cache(folder)
    volume = folder / "volume.zarr"
    time_ingest(small, volume, threads)  # compiles the kernels
    starts: list[Spent] = []
    times: dict[str, list[Spent]] = {name: [] for name in FORMATS}
    for _ in range(repeats):
        starts.append(time_ingest(small, volume, threads))
        for name, stack in stacks.items():
            plain = call(sys.executable, __file__, "--plain", stack, "--threads", threads, cpus=threads).document
            times[name].append({**time_ingest(stack, volume, threads), **plain})
    voxels = slices * math.prod(shape)
    rows = [row(name, stacks[name], voxels, best_of(starts), best_of(times[name])) for name in FORMATS]
    return {
        "texture": tile_pair()[2], "slices": slices, "threads": threads,
        "rows": rows, "starts": starts, "seconds": times,
    }  # fmt: skip


def best_of(tries: Sequence[Spent]) -> Spent:
    """Least of each time."""
    return {what: min(one[what] for one in tries) for what in tries[0]}


def row(name: str, stack: Path, voxels: int, start: Spent, spent: Spent) -> dict[str, Any]:
    """Figures of one format; `start` is what `kesm ingest` takes for next to nothing."""
    job, job_cpu = (spent[what] - start[what] for what in ("process", "process CPU"))
    elapsed = {"job": job, **{what: spent[what] for what in ("process", "plain", "decode", "compress")}}
    speed = {what: voxels / seconds / 1e6 for what, seconds in elapsed.items()}
    return {
        "format": name, "files MB": sum(file.stat().st_size for file in stack.iterdir()) / 1e6,
        "kesm ingest": speed["job"], "the whole process": speed["process"], "plain cost": speed["plain"],
        "time / plain": job / spent["plain"], "CPU / plain": job_cpu / spent["plain CPU"],
        "decode only": speed["decode"], "compress only": speed["compress"],
    }  # fmt: skip


def main() -> None:
    options = parse(__doc__, *OPTIONS)
    if options.plain:
        print(json.dumps(plain_cost(options.plain, options.threads)))
        return
    shape = tuple(options.shape)
    needed = volume_bytes(options.slices, shape=shape) + len(FORMATS) * options.slices * math.prod(shape)
    with work_folder(options.folder, needed) as folder:
        figures = measure(folder, options.slices, shape, options.threads, options.repeats)
    show(figures["rows"])
    print(
        f"\n{figures['texture']}; Mvoxel/s of {options.slices} slices with {options.threads} threads, "
        f"the best of {options.repeats}"
    )
    save(options.json, figures)


if __name__ == "__main__":
    main()
