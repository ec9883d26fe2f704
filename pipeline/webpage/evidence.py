"""What the stored histograms of a run say, read once: grey levels by truth, and how well each method does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.census import Census
from pipeline.comparison import Candidate, Ranking, Scope, rank, scope_levels, slice_counts
from pipeline.contest import METHODS, name_of
from pipeline.errors import ConfigError
from pipeline.histogram import BACKGROUND, VESSEL, WINDOWED_LEVELS
from pipeline.recipe import Recipe
from pipeline.tables import RunTables
from pipeline.threshold import LEVEL_OF, levels_of
from pipeline.volume import Volume

Levels = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Histograms of the tiles that are done, and what follows from them.

    Attributes
    ----------
    pooled : ndarray
        int64 (3, 256): filtered grey levels of background, vessel and not annotated voxels. Without a truth, all are
        in the last row.
    ranking : Ranking or None
        Every method for each tile, slice and the volume, by MCC, after the run's own filter and without the stages
        after its threshold. None without an annotated voxel.
    own : Candidate or None
        Which of them the run is.
    problems : tuple of str
        Why some histograms cannot be read; their tiles are missing here.
    """

    pooled: Counts
    ranking: Ranking | None
    own: Candidate | None
    problems: tuple[str, ...] = ()


def find_evidence(volume: Volume, tiles: Census) -> Evidence:
    """Read the histograms of a run, and judge every method by them; no voxel is read.

    Parameters
    ----------
    volume : Volume
    tiles : Census
        Of all its tiles.
    """
    tables = RunTables(volume, tiles.name)
    if tiles.truth is None:
        grey, reasons = tables.grey.survey()
        pooled = np.zeros((3, WINDOWED_LEVELS), np.int64)
        pooled[-1] = grey.sum(axis=(0, 1, 2))
        return Evidence(pooled, None, None, tuple(reasons))
    counts, slices, own_counts, problems = _judge(tables, tiles)
    recipe = Recipe.model_validate(tables.recipe)
    denoise = name_of(recipe.denoise)
    candidates = {Candidate(method, scope, denoise): rows for (method, scope), rows in counts.items()}
    own = Candidate(str(recipe.threshold.method), recipe.threshold.scope, denoise)
    if recipe.segmenter is not None or not np.array_equal(candidates.get(own, ()), own_counts):
        own = Candidate(tiles.name, "recipe", denoise)
        candidates[own] = own_counts
    try:
        ranking = rank(candidates)
    except ConfigError:  # nothing is annotated
        return Evidence(slices.sum(axis=0), None, None, problems)
    return Evidence(slices.sum(axis=0), ranking, own, problems)


def _judge(tables: RunTables, tiles: Census) -> tuple[dict[tuple[str, Scope], Counts], Counts, Counts, tuple[str, ...]]:
    """Counts of each method and scope by slice, (slices, 4); grey levels by slice, (slices, 3, 256); the run's counts.

    Last, why some histograms cannot be read.

    Slices and the volume have levels from sums of histograms, so only the tiles of one slice are ever held.
    """
    histogram = tables.truth(tiles.truth or "").histogram
    depth = len(tiles.done)
    slices = np.zeros((depth, 3, WINDOWED_LEVELS), np.int64)
    by_tile = {method: np.zeros((depth, 4), np.int64) for method in METHODS}
    own = np.zeros((depth, 4), np.int64)
    problems: list[str] = []
    for at, z in enumerate(range(tiles.tiles.start[0], tiles.tiles.stop[0])):
        found, reasons = histogram.survey((slice(z, z + 1), *tiles.tiles.slices[1:]))  # zeros where it is damaged
        problems += reasons
        found[0][~tiles.done[at]] = 0
        slices[at] = found.sum(axis=(0, 1, 2), dtype=np.int64)
        if slices[at, [BACKGROUND, VESSEL]].any():
            own[at] = tiles.require_truth()[at][found[0].any(axis=(-2, -1))].sum(axis=0)
            for method, rows in by_tile.items():
                rows[at] = slice_counts(found, scope_levels(found, method, "tile", levels_of))[0]
    counts: dict[tuple[str, Scope], Counts] = {(method, "tile"): rows for method, rows in by_tile.items()}
    whole = slices[:, None, None]
    for method in METHODS:
        of_slices = np.array([_level(method, table) for table in slices])[:, None, None]
        counts[method, "slice"] = slice_counts(whole, of_slices)
        counts[method, "volume"] = slice_counts(whole, np.full_like(of_slices, _level(method, slices.sum(axis=0))))
    return counts, slices, own, tuple(dict.fromkeys(problems))


def _level(method: str, table: Counts) -> float:
    """Level of a summed table, (3, levels); nan of an empty one."""
    grey = table.sum(axis=0)
    return float(LEVEL_OF[method](grey)) if grey.any() else float("nan")
