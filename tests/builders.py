"""Small volumes for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.geometry import Box
from pipeline.settings.config import RunConfig
from pipeline.storage.store import ALL_FILL, ShardedArray
from pipeline.storage.volume import Volume

MAPPING = {"vessel": 255, "vessel_above": None, "unlabelled": None}


def textured(rng: np.random.Generator, shape: tuple[int, int], dtype: str = "uint8") -> NDArray[np.integer]:
    """Bright tissue with dark blobs whose contrast changes from place to place."""
    top = int(np.iinfo(dtype).max)
    coarse = rng.random((shape[0] // 16 + 1, shape[1] // 16 + 1)) < 0.2
    blobs = np.kron(coarse, np.ones((16, 16)))[: shape[0], : shape[1]]
    shade = np.linspace(0.5, 1.0, shape[1])
    return (top * (0.8 - 0.5 * blobs * shade + 0.05 * rng.standard_normal(shape))).clip(0, top).astype(dtype)


def build_volume(path: Path, shape: tuple[int, int, int], dtype: str = "uint8", absent: tuple[int, ...] = ()) -> Volume:
    """Volume with a truth on its even slices, part of which is not annotated."""
    rng = np.random.default_rng(7)
    volume = Volume.create(path, shape, dtype)
    volume.staging.mkdir()
    truth, ledger = volume.create_truth("groundtruth", MAPPING)
    for z in range(shape[0]):
        image = textured(rng, shape[1:], dtype)
        traced = rng.choice(np.array([0, 127, 255], np.uint8), shape[1:])
        if z not in absent:
            volume.slices.record(z, volume.image.write_slice(z, image, volume.staging), f"{z}.png", 0)
        if z % 2 == 0 and z not in absent:
            ledger.record(z, truth.write_slice(z, traced, volume.staging), f"{z}.png", 0)
    volume.publish_label("groundtruth")
    volume.staging.rmdir()
    return volume


def shard_digests(array: ShardedArray, box: Box, values: np.ndarray) -> np.ndarray:
    """Digests of whole shards by their definition: xxh3 of the chunks' voxels, filled up at the far edges."""
    cells = array.shards.cover(box)
    digests = np.empty(cells.shape, np.uint64)
    for shard in cells:
        hashed, whole = xxhash.xxh3_64(), array.shards.box(shard)
        for part in array.chunks.parts(whole):
            chunk = np.full(array.chunks.step, array.fill, array.dtype)
            chunk[:, : part.shape[1], : part.shape[2]] = values[part.relative_to(box.start).slices]
            hashed.update(chunk.tobytes())
        empty = (values[whole.relative_to(box.start).slices] == array.fill).all()
        digests[tuple(np.subtract(shard, cells.start))] = ALL_FILL if empty else hashed.intdigest()
    return digests


def run_config(volume: Volume, name: str = "otsu", **options: object) -> RunConfig:
    """Configuration of a run against the builder's truth."""
    return RunConfig.model_validate({"volume": volume.path, "name": name, "truth": "groundtruth", **options})
