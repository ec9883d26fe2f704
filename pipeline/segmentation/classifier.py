"""Trained classifiers of voxels, and the files that keep them.

The one owner of scikit-learn, which fits the trees, and of skops, which keeps them without pickle.
"""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, MissingInputError, ShapeMismatchError
from pipeline.kernels.features import SCALES, Floats, Plane, count_features, features_halo, write_features
from pipeline.kernels.trees import Trees
from pipeline.scratch import scratch
from pipeline.storage.disk import raise_refusal, retried
from pipeline.storage.draft import check_place, draft_file

Kind = Literal["forest", "boosting"]

IMAGE_STAGES = ("foreground", "correct", "denoise")
"""Keys of a recipe that decide the grey levels which a classifier sees."""

TRUSTED_TYPES = (
    "sklearn._loss.link.Interval",
    "sklearn._loss.link.LogitLink",
    "sklearn._loss.loss.HalfBinomialLoss",
    "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
)
"""What models hold that not every skops since 0.13 trusts by itself: numbers, and trees, which are checked before any
of their nodes is followed. A file with anything else is not loaded."""

_BACKGROUND, _VESSEL = 0, 255  # as truths are stored; anything else is not annotated
_FORMAT, _VERSION = "kesm-classifier", 1
_PART = 512  # side in voxels of what is classified at once: its features take 17 MB
_LARGEST_BYTES = 1 << 28  # of a file's content; that of the largest models here is a hundredth of it
_LARGEST_SCALE = 64.0  # voxels: the halo must fit a volume
_PROBES = 64  # samples whose scores a file keeps, by which its reader can tell that it reads it right
_loading = threading.Lock()  # filters of warnings belong to the whole process


@dataclass(frozen=True, slots=True)
class Samples:
    """Voxels to learn from.

    Attributes
    ----------
    features : ndarray
        float32 (n, k).
    vessel : ndarray
        bool (n,).
    weights : ndarray
        float64 (n,): how many annotated voxels each stands for.
    """

    features: Floats
    vessel: NDArray[np.bool_]
    weights: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """Samples of several tiles, in their order."""
        return cls(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.vessel for part in parts]),
            np.concatenate([part.weights for part in parts]),
        )

    def weighted(self, factor: float) -> Samples:
        """Samples that stand for so many times as many voxels."""
        return Samples(self.features, self.vessel, self.weights * factor)


def draw_samples(
    plane: Plane, truth: NDArray[np.uint8], count: int, rng: np.random.Generator, scales: Sequence[float] = SCALES
) -> Samples:
    """Draw annotated voxels of a tile: as many of vessels as of background, as far as there are.

    Vessels are few. So that the classifier does not take them for frequent, a voxel counts as many times as there are
    voxels that it was drawn from: measured on held-out rows of the real tile, that raises F1 from 0.81 to 0.88.

    Parameters
    ----------
    plane : ndarray
        (H, W) grey levels: the tile with the same halo all around.
    truth : ndarray
        (h, w) uint8 of the tile: 0 background, 255 vessel, anything else not annotated.
    count : int
        Voxels, at most.
    rng : Generator
    scales : sequence of float

    Raises
    ------
    ShapeMismatchError
        If the tile does not lie in the middle of the plane.
    """
    height, width = truth.shape
    halo = (plane.shape[0] - height) // 2
    if plane.shape != (height + 2 * halo, width + 2 * halo):
        raise ShapeMismatchError(f"truth: got shape {truth.shape}, which is not the middle of a plane {plane.shape}")
    described = np.empty((height, width, count_features(scales)), np.float32)
    write_features(plane, (halo, halo), scales, described)
    chosen, weights = [], []
    for value in (_BACKGROUND, _VESSEL):
        there = np.flatnonzero(truth == value)
        some = rng.choice(there, min(count // 2, len(there)), replace=False, shuffle=False)
        chosen.append(some)
        weights.append(np.full(len(some), len(there) / max(1, len(some))))
    where = np.concatenate(chosen)
    return Samples(
        described.reshape(-1, described.shape[-1])[where], truth.ravel()[where] != 0, np.concatenate(weights)
    )


@dataclass(frozen=True, slots=True)
class Classifier:
    """What tells vessel from background, and what it was made from.

    Attributes
    ----------
    model : object
        Of scikit-learn.
    scales : tuple of float
        Of its features, in voxels.
    image : mapping
        What the grey levels must be that it is applied to, from `image_of`.
    training : mapping
        How it was trained, and how good it was, as plain values.
    """

    model: Any
    scales: tuple[float, ...]
    image: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    trees: Trees = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "trees", Trees.of(self.model, count_features(self.scales)))

    @property
    def halo(self) -> int:
        """Voxels beyond one, in the plane, that decide whether it is vessel."""
        return features_halo(self.scales)

    def predict(self, plane: Plane, halo: tuple[int, int] = (0, 0)) -> NDArray[np.uint8]:
        """Tell the vessels of a plane, a part at a time, in memory that does not grow with it.

        Parameters
        ----------
        plane : ndarray
            (h, w) grey levels: filtered, and inverted where vessels are dark. It is reflected where it ends.
        halo : tuple
            (y, x) voxels on each side of the plane that are left out; where it has the classifier's `halo`, the mask
            has the same bits in any cut.

        Returns
        -------
        ndarray
            (h - 2y, w - 2x) uint8: 255 vessel, 0 background.
        """
        (above, beside), reach = halo, self.halo
        height, width = plane.shape[0] - 2 * above, plane.shape[1] - 2 * beside
        mask, count = np.empty((height, width), np.uint8), count_features(self.scales)
        for row in range(0, height, _PART):
            for column in range(0, width, _PART):
                part = mask[row : row + _PART, column : column + _PART]
                y, x = row + above, column + beside
                top, left = max(0, y - reach), max(0, x - reach)
                around = plane[top : y + part.shape[0] + reach, left : x + part.shape[1] + reach]
                found = scratch.array("features", (*part.shape, count), np.float32)
                write_features(around, (y - top, x - left), self.scales, found)
                part[...] = self.trees.mask(found.reshape(-1, count)).reshape(part.shape)
        return mask

    def check_image(self, image: Mapping[str, Any], what: str) -> None:
        """Check that it is applied to what it was trained on.

        Raises
        ------
        ConfigError
            Naming every key that differs.
        """
        other = [key for key in self.image if image.get(key) != self.image[key]]
        if other:
            was = ", ".join(f"{key} {self.image[key]}" for key in other)
            now = ", ".join(f"{key} {image.get(key)}" for key in other)
            raise ConfigError(f"{what}: was trained on {was}, and here is {now}; make them the same, or train another")

    def save(self, path: Path, replace: bool = False) -> str:
        """Write the classifier as a file of skops, whole or not at all; return its digest.

        Raises
        ------
        ExistsError, MissingInputError, StorageError
            As `draft_file`.
        """
        skops = _libraries().skops
        check_place(path, replace)
        probes = np.random.default_rng(0).normal(128, 128, (_PROBES, count_features(self.scales)))
        content = {
            "format": _FORMAT, "version": _VERSION, "model": self.model, "scales": list(self.scales),
            "image": dict(self.image), "training": dict(self.training),
            "versions": {name: version(name) for name in ("kesm-pipeline", "numpy", "scikit-learn", "scipy", "skops")},
            "probes": probes.astype(np.float32), "scores": self.trees.scores(probes.astype(np.float32)),
        }  # fmt: skip
        data = skops.dumps(content, compression=zipfile.ZIP_DEFLATED)
        with draft_file(path, replace) as draft:
            draft.write_bytes(data)
        return hashlib.sha256(data).hexdigest()


def fit_samples(
    samples: Samples, kind: Kind = "forest", seed: int = 0, scales: Sequence[float] = SCALES, threads: int = 1
) -> Classifier:
    """Train a classifier on some voxels; the same ones and the same seed give the same, whatever the threads.

    Raises
    ------
    ConfigError
        If they are of one class, or scikit-learn is not installed.
    """
    ensemble, _, limits = _libraries()
    if samples.vessel.all() or not samples.vessel.any():
        raise ConfigError("truth: has voxels of one class only, to learn from; annotate vessels and background")
    if kind == "forest":
        # Weighted samples are not drawn again, which scikit-learn does in another way since 1.9. Large leaves make up
        # for it: on held-out rows of the real tile F1 is 0.92 and 0.96 with 50 samples in each, 0.90 and 0.94 with 5.
        leaf = min(50, max(5, len(samples.vessel) // 300))
        model = ensemble.RandomForestClassifier(
            n_estimators=32, max_depth=10, min_samples_leaf=leaf, bootstrap=False, random_state=seed, n_jobs=threads
        )
    else:  # without stopping early: the samples that it would keep for that are no held-out slices
        model = ensemble.HistGradientBoostingClassifier(
            max_iter=60, max_depth=6, max_leaf_nodes=15, early_stopping=False, random_state=seed
        )
    with limits(1, "openmp"):  # boosting takes every CPU and waits busily: ten times as long where others work, too
        model.fit(samples.features, samples.vessel, samples.weights / samples.weights.mean())
    if kind == "forest":
        model.n_jobs = 1
    return Classifier(model, tuple(map(float, scales)))


def image_of(recipe: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """What decides the grey levels that a classifier sees: the image's type, and some of a recipe's document."""
    tile = ("tile",) if "clahe" in (recipe.get("correct") or ()) else ()  # which then are its regions
    return {"dtype": dtype} | {key: recipe.get(key) for key in (*IMAGE_STAGES, *tile)}


def file_digest(path: Path) -> str:
    """SHA-256 of a model's file, in hexadecimal digits.

    Raises
    ------
    MissingInputError, ConfigError
        If it is not there, or cannot be read.
    """
    return hashlib.sha256(_read(Path(path))).hexdigest()


def load_classifier(path: str | Path, digest: str | None = None) -> Classifier:
    """Return the classifier of a file, which a process loads once.

    Parameters
    ----------
    path : str or Path
    digest : str, optional
        What `file_digest` gave when the run was planned.

    Raises
    ------
    MissingInputError, ConfigError
        If there is no file, or another one; or it holds anything but a classifier.
    """
    return _cached(str(path), digest or file_digest(Path(path)))


@lru_cache(maxsize=4)
def _cached(path: str, digest: str) -> Classifier:
    data, (ensemble, skops, _) = _read(Path(path)), _libraries()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ConfigError(f"{path}: is another model than the one that the run was planned with; run again")
    try:
        _check_types(data, skops)
        with _loading, warnings.catch_warnings():
            # scikit-learn warns of trees that another version of it has made; here their answers are checked.
            warnings.simplefilter("ignore")
            content = skops.loads(data, trusted=list(TRUSTED_TYPES))
        return _from_content(content, (ensemble.RandomForestClassifier, ensemble.HistGradientBoostingClassifier))
    except MemoryError:
        raise
    except Exception as error:  # a file may hold anything: KeyError, TypeError, BadZipFile, JSONDecodeError, ...
        why = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"{path}: is no model of `kesm train` ({why}); train it again, or name another file"
        ) from error


def _check_types(data: bytes, skops: Any) -> None:
    """Look at what a file holds, before any of it is loaded."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as error:
        raise ValueError("it is no file of skops, or not a whole one; pickles are never loaded") from error
    if size > _LARGEST_BYTES:
        raise ValueError(f"its content has {size:,} bytes, which is more than any model has")
    foreign = sorted(set(skops.get_untrusted_types(data=data)) - set(TRUSTED_TYPES))
    if foreign:
        raise ValueError(f"it holds {', '.join(foreign)}, which only other programs or versions of scikit-learn write")


def _from_content(content: Any, kinds: tuple[type, ...]) -> Classifier:
    """Make a classifier of what a file holds, if it is one, and if it answers as it did when it was written."""
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not isinstance(content["model"], kinds):
        raise ValueError("it holds something else")
    if content["version"] != _VERSION:
        raise ValueError(f"it is of version {content['version']}, and this program reads {_VERSION}")
    scales = tuple(float(scale) for scale in content["scales"])
    if not scales or not all(0 < scale <= _LARGEST_SCALE for scale in scales):
        raise ValueError(f"its scales are {scales}")
    made = Classifier(content["model"], scales, dict(content["image"]), dict(content["training"]))
    if not np.array_equal(made.trees.scores(content["probes"]), content["scores"]):
        was, now = content["versions"]["scikit-learn"], version("scikit-learn")
        raise ValueError(f"it gives other answers than when scikit-learn {was} made it; here is {now}")
    return made


def _read(path: Path) -> bytes:
    try:
        return retried(path.read_bytes)
    except FileNotFoundError as error:
        raise MissingInputError(
            f"{path}: no such model; make it with `kesm train VOLUME --truth NAME --out {path.name}`"
        ) from error
    except OSError as error:
        raise_refusal(path, error)
        raise ConfigError(f"{path}: cannot be read ({error}); name a file that `kesm train` has written") from error


class _Libraries(NamedTuple):
    """What of other packages is used here."""

    ensemble: Any
    skops: Any
    limits: Any


def check_libraries() -> None:
    """Check that scikit-learn and skops are installed.

    Raises
    ------
    ConfigError
        If they are not.
    """
    _libraries()


def _libraries() -> _Libraries:
    """Import scikit-learn and skops: not every installation has them, and they take a second."""
    try:
        import skops.io  # noqa: PLC0415
        from sklearn import ensemble  # noqa: PLC0415
        from threadpoolctl import threadpool_limits  # noqa: PLC0415  (scikit-learn needs it)
    except ImportError as error:
        raise ConfigError(
            f"classifiers need scikit-learn and skops ({error}); install them with `pip install 'kesm-pipeline[learn]'`"
        ) from error
    return _Libraries(ensemble, skops.io, threadpool_limits)
