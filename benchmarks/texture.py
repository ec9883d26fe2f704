"""Full-size slices with the texture of the real KESM tile, for benchmarks.

The one published tile is rolled, rotated and mirrored over the slice, so that no two neighbouring tiles are equal and
compression, thresholds and scores behave as on real data. Where the tile is not at hand, the phantom stands in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.io import imread

from pipeline.phantom import Phantom

Plane = NDArray[np.uint8]

TILE_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"
TILE = 512
KESM_SLICE = (8026, 17480)
QUICK_SLICE = (1100, 2100)  # two shards, both cut off
SHAPE: tuple[str, dict[str, Any]] = (
    "--shape",
    {
        "type": int, "nargs": 2, "default": KESM_SLICE, "quick": QUICK_SLICE, "metavar": ("Y", "X"),
        "help": "of a slice, in voxels",
    },
)  # fmt: skip
"""The option of all benchmarks that make slices."""


def tile_pair() -> tuple[Plane, Plane, str]:
    """Return image and truth of one 512x512 tile, and where they are from."""
    if TILE_FOLDER.is_dir():
        return imread(TILE_FOLDER / "grayscale.png"), imread(TILE_FOLDER / "groundtruth.png"), "real KESM tile"
    image, truth = Phantom(shape=(1, TILE, TILE), seed=0).slice(0)
    return image.astype(np.uint8), truth, "phantom tile"


def slice_pair(shape: tuple[int, int] = KESM_SLICE, seed: int = 0) -> tuple[Plane, Plane]:
    """Return image and dense truth of one slice, uint8, of this (y, x) shape in voxels.

    The four tiles of each 2x2 group are rotated by 0, 90, 180 and 270 degrees, and each is rolled by its own random
    step: a compressor finds no match between them, so a chunk of 1024 compresses no better than one of 512 does.
    """
    pair = tile_pair()[:2]
    rng = np.random.default_rng(seed)
    rows, columns = (-(-length // TILE) for length in shape)
    wholes = [np.empty((rows * TILE, columns * TILE), np.uint8) for _ in pair]
    for row, column in np.ndindex(rows, columns):
        roll = tuple(int(step) for step in rng.integers(TILE, size=2))
        upside_down = bool(rng.integers(2))
        for whole, tile in zip(wholes, pair, strict=True):
            copy = np.rot90(np.roll(tile, roll, (0, 1)), (row % 2) + 2 * (column % 2))
            place = np.s_[row * TILE : row * TILE + TILE, column * TILE : column * TILE + TILE]
            whole[place] = copy[::-1] if upside_down else copy
    image, truth = (np.ascontiguousarray(whole[: shape[0], : shape[1]]) for whole in wholes)
    return image, truth
