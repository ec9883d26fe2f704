"""Flags against their definition, and on a phantom whose faults are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.errors import ShapeMismatchError
from pipeline.kernels import flags as flagging
from pipeline.kernels.flags import RULES, Flag
from pipeline.kernels.quality import Measure
from pipeline.phantom import Phantom
from tests.test_quality import NAN, measure, tables_of

USUAL = {
    Measure.FOCUS: 120.0,
    Measure.SATURATION: 0.001,
    Measure.MEAN: 200.0,
    Measure.CONTRAST: 80.0,
    Measure.SEPARABILITY: 0.7,
    Measure.EMPTINESS: 0.001,
    Measure.CHATTER: 0.002,
}


def outliers(values, present):
    """Flags of the tiles of one slice."""
    return flagging.flag_tiles(values[None], present[None])[0]


def slice_outliers(values, present):
    return flagging.flags_of(flagging.slice_distances(flagging.slice_medians(values, present)))


def usual(*shape, **other):
    """Table of tiles that are all alike; those at (1, 2) have other values, by the name of the measure."""
    values = np.empty((*shape, len(Measure)), np.float32)
    values[...] = [USUAL[each] for each in Measure]
    for name, value in other.items():
        values[..., 1, 2, Measure[name]] = value
    return values


def test_tiles_alike_are_not_flagged():
    assert not outliers(usual(4, 5), np.ones((4, 5), bool)).any()
    assert not outliers(np.zeros((4, 5, 7), np.float32), np.ones((4, 5), bool)).any()


@pytest.mark.parametrize(
    ("other", "flag"),
    [
        ({"FOCUS": 70}, Flag(0)),
        ({"FOCUS": 50}, Flag.BLURRED),
        ({"FOCUS": 0}, Flag.BLURRED),
        ({"FOCUS": 9999}, Flag(0)),
        ({"SATURATION": 0.04}, Flag(0)),
        ({"SATURATION": 0.06}, Flag.SATURATED),
        ({"MEAN": 165}, Flag(0)),
        ({"MEAN": 155}, Flag.DARK),
        ({"MEAN": 245}, Flag(0)),
        ({"MEAN": 255}, Flag.BRIGHT),
        ({"CONTRAST": 30}, Flag(0)),
        ({"CONTRAST": 20}, Flag.LOW_CONTRAST),
        ({"CONTRAST": 255}, Flag(0)),
        ({"SEPARABILITY": 0}, Flag(0)),
        ({"EMPTINESS": 0.09}, Flag(0)),
        ({"EMPTINESS": 0.12}, Flag.EMPTY),
        ({"CHATTER": 0.009}, Flag(0)),
        ({"CHATTER": 0.010}, Flag.CHATTER),
        ({"FOCUS": NAN, "CHATTER": NAN, "EMPTINESS": NAN}, Flag(0)),
        ({"FOCUS": NAN, "MEAN": 0}, Flag.DARK),
        (
            {"FOCUS": 0, "MEAN": 0, "SATURATION": 1, "EMPTINESS": 1, "CONTRAST": 0, "CHATTER": 0},
            Flag.BLURRED | Flag.DARK | Flag.SATURATED | Flag.EMPTY | Flag.LOW_CONTRAST,
        ),
    ],
    ids=str,
)
def test_a_tile_unlike_the_others_is_flagged(other, flag):
    flags = outliers(usual(4, 5, **other), np.ones((4, 5), bool))
    assert flags.dtype == np.uint8
    assert Flag(int(flags[1, 2])) == flag
    flags[1, 2] = 0
    assert not flags.any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), wide=st.floats(0.001, 2))
def test_deviations_are_those_of_the_median(seed, wide):
    rng = np.random.default_rng(seed)
    values = usual(6, 7)
    values[..., Measure.FOCUS] = np.expm1(rng.normal(5, wide, (6, 7)).clip(0, 20))
    present = rng.random((6, 7)) < 0.9
    logs = np.log1p(values[..., Measure.FOCUS].astype(float))
    median = np.median(logs[present])
    reach = max(math.log(2), 4 * 1.4826 * np.median(abs(logs[present] - median)))
    expected_flags = np.where(present & (logs < median - reach), Flag.BLURRED, 0)
    np.testing.assert_array_equal(outliers(values, present), expected_flags)


@pytest.mark.parametrize(("tiles", "flagged"), [(8, False), (9, True)])
def test_few_tiles_set_no_norm(tiles, flagged):
    values = usual(2, 5, MEAN=90.0)
    present = np.zeros((2, 5), bool)
    present.reshape(-1)[:tiles] = True
    assert outliers(values, present).any() == flagged


def test_absent_tiles_neither_count_nor_are_flagged():
    values = usual(4, 5)
    present = np.zeros((4, 5), bool)
    present[:3] = True
    values[3:] = 0  # as a table has them that nobody wrote
    assert not outliers(values, present).any()
    assert outliers(values, np.ones_like(present))[3:].all()
    values[3:] = NAN
    assert not outliers(values, present).any()


def test_padding_sets_no_norm():
    values = usual(6, 6)
    values[2:, :] = [0, 1, 0, 0, 0, 1, 0]  # two thirds are the black of a mosaic
    flags = outliers(values, np.ones((6, 6), bool))
    assert not flags[:2].any()
    assert (flags[2:] == Flag.BLURRED | Flag.SATURATED | Flag.DARK | Flag.LOW_CONTRAST | Flag.EMPTY).all()
    values[:] = values[2:3]
    assert not outliers(values, np.ones((6, 6), bool)).any()


def test_each_slice_is_a_norm_of_its_own():
    values = usual(3, 4, 5)
    values[1, ..., Measure.MEAN] = 60
    values[2, 0, 0, Measure.CHATTER] = 0.1
    values[0, 3, 4, Measure.FOCUS] = 1
    present = np.ones((3, 4, 5), bool)
    present[1] = False
    flags = flagging.flag_tiles(values, present)
    np.testing.assert_array_equal(flags, list(map(outliers, values, present)))
    assert {tuple(at): flags[tuple(at)] for at in np.argwhere(flags).tolist()} == {
        (0, 3, 4): Flag.BLURRED,
        (2, 0, 0): Flag.CHATTER,
    }
    assert flagging.flag_tiles(values[:0], present[:0]).shape == (0, 4, 5)


def test_slice_medians():
    values = usual(4, 3, 3)
    values[0, 0, :, Measure.MEAN] = [10, 20, 30]
    values[0, 1:, :, Measure.EMPTINESS] = 0.9  # do not count where others do,
    values[1, ..., Measure.EMPTINESS] = 0.9  # but do where there are no others
    values[2, ..., Measure.FOCUS] = NAN
    present = np.ones((4, 3, 3), bool)
    present[0, 0, 2] = False
    present[3] = False
    medians = flagging.slice_medians(values, present)
    assert medians[0, Measure.MEAN] == 15
    assert medians[1, Measure.MEAN] == 200
    assert math.isnan(medians[2, Measure.FOCUS])
    assert medians[2, Measure.MEAN] == 200
    assert np.isnan(medians[3]).all()


@pytest.mark.parametrize(
    ("measure_of_it", "value", "flag"),
    [
        (Measure.FOCUS, 90, Flag.BLURRED),
        (Measure.FOCUS, 100, Flag(0)),
        (Measure.MEAN, 175, Flag.DARK),
        (Measure.MEAN, 225, Flag.BRIGHT),
        (Measure.MEAN, 190, Flag(0)),
        (Measure.CHATTER, 0.008, Flag.CHATTER),
        (Measure.CHATTER, 0.006, Flag(0)),
        (Measure.SATURATION, 0.03, Flag.SATURATED),
        (Measure.CONTRAST, 50, Flag.LOW_CONTRAST),
        (Measure.EMPTINESS, 0.06, Flag.EMPTY),
        (Measure.EMPTINESS, 1, Flag.EMPTY),
    ],
    ids=str,
)
def test_a_slice_unlike_the_others_is_flagged(measure_of_it, value, flag):
    values, present = usual(7, 2, 3), np.ones((7, 2, 3), bool)
    values[3, ..., measure_of_it] = value
    present[6] = False
    values[6] = 0
    assert slice_outliers(values, present).tolist() == [0, 0, 0, flag, 0, 0, 0]
    present[4:] = False  # four are too few
    assert not slice_outliers(values, present).any()


def measure_volume(planes, side):
    rows, columns = (-(-length // side) for length in planes[0].shape)
    filtered = [ndimage.median_filter(~plane, 3) for plane in planes]
    return np.stack(
        [
            measure(plane, side, tables_of(inverted, side)).reshape(rows, columns, -1)
            for plane, inverted in zip(planes, filtered, strict=True)
        ]
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_phantom_has_one_bad_slice(dtype):
    phantom = Phantom((6, 400, 500), seed=2, dtype=dtype)
    planes = [phantom.slice(z)[0] for z in range(6)]
    bad = phantom.out_of_focus
    top, side = np.iinfo(dtype).max, 100
    values = measure_volume(planes, side)
    present = np.ones(values.shape[:3], bool)
    assert slice_outliers(values, present).tolist() == [Flag.BLURRED if z == bad else 0 for z in range(6)]
    before = flagging.flag_tiles(values, present)
    content = Flag.DARK | Flag.LOW_CONTRAST  # which a tile has of a large vessel, or without any
    assert not (before & ~content).any()
    at = np.s_[2 * side : 3 * side, side : 2 * side]
    planes[0][at] = 0  # a tile of padding,
    planes[1][at] = ndimage.gaussian_filter(planes[1][at], 2)  # one out of focus,
    bands = 0.04 * np.sin(np.arange(side) / 1.3)[:, None]
    planes[2][at] = (planes[2][at] * (1 + bands)).clip(0, top)  # one of bands,
    planes[3][at] //= 2  # and one of half the light
    after = flagging.flag_tiles(measure_volume(planes, side), present)
    for z, flag in enumerate((Flag.EMPTY | Flag.DARK, Flag.BLURRED, Flag.CHATTER, Flag.DARK)):
        assert before[z, 2, 1] & flag == 0
        assert after[z, 2, 1] & flag == flag
    after[:4, 2, 1] = 0
    assert not (after & ~content).any()


def test_distances_are_in_limits():
    values = usual(1, 4, 5, FOCUS=29.25, MEAN=280.4375, CHATTER=0.017)
    distances = flagging.tile_distances(values, np.ones((1, 4, 5), bool))
    found = dict(zip([rule.measure for rule in RULES], distances[0, 1, 2], strict=True))
    assert found[Measure.FOCUS] == pytest.approx(-2)  # a quarter, where half is the limit
    assert found[Measure.MEAN] == pytest.approx(1.5, rel=1e-2)
    assert found[Measure.CHATTER] == pytest.approx(2)
    distances[0, 1, 2] = 0
    assert not distances.any()
    assert flagging.flags_of(np.full(len(RULES), 1.1)) == Flag.SATURATED | Flag.BRIGHT | Flag.EMPTY | Flag.CHATTER
    assert not flagging.flags_of(np.array([[limit] * len(RULES) for limit in (-1.0, 1.0, NAN)])).any()


@pytest.mark.parametrize(
    ("values", "present", "message"),
    [
        ((3, 3, 6), (3, 3), "expected 7 measures"),
        ((1, 3, 4, 7), (1, 3, 3), r"\(1, 3, 3\) of what"),
        ((3, 3, 7), (3, 3), "on 3 axes"),
    ],
)
def test_refuses(values, present, message):
    for function in (flagging.flag_tiles, flagging.slice_medians):
        with pytest.raises(ShapeMismatchError, match=message):
            function(np.zeros(values, np.float32), np.ones(present, bool))
