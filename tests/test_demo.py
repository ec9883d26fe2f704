"""The demonstration, on a phantom small enough for a test."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.demo import TRUTH, VOXEL_SIZE_UM, Demo, run_demo
from pipeline.errors import ExistsError
from pipeline.events import BlockDone, Event
from pipeline.findings.summary import Summary, summarise
from pipeline.geometry import Box
from pipeline.phantom import Phantom
from pipeline.segmentation.runs import run
from pipeline.settings.config import RunConfig
from pipeline.storage.volume import Volume
from tests.builders import build_volume
from tests.contract import check_document

SHAPE = (5, 300, 700)


class Listener:
    """Keeps the events of each step."""

    def __init__(self) -> None:
        self.steps: dict[str, list[Event]] = {}
        self._open: list[str] = []

    def __call__(self, what: str) -> Listener:
        self._open.append(what)
        return self

    def __enter__(self) -> object:
        return self.steps.setdefault(self._open[-1], []).append

    def __exit__(self, *details: object) -> None:
        self._open.pop()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("pipeline.demo.Phantom", partial(Phantom, SHAPE))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Demo, Summary, Listener]:
    listener = Listener()
    demo = Demo(tmp_path_factory.mktemp("demo") / "here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.demo.Phantom", partial(Phantom, SHAPE))
        return demo, run_demo(demo.folder, listener), listener


def test_demo_goes_from_files_to_scores(shown):
    _, summary, listener = shown
    document = check_document("demo", summary.document())
    left = {"failed": 0, "pending": 0, "absent": 0, "undecided": 0, "no_signal": 0}
    assert document["tiles"] == {"total": 10, "done": 10, "reused": 0, **left}
    assert 0 < document["annotated"] < document["voxels"] == np.prod(SHAPE)
    assert document["scores"]["mcc"] > 0.5
    assert [*listener.steps] == ["phantom", "image", "truth", "run"]
    assert sum(isinstance(event, BlockDone) for event in listener.steps["run"]) == SHAPE[0]


def test_demo_leaves_slices_truth_volume_and_a_picture(shown):
    demo, _, _ = shown
    assert sorted(file.name for file in demo.slices.iterdir()) == [f"slice_{z:03d}.png" for z in range(SHAPE[0])]
    assert 0 < len(list(demo.traced.iterdir())) < SHAPE[0]
    volume = Volume(demo.volume)
    assert (volume.shape, volume.voxel_size_um) == (SHAPE, VOXEL_SIZE_UM)
    for z in range(SHAPE[0]):
        box = Box((z, 0, 0), (z + 1, *SHAPE[1:]))
        np.testing.assert_array_equal(volume.image.full.read(box)[0], Phantom(SHAPE).slice(z)[0])
        traced = Phantom(SHAPE).partial_truth(z)
        expected = np.full(SHAPE[1:], 127, np.uint8) if traced is None else traced
        np.testing.assert_array_equal(volume.truth(TRUTH)[0].full.read(box)[0], expected)
    with Image.open(demo.picture) as picture:
        assert picture.size == (SHAPE[2], SHAPE[1] // 2)  # image and overlay, at half their size
        assert picture.mode == "RGB"
    assert not (demo.folder / "brain.zarr.staging").exists()


def test_demo_again_does_nothing_twice(shown):
    demo, summary, _ = shown
    written = (demo.slices / "slice_000.png").stat().st_mtime_ns
    listener = Listener()
    again = run_demo(demo.folder, listener)
    assert (again.counts, again.tiles.reused) == (summary.counts, 10)
    assert [*listener.steps] == ["run"]
    assert (demo.slices / "slice_000.png").stat().st_mtime_ns == written


def test_demo_goes_on_where_one_was_stopped(shown, tmp_path):
    demo, summary, _ = shown
    copy = Demo(tmp_path / "copy")
    shutil.copytree(demo.folder, copy.folder)
    for folder in ("labels", "tiles", "runs", "slices/labels"):
        shutil.rmtree(copy.volume / folder)
    listener = Listener()
    assert run_demo(copy.folder, listener).counts == summary.counts
    assert [*listener.steps] == ["truth", "run"]


def test_demo_does_not_touch_another_volume(tmp_path):
    build_volume(tmp_path / "brain.zarr", (1, 32, 32))
    with pytest.raises(ExistsError, match=r"brain\.zarr: is another volume; name another folder: kesm demo DIR"):
        run_demo(tmp_path, Listener())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["brain.zarr"]


def test_demo_does_not_take_a_file_for_its_folder(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ExistsError, match=r"file: is a file; name another folder: kesm demo DIR"):
        run_demo(tmp_path / "file", Listener())


def test_what_to_type_next_works(shown):
    demo, summary, _ = shown
    config = RunConfig.model_validate(
        {"volume": demo.volume, "truth": TRUTH, "name": "raw", "denoise": {"method": "none"}}
    )
    raw = run(config)
    assert raw.counts != summary.counts
    assert summarise(Volume(Path(demo.volume)), "raw", TRUTH).counts == raw.counts
