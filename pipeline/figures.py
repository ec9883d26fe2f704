"""Pictures of where a mask is right and wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, ShapeMismatchError, UnsupportedImageError
from pipeline.histogram import TRUTH_BACKGROUND, TRUTH_VESSEL

CYAN, MAGENTA, YELLOW, BLACK = (0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)


def overlay(
    image: NDArray[Any], truth: NDArray[np.uint8], mask: NDArray[np.uint8], alpha: float = 0.5
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
    if not 0 <= alpha <= 1:
        raise ConfigError(f"overlay: got alpha {alpha}, expected a weight of the image from 0 to 1")
    vessel, marked = truth == TRUTH_VESSEL, mask != 0
    annotated = vessel | (truth == TRUTH_BACKGROUND)
    colours = np.empty((*image.shape, 3))
    colours[:] = image[..., None]
    for where, colour in (
        (vessel & marked, CYAN),
        (annotated & ~vessel & marked, MAGENTA),
        (vessel & ~marked, YELLOW),
        (annotated & ~vessel & ~marked, BLACK),
    ):
        colours[where] = colour
    return np.rint(alpha * image[..., None] + (1 - alpha) * colours).astype(np.uint8)
