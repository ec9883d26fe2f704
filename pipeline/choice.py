"""Choosing the method: each filter runs once, and every threshold method is judged by the tables that it leaves."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.comparison import (
    LEAST_SLICES,
    Candidate,
    Ceiling,
    HeldOut,
    Metric,
    Place,
    Ranking,
    Scope,
    average_precision,
    candidate_counts,
    ceiling,
    describe,
    held_out,
    rank,
    roc_auc,
    slice_counts,
)
from pipeline.config import RunConfig
from pipeline.configfile import suggest
from pipeline.errors import ConfigError, MissingInputError
from pipeline.execute import Observer
from pipeline.geometry import Box
from pipeline.histogram import bin_top
from pipeline.keys import valid_tiles
from pipeline.recipe import (
    Denoise,
    FixedThreshold,
    GaussianDenoise,
    HistogramThreshold,
    MedianDenoise,
    NoDenoise,
    PythonDenoise,
    Recipe,
)
from pipeline.runs import run
from pipeline.store import ABSENT
from pipeline.tables import RunTables, run_names
from pipeline.threshold import LEVEL_OF, levels_of
from pipeline.volume import Volume

METHODS: tuple[str, ...] = get_args(HistogramThreshold.model_fields["method"].annotation)
SCOPES: tuple[Scope, ...] = get_args(Scope)
SENTENCES = 5  # about candidates that cannot be told from the best
Watch = Callable[[str], AbstractContextManager[Observer]]
"""Makes what observes the run of a name."""


@dataclass(frozen=True, slots=True)
class Contest:
    """What is compared, and how.

    Attributes
    ----------
    denoise : tuple of Denoise
        Each costs a run, unless there is one.
    by : str
        Score that ranks.
    folds : int or None
        Parts of the annotated slices that are held out in turn; None for five, or fewer where there are fewer slices.
    """

    methods: tuple[str, ...]
    scopes: tuple[Scope, ...]
    denoise: tuple[Denoise, ...]
    by: Metric = "mcc"
    folds: int | None = None


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
    counts: dict[Candidate, NDArray[np.int64]]
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
class Choice:
    """Which recipe suits a volume best."""

    config: RunConfig
    ranking: Ranking
    held_out: HeldOut | None
    judged: tuple[Judged, ...]
    failed: int
    binned: bool

    @property
    def best(self) -> RunConfig:
        """Configuration that runs the winner."""
        winner = self.ranking.places[0].candidate
        if winner.scope == "recipe":
            return self.config
        (denoise,) = (each.denoise for each in self.judged if each.name == winner.denoise)
        threshold = HistogramThreshold.model_validate({"method": winner.method, "scope": winner.scope})
        name = f"{winner.method}-{winner.scope}-{_slug(denoise)}"
        return _plain(self.config).model_copy(update={"denoise": denoise, "threshold": threshold, "name": name})

    def document(self) -> dict[str, Any]:
        """The choice as the JSON object of the command line."""
        winner = self.ranking.places[0]
        top = max(self.judged, key=lambda each: -1.0 if each.ceiling is None else each.ceiling.mcc)
        held = self.held_out
        return {
            "schema": 1,
            "volume": str(self.config.volume),
            "truth": self.config.truth,
            "by": self.ranking.metric,
            "slices": self.ranking.slices,
            "binned": self.binned,
            "rows": [_row(self.ranking, place) for place in self.ranking.places],
            "best": _row(self.ranking, winner) | {"recipe": self.best.recipe.document()},
            "ceiling": None
            if top.ceiling is None
            else {"denoise": top.name, "level": top.ceiling.level, "mcc": top.ceiling.mcc},
            "curves": [
                {
                    "denoise": each.name,
                    "run": each.run,
                    "roc_auc": each.roc_auc,
                    "average_precision": each.average_precision,
                    "slices_pooled": each.pooled,
                    "slices_present": each.slices,
                }
                for each in self.judged
            ],
            "held_out": None
            if held is None
            else asdict(held.scores) | {"folds": len(held.chosen), "chosen": [str(one) for one in held.chosen]},
            "sentences": self.sentences(),
        }

    def sentences(self) -> list[str]:
        """What a person should take from it, in words."""
        places = self.ranking.places
        said = [describe(self.ranking, places[0])]
        if self.ranking.slices < LEAST_SLICES:
            said.append(
                f"Annotated slices: {self.ranking.slices}. From {LEAST_SLICES} on there are intervals, which say how "
                "sure the order is."
            )
        said += [describe(self.ranking, place) for place in places[1:] if place.told_apart is False][:SENTENCES]
        if self.held_out is not None:
            score = getattr(self.held_out.scores, self.ranking.metric)
            said.append(
                f"Chosen on some slices and scored on the others ({len(self.held_out.chosen)} folds): "
                f"{self.ranking.metric.upper()} {score:.6f}"
            )
        else:
            said.append("With one annotated slice nothing can be held out: the winner's score is flattered.")
        for each in self.judged:
            if each.pooled < each.slices and any(place.candidate.scope == "volume" for place in places):
                said.append(
                    f"The level of the volume is from {each.pooled} of its {each.slices} slices "
                    f"({each.name}): run all of it for the exact one."
                )
        if self.binned:
            said.append("Of 16 bits, tables have 256 bins: a run's own levels are finer.")
        return said

    def table(self) -> str:
        """The rows as CSV."""
        rows = [_row(self.ranking, place) for place in self.ranking.places]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def compare(config: RunConfig, contest: Contest, watch: Watch) -> Choice:
    """Run each filter that has not run, and judge every method in every scope on the annotated tiles.

    Methods are judged without the stages after them; a configuration that has such stages, or a segmenter, is run as it
    is, and judged beside them.

    Raises
    ------
    ConfigError
        If there is no truth to judge by, or too little for the folds.
    PipelineError
        As `run`.
    """
    if config.truth is None:
        raise ConfigError("truth: got none, which methods are judged by; add --truth NAME")
    if config.region is not None and (config.region.y or config.region.x):
        raise ConfigError("--region: slices are compared whole, because they have levels as a whole; give z alone")
    slices = len(_annotated(config))
    if contest.folds is not None and not 2 <= contest.folds <= slices:  # said before anything has cost time
        raise ConfigError(
            f"--folds: got {contest.folds} for {slices} annotated slices, expected 2 or more, and a slice for each"
        )
    runs, plain = [], _plain(config)
    wanted = [_run_of(plain, denoise) for denoise in contest.denoise]
    for candidate in wanted if plain == config else [*wanted, config]:
        with watch(candidate.run_name) as observer:
            runs.append((candidate, run(candidate, observer)))
    right = np.logical_and.reduce([_right(candidate) for candidate, _ in runs])  # all are judged on the same tiles
    judged = [_judge(candidate, contest, right) for candidate in wanted]
    counts = {candidate: rows for each in judged for candidate, rows in each.counts.items()}
    if plain != config:
        counts[Candidate(config.run_name, "recipe", name_of(config.denoise))] = _own_counts(config, right)
    ranking = rank(counts, contest.by)
    folds = min(contest.folds or 5, ranking.slices)  # a slice may have failed since they were asked for
    binned = Volume(config.volume).dtype.itemsize > 1
    held = held_out(counts, folds, contest.by) if folds > 1 else None
    failed = sum(summary.tiles.failed for _, summary in runs)
    return Choice(config, ranking, held, tuple(judged), failed, binned)


def parse_contest(
    config: RunConfig,
    methods: Sequence[str],
    scopes: Sequence[str],
    denoise: Sequence[str],
    by: str,
    folds: int | None,
) -> Contest:
    """Understand the words of a command line; nothing means all methods, all scopes, and the configuration's filter.

    Raises
    ------
    ConfigError
        Naming the word that is not known, and what it may have meant.
    """
    for option, words, known in (
        ("methods", methods, METHODS),
        ("scopes", scopes, SCOPES),
        ("by", [by], ("mcc", "f1")),
    ):
        for word in words:
            if word not in known:
                raise ConfigError(f"--{option}: got {word!r}, {suggest(word, known)}")
    filters = tuple(dict.fromkeys(map(parse_denoise, denoise))) or (config.denoise,)
    return Contest(
        tuple(dict.fromkeys(methods)) or METHODS,
        tuple(dict.fromkeys(scopes)) or SCOPES,  # type: ignore[arg-type]
        filters,
        by,  # type: ignore[arg-type]
        folds,
    )


def parse_denoise(text: str) -> Denoise:
    """``none``, ``median``, ``median:5``, ``median:3,3,3`` or ``gaussian:1.5`` as a filter."""
    method, colon, size = text.partition(":")
    try:
        if method == "none" and not colon:
            return NoDenoise()
        if method == "median":
            lengths = [int(length) for length in size.split(",")] if colon else [3]
            return MedianDenoise.model_validate({"size": lengths[0] if len(lengths) == 1 else lengths})
        if method == "gaussian":
            return GaussianDenoise.model_validate({"sigma": float(size) if colon else 1.0})
    except ValueError as error:  # pydantic's is one, too
        raise ConfigError(
            f"--denoise: got {text!r}, expected an odd size, as in median:5 or median:3,3,3, or a sigma, "
            "as in gaussian:1.5"
        ) from error
    raise ConfigError(f"--denoise: got {text!r}, expected none, median, median:5, median:3,3,3 or gaussian:1.5")


def name_of(denoise: Denoise) -> str:
    """Name of a filter, as `parse_denoise` takes it."""
    if isinstance(denoise, NoDenoise):
        return "none"
    if isinstance(denoise, GaussianDenoise):
        return f"gaussian:{denoise.sigma:g}"
    if isinstance(denoise, PythonDenoise):
        return f"python:{denoise.target}"
    size = denoise.size
    return f"median:{size if isinstance(size, int) else ','.join(map(str, size))}"


def check_place(path: Path) -> None:
    """Refuse a file that cannot be written, before anything has cost time."""
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ConfigError(f"--write: got {path}, expected a file in a folder that is there, such as best.yaml")


def write_recipe(choice: Choice, path: Path) -> None:
    """Write the winner as a configuration that `kesm run` takes."""
    best = choice.best
    text = yaml.safe_dump(
        {"volume": str(best.volume.resolve()), "name": best.name, "truth": best.truth, **best.recipe.document()},
        sort_keys=False,
    )
    score = getattr(choice.ranking.places[0].scores, choice.ranking.metric)
    path.write_text(
        f"# Chosen by `kesm compare` on {choice.ranking.slices} annotated slices: "
        f"{choice.ranking.metric.upper()} {score:.6f}\n{text}"
    )


def _slug(denoise: Denoise) -> str:
    return name_of(denoise).replace(":", "").replace(",", "x")


def _plain(config: RunConfig) -> RunConfig:
    """The configuration without what makes more of a mask than a level for each tile, under a name of its own."""
    threshold = config.threshold
    levelled = isinstance(threshold, HistogramThreshold | FixedThreshold) and threshold.scope != "smooth"
    if (config.clean, config.segmenter) == (None, None) and levelled and not threshold.judges:
        return config
    update = {"clean": None, "segmenter": None, "threshold": HistogramThreshold(), "name": f"{config.run_name}-plain"}
    return config.model_copy(update=update)


def _own_counts(config: RunConfig, right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Counts of a run by annotated slice, (slices, 4)."""
    volume = Volume(config.volume)
    tiles, traced = _tiles(config, volume), _annotated(config)
    found = RunTables(volume, config.run_name).truth(config.truth or "").counts.read(tiles.slices)
    found[~right] = 0
    rows: NDArray[np.int64] = found[[z - tiles.start[0] for z in traced]].sum(axis=(1, 2))
    return rows


def _run_of(config: RunConfig, denoise: Denoise) -> RunConfig:
    """The run that leaves a filter's tables: one that is there, whatever its threshold, else one of another name."""
    wanted = config.model_copy(update={"denoise": denoise, "refit": False})
    volume = Volume(config.volume)
    for name in run_names(volume):
        try:
            recipe = Recipe.model_validate(RunTables(volume, name).recipe)
        except (MissingInputError, ValueError):  # damaged, or of a newer version
            continue
        if recipe.model_copy(update={"threshold": wanted.threshold}) == wanted.recipe:
            return wanted.model_copy(update={"name": name, "threshold": recipe.threshold})
    if denoise == config.denoise:
        return wanted
    name, threshold = f"{config.run_name}-{_slug(denoise)}", HistogramThreshold()  # of which only the tables are read
    return wanted.model_copy(update={"name": name, "threshold": threshold})


def _annotated(config: RunConfig) -> list[int]:
    """Slices of the region that somebody has annotated."""
    volume, truth = Volume(config.volume), config.truth or ""
    region = config.region.box(volume.shape) if config.region else Box.whole(volume.shape)
    first, last = region.start[0], region.stop[0]
    traced = np.any(volume.truth(truth)[1].shard_digests(first, last) != ABSENT, axis=(1, 2))
    traced &= volume.slices.present()[first:last]
    if not traced.any():
        raise ConfigError(f"truth: {truth!r} has no annotated slice in {region}; choose others, or annotate some")
    return [first + int(position) for position in np.flatnonzero(traced)]


def _tiles(config: RunConfig, volume: Volume) -> Box:
    """Tiles of the region."""
    region = config.region.box(volume.shape) if config.region else Box.whole(volume.shape)
    return RunTables(volume, config.run_name).grids.tiles.cover(region)


def _right(config: RunConfig) -> NDArray[np.bool_]:
    """Tiles of the region that a run has done and compared."""
    volume = Volume(config.volume)
    return valid_tiles(volume, RunTables(volume, config.run_name), config.truth, _tiles(config, volume))


def _judge(config: RunConfig, contest: Contest, right: NDArray[np.bool_]) -> Judged:
    """Judge the methods on the tables of one run, slice by slice: those of a full volume take a gigabyte."""
    volume, name = Volume(config.volume), name_of(config.denoise)
    histogram = RunTables(volume, config.run_name).truth(config.truth or "").histogram
    tiles, traced = _tiles(config, volume), _annotated(config)
    present = volume.slices.present()
    pooled = np.zeros((3, histogram.shape[-1]), np.int64)
    annotated, whole = [], 0
    for position, z in enumerate(range(tiles.start[0], tiles.stop[0])):
        found = histogram.read((slice(z, z + 1), *tiles.slices[1:]))
        found[0][~right[position]] = 0
        pooled += found.sum(axis=(0, 1, 2), dtype=np.int64)
        whole += bool(right[position].all())
        if z in traced:
            annotated.append(found[0])
    some = np.stack(annotated)
    counts = candidate_counts(some, contest.methods, [s for s in contest.scopes if s != "volume"], name, _levels_of)
    if "volume" in contest.scopes:
        for method in contest.methods:
            level = LEVEL_OF[method](pooled.sum(axis=0))
            counts[Candidate(method, "volume", name)] = slice_counts(some, np.full(some.shape[:3], level))
    scored = some.sum(axis=(0, 1, 2), dtype=np.int64)
    best = ceiling(scored)
    if best is not None and volume.dtype.itemsize > 1:
        best = best._replace(level=float(bin_top(int(best.level), volume.filtered_window(config.foreground == "dark"))))
    return Judged(
        config.denoise, config.run_name, counts, best, roc_auc(scored), average_precision(scored), whole,
        int(present.sum()),
    )  # fmt: skip


def _levels_of(method: str, tables: NDArray[Any]) -> NDArray[np.float64]:
    """Levels of tables as they are stored, or of some that were summed."""
    if tables.dtype == np.uint32:
        return levels_of(method, tables)
    return np.array([LEVEL_OF[method](table.sum(axis=0)) for table in tables])


def _row(ranking: Ranking, place: Place) -> dict[str, Any]:
    """One candidate as plain values; the interval is that of the score that ranks."""
    candidate, metric = place.candidate, ranking.metric
    low, high = place.interval or (None, None)
    behind_low, behind_high = place.behind_interval or (None, None)
    return {
        "method": candidate.method, "scope": candidate.scope, "denoise": candidate.denoise,
        **asdict(place.scores), f"{metric}_low": low, f"{metric}_high": high,
        "behind": place.behind, "behind_low": behind_low, "behind_high": behind_high, "told_apart": place.told_apart,
    }  # fmt: skip
