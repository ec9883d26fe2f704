"""Volumes for benchmarks: full-size slices with dense truth, in a folder that is removed afterwards.

Of a long volume only a few slices are made. The others are hard links to their shards, with the same records, so that
it fits on a small disk and is read from the page cache.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from command import kesm
from texture import KESM_SLICE, slice_pair

from pipeline.storage.extent import resize_volume
from pipeline.storage.store import ShardedArray
from pipeline.storage.volume import Volume, staging_folder

TRUTH = "groundtruth"
DISTINCT = 4
# An image that does not compress, its pyramid (a third), and room for labels, masks and tables.
BYTES_PER_VOXEL = 1.5
# Folders of a linked slice, and a mask with its tables.
LINKED_BYTES = 5 * 10**6


@contextmanager
def work_folder(parent: Path | None, needed_bytes: int) -> Iterator[Path]:
    """Make a temporary folder with room for so many bytes, and remove it whatever happens short of SIGKILL."""
    place = parent or Path(tempfile.gettempdir())
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        sys.exit(
            f"{place}: {free / 1e9:.1f} GB are free, {needed_bytes / 1e9:.1f} GB are needed; choose another --folder"
        )
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else Python ends without clearing up
    try:
        with tempfile.TemporaryDirectory(prefix="kesm-benchmark-", dir=place) as folder:
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, before)


def volume_bytes(slices: int, distinct: int | None = None, shape: Sequence[int] = KESM_SLICE) -> int:
    """Bytes on disk that a volume of so many slices may take, of which all, or so many, are distinct."""
    return int((distinct or slices) * math.prod(shape) * BYTES_PER_VOXEL) + slices * LINKED_BYTES


def build_volume(path: Path, slices: int, shape: tuple[int, int] = KESM_SLICE) -> Path:
    """Store so many slices (y, x) of image and truth, with pyramids, digests and metadata, as ``kesm ingest`` does."""
    volume = Volume.create(path, (slices, *shape), "uint8")
    truth, ledger = volume.create_truth(TRUTH, {"vessel": 255, "vessel_above": None, "unlabelled": None})
    with staging_folder(path, "build") as staging:
        for z in range(slices):
            for plane, pyramid, record in zip(
                slice_pair(shape, seed=z), (volume.image, truth), (volume.slices, ledger), strict=True
            ):
                record.record(z, pyramid.write_slice(z, plane, staging), f"{z:04d}.png", 0)
    volume.publish_label(TRUTH)
    return path


def build_linked(path: Path, slices: int, shape: tuple[int, int] = KESM_SLICE) -> Path:
    """Store a volume of so many slices, of which those after the first few are linked to them."""
    build_volume(path, min(slices, DISTINCT), shape)
    multiply(path, slices)
    return path


def multiply(path: Path, slices: int) -> None:
    """Give a volume so many slices: image and truth of those that are new repeat the others. Runs get nothing."""
    known = Volume(path).shape[0]
    resize_volume(Volume(path), slices)
    volume = Volume(path)
    truth, truth_ledger = volume.truth(TRUTH)
    for pyramid, ledger in (volume.image, volume.slices), (truth, truth_ledger):
        for array in pyramid.levels:
            link_slices(array, known)
        digests = ledger.shard_digests(0, known)
        for z in range(known, slices):
            ledger.record(z, digests[z % known], f"{z:04d}.png", 0)


def link_slices(array: ShardedArray, known: int) -> None:
    """Link the shards of the first slices of an array, again and again, as those of all others."""
    for z in range(known, array.shape[0]):
        source, target = (array.path / "c" / str(number) for number in (z % known, z))
        for entry in source.rglob("*"):
            other = target / entry.relative_to(source)
            other.mkdir(parents=True) if entry.is_dir() else os.link(entry, other)


def compile_kernels(folder: Path) -> Path:
    """Run a small volume, so that the kernels are compiled and kept; return it."""
    small = build_volume(folder / "small.zarr", 1, (1100, 1700))
    kesm("run", small, "--truth", TRUTH)
    return small


def warm_cache(folder: Path) -> None:
    """Read every file once, so that the page cache holds it: some systems take back pages that rest for a while.

    What was written before is written to the disk now, and not during the measurement.
    """
    os.sync()
    seen = set()
    for file in filter(Path.is_file, folder.rglob("*")):
        if (inode := file.stat().st_ino) not in seen:
            seen.add(inode)
            file.read_bytes()
