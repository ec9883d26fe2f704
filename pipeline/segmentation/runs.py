"""One run from start to end: prepare the store, execute the plan, say what was found."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from pipeline.errors import ExistsError, LockedError
from pipeline.events import Observer, ignore
from pipeline.findings.summary import Seam, Summary, Tiles, summarise
from pipeline.kernels.confusion import Counts, scores
from pipeline.segmentation.attempt import Attempt
from pipeline.segmentation.engine import Client, Engine, start_engine
from pipeline.segmentation.execute import Outcome, execute, finished, pooled_counts
from pipeline.segmentation.job import Job
from pipeline.segmentation.plan import Plan, check_free, make_plan
from pipeline.segmentation.record import Column
from pipeline.settings.config import Cluster, RunConfig
from pipeline.settings.recipe import HistogramThreshold
from pipeline.storage.disk import disk_errors
from pipeline.storage.extent import complete_resize
from pipeline.storage.painting import Painting, prepare_painting, remove_painting
from pipeline.storage.store import sweep_partial
from pipeline.storage.tables import RunTables, run_lock, run_names
from pipeline.storage.volume import Volume, beside, staging_folder


def run(config: RunConfig, observer: Observer = ignore, client: Client | None = None, replace: bool = False) -> Summary:
    """Do everything of a configuration that is not done, and sum the result.

    Parameters
    ----------
    config : RunConfig
    observer : callable, optional
        Called with every event, from any thread.
    client : distributed.Client, optional
        Used in place of the configuration's cluster, and left open.
    replace : bool
        Whether a run of this name that was made with another recipe is thrown away.

    Raises
    ------
    PipelineError
        If the run cannot start or go on; what is done is kept. Blocks that failed are in the summary instead.
    """
    return run_plan(make_plan(config, replace=replace), config.cluster, observer, client)


def run_plan(plan: Plan, cluster: Cluster, observer: Observer, client: Client | None = None) -> Summary:
    """Carry out a plan; see `run`. One of which nothing is left is answered from the tables, and leaves no trace."""
    clock = time.monotonic()
    volume = Volume(plan.volume)
    outcome = _finished(volume, plan, observer)
    if outcome is not None:
        return _summary(volume, plan, outcome, time.monotonic() - clock)
    job = Job(volume.path, plan.name, plan.recipe, plan.truth, uuid.uuid4().hex, plan.confusion)
    with start_engine(cluster, observer, client) as engine, _claim(volume, job):
        tables = _prepare(volume, plan)
        with Attempt(volume, tables, plan, observer) as attempt:
            try:
                _find_level(plan, tables, engine, attempt)
                outcome = execute(plan, job, tables, engine, attempt)
            finally:
                engine.close()
            summary = _summary(volume, plan, outcome, time.monotonic() - clock)
            attempt.finish(summary)
    return summary


def _find_level(plan: Plan, tables: RunTables, engine: Engine, observer: Observer) -> None:
    """Find the level of the whole volume, unless it is known: another process may have found it since the plan."""
    threshold = plan.recipe.threshold
    if not isinstance(threshold, HistogramThreshold) or threshold.scope != "volume":
        return
    if (plan.refit or tables.level is None) and (counts := pooled_counts(plan, engine, observer)).any():
        tables.freeze(threshold.level(counts))


def _finished(volume: Volume, plan: Plan, observer: Observer) -> Outcome | None:
    """Outcome of a run that has nothing left to do; None if it has, or does not exist as planned.

    Nor is one finished that has something staged: another process works on it, or has died and is to be swept.
    """
    if plan.replaces or plan.pools or plan.name not in run_names(volume) or plan.name not in volume.labels():
        return None
    if (beside(volume.path, "staging") / f"run-{plan.name}").exists():
        return None
    tables = RunTables(volume, plan.name)
    if (tables.recipe, tables.block) != (plan.recipe.document(), plan.block):
        return None
    painting = Painting.of(volume, tables)
    if plan.confusion and (painting is None or painting.truth != plan.truth):
        return None
    return finished(plan, tables, observer) if plan.truth in (None, *tables.truths()) else None


@contextmanager
def _claim(volume: Volume, job: Job) -> Iterator[None]:
    """Be the only process that works on a run; what an earlier attempt has staged is swept, and so is its licence."""
    with (
        run_lock(volume, job.name),
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
        if plan.replaces and plan.name in run_names(volume):
            _remove(volume, plan.name)
        if plan.name not in run_names(volume):
            check_free(volume, plan.name)
            _create(volume, plan)
        elif plan.name not in volume.labels():  # its mask was removed by hand: the tables say which shards are lost
            shutil.rmtree(volume.path / "labels" / plan.name, ignore_errors=True)
            volume.create_mask(plan.name)
        complete_resize(volume)
        tables = RunTables(volume, plan.name)
        if (tables.recipe, tables.block) != (plan.recipe.document(), plan.block):
            raise ExistsError(f"{volume.path}: run {plan.name!r} was changed by another process meanwhile; run again")
        for folder in ("tiles", "runs"):
            sweep_partial(volume.path / folder / plan.name)
        for left in (volume.path / "labels" / plan.name).glob("*.partial"):
            left.unlink(missing_ok=True)
        _sweep_staging(volume, plan.name)
        if plan.truth is not None:
            tables.create_truth(plan.truth)
        prepare_painting(volume, tables, plan.truth if plan.confusion else None)
        volume.publish_label(plan.name)
    return tables


def _sweep_staging(volume: Volume, name: str) -> None:
    """Remove what other runs that died have staged; one that is alive holds its lock."""
    for left in beside(volume.path, "staging").glob("run-*"):
        other = left.name.removeprefix("run-")
        if other != name:
            with suppress(LockedError), run_lock(volume, other):
                shutil.rmtree(left, ignore_errors=True)


def _create(volume: Volume, plan: Plan) -> None:
    """Create a run whole, or leave nothing of it."""
    history = volume.path / "runs" / plan.name
    parts = [volume.path / "labels" / plan.name, volume.path / "tiles" / plan.name]
    try:
        for part in (*parts, history / "failures"):  # of a process that died here
            shutil.rmtree(part, ignore_errors=True)
        volume.create_mask(plan.name)
        RunTables.create(volume, plan.name, plan.recipe.document(), plan.block)
    except BaseException:
        for part in parts if any(history.glob("attempts/[0-9]*")) else [*parts, history]:
            shutil.rmtree(part, ignore_errors=True)
            with suppress(OSError):  # the folder around it, if it has nothing else
                part.parent.rmdir()
        raise


def _remove(volume: Volume, name: str) -> None:
    """Remove a run but for its history; killed anywhere, it leaves the old run, to be made again, or none."""
    remove_painting(volume, name)
    volume.withdraw_label(name)
    (volume.path / "runs" / name / "zarr.json").unlink()
    for part in (volume.path / "tiles" / name, volume.path / "labels" / name, volume.path / "runs" / name / "failures"):
        shutil.rmtree(part)


def _summary(volume: Volume, plan: Plan, outcome: Outcome, elapsed_s: float) -> Summary:
    """The result: sums by the reduction, levels and failures from the tables, and scores where tiles are left out."""
    total = [int(value) for value in outcome.totals]
    stored = summarise(volume, plan.name, plan.truth, plan.region, plan.undefined, plan.excluded)
    if plan.truth and not plan.excluded:
        counts = Counts(*total[: Column.VOXELS])
        scored = scores(counts, plan.undefined)
        stored = replace(stored, annotated=counts.total, counts=counts, scores=scored, macro=outcome.macro)
    return replace(
        stored,
        region=None if plan.whole else plan.region,
        voxels=total[Column.VOXELS],
        seam=Seam(*total[Column.BORDER : Column.INSIDE_CHANGES + 1]),
        tiles=Tiles(
            total=stored.tiles.total,
            done=total[Column.DONE],
            reused=total[Column.REUSED],
            failed=total[Column.FAILED],
            pending=0,
            absent=total[Column.ABSENT],
            undecided=stored.tiles.undecided,
            no_signal=total[Column.SILENT],
        ),
        elapsed_s=round(elapsed_s, 3),
    )
