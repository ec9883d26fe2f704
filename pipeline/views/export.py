"""Images and labels for other programs: TIFF or PNG slices, or one OME-TIFF.

Voxels are read in bands of ``BAND`` rows over the width of the region, and each thread holds one, so that memory does
not grow with slices or volume. A shard that was lost is an error and not a black square.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, MissingInputError
from pipeline.events import JobDone, JobsStarted, Observer, ignore
from pipeline.geometry import Box, Grid, Triple
from pipeline.images.slicefile import Picture, write_png, write_tiff
from pipeline.scratch import scratch
from pipeline.storage.draft import check_place, draft_file, draft_folder
from pipeline.storage.ledger import stretches
from pipeline.storage.store import SHARD
from pipeline.storage.volume import Volume
from pipeline.views.rendition import Rendition, open_rendition

Item = TypeVar("Item")
Result = TypeVar("Result")
Form = Literal["tiff-stack", "png", "ome-tiff"]

BAND = SHARD[1]
FORMS: tuple[Form, ...] = get_args(Form)

_TIFF_NAME = re.compile(r"\.tiff?$", re.IGNORECASE)
_SLICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*_z[0-9]{4,}\.(tif|png)")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is exported.

    Attributes
    ----------
    label : str or None
        None: the image.
    region : Box or None
        Voxels of level 0; None: all.
    level : int
        Of the pyramid; 0 is full size.
    partial : bool
        Whether slices that are not there are left out; else they are refused.
    """

    label: str | None = None
    region: Box | None = None
    level: int = 0
    partial: bool = False

    @property
    def name(self) -> str:
        """Of the files."""
        return self.label or "image"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes
    ----------
    volume : str
    label : str or None
    level : int
    region : str
        Voxels of that level.
    format, out : str
    files, slices : int
    left_out : tuple of int
        Slices of the region that are not there.
    shape : tuple of int
        (z, y, x) of what was written.
    dtype : str
    bytes : int
        Of the files.
    elapsed_s : float
    """

    volume: str
    label: str | None
    level: int
    region: str
    format: str
    out: str
    files: int
    slices: int
    left_out: tuple[int, ...]
    shape: tuple[int, int, int]
    dtype: str
    bytes: int
    elapsed_s: float

    def document(self) -> dict[str, Any]:
        """The JSON object of the command line."""
        return {"schema": 1, **asdict(self)}

    def lines(self) -> list[str]:
        """The same for a person."""
        z, y, x = self.shape
        what = f"{z:,} slice{'s' * (z != 1)} of {y:,} x {x:,} {self.dtype}"
        lines = [f"{self.out}: {what}, {self.bytes / 1e6:,.1f} MB as {self.format}"]
        if self.left_out:
            lines.append(f"left out, as they are not there, or not done: slices {stretches(self.left_out)}")
        return lines


@dataclass(frozen=True, slots=True)
class Target:
    """Where it goes.

    Attributes
    ----------
    out : Path
        File, or folder that is made. It appears when all of it is written.
    form : {"tiff-stack", "png", "ome-tiff"}
    replace : bool
        Whether a file, or a folder of slices, that is there is overwritten.
    """

    out: Path
    form: Form
    replace: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it is one file, and not a folder of them."""
        return self.form == "ome-tiff"


def choose_form(out: Path, form: str | None) -> Form:
    """The format that is named, else that of the ending: one OME-TIFF, or a folder of TIFF slices.

    Raises
    ------
    ConfigError
        If the two contradict each other.
    """
    is_tiff = _TIFF_NAME.search(out.name) is not None
    if form is None:
        if out.suffix.lower() == ".png":
            raise ConfigError(f"--out: got {out}, which one slice would fill; name a folder, with --format png")
        return "ome-tiff" if is_tiff else "tiff-stack"
    chosen = next((known for known in FORMS if known == form), None)
    if chosen is None:
        raise ConfigError(f"--format: got {form!r}, expected one of: {', '.join(FORMS)}")
    if is_tiff != (chosen == "ome-tiff"):
        expected = "a file that ends in .tif" if chosen == "ome-tiff" else "a folder"
        raise ConfigError(f"--out: got {out}, expected {expected} for --format {chosen}")
    return chosen


def is_slice_file(name: str) -> bool:
    """Whether an export names its files so."""
    return _SLICE_NAME.fullmatch(name) is not None


def export(volume: Volume, wanted: Wanted, target: Target, threads: int = 1, observer: Observer = ignore) -> Exported:
    """Write the slices of an image or label as files, each named after its slice, or as the pages of one file.

    Parameters
    ----------
    volume : Volume
    wanted : Wanted
    target : Target
    threads : int
        Slices of a folder, or bands of a file, in work at the same time; each takes a band, 2048 rows, of memory.
    observer : callable

    Raises
    ------
    MissingInputError
        If there is no such label, or a slice is not there.
    ConfigError
        If there is no such level, or slices cannot be left out of one file.
    ExistsError, StorageError
        If it cannot be written.
    DamageError
        If a shard cannot be read.
    """
    clock = time.monotonic()
    out = target.out
    if target.is_file:
        check_place(out, target.replace)
    source = open_rendition(volume, wanted.label, wanted.level)
    box = source.scaled(wanted.region or Box.whole(volume.shape))
    slices, left_out = _choose_slices(volume, source, wanted, box, target.is_file)
    job = _Job(source, box, _picture(volume, source, wanted.name, (len(slices), *box.shape[1:])))
    if target.is_file:
        with draft_file(out, target.replace) as partial:
            job.write_file(partial, slices, threads, observer)
            written = [partial.stat().st_size]
    else:
        with draft_folder(out, is_slice_file, target.replace) as folder:
            written = job.write_folder(folder, (wanted.name, target.form), slices, threads, observer)
    return Exported(
        volume=str(volume.path), label=wanted.label, level=wanted.level, region=str(box), format=target.form,
        out=str(out), files=len(written), slices=len(slices), left_out=tuple(left_out),
        shape=(len(slices), *box.shape[1:]), dtype=str(source.array.dtype), bytes=sum(written),
        elapsed_s=round(time.monotonic() - clock, 3),
    )  # fmt: skip


def _picture(volume: Volume, source: Rendition, name: str, shape: Triple) -> Picture:
    """What files of a level are."""
    size = volume.voxel_size_um
    if size is not None:
        size = (size[0], size[1] * 2**source.level, size[2] * 2**source.level)
    return Picture(name, shape, source.array.dtype, size, source.is_label)


def _choose_slices(
    volume: Volume, source: Rendition, wanted: Wanted, box: Box, is_file: bool
) -> tuple[list[int], list[int]]:
    """Slices of the region that are there, and those that are not."""
    present = source.present(wanted.region or Box.whole(volume.shape))
    there = (np.flatnonzero(present) + box.start[0]).tolist()
    missing = (np.flatnonzero(~present) + box.start[0]).tolist()
    what = f"{volume.path}: {wanted.name!r} has no slices" if wanted.label else f"{volume.path}: has no slices"
    if not there:
        raise MissingInputError(f"{what} {stretches(missing)}, so that nothing is left to export")
    if missing and not wanted.partial:
        raise MissingInputError(
            f"{what} {stretches(missing)}, or not whole; leave them out with --partial, or choose a --region without"
        )
    if missing and is_file:
        raise ConfigError(
            f"{what} {stretches(missing)}, or not whole, and pages of one file cannot say which slices they are; "
            "choose a --region without them, or name a folder for --out"
        )
    return there, missing


@dataclass(frozen=True, slots=True)
class _Job:
    """Reads the voxels of a box, and writes them."""

    source: Rendition
    box: Box
    picture: Picture

    def write_file(self, path: Path, slices: Sequence[int], threads: int, observer: Observer) -> None:
        """Write slices as the pages of one file: bands are read and encoded in threads, and written in order."""
        bands = [band for z in slices for band in self._bands(z)]
        encoded = in_order(lambda band: self.picture.encode_tiles(self._read(band)), bands, threads, observer)
        with closing(encoded):
            write_tiff(path, self.picture, (tile for tiles in encoded for tile in tiles), ome=True)

    def write_folder(
        self, folder: Path, kind: tuple[str, Form], slices: Sequence[int], threads: int, observer: Observer
    ) -> list[int]:
        """Write each slice as a file of its own, several at a time; return their sizes in bytes."""
        name, form = kind
        digits = max(4, len(str(self.source.array.shape[0] - 1)))
        page = Picture(name, (1, *self.box.shape[1:]), self.picture.dtype, self.picture.voxel_size_um,
                       self.picture.is_label)  # fmt: skip

        def write(z: int) -> int:
            bands = (self._read(band) for band in self._bands(z))
            path = folder / f"{name}_z{z:0{digits}d}.{'png' if form == 'png' else 'tif'}"
            if form == "png":
                write_png(path, page, bands)
            else:
                write_tiff(path, page, (tile for band in bands for tile in page.encode_tiles(band)), ome=False)
            return path.stat().st_size

        with closing(in_order(write, slices, threads, observer)) as sizes:
            return list(sizes)

    def _read(self, band: Box) -> NDArray[Any]:
        """Voxels of a band, (y, x), in a buffer of this thread that is valid until the next call."""
        return self.source.read(band, scratch.array("exported", band.shape, self.source.array.dtype))

    def _bands(self, z: int) -> Iterator[Box]:
        """Bands of one slice of the box, from top to bottom."""
        _, height, width = self.box.shape
        corner = (z, *self.box.start[1:])
        for part in Grid((1, height, width), (1, BAND, width)).parts(Box((0, 0, 0), (1, height, width))):
            yield part.relative_to((-corner[0], -corner[1], -corner[2]))


def in_order(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int, observer: Observer
) -> Generator[Result, None, None]:
    """Results of a function on every item, in order, as they are asked for: at most one more than threads is ahead."""
    observer(JobsStarted(len(items), ""))
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
                    observer(JobDone())
            while waiting:
                yield waiting.popleft().result()
                observer(JobDone())
        finally:
            for future in waiting:
                future.cancel()
