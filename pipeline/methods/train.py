"""Training: a classifier learns from some annotated tiles of a volume, and is judged on others beside Otsu's method."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DamageError
from pipeline.geometry import Box, Grid, Triple
from pipeline.kernels.confusion import Counts, scores
from pipeline.kernels.features import features_halo
from pipeline.kernels.histogram import (
    TRUTH_BACKGROUND,
    TRUTH_UNLABELLED,
    TRUTH_VESSEL,
    counts_above_levels,
    joint_histograms,
)
from pipeline.kernels.threshold import levels_of
from pipeline.runner import Runner
from pipeline.segmentation.classifier import (
    Classifier,
    Kind,
    Samples,
    check_libraries,
    draw_samples,
    fit_samples,
    image_of,
)
from pipeline.segmentation.denoise import padded
from pipeline.segmentation.scene import Scene
from pipeline.segmentation.window import covered_planes
from pipeline.settings.config import RunConfig
from pipeline.settings.configfile import suggest
from pipeline.settings.recipe import ClassifierSegmenter, HistogramThreshold, Recipe
from pipeline.storage.draft import check_place
from pipeline.storage.store import ABSENT, ALL_FILL
from pipeline.storage.volume import Volume

KINDS: tuple[str, ...] = get_args(Kind)
SUFFIX = ".skops"  # what a model is, for people and for other programs
HELD_OUT = 4  # one annotated slice in so many is kept for the score
TILES = 256  # to learn from, and to score: more gain nothing, and the features of each take 15 ms
SAMPLES = 60_000  # voxels to learn from: 15 s of one core
SAMPLES_OF_TILE = 20_000
SHARDS = 1024  # of the truth, in which annotated tiles are looked for: 5 s of one core
LEAST = 20  # voxels of each class


@dataclass(frozen=True, slots=True)
class Lesson:
    """How a classifier is trained, and where it goes."""

    out: Path
    kind: Kind = "forest"
    seed: int = 0
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """An annotated tile, or part of one; and how many such places it stands for."""

    box: Box
    background: int
    vessel: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Trained:
    """A classifier that is written; what it learned from and how good it is are in its own `training`."""

    config: RunConfig
    lesson: Lesson
    classifier: Classifier
    digest: str
    elapsed_s: float

    def document(self) -> dict[str, Any]:
        """The training as the JSON object of the command line."""
        return {
            "schema": 1,
            "volume": str(self.config.volume),
            "model": str(self.lesson.out),
            "digest": self.digest,
            "halo": self.classifier.halo,
            **self.classifier.training,
            "config": self.settings(),
            "elapsed_s": self.elapsed_s,
        }

    def settings(self) -> dict[str, Any]:
        """Keys of a configuration that applies it."""
        now, usual = self.config.recipe.document(), Recipe().document()
        stages = {key: now[key] for key in image_of(now, "") if key in now and now[key] != usual.get(key)}
        return stages | {"segmenter": {"kind": "classifier", "model": str(self.lesson.out)}}

    def lines(self) -> list[str]:
        """The training for a person."""
        training = self.classifier.training
        held = training["held_out"]
        rows: list[tuple[str, ...]] = [("", "F1", "MCC", "precision", "recall")]
        for name, judged in ((self.lesson.kind, held), ("otsu", training["otsu"])):
            values = (judged["scores"][score] for score in ("f1", "mcc", "precision", "recall"))
            rows.append((name, *("-" if value is None else f"{value:.4f}" for value in values)))
        return [
            f"learned from {training['samples']:,} voxels of {training['tiles']} tiles",
            f"held out {held['what']}: {sum(held['counts'].values()):,} annotated voxels of {held['tiles']} tiles",
            *(f"{name:<10}" + "".join(f"{value:>11}" for value in values) for name, *values in rows),
            f"wrote {self.lesson.out}; to apply it, put into a configuration:",
            *(f"  {line}" for line in yaml.safe_dump(self.settings(), sort_keys=False).splitlines()),
        ]


def make_lesson(config: RunConfig, out: Path | None, kind: str, seed: int, replace: bool = False) -> Lesson:
    """Understand the words of a command line; without a file, the configuration's own model is made.

    Raises
    ------
    ConfigError, ExistsError, MissingInputError
        If they cannot be understood, the file cannot be written, or scikit-learn is not installed: before anything has
        cost time.
    """
    if kind not in KINDS:
        raise ConfigError(f"--kind: got {kind!r}, {suggest(kind, KINDS)}")
    if out is None:
        if not isinstance(config.segmenter, ClassifierSegmenter):
            raise ConfigError("--out: got none, expected a file for the model, such as vessels.skops")
        out = Path(config.segmenter.model)
    elif out.suffix.lower() != SUFFIX:
        raise ConfigError(f"--out: got {out}, expected a file that ends in {SUFFIX}")
    check_place(out, replace)
    check_libraries()
    return Lesson(out, kind, seed, replace)  # type: ignore[arg-type]


def train(config: RunConfig, lesson: Lesson, runner: Runner, threads: int = 1) -> Trained:
    """Train a classifier on the annotated tiles of a region, score it on those that are held out, and write it.

    The last quarter of the annotated slices is held out: neighbours show the same vessels, so that a slice between two
    that were learned from proves little. Of one slice, the last quarter of the tiles is; of one tile, of the rows.

    Raises
    ------
    ConfigError
        If there is no truth, or too little of it.
    ExistsError, StorageError
        If the file cannot be written.
    DamageError, UnavailableError
        If the image or the truth cannot be read.
    """
    begin = time.monotonic()
    if config.truth is None:
        raise ConfigError("truth: got none, which a classifier learns from; add --truth NAME")
    lessons = _Lessons.of(config, config.truth)
    held_out, learned, held = _split(lessons, runner, np.random.default_rng(lesson.seed))
    _check_classes(learned, config.truth, held_out)

    def draw(group: Sequence[Place]) -> list[Samples]:
        count = min(SAMPLES_OF_TILE, SAMPLES // len(learned))
        return [
            draw_samples(plane, truth, count, np.random.default_rng((lesson.seed, *place.box.start))).weighted(
                place.weight
            )
            for place, plane, truth in lessons.read(group)
        ]

    drawn = runner(draw, lessons.groups(learned), "sampling")
    samples = Samples.joined([one for some in drawn for one in some])
    (fitted,) = runner(lambda _: fit_samples(samples, lesson.kind, lesson.seed, threads=threads), [None], "fitting")

    def judge(group: Sequence[Place]) -> tuple[Counts, Counts]:
        compared = [_compare(fitted, plane, truth) for _, plane, truth in lessons.read(group)]
        return sum((mine for mine, _ in compared), Counts()), sum((other for _, other in compared), Counts())

    judged = runner(judge, lessons.groups(held), "scoring")
    counts, otsu = sum((mine for mine, _ in judged), Counts()), sum((other for _, other in judged), Counts())
    classifier = replace(
        fitted,
        image=image_of(lessons.recipe.document(), lessons.volume.dtype.name),
        training={
            "truth": config.truth,
            "tile": config.recipe.tile,
            "kind": lesson.kind,
            "seed": lesson.seed,
            "samples": len(samples.vessel),
            "tiles": len(learned),
            "held_out": {"what": held_out, "tiles": len(held)} | _judgement(counts),
            "otsu": _judgement(otsu),
        },
    )
    digest = classifier.save(lesson.out, lesson.replace)
    return Trained(config, lesson, classifier, digest, round(time.monotonic() - begin, 3))


@dataclass(frozen=True, slots=True)
class _Lessons:
    """What a volume has to learn from: its image as a recipe filters it, and a truth."""

    volume: Volume
    recipe: Recipe
    tiles: Grid
    region: Box
    truth: Any
    digests: NDArray[np.uint64]
    name: str

    @classmethod
    def of(cls, config: RunConfig, name: str) -> _Lessons:
        volume = Volume(config.volume)
        label, ledger = volume.truth(name)
        usual = {"threshold": HistogramThreshold(), "segmenter": None, "clean": None}  # which come after
        recipe = config.recipe.model_copy(update=usual)
        tiles = Grid(volume.shape, (1, recipe.tile, recipe.tile))
        box = config.region.box(volume.shape) if config.region else Box.whole(volume.shape)
        digests = ledger.shard_digests()
        digests[~volume.slices.present()] = ABSENT
        return cls(volume, recipe, tiles, tiles.round_out(box), label.full, digests, name)

    def annotated(self, runner: Runner, rng: np.random.Generator) -> list[Place]:
        """Find annotated tiles of the region, in C order: all of them, or those of enough shards."""
        shards = [
            shard for shard in self.truth.shards.cover(self.region) if self.digests[shard] not in {ABSENT, ALL_FILL}
        ]
        some = _pick(len(shards), SHARDS, rng)
        parts = [self.truth.shards.box(shards[number]) & self.region for number in some]
        found = runner(lambda part: self.look(part, self.tiles.parts(part)), parts, "looking for annotations")
        return sorted((place for places in found for place in places), key=lambda place: place.box.start)

    def look(self, around: Box, boxes: Iterable[Box]) -> list[Place]:
        """Count the annotated voxels of some boxes in one of one shard; those without any are left out."""
        truth, places = self.read_truth(around), []
        for box in boxes:
            _, rows, columns = box.relative_to(around.start).slices
            values = truth[rows, columns]
            background, vessel = (int(np.count_nonzero(values == one)) for one in (TRUTH_BACKGROUND, TRUTH_VESSEL))
            if background or vessel:
                places.append(Place(box, background, vessel))
        return places

    def groups(self, places: Sequence[Place]) -> list[list[Place]]:
        """Places that are read together: those of a slice, where the recipe needs all of it, else each by itself."""
        if not self.recipe.slicewise:
            return [[place] for place in places]
        slices: dict[int, list[Place]] = {}
        for place in places:
            slices.setdefault(place.box.start[0], []).append(place)
        return list(slices.values())

    def read(self, group: Sequence[Place]) -> Iterator[tuple[Place, NDArray[Any], NDArray[np.uint8]]]:
        """Read filtered places with the halo of their features, and their truth, where that is valid."""
        reach, whole, scene = features_halo(), Box.whole(self.volume.shape), None
        for place in group:
            area = place.box.grow((0, reach, reach)) & whole
            if scene is None or not self.recipe.slicewise:
                scene = self._scene(place.box.start[0], area)
            start: Triple = place.box.relative_to(area.start).start
            plane = padded(scene.filtered(area), start[1:], place.box.shape[1:], (0, reach, reach))[0]
            truth, valid = self.read_truth(place.box), scene.valid_in(place.box)
            if valid is not None:
                truth[valid == 0] = TRUTH_UNLABELLED
            yield place, plane, truth

    def _scene(self, z: int, area: Box) -> Scene:
        digests, planes = covered_planes(self.volume, z, self.recipe.halo[0])
        box = Box.of_slice(z, self.volume.shape) if self.recipe.slicewise else area
        scene = Scene.of(self.volume, self.recipe, box, planes, digests)
        scene.load(area)
        if scene.window.lost.parts:
            raise DamageError(f"slice {z} cannot be read, which is to be learned from: {scene.window.lost.reasons}")
        return scene

    def read_truth(self, box: Box) -> NDArray[np.uint8]:
        """Read a box of one shard, (y, x)."""
        shard = self.truth.shards.box(self.truth.shards.cover(box).start)
        values = self.truth.read_checked(shard, self.digests[box.start[0]])
        part: NDArray[np.uint8] = values[box.relative_to(shard.start).slices][0].copy()
        return part


def _split(lessons: _Lessons, runner: Runner, rng: np.random.Generator) -> tuple[str, list[Place], list[Place]]:
    """What is held out, in a word; some of the places to learn from, and some of those that are held out."""
    places, what = lessons.annotated(runner, rng), "tiles"
    if not places:
        raise ConfigError(f"truth: {lessons.name!r} annotates nothing in {lessons.region}; choose another --region")
    slices = sorted({place.box.start[0] for place in places})
    if len(places) == 1:
        places, what = lessons.look(places[0].box, _quarters(places[0].box)), "rows"
    if len(places) == 1:
        raise ConfigError(
            f"truth: {lessons.name!r} annotates only {places[0].box}, of which nothing can be held out; annotate more"
        )
    first = len(places) - max(1, len(places) // HELD_OUT)
    if len(slices) > 1:
        what, z = "slices", slices[-max(1, len(slices) // HELD_OUT)]
        first = next(number for number, place in enumerate(places) if place.box.start[0] >= z)
    return what, _choose(places[:first], rng), _some(places[first:], TILES, rng)


def _quarters(tile: Box) -> list[Box]:
    (z, top, left), (stop, bottom, right) = tile.start, tile.stop
    rows = np.linspace(top, bottom, HELD_OUT + 1).astype(int).tolist()
    return [Box((z, row, left), (stop, end, right)) for row, end in pairwise(rows)]


def _choose(places: list[Place], rng: np.random.Generator) -> list[Place]:
    """Choose places to learn from: above all such with vessels, which may be few."""
    vessels, others = [one for one in places if one.vessel], [one for one in places if not one.vessel]
    without = _some(others, TILES // 4, rng)
    return sorted(_some(vessels, TILES - len(without), rng) + without, key=lambda place: place.box.start)


def _some(places: list[Place], most: int, rng: np.random.Generator) -> list[Place]:
    """Some places, each of which stands for as many."""
    chosen = _pick(len(places), most, rng)
    return [replace(places[number], weight=len(places) / len(chosen)) for number in chosen]


def _pick(count: int, most: int, rng: np.random.Generator) -> list[int]:
    """Numbers of some of so many things, in order."""
    if count <= most:
        return list(range(count))
    picked: list[int] = np.sort(rng.choice(count, most, replace=False)).tolist()
    return picked


def _check_classes(learned: Sequence[Place], name: str, held_out: str) -> None:
    vessel, background = sum(one.vessel for one in learned), sum(one.background for one in learned)
    if min(vessel, background) < LEAST:
        raise ConfigError(
            f"truth: {name!r} has {vessel:,} voxels of vessels and {background:,} of background to learn from, where "
            f"the last {held_out} are held out; annotate at least {LEAST} of each, or choose another --region"
        )


def _compare(classifier: Classifier, plane: NDArray[Any], truth: NDArray[np.uint8]) -> tuple[Counts, Counts]:
    """Counts of a place, by the classifier and by Otsu's method."""
    halo = classifier.halo
    mask = classifier.predict(plane, (halo, halo))
    inside = np.ascontiguousarray(plane[halo:-halo, halo:-halo])
    table = np.empty((1, 3, 1 << 8 * plane.dtype.itemsize), np.uint32)
    joint_histograms(inside, truth, max(truth.shape), 0, table)
    return Counts.from_images(truth, mask), Counts(*counts_above_levels(table, levels_of("otsu", table))[0].tolist())


def _judgement(counts: Counts) -> dict[str, Any]:
    return {"counts": asdict(counts), "scores": asdict(scores(counts))}
