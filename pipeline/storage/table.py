"""Small arrays on a grid, such as the level or the counts of every tile."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import zstd
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import DamageError, ShapeMismatchError
from pipeline.geometry import ceil_div
from pipeline.storage.disk import disk_errors, is_file, raise_refusal, retried, write_file
from pipeline.storage.store import CODEC, codec_names, create_array, open_array


class Table:
    """A small array on a grid: one chunk is what one task writes at once.

    A chunk that was written has a file, whatever it holds, so that one that is lost is not taken for zeros.

    Parameters
    ----------
    path : Path
        Folder of the array.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    @classmethod
    def create(cls, path: Path, shape: tuple[int, ...], dtype: str, chunks: tuple[int, ...], fill: float = 0) -> Table:
        """Create an empty table on disk."""
        create_array(path, shape, dtype, chunks, fill)
        return cls(path)

    def read(self, cells: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Read cells of the leading axes; everything without an argument.

        Raises
        ------
        DamageError
            Naming the chunks that cannot be decoded.
        """
        found, reasons = self.survey(cells)
        if reasons:
            raise DamageError("; ".join(reasons))
        return found

    def survey(self, cells: tuple[slice, ...] = ()) -> tuple[NDArray[Any], list[str]]:
        """Read what can be read of cells: fill where a chunk is damaged, and for each of those its name and reason.

        Raises
        ------
        StorageError, UnavailableError
            If the system refuses to read: then nothing is known to be damaged.
        """
        shape = [len(range(*span.indices(length))) for span, length in self._spans(cells)]
        found, reasons = np.full(shape, self.fill, self.dtype), []
        for file, inside, place in self._chunks_of(cells):
            try:
                found[place] = self._decode(retried(file.read_bytes))[inside]
            except FileNotFoundError:  # it is fill
                continue
            except (OSError, ValueError, RuntimeError) as error:
                raise_refusal(file, error)
                reasons.append(f"{self.path}: chunk {file.relative_to(self.path)} cannot be decoded ({error})")
        return found, reasons

    def stored(self, cells: tuple[slice, ...] = ()) -> NDArray[np.bool_]:
        """Whether the chunk of each cell has a file, on the leading axes that ``cells`` has."""
        axes = len(cells) or len(self.shape)
        shape = [len(range(*span.indices(length))) for span, length in self._spans(cells)[:axes]]
        found = np.zeros(shape, np.bool_)
        for file, _, place in self._chunks_of(cells):
            found[place[:axes]] = is_file(file)
        return found

    def _spans(self, cells: tuple[slice, ...]) -> list[tuple[slice, int]]:
        """Cells that are asked for along each axis, and its length."""
        every = [*cells, *[slice(None)] * (len(self.shape) - len(cells))]
        return list(zip(every, self.shape, strict=True))

    def _chunks_of(self, cells: tuple[slice, ...]) -> Iterator[tuple[Path, tuple[slice, ...], tuple[slice, ...]]]:
        """File of each chunk that some cells touch, their place in it, and among all that are asked for."""
        spans = [range(*span.indices(length)) for span, length in self._spans(cells)]
        axes = list(zip(spans, self._chunks, strict=True))
        for index in itertools.product(*(range(span.start // step, ceil_div(span.stop, step)) for span, step in axes)):
            inside, place = [], []
            for number, (span, step) in zip(index, axes, strict=True):
                start, stop = max(number * step, span.start), min((number + 1) * step, span.stop)
                inside.append(slice(start - number * step, stop - number * step))
                place.append(slice(start - span.start, stop - span.start))
            yield self.path.joinpath("c", *map(str, index)), tuple(inside), tuple(place)

    def write(self, cells: tuple[slice, ...], values: ArrayLike) -> None:
        """Write whole chunks of the leading axes; values are broadcast over them."""
        spans = [range(*span.indices(length)) for span, length in self._spans(cells)]
        for span, length, step in zip(spans, self.shape, self._chunks, strict=True):
            if span.start % step or (span.stop % step and span.stop != length):
                raise ShapeMismatchError(f"{self.path}: cells {cells} are no whole chunks of {self._chunks}")
        whole = np.broadcast_to(np.asarray(values, self.dtype), [len(span) for span in spans])
        with disk_errors(self.path):
            for file, inside, place in self._chunks_of(cells):
                chunk = np.full(self._chunks, self.fill, self._stored_dtype)
                chunk[inside] = whole[place]
                encoded = zstd.compress(chunk.data.cast("B"), CODEC.level, CODEC.checksum)
                retried(partial(file.parent.mkdir, parents=True, exist_ok=True))
                write_file(file, [encoded], file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial"))

    def resize(self, slices: int) -> None:
        """Change the length of the first axis."""
        with disk_errors(self.path):
            open_array(self.path).resize((slices, *self.shape[1:]))
        self._open()

    def _open(self) -> None:
        array = open_array(self.path)
        if codec_names(array.metadata.to_dict().get("codecs", ())) != ["bytes", "zstd"]:
            raise DamageError(f"{self.path}: is not stored as kesm stores tables; restore it from a copy")
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = array.dtype
        self._chunks: tuple[int, ...] = array.chunks
        self._stored_dtype = self.dtype.newbyteorder("<")
        self.fill: Any = array.fill_value  # of what nobody has written

    def _decode(self, encoded: bytes) -> NDArray[Any]:
        return np.frombuffer(zstd.decompress(encoded), self._stored_dtype).reshape(self._chunks)
