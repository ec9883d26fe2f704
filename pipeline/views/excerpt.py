"""A part of one slice as pixels: image, truth and mask, from the level of the pyramid that its size on paper needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DamageError, MissingInputError, RegionError
from pipeline.geometry import Box, Triple, ceil_div
from pipeline.kernels.histogram import TRUTH_BACKGROUND, TRUTH_UNLABELLED
from pipeline.storage.confusion_label import confusion_name
from pipeline.storage.keys import stale_confusions, stale_pyramids, valid_tiles
from pipeline.storage.ome import VoxelSize
from pipeline.storage.painting import Painting
from pipeline.storage.tables import RunTables, run_names, way_on
from pipeline.storage.volume import Volume
from pipeline.views.overlay import PLAIN, TN, classify
from pipeline.views.rendition import open_rendition, read_compared

Labels = NDArray[np.uint8]

MOST_PIXELS = 1 << 24
"""Of a picture: more than a screen has, and 2 GB to draw."""


@dataclass(frozen=True, eq=False)
class Excerpt:
    """What is to be seen of a box of one slice.

    Attributes
    ----------
    box : Box
        Voxels that are shown: whole pixels.
    level : int
        Of the pyramid; a pixel is ``step`` voxels high and wide.
    voxel_size_um : tuple or None
        (z, y, x) in micrometres, where it is known.
    image : ndarray
        (y, x) uint8, not inverted; of 16 bit the window of the volume.
    truth : ndarray or None
        (y, x) uint8: 0, 127 not annotated, 255. From level 1 on a pixel is vessel where any of its voxels is. With the
        mask of a run, what that does not compare, outside of its valid area, is not annotated.
    mask : ndarray or None
        (y, x) uint8: 0, 255; alike.
    done : ndarray or None
        (y, x) bool: pixels of tiles whose mask is of what the volume holds now.
    errors : ndarray or None
        (y, x) uint8 from level 1 on, where the run keeps a label of its confusion with the truth: what that shows.
    """

    box: Box
    level: int
    voxel_size_um: VoxelSize | None
    image: NDArray[np.uint8]
    truth: Labels | None = None
    mask: Labels | None = None
    done: NDArray[np.bool_] | None = None
    errors: Labels | None = None

    @property
    def step(self) -> int:
        """Voxels along the side of a pixel."""
        return 1 << self.level

    def known_truth(self) -> Labels:
        """The truth, not annotated where there is no mask to compare with it.

        Raises
        ------
        MissingInputError
            If nothing is compared there.
        """
        if self.truth is None:
            raise MissingInputError(f"{self.box}: has no truth; name one with --truth")
        known = self.truth
        if self.done is not None and not self.done.all():
            known = np.where(self.done, known, np.uint8(TRUTH_UNLABELLED))
        if (known == TRUTH_UNLABELLED).all():
            raise MissingInputError(
                f"{self.box}: nothing is compared there, as none of it is annotated and valid; choose another --slice, "
                "--region or --at"
            )
        return known

    def kinds(self) -> Labels:
        """What each pixel is, (y, x) uint8, of `views.overlay`: by the label of the confusion, where there is one.

        Raises
        ------
        MissingInputError
            As `known_truth`.
        """
        truth = self.known_truth()
        if self.errors is None:
            return classify(truth, np.zeros_like(truth) if self.mask is None else self.mask)
        # The label is empty in the background, and also where nothing was compared.
        kinds = np.where((self.errors == 0) & (truth == TRUTH_BACKGROUND), np.uint8(TN), self.errors)
        return np.where(truth == TRUTH_UNLABELLED, np.uint8(PLAIN), kinds)


def choose_level(shape: tuple[int, int], levels: int, pixels: int) -> int:
    """First level at which both sides, of (y, x) voxels, have at most so many pixels, and all at most `MOST_PIXELS`."""

    def fits(level: int) -> bool:
        step = 1 << level
        height, width = (ceil_div(length - 1, step) + 1 for length in shape)  # at most, wherever they begin
        return ceil_div(max(shape), step) <= pixels and height * width <= MOST_PIXELS

    return next(filter(fits, range(levels)), levels - 1)


def read_excerpt(
    volume: Volume,
    box: Box,
    pixels: int,
    level: int | None = None,
    truth: str | None = None,
    mask: str | None = None,
) -> Excerpt:
    """Read what a picture shows.

    Parameters
    ----------
    volume : Volume
    box : Box
        Voxels of one slice; at a coarse level they are rounded outward to whole pixels.
    pixels : int
        At most so many along each side decide the level, unless it is given.
    level : int, optional
    truth, mask : str, optional
        Labels that are shown, too; the truth only where it is compared with the mask: see `read_compared`.

    Raises
    ------
    ConfigError
        If there is no such level, or too many pixels.
    MissingInputError
        If the slice, the truth of the slice, or the mask of the whole box does not exist.
    DamageError
        If a shard is lost, or is not what was recorded; see `Rendition.read`.
    """
    z, levels = box.start[0], len(volume.image.levels)
    if box.shape[0] != 1:
        raise RegionError(f"{box}: has {box.shape[0]} slices, and a picture shows one; choose it with --slice")
    if level is not None and not 0 <= level < levels:
        raise ConfigError(f"--level: got {level}, the volume has levels 0 to {levels - 1}")
    level = choose_level((box.shape[1], box.shape[2]), levels, pixels) if level is None else level
    require_slice(volume, z)
    cells = _pixels(box, level, volume.image.levels[level].shape)
    if cells.size > MOST_PIXELS:
        raise ConfigError(
            f"--level: got {level}, at which {box} has {cells.size / 1e6:.0f} million pixels; choose a coarser level, "
            "or a smaller --region"
        )
    truths = None if truth is None else _read_truth(volume, truth, mask, level, cells)
    masks, done = (None, None) if mask is None else _read_mask(volume, mask, level, cells)
    errors = None if truth is None or mask is None else _read_errors(volume, mask, truth, level, cells)
    grey = to_grey(volume, open_rendition(volume, None, level).read(cells))
    return Excerpt(_voxels(cells, level, volume.shape), level, volume.voxel_size_um, grey, truths, masks, done, errors)


def require_slice(volume: Volume, z: int) -> None:
    """Refuse a slice that no file was ingested for."""
    present = volume.slices.present()
    if not present[z]:
        raise MissingInputError(
            f"{volume.path}: slice {z} is absent, {int(present.sum())} of {len(present)} are there; choose another "
            "--slice, or add it with `kesm ingest`"
        )


def to_grey(volume: Volume, plane: NDArray[Any]) -> NDArray[np.uint8]:
    """Voxels as 8 bit: of 16 bit the volume's window, from its lowest level to its highest."""
    if plane.dtype == np.uint8:
        return plane
    low, high = volume.window
    table = np.clip((np.arange(1 << 16) - low) * 255.0 / max(1, high - low), 0, 255)
    grey: NDArray[np.uint8] = np.rint(table).astype(np.uint8)[plane]
    return grey


def _read_truth(volume: Volume, name: str, mask: str | None, level: int, cells: Box) -> Labels:
    z = cells.start[0]
    annotated = np.flatnonzero(volume.truth(name)[1].present()).tolist()
    if z not in annotated:
        raise MissingInputError(
            f"{volume.path}: truth {name!r} has nothing of slice {z}, but of {spans(annotated)}; choose one of these "
            "with --slice"
        )
    return read_compared(volume, name, mask, cells, level)


def _read_mask(volume: Volume, name: str, level: int, cells: Box) -> tuple[Labels, NDArray[np.bool_]]:
    """Mask, and which of its pixels are right."""
    z, box = cells.start[0], _voxels(cells, level, volume.shape)
    done = _done(volume, name, z, box, level, cells)
    if not done.any():
        raise MissingInputError(
            f"{volume.path}: run {name!r} has not done {box} yet, or not as the volume is now; finish it: "
            f"{way_on(volume.path, name)}"
        )
    mask, source = np.zeros(done.shape, np.uint8), open_rendition(volume, name, level)
    for part in source.array.shards.parts(cells):
        inside = part.relative_to(cells.start).slices[1:]
        if done[inside].any():  # what a run has still to make is not there, and not lost
            mask[inside] = source.read(part)
    return mask, done


def _read_errors(volume: Volume, name: str, truth: str, level: int, cells: Box) -> Labels | None:
    """What the label of a run's confusion shows; None at full size, and where it is not of mask and truth as they are.

    One pixel of it says more than mask and truth do of many voxels.
    """
    if not level or name not in run_names(volume):
        return None
    z, tables = cells.start[0], RunTables(volume, name)
    painting, tiles = Painting.of(volume, tables), tables.grids.tiles.cover(_voxels(cells, level, volume.shape))
    if painting is None or painting.truth != truth or stale_confusions(painting.tables, range(z, z + 1)):
        return None
    if (valid_tiles(volume, tables, truth, tiles, confusion=True) != valid_tiles(volume, tables, None, tiles)).any():
        return None
    errors: Labels = open_rendition(volume, confusion_name(name), level).read(cells)
    return errors


def _done(volume: Volume, name: str, z: int, box: Box, level: int, cells: Box) -> NDArray[np.bool_]:
    _, height, width = cells.shape
    if name not in run_names(volume):  # a label that was derived from a mask
        return np.full((height, width), bool(volume.derived(name)[1].present()[z]))
    tables = RunTables(volume, name)
    if level and stale_pyramids(tables, range(z, z + 1)):
        raise DamageError(
            f"{volume.path}: the smaller levels of mask {name!r} are not of its slice {z}; make them: "
            f"{way_on(volume.path, name)}, or choose --level 0"
        )
    tiles = tables.grids.tiles.cover(box)
    valid, side = valid_tiles(volume, tables, None, tiles)[0], tables.grids.tiles.step[1]
    rows = (np.arange(height) + cells.start[1]) * (1 << level) // side - tiles.start[1]
    columns = (np.arange(width) + cells.start[2]) * (1 << level) // side - tiles.start[2]
    done: NDArray[np.bool_] = valid[rows[:, None], columns]
    return done


def _pixels(box: Box, level: int, shape: Triple) -> Box:
    """Box of a level that covers voxels."""
    (z, y0, x0), (_, y1, x1), step = box.start, box.stop, 1 << level
    return Box((z, y0 // step, x0 // step), (z + 1, ceil_div(y1, step), ceil_div(x1, step))) & Box.whole(shape)


def _voxels(cells: Box, level: int, shape: Triple) -> Box:
    (z, y0, x0), (_, y1, x1), step = cells.start, cells.stop, 1 << level
    return Box((z, y0 * step, x0 * step), (z + 1, y1 * step, x1 * step)) & Box.whole(shape)


def spans(numbers: list[int], most: int = 8) -> str:
    """Numbers in ascending order as a person writes them: ``0 to 4, 7, 9``; ``none`` of none."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    words = [" to ".join(map(str, part)) for part in parts]
    return ", ".join(words if len(words) <= most else [*words[:most], "..."]) or "none"
