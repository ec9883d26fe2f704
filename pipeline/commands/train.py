"""Command: train a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.answer import answering, show
from pipeline.commands.options import (
    Foreground,
    Json,
    Region,
    Set,
    Target,
    Threads,
    configure,
    run_options,
    with_truth,
)


def train(
    target: Target,
    out: Annotated[
        Path | None, typer.Option(help="File of the model, such as vessels.skops; default: that of the configuration.")
    ] = None,
    kind: Annotated[str, typer.Option(help="What is trained: forest or boosting.")] = "forest",
    seed: Annotated[int, typer.Option(min=0, help="The same one gives the same model.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a model that is there.")] = False,
    truth: Annotated[str | None, typer.Option(help="Label to learn from; default: the only truth.")] = None,
    region: Region = None,
    threads: Threads = None,
    foreground: Foreground = None,
    assignments: Set = None,
    as_json: Json = False,
) -> None:
    """Train a classifier on the annotated tiles, and score it on some that are held out."""
    with answering():
        options = run_options(truth, None, region, threads, None, foreground)
        config = with_truth(configure(target, options, None, assignments))
        from pipeline.machine import available_cpus
        from pipeline.methods.train import make_lesson
        from pipeline.methods.train import train as train_classifier
        from pipeline.segmentation.engine import ThreadRunner
        from pipeline.terminal.meter import Meter

        lesson, workers = make_lesson(config, out, kind, seed, replace), threads or available_cpus()
        with Meter("train") as meter:
            trained = train_classifier(config, lesson, ThreadRunner(workers, meter), workers)
        show(trained, as_json)
