"""What a report says of one run: everything gathered, nothing yet drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.census import NOT_COUNTED, Census, census, failed_tiles
from pipeline.confusion import SCORES, tile_scores
from pipeline.errors import PipelineError
from pipeline.flags import Flag, flag_tiles, flags_of, names_of, slice_distances, slice_medians
from pipeline.histogram import bin_top
from pipeline.report import Summary, summarise
from pipeline.tables import RunTables
from pipeline.volume import Volume
from pipeline.webpage.evidence import Evidence, find_evidence
from pipeline.webpage.gallery import Room, make_gallery
from pipeline.webpage.tilemap import TileMap, make_map

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Profile:
    """Numbers of each slice, float64 (z,), NaN where there is none.

    Attributes
    ----------
    mcc, f1 : ndarray
        Of the summed counts.
    low, middle, high : ndarray
        Lowest, median and highest level of the tiles.
    vessel : ndarray
        Part of the voxels that is vessel.
    """

    mcc: Values
    f1: Values
    low: Values
    middle: Values
    high: Values
    vessel: Values


@dataclass(frozen=True, eq=False)
class Flagged:
    """Tiles and slices unlike the others.

    Attributes
    ----------
    tiles : dict
        Number of tiles by flag.
    slices : list of (int, str)
        Slice and what is unusual of it.
    """

    tiles: dict[str, int]
    slices: list[tuple[int, str]]


@dataclass(frozen=True, eq=False)
class Page:
    """One run against one truth, or none.

    Attributes
    ----------
    volume : dict
        Path, shape (z, y, x), dtype, voxel size in micrometres or None, slices that are there and are not.
    summary : Summary
        As `pipeline.report.summarise` gives it.
    recipe : dict
        As it is stored.
    flagged : Flagged or None
        None if the run has not measured quality.
    top_levels : ndarray
        Highest grey level of each bin of the histograms, (256,).
    attempts : list of dict
        Oldest first; of one that cannot be read there are only ``number`` and ``problem``.
    truth_digest : str or None
        Of the whole truth: copies of a volume have the same.
    problems : tuple of str
        What could not be read, and so is missing from the page.
    """

    volume: dict[str, Any]
    summary: Summary
    recipe: dict[str, Any]
    profile: Profile
    tile_map: TileMap
    gallery: tuple[Room, ...]
    evidence: Evidence
    flagged: Flagged | None
    top_levels: Values
    attempts: list[dict[str, Any]]
    truth_digest: str | None
    problems: tuple[str, ...]

    @cached_property
    def title(self) -> str:
        """Run and volume."""
        return f"{self.summary.name} on {self.volume['name']}"


def gather(volume: Volume, name: str, truth: str | None) -> Page:
    """Gather all that is known of a run, from its tables, and the voxels of a few tiles.

    Raises
    ------
    MissingInputError
        If there is no such run, it was not compared with this truth, or none of it is done.
    """
    tiles = census(volume, name, truth)
    tiles.require_done()
    tables, present = RunTables(volume, name), volume.slices.present()
    summary = summarise(volume, name, tiles.truth)
    failures = list(tables.failures(tiles.truth))
    failed = failed_tiles(tables, tiles.tiles, tiles.status, failures)
    attempts, gallery, evidence = _attempts(tables), make_gallery(volume, tiles), find_evidence(volume, tiles)
    damage = [f"{box}: {reason}" for box, reason in (*summary.failures, *tiles.damage) if (box, reason) not in failures]
    unseen = [picture.problem for room in gallery for picture in room.pictures if picture.problem]
    unread = [attempt["problem"] for attempt in attempts if "problem" in attempt]
    return Page(
        volume=_describe(volume, present),
        summary=summary,
        recipe=tables.recipe,
        profile=_profile(tiles),
        tile_map=make_map(tiles, present, failed),
        gallery=gallery,
        evidence=evidence,
        flagged=_flagged(tiles),
        top_levels=_top_levels(volume, tables.recipe["foreground"] == "dark"),
        attempts=attempts,
        truth_digest=None if tiles.truth is None else volume.truth(tiles.truth)[1].fingerprint(),
        problems=tuple(dict.fromkeys([*damage, *evidence.problems, *unseen, *unread])),
    )


def _attempts(tables: RunTables) -> list[dict[str, Any]]:
    """Every attempt that can be read, and of the others why not: what made a mask is not worth all the rest."""
    found: list[dict[str, Any]] = []
    for name in tables.attempt_names():
        try:
            found.append(tables.attempt(name))
        except PipelineError as error:
            found.append({"number": int(name), "problem": str(error)})
    return found


def _describe(volume: Volume, present: NDArray[np.bool_]) -> dict[str, Any]:
    size = volume.voxel_size_um
    return {
        "path": str(volume.path), "name": volume.path.name, "shape": list(volume.shape), "dtype": str(volume.dtype),
        "voxel_size_um": None if size is None else list(size),
        "slices": {"present": int(present.sum()), "absent": int((~present).sum())},
    }  # fmt: skip


def _profile(tiles: Census) -> Profile:
    depth = len(tiles.done)
    found = np.full((depth, len(SCORES)), np.nan)
    if tiles.counts is not None:
        found = tile_scores(tiles.counts.sum(axis=(1, 2)))  # a slice has less than 2**31 voxels
    levels = np.full((3, depth), np.nan)
    for z, row in enumerate(tiles.level):
        known = row[np.isfinite(row)]
        if known.size:
            levels[:, z] = known.min(), np.median(known), known.max()
    counted = tiles.vessel != NOT_COUNTED
    voxels = np.where(counted, tiles.voxels, 0).sum(axis=(1, 2))
    marked = np.where(counted, tiles.vessel, 0).sum(axis=(1, 2))
    vessel = np.divide(marked, voxels, out=np.full(depth, np.nan), where=voxels > 0)
    low, middle, high = levels
    return Profile(found[:, SCORES.index("mcc")], found[:, SCORES.index("f1")], low, middle, high, vessel)


def _flagged(tiles: Census) -> Flagged | None:
    if tiles.quality is None or not np.isfinite(tiles.quality).any():
        return None
    flags, slices = flag_tiles(tiles.quality, tiles.done), _slice_flags(tiles.quality, tiles.done)
    return Flagged(
        {flag_words(flag): int((flags & flag != 0).sum()) for flag in Flag},
        [(z, flag_words(Flag(int(slices[z])))) for z in np.flatnonzero(slices).tolist()],
    )


def _slice_flags(quality: NDArray[np.float32], done: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return flags_of(slice_distances(slice_medians(quality, done)))


def flag_words(flags: Flag) -> str:
    """Names of flags, ``low contrast, dark``."""
    return ", ".join(name.replace("_", " ") for name in names_of(flags))


def _top_levels(volume: Volume, dark: bool) -> Values:
    if volume.dtype.itemsize == 1:
        return np.arange(256.0)
    window = volume.filtered_window(dark)
    return np.array([bin_top(index, window) for index in range(256)], np.float64)
