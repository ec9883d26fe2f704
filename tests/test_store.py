"""Shards, tables and documents on disk: what is written is read back, and what is damaged is named."""

from __future__ import annotations

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
import zarrs  # noqa: F401  (registers its codec pipeline)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import (
    DamageError,
    LockedError,
    NotAVolumeError,
    ShapeMismatchError,
)
from pipeline.geometry import Box
from pipeline.storage import store
from pipeline.storage.shard import ShardCodec
from pipeline.storage.store import ALL_FILL, SHARD, ShardedArray, create_document, read_document
from pipeline.storage.table import Table
from tests.builders import shard_digests

PIPELINES = {"zarrs": "zarrs.ZarrsCodecPipeline", "zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
SHAPE = (2, 2100, 2150)  # two by two shards, three of them at an edge
FIRST = Box((0, 0, 0), (1, 2048, 2048))
CORNER = Box((0, 2048, 2048), (1, 2100, 2150))
SLICE = Box((0, 0, 0), (1, 2100, 2150))


def build(folder, dtype="uint8", fill=0, shape=SHAPE):
    return ShardedArray.create(folder / "0", shape, dtype, fill)


def opened(array, pipeline):
    """The array as others read and write it."""
    with zarr.config.set({"codec_pipeline.path": PIPELINES[pipeline]}):
        return zarr.open_array(array.path, mode="r+")


def noise(shape, dtype="uint8", seed=1):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def shard_files(array):
    return sorted(path.relative_to(array.path).as_posix() for path in array.path.rglob("c/*/*/*"))


@pytest.fixture
def staging(tmp_path):
    folder = tmp_path / "staging"
    folder.mkdir()
    return folder


# ---- shards


@pytest.mark.parametrize("fill", [0, 127])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_what_is_written_is_read_back(tmp_path, staging, dtype, fill):
    array = build(tmp_path, dtype, fill)
    values = noise(SLICE.shape, dtype)
    array.write(SLICE, values, staging)
    assert shard_files(array) == ["c/0/0/0", "c/0/0/1", "c/0/1/0", "c/0/1/1"]
    assert not any(staging.iterdir())
    np.testing.assert_array_equal(array.read(SLICE), values)
    across = Box((0, 2040, 2000), (2, 2060, 2149))
    out = np.full(across.shape, 9, dtype)
    assert array.read(across, out) is out
    np.testing.assert_array_equal(out[:1], values[:, 2040:2060, 2000:2149])
    assert (out[1] == fill).all()
    for pipeline in PIPELINES:
        np.testing.assert_array_equal(opened(array, pipeline)[:1], values)


@pytest.fixture(scope="module")
def gappy(tmp_path_factory):
    """An array of which some chunks, and one shard, are fill; and its values."""
    folder = tmp_path_factory.mktemp("gappy")
    array, values = build(folder), noise(SLICE.shape)
    values[0, :1024, 1024:2048] = 0
    values[0, 2048:, :2048] = 0
    array.write(SLICE, values, folder)
    return array, values


@settings(deadline=None, max_examples=40)
@given(
    top=st.integers(0, 2099), left=st.integers(0, 2149), height=st.integers(1, 2100), width=st.integers(1, 2150),
    strided=st.booleans(),
)  # fmt: skip
def test_any_box_is_read(gappy, top, left, height, width, strided):
    array, values = gappy
    box = Box((0, top, left), (1, top + height, left + width)) & Box.whole(array.shape)
    out = np.full((1, box.shape[1], 2 * box.shape[2] if strided else box.shape[2]), 9, np.uint8)
    out = out[:, :, : box.shape[2]]
    array.read(box, out)
    np.testing.assert_array_equal(out, values[box.slices])


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_what_others_have_written_is_read(tmp_path, pipeline, dtype):
    array, values = build(tmp_path, dtype), noise(SLICE.shape, dtype)
    values[0, :1024, 1024:] = 0
    opened(array, pipeline)[:1] = values
    np.testing.assert_array_equal(array.read(SLICE), values)


@pytest.mark.parametrize(
    "how",
    [
        {"compressors": zarr.codecs.BloscCodec()},
        {"shards": None},
        {"shards": (2, 2048, 2048)},
        {"filters": zarr.codecs.TransposeCodec(order=(0, 2, 1))},
    ],
    ids=["codec", "no shards", "shards of two slices", "filter"],
)
def test_an_array_that_is_stored_in_another_way_is_refused(tmp_path, how):
    ours = {"chunks": (1, 1024, 1024), "shards": SHARD, "compressors": store.CODEC}
    zarr.create_array(tmp_path / "0", shape=SHAPE, dtype="uint8", **{**ours, **how})
    with pytest.raises(DamageError, match="0: is not stored as kesm stores images and labels"):
        ShardedArray(tmp_path / "0")


def test_a_shard_is_replaced_alone(tmp_path, staging):
    array = build(tmp_path)
    values = noise(SLICE.shape)
    array.write(SLICE, values, staging)
    untouched = {name: (array.path / name).read_bytes() for name in shard_files(array)[:-1]}
    array.write(CORNER, noise(CORNER.shape, seed=2), staging)
    values[CORNER.slices] = noise(CORNER.shape, seed=2)
    np.testing.assert_array_equal(array.read(SLICE), values)
    assert {name: (array.path / name).read_bytes() for name in untouched} == untouched


def test_a_reader_meets_the_old_shard_or_the_new_one(tmp_path, staging):
    array = build(tmp_path)
    array.write(CORNER, noise(CORNER.shape), staging)
    old = array.shard_file((0, 1, 1)).read_bytes()
    with array.shard_file((0, 1, 1)).open("rb") as reader:
        array.write(CORNER, noise(CORNER.shape, seed=2), staging)
        assert reader.read() == old
    assert array.shard_file((0, 1, 1)).read_bytes() != old


@pytest.mark.parametrize("fill", [0, 127])
def test_a_shard_of_fill_has_no_file(tmp_path, staging, fill):
    array = build(tmp_path, fill=fill)
    values = np.full(SLICE.shape, fill, np.uint8)
    values[0, 2060, 7] = 255
    assert array.write(SLICE, values, staging).ravel().tolist().count(ALL_FILL) == 3
    assert shard_files(array) == ["c/0/1/0"]
    np.testing.assert_array_equal(array.read(SLICE), values)
    values[0, 2060, 7] = fill
    array.write(SLICE, values, staging)
    assert shard_files(array) == []
    np.testing.assert_array_equal(array.read(SLICE), values)


DAMAGE = {
    "empty": lambda _: b"",
    "garbage": lambda _: b"not a shard",
    "half-written": lambda data: data[: len(data) // 2],
    "all-but-one-byte": lambda data: data[:-1],
    "first-byte": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "middle-byte": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 16]) + data[len(data) // 2 + 1 :]
    ),
    "last-byte": lambda data: data[:-1] + bytes([data[-1] ^ 128]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_named_and_can_be_replaced(tmp_path, staging, damage):
    array = build(tmp_path)
    array.write(FIRST, np.full(FIRST.shape, 3, np.uint8), staging)
    values = noise(CORNER.shape)
    array.write(CORNER, values, staging)
    file = array.shard_file((0, 1, 1))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DamageError, match=r"0: shard c/0/1/1 cannot be decoded \("):
        array.read(SLICE)
    assert (array.read(FIRST) == 3).all()
    array.write(CORNER, values, staging)
    np.testing.assert_array_equal(array.read(CORNER), values)


def test_all_damaged_shards_are_named(tmp_path, staging):
    array = build(tmp_path)
    array.write(SLICE, noise(SLICE.shape), staging)
    for shard in ((0, 0, 1), (0, 1, 0)):
        array.shard_file(shard).write_bytes(b"")
    with pytest.raises(DamageError, match=r"shard c/0/0/1 cannot be decoded .* shard c/0/1/0 cannot be decoded"):
        array.read(SLICE)


def test_a_box_must_lie_in_the_array(tmp_path):
    array = build(tmp_path)
    with pytest.raises(ShapeMismatchError, match="z=0:1,y=0:9999,x=0:1 reaches beyond its"):
        array.read(Box((0, 0, 0), (1, 9999, 1)))


@pytest.mark.parametrize(
    "out",
    [
        np.empty((1, 4, 5), np.uint8),
        np.empty((1, 4, 4), np.uint16),
    ],
    ids=["shape", "dtype"],
)
def test_a_buffer_must_fit(tmp_path, out):
    with pytest.raises(ShapeMismatchError, match=r"0: buffer of .* for a box of \(1, 4, 4\)"):
        build(tmp_path).read(Box((0, 0, 0), (1, 4, 4)), out)


@pytest.mark.parametrize(
    ("box", "shape"),
    [
        (Box((0, 0, 0), (1, 1024, 2048)), (1, 1024, 2048)),
        (Box((0, 0, 5), (1, 2048, 2048)), (1, 2048, 2043)),
        (Box((0, 2048, 0), (1, 4096, 2048)), (1, 2048, 2048)),
        (FIRST, (1, 2048, 2047)),
        (FIRST, (2048, 2048)),
    ],
    ids=["part", "offset", "beyond-the-edge", "values-too-small", "values-of-two-axes"],
)
def test_only_whole_shards_are_written(tmp_path, staging, box, shape):
    array = build(tmp_path)
    with pytest.raises(ShapeMismatchError, match="is no box of whole shards"):
        array.write(box, np.ones(shape, np.uint8), staging)
    assert shard_files(array) == []
    assert not any(staging.iterdir())


def test_threads_write_shards_side_by_side(tmp_path, staging):
    array = build(tmp_path)
    values = noise(SLICE.shape)
    boxes = [array.shards.box(shard) for shard in array.shards.cover(SLICE)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda box: array.write(box, values[box.slices], staging), boxes))
    np.testing.assert_array_equal(array.read(SLICE), values)


def test_resize_keeps_what_stays_and_forgets_what_goes(tmp_path, staging):
    array = build(tmp_path)
    second = Box((1, 0, 0), (2, 2048, 2048))
    array.write(FIRST, np.full(FIRST.shape, 7, np.uint8), staging)
    array.write(second, np.full(FIRST.shape, 8, np.uint8), staging)
    array.resize(5)
    assert array.shape == array.shards.shape == (5, *SHAPE[1:])
    assert [int(array.read(Box((z, 0, 0), (z + 1, 1, 1)))[0, 0, 0]) for z in range(5)] == [7, 8, 0, 0, 0]
    array.resize(1)
    array.resize(2)
    assert shard_files(array) == ["c/0/0/0"]
    assert [int(array.read(Box((z, 0, 0), (z + 1, 1, 1)))[0, 0, 0]) for z in range(2)] == [7, 0]


# ---- digests


SMALL = (6, 7)


@settings(deadline=None, max_examples=60)
@given(
    values=arrays(np.uint16, SMALL, elements=st.sampled_from([0, 1, 256])),
    other=arrays(np.uint16, SMALL, elements=st.sampled_from([0, 1, 256])),
    fill=st.sampled_from([0, 1]),
)
def test_digests_differ_where_voxels_differ(values, other, fill):
    codec = ShardCodec((8, 8), (4, 4), "<u2", fill, 1)
    digests = [None if encoded is None else encoded[1] for encoded in map(codec.encode, (values, other))]
    assert (digests[0] == digests[1]) == np.array_equal(values, other)
    assert (digests[0] is None) == bool((values == fill).all())


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_each_shard_has_its_digest_when_it_is_written_and_when_it_is_read(tmp_path, staging, dtype):
    array, values = build(tmp_path, dtype), noise(SLICE.shape, dtype)
    values[0, :2048, 2048:] = 0
    written = array.write(SLICE, values, staging)
    assert (written.shape, written.dtype) == ((1, 2, 2), np.uint64)
    np.testing.assert_array_equal(written, shard_digests(array, SLICE, values))
    for shard in array.shards.cover(SLICE):
        part = array.shards.box(shard)
        assert array.read_shard(shard, part, np.empty(part.shape, dtype)) == written[shard]
    values[0, 2047, 2047] ^= 1
    np.testing.assert_array_equal(array.write(SLICE, values, staging) != written, [[[True, False], [False, False]]])


@pytest.mark.parametrize(("hashed", "digest"), [(0, 2), (1, 3), (2, 2), (2**64 - 1, 2**64 - 1)])
def test_reserved_digests_are_never_given(monkeypatch, hashed, digest):
    monkeypatch.setattr(store.xxhash, "xxh3_64_intdigest", lambda _: hashed)
    assert store.digest_bytes(b"") == digest


# ---- documents


def test_a_document_is_replaced_whole(tmp_path):
    create_document(tmp_path / "run", {"recipe": {"tile": 512}, "block": [1, 2, 3]})
    create_document(tmp_path / "run", {"block": [4, 5, 6]})
    assert read_document(tmp_path / "run") == {"block": [4, 5, 6]}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["zarr.json"]


def test_replacing_a_document_keeps_what_lies_below(tmp_path):
    create_document(tmp_path / "run", {})
    create_document(tmp_path / "run" / "failures", {"why": "x"})
    create_document(tmp_path / "run", {"a": 1})
    assert read_document(tmp_path / "run" / "failures") == {"why": "x"}


def test_no_document(tmp_path):
    assert read_document(tmp_path / "missing") is None
    assert read_document(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{"], ids=["empty", "cut"])
def test_a_foreign_document_is_refused(tmp_path, text):
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(NotAVolumeError, match=r"its zarr\.json cannot be read"):
        read_document(tmp_path)


def test_an_array_is_no_document(tmp_path):
    build(tmp_path)
    with pytest.raises(NotAVolumeError, match="0: is a Zarr array; name the folder of the volume"):
        read_document(tmp_path / "0")


# ---- the machine


def test_the_settings_of_zarr_are_left_as_they_were(tmp_path, staging):
    before = copy.deepcopy(zarr.config.config)
    array = build(tmp_path)
    array.write(FIRST, np.ones(FIRST.shape, np.uint8), staging)
    array.read(FIRST)
    Table.create(tmp_path / "table", (2,), "uint8", (1,)).write((slice(0, 1),), 1)
    assert zarr.config.config == before


def test_settings_of_the_process_change_nothing_on_disk(tmp_path, staging):
    settings = {"array.order": "F", "array.write_empty_chunks": True, "default_zarr_format": 2}
    for pipeline, path in PIPELINES.items():
        with zarr.config.set({**settings, "codec_pipeline.path": path}):
            array = build(tmp_path / pipeline)
            values = noise(SLICE.shape)
            values[FIRST.slices] = 0
            array.write(SLICE, values, staging)
            create_document(tmp_path / pipeline / "run", {"a": 1})
            table = Table.create(tmp_path / pipeline / "table", (2, 3), "uint8", (1, 3))
            np.testing.assert_array_equal(array.read(SLICE), values)
        assert shard_files(array) == ["c/0/0/1", "c/0/1/0", "c/0/1/1"]
        assert read_document(tmp_path / pipeline / "run") == {"a": 1}
        assert {path.name for path in table.path.iterdir()} == {"zarr.json"}


def test_only_zarr_lies_in_a_store(tmp_path, staging):
    array = build(tmp_path)
    array.write(SLICE, noise(SLICE.shape), staging)
    assert {path.name for path in array.path.iterdir()} == {"zarr.json", "c"}
    assert all(part.isdigit() for file in shard_files(array) for part in file.split("/")[1:])
    assert opened(array, "zarr").fill_value == 0
    assert opened(array, "zarr").shards == SHARD


TOO_MANY_FILES = """
import resource, sys
from pathlib import Path
from pipeline.errors import StorageError
from pipeline.geometry import Box
from pipeline.storage.store import ShardedArray
array = ShardedArray(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    array.read(Box((0, 2048, 2048), (1, 2100, 2150)))
except StorageError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits are set the POSIX way")
def test_a_machine_without_files_left_is_no_damage(tmp_path, staging):
    array = build(tmp_path)
    array.write(CORNER, noise(CORNER.shape), staging)
    command = [sys.executable, "-c", TOO_MANY_FILES, str(array.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "too many open files; raise the limit" in done.stdout


def test_staging_that_was_swept_stops_the_write(tmp_path, staging):
    array = build(tmp_path)
    array.write(SLICE, noise(SLICE.shape), staging)
    before = array.read(SLICE)
    staging.rmdir()
    with pytest.raises(LockedError, match="its staging folder was removed; another process has taken over"):
        array.write(SLICE, noise(SLICE.shape, seed=2), staging)
    np.testing.assert_array_equal(array.read(SLICE), before)
    assert not staging.exists()
