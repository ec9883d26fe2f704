"""The tables of one block, as they are filled."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Box, Triple
from pipeline.kernels.bins import WINDOWED_LEVELS
from pipeline.kernels.quality import Measure
from pipeline.segmentation.tile import TileRule, TileTables
from pipeline.storage.tables import Signal


@dataclass(slots=True)
class Results:
    """Tables of one block, as they are filled; with the tiles that fail or only are not counted, and why."""

    rule: TileRule
    threshold: NDArray[np.float64]
    signal: NDArray[np.uint8]
    seam: NDArray[np.int64]
    vessel: NDArray[np.int64]
    quality: NDArray[np.float32]
    grey: NDArray[np.int64]
    counts: NDArray[np.int64] | None
    histogram: NDArray[np.uint32] | None
    failed: NDArray[np.bool_]
    uncounted: NDArray[np.bool_]
    shard_digest: NDArray[np.uint64] | None = None
    painted: NDArray[np.uint64] | None = None
    reasons: dict[str, list[Box]] = field(default_factory=dict)

    @classmethod
    def empty(cls, rule: TileRule, tiles: Triple, with_truth: bool) -> Results:
        """Tables of so many tiles (z, y, x), before there is anything in them."""
        return cls(
            rule=rule,
            threshold=np.full(tiles, np.nan),
            signal=np.full(tiles, Signal.NOT_ASKED, np.uint8),
            seam=np.zeros((*tiles, 4), np.int64),
            vessel=np.zeros(tiles, np.int64),
            quality=np.full((*tiles, len(Measure)), np.nan, np.float32),
            grey=np.zeros(WINDOWED_LEVELS, np.int64),
            counts=np.zeros((*tiles, 4), np.int64) if with_truth else None,
            histogram=np.zeros((*tiles, 3, WINDOWED_LEVELS), np.uint32) if with_truth else None,
            failed=np.zeros(tiles, np.bool_),
            uncounted=np.zeros(tiles, np.bool_),
        )

    def take(self, where: tuple[slice, slice], tables: TileTables) -> None:
        """Take the tables of some tiles; of what failed, which has voxels that were never read, no grey levels."""
        self.threshold[0][where] = tables.threshold
        self.seam[0][where] = tables.seam
        self.vessel[0][where] = tables.vessel
        self.quality[0][where] = tables.quality
        self.grey += tables.histogram[~self.failed[0][where]].sum(axis=(0, 1), dtype=np.int64)
        if self.counts is not None and self.histogram is not None:
            self.counts[0][where] = tables.counts
            self.histogram[0][where] = tables.histogram

    def forget_lost(self) -> None:
        """Let tiles that failed, or whose truth turned out to be lost, count as nothing."""
        self.threshold[self.failed] = np.nan
        self.seam[self.failed] = 0
        self.vessel[self.failed] = 0
        self.quality[self.failed] = np.nan
        if self.counts is not None and self.histogram is not None:
            lost = self.failed | self.uncounted
            self.counts[lost] = 0
            self.histogram[lost] = 0
