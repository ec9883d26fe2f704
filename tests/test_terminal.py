"""What a person sees: lines where it is no terminal, a bar where it is one, tables at the end."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from datetime import datetime, timedelta
from shlex import quote
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipeline.events import BlockDone, BlocksSettled, Event, JobDone, JobsStarted, Started
from pipeline.findings.summary import Summary, Tiles, describe
from pipeline.geometry import Box
from pipeline.kernels.confusion import SCORES, Counts, Macro, Scores, scores
from pipeline.segmentation.plan import make_plan
from pipeline.segmentation.runs import run
from pipeline.settings.recipe import FixedThreshold, MedianDenoise, NoDenoise, Recipe
from pipeline.storage.volume import Volume
from pipeline.terminal.console import make_console
from pipeline.terminal.meter import Meter
from pipeline.terminal.outlook import recipe_words, show_plan
from pipeline.terminal.results import failure_lines, score_rows, show_summary
from pipeline.terminal.status import StatusBoard, activity_words, show_status
from tests.builders import build_volume, run_config
from tests.command import kesm

COUNTS = Counts(tp=5595, fp=122, fn=1863, tn=254564)


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def result(**changes: object) -> Summary:
    done = Summary(
        name="otsu", volume="brain.zarr", region=None, truth="groundtruth", voxels=262144, annotated=262144,
        counts=COUNTS, scores=scores(COUNTS), macro=Macro(scores(COUNTS), 1, dict.fromkeys(SCORES, 0)),
        levels=(79.0, 79.0, 79.0), tiles=Tiles(total=1, done=1, reused=0, failed=0, pending=0, absent=0),
        failures=[], elapsed_s=0.5,
    )  # fmt: skip
    return replace(done, **changes)


def shown(summary: Summary, width: int = 100) -> str:
    stream = io.StringIO()
    show_summary(summary, Console(file=stream, width=width, markup=False))
    return stream.getvalue()


def events(blocks: int, reused: int = 0, failed: int = 0) -> list[Event]:
    done = [BlockDone(1000, (5, 1, 2, 900), False, False)] * (blocks - reused - failed)
    return [
        Started("threads", None),
        *done,
        *[BlockDone(1000, (5, 1, 2, 900), True, False)] * reused,
        *[BlockDone(0, (0, 0, 0, 0), False, True)] * failed,
    ]


def test_plain_lines_where_it_is_no_terminal():
    stream = io.StringIO()
    with Meter("image", unit_bytes=10**6, stream=stream) as meter:
        for event in [JobsStarted(3), JobDone(), JobDone(), JobDone()]:
            meter(event)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1  # the others came within five seconds
    assert lines[0].startswith("image: 3/3, ")
    assert lines[0].endswith(" MB/s")


def test_lines_tell_rate_time_left_and_counts(monkeypatch):
    monkeypatch.setattr("pipeline.terminal.meter.PLAIN_EVERY_S", -1.0)
    stream = io.StringIO()
    with Meter("run otsu", total=5, stream=stream) as meter:
        for event in events(5, reused=1, failed=1):
            meter(event)
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [f"run otsu: {done}/5" for done in range(1, 6)]
    assert "Mvoxel/s" in lines[0]
    assert " s left" in lines[0]
    assert " s left" not in lines[-1]
    assert lines[-1].endswith("tp 20 fp 4 fn 8 tn 3.6k mcc 0.770 1 failed")


def test_score_that_will_be_another_is_not_shown(monkeypatch):
    monkeypatch.setattr("pipeline.terminal.meter.PLAIN_EVERY_S", -1.0)
    stream = io.StringIO()
    with Meter("run otsu", total=2, stream=stream, scored=False) as meter:
        for event in events(2, failed=1):
            meter(event)
    assert re.fullmatch(r"run otsu: 2/2, \d+ Mvoxel/s, 1 failed", stream.getvalue().splitlines()[-1])


def test_jobs_say_what_they_do():
    stream = io.StringIO()
    with Meter("groundtruth", stream=stream) as meter:
        for event in [JobsStarted(1, "checking"), JobDone(), JobsStarted(2, "writing"), JobDone(), JobDone()]:
            meter(event)
    assert stream.getvalue() == "groundtruth checking: 1/1\ngroundtruth writing: 2/2\n"


def test_each_step_has_a_bar_from_its_start(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with Meter("groundtruth", stream=stream) as meter:
        for event in [JobsStarted(2, "checking"), JobDone(), JobDone(), JobsStarted(2, "writing"), JobDone()]:
            meter(event)
    last = stream.getvalue().split("groundtruth ")[-1]
    assert last.startswith("writing")
    assert " 50%" in last
    assert "0:00:00" not in last  # of the step before


def test_blocks_that_are_looked_at_again_are_not_counted_twice(monkeypatch):
    monkeypatch.setattr("pipeline.terminal.meter.PLAIN_EVERY_S", -1.0)
    stream = io.StringIO()
    one, failed = BlockDone(1000, (5, 1, 2, 900), False, False), BlockDone(0, (0, 0, 0, 0), False, True)
    with Meter("run otsu", stream=stream) as meter:
        for event in [JobsStarted(3), one, one, failed, JobsStarted(3), BlocksSettled(1, 1, (5, 1, 2, 900)), one]:
            meter(event)
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("run otsu: 2/3, ")
    assert " s left" in last
    assert last.endswith("tp 10 fp 2 fn 4 tn 1.8k mcc 0.770")


def test_number_of_blocks_may_be_unknown(monkeypatch):
    monkeypatch.setattr("pipeline.terminal.meter.PLAIN_EVERY_S", -1.0)
    stream = io.StringIO()
    with Meter("run", stream=stream) as meter:
        for event in events(2):
            meter(event)
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == ["run: 1", "run: 2"]


def test_blocks_that_need_no_work_come_at_once(monkeypatch):
    monkeypatch.setattr("pipeline.terminal.meter.PLAIN_EVERY_S", -1.0)
    stream = io.StringIO()
    with Meter("run otsu", total=9, stream=stream) as meter:
        meter(BlocksSettled(8, 7, (5, 1, 2, 900)))
        meter(BlockDone(1000, (5, 1, 2, 900), reused=False, failed=False))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "run otsu: 8/9, tp 5 fp 1 fn 2 tn 900 mcc 0.770"
    assert lines[1].startswith("run otsu: 9/9, ")


def test_nothing_is_shown_of_nothing():
    stream = io.StringIO()
    with Meter("image", stream=stream):
        pass
    assert stream.getvalue() == ""


def test_bar_on_a_terminal():
    stream = Terminal()
    with Meter("run otsu", total=3, stream=stream) as meter:
        for event in events(3):
            meter(event)
    assert "run otsu" in stream.getvalue()
    assert "100%" in stream.getvalue()


@pytest.mark.parametrize(("columns", "found"), [(100, "tp 26.1G fp 123k fn 999 tn 999G mcc 1.000"), (80, "mcc 1.000")])
def test_everything_has_room_in_the_line_of_a_bar(monkeypatch, columns, found):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    with Meter("run otsu", total=2, stream=stream) as meter:
        meter(BlockDone(10, (26_123_456_789, 123_456, 999, 999 * 10**9), reused=False, failed=False))
        meter(BlockDone(10, (0, 0, 0, 0), reused=True, failed=False))
    last = stream.getvalue().split("run otsu")[-1]
    assert "━━━━━" in last
    assert f" 0:00:00 {found}" in re.sub(r"\x1b\[\d*m", "", last).replace(" \x1b", "")


def test_dashboard_of_other_engines_is_named():
    stream = io.StringIO()
    with Meter("run", stream=stream) as meter:
        meter(Started("local", "http://127.0.0.1:8787/status"))
    assert stream.getvalue() == "local: dashboard http://127.0.0.1:8787/status\n"


def test_summary_shows_scores_and_counts():
    text = shown(result())
    for words in ("run otsu", "0.9924", "0.9787", "0.7502", "0.8493", "0.8534", "5,595", "254,564", "262,144"):
        assert words in text
    for words in ("mean of 1 tile", "79 (79 to 79)", "1 of 1"):
        assert words in text
    assert "pending" not in text
    assert "undefined" not in text


def test_summary_says_of_how_many_tiles_a_score_is_undefined():
    mean = Scores(0.5, None, 0.25, 0.75, 1.0, 1.0, None, 0.5, 0.5)
    macro = Macro(mean, 2000, dict.fromkeys(SCORES, 0) | {"f1": 2000, "mcc": 1, "kappa": 3})
    rows = {row[0]: row[2] for row in score_rows(result(macro=macro)) if len(row) == 3}
    assert rows == {
        "accuracy": "0.5000", "precision": "0.7500", "recall": "1.0000", "F1": "- (2,000 undefined)",
        "MCC": "0.2500 (1 undefined)",
    }  # fmt: skip
    assert max(map(len, shown(result(macro=macro), width=80).splitlines())) <= 80


def test_summary_without_a_truth_shows_no_scores():
    text = shown(result(truth=None, annotated=0, counts=None, scores=None, macro=None))
    assert "MCC" not in text
    assert "262,144" in text


def test_summary_where_nobody_annotated_has_no_numbers():
    nothing = Counts()
    text = shown(result(annotated=0, counts=nothing, scores=scores(nothing), macro=None))
    assert "MCC" in text
    assert "0.0000" not in text
    assert "nan" not in text


def test_summary_lists_what_failed_word_for_word():
    reason = "shard 0/c/1/0/0 cannot be decoded [red]checksum[/red]" + 30 * " is invalid"
    failures = [(Box((1, 0, 0), (2, 5, 5)), reason)]
    text = shown(result(failures=failures, tiles=Tiles(3, 1, 0, 2, 0, 0)))
    assert f"failed: z=1:2,y=0:5,x=0:5: {reason}" in text
    assert "tiles failed" in text


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return build_volume(tmp_path_factory.mktemp("terminal") / "a long name of a brain [old] :skull:.zarr", (2, 64, 96))


def status_of(volume: Volume, stream: io.StringIO) -> str:
    show_status(*describe(volume), console=make_console(stream))
    return stream.getvalue()


def test_status_shows_every_run_and_cuts_no_name(volume):
    assert f"no runs yet; start one with: kesm run {quote(str(volume.path))}" in status_of(volume, io.StringIO())
    name = "a-long-name-of-a-run-that-says-what-it-is-for"
    run(run_config(volume, name))
    run(run_config(volume, name, region="z=0:1"))
    for stream in (io.StringIO(), Terminal()):
        text = status_of(volume, stream)
        assert f"{volume.path}: 2 x 64 x 96 voxels (z, y, x), uint8, voxel size not known\n" in text
        assert "slices: 2 present, 0 absent" in text
        assert "truth groundtruth: 1 of 2 slices annotated" in text
    text = status_of(volume, io.StringIO())
    assert name in text
    assert "2 of 2" in text
    assert "pending" not in text


def no_ink(image: np.ndarray) -> np.ndarray:
    raise ValueError("no ink:\n  none at all")


def test_mask_is_named_where_there_is_one(volume):
    words = ("run", volume.path, "--truth", "groundtruth", "--name")
    answer = kesm(*words, "broken", "--set", f"segmenter.target={__name__}:no_ink", "--set", "tile=32")
    assert answer.code == 3
    assert "no ink: " in answer.out
    assert "\ufffd" not in answer.out
    assert "mask: " not in answer.out
    assert f"mask: {volume.path / 'labels' / 'whole'}\n" in kesm(*words, "whole").out


def test_progress_shows_no_score_that_leaves_out_less(volume):
    words = ("run", volume.path, "--truth", "groundtruth", "--name")
    assert " mcc " in kesm(*words, "all-scored").err
    answer = kesm(*words, "some-scored", "--exclude-flagged")
    assert "run some-scored: 2/2" in answer.err
    assert " mcc " not in answer.err
    assert "MCC" in answer.out


def test_status_shows_what_is_left(tmp_path):
    volume = build_volume(tmp_path / "brain.zarr", (3, 64, 96), absent=(2,))
    run(run_config(volume, region="z=0:1"))
    text = status_of(volume, io.StringIO())
    assert "1 of 3" in text
    assert "pending" in text
    assert "absent" in text
    assert "failed" not in text


def test_plan_is_shown_in_words(volume):
    plan = replace(make_plan(run_config(volume, region="z=0:1")), tiles_done=1)
    stream = io.StringIO()
    show_plan(plan, Console(file=stream, width=400, markup=False, emoji=False))
    for words in (
        str(volume.path), "2 x 64 x 96 voxels (z, y, x)", "dark vessels, median 1 x 3 x 3, otsu per tile of 512",
        "groundtruth", "z=0:1,y=0:64,x=0:96", "no shard is written by two", "1, of which 1 are done already",
        "in one pass", "GB allowed",
    ):  # fmt: skip
        assert words in stream.getvalue()


def test_slow_filter_is_said_to_be_slow(volume):
    stream = io.StringIO()
    plan = make_plan(run_config(volume, name="slow", denoise={"method": "median", "size": 9}))
    show_plan(plan, Console(file=stream, width=400))
    assert "a hundred times slower" in stream.getvalue()


def test_console_prints_what_it_is_given():
    stream = io.StringIO()
    make_console(stream).print("brain[old] :skull: /data/[b]")
    assert stream.getvalue() == "brain[old] :skull: /data/[b]\n"


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe(), "dark vessels, median 1 x 3 x 3, otsu per tile of 512"),
        (
            Recipe(denoise=MedianDenoise(size=(3, 5, 5)), tile=256),
            "dark vessels, median 3 x 5 x 5, otsu per tile of 256",
        ),
        (
            Recipe(foreground="bright", denoise=NoDenoise(), threshold=FixedThreshold(level=79.5)),
            "bright vessels, no filter, fixed 79.5 per tile of 512",
        ),
    ],
    ids=["default", "volumetric", "fixed"],
)
def test_recipe_in_words(recipe, words):
    assert recipe_words(recipe.document()) == words


NOON = datetime.now().replace(hour=12, minute=3)  # on the clock of this place
TODAY, DATED = NOON.astimezone(), (NOON - timedelta(days=3)).astimezone().isoformat()
BLOCKS = {"total": 1799, "done": 120, "reused": 0, "failed": 0}


def work(**changes: Any) -> dict[str, Any]:
    running = {
        "name": "otsu", "recipe": Recipe().document(), "state": "running", "attempt": 3, "user": "alice",
        "host": "host7", "process": 1234, "engine": "threads", "started": TODAY.isoformat(), "ended": None,
        "ending": None, "last_heard": (TODAY + timedelta(minutes=7)).isoformat(), "blocks": BLOCKS,
        "voxels_per_s": 310.4e6, "eta_s": 290.0,
    }  # fmt: skip
    return {**running, **changes}


RUNNING = "running since 12:03 by alice on host7 (process 1234, threads)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({}, f"{RUNNING}: 120 of 1,799 blocks, 310 Mvoxel/s, 5 min left", id="running"),
        pytest.param({"blocks": BLOCKS | {"reused": 100, "failed": 2}, "eta_s": 89.0},
                     f"{RUNNING}: 120 of 1,799 blocks, 100 reused, 2 failed, 310 Mvoxel/s, 89 s left", id="details"),
        pytest.param({"eta_s": 8000}, f"{RUNNING}: 120 of 1,799 blocks, 310 Mvoxel/s, 2.2 h left", id="hours"),
        pytest.param({"eta_s": 2e5}, f"{RUNNING}: 120 of 1,799 blocks, 310 Mvoxel/s, 2.3 days left", id="days"),
        pytest.param({"blocks": None, "voxels_per_s": None, "eta_s": None}, f"{RUNNING}: starting", id="starting"),
        pytest.param({"blocks": BLOCKS | {"done": 1799}, "eta_s": 0.0},
                     f"{RUNNING}: 1,799 of 1,799 blocks, 310 Mvoxel/s", id="last"),
        pytest.param({"state": "killed"},
                     "stopped without a word at 12:10 (alice on host7); run it again to go on", id="killed"),
        pytest.param({"state": "killed", "last_heard": None, "started": DATED},
                     f"stopped without a word at {DATED[:10]} 12:03 (alice on host7); run it again to go on",
                     id="days ago"),
        pytest.param({"state": "killed", "last_heard": None, "started": None, "user": None, "host": None},
                     "stopped without a word at an unknown time (somebody on some machine); run it again to go on",
                     id="not recorded"),
        pytest.param({"state": "ended", "ending": "finished", "ended": TODAY.isoformat()},
                     "finished at 12:03 (alice on host7)", id="finished"),
        pytest.param({"state": "ended", "ending": "failed: disk: full", "ended": TODAY.isoformat()},
                     "failed at 12:03 (alice on host7): disk: full", id="failed"),
    ],
)  # fmt: skip
def test_activity_in_words(changes, words):
    assert activity_words(work(**changes)) == words


def status_document(*works: dict[str, Any], problems: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "volume": "brain[b].zarr", "shape": [1, 2, 3], "dtype": "uint8", "voxel_size_um": None,
        "slices": {"present": 1, "absent": 0}, "labels": [], "activity": list(works), "problems": list(problems),
    }  # fmt: skip


def test_status_says_who_works_and_what_cannot_be_read():
    stream = io.StringIO()
    failures = [(Box((0, 0, 0), (1, 2, 3)), "shard [b] is missing")]
    found = [result(truth=truth, failures=failures) for truth in ("first", "second")]
    show_status(status_document(work(), problems=("a table",)), found, make_console(stream))
    lines = stream.getvalue().splitlines()
    assert "otsu: dark vessels, median 1 x 3 x 3, otsu per tile of 512" in lines
    assert f"otsu: {RUNNING}: 120 of 1,799 blocks, 310 Mvoxel/s, 5 min left" in lines
    assert lines.count("otsu failed: z=0:1,y=0:2,x=0:3: shard [b] is missing") == 1
    assert lines[-1] == "cannot be read: a table"


def test_names_are_printed_as_they_are_and_drive_no_terminal():
    evil = work(user="[red]a[/red] :skull:\x1b[31m\n", host="h\udcff")
    for stream in (io.StringIO(), Terminal()):
        show_status(status_document(evil), [], make_console(stream))
        assert "by [red]a[/red] :skull:\ufffd[31m  on h\ufffd (" in stream.getvalue()
        assert "\x1b[31m" not in stream.getvalue()
    failed = result(failures=[(Box((1, 0, 0), (2, 5, 5)), "a\x1b[2J.png\nis gone")])
    assert "failed: z=1:2,y=0:5,x=0:5: a\ufffd[2J.png is gone" in shown(failed)


def test_blocks_that_failed_alike_have_one_line():
    boxes = [Box((z, 0, 0), (z + 1, 2, 3)) for z in range(5)]
    failures = [(box, "dark" if z == 2 else "no room") for z, box in enumerate(boxes)]
    lines = ["z=0:1,y=0:2,x=0:3: no room (and 3 more places)", "z=2:3,y=0:2,x=0:3: dark"]
    assert failure_lines(failures) == lines
    assert failure_lines(failures[:2]) == ["z=0:1,y=0:2,x=0:3: no room (and 1 more place)"]
    text = shown(result(failures=failures))
    assert [line for line in text.splitlines() if "failed:" in line] == [f"failed: {line}" for line in lines]
    stream = io.StringIO()
    found = [result(name=name, truth=truth, failures=failures) for name in ("a", "b") for truth in ("one", "two")]
    show_status(status_document(), found, make_console(stream))
    said = [line for line in stream.getvalue().splitlines() if "failed:" in line]
    assert said == [f"{name} failed: {line}" for name in ("a", "b") for line in lines]


def test_board_shows_what_has_changed_elsewhere():
    stream = io.StringIO()
    with StatusBoard(stream) as board:
        for left_s in (290.0, 290.0, 200.0, 200.0):
            board.show(status_document(work(eta_s=left_s)), [result()])
    blocks = stream.getvalue().split("\n\n")
    assert [re.findall(r"(\d) min left", block) for block in blocks] == [["5"], ["3"], []]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\nbrain\[b\].zarr: ", block) for block in blocks[:2])


def test_board_draws_in_place_on_a_terminal():
    stream = Terminal()
    with StatusBoard(stream) as board:
        for left_s in (290.0, 290.0):
            board.show(status_document(work(eta_s=left_s)), [result()])
    assert stream.getvalue().count("5 min left") == 3  # the last one stays
    assert "\x1b[2K" in stream.getvalue()
