"""What it costs to schedule blocks that do nothing: the part of `scaling.py` that no larger machine makes smaller.

The graph is that of a run of full-size slices, `segmentation.execute.build_graph`, with its reductions and its events;
only the work of a block is replaced, by a constant table of its tiles. Client, scheduler and workers share this
machine, so that a scheduler with a machine of its own is faster.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import distributed
import numpy as np
from dask.base import collections_to_expr
from distributed.protocol import serialize, to_serialize
from numpy.typing import NDArray
from texture import KESM_SLICE

import pipeline.segmentation.execute
from pipeline.events import ignore
from pipeline.geometry import Box, Triple
from pipeline.segmentation.engine import Engine, start_engine
from pipeline.segmentation.execute import build_graph
from pipeline.segmentation.job import Job
from pipeline.segmentation.plan import Plan, make_plan
from pipeline.segmentation.record import Column
from pipeline.settings.config import Cluster, LocalCluster, RunConfig, ThreadsCluster
from pipeline.storage.tables import Grids

REPEATED_BLOCKS = 1_000  # more take a minute, and differ little
ENGINES: dict[str, tuple[str, Cluster]] = {
    "threads": ("2 threads", ThreadsCluster(threads=2)),
    "local": ("2 processes", LocalCluster(workers=2, threads=1)),
}


def do_nothing(job: Job, index: Triple) -> NDArray[np.int64]:  # noqa: ARG001
    """Return the table of a full-size slice, in place of `run_block`."""
    return np.ones((1, 16, 35, len(Column)), np.int64)


def replace_work() -> None:
    """Let the blocks of this process do nothing."""
    pipeline.segmentation.execute.run_block = do_nothing  # type: ignore[attr-defined]  # imported there, not exported


def measure_scheduling(
    volume: Path, engines: Sequence[str], counts: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """Rows of the engines for these numbers of blocks; medians.

    Parameters
    ----------
    volume : Path
        Any volume: nothing of it is read or written.
    engines : sequence of str
        Keys of ``ENGINES``.
    counts : sequence of int
        Blocks, each a full-size slice.
    repeats : int
        Of up to a thousand blocks; more are computed once.
    """
    plans = [virtual_plan(volume, blocks) for blocks in counts]
    graphs = [measure_graph(plan) for plan in plans]
    rows = []
    for name, cluster in map(ENGINES.__getitem__, engines):
        with _idle_blocks(), start_engine(cluster, ignore) as engine:
            if isinstance(cluster, LocalCluster):
                distributed.default_client().run(replace_work)
            time_blocks(engine, plans[0])  # what is imported and connected on the first call only
            for blocks, plan, graph in zip(counts, plans, graphs, strict=True):
                times = repeats if blocks <= REPEATED_BLOCKS else 1
                seconds = statistics.median(time_blocks(engine, plan) for _ in range(times))
                each = {f"{what}/block": total / blocks for what, total in graph.items()}
                rows.append(
                    {"engine": name, "blocks": blocks, "seconds": seconds, "ms/block": seconds * 1e3 / blocks, **each}
                )
    return rows


@contextmanager
def _idle_blocks() -> Iterator[None]:
    before = pipeline.segmentation.execute.run_block  # type: ignore[attr-defined]
    replace_work()
    try:
        yield
    finally:
        pipeline.segmentation.execute.run_block = before  # type: ignore[attr-defined]


def virtual_plan(volume: Path, blocks: int) -> Plan:
    """Plan of a volume with so many full-size slices, each a block, that does not exist."""
    plan = make_plan(RunConfig(volume=volume))
    shape, block = (blocks, *KESM_SLICE), (1, *KESM_SLICE)
    grids = Grids.of(shape, plan.recipe.tile, block)
    return replace(plan, grids=grids, block=block, region=Box.whole(shape), blocks=Box.whole(grids.blocks.cells))


def virtual_job(plan: Plan) -> Job:
    """A new attempt at a plan: Dask takes tasks of the same name for done."""
    return Job(plan.volume, plan.name, plan.recipe, plan.truth, uuid.uuid4().hex)


def time_blocks(engine: Engine, plan: Plan) -> float:
    """Seconds to build the graph of a plan and to compute it, as `segmentation.execute.execute` does."""
    start = time.perf_counter()
    with engine.listen(ignore) as notify:
        engine.compute(build_graph(plan, virtual_job(plan), notify, range(plan.blocks.size)))
    return time.perf_counter() - start


def measure_graph(plan: Plan) -> dict[str, int]:
    """Tasks of a graph, its bytes as it is sent to a scheduler, and the most that the client holds to make those."""
    tracemalloc.start()
    graph = collections_to_expr(build_graph(plan, virtual_job(plan), ignore, range(plan.blocks.size))).optimize()
    header, frames = serialize(to_serialize(graph), on_error="raise")
    _, held = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sent = len(repr(header)) + sum(len(frame) for frame in frames)
    return {"tasks": len(graph.__dask_graph__()), "graph bytes": sent, "client bytes": held}
