"""``kesm status`` as its users meet it, while others work on the volume."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume
from tests.builders import build_volume
from tests.command import kesm
from tests.contract import check_document

PATIENCE_S = 60.0


def started(*words: object) -> subprocess.Popen[str]:
    """Start a command that can be interrupted, whatever shell the tests run in, and whose heart beats faster."""
    program = (
        "from pipeline.segmentation import attempt; attempt.BEAT_EVERY_S = 0.5; from pipeline import cli; cli.main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


@contextlib.contextmanager
def ended_after(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def look(path: Path) -> dict[str, Any]:
    """What `kesm status --json` says now."""
    answer = kesm("status", path, "--json")
    assert (answer.code, answer.err) == (0, "")
    return check_document("status", answer.document)


def wait_for(path: Path, state: str) -> dict[str, Any]:
    """Look until the only run is in a state and, if it runs, was heard."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        document = look(path)
        if [work["state"] for work in document["activity"]] == [state] and (
            state != "running" or document["activity"][0]["blocks"]
        ):
            return document
        time.sleep(0.05)
    raise AssertionError(document)


@pytest.fixture
def brain(tmp_path: Path) -> Path:
    """Volume with a truth and no run."""
    return build_volume(tmp_path / "brain.zarr", (2, 64, 96)).path


@pytest.fixture
def slow(tmp_path: Path) -> tuple[object, ...]:
    """Words of a run that takes some seconds."""
    volume = build_volume(tmp_path / "slow.zarr", (6, 520, 520))
    return "run", volume.path, "--truth", "groundtruth", "--set", "denoise.size=9", "--threads", "1", "--json"


def test_run_is_followed_from_another_process(slow):
    path = Path(str(slow[1]))
    with ended_after(started(*slow)) as process:
        document = wait_for(path, "running")
        (work,), (run,) = document["activity"], document["runs"]
        assert (work["name"], work["attempt"], work["process"]) == ("otsu", 0, process.pid)
        assert (work["host"], work["engine"], work["ended"]) == (platform.node(), "threads", None)
        assert (work["blocks"]["total"], work["blocks"]["failed"]) == (6, 0)
        assert run["tiles"]["total"] == 24
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    document = wait_for(path, "ended")
    assert document["activity"][0]["ending"] == "finished"
    ran = json.loads(out)
    assert [document["runs"][0][key] for key in ("counts", "scores", "tiles")] == [
        ran[key] for key in ("counts", "scores", "tiles")
    ]
    assert "otsu: finished at " in kesm("status", path).out


def test_run_that_was_killed_is_said_to_be(slow):
    path = Path(str(slow[1]))
    with ended_after(started(*slow)) as process:
        wait_for(path, "running")
        process.kill()
        process.wait()
        document = look(path)
    (work,) = document["activity"]
    assert (work["state"], work["ended"], work["eta_s"]) == ("killed", None, None)
    assert work["last_heard"] is not None
    assert "otsu: stopped without a word at " in kesm("status", path).out
    told = check_document("provenance", kesm("status", path, "--provenance", "otsu", "--json").document)
    assert [attempt["state"] for attempt in told["attempts"]] == ["killed"]


def test_provenance_of_a_run(brain):
    assert kesm("run", brain, "--truth", "groundtruth", "--region", "z=0:1").code == 0
    assert kesm("run", brain, "--truth", "groundtruth").code == 0
    answer = kesm("status", brain, "--provenance", "otsu", "--json")
    assert (answer.code, answer.err) == (0, "")
    told = check_document("provenance", answer.document)
    ran = look(brain)["runs"][0]
    assert (told["counts"], told["scores"], told["truth"]) == (ran["counts"], ran["scores"], "groundtruth")
    assert told["recipe"]["threshold"]["method"] == "otsu"
    assert told["inputs"]["truth"] is not None
    first, second = told["attempts"]
    assert first["region"] == "z=0:1,y=0:64,x=0:96"
    assert (second["ending"], second["host"], second["process"]) == ("finished", platform.node(), os.getpid())
    assert second["command"][1:] == ["run", str(brain), "--truth", "groundtruth"]
    assert second["counts"] == ran["counts"]
    assert second["packages"] == told["packages"]
    answer = kesm("status", brain, "--provenance", "otsu")
    assert (answer.code, answer.err) == (0, "")
    for line in ("run otsu of ", "recipe:\n  foreground: dark\n", "\nattempt 0: finished\n", "\nattempt 1: finished\n",
                 f"\n  command: {second['command'][0]} run "):  # fmt: skip
        assert line in answer.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--provenance", "nope"], r"brain\.zarr: has no run 'nope'; it has: none yet$", id="no such run"),
        pytest.param(["--provenance", "../labels"], r"has no run '\.\./labels'; it has: none yet$", id="no name"),
        pytest.param(["--watch", "--provenance", "otsu"],
                     r"^--watch: not with --provenance; leave one of them out$", id="watch"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_json", [["--json"], []], ids=["json", "text"])
def test_bad_words_get_one_message(brain, words, as_json, message):
    assert re.search(message, kesm("status", brain, *words, *as_json).message)


def test_what_others_have_typed_drives_no_terminal(brain):
    assert kesm("run", brain).code == 0
    tables = RunTables(Volume(brain), "otsu")
    words = ["kesm", "run", "[red]x[/red]\x1b[31m :skull:"]
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    number = tables.journal.begin_attempt({"started": moment, "user": "[b]\x1b[2J", "host": "far", "command": words})
    for options in ([], ["--provenance", "otsu"]):
        text = kesm("status", brain, *options).out
        assert "[b]\ufffd[2J on far" in text
        assert "\x1b" not in text
    assert "'[red]x[/red]\ufffd[31m :skull:'" in text
    told = kesm("status", brain, "--provenance", "otsu", "--json").document
    assert told["attempts"][number]["command"] == words


@pytest.mark.parametrize(
    ("number", "code", "err", "as_json"),
    [
        pytest.param(signal.SIGINT, 0, "", False, id="ctrl-c"),
        pytest.param(signal.SIGINT, 0, "", True, id="ctrl-c, json"),
        pytest.param(signal.SIGTERM, 143, "terminated\n", False, id="sigterm"),
    ],
)
def test_watch_goes_on_until_it_is_stopped(brain, number, code, err, as_json):
    with ended_after(started("status", brain, "--watch", *["--json"] * as_json)) as process:
        assert process.stdout is not None
        if as_json:
            assert check_document("status", json.loads(process.stdout.readline()))["runs"] == []
        else:
            block = list(iter(process.stdout.readline, "\n"))
            assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", block[0])
            assert block[-1] == f"no runs yet; start one with: kesm run {brain}\n"
        process.send_signal(number)
        rest, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (code, err)
    assert as_json or rest == ""  # nothing has changed


def test_watch_sees_what_others_do(brain):
    with ended_after(started("status", brain, "--watch", "--json")) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["runs"] == []
        assert kesm("run", brain).code == 0
        for line in process.stdout:
            if (document := check_document("status", json.loads(line)))["runs"]:
                break
    assert document["runs"][0]["tiles"]["done"] == 2


def test_watch_of_nothing_is_refused(tmp_path):
    assert "no such volume" in kesm("status", tmp_path / "nope.zarr", "--watch").message
