"""The whole job on a whole volume, beside only its reading and writing, its planned memory, and where its time goes.

    python benchmarks/full_volume.py [--slices 799] [--threads N] [--engine local] [--folder DIR]
                                     [--quick] [--json FILE]

The volume is 8026 x 17480 with dense truth and the real tile's texture. A few slices are made, the others are linked to
them (`specimen.py`), so that all is read from the page cache, which is warm. `kesm run` is a fresh process, on as many
CPUs as it has threads (with `--engine local`: processes of one thread), and its kernels are compiled.

The roofline (`roofline.py`) is another fresh process that only reads image and truth and writes the mask that the run
has made, with its levels, with as many threads. It is measured on the first slices, half of it before the run and half
after, because the machine's speed drifts; and once more through `zarrs`, for scale. `time / roofline` is that of the
job without the start of Python and its imports over that of the roofline, for each voxel; `cost / 8 slices` is over
that of a run of eight. CPU time by stage is of a run of a few slices (`stages.py`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from command import call, engine_words, kesm
from record import parse, save, show
from specimen import DISTINCT, TRUTH, build_linked, compile_kernels, volume_bytes, warm_cache, work_folder
from texture import SHAPE, tile_pair

from pipeline.storage.volume import Volume

HERE = Path(__file__).parent
ROOFLINE_SLICES = 32  # at most, before the run, and again after it
STAGE_SLICES = 8
FEW_SLICES = 8
FIRST, FEW, WHOLE, STAGES = "first", "few", "whole", "stages"  # names of the runs
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--slices", {"type": int, "default": 799, "quick": 2, "help": "slices of the volume"}),
    SHAPE,
    ("--threads", {"type": int, "default": os.cpu_count(), "help": "threads, or processes, of the run"}),
    ("--engine", {"choices": ("threads", "local"), "default": "threads", "help": "where these threads are"}),
    ("--folder", {"type": Path, "help": "where the temporary volume is made; needs 1 GB, and 5 MB a slice"}),
)


def measure(folder: Path, slices: int, shape: tuple[int, int], engine: str, tasks: int) -> dict[str, Any]:
    """Build the volume, run it between the halves of the roofline, and return all figures."""
    small = compile_kernels(folder)
    path = build_linked(folder / "full.zarr", slices, shape)
    words = [path, "--truth", TRUTH, *engine_words(engine, tasks)]
    kesm("run", *words, "--name", FIRST, "--region", f"z=0:{min(slices, DISTINCT)}")
    warm_cache(path)
    before = measure_roofline(path, slices, tasks)
    zarrs = measure_roofline(path, slices, tasks, "zarrs")
    planned = kesm("plan", *words, "--name", WHOLE).document
    few = kesm("run", *words, "--name", FEW, "--region", f"z=0:{min(slices, FEW_SLICES)}", cpus=tasks).document
    finished = kesm("run", *words, "--name", WHOLE, cpus=tasks)
    after = measure_roofline(path, slices, tasks)
    stages = call(sys.executable, HERE / "stages.py", small, path, STAGES, min(slices, STAGE_SLICES), cpus=1).document
    voxels, seconds = finished.document["voxels"], finished.document["elapsed_s"]
    roofline = (before["voxels"] + after["voxels"]) / (before["seconds"] + after["seconds"])
    return {
        "texture": tile_pair()[2], "shape": Volume(path).shape, "engine": engine, "slices": slices, "threads": tasks,
        "mvoxels_per_s": voxels / seconds / 1e6, "seconds": seconds, "process_seconds": finished.seconds,
        "roofline_mvoxels_per_s": roofline / 1e6, "roofline_ratio": roofline / (voxels / seconds),
        "roofline_halves": [before, after], "zarrs_mvoxels_per_s": zarrs["voxels"] / zarrs["seconds"] / 1e6,
        "cost_over_8_slices": seconds / voxels / (few["elapsed_s"] / few["voxels"]),
        "peak_rss_bytes": finished.peak_bytes, "planned_bytes": planned["peak_bytes"], "block": planned["block"],
        "cpu_s_per_gvoxel": stages, "stage_slices": min(slices, STAGE_SLICES),
    }  # fmt: skip


def measure_roofline(path: Path, slices: int, tasks: int, pipeline: str = "ours") -> dict[str, Any]:
    """Seconds and voxels of a half of the roofline; what was written before is on the disk by then."""
    os.sync()
    words = [path, FIRST, min(slices, ROOFLINE_SLICES), tasks, pipeline]
    return call(sys.executable, HERE / "roofline.py", *words, cpus=tasks).document


def main() -> None:
    options = parse(__doc__, *OPTIONS)
    shape = tuple(options.shape)
    with work_folder(options.folder, volume_bytes(options.slices, DISTINCT, shape)) as folder:
        figures = measure(folder, options.slices, shape, options.engine, options.threads)
    report(figures)
    save(options.json, figures)


def report(figures: dict[str, Any]) -> None:
    """Print the figures as tables."""
    halves = figures["roofline_halves"]
    speeds = " and ".join(f"{half['voxels'] / half['seconds'] / 1e6:.0f}" for half in halves)
    show(
        [
            {
                "slices": figures["slices"], "engine": figures["engine"], "threads": figures["threads"],
                "seconds": figures["seconds"], "whole process": figures["process_seconds"],
                "Mvoxel/s": figures["mvoxels_per_s"], "roofline": figures["roofline_mvoxels_per_s"],
                "time / roofline": figures["roofline_ratio"],
                "cost / 8 slices": figures["cost_over_8_slices"],
                "planned MB": figures["planned_bytes"] / 1e6, "measured MB": figures["peak_rss_bytes"] / 1e6,
            }
        ]
    )  # fmt: skip
    print(
        f"\n{figures['texture']}; the roofline's halves, before and after the run: {speeds} Mvoxel/s; the same through "
        f"zarrs: {figures['zarrs_mvoxels_per_s']:.0f} Mvoxel/s\n"
    )
    total = sum(figures["cpu_s_per_gvoxel"].values())
    show(
        [
            {"stage": stage, "CPU s/Gvoxel": spent, "share": spent / total}
            for stage, spent in {**figures["cpu_s_per_gvoxel"], "all": total}.items()
        ]
    )
    print(f"\nStages of a run of {figures['stage_slices']} slices with one thread.")


if __name__ == "__main__":
    main()
