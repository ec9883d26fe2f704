"""The report as a file, and in a real browser."""

from __future__ import annotations

import base64
import errno
import io
import json
import math
import re
import shlex
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.findings.census import NOT_COUNTED, Census, census
from pipeline.findings.salvage import Salvage
from pipeline.findings.summary import summarise
from pipeline.geometry import Box, Grid
from pipeline.kernels.confusion import SCORES, Counts
from pipeline.segmentation.runs import run
from pipeline.settings.config import RunConfig
from pipeline.settings.recipe import Recipe
from pipeline.storage.table import Table
from pipeline.storage.tables import RunTables, Signal, Status
from pipeline.storage.volume import Volume
from pipeline.views.overlay import PALETTES, overlay
from pipeline.webpage.chart import Chart, Scale, span
from pipeline.webpage.display import colour_filter
from pipeline.webpage.evidence import find_evidence
from pipeline.webpage.gallery import (
    PICTURE_BYTES,
    Picture,
    Room,
    classes,
    encode_tile,
    make_gallery,
    shrink_classes,
    shrink_image,
)
from pipeline.webpage.layout import render
from pipeline.webpage.markup import command_code, escape, island, tag
from pipeline.webpage.page import gather
from pipeline.webpage.tilemap import STATES, Column, make_map
from pipeline.webpage.verdict import undefined_scores, verdict
from pipeline.webpage.wording import recipe_sentences
from tests.browser import Watched, launched, watched
from tests.builders import MAPPING, build_volume, run_config
from tests.command import kesm
from tests.contract import check_document

SHAPE = (6, 300, 420)  # of tiles of 128: 3 x 4 a slice, those at the far edges cut
# Of a folder and a volume in it, so that there is a slash.
EVIL = ("a<", "script><script>window.hacked=1<", "script><img src=x onerror='window.hacked=2'>\"&$x.zarr")
REASON = "</script><script>window.hacked=3</script> <b>shard</b>"


@dataclass
class Reader(HTMLParser):
    """What a page holds, as a browser would read it."""

    text: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    numbers: dict[str, list[tuple[Any, str]]] = field(default_factory=dict)
    scripts: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)
        self.close()

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))

    def handle_data(self, data: str) -> None:
        name, attributes = self.tags[-1] if self.tags else ("", {})
        if name == "script":
            self.scripts.append(data)
        else:
            self.words.append(data)
        if name in ("data", "span") and (key := attributes.get("data-key")):
            value = json.loads(attributes.get("value") or "null")
            self.numbers.setdefault(key, []).append((value, data))
            self.tags.append(("", {}))

    @property
    def report(self) -> dict[str, Any]:
        """The JSON for programs."""
        return json.loads(self.scripts[0])


def flat_volume(path: Path, shape: tuple[int, int, int]) -> Volume:
    """Volume of one grey level, with a truth that has no vessel."""
    volume = Volume.create(path, shape, "uint8")
    volume.staging.mkdir()
    truth, ledger = volume.create_truth("groundtruth", MAPPING)
    for z in range(shape[0]):
        grey = np.full(shape[1:], 90, np.uint8)
        volume.slices.record(z, volume.image.write_slice(z, grey, volume.staging), f"{z}.png", 0)
        ledger.record(z, truth.write_slice(z, np.zeros_like(grey), volume.staging), f"{z}.png", 0)
    volume.publish_label("groundtruth")
    volume.staging.rmdir()
    return volume


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Volume of an evil name, with run `otsu` of which a slice has failed, and `bare` without a truth."""
    folder = tmp_path_factory.mktemp("page").joinpath(*EVIL[:-1])
    folder.mkdir(parents=True)
    volume = build_volume(folder / EVIL[-1], SHAPE)
    run(run_config(volume, tile=128, region="z=0:5"))
    run(RunConfig.model_validate({"volume": volume.path, "name": "bare", "tile": 128}))
    tables = RunTables(volume, "otsu")
    tables.journal.record_failure((5, 0, 0), [(Box((5, 0, 0), SHAPE), REASON)])
    tables.status.write((slice(5, 6),), Status.FAILED)
    return volume


@pytest.fixture(scope="module")
def files(volume: Volume) -> dict[str, Path]:
    """Reports of both runs, and the index."""
    out = volume.path.parent / "out"
    answer = kesm("report", volume.path, "--out", out, "--json")
    document = check_document("report", answer.document)
    assert (answer.code, document["problems"]) == (0, [])
    assert all(report["bytes"] == Path(report["file"]).stat().st_size for report in document["reports"])
    return {report["name"]: Path(report["file"]) for report in document["reports"]} | {"index": out / "index.html"}


@pytest.fixture(scope="module")
def tiles(volume: Volume) -> Census:
    return census(volume, "otsu", "groundtruth")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


def open_report(watch: Watched, file: Path) -> Any:
    """Open a page from disk, and wait until its program has run."""
    watch.page.goto(file.as_uri())
    watch.page.wait_for_selector("html[data-ready]", timeout=20_000)
    return watch.page


def at(document: Any, key: str) -> Any:
    for part in key.split("."):
        document = document[part]
    return document


def decoded(column: Column) -> NDArray[np.float64]:
    data = zlib.decompress(base64.b64decode(column.data))
    if not column.step:
        return np.frombuffer(data, "<f8")
    codes = np.frombuffer(data, np.uint8).astype(float)
    return np.where(codes > 0, column.low + (codes - 1) * column.step, np.nan)


# The file


@pytest.mark.parametrize("name", ["otsu", "bare"])
def test_numbers_are_those_of_status(volume, files, name):
    (expected,) = (one for one in kesm("status", volume.path, "--json").document["runs"] if one["name"] == name)
    page = Reader(files[name].read_text())
    assert page.report["summary"] | {"volume": ""} == expected | {"volume": ""}  # as `from_here` shortens the path
    assert {"tiles.done", "tiles.failed", "voxels", "levels.median", "seam.score"} <= page.numbers.keys()
    assert ("scores.mcc" in page.numbers) == ("macro.mcc" in page.numbers) == (name == "otsu")
    for key, shown in page.numbers.items():
        for value, text in shown:
            assert value == at(expected, key), key
            decimals = len(text.partition(".")[2])
            assert float(text.replace(",", "").replace("−", "-")) == pytest.approx(value, abs=0.51 * 10**-decimals), key


def test_view_line_opens_this_run(volume, files):
    for name, others in (("otsu", ["--truth", "groundtruth"]), ("bare", [])):
        line = Reader(files[name].read_text()).report["view"]
        assert shlex.split(line) == ["kesm", "view", str(volume.path), "--name", name, *others]


def test_undefined_tiles_are_counted(volume):
    page = gather(volume, "otsu", "groundtruth")
    macro = page.summary.macro
    assert macro is not None
    undefined = dict.fromkeys(macro.undefined, 0)
    for numbers, said in ((undefined, False), (undefined | {"recall": 1234}, True)):
        changed = replace(page.summary, macro=macro._replace(undefined=numbers))
        shown = Reader(render(replace(page, summary=changed)))
        assert shown.numbers.get("macro.undefined.recall") == ([(1234, "1,234")] if said else None)
        assert "macro.undefined.mcc" not in shown.numbers
        assert (" undefined)" in shown.words) is said
        assert any("undefined, 0 / 0" in words for words in shown.words) is said


@pytest.mark.parametrize("shape", [(2, 64, 96), (1, 1, 1)], ids=["flat", "one voxel"])
def test_nothing_found_of_nothing_is_no_praise(tmp_path, shape):
    volume = flat_volume(tmp_path / "v.zarr", shape)
    run(run_config(volume))
    text = render(gather(volume, "otsu", "groundtruth"))
    page = Reader(text)
    words = " ".join(page.words)
    assert "there is no vessel in the truth, and none in the mask" in words
    assert "agree with an MCC" not in words
    assert "Of 100" not in words
    assert page.words.count("undefined") == 4  # cards; the accuracy is known
    assert page.words.count("0 / 0: counts as ") == 4
    table = text[(start := text.index("All scores</caption>")) : text.index("</table>", start)]
    assert table.count("(undefined)") == len(SCORES) - 2
    assert "Where a score is undefined, 0 / 0, it counts as 1 if every voxel is right" in words
    assert any("MCC 1.0000 (undefined)" in each for each in page.words)  # of a picture
    assert page.report["profile"]["undefined"] == list(range(shape[0]))
    assert f"is undefined, 0 / 0, as truth or mask is all of one kind: {shape[0]}." in words
    assert "The truth has no vessel, so no method can be said to be better than another." in words
    assert "equally good" not in words


def test_undefined_score_is_by_the_rule_of_the_summary(tmp_path):
    volume = flat_volume(tmp_path / "v.zarr", (1, 64, 96))
    run(run_config(volume))
    page = gather(volume, "otsu", "groundtruth")
    for rule, said in (("zero", "it counts as 0"), ("nan", "it has no value")):
        shown = Reader(render(replace(page, summary=summarise(volume, "otsu", "groundtruth", undefined=rule))))
        assert any(f"Where a score is undefined, 0 / 0, {said}" in words for words in shown.words)
        assert shown.words.count("0 / 0: it has no value.") == (4 if rule == "nan" else 0)


def test_unfinished_run_says_so_first(volume, files, tmp_path):
    text = files["otsu"].read_text()
    page = Reader(text)
    notice = text[(start := text.index('id="unfinished"')) : text.index("</p>", start)]
    assert text.index("<main") < start < text.index('id="verdict"')
    assert re.sub("<[^>]*>", "", notice).endswith(
        "Only 60 of 72 tiles are done (12 failed): all scores on this page are of these. "
        "See What is done, and what failed."
    )
    assert ("a", {"href": "#state"}) in page.tags
    assert 'id="unfinished"' not in files["bare"].read_text()
    copied = Volume(shutil.copytree(volume.path, tmp_path / "v.zarr"))
    RunTables(copied, "bare").mask_key.write((slice(0, 2),), 0)  # as if two slices had changed
    text = render(gather(copied, "bare", None))
    assert "12 of 72" not in text
    words = re.sub("<[^>]*>", "", text)
    assert (
        "Only 48 of 72 tiles are done (24 not done, or changed since): all numbers on this page are of these." in words
    )


def test_run_is_unfinished_once_its_truth_has_changed(tmp_path):
    volume = build_volume(tmp_path / "v.zarr", (3, 64, 96))
    run(run_config(volume))
    assert 'id="unfinished"' not in render(gather(volume, "otsu", "groundtruth"))
    truth, ledger = volume.truth("groundtruth")
    volume.staging.mkdir()
    ledger.record(2, truth.write_slice(2, np.zeros((64, 96), np.uint8), volume.staging), "2b.png", 0)
    words = re.sub("<[^>]*>", "", render(gather(volume, "otsu", "groundtruth")))
    assert "Only 2 of 3 tiles are done (1 not done, or changed since)" in words


def test_nothing_of_a_user_is_markup(volume, files):
    for file in files.values():
        page = Reader(file.read_text())
        names = [name for name, _ in page.tags]
        assert names.count("script") == 2
        assert not {"img", "iframe", "object", "b"} & set(names)
        assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
        assert EVIL[-1] in "".join(page.words)
        policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
        assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
        links = {attributes.get("href") for name, attributes in page.tags if name in ("a", "link", "image")} - {None}
        assert all(re.match(r"#|data:|[a-z0-9_.-]+\.html$", link, re.I) for link in links)
    assert REASON in Reader(files["otsu"].read_text()).words


def test_equal_input_gives_equal_bytes(volume, files, tmp_path):
    again = kesm("report", volume.path, "--name", "otsu", "--out", tmp_path / "one", "--json").document
    assert again["index"] is None
    (report,) = again["reports"]
    assert Path(report["file"]).read_bytes() == files["otsu"].read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [Path(report["file"]).name]


def test_page_without_a_truth_says_so(files):
    page = Reader(files["bare"].read_text())
    assert "no truth" in "".join(page.words)
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {"no-truth", "map", "histogram", "room-random", "room-fullest", "profile-level"} <= ids
    assert not {"scores", "roc", "methods", "room-worst", "colour-blind-choice"} & ids
    assert set(page.report["map"]["columns"]) == {"state", "flags", "level", "vessel"}


def test_page_has_every_part(files):
    page = Reader(files["otsu"].read_text())
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {"verdict", "scores", "profile-score", "profile-level", "profile-vessel", "slice", "map", "room-worst",
            "room-best", "room-random", "histogram", "roc", "pr", "method-table", "quality", "failures",
            "attempts"} <= ids  # fmt: skip
    for name, attributes in page.tags:
        if name == "svg" and attributes.get("role") == "img":
            assert attributes.get("aria-label") or attributes.get("aria-labelledby")
    for chart in ("histogram", "roc", "pr", "profile-score"):
        assert {f"{chart}-title", f"{chart}-desc"} <= ids


@pytest.mark.parametrize("chart", ["profile-score", "profile-vessel"])
def test_profile_goes_on_between_annotated_slices(files, chart):
    """Slices 0, 2 and 4 have a truth: one line of three points each, where dots would say little."""
    text = files["otsu"].read_text()
    svg = text[(start := text.index(f'id="{chart}"')) : text.index("</svg>", start)]
    (truth,) = re.findall(r'<polyline points="([^"]*)" class="line two"', svg)
    assert len(truth.split()) == 3
    assert "<circle" not in svg


def test_run_of_16_bit_with_a_gap(tmp_path):
    volume = build_volume(tmp_path / "v.zarr", (4, 64, 96), "uint16", absent=(1,))
    run(run_config(volume, tile=32))
    page = Reader(render(gather(volume, "otsu", "groundtruth")))
    assert page.report["summary"]["levels"]["median"] > 255
    lefts = {
        attributes["data-left"]
        for name, attributes in page.tags
        if "profile-" in (attributes.get("id") or "") and name == "svg"
    }
    assert len(lefts) == 1  # slices are below each other
    assert float(lefts.pop()) > 62
    assert any("Stored histograms of uint16 have 256 bins" in words for words in page.words)
    states = decoded(Column(**page.report["map"]["columns"]["state"])).reshape(4, -1)
    assert {STATES[int(state)] for state in states[1]} == {"absent"}
    assert page.report["profile"]["middle"][1] is None
    assert {"histogram", "roc"} <= {attributes.get("id") for _, attributes in page.tags}


def test_run_without_levels(tmp_path):
    volume = build_volume(tmp_path / "v.zarr", (1, 64, 96))
    run(run_config(volume, name="local", threshold={"method": "sauvola", "size": 15}))
    page = Reader(render(gather(volume, "local", "groundtruth")))
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert "profile-level" not in ids
    assert "roc" in ids
    assert "level" not in page.report["map"]["columns"]
    assert "local (this run)" in page.words


def test_each_truth_has_a_report(tmp_path):
    volume = build_volume(tmp_path / "v.zarr", (1, 64, 96))
    volume.staging.mkdir()
    truth, ledger = volume.create_truth("second", {"vessel": 255, "vessel_above": None, "unlabelled": None})
    ledger.record(0, truth.write_slice(0, np.zeros((64, 96), np.uint8), volume.staging), "0.png", 0)
    volume.publish_label("second")
    for name in ("groundtruth", "second"):
        run(run_config(volume, truth=name))
    reports = kesm("report", volume.path, "--out", tmp_path / "out", "--json").document["reports"]
    assert {report["truth"]: Path(report["file"]).name for report in reports} == {
        "groundtruth": "v-otsu-groundtruth.html",
        "second": "v-otsu-second.html",
    }
    page = Reader(Path(reports[1]["file"]).read_text())
    assert page.report["summary"]["scores"]["mcc"] == -1
    assert "roc" not in {attributes.get("id") for _, attributes in page.tags}  # there is no vessel to find


def test_templates_are_data_of_the_package():
    folder = Path(__file__).parents[1] / "pipeline" / "webpage" / "templates"
    assert {path.name for path in folder.iterdir()} == {"page.html", "report.css", "report.js"}
    assert "http" not in (folder / "report.js").read_text() + (folder / "report.css").read_text()


# Wrong input


def test_run_of_which_nothing_is_done(tmp_path):
    volume = build_volume(tmp_path / "v.zarr", (1, 64, 96))
    assert kesm("report", volume.path).message.startswith(f"{volume.path}: has no run yet; make one with `kesm run")
    run(run_config(volume))
    RunTables(volume, "otsu").mask_key.write((), 0)
    message = kesm("report", volume.path, "--out", tmp_path / "out").message
    assert "run 'otsu' has none of the 1 tiles" in message
    assert "finish it: give the command that started it again (`kesm status" in message
    assert not (tmp_path / "out").exists()


def test_run_that_cannot_be_opened_leaves_the_others(tmp_path):
    volume = build_volume(tmp_path / "v.zarr", (1, 64, 96))
    run(run_config(volume))
    run(run_config(volume, "broken"))
    (volume.path / "runs" / "broken" / "zarr.json").write_text("junk")
    bare = build_volume(tmp_path / "bare.zarr", (1, 64, 96))
    answer = kesm("report", volume.path, bare.path, "--out", tmp_path / "out")
    assert (answer.code, [path.name for path in (tmp_path / "out").iterdir()]) == (3, ["v-otsu.html"])
    assert re.search(r"left out: .*broken: its zarr.json cannot be read", answer.err)
    assert f"left out: {bare.path}: has no run yet" in answer.err
    assert kesm("report", volume.path, "--name", "broken", "--out", tmp_path / "out").code == 2


def test_run_that_is_not_there(volume, tmp_path):
    message = kesm("report", volume.path, "--name", "otsu", "--name", "nope", "--out", tmp_path / "out").message
    assert re.search(r"--name: there is no run 'nope'; .* has: bare, otsu$", message)


def test_place_that_is_a_file(volume, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert "is a file; name a folder with --out" in kesm("report", volume.path, "--out", tmp_path / "out").message
    assert (tmp_path / "out").read_text() == "mine"


def test_one_report_may_be_a_file(volume, tmp_path):
    answer = kesm("report", volume.path, "--name", "otsu", "--out", tmp_path / "mine.html", "--json")
    document = check_document("report", answer.document)
    assert (document["index"], [report["file"] for report in document["reports"]]) == (
        None,
        [str(tmp_path / "mine.html")],
    )
    kesm("report", volume.path, "--name", "otsu", "--out", tmp_path / "folder")
    (page,) = (tmp_path / "folder").iterdir()
    assert (tmp_path / "mine.html").read_bytes() == page.read_bytes()
    message = kesm("report", volume.path, "--out", tmp_path / "all.html").message
    assert message.endswith("all.html, a file, for 2 reports; name a folder, or one run with --name")
    assert "the folder" in kesm("report", volume.path, "--name", "otsu", "--out", tmp_path / "none/a.html").message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "mine.html"]


def test_no_volume(tmp_path):
    assert "no such volume" in kesm("report", tmp_path / "none.zarr").message


def test_run_that_cannot_be_shown_is_left_out_of_all(tmp_path):
    volume = build_volume(tmp_path / "v.zarr", (1, 64, 96))
    run(run_config(volume))
    run(run_config(volume, name="empty"))
    RunTables(volume, "empty").mask_key.write((), 0)
    answer = kesm("report", volume.path, "--out", tmp_path / "out", "--json")
    document = check_document("report", answer.document)
    assert (answer.code, answer.err.count("\nleft out: ")) == (3, 1)
    assert [report["name"] for report in document["reports"]] == ["otsu"]
    assert len(document["problems"]) == 1
    assert "'empty'" in document["problems"][0]
    assert "'empty'" in "".join(Reader((tmp_path / "out" / "index.html").read_text()).words)


# The index


def test_index_compares_runs_of_volumes(tmp_path):
    one = build_volume(tmp_path / "a" / "v.zarr", (2, 64, 96))
    other = build_volume(tmp_path / "b" / "v.zarr", (2, 64, 96), absent=(1,))
    other.staging.mkdir()
    truth, ledger = other.truth("groundtruth")
    ledger.record(0, truth.write_slice(0, np.full((64, 96), 255, np.uint8), other.staging), "0.png", 0)
    for volume, name, level in ((one, "x", 90), (one, "y", 250), (other, "x", 90)):
        run(run_config(volume, name=name, threshold={"method": "fixed", "level": level}))
    run(RunConfig.model_validate({"volume": other.path, "name": "X", "threshold": {"method": "fixed", "level": 90}}))
    answer = kesm("report", one.path, other.path, "--out", tmp_path / "out", "--json")
    document = check_document("report", answer.document)
    names = [Path(report["file"]).name for report in document["reports"]]
    assert sorted(map(str.lower, names)) == ["v-x-2.html", "v-x-3.html", "v-x.html", "v-y.html"]
    page = Reader(Path(document["index"]).read_text())
    listed = page.report["runs"]
    assert [one["scores"] is None for one in listed] == [False, False, False, True]
    found = [one["scores"]["mcc"] for one in listed[:3]]
    assert found == sorted(found, reverse=True)
    assert {one["file"] for one in listed} == set(names)
    links = [attributes["href"] for name, attributes in page.tags if name == "a" and "#" not in attributes["href"]]
    assert links == 2 * [one["file"] for one in listed]  # of the table, and of the headings
    assert [value for value, _ in page.numbers["scores.mcc"]] == [*found, None]
    assert "not-comparable" in {attributes.get("id") for _, attributes in page.tags}  # two specimens
    kesm("report", one.path, "--out", tmp_path / "one")
    page = Reader((tmp_path / "one" / "index.html").read_text())
    assert "not-comparable" not in {attributes.get("id") for _, attributes in page.tags}


def test_index_warns_of_scores_on_other_voxels(volume, tmp_path):
    small = build_volume(tmp_path / "v.zarr", (2, 64, 96))
    run(run_config(small))
    kesm("report", small.path, volume.path, "--name", "otsu", "--out", tmp_path / "out")
    page = Reader((tmp_path / "out" / "index.html").read_text())
    assert "not-comparable" in {attributes.get("id") for _, attributes in page.tags}


def test_index_compares_copies_of_a_volume(volume, tmp_path):
    copied = Volume(shutil.copytree(volume.path, tmp_path / "copy.zarr"))
    kesm("report", volume.path, copied.path, "--name", "otsu", "--out", tmp_path / "out")
    page = Reader((tmp_path / "out" / "index.html").read_text())
    assert "not-comparable" not in {attributes.get("id") for _, attributes in page.tags}
    assert "All that have scores were scored on the same annotated voxels." in page.words


def test_paths_of_the_index_wrap_at_slashes(files, volume):
    text = files["index"].read_text()
    assert f"<code>{'/<wbr>'.join(map(escape, str(volume.path).split('/')))}</code>" in text


def test_index_tells_equal_names_apart(tmp_path):
    volumes = [
        build_volume(tmp_path / place, (1, 64, 96)) for place in ("a/x/v.zarr", "b/x/v.zarr", "c/v.zarr", "w.zarr")
    ]
    for volume in volumes:
        run(run_config(volume))
    volumes[-1].staging.mkdir()
    second, ledger = volumes[-1].create_truth("second", MAPPING)
    ledger.record(0, second.write_slice(0, np.zeros((64, 96), np.uint8), volumes[-1].staging), "0.png", 0)
    volumes[-1].publish_label("second")
    run(run_config(volumes[-1], truth="second"))
    document = kesm("report", *(volume.path for volume in volumes), "--out", tmp_path / "out", "--json").document
    text = Path(document["index"]).read_text()
    headings = dict(re.findall(r'<h3><a href="([^"]*)">([^<]*)</a></h3>', text))
    assert headings == {
        "v-otsu.html": "otsu on a/x/v.zarr",
        "v-otsu-2.html": "otsu on b/x/v.zarr",
        "v-otsu-3.html": "otsu on c/v.zarr",
        "w-otsu-groundtruth.html": "otsu on w.zarr, compared with groundtruth",
        "w-otsu-second.html": "otsu on w.zarr, compared with second",
    }
    titles = [re.findall("<title>(.*?)</title>", Path(report["file"]).read_text())[0] for report in document["reports"]]
    assert len(set(titles)) == 5
    assert titles[0] == f"otsu on v.zarr, compared with groundtruth: report, {volumes[0].path}"


def test_index_ranks_no_undefined_score_first(tmp_path):
    good, flat = build_volume(tmp_path / "good.zarr", (1, 64, 96)), flat_volume(tmp_path / "flat.zarr", (1, 64, 96))
    for volume in (flat, good):
        run(run_config(volume))
    run(RunConfig.model_validate({"volume": flat.path, "name": "bare"}))
    kesm("report", flat.path, good.path, "--out", tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    page = Reader(text)
    assert [one["file"] for one in page.report["runs"]] == ["good-otsu.html", "flat-otsu.html", "flat-bare.html"]
    assert [value for value, _ in page.numbers["scores.mcc"]][1:] == [1.0, None]
    assert page.words.count("(undefined)") == text.count('class="mark"') == 4
    assert text.count('class="bar"') == 1
    assert "3 reports, best MCC first; those whose MCC is undefined, 0 / 0, are behind the others." in page.words


# What cannot be read


def test_damage_is_said_and_the_rest_is_there(volume, tmp_path):
    copied = Volume(shutil.copytree(volume.path, tmp_path / "v.zarr"))
    for folder in ("0/c/0", "tiles/otsu/vessel/c/1"):
        for file in (copied.path / folder).rglob("*"):
            if file.is_file():
                file.write_bytes(b"nothing")
    answer = kesm("report", copied.path, "--name", "otsu", "--out", tmp_path / "out", "--json")
    (report,) = check_document("report", answer.document)["reports"]
    said = [line for line in answer.err.splitlines() if line.startswith("not read: otsu: ")]
    assert (answer.code, len(said)) == (3, min(20, len(report["problems"])) + (len(report["problems"]) > 20))
    for words in ("vessel", f"{copied.path}/0"):
        assert any(words in problem for problem in report["problems"]), words
        assert any(words in line for line in said), words
    page = Reader(Path(report["file"]).read_text())
    assert "unreadable" in {attributes.get("id") for _, attributes in page.tags}
    assert set(report["problems"][:100]) <= set(page.words)
    assert kesm("status", copied.path, "--qc").code == 0


@pytest.mark.parametrize(("damaged", "begun_with"), [("000000", True), ("000001", False)], ids=["first", "last"])
def test_attempt_that_cannot_be_read(tmp_path, damaged, begun_with):
    volume = build_volume(tmp_path / "v.zarr", (2, 64, 96))
    run(run_config(volume, region="z=0:1"))
    run(run_config(volume))
    (volume.path / "runs" / "otsu" / "attempts" / damaged / "zarr.json").write_bytes(b"")
    answer = kesm("report", volume.path, "--out", tmp_path / "out")
    assert (answer.code, answer.out) == (3, f"{tmp_path / 'out' / 'v-otsu.html'}\n")
    assert re.search(rf"^not read: otsu: .*attempts/{damaged}: its zarr.json cannot be read", answer.err, re.M)
    page = Reader((tmp_path / "out" / "v-otsu.html").read_text())
    assert "cannot be read" in page.words
    assert ("Digest of the image" in page.words) is begun_with
    assert ("the whole volume" in page.words) is begun_with
    assert {"verdict", "attempts", "histogram"} <= {attributes.get("id") for _, attributes in page.tags}


@pytest.mark.parametrize("there", [False, True], ids=["made", "there before"])
def test_full_disk_leaves_no_folder_of_ours(volume, tmp_path, monkeypatch, there):
    def refuse(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    if there:
        (tmp_path / "new").mkdir()
    monkeypatch.setattr(Path, "write_bytes", refuse)
    answer = kesm("report", volume.path, "--name", "bare", "--out", tmp_path / "new" / "out")
    assert "the disk is full" in answer.message
    assert [path.name for path in tmp_path.rglob("*")] == (["new"] if there else [])


# Maps of tiles


def random_census(shape: tuple[int, int, int], seed: int = 0) -> Census:
    """Tiles whose numbers have nothing to do with each other, so that nothing compresses."""
    rng = np.random.default_rng(seed)
    grid = Grid((shape[0], shape[1] * 512, shape[2] * 512), (1, 512, 512))
    counts = rng.multinomial(512 * 512, [0.03, 0.02, 0.02, 0.93], shape).astype(np.int64)
    counts[..., :3] = rng.integers(0, 40_000, (*shape, 3))
    quality = rng.standard_normal((*shape, 7)).astype(np.float32) ** 6
    done = rng.random(shape) < 0.97
    return Census(
        volume=Path("/data/full.zarr"), name="otsu", truth="groundtruth", grid=grid, tiles=Box.whole(grid.cells),
        status=np.where(done, Status.DONE, Status.FAILED).astype(np.uint8), done=done, voxels=np.full(shape, 512 * 512),
        level=rng.integers(0, 256, shape).astype(float), signal=np.full(shape, Signal.NOT_ASKED, np.uint8),
        vessel=rng.integers(0, 512 * 512, shape), counts=counts, annotated=counts.sum(axis=-1), quality=quality,
        seam=np.zeros_like(counts),
    )  # fmt: skip


def test_full_volume_fits(volume):
    shape = (799, 16, 35)
    tiles = random_census(shape)
    tile_map = make_map(tiles)
    assert tile_map.group == 1
    picture = Picture((0, 0, 0), Box((0, 0, 0), (1, 512, 512)), 0.5, 80.0, 0.1, Counts(10**5, 10**5, 10**5, 10**5),
                      *("data:image/webp;base64," + "x" * (PICTURE_BYTES * 2 // 3),) * 2, "")  # fmt: skip
    page = gather(volume, "otsu", "groundtruth")
    rng = np.random.default_rng(2)
    parts = {name: rng.random(799) for name in ("low", "middle", "high", "vessel", "truth")}
    profile = replace(page.profile, scores=rng.random((799, len(SCORES))), **parts)
    rooms = tuple(Room(name, name, name, (picture,) * count) for name, count in
                  (("worst", 50), ("best", 20), ("random", 20)))  # fmt: skip
    facts = page.volume | {"shape": [799, 8026, 17480]}
    whole = replace(page, tile_map=tile_map, profile=profile, gallery=rooms, volume=facts)
    size = len(render(whole).encode())
    assert 3_500_000 < size < 5_000_000


def test_tables_are_read_once(volume, monkeypatch):
    read: list[Path] = []
    plain = Salvage.read

    def watched_read(self: Salvage, table: Table) -> Any:
        read.append(table.path)
        return plain(self, table)

    monkeypatch.setattr(Salvage, "read", watched_read)
    gather(volume, "otsu", "groundtruth")
    assert len(read) == len(set(read)) > 5


def test_slices_without_an_mcc_are_marked(browser, tmp_path):
    """The truth of slice 2 has no vessel, slice 1 has no truth."""
    volume = build_volume(tmp_path / "v.zarr", (3, 64, 96))
    truth, ledger = volume.truth("groundtruth")
    volume.staging.mkdir()
    ledger.record(2, truth.write_slice(2, np.zeros((64, 96), np.uint8), volume.staging), "2b.png", 0)
    run(run_config(volume))
    file = tmp_path / "page.html"
    file.write_text(render(gather(volume, "otsu", "groundtruth")))
    text = file.read_text()
    assert "is undefined, 0 / 0, as truth or mask is all of one kind: 1." in text
    numbers = text[(start := text.index("Numbers of each slice</caption>")) : text.index("</table>", start)]
    (marked,) = re.findall(r'<th scope="row">([0-9]+)</th><td>[^<]* <span class="mark">', numbers)
    assert marked == "2"
    with watched(browser) as watch:
        page = open_report(watch, file)
        for z, said in ((0, False), (1, False), (2, True)):
            page.locator("#slice").fill(str(z))
            assert ("(undefined)" in page.locator("#slice-words").inner_text()) is said
            assert ("(undefined)" in figures(page)["MCC"]) is said


def test_slices_that_are_left_out_are_counted(volume, monkeypatch):
    page = gather(volume, "otsu", "groundtruth")
    assert "more slices" not in render(page)
    monkeypatch.setattr("pipeline.webpage.layout.SHOWN_SLICES", 4)
    text = render(page)
    assert "2 more slices are not shown." in Reader(text).words
    assert "all numbers" not in text


def test_map_has_every_tile(tiles, volume):
    found = make_map(tiles)
    assert (found.cells, found.group, found.side) == ((6, 3, 4), 1, 128)
    columns = {name: decoded(column).reshape(found.cells) for name, column in found.columns.items()}
    np.testing.assert_array_equal(columns["level"], tiles.level)
    np.testing.assert_array_equal(columns["vessel"], tiles.fraction())
    np.testing.assert_array_equal(columns["mcc"], tiles.score("mcc"))
    for at_, kind in enumerate(("tp", "fp", "fn", "tn")):
        known = tiles.annotated > 0
        np.testing.assert_array_equal(columns[kind][known], tiles.require_truth()[known][:, at_])
        assert np.isnan(columns[kind][~known]).all()
    states = np.array(STATES)[columns["state"].astype(int)]
    assert (states[:5] == "done").all()
    assert (states[5] == "failed").all()


def test_large_map_is_near(monkeypatch):
    monkeypatch.setattr("pipeline.webpage.tilemap.EXACT_CELLS", 10)
    tiles = random_census((3, 4, 5), seed=1)
    assert not tiles.done[2].all()
    tiles.status[1] = Status.ABSENT
    found = make_map(tiles)
    assert found.columns.keys() == {"state", "flags", "level", "vessel", "mcc"}
    for name, expected in (("level", tiles.level), ("vessel", tiles.fraction()), ("mcc", tiles.score("mcc"))):
        column, values = found.columns[name], decoded(found.columns[name])
        near = np.abs(values - expected.ravel()) <= 0.5000001 * column.step
        assert near[np.isfinite(expected.ravel())].all(), name
        np.testing.assert_array_equal(np.isnan(values), np.isnan(expected.ravel()))
        steps = np.ptp(expected[np.isfinite(expected)]) / 254
        assert column.step == (1 if name == "level" else pytest.approx(steps))
    states = decoded(found.columns["state"]).reshape(3, 20)
    assert {STATES[int(state)] for state in states[1]} == {"absent"}
    expected = np.where(tiles.done[2].ravel(), STATES.index("done"), STATES.index("failed"))
    np.testing.assert_array_equal(states[2], expected)


def test_too_many_tiles_share_cells(monkeypatch):
    monkeypatch.setattr("pipeline.webpage.tilemap.MAP_CELLS", 12)
    tiles = random_census((2, 5, 7))
    tiles = replace(tiles, vessel=np.where(tiles.done, tiles.vessel, NOT_COUNTED))
    found = make_map(tiles)
    assert (found.cells, found.group, found.side) == ((2, 2, 3), 3, 1536)
    corner = (0, slice(3, 5), slice(6, 7))
    done = tiles.done[corner]
    columns = {name: decoded(column).reshape(2, 2, 3)[0, 1, 2] for name, column in found.columns.items()}
    assert columns["tp"] == tiles.require_truth()[corner][..., 0].sum()
    assert columns["vessel"] == tiles.vessel[corner][done].sum() / tiles.voxels[corner][done].sum()
    assert columns["level"] == pytest.approx(tiles.level[corner].mean())


@pytest.mark.parametrize("other", ["done", "no signal", "pending"])
def test_failed_tile_is_seen_in_the_cell_of_others(monkeypatch, other):
    monkeypatch.setattr("pipeline.webpage.tilemap.MAP_CELLS", 1)
    tiles = random_census((1, 1, 2))
    kind = {"done": Status.DONE, "pending": Status.PENDING, "no signal": Status.DONE}[other]
    done = np.array([[[kind == Status.DONE, False]]])
    signal = np.full((1, 1, 2), Signal.NONE if other == "no signal" else Signal.NOT_ASKED, np.uint8)
    status = np.array([[[kind, Status.FAILED]]], np.uint8)
    (state,) = decoded(make_map(replace(tiles, done=done, signal=signal, status=status)).columns["state"])
    assert STATES[int(state)] == "failed"


# Pictures


def test_overlay_is_that_of_the_design():
    """Half of the image and half of what is put over it is what `views.overlay` blends."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (40, 50), np.uint8)
    truth, mask = rng.choice(np.array([0, 127, 255], np.uint8), (40, 50)), rng.random((40, 50)) < 0.5
    _, uri = encode_tile(image, classes(truth, mask), 1)
    over = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA")).astype(float)
    opacity = 0.5 * over[..., 3:] / 255
    blended = np.rint((1 - opacity) * image[..., None] + opacity * over[..., :3])
    np.testing.assert_array_equal(blended, overlay(image, truth, mask.astype(np.uint8)))


def test_mask_without_truth_has_a_colour_of_its_own():
    mask = np.eye(4, dtype=bool)
    for truth in (None, np.full((4, 4), 127, np.uint8)):
        assert (classes(truth, mask) == 5 * mask).all()
    article = PALETTES["article"]
    assert not {(255, 140, 0)} & {article.tp, article.fp, article.fn, article.tn}


def test_small_picture_shows_the_errors():
    plain, tp, fp, fn, tn = range(5)
    found = np.array([[tn, tn, tp, tn, fp, tp], [tn, tn, tn, tn, tp, tp], [fn, fn, plain, plain, fp, fn],
                      [fp, tp, plain, plain, tn, tn], [plain, tn, tp, tp, tn, fn]], np.uint8)  # fmt: skip
    assert shrink_classes(found, 2).tolist() == [[tn, tp, fp], [fn, plain, fn], [tn, tp, fn]]
    assert shrink_classes(found, 1) is found
    image = np.array([[0, 10, 20], [30, 41, 50], [7, 8, 9]], float)
    assert shrink_image(image, 2).tolist() == [[20, 35], [8, 9]]


def test_worst_case_of_a_picture_has_a_limit():
    rng = np.random.default_rng(4)
    uris = encode_tile(rng.integers(0, 256, (512, 512), np.uint8), rng.integers(0, 5, (512, 512), np.uint8), 2)
    assert sum(len(base64.b64decode(uri.partition(",")[2])) for uri in uris) <= PICTURE_BYTES


def test_colours_for_colour_blind_eyes_are_the_palettes():
    attributes = next(attributes for name, attributes in Reader(str(colour_filter())).tags if name == "fecolormatrix")
    matrix = np.array([float(value) for value in attributes["values"].split()]).reshape(4, 5)
    for kind in ("tp", "fp", "fn", "tn"):
        before = [*np.array(getattr(PALETTES["article"], kind)) / 255, 1.0, 1.0]
        np.testing.assert_allclose(
            255 * (matrix @ before)[:3], getattr(PALETTES["colour-blind"], kind), atol=0.1, err_msg=kind
        )


def test_gallery_chooses_tiles(volume, tiles):
    worst, best, chance = make_gallery(volume, tiles)
    annotated = int((tiles.annotated > 0).sum())
    assert [len(room.pictures) for room in (worst, best, chance)] == [annotated // 2, annotated - annotated // 2, 20]
    scores = [picture.score for picture in worst.pictures]
    assert scores == sorted(scores) != []
    assert not {picture.cell for picture in worst.pictures} & {picture.cell for picture in best.pictures}
    assert all(tiles.annotated[picture.cell] for picture in chance.pictures)
    assert [picture.cell for picture in chance.pictures] == sorted(picture.cell for picture in chance.pictures)
    again = make_gallery(volume, tiles)[2]
    assert [picture.cell for picture in again.pictures] == [picture.cell for picture in chance.pictures]
    for picture in worst.pictures:
        assert picture.counts == Counts(*tiles.require_truth()[picture.cell].tolist())
        assert picture.box == tiles.box(picture.cell)


def test_gallery_compares_valid_voxels_alone(volume, tmp_path):
    mine = Volume(shutil.copytree(volume.path, tmp_path / "v.zarr"))
    image, truth = (array.read(Box.whole(mine.shape)) for array in (mine.image.full, mine.label("groundtruth").full))
    padding = int(np.bincount(image[truth == 255]).argmax())
    run(run_config(mine, "partly", tile=128, valid={"padding": padding}))
    pictures = [picture for room in make_gallery(mine, census(mine, "partly")) for picture in room.pictures]
    outside = 0
    for picture in pictures:
        there = image[picture.box.slices][0] == padding
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.overlay.partition(",")[2]))).convert("RGBA"))
        assert not shown[there].any()
        assert (shown[..., 3] > 0).sum() == picture.counts.total
        outside += (there & (truth[picture.box.slices][0] == 255)).sum()
    assert outside > 0


@pytest.mark.parametrize("label", ["", "labels/groundtruth", "labels/otsu"], ids=["image", "truth", "mask"])
def test_picture_of_a_lost_shard_says_why(volume, tmp_path, label):
    """It would be black, plain, or all missed."""
    lost = Volume(shutil.copytree(volume.path, tmp_path / "v.zarr"))
    shard = next(path for path in sorted((lost.path / label / "0/c/2").rglob("*")) if path.is_file())
    shard.unlink()
    answer = kesm("report", lost.path, "--name", "otsu", "--out", tmp_path)
    assert answer.code == 3, answer
    (file,) = tmp_path.glob("v-otsu*.html")
    found = make_gallery(lost, census(lost, "otsu", "groundtruth"))
    problems = {picture.cell[0]: picture.problem for room in found for picture in room.pictures}
    assert problems[2].endswith("the next `kesm run` makes it again" if "otsu" in label else "restore it from a copy")
    assert f"{label}/0: shard {shard.relative_to(lost.path / label / '0')} is missing; " in problems[2]
    assert problems[0] == problems[4] == ""
    assert f"Cannot be shown: {problems[2]}" in Reader(file.read_text()).words
    assert re.search(rf"^not read: .*{re.escape(problems[2])}$", answer.err, re.MULTILINE)


def test_picture_that_cannot_be_read_says_why(volume, tmp_path):
    shutil.copytree(volume.path, tmp_path / "v.zarr")
    for file in (tmp_path / "v.zarr" / "0").glob("c/0/**/*"):
        if file.is_file():
            file.write_bytes(b"nothing")
    damaged = Volume(tmp_path / "v.zarr")
    found = make_gallery(damaged, census(damaged, "otsu", "groundtruth"))
    problems = {picture.cell[0]: picture.problem for room in found for picture in room.pictures}
    assert problems[0] != ""
    assert problems[2] == problems[4] == ""
    page = Reader(render(gather(damaged, "otsu", "groundtruth")))
    assert any("Cannot be shown: " in words for words in page.words)


def pictures_of(tmp_path: Path, shape: tuple[int, int, int], tile: int) -> list[tuple[dict[str, str | None], str]]:
    """Of each picture its drawing's attributes, with those of its image, and its caption."""
    volume = build_volume(tmp_path / "v.zarr", shape)
    run(run_config(volume, tile=tile))
    text = render(gather(volume, "otsu", "groundtruth"))
    found = []
    for figure in re.findall(r"<figure>.*?</figure>", text):
        tags = Reader(figure).tags
        drawing, image = (next(each for name, each in tags if name == kind) for kind in ("svg", "image"))
        found.append((image | drawing, re.findall("<figcaption>(.*)</figcaption>", figure)[0]))
    assert ("outside of the volume" in text) is (shape[1] % tile != 0 and shape[1] > tile)
    return found


def test_small_tiles_are_enlarged_by_whole_factors(tmp_path):
    """Tiles of 128 of a slice of 158 x 168: those of 30 x 40 fit three times, strips are as large as others."""
    found = pictures_of(tmp_path, (1, 158, 168), 128)
    assert {drawing["viewbox"] for drawing, _ in found} == {"0 0 256.0 256.0"}
    assert {
        (drawing["width"], drawing["height"], drawing.get("class"), caption.partition("drawn ")[2])
        for drawing, caption in found
    } == {
        ("256.0", "256.0", None, ""),
        ("256.0", "60.0", None, ""),
        ("80.0", "256.0", None, ""),
        ("240.0", "180.0", "sharp", "3 times as large"),
    }


@pytest.mark.parametrize(("shape", "frame"), [((1, 1, 1), "256.0 256.0"), ((1, 64, 96), "256.0 170.7")])
def test_frame_of_a_small_volume_is_full(tmp_path, shape, frame):
    for drawing, caption in pictures_of(tmp_path, shape, 512):
        assert drawing["viewbox"] == f"0 0 {frame}" == f"0 0 {drawing['width']} {drawing['height']}"
        assert "drawn" not in caption


# Methods and words


def test_methods_are_as_they_run(volume, tiles, tmp_path):
    shutil.copytree(volume.path, tmp_path / "v.zarr")
    copied = Volume(tmp_path / "v.zarr")
    ranking = find_evidence(volume, tiles).ranking
    assert ranking is not None
    assert len(ranking.places) == 21
    places = {(place.candidate.method, place.candidate.scope): place.counts for place in ranking.places}
    for method, scope in (("otsu", "tile"), ("yen", "tile"), ("yen", "slice")):
        config = run_config(copied, f"{method}-{scope}", tile=128, region="z=0:5",
                            threshold={"method": method, "scope": scope})  # fmt: skip
        assert run(config).counts == places[method, scope]


@pytest.mark.parametrize("options", [{}, {"clean": {"small_objects": 600}}], ids=["plain", "cleaned"])
def test_run_of_16_bit_has_the_scope_of_its_levels(tmp_path, options):
    volume = build_volume(tmp_path / "v.zarr", (2, 300, 420), "uint16")
    run(run_config(volume, **options))
    page = gather(volume, "otsu", "groundtruth")
    assert page.evidence.own is not None
    assert page.evidence.own.scope == "recipe"  # as its counts are not those of the stored histograms
    (scope,) = re.findall(r"<tr><th[^>]*><strong>otsu \(this run\)</strong></th><td>([^<]*)</td>", render(page))
    assert scope == "tile"


def test_bins_are_not_said_of_8_bit(files):
    assert 'id="bins"' not in files["otsu"].read_text()


def test_run_of_more_stages_is_judged_beside_the_methods(tmp_path):
    volume = build_volume(tmp_path / "v.zarr", (2, 64, 96))
    run(run_config(volume, name="cleaned", clean={"small_objects": 600}))
    evidence = find_evidence(volume, census(volume, "cleaned"))
    assert evidence.ranking is not None
    assert str(evidence.own) == "recipe cleaned after median:3"
    (own,) = (place for place in evidence.ranking.places if place.candidate == evidence.own)
    assert own.counts == Counts(*census(volume, "cleaned").require_truth().sum(axis=(0, 1, 2)).tolist())


def test_histogram_without_truth_has_all_voxels(volume):
    pooled = find_evidence(volume, census(volume, "bare")).pooled
    assert pooled.sum() == pooled[2].sum() == math.prod(SHAPE)


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        pytest.param({}, "Otsu's method gave a grey level for each tile of 512 × 512 voxels by itself", id="otsu"),
        pytest.param({"foreground": "bright"}, "Vessels are brighter", id="bright"),
        pytest.param({"denoise": {"method": "none"}}, "No filter was used.", id="no filter"),
        pytest.param({"denoise": {"method": "median", "size": [3, 5, 5]}}, "median of 3 × 5 × 5 voxels.", id="3 d"),
        pytest.param({"denoise": {"method": "gaussian", "sigma": 1.5}}, "deviation of 1.5 voxels", id="gaussian"),
        pytest.param({"threshold": {"method": "fixed", "level": 80}}, "above the fixed grey level 80", id="fixed"),
        pytest.param({"threshold": {"method": "li", "scope": "volume"}}, "for the whole volume", id="volume"),
        pytest.param({"threshold": {"method": "sauvola", "size": 31}}, "from the 31 × 31 voxels", id="sauvola"),
        pytest.param(
            {"threshold": {"method": "otsu", "min_contrast": 9, "on_no_signal": "empty"}},
            "get an empty mask", id="rule",
        ),
        pytest.param({"valid": {"padding": 0}}, "Voxels of grey level 0, where nothing was imaged", id="padding"),
        pytest.param({"correct": {"flat_field": 64, "gamma": 0.8}}, "evened out over 64 voxels", id="flat field"),
        pytest.param({"clean": {"opening": 1, "small_holes": 9}}, "Holes of a slice with fewer than 9", id="clean"),
        pytest.param({"segmenter": {"kind": "python", "target": "lab:cut"}}, "then found by lab:cut", id="segmenter"),
    ],
)  # fmt: skip
def test_recipe_in_words(recipe, sentence):
    said = recipe_sentences(Recipe.model_validate(recipe).document())
    assert sentence in " ".join(said)
    assert all(each.endswith(".") for each in said)


def test_verdict_never_says_all_of_what_is_not():
    said = verdict(Counts(tp=999, fn=1, fp=10**6, tn=10**6))
    assert "finds more than 99; of 100 voxels that it calls vessel, less than 1 are" in said
    assert "finds 100; of 100 voxels that it calls vessel, 50 are" in verdict(Counts(tp=5, fp=5, tn=5))
    assert "with an MCC of −1.000. Of 100" in verdict(Counts(fp=5, fn=5))
    assert "nothing can be said" in verdict(Counts())


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        pytest.param(Counts(tn=1), "on 1 annotated voxel: there is no vessel in the truth, and none in the mask.",
                     id="neither"),
        pytest.param(Counts(fp=7, tn=3), "no vessel in the truth. The mask calls 7 vessel, all wrongly", id="truth"),
        pytest.param(Counts(fn=7, tn=3), "no vessel in the mask. The truth has 7, all missed", id="mask"),
        pytest.param(Counts(tp=1, fn=3), "no background in the truth. Of 100 vessel voxels of the truth the mask finds "
                     "25", id="truth full"),
        pytest.param(Counts(tp=1, fp=3), "no background in the mask. Of 100 voxels that it calls vessel, 25 are",
                     id="mask full"),
        pytest.param(Counts(tp=4), "no background in the truth. Of 100 vessel voxels of the truth the mask finds 100",
                     id="both full"),
    ],
)  # fmt: skip
def test_verdict_without_a_class_has_no_mcc(counts, said):
    assert said in verdict(counts)
    assert verdict(counts).endswith("MCC is undefined.")
    assert "agree" not in verdict(counts)


def test_undefined_scores_are_those_of_0_by_0():
    assert undefined_scores(Counts(1, 2, 3, 4)) == undefined_scores(Counts()) == undefined_scores(None) == set()
    assert undefined_scores(Counts(fn=1, tn=1)) == {"mcc", "precision"}
    assert undefined_scores(Counts(tn=1)) == set(SCORES) - {"accuracy", "specificity"}


@given(st.text(), st.text())
def test_any_text_stays_text(name, value):
    page = Reader(tag("p", name, title=value))
    assert [each for each, _ in page.tags] == ["p"]
    shown = "".join(page.words)
    assert len(shown) == len(name)
    assert all(a == b or b == "\ufffd" for a, b in zip(name, shown, strict=True))
    escape(name).encode()
    data = island({"name": name})
    assert not set("<>&") & set(data)
    assert json.loads(data) == {"name": name}


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        pytest.param(Scale(0, 1, 0, 100), [0, 0.2, 0.4, 0.6, 0.8, 1], id="unit"),
        pytest.param(Scale(-0.5, 798.5, 0, 100), [0, 200, 400, 600], id="slices"),
        pytest.param(Scale(0.5, 2e6, 0, 100, log=True), [1, 100, 10**4, 10**6], id="powers"),
    ],
)
def test_ticks_are_round(scale, ticks):
    assert scale.ticks() == pytest.approx(ticks)
    assert scale(scale.low) == 0
    assert scale(scale.high) == pytest.approx(100)


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        pytest.param([0.98, 1.0], (0.96, 1.0), id="best"),
        pytest.param([0.0, 0.0], (0.0, 0.02), id="none"),
        pytest.param([1.0, math.nan], (0.98, 1.0), id="one"),
        pytest.param([0.4, 0.6], (0.38, 0.62), id="inside"),
    ],
)
def test_limits_are_possible(values, limits):
    assert span(values, 0.02, (0.0, 1.0)) == pytest.approx(limits)


def test_score_axis_ends_at_1_and_the_line_is_whole(tmp_path):
    volume = flat_volume(tmp_path / "v.zarr", (2, 64, 96))
    run(run_config(volume))
    text = render(gather(volume, "otsu", "groundtruth"))
    svg = text[(start := text.index('id="profile-score"')) : text.index("</clipPath>", start)]
    ticks = [float(tick) for tick in re.findall(r'class="tick end">([^<]*)<', svg)]
    assert max(ticks) == 1
    drawn = [float(y) for y in re.findall(r'points="[0-9.]+,([0-9.]+) ', svg)]
    top = float(re.search(r'<rect x="[^"]*" y="([^"]*)"', svg)[1])
    assert set(drawn) == {10.0}  # where the axis ends
    assert top <= 10 - 0.9  # half of the line's width


@pytest.mark.parametrize("limits", [(0.0, 1.0), (48_599.0, 48_601.0), (-1.0, 1.0), (0.0, 65_535.0)])
def test_room_is_that_of_the_numbers(limits):
    svg = str(Chart("c", "t", "d", (0, 4), limits, y_label="grey level").svg())
    ends = re.findall(r'<text x="([0-9.]+)"[^>]*class="tick end">([^<]*)<', svg)
    assert len(ends) > 2
    for end, words in ends:
        assert float(end) - 7.63 * len(words.replace(",", "").replace(".", "")) > 17, words


def test_lines_have_gaps_where_nothing_is_known():
    chart = Chart("c", "t", "d", (0, 4), (0, 1))
    chart.line([(0, 0.1), (1, 0.2), (2, math.nan), (3, 0.4), (4, math.nan)], "one")
    names = [name for name, attributes in Reader(chart.svg()).tags if "one" in (attributes.get("class") or "")]
    assert names == ["polyline", "circle"]


# In a browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["otsu", "bare"])
def test_page_loads_in_peace(browser, files, name, scheme):
    with watched(browser, color_scheme=scheme) as watch:
        page = open_report(watch, files[name])
        assert (watch.said, watch.asked_network) == ([], [])
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        blocked = "fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'blocked')"
        assert page.evaluate(blocked) == "blocked"
        assert "Content Security Policy" in " ".join(watch.said)


def figures(page: Any) -> dict[str, str]:
    """What is shown of the chosen tile."""
    pairs = page.eval_on_selector_all(
        "#figures-list > div", "all => all.map(e => [...e.children].map(c => c.innerText))"
    )
    return dict(pairs)


def pixel(page: Any, selector: str, x: float = 0.5, y: float = 0.5) -> tuple[int, ...]:
    """Colour at a part of an element."""
    picture = Image.open(io.BytesIO(page.locator(selector).first.screenshot())).convert("RGB")
    found = picture.getpixel((int(x * picture.width), int(y * picture.height)))
    assert isinstance(found, tuple)
    return found


def test_click_shows_a_tile(browser, files, tiles, volume):
    with watched(browser) as watch:
        page = open_report(watch, files["otsu"])
        page.locator("#slice").fill("2")
        frame = page.locator("#map").bounding_box()
        assert frame["height"] / frame["width"] == pytest.approx(SHAPE[1] / SHAPE[2], rel=0.01)
        for row, column in ((0, 0), (1, 2), (2, 3)):  # the last is cut
            box = tiles.box((2, row, column))
            middle = [(first + last) / 2 for first, last in zip(box.start, box.stop, strict=True)]
            page.locator("#map").click(position={"x": middle[2] / SHAPE[2] * frame["width"],
                                                 "y": middle[1] / SHAPE[1] * frame["height"]})  # fmt: skip
            shown, cell = figures(page), (2, row, column)
            assert shown["Tile"] == f"slice 2, row {row}, column {column}"
            assert shown["Voxels"] == f"y {box.start[1]} to {box.stop[1]}, x {box.start[2]} to {box.stop[2]}"
            assert shown["MCC"].replace("−", "-") == f"{tiles.score('mcc')[cell]:.4f}"
            assert shown["Level"] == f"{tiles.level[cell]:.0f}"
            assert shown["Vessel"] == f"{100 * tiles.fraction()[cell]:.2f} %"
            counts = [int(shown[name].replace(",", "")) for name in
                      ("Found (TP)", "Too much (FP)", "Missed (FN)", "Background (TN)")]  # fmt: skip
            assert counts == tiles.require_truth()[cell].tolist()
            line = page.locator("#view-line").inner_text()
            assert line.startswith("kesm view '")
            assert " --name otsu --truth groundtruth --at " in line
            assert line.endswith(f" --at 2,{int(middle[1])},{int(middle[2])}")
        assert (watch.said, watch.asked_network) == ([], [])


def test_slider_shows_a_slice(browser, files):
    with watched(browser) as watch:
        page = open_report(watch, files["otsu"])
        report = page.evaluate("JSON.parse(document.getElementById('report').textContent)")
        page.locator("#slice").fill("0")
        seen = {}
        for z in (0, 1, 5):
            while int(page.locator("#slice").input_value()) < z:
                page.locator("#slice").press("ArrowRight")
            words = page.locator("#slice-words").inner_text()
            mcc = report["profile"]["mcc"][z]
            assert words.startswith(f"Slice {z} (0 to 5): ")
            assert (f"MCC {mcc:.4f}".replace("-", "−") in words) if mcc is not None else "MCC" not in words
            seen[z] = page.evaluate("document.getElementById('map').toDataURL()")
        assert len(set(seen.values())) == 3
        assert figures(page)["State"] == "failed"
        assert pixel(page, "#map", 0.9, 0.1) == (198, 40, 40)
        page.locator("#profile-level").click(position={"x": 60, "y": 60})
        assert page.locator("#slice").input_value() == "0"
        page.locator("#measure").select_option("vessel")
        assert page.locator("#low").inner_text().endswith(" %")
        assert watch.said == []


def test_keys_choose_tiles(browser, files):
    with watched(browser) as watch:
        page = open_report(watch, files["otsu"])
        page.locator("#slice").fill("2")
        tile_map = page.locator("#map")
        tile_map.focus()
        for key, cell in (("Home", None), ("ArrowUp", None), ("ArrowUp", "2,0,0"), ("ArrowRight", "2,0,1"),
                          ("End", "2,0,3"), ("ArrowRight", "2,0,3"), ("ArrowDown", "2,1,3"), ("ArrowLeft", "2,1,2"),
                          ("PageDown", "3,1,2"), ("PageUp", "2,1,2"), ("PageUp", "1,1,2")):  # fmt: skip
            tile_map.press(key)
            assert cell in (None, tile_map.get_attribute("data-cell")), key
        assert page.locator("#slice").input_value() == "1"
        assert figures(page)["Tile"] == "slice 1, row 1, column 2"
        for key, said in (("ArrowLeft", "row 1, column 1: done"), ("PageDown", "slice 2, row 1, column 1: MCC {}"),
                          ("ArrowRight", "row 1, column 2: MCC {}")):  # fmt: skip
            tile_map.press(key)
            assert page.locator("#tile-words").inner_text() == said.format(figures(page)["MCC"]), key
        assert page.locator("[aria-live]").count() == 1  # or each key would be read out several times
        assert page.locator("[aria-describedby]").count() == 0
        # Everything that can be operated can be reached, in the order of the page.
        page.locator(".skip").focus()
        reached: list[str] = []
        while "colour-blind-choice" not in reached and len(reached) < 60:
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
            page.keyboard.press("Tab")
        order = ["skip", "measure", "slice", "map", "overlay-choice", "alpha", "colour-blind-choice"]
        assert list(dict.fromkeys(name for name in reached if name in order)) == order


def test_picture_is_shown_larger(browser, files):
    with watched(browser) as watch:
        page = open_report(watch, files["otsu"])
        button = page.locator(".tiles button").nth(1)
        cell = button.get_attribute("data-cell")
        button.press("Enter")
        assert page.locator("#enlarged[open] svg image").count() == 2
        assert page.locator("#enlarged svg").bounding_box()["width"] > 400
        assert page.locator("#enlarged-line").inner_text().endswith(f"--at {button.get_attribute('data-at')}")
        page.locator("#to-map").click()
        assert page.locator("#enlarged[open]").count() == 0
        assert page.locator("#map").get_attribute("data-cell") == cell
        assert page.evaluate("document.activeElement.id") == "map"
        button.press("Enter")
        page.keyboard.press("Escape")
        assert page.locator("#enlarged[open]").count() == 0
        assert (watch.said, watch.asked_network) == ([], [])


LINES = """() => {
  const code = document.getElementById("view-line"), selection = getSelection();
  selection.selectAllChildren(code);
  const parts = [...code.children].map(each => [each.innerText, each.getClientRects().length, each.offsetHeight]);
  return [selection.toString(), code.textContent, parts];
}"""


@pytest.mark.parametrize("width", [1100, 400])
def test_view_line_wraps_between_options_alone(browser, tmp_path, width):
    volume = build_volume(tmp_path / "a  b--name 'x'" / "v.zarr", (1, 64, 96))
    name = "a--name-that-is-rather-long"
    run(run_config(volume, name))
    file = tmp_path / "page.html"
    file.write_text(render(gather(volume, name, "groundtruth")))
    with watched(browser, viewport={"width": width, "height": 900}) as watch:
        page = open_report(watch, file)
        copied, text, parts = page.evaluate(LINES)
        assert copied.strip() == text
        options = ["--name", name, "--truth", "groundtruth", "--at", "0,32,48"]
        assert shlex.split(copied) == ["kesm", "view", str(volume.path), *options]
        words = [words for words, _, _ in parts]
        pairs = [f"{option} {value}" for option, value in zip(options[::2], options[1::2], strict=True)]
        assert [words[0], words[1], *words[3:]] == ["kesm", "view", *pairs]
        height = parts[0][2]
        assert [part[0] for part in parts if part[2] > height] in ([], [words[2]])  # the path alone may be too long
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_commands_wrap_between_words():
    command = ["kesm", "run", "a  b--<c>.zarr"]
    code = command_code(command)
    assert shlex.split("".join(Reader(code).words)) == command
    assert code.count("<span>") == 3


def test_old_browser_has_all_but_the_map(browser, files):
    with watched(browser) as watch:
        page = watch.page
        page.add_init_script("delete window.DecompressionStream")
        page.goto(files["otsu"].as_uri())
        page.wait_for_selector("#tiles .warning")
        assert "The map needs a newer browser" in page.locator("#tiles .warning").inner_text()
        for gone in ("#map", "#slice", "#to-map", "#chart-note"):
            assert page.locator(gone).count() == 0, gone
        button = page.locator(".tiles button").nth(1)
        button.press("Enter")
        assert page.locator("#enlarged[open] svg image").count() == 2
        assert page.locator("#enlarged-line").inner_text().endswith(f"--at {button.get_attribute('data-at')}")
        page.keyboard.press("Escape")
        page.locator("#colour-blind-choice").check()
        assert (watch.said, watch.asked_network) == ([], [])


def test_overlay_can_be_changed(browser, files):
    with watched(browser) as watch:
        page = open_report(watch, files["otsu"])
        colour_of = "document.querySelector('.tiles .overlay')"
        assert pixel(page, ".swatch.fp") == (255, 0, 255)
        with_overlay = page.locator(".tiles button").first.screenshot()
        page.locator("#colour-blind-choice").check()
        for kind in ("tp", "fp", "fn"):
            found, expected = pixel(page, f".swatch.{kind}"), getattr(PALETTES["colour-blind"], kind)
            assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 2
        other = page.locator(".tiles button").first.screenshot()
        page.locator("#alpha").fill("20")
        assert page.evaluate(f"getComputedStyle({colour_of}).opacity") == "0.2"
        page.locator("#overlay-choice").uncheck()
        assert page.evaluate(f"getComputedStyle({colour_of}).display") == "none"
        assert len({with_overlay, other, page.locator(".tiles button").first.screenshot()}) == 3
        assert watch.said == []


CONTRASTS = """() => {
  const channels = text => {
    const found = text.match(/[\\d.]+/g).map(Number);
    return found.length > 3 ? found : [...found, 1];
  };
  const linear = part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ratio = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const found = channels(getComputedStyle(element).backgroundColor);
      if (found[3] === 1) return found;
    }
    return [255, 255, 255, 1];
  };
  document.querySelectorAll("details").forEach(element => element.open = true);
  const found = [], unseen = ["SCRIPT", "STYLE", "CANVAS", "title", "desc"];
  for (const element of document.body.querySelectorAll("*")) {
    if (!element.getClientRects().length || unseen.includes(element.tagName)) continue;
    const style = getComputedStyle(element), words = element.outerHTML.slice(0, 90);
    const add = (kind, colour) => found.push([kind, words, ratio(channels(colour), behind(element)), style.opacity]);
    if ([...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()))
      add("text", element.closest("svg") ? style.fill : style.color);
    if (element.matches(".line, .rule, .dot")) add("line", style.stroke);
  }
  return found;
}"""


@pytest.mark.parametrize("media", ["light", "dark", "print"])
@pytest.mark.parametrize("name", ["otsu", "bare", "index"])
def test_contrast_is_that_of_aa(browser, files, name, media):
    with watched(browser, color_scheme="dark" if media == "print" else media) as watch:
        watch.page.goto(files[name].as_uri())
        watch.page.emulate_media(media="print" if media == "print" else "screen")
        found = watch.page.evaluate(CONTRASTS)
        assert len(found) > 30
        weak = [each for each in found if each[2] < (4.5 if each[0] == "text" else 3.0) or float(each[3]) < 1]
        assert weak == []


def test_page_prints(browser, files):
    with watched(browser, color_scheme="dark") as watch:
        page = open_report(watch, files["otsu"])
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        for hidden in ("nav", ".controls", ".skip"):
            assert not page.locator(hidden).first.is_visible()
        for shown in ("#verdict", "#map", "#figures", ".tiles image", "#histogram", "#attempts"):
            assert page.locator(shown).first.is_visible()
        page.set_viewport_size({"width": 680, "height": 900})  # of a sheet of A4
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.pdf(format="A4")[:5] == b"%PDF-"
        assert watch.said == []


def test_page_tells_without_javascript(browser, files):
    with watched(browser, java_script_enabled=False) as watch:
        watch.page.goto(files["otsu"].as_uri())
        words = watch.page.locator("body").inner_text()
        assert "The map needs JavaScript" in words
        mcc = Reader(files["otsu"].read_text()).report["summary"]["scores"]["mcc"]
        assert f"{mcc:.4f}".replace("-", "−") in words
        assert watch.page.locator(".tiles image").count() > 10


def test_narrow_page_does_not_scroll_sideways(browser, files):
    for name in files:
        with watched(browser, viewport={"width": 340, "height": 700}) as watch:
            watch.page.goto(files[name].as_uri())
            assert watch.page.evaluate("document.documentElement.scrollWidth") == 340, name


def test_index_leads_to_reports(browser, files):
    with watched(browser) as watch:
        watch.page.goto(files["index"].as_uri())
        assert (watch.said, watch.asked_network) == ([], [])
        watch.page.locator("#runs a").first.click()
        watch.page.wait_for_selector("html[data-ready]")
        assert watch.page.locator("h1").inner_text().startswith("otsu on ")
