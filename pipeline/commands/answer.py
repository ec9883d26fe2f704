"""How a command answers: results on stdout, messages on stderr, documented exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

EXIT_UNEXPECTED, EXIT_INPUT, EXIT_PARTIAL, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 3, 130, 143


class Terminated(BaseException):
    """SIGTERM was received."""


@contextmanager
def answering() -> Iterator[None]:
    """Turn what went wrong into one message on stderr and the documented exit code."""
    from pipeline.errors import PipelineError

    try:
        yield
    except PipelineError as error:
        say(f"error: {error}")
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        say("interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from error
    except Terminated as error:
        say("terminated")
        raise typer.Exit(EXIT_TERMINATED) from error
    except BrokenPipeError as error:  # the reader of stdout has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_UNEXPECTED) from error


def say(message: str) -> None:
    """Print a message for a person; stdout belongs to results."""
    print(message, file=sys.stderr)
