"""What made a mask: as a document that keeps to its schema, and as a page."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import MissingInputError
from pipeline.findings.provenance import page, provenance
from pipeline.settings.recipe import Recipe
from pipeline.storage.tables import RunTables, Status
from pipeline.storage.volume import Volume
from tests.contract import check_document

NOW = datetime(2026, 3, 4, 20, 0, tzinfo=UTC)
SHAPE = (2, 64, 64)
BEGUN: dict[str, Any] = {
    "started": "2026-03-04T18:00:00+01:00", "host": "host7", "user": "alice", "process": 1234,
    "command": ["kesm", "run", "my brain.zarr", "--truth", "gt"], "engine": "threads", "recipe": Recipe().document(),
    "region": "z=0:2,y=0:64,x=0:64", "truth": None, "packages": {"kesm-pipeline": "0.2.0", "numpy": "2.1.0"},
    "inputs": {"image": "00ff00ff00ff00ff", "truth": None},
}  # fmt: skip
ENDED: dict[str, Any] = {
    "ended": "2026-03-04T18:00:07+01:00", "ending": "finished",
    "tiles": {"total": 2, "done": 2, "reused": 1, "failed": 0, "pending": 0, "absent": 0, "undecided": 0,
              "no_signal": 0},
    "counts": {"tp": 5595, "fp": 122, "fn": 1863, "tn": 254564}, "scores": {"accuracy": 0.99, "f1": 0.85, "mcc": None},
    "elapsed_s": 6.75,
}  # fmt: skip


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume.create(tmp_path / "brain.zarr", SHAPE, "uint8")


@pytest.fixture
def tables(volume: Volume) -> RunTables:
    return RunTables.create(volume, "otsu", Recipe().document(), (1, 64, 64))


def test_run_that_nobody_has_started(volume, tables):
    document = check_document("provenance", provenance(volume, "otsu"))
    assert document == {
        "schema": 1, "volume": str(volume.path), "name": "otsu", "recipe": Recipe().document(), "block": [1, 64, 64],
        "truth": None, "inputs": None, "packages": None,
        "tiles": {"total": 2, "done": 0, "reused": 0, "failed": 0, "pending": 0, "absent": 2, "undecided": 0,
                  "no_signal": 0},
        "counts": None, "scores": None, "attempts": [],
    }  # fmt: skip
    assert page(document).endswith(
        "\ntiles: total 2, done 0, reused 0, failed 0, pending 0, absent 2, undecided 0, no_signal 0"
    )


def test_attempts_are_told_as_they_were_recorded(volume, tables):
    tables.journal.end_attempt(tables.journal.begin_attempt(BEGUN), ENDED)
    tables.journal.begin_attempt(BEGUN | {"user": "bob"})
    tables.journal.end_attempt(
        tables.journal.begin_attempt(BEGUN), {"ended": BEGUN["started"], "ending": "failed: no\nroom"}
    )
    number = tables.journal.begin_attempt(BEGUN | {"host": "far", "inputs": {"image": 16 * "1", "truth": 16 * "2"}})
    tables.journal.beat({"attempt": number, "time": (NOW - timedelta(seconds=3)).isoformat(), "every_s": 5.0})
    document = provenance(volume, "otsu", NOW)
    check_document("provenance", json.loads(json.dumps(document)))
    assert [attempt["state"] for attempt in document["attempts"]] == ["ended", "killed", "ended", "running"]
    assert [attempt["number"] for attempt in document["attempts"]] == [0, 1, 2, 3]
    assert document["attempts"][0] == {"number": 0, "state": "ended", **BEGUN, **ENDED}
    assert document["inputs"] == {"image": 16 * "1", "truth": 16 * "2"}
    assert document["packages"] == BEGUN["packages"]


def test_page_can_be_read_by_people(volume, tables):
    tables.journal.end_attempt(tables.journal.begin_attempt(BEGUN | {"recipe": Recipe(tile=256).document()}), ENDED)
    tables.journal.begin_attempt(BEGUN | {"packages": {"numpy": "2.2.0"}})
    text = page(provenance(volume, "otsu", NOW))
    lines = text.splitlines()
    assert lines[:2] == [f"run otsu of {volume.path}", "recipe:"]
    assert yaml.safe_load(text.partition("recipe:\n")[2].partition("block:")[0]) == Recipe().document()
    first = lines.index("attempt 0: finished")
    second = lines.index("attempt 1: killed")
    for line in (
        "block: 1 x 64 x 64 voxels (z, y, x)", "truth: none", "inputs: image 00ff00ff00ff00ff", "packages: numpy 2.2.0",
    ):  # fmt: skip
        assert line in lines[:first]
    for line in (
        "  who: alice on host7, process 1234, engine threads",
        "  when: 2026-03-04T18:00:00+01:00 to 2026-03-04T18:00:07+01:00, 6.8 s",
        "  command: kesm run 'my brain.zarr' --truth gt", "  region: z=0:2,y=0:64,x=0:64", "    tile: 256",
        "  packages: kesm-pipeline 0.2.0, numpy 2.1.0",
        "  tiles: total 2, done 2, reused 1, failed 0, pending 0, absent 0, undecided 0, no_signal 0",
        "  counts: tp 5,595, fp 122, fn 1,863, tn 254,564", "  scores: accuracy 0.99, f1 0.85",
    ):  # fmt: skip
        assert line in lines[first:second]
    assert "  when: 2026-03-04T18:00:00+01:00" in lines[second:]
    assert not [line for line in lines[second:] if line.startswith(("  packages", "  inputs", "  recipe", "  counts"))]


def test_older_versions_have_recorded_less(volume, tables):
    tables.journal.end_attempt(
        tables.journal.begin_attempt({"user": "alice"}), {"ended": ENDED["ended"], "ending": "finished"}
    )
    document = check_document("provenance", provenance(volume, "otsu"))
    assert (document["inputs"], document["packages"], document["truth"]) == (None, None, None)
    assert "  when: ? to 2026-03-04T18:00:07+01:00" in page(document).splitlines()


def test_truth_that_was_removed_is_still_named(volume, tables):
    tables.create_truth("gone")
    tables.journal.begin_attempt(BEGUN | {"truth": "gone"})
    tables.status.write((slice(0, 2),), Status.PENDING)
    document = check_document("provenance", provenance(volume, "otsu", NOW))
    assert (document["truth"], document["counts"]) == ("gone", None)


@pytest.mark.parametrize("name", ["nope", "../labels", "otsu/attempts", ""])
def test_runs_are_named_where_there_is_no_such_one(volume, tables, name):
    RunTables.create(volume, "fixed", Recipe().document(), (1, 64, 64))
    with pytest.raises(MissingInputError, match=r"brain\.zarr: has no run '.*'; it has: fixed, otsu$"):
        provenance(volume, name)
