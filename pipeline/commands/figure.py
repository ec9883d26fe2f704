"""Command: pictures of a volume and its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.answer import EXIT_PARTIAL, answering, say, show_json, show_lines
from pipeline.commands.options import Json, LatestRun, OnlyTruth, Region, VolumePath, refuse_beside, region_box

Kind = Annotated[
    str, typer.Argument(metavar="KIND", help="overview, histogram, try-all, overlay, profile, map, curves or worst.")
]
Slice = Annotated[
    int | None,
    typer.Option("--slice", metavar="Z", help="One slice; pictures show the middle one of those that they can."),
]
At = Annotated[str | None, typer.Option(metavar="Z,Y,X", help="The tile at a voxel.")]
Level = Annotated[int | None, typer.Option(min=0, help="Level of the pyramid; default: as fine as shown.")]
Metric = Annotated[
    str | None,
    typer.Option(help="map, worst: a score, such as mcc or f1; map also: level, vessel, or focus and the like."),
]
PaletteName = Annotated[str | None, typer.Option(help="Colours of right and wrong: article or colour-blind.")]
Colours = Annotated[str | None, typer.Option(metavar="tp=RRGGBB,...", help="Other colours of tp, fp, fn and tn.")]
Alpha = Annotated[float | None, typer.Option(help="Weight of the image under the colours; default 0.5.")]
Out = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A .png, .svg or .pdf file; default: VOLUME-KIND.png, here.")
]


def figure(
    kind: Kind,
    volume: VolumePath,
    name: LatestRun = None,
    truth: OnlyTruth = None,
    region: Region = None,
    slice_: Slice = None,
    at: At = None,
    level: Level = None,
    metric: Metric = None,
    palette: PaletteName = None,
    colours: Colours = None,
    alpha: Alpha = None,
    dpi: Annotated[int, typer.Option(help="Pixels an inch.")] = 200,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Draw a figure of a volume and its runs."""
    with answering():
        from pipeline import figures
        from pipeline.storage.volume import Volume
        from pipeline.views.overlay import find_palette, read_colours
        from pipeline.views.view import parse_at

        taken = figures.find_kind(kind).options
        given = {"truth": truth, "at": at, "level": level, "metric": metric, "palette": palette, "colours": colours,
                 "alpha": alpha}  # fmt: skip
        useless = {f"--{key}": value is not None for key, value in given.items() if key not in taken}
        refuse_beside(useless, f"{kind} has no use for it")
        file = out or Path(f"{volume.resolve().stem}-{kind}.png")
        ending = figures.format_of(file)
        chosen = find_palette(palette or "article")
        style = figures.Style(
            chosen if colours is None else read_colours(colours, chosen), 0.5 if alpha is None else alpha, dpi
        )
        opened, place = Volume(volume), None if at is None else parse_at(at)
        box = region_box(region, opened)
        request = figures.Request(name, truth, box, slice_, place, level, metric or "mcc")
        drawn, subject = figures.draw_subject(kind, opened, request, style)
        figures.save(drawn, file)
        if as_json:
            about = {"kind": kind, "volume": str(opened.path), "name": subject.name, "truth": subject.truth}
            show_json({"schema": 1, **about, "file": str(file), "format": ending, "bytes": file.stat().st_size})
        else:
            show_lines(f"wrote {file}")
        for where, reason in subject.damage:
            say(f"not read, and not shown: {where}: {reason}")
        if subject.damage:
            raise typer.Exit(EXIT_PARTIAL)
