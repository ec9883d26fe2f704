"""Command: judge every method."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from pipeline.commands.answer import EXIT_PARTIAL, answering, say
from pipeline.commands.options import (
    Foreground,
    Json,
    Memory,
    Name,
    Region,
    Scheduler,
    Set,
    Target,
    Threads,
    Truth,
    configure,
    run_options,
)


def compare(
    target: Target,
    methods: Annotated[
        str,
        typer.Option(
            help="Threshold methods, such as otsu,yen; default all that a histogram decides. A local one, such as "
            "sauvola, costs a run."
        ),
    ] = "",
    scopes: Annotated[
        str,
        typer.Option(
            help="What shares a level: tile,slice,volume; default these. With smooth, each method costs a run."
        ),
    ] = "",
    denoise: Annotated[
        list[str] | None,
        typer.Option(help="A filter: none, median:5, median:3,3,3 or gaussian:1.5; may repeat, and each costs a run."),
    ] = None,
    recipe: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A configuration whose recipe is judged beside them, and nothing else of it; may repeat, and each "
            "costs a run.",
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="Score that ranks: mcc or f1.")] = "mcc",
    folds: Annotated[int | None, typer.Option(help="Parts of the slices that are held out in turn.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write the winner as a configuration for `kesm run`.")] = None,
    truth: Truth = None,
    name: Name = None,
    region: Region = None,
    threads: Threads = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    foreground: Foreground = None,
    assignments: Set = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the rows as CSV on stdout.")] = False,
    as_json: Json = False,
) -> None:
    """Judge threshold methods and recipes on the annotated tiles, and say which is best and how sure that is."""
    with answering():
        check_form(as_csv, as_json)
        options = run_options(truth, name, region, threads, memory, foreground)
        config = configure(target, options, scheduler, assignments)
        from pipeline.choice import check_place, write_recipe
        from pipeline.choice import compare as compare_methods
        from pipeline.contest import Words, parse_contest
        from pipeline.disk import disk_errors
        from pipeline.terminal import Meter, show_choice

        if write is not None:
            check_place(write, [target, *(recipe or [])])
        asked = Words(words(methods), words(scopes), denoise or [], recipe or [], by, folds)
        contest = parse_contest(config, asked)
        choice = compare_methods(config, contest, lambda run_name: Meter(f"run {run_name}"))
        if write is not None:
            with disk_errors(write):
                write_recipe(choice, write)
        if as_json:
            print(json.dumps(choice.document()))
        elif as_csv:
            print(choice.table(), end="")
        else:
            show_choice(choice)
        if write is not None:
            say(f"wrote {write}; next: kesm run {quote(str(write))}")
        if choice.partial:
            raise typer.Exit(EXIT_PARTIAL)


def check_form(as_csv: bool, as_json: bool) -> None:
    """Refuse two forms of one answer."""
    from pipeline.errors import ConfigError

    if as_csv and as_json:
        raise ConfigError("--csv, --json: got both, and stdout has room for one; leave one of them out")


def words(text: str) -> list[str]:
    """``otsu, yen`` as its words."""
    return [word.strip() for word in text.split(",") if word.strip()]
