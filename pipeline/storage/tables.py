"""What a run knows of each tile: level, status, keys and counts, as arrays on the tile grid.

One chunk of a table is what one block writes, for the block shape that was fixed when the run was created; written with
another one, 42 to 49 % of the entries were lost.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import MissingInputError
from pipeline.geometry import Box, Grid, Triple
from pipeline.kernels.bins import WINDOWED_LEVELS
from pipeline.kernels.quality import Measure
from pipeline.storage.journal import Journal
from pipeline.storage.lock import locked
from pipeline.storage.store import ABSENT, SHARD, create_document, group_names, read_document
from pipeline.storage.table import Table
from pipeline.storage.volume import Volume, beside


class Status(IntEnum):
    """State of a tile in a run."""

    ABSENT = 0
    PENDING = 1
    DONE = 2
    FAILED = 3


class Signal(IntEnum):
    """Whether a tile has a signal, where that was asked."""

    NOT_ASKED = 0
    THERE = 1
    NONE = 2


@dataclass(frozen=True, slots=True)
class Grids:
    """The three grids of a run over its volume."""

    tiles: Grid
    shards: Grid
    blocks: Grid

    @classmethod
    def of(cls, shape: Triple, tile: int, block: Triple) -> Grids:
        """Grids of a volume of this shape, for tiles and blocks of so many voxels."""
        return cls(Grid(shape, (1, tile, tile)), Grid(shape, SHARD), Grid(shape, block))

    def block_tiles(self, index: Triple) -> Box:
        """Tiles of a block, as a box of the tile grid."""
        return self.tiles.cover(self.blocks.box(index))


class ConfusionTables:
    """What is recorded of the label that shows a run's confusion."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def key(self) -> Table:
        """Key of the counts that each tile of the label shows, uint64."""
        return Table(self._path / "confusion_key")

    @cached_property
    def digest(self) -> Table:
        """Digest of each of its shards, uint64."""
        return Table(self._path / "confusion_digest")

    @cached_property
    def pyramid_key(self) -> Table:
        """Digest of the shards that the levels of each of its slices were made from, uint64."""
        return Table(self._path / "confusion_pyramid_key")

    @property
    def all(self) -> list[Table]:
        """All three."""
        return [self.key, self.digest, self.pyramid_key]


class TruthTables:
    """Counts of a run against one truth."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def counts(self) -> Table:
        """True and false positives and negatives of each tile, int64 (..., 4)."""
        return Table(self._path / "counts")

    @cached_property
    def counts_key(self) -> Table:
        """Key of what the counts of each tile were made from, uint64."""
        return Table(self._path / "counts_key")

    @cached_property
    def histogram(self) -> Table:
        """Filtered grey levels of each tile by truth, uint32 (..., 3, 256)."""
        return Table(self._path / "histogram")

    @property
    def confusion(self) -> ConfusionTables | None:
        """Tables of the label that shows the confusion, where that is kept."""
        there = (self._path / "confusion_key" / "zarr.json").is_file()
        return self._confusion if there else None

    @cached_property
    def _confusion(self) -> ConfusionTables:
        return ConfusionTables(self._path)

    @property
    def all(self) -> list[Table]:
        """All of them."""
        confusion = self.confusion
        return [self.counts, self.counts_key, self.histogram, *(confusion.all if confusion is not None else [])]


class RunTables:
    """Tables and documents of one run.

    Parameters
    ----------
    volume : Volume
    name : str

    Raises
    ------
    MissingInputError
        If the volume has no such run.
    """

    def __init__(self, volume: Volume, name: str) -> None:
        document = read_document(volume.path / "runs" / name)
        if document is None:
            known = ", ".join(run_names(volume)) or "none yet"
            raise MissingInputError(f"{volume.path}: has no run {name!r}; it has: {known}")
        self.name = name
        self.recipe: dict[str, Any] = document["recipe"]
        self.block: Triple = tuple(document["block"])
        level = document.get("level")
        self.level: float | None = math.nan if level == "NaN" else level
        self._path = volume.path / "tiles" / name
        self._documents = volume.path / "runs" / name
        self.grids = Grids.of(volume.shape, self.recipe["tile"], self.block)
        self.journal = Journal(self._documents)
        self._truths: dict[str, TruthTables] = {}

    @classmethod
    def create(cls, volume: Volume, name: str, recipe: dict[str, Any], block: Triple) -> RunTables:
        """Create empty tables for a recipe, with chunks for this block shape in voxels."""
        path = volume.path / "tiles" / name
        grids = Grids.of(volume.shape, recipe["tile"], block)
        for group in (volume.path / "tiles", volume.path / "runs", path, path / "truth"):
            if read_document(group) is None:
                create_document(group, {})
        cells = grids.tiles.cells
        chunk = _chunk(grids, grids.tiles)
        Table.create(path / "threshold", cells, "float64", chunk, float("nan"))
        Table.create(path / "status", cells, "uint8", chunk)
        Table.create(path / "mask_key", cells, "uint64", chunk)
        Table.create(path / "signal", cells, "uint8", chunk)
        Table.create(path / "seam", (*cells, 4), "int64", (*chunk, 4))
        Table.create(path / "vessel", cells, "int64", chunk)
        measures = len(Measure)
        Table.create(path / "quality", (*cells, measures), "float32", (*chunk, measures), float("nan"))
        Table.create(path / "shard_digest", grids.shards.cells, "uint64", _chunk(grids, grids.shards))
        Table.create(path / "pyramid_key", cells[:1], "uint64", (1,))
        blocks = grids.blocks.cells
        Table.create(path / "grey", (*blocks, WINDOWED_LEVELS), "int64", (1, 1, 1, WINDOWED_LEVELS))
        Journal.create(volume.path / "runs" / name)
        create_document(volume.path / "runs" / name, {"recipe": recipe, "block": list(block)})
        return cls(volume, name)

    def freeze(self, level: float) -> None:
        """Record the level of the whole volume, which slices that arrive later have too."""
        self.level = level
        written = "NaN" if math.isnan(level) else level  # which JSON does not have
        create_document(self._documents, {"recipe": self.recipe, "block": list(self.block), "level": written})

    @cached_property
    def threshold(self) -> Table:
        """Level of each tile, float64, nan where there is none."""
        return Table(self._path / "threshold")

    @cached_property
    def status(self) -> Table:
        """``Status`` of each tile, uint8."""
        return Table(self._path / "status")

    @cached_property
    def mask_key(self) -> Table:
        """Key of what made each tile's mask, uint64."""
        return Table(self._path / "mask_key")

    @cached_property
    def signal(self) -> Table:
        """``Signal`` of each tile, uint8."""
        return Table(self._path / "signal")

    @cached_property
    def seam(self) -> Table:
        """Voxel pairs across borders of each tile and inside it, and those that differ, int64 (..., 4)."""
        return Table(self._path / "seam")

    @cached_property
    def vessel(self) -> Table:
        """Voxels of the mask of each tile, int64."""
        return Table(self._path / "vessel")

    @cached_property
    def quality(self) -> Table:
        """What `kernels.quality` measures of each tile, float32 (..., len(Measure)), nan where there is no mask."""
        return Table(self._path / "quality")

    @cached_property
    def shard_digest(self) -> Table:
        """Digest of each mask shard, uint64."""
        return Table(self._path / "shard_digest")

    @cached_property
    def pyramid_key(self) -> Table:
        """Digest of the mask that each slice's pyramid was made from, uint64."""
        return Table(self._path / "pyramid_key")

    @cached_property
    def grey(self) -> Table:
        """Filtered voxels of each block by grey level, in the bins of stored histograms, int64 (..., 256)."""
        return Table(self._path / "grey")

    @property
    def of_mask(self) -> dict[str, Table]:
        """What is found of each tile while its mask is made, by its name."""
        return {
            "threshold": self.threshold, "signal": self.signal, "seam": self.seam, "vessel": self.vessel,
            "quality": self.quality,
        }  # fmt: skip

    @property
    def all(self) -> list[Table]:
        """All of them but for those of the comparisons."""
        return [*self.of_mask.values(), self.status, self.mask_key, self.shard_digest, self.pyramid_key, self.grey]

    def truths(self) -> list[str]:
        """Names of the truths that the run was compared with."""
        return group_names(self._path / "truth")

    def truth(self, name: str) -> TruthTables:
        """Tables of the comparison with one truth."""
        # Kept: to open the tables takes longer than to write a block's part of them, and each block does so.
        return self._truths.setdefault(name, TruthTables(self._path / "truth" / name))

    def create_truth(self, name: str) -> TruthTables:
        """Create the tables of a comparison, if they are not there yet."""
        path = self._path / "truth" / name
        if read_document(path) is None:
            shutil.rmtree(path, ignore_errors=True)  # of a process that died here
            cells, chunk = self.grids.tiles.cells, _chunk(self.grids, self.grids.tiles)
            Table.create(path / "counts", (*cells, 4), "int64", (*chunk, 4))
            Table.create(path / "counts_key", cells, "uint64", chunk)
            Table.create(path / "histogram", (*cells, 3, WINDOWED_LEVELS), "uint32", (*chunk, 3, WINDOWED_LEVELS))
            create_document(path, {})
        return self.truth(name)

    def create_confusion(self, truth: str) -> None:
        """Create the tables of the label that shows the confusion with a truth; it is kept from now on."""
        path, grids = self._path / "truth" / truth, self.grids
        Table.create(path / "confusion_digest", grids.shards.cells, "uint64", _chunk(grids, grids.shards))
        Table.create(path / "confusion_pyramid_key", grids.tiles.cells[:1], "uint64", (1,))
        Table.create(path / "confusion_key", grids.tiles.cells, "uint64", _chunk(grids, grids.tiles))

    def remove_confusions(self) -> None:
        """Remove what is recorded of confusions, with whatever truth: the keys first."""
        for name in self.truths():
            for table in ("confusion_key", "confusion_digest", "confusion_pyramid_key"):
                shutil.rmtree(self._path / "truth" / name / table, ignore_errors=True)
        self._truths.clear()

    def take_back(self, block: Triple) -> None:
        """Take back what is recorded of a block before any of it changes: an old record vouches for no new bytes."""
        cells = self.grids.block_tiles(block).slices
        self.status.write(cells, Status.PENDING)
        self.mask_key.write(cells, ABSENT)
        for name in self.truths():
            self.truth(name).counts_key.write(cells, ABSENT)
            confusion = self.truth(name).confusion
            if confusion is not None:
                confusion.key.write(cells, ABSENT)

    def disown(self, block: Triple, reason: str) -> None:
        """Call a block that was done failed, so that the next run makes it again."""
        self.take_back(block)
        self.journal.record_failure(block, [(self.grids.blocks.box(block), reason)])
        self.status.write(self.grids.block_tiles(block).slices, Status.FAILED)

    def resize(self, slices: int) -> None:
        """Change the number of slices of every table."""
        tables = self.all
        for name in self.truths():
            tables += self.truth(name).all
        for table in tables:
            table.resize(slices)


@contextmanager
def run_lock(volume: Volume, name: str) -> Iterator[None]:
    """Be the only process that works on a run.

    Raises
    ------
    LockedError
        If another one does.
    """
    lock = beside(volume.path, f"run-{name}.lock")
    with locked(lock, f"{volume.path}: run {name!r} is being worked on by another process"):
        yield


@contextmanager
def quiet(volume: Volume) -> Iterator[None]:
    """Hold every run of a volume, so that slices may be replaced; the caller holds the volume, so that none is made.

    Raises
    ------
    LockedError
        If one is being worked on.
    """
    with ExitStack() as stack:
        for name in run_names(volume):
            stack.enter_context(run_lock(volume, name))
        yield


def run_names(volume: Volume) -> list[str]:
    """Names of all runs of a volume; one whose tables were removed is none."""
    names = group_names(volume.path / "runs")
    return [name for name in names if (volume.path / "tiles" / name / "status" / "zarr.json").is_file()]


def source_run(volume: Volume, mask: str) -> str | None:
    """The run that a mask is of, or that a label was derived from; None of what no run made."""
    info = volume.readable_labels().get(mask)
    run = info.run if info is not None and info.kind == "derived" else mask
    return run if run in run_names(volume) else None


def way_on(volume: Path, name: str) -> str:
    """What makes a run go on, for a message: another recipe is refused, so no shorter command will do."""
    return f"give the command that started it again (`kesm status {volume} --provenance {name}` shows it)"


def has_documents(volume: Volume, name: str) -> bool:
    """Whether there was a run of this name, though its tables may be lost."""
    return (volume.path / "runs" / name / "zarr.json").is_file()


def _chunk(grids: Grids, cells: Grid) -> Triple:
    """Cells of one block."""
    return cells.cover(grids.blocks.box((0, 0, 0))).shape
