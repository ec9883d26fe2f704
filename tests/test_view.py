"""What the viewer shows of a volume: its state, and in a real browser."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
import webbrowser
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import pipeline.commands.view as view_command
from pipeline.errors import ConfigError, MissingInputError, RegionError
from pipeline.findings.census import census
from pipeline.geometry import Box
from pipeline.segmentation.runs import run
from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume
from pipeline.views import server as server_module
from pipeline.views.server import Site, ViewServer, client_files
from pipeline.views.view import Layer, Sight, View, make_view, parse_at
from tests.browser import launched, watched
from tests.builders import MAPPING, build_volume, run_config
from tests.command import kesm
from tests.contract import check_document

SHAPE = (4, 300, 620)
PATIENCE_S = 60.0

needs_client = pytest.mark.skipif(find_spec("neuroglancer") is None, reason="the extra `view` is not installed")


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Volume with a truth, and a run that was compared with it."""
    volume = build_volume(tmp_path_factory.mktemp("view") / "brain.zarr", SHAPE)
    run(run_config(volume))
    return volume


@pytest.fixture(scope="module")
def judged(brain: Volume, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """The same, with the run's confusion as a label, and a second run."""
    path = tmp_path_factory.mktemp("judged") / "brain.zarr"
    shutil.copytree(brain.path, path)
    volume = Volume(path)
    run(run_config(volume, confusion=True))
    run(run_config(volume, "yen", threshold={"method": "yen"}))
    return volume


def plain(volume: Volume, z: int) -> NDArray[Any]:
    return volume.image.full.read(Box.of_slice(z, SHAPE))[0]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Volume of 16 bit without a run."""
    return build_volume(tmp_path_factory.mktemp("deep") / "brain.zarr", SHAPE, "uint16")


def names(layers: tuple[Layer, ...]) -> dict[str, tuple[str, bool]]:
    return {layer.name: (layer.kind, layer.visible) for layer in layers}


def test_layers(brain):
    made = make_view(brain)
    assert (made.name, made.truth, made.voxel_size_um) == ("otsu", "groundtruth", None)
    assert names(made.layers) == {"image": ("image", True), "groundtruth": ("truth", True), "otsu": ("mask", True)}
    state = made.state("http://127.0.0.1:8000")
    image, truth, mask = state["layers"]
    assert [layer["source"] for layer in state["layers"]] == [
        "http://127.0.0.1:8000/volume/|zarr3:",
        "http://127.0.0.1:8000/volume/labels/groundtruth/|zarr3:",
        "http://127.0.0.1:8000/volume/labels/otsu/|zarr3:",
    ]
    assert (image["type"], truth["type"], mask["type"]) == ("image", "segmentation", "segmentation")
    assert (truth["segments"], truth["segmentColors"]) == (["255"], {"255": "#ffff00"})  # 127 is not among them
    assert (mask["segments"], mask["segmentColors"]) == (["255"], {"255": "#00ffff"})
    assert state["dimensions"] == {"x": [1, ""], "y": [1, ""], "z": [1, ""]}


def test_confusion_is_shown_instead_of_what_it_is_made_of(judged):
    made = make_view(judged, "otsu")
    assert names(made.layers) == {
        "image": ("image", True), "groundtruth": ("truth", False), "otsu": ("mask", False),
        "otsu-confusion": ("confusion", True), "yen": ("other", False),
    }  # fmt: skip
    confusion = made.state("http://localhost")["layers"][3]
    assert confusion["segmentColors"] == {"1": "#00ffff", "2": "#ff00ff", "3": "#ffff00"}
    assert confusion["segments"] == ["1", "2", "3"]
    RunTables(judged, "yen").journal.begin_attempt({"started": "2999-01-01T00:00:00+00:00"})
    made = make_view(judged)  # the run that was worked on last
    assert made.name == "yen"
    assert names(made.layers) == {
        "image": ("image", True), "groundtruth": ("truth", True), "yen": ("mask", True), "otsu": ("other", False),
        "otsu-confusion": ("confusion", False),
    }  # fmt: skip


def add_truth(volume: Volume, name: str) -> None:
    volume.staging.mkdir()
    truth, ledger = volume.create_truth(name, MAPPING)
    ledger.record(0, truth.write_slice(0, np.full(SHAPE[1:], 255, np.uint8), volume.staging), "0.png", 0)
    volume.publish_label(name)
    volume.staging.rmdir()


@pytest.fixture
def mine(judged: Volume, tmp_path: Path) -> Volume:
    """A copy that a test may change."""
    return Volume(shutil.copytree(judged.path, tmp_path / "mine.zarr"))


def test_confusion_with_another_truth_is_not_shown(mine):
    add_truth(mine, "second")
    assert names(make_view(mine, "otsu", "second").layers) == {
        "image": ("image", True), "second": ("truth", True), "otsu": ("mask", True), "groundtruth": ("other", False),
        "otsu-confusion": ("confusion", False), "yen": ("other", False),
    }  # fmt: skip


def test_name_alone_makes_no_confusion(mine):
    mine.create_derived("yen-confusion", "yen")
    mine.publish_label("yen-confusion")
    shown = names(make_view(mine, "yen").layers)
    assert (shown["yen"], shown["yen-confusion"]) == (("mask", True), ("other", False))


def test_several_truths_are_named(mine):
    add_truth(mine, "second")
    assert make_view(mine, "otsu").truth == "groundtruth"  # the one that it was compared with
    run(run_config(mine, truth="second"))
    with pytest.raises(ConfigError, match=r"run 'otsu' was compared with groundtruth, second; choose one with --truth"):
        make_view(mine, "otsu")
    assert make_view(mine, "otsu", "second").truth == "second"
    for folder in ("runs", "tiles", "labels/otsu", "labels/otsu-confusion", "labels/yen"):
        shutil.rmtree(mine.path / folder)
    with pytest.raises(ConfigError, match=r"mine\.zarr: has the truths groundtruth, second; choose one with --truth"):
        make_view(mine)


def test_looks_at_the_worst_tile(brain):
    made, found = make_view(brain), census(brain, "otsu", "groundtruth")
    lowest = np.unravel_index(np.nanargmin(found.score("mcc")), found.tiles.shape)
    box = found.box(tuple(map(int, lowest)))
    assert made.sight.at == tuple((start + stop - 1) / 2 for start, stop in zip(box.start, box.stop, strict=True))
    assert made.state("")["position"] == list(reversed(made.sight.at))
    assert made.sight.reason == f"the worst tile of otsu against groundtruth, MCC {np.nanmin(found.score('mcc')):.4f}"


def test_looks_where_it_is_told_to(brain):
    assert make_view(brain, at=(3, 299, 619)).state("")["position"] == [619, 299, 3]
    for at in ((4, 0, 0), (0, 300, 0), (0, 0, 620), (-1, 0, 0)):
        with pytest.raises(RegionError, match=r"^--at: got .* has 4 x 300 x 620 voxels \(z, y, x\), counted from 0$"):
            make_view(brain, at=at)


@pytest.mark.parametrize(
    "text", ["1,2", "1,2,3,4", "a,b,c", "1,,2", "", "-1,0,0", "1.5,0,0", "\u0661,0,0", "\u00b2,0,0"]
)
def test_place_that_is_no_voxel(text):
    with pytest.raises(ConfigError, match=r"^--at: got '.*', expected a voxel z,y,x such as 3,1200,800$"):
        parse_at(text)


def test_place():
    assert parse_at("3,1200, 800") == (3, 1200, 800)


def test_without_a_run_all_of_the_middle_is_seen(tmp_path):
    size = (1.0, 0.7, 0.6)
    volume = build_volume(tmp_path / "bare.zarr", (5, 700, 1000), absent=(2,))
    made = dataclasses.replace(make_view(volume), voxel_size_um=size)
    assert (made.name, made.truth, made.legend) == (None, "groundtruth", "image, groundtruth (yellow)")
    assert made.sight.at == (1, 349.5, 499.5)  # slice 2 is not there
    assert made.sight.voxels_per_pixel == pytest.approx(1.0)  # 700 voxels in 700 pixels
    state = made.state("")
    assert state["dimensions"] == {"x": [6e-7, "m"], "y": [7e-7, "m"], "z": [1e-6, "m"]}


def test_without_anything_but_the_image(tmp_path):
    volume = Volume.create(tmp_path / "empty.zarr", (3, 64, 64), "uint16", (1.0, 2.0, 1.0))
    made = make_view(volume)
    assert (made.name, made.truth, made.legend) == (None, None, "image")
    assert (made.sight.at, made.window) == ((1, 31.5, 31.5), (0, 65535))
    assert made.sight.voxels_per_pixel == pytest.approx(64 * 2 / 700)


def test_run_that_was_not_compared(tmp_path):
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 96))
    run(run_config(volume, truth=None))
    made = make_view(volume)
    assert (made.name, made.truth, made.sight.reason) == ("otsu", "groundtruth", "the middle")


def test_window_is_that_of_nearly_all_tissue(brain):
    values = plain(brain, 0).ravel()
    low, high = make_view(brain, at=(0, 0, 0)).window
    assert np.mean((values >= low) & (values <= high)) > 0.995
    assert low > values.min() or high < values.max()


@pytest.fixture
def wide(tmp_path: Path) -> Volume:
    """Volume of two shards a slice: grey levels 10 to 49 in the left ones, 100 to 199 in the right ones, 250 below."""
    volume = Volume.create(tmp_path / "brain.zarr", (2, 64, 2148), "uint8")
    volume.staging.mkdir()
    plane = np.tile(np.r_[np.arange(2048) % 40 + 10, np.arange(100, 200)].astype(np.uint8), (64, 1))
    for z, values in enumerate((plane, np.full_like(plane, 250))):
        volume.slices.record(z, volume.image.write_slice(z, values, volume.staging), f"{z}.png", 0)
    volume.staging.rmdir()
    return volume


@pytest.mark.parametrize(
    ("shard", "window"), [("0/c/0/0/0", (100, 199)), ("0/c/0/0/1", (10, 49))], ids=["left", "right"]
)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(None, "is missing", id="lost"),
        pytest.param(b"damaged", "cannot be decoded", id="damaged"),
        pytest.param("0/c/1/0/0", "has other voxels than were recorded", id="another"),
    ],
)
def test_window_is_that_of_the_shards_that_are_left(wide, shard, window, data, message):
    assert make_view(wide, at=(0, 32, 2047)).damage == ()
    path = wide.path / shard
    if data is None:
        path.unlink()
    else:
        path.write_bytes(
            data if isinstance(data, bytes) else (wide.path / data.replace("1/0/0", f"1/0/{path.name}")).read_bytes()
        )
    made = make_view(Volume(wide.path), at=(0, 32, 2047))
    assert made.window == window
    (told,) = made.damage
    assert re.search(rf"shard {path.relative_to(wide.path / '0')} {message}.*; restore it from a copy$", told)


def test_window_where_no_shard_is_left(wide):
    shutil.rmtree(wide.path / "0" / "c" / "0")
    made = make_view(Volume(wide.path), at=(0, 32, 2047))
    assert (made.window, len(made.damage)) == ((0, 255), 2)


def test_record_that_is_lost_is_told_once(wide):
    shutil.rmtree(wide.path / "slices" / "image" / "digest" / "c")
    (told,) = make_view(Volume(wide.path), at=(0, 32, 2047)).damage
    assert "chunk digest/c/0 is missing" in told


@pytest.mark.parametrize(
    ("name", "truth", "message"),
    [
        ("nope", None, r"has no run 'nope'; it has: otsu$"),
        ("../../x", None, r"has no run '\.\./\.\./x'; it has: otsu$"),
        (None, "nope", r"has no label 'nope'"),
        (None, "otsu", r"'otsu' is the mask of a run, not a truth$"),
    ],
)
def test_what_is_not_there(brain, name, truth, message):
    with pytest.raises(MissingInputError, match=message):
        make_view(brain, name, truth)


def test_names_of_users_stay_in_the_state(judged, tmp_path):
    path = tmp_path / "a'b\"<c>#&%41 \u00e9.zarr"
    shutil.copytree(judged.path, path)
    made = make_view(Volume(path))
    url = made.url("http://127.0.0.1:1")
    assert re.fullmatch(r"http://127\.0\.0\.1:1/v/kesm/#![A-Za-z0-9%._~-]+", url)
    assert json.loads(unquote(url.partition("#!")[2])) == made.state("http://127.0.0.1:1")
    assert made.napari.startswith("napari --plugin napari-ome-zarr '/")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


def looked_at(browser: Any, made: View, height: int, width: int) -> NDArray[np.uint8]:
    """Pixels (y, x, rgb) around the middle of what a browser shows, after checks of what it has asked for and said."""
    with (
        ViewServer(Site(made.volume, client_files(), made.url)) as server,
        server.serving(),
        watched(browser, viewport={"width": 800, "height": 600}) as watch,
    ):
        refused: list[str] = []
        watch.page.on("response", lambda reply: reply.status < 400 or refused.append(reply.url))
        watch.page.goto(f"{server.root}/")
        watch.page.wait_for_function("() => window.viewer?.isReady()", timeout=1000 * PATIENCE_S)
        panel = watch.page.locator(".neuroglancer-rendered-data-panel").bounding_box()
        left, top = panel["x"] + (panel["width"] - width) // 2, panel["y"] + (panel["height"] - height) // 2
        picture = watch.page.screenshot(clip={"x": left, "y": top, "width": width, "height": height})
        state = json.loads(watch.page.evaluate("() => JSON.stringify(viewer.state.toJSON())"))
    assert [address for address in watch.asked_network if not address.startswith(f"{server.root}/")] == []
    assert refused == []
    assert watch.said == ["log: python state event source connected"]
    assert state["position"] == list(reversed(made.sight.at))
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def expected(made: View, volume: Volume, box: Box) -> NDArray[np.uint8]:
    """Those pixels by their definition: grey levels in the window, colours of visible labels over them."""
    low, high = made.window
    grey = np.clip((volume.image.full.read(box)[0].astype(float) - low) / (high - low), 0, 1)
    pixels = np.repeat(255 * grey[..., None], 3, axis=-1)
    for layer in made.layers[1:]:
        values = volume.label(layer.name).full.read(box)[0]
        for value, colour in layer.colours if layer.visible else ():
            chosen = values == value
            pixels[chosen] = (pixels[chosen] + list(bytes.fromhex(colour[1:]))) / 2
    return np.rint(pixels).astype(np.uint8)


def furthest(seen: NDArray[np.uint8], drawn: list[NDArray[np.uint8]]) -> int:
    """Largest difference to the best of some pictures: which pixel is the middle one depends on the window's size."""
    return min(int(np.abs(seen.astype(int) - each).max()) for each in drawn)


@needs_client
@pytest.mark.parametrize(
    ("which", "legend"),
    [
        pytest.param("brain", "image, groundtruth (yellow), otsu (cyan)", id="truth and mask"),
        pytest.param(
            "judged", "image, otsu-confusion (right in cyan, wrong in magenta, missed in yellow)", id="confusion"
        ),
        pytest.param("deep", "image, groundtruth (yellow)", id="16 bit, no run"),
    ],
)
def test_browser_shows_every_voxel(browser, request, which, legend):
    volume, size = request.getfixturevalue(which), 200
    made = make_view(volume, None if which == "deep" else "otsu", at=(2, 150, 300))
    made = dataclasses.replace(made, sight=Sight((2, 149.5, 299.5), "", 1.0))
    assert made.legend == legend
    seen = looked_at(browser, made, size, size)
    assert furthest(seen, [expected(made, volume, Box((2, y, x), (3, y + size, x + size)))
                           for y in (49, 50, 51) for x in (199, 200, 201)]) <= 2  # fmt: skip


@needs_client
def test_browser_shows_nothing_of_an_empty_view(browser, brain):
    made = make_view(brain)
    empty = dataclasses.replace(made, layers=tuple(dataclasses.replace(each, visible=False) for each in made.layers))
    assert not looked_at(browser, empty, 200, 200).any()


def started(*words: object) -> subprocess.Popen[str]:
    """Start the command so that it can be interrupted, whatever shell the tests run in."""
    return subprocess.Popen(
        [sys.executable, "-c", "from pipeline import cli; cli.main()", "view", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


@needs_client
@pytest.mark.parametrize(
    ("number", "code", "err"),
    [
        pytest.param(signal.SIGINT, 0, "viewer ended\n", id="ctrl-c"),
        pytest.param(signal.SIGTERM, 143, "terminated\n", id="sigterm"),
    ],
)
def test_serves_until_it_is_stopped(judged, number, code, err):
    process = started(judged.path, "--name", "otsu", "--at", "3,20,30", "--no-browser", "--json")
    try:
        assert process.stdout is not None
        told = check_document("view", json.loads(process.stdout.readline()))
        assert (told["name"], told["truth"], told["at"]) == ("otsu", "groundtruth", [3, 20, 30])
        assert [layer["name"] for layer in told["layers"] if layer["visible"]] == ["image", "otsu-confusion"]
        root = told["url"].partition("/v/kesm/#!")[0]
        key = root.removeprefix(f"http://127.0.0.1:{told['port']}/")
        with urllib.request.urlopen(f"{root}/volume/labels/otsu-confusion/zarr.json") as reply:
            assert json.load(reply)["attributes"]["ome"]["version"] == "0.5"
        with (
            socket.create_connection(("127.0.0.1", told["port"])) as stream,
            socket.create_connection(("127.0.0.1", told["port"])) as half,
            socket.create_connection(("127.0.0.1", told["port"])) as large,
        ):
            stream.sendall(f"GET /{key}/events/kesm HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert stream.recv(12) == b"HTTP/1.1 200"
            half.sendall(b"GET /volu")
            large.sendall(f"GET /{key}/volume/0/c/0/0/0 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 100)
            process.send_signal(number)
            out, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out, said) == (code, "", err)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", told["port"])):
        pass


@needs_client
def test_text_names_the_viewers(brain):
    process = started(brain.path, "--no-browser")
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE_S) == ("", "viewer ended\n")
    finally:
        process.kill()
        process.communicate()
    assert lines[0].startswith(
        "brain.zarr: image, groundtruth (yellow), otsu (cyan); at the worst tile of otsu against groundtruth, MCC "
    )
    assert re.fullmatch(r"viewer: http://127\.0\.0\.1:\d+/[\w-]{43}/ \(until Ctrl-C\)\n", lines[1])
    assert lines[2] == f"napari: napari --plugin napari-ome-zarr {brain.path}\n"


@needs_client
def test_damage_is_told_and_the_rest_is_served(wide):
    (wide.path / "0" / "c" / "0" / "0" / "0").unlink()
    process = started(wide.path, "--at", "0,0,0", "--no-browser", "--json")
    try:
        assert process.stdout is not None
        root = json.loads(process.stdout.readline())["url"].partition("/v/kesm/#!")[0]
        with urllib.request.urlopen(f"{root}/volume/0/c/0/0/1") as reply:
            assert reply.read() == (wide.path / "0" / "c" / "0" / "0" / "1").read_bytes()
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (0, "")
    assert re.fullmatch(
        r"note: .*/brain\.zarr/0: shard c/0/0/0 is missing; restore it from a copy\nviewer ended\n", said
    )


@needs_client
@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--name", "nope"], r"has no run 'nope'; it has: otsu$", id="run"),
        pytest.param(["--truth", "nope"], r"has no label 'nope'", id="truth"),
        pytest.param(["--at", "9,0,0"], r"^--at: got 9,0,0, .* has 4 x 300 x 620 voxels", id="outside"),
        pytest.param(["--at", "9"], r"^--at: got '9', expected a voxel z,y,x such as", id="no voxel"),
        pytest.param(
            ["--host", "192.0.2.1"], r"^cannot listen on 192\.0\.2\.1, port 0: .*; leave --host out", id="host"
        ),
        pytest.param(["--port", "70000"], r"^Invalid value for '--port': .*65535", id="port"),
    ],
)
@pytest.mark.parametrize("as_json", [["--json"], []], ids=["json", "text"])
def test_bad_words_get_one_message(brain, words, as_json, message):
    assert re.search(message, kesm("view", brain.path, *words, *as_json).message)


@needs_client
def test_port_that_is_taken_gets_a_message(brain):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = kesm("view", brain.path, "--port", port).message
    assert re.fullmatch(
        rf"cannot listen on 127\.0\.0\.1, port {port}: .*; leave --port out to take a free one", message
    )


@needs_client
def test_volume_that_is_not_there(tmp_path):
    assert "no such volume" in kesm("view", tmp_path / "nope.zarr").message


def test_extra_that_is_not_installed(brain, monkeypatch):
    monkeypatch.setattr(server_module, "find_spec", lambda name: None)
    message = kesm("view", brain.path).message
    assert message == "Neuroglancer is not installed; install it with: pip install 'kesm-pipeline[view]'"


@pytest.mark.parametrize(
    ("name", "opens", "said"),
    [
        pytest.param("firefox", True, "", id="there"),
        pytest.param("/usr/bin/firefox", False, "no browser was found here; open http://x/ in one\n", id="fails"),
        pytest.param("/usr/bin/w3m", True, "no browser was found here; open http://x/ in one\n", id="in the terminal"),
        pytest.param(None, True, "no browser was found here; open http://x/ in one\n", id="absent"),
    ],
)
def test_browser_is_opened_where_there_is_one(monkeypatch, capsys, name, opens, said):
    opened = []

    class Browser(webbrowser.BaseBrowser):
        def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
            opened.append(url)
            return opens

    def get() -> webbrowser.BaseBrowser:
        if name is None:
            raise webbrowser.Error("could not locate runnable browser")
        return Browser(name)

    monkeypatch.setattr(view_command.webbrowser, "get", get)
    view_command.open_browser("http://x/")
    assert capsys.readouterr() == ("", said)
    assert opened == ["http://x/"] * (name in ("firefox", "/usr/bin/firefox"))
