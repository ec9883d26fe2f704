"""Components in three dimensions: labelling beside cc3d and SciPy, cleaning beside dask-image, and at full size.

    python benchmarks/components.py [--slices 8] [--full-slices 32] [--folder DIR] [--quick] [--json FILE]

Labelling is of masks in memory, in one thread, with 26 neighbours: the vessels of a phantom, and the same with a share
of all voxels turned over. All must count the same components, and take turns. Cleaning removes the small objects of the
mask that `kesm run` makes of a phantom, once more as one writes it with Dask (label, count, look up, write), which must
leave the same voxels; that one writes no levels and checks no digests. At full size the slices are KESM's with the real
tile's texture, all but four of them linked.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cc3d
import dask.array as da
import numpy as np
from command import kesm
from dask import config
from dask_image.ndmeasure import label
from kernels import SECONDS, time_both
from numpy.typing import NDArray
from record import parse, save, show
from scipy import ndimage
from specimen import DISTINCT, build_linked, volume_bytes, warm_cache, work_folder
from texture import SHAPE

from pipeline.geometry import Box
from pipeline.kernels.components import Components
from pipeline.kernels.spans import find_spans, stack
from pipeline.phantom import Phantom
from pipeline.storage.store import ShardedArray
from pipeline.storage.volume import Volume, staging_folder

Mask = NDArray[np.uint8]

STRUCTURE = np.ones((3, 3, 3))
MIN_SIZE, MAX_HOLE = 50, 20
NOISE = (0.0, 0.01, 0.05)  # of the voxels are turned over
MEMORY = ("1100MB", "4GB")  # hardly enough for two threads, and plenty
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--slices",
        {"type": int, "default": 8, "quick": 2, "help": "slices that are labelled, and cleaned beside dask-image"},
    ),
    ("--full-slices", {"type": int, "default": 32, "quick": 2, "help": "full-size slices that are cleaned"}),
    (
        "--side",
        {"type": int, "default": 1024, "quick": 512, "help": "of what is labelled, and of the chunks of dask-image"},
    ),
    ("--clean-side", {"type": int, "default": 2548, "quick": 600, "help": "of what is cleaned beside dask-image"}),
    SHAPE,
    SECONDS,
    ("--threads", {"type": int, "default": os.cpu_count(), "help": "threads of kesm and of Dask"}),
    ("--folder", {"type": Path, "help": "where the temporary volumes are made; needs 0.2 GB a full-size slice"}),
)


def phantom_masks(slices: int, side: int) -> list[tuple[float, Mask]]:
    """Vessels with more and more noise, (z, y, x) of 0 and 255."""
    phantom, rng = Phantom((slices, side, side), seed=1), np.random.default_rng(0)
    vessels = np.stack([phantom.slice(z)[1] == 255 for z in range(slices)])
    return [
        (share, (vessels ^ (rng.random(vessels.shape) < share)).astype(np.uint8) * np.uint8(255)) for share in NOISE
    ]


def label_rows(slices: int, side: int, seconds: float) -> list[dict[str, Any]]:
    """How fast each labels the same masks."""
    rows = []
    for share, mask in phantom_masks(slices, side):

        def ours(mask: Mask = mask) -> int:
            spans = stack([find_spans(plane) for plane in mask])
            components = Components.of(spans, 26)
            components.sizes()
            return components.count

        def of_cc3d(mask: Mask = mask) -> int:
            return int(cc3d.connected_components(mask, connectivity=26, binary_image=True, return_N=True)[1])

        def of_scipy(mask: Mask = mask) -> int:
            return int(ndimage.label(mask, STRUCTURE)[1])

        peers: dict[str, Callable[[], int]] = {"cc3d": of_cc3d, "scipy.ndimage": of_scipy}
        for peer, theirs in peers.items():
            count = ours()
            if count != theirs():
                sys.exit(f"{peer} counts other components")
            our_s, their_s = time_both(ours, theirs, seconds)
            rows.append(
                {
                    "noise": f"{share:.0%}", "components": count, "peer": peer,
                    "ours Mvoxel/s": mask.size / our_s / 1e6,
                    "peer Mvoxel/s": mask.size / their_s / 1e6, "times faster": their_s / our_s,
                }
            )  # fmt: skip
    return rows


def build_phantom(path: Path, shape: tuple[int, int, int]) -> Path:
    """Store the image of a phantom, and segment it without a filter, which leaves noise."""
    phantom, volume = Phantom(shape, seed=2), Volume.create(path, shape, "uint8")
    with staging_folder(path, "build") as staging:
        for z in range(shape[0]):
            volume.slices.record(z, volume.image.write_slice(z, phantom.slice(z)[0], staging), f"{z:04d}.png", 0)
    kesm("run", path, "--name", "otsu", "--set", "denoise.method=none")
    return path


def clean_with_dask(path: Path, target: Path, side: int, threads: int) -> float:
    """Remove small objects as one writes it with Dask; return the seconds."""
    begin = time.perf_counter()
    mask = da.from_zarr(str(path / "labels" / "otsu" / "0")).rechunk((-1, side, side))
    with config.set(scheduler="threads", num_workers=threads):
        labels, count = label(mask, STRUCTURE)
        labels, found = labels.persist(), int(count.compute())
        sizes = da.bincount(labels.reshape(-1), minlength=found + 1).compute()
        stays = np.where(sizes >= MIN_SIZE, np.uint8(255), np.uint8(0))
        stays[0] = 0
        labels.map_blocks(lambda part: stays[part], dtype=np.uint8).to_zarr(str(target), compute=True)
    return time.perf_counter() - begin


def clean_rows(folder: Path, shape: tuple[int, int, int], side: int, threads: int) -> list[dict[str, Any]]:
    """Clean the same mask in two ways, in turn."""
    path = build_phantom(folder / "phantom.zarr", shape)
    words = (path, "--name", "otsu", "--min-size", MIN_SIZE, "--threads", threads)
    kesm("clean", *words, "--out", "first")  # kernels are compiled
    ours = kesm("clean", *words, "--out", "second").document
    dask_s = clean_with_dask(path, folder / "dask.zarr", side, threads)
    again = kesm("clean", *words, "--out", "third").document
    ours_s = min(ours["elapsed_s"], again["elapsed_s"])
    array = ShardedArray(path / "labels" / "second" / "0")
    theirs = da.from_zarr(str(folder / "dask.zarr"))
    for z in range(shape[0]):
        if not np.array_equal(array.read(Box.of_slice(z, array.shape))[0], theirs[z].compute()):
            sys.exit(f"dask-image leaves other voxels in slice {z}")
    voxels = float(np.prod(array.shape))
    return [
        {"method": name, "seconds": seconds, "Mvoxel/s": voxels / seconds / 1e6, "times dask-image": dask_s / seconds}
        for name, seconds in (
            ("dask-image: label, bincount, look up, to_zarr", dask_s),
            ("kesm clean, with levels", ours_s),
        )
    ]


def full_rows(folder: Path, slices: int, shape: tuple[int, int], threads: int) -> list[dict[str, Any]]:
    """Clean full-size slices with and without holes, with little memory and more."""
    path = build_linked(folder / "full.zarr", slices, shape)
    kesm("run", path, "--name", "otsu", "--threads", threads)
    warm_cache(path / "labels")
    rows = []
    for memory in MEMORY:
        for words in ((), ("--max-hole", MAX_HOLE)):
            done = kesm(
                "clean", path, "--name", "otsu", "--min-size", MIN_SIZE, *words, "--threads", threads,
                "--memory", memory, "--replace",
            )  # fmt: skip
            found = done.document
            voxels = float(np.prod(Volume(path).shape))
            rows.append(
                {
                    "allowed": memory, "holes": "filled" if words else "left", "seconds": found["elapsed_s"],
                    "Mvoxel/s": voxels / found["elapsed_s"] / 1e6, "objects": found["objects"]["found"],
                    "removed": found["objects"]["removed"], "measured MB": done.peak_bytes / 1e6,
                }
            )  # fmt: skip
    return rows


def main() -> None:
    options = parse(__doc__, *OPTIONS)
    labelled, shape = label_rows(options.slices, options.side, options.seconds), tuple(options.shape)
    show(labelled)
    with work_folder(options.folder, volume_bytes(options.full_slices, DISTINCT, shape) + 10**9) as folder:
        phantom = options.slices, options.clean_side, options.clean_side
        cleaned = clean_rows(folder, phantom, options.side, options.threads)
        print()
        show(cleaned)
        full = full_rows(folder, options.full_slices, shape, options.threads)
        print()
        show(full)
    save(options.json, {"threads": options.threads, "label": labelled, "clean": cleaned, "full": full})


if __name__ == "__main__":
    main()
