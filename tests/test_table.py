"""Small arrays on a grid: cells, chunks, and what of them is lost or damaged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr

from pipeline.errors import DamageError, ShapeMismatchError
from pipeline.storage.table import Table


def test_a_table_is_written_in_cells_and_read_in_cells(tmp_path):
    table = Table.create(tmp_path / "counts", (3, 4, 5, 2), "int64", (1, 2, 5, 2))
    rows = (slice(1, 2), slice(2, 4))
    table.write(rows, np.arange(20).reshape(1, 2, 5, 2))
    np.testing.assert_array_equal(table.read(rows), np.arange(20).reshape(1, 2, 5, 2))
    assert table.read().shape == (3, 4, 5, 2)
    assert table.read().sum() == np.arange(20).sum()
    table.write(rows, 7)
    assert table.read((slice(1, 2),)).sum() == 7 * 20
    np.testing.assert_array_equal(Table(tmp_path / "counts").read(), table.read())


def test_a_table_may_be_empty_with_nan(tmp_path):
    table = Table.create(tmp_path / "threshold", (2, 3), "float64", (1, 3), float("nan"))
    assert np.isnan(table.read()).all()
    table.write((slice(0, 1),), [1.5, np.nan, 255])
    np.testing.assert_array_equal(table.read(), [[1.5, np.nan, 255], [np.nan] * 3])


@pytest.mark.parametrize("cells", [(), (slice(1, 2),), (slice(0, 3), slice(2, 5)), (slice(1, 3), slice(0, 4))], ids=str)
def test_others_read_what_is_written(tmp_path, cells):
    table = Table.create(tmp_path / "counts", (3, 5, 2), "int64", (1, 2, 2), -1)
    expected = np.full((3, 5, 2), -1)
    expected[cells] = np.arange(expected[cells].size).reshape(expected[cells].shape)
    table.write(cells, expected[cells])
    theirs = zarr.open_array(table.path, mode="r+")
    np.testing.assert_array_equal(theirs[:], expected)
    theirs[0] = 2**62
    np.testing.assert_array_equal(table.read(), theirs[:])


@pytest.mark.parametrize(
    "cells", [(slice(0, 1), slice(0, 1)), (slice(0, 1), slice(1, 5)), (slice(0, 1), slice(2, 3))], ids=str
)
def test_only_whole_chunks_are_written(tmp_path, cells):
    table = Table.create(tmp_path / "counts", (3, 5), "int64", (1, 2))
    with pytest.raises(ShapeMismatchError, match="are no whole chunks"):
        table.write(cells, 1)


def test_a_table_grows_and_shrinks(tmp_path):
    table = Table.create(tmp_path / "digest", (2, 3), "uint64", (1, 3))
    table.write((slice(0, 2),), 2**64 - 1)
    table.resize(4)
    assert table.shape == (4, 3)
    np.testing.assert_array_equal(table.read()[:, 0], np.array([2**64 - 1, 2**64 - 1, 0, 0], np.uint64))
    table.resize(1)
    table.resize(2)
    np.testing.assert_array_equal(table.read()[:, 0], np.array([2**64 - 1, 0], np.uint64))


def test_a_damaged_table_is_named(tmp_path):
    table = Table.create(tmp_path / "digest", (2,), "uint64", (1,))
    table.write((slice(0, 1),), 5)
    (tmp_path / "digest" / "c" / "0").write_bytes(b"garbage")
    with pytest.raises(DamageError, match=r"digest: chunk c/0 cannot be decoded \("):
        table.read()
    values, reasons = table.survey()
    assert values.tolist() == [0, 0]
    assert [reason.partition(" cannot")[0] for reason in reasons] == [f"{table.path}: chunk c/0"]


def test_what_is_damaged_is_left_out_of_a_part_too(tmp_path):
    table = Table.create(tmp_path / "level", (4, 5), "float64", (1, 3), -1)
    table.write((slice(0, 4),), np.arange(20).reshape(4, 5))
    (tmp_path / "level" / "c" / "2" / "1").write_bytes(b"garbage")
    values, reasons = table.survey((slice(1, 4), slice(1, 5)))
    np.testing.assert_array_equal(values, [[6, 7, 8, 9], [11, 12, -1, -1], [16, 17, 18, 19]])
    assert [reason.partition(" cannot")[0] for reason in reasons] == [f"{table.path}: chunk c/2/1"]
    assert table.survey((slice(2, 3), slice(0, 3)))[1] == []


def test_a_chunk_that_was_written_has_a_file_whatever_it_holds(tmp_path):
    table = Table.create(tmp_path / "counts", (3, 2, 4), "int64", (1, 2, 4))
    table.write((slice(0, 1), slice(0, 2)), 0)
    table.write((slice(1, 2), slice(0, 2)), 5)
    assert table.stored((slice(0, 3), slice(0, 2))).tolist() == [[True] * 2, [True] * 2, [False] * 2]
    (tmp_path / "counts" / "c" / "1" / "0" / "0").unlink()
    assert table.stored((slice(1, 2), slice(0, 1))).tolist() == [[False]]
    assert table.read()[1].tolist() == [[0] * 4] * 2  # which is why it is asked


def test_the_smallest_table_cell_is_a_chunk_of_its_own(tmp_path):
    table = Table.create(tmp_path / "status", (4, 4), "uint8", (1, 4))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda z: table.write((slice(z, z + 1),), z + 1), range(4)))
    np.testing.assert_array_equal(table.read()[:, 0], [1, 2, 3, 4])
