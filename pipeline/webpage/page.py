"""What a report says of one run: everything gathered, nothing yet drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.findings.census import Census, census, lost_truths
from pipeline.findings.profile import Profile, profile_of
from pipeline.findings.summary import Summary, summarise_census
from pipeline.kernels.bins import bin_tops
from pipeline.kernels.confusion import SCORES, tile_scores
from pipeline.kernels.flags import Flag, flag_tiles, flags_of, names_of, slice_distances, slice_medians
from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume
from pipeline.webpage.evidence import Evidence, find_evidence
from pipeline.webpage.gallery import Room, make_gallery
from pipeline.webpage.tilemap import TileMap, make_map


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
        As `findings.summary.summarise_census` gives it.
    recipe : dict
        As it is stored.
    without_mcc : ndarray
        Slices that have annotated voxels, but whose MCC is 0 / 0; the profile has a number by a rule there.
    flagged : Flagged or None
        None if the run has not measured quality.
    top_levels : ndarray
        Highest grey level of each bin of the histograms, int64 (256,).
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
    without_mcc: NDArray[np.int64]
    tile_map: TileMap
    gallery: tuple[Room, ...]
    evidence: Evidence
    flagged: Flagged | None
    top_levels: NDArray[np.int64]
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
    attempts, gallery, evidence = _attempts(tables), make_gallery(volume, tiles), find_evidence(volume, tiles)
    damage = [f"{box}: {reason}" for box, reason in tiles.damage]
    unseen = [picture.problem for room in gallery for picture in room.pictures if picture.problem]
    unread = [attempt["problem"] for attempt in attempts if "problem" in attempt]
    return Page(
        volume=_describe(volume, present),
        summary=summarise_census(volume, tables, tiles),
        recipe=tables.recipe,
        profile=profile_of(tiles),
        without_mcc=_without_mcc(tiles),
        tile_map=make_map(tiles),
        gallery=gallery,
        evidence=evidence,
        flagged=_flagged(tiles),
        top_levels=bin_tops(volume.filtered_window(tables.recipe["foreground"] == "dark")),
        attempts=attempts,
        truth_digest=None if tiles.truth is None else volume.truth(tiles.truth)[1].fingerprint(),
        problems=tuple(dict.fromkeys([*lost_truths(volume, tables), *damage, *evidence.problems, *unseen, *unread])),
    )


def _attempts(tables: RunTables) -> list[dict[str, Any]]:
    """Every attempt that can be read, and of the others why not: what made a mask is not worth all the rest."""
    found: list[dict[str, Any]] = []
    for name in tables.journal.attempt_names():
        try:
            found.append(tables.journal.attempt(name))
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


def _without_mcc(tiles: Census) -> NDArray[np.int64]:
    if tiles.counts is None:
        return np.zeros(0, np.int64)
    traced = tiles.counts.sum(axis=(1, 2))
    undefined = np.isnan(tile_scores(traced, "nan")[:, SCORES.index("mcc")])
    return np.flatnonzero(undefined & traced.any(axis=-1))


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
