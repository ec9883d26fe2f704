"""Commands in a fresh process: how long each takes, how much memory, and the JSON object that it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import Any

import psutil

KESM = Path(sys.executable).with_name("kesm")
# A look at the processes of this machine takes 1.5 ms of one CPU.
SAMPLE_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has succeeded.

    Attributes
    ----------
    seconds : float
        From its start to its end, the start of Python and its imports included.
    peak_bytes : int
        Sum of the peaks of its process and of those that it started, each by the kernel's account of that process
        (``VmHWM``) as it last was, a quarter of a second before the end or later. Pages that processes share count for
        each; 0 where there is no such account, as on macOS.
    document : dict
        The JSON object that it printed.
    """

    seconds: float
    peak_bytes: int
    document: dict[str, Any]


def kesm(*words: object, cpus: int | None = None) -> Finished:
    """Run the command line that a user has, with ``--json``."""
    return call(KESM, *words, "--json", cpus=cpus)


def call(*words: object, cpus: int | None = None) -> Finished:
    """Run a command that prints a JSON object, on so many CPUs if they are given; end everything if it fails."""
    peaks: dict[int, int] = {}
    start = time.perf_counter()
    with (
        _pinned(cpus),
        subprocess.Popen(
            [*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        ) as process,
    ):
        try:
            stdout, stderr = _wait(process, peaks)
        except BaseException:
            process.terminate()  # else what is interrupted here goes on there
            raise
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{' '.join(map(str, words))}: failed with {process.returncode}:\n{stderr}{stdout}")
    return Finished(seconds, sum(peaks.values()), loads(stdout))


def engine_words(engine: str, tasks: int) -> list[str]:
    """Options of `kesm` for so many tasks at once: threads of one process, or local processes of one thread each."""
    if engine == "threads":
        return ["--threads", str(tasks)]
    return ["--scheduler", "local", "--threads", "1", "--set", f"cluster.workers={tasks}"]


def _wait(process: subprocess.Popen[str], peaks: dict[int, int]) -> tuple[str, str]:
    """Return what a process has printed once it has ended; meanwhile note the peak of each process of its family."""
    while True:
        try:
            return process.communicate(timeout=SAMPLE_EVERY_S)
        except subprocess.TimeoutExpired:
            peaks.update(_peaks(process.pid))


def _peaks(pid: int) -> Iterator[tuple[int, int]]:
    """Peak of a process and of each that it started, in bytes; one that has just ended has none any more."""
    try:
        family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            status = Path(f"/proc/{member}/status").read_text(encoding="utf-8")
        except OSError:
            continue
        # The peak of a process that this one has forked, but that has not begun its own program, is replaced later.
        if found := re.search(r"VmHWM:\s*(\d+) kB", status):
            yield member, int(found[1]) * 1024


@contextmanager
def _pinned(cpus: int | None) -> Iterator[None]:
    """Let what is started here use only so many CPUs."""
    if cpus is None:
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:cpus])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
