"""How a command answers: results on stdout, messages on stderr, documented exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import typer

from pipeline.printable import printable, printable_lines

EXIT_UNEXPECTED, EXIT_INPUT, EXIT_PARTIAL, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 3, 130, 143


class Found(Protocol):
    """What a command has found."""

    def document(self) -> dict[str, Any]: ...  # noqa: D102
    def lines(self) -> Sequence[str]: ...  # noqa: D102


class Terminated(BaseException):
    """SIGTERM was received."""


@contextmanager
def answering() -> Iterator[None]:
    """Turn what went wrong into one message on stderr and the documented exit code."""
    from pipeline.errors import PipelineError, StorageError

    try:
        with _refusals(StorageError):
            yield
    except PipelineError as error:
        say(f"error: {error}")
        raise typer.Exit(error.exit_code) from error
    except MemoryError as error:  # what knew more of it has said so above
        say("error: there is no memory left; run again with fewer --threads, or a smaller --memory")
        raise typer.Exit(EXIT_INPUT) from error
    except KeyboardInterrupt as error:
        say("interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from error
    except Terminated as error:
        say("terminated")
        raise typer.Exit(EXIT_TERMINATED) from error
    except BrokenPipeError as error:  # the reader of stdout has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_UNEXPECTED) from error


@contextmanager
def _refusals(kind: type[Exception]) -> Iterator[None]:
    """Say where the system refused what nobody thought it would: a folder in a volume that may not be entered."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None:
            raise
        raise kind(f"{error.filename}: {error.strerror}; check that it is there, its owner and its mode") from error


def say(message: str) -> None:
    """Print a message for a person; stdout belongs to results."""
    print(printable_lines(message), file=sys.stderr)


def show(found: Found, as_json: bool) -> None:
    """Print a result."""
    if as_json:
        show_json(found.document())
    else:
        show_lines(*found.lines())


def show_json(document: dict[str, Any]) -> None:
    """Print the one JSON object of a command."""
    print(json.dumps(document), flush=True)


def show_lines(*lines: str) -> None:
    """Print a result for a person."""
    for line in lines:
        print(printable(line))
    sys.stdout.flush()
