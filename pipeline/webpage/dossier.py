"""Reports of runs as files, and of several an index that compares them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.errors import ConfigError, ExistsError, MissingInputError, PipelineError
from pipeline.findings.census import compared_truths
from pipeline.findings.summary import Summary
from pipeline.storage.disk import disk_errors
from pipeline.storage.draft import check_outside, check_place, draft_file
from pipeline.storage.tables import RunTables, run_names
from pipeline.storage.volume import Volume
from pipeline.webpage.layout import fill_template, render
from pipeline.webpage.markup import Markup, bar, count, join, number, path_code, score, table, tag
from pipeline.webpage.page import Page, gather
from pipeline.webpage.verdict import undefined_scores
from pipeline.webpage.wording import recipe_sentences

INDEX = "index.html"
SAID = 20  # lines about one report; the file has more of them
_COMPARED = ("mcc", "f1", "precision", "recall")


@dataclass(frozen=True, slots=True)
class Topic:
    """A run, and what it is compared with: what one report is about."""

    volume: Path
    name: str
    truth: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was written; ``problems`` are what could not be read for it."""

    topic: Topic
    file: Path
    summary: Summary
    sentences: tuple[str, ...]
    truth_digest: str | None
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dossier:
    """What was written.

    Attributes
    ----------
    reports : tuple of Report
    index : Path or None
        Of several reports.
    problems : tuple of str
        Why a run that nobody has named has no report.
    """

    reports: tuple[Report, ...]
    index: Path | None
    problems: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """The files as the JSON object of the command line."""
        return {
            "schema": 1,
            "index": None if self.index is None else str(self.index),
            "reports": [
                {
                    "volume": str(report.topic.volume),
                    "name": report.topic.name,
                    "truth": report.topic.truth,
                    "file": str(report.file),
                    "bytes": report.file.stat().st_size,
                    "problems": list(report.problems),
                }
                for report in self.reports
            ],
            "problems": list(self.problems),
        }

    def gaps(self) -> list[str]:
        """Lines about what is not there: runs without a report, and what could not be read for one."""
        said = [f"left out: {problem}" for problem in self.problems]
        for report in self.reports:
            said += [f"not read: {report.topic.name}: {problem}" for problem in report.problems[:SAID]]
            if len(report.problems) > SAID:
                said.append(f"not read: {report.topic.name}: {len(report.problems) - SAID:,} more, see {report.file}")
        return said


def write_reports(
    volumes: Sequence[Path],
    names: Sequence[str],
    out: Path,
    watch: Callable[[int, int, Topic], None] = lambda *_: None,
) -> Dossier:
    """Write a report of each run, against each truth that it was compared with, and an index of several.

    Parameters
    ----------
    volumes : sequence of Path
    names : sequence of str
        Runs; none means all that the volumes have.
    out : Path
        Folder, which is made if it is not there; or a file that ends in .html, for one report. Reports of the same runs
        are overwritten, each once the new one is whole.
    watch : callable
        Called with each report that is begun: its number from 1, how many there are, and what it is about.

    Raises
    ------
    MissingInputError
        If a volume or run is not there, none of a run that was named is done, or of no run.
    ConfigError
        If one file is named for several reports, or the place lies in a volume.
    ExistsError
        If a file is where the folder should be.
    """
    topics, problems = find_topics(volumes, names)
    files = dict(zip(topics, _files(topics, out), strict=True))
    reports = []
    for position, topic in enumerate(topics, 1):
        watch(position, len(topics), topic)
        try:
            page = gather(Volume(topic.volume), topic.name, topic.truth)
        except PipelineError as error:
            if names or len(topics) == 1:
                raise
            problems.append(str(error))
            continue
        file = files[topic]
        _write(file, render(page))
        reports.append(_report(topic, page, file))
    if not reports:
        raise MissingInputError("; ".join(problems))
    index = None
    if len(topics) > 1:
        index = out / INDEX
        _write(index, render_index(reports, problems))
    return Dossier(tuple(reports), index, tuple(problems))


def find_topics(volumes: Sequence[Path], names: Sequence[str]) -> tuple[list[Topic], list[str]]:
    """What is to be reported: of each volume all its runs, or those of some names; and why some of that is not.

    Raises
    ------
    MissingInputError
        If there is nothing to report, or a name is that of no run.
    PipelineError
        If a run that was named cannot be opened.
    """
    opened = list({volume.path: volume for volume in map(Volume, volumes)}.values())
    known = {volume.path: run_names(volume) for volume in opened}
    for name in names:
        if not any(name in runs for runs in known.values()):
            lists = "; ".join(f"{path} has: {', '.join(runs) or 'none yet'}" for path, runs in known.items())
            raise MissingInputError(f"--name: there is no run {name!r}; {lists}")
    topics, problems = [], []
    for volume in opened:
        wanted = [name for name in known[volume.path] if not names or name in names]
        if not wanted:
            what = f"run {' or '.join(map(repr, names))}" if names else "run yet"
            problems.append(f"{volume.path}: has no {what}; make one with `kesm run {volume.path}`")
        for name in wanted:
            try:
                truths = compared_truths(volume, RunTables(volume, name)) or (None,)
            except PipelineError as error:
                if names:
                    raise
                problems.append(str(error))
            else:
                topics += [Topic(volume.path, name, truth) for truth in truths]
    if not topics:
        raise MissingInputError("; ".join(problems))
    return topics, problems


def _report(topic: Topic, page: Page, file: Path) -> Report:
    sentences = tuple(recipe_sentences(page.recipe))
    return Report(topic, file, page.summary, sentences, page.truth_digest, page.problems)


def _files(topics: Sequence[Topic], out: Path) -> list[Path]:
    """Where reports go, if they can be written there."""
    if out.suffix.lower() != ".html":
        check_outside(out)
        if out.exists() and not out.is_dir():
            raise ExistsError(f"{out}: is a file; name a folder with --out, or a file that ends in .html")
        return [out / name for name in _file_names(topics)]
    if len(topics) > 1:
        raise ConfigError(f"--out: got {out}, a file, for {len(topics)} reports; name a folder, or one run with --name")
    check_place(out, replace=True)
    return [out]


def _file_names(topics: Sequence[Topic]) -> list[str]:
    """Names of files that differ, also where upper and lower case do not, and are safe on every system."""
    found: list[str] = []
    taken = {INDEX}
    runs = Counter((topic.volume, topic.name) for topic in topics)
    for topic in topics:
        several = runs[topic.volume, topic.name] > 1
        words = "-".join([topic.volume.stem, topic.name, *([topic.truth or ""] if several else [])])
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", words).lstrip("._-")[:120] or "report"
        names = (stem, *(f"{stem}-{number}" for number in range(2, len(topics) + 2)))
        name = next(f"{name}.html" for name in names if f"{name}.html".lower() not in taken)
        taken.add(name.lower())
        found.append(name)
    return found


def _write(path: Path, text: str) -> None:
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with draft_file(path, replace=True) as draft:
            draft.write_bytes(text.encode())
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # one that is not empty stays
                folder.rmdir()
        raise


def render_index(reports: Sequence[Report], problems: Sequence[str] = ()) -> str:
    """Write the page that compares reports, best score first."""
    ordered = sorted(reports, key=_standing)
    head = ["Report", "Truth", *(name.upper() if len(name) < 4 else name.capitalize() for name in _COMPARED),
            "Tiles done", "Failed", "Seam score"]  # fmt: skip
    order = f"{len(reports)} reports, best MCC first{_last(reports)}."
    body = [tag("header", tag("h1", "Reports of runs"), tag("p", order, class_="soft"))]
    parts: list[Markup] = [_comparable(reports)]
    parts.append(table("Runs", head, [_row(report) for report in ordered], class_="numbers", id="runs"))
    parts.append(tag("h2", "What each run did"))
    titles = _titles([report.topic for report in reports])
    for report in ordered:
        title = tag("a", titles[report.topic], href=quote(report.file.name))
        parts += [tag("h3", title), tag("ol", *(tag("li", sentence) for sentence in report.sentences))]
    if problems:
        parts += [tag("h2", "Runs without a report"), tag("ul", *(tag("li", problem) for problem in problems))]
    body.append(tag("main", *parts, id="main"))
    documents = [report.summary.document() | {"file": report.file.name} for report in ordered]
    return fill_template("Reports of runs", body, {"runs": documents})


def _titles(topics: Sequence[Topic]) -> dict[Topic, str]:
    """Titles that differ: as much of a volume's path as no other volume ends in, and the truth where a run has more."""
    volumes = {topic.volume for topic in topics}
    runs = Counter((topic.volume, topic.name) for topic in topics)
    titles = {}
    for topic in topics:
        against = f", compared with {topic.truth}" if runs[topic.volume, topic.name] > 1 else ""
        titles[topic] = f"{topic.name} on {_ending(topic.volume, volumes - {topic.volume})}{against}"
    return titles


def _ending(path: Path, others: Collection[Path]) -> str:
    """The shortest end of a path, of whole names, that no other path has."""
    for length in range(1, len(path.parts)):
        end = path.parts[-length:]
        if all(other.parts[-length:] != end for other in others):
            return str(Path(*end))
    return str(path)


def _standing(report: Report) -> tuple[int, float, str, str]:
    """Best MCC first; an undefined one, which is by a rule and no finding, behind all others, and none last."""
    scores = report.summary.scores
    mcc = None if scores is None else scores.mcc
    group = 2 if mcc is None else int(_lacks_mcc(report))
    return group, -(mcc or 0.0), str(report.topic.volume), report.topic.name


def _lacks_mcc(report: Report) -> bool:
    return "mcc" in undefined_scores(report.summary.counts)


def _last(reports: Iterable[Report]) -> str:
    return "; those whose MCC is undefined, 0 / 0, are behind the others" if any(map(_lacks_mcc, reports)) else ""


def _comparable(reports: Sequence[Report]) -> Markup:
    """Warn where scores are not of the same voxels: then the better one may only have had the easier part."""
    bases = {
        (report.truth_digest, report.summary.annotated, _vessel(report.summary))
        for report in reports
        if report.summary.counts is not None
    }
    if len(bases) > 1:
        said = "These runs were not scored on the same annotated voxels: their scores say little about each other."
        return tag("p", said, class_="warning", id="not-comparable")
    return tag("p", "All that have scores were scored on the same annotated voxels." if bases else "No run has scores.")


def _vessel(summary: Summary) -> int:
    return 0 if summary.counts is None else summary.counts.tp + summary.counts.fn


def _row(report: Report) -> list[object]:
    summary = report.summary
    document = summary.document()
    scores = document["scores"] or dict.fromkeys(_COMPARED)
    seam = document["seam"] or {"score": None}
    undefined = undefined_scores(summary.counts)
    first, *others = (score(scores[name], f"scores.{name}", name in undefined) for name in _COMPARED)
    barred = scores["mcc"] is not None and "mcc" not in undefined
    tiles = summary.tiles
    return [
        join([tag("a", summary.name, href=quote(report.file.name)), tag("br"), path_code(report.topic.volume)]),
        summary.truth or "none",
        tag("span", first, bar(scores["mcc"])) if barred else first, *others,
        tag("span", count(tiles.done, "tiles.done"), " of ", count(tiles.total, "tiles.total")),
        count(tiles.failed, "tiles.failed"),
        number(seam["score"], "" if seam["score"] is None else f"{seam['score']:.2f}", "seam.score"),
    ]  # fmt: skip
