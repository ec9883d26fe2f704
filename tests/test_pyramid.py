"""Reductions against slow oracles, for every parity of shape; levels however a slice is written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import DamageError, ShapeMismatchError
from pipeline.geometry import Box
from pipeline.storage.pyramid import Pyramid, level_shapes, reduce_image, reduce_label, reduced_levels
from tests.builders import shard_digests

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def halved(shape):
    return (shape[0] + 1) // 2, (shape[1] + 1) // 2


def groups(plane):
    """Voxels that exist in each 2x2 group, by their place in the smaller plane."""
    for row, column in np.ndindex(halved(plane.shape)):
        yield (row, column), plane[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]


def slow_image(plane):
    out = np.zeros(halved(plane.shape), plane.dtype)
    for place, group in groups(plane):
        out[place] = int(np.floor(group.mean(dtype=np.float64) + 0.5))
    return out


def slow_label(plane):
    out = np.zeros(halved(plane.shape), np.uint8)
    for place, group in groups(plane):
        if (group == 255).any():
            out[place] = 255
        elif (group == 127).all():
            out[place] = 127
    return out


def reduced(reduce, plane):
    out = np.full(halved(plane.shape), 77, plane.dtype)
    reduce(plane, out)
    return out


@settings(deadline=None, max_examples=60)
@given(
    plane=st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda dtype: arrays(dtype, SIDES, elements=st.integers(0, np.iinfo(dtype).max))
    )
)
def test_image_is_the_mean_rounded_half_up(plane):
    np.testing.assert_array_equal(reduced(reduce_image, plane), slow_image(plane))


@settings(deadline=None, max_examples=60)
@given(plane=arrays(np.uint8, SIDES, elements=st.sampled_from([0, 127, 255])))
def test_a_vessel_survives_in_a_label(plane):
    np.testing.assert_array_equal(reduced(reduce_label, plane), slow_label(plane))


@pytest.mark.parametrize("shape", [(4, 6), (3, 6), (4, 5), (3, 5), (1, 1), (1, 4), (4, 1)], ids=str)
def test_kernels_as_plain_python(shape):
    rng = np.random.default_rng(shape)
    label = rng.choice(np.array([0, 127, 255], np.uint8), shape)
    np.testing.assert_array_equal(reduced(reduce_label.py_func, label), slow_label(label))
    for dtype in (np.uint8, np.uint16):
        image = rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
        np.testing.assert_array_equal(reduced(reduce_image.py_func, image), slow_image(image))


@pytest.mark.parametrize(
    ("group", "mean"),
    [
        ([[0, 0], [0, 1]], 0),
        ([[0, 0], [1, 1]], 1),
        ([[254, 255], [255, 255]], 255),
        ([[1, 2]], 2),
        ([[7]], 7),
        ([[65535, 65535], [65535, 65533]], 65535),
    ],
    ids=["quarter", "half-goes-up", "uint8-does-not-overflow", "half-of-two", "alone", "uint16-does-not-overflow"],
)
def test_mean_of_one_group(group, mean):
    plane = np.array(group, np.uint16 if np.max(group) > 255 else np.uint8)
    assert reduced(reduce_image, plane).tolist() == [[mean]]


@pytest.mark.parametrize(
    ("group", "value"),
    [
        ([[0, 127], [127, 255]], 255),
        ([[127, 127], [127, 127]], 127),
        ([[127, 127], [127, 0]], 0),
        ([[0, 0], [0, 0]], 0),
        ([[127], [127]], 127),
        ([[127], [0]], 0),
    ],
    ids=["vessel", "not-annotated", "partly-annotated", "background", "odd-column", "odd-column-partly"],
)
def test_value_of_one_group(group, value):
    assert reduced(reduce_label, np.array(group, np.uint8)).tolist() == [[value]]


@pytest.mark.parametrize(
    ("shape", "shapes"),
    [
        ((512, 512), [(512, 512)]),
        ((1, 1), [(1, 1)]),
        ((513, 100), [(513, 100), (257, 50)]),
        ((100, 1025), [(100, 1025), (50, 513), (25, 257)]),
        ((8026, 17480), [(8026, 17480), (4013, 8740), (2007, 4370), (1004, 2185), (502, 1093), (251, 547), (126, 274)]),
    ],
    ids=["one-tile", "one-voxel", "tall", "wide", "kesm"],
)
def test_levels_end_where_one_tile_holds_them(shape, shapes):
    assert level_shapes(shape) == shapes


@pytest.mark.parametrize(
    ("reduce", "slow"), [(reduce_image, slow_image), (reduce_label, slow_label)], ids=["image", "label"]
)
def test_each_level_is_made_from_the_one_before(reduce, slow):
    plane = np.random.default_rng(5).choice(np.array([0, 127, 255], np.uint8), (33, 1027), p=[0.9, 0.09, 0.01])
    levels = list(reduced_levels(plane, reduce))
    assert [level.shape for level in levels] == level_shapes(plane.shape)[1:]
    for level in levels:
        plane = slow(plane)
        np.testing.assert_array_equal(level, plane)


@pytest.fixture(autouse=True)
def staging(tmp_path):
    (tmp_path / "staging").mkdir()


def noise(shape, dtype, seed=3):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def stored(pyramid, z=0):
    """Voxels of all levels of a slice."""
    return [array.read(Box((z, 0, 0), (z + 1, *array.shape[1:])))[0] for array in pyramid.levels]


def by_chunks(pyramid, image, staging):
    box = Box.of_slice(0, image.shape)
    writer = pyramid.writer(box, staging, with_levels=True)
    for shard in pyramid.full.shards.parts(box):
        for part in pyramid.full.chunks.parts(shard):
            writer.write(part, image[None][part.slices])
    return writer.finish()[0]


def by_shards(pyramid, image, staging):
    whole = Box.of_slice(0, image.shape)
    writer = pyramid.writer(whole, staging, with_levels=False)
    for part in reversed(list(pyramid.full.shards.parts(whole))):
        writer.write(part, image[None][part.slices])
    digests = shard_digests(pyramid.full, whole, image[None])[0]
    pyramid.rebuild_levels(0, digests, staging)
    return digests


@pytest.mark.parametrize("write", [by_chunks, by_shards, lambda *given: given[0].write_slice(0, *given[1:])],
                         ids=["strips", "shards", "slice"])  # fmt: skip
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 2100, 4200), "uint8"), ((1, 2049, 513), "uint16"), ((1, 300, 512), "uint8")],
    ids=["shards", "odd", "one-level"],
)
def test_levels_are_the_same_however_a_slice_is_written(tmp_path, shape, dtype, write):
    image = noise(shape[1:], dtype)
    pyramid = Pyramid.create(tmp_path / "image", shape, dtype, 0, reduce_image)
    assert [array.shape[1:] for array in pyramid.levels] == level_shapes(shape[1:])
    digests = write(pyramid, image, tmp_path / "staging")
    expected = [image, *reduced_levels(image, reduce_image)]
    for got, level in zip(stored(pyramid), expected, strict=True):
        np.testing.assert_array_equal(got, level)
    np.testing.assert_array_equal(digests, shard_digests(pyramid.full, Box.of_slice(0, image.shape), image[None])[0])
    assert not any((tmp_path / "staging").iterdir())


def test_levels_built_again_replace_what_was_there(tmp_path):
    pyramid = Pyramid.create(tmp_path / "image", (2, 2100, 600), "uint8", 0, reduce_image)
    for z in range(2):
        digests = pyramid.write_slice(z, noise((2100, 600), "uint8", seed=z), tmp_path / "staging")
    expected = stored(pyramid, 1)
    for array in pyramid.levels[1:]:
        array.write(
            Box((1, 0, 0), (2, *array.shape[1:])), np.zeros((1, *array.shape[1:]), np.uint8), tmp_path / "staging"
        )
    pyramid.rebuild_levels(1, digests, tmp_path / "staging")
    for got, level in zip(stored(pyramid, 1), expected, strict=True):
        np.testing.assert_array_equal(got, level)
    np.testing.assert_array_equal(stored(pyramid, 0)[0], noise((2100, 600), "uint8", seed=0))
    with pytest.raises(DamageError, match="shard c/0/0/0 has other voxels than were recorded"):
        pyramid.rebuild_levels(0, digests, tmp_path / "staging")


def test_other_shards_than_were_recorded_are_refused(tmp_path):
    pyramid = Pyramid.create(tmp_path / "image", (1, 600, 40), "uint8", 0, reduce_image)
    metadata = tmp_path / "image" / "0" / "zarr.json"
    metadata.write_text(metadata.read_text().replace("2048", "1024"))
    with pytest.raises(DamageError, match=r"0: has shards of \(1, 1024, 1024\), not \(1, 2048, 2048\)"):
        _ = Pyramid(pyramid.path, 2, reduce_image).full


def test_levels_of_a_label_keep_its_vessels(tmp_path):
    pyramid = Pyramid.create(tmp_path / "label", (2, 1030, 520), "uint8", 127, reduce_label)
    label = np.full((1030, 520), 127, np.uint8)
    label[:600] = 0
    label[700, 300] = 255
    pyramid.write_slice(1, label, tmp_path / "staging")
    top = stored(pyramid, 1)[-1]
    assert top.shape == (258, 130)
    assert np.argwhere(top == 255).tolist() == [[175, 75]]
    assert (top[:150] == 0).all()
    assert np.count_nonzero(top[150:] == 127) == (258 - 150) * 130 - 1
    assert all((level == 127).all() for level in stored(pyramid, 0))


def test_a_pyramid_grows(tmp_path):
    pyramid = Pyramid.create(tmp_path / "image", (1, 600, 40), "uint8", 0, reduce_image)
    pyramid.write_slice(0, noise((600, 40), "uint8"), tmp_path / "staging")
    pyramid.resize(3)
    assert pyramid.full.shape == (3, 600, 40)
    assert [array.shape[0] for array in pyramid.levels] == [3, 3]
    np.testing.assert_array_equal(stored(pyramid, 0)[0], noise((600, 40), "uint8"))
    assert not stored(pyramid, 2)[1].any()


def test_only_whole_chunks_are_written(tmp_path):
    pyramid = Pyramid.create(tmp_path / "image", (1, 2100, 40), "uint8", 0, reduce_image)
    with pytest.raises(ShapeMismatchError, match="is no box of chunks of a shard"):
        pyramid.writer(Box.whole((1, 2100, 40)), tmp_path, with_levels=True).write(
            Box((0, 0, 0), (1, 1000, 40)), np.ones((1, 1000, 40), np.uint8)
        )
