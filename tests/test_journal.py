"""What happened to a run: its failures and attempts."""

from __future__ import annotations

import pytest

from pipeline.geometry import Box
from pipeline.storage.journal import Journal


@pytest.fixture
def journal(tmp_path):
    return Journal.create(tmp_path / "otsu")


def test_failures_are_kept_until_the_block_is_done(journal):
    corner, left, right = (Box((2, 2048, start), (3, 2100, stop)) for start, stop in ((0, 2048), (0, 512), (512, 1024)))
    journal.record_failure((2, 1, 0), [(left, "first"), (right, "second")])
    assert list(journal.failures(None)) == [(left, "first"), (right, "second")]
    journal.record_failure((2, 1, 0), [(corner, "shard c/2/1/0 is missing")])
    journal.record_failure((0, 0, 1), [(left, "other")])
    assert list(journal.failures(None)) == [(left, "other"), (corner, "shard c/2/1/0 is missing")]
    journal.clear_failure((0, 0, 1), None)
    journal.clear_failure((0, 0, 1), None)
    assert [box for box, _ in journal.failures(None)] == [corner]


def test_attempts_stand_in_their_order_and_are_never_rewritten(journal):
    assert [journal.begin_attempt({"user": "me"}) for _ in range(12)] == list(range(12))
    before = {path: path.read_bytes() for path in journal.path.rglob("*.json")}
    journal.end_attempt(3, {"ended": "now"})
    attempts = Journal(journal.path).attempts()
    assert [attempt["number"] for attempt in attempts] == list(range(12))
    assert attempts[3] == {"number": 3, "user": "me", "ended": "now"}
    assert "ended" not in attempts[4]
    assert {path: path.read_bytes() for path in before} == before
