"""The image of a block as later stages see it: corrected, filtered where they ask for it, with its valid area."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamageError
from pipeline.geometry import Box
from pipeline.kernels.clahe import clahe
from pipeline.kernels.correction import apply_table, flat_field, gamma_table, histogram_map
from pipeline.kernels.histogram import TRUTH_VESSEL, UNLABELLED, joint_histogram
from pipeline.kernels.quality import Floats, measure_voxels
from pipeline.scratch import scratch
from pipeline.segmentation.denoise import Denoiser, denoiser
from pipeline.segmentation.window import Window, covered_planes
from pipeline.settings.recipe import Correct, Recipe
from pipeline.storage.volume import Volume

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a block's mask is made from.

    A recipe that corrects, or draws masks from more than a tile, has all of it read at once; others part by part.

    Attributes
    ----------
    window : Window
        Planes of the block with its halo.
    recipe : Recipe
    valid : ndarray or None
        uint8 (y, x) of the window's box: not 0 where voxels are valid; None where all are.
    measures : ndarray or None
        float64 (y, x, len(Measure)): what `kernels.quality` finds in each tile of the block before it is corrected;
        None where it is not.
    """

    window: Window
    recipe: Recipe
    denoise: Denoiser
    valid: NDArray[np.uint8] | None
    measures: Floats | None

    @classmethod
    def of(cls, volume: Volume, recipe: Recipe, box: Box, planes: Sequence[int], digests: Array) -> Scene:
        """Open the image of a box of one slice.

        Raises
        ------
        DamageError, UnavailableError
            If a stage looks at more than a halo, and part of that cannot be read.
        """
        halo = recipe.halo
        around = box.grow((0, *halo[1:])) & Box.whole(volume.shape)
        window = Window(volume.image.full, around, halo, planes, digests)
        valid = measures = None
        if recipe.correct or recipe.drawn:
            window.load(around)
            if window.lost.parts and (recipe.slicewise or recipe.surveys):
                raise DamageError(
                    f"slice {box.start[0]} cannot be read, and all of it is needed: {window.lost.reasons}"
                )
            valid = _valid_area(volume, recipe, window)
        if recipe.correct:
            measures = np.stack([_measures(window, row, recipe.tile).copy() for row in _rows(box, recipe.tile)])
            for plane in window.values:
                _correct(plane, recipe.correct, volume, recipe.tile)
        return cls(window, recipe, denoiser(recipe), valid, measures)

    def load(self, part: Box) -> None:
        """Make the voxels right that a part of the block needs."""
        if not (self.recipe.correct or self.recipe.drawn):
            self.window.load(part)

    def filtered(self, area: Box, deep: int = 0) -> Array:
        """Filter an area of the slice and so many planes above and below: (2 * deep + 1, y, x), until the next call."""
        (_, top, left), (_, first_row, first_column) = area.start, self.window.box.start
        start = top - first_row, left - first_column
        out = scratch.array("filtered", (2 * deep + 1, *area.shape[1:]), self.window.values.dtype)
        depth, middle = self.recipe.denoise.window[0], len(self.window.values) // 2
        for step in range(-deep, deep + 1):
            first = middle + step - depth // 2
            self.denoise(self.window.values[first : first + depth], start, out[step + deep])
        return out

    def measured(self, part: Box, cells: Box) -> Floats:
        """Measures of the raw voxels of a part's tiles, which are these cells of the block: (tiles, len(Measure))."""
        known = self.corrected(cells)
        return _measures(self.window, part, self.recipe.tile) if known is None else known

    def corrected(self, cells: Box) -> Floats | None:
        """The same where voxels are corrected, and so not raw any more; else None."""
        if self.measures is None:
            return None
        return np.ascontiguousarray(self.measures[cells.slices[1:]]).reshape(-1, self.measures.shape[-1])

    def valid_in(self, area: Box) -> NDArray[np.uint8] | None:
        """Valid voxels of an area, (y, x), C-contiguous."""
        if self.valid is None:
            return None
        _, rows, columns = area.relative_to(self.window.box.start).slices
        return np.ascontiguousarray(self.valid[rows, columns])


def _rows(box: Box, tile: int) -> list[Box]:
    """Rows of tiles of a box of one slice."""
    (z, top, left), (below, bottom, right) = box.start, box.stop
    return [Box((z, y, left), (below, min(y + tile, bottom), right)) for y in range(top, bottom, tile)]


def _measures(window: Window, part: Box, tile: int) -> Floats:
    corner = part.relative_to(window.box.start).start[1:]
    return measure_voxels(window.values[len(window.values) // 2], corner, part.shape[1:], tile)


def _valid_area(volume: Volume, recipe: Recipe, window: Window) -> NDArray[np.uint8] | None:
    if recipe.valid is None:
        return None
    valid = scratch.array("valid", window.box.shape[1:], np.uint8)
    if recipe.valid.label is None:
        padding = recipe.valid.padding or 0
        np.not_equal(window.values[len(window.values) // 2], padding, out=valid.view(np.bool_))
        return valid
    z = window.box.start[0]
    label, ledger = volume.truth(recipe.valid.label)
    area = Window(label.full, window.box, (0, 0, 0), [z], ledger.shard_digests(z, z + 1), buffer="valid")
    area.load(window.box)
    if area.lost.parts:
        raise DamageError(f"slice {z}: the valid area cannot be read: {area.lost.reasons}")
    np.equal(area.values[0], TRUTH_VESSEL, out=valid.view(np.bool_))
    return valid


def _correct(plane: Array, stage: Correct, volume: Volume, tile: int) -> None:
    """Correct a plane in place."""
    if stage.flat_field is not None:
        flat_field(plane, stage.flat_field, plane)
    if stage.match is not None:
        reference = reference_counts(volume, stage)
        apply_table(plane, histogram_map(_grey_counts(plane), reference), plane)
    if stage.gamma is not None:
        apply_table(plane, gamma_table(plane.dtype, stage.gamma), plane)
    if stage.clahe is not None:
        plane[...] = clahe(plane, tile, stage.clahe, scratch.array("equalised", plane.shape, plane.dtype))


def reference_counts(volume: Volume, stage: Correct) -> NDArray[np.int64]:
    """Count the grey levels of the slice that others are matched to, as corrected so far.

    Raises
    ------
    DamageError, UnavailableError
        If it does not exist, or cannot be read.
    """
    z = stage.match or 0
    digests = volume.slices.shard_digests(z, z + 1) if z < volume.shape[0] else np.zeros((1, 1, 1), np.uint64)
    if not digests.any():
        raise DamageError(f"slice {z} does not exist, which others are matched to; add it, or match another one")
    return _reference_counts(volume, z, stage.flat_field, digests.tobytes())


@lru_cache(maxsize=2)
def _reference_counts(volume: Volume, z: int, flat: float | None, _: bytes) -> NDArray[np.int64]:
    whole = Box.of_slice(z, volume.shape)
    digests, planes = covered_planes(volume, z, 0)
    window = Window(volume.image.full, whole, (0, 0, 0), planes, digests, buffer="reference")
    window.load(whole)
    if window.lost.parts:
        raise DamageError(f"slice {z} cannot be read, which others are matched to: {window.lost.reasons}")
    (plane,) = window.values
    if flat is not None:
        flat_field(plane, flat, plane)
    return _grey_counts(plane)


def _grey_counts(plane: Array) -> NDArray[np.int64]:
    table = scratch.array("tables", (3, 1 << 8 * plane.dtype.itemsize), np.uint32)
    joint_histogram(np.ascontiguousarray(plane), None, table)
    counts: NDArray[np.int64] = table[UNLABELLED].astype(np.int64)
    return counts
