"""Every benchmark, as small as it works: its figures mean nothing then, but it must come to its end."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import pipeline.segmentation.segment
from pipeline.storage.store import ShardedArray
from tests.command import kesm

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = (
    "full_volume",
    "peers",
    "choosing",
    "kernels",
    "scaling",
    "memory",
    "ingest",
    "layout",
    "startup",
    "resume",
    "components",
)
CHILDREN = ("first_tile", "roofline", "stages")
NEEDS = {
    "components": ("cc3d", "dask_image"),
    "full_volume": ("zarrs",),
    "kernels": ("cv2", "sklearn"),
    "layout": ("zarrs",),
    "peers": ("dask_image", "sklearn"),
    "resume": ("pyarrow",),
}
WORDS = {"scaling": ("--threads-only",)}  # processes take seconds to start


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let benchmarks be imported, as they do each other; and let their commands run in this process."""
    monkeypatch.syspath_prepend(FOLDER)
    command = importlib.import_module("command")

    def call(*words: object, cpus: int | None = None) -> Any:
        begin = time.perf_counter()
        if words[0] == command.KESM:
            answer = kesm(*words[1:])
            assert answer.code == 0, answer
            document = answer.document
        else:
            _, script, *rest = map(str, words)
            document = json.loads(run_main(Path(script).stem, *rest))
        return command.Finished(time.perf_counter() - begin, 0, document)

    for name in ("command", "full_volume", "ingest"):
        monkeypatch.setattr(importlib.import_module(name), "call", call)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")  # as `layout` sets it


def run_main(name: str, *words: object) -> str:
    """Run the program of this name in this process, and return what it has printed."""
    arguments, out = sys.argv, io.StringIO()
    sys.argv = [f"{name}.py", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out):
            importlib.import_module(name).main()
    finally:
        sys.argv = arguments
    return out.getvalue()


def tables(text: str) -> list[list[str]]:
    """Lines of each Markdown table."""
    return [found.splitlines() for found in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)]


def need(name: str) -> None:
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)


def check(printed: str, json_file: Path) -> dict[str, Any]:
    """Check that there is a table, or more, with rows in it, and figures with their machine; return those."""
    assert tables(printed)
    for head, rule, *rows in tables(printed):
        assert rows
        assert {line.count(" | ") for line in (head, rule, *rows)} == {head.count(" | ")}
    figures = json.loads(json_file.read_text(encoding="utf-8"))
    assert figures.pop("machine")["packages"]["zarr"]
    return figures


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_comes_to_its_end(name, tmp_path):
    need(name)
    target = tmp_path / "figures.json"
    assert check(run_main(name, "--quick", *WORDS.get(name, ()), "--json", target), target)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_benchmark_comes_to_its_end_in_processes(name, tmp_path):
    need(name)
    target = tmp_path / "figures.json"
    words = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--json", str(target)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert check(done.stdout, target)


def test_all_benchmarks_are_listed():
    programs = {path.stem for path in FOLDER.glob("*.py") if "\ndef main() " in path.read_text(encoding="utf-8")}
    assert programs == {*NAMES, *CHILDREN}
    script = (FOLDER.parent / "scripts" / "bench").read_text(encoding="utf-8")
    assert [words.split() for words in re.findall(r"names=\((.*)\)", script)] == [list(NAMES)]
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)\.py` \|", readme, re.MULTILINE)) == set(NAMES)
    assert set(re.findall(r"^## .*: `(\w+)\.py`$", readme, re.MULTILINE)) == set(NAMES)


def test_quick_has_its_own_defaults_which_words_override(monkeypatch):
    record = importlib.import_module("record")
    options = (("--slices", {"type": int, "default": 799, "quick": 2}), ("--folder", {"default": "here"}))
    for words, slices in ([], 799), (["--quick"], 2), (["--quick", "--slices", "5"], 5):
        monkeypatch.setattr(sys, "argv", ["x.py", *words])
        found = record.parse("", *options)
        assert (found.slices, found.folder) == (slices, "here")


class Work:
    """Takes time of a clock that nothing else moves."""

    now = 0.0

    def outer(self) -> str:
        Work.now += 1
        self.inner()
        Work.now += 2
        return "done"

    def inner(self) -> None:
        Work.now += 5


def test_a_stage_has_its_time_without_that_of_other_stages(monkeypatch):
    stages = importlib.import_module("stages")
    monkeypatch.setattr(time, "process_time", lambda: Work.now)
    monkeypatch.setattr(stages, "FUNCTIONS", (("outer", Work, ("outer",)), ("inner", Work, ("inner",))))
    before = dict(vars(Work)), dict(vars(pipeline.segmentation.segment))
    clock = stages.Clock()
    Work.now += 50  # before the run
    with clock.running():
        Work.now += 10
        assert Work().outer() == "done"
        Work().inner()
        Work.now += 20
    Work.now += 50
    assert clock.spent == {"other": 30, "outer": 3, "inner": 10}
    assert {key: value for key, value in vars(Work).items() if key != "now"} == {
        key: value for key, value in before[0].items() if key != "now"
    }
    assert dict(vars(pipeline.segmentation.segment)) == before[1]


@pytest.fixture
def volumes(tmp_path: Path) -> tuple[str, str, str, int]:
    """What `stages.measure` takes."""
    specimen = importlib.import_module("specimen")
    paths = [specimen.build_volume(tmp_path / name, 1, (600, 520)) for name in ("warm.zarr", "full.zarr")]
    return str(paths[0]), str(paths[1]), "stages", 1


def test_stages_account_for_the_whole_run(volumes, monkeypatch):
    stages = importlib.import_module("stages")
    ticks = iter(range(10**9))
    monkeypatch.setattr(time, "process_time", lambda: float(next(ticks)))  # so that a stage has its calls as its time
    spent = stages.measure(*volumes)
    assert sum(spent.values()) * 600 * 520 / 1e9 == pytest.approx(next(ticks) - 2)  # the clock is made, then started
    calls = {stage: round(value * 600 * 520 / 1e9) for stage, value in spent.items()}
    assert list(calls)[-1] == "other"
    assert calls["filter"] == calls["level"] == calls["mask"] == calls["counts"] == calls["seams"] == 1
    assert calls["histogram"] == 2


def test_a_stage_that_has_moved_is_an_error(volumes, monkeypatch):
    stages = importlib.import_module("stages")
    monkeypatch.setattr(stages, "FUNCTIONS", (*stages.FUNCTIONS, ("moved", ShardedArray, ("erase",))))
    with pytest.raises(SystemExit, match="stages moved were never at work"):
        stages.measure(*volumes)


def test_a_new_step_is_a_stage_of_its_own(volumes, monkeypatch):
    stages = importlib.import_module("stages")
    known = tuple(function for function in stages.FUNCTIONS if function[0] != "seams")
    monkeypatch.setattr(stages, "FUNCTIONS", known)
    assert "tally" in stages.measure(*volumes)  # the module that `seam_pairs` is from
