"""Planes of a TIFF file: what OME, ImageJ and tifffile metadata say of the slices and channels in it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from tifffile import TiffPage

from pipeline.errors import UnsupportedImageError
from pipeline.images.calibration import imagej_size, ome_size
from pipeline.images.pixels import Channel, PixelKind, Sample, StatedSize, damaged


@dataclass(frozen=True, slots=True)
class Layout:
    """The planes of a file in the order in which its metadata counts them.

    Attributes
    ----------
    planes : list of tuple of int
        Number of the directory of each plane, and number of the plane behind that directory.
    channels : int
        Planes of each slice.
    channel_fastest : bool
        Whether the channels of one slice follow each other, rather than the slices of one channel.
    stated_um : tuple or None
        Size of a voxel that the metadata state.
    """

    planes: list[tuple[int, int]]
    channels: int = 1
    channel_fastest: bool = True
    stated_um: StatedSize | None = None

    def choose(self, kind: PixelKind, channel: Channel, name: str) -> tuple[list[tuple[int, int]], Sample]:
        """Return the planes of one channel, and the sample of their pixels."""
        if self.channels == 1:
            return self.planes, kind.choose(channel, name)
        if kind.samples > 1:
            raise UnsupportedImageError(f"{name}: has {self.channels} channels of colour images; save one of them")
        number = PixelKind(kind.shape, kind.dtype, samples=self.channels).choose(channel, name)
        slices = len(self.planes) // self.channels
        start = int(number) if self.channel_fastest else int(number) * slices
        step = self.channels if self.channel_fastest else 1
        return self.planes[start : start + slices * step : step], 0


def declared_layout(load: Callable[[int], TiffPage], count: int, name: str) -> Layout | None:
    """Return the layout that a file's metadata declare, or None where each page just is a slice.

    Parameters
    ----------
    load : callable
        Reads the page of a number below `count`.
    count : int
        Pages of the file.
    name : str
        Name of the file, for messages and to find the file in a data set of several.

    Raises
    ------
    ImageFileError
        If the file does not hold the slices that it declares.
    UnsupportedImageError
        If what it declares is not one stack, perhaps of several channels.
    """
    first = load(0)
    if first.description.rstrip().endswith("OME>"):
        return _ome_layout(first, count, name)
    for text in (first.description, first.description1):
        if text.startswith("ImageJ="):
            return _imagej_layout(text, first, count, name)
    return _shaped_layout(load, count, name) if _shaped_metadata(first) else None


def _stored_planes(first: TiffPage, declared: int, count: int, name: str) -> list[tuple[int, int]]:
    """Return where the declared planes are: each behind its own directory, or all in a row behind the only one.

    ImageJ writes stacks of more than 4 GiB with one directory, and so does tifffile with ``truncate=True``.
    """
    if declared == count:
        return [(number, 0) for number in range(count)]
    if count == 1 and first.is_contiguous and first.predictor == 1:
        start = first.dataoffsets[0]
        end = start + declared * first.nbytes
        if end <= first.parent.filehandle.size and not start <= first.offset < end:
            return [(0, plane) for plane in range(declared)]
    raise damaged(name, f"it declares {declared} slices and does not hold them in its {count} pages")


def _imagej_layout(text: str, first: TiffPage, count: int, name: str) -> Layout:
    """Read the lines ``images=``, ``channels=``, ``slices=`` and ``frames=`` of ImageJ."""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    channels, slices, frames, images = (int(fields.get(key, 1)) for key in ("channels", "slices", "frames", "images"))
    if frames > 1:
        raise _time_series(name, frames)
    if channels == first.samplesperpixel:  # Bio-Formats declares the samples of a page as channels
        channels = 1
    # Pages may be more than declared, as after `tiffcp a.tif b.tif c.tif`; with channels nobody knows which is which.
    declared = channels * slices if channels > 1 else max(slices, images, count)
    order = fields.get("order", "czt").lower()
    planes = _stored_planes(first, declared, count, name)
    return Layout(planes, channels, order.index("c") < order.index("z"), imagej_size(fields, first.tags.valueof))


def _time_series(name: str, frames: int) -> UnsupportedImageError:
    return UnsupportedImageError(
        f"{name}: is a time series of {frames} frames, expected slices; if they are slices, swap z and t in Fiji with "
        "Image > Properties, else save one frame"
    )


def _shaped_metadata(page: TiffPage) -> dict[str, Any] | None:
    """Return what tifffile wrote of a series of pages into its first page."""
    for text in (page.description, page.description1):
        if text.startswith("{") and '"shape":' in text:
            return dict(json.loads(text))
    return None


def _shaped_layout(load: Callable[[int], TiffPage], pages: int, name: str) -> Layout:
    """Read the shapes that tifffile declares; arrays that were appended to one file follow each other."""
    layouts = []
    number = 0
    while number < pages:
        page = load(number)
        metadata = _shaped_metadata(page)
        if metadata is None:
            raise damaged(name, f"page {number} belongs to no declared array")
        slices, channels, channel_fastest = _shaped_axes(metadata, page, name)
        declared = slices * channels
        count = 1 if pages == 1 else min(declared, pages - number)
        planes = [(number + at, plane) for at, plane in _stored_planes(page, declared, count, name)]
        layouts.append(Layout(planes, channels, channel_fastest))
        number += count
    if len(layouts) == 1:
        return layouts[0]
    if any(layout.channels > 1 for layout in layouts):
        raise UnsupportedImageError(f"{name}: holds several arrays with channels; save each in a file of its own")
    return Layout([plane for layout in layouts for plane in layout.planes])


def _shaped_axes(metadata: dict[str, Any], page: TiffPage, name: str) -> tuple[int, int, bool]:
    """Return the slices, the channels, and whether the channels of a slice follow each other."""
    shape = [int(size) for size in metadata["shape"]]
    split, size = len(shape), 1
    while size < math.prod(page.shape):
        split -= 1
        size *= shape[split]
    if size != math.prod(page.shape) or min(shape) < 1:
        raise damaged(name, f"the declared shape {shape} is not of pages {page.shape}")
    axes = str(metadata.get("axes", "")).upper()
    named = axes[:split] if len(axes) == len(shape) else "Q" * split
    long = [(axis, size) for axis, size in zip(named, shape[:split], strict=True) if size > 1]
    frames = math.prod(size for axis, size in long if axis == "T")
    if frames > 1:
        raise _time_series(name, frames)
    stacked = [size for axis, size in long if axis in "ZQI"]
    channels = math.prod(size for axis, size in long if axis == "C")
    if len(stacked) > 1 or len(long) != len(stacked) + (channels > 1):
        raise UnsupportedImageError(
            f"{name}: is an array {axes or 'of shape'} {tuple(shape)}; save one stack (z, y, x)"
        )
    return math.prod(stacked), channels, bool(long) and long[-1][0] == "C"


def _ome_layout(first: TiffPage, count: int, name: str) -> Layout | None:
    """Read the OME-XML; of a data set in several files, only the planes that are in this one."""
    root = ET.fromstring(first.description)
    pixels, blocks, spread = _own_image(root, name)
    if pixels is None:
        return None  # BinaryOnly: the metadata are in a companion file
    slices, channels, frames = (int(pixels.get(f"Size{axis}", 1)) for axis in "ZCT")
    if frames > 1:
        raise _time_series(name, frames)
    channels = max(1, channels // int(first.samplesperpixel))
    if spread and channels > 1:
        raise UnsupportedImageError(f"{name}: is one of several OME files with {channels} channels; save one in Fiji")
    order = pixels.get("DimensionOrder", "XYCZT")
    channel_fastest = order.index("C") < order.index("Z")
    directories = _ome_directories(blocks, (channels, 1) if channel_fastest else (1, slices), count)
    declared = len(directories) if spread else slices * channels
    if len(directories) != declared or sorted(directories.values()) != list(range(count)):
        raise damaged(name, f"the OME metadata declare {declared} slices, the file has {count} pages")
    return Layout([(directories[at], 0) for at in sorted(directories)], channels, channel_fastest, ome_size(pixels))


def _own_image(root: ET.Element, name: str) -> tuple[ET.Element | None, list[ET.Element], bool]:
    """Return the one image with planes in this file, its TiffData about this file, and whether others are elsewhere."""
    images = root.findall("{*}Image/{*}Pixels")
    found = []
    for pixels in images:
        blocks = pixels.findall("{*}TiffData")
        owners = [block.find("{*}UUID") for block in blocks]
        own = [block for block, owner in zip(blocks, owners, strict=True) if _is_own(owner, root, name)]
        files = {owner.text for owner in owners if owner is not None}
        if not own and len(images) == len(files) == 1:  # a file that was renamed
            own = blocks
        if own or not blocks:
            found.append((pixels, own, len(own) < len(blocks)))
    if len(found) == 1:
        return found[0]
    if not images:
        return None, [], False
    raise UnsupportedImageError(
        f"{name}: holds {len(found)} of the {len(images)} images in its OME metadata, expected one "
        "(a renamed file of a set is not found); save it as a plain TIFF stack in Fiji"
    )


def _is_own(owner: ET.Element | None, root: ET.Element, name: str) -> bool:
    """Whether a TiffData block with this UUID element, or none, is about the file itself."""
    return owner is None or owner.get("FileName") == name or (owner.text or "") == root.get("UUID")


def _ome_directories(blocks: list[ET.Element], steps: tuple[int, int], count: int) -> dict[int, int]:
    """Return the number of the directory of each plane, by the place of the plane in the order of dimensions.

    FirstZ, FirstC and IFD are 0 by default; PlaneCount is 1 where IFD is given, else all planes (OME schema 2016-06).
    """
    if not blocks:
        return {number: number for number in range(count)}
    directories = {}
    for block in blocks:
        start = int(block.get("FirstZ", 0)) * steps[0] + int(block.get("FirstC", 0)) * steps[1]
        number = int(block.get("IFD", 0))
        planes = int(block.get("PlaneCount", 1 if "IFD" in block.keys() else count))  # noqa: SIM118 - an Element
        for plane in range(
            min(planes, count + 1)
        ):  # one too many is refused by the caller, a billion need not be listed
            directories[start + plane] = number + plane
    return directories
