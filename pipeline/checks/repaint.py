"""One slice of a confusion read back: its shards against their digests, and against mask and truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.checks.readback import Array, Finding, Flags, Kind, Readback
from pipeline.geometry import Box
from pipeline.kernels.compiled import kernel
from pipeline.scratch import scratch
from pipeline.storage.confusion_label import FN, confuse
from pipeline.storage.painting import Painting
from pipeline.storage.store import ABSENT, digest_bytes
from pipeline.storage.table import Table

Plane = NDArray[np.uint8]


class Repaint:
    """What shows the confusion of one slice.

    Parameters
    ----------
    painting : Painting
    run : str
    z : int
    digests : ndarray
        uint64 (y, x) of the shard grid: what is recorded of its shards; ``ABSENT`` where that is not known.
    wanted : ndarray
        bool (y, x) of the tile grid: tiles that are recorded as showing the mask and truth that there are.
    missed : ndarray or None
        int64 (y, x): how many voxels are counted as missed, where only valid voxels are; then not all that mask and
        truth say is shown.

    Attributes
    ----------
    findings : list of Finding
    voxels : Readback
    """

    def __init__(
        self, painting: Painting, run: str, z: int, digests: Array, wanted: Flags, missed: Array | None
    ) -> None:
        self.truth, self.folder = painting.truth, Path("labels") / painting.label.path.name
        self._painting, self._run, self._z = painting, run, z
        self._wanted, self._missed = wanted, missed
        self._findings: list[Finding] = []
        self.voxels = Readback(Kind(painting.label, self.folder, None, run), z, digests)

    @property
    def findings(self) -> list[Finding]:
        """What differs."""
        return [*self._findings, *self.voxels.findings]

    def read(self, part: Box, mask: Plane | None, truth: Plane | None) -> None:
        """Read a shard, and compare it with the same one of mask and truth, where these are what was recorded.

        Parameters
        ----------
        part : Box
        mask, truth : ndarray or None
            (y, x) uint8; None where it is not known.
        """
        values = self.voxels.read(part, "confusion")
        label = self._painting.label.full
        (shard,) = label.shards.cover(part)
        if values is None or mask is None or truth is None or not self.voxels.right[shard[1:]]:
            return
        expected = scratch.array("expected confusion", mask.shape, np.uint8)
        confuse(mask, truth, expected)
        tiles = self._painting.grids.tiles
        wrong = [cell for cell in tiles.cover(part) if self._wanted[cell[1:]] and self._differs(cell, part, expected)]
        if wrong:
            cells = np.array(wrong)
            around = Box(tuple(cells.min(axis=0).tolist()), tuple((cells.max(axis=0) + 1).tolist()))
            file = str(label.shard_file(shard).relative_to(label.path))
            reason = f"does not show what mask and truth {self.truth} say"
            self._findings.append(Finding(f"{self.folder}/0", file, tiles.voxels(around), reason, self._run))

    def finish(self) -> None:
        """Compare the levels, where they are recorded as those of level 0."""
        tables, z = self._painting.tables, self._z
        recorded, reasons = tables.pyramid_key.survey((slice(z, z + 1),))
        digests, damaged = tables.digest.survey((slice(z, z + 1),))
        if damaged:  # which is told where the tables are judged
            return
        whole = self._painting.grids.blocks.step[1:] == self._painting.label.full.shape[1:]
        if not reasons and recorded[0] == digest_bytes(digests.tobytes()):
            self.voxels.compare_levels()
        elif whole and self.voxels.shards:  # its block has recorded its levels before it is done
            self._tell_table(tables.pyramid_key, "cannot be decoded" if reasons else "is not that of the confusion")

    def _tell_table(self, table: Table, reason: str) -> None:
        shape = self._painting.label.full.shape
        folder = "/".join(table.path.parts[-5:])
        self._findings.append(Finding(folder, f"c/{self._z}", Box.of_slice(self._z, shape), reason, self._run))

    def _differs(self, cell: tuple[int, int, int], part: Box, expected: Plane) -> bool:
        where = self._painting.grids.tiles.box(cell).relative_to(part.start).slices
        shown = scratch.array("confusion", (1, *expected.shape), np.uint8)[where][0]
        if self._missed is None:
            return bool((shown != expected[where[1:]]).any())
        others, missed = compare_valid(shown, expected[where[1:]])
        return bool(others) or missed != self._missed[cell[1:]]


@kernel
def compare_valid(shown: Plane, expected: Plane) -> tuple[int, int]:
    """Compare a confusion with the one of all voxels, of which those that are not valid show nothing.

    Returns
    -------
    others, missed : int
        Voxels that differ, but for those that are missed in the second only; voxels that are missed in both.
    """
    others, missed = 0, 0
    for row in range(shown.shape[0]):
        for column in range(shown.shape[1]):
            one, other = shown[row, column], expected[row, column]
            others += one != other and not (one == 0 and other == FN)
            missed += one == FN and other == FN
    return others, missed


def known_digests(painting: Painting, z: int) -> NDArray[np.uint64]:
    """Digests of the shards of a slice, uint64 (y, x); ``ABSENT`` in blocks that nothing is recorded of."""
    row = (slice(z, z + 1),)
    keys, _ = painting.tables.key.survey(row)
    digests, _ = painting.tables.digest.survey(row)
    known: NDArray[np.uint64] = np.full_like(digests[0], ABSENT)
    for block in painting.grids.blocks.cover(Box.of_slice(z, painting.label.full.shape)):
        if keys[0][painting.grids.block_tiles(block).slices[1:]].any():
            where = painting.grids.shards.cover(painting.grids.blocks.box(block)).slices[1:]
            known[where] = digests[0][where]
    return known
