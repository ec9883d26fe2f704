"""Seeded synthetic KESM volumes whose vessels are known exactly: the program's demo, test and benchmark data.

Vessels are tubes in ``(z, y, x)``: random walks, branching from a large vessel to venules to capillaries, that flow
around fibre tracts, the tiles without any vessel. A slice is painted from the walks near it, so any slice can be made
alone, in any order, and holds the same bits. Grey levels, grain and bright rims follow a real India-ink tile: tissue at
about 208, the walls of vessels at 160 to 180, the lumen of a large one at 55. Otsu's method after a 3x3 median does
well on a tile with vessels (MCC about 0.9) and marks shadows on one without, so the default volume scores about 0.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from pipeline.errors import ConfigError, RegionError

Floats: TypeAlias = NDArray[np.float64]
Plane: TypeAlias = NDArray[np.float32]

VESSEL = 255
NOT_ANNOTATED = 127

_TILE = 512  # side of the tiles that a tract empties: the default tile of a recipe
_TRACT_RADIUS = 374.0  # pixels; the half diagonal of a tile is 362
_TRACT_EVERY = 6  # complete tiles per tract
_PAD = 32.0  # pixels around the volume in which vessels start, so that its border is no sparser than its middle
_FADE = 1.0  # pixels outside the wall where the last of the shadow ends
_STREAM_TREE, _STREAM_PLANE, _STREAM_TRUTH = range(3)  # keep the generators of one seed apart


@dataclass(frozen=True, slots=True)
class _Calibre:
    """One class of vessels."""

    radius: tuple[float, float]  # pixels, uniform between the two
    length: float  # pixels along the vessel
    turn: float  # radians per square root of pixel
    branch_share: float  # of these vessels start on a wider one, the others anywhere
    per_megavoxel: float


_VENULE = _Calibre(radius=(4.0, 7.5), length=260.0, turn=0.06, branch_share=0.1, per_megavoxel=0.6)
_CAPILLARY = _Calibre(radius=(2.0, 3.8), length=160.0, turn=0.16, branch_share=0.15, per_megavoxel=9.0)
_LARGE_RADIUS = 13.0  # pixels; the largest vessel of the real tile has 15


@dataclass(frozen=True, slots=True)
class _Tree:
    """Balls along the vessels: rows of centres ``(z, y, x)`` with their radius and ink, a ball an item."""

    centres: Floats
    radii: Floats
    ink: Floats  # 0 to 1: how dark the vessel is

    def __add__(self, other: _Tree) -> _Tree:
        return _Tree(
            np.concatenate([self.centres, other.centres]),
            np.concatenate([self.radii, other.radii]),
            np.concatenate([self.ink, other.ink]),
        )

    def select(self, keep: NDArray[np.bool_]) -> _Tree:
        return _Tree(self.centres[keep], self.radii[keep], self.ink[keep])


@dataclass(frozen=True, slots=True)
class Phantom:
    """A synthetic KESM volume with known truth, made slice by slice.

    Attributes
    ----------
    shape : tuple of int
        Voxels ``(z, y, x)``. The default is no multiple of a tile.
    seed : int
        Not negative. The same shape and seed always give the same voxels, whichever slices were made before.
    dtype : {"uint8", "uint16"}
        Type of the image; ``uint16`` spreads the same grey levels over 0 to 65535.

    Raises
    ------
    ConfigError
        If the shape, seed or dtype cannot be used.

    Examples
    --------
    >>> image, truth = Phantom((2, 300, 700), seed=1).slice(0)
    >>> image.shape, image.dtype.name, truth.dtype.name
    ((300, 700), 'uint8', 'uint8')
    """

    shape: tuple[int, int, int] = (8, 1100, 1700)
    seed: int = 0
    dtype: Literal["uint8", "uint16"] = "uint8"

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ConfigError(f"phantom: got shape {self.shape}, expected three positive sizes (z, y, x)")
        if self.seed < 0:
            raise ConfigError(f"phantom: got seed {self.seed}, expected 0 or more")
        if self.dtype not in ("uint8", "uint16"):
            raise ConfigError(f"phantom: got dtype {self.dtype!r}, expected 'uint8' or 'uint16'")

    @property
    def out_of_focus(self) -> int | None:
        """The slice that is blurred; None in a volume of one slice."""
        depth = self.shape[0]
        return 2 * depth // 3 if depth > 1 else None

    def slice(self, z: int) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], NDArray[np.uint8]]:
        """Make the image of one slice, and its complete truth.

        Parameters
        ----------
        z : int
            Slice number, from 0.

        Returns
        -------
        image : (y, x) array of ``dtype``
            Dark vessels on bright tissue.
        truth : (y, x) array of uint8
            0 background, 255 vessel.

        Raises
        ------
        RegionError
            If the volume has no such slice.
        """
        self._check(z)
        inside, shadow = _paint(_tree(self.shape, self.seed), z, self.shape[1:])
        blur = 2.2 if z == self.out_of_focus else 0.0
        levels = _expose(shadow, np.random.default_rng((self.seed, _STREAM_PLANE, z)), blur)
        if self.dtype == "uint16":
            return np.rint(levels * 257).astype(np.uint16), _as_truth(inside)
        return np.rint(levels).astype(np.uint8), _as_truth(inside)

    def truth(self, z: int) -> NDArray[np.uint8]:
        """Make the complete truth of one slice alone, as `slice` does."""
        self._check(z)
        inside, _ = _paint(_tree(self.shape, self.seed), z, self.shape[1:])
        return _as_truth(inside)

    def partial_truth(self, z: int) -> NDArray[np.uint8] | None:
        """Make what an expert with little time annotated: the even slices, each without one rectangle.

        Parameters
        ----------
        z : int
            Slice number, from 0.

        Returns
        -------
        (y, x) array of uint8, or None
            0 background, 255 vessel, 127 not annotated; None for a slice that nobody annotated.

        Raises
        ------
        RegionError
            If the volume has no such slice.
        """
        self._check(z)
        if z % 2:
            return None
        truth = self.truth(z)
        rng = np.random.default_rng((self.seed, _STREAM_TRUTH, z))
        size = [-(-side // 2) for side in truth.shape]
        y, x = (int(rng.integers(side - part + 1)) for side, part in zip(truth.shape, size, strict=True))
        truth[y : y + size[0], x : x + size[1]] = NOT_ANNOTATED
        return truth

    def _check(self, z: int) -> None:
        """Refuse a slice that the volume does not have."""
        if not 0 <= z < self.shape[0]:
            raise RegionError(f"phantom: got slice {z}, expected 0 to {self.shape[0] - 1}")


def _as_truth(inside: Plane) -> NDArray[np.uint8]:
    """Label what lies inside a wall."""
    return np.where(inside > 0, np.uint8(VESSEL), np.uint8(0))


def _tracts(height: int, width: int) -> Floats:
    """Centres ``(y, x)`` of the fibre tracts: the last complete tile and every sixth before it, never the only one."""
    rows, columns = height // _TILE, width // _TILE
    tiles = range(rows * columns - 1, 0, -_TRACT_EVERY)
    return np.array([divmod(tile, columns) for tile in tiles], dtype=np.float64).reshape(-1, 2) * _TILE + _TILE / 2


def _from_tract(points: Floats, tracts: Floats) -> tuple[Floats, Floats]:
    """Distance of points ``(n, 2)`` to the nearest tract's centre, and the direction away from it."""
    if not len(tracts):
        return np.full(len(points), np.inf), np.zeros_like(points)
    distance, nearest = KDTree(tracts).query(points)
    away: Floats = (points - tracts[nearest]) / np.maximum(distance, 1)[:, None]
    return distance, away


def _unit(vectors: Floats) -> Floats:
    """Scale vectors to length one."""
    scaled: Floats = vectors / np.sqrt((vectors**2).sum(axis=-1, keepdims=True))
    return scaled


def _walk(
    rng: np.random.Generator, start: Floats, heading: Floats, radii: Floats, *, calibre: _Calibre, tracts: Floats
) -> _Tree:
    """Follow vessels from their starts, half a radius a step at most, bending at random and away from the tracts."""
    step = np.minimum(radii / 2, 2)[:, None]
    position, heading, bend = start.copy(), heading.copy(), np.zeros_like(start)
    path = [position.copy()]
    for _ in range(int(calibre.length / step.min())):
        bend = 0.8 * bend + 0.4 * rng.standard_normal(start.shape)
        heading += calibre.turn * np.sqrt(step) * bend
        distance, away = _from_tract(position[:, 1:], tracts)
        push = np.clip((_TRACT_RADIUS + 100 + radii - distance) / 50, 0, 1)  # whole from 50 pixels away
        heading[:, 1:] += 0.02 * (step * push[:, None]) * away
        heading = _unit(heading)
        position += step * heading
        path.append(position.copy())
    ink = rng.uniform(0.65, 1.0, len(start))
    return _Tree(np.concatenate(path), np.tile(radii, len(path)), np.tile(ink, len(path)))


def _large_vessel(rng: np.random.Generator, shape: tuple[int, int, int], tracts: Floats) -> _Tree:
    """Lay one large vessel along the middle slice, in from the left edge."""
    depth, height, width = shape
    radius = min(_LARGE_RADIUS, max(2.0, min(height, width) / 24))
    calibre = _Calibre((radius, radius), 1.6 * width + 2 * _PAD, turn=0.006, branch_share=0, per_megavoxel=0)
    start = np.array([[0.0, height * rng.uniform(0.15, 0.35), -_PAD]])
    tree = _walk(rng, start, np.array([[0.0, 0.0, 1.0]]), np.array([radius]), calibre=calibre, tracts=tracts)
    centres = tree.centres * (0.01, 1, 1) + ((depth - 1) / 2, 0, 0)  # nearly flat, to stay in a thin volume
    return _Tree(centres, tree.radii, np.ones_like(tree.ink))


def _grow(
    rng: np.random.Generator, parents: _Tree, calibre: _Calibre, shape: tuple[int, int, int], tracts: Floats
) -> _Tree:
    """Grow all the vessels of one class, some of them from the wall of wider ones, and leave the tracts empty."""
    extent = np.array(shape) + 2 * _PAD
    count = max(1, round(calibre.per_megavoxel * extent.prod() / 1e6))
    branches = round(calibre.branch_share * count)
    start = rng.uniform(-_PAD, extent - _PAD, (count, 3))
    start[:branches] = parents.centres[rng.integers(len(parents.radii), size=branches)]
    heading = _unit(rng.standard_normal((count, 3)))
    tree = _walk(rng, start, heading, rng.uniform(*calibre.radius, count), calibre=calibre, tracts=tracts)
    z, y, x = tree.centres.T
    depth, height, width = shape
    reach = tree.radii + _FADE
    seen = (abs(z - depth / 2) < depth / 2 + reach) & (abs(y - height / 2) < height / 2 + reach)
    seen &= abs(x - width / 2) < width / 2 + reach
    tree = tree.select(seen)
    return tree.select(_from_tract(tree.centres[:, 1:], tracts)[0] > _TRACT_RADIUS + tree.radii + _FADE)


@lru_cache(maxsize=4)
def _tree(shape: tuple[int, int, int], seed: int) -> _Tree:
    """Grow every vessel of a volume; the same one for all its slices."""
    rng = np.random.default_rng((seed, _STREAM_TREE))
    tracts = _tracts(*shape[1:])
    large = _large_vessel(rng, shape, tracts)
    wide = large + _grow(rng, large, _VENULE, shape, tracts)
    return wide + _grow(rng, wide, _CAPILLARY, shape, tracts)


def _paint(tree: _Tree, z: int, plane: tuple[int, ...]) -> tuple[Plane, Plane]:
    """Cut the vessels at one slice: depth inside the nearest wall (pixels, negative outside), and shadow (0 to 1)."""
    height, width = plane
    inside = np.full(height * width, -_FADE, dtype=np.float32)
    shadow = np.zeros(height * width, dtype=np.float32)
    reach = tree.radii + _FADE
    near = tree.select(abs(tree.centres[:, 0] - z) < reach)
    half = np.ceil(np.sqrt((near.radii + _FADE) ** 2 - (near.centres[:, 0] - z) ** 2)).astype(np.intp)
    for size in np.unique(half):
        balls = near.select(half == size)
        offsets = np.arange(-size, size + 1)
        y = np.rint(balls.centres[:, 1]).astype(np.intp)[:, None, None] + offsets[:, None]
        x = np.rint(balls.centres[:, 2]).astype(np.intp)[:, None, None] + offsets
        dz, cy, cx = balls.centres.T[:, :, None, None]
        depth = balls.radii[:, None, None] - np.sqrt((dz - z) ** 2 + (y - cy) ** 2 + (x - cx) ** 2)
        hit = (depth > -_FADE) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        depth, pixel = depth[hit].astype(np.float32), (y * width + x)[hit]
        np.maximum.at(inside, pixel, depth)
        ink = np.broadcast_to(balls.ink[:, None, None], hit.shape)[hit]
        np.maximum.at(shadow, pixel, (ink * (1 - np.exp(-(depth + _FADE) / 2.6))).astype(np.float32))
    return inside.reshape(plane), shadow.reshape(plane)


def _tissue(rng: np.random.Generator, plane: tuple[int, ...]) -> Plane:
    """Draw the grey levels of tissue alone: smooth grain with bright specks, and patches, the dark ones deep."""
    height, width = plane
    coarse = rng.standard_normal((height // 8 + 1, width // 8 + 1), dtype=np.float32)
    patches: Plane = 5.3 * ndimage.gaussian_filter(coarse, 1.5, mode="reflect")
    patches -= 12 * np.maximum(-patches - 0.9, 0)
    fine = rng.standard_normal(plane, dtype=np.float32)
    grain: Plane = 6.4 * ndimage.gaussian_filter(fine, 1.8, mode="reflect")
    levels: Plane = 208 + 2 * grain + 2 * np.maximum(grain - 1, 0) ** 2
    levels += ndimage.zoom(patches, 8, order=1)[:height, :width]
    return levels


def _light(rng: np.random.Generator, plane: tuple[int, ...]) -> Plane:
    """Draw the lamp's uneven light, the knife's chatter in rows and the sensor's gain in columns, around 1."""
    height, width = plane
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    chatter = 0.004 * np.sin(2 * np.pi * (np.arange(height)[:, None] / 23 + rng.random()))
    columns = rng.normal(0, 0.002, width)
    light: Plane = (1.04 - 0.06 * (x - 0.3) ** 2 - 0.05 * (y - 0.4) ** 2 + chatter + columns).astype(np.float32)
    return light


def _expose(shadow: Plane, rng: np.random.Generator, blur: float) -> Plane:
    """Turn the shadow of the vessels into the grey levels (0 to 255) that a camera sees; blur is a sigma in pixels."""
    levels = _tissue(rng, shadow.shape)
    levels -= 150 * shadow
    levels[3:, 2:] += 60 * np.clip(shadow[:-3, :-2] - shadow[3:, 2:], 0, 1)  # the rim, as the knife lifts the ink
    levels *= _light(rng, shadow.shape)
    if blur:
        levels = ndimage.gaussian_filter(levels, blur, mode="reflect")
    levels += 2 * rng.standard_normal(shadow.shape, dtype=np.float32)
    exposed: Plane = np.clip(levels, 0, 255)
    return exposed
