"""Command: what a run found of each tile as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.answer import EXIT_PARTIAL, answering, say, show_json, show_lines
from pipeline.commands.options import Json, LatestRun, Region, UndefinedRule, VolumePath, region_box


def tables(
    volume: VolumePath,
    out: Annotated[Path, typer.Option(help="File that is written: it ends in .csv or .parquet.")],
    name: LatestRun = None,
    truth: Annotated[
        str | None, typer.Option(help="Counts and scores against this one; default: the only one that there are.")
    ] = None,
    region: Region = None,
    undefined: UndefinedRule = "article",
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the file if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write one row for each tile: place, status, level, vessel, counts, scores and quality."""
    with answering():
        from pipeline.findings.sheet import Topic, check_sheet, write_sheet
        from pipeline.kernels.confusion import parse_undefined
        from pipeline.storage.volume import Volume

        check_sheet(out, replace)
        opened, rule = Volume(volume), parse_undefined(undefined)
        topic = Topic(name, truth, region_box(region, opened), rule)
        sheet = write_sheet(opened, topic, out, replace)
        if as_json:
            show_json(sheet.document())
        else:
            show_lines(str(sheet))
        for line in sheet.gaps():
            say(line)
        if sheet.failures:
            raise typer.Exit(EXIT_PARTIAL)
