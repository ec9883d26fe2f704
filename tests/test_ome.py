"""What is written is OME-Zarr 0.5, by two independent validators."""

from __future__ import annotations

import numpy as np
import pytest
import yaozarrs
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05.image import Image
from ome_zarr_models.v05.image_label import ImageLabel
from ome_zarr_models.v05.labels import Labels
from yaozarrs.v05 import Image as YaoImage
from yaozarrs.v05 import LabelImage, LabelsGroup

from pipeline.storage.ome import MASK_COLOURS, TRUTH_COLOURS, image_metadata, label_metadata, voxel_size
from pipeline.storage.volume import Volume

SHAPE = (2, 1100, 700)  # three levels
SIZES = pytest.mark.parametrize("size", [None, (1.0, 0.7, 0.6)], ids=["no-voxel-size", "voxel-size"])


def build(folder, size, dtype="uint8"):
    """Volume with an image, a truth of its first slice, and an empty mask."""
    volume = Volume.create(folder / "brain.zarr", SHAPE, dtype, size)
    volume.staging.mkdir()
    image = np.random.default_rng(1).integers(0, 256, SHAPE[1:], dtype)
    for z in range(SHAPE[0]):
        volume.slices.record(z, volume.image.write_slice(z, image, volume.staging), f"{z}.png", 1)
    truth, ledger = volume.create_truth("groundtruth", {"vessel": 1})
    ledger.record(0, truth.write_slice(0, np.where(image > 99, 255, 0).astype(np.uint8), volume.staging), "0.png", 1)
    volume.create_mask("otsu")
    volume.publish_label("groundtruth")
    volume.publish_label("otsu")
    return volume


@SIZES
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_yaozarrs_accepts_a_volume(tmp_path, size, dtype):
    volume = build(tmp_path, size, dtype)
    for path in (volume.path, volume.path / "labels", *(volume.path / "labels" / name for name in volume.labels())):
        yaozarrs.validate_zarr_store(str(path))
    assert isinstance(yaozarrs.open_group(str(volume.path)).ome_metadata(), YaoImage)
    labels = yaozarrs.open_group(str(volume.path / "labels")).ome_metadata()
    assert isinstance(labels, LabelsGroup)
    assert labels.labels == ["groundtruth", "otsu"]
    assert isinstance(yaozarrs.open_group(str(volume.path / "labels" / "otsu")).ome_metadata(), LabelImage)


@SIZES
def test_ome_zarr_models_accepts_a_volume(tmp_path, size):
    volume = build(tmp_path, size)
    image = Image.from_zarr(zarr.open_group(volume.path, mode="r"))
    (scales,) = image.ome_attributes.multiscales
    assert [axis.name for axis in scales.axes] == ["z", "y", "x"]
    assert [axis.unit for axis in scales.axes] == [None if size is None else "micrometer"] * 3
    assert [dataset.path for dataset in scales.datasets] == ["0", "1", "2"]
    labels = Labels.from_zarr(zarr.open_group(volume.path / "labels", mode="r"))
    assert labels.ome_attributes.labels == ["groundtruth", "otsu"]
    for name, colours in (("groundtruth", TRUTH_COLOURS), ("otsu", MASK_COLOURS)):
        label = ImageLabel.from_zarr(zarr.open_group(volume.path / "labels" / name, mode="r"))
        assert len(label.ome_attributes.multiscales[0].datasets) == len(scales.datasets)
        written = {colour.label_value: tuple(colour.rgba) for colour in label.ome_attributes.image_label.colors}
        assert written == colours
        assert label.ome_attributes.image_label.source.image == "../../"


def test_the_validators_look_at_the_labels(tmp_path):
    volume = build(tmp_path, None)
    path = volume.path / "labels" / "otsu"
    zarr.open_group(path, mode="r+").attrs["ome"] = label_metadata("otsu", 2, None, MASK_COLOURS)
    with pytest.raises(ValueError, match="otsu"):
        yaozarrs.validate_zarr_store(str(volume.path))


@SIZES
def test_every_level_states_where_its_voxels_lie(size):
    (scales,) = image_metadata("brain", 4, size, "local mean")["multiscales"]
    unit = np.array(size or (1, 1, 1))
    for level, dataset in enumerate(scales["datasets"]):
        stated = {entry["type"]: np.array(entry[entry["type"]]) for entry in dataset["coordinateTransformations"]}
        steps = np.array([1, 2**level, 2**level])
        shift = stated.get("translation", np.zeros(3))
        np.testing.assert_allclose(shift, unit * [0, (2**level - 1) / 2, (2**level - 1) / 2])
        for voxel in ((0, 0, 0), (1, 2, 3)):
            # The centre of a voxel is the mean of the centres of the level-0 voxels that it was made from.
            made_from = [voxel * steps + offset for offset in np.ndindex(*steps)]
            np.testing.assert_allclose(stated["scale"] * voxel + shift, unit * np.mean(made_from, axis=0))


def test_the_first_level_has_no_translation():
    first = image_metadata("brain", 2, (1.0, 0.7, 0.6), "local mean")["multiscales"][0]["datasets"][0]
    assert first == {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 0.7, 0.6]}]}


def test_what_nobody_annotated_is_transparent():
    colours = label_metadata("truth", 1, None, TRUTH_COLOURS)["image-label"]["colors"]
    assert [colour["rgba"][3] for colour in colours if colour["label-value"] == 127] == [0]
    assert [colour["rgba"][3] for colour in colours if colour["label-value"] == 255] == [255]


lengths = st.floats(1e-3, 1e6)


@settings(deadline=None, max_examples=25)
@given(size=st.tuples(lengths, lengths, lengths), levels=st.integers(1, 6))
def test_a_voxel_size_is_read_back(size, levels):
    assert voxel_size(image_metadata("brain", levels, size, "local mean")) == size
    assert voxel_size(image_metadata("brain", levels, None, "local mean")) is None


@pytest.mark.parametrize("length", [0.0, -1.0, 9e-4, 1.1e6, float("nan"), float("inf")])
def test_a_length_that_no_voxel_has_is_as_if_there_were_none(length):
    assert voxel_size(image_metadata("brain", 1, (1.0, length, 1.0), "local mean")) is None
