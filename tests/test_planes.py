from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline.errors import ImageFileError, UnsupportedImageError
from pipeline.images.stack import find_pages, read_page

RNG = np.random.default_rng(7)
VOLUME = RNG.integers(0, 256, (5, 48, 64), dtype=np.uint8)
HYPER = RNG.integers(0, 65536, (5, 2, 24, 32), dtype=np.uint16)  # z, c, y, x


def read_all(*paths: Path, channel: str | int | None = None) -> np.ndarray:
    return np.stack([read_page(page) for page in find_pages(paths, channel)])


def write(path: Path, data: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, data, **{"photometric": "minisblack", **options})
    return path


def write_pages(path: Path, pages: np.ndarray, description: str) -> Path:
    with tifffile.TiffWriter(path) as file:
        for number, page in enumerate(pages):
            text = description if number == 0 else None
            file.write(page, photometric="minisblack", metadata=None, description=text)
    return path


def ome_xml(blocks: str, sizes: str, order: str = "XYZCT", uuid: str = "") -> str:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" {uuid}>'
        f'<Image ID="I:0"><Pixels ID="P:0" DimensionOrder="{order}" Type="uint8" SizeX="64" SizeY="48" {sizes}>'
        f"{blocks}</Pixels></Image></OME>"
    )


STACKS = {
    "pages": {"metadata": None},
    "pages-lzw": {"metadata": None, "compression": "lzw", "rowsperstrip": 7},
    "tifffile": {},
    "tifffile-named-axes": {"metadata": {"axes": "ZYX"}},
    "tifffile-lzw": {"compression": "lzw"},
    "tifffile-truncated": {"truncate": True},
    "tifffile-truncated-big-endian": {"truncate": True, "byteorder": ">"},
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "imagej-one-directory": {"imagej": True, "metadata": {"axes": "ZYX"}, "truncate": True},
    "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
    "ome-deflate-tiles": {"ome": True, "metadata": {"axes": "ZYX"}, "tile": (16, 16), "compression": "deflate"},
    "bigtiff": {"bigtiff": True},
}


@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS.keys())
def test_stack_in_one_file(tmp_path, options):
    path = write(tmp_path / "s.tif", VOLUME, **options)
    pages = find_pages([path])
    assert [page.name for page in pages] == [f"s.tif#{z}" for z in range(5)]
    assert {page.count for page in pages} == {5}
    np.testing.assert_array_equal(read_all(path), VOLUME)


def test_arrays_appended_to_one_file_follow_each_other(tmp_path):
    path = tmp_path / "s.tif"
    for data in (VOLUME[:3], VOLUME[3], VOLUME[4]):
        write(path, data, append=True)
    np.testing.assert_array_equal(read_all(path), VOLUME)


CHANNELS = {
    "imagej": (HYPER, {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    "imagej-one-directory": (HYPER, {"imagej": True, "metadata": {"axes": "ZCYX"}, "truncate": True}),
    "ome-zc": (HYPER, {"ome": True, "metadata": {"axes": "ZCYX"}}),
    "ome-cz": (HYPER.swapaxes(0, 1), {"ome": True, "metadata": {"axes": "CZYX"}}),
    "tifffile-zc": (HYPER, {"metadata": {"axes": "ZCYX"}}),
    "tifffile-cz": (HYPER.swapaxes(0, 1), {"metadata": {"axes": "CZYX"}}),
}


@pytest.mark.parametrize(("data", "options"), CHANNELS.values(), ids=CHANNELS.keys())
def test_one_channel_of_several_is_taken(tmp_path, data, options):
    path = write(tmp_path / "s.tif", data, **options)
    with pytest.raises(UnsupportedImageError, match=r"s.tif: has 2 channels, expected one; choose --channel 0 to 1"):
        find_pages([path])
    np.testing.assert_array_equal(read_all(path, channel=0), HYPER[:, 0])
    np.testing.assert_array_equal(read_all(path, channel="1"), HYPER[:, 1])


@pytest.mark.parametrize("options", [{"imagej": True, "metadata": {"axes": "ZYXS"}}, {"metadata": {"axes": "ZYXS"}}])
def test_colour_stack(tmp_path, options):
    data = RNG.integers(0, 256, (4, 24, 32, 3), dtype=np.uint8)
    path = write(tmp_path / "s.tif", data, photometric="rgb", **options)
    np.testing.assert_array_equal(read_all(path, channel="green"), data[..., 1])


TIME_SERIES = {
    "imagej": {"imagej": True, "metadata": {"axes": "TYX"}},
    "ome": {"ome": True, "metadata": {"axes": "TYX"}},
    "tifffile": {"metadata": {"axes": "TYX"}},
}


@pytest.mark.parametrize("options", TIME_SERIES.values(), ids=TIME_SERIES.keys())
def test_time_series_is_refused(tmp_path, options):
    path = write(tmp_path / "s.tif", VOLUME, **options)
    with pytest.raises(
        UnsupportedImageError, match=r"s.tif: is a time series of 5 frames, expected slices; if they are"
    ):
        find_pages([path])


@pytest.mark.parametrize("metadata", [{"axes": "ZQYX"}, {"axes": "RZYX"}, {}], ids=["zq", "rz", "unnamed"])
def test_array_of_four_dimensions_is_refused(tmp_path, metadata):
    path = write(tmp_path / "s.tif", HYPER, metadata=metadata)
    with pytest.raises(UnsupportedImageError, match=r"s.tif: is an array .*save one stack"):
        find_pages([path])


def test_volume_in_one_page_is_refused(tmp_path):
    path = write(tmp_path / "s.tif", RNG.integers(0, 256, (16, 16, 16), dtype=np.uint8), volumetric=True)
    with pytest.raises(UnsupportedImageError, match=r"is a volume in one page"):
        find_pages([path])


DECLARED = {
    "imagej": "ImageJ=1.54f\nimages=7\nslices=7\n",
    "imagej-channels": "ImageJ=1.54f\nimages=4\nchannels=2\nslices=2\nhyperstack=true\n",
    "tifffile": json.dumps({"shape": [7, 48, 64]}),
    "tifffile-shape": json.dumps({"shape": [5, 48, 63]}),
    "ome": ome_xml('<TiffData IFD="0" PlaneCount="7"/>', 'SizeZ="7" SizeC="1" SizeT="1"'),
    "ome-fewer": ome_xml("<TiffData/>", 'SizeZ="4" SizeC="1" SizeT="1"'),
    "ome-billion": ome_xml('<TiffData IFD="0" PlaneCount="999999999999"/>', 'SizeZ="999999999999" SizeC="1" SizeT="1"'),
    "ome-broken": "<OME><Image></OME>",
}


@pytest.mark.parametrize("description", DECLARED.values(), ids=DECLARED.keys())
def test_file_that_does_not_hold_what_it_declares_is_refused(tmp_path, description):
    with pytest.raises(ImageFileError, match=r"s.tif: cannot be decoded"):
        find_pages([write_pages(tmp_path / "s.tif", VOLUME, description)])


def test_truncated_stack_of_one_directory_is_refused(tmp_path):
    path = write(tmp_path / "s.tif", VOLUME, imagej=True, metadata={"axes": "ZYX"}, truncate=True)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ImageFileError, match=r"it declares 5 slices and does not hold them in its 1 pages"):
        find_pages([path])


def test_more_pages_than_imagej_declared_are_slices(tmp_path):
    path = write_pages(tmp_path / "s.tif", VOLUME, "ImageJ=1.54f\n")
    np.testing.assert_array_equal(read_all(path), VOLUME)


def test_ome_planes_stored_backwards_are_turned(tmp_path):
    blocks = "".join(f'<TiffData IFD="{4 - z}" FirstZ="{z}" PlaneCount="1"/>' for z in range(5))
    path = write_pages(tmp_path / "s.tif", VOLUME[::-1], ome_xml(blocks, 'SizeZ="5" SizeC="1" SizeT="1"'))
    np.testing.assert_array_equal(read_all(path), VOLUME)


def write_ome_files(folder: Path, channels: int = 1) -> list[Path]:
    """Write a data set of two files, of which each holds the metadata of both."""
    parts = {"s_0.ome.tif": VOLUME[:3], "s_1.ome.tif": VOLUME[3:]}
    blocks = ""
    for name, data in parts.items():
        for plane in range(len(data)):
            place = blocks.count("IFD")
            first = f'FirstZ="{place}"' if channels == 1 else f'FirstC="{place}"'
            blocks += f'<TiffData IFD="{plane}" {first}><UUID FileName="{name}">urn:uuid:{name}</UUID></TiffData>'
    sizes = 'SizeZ="5" SizeC="1" SizeT="1"' if channels == 1 else 'SizeZ="1" SizeC="5" SizeT="1"'
    return [
        write_pages(folder / name, data, ome_xml(blocks, sizes, uuid=f'UUID="urn:uuid:{name}"'))
        for name, data in parts.items()
    ]


def test_ome_data_set_of_two_files_is_taken_file_by_file(tmp_path):
    first, second = write_ome_files(tmp_path)
    np.testing.assert_array_equal(read_all(first), VOLUME[:3])
    np.testing.assert_array_equal(read_all(second), VOLUME[3:])
    np.testing.assert_array_equal(read_all(second, first), VOLUME)
    first.unlink()
    np.testing.assert_array_equal(read_all(second), VOLUME[3:])


def test_ome_file_of_a_set_may_be_renamed_but_not_without_its_uuid(tmp_path):
    path = write_ome_files(tmp_path)[1].rename(tmp_path / "renamed.tif")
    np.testing.assert_array_equal(read_all(path), VOLUME[3:])
    text = re.sub(" UUID=.*?>", ">", tifffile.tiffcomment(path), count=1)
    tifffile.tiffcomment(path, text)
    with pytest.raises(UnsupportedImageError, match=r"holds 0 of the 1 images in its OME metadata"):
        find_pages([path])


def test_ome_file_of_one_may_be_renamed(tmp_path):
    blocks = '<TiffData IFD="0" PlaneCount="5"><UUID FileName="old.ome.tif">urn:uuid:1</UUID></TiffData>'
    path = write_pages(tmp_path / "new.tif", VOLUME, ome_xml(blocks, 'SizeZ="5" SizeC="1" SizeT="1"'))
    np.testing.assert_array_equal(read_all(path), VOLUME)


def test_ome_channels_in_several_files_are_refused(tmp_path):
    with pytest.raises(UnsupportedImageError, match=r"is one of several OME files with 5 channels"):
        find_pages(write_ome_files(tmp_path, channels=5), 0)


def test_ome_file_of_two_images_is_refused(tmp_path):
    path = tmp_path / "s.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(VOLUME, photometric="minisblack", metadata={"axes": "ZYX"})
        file.write(VOLUME[:2], photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.raises(UnsupportedImageError, match=r"holds 2 of the 2 images in its OME metadata"):
        find_pages([path])


def test_ome_pyramid_gives_the_full_resolution(tmp_path):
    path = tmp_path / "s.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(VOLUME, photometric="minisblack", subifds=1, metadata={"axes": "ZYX"})
        file.write(VOLUME[:, ::2, ::2], photometric="minisblack", subfiletype=1)
    np.testing.assert_array_equal(read_all(path), VOLUME)


def test_ome_file_with_a_companion_gives_its_pages(tmp_path):
    text = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><BinaryOnly MetadataFile="c.ome"/></OME>'
    np.testing.assert_array_equal(read_all(write_pages(tmp_path / "s.tif", VOLUME, text)), VOLUME)


def test_vendor_file_with_planes_behind_one_directory_is_refused(tmp_path):
    path = write(tmp_path / "s.stk", VOLUME[0], metadata=None, extratags=[(33628, 4, 2, (0, 0), True)])
    with pytest.raises(UnsupportedImageError, match=r"is a STK file; open it in Fiji"):
        find_pages([path])
