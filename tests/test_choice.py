"""Choosing the method on stored volumes: what a comparison says is what a run of each recipe gives."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import yaml
from skimage.io import imread

from pipeline.choice import METHODS, SCOPES, Choice, compare, name_of, parse_contest, parse_denoise
from pipeline.config import RunConfig
from pipeline.configfile import load_config
from pipeline.errors import ConfigError
from pipeline.execute import ignore
from pipeline.runs import run
from pipeline.tables import run_names
from pipeline.volume import Volume
from tests.builders import MAPPING, build_volume, run_config
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


def choose(config: RunConfig, *denoise: str, **options: str) -> Choice:
    methods, scopes = options.get("methods", "").split(), options.get("scopes", "").split()
    return compare(config, parse_contest(config, methods, scopes, denoise, options.get("by", "mcc"), None), watch)


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
    assert document["rows"][0]["mcc_low"] is None
    assert "flattered" in document["sentences"][-1]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return build_volume(tmp_path_factory.mktemp("volume") / "brain.zarr", (8, 600, 700))  # four slices are annotated


def test_every_row_is_what_its_run_gives(volume: Volume) -> None:
    config = run_config(volume)
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
    volume = build_volume(tmp_path / "brain.zarr", (3, 600, 700))
    config = run_config(volume, "mine", threshold={"scope": "smooth"}, clean={"opening": 1})
    choice = choose(config, methods="otsu yen", scopes="tile slice")
    check_document("compare", choice.document())
    rows = {(row["method"], row["scope"]): row["mcc"] for row in choice.document()["rows"]}
    assert len(rows) == 5
    for method, scope in [("otsu", "tile"), ("yen", "slice")]:
        scores = run(run_config(volume, f"{method}-{scope}", threshold={"method": method, "scope": scope})).scores
        assert scores is not None
        assert rows[method, scope] == scores.mcc
    own = run(config)
    assert own.scores is not None
    assert (rows["mine", "recipe"], own.tiles.reused) == (own.scores.mcc, own.tiles.total)
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
    assert document["best"] == document["rows"][0] | {"recipe": document["best"]["recipe"]}
    config = load_config(best)
    assert config.volume == volume.path
    assert config.recipe.document() == document["best"]["recipe"]
    again = kesm("run", best, "--json").document
    assert again["scores"]["mcc"] == document["best"]["mcc"]
    assert yaml.safe_load(best.read_text())["truth"] == "groundtruth"


def test_level_of_the_volume_says_what_it_is_from(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (4, 64, 64))
    part = choose(run_config(volume, region="z=0:2"))
    assert (part.judged[0].pooled, part.judged[0].slices) == (2, 4)
    assert any("from 2 of its 4 slices" in sentence for sentence in part.sentences())
    assert not any("of its" in sentence for sentence in choose(run_config(volume)).sentences())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "otsu,yenn"], "--methods: got 'yenn', did you mean `yen`?"),
        (["--scopes", "tiles"], "--scopes: got 'tiles', did you mean `tile`?"),
        (["--by", "accuracy"], "--by: got 'accuracy', expected one of f1, mcc"),
        (["--denoise", "median:4"], "--denoise: got 'median:4', expected an odd size"),
        (["--denoise", "median:"], "--denoise: got 'median:', expected an odd size"),
        (["--denoise", "gauss"], "--denoise: got 'gauss', expected none, median"),
        (["--folds", "9"], "--folds: got 9 for 2 annotated slices"),
        (["--folds", "1"], "--folds: got 1 for 2 annotated slices, expected 2 or more"),
        (["--write", "missing/best.yaml"], "--write: got missing/best.yaml, expected a file in a folder"),
        (["--write", "."], "--write: got ., expected a file in a folder"),
        (["--region", "y=0:32"], "--region: slices are compared whole"),
        (["--region", "z=1:2"], "has no annotated slice in"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (4, 64, 64))
    assert message in kesm("compare", volume.path, "--truth", "groundtruth", *words).message


def test_comparison_needs_a_truth(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 64, 64))
    with pytest.raises(ConfigError, match="add --truth NAME"):
        choose(run_config(volume, truth=None))


def test_rows_as_csv(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (4, 64, 64))
    lines = kesm("compare", volume.path, "--truth", "groundtruth", "--methods", "otsu", "--csv").out.splitlines()
    assert lines[0].startswith("method,scope,denoise,accuracy,f1,mcc,")
    assert len(lines) == 4


def test_ranking_is_shown_to_people(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (10, 64, 64))
    words = ("--truth", "groundtruth", "--methods", "otsu,yen", "--scopes", "tile,volume", "--by", "f1")
    answer = kesm("compare", volume.path, *words)
    assert answer.code == 0
    assert answer.out.startswith("5 annotated slices, by F1")
    for text in ("otsu", "yen", "median:3", "F1, 95 %", "the best level for all", "is best: F1", "5 folds"):
        assert text in answer.out
    document = check_document("compare", kesm("compare", volume.path, *words, "--json").document)
    assert document["rows"][0]["f1_low"] < document["rows"][0]["f1"] < document["rows"][0]["f1_high"]
    assert document["held_out"]["folds"] == 5


@pytest.mark.parametrize("text", ["none", "median:3", "median:5", "median:3,3,3"])
def test_filters_have_names(text: str) -> None:
    assert name_of(parse_denoise(text)) == text
