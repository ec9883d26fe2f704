"""Overlays against colours that were worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import ConfigError, ShapeMismatchError, UnsupportedImageError
from pipeline.storage import confusion_label
from pipeline.storage.confusion_label import confuse
from pipeline.views.overlay import (
    FN,
    FP,
    PALETTES,
    PLAIN,
    TN,
    TP,
    Palette,
    classify,
    find_palette,
    overlay,
    read_colours,
)

TRUTH = np.array([1, 0, 1, 0, 1, 1, 0, 0, 0], np.uint8).reshape(3, 3)
MASK = np.array([1, 0, 1, 0, 0, 1, 1, 0, 0], np.uint8).reshape(3, 3)
COLOURS = {(1, 1): (0, 255, 255), (0, 1): (255, 0, 255), (1, 0): (255, 255, 0), (0, 0): (0, 0, 0)}


def slow_overlay(image, truth, mask, alpha):
    out = np.empty((*image.shape, 3), np.uint8)
    for place in np.ndindex(image.shape):
        grey = int(image[place])
        known = truth[place] in (0, 255)
        colour = COLOURS[int(truth[place] == 255), int(mask[place] != 0)] if known else (grey, grey, grey)
        # Python's round is half to even.
        out[place] = [round(alpha * grey + (1 - alpha) * part) for part in colour]
    return out


# The published example holds for an image of grey levels 0 and 1, the truth itself: half of 1 and half of 255 is 128,
# half of 1 and half of 0 is 0.5 and rounds to the even 0. With the image at 0 and 255 the same colours are lighter.
@pytest.mark.parametrize(
    ("image", "flat"),
    [
        (
            TRUTH,
            "0 128 128  0 0 0  0 128 128  0 0 0  128 128 0  0 128 128  128 0 128  0 0 0  0 0 0",
        ),
        (
            TRUTH * 255,
            "128 255 255  0 0 0  128 255 255  0 0 0  255 255 128  128 255 255  128 0 128  0 0 0  0 0 0",
        ),
    ],
    ids=["image-0-1", "image-0-255"],
)
def test_the_nine_pixels_of_the_article(image, flat):
    got = overlay(image, TRUTH * 255, MASK * 255, alpha=0.5)
    assert got.dtype == np.uint8
    assert got.shape == (3, 3, 3)
    assert got.ravel().tolist() == [int(value) for value in flat.split()]


def test_what_nobody_annotated_shows_the_image():
    image = np.array([[10, 20, 30]], np.uint8)
    truth = np.array([[127, 127, 1]], np.uint8)
    got = overlay(image, truth, np.array([[0, 255, 255]], np.uint8))
    assert got.tolist() == [[[10] * 3, [20] * 3, [30] * 3]]


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(1.0, [100, 100, 100]), (0.0, [0, 255, 255]), (0.25, [25, 216, 216])],
    ids=["image", "colour", "quarter"],
)
def test_alpha_is_the_weight_of_the_image(alpha, expected):
    one = np.array([[255]], np.uint8)
    assert overlay(np.array([[100]], np.uint8), one, one, alpha).tolist() == [[expected]]


@settings(deadline=None, max_examples=40)
@given(
    layers=arrays(np.uint8, st.tuples(st.just(3), st.integers(1, 4), st.integers(1, 4))),
    alpha=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
)
def test_equals_the_formula_of_each_voxel(layers, alpha):
    image, mask = layers[0], layers[2] & 255
    truth = np.array([0, 127, 255], np.uint8)[layers[1] % 3]
    np.testing.assert_array_equal(overlay(image, truth, mask, alpha), slow_overlay(image, truth, mask, alpha))


def test_kinds_are_those_of_the_label():
    """One number for each, in pictures and in labels; labels have none for background and what nobody annotated."""
    truth, mask = (plane.astype(np.uint8) for plane in np.meshgrid([0, 127, 255], [0, 255]))
    found, shown = classify(truth, mask), np.empty_like(truth)
    assert found.tolist() == [[TN, PLAIN, FN], [FP, PLAIN, TP]]
    confuse(mask, truth, shown)
    assert shown.tolist() == np.where(found == TN, 0, found).tolist()
    assert (TP, FP, FN) == (confusion_label.TP, confusion_label.FP, confusion_label.FN)


@pytest.mark.parametrize("odd", [0, 1, 2], ids=["image", "truth", "mask"])
def test_shapes_must_be_equal(odd):
    layers = [np.zeros((2, 3), np.uint8)] * 3
    layers[odd] = np.zeros((3, 2), np.uint8)
    with pytest.raises(ShapeMismatchError, match=r"got shapes .*\(3, 2\).*must be equal"):
        overlay(*layers)


def test_images_of_16_bit_are_refused():
    nothing = np.zeros((2, 2), np.uint8)
    with pytest.raises(UnsupportedImageError, match="got an image of uint16, expected uint8"):
        overlay(nothing.astype(np.uint16), nothing, nothing)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")], ids=str)
def test_alpha_must_be_a_weight(alpha):
    nothing = np.zeros((2, 2), np.uint8)
    with pytest.raises(ConfigError, match="expected a weight of the image from 0 to 1"):
        overlay(nothing, nothing, nothing, alpha)


def test_other_colours_are_blended_alike():
    image, truth, mask = (
        np.full((1, 4), 100, np.uint8),
        np.array([[255, 0, 255, 0]], np.uint8),
        np.array([[1, 1, 0, 0]]),
    )
    palette = Palette((10, 0, 0), (0, 20, 0), (0, 0, 30), (40, 40, 40))
    got = overlay(image, truth, mask.astype(np.uint8), 0.5, palette)
    assert got.tolist() == [[[55, 50, 50], [50, 60, 50], [50, 50, 65], [70, 70, 70]]]


def test_colours_that_are_not_named_stay():
    assert read_colours("tp=#0000FF, fn=010203") == Palette(tp=(0, 0, 255), fn=(1, 2, 3))
    other = find_palette("colour-blind")
    assert read_colours("tn=ffffff", other) == Palette(other.tp, other.fp, other.fn, (255, 255, 255))


@pytest.mark.parametrize("text", ["", "tp", "tp=red", "tp=#12345", "xx=#123456", "tp=#123456,tp=#123456"])
def test_colours_that_cannot_be_read(text):
    with pytest.raises(ConfigError, match=r"expected tp, fp, fn or tn, each once"):
        read_colours(text)


def test_colours_for_the_colour_blind_differ_by_lightness():
    palette = PALETTES["colour-blind"]
    light = sorted(float(np.dot((0.2126, 0.7152, 0.0722), colour)) for colour in (palette.tp, palette.fp, palette.fn))
    assert min(np.diff(light)) > 40
    with pytest.raises(ConfigError, match=r"palette: got 'neon', expected article or colour-blind"):
        find_palette("neon")
