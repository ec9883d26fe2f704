"""Command: judge every method."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.answer import EXIT_PARTIAL, answering, say, show_json
from pipeline.commands.options import (
    Foreground,
    Json,
    Memory,
    Name,
    OnlyTruth,
    Region,
    Scheduler,
    Set,
    Target,
    Threads,
    configure,
    refuse_together,
    run_options,
    with_truth,
)

if TYPE_CHECKING:
    from pipeline.methods.choice import Choice

Methods = Annotated[
    str | None,
    typer.Option(
        help="Threshold methods, such as otsu,yen; default all that a histogram decides. A local one, such as "
        "sauvola, costs a run."
    ),
]
Scopes = Annotated[
    str | None,
    typer.Option(help="What shares a level: tile,slice,volume; default these. With smooth, each method costs a run."),
]
Filters = Annotated[
    list[str] | None,
    typer.Option(help="A filter: none, median:5, median:3,3,3 or gaussian:1.5; may repeat, and each costs a run."),
]
Recipes = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="A configuration whose recipe is judged beside them, and nothing else of it; may repeat, and each costs "
        "a run.",
    ),
]


def compare(
    target: Target,
    methods: Methods = None,
    scopes: Scopes = None,
    denoise: Filters = None,
    recipe: Recipes = None,
    by: Annotated[str, typer.Option(help="Score that ranks: mcc or f1.")] = "mcc",
    folds: Annotated[int | None, typer.Option(help="Parts of the slices that are held out in turn.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write the winner as a configuration for `kesm run`.")] = None,
    truth: OnlyTruth = None,
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
        refuse_together({"--csv": as_csv, "--json": as_json})
        options = run_options(truth, name, region, threads, memory, foreground)
        config = with_truth(configure(target, options, scheduler, assignments))
        from pipeline.methods.choice import check_write, write_recipe
        from pipeline.methods.choice import compare as compare_methods
        from pipeline.methods.contest import Words, parse_contest
        from pipeline.terminal.meter import Meter

        if write is not None:
            check_write(write, [target, *(recipe or [])])
        asked = Words(words(methods), words(scopes), denoise or [], recipe or [], by, folds)
        contest = parse_contest(config, asked)
        scored = not config.exclude_flagged
        choice = compare_methods(config, contest, lambda run_name: Meter(f"run {run_name}", scored=scored))
        if write is not None:
            write_recipe(choice, write)
        _show(choice, as_csv, as_json)
        if write is not None:
            say(f"wrote {write}; next: kesm run {quote(str(write))}")
        if choice.partial:
            raise typer.Exit(EXIT_PARTIAL)


def _show(choice: Choice, as_csv: bool, as_json: bool) -> None:
    """Print a ranking in one of its forms."""
    from pipeline.terminal.results import show_choice

    if as_json:
        show_json(choice.document())
    elif as_csv:
        print(choice.table(), end="")
    else:
        show_choice(choice)


def words(text: str | None) -> list[str] | None:
    """``otsu, yen`` as its words."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]
