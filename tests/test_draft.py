"""What is written appears whole or not at all."""

from __future__ import annotations

import errno
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError, ExistsError, MissingInputError, StorageError
from pipeline.segmentation.runs import run
from pipeline.storage.draft import check_place, draft_file, draft_folder
from tests.builders import build_volume, run_config
from tests.command import kesm


def is_text(name: str) -> bool:
    return name.endswith(".txt")


def break_off(path, error: BaseException) -> None:
    with draft_file(path, replace=True) as partial:
        partial.write_text("half")
        raise error


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "table.csv"
    with draft_file(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.parent == tmp_path  # of the same file system
    assert path.read_text() == "half"
    assert names(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()], ids=repr)
def test_broken_off_file_leaves_nothing_and_the_old_one(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(type(error)):
        break_off(path, error)
    assert names(tmp_path) == ["table.csv"]
    assert path.read_text() == "old"


def test_file_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(ExistsError, match=r"table.csv: exists already; overwrite it with --replace"), draft_file(path):
        pytest.fail("nothing must be written")
    with draft_file(path, replace=True) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"


def test_wrong_places_are_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"the folder .*/none does not exist"), draft_file(tmp_path / "none/t"):
        pytest.fail("nothing must be written")
    with pytest.raises(ExistsError, match="is a folder; name a file in it"), draft_file(tmp_path, replace=True):
        pytest.fail("nothing must be written")


def test_full_disk_is_said_in_words(tmp_path):
    path = tmp_path / "table.csv"
    with pytest.raises(StorageError, match=r"table.csv: the disk is full; make room"):
        break_off(path, OSError(errno.ENOSPC, "No space left on device"))
    assert names(tmp_path) == []


def test_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "slices"
    with draft_folder(path, is_text) as folder:
        (folder / "a.txt").write_text("a")
        assert not path.exists()
    assert names(path) == ["a.txt"]
    assert names(tmp_path) == ["slices"]


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "slices").mkdir()
    with draft_folder(tmp_path / "slices", is_text) as folder:
        (folder / "a.txt").write_text("a")
    assert names(tmp_path / "slices") == ["a.txt"]
    assert names(tmp_path) == ["slices"]


def test_folder_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "slices"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with pytest.raises(ExistsError, match="exists already; overwrite it with --replace"), draft_folder(path, is_text):
        pytest.fail("nothing must be written")
    with pytest.raises(ValueError, match="a bug"), draft_folder(path, is_text, replace=True):
        raise ValueError("a bug")
    assert names(path) == ["old.txt"]
    with draft_folder(path, is_text, replace=True) as folder:
        (folder / "new.txt").write_text("new")
    assert names(path) == ["new.txt"]
    assert names(tmp_path) == ["slices"]


def dead_process() -> int:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    return dead.pid


def test_old_folder_is_put_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path, rename = tmp_path / "slices", Path.rename
    path.mkdir()
    (path / "old.txt").write_text("old")

    def refuse(self, target):
        if target == path and not self.name.endswith(".old.partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageError, match="the disk is full"), draft_folder(path, is_text, replace=True) as folder:
        (folder / "new.txt").write_text("new")
    assert names(path) == ["old.txt"]
    assert names(tmp_path) == ["slices"]


KILLED = """
import os, sys
from pathlib import Path
from pipeline.storage.draft import draft_folder

path, rename = Path(sys.argv[1]), Path.rename
Path.rename = lambda self, target: os._exit(9) if target == path else rename(self, target)
with draft_folder(path, lambda name: True, replace=True) as folder:
    (folder / "new.txt").write_text("new")
"""


def test_what_a_killed_process_was_replacing_is_put_back(tmp_path):
    path = tmp_path / "slices"
    path.mkdir()
    (path / "old.txt").write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED, path], check=False).returncode == 9
    assert not path.exists()
    with pytest.raises(ExistsError, match="exists already"), draft_folder(path, is_text):
        pytest.fail("nothing must be written")
    assert names(path) == ["old.txt"]
    assert names(tmp_path) == ["slices"]


def test_link_to_a_folder_is_replaced_and_the_folder_stays(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "old.txt").write_text("old")
    (tmp_path / "slices").symlink_to("far")
    for _ in range(2):
        with draft_folder(tmp_path / "slices", is_text, replace=True) as folder:
            (folder / "new.txt").write_text("new")
    assert names(tmp_path / "far") == ["old.txt"]
    assert names(tmp_path / "slices") == ["new.txt"]
    assert names(tmp_path) == ["far", "slices"]


def test_what_cannot_be_looked_at_is_said(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    long = tmp_path / ("x" * 300)
    with pytest.raises(StorageError, match="x: cannot be written"), draft_file(long):
        pytest.fail("nothing must be written")
    (tmp_path / "slices").mkdir()
    monkeypatch.setattr(Path, "iterdir", refused)
    with (
        pytest.raises(StorageError, match="slices: permission denied"),
        draft_folder(tmp_path / "slices", is_text),
    ):
        pytest.fail("nothing must be written")


def test_folder_with_files_of_others_is_never_replaced(tmp_path):
    (tmp_path / "thesis.doc").write_text("years of work")
    with (
        pytest.raises(ExistsError, match=r"holds thesis.doc, which is not of an export and is not replaced"),
        draft_folder(tmp_path, is_text, replace=True),
    ):
        pytest.fail("nothing must be written")
    with (
        pytest.raises(ExistsError, match="is a file, which is not of an export"),
        draft_folder(tmp_path / "thesis.doc", is_text, replace=True),
    ):
        pytest.fail("nothing must be written")


def test_folder_that_one_stands_in_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("thesis.doc").write_text("years of work")
    for path in (Path(), Path("..")):
        with pytest.raises(ExistsError, match="which is not of an export"), draft_folder(path, is_text, replace=True):
            pytest.fail("nothing must be written")


def test_nothing_is_written_into_zarr_data(tmp_path):
    brain = tmp_path / "brain.zarr"
    (brain / "labels").mkdir(parents=True)
    (brain / "zarr.json").write_text("{}")
    (brain / "out.csv").symlink_to(tmp_path / "out.csv")
    for name, target in {"way": "brain.zarr/labels", "table.csv": "brain.zarr/zarr.json"}.items():
        (tmp_path / name).symlink_to(target)
    for name in ("brain.zarr", "brain.zarr/t", "brain.zarr/labels/t", "brain.zarr/out.csv", "way/t", "table.csv"):
        refused = pytest.raises(ConfigError, match=f"{name}: would lie in .*brain.zarr, which is Zarr data; choose")
        with refused, draft_file(tmp_path / name, replace=True):
            pytest.fail("nothing must be written")
        with refused, draft_folder(tmp_path / name, is_text, replace=True):
            pytest.fail("nothing must be written")
    with pytest.raises(ConfigError, match="choose a place outside of it"):
        check_place(brain / "best.yaml", replace=True, option="--write")


COMMANDS = {
    "report": ["report", "brain.zarr", "--out", "brain.zarr/sub/report"],
    "one report": ["report", "brain.zarr", "--out", "brain.zarr/report.html"],
    "report itself": ["report", "brain.zarr", "--out", "brain.zarr"],
    "figure": ["figure", "overview", "brain.zarr", "--out", "brain.zarr/a.png"],
    "export": ["export", "brain.zarr", "--image", "--out", "brain.zarr/labels/slices"],
    "export file": ["export", "brain.zarr", "--image", "--out", "brain.zarr/a.ome.tif", "--replace"],
    "export itself": ["export", "brain.zarr", "--image", "--out", "brain.zarr", "--replace"],
    "tables": ["tables", "brain.zarr", "--out", "brain.zarr/a.csv", "--replace"],
    "compare": ["compare", "brain.zarr", "--write", "brain.zarr/a.yaml"],
    "train": ["train", "brain.zarr", "--out", "brain.zarr/a.skops"],
    "ingest": ["ingest", "slice.png", "--volume", "brain.zarr/inner.zarr"],
    "sync": ["sync", "inner.yaml"],
    "demo": ["demo", "brain.zarr"],
}


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volume with a run."""
    volume = build_volume(tmp_path_factory.mktemp("draft") / "brain.zarr", (1, 64, 64))
    run(run_config(volume))
    return volume.path


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_no_command_writes_into_a_volume(brain, monkeypatch, words):
    monkeypatch.chdir(brain.parent)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save("slice.png")
    Path("inner.yaml").write_text("volume: brain.zarr/inner.zarr\nsync:\n  images: {folder: .}\n")
    before = sorted(brain.rglob("*"))
    assert re.search(r": would lie in brain.zarr\S*, which is Zarr data", kesm(*words).message)
    assert sorted(brain.rglob("*")) == before


def test_a_command_that_stands_in_a_volume_may_write_beside_it(brain, monkeypatch):
    monkeypatch.chdir(brain)
    before = sorted(brain.rglob("*"))
    assert kesm("report", ".", "--out", "..").code == 0
    assert (brain.parent / "brain-otsu.html").is_file()
    assert kesm("report", ".", "--out", "labels/..").code == 2
    assert sorted(brain.rglob("*")) == before


def test_what_dead_processes_left_is_swept_and_that_of_live_ones_stays(tmp_path):
    dead, host = dead_process(), platform.node()
    (tmp_path / f"table.csv.{host}-{dead}-00.partial").write_text("left")
    (tmp_path / f"table.csv.{host}-{dead}-01.partial").mkdir()
    kept = [f"table.csv.{host}-{os.getpid()}-00.partial", f"table.csv.other-{dead}-00.partial",
            f"other.csv.{host}-{dead}-00.partial"]  # fmt: skip
    for name in kept:
        (tmp_path / name).write_text("at work")
    with draft_file(tmp_path / "table.csv") as partial:
        partial.write_text("whole")
    assert names(tmp_path) == sorted([*kept, "table.csv"])
