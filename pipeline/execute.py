"""Dask: the graph of a run, its reduction, its engines and its events; the one owner of dask.

The graph is a `map_blocks` over the grid of blocks, without array arguments: a task reads its own window, leaves what
it knows of its tiles in their tables, and returns sums over them, which one tree adds up.
"""

from __future__ import annotations

import logging
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import dask
import dask.array as da
import distributed
import numpy as np
from distributed.comm import CommClosedError
from numpy.typing import NDArray

from pipeline.config import AddressCluster, Cluster, LocalCluster, ThreadsCluster
from pipeline.confusion import SCORE_PARTS, Macro, Undefined, mean_scores, sum_scores
from pipeline.errors import DamageError, SchedulerError
from pipeline.geometry import Box, Triple
from pipeline.keys import stale_confusions, stale_pyramids, unfinished
from pipeline.painting import Painting
from pipeline.plan import Plan, available_cpus
from pipeline.recipe import Recipe
from pipeline.record import Column, recorded
from pipeline.segment import Job, build_confusion, build_pyramid, run_block
from pipeline.store import ShardedArray
from pipeline.survey import slice_counts
from pipeline.tables import Grids, RunTables
from pipeline.volume import Volume

Client: TypeAlias = distributed.Client
Sums: TypeAlias = NDArray[np.int64]
Item = TypeVar("Item")
Result = TypeVar("Result")

SPLIT_EVERY = 8  # children of each node of the reduction tree
CONNECT_S = 10


@dataclass(frozen=True, slots=True)
class Started:
    """An engine is ready; ``dashboard`` is its web page, if it has one."""

    engine: str
    dashboard: str | None


@dataclass(frozen=True, slots=True)
class BlockDone:
    """A block was done, reused, or has failed; counts are those of its tiles."""

    voxels: int
    counts: tuple[int, int, int, int]
    reused: bool
    failed: bool


@dataclass(frozen=True, slots=True)
class BlocksSettled:
    """So many blocks need no work, of which some were done already; counts are those of their tiles."""

    count: int
    reused: int
    counts: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class JobsStarted:
    """So many jobs, or blocks of a run, are to be done; ``what`` they do, in a word."""

    count: int
    what: str = ""


@dataclass(frozen=True, slots=True)
class JobDone:
    """One of them is done."""


Event = Started | BlockDone | BlocksSettled | JobsStarted | JobDone
Observer = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Observe nothing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Sums over the tiles of a run.

    Attributes
    ----------
    totals : ndarray
        int64 (len(Column),).
    macro : Macro or None
        Mean scores over the annotated tiles, and how many those are.
    """

    totals: NDArray[np.int64]
    macro: Macro | None

    @classmethod
    def of(cls, sums: Sums, undefined: Undefined) -> Outcome:
        """Take sums apart, whose scores were made by this rule."""
        return cls(sums[: len(Column)], mean_scores(sums[len(Column) :], undefined))


def execute(plan: Plan, job: Job, tables: RunTables, engine: Engine, observer: Observer, again: bool = True) -> Outcome:
    """Run the blocks of a plan that are not done, and sum what they return with what the others have recorded.

    Masks that cannot be read back for their levels are made ``again``, once.

    Raises
    ------
    StorageError
        If results cannot be written.
    SchedulerError
        If the scheduler or its workers are lost.
    """
    observer(JobsStarted(plan.blocks.size))
    slices, sums, settled = _look(plan, tables)
    if settled.count:
        observer(settled)
    if slices:
        with engine.listen(observer) as notify:
            sums = sums + engine.compute(build_graph(plan, job, notify, slices))[0]
    again_of = {build_pyramid: _stale(plan, tables), build_confusion: _stale_confusions(plan, tables)}
    lost = engine.compute(*[dask.delayed(build)(job, z) for build, stale in again_of.items() for z in stale])
    if any(lost):  # a mask that was done is damaged, and its blocks are disowned: they are made again, now
        if not again:
            raise DamageError("; ".join(filter(None, lost)))
        return execute(plan, job, tables, engine, observer, again=False)
    return Outcome.of(sums, plan.undefined)


def pooled_counts(plan: Plan, engine: Engine, observer: Observer) -> NDArray[np.int64]:
    """Count the filtered voxels of the whole volume by grey level, int64 (levels,): a task a slice, and a tree.

    Raises
    ------
    DamageError
        If a slice cannot be read.
    """
    volume = Volume(plan.volume)
    present = [int(z) for z in np.flatnonzero(volume.slices.present())]
    levels = 1 << 8 * volume.dtype.itemsize
    if not present:
        return np.zeros(levels, np.int64)
    observer(JobsStarted(len(present), "pooling"))
    with engine.listen(observer) as notify:
        counts = da.map_blocks(
            _PoolTask(plan.volume, plan.recipe, plan.block, _ranges(present), notify),
            chunks=((1,) * len(present), (levels,)),
            dtype=np.int64,
            meta=np.empty((0, 0), np.int64),
            name=f"pool-{uuid.uuid4().hex}",
        )
        total: NDArray[np.int64] = engine.compute(counts.sum(axis=0, split_every=SPLIT_EVERY))[0]
    return total


def finished(plan: Plan, tables: RunTables, observer: Observer) -> Outcome | None:
    """Outcome of a plan of which nothing is left to do, from the tables; None if there is."""
    if _stale(plan, tables) or _stale_confusions(plan, tables):
        return None
    slices, sums, settled = _look(plan, tables)
    if slices:
        return None
    observer(JobsStarted(plan.blocks.size))
    observer(settled)
    return Outcome.of(sums, plan.undefined)


def _look(plan: Plan, tables: RunTables) -> tuple[list[int], Sums, BlocksSettled]:
    """Slices that have something to do, and the sums of the others."""
    volume = Volume(plan.volume)
    worked = plan.grids.tiles.cover(plan.grids.blocks.voxels(plan.blocks))
    slices = unfinished(volume, tables, plan.truth, worked, plan.confusion)
    record = recorded(volume, tables, plan.truth, plan.grids.tiles.cover(plan.region), slices)
    sums = _sums(record, plan.undefined)
    a_slice = plan.blocks.shape[1] * plan.blocks.shape[2]
    reused = int(record[..., Column.REUSED].any(axis=(1, 2)).sum())
    settled = BlocksSettled((worked.shape[0] - len(slices)) * a_slice, reused * a_slice, _counts(sums))
    return slices, sums, settled


def _stale(plan: Plan, tables: RunTables) -> list[int]:
    """Slices whose levels do not show their mask: blocks that are whole slices have written them."""
    if plan.block[1:] == plan.grids.tiles.shape[1:]:
        return []
    return stale_pyramids(tables, range(plan.region.start[0], plan.region.stop[0]))


def _stale_confusions(plan: Plan, tables: RunTables) -> list[int]:
    """The same of what shows the confusion, where that is kept."""
    painting = Painting.of(Volume(plan.volume), tables)
    if painting is None or plan.block[1:] == plan.grids.tiles.shape[1:]:
        return []
    return stale_confusions(painting.tables, range(plan.region.start[0], plan.region.stop[0]))


def build_graph(plan: Plan, job: Job, notify: Observer, slices: Sequence[int]) -> da.Array:
    """Return the sums of some slices as a Dask array, int64 (len(Column) + SCORE_PARTS,): a task a block, and a tree.

    Dask fuses a block and its first sum into one task.
    """
    blocks = plan.blocks
    sums = da.map_blocks(
        _Task(
            job, plan.grids, plan.grids.tiles.cover(plan.region), plan.undefined, _ranges(slices), blocks.start, notify
        ),
        chunks=((1,) * len(slices), (1,) * blocks.shape[1], (1,) * blocks.shape[2], (len(Column) + SCORE_PARTS,)),
        dtype=np.int64,
        meta=np.empty((0, 0, 0, 0), np.int64),  # without it, map_blocks calls the function while the graph is built
        name=f"segment-{job.token}",
    )
    axes = (0, 1, 2)
    return sums.sum(axis=axes, split_every=dict.fromkeys(axes, SPLIT_EVERY))


class Engine:
    """Where tasks run: threads of this process, or the workers of a Dask client."""

    def __init__(self, threads: int, client: Client | None = None, close: Callable[[], None] = lambda: None) -> None:
        self._client = client
        self._threads = threads
        self.close = close  # ends the workers that were started for it; nothing writes any more afterwards

    def compute(self, *collections: Any) -> tuple[Any, ...]:
        """Compute Dask collections together."""
        if self._client is not None:
            return _compute_on_workers(self._client, collections)
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
            own = stack.enter_context(_local_client(cluster))
            observer(Started("local", own.dashboard_link))
            yield Engine(cluster.threads, own, stack.close)
        else:
            own = stack.enter_context(_remote_client(cluster, connect_s))
            observer(Started(cluster.address, own.dashboard_link))
            yield Engine(1, own, stack.close)


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


def lazy_array(array: ShardedArray) -> da.Array:
    """Return a stored image or label as a lazy Dask array, one chunk for each shard, read when it is computed."""
    chunks = tuple(
        tuple(min(step, length - start) for start in range(0, length, step))
        for length, step in zip(array.shape, array.shards.step, strict=True)
    )
    return da.map_blocks(
        _read_shard,
        path=array.path,
        chunks=chunks,
        dtype=array.dtype,
        meta=np.empty((0, 0, 0), array.dtype),
        name=f"kesm-{uuid.uuid4().hex}",  # the same file may hold other voxels after the next run
    )


class _Topic:
    """Sends events through the scheduler to whoever listens to a topic."""

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def __call__(self, event: Event) -> None:
        # distributed adds its own keys to the message, so that ours go below one of them
        distributed.get_worker().log_event(self._topic, {"block": asdict(event)})


@dataclass(frozen=True, slots=True)
class _PoolTask:
    """The task that counts a slice."""

    volume: Path
    recipe: Recipe
    block: Triple
    slices: tuple[range, ...]
    notify: Observer

    def __call__(self, block_id: tuple[int, ...]) -> NDArray[np.int64]:
        """Return the counts of the slice, with an axis of length 1."""
        counts = slice_counts(Volume(self.volume), self.recipe, _nth(self.slices, block_id[0]), self.block)
        self.notify(JobDone())
        return counts[None]


@dataclass(frozen=True, slots=True)
class _Task:
    """The task of a block: all that it must know but for its place, and the same for all."""

    job: Job
    grids: Grids
    region: Box  # tiles that are scored
    undefined: Undefined
    slices: tuple[range, ...]
    first: Triple
    notify: Observer

    def __call__(self, block_id: tuple[int, ...]) -> NDArray[np.int64]:
        """Do the block; return the sums over those of its tiles that are scored, with three axes of length 1."""
        _, row, column = self.first
        index = _nth(self.slices, block_id[0]), row + block_id[1], column + block_id[2]
        record = run_block(self.job, index)
        sums = record.sum(axis=(0, 1, 2))
        self.notify(
            BlockDone(
                voxels=int(sums[Column.VOXELS]),
                counts=_counts(sums),
                reused=bool(sums[Column.REUSED] > 0),
                failed=bool(sums[Column.FAILED] > 0),
            )
        )
        tiles = self.grids.block_tiles(index)
        scored = record[(tiles & self.region).relative_to(tiles.start).slices]
        return _sums(scored, self.undefined)[None, None, None]


def _sums(record: NDArray[np.int64], undefined: Undefined) -> NDArray[np.int64]:
    """Columns, and parts of the scores, of tiles (z, y, x), summed."""
    parts = sum_scores(record[..., : Column.VOXELS], undefined)
    sums: NDArray[np.int64] = np.concatenate([record.sum(axis=(0, 1, 2)), parts])
    return sums


def _counts(sums: NDArray[np.int64]) -> tuple[int, int, int, int]:
    return int(sums[Column.TP]), int(sums[Column.FP]), int(sums[Column.FN]), int(sums[Column.TN])


def _ranges(slices: Sequence[int]) -> tuple[range, ...]:
    """Ascending numbers as ranges without a gap: what every task carries must not grow with their number."""
    starts = [position for position, z in enumerate(slices) if position == 0 or slices[position - 1] != z - 1]
    return tuple(
        range(slices[start], slices[stop - 1] + 1)
        for start, stop in zip(starts, [*starts[1:], len(slices)], strict=True)
    )


def _nth(ranges: tuple[range, ...], position: int) -> int:
    for span in ranges:
        if position < len(span):
            return span[position]
        position -= len(span)
    raise IndexError(position)


def _read_shard(path: Any, block_id: Triple) -> NDArray[Any]:
    array = ShardedArray(path)
    return array.read(array.shards.box(block_id))


def _compute_on_workers(client: Client, collections: Sequence[Any]) -> tuple[Any, ...]:
    futures = client.compute(list(collections))
    try:
        return tuple(client.gather(futures))
    except (distributed.KilledWorker, distributed.CancelledError, CommClosedError, TimeoutError) as error:
        _silence()
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
        if not isinstance(error, Exception):  # Ctrl-C: what they say of tasks that end with the cluster is no news
            _silence()
        raise
    finally:
        client.cancel(futures)


def _silence() -> None:
    for name in ("asyncio", "distributed"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


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
