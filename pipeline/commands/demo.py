"""Command: the main job on a phantom volume."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from pipeline.commands.answer import answering, show_json, show_lines
from pipeline.commands.options import Json


def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where its files go.")] = Path("kesm-demo"),
    as_json: Json = False,
) -> None:
    """Make a phantom volume, ingest it, segment it and report, in under a minute."""
    with answering():
        from pipeline.demo import Demo, run_demo
        from pipeline.terminal.meter import Meter
        from pipeline.terminal.results import show_summary

        summary = run_demo(folder, Meter)
        if as_json:
            show_json(summary.document())
        else:
            files = Demo(folder)
            show_summary(summary)
            volume = quote(str(files.volume))
            show_lines(
                f"volume:  {files.volume} (OME-Zarr: napari, Neuroglancer and Fiji open it)",
                f"picture: {files.picture} (right in cyan, wrong in magenta and yellow)",
                "next:",
                f"  kesm status {volume}",
                f"  kesm run {volume} --truth groundtruth --name raw --set denoise.method=none",
                "  kesm ingest YOUR_SLICES --volume mine.zarr && kesm run mine.zarr",
            )
