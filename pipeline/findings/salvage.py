"""The tables of a run as far as they can be read: what is damaged is named, and the rest is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamageError
from pipeline.geometry import Box
from pipeline.storage.ledger import Ledger
from pipeline.storage.table import Table
from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume


class Salvage:
    """Reads the tables of a run on a box of tiles as far as they can be read, and keeps where they cannot.

    Attributes
    ----------
    readable : ndarray
        bool, of the shape of the box: tiles whose chunks were all read.
    damage : list of (Box, str)
        Voxels and reason of each chunk that was not.
    """

    def __init__(self, tables: RunTables, tiles: Box) -> None:
        self._tables, self._tiles = tables, tiles
        self.readable = np.ones(tiles.shape, np.bool_)
        self.damage: list[tuple[Box, str]] = []

    def read(self, table: Table) -> NDArray[Any]:
        """Values of a table, its fill where it is damaged."""
        values, reasons = table.survey(self._tiles.slices)
        for part in self._blocks() if reasons else ():  # a chunk is a block's tiles
            _, reasons = table.survey(part.slices)
            self._keep(part, reasons)
        return values

    def look_for_reasons(self, volume: Volume, truth: str | None) -> None:
        """Look at what is compared to tell whether a tile is done: keys, and the digests of image and truth."""
        ledgers = [volume.slices]
        self.read(self._tables.mask_key)
        if truth is not None:
            self.read(self._tables.truth(truth).counts_key)
            ledgers.append(volume.truth(truth)[1])
        for ledger in ledgers:
            self._read_digests(ledger, self._tiles.start[0], self._tiles.stop[0])

    def _read_digests(self, ledger: Ledger, first: int, last: int) -> None:
        """Find by halves the slices whose digests cannot be read."""
        try:
            ledger.shard_digests(first, last)
        except DamageError as error:
            if last - first == 1:
                part = Box((first, *self._tiles.start[1:]), (last, *self._tiles.stop[1:]))
                self._keep(part, [str(error)])
                return
            middle = (first + last) // 2
            self._read_digests(ledger, first, middle)
            self._read_digests(ledger, middle, last)

    def _keep(self, part: Box, reasons: Sequence[str]) -> None:
        if reasons:
            self.readable[part.relative_to(self._tiles.start).slices] = False
            self.damage += [(self._tables.grids.tiles.voxels(part), reason) for reason in reasons]

    def _blocks(self) -> Iterator[Box]:
        """Tiles of each block, as far as they are in the box."""
        grids = self._tables.grids
        for index in grids.blocks.cover(grids.tiles.voxels(self._tiles)):
            yield grids.block_tiles(index) & self._tiles
