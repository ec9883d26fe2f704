"""Arrays and documents on disk: the one owner of zarr.

zarr makes and reads the metadata; shards, and the chunks of tables, are coded by `pipeline.shard` and `pipeline.table`.
A shard is written as a new file beside the store and renamed into place, so that a reader, or a crash, meets the old
shard or the new one and nothing between. (`zarrs` writes in place: of 40 processes killed while writing, 9 left a shard
that could neither be read nor written again.)
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.errors import ContainsArrayError, GroupNotFoundError

from pipeline.disk import disk_errors, is_file, raise_refusal, retried, write_file
from pipeline.errors import DamageError, LockedError, NotAVolumeError, ShapeMismatchError
from pipeline.geometry import Box, Grid, Triple
from pipeline.shard import Digest, Encoded, ShardCodec, ShardEncoder

# Measured on the real tile's texture (benchmarks/README.md): chunks of 512 in shards of 4096 cost 1.6 times as much to
# read and write; lz4 reads 1.5 times as fast but stores 1.5 times as much.
CHUNK: Triple = (1, 1024, 1024)
SHARD: Triple = (1, 2048, 2048)
CODEC = ZstdCodec(level=1, checksum=True)

ABSENT = 0  # digest of what was never written
ALL_FILL = 1  # digest of a shard that holds only the fill value, and has no file


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

    def __init__(self, path: Path) -> None:
        self.path = path
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
        with self.open_shard(shard) as opened:
            opened.read(part, out)
            return opened.digest

    def open_shard(self, shard: Triple) -> OpenShard:
        """Return a shard that is read chunk after chunk; a context."""
        return OpenShard(self, self._codec, shard)

    def encoder(self) -> ShardEncoder:
        """Return what encodes a shard chunk after chunk, for `publish`."""
        return ShardEncoder(self._codec)

    def publish(self, shard: Triple, encoded: Encoded | None, staging: Path) -> int:
        """Replace a shard, and return its digest; see `write`."""
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
        """Replace whole shards: stage each as a new file, then rename it into place; all-fill shards have no file.

        Parameters
        ----------
        box : Box
            Voxels, whole shards except at the volume's far edges.
        values : ndarray
            Of the box's shape.
        staging : Path
            Folder on the same file system, outside the store. Who removes it stops the write.

        Returns
        -------
        ndarray
            Digests of the shards, see `digests`.

        Raises
        ------
        StorageError
            If the disk is full, read-only or not permitted.
        LockedError
            If the staging folder is gone: another process has taken over.
        """
        if self.shards.round_out(box) != box or values.shape != box.shape:
            raise ShapeMismatchError(f"{self.path}: {box} with values of {values.shape} is no box of whole shards")
        cells = self.shards.cover(box)
        digests = np.empty(cells.shape, np.uint64)
        for shard in cells:
            digests[_within(shard, cells)] = self.publish(
                shard, self._codec.encode(self._plane(shard, box, values)), staging
            )
        return digests

    def erase(self, box: Box) -> None:
        """Make the shards of a box of whole shards all fill, by removing their files."""
        with disk_errors(self.path):
            for shard in self.shards.cover(box):
                self.shard_file(shard).unlink(missing_ok=True)

    def lost_shard(self, box: Box, digests: NDArray[np.uint64]) -> Path | None:
        """File of the first shard in a box that was recorded as stored and is gone: it would read as fill, silently.

        Parameters
        ----------
        box : Box
            Voxels.
        digests : ndarray
            Recorded digests of the box's slices, (z, y, x) of the shard grid.
        """
        for shard in self.shards.cover(box):
            digest = digests[shard[0] - box.start[0], shard[1], shard[2]]
            if digest not in (ABSENT, ALL_FILL) and not is_file(self.shard_file(shard)):
                return self.shard_file(shard)
        return None

    def digests(self, box: Box, values: NDArray[Any]) -> NDArray[np.uint64]:
        """Return a digest of the decoded voxels of each shard in a box of whole shards, shape of the shard grid.

        It is ``ALL_FILL`` for a shard that holds only the fill value.
        """
        cells = self.shards.cover(box)
        digests = np.empty(cells.shape, np.uint64)
        for shard in cells:
            digests[_within(shard, cells)] = _recorded(self._codec.digest(self._plane(shard, box, values)))
        return digests

    def shard_file(self, shard: Triple) -> Path:
        """File of one shard, by its place in the shard grid."""
        return self.path.joinpath("c", *map(str, shard))

    def _open(self) -> None:
        array = open_array(self.path)
        self.shape: Triple = array.shape
        self.dtype: np.dtype[Any] = array.dtype
        self.fill: int = int(array.fill_value)
        self._codec = _shard_codec(self.path, array)
        self.shards = Grid(self.shape, (1, *self._codec.shard))
        self.chunks = Grid(self.shape, (1, *self._codec.chunk))

    def _plane(self, shard: Triple, box: Box, values: NDArray[Any]) -> NDArray[Any]:
        """Voxels of one shard, (y, x), of the values of a box of whole shards."""
        plane: NDArray[Any] = values[self.shards.box(shard).relative_to(box.start).slices][0]
        return plane


class OpenShard:
    """One shard of an array, read chunk after chunk."""

    def __init__(self, array: ShardedArray, codec: ShardCodec, shard: Triple) -> None:
        self._array, self._codec = array, codec
        self._path, self._start = array.shard_file(shard), array.shards.box(shard).start
        self._digest = Digest(codec)
        self._missing = False

    def __enter__(self) -> OpenShard:
        self._file: FileIO | None = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def digest(self) -> int:
        """Digest of what was read: that of the shard, if all of its chunks were, in C order."""
        return ALL_FILL if self._missing else _recorded(self._digest.value)

    def read(self, part: Box, out: NDArray[Any]) -> None:
        """Read voxels into ``out``, of the box's shape.

        Raises
        ------
        DamageError, UnavailableError
            As `ShardedArray.read`.
        """
        window = part.relative_to(self._start).slices[1:]
        try:
            retried(lambda: self._read(window, out[0]))
        except FileNotFoundError:  # this is how zarr stores a shard of fill
            self._missing = True
            out[...] = self._array.fill
        except (OSError, ValueError, RuntimeError) as error:
            if not isinstance(error, PermissionError):  # that of one file is the trouble of that file
                raise_refusal(self._path, error)
            raise DamageError(
                f"{self._array.path}: shard {self._path.relative_to(self._array.path)} cannot be decoded ({error}); "
                "restore it from a copy"
            ) from error

    def _read(self, window: tuple[slice, slice], plane: NDArray[Any]) -> None:
        digest = self._digest.copy()
        try:
            if self._file is None:
                self._file = self._path.open("rb", buffering=0)
                self._index = self._codec.read_index(self._file)
            for chunk in self._codec.read(self._file, self._index, window, plane):
                digest.update(chunk)
        except OSError:  # it may be asked again, and is opened anew
            self.__exit__()
            raise
        self._digest = digest


def _within(shard: Triple, cells: Box) -> Triple:
    z, y, x = (index - first for index, first in zip(shard, cells.start, strict=True))
    return z, y, x


def _shard_codec(path: Path, array: Any) -> ShardCodec:
    """How an array stores its shards; refused where that is not as `create_array` has it."""
    metadata = array.metadata.to_dict()
    shard = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    how = metadata["codecs"][0].get("configuration", {})
    chunk = how.get("chunk_shape", ())
    names = [[codec["name"] for codec in how.get(chain, ())] for chain in ("codecs", "index_codecs")]
    if names != [["bytes", "zstd"], ["bytes", "crc32c"]] or how["index_location"] != "end" or shard[0] != 1:
        raise DamageError(f"{path}: is not stored as kesm stores images and labels; restore it from a copy")
    level = int(how["codecs"][1]["configuration"]["level"])
    return ShardCodec(
        tuple(shard[1:]), tuple(chunk[1:]), array.dtype.newbyteorder("<").str, int(array.fill_value), level
    )


def create_document(path: Path, attributes: Mapping[str, Any]) -> None:
    """Write a group with these attributes; replaces an older one whole, by rename."""

    def put() -> None:
        if (path / "zarr.json").exists():
            zarr.open_group(path, mode="r+").attrs.put(dict(attributes))
        else:
            zarr.create_group(path, attributes=dict(attributes), zarr_format=3)

    with disk_errors(path):
        retried(put)


def read_document(path: Path) -> dict[str, Any] | None:
    """Attributes of a group, or None where there is no group."""
    try:
        return dict(retried(lambda: zarr.open_group(path, mode="r").attrs))
    except (FileNotFoundError, GroupNotFoundError):
        return None
    except (ContainsArrayError, AssertionError) as error:  # zarr 3.1.1 asserts
        raise NotAVolumeError(f"{path}: is a Zarr array; name the folder of the volume that it belongs to") from error
    except Exception as error:  # a foreign or damaged zarr.json: KeyError, ValueError, JSONDecodeError, ...
        raise_refusal(path, error)
        raise NotAVolumeError(f"{path}: its zarr.json cannot be read ({error})") from error


def sweep_partial(folder: Path) -> None:
    """Remove the files that zarr had not yet renamed into place when its process was killed."""
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
        return retried(lambda: zarr.open_array(path, mode="r+"))
    except Exception as error:  # missing, foreign or damaged zarr.json: KeyError, ValueError, JSONDecodeError, ...
        raise_refusal(path, error)
        raise DamageError(f"{path}: is missing or cannot be opened ({error}); restore it from a copy") from error
