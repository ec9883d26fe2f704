"""One slice read back: shards against their digests, levels against level 0, and a record against itself.

Nothing is written, and no lock is taken to look: a difference counts if what vouches for the voxels, digests or keys,
still is what it was before they were read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamageError, NotAVolumeError, PipelineError, UnavailableError
from pipeline.geometry import Box, Triple
from pipeline.kernels.compiled import kernel
from pipeline.scratch import scratch
from pipeline.storage.disk import SILENT_FILES, is_file
from pipeline.storage.ledger import Ledger
from pipeline.storage.pyramid import Pyramid
from pipeline.storage.store import ABSENT, ALL_FILL, digest_bytes
from pipeline.storage.table import Table
from pipeline.storage.volume import Volume

Array = NDArray[Any]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was recorded.

    Attributes
    ----------
    array : str
        Folder of the array, or of the document, inside the volume.
    shard : str or None
        File of its shard, or chunk where it is a table; None where all of it is concerned.
    region : Box
        Voxels of the volume that it shows or tells of.
    reason : str
    run : str or None
        The run that can make it again, if one can.
    """

    array: str
    shard: str | None
    region: Box
    reason: str
    run: str | None = None

    @property
    def place(self) -> str:
        """Path inside the volume."""
        return self.array if self.shard is None else f"{self.array}/{self.shard}"

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.place}: {self.region}: {self.reason}"

    def document(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return asdict(self) | {"region": str(self.region)}


@dataclass(frozen=True, slots=True)
class Kind:
    """What there is to know of an image, truth or mask, whatever the slice.

    Attributes
    ----------
    pyramid : Pyramid
    folder : Path
        Of the pyramid, inside the volume.
    values : tuple or None
        The values that its voxels may have, if those are few.
    run : str or None
        The run that has made it.
    way_out : str
        What to do where it is damaged; empty where a run makes it again.
    """

    pyramid: Pyramid
    folder: Path
    values: tuple[int, int, int] | None = None
    run: str | None = None
    way_out: str = ""


class Readback:
    """One slice of an image, truth or mask, as its shards come.

    Parameters
    ----------
    kind : Kind
    z : int
    digests : ndarray
        uint64 (y, x) of the shard grid: what was recorded; ``ABSENT`` where that is not known, and nothing is checked.

    Attributes
    ----------
    right : ndarray
        Shards that are as recorded, (y, x) of the shard grid.
    bytes : int
        Decoded voxels that were read.
    """

    def __init__(self, kind: Kind, z: int, digests: NDArray[np.uint64]) -> None:
        self.findings: list[Finding] = []
        self.right: Flags = np.zeros(digests.shape, np.bool_)
        self.shards = int((digests != ABSENT).sum())
        self.bytes = 0
        self._silent: list[Finding] = []
        self._kind, self._z, self._digests = kind, z, digests
        self._levels = kind.pyramid.start_levels(f"level 1 of {kind.folder}") if self.shards else None

    def read(self, part: Box, buffer: str) -> Array | None:
        """Read a shard and compare it with its digest; None where nothing is known of it, or it cannot be read.

        Parameters
        ----------
        part : Box
            Its voxels.
        buffer : str
            Name of the memory that is used again, valid until the next call with this name.

        Raises
        ------
        UnavailableError
            If more than ``SILENT_FILES`` shards of the slice have not answered.
        """
        array = self._kind.pyramid.full
        (shard,) = array.shards.cover(part)
        recorded = int(self._digests[shard[1:]])
        if recorded == ABSENT:
            return None
        values = scratch.array(buffer, part.shape, array.dtype)
        found = self._read(0, shard, part, values)
        if found is None:
            return None
        if found != recorded:
            self._tell(0, shard, _change(recorded, is_file(array.shard_file(shard))))
        elif self._kind.values is not None and not only_values(values[0], *self._kind.values):
            self._tell(0, shard, f"has voxels other than {', '.join(map(str, sorted(set(self._kind.values))))}")
        else:
            self.right[shard[1:]] = True
        if self._levels is not None:
            self._levels.take(part, values)
        return values

    def compare_levels(self) -> None:
        """Compare levels 1, 2, ... with level 0; not where that is not as recorded: so much is told already."""
        if self._levels is not None and self.right.all():
            for level, plane in enumerate(self._levels.planes(), 1):
                self._compare_level(level, plane)

    def _compare_level(self, level: int, plane: Array) -> None:
        array = self._kind.pyramid.levels[level]
        for shard in array.shards.cover(Box.of_slice(self._z, array.shape)):
            part = array.shards.box(shard)
            values = scratch.array("stored level", part.shape, array.dtype)
            found = self._read(level, shard, part, values)
            if found is not None and not np.array_equal(values[0], plane[part.slices[1:]]):
                there = is_file(array.shard_file(shard))
                self._tell(level, shard, "does not show the voxels of level 0" if there else "is missing")

    def _read(self, level: int, shard: Triple, part: Box, values: Array) -> int | None:
        """Read a shard, and return its digest; None, once it was told why, if it cannot be."""
        self.bytes += values.nbytes
        try:
            return self._kind.pyramid.levels[level].read_shard(shard, part, values)
        except UnavailableError as error:
            self._tell(level, shard, error)
            self._silent.append(self.findings[-1])
            if len(self._silent) > SILENT_FILES:  # the store is away, which is said once
                self.findings = [finding for finding in self.findings if finding not in self._silent]
                raise
        except PipelineError as error:
            self._tell(level, shard, error)
        return None

    def _tell(self, level: int, shard: Triple, reason: str | PipelineError) -> None:
        pyramid, run = self._kind.pyramid, self._kind.run
        array = pyramid.levels[level]
        (z, top, left), (end, bottom, right) = array.shards.box(shard).start, array.shards.box(shard).stop
        shown = Box((z, top << level, left << level), (end, bottom << level, right << level))
        way_out = self._kind.way_out and f"; {self._kind.way_out}"
        if isinstance(reason, DamageError):
            text = f"cannot be decoded ({reason.__cause__}){way_out}"
        elif isinstance(reason, PipelineError):  # it may be whole: its storage refuses it, or does not answer
            text, run = str(reason), None
        else:
            text = f"{reason}{way_out}"
        self.findings.append(
            Finding(
                array=str(self._kind.folder / str(level)),
                shard=str(array.shard_file(shard).relative_to(array.path)),
                region=shown & Box.whole(pyramid.full.shape),
                reason=text,
                run=run,
            )
        )


def _change(recorded: int, stored: bool) -> str:
    """What has become of a shard that has other voxels now."""
    if recorded == ALL_FILL:
        return "has voxels where only fill was recorded"
    return "has other voxels than were recorded" if stored else "is missing"


@dataclass(frozen=True, slots=True)
class Checked:
    """How much was read. ``Checked()`` is the identity of ``+``.

    Attributes
    ----------
    slices : int
        Slices of the image that exist.
    shards : int
        Shards of level 0 of image, truths and masks that were compared with their digests.
    tiles : int
        Tiles whose counts were made again, of each run against each truth.
    bytes : int
        Decoded voxels that were read, levels included.
    """

    slices: int = 0
    shards: int = 0
    tiles: int = 0
    bytes: int = 0

    def __add__(self, other: Checked) -> Checked:
        return Checked(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Checked)))


@dataclass(frozen=True, slots=True)
class Difference:
    """A finding, with a digest of what vouched for its voxels before they were read."""

    finding: Finding
    witness: int


class Part(ABC):
    """One slice of something, as it was recorded before its voxels were read."""

    folder: str
    voxels: Readback
    findings: list[Finding]

    @abstractmethod
    def witness(self, region: Box) -> int:
        """Digest of what any writing to a region changes."""

    @abstractmethod
    def again(self) -> Part:
        """The same as it is recorded now."""

    @abstractmethod
    def finish(self) -> None:
        """Compare what needs all shards."""

    @abstractmethod
    def checked(self) -> Checked:
        """How much was read."""

    def differences(self) -> list[Difference]:
        """What was found, but for what has been written since."""
        findings = [*self.findings, *self.voxels.findings]
        if not findings:
            return []
        now = self.again()
        seen = [Difference(finding, self.witness(finding.region)) for finding in findings]
        return [difference for difference in seen if now.witness(difference.finding.region) == difference.witness]


class Record:
    """The image or a truth, and its ledger."""

    def __init__(
        self,
        volume: Volume,
        folder: str,
        pyramid: Pyramid,
        ledger: Ledger,
        values: tuple[int, int, int] | None = None,
    ) -> None:
        self.shape, self.folder, self.ledger = volume.shape, folder, ledger
        self.tables = {name: Table(volume.path / folder / name) for name in ("digest", "shard_digest", "mtime")}
        self.kind = Kind(pyramid, pyramid.path.relative_to(volume.path), values, way_out=ledger.way_out)


class RecordSlice(Part):
    """One slice of the image or of a truth."""

    def __init__(self, record: Record, z: int) -> None:
        self.folder, self.findings = record.folder, []
        self._record, self._z = record, z
        row = (slice(z, z + 1),)
        surveys = {name: table.survey(row) for name, table in record.tables.items()}
        stored = {name: bool(table.stored(row).all()) for name, table in record.tables.items()}
        digest, digests = int(surveys["digest"][0][0]), surveys["shard_digest"][0][0]
        self._witness = digest_bytes(digest.to_bytes(8, "little") + digests.tobytes())
        # The digest is the first thing that is written of a slice, and the last.
        self.exists = digest != ABSENT or bool(surveys["digest"][1]) or (any(stored.values()) > stored["digest"])
        wrong = {name: decoding(reasons) for name, (_, reasons) in surveys.items() if reasons}
        if self.exists:
            wrong |= {name: "is missing" for name, there in stored.items() if not there}
            if not wrong.keys() & {"digest", "shard_digest"} and digest != digest_bytes(digests.tobytes()):
                wrong["digest"] = "is not that of the slice's shards"
            self._check_file()
        for name, reason in wrong.items():
            self._tell(name, f"c/{z}/0/0" if name == "shard_digest" else f"c/{z}", reason)
        self.known = not wrong.keys() & {"digest", "shard_digest"}
        self.digests = digests if self.known and digest != ABSENT else np.zeros_like(digests)
        self.voxels = Readback(record.kind, z, self.digests)

    def witness(self, region: Box) -> int:  # noqa: ARG002  (a slice is recorded as a whole)
        """Digest of the digests of the slice and of its shards."""
        return self._witness

    def again(self) -> RecordSlice:
        """The slice as it is recorded now."""
        return RecordSlice(self._record, self._z)

    def finish(self) -> None:
        """Compare the levels."""
        self.voxels.compare_levels()

    def checked(self) -> Checked:
        """Shards, and bytes read."""
        return Checked(shards=self.voxels.shards, bytes=self.voxels.bytes)

    def _check_file(self) -> None:
        """Find a document of the slice's file that is lost or damaged."""
        try:
            reason = None if self._record.ledger.source(self._z) is not None else "is missing"
        except NotAVolumeError:
            reason = "cannot be decoded"
        if reason:
            self._tell(f"files/{self._z:06d}", "zarr.json", reason)

    def _tell(self, name: str, shard: str, reason: str) -> None:
        region, text = Box.of_slice(self._z, self._record.shape), f"{reason}; {self._record.ledger.way_out}"
        self.findings.append(Finding(f"{self.folder}/{name}", shard, region, text))


def decoding(reasons: Sequence[str]) -> str:
    """Why the one chunk that was asked for cannot be decoded, without its name."""
    return "".join(reasons[0].partition("cannot be decoded")[1:]) or reasons[0]


@kernel
def only_values(plane: Array, first: int, second: int, third: int) -> bool:
    """Whether a plane (y, x) of uint8 holds nothing but three values."""
    others = False
    for row in range(plane.shape[0]):
        for column in range(plane.shape[1]):
            value = plane[row, column]
            others |= (value != first) & (value != second) & (value != third)
    return not others
