"""Pictures of some tiles, small enough for a page: the image, and where its mask is right and wrong."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.findings.census import Census
from pipeline.geometry import Box, Triple, ceil_div
from pipeline.images.pixels import encode_png, encode_webp
from pipeline.kernels.confusion import Counts
from pipeline.storage.confusion_label import FN, FP, TP
from pipeline.storage.volume import Volume
from pipeline.views.excerpt import to_grey
from pipeline.views.overlay import PALETTES, PLAIN, TN, classify
from pipeline.views.rendition import open_rendition, read_compared

WORST, BEST, RANDOM = 50, 20, 20
PICTURE_SIDE = 256
PICTURE_BYTES = 16_000
"""Of image and overlay together: 90 of them take 1.9 MB in base64."""

_SEED = 20
_QUALITIES = (70, 50, 30, 15, 5, 0)
_MARKED = 5  # after the kinds of `views.overlay`
_MARKED_COLOUR = (255, 140, 0)  # of a mask without a truth: none of those of a comparison


@dataclass(frozen=True, eq=False)
class Picture:
    """One tile.

    Attributes
    ----------
    cell : tuple of int
        On the tile grid.
    box : Box
        Its voxels.
    score, level, fraction : float
        MCC, level and part that is vessel; NaN where there is none.
    counts : Counts or None
    image, overlay : str
        Data URIs: the grey image, and over it the colours of the confusion, or of the mask where there is no truth.
    problem : str
        Why it cannot be shown, else nothing.
    """

    cell: Triple
    box: Box
    score: float
    level: float
    fraction: float
    counts: Counts | None
    image: str
    overlay: str
    problem: str


@dataclass(frozen=True, eq=False)
class Room:
    """Pictures that belong together: ``name`` is for programs, ``title`` and ``note`` for people."""

    name: str
    title: str
    note: str
    pictures: tuple[Picture, ...]


def make_gallery(volume: Volume, tiles: Census) -> tuple[Room, ...]:
    """Choose tiles and draw them: the worst, the best and some at random; without truth those with most vessel."""
    known = tiles.annotated > 0 if tiles.annotated.any() else tiles.done
    half = ceil_div(int(known.sum()), 2)  # in a small volume, no tile is among the worst and the best
    chance = _at_random(tiles, known, RANDOM)
    if tiles.annotated.any():
        chosen = [
            ("worst", "Worst tiles", "Lowest MCC first, of the tiles where anything is wrong.",
             tiles.ranked("mcc", min(WORST, half))),
            ("best", "Best tiles", "Highest MCC first, of the tiles that have vessels in the truth.",
             tiles.ranked("mcc", min(BEST, int(known.sum()) - half), worst=False)),
            ("random", "Tiles at random", "Drawn by chance from the annotated tiles, and so what to expect.", chance),
        ]  # fmt: skip
    else:
        fullest = _fullest(tiles, BEST)
        chosen = (
            [("fullest", "Tiles with most vessel", "Largest part of the voxels first.", fullest)] if fullest else []
        )
        chosen.append(("random", "Tiles at random", "Drawn by chance from the tiles that are done.", chance))
    artist = _Artist(volume, tiles)
    return tuple(
        Room(name, title, note, tuple(artist.draw(cell) for cell in cells)) for name, title, note, cells in chosen
    )


def _at_random(tiles: Census, known: NDArray[np.bool_], count: int) -> list[Triple]:
    """Draw tiles, in the order of the volume: the same ones each time, with every version of NumPy."""
    places = np.flatnonzero(known)
    draws = np.random.PCG64(_SEED).random_raw(known.size)[places]  # raw bits, whose order is promised to stay
    return _cells(tiles, np.sort(places[np.argsort(draws, kind="stable")[:count]]))


def _fullest(tiles: Census, count: int) -> list[Triple]:
    fraction = tiles.fraction()
    places = np.flatnonzero(fraction > 0)
    return _cells(tiles, places[np.argsort(-fraction.ravel()[places], kind="stable")[:count]])


def _cells(tiles: Census, places: NDArray[np.int64]) -> list[Triple]:
    cells = np.stack(np.unravel_index(places, tiles.tiles.shape), axis=-1) + tiles.tiles.start
    return [(z, y, x) for z, y, x in cells.tolist()]


class _Artist:
    """Draws tiles of one run, each once."""

    def __init__(self, volume: Volume, tiles: Census) -> None:
        self._volume, self._tiles = volume, tiles
        self._score = None if tiles.counts is None else tiles.score("mcc")
        self._fraction = tiles.fraction()
        self._drawn: dict[Triple, Picture] = {}

    def draw(self, cell: Triple) -> Picture:
        """Draw a tile; one whose voxels cannot be read has its numbers, and says why."""
        if cell not in self._drawn:
            box = self._tiles.box(cell)
            try:
                image, overlay, problem = *self._encode(box), ""
            except PipelineError as error:
                image, overlay, problem = "", "", str(error)
            self._drawn[cell] = self._describe(cell, box, (image, overlay, problem))
        return self._drawn[cell]

    def _describe(self, cell: Triple, box: Box, drawn: tuple[str, str, str]) -> Picture:
        tiles, (z, y, x) = self._tiles, cell
        place = (z - tiles.tiles.start[0], y - tiles.tiles.start[1], x - tiles.tiles.start[2])
        counts = None if tiles.counts is None else Counts(*tiles.counts[place].tolist())
        return Picture(
            cell, box, float("nan") if self._score is None else float(self._score[place]),
            float(tiles.level[place]), float(self._fraction[place]), counts, *drawn,
        )  # fmt: skip

    def _encode(self, box: Box) -> tuple[str, str]:
        volume, tiles = self._volume, self._tiles
        image = open_rendition(volume, None).read(box)
        mask = open_rendition(volume, tiles.name).read(box) != 0
        truth = None if tiles.truth is None else read_compared(volume, tiles.truth, tiles.name, box)
        return encode_tile(to_grey(volume, image), classes(truth, mask), ceil_div(max(box.shape), PICTURE_SIDE))


def encode_tile(grey: NDArray[np.uint8], found: NDArray[np.uint8], factor: int) -> tuple[str, str]:
    """Image and overlay, (y, x), shrunk by a factor, as data URIs; what takes too much room loses detail.

    Measured: 3 kB a tile of the demo, at most 8; marked at random, the overlay alone takes 20, and is shrunk once more.
    """
    article = PALETTES["article"]
    colours = ((0, 0, 0), article.tp, article.fp, article.fn, article.tn, _MARKED_COLOUR)  # in order of the kinds
    for coarser in (1, 2, 4):
        image = shrink_image(grey.astype(np.float64), coarser * factor)
        overlay = encode_png(shrink_classes(found, coarser * factor), colours, clear=PLAIN)
        for quality in _QUALITIES:
            data = encode_webp(image, quality)
            if len(data) + len(overlay) <= PICTURE_BYTES:
                return _uri("webp", data), _uri("png", overlay)
    return _uri("webp", data), _uri("png", overlay)  # of at most 64 x 64 pixels


def classes(truth: NDArray[np.uint8] | None, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """What each voxel of a tile, (y, x), is: a kind of `views.overlay`; or marked, where nothing is annotated.

    A tile with some annotation shows none of the mask beside it, as `views.overlay.overlay`.
    """
    if truth is not None and (kinds := classify(truth, mask)).any():
        return kinds
    return np.where(mask, np.uint8(_MARKED), np.uint8(PLAIN))


def shrink_classes(found: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Bring squares of voxels together: the error with the most voxels shows, else a vessel, else the background.

    As many of both errors show as missed, as in `storage.confusion_label`.
    """
    if factor == 1:
        return found
    shares = {kind: _means((found == kind).astype(np.float64), factor) for kind in range(_MARKED + 1)}
    out = np.full(shares[PLAIN].shape, PLAIN, np.uint8)
    for kind in (TN, TP, _MARKED):
        out[shares[kind] > 0] = kind
    wrong = np.maximum(shares[FP], shares[FN])
    out[wrong > 0] = np.where(shares[FP] > shares[FN], FP, FN)[wrong > 0]
    return out


def shrink_image(image: NDArray[np.float64], factor: int) -> NDArray[np.uint8]:
    """Mean of squares of voxels, (y, x), rounded."""
    return np.rint(_means(image, factor)).astype(np.uint8)


def _means(values: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    if factor == 1:
        return values
    starts = [np.arange(0, length, factor) for length in values.shape]
    sums = np.add.reduceat(np.add.reduceat(values, starts[0], axis=0), starts[1], axis=1)
    rows, columns = (np.diff(np.append(at, length)) for at, length in zip(starts, values.shape, strict=True))
    means: NDArray[np.float64] = sums / (rows[:, None] * columns)
    return means


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
