"""Command: take what has arrived."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.answer import EXIT_PARTIAL, answering, say, show_json, show_lines
from pipeline.commands.options import Json

if TYPE_CHECKING:
    from pipeline.intake.sync import Synced


def sync(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML configuration with a section `sync`.")],
    every: Annotated[
        str | None, typer.Option(metavar="TIME", help="Again and again, such as every 15m, until SIGTERM or Ctrl-C.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take the slices that have arrived in the source folders or changed, and run what is pending."""
    with answering():
        from pipeline.intake.sync import check_sync, sync_every
        from pipeline.intake.sync import sync as sync_once
        from pipeline.settings.configfile import load_config
        from pipeline.terminal.meter import Meter

        loaded = load_config(config)
        check_sync(loaded)
        if every is not None:
            sync_every(parse_every(every), loaded, lambda outcome: log_round(outcome, as_json))
        with Meter("sync", scored=not loaded.exclude_flagged) as meter:
            synced = sync_once(loaded, meter)
        if as_json:
            show_json(synced.document())
        else:
            show_lines(f"sync {synced.line()}")
            say_notes(synced)
        if synced.partial:
            raise typer.Exit(EXIT_PARTIAL)


def parse_every(text: str) -> float:
    """``15m`` as seconds: at least one, since a sync that does nothing takes as long."""
    from pipeline.errors import ConfigError
    from pipeline.settings.config import parse_duration

    try:
        every_s = parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"--every: {error}") from error
    if every_s < 1:
        raise ConfigError(f"--every: got {text!r}, expected at least 1s")
    return every_s


def log_round(outcome: Synced | Exception, as_json: bool) -> None:
    """Log one round of many: its line (or JSON object) on stdout, what went wrong on stderr, each with its time."""
    from pipeline.errors import PipelineError
    from pipeline.storage.lock import now

    if isinstance(outcome, PipelineError):
        say(f"{now()} error: {outcome}")
    elif isinstance(outcome, Exception):
        say(f"{now()} unexpected error: {type(outcome).__name__}: {outcome}")
    elif as_json:
        show_json(outcome.document())
    else:
        show_lines(f"{now()} sync {outcome.line()}")
        say_notes(outcome)


def say_notes(synced: Synced) -> None:
    """Say which files a round has not taken, and why, and what else there is to know."""
    if synced.note is not None:
        say(f"note: {synced.note}")
    for what, notes in (("waiting", synced.waiting), ("set aside", synced.set_aside)):
        for note in notes:
            say(f"{what}: {note.file}: {note.reason}")
    for what, taken in (("slice", synced.images), ("truth of slice", synced.truths)):
        for z, name in taken.vanished.items():
            say(f"vanished: {name}: {what} {z} stays as it is")
