"""The filter of a recipe, as a function on planes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Triple
from pipeline.kernels.local import gaussian, gaussian_halo
from pipeline.kernels.median import median_tile
from pipeline.settings.recipe import GaussianDenoise, PythonDenoise, Recipe
from pipeline.settings.targets import grey_block

Array = NDArray[Any]
Denoiser = Callable[[Array, tuple[int, int], Array], None]
"""From planes, (z, y, x) of the filter's window, and where (y, x) in them a part begins, to the filtered part."""


def denoiser(recipe: Recipe) -> Denoiser:
    """Return the filter of a recipe; it inverts grey levels first where vessels are dark.

    Planes are reflected where they end, which is the slice's edge, or far enough from the part that it does not matter.
    """
    stage, dark = recipe.denoise, recipe.foreground == "dark"
    window = stage.window
    if isinstance(stage, GaussianDenoise):
        return lambda planes, start, out: _gaussian(planes, start, out, stage.sigma, dark)
    if isinstance(stage, PythonDenoise):
        return lambda planes, start, out: _python(planes, start, out, stage, dark)
    return lambda planes, start, out: median_tile(planes, start, window, dark, out)


def _gaussian(planes: Array, start: tuple[int, int], out: Array, sigma: float, dark: bool) -> None:
    (y, x), (height, width), reach = start, out.shape, gaussian_halo(sigma)
    top, left = max(0, y - reach), max(0, x - reach)
    around = planes[0, top : y + height + reach, left : x + width + reach]
    filtered = gaussian(_inverted(around) if dark else around, sigma)
    out[...] = filtered[y - top : y - top + height, x - left : x - left + width]


def _python(planes: Array, start: tuple[int, int], out: Array, stage: PythonDenoise, dark: bool) -> None:
    block = padded(_inverted(planes) if dark else planes, start, out.shape, stage.halo)
    _, y, x = stage.halo
    made = grey_block(stage.target, block)
    out[...] = made[stage.halo[0], y : y + out.shape[0], x : x + out.shape[1]]


def padded(planes: Array, start: tuple[int, int], shape: tuple[int, ...], halo: Triple) -> Array:
    """Copy a part of planes and its halo in the plane, reflected where the planes end."""
    _, reach_y, reach_x = halo
    (y, x), (height, width) = start, shape
    top, left, bottom, right = y - reach_y, x - reach_x, y + height + reach_y, x + width + reach_x
    inside = planes[:, max(0, top) : bottom, max(0, left) : right]
    beyond = [
        (0, 0),
        (max(0, -top), max(0, bottom - planes.shape[1])),
        (max(0, -left), max(0, right - planes.shape[2])),
    ]
    return np.pad(inside, beyond, "symmetric")


def _inverted(planes: Array) -> Array:
    return np.iinfo(planes.dtype).max - planes
