"""Runs that are killed at any instant, and go on: nothing lost, nothing done twice, every bit the same."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import distributed
import pytest

from pipeline.events import BlockDone, Event
from pipeline.segmentation.runs import run
from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume, beside
from tests.builders import build_volume, run_config
from tests.crashing import assert_same_arrays, redone, start

SHAPE = (5, 2100, 600)  # two shards a slice, five levels, one slice absent
RECIPE = {"denoise": {"method": "median", "size": [3, 3, 3]}}
WRITES = 120  # of a whole run, roughly


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = build_volume(tmp_path / "brain.zarr", SHAPE, absent=(1,))
    run(run_config(volume, "reference", **RECIPE))
    return volume


def killed(volume: Volume, name: str, seed: int, kills: int) -> int:
    """Kill a run so many times, half of them at a write and half at any moment; return how often it was in time."""
    log, chance, in_time = volume.path.with_name(f"{name}.log"), random.Random(seed), 0
    for number in range(kills):
        process = start(volume.path, log, chance.randrange(1, WRITES) if number % 2 else None, name=name, **RECIPE)
        if number % 2 == 0:
            time.sleep(chance.uniform(0.05, 0.6))
            process.kill()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
        in_time += process.exitcode != 0
    assert redone(log) == []
    return in_time


def check_goes_on(volume: Volume, name: str) -> None:
    assert run(run_config(volume, name, **RECIPE)).tiles.failed == 0
    assert_same_arrays(volume.path, name, "reference")
    assert list(RunTables(volume, name).journal.failures("groundtruth")) == []
    assert not beside(volume.path, "staging").exists()
    assert list(volume.path.rglob("*.partial")) == []
    again = run(run_config(volume, name, **RECIPE)).tiles
    assert again.reused == again.done == again.total - again.absent


def test_killed_runs_go_on(volume: Volume) -> None:
    for seed in range(2):
        killed(volume, f"killed{seed}", seed, kills=4)
        check_goes_on(volume, f"killed{seed}")


@pytest.mark.parametrize("seed", [1, 2])
def test_run_that_is_killed_while_it_replaces_another_goes_on(volume: Volume, seed: int) -> None:
    run(run_config(volume, "killed", **RECIPE | {"tile": 256}))
    before = len(RunTables(volume, "killed").journal.attempts())
    RunTables(volume, "killed").disown((0, 0, 0), "an old reason")
    chance = random.Random(seed)
    for kill_at in sorted(chance.sample(range(1, 60), 4)):
        start(volume.path, volume.path.with_name("log"), kill_at, name="killed", **RECIPE).join(60)
    assert run(run_config(volume, "killed", **RECIPE), replace=True).failures == []
    assert_same_arrays(volume.path, "killed", "reference")
    assert len(RunTables(volume, "killed").journal.attempts()) > before


@pytest.mark.slow
def test_thirty_kills(volume: Volume) -> None:
    in_time = 0
    for seed in range(100, 200):
        in_time += killed(volume, f"killed{seed}", seed, kills=6)
        check_goes_on(volume, f"killed{seed}")
        if in_time >= 30:
            return
    pytest.fail(f"only {in_time} runs were killed before they had ended")


SLOW = {"denoise": {"method": "median", "size": 9}}  # by SciPy: a second a slice


def test_lost_worker_costs_no_more_than_its_block(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (4, 600, 520))
    workers = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50)
    with workers as cluster, distributed.Client(cluster) as client:
        victim = next(iter(client.run(os.getpid).values()))

        def kill_one(event: Event) -> None:
            if isinstance(event, BlockDone) and not killed_once:
                killed_once.append(os.kill(victim, signal.SIGKILL))

        killed_once: list[None] = []
        summary = run(run_config(volume, "killed", **SLOW), kill_one, client)
    assert (len(killed_once), summary.tiles.failed, summary.tiles.done) == (1, 0, 16)
    run(run_config(volume, "reference", **SLOW))
    assert_same_arrays(volume.path, "killed", "reference")


def test_run_of_a_dead_client_does_not_meddle_with_the_next(tmp_path: Path) -> None:
    volume = build_volume(tmp_path / "brain.zarr", (4, 600, 520))
    workers = distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None, silence_logs=50)
    with workers as cluster:
        address = {"engine": "address", "address": cluster.scheduler_address}
        process = start(volume.path, tmp_path / "log", None, name="killed", cluster=address, **SLOW)
        deadline = time.monotonic() + 60
        while not list(volume.path.glob("tiles/killed/status/c/*/*/*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.join()
        run(run_config(volume, "killed", cluster=address, **SLOW))
    run(run_config(volume, "reference", **SLOW))
    assert_same_arrays(volume.path, "killed", "reference")
    assert [attempt.get("ending") for attempt in RunTables(volume, "killed").journal.attempts()] == [None, "finished"]
