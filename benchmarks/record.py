"""How the figures of a benchmark are shown and kept: a Markdown table, and a JSON file with the machine beside them."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "kesm-pipeline",
    "dask",
    "dask-image",
    "numba",
    "numpy",
    "scikit-image",
    "scikit-learn",
    "scipy",
    "zarr",
    "zarrs",
)


def parse(description: str | None, *options: tuple[str, Mapping[str, Any]]) -> argparse.Namespace:
    """Parse the command line of a benchmark: its own options, ``--quick`` and ``--json``.

    Parameters
    ----------
    description : str or None
    options : tuple
        Flag of each, and settings as of argparse; ``quick`` is its default with ``--quick``, where that is another one.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    quick = {}
    for flag, settings in options:
        action = parser.add_argument(flag, **{key: value for key, value in settings.items() if key != "quick"})
        if "quick" in settings:
            quick[action.dest] = settings["quick"]
    parser.add_argument("--quick", action="store_true", help="as small as it works: the figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows with the same keys as a Markdown table, ready for the README."""
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(names, *cells, strict=True)]
    numeric = [all(isinstance(row[name], int | float) for row in rows) for name in names]
    rule = [("-" * (width - 1) + ":") if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    for line in (names, rule, *cells):
        aligned = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        )
        print(f"| {' | '.join(aligned)} |", flush=True)


def save(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON, with the machine and the versions that they were measured on."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """CPU, number of CPUs that may be used, Python and the packages that matter."""
    model = platform.processor() or platform.machine()
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in facts if line.startswith("model name")), model)
    except FileNotFoundError:  # not Linux
        pass
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: _version(name) for name in PACKAGES}
    return {"cpu": model, "cpus": cpus, "python": platform.python_version(), "packages": versions}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # not every benchmark needs all of them
        return "not installed"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
