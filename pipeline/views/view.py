"""What a viewer shows of a volume, as the state that Neuroglancer reads from its address [1]_.

References
----------
.. [1] https://github.com/google/neuroglancer
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from shlex import quote as shell_quote
from typing import Any, Literal
from urllib.parse import quote

import numpy as np

from pipeline.errors import ConfigError, DamageError, RegionError
from pipeline.findings.census import census, choose_truth, latest_run
from pipeline.geometry import Box, Triple
from pipeline.kernels.confusion import Counts, scores
from pipeline.storage.confusion_label import FN, FP, TP
from pipeline.storage.ome import VoxelSize
from pipeline.storage.tables import RunTables, run_names
from pipeline.storage.volume import Volume
from pipeline.views.overlay import KINDS, PALETTES
from pipeline.views.rendition import open_rendition
from pipeline.views.server import CLIENT, VOLUME

Kind = Literal["image", "truth", "mask", "confusion", "other"]
Place = tuple[float, float, float]

CYAN, MAGENTA, YELLOW = (f"#{bytes(getattr(PALETTES['article'], kind)).hex()}" for kind in KINDS)
COLOURS: dict[Kind, dict[int, str]] = {
    "truth": {255: YELLOW},  # and so not 127, which nobody annotated
    "mask": {255: CYAN},
    "confusion": {TP: CYAN, FP: MAGENTA, FN: YELLOW},
}
LEGENDS: dict[Kind, str] = {
    "truth": " (yellow)",
    "mask": " (cyan)",
    "confusion": " (right in cyan, wrong in magenta, missed in yellow)",
}
OTHER_COLOURS = ("#ff8000", "#80ff00", "#ff80c0", "#8080ff")

LABEL_ALPHA = 0.5
WINDOW_QUANTILES, AROUND = (0.001, 0.999), 512  # of the voxels so far around
SCREEN = (700, 1200)  # pixels (y, x) that a whole slice is made to fit into

_SHADER = "#uicontrol invlerp grey\nvoid main() {\n  emitGrayscale(grey());\n}\n"


@dataclass(frozen=True, slots=True)
class Layer:
    """One image of the store: its name in the viewer, its folder in the store ("" is the store), what it shows."""

    name: str
    folder: str
    kind: Kind
    visible: bool = True
    colours: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Sight:
    """Where a viewer looks at first.

    Attributes
    ----------
    at : tuple
        Centre of the screen, (z, y, x) in voxels of which each has its centre at whole numbers.
    reason : str
        Why there, in words.
    voxels_per_pixel : float
        Of the shortest side of a voxel.
    """

    at: Place
    reason: str
    voxels_per_pixel: float


@dataclass(frozen=True, slots=True)
class View:
    """What a viewer shows of a volume.

    Attributes
    ----------
    window : tuple
        Grey levels that are black and white.
    damage : tuple
        Messages: shards of the image where the viewer looks at first that are lost or damaged.
    """

    volume: Path
    name: str | None
    truth: str | None
    layers: tuple[Layer, ...]
    sight: Sight
    voxel_size_um: VoxelSize | None
    window: tuple[int, int]
    damage: tuple[str, ...] = ()

    def state(self, root: str) -> dict[str, Any]:
        """State of Neuroglancer, for a store that is served below this address: ``http://127.0.0.1:8000/KEY``."""
        return {
            "title": " - ".join([self.volume.name, *filter(None, [self.name])]),
            "dimensions": dict(zip("xyz", map(self._dimension, (2, 1, 0)), strict=True)),
            "position": list(reversed(self.sight.at)),
            "crossSectionScale": self.sight.voxels_per_pixel,
            "layers": [self._layer(layer, root) for layer in self.layers],
            "layout": "xy",
            "crossSectionBackgroundColor": "#000000",
            "showAxisLines": False,
            "showDefaultAnnotations": False,
        }

    def url(self, root: str) -> str:
        """Address of the viewer with its state, which no server is told."""
        return f"{root}{CLIENT}#!{quote(json.dumps(self.state(root), separators=(',', ':')), safe='')}"

    def document(self) -> dict[str, Any]:
        """What is shown, as JSON."""
        layers = [{"name": layer.name, "kind": layer.kind, "visible": layer.visible} for layer in self.layers]
        return {
            "volume": str(self.volume), "name": self.name, "truth": self.truth, "at": list(self.sight.at),
            "reason": self.sight.reason, "layers": layers, "damage": list(self.damage), "napari": self.napari,
        }  # fmt: skip

    @property
    def legend(self) -> str:
        """Names of the layers that are visible at first, and their colours."""
        return ", ".join(layer.name + LEGENDS.get(layer.kind, "") for layer in self.layers if layer.visible)

    @property
    def napari(self) -> str:
        """Command that opens the store in another viewer."""
        return f"napari --plugin napari-ome-zarr {shell_quote(str(self.volume))}"

    def _dimension(self, axis: int) -> list[Any]:
        # In metres with few digits: 0.7 * 1e-6 is 7e-07 and not 6.999999999999999e-07.
        return [1, ""] if self.voxel_size_um is None else [float(f"{self.voxel_size_um[axis] * 1e-6:.12g}"), "m"]

    def _layer(self, layer: Layer, root: str) -> dict[str, Any]:
        source = f"{root}{VOLUME}{layer.folder}|zarr3:"
        shown: dict[str, Any] = {"type": "segmentation", "source": source, "name": layer.name, "visible": layer.visible}
        if layer.kind == "image":
            low, high = self.window
            return {**shown, "type": "image", "shader": _SHADER, "shaderControls": {"grey": {"range": [low, high]}}}
        return {
            **shown,
            "segments": [str(value) for value, _ in layer.colours],
            "segmentColors": {str(value): colour for value, colour in layer.colours},
            "selectedAlpha": LABEL_ALPHA,
            "notSelectedAlpha": 0,
            "ignoreNullVisibleSet": False,  # else with nothing selected everything is, "not annotated" too
            "hoverHighlight": False,  # one value is all vessels: it would flicker with each move of the mouse
            "pick": False,  # nor does a double click switch them all off
        }


def make_view(volume: Volume, name: str | None = None, truth: str | None = None, at: Triple | None = None) -> View:
    """Choose what is shown, and where the viewer looks at first: where the mask is worst, if that is known.

    Parameters
    ----------
    volume : Volume
    name : str, optional
        The run; default: that which was worked on last.
    truth : str, optional
        Default: what the run was compared with, else the only one.
    at : tuple, optional
        (z, y, x) of the voxel to look at.

    Raises
    ------
    MissingInputError
        If there is no such run or truth.
    ConfigError
        If there are several truths, and none is named.
    RegionError
        If ``at`` lies outside the volume.
    """
    name = _latest_run(volume) if name is None else RunTables(volume, name).name
    truth = _choose_truth(volume, name) if truth is None else truth
    if truth is not None:
        volume.truth(truth)
    sight = _worst_tile(volume, name, truth) if at is None else _voxel(volume, at)
    sight = sight or _middle(volume)
    return View(
        volume.path, name, truth, tuple(_layers(volume, name, truth)), sight, volume.voxel_size_um,
        *_window(volume, sight.at),
    )  # fmt: skip


def parse_at(text: str) -> Triple:
    """``3,1200,800`` as a voxel (z, y, x).

    Raises
    ------
    ConfigError
        If it is none.
    """
    words = text.split(",")
    if len(words) != 3 or not all(word.strip().isascii() and word.strip().isdigit() for word in words):
        raise ConfigError(f"--at: got {text!r}, expected a voxel z,y,x such as 3,1200,800")
    z, y, x = (int(word) for word in words)
    return z, y, x


def _latest_run(volume: Volume) -> str | None:
    labels = volume.readable_labels()
    return latest_run(volume, [name for name in run_names(volume) if name in labels])


def _choose_truth(volume: Volume, name: str | None) -> str | None:
    """The truth that a run was compared with, else the only one of the volume; None without any."""
    compared = None if name is None else choose_truth(volume, name, None)
    return volume.only_truth() if compared is None else compared


def _layers(volume: Volume, name: str | None, truth: str | None) -> list[Layer]:
    """The image, the labels that were chosen, and the others of this program, which are there but not shown."""
    labels = {label.name: label for label in volume.own_labels()}
    confusions = [label for label in labels.values() if label.kind == "confusion"]
    # It shows truth and mask at once, of this run and this truth.
    shown = [label.name for label in confusions if name is not None and (label.run, label.truth) == (name, truth)]
    chosen = [label for label in (truth, name, *shown) if label in labels]
    others = [label for label in sorted(labels) if label not in chosen]
    shown = shown or chosen
    palette = iter(OTHER_COLOURS * len(labels))
    layers = [Layer("image of the volume" if "image" in labels else "image", "", "image")]
    for label in filter(None, chosen + others):
        kind: Kind = "confusion" if labels[label].kind == "confusion" else "other"
        kind = "truth" if label == truth else "mask" if label == name else kind
        colours = COLOURS.get(kind) or {255: next(palette)}
        layers.append(Layer(label, f"labels/{label}/", kind, label in shown, tuple(colours.items())))
    return layers


def _worst_tile(volume: Volume, name: str | None, truth: str | None) -> Sight | None:
    """The tile with the lowest MCC; None where nothing was compared, or nothing is wrong."""
    if name is None or truth is None or truth not in RunTables(volume, name).truths():
        return None
    found = census(volume, name, truth)
    for cell in found.ranked("mcc", 1):
        counts = found.require_truth()[tuple(np.subtract(cell, found.tiles.start))]
        mcc = scores(Counts(*counts.tolist())).mcc
        box = found.box(cell)
        return Sight(_centre(box), f"the worst tile of {name} against {truth}, MCC {mcc:.4f}", 1.0)
    return None


def _voxel(volume: Volume, at: Triple) -> Sight:
    if not all(0 <= place < size for place, size in zip(at, volume.shape, strict=True)):
        got, size = ",".join(map(str, at)), " x ".join(map(str, volume.shape))
        raise RegionError(f"--at: got {got}, {volume.path} has {size} voxels (z, y, x), counted from 0")
    z, y, x = at
    return Sight((z, y, x), f"{z},{y},{x}", 1.0)


def _middle(volume: Volume) -> Sight:
    """All of the middle slice, or of the next one that is there."""
    slices, height, width = volume.shape
    present = np.flatnonzero(volume.slices.present())
    z = int(present[np.argmin(abs(present - slices // 2))]) if present.size else slices // 2
    size = volume.voxel_size_um or (1.0, 1.0, 1.0)
    fits = max(height * size[1] / SCREEN[0], width * size[2] / SCREEN[1]) / min(size)
    return Sight(_centre(Box.of_slice(z, (height, width))), "the middle", fits)


def _centre(box: Box) -> Place:
    z, y, x = ((start + stop - 1) / 2 for start, stop in zip(box.start, box.stop, strict=True))
    return z, y, x


def _window(volume: Volume, at: Place) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Grey levels from black to white: nearly all voxels around a place have them, but for the mosaic's empty black.

    Also what is damaged there: the viewer shows what is left.
    """
    z, y, x = map(int, at)
    around = Box((z, y, x), (z + 1, y + 1, x + 1)).grow((0, AROUND, AROUND)) & Box.whole(volume.shape)
    image, damage = open_rendition(volume, None), []
    values = np.zeros(0, volume.dtype)
    for part in image.array.shards.parts(around):
        try:
            values = np.append(values, image.read(part))
        except DamageError as error:
            damage.append(str(error))
    values = values[values > 0]
    low, high = np.quantile(values, WINDOW_QUANTILES, method="nearest").tolist() if values.size else (0, 0)
    return (low, high) if low < high else (0, int(np.iinfo(volume.dtype).max)), tuple(dict.fromkeys(damage))
