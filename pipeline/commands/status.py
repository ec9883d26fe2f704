"""Command: what a volume holds."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipeline.commands.answer import answering
from pipeline.commands.options import Json

WATCH_EVERY_S = 2.0


def status(
    volume: Annotated[Path, typer.Argument(metavar="VOLUME", help="An OME-Zarr volume.")],
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Look again every two seconds, until Ctrl-C (which ends it with exit code 0)."),
    ] = False,
    run_name: Annotated[
        str | None, typer.Option("--provenance", metavar="NAME", help="Print what made the mask of this run instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a volume holds, how far each of its runs is, and who is working on it."""
    with answering(), suppress(KeyboardInterrupt) if watch else nullcontext():
        from pipeline.errors import ConfigError
        from pipeline.provenance import page, provenance
        from pipeline.report import describe
        from pipeline.terminal import show_page, show_status
        from pipeline.volume import Volume

        if watch and run_name is not None:
            raise ConfigError("--watch: not with --provenance, which does not change; leave one of them out")
        if watch:
            watch_status(volume, as_json)
        if run_name is None:
            document, summaries = describe(Volume(volume))
        else:
            document, summaries = provenance(Volume(volume), run_name), []
        if as_json:
            print(json.dumps(document))
        elif run_name is None:
            show_status(document, summaries)
        else:
            show_page(page(document))


def watch_status(volume: Path, as_json: bool) -> NoReturn:
    """Show a volume's status, every time opened anew, until a signal comes; as JSON, an object a line."""
    from pipeline.report import describe
    from pipeline.terminal import StatusBoard
    from pipeline.volume import Volume

    with nullcontext() if as_json else StatusBoard() as board:
        while True:
            document, summaries = describe(Volume(volume))
            if board is None:
                print(json.dumps(document), flush=True)
            else:
                board.show(document, summaries)
            time.sleep(WATCH_EVERY_S)
