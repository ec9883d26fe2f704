"""Which chunk, shard and codec: measured before the on-disk format was frozen.

    python benchmarks/layout.py [--json FILE]

For each layout: writes and reads one full slice (8026 x 17480, real texture) of image, truth and mask through the `zarrs`
pipeline with reused buffers, takes the best of three, and fetches 40 random 512x512 tiles through zarr-python as a viewer would.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.buffer.cpu
import zarrs  # noqa: F401
from scipy.ndimage import median_filter
from texture import slice_pair
from zarr.codecs import BloscCodec, ZstdCodec

CODECS: dict[str, Any] = {
    "zstd-1": ZstdCodec(level=1, checksum=True),
    "zstd-1 no sum": ZstdCodec(level=1, checksum=False),
    "zstd-fast-5": ZstdCodec(level=-5, checksum=True),
    "zstd-3": ZstdCodec(level=3, checksum=True),
    "lz4": BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle", typesize=1),
    "lz4 bits": BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle", typesize=1),
}
ZARRS = "zarrs.ZarrsCodecPipeline"
ZARR = "zarr.core.codec_pipeline.BatchedCodecPipeline"


def best_of(call: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def create(path: Path, shape: tuple[int, ...], chunk: int, shard: int, codec: Any, pipeline: str) -> Any:
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        return zarr.create_array(
            path, shape=shape, dtype="uint8", chunks=(1, chunk, chunk), shards=(1, shard, shard), compressors=codec, overwrite=True
        )


def measure(folder: Path, planes: dict[str, Any], chunk: int, shard: int, codec: str) -> dict[str, Any]:
    row: dict[str, Any] = {"chunk": chunk, "shard": shard, "codec": codec}
    for name, plane in planes.items():
        path = folder / "array"
        array = create(path, (1, *plane.shape), chunk, shard, CODECS[codec], ZARRS)
        def write(array: Any = array, plane: Any = plane, path: Path = path) -> None:
            shutil.rmtree(path / "c", ignore_errors=True)
            array[0:1] = plane[None]
        row[f"{name}_write_ns"] = best_of(write) * 1e9 / plane.size
        buffer = np.empty((1, *plane.shape), np.uint8)
        out = zarr.buffer.cpu.NDBuffer.from_ndarray_like(buffer)
        whole = (slice(0, 1), slice(None), slice(None))
        row[f"{name}_read_ns"] = best_of(lambda a=array, o=out: a.get_basic_selection(whole, out=o)) * 1e9 / plane.size
        assert np.array_equal(buffer[0], plane)
        row[f"{name}_ratio"] = plane.size / sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if name == "image":
            with zarr.config.set({"codec_pipeline.path": ZARR}):
                viewed = zarr.open_array(path, mode="r")
                rng = np.random.default_rng(0)
                corners = [(512 * int(rng.integers(15)), 512 * int(rng.integers(34))) for _ in range(40)]
                start = time.perf_counter()
                for y, x in corners:
                    viewed[0:1, y : y + 512, x : x + 512]
                row["tile_ms"] = (time.perf_counter() - start) * 1e3 / len(corners)
    row["job_ns"] = row["image_read_ns"] + row["truth_read_ns"] + row["mask_write_ns"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    image, truth = slice_pair()
    mask = (median_filter(255 - image, 3) > 79).astype(np.uint8) * 255
    planes = {"image": image, "truth": truth, "mask": mask}
    rows = []
    print(f"{'chunk':>6} {'shard':>6} {'codec':>16} | read image  truth | write image   mask | ratio image  mask | tile ms | job ns/voxel")
    with zarr.config.set({"codec_pipeline.path": ZARRS}), tempfile.TemporaryDirectory() as folder:
        for chunk, shard, codec in itertools.product((512, 1024), (2048, 4096), CODECS):
            row = measure(Path(folder), planes, chunk, shard, codec)
            rows.append(row)
            print(
                f"{chunk:6} {shard:6} {codec:>16} | {row['image_read_ns']:10.3f} {row['truth_read_ns']:6.3f} |"
                f" {row['image_write_ns']:11.3f} {row['mask_write_ns']:6.3f} | {row['image_ratio']:11.2f} {row['mask_ratio']:5.1f} |"
                f" {row['tile_ms']:7.1f} | {row['job_ns']:.3f}", flush=True
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
