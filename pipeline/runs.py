"""One run from start to end: prepare the store, execute the plan, keep who did what, say what was found."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from pipeline.config import Cluster, RunConfig
from pipeline.confusion import Counts, scores
from pipeline.execute import Client, Observer, Outcome, execute, ignore, start_engine
from pipeline.plan import Plan, make_plan
from pipeline.report import Summary, Tiles, summarise
from pipeline.segment import Column
from pipeline.store import disk_errors
from pipeline.tables import RunTables, run_names
from pipeline.volume import Volume, beside, locked

RECORDED_PACKAGES = ("kesm-pipeline", "dask", "numba", "numpy", "scipy", "zarr", "zarrs")


def run(config: RunConfig, observer: Observer = ignore, client: Client | None = None) -> Summary:
    """Do everything of a configuration that is not done, and sum the result.

    Parameters
    ----------
    config : RunConfig
    observer : callable, optional
        Called with every event, from any thread.
    client : distributed.Client, optional
        Used in place of the configuration's cluster, and left open.

    Raises
    ------
    PipelineError
        If the run cannot start or go on; what is done is kept. Blocks that failed are in the summary instead.
    """
    return run_plan(make_plan(config), config.cluster, observer, client)


def run_plan(plan: Plan, cluster: Cluster, observer: Observer, client: Client | None = None) -> Summary:
    """Carry out a plan; see `run`."""
    started, clock = datetime.now(UTC), time.monotonic()
    volume = Volume(plan.volume)
    with start_engine(cluster, observer, client) as engine, _claim(volume, plan.name):
        tables = _prepare(volume, plan)
        ending = "stopped"
        try:
            outcome = execute(plan, tables, engine, observer)
            ending = "finished"
        finally:
            engine.close()
            tables.record_attempt(_attempt(plan, started, ending))
    return _summary(volume, plan, outcome, time.monotonic() - clock)


@contextmanager
def _claim(volume: Volume, name: str) -> Iterator[None]:
    """Be the only process that works on a run, and leave no staging behind, its own or a dead one's."""
    staging = beside(volume.path, "staging") / name
    lock = beside(volume.path, f"{name}.lock")
    with locked(lock, f"{volume.path}: run {name!r} is being worked on by another process"):
        shutil.rmtree(staging, ignore_errors=True)
        try:
            yield
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if staging.parent.is_dir() and not any(staging.parent.iterdir()):
                staging.parent.rmdir()


def _prepare(volume: Volume, plan: Plan) -> RunTables:
    """Create mask and tables of a run, unless they are there; the run exists once its recipe is written, at the end."""
    with volume.lock(), disk_errors(volume.path):
        if plan.name not in run_names(volume):
            parts = [volume.path / folder / plan.name for folder in ("labels", "tiles", "runs")]
            try:
                for part in parts:  # of a process that died here
                    shutil.rmtree(part, ignore_errors=True)
                volume.create_mask(plan.name)
                RunTables.create(volume, plan.name, plan.recipe.document(), plan.block)
            except BaseException:
                for part in parts:
                    shutil.rmtree(part, ignore_errors=True)
                raise
        tables = RunTables(volume, plan.name)
        if plan.truth is not None:
            tables.create_truth(plan.truth)
        volume.publish_label(plan.name)
    return tables


def _summary(volume: Volume, plan: Plan, outcome: Outcome, elapsed_s: float) -> Summary:
    """The result: sums by the reduction, levels and failures from the tables."""
    total = [int(value) for value in outcome.totals]
    stored = summarise(volume, plan.name, plan.truth, plan.region)
    counts = Counts(*total[: Column.VOXELS]) if plan.truth else None
    return replace(
        stored,
        region=None if plan.whole else plan.region,
        voxels=total[Column.VOXELS],
        annotated=counts.total if counts else 0,
        counts=counts,
        scores=scores(counts) if counts else None,
        macro=outcome.macro if plan.truth else None,
        tiles=Tiles(
            total=stored.tiles.total,
            done=total[Column.DONE],
            reused=total[Column.REUSED],
            failed=total[Column.FAILED],
            pending=0,
            absent=total[Column.ABSENT],
        ),
        elapsed_s=round(elapsed_s, 3),
    )


def _attempt(plan: Plan, started: datetime, ending: str) -> dict[str, Any]:
    """Who ran what, where, with which programs."""
    return {
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "ending": ending,
        "host": platform.node(),
        "user": _user(),
        "command": sys.argv,
        "region": str(plan.region),
        "truth": plan.truth,
        "packages": {name: version(name) for name in RECORDED_PACKAGES} | {"python": platform.python_version()},
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run under numbers that have no name
        return str(os.getuid())
