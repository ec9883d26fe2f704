"""Small arrays on a grid, such as the level or the counts of every tile."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.disk import disk_errors, is_file, raise_refusal, retried
from pipeline.errors import DamageError
from pipeline.geometry import ceil_div
from pipeline.store import create_array, open_array


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
        # `zarrs` reads the 799 chunks of a full volume's table twelve times as fast, in 0.03 s, but writes in place.
        self._reader = open_array(path, "zarrs")
        self.shape: tuple[int, ...] = self._reader.shape
        self.dtype: np.dtype[Any] = self._reader.dtype

    @cached_property
    def _array(self) -> Any:
        """The table as it is written to, through zarr's own pipeline, which renames."""
        return open_array(self.path, "zarr", write_empty_chunks=True)

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
        try:
            return np.asarray(retried(lambda: self._reader[cells or ...]))
        except Exception as error:  # see ShardedArray.read
            raise_refusal(self.path, error)
            _, reasons = self.survey(cells)
            raise DamageError("; ".join(reasons) or f"{self.path}: cannot be read ({error})") from error

    def survey(self, cells: tuple[slice, ...] = ()) -> tuple[NDArray[Any], list[str]]:
        """Read what can be read of cells: fill where a chunk is damaged, and for each of those its name and reason.

        Raises
        ------
        StorageError, UnavailableError
            If the system refuses to read: then nothing is known to be damaged.
        """
        try:
            return np.asarray(retried(lambda: self._reader[cells or ...])), []
        except Exception as error:
            raise_refusal(self.path, error)  # what is left is damage, and is named chunk by chunk
        shape = [len(range(*span.indices(length))) for span, length in self._spans(cells)]
        found, reasons = np.full(shape, self._reader.fill_value, self.dtype), []
        for file, wanted, place in self._chunks(cells):
            try:
                found[place] = self._reader[wanted]
            except Exception as error:  # whatever it is, it is the answer
                raise_refusal(file, error)
                reasons.append(f"{self.path}: chunk {file.relative_to(self.path)} cannot be decoded ({error})")
        return found, reasons

    def stored(self, cells: tuple[slice, ...] = ()) -> NDArray[np.bool_]:
        """Whether the chunk of each cell has a file, on the leading axes that ``cells`` has."""
        axes = len(cells) or len(self.shape)
        shape = [len(range(*span.indices(length))) for span, length in self._spans(cells)[:axes]]
        found = np.zeros(shape, np.bool_)
        for file, _, place in self._chunks(cells):
            found[place[:axes]] = is_file(file)
        return found

    def _spans(self, cells: tuple[slice, ...]) -> list[tuple[slice, int]]:
        """Cells that are asked for along each axis, and its length."""
        every = [*cells, *[slice(None)] * (len(self.shape) - len(cells))]
        return list(zip(every, self.shape, strict=True))

    def _chunks(self, cells: tuple[slice, ...]) -> Iterator[tuple[Path, tuple[slice, ...], tuple[slice, ...]]]:
        """File of each chunk that some cells touch, which of them those are, and their place among all of them."""
        spans = [range(*span.indices(length)) for span, length in self._spans(cells)]
        axes = list(zip(spans, self._reader.chunks, strict=True))
        for index in itertools.product(*(range(span.start // step, ceil_div(span.stop, step)) for span, step in axes)):
            wanted = tuple(
                slice(max(number * step, span.start), min((number + 1) * step, span.stop))
                for number, (span, step) in zip(index, axes, strict=True)
            )
            place = tuple(
                slice(part.start - span.start, part.stop - span.start) for part, span in zip(wanted, spans, strict=True)
            )
            yield self.path.joinpath("c", *map(str, index)), wanted, place

    def write(self, cells: tuple[slice, ...], values: ArrayLike) -> None:
        """Write whole chunks of the leading axes; values are broadcast over them."""
        leading = [len(range(*cell.indices(length))) for cell, length in zip(cells, self.shape, strict=False)]
        whole = np.broadcast_to(np.asarray(values, self.dtype), (*leading, *self.shape[len(cells) :]))
        with disk_errors(self.path):
            retried(lambda: self._array.set_basic_selection(cells, whole))

    def resize(self, slices: int) -> None:
        """Change the length of the first axis."""
        with disk_errors(self.path):
            self._array.resize((slices, *self.shape[1:]))
        self._reader = open_array(self.path, "zarrs")
        self.shape = self._array.shape
