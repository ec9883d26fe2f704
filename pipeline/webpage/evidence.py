"""What the stored histograms of a run say, read once: grey levels by truth, and how well each method does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.findings.census import Census
from pipeline.kernels.bins import WINDOWED_LEVELS
from pipeline.methods.comparison import Candidate, Ranking, rank
from pipeline.methods.contest import METHODS, SCOPES, name_of
from pipeline.methods.scorecard import Scorecard, SliceRows
from pipeline.settings.recipe import Recipe
from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume


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
        Which of them the run is. Of scope ``recipe`` where none is that: it does more than they, or its levels are of
        16 bit and those of the stored histograms, of 256 bins, are not.
    problems : tuple of str
        Why some histograms cannot be read; their tiles are missing here.
    """

    pooled: NDArray[np.int64]
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
    card, own_counts, problems = _judge(tables, tiles)
    recipe = Recipe.model_validate(tables.recipe)
    denoise = name_of(recipe.denoise)
    candidates = {Candidate(method, scope, denoise): rows for (method, scope), rows in card.counts().items()}
    own = Candidate(str(recipe.threshold.method), recipe.threshold.scope, denoise)
    if recipe.segmenter is not None or not np.array_equal(candidates.get(own, ()), own_counts):
        own = Candidate(tiles.name, "recipe", denoise)
        candidates[own] = own_counts
    try:
        ranking = rank(candidates)
    except ConfigError:  # nothing is annotated
        return Evidence(card.pooled, None, None, problems)
    return Evidence(card.pooled, ranking, own, problems)


def _judge(tables: RunTables, tiles: Census) -> tuple[Scorecard, SliceRows, tuple[str, ...]]:
    """Every method by the histograms; the run's own counts of the same tiles; why some cannot be read."""
    histogram, counts = tables.truth(tiles.truth or "").histogram, tiles.require_truth()
    card = Scorecard(METHODS, SCOPES, np.zeros((3, WINDOWED_LEVELS), np.int64))
    own = [np.zeros((0, 4), np.int64)]
    problems: list[str] = []
    for at, z in enumerate(range(tiles.tiles.start[0], tiles.tiles.stop[0])):
        found, reasons = histogram.survey((slice(z, z + 1), *tiles.tiles.slices[1:]))  # zeros where it is damaged
        problems += reasons
        annotated = bool(tiles.annotated[at].any())
        card.add(found[0], tiles.done[at], tiles.done[at], annotated)
        if annotated:
            own.append(counts[at][found[0].any(axis=(-2, -1))].sum(axis=0, keepdims=True))
    return card, np.concatenate(own), tuple(dict.fromkeys(problems))
