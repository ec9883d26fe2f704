"""What a run found, from its tables alone: the numbers that the command line prints and other programs read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.activity import Activity, activity
from pipeline.confusion import Counts, Macro, Scores, Undefined, mean_scores, scores, sum_scores
from pipeline.errors import DamageError, MissingInputError, PipelineError
from pipeline.geometry import Box
from pipeline.histogram import bin_top
from pipeline.keys import valid_tiles
from pipeline.ledger import Ledger
from pipeline.recipe import HistogramThreshold, Recipe
from pipeline.table import Table
from pipeline.tables import RunTables, Signal, Status, run_names
from pipeline.volume import Volume

Flags = NDArray[np.bool_]

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of a region by their state; done + failed + pending + absent = total.

    ``done`` includes those ``reused``, those ``undecided``, whose mask is empty because the method found no level, and
    those with ``no_signal``, where the recipe asks for one.
    """

    total: int
    done: int
    reused: int
    failed: int
    pending: int
    absent: int
    undecided: int = 0
    no_signal: int = 0


@dataclass(frozen=True, slots=True)
class Seam:
    """How much more often a mask changes from voxel to voxel across the borders of tiles than inside them.

    Only borders inside of what is worked on at once are looked at: a chunk of the mask, or a shard where tiles are
    larger. They are the same for every block shape.

    Attributes
    ----------
    border, border_changes, inside, inside_changes : int
        Pairs of voxels, and those that differ.
    """

    border: int
    border_changes: int
    inside: int
    inside_changes: int

    @property
    def score(self) -> float | None:
        """1 where tiles leave no seams, more where they do; None where nothing changes inside tiles."""
        if not self.border or not self.inside_changes:
            return None
        return self.border_changes * self.inside / (self.border * self.inside_changes)

    def document(self) -> dict[str, Any] | None:
        """Score and counts as a JSON object; None where no tiles meet."""
        return {"score": self.score, **asdict(self)} if self.border else None


@dataclass(frozen=True, slots=True)
class Drift:
    """The frozen level of a volume, and the one that all slices done so far would give now.

    Of 16 bit, ``now`` is the highest level of a bin of the stored histograms.
    """

    level: float
    now: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Result of a run on a region.

    Attributes
    ----------
    voxels, annotated : int
        Voxels of the tiles that are done, and of those the annotated ones.
    counts, scores : Counts, Scores or None
        Summed over the region, where there is a truth.
    macro : Macro or None
        Means of the scores over the annotated tiles, how many those are, and in how many each score is 0 / 0.
    levels : tuple or None
        Lowest, median and highest level of the tiles, on the filtered scale.
    seam : Seam
    drift : Drift or None
        Where the volume has one level.
    failures : list of (Box, str)
    """

    name: str
    volume: str
    region: Box | None
    truth: str | None
    voxels: int
    annotated: int
    counts: Counts | None
    scores: Scores | None
    macro: Macro | None
    levels: tuple[float, float, float] | None
    tiles: Tiles
    failures: Sequence[tuple[Box, str]]
    elapsed_s: float | None = None
    seam: Seam = Seam(0, 0, 0, 0)
    drift: Drift | None = None

    def document(self) -> dict[str, Any]:
        """The summary as the JSON object of the command line; what is not a number is null."""
        region = self.region
        keys = ("min", "median", "max")
        return {
            "schema": SCHEMA,
            "name": self.name,
            "volume": self.volume,
            "region": None if region is None else str(region),
            "truth": self.truth,
            "voxels": self.voxels,
            "annotated": self.annotated,
            "counts": None if self.counts is None else asdict(self.counts),
            "scores": None if self.scores is None else asdict(self.scores),
            "macro": None if self.macro is None else self.macro.document(),
            "levels": None if self.levels is None else dict(zip(keys, map(_number, self.levels), strict=True)),
            "seam": self.seam.document(),
            "drift": None
            if self.drift is None
            else {"level": _number(self.drift.level), "now": _number(self.drift.now)},
            "tiles": asdict(self.tiles),
            "failures": [{"region": str(box), "reason": reason} for box, reason in self.failures],
            "elapsed_s": self.elapsed_s,
        }


def summarise(
    volume: Volume, name: str, truth: str | None, region: Box | None = None, undefined: Undefined = "article"
) -> Summary:
    """Sum the tables of a run over the tiles of a region, or over all.

    Tiles of which a table cannot be read are pending, and the table's chunk is among the failures. What a score is
    where it is ``undefined`` is said by `pipeline.confusion.scores`.

    Raises
    ------
    MissingInputError
        If there is no such run, or it was not compared with this truth.
    """
    tables = RunTables(volume, name)
    tiles = tables.grids.tiles.cover(region or Box.whole(volume.shape))
    counts, macro = None, None
    if truth is not None and truth not in tables.truths():
        known = ", ".join(tables.truths()) or "none yet"
        raise MissingInputError(
            f"{volume.path}: run {name!r} was not compared with {truth!r}, but with: {known}; "
            f"compare it with `kesm run {volume.path} --truth {truth} --name {name}`"
        )
    survey, has_levels = _Survey(tables, tiles), Recipe.model_validate(tables.recipe).has_levels
    status, level = survey.read(tables.status), survey.read(tables.threshold)
    signal, seam = survey.read(tables.signal), survey.read(tables.seam)
    done = valid_tiles(volume, tables, truth, tiles)
    if (~done & (status == Status.DONE)).any():  # what says so may be damaged itself
        survey.look_for_reasons(volume, truth)
    table = None if truth is None else survey.read(tables.truth(truth).counts)
    done &= survey.readable
    if table is not None:
        table[~done] = 0
        counts = Counts(*(int(value) for value in table.sum(axis=(0, 1, 2))))
        macro = mean_scores(sum_scores(table, undefined), undefined)
    window = tables.grids.tiles.voxels(tiles)
    failures = [(box, reason) for box, reason in tables.failures(truth) if (box & window).size]
    return Summary(
        name=name, volume=str(volume.path), region=region, truth=truth,
        voxels=int(tables.grids.tiles.sizes(tiles)[done].sum()), annotated=counts.total if counts else 0,
        counts=counts, scores=scores(counts, undefined) if counts else None, macro=macro, levels=_levels(level[done]),
        drift=_drift(volume, tables),
        seam=Seam(*(int(pairs) for pairs in seam[done].sum(axis=0))),
        tiles=_tiles(volume, tiles, _failed(tables, tiles, status, failures), done, done & (signal == Signal.NONE),
                     done & np.isnan(level) & (signal != Signal.NONE) & has_levels),
        failures=failures + survey.damage,
    )  # fmt: skip


class _Survey:
    """Reads the tables of a run on a box of tiles as far as they can be read, and keeps where they cannot.

    Attributes
    ----------
    readable : ndarray
        bool, of the shape of the box: tiles whose chunks were all read.
    damage : list of (Box, str)
        Voxels and reason of each chunk that was not.
    """

    def __init__(self, tables: RunTables, tiles: Box) -> None:
        self._tables, self._tiles = tables, tiles
        self.readable = np.ones(tiles.shape, np.bool_)
        self.damage: list[tuple[Box, str]] = []

    def read(self, table: Table) -> NDArray[Any]:
        """Values of a table, its fill where it is damaged."""
        values, reasons = table.survey(self._tiles.slices)
        for part in self._blocks() if reasons else ():  # a chunk is a block's tiles
            _, reasons = table.survey(part.slices)
            self._keep(part, reasons)
        return values

    def look_for_reasons(self, volume: Volume, truth: str | None) -> None:
        """Look at what is compared to tell whether a tile is done: keys, and the digests of image and truth."""
        ledgers = [volume.slices]
        self.read(self._tables.mask_key)
        if truth is not None:
            self.read(self._tables.truth(truth).counts_key)
            ledgers.append(volume.truth(truth)[1])
        for ledger in ledgers:
            self._read_digests(ledger, self._tiles.start[0], self._tiles.stop[0])

    def _read_digests(self, ledger: Ledger, first: int, last: int) -> None:
        """Find by halves the slices whose digests cannot be read."""
        try:
            ledger.shard_digests(first, last)
        except DamageError as error:
            if last - first == 1:
                part = Box((first, *self._tiles.start[1:]), (last, *self._tiles.stop[1:]))
                self._keep(part, [str(error)])
                return
            middle = (first + last) // 2
            self._read_digests(ledger, first, middle)
            self._read_digests(ledger, middle, last)

    def _keep(self, part: Box, reasons: Sequence[str]) -> None:
        if reasons:
            self.readable[part.relative_to(self._tiles.start).slices] = False
            self.damage += [(self._tables.grids.tiles.voxels(part), reason) for reason in reasons]

    def _blocks(self) -> Iterator[Box]:
        """Tiles of each block, as far as they are in the box."""
        grids = self._tables.grids
        for index in grids.blocks.cover(grids.tiles.voxels(self._tiles)):
            yield grids.block_tiles(index) & self._tiles


def _failed(
    tables: RunTables, tiles: Box, status: NDArray[Any], failures: Sequence[tuple[Box, str]]
) -> NDArray[np.bool_]:
    """Tiles that have failed, unless they are done: without a mask, or with one that could not be compared."""
    failed: NDArray[np.bool_] = status == Status.FAILED
    for box, _ in failures:
        cells = (tables.grids.tiles.cover(box) & tiles).relative_to(tiles.start).slices
        failed[cells] |= status[cells] == Status.DONE
    return failed


def _tiles(volume: Volume, tiles: Box, failed: Flags, done: Flags, silent: Flags, undecided: Flags) -> Tiles:
    here = volume.slices.present()[tiles.start[0] : tiles.stop[0], None, None]
    present = np.broadcast_to(here, done.shape)
    finished, broken = int((present & done).sum()), int((present & failed & ~done).sum())
    return Tiles(
        total=done.size,
        done=finished,
        reused=0,
        failed=broken,
        pending=int(present.sum()) - broken - finished,
        absent=int((~present).sum()),
        undecided=int((present & undecided).sum()),
        no_signal=int((present & silent).sum()),
    )


def _drift(volume: Volume, tables: RunTables) -> Drift | None:
    """What the level of the volume would be now; `refit` makes it so."""
    recipe = Recipe.model_validate(tables.recipe)
    if tables.level is None or not isinstance(recipe.threshold, HistogramThreshold):
        return None
    grey, _ = tables.grey.survey()
    counts = grey.sum(axis=(0, 1, 2))
    now = recipe.threshold.level(counts) if counts.any() else math.nan
    if volume.dtype.itemsize > 1 and math.isfinite(now):
        now = float(bin_top(int(now), volume.filtered_window(recipe.foreground == "dark")))
    return Drift(tables.level, now)


def _levels(levels: NDArray[np.float64]) -> tuple[float, float, float] | None:
    known = levels[~np.isnan(levels)]
    return (float(np.min(known)), float(np.median(known)), float(np.max(known))) if known.size else None


def _number(value: float) -> float | int | None:
    """A number as JSON has it: whole ones without a fraction, what is not finite as null."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value


def describe(volume: Volume, undefined: Undefined = "article") -> tuple[dict[str, Any], list[Summary]]:
    """What a volume holds, who works on it, and the summary of each run against each truth that it was compared with.

    What cannot be read is a line of the document's ``problems``, and stops nothing.
    """
    present = volume.slices.present()
    problems: list[str] = []
    labels = []
    for info in volume.labels().values():
        label: dict[str, Any] = {"name": info.name, "kind": info.kind}
        with noted(problems):
            if info.kind == "truth":
                annotated = int(volume.truth(info.name)[1].present().sum())
                label |= {"slices": annotated, "mapping": info.mapping}
            labels.append(label)
    summaries: list[Summary] = []
    works: list[Activity] = []
    for name in run_names(volume):
        with noted(problems):
            works.append(activity(RunTables(volume, name)))
        with noted(problems):
            truths: list[str | None] = [truth for truth in RunTables(volume, name).truths() if truth in volume.labels()]
            summaries += [summarise(volume, name, truth, undefined=undefined) for truth in truths or [None]]
    document = {
        "schema": SCHEMA,
        "volume": str(volume.path),
        "shape": list(volume.shape),
        "dtype": str(volume.dtype),
        "voxel_size_um": None if volume.voxel_size_um is None else list(volume.voxel_size_um),
        "slices": {"present": int(present.sum()), "absent": int((~present).sum())},
        "labels": labels,
        "runs": [summary.document() for summary in summaries],
        "activity": [work.document() for work in works],
        "problems": problems,
    }
    return document, summaries


@contextmanager
def noted(problems: list[str]) -> Iterator[None]:
    """Add to a list what cannot be read, once, and go on."""
    try:
        yield
    except PipelineError as error:
        if str(error) not in problems:
            problems.append(str(error))
