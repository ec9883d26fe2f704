"""What a person sees on the terminal: progress while it works, tables when it is done; the one owner of rich."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from shlex import quote
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from pipeline.confusion import Counts, Macro, scores
from pipeline.execute import BlockDone, BlocksSettled, Event, JobDone, JobsStarted, Started
from pipeline.plan import Plan
from pipeline.report import Excluded, Summary

if TYPE_CHECKING:  # the first loads SciPy's statistics, which a run does not need
    from pipeline.choice import Choice
    from pipeline.validate import Shape, Validation

PLAIN_EVERY_S = 5.0
COUNTS_WIDTH = 100  # columns from which on a bar has room for the counts beside the time that is left
FILE_WIDTH = 200  # columns where the output is no terminal: rich would cut names at 80
SHOWN_SCORES = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "mcc": "MCC"}


def make_console(stream: TextIO | None = None) -> Console:
    """Console that prints what it is given: ``brain[old].zarr`` is a path, and no markup; files have long lines."""
    width = None if (stream or sys.stdout).isatty() else FILE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


class Meter:
    """Follows the events of a job: a bar on a terminal, a line every few seconds elsewhere.

    Parameters
    ----------
    what : str
        What is being done, in a word; jobs may add one.
    total : int or None
        Number of blocks; jobs announce theirs.
    unit_bytes : int
        Bytes of one job, for the rate.
    stream : file
        Where it is shown: never stdout, which belongs to results.
    """

    def __init__(self, what: str, total: int | None = None, unit_bytes: int = 0, stream: TextIO | None = None) -> None:
        self._console = make_console(stream or sys.stderr)
        self._what, self._total, self._unit_bytes = what, total, unit_bytes
        self._title = what
        self._lock = threading.Lock()
        self._begin = self._shown = time.monotonic()
        self._done = self._voxels = self._reused = self._failed = 0
        self._counts = Counts()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)), TextColumn("{task.fields[found]}"),
            console=self._console, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(what, total=total, rate="", found="")

    def __enter__(self) -> Meter:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._console.is_terminal:  # elsewhere, to stop what was never shown prints an empty line
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Take in an event; may be called from any thread."""
        with self._lock:
            self._take(event)
            if self._console.is_terminal:
                self._bar.update(self._task, completed=self._done, rate=self._rate(), found=self._found())
            elif self._done and (time.monotonic() - self._shown > PLAIN_EVERY_S or self._done == self._total):
                self._shown = time.monotonic()
                done = f"{self._done}/{self._total}" if self._total else f"{self._done}"
                parts = [f"{self._title}: {done}", self._rate(), self._eta(), self._found()]
                self._console.print(", ".join(part for part in parts if part), soft_wrap=True)

    def _take(self, event: Event) -> None:
        match event:
            case Started(engine=engine, dashboard=link):
                if engine != "threads":
                    self._console.print(f"{engine}: dashboard {link}", soft_wrap=True)
            case JobsStarted(count=count, what=job):
                self._title = f"{self._what} {job}".rstrip()
                self._total, self._done, self._begin = count, 0, time.monotonic()
                self._bar.reset(self._task, total=count, description=self._title)
            case JobDone():
                self._done += 1
            case BlockDone():
                self._done += 1
                self._voxels += 0 if event.reused else event.voxels
                self._reused += event.reused
                self._failed += event.failed
                self._counts += Counts(*event.counts)
            case BlocksSettled(count=count, counts=counts):
                self._done += count
                self._reused += count
                self._counts += Counts(*counts)

    def _rate(self) -> str:
        elapsed = max(time.monotonic() - self._begin, 1e-9)
        if self._unit_bytes:
            return f"{self._done * self._unit_bytes / elapsed / 1e6:.0f} MB/s"
        return f"{self._voxels / elapsed / 1e6:.0f} Mvoxel/s" if self._voxels else ""

    def _eta(self) -> str:
        left = (self._total or 0) - self._done
        worked = self._done - self._reused
        if left <= 0 or worked <= 0:
            return ""
        return f"{left * (time.monotonic() - self._begin) / worked:.0f} s left"

    def _found(self) -> str:
        found = []
        if self._counts.total:
            now = self._counts
            if self._console.width >= COUNTS_WIDTH:
                cells = {"tp": now.tp, "fp": now.fp, "fn": now.fn, "tn": now.tn}
                found += [f"{cell} {_short(count)}" for cell, count in cells.items()]
            found.append(f"mcc {scores(now).mcc:.3f}")
        if self._failed:
            found.append(f"{self._failed} failed")
        return " ".join(found)


def show_summary(summary: Summary, console: Console | None = None) -> None:
    """Print the result of a run as a table."""
    console = console or make_console()
    table = Table(title=f"run {summary.name}", title_justify="left", show_header=True, min_width=50)
    table.add_column("")
    table.add_column("volume", justify="right")
    if summary.counts is not None:
        tiles = summary.macro.tiles if summary.macro else 0
        table.add_column(f"mean of {tiles} tiles", justify="right")
    for row in (*score_rows(summary), *summary_rows(summary)):
        table.add_row(*row)
    console.print(table)
    if summary.excluded is not None:
        console.print(f"not scored: {_excluded_words(summary.excluded)}", soft_wrap=True)
    for box, reason in summary.failures:
        console.print(f"failed: {box}: {reason}", soft_wrap=True)


def show_choice(choice: Choice, console: Console | None = None) -> None:
    """Print the ranking of a comparison, and what to take from it."""
    console = console or make_console()
    metric = choice.ranking.metric
    slices = f"{choice.ranking.slices} annotated slice{'s' * (choice.ranking.slices != 1)}"
    table = Table(title=f"{slices}, by {metric.upper()}", title_justify="left")
    for title in ("method", "scope", "filter"):
        table.add_column(title)
    for title in ("MCC", "F1", f"{metric.upper()}, 95 %", "behind the best"):
        table.add_column(title, justify="right")
    for place in choice.ranking.places:
        candidate = place.candidate
        table.add_row(
            candidate.method, candidate.scope, candidate.denoise,
            _score(place.scores.mcc), _score(place.scores.f1), _span(place.interval),
            " ".join(filter(None, [f"{place.behind:.4f}", _span(place.behind_interval)])),
        )  # fmt: skip
    console.print(table)
    for line in choice.lines():
        console.print(line, soft_wrap=True)


def _span(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}]"


def score_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Scores of the volume and their means over its tiles, then counts; nothing without a truth."""
    counts, whole = summary.counts, summary.scores
    if counts is None or whole is None:
        return []
    return [
        *((title, _score(getattr(whole, name)), _mean(summary.macro, name)) for name, title in SHOWN_SCORES.items()),
        ("true positive", f"{counts.tp:,}"),
        ("false positive", f"{counts.fp:,}"),
        ("false negative", f"{counts.fn:,}"),
        ("true negative", f"{counts.tn:,}"),
        ("annotated voxels", f"{summary.annotated:,}"),
    ]


def shape_rows(validation: Validation) -> list[tuple[str, str]]:
    """Scores of shape of the volume; what was not asked for has no row."""
    rows: list[tuple[str, str]] = []
    outline, line, tolerance = validation.shape.boundary, validation.shape.cl_dice, validation.measures.boundary
    if outline is not None:
        rows += [
            ("boundary precision", _score(outline.precision)), ("boundary recall", _score(outline.recall)),
            ("boundary F1", _score(outline.f1)),
            ("boundary tolerance", f"{tolerance} voxel" + ("" if tolerance == 1 else "s")),
        ]  # fmt: skip
    if line is not None:
        rows += [
            ("clDice precision", _score(line.precision)), ("clDice sensitivity", _score(line.sensitivity)),
            ("clDice", _score(line.cl_dice)),
        ]  # fmt: skip
    return rows


def shape_lines(validation: Validation) -> list[str]:
    """Scores of shape of each slice, a line each."""
    return [f"slice {z}: {_shape_words(shape)}" for z, shape in validation.slices.items()]


def _shape_words(shape: Shape) -> str:
    outline = [] if shape.boundary is None else [f"boundary F1 {_score(shape.boundary.f1)}"]
    line = [] if shape.cl_dice is None else [f"clDice {_score(shape.cl_dice.cl_dice)}"]
    return ", ".join(outline + line)


def summary_rows(summary: Summary) -> list[tuple[str, str]]:
    """How much a run has done, in words; what there is none of has no row."""
    tiles = summary.tiles
    rows = [("voxels", f"{summary.voxels:,}")]
    if summary.levels:
        low, middle, high = summary.levels
        rows.append(("level", f"{middle:g} ({low:g} to {high:g})"))
    if summary.drift is not None and summary.drift.now != summary.drift.level:
        rows.append(("level drifts", f"to {summary.drift.now:g}; `--set refit=true` makes all slices again with it"))
    if summary.seam.score is not None:
        rows.append(("seam score", f"{summary.seam.score:.2f}"))
    reused = f", {tiles.reused:,} reused" if tiles.reused else ""
    rows.append(("tiles done", f"{tiles.done:,} of {tiles.total:,}{reused}"))
    left = {
        "failed": tiles.failed, "pending": tiles.pending, "absent": tiles.absent, "undecided": tiles.undecided,
        "without signal": tiles.no_signal,
    }  # fmt: skip
    rows += [(f"tiles {state}", f"{count:,}") for state, count in left.items() if count]
    if summary.undefined != "article":
        rows.append(("scores of 0 / 0", {"zero": "0", "nan": "none"}[summary.undefined]))
    if summary.elapsed_s is not None:
        rate = summary.voxels / max(summary.elapsed_s, 1e-9) / 1e6
        rows.append(("time", f"{summary.elapsed_s:.1f} s" + ("" if tiles.reused else f", {rate:.0f} Mvoxel/s")))
    return rows


def _excluded_words(excluded: Excluded) -> str:
    """Flagged tiles that are not scored, in words."""
    reasons = ", ".join(f"{count:,} {flag}" for flag, count in excluded.flags.items() if count)
    tiles = f"{excluded.tiles:,} flagged tile{'' if excluded.tiles == 1 else 's'}"
    return f"{tiles}, {excluded.voxels:,} annotated voxels" + (f": {reasons}" if reasons else "")


def show_plan(plan: Plan, done: int, console: Console | None = None) -> None:
    """Print what a run would do."""
    console = console or make_console()
    table = Table(title=f"plan of run {plan.name}", title_justify="left", show_header=False, min_width=50)
    for key, value in plan_rows(plan, done):
        table.add_row(key, value)
    console.print(table)


def plan_rows(plan: Plan, done: int) -> list[tuple[str, str]]:
    """The plan in words."""
    total = plan.grids.tiles.cover(plan.region).size
    return [
        ("volume", f"{plan.volume}, {' x '.join(map(str, plan.grids.tiles.shape))} voxels (z, y, x)"),
        ("recipe", recipe_words(plan.recipe.document())),
        ("filter", "compiled" if plan.fast_filter else "SciPy: exact, but a hundred times slower than size 3 or 5"),
        ("truth", plan.truth or "none: no scores"),
        ("region", str(plan.region)),
        ("blocks", f"{plan.blocks.size} of {' x '.join(map(str, plan.block))} voxels; each writes whole shards of "
         f"{' x '.join(map(str, plan.grids.shards.step))}, no shard is written by two"),
        ("tiles", f"{total:,}, of which {done:,} are done already"),
        ("reads", f"{plan.read_bytes / 10**9:.2f} GB (decoded), in "
         f"{'one pass' if plan.passes == 1 else f'{plan.passes} passes'}"),
        ("writes", f"{plan.written_bytes / 10**9:.2f} GB (decoded): the mask"
         + (f", and {plan.name}-confusion, which shows its errors" if plan.confusion else "")),
        ("tasks at once", "one for each thread of the workers" if plan.engine == "address" else str(plan.tasks)),
        ("peak memory", f"{plan.peak_bytes / 10**9:.2f} GB of {plan.limit_bytes / 10**9:.2f} GB allowed "
         f"({plan.task_bytes / 10**9:.2f} GB a task)" + (", for each thread" if plan.engine == "address" else "")),
    ]  # fmt: skip


SCOPES = {"smooth": "smoothed tile"}


def recipe_words(recipe: Mapping[str, Any]) -> str:
    """A recipe, as it is stored, in one line."""
    stages = [f"{recipe['foreground']} vessels"]
    stages += [f"{name} {_settings(recipe[name])}" for name in ("valid", "correct") if name in recipe]
    stages.append(_filter_words(recipe["denoise"]))
    if "segmenter" in recipe:
        stages.append(f"segmented by {recipe['segmenter'].get('target') or recipe['segmenter'].get('model')}")
    else:
        threshold = recipe["threshold"]
        level = f" {threshold['level']:g}" if "level" in threshold else ""
        sizes = {"tile": f" of {recipe['tile']}", "smooth": f" of {recipe['tile']}"}
        of = (
            f" from {threshold['size']} around it"
            if threshold["scope"] == "voxel"
            else sizes.get(threshold["scope"], "")
        )
        stages.append(f"{threshold['method']}{level} per {SCOPES.get(threshold['scope'], threshold['scope'])}{of}")
        rule = {key: threshold[key] for key in ("min_separability", "min_contrast", "on_no_signal") if key in threshold}
        stages += [_settings(rule)] if rule else []
    if "clean" in recipe:
        stages.append(f"clean {_settings(recipe['clean'])}")
    return ", ".join(stages)


def _filter_words(denoise: Mapping[str, Any]) -> str:
    if denoise["method"] == "median":
        size = denoise["size"]
        return "median " + " x ".join(map(str, size if isinstance(size, list) else (1, size, size)))
    words = {"none": "no filter", "gaussian": f"gaussian {denoise.get('sigma', 1):g}"}
    return words.get(denoise["method"], f"filter {denoise.get('target')}")


def _settings(values: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


class StatusBoard:
    """Shows a volume's status again and again: in place on a terminal, elsewhere as a block of lines where it changed.

    Parameters
    ----------
    stream : file, optional
        Default stdout.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = make_console(stream)
        self._live = Live(console=self._console, auto_refresh=False)
        self._shown: list[str] = []

    def __enter__(self) -> StatusBoard:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(self, document: dict[str, Any], summaries: list[Summary]) -> None:
        """Show what `describe` has found now."""
        parts, time_of_day = status_parts(document, summaries), f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        if self._console.is_terminal:
            self._live.update(Group(time_of_day, *parts), refresh=True)
            return
        with self._console.capture() as captured:
            print_parts(parts, self._console)
        lines = captured.get().splitlines()
        if lines != self._shown:
            self._console.print("\n".join([time_of_day, *lines, ""]), soft_wrap=True)
            self._console.file.flush()
            self._shown = lines


def show_status(document: dict[str, Any], summaries: list[Summary], console: Console | None = None) -> None:
    """Print what a volume holds."""
    print_parts(status_parts(document, summaries), console or make_console())


def print_parts(parts: Sequence[str | Table], console: Console) -> None:
    """Print lines whole, however long, and tables as wide as the console."""
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def status_parts(document: dict[str, Any], summaries: list[Summary]) -> list[str | Table]:
    """What a volume holds, as lines and a table."""
    size, slices = document["voxel_size_um"], document["slices"]
    parts: list[str | Table] = [
        f"{document['volume']}: {' x '.join(map(str, document['shape']))} voxels (z, y, x), {document['dtype']}, "
        + (f"{' x '.join(f'{length:g}' for length in size)} um a voxel" if size else "voxel size not known"),
        f"slices: {slices['present']} present, {slices['absent']} absent",
    ]
    truths = (label for label in document["labels"] if label["kind"] == "truth")
    parts += [f"truth {truth['name']}: {truth['slices']} of {slices['present']} slices annotated" for truth in truths]
    parts += [f"cleaned mask {label['name']}" for label in document["labels"] if label["kind"] == "derived"]
    parts += [
        f"confusion {label['name']} of {label['run']} with {label['truth']}"
        for label in document["labels"]
        if label["kind"] == "confusion"
    ]
    if summaries:
        parts.append(_runs_table(summaries))
    elif not document["problems"]:
        parts.append(f"no runs yet; start one with: kesm run {quote(document['volume'])}")
    parts += [f"{work['name']}: {recipe_words(work['recipe'])}" for work in document["activity"]]
    parts += [f"{work['name']}: {activity_words(work)}" for work in document["activity"] if work["state"]]
    parts += [
        f"{summary.name} against {summary.truth}: not scored: {_excluded_words(summary.excluded)}"
        for summary in summaries
        if summary.excluded is not None
    ]
    failures = {(summary.name, box, reason): None for summary in summaries for box, reason in summary.failures}
    parts += [f"{name} failed: {box}: {reason}" for name, box, reason in failures]  # once, whatever it is compared with
    parts += [f"cannot be read: {problem}" for problem in document["problems"]]
    return [printable(part) if isinstance(part, str) else part for part in parts]


def activity_words(work: Mapping[str, Any]) -> str:
    """What the latest attempt of a run does, or how it ended, in one line."""
    who = f"{work['user'] or 'somebody'} on {work['host'] or 'some machine'}"
    if work["state"] == "ended":
        ending, _, reason = (work["ending"] or "ended").partition(": ")
        return f"{ending} at {_time(work['ended'])} ({who}){reason and f': {reason}'}"
    if work["state"] == "killed":
        heard = work["last_heard"] or work["started"]
        return f"stopped without a word at {_time(heard)} ({who}); run it again to go on"
    doing = [f"running since {_time(work['started'])} by {who} (process {work['process']}, {work['engine']})"]
    blocks = work["blocks"]
    if blocks:
        doing[0] += f": {blocks['done']:,} of {blocks['total']:,} blocks"
        doing += [f"{blocks[kind]:,} {kind}" for kind in ("reused", "failed") if blocks[kind]]
    else:
        doing[0] += ": starting"
    if work["voxels_per_s"]:
        doing.append(f"{work['voxels_per_s'] / 1e6:.0f} Mvoxel/s")
    if work["eta_s"] is not None and blocks and blocks["done"] < blocks["total"]:
        doing.append(f"{_duration(work['eta_s'])} left")
    return ", ".join(doing)


def show_page(page: str, console: Console | None = None) -> None:
    """Print lines that hold what users have typed."""
    for line in page.splitlines():
        (console or make_console()).print(printable(line), soft_wrap=True)


def printable(text: str) -> str:
    """Text without what would drive a terminal: names of users, hosts and files may hold any character."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _time(moment: str | None) -> str:
    """A moment (ISO 8601) on the reader's clock, with its date unless that is today."""
    if moment is None:
        return "an unknown time"
    local, today = datetime.fromisoformat(moment).astimezone(), datetime.now().astimezone().date()
    return f"{local:%H:%M}" if local.date() == today else f"{local:%Y-%m-%d %H:%M}"


def _duration(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.{0 if unit == 'min' else 1}f} {unit}"
    return f"{seconds:.0f} s"


def _runs_table(summaries: list[Summary]) -> Table:
    """Each run against each truth; states that no tile has get no column."""
    states = [state for state in ("pending", "failed", "absent") if any(getattr(run.tiles, state) for run in summaries)]
    table = Table(title="runs", title_justify="left")
    for column in ("run", "truth"):
        table.add_column(column, overflow="fold")
    for column in ("tiles done", *states, "accuracy", "F1", "MCC"):
        table.add_column(column, justify="right", no_wrap=True)
    for summary in summaries:
        found, tiles = summary.scores or scores(Counts()), summary.tiles
        table.add_row(
            summary.name, summary.truth or "-", f"{tiles.done:,} of {tiles.total:,}",
            *(f"{getattr(tiles, state):,}" for state in states),
            _score(found.accuracy), _score(found.f1), _score(found.mcc),
        )  # fmt: skip
    return table


def _short(count: int) -> str:
    """A count in three digits, so that those of a whole volume fit into the line of a bar."""
    value, units = float(count), iter(("", "k", "M", "G", "T"))
    unit = next(units)
    while value >= 999.5:
        value, unit = value / 1000, next(units)
    return f"{value:.3g}{unit}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _mean(macro: Macro | None, name: str) -> str:
    """Mean of a score over tiles, and in how many of them it is 0 / 0."""
    if macro is None:
        return _score(None)
    undefined = macro.undefined[name]
    return _score(getattr(macro.mean, name)) + (f" ({undefined:,} undefined)" if undefined else "")
