"""One run from start to end: prepare the store, execute the plan, keep who did what, say what was found."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.config import Cluster, RunConfig
from pipeline.confusion import Counts, scores
from pipeline.errors import ConfigError, ExistsError
from pipeline.execute import Client, Observer, Outcome, execute, ignore, start_engine
from pipeline.plan import Plan, make_plan
from pipeline.report import Summary, Tiles, summarise
from pipeline.segment import Column, Job
from pipeline.store import disk_errors
from pipeline.tables import RunTables, run_names, settle
from pipeline.volume import Volume, beside, locked, staging_folder

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
    job = Job(volume.path, plan.name, plan.recipe, plan.truth, uuid.uuid4().hex)
    with start_engine(cluster, observer, client) as engine, _claim(volume, job):
        tables = _prepare(volume, plan)
        ending = "stopped"
        try:
            outcome = execute(plan, job, tables, engine, observer)
            ending = "finished"
        finally:
            engine.close()
            tables.record_attempt(_attempt(plan, started, ending))
    return _summary(volume, plan, outcome, time.monotonic() - clock)


@contextmanager
def _claim(volume: Volume, job: Job) -> Iterator[None]:
    """Be the only process that works on a run; what an earlier attempt has staged is swept, and so is its licence."""
    lock = beside(volume.path, f"{job.name}.lock")
    with (
        locked(lock, f"{volume.path}: run {job.name!r} is being worked on by another process"),
        staging_folder(volume.path, job.staging.parent.name),
        disk_errors(volume.path),
    ):
        job.staging.mkdir()
        yield


def _prepare(volume: Volume, plan: Plan) -> RunTables:
    """Create mask and tables of a run, unless they are there; the run exists once its recipe is written, at the end.

    What was planned is looked at once more: since then another process may have made a run or label of this name.
    """
    with volume.lock(), disk_errors(volume.path):
        if plan.name not in run_names(volume):
            if plan.name in volume.labels():
                raise ConfigError(f"name: {plan.name!r} is a label of {volume.path} already; choose another --name")
            _create(volume, plan)
        elif plan.name not in volume.labels():  # its mask was removed by hand: the tables say which shards are lost
            shutil.rmtree(volume.path / "labels" / plan.name, ignore_errors=True)
            volume.create_mask(plan.name)
        settle(volume)
        tables = RunTables(volume, plan.name)
        if (tables.recipe, tables.block) != (plan.recipe.document(), plan.block):
            raise ExistsError(f"{volume.path}: run {plan.name!r} was changed by another process meanwhile; run again")
        if plan.truth is not None:
            tables.create_truth(plan.truth)
        volume.publish_label(plan.name)
    return tables


def _create(volume: Volume, plan: Plan) -> None:
    """Create a run whole, or leave nothing of it."""
    parts = [volume.path / folder / plan.name for folder in ("labels", "tiles", "runs")]
    try:
        for part in parts:  # of a process that died here
            shutil.rmtree(part, ignore_errors=True)
        volume.create_mask(plan.name)
        RunTables.create(volume, plan.name, plan.recipe.document(), plan.block)
    except BaseException:
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
            with suppress(OSError):  # the folder around it, if it has nothing else
                part.parent.rmdir()
        raise


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
        "packages": {name: _version(name) for name in RECORDED_PACKAGES} | {"python": platform.python_version()},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder of sources
        return "not installed"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run under numbers that have no name
        return str(os.getuid())
