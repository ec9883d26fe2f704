"""What a round of a sync is to write: files of the source folders that are new, whole, of the right size, and placed.

All are decoded before anything is written: a file that cannot be is no slice, and leaves no gap behind the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.errors import (
    ImageFileError,
    LabelValueError,
    MissingInputError,
    PipelineError,
    ShapeMismatchError,
    UnsupportedImageError,
)
from pipeline.events import Observer
from pipeline.images.calibration import check_stated
from pipeline.images.stack import Page, find_page, read_page
from pipeline.intake.ingest import check_image, check_shape, ingest_threads, page_values, stored_mapping
from pipeline.intake.mapping import LabelOptions, Wording, decide_mapping
from pipeline.intake.mapping import Mapping as LabelMapping
from pipeline.intake.sources import (
    Changes,
    Note,
    Recorded,
    SourceFile,
    find_images,
    find_truths,
    find_unsettled,
    list_source,
    match_images,
)
from pipeline.machine import available_cpus
from pipeline.segmentation.engine import ThreadRunner
from pipeline.settings.config import RunConfig, SyncOptions, ThreadsCluster
from pipeline.storage.ledger import Ledger
from pipeline.storage.volume import Volume

Item = TypeVar("Item")
Result = TypeVar("Result")

BAD_FILE: tuple[type[PipelineError], ...] = (ImageFileError, UnsupportedImageError, MissingInputError)
"""What may be wrong with one file; everything else is wrong with more."""

WORDING = Wording("truth", "`vessel_above: LEVEL`", "`unlabelled: VALUE`")


@dataclass(frozen=True, slots=True)
class Held:
    """What a volume holds when a round begins; nothing, where there is none yet.

    Attributes
    ----------
    path : Path
    volume : Volume or None
    images, truths : Recorded
        Slices of the image, and of the truth whose files are watched.
    mapping : Mapping or None
        Of the truth, if it exists.
    """

    path: Path
    volume: Volume | None = None
    images: Recorded = field(default_factory=dict)
    truths: Recorded = field(default_factory=dict)
    mapping: LabelMapping | None = None

    @classmethod
    def of(cls, path: Path, truth: str | None) -> Held:
        """Look at a volume and one of its truths."""
        if not path.exists():
            return cls(path)
        volume = Volume(path)
        mapping = None if truth is None else stored_mapping(volume, truth, path, "truth")
        traced = {} if truth is None or mapping is None else _read_ledger(volume.truth(truth)[1])
        return cls(path, volume, _read_ledger(volume.slices), traced, mapping)

    def same(self, other: Held) -> bool:
        """Whether both hold the same slices, and a truth of the same meaning."""
        return (self.images, self.truths, self.mapping) == (other.images, other.truths, other.mapping)

    def unfinished(self) -> dict[int, str]:
        """Image slices that were being written when a sync was killed, and their files."""
        if self.volume is None:
            return {}
        ledger = self.volume.slices
        names = {z: ledger.source(z) for z in map(int, np.flatnonzero(~ledger.present()))}
        return {z: name for z, name in names.items() if name is not None}


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What is to be written, by slice, and what is not.

    Attributes
    ----------
    images, truths : mapping of int to Page
    mapping : Mapping or None
        What the values of the truths mean.
    images_vanished, truths_vanished : mapping of int to str
        Slices whose file is gone, and its name.
    waiting : tuple of Note
        Files that the next round looks at again.
    set_aside : tuple of Note
        Files that somebody must look at.
    """

    images: Mapping[int, Page]
    truths: Mapping[int, Page]
    mapping: LabelMapping | None
    images_vanished: Mapping[int, str]
    truths_vanished: Mapping[int, str]
    waiting: tuple[Note, ...]
    set_aside: tuple[Note, ...]


def gather(
    config: RunConfig, options: SyncOptions, held: Held, observer: Observer, pause: Callable[[float], object]
) -> Arrivals:
    """Find what is to be written; nothing is written yet.

    Young files are waited for, so that they may settle.

    Raises
    ------
    MissingInputError, ConfigError
        If a folder is gone, or is not one of this volume.
    ShapeMismatchError
        If a slice is of another size or type.
    LabelValueError
        If the values of the first truths have no meaning.
    """
    return _Gathering(config, options, held, _look(options, held, pause), observer).arrivals()


@dataclass(frozen=True, slots=True)
class _Found:
    """Files that the volume does not hold as they are, by their names and times; none has been opened.

    Attributes
    ----------
    images, truths : Changes
    last : int
        Slice that files without a number come after.
    unsettled : mapping of SourceFile to str
        Files that may still be written to, and what shows it.
    """

    images: Changes
    truths: Changes
    last: int
    unsettled: Mapping[SourceFile, str]


def _look(options: SyncOptions, held: Held, pause: Callable[[float], object]) -> _Found:
    """List the source folders, and wait until it is seen which of the young files are still written to."""
    unfinished = held.unfinished() if options.images.number is None else {}
    images = find_images(list_source(options.images, "sync.images"), held.images, held.path, unfinished)
    truths = Changes({})
    if options.truth is not None:
        names = {z: name for z, (name, _) in held.images.items()}
        truths = find_truths(list_source(options.truth, "sync.truth"), held.truths, names, held.path)
    unsettled = find_unsettled([*images.files, *truths.files], options.settle, pause)
    return _Found(images, truths, max([*held.images, *unfinished], default=-1), unsettled)


def _label_options(config: RunConfig, options: SyncOptions) -> LabelOptions | None:
    """How the values of the truth are read, where its files are watched."""
    if options.truth is None:
        return None
    return LabelOptions(str(config.truth), None, options.truth.vessel_above, options.truth.unlabelled, WORDING)


class _Gathering:
    """Opens the files that were found, and keeps notes of those that are left out."""

    def __init__(self, config: RunConfig, options: SyncOptions, held: Held, found: _Found, observer: Observer) -> None:
        self._options, self._held, self._found, self._observer = options, held, found, observer
        self._threads, self._label = sync_threads(config), _label_options(config, options)
        self._waiting = [Note(file.name, reason) for file, reason in found.unsettled.items()]
        self._set_aside = [*found.images.set_aside, *found.truths.set_aside]

    def arrivals(self) -> Arrivals:
        """Read headers, check sizes, decode, place."""
        images = self._read_headers(self._found.images, self._options.images.channel)
        truths = self._read_headers(self._found.truths, self._options.truth.channel if self._options.truth else None)
        self._check_sizes([*images.values()], [*truths.values()])
        readable = self._decode(_check_readable, images, "checking")
        placed = self._place_images({file: images[file] for file in readable})
        values = self._decode(page_values, truths, "checking the truth")
        traced = self._place_truths(values, placed)
        mapping, accepted = self._decide_mapping({z: (file, values[file]) for z, file in traced.items()})
        return Arrivals(
            images=placed, truths={z: truths[traced[z]] for z in accepted}, mapping=mapping,
            images_vanished=self._found.images.vanished, truths_vanished=self._found.truths.vanished,
            waiting=tuple(self._waiting), set_aside=tuple(self._set_aside),
        )  # fmt: skip

    def _read_headers(self, changes: Changes, channel: str | int | None) -> dict[SourceFile, Page]:
        settled = {file: file.path for file in changes.files if file not in self._found.unsettled}
        if not settled:
            return {}
        return self._read_each(partial(find_page, channel=channel), settled, ThreadRunner(self._threads))

    def _decode(
        self, function: Callable[[Page], Result], pages: Mapping[SourceFile, Page], what: str
    ) -> dict[SourceFile, Result]:
        if not pages:
            return {}
        largest = max(pages.values(), key=lambda page: page.shape[0] * page.shape[1])
        runner = ThreadRunner(ingest_threads(largest, self._threads), self._observer)
        return self._read_each(function, pages, runner, what)

    def _read_each(
        self, function: Callable[[Item], Result], items: Mapping[SourceFile, Item], runner: ThreadRunner, what: str = ""
    ) -> dict[SourceFile, Result]:
        """Call a function on what belongs to each file; files that it does not like are set aside."""

        def call(file: SourceFile) -> Result | PipelineError:
            try:
                return function(items[file])
            except BAD_FILE as error:
                return error

        results = dict(zip(items, runner(call, [*items], what), strict=True))
        bad = {file: result for file, result in results.items() if isinstance(result, PipelineError)}
        self._set_aside += [Note.of(file.name, error) for file, error in bad.items()]
        return {file: result for file, result in results.items() if not isinstance(result, PipelineError)}

    def _check_sizes(self, images: list[Page], truths: list[Page]) -> None:
        """Refuse the round where one slice does not fit: what is wrong with it is wrong with its folder."""
        volume, path = self._held.volume, self._held.path
        if volume is not None and volume.voxel_size_um is not None and self._options.voxel_size_um is None:
            own = ", ".join(f"{length:g}" for length in volume.voxel_size_um)
            way_out = f"leave the file out, or set `sync.voxel_size_um: [{own}]` if that is right"
            check_stated(images, volume.voxel_size_um, str(path), way_out)
        for page in images:
            if volume is not None:
                check_image(page, volume, path)
            elif (page.shape, page.dtype) != (images[0].shape, images[0].dtype):
                raise _misfit(page, images[0])
        for page in truths:
            if volume is not None:
                check_shape(page, volume, path)
            elif images and page.shape != images[0].shape:
                raise _misfit(page, images[0])

    def _place_images(self, pages: Mapping[SourceFile, Page]) -> dict[int, Page]:
        """Slices of the image files that can be read; those without a number follow the last slice."""
        placed = {z: pages[file] for z, file in self._found.images.numbered.items() if file in pages}
        z = self._found.last
        late: SourceFile | None = None
        for file in self._found.images.unnumbered:
            if late is not None and file not in self._found.unsettled:
                self._waiting.append(Note(file.name, f"comes after {late.name}, which is still being written"))
            elif file in self._found.unsettled:
                late = file
            elif file in pages:
                z += 1
                placed[z] = pages[file]
        return placed

    def _place_truths(self, files: Iterable[SourceFile], images: Mapping[int, Page]) -> dict[int, SourceFile]:
        """Slices of the truth files that can be read, and whose image is there or about to be."""
        readable = set(files)
        names = {z: name for z, (name, _) in self._held.images.items()} | {z: page.name for z, page in images.items()}
        placed = {z: file for z, file in self._found.truths.numbered.items() if file in readable}
        unnumbered = [file for file in self._found.truths.unnumbered if file in readable]
        matched, unmatched, odd = match_images(unnumbered, names, "sync.truth")
        self._set_aside += odd
        self._waiting += [Note(file.name, "waits for an image of its name") for file in unmatched]
        self._waiting += [Note(file.name, f"waits for the image of slice {z}") for z, file in placed.items()
                          if z not in names]  # fmt: skip
        return {z: file for z, file in sorted((placed | matched).items()) if z in names}

    def _decide_mapping(
        self, files: Mapping[int, tuple[SourceFile, set[int]]]
    ) -> tuple[LabelMapping | None, list[int]]:
        """What the values mean, and the slices that agree: the first files decide together, later ones one by one."""
        label, mapping = self._label, self._held.mapping
        if label is None or (mapping is None and not files):
            return None, []
        if mapping is None:
            return decide_mapping(sorted(set().union(*(values for _, values in files.values()))), label, None), [*files]
        mapping = decide_mapping([], label, mapping)
        accepted = []
        for z, (file, values) in files.items():
            try:
                mapping = decide_mapping(sorted(values), label, mapping)
                accepted.append(z)
            except LabelValueError as error:
                self._set_aside.append(Note(file.name, str(error)))
        return mapping, accepted


def _read_ledger(ledger: Ledger) -> Recorded:
    """Slices that a ledger records."""
    mtimes = ledger.mtimes_ns()
    return {z: (ledger.source(z), int(mtimes[z])) for z in map(int, np.flatnonzero(ledger.present()))}


def sync_threads(config: RunConfig) -> int:
    """Threads that read and write slices: as many as the run's, where those are this process's too."""
    own = config.cluster.threads if isinstance(config.cluster, ThreadsCluster) else None
    return own or available_cpus()


def _check_readable(page: Page) -> None:
    read_page(page)


def _misfit(page: Page, first: Page) -> ShapeMismatchError:
    return ShapeMismatchError(
        f"{page.name}: is {page.dtype}, {page.shape[0]} x {page.shape[1]}; {first.name} is {first.dtype}, "
        f"{first.shape[0]} x {first.shape[1]}; leave one out, crop or convert it"
    )
