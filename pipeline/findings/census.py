"""What a run knows of each tile, as arrays on the tile grid: what figures, reports and tables are made from.

No voxel is read, and what cannot be read of the tables is missing, not wrong: its tiles are not ``done``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DamageError, MissingInputError, PipelineError
from pipeline.findings.salvage import Salvage
from pipeline.geometry import Box, Grid, Triple
from pipeline.kernels.confusion import SCORES, Undefined, tile_scores
from pipeline.kernels.quality import Measure
from pipeline.storage.keys import valid_tiles
from pipeline.storage.tables import RunTables, Signal, Status, run_names, way_on
from pipeline.storage.volume import Volume

NOT_COUNTED = -1  # vessel voxels of a tile that is not done


@dataclass(frozen=True, eq=False)
class Census:
    """Tiles of a region: arrays (z, y, x) of the shape of ``tiles``, which begin at its first tile.

    Attributes
    ----------
    volume : Path
    name : str
        The run.
    truth : str or None
        What its mask was compared with.
    grid : Grid
        All tiles of the volume.
    tiles : Box
        Those looked at, a box of that grid.
    status : ndarray
        uint8, `storage.tables.Status`, now: a tile of which something has changed since is pending.
    done : ndarray
        bool: tiles whose mask, and counts where there is a truth, are of what the volume holds now. Where it is False
        the arrays below, but for ``voxels``, are empty: NaN, 0, or ``NOT_COUNTED``.
    voxels : ndarray
        int64, of every tile: fewer at the far edges of the volume.
    level : ndarray
        float64, on the filtered scale, NaN where the method found none.
    signal : ndarray
        uint8, `storage.tables.Signal`.
    vessel : ndarray
        int64: voxels of the mask that are vessel.
    counts : ndarray or None
        int64 (z, y, x, 4): tp, fp, fn, tn.
    annotated : ndarray
        int64: voxels that have a truth.
    quality : ndarray or None
        float32 (z, y, x, 7), `kernels.quality.Measure`; NaN where a tile is too small for it; None of none.
    seam : ndarray
        int64 (z, y, x, 4), as `findings.summary.Seam` has its numbers.
    failures : tuple of (Box, str)
        Voxels and reason of each failure that is recorded of these tiles.
    damage : tuple of (Box, str)
        Voxels and reason of each part of the tables that cannot be read.
    """

    volume: Path
    name: str
    truth: str | None
    grid: Grid
    tiles: Box
    status: NDArray[np.uint8]
    done: NDArray[np.bool_]
    voxels: NDArray[np.int64]
    level: NDArray[np.float64]
    signal: NDArray[np.uint8]
    vessel: NDArray[np.int64]
    counts: NDArray[np.int64] | None
    annotated: NDArray[np.int64]
    quality: NDArray[np.float32] | None
    seam: NDArray[np.int64]
    failures: tuple[tuple[Box, str], ...] = ()
    damage: tuple[tuple[Box, str], ...] = ()

    def scores(self, undefined: Undefined = "article") -> NDArray[np.float64]:
        """All scores of each tile, float64 (z, y, x, len(SCORES)) in that order; see `score`."""
        counts = self.require_truth()
        found = np.empty((*counts.shape[:-1], len(SCORES)))
        for at in range(len(counts)):  # slice by slice: the scores of a volume in one go take ten times their memory
            found[at] = tile_scores(counts[at], undefined)
        return found

    def score(self, metric: str, undefined: Undefined = "article") -> NDArray[np.float64]:
        """One score of each tile, float64, the same bits as `kernels.confusion.tile_scores`.

        Parameters
        ----------
        metric : str
            One of `kernels.confusion.SCORES`.
        undefined
            What it is where it is 0 / 0; see `kernels.confusion.scores`.

        Returns
        -------
        ndarray
            NaN where a tile is not done, or has no annotated voxel.

        Raises
        ------
        ConfigError
            If there is no such score.
        MissingInputError
            Without a truth.
        """
        if metric not in SCORES:
            raise ConfigError(f"score: got {metric!r}, expected one of: {', '.join(SCORES)}")
        position = SCORES.index(metric)
        counts = self.require_truth()
        planes = [tile_scores(of_slice, undefined)[..., position] for of_slice in counts]
        return np.array(planes, np.float64).reshape(self.tiles.shape)

    @property
    def share(self) -> tuple[int, int]:
        """Tiles that are done, and all."""
        return int(self.done.sum()), self.done.size

    def fraction(self) -> NDArray[np.float64]:
        """Part of each tile's voxels that is vessel in the mask, float64; NaN where that is not known."""
        return np.where(self.vessel == NOT_COUNTED, np.nan, self.vessel / self.voxels)

    def ranked(self, metric: str, count: int, worst: bool = True) -> list[Triple]:
        """Tiles with the lowest or the highest score, as cells of the whole tile grid.

        Of equal ones, that with more wrong voxels is worse, and that with more vessel found is better; then comes the
        first in the volume. A tile that has vessel neither in the truth nor in the mask is right, and shows nothing:
        it is not among the best. Nor is one whose truth has none, whatever its score.

        Parameters
        ----------
        metric : str
            One of `kernels.confusion.SCORES`; what is 0 / 0 is by the rule of the article.
        count : int
            At most so many tiles.
        worst : bool
            Lowest scores first, of tiles where anything is wrong; else the highest, where there is vessel to find.

        Raises
        ------
        ConfigError, MissingInputError
            As `score`.
        """
        scores, counts = self.score(metric), self.require_truth()
        tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
        wrong, vessel = fp + fn, tp + fn
        chosen = np.flatnonzero((wrong if worst else vessel) > 0)
        first, then = (scores, -wrong) if worst else (-scores, -tp)
        order = np.lexsort((chosen, then.ravel()[chosen], first.ravel()[chosen]))
        places = np.stack(np.unravel_index(chosen[order][:count], self.tiles.shape), axis=-1) + self.tiles.start
        return [(z, y, x) for z, y, x in places.tolist()]

    def cut(self, tiles: Box) -> Census:
        """The same of some of its tiles: a box of the tile grid within ``tiles``."""
        inside = tiles.relative_to(self.tiles.start).slices
        arrays: dict[str, Any] = {
            field.name: value[inside]
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        return replace(self, tiles=tiles, **arrays)

    def box(self, cell: Triple) -> Box:
        """Voxels of a cell of the whole tile grid."""
        return self.grid.box(cell)

    def require_truth(self) -> NDArray[np.int64]:
        """Counts, for whoever cannot go on without.

        Raises
        ------
        MissingInputError
            If the run was not compared with a truth.
        """
        if self.counts is None:
            raise MissingInputError(
                f"{self.volume}: run {self.name!r} was compared with no truth, so there are no scores; compare it: "
                f"{way_on(self.volume, self.name)}, with --truth NAME"
            )
        return self.counts

    def require_done(self) -> None:
        """Refuse a region of which no tile is done.

        Raises
        ------
        DamageError
            If so, and some of the tables cannot be read.
        MissingInputError
            If so, and all of them can.
        """
        if self.done.any():
            return
        none = f"run {self.name!r} has none of the {self.done.size} tiles of {self.grid.voxels(self.tiles)} done"
        self.require_readable(none)
        raise MissingInputError(f"{self.volume}: {none}; finish it: {way_on(self.volume, self.name)}")

    def require_readable(self, trouble: str) -> None:
        """Say of some trouble that damage may be why, if there is any.

        Raises
        ------
        DamageError
            If some of the tables cannot be read.
        """
        if self.damage:
            (box, reason), more = self.damage[0], len(self.damage) - 1
            others = f", and {more} more" if more else ""
            raise DamageError(
                f"{self.volume}: {trouble}, as not all of its tables can be read: {box}: {reason}{others}; "
                f"see `kesm verify {self.volume}`"
            )


def census(volume: Volume, name: str, truth: str | None = None, region: Box | None = None) -> Census:
    """Read what a run knows of the tiles that a region touches, or of all.

    Parameters
    ----------
    volume : Volume
    name : str
        The run.
    truth : str, optional
        Default: what it was compared with, if that is one truth.
    region : Box, optional
        Voxels; it is rounded outward to whole tiles.

    Raises
    ------
    MissingInputError
        If there is no such run, or it was not compared with this truth.
    ConfigError
        If it was compared with several, and none is named.
    """
    return take_census(volume, RunTables(volume, name), choose_truth(volume, name, truth), region)


def take_census(volume: Volume, tables: RunTables, truth: str | None, region: Box | None = None) -> Census:
    """As `census`, of tables that are open, and against this truth or none.

    Raises
    ------
    MissingInputError
        If the run was not compared with this truth.
    """
    if truth is not None:
        _require_compared(volume, tables, truth)
    grid = tables.grids.tiles
    tiles = grid.cover(region or Box.whole(volume.shape))
    salvage = Salvage(tables, tiles)
    status, level, signal = (salvage.read(table) for table in (tables.status, tables.threshold, tables.signal))
    vessel, quality, seam = (salvage.read(table) for table in (tables.vessel, tables.quality, tables.seam))
    counts = None if truth is None else salvage.read(tables.truth(truth).counts)
    done = valid_tiles(volume, tables, truth, tiles)
    if (~done & (status == Status.DONE)).any():  # what says so may be damaged itself
        salvage.look_for_reasons(volume, truth)
    done &= salvage.readable
    level[~done], signal[~done], vessel[~done], quality[~done] = np.nan, Signal.NOT_ASKED, NOT_COUNTED, np.nan
    seam[~done] = 0
    if counts is not None:
        counts[~done] = 0
    window = grid.voxels(tiles)
    failures = tuple((box, reason) for box, reason in tables.journal.failures(truth) if (box & window).size)
    present = volume.slices.present()[tiles.start[0] : tiles.stop[0], None, None]
    failed = _failed(grid, tiles, status, failures)
    now = np.select([done, ~present, failed], [Status.DONE, Status.ABSENT, Status.FAILED], Status.PENDING)
    return Census(
        volume=volume.path, name=tables.name, truth=truth, grid=grid, tiles=tiles, status=now.astype(np.uint8),
        done=done, voxels=grid.sizes(tiles), level=level, signal=signal, vessel=vessel, counts=counts,
        annotated=np.zeros(tiles.shape, np.int64) if counts is None else counts.sum(axis=-1), quality=quality,
        seam=seam, failures=failures, damage=tuple(salvage.damage),
    )  # fmt: skip


def _failed(
    grid: Grid, tiles: Box, status: NDArray[np.uint8], failures: Sequence[tuple[Box, str]]
) -> NDArray[np.bool_]:
    """Tiles that have failed, unless they are done: without a mask, or with one that could not be compared."""
    failed: NDArray[np.bool_] = status == Status.FAILED
    for box, _ in failures:
        cells = (grid.cover(box) & tiles).relative_to(tiles.start).slices
        failed[cells] |= status[cells] == Status.DONE
    return failed


def choose_run(volume: Volume, name: str | None) -> str:
    """The run that is named, or that which was worked on last.

    Raises
    ------
    MissingInputError
        If there is none.
    """
    chosen = latest_run(volume, run_names(volume)) if name is None else name
    if chosen is None:
        raise MissingInputError(f"{volume.path}: has no run yet; make one with `kesm run {volume.path}`")
    return chosen


def latest_run(volume: Volume, names: Sequence[str]) -> str | None:
    """That of some runs which was worked on last, to the second; of equal ones the first; None of none.

    One whose documents cannot be read is older than all others.
    """

    def started(name: str) -> str:
        try:
            return str((RunTables(volume, name).journal.latest_attempt() or {}).get("started") or "-")
        except PipelineError:
            return ""

    return max(names, key=started, default=None)


def compared_truths(volume: Volume, tables: RunTables) -> list[str]:
    """Truths that a run was compared with, and that the volume still has."""
    labels = volume.readable_labels()
    return [truth for truth in tables.truths() if truth in labels]


def lost_truths(volume: Volume, tables: RunTables) -> list[str]:
    """Why truths that a run was compared with cannot be told of any more."""
    problems = []
    for truth in tables.truths():
        try:
            volume.truth(truth)
        except PipelineError as error:
            problems.append(f"run {tables.name!r} was compared with {truth!r}: {error}")
    return problems


def choose_truth(volume: Volume, run: str, named: str | None) -> str | None:
    """The truth that is named, or the only one that a run was compared with; None without any.

    Raises
    ------
    MissingInputError
        If there is no such run, or it was not compared with the truth that is named.
    ConfigError
        If it was compared with several, and none is named.
    """
    tables = RunTables(volume, run)
    if named is not None:
        _require_compared(volume, tables, named)
        return named
    known = compared_truths(volume, tables)
    if len(known) > 1:
        raise ConfigError(f"{volume.path}: run {run!r} was compared with {', '.join(known)}; choose one with --truth")
    return known[0] if known else None


def _require_compared(volume: Volume, tables: RunTables, truth: str) -> None:
    if truth not in tables.truths():
        known = ", ".join(tables.truths()) or "none yet"
        raise MissingInputError(
            f"{volume.path}: run {tables.name!r} was not compared with {truth!r}, but with: {known}; "
            f"compare it: {way_on(volume.path, tables.name)}, with --truth {truth}"
        )


MEASURES = tuple(measure.name.lower() for measure in Measure)
"""Names of the last axis of ``Census.quality``."""
