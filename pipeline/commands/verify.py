"""Command: read everything back."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands.answer import EXIT_PARTIAL, answering, say, show
from pipeline.commands.options import Json, Threads, VolumePath


def verify(
    volume: VolumePath,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only report; else what a run must make again is marked as failed.")
    ] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Read everything of a volume back, and list what is not as it was recorded."""
    with answering():
        from pipeline.checks.verify import slice_bytes, verify_threads
        from pipeline.checks.verify import verify as verify_volume
        from pipeline.machine import available_cpus
        from pipeline.segmentation.engine import ThreadRunner
        from pipeline.storage.volume import Volume
        from pipeline.terminal.meter import Meter

        opened = Volume(volume)
        each, _ = slice_bytes(opened)
        with Meter("verify", unit_bytes=each) as meter:
            runner = ThreadRunner(verify_threads(opened, threads or available_cpus()), meter)
            verified = verify_volume(opened, runner, mark=not dry_run)
        for note in verified.notes:
            say(note)
        show(verified, as_json)
        if verified.findings:
            raise typer.Exit(EXIT_PARTIAL)
