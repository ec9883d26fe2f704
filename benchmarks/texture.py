"""Full-size slices with the texture of the real KESM tile, for benchmarks.

The one published tile is mirrored, rolled and rotated over the slice, so that no two neighbouring tiles are equal and
compression, thresholds and scores behave as on real data. Where the tile is not at hand, the phantom stands in.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TILE_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"
KESM_SLICE = (8026, 17480)


def tile_pair() -> tuple[NDArray[np.uint8], NDArray[np.uint8], str]:
    """Return image and truth of one 512x512 tile, and where they are from."""
    if TILE_FOLDER.is_dir():
        from skimage.io import imread

        return imread(TILE_FOLDER / "grayscale.png"), imread(TILE_FOLDER / "groundtruth.png"), "real KESM tile"
    from pipeline.phantom import Phantom

    image, truth = Phantom(shape=(1, 512, 512), seed=0).slice(0)
    return image, truth, "phantom tile"


def slice_pair(shape: tuple[int, int] = KESM_SLICE, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return image and dense truth of one slice, uint8, of this (y, x) shape in voxels.

    Rows of a tile read forwards, backwards, and its columns read so, are the four textures that a compressor cannot match to
    one another: each 2x2 group of tiles has one of each, so that a chunk of 1024 compresses no better than on real data.
    """
    image, truth, _ = tile_pair()
    rng = np.random.default_rng(seed)
    rows, columns = (-(-length // 512) for length in shape)
    wholes = [np.empty((rows * 512, columns * 512), np.uint8) for _ in range(2)]
    for row, column in np.ndindex(rows, columns):
        roll = tuple(int(step) for step in rng.integers(512, size=2))
        upside_down = bool(rng.integers(2))
        for whole, tile in zip(wholes, (image, truth), strict=True):
            copy = np.rot90(np.roll(tile, roll, (0, 1)), (row % 2) + 2 * (column % 2))
            place = np.s_[row * 512 : row * 512 + 512, column * 512 : column * 512 + 512]
            whole[place] = copy[::-1] if upside_down else copy
    image, truth = (np.ascontiguousarray(whole[: shape[0], : shape[1]]) for whole in wholes)
    return image, truth
