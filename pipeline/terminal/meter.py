"""Progress of a job: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TextIO

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from pipeline.events import BlockDone, BlocksSettled, Event, JobDone, JobsStarted, Started
from pipeline.kernels.confusion import Counts, scores
from pipeline.terminal.console import make_console

PLAIN_EVERY_S = 5.0
COUNTS_WIDTH = 100  # columns from which on a bar has room for the counts beside the time that is left


class Meter:
    """Follows the events of a job: a bar on a terminal, a line every few seconds elsewhere.

    Parameters
    ----------
    what : str
        What is being done, in a word; jobs may add one.
    total : int or None
        Number of blocks; jobs announce theirs.
    unit_bytes : int
        Bytes of one job, for the rate.
    stream : file
        Where it is shown: never stdout, which belongs to results.
    scored : bool
        Whether counts and score are shown: not where flagged tiles are left out of the result's, which is known at the
        end alone.
    """

    def __init__(
        self, what: str, total: int | None = None, unit_bytes: int = 0, stream: TextIO | None = None,
        scored: bool = True,
    ) -> None:  # fmt: skip
        self._console = make_console(stream or sys.stderr)
        self._what, self._unit_bytes, self._scored = what, unit_bytes, scored
        self._title = what
        self._lock = threading.Lock()
        self._now = _Progress(total)
        self._shown = self._now.begin
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)), TextColumn("{task.fields[found]}"),
            console=self._console, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(what, total=total, rate="", found="")

    def __enter__(self) -> Meter:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._console.is_terminal:  # elsewhere, to stop what was never shown prints an empty line
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Take in an event; may be called from any thread."""
        with self._lock:
            self._take(event)
            now = self._now
            if self._console.is_terminal:
                self._bar.update(self._task, completed=now.done, rate=self._rate(), found=self._found())
            elif now.done and (time.monotonic() - self._shown > PLAIN_EVERY_S or now.done == now.total):
                self._shown = time.monotonic()
                done = f"{now.done}/{now.total}" if now.total else f"{now.done}"
                parts = [f"{self._title}: {done}", self._rate(), now.eta(), self._found()]
                self._console.print(", ".join(part for part in parts if part), soft_wrap=True)

    def _take(self, event: Event) -> None:
        now = self._now
        match event:
            case Started(engine=engine, dashboard=link):
                if engine != "threads":
                    self._console.print(f"{engine}: dashboard {link}", soft_wrap=True)
            case JobsStarted(count=count, what=job):
                self._title = f"{self._what} {job}".rstrip()
                self._now = _Progress(count)
                self._bar.reset(self._task, total=count, description=self._title)
            case JobDone():
                now.done += 1
            case BlockDone():
                now.done += 1
                now.voxels += 0 if event.reused else event.voxels
                now.reused += event.reused
                now.failed += event.failed
                now.counts += Counts(*event.counts)
            case BlocksSettled(count=count, counts=counts):
                now.done += count
                now.reused += count
                now.counts += Counts(*counts)

    def _rate(self) -> str:
        now = self._now
        if self._unit_bytes:
            return f"{now.done * self._unit_bytes / now.elapsed_s / 1e6:.0f} MB/s"
        return f"{now.voxels / now.elapsed_s / 1e6:.0f} Mvoxel/s" if now.voxels else ""

    def _found(self) -> str:
        found, counts = [], self._now.counts
        if counts.total and self._scored:
            if self._console.width >= COUNTS_WIDTH:
                cells = {"tp": counts.tp, "fp": counts.fp, "fn": counts.fn, "tn": counts.tn}
                found += [f"{cell} {_short(count)}" for cell, count in cells.items()]
            found.append(f"mcc {scores(counts).mcc:.3f}")
        if self._now.failed:
            found.append(f"{self._now.failed} failed")
        return " ".join(found)


@dataclass(slots=True)
class _Progress:
    """How far one step of a job is; the next one begins with another."""

    total: int | None
    begin: float = field(default_factory=time.monotonic)
    done: int = 0
    reused: int = 0
    failed: int = 0
    voxels: int = 0
    counts: Counts = field(default_factory=Counts)

    @property
    def elapsed_s(self) -> float:
        return max(time.monotonic() - self.begin, 1e-9)

    def eta(self) -> str:
        left, worked = (self.total or 0) - self.done, self.done - self.reused
        return f"{left * self.elapsed_s / worked:.0f} s left" if left > 0 and worked > 0 else ""


def _short(count: int) -> str:
    """A count in three digits, so that those of a whole volume fit into the line of a bar."""
    value, units = float(count), iter(("", "k", "M", "G", "T"))
    unit = next(units)
    while value >= 999.5:
        value, unit = value / 1000, next(units)
    return f"{value:.3g}{unit}"
