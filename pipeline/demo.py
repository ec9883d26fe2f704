"""The main job on a phantom, from image files to scores, for a first look."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import ExistsError
from pipeline.events import Observer
from pipeline.findings.summary import Summary
from pipeline.geometry import Box
from pipeline.images.pixels import write_png
from pipeline.images.stack import find_pages
from pipeline.intake.ingest import ingest_image, ingest_label
from pipeline.intake.mapping import LabelOptions
from pipeline.kernels.histogram import TRUTH_UNLABELLED
from pipeline.machine import available_cpus
from pipeline.phantom import Phantom
from pipeline.segmentation.engine import ThreadRunner
from pipeline.segmentation.runs import run
from pipeline.settings.config import RunConfig
from pipeline.storage.disk import disk_errors
from pipeline.storage.draft import check_outside
from pipeline.storage.volume import Volume
from pipeline.views.overlay import overlay

TRUTH = "groundtruth"
VOXEL_SIZE_UM = (1.0, 0.7, 0.6)  # of KESM: slice thickness, and sampling along and across the knife


@dataclass(frozen=True, slots=True)
class Demo:
    """Where a demonstration keeps its files."""

    folder: Path

    @property
    def slices(self) -> Path:
        """Image files."""
        return self.folder / "slices"

    @property
    def traced(self) -> Path:
        """Truth files, for some of the slices."""
        return self.folder / "truth"

    @property
    def volume(self) -> Path:
        """The OME-Zarr volume."""
        return self.folder / "brain.zarr"

    @property
    def picture(self) -> Path:
        """Overlay of one slice."""
        return self.folder / "overlay.png"


def run_demo(folder: Path, meter: Callable[[str], AbstractContextManager[Observer]]) -> Summary:
    """Write a phantom as PNG slices, ingest it with its truth, run the default recipe, and draw one slice.

    Goes on where an earlier one has stopped.

    Parameters
    ----------
    folder : Path
    meter : callable
        Gives, by the name of a step, a context in which the step is observed.

    Raises
    ------
    ConfigError
        If the folder would lie inside a volume.
    ExistsError
        If the folder holds another volume, or is a file.
    """
    check_outside(folder)
    demo, phantom = Demo(folder), Phantom()
    if folder.exists() and not folder.is_dir():
        raise ExistsError(f"{folder}: is a file; name another folder: kesm demo DIR")
    if demo.volume.exists() and Volume(demo.volume).shape != phantom.shape:
        raise ExistsError(f"{demo.volume}: is another volume; name another folder: kesm demo DIR")
    threads = available_cpus()
    if not demo.volume.exists():
        with meter("phantom") as observer:
            write_slices(demo, phantom, ThreadRunner(threads, observer))
        with meter("image") as observer:
            ingest_image(find_pages([demo.slices]), demo.volume, ThreadRunner(threads, observer), VOXEL_SIZE_UM)
    if TRUTH not in Volume(demo.volume).labels():
        options = LabelOptions(TRUTH, unlabelled=TRUTH_UNLABELLED)
        with meter("truth") as observer:
            ingest_label(find_pages([demo.traced]), demo.volume, ThreadRunner(threads, observer), options)
    with meter("run") as observer:
        summary = run(RunConfig(volume=demo.volume, truth=TRUTH), observer)
    draw_overlay(demo, summary.name)
    return summary


def write_slices(demo: Demo, phantom: Phantom, runner: ThreadRunner) -> None:
    """Write the phantom's slices, and what an expert traced of them, as PNG files of the same names."""
    with disk_errors(demo.folder):
        demo.slices.mkdir(parents=True, exist_ok=True)
        demo.traced.mkdir(exist_ok=True)

    def write(z: int) -> None:
        image, _ = phantom.slice(z)
        traced = phantom.partial_truth(z)
        with disk_errors(demo.folder):
            write_png(demo.slices / f"slice_{z:03d}.png", image)
            if traced is not None:
                write_png(demo.traced / f"slice_{z:03d}.png", traced)

    runner(write, range(phantom.shape[0]))


def draw_overlay(demo: Demo, name: str, z: int = 2, level: int = 1) -> None:
    """Draw one slice, at half its size: the image, and where its mask is right (cyan) and wrong (magenta, yellow)."""
    volume = Volume(demo.volume)
    layers = [layer.levels[level] for layer in (volume.image, volume.truth(TRUTH)[0], volume.label(name))]
    _, height, width = layers[0].shape
    image, traced, mask = (layer.read(Box((z, 0, 0), (z + 1, height, width)))[0] for layer in layers)
    grey = np.repeat(image[..., None], 3, axis=-1)
    with disk_errors(demo.picture):
        write_png(demo.picture, np.concatenate([grey, overlay(image, traced, mask)], axis=1))
