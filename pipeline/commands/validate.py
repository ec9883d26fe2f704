"""Command: compare any two labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.answer import EXIT_PARTIAL, answering, show_json, show_lines
from pipeline.commands.options import (
    Json,
    Region,
    Threads,
    UndefinedRule,
    VolumePath,
    expect_one,
    refuse_beside,
    region_box,
)

if TYPE_CHECKING:
    from pipeline.checks.validate import Label, Measures, Validation
    from pipeline.storage.volume import Volume

MaskFiles = Annotated[
    list[str] | None,
    typer.Option(metavar="FILES...", help="Image files, folders or patterns that are judged, instead of a label."),
]
Boundary = Annotated[
    int | None,
    typer.Option(
        metavar="VOXELS",
        min=0,
        max=100,
        help="Compare outlines, too: how much of each is within so many voxels of the other. Each thread then holds "
        "its whole slice in memory, 2 bytes a voxel.",
    ),
]
ClDice = Annotated[
    bool, typer.Option("--cl-dice", help="Compare centre lines, too (clDice); 6 bytes a voxel of a whole slice.")
]


def validate(
    volume: VolumePath,
    truth: Annotated[str, typer.Option(help="Label that is taken as right: 0 background, 127 not annotated, 255.")],
    more_files: Annotated[list[str] | None, typer.Argument(metavar="FILES", hidden=True)] = None,
    mask: Annotated[str | None, typer.Option(help="Label that is judged, whoever made it: 0 background.")] = None,
    mask_files: MaskFiles = None,
    start_z: Annotated[
        int | None, typer.Option(min=0, help="Files: the slice that the first is for; default 0.")
    ] = None,
    boundary: Boundary = None,
    cl_dice: ClDice = False,
    undefined: UndefinedRule = "article",
    region: Region = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare any two labels of a volume, or image files with one, and score them as a run is scored."""
    with answering():
        from pipeline.checks.validate import Measures, open_label
        from pipeline.checks.validate import validate as validate_labels
        from pipeline.kernels.confusion import parse_undefined
        from pipeline.segmentation.engine import ThreadRunner
        from pipeline.storage.volume import Volume
        from pipeline.terminal.meter import Meter

        check_judged(mask, mask_files, more_files, start_z)
        opened, measures = Volume(volume), Measures(parse_undefined(undefined), boundary, cl_dice)
        box = region_box(region, opened)
        right = open_label(opened, truth, is_truth=True)
        files = [*(mask_files or []), *(more_files or [])]
        judged, workers = open_judged(opened, mask, files, start_z or 0, measures, threads)
        with Meter("validate") as meter:
            validation = validate_labels(opened, judged, right, ThreadRunner(workers, meter), box, measures)
        if as_json:
            show_json(validation.document())
        else:
            show_validation(validation, f"{judged.name} against {right.name}")
        if validation.summary.tiles.failed:
            raise typer.Exit(EXIT_PARTIAL)


def check_judged(
    mask: str | None, mask_files: list[str] | None, more_files: list[str] | None, start_z: int | None
) -> None:
    """Refuse anything but one of a label and files, and options that would be ignored."""
    expect_one({"--mask": mask is not None, "--mask-files": bool(mask_files)})
    if mask is not None:
        files = dict.fromkeys((more_files or [])[:1], True)
        refuse_beside(files | {"--start-z": start_z is not None}, "only with --mask-files")


def open_judged(
    volume: Volume, mask: str | None, files: list[str], start_z: int, measures: Measures, threads: int | None
) -> tuple[Label, int]:
    """What is judged, and how many threads have room to read it."""
    from pipeline.checks.validate import open_files, open_label, validate_threads
    from pipeline.images.stack import find_pages
    from pipeline.intake.ingest import ingest_threads
    from pipeline.machine import available_cpus

    workers = validate_threads(volume, measures, threads or available_cpus())
    if mask is not None:
        return open_label(volume, mask, is_truth=False), workers
    pages = find_pages(files)
    return open_files(volume, pages, start_z), ingest_threads(pages[0], workers)


def show_validation(validation: Validation, title: str) -> None:
    """Print the scores of the volume beside the mean of its tiles, then those of shapes, then what failed."""
    from pipeline.terminal.results import failure_lines, score_rows, shape_lines, shape_rows, summary_rows

    summary = validation.summary
    tiles = summary.macro.tiles if summary.macro else 0
    rows = (*score_rows(summary), *shape_rows(validation), *summary_rows(summary))
    show_lines(
        f"{title}: volume, mean of {tiles} tile{'s' * (tiles != 1)}",
        *(f"{name:<18}" + "".join(f"{value:>24}" for value in values) for name, *values in rows),
        *shape_lines(validation),
        *(f"failed: {line}" for line in failure_lines(summary.failures)),
    )
