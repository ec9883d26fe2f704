"""CPU time of a run by stage: a child process of `full_volume.py`.

    python benchmarks/stages.py WARM VOLUME NAME SLICES

Runs the first slices of a volume with one thread, after another volume that only loads the kernels. What belongs to a
stage is wrapped where its callers look it up. A stage has the time of its functions without that of stages which they
call; `other` has what remains of the process's CPU time from the begin of the run to its end, outside of its blocks:
the plan, the store of the run, Dask, the record of the attempt, the summary. Only one block is in work, so that this
time can be the process's, with whatever threads its codecs have, and not only that of one thread.

What the work on tiles calls and no stage names gets a stage of its own, by the name of its module, so that a new step
shows; and a stage that was never at work ends the program, because what it wraps must have moved.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from specimen import TRUTH

import pipeline.segmentation.bookkeeping
import pipeline.segmentation.execute
import pipeline.segmentation.scene
import pipeline.segmentation.segment
import pipeline.segmentation.tile
from pipeline.segmentation.runs import run
from pipeline.segmentation.window import Window
from pipeline.settings.config import RunConfig
from pipeline.settings.recipe import HistogramThreshold
from pipeline.storage.pyramid import SliceWriter
from pipeline.storage.shard import ShardEncoder
from pipeline.storage.store import ShardedArray
from pipeline.storage.table import Table

READ_TRUTH, FILTER, OTHER = "read truth", "filter", "other"
# Stage, module or class, and what of it. Shards of levels are coded and published by the same functions as the mask's.
FUNCTIONS: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("read image", Window, ("load",)),
    (READ_TRUTH, pipeline.segmentation.segment, ("CheckedShard",)),
    (FILTER, pipeline.segmentation.segment, ("denoiser",)),
    (FILTER, pipeline.segmentation.scene, ("denoiser",)),
    ("histogram", pipeline.segmentation.tile, ("joint_histograms", "rebin")),
    ("level", HistogramThreshold, ("levels",)),
    ("counts", pipeline.segmentation.tile, ("counts_above_levels",)),
    ("mask", pipeline.segmentation.tile, ("binarize_tiles",)),
    ("seams", pipeline.segmentation.tile, ("seam_pairs",)),
    ("pyramid", SliceWriter, ("reduce", "write_levels")),
    ("write", SliceWriter, ("write",)),
    ("write", ShardEncoder, ("add", "finish")),
    ("write", ShardedArray, ("publish",)),
    ("keys and tables", pipeline.segmentation.segment, ("mask_keys", "counts_keys", "covered_planes", "other_inputs")),
    ("keys and tables", pipeline.segmentation.segment, ("pyramid_key", "open_job")),
    ("keys and tables", pipeline.segmentation.bookkeeping, ("has_shards", "done_record", "open_job")),
    ("keys and tables", Table, ("read", "stored", "survey", "write")),
    ("tiles, the rest", pipeline.segmentation.segment, ("segment_tiles",)),
    ("blocks, the rest", pipeline.segmentation.execute, ("run_block",)),
)
# Modules whose functions the work on tiles calls by the way: they stay with whoever calls them.
BY_THE_WAY = ("pipeline.kernels.compiled", "pipeline.geometry", "pipeline.storage.store", "pipeline.storage.volume")


class Clock:
    """CPU seconds of this process, by stage."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._stages = [OTHER]
        self._since = time.process_time()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take the time of all that is done meanwhile; afterwards everything is as it was before."""
        with ExitStack() as stack:
            for stage, owner, names in FUNCTIONS:
                for name in names:
                    stack.enter_context(patch.object(owner, name, self._wrap(stage, getattr(owner, name))))
            for module, name, function in unnamed_functions():
                stage_name = function.__module__.rpartition(".")[2]
                stack.enter_context(patch.object(module, name, self._timed(stage_name, function)))
            self._since = time.process_time()
            yield
            self._lap()

    def _wrap(self, stage: str, wrapped: Any) -> Any:
        if stage == FILTER:  # what a run calls is made for it
            return lambda recipe: self._timed(stage, wrapped(recipe))
        if stage == READ_TRUTH:  # the image is read by the same class, from within `Window`
            methods = {name: self._timed(stage, getattr(wrapped, name)) for name in ("read", "__exit__")}
            return type(wrapped.__name__, (wrapped,), methods)
        return self._timed(stage, wrapped)

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that takes its time for a stage."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            self._lap()
            self._stages.append(stage)
            try:
                return function(*arguments, **options)
            finally:
                self._lap()
                self._stages.pop()

        return timed

    def _lap(self) -> None:
        """Give the time since the last lap to the stage that is at work."""
        now, stage = time.process_time(), self._stages[-1]
        self.spent[stage] = self.spent.get(stage, 0.0) + now - self._since
        self._since = now


def unnamed_functions() -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """What the work on tiles calls of other modules of the package, and no stage has: module, name, function."""
    for module in pipeline.segmentation.tile, pipeline.segmentation.segment, pipeline.segmentation.bookkeeping:
        named = [name for _, owner, names in FUNCTIONS if owner is module for name in names]
        for name, value in list(vars(module).items()):
            origin = getattr(value, "__module__", None) or ""
            foreign = origin.startswith("pipeline.") and origin not in (module.__name__, *BY_THE_WAY)
            if foreign and callable(value) and not isinstance(value, type) and name not in named:
                yield module, name, value


def measure(warm: str, volume: str, name: str, slices: int) -> dict[str, float]:
    """Run so many slices, and return CPU seconds of each stage for 10^9 voxels."""
    settings = {"truth": TRUTH, "name": name, "cluster": {"threads": 1}}
    run(RunConfig.model_validate({**settings, "volume": warm}))
    config = RunConfig.model_validate({**settings, "volume": volume, "region": f"z=0:{slices}"})
    clock = Clock()
    with clock.running():
        summary = run(config)
    order = dict.fromkeys(stage for stage, _, _ in FUNCTIONS)
    if idle := [stage for stage in order if stage not in clock.spent]:
        sys.exit(f"stages {', '.join(idle)} were never at work: what they wrap has moved; see FUNCTIONS in {__file__}")
    new = sorted(clock.spent.keys() - order.keys() - {OTHER})
    return {stage: clock.spent[stage] * 1e9 / summary.voxels for stage in (*order, *new, OTHER)}


def main() -> None:
    warm, volume, name, slices = sys.argv[1:]
    print(json.dumps(measure(warm, volume, name, int(slices))))


if __name__ == "__main__":
    main()
