"""Command: what a volume holds."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipeline.commands.answer import answering
from pipeline.commands.options import ExcludeFlagged, Json

if TYPE_CHECKING:
    from pipeline.report import Summary

WATCH_EVERY_S = 2.0

Description = tuple[dict[str, Any], "list[Summary]"]


def status(
    volume: Annotated[Path, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")],
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Look again every two seconds, until Ctrl-C (which ends it with exit code 0)."),
    ] = False,
    run_name: Annotated[
        str | None, typer.Option("--provenance", metavar="NAME", help="Print what made the mask of this run instead.")
    ] = None,
    qc: Annotated[
        bool, typer.Option("--qc", help="Print which slices and tiles are unlike the others instead, of each run.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="With --qc: of this run alone.")] = None,
    undefined: Annotated[
        str, typer.Option(help="A score that is 0 / 0: article (1 if all is right, else the lowest), zero or nan.")
    ] = "article",
    exclude_flagged: ExcludeFlagged = False,
    as_json: Json = False,
) -> None:
    """Say what a volume holds, how far each of its runs is, and who is working on it."""
    with answering(), suppress(KeyboardInterrupt) if watch else nullcontext():
        check_options({"--watch": watch, "--provenance": run_name is not None, "--qc": qc})
        if name is not None and not qc:
            refuse(f"--name: got {name}, which is only for --qc; a run's provenance is --provenance {name}")
        if undefined != "article" or exclude_flagged:
            check_options({"--provenance": run_name is not None, "--qc": qc, "--undefined, --exclude-flagged": True})
        if qc:
            show_inspection(volume, name, as_json)
        elif run_name is not None:
            show_provenance(volume, run_name, as_json)
        elif watch:
            watch_status(volume, undefined, exclude_flagged, as_json)
        else:
            document, summaries = look(volume, undefined, exclude_flagged)
            from pipeline.terminal import show_status

            if as_json:
                print(json.dumps(document))
            else:
                show_status(document, summaries)


def look(volume: Path, undefined: str, exclude_flagged: bool) -> Description:
    """What a volume holds now, opened anew."""
    from pipeline.confusion import parse_undefined
    from pipeline.flags import FLAG_NAMES, flag_of
    from pipeline.report import describe
    from pipeline.volume import Volume

    exclude = flag_of(FLAG_NAMES if exclude_flagged else ())
    return describe(Volume(volume), parse_undefined(undefined), exclude)


def show_inspection(volume: Path, name: str | None, as_json: bool) -> None:
    """Print what quality control says of runs."""
    from pipeline.inspection import inspect
    from pipeline.terminal import show_page
    from pipeline.volume import Volume

    found = inspect(Volume(volume), name)
    if as_json:
        print(json.dumps({"schema": 1, "volume": str(volume), "runs": [run.document() for run in found]}))
    else:
        show_page("\n".join(line for run in found for line in run.lines()) or "no runs yet")


def show_provenance(volume: Path, run_name: str, as_json: bool) -> None:
    """Print what made the mask of a run."""
    from pipeline.provenance import page, provenance
    from pipeline.terminal import show_page
    from pipeline.volume import Volume

    document = provenance(Volume(volume), run_name)
    if as_json:
        print(json.dumps(document))
    else:
        show_page(page(document))


def watch_status(volume: Path, undefined: str, exclude_flagged: bool, as_json: bool) -> NoReturn:
    """Show a volume's status again and again until a signal comes; as JSON, an object a line."""
    from pipeline.terminal import StatusBoard

    with nullcontext() if as_json else StatusBoard() as board:
        while True:
            document, summaries = look(volume, undefined, exclude_flagged)
            if board is None:
                print(json.dumps(document), flush=True)
            else:
                board.show(document, summaries)
            time.sleep(WATCH_EVERY_S)


def check_options(given: dict[str, bool]) -> None:
    """Refuse options that do not go with each other."""
    words: Sequence[str] = [option for option, there in given.items() if there]
    if len(words) > 1:
        reason = ", which does not change" if "--watch" in words and "--provenance" in words else ""
        refuse(f"{words[0]}: not with {words[1]}{reason}; leave one of them out")


def refuse(message: str) -> NoReturn:
    """End with a message about the options."""
    from pipeline.errors import ConfigError

    raise ConfigError(message)
