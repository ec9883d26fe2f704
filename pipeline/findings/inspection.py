"""Inspection: which tiles and slices of a run are unlike the others, from its table of measures alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MissingInputError
from pipeline.findings.salvage import Salvage
from pipeline.geometry import Box
from pipeline.kernels.flags import (
    RULES,
    Flag,
    count_flags,
    flag_tiles,
    flags_of,
    names_of,
    slice_distances,
    slice_medians,
    tile_distances,
)
from pipeline.storage.tables import RunTables, Status, run_names
from pipeline.storage.volume import Volume

WORST = 10  # slices, and tiles, that are listed

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outlier:
    """A tile or slice that is flagged, by the measure that is furthest out.

    Attributes
    ----------
    region : Box
        Its voxels.
    flags : tuple of str
        All that it is flagged for.
    measure : str
        See `kernels.quality`.
    value, median : float
        Of this measure, and what is usual: the median of the slice, or of all slices.
    distance : float
        From there, in limits: beyond -1 or 1 it is flagged.
    """

    region: Box
    flags: tuple[str, ...]
    measure: str
    value: float
    median: float
    distance: float

    def __str__(self) -> str:
        return (
            f"{self.region}: {', '.join(self.flags)}: {self.measure} {self.value:.4g}, usual {self.median:.4g}: "
            f"{abs(self.distance):.1f} times the limit {'below' if self.distance < 0 else 'above'}"
        )


@dataclass(frozen=True, slots=True)
class Flagged:
    """How many tiles or slices were measured, how many are flagged, for what, and the worst of them, worst first."""

    measured: int
    flagged: int
    flags: dict[str, int]
    worst: tuple[Outlier, ...]

    def document(self) -> dict[str, Any]:
        """The JSON object."""
        worst = [asdict(each) | {"region": str(each.region), "flags": list(each.flags)} for each in self.worst]
        return {"measured": self.measured, "flagged": self.flagged, "flags": self.flags, "worst": worst}

    def lines(self, what: str) -> list[str]:
        """The same for a person."""
        reasons = ", ".join(f"{count:,} {name}" for name, count in self.flags.items() if count)
        return [
            f"{what}: {self.flagged:,} of {self.measured:,}{f': {reasons}' if reasons else ''}",
            *(f"  {outlier}" for outlier in self.worst),
            *([f"  and {self.flagged - len(self.worst):,} more"] if self.flagged > len(self.worst) else []),
        ]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in one run; ``damage`` are parts of its tables that cannot be read, and why."""

    name: str
    slices: Flagged
    tiles: Flagged
    damage: tuple[tuple[Box, str], ...]

    def document(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "name": self.name,
            "slices": self.slices.document(),
            "tiles": self.tiles.document(),
            "problems": [{"region": str(box), "reason": reason} for box, reason in self.damage],
        }

    def lines(self) -> list[str]:
        """The same for a person."""
        return [
            f"run {self.name}:",
            *self.slices.lines("slices unlike the others"),
            *self.tiles.lines("tiles unlike the others of their slice"),
            *(f"cannot be read: {box}: {reason}" for box, reason in self.damage),
        ]


def inspect(volume: Volume, name: str | None = None, worst: int = WORST) -> list[Inspection]:
    """Inspect a run, or all; every table is read once.

    Raises
    ------
    MissingInputError
        If there is no such run.
    """
    known = run_names(volume)
    if name is not None and name not in known:
        raise MissingInputError(f"{volume.path}: has no run {name!r}; it has: {', '.join(known) or 'none yet'}")
    return [_inspect(RunTables(volume, each), worst) for each in (known if name is None else [name])]


def tile_flags(tables: RunTables, first: int, last: int) -> NDArray[np.uint8]:
    """Flags of all tiles of some slices, uint8 (z, y, x), a sum of `Flag` each; 0 where nothing is known of a tile.

    All tiles of a slice that are done set the norm, whatever region is asked for.
    """
    cells = (slice(first, last),)
    values, _ = tables.quality.survey(cells)
    status, _ = tables.status.survey(cells)
    return flag_tiles(values, status == Status.DONE)


def _inspect(tables: RunTables, worst: int) -> Inspection:
    grid = tables.grids.tiles
    salvage = Salvage(tables, Box.whole(grid.cells))
    values, status = salvage.read(tables.quality), salvage.read(tables.status)
    present = (status == Status.DONE) & salvage.readable
    medians = slice_medians(values, present)
    there = np.flatnonzero(present.any(axis=(1, 2)))
    of_slices = medians[there].astype(np.float32)
    usual = slice_medians(of_slices[None, :, None], np.ones((1, len(there), 1), np.bool_))
    tiles = np.argwhere(present)

    def box_of_tile(number: int) -> Box:
        z, y, x = tiles[number].tolist()
        return grid.box((z, y, x))

    return Inspection(
        name=tables.name,
        slices=_flagged(
            _Table(slice_distances(medians)[there], of_slices, np.repeat(usual, len(there), axis=0)),
            lambda number: Box.of_slice(int(there[number]), grid.shape),
            worst,
        ),
        tiles=_flagged(
            _Table(tile_distances(values, present)[present], values[present], medians[tiles[:, 0]]), box_of_tile, worst
        ),
        damage=tuple(salvage.damage),
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """Distances (n, len(RULES)) of tiles or slices, their measures (n, len(Measure)), and what is usual of each."""

    distances: Floats
    values: NDArray[np.float32]
    medians: Floats


def _flagged(table: _Table, box_of: Callable[[int], Box], worst: int) -> Flagged:
    flags = flags_of(table.distances)
    counting = np.stack(  # only distances in a direction that is flagged
        [
            np.where(at < 0, -at * bool(rule.below), at * bool(rule.above))
            for rule, at in zip(RULES, table.distances.T, strict=True)
        ],
        axis=-1,
    )
    found = np.flatnonzero(flags)
    furthest = np.nan_to_num(counting[found], nan=0.0)
    order = np.argsort(-furthest.max(axis=-1, initial=0), kind="stable")[:worst]
    outliers = []
    for number, at in zip(found[order].tolist(), furthest[order].argmax(axis=-1).tolist(), strict=True):
        measure = RULES[at].measure
        outliers.append(
            Outlier(
                region=box_of(number),
                flags=tuple(names_of(Flag(int(flags[number])))),
                measure=measure.name.lower(),
                value=float(table.values[number, measure]),
                median=float(table.medians[number, measure]),
                distance=float(table.distances[number, at]),
            )
        )
    return Flagged(len(flags), len(found), count_flags(flags), tuple(outliers))
