"""Locks between processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.errors import LockedError
from pipeline.storage.lock import locked, whoami

HOLD = """
import sys
from pathlib import Path
from pipeline.storage.lock import locked
with locked(Path(sys.argv[1]), "a"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_only_locks_of_the_same_thing_meet(tmp_path):
    lock = tmp_path / "a.lock"
    who = rf".* on .*, process {os.getpid()}, since 20\S+"
    busy = pytest.raises(LockedError, match=rf"^run 'a' is busy: {who} \(lock file .*a\.lock\); wait for it to end$")
    with locked(lock, "a"), locked(tmp_path / "b.lock", "b"), busy, locked(lock, "run 'a' is busy"):
        pass
    with locked(lock, "a"):
        pass
    assert lock.read_bytes() == b""


def test_a_lock_ends_with_an_exception(tmp_path):
    with pytest.raises(ValueError, match="inside"), locked(tmp_path / "a.lock", "a"):
        raise ValueError("inside")
    with locked(tmp_path / "a.lock", "a"):
        pass


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path):
    lock = tmp_path / "a.lock"
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            for _ in range(2):  # who is turned away does not erase who holds it
                with pytest.raises(LockedError, match=f"process {other.pid}, "), locked(lock, "a"):
                    pass
        finally:
            other.kill()
    with locked(lock, "a"), pytest.raises(LockedError, match=f"process {whoami()['process']}, "), locked(lock, "b"):
        pass


@pytest.mark.parametrize("content", ["", "{}", "[]", "half a {", "\0"], ids=repr)
def test_a_file_that_does_not_say_who_holds_it_hides_nothing(tmp_path, content):
    lock = tmp_path / "a.lock"
    with locked(lock, "a"):
        lock.write_text(content)
        with pytest.raises(LockedError, match=r"^busy \(lock file"), locked(lock, "busy"):
            pass
