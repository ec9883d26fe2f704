"""A census says of each tile what its voxels say, and of those that are not done nothing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, DamageError, MissingInputError
from pipeline.findings.census import NOT_COUNTED, Census, census, choose_run, choose_truth, compared_truths
from pipeline.findings.summary import summarise
from pipeline.geometry import Box, Grid
from pipeline.kernels.confusion import SCORES, Counts, scores, tile_scores
from pipeline.kernels.quality import Measure
from pipeline.segmentation.runs import run
from pipeline.settings.config import RunConfig
from pipeline.storage.tables import RunTables, Signal, Status
from pipeline.storage.volume import Volume
from tests.builders import build_volume, run_config
from tests.command import kesm

SHAPE = (4, 600, 1100)  # 2 x 3 tiles a slice, those at the far edges cut; slices 0 and 2 are annotated
CELLS = (4, 2, 3)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Volume whose run is compared with its truth, whose slice 3 is absent, and of which slice 1 has failed."""
    volume = build_volume(tmp_path_factory.mktemp("census") / "brain.zarr", SHAPE, absent=(3,))
    run(run_config(volume))
    tables = RunTables(volume, "otsu")
    row = (slice(1, 2), slice(0, 2), slice(0, 3))
    tables.status.write(row, Status.FAILED)
    tables.journal.record_failure((1, 0, 0), [(Box((1, 0, 0), (2, *SHAPE[1:])), "a shard is missing")])
    return volume


@pytest.fixture
def volume(built: Volume, tmp_path: Path) -> Volume:
    return Volume(shutil.copytree(built.path, tmp_path / "brain.zarr"))


def test_tiles_are_those_of_the_voxels(built):
    found = census(built, "otsu")
    truth = built.truth("groundtruth")[0].full.read(Box.whole(SHAPE))
    mask = built.label("otsu").full.read(Box.whole(SHAPE))
    assert (found.truth, found.tiles, found.grid.cells) == ("groundtruth", Box.whole(CELLS), CELLS)
    assert found.quality is not None
    for cell in found.tiles:
        box = found.box(cell)
        assert found.voxels[cell] == box.size
        if cell[0] in (1, 3):
            assert not found.done[cell]
            continue
        traced, marked = truth[box.slices], mask[box.slices]
        counts = Counts.from_images(traced, marked)
        assert found.done[cell]
        assert Counts(*found.counts[cell].tolist()) == counts
        assert found.annotated[cell] == counts.total
        assert found.vessel[cell] == np.count_nonzero(marked)
        assert found.fraction()[cell] == np.count_nonzero(marked) / box.size
        assert found.quality[cell][Measure.MEAN] == pytest.approx(built.image.full.read(box).mean(), rel=1e-6)
        for metric in SCORES:
            assert found.score(metric)[cell] == pytest.approx(getattr(scores(counts), metric), abs=1e-14)


def test_what_is_not_done_is_empty(built):
    found = census(built, "otsu")
    hidden = ~found.done
    assert hidden.sum() == 2 * 6
    assert np.isnan(found.level[hidden]).all()
    assert np.isnan(found.quality[hidden]).all()
    assert np.isnan(found.fraction()[hidden]).all()
    assert np.isnan(found.score("f1")[hidden]).all()
    assert (found.vessel[hidden] == NOT_COUNTED).all()
    assert (found.signal[hidden] == Signal.NOT_ASKED).all()
    assert not found.counts[hidden].any()
    assert not found.annotated[hidden].any()


def test_states_are_those_of_the_summary(built):
    found = census(built, "otsu")
    tiles = summarise(built, "otsu", "groundtruth").tiles
    counted = {state: int((found.status == state).sum()) for state in Status}
    assert counted == {Status.DONE: tiles.done, Status.FAILED: tiles.failed, Status.PENDING: tiles.pending,
                       Status.ABSENT: tiles.absent}  # fmt: skip
    assert (found.status[1] == Status.FAILED).all()
    assert (found.status[3] == Status.ABSENT).all()


@pytest.mark.parametrize("undefined", ["article", "zero", "nan"])
def test_scores_have_the_bits_of_tile_scores(built, undefined):
    found = census(built, "otsu")
    expected = tile_scores(found.counts, undefined)
    np.testing.assert_array_equal(found.scores(undefined), expected, strict=True)
    for position, metric in enumerate(SCORES):
        np.testing.assert_array_equal(found.score(metric, undefined), expected[..., position], strict=True)


@pytest.mark.parametrize(
    ("region", "tiles"),
    [
        (Box((2, 0, 0), (3, 600, 1100)), Box((2, 0, 0), (3, 2, 3))),
        (Box((0, 511, 1000), (4, 513, 1001)), Box((0, 0, 1), (4, 2, 2))),
    ],
    ids=["slice", "two tiles of each slice"],
)
def test_region_and_cut_are_parts_of_the_whole(built, region, tiles):
    whole, part = census(built, "otsu"), census(built, "otsu", region=region)
    cut = whole.cut(tiles)
    assert part.tiles == cut.tiles == tiles
    for of_part, of_cut in ((getattr(part, name), getattr(cut, name)) for name in ("done", "level", "counts", "vessel",
                            "voxels", "status", "signal", "annotated", "quality")):  # fmt: skip
        np.testing.assert_array_equal(of_part, of_cut, strict=True)


# ranking


def made_up(counts: list[tuple[int, int, int, int]], first: int = 5) -> Census:
    """Census of tiles in a row, of slice 5 on."""
    cells = (first + 1, 1, len(counts))
    grid = Grid((cells[0], 512, 512 * cells[2]), (1, 512, 512))
    box, shape = Box((first, 0, 0), cells), (1, 1, len(counts))
    table = np.array(counts, np.int64).reshape(*shape, 4)
    return Census(
        volume=Path("brain.zarr"), name="otsu", truth="t", grid=grid, tiles=box, status=np.full(shape, 2, np.uint8),
        done=np.ones(shape, np.bool_), voxels=grid.sizes(box), level=np.zeros(shape), signal=np.zeros(shape, np.uint8),
        vessel=table[..., 0] + table[..., 1], counts=table, annotated=table.sum(axis=-1), quality=None,
        seam=np.zeros_like(table),
    )  # fmt: skip


NOTHING, RIGHT, FEW, MANY, FOUND, LARGE, BLANK = (
    (0, 0, 0, 100), (10, 0, 0, 90), (0, 1, 0, 99), (0, 40, 0, 60), (30, 5, 5, 60), (40, 0, 0, 60), (0, 0, 0, 0),
)  # fmt: skip


@pytest.mark.parametrize(
    ("worst", "expected"),
    [
        pytest.param(True, [MANY, FEW, FEW, FOUND], id="worst"),
        pytest.param(False, [LARGE, RIGHT, FOUND], id="best"),
    ],
)
def test_ranking_leaves_out_what_shows_nothing_and_settles_ties(worst, expected):
    tiles = [NOTHING, FEW, RIGHT, MANY, BLANK, FOUND, LARGE, FEW]
    found = made_up(tiles)
    cells = found.ranked("mcc", 100, worst)
    assert [tiles[x] for _, _, x in cells] == expected
    assert {(z, y) for z, y, _ in cells} == {(5, 0)}
    assert [x for _, _, x in cells if tiles[x] == FEW] == [1, 7] * worst
    assert found.ranked("mcc", 2, worst) == cells[:2]


def test_ranking_is_that_of_a_slow_sort(built):
    found = census(built, "otsu")
    for metric in ("f1", "precision"):
        values = found.score(metric)
        known = [cell for cell in found.tiles if found.annotated[cell]]
        wrong = {cell: int(found.counts[cell][1] + found.counts[cell][2]) for cell in known}
        slow = sorted(known, key=lambda cell: (values[cell], -wrong[cell], cell))
        assert found.ranked(metric, 5) == slow[:5]


# wrong input


def test_only_truth_is_taken_and_several_are_named(volume):
    assert census(volume, "otsu", "groundtruth").truth == "groundtruth"
    RunTables(volume, "otsu").create_truth("second")
    with volume.lock():
        volume.create_truth("second", {})
        volume.publish_label("second")
    with pytest.raises(ConfigError, match=r"run 'otsu' was compared with groundtruth, second; choose one with --truth"):
        census(volume, "otsu")
    with pytest.raises(MissingInputError, match="was not compared with 'third', but with: groundtruth, second"):
        census(volume, "otsu", "third")
    with pytest.raises(MissingInputError, match="has no run 'nope'; it has: otsu"):
        census(volume, "nope")
    with pytest.raises(ConfigError, match="was compared with groundtruth, second"):
        choose_truth(volume, "otsu", None)
    assert choose_truth(volume, "otsu", "second") == "second"
    assert list(compared_truths(volume, RunTables(volume, "otsu"))) == ["groundtruth", "second"]
    (volume.path / "labels" / "second").rename(volume.path / "labels" / ".second")  # as if it was deleted
    assert list(compared_truths(Volume(volume.path), RunTables(volume, "otsu"))) == ["groundtruth"]
    assert choose_truth(Volume(volume.path), "otsu", None) == "groundtruth"


def test_run_without_a_truth_has_no_scores(tmp_path):
    volume = build_volume(tmp_path / "brain.zarr", (1, 64, 64))
    run(RunConfig(volume=volume.path, name="bare"))
    found = census(volume, "bare")
    assert (found.truth, found.counts, found.annotated.sum()) == (None, None, 0)
    assert found.vessel[0, 0, 0] == np.count_nonzero(volume.label("bare").full.read(Box.whole((1, 64, 64))))
    found.require_done()
    for ask in (lambda: found.score("mcc"), lambda: found.ranked("mcc", 1), found.scores, found.require_truth):
        with pytest.raises(MissingInputError, match=r"run 'bare' was compared with no truth, .* --truth NAME"):
            ask()


def test_unknown_score_is_refused(built):
    with pytest.raises(ConfigError, match="got 'dice', expected one of: accuracy, f1, mcc"):
        census(built, "otsu").score("dice")


def test_empty_region_says_so_when_it_is_asked(built):
    found = census(built, "otsu", region=Box((3, 0, 0), (4, 600, 1100)))
    assert not found.done.any()
    assert found.ranked("mcc", 3) == []
    with pytest.raises(
        MissingInputError, match=r"none of the 6 tiles of z=3:4,y=0:600,x=0:1100 done; finish it: give the"
    ) as raised:
        found.require_done()
    assert str(raised.value).endswith(f"started it again (`kesm status {built.path} --provenance otsu` shows it)")


def test_run_that_was_worked_on_last_is_chosen(volume, tmp_path, monkeypatch):
    assert choose_run(volume, None) == "otsu"
    assert choose_run(volume, "named") == "named"
    monkeypatch.setattr("pipeline.segmentation.attempt.now", lambda: "2999-01-01T00:00:00+00:00")
    run(RunConfig(volume=volume.path, name="second"))
    assert choose_run(volume, None) == "second"
    assert choose_run(volume, "otsu") == "otsu"
    (volume.path / "runs" / "second" / "zarr.json").write_text("{")
    assert choose_run(volume, None) != "second"  # broken, so it hides none of the others
    with pytest.raises(MissingInputError, match="has no run yet; make one with `kesm run"):
        choose_run(build_volume(tmp_path / "other.zarr", (1, 8, 8)), None)


# damage


@pytest.mark.parametrize("label", ["otsu-confusion", "otsu", "truth"])
def test_metadata_of_a_label_that_cannot_be_read_stop_nothing_else(tmp_path, label):
    volume = build_volume(tmp_path / "brain.zarr", (3, 300, 420))
    run(run_config(volume, tile=128, confusion=True))
    label = "groundtruth" if label == "truth" else label
    (volume.path / "labels" / label / "zarr.json").write_text('{"a":')
    status = kesm("status", volume.path, "--json")
    (problem,) = status.document["problems"]
    assert (status.code, [each["name"] for each in status.document["runs"]]) == (0, ["otsu"])
    assert f"labels/{label}: its zarr.json cannot be read" in problem
    assert kesm("tables", volume.path, "--out", tmp_path / "t.csv").code == 0
    report = kesm("report", volume.path, "--out", tmp_path / "out")
    assert report.code == 3
    assert f"labels/{label}: its zarr.json cannot be read" in report.err
    assert kesm("verify", volume.path).code == 2
    assert kesm("run", volume.path, "--name", "other").code == 2  # nothing is written beside what is not known


def test_truth_that_is_gone_is_named(tmp_path):
    volume = build_volume(tmp_path / "brain.zarr", (3, 300, 420))
    run(run_config(volume, tile=128))
    shutil.rmtree(volume.path / "labels" / "groundtruth")
    lost = r"run 'otsu' was compared with 'groundtruth': .*has no label 'groundtruth'; it has: otsu"
    (problem,) = kesm("status", volume.path, "--json").document["problems"]
    assert re.search(lost, problem)
    report = kesm("report", volume.path, "--out", tmp_path / "out")
    assert report.code == 3
    assert re.search(lost, report.err)


@pytest.mark.parametrize("table", ["vessel", "quality", "threshold", "signal", "status", "truth/groundtruth/counts"])
def test_damaged_chunk_hides_its_tiles_and_is_named(volume, table):
    before = census(volume, "otsu")
    chunk = next(path for path in sorted((volume.path / "tiles/otsu" / table / "c/2").rglob("*")) if path.is_file())
    chunk.write_bytes(b"no chunk")
    found = census(Volume(volume.path), "otsu")
    assert not found.done[2].any()
    assert found.done[0].all()
    np.testing.assert_array_equal(found.counts[0], before.counts[0])
    ((box, reason),) = found.damage
    assert str(box) == "z=2:3,y=0:600,x=0:1100"
    assert table in reason


def test_damage_is_named_where_nothing_is_left(volume):
    for chunk in (volume.path / "tiles/otsu/status/c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"")
    found = census(Volume(volume.path), "otsu")
    with pytest.raises(
        DamageError, match=r"none of the 24 tiles .* as not all of its tables can be read: z=0:1.*: .*st"
    ):
        found.require_done()


@pytest.mark.parametrize("table", ["vessel", "quality"])
def test_lost_chunk_is_not_taken_for_zeros(volume, table):
    shutil.rmtree(volume.path / "tiles/otsu" / table / "c/2")
    found = census(volume, "otsu")
    assert not found.done[2].any()
    assert found.done[0].all()
