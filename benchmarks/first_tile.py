"""Seconds for the imports of a run, and then for its kernels on one chunk: a child process of `startup.py`.

    python benchmarks/first_tile.py

Arrays are laid out as in a run, because Numba compiles for the layout too.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import time

BEGIN = time.perf_counter()

import numpy as np

import pipeline.segmentation.plan
import pipeline.segmentation.runs
import pipeline.terminal.meter
import pipeline.terminal.results  # noqa: F401
from pipeline.segmentation.denoise import denoiser
from pipeline.segmentation.tile import TileRule, segment_tiles
from pipeline.settings.recipe import HistogramThreshold, Recipe
from pipeline.storage.pyramid import reduce_label, reduced_levels

IMPORTED = time.perf_counter()


def main() -> None:
    plane = np.random.default_rng(0).integers(256, size=(1, 2048, 2048), dtype=np.uint8)
    truth, mask = plane[0, :1024, :1024] // 128 * np.uint8(255), np.empty((1024, 1024), np.uint8)
    rule = TileRule(side=512, denoise=denoiser(Recipe()), levels=HistogramThreshold().levels, bins=(0, 255))
    segment_tiles(plane, (512, 512), truth, mask, rule)
    list(reduced_levels(mask, reduce_label))
    print(json.dumps([IMPORTED - BEGIN, time.perf_counter() - IMPORTED]))


if __name__ == "__main__":
    main()
