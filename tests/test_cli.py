"""The command line as its users meet it: what it prints where, its exit codes, and one clear message for bad input."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from filelock import FileLock
from PIL import Image
from scipy.ndimage import median_filter

from pipeline import cli
from pipeline.geometry import Box
from pipeline.phantom import Phantom
from pipeline.segmentation.engine import start_engine
from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume
from tests.builders import build_volume, textured
from tests.command import KESM, kesm, kesm_process
from tests.contract import check_document

TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"
COMMANDS = ("demo", "ingest", "run", "plan", "status", "sync", "verify")
GREY = (np.add.outer(7 * np.arange(40), np.arange(56)) % 251).astype(np.uint8)


def paths(folder: Path) -> set[str]:
    """Everything below a folder, but for the lock files of the volumes in it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volume of three slices with a truth for two of them, and run `done`."""
    path = tmp_path_factory.mktemp("built") / "brain.zarr"
    build_volume(path, (3, 600, 700))
    assert kesm("run", path, "--truth", "groundtruth", "--name", "done").code == 0
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def brain(here: Path, built: Path) -> Path:
    """Copy of the built volume."""
    shutil.copytree(built, here / "brain.zarr")
    return Path("brain.zarr")


# the real tile


@pytest.mark.skipif(not TILE.is_dir(), reason="the KESM tile is not beside this repository")
def test_published_numbers_come_out_of_the_real_tile(here):
    ingested = kesm_process("ingest", TILE / "grayscale.png", "--volume", "t.zarr", "--json")
    assert check_document("ingest", ingested.document) == {
        "schema": 1, "volume": "t.zarr", "label": None, "slices": [0], "shape": [1, 512, 512],
        "placed": "in natural order", "mapping": None, "voxel_size_um": None,
    }  # fmt: skip
    label = kesm("ingest", TILE / "groundtruth.png", "--volume", "t.zarr", "--label", "groundtruth", "--json")
    assert check_document("ingest", label.document)["mapping"] == {
        "vessel": 255, "vessel_above": None, "unlabelled": None,
    }  # fmt: skip
    ran = kesm_process("run", "t.zarr", "--truth", "groundtruth", "--json")
    assert (ingested.code, label.code, ran.code) == (0, 0, 0)
    document = check_document("run", ran.document)
    assert document.pop("elapsed_s") > 0
    scores = {
        "accuracy": 0.9924278259277344, "f1": 0.8493358633776091, "mcc": 0.8533910225863214,
        "precision": 5595 / 5717, "recall": 5595 / 7458, "specificity": 254564 / 254686, "iou": 5595 / 7580,
        "balanced_accuracy": 0.8748610525405919, "kappa": 0.8455217161124408,
    }  # fmt: skip
    expected = {
        "schema": 1, "name": "otsu", "volume": "t.zarr", "region": None, "truth": "groundtruth",
        "voxels": 262144, "annotated": 262144,
        "counts": {"tp": 5595, "fp": 122, "fn": 1863, "tn": 254564},
        "scores": scores, "macro": scores | {"tiles": 1, "undefined": dict.fromkeys(scores, 0)},
        "undefined": "article", "excluded": None,
        "levels": {"min": 79, "median": 79, "max": 79},
        "seam": None, "drift": None,
        "tiles": {"total": 1, "done": 1, "reused": 0, "failed": 0, "pending": 0, "absent": 0,
                  "undecided": 0, "no_signal": 0},
        "failures": [],
    }  # fmt: skip
    assert document == expected
    assert list(document) == list(expected)
    with Image.open(TILE / "grayscale.png") as picture:
        published = median_filter(255 - np.asarray(picture), size=3, mode="reflect") > 79
    mask = Volume("t.zarr").label("otsu").full.read(Box.whole((1, 512, 512)))[0]
    np.testing.assert_array_equal(mask, np.where(published, 255, 0))

    again = check_document("run", kesm("run", "t.zarr", "--truth", "groundtruth", "--json").document)
    assert again["tiles"] == document["tiles"] | {"reused": 1}
    assert {key: again[key] for key in ("counts", "scores", "macro", "levels")} == {
        key: document[key] for key in ("counts", "scores", "macro", "levels")
    }
    fixed = kesm("run", "t.zarr", "--truth", "groundtruth", "--json", "--set", "threshold.method=fixed",
                 "--set", "threshold.level=79")  # fmt: skip
    assert (fixed.document["name"], fixed.document["counts"]) == ("fixed", document["counts"])


# what is printed where


@pytest.mark.parametrize("words", [["--help"], ["-h"], []])
def test_help_lists_the_commands(words):
    answer = kesm(*words)
    assert (answer.code, answer.err) == (0, "")
    assert all(f"  {command} " in answer.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_names_its_options(command):
    answer = kesm(command, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"Usage: kesm {command} ")
    assert "--json" in answer.out


def test_run_prints_a_table_and_progress_apart(brain):
    answer = kesm("run", brain, "--truth", "groundtruth")
    assert answer.code == 0
    assert answer.out.startswith("run otsu")
    assert answer.out.endswith("mask: brain.zarr/labels/otsu\n")
    assert answer.err.startswith("run otsu: 3/3, ")
    assert answer.err.count("\n") == 1


def test_options_of_a_run(brain):
    answer = kesm("run", brain, "--json", "--region", "z=1:3,y=0:100", "--name", "corner", "--set", "denoise.size=5",
                  "--set", "tile=256", "--threads", "1", "--memory", "2GB", "--foreground", "bright")  # fmt: skip
    document = check_document("run", answer.document)
    assert answer.code == 0
    assert (document["name"], document["region"]) == ("corner", "z=1:3,y=0:256,x=0:700")
    assert document["tiles"]["total"] == 2 * 3
    recipe = RunTables(Volume(brain), "corner").recipe
    assert (recipe["foreground"], recipe["tile"], recipe["denoise"]["size"]) == ("bright", 256, 5)


def test_configuration_file_is_relative_to_itself_and_options_override_it(brain, here):
    (here / "configs").mkdir()
    text = "volume: ../brain.zarr\nname: mine\ntruth: groundtruth\nthreshold: {method: fixed, level: 100}\n"
    (here / "configs" / "a.yaml").write_text(text)
    plain = check_document("run", kesm("run", "configs/a.yaml", "--json").document)
    assert (plain["name"], plain["truth"], plain["levels"]["max"]) == ("mine", "groundtruth", 100)
    answer = kesm("run", "configs/a.yaml", "--json", "--name", "b", "--set", "threshold.level=90", "--region", "z=0:1")
    other = check_document("run", answer.document)
    assert (other["name"], other["levels"]["max"], other["tiles"]["total"]) == ("b", 90, 4)


def test_plan_says_what_a_run_would_do_and_touches_nothing(brain, here):
    before = paths(here)
    answer = kesm("plan", brain, "--json", "--truth", "groundtruth", "--region", "z=0:2", "--threads", "1")
    assert (answer.code, answer.err) == (0, "")
    document = check_document("plan", answer.document)
    assert (document["name"], document["region"]) == ("otsu", "z=0:2,y=0:600,x=0:700")
    assert (document["tiles"], document["tiles_done"], document["blocks"], document["tasks"]) == (8, 0, 2, 1)
    assert document["peak_bytes"] <= document["limit_bytes"]
    assert check_document("plan", kesm("plan", brain, "--name", "done", "--json").document)["tiles_done"] == 12
    answer = kesm("plan", brain)
    assert answer.out.startswith("plan of run otsu")
    assert "12, of which 0 are done already" in answer.out
    assert paths(here) == before


def test_status_says_what_there_is(brain, here):
    before = paths(here)
    answer = kesm("status", brain, "--json")
    assert (answer.code, answer.err) == (0, "")
    document = check_document("status", answer.document)
    assert [label["name"] for label in document["labels"]] == ["done", "groundtruth"]
    assert [run["tiles"]["done"] for run in document["runs"]] == [12]
    answer = kesm("status", brain)
    assert answer.out.startswith("brain.zarr: 3 x 600 x 700 voxels (z, y, x), uint8, ")
    assert "12 of 12" in answer.out
    assert paths(here) == before


def test_ingest_says_what_to_type_next(here):
    stack("s", GREY, GREY)
    answer = kesm("ingest", "s", "--volume", "v.zarr", "--voxel-size", "1,0.7,0.6", "--threads", "1")
    assert answer.code == 0
    assert answer.out == (
        "image: 2 slices, 0 to 1, in natural order, in v.zarr\nvoxel size: 1 x 0.7 x 0.6 um (z, y, x)\n"
        "next: kesm run v.zarr\n"
    )
    assert answer.err.startswith("image: 2/2, ")
    answer = kesm("ingest", stack("t", GREY), "--volume", "v.zarr", "--label", "gt", "--vessel-above", "99.5")
    assert answer.out == "label gt: slice 0, by file name, in v.zarr\nnext: kesm run v.zarr --truth gt\n"
    answer = kesm("ingest", stack("u", GREY, first=3), "--volume", "v.zarr", "--append", "--json")
    assert check_document("ingest", answer.document)["slices"] == [2]
    assert Volume("v.zarr").voxel_size_um == (1.0, 0.7, 0.6)


def test_ingest_says_which_voxel_size_the_files_state(here):
    sizes = {"PhysicalSizeY": 0.7, "PhysicalSizeX": 0.6}
    save("flat.tif", GREY, ome=True, metadata={"axes": "YX"} | sizes)
    answer = kesm("ingest", "flat.tif", "--volume", "flat.zarr", "--json")
    assert check_document("ingest", answer.document)["voxel_size_um"] is None
    assert answer.err.startswith(
        "note: flat.tif states voxels of ? x 0.7 x 0.6 um (z, y, x), so that no size is stored; "
        "say all of it with --voxel-size Z,Y,X\n"
    )
    again = kesm("ingest", "flat.tif", "--volume", "flat.zarr")
    assert again.code == 2
    given = kesm("ingest", "flat.tif", "--volume", "given.zarr", "--voxel-size", "1,0.7,0.6", "--json")
    assert check_document("ingest", given.document)["voxel_size_um"] == [1, 0.7, 0.6]
    save("whole.tif", GREY, ome=True, metadata={"axes": "YX", "PhysicalSizeZ": 1.5} | sizes)
    answer = kesm("ingest", "whole.tif", "--volume", "whole.zarr")
    assert "\nvoxel size: 1.5 x 0.7 x 0.6 um (z, y, x)\n" in answer.out
    label = kesm("ingest", save("truth.tif", GREY, ome=True, metadata={"axes": "YX", "PhysicalSizeZ": 9} | sizes),
                 "--volume", "whole.zarr", "--label", "gt", "--vessel-above", "99.5", "--start-z", "0")  # fmt: skip
    assert label.code == 0
    for silent in (again, given, answer, label):
        assert "note:" not in silent.err


def test_demo_prints_its_result(here, monkeypatch):
    monkeypatch.setattr("pipeline.demo.Phantom", partial(Phantom, (3, 520, 600)))
    answer = kesm("demo", "d")
    assert answer.code == 0
    for words in ("run otsu", "volume:  d/brain.zarr", "picture: d/overlay.png", "kesm status d/brain.zarr"):
        assert words in answer.out
    assert all(step in answer.err for step in ("phantom: 3/3", "image: 3/3", "truth checking: ", "truth writing: "))
    answer = kesm("demo", "d", "--json")
    assert check_document("demo", answer.document)["tiles"]["reused"] == 12


# exit codes


def test_unexpected_error_is_not_hidden(brain, monkeypatch):
    def fail(volume: Volume, *options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("pipeline.findings.summary.describe", fail)
    monkeypatch.setattr(sys, "argv", ["kesm", "status", str(brain)])
    with pytest.raises(RuntimeError, match="a bug"):  # the interpreter prints it, and exits with 1
        cli.main()


def test_reader_of_stdout_may_go(built):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([KESM, "status", built, "--json"], stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


def remove(shard: Path) -> None:
    shard.unlink()


def flip(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    for place in range(len(data) // 4, len(data) // 2):
        data[place] ^= 0x5A
    shard.write_bytes(bytes(data))


def assert_same_run(path: Path, name: str, other: str) -> None:
    volume = Volume(path)
    ours, theirs = RunTables(volume, name), RunTables(volume, other)
    for table in ("status", "threshold", "mask_key", "shard_digest", "pyramid_key"):
        np.testing.assert_array_equal(getattr(ours, table).read(), getattr(theirs, table).read(), err_msg=table)
    for mine, its in zip(volume.label(name).levels, volume.label(other).levels, strict=True):
        whole = Box.whole(mine.shape)
        np.testing.assert_array_equal(mine.read(whole), its.read(whole), err_msg=str(mine.path))


@pytest.mark.parametrize(
    ("damage", "ask", "reason"),
    [(remove, kesm_process, "shard c/1/0/0 is missing"), (flip, kesm, "shard c/1/0/0 cannot be decoded")],
)
def test_damaged_shard_is_named_the_rest_is_done_and_what_is_mended_is_done_later(brain, damage, ask, reason):
    words = ("run", brain, "--truth", "groundtruth", "--json")
    shard = brain / "0" / "c" / "1" / "0" / "0"
    whole = shard.read_bytes()
    damage(shard)
    answer = ask(*words)
    assert answer.code == 3
    assert "1 failed" in answer.err
    assert "Traceback" not in answer.err
    document = check_document("run", answer.document)
    left = {"pending": 0, "absent": 0, "undecided": 0, "no_signal": 0}
    assert document["tiles"] == {"total": 12, "done": 8, "reused": 0, "failed": 4, **left}
    assert [failure["region"] for failure in document["failures"]] == ["z=1:2,y=0:600,x=0:700"]
    assert reason in document["failures"][0]["reason"]
    assert not Volume(brain).label("otsu").full.read(Box((1, 0, 0), (2, 600, 700))).any()
    listed = check_document("status", kesm("status", brain, "--json").document)["runs"]
    assert [run["tiles"]["failed"] for run in listed] == [0, 4]
    shown = kesm("run", brain, "--truth", "groundtruth")
    assert shown.code == 3
    assert "failed: z=1:2,y=0:600,x=0:700: " in shown.out

    shard.write_bytes(whole)
    answer = kesm(*words)
    assert (answer.code, answer.document["failures"]) == (0, [])
    assert answer.document["tiles"]["reused"] == 8
    assert_same_run(brain, "otsu", "done")


def test_version_is_that_of_the_package():
    answer = kesm("--version")
    assert (answer.code, answer.out) == (0, f"kesm {importlib.metadata.version('kesm-pipeline')}\n")


@pytest.mark.parametrize("array", ["labels/done/0", "labels/done/1", "tiles/done/mask_key"])
def test_run_whose_arrays_cannot_be_opened_is_replaced(brain, array):
    kesm("run", brain, "--truth", "groundtruth", "--name", "reference")
    (brain / array / "zarr.json").write_text("{")
    words = ("run", brain, "--truth", "groundtruth", "--name", "done", "--replace", "--json")
    assert kesm(*words).document["tiles"]["reused"] == 0
    assert kesm(*words).document["tiles"]["reused"] == 12
    assert_same_run(brain, "done", "reference")


def test_run_whose_tables_are_lost_is_made_again(brain):
    kesm("run", brain, "--truth", "groundtruth", "--name", "reference")
    shutil.rmtree(brain / "tiles" / "done")
    assert kesm("run", brain, "--truth", "groundtruth", "--name", "done", "--json").document["tiles"]["done"] == 12
    assert_same_run(brain, "done", "reference")


def test_second_process_on_a_run_is_turned_away(brain):
    with FileLock("brain.zarr.run-otsu.lock"):
        answer = kesm_process("run", brain)
    assert (answer.code, answer.out) == (4, "")
    assert answer.err == (
        "error: brain.zarr: run 'otsu' is being worked on by another process (lock file brain.zarr.run-otsu.lock); "
        "wait for it to end\n"
    )
    assert [run["name"] for run in kesm("status", brain, "--json").document["runs"]] == ["done"]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_stopped_run_says_what_is_done_and_goes_on(here, number, code, word):
    volume = build_volume(here / "slow.zarr", (8, 600, 520))
    slow = ("run", "slow.zarr", "--truth", "groundtruth", "--set", "denoise.size=9", "--threads", "1", "--json")
    process = subprocess.Popen(
        [KESM, *slow],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts what runs in its background deaf to Ctrl-C, and so are the tests' children there
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    shards, deadline = volume.path / "labels" / "otsu" / "0", time.monotonic() + 100
    while not list(shards.glob("c/*/*/*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    while number == signal.SIGTERM and process.poll() is None:  # `timeout` sends it twice: to it and to its group
        process.send_signal(number)
        time.sleep(0.005)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert err.endswith(f"give the same command to go on\n{word}\n")
    done = int(err.partition("stopped: ")[2].split(" of 32 tiles are done")[0])
    assert 0 < done < 32
    assert not (here / "slow.zarr.staging").exists()

    resumed = kesm(*slow)
    assert (resumed.code, resumed.document["tiles"]["reused"]) == (0, done)
    fresh = kesm(*slow, "--name", "fresh", "--set", "cluster.threads=2")
    assert fresh.document["counts"] == resumed.document["counts"]
    assert_same_run(volume.path, "otsu", "fresh")


def test_run_that_is_stopped_before_it_starts_says_so(brain, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.segmentation.runs.run_plan", interrupt)
    answer = kesm("run", brain)
    assert (answer.code, answer.out) == (130, "")
    assert answer.err == "stopped before any block was done; give the same command to go on\ninterrupted\n"
    answer = kesm("run", brain, "--name", "done", "--region", "z=0:1")
    assert answer.err.startswith("stopped: 4 of 4 tiles are done and kept")


def test_user_without_a_name_can_run(brain, monkeypatch):
    def nameless() -> str:
        raise KeyError("uid not found")  # as in a container that runs under a number

    monkeypatch.setattr("getpass.getuser", nameless)
    assert kesm("run", brain, "--region", "z=0:1").code == 0
    assert RunTables(Volume(brain), "otsu").journal.attempts()[-1]["user"] == str(os.getuid())


# bad input: image files


def stack(folder: str, *planes: np.ndarray, first: int = 1, suffix: str = "png") -> str:
    Path(folder).mkdir()
    for number, plane in enumerate(planes, first):
        save(f"{folder}/slice_{number}.{suffix}", plane)
    return folder


def save(name: str, plane: np.ndarray, **options: Any) -> str:
    if name.endswith(".tif"):
        tifffile.imwrite(name, plane, **({"photometric": "minisblack"} | options))
    else:
        Image.fromarray(plane).save(name)
    return name


def cut(name: str, share: float = 0.6) -> str:
    path = Path(name)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return name


def write_bytes(name: str, data: bytes) -> str:
    Path(name).write_bytes(data)
    return name


def overwrite(name: str, start: float, data: bytes) -> str:
    path = Path(name)
    content = bytearray(path.read_bytes())
    at = int(len(content) * start)
    content[at : at + len(data)] = data
    path.write_bytes(bytes(content))
    return name


def colossus() -> str:
    """A TIFF file of 262 bytes that declares 3.5 TiB."""
    side = 1_961_000
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
            (278, 4, side), (279, 4, 100)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    data = b"II*\0" + struct.pack("<I", 108) + bytes(100) + directory
    return write_bytes("huge.tif", data.ljust(262, b"\0"))


def imagej_of_fewer_pages() -> str:
    tifffile.imwrite("fewer.tif", np.stack([GREY] * 3), imagej=True, metadata={"axes": "ZYX"})
    path = Path("fewer.tif")
    path.write_bytes(path.read_bytes().replace(b"images=3", b"images=5").replace(b"slices=3", b"slices=5"))
    return "fewer.tif"


def different_pages() -> str:
    with tifffile.TiffWriter("pages.tif") as file:
        file.write(GREY)
        file.write(GREY[:-1])
    return "pages.tif"


NOISE = np.random.default_rng(8).integers(0, 256, (200, 300), np.uint8)
COLOUR = np.dstack([NOISE, NOISE[::-1], NOISE[:, ::-1]])

BAD_FILES: dict[str, tuple[Callable[[], str], str]] = {
    "missing file": (lambda: "nope.png", r"^nope\.png: no such file or folder"),
    "missing folder": (lambda: "no/where", r"^no/where: no such file or folder"),
    "empty folder": (lambda: stack("empty"), r"^empty: the folder holds no image: it is empty"),
    "folder without images": (lambda: str(Path(write_bytes("a.txt", b"x")).parent),
                              r"the folder holds no image: none of its 2 entries ends in \.png"),
    "pattern without matches": (lambda: "*.png", r"^\*\.png: the pattern holds no image"),
    "empty file": (lambda: write_bytes("a.png", b""), r"^a\.png: is empty; re-export it or leave it out"),
    "not an image": (lambda: write_bytes("a.png", b"a letter"), r"^a\.png: is not a PNG, JPEG, BMP or TIFF image; "),
    "truncated png": (lambda: cut(save("a.png", NOISE)), r"^a\.png: cannot be decoded .*re-export it or leave it out"),
    "truncated jpeg": (lambda: cut(save("a.jpg", NOISE)), r"^a\.jpg: cannot be decoded .*re-export it"),
    "truncated tiff": (lambda: cut(save("a.tif", NOISE)), r"^a\.tif: cannot be decoded .*re-export it"),
    "corrupt png": (lambda: overwrite(save("a.png", NOISE), 0.5, bytes(90)), r"^a\.png: cannot be decoded"),
    "corrupt deflate": (lambda: overwrite(save("a.tif", NOISE, compression="zlib"), 0.5, bytes(90)),
                        r"^a\.tif: cannot be decoded"),
    "corrupt lzw": (lambda: overwrite(save("a.tif", NOISE, compression="lzw"), 0.5, b"\xff" * 90),
                    r"^a\.tif: cannot be decoded"),
    "png header only": (lambda: cut(save("a.png", NOISE), 0.0005), r"^a\.png: cannot be decoded"),
    "fewer pages than declared": (imagej_of_fewer_pages, r"^fewer\.tif: .*declares 5 slices.*3 pages"),
    "pages of different size": (different_pages, r"^pages\.tif#1: is uint8 \(39, 56\), pages\.tif#0 is uint8 \(40, "),
    "claims 3.5 TiB": (colossus, r"^huge\.tif: .*(declares|end outside)"),
    "slices of different size": (lambda: stack("s", GREY, GREY, GREY[:-1]),
                                 r"^slice_3\.png: is uint8 \(39, 56\), slice_1\.png is uint8 \(40, 56\); .*leave"),
    "slices of different type": (lambda: stack("s", GREY, GREY.astype(np.uint16), suffix="tif"),
                                 r"^slice_2\.tif: is uint16 .*, slice_1\.tif is uint8"),
    "colour": (lambda: save("a.png", COLOUR), r"^a\.png: is a colour image, .*; choose --channel red\|green"),
    "float": (lambda: save("a.tif", NOISE.astype(np.float32)), r"^a\.tif: has .*float32.*convert it to 8 or 16 bit"),
    "nan": (lambda: save("a.tif", np.full((9, 9), np.nan)), r"^a\.tif: has .*float64.*convert it to 8 or 16 bit"),
    "32 bit": (lambda: save("a.tif", NOISE.astype(np.uint32)), r"^a\.tif: has .*uint32.*convert it to 8 or 16 bit"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_image_file_gets_one_message_and_leaves_nothing(here, case):
    make, message = BAD_FILES[case]
    source = make()
    (here / "out").mkdir()
    answer = kesm("ingest", source, "--volume", "out/brain.zarr")
    assert_matches(message, answer.message)
    assert list((here / "out").iterdir()) == []


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(AssertionError, match=pattern):
        raise AssertionError(text)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(["a.png", "./a.png"], r"a\.png: is named twice; name each file once", id="duplicate"),
        pytest.param(["s_1.png", "s_01.png"], r"s_1\.png and s_01\.png: same place in the z order; leave one out or",
                     id="unordered"),
    ],
)  # fmt: skip
def test_order_of_slices_must_be_clear(here, names, message):
    for name in names:
        save(name, GREY)
    assert_matches(message, kesm("ingest", *names, "--volume", "out.zarr").message)
    assert not (here / "out.zarr").exists()


# bad input: ingest


BAD_INGESTS = {
    "volume exists": (
        ["s", "--volume", "brain.zarr"],
        r"^brain\.zarr: exists already; add slices with --append, or choose another --volume",
    ),
    "no parent": (
        ["s", "--volume", "no/such/v.zarr"],
        r"^no/such: no such folder; make it first",
    ),
    "append to nothing": (
        ["s", "--volume", "new.zarr", "--append"],
        r"^new\.zarr: no such volume; make one with `kesm ingest",
    ),
    "append to a folder": (
        ["s", "--volume", "s", "--append"],
        r"^s: is not an OME-Zarr volume; make one with `kesm ingest`",
    ),
    "append another size": (
        ["s", "--volume", "brain.zarr", "--append"],
        r"^slice_1\.png: is 40 x 56, the slices of brain\.zarr are 600 x 700; crop it or leave it out",
    ),
    "label of another size": (
        ["s", "--volume", "brain.zarr", "--label", "l"],
        r"^slice_1\.png: is 40 x 56, the slices of .* are 600 x 700",
    ),
    "label beyond the end": (
        ["big", "--volume", "brain.zarr", "--label", "l", "--start-z", "3"],
        r"^--start-z: slice_9\.png would be slice 3, which does not exist; brain\.zarr has slices 0 "
        r"to 2",
    ),
    "label of no slice": (
        ["big", "--volume", "brain.zarr", "--label", "l"],
        r"^slice_9\.png: cannot be placed: .*3 slices of brain\.zarr \(0\.png to 2\.png\); leave it "
        r"out, or give .*--start-z",
    ),
    "label of many values": (
        ["big", "--volume", "brain.zarr", "--label", "l", "--start-z", "0"],
        r"^--label l: its files hold 256 values \(0, 1, .*--vessel-above LEVEL.*--unlabelled VALUE",
    ),
    "label named like a run": (
        ["big", "--volume", "brain.zarr", "--label", "done", "--start-z", "0"],
        r"^--label: 'done' is the mask of a run of brain\.zarr; choose another name",
    ),
    "label with a space": (
        ["big", "--volume", "brain.zarr", "--label", "a b"],
        r"^--label: got 'a b', a name starts with|^--label: got 'a b'; a name starts with",
    ),
    "label of nothing": (
        ["s", "--volume", "new.zarr", "--label", "l"],
        r"^new\.zarr: no such volume",
    ),
    "label's options": (
        ["s", "--volume", "n.zarr", "--start-z", "1", "--unlabelled", "9"],
        r"^--start-z, --unlabelled: only with --label NAME; leave them out",
    ),
    "image's options": (
        ["s", "--volume", "brain.zarr", "--label", "l", "--append"],
        r"^--append: only without --label; leave it out",
    ),
    "two lengths": (
        ["s", "--volume", "n.zarr", "--voxel-size", "1,2"],
        r"^--voxel-size: got '1,2', expected z,y,x in micrometres, such as 1,0\.7,0\.6",
    ),
    "no length": (
        ["s", "--volume", "n.zarr", "--voxel-size", "1,0,nan"],
        r"^--voxel-size: got '1,0,nan', expected micrometres, each from 0\.001 to 1,000,000$",
    ),
    "lengths in metres": (
        ["s", "--volume", "n.zarr", "--voxel-size", "1e-6,0.7e-6,0.6e-6"],
        r"^--voxel-size: got '1e-6,0\.7e-6,0\.6e-6', expected micrometres, each from 0\.001 to 1,000,000$",
    ),
    "level nan": (
        ["s", "--volume", "brain.zarr", "--label", "l", "--vessel-above", "nan"],
        r"^--vessel-above: got nan, expected a grey level",
    ),
    "channel of grey": (
        ["s", "--volume", "n.zarr", "--channel", "red"],
        r"^slice_1\.png: has one channel, not 'red'; leave out --channel",
    ),
    "threads": (
        ["s", "--volume", "n.zarr", "--threads", "0"],
        r"--threads.*; see `kesm ingest --help`",
    ),
    "no volume": (
        ["s"],
        r"^Missing option '--volume'; see `kesm ingest --help`",
    ),
    "no slices": (
        ["--volume", "n.zarr"],
        r"^Missing argument .*; see `kesm ingest --help`",
    ),
}


@pytest.mark.parametrize(("words", "message"), BAD_INGESTS.values(), ids=[*BAD_INGESTS])
def test_bad_ingest_gets_one_message_and_changes_nothing(brain, here, words, message):
    stack("s", GREY)
    stack("big", np.random.default_rng(1).integers(0, 256, (600, 700), np.uint8), first=9)
    before = paths(here)
    assert_matches(message, kesm("ingest", *words).message)
    assert paths(here) == before


# bad input: run and plan

CONFIG = """volume: brain.zarr
treshold: {method: otsu}
denoise: {method: median, size: 4, sise: 3}
tile: 5000
memory: lots
region: z=0
cluster: {engine: threads, thread: 2}
"""


BAD_RUNS = {
    "missing": (
        ["nope.zarr"],
        r"^nope\.zarr: no such volume; make one with `kesm ingest SLICES --volume",
    ),
    "missing config": (
        ["nope.yaml"],
        r"^nope\.yaml: no such configuration file",
    ),
    "folder": (
        ["folder"],
        r"^folder: is not an OME-Zarr volume; make one with `kesm ingest`",
    ),
    "file": (
        ["file"],
        r"^file: is not an OME-Zarr volume",
    ),
    "zarr group": (
        ["brain.zarr/labels"],
        r"^brain\.zarr/labels: is a Zarr group, but not a volume",
    ),
    "misspelt key": (
        ["brain.zarr", "--set", "treshold.method=otsu"],
        r"treshold: unknown key; did you mean `threshold`\?",
    ),
    "misspelt inner key": (
        ["brain.zarr", "--set", "threshold.methd=otsu"],
        r"threshold\.methd: unknown key; did you mean `method`\?",
    ),
    "misspelt method": (
        ["brain.zarr", "--set", "threshold.method=otso"],
        r"threshold\.method: got 'otso', did you mean `otsu`\?",
    ),
    "even median": (
        ["brain.zarr", "--set", "denoise.size=4"],
        r"denoise\.size: got 4, a median needs an odd size.*; use 5",
    ),
    "no value": (
        ["brain.zarr", "--set", "denoise"],
        r"^--set: got 'denoise'.* write it as key=value",
    ),
    "tile and shard": (
        ["wide.zarr", "--set", "tile=300"],
        r"^tile: got 300, which does not divide the shard of 2048 voxels; use a divisor of 2048, such "
        r"as 256, 512 or 1024",
    ),
    "region outside": (
        ["brain.zarr", "--region", "z=0:9"],
        r"^region: got z=0:9, the volume has z=0:3; choose a part of that",
    ),
    "region reversed": (
        ["brain.zarr", "--region", "z=2:1"],
        r"region: got z=2:1",
    ),
    "no region": (
        ["brain.zarr", "--region", "0:9"],
        r"region: got '0:9', .*write it as z=0:10,y=0:4096",
    ),
    "no such label": (
        ["brain.zarr", "--truth", "nope"],
        r"^brain\.zarr: has no label 'nope'; it has: done, groundtruth; add one with ",
    ),
    "truth is a mask": (
        ["brain.zarr", "--truth", "done"],
        r"^brain\.zarr: 'done' is the mask of a run, not a truth",
    ),
    "name is a label": (
        ["brain.zarr", "--name", "groundtruth"],
        r"^name: 'groundtruth' is a label of brain\.zarr already; choose another --name",
    ),
    "bad name": (
        ["brain.zarr", "--name", "../x"],
        r"name: got '\.\./x'",
    ),
    "another recipe": (
        ["brain.zarr", "--name", "done", "--foreground", "bright"],
        r"^brain\.zarr: run 'done' was made with another recipe:\n  foreground: dark -> bright\n"
        r"keep it, and give this one a name of its own with --name; or throw it away with --replace$",
    ),
    "memory": (
        ["brain.zarr", "--memory", "10MB"],
        r"^memory: 0\.01 GB are allowed, 0\.[0-9]{2} GB are needed .*; allow more with --memory, or use fewer "
        r"--threads",
    ),
    "memory of a run that exists": (
        ["brain.zarr", "--name", "done", "--memory", "100MB"],
        r"^memory: 0\.10 GB are allowed, 0\.[0-9]{2} GB are needed",
    ),
    "no memory": (
        ["brain.zarr", "--memory", "lots"],
        r"memory: got 'lots'.*write it as 4GB or 500MB",
    ),
    "bad address": (
        ["brain.zarr", "--scheduler", "nowhere"],
        r"cluster\.address: got 'nowhere', expected a tcp:// address such as tcp://host:8786",
    ),
    "address with certificates": (
        ["brain.zarr", "--scheduler", "tls://host:8786"],
        r"cluster\.address: got 'tls://host:8786', expected a tcp:// address such as tcp://host:8786",
    ),
    "unknown option": (
        ["brain.zarr", "--regoin", "z=0:1"],
        r"^No such option: --regoin.*see `kesm (run|plan) --help`",
    ),
}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(("words", "message"), BAD_RUNS.values(), ids=[*BAD_RUNS])
def test_bad_run_gets_one_message_and_changes_nothing(brain, here, command, words, message):
    (here / "folder").mkdir()
    (here / "file").write_text("a letter")
    Volume.create(here / "wide.zarr", (1, 16, 2100), "uint8")
    before = paths(here)
    assert_matches(message, kesm(command, *words).message)
    assert paths(here) == before


def test_all_errors_of_a_file_come_at_once_with_their_lines(brain, here):
    (here / "a.yaml").write_text(CONFIG)
    message = kesm("run", "a.yaml").message
    assert sorted(line.split(": ")[:2] for line in message.splitlines()) == [
        ["a.yaml:2", "treshold"], ["a.yaml:3", "denoise.sise"], ["a.yaml:3", "denoise.size"], ["a.yaml:4", "tile"],
        ["a.yaml:5", "memory"], ["a.yaml:6", "region"], ["a.yaml:7", "cluster.thread"],
    ]  # fmt: skip
    for words in ("did you mean `threshold`?", "did you mean `size`?", "did you mean `threads`?", "use 5"):
        assert words in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["statu"], r"^No such command 'statu'\. Did you mean 'status'\? See `kesm --help`$"),
        (["status"], r"^Missing argument 'VOLUME'; see `kesm status --help`$"),
        (["status", "a", "b"], r"^Got unexpected extra argument.* see `kesm status --help`$"),
        (["--bogus"], r"^No such option: --bogus; see `kesm --help`$"),
        (
            ["status", "nope.zarr"],
            r"^nope\.zarr: no such volume; make one with `kesm ingest SLICES --volume nope\.zarr`$",
        ),
        (["demo", "file"], r"^file: is a file; name another folder: kesm demo DIR$"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_words_get_one_message(here, words, message):
    (here / "file").write_text("no folder")
    assert_matches(message, kesm(*words).message)
    assert paths(here) == {"file"}


def test_bad_input_as_a_process(here):
    answer = kesm_process("run", "nope.zarr")
    assert answer.message == "nope.zarr: no such volume; make one with `kesm ingest SLICES --volume nope.zarr`"
    assert list(here.iterdir()) == []


def test_scheduler_that_is_not_there(brain, here, monkeypatch):
    monkeypatch.setattr("pipeline.segmentation.runs.start_engine", partial(start_engine, connect_s=0.5))
    before = paths(here)
    answer = kesm("run", brain, "--scheduler", "tcp://127.0.0.1:1")
    assert answer.message == (
        "tcp://127.0.0.1:1: no Dask scheduler answers there; start one with `dask scheduler`, or check the address"
    )
    assert paths(here) == before


# bad input: disks


def mount(*words: object) -> None:
    """Mount something, or skip the test where that is not permitted."""
    program = shutil.which("mount")
    if program is None:
        pytest.skip("there is no `mount` here")
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")


@contextlib.contextmanager
def unmounted_after(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that cannot be written to: for root, who may write anywhere, on a file system that is read-only."""
    if os.geteuid():
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(0o700)
        return
    mount("--bind", folder, folder)
    with unmounted_after(folder):
        mount("-o", "remount,bind,ro", folder)
        yield


def test_read_only_folder(brain, here):
    (here / "disk").mkdir()
    (here / "brain.zarr").rename(here / "disk" / "brain.zarr")
    stack("s", GREY)
    stack("fits", np.zeros((600, 700), np.uint8), first=9)
    before = paths(here)
    with read_only(here / "disk"):
        for words in (
            ["ingest", "s", "--volume", "disk/new.zarr"],
            ["ingest", "fits", "--volume", "disk/brain.zarr", "--append"],
            ["ingest", "fits", "--volume", "disk/brain.zarr", "--label", "l", "--start-z", "0"],
            ["run", "disk/brain.zarr"],
            ["demo", "disk/demo"],
        ):
            reasons = r"(the file system is read-only; write to another place|permission denied; check the owner)"
            assert_matches(rf"^disk/.*: {reasons}", kesm(*words).message)
        assert kesm("status", "disk/brain.zarr").code == 0
        assert kesm("plan", "disk/brain.zarr").code == 0
    assert paths(here) == before


def test_full_disk(here):
    disk, rng = here / "disk", np.random.default_rng(4)
    disk.mkdir()
    stack("many", *[rng.integers(0, 256, (1024, 1024), np.uint8) for _ in range(5)])
    stack("two", *[textured(rng, (1024, 1024)) for _ in range(2)])
    stack("more", *[rng.integers(0, 256, (1024, 1024), np.uint8) for _ in range(3)], first=3)
    full = r"^disk/.*: the disk is full; make room, then run the same command again$|cannot be written .*; make room"
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", disk)
    with unmounted_after(disk):
        assert_matches(full, kesm("ingest", "many", "--volume", "disk/brain.zarr").message)
        assert list(disk.iterdir()) == []

        assert kesm("ingest", "two", "--volume", "disk/brain.zarr").code == 0
        before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
        assert_matches(full, kesm("ingest", "more", "--volume", "disk/brain.zarr", "--append").message)
        assert {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()} == before

        words = ("run", "disk/brain.zarr", "--threads", "1", "--json")
        for left in (4096, 120_000):  # for less than the tables, and for less than the mask
            room = shutil.disk_usage(disk).free - left
            (disk / "filler").write_bytes(bytes(room))
            assert_matches(full, kesm(*words).message)
            (disk / "filler").unlink()
            assert not (disk / "brain.zarr.staging").exists()
        answer = kesm(*words)
        assert answer.code == 0
        assert check_document("run", answer.document)["tiles"]["done"] == 8
        kesm(*words, "--name", "fresh")
        assert_same_run(Path("disk/brain.zarr"), "otsu", "fresh")
