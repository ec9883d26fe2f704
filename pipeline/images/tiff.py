"""TIFF files: which slices a file holds, and the decoding of one of them.

tifffile forgives much: it skips broken directories, fills missing strips with zeros, joins the files of an OME data set
and only logs what it lost. Here a file is read whole or refused, so the chain of directories is followed in this
module, the layout of the planes in `images.planes`, and tifffile reads single directories and decodes them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile, TiffPage

from pipeline.errors import ShapeMismatchError, UnsupportedImageError
from pipeline.images.pixels import Channel, Page, PixelKind, check_size, damaged, decoding, refuse, take_sample
from pipeline.images.planes import Layout, declared_layout

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# TIFF tag 259: the most bytes that one stored byte can decode to. LZW: a code of 12 bits stands for at most 3839 bytes.
# Deflate: 1032. PackBits: a run of 128 in 2 bytes. zstd: a block of 128 KiB in 4 bytes. JPEG: see `images.pixels`.
_LARGEST_RATIO = {1: 1, 5: 4096, 7: 4096, 8: 1032, 32773: 64, 32946: 1032, 50000: 65536}
_JPEG = 7

# Kinds of files whose directories are not the slices: planes behind one directory, thumbnails, pyramids, or channels
# and times that only the vendor's metadata tell apart.
_VENDORS = (
    *("stk", "lsm", "fluoview", "mdgel", "ndpi", "svs", "scn", "bif", "qpi", "philips", "avs", "eer", "nih"),
    "scanimage",
)

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6


@contextmanager
def _opened(path: Path, name: str) -> Iterator[TiffFile]:
    """Open a file. The flags switch off rewrites of the chain of directories that start with the file's first page."""
    with decoding(name), TiffFile(path, is_ndpi=False, is_lsm=False, is_scanimage=False) as file:
        yield file


def find_slices(path: Path, channel: Channel) -> list[Page]:
    """Return the slices of one TIFF file, from its headers.

    Raises
    ------
    ImageFileError
        If the file is broken, or holds fewer pages or bytes than it declares.
    UnsupportedImageError
        If it holds a time series, several images, or pixels that are not 8 or 16 bit integers.
    ShapeMismatchError
        If its pages differ in size or type.
    """
    name = path.name
    with _opened(path, name) as file:
        offsets = _directories(file)
        first = _load(file, offsets[0])
        vendor = next((kind for kind in _VENDORS if getattr(first, f"is_{kind}")), None)
        if vendor:
            raise UnsupportedImageError(f"{name}: is a {vendor.upper()} file; open it in Fiji and save it as Tiff")
        layout = declared_layout(lambda number: _load(file, offsets[number]), len(offsets), name)
        if layout is None:
            offsets = [offset for offset in offsets if not _is_auxiliary(_load(file, offset))] or offsets[:1]
            layout = Layout([(number, 0) for number in range(len(offsets))])
        kind = _common_kind(file, offsets, name)
    planes, sample = layout.choose(kind, channel, name)
    return [
        Page(path, index, len(planes), kind.shape, kind.dtype, sample, offsets[number], plane, layout.stated_um)
        for index, (number, plane) in enumerate(planes)
    ]


def read_slice(page: Page) -> NDArray[Any]:
    """Decode one slice, in a time that does not depend on the number of slices in its file."""
    with _opened(page.path, page.name) as file:
        directory = _load(file, page.directory_bytes)
        kind = _describe(directory, page.name)
        if page.plane:
            start = directory.dataoffsets[0] + page.plane * directory.nbytes
            if start + directory.nbytes > file.filehandle.size:
                raise damaged(page.name, "the slice ends outside the file")
            directory.dataoffsets, directory.databytecounts = (start,), (directory.nbytes,)
        return _decode(directory, kind, page)


def _directories(file: TiffFile) -> list[int]:
    """Return where each directory starts, following the chain to its end.

    tifffile stops at a broken link with a log message, and follows some circular chains for hours.
    """
    handle, tiff = file.filehandle, file.tiff
    offsets: dict[int, None] = {}
    link = tiff.offsetsize  # the header is 4 bytes and the first link, or 8 and 8 in a BigTIFF
    while True:
        handle.seek(link)
        (offset,) = struct.unpack(tiff.offsetformat, handle.read(tiff.offsetsize))
        if offset == 0 and offsets:
            return list(offsets)
        if offset in offsets or not 8 <= offset < handle.size:
            raise ValueError(f"the link after page {len(offsets)} leads to byte {offset} of {handle.size}")
        offsets[offset] = None
        handle.seek(offset)
        (tags,) = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))
        link = offset + tiff.tagnosize + tags * tiff.tagsize


def _load(file: TiffFile, offset: int) -> TiffPage:
    """Read one directory."""
    file.filehandle.seek(offset)
    return TiffPage(file, index=0)


def _is_auxiliary(page: TiffPage) -> bool:
    """Whether a page is a thumbnail or a transparency mask of another one (TIFF 6.0, NewSubfileType)."""
    return bool(page.subfiletype & 0b101)


def _common_kind(file: TiffFile, offsets: list[int], name: str) -> PixelKind:
    """Return what all pages are, and refuse pages that differ."""
    kinds: dict[PixelKind, int] = {}
    for number, offset in enumerate(offsets):
        page_name = f"{name}#{number}" if len(offsets) > 1 else name
        kinds.setdefault(_describe(_load(file, offset), page_name), number)
        if len(kinds) > 1:
            first, other = kinds
            raise ShapeMismatchError(
                f"{page_name}: is {other.dtype} {other.shape}, {name}#0 is {first.dtype} {first.shape}; "
                "save the pages that belong together in a file of their own"
            )
    return next(iter(kinds))


def _describe(page: TiffPage, name: str) -> PixelKind:
    """Return what the pixels of a page are, after checking that they can be decoded exactly and are all there."""
    missing = [tag for tag in (256, 257, 262) if tag not in page.tags]
    if missing:
        raise damaged(name, f"the TIFF tag {missing[0]} is missing")
    if page.imagedepth != 1:
        raise UnsupportedImageError(f"{name}: is a volume in one page; save each slice as a page")
    compression = int(page.compression)
    if compression not in _LARGEST_RATIO:
        raise UnsupportedImageError(
            f"{name}: has TIFF compression {compression}; save it uncompressed or with LZW, Deflate, zstd or JPEG"
        )
    bits, dtype = page.bitspersample, page.dtype
    if dtype is None or not isinstance(bits, int) or bits > 16 or dtype.kind not in "bu":
        raise refuse(name, f"pixels of type {dtype if dtype is not None else f'{bits} bit'}")
    if page.predictor not in (1, 2) or (page.predictor == 2 and bits not in (8, 16)):
        raise UnsupportedImageError(f"{name}: has TIFF predictor {int(page.predictor)}; save it without")
    kind = _pixel_kind(page, "uint8" if bits <= 8 else "uint16", name)
    _check_segments(page, name)
    return kind


def _pixel_kind(page: TiffPage, dtype: str, name: str) -> PixelKind:
    """Return what the samples of a page mean."""
    shape = (int(page.imagelength), int(page.imagewidth))
    photometric = int(page.photometric)
    alpha = bool(page.extrasamples) and int(page.extrasamples[-1]) in (1, 2)
    samples = int(page.samplesperpixel) - alpha
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and samples >= 1:
        return PixelKind(shape, dtype, samples, alpha=alpha)
    if photometric == _PALETTE and samples == 1 and not alpha:
        colours = _palette(page)
        grey = bool((colours == colours[:1]).all())
        return PixelKind(shape, "uint8", samples=1 if grey else 3, rgb=not grey)
    if samples >= 3 and (photometric == _RGB or (photometric == _YCBCR and page.compression == _JPEG)):
        return PixelKind(shape, dtype, samples, rgb=samples == 3, alpha=alpha)
    raise refuse(name, f"{samples} samples of TIFF photometric interpretation {photometric}")


def _palette(page: TiffPage) -> NDArray[np.uint8]:
    """Return the colours of a palette, ``(sample, colour)``: 16 bit in TIFF 6.0, 8 bit from some writers."""
    colours = np.asarray(page.colormap)
    if colours.ndim != 2 or colours.shape[1] < 2**page.bitspersample:
        raise ValueError(f"the palette of shape {colours.shape} is too short for {page.bitspersample} bits")
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)


def _check_segments(page: TiffPage, name: str) -> None:
    """Refuse strips or tiles that are missing or outside the file, and more pixels than they can hold.

    A missing segment (offset or size 0) is a hole that GDAL reads as zeros; here a hole is a lost part of a slice.
    """
    offsets = np.asarray(page.dataoffsets, np.int64)
    sizes = np.asarray(page.databytecounts, np.int64)
    expected = math.prod(page.chunked)
    if not len(offsets) == len(sizes) == expected:
        raise damaged(name, f"it has {len(offsets)} of {expected} strips or tiles")
    outside = (offsets <= 0) | (sizes <= 0) | (offsets > page.parent.filehandle.size - sizes)
    if outside.any():
        raise damaged(name, f"{outside.sum()} of {expected} strips or tiles are missing or end outside the file")
    compression, itemsize = int(page.compression), page.dtype.itemsize
    decoded_bytes = int(page.nbytes)
    if page.is_tiled and compression != 1:  # the decoder fills whole tiles, which may reach over the image
        samples = page.samplesperpixel if page.planarconfig == 1 else 1
        decoded_bytes = expected * page.tilelength * page.tilewidth * samples * itemsize
    largest_ratio = math.ceil(_LARGEST_RATIO[compression] * 8 * itemsize / page.bitspersample)
    check_size(name, decoded_bytes, int(sizes.sum()), largest_ratio)


def _check_jpeg_ends(page: TiffPage) -> None:
    """Refuse JPEG segments without an end: imagecodecs returns the rows that are missing as grey [measured]."""
    handle = page.parent.filehandle
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        handle.seek(offset + max(size - 16, 0))
        if not handle.read(min(size, 16)).rstrip(b"\0").endswith(b"\xff\xd9"):
            raise ValueError(f"the JPEG stream at byte {offset} has no end")


def _decode(directory: TiffPage, kind: PixelKind, page: Page) -> NDArray[Any]:
    """Return the slice that `page` is the address of."""
    if directory.compression == _JPEG:
        _check_jpeg_ends(directory)
    white = 2**directory.bitspersample - 1
    # One thread: several slices are decoded at once, and `decoding` would not see what other threads log.
    pixels = directory.asarray(squeeze=False, maxworkers=1)  # (separate sample, depth, y, x, contiguous sample)
    pixels = np.moveaxis(pixels[:, 0, :, :, 0], 0, -1) if len(pixels) > 1 else pixels[0, 0]
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if directory.photometric == _PALETTE:
        colours = _palette(directory)
        pixels = colours.T[pixels] if kind.rgb else colours[0][pixels]
        return take_sample(pixels, kind, page.sample, page.name, white)
    pixels = take_sample(pixels, kind, page.sample, page.name, white)
    return _brightness(pixels, directory.photometric == _WHITE_IS_ZERO, white)


def _brightness(pixels: NDArray[Any], white_is_zero: bool, white: int) -> NDArray[Any]:
    """Return pixels of which larger is brighter; 1, 2 and 4 bits spread over 0 to 255, as Pillow and libpng do."""
    pixels = pixels.view(np.uint8) if pixels.dtype == np.bool_ else pixels
    if white_is_zero:
        np.subtract(white, pixels, out=pixels)
    if white in (1, 3, 15):
        pixels *= np.uint8(255 // white)
    return pixels
