"""Classifiers learn, answer the same in any cut, and come back from their files; nothing else is loaded from one."""

from __future__ import annotations

import fractions
import pickle
import sys
import warnings
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier

from pipeline.errors import ConfigError, ExistsError, MissingInputError, PipelineError, ShapeMismatchError, StorageError
from pipeline.kernels.confusion import Counts, scores
from pipeline.kernels.features import features, features_halo
from pipeline.kernels.threshold import LEVEL_OF
from pipeline.phantom import Phantom
from pipeline.segmentation import classifier as module
from pipeline.segmentation.classifier import (
    TRUSTED_TYPES,
    Classifier,
    Samples,
    draw_samples,
    file_digest,
    fit_samples,
    image_of,
    load_classifier,
)

KINDS = ["forest", "boosting"]
HALO = features_halo()


@cache
def planes() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Slices with bright vessels, and their truths."""
    phantom = Phantom((4, 200, 240), seed=3)
    pairs = [phantom.slice(z) for z in (0, 1, 3)]
    return [255 - grey for grey, _ in pairs], [truth for _, truth in pairs]


@cache
def trained(kind: str = "forest", seed: int = 0) -> Classifier:
    drawn = [
        draw_samples(np.pad(grey, HALO, mode="symmetric"), truth, 1000, np.random.default_rng((seed, number)))
        for number, (grey, truth) in enumerate(zip(*planes(), strict=True))
    ]
    return fit_samples(Samples.joined(drawn[:2]), kind, seed)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest) -> Classifier:
    return trained(request.param)


@pytest.fixture(scope="module")
def forest() -> Classifier:
    return trained()


def same_trees(left: Classifier, right: Classifier) -> bool:
    return all(np.array_equal(getattr(left.trees, name), getattr(right.trees, name)) for name in left.trees.__slots__)


def test_it_learns(made: Classifier) -> None:
    grey, truth = planes()
    found = scores(Counts.from_images(truth[2], made.predict(grey[2]))).f1
    level = LEVEL_OF["otsu"](np.bincount(grey[2].ravel(), minlength=256).astype(np.int64))
    otsu = scores(Counts.from_images(truth[2], grey[2] > level)).f1
    assert found is not None
    assert otsu is not None
    assert found > max(0.95, otsu)


def test_answers_are_those_of_scikit_learn(made: Classifier) -> None:
    plane = planes()[0][2]
    described = features(plane).reshape(-1, features(plane).shape[-1])
    np.testing.assert_array_equal(made.predict(plane).ravel() == 255, made.model.predict(described))


def test_same_seed_gives_the_same_trees(made: Classifier) -> None:
    kind = "forest" if isinstance(made.model, RandomForestClassifier) else "boosting"
    assert same_trees(made, trained.__wrapped__(kind))
    assert not same_trees(made, trained(kind, seed=1))


def test_threads_do_not_matter() -> None:
    grey, truth = planes()
    drawn = draw_samples(np.pad(grey[0], HALO, mode="symmetric"), truth[0], 1000, np.random.default_rng(0))
    assert same_trees(fit_samples(drawn), fit_samples(drawn, threads=2))


@settings(max_examples=20, deadline=None)
@given(top=st.integers(0, 199), left=st.integers(0, 239), height=st.integers(1, 200), width=st.integers(1, 240))
def test_mask_is_the_same_in_any_cut(top: int, left: int, height: int, width: int) -> None:
    whole, plane = whole_mask()
    part = whole[top : top + height, left : left + width]
    around = np.pad(plane, HALO, mode="symmetric")
    cut = around[top : top + part.shape[0] + 2 * HALO, left : left + part.shape[1] + 2 * HALO]
    np.testing.assert_array_equal(trained().predict(cut, (HALO, HALO)), part)


@cache
def whole_mask() -> tuple[np.ndarray, np.ndarray]:
    plane = planes()[0][2]
    return trained().predict(plane), plane


@pytest.mark.parametrize("side", [1000, 100, 37])
def test_parts_do_not_show(forest: Classifier, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    plane = planes()[0][2]
    whole = forest.predict(plane)
    assert (whole.shape, whole.dtype) == (plane.shape, np.uint8)
    assert set(np.unique(whole).tolist()) == {0, 255}
    monkeypatch.setattr(module, "_PART", side)
    np.testing.assert_array_equal(forest.predict(plane), whole)
    np.testing.assert_array_equal(forest.predict(plane, (17, 20)), whole[17:-17, 20:-20])


# what it learns from


def test_samples_stand_for_all_annotated_voxels() -> None:
    rng = np.random.default_rng(5)
    plane = rng.integers(0, 255, (60 + 2 * HALO, 80 + 2 * HALO), np.uint8)
    truth = rng.choice(np.array([0, 0, 0, 127, 255], np.uint8), (60, 80))
    truth[:, :40] = 127
    drawn = draw_samples(plane, truth, 500, np.random.default_rng(1))
    assert drawn.vessel.tolist() == [False] * 250 + [True] * 250
    assert drawn.weights[~drawn.vessel].sum() == pytest.approx((truth == 0).sum())
    assert drawn.weights[drawn.vessel].sum() == pytest.approx((truth == 255).sum())
    described = features(plane)[HALO:-HALO, HALO:-HALO]
    rows = {row.tobytes(): int(value) for row, value in zip(described.reshape(4800, -1), truth.flat, strict=True)}
    assert [rows[row.tobytes()] for row in drawn.features] == [0] * 250 + [255] * 250


@pytest.mark.parametrize("value", [0, 127, 255])
def test_tile_of_one_class_gives_what_it_has(value: int) -> None:
    truth = np.full((9, 11), value, np.uint8)
    drawn = draw_samples(np.zeros((9 + 2 * HALO, 11 + 2 * HALO), np.uint8), truth, 10**6, np.random.default_rng(1))
    assert drawn.vessel.tolist() == ([] if value == 127 else [value == 255] * 99)
    assert drawn.weights.tolist() == [1] * len(drawn.vessel)


@pytest.mark.parametrize("vessel", [False, True])
def test_one_class_is_too_little(vessel: bool) -> None:
    drawn = Samples(np.zeros((9, 16), np.float32), np.full(9, vessel), np.ones(9))
    with pytest.raises(ConfigError, match="of one class only"):
        fit_samples(drawn)


def test_truth_lies_in_the_middle_of_its_plane() -> None:
    with pytest.raises(ShapeMismatchError, match="not the middle"):
        draw_samples(np.zeros((40, 40), np.uint8), np.zeros((10, 12), np.uint8), 5, np.random.default_rng(0))


def test_another_image_is_refused(forest: Classifier) -> None:
    recipe = {"foreground": "dark", "tile": 512, "denoise": {"method": "median", "size": 3}}
    taught = Classifier(forest.model, forest.scales, image_of(recipe, "uint8"))
    taught.check_image(image_of(recipe | {"tile": 256}, "uint8"), "vessels.skops")
    with pytest.raises(ConfigError) as error:
        taught.check_image(image_of(recipe | {"denoise": {"method": "none"}}, "uint16"), "vessels.skops")
    assert str(error.value) == (
        "vessels.skops: was trained on dtype uint8, denoise {'method': 'median', 'size': 3}, and here is dtype uint16, "
        "denoise {'method': 'none'}; make them the same, or train another"
    )


# files


def test_file_brings_it_back(made: Classifier, tmp_path: Path) -> None:
    file = tmp_path / "vessels.skops"
    kept = Classifier(made.model, made.scales, {"dtype": "uint8", "denoise": None}, {"held_out": {"f1": 0.5}})
    digest = kept.save(file)
    assert digest == file_digest(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = load_classifier(file, digest)
    assert (back.scales, back.image, back.training) == (kept.scales, kept.image, kept.training)
    assert same_trees(made, back)
    assert load_classifier(str(file), digest) is back
    assert load_classifier(file) is back
    assert list(tmp_path.iterdir()) == [file]
    assert set(skops.io.get_untrusted_types(file=file)) <= set(TRUSTED_TYPES)


def test_file_is_replaced_only_when_told_to(forest: Classifier, tmp_path: Path) -> None:
    file = tmp_path / "vessels.skops"
    file.write_bytes(b"mine")
    with pytest.raises(ExistsError, match="--replace"):
        forest.save(file)
    assert file.read_bytes() == b"mine"
    digest = forest.save(file, replace=True)
    forest.save(file, replace=True)
    with pytest.raises(ConfigError, match="is another model than the one that the run was planned with"):
        load_classifier(file, digest)


def test_failed_write_leaves_what_was_there(
    forest: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "vessels.skops"
    file.write_bytes(b"mine")

    def full(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match="the disk is full"):
        forest.save(file, replace=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


class Foreign:
    """What a file could make Python run; nobody has put it into a list."""

    loaded = False

    def __setstate__(self, state: object) -> None:
        Foreign.loaded = True


def write_pickle(file: Path, model: Classifier) -> None:
    file.write_bytes(pickle.dumps(Foreign()))


def write_foreign(file: Path, model: Classifier) -> None:
    skops.io.dump({"format": "kesm-classifier", "model": model.model, "more": Foreign()}, file)


def write_fraction(file: Path, model: Classifier) -> None:
    skops.io.dump(fractions.Fraction(1, 2), file)


def write_half(file: Path, model: Classifier) -> None:
    model.save(file)
    file.write_bytes(file.read_bytes()[:-2000])


def write_nothing(file: Path, model: Classifier) -> None:
    file.touch()


def write_zip(file: Path, model: Classifier) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("schema.json", "[1, 2]")


def write_model(file: Path, model: Classifier) -> None:
    skops.io.dump(model.model, file)


def write_version(file: Path, model: Classifier) -> None:
    skops.io.dump({"format": "kesm-classifier", "version": 2, "model": model.model}, file)


def write_part(file: Path, model: Classifier) -> None:
    skops.io.dump({"format": "kesm-classifier", "version": 1, "model": model.model}, file)


def write_unfitted(file: Path, model: Classifier) -> None:
    change(file, model, model=RandomForestClassifier())


def write_more_scales(file: Path, model: Classifier) -> None:
    change(file, model, scales=[1.0, 2.0])


def write_scale(file: Path, model: Classifier) -> None:
    change(file, model, scales=[1.0, 2.0, 1e9])


def write_other_answers(file: Path, model: Classifier) -> None:
    change(file, model, scores=np.zeros(64))


def write_other_probes(file: Path, model: Classifier) -> None:
    change(file, model, probes=np.zeros((64, 2), np.float32))


def change(file: Path, model: Classifier, /, **changes: object) -> None:
    model.save(file)
    content = skops.io.load(file, trusted=list(TRUSTED_TYPES))
    skops.io.dump(content | changes, file)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_pickle, "no file of skops, or not a whole one; pickles are never loaded"),
        (write_nothing, "no file of skops, or not a whole one"),
        (write_half, "no file of skops, or not a whole one"),
        (write_foreign, "it holds tests.test_classifier.Foreign, which only other programs"),
        (write_fraction, "it holds fractions.Fraction, which only other programs"),
        (write_zip, "Error: "),
        (write_model, "it holds something else"),
        (write_version, "it is of version 2, and this program reads 1"),
        (write_part, "KeyError: 'scales'"),
        (write_unfitted, "Error: "),
        (write_more_scales, "asks for features which there are not"),
        (write_scale, "its scales are"),
        (write_other_answers, "it gives other answers than when scikit-learn"),
        (write_other_probes, r"samples: got float32 \(64, 2\)"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_no_model_is_not_loaded(forest: Classifier, tmp_path: Path, write: object, reason: str) -> None:
    file = tmp_path / "other.skops"
    write(file, forest)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=reason) as error:
        load_classifier(file)
    assert str(error.value).startswith(f"{file}: is no model of `kesm train` (")
    assert str(error.value).endswith("; train it again, or name another file")
    assert "\n" not in str(error.value)
    assert not Foreign.loaded


def test_large_content_is_not_unpacked(forest: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "large.skops"
    forest.save(file)
    monkeypatch.setattr(module, "_LARGEST_BYTES", file.stat().st_size)
    with pytest.raises(ConfigError, match="more than any model has"):
        load_classifier(file)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("gone.skops", MissingInputError, "no such model; make it with `kesm train VOLUME"),
        (".", ConfigError, "cannot be read"),
        ("file/model.skops", PipelineError, "cannot be read"),
    ],
)
def test_file_must_be_there(tmp_path: Path, name: str, kind: type[Exception], message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(kind, match=message):
        load_classifier(tmp_path / name)


@pytest.mark.parametrize("missing", ["skops.io", "sklearn"])
def test_libraries_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    (tmp_path / "m.skops").touch()
    monkeypatch.setitem(sys.modules, missing, None)
    for call in (module.check_libraries, lambda: load_classifier(tmp_path / "m.skops")):
        with pytest.raises(ConfigError, match=r"install them with `pip install 'kesm-pipeline\[learn\]'`"):
            call()
