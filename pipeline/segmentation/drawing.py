"""Masks that are drawn voxel by voxel: where a tile's own level is not all that decides."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamageError
from pipeline.geometry import Box, Grid
from pipeline.kernels.cleaning import closing, fill_small_holes, opening, remove_small_objects
from pipeline.kernels.local import local_mask
from pipeline.kernels.masks import binarize_smooth, binarize_tiles
from pipeline.scratch import scratch
from pipeline.segmentation.classifier import load_classifier
from pipeline.segmentation.denoise import padded
from pipeline.segmentation.scene import Scene
from pipeline.segmentation.survey import TileLevels
from pipeline.settings.recipe import ClassifierSegmenter, Clean, LocalThreshold
from pipeline.settings.targets import binary_plane

Mask = NDArray[np.uint8]


@dataclass(slots=True)
class Drawing:
    """The mask of a block, as it is drawn part by part.

    Attributes
    ----------
    scene : Scene
    levels : TileLevels or None
        Of the whole slice, where tiles have levels.
    """

    scene: Scene
    levels: TileLevels | None
    _whole: Mask | None = field(default=None, init=False)

    def prepare(self, box: Box, units: Grid) -> None:
        """Draw and clean a whole slice, where the recipe needs that; all of it is there then."""
        clean = self.scene.recipe.clean
        if clean is None or not clean.slicewise:
            return
        whole = scratch.array("whole mask", box.shape[1:], np.uint8)
        for part in units.parts(box):
            _, rows, columns = part.slices
            whole[rows, columns] = self._draw(part)
        if clean.small_objects is not None:
            remove_small_objects(whole, clean.small_objects, whole)
        if clean.small_holes is not None:
            fill_small_holes(whole, clean.small_holes, whole)
        if self.scene.valid is not None:
            whole[self.scene.valid == 0] = 0
        self._whole = whole

    def levels_of(self, cells: Box) -> NDArray[np.float64]:
        """Level of each of some tiles, (y, x); NaN where the mask has none."""
        if self.levels is None:
            return np.full(cells.shape[1:], np.nan)
        return self.levels.levels[cells.slices[1:]]

    def draw(self, part: Box, mask: Mask) -> None:
        """Write the mask of a part of the block, (y, x)."""
        if self._whole is None:
            mask[...] = self._draw(part)
        else:
            _, rows, columns = part.slices
            mask[...] = self._whole[rows, columns]

    def _draw(self, part: Box) -> Mask:
        """Mask of a part but for what looks at whole slices."""
        clean = self.scene.recipe.clean
        reach = clean.reach if clean else 0
        area = part.grow((0, reach, reach)) & Box.whole(self.scene.window.array.shape)
        mask = self._binary(area)
        valid = self.scene.valid_in(area)
        if valid is not None:
            mask[valid == 0] = 0
        if clean is not None and reach:
            mask = _open_and_close(mask, clean)
            if valid is not None:
                mask[valid == 0] = 0
        _, rows, columns = part.relative_to(area.start).slices
        return mask[rows, columns]

    def _binary(self, area: Box) -> Mask:
        recipe = self.scene.recipe
        if recipe.segmenter is not None:
            return self._segmented(area)
        if isinstance(recipe.threshold, LocalThreshold):
            return self._local(area, recipe.threshold)
        if self.levels is None:
            raise DamageError("the tiles have no levels yet; run again")
        (filtered,) = self.scene.filtered(area)
        mask = scratch.array("drawn", filtered.shape, np.uint8)
        if self.levels.surface is None:
            binarize_tiles(filtered, area.start[1:], recipe.tile, self.levels.levels, mask)
        else:
            binarize_smooth(filtered, area.start[1:], self.levels.surface, mask)
        return mask

    def _local(self, area: Box, stage: LocalThreshold) -> Mask:
        reach = stage.reach
        around = area.grow((0, reach, reach)) & Box.whole(self.scene.window.array.shape)
        (filtered,) = self.scene.filtered(around)
        mask = local_mask(filtered, stage.method, stage.size, stage.offset, stage.k)
        _, rows, columns = area.relative_to(around.start).slices
        return np.ascontiguousarray(mask[rows, columns])

    def _segmented(self, area: Box) -> Mask:
        """Mask by a function of the user's own, or a trained model, on the area with its halo."""
        segmenter = self.scene.recipe.segmenter
        depth, reach_y, reach_x = halo = (segmenter.halo if segmenter else None) or (0, 0, 0)
        around = area.grow((0, reach_y, reach_x)) & Box.whole(self.scene.window.array.shape)
        planes = self.scene.filtered(around, depth)
        start = area.start[1] - around.start[1], area.start[2] - around.start[2]
        block = padded(planes, start, area.shape[1:], halo)
        if isinstance(segmenter, ClassifierSegmenter):
            plane = load_classifier(segmenter.model, segmenter.digest).predict(block[depth])
        else:
            plane = binary_plane(segmenter.target, block)  # type: ignore[union-attr]  # there is one of two kinds
        return np.ascontiguousarray(plane[reach_y : reach_y + area.shape[1], reach_x : reach_x + area.shape[2]])


def _open_and_close(mask: Mask, clean: Clean) -> Mask:
    if clean.opening is not None:
        mask = opening(mask, clean.opening)
    if clean.closing is not None:
        mask = closing(mask, clean.closing)
    return mask
