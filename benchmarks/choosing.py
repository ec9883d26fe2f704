"""`kesm compare` of every method beside one `kesm run`, on the same annotated slices.

    python benchmarks/choosing.py [--slices 8] [--repeats 5] [--folder DIR] [--quick] [--json FILE]

Slices are 8026 x 17480 with dense truth and the real tile's texture. `kesm compare` judges seven methods at three
scopes in one pass over the pixels; `kesm run` is the plain recipe, under a new name each time. Both are fresh
processes, in turns, after one of each; a time is that of the whole process, the start of Python included.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from command import kesm
from record import parse, save, show
from specimen import DISTINCT, TRUTH, build_linked, compile_kernels, volume_bytes, warm_cache, work_folder
from texture import SHAPE, tile_pair


def measure(folder: Path, slices: int, shape: tuple[int, int], threads: int, repeats: int) -> dict[str, Any]:
    """Build the volume, and time both commands in turns."""
    compile_kernels(folder)
    source = build_linked(folder / "annotated.zarr", slices, shape)
    words = ["--truth", TRUTH, "--threads", threads]
    warm_cache(source)
    runs, after, fresh, rows = [], [], [], 0
    for turn in range(repeats + 1):
        with fresh_volume(source, folder / "run.zarr") as path:
            runs.append(kesm("run", path, *words).seconds)
            after.append(kesm("compare", path, *words).seconds)
        with fresh_volume(source, folder / "compare.zarr") as path:
            compared = kesm("compare", path, *words)
            fresh.append(compared.seconds)
            rows = len(compared.document["rows"])
        if not turn:  # both have met the disk now
            del runs[:], after[:], fresh[:]
    ratios = [compared / run for run, compared in zip(runs, fresh, strict=True)]
    return {
        "texture": tile_pair()[2], "slices": slices, "rows": rows, "threads": threads,
        "run_seconds": statistics.median(runs), "compare_seconds": statistics.median(fresh),
        "compare_after_run_seconds": statistics.median(after),
        "ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios),
    }  # fmt: skip


@contextmanager
def fresh_volume(source: Path, path: Path) -> Iterator[Path]:
    """Copy a volume, whose shards are linked, and remove the copy afterwards."""
    shutil.copytree(source, path, copy_function=copy_file)
    yield path
    shutil.rmtree(path)


def copy_file(source: str, target: str) -> None:
    """Link what is only ever replaced whole; metadata may be written in place."""
    (shutil.copyfile if source.endswith(".json") else os.link)(source, target)


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
                "after that run s": figures["compare_after_run_seconds"],
            }
        ]
    )  # fmt: skip
    print(f"\n{figures['texture']}, {figures['threads']} threads; medians of {options.repeats} turns")
    save(options.json, figures)


if __name__ == "__main__":
    main()
