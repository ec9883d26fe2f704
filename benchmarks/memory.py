"""The peak of memory that `plan` states, beside the one that is measured.

    python benchmarks/memory.py [--slices 4] [--threads 1 2] [--folder DIR] [--json FILE]

Each row is a fresh process that runs full-size slices through `pipeline.runs.run`, with just the memory that makes the
plan choose that block: whole slices, rows of shards, and the smallest that it chooses.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from record import parse, save, show
from specimen import TRUTH, build_volume, volume_bytes, work_folder

from pipeline.config import Recipe, RunConfig
from pipeline.geometry import Triple
from pipeline.plan import PROCESS_BYTES, make_plan, task_bytes
from pipeline.store import SHARD
from pipeline.volume import Volume

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--slices", {"type": int, "default": 4, "help": "slices of the volume"}),
    ("--threads", {"type": int, "nargs": "+", "default": [1, 2], "help": "numbers of threads to try"}),
    ("--folder", {"type": Path, "help": "where the temporary volume is made; needs 0.2 GB a slice"}),
)
# The peak is read from the kernel's account of this process alone (VmHWM): the `ru_maxrss` of a child begins with the
# peak of the process that started it.
CHILD = """
import re, resource, sys
from pathlib import Path
from pipeline.config import RunConfig
from pipeline.runs import run

run(RunConfig.model_validate_json(sys.argv[1]))
status = Path("/proc/self/status")
if status.exists():
    print(int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text())[1]) * 1024)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS
"""


def block_shapes(volume: Volume) -> list[Triple]:
    """Whole slices, half of a slice in rows of shards, one row, one shard."""
    _, height, width = volume.shape
    half = -(-height // 2 // SHARD[1]) * SHARD[1]
    return [(1, height, width), (1, half, width), (1, SHARD[1], width), SHARD]


def measure(volume: Volume, block: Triple, threads: int) -> dict[str, Any]:
    """Run with the memory for this block, and return the row."""
    config = RunConfig.model_validate(
        {
            "volume": volume.path,
            "name": f"{block[1]}x{block[2]}-{threads}",
            "truth": TRUTH,
            "memory": PROCESS_BYTES + threads * task_bytes(volume, Recipe(), threads, block),
            "cluster": {"engine": "threads", "threads": threads},
        }
    )
    plan = make_plan(config)
    block = plan.block  # as large or larger: where a slice's levels need the most, several blocks need as much
    child = [sys.executable, "-c", CHILD, config.model_dump_json(by_alias=True)]
    peak = int(subprocess.run(child, stdout=subprocess.PIPE, check=True).stdout)
    return {
        "block": f"{block[1]} x {block[2]}", "threads": threads, "planned MB": plan.peak_bytes / 1e6,
        "measured MB": peak / 1e6, "measured / planned": peak / plan.peak_bytes,
    }  # fmt: skip


def main() -> None:
    options = parse(__doc__, *OPTIONS)
    with work_folder(options.folder, volume_bytes(options.slices)) as folder:
        volume = Volume(build_volume(folder / "full.zarr", options.slices))
        rows = [measure(volume, block, threads) for block in block_shapes(volume) for threads in options.threads]
    show(rows)
    above = sum(row["measured / planned"] > 1 for row in rows)
    print(f"\n{above} of {len(rows)} runs took more than planned.")
    save(options.json, {"slices": options.slices, "rows": rows})


if __name__ == "__main__":
    main()
