"""What a run, a comparison or a validation has found, as tables and lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pipeline.findings.summary import Excluded, Summary
from pipeline.geometry import Box
from pipeline.kernels.confusion import Macro
from pipeline.printable import printable
from pipeline.terminal.console import make_console

if TYPE_CHECKING:  # the first loads SciPy's statistics, which a run does not need
    from pipeline.checks.validate import Shape, Validation
    from pipeline.methods.choice import Choice

SHOWN_SCORES = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "mcc": "MCC"}


def show_summary(summary: Summary, console: Console | None = None) -> None:
    """Print the result of a run as a table."""
    console = console or make_console()
    table = Table(title=f"run {summary.name}", title_justify="left", show_header=True, min_width=50)
    table.add_column("")
    table.add_column("volume", justify="right")
    if summary.counts is not None:
        tiles = summary.macro.tiles if summary.macro else 0
        table.add_column(f"mean of {tiles} tile{'s' * (tiles != 1)}", justify="right")
    for row in (*score_rows(summary), *summary_rows(summary)):
        table.add_row(*row)
    console.print(table)
    if summary.excluded is not None:
        console.print(f"not scored: {excluded_words(summary.excluded)}", soft_wrap=True)
    for line in failure_lines(summary.failures):
        console.print(printable(f"failed: {line}"), soft_wrap=True)


def show_choice(choice: Choice, console: Console | None = None) -> None:
    """Print the ranking of a comparison, and what to take from it."""
    console = console or make_console()
    metric = choice.ranking.metric
    slices = f"{choice.ranking.slices} annotated slice{'s' * (choice.ranking.slices != 1)}"
    table = Table(title=f"{slices}, by {metric.upper()}", title_justify="left")
    for title in ("method", "scope", "filter"):
        table.add_column(title)
    for title in ("MCC", "F1", f"{metric.upper()}, 95 %", "behind the best"):
        table.add_column(title, justify="right")
    for place in choice.ranking.places:
        candidate = place.candidate
        table.add_row(
            printable(candidate.method), candidate.scope, candidate.denoise,
            score_text(place.scores.mcc), score_text(place.scores.f1), _span(place.interval),
            " ".join(filter(None, [f"{place.behind:.4f}", _span(place.behind_interval)])),
        )  # fmt: skip
    console.print(table)
    for line in choice.lines():
        console.print(printable(line), soft_wrap=True)


def _span(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}]"


def score_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Scores of the volume and their means over its tiles, then counts; nothing without a truth."""
    counts, whole = summary.counts, summary.scores
    if counts is None or whole is None:
        return []
    return [
        *(
            (title, score_text(getattr(whole, name)), _mean(summary.macro, name))
            for name, title in SHOWN_SCORES.items()
        ),
        ("true positive", f"{counts.tp:,}"),
        ("false positive", f"{counts.fp:,}"),
        ("false negative", f"{counts.fn:,}"),
        ("true negative", f"{counts.tn:,}"),
        ("annotated voxels", f"{summary.annotated:,}"),
    ]


def shape_rows(validation: Validation) -> list[tuple[str, str]]:
    """Scores of shape of the volume; what was not asked for has no row."""
    rows: list[tuple[str, str]] = []
    outline, line, tolerance = validation.shape.boundary, validation.shape.cl_dice, validation.measures.boundary
    if outline is not None:
        rows += [
            ("boundary precision", score_text(outline.precision)), ("boundary recall", score_text(outline.recall)),
            ("boundary F1", score_text(outline.f1)),
            ("boundary tolerance", f"{tolerance} voxel" + ("" if tolerance == 1 else "s")),
        ]  # fmt: skip
    if line is not None:
        rows += [
            ("clDice precision", score_text(line.precision)), ("clDice sensitivity", score_text(line.sensitivity)),
            ("clDice", score_text(line.cl_dice)),
        ]  # fmt: skip
    return rows


def shape_lines(validation: Validation) -> list[str]:
    """Scores of shape of each slice, a line each."""
    return [f"slice {z}: {_shape_words(shape)}" for z, shape in validation.slices.items()]


def _shape_words(shape: Shape) -> str:
    outline = [] if shape.boundary is None else [f"boundary F1 {score_text(shape.boundary.f1)}"]
    line = [] if shape.cl_dice is None else [f"clDice {score_text(shape.cl_dice.cl_dice)}"]
    return ", ".join(outline + line)


def summary_rows(summary: Summary) -> list[tuple[str, str]]:
    """How much a run has done, in words; what there is none of has no row."""
    tiles = summary.tiles
    rows = [("voxels", f"{summary.voxels:,}")]
    if summary.levels:
        low, middle, high = summary.levels
        rows.append(("level", f"{middle:g} ({low:g} to {high:g})"))
    if summary.drift is not None and summary.drift.now != summary.drift.level:
        rows.append(("level drifts", f"to {summary.drift.now:g}; `--set refit=true` makes all slices again with it"))
    if summary.seam.score is not None:
        rows.append(("seam score", f"{summary.seam.score:.2f}"))
    reused = f", {tiles.reused:,} reused" if tiles.reused else ""
    rows.append(("tiles done", f"{tiles.done:,} of {tiles.total:,}{reused}"))
    left = {
        "failed": tiles.failed, "pending": tiles.pending, "absent": tiles.absent, "undecided": tiles.undecided,
        "without signal": tiles.no_signal,
    }  # fmt: skip
    rows += [(f"tiles {state}", f"{count:,}") for state, count in left.items() if count]
    if summary.undefined != "article":
        rows.append(("scores of 0 / 0", {"zero": "0", "nan": "none"}[summary.undefined]))
    if summary.elapsed_s is not None:
        rate = summary.voxels / max(summary.elapsed_s, 1e-9) / 1e6
        rows.append(("time", f"{summary.elapsed_s:.1f} s" + ("" if tiles.reused else f", {rate:.0f} Mvoxel/s")))
    return rows


def excluded_words(excluded: Excluded) -> str:
    """Flagged tiles that are not scored, in words."""
    reasons = ", ".join(f"{count:,} {flag}" for flag, count in excluded.flags.items() if count)
    tiles = f"{excluded.tiles:,} flagged tile{'' if excluded.tiles == 1 else 's'}"
    return f"{tiles}, {excluded.voxels:,} annotated voxels" + (f": {reasons}" if reasons else "")


def failure_lines(failures: Iterable[tuple[Box, str]]) -> list[str]:
    """What failed and why, each reason once: at the first of its places, with how many more these are."""
    places: dict[str, dict[Box, None]] = {}
    for box, reason in failures:
        places.setdefault(reason, {})[box] = None
    lines = []
    for reason, (first, *others) in places.items():
        more = f" (and {len(others):,} more place{'s' * (len(others) > 1)})" if others else ""
        lines.append(f"{first}: {reason}{more}")
    return lines


def score_text(value: float | None) -> str:
    """A score in four digits; a dash where there is none."""
    return "-" if value is None else f"{value:.4f}"


def _mean(macro: Macro | None, name: str) -> str:
    """Mean of a score over tiles, and in how many of them it is 0 / 0."""
    if macro is None:
        return score_text(None)
    undefined = macro.undefined[name]
    return score_text(getattr(macro.mean, name)) + (f" ({undefined:,} undefined)" if undefined else "")
