"""Volumes for benchmarks: full-size slices with dense truth, in a folder that is removed afterwards."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from texture import KESM_SLICE, slice_pair

from pipeline.volume import Volume

TRUTH = "groundtruth"
# An image that does not compress, its pyramid (a third), and room for labels, masks and tables.
BYTES_PER_VOXEL = 1.5


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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else Python ends without clearing up
    with tempfile.TemporaryDirectory(prefix="kesm-benchmark-", dir=place) as folder:
        yield Path(folder)


def volume_bytes(slices: int, shape: tuple[int, int] = KESM_SLICE) -> int:
    """Bytes on disk that a volume of so many slices (y, x) may take."""
    return int(slices * shape[0] * shape[1] * BYTES_PER_VOXEL)


def build_volume(path: Path, slices: int, shape: tuple[int, int] = KESM_SLICE) -> Path:
    """Store so many slices (y, x) of image and truth, with pyramids, digests and metadata, as ``kesm ingest`` does."""
    volume = Volume.create(path, (slices, *shape), "uint8")
    volume.staging.mkdir()
    truth, ledger = volume.create_truth(TRUTH, {"vessel": 255, "vessel_above": None, "unlabelled": None})
    for z in range(slices):
        for plane, pyramid, record in zip(
            slice_pair(shape, seed=z), (volume.image, truth), (volume.slices, ledger), strict=True
        ):
            record.record(z, pyramid.write_slice(z, plane, volume.staging), f"{z:04d}.png", 0)
    volume.publish_label(TRUTH)
    shutil.rmtree(volume.staging, ignore_errors=True)
    return path
