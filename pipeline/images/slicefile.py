"""Slices as image files, written band by band: no slice is ever held whole.

A tiled TIFF takes its tiles in any number at a time; a PNG is one compressed stream of rows, which is written here, as
no library takes it in parts.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from tifffile import TiffWriter

from pipeline.storage.ome import VoxelSize

Band = NDArray[Any]

TILE = 512
_LARGEST_TIFF = 2**32 - 2**25  # of pixels: what cannot be compressed grows by up to 0.03 %, and pages have headers

# Measured on one core. Grey levels (the real tile): libdeflate's level 1 on differences 91 MB/s, 1.8 times smaller;
# level 6 gains 4 % at 34 MB/s; zlib's level 1 on differences from the row above 67 MB/s, 1.7 times smaller. Labels (its
# truth): level 6 makes them 90 times smaller at 490 MB/s (zlib 145), level 1 only 50 to 60 times; differences gain
# nothing.
_GREY_EFFORT, _LABEL_EFFORT = 1, 6

_PNG_ROWS = 64  # at a time: a few copies of these are held


@dataclass(frozen=True, slots=True)
class Picture:
    """What the slices of a file are.

    Attributes
    ----------
    name : str
    shape : tuple of int
        (z, y, x).
    dtype : numpy.dtype
        uint8 or uint16.
    voxel_size_um : tuple or None
        (z, y, x) in micrometres.
    is_label : bool
        Few values in large areas, rather than grey levels.
    """

    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    voxel_size_um: VoxelSize | None
    is_label: bool

    def encode_tiles(self, band: Band) -> list[bytes]:
        """Tiles of a TIFF, row by row, of a band (y, x) that begins where a row of tiles does."""
        return [
            self._encode_tile(band[top : top + TILE, left : left + TILE])
            for top in range(0, band.shape[0], TILE)
            for left in range(0, band.shape[1], TILE)
        ]

    def _encode_tile(self, part: Band) -> bytes:
        tile = np.zeros((TILE, TILE), self.dtype.newbyteorder("<"))  # beyond the edge of the slice: 0
        tile[: part.shape[0], : part.shape[1]] = part
        if not self.is_label:
            tile[:, 1:] -= tile[:, :-1].copy()  # TIFF's horizontal predictor
        return bytes(imagecodecs.deflate_encode(tile.tobytes(), self.effort))

    @property
    def effort(self) -> int:
        """Level of compression."""
        return _LABEL_EFFORT if self.is_label else _GREY_EFFORT


def write_tiff(path: Path, picture: Picture, tiles: Iterable[bytes], ome: bool) -> None:
    """Write slices as the pages of one tiled, compressed TIFF file; as a BigTIFF where 4 GB might not do.

    Parameters
    ----------
    path : Path
    picture : Picture
    tiles : iterable of bytes
        Of `Picture.encode_tiles`, slice after slice.
    ome : bool
        With metadata as OME-XML [1]_, axes ZYX.

    References
    ----------
    .. [1] https://docs.openmicroscopy.org/ome-model/6.3.1/ome-tiff/specification.html
    """
    size = picture.voxel_size_um
    resolution: dict[str, Any] = {}
    if size is not None:
        resolution = {"resolution": (1e4 / size[2], 1e4 / size[1]), "resolutionunit": "CENTIMETER"}
    large = int(np.prod(picture.shape)) * picture.dtype.itemsize > _LARGEST_TIFF
    with TiffWriter(path, bigtiff=large, byteorder="<", ome=ome) as file:
        file.write(
            iter(tiles), shape=picture.shape, dtype=picture.dtype, tile=(TILE, TILE), photometric="minisblack",
            compression="adobe_deflate", predictor=not picture.is_label, software=_program(), **resolution,
            metadata=_ome(picture) if ome else None, maxworkers=1,
        )  # fmt: skip


def _ome(picture: Picture) -> dict[str, Any]:
    metadata = {"axes": "ZYX", "Name": picture.name, "UUID": str(uuid.uuid4()), "Creator": _program()}
    if picture.voxel_size_um is None:
        return metadata
    sizes = {f"PhysicalSize{axis}": length for axis, length in zip("ZYX", picture.voxel_size_um, strict=True)}
    return metadata | sizes | {f"PhysicalSize{axis}Unit": "µm" for axis in "ZYX"}


def write_png(path: Path, picture: Picture, bands: Iterable[Band]) -> None:
    """Write one slice as a grey PNG [1]_ of 8 or 16 bit.

    Parameters
    ----------
    path : Path
    picture : Picture
        Of one slice.
    bands : iterable of ndarray
        (y, x), from top to bottom.

    References
    ----------
    .. [1] https://www.w3.org/TR/png-3/
    """
    _, height, width = picture.shape
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.write(_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * picture.dtype.itemsize, 0, 0, 0, 0)))
        if picture.voxel_size_um is not None:
            _, y, x = picture.voxel_size_um
            file.write(_chunk(b"pHYs", struct.pack(">IIB", round(1e6 / x), round(1e6 / y), 1)))  # voxels in a metre
        stream = zlib.compressobj(picture.effort)
        for rows in _filtered(bands, picture.is_label):
            _write_data(file.write, stream.compress(rows.data))
        _write_data(file.write, stream.flush())
        file.write(_chunk(b"IEND", b""))


def _filtered(bands: Iterable[Band], is_label: bool) -> Iterator[NDArray[np.uint8]]:
    """Rows as they are compressed: each with its filter, which for grey levels is the difference from the row above."""
    above: NDArray[np.uint8] | None = None
    for band in bands:
        for top in range(0, len(band), _PNG_ROWS):
            part = band[top : top + _PNG_ROWS]
            levels = part.astype(part.dtype.newbyteorder(">")).view(np.uint8).reshape(len(part), -1)
            rows = np.empty((len(part), levels.shape[1] + 1), np.uint8)
            rows[:, 0] = 0 if is_label else 2
            rows[:, 1:] = levels
            if not is_label:
                rows[1:, 1:] -= levels[:-1]
                rows[0, 1:] -= 0 if above is None else above
            above = levels[-1]
            yield rows


def _write_data(write: Callable[[bytes], Any], data: bytes) -> None:
    if data:
        write(_chunk(b"IDAT", data))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _program() -> str:
    try:
        return f"kesm-pipeline {version('kesm-pipeline')}"
    except PackageNotFoundError:  # run from its sources
        return "kesm-pipeline"
