"""Command: an image or label as files for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.answer import answering
from pipeline.commands.options import Json, Region, Threads, configure


def export(
    volume: Annotated[Path, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")],
    out: Annotated[Path, typer.Option(help="Folder of slices, or a file that ends in .ome.tif for all of them.")],
    label: Annotated[str | None, typer.Option(help="Truth, mask, or what was derived from one.")] = None,
    image: Annotated[bool, typer.Option("--image", help="The image, instead of a label.")] = False,
    region: Region = None,
    level: Annotated[int, typer.Option(min=0, help="Of the pyramid: each is half the size of the one before.")] = 0,
    form: Annotated[
        str | None,
        typer.Option("--format", help="tiff-stack, png or ome-tiff; default by --out: ome-tiff, or a tiff-stack."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out slices that are not there, or not done; else they are refused.")
    ] = False,
    threads: Threads = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite an export that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write the image or a label as TIFF or PNG slices, or as one OME-TIFF."""
    with answering():
        from pipeline.errors import ConfigError
        from pipeline.export import Target, Wanted, choose_form
        from pipeline.export import export as export_slices
        from pipeline.plan import available_cpus
        from pipeline.terminal import Meter
        from pipeline.volume import Volume

        if (label is None) != image:
            raise ConfigError(f"--label, --image: got {'both' if image else 'neither'}, expected one of them")
        target, opened = Target(out, choose_form(out, form), replace), Volume(volume)
        chosen = None if region is None else configure(volume, {"region": region}, None, None).region
        wanted = Wanted(label, None if chosen is None else chosen.box(opened.shape), level, partial)
        with Meter("export") as meter:
            exported = export_slices(opened, wanted, target, threads or available_cpus(), meter)
        if as_json:
            print(json.dumps(exported.document()))
        else:
            for line in exported.lines():
                print(line)
