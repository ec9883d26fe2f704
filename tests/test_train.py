"""Training on stored volumes: what is held out is not learned from, and its scores are those of the masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import ndimage

from pipeline.errors import ConfigError, DamageError
from pipeline.kernels.confusion import Counts
from pipeline.methods import train as module
from pipeline.methods.train import Lesson, Trained, make_lesson, train
from pipeline.phantom import Phantom
from pipeline.segmentation.classifier import file_digest, load_classifier
from pipeline.segmentation.engine import ThreadRunner
from pipeline.segmentation.runs import run
from pipeline.settings.config import RunConfig
from pipeline.settings.configfile import load_config
from pipeline.storage.volume import Volume
from tests.builders import MAPPING, run_config
from tests.command import kesm
from tests.contract import check_document

SHAPE = (6, 200, 260)
ANNOTATED = (0, 2, 4)  # of these the last is held out
Draw = Callable[[int], np.ndarray | None]


def traced(z: int) -> np.ndarray | None:
    return Phantom(SHAPE, seed=3).partial_truth(z)


def build(path: Path, truth: Draw = traced, dtype: str = "uint8") -> Volume:
    """Volume of a phantom; of its truth what ``truth`` gives."""
    phantom = Phantom(SHAPE, 3, dtype)  # type: ignore[arg-type]
    volume = Volume.create(path, SHAPE, dtype)
    volume.staging.mkdir()
    label, ledger = volume.create_truth("groundtruth", MAPPING)
    for z in range(SHAPE[0]):
        image, drawn = phantom.slice(z)[0], truth(z)
        volume.slices.record(z, volume.image.write_slice(z, image, volume.staging), f"{z}.png", 0)
        if drawn is not None:
            ledger.record(z, label.write_slice(z, drawn, volume.staging), f"{z}.png", 0)
    volume.publish_label("groundtruth")
    volume.staging.rmdir()
    return volume


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return build(tmp_path_factory.mktemp("brain") / "brain.zarr")


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLES", 1500)


def teach(volume: Volume, out: Path, threads: int = 1, **options: object) -> Trained:
    config = run_config(volume, **{"tile": 128, **options})
    return train(config, Lesson(out), ThreadRunner(threads), threads)


def held_counts(trained: Trained, which: str = "held_out") -> Counts:
    found = trained.classifier.training[which]
    return Counts(**found["counts"])


def test_held_out_scores_are_those_of_the_mask(brain: Volume, tmp_path: Path) -> None:
    trained = teach(brain, tmp_path / "m.skops")
    grey, truth = Phantom(SHAPE, 3).slice(4)[0], traced(4)
    assert truth is not None
    plane = 255 - ndimage.median_filter(grey, 3, mode="reflect")
    counts = Counts.from_images(truth, trained.classifier.predict(plane))
    assert held_counts(trained) == counts
    otsu = run(run_config(brain, "otsu", tile=128, region="z=4:5"))
    assert held_counts(trained, "otsu") == otsu.counts
    held = trained.classifier.training["held_out"]
    assert held["what"] == "slices"
    assert held["scores"]["f1"] > 0.85
    assert held["scores"]["mcc"] > trained.classifier.training["otsu"]["scores"]["mcc"]


def test_what_is_held_out_is_not_learned_from(brain: Volume, tmp_path: Path) -> None:
    def lie(z: int) -> np.ndarray | None:
        truth = traced(z)
        return truth if truth is None or z < 4 else np.where(truth == 127, truth, 255 - truth)

    right = teach(brain, tmp_path / "right.skops")
    wrong = teach(build(tmp_path / "lie.zarr", lie), tmp_path / "wrong.skops")
    np.testing.assert_array_equal(right.classifier.trees.threshold, wrong.classifier.trees.threshold)
    one, other = held_counts(right), held_counts(wrong)
    assert (other.tp, other.fn, other.fp, other.tn) == (one.fp, one.tn, one.tp, one.fn)


def test_seed_decides_and_threads_do_not(brain: Volume, tmp_path: Path) -> None:
    first, second = teach(brain, tmp_path / "1.skops"), teach(brain, tmp_path / "2.skops", threads=3)
    np.testing.assert_array_equal(first.classifier.trees.value, second.classifier.trees.value)
    assert first.classifier.training == second.classifier.training
    other = train(run_config(brain, tile=128), Lesson(tmp_path / "3.skops", seed=1), ThreadRunner(1))
    assert not np.array_equal(first.classifier.trees.value, other.classifier.trees.value)


def only(slices: tuple[int, ...], part: tuple[slice, slice] = (slice(None), slice(None))) -> Draw:
    """A truth of some slices, and there of a part."""

    def draw(z: int) -> np.ndarray | None:
        if z not in slices:
            return None
        truth = np.full(SHAPE[1:], 127, np.uint8)
        truth[part] = Phantom(SHAPE, 3).truth(z)[part]
        return truth

    return draw


@pytest.mark.parametrize(
    ("truth", "what", "tiles", "held"),
    [
        (only((0, 1, 2, 3)), "slices", 18, 6),
        (only((0, 5)), "slices", 6, 6),
        (only((3,)), "tiles", 5, 1),
        (only((3,), (slice(0, 128), slice(0, 256))), "tiles", 1, 1),
        (only((3,), (slice(0, 120), slice(0, 120))), "rows", 3, 1),
    ],
    ids=["quarter", "two slices", "one slice", "two tiles", "one tile"],
)
def test_last_quarter_is_held_out(tmp_path: Path, truth: Draw, what: str, tiles: int, held: int) -> None:
    trained = teach(build(tmp_path / "brain.zarr", truth), tmp_path / "m.skops")
    found = trained.classifier.training
    assert (found["held_out"]["what"], found["tiles"], found["held_out"]["tiles"]) == (what, tiles, held)
    assert held_counts(trained).total == held_counts(trained, "otsu").total > 0


def test_some_tiles_stand_for_all(brain: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILES", 4)
    found = teach(brain, tmp_path / "m.skops").classifier.training
    assert (found["tiles"], found["held_out"]["tiles"]) == (4, 4)
    monkeypatch.setattr(module, "SHARDS", 2)  # of three slices of one shard
    assert teach(brain, tmp_path / "n.skops").classifier.training["held_out"]["what"] == "slices"


def test_places_with_vessels_are_chosen_first() -> None:
    boxes = [module.Box((0, 0, x), (1, 1, x + 1)) for x in range(1000)]
    places = [module.Place(box, 5, int(number in {3, 700})) for number, box in enumerate(boxes)]
    chosen = module._choose(places, np.random.default_rng(0))
    assert [place.weight for place in chosen if place.vessel] == [1, 1]
    assert len(chosen) == 2 + module.TILES // 4
    assert sum(place.weight for place in chosen) == pytest.approx(1000)
    assert [place.box.start for place in chosen] == sorted(place.box.start for place in chosen)


@pytest.mark.parametrize(
    "options",
    [
        {"denoise": {"method": "none"}, "foreground": "bright"},
        {"denoise": {"method": "median", "size": [3, 3, 3]}, "region": "z=0:3,y=0:128"},
        {"correct": {"flat_field": 64}},
        {"correct": {"clahe": 0.01}, "tile": 64},
    ],
    ids=["bright", "volumetric", "corrected", "equalised"],
)
def test_file_says_what_it_was_trained_on(brain: Volume, tmp_path: Path, options: dict[str, object]) -> None:
    trained = teach(brain, tmp_path / "m.skops", **options)
    loaded, recipe = load_classifier(tmp_path / "m.skops", trained.digest), trained.config.recipe.document()
    assert loaded.training == trained.classifier.training
    keys = {"foreground", "correct", "denoise"} | (options.keys() & {"tile"})
    assert loaded.image == {"dtype": "uint8"} | {key: recipe.get(key) for key in keys}
    assert trained.settings().keys() - {"segmenter"} == options.keys() - {"region"}
    applied = RunConfig.model_validate({"volume": brain.path, "tile": 128, **trained.settings()})
    assert applied.recipe.document()["segmenter"]["model"] == str(tmp_path / "m.skops")


def test_16_bits(tmp_path: Path) -> None:
    volume = build(tmp_path / "brain.zarr", dtype="uint16")
    trained = teach(volume, tmp_path / "m.skops")
    assert trained.classifier.image["dtype"] == "uint16"
    assert trained.classifier.training["held_out"]["scores"]["f1"] > 0.85
    otsu = run(run_config(volume, "otsu", tile=128, region="z=4:5"))
    assert held_counts(trained, "otsu") == otsu.counts


def test_invalid_voxels_are_left_out(brain: Volume, tmp_path: Path) -> None:
    padding = int(np.bincount(Phantom(SHAPE, 3).slice(4)[0].ravel()).argmax())
    whole = teach(brain, tmp_path / "whole.skops")
    part = teach(brain, tmp_path / "part.skops", valid={"padding": padding})
    invalid = (Phantom(SHAPE, 3).slice(4)[0] == padding) & (traced(4) != 127)
    assert held_counts(whole).total - held_counts(part).total == np.count_nonzero(invalid) > 0


# the command


def test_command_writes_a_model_and_says_how_to_use_it(brain: Volume, tmp_path: Path) -> None:
    out = tmp_path / "vessels.skops"
    words = ("train", brain.path, "--truth", "groundtruth", "--set", "tile=128", "--out", out)
    document = check_document("train", kesm(*words, "--json").document)
    assert document["digest"] == file_digest(out)
    assert document["held_out"]["scores"]["f1"] > 0.85
    again = kesm(*words, "--replace", "--kind", "boosting", "--set", "denoise.method=none")
    assert again.code == 0
    lines = again.out.splitlines()
    assert lines[0].startswith("learned from ")
    assert lines[1].startswith("held out slices: ")
    assert [line.split()[0] for line in lines[2:5]] == ["F1", "boosting", "otsu"]
    config = yaml.safe_load(again.out.partition("configuration:\n")[2])
    assert config == {"denoise": {"method": "none"}, "segmenter": {"kind": "classifier", "model": str(out)}}


def test_configuration_may_name_the_model(brain: Volume, tmp_path: Path) -> None:
    config = tmp_path / "brain.yaml"
    text = {"volume": str(brain.path), "truth": "groundtruth", "tile": 128}
    config.write_text(yaml.safe_dump(text | {"segmenter": {"kind": "classifier", "model": "mine.skops"}}))
    assert kesm("train", config).code == 0
    assert (tmp_path / "mine.skops").is_file()
    assert "exists already; overwrite it with --replace" in kesm("train", config).message
    assert kesm("plan", config).code == 0
    other = kesm("plan", config, "--set", "segmenter.digest=abc")
    assert (other.code, other.message.startswith("segmenter.digest: got abc, but ")) == (2, True)


def test_example_trains_the_model_that_it_applies() -> None:
    folder = Path(__file__).parents[1] / "configs"
    lesson = make_lesson(load_config(folder / "classifier.yaml"), None, "forest", 0, replace=False)
    assert lesson.out.resolve() == folder.parent / "vessels.skops"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--truth", "mine"], "has no label 'mine'"),
        (["--truth", "groundtruth", "--region", "z=1:2"], "annotates nothing in z=1:2"),
        (["--truth", "groundtruth", "--kind", "forrest"], "--kind: got 'forrest', did you mean `forest`?"),
        (["--truth", "groundtruth", "--out", "gone/m.skops"], "gone/m.skops: the folder gone does not exist"),
        (["--out", "."], "--out: got ., expected a file that ends in .skops"),
        (["--out", "model.pkl"], "--out: got model.pkl, expected a file that ends in .skops"),
        (["--out", "model"], "--out: got model, expected a file that ends in .skops"),
    ],
    ids=["other truth", "no annotation", "kind", "no folder", "folder", "other ending", "no ending"],
)
def test_what_cannot_be_trained_is_refused(brain: Volume, tmp_path: Path, words: list[str], message: str) -> None:
    out = [] if "--out" in words else ["--out", tmp_path / "m.skops"]
    assert message in kesm("train", brain.path, *words, *out).message
    assert not list(tmp_path.glob("*.skops"))


def test_command_needs_a_file(brain: Volume) -> None:
    assert "--out: got none" in kesm("train", brain.path, "--truth", "groundtruth").message


def test_existing_file_is_kept(brain: Volume, tmp_path: Path) -> None:
    out = tmp_path / "m.skops"
    out.write_text("mine")
    message = kesm("train", brain.path, "--truth", "groundtruth", "--out", out).message
    assert message == f"{out}: exists already; overwrite it with --replace, or choose another --out"
    assert out.read_text() == "mine"
    assert make_lesson(run_config(brain), out, "forest", 0, replace=True).replace


@pytest.mark.parametrize(("value", "vessel"), [(0, False), (255, True)])
def test_one_class_is_too_little(tmp_path: Path, value: int, vessel: bool) -> None:
    volume = build(tmp_path / "brain.zarr", lambda z: np.full(SHAPE[1:], value, np.uint8) if z in ANNOTATED else None)
    with pytest.raises(ConfigError, match=r"voxels of vessels and .* held out; annotate at least 20 of each") as error:
        teach(volume, tmp_path / "m.skops")
    assert f"'groundtruth' has {104_000 * vessel:,} voxels of vessels" in str(error.value)


def test_one_voxel_is_too_little(tmp_path: Path) -> None:
    volume = build(tmp_path / "brain.zarr", only((3,), (slice(7, 8), slice(9, 10))))
    with pytest.raises(ConfigError, match="of which nothing can be held out; annotate more"):
        teach(volume, tmp_path / "m.skops")


def test_damaged_image_is_not_learned_from(tmp_path: Path) -> None:
    volume = build(tmp_path / "brain.zarr")
    volume.image.full.shard_file((2, 0, 0)).write_bytes(b"damaged")
    with pytest.raises(DamageError, match="slice 2 cannot be read"):
        teach(volume, tmp_path / "m.skops")
    assert not (tmp_path / "m.skops").exists()
