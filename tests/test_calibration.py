"""The size of a voxel that files state, against files of tifffile and descriptions as ImageJ writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline.images.slicefile import Picture, write_tiff
from pipeline.images.stack import find_pages

VOLUME = np.zeros((3, 16, 32), np.uint8)


def stated(path: Path) -> tuple[float | None, float, float] | None:
    """What all slices of a file state."""
    (size,) = {page.stated_um for page in find_pages([path])}
    return size


OME = {
    "default unit": ({"Z": "1.5", "Y": "0.7", "X": "0.6"}, (1.5, 0.7, 0.6)),
    "micrometres": ({"Z": "1.5", "Y": "0.7", "X": "0.6", "XUnit": "µm", "ZUnit": "\u03bcm"}, (1.5, 0.7, 0.6)),
    "nanometres": ({"Z": "350", "Y": "700", "X": "0.6", "ZUnit": "nm", "YUnit": "nm"}, (0.35, 0.7, 0.6)),
    "millimetres": ({"Z": "0.0015", "Y": "0.0007", "X": "0.6", "ZUnit": "mm", "YUnit": "mm"}, (1.5, 0.7, 0.6)),
    "large units": ({"Z": "2e-6", "Y": "2e-4", "X": "7000", "ZUnit": "m", "YUnit": "cm", "XUnit": "Å"}, (2, 2, 0.7)),
    "no z": ({"Y": "0.7", "X": "0.6"}, (None, 0.7, 0.6)),
    "z in pixels": ({"Z": "1", "Y": "0.7", "X": "0.6", "ZUnit": "pixel"}, (None, 0.7, 0.6)),
    "z of 0": ({"Z": "0", "Y": "0.7", "X": "0.6"}, (None, 0.7, 0.6)),
    "no y": ({"Z": "1", "X": "0.6"}, None),
    "pixels": ({"Z": "1", "Y": "1", "X": "1", "XUnit": "pixel"}, None),
    "reference frame": ({"Z": "1", "Y": "1", "X": "1", "YUnit": "reference frame"}, None),
    "megametres": ({"Z": "1", "Y": "1", "X": "1", "XUnit": "Mm"}, None),
    "negative": ({"Z": "1", "Y": "-0.7", "X": "0.6"}, None),
    "nan": ({"Z": "1", "Y": "nan", "X": "0.6"}, None),
    "inf": ({"Z": "1", "Y": "inf", "X": "0.6"}, None),
    "two metres": ({"Z": "1", "Y": "2", "X": "1", "YUnit": "m"}, None),
    "less than an atom": ({"Z": "1", "Y": "1e-7", "X": "1"}, None),
    "beyond floats": ({"Z": "1", "Y": "1e308", "X": "0.6", "YUnit": "m"}, None),
    "no number": ({"Z": "1", "Y": "0.7", "X": "0,6"}, None),
    "empty": ({"Z": "1", "Y": "0.7", "X": "", "XUnit": ""}, None),
    "nothing": ({}, None),
}  # fmt: skip


@pytest.mark.parametrize(("sizes", "expected"), OME.values(), ids=OME.keys())
def test_ome(tmp_path, sizes, expected):
    metadata = {"axes": "ZYX"} | {f"PhysicalSize{axis}": value for axis, value in sizes.items()}
    tifffile.imwrite(tmp_path / "s.tif", VOLUME, ome=True, metadata=metadata)
    assert stated(tmp_path / "s.tif") == expected


def test_ome_of_several_channels_and_slices_a_file(tmp_path):
    sizes = {"PhysicalSizeZ": 2, "PhysicalSizeY": 0.7, "PhysicalSizeX": 0.6}
    tifffile.imwrite(tmp_path / "s.tif", np.stack([VOLUME] * 2), ome=True, metadata={"axes": "CZYX"} | sizes)
    assert [page.stated_um for page in find_pages([tmp_path / "s.tif"], 1)] == [(2, 0.7, 0.6)] * 3


def test_export_reads_back(tmp_path):
    picture = Picture("image", VOLUME.shape, VOLUME.dtype, (1.5, 0.7, 1 / 3), is_label=False)
    for name, ome in (("whole.tif", True), ("plain.tif", False)):
        write_tiff(tmp_path / name, picture, (tile for plane in VOLUME for tile in picture.encode_tiles(plane)), ome)
    assert stated(tmp_path / "whole.tif") == (1.5, 0.7, pytest.approx(1 / 3, rel=1e-11))
    assert stated(tmp_path / "plain.tif") is None


IMAGEJ = {
    "micron": ("unit=micron\nspacing=1.5", (1.5, 0.7, 0.6)),
    "um": ("unit=um\nspacing=1.5", (1.5, 0.7, 0.6)),
    "escaped": ("unit=\\u00B5m\nspacing=1.5", (1.5, 0.7, 0.6)),
    "spaces": ("unit= micron \nspacing= 1.5", (1.5, 0.7, 0.6)),
    "millimetres": ("unit=mm\nspacing=0.35", (350, 700, 600)),
    "units of their own": ("unit=micron\nyunit=mm\nzunit=nm\nspacing=1500", (1.5, 700, 0.6)),
    "less than a nanometre": ("unit=nm\nspacing=350", None),
    "no spacing": ("unit=micron", (None, 0.7, 0.6)),
    "negative spacing": ("unit=micron\nspacing=-1", (None, 0.7, 0.6)),
    "spacing that is no number": ("unit=micron\nspacing=NaN", (None, 0.7, 0.6)),
    "no unit": ("spacing=1.5", None),
    "pixels": ("unit=pixel\nspacing=1.5", None),
    "inches": ("unit=inch\nspacing=1.5", None),
}


@pytest.mark.parametrize(("lines", "expected"), IMAGEJ.values(), ids=IMAGEJ.keys())
def test_imagej(tmp_path, lines, expected):
    write_imagej(tmp_path / "s.tif", lines, (1 / 0.6, 1 / 0.7))
    assert stated(tmp_path / "s.tif") == expected


def write_imagej(path: Path, lines: str, resolution: tuple[float, float], unit: str = "NONE") -> None:
    description = f"ImageJ=1.54f\nimages=3\nslices=3\n{lines}\n"
    with tifffile.TiffWriter(path) as file:
        for number, plane in enumerate(VOLUME):
            text = description if number == 0 else None
            file.write(plane, metadata=None, description=text, resolution=resolution, resolutionunit=unit)


def test_imagej_resolution_in_centimetres(tmp_path):
    """What ImageJ makes of such a file: pixels in a centimetre, though the unit is a micrometre."""
    write_imagej(tmp_path / "um.tif", "unit=um\nspacing=1.5", (1e4 / 0.6, 1e4 / 0.7), "CENTIMETER")
    assert stated(tmp_path / "um.tif") == pytest.approx((1.5, 0.7, 0.6), rel=1e-5)  # as tifffile rounds
    write_imagej(tmp_path / "micron.tif", "unit=micron\nspacing=1.5", (1 / 0.6, 1 / 0.7), "CENTIMETER")
    assert stated(tmp_path / "micron.tif") == (1.5, 0.7, 0.6)


@pytest.mark.parametrize("resolution", [(0, 1), (1, 0), (0, 0)])
def test_imagej_resolution_that_is_none(tmp_path, resolution):
    write_imagej(tmp_path / "s.tif", "unit=um\nspacing=1.5", (1 / 0.6, 1 / 0.7))
    with tifffile.TiffFile(tmp_path / "s.tif", mode="r+b") as file:
        file.pages[0].tags[282].overwrite(resolution)
    assert stated(tmp_path / "s.tif") is None


def test_imagej_as_tifffile_writes_it(tmp_path):
    metadata = {"axes": "ZYX", "unit": "um", "spacing": 1.5}
    tifffile.imwrite(tmp_path / "s.tif", VOLUME, imagej=True, resolution=(1 / 0.6, 1 / 0.7), metadata=metadata)
    assert stated(tmp_path / "s.tif") == (1.5, 0.7, 0.6)


@pytest.mark.parametrize("unit", ["INCH", "CENTIMETER"])
def test_resolution_of_other_files_is_not_trusted(tmp_path, unit):
    tifffile.imwrite(tmp_path / "s.tif", VOLUME[0], resolution=(72, 72), resolutionunit=unit)
    assert stated(tmp_path / "s.tif") is None
