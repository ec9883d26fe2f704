"""Boxes and grids of voxels: pure integers, axes ``(z, y, x)``, half-open.

Tiles, shards and blocks are three grids over one volume, all anchored at its origin; what one task may write is decided
by how their cells nest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from operator import add, floordiv, mul, sub

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

Triple = tuple[int, int, int]

# A nanometre and a metre: beyond them somebody means another unit, and image files cannot state it.
SMALLEST_UM, LARGEST_UM = 1e-3, 1e6


def is_voxel_side(length_um: float) -> bool:
    """Whether voxels can be as long as this, in micrometres."""
    return SMALLEST_UM <= length_um <= LARGEST_UM


def ceil_div(length: int, step: int) -> int:
    """Number of steps that cover a length."""
    return -(-length // step)


@dataclass(frozen=True, slots=True)
class Box:
    """Half-open box of voxels (or of grid cells), ``start <= index < stop``."""

    start: Triple
    stop: Triple

    @classmethod
    def whole(cls, shape: Triple) -> Box:
        """Box of everything in an array of this shape."""
        return cls((0, 0, 0), shape)

    @classmethod
    def of_slice(cls, z: int, shape: tuple[int, ...]) -> Box:
        """Box of one slice, whose height and width are the last two lengths of a shape."""
        return cls((z, 0, 0), (z + 1, shape[-2], shape[-1]))

    @property
    def shape(self) -> Triple:
        """Extent along each axis; 0 where the box is empty."""
        z, y, x = map(sub, self.stop, self.start)
        return max(0, z), max(0, y), max(0, x)

    @property
    def size(self) -> int:
        """Number of voxels."""
        z, y, x = self.shape
        return z * y * x

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index."""
        z, y, x = map(slice, self.start, self.stop)
        return z, y, x

    def __and__(self, other: Box) -> Box:
        """Voxels in both boxes."""
        return Box(_each(max, self.start, other.start), _each(min, self.stop, other.stop))

    def grow(self, halo: Triple) -> Box:
        """Box with this many voxels more on both sides of each axis; may leave the volume."""
        return Box(
            _each(sub, self.start, halo),
            _each(add, self.stop, halo),
        )

    def relative_to(self, origin: Triple) -> Box:
        """Same box, in coordinates that count from ``origin``."""
        return Box(
            _each(sub, self.start, origin),
            _each(sub, self.stop, origin),
        )

    def moved(self, slices: int) -> Box:
        """Same voxels, so many slices further on."""
        return self.relative_to((-slices, 0, 0))

    def __iter__(self) -> Iterator[Triple]:
        """Every index inside, z slowest."""
        (z0, y0, x0), (z1, y1, x1) = self.start, self.stop
        return product(range(z0, z1), range(y0, y1), range(x0, x1))

    def __str__(self) -> str:
        """Text that ``--region`` takes."""
        return ",".join(
            f"{axis}={start}:{stop}" for axis, start, stop in zip("zyx", self.start, self.stop, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Grid:
    """A volume of ``shape`` voxels cut into cells of ``step`` voxels; cells at the far edges are smaller."""

    shape: Triple
    step: Triple

    @property
    def cells(self) -> Triple:
        """Number of cells along each axis."""
        return _each(ceil_div, self.shape, self.step)

    def box(self, index: Triple) -> Box:
        """Voxels of one cell."""
        start = _each(mul, index, self.step)
        return Box(start, _each(min, _each(add, start, self.step), self.shape))

    def cover(self, box: Box) -> Box:
        """Cells that a box of voxels touches, as a box of cell indices."""
        inside = box & Box.whole(self.shape)
        if not inside.size:
            return Box((0, 0, 0), (0, 0, 0))
        return Box(_each(floordiv, inside.start, self.step), _each(ceil_div, inside.stop, self.step))

    def voxels(self, cells: Box) -> Box:
        """Voxels of a box of cells."""
        start = _each(mul, cells.start, self.step)
        stop = _each(mul, cells.stop, self.step)
        return Box(start, stop) & Box.whole(self.shape)

    def sizes(self, cells: Box) -> NDArray[np.int64]:
        """Number of voxels of each cell in a box of cells, int64, of the shape of the box."""
        z, y, x = (
            np.minimum(np.arange(first + 1, last + 1) * step, length) - np.arange(first, last) * step
            for first, last, step, length in zip(cells.start, cells.stop, self.step, self.shape, strict=True)
        )
        return z[:, None, None] * y[:, None] * x

    def round_out(self, box: Box) -> Box:
        """Smallest box of whole cells around a box of voxels."""
        return self.voxels(self.cover(box))

    def parts(self, box: Box) -> Iterator[Box]:
        """Cut a box of voxels into parts that each lie in one cell."""
        for index in self.cover(box):
            yield self.box(index) & box

    def owns(self, other: Grid) -> bool:
        """Whether every cell of ``other`` lies in one cell of this grid, so that one task can write it whole."""
        return self.shape == other.shape and all(
            step % inner == 0 or step >= length
            for step, inner, length in zip(self.step, other.step, self.shape, strict=True)
        )


def check_nesting(tiles: Grid, shards: Grid, blocks: Grid) -> None:
    """Prove that no tile and no shard is shared by two blocks.

    Raises
    ------
    ConfigError
        If two tasks would write one shard, or one tile would be cut.
    """
    # Also in a volume of one shard: it may grow no wider, but a recipe must mean the same for every volume.
    if shards.step[1] % tiles.step[1]:
        raise ConfigError(
            f"tile: got {tiles.step[1]}, which does not divide the shard of {shards.step[1]} voxels; use a divisor "
            f"of {shards.step[1]}, such as 256, 512 or 1024"
        )
    if not blocks.owns(shards):
        raise ConfigError(
            f"block: {blocks.step} voxels would cut shards of {shards.step}; use whole multiples of the shard"
        )


def _each(rule: Callable[[int, int], int], left: Triple, right: Triple) -> Triple:
    z, y, x = map(rule, left, right)  # with functions of C: half a million boxes are made for a volume
    return z, y, x
