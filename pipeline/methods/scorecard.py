"""How well every threshold method does on one run's tables, which are added slice by slice and never held together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.threshold import LEVEL_OF, levels_of
from pipeline.methods.comparison import Scope, tile_counts

Flags = NDArray[np.bool_]
Table = NDArray[np.int64]
"""(3, levels), see `kernels.histogram.joint_histogram`."""
SliceRows = NDArray[np.int64]
"""(slices, 4): tp, fp, fn, tn of the annotated slices."""


@dataclass(slots=True)
class Scorecard:
    """Tables of one run, added up: levels are from the tiles that are done, scores from those of them that count.

    Attributes
    ----------
    methods, scopes : sequence of str
        What is judged.
    pooled : ndarray
        int64 (3, levels): all slices.
    of_slices, scored : list of ndarray
        Of each annotated slice, int64 (3, levels): the tiles that are done, and those that count.
    by_tile : dict
        Of each method, int64 (4,) of each annotated slice, where every tile has its own level.
    """

    methods: Sequence[str]
    scopes: Sequence[Scope]
    pooled: Table
    of_slices: list[Table] = field(default_factory=list)
    scored: list[Table] = field(default_factory=list)
    by_tile: dict[str, list[NDArray[np.int64]]] = field(default_factory=dict)

    def add(self, tables: NDArray[np.uint32], done: Flags, right: Flags, annotated: bool) -> None:
        """Add the tables of a slice.

        Parameters
        ----------
        tables : ndarray
            uint32 (rows, columns, 3, levels), changed: zero where ``right`` is False.
        done, right : ndarray
            bool (rows, columns): tiles that levels are from, and those of them that count.
        annotated : bool
            Whether the slice has a row in `counts`.
        """
        tables[~done] = 0
        of_slice = tables.sum(axis=(0, 1), dtype=np.int64)
        self.pooled += of_slice
        tables[~right] = 0
        if not annotated:
            return
        self.of_slices.append(of_slice)
        self.scored.append(tables.sum(axis=(0, 1), dtype=np.int64))
        flat = tables.reshape(-1, *tables.shape[2:])
        for method in self.methods if "tile" in self.scopes else ():
            rows = tile_counts(flat, levels_of(method, flat)).sum(axis=0)
            self.by_tile.setdefault(method, []).append(rows)

    @property
    def scored_pooled(self) -> Table:
        """All annotated slices, of the tiles that count."""
        total: Table = self._stacked().sum(axis=0)
        return total

    def counts(self) -> dict[tuple[str, Scope], SliceRows]:
        """Counts of every method in every scope."""
        found = {}
        scored = self._stacked()
        for method, scope in product(self.methods, self.scopes):
            if scope == "tile":
                rows = np.array(self.by_tile.get(method, []), np.int64).reshape(-1, 4)
            elif scope == "slice":
                rows = tile_counts(scored, np.array([_level(method, table) for table in self.of_slices]))
            else:
                rows = tile_counts(scored, np.full(len(scored), _level(method, self.pooled)))
            found[method, scope] = rows
        return found

    def _stacked(self) -> NDArray[np.int64]:
        """Tables that count, (slices, 3, levels), also of no slice."""
        return np.array(self.scored, np.int64).reshape(-1, *self.pooled.shape)


def _level(method: str, table: Table) -> float:
    """Level of all voxels of a table; NaN of an empty one."""
    grey = table.sum(axis=0)
    return float(LEVEL_OF[method](grey)) if grey.any() else float("nan")
