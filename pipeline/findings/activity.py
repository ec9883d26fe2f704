"""Who works on a run, and how far that is: from its documents alone, on any machine that sees the volume.

No lock is tried: that could turn away a run that starts at this moment.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import psutil

from pipeline.storage.tables import RunTables

MISSED_BEATS = 4  # heartbeats that a busy disk may delay
STARTING_S = 60.0  # from the start of an attempt to its first heartbeat: a cluster's workers import for seconds


class State(StrEnum):
    """What has become of an attempt."""

    RUNNING = "running"
    ENDED = "ended"
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class Activity:
    """The latest attempt of a run; None stands for what was not recorded.

    Attributes
    ----------
    name, recipe : str, dict
        Of the run.
    state : State or None
        None where no attempt was recorded.
    attempt : int or None
        Its number.
    user, host, process, engine, started
        Who works where, and since when (ISO 8601).
    ended, ending : str or None
        When and how it ended.
    last_heard : str or None
        Time of its last heartbeat.
    blocks : dict or None
        How many there are (``total``) and how many it is through with (``done``), ``reused`` and ``failed`` ones too;
        None once it has ended.
    voxels_per_s : float or None
        Computed, over the whole attempt.
    eta_s : float or None
        Seconds from now until it has done all its blocks; None where it is not running, or cannot tell yet.
    """

    name: str
    recipe: dict[str, Any]
    state: State | None = None
    attempt: int | None = None
    user: str | None = None
    host: str | None = None
    process: int | None = None
    engine: str | None = None
    started: str | None = None
    ended: str | None = None
    ending: str | None = None
    last_heard: str | None = None
    blocks: dict[str, int] | None = None
    voxels_per_s: float | None = None
    eta_s: float | None = None

    def document(self) -> dict[str, Any]:
        """The activity as plain values."""
        return asdict(self)


def activity(tables: RunTables, now: datetime | None = None) -> Activity:
    """What the latest attempt of a run does, or how it ended.

    Parameters
    ----------
    tables : RunTables
    now : datetime, optional
        With a time zone.
    """
    # The heartbeat first: an attempt that starts in between is then one that was not heard yet.
    beat, attempt, now = tables.journal.heartbeat() or {}, tables.journal.latest_attempt(), now or datetime.now(UTC)
    if attempt is None:
        return Activity(tables.name, tables.recipe)
    if beat.get("attempt") != attempt.get("number"):
        beat = {}  # of an earlier one
    state = attempt_state(attempt, beat, now)
    progress = {} if state is State.ENDED else beat  # it has gone on after its last heartbeat
    return Activity(
        name=tables.name,
        recipe=tables.recipe,
        state=state,
        attempt=attempt.get("number"),
        **{key: attempt.get(key) for key in ("user", "host", "process", "engine", "started", "ended", "ending")},
        last_heard=beat.get("time"),
        blocks=_blocks(progress),
        voxels_per_s=_rate(progress),
        eta_s=_eta_s(beat, now) if state is State.RUNNING else None,
    )


def attempt_state(attempt: dict[str, Any], beat: dict[str, Any], now: datetime) -> State:
    """What has become of an attempt whose last heartbeat is ``beat``; empty where none was heard yet."""
    if "ended" in attempt:
        return State.ENDED
    patience = timedelta(seconds=MISSED_BEATS * beat["every_s"] if beat else STARTING_S)
    heard = beat.get("time") or attempt.get("started")
    # One from the future is of a machine whose clock is ahead.
    if heard is None or now - datetime.fromisoformat(heard) > patience:
        return State.KILLED
    here = attempt.get("host") == platform.node()
    return State.KILLED if here and not _process_exists(attempt.get("process")) else State.RUNNING


def _process_exists(process: int | None) -> bool:
    """Whether a process of this machine exists; one that is dead and not yet waited for does not."""
    if process is None:
        return True
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # it is another user's
        return True


def _blocks(beat: dict[str, Any]) -> dict[str, int] | None:
    """Numbers of blocks, once they were counted."""
    blocks: dict[str, int] | None = beat.get("blocks")
    return blocks if blocks and blocks["total"] else None


def _rate(beat: dict[str, Any]) -> float | None:
    voxels, elapsed_s = beat.get("voxels", 0), beat.get("elapsed_s", 0)
    return voxels / elapsed_s if voxels and elapsed_s > 0 else None


def _eta_s(beat: dict[str, Any], now: datetime) -> float | None:
    """Blocks that are reused take no time, so the others are what a block takes."""
    blocks, elapsed_s = _blocks(beat), beat.get("elapsed_s", 0)
    worked = blocks["done"] - blocks["reused"] if blocks else 0
    if not blocks or worked <= 0 or elapsed_s <= 0:
        return None
    age_s = (now - datetime.fromisoformat(beat["time"])).total_seconds()
    return float(max(0.0, (blocks["total"] - blocks["done"]) * elapsed_s / worked - max(0.0, age_s)))
