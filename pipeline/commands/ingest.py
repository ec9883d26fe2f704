"""Command: image files to a volume."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.answer import answering, say, show_json, show_lines
from pipeline.commands.options import Json, Threads, refuse_beside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.images.stack import Page
    from pipeline.intake.ingest import Ingested


def ingest(
    slices: Annotated[list[str], typer.Argument(help="Image files, folders, or patterns in quotes.")],
    volume: Annotated[Path, typer.Option(help="The OME-Zarr volume that they go to.")],
    label: Annotated[str | None, typer.Option(help="They are an expert's truth of this name, not the image.")] = None,
    channel: Annotated[
        str | None, typer.Option(help="Of colour images: red, green, blue, luminance, or a number from 0.")
    ] = None,
    voxel_size: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Size of a voxel in micrometres; default: as the files state.")
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Add slices after the last one of the volume.")] = False,
    start_z: Annotated[int | None, typer.Option(min=0, help="Label: the slice that the first file is for.")] = None,
    vessel_above: Annotated[float | None, typer.Option(help="Label: values above this level are vessel.")] = None,
    unlabelled: Annotated[int | None, typer.Option(help="Label: the value of what nobody annotated.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Store image slices, or an expert's truth, as OME-Zarr."""
    with answering():
        from pipeline.errors import ConfigError
        from pipeline.images.stack import find_pages
        from pipeline.intake.ingest import ingest_image, ingest_label, ingest_threads
        from pipeline.intake.mapping import LabelOptions
        from pipeline.machine import available_cpus
        from pipeline.segmentation.engine import ThreadRunner
        from pipeline.terminal.meter import Meter

        size = parse_voxel_size(voxel_size)
        if label is None:
            of_labels = {"--start-z": start_z, "--vessel-above": vessel_above, "--unlabelled": unlabelled}
            refuse_beside({key: value is not None for key, value in of_labels.items()}, "only with --label NAME")
        else:
            refuse_beside({"--append": append, "--voxel-size": voxel_size is not None}, "only without --label")
        if vessel_above is not None and not isfinite(vessel_above):
            raise ConfigError(f"--vessel-above: got {vessel_above}, expected a grey level such as 127")
        pages = find_pages(slices, channel)
        each = pages[0].shape[0] * pages[0].shape[1] * (2 if pages[0].dtype == "uint16" else 1)
        workers = ingest_threads(pages[0], threads or available_cpus())
        if label is None and size is None and not volume.exists():
            say_flat(pages)
        with Meter(label or "image", unit_bytes=each) as meter:
            runner = ThreadRunner(workers, meter)
            if label is None:
                done = ingest_image(pages, volume, runner, size, append)
            else:
                done = ingest_label(pages, volume, runner, LabelOptions(label, start_z, vessel_above, unlabelled))
        show_ingested(done, as_json)


def parse_voxel_size(text: str | None) -> tuple[float, float, float] | None:
    """``1,0.7,0.6`` as three lengths in micrometres."""
    from pipeline.errors import ConfigError
    from pipeline.geometry import LARGEST_UM, SMALLEST_UM, is_voxel_side

    if text is None:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--voxel-size: got {text!r}, expected z,y,x in micrometres, such as 1,0.7,0.6") from error
    if not all(map(is_voxel_side, (z, y, x))):
        raise ConfigError(
            f"--voxel-size: got {text!r}, expected micrometres, each from {SMALLEST_UM:g} to {LARGEST_UM:,.0f}"
        )
    return z, y, x


def say_flat(pages: Sequence[Page]) -> None:
    """Say that files state the size of a voxel in the plane only."""
    from pipeline.images.calibration import flat_note

    note = flat_note(pages, "--voxel-size Z,Y,X")
    if note is not None:
        say(f"note: {note}")


def show_ingested(done: Ingested, as_json: bool) -> None:
    """Print what was written where."""
    first, last = min(done.slices), max(done.slices)
    if as_json:
        show_json(
            {
                "schema": 1, "volume": str(done.volume), "label": done.label, "slices": list(done.slices),
                "shape": list(done.shape), "placed": done.placed, "mapping": done.mapping or None,
                "voxel_size_um": done.voxel_size_um and list(done.voxel_size_um),
            }
        )  # fmt: skip
        return
    what = f"label {done.label}" if done.label else "image"
    count = f"{len(done.slices)} slices, {first} to {last}" if last > first else f"slice {first}"
    truth = f" --truth {done.label}" if done.label else ""
    size = done.voxel_size_um if done.label is None else None
    show_lines(
        f"{what}: {count}, {done.placed}, in {done.volume}",
        *([f"voxel size: {' x '.join(f'{length:g}' for length in size)} um (z, y, x)"] if size else []),
        f"next: kesm run {quote(str(done.volume))}{truth}",
    )
