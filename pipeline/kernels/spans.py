"""Voxels of a slab as spans: the longest stretches of each row, along x.

The mask of the real tile has a span for 350 voxels. So much more of a volume is in work at once than its voxels would
allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShapeMismatchError
from pipeline.kernels.compiled import kernel
from pipeline.scratch import scratch

WIDEST = 2**16 - 1  # voxels of a row: positions in it take two bytes
_WORDS = 8  # of eight voxels, that are looked at at once
_FIRST_BIT = np.array([(byte & -byte).bit_length() - 1 for byte in range(256)], np.int8)


class Spans(NamedTuple):
    """Voxels of a slab, as the longest stretches of each row.

    Attributes
    ----------
    rows : ndarray
        int64 (z * y + 1,): the spans of row ``r``, in C order of (z, y), are those from ``rows[r]`` to ``rows[r + 1]``.
    starts, stops : ndarray
        uint16 or int32 (spans,): half-open, in voxels along x; in a row they ascend and do not touch.
    shape : tuple
        (z, y, x) of the slab in voxels.
    """

    rows: NDArray[np.int64]
    starts: NDArray[Any]
    stops: NDArray[Any]
    shape: tuple[int, int, int]


def find_spans(plane: NDArray[Any]) -> Spans:
    """Find the voxels of a plane, (y, x): those that are set of bool, or 128 and more of uint8.

    Raises
    ------
    ShapeMismatchError
        If it is wider than `WIDEST`.
    """
    height, width = plane.shape
    if width > WIDEST:
        raise ShapeMismatchError(f"plane: got {width} voxels in a row, at most {WIDEST} can have spans; cut it in two")
    starts, stops = scratch.array("spans", (2, height * ((width + 1) // 2)), np.uint16)
    rows = np.empty(height + 1, np.int64)
    count = _find(_words(plane), width, Spans(rows, starts, stops, (1, height, width)))
    return Spans(rows, starts[:count].copy(), stops[:count].copy(), (1, height, width))


def complement(spans: Spans) -> Spans:
    """Return the other voxels of a slab."""
    starts, stops = np.empty((2, len(spans.starts) + len(spans.rows) - 1), spans.starts.dtype)
    rows = np.empty_like(spans.rows)
    count = _complement(spans, Spans(rows, starts, stops, spans.shape))
    return Spans(rows, starts[:count], stops[:count], spans.shape)


def paint(spans: Spans, z: int, out: NDArray[np.uint8]) -> None:
    """Write a plane of a slab, (y, x): 255 in its spans, else 0."""
    _paint(spans, z, out)


def stack(parts: Sequence[Spans]) -> Spans:
    """Put slabs of one height and width on top of each other, along z."""
    ends = np.cumsum([0, *(len(part.starts) for part in parts)])
    rows = [part.rows[:-1] + end for part, end in zip(parts, ends[:-1], strict=True)]
    return Spans(
        np.concatenate([*rows, ends[-1:]]),
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.stops for part in parts]),
        (sum(part.shape[0] for part in parts), *parts[0].shape[1:]),
    )


def _words(plane: NDArray[Any]) -> NDArray[np.uint64]:
    """Eight voxels each, of which the first bit counts; rows are filled up with 0 to whole `_WORDS`."""
    height, width = plane.shape
    if plane.dtype == np.uint8 and plane.flags.c_contiguous and width % (8 * _WORDS) == 0:
        return plane.view(np.uint64)
    padded = scratch.array("words", (height, -(-width // (8 * _WORDS)) * 8 * _WORDS), np.uint8)
    padded[:, :width] = plane if plane.dtype == np.uint8 else plane.astype(np.uint8) * np.uint8(255)
    padded[:, width:] = 0
    return padded.view(np.uint64)


@kernel
def _find(words: NDArray[np.uint64], width: int, out: Spans) -> int:
    """Find spans; most words hold what the voxel before them is, and eight of those are passed over at once."""
    opened = closed = 0
    for row in range(words.shape[0]):
        out.rows[row] = opened
        before = np.uint64(0)  # eight times the voxel before a word
        for block in range(words.shape[1] // _WORDS):
            others = np.uint64(0)
            for word in range(_WORDS * block, _WORDS * block + _WORDS):
                others |= words[row, word] ^ before
            if others == np.uint64(0):
                continue
            for word in range(_WORDS * block, _WORDS * block + _WORDS):
                if words[row, word] == before:
                    continue
                tops = (words[row, word] & np.uint64(0x8080808080808080)) >> np.uint64(7)
                voxels = np.int64((tops * np.uint64(0x0102040810204080)) >> np.uint64(56))  # a bit each
                changes = (voxels ^ (voxels << 1 | np.int64(opened > closed))) & 255
                while changes:
                    x = 8 * word + _FIRST_BIT[changes]
                    if opened > closed:
                        out.stops[closed] = x
                        closed += 1
                    else:
                        out.starts[opened] = x
                        opened += 1
                    changes &= changes - 1
                before = ~np.uint64(0) if opened > closed else np.uint64(0)
        if opened > closed:
            out.stops[closed] = width
            closed += 1
    out.rows[words.shape[0]] = opened
    return opened


@kernel
def _complement(spans: Spans, out: Spans) -> int:
    count = 0
    for row in range(spans.rows.size - 1):
        out.rows[row] = count
        begin = np.int64(0)
        for index in range(spans.rows[row], spans.rows[row + 1]):
            if spans.starts[index] > begin:
                out.starts[count], out.stops[count] = begin, spans.starts[index]
                count += 1
            begin = np.int64(spans.stops[index])
        if begin < spans.shape[2]:
            out.starts[count], out.stops[count] = begin, spans.shape[2]
            count += 1
    out.rows[spans.rows.size - 1] = count
    return count


@kernel
def _paint(spans: Spans, z: int, out: NDArray[np.uint8]) -> None:
    for y in range(out.shape[0]):
        row = z * out.shape[0] + y
        out[y] = 0
        for index in range(spans.rows[row], spans.rows[row + 1]):
            out[y, spans.starts[index] : spans.stops[index]] = 255
