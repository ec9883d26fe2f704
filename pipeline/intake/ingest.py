"""Image stacks into volumes, slice by slice: what is checked first, and the job of one slice.

A new volume is built beside its place and moved there when it is whole, so that nothing half-made is ever found under
its name. Slices that are added to one are recorded when all are written, in order of z, and taken back if one of them
fails: whatever is killed when, those that exist have no gap. (`intake.sync` records each as soon as it is written.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, ExistsError, MissingInputError, ShapeMismatchError
from pipeline.images.calibration import check_stated, is_same_size, show_size, stated_size
from pipeline.images.pixels import decoding
from pipeline.images.stack import Page, read_page
from pipeline.intake.mapping import LabelOptions, Mapping, decide_mapping
from pipeline.intake.placement import place
from pipeline.kernels.histogram import UNLABELLED, joint_histogram
from pipeline.machine import fitting_threads
from pipeline.runner import Runner
from pipeline.settings.model import check_name
from pipeline.storage.disk import disk_errors
from pipeline.storage.draft import check_outside
from pipeline.storage.extent import complete_resize, resize_volume
from pipeline.storage.ledger import Ledger
from pipeline.storage.lock import locked
from pipeline.storage.ome import VoxelSize
from pipeline.storage.pyramid import Pyramid
from pipeline.storage.tables import run_names
from pipeline.storage.volume import Volume, beside, publish, staging_folder

# Decoded slice, a decoder's own copy, a third for the pyramid, and what a decoder or a mapping may hold besides.
SLICE_COPIES = 4


@dataclass(frozen=True, slots=True)
class Ingested:
    """What an ingest did: the slices that were written, and the rule that placed them."""

    volume: Path
    label: str | None
    slices: tuple[int, ...]
    shape: tuple[int, int, int]
    placed: str
    mapping: dict[str, Any]
    voxel_size_um: VoxelSize | None = None


def ingest_image(
    pages: Sequence[Page], path: Path, runner: Runner, voxel_size_um: VoxelSize | None = None, append: bool = False
) -> Ingested:
    """Write image slices: a new volume, or with ``append`` after the last slice of one that exists.

    Where no voxel size is given, it is the one that the files state, if they do.

    Raises
    ------
    ExistsError, MissingInputError
        If the volume is there and should not be, or the other way round.
    ShapeMismatchError
        If slices do not fit the volume.
    ConfigError
        If the voxel size is not the volume's, or files contradict each other in it.
    ImageFileError
        If one cannot be decoded; then nothing is changed.
    """
    if append:
        return _append(pages, path, runner, voxel_size_um)
    if path.exists():
        raise ExistsError(f"{path}: exists already; add slices with --append, or choose another --volume")
    size = voxel_size_um or stated_size(pages, "give the right one with --voxel-size Z,Y,X")
    with making(path, pages, len(pages), runner, size) as (volume, staging):
        job = SliceJob(volume.image, volume.slices, staging)
        _write_slices(job, [(page, z) for z, page in enumerate(pages)], runner)
    return Ingested(path, None, tuple(range(len(pages))), volume.shape, "in natural order", {}, size)


@contextmanager
def making(
    path: Path, pages: Sequence[Page], slices: int, runner: Runner, voxel_size_um: VoxelSize | None
) -> Iterator[tuple[Volume, Path]]:
    """Make an empty volume, for slices like these, beside its place; it is moved there if all goes well.

    Raises
    ------
    ConfigError
        If it would lie inside another one.
    MissingInputError
        If the folder that it is for does not exist.
    LockedError
        If another process makes it.
    """
    check_outside(path)
    with _claimed(path), staging_folder(path, "ingest-image") as staging, disk_errors(path):
        built = staging / path.name
        window = (0, 255) if pages[0].dtype == "uint8" else _window(pages, runner)
        yield Volume.create(built, (slices, *pages[0].shape), pages[0].dtype, voxel_size_um, window), staging
        publish(built, path)


def _append(pages: Sequence[Page], path: Path, runner: Runner, voxel_size_um: VoxelSize | None) -> Ingested:
    with changing(path, "ingest-image") as (volume, staging):
        _check_appendable(pages, volume, path, voxel_size_um)
        present = np.flatnonzero(volume.slices.present())
        # Slices at the end that do not exist are what a killed ingest has left.
        first = int(present[-1]) + 1 if present.size else 0
        slices = range(first, first + len(pages))
        try:
            resize_volume(volume, max(volume.shape[0], slices.stop))
            job = SliceJob(volume.image, volume.slices, staging)
            _write_slices(job, list(zip(pages, slices, strict=True)), runner)
        except BaseException:
            resize_volume(Volume(path), first)
            raise
    return Ingested(path, None, tuple(slices), volume.shape, "after the last slice", {}, volume.voxel_size_um)


def _check_appendable(pages: Sequence[Page], volume: Volume, path: Path, voxel_size_um: VoxelSize | None) -> None:
    """Refuse what does not fit, and files that are slices already: of one name, and not written since."""
    size = volume.voxel_size_um
    if voxel_size_um is not None and (size is None or not is_same_size(voxel_size_um, size)):
        raise ConfigError(
            f"--voxel-size: got {show_size(voxel_size_um)}, {path} has {show_size(size) if size else 'none'}; leave it "
            "out with --append"
        )
    if voxel_size_um is None and size is not None:
        own = ",".join(f"{length:g}" for length in size)
        check_stated(pages, size, str(path), f"leave the file out, or give --voxel-size {own} if that is right")
    check_image(pages[0], volume, path)
    mtimes = volume.slices.mtimes_ns()
    known = {(source, int(mtimes[z])): z for z, source in _sources(volume).items()}
    for page in pages:
        z = known.get((page.name, _mtime_ns(page)))
        if z is not None:
            raise ConfigError(f"{page.name}: is slice {z} of {path} already; leave it out")


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
    check_name(label.name, "--label")
    with changing(path, "ingest-label") as (volume, staging):
        check_shape(pages[0], volume, path)
        stored = stored_mapping(volume, label.name, path)
        slices, placed = place(pages, _sources(volume), label.start_z, path)
        values = sorted(set().union(*runner(page_values, pages, "checking")))
        mapping = decide_mapping(values, label, stored)
        with truth_target(volume, label.name, stored, mapping) as (truth, ledger):
            job = SliceJob(truth, ledger, staging, mapping)
            _write_slices(job, list(zip(pages, slices, strict=True)), runner, "writing")
    return Ingested(path, label.name, tuple(slices), volume.shape, placed, mapping.document(), volume.voxel_size_um)


def stored_mapping(volume: Volume, name: str, path: Path, option: str = "--label") -> Mapping | None:
    """Mapping of the truth of this name, or None if it is to be made.

    Raises
    ------
    ExistsError
        If the name is that of a mask.
    """
    known = volume.labels().get(name)
    if (known is not None and known.kind != "truth") or name in run_names(volume):
        what = {"derived": "derived from a mask", "confusion": "the confusion of a run"}
        kind = "mask" if known is None else known.kind
        raise ExistsError(f"{option}: {name!r} is {what.get(kind, 'the mask of a run')} of {path}; choose another name")
    return None if known is None else Mapping(**known.mapping)


@contextmanager
def truth_target(
    volume: Volume, name: str, stored: Mapping | None, mapping: Mapping
) -> Iterator[tuple[Pyramid, Ledger]]:
    """Open a truth to write into it; a new one is listed once that is done, and removed if it fails."""
    if stored is not None:
        if mapping != stored:
            volume.describe_label(name, "truth", mapping.document())
        yield volume.truth(name)
        return
    volume.remove_truth(name)  # of a process that died here
    try:
        yield volume.create_truth(name, mapping.document())
        volume.publish_label(name)
    except BaseException:
        volume.remove_truth(name)
        raise


def ingest_threads(page: Page, cpus: int) -> int:
    """Slices to work on at once: one for each CPU, fewer where the memory does not hold them."""
    each = page.shape[0] * page.shape[1] * np.dtype(page.dtype).itemsize * SLICE_COPIES
    return fitting_threads(cpus, each)


@dataclass(frozen=True, slots=True)
class Written:
    """A slice that is written, and what is to be recorded of it."""

    z: int
    shard_digests: NDArray[np.uint64]
    source: str
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class SliceJob:
    """Decodes one slice and writes it with its levels; it exists once it is recorded as well."""

    target: Pyramid
    ledger: Ledger
    staging: Path
    mapping: Mapping | None = None

    def write(self, task: tuple[Page, int]) -> Written:
        """Decode and write one slice."""
        page, z = task
        mtime_ns = _mtime_ns(page)  # before it is read: what is written to the file meanwhile makes it another file
        plane = read_page(page) if self.mapping is None else self.mapping.apply(read_page(page))
        # A slice that is written again: its record must not vouch for new bytes, and must not go before there are any.
        self.ledger.forget(z)
        return Written(z, self.target.write_slice(z, plane, self.staging), page.name, mtime_ns)

    def record(self, written: Written) -> None:
        """Record a slice that is written."""
        self.ledger.record(written.z, written.shard_digests, written.source, written.mtime_ns)


def _write_slices(job: SliceJob, tasks: Sequence[tuple[Page, int]], runner: Runner, what: str = "") -> None:
    """Write all slices, and then the records that make them exist, in order of z."""
    for written in sorted(runner(job.write, tasks, what), key=attrgetter("z")):
        job.record(written)


def _sources(volume: Volume) -> dict[int, str]:
    """Slices that exist, and the name of the file that each came from."""
    return {z: volume.slices.source(z) or "" for z in map(int, np.flatnonzero(volume.slices.present()))}


def _mtime_ns(page: Page) -> int:
    with decoding(page.name):
        return page.path.stat().st_mtime_ns


def page_values(page: Page) -> set[int]:
    """Distinct values of one slice."""
    pixels = read_page(page)
    # np.bincount casts to int64 first, which takes eight times the memory of the slice, and np.unique sorts a copy.
    table = np.empty((3, 1 << 8 * pixels.itemsize), np.uint32)
    joint_histogram(pixels, None, table)
    return set(map(int, np.flatnonzero(table[UNLABELLED])))


def _window(pages: Sequence[Page], runner: Runner) -> tuple[int, int]:
    """Lowest and highest value of a 16-bit stack, over up to nine slices spread over it."""
    spread = [pages[int(position)] for position in np.unique(np.linspace(0, len(pages) - 1, 9).astype(int))]
    ranges = runner(_page_range, spread, "checking")
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _page_range(page: Page) -> tuple[int, int]:
    """Lowest and highest value of one slice."""
    pixels = read_page(page)
    return int(np.min(pixels)), int(np.max(pixels))


def check_image(page: Page, volume: Volume, path: Path) -> None:
    """Refuse an image slice of another size or type than the volume's."""
    check_shape(page, volume, path)
    if page.dtype != volume.dtype:
        raise ShapeMismatchError(f"{page.name}: is {page.dtype}, {path} is {volume.dtype}; convert it")


def check_shape(page: Page, volume: Volume, path: Path) -> None:
    """Refuse a slice of another size than the volume's."""
    if page.shape != volume.shape[1:]:
        raise ShapeMismatchError(
            f"{page.name}: is {page.shape[0]} x {page.shape[1]}, the slices of {path} are {volume.shape[1]} x "
            f"{volume.shape[2]}; crop it or leave it out"
        )


@contextmanager
def changing(path: Path, what: str) -> Iterator[tuple[Volume, Path]]:
    """Hold a volume, and open it as it is then: another process may have changed it before it let go."""
    found = Volume(path)
    with found.lock(), staging_folder(found.path, what) as staging, disk_errors(path):
        volume = Volume(path)
        complete_resize(volume)
        yield volume, staging


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
