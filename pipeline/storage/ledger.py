"""Which slices of an image or truth exist, and what they held when they were written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamageError
from pipeline.storage.store import ABSENT, create_document, digest_bytes, read_document
from pipeline.storage.table import Table

READS = 3  # of a record that is being replaced, before it is called damaged
INGEST_AGAIN = "restore it from a copy, or ingest the slice again"
CLEAN_AGAIN = "restore it from a copy, or make the label again with `kesm clean --replace`"
SHOWN = 5  # stretches of slices that a message names


class Ledger:
    """Which slices of an image or truth exist, and what they held when they were written.

    A slice exists once its digest is recorded, which comes last.
    """

    def __init__(self, path: Path, way_out: str = INGEST_AGAIN) -> None:
        self._path, self.way_out = path, way_out
        self._digest = Table(path / "digest")
        self._shards = Table(path / "shard_digest")
        self._mtime = Table(path / "mtime")

    @classmethod
    def create(cls, path: Path, slices: int, shards: tuple[int, int]) -> Ledger:
        """Create a ledger of absent slices, for so many shards (y, x) a slice."""
        create_document(path, {})
        create_document(path / "files", {})
        Table.create(path / "digest", (slices,), "uint64", (1,))
        Table.create(path / "shard_digest", (slices, *shards), "uint64", (1, *shards))
        Table.create(path / "mtime", (slices,), "int64", (1,))
        return cls(path)

    def lengths(self) -> set[int]:
        """Numbers of slices of its tables: one, unless a resize was cut off."""
        return {table.shape[0] for table in (self._digest, self._shards, self._mtime)}

    def present(self) -> NDArray[np.bool_]:
        """Whether each slice exists, (z,); one whose record is lost or damaged does: it is not processed as absent."""
        digests, damaged = self._digest.survey()
        present: NDArray[np.bool_] = digests != ABSENT
        if damaged or not present.all():
            present |= self._lost(slice(None))
            for z in np.flatnonzero(~present) if damaged else ():
                present[z] = bool(self._digest.survey((slice(z, z + 1),))[1])
        return present

    def shard_digests(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint64]:
        """Digests of the shards of some slices, (z, y, x) of the shard grid; 0 for slices that do not exist.

        Raises
        ------
        DamageError
            If the record of a slice is lost or damaged.
        """
        span = slice(start, stop)
        for _ in range(READS):
            try:
                recorded, digests = self._shards.read((span,)), self._digest.read((span,))
            except DamageError as error:
                raise DamageError(f"{error}; {self.way_out}") from error
            recorded = recorded[: len(digests)]  # longer where a resize was cut off
            recorded[digests == ABSENT] = ABSENT
            # The slice's digest is that of its shards' digests: read while they are replaced, the two do not agree.
            agree = [
                digest == ABSENT or digest == digest_bytes(row.tobytes())
                for row, digest in zip(recorded, digests, strict=True)
            ]
            if all(agree):
                break
        else:
            z = start + agree.index(False)
            raise DamageError(f"{self._path}: the digests of slice {z} contradict each other; {self.way_out}")
        if not digests.all() and (lost := self._lost(span)).any():
            z = start + int(np.argmax(lost))
            raise DamageError(f"{self._path}: chunk digest/c/{z} is missing; {self.way_out}")
        return recorded

    def _lost(self, span: slice) -> NDArray[np.bool_]:
        """Slices whose digest has no file, though it was written: it is the first thing that is written of a slice."""
        here = self._digest.stored((span,))  # the shortest, where a resize was cut off
        written = self._shards.stored((span,))[: len(here)] | self._mtime.stored((span,))[: len(here)]
        return written & ~here

    def fingerprint(self) -> str:
        """Digest of the digests of all slices, 16 hexadecimal digits."""
        return f"{digest_bytes(self._digest.survey()[0].tobytes()):016x}"

    def source(self, z: int) -> str | None:
        """Name of the file that a slice came from."""
        document = read_document(self._path / "files" / f"{z:06d}")
        return None if document is None else document.get("file")

    def mtimes_ns(self) -> NDArray[np.int64]:
        """When the file of each slice was last written to, in ns since 1970, (z,); 0 where that is lost."""
        return self._mtime.survey()[0]

    def forget(self, z: int) -> None:
        """Take back that a slice exists, before it is written again."""
        self._digest.write((slice(z, z + 1),), ABSENT)

    def record(self, z: int, shard_digests: NDArray[np.uint64], source: str, mtime_ns: int) -> None:
        """Record a slice that is written: its digest last, which makes it exist."""
        cell = (slice(z, z + 1),)
        self._digest.write(cell, ABSENT)
        self._shards.write(cell, shard_digests)
        self._mtime.write(cell, mtime_ns)
        create_document(self._path / "files" / f"{z:06d}", {"file": source})
        self._digest.write(cell, digest_bytes(shard_digests.tobytes()))

    def resize(self, slices: int) -> None:
        """Change the number of slices."""
        shrinking = slices < self._digest.shape[0]  # then what makes a slice exist goes first, else last
        tables = (self._digest, self._shards, self._mtime)
        for table in tables if shrinking else reversed(tables):
            table.resize(slices)
        for folder in (self._path / "files").glob("[0-9]*"):
            if int(folder.name) >= slices:
                shutil.rmtree(folder)


def stretches(slices: Sequence[int]) -> str:
    """``3, 7 to 9`` for these slices, or the first of them."""
    runs = [[z for _, z in run] for _, run in groupby(enumerate(slices), lambda pair: pair[1] - pair[0])]
    named = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs[:SHOWN]]
    return ", ".join(named) + (f" and {len(runs) - SHOWN} stretches more" if len(runs) > SHOWN else "")
