"""What the machine has for a command."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from pipeline.machine import allowed_bytes, available_cpus, fitting_threads, gb


def test_memory_is_what_was_given_or_most_of_what_is_free(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    assert (allowed_bytes(), allowed_bytes(5000)) == (800, 5000)


@pytest.mark.parametrize(("each", "threads"), [(0, 4), (1, 4), (266, 3), (267, 2), (800, 1), (10**6, 1)])
def test_as_many_threads_as_fit(monkeypatch, each, threads):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    assert fitting_threads(4, each) == threads


def test_cpus_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 6}, raising=False)
    assert available_cpus() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cpus() == 1


def test_bytes_in_words():
    assert gb(1_504_999_999) == "1.50 GB"
