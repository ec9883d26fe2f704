"""Any two labels compared: the counts are those of the arrays, and those of the run that made the mask."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from pipeline.checks.validate import Measures, _Planes, validate_threads
from pipeline.geometry import Box
from pipeline.images.pixels import write_png
from pipeline.kernels.outline import BoundaryF1, ClDice, Matches, boundary_f1, cl_dice
from pipeline.segmentation.runs import run
from pipeline.storage.store import create_document
from pipeline.storage.volume import Volume
from tests.builders import MAPPING, build_volume, run_config
from tests.command import kesm
from tests.contract import check_document

SHAPE = (4, 2100, 2200)  # two by two shards, five by five tiles; slices 0 and 2 are annotated
TILES = 4 * 5 * 5
NARROW = (3, 2100, 260)  # two shards, five tiles; slices 0 and 2 are annotated
EQUAL = ("region", "annotated", "counts", "scores", "macro", "failures")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    volume = build_volume(tmp_path_factory.mktemp("built") / "brain.zarr", SHAPE)
    run(run_config(volume))
    return volume


@pytest.fixture
def volume(built: Volume, tmp_path: Path) -> Volume:
    return Volume(shutil.copytree(built.path, tmp_path / "brain.zarr"))


@pytest.fixture(scope="module")
def built_narrow(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return build_volume(tmp_path_factory.mktemp("narrow") / "brain.zarr", NARROW)


@pytest.fixture
def narrow(built_narrow: Volume, tmp_path: Path) -> Volume:
    return Volume(shutil.copytree(built_narrow.path, tmp_path / "narrow.zarr"))


def voxels(volume: Volume, name: str) -> NDArray[Any]:
    """A whole label, by zarr alone."""
    return np.asarray(zarr.open_array(volume.path / "labels" / name / "0", mode="r")[:])


def add_foreign(volume: Volume, values: NDArray[Any], name: str = "napari", level: str = "0", **options: Any) -> None:
    """Add a label as another program does."""
    path = volume.path / "labels" / name
    create_document(path, {"ome": {"multiscales": [{"datasets": [{"path": level}]}], "image-label": {}}})
    array = zarr.create_array(path / level, shape=values.shape, dtype=values.dtype, zarr_format=3, **options)
    array[:] = values
    volume.publish_label(name)


@pytest.mark.parametrize("by", ["label", "padding"])
def test_run_with_a_valid_area_is_compared_as_it_was_scored(narrow: Volume, by: str) -> None:
    area = np.random.default_rng(3).choice(np.array([0, 255], np.uint8), narrow.shape)
    narrow.staging.mkdir()
    label, ledger = narrow.create_truth("inside", MAPPING)
    for z, plane in enumerate(area):
        ledger.record(z, label.write_slice(z, plane, narrow.staging), f"{z}.png", 0)
    narrow.publish_label("inside")
    narrow.staging.rmdir()
    valid = (
        {"label": "inside"} if by == "label" else {"padding": int(narrow.image.full.read(Box.whole((1, 9, 9))).max())}
    )
    summary = run(run_config(narrow, "partly", valid=valid))
    assert kesm("clean", narrow.path, "--name", "partly", "--out", "same", "--min-size", "1").code == 0
    for mask in ("partly", "same"):
        document = answered(narrow, "--mask", mask, "--truth", "groundtruth")
        assert summary.counts is not None
        assert document["counts"] == asdict(summary.counts)
    everything = kesm("validate", narrow.path, "--mask", "groundtruth", "--truth", "groundtruth", "--json").document
    assert everything["annotated"] > document["annotated"] > 0


def answered(volume: Volume, *words: object, code: int = 0) -> dict[str, Any]:
    answer = kesm("validate", volume.path, *words, "--json")
    assert answer.code == code, answer
    document = check_document("validate", answer.document)
    tiles = document["tiles"]
    assert tiles["done"] + tiles["failed"] + tiles["absent"] == tiles["total"]
    assert document["annotated"] == sum(document["counts"].values()) <= document["voxels"]
    return document


def expected(mask: NDArray[Any], truth: NDArray[Any]) -> dict[str, int]:
    known, vessel, marked = truth != 127, truth != 0, mask != 0
    cells = {"tp": vessel & marked, "fp": ~vessel & marked, "fn": vessel & ~marked, "tn": ~vessel & ~marked}
    return {name: int(np.count_nonzero(known & cell)) for name, cell in cells.items()}


# what is compared


@pytest.mark.parametrize("region", [None, "z=0:1", "z=1:3,y=0:600,x=2048:2200"], ids=str)
def test_equals_the_run_that_made_the_mask(volume: Volume, region: str | None) -> None:
    words = [] if region is None else ["--region", region]
    of_run = kesm("run", volume.path, "--truth", "groundtruth", "--name", "otsu", *words, "--json").document
    found = answered(volume, "--mask", "otsu", "--truth", "groundtruth", "--threads", 2, *words)
    assert {key: found[key] for key in EQUAL} == {key: of_run[key] for key in EQUAL}
    assert found["annotated"] > 0
    assert (found["mask"], found["truth"]) == ("otsu", "groundtruth")


def test_equals_the_arrays(built: Volume) -> None:
    mask, truth = voxels(built, "otsu"), voxels(built, "groundtruth")
    found, known = answered(built, "--mask", "otsu", "--truth", "groundtruth"), truth != 127
    assert found["counts"] == expected(mask, truth)
    assert found["tiles"] == {"total": TILES, "done": 50, "failed": 0, "absent": 50}  # slices 1 and 3 have no truth
    assert (found["voxels"], found["annotated"]) == (truth.size // 2, int(known.sum()))
    right, judged = truth[known] == 255, mask[known] == 255
    for name, oracle in {"accuracy": accuracy_score, "f1": f1_score, "mcc": matthews_corrcoef}.items():
        assert found["scores"][name] == pytest.approx(oracle(right, judged), abs=1e-12)


def test_tiles_that_a_run_has_not_done_are_not_annotated(volume: Volume) -> None:
    part = run(run_config(volume, "part", region="z=0:1,y=0:512,x=512:1024", tile=256))
    found = answered(volume, "--mask", "part", "--truth", "groundtruth")
    assert part.tiles.done == 4
    mask, truth = voxels(volume, "part"), np.full(SHAPE, 127, np.uint8)
    done = slice(0, 1), slice(0, 2100), slice(0, 2200)  # whole blocks are worked on
    truth[done] = voxels(volume, "groundtruth")[done]
    assert found["counts"] == expected(mask, truth)
    assert found["tiles"] == {"total": TILES, "done": 25, "failed": 0, "absent": 75}
    assert found["voxels"] == 2100 * 2200


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("uint8", {"chunks": (2, 700, 300)}),
        ("int32", {"chunks": (4, 2100, 2200)}),
        ("uint16", {"chunks": (1, 100, 100), "shards": (2, 500, 1000), "level": "full/s0"}),
        ("bool", {"chunks": (1, 1024, 1024), "compressors": None}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_labels_of_other_programs(volume: Volume, dtype: str, options: dict[str, Any]) -> None:
    mask, truth = voxels(volume, "otsu"), voxels(volume, "groundtruth")
    values = np.random.default_rng(1).choice(np.array([0, 1, 127, 255, 256]), SHAPE).astype(dtype)
    add_foreign(volume, values, **options)
    assert answered(volume, "--mask", "napari", "--truth", "groundtruth")["counts"] == expected(values, truth)
    assert answered(volume, "--mask", "otsu", "--truth", "napari")["counts"] == expected(mask, values)


def test_truths_as_masks_and_masks_as_truths(volume: Volume) -> None:
    label, ledger = volume.create_truth("second", MAPPING)
    volume.staging.mkdir()
    traced = np.random.default_rng(2).choice(np.array([0, 127, 255], np.uint8), SHAPE[1:])
    ledger.record(2, label.write_slice(2, traced, volume.staging), "2.png", 0)
    volume.publish_label("second")
    first, second = voxels(volume, "groundtruth"), voxels(volume, "second")
    found = answered(volume, "--mask", "second", "--truth", "groundtruth")
    assert found["counts"] == expected(second, np.where(second == 127, 127, first))
    assert found["macro"]["tiles"] == 25
    found = answered(volume, "--mask", "groundtruth", "--truth", "otsu")
    assert found["annotated"] == int((first != 127).sum())
    assert answered(volume, "--mask", "otsu", "--truth", "otsu")["scores"]["mcc"] == 1


def test_what_nobody_annotated_has_no_scores(built: Volume) -> None:
    found = answered(built, "--mask", "otsu", "--truth", "groundtruth", "--region", "z=1:2")
    assert (found["annotated"], found["macro"], set(found["scores"].values())) == (0, None, {None})
    assert found["tiles"] == {"total": 25, "done": 0, "failed": 0, "absent": 25}
    assert found["voxels"] == 0


def test_a_mask_whose_run_was_removed(volume: Volume) -> None:
    before = answered(volume, "--mask", "otsu", "--truth", "groundtruth")
    shutil.rmtree(volume.path / "tiles")
    shutil.rmtree(volume.path / "runs")
    assert answered(volume, "--mask", "otsu", "--truth", "groundtruth")["counts"] == before["counts"]


def write_masks(folder: Path, masks: NDArray[Any]) -> list[Path]:
    folder.mkdir()
    files = [folder / f"mask_{z}.png" for z in range(8, 8 + len(masks))]  # 8, 9, 10: natural order
    for file, mask in zip(files, masks, strict=True):
        write_png(file, mask)
    return files


@pytest.mark.parametrize("start", [None, 1])
@pytest.mark.parametrize("given", ["folder", "pattern", "files"])
def test_files(built: Volume, tmp_path: Path, given: str, start: int | None) -> None:
    masks = np.random.default_rng(3).choice(np.array([0, 1, 127, 65535], np.uint16), (3, *SHAPE[1:]))
    files = write_masks(tmp_path / "masks", masks)
    words = {"folder": [tmp_path / "masks"], "pattern": [tmp_path / "masks" / "*.png"], "files": files[::-1]}[given]
    option = [] if start is None else ["--start-z", start]
    found = answered(built, "--mask-files", *words, "--truth", "groundtruth", *option)
    place = slice(start or 0, (start or 0) + 3)
    assert found["counts"] == expected(masks, voxels(built, "groundtruth")[place])
    assert found["mask"] == "mask_8.png to mask_10.png"
    annotated = len({0, 2} & set(range(SHAPE[0])[place]))  # other slices have no file, or no truth
    assert (found["tiles"]["done"], found["tiles"]["absent"]) == (25 * annotated, TILES - 25 * annotated)


def test_for_a_person(built: Volume) -> None:
    answer = kesm("validate", built.path, "--mask", "otsu", "--truth", "groundtruth")
    counts = answered(built, "--mask", "otsu", "--truth", "groundtruth")["counts"]
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[0] == "otsu against groundtruth: volume, mean of 50 tiles"
    assert ["true", "positive", f"{counts['tp']:,}"] in [line.split() for line in lines]


def test_nothing_is_written(volume: Volume) -> None:
    add_foreign(volume, np.zeros(SHAPE, np.uint8), chunks=(1, 1000, 1000))
    before = {path: path.stat().st_mtime_ns for path in volume.path.parent.rglob("*")}
    answered(volume, "--mask", "otsu", "--truth", "groundtruth")
    answered(volume, "--mask", "napari", "--truth", "groundtruth")
    assert {path: path.stat().st_mtime_ns for path in volume.path.parent.rglob("*")} == before


# what a score is where it is 0 / 0


@pytest.mark.parametrize(("undefined", "score"), [("article", 1), ("zero", 0), ("nan", None)])
def test_undefined_scores_follow_the_rule(narrow: Volume, undefined: str, score: float | None) -> None:
    truth = np.zeros(NARROW, np.uint8)
    truth[0, 0, 0] = 255
    add_foreign(narrow, truth)
    words = ["--mask", "napari", "--truth", "napari", "--undefined", undefined]
    found = answered(narrow, *words, "--region", "z=1:2")
    assert (found["undefined"], found["scores"]["accuracy"]) == (undefined, 1)
    assert [found["scores"][name] for name in ("f1", "mcc", "recall")] == [score] * 3
    assert [found["macro"][name] for name in ("f1", "mcc", "recall")] == [score] * 3
    found = answered(narrow, *words, "--region", "z=0:1")
    assert (found["scores"]["f1"], found["macro"]["undefined"]["f1"]) == (1, 4)  # of five tiles
    assert found["macro"]["f1"] == {"article": 1, "zero": 1 / 5, "nan": 1}[undefined]


@pytest.mark.parametrize(("undefined", "score"), [("article", 1), ("zero", 0), ("nan", None)])
def test_undefined_shapes_follow_the_rule(narrow: Volume, undefined: str, score: float | None) -> None:
    add_foreign(narrow, np.zeros(NARROW, np.uint8))
    words = ["--mask", "napari", "--truth", "napari", "--boundary", 1, "--cl-dice", "--undefined", undefined]
    found = answered(narrow, *words)
    assert found["boundary"]["f1"] == found["cl_dice"]["cl_dice"] == score
    assert found["slices"][0]["boundary"]["recall"] == found["slices"][0]["cl_dice"]["sensitivity"] == score


# scores of shape


def blobs(seed: int) -> NDArray[np.uint8]:
    """Vessels of a few voxels' width, everywhere."""
    smooth = ndimage.uniform_filter(np.random.default_rng(seed).random(NARROW, np.float32), (0, 9, 9))
    return np.where(smooth > 0.53, np.uint8(255), np.uint8(0))


def shape_scores(mask: NDArray[Any], truth: NDArray[Any], tolerance: int) -> dict[str, Any]:
    """What is expected of one slice, given whole."""
    return {"boundary": asdict(boundary_f1(mask, truth, tolerance)), "cl_dice": asdict(cl_dice(mask, truth))}


def test_shapes_are_those_of_whole_slices(narrow: Volume) -> None:
    mask, truth = blobs(6), blobs(6)
    mask[:, ::7], mask[:, 3::50] = 0, 255
    truth[1, 500:700, 100:200] = 127
    truth[2] = 127
    add_foreign(narrow, mask, "drawn", chunks=(1, 1000, 70))
    add_foreign(narrow, truth, "traced", chunks=(2, 2100, 260))
    words = ["--mask", "drawn", "--truth", "traced", "--threads", 2]
    found = answered(narrow, *words, "--boundary", 2, "--cl-dice")
    assert [each.pop("z") for each in found["slices"]] == [0, 1]  # nothing is annotated in slice 2
    assert found["slices"] == [shape_scores(mask[z], truth[z], 2) for z in range(2)]
    assert found["boundary"].pop("tolerance") == 2
    for name, of in (("boundary", BoundaryF1.of), ("cl_dice", ClDice.of)):
        total = Matches(*np.sum([list(each[name]["counts"].values()) for each in found["slices"]], axis=0).tolist())
        assert found[name] == asdict(of(total))
        assert (total.annotated, total.wrong) == (found["annotated"], found["counts"]["fp"] + found["counts"]["fn"])
        assert all(0.5 < score < 1 for score in list(found[name].values())[:3])


def test_only_what_was_asked_for_is_measured(narrow: Volume) -> None:
    add_foreign(narrow, blobs(5), "drawn")
    words = ["--mask", "drawn", "--truth", "groundtruth"]
    both = answered(narrow, *words, "--boundary", 2, "--cl-dice")
    plain = answered(narrow, *words)
    assert (plain["boundary"], plain["cl_dice"], plain["slices"]) == (None, None, [])
    others = plain.keys() - {"boundary", "cl_dice", "slices", "elapsed_s"}
    assert {key: plain[key] for key in others} == {key: both[key] for key in others}
    outlines = answered(narrow, *words, "--boundary", 2)
    assert (outlines["cl_dice"], outlines["slices"][0]["cl_dice"]) == (None, None)
    assert outlines["boundary"] == both["boundary"]
    lines = answered(narrow, *words, "--cl-dice")
    assert (lines["boundary"], lines["slices"][0]["boundary"], lines["cl_dice"]) == (None, None, both["cl_dice"])


def test_shapes_of_a_region_are_those_of_its_tiles(narrow: Volume) -> None:
    mask, truth = blobs(7), voxels(narrow, "groundtruth")
    add_foreign(narrow, mask, "drawn")
    words = ["--mask", "drawn", "--truth", "groundtruth", "--boundary", 1, "--cl-dice"]
    found = answered(narrow, *words, "--region", "z=1:3,y=1600:2060,x=0:9")
    assert [each.pop("z") for each in found["slices"]] == [2]
    assert found["slices"] == [shape_scores(mask[2, 1536:], truth[2, 1536:], 1)]


def test_shapes_of_what_either_does_not_know(narrow: Volume) -> None:
    truth, unknown = blobs(8), voxels(narrow, "groundtruth") == 127
    add_foreign(narrow, truth, "drawn")
    mask = voxels(narrow, "groundtruth")
    narrow.label("groundtruth").full.shard_file((2, 1, 0)).unlink()
    unknown[2, 2048:] = True
    words = ["--mask", "groundtruth", "--truth", "drawn", "--boundary", 3, "--cl-dice"]
    found = answered(narrow, *words, code=3)
    assert [each.pop("z") for each in found["slices"]] == [0, 2]
    assert found["slices"] == [shape_scores(mask[z], np.where(unknown[z], np.uint8(127), truth[z]), 3) for z in (0, 2)]


def test_nothing_is_left_of_the_slice_before() -> None:
    ones, box, half = np.full((4, 6), 255, np.uint8), Box((0, 2, 3), (1, 6, 9)), Box((0, 2, 3), (1, 6, 6))
    for part, annotated in ((box, 24), (half, 12)):  # in the same memory
        planes = _Planes(box)
        planes.put(part, ones[:, : part.shape[2]], ones[:, : part.shape[2]])
        boundary = planes.shape(Measures(boundary=0)).boundary
        assert boundary is not None
        assert boundary.counts == Matches(annotated=annotated)


def test_shapes_where_nobody_annotated(narrow: Volume) -> None:
    words = ["--mask", "groundtruth", "--truth", "groundtruth", "--region", "z=1:2", "--boundary", 0, "--cl-dice"]
    found = answered(narrow, *words)
    assert (found["boundary"]["f1"], found["cl_dice"]["cl_dice"], found["slices"]) == (None, None, [])


def test_shapes_for_a_person(narrow: Volume) -> None:
    add_foreign(narrow, blobs(9), "drawn")
    words = ["--mask", "drawn", "--truth", "groundtruth", "--boundary", 1, "--cl-dice"]
    found, answer = answered(narrow, *words), kesm("validate", narrow.path, *words)
    lines = [" ".join(line.split()) for line in answer.out.splitlines()]
    outline, line = found["boundary"], found["cl_dice"]
    shown = {
        "boundary precision": outline["precision"], "boundary recall": outline["recall"], "boundary F1": outline["f1"],
        "clDice precision": line["precision"], "clDice sensitivity": line["sensitivity"], "clDice": line["cl_dice"],
    }  # fmt: skip
    assert {f"{title} {score:.4f}" for title, score in shown.items()} | {"boundary tolerance 1 voxel"} <= {*lines}
    assert lines[-2:] == [
        f"slice {each['z']}: boundary F1 {each['boundary']['f1']:.4f}, clDice {each['cl_dice']['cl_dice']:.4f}"
        for each in found["slices"]
    ]
    plain = kesm("validate", narrow.path, *words[:4]).out
    assert not any(word in plain for word in ("boundary", "clDice", "slice "))


def test_centre_lines_need_scikit_image(narrow: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.morphology", None)
    answer = kesm("validate", narrow.path, "--mask", "groundtruth", "--truth", "groundtruth", "--cl-dice")
    assert "pip install scikit-image" in answer.message


@pytest.mark.parametrize(
    ("measures", "free", "threads"),
    [
        (Measures(), 1, 8),
        (Measures(boundary=2), 10 * 2 * 2100 * 260, 8),
        (Measures(boundary=2), 5 * 2 * 2100 * 260, 4),
        (Measures(boundary=2, cl_dice=True), 5 * 6 * 2100 * 260, 4),
        (Measures(cl_dice=True), 1000, 1),
    ],
    ids=["voxels alone", "enough", "outlines", "both", "too little"],
)
def test_as_many_slices_at_once_as_fit(
    narrow: Volume, monkeypatch: pytest.MonkeyPatch, measures: Measures, free: int, threads: int
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    assert validate_threads(narrow, measures, 8) == threads


# what is wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mask", "otsu", "--truth", "none"], "has no label 'none'; it has: groundtruth, otsu"),
        (["--mask", "none", "--truth", "groundtruth"], "has no label 'none'; it has: groundtruth, otsu"),
        (["--mask", "otsu"], "Missing option '--truth'"),
        (["--truth", "groundtruth"], "--mask, --mask-files: got neither"),
        (["--truth", "groundtruth", "--mask", "otsu", "--mask-files", "x.png"], "--mask, --mask-files: got both"),
        (["--truth", "groundtruth", "--mask", "otsu", "x.png"], "x.png: only with --mask-files"),
        (["--truth", "groundtruth", "--mask", "otsu", "--start-z", "1"], "--start-z: only with --mask-files"),
        (["--truth", "groundtruth", "--mask-files", "no.png"], "no.png: no such file or folder"),
        (["--truth", "groundtruth", "--mask", "otsu", "--region", "z=2:9"], "got z=2:9, the volume has z=0:4"),
        (["--truth", "groundtruth", "--mask", "otsu", "--region", "top"], "region"),
        (
            ["--truth", "groundtruth", "--mask", "otsu", "--undefined", "one"],
            "--undefined: got 'one', expected one of ar",
        ),
        (["--truth", "groundtruth", "--mask", "otsu", "--boundary", "101"], "--boundary"),
        (["--truth", "groundtruth", "--mask", "otsu", "--boundary", "-1"], "--boundary"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input(built: Volume, words: list[str], message: str) -> None:
    assert message in kesm("validate", built.path, *words).message


def test_a_label_of_another_shape(volume: Volume) -> None:
    add_foreign(volume, np.zeros((4, 2100, 2100), np.uint8), chunks=(1, 1000, 1000))
    message = kesm("validate", volume.path, "--mask", "napari", "--truth", "groundtruth").message
    assert "napari: got shape (4, 2100, 2100), the image has (4, 2100, 2200)" in message


def test_files_that_do_not_fit(built: Volume, tmp_path: Path) -> None:
    write_masks(tmp_path / "small", np.zeros((1, 20, 30), np.uint8))
    write_masks(tmp_path / "many", np.zeros((3, *SHAPE[1:]), np.uint8))
    words = ["validate", built.path, "--truth", "groundtruth", "--mask-files"]
    assert "mask_8.png: got shape (20, 30), the image has (2100, 2200)" in kesm(*words, tmp_path / "small").message
    message = kesm(*words, tmp_path / "many", "--start-z", 2).message
    assert "got 3 slices from --start-z 2 on, the volume has 4" in message


# what is damaged


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("harm", [damage, Path.unlink], ids=["truncated", "missing"])
@pytest.mark.parametrize("name", ["otsu", "groundtruth"])
def test_damaged_shards_fail_and_count_nowhere(volume: Volume, name: str, harm: Any) -> None:
    mask, truth = voxels(volume, "otsu"), voxels(volume, "groundtruth")
    harm(volume.label(name).full.shard_file((2, 0, 1)))
    found = answered(volume, "--mask", "otsu", "--truth", "groundtruth", code=3)
    truth[2, :2048, 2048:] = 127
    assert found["counts"] == expected(mask, truth)
    assert found["tiles"] == {"total": TILES, "done": 50 - 4, "failed": 4, "absent": 50}
    assert found["voxels"] == truth.size // 2 - 2048 * 152
    (failure,) = found["failures"]
    assert failure["region"] == "z=2:3,y=0:2048,x=2048:2200"
    assert "c/2/0/1" in failure["reason"]
    answer = kesm("validate", volume.path, "--mask", "otsu", "--truth", "groundtruth")
    assert answer.code == 3
    assert f"failed: {failure['region']}: {failure['reason']}\n" in answer.out


@pytest.mark.parametrize("table", ["tiles/otsu/status", "tiles/otsu/shard_digest", "slices/labels/groundtruth/digest"])
@pytest.mark.parametrize("harm", [damage, Path.unlink], ids=["truncated", "missing"])
def test_damaged_tables_fail(volume: Volume, table: str, harm: Any) -> None:
    harm(volume.path / table / ("c/2" if "slices" in table else "c/2/0/0"))
    found = answered(volume, "--mask", "otsu", "--truth", "groundtruth", code=3)
    assert found["tiles"] == {"total": TILES, "done": 25, "failed": 25, "absent": 50}
    assert all(table in failure["reason"] or "digest" in failure["reason"] for failure in found["failures"])


def test_damaged_chunk_of_another_program(volume: Volume) -> None:
    values = np.random.default_rng(4).integers(0, 2, SHAPE, np.uint8)
    add_foreign(volume, values, chunks=(1, 1024, 1024))
    damage(volume.path / "labels/napari/0/c/2/0/0")
    truth = voxels(volume, "groundtruth")
    found = answered(volume, "--mask", "napari", "--truth", "groundtruth", code=3)
    truth[2, :2048, :2048] = 127
    assert found["counts"] == expected(values, truth)
    assert "labels/napari/0: cannot be decoded" in found["failures"][0]["reason"]


def test_damaged_file(built: Volume, tmp_path: Path) -> None:
    masks = np.random.default_rng(5).choice(np.array([0, 255], np.uint8), SHAPE)
    files = write_masks(tmp_path / "masks", masks)
    damage(files[2])
    truth = voxels(built, "groundtruth")
    found = answered(built, "--mask-files", tmp_path / "masks", "--truth", "groundtruth", code=3)
    assert found["counts"] == expected(masks[:2], truth[:2])
    assert found["failures"][0]["region"] == "z=2:3,y=0:2100,x=0:2200"
