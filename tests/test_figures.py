"""Figures: what they read against voxels, what they draw against arithmetic, and their looks against small references.

``python -m tests.test_figures`` draws the references anew; look at every one of them before it is checked in.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy import ndimage
from sklearn import metrics

from pipeline import figures
from pipeline.errors import ConfigError, DamageError, MissingInputError, RegionError
from pipeline.figures import KINDS, Request, Style, canvas
from pipeline.figures.canvas import (
    FONT,
    Panel,
    Swatch,
    draw_pictures,
    format_of,
    length_text,
    round_length,
    save,
    text_width,
    wrapped,
)
from pipeline.figures.charts import draw_curves, draw_histogram
from pipeline.figures.exhibit import View, read_gallery, read_map, read_overlay, read_overview, read_profile
from pipeline.figures.pictures import draw_map, draw_overlay
from pipeline.figures.subject import Subject
from pipeline.figures.tryout import read_curves, read_distribution, read_trial
from pipeline.geometry import Box
from pipeline.kernels.bins import bin_tops
from pipeline.kernels.confusion import Counts, scores
from pipeline.kernels.histogram import joint_histogram
from pipeline.kernels.threshold import LEVEL_OF
from pipeline.phantom import Phantom
from pipeline.segmentation.runs import run
from pipeline.settings.config import RunConfig
from pipeline.storage.confusion_label import FN, FP, TP
from pipeline.storage.tables import RunTables, Status
from pipeline.storage.volume import Volume
from pipeline.views.excerpt import MOST_PIXELS, Excerpt, choose_level, read_excerpt, spans
from pipeline.views.overlay import PALETTES, PLAIN, TN, classify, overlay
from tests.builders import MAPPING, run_config
from tests.command import kesm
from tests.contract import check_document

REFERENCES = Path(__file__).parent / "reference"
TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"
SHAPE = (3, 600, 700)
SIDE = 256
STYLE = Style(dpi=50)
MOST_DIFFERENT = 3.0  # grey levels, root mean square: letters are drawn a little differently by another version


def phantom_volume(path: Path, shape: tuple[int, int, int] = SHAPE, dtype: str = "uint8") -> Volume:
    """Phantom with a truth of its even slices, a part of which nobody annotated."""
    phantom = Phantom(shape, seed=3, dtype=dtype)
    volume = Volume.create(path, shape, dtype, (1, 0.7, 0.6))
    volume.staging.mkdir()
    truth, ledger = volume.create_truth("groundtruth", MAPPING)
    for z in range(shape[0]):
        image, _ = phantom.slice(z)
        volume.slices.record(z, volume.image.write_slice(z, image, volume.staging), f"{z}.png", 0)
        traced = phantom.partial_truth(z)
        if traced is not None:
            ledger.record(z, truth.write_slice(z, traced, volume.staging), f"{z}.png", 0)
    volume.publish_label("groundtruth")
    volume.staging.rmdir()
    return volume


def small_volume(path: Path) -> Volume:
    """What the references show."""
    made = phantom_volume(path, (3, 150, 200))
    run(run_config(made, tile=64))
    return made


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return small_volume(tmp_path_factory.mktemp("small") / "brain.zarr")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Phantom with one run."""
    made = phantom_volume(tmp_path_factory.mktemp("figures") / "brain.zarr")
    run(run_config(made, tile=SIDE))
    return made


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """A volume of one slice without truth and runs."""
    made = Volume.create(tmp_path_factory.mktemp("bare") / "bare.zarr", (2, 90, 120), "uint8")
    made.staging.mkdir()
    image = Phantom((1, 90, 120)).slice(0)[0]
    made.slices.record(0, made.image.write_slice(0, image, made.staging), "0.png", 0)
    made.staging.rmdir()
    return made


@pytest.fixture
def mine(volume: Volume, tmp_path: Path) -> Volume:
    """A copy that a test may change."""
    shutil.copytree(volume.path, tmp_path / "mine.zarr")
    return Volume(tmp_path / "mine.zarr")


def add_truth(volume: Volume, name: str) -> None:
    """Truth of slice 0, all of which is vessel."""
    volume.staging.mkdir(exist_ok=True)
    truth, ledger = volume.create_truth(name, MAPPING)
    ledger.record(0, truth.write_slice(0, np.full(SHAPE[1:], 255, np.uint8), volume.staging), "0.png", 0)
    volume.publish_label(name)


def voxels(volume: Volume, label: str | None = None) -> np.ndarray:
    array = volume.image.full if label is None else volume.label(label).full
    return array.read(Box.whole(volume.shape))


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def drawn(figure, tmp_path: Path) -> np.ndarray:
    save(figure, tmp_path / "drawn.png")
    return pixels_of(tmp_path / "drawn.png")


def shown(axes) -> np.ndarray:
    """Pixels of a picture before they were enlarged, which must be all alike."""
    (image,) = axes.images
    large, (left, right, _, _) = np.asarray(image.get_array()), image.get_extent()
    zoom = round(large.shape[1] / (right - left))
    pixels = large[::zoom, ::zoom]
    np.testing.assert_array_equal(pixels.repeat(zoom, 0).repeat(zoom, 1), large)
    return pixels


REQUESTS = {"overview": Request(z=0), "try-all": Request(at=(2, 64, 0)), "map": Request(z=2, metric="f1")}


def reference(kind: str, volume: Volume) -> Figure:
    style = Style(PALETTES["colour-blind"], 0.4, 40) if kind == "worst" else Style(dpi=50)
    return figures.draw(kind, volume, REQUESTS.get(kind, Request()), style)


def halved(pixels: np.ndarray) -> Image.Image:
    """Half the size: letters are drawn a little differently by each version of matplotlib."""
    return Image.fromarray(pixels).reduce(2)


@pytest.mark.skipif(mpl.__version_info__ < (3, 11), reason="letters have other widths in older versions of matplotlib")
@pytest.mark.parametrize("kind", KINDS)
def test_looks_as_it_did(small, kind, tmp_path):
    found = np.asarray(halved(drawn(reference(kind, small), tmp_path)), float)
    expected = pixels_of(REFERENCES / f"{kind}.png")
    assert found.shape == expected.shape
    assert np.sqrt(((found - expected) ** 2).mean()) < MOST_DIFFERENT
    assert (REFERENCES / f"{kind}.png").stat().st_size < 30_000


# The example of the article: image and truth are one and the same picture of 0 and 1.
FLAT = "0 128 128  0 0 0  0 128 128  0 0 0  128 128 0  0 128 128  128 0 128  0 0 0  0 0 0"


@pytest.mark.parametrize("dpi", [40, 200, 333])
def test_every_pixel_of_an_overlay_is_the_formula_s(bare, dpi, tmp_path):
    truth = np.array([1, 0, 1, 0, 1, 1, 0, 0, 0], np.uint8).reshape(3, 3)
    mask = np.array([1, 0, 1, 0, 0, 1, 1, 0, 0], np.uint8).reshape(3, 3)
    excerpt = Excerpt(Box((0, 0, 0), (1, 3, 3)), 0, None, truth, truth * 255, mask * 255)
    figure = draw_overlay(View(Subject(bare, "otsu", "truth", excerpt.box), excerpt), Style(dpi=dpi))
    picture = figure.axes[0]
    for artist in (*picture.lines, *picture.texts):
        artist.remove()  # the scale bar
    found = drawn(figure, tmp_path)
    height, left = found.shape[0], picture.get_window_extent()
    zoom = round(left.width / 3)
    assert zoom > 20
    top = height - round(left.y1)
    square = found[top : top + 3 * zoom, round(left.x0) : round(left.x0) + 3 * zoom]
    expected = np.array([int(value) for value in FLAT.split()]).reshape(3, 3, 3).repeat(zoom, 0).repeat(zoom, 1)
    np.testing.assert_array_equal(square, expected)


def test_overlay_of_a_tile_has_every_voxel_once(volume, tmp_path):
    figure = figures.draw("overlay", volume, Request(at=(0, 300, 300)), Style(PALETTES["colour-blind"], 0.25, 100))
    box = np.s_[0, 256:512, 256:512]
    image, truth, mask = (voxels(volume, label)[box] for label in (None, "groundtruth", "otsu"))
    expected = overlay(image, truth, mask, 0.25, PALETTES["colour-blind"])
    np.testing.assert_array_equal(shown(figure.axes[0]), expected)
    assert figure.axes[0].get_window_extent().width == pytest.approx(256 * 2)


@given(st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)), st.integers(1, 8), st.integers(1, 4000))
def test_level_is_the_finest_that_fits(shape, levels, pixels):
    level = choose_level(shape, levels, pixels)
    sides = [-(-max(shape) // 2**number) for number in range(levels)]
    areas = [math.prod((length - 2) // 2**number + 2 for length in shape) for number in range(levels)]
    fits = [side <= pixels and area <= MOST_PIXELS for side, area in zip(sides, areas, strict=True)]
    assert fits[level] or level == levels - 1
    assert not any(fits[:level])


def test_every_resolution_shows_a_full_slice():
    assert choose_level((8026, 17480), 7, 11 * 1200) == 2  # level 1 has more pixels than a picture may have


def test_coarse_levels_are_read_and_no_other(mine):
    whole = Box.of_slice(2, SHAPE)
    image, truth, mask = (voxels(mine, label)[2] for label in (None, "groundtruth", "otsu"))
    for label in ("", "labels/groundtruth/", "labels/otsu/"):
        shutil.rmtree(mine.path / f"{label}0" / "c")  # a finer one would be read as fill
    found = read_excerpt(mine, whole, 350, truth="groundtruth", mask="otsu")
    assert (found.level, found.step, found.box) == (1, 2, whole)
    blocks = [plane.reshape(300, 2, 350, 2).swapaxes(1, 2).reshape(300, 350, 4) for plane in (image, truth, mask)]
    np.testing.assert_array_equal(found.image, (blocks[0].sum(axis=2, dtype=int) + 2) // 4)
    vessel = (blocks[1] == 255).any(axis=2)
    np.testing.assert_array_equal(found.truth, np.where(vessel, 255, blocks[1].min(axis=2)))
    np.testing.assert_array_equal(found.mask, blocks[2].max(axis=2))
    assert found.done.all()


def test_region_is_rounded_outward_to_pixels(volume):
    found = read_excerpt(volume, Box((0, 3, 101), (1, 8, 700)), 1, level=1)
    assert found.box == Box((0, 2, 100), (1, 8, 700))
    assert found.image.shape == (3, 300)


def test_tiles_without_a_mask_show_the_image(mine):
    shutil.rmtree(mine.path / "tiles")
    shutil.rmtree(mine.path / "runs")
    shutil.rmtree(mine.path / "labels" / "otsu")
    run(run_config(mine, tile=SIDE, region={"z": [0, 1]}, name="part"))
    view = read_overlay(mine, Request(name="part"), 1000)
    assert view.excerpt.box.start[0] == 0
    assert view.counts == Counts.from_images(voxels(mine, "groundtruth")[0], voxels(mine, "part")[0])
    with pytest.raises(MissingInputError, match=r"run 'part' has not done z=2:3.* yet"):
        read_overlay(mine, Request(name="part", z=2), 1000)
    tiles = mine.path / "tiles" / "part" / "status" / "c" / "0" / "0" / "0"
    assert tiles.is_file()
    half = replace(view.excerpt, done=np.arange(700) < np.full((600, 1), 350))
    known = half.known_truth()
    assert (known[:, 350:] == 127).all()
    np.testing.assert_array_equal(known[:, :350], view.excerpt.truth[:, :350])


def test_tables_and_voxels_give_an_overlay_the_same_counts(volume):
    fine, coarse = (read_overlay(volume, Request(z=0, level=level), 1000) for level in (0, 1))
    assert (fine.excerpt.level, coarse.excerpt.level) == (0, 1)
    assert fine.counts == coarse.counts is not None
    part = Box((0, 10, 0), (1, 500, 700))
    assert read_overlay(volume, Request(region=part, level=1), 1000).counts is None  # tiles say nothing of a part


@pytest.mark.parametrize(
    ("label", "way_out"),
    [("", "restore it from a copy"), ("labels/groundtruth", "restore it"), ("labels/otsu", "`kesm run` makes it")],
    ids=["image", "truth", "mask"],
)
def test_lost_shard_is_no_picture(mine, label, way_out, tmp_path):
    """It would be black, not annotated, or missed."""
    (mine.path / label / "0/c/2/0/0").unlink()
    for kind in ("overlay", "overview") if label == "" else ("overlay",):
        answer = kesm("figure", kind, mine.path, "--slice", "2", "--out", tmp_path / "f.png")
        assert answer.code == 2, answer
        assert re.search(rf"{label}/0: shard c/2/0/0 is missing; .*{way_out}", answer.message)
    assert not (tmp_path / "f.png").exists()


@pytest.mark.parametrize("label", ["groundtruth", "otsu", "otsu-confusion"])
def test_lost_shard_of_a_level_is_no_picture(mine, label):
    run(run_config(mine, tile=SIDE, confusion=True))
    shard = mine.path / "labels" / label / "1/c/2/0/0"
    shard.unlink()
    with pytest.raises(DamageError, match=rf"{label}/1: shard c/2/0/0 is missing; "):
        read_overlay(mine, Request(z=2, level=1), 1000)


def test_lost_shard_of_the_image_at_a_level_is_no_picture(tmp_path):
    wide = phantom_volume(tmp_path / "wide.zarr", (1, 64, 4200))
    for level in (2, 1):  # the finest that is lost is named
        (wide.path / f"{level}/c/0/0/0").unlink()
        with pytest.raises(DamageError, match=rf"wide.zarr/{level}: shard c/0/0/0 is missing; restore it from a copy"):
            read_overview(wide, Request(z=0, level=2), 1000)


def test_what_is_too_dark_for_a_level_is_not_lost(tmp_path):
    wide = phantom_volume(tmp_path / "wide.zarr", (1, 64, 4200))
    wide.staging.mkdir(exist_ok=True)
    speck = np.zeros((64, 4200), np.uint8)
    speck[30, 30] = 1
    wide.slices.record(0, wide.image.write_slice(0, speck, wide.staging), "0.png", 0)
    assert [(wide.path / f"{level}/c/0/0/0").exists() for level in (0, 1, 2)] == [True, False, False]
    for level in (1, 2):
        assert not read_excerpt(wide, Box.of_slice(0, wide.shape), 1, level).image.any()


def test_empty_shards_are_not_lost(mine):
    """Neither those of a truth that is not annotated there, nor those of a mask without vessels."""
    mine.staging.mkdir()
    truth, ledger = mine.truth("groundtruth")
    traced = np.full(SHAPE[1:], 127, np.uint8)
    ledger.record(2, truth.write_slice(2, traced, mine.staging), "2.png", 0)
    mine.slices.record(2, mine.image.write_slice(2, np.zeros(SHAPE[1:], np.uint8), mine.staging), "2.png", 0)
    mine.staging.rmdir()
    run(run_config(mine, tile=SIDE))
    assert not any((mine.path / "labels" / name / "0/c/2/0/0").exists() for name in ("groundtruth", "otsu"))
    for level in (0, 1):
        found = read_excerpt(mine, Box.of_slice(2, SHAPE), 1, level, "groundtruth", "otsu")
        assert (found.truth == 127).all()
        assert not found.mask.any()
        assert found.done.all()


def test_masks_that_are_to_be_made_again_are_not_lost(tmp_path):
    """What `kesm verify` has marked shows the plain image; the rest of the slice stays."""
    wide = phantom_volume(tmp_path / "wide.zarr", (1, 64, 2300))
    run(run_config(wide, tile=64))
    whole, status = Box.of_slice(0, wide.shape), RunTables(wide, "otsu").status
    before = read_excerpt(wide, whole, 1, 0, "groundtruth", "otsu").mask
    states = status.read((slice(0, 1),))
    states[..., 2048 // 64 :] = Status.FAILED
    status.write((slice(0, 1),), states)
    (wide.path / "labels/otsu/0/c/0/0/1").unlink()
    found = read_excerpt(wide, whole, 1, 0, "groundtruth", "otsu")
    np.testing.assert_array_equal(found.mask[:, :2048], before[:, :2048])
    assert found.mask[:, :2048].any()
    assert (found.known_truth()[:, 2048:] == 127).all()


def test_whole_tiles_have_the_counts_of_the_tables(volume, mine):
    whole = Box((0, 0, SIDE), (1, SIDE, 2 * SIDE))
    view = read_overlay(mine, Request(region=whole), 1000)
    table, of_slice = RunTables(mine, "otsu").truth("groundtruth").counts, (slice(0, 1),)
    counts = table.read(of_slice)
    assert view.counts == Counts(*counts[0, 0, 1].tolist())
    counts[0, 0, 1] = 1, 2, 3, 4
    table.write(of_slice, counts)
    assert read_overlay(mine, Request(region=whole), 1000).counts == Counts(1, 2, 3, 4)
    part = Box((0, 0, SIDE), (1, SIDE, 2 * SIDE - 1))
    found = read_overlay(mine, Request(region=part), 1000).counts
    assert found == Counts.from_images(*(voxels(volume, name)[part.slices] for name in ("groundtruth", "otsu")))


def slow_errors(mask: np.ndarray, truth: np.ndarray, z: int) -> np.ndarray:
    """Of 2x2 voxels the error that most are, as many of both: missed; else a vessel, else background, if annotated."""
    planes = [plane[z].reshape(300, 2, 350, 2).swapaxes(1, 2).reshape(300, 350, 4) for plane in (mask, truth)]
    marked, vessel, known = planes[0] == 255, planes[1] == 255, planes[1] != 127
    false, missed = (marked & known & ~vessel).sum(axis=2), (vessel & ~marked).sum(axis=2)
    right = np.where((marked & vessel).any(axis=2), TP, np.where(known.any(axis=2), TN, PLAIN))
    return np.where(missed + false > 0, np.where(false > missed, FP, FN), right)


def test_coarse_overlay_shows_the_label_of_the_confusion(mine):
    approximate = read_overlay(mine, Request(z=2, level=1), 1000)
    assert approximate.excerpt.errors is None
    run(run_config(mine, tile=SIDE, confusion=True))
    view = read_overlay(mine, Request(z=2, level=1), 1000)
    expected = slow_errors(voxels(mine, "otsu"), voxels(mine, "groundtruth"), 2)
    np.testing.assert_array_equal(view.excerpt.kinds(), expected)
    assert (approximate.excerpt.kinds() != expected).any()
    by_label, by_eye = (
        " ".join(text.get_text() for text in draw_overlay(each, STYLE).findobj(Text)) for each in (view, approximate)
    )
    assert ("approximate" in by_label, "approximate" in by_eye) == (False, True)
    assert "where any is wrong or missed, it shows that" in by_label
    fine = read_overlay(mine, Request(z=2, level=0), 1000).excerpt
    assert fine.errors is None
    RunTables(mine, "otsu").truth("groundtruth").confusion.pyramid_key.write((slice(2, 3),), 5)
    assert read_overlay(mine, Request(z=2, level=1), 1000).excerpt.errors is None  # its levels are older than it
    assert read_overlay(mine, Request(z=0, level=1), 1000).excerpt.errors is not None
    RunTables(mine, "otsu").truth("groundtruth").confusion.key.write((slice(0, 1),), 5)
    assert read_overlay(mine, Request(z=0, level=1), 1000).excerpt.errors is None  # it shows other counts


def test_label_of_another_truth_is_not_shown(mine):
    run(run_config(mine, tile=SIDE, confusion=True))
    mine.staging.mkdir()
    truth, ledger = mine.create_truth("second", MAPPING)
    ledger.record(0, truth.write_slice(0, np.full(SHAPE[1:], 255, np.uint8), mine.staging), "0.png", 0)
    mine.publish_label("second")
    mine.staging.rmdir()
    view = read_overlay(mine, Request(name="otsu", truth="second", z=0, level=1), 1000)
    assert view.excerpt.errors is None
    assert set(np.unique(view.excerpt.kinds())) == {TP, FN}


@pytest.fixture(scope="module", params=["label", "padding"])
def partly(request, volume: Volume, tmp_path_factory: pytest.TempPathFactory) -> tuple[Volume, np.ndarray]:
    """A copy with a run that keeps to a valid area, and the truth, 127 outside of that area."""
    made = Volume(shutil.copytree(volume.path, tmp_path_factory.mktemp("partly") / "brain.zarr"))
    row, column = np.ogrid[: SHAPE[1], : SHAPE[2]]
    inside = np.broadcast_to((row - 301) ** 2 + (column - 333) ** 2 < 251**2, SHAPE)  # its edge runs through pixels
    image = voxels(made)
    padding = int(np.bincount(image[voxels(made, "groundtruth") == 255]).argmax())
    if request.param == "padding":
        inside = image != padding
    else:
        made.staging.mkdir()
        label, ledger = made.create_truth("inside", MAPPING)
        for z, plane in enumerate(inside):
            ledger.record(z, label.write_slice(z, np.uint8(255) * plane, made.staging), f"{z}.png", 0)
        made.publish_label("inside")
        made.staging.rmdir()
    valid = {"padding": padding} if request.param == "padding" else {"label": "inside"}
    run(run_config(made, "partly", tile=SIDE, valid=valid))
    return made, np.where(inside, voxels(made, "groundtruth"), np.uint8(127))


def test_voxels_outside_of_the_valid_area_are_not_compared(partly):
    volume, truth = partly
    part = Box((2, 1, 30), (3, 600, 699))  # no whole tiles, so its counts are those of voxels
    view = read_overlay(volume, Request("partly", "groundtruth", region=part), 1000)
    known, mask = truth[part.slices][0], voxels(volume, "partly")[part.slices][0]
    found = view.excerpt.kinds()
    np.testing.assert_array_equal(found, classify(known, mask))
    everywhere = classify(voxels(volume, "groundtruth")[part.slices][0], mask)
    assert FN in everywhere[found == PLAIN]
    assert view.counts == Counts.from_images(known, mask)
    whole = read_overlay(volume, Request("partly", "groundtruth", z=2), 1000)
    assert whole.counts == Counts.from_images(truth[2], voxels(volume, "partly")[2])  # of the tables
    words = [text.get_text() for text in draw_overlay(view, STYLE).findobj(Text)]
    assert "not annotated, or not valid: the plain image" in words


def test_methods_are_tried_on_valid_voxels_alone(partly):
    volume, truth = partly
    trial = read_trial(volume, Request("partly", "groundtruth", z=2), 1)
    part = trial.subject.box.slices
    np.testing.assert_array_equal(trial.excerpt.truth, truth[part][0])
    tiles = [truth[2, y : y + SIDE, x : x + SIDE] for y in range(0, SHAPE[1], SIDE) for x in range(0, SHAPE[2], SIDE)]
    assert (truth[part] == 255).sum() == max((tile == 255).sum() for tile in tiles)


@pytest.mark.parametrize("partly", ["label"], indirect=True)
def test_tile_of_which_nothing_is_valid_cannot_be_tried(partly):
    volume, _ = partly
    with pytest.raises(MissingInputError, match=r"no method finds a level in .*, as nothing of it is valid"):
        read_trial(volume, Request("partly", "groundtruth", at=(2, SHAPE[1] - 1, SHAPE[2] - 1)), 1)


def test_coarse_pixels_are_compared_by_their_valid_voxels(partly):
    volume, truth = partly
    mask, request = voxels(volume, "partly"), Request("partly", "groundtruth", z=2, level=1)
    blocks = truth[2].reshape(300, 2, 350, 2).swapaxes(1, 2).reshape(300, 350, 4)
    found = read_overlay(volume, request, 1000).excerpt
    np.testing.assert_array_equal(found.truth, np.where((blocks == 255).any(axis=2), 255, blocks.min(axis=2)))
    np.testing.assert_array_equal(found.kinds(), classify(found.truth, found.mask))
    part = read_overlay(volume, replace(request, z=None, region=Box((2, 101, 3), (3, 599, 700))), 1000).excerpt
    np.testing.assert_array_equal(part.truth, found.truth[50:, 1:])
    run(run_config(volume, "partly", tile=SIDE, valid=RunTables(volume, "partly").recipe["valid"], confusion=True))
    shown = read_overlay(volume, request, 1000).excerpt
    assert shown.errors is not None
    np.testing.assert_array_equal(shown.kinds(), slow_errors(mask, truth, 2))


def test_overview_shows_what_there_is(volume, bare):
    view = read_overview(volume, Request(), 1000)
    assert view.subject.box.start[0] in (0, 2)
    assert len(figures.draw("overview", volume).axes) == 3
    figure = figures.draw("overview", bare)
    assert [shown(axes).tolist() for axes in figure.axes] == [
        voxels(bare)[0].tolist(), (255 - voxels(bare)[0]).tolist(),
    ]  # fmt: skip


def test_scores_below_0_do_not_stretch_the_colours_of_a_map(volume):
    found = read_map(volume, Request(z=2), 200)
    values = found.values.copy()
    values[0, 0] = -1
    bar = KINDS["map"].draw(replace(found, values=values), STYLE).axes[1]
    assert bar.get_ylim() == (0, values.max())


@cache
def filtered(volume: Volume, z: int, top: int) -> np.ndarray:
    return ndimage.median_filter(top - voxels(volume)[z].astype(int), 3, mode="reflect")


def test_grey_levels_are_those_of_the_voxels(volume):
    found = read_distribution(volume, Request(), 1)
    truth = voxels(volume, "groundtruth")
    for row, value in enumerate((0, 255, 127)):
        expected = sum(np.bincount(filtered(volume, z, 255)[truth[z] == value], minlength=256) for z in range(SHAPE[0]))
        np.testing.assert_array_equal(found.table[row], expected)
    marked = voxels(volume, "otsu")
    assert found.counts == Counts.from_images(truth, marked)
    assert found.tops.tolist() == list(range(256))
    for level in found.levels.values():
        above = np.stack([filtered(volume, z, 255) > level for z in range(SHAPE[0])])
        assert found.counts_at(level) == Counts.from_images(truth, above)


@pytest.mark.parametrize("request_", [Request(), Request(z=1), Request(at=(1, 599, 699))], ids=["all", "slice", "tile"])
def test_grey_levels_without_a_truth(volume, request_, mine):
    shutil.rmtree(mine.path / "tiles" / "otsu" / "truth")
    found, expected = (read_distribution(each, request_, 1) for each in (mine, volume))
    assert not found.split
    np.testing.assert_array_equal(found.table.sum(axis=0), expected.table.sum(axis=0))
    with pytest.raises(MissingInputError, match=r"of the whole volume and of one tile \(--at\) only"):
        read_distribution(mine, Request(region=Box((0, 0, 0), (1, 300, 700))), 1)


def test_16_bit_is_shown_on_its_own_scale(tmp_path):
    volume = phantom_volume(tmp_path / "deep.zarr", dtype="uint16")
    run(run_config(volume, tile=SIDE))
    found = read_distribution(volume, Request(), 1)
    low, high = volume.filtered_window(dark=True)
    assert (found.tops[0], found.tops[-1]) == (low + (high - low + 1) // 256 - 1, high)
    assert low < found.grey(found.levels["otsu"]) <= high
    trial = read_trial(volume, Request(at=(0, 0, 0)), 1)
    image = filtered(volume, 0, 65535)[:SIDE, :SIDE]
    np.testing.assert_array_equal(trial.attempts[0].mask, image > trial.attempts[0].level)
    for kind in ("histogram", "overlay"):
        assert figures.draw(kind, volume, Request(), STYLE).axes


def test_every_method_is_scored_on_the_tile_that_is_shown(volume):
    trial = read_trial(volume, Request(at=(2, 300, 10)), 1)
    truth = voxels(volume, "groundtruth")[2, 256:512, :256]
    known = truth != 127
    assert [attempt.method for attempt in trial.attempts][:2] == ["otsu", "li"]
    for attempt in trial.attempts:
        np.testing.assert_array_equal(attempt.mask, filtered(volume, 2, 255)[256:512, :256] > attempt.level)
        expected = metrics.matthews_corrcoef(truth[known] == 255, attempt.mask[known])
        assert attempt.mcc == pytest.approx(expected, abs=1e-12)
    assert trial.attempts[-1].mcc == max(attempt.mcc for attempt in trial.attempts)
    np.testing.assert_array_equal(trial.attempts[0].mask * 255, voxels(volume, "otsu")[2, 256:512, :256])


@pytest.mark.skipif(not TILE.is_dir(), reason="the real tile is not there")
def test_methods_on_the_tile_of_kesm(tmp_path):
    volume = Volume.create(tmp_path / "tile.zarr", (1, 512, 512), "uint8")
    volume.staging.mkdir()
    truth, ledger = volume.create_truth("groundtruth", MAPPING)
    planes = [np.asarray(Image.open(TILE / name).convert("L")) for name in ("grayscale.png", "groundtruth.png")]
    for plane, pyramid, record in zip(planes, (volume.image, truth), (volume.slices, ledger), strict=True):
        record.record(0, pyramid.write_slice(0, plane, volume.staging), "0.png", 0)
    volume.publish_label("groundtruth")
    trial = read_trial(volume, Request(), 1)  # without a run: by the default recipe
    found = {attempt.method: (round(attempt.level, 3), round(attempt.mcc, 6)) for attempt in trial.attempts}
    assert found == {
        "otsu": (79, 0.853391), "li": (34.147, 0.062802), "yen": (65, 0.877205), "triangle": (55, 0.756320),
        "isodata": (36, 0.071248), "mean": (43.935, 0.152871), "minimum": (6, 0.017017),
        "best there is": (68, 0.880470),
    }  # fmt: skip


def test_best_tile_of_a_trial_is_the_one_with_most_vessel(volume):
    trial = read_trial(volume, Request(z=0), 1)
    traced = voxels(volume, "groundtruth")[0] == 255
    sums = {(y, x): traced[y : y + SIDE, x : x + SIDE].sum() for y in range(0, 600, SIDE) for x in range(0, 700, SIDE)}
    assert trial.subject.box.start[1:] == max(sums, key=sums.__getitem__)


def test_gallery_has_the_worst_first(volume):
    gallery = read_gallery(volume, Request(metric="f1"), 1)
    truth, mask = voxels(volume, "groundtruth"), voxels(volume, "otsu")
    for sample in (*gallery.worst, *gallery.best):
        box = sample.excerpt.box.slices
        assert sample.counts == Counts.from_images(truth[box], mask[box])
        assert sample.score == pytest.approx(scores(sample.counts).f1)
    shown = [sample.score for sample in gallery.worst]
    assert shown == sorted(shown)
    assert [sample.score for sample in gallery.best] == sorted((s.score for s in gallery.best), reverse=True)
    assert len(gallery.worst) == 8
    texts = {text.get_text() for text in figures.draw("worst", volume, Request(metric="f1")).findobj(Text)}
    first = gallery.worst[0]
    assert {f"worst 1: F1 {first.score:.3f}", f"at {','.join(map(str, first.excerpt.box.start))}"} <= texts


def test_map_has_the_number_of_every_tile(volume):
    found = read_map(volume, Request(z=2, metric="vessel"), 200)
    mask = voxels(volume, "otsu")[2] == 255
    expected = [[mask[y : y + SIDE, x : x + SIDE].mean() for x in range(0, 700, SIDE)] for y in range(0, 600, SIDE)]
    np.testing.assert_allclose(found.values, expected)
    figure = figures.draw("map", volume, Request(z=2, metric="vessel"))
    low, high = figure.axes[1].get_ylim()
    assert (low, high) == pytest.approx((np.min(expected), np.max(expected)))


def test_tiles_without_a_value_show_the_image(volume):
    found = read_map(volume, Request(z=2), 1000)
    values = found.values.copy()
    values[0, 0] = np.nan
    axes = KINDS["map"].draw(replace(found, values=values), Style()).axes[0]
    colours = axes.images[0].get_array()
    np.testing.assert_array_equal(colours[:SIDE, :SIDE], found.excerpt.image[:SIDE, :SIDE, None].repeat(3, axis=2))
    assert (colours[SIDE:] != found.excerpt.image[SIDE:, :, None]).any()


def test_profile_has_the_scores_of_every_slice(volume):
    truth, mask = voxels(volume, "groundtruth"), voxels(volume, "otsu")
    figure = figures.draw("profile", volume)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    for name, field in (("MCC", "mcc"), ("recall", "recall")):
        expected = [getattr(scores(Counts.from_images(truth[z], mask[z])), field) for z in (0, 2)]
        assert lines[name].get_xdata().tolist() == [0, 2]
        np.testing.assert_allclose(lines[name].get_ydata(), expected)
    np.testing.assert_allclose(lines["mask"].get_ydata(), (mask == 255).mean(axis=(1, 2)))
    profile = read_profile(volume, Request(), 1)
    medians = np.median(profile.census.level.reshape(3, -1), axis=1)
    np.testing.assert_allclose(lines["median of tiles"].get_ydata(), medians)


def test_curves_go_through_every_level(volume):
    found = read_curves(volume, Request(), 1)
    truth = voxels(volume, "groundtruth")
    known = truth != 127
    grey = np.stack([filtered(volume, z, 255) for z in range(SHAPE[0])])[known]
    false, true, _ = metrics.roc_curve(truth[known] == 255, grey, drop_intermediate=False)
    roc, pr = figures.draw("curves", volume).axes
    line = roc.lines[0]
    area = np.trapezoid(line.get_ydata()[::-1], line.get_xdata()[::-1])
    assert area == pytest.approx(metrics.auc(false, true))
    assert f"{metrics.auc(false, true):.4f}" in roc.get_title(loc="left")
    average = metrics.average_precision_score(truth[known] == 255, grey)
    assert f"{average:.4f}" in pr.get_title(loc="left")
    assert found.counts is not None
    stars = [line for line in pr.lines if str(line.get_marker()) == "*"]
    own = scores(found.counts)
    assert (stars[0].get_xdata()[0], stars[0].get_ydata()[0]) == (own.recall, own.precision)


ODD = "a_very_long_name_" * 9 + "$x$ <b>&amp; \u8840\u7ba1.zarr"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["brain.zarr", ODD], ids=["plain", "odd"])
def test_nothing_is_cut_off(small, kind, name):
    small.path, path = small.path.with_name(name), small.path
    small.path.symlink_to(path) if name == ODD else None
    try:
        figure = figures.draw(kind, small, Request(), Style(dpi=100))
    finally:
        if name == ODD:
            small.path.unlink()
        small.path = path
    with canvas.settings():
        figure.draw_without_rendering()
        inked = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert inked.x0 >= 0
    assert inked.y0 >= 0
    assert inked.x1 <= width
    assert inked.y1 <= height
    shown = "".join(text.get_text() for text in figure.findobj(Text))
    assert re.sub(r"\s", "", name) in re.sub(r"\s", "", shown)


@pytest.mark.parametrize(
    ("kind", "ending"), [("overlay", "png"), ("overlay", "svg"), ("curves", "svg"), ("map", "pdf")]
)
def test_equal_figures_are_equal_files(small, ending, kind, tmp_path):
    theirs = {"font.size": 20.0, "axes.facecolor": "black", "svg.fonttype": "none", "savefig.bbox": "tight"}
    files = []
    for number, settings in enumerate(({}, theirs)):
        with mpl.rc_context(settings):
            before = dict(mpl.rcParams)
            files.append(tmp_path / f"{number}.{ending}")
            save(figures.draw(kind, small, Request(), STYLE), files[-1])
            assert dict(mpl.rcParams) == before
    first, second = (file.read_bytes() for file in files)
    assert first == second
    for trace in (b"CreationDate", b"dc:date", b"Matplotlib v", b"matplotlib.org"):
        assert trace not in first
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_pyplot_is_left_alone():
    code = "import sys, pipeline, pipeline.cli; assert 'matplotlib' not in sys.modules; import pipeline.figures; " \
        "assert 'matplotlib.pyplot' not in sys.modules"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)


def test_letters_are_those_of_the_font_that_comes_along():
    found = mpl.font_manager.findfont(FONT)
    assert Path(found).is_relative_to(mpl.get_data_path())


@given(st.floats(1e-6, 1e9))
def test_bars_have_round_lengths(about):
    length = round_length(about)
    assert length <= about * (1 + 1e-9)
    assert 2.5 * length > about * (1 - 1e-9)
    mantissa = length / 10 ** np.floor(np.log10(length) + 1e-9)
    assert round(mantissa, 6) in (1, 2, 5)


@pytest.mark.parametrize(
    ("size", "text", "um"),
    [(None, "20 voxels", 20.0), ((1, 0.7, 0.6), "10 µm", 10.0), ((1, 9, 50), "1 mm", 1000.0)],
    ids=["unknown", "kesm", "coarse"],
)
def test_bar_is_as_long_as_it_says(size, text, um):
    picture = Panel(np.zeros((100, 100), np.uint8))
    figure = draw_pictures(title="t", notes=[], panels=[picture], columns=1, style=STYLE, side=3, scale=(1, size))
    (axes,) = figure.axes
    assert axes.texts[0].get_text() == text
    across, down = axes.lines[0].get_xdata(), axes.lines[0].get_ydata()
    assert (across.max() - across.min()) * (1 if size is None else size[2]) == pytest.approx(um)
    if size == (1, 0.7, 0.6):  # the other way a bar is shorter in voxels
        assert (down.max() - down.min()) * size[1] == pytest.approx(um)


def test_bar_counts_the_voxels_of_coarse_pixels():
    picture = Panel(np.zeros((100, 100), np.uint8))
    figure = draw_pictures(title="t", notes=[], panels=[picture], columns=1, style=STYLE, side=3, scale=(8, (1, 1, 1)))
    across = figure.axes[0].lines[0].get_xdata()
    assert figure.axes[0].texts[0].get_text() == "200 µm"
    assert across.max() - across.min() == pytest.approx(25)


def test_lengths_in_words():
    assert [length_text(*each) for each in ((1, "voxels"), (0.2, "µm"), (2000, "µm"))] == ["1 voxel", "0.2 µm", "2 mm"]


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"]), max_size=60), st.floats(0.5, 4))
def test_wrapped_lines_fit_and_lose_nothing(text, width):
    lines = wrapped(text, width, 9)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(text_width(line, 9) <= width or len(line) == 1 for line in lines)


def test_legends_wrap():
    entries = [Swatch("#ffffff", "x" * 20)] * 5
    picture = Panel(np.zeros((10, 10), np.uint8))
    figure = draw_pictures(title="t", notes=[], panels=[picture], columns=1, style=STYLE, side=1, legend=entries)
    tops = {text.get_position()[1] for text in figure.texts if text.get_text() == "x" * 20}
    assert len(tops) > 1


def test_numbers_in_words():
    assert spans([0, 1, 2, 4, 7, 8]) == "0 to 2, 4, 7 to 8"
    assert spans([]) == "none"
    assert spans(list(range(0, 40, 2))) == "0, 2, 4, 6, 8, 10, 12, 14, ..."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("overlai", "V"), "expected one of: overview, .*; did you mean overlay?"),
        (("zebra", "V"), "got 'zebra', expected one of"),
        (("overlay", "nowhere"), "nowhere: no such volume"),
        (("overlay", "V", "--out", "x.gif"), r"got x.gif with the ending '.gif', expected .png, .svg, .pdf"),
        (("overlay", "V", "--out", "x"), "got x with no ending"),
        (("overlay", "V", "--out", "no/x.png"), "no/x.png: the folder no does not exist; make it"),
        (("overlay", "V", "--slice", "1"), "truth 'groundtruth' has nothing of slice 1, but of 0, 2"),
        (("overlay", "V", "--slice", "3"), "--slice: got 3, the volume has slices 0 to 2"),
        (("overlay", "V", "--at", "0,600,0"), "--at: got 0,600,0, the volume has z,y,x below 3,600,700"),
        (("overlay", "V", "--at", "here"), "--at: got 'here'"),
        (("overlay", "V", "--at", "0,0,0", "--slice", "0"), "--slice and --at: each says which voxels"),
        (("overlay", "V", "--region", "z=0:2"), "z=0:2,.* 2 slices, and a picture shows one"),
        (("overlay", "V", "--region", "z=0:1,y=0:9000"), "region: got y=0:9000"),
        (("overlay", "V", "--region", "z=0:1", "--slice", "2"), "--region and --slice: each says which voxels"),
        (("overlay", "V", "--level", "2"), "--level: got 2, the volume has levels 0 to 1"),
        (("overlay", "V", "--alpha", "1.5"), "--alpha: got 1.5, expected a weight"),
        (("overlay", "V", "--dpi", "5"), "--dpi: got 5, expected 30 to 1200"),
        (("overlay", "V", "--palette", "neon"), "palette: got 'neon', expected article or colour-blind"),
        (("overlay", "V", "--colours", "tp=green"), "colours: got 'tp=green', expected tp, fp"),
        (("overlay", "V", "--name", "nobody"), "has no run 'nobody'; it has: otsu"),
        (("overlay", "V", "--truth", "nobody"), "has no label 'nobody'"),
        (("overlay", "V", "--truth", "otsu"), "'otsu' is the mask of a run, not a truth"),
        (("map", "V", "--metric", "beauty"), "--metric: got 'beauty', expected one of: accuracy"),
        (("map", "V", "--slice", "1"), "no tile of slice 1 has a mcc in run 'otsu'; slices that have one: 0, 2"),
        (("worst", "V", "--metric", "level"), "--metric: got 'level', expected one of: accuracy"),
        (("worst", "V", "--slice", "1"), "no annotated tile of slice 1 has any vessel"),
        (("curves", "V", "--slice", "1"), "has not both vessel and background in slice 1"),
        (("profile", "V", "--alpha", "0.5"), "--alpha: profile has no use for it; leave it out"),
        (("histogram", "V", "--level", "1"), "--level: histogram has no use for it"),
        (("overlay", "B"), "has no run yet; make one with `kesm run"),
        (("map", "B", "--metric", "level"), "has no run yet"),
        (("overview", "B", "--slice", "1"), "slice 1 is absent, 1 of 2 are there"),
        (("try-all", "B", "--at", "1,0,0"), "slice 1 is absent"),
        (("overview", "B", "--truth", "t"), "has no label 't'; it has: none yet"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_wrong_input_is_one_message(volume, bare, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"V": volume.path, "B": bare.path}
    answer = kesm("figure", *(places.get(word, word) for word in words))
    assert re.search(message, answer.message.replace("?", "?")), answer.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("last", ["earlier", "zebra"])  # by its name the first and the last of them
def test_run_that_was_worked_on_last_is_shown(mine, last, monkeypatch):
    monkeypatch.setattr("pipeline.segmentation.attempt.now", lambda: "2999-01-01T00:00:00+00:00")
    run(run_config(mine, tile=SIDE, name=last, region={"z": [0, 1]}))
    for kind in KINDS:
        if kind != "overview":
            texts = " ".join(text.get_text() for text in figures.draw(kind, mine, Request(), STYLE).findobj(Text))
            assert f"run {last}" in texts, kind
            assert "run otsu" not in texts, kind


def test_titles_of_charts_are_where_those_of_pictures_are(small):
    for kind in KINDS:
        figure = figures.draw(kind, small, Request(), STYLE)
        title, note = figure.texts[:2] if kind != "overview" else figure.texts[:1] * 2
        wide, tall = figure.get_size_inches()
        left, top = title.get_position()
        assert (left * wide, (1 - top) * tall) == pytest.approx((canvas.MARGIN, canvas.MARGIN)), kind
        assert note.get_position()[0] == left, kind


@pytest.mark.parametrize("kind", ["overlay", "map", "worst", "profile", "histogram", "curves"])
def test_what_cannot_be_read_is_named(mine, kind, tmp_path):
    chunks = sorted(path for path in (mine.path / "tiles/otsu/status/c").rglob("*") if path.is_file())
    assert len(chunks) == 3
    chunks[2].write_bytes(b"")
    answer = kesm("figure", kind, mine.path, "--dpi", "40", "--out", tmp_path / "f.png")
    if kind != "overlay":  # of which the middle slice that can be read is shown
        assert re.fullmatch(r"(not read, and not shown: z=2:3,.*status.*\n)+", answer.err), answer.err
        assert (answer.code, answer.out) == (3, f"wrote {tmp_path / 'f.png'}\n")
    for chunk in chunks:
        chunk.write_bytes(b"")
    message = kesm("figure", kind, mine.path, "--out", tmp_path / "none.png").message
    assert re.search(r"as not all of its tables can be read: z=0:1,.*status.*; see `kesm verify", message)
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("kind", ["histogram", "curves"])
def test_lost_histograms_are_named_and_left_out(mine, tmp_path, kind):
    whole = read_distribution(mine, Request(name="otsu"), 1)
    histogram = mine.path / "tiles/otsu/truth/groundtruth/histogram/c/2"
    for chunk in [path for path in histogram.rglob("*") if path.is_file()]:
        chunk.write_bytes(b"no chunk")
    answer = kesm("figure", kind, mine.path, "--name", "otsu", "--out", tmp_path / "some.png")
    assert (answer.code, answer.out) == (3, f"wrote {tmp_path / 'some.png'}\n")
    assert re.search(r"not read, and not shown: z=2:3,.*histogram: chunk c/2/0/0/0/0 cannot be decoded", answer.err)
    found = read_distribution(mine, Request(name="otsu"), 1)
    assert found.table[:2].sum() < whole.table[:2].sum()
    assert found.counts is not None
    assert sum(astuple(found.counts)) == found.table[:2].sum()  # what is counted is what is drawn


def test_grey_levels_of_blocks_that_are_lost_are_named(mine, tmp_path):
    run(RunConfig.model_validate({"volume": mine.path, "name": "bare", "tile": 256}))
    chunks = [path for path in (mine.path / "tiles/bare/grey/c").rglob("*") if path.is_file()]
    chunks[0].write_bytes(b"no chunk")
    answer = kesm("figure", "histogram", mine.path, "--name", "bare", "--out", tmp_path / "some.png")
    assert answer.code == 3
    assert re.search(r"not read, and not shown: z=.*grey: chunk .* cannot be decoded", answer.err)
    for chunk in chunks:
        chunk.write_bytes(b"no chunk")
    message = kesm("figure", "histogram", mine.path, "--name", "bare", "--out", tmp_path / "none.png").message
    assert re.search(r"no grey levels of whole volume can be read: .*; `kesm verify` marks what is damaged", message)


def test_derived_label_is_of_the_recipe_of_its_run(mine):
    recipe = {"foreground": "bright", "tile": 256, "denoise": {"method": "none"}}
    run(RunConfig.model_validate({"volume": mine.path, "name": "bright", **recipe}))
    assert kesm("clean", mine.path, "--name", "bright", "--out", "tidy", "--min-size", "5").code == 0
    of_run, of_label = (read_trial(mine, Request(name=name), 1) for name in ("bright", "tidy"))
    assert of_label.subject.recipe == of_run.subject.recipe
    assert of_label.subject.box == of_run.subject.box
    for one, other in zip(of_label.attempts, of_run.attempts, strict=True):
        assert one.level == other.level
        np.testing.assert_array_equal(one.mask, other.mask)


def test_truth_that_a_run_was_not_compared_with_is_shown_where_it_is_named(mine):
    add_truth(mine, "second")
    add_truth(mine, "third")
    run(run_config(mine, truth="second", tile=256))
    assert {"groundtruth", "second"} <= set(RunTables(mine, "otsu").truths())
    view = read_overlay(mine, Request(name="otsu", truth="third", z=0), 1000)
    assert view.subject.truth == "third"
    assert np.isfinite(read_map(mine, Request(name="otsu", z=0, metric="level"), 1000).values).all()
    with pytest.raises(ConfigError, match=r"has the truths groundtruth, second, third; choose one with --truth"):
        read_map(mine, Request(name="otsu", z=0), 1000)


@pytest.mark.parametrize(
    ("metric", "scores_", "scale"),
    [
        ("mcc", [-0.4, -0.2], (-0.4, -0.2)),
        ("mcc", [-1.0, -1.0], (-1, 0)),
        ("mcc", [-0.5, 0.9], (0, 0.9)),
        ("mcc", [1.0, 1.0], (0, 1)),
        ("f1", [0.25, np.nan], (0, 1)),
        ("level", [80.0, 80.0], (76, 84)),
    ],
)
def test_scale_of_a_map_is_within_what_there_is(volume, metric, scores_, scale):
    found = read_map(volume, Request(name="otsu", z=0, metric=metric), 500)
    values = np.full(found.values.shape, np.nan)
    values.ravel()[:2] = scores_
    colours = draw_map(replace(found, values=values), STYLE).axes[1]
    assert colours.get_ylim() == pytest.approx(scale)


def test_profile_says_why_a_panel_is_empty(mine):
    run(run_config(mine, tile=SIDE, name="local", threshold={"method": "niblack", "size": 15}))
    not_annotated = figures.draw("profile", mine, Request(name="otsu", region=Box((1, 0, 0), (2, *SHAPE[1:]))))
    no_level = figures.draw("profile", mine, Request(name="local"))
    words = [
        [text.get_text() for text in figure.axes[place].texts] for figure, place in ((not_annotated, 0), (no_level, 1))
    ]
    assert words == [["nothing is annotated here"], ["this method has no level of tiles"]]


def test_part_of_a_run_is_said(mine):
    """Of the volume; lines of levels are open where nothing is done."""
    run(run_config(mine, tile=SIDE, name="part", region={"z": [0, 1]}))
    run(run_config(mine, tile=SIDE, name="part", region={"z": [2, 3]}))
    for kind in ("histogram", "curves", "worst", "profile"):
        texts = " ".join(text.get_text() for text in figures.draw(kind, mine, Request(name="part")).texts)
        assert re.search(r"\b18 of 27 tiles done", texts), kind
        texts = " ".join(text.get_text() for text in figures.draw(kind, mine, Request(name="otsu")).texts)
        assert "tiles done" not in texts or kind == "profile"
    profile = figures.draw("profile", mine, Request(name="part"))
    for axes in profile.axes[1:]:
        assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, True, False]


def test_methods_without_a_level_are_named(mine):
    flat = np.full(SHAPE[1:], 130, np.uint8)
    flat[:4] = 128
    mine.staging.mkdir(exist_ok=True)
    mine.slices.record(1, mine.image.write_slice(1, flat, mine.staging), "1.png", 0)
    trial = read_trial(mine, Request(name="otsu", z=1), 1)
    assert "minimum" in trial.without
    assert {attempt.method for attempt in trial.attempts} | set(trial.without) >= set(LEVEL_OF)
    texts = " ".join(text.get_text() for text in figures.draw("try-all", mine, Request(name="otsu", z=1)).texts)
    assert f"No level on this tile: {', '.join(trial.without)}." in texts


def test_levels_of_16_bit_are_written_out(volume):
    found = replace(read_distribution(volume, Request(name="otsu"), 1), tops=bin_tops((0, 65535)))
    for draw in (draw_histogram, draw_curves):
        texts = " ".join(text.get_text() for text in draw(found, STYLE).findobj(Text))
        assert re.search(r"otsu: (level )?\d{5}, MCC", texts)
        assert "e+0" not in texts


def test_name_that_is_no_text_is_drawn(mine, tmp_path):
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.zarr"))
    mine.path.rename(strange)
    for kind in ("overview", "map", "histogram"):
        assert kesm("figure", kind, strange, "--name", "otsu", "--out", tmp_path / f"{kind}.png").code == 0


def test_several_truths_are_named(mine):
    add_truth(mine, "second")
    view = read_overlay(mine, Request(name="otsu", z=0), 1000)  # the one that it was compared with
    assert view.subject.truth == "groundtruth"
    assert read_overlay(mine, Request(name="otsu", truth="second"), 1000).subject.box.start[0] == 0
    with pytest.raises(MissingInputError, match=r"run 'otsu' was not compared with 'second'"):
        read_distribution(mine, Request(name="otsu", truth="second"), 1)
    shutil.rmtree(mine.path / "runs")  # no run tells which is meant
    with pytest.raises(ConfigError, match=r"has the truths groundtruth, second; choose one with --truth"):
        figures.draw("overview", mine)


def test_figures_that_need_a_truth_say_so(mine):
    for place in ("tiles/otsu/truth", "labels/groundtruth", "slices/labels/groundtruth"):
        shutil.rmtree(mine.path / place)
    for kind in ("overlay", "curves", "worst", "map"):
        with pytest.raises(MissingInputError, match=r"has no truth, which this figure needs; add one with"):
            figures.draw(kind, mine)
    with pytest.raises(MissingInputError, match=r"or show what needs none: `--metric level`$"):
        figures.draw("map", mine)
    for kind in ("overview", "histogram", "try-all", "profile"):
        assert figures.draw(kind, mine, Request(), STYLE).axes
    assert figures.draw("map", mine, Request(metric="level"), STYLE).axes


def test_an_empty_run_says_so(mine):
    shutil.rmtree(mine.path / "tiles" / "otsu" / "status" / "c")
    for kind in ("histogram", "profile", "map", "curves", "worst"):
        with pytest.raises(MissingInputError, match=r"run 'otsu' has none of the 27 tiles"):
            figures.draw(kind, mine)
    with pytest.raises(MissingInputError, match=r"has all that this figure shows|has not done"):
        figures.draw("overlay", mine)


def test_a_large_picture_is_refused(volume):
    huge = Volume(volume.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.views.excerpt.MOST_PIXELS", 1000)
        with pytest.raises(ConfigError, match=r"--level: got 0, at which z=0:1.* million pixels; choose a coarser"):
            read_excerpt(huge, Box.of_slice(0, SHAPE), 1, level=0)


def test_several_slices_are_no_picture(volume):
    with pytest.raises(RegionError, match="has 3 slices, and a picture shows one"):
        read_excerpt(volume, Box.whole(SHAPE), 100)


def test_what_killed_commands_left_of_a_figure_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"f.png.{platform.node()}-{dead.pid}-00.partial").write_text("half")
    (tmp_path / "f.png").write_text("old")
    save(Figure(), tmp_path / "f.png")
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_command_writes_the_file_that_it_names(volume, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert kesm("figure", "map", volume.path, "--metric", "level", "--dpi", "40").out == "wrote brain-map.png\n"
    options = ("--colours", "tp=00ff00,fp=#0000ff", "--at", "0,0,0", "--dpi", "40", "--out", "o.svg", "--json")
    document = check_document("figure", kesm("figure", "overlay", volume.path, *options).document)
    assert document["bytes"] == (tmp_path / "o.svg").stat().st_size
    assert "#00ff00" in (tmp_path / "o.svg").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["brain-map.png", "o.svg"]
    assert pixels_of(tmp_path / "brain-map.png").std() > 20


def test_endings_are_read_as_people_write_them(tmp_path):
    assert [format_of(tmp_path / name) for name in ("a.PNG", "b.svg", "c.d.pdf")] == ["png", "svg", "pdf"]


def test_joint_tables_of_a_trial_are_the_tile_s(volume):
    trial = read_trial(volume, Request(at=(0, 0, 0)), 1)
    table = np.zeros((3, 256), np.uint32)
    tile = filtered(volume, 0, 255)[:SIDE, :SIDE].astype(np.uint8)
    joint_histogram(tile, np.ascontiguousarray(voxels(volume, "groundtruth")[0, :SIDE, :SIDE]), table)
    vessel = table[1, int(trial.attempts[0].level) + 1 :].sum()
    assert (trial.attempts[0].mask & (voxels(volume, "groundtruth")[0, :SIDE, :SIDE] == 255)).sum() == vessel


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        made = small_volume(Path(folder) / "brain.zarr")
        REFERENCES.mkdir(exist_ok=True)
        for each in KINDS:
            save(reference(each, made), Path(folder) / "whole.png")
            halved(pixels_of(Path(folder) / "whole.png")).save(REFERENCES / f"{each}.png", optimize=True)
