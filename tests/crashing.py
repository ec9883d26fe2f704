"""Runs and syncs in processes of their own that are killed: at a given write, or at any moment from outside.

Processes are forked from one that has imported everything, so that dozens of them cost seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.geometry import Box
from pipeline.intake import sync
from pipeline.segmentation import bookkeeping, runs, segment
from pipeline.settings.configfile import load_config
from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume
from tests.builders import run_config

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.crashing"])


def start(path: Path, log: Path, kill_at: int | None, **options: Any) -> BaseProcess:
    """Start a run on a volume that is killed at its n-th write, and says in ``log`` what it begins and records."""
    process = _processes.Process(target=_run, args=(path, log, kill_at, options))
    process.start()
    return process


def start_sync(config: Path, log: Path, kill_at: int | None) -> BaseProcess:
    """Start a sync that is killed at its n-th write; see `start`."""
    process = _processes.Process(target=_sync, args=(config, log, kill_at))
    process.start()
    return process


def redone(log: Path) -> list[str]:
    """Blocks that were begun again after they were recorded."""
    recorded: set[str] = set()
    again = []
    for line in log.read_text().splitlines() if log.exists() else ():
        what, block = line.split()
        if what == "recorded":
            recorded.add(block)
        elif block in recorded:
            again.append(block)
    return again


def arrays(path: Path, name: str, truth: str | None = "groundtruth") -> dict[str, np.ndarray[Any, Any]]:
    """Every array of a run, decoded: mask with its levels, and tables."""
    volume = Volume(path)
    tables = RunTables(volume, name)
    found = {table: getattr(tables, table).read() for table in _TABLES}
    if truth is not None:
        compared = tables.truth(truth)
        found |= {table: getattr(compared, table).read() for table in ("counts", "counts_key", "histogram")}
    for level, array in enumerate(volume.label(name).levels):
        found[f"level {level}"] = array.read(Box.whole(array.shape))
    return found


def assert_same_arrays(path: Path, name: str, other: str, truth: str | None = "groundtruth") -> None:
    """Check that two runs have left the same bits."""
    ours, theirs = arrays(path, name, truth), arrays(path, other, truth)
    for array, values in ours.items():
        np.testing.assert_array_equal(values, theirs[array], err_msg=array)


_TABLES = ("threshold", "status", "mask_key", "shard_digest", "pyramid_key")


def _run(path: Path, log: Path, kill_at: int | None, options: dict[str, Any]) -> None:
    _watch(log, kill_at)
    runs.run(run_config(Volume(path), **options), replace=True)


def _sync(config: Path, log: Path, kill_at: int | None) -> None:
    _watch(log, kill_at)
    sync.sync(load_config(config))


def _watch(log: Path, kill_at: int | None) -> None:
    """Write down which blocks are begun and recorded, and end the process at its n-th write."""
    writes = 0

    def say(what: str, block: object) -> None:
        with log.open("a") as file:
            file.write(f"{what} {str(block).replace(' ', '')}\n")

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal writes
            writes += 1
            if writes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*arguments, **named)

        return call

    compute, remember = segment._Block._compute, bookkeeping.Bookkeeping.remember

    def begin(self: Any, *arguments: Any, **named: Any) -> Any:
        say("begun", self.book.index)
        return compute(self, *arguments, **named)

    def record(self: Any, *arguments: Any) -> None:
        remember(self, *arguments)
        say("recorded", self.index)

    segment._Block._compute, bookkeeping.Bookkeeping.remember = begin, record  # type: ignore[method-assign]
    # Whatever changes on disk, zarr's files included, does so by one of these.
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
    shutil.rmtree = counted(shutil.rmtree)  # type: ignore[assignment]
