"""What a volume holds, and who works on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from shlex import quote
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from pipeline.findings.summary import Summary
from pipeline.kernels.confusion import Counts, scores
from pipeline.printable import printable
from pipeline.terminal.console import make_console
from pipeline.terminal.outlook import recipe_words
from pipeline.terminal.results import excluded_words, failure_lines, score_text


class StatusBoard:
    """Shows a volume's status again and again: in place on a terminal, elsewhere as a block of lines where it changed.

    Parameters
    ----------
    stream : file, optional
        Default stdout.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = make_console(stream)
        self._live = Live(console=self._console, auto_refresh=False)
        self._shown: list[str] = []

    def __enter__(self) -> StatusBoard:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(self, document: dict[str, Any], summaries: list[Summary]) -> None:
        """Show what `describe` has found now."""
        parts, time_of_day = status_parts(document, summaries), f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        if self._console.is_terminal:
            self._live.update(Group(time_of_day, *parts), refresh=True)
            return
        with self._console.capture() as captured:
            print_parts(parts, self._console)
        lines = captured.get().splitlines()
        if lines != self._shown:
            self._console.print("\n".join([time_of_day, *lines, ""]), soft_wrap=True)
            self._console.file.flush()
            self._shown = lines


def show_status(document: dict[str, Any], summaries: list[Summary], console: Console | None = None) -> None:
    """Print what a volume holds."""
    print_parts(status_parts(document, summaries), console or make_console())


def print_parts(parts: Sequence[str | Table], console: Console) -> None:
    """Print lines whole, however long, and tables as wide as the console."""
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def status_parts(document: dict[str, Any], summaries: list[Summary]) -> list[str | Table]:
    """What a volume holds, as lines and a table."""
    size, slices = document["voxel_size_um"], document["slices"]
    parts: list[str | Table] = [
        f"{document['volume']}: {' x '.join(map(str, document['shape']))} voxels (z, y, x), {document['dtype']}, "
        + (f"{' x '.join(f'{length:g}' for length in size)} um a voxel" if size else "voxel size not known"),
        f"slices: {slices['present']} present, {slices['absent']} absent",
    ]
    truths = (label for label in document["labels"] if label["kind"] == "truth")
    parts += [f"truth {truth['name']}: {truth['slices']} of {slices['present']} slices annotated" for truth in truths]
    parts += [f"cleaned mask {label['name']}" for label in document["labels"] if label["kind"] == "derived"]
    parts += [
        f"confusion {label['name']} of {label['run']} with {label['truth']}"
        for label in document["labels"]
        if label["kind"] == "confusion"
    ]
    if summaries:
        parts.append(_runs_table(summaries))
    elif not document["problems"]:
        parts.append(f"no runs yet; start one with: kesm run {quote(document['volume'])}")
    parts += [f"{work['name']}: {recipe_words(work['recipe'])}" for work in document["activity"]]
    parts += [f"{work['name']}: {activity_words(work)}" for work in document["activity"] if work["state"]]
    parts += [
        f"{summary.name} against {summary.truth}: not scored: {excluded_words(summary.excluded)}"
        for summary in summaries
        if summary.excluded is not None
    ]
    for name in dict.fromkeys(summary.name for summary in summaries):  # once, whatever it is compared with
        failures = [failure for summary in summaries if summary.name == name for failure in summary.failures]
        parts += [f"{name} failed: {line}" for line in failure_lines(failures)]
    parts += [f"cannot be read: {problem}" for problem in document["problems"]]
    return [printable(part) if isinstance(part, str) else part for part in parts]


def activity_words(work: Mapping[str, Any]) -> str:
    """What the latest attempt of a run does, or how it ended, in one line."""
    who = f"{work['user'] or 'somebody'} on {work['host'] or 'some machine'}"
    if work["state"] == "ended":
        ending, _, reason = (work["ending"] or "ended").partition(": ")
        return f"{ending} at {_time(work['ended'])} ({who}){reason and f': {reason}'}"
    if work["state"] == "killed":
        heard = work["last_heard"] or work["started"]
        return f"stopped without a word at {_time(heard)} ({who}); run it again to go on"
    doing = [f"running since {_time(work['started'])} by {who} (process {work['process']}, {work['engine']})"]
    blocks = work["blocks"]
    if blocks:
        doing[0] += f": {blocks['done']:,} of {blocks['total']:,} blocks"
        doing += [f"{blocks[kind]:,} {kind}" for kind in ("reused", "failed") if blocks[kind]]
    else:
        doing[0] += ": starting"
    if work["voxels_per_s"]:
        doing.append(f"{work['voxels_per_s'] / 1e6:.0f} Mvoxel/s")
    if work["eta_s"] is not None and blocks and blocks["done"] < blocks["total"]:
        doing.append(f"{_duration(work['eta_s'])} left")
    return ", ".join(doing)


def _time(moment: str | None) -> str:
    """A moment (ISO 8601) on the reader's clock, with its date unless that is today."""
    if moment is None:
        return "an unknown time"
    local, today = datetime.fromisoformat(moment).astimezone(), datetime.now().astimezone().date()
    return f"{local:%H:%M}" if local.date() == today else f"{local:%Y-%m-%d %H:%M}"


def _duration(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.{0 if unit == 'min' else 1}f} {unit}"
    return f"{seconds:.0f} s"


def _runs_table(summaries: list[Summary]) -> Table:
    """Each run against each truth; states that no tile has get no column."""
    states = [state for state in ("pending", "failed", "absent") if any(getattr(run.tiles, state) for run in summaries)]
    table = Table(title="runs", title_justify="left")
    for column in ("run", "truth"):
        table.add_column(column, overflow="fold")
    for column in ("tiles done", *states, "accuracy", "F1", "MCC"):
        table.add_column(column, justify="right", no_wrap=True)
    for summary in summaries:
        found, tiles = summary.scores or scores(Counts()), summary.tiles
        table.add_row(
            printable(summary.name), printable(summary.truth or "-"), f"{tiles.done:,} of {tiles.total:,}",
            *(f"{getattr(tiles, state):,}" for state in states),
            score_text(found.accuracy), score_text(found.f1), score_text(found.mcc),
        )  # fmt: skip
    return table
