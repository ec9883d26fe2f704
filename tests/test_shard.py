"""Shards that are whole by their checksums and wrong all the same; codes that others read are in `test_store`."""

from __future__ import annotations

from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from numcodecs import zstd

from pipeline.storage.shard import MISSING, ShardCodec, ShardDecoder

CODEC = ShardCodec((4, 4), (2, 2), "<u2", 7, 1)
VALUES = np.arange(16, dtype=np.uint16).reshape(4, 4)
WHOLE = (slice(0, 4), slice(0, 4))


def stored(folder: Path, values: np.ndarray = VALUES) -> Path:
    encoded = CODEC.encode(values)
    assert encoded is not None
    (folder / "shard").write_bytes(b"".join(encoded[0]))
    return folder / "shard"


def reindexed(file: Path, change: dict[tuple[int, int, int], int]) -> None:
    """Change offsets and lengths in the index of a shard, and its checksum with them."""
    data = file.read_bytes()
    index = np.frombuffer(data[-68:-4], "<u8").reshape(2, 2, 2).copy()
    for place, value in change.items():
        index[place] = value
    file.write_bytes(data[:-68] + index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little"))


def read(file: Path, window: tuple[slice, slice] = WHOLE) -> tuple[np.ndarray, int | None]:
    out = np.full([span.stop - span.start for span in window], 99, np.uint16)
    decoder = ShardDecoder(CODEC, memoryview(file.read_bytes()))
    decoder.read(window, out)
    return out, decoder.digest


def test_chunks_of_fill_are_not_stored(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[:2, 2:] = 7
    file = stored(tmp_path, values)
    index = np.frombuffer(file.read_bytes()[-68:-4], "<u8").reshape(2, 2, 2)
    assert (index == MISSING).all(axis=-1).tolist() == [[False, True], [False, False]]
    found, digest = read(file)
    np.testing.assert_array_equal(found, values)
    assert digest == CODEC.encode(values)[1]


@pytest.mark.parametrize("shape", [(4, 4), (4, 3), (3, 4), (2, 2), (1, 1), (4, 1), (1, 3)], ids=str)
def test_shard_at_the_edge_is_filled_up(tmp_path: Path, shape: tuple[int, int]) -> None:
    values = VALUES[: shape[0], : shape[1]]
    found, digest = read(stored(tmp_path, values), (slice(0, shape[0]), slice(0, shape[1])))
    np.testing.assert_array_equal(found, values)
    assert digest == CODEC.encode(values)[1]


def test_fill_that_somebody_stored_is_fill(tmp_path: Path) -> None:
    file = stored(tmp_path)
    chunk = zstd.compress(np.full((2, 2), 7, "<u2").data.cast("B"), 3, False)
    file.write_bytes(chunk + file.read_bytes()[-68:])
    reindexed(file, {place: [0, len(chunk)][place[2]] for place in np.ndindex(2, 2, 2)})
    found, digest = read(file)
    assert (found == 7).all()
    assert digest is None


WRONG = {
    "offset beyond the end": ({(1, 0, 0): 10**6}, "its index points beyond its end"),
    "length beyond the end": ({(1, 0, 1): 10**6}, "its index points beyond its end"),
    "sum beyond any number": ({(1, 0, 0): 2**64 - 5, (1, 0, 1): 10}, "its index points beyond its end"),
    "offset without a length": ({(1, 0, 1): MISSING}, "its index points beyond its end"),
    "length without an offset": ({(1, 0, 0): MISSING}, "its index points beyond its end"),
    "nothing stored": ({(1, 0, 1): 0}, "a chunk of 8 bytes has 0"),
    "a part of a frame": ({(1, 0, 1): 20}, "ZSTD|size"),
}


@pytest.mark.parametrize(("change", "reason"), WRONG.values(), ids=WRONG)
def test_index_that_lies_is_found(tmp_path: Path, change: dict[tuple[int, int, int], int], reason: str) -> None:
    file = stored(tmp_path)
    reindexed(file, change)
    with pytest.raises((ValueError, RuntimeError), match=reason):
        read(file)


@pytest.mark.parametrize("voxels", [3, 5])
def test_chunk_of_another_size_is_found(tmp_path: Path, voxels: int) -> None:
    file = stored(tmp_path)
    chunk = zstd.compress(np.ones(voxels, "<u2").data.cast("B"), 1, True)
    file.write_bytes(chunk + file.read_bytes()[-68:])
    reindexed(file, {place: [0, len(chunk)][place[2]] for place in np.ndindex(2, 2, 2)})
    with pytest.raises((ValueError, RuntimeError)):
        read(file)


def test_only_the_chunks_that_are_asked_for_are_read(tmp_path: Path) -> None:
    file = stored(tmp_path)
    file.write_bytes(b"\0" + file.read_bytes()[1:])  # the first chunk is damaged
    np.testing.assert_array_equal(read(file, (slice(2, 4), slice(1, 4)))[0], VALUES[2:, 1:])
    with pytest.raises((ValueError, RuntimeError)):
        read(file)
