"""The peak of memory that `plan` states, beside the one that is measured.

    python benchmarks/memory.py [--slices 4] [--threads 1 2] [--folder DIR] [--quick] [--json FILE]

Each row is a fresh process of `kesm run` on full-size slices, with just the memory that makes the plan choose that
block: whole slices, half a slice in rows of shards, one row, and one shard, or what it chooses with that little. The
peak is the kernel's account of that process, and so only to be had on Linux.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from command import kesm
from record import parse, save, show
from specimen import TRUTH, build_volume, volume_bytes, work_folder
from texture import SHAPE

from pipeline.geometry import Triple
from pipeline.segmentation.budget import PROCESS_BYTES, task_bytes
from pipeline.settings.recipe import Recipe
from pipeline.storage.store import SHARD
from pipeline.storage.volume import Volume

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--slices", {"type": int, "default": 4, "quick": 1, "help": "slices of the volume"}),
    SHAPE,
    ("--threads", {"type": int, "nargs": "+", "default": [1, 2], "quick": [1], "help": "numbers of threads to try"}),
    ("--folder", {"type": Path, "help": "where the temporary volume is made; needs 0.2 GB a slice"}),
)


def block_shapes(volume: Volume) -> list[Triple]:
    """Whole slices, half of a slice in rows of shards, one row, one shard."""
    _, height, width = volume.shape
    half = -(-height // 2 // SHARD[1]) * SHARD[1]
    return [(1, height, width), (1, half, width), (1, SHARD[1], width), SHARD]


def command_words(volume: Volume, block: Triple, threads: int) -> tuple[object, ...]:
    """Words of a command with just the memory for this block."""
    memory = PROCESS_BYTES + threads * task_bytes(volume, Recipe(), block)
    return volume.path, "--truth", TRUTH, "--threads", threads, "--memory", f"{memory}B"


def measure(volume: Volume, threads: int) -> Iterator[dict[str, Any]]:
    """Run each block that a plan chooses, and return its row."""
    seen = []
    for block in block_shapes(volume):
        words = command_words(volume, block, threads)
        plan = kesm("plan", *words).document
        _, height, width = plan["block"]  # as large or larger: where a slice's levels need most, several need as much
        if (name := f"{height}x{width}-{threads}") in seen:
            continue
        seen.append(name)
        planned, measured = plan["peak_bytes"], kesm("run", *words, "--name", name).peak_bytes
        yield {
            "block": f"{height} x {width}", "threads": threads, "planned MB": planned / 1e6,
            "measured MB": measured / 1e6, "measured / planned": measured / planned,
        }  # fmt: skip


def main() -> None:
    options = parse(__doc__, *OPTIONS)
    if not Path("/proc/self/status").exists():
        sys.exit("the peak of a process is read from /proc, which this system does not have; measure it on Linux")
    shape = tuple(options.shape)
    with work_folder(options.folder, volume_bytes(options.slices, shape=shape)) as folder:
        volume = Volume(build_volume(folder / "full.zarr", options.slices, shape))
        rows = [row for threads in options.threads for row in measure(volume, threads)]
    show(rows)
    above = sum(row["measured / planned"] > 1 for row in rows)
    print(f"\n{above} of {len(rows)} runs took more than planned.")
    save(options.json, {"slices": options.slices, "rows": rows})


if __name__ == "__main__":
    main()
