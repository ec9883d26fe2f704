"""What work tells whoever watches it: an observer is called with each event, from any thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """An engine is ready; ``dashboard`` is its web page, if it has one."""

    engine: str
    dashboard: str | None


@dataclass(frozen=True, slots=True)
class BlockDone:
    """A block was done, reused, or has failed; counts are those of its tiles."""

    voxels: int
    counts: tuple[int, int, int, int]
    reused: bool
    failed: bool


@dataclass(frozen=True, slots=True)
class BlocksSettled:
    """So many blocks need no work, of which some were done already; counts are those of their tiles."""

    count: int
    reused: int
    counts: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class JobsStarted:
    """So many jobs, or blocks of a run, are to be done; ``what`` they do, in a word."""

    count: int
    what: str = ""


@dataclass(frozen=True, slots=True)
class JobDone:
    """One of them is done."""


Event = Started | BlockDone | BlocksSettled | JobsStarted | JobDone
Observer = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Observe nothing."""
