"""Which slices the files of a label are for, by names alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import MissingInputError
from pipeline.images.stack import Page
from pipeline.intake.placement import place

VOLUME = Path("brain.zarr")
FOUR = ["slice_1.png", "slice_2.png", "slice_3.png", "slice_4.png"]
NIGHTS = ["slice_0.png", "slice_1.png", "slice_2.png", "slice_0.png", "slice_1.png"]


def pages(*files: str) -> list[Page]:
    """Pages of files; ``stack.tif*3`` has three."""
    found = []
    for file in files:
        name, _, count = file.partition("*")
        found += [Page(Path(name), index, int(count or 1), (8, 8), "uint8") for index in range(int(count or 1))]
    return found


def sources(*files: str) -> dict[int, str]:
    return {z: page.name for z, page in enumerate(pages(*files))}


@pytest.mark.parametrize(
    ("images", "files", "start_z", "slices", "rule"),
    [
        pytest.param(FOUR, ["slice_2.tif", "slice_4.tif"], None, [1, 3], "by file name", id="name"),
        pytest.param(["s1_raw.png", "s2_raw.png", "s3_raw.png"], ["gt-03.png", "gt-02.png"], None, [2, 1],
                     "by the number in the file name", id="number"),
        pytest.param(FOUR, ["a.png", "b.png"], 1, [1, 2], "from slice 1 on", id="start"),
        pytest.param(FOUR, ["slice_9.png"], 0, [0], "from slice 0 on", id="start against the name"),
        pytest.param(FOUR, ["a.png", "b.png", "c.png", "d.png"], None, [0, 1, 2, 3], "in natural order", id="order"),
        pytest.param(FOUR, ["a_v2.png", "b_v2.png", "c_v2.png", "d_v2.png"], None, [0, 1, 2, 3], "in natural order",
                     id="order where all have one number"),
        pytest.param(FOUR, ["all.tif*4"], None, [0, 1, 2, 3], "in natural order", id="as many pages as slices"),
        pytest.param(FOUR, ["truth_z3.tif*2"], 2, [2, 3], "from slice 2 on", id="pages from a start"),
        pytest.param(["stack.tif*4"], ["stack.tif*4"], None, [0, 1, 2, 3], "in natural order", id="pages for pages"),
        pytest.param(["stack.tif*2"], ["x.png", "y.png"], None, [0, 1], "in natural order", id="files for pages"),
        pytest.param(["stack.tif*2"], ["x_0.png", "x_1.png"], None, [0, 1], "in natural order",
                     id="numbers of pages are no names"),
        pytest.param(["a.tif*2", "b.png"], ["b.png"], None, [2], "by file name", id="one file among pages"),
        pytest.param(NIGHTS, ["slice_2.png"], None, [2], "by file name", id="the only slice of this name"),
        pytest.param(NIGHTS, NIGHTS, None, [0, 1, 2, 3, 4], "in natural order", id="two nights for two nights"),
    ],
)  # fmt: skip
def test_label_is_placed(images, files, start_z, slices, rule):
    assert place(pages(*files), sources(*images), start_z, VOLUME) == (slices, rule)


@pytest.mark.parametrize(
    ("images", "files", "start_z", "message"),
    [
        pytest.param(FOUR, ["slice_9.png"], None, r"^slice_9\.png: cannot be placed: its name and number are those of "
                     r"none of the 4 slices of brain\.zarr \(slice_1\.png to slice_4\.png\); leave it out, or give the "
                     r"slice of the first file with --start-z$", id="no such number"),
        pytest.param(FOUR, ["slice_1.png", "slice_2.png", "slice_3.png", "slice_9.png"], None,
                     r"^slice_9\.png: cannot be placed", id="as many as slices, but not theirs"),
        pytest.param(FOUR, ["gt_1.png", "gt_2.png", "gt_3.png", "gt_9.png"], None, r"^gt_9\.png: cannot be placed",
                     id="as many as slices, but not their numbers"),
        pytest.param(FOUR, ["a.png", "b.png"], None, r"^a\.png: cannot be placed", id="no names in common"),
        pytest.param(FOUR, ["a.png", "b.png"], 3, r"^--start-z: b\.png would be slice 4, which does not exist; "
                     r"brain\.zarr has slices 0 to 3$", id="start too late"),
        pytest.param(["slice_000.png", "slice_001.png", "slice_002.png", "slice_003.png"], ["truth_z3-5.tif*3"], None,
                     r"^truth_z3-5\.tif#0: cannot be placed: pages have no names of their own, and their number or "
                     r"order is not that of the 4 slices", id="page numbers are not those of slices"),
        pytest.param(["stack.tif*4"], ["stack.tif*3"], None, r"^stack\.tif#0: cannot be placed",
                     id="fewer pages than the image"),
        pytest.param(["a.tif*4", "b.tif*4"], ["a.tif*3", "b.tif*5"], None, r"^a\.tif#0: cannot be placed",
                     id="as many pages, but of other files"),
        pytest.param(["stack.tif*4"], ["gt_1.png", "gt_3.png"], None, r"^gt_1\.png: cannot be placed",
                     id="numbers of pages are no names"),
        pytest.param(NIGHTS, ["slice_1.png"], None, r"^slice_1\.png: cannot be placed: its name and number, or those "
                     r"of another file, are not those of exactly one of the 5 slices", id="several slices of one name"),
        pytest.param(NIGHTS, ["slice_0.png", "slice_1.png", "slice_2.png", "slice_3.png", "slice_4.png"], None,
                     r"^slice_3\.png: cannot be placed", id="as many as two nights, but not theirs"),
        pytest.param([], ["a.png"], None, r"^brain\.zarr: has no slices yet; ingest its image first", id="no slices"),
    ],
)  # fmt: skip
def test_label_that_belongs_nowhere_is_refused(images, files, start_z, message):
    with pytest.raises(MissingInputError, match=message):
        place(pages(*files), sources(*images), start_z, VOLUME)


def test_slices_that_do_not_exist_take_no_file():
    present = {0: "slice_1.png", 3: "slice_4.png"}
    assert place(pages("x.png", "y.png"), present, None, VOLUME) == ([0, 3], "in natural order")
    with pytest.raises(MissingInputError, match=r"y\.png would be slice 1, which does not exist"):
        place(pages("x.png", "y.png"), present, 0, VOLUME)
