"""One level of an image or label, with what vouches for its voxels.

A shard that was lost reads as fill, silently: whatever shows voxels to a person or another program reads them here,
where that is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DamageError
from pipeline.geometry import Box, Grid, Triple, ceil_div
from pipeline.kernels.histogram import TRUTH_UNLABELLED, TRUTH_VESSEL
from pipeline.settings.recipe import Recipe
from pipeline.storage.disk import is_file
from pipeline.storage.keys import stale_confusions, stale_pyramids
from pipeline.storage.ledger import Ledger
from pipeline.storage.painting import Painting
from pipeline.storage.pyramid import Pyramid, reduce_image, reduce_label
from pipeline.storage.store import ABSENT, ALL_FILL, ShardedArray
from pipeline.storage.table import Table
from pipeline.storage.tables import RunTables, Status, run_names, source_run
from pipeline.storage.volume import Volume

Flags = NDArray[np.bool_]
Digests = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Rendition:
    """One level of an image or label.

    Attributes
    ----------
    array : ShardedArray
    level : int
    is_label : bool
    present : callable
        Of a box of voxels of level 0: bool (z,), slices that have all of them.
    digests : callable or None
        Of a slice: uint64 (y, x) of the shard grid, what was recorded of level 0; None where nothing was.
    finer : Rendition or None
        The level below, of an image: what is dark there may be black here, and so in no shard.
    """

    array: ShardedArray
    level: int
    is_label: bool
    present: Callable[[Box], Flags]
    digests: Callable[[int], Digests] | None
    finer: Rendition | None = None

    def scaled(self, region: Box) -> Box:
        """Voxels of this level that a region of level 0 touches."""
        step = 2**self.level
        (z0, y0, x0), (z1, y1, x1) = region.start, region.stop
        return Box((z0, y0 // step, x0 // step), (z1, ceil_div(y1, step), ceil_div(x1, step)))

    def read(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read a box of one slice, (y, x), into ``out``, (1, y, x), where it is given.

        Whole shards of level 0 are compared with what was recorded. Of the other levels a shard that is not there is an
        error if anything below it is; whether it is the right one only `kesm verify` looks at.

        Raises
        ------
        DamageError
            If a shard cannot be decoded, or is not what was recorded.
        """
        out = np.empty(box.shape, self.array.dtype) if out is None else out
        digests = None if self.digests is None else self.digests(box.start[0])
        if digests is None or self.level:
            if digests is not None:
                self._require(box, digests)
            return np.asarray(self.array.read(box, out)[0])
        for part in self.array.shards.parts(box):
            (shard,) = self.array.shards.cover(part)
            whole = self.array.shards.box(shard)
            values = self.array.read_checked(whole, digests)
            out[part.relative_to(box.start).slices] = values[part.relative_to(whole.start).slices]
        return np.asarray(out[0])

    def _require(self, box: Box, digests: Digests) -> None:
        """Refuse a box of a coarse level with lost shards: what is vessel somewhere below them is in all levels."""
        for shard in self.array.shards.cover(box):
            if is_file(self.array.shard_file(shard)):
                continue
            rows, columns = (slice(place << self.level, (place + 1) << self.level) for place in shard[1:])
            recorded = int(digests[rows, columns].max())
            if self.finer is None or (recorded > ALL_FILL and self._is_seen(shard, self.finer)):
                self.array.check(shard, recorded, ALL_FILL)

    def _is_seen(self, shard: Triple, finer: Rendition) -> bool:
        """Whether a shard of an image is of more than fill, by the level below it."""
        part = self.array.shards.box(shard)
        (z, y, x), (_, bottom, right) = part.start, part.stop
        below = Box((z, 2 * y, 2 * x), (z + 1, 2 * bottom, 2 * right)) & Box.whole(finer.array.shape)
        coarse = np.empty(part.shape[1:], self.array.dtype)
        reduce_image(finer.read(below), coarse)
        return bool((coarse != self.array.fill).any())


def open_rendition(volume: Volume, label: str | None, level: int = 0) -> Rendition:
    """Open a level of the image, or of a label of any kind.

    Raises
    ------
    MissingInputError
        If there is no such label.
    ConfigError
        If there is no such level, or the label is stored in a way of its own.
    """
    if label is None:
        return _recorded(volume, volume.image, volume.slices, level, is_label=False)
    pyramid, info = volume.label(label), volume.labels()[label]
    if info.kind in ("truth", "derived"):
        _, ledger = volume.truth(label) if info.kind == "truth" else volume.derived(label)
        return _recorded(volume, pyramid, ledger, level, is_label=True)
    if info.kind == "mask" and label in run_names(volume):
        return _made(_level(volume, pyramid, level), level, _of_mask(RunTables(volume, label)))
    if info.kind == "confusion" and info.run in run_names(volume):
        painting = Painting.of(volume, RunTables(volume, info.run))
        if painting is not None:
            return _made(_level(volume, painting.label, level), level, _of_confusion(painting))
    try:
        array = _level(volume, pyramid, level)
    except DamageError as error:
        raise ConfigError(
            f"{volume.path}: label {label!r} is of another program, and not stored as kesm stores labels ({error})"
        ) from error
    return Rendition(array, level, True, lambda box: volume.slices.present()[box.slices[0]], None)


def open_outside(volume: Volume, mask: str | None) -> Callable[[Box], Flags] | None:
    """What tells which voxels of a part of a shard lie outside of the valid area of the run that a mask is of.

    None where everything is valid: also of a label that no run made, and without any.
    """
    if mask is None:
        return None
    run = source_run(volume, mask)
    if run is None:
        return None
    valid = Recipe.model_validate(RunTables(volume, run).recipe).valid
    if valid is None:
        return None
    area = open_rendition(volume, valid.label)  # no label: the image
    if valid.label is None:
        return lambda part: area.read(part) == valid.padding
    return lambda part: area.read(part) != TRUTH_VESSEL


def read_compared(volume: Volume, truth: str, mask: str | None, cells: Box, level: int = 0) -> NDArray[np.uint8]:
    """Read what a mask is compared with: a truth, not annotated (127) outside of the mask's valid area.

    Which voxels of a coarse pixel are valid only level 0 tells: where there is such an area, that is what is read.

    Parameters
    ----------
    volume : Volume
    truth : str
    mask : str or None
        See `open_outside`.
    cells : Box
        Of one slice, in pixels of the level.
    level : int

    Returns
    -------
    ndarray
        (y, x) uint8: 0, 127, 255.

    Raises
    ------
    DamageError
        As `Rendition.read`.
    """
    traced, outside = open_rendition(volume, truth, level), open_outside(volume, mask)
    if outside is None:
        return traced.read(cells)
    voxels = open_rendition(volume, truth)
    (z, y0, x0), (_, y1, x1) = cells.start, cells.stop
    window = Box((z, y0 << level, x0 << level), (z + 1, y1 << level, x1 << level)) & Box.whole(volume.shape)
    compared = np.empty(cells.shape[1:], np.uint8)
    for part in voxels.array.shards.parts(window):  # which begin at whole pixels
        plane = voxels.read(part)
        plane[outside(part)] = TRUTH_UNLABELLED
        for _ in range(level):
            finer, plane = plane, np.empty([ceil_div(length, 2) for length in plane.shape], np.uint8)
            reduce_label(finer, plane)
        compared[traced.scaled(part).relative_to(cells.start).slices[1:]] = plane
    return compared


def _recorded(volume: Volume, pyramid: Pyramid, ledger: Ledger, level: int, is_label: bool) -> Rendition:
    """What has a ledger of its slices."""
    array = _level(volume, pyramid, level)
    finer = None if is_label or level == 0 else _recorded(volume, pyramid, ledger, level - 1, is_label)
    return Rendition(
        array, level, is_label, lambda box: ledger.present()[box.slices[0]],
        lambda z: ledger.shard_digests(z, z + 1)[0], finer,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Record:
    """What a run has recorded of a label that it makes.

    Attributes
    ----------
    tiles : Grid
    known : callable
        Of a box of it: bool, tiles that the label shows.
    digest : Table
        Of each shard.
    stale : callable
        Which of some slices are newer than their levels, which are made when all of a slice is.
    """

    tiles: Grid
    known: Callable[[Box], Flags]
    digest: Table
    stale: Callable[[range], list[int]]


def _of_mask(tables: RunTables) -> _Record:
    def known(cells: Box) -> Flags:
        return np.asarray(tables.status.read(cells.slices) == Status.DONE)

    return _Record(tables.grids.tiles, known, tables.shard_digest, lambda slices: stale_pyramids(tables, slices))


def _of_confusion(painting: Painting) -> _Record:
    tables = painting.tables

    def known(cells: Box) -> Flags:
        return np.asarray(tables.key.read(cells.slices) != ABSENT)

    return _Record(painting.grids.tiles, known, tables.digest, lambda slices: stale_confusions(tables, slices))


def _made(array: ShardedArray, level: int, record: _Record) -> Rendition:
    """What a run makes, known where all of its tiles are."""
    shape: Triple = record.tiles.shape

    def present(box: Box) -> Flags:
        whole = box if level == 0 else Box((box.start[0], 0, 0), (box.stop[0], *shape[1:]))
        done: Flags = np.all(record.known(record.tiles.cover(whole)), axis=(1, 2))
        if level:
            slices = range(box.start[0], box.stop[0])
            done &= ~np.isin(slices, record.stale(slices))
        return done

    def digests(z: int) -> Digests:
        row: Digests = record.digest.read((slice(z, z + 1),))[0]
        return row

    return Rendition(array, level, True, present, digests)


def _level(volume: Volume, pyramid: Pyramid, level: int) -> ShardedArray:
    if level == 0:
        return pyramid.full
    if not 0 < level < len(pyramid.levels):
        raise ConfigError(f"--level: got {level}, {volume.path} has levels 0 to {len(pyramid.levels) - 1}")
    return pyramid.levels[level]
