"""One slice of an image file: its address, what its pixels are, and the decoding of PNG, JPEG and BMP."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, JpegImagePlugin

from pipeline.errors import ImageFileError, MissingInputError, PipelineError, UnsupportedImageError

Channel = str | int | None
Sample = int | Literal["luminance"]
Pixels = NDArray[np.uint8] | NDArray[np.uint16]
StatedSize = tuple[float | None, float, float]
"""Size of a voxel, (z, y, x) in micrometres, of which z may not be known."""

# Larger than any camera's tile and any stitched section that the pipeline has a plan for (a KESM slice is 0.13 GiB);
# smaller than what a lying header asks for.
MAX_SLICE_BYTES = 16 * 2**30

_COLOURS = ("red", "green", "blue")
_TO_GREY = "convert it to 8 or 16 bit grey, e.g. in Fiji with Image > Type > 16-bit, or with skimage.util.img_as_uint"


@dataclass(frozen=True, slots=True)
class Page:
    """The address of one slice in a file: small, picklable, and without an open file.

    Attributes
    ----------
    path : Path
        Absolute path of the file.
    index, count : int
        Number of the slice in its file, from 0, and the number of slices in the file.
    shape : tuple of int
        ``(y, x)`` of the slice.
    dtype : str
        ``"uint8"`` or ``"uint16"``, as `images.stack.read_page` returns it.
    sample : int or "luminance"
        What is taken of each pixel; 0 for a grey image.
    directory_bytes : int
        Where the TIFF directory of the slice starts in the file; 0 for other formats.
    plane : int
        Number of the slice behind that directory, where one directory stands for many planes.
    stated_um : tuple or None
        Size of a voxel that the metadata of the file state.
    """

    path: Path
    index: int
    count: int
    shape: tuple[int, int]
    dtype: str
    sample: Sample = 0
    directory_bytes: int = 0
    plane: int = 0
    stated_um: StatedSize | None = None

    @property
    def name(self) -> str:
        """Name for messages: ``slice_2.png``, or ``stack.tif#3`` in a file of several slices."""
        return f"{self.path.name}#{self.index}" if self.count > 1 else self.path.name


@dataclass(frozen=True, slots=True)
class PixelKind:
    """What a header says of the pixels of one image."""

    shape: tuple[int, int]
    dtype: str
    samples: int = 1
    """Samples that hold signal: 1 is grey, 3 with `rgb` is colour, more are the channels of a microscope."""
    rgb: bool = False
    alpha: bool = False
    """Whether a sample of opacity follows the others."""

    @property
    def decoded_bytes(self) -> int:
        """Size of the decoded image."""
        y, x = self.shape
        return y * x * (self.samples + self.alpha) * np.dtype(self.dtype).itemsize

    def choose(self, channel: Channel, name: str) -> Sample:
        """Return which sample `channel` means in an image of this kind.

        Raises
        ------
        UnsupportedImageError
            If the image is in colour and no channel is named, or has no such channel.
        """
        number = int(channel) if isinstance(channel, str) and channel.isdecimal() else channel
        if self.samples == 1:
            if number in (None, 0):
                return 0
            raise UnsupportedImageError(f"{name}: has one channel, not {channel!r}; leave out --channel")
        if self.rgb and number in (*_COLOURS, "luminance"):
            return "luminance" if number == "luminance" else _COLOURS.index(str(number))
        if isinstance(number, int) and 0 <= number < self.samples:
            return number
        known = "red|green|blue|luminance" if self.rgb else f"0 to {self.samples - 1}"
        if channel is not None:
            raise UnsupportedImageError(f"{name}: got --channel {channel}, the image has --channel {known}")
        if self.rgb:
            raise UnsupportedImageError(
                f"{name}: is a colour image, expected grey; choose --channel {known} "
                "(--channel red if the picture is grey and only stored in colour)"
            )
        raise UnsupportedImageError(f"{name}: has {self.samples} channels, expected one; choose --channel {known}")


def refuse(name: str, found: str) -> UnsupportedImageError:
    """Return the error for pixels that no grey slice can be made of without a loss."""
    return UnsupportedImageError(f"{name}: has {found}, expected 8 or 16 bit unsigned integers; {_TO_GREY}")


def damaged(name: str, reason: str) -> ImageFileError:
    """Return the error for a file that is broken or holds less than it declares."""
    return ImageFileError(f"{name}: cannot be decoded ({reason}); re-export it or leave it out")


_logged: ContextVar[list[logging.LogRecord] | None] = ContextVar("decoding_log", default=None)


def _keep_record(record: logging.LogRecord) -> bool:
    """Keep what a reader logs while a slice is decoded; let pass what it logs for others."""
    records = _logged.get()
    if records is None:
        return True
    records.append(record)
    return False


# One filter for the process that looks up its list by context: adding and removing handlers would race between threads.
for _reader in ("tifffile", "imagecodecs"):
    logging.getLogger(_reader).addFilter(_keep_record)


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn whatever a reader raises, or logs as an error, on a broken file into an `ImageFileError` naming the slice.

    Logged warnings are dropped: they are of odd metadata, since the readers here check offsets, counts and sizes.
    """
    records: list[logging.LogRecord] = []
    token = _logged.set(records)
    try:
        yield
    except PipelineError:
        raise
    except FileNotFoundError as error:
        raise MissingInputError(f"{name}: no such file; was it moved, or is it a broken link?") from error
    except Exception as error:  # struct.error, zlib.error, SyntaxError, MemoryError...: readers raise nearly anything
        if isinstance(error, OSError) and error.strerror:
            raise ImageFileError(f"{name}: cannot be read ({error.strerror}); check the file and the disk") from error
        raise damaged(name, f"{type(error).__name__}: {_short(str(error))}") from error
    finally:
        _logged.reset(token)
    for record in records:
        if record.levelno >= logging.ERROR:
            raise damaged(name, _short(record.getMessage()))


def _short(text: str) -> str:
    """Return one line of what a reader said."""
    return " ".join(text.split())[:160]


def check_size(name: str, decoded_bytes: int, stored_bytes: int, largest_ratio: int) -> None:
    """Refuse, before anything is allocated, a header that declares more pixels than its data can hold.

    Parameters
    ----------
    name : str
        Name of the slice.
    decoded_bytes, stored_bytes : int
        What the header declares, and what the file holds of it.
    largest_ratio : int
        The most bytes that one byte of the compressed stream can decode to.
    """
    if decoded_bytes <= 0:
        raise damaged(name, "the header declares no pixels")
    if decoded_bytes > stored_bytes * largest_ratio:
        raise damaged(name, f"the header declares {decoded_bytes:,} bytes of pixels, {stored_bytes:,} bytes hold them")
    if decoded_bytes > MAX_SLICE_BYTES:
        raise UnsupportedImageError(
            f"{name}: one slice is {decoded_bytes / 2**30:.1f} GiB, at most {MAX_SLICE_BYTES / 2**30:.0f} GiB "
            "are decoded at once; cut it into smaller images"
        )


def take_sample(pixels: NDArray[Any], kind: PixelKind, sample: Sample, name: str, opaque: int) -> NDArray[Any]:
    """Return one sample ``(y, x)`` of decoded pixels ``(y, x)`` or ``(y, x, sample)``.

    Opacity is only ignored where it says nothing: it must be `opaque`, the largest value, everywhere.
    """
    if pixels.ndim == 2:
        return pixels
    if kind.alpha and pixels[..., -1].min() < opaque:
        raise UnsupportedImageError(
            f"{name}: has transparent pixels; flatten it, e.g. in Fiji with Image > Type > 16-bit, "
            "or save it without an alpha channel"
        )
    return luminance(pixels) if sample == "luminance" else pixels[..., sample]


def luminance(rgb: NDArray[Any]) -> NDArray[Any]:
    """Return the ITU-R 601 luma ``(299 R + 587 G + 114 B + 500) // 1000`` of pixels ``(y, x, sample)``, exactly."""
    luma = np.empty(rgb.shape[:2], rgb.dtype)
    for start in range(0, len(rgb), 64):  # strips of rows: the 32-bit sums of a whole slice would be 0.5 GiB
        red, green, blue = (rgb[start : start + 64, :, sample].astype(np.uint32) for sample in range(3))
        luma[start : start + 64] = (299 * red + 587 * green + 114 * blue + 500) // 1000
    return luma


class Codec(NamedTuple):
    """How one file format is recognised, described and decoded."""

    magic: bytes
    largest_ratio: int
    describe: Callable[[BinaryIO, str], PixelKind]
    decode: Callable[[bytes, str], NDArray[Any]]


def _describe_png(file: BinaryIO, name: str) -> PixelKind:
    """Read the chunks up to the first image data."""
    file.seek(8)
    chunks: dict[bytes, bytes] = {}
    while b"IDAT" not in chunks:
        size, tag = struct.unpack(">I4s", file.read(8))
        if tag in (b"IHDR", b"PLTE"):
            chunks[tag] = file.read(size)
            file.seek(4, io.SEEK_CUR)
        else:
            chunks[tag] = b""
            file.seek(size + 4, io.SEEK_CUR)
    if b"tRNS" in chunks:
        raise UnsupportedImageError(f"{name}: has transparent pixels; save it without transparency")
    if b"acTL" in chunks:
        raise UnsupportedImageError(f"{name}: is an animation; save its frames as a multi-page TIFF")
    x, y, bits, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    dtype = "uint16" if bits == 16 else "uint8"
    if colour == 3:
        colours = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
        return _palette_kind((y, x), colours)
    samples = {0: 1, 2: 3, 4: 1, 6: 3}[colour]
    return PixelKind((y, x), dtype, samples, rgb=samples == 3, alpha=colour >= 4)


def _palette_kind(shape: tuple[int, int], colours: NDArray[np.uint8]) -> PixelKind:
    """Return grey for a palette ``(colour, sample)`` of greys, and colour otherwise."""
    grey = bool((colours == colours[:, :1]).all())
    return PixelKind(shape, "uint8", samples=1 if grey else 3, rgb=not grey)


def _decode_png(data: bytes, name: str) -> NDArray[Any]:  # noqa: ARG001
    """Decode with libpng, twice as fast as Pillow [measured].

    Pillow also drops the low byte of 16-bit colour, and fills rows up with zeros if the data end early but properly.
    """
    pixels: NDArray[Any] = imagecodecs.png_decode(data)
    return pixels


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG without its EXIF block: nothing here needs it, and Pillow warns of a damaged one.

    The class is used instead of `PIL.Image.open` because the limit on the number of pixels, far below a KESM mosaic,
    sits there and can only be lifted for the whole process; `check_size` stands in for it.
    """

    def getexif(self) -> Image.Exif:
        """Return no EXIF tag."""
        return Image.Exif()


def _describe_jpeg(file: BinaryIO, name: str) -> PixelKind:
    image = _Jpeg(file)
    shape = (image.height, image.width)
    if image.mode not in ("L", "RGB", "CMYK"):
        raise refuse(name, f"pixels of kind {image.mode}")
    grey = image.mode == "L"
    return PixelKind(shape, "uint8", samples=1 if grey else 3, rgb=not grey)


def _decode_jpeg(data: bytes, name: str) -> NDArray[Any]:
    """Decode with Pillow: imagecodecs returns the rows of a truncated file that are missing as grey [measured]."""
    # A download that was cut short in a file of full length ends in zeros, which decode to grey without a word.
    if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise damaged(name, "the JPEG stream has no end")
    image = _Jpeg(io.BytesIO(data))
    image.load()
    return np.asarray(image if image.mode == "L" else image.convert("RGB"))


def _describe_bmp(file: BinaryIO, name: str) -> PixelKind:
    image = BmpImagePlugin.BmpImageFile(file)
    shape = (image.height, image.width)
    if image.mode == "P" and image.palette is not None:
        colours = np.frombuffer(bytes(image.palette.palette), np.uint8).reshape(-1, len(image.palette.rawmode or "BGR"))
        return _palette_kind(shape, colours[:, :3])
    if image.mode not in ("1", "L", "RGB", "RGBA"):
        raise refuse(name, f"pixels of kind {image.mode}")
    grey = image.mode in ("1", "L")
    return PixelKind(shape, "uint8", samples=1 if grey else 3, rgb=not grey, alpha=image.mode == "RGBA")


def _decode_bmp(data: bytes, name: str) -> NDArray[Any]:  # noqa: ARG001
    image = BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    image.load()
    if image.mode in ("1", "P"):
        return np.asarray(image.convert("L" if image.mode == "1" else "RGB"))
    return np.asarray(image)


# Ratios: deflate makes at most 1032 bytes of one, and 1-bit PNG pixels become bytes. JPEG spends at least one bit on a
# block of 64 pixels of one component, and subsampling shares it among more. One run of a BMP is 255 pixels in 2 bytes.
CODECS = (
    Codec(b"\x89PNG\r\n\x1a\n", 1032 * 8, _describe_png, _decode_png),
    Codec(b"\xff\xd8\xff", 4096, _describe_jpeg, _decode_jpeg),
    Codec(b"BM", 128, _describe_bmp, _decode_bmp),
)


def find_image(path: Path, codec: Codec, channel: Channel) -> Page:
    """Return the one slice of a PNG, JPEG or BMP file, from its header."""
    with decoding(path.name), path.open("rb") as file:
        kind = _describe_checked(file, codec, path.stat().st_size, path.name)
    return Page(path, 0, 1, kind.shape, kind.dtype, kind.choose(channel, path.name))


def read_image(page: Page, codec: Codec) -> NDArray[Any]:
    """Decode the slice of a PNG, JPEG or BMP file."""
    with decoding(page.name):
        data = page.path.read_bytes()
        kind = _describe_checked(io.BytesIO(data), codec, len(data), page.name)
        pixels = codec.decode(data, page.name)
        return take_sample(pixels, kind, page.sample, page.name, int(np.iinfo(pixels.dtype).max))


def _describe_checked(file: BinaryIO, codec: Codec, stored_bytes: int, name: str) -> PixelKind:
    kind = codec.describe(file, name)
    check_size(name, kind.decoded_bytes, stored_bytes, codec.largest_ratio)
    return kind


def write_png(path: Path, pixels: NDArray[Any]) -> None:
    """Write pixels as a PNG file, which appears under its name only when it is whole.

    Parameters
    ----------
    path : Path
    pixels : ndarray
        (y, x) uint8 or uint16 grey, or (y, x, 3) uint8 colour.
    """
    partial = path.with_name(f"{path.name}.partial")
    Image.fromarray(pixels).save(partial, format="PNG")
    partial.replace(path)


def encode_webp(grey: NDArray[np.uint8], quality: int) -> bytes:
    """Encode a grey picture, (y, x), with loss: quality 0 to 100."""
    file = io.BytesIO()
    Image.fromarray(grey).save(file, format="WEBP", quality=quality)
    return file.getvalue()


def encode_png(codes: NDArray[np.uint8], colours: Sequence[tuple[int, int, int]], clear: int) -> bytes:
    """Encode a picture of few colours, (y, x) codes that count from 0, one of which is transparent."""
    image = Image.fromarray(codes).convert("L")
    image.putpalette([sample for colour in colours for sample in colour])
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True, transparency=clear)
    return file.getvalue()
