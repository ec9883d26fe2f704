"""Command: compare any two labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.answer import EXIT_PARTIAL, answering
from pipeline.commands.options import Json, Region, Threads, configure

if TYPE_CHECKING:
    from pipeline.validate import Label, Measures, Validation
    from pipeline.volume import Volume


def validate(
    volume: Annotated[Path, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")],
    truth: Annotated[str, typer.Option(help="Label that is taken as right: 0 background, 127 not annotated, 255.")],
    more_files: Annotated[list[str] | None, typer.Argument(metavar="FILES", hidden=True)] = None,
    mask: Annotated[str | None, typer.Option(help="Label that is judged, whoever made it: 0 background.")] = None,
    mask_files: Annotated[
        list[str] | None,
        typer.Option(metavar="FILES...", help="Image files, folders or patterns that are judged, instead of a label."),
    ] = None,
    start_z: Annotated[
        int | None, typer.Option(min=0, help="Files: the slice that the first is for; default 0.")
    ] = None,
    boundary: Annotated[
        int | None,
        typer.Option(
            metavar="VOXELS",
            min=0,
            max=100,
            help="Compare outlines, too: how much of each is within so many voxels of the other. Each thread then "
            "holds its whole slice in memory, 2 bytes a voxel.",
        ),
    ] = None,
    cl_dice: Annotated[
        bool,
        typer.Option("--cl-dice", help="Compare centre lines, too (clDice); 6 bytes a voxel of a whole slice."),
    ] = False,
    undefined: Annotated[
        str, typer.Option(help="A score that is 0 / 0: article (1 if all is right, else the lowest), zero or nan.")
    ] = "article",
    region: Region = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare any two labels of a volume, or image files with one, and score them as a run is scored."""
    with answering():
        from pipeline.confusion import parse_undefined
        from pipeline.execute import ThreadRunner
        from pipeline.terminal import Meter
        from pipeline.validate import Measures, open_label
        from pipeline.validate import validate as validate_labels
        from pipeline.volume import Volume

        check_judged(mask, mask_files, more_files, start_z)
        opened, measures = Volume(volume), Measures(parse_undefined(undefined), boundary, cl_dice)
        chosen = None if region is None else configure(volume, {"region": region}, None, None).region
        box = None if chosen is None else chosen.box(opened.shape)
        right = open_label(opened, truth, is_truth=True)
        files = [*(mask_files or []), *(more_files or [])]
        judged, workers = open_judged(opened, mask, files, start_z or 0, measures, threads)
        with Meter("validate") as meter:
            validation = validate_labels(opened, judged, right, ThreadRunner(workers, meter), box, measures)
        if as_json:
            print(json.dumps(validation.document()))
        else:
            show_validation(validation, f"{judged.name} against {right.name}")
        if validation.summary.tiles.failed:
            raise typer.Exit(EXIT_PARTIAL)


def check_judged(
    mask: str | None, mask_files: list[str] | None, more_files: list[str] | None, start_z: int | None
) -> None:
    """Refuse anything but one of a label and files, and options that would be ignored."""
    from pipeline.errors import ConfigError

    if (mask is None) == (not mask_files):
        raise ConfigError(f"--mask, --mask-files: got {'both' if mask else 'neither'}, expected one of them")
    if mask is not None and (more_files or start_z is not None):
        raise ConfigError(f"{more_files[0] if more_files else '--start-z'}: only with --mask-files; leave it out")


def open_judged(
    volume: Volume, mask: str | None, files: list[str], start_z: int, measures: Measures, threads: int | None
) -> tuple[Label, int]:
    """What is judged, and how many threads have room to read it."""
    from pipeline.ingest import ingest_threads
    from pipeline.plan import available_cpus
    from pipeline.stack import find_pages
    from pipeline.validate import open_files, open_label, validate_threads

    workers = validate_threads(volume, measures, threads or available_cpus())
    if mask is not None:
        return open_label(volume, mask, is_truth=False), workers
    pages = find_pages(files)
    return open_files(volume, pages, start_z), ingest_threads(pages[0], workers)


def show_validation(validation: Validation, title: str) -> None:
    """Print the scores of the volume beside the mean of its tiles, then those of shapes, then what failed."""
    from pipeline.terminal import score_rows, shape_lines, shape_rows, summary_rows

    summary = validation.summary
    print(f"{title}: volume, mean of {summary.macro.tiles if summary.macro else 0} tiles")
    for name, *values in (*score_rows(summary), *shape_rows(validation), *summary_rows(summary)):
        print(f"{name:<18}" + "".join(f"{value:>24}" for value in values))
    for line in shape_lines(validation):
        print(line)
    for part, reason in summary.failures:
        print(f"failed: {part}: {reason}")
