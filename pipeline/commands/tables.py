"""Command: what a run found of each tile as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.answer import EXIT_PARTIAL, answering, say
from pipeline.commands.options import Json, Region, Truth, configure


def tables(
    volume: Annotated[Path, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")],
    out: Annotated[Path, typer.Option(help="File that is written: it ends in .csv or .parquet.")],
    name: Annotated[str | None, typer.Option(help="The run; default: that which was worked on last.")] = None,
    truth: Truth = None,
    region: Region = None,
    undefined: Annotated[
        str, typer.Option(help="A score that is 0 / 0: article (1 if all is right, else the lowest), zero or nan.")
    ] = "article",
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the file if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write one row for each tile: place, status, level, vessel, counts, scores and quality."""
    with answering():
        from pipeline.confusion import parse_undefined
        from pipeline.sheet import Topic, check_sheet, write_sheet
        from pipeline.volume import Volume

        check_sheet(out, replace)
        opened, rule = Volume(volume), parse_undefined(undefined)
        chosen = None if region is None else configure(volume, {"region": region}, None, None).region
        topic = Topic(name, truth, None if chosen is None else chosen.box(opened.shape), rule)
        sheet = write_sheet(opened, topic, out, replace)
        if as_json:
            print(json.dumps(sheet.document()))
        else:
            print(sheet)
        for line in sheet.gaps():
            say(line)
        if sheet.failures:
            raise typer.Exit(EXIT_PARTIAL)
