"""How many slices a volume has, whatever was cut off while that changed."""

from __future__ import annotations

import pytest

from pipeline.segmentation.runs import run
from pipeline.storage.extent import complete_resize, resize_volume
from pipeline.storage.table import Table
from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume
from tests.builders import build_volume, run_config


def test_change_of_length_that_was_cut_off_is_completed(tmp_path):
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    run(run_config(volume))
    RunTables(volume, "otsu").resize(5)  # killed before the image grew
    volume.label("groundtruth").resize(5)
    complete_resize(Volume(volume.path))
    tables = RunTables(volume, "otsu")
    assert {tables.status.shape[0], tables.mask_key.shape[0], volume.label("groundtruth").full.shape[0]} == {2}
    assert run(run_config(volume)).tiles.reused == 2
    resize_volume(volume, 3)
    assert {RunTables(Volume(volume.path), "otsu").status.shape[0], Volume(volume.path).shape[0]} == {3}
    assert run(run_config(volume)).tiles.absent == 1


@pytest.mark.parametrize("which", ["image", "truth"])
@pytest.mark.parametrize("tables", [["mtime"], ["mtime", "shard_digest"]], ids=" ".join)
def test_ledger_whose_growth_was_cut_off_is_read_and_completed(tmp_path, which, tables):
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    folder = volume.path / "slices" / ("image" if which == "image" else "labels/groundtruth")
    for table in tables:
        Table(folder / table).resize(5)
    opened = Volume(volume.path)
    ledger = opened.slices if which == "image" else opened.truth("groundtruth")[1]
    assert ledger.present().tolist() == ([True, True] if which == "image" else [True, False])
    assert len(ledger.shard_digests()) == 2
    complete_resize(Volume(volume.path))
    assert {Table(folder / table).shape[0] for table in ("digest", "mtime", "shard_digest")} == {2}
