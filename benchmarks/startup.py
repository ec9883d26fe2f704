"""How long one waits before work begins: `kesm --help`, the imports of a run, its kernels from cache and compiled.

python benchmarks/startup.py [--repeats 5] [--no-compile] [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import BooleanOptionalAction
from pathlib import Path
from typing import Any

from command import KESM
from record import parse, save, show

FIRST_TILE = Path(__file__).with_name("first_tile.py")
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--repeats", {"type": int, "default": 5, "quick": 1, "help": "of which the best is reported"}),
    (
        "--compile",
        {
            "action": BooleanOptionalAction, "default": True, "quick": False,
            "help": "compile the kernels into a cache of their own, once; else they are those of this user",
        },
    ),
)  # fmt: skip


def time_help() -> float:
    """Seconds that ``kesm --help`` takes."""
    start = time.perf_counter()
    subprocess.run([KESM, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def time_run_path(cache: Path | None) -> tuple[float, float]:
    """Seconds for the imports of a run, and from then until its kernels have run once, in a fresh process."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)} if cache else None
    done = subprocess.run([sys.executable, FIRST_TILE], check=True, stdout=subprocess.PIPE, env=environment)
    imports, kernels = json.loads(done.stdout)
    return imports, kernels


def measure(repeats: int, compiles: bool) -> list[dict[str, Any]]:
    """Time all of it; the best of some, except for compilation."""
    with tempfile.TemporaryDirectory(prefix="kesm-benchmark-") as folder:
        cache = Path(folder) if compiles else None
        compiled = time_run_path(cache)[1] if compiles else None
        imports, cached = (min(column) for column in zip(*(time_run_path(cache) for _ in range(repeats)), strict=True))
    rows = [
        {"what": "kesm --help", "seconds": min(time_help() for _ in range(repeats)), "at most": "0.5"},
        {"what": "imports of a run", "seconds": imports, "at most": ""},
        {"what": "kernels, from their cache", "seconds": cached, "at most": "0.3"},
    ]
    return rows if compiled is None else [*rows, {"what": "kernels, compiled", "seconds": compiled, "at most": ""}]


def main() -> None:
    options = parse(__doc__, *OPTIONS)
    rows = measure(options.repeats, options.compile)
    show(rows)
    save(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
