"""What the tables say equals what the run said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jsonschema import ValidationError

from pipeline.errors import MissingInputError
from pipeline.findings.summary import Summary, Tiles, describe, summarise
from pipeline.geometry import Box
from pipeline.kernels.confusion import SCORES, Counts, Scores
from pipeline.segmentation.runs import run
from pipeline.settings.config import RunConfig
from pipeline.settings.recipe import Recipe
from pipeline.storage.tables import RunTables, Status
from pipeline.storage.volume import Volume
from tests.builders import build_volume, run_config
from tests.contract import check_document

SHAPE = (3, 600, 1100)  # 2 x 3 tiles a slice, those at the far edges cut
MAPPING = {"vessel": 255, "vessel_above": None, "unlabelled": 127}


def build(path: Path, absent: tuple[int, ...] = ()) -> Volume:
    """Volume whose slice 1 is half annotated, and whose slice 2 is not annotated."""
    rng = np.random.default_rng(11)
    volume = Volume.create(path, SHAPE, "uint8", (1.0, 0.7, 0.6))
    volume.staging.mkdir()
    truth, ledger = volume.create_truth("traced", MAPPING)
    for z in set(range(SHAPE[0])) - {*absent}:
        image = rng.integers(0, 256, SHAPE[1:], np.uint8)
        volume.slices.record(z, volume.image.write_slice(z, image, volume.staging), f"{z}.png", 0)
        if z < 2:
            traced = np.where(rng.random(SHAPE[1:]) < 0.3, np.uint8(255), np.uint8(0))
            traced[:, SHAPE[2] // (z + 1) :] = 127
            ledger.record(z, truth.write_slice(z, traced, volume.staging), f"{z}.png", 0)
    volume.publish_label("traced")
    volume.staging.rmdir()
    return volume


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Volume with run `otsu` against its truth, and run `bare` against none."""
    volume = build(tmp_path_factory.mktemp("report") / "brain.zarr")
    run(RunConfig(volume=volume.path, truth="traced"))
    run(RunConfig(volume=volume.path, name="bare"))
    return volume


def as_stored(summary: Summary) -> Summary:
    """What of a summary stays: not how it came about."""
    return replace(summary, elapsed_s=None, tiles=replace(summary.tiles, reused=0))


@pytest.mark.parametrize(
    ("region", "tiles"),
    [
        pytest.param(None, 18, id="whole"),
        pytest.param("z=1:2", 6, id="slice"),
        pytest.param("z=2:3", 6, id="not annotated"),
        pytest.param("z=0:2,y=0:100,x=600:700", 2, id="one tile of two slices"),
    ],
)
@pytest.mark.parametrize(("name", "truth"), [("otsu", "traced"), ("bare", None)])
def test_tables_say_what_the_run_said(volume, region, tiles, name, truth):
    config = {"volume": volume.path, "name": name, "truth": truth, "region": region}
    summary = run(RunConfig.model_validate(config))
    assert as_stored(summary) == summarise(volume, name, truth, summary.region)
    assert summary.tiles == Tiles(total=tiles, done=tiles, reused=tiles, failed=0, pending=0, absent=0)
    check_document("run", summary.document())


def test_counts_are_those_of_the_voxels(volume):
    truth = volume.truth("traced")[0].full.read(Box.whole(SHAPE))
    mask = volume.label("otsu").full.read(Box.whole(SHAPE)) > 0
    vessel, background = truth == 255, truth == 0
    counts = Counts(
        *(int(part.sum()) for part in (vessel & mask, background & mask, vessel & ~mask, background & ~mask))
    )
    summary = summarise(volume, "otsu", "traced")
    assert (summary.counts, summary.annotated, summary.voxels) == (counts, counts.total, truth.size)
    assert summary.macro is not None
    assert summary.macro.tiles == 6 + 4  # of slice 1 the first two of three tile columns hold annotated voxels


def test_undefined_scores_follow_the_rule(volume, tmp_path):
    shutil.copytree(volume.path, tmp_path / "brain.zarr")
    copied = Volume(tmp_path / "brain.zarr")
    counts = np.zeros((1, 2, 3, 4), np.int64)
    counts[..., 3], counts[0, 0, 0] = 9, (2, 1, 1, 5)
    RunTables(copied, "otsu").truth("traced").counts.write((slice(1, 2),), counts)
    slice_1 = Box((1, 0, 0), (2, *SHAPE[1:]))
    for undefined, recall in (("article", (2 / 3 + 5) / 6), ("zero", 2 / 3 / 6), ("nan", 2 / 3)):
        document = summarise(copied, "otsu", "traced", slice_1, undefined).document()
        check_document("run", document)
        assert document["macro"]["recall"] == pytest.approx(recall, rel=1e-15)
        assert (document["macro"]["tiles"], document["macro"]["undefined"]["recall"]) == (6, 5)
        (described,) = (run for run in describe(copied, undefined)[0]["runs"] if run["name"] == "otsu")
        assert described == summarise(copied, "otsu", "traced", None, undefined).document()
    blank = summarise(copied, "otsu", "traced", Box((1, 512, 0), (2, *SHAPE[1:])), "nan").document()
    check_document("run", blank)
    assert (blank["scores"]["recall"], blank["scores"]["specificity"]) == (None, 1)
    assert (blank["macro"]["recall"], blank["macro"]["specificity"]) == (None, 1)


def test_without_a_truth_there_are_no_scores(volume):
    document = check_document("run", summarise(volume, "otsu", None).document())
    assert (document["truth"], document["annotated"]) == (None, 0)
    assert (document["counts"], document["scores"], document["macro"]) == (None, None, None)


def test_where_nobody_annotated_there_are_counts_and_no_scores(volume):
    document = summarise(volume, "otsu", "traced", Box((2, 0, 0), SHAPE)).document()
    check_document("run", document)
    assert document["counts"] == {"tp": 0, "fp": 0, "fn": 0, "tn": 0}
    assert document["scores"] == dict.fromkeys(SCORES)
    assert document["macro"] is None


def test_part_of_a_run_leaves_the_rest_pending(tmp_path):
    volume = build(tmp_path / "brain.zarr", absent=(1,))
    part = run(RunConfig.model_validate({"volume": volume.path, "truth": "traced", "region": "z=0:2"}))
    assert part.tiles == Tiles(total=12, done=6, reused=0, failed=0, pending=0, absent=6)
    whole = summarise(volume, "otsu", "traced")
    assert whole.tiles == Tiles(total=18, done=6, reused=0, failed=0, pending=6, absent=6)
    assert (whole.counts, whole.scores, whole.macro, whole.levels) == (
        part.counts, part.scores, part.macro, part.levels,
    )  # fmt: skip
    other = check_document("run", summarise(volume, "otsu", "traced", Box((2, 0, 0), SHAPE)).document())
    assert (other["voxels"], other["levels"], other["tiles"]["pending"]) == (0, None, 6)


def test_failures_are_those_of_the_region(tmp_path):
    volume = build(tmp_path / "brain.zarr")
    run(RunConfig(volume=volume.path))
    tables = RunTables(volume, "otsu")
    tables.journal.record_failure((1, 0, 0), [(Box((1, 0, 0), (2, *SHAPE[1:])), "shard 0/c/1/0/0 is missing")])
    tables.status.write((slice(1, 2), slice(0, 2), slice(0, 3)), Status.FAILED)
    whole = check_document("run", summarise(volume, "otsu", None).document())
    assert whole["failures"] == [{"region": "z=1:2,y=0:600,x=0:1100", "reason": "shard 0/c/1/0/0 is missing"}]
    assert (whole["tiles"]["done"], whole["tiles"]["failed"]) == (12, 6)
    assert summarise(volume, "otsu", None, Box((2, 0, 0), SHAPE)).failures == []


@pytest.mark.parametrize(
    ("name", "truth", "message"),
    [
        pytest.param("nope", None, r"has no run 'nope'; it has: bare, otsu", id="run"),
        pytest.param("otsu", "nope", r"'nope', but with: traced; compare it: give .* --truth nope", id="truth"),
        pytest.param("bare", "traced", r"not compared with 'traced', but with: none yet", id="not yet"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named(volume, name, truth, message):
    with pytest.raises(MissingInputError, match=message):
        summarise(volume, name, truth)


def test_volume_is_described(volume):
    document, summaries = describe(volume)
    check_document("status", document)
    assert document["slices"] == {"present": 3, "absent": 0}
    assert document["labels"] == [
        {"name": "bare", "kind": "mask"},
        {"name": "otsu", "kind": "mask"},
        {"name": "traced", "kind": "truth", "slices": 2, "mapping": MAPPING},
    ]
    assert [(summary.name, summary.truth) for summary in summaries] == [("bare", None), ("otsu", "traced")]
    assert document["runs"] == [summarise(volume, "bare", None).document(),
                                summarise(volume, "otsu", "traced").document()]  # fmt: skip
    assert [(work["name"], work["recipe"], work["state"]) for work in document["activity"]] == [
        (name, Recipe().document(), "ended") for name in ("bare", "otsu")
    ]
    assert document["problems"] == []


def test_volume_without_anything_but_slices_is_described(tmp_path):
    volume = Volume.create(tmp_path / "brain.zarr", (2, 8, 8), "uint16")
    document, summaries = describe(volume)
    check_document("status", document)
    assert (document["labels"], document["runs"], summaries) == ([], [], [])
    assert (document["activity"], document["problems"]) == ([], [])
    assert document["voxel_size_um"] is None
    assert document["slices"] == {"present": 0, "absent": 2}


@pytest.mark.parametrize(
    ("levels", "written"),
    [
        ((79.0, 79.5, 80.0), {"min": 79, "median": 79.5, "max": 80}),
        ((float("nan"), float("inf"), 3.0), {"min": None, "median": None, "max": 3}),
        (None, None),
    ],
)
def test_document_is_strict_json(levels, written):
    summary = Summary(
        name="otsu", volume="v", region=Box((0, 0, 0), (1, 2, 3)), truth="t", voxels=6, annotated=0, counts=Counts(),
        scores=Scores(*9 * [None]), macro=None, levels=levels, tiles=Tiles(1, 1, 0, 0, 0, 0),
        failures=[], elapsed_s=0.25,
    )  # fmt: skip
    document = json.loads(json.dumps(check_document("run", summary.document()), allow_nan=False))
    assert document["levels"] == written
    assert document["region"] == "z=0:1,y=0:2,x=0:3"


def test_schema_is_closed(volume):
    document = summarise(volume, "otsu", "traced").document()
    with pytest.raises(ValidationError, match="Additional properties"):
        check_document("run", document | {"more": 1})
    for part in ("scores", "macro"):
        with pytest.raises(ValidationError):
            check_document("run", document | {part: document[part] | {"more": 1}})
        with pytest.raises(ValidationError):
            check_document(
                "run", document | {part: {key: document[part][key] for key in document[part] if key != "iou"}}
            )
    with pytest.raises(ValidationError):
        check_document("run", document | {"truth": None})


def test_scores_of_a_truth_that_was_traced_again_are_pending(tmp_path):
    volume = build_volume(tmp_path / "brain.zarr", (3, 64, 64))
    run(run_config(volume))
    assert summarise(volume, "otsu", "groundtruth").tiles.done == 3
    truth, ledger = volume.truth("groundtruth")
    volume.staging.mkdir()
    ledger.record(2, truth.write_slice(2, np.zeros((64, 64), np.uint8), volume.staging), "2.png", 1)
    now = summarise(volume, "otsu", "groundtruth")
    assert (now.tiles.done, now.tiles.pending) == (2, 1)
    assert summarise(volume, "otsu", None).tiles.done == 3


# damage


@pytest.fixture
def copied(volume, tmp_path) -> Volume:
    shutil.copytree(volume.path, tmp_path / "brain.zarr")
    return Volume(tmp_path / "brain.zarr")


def damage(volume: Volume, table: str, chunk: str = "1") -> None:
    """Overwrite the first chunk of a table that belongs to slice 1."""
    first = next(path for path in sorted((volume.path / table / "c" / chunk).rglob("*")) if path.is_file())
    first.write_bytes(b"no chunk")


SLICE = "z=1:2,y=0:600,x=0:1100"
OF_TRUTH = "tiles/otsu/truth/traced"


@pytest.mark.parametrize(
    ("table", "runs"),
    [
        pytest.param("tiles/otsu/status", {"otsu"}, id="status"),
        pytest.param("tiles/otsu/threshold", {"otsu"}, id="threshold"),
        pytest.param("tiles/otsu/mask_key", {"otsu"}, id="mask key"),
        pytest.param(f"{OF_TRUTH}/counts", {"otsu"}, id="counts"),
        pytest.param(f"{OF_TRUTH}/counts_key", {"otsu"}, id="counts key"),
        pytest.param("slices/image/shard_digest", {"bare", "otsu"}, id="digests of the image"),
        pytest.param("slices/labels/traced/shard_digest", {"otsu"}, id="digests of the truth"),
    ],
)
def test_damaged_chunk_is_named_and_its_tiles_are_pending(copied, table, runs):
    before = {summary.name: summary for summary in describe(copied)[1]}
    damage(copied, table)
    document, summaries = describe(Volume(copied.path))
    check_document("status", json.loads(json.dumps(document)))
    assert document["problems"] == []
    for summary in summaries:
        if summary.name not in runs:
            assert summary == before[summary.name]
            continue
        assert summary.tiles == Tiles(total=18, done=12, reused=0, failed=0, pending=6, absent=0)
        assert summary.voxels == 2 * 600 * 1100
        ((box, reason),) = summary.failures
        assert str(box) == SLICE
        assert table in reason
        assert "c/1" in reason
    ours = next(summary for summary in summaries if summary.name == "otsu")
    assert ours.counts == summarise(copied, "otsu", "traced", Box((0, 0, 0), (1, *SHAPE[1:]))).counts
    assert summarise(copied, "otsu", "traced", Box((2, 0, 0), SHAPE)).failures == []


def test_damaged_digest_of_a_slice_stops_nothing(copied):
    (copied.path / "slices" / "image" / "digest" / "c" / "1").write_bytes(b"no chunk")
    (copied.path / "slices" / "labels" / "traced" / "digest" / "c" / "0").write_bytes(b"no chunk")
    document, summaries = describe(Volume(copied.path))
    check_document("status", document)
    assert document["slices"] == {"present": 3, "absent": 0}
    found = {summary.name: (summary.tiles.done, [str(box)[:5] for box, _ in summary.failures]) for summary in summaries}
    assert found == {"bare": (12, ["z=1:2"]), "otsu": (6, ["z=1:2", "z=0:1"])}


@pytest.mark.parametrize(
    ("lost", "shown"),
    [
        pytest.param("tiles/otsu/threshold/zarr.json", ["bare"], id="table"),
        pytest.param("runs/otsu/zarr.json", ["bare"], id="recipe"),
        pytest.param("runs/otsu/attempts/000000/zarr.json", ["bare", "otsu"], id="attempt"),
    ],
)
def test_damaged_run_is_named_and_the_others_are_shown(copied, lost, shown):
    (copied.path / lost).write_text("{")
    document, summaries = describe(Volume(copied.path))
    check_document("status", document)
    assert [summary.name for summary in summaries] == shown
    (problem,) = document["problems"]
    assert lost.removesuffix("/zarr.json") in problem


def test_tile_that_could_not_be_compared_has_failed(copied):
    tables = RunTables(copied, "otsu")
    tables.truth("traced").counts_key.write((slice(1, 2),), 0)
    tables.journal.record_failure((1, 0, 0), [(Box((1, 0, 0), (2, 600, 512)), "shard of the truth")])
    tiles = summarise(copied, "otsu", "traced").tiles
    assert (tiles.done, tiles.failed, tiles.pending) == (12, 2, 4)
    tiles = summarise(copied, "otsu", None).tiles
    assert (tiles.done, tiles.failed, tiles.pending) == (18, 0, 0)
