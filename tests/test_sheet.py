"""The table of tiles says what the tables of the run say, as CSV and as Parquet."""

from __future__ import annotations

import csv
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.findings import parquet
from pipeline.findings.census import Census, census
from pipeline.findings.columns import COLUMNS, Part, Values, rows, write_csv
from pipeline.geometry import Box, Grid
from pipeline.kernels.confusion import SCORES
from pipeline.kernels.flags import Flag, flag_tiles
from pipeline.kernels.quality import Measure
from pipeline.segmentation.runs import run
from pipeline.settings.config import RunConfig
from pipeline.storage.tables import RunTables, Status
from pipeline.storage.volume import Volume
from tests.builders import textured
from tests.command import kesm
from tests.contract import check_document
from tests.test_census import made_up

pq = pytest.importorskip("pyarrow.parquet")

SHAPE = (3, 300, 700)  # 2 x 3 tiles of 256 a slice
VOXEL_SIZE_UM = (1.0, 0.7, 0.6)
PAGE = Path(__file__).parents[1] / "docs" / "files.md"


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Volume whose slice 0 is traced, and whose slice 2 has failed; a second run has no truth."""
    rng = np.random.default_rng(5)
    volume = Volume.create(tmp_path_factory.mktemp("sheet") / "brain.zarr", SHAPE, "uint8", VOXEL_SIZE_UM)
    volume.staging.mkdir()
    truth, ledger = volume.create_truth("traced", {})
    for z in range(SHAPE[0]):
        image = textured(rng, SHAPE[1:])
        volume.slices.record(z, volume.image.write_slice(z, image, volume.staging), f"{z}.png", 0)
        traced = rng.choice(np.array([0, 255], np.uint8), SHAPE[1:])
        traced[:, 600:] = 127
        if z == 0:
            ledger.record(z, truth.write_slice(z, traced, volume.staging), f"{z}.png", 0)
    volume.publish_label("traced")
    volume.staging.rmdir()
    run(RunConfig.model_validate({"volume": volume.path, "truth": "traced", "tile": 256}))
    run(RunConfig.model_validate({"volume": volume.path, "name": "bare", "tile": 256, "region": "z=0:1"}))
    RunTables(volume, "otsu").status.write((slice(2, 3), slice(0, 2), slice(0, 3)), Status.FAILED)
    return volume


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def written(volume: Volume, out: Path, *words: object) -> dict[str, object]:
    answer = kesm("tables", volume.path, "--out", out, *words, "--json")
    assert answer.code == 0, answer
    return check_document("tables", answer.document)


def test_rows_are_the_tiles(volume, tmp_path):
    document = written(volume, tmp_path / "tiles.csv", "--name", "otsu")
    assert (document["rows"], document["done"], document["truth"]) == (18, 12, "traced")
    table, found = read_csv(tmp_path / "tiles.csv"), census(volume, "otsu")
    assert list(table[0]) == document["columns"] == [column.name for column in COLUMNS]
    assert [(int(row["z"]), int(row["row"]), int(row["column"])) for row in table] == list(found.tiles)
    for row, cell in zip(table, found.tiles, strict=True):
        box = found.box(cell)
        assert (int(row["z"]), int(row["y"]), int(row["x"])) == box.start
        assert (int(row["height"]), int(row["width"]), int(row["voxels"])) == (*box.shape[1:], box.size)
        place = [float(row[f"{axis}_um"]) for axis in "zyx"]
        assert place == [start * size for start, size in zip(box.start, VOXEL_SIZE_UM, strict=True)]
        assert row["status"] == ("failed" if cell[0] == 2 else "done")
        if cell[0] == 2:
            assert {value for name, value in row.items() if name not in list(row)[:12]} == {""}
            continue
        assert float(row["level"]) == found.level[cell]
        assert row["signal"] == ""
        assert int(row["vessel"]) == found.vessel[cell]
        assert float(row["vessel_fraction"]) == found.fraction()[cell]
        assert [int(row[name]) for name in ("tp", "fp", "fn", "tn")] == found.counts[cell].tolist()
        assert int(row["annotated"]) == found.annotated[cell]
        for name in SCORES:
            value = found.score(name)[cell]
            assert row[name] == ("" if math.isnan(value) else repr(float(value)))
        for measure in Measure:
            assert np.float32(row[measure.name.lower()]) == found.quality[cell][measure]


def test_parquet_holds_what_csv_holds(volume, tmp_path):
    for ending in ("csv", "parquet"):
        written(volume, tmp_path / f"tiles.{ending}", "--name", "otsu")
    table = pq.read_table(tmp_path / "tiles.parquet")
    types = {field.name: re.sub("indices=u?int[0-9]+", "indices=", str(field.type)) for field in table.schema}
    assert types == {  # which integers index a dictionary is the matter of pyarrow's version
        column.name: {"text": "dictionary<values=string, indices=, ordered=0>", "float64": "double",
                      "float32": "float"}.get(column.kind, column.kind)
        for column in COLUMNS
    }  # fmt: skip
    assert table.schema.metadata[b"run"] == b"otsu"
    assert table.schema.metadata[b"truth"] == b"traced"
    kinds = {column.name: column.kind for column in COLUMNS}
    for row, line in zip(table.to_pylist(), read_csv(tmp_path / "tiles.csv"), strict=True):
        for name, value in row.items():
            text = line[name]
            if value is None:
                assert text == "", name
            elif kinds[name] == "float32":
                assert np.float32(text) == np.float32(value), name
            else:
                assert type(value)(text) == value, name


def test_region_rounds_out_to_tiles(volume, tmp_path):
    document = written(volume, tmp_path / "part.csv", "--name", "otsu", "--region", "z=0:2,y=0:1,x=255:257")
    assert document["region"] == "z=0:2,y=0:1,x=255:257"
    whole = tmp_path / "whole.csv"
    written(volume, whole, "--name", "otsu")
    cells = [(z, 0, x) for z in range(2) for x in range(2)]
    expected = [row for row in read_csv(whole) if (int(row["z"]), int(row["row"]), int(row["column"])) in cells]
    assert read_csv(tmp_path / "part.csv") == expected


def test_without_a_truth_the_scores_are_empty(volume, tmp_path):
    document = written(volume, tmp_path / "bare.csv", "--name", "bare")
    assert (document["truth"], document["done"], document["rows"]) == (None, 6, 18)
    table = read_csv(tmp_path / "bare.csv")
    assert {row[name] for row in table for name in ("annotated", "tp", "tn", *SCORES)} == {""}
    assert [row["status"] for row in table] == ["done"] * 6 + ["pending"] * 12
    assert all(row["vessel"] for row in table[:6])


def test_rule_for_undefined_scores_is_taken(volume, tmp_path):
    for rule in ("article", "nan"):
        written(volume, tmp_path / f"{rule}.csv", "--name", "otsu", "--undefined", rule)
    found = census(volume, "otsu")
    for rule in ("article", "nan"):
        values = [float(row["mcc"] or "nan") for row in read_csv(tmp_path / f"{rule}.csv")]
        np.testing.assert_array_equal(values, found.score("mcc", rule).ravel())


def test_flags_are_those_of_whole_slices():
    """One tile of 25 is far brighter; a region of four tiles alone would set no norm."""
    flagged = flagged_tile(np.random.default_rng(3))
    expected = flag_tiles(flagged.quality, flagged.done)
    assert expected[0, 1, 1] & Flag.BRIGHT
    tiles = Box((0, 0, 0), (1, 2, 2))
    ((*_, flags),) = rows(flagged, tiles, None)
    assert flags.texts() == ["+".join(flag.name.lower() for flag in Flag if flag & value and flag.name)
                             for value in expected[tiles.slices].ravel()]  # fmt: skip
    assert "bright" in flags.texts()[3]
    assert flags.texts()[0] == ""


def flagged_tile(rng: np.random.Generator) -> Census:
    one = made_up([(0, 0, 0, 1)] * 25, first=0)
    quality = rng.normal(100, 1, (1, 5, 5, len(Measure))).astype(np.float32)
    quality[..., Measure.EMPTINESS] = quality[..., Measure.SATURATION] = quality[..., Measure.CHATTER] = 0
    quality[0, 1, 1, Measure.MEAN] = 200
    square = {name: getattr(one, name).reshape(1, 5, 5) for name in ("status", "done", "voxels", "level", "signal",
              "vessel", "annotated")}  # fmt: skip
    return replace(one, grid=Grid((1, 2560, 2560), (1, 512, 512)), tiles=Box.whole((1, 5, 5)), quality=quality,
                   counts=one.counts.reshape(1, 5, 5, 4), **square)  # fmt: skip


def test_rows_do_not_depend_on_how_many_are_made_at_once(volume, tmp_path, monkeypatch):
    written(volume, tmp_path / "whole.csv", "--name", "otsu")
    monkeypatch.setattr("pipeline.findings.columns.ROWS_AT_ONCE", 1)
    found = census(volume, "otsu")
    assert len(list(rows(found, found.tiles, VOXEL_SIZE_UM))) == SHAPE[0]
    assert write_csv(tmp_path / "sliced.csv", rows(found, found.tiles, VOXEL_SIZE_UM)) == 18
    assert (tmp_path / "sliced.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_columns_are_documented():
    lines = [f"| `{column.name}` | {column.kind} | {column.meaning} |" for column in COLUMNS]
    assert "\n".join(["| column | type | what |", "| --- | --- | --- |", *lines]) + "\n" in PAGE.read_text()


def test_damage_is_named_and_its_tiles_are_pending(volume, tmp_path):
    copied = Volume(shutil.copytree(volume.path, tmp_path / "brain.zarr"))
    chunk = next(path for path in (copied.path / "tiles/otsu/vessel/c/1").rglob("*") if path.is_file())
    chunk.write_bytes(b"no chunk")
    answer = kesm("tables", copied.path, "--name", "otsu", "--out", tmp_path / "tiles.csv")
    assert answer.code == 3
    assert answer.out == f"{tmp_path / 'tiles.csv'}: 18 tiles of run otsu, truth traced, 6 done\n"
    assert re.match(r"not read: z=1:2,.*vessel.*cannot be decoded", answer.err)
    again = kesm("tables", copied.path, "--name", "otsu", "--out", tmp_path / "tiles.csv", "--replace", "--json")
    assert (again.code, again.err) == (3, answer.err)
    assert len(check_document("tables", again.document)["failures"]) == len(answer.err.splitlines())
    assert [row["status"] for row in read_csv(tmp_path / "tiles.csv")][6:12] == ["pending"] * 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--out", "t.xlsx"], r"got t.xlsx, expected a file that ends in .csv or .parquet", id="end"),
        pytest.param(["--out", "t.csv", "--name", "no"], r"has no run 'no'; it has: bare, otsu", id="no run"),
        pytest.param(["--out", "t.csv", "--name", "bare", "--truth", "traced"], r"not compared with 'tr", id="truth"),
        pytest.param(["--out", "t.csv", "--name", "otsu", "--region", "z=9:10"], r"volume has z=0:3", id="region"),
        pytest.param(["--out", "t.csv", "--undefined", "one"], r"expected one of article, zero, nan", id="undefined"),
        pytest.param(["--out", "no/t.csv", "--name", "otsu"], r"the folder no does not exist", id="folder"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_message(volume, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(message, kesm("tables", volume.path, *words).message)
    assert not list(tmp_path.iterdir())


def test_file_that_is_there_is_not_overwritten(volume, tmp_path):
    out = tmp_path / "tiles.csv"
    out.write_text("mine")
    assert (
        "exists already; overwrite it with --replace"
        in kesm("tables", volume.path, "--out", out, "--name", "otsu").message
    )
    assert out.read_text() == "mine"
    assert kesm("tables", volume.path, "--out", out, "--name", "otsu", "--replace").code == 0
    assert len(read_csv(out)) == 18


def test_without_pyarrow_the_way_out_is_said(volume, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "pa", None)
    message = kesm("tables", volume.path, "--out", tmp_path / "t.parquet", "--name", "otsu").message
    assert "pip install 'kesm-pipeline[tables]'" in message
    assert kesm("tables", volume.path, "--out", tmp_path / "t.csv", "--name", "otsu").code == 0


def test_column_names_are_unlike(volume):
    names = [column.name for column in COLUMNS]
    assert len({*names}) == len(names)
    found = census(volume, "otsu")
    part = Part(found, None, None, None)
    assert all(isinstance(column.values(part), np.ndarray) for column in COLUMNS)
    ((*values,),) = rows(found, found.tiles, None)
    assert all(isinstance(each, Values) and each.empty.shape == each.values.shape == (18,) for each in values)
