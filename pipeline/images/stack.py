"""A stack: what a microscopist types (files, globs, folders) as an ordered sequence of 2-D grey slices.

Headers are read first, pixels one slice at a time. The readers are in `images.pixels` (Pillow, imagecodecs) and in
`images.tiff` and `images.planes` (tifffile); other modules need this one only.

The z order is the natural order of the paths (``slice_2`` before ``slice_10``, ``run2/`` before ``run10/``), and not
the order in which they were typed: shells expand ``slice_*.png`` and ``run*/`` in lexical order.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.errors import ConfigError, ImageFileError, MissingInputError, ShapeMismatchError, UnsupportedImageError
from pipeline.images.pixels import CODECS, Channel, Codec, Page, Pixels, decoding, find_image, read_image
from pipeline.images.tiff import MAGICS, find_slices, read_slice

__all__ = [
    "SUFFIXES", "Channel", "Page", "Pixels", "find_page", "find_pages", "list_images", "natural_key", "read_page",
]  # fmt: skip

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".btf", ".tf8")
"""What an image is called in a folder or glob; a file that is named on its own may be called anything."""

_HEADER_THREADS = 4  # opening a file waits for the disk or network, parsing a header holds the GIL


def find_pages(sources: Sequence[str | Path], channel: Channel = None) -> list[Page]:
    """Return the slices of a stack in z order, reading headers only.

    Parameters
    ----------
    sources : sequence of str or Path
        Files, glob patterns and folders. Of a folder the images directly in it are taken, of a glob pattern the images
        that match; hidden files and files with other suffixes than `SUFFIXES` are left out of both.
    channel : str or int, optional
        What is taken of images in colour or of several channels: ``"red"``, ``"green"``, ``"blue"``, ``"luminance"``
        or the number of a channel. For grey images it may only be 0.

    Returns
    -------
    list of Page
        One address for each slice, in the natural order of the paths and, within a file, in the order of z.

    Raises
    ------
    MissingInputError
        If there is no such file or folder, or no image in a folder or under a pattern.
    ConfigError
        If a file is named twice, or the order of two files cannot be told from their names.
    ImageFileError
        If a file is no image, is broken, or holds less than it declares.
    UnsupportedImageError
        If the pixels are not 8 or 16 bit unsigned integers, or are in colour and `channel` is not given.
    ShapeMismatchError
        If two slices differ in shape or type.
    """
    paths: list[Path] = []
    for source in sources:
        with decoding(str(source)):  # a folder that may not be listed, a name that is too long
            paths += _expand(source)
    paths = _ordered(paths)
    if not paths:
        raise MissingInputError("got no source; name image files, a folder or a pattern such as 'slices/*.png'")
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        pages = [page for found in pool.map(partial(_find_in_file, channel=channel), paths) for page in found]
    first = pages[0]
    for page in pages:
        if (page.shape, page.dtype) != (first.shape, first.dtype):
            raise ShapeMismatchError(
                f"{page.name}: is {page.dtype} {page.shape}, {first.name} is {first.dtype} {first.shape}; "
                "a stack has slices (y, x) of one shape and type: leave the other ones out, crop or convert them"
            )
    return pages


def list_images(folder: Path) -> list[Path]:
    """Return the absolute paths of the images directly in a folder, in natural order; of none, where it has none.

    Raises
    ------
    MissingInputError, ImageFileError
        If it is no folder, or may not be listed.
    """
    with decoding(str(folder)):
        if not folder.is_dir():
            raise MissingInputError(f"{folder}: no such folder; is its disk mounted?")
        images = [path.absolute() for path in folder.iterdir() if _is_image(path)]
    return sorted(images, key=lambda path: (natural_key(path), path.name))


def find_page(path: Path, channel: Channel = None) -> Page:
    """Return the one slice of a file, reading its header only; see `find_pages`.

    Raises
    ------
    UnsupportedImageError
        If there are several in it, or none that can be stored.
    ImageFileError
        If the file is no image, is broken, or holds less than it declares.
    """
    pages = _find_in_file(path, channel)
    if len(pages) != 1:
        raise UnsupportedImageError(f"{path.name}: holds {len(pages)} slices, expected one; save each as a file")
    return pages[0]


def read_page(page: Page) -> Pixels:
    """Return the pixels of one slice.

    Thread-safe; the file is open during the call only. Larger values are brighter, also in files where 0 is white.

    Parameters
    ----------
    page : Page
        An address from `find_pages`.

    Returns
    -------
    ndarray of uint8 or uint16
        Pixels ``(y, x)``, C-contiguous, writable and in native byte order.

    Raises
    ------
    MissingInputError
        If the file is gone.
    ImageFileError
        If the file cannot be decoded, is truncated, or is not the one that `find_pages` saw.
    UnsupportedImageError
        If some pixels are transparent.
    """
    codec = _recognise(page.path, page.name)
    pixels = read_slice(page) if codec is None else read_image(page, codec)
    if (pixels.shape, pixels.dtype.name) != (page.shape, page.dtype):
        raise ImageFileError(
            f"{page.name}: got {pixels.dtype} {pixels.shape}, its header declared {page.dtype} {page.shape}; "
            "re-export it, or start again if it was replaced meanwhile"
        )
    result: Pixels = np.require(pixels, page.dtype, ["C", "W"])
    return result


def _find_in_file(path: Path, channel: Channel) -> list[Page]:
    """Return the slices of one file."""
    codec = _recognise(path, path.name)
    return find_slices(path, channel) if codec is None else [find_image(path, codec, channel)]


def _recognise(path: Path, name: str) -> Codec | None:
    """Return the codec of a file, or None for a TIFF file, by its first bytes: suffixes are often wrong."""
    with decoding(name):
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe is to wait for who writes to it
            raise UnsupportedImageError(f"{name}: is no regular file; leave it out")
        with path.open("rb") as file:
            head = file.read(8)
    if not head:
        raise ImageFileError(f"{name}: is empty; re-export it or leave it out")
    if head[:4] in MAGICS:
        return None
    for codec in CODECS:
        if head.startswith(codec.magic):
            return codec
    raise UnsupportedImageError(f"{name}: is not a PNG, JPEG, BMP or TIFF image; convert it or leave it out")


def _expand(source: str | Path) -> list[Path]:
    """Return the files that one source stands for."""
    path = Path(source)
    if path.is_dir():
        return _images(path.iterdir(), f"{source}: the folder")
    if os.path.lexists(path):  # before the pattern: ``scan[1].tif`` is a common name
        return [path]
    if glob.has_magic(str(source)):
        return _images(map(Path, glob.glob(str(source), recursive=True)), f"{source}: the pattern")  # noqa: PTH207
    raise MissingInputError(f"{source}: no such file or folder")


def _images(entries: Iterable[Path], where: str) -> list[Path]:
    """Return the images among the entries of a folder or the matches of a pattern; a broken link counts as one."""
    found = list(entries)
    images = [path for path in found if _is_image(path)]
    if images:
        return images
    folders = sorted(path.name for path in found if path.is_dir())
    reason = f"none of its {len(found)} entries ends in {', '.join(SUFFIXES)}" if found else "it is empty"
    hint = f"; name the folder {folders[0]} in it?" if folders else ""
    raise MissingInputError(f"{where} holds no image: {reason}{hint}")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name[0] != "." and not path.is_dir()


def _ordered(paths: Iterable[Path]) -> list[Path]:
    """Return absolute paths in natural order, and refuse those that have no order."""
    by_key: dict[object, Path] = {}
    for path in (Path(os.path.abspath(path)) for path in paths):  # noqa: PTH100 - removes "..", but follows no link
        key = natural_key(path)
        other = by_key.setdefault(key, path)
        if other is path:
            continue
        if other == path:
            raise ConfigError(f"{path.name}: is named twice; name each file once")
        raise ConfigError(f"{other.name} and {path.name}: same place in the z order; leave one out or rename it")
    return [by_key[key] for key in sorted(by_key)]  # type: ignore[type-var]


def natural_key(path: Path) -> tuple[tuple[tuple[int, int, str], ...], ...]:
    """Return a key that sorts numbers by value and letters without case, folder by folder and without the suffix."""
    return tuple(
        tuple(
            (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in _DIGITS.split(name.casefold()) if part
        )
        for name in (*path.parent.parts, path.stem)
    )


_DIGITS = re.compile(r"([0-9]+)")
