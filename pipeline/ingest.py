"""Image stacks into volumes, slice by slice: what is checked first, and the job of one slice.

A new volume is built beside its place and moved there when it is whole, so that nothing half-made is ever found under
its name. Slices that are added to one are taken back if one of them fails.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray

from pipeline.config import check_name
from pipeline.errors import ConfigError, ExistsError, LabelValueError, MissingInputError, ShapeMismatchError
from pipeline.histogram import TRUTH_BACKGROUND, TRUTH_UNLABELLED, TRUTH_VESSEL
from pipeline.ome import VoxelSize
from pipeline.pyramid import Pyramid
from pipeline.stack import Page, read_page
from pipeline.store import disk_errors
from pipeline.tables import RunTables, run_names
from pipeline.volume import Ledger, Volume, beside, locked, publish

Item = TypeVar("Item")
Result = TypeVar("Result")

# Decoded slice, a decoder's own copy, a third for the pyramid, and the encoded shards.
SLICE_COPIES = 4
LISTED_VALUES = 12


class Runner(Protocol):
    """Calls a function on every item, several at a time, and returns the results in order."""

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return ``[function(item) for item in items]``."""


@dataclass(frozen=True, slots=True)
class Ingested:
    """What an ingest did: the slices that were written, and the rule that placed them."""

    volume: Path
    label: str | None
    slices: tuple[int, ...]
    shape: tuple[int, int, int]
    placed: str
    mapping: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Mapping:
    """What the values of a label's files mean; one for each label, binding for all its files.

    Attributes
    ----------
    vessel : int or None
        The one value that is vessel, 0 being background; None as long as no file has held another value than 0.
    vessel_above : float or None
        Alternatively the level above which values are vessel.
    unlabelled : int or None
        The value that means "not annotated".
    """

    vessel: int | None
    vessel_above: float | None = None
    unlabelled: int | None = None

    def apply(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Stored values of a label: 0 background, 255 vessel, 127 not annotated."""
        vessel = values > self.vessel_above if self.vessel_above is not None else values == (self.vessel or -1)
        stored = np.where(vessel, np.uint8(TRUTH_VESSEL), np.uint8(TRUTH_BACKGROUND))
        if self.unlabelled is not None:
            stored[values == self.unlabelled] = TRUTH_UNLABELLED
        return stored

    def __str__(self) -> str:
        """What the values mean, in words."""
        if self.vessel_above is not None:
            vessel = f"vessel above {self.vessel_above:g}"
        else:
            vessel = f"0 background, {'any one value' if self.vessel is None else self.vessel} vessel"
        return vessel + ("" if self.unlabelled is None else f", {self.unlabelled} not annotated")

    def document(self) -> dict[str, Any]:
        """The mapping as plain values."""
        return {"vessel": self.vessel, "vessel_above": self.vessel_above, "unlabelled": self.unlabelled}


def ingest_image(
    pages: Sequence[Page], path: Path, runner: Runner, voxel_size_um: VoxelSize | None = None, append: bool = False
) -> Ingested:
    """Write image slices: a new volume, or with ``append`` after the last slice of one that exists.

    Raises
    ------
    ExistsError, MissingInputError
        If the volume is there and should not be, or the other way round.
    ShapeMismatchError
        If slices do not fit the volume.
    ImageFileError
        If one cannot be decoded; then nothing is changed.
    """
    if append:
        return _append(pages, Volume(path), runner, voxel_size_um)
    if path.exists():
        raise ExistsError(f"{path}: exists already; add slices with --append, or choose another --volume")
    with _claimed(path), _staging(path, "ingest") as staging, disk_errors(path):
        built = staging / path.name
        window = (0, 255) if pages[0].dtype == "uint8" else _window(pages, runner)
        volume = Volume.create(built, (len(pages), *pages[0].shape), pages[0].dtype, voxel_size_um, window)
        _write_slices(volume, pages, 0, staging, runner)
        publish(built, path)
    return _ingested(path, None, range(len(pages)), Volume(path), "in natural order")


def _append(pages: Sequence[Page], volume: Volume, runner: Runner, voxel_size_um: VoxelSize | None) -> Ingested:
    if voxel_size_um not in (None, volume.voxel_size_um):
        raise ConfigError(
            f"--voxel-size: got {voxel_size_um}, {volume.path} has {volume.voxel_size_um}; leave it out with --append"
        )
    _check_fits(pages[0], volume)
    if pages[0].dtype != volume.dtype:
        raise ShapeMismatchError(f"{pages[0].name}: is {pages[0].dtype}, {volume.path} is {volume.dtype}; convert it")
    with volume.lock(), _staging(volume.path, "ingest") as staging, disk_errors(volume.path):
        present = volume.slices.present()
        known = {volume.slices.source(z): z for z in map(int, np.flatnonzero(present))}
        for page in pages:
            if page.name in known:
                raise ConfigError(f"{page.name}: is slice {known[page.name]} of {volume.path} already; leave it out")
        before = volume.shape[0]
        # Slices at the end that do not exist are what a killed ingest has left.
        first = int(present.nonzero()[0].max()) + 1 if present.any() else 0
        try:
            _extend(volume, max(before, first + len(pages)))
            volume = Volume(volume.path)
            _write_slices(volume, pages, first, staging, runner)
        except BaseException:
            _extend(Volume(volume.path), first)
            raise
    return _ingested(volume.path, None, range(first, first + len(pages)), Volume(volume.path), "after the last slice")


def ingest_label(pages: Sequence[Page], path: Path, runner: Runner, label: LabelOptions) -> Ingested:
    """Write slices of an expert's truth; slices that are not given stay "not annotated".

    Every file is decoded before anything is written, because the meaning of the values is decided over all of them.

    Raises
    ------
    MissingInputError
        If the volume, or a slice that a file is for, does not exist.
    ShapeMismatchError
        If the files have not the image's size.
    LabelValueError
        If the values have no meaning, or another one than those that the label has already.
    ImageFileError
        If a file cannot be decoded; then nothing is changed.
    """
    volume = Volume(path)
    check_name(label.name, "--label")
    _check_fits(pages[0], volume)
    slices, placed = place(pages, volume, label.start_z)
    with volume.lock(), _staging(path, "label") as staging, disk_errors(path):
        known = volume.labels().get(label.name)
        if (known is not None and known.kind != "truth") or label.name in run_names(volume):
            raise ExistsError(f"--label: {label.name!r} is the mask of a run of {path}; choose another name")
        values = _distinct(runner(_page_values, pages))
        stored = Mapping(**known.mapping) if known else None
        mapping = decide_mapping(values, label, stored)
        if known is None:
            volume.remove_truth(label.name)  # of a process that died here
        try:
            truth, ledger = volume.truth(label.name) if known else volume.create_truth(label.name, mapping.document())
            if mapping != stored:
                volume.describe_label(label.name, "truth", mapping.document())
            job = _LabelJob(truth, ledger, mapping, staging)
            runner(job, list(zip(pages, slices, strict=True)))
            volume.publish_label(label.name)
        except BaseException:
            if known is None:
                volume.remove_truth(label.name)
            raise
    return _ingested(path, label.name, slices, volume, placed, mapping.document())


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """How files become a label.

    Attributes
    ----------
    name : str
    start_z : int or None
        Slice of the first file; without it, files are placed by their names.
    vessel_above, unlabelled : see `Mapping`
    """

    name: str
    start_z: int | None = None
    vessel_above: float | None = None
    unlabelled: int | None = None


def place(pages: Sequence[Page], volume: Volume, start_z: int | None) -> tuple[list[int], str]:
    """Slices that label files are for, and the rule that says so.

    From ``start_z`` on in order, where it is given; else by the name of the image's file; else by the last number in
    the name; else, if there are as many as slices, in order.

    Raises
    ------
    MissingInputError
        If a slice does not exist, or no rule fits.
    """
    present = [int(z) for z in np.flatnonzero(volume.slices.present())]
    if start_z is not None:
        slices = list(range(start_z, start_z + len(pages)))
        missing = sorted(set(slices) - set(present))
        if missing:
            raise MissingInputError(
                f"--start-z: {pages[slices.index(missing[0])].name} would be slice {missing[0]}, which does not exist; "
                f"{volume.path} has slices {present[0]} to {present[-1]}"
            )
        return slices, f"from slice {start_z} on"
    sources = {z: volume.slices.source(z) or "" for z in present}
    paged = any("#" in name for name in (*sources.values(), pages[0].name))
    strangers: set[str] = set()
    for rule, key in (("by file name", _stem), ("by the number in the file name", _number)):
        by_key = {key(source): z for z, source in sources.items()}
        keys = [key(page.name) for page in pages]
        if None in by_key or None in keys or len(by_key) < len(sources) or len(set(keys)) < len(keys):
            continue
        if set(keys) <= set(by_key):
            return [by_key[name] for name in keys], rule
        # By order, a file could come to a slice that its name contradicts; the numbers of pages are no names.
        if set(keys) & set(by_key) if key is _stem else not paged:
            strangers |= {page.name for page, name in zip(pages, keys, strict=True) if name not in by_key}
    if len(pages) == len(present) and not strangers:
        return present, "in natural order"
    raise MissingInputError(
        f"{min(strangers) if strangers else pages[0].name}: cannot be placed: its name and number are those of none of "
        f"the {len(present)} slices of {volume.path} ({sources[present[0]]} to {sources[present[-1]]}); leave it out, "
        "or give the slice of the first file with --start-z"
    )


def decide_mapping(values: Sequence[int], label: LabelOptions, stored: Mapping | None) -> Mapping:
    """What the values of a label's files mean, over all of them.

    Raises
    ------
    LabelValueError
        If they do not say it by themselves, or contradict what is stored.
    """
    asked = Mapping(None, label.vessel_above, label.unlabelled)
    if stored is not None:
        given = {key: value for key, value in asked.document().items() if value is not None}
        if any(getattr(stored, key) != value for key, value in given.items()):
            raise LabelValueError(
                f"--label {label.name}: its first files were read as {stored}, got {asked}; leave the options out, or "
                "ingest under another name"
            )
        asked = Mapping(None, stored.vessel_above, stored.unlabelled)
    if asked.vessel_above is not None:
        return asked
    others = [value for value in values if value not in (0, asked.unlabelled)]
    vessel = stored.vessel if stored is not None else None
    if len(others) > 1 or (vessel is not None and others not in ([], [vessel])):
        listed = ", ".join(map(str, values[:LISTED_VALUES])) + (", ..." if len(values) > LISTED_VALUES else "")
        if stored is None:
            raise LabelValueError(
                f"--label {label.name}: its files hold {len(values)} values ({listed}), expected 0 and one other; "
                "say which are vessel with --vessel-above LEVEL, and what nobody annotated with --unlabelled VALUE"
            )
        raise LabelValueError(
            f"--label {label.name}: these files hold {len(values)} values ({listed}), its first files were read as "
            f"{stored}; convert these, or ingest under another name"
        )
    return Mapping(others[0] if others else vessel, None, asked.unlabelled)


def ingest_threads(page: Page, cpus: int) -> int:
    """Slices to work on at once: one for each CPU, fewer where the memory does not hold them."""
    each = page.shape[0] * page.shape[1] * np.dtype(page.dtype).itemsize * SLICE_COPIES
    return max(1, min(cpus, int(psutil.virtual_memory().available * 0.8) // each))


@dataclass(frozen=True, slots=True)
class _ImageJob:
    """Writes one slice of the image, and then the record that makes it exist."""

    image: Pyramid
    ledger: Ledger
    staging: Path

    def __call__(self, task: tuple[Page, int]) -> None:
        page, z = task
        mtime_ns = page.path.stat().st_mtime_ns
        self.ledger.record(z, self.image.write_slice(z, read_page(page), self.staging), page.name, mtime_ns)


@dataclass(frozen=True, slots=True)
class _LabelJob:
    """Writes one slice of a truth, and then its record."""

    truth: Pyramid
    ledger: Ledger
    mapping: Mapping
    staging: Path

    def __call__(self, task: tuple[Page, int]) -> None:
        page, z = task
        mtime_ns = page.path.stat().st_mtime_ns
        self.ledger.forget(z)  # a slice that is traced again: its old record must not vouch for new bytes
        stored = self.mapping.apply(read_page(page))
        self.ledger.record(z, self.truth.write_slice(z, stored, self.staging), page.name, mtime_ns)


def _write_slices(volume: Volume, pages: Sequence[Page], first: int, staging: Path, runner: Runner) -> None:
    job = _ImageJob(volume.image, volume.slices, staging)
    runner(job, [(page, first + offset) for offset, page in enumerate(pages)])


def _extend(volume: Volume, slices: int) -> None:
    """Give a volume this many slices: the tables of its runs first, its image last."""
    for name in run_names(volume):
        RunTables(volume, name).resize(slices)
    volume.extend(slices)


def _page_values(page: Page) -> NDArray[Any]:
    """Distinct values of one slice."""
    pixels = read_page(page)
    return np.flatnonzero(np.bincount(pixels.ravel(), minlength=2))


def _distinct(values: Sequence[NDArray[Any]]) -> list[int]:
    return [int(value) for value in np.unique(np.concatenate(values))]


def _window(pages: Sequence[Page], runner: Runner) -> tuple[int, int]:
    """Lowest and highest value of a 16-bit stack, over up to nine slices spread over it."""
    spread = [pages[int(position)] for position in np.unique(np.linspace(0, len(pages) - 1, 9).astype(int))]
    values = [(int(pixels.min()), int(pixels.max())) for pixels in runner(read_page, spread)]
    return min(low for low, _ in values), max(high for _, high in values)


def _check_fits(page: Page, volume: Volume) -> None:
    if page.shape != volume.shape[1:]:
        raise ShapeMismatchError(
            f"{page.name}: is {page.shape[0]} x {page.shape[1]}, the slices of {volume.path} are {volume.shape[1]} x "
            f"{volume.shape[2]}; crop it or leave it out"
        )


def _stem(name: str) -> str | None:
    """File name without its suffix, with the page of a multi-page file."""
    file, _, page = name.partition("#")
    return f"{Path(file).stem}#{page}"


def _number(name: str) -> int | None:
    numbers = re.findall(r"\d+", _stem(name) or "")
    return int(numbers[-1]) if numbers else None


def _ingested(
    path: Path,
    label: str | None,
    slices: Sequence[int],
    volume: Volume,
    placed: str,
    mapping: dict[str, Any] | None = None,
) -> Ingested:
    return Ingested(path, label, tuple(slices), volume.shape, placed, mapping or {})


@contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Be the only process that makes a volume; where none is made, its lock file goes too."""
    if not path.parent.is_dir():
        raise MissingInputError(f"{path.parent}: no such folder; make it first, or choose another --volume")
    lock = beside(path, "lock")
    with locked(lock, f"{path}: another process is making it"):
        try:
            yield
        finally:
            if not path.exists():
                lock.unlink(missing_ok=True)


@contextmanager
def _staging(path: Path, what: str) -> Iterator[Path]:
    """Folder beside a volume for what is being written; swept before and after."""
    staging = beside(path, "staging") / what
    with disk_errors(path):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if staging.parent.is_dir() and not any(staging.parent.iterdir()):
            staging.parent.rmdir()
