"""Command: what a volume holds."""

from __future__ import annotations

import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipeline.commands.answer import answering, show_json, show_lines
from pipeline.commands.options import ExcludeFlagged, Json, UndefinedRule, VolumePath, refuse_beside, refuse_together

if TYPE_CHECKING:
    from pipeline.findings.summary import Summary

WATCH_EVERY_S = 2.0

Description = tuple[dict[str, Any], "list[Summary]"]


def status(
    volume: VolumePath,
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
    undefined: UndefinedRule = "article",
    exclude_flagged: ExcludeFlagged = False,
    as_json: Json = False,
) -> None:
    """Say what a volume holds, how far each of its runs is, and who is working on it."""
    with answering(), suppress(KeyboardInterrupt) if watch else nullcontext():
        instead = {"--provenance": run_name is not None, "--qc": qc}
        refuse_together({"--watch": watch} | instead)
        if not qc:
            refuse_beside({"--name": name is not None}, "only with --qc; a run's provenance is --provenance NAME")
        if any(instead.values()):
            of_scores = {"--undefined": undefined != "article", "--exclude-flagged": exclude_flagged}
            refuse_beside(of_scores, f"not with {' and '.join(key for key in instead if instead[key])}")
        if qc:
            show_inspection(volume, name, as_json)
        elif run_name is not None:
            show_provenance(volume, run_name, as_json)
        elif watch:
            watch_status(volume, undefined, exclude_flagged, as_json)
        else:
            document, summaries = look(volume, undefined, exclude_flagged)
            from pipeline.terminal.status import show_status

            if as_json:
                show_json(document)
            else:
                show_status(document, summaries)


def look(volume: Path, undefined: str, exclude_flagged: bool) -> Description:
    """What a volume holds now, opened anew."""
    from pipeline.findings.summary import describe
    from pipeline.kernels.confusion import parse_undefined
    from pipeline.kernels.flags import FLAG_NAMES, flag_of
    from pipeline.storage.volume import Volume

    exclude = flag_of(FLAG_NAMES if exclude_flagged else ())
    return describe(Volume(volume), parse_undefined(undefined), exclude)


def show_inspection(volume: Path, name: str | None, as_json: bool) -> None:
    """Print what quality control says of runs."""
    from pipeline.findings.inspection import inspect
    from pipeline.storage.volume import Volume

    opened = Volume(volume)
    found = inspect(opened, name)
    if as_json:
        show_json({"schema": 1, "volume": str(opened.path), "runs": [run.document() for run in found]})
    else:
        show_lines(*([line for run in found for line in run.lines()] or ["no runs yet"]))


def show_provenance(volume: Path, run_name: str, as_json: bool) -> None:
    """Print what made the mask of a run."""
    from pipeline.findings.provenance import page, provenance
    from pipeline.storage.volume import Volume

    document = provenance(Volume(volume), run_name)
    if as_json:
        show_json(document)
    else:
        show_lines(*page(document).splitlines())


def watch_status(volume: Path, undefined: str, exclude_flagged: bool, as_json: bool) -> NoReturn:
    """Show a volume's status again and again until a signal comes; as JSON, an object a line."""
    from pipeline.terminal.status import StatusBoard

    with nullcontext() if as_json else StatusBoard() as board:
        while True:
            document, summaries = look(volume, undefined, exclude_flagged)
            if board is None:
                show_json(document)
            else:
                board.show(document, summaries)
            time.sleep(WATCH_EVERY_S)
