"""Command: pictures of a volume and its runs."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.answer import EXIT_PARTIAL, answering, say
from pipeline.commands.options import Json, Region, configure


def figure(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="overview, histogram, try-all, overlay, profile, map, curves or worst."),
    ],
    volume: Annotated[Path, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")],
    name: Annotated[str | None, typer.Option(help="The run; default: that which was worked on last.")] = None,
    truth: Annotated[str | None, typer.Option(help="The truth; default: the only one.")] = None,
    region: Region = None,
    slice_: Annotated[
        int | None,
        typer.Option("--slice", metavar="Z", help="One slice; pictures show the middle one of those that they can."),
    ] = None,
    at: Annotated[str | None, typer.Option(metavar="Z,Y,X", help="The tile at a voxel.")] = None,
    level: Annotated[int | None, typer.Option(min=0, help="Level of the pyramid; default: as fine as shown.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="map, worst: a score, such as mcc or f1; map also: level, vessel, or focus and the like."),
    ] = None,
    palette: Annotated[str | None, typer.Option(help="Colours of right and wrong: article or colour-blind.")] = None,
    colours: Annotated[
        str | None, typer.Option(metavar="tp=RRGGBB,...", help="Other colours of tp, fp, fn and tn.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the image under the colours; default 0.5.")] = None,
    dpi: Annotated[int, typer.Option(help="Pixels an inch.")] = 200,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .png, .svg or .pdf file; default: VOLUME-KIND.png, here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw a figure of a volume and its runs."""
    with answering():
        from pipeline import figures
        from pipeline.overlay import find_palette, read_colours
        from pipeline.view import parse_at
        from pipeline.volume import Volume

        taken = figures.find_kind(kind).options
        given = {"truth": truth, "at": at, "level": level, "metric": metric, "palette": palette, "colours": colours,
                 "alpha": alpha}  # fmt: skip
        refuse(kind, given, taken)
        file = out or Path(f"{volume.resolve().stem}-{kind}.png")
        ending = figures.format_of(file)
        chosen = find_palette(palette or "article")
        style = figures.Style(
            chosen if colours is None else read_colours(colours, chosen), 0.5 if alpha is None else alpha, dpi
        )
        opened = Volume(volume)
        box = None if region is None else configure(volume, {"region": region}, None, None).region
        request = figures.Request(
            name, truth, None if box is None else box.box(opened.shape), slice_,
            None if at is None else parse_at(at), level, metric or "mcc",
        )  # fmt: skip
        drawn, damage = figures.draw_readable(kind, opened, request, style)
        figures.save(drawn, file)
        if as_json:
            size = file.stat().st_size
            document = {"kind": kind, "volume": str(opened.path), "file": str(file), "format": ending, "bytes": size}
            print(json.dumps({"schema": 1, **document}))
        else:
            print(f"wrote {file}")
        for where, reason in damage:
            say(f"not read, and not shown: {where}: {reason}")
        if damage:
            raise typer.Exit(EXIT_PARTIAL)


def refuse(kind: str, given: dict[str, Any], taken: Collection[str]) -> None:
    """Refuse options that a kind of figure would ignore."""
    from pipeline.errors import ConfigError

    for option, value in given.items():
        if value is not None and option not in taken:
            raise ConfigError(f"--{option}: {kind} has no use for it; leave it out")
