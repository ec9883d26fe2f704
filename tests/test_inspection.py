"""Quality of a whole run against slow oracles, what is found of planted faults, and scores without flagged tiles."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pipeline.errors import MissingInputError
from pipeline.findings.inspection import inspect, tile_flags
from pipeline.findings.summary import describe, summarise
from pipeline.geometry import Box
from pipeline.kernels.confusion import Counts, mean_scores, scores, sum_scores
from pipeline.kernels.flags import FLAG_NAMES, Flag, flag_of
from pipeline.kernels.quality import Measure
from pipeline.phantom import Phantom
from pipeline.segmentation.runs import run
from pipeline.settings.config import RunConfig
from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume
from tests.builders import MAPPING
from tests.command import kesm
from tests.contract import check_document
from tests.test_quality import expected

SHAPE, SIDE = (7, 600, 1000), 128
CELLS = (7, 5, 8)
PLANTED = {  # a tile of a slice each
    (0, 2, 1): Flag.EMPTY | Flag.DARK,
    (1, 2, 3): Flag.BLURRED,
    (2, 1, 5): Flag.CHATTER,
    (3, 3, 3): Flag.SATURATED | Flag.EMPTY,
}


def cut(tile):
    return np.s_[tile[1] * SIDE : (tile[1] + 1) * SIDE, tile[2] * SIDE : (tile[2] + 1) * SIDE]


def plant(z, plane):
    """Spoil one tile of a slice."""
    for tile in PLANTED:
        at, part = cut(tile), plane[cut(tile)]
        match tile[0] if tile[0] == z else None:
            case 0:
                plane[at] = 0
            case 1:
                plane[at] = ndimage.gaussian_filter(part, 2)
            case 2:
                plane[at] = (part * (1 + 0.04 * np.sin(np.arange(SIDE) / 1.3)[:, None])).clip(0, 255)
            case 3:
                plane[at] = 255
                plane[at][40:45] = part[40:45]
    return plane


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Phantom with planted faults, the last but one slice absent, and all of its truth."""
    phantom = Phantom(SHAPE, seed=2)
    volume = Volume.create(tmp_path_factory.mktemp("built") / "brain.zarr", SHAPE, "uint8")
    volume.staging.mkdir()
    truth, ledger = volume.create_truth("traced", MAPPING)
    inside, area = volume.create_truth("inside", MAPPING)
    for z in range(SHAPE[0]):
        image, vessels = phantom.slice(z)
        if z != 5:
            volume.slices.record(z, volume.image.write_slice(z, plant(z, image), volume.staging), f"{z}.png", 0)
            vessels[:SIDE, :SIDE] = 0  # nothing there, as the expert has it
            vessels[z * 50 : z * 50 + 30, 200:300] = 127
            ledger.record(z, truth.write_slice(z, vessels, volume.staging), f"{z}.png", 0)
        valid = np.zeros(SHAPE[1:], np.uint8)
        valid[30:460, 140:700] = 255
        area.record(z, inside.write_slice(z, valid, volume.staging), f"{z}.png", 0)
    for label in ("traced", "inside"):
        volume.publish_label(label)
    volume.staging.rmdir()
    run(config_of(volume))
    return Volume(volume.path)


@pytest.fixture
def volume(built, tmp_path):
    return Volume(shutil.copytree(built.path, tmp_path / "brain.zarr"))


def config_of(volume, name="otsu", **options):
    return RunConfig.model_validate(
        {"volume": volume.path, "name": name, "truth": "traced", "tile": SIDE, "cluster": {"threads": 2}, **options}
    )


RECIPES = {
    "fused": {},
    "fused, of one level": {"threshold": {"method": "fixed", "level": 90}},
    "of three slices": {"denoise": {"size": [3, 3, 3]}},
    "smooth": {"threshold": {"scope": "smooth"}},
    "local": {"threshold": {"method": "local_mean", "size": 31}},
    "corrected": {"correct": {"gamma": 0.7}},
    "corrected, in a valid area": {"correct": {"gamma": 0.7}, "valid": {"label": "inside"}},
    "segmented": {"segmenter": {"target": "tests.test_inspection:bright"}},
    "cleaned": {"clean": {"small_objects": 50}},
}


def bright(block):
    return block[0] > 100


@pytest.mark.parametrize("recipe", RECIPES)
def test_quality_and_vessels_are_those_of_every_tile(built, recipe):
    config = config_of(built, recipe.replace(" ", "-").replace(",", ""), **RECIPES[recipe])
    run(config)
    tables = RunTables(built, config.run_name)
    quality, vessel = tables.quality.read(), tables.vessel.read()
    image, mask = built.image.full.read(Box.whole(SHAPE)), built.label(config.run_name).full.read(Box.whole(SHAPE))
    assert np.isnan(quality[5]).all()
    assert vessel.sum() == np.count_nonzero(mask) > 0
    raw = Measure.FOCUS, Measure.SATURATION, Measure.MEAN, Measure.EMPTINESS, Measure.CHATTER
    some = np.random.default_rng(1).permutation(np.argwhere(~np.isnan(quality[..., Measure.MEAN])))[:25]
    for tile in [*PLANTED, *map(tuple, some.tolist())]:
        assert vessel[tile] == np.count_nonzero(mask[tile[0]][cut(tile)])
        wanted = expected(image[tile[0]][cut(tile)], SIDE)
        np.testing.assert_allclose(quality[tile][list(raw)], [wanted[each] for each in raw], rtol=1e-5, atol=1e-6)
    if recipe in {"fused", "smooth", "local"}:
        filtered = [ndimage.median_filter(255 - plane, 3, mode="reflect") for plane in image]
        for tile in map(tuple, some.tolist()):
            wanted = expected(filtered[tile[0]][cut(tile)], SIDE)
            for each in (Measure.CONTRAST, Measure.SEPARABILITY):
                assert quality[tile][each] == pytest.approx(wanted[each], rel=1e-5)
    outside = recipe.endswith("valid area")
    np.testing.assert_array_equal(np.isnan(quality[:5, :, 0, Measure.CONTRAST]), outside)


def test_planted_faults_are_found(built):
    (found,) = inspect(built, "otsu", worst=400)
    flags = {each.region: flag_of(each.flags) for each in found.tiles.worst}
    grid = RunTables(built, "otsu").grids.tiles
    for tile, flag in PLANTED.items():
        assert flag in flags.pop(grid.box(tile))
    content = Flag.DARK | Flag.LOW_CONTRAST | Flag.BRIGHT  # which a tile has of a large vessel, or without any
    assert all(flag | content == content for flag in flags.values())
    assert found.tiles.measured == 6 * 40
    assert found.tiles.flagged == len(found.tiles.worst) == np.count_nonzero(tile_flags(RunTables(built, "otsu"), 0, 7))
    bad = Phantom(SHAPE, seed=2).out_of_focus
    ((z, names),) = [(each.region.start[0], each.flags) for each in found.slices.worst]
    assert z == bad
    assert "blurred" in names
    assert (found.slices.measured, found.slices.flagged) == (6, 1)


def test_the_worst_are_those_furthest_out(built):
    (found,) = inspect(built, "otsu")
    distances = [abs(each.distance) for each in found.tiles.worst]
    assert distances == sorted(distances, reverse=True)
    assert min(distances) > 1
    quality, grid = RunTables(built, "otsu").quality.read(), RunTables(built, "otsu").grids.tiles
    for each in found.tiles.worst:
        (tile,) = grid.cover(each.region)
        assert each.value == quality[tile][Measure[each.measure.upper()]]
        of_slice = quality[tile[0], ..., Measure[each.measure.upper()]][quality[tile[0], ..., Measure.EMPTINESS] <= 0.5]
        assert each.median == pytest.approx(np.median(of_slice), rel=1e-6)
        assert (each.distance < 0) == (each.value < each.median)
    (few,) = inspect(built, "otsu", worst=2)
    assert few.tiles.worst == found.tiles.worst[:2]
    assert few.tiles.flagged == found.tiles.flagged
    assert f"  and {found.tiles.flagged - 2} more" in few.lines()


def test_status_tells_it(built):
    (found,) = inspect(built, "otsu")
    document = check_document("quality", kesm("status", built.path, "--qc", "--name", "otsu", "--json").document)
    assert document["runs"] == [json.loads(json.dumps(found.document()))]
    text = kesm("status", built.path, "--qc", "--name", "otsu").out
    bad = found.slices.worst[0]
    assert text.startswith("run otsu:\nslices unlike the others: 1 of 6: 1 blurred")
    assert f"{bad.region}: {', '.join(bad.flags)}: {bad.measure} {bad.value:.4g}, usual {bad.median:.4g}: " in text
    assert "\ntiles unlike the others of their slice: " in text
    everything = check_document("quality", kesm("status", built.path, "--qc", "--json").document)
    assert len(everything["runs"]) >= 1
    assert document["runs"][0] in everything["runs"]


def test_document_names_the_volume_by_its_whole_path(built, monkeypatch):
    monkeypatch.chdir(built.path)
    assert kesm("status", f"../{built.path.name}", "--qc", "--json").document["volume"] == str(built.path)


def test_nothing_to_inspect(tmp_path):
    volume = Volume.create(tmp_path / "brain.zarr", (2, 64, 64), "uint8")
    assert inspect(volume) == []
    assert kesm("status", volume.path, "--qc").out == "no runs yet\n"
    run(RunConfig.model_validate({"volume": volume.path}))
    document = check_document("quality", kesm("status", volume.path, "--qc", "--json").document)
    of_run = document["runs"][0]
    assert [of_run[what][key] for what in ("slices", "tiles") for key in ("measured", "flagged")] == [0, 0, 0, 0]
    with pytest.raises(MissingInputError, match=r"has no run 'none'; it has: otsu"):
        inspect(volume, "none")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--qc", "--watch"], r"^--watch: not with --qc; leave one of them out$"),
        (["--qc", "--provenance", "otsu"], r"^--provenance: not with --qc; leave one of them out$"),
        (["--qc", "--exclude-flagged"], r"^--exclude-flagged: not with --qc; leave it out$"),
        (["--name", "otsu"], r"^--name: only with --qc; a run's provenance is --provenance NAME; leave it out$"),
        (["--qc", "--name", "none"], r"has no run 'none'; it has: "),
        (["--undefined", "never"], r"^--undefined: got 'never', expected one of article, zero, nan$"),
    ],
    ids=["watch", "provenance", "scores", "name", "no run", "undefined"],
)
def test_bad_words_get_one_message(built, words, message):
    assert re.search(message, kesm("status", built.path, *words).message)


def excluded_by_hand(volume, flags, tiles=np.s_[:]):
    """Counts of all tiles, and which of them are left out."""
    tables = RunTables(volume, "otsu")
    counts = tables.truth("traced").counts.read()[tiles]
    left_out = (tile_flags(tables, 0, SHAPE[0])[tiles] & flags != 0) & counts.any(axis=-1)
    return counts, left_out


@pytest.mark.parametrize("names", [FLAG_NAMES, ("blurred", "saturated")], ids=["all", "some"])
@pytest.mark.parametrize("region", [None, "z=1:4,y=128:512,x=384:1000"], ids=["whole", "region"])
def test_exclusion_changes_what_it_says_and_nothing_else(built, names, region):
    flags = flag_of(names)
    tiles = np.s_[:] if region is None else np.s_[1:4, 1:4, 3:8]
    counts, left_out = excluded_by_hand(built, flags, tiles)
    assert 0 < left_out.sum() < 20
    before = {path: path.stat().st_mtime_ns for path in built.path.rglob("*")}
    plain, without = (run(config_of(built, exclude_flagged=which, region=region)) for which in (False, list(names)))
    assert plain.excluded is None
    kept = counts[~left_out]
    total = Counts(*(int(number) for number in kept.sum(axis=0)))
    assert without.counts == total
    assert (without.scores, without.annotated) == (scores(total), total.total)
    assert without.macro == mean_scores(sum_scores(kept))
    assert without.excluded is not None
    assert without.excluded.tiles == left_out.sum()
    assert without.excluded.voxels == counts[left_out].sum() == plain.annotated - without.annotated
    raised = tile_flags(RunTables(built, "otsu"), 0, SHAPE[0])[tiles][left_out]
    assert without.excluded.flags == {name: np.count_nonzero(raised & flag_of([name])) for name in names}
    rest = {"counts", "scores", "annotated", "macro", "excluded", "elapsed_s"}
    same = {key: value for key, value in plain.document().items() if key not in rest}
    assert same == {key: value for key, value in without.document().items() if key not in rest}
    assert {path: path.stat().st_mtime_ns for path in built.path.rglob("*")} == before
    if region is None:
        told = replace(summarise(built, "otsu", "traced", exclude=flags), elapsed_s=0)
        assert told.document() | {"tiles": 0} == replace(without, elapsed_s=0).document() | {"tiles": 0}


def test_a_run_that_does_something_leaves_the_same_out(volume):
    done = run(config_of(volume, exclude_flagged=True))
    shutil.rmtree(volume.path / "tiles" / "otsu" / "truth" / "traced" / "counts_key" / "c" / "2")
    again = run(config_of(volume, exclude_flagged=True))
    assert again.tiles.reused < again.tiles.done
    keys = ("counts", "scores", "macro", "excluded", "annotated")
    assert [again.document()[key] for key in keys] == [done.document()[key] for key in keys]
    told = check_document("provenance", kesm("status", volume.path, "--provenance", "otsu", "--json").document)
    assert told["attempts"][-1]["excluded"] == again.document()["excluded"]


def test_exclusion_on_the_command_line(volume):
    ran = kesm("run", volume.path, "--name", "otsu", "--truth", "traced", "--set", f"tile={SIDE}", "--exclude-flagged",
               "--json")  # fmt: skip
    document = check_document("run", ran.document)
    described = check_document("status", kesm("status", volume.path, "--exclude-flagged", "--json").document)
    (told,) = (each for each in described["runs"] if each["name"] == "otsu")
    assert document["excluded"] == told["excluded"]
    assert document["excluded"]["tiles"] >= len(PLANTED)
    assert list(document["excluded"]["flags"]) == list(FLAG_NAMES)
    assert [told[key] for key in ("counts", "scores")] == [document[key] for key in ("counts", "scores")]
    line = f"not scored: {document['excluded']['tiles']} flagged tiles, {document['excluded']['voxels']:,} annotated"
    assert line in kesm("status", volume.path, "--exclude-flagged").out
    text = kesm("run", volume.path, "--name", "otsu", "--truth", "traced", "--set", f"tile={SIDE}",
                "--set", "exclude_flagged=[blurred, empty]").out  # fmt: skip
    assert "\nnot scored: " in text
    assert re.search(r" blurred, \d+ empty\n", text)
    without_truth = kesm("run", volume.path, "--name", "otsu", "--set", f"tile={SIDE}", "--exclude-flagged", "--json")
    assert check_document("run", without_truth.document)["excluded"] is None


@pytest.mark.parametrize("value", ["sharp", "[blurred, sharp]", "7"])
def test_unknown_flags_are_refused(built, value):
    message = kesm("run", built.path, "--set", f"exclude_flagged={value}").message
    assert "exclude_flagged" in message
    assert "expected true, false, or a list of blurred, saturated, dark" in message


@pytest.mark.parametrize("rule", ["zero", "nan"])
def test_what_is_undefined_reaches_every_summary(volume, rule):
    fresh = run(config_of(volume, "fresh", undefined=rule, region="z=0:2"))
    again = run(config_of(volume, "fresh", undefined=rule, region="z=0:2"))
    told = summarise(volume, "fresh", "traced", Box((0, 0, 0), (2, *SHAPE[1:])), rule)
    usual = run(config_of(volume, "fresh", region="z=0:2"))
    assert again.tiles.reused == fresh.tiles.done == usual.tiles.reused
    assert fresh.macro == again.macro == told.macro != usual.macro
    assert fresh.scores == told.scores
    assert (fresh.undefined, usual.undefined) == (rule, "article")
    _, summaries = describe(volume, rule)
    assert {summary.undefined for summary in summaries} == {rule}
    document = check_document("status", kesm("status", volume.path, "--undefined", rule, "--json").document)
    assert [each["macro"] for each in document["runs"]] == [
        json.loads(json.dumps(each.document()["macro"])) for each in summaries
    ]
    ran = kesm("run", volume.path, "--name", "otsu", "--truth", "traced", "--set", f"tile={SIDE}",
               "--set", f"undefined={rule}", "--json")  # fmt: skip
    assert check_document("run", ran.document)["undefined"] == rule


def test_what_is_undefined_is_checked(built):
    assert "undefined" in kesm("run", built.path, "--set", "undefined=never").message


@pytest.mark.parametrize("table", ["quality", "vessel", "seam", "signal"])
@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"none"), Path.unlink], ids=["spoilt", "lost"])
def test_tables_that_are_damaged_are_made_again(volume, table, damage):
    whole = {each: getattr(RunTables(volume, "otsu"), each).read() for each in ("quality", "vessel", "seam", "signal")}
    (chunk,) = (path for path in (volume.path / "tiles" / "otsu" / table / "c" / "1").rglob("*") if path.is_file())
    damage(chunk)
    summary = summarise(volume, "otsu", "traced")
    assert (summary.tiles.done, summary.tiles.pending) == (5 * 40, 40)
    if chunk.exists():
        assert [str(box) for box, _ in summary.failures] == ["z=1:2,y=0:600,x=0:1000"]
    if table == "quality":
        (found,) = inspect(volume, "otsu")
        assert len(found.damage) == chunk.exists()
    for _ in range(2):  # the first may only find that it is damaged
        last = run(config_of(volume))
    assert last.tiles.done == 6 * 40
    now = RunTables(volume, "otsu")
    for each, values in whole.items():
        np.testing.assert_array_equal(getattr(now, each).read(), values)
