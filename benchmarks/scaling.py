"""How speed grows with CPUs, and cost with slices and blocks; and what a cluster would need, from that.

    python benchmarks/scaling.py [--slices 8 64] [--long 799] [--repeats 3] [--folder DIR] [--quick] [--json FILE]

Volumes are 8026 x 17480 with dense truth and the real tile's texture, most slices linked (`specimen.py`), in a warm
page cache; kernels are compiled, each `kesm run` is a fresh process, and each figure is the median.

- Speed-up: one and two threads, and one and two processes of one thread each, on as many CPUs; the order is reversed
  every other time. `start` is a run of one small block on the same engine: with processes, most of it is their start.
  `once started` is without it.
- Cost: ns a voxel for volumes of different length, of the job and of the whole process. The long one is run once,
  between the others.
- Scheduling: blocks that do nothing (`scheduling.py`); what a cluster needs is calculated from that, and not measured.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from command import Finished, engine_words, kesm
from record import parse, save, show
from scheduling import ENGINES, measure_scheduling
from specimen import DISTINCT, TRUTH, build_volume, compile_kernels, multiply, volume_bytes, warm_cache, work_folder
from texture import SHAPE, tile_pair

from pipeline.storage.volume import Volume

VOLUME_SLICES = 799
VOLUMES, WORKERS = 10_000, 1_000
LEAST_S = 0.001  # seconds of a job are rounded to it
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--slices", {"type": int, "nargs": "+", "default": [8, 64], "quick": [1, 2], "help": "lengths of volumes"}),
    ("--long", {"type": int, "help": "one more length, such as 799, that is run once"}),
    ("--speed-slices", {"type": int, "default": 64, "quick": 2, "help": "slices of the volume for the speed-up"}),
    ("--threads-only", {"action": "store_true", "help": "leave out processes"}),
    SHAPE,
    (
        "--blocks",
        {
            "type": int,
            "nargs": "+",
            "default": [8, 80, 800, 8000],
            "quick": [2, 4],
            "help": "numbers of blocks to schedule",
        },
    ),
    ("--repeats", {"type": int, "default": 3, "quick": 1, "help": "runs of each, of which the median is reported"}),
    ("--folder", {"type": Path, "help": "where temporary volumes are made; needs 5 MB for each slice of each run"}),
)


def build_each(folder: Path, lengths: Sequence[int], shape: tuple[int, int]) -> dict[int, Path]:
    """Make volumes of these lengths, all linked to the same few slices."""
    base = build_volume(folder / "base.zarr", min(DISTINCT, *lengths), shape)
    volumes = {slices: folder / f"{slices}.zarr" for slices in lengths}
    for slices, path in volumes.items():
        shutil.copytree(base, path, copy_function=os.link)  # whatever changes is replaced by rename
        multiply(path, slices)
    warm_cache(base)
    return volumes


def run_fresh(path: Path, name: str, engine: str, tasks: int) -> Finished:
    """Run a volume under a new name, on as many CPUs as tasks."""
    return kesm("run", path, "--truth", TRUTH, "--name", name, *engine_words(engine, tasks), cpus=tasks)


def measure_speedup(small: Path, path: Path, engines: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """Rows of the engines; speed-ups are over one task on the same engine."""
    cases = [(engine, tasks) for engine in engines for tasks in (1, 2)]
    starts: dict[tuple[str, int], list[float]] = defaultdict(list)
    jobs: dict[tuple[str, int], list[float]] = defaultdict(list)
    for repeat in range(repeats):
        for case in cases if repeat % 2 == 0 else cases[::-1]:
            for volume, seconds in (small, starts), (path, jobs):
                finished = run_fresh(volume, f"{case[0]}{case[1]}-{repeat}", *case)
                seconds[case].append(finished.document["elapsed_s"])
    mvoxels = math.prod(Volume(path).shape) / 1e6
    start = {case: median(starts[case]) for case in cases}
    speed = {case: mvoxels / median(jobs[case]) for case in cases}
    started = {case: mvoxels / max(median(jobs[case]) - start[case], LEAST_S) for case in cases}
    return [
        {
            "engine": engine, "tasks": tasks, "start s": start[engine, tasks],
            "Mvoxel/s": speed[engine, tasks],
            "speed-up": speed[engine, tasks] / speed[engine, 1],
            "of threads": speed[engine, tasks] / speed["threads", tasks],
            "once started": started[engine, tasks],
            "started speed-up": started[engine, tasks] / started[engine, 1],
            "started of threads": started[engine, tasks] / started["threads", tasks],
        }
        for engine, tasks in cases
    ]  # fmt: skip


def measure_cost(volumes: dict[int, Path], long: int | None, repeats: int) -> list[dict[str, Any]]:
    """Rows of the lengths: ns a voxel of the job and of the whole process, and how they compare with the first."""
    jobs: dict[int, list[float]] = defaultdict(list)
    processes: dict[int, list[float]] = defaultdict(list)
    for repeat in range(repeats):
        for slices, path in volumes.items():
            if slices != long or repeat == repeats // 2:
                finished = run_fresh(path, f"cost-{repeat}", "threads", os.cpu_count() or 1)
                jobs[slices].append(finished.document["elapsed_s"])
                processes[slices].append(finished.seconds)
    voxels = {slices: math.prod(Volume(path).shape) for slices, path in volumes.items()}
    job = {slices: median(jobs[slices]) * 1e9 / voxels[slices] for slices in volumes}
    process = {slices: median(processes[slices]) * 1e9 / voxels[slices] for slices in volumes}
    first = next(iter(volumes))
    return [
        {
            "slices": slices, "job ns/voxel": job[slices], "to the first": job[slices] / job[first],
            "process ns/voxel": process[slices], "process to the first": process[slices] / process[first],
        }
        for slices in volumes
    ]  # fmt: skip


def extrapolate(plane: int, speedup: list[dict[str, Any]], scheduling: list[dict[str, Any]]) -> dict[str, float]:
    """What a large cluster would need for many volumes, if a block, a slice, costs there what it costs here."""
    block_s = plane / 1e6 / speedup[0]["once started"]
    most = scheduling[-1]
    blocks_per_s = 1e3 / most["ms/block"]
    return {
        "workers": WORKERS,
        "volumes": VOLUMES,
        "seconds_per_block": block_s,
        "blocks_per_s_demanded": WORKERS / block_s,
        "blocks_per_s_scheduled": blocks_per_s,
        "workers_one_scheduler_keeps_busy": blocks_per_s * block_s,
        "scheduler_s": VOLUMES * VOLUME_SLICES / blocks_per_s,
        "work_s": VOLUMES * VOLUME_SLICES * block_s / WORKERS,
        "tasks_per_block": most["tasks/block"],
        "graph_bytes_of_a_volume": VOLUME_SLICES * most["graph bytes/block"],
        "client_bytes_of_a_volume": VOLUME_SLICES * most["client bytes/block"],
        "client_bytes_of_all_at_once": VOLUMES * VOLUME_SLICES * most["client bytes/block"],
    }


def main() -> None:
    options = parse(__doc__, *OPTIONS)
    shape, engines = tuple(options.shape), ["threads"] if options.threads_only else list(ENGINES)
    lengths = sorted({*options.slices, *([options.long] if options.long else [])})
    every = sorted({*lengths, options.speed_slices})
    written = sum(every) + options.repeats * (sum(options.slices) + 2 * len(engines) * options.speed_slices)
    with work_folder(options.folder, volume_bytes(written, DISTINCT, shape)) as folder:
        small = compile_kernels(folder)
        volumes = build_each(folder, every, shape)
        speedup = measure_speedup(small, volumes[options.speed_slices], engines, options.repeats)
        cost = measure_cost({slices: volumes[slices] for slices in lengths}, options.long, options.repeats)
        scheduling = measure_scheduling(small, engines, options.blocks, options.repeats)
    expected = extrapolate(math.prod(shape), speedup, scheduling)
    show(speedup)
    print(f"\n{tile_pair()[2]}, {options.speed_slices} slices\n")
    show(cost)
    print()
    show(scheduling)
    print(f"\nExtrapolated to {WORKERS:,} workers and {VOLUMES:,} volumes of {VOLUME_SLICES} blocks, not measured:\n")
    show([{"what": what.replace("_", " "), "value": value} for what, value in expected.items()])
    figures = {"texture": tile_pair()[2], "speed_slices": options.speed_slices, "speedup": speedup, "cost": cost}
    save(options.json, {**figures, "scheduling": scheduling, "extrapolated": expected})


if __name__ == "__main__":
    main()
