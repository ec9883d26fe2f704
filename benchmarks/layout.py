"""Which chunk, shard and codec: measured before the on-disk format was frozen.

    python benchmarks/layout.py [--json FILE]

For each layout, one full slice (8026 x 17480, real texture) of image, truth and mask is written and read through the
`zarrs` pipeline into buffers that are used again, the best of three; and 40 random tiles are fetched through zarr's own
pipeline, as a viewer would. `job` is what a run does of it: reads image and truth, and writes the mask.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.buffer.cpu
import zarrs  # noqa: F401  (registers its codec pipeline)
from numpy.typing import NDArray
from record import parse, save, show
from scipy.ndimage import median_filter
from texture import TILE, slice_pair
from zarr.codecs import BloscCodec, ZstdCodec

CODECS: dict[str, Any] = {
    "zstd 1": ZstdCodec(level=1, checksum=True),
    "zstd 1, no checksum": ZstdCodec(level=1, checksum=False),
    "zstd -5": ZstdCodec(level=-5, checksum=True),
    "zstd 3": ZstdCodec(level=3, checksum=True),
    "lz4": BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle", typesize=1),
    "lz4, bits": BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle", typesize=1),
}
ZARRS = "zarrs.ZarrsCodecPipeline"
ZARR = "zarr.core.codec_pipeline.BatchedCodecPipeline"
REAL_LEVEL = 79  # of Otsu on the real tile; decides only how much of the mask is vessel
REPEATS = 3
TILES = 40


def best_of(call: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_plane(
    path: Path, plane: NDArray[np.uint8], chunk: int, shard: int, codec: str
) -> tuple[float, float, float]:
    """Write and read a plane; return ns a voxel for each, and how many times smaller it is on disk."""
    layout: dict[str, Any] = {"chunks": (1, chunk, chunk), "shards": (1, shard, shard), "compressors": CODECS[codec]}
    array = zarr.create_array(path, shape=(1, *plane.shape), dtype="uint8", overwrite=True, **layout)
    buffer = np.empty(array.shape, np.uint8)
    out = zarr.buffer.cpu.NDBuffer.from_ndarray_like(buffer)  # type: ignore[arg-type]  # as in pipeline.store

    def write() -> None:
        shutil.rmtree(path / "c", ignore_errors=True)  # a shard that is there would be read first
        array[0:1] = plane[None]

    write_s = best_of(write)
    read_s = best_of(lambda: array.get_basic_selection((slice(0, 1), slice(None), slice(None)), out=out))
    if not np.array_equal(buffer[0], plane):
        raise RuntimeError(f"{path}: what was read is not what was written")
    stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return write_s * 1e9 / plane.size, read_s * 1e9 / plane.size, plane.size / stored


def measure_tiles(path: Path) -> float:
    """Milliseconds to fetch one tile at random, with zarr's own pipeline."""
    with zarr.config.set({"codec_pipeline.path": ZARR}):
        array = zarr.open_array(path, mode="r")
    rng = np.random.default_rng(0)
    corners = [[TILE * int(rng.integers(length // TILE)) for length in array.shape[1:]] for _ in range(TILES)]
    start = time.perf_counter()
    for y, x in corners:
        array[0:1, y : y + TILE, x : x + TILE]
    return (time.perf_counter() - start) * 1e3 / TILES


def measure(folder: Path, planes: dict[str, NDArray[np.uint8]], chunk: int, shard: int, codec: str) -> dict[str, Any]:
    """Row of one layout."""
    write, read, ratio = {}, {}, {}
    for name, plane in planes.items():
        write[name], read[name], ratio[name] = measure_plane(folder / name, plane, chunk, shard, codec)
    return {
        "chunk": chunk, "shard": shard, "codec": codec,
        "read image ns": read["image"], "truth ns": read["truth"],
        "write image ns": write["image"], "mask ns": write["mask"],
        "image ratio": ratio["image"], "mask ratio": ratio["mask"],
        "tile ms": measure_tiles(folder / "image"),
        "job ns": read["image"] + read["truth"] + write["mask"],
    }  # fmt: skip


def main() -> None:
    options = parse(__doc__)
    image, truth = slice_pair()
    mask = (median_filter(255 - image, 3) > REAL_LEVEL).astype(np.uint8) * np.uint8(255)
    planes = {"image": image, "truth": truth, "mask": mask}
    layouts = itertools.product((512, 1024), (2048, 4096), CODECS)
    with (
        zarr.config.set({"codec_pipeline.path": ZARRS}),
        tempfile.TemporaryDirectory(prefix="kesm-benchmark-") as folder,
    ):
        rows = [measure(Path(folder), planes, *layout) for layout in layouts]
    show(rows)
    save(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
