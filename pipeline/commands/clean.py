"""Command: three-dimensional cleaning of a mask."""

from __future__ import annotations

from shlex import quote
from typing import Annotated

import typer

from pipeline.commands.answer import answering, show, show_lines
from pipeline.commands.options import Json, Threads, VolumePath, parse_memory


def clean(
    volume: VolumePath,
    name: Annotated[str, typer.Option(help="The run whose mask is cleaned; it keeps its own.")],
    min_size: Annotated[
        int, typer.Option(metavar="VOXELS", min=1, help="Objects of fewer voxels are removed, wherever they lie.")
    ],
    out: Annotated[str | None, typer.Option(help="Label that is made; default: NAME-clean.")] = None,
    max_hole: Annotated[
        int | None,
        typer.Option(metavar="VOXELS", min=1, help="Closed holes of at most so many voxels are filled; default none."),
    ] = None,
    connectivity: Annotated[int, typer.Option(help="Neighbours of a voxel of an object: 6, 18 or 26.")] = 26,
    hole_connectivity: Annotated[int, typer.Option(help="Neighbours of a voxel of a hole: 6, 18 or 26.")] = 6,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out slices that the run has not done whole; else they are refused.")
    ] = False,
    threads: Threads = None,
    memory: Annotated[str | None, typer.Option(help="Memory of the whole process, such as 4GB.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Make a label again that was cleaned before.")] = False,
    as_json: Json = False,
) -> None:
    """Remove small objects of a mask, and fill small holes, in three dimensions; the result is a label of its own."""
    with answering():
        from pipeline.machine import available_cpus
        from pipeline.objects.derived import Cleaning, slab_room
        from pipeline.objects.derived import clean as clean_mask
        from pipeline.segmentation.engine import ThreadRunner
        from pipeline.storage.tables import RunTables
        from pipeline.storage.volume import Volume
        from pipeline.terminal.meter import Meter

        cleaning = Cleaning(name, out or f"{name}-clean", min_size, max_hole, connectivity, hole_connectivity)
        opened, workers = Volume(volume), threads or available_cpus()
        room = slab_room(opened, workers, parse_memory(memory))
        with Meter("clean") as meter:
            cleaned = clean_mask(opened.path, cleaning, ThreadRunner(workers, meter), room, partial, replace)
        show(cleaned, as_json)
        if not as_json:
            for truth in [*RunTables(opened, name).truths(), *opened.truths()][:1]:
                show_lines(f"next: kesm validate {quote(str(volume))} --mask {cleaning.label} --truth {truth}")
