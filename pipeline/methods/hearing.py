"""The hearing of a contest's candidates: each filter and each recipe runs once, and all are judged on the same tiles.

Levels are from all tiles that a run has done, scores from those that all runs have done, and none excludes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DamageError, PipelineError
from pipeline.events import Observer
from pipeline.findings.inspection import tile_flags
from pipeline.geometry import Box
from pipeline.kernels.bins import bin_top
from pipeline.methods.comparison import (
    Candidate,
    Ceiling,
    average_precision,
    ceiling,
    roc_auc,
)
from pipeline.methods.contest import Contest, name_of, plain, slug
from pipeline.methods.scorecard import Scorecard, SliceRows
from pipeline.segmentation.plan import make_plan
from pipeline.segmentation.runs import run
from pipeline.settings.config import RunConfig
from pipeline.settings.recipe import Denoise, HistogramThreshold, Recipe
from pipeline.storage.keys import valid_tiles
from pipeline.storage.store import ABSENT, BY_A_RUN
from pipeline.storage.tables import RunTables, run_names
from pipeline.storage.volume import Volume

Watch = Callable[[str], AbstractContextManager[Observer]]
"""Makes what observes the run of a name."""
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Judged:
    """What one filter's tables say.

    Attributes
    ----------
    run : str
        Name of the run that left them.
    ceiling : Ceiling or None
        The best level that all could share.
    pooled, slices : int
        Slices whose voxels the level of a volume is from, and all that exist.
    """

    denoise: Denoise
    run: str
    counts: dict[Candidate, SliceRows]
    ceiling: Ceiling | None
    roc_auc: float | None
    average_precision: float | None
    pooled: int
    slices: int

    @property
    def name(self) -> str:
        """Name of the filter."""
        return name_of(self.denoise)


@dataclass(frozen=True, slots=True)
class Hearing:
    """What is known of all candidates.

    Attributes
    ----------
    counts : mapping
        Of each candidate, those that tables judge first.
    judged : tuple of Judged
        Of each filter.
    recipes : mapping
        What was run for each of the other candidates, under the name that it was run by.
    failed : int
        Tiles that one of the runs could not do; they count for no candidate.
    excluded : mapping
        Of runs by name, annotated tiles that are flagged; they count for no candidate either.
    cut : set of str
        Names of runs that have done more tiles, of those that are not flagged, than all have.
    left_out : mapping
        Names of runs that have done none of the annotated tiles, and why: they have no part in it.
    """

    counts: Mapping[Candidate, SliceRows]
    judged: tuple[Judged, ...]
    recipes: Mapping[Candidate, RunConfig]
    failed: int
    excluded: Mapping[str, int]
    cut: Set[str]
    left_out: Mapping[str, str]


def hear(config: RunConfig, contest: Contest, watch: Watch) -> Hearing:
    """Run each recipe and each filter that has not run, and read what they have left.

    Recipes come first: where one only draws its mask in another way, its tables serve the methods, too.

    Raises
    ------
    ConfigError
        If no run has done any of the annotated tiles.
    PipelineError
        As `run`.
    """
    for wanted in (*contest.recipes.values(), *(_run_of(config, denoise) for denoise in contest.denoise)):
        named(wanted)  # what cannot be run is refused before anything has cost time
    runs, recipes, filters = _Runs(watch, annotated_slices(config)), {}, []
    for candidate, recipe in contest.recipes.items():
        recipes[candidate] = named(recipe)
        runs.add(recipes[candidate])
    for denoise in contest.denoise:
        filters.append(_run_of(config, denoise))
        runs.add(filters[-1])
    if not runs.done:
        name, reason = next(iter(runs.left_out.items()))
        raise ConfigError(f"{config.volume}: no annotated tile could be done, so nothing is compared: {name}: {reason}")
    right = _common(runs.scored)
    cut = {name for name, flags in right.items() if (runs.scored[name] & ~flags).any()}
    judged = tuple(_judge(each, contest, runs, right[each.run_name]) for each in filters if each.run_name in right)
    counts = {candidate: rows for each in judged for candidate, rows in each.counts.items()}
    for candidate, recipe in recipes.items():
        if recipe.run_name in right:
            counts[candidate] = _own_counts(recipe, right[recipe.run_name], runs.traced)
    return Hearing(counts, judged, recipes, runs.failed, runs.excluded, cut, runs.left_out)


def named(config: RunConfig) -> RunConfig:
    """The configuration under the name of the run that has made its mask, else its own, if that is free, or another.

    Raises
    ------
    PipelineError
        If it cannot be run.
    """
    volume = Volume(config.volume)
    free = config.model_copy(update={"name": _free_name(volume, config.run_name)})
    wanted = make_plan(free, volume).recipe.document()  # with what a model's file says
    made = [name for name, recipe in _recipes(volume) if recipe.document() == wanted]
    if config.run_name in made:
        return config
    return free.model_copy(update={"name": made[0]}) if made else free


def annotated_slices(config: RunConfig) -> list[int]:
    """Slices of the region that somebody has annotated."""
    volume, truth = Volume(config.volume), config.truth or ""
    region = config.region.box(volume.shape) if config.region else Box.whole(volume.shape)
    first, last = region.start[0], region.stop[0]
    traced = np.any(volume.truth(truth)[1].shard_digests(first, last) != ABSENT, axis=(1, 2))
    traced &= volume.slices.present()[first:last]
    if not traced.any():
        raise ConfigError(f"truth: {truth!r} has no annotated slice in {region}; choose others, or annotate some")
    return [first + int(position) for position in np.flatnonzero(traced)]


def _recipes(volume: Volume) -> list[tuple[str, Recipe]]:
    """Recipes of all runs that can be read, by name."""
    found = []
    for name in run_names(volume):
        try:
            found.append((name, Recipe.model_validate(RunTables(volume, name).recipe)))
        except (PipelineError, ValueError):  # damaged, or of a newer version
            continue
    return found


def _free_name(volume: Volume, name: str) -> str:
    """The name, with a number where it is that of a run or label."""
    taken = {*run_names(volume), *volume.labels()}
    names = (name, *(f"{name[:95]}-{number}" for number in range(2, 2 + len(taken))))
    return next(each for each in names if each not in taken)


def _run_of(config: RunConfig, denoise: Denoise) -> RunConfig:
    """The run that leaves a filter's tables: one that is there, whatever its threshold, else one of a free name."""
    volume, basis = Volume(config.volume), plain(config)
    wanted = basis.model_copy(update={"denoise": denoise, "refit": False, "confusion": False})
    found = [
        (name, recipe)
        for name, recipe in _recipes(volume)
        if recipe.model_copy(update={"threshold": wanted.threshold}) == wanted.recipe
    ]
    if found:  # one that looks up levels is quicker than one that draws, where something is left to do
        name, recipe = min(found, key=lambda each: (each[0] != wanted.run_name, each[1].drawn))
        return wanted.model_copy(update={"name": name, "threshold": recipe.threshold})
    if denoise == config.denoise:
        return wanted.model_copy(update={"name": _free_name(volume, basis.run_name)})
    name, threshold = f"{basis.run_name}-{slug(denoise)}", HistogramThreshold()  # of which only the tables are read
    return wanted.model_copy(update={"name": _free_name(volume, name), "threshold": threshold})


@dataclass(slots=True)
class _Runs:
    """The runs of a contest, one after the other.

    Attributes
    ----------
    traced : sequence of int
        Annotated slices.
    done : dict
        Of each run that has done some of their tiles: which tiles of the region it has done and compared.
    scored : dict
        Those of them that are not flagged as the configuration excludes.
    failed, excluded, left_out
        As `Hearing` has them.
    """

    watch: Watch
    traced: Sequence[int]
    done: dict[str, Flags] = field(default_factory=dict)
    scored: dict[str, Flags] = field(default_factory=dict)
    failed: int = 0
    excluded: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, config: RunConfig) -> None:
        name = config.run_name
        if name in self.done or name in self.left_out:  # a recipe's run that has the tables of a filter, too
            return
        with self.watch(name) as observer:
            summary = run(config, observer)
        volume = Volume(config.volume)
        tiles = _tiles(config, volume)
        tables = RunTables(volume, name)
        done = valid_tiles(volume, tables, config.truth, tiles)
        if done[[z - tiles.start[0] for z in self.traced]].any():
            self.done[name] = self.scored[name] = done
            if summary.excluded is not None:
                flags = tile_flags(tables, tiles.start[0], tiles.stop[0])[:, tiles.slices[1], tiles.slices[2]]
                self.scored[name] = done & (flags & np.uint8(config.excluded) == 0)
                self.excluded[name] = summary.excluded.tiles
            self.failed += summary.tiles.failed
        else:
            self.left_out[name] = summary.failures[0][1] if summary.failures else "what they are from has changed"


def _tiles(config: RunConfig, volume: Volume) -> Box:
    """Tiles of the region."""
    region = config.region.box(volume.shape) if config.region else Box.whole(volume.shape)
    return RunTables(volume, config.run_name).grids.tiles.cover(region)


def _common(done: Mapping[str, Flags]) -> dict[str, Flags]:
    """Tiles that all runs have done, by run: whole slices, where their tiles are not of one size."""
    if len({flags.shape for flags in done.values()}) == 1:
        shared: Flags = np.logical_and.reduce(list(done.values()))
        return dict.fromkeys(done, shared)
    slices: Flags = np.logical_and.reduce([flags.all(axis=(1, 2)) for flags in done.values()])
    return {name: flags & slices[:, None, None] for name, flags in done.items()}


def _own_counts(config: RunConfig, right: Flags, traced: Sequence[int]) -> SliceRows:
    """Counts of a run's own mask."""
    volume = Volume(config.volume)
    tiles = _tiles(config, volume)
    found = RunTables(volume, config.run_name).truth(config.truth or "").counts.read(tiles.slices)
    found[~right] = 0
    rows: SliceRows = found[[z - tiles.start[0] for z in traced]].sum(axis=(1, 2))
    return rows


def _judge(config: RunConfig, contest: Contest, runs: _Runs, right: Flags) -> Judged:
    """Judge the methods by the tables of one run."""
    volume, done = Volume(config.volume), runs.done[config.run_name]
    histogram = RunTables(volume, config.run_name).truth(config.truth or "").histogram
    tiles = _tiles(config, volume)
    card = Scorecard(contest.methods, contest.scopes, np.zeros(histogram.shape[-2:], np.int64))
    for position, z in enumerate(range(tiles.start[0], tiles.stop[0])):
        found, reasons = histogram.survey((slice(z, z + 1), *tiles.slices[1:]))
        if reasons:  # a ranking leaves nothing out
            raise DamageError(f"{'; '.join(reasons)}; {BY_A_RUN}")
        card.add(found[0], done[position], right[position], z in runs.traced)
    scored, name = card.scored_pooled, name_of(config.denoise)
    best = ceiling(scored, contest.by)
    if best is not None and volume.dtype.itemsize > 1:
        best = best._replace(level=float(bin_top(int(best.level), volume.filtered_window(config.foreground == "dark"))))
    counts = {Candidate(method, scope, name): rows for (method, scope), rows in card.counts().items()}
    return Judged(
        config.denoise, config.run_name, counts, best, roc_auc(scored), average_precision(scored),
        int(done.all(axis=(1, 2)).sum()), int(volume.slices.present().sum()),
    )  # fmt: skip
