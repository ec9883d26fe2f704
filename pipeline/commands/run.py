"""Commands: do a run, or say what it would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from pipeline.commands.answer import EXIT_PARTIAL, Terminated, answering, say, show_json, show_lines
from pipeline.commands.options import (
    Confusion,
    ExcludeFlagged,
    Foreground,
    Json,
    Memory,
    Name,
    Region,
    Replace,
    Scheduler,
    Set,
    Target,
    Threads,
    Truth,
    configure,
    run_options,
)

if TYPE_CHECKING:
    from pipeline.segmentation.plan import Plan


def run(
    target: Target,
    truth: Truth = None,
    name: Name = None,
    region: Region = None,
    threads: Threads = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    foreground: Foreground = None,
    assignments: Set = None,
    exclude_flagged: ExcludeFlagged = False,
    confusion: Confusion = False,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Do everything of a run that is not done, and print its scores."""
    with answering():
        options = run_options(truth, name, region, threads, memory, foreground)
        options |= {"exclude_flagged": exclude_flagged or None, "confusion": confusion or None}
        config = configure(target, options, scheduler, assignments)
        from pipeline.segmentation.plan import make_plan
        from pipeline.segmentation.runs import run_plan
        from pipeline.storage.confusion_label import confusion_name
        from pipeline.terminal.meter import Meter
        from pipeline.terminal.results import show_summary

        plan = make_plan(config, replace=replace)
        try:
            scored = not config.exclude_flagged
            with Meter(f"run {plan.name}", total=plan.blocks.size, scored=scored) as meter:
                summary = run_plan(plan, config.cluster, meter)
        except (KeyboardInterrupt, Terminated):
            say(stopped(plan))
            raise
        if as_json:
            show_json(summary.document())
        else:
            labels = {"mask": plan.name} | ({"confusion": confusion_name(plan.name)} if plan.confusion else {})
            show_summary(summary)
            if summary.tiles.done:  # else there is nothing to see in them
                show_lines(*(f"{kind}: {plan.volume / 'labels' / label}" for kind, label in labels.items()))
        if summary.tiles.failed:
            raise typer.Exit(EXIT_PARTIAL)


def plan(
    target: Target,
    truth: Truth = None,
    name: Name = None,
    region: Region = None,
    threads: Threads = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    foreground: Foreground = None,
    assignments: Set = None,
    confusion: Confusion = False,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Say what a run would do; nothing is touched."""
    with answering():
        options = run_options(truth, name, region, threads, memory, foreground)
        config = configure(target, options | {"confusion": confusion or None}, scheduler, assignments)
        from pipeline.segmentation.plan import make_plan
        from pipeline.segmentation.remainder import look_ahead
        from pipeline.terminal.outlook import show_plan

        made = look_ahead(make_plan(config, replace=replace))
        if as_json:
            show_json(made.document())
        else:
            show_plan(made)


def stopped(plan: Plan) -> str:
    """What an interrupted run has done."""
    from pipeline.errors import PipelineError
    from pipeline.findings.summary import summarise
    from pipeline.storage.volume import Volume

    try:
        tiles = summarise(Volume(plan.volume), plan.name, plan.truth, plan.region).tiles
    except PipelineError:
        return "stopped before any block was done; give the same command to go on"
    return f"stopped: {tiles.done:,} of {tiles.total:,} tiles are done and kept; give the same command to go on"
