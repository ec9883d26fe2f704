"""Each kernel on one 512x512 tile of the real texture, beside the libraries that do the same, on one core.

    python benchmarks/kernels.py [--seconds 1] [--quick] [--json FILE]

Results are compared before anything is timed, and must be equal: everywhere, or inside where a peer treats the edges of
its image in another way (OpenCV repeats them, rank filters cut the window, and a tile alone lacks its neighbours). Ours
and theirs take turns, and the best of many is reported. A filter in three dimensions is timed for each plane it makes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from peers import segment_as_published
from record import parse, save, show
from scipy import ndimage
from skimage.filters import rank, threshold_otsu
from sklearn.metrics import confusion_matrix
from texture import TILE, slice_pair, tile_pair

from pipeline.kernels.histogram import counts_above, joint_histogram, level_counts, otsu_level, otsu_levels
from pipeline.kernels.masks import binarize_tiles
from pipeline.kernels.median import median_tile
from pipeline.segmentation.denoise import denoiser
from pipeline.segmentation.tile import TileRule, segment_tiles
from pipeline.settings.recipe import Recipe

Array = NDArray[Any]
Size = tuple[int, int, int]

SECONDS: tuple[str, dict[str, Any]] = (
    "--seconds",
    {"type": float, "default": 1.0, "quick": 1e-9, "help": "that each of ours may take, together with its peer"},
)
PLANES = 5  # that SciPy filters at once in three dimensions
START = (TILE // 2, TILE // 2)  # of the tile in its plane
PLACE = np.s_[TILE // 2 : TILE // 2 + TILE, TILE // 2 : TILE // 2 + TILE]
AT_LEAST = {(1, 3, 3): "500", (1, 5, 5): "100", (3, 3, 3): "50"}  # times SciPy, in 8 bit


@dataclass(frozen=True, slots=True)
class Duel:
    """One row: two ways to the same result.

    Attributes
    ----------
    margin : int
        Voxels at each edge that are not compared.
    planes : int
        Planes that the peer makes at once.
    """

    what: str
    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    margin: int = 0
    planes: int = 1
    at_least: str = ""

    def check(self) -> None:
        """Leave the program where the two disagree; this also is each one's first call."""
        ours, theirs = np.asarray(self.ours()), np.asarray(self.theirs())
        if self.margin:
            inside = np.s_[self.margin : -self.margin, self.margin : -self.margin]
            ours, theirs = ours[inside], theirs[inside]
        if not np.array_equal(ours, theirs):
            sys.exit(f"{self.what}: ours and {self.peer} differ")

    def row(self, dtype: str, seconds: float) -> dict[str, Any]:
        """Compare and time the two."""
        self.check()
        ours, theirs = time_both(self.ours, self.theirs, seconds)
        theirs /= self.planes
        return {
            "what": self.what, "dtype": dtype, "ours ms": ours * 1e3, "peer": self.peer, "peer ms": theirs * 1e3,
            "times faster": theirs / ours, "at least": self.at_least,
            "equal": "inside" if self.margin else "everywhere",
        }  # fmt: skip


def time_both(ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Best seconds of each in so many of both; they take turns, so that what else the machine does meets both."""
    best, spent = [float("inf")] * 2, 0.0
    while spent < seconds:
        for side, (function, repeats) in enumerate(((ours, 20), (theirs, 1))):
            for _ in range(repeats):
                start = time.perf_counter()
                function()
                elapsed = time.perf_counter() - start
                best[side] = min(best[side], elapsed)
                spent += elapsed
    return best[0], best[1]


def planes_of(dtype: str) -> Array:
    """Planes with a tile in the middle; in 16 bit, the texture has 8 bits of noise below it."""
    stack = np.stack([slice_pair((2 * TILE, 2 * TILE), seed)[0] for seed in range(PLANES)])
    if dtype == "uint8":
        return stack
    return stack * np.uint16(256) + np.random.default_rng(0).integers(256, size=stack.shape, dtype=np.uint16)


def median_duels(stack: Array) -> Iterator[Duel]:
    """Every window that has a kernel; scikit-image's rank filters are for 8 bit."""
    alone = np.ascontiguousarray(stack[(slice(None), *PLACE)])
    tile, out = alone[PLANES // 2], np.empty((TILE, TILE), stack.dtype)

    def ours(size: Size) -> Array:
        depth = size[0] // 2
        median_tile(stack[PLANES // 2 - depth : PLANES // 2 + depth + 1], START, size, False, out)
        return out

    def whole() -> Array:
        median_tile(tile[None], (0, 0), (1, 3, 3), False, out)
        return out

    def in_space() -> Array:
        middle: Array = ndimage.median_filter(alone, 3)[PLANES // 2]
        return middle

    bound = AT_LEAST if stack.dtype == np.uint8 else {}
    for side in (3, 5):
        size, footprint = (1, side, side), np.ones((side, side), np.uint8)
        peers: dict[str, Callable[[], Any]] = {
            "SciPy": partial(ndimage.median_filter, tile, side),
            "OpenCV": partial(cv2.medianBlur, tile, side),
        }
        if stack.dtype == np.uint8:
            peers["scikit-image"] = partial(rank.median, tile, footprint)
        for peer, theirs in peers.items():
            at_least = bound.get(size, "") if peer == "SciPy" else ""
            name = f"median {side}x{side}"
            yield Duel(name, peer, partial(ours, size), theirs, side // 2, at_least=at_least)
    yield Duel("median 3x3, a plane of one tile", "SciPy", whole, lambda: ndimage.median_filter(tile, 3))
    size = (3, 3, 3)
    yield Duel("median 3x3x3", "SciPy", lambda: ours(size), in_space, 1, PLANES, bound.get(size, ""))


def table_duels(tile: Array, truth: Array) -> Iterator[Duel]:
    """Joint histogram, level, mask and counts of one filtered tile."""
    levels = int(np.iinfo(tile.dtype).max) + 1
    table, mask = np.empty((3, levels), np.uint32), np.empty(tile.shape, np.uint8)

    def count() -> Array:
        joint_histogram(tile, truth, table)
        return table

    def classes() -> list[Array]:
        return [tile[row] for row in (truth == 0, truth == 255, (truth != 0) & (truth != 255))]

    def binned() -> list[Array]:
        return [np.histogram(values, levels, (0, levels))[0] for values in classes()]

    yield Duel(
        "joint histogram", "NumPy, bincount", count, lambda: [np.bincount(v, minlength=levels) for v in classes()]
    )
    yield Duel("joint histogram", "NumPy, histogram", count, binned)
    counts = level_counts(count())
    level = otsu_level(counts)
    levels_of_tiles = np.array([[level]])

    def cut() -> Array:
        binarize_tiles(tile, (0, 0), TILE, levels_of_tiles, mask)
        return mask

    yield Duel("mask", "NumPy", cut, lambda: np.where(tile > level, np.uint8(255), np.uint8(0)))
    if tile.dtype == np.uint8:  # both round counts to float32, and 65536 levels show it
        yield Duel("mask", "OpenCV", cut, lambda: cv2.threshold(tile, level, 255, cv2.THRESH_BINARY)[1])
        centers = np.arange(levels)
        yield Duel(
            "Otsu's level", "scikit-image", lambda: otsu_level(counts), lambda: threshold_otsu(hist=(counts, centers))
        )

        other = np.empty_like(table)

        def level_and_mask() -> Array:
            joint_histogram(tile, None, other)
            binarize_tiles(tile, (0, 0), TILE, otsu_levels(other[None])[None], mask)
            return mask

        flags = cv2.THRESH_BINARY | cv2.THRESH_OTSU
        yield Duel("histogram, level and mask", "OpenCV", level_and_mask, lambda: cv2.threshold(tile, 0, 255, flags)[1])
    vessel, found = (truth == 255).ravel(), (tile > level).ravel()
    yield Duel(
        "counts, from the table", "scikit-learn",
        lambda: counts_above(table, level), lambda: confusion_matrix(vessel, found).ravel()[[3, 1, 2, 0]],
    )  # fmt: skip


def whole_tile() -> Duel:
    """All that is done for one tile, beside SciPy, scikit-image and scikit-learn, which are called as published."""
    image, truth, _ = tile_pair()
    mask = np.empty(image.shape, np.uint8)
    rule = TileRule(side=TILE, denoise=denoiser(Recipe()), levels=otsu_levels, bins=(0, 255))

    def ours() -> Array:
        counts: Array = segment_tiles(image[None], (0, 0), truth, mask, rule).counts[0, 0]
        return counts

    def theirs() -> Array:
        matrix: Array = segment_as_published(image, truth)[0]
        return matrix.ravel()[[3, 1, 2, 0]]

    return Duel("the whole tile", "as published", ours, theirs)


def measure(seconds: float) -> list[dict[str, Any]]:
    """Rows of all kernels in both dtypes, and of the whole tile."""
    rows = []
    truth = slice_pair((2 * TILE, 2 * TILE), PLANES // 2)[1][PLACE]
    for dtype in ("uint8", "uint16"):
        stack = planes_of(dtype)
        filtered = np.empty((TILE, TILE), dtype)
        median_tile(stack[PLANES // 2 :][:1], START, (1, 3, 3), True, filtered)
        rows += [duel.row(dtype, seconds) for duel in (*median_duels(stack), *table_duels(filtered, truth))]
    return [*rows, whole_tile().row("uint8", seconds)]


def main() -> None:
    options = parse(__doc__, SECONDS)
    cv2.setNumThreads(1)
    rows = measure(options.seconds)
    show(rows)
    save(options.json, {"opencv": cv2.__version__, "texture": tile_pair()[2], "rows": rows})


if __name__ == "__main__":
    main()
