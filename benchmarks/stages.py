"""CPU time of a run by stage: a child process of `full_volume.py`.

    python benchmarks/stages.py WARM VOLUME NAME SLICES

Runs the first slices of a volume with one thread, after another volume that only loads the kernels. What belongs to a
stage is wrapped where its callers look it up. A stage has the time of its functions without that of stages which they
call; `other` has what remains of the process's CPU time from the begin of the run to its end. Only one block is in
work, so that this time can be the process's, with whatever threads its codecs have, and not only that of one thread.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from specimen import TRUTH

import pipeline.config
import pipeline.segment
import pipeline.tile
from pipeline.config import RunConfig
from pipeline.pyramid import SliceWriter
from pipeline.runs import run
from pipeline.shard import ShardEncoder
from pipeline.store import OpenShard, ShardedArray
from pipeline.table import Table

# Stage, module or class, and what of it. Levels are found in what `segment_tiles` does by itself.
FUNCTIONS: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("read", OpenShard, ("read",)),
    ("median", pipeline.tile, ("median_tile",)),
    ("histogram", pipeline.tile, ("joint_histograms", "rebin")),
    ("threshold and mask", pipeline.segment, ("segment_tiles",)),
    ("threshold and mask", pipeline.tile, ("binarize", "counts_above_levels")),
    ("levels", SliceWriter, ("reduce", "write_levels")),
    ("write", ShardEncoder, ("add", "finish")),
    ("write", ShardedArray, ("publish",)),
    ("tables", Table, ("read", "stored", "survey", "write")),
)


class Clock:
    """CPU seconds of this process, by stage."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys([*(stage for stage, _, _ in FUNCTIONS), "other"], 0.0)
        self._stages = ["other"]
        self._since = time.process_time()

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that takes its time for a stage."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            self.lap()
            self._stages.append(stage)
            try:
                return function(*arguments, **options)
            finally:
                self.lap()
                self._stages.pop()

        return timed

    def lap(self) -> None:
        """Give the time since the last lap to the stage that is at work."""
        now = time.process_time()
        self.spent[self._stages[-1]] += now - self._since
        self._since = now


def measure(warm: str, volume: str, name: str, slices: int) -> dict[str, float]:
    """Run so many slices, and return CPU seconds of each stage for 10^9 voxels."""
    settings = {"truth": TRUTH, "name": name, "cluster": {"threads": 1}}
    run(RunConfig.model_validate({**settings, "volume": warm}))
    config = RunConfig.model_validate({**settings, "volume": volume, "region": f"z=0:{slices}"})
    clock = Clock()
    for stage, owner, names in FUNCTIONS:
        for each in names:
            setattr(owner, each, clock.wrap(stage, getattr(owner, each)))
    summary = run(config)
    clock.lap()
    return {stage: seconds * 1e9 / summary.voxels for stage, seconds in clock.spent.items()}


def main() -> None:
    warm, volume, name, slices = sys.argv[1:]
    print(json.dumps(measure(warm, volume, name, int(slices))))


if __name__ == "__main__":
    main()
