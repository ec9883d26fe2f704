"""Tables of a run on the tile grid: one chunk for one block, names."""

from __future__ import annotations

import os

import numpy as np
import pytest

from pipeline.errors import LockedError, MissingInputError
from pipeline.geometry import Box, Grid
from pipeline.segmentation.runs import run
from pipeline.settings.recipe import Recipe
from pipeline.storage.store import read_document
from pipeline.storage.tables import WINDOWED_LEVELS, Grids, RunTables, Status, quiet, run_lock, run_names
from pipeline.storage.volume import Volume
from tests.builders import build_volume, run_config

SHAPE = (3, 2100, 2600)  # two by two shards, five by six tiles of 512
CELLS = (3, 5, 6)
SLICES, SHARDS = (1, 2100, 2600), (1, 2048, 2048)


@pytest.fixture
def volume(tmp_path):
    return Volume.create(tmp_path / "brain.zarr", SHAPE, "uint8")


def create(volume, block=SLICES, name="otsu", tile=512):
    return RunTables.create(volume, name, Recipe(tile=tile).document(), block)


def chunk_files(table):
    return [path for path in (table.path / "c").rglob("*") if path.is_file()]


def test_an_empty_run(volume):
    tables = create(volume)
    assert tables.name == "otsu"
    assert tables.recipe == Recipe().document()
    assert tables.block == SLICES
    assert tables.threshold.shape == tables.status.shape == tables.mask_key.shape == CELLS
    assert tables.shard_digest.shape == (3, 2, 2)
    assert tables.pyramid_key.shape == (3,)
    assert np.isnan(tables.threshold.read()).all()
    for table in (tables.status, tables.mask_key, tables.shard_digest, tables.pyramid_key):
        assert not table.read().any()
    assert (tables.status.read() == Status.ABSENT).all()
    assert tables.truths() == []
    assert list(tables.journal.failures(None)) == []
    assert tables.journal.attempts() == []


@pytest.mark.parametrize(
    ("block", "blocks"),
    [(SLICES, 1), (SHARDS, 4), ((1, 2048, 2600), 2)],
    ids=["slices", "shards", "rows"],
)
@pytest.mark.parametrize("tile", [512, 2048])
def test_what_one_block_writes_is_one_chunk(volume, block, blocks, tile):
    tables = create(volume, block, tile=tile)
    truth = tables.create_truth("groundtruth")
    per_tile = [tables.threshold, tables.status, tables.mask_key, truth.counts, truth.counts_key, truth.histogram]
    written = 0
    for index in tables.grids.blocks.cover(Box((0, 0, 0), (1, *SHAPE[1:]))):
        written += 1
        for table in per_tile:
            table.write(tables.grids.block_tiles(index).slices, 1)
            assert len(chunk_files(table)) == written
        tables.shard_digest.write(tables.grids.shards.cover(tables.grids.blocks.box(index)).slices, 5)
        assert len(chunk_files(tables.shard_digest)) == written
    assert written == blocks
    for table in per_tile:
        values = table.read()
        assert (values[0] == 1).all()
        assert not np.nan_to_num(values[1:]).any()


def test_grids_share_their_volume():
    grids = Grids.of(SHAPE, 512, (1, 2048, 2600))
    assert grids == Grids(Grid(SHAPE, (1, 512, 512)), Grid(SHAPE, SHARDS), Grid(SHAPE, (1, 2048, 2600)))
    assert grids.block_tiles((1, 0, 0)) == Box((1, 0, 0), (2, 4, 6))
    assert grids.block_tiles((2, 1, 0)) == Box((2, 4, 0), (3, 5, 6))


def test_tables_of_a_comparison(volume):
    tables = create(volume)
    truth = tables.create_truth("groundtruth")
    assert truth.counts.shape == (*CELLS, 4)
    assert truth.counts_key.shape == CELLS
    assert truth.histogram.shape == (*CELLS, 3, WINDOWED_LEVELS)
    truth.counts.write((slice(0, 1),), np.arange(4) + 2**40)
    tables.create_truth("second")
    assert tables.truths() == ["groundtruth", "second"]
    again = tables.create_truth("groundtruth")
    np.testing.assert_array_equal(again.counts.read()[0, 0, 0], np.arange(4) + 2**40)
    assert not tables.truth("second").counts.read().any()


def test_a_comparison_whose_creation_was_killed_is_created_anew(volume):
    tables = create(volume)
    tables.create_truth("groundtruth").counts.write((slice(0, 1),), 9)
    (volume.path / "tiles" / "otsu" / "truth" / "groundtruth" / "zarr.json").unlink()  # it is written last
    assert tables.truths() == []
    assert not tables.create_truth("groundtruth").counts.read().any()
    assert tables.truths() == ["groundtruth"]


def test_a_run_exists_once_its_document_is_written(volume):
    assert run_names(volume) == []
    create(volume, name="b")
    create(volume, name="a")
    assert run_names(volume) == ["a", "b"]
    (volume.path / "runs" / "a" / "zarr.json").unlink()
    assert run_names(volume) == ["b"]
    with pytest.raises(MissingInputError, match=r"brain\.zarr: has no run 'a'; it has: b$"):
        RunTables(volume, "a")


def test_the_first_run_is_missing(volume):
    with pytest.raises(MissingInputError, match="has no run 'otsu'; it has: none yet"):
        RunTables(volume, "otsu")


def test_a_run_is_opened_as_it_was_created(volume):
    create(volume, SHARDS).status.write((slice(1, 2),), Status.DONE)
    tables = RunTables(Volume(volume.path), "otsu")
    assert tables.block == SHARDS
    assert tables.grids == Grids.of(SHAPE, 512, SHARDS)
    assert tables.status.read().sum(axis=(1, 2)).tolist() == [0, 30 * Status.DONE, 0]


def test_block_that_is_disowned_is_failed_and_vouched_for_by_nothing(volume):
    tables = create(volume, SHARDS)
    truth = tables.create_truth("groundtruth")
    for table in (tables.status, tables.mask_key, truth.counts_key):
        table.write((slice(0, 3),), Status.DONE)
    tables.disown((1, 0, 1), "its mask is damaged")
    cells = tables.grids.block_tiles((1, 0, 1))
    assert list(tables.journal.failures(None)) == [(tables.grids.blocks.box((1, 0, 1)), "its mask is damaged")]
    assert (tables.status.read(cells.slices) == Status.FAILED).all()
    for table in (tables.mask_key, truth.counts_key):
        assert not table.read(cells.slices).any()
        assert (table.read() == 0).sum() == cells.size


def test_volume_is_quiet_only_while_no_run_is_worked_on(volume):
    create(volume)
    with run_lock(volume, "otsu"):
        named = rf"run 'otsu' is being worked on by another process: .* process {os.getpid()}, since 20"
        with pytest.raises(LockedError, match=named), quiet(volume):
            pass
    with quiet(volume), pytest.raises(LockedError), run_lock(volume, "otsu"):
        pass
    with run_lock(volume, "otsu"):
        pass


def test_all_tables_grow_with_the_volume(volume):
    tables = create(volume)
    truth = tables.create_truth("groundtruth")
    tables.status.write((slice(0, 3),), Status.DONE)
    truth.counts.write((slice(0, 3),), 3)
    tables.resize(5)
    tables, truth = RunTables(volume, "otsu"), RunTables(volume, "otsu").truth("groundtruth")
    every = (tables.threshold, tables.status, tables.mask_key, tables.shard_digest, tables.pyramid_key)
    for table in (*every, truth.counts, truth.counts_key, truth.histogram):
        assert table.shape[0] == 5
    assert tables.status.read()[:, 0, 0].tolist() == [Status.DONE] * 3 + [Status.ABSENT] * 2
    assert truth.counts.read()[:, 0, 0, 0].tolist() == [3, 3, 3, 0, 0]


def test_only_zarr_lies_in_a_run(volume):
    tables = create(volume)
    tables.create_truth("groundtruth").counts.write((slice(0, 1),), 1)
    tables.journal.record_failure((0, 0, 0), [(Box.whole(SHAPE), "x")])
    tables.journal.end_attempt(tables.journal.begin_attempt({}), {})
    tables.journal.beat({})
    for folder in ("tiles", "runs"):
        files = [path for path in (volume.path / folder).rglob("*") if path.is_file()]
        assert all(path.name == "zarr.json" or path.name.isdigit() for path in files)
        assert read_document(volume.path / folder) == {}


def test_run_that_was_killed_while_it_was_replaced_can_be_planned(tmp_path):
    volume = build_volume(tmp_path / "brain.zarr", (2, 64, 64))
    run(run_config(volume))
    volume.withdraw_label("otsu")
    assert run(run_config(volume, tile=256), replace=True).tiles.done == 2
