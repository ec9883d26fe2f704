"""What is written is read back by other readers: tifffile, Pillow and libpng."""

from __future__ import annotations

import uuid
from pathlib import Path
from xml.etree import ElementTree as ET

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.images import slicefile
from pipeline.images.slicefile import TILE, Picture, write_png, write_tiff
from pipeline.images.stack import find_pages, read_page
from tests.builders import textured

VOXEL_SIZE_UM = (1.0, 0.7, 0.6)
LABELS = np.array([0, 127, 255], np.uint8)


def slices(shape: tuple[int, int, int], kind: str, seed: int = 3) -> NDArray[np.integer]:
    rng = np.random.default_rng(seed)
    if kind == "label":
        return np.asarray(rng.choice(LABELS, shape))
    return np.stack([textured(rng, shape[1:], kind) for _ in range(shape[0])])


def picture(values: NDArray[np.integer], kind: str, size: tuple[float, float, float] | None = VOXEL_SIZE_UM) -> Picture:
    return Picture("a label", values.shape, values.dtype, size, kind == "label")


def bands(plane: NDArray[np.integer], rows: int = 2 * TILE) -> list[NDArray[np.integer]]:
    return [plane[top : top + rows] for top in range(0, len(plane), rows)]


def save_tiff(path: Path, values: NDArray[np.integer], what: Picture, ome: bool) -> None:
    write_tiff(path, what, (tile for plane in values for band in bands(plane) for tile in what.encode_tiles(band)), ome)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "label"])
@pytest.mark.parametrize("ome", [False, True])
@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 512, 512), (2, 1100, 700)], ids=str)
def test_tiff_reads_back(tmp_path, kind, ome, shape):
    values, path = slices(shape, kind), tmp_path / "stack.ome.tif"
    what = picture(values, kind)
    save_tiff(path, values, what, ome)
    np.testing.assert_array_equal(tifffile.imread(path).reshape(shape), values)
    pages = find_pages([str(path)])
    np.testing.assert_array_equal([read_page(page) for page in pages], values, strict=True)
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == shape[0]
        for page in file.pages:
            assert (page.tilelength, page.tilewidth) == (TILE, TILE)
            assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
            assert page.predictor == (1 if kind == "label" else 2)
            assert page.tags["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER
            for tag, size in (("XResolution", 0.6), ("YResolution", 0.7)):
                above, below = page.tags[tag].value
                assert above / below == pytest.approx(1e4 / size, rel=1e-6)
        assert file.pages[0].software.startswith("kesm-pipeline")
        assert not file.is_bigtiff


def test_ome_xml_says_what_there_is(tmp_path):
    values = slices((3, 40, 50), "uint16")
    save_tiff(tmp_path / "a.ome.tif", values, picture(values, "uint16"), ome=True)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        (series,) = file.series
        assert (series.kind, series.axes, series.shape) == ("ome", "ZYX", values.shape)
        xml = file.ome_metadata
    root = ET.fromstring(xml)
    space = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
    assert root.tag == f"{space}OME"
    (image,) = root.findall(f"{space}Image")
    (pixels,) = image.findall(f"{space}Pixels")
    assert image.get("Name") == "a label"
    assert {key: pixels.get(key) for key in ("SizeX", "SizeY", "SizeZ", "SizeC", "SizeT", "Type")} == {
        "SizeX": "50", "SizeY": "40", "SizeZ": "3", "SizeC": "1", "SizeT": "1", "Type": "uint16",
    }  # fmt: skip
    assert [float(pixels.get(f"PhysicalSize{axis}")) for axis in "ZYX"] == [*VOXEL_SIZE_UM]
    assert {pixels.get(f"PhysicalSize{axis}Unit") for axis in "ZYX"} == {"µm"}
    blocks = pixels.findall(f"{space}TiffData")
    assert sum(int(block.get("PlaneCount", 1)) for block in blocks) == 3
    assert uuid.UUID(root.get("UUID"))
    assert root.get("Creator").startswith("kesm-pipeline")


def test_without_a_voxel_size_nothing_is_made_up(tmp_path):
    values = slices((2, 40, 50), "uint8")
    save_tiff(tmp_path / "a.ome.tif", values, picture(values, "uint8", None), ome=True)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert "PhysicalSize" not in file.ome_metadata
        assert file.pages[0].tags["ResolutionUnit"].value == tifffile.RESUNIT.NONE
    write_png(tmp_path / "a.png", picture(values, "uint8", None), [values[0]])
    with Image.open(tmp_path / "a.png") as image:
        assert "dpi" not in image.info


def test_large_stacks_are_big_tiffs(tmp_path, monkeypatch):
    values = slices((2, 600, 50), "uint8")
    for limit, big in ((values.nbytes, False), (values.nbytes - 1, True)):
        monkeypatch.setattr(slicefile, "_LARGEST_TIFF", limit)
        save_tiff(tmp_path / "a.ome.tif", values, picture(values, "uint8"), ome=True)
        with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
            assert file.is_bigtiff == big
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.ome.tif"), values)


@given(
    shape=st.tuples(st.just(1), st.integers(1, 140), st.integers(1, 40)),
    kind=st.sampled_from(["uint8", "uint16", "label"]),
    rows=st.integers(1, 150),
)
@settings(max_examples=40, deadline=None)
def test_png_reads_back_from_any_bands(tmp_path_factory, shape, kind, rows):
    (values,), path = slices(shape, kind), tmp_path_factory.mktemp("png") / "slice.png"
    write_png(path, picture(values[None], kind), bands(values, rows))
    np.testing.assert_array_equal(imagecodecs.png_decode(path.read_bytes()), values, strict=True)
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        assert image.mode == ("I;16" if kind == "uint16" else "L")
        np.testing.assert_array_equal(np.asarray(image), values)
        x, y = image.info["dpi"]
        assert (x, y) == (pytest.approx(25400 / 0.6, rel=1e-5), pytest.approx(25400 / 0.7, rel=1e-5))


def test_grey_levels_and_labels_become_smaller(tmp_path):
    rng = np.random.default_rng(0)
    values = np.add.outer(np.arange(1024) // 8, np.arange(1024) // 8).astype(np.uint8) + rng.integers(
        0, 4, (1024, 1024), np.uint8
    )
    write_png(tmp_path / "a.png", picture(values[None], "uint8"), bands(values))
    save_tiff(tmp_path / "a.tif", values[None], picture(values[None], "uint8"), ome=False)
    assert (tmp_path / "a.png").stat().st_size < values.size / 2
    assert (tmp_path / "a.tif").stat().st_size < values.size / 2
