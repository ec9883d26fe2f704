"""Configurations: what is read from them, and the text about everything that is wrong with one, at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import ConfigError, RegionError
from pipeline.geometry import Box
from pipeline.settings.config import Region, RunConfig, parse_bytes, parse_duration
from pipeline.settings.model import check_name
from pipeline.settings.recipe import FixedThreshold, HistogramThreshold, MedianDenoise, NoDenoise, Recipe


@pytest.mark.parametrize(
    ("denoise", "window", "halo"),
    [
        (NoDenoise(), (1, 1, 1), (0, 0, 0)),
        (MedianDenoise(), (1, 3, 3), (0, 1, 1)),
        (MedianDenoise(size=5), (1, 5, 5), (0, 2, 2)),
        (MedianDenoise(size=(3, 1, 7)), (3, 1, 7), (1, 0, 3)),
    ],
    ids=["none", "default", "in-plane", "volumetric"],
)
def test_a_filter_declares_its_window(denoise, window, halo):
    recipe = Recipe(denoise=denoise)
    assert recipe.denoise.window == window
    assert recipe.halo == halo


def test_thresholds_give_a_level():
    tables = np.zeros((2, 3, 256), np.uint32)
    tables[0, 0, 10] = tables[0, 2, 200] = tables[1, 1, 30] = 5
    assert HistogramThreshold().levels(tables).tolist() == [10, 30]
    assert FixedThreshold(level=79).levels(tables).tolist() == [79, 79]


def test_a_recipe_is_a_value():
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().tile = 256
    assert hash(Recipe(tile=256)) == hash(Recipe(tile=256))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5 kB", 1500),
        ("2TB", 2 * 10**12),
        ("2GiB", 2**31),
        (".5MiB", 2**19),
        ("10KiB", 10240),
        ("12B", 12),
        ("12", 12),
        (12, 12),
        (None, None),
    ],
)
def test_memory(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "4 parsecs", "-4GB", "0", "0.1B", 0, -1, 4.5, True, [4], "1e400", "9" * 400]
)
def test_no_memory(text):
    with pytest.raises(ValueError, match="which is no amount of memory; write it as 4GB or 500MB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("15m", 900), ("2h", 7200), ("0s", 0), ("1.5m", 90), (" 0.25 s ", 0.25), ("999999h", 3599996400)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", 10, 1.5, "s", "-1s", "10 d", "1h30m", "1e3s", "9999999s", None, True, [1]])
def test_no_durations(text):
    with pytest.raises(ValueError, match="which is no duration; write it as 10s, 15m or 2h"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("z=0:10,y=0:4096,x=0:4096", Box((0, 0, 0), (10, 4096, 4096))),
        ("x=5:6", Box((0, 0, 5), (799, 8026, 6))),
        (" y = 1 : 2 , z = 798:799 ", Box((798, 1, 0), (799, 2, 17480))),
        ({"z": [3, 4]}, Box((3, 0, 0), (4, 8026, 17480))),
    ],
    ids=["all", "x", "spaces", "mapping"],
)
def test_regions(text, box):
    region = RunConfig(volume="a", region=text).region
    assert region.box((799, 8026, 17480)) == box


@settings(deadline=None, max_examples=30)
@given(start=st.tuples(*[st.integers(0, 9)] * 3), length=st.tuples(*[st.integers(1, 9)] * 3))
def test_the_text_of_a_box_is_its_region(start, length):
    box = Box(start, tuple(first + more for first, more in zip(start, length, strict=True)))
    assert RunConfig(volume="a", region=str(box)).region.box((18, 18, 18)) == box


@pytest.mark.parametrize("text", ["", "z", "z=1", "z=:5", "z=1:2,", "z=1:2,z=1:2", "w=1:2", "z=-1:2", "z=1.5:2", 5])
def test_no_regions(text):
    with pytest.raises(ValidationError, match="which is no region; write it as z=0:10"):
        RunConfig(volume="a", region=text)


@pytest.mark.parametrize(
    ("region", "got"),
    [
        (Region(z=(0, 4)), "z=0:4, the volume has z=0:3; choose a part of that"),
        (Region(y=(5, 5)), "y=5:5, which is empty; the end is not part of it"),
        (Region(x=(7, 3)), "x=7:3, which is empty; the end is not part of it"),
        (Region(x=(-1, 3)), "x=-1:3, the volume has x=0:200; choose a part of that"),
    ],
    ids=["outside", "empty", "reversed", "negative"],
)
def test_regions_outside_the_volume(region, got):
    with pytest.raises(RegionError, match=f"^region: got {got}$"):
        region.box((3, 100, 200))


@pytest.mark.parametrize("name", ["otsu", "0", "A-b_c.d", "x" * 100])
def test_names(name):
    assert check_name(name, "--label") == name
    assert RunConfig(volume="a", name=name, truth=name).run_name == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a/b", "a b", "ä", "a\n", "../a", "x" * 101, "Zarr.json"])
def test_no_names(name):
    with pytest.raises(ConfigError, match=r"^--label: got .*, a name starts with a letter or digit"):
        check_name(name, "--label")
