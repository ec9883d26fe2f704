"""The size of a voxel that image files state: OME-TIFF in its XML [1]_, ImageJ in its description and resolution [2]_.

A wrong measurement is worse than none: what is damaged or absurd, or in a unit that is no length, is as if it were not
stated. So is the resolution of other files, which most programs write without knowing it, and inches, which ImageJ
takes over from such files.

References
----------
.. [1] https://www.openmicroscopy.org/Schemas/OME/2016-06/
.. [2] https://github.com/imagej/ImageJ/blob/master/ij/io/FileOpener.java
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isclose
from xml.etree import ElementTree as ET

from pipeline.errors import ConfigError
from pipeline.geometry import is_voxel_side
from pipeline.images.pixels import Page, StatedSize
from pipeline.storage.ome import VoxelSize

# The micro sign and the Greek letter, the ring in one character and the unit sign; ImageJ escapes what is not ASCII.
_MICROMETRES = {
    **dict.fromkeys(("µm", "\u03bcm", r"\u00B5m", "um", "micron", "microns", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("Å", "\u212b", r"\u00C5", "angstrom"), 1e-4),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
}

_ROUNDING = 1e-3  # of a length: one program writes 0.35, the next the fraction of its resolution tag
_DIGITS = 12  # 350 nm are 0.35 um, and not 0.35000000000000003
_IMAGEJ_DIGITS = 6  # its resolution has as many behind the point: 0.6 um are 1666667 / 1000000 pixels in a micrometre


def ome_size(pixels: ET.Element) -> StatedSize | None:
    """Size that the element ``Pixels`` of OME-XML states; micrometres are its default."""
    z, y, x = (
        _length(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "ZYX"
    )
    return None if y is None or x is None else (z, y, x)


def imagej_size(fields: Mapping[str, str], tag: Callable[[int], object]) -> StatedSize | None:
    """Size that an ImageJ file states, from the lines of its description and the values of its TIFF tags."""
    unit = fields.get("unit", "").strip()
    units = [fields.get("zunit", unit).strip(), fields.get("yunit", unit).strip(), unit]
    if unit == "um" and tag(296) == 3:
        units[1:] = "cm", "cm"  # as ImageJ reads it
    z, y, x = (
        _length(fields.get("spacing"), units[0]),
        _length(_side(tag(283)), units[1], _IMAGEJ_DIGITS),
        _length(_side(tag(282)), units[2], _IMAGEJ_DIGITS),
    )
    return None if y is None or x is None else (z, y, x)


def stated_size(pages: Sequence[Page], way_out: str) -> VoxelSize | None:
    """Size of a voxel that files state in z, y and x, or None.

    Raises
    ------
    ConfigError
        If two files contradict each other.
    """
    for page in pages:
        z, y, x = page.stated_um or (None, 0, 0)
        if z is not None:
            check_stated(pages, (z, y, x), page.path.name, way_out)
            return z, y, x
    return None


def check_stated(pages: Sequence[Page], size: VoxelSize, whose: str, way_out: str) -> None:
    """Refuse a file that states another size of a voxel, beyond rounding.

    Raises
    ------
    ConfigError
        If there is one.
    """
    for page in pages:
        if page.stated_um is not None and not is_same_size(page.stated_um, size):
            raise ConfigError(
                f"{page.path.name}: states voxels of {show_size(page.stated_um)} um (z, y, x), {whose} of "
                f"{show_size(size)}; {way_out}"
            )


def is_same_size(stated: StatedSize, size: VoxelSize) -> bool:
    """Whether two sizes are the same but for rounding, where both are known."""
    return all(one is None or isclose(one, other, rel_tol=_ROUNDING) for one, other in zip(stated, size, strict=True))


def flat_note(pages: Sequence[Page], option: str) -> str | None:
    """What to tell where files state the size of a voxel along y and x, and none along z, so that no size is stored."""
    stated = [page for page in pages if page.stated_um is not None]
    if not stated or any(page.stated_um and page.stated_um[0] is not None for page in stated):
        return None
    z, y, x = stated[0].stated_um or (None, 0, 0)
    return (
        f"{stated[0].path.name} states voxels of {show_size((z, y, x))} um (z, y, x), so that no size is stored; say "
        f"all of it with {option}"
    )


def _side(pixels_per_unit: object) -> float | None:
    """Length of a pixel, from the two numbers of a resolution tag."""
    match pixels_per_unit:
        case (int(pixels), int(units)) if pixels:
            return units / pixels
    return None


def _length(value: str | float | None, unit: str, digits: int = _DIGITS) -> float | None:
    """Length in micrometres, or None where there is no such."""
    try:
        length = float(f"{float(value or 0) * _MICROMETRES[unit]:.{digits}g}")
    except (KeyError, ValueError):
        return None
    return length if is_voxel_side(length) else None


def show_size(size: StatedSize) -> str:
    """``1 x 0.7 x 0.6``; a length that is not stated is a question mark."""
    return " x ".join("?" if length is None else f"{length:g}" for length in size)
