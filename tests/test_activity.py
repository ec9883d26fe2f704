"""Whether a run is at work, from what it has said of itself."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.findings.activity import STARTING_S, Activity, State, activity
from pipeline.settings.recipe import Recipe
from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume

NOW = datetime(2026, 3, 4, 20, 0, tzinfo=UTC)
BLOCKS = {"total": 799, "done": 120, "reused": 20, "failed": 1}


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def attempt(**changes: Any) -> dict[str, Any]:
    """What is recorded when somebody starts to work, as far as it matters here."""
    begun = {"started": ago(120), "host": "far", "user": "alice", "process": 1234, "engine": "threads"}
    return {**begun, **changes}


def beat(number: int = 0, age_s: float = 5, **changes: Any) -> dict[str, Any]:
    said = {
        "attempt": number, "time": ago(age_s), "every_s": 5.0, "host": "far", "process": 1234, "blocks": BLOCKS,
        "voxels": 31 * 10**9, "elapsed_s": 100.0,
    }  # fmt: skip
    return {**said, **changes}


@pytest.fixture
def tables(tmp_path: Path) -> RunTables:
    volume = Volume.create(tmp_path / "brain.zarr", (2, 64, 64), "uint8")
    return RunTables.create(volume, "otsu", Recipe().document(), (1, 64, 64))


def test_nobody_has_worked(tables):
    assert activity(tables, NOW) == Activity("otsu", Recipe().document())


def test_running(tables):
    assert tables.journal.begin_attempt(attempt()) == 0
    tables.journal.beat(beat())
    assert activity(tables, NOW) == Activity(
        name="otsu", recipe=Recipe().document(), state=State.RUNNING, attempt=0, user="alice", host="far", process=1234,
        engine="threads", started=ago(120), last_heard=ago(5), blocks=BLOCKS, voxels_per_s=31e7,
        eta_s=679 - 5,  # a second for each of 100 blocks that were no work of others, and five seconds have passed
    )  # fmt: skip


@pytest.mark.parametrize(
    ("age_s", "state"),
    [
        pytest.param(-3600, State.RUNNING, id="clock ahead"),
        pytest.param(0, State.RUNNING, id="now"),
        pytest.param(20, State.RUNNING, id="four beats"),
        pytest.param(21, State.KILLED, id="too long"),
    ],
)
def test_silence_of_another_machine(tables, age_s, state):
    tables.journal.begin_attempt(attempt())
    tables.journal.beat(beat(age_s=age_s))
    found = activity(tables, NOW)
    assert (found.state, found.last_heard) == (state, ago(age_s))
    assert (found.eta_s is None) == (state is State.KILLED)
    assert found.blocks == BLOCKS  # how far it came


@pytest.mark.parametrize(
    ("age_s", "state"), [(0, State.RUNNING), (STARTING_S, State.RUNNING), (STARTING_S + 1, State.KILLED)]
)
def test_one_that_starts_is_waited_for(tables, age_s, state):
    tables.journal.begin_attempt(attempt(started=ago(3600)))
    tables.journal.beat(beat(0, age_s=3))
    assert tables.journal.begin_attempt(attempt(started=ago(age_s))) == 1
    found = activity(tables, NOW)
    assert (found.state, found.attempt, found.last_heard, found.blocks) == (state, 1, None, None)


@pytest.mark.parametrize("ending", ["finished", "stopped", "failed: the disk is full"])
def test_ended(tables, ending):
    number = tables.journal.begin_attempt(attempt())
    tables.journal.beat(beat())
    tables.journal.end_attempt(number, {"ended": ago(1), "ending": ending})
    found = activity(tables, NOW)
    assert (found.state, found.ended, found.ending, found.eta_s) == (State.ENDED, ago(1), ending, None)
    assert (found.blocks, found.voxels_per_s) == (None, None)  # which were those of some seconds before
    assert found.document()["state"] == "ended"


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


@pytest.mark.parametrize("said", [True, False], ids=["heard", "starting"])
def test_process_of_this_machine_is_looked_for(tables, said):
    for process, state in ((os.getpid(), State.RUNNING), (dead_process(), State.KILLED)):
        number = tables.journal.begin_attempt(attempt(host=platform.node(), process=process, started=ago(1)))
        if said:
            tables.journal.beat(beat(number, age_s=1))
        assert activity(tables, NOW).state is state


def test_process_that_nobody_has_waited_for_is_dead(tables):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        number = tables.journal.begin_attempt(attempt(host=platform.node(), process=process.pid))
        tables.journal.beat(beat(number))
        assert activity(tables, NOW).state is State.KILLED


def test_process_of_somebody_else_is_one(tables, monkeypatch):
    def denied(self: psutil.Process) -> str:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "status", denied)
    tables.journal.begin_attempt(attempt(host=platform.node(), process=os.getpid()))
    tables.journal.beat(beat())
    assert activity(tables, NOW).state is State.RUNNING


@pytest.mark.parametrize(
    ("said", "rate", "left_s"),
    [
        pytest.param(
            {"voxels": 0, "elapsed_s": 0.0, "blocks": BLOCKS | {"done": 0, "reused": 0}}, None, None, id="new"
        ),
        pytest.param({"voxels": 0, "blocks": dict.fromkeys(BLOCKS, 0)}, None, None, id="not counted"),
        pytest.param({"voxels": 0, "blocks": BLOCKS | {"reused": 120}}, None, None, id="only reused"),
        pytest.param({"voxels": 100, "blocks": BLOCKS | {"done": 799}}, 1.0, 0.0, id="all"),
        pytest.param({"voxels": 100, "blocks": BLOCKS | {"done": 798}}, 1.0, 0.0, id="overdue"),
    ],
)
def test_rate_and_time_left_need_work(tables, said, rate, left_s):
    tables.journal.begin_attempt(attempt())
    tables.journal.beat(beat(**said))
    found = activity(tables, NOW)
    assert (found.voxels_per_s, found.eta_s) == (rate, left_s)


def test_older_versions_have_recorded_less(tables):
    tables.journal.begin_attempt({"user": "alice"})
    assert activity(tables, NOW).state is State.KILLED  # nobody can tell since when it was not heard
    tables.journal.begin_attempt({"ended": ago(5), "ending": "finished"})
    found = activity(tables, NOW)
    assert (found.state, found.user, found.process, found.started) == (State.ENDED, None, None, None)
