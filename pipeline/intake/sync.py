"""From source folders to scores: take the slices that have arrived or changed, and run what is pending.

A round looks, checks and then writes. All that is wrong with a configuration, a folder or a header is found before
anything is written; what is wrong with one file sets that one aside. Each slice is committed on its own: a round that
is killed has lost the slices in work, and the next one takes those.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pipeline.errors import ConfigError, LockedError, MissingInputError, PipelineError
from pipeline.events import Observer, ignore
from pipeline.findings.summary import SCHEMA, Summary
from pipeline.images.calibration import flat_note, is_same_size, show_size, stated_size
from pipeline.images.stack import Page
from pipeline.intake.arrivals import BAD_FILE, Arrivals, Held, gather, sync_threads
from pipeline.intake.ingest import SliceJob, Written, changing, ingest_threads, making, truth_target
from pipeline.intake.sources import Note
from pipeline.segmentation.engine import ThreadRunner
from pipeline.segmentation.plan import make_plan
from pipeline.segmentation.runs import run_plan
from pipeline.settings.config import RunConfig, SyncOptions
from pipeline.storage.draft import check_outside
from pipeline.storage.extent import resize_volume
from pipeline.storage.lock import locked, now
from pipeline.storage.tables import quiet, run_names
from pipeline.storage.volume import Volume, beside


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of the slices of the image, or of the truth.

    Attributes
    ----------
    added, replaced : tuple of int
        Slices that were written.
    vanished : mapping of int to str
        Slices whose file is gone, and its name; they stay.
    """

    added: tuple[int, ...] = ()
    replaced: tuple[int, ...] = ()
    vanished: Mapping[int, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The same as plain values."""
        gone = [{"slice": z, "file": name} for z, name in sorted(self.vanished.items())]
        return {"added": list(self.added), "replaced": list(self.replaced), "vanished": gone}


@dataclass(frozen=True, slots=True)
class Synced:
    """What one round has done.

    Attributes
    ----------
    started : str
        ISO 8601.
    volume : Path
    images, truths : Taken
    waiting : tuple of Note
        Files that the next round looks at again: still written to, or a truth without its image.
    set_aside : tuple of Note
        Files that somebody must look at.
    note : str or None
        What somebody should know of a volume that was made just now.
    gaps : tuple of (int, int)
        Slices that do not exist, as half-open ranges.
    run : Summary or None
        None where there are no slices yet.
    elapsed_s : float
    """

    started: str
    volume: Path
    images: Taken
    truths: Taken
    waiting: tuple[Note, ...]
    set_aside: tuple[Note, ...]
    note: str | None
    gaps: tuple[tuple[int, int], ...]
    run: Summary | None
    elapsed_s: float

    @property
    def partial(self) -> bool:
        """Whether somebody must look at something: a file that was set aside, a tile that failed."""
        return bool(self.set_aside) or (self.run is not None and self.run.tiles.failed > 0)

    def document(self) -> dict[str, Any]:
        """The result as the JSON object of the command line."""
        return {
            "schema": SCHEMA,
            "started": self.started,
            "volume": str(self.volume),
            **self.images.document(),
            "truths": self.truths.document(),
            "waiting": [asdict(note) for note in self.waiting],
            "set_aside": [asdict(note) for note in self.set_aside],
            "note": self.note,
            "gaps": [list(gap) for gap in self.gaps],
            "run": None if self.run is None else self.run.document(),
            "elapsed_s": self.elapsed_s,
        }

    def line(self) -> str:
        """The result in one line; what there is none of is left out."""
        gone = len(self.images.vanished) + len(self.truths.vanished)
        found = {
            "added": len(self.images.added), "replaced": len(self.images.replaced),
            "truths added": len(self.truths.added), "truths replaced": len(self.truths.replaced),
            "waiting": len(self.waiting), "set aside": len(self.set_aside), "vanished": gone,
        }  # fmt: skip
        parts = [f"{count:,} {what}" for what, count in found.items() if count] or ["nothing new"]
        if self.gaps:
            gaps = (str(first) if end == first + 1 else f"{first} to {end - 1}" for first, end in self.gaps)
            parts.append(f"gaps: {', '.join(gaps)}")
        return f"{self.volume}: {', '.join(parts)}; {self._run_line()}; {self.elapsed_s:.1f} s"

    def _run_line(self) -> str:
        if self.run is None:
            return "no slices yet"
        tiles, scores = self.run.tiles, self.run.scores
        text = f"run {self.run.name}: {tiles.done:,} of {tiles.total:,} tiles done, {tiles.done - tiles.reused:,} now"
        text += f", {tiles.failed:,} failed" if tiles.failed else ""
        return text if scores is None or scores.mcc is None else f"{text}, MCC {scores.mcc:.4f}"


def sync(config: RunConfig, observer: Observer = ignore, pause: Callable[[float], object] = time.sleep) -> Synced:
    """Take the slices that have arrived or changed, and run what is pending.

    Parameters
    ----------
    config : RunConfig
        With a section ``sync``.
    observer : callable, optional
        Called with every event, from any thread.
    pause : callable, optional
        Waits for so many seconds.

    Raises
    ------
    PipelineError
        If the configuration, a folder or a header is wrong: then the volume is as it was. If another process works on
        the volume, or it cannot be written: then slices that are recorded stay.
    """
    started, begin = now(), time.monotonic()
    options, path = check_sync(config), config.volume.resolve()
    if not path.parent.is_dir():
        raise MissingInputError(f"{path.parent}: no such folder; make it first, or mend `volume`")
    if not path.exists():
        check_outside(path)
    with locked(beside(path, "sync.lock"), f"{path}: another sync is at work"):
        held = Held.of(path, config.truth if options.truth else None)
        _check_volume(config, options, held)
        arrivals = gather(config, options, held, observer, pause)
        new = held.volume is None and options.voxel_size_um is None
        note = flat_note([*arrivals.images.values()], "`sync.voxel_size_um: [z, y, x]`") if new else None
        images, truths = _write(config, options, held, arrivals, observer)
        summary = _run(config, path, observer)
    return Synced(
        started=started, volume=path,
        images=_taken(images.slices, held.images, arrivals.images_vanished),
        truths=_taken(truths.slices, held.truths, arrivals.truths_vanished),
        waiting=arrivals.waiting + images.waiting + truths.waiting,
        set_aside=arrivals.set_aside + images.set_aside + truths.set_aside, note=note, gaps=_gaps(path),
        run=summary,
        elapsed_s=round(time.monotonic() - begin, 3),
    )  # fmt: skip


def sync_every(
    every_s: float,
    config: RunConfig,
    report: Callable[[Synced | Exception], object],
    pause: Callable[[float], object] = time.sleep,
) -> NoReturn:
    """Sync again and again, so many seconds from start to start, and report each result, or what went wrong."""
    while True:
        begin = time.monotonic()
        try:
            outcome: Synced | Exception = sync(config, pause=pause)
        except Exception as error:  # whatever it is, the next round may be a better one
            outcome = error
        report(outcome)
        pause(max(0.0, every_s - (time.monotonic() - begin)))


def check_sync(config: RunConfig) -> SyncOptions:
    """Source folders of a configuration, which must be one for syncs.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if config.sync is None:
        raise ConfigError("sync: the configuration has no section `sync`; add one as in configs/sync.yaml")
    if config.region is not None:
        raise ConfigError("region: a sync runs everything; leave it out, or give it to `kesm run` with --region")
    if config.refit:
        raise ConfigError("refit: every round would find another level; leave it out, and `kesm run --set refit=true`")
    if config.truth is not None and config.truth == config.run_name:
        raise ConfigError(f"truth: {config.truth!r} is the name of the run too; choose another `name`")
    return config.sync


def _check_volume(config: RunConfig, options: SyncOptions, held: Held) -> None:
    """Refuse, before anything is looked at, a volume that this configuration cannot run on."""
    if held.volume is None:
        if config.truth is not None and options.truth is None:
            raise ConfigError(f"truth: {config.truth!r} has no files; add `sync.truth`, or leave it out")
        return
    size, own = options.voxel_size_um, held.volume.voxel_size_um
    if size is not None and (own is None or not is_same_size(size, own)):
        raise ConfigError(
            f"sync.voxel_size_um: got {show_size(size)}, {held.path} has {show_size(own) if own else 'none'}; leave it "
            "out, or name another volume"
        )
    make_plan(_without_truth(config) if options.truth and held.mapping is None else config, held.volume)


@dataclass(frozen=True, slots=True)
class Committed:
    """Slices that were recorded, and files that were decoded before and are not taken after all."""

    slices: tuple[int, ...] = ()
    waiting: tuple[Note, ...] = ()
    set_aside: tuple[Note, ...] = ()

    def __add__(self, other: Committed) -> Committed:
        return Committed(self.slices + other.slices, self.waiting + other.waiting, self.set_aside + other.set_aside)


def _write(
    config: RunConfig, options: SyncOptions, held: Held, arrivals: Arrivals, observer: Observer
) -> tuple[Committed, Committed]:
    """Write what has arrived, slice by slice; return what became of image and truth.

    What is replaced comes last: it alone must wait for the runs that are at work.
    """
    if not arrivals.images and not arrivals.truths:
        return Committed(), Committed()
    added = {z: page for z, page in sorted(arrivals.images.items()) if z not in held.images}
    replaced = {z: page for z, page in arrivals.images.items() if z in held.images}
    a_page = next(iter((arrivals.images or arrivals.truths).values()))
    runner = ThreadRunner(ingest_threads(a_page, sync_threads(config)), observer)
    slices = max(added, default=-1) + 1
    if held.volume is None:
        pages = [*added.values()]
        size = options.voxel_size_um or stated_size(pages, "set the right one as `sync.voxel_size_um: [z, y, x]`")
        with making(held.path, pages, slices, runner, size) as (volume, _):
            make_plan(_without_truth(config), volume)
    with changing(held.path, "sync") as (volume, staging):
        if not held.same(Held.of(held.path, config.truth if options.truth else None)):
            raise LockedError(f"{held.path}: another process has changed its slices meanwhile; sync again")
        if slices > volume.shape[0]:
            resize_volume(volume, slices)
        job = SliceJob(volume.image, volume.slices, staging)
        images = _commit(_Commit(job, added, gapless=options.images.number is None), runner, "image")
        truths = _write_truths(str(config.truth), volume, held, arrivals, staging, runner)
        if replaced:
            with quiet(volume):
                images += _commit(_Commit(job, replaced), runner, "image")
    return images, truths


def _write_truths(
    name: str, volume: Volume, held: Held, arrivals: Arrivals, staging: Path, runner: ThreadRunner
) -> Committed:
    """Write the truths whose image is there now."""
    present = volume.slices.present()
    pages = {z: page for z, page in arrivals.truths.items() if present[z]}
    early = tuple(Note(page.name, "waits for its image") for z, page in arrivals.truths.items() if not present[z])
    if not pages or arrivals.mapping is None:
        return Committed(waiting=early)
    with truth_target(volume, name, held.mapping, arrivals.mapping) as target:
        pass  # from now on it exists: its slices are committed one by one
    commit = _Commit(SliceJob(*target, staging, arrivals.mapping), pages)
    return Committed(waiting=early) + _commit(commit, runner, name)


def _commit(commit: _Commit, runner: ThreadRunner, what: str) -> Committed:
    """Write and record slices, several at a time."""
    if commit.count:
        # Not slice by slice: a runner has an order of its own, and what is recorded in order is best written so.
        runner(_call, [commit.write_next] * commit.count, what)
    return commit.outcome()


def _call(job: Callable[[], None]) -> None:
    job()


class _Commit:
    """Slices that threads write, one with each call, and record in the order of z: each as soon as those before it are.

    A file that was spoilt since it was decoded is set aside. A slice that cannot be recorded stays the first in the
    queue, and holds up those behind it.

    Parameters
    ----------
    job : SliceJob
    pages : mapping of int to Page
    gapless : bool
        Whether a spoilt file holds up those behind it as well. Without numbers files only ever go after the last
        slice: a gap before it is one that no later round could fill.
    """

    def __init__(self, job: SliceJob, pages: Mapping[int, Page], gapless: bool = False) -> None:
        self.count = len(pages)
        self._job, self._pages, self._gapless = job, pages, gapless
        self._to_write, self._to_record = deque(sorted(pages)), deque(sorted(pages))
        self._written: dict[int, Written] = {}
        self._spoilt: dict[int, PipelineError] = {}
        self._recorded: list[int] = []
        self._lock = threading.Lock()

    def write_next(self) -> None:
        """Write the first slice that nobody has taken, and record those whose turn has come."""
        if self._gapless and self._spoilt:
            return
        z = self._to_write.popleft()
        try:
            self._written[z] = self._job.write((self._pages[z], z))
        except BAD_FILE as error:
            self._spoilt[z] = error
        with self._lock:
            self._record()

    def outcome(self) -> Committed:
        """What has become of the slices."""
        spoilt = {self._pages[z].name: error for z, error in sorted(self._spoilt.items())}
        late = [self._pages[z].name for z in self._to_record if z not in self._spoilt]
        return Committed(
            tuple(self._recorded),
            tuple(Note(name, f"comes after {next(iter(spoilt))}, which cannot be read") for name in late),
            tuple(Note.of(name, error) for name, error in spoilt.items()),
        )

    def _record(self) -> None:
        while self._to_record:
            z = self._to_record[0]
            if z in self._written:
                self._job.record(self._written[z])
                self._recorded.append(z)
            elif z not in self._spoilt or self._gapless:
                return
            self._to_record.popleft()


def _run(config: RunConfig, path: Path, observer: Observer) -> Summary | None:
    """Run what is pending; a truth that has no slice yet is left out."""
    if not path.exists():
        return None
    volume = Volume(path)
    if not volume.slices.present().any() and config.run_name not in run_names(volume):
        return None
    traced = config.truth in volume.labels()
    return run_plan(make_plan(config if traced else _without_truth(config), volume), config.cluster, observer)


def _without_truth(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"truth": None, "confusion": False})


def _taken(written: Sequence[int], before: Mapping[int, object], vanished: Mapping[int, str]) -> Taken:
    return Taken(tuple(z for z in written if z not in before), tuple(z for z in written if z in before), vanished)


def _gaps(path: Path) -> tuple[tuple[int, int], ...]:
    """Ranges of slices that do not exist."""
    if not path.exists():
        return ()
    absent = np.concatenate([[False], ~Volume(path).slices.present(), [False]])
    edges = np.flatnonzero(absent[1:] != absent[:-1])
    return tuple((int(start), int(stop)) for start, stop in edges.reshape(-1, 2))
