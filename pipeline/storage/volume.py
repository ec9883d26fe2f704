"""A specimen on disk: one OME-Zarr image with its slices, labels and locks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import (
    ConfigError,
    ExistsError,
    MissingInputError,
    NotAVolumeError,
)
from pipeline.geometry import Triple
from pipeline.kernels.histogram import TRUTH_UNLABELLED
from pipeline.storage.confusion_label import ConfusionPyramid, confusion_name
from pipeline.storage.disk import disk_errors
from pipeline.storage.ledger import CLEAN_AGAIN, Ledger
from pipeline.storage.lock import locked
from pipeline.storage.ome import (
    MASK_COLOURS,
    TRUTH_COLOURS,
    VoxelSize,
    confusion_metadata,
    image_metadata,
    label_metadata,
    voxel_size,
)
from pipeline.storage.pyramid import Pyramid, level_shapes, reduce_image, reduce_label
from pipeline.storage.store import BY_A_RUN, FROM_A_COPY, create_document, read_document

KINDS = ("truth", "mask", "derived", "confusion")  # of labels, but for those of other programs
FORMAT_VERSION = 4  # 3 had no tables of vessels and quality; 2 of signal, seams and grey levels; 1 other digests
LOCK_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class LabelInfo:
    """What a label is, and of a truth the mapping of the values of its files.

    The ``kind`` is "truth", of an expert; "mask", of a run; "derived", from the mask of a ``run``; "confusion", of the
    mask of a ``run`` with a ``truth``; or "foreign", of another program.
    """

    name: str
    kind: str
    mapping: dict[str, Any]
    run: str | None = None
    truth: str | None = None


class Volume:
    """One specimen: image, slices, labels.

    Parameters
    ----------
    path : Path
        Folder of the OME-Zarr store.

    Raises
    ------
    MissingInputError, NotAVolumeError
        If there is nothing, or something else.
    """

    def __init__(self, path: str | Path) -> None:
        # One volume has one path, whatever was typed: locks and staging lie beside it, and workers start elsewhere.
        self.path = Path(path).resolve()
        document = read_document(self.path) if self.path.exists() else None
        if document is None:
            if not self.path.exists():
                raise MissingInputError(f"{path}: no such volume; make one with `kesm ingest SLICES --volume {path}`")
            raise NotAVolumeError(f"{path}: is not an OME-Zarr volume; make one with `kesm ingest`")
        own = document.get("kesm")
        if not isinstance(own, dict) or "ome" not in document:
            raise NotAVolumeError(f"{path}: is a Zarr group, but not a volume made by `kesm ingest`")
        if own.get("version") != FORMAT_VERSION:
            raise NotAVolumeError(
                f"{path}: has format version {own.get('version')}, this program reads {FORMAT_VERSION}; use the kesm "
                "that made it, or make it again with `kesm ingest`"
            )
        self.voxel_size_um = voxel_size(document["ome"])
        self.window: tuple[int, int] = (int(own["window"][0]), int(own["window"][1]))
        self._levels = len(document["ome"]["multiscales"][0]["datasets"])

    def filtered_window(self, dark: bool) -> tuple[int, int]:
        """Grey levels that stored histograms resolve, on the filtered scale: inverted where vessels are dark."""
        low, high = self.window
        top = int(np.iinfo(self.dtype).max)
        return (top - high, top - low) if dark else (low, high)

    @classmethod
    def create(
        cls,
        path: Path,
        shape: Triple,
        dtype: str,
        voxel_size_um: VoxelSize | None = None,
        window: tuple[int, int] | None = None,
    ) -> Volume:
        """Create an empty volume.

        Parameters
        ----------
        path : Path
            Folder that does not exist yet.
        shape : tuple
            Slices, height, width in voxels.
        dtype : {"uint8", "uint16"}
        voxel_size_um : tuple, optional
            (z, y, x) in micrometres.
        window : tuple, optional
            Lowest and highest grey value (inclusive) that the stored tile histograms resolve; default: all.
        """
        if path.exists():
            raise ExistsError(f"{path}: exists already; add slices with --append, or choose another --volume")
        levels = len(level_shapes(shape[1:]))
        window = window or (0, int(np.iinfo(dtype).max))
        create_document(
            path,
            {
                "ome": image_metadata(path.stem, levels, voxel_size_um, "local mean"),
                "kesm": {"version": FORMAT_VERSION, "window": list(window)},
            },
        )
        image = Pyramid.create(path, shape, dtype, 0, reduce_image)
        _, rows, columns = image.full.shards.cells
        create_document(path / "slices", {})
        Ledger.create(path / "slices" / "image", shape[0], (rows, columns))
        return cls(path)

    @cached_property
    def image(self) -> Pyramid:
        """The grey image."""
        return Pyramid(self.path, self._levels, reduce_image)

    @cached_property
    def slices(self) -> Ledger:
        """Ledger of the image's slices."""
        return Ledger(self.path / "slices" / "image")

    @property
    def shape(self) -> Triple:
        """Slices, height and width in voxels."""
        return self.image.full.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the image: uint8 or uint16."""
        return self.image.full.dtype

    @property
    def staging(self) -> Path:
        """Folder beside the store where shards are written before they are renamed into place."""
        return beside(self.path, "staging")

    def labels(self) -> dict[str, LabelInfo]:
        """Every label by name: truths and masks."""
        return {name: self._label_info(name) for name in self._label_names()}

    def readable_labels(self, problems: list[str] | None = None) -> dict[str, LabelInfo]:
        """As `labels`, without those whose metadata cannot be read, which ``problems`` then says: only for looking."""
        found = {}
        for name in self._label_names():
            try:
                found[name] = self._label_info(name)
            except NotAVolumeError as error:
                if problems is not None:
                    problems.append(str(error))
        return found

    def own_labels(self) -> list[LabelInfo]:
        """All but those of other programs, which may be stored in any way, and are left as they are."""
        return [label for label in self.labels().values() if label.kind in KINDS]

    def truths(self) -> list[str]:
        """Names of the labels of experts, as far as they can be read."""
        return [label.name for label in self.readable_labels().values() if label.kind == "truth"]

    def only_truth(self) -> str | None:
        """The one truth there is; None without any.

        Raises
        ------
        ConfigError
            If there are several.
        """
        known = self.truths()
        if len(known) > 1:
            raise ConfigError(f"{self.path}: has the truths {', '.join(known)}; choose one with --truth")
        return known[0] if known else None

    def label(self, name: str) -> Pyramid:
        """Label image of this name.

        Raises
        ------
        MissingInputError
            If there is none.
        """
        if name not in self._label_names():
            if (self.path / "runs" / name / "zarr.json").is_file():
                raise MissingInputError(
                    f"{self.path}: the mask of run {name!r} is lost; the next `kesm run` makes it again"
                )
            known = ", ".join(self._label_names()) or "none yet"
            raise MissingInputError(
                f"{self.path}: has no label {name!r}; it has: {known}; add one with `kesm ingest --label`"
            )
        kind = self._label_info(name).kind
        if kind == "confusion":
            return ConfusionPyramid(self.path / "labels" / name, self._levels)
        way_out = BY_A_RUN if kind == "mask" else FROM_A_COPY
        return Pyramid(self.path / "labels" / name, self._levels, reduce_label, way_out)

    def truth(self, name: str) -> tuple[Pyramid, Ledger]:
        """Return a truth and the ledger of its slices.

        Raises
        ------
        MissingInputError
            If there is none, or if the label is a mask.
        """
        label = self.label(name)
        kind = self._label_info(name).kind
        if kind != "truth":
            what = {"derived": "derived from a mask", "confusion": "the confusion of a run"}
            raise MissingInputError(f"{self.path}: {name!r} is {what.get(kind, 'the mask of a run')}, not a truth")
        return label, Ledger(self._label_ledger(name))

    def create_truth(self, name: str, mapping: dict[str, Any]) -> tuple[Pyramid, Ledger]:
        """Create an empty truth (not annotated everywhere); ``publish_label`` makes it visible."""
        return self._create_recorded(name, "truth", mapping, TRUTH_UNLABELLED)

    def derived(self, name: str) -> tuple[Pyramid, Ledger]:
        """Return a label that was derived from the mask of a run, and the ledger of its slices.

        Raises
        ------
        MissingInputError
            If there is none.
        """
        label = self.label(name)
        if self._label_info(name).kind != "derived":
            raise MissingInputError(f"{self.path}: {name!r} is not derived from a mask")
        return label, Ledger(self._label_ledger(name), CLEAN_AGAIN)

    def create_derived(self, name: str, run: str) -> tuple[Pyramid, Ledger]:
        """Create an empty label that is derived from the mask of a run; ``publish_label`` makes it visible."""
        return self._create_recorded(name, "derived", {}, 0, run)

    def create_mask(self, name: str) -> Pyramid:
        """Create the empty mask of a run."""
        return self._create_label(name, "mask", {}, 0)

    def confusion(self, run: str) -> LabelInfo | None:
        """The label that shows the confusion of a run, if there is one."""
        name = confusion_name(run)
        info = self._label_info(name) if name in self._label_names() else None
        return info if info is not None and info.kind == "confusion" else None

    def create_confusion(self, run: str, truth: str) -> Pyramid:
        """Create an empty confusion of a run with a truth; ``publish_label`` makes it visible."""
        name, folder = confusion_name(run), self.path / "labels"
        own = {"kind": "confusion", "mapping": {}, "run": run, "truth": truth}
        ome = confusion_metadata(name, self._levels, self.voxel_size_um)
        create_document(folder / name, {"ome": ome, "kesm": own})
        Pyramid.create(folder / name, self.shape, "uint8", 0, reduce_label)
        return ConfusionPyramid(folder / name, self._levels)

    def publish_label(self, name: str) -> None:
        """List a label in the group of labels; the caller holds the lock."""
        names = self._label_names()
        create_document(self.path / "labels", {"ome": {"version": "0.5", "labels": sorted({*names, name})}})

    def describe_label(self, name: str, kind: str, mapping: dict[str, Any], run: str | None = None) -> None:
        """Write the metadata of a label; the caller holds the lock."""
        colours = TRUTH_COLOURS if kind == "truth" else MASK_COLOURS
        create_document(
            self.path / "labels" / name,
            {
                "ome": label_metadata(name, self._levels, self.voxel_size_um, colours),
                "kesm": {"kind": kind, "mapping": mapping} | ({} if run is None else {"run": run}),
            },
        )

    def withdraw_label(self, name: str) -> None:
        """Take a label from the group of labels; the caller holds the lock."""
        names = [other for other in self._label_names() if other != name]
        create_document(self.path / "labels", {"ome": {"version": "0.5", "labels": names}})

    def sign_mask(self, name: str, provenance: dict[str, Any]) -> None:
        """Say in a mask's own metadata how it was made; only the process that works on its run does so."""
        path = self.path / "labels" / name
        document = read_document(path) or {}
        create_document(path, {**document, "kesm": {**document.get("kesm", {}), "provenance": provenance}})

    def remove_truth(self, name: str) -> None:
        """Remove a truth, or what was derived from a mask, that was never published."""
        shutil.rmtree(self.path / "labels" / name, ignore_errors=True)
        shutil.rmtree(self._label_ledger(name), ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the volume against other processes that change its structure.

        Raises
        ------
        LockedError
            If another process holds it for longer than ten seconds.
        """
        with locked(beside(self.path, "lock"), f"{self.path}: another process is changing it", LOCK_WAIT_S):
            # What was not yet renamed into place when a process was killed; only who holds the lock writes there.
            for folder in ("", "[0-9]*", "labels", "labels/*/[0-9]*", "slices/**"):
                for left in self.path.glob(f"{folder}/*.partial".lstrip("/")):
                    left.unlink(missing_ok=True)
            yield

    def resize(self, slices: int) -> None:
        """Change the number of slices of labels, ledgers and image; no label is ever shorter than the image."""
        shrinking = slices < self.shape[0]
        if shrinking:
            self.image.resize(slices)
        for info in self.own_labels():
            # Before the voxels, whose length tells `complete_resize` of a change that was cut off.
            if info.kind in ("truth", "derived"):
                Ledger(self._label_ledger(info.name)).resize(slices)
            self.label(info.name).resize(slices)
        self.slices.resize(slices)
        if not shrinking:
            self.image.resize(slices)

    def _label_names(self) -> list[str]:
        """Names of the labels that are listed and there: one that is being made is not yet, a removed one no more."""
        listing = read_document(self.path / "labels") or {}
        names: list[str] = listing.get("ome", {}).get("labels", [])
        return [name for name in names if (self.path / "labels" / name / "zarr.json").is_file()]

    def _label_info(self, name: str) -> LabelInfo:
        document = read_document(self.path / "labels" / name) or {}
        own = document.get("kesm", {})
        return LabelInfo(name, own.get("kind", "foreign"), own.get("mapping", {}), own.get("run"), own.get("truth"))

    def _label_ledger(self, name: str) -> Path:
        return self.path / "slices" / "labels" / name

    def _create_recorded(
        self, name: str, kind: str, mapping: dict[str, Any], fill: int, run: str | None = None
    ) -> tuple[Pyramid, Ledger]:
        """Create a label whose slices are recorded as the image's are."""
        label = self._create_label(name, kind, mapping, fill, run)
        _, rows, columns = label.full.shards.cells
        create_document(self.path / "slices" / "labels", {})
        return label, Ledger.create(self._label_ledger(name), self.shape[0], (rows, columns))

    def _create_label(
        self, name: str, kind: str, mapping: dict[str, Any], fill: int, run: str | None = None
    ) -> Pyramid:
        if not (self.path / "labels" / "zarr.json").exists():
            create_document(self.path / "labels", {"ome": {"version": "0.5", "labels": []}})
        self.describe_label(name, kind, mapping, run)
        return Pyramid.create(self.path / "labels" / name, self.shape, "uint8", fill, reduce_label)


def beside(path: Path, what: str) -> Path:
    """Path of a volume's companion, ``brain.zarr.lock``: nothing but Zarr lies inside a store."""
    return path.with_name(f"{path.name}.{what}")


@contextmanager
def staging_folder(volume: Path, what: str) -> Iterator[Path]:
    """Make the folder beside a volume where something is written before it is renamed; swept before and after."""
    staging = beside(volume, "staging") / what
    with disk_errors(volume):
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir(parents=True)
        except FileNotFoundError:  # another process has just removed the empty folder around it
            staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # another process still uses its own part of it
            staging.parent.rmdir()


def publish(built: Path, path: Path) -> None:
    """Move a volume that was built aside to where it belongs."""
    if path.exists():
        raise ExistsError(f"{path}: exists already; add slices with --append, or choose another --volume")
    os.replace(built, path)  # noqa: PTH105  (fails on an existing folder, unlike Path.rename on some systems)
