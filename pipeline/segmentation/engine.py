"""Where work runs: threads of this process, or the workers of a Dask client, which is started, reached or given."""

from __future__ import annotations

import logging
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import dask
import distributed
from distributed.comm import CommClosedError

from pipeline.errors import PipelineError, SchedulerError
from pipeline.events import BlockDone, Event, JobDone, JobsStarted, Observer, Started, ignore
from pipeline.machine import available_cpus
from pipeline.runner import Item, Result
from pipeline.settings.config import AddressCluster, Cluster, LocalCluster, ThreadsCluster

Client: TypeAlias = distributed.Client

CONNECT_S = 10


def _do_nothing() -> None:
    pass


class Engine:
    """Where tasks run: threads of this process, or the workers of a Dask client."""

    def __init__(
        self,
        threads: int,
        client: Client | None = None,
        close: Callable[[], None] = _do_nothing,
        silence: Callable[[], None] = _do_nothing,
    ) -> None:
        self._client = client
        self._threads = threads
        self._silence = silence  # what Dask says of tasks that end with the cluster is no news, where that is ours
        self.close = close  # ends the workers that were started for it; nothing writes any more afterwards

    def compute(self, *collections: Any) -> tuple[Any, ...]:
        """Compute Dask collections together."""
        if self._client is not None:
            return _compute_on_workers(self._client, collections, self._silence)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="kesm")
        try:
            result: tuple[Any, ...] = dask.compute(*collections, scheduler="threads", pool=pool)
        finally:
            # Blocks in work are finished and recorded, also after Ctrl-C; those that have not begun never do. A second
            # signal must not let the lock go while they write.
            with _ignored(signal.SIGINT, signal.SIGTERM):
                pool.shutdown(wait=True, cancel_futures=True)
        return result

    @contextmanager
    def listen(self, observer: Observer) -> Iterator[Observer]:
        """Give what tasks call with their events, so that ``observer`` gets them here."""
        if self._client is None:
            yield observer
            return
        topic = f"kesm-{uuid.uuid4().hex}"

        def receive(event: tuple[float, Any]) -> None:
            block = event[1]["block"]
            observer(BlockDone(**{**block, "counts": tuple(block["counts"])}) if block else JobDone())

        self._client.subscribe_topic(topic, receive)
        try:
            yield _Topic(topic)
        finally:
            self._client.unsubscribe_topic(topic)


@contextmanager
def start_engine(
    cluster: Cluster, observer: Observer, client: Client | None = None, connect_s: float = CONNECT_S
) -> Iterator[Engine]:
    """Start or reach the engine of a configuration; a client that is given is used and left open.

    Raises
    ------
    SchedulerError
        If no scheduler answers.
    """
    with ExitStack() as stack:
        if client is not None:
            observer(Started("client", client.dashboard_link))
            yield Engine(1, client)
        elif isinstance(cluster, ThreadsCluster):
            observer(Started("threads", None))
            yield Engine(cluster.threads or available_cpus())
        elif isinstance(cluster, LocalCluster):
            silence = stack.enter_context(_silencing())
            own = stack.enter_context(_local_client(cluster))
            observer(Started("local", own.dashboard_link))
            yield Engine(cluster.threads, own, stack.close, silence)
        else:
            silence = stack.enter_context(_silencing())
            own = stack.enter_context(_remote_client(cluster, connect_s))
            observer(Started(cluster.address, own.dashboard_link))
            yield Engine(1, own, stack.close, silence)


@dataclass(frozen=True, slots=True)
class ThreadRunner:
    """Calls a function on every item in threads of this process; results come in the order of the items."""

    threads: int
    observer: Observer = ignore

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item], what: str = "") -> list[Result]:
        """Return ``[function(item) for item in items]``; an exception of one job ends them all."""

        def call(item: Item) -> Result:
            result = function(item)
            self.observer(JobDone())
            return result

        self.observer(JobsStarted(len(items), what))
        return list(Engine(self.threads).compute(*[dask.delayed(call, pure=False)(item) for item in items]))


class _Topic:
    """Sends events through the scheduler to whoever listens to a topic."""

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def __call__(self, event: Event) -> None:
        # distributed adds its own keys to the message, so that ours go below one of them
        distributed.get_worker().log_event(self._topic, {"block": asdict(event)})


def _compute_on_workers(client: Client, collections: Sequence[Any], silence: Callable[[], None]) -> tuple[Any, ...]:
    futures = client.compute(list(collections))
    try:
        return tuple(client.gather(futures))
    except PipelineError:  # what a task says is its own, though some are timeouts or lost connections by their base
        raise
    except (distributed.KilledWorker, distributed.CancelledError, CommClosedError, TimeoutError) as error:
        silence()
        raise SchedulerError(
            f"the scheduler or its workers were lost ({error}); see their logs, then run again: what is done is kept"
        ) from error
    except (ModuleNotFoundError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "deserializ" not in str(error):
            raise
        raise SchedulerError(
            f"the scheduler or a worker cannot load the work ({error}); install the same kesm-pipeline on all of them"
        ) from error
    except BaseException as error:
        if not isinstance(error, Exception):  # Ctrl-C
            silence()
        raise
    finally:
        client.cancel(futures)


@contextmanager
def _silencing() -> Iterator[Callable[[], None]]:
    """Give what silences Dask until this is left; then its loggers are as they were."""
    loggers = map(logging.getLogger, ("asyncio", "distributed", "distributed.client"))  # the last has its own level
    before = [(logger, logger.level) for logger in loggers]

    def silence() -> None:
        for logger, _ in before:
            logger.setLevel(logging.CRITICAL)

    try:
        yield silence
    finally:
        for logger, level in before:
            logger.setLevel(level)


@contextmanager
def _local_client(cluster: LocalCluster) -> Iterator[Client]:
    workers = cluster.workers or max(1, available_cpus() // cluster.threads)
    with dask.config.set(_local_settings()):
        with _ignored(signal.SIGINT):  # which a terminal sends to all: this process ends the others
            local = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=cluster.threads,
                memory_limit=0,  # planned beforehand; a worker that is restarted half way only costs time
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,  # what a task raises is handed on; the rest is of their shutdown
            )
        with local, Client(local) as client:
            yield client


def _local_settings() -> dict[str, Any]:
    """What the workers of this machine must not have as Dask has it: measured once, a seventh of their speed."""
    environment: dict[str, Any] = dask.config.get("distributed.nanny.pre-spawn-environ")
    return {
        "distributed.worker.multiprocessing-method": "spawn",  # forked ones deadlock in zarr (iohub issue 416)
        "distributed.worker.profile.enabled": False,  # it asks every thread 100 times a second where it is
        # It gives freed memory back to the system: the buffers of every chunk would be faulted in anew.
        "distributed.nanny.pre-spawn-environ": {
            name: value for name, value in environment.items() if name != "MALLOC_TRIM_THRESHOLD_"
        },
    }


@contextmanager
def _ignored(*signals: signal.Signals) -> Iterator[None]:
    """Ignore signals for a while, and let processes that are started here do so for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in signals]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextmanager
def _remote_client(cluster: AddressCluster, connect_s: float) -> Iterator[Client]:
    try:
        client = Client(cluster.address, timeout=connect_s)
    except (OSError, TimeoutError, ValueError) as error:
        raise SchedulerError(
            f"{cluster.address}: no Dask scheduler answers there; start one with `dask scheduler`, or check the address"
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise SchedulerError(f"{cluster.address}: the scheduler has no workers; start some with `dask worker`")
        yield client
