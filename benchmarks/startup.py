"""How long one waits before work begins: `kesm --help`, the imports of a run, its kernels from cache and compiled.

python benchmarks/startup.py [--json FILE]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from command import KESM
from record import parse, save, show

REPEATS = 5
# The arrays are laid out as in a run, because Numba compiles for the layout too.
CHILD = """
import json, time
begin = time.perf_counter()
import numpy as np
import pipeline.plan, pipeline.runs, pipeline.terminal
from pipeline.recipe import HistogramThreshold
from pipeline.pyramid import reduce_label, reduced_levels
from pipeline.tile import TileRule, segment_tiles
imported = time.perf_counter()
plane = np.random.default_rng(0).integers(256, size=(1, 2048, 2048), dtype=np.uint8)
truth, mask = plane[0, :1024, :1024] // 128 * np.uint8(255), np.empty((1024, 1024), np.uint8)
rule = TileRule(512, (1, 3, 3), True, HistogramThreshold().levels, (0, 255))
segment_tiles(plane, (512, 512), truth, mask, rule)
list(reduced_levels(mask, reduce_label))
print(json.dumps([imported - begin, time.perf_counter() - imported]))
"""


def time_help() -> float:
    """Seconds that ``kesm --help`` takes."""
    start = time.perf_counter()
    subprocess.run([KESM, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def time_run_path(cache: Path) -> tuple[float, float]:
    """Seconds for the imports of a run, and from then until its kernels have run once, in a fresh process."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", CHILD], check=True, stdout=subprocess.PIPE, env=environment)
    imports, kernels = json.loads(done.stdout)
    return imports, kernels


def measure() -> list[dict[str, Any]]:
    """Time all of it; the best of five, except for compilation."""
    with tempfile.TemporaryDirectory(prefix="kesm-benchmark-") as folder:
        _, compiled = time_run_path(Path(folder))
        imports, cached = (
            min(column) for column in zip(*(time_run_path(Path(folder)) for _ in range(REPEATS)), strict=True)
        )
    return [
        {"what": "kesm --help", "seconds": min(time_help() for _ in range(REPEATS)), "at most": "0.5"},
        {"what": "imports of a run", "seconds": imports, "at most": ""},
        {"what": "kernels, from their cache", "seconds": cached, "at most": "0.3"},
        {"what": "kernels, compiled", "seconds": compiled, "at most": ""},
    ]


def main() -> None:
    options = parse(__doc__)
    rows = measure()
    show(rows)
    save(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
