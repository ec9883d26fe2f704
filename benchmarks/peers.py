"""The whole job, beside the obvious Dask pipeline and the published method, on the same slices in one run.

    python benchmarks/peers.py [--slices 32] [--obvious-slices 1] [--folder DIR] [--quick] [--json FILE]

Slices are 8026 x 17480 with dense truth and the real tile's texture; all but a few are linked (`specimen.py`). `kesm
run` does all of its work: reads image and truth, filters, thresholds, counts, writes mask, pyramid, tables and keys.
The other two do less: no pyramid and no tables of tiles; the published method does not even read or write. Kernels are
compiled, the page cache is warm, and the obvious pipeline runs between the runs of kesm.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from command import kesm
from dask_image.ndfilters import median_filter
from numpy.typing import NDArray
from record import parse, save, show
from scipy import ndimage
from skimage.filters import threshold_otsu
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef
from specimen import DISTINCT, TRUTH, build_linked, compile_kernels, volume_bytes, warm_cache, work_folder
from texture import SHAPE, TILE, slice_pair, tile_pair

from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume

VESSEL = 255
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--slices",
        {"type": int, "default": 32, "quick": 2, "help": "slices of the volume, of which all but four are linked"},
    ),
    SHAPE,
    ("--obvious-slices", {"type": int, "default": 1, "help": "of these, how many the obvious pipeline gets"}),
    ("--published-tiles", {"type": int, "default": 16, "quick": 1, "help": "tiles that the published method gets"}),
    ("--repeats", {"type": int, "default": 3, "quick": 1, "help": "runs of kesm, of which the median is reported"}),
    ("--threads", {"type": int, "default": os.cpu_count(), "help": "threads of kesm and of Dask"}),
    ("--folder", {"type": Path, "help": "where the temporary volume is made; needs 0.2 GB a slice"}),
)


@dataclass(frozen=True, slots=True)
class Segmented:
    """What one method did to some slices: its time, and per slice and tile what can be compared.

    Attributes
    ----------
    counts : ndarray
        (z, 4) int64: tp, fp, fn, tn.
    levels : ndarray
        (z, tile row, tile column) float64.
    """

    seconds: float
    counts: NDArray[np.int64]
    levels: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two methods differ on the same slices; ``counts``: tp, fp, fn, tn of the first less the second."""

    tiles: int
    tiles_with_other_level: int
    largest_level_difference: float
    counts: list[int]


def read_tables(volume: Path, name: str, slices: int, seconds: float) -> Segmented:
    """What a run recorded of its first slices."""
    tables = RunTables(Volume(volume), name)
    span = (slice(0, slices),)
    counts = tables.truth(TRUTH).counts.read(span).sum(axis=(1, 2))
    return Segmented(seconds, counts, tables.threshold.read(span))


def run_obvious(volume: Path, slices: int, target: Path, threads: int) -> Segmented:
    """Segment and count the first slices as one writes it with Dask: whole-volume arrays of tiles, one compute."""
    start = time.perf_counter()
    chunks = (1, TILE, TILE)
    image = da.from_zarr(str(volume / "0"))[:slices].rechunk(chunks)
    vessel = da.from_zarr(str(volume / "labels" / TRUTH / "0"))[:slices].rechunk(chunks) == VESSEL
    levels = np.full(image.numblocks, np.nan)

    def segment(tile: NDArray[np.uint8], block_id: tuple[int, ...]) -> NDArray[np.bool_]:
        levels[block_id] = level = threshold_otsu(tile)  # kept aside for the comparison; threads share memory
        return np.asarray(tile > level)

    filtered = median_filter(255 - image, size=(1, 3, 3))
    mask = filtered.map_blocks(segment, dtype=bool, meta=np.empty((0, 0, 0), bool))
    parts = (mask & vessel, mask & ~vessel, ~mask & vessel, ~mask & ~vessel)
    counts = [part.sum(axis=(1, 2)) for part in parts]
    # Its chunks are those of Dask, without shards: to_zarr writes wrong voxels into shards (dask issue 12583).
    stored = da.to_zarr(mask * np.uint8(VESSEL), str(target), compute=False)
    _, *counted = dask.compute(stored, *counts, scheduler="threads", num_workers=threads)
    return Segmented(time.perf_counter() - start, np.stack(counted, axis=1).astype(np.int64), levels)


def segment_as_published(tile: NDArray[np.uint8], truth: NDArray[np.uint8]) -> tuple[Any, ...]:
    """One tile by the libraries of the published script, which calls each metric by itself."""
    filtered = ndimage.median_filter(255 - tile, size=3)
    mask = (filtered > threshold_otsu(filtered)).ravel()
    vessel = (truth == VESSEL).ravel()
    metrics = (confusion_matrix, accuracy_score, f1_score, matthews_corrcoef)
    return tuple(metric(vessel, mask) for metric in metrics)


def time_published(tiles: int) -> float:
    """Seconds for so many tiles that are in memory already, one after the other."""
    image, truth = slice_pair((TILE, TILE * tiles))
    pairs = [(image[:, x : x + TILE], truth[:, x : x + TILE]) for x in range(0, TILE * tiles, TILE)]
    segment_as_published(*pairs[0])  # what the libraries do on their first call only
    start = time.perf_counter()
    for pair in pairs:
        segment_as_published(*pair)
    return time.perf_counter() - start


def compare(ours: Segmented, theirs: Segmented) -> Agreement:
    """Difference of levels and counts."""
    apart = np.abs(ours.levels - theirs.levels)
    counts = [int(value) for value in (ours.counts - theirs.counts).sum(axis=0)]
    return Agreement(apart.size, int((apart > 0).sum()), float(apart.max()), counts)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Build the volume and run the three methods; return rows and agreement."""
    slices, shape, repeats, threads = options.slices, tuple(options.shape), options.repeats, options.threads
    obvious_slices = min(options.obvious_slices, slices)
    compile_kernels(folder)
    volume = build_linked(folder / "full.zarr", slices, shape)
    warm_cache(volume)
    words = [volume, "--truth", TRUTH, "--threads", threads]
    done = [kesm("run", *words, "--name", f"run{repeat}") for repeat in range((repeats + 1) // 2)]
    obvious = run_obvious(volume, obvious_slices, folder / "mask.zarr", threads)
    done += [kesm("run", *words, "--name", f"run{repeat}") for repeat in range(len(done), repeats)]  # speed drifts
    runs = [(one.seconds, float(one.document["elapsed_s"])) for one in done]
    process_s, job_s = (statistics.median(column) for column in zip(*runs, strict=True))
    tiles, plane = options.published_tiles, math.prod(shape)
    published_s = time_published(tiles)
    measured = [
        ("published, tile by tile, no input or output", f"{tiles} tiles", tiles * TILE**2, published_s),
        (
            "obvious: dask-image, map_blocks, to_zarr",
            f"{obvious_slices} of the slices",
            obvious_slices * plane,
            obvious.seconds,
        ),
        ("kesm run, the whole process", f"{slices} slices", slices * plane, process_s),
        ("kesm run", f"{slices} slices", slices * plane, job_s),
    ]
    base = obvious_slices * plane / obvious.seconds
    rows = [
        {
            "method": method, "measured on": extent, "seconds": seconds,
            "Mvoxel/s": voxels / seconds / 1e6, "times obvious": voxels / seconds / base,
        }
        for method, extent, voxels, seconds in measured
    ]  # fmt: skip
    agreement = compare(read_tables(volume, "run0", obvious_slices, job_s), obvious)
    return {
        "texture": tile_pair()[2],
        "threads": threads,
        "rows": rows,
        "kesm_runs": runs,
        "agreement": asdict(agreement),
    }


def main() -> None:
    options = parse(__doc__, *OPTIONS)
    with work_folder(options.folder, volume_bytes(options.repeats * options.slices, DISTINCT, options.shape)) as folder:
        figures = measure(folder, options)
    show(figures["rows"])
    found = Agreement(**figures["agreement"])
    print(
        f"\nkesm is {figures['rows'][-1]['times obvious']:.1f} times the obvious pipeline ({figures['texture']}).\n"
        f"On the slices that both did, {found.tiles_with_other_level} of {found.tiles} tiles have another level "
        f"(by at most {found.largest_level_difference:g}); counts tp, fp, fn, tn differ by {found.counts}."
    )
    save(options.json, figures)


if __name__ == "__main__":
    main()
