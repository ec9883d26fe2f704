"""What a run found, from its tables alone: the numbers that the command line prints and other programs read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.findings.activity import Activity, activity
from pipeline.findings.census import Census, compared_truths, lost_truths, take_census
from pipeline.findings.inspection import tile_flags
from pipeline.geometry import Box
from pipeline.kernels.bins import bin_top
from pipeline.kernels.confusion import Counts, Macro, Scores, Undefined, mean_scores, scores, sum_scores
from pipeline.kernels.flags import NOTHING, Flag, count_flags, names_of
from pipeline.settings.recipe import HistogramThreshold, Recipe
from pipeline.storage.tables import RunTables, Signal, Status, run_names
from pipeline.storage.volume import Volume

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
class Excluded:
    """Annotated tiles that were not scored because they are flagged.

    Attributes
    ----------
    tiles, voxels : int
        How many, and their annotated voxels.
    flags : dict
        How many have each flag that was asked for; one may have several.
    """

    tiles: int
    voxels: int
    flags: dict[str, int]


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
    undefined : str
        What a score is that is 0 / 0; see `kernels.confusion.scores`.
    excluded : Excluded or None
        What ``annotated``, counts and scores are without, if that was asked for and there is a truth.
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
    undefined: Undefined = "article"
    excluded: Excluded | None = None

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
            "undefined": self.undefined,
            "excluded": None if self.excluded is None else asdict(self.excluded),
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
    volume: Volume,
    name: str,
    truth: str | None,
    region: Box | None = None,
    undefined: Undefined = "article",
    exclude: Flag = NOTHING,
) -> Summary:
    """Sum the tables of a run over the tiles of a region, or over all.

    Tiles of which a table cannot be read are pending, and the table's chunk is among the failures. What a score is
    where it is ``undefined`` is said by `kernels.confusion.scores`. Tiles with a flag of those to ``exclude`` are not
    scored, and the summary says how many these are.

    Raises
    ------
    MissingInputError
        If there is no such run, or it was not compared with this truth.
    """
    tables = RunTables(volume, name)
    return summarise_census(volume, tables, take_census(volume, tables, truth, region), region, undefined, exclude)


def summarise_census(
    volume: Volume,
    tables: RunTables,
    tiles: Census,
    region: Box | None = None,
    undefined: Undefined = "article",
    exclude: Flag = NOTHING,
) -> Summary:
    """As `summarise`, of what was read before: the census of that region."""
    table, done, recipe = tiles.counts, tiles.done, Recipe.model_validate(tables.recipe)
    counts, macro, excluded = None, None, None
    if table is not None:
        if exclude:
            table = table.copy()
            excluded = _exclude(tables, tiles.tiles, exclude, table)
        counts = Counts(*(int(value) for value in table.sum(axis=(0, 1, 2))))
        macro = mean_scores(sum_scores(table, undefined), undefined)
    return Summary(
        name=tiles.name, volume=str(volume.path), region=region, truth=tiles.truth,
        voxels=int(tiles.voxels[done].sum()), annotated=counts.total if counts else 0, counts=counts,
        scores=scores(counts, undefined) if counts else None, macro=macro, levels=_levels(tiles.level[done]),
        drift=_drift(volume, tables), undefined=undefined, excluded=excluded,
        seam=Seam(*(int(pairs) for pairs in tiles.seam.sum(axis=(0, 1, 2)))),
        tiles=_tiles(tiles, recipe.has_levels), failures=[*tiles.failures, *tiles.damage],
    )  # fmt: skip


def _exclude(tables: RunTables, tiles: Box, exclude: Flag, counts: NDArray[np.int64]) -> Excluded:
    """Take the flagged tiles out of the counts of tiles, (z, y, x, 4), and say which these were."""
    flags = tile_flags(tables, tiles.start[0], tiles.stop[0])[:, tiles.slices[1], tiles.slices[2]] & np.uint8(exclude)
    flags[~counts.any(axis=-1)] = 0
    left_out = flags != 0
    voxels = int(counts[left_out].sum())
    counts[left_out] = 0
    found = count_flags(flags)
    return Excluded(int(left_out.sum()), voxels, {name: found[name] for name in names_of(exclude)})


def _tiles(tiles: Census, has_levels: bool) -> Tiles:
    silent = tiles.signal == Signal.NONE
    undecided = tiles.done & np.isnan(tiles.level) & ~silent & has_levels
    number = {state: int((tiles.status == state).sum()) for state in Status}
    return Tiles(
        total=tiles.status.size, done=number[Status.DONE], reused=0, failed=number[Status.FAILED],
        pending=number[Status.PENDING], absent=number[Status.ABSENT], undecided=int(undecided.sum()),
        no_signal=int((tiles.done & silent).sum()),
    )  # fmt: skip


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


def describe(
    volume: Volume, undefined: Undefined = "article", exclude: Flag = NOTHING
) -> tuple[dict[str, Any], list[Summary]]:
    """What a volume holds, who works on it, and the summary of each run against each truth that it was compared with.

    What cannot be read is a line of the document's ``problems``, and stops nothing.
    """
    present = volume.slices.present()
    problems: list[str] = []
    labels = []
    for info in volume.readable_labels(problems).values():
        label: dict[str, Any] = {"name": info.name, "kind": info.kind}
        with noted(problems):
            if info.kind == "truth":
                annotated = int(volume.truth(info.name)[1].present().sum())
                label |= {"slices": annotated, "mapping": info.mapping}
            elif info.kind == "confusion":
                label |= {"run": info.run, "truth": info.truth}
            labels.append(label)
    summaries: list[Summary] = []
    works: list[Activity] = []
    for name in run_names(volume):
        with noted(problems):
            works.append(activity(RunTables(volume, name)))
        with noted(problems):
            tables = RunTables(volume, name)
            problems += [lost for lost in lost_truths(volume, tables) if not any(known in lost for known in problems)]
            for truth in compared_truths(volume, tables) or (None,):
                tiles = take_census(volume, tables, truth)
                summaries.append(summarise_census(volume, tables, tiles, None, undefined, exclude))
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
