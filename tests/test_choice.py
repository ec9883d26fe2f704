"""Choosing the method on stored volumes: what a comparison says is what a run of each recipe gives."""

from __future__ import annotations

import csv
import dataclasses
import errno
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from skimage.io import imread

from pipeline.errors import ConfigError, StorageError
from pipeline.events import ignore
from pipeline.geometry import Box
from pipeline.kernels.histogram import TRUTH_VESSEL
from pipeline.methods.choice import HEADING, Choice, check_write, compare, write_recipe
from pipeline.methods.comparison import Candidate
from pipeline.methods.contest import METHODS, SCOPES, Words, configured, name_of, parse_contest, parse_denoise
from pipeline.segmentation.runs import run
from pipeline.settings.config import RunConfig
from pipeline.settings.configfile import load_config
from pipeline.storage.tables import RunTables, Status, run_names
from pipeline.storage.volume import Volume
from tests.builders import MAPPING, build_volume, run_config, textured
from tests.command import kesm
from tests.contract import check_document

TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"
# DESIGN.md, section 8
PUBLISHED = {
    "otsu": 0.853391, "yen": 0.877205, "triangle": 0.756320, "li": 0.062802, "isodata": 0.071248, "mean": 0.152871,
    "minimum": 0.017017,
}  # fmt: skip


def watch(name: str) -> nullcontext:
    return nullcontext(ignore)


def choose(config: RunConfig, *denoise: str, methods: str = "", scopes: str = "", **words: Any) -> Choice:
    return compare(
        config, parse_contest(config, Words(methods.split() or None, scopes.split() or None, denoise, **words)), watch
    )


def rows(choice: Choice) -> dict[tuple[str, str], float]:
    """MCC by method and scope, of a checked document."""
    return {(row["method"], row["scope"]): row["mcc"] for row in check_document("compare", choice.document())["rows"]}


def mcc_of(config: RunConfig) -> float:
    """MCC of a run."""
    scores = run(config).scores
    assert scores is not None
    assert scores.mcc is not None
    return scores.mcc


def traced_volume(path: Path, traces: list[NDArray[np.uint8]], white: Box | None = None) -> Volume:
    """Volume with a slice for each truth."""
    rng = np.random.default_rng(3)
    volume = Volume.create(path, (len(traces), *traces[0].shape), "uint8")
    volume.staging.mkdir()
    truth, ledger = volume.create_truth("groundtruth", MAPPING)
    for z, traced in enumerate(traces):
        image = textured(rng, traced.shape)
        if white is not None and z == white.start[0]:
            image[white.slices[1:]] = 255
        volume.slices.record(z, volume.image.write_slice(z, image, volume.staging), f"{z}.png", 0)
        ledger.record(z, truth.write_slice(z, traced, volume.staging), f"{z}.png", 0)
    volume.publish_label("groundtruth")
    volume.staging.rmdir()
    return volume


def write_yaml(path: Path, **values: object) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def bright(block: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """A segmenter."""
    found: NDArray[np.bool_] = block > 120
    return found


def broken(block: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """A segmenter that fails."""
    raise RuntimeError("out of ink")


def moody(block: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """A segmenter that fails on some blocks."""
    return broken(block) if int(block.sum()) % 2 else bright(block)


def tile_volume(folder: Path) -> Volume:
    """The published tile as a volume of one slice."""
    volume = Volume.create(folder / "tile.zarr", (1, 512, 512), "uint8")
    volume.staging.mkdir()
    volume.slices.record(0, volume.image.write_slice(0, imread(TILE / "grayscale.png"), volume.staging), "g.png", 0)
    truth, ledger = volume.create_truth("groundtruth", MAPPING)
    traced = np.where(imread(TILE / "groundtruth.png") > 0, 255, 0).astype(np.uint8)
    ledger.record(0, truth.write_slice(0, traced, volume.staging), "t.png", 0)
    volume.publish_label("groundtruth")
    volume.staging.rmdir()
    return volume


@pytest.mark.skipif(not TILE.is_dir(), reason="the real tile is not at hand")
def test_methods_on_the_published_tile(tmp_path: Path) -> None:
    choice = choose(run_config(tile_volume(tmp_path)))
    document = choice.document()
    found = {row["method"]: round(row["mcc"], 6) for row in document["rows"] if row["scope"] == "tile"}
    assert found == PUBLISHED
    assert [row["method"] for row in document["rows"][:3]] == ["yen"] * 3  # one tile is the slice, and the volume
    assert (document["ceiling"]["level"], round(document["ceiling"]["mcc"], 6)) == (68, 0.880470)
    assert document["held_out"] is None
    assert [document["rows"][0][key] for key in ("mcc_low", "f1_high", "told_apart")] == [None] * 3
    assert [row["rank"] for row in document["rows"][:4]] == [1, 1, 1, 4]
    said = document["sentences"]
    assert said[0].startswith(
        "yen per tile after median:3, yen per slice and yen per volume are equally good, and best"
    )
    assert said[1].startswith("1 annotated slice is too few to tell methods apart")
    assert "flattered" in said[-1]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return build_volume(tmp_path_factory.mktemp("volume") / "brain.zarr", (4, 100, 100))  # two slices are annotated


def test_every_row_is_what_its_run_gives(volume: Volume) -> None:
    config = run_config(volume, tile=64)
    choice = choose(config)
    assert run_names(volume) == ["otsu"]
    assert len(choice.ranking.places) == len(METHODS) * len(SCOPES)
    for place in choice.ranking.places:
        method, scope, _ = vars_of(place.candidate)
        made = run(config.model_copy(update={"name": f"{method}-{scope}", "threshold": threshold(method, scope)}))
        assert made.counts == place.counts, place.candidate
        assert made.scores == place.scores


def vars_of(candidate: object) -> tuple[str, str, str]:
    return candidate.method, candidate.scope, candidate.denoise  # type: ignore[attr-defined]


def threshold(method: str, scope: str) -> object:
    return RunConfig(volume="v", threshold={"method": method, "scope": scope}).threshold


def test_recipe_with_more_stages_is_judged_beside_the_methods(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (3, 100, 150))
    config = run_config(volume, "mine", tile=64, threshold={"scope": "smooth"}, clean={"opening": 1})
    choice = choose(config, methods="otsu yen", scopes="tile slice")
    found = rows(choice)
    assert len(found) == 5
    for method, scope in [("otsu", "tile"), ("yen", "slice")]:
        threshold = {"method": method, "scope": scope}
        assert found[method, scope] == mcc_of(run_config(volume, f"{method}-{scope}", tile=64, threshold=threshold))
    own = run(config)
    assert own.scores is not None
    assert (found["mine", "recipe"], own.tiles.reused) == (own.scores.mcc, own.tiles.total)
    best = choice.document()["best"]
    assert ("clean" in best["recipe"]) == (best["scope"] == "recipe")


def test_filter_that_has_run_is_not_run_again(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (4, 64, 64))
    run(run_config(volume, "mine", threshold={"method": "yen"}, denoise={"method": "none"}))
    choice = choose(run_config(volume), "none", "median", "median:5", methods="otsu yen", scopes="tile")
    assert [(each.name, each.run) for each in choice.judged] == [
        ("none", "mine"),
        ("median:3", "otsu"),
        ("median:5", "otsu-median5"),
    ]
    assert len(choice.ranking.places) == 6
    assert sorted(run_names(volume)) == ["mine", "otsu", "otsu-median5"]


def test_winner_is_written_as_a_configuration_that_runs(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (6, 64, 64))
    best = tmp_path / "best.yaml"
    answer = kesm("compare", volume.path, "--truth", "groundtruth", "--write", best, "--json")
    document = check_document("compare", answer.document)
    assert document["best"].items() >= document["rows"][0].items()
    assert document["best"]["rerun"]["ran"] is False
    config = load_config(best)
    assert config.volume == volume.path
    assert config.recipe.document() == document["best"]["recipe"]
    again = kesm("run", best, "--json").document
    assert again["scores"]["mcc"] == document["best"]["mcc"]
    assert document["best"]["rerun"]["counts"] == again["counts"]
    assert again["name"] == document["best"]["name"]
    written = yaml.safe_load(best.read_text())
    assert (written["truth"], written["volume"]) == ("groundtruth", "brain.zarr")  # both can be moved together


def test_full_disk_leaves_the_recipe_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose(run_config(build_volume(tmp_path / "brain.zarr", (2, 64, 64))), methods="otsu", scopes="tile")
    best, write_text = tmp_path / "best.yaml", Path.write_text
    write_recipe(choice, best)
    before = best.read_text()

    def half(path: Path, text: str, **words: Any) -> int:
        write_text(path, text[: len(text) // 2], **words)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(StorageError, match=r"best.yaml: the disk is full"):
        write_recipe(choice, best)
    assert best.read_text() == before
    assert not list(tmp_path.glob("*.partial"))


def test_recipe_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = tmp_path / "best.yaml"
    best.write_text(HEADING)

    def refused(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    check_write(best, [])
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(StorageError, match=r"best.yaml: permission denied"):
        check_write(best, [])


def test_level_of_the_volume_says_what_it_is_from(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (4, 64, 64))
    part = choose(run_config(volume, region="z=0:2"))
    assert (part.judged[0].pooled, part.judged[0].slices) == (2, 4)
    assert any("from 2 of its 4 slices" in sentence for sentence in part.sentences())
    assert not any("of its" in sentence for sentence in choose(run_config(volume)).sentences())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", ""], "--methods: got nothing, expected one of isodata, li, "),
        (["--scopes", " ,"], "--scopes: got nothing, expected one of slice, smooth, tile, volume; or leave it out"),
        (["--methods", "otsu,yenn"], "--methods: got 'yenn', did you mean `yen`?"),
        (["--scopes", "tiles"], "--scopes: got 'tiles', did you mean `tile`?"),
        (["--by", "accuracy"], "--by: got 'accuracy', expected one of f1, mcc"),
        (["--denoise", "median:4"], "--denoise: got 'median:4', expected an odd size"),
        (["--denoise", "median:"], "--denoise: got 'median:', expected an odd size"),
        (["--denoise", "gauss"], "--denoise: got 'gauss', expected none, median"),
        (["--folds", "9"], "--folds: got 9 for 2 annotated slices"),
        (["--folds", "1"], "--folds: got 1 for 2 annotated slices, expected 2 or more"),
        (["--write", "missing/best.yaml"], "missing/best.yaml: the folder missing does not exist"),
        (["--write", "."], "--write: got ., expected a file that ends in .yaml or .yml"),
        (["--write", "best"], "--write: got best, expected a file that ends in .yaml or .yml"),
        (["--write", f"{'b' * 300}.yaml"], "b.yaml: cannot be written"),
        (["--write", "mine.yaml"], "--write: mine.yaml is there, and not from `kesm compare`"),
        (["--csv", "--json"], "--csv: not with --json; leave one of them out"),
        (["--recipe", "brain.zarr"], "--recipe: got brain.zarr, expected a configuration file"),
        (["--recipe", "none.yaml"], "none.yaml: no such configuration file"),
        (["--methods", "niblak"], "--methods: got 'niblak', did you mean `niblack`?"),
        (["--scopes", "smoth"], "--scopes: got 'smoth', did you mean `smooth`?"),
        (["--region", "y=0:32"], "--region: slices are compared whole"),
        (["--region", "z=1:2"], "has no annotated slice in"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    volume = build_volume(tmp_path / "brain.zarr", (4, 64, 64))
    Path("mine.yaml").write_text("tile: 64\n")
    assert message in kesm("compare", volume.path, "--truth", "groundtruth", *words).message


def test_comparison_needs_a_truth(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 64, 64))
    with pytest.raises(ConfigError, match="add --truth NAME"):
        choose(run_config(volume, truth=None))


def test_only_truth_is_chosen_and_several_are_named(tmp_path: Path) -> None:
    assert "no such volume" in kesm("compare", tmp_path / "none.zarr").message
    bare = Volume.create(tmp_path / "bare.zarr", (1, 64, 64), "uint8")
    message = kesm("compare", bare.path).message
    assert message.startswith(f"{bare.path}: has no truth; bring one in with `kesm ingest FILES --volume {bare.path} ")
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    answer = kesm("compare", volume.path, "--methods", "otsu", "--json")
    assert check_document("compare", answer.document)["truth"] == "groundtruth"
    volume.create_truth("other", MAPPING)
    volume.publish_label("other")
    message = kesm("compare", volume.path).message
    assert message == f"{volume.path}: has the truths groundtruth, other; choose one with --truth"


def test_rows_as_csv(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (4, 64, 64))
    words = ("compare", volume.path, "--truth", "groundtruth", "--methods", "otsu")
    lines = kesm(*words, "--csv").out.splitlines()
    assert lines[0].startswith("rank,method,scope,denoise,accuracy,f1,mcc,")
    for row, other in zip(csv.DictReader(lines), kesm(*words, "--json").document["rows"], strict=True):
        assert row == {key: "" if value is None else str(value) for key, value in other.items()}


def test_ranking_is_shown_to_people(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (10, 64, 64))
    words = ("--truth", "groundtruth", "--methods", "otsu,yen", "--scopes", "tile,volume", "--by", "f1")
    answer = kesm("compare", volume.path, *words)
    assert answer.code == 0
    assert answer.out.startswith("5 annotated slices, by F1")
    for text in ("otsu", "yen", "median:3", "F1, 95 %", "the best level for all", "best: F1", "5 folds", "under ROC"):
        assert text in answer.out
    document = check_document("compare", kesm("compare", volume.path, *words, "--json").document)
    for metric in ("f1", "mcc"):
        low, score, high = (document["rows"][0][key] for key in (f"{metric}_low", metric, f"{metric}_high"))
        assert low < score < high
    assert document["ceiling"]["f1"] > document["best"]["f1"]
    assert document["held_out"]["folds"] == 5


@pytest.mark.parametrize("text", ["none", "median:3", "median:5", "median:3,3,3", "gaussian:1", "gaussian:1.2345678"])
def test_filters_have_names(text: str) -> None:
    assert name_of(parse_denoise(text)) == text


def test_recipes_of_files_are_judged_beside_each_other(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (4, 64, 64))
    clean = {"clean": {"opening": 1}, "threshold": {"method": "yen", "scope": "slice"}}
    files = [
        write_yaml(tmp_path / "opened.yaml", volume="other.zarr", name="mine", truth="nobody", **clean),
        write_yaml(tmp_path / "local.yaml", volume="other.zarr", threshold={"method": "sauvola", "size": 15}),
        write_yaml(tmp_path / "small.yaml", volume="other.zarr", tile=16, foreground="bright"),
    ]
    choice = choose(run_config(volume), methods="otsu", scopes="tile", recipes=files)
    expected = {
        ("otsu", "tile"): mcc_of(run_config(volume, "a")),
        ("opened", "recipe"): mcc_of(run_config(volume, "b", **clean)),
        ("local", "recipe"): mcc_of(run_config(volume, "c", threshold={"method": "sauvola", "size": 15})),
        ("small", "recipe"): mcc_of(run_config(volume, "d", tile=16, foreground="bright")),
    }
    assert rows(choice) == expected
    # the methods are judged by the tables that the local recipe has left, and cost no run
    assert sorted(set(run_names(volume)) - {*"abcd"}) == ["local", "mine", "small"]
    assert choice.judged[0].run == "local"
    assert rows(choose(run_config(volume), methods="otsu", scopes="tile", recipes=files)) == expected
    assert sorted(set(run_names(volume)) - {*"abcd"}) == ["local", "mine", "small"]


def test_smooth_and_local_methods_are_run_by_name(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 96))
    config = run_config(volume, tile=32)
    found = rows(choose(config, "none", methods="otsu li niblack", scopes="tile smooth"))
    assert set(found) == {
        ("otsu", "tile"), ("li", "tile"), ("otsu", "smooth"), ("li", "smooth"), ("niblack", "voxel"),
    }  # fmt: skip
    for (method, scope), mcc in found.items():
        values = {"method": method} if scope == "voxel" else {"method": method, "scope": scope}
        own = run_config(volume, f"own-{method}-{scope}", tile=32, denoise={"method": "none"}, threshold=values)
        assert mcc == mcc_of(own)


def test_winning_recipe_is_written_so_that_it_runs_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = build_volume(tmp_path / "data" / "brain.zarr", (4, 64, 64))
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    # of the candidates only this one can be right: it marks what the truth has
    write_yaml(Path("inverse.yaml"), volume="-", foreground="bright", denoise={"method": "none"})
    write_yaml(Path("config.yaml"), volume="data/brain.zarr", truth="groundtruth")
    words = ("config.yaml", "--methods", "mean", "--recipe", "inverse.yaml", "--by", "f1", "--write", "out/best.yaml")
    document = check_document("compare", kesm("compare", *words, "--json").document)
    assert (document["best"]["scope"], document["best"]["name"]) == ("recipe", "inverse")
    monkeypatch.chdir(tmp_path / "out")
    again = kesm("run", "best.yaml", "--json").document
    assert (again["scores"], again["counts"]) == (
        document["best"]["rerun"]["scores"],
        document["best"]["rerun"]["counts"],
    )
    assert again["scores"]["f1"] == document["best"]["f1"]
    assert again["tiles"]["reused"] == again["tiles"]["total"]
    assert Path(yaml.safe_load(Path("best.yaml").read_text())["volume"]) == volume.path.resolve()


def test_model_of_the_best_is_found_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    choice = choose(run_config(volume), methods="otsu")
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    best = run_config(volume, "trees", segmenter={"kind": "classifier", "model": "vessels.skops"})
    for place in (tmp_path / "best.yaml", tmp_path / "models" / "best.yaml", tmp_path / "brain.zarr.d" / "best.yaml"):
        place.parent.mkdir(exist_ok=True)
        write_recipe(dataclasses.replace(choice, best=best), place)
        monkeypatch.chdir(tmp_path)
        segmenter = load_config(place).segmenter
        assert os.path.normpath(segmenter.model) == str(tmp_path / "models" / "vessels.skops")  # type: ignore[union-attr]
        monkeypatch.chdir(tmp_path / "models")


@pytest.mark.parametrize("by", ["mcc", "f1"])
def test_best_of_16_bit_is_run_for_its_score(tmp_path: Path, by: str) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (4, 64, 64), "uint16")
    choice = choose(run_config(volume), methods="otsu yen", by=by)
    document = check_document("compare", choice.document())
    made = run(choice.best.model_copy(update={"name": "again"}))
    assert made.counts is not None
    assert document["best"]["rerun"] == {
        "ran": True, "problem": None, "counts": dataclasses.asdict(made.counts),
        "scores": dataclasses.asdict(made.scores),  # type: ignore[call-overload]
    }  # fmt: skip
    assert made.counts != choice.ranking.places[0].counts  # by tables of 256 bins
    assert any(sentence.startswith(f"As it runs, it has {by.upper()} ") for sentence in choice.sentences())
    assert document["binned"]


def test_level_of_a_part_of_the_volume_is_found_anew_for_the_best(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (6, 64, 64))
    choice = choose(run_config(volume, region="z=0:2"), methods="otsu", scopes="volume")
    whole = run(run_config(volume, "whole", threshold={"scope": "volume"}))
    part = run(run_config(volume, "whole", threshold={"scope": "volume"}, region="z=0:2"))
    assert whole.levels is not None
    assert RunTables(volume, choice.best.run_name).level == whole.levels[0]
    assert choice.rerun.ran
    assert choice.rerun.counts == part.counts
    assert check_document("compare", choice.document())["region"] == "z=0:2,y=0:64,x=0:64"


def test_fixed_level_is_a_candidate(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    config = run_config(volume, "fixed", threshold={"method": "fixed", "level": 60})
    choice = choose(config, methods="otsu", scopes="tile")
    assert rows(choice)["fixed", "recipe"] == mcc_of(config)
    assert run_names(volume) == ["fixed"]  # whose tables judge the others, too


def test_run_of_another_recipe_does_not_stand_in_the_way(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    run(run_config(volume, denoise={"method": "none"}))
    assert choose(run_config(volume), methods="otsu").judged[0].run == "otsu-2"
    assert choose(run_config(volume), methods="otsu").judged[0].run == "otsu-2"


def test_rows_within_a_valid_area_are_what_their_runs_give(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    padding = int(volume.image.full.read(Box((0, 5, 5), (1, 6, 6)))[0, 0, 0])
    config = run_config(volume, tile=32, valid={"padding": padding})
    for (method, scope), mcc in rows(choose(config, methods="otsu li")).items():
        own = {"name": f"{method}-{scope}", "threshold": {"method": method, "scope": scope}}
        assert mcc == mcc_of(run_config(volume, own["name"], tile=32, valid=config.valid, threshold=own["threshold"]))
    other = write_yaml(tmp_path / "other.yaml", volume="-")
    with pytest.raises(ConfigError, match=r"--recipe: .*other.yaml: its valid area is not that of the configuration"):
        choose(config, recipes=[other])


def test_recipe_that_fails_everywhere_is_left_out(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (4, 64, 64))
    failing = write_yaml(tmp_path / "failing.yaml", volume="-", segmenter={"target": f"{__name__}:broken"})
    words = ("--truth", "groundtruth", "--methods", "otsu", "--scopes", "tile", "--recipe", failing, "--json")
    answer = kesm("compare", volume.path, *words)
    assert answer.code == 3
    document = check_document("compare", answer.document)
    assert {row["method"] for row in document["rows"]} == {"otsu"}
    assert any(said.startswith("Run failing is left out") and "out of ink" in said for said in document["sentences"])
    assert document["best"]["mcc"] == mcc_of(run_config(volume))


def test_nothing_is_compared_where_nothing_is_done(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    config = run_config(volume, denoise={"method": "python", "target": f"{__name__}:broken"})
    with pytest.raises(
        ConfigError, match=r"no annotated tile could be done, so nothing is compared: otsu: .*out of ink"
    ):
        choose(config)


def test_lost_histograms_are_no_ranking_and_are_made_again(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (4, 64, 64))
    before = kesm("compare", volume.path, "--json").document["rows"]
    lost = volume.path / "tiles/otsu/truth/groundtruth/histogram/c/2"
    (chunk,) = (file for file in lost.rglob("*") if file.is_file())
    chunk.write_bytes(b"no chunk")
    answer = kesm("compare", volume.path)
    assert answer.code == 2
    assert "histogram: chunk c/2/" in answer.message
    assert answer.message.endswith("; `kesm verify` marks what is damaged, and the next `kesm run` makes it again")
    kesm("verify", volume.path)
    assert kesm("compare", volume.path, "--json").document["rows"] == before


def test_all_are_judged_on_the_tiles_that_all_have_done(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (8, 64, 64))
    files = [write_yaml(tmp_path / "moody.yaml", volume="-", segmenter={"target": f"{__name__}:moody"})]
    choice = choose(run_config(volume), methods="otsu", scopes="tile volume", recipes=files)
    whole = {scope: run(run_config(volume, scope, threshold={"scope": scope})) for scope in ("tile", "volume")}
    done = RunTables(volume, "moody").status.read()[:, 0, 0] == Status.DONE
    assert 0 < done.sum() < 8
    assert done[::2].any()  # of the annotated slices
    for place in choice.ranking.places:
        name = place.candidate.scope if place.candidate.scope != "recipe" else "moody"
        counts = RunTables(volume, name).truth("groundtruth").counts.read()[done].sum(axis=(0, 1, 2))
        assert dataclasses.astuple(place.counts) == tuple(counts.tolist()), place.candidate
    assert choice.partial
    # the best is run again, on all tiles
    assert choice.best.run_name != "moody"
    assert choice.rerun.counts == whole[choice.ranking.places[0].candidate.scope].counts


def test_flagged_tiles_count_for_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    traces = [rng.choice(np.array([0, 255], np.uint8), (128, 128)) for _ in range(2)]
    volume = traced_volume(tmp_path / "brain.zarr", traces, white=Box((0, 32, 32), (1, 64, 64)))
    config = run_config(volume, tile=32, exclude_flagged=True)
    choice = choose(config, methods="otsu yen")
    flagged = run(config).excluded
    assert flagged is not None
    assert flagged.tiles > 0
    assert check_document("compare", choice.document())["excluded"] == {"otsu": flagged.tiles}
    assert any(f"flagged, and count for none: {flagged.tiles} of otsu" in said for said in choice.sentences())
    for place in choice.ranking.places:
        method, scope = place.candidate.method, place.candidate.scope
        own = {"name": f"{method}-{scope}", "threshold": {"method": method, "scope": scope}}
        made = run(run_config(volume, tile=32, exclude_flagged=True, **own))
        assert made.counts == place.counts
        assert made.annotated == 2 * 128 * 128 - flagged.voxels
    best = tmp_path / "best.yaml"
    write_recipe(choice, best)
    assert run(load_config(best)).counts == choice.rerun.counts == choice.ranking.places[0].counts


@pytest.mark.parametrize(
    ("value", "message"),
    [(0, "The truth has no vessel here"), (TRUTH_VESSEL, "The truth has no background here")],
    ids=["background", "vessel"],
)
def test_truth_of_one_kind_proves_little(tmp_path: Path, value: int, message: str) -> None:
    volume = traced_volume(tmp_path / "brain.zarr", [np.full((48, 48), value, np.uint8)] * 2)
    choice = choose(run_config(volume), methods="otsu yen")
    document = check_document("compare", choice.document())
    assert document["curves"][0]["roc_auc"] is None
    assert any(sentence.startswith(message) for sentence in document["sentences"])


def test_truth_that_annotates_nothing_is_refused(tmp_path: Path) -> None:
    volume = traced_volume(tmp_path / "brain.zarr", [np.full((48, 48), 127, np.uint8)] * 2)
    assert "truth: got no annotated voxel" in kesm("compare", volume.path, "--truth", "groundtruth").message


def test_names_of_recipes_are_not_used_twice(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    (tmp_path / "more").mkdir()
    one, other = (write_yaml(tmp_path / place, volume="-") for place in ("a.yaml", "more/a.yml"))
    with pytest.raises(ConfigError, match="'a' is the name of two rows, of a file and of another --recipe"):
        choose(run_config(volume), recipes=[one, other])
    with pytest.raises(ConfigError, match="'a' is the name of two rows, of a file and of --name"):
        choose(run_config(volume, "a", clean={"opening": 1}), recipes=[one])
    with pytest.raises(ConfigError, match=r"--recipe: .*got 'b c', a name starts with"):
        choose(run_config(volume), recipes=[write_yaml(tmp_path / "b c.yaml", volume="-")])
    unknown = write_yaml(tmp_path / "d.yaml", volume="-", threshold={"methd": "otsu"})
    with pytest.raises(ConfigError, match=r"d.yaml:2: threshold.methd: unknown key; did you mean `method`"):
        choose(run_config(volume), recipes=[unknown])


def test_what_is_compared_is_not_overwritten(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    recipe = write_yaml(tmp_path / "a.yaml", volume="brain.zarr", truth="groundtruth")
    for words in ([recipe, "--write", recipe], [volume.path, "--recipe", recipe, "--write", recipe]):
        assert "which is compared; write the best to another file" in kesm("compare", *words).message
    assert yaml.safe_load(recipe.read_text()) == {"volume": "brain.zarr", "truth": "groundtruth"}


def test_run_of_a_candidate_has_a_name_that_fits(tmp_path: Path) -> None:
    target = f"module.{'x' * 120}:smooth"
    config = RunConfig(volume="v", denoise={"method": "python", "target": target})
    candidate = Candidate("otsu", "tile", name_of(config.denoise))
    assert RunConfig.model_validate(configured(config, candidate, config.denoise).model_dump(by_alias=True)).name
