"""Command: an image or label as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.answer import answering, show
from pipeline.commands.options import Json, Region, Threads, VolumePath, expect_one, region_box


def export(
    volume: VolumePath,
    out: Annotated[Path, typer.Option(help="Folder of slices, or a file that ends in .tif for all of them.")],
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
        from pipeline.machine import available_cpus
        from pipeline.storage.volume import Volume
        from pipeline.terminal.meter import Meter
        from pipeline.views.export import Target, Wanted, choose_form
        from pipeline.views.export import export as export_slices

        expect_one({"--label": label is not None, "--image": image})
        target, opened = Target(out, choose_form(out, form), replace), Volume(volume)
        wanted = Wanted(label, region_box(region, opened), level, partial)
        with Meter("export") as meter:
            exported = export_slices(opened, wanted, target, threads or available_cpus(), meter)
        show(exported, as_json)
