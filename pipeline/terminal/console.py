"""Where it is shown: a terminal, or a file."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console

FILE_WIDTH = 200  # columns where the output is no terminal: rich would cut names at 80


def make_console(stream: TextIO | None = None) -> Console:
    """Console that prints what it is given: ``brain[old].zarr`` is a path, and no markup; files have long lines."""
    width = None if (stream or sys.stdout).isatty() else FILE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)
