"""Which chunk, shard and codec: the choice of the on-disk format.

    python benchmarks/layout.py [--quick] [--json FILE]

For each layout, one full slice (8026 x 17480, real texture) of image, truth and mask is written and read with one
thread, into a buffer that is used again: `ours` as `kesm` does it, shards staged and renamed, digests included; what
`kesm` has not, through the `zarrs` pipeline with one codec thread. All layouts come once, then again, and each time is
the best of three, because the machine's speed drifts. And 40 random tiles are fetched through zarr's own pipeline, as a
viewer would. `job` is what a run does of it: reads image and truth, and writes the mask.

Chunks of 2048 look better here than they are: the texture is turned copies of one tile, which repeat within them
(`texture.py`), so that an image takes 13 % less, and is read faster, than real slices would.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
import zarr.buffer.cpu
import zarrs  # noqa: F401  (registers its codec pipeline)
from numpy.typing import NDArray
from record import parse, save, show
from texture import SHAPE, TILE, slice_pair, tile_pair
from zarr.codecs import BloscCodec, ZstdCodec

from pipeline.geometry import Box
from pipeline.kernels.median import median_tile
from pipeline.storage.store import ShardedArray

Plane = NDArray[np.uint8]

CODECS: dict[str, Any] = {
    "zstd 1": ZstdCodec(level=1, checksum=True),
    "zstd 1, no checksum": ZstdCodec(level=1, checksum=False),
    "zstd -5": ZstdCodec(level=-5, checksum=True),
    "zstd 3": ZstdCodec(level=3, checksum=True),
    "lz4": BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle", typesize=1),
    "lz4, bits": BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle", typesize=1),
}
OURS, ZARRS = "ours", "zarrs"
ZARRS_PIPELINE = "zarrs.ZarrsCodecPipeline"
# zarr's `threading.max_workers` does not limit the threads of zarrs 0.2.3 [measured]: they are rayon's.
ONE_CODEC_THREAD = {"RAYON_NUM_THREADS": "1"}
ZARR = "zarr.core.codec_pipeline.BatchedCodecPipeline"
REAL_LEVEL = 79  # of Otsu on the real tile; decides only how much of the mask is vessel
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    SHAPE,
    ("--repeats", {"type": int, "default": 3, "quick": 1, "help": "rounds, of which the best is reported"}),
    ("--tiles", {"type": int, "default": 40, "quick": 1, "help": "tiles that are fetched"}),
)


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to store a slice: sides of chunk and shard in voxels, codec, and who codes it."""

    chunk: int
    shard: int
    codec: str = "zstd 1"
    through: str = OURS


CHOSEN = Layout(1024, 2048)
FOREIGN = ("zstd 1", "zstd 1, no checksum", "lz4", "lz4, bits")  # but the first, which is there for scale
LAYOUTS = (
    Layout(512, 2048), Layout(512, 4096),
    Layout(1024, 1024), CHOSEN, Layout(1024, 4096),
    Layout(2048, 2048), Layout(2048, 4096),
    *(Layout(CHOSEN.chunk, CHOSEN.shard, codec) for codec in ("zstd -5", "zstd 3")),
    *(Layout(CHOSEN.chunk, CHOSEN.shard, codec, ZARRS) for codec in FOREIGN),
)  # fmt: skip


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure_plane(folder: Path, plane: Plane, layout: Layout, buffer: Plane) -> tuple[float, float, float]:
    """Write a plane as a new array, and read it; return ns a voxel for each, and how many times smaller it is."""
    path, staging = folder / "array", folder / "staging"
    shutil.rmtree(path, ignore_errors=True)
    staging.mkdir(exist_ok=True)
    sides: dict[str, Any] = {"chunks": (1, layout.chunk, layout.chunk), "shards": (1, layout.shard, layout.shard)}
    with zarr.config.set({"codec_pipeline.path": ZARRS_PIPELINE}):
        array = zarr.create_array(path, shape=buffer.shape, dtype="uint8", compressors=CODECS[layout.codec], **sides)
    if layout.through == OURS:
        ours, box = ShardedArray(path), Box.whole((1, *plane.shape))
        write_s = seconds_of(lambda: ours.write(box, plane[None], staging))
        read_s = seconds_of(lambda: ours.read(box, buffer))
    else:
        out = zarr.buffer.cpu.NDBuffer.from_ndarray_like(cast(Any, buffer))
        write_s = seconds_of(lambda: array.set_basic_selection(..., plane[None]))
        read_s = seconds_of(lambda: array.get_basic_selection(..., out=out))
    if not np.array_equal(buffer[0], plane):
        raise RuntimeError(f"{layout}: what was read is not what was written")
    stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return write_s * 1e9 / plane.size, read_s * 1e9 / plane.size, plane.size / stored


def measure_tiles(path: Path, tiles: int) -> float:
    """Milliseconds to fetch one of so many tiles at random, with zarr's own pipeline."""
    with zarr.config.set({"codec_pipeline.path": ZARR}):
        array = zarr.open_array(path, mode="r")
    rng = np.random.default_rng(0)
    corners = [[TILE * int(rng.integers(length // TILE)) for length in array.shape[1:]] for _ in range(tiles)]
    start = time.perf_counter()
    for y, x in corners:
        array[0:1, y : y + TILE, x : x + TILE]
    return (time.perf_counter() - start) * 1e3 / tiles


def measure(folder: Path, planes: dict[str, Plane], layout: Layout, buffer: Plane, tiles: int) -> dict[str, float]:
    """Figures of one layout, once; planes are an image, a truth and a mask."""
    figures: dict[str, float] = {}
    for name, plane in planes.items():
        write, read, ratio = measure_plane(folder, plane, layout, buffer)
        figures |= {f"write {name}": write, f"read {name}": read, f"{name} ratio": ratio}
        if name == "image":
            figures["tile ms"] = measure_tiles(folder / "array", tiles)
    return figures


def measure_all(folder: Path, shape: tuple[int, int], repeats: int, tiles: int) -> list[dict[str, Any]]:
    """Rows of all layouts, of which each figure is the best of some rounds; ratios are the same in each."""
    image, truth = slice_pair(shape)
    mask = np.empty_like(image)
    median_tile(image[None], (0, 0), (1, 3, 3), True, mask)
    planes = {"image": image, "truth": truth, "mask": (mask > REAL_LEVEL).astype(np.uint8) * np.uint8(255)}
    buffer = np.zeros((1, *image.shape), np.uint8)
    rounds = [[measure(folder, planes, layout, buffer, tiles) for layout in LAYOUTS] for _ in range(repeats)]
    found = [{name: min(one[name] for one in tries) for name in tries[0]} for tries in zip(*rounds, strict=True)]
    return [
        {
            **asdict(layout),
            "read image ns": best["read image"], "truth ns": best["read truth"],
            "write image ns": best["write image"], "mask ns": best["write mask"],
            "image ratio": best["image ratio"], "mask ratio": best["mask ratio"],
            "tile ms": best["tile ms"],
            "job ns": best["read image"] + best["read truth"] + best["write mask"],
        }
        for layout, best in zip(LAYOUTS, found, strict=True)
    ]  # fmt: skip


def main() -> None:
    options = parse(__doc__, *OPTIONS)
    os.environ |= ONE_CODEC_THREAD  # read when zarrs first codes something
    with tempfile.TemporaryDirectory(prefix="kesm-benchmark-") as folder:
        rows = measure_all(Path(folder), tuple(options.shape), options.repeats, options.tiles)
    show(rows)
    print(f"\n{tile_pair()[2]}; one thread, the best of {options.repeats} rounds")
    save(options.json, {"texture": tile_pair()[2], "rows": rows})


if __name__ == "__main__":
    main()
