"""Command: the main job on a phantom volume."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from pipeline.commands.answer import answering
from pipeline.commands.options import Json


def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where its files go.")] = Path("kesm-demo"),
    as_json: Json = False,
) -> None:
    """Make a phantom volume, ingest it, segment it and report, in under a minute."""
    with answering():
        from pipeline.demo import Demo, run_demo
        from pipeline.terminal import Meter, show_summary

        summary = run_demo(folder, Meter)
        if as_json:
            print(json.dumps(summary.document()))
        else:
            files = Demo(folder)
            show_summary(summary)
            print(f"volume:  {files.volume} (OME-Zarr: napari, Neuroglancer and Fiji open it)")
            print(f"picture: {files.picture} (right in cyan, wrong in magenta and yellow)")
            print("next:")
            print(f"  kesm status {quote(str(files.volume))}")
            print(f"  kesm run {quote(str(files.volume))} --truth groundtruth --name raw --set denoise.method=none")
            print("  kesm ingest YOUR_SLICES --volume mine.zarr && kesm run mine.zarr")
