"""Arrays and documents on disk: the one owner of zarr.

A shard is written as a new file beside the store and renamed into place, so that a reader, or a crash, meets the old
shard or the new one and nothing between. (`zarrs` writes in place: of 40 processes killed while writing, 9 left a shard
that could neither be read nor written again.) Tables and documents are small: zarr's own pipeline renames those.
"""

from __future__ import annotations

import errno
import shutil
import threading
import uuid
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import xxhash
import zarr
import zarr.buffer.cpu
import zarrs  # noqa: F401  (registers its codec pipeline; a missing wheel fails here and not in the middle of a run)
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.errors import ContainsArrayError, GroupNotFoundError

from pipeline.disk import disk_errors, error_number, is_file, raise_refusal, rename, retried
from pipeline.errors import DamageError, LockedError, NotAVolumeError, ShapeMismatchError
from pipeline.geometry import Box, Grid, Triple

# Measured on the real tile's texture (benchmarks/README.md): chunks of 512 in shards of 4096 cost 1.6 times as much to
# read and write; lz4 reads 1.5 times as fast but stores 1.5 times as much.
CHUNK: Triple = (1, 1024, 1024)
SHARD: Triple = (1, 2048, 2048)
CODEC = ZstdCodec(level=1, checksum=True)

PIPELINES = {"zarrs": "zarrs.ZarrsCodecPipeline", "zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline"}

ABSENT = 0  # digest of what was never written
ALL_FILL = 1  # digest of a shard that holds only the fill value, and has no file

_config_lock = threading.Lock()
_codec: dict[str, int] = {}


class ShardedArray:
    """One level of an image or label: a sharded zarr array (z, y, x) that is written in whole shards.

    Parameters
    ----------
    path : Path
        Folder of the array.
    pipeline : {"zarrs", "zarr"}
        Codec pipeline; both give the same voxels, `zarrs` reads twice as fast.
    """

    def __init__(self, path: Path, pipeline: str = "zarrs") -> None:
        self.path = path
        self._pipeline = pipeline
        self._open()

    @classmethod
    def create(cls, path: Path, shape: Triple, dtype: str, fill: int = 0) -> ShardedArray:
        """Create an empty array of this shape on disk."""
        create_array(path, shape, dtype, CHUNK, fill, SHARD)
        return cls(path)

    def resize(self, slices: int) -> None:
        """Change the number of slices; what lies beyond the new end is removed."""
        with disk_errors(self.path):
            open_array(self.path, "zarr").resize((slices, *self.shape[1:]))
        self._open()

    def read(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read a box of voxels, into ``out`` (C-contiguous, of the box's shape) where it is given.

        Fresh arrays of a whole slice cost page faults: 203 MB/s against 1154 MB/s into a buffer that is used again.

        Raises
        ------
        DamageError
            If a shard cannot be decoded.
        UnavailableError
            If the storage does not answer.
        """
        out = np.empty(box.shape, self.dtype) if out is None else out
        if out.shape != box.shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ShapeMismatchError(f"{self.path}: buffer of {out.shape} {out.dtype} for a box of {box.shape}")
        try:
            # zarr's protocol for arrays is stricter in its overloads than NumPy's own class
            buffer = zarr.buffer.cpu.NDBuffer.from_ndarray_like(cast(Any, out))
            retried(lambda: self._array.get_basic_selection(box.slices, out=buffer))
        except Exception as error:  # the pipelines raise OSError, RuntimeError, ValueError, ... for damaged bytes
            if error_number(error) not in (errno.EACCES, errno.EPERM):  # those of one file are the trouble of that file
                raise_refusal(self._one_shard(box), error)
            raise DamageError(
                f"{self.path}: {self._damaged(box)} cannot be decoded ({error}); restore it from a copy"
            ) from error
        return out

    def write(self, box: Box, values: NDArray[Any], staging: Path) -> NDArray[np.uint64]:
        """Replace whole shards: stage them as new files, then rename each into place; all-fill shards have no file.

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
        digests = self.digests(box, values)
        stage = staging / uuid.uuid4().hex
        try:
            with disk_errors(self.path):
                retried(lambda: stage.mkdir(exist_ok=True))
                shutil.copyfile(self.path / "zarr.json", stage / "zarr.json")
                staged = open_array(stage, self._pipeline)
                retried(lambda: staged.set_basic_selection(box.slices, values))
                for shard, digest in zip(self.shards.cover(box), digests.flat, strict=True):
                    self._publish(stage, shard, empty=digest == ALL_FILL)
        except (FileNotFoundError, DamageError) as error:
            if staging.is_dir():
                raise
            raise LockedError(f"{self.path}: its staging folder was removed; another process has taken over") from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)
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
        """Return a digest of the decoded voxels of each shard in a box of whole shards, shape of the shard grid."""
        cells = self.shards.cover(box)
        digests = np.empty(cells.shape, np.uint64)
        for cell in cells:
            window = self.shards.box(cell).relative_to(box.start)
            local = tuple(index - first for index, first in zip(cell, cells.start, strict=True))
            digests[local] = digest_voxels(values[window.slices], self.fill)
        return digests

    def shard_file(self, shard: Triple) -> Path:
        """File of one shard, by its place in the shard grid."""
        return self.path.joinpath("c", *map(str, shard))

    def _open(self) -> None:
        self._array = open_array(self.path, self._pipeline)
        self.shape: Triple = self._array.shape
        self.dtype: np.dtype[Any] = self._array.dtype
        self.fill: int = int(self._array.fill_value)
        self.shards = Grid(self.shape, self._array.shards)

    def _publish(self, stage: Path, shard: Triple, empty: bool) -> None:
        target = self.shard_file(shard)
        if empty:
            retried(lambda: target.unlink(missing_ok=True))
        else:
            retried(lambda: target.parent.mkdir(parents=True, exist_ok=True))
            rename(stage / target.relative_to(self.path), target)

    def _one_shard(self, box: Box) -> Path:
        """File of the only shard that a box touches, else the folder of the array."""
        shards = list(self.shards.cover(box))
        return self.shard_file(shards[0]) if len(shards) == 1 else self.path

    def _damaged(self, box: Box) -> str:
        """Name the shards of a box that cannot be decoded."""
        bad = []
        for shard in self.shards.cover(box):
            part = self.shards.box(shard)
            try:
                self._array.get_basic_selection(part.slices)
            except Exception:  # whatever it is, it is the answer
                bad.append(str(self.shard_file(shard).relative_to(self.path)))
        return f"shard {', '.join(bad)}" if bad else str(box)


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


def digest_voxels(values: NDArray[Any], fill: int) -> int:
    """64-bit digest of voxels in C order, never 0; ``ALL_FILL`` where they are all the fill value."""
    block = np.ascontiguousarray(values)
    digest = digest_bytes(block.data.cast("B"))
    # The digest of an empty shard is known, and only where it is met are the voxels looked at: a second pass over all
    # of them costs four times the digest.
    if digest == _fill_digest(block.shape, block.dtype.str, fill) and (block == fill).all():
        return ALL_FILL
    return digest


@lru_cache(maxsize=256)
def _fill_digest(shape: tuple[int, ...], dtype: str, fill: int) -> int:
    return digest_bytes(np.full(shape, fill, dtype).data.cast("B"))


def digest_bytes(data: bytes | memoryview) -> int:
    """64-bit digest of bytes (xxh3), never one of the reserved values."""
    digest = xxhash.xxh3_64_intdigest(data)
    return digest if digest > ALL_FILL else digest + 2


def set_codec_threads(threads: int) -> None:
    """Let arrays that are opened from now on by this process use this many codec threads."""
    _codec["threading.max_workers"] = threads


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


def open_array(path: Path, pipeline: str, write_empty_chunks: bool = False) -> Any:
    """Open an array of zarr with a codec pipeline of ours.

    Raises
    ------
    DamageError, StorageError, UnavailableError
        If it cannot be opened.
    """
    # zarr picks these from process-wide settings when an array is opened. They are set for that moment only, so that
    # other zarr code in a user's process keeps its own.
    ours = {"codec_pipeline.path": PIPELINES[pipeline], "array.order": "C", **_codec}
    ours["array.write_empty_chunks"] = write_empty_chunks

    def open_once() -> Any:
        with _config_lock, zarr.config.set(ours):
            return zarr.open_array(path, mode="r+")

    try:
        return retried(open_once)
    except Exception as error:  # missing, foreign or damaged zarr.json: KeyError, ValueError, JSONDecodeError, ...
        raise_refusal(path, error)
        raise DamageError(f"{path}: is missing or cannot be opened ({error}); restore it from a copy") from error
