"""Planes for tests of what is counted and masked by tile."""

from __future__ import annotations

import numpy as np


def cuts(shape, side):
    """Tiles of a plane in C order."""
    return [np.s_[y : y + side, x : x + side] for y in range(0, shape[0], side) for x in range(0, shape[1], side)]


def area_of(dtype, shape, seed=0):
    """Grey levels, truth, valid area and mask, of all values that each may have."""
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    area = np.clip(rng.normal(top / 3, top / 20, shape), 0, top).astype(dtype)
    truth = rng.choice(np.array([0, 0, 255, 127, 1], np.uint8), shape)
    valid = rng.choice(np.array([0, 1, 255], np.uint8), shape)
    return area, truth, valid, rng.choice(np.array([0, 255], np.uint8), shape)
