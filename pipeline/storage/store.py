"""Arrays and documents on disk: the one owner of zarr.

zarr makes and reads the metadata; shards, and the chunks of tables, are coded by `storage.shard` and `storage.table`.
A shard is written as a new file beside the store and renamed into place, so that a reader, or a crash, meets the old
shard or the new one and nothing between. (`zarrs` writes in place: of 40 processes killed while writing, 9 left a shard
that could neither be read nor written again.)
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.errors import ContainsArrayError, GroupNotFoundError

from pipeline.errors import DamageError, LockedError, NotAVolumeError, ShapeMismatchError
from pipeline.geometry import Box, Grid, Triple
from pipeline.scratch import scratch
from pipeline.storage.disk import disk_errors, is_file, raise_refusal, read_file, retried, write_file
from pipeline.storage.shard import Encoded, ShardCodec, ShardDecoder, ShardEncoder

# Measured on the real tile's texture (benchmarks/README.md): chunks of 512 cost up to a sixth more for a run, 1.8 times
# as much to ingest, shards of 4096 gain 2 to 10 %; lz4 takes four fifths of the time but stores 1.5 times as much.
CHUNK: Triple = (1, 1024, 1024)
SHARD: Triple = (1, 2048, 2048)
CODEC = ZstdCodec(level=1, checksum=True)

ABSENT = 0  # digest of what was never written
ALL_FILL = 1  # digest of a shard that holds only the fill value, and has no file

FROM_A_COPY = "restore it from a copy"
BY_A_RUN = "`kesm verify` marks what is damaged, and the next `kesm run` makes it again"


class ShardedArray:
    """One level of an image or label: a sharded zarr array (z, y, x) that is written in whole shards.

    Parameters
    ----------
    path : Path
        Folder of the array.

    Raises
    ------
    DamageError
        If it is missing, or not stored as `create` stores it.
    """

    def __init__(self, path: Path, way_out: str = FROM_A_COPY) -> None:
        self.path, self.way_out = path, way_out
        self._open()

    @classmethod
    def create(cls, path: Path, shape: Triple, dtype: str, fill: int = 0) -> ShardedArray:
        """Create an empty array of this shape on disk."""
        create_array(path, shape, dtype, CHUNK, fill, SHARD)
        return cls(path)

    def resize(self, slices: int) -> None:
        """Change the number of slices; what lies beyond the new end is removed."""
        with disk_errors(self.path):
            open_array(self.path).resize((slices, *self.shape[1:]))
        self._open()

    def read(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read a box of voxels, into ``out`` (of the box's shape) where it is given.

        Fresh arrays of a whole slice cost page faults: 203 MB/s against 1154 MB/s into a buffer that is used again.

        Raises
        ------
        DamageError
            Naming every shard that cannot be decoded.
        UnavailableError
            If the storage does not answer.
        """
        out = np.empty(box.shape, self.dtype) if out is None else out
        if out.shape != box.shape or out.dtype != self.dtype:
            raise ShapeMismatchError(f"{self.path}: buffer of {out.shape} {out.dtype} for a box of {box.shape}")
        if box & Box.whole(self.shape) != box:
            raise ShapeMismatchError(f"{self.path}: {box} reaches beyond its {self.shape} voxels")
        damage = []
        for shard in self.shards.cover(box):
            part = self.shards.box(shard) & box
            try:
                self.read_shard(shard, part, out[part.relative_to(box.start).slices])
            except DamageError as error:
                damage.append(error)
        if len(damage) > 1:
            raise DamageError("; ".join(map(str, damage))) from damage[0]
        if damage:
            raise damage[0]
        return out

    def read_shard(self, shard: Triple, part: Box, out: NDArray[Any]) -> int:
        """Read voxels of one shard into ``out``, of the box's shape; return its digest, if they are all that it has.

        Raises
        ------
        DamageError, UnavailableError
            As `read`.
        """
        opened = self.open_shard(shard, "encoded")
        opened.read(part, out)
        return opened.digest

    def read_checked(self, part: Box, digests: NDArray[np.uint64]) -> NDArray[Any]:
        """Read a shard that must be what was recorded, into a buffer of this thread, valid until the next call.

        Parameters
        ----------
        part : Box
            Its voxels.
        digests : ndarray
            uint64 (y, x) of the shard grid: those of its slice.

        Raises
        ------
        DamageError, UnavailableError
            As `read` and `check`.
        """
        (shard,) = self.shards.cover(part)
        out = scratch.array("shard", part.shape, self.dtype)
        self.check(shard, int(digests[shard[1:]]), self.read_shard(shard, part, out))
        return out

    def open_shard(self, shard: Triple, buffer: str) -> OpenShard:
        """Return a shard that is read chunk after chunk.

        Its file is kept in the `scratch` buffer of this name: a thread that has two open at once needs two.
        """
        return OpenShard(self, self._codec, shard, buffer)

    def encoder(self) -> ShardEncoder:
        """Return what takes the chunks of a shard, one after another, and encodes them for `publish`."""
        return ShardEncoder(self._codec)

    def publish(self, shard: Triple, encoded: Encoded | None, staging: Path) -> int:
        """Replace a shard: stage it as a new file, then rename it into place; one of fill has no file.

        Parameters
        ----------
        shard : tuple
            Its place in the shard grid.
        encoded : tuple or None
            What an `encoder` has made of it.
        staging : Path
            Folder on the same file system, outside the store. Who removes it stops the write.

        Returns
        -------
        int
            Digest of the shard, ``ALL_FILL`` for one of fill.

        Raises
        ------
        StorageError
            If the disk is full, read-only or not permitted.
        LockedError
            If the staging folder is gone: another process has taken over.
        """
        file = self.shard_file(shard)
        try:
            with disk_errors(self.path):
                if encoded is None:
                    retried(lambda: file.unlink(missing_ok=True))
                    return ALL_FILL
                parts, digest = encoded
                write_file(file, parts, staging / uuid.uuid4().hex)
                return _recorded(digest)
        except FileNotFoundError as error:
            if staging.is_dir():
                raise
            raise LockedError(f"{self.path}: its staging folder was removed; another process has taken over") from error

    def write(self, box: Box, values: NDArray[Any], staging: Path) -> NDArray[np.uint64]:
        """Replace the shards of a box of whole shards, (z, y, x); return their digests. See `publish`.

        Raises
        ------
        ShapeMismatchError
            If values or box do not fit.
        StorageError, LockedError
            As `publish`.
        """
        if self.shards.round_out(box) != box or values.shape != box.shape:
            raise ShapeMismatchError(f"{self.path}: {box} with values of {values.shape} is no box of whole shards")
        cells = self.shards.cover(box)
        planes = (values[part.relative_to(box.start).slices][0] for part in self.shards.parts(box))
        digests = [
            self.publish(shard, self._codec.encode(plane), staging) for shard, plane in zip(cells, planes, strict=True)
        ]
        return np.array(digests, np.uint64).reshape(cells.shape)

    def erase(self, box: Box) -> None:
        """Make the shards of a box of whole shards all fill, by removing their files."""
        with disk_errors(self.path):
            for shard in self.shards.cover(box):
                file = self.shard_file(shard)
                retried(partial(file.unlink, missing_ok=True))

    def check(self, shard: Triple, recorded: int, found: int) -> None:
        """Check that a shard that was read whole is the one that was recorded.

        Parameters
        ----------
        shard : tuple
            Its place in the shard grid.
        recorded : int
            Its digest when it was written; ``ABSENT`` where that is not known.
        found : int
            Its digest now.

        Raises
        ------
        DamageError
            If it is lost (which reads as fill, silently), or another one.
        """
        if recorded in (ABSENT, found):
            return
        file = self.shard_file(shard)
        lost = found == ALL_FILL and not is_file(file)
        what = "is missing" if lost else "has other voxels than were recorded"
        raise DamageError(f"{self.path}: shard {file.relative_to(self.path)} {what}; {self.way_out}")

    def shard_file(self, shard: Triple) -> Path:
        """File of one shard, by its place in the shard grid."""
        return self.path.joinpath("c", *map(str, shard))

    def _open(self) -> None:
        array = open_array(self.path)
        self.shape: Triple = array.shape
        self.dtype: np.dtype[Any] = array.dtype
        self._codec = _shard_codec(self.path, array)
        self.fill: int = self._codec.fill
        self.shards = Grid(self.shape, (1, *self._codec.shard))
        self.chunks = Grid(self.shape, (1, *self._codec.chunk))
        self.chunks_of_shard: Triple = (1, *self._codec.chunks)


class OpenShard:
    """One shard of an array, read chunk after chunk; its file is read when the first is asked for."""

    def __init__(self, array: ShardedArray, codec: ShardCodec, shard: Triple, buffer: str) -> None:
        self._array, self._codec, self._buffer = array, codec, buffer
        self._path, self._start = array.shard_file(shard), array.shards.box(shard).start
        self._decoder: ShardDecoder | None = None
        self._missing = False

    @property
    def digest(self) -> int:
        """Digest of what was read: that of the shard, if all of its chunks were, in C order."""
        return ALL_FILL if self._decoder is None else _recorded(self._decoder.digest)

    def read(self, part: Box, out: NDArray[Any]) -> None:
        """Read voxels into ``out``, of the box's shape.

        Raises
        ------
        DamageError, UnavailableError
            As `ShardedArray.read`.
        """
        try:
            if self._decoder is None and not self._missing:
                self._open()
            if self._decoder is None:
                out[...] = self._array.fill
            else:
                self._decoder.read(part.relative_to(self._start).slices[1:], out[0])
        except (OSError, ValueError, RuntimeError) as error:
            shard = f"{self._array.path}: shard {self._path.relative_to(self._array.path)}"
            if isinstance(error, PermissionError):  # that of one file is the trouble of that file
                raise DamageError(f"{shard} cannot be read ({error}); check its owner and mode") from error
            raise_refusal(self._path, error)
            raise DamageError(f"{shard} cannot be decoded ({error}); {self._array.way_out}") from error

    def _open(self) -> None:
        try:
            data = retried(lambda: read_file(self._path, self._buffer))
        except FileNotFoundError:  # this is how zarr stores a shard of fill
            self._missing = True
        else:
            self._decoder = ShardDecoder(self._codec, data)


def _shard_codec(path: Path, array: Any) -> ShardCodec:
    """How an array stores its shards; refused where that is not as `create_array` has it."""
    metadata = array.metadata.to_dict()
    sharding: dict[str, Any] = next((codec.get("configuration", {}) for codec in metadata.get("codecs", ())), {})
    names = [codec_names(sharding.get(chain, ())) for chain in ("codecs", "index_codecs")]
    if names != [["bytes", "zstd"], ["bytes", "crc32c"]] or sharding["index_location"] != "end" or array.shards[0] != 1:
        raise DamageError(f"{path}: is not stored as kesm stores images and labels; restore it from a copy")
    level = int(sharding["codecs"][1]["configuration"]["level"])
    (_, *shard), (_, *chunk) = array.shards, array.chunks
    return ShardCodec(tuple(shard), tuple(chunk), array.dtype.newbyteorder("<").str, int(array.fill_value), level)


def codec_names(codecs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of codecs as metadata list them; one whose numbers are big endian is none of ours."""
    big = [codec for codec in codecs if codec.get("configuration", {}).get("endian") == "big"]
    return [] if big else [codec["name"] for codec in codecs]


def create_document(path: Path, attributes: Mapping[str, Any]) -> None:
    """Write a group with these attributes; replaces an older one whole, by rename."""

    def put() -> None:
        if (path / "zarr.json").exists():
            zarr.open_group(path, mode="r+", zarr_format=3).attrs.put(dict(attributes))
        else:
            zarr.create_group(path, attributes=dict(attributes), zarr_format=3)

    with disk_errors(path):
        retried(put)


def read_document(path: Path) -> dict[str, Any] | None:
    """Attributes of a group, or None where there is no group."""
    try:
        return dict(retried(lambda: zarr.open_group(path, mode="r", zarr_format=3).attrs))
    except (FileNotFoundError, GroupNotFoundError):
        return None
    except (ContainsArrayError, AssertionError) as error:  # zarr 3.1.1 asserts
        raise NotAVolumeError(f"{path}: is a Zarr array; name the folder of the volume that it belongs to") from error
    except Exception as error:  # a foreign or damaged zarr.json: KeyError, ValueError, JSONDecodeError, ...
        raise_refusal(path, error)
        raise NotAVolumeError(
            f"{path}: its zarr.json cannot be read ({error}); restore it from a copy, or make again what it is of"
        ) from error


def sweep_partial(folder: Path) -> None:
    """Remove the files that were not yet renamed into place when their process was killed."""
    for left in folder.rglob("*.partial"):
        left.unlink(missing_ok=True)


def digest_bytes(data: bytes | memoryview) -> int:
    """64-bit digest of bytes (xxh3), never one of the reserved values."""
    return _recorded(xxhash.xxh3_64_intdigest(data))


def _recorded(digest: int | None) -> int:
    """Digest as it is recorded: that of a shard of fill is its own value."""
    if digest is None:
        return ALL_FILL
    return digest if digest > ALL_FILL else digest + 2


def create_array(
    path: Path,
    shape: tuple[int, ...],
    dtype: str,
    chunks: tuple[int, ...],
    fill: float,
    shards: Triple | None = None,
) -> None:
    """Create an empty array on disk; one in shards is of voxels."""
    with disk_errors(path):
        zarr.create_array(
            path, shape=shape, dtype=dtype, chunks=chunks, shards=shards, fill_value=fill, compressors=CODEC,
            dimension_names=("z", "y", "x") if shards else None, zarr_format=3,
        )  # fmt: skip


def open_array(path: Path) -> Any:
    """Open an array of zarr, for its metadata.

    Raises
    ------
    DamageError, StorageError, UnavailableError
        If it cannot be opened.
    """
    try:
        return retried(lambda: zarr.open_array(path, mode="r+", zarr_format=3))
    except Exception as error:  # missing, foreign or damaged zarr.json: KeyError, ValueError, JSONDecodeError, ...
        raise_refusal(path, error)
        raise DamageError(f"{path}: is missing or cannot be opened ({error}); restore it from a copy") from error


def group_names(folder: Path) -> list[str]:
    """Names of the documents, groups and arrays in a folder; none where there is no folder.

    Raises
    ------
    StorageError, UnavailableError
        If the system refuses to look: what is there must not be taken for missing.
    """
    try:
        return sorted(entry.name for entry in folder.iterdir() if is_file(entry / "zarr.json"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise_refusal(Path(error.filename or folder), error)
        raise
