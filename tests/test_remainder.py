"""What is left of a plan, against what a run would do."""

from __future__ import annotations

from pathlib import Path

from pipeline.segmentation.budget import PROCESS_BYTES, task_bytes
from pipeline.segmentation.plan import make_plan
from pipeline.segmentation.remainder import look_ahead
from pipeline.segmentation.runs import run
from pipeline.storage.tables import RunTables, Status
from pipeline.storage.volume import Volume
from tests.builders import build_volume, run_config


def test_tiles_that_are_done_are_counted(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (3, 64, 600))
    plan = make_plan(run_config(volume))
    assert look_ahead(plan) == plan
    run(run_config(volume, region="z=1:2"))
    found = look_ahead(plan).document()
    assert (found["tiles"], found["tiles_done"]) == (6, 2)


def left(volume: Volume, **options: object) -> tuple[int, int]:
    """Bytes that are still to be read and written."""
    plan = look_ahead(make_plan(run_config(volume, **options)))
    return plan.read_bytes, plan.written_bytes


def test_bytes_are_of_what_is_left(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (5, 64, 600), "uint16", absent=(3,))
    plane = 64 * 600  # a block, of which slices 0, 2 and 4 have a truth
    assert left(volume) == ((2 * 4 + 3) * plane, 4 * plane)
    assert left(volume, confusion=True) == ((2 * 4 + 3) * plane, (4 + 3) * plane)
    assert left(volume, threshold={"scope": "volume"}, region="z=0:2") == ((2 * (4 + 2) + 1) * plane, 2 * plane)
    run(run_config(volume, region="z=0:2"))
    assert left(volume) == ((2 * 2 + 2) * plane, 2 * plane)
    assert left(volume, region="z=1:2") == (0, 0)
    run(run_config(volume, truth=None))
    assert left(volume, truth=None) == (0, 0)
    assert left(volume) == ((2 * 2 + 2) * plane, 0)  # the mask is made, and is only compared
    assert left(volume, confusion=True) == ((2 * 4 + 3) * plane, 3 * plane)
    run(run_config(volume, confusion=True))
    assert left(volume) == (0, 0)
    (volume.path / "labels" / "otsu-confusion" / "0/c/0/0/0").unlink()
    assert left(volume) == ((2 + 1) * plane, plane)
    (volume.path / "labels" / "otsu" / "0/c/2/0/0").unlink()
    assert left(volume) == (2 * (2 + 1) * plane, 3 * plane)
    assert look_ahead(make_plan(run_config(volume))).tiles_done == 2 * 3  # slice 3 is absent, and of 2 the mask is lost


def test_bytes_left_are_of_whole_blocks(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (1, 2100, 2100))
    options = {
        "memory": PROCESS_BYTES + 2 * task_bytes(volume, run_config(volume).recipe, (1, 2048, 2048)) + 1000,
        "cluster": {"engine": "threads", "threads": 2},
    }
    run(run_config(volume, region="z=0:1,y=0:512,x=2050:2100", **options))
    done = 2048 * (2100 - 2048)
    assert left(volume, **options) == (2 * (2100 * 2100 - done), 2100 * 2100 - done)
    status = RunTables(volume, "otsu").status
    states = status.read()
    states[0, 0, -1] = Status.FAILED
    status.write((slice(0, 1),), states)
    assert left(volume, **options) == (2 * 2100 * 2100, 2100 * 2100)
