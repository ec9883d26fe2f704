"""One attempt at a run: who made it with what, how far it is, and how it ended."""

from __future__ import annotations

import platform
import sys
import threading
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any

from pipeline.errors import PipelineError
from pipeline.events import BlockDone, BlocksSettled, Event, JobsStarted, Observer
from pipeline.findings.summary import Summary
from pipeline.segmentation.plan import Plan
from pipeline.storage.lock import now, whoami
from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume

RECORDED_PACKAGES = ("kesm-pipeline", "dask", "imagecodecs", "numba", "numcodecs", "numpy", "scipy", "zarr")
BEAT_EVERY_S = 5.0


class Attempt:
    """Records an attempt when it is entered, its heartbeat every few seconds, and its end when it is left.

    It stands between the engine and an observer, whose events it hands on.

    Parameters
    ----------
    volume : Volume
    tables : RunTables
    plan : Plan
    observer : callable
    """

    def __init__(self, volume: Volume, tables: RunTables, plan: Plan, observer: Observer) -> None:
        self._volume, self._tables, self._plan, self._observer = volume, tables, plan, observer
        self._blocks = {"total": 0, "done": 0, "reused": 0, "failed": 0}
        self._voxels = 0
        self._begin = time.monotonic()
        self._outcome: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat_on, name="kesm-heartbeat", daemon=True)

    def __enter__(self) -> Attempt:
        self._beginning = self._describe()
        self._number = self._tables.journal.begin_attempt(self._beginning)
        self._volume.sign_mask(self._plan.name, {"number": self._number, **self._beginning})
        self._tables.journal.beat(self._heartbeat())
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._heart.join()
        if error is None:
            self._end("finished")
            return
        with suppress(PipelineError):  # of a disk that is full: that has been said already
            self._end(f"failed: {error}" if isinstance(error, Exception) else "stopped")

    def __call__(self, event: Event) -> None:
        """Take in an event, and hand it on; may be called from any thread."""
        with self._lock:
            match event:
                case JobsStarted(count=count, what=""):
                    self._blocks["total"] = count
                case BlocksSettled(count=count):
                    self._blocks["done"] += count
                    self._blocks["reused"] += count
                case BlockDone():
                    self._blocks["done"] += 1
                    self._blocks["reused"] += event.reused
                    self._blocks["failed"] += event.failed
                    self._voxels += 0 if event.reused else event.voxels
        if isinstance(event, JobsStarted | BlocksSettled):
            self._tables.journal.beat(self._heartbeat())
        self._observer(event)

    def finish(self, summary: Summary) -> None:
        """Keep what was found, for the record of the end."""
        found = summary.document()
        self._outcome = {key: found[key] for key in ("tiles", "counts", "scores", "elapsed_s")}
        if found["excluded"] is not None:
            self._outcome["excluded"] = found["excluded"]

    def _end(self, ending: str) -> None:
        end = {"ended": now(), "ending": ending, **self._outcome}
        self._tables.journal.end_attempt(self._number, end)
        self._volume.sign_mask(self._plan.name, {"number": self._number, **self._beginning, **end})

    def _beat_on(self) -> None:
        while not self._over.wait(BEAT_EVERY_S):
            with suppress(Exception):  # whatever keeps it from being written will end the run, or pass
                self._tables.journal.beat(self._heartbeat())

    def _heartbeat(self) -> dict[str, Any]:
        with self._lock:
            return {
                "attempt": self._number,
                "time": now(),
                "every_s": BEAT_EVERY_S,
                **{key: self._beginning[key] for key in ("host", "process")},
                "blocks": dict(self._blocks),
                "voxels": self._voxels,
                "elapsed_s": round(time.monotonic() - self._begin, 3),
            }

    def _describe(self) -> dict[str, Any]:
        """Who makes the attempt, where, with which programs, of what."""
        plan, truth = self._plan, self._plan.truth
        return {
            "started": now(),
            **whoami(),
            "command": sys.argv,
            "engine": plan.engine,
            "recipe": plan.recipe.document(),
            "region": str(plan.region),
            "truth": truth,
            "inputs": {
                "image": self._volume.slices.fingerprint(),
                "truth": None if truth is None else self._volume.truth(truth)[1].fingerprint(),
            },
            "packages": {name: _version(name) for name in RECORDED_PACKAGES} | {"python": platform.python_version()},
        }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder of sources
        return "not installed"
