"""`kesm compare` of every method beside one `kesm run`, on the same annotated slices.

    python benchmarks/choosing.py [--slices 8] [--repeats 5] [--folder DIR] [--quick] [--json FILE]

Slices are 8026 x 17480 with dense truth and the real tile's texture. `kesm compare` judges seven methods at three
scopes in one pass over the pixels; `kesm run` is the plain recipe, under a new name each time. Both are fresh
processes, in turns, after one of each; a time is that of the whole process, the start of Python included.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

from command import kesm
from record import parse, save, show
from specimen import DISTINCT, TRUTH, build_linked, compile_kernels, volume_bytes, warm_cache, work_folder
from texture import SHAPE, tile_pair


def measure(folder: Path, slices: int, shape: tuple[int, int], threads: int, repeats: int) -> dict[str, Any]:
    """Build the volume, and time both commands in turns."""
    compile_kernels(folder)
    path = build_linked(folder / "annotated.zarr", slices, shape)
    words = [path, "--truth", TRUTH, "--threads", threads]
    warm_cache(path)
    runs, comparisons = [], []
    for turn in range(repeats + 1):
        runs.append(kesm("run", *words, "--name", f"run-{turn}").seconds)
        comparisons.append(kesm("compare", *words))
    seconds = [comparison.seconds for comparison in comparisons]
    ratios = [compared / run for run, compared in zip(runs, seconds, strict=True)]
    return {
        "texture": tile_pair()[2], "slices": slices, "rows": len(comparisons[0].document["rows"]), "threads": threads,
        "run_seconds": statistics.median(runs[1:]), "compare_seconds": statistics.median(seconds[1:]),
        "ratio": statistics.median(ratios[1:]), "ratio_least": min(ratios[1:]), "ratio_most": max(ratios[1:]),
    }  # fmt: skip


def main() -> None:
    options = parse(
        __doc__,
        ("--slices", {"type": int, "default": 8, "quick": 2, "help": "annotated slices"}),
        SHAPE,
        ("--threads", {"type": int, "default": os.cpu_count(), "help": "of both"}),
        ("--repeats", {"type": int, "default": 5, "quick": 1, "help": "times that both are timed"}),
        ("--folder", {"type": Path, "help": "where the temporary volume is made; needs 0.2 GB a slice"}),
    )
    shape = tuple(options.shape)
    with work_folder(options.folder, volume_bytes(options.slices, DISTINCT, shape)) as folder:
        figures = measure(folder, options.slices, shape, options.threads, options.repeats)
    show(
        [
            {
                "slices": figures["slices"], "methods x scopes": figures["rows"],
                "kesm run s": figures["run_seconds"], "kesm compare s": figures["compare_seconds"],
                "compare / run": figures["ratio"], "least": figures["ratio_least"], "most": figures["ratio_most"],
            }
        ]
    )  # fmt: skip
    print(f"\n{figures['texture']}, {figures['threads']} threads; medians of {options.repeats} turns")
    save(options.json, figures)


if __name__ == "__main__":
    main()
