"""Where work runs: what is said of a scheduler that is not there, or lost, and what of an error of the work itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import dask
import distributed
import pytest

from pipeline.errors import LockedError, PipelineError, SchedulerError, TargetError, UnavailableError
from pipeline.events import Event, JobDone, JobsStarted, ignore
from pipeline.segmentation.engine import Engine, ThreadRunner, start_engine
from pipeline.settings.config import AddressCluster, ThreadsCluster
from tests.workers import workers_here


@pytest.fixture(scope="module")
def scheduler() -> Iterator[distributed.LocalCluster]:
    with workers_here() as cluster:
        yield cluster


def test_unreachable_scheduler_is_named() -> None:
    address = AddressCluster(engine="address", address="tcp://127.0.0.1:1")
    with (
        pytest.raises(SchedulerError, match=r"tcp://127.0.0.1:1: no Dask scheduler answers"),
        start_engine(address, ignore, connect_s=0.5),
    ):
        pass


def test_scheduler_without_workers_is_named() -> None:
    with workers_here(count=0) as empty:
        address = AddressCluster(engine="address", address=empty.scheduler_address)
        with (
            pytest.raises(SchedulerError, match="has no workers"),
            start_engine(address, ignore),
        ):
            pass


@pytest.mark.parametrize("kind", [LockedError, UnavailableError, TargetError], ids=lambda kind: kind.__name__)
def test_error_of_a_task_is_not_one_of_the_scheduler(
    scheduler: distributed.LocalCluster, kind: type[PipelineError]
) -> None:
    def fail() -> None:
        raise kind("a deserialized tile")

    with distributed.Client(scheduler) as client, pytest.raises(kind, match="a deserialized tile") as caught:
        Engine(1, client).compute(dask.delayed(fail)())
    assert type(caught.value) is kind


LOGGERS = [logging.getLogger(name) for name in ("asyncio", "distributed", "distributed.client")]


def lose_workers() -> None:
    raise distributed.CancelledError("gone")


def test_dask_is_silent_only_while_a_client_of_ours_is_lost(scheduler: distributed.LocalCluster) -> None:
    before = [logger.level for logger in LOGGERS]
    address = AddressCluster(engine="address", address=scheduler.scheduler_address)
    with start_engine(address, ignore) as engine:
        assert [logger.level for logger in LOGGERS] == before
        with pytest.raises(SchedulerError, match="the scheduler or its workers were lost"):
            engine.compute(dask.delayed(lose_workers)())
        assert [logger.level for logger in LOGGERS] == [logging.CRITICAL] * 3
    assert [logger.level for logger in LOGGERS] == before


def test_client_that_was_given_is_never_silenced(scheduler: distributed.LocalCluster) -> None:
    before = [logger.level for logger in LOGGERS]
    with (
        distributed.Client(scheduler) as client,
        pytest.raises(SchedulerError, match="the scheduler or its workers were lost"),
        start_engine(ThreadsCluster(), ignore, client) as engine,
    ):
        engine.compute(dask.delayed(lose_workers)())
    assert [logger.level for logger in LOGGERS] == before


def test_thread_runner_keeps_the_order_and_raises_what_a_job_raises() -> None:
    events: list[Event] = []
    assert ThreadRunner(2, events.append)(lambda item: item * item, range(20)) == [item * item for item in range(20)]
    assert events[0] == JobsStarted(20)
    assert events.count(JobDone()) == 20

    def fail(item: int) -> int:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item"):
        ThreadRunner(2)(fail, range(3))
