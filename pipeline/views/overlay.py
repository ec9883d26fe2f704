"""Pictures of where a mask is right and wrong, as pixels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, ShapeMismatchError, UnsupportedImageError
from pipeline.kernels.histogram import TRUTH_BACKGROUND, TRUTH_VESSEL
from pipeline.storage.confusion_label import FN, FP, TP

Colour = tuple[int, int, int]
Kinds = NDArray[np.uint8]
CYAN, MAGENTA, YELLOW, BLACK = (0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)
KINDS = ("tp", "fp", "fn")
PLAIN, TN = 0, 4  # what a pixel is, beside what the label of a confusion holds; PLAIN is what nobody annotated
_HEX = re.compile(r"#?([0-9a-fA-F]{6})")


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of a confusion, each (red, green, blue), 0 to 255."""

    tp: Colour = CYAN
    fp: Colour = MAGENTA
    fn: Colour = YELLOW
    tn: Colour = BLACK


# Sky blue, vermilion and yellow of Okabe and Ito [1]: apart by lightness too, so they differ with every kind of colour
# vision, and printed in grey.
# [1] https://jfly.uni-koeln.de/color/
PALETTES = {"article": Palette(), "colour-blind": Palette((86, 180, 233), (213, 94, 0), (240, 228, 66))}


def find_palette(name: str) -> Palette:
    """Find a built-in palette by its name.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if name not in PALETTES:
        raise ConfigError(f"palette: got {name!r}, expected {' or '.join(PALETTES)}")
    return PALETTES[name]


def read_colours(text: str, palette: Palette = PALETTES["article"]) -> Palette:
    """Read colours such as ``tp=#00ffff,fn=ff0000``; those that are not named stay the palette's.

    Raises
    ------
    ConfigError
        If a part is not ``tp``, ``fp``, ``fn`` or ``tn`` with six hexadecimal digits, or one comes twice.
    """
    colours = {kind: getattr(palette, kind) for kind in (*KINDS, "tn")}
    seen = set()
    for part in text.split(","):
        kind, _, code = (piece.strip() for piece in part.partition("="))
        found = _HEX.fullmatch(code)
        if kind not in colours or found is None or kind in seen:
            raise ConfigError(
                f"colours: got {part.strip()!r}, expected tp, fp, fn or tn, each once, and six hexadecimal digits for "
                "red, green and blue, as in tp=#00ffff,fp=#ff00ff"
            )
        seen.add(kind)
        red, green, blue = bytes.fromhex(found[1])
        colours[kind] = (red, green, blue)
    return Palette(**colours)


def overlay(
    image: NDArray[Any],
    truth: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    alpha: float = 0.5,
    palette: Palette = PALETTES["article"],
) -> NDArray[np.uint8]:
    """Blend an image with the colours of its confusion: TP cyan, FP magenta, FN yellow, TN black.

    Parameters
    ----------
    image : ndarray
        (y, x) uint8, not inverted.
    truth : ndarray
        (y, x) uint8: 0 background, 255 vessel; anything else is not annotated and shows the plain image.
    mask : ndarray
        (y, x) uint8: vessel where it is not 0.
    alpha : float
        Weight of the image, 0 to 1.
    palette : Palette
        Other colours.

    Returns
    -------
    ndarray
        (y, x, 3) uint8: ``alpha * image + (1 - alpha) * colour``, rounded half to even.

    Raises
    ------
    ShapeMismatchError
        If the shapes differ.
    UnsupportedImageError, ConfigError
        If the image is not uint8, or alpha not 0 to 1.
    """
    if not image.shape == truth.shape == mask.shape:
        raise ShapeMismatchError(
            f"overlay: got shapes {image.shape}, {truth.shape} and {mask.shape}; they must be equal"
        )
    if image.dtype != np.uint8:
        raise UnsupportedImageError(f"overlay: got an image of {image.dtype}, expected uint8; scale it to 0 to 255")
    return blend(image, classify(truth, mask), alpha, palette)


def classify(truth: NDArray[np.uint8], mask: NDArray[Any]) -> Kinds:
    """Compare a mask with a truth, pixel by pixel.

    Parameters
    ----------
    truth : ndarray
        (y, x) uint8: 0 background, 255 vessel; anything else is not annotated.
    mask : ndarray
        (y, x): vessel where it is not 0.

    Returns
    -------
    ndarray
        (y, x) uint8: ``TP``, ``FP``, ``FN``, ``TN``, or ``PLAIN`` where nobody annotated.
    """
    vessel = truth == TRUTH_VESSEL
    compared = np.array([TN, FN, FP, TP], np.uint8)[vessel + 2 * (mask != 0).view(np.uint8)]
    return np.where(vessel | (truth == TRUTH_BACKGROUND), compared, np.uint8(PLAIN))


def blend(image: NDArray[np.uint8], kinds: Kinds, alpha: float, palette: Palette) -> NDArray[np.uint8]:
    """Blend an image, (y, x) uint8, with the colours of what each pixel is, as `overlay` says; PLAIN is the image."""
    if not 0 <= alpha <= 1:
        raise ConfigError(f"overlay: got alpha {alpha}, expected a weight of the image from 0 to 1")
    # Looked up, as a slice of 140 Mvoxel in float64 would take 24 bytes a voxel.
    grey = np.arange(256.0)[:, None].repeat(3, axis=1)
    colours = (palette.tp, palette.fp, palette.fn, palette.tn)
    shown = [grey, *(np.broadcast_to(colour, grey.shape) for colour in colours)]
    blended = np.rint(alpha * grey + (1 - alpha) * np.stack(shown)).astype(np.uint8)
    pixels: NDArray[np.uint8] = blended[kinds, image]
    return pixels
