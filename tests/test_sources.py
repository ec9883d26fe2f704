"""What is new in a source folder, by small tables: which slice each file is for, and which are left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, MissingInputError
from pipeline.intake.sources import MAX_SLICES, Changes, Note, find_images, find_truths, find_unsettled, list_source
from pipeline.settings.config import ImageFolder, TruthFolder

VOLUME = Path("brain.zarr")
TIME_NS = 10**18
NUMBER = r"s_(\d+)"


def fill(folder: Path, *names: str, mtime_ns: int = TIME_NS) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"pixels")
        os.utime(folder / name, ns=(mtime_ns, mtime_ns))
    return folder


def recorded(**slices: int) -> dict[int, tuple[str, int]]:
    """Ledger of files, named ``name_suffix=slice``, as they are."""
    return {z: (".".join(name.rsplit("_", 1)), TIME_NS) for name, z in slices.items()}


def images(
    folder: Path, ledger: Mapping[int, tuple[str | None, int]], number: str | None = NUMBER, first: int = 0
) -> Changes:
    source = ImageFolder(folder=folder, number=number, first=first)
    return find_images(list_source(source, "sync.images"), ledger, VOLUME)


def named(changes: Changes) -> tuple[dict[int, str], list[str], list[str], dict[int, str]]:
    return (
        {z: file.name for z, file in changes.numbered.items()},
        [file.name for file in changes.unnumbered],
        [note.file for note in changes.set_aside],
        dict(changes.vanished),
    )


# which files are looked at


def test_only_images_in_the_folder_itself_count(tmp_path):
    fill(tmp_path / "in", "s_0.png", "s_1.TIF", ".s_2.png", "s_3.txt", "s_4.png.part", "s_5.png~")
    fill(tmp_path / "in" / "s_6.png", "s_7.png")
    listing = list_source(ImageFolder(folder=tmp_path / "in"), "sync.images")
    assert [file.name for file in listing.files] == ["s_0.png", "s_1.TIF"]
    assert listing.files[0].path.is_absolute()
    assert listing.set_aside == []


def test_broken_link_is_set_aside(tmp_path):
    fill(tmp_path, "s_0.png")
    (tmp_path / "s_1.png").symlink_to(tmp_path / "nowhere.png")
    assert images(tmp_path, {}).set_aside == [
        Note("s_1.png", "cannot be read (No such file or directory); is it a broken link?")
    ]


def test_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(
        MissingInputError, match=r"^sync\.images\.folder: .*/in: no such folder; is its disk mounted\?$"
    ):
        images(tmp_path / "in", {})
    (tmp_path / "in").write_bytes(b"")
    with pytest.raises(MissingInputError, match="no such folder"):
        images(tmp_path / "in", {})


def test_folder_without_images_has_nothing_new(tmp_path):
    assert images(tmp_path, {}) == Changes({})
    assert images(tmp_path, recorded(s_0_png=0)).vanished == {0: "s_0.png"}
    assert images(tmp_path, recorded(s_0_png=0), number=None).vanished == {0: "s_0.png"}


# by number


@pytest.mark.parametrize(
    ("files", "ledger", "expected"),
    [
        pytest.param(["s_0.png", "s_1.png"], {}, ({0: "s_0.png", 1: "s_1.png"}, [], [], {}), id="all new"),
        pytest.param(["s_10.png", "s_9.png"], {}, ({9: "s_9.png", 10: "s_10.png"}, [], [], {}), id="gaps"),
        pytest.param(["s_0.png", "s_1.png"], recorded(s_0_png=0), ({1: "s_1.png"}, [], [], {}), id="one new"),
        pytest.param(["s_0.png"], recorded(s_0_png=0), ({}, [], [], {}), id="none new"),
        pytest.param(["s_1.png"], recorded(s_0_png=0, s_1_png=1), ({}, [], [], {0: "s_0.png"}), id="one gone"),
        pytest.param(["s_0.png", "s_1.tif"], recorded(s_0_png=0, s_1_png=1), ({1: "s_1.tif"}, [], [], {}),
                     id="another name"),
        pytest.param(["s_0.png", "notes.png"], {}, ({0: "s_0.png"}, [], ["notes.png"], {}), id="no number"),
        pytest.param(["s_5.png"], recorded(s_0_png=0), ({5: "s_5.png"}, [], [], {0: "s_0.png"}), id="archived"),
    ],
)  # fmt: skip
def test_slices_by_number(tmp_path, files, ledger, expected):
    assert named(images(fill(tmp_path, *files), ledger)) == expected


def test_file_that_was_written_again_is_new(tmp_path):
    fill(tmp_path, "s_0.png", "s_1.png")
    fill(tmp_path, "s_1.png", mtime_ns=TIME_NS - 1)  # an older one may have been put back
    assert named(images(tmp_path, recorded(s_0_png=0, s_1_png=1)))[0] == {1: "s_1.png"}


@pytest.mark.parametrize("pattern", [r"s_(\d+)", r"s_(?P<z>\d+)", r"^s_0*(\d+)\.png$", r"(\d+)(?:\.png)"])
def test_patterns(tmp_path, pattern):
    assert named(images(fill(tmp_path, "s_012.png"), {}, pattern, first=10))[0] == {2: "s_012.png"}


@pytest.mark.parametrize(
    ("name", "pattern", "reason"),
    [
        ("s_9.png", NUMBER, "its number 9 is below `first: 10`"),
        ("x_11.png", NUMBER, "its name does not match the pattern `number`"),
        (f"s_{10 + MAX_SLICES}.png", NUMBER, "its number 100010 would make it slice 100000; volumes have at most "
         "100,000"),
        ("s_.png", r"s_(\d*)", "the pattern `number` finds '' in its name, which is no number"),
        ("s_.png", r"s_(\d+)?", "the pattern `number` finds None in its name, which is no number"),
        ("s_1a.png", r"s_(\w+)", "the pattern `number` finds '1a' in its name, which is no number"),
        (f"s_{'9' * 30}.png", NUMBER, f"the pattern `number` finds '{'9' * 30}' in its name, which is no number"),
    ],
    ids=["below-first", "no-match", "absurd", "empty", "no-group", "letters", "huge"],
)  # fmt: skip
def test_file_without_a_slice_is_set_aside(tmp_path, name, pattern, reason):
    changes = images(fill(tmp_path, "s_10.png", name), {}, pattern, first=10)
    assert changes.set_aside == [Note(name, reason)]
    assert named(changes)[0] == {0: "s_10.png"}


@pytest.mark.parametrize(
    ("files", "ledger", "first", "message"),
    [
        pytest.param(["a.png", "b.png"], {}, 0, r"^sync\.images\.number: `s_\(\\d\+\)` is found in none of the 2 "
                     r"names of .*, such as a\.png; mend the pattern$", id="no match at all"),
        pytest.param(["s_1.png", "s_01.png"], {}, 0, r"^s_0?1\.png and s_0?1\.png: both are for slice 1; leave one out",
                     id="two for one"),
        pytest.param(["s_4.png", "s_5.png"], recorded(s_4_png=3), 0, r"^sync\.images: s_4\.png is slice 3 of "
                     r"brain\.zarr and would be slice 4; set `first: 1`, or name another volume$", id="another first"),
        pytest.param(["s_4.png"], recorded(s_4_png=9), 0, r"would be slice 4; mend the pattern, or name",
                     id="no first would do"),
        pytest.param(["s_0.png", "s_1.png"], recorded(t_0_png=0, t_1_png=1, t_2_png=2), 0,
                     r"^sync\.images\.folder: .* holds no file that brain\.zarr was made from, such as t_2\.png of "
                     r"slice 2; name that folder, or another volume$", id="another volume"),
    ],
)  # fmt: skip
def test_folder_in_doubt_is_refused(tmp_path, files, ledger, first, message):
    with pytest.raises(ConfigError, match=message):
        images(fill(tmp_path, *files), ledger, first=first)


# in order


@pytest.mark.parametrize(
    ("files", "ledger", "expected"),
    [
        pytest.param(["b_10.png", "b_9.png", "a.png"], {}, ({}, ["a.png", "b_9.png", "b_10.png"], [], {}),
                     id="all new"),
        pytest.param(["s_1.png", "s_2.png", "s_10.png"], recorded(s_1_png=0, s_2_png=1), ({}, ["s_10.png"], [], {}),
                     id="after the last"),
        pytest.param(["s_1.png", "s_2.png", "s_3.png"], recorded(s_1_png=0, s_3_png=1), ({}, [], ["s_2.png"], {}),
                     id="before the last"),
        pytest.param(["s_2.png", "s_2.tif"], recorded(s_2_png=0), ({}, [], ["s_2.tif"], {}), id="place of the last"),
        pytest.param(["s_2.png", "s_3.png"], recorded(s_1_png=0, s_2_png=1), ({}, ["s_3.png"], [], {0: "s_1.png"}),
                     id="one gone"),
    ],
)  # fmt: skip
def test_slices_in_order(tmp_path, files, ledger, expected):
    assert named(images(fill(tmp_path, *files), ledger, number=None)) == expected


def test_file_in_order_that_was_written_again_is_replaced(tmp_path):
    fill(tmp_path, "a.png", "b.png")
    fill(tmp_path, "a.png", mtime_ns=TIME_NS + 1)
    assert named(images(tmp_path, recorded(a_png=0, b_png=1), number=None))[:2] == ({0: "a.png"}, [])


def test_slices_of_a_killed_sync_keep_their_places(tmp_path):
    listing = list_source(ImageFolder(folder=fill(tmp_path, *(f"{name}.png" for name in "abcde"))), "sync.images")
    ledger = recorded(a_png=0, c_png=2)
    changes = find_images(listing, ledger, VOLUME, {1: "b.png", 3: "d.png"})
    assert named(changes) == ({1: "b.png", 3: "d.png"}, ["e.png"], [], {})


@pytest.mark.parametrize(
    ("files", "ledger", "message"),
    [
        pytest.param(["a.png", "a.tif"], {}, r"^a\.png and a\.tif: same place in the z order; leave one out or rename",
                     id="two for one"),
        pytest.param(["c.png"], recorded(a_png=0, b_png=1), r"holds no file that brain\.zarr was made from, such as b",
                     id="another volume"),
        pytest.param(["a.png"], {0: ("a.png", 1), 1: ("b.png", 1), 2: ("a.png", 2)},
                     r"^a\.png: is the name of the slices \[0, 2\] of .*; tell them apart with `sync\.images\.number`$",
                     id="two nights"),
    ],
)  # fmt: skip
def test_order_in_doubt_is_refused(tmp_path, files, ledger, message):
    with pytest.raises(ConfigError, match=message):
        images(fill(tmp_path, *files), ledger, number=None)


def test_order_is_refused_without_the_names_of_all_slices(tmp_path):
    fill(tmp_path, "a.png", "b.png", "c.png")
    ledger = {**recorded(b_png=1), 0: (None, TIME_NS), 2: (None, TIME_NS)}
    with pytest.raises(
        ConfigError, match=r"^sync\.images: the name of the file of slice 0, 2 is lost from brain\.zarr"
    ):
        images(tmp_path, ledger, number=None)


# names that are lost


@pytest.mark.parametrize(
    ("files", "ledger", "expected"),
    [
        pytest.param(["s_0.png", "s_1.png"], {0: ("s_0.png", TIME_NS), 1: (None, TIME_NS)},
                     ({1: "s_1.png"}, [], [], {}), id="its file is there"),
        pytest.param(["s_0.png"], {0: ("s_0.png", TIME_NS), 1: (None, TIME_NS)}, ({}, [], [], {}),
                     id="its file is not"),
        pytest.param(["s_0.png"], {0: (None, TIME_NS), 1: (None, TIME_NS)}, ({0: "s_0.png"}, [], [], {}), id="all"),
    ],
)  # fmt: skip
def test_slice_whose_name_is_lost_is_taken_again_by_its_number(tmp_path, files, ledger, expected):
    assert named(images(fill(tmp_path, *files), ledger)) == expected


def test_truth_is_for_no_image_whose_name_is_lost(tmp_path):
    source = TruthFolder(folder=fill(tmp_path, "s_0.tif", "s_1.tif"))
    changes = find_truths(list_source(source, "sync.truth"), {}, {0: "s_0.png", 1: None}, VOLUME)
    assert named(changes) == ({0: "s_0.tif"}, ["s_1.tif"], [], {})


# truths


@pytest.mark.parametrize(
    ("files", "number", "expected"),
    [
        pytest.param(["s_1.tif"], None, ({1: "s_1.tif"}, [], [], {}), id="by image"),
        pytest.param(["s_1.tif", "s_7.tif"], None, ({1: "s_1.tif"}, ["s_7.tif"], [], {}), id="no image yet"),
        pytest.param(["twin.png"], None, ({}, [], ["twin.png"], {}), id="two images"),
        pytest.param(["gt_1.png", "gt_8.png"], r"gt_(\d+)", ({1: "gt_1.png", 8: "gt_8.png"}, [], [], {}),
                     id="by number"),
    ],
)  # fmt: skip
def test_places_of_truths(tmp_path, files, number, expected):
    source = TruthFolder(folder=fill(tmp_path, *files), number=number)
    names = {0: "s_0.png", 1: "s_1.png", 2: "twin.png", 3: "twin.tif"}
    assert named(find_truths(list_source(source, "sync.truth"), {}, names, VOLUME)) == expected


def test_truths_that_are_held_are_not_new(tmp_path):
    source = TruthFolder(folder=fill(tmp_path, "s_0.tif", "s_1.tif"))
    ledger = {0: ("s_0.tif", TIME_NS), 1: ("s_1.tif", TIME_NS + 1), 2: ("s_2.tif", TIME_NS)}
    names = {0: "s_0.png", 1: "s_1.png", 2: "s_2.png"}
    changes = find_truths(list_source(source, "sync.truth"), ledger, names, VOLUME)
    assert named(changes) == ({1: "s_1.tif"}, [], [], {2: "s_2.tif"})


def test_two_truths_for_one_slice_are_refused(tmp_path):
    listing = list_source(TruthFolder(folder=fill(tmp_path, "s_0.png", "s_0.tif")), "sync.truth")
    with pytest.raises(ConfigError, match=r"^s_0\.png and s_0\.tif: both are for slice 0; leave one out"):
        find_truths(listing, {}, {0: "s_0.bmp"}, VOLUME)


# settling


def nothing(_: Path) -> None:
    """Leave a file as it is."""


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(AHEAD_NS, AHEAD_NS))  # as on a disk that keeps whole seconds


def touch(path: Path) -> None:
    os.utime(path, ns=(AHEAD_NS + 1, AHEAD_NS + 1))


AHEAD_NS = 4 * 10**18  # of a clock that is a century ahead: says nothing


@pytest.mark.parametrize(
    ("mtime_ns", "meanwhile", "pauses", "waiting"),
    [
        pytest.param(TIME_NS, nothing, [], 0, id="old"),
        pytest.param(AHEAD_NS, nothing, [7], 0, id="young, and as it was"),
        pytest.param(AHEAD_NS, grow, [7], 1, id="grows"),
        pytest.param(AHEAD_NS, touch, [7], 1, id="written to"),
        pytest.param(AHEAD_NS, Path.unlink, [7], 1, id="gone"),
    ],
)
def test_files_settle(tmp_path, mtime_ns, meanwhile: Callable[[Path], None], pauses, waiting):
    fill(tmp_path, "s_0.png", mtime_ns=mtime_ns)
    files = images(tmp_path, {}).files
    waited: list[float] = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        meanwhile(tmp_path / "s_0.png")

    assert len(find_unsettled(files, 7, pause)) == waiting
    assert waited == pauses
