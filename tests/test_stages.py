"""Recipes with more than a filter and a level: every stage against SciPy and scikit-image on the whole volume."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage import exposure, filters, morphology

from pipeline.checks.verify import verify
from pipeline.errors import ConfigError, MemoryLimitError, MissingInputError
from pipeline.events import ignore
from pipeline.findings.summary import summarise
from pipeline.geometry import Box
from pipeline.kernels.clahe import clahe
from pipeline.kernels.correction import flat_field
from pipeline.phantom import Phantom
from pipeline.segmentation.budget import task_bytes
from pipeline.segmentation.engine import ThreadRunner
from pipeline.segmentation.plan import make_plan
from pipeline.segmentation.runs import run, run_plan
from pipeline.settings.config import LocalCluster, ThreadsCluster
from pipeline.settings.configfile import load_config
from pipeline.settings.recipe import Recipe
from pipeline.storage.tables import RunTables, Signal
from pipeline.storage.volume import Volume
from tests.builders import MAPPING, build_volume, run_config
from tests.test_execute import with_blocks

SHAPE = (2, 2100, 2600)
BLOCKS = {"whole slices": (1, 2100, 2600), "shards": (1, 2048, 2048)}
Plane = NDArray[np.uint8]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    folder = tmp_path_factory.mktemp("stages")
    (folder / "lab_functions.py").write_text(LAB)
    built = build_volume(folder / "brain.zarr", SHAPE)
    label, ledger = built.create_truth("inside", MAPPING)
    built.staging.mkdir()
    area = np.zeros(SHAPE[1:], np.uint8)
    area[300:2000, 100:2300] = 255
    for z in range(SHAPE[0]):
        ledger.record(z, label.write_slice(z, area, built.staging), f"{z}.png", 0)
    built.publish_label("inside")
    built.staging.rmdir()
    return Volume(built.path)


LAB = """
import numpy as np
from scipy import ndimage

def smooth(block):
    return ndimage.uniform_filter(block, (1, 5, 5), mode="reflect")

def bright(block):
    background = ndimage.uniform_filter(block[len(block) // 2].astype(np.int64), 17, mode="reflect")
    return block[len(block) // 2] > background + 20

def deep(block):
    return ndimage.minimum_filter(block, (3, 3, 3))[1] > 90

def whole(block):
    return (block > 100).astype(np.uint8)

def wrong_shape(block):
    return block[0, 1:]

def wrong_type(block):
    return block.astype(float)[0]

def raises(block):
    raise KeyError("no such vessel")

def leaves(block):
    raise SystemExit(5)
"""


@pytest.fixture(autouse=True)
def _lab(volume: Volume) -> Iterator[None]:
    sys.path.insert(0, str(volume.path.parent))
    yield
    sys.path.remove(str(volume.path.parent))


def image_of(volume: Volume) -> Plane:
    return volume.image.full.read(Box.whole(volume.shape))


def medians(volume: Volume) -> Plane:
    return np.stack([ndimage.median_filter(255 - plane, 3, mode="reflect") for plane in image_of(volume)])


def mask_of(volume: Volume, name: str) -> NDArray[np.bool_]:
    return volume.label(name).full.read(Box.whole(volume.shape)) == 255


def by_tiles(values: Plane, valid: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Otsu of every tile by scikit-image, of its valid voxels."""
    mask = np.zeros(values.shape, np.bool_)
    for y in range(0, values.shape[0], 512):
        for x in range(0, values.shape[1], 512):
            cut = np.s_[y : y + 512, x : x + 512]
            some = values[cut] if valid is None else values[cut][valid[cut]]
            if some.size:
                mask[cut] = values[cut] > filters.threshold_otsu(some)
    return mask if valid is None else mask & valid


def opened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return morphology.closing(morphology.opening(mask, morphology.disk(2)), morphology.disk(3))


def without_small(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Without objects of fewer voxels, corners joined: by SciPy's labels."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    return mask & (np.bincount(labels.ravel())[labels] >= size)


def filled(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    labels, _ = ndimage.label(~mask)
    return mask | ((np.bincount(labels.ravel())[labels] < size) & ~mask)


INSIDE = np.zeros(SHAPE[1:], np.bool_)
INSIDE[300:2000, 100:2300] = True

Slow = Callable[[Plane], NDArray[np.bool_]]
OF_MEDIANS: dict[str, tuple[dict[str, object], Slow]] = {
    "local mean": (
        {"threshold": {"method": "local_mean", "size": 31, "offset": -9.3}},
        lambda values: values > ndimage.uniform_filter(values.astype(np.float64), 31, mode="reflect") + 9.3,
    ),
    "local median": (
        {"threshold": {"method": "local_median", "size": 9, "offset": -2}},
        lambda values: values > ndimage.median_filter(values, 9, mode="reflect") + 2.0,
    ),
    "niblack": (
        {"threshold": {"method": "niblack", "size": 25, "k": -1.5}},
        lambda values: values > _niblack(values, 25, -1.5),
    ),
    "opening and closing": ({"clean": {"opening": 2, "closing": 3}}, lambda values: opened(by_tiles(values))),
    "valid area": ({"valid": {"label": "inside"}}, lambda values: by_tiles(values, INSIDE)),
    "segmenter": (
        {"segmenter": {"target": "lab_functions:bright", "halo": [0, 8, 8]}},
        lambda values: values > ndimage.uniform_filter(values.astype(np.int64), 17, mode="reflect") + 20,
    ),
    "segmenter of the block": ({"segmenter": {"target": "lab_functions:whole"}}, lambda values: values > 100),
}
WHOLE_SLICES: dict[str, tuple[dict[str, object], Slow]] = {
    "small objects and holes": (
        {"clean": {"small_objects": 400, "small_holes": 300}},
        lambda values: filled(without_small(by_tiles(values), 400), 300),
    ),
    "all of cleaning": (
        {"clean": {"opening": 2, "closing": 3, "small_objects": 400}, "valid": {"label": "inside"}},
        lambda values: without_small(opened(by_tiles(values, INSIDE)) & INSIDE, 400),
    ),
}


def _niblack(values: Plane, size: int, k: float) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    mean = ndimage.uniform_filter(wide, size, mode="reflect")
    squares = ndimage.uniform_filter(wide * wide, size, mode="reflect")
    return mean - k * np.sqrt(np.maximum(squares - mean * mean, 0))


def assert_same_mask(found: NDArray[np.bool_], expected: NDArray[np.bool_], unsure: int = 0) -> None:
    """Equal, but for voxels whose level SciPy's running sums round to the other side."""
    assert 0.01 < expected.mean() < 0.9
    assert np.count_nonzero(found != expected) <= unsure


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("stage", OF_MEDIANS)
def test_stage_equals_the_slow_way_in_any_block(volume: Volume, stage: str, block: tuple[int, int, int]) -> None:
    recipe, slow = OF_MEDIANS[stage]
    name = f"{stage.replace(' ', '-')}-{block[1]}"
    plan = with_blocks(make_plan(run_config(volume, name, **recipe)), block)
    summary = run_plan(plan, ThreadsCluster(threads=2), ignore)
    assert summary.tiles.done == summary.tiles.total
    expected = np.stack([slow(values) for values in medians(volume)])
    assert_same_mask(mask_of(volume, name), expected, unsure=20 if "threshold" in recipe else 0)
    assert_counts(volume, name, expected, INSIDE if "valid" in recipe else None)
    assert run(run_config(volume, name, **recipe)).tiles.reused == summary.tiles.total


def assert_counts(volume: Volume, name: str, mask: NDArray[np.bool_], valid: NDArray[np.bool_] | None) -> None:
    truth = volume.truth("groundtruth")[0].full.read(Box.whole(volume.shape))
    found, area = mask_of(volume, name), np.ones(SHAPE[1:], np.bool_) if valid is None else valid
    expected = [
        np.count_nonzero(area & (truth == label) & (found == marked))
        for label, marked in ((255, True), (0, True), (255, False), (0, False))
    ]
    counts = summarise(volume, name, "groundtruth").counts
    assert counts is not None
    assert [counts.tp, counts.fp, counts.fn, counts.tn] == expected
    assert mask.shape == found.shape


@pytest.mark.parametrize("stage", WHOLE_SLICES)
def test_stage_that_looks_at_whole_slices(volume: Volume, stage: str) -> None:
    recipe, slow = WHOLE_SLICES[stage]
    name = stage.replace(" ", "-")
    plan = make_plan(run_config(volume, name, **recipe))
    assert plan.block == (1, *SHAPE[1:])
    run_plan(plan, ThreadsCluster(threads=2), ignore)
    assert_same_mask(mask_of(volume, name), np.stack([slow(values) for values in medians(volume)]))


FILTERS: dict[str, tuple[dict[str, object], Callable[[Plane], Plane]]] = {
    "gaussian": (
        {"denoise": {"method": "gaussian", "sigma": 1.5}},
        lambda image: np.rint(ndimage.gaussian_filter((255 - image).astype(np.float64), 1.5)).astype(np.uint8),
    ),
    "python": (
        {"denoise": {"method": "python", "target": "lab_functions:smooth", "halo": [0, 2, 2]}},
        lambda image: ndimage.uniform_filter(255 - image, 5, mode="reflect"),
    ),
    "gamma": (
        {"correct": {"gamma": 0.5}},
        lambda image: ndimage.median_filter(255 - _rounded_gamma(image, 0.5), 3, mode="reflect"),
    ),
}


def _rounded_gamma(image: Plane, gamma: float) -> Plane:
    return np.rint(255 * (image / 255) ** gamma).astype(np.uint8)


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("stage", FILTERS)
def test_filter_equals_the_slow_way_in_any_block(volume: Volume, stage: str, block: tuple[int, int, int]) -> None:
    recipe, slow = FILTERS[stage]
    name = f"{stage}-{block[1]}"
    run_plan(with_blocks(make_plan(run_config(volume, name, **recipe)), block), ThreadsCluster(threads=2), ignore)
    expected = np.stack([by_tiles(slow(image)) for image in image_of(volume)])
    assert_same_mask(mask_of(volume, name), expected)


@pytest.mark.parametrize("threshold", [{}, {"method": "local_mean", "size": 31}], ids=["fused", "drawn"])
def test_tables_of_corrected_tiles_are_the_same_in_any_block(volume: Volume, threshold: dict[str, object]) -> None:
    tables = []
    for block in BLOCKS.values():
        name = f"tables-{len(threshold)}-{block[1]}"
        plan = make_plan(run_config(volume, name, correct={"gamma": 0.5}, threshold=threshold))
        run_plan(with_blocks(plan, block), ThreadsCluster(threads=2), ignore)
        tables.append(RunTables(volume, name).of_mask)
    assert np.isfinite(tables[0]["quality"].read()[..., 0]).all()
    for table, other in zip(*(of_run.values() for of_run in tables), strict=True):
        np.testing.assert_array_equal(table.read(), other.read(), err_msg=str(table.path))


def test_slices_are_matched_to_one_of_them(volume: Volume) -> None:
    run(run_config(volume, "matched", correct={"match": 1}))
    image = image_of(volume)
    matched = np.rint(exposure.match_histograms(image[0], image[1])).astype(np.uint8)
    expected = by_tiles(ndimage.median_filter(255 - matched, 3, mode="reflect"))
    assert np.count_nonzero(mask_of(volume, "matched")[0] != expected) < 0.001 * expected.size
    again = mask_of(volume, "matched")[1]
    np.testing.assert_array_equal(again, by_tiles(medians(volume)[1]))  # matched to itself


CORRECTIONS: dict[str, tuple[dict[str, float], Callable[[Plane], Plane]]] = {
    "flat field": ({"flat_field": 300}, lambda image: flat_field(image, 300)),
    "contrast": ({"clahe": 0.01}, lambda image: clahe(image, 512, 0.01)),
    "both": ({"flat_field": 99, "clahe": 0.02}, lambda image: clahe(flat_field(image, 99), 512, 0.02)),
}


@pytest.mark.parametrize("stage", CORRECTIONS)
def test_correction_of_whole_slices(volume: Volume, stage: str) -> None:
    (correct, slow), name = CORRECTIONS[stage], stage.replace(" ", "-")
    run(run_config(volume, name, correct=correct))
    corrected = [ndimage.median_filter(255 - slow(image), 3, mode="reflect") for image in image_of(volume)]
    assert_same_mask(mask_of(volume, name), np.stack([by_tiles(values) for values in corrected]))


def test_every_stage_at_once_is_the_same_for_every_engine(volume: Volume) -> None:
    recipe = {
        "valid": {"label": "inside"},
        "correct": {"flat_field": 300, "match": 0, "gamma": 0.9},
        "denoise": {"method": "gaussian"},
        "threshold": {"scope": "smooth", "min_contrast": 20, "on_no_signal": "empty"},
        "clean": {"opening": 1, "small_holes": 20},
    }
    for engine in (ThreadsCluster(threads=2), LocalCluster(workers=2)):
        run(run_config(volume, f"all-{engine.engine}", cluster=engine, **recipe))
    found = mask_of(volume, "all-threads")
    assert found.any()
    np.testing.assert_array_equal(found, mask_of(volume, "all-local"))


def test_segmenter_sees_the_slices_around(volume: Volume) -> None:
    run(run_config(volume, "deep", segmenter={"target": "lab_functions:deep", "halo": [1, 1, 1]}))
    expected = ndimage.minimum_filter(medians(volume), 3, mode="reflect") > 90
    assert_same_mask(mask_of(volume, "deep"), expected)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("wrong_shape", r"lab_functions:wrong_shape returned uint8 \(.*\), expected bool or integers of its block's"),
        ("wrong_type", "lab_functions:wrong_type returned float64"),
        ("raises", "lab_functions:raises raised KeyError: 'no such vessel'"),
        ("leaves", "lab_functions:leaves raised SystemExit: 5"),
    ],
)
def test_segmenter_that_fails_is_named_and_the_run_goes_on(volume: Volume, function: str, reason: str) -> None:
    summary = run(run_config(volume, function, segmenter={"target": f"lab_functions:{function}"}))
    assert summary.tiles.failed == summary.tiles.total
    for _, text in summary.failures:
        assert re.match(reason, text)
    for document in (volume.path / "runs" / function / "failures").glob("*/zarr.json"):
        assert ("in raises" in document.read_text()) == (function == "raises")  # the traceback


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ({"segmenter": {"target": "nolab:f"}}, "segmenter.target: 'nolab:f' cannot be imported"),
        ({"segmenter": {"target": "lab_functions:nothing"}}, "segmenter.target: .* has no function 'nothing'"),
        ({"denoise": {"method": "python", "target": "nolab:f"}}, "denoise.target: 'nolab:f' cannot be imported"),
        ({"valid": {"label": "outside"}}, "valid.label: .* has no label 'outside'; it has: "),
        ({"valid": {"padding": 256}}, "valid.padding: got 256, uint8 images have levels 0 to 255"),
        ({"correct": {"match": 2}}, "correct.match: got 2, the volume has slices 0 to 1"),
        ({"threshold": {"method": "fixed", "level": 256}}, "threshold.level: got 256, uint8 images"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_stage_that_cannot_be_is_refused_before_anything_starts(
    volume: Volume, recipe: dict[str, object], text: str
) -> None:
    with pytest.raises((ConfigError, MissingInputError), match=f"^{text}"):
        make_plan(run_config(volume, "none", **recipe))


def test_slice_that_others_are_matched_to_must_exist(tmp_path: Path) -> None:
    built = build_volume(tmp_path / "brain.zarr", (3, 40, 40), absent=(1,))
    with pytest.raises(ConfigError, match=r"^correct\.match: got 1, a slice that does not exist"):
        make_plan(run_config(built, correct={"match": 1}))
    assert run(run_config(built, correct={"match": 0})).tiles.done == 2


def test_whole_slices_that_do_not_fit_are_refused_with_the_reason(volume: Volume) -> None:
    small = 400 * 10**6 + 10**7
    with pytest.raises(MemoryLimitError, match="whole slices, which the recipe looks at"):
        make_plan(run_config(volume, "tight", clean={"small_objects": 9}, memory=small))


def test_objects_that_are_looked_at_are_planned_for(volume: Volume) -> None:
    few, all_of_it = (
        task_bytes(volume, run_config(volume, clean={"small_objects": size}).recipe, (1, *SHAPE[1:]))
        for size in (2, 10**9)
    )
    assert all_of_it - few == 8 * (SHAPE[1] * SHAPE[2] - 2)


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("then", ["slice", "empty", "keep"])
def test_tiles_without_signal_get_what_was_asked_for(volume: Volume, then: str, block: tuple[int, int, int]) -> None:
    name = f"silent-{then}-{block[1]}"
    threshold = {"min_contrast": 85, "on_no_signal": then}
    plan = with_blocks(make_plan(run_config(volume, name, threshold=threshold)), block)
    summary = run_plan(plan, ThreadsCluster(threads=2), ignore)
    tables, values = RunTables(volume, name), medians(volume)
    silent = np.zeros((SHAPE[0], 5, 6), np.bool_)
    expected = np.zeros(SHAPE, np.bool_)
    for z, row, column in np.ndindex(silent.shape):
        cut = np.s_[z, row * 512 : row * 512 + 512, column * 512 : column * 512 + 512]
        level = filters.threshold_otsu(values[cut])
        above = values[cut] > level
        silent[z, row, column] = values[cut][above].mean() - values[cut][~above].mean() < 85
        if silent[z, row, column]:
            level = {"slice": filters.threshold_otsu(values[z]), "empty": 255, "keep": level}[then]
        expected[cut] = values[cut] > level
    assert 0 < silent.sum() < silent.size
    np.testing.assert_array_equal(tables.signal.read() == Signal.NONE, silent)
    np.testing.assert_array_equal(mask_of(volume, name), expected)
    assert (summary.tiles.no_signal, summary.tiles.undecided) == (silent.sum(), 0)


def test_smooth_levels_leave_no_seams(volume: Volume) -> None:
    seams = {}
    for scope in ("tile", "smooth"):
        for block in BLOCKS.values():
            config = run_config(volume, f"{scope}-{block[1]}", threshold={"scope": scope})
            seams[scope, block] = run_plan(
                with_blocks(make_plan(config), block), ThreadsCluster(threads=2), ignore
            ).seam
        assert seams[scope, BLOCKS["shards"]] == seams[scope, BLOCKS["whole slices"]]
    np.testing.assert_array_equal(mask_of(volume, "smooth-2100"), mask_of(volume, "smooth-2048"))
    assert seams["tile", BLOCKS["shards"]].border == seams["smooth", BLOCKS["shards"]].border > 0


def test_padding_enters_neither_levels_nor_scores(tmp_path: Path) -> None:
    built = build_volume(tmp_path / "brain.zarr", (1, 600, 1100))
    built.staging.mkdir()
    image = built.image.full.read(Box.whole(built.shape))[0]
    image[:, 700:] = 0  # black, as vessels are
    built.slices.record(0, built.image.write_slice(0, image, built.staging), "0.png", 0)
    built.staging.rmdir()
    plain, padded = (
        run(run_config(built, name, valid=valid)) for name, valid in (("all", None), ("in", {"padding": 0}))
    )
    valid = image != 0
    values = ndimage.median_filter(255 - image, 3, mode="reflect")
    np.testing.assert_array_equal(mask_of(built, "in")[0], by_tiles(values, valid))
    assert padded.annotated < plain.annotated
    assert mask_of(built, "all")[0][:, 700:].any()
    assert not verify(built, ThreadRunner(2)).findings


def test_a_valid_area_that_changes_is_made_again(tmp_path: Path) -> None:
    built = build_volume(tmp_path / "brain.zarr", (2, 600, 700))
    recipe = {"valid": {"label": "groundtruth"}}
    run(run_config(built, **recipe))
    built.staging.mkdir()
    label, ledger = built.truth("groundtruth")
    area = np.full((600, 700), 255, np.uint8)
    ledger.record(0, label.write_slice(0, area, built.staging), "0.png", 0)
    built.staging.rmdir()
    summary = run(run_config(built, **recipe))
    assert (summary.tiles.reused, summary.tiles.done) == (4, 8)


def test_smooth_levels_with_a_signal_rule_clear_the_empty_tiles_of_the_phantom(tmp_path: Path) -> None:
    phantom = Phantom((1, 2560, 3072), seed=3)
    built = Volume.create(tmp_path / "phantom.zarr", phantom.shape, "uint8")
    built.staging.mkdir()
    label, ledger = built.create_truth("groundtruth", MAPPING)
    image, traced = phantom.slice(0)
    built.slices.record(0, built.image.write_slice(0, image, built.staging), "0.png", 0)
    ledger.record(0, label.write_slice(0, traced, built.staging), "0.png", 0)
    built.publish_label("groundtruth")
    built.staging.rmdir()
    smooth = {"scope": "smooth", "min_contrast": 30}
    plain, better = (run(run_config(built, name, threshold=rule)) for name, rule in (("tile", {}), ("smooth", smooth)))
    before, after = (RunTables(built, name).truth("groundtruth").counts.read() for name in ("tile", "smooth"))
    empty = before[..., 0] + before[..., 2] == 0
    assert empty.sum() >= 2
    assert before[empty][:, 1].sum() > 10_000
    assert after[empty][:, 1].sum() <= 0.05 * before[empty][:, 1].sum()
    assert plain.scores is not None
    assert better.scores is not None
    assert (better.scores.mcc or 0) > (plain.scores.mcc or 0) + 0.05


def test_example_of_all_stages_runs(volume: Volume) -> None:
    text = (Path(__file__).parents[1] / "configs" / "stages.yaml").read_text()
    config = volume.path.parent / "stages.yaml"
    config.write_text(text)
    loaded = load_config(config)
    assert run(loaded).tiles.failed == 0
    assert loaded.recipe.document() == Recipe.model_validate(RunTables(volume, "stages").recipe).document()
