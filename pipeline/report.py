"""What a run found, from its tables alone: the numbers that the command line prints and other programs read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.confusion import Counts, Scores, mean_scores, score_parts, scores
from pipeline.errors import MissingInputError
from pipeline.geometry import Box
from pipeline.keys import valid_tiles
from pipeline.tables import RunTables, Status, run_names
from pipeline.volume import Volume

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of a region by their state; ``done`` includes ``reused``, and done + failed + pending + absent = total."""

    total: int
    done: int
    reused: int
    failed: int
    pending: int
    absent: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Result of a run on a region.

    Attributes
    ----------
    voxels, annotated : int
        Voxels of the tiles that are done, and of those the annotated ones.
    counts, scores : Counts, Scores or None
        Summed over the region, where there is a truth.
    macro : tuple or None
        Means of accuracy, F1 and MCC over the annotated tiles, and how many those are.
    levels : tuple or None
        Lowest, median and highest level of the tiles, on the filtered scale.
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
    macro: tuple[Scores, int] | None
    levels: tuple[float, float, float] | None
    tiles: Tiles
    failures: Sequence[tuple[Box, str]]
    elapsed_s: float | None = None

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
            "macro": None if self.macro is None else asdict(self.macro[0]) | {"tiles": self.macro[1]},
            "levels": None if self.levels is None else dict(zip(keys, map(_number, self.levels), strict=True)),
            "tiles": asdict(self.tiles),
            "failures": [{"region": str(box), "reason": reason} for box, reason in self.failures],
            "elapsed_s": self.elapsed_s,
        }


def summarise(volume: Volume, name: str, truth: str | None, region: Box | None = None) -> Summary:
    """Sum the tables of a run over the tiles of a region, or over all.

    Raises
    ------
    MissingInputError
        If there is no such run, or it was not compared with this truth.
    """
    tables = RunTables(volume, name)
    tiles = tables.grids.tiles.cover(region or Box.whole(volume.shape))
    cells = tiles.slices
    status = tables.status.read(cells)
    counts, macro = None, None
    if truth is not None and truth not in tables.truths():
        known = ", ".join(tables.truths()) or "none yet"
        raise MissingInputError(
            f"{volume.path}: run {name!r} was not compared with {truth!r}, but with: {known}; "
            f"compare it with `kesm run {volume.path} --truth {truth} --name {name}`"
        )
    compared = valid_tiles(volume, tables, truth, tiles)
    if truth is not None:
        truth_tables = tables.truth(truth)
        table = np.where(compared[..., None], truth_tables.counts.read(cells), 0)
        counts = Counts(*(int(value) for value in table.sum(axis=(0, 1, 2))))
        macro = mean_scores(score_parts(table).sum(axis=(0, 1, 2)))
    return Summary(
        name=name, volume=str(volume.path), region=region, truth=truth,
        voxels=int(tables.grids.tiles.sizes(tiles)[compared].sum()), annotated=counts.total if counts else 0,
        counts=counts, scores=scores(counts) if counts else None, macro=macro,
        levels=_levels(tables.threshold.read(cells)[compared]),
        tiles=_tiles(volume, tiles, status, compared),
        failures=[(box, reason) for box, reason in tables.failures() if (box & tables.grids.tiles.voxels(tiles)).size],
    )  # fmt: skip


def _tiles(volume: Volume, tiles: Box, status: NDArray[Any], done: NDArray[np.bool_]) -> Tiles:
    here = volume.slices.present()[tiles.start[0] : tiles.stop[0], None, None]
    present = np.broadcast_to(here, status.shape)
    failed = int((present & (status == Status.FAILED)).sum())
    finished = int((present & done).sum())
    return Tiles(
        total=status.size,
        done=finished,
        reused=0,
        failed=failed,
        pending=int(present.sum()) - failed - finished,
        absent=int((~present).sum()),
    )


def _levels(levels: NDArray[np.float64]) -> tuple[float, float, float] | None:
    known = levels[~np.isnan(levels)]
    return (float(np.min(known)), float(np.median(known)), float(np.max(known))) if known.size else None


def _number(value: float) -> float | int | None:
    """A number as JSON has it: whole ones without a fraction, what is not finite as null."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value


def describe(volume: Volume) -> tuple[dict[str, Any], list[Summary]]:
    """What a volume holds, and the summary of each of its runs against each truth that it was compared with."""
    present = volume.slices.present()
    labels = []
    for info in volume.labels().values():
        label: dict[str, Any] = {"name": info.name, "kind": info.kind}
        if info.kind == "truth":
            annotated = int(volume.truth(info.name)[1].present().sum())
            label |= {"slices": annotated, "mapping": info.mapping}
        labels.append(label)
    summaries = []
    for name in run_names(volume):
        truths: list[str | None] = [truth for truth in RunTables(volume, name).truths() if truth in volume.labels()]
        summaries += [summarise(volume, name, truth) for truth in truths or [None]]
    document = {
        "schema": SCHEMA,
        "volume": str(volume.path),
        "shape": list(volume.shape),
        "dtype": str(volume.dtype),
        "voxel_size_um": None if volume.voxel_size_um is None else list(volume.voxel_size_um),
        "slices": {"present": int(present.sum()), "absent": int((~present).sum())},
        "labels": labels,
        "runs": [summary.document() for summary in summaries],
    }
    return document, summaries
