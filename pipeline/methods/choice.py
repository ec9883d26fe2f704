"""Choosing the method: each filter and each recipe runs once, every candidate is judged, and the best is written down.

What the tables of 8 bit say of a method is what its run gives, to the voxel: the best is not run for its score. It is
where that may differ: of 16 bit, where tables are coarser, and where the level of the volume is from a part of it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError, ExistsError, PipelineError
from pipeline.kernels.confusion import Counts, Scores, scores
from pipeline.methods.comparison import LEAST_SLICES, METRICS, HeldOut, Place, Ranking, describe, held_out, rank
from pipeline.methods.contest import SUFFIXES, Contest, configured
from pipeline.methods.hearing import Hearing, Judged, Watch, annotated_slices, hear, named
from pipeline.segmentation.runs import run
from pipeline.settings.config import RunConfig
from pipeline.storage.disk import disk_errors
from pipeline.storage.draft import check_place, draft_file
from pipeline.storage.volume import Volume

SENTENCES = 5  # about candidates that cannot be told from the best

HEADING = "# Chosen by `kesm compare`"


@dataclass(frozen=True, slots=True)
class Rerun:
    """The best candidate, as it runs.

    Attributes
    ----------
    counts, scores
        None where it could not be run.
    ran : bool
        Whether it was run for them; else they are those of the ranking, which its run has, too.
    problem : str or None
        Why it could not be run.
    """

    counts: Counts | None
    scores: Scores | None
    ran: bool
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which recipe suits a volume best.

    Attributes
    ----------
    best : RunConfig
        Runs the first of the ranking.
    binned : bool
        Whether the tables are coarser than the image.
    """

    config: RunConfig
    ranking: Ranking
    held_out: HeldOut | None
    hearing: Hearing
    best: RunConfig
    rerun: Rerun
    binned: bool

    @property
    def judged(self) -> tuple[Judged, ...]:
        """What the tables of each filter say."""
        return self.hearing.judged

    @property
    def partial(self) -> bool:
        """Whether something could not be done."""
        return bool(self.hearing.failed or self.hearing.left_out or self.rerun.problem)

    def document(self) -> dict[str, Any]:
        """The choice as the JSON object of the command line."""
        region, held = self.config.region, self.held_out
        shape = Volume(self.config.volume).shape
        return {
            "schema": 1,
            "volume": str(self.config.volume),
            "truth": self.config.truth,
            "region": None if region is None else str(region.box(shape)),
            "by": self.ranking.metric,
            "slices": self.ranking.slices,
            "binned": self.binned,
            "failed": self.hearing.failed,
            "excluded": dict(self.hearing.excluded),
            "rows": [_row(self.ranking, place) for place in self.ranking.places],
            "best": self._best(),
            "ceiling": self._ceiling(),
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

    def _best(self) -> dict[str, Any]:
        rerun = self.rerun
        return _row(self.ranking, self.ranking.places[0]) | {
            "name": self.best.run_name,
            "recipe": self.best.recipe.document(),
            "rerun": {
                "ran": rerun.ran,
                "counts": None if rerun.counts is None else asdict(rerun.counts),
                "scores": None if rerun.scores is None else asdict(rerun.scores),
                "problem": rerun.problem,
            },
        }

    def _ceiling(self) -> dict[str, Any] | None:
        found = [(each.ceiling, each.name) for each in self.judged if each.ceiling is not None]
        if not found:
            return None
        best, name = max(found, key=lambda pair: float(getattr(pair[0], self.ranking.metric)))
        return {"denoise": name, **best._asdict()}

    def lines(self) -> list[str]:
        """What no row says, for people: of each filter how far a level can take it, and the sentences."""
        metric = self.ranking.metric
        said = []
        for each in self.judged:
            if each.ceiling is not None:
                best = f"{metric.upper()} {getattr(each.ceiling, metric):.6f}"
                said.append(f"{each.name}: the best level for all, {each.ceiling.level:g}, has {best}")
            if each.roc_auc is not None and each.average_precision is not None:
                said[-1] += f"; area under ROC {each.roc_auc:.4f}, under precision-recall {each.average_precision:.4f}"
        return said + self.sentences()

    def sentences(self) -> list[str]:
        """What a person should take from it, in words."""
        places, metric = self.ranking.places, self.ranking.metric
        said = [describe(self.ranking, places[0]), *self._rerun_sentences(), *self._doubts()]
        behind = (place for place in places if place.behind > 0 and place.told_apart is False)
        said += [describe(self.ranking, place) for place, _ in zip(behind, range(SENTENCES), strict=False)]
        if self.held_out is not None:
            score = getattr(self.held_out.scores, metric)
            said.append(
                f"Chosen on some slices and scored on the others ({len(self.held_out.chosen)} folds): "
                f"{metric.upper()} {score:.6f}"
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

    def _rerun_sentences(self) -> list[str]:
        metric, rerun = self.ranking.metric, self.rerun
        if rerun.problem is not None:
            return [f"It could not be run: {rerun.problem}"]
        if not rerun.ran:
            return []
        if rerun.counts == self.ranking.places[0].counts:
            return ["It was run, and scores the same."]
        first, again = (getattr(each, metric) for each in (self.ranking.places[0].scores, rerun.scores))
        if again is None:
            return ["It was run, and has done no annotated tile: see `kesm status`."]
        return [f"As it runs, it has {metric.upper()} {again:.6f}; by the tables {first:.6f}."]

    def _doubts(self) -> list[str]:
        """What the truth is too little for, and what is missing."""
        counts, slices, said = self.ranking.places[0].counts, self.ranking.slices, []
        for missing, here in (("vessel", counts.tp + counts.fn), ("background", counts.fp + counts.tn)):
            if not here:
                said.append(f"The truth has no {missing} here: scores only say how much is marked; annotate more.")
        if slices < LEAST_SLICES:
            few = "1 annotated slice is" if slices == 1 else f"{slices} annotated slices are"
            said.append(
                f"{few} too few to tell methods apart: from {LEAST_SLICES} on there are intervals, which say how sure "
                "the order is."
            )
        if self.hearing.failed:
            failed = f"Tiles that have failed: {self.hearing.failed} (see `kesm status`)."
            said.append(f"{failed} What is not done by all counts for none.")
        if any(self.hearing.excluded.values()):
            flagged = ", ".join(f"{count} of {name}" for name, count in self.hearing.excluded.items())
            said.append(f"Annotated tiles that are flagged, and count for none: {flagged}.")
        for name, reason in self.hearing.left_out.items():
            said.append(f"Run {name} is left out, none of whose annotated tiles is done: {reason}")
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
    """Run each recipe and each filter that has not run, and judge all candidates on the annotated tiles.

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
    slices = len(annotated_slices(config))
    if contest.folds is not None and not 2 <= contest.folds <= slices:  # said before anything has cost time
        raise ConfigError(
            f"--folds: got {contest.folds} for {slices} annotated slices, expected 2 or more, and a slice for each"
        )
    hearing = hear(config, contest, watch)
    ranking = rank(hearing.counts, contest.by)
    folds = min(contest.folds or 5, ranking.slices)  # a slice may have failed since they were asked for
    held = held_out(hearing.counts, folds, contest.by) if folds > 1 else None
    best, binned = _best(config, ranking, hearing), Volume(config.volume).dtype.itemsize > 1
    rerun = _rerun(best, ranking.places[0], hearing, binned, watch)
    return Choice(config, ranking, held, hearing, best, rerun, binned)


def _best(config: RunConfig, ranking: Ranking, hearing: Hearing) -> RunConfig:
    """What runs the first of a ranking, under the name of the run that has done so, if there is one."""
    winner = ranking.places[0].candidate
    if winner in hearing.recipes:
        return hearing.recipes[winner]
    (denoise,) = (each.denoise for each in hearing.judged if each.name == winner.denoise)
    return named(configured(config, winner, denoise))


def _rerun(best: RunConfig, first: Place, hearing: Hearing, binned: bool, watch: Watch) -> Rerun:
    """Score the first of a ranking as it runs."""
    candidate = first.candidate
    if candidate in hearing.recipes:
        same = best.run_name not in hearing.cut
    else:
        (judged,) = (each for each in hearing.judged if each.name == candidate.denoise)
        part = candidate.scope == "volume" and judged.pooled < judged.slices
        same = not (binned or part or hearing.failed or judged.run in hearing.cut)
    if same:
        return Rerun(first.counts, first.scores, ran=False)
    try:
        with watch(best.run_name) as observer:
            counts = run(best, observer).counts or Counts()
    except PipelineError as error:  # damage elsewhere in the volume, say: what is known is not lost for it
        return Rerun(None, None, ran=False, problem=str(error))
    return Rerun(counts, scores(counts), ran=True)


def check_write(path: Path, inputs: Sequence[Path]) -> None:
    """Refuse a file that cannot be written, or is one of those that are read, before anything has cost time."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--write: got {path}, expected a file that ends in {' or '.join(SUFFIXES)}")
    check_place(path, replace=True, option="--write")
    if path.resolve() in {source.resolve() for source in inputs}:
        raise ConfigError(f"--write: got {path}, which is compared; write the best to another file")
    with disk_errors(path):
        if path.exists() and not path.read_bytes().startswith(HEADING.encode()):
            raise ExistsError(
                f"--write: {path} is there, and not from `kesm compare`; choose another name, or remove it"
            )


def write_recipe(choice: Choice, path: Path) -> None:
    """Write the winner as a configuration that `kesm run` takes, whatever folder that is called in."""
    best, metric = choice.best, choice.ranking.metric
    folder, recipe = path.resolve().parent, best.recipe.document()
    segmenter = recipe.get("segmenter", {})
    if "model" in segmenter:
        recipe |= {"segmenter": segmenter | {"model": _from(folder, Path(segmenter["model"]))}}
    values = {"volume": _from(folder, best.volume), "name": best.run_name, "truth": best.truth, **recipe}
    if best.exclude_flagged:
        values["exclude_flagged"] = list(best.exclude_flagged)
    found = choice.rerun.scores or choice.ranking.places[0].scores
    where = "" if best.region is None else f" of {best.region.box(Volume(best.volume).shape)}"
    text = (
        f"{HEADING} on {choice.ranking.slices} annotated slices{where}: "
        f"{metric.upper()} {getattr(found, metric):.6f}\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    )
    with draft_file(path, replace=True) as draft:  # half of it may be another recipe
        draft.write_text(text, encoding="utf-8")


def _from(folder: Path, path: Path) -> str:
    """A path as a file in the folder names it: relative where it lies inside, so that both can be moved together."""
    resolved = path.resolve()
    return str(resolved.relative_to(folder) if resolved.is_relative_to(folder) else resolved)


def _row(ranking: Ranking, place: Place) -> dict[str, Any]:
    """One candidate as plain values."""
    candidate = place.candidate
    limits: dict[str, float | None] = {}
    for metric in METRICS:
        limits[f"{metric}_low"], limits[f"{metric}_high"] = place.intervals.get(metric, (None, None))
    behind_low, behind_high = place.behind_interval or (None, None)
    return {
        "rank": ranking.number(place),
        "method": candidate.method, "scope": candidate.scope, "denoise": candidate.denoise,
        **asdict(place.scores), **limits,
        "behind": place.behind, "behind_low": behind_low, "behind_high": behind_high, "told_apart": place.told_apart,
    }  # fmt: skip
