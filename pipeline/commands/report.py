"""Command: reports for people who look at a run in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.answer import EXIT_PARTIAL, answering, say, show_json, show_lines
from pipeline.commands.options import Json


def report(
    volumes: Annotated[list[Path], typer.Argument(metavar="VOLUME...", help="OME-Zarr volumes.")],
    names: Annotated[
        list[str] | None, typer.Option("--name", metavar="RUN", help="A run; may repeat. Default: all of them.")
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR|FILE.html", help="Where the files go; of one report, it may be a file.")
    ] = Path("kesm-report"),
    as_json: Json = False,
) -> None:
    """Write one HTML file for each run, which needs no network, and of several an index that compares them."""
    with answering():
        from pipeline.webpage.dossier import write_reports

        written = write_reports(
            volumes, names or [], out, lambda number, total, topic: say(f"report: {number}/{total}, {topic.name}")
        )
        gaps = written.gaps()
        for line in gaps:
            say(line)
        if as_json:
            show_json(written.document())
        else:
            index = [] if written.index is None else [f"{written.index} (all of them)"]
            show_lines(*(str(one.file) for one in written.reports), *index)
        if gaps:
            raise typer.Exit(EXIT_PARTIAL)
