"""What figures of voxels and tiles show, read from a volume; `pipeline.figures` draws it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, MissingInputError
from pipeline.figures.subject import Request, Subject, done_slices, find_subject, one_slice, truth_slices
from pipeline.findings.census import MEASURES, Census, choose_truth
from pipeline.geometry import Box, Grid, Triple
from pipeline.kernels.confusion import SCORES, Counts
from pipeline.storage.keys import valid_tiles
from pipeline.storage.tables import RunTables, run_names
from pipeline.storage.volume import Volume
from pipeline.views.excerpt import Excerpt, read_excerpt, require_slice, spans

WORST, BEST = 8, 4
"""Tiles of a gallery."""

MAP_SCORES = (*SCORES, "level", "vessel", *MEASURES)
"""What a map can show of each tile: a score, its level, the part of it that is vessel, or a measure of quality."""


@dataclass(frozen=True, eq=False)
class View:
    """An excerpt, and what is known of it."""

    subject: Subject
    excerpt: Excerpt
    counts: Counts | None = None


@dataclass(frozen=True, eq=False)
class TileMap:
    """A number of every tile of a slice, over the slice itself.

    Attributes
    ----------
    values : ndarray
        float64 (rows, columns), NaN where there is none.
    """

    subject: Subject
    excerpt: Excerpt
    metric: str
    values: NDArray[np.float64]
    tiles: Box
    grid: Grid


@dataclass(frozen=True, eq=False)
class Sample:
    """A tile of a gallery."""

    excerpt: Excerpt
    counts: Counts
    score: float


@dataclass(frozen=True, eq=False)
class Gallery:
    """The worst and the best tiles; and how many are done, of all."""

    subject: Subject
    metric: str
    worst: list[Sample]
    best: list[Sample]
    share: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Profile:
    """Tiles of a region, slice by slice."""

    subject: Subject
    census: Census


def read_overview(volume: Volume, request: Request, pixels: int) -> View:
    """Image and truth of a slice, or a part of one."""
    subject = find_subject(volume, request, needs_run=False)
    subject = one_slice(subject, request, truth_slices(subject))
    truth = subject.require_truth() if volume.truths() else None
    if request.truth is None and truth is not None and not volume.truth(truth)[1].present()[subject.box.start[0]]:
        truth = None
    return View(subject, read_excerpt(volume, subject.box, pixels, request.level, truth))


def read_overlay(volume: Volume, request: Request, pixels: int) -> View:
    """Image, truth and mask of a slice, or a part of one."""
    subject = find_subject(volume, request, needs_run=True)
    truth = subject.require_truth()
    try:
        subject = one_slice(subject, request, [*truth_slices(subject), *done_slices(subject)])
        excerpt = read_excerpt(volume, subject.box, pixels, request.level, truth, subject.run)
    except MissingInputError:
        if (found := _look(subject)) is not None and not found.done.any():
            found.require_readable(f"run {subject.run!r} has no mask that is known to be right in {subject.where}")
        raise
    counts, known = _tile_counts(subject, _look(subject)), excerpt.known_truth()
    if counts is None and excerpt.level == 0 and excerpt.mask is not None:
        counts = Counts.from_images(known, excerpt.mask)
    return View(subject, excerpt, counts)


def _look(subject: Subject) -> Census | None:
    """What the run knows of the tiles; None of a label that was derived from a mask."""
    if subject.run not in run_names(subject.volume):
        return None
    compared = subject.truth in RunTables(subject.volume, subject.run).truths()
    return subject.look(subject.truth if compared else None)


def _tile_counts(subject: Subject, found: Census | None) -> Counts | None:
    """Counts of a box of whole tiles, from the tables of the run, where all that have a mask have counts."""
    if found is None or found.truth is None or found.truth != subject.truth:
        return None
    if found.grid.round_out(subject.box) != subject.box or not found.done.any():
        return None
    volume = subject.volume
    if (valid_tiles(volume, RunTables(volume, found.name), None, found.tiles) != found.done).any():
        return None
    return Counts(*found.require_truth().sum(axis=(0, 1, 2)).tolist())


def read_profile(volume: Volume, request: Request, pixels: int) -> Profile:  # noqa: ARG001  (as all kinds)
    """Tiles of a run, for its profile over the slices."""
    subject = find_subject(volume, request, needs_run=True)
    truth = choose_truth(volume, subject.run, request.truth)
    return Profile(replace(subject, truth=truth), subject.census(truth))


def read_map(volume: Volume, request: Request, pixels: int) -> TileMap:
    """A number of every tile of a slice."""
    if request.metric not in MAP_SCORES:
        raise ConfigError(f"--metric: got {request.metric!r}, expected one of: {', '.join(MAP_SCORES)}")
    subject = find_subject(volume, request, needs_run=True)
    truth = request.truth
    if request.metric in SCORES:
        subject.require_truth(", or show what needs none: `--metric level`")
        truth = choose_truth(volume, subject.run, truth)
    found = subject.census(truth)
    values = _numbers(found, request.metric)
    known = np.zeros(volume.shape[0], np.bool_)
    known[found.tiles.start[0] : found.tiles.stop[0]] = ~np.isnan(values).all(axis=(1, 2))
    asked = subject.box.start[0] if subject.box.shape[0] == 1 else None
    if not known.any() or (asked is not None and not known[asked]):
        there = "" if asked is None else f" of slice {asked}"
        found.require_readable(f"no tile{there} has a {request.metric} in run {subject.run!r}")
        whole = replace(subject, box=Box.whole(volume.shape))
        others = "" if asked is None else _other_slices(whole, truth, request.metric)
        raise MissingInputError(f"{volume.path}: no tile{there} has a {request.metric} in run {subject.run!r}{others}")
    subject = one_slice(subject, request, [known])
    z = subject.box.start[0]
    require_slice(volume, z)
    excerpt = read_excerpt(volume, found.grid.round_out(subject.box), pixels, request.level)
    return TileMap(
        replace(subject, truth=truth), excerpt, request.metric, values[z - found.tiles.start[0]],
        replace(found.tiles, start=(z, *found.tiles.start[1:]), stop=(z + 1, *found.tiles.stop[1:])), found.grid,
    )  # fmt: skip


def _other_slices(subject: Subject, truth: str | None, metric: str) -> str:
    values = _numbers(subject.look(truth), metric)
    there = np.flatnonzero(~np.isnan(values).all(axis=(1, 2))).tolist()
    return f"; slices that have one: {spans(there)}"


def _numbers(found: Census, metric: str) -> NDArray[np.float64]:
    """A number of each tile, NaN where there is none."""
    if metric in SCORES:
        return found.score(metric)
    if metric == "level":
        return found.level
    if metric == "vessel":
        return found.fraction()
    if found.quality is None:
        raise MissingInputError(
            f"{found.volume}: run {found.name!r} has measured no quality, and so no {metric}; run it again under "
            f"another name with this version: `kesm run {found.volume} --name NAME`"
        )
    return found.quality[..., MEASURES.index(metric)].astype(np.float64)


def read_gallery(volume: Volume, request: Request, pixels: int) -> Gallery:  # noqa: ARG001  (tiles are shown whole)
    """The tiles with the lowest and the highest score, voxel by voxel."""
    if request.metric not in SCORES:
        raise ConfigError(f"--metric: got {request.metric!r}, expected one of: {', '.join(SCORES)}")
    subject = find_subject(volume, request, needs_run=True)
    found = subject.census(subject.require_truth())
    values, counts = found.score(request.metric), found.require_truth()

    def sample(cell: Triple) -> Sample:
        inside: Any = tuple(place - first for place, first in zip(cell, found.tiles.start, strict=True))
        excerpt = read_excerpt(volume, found.box(cell), 1, 0, subject.truth, subject.run)
        return Sample(excerpt, Counts(*counts[inside].tolist()), float(values[inside]))

    worst = found.ranked(request.metric, WORST)
    best = [cell for cell in found.ranked(request.metric, BEST, worst=False) if cell not in worst]
    if not worst and not best:
        raise MissingInputError(
            f"{volume.path}: no annotated tile of {subject.where} has any vessel in its truth or its mask"
            f"{subject.elsewhere}"
        )
    return Gallery(
        subject, request.metric, [sample(cell) for cell in worst], [sample(cell) for cell in best], found.share
    )
