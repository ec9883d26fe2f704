"""Everything of a volume read back: image and truths against their ledgers, masks and tables against their runs.

What a run has made can be made again, and is taken back: its blocks count as failed until the next run has done them.
An image or truth cannot, and is only named.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ParamSpec, TypeVar

from pipeline.checks.audit import MASK_VALUES, TRUTH_VALUES, Run, RunSlice
from pipeline.checks.readback import Checked, Difference, Finding, Part, Record, RecordSlice
from pipeline.errors import ExistsError, PipelineError
from pipeline.geometry import Box, Triple
from pipeline.machine import fitting_threads, gb
from pipeline.runner import Runner
from pipeline.segmentation.budget import CODEC_SHARDS
from pipeline.storage.store import ABSENT, SHARD
from pipeline.storage.tables import run_lock, run_names
from pipeline.storage.volume import Volume

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Verified:
    """What was read back, and what differed.

    Attributes
    ----------
    truths, runs : int
        How many the volume has.
    findings : tuple of Finding
        By slice; in each first what the storage refuses, then what differs in image, truths and runs.
    marked : dict
        Blocks of each run that count as failed from now on.
    notes : tuple of str
        Why there are others that do not.
    """

    volume: str
    truths: int
    runs: int
    checked: Checked
    findings: tuple[Finding, ...]
    marked: Mapping[str, int]
    notes: tuple[str, ...]
    elapsed_s: float

    def document(self) -> dict[str, Any]:
        """The result as the JSON object of the command line."""
        return {
            "schema": 1,
            "volume": self.volume,
            "checked": asdict(self.checked) | {"truths": self.truths, "runs": self.runs},
            "findings": [finding.document() for finding in self.findings],
            "marked": dict(self.marked),
            "notes": list(self.notes),
            "elapsed_s": self.elapsed_s,
        }

    def lines(self) -> list[str]:
        """The result for a person."""
        again = [
            f"run {name}: {_number(blocks, 'block')} marked as failed; the next run of this name makes them again"
            for name, blocks in self.marked.items()
        ]
        amount = [(self.checked.slices, "slice"), (self.truths, "truth"), (self.runs, "run")]
        what = ", ".join([*(_number(*each) for each in amount), gb(self.checked.bytes)])
        found = _number(len(self.findings), "difference") if self.findings else "all as recorded"
        return [*map(str, self.findings), *again, f"verified {what}: {found}"]


def verify(volume: Volume, runner: Runner, mark: bool = True) -> Verified:
    """Read everything of a volume back, and compare it with what was recorded when it was written.

    Parameters
    ----------
    volume : Volume
    runner : callable
        Calls a function on every slice, several at a time.
    mark : bool
        Whether blocks of runs that differ are taken back, so that the next run makes them again: at the end, or when
        it is interrupted, as far as it has come.

    Raises
    ------
    PipelineError
        If an array or document that tells how to read the others is damaged; all else is a finding.
    """
    begin = time.monotonic()
    specimen = _Specimen(volume)
    marker = _Marker(volume)
    try:
        runner(specimen.look, range(volume.shape[0]))
    except BaseException:  # Ctrl-C, say: what was found so far is no less true
        if mark:
            marker.mark(specimen.runs, specimen.differences())
        raise
    differences = specimen.differences()
    if mark:
        differences = marker.mark(specimen.runs, differences)
    return Verified(
        volume=str(volume.path),
        truths=len(specimen.truths),
        runs=len(specimen.runs),
        checked=sum((look.checked for look in specimen.looks), Checked()),
        findings=(*specimen.missing(), *(difference.finding for difference in differences)),
        marked=marker.marked,
        notes=tuple(marker.notes),
        elapsed_s=round(time.monotonic() - begin, 3),
    )


def slice_bytes(volume: Volume) -> tuple[int, int]:
    """Decoded bytes of one slice with all its labels, and the planned peak memory of looking at it.

    The peak: a shard of the image, of each truth and of a mask, and what their codec holds; level 1 of each, and those
    above one of them.
    """
    itemsize, (_, height, width) = volume.dtype.itemsize, volume.shape
    kinds = [label.kind for label in volume.labels().values()]
    shards = (itemsize * CODEC_SHARDS + kinds.count("truth")) * SHARD[1] * SHARD[2]
    shards += 4 * ("confusion" in kinds) * SHARD[1] * SHARD[2]  # it, what it should be, and what its voxels weigh
    levels = (2 * itemsize + len(kinds)) * height * width // 3
    return (itemsize + len(kinds)) * height * width, shards + levels


def verify_threads(volume: Volume, cpus: int) -> int:
    """Slices to look at at once: one for each CPU, fewer where the memory does not hold them."""
    _, peak = slice_bytes(volume)
    return fitting_threads(cpus, peak)


class _Specimen:
    """A volume as it is open while it is read back, and what was found in it so far."""

    def __init__(self, volume: Volume) -> None:
        self.looks: list[_Look] = []
        self._volume = volume
        labels, names = volume.labels(), run_names(volume)
        self._image = Record(volume, "slices/image", volume.image, volume.slices)
        self.truths = {
            name: Record(volume, f"slices/labels/{name}", *volume.truth(name), TRUTH_VALUES) for name in volume.truths()
        }
        self.runs = [Run(volume, name) for name in names if name in labels]
        self._derived = [
            Record(volume, f"slices/labels/{name}", *volume.derived(name), MASK_VALUES)
            for name, label in labels.items()
            if label.kind == "derived"
        ]
        sources: list[Record | Run] = [self._image, *self.truths.values(), *self.runs, *self._derived]
        for source in sources:
            _ = source.kind.pyramid.levels  # opened now: one that cannot be is no finding of each slice
        self._unlisted = [name for name in names if name not in labels]

    def missing(self) -> list[Finding]:
        """Masks that are gone, and were gone at the start: that of a run which is being created comes last."""
        if not self._unlisted:
            return []
        whole, reason = Box.whole(self._volume.shape), "is missing; the next run of this name makes it again"
        try:
            names = set(self._unlisted) & set(run_names(self._volume)) - self._volume.labels().keys()
        except (PipelineError, OSError) as error:
            return [Finding("labels", None, whole, _refusal(error))]
        return [Finding(f"labels/{name}", None, whole, reason) for name in sorted(names)]

    def differences(self) -> list[Difference]:
        """What was found so far, by slice."""
        looks = sorted(self.looks, key=lambda look: look.z)
        return [difference for look in looks for difference in look.differences]

    def look(self, z: int) -> None:
        """Read one slice of everything, shard by shard."""
        whole = Box.of_slice(z, self._volume.shape)
        look = _Look(z, whole)
        image = look.attempt(self._image.folder, RecordSlice, self._image, z)
        truths = {
            name: truth
            for name, record in self.truths.items()
            if (truth := look.attempt(record.folder, RecordSlice, record, z)) is not None
        }
        runs = [found for run in self.runs if (found := look.attempt(run.folder, self._prepared, run, z, truths))]
        derived = [label for each in self._derived if (label := look.attempt(each.folder, RecordSlice, each, z))]
        for part in self._volume.image.full.shards.parts(whole):
            if image is not None:
                look.attempt(image.folder, image.voxels.read, part, "image")
            traced = {
                name: look.attempt(truth.folder, truth.voxels.read, part, f"truth {name}")
                for name, truth in truths.items()
            }
            for run in runs:
                look.attempt(run.folder, run.read, part, traced)
            for label in derived:
                look.attempt(label.folder, label.voxels.read, part, "mask")
        parts: list[Part | None] = [image, *truths.values(), *runs, *derived]
        for each in filter(None, parts):
            look.finish(each)
        look.checked += Checked(slices=int(image is not None and image.exists))
        self.looks.append(look)

    def _prepared(self, run: Run, z: int, truths: Mapping[str, RecordSlice]) -> RunSlice:
        part = RunSlice(run, z)
        part.prepare(truths)
        return part


class _Look:
    """What was found in one slice.

    What the storage refuses is a finding too: it ends neither the look at the rest of the slice nor that at others.
    """

    def __init__(self, z: int, region: Box) -> None:
        self.z, self.checked = z, Checked()
        self.differences: list[Difference] = []
        self._region = region
        self._refused: set[str] = set()

    def attempt(
        self,
        folder: str,
        step: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result | None:
        """Return what a step of reading one part returns; None where that, or an earlier one of it, is refused."""
        return None if folder in self._refused else self._guarded(folder, step, *arguments, **named)

    def finish(self, part: Part) -> None:
        """Take what was found in a part, also in one that was refused later."""
        self.attempt(part.folder, part.finish)
        self.differences += self._guarded(part.folder, part.differences) or []
        self.checked += part.checked()

    def _guarded(
        self,
        folder: str,
        step: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result | None:
        try:
            return step(*arguments, **named)
        except (PipelineError, OSError) as error:
            if folder not in self._refused:
                self.differences.insert(0, Difference(Finding(folder, None, self._region, _refusal(error)), ABSENT))
            self._refused.add(folder)
        return None


class _Marker:
    """Takes back what runs have made that differs, run by run.

    Attributes
    ----------
    marked : dict
        Blocks of each run that count as failed from now on.
    notes : list of str
        Why there are others that do not.
    """

    def __init__(self, volume: Volume) -> None:
        self.marked: dict[str, int] = {}
        self.notes: list[str] = []
        self._volume = volume

    def mark(self, runs: Sequence[Run], differences: Sequence[Difference]) -> list[Difference]:
        """Take back the blocks of all runs that differ; return what differs still, by slice."""
        kept = [difference for difference in differences if difference.finding.run is None]
        for run in runs:
            kept += self._mark_run(run, [each for each in differences if each.finding.run == run.name])
        return sorted(kept, key=_slice_of)

    def _mark_run(self, run: Run, differences: Sequence[Difference]) -> list[Difference]:
        """Take back the blocks of one run that differ; none of its slices is held while the next is looked at."""
        slices = deque(list(of_slice) for _, of_slice in itertools.groupby(differences, _slice_of))
        if not slices:
            return []
        kept: list[Difference] = []
        try:
            with run_lock(self._volume, run.name):
                now = _reopened(run)
                while slices:
                    kept += self._mark_slice(now, slices[0])
                    slices.popleft()
        except (PipelineError, OSError) as error:  # it is at work, or nothing can be written: then it is only reported
            self.notes.append(f"run {run.name}: what differs is not marked as failed: {error}")
        return [*kept, *itertools.chain.from_iterable(slices)]

    def _mark_slice(self, run: Run, differences: Sequence[Difference]) -> list[Difference]:
        """Take back the blocks of one slice, but for what has been written since it was read."""
        z = _slice_of(differences[0])
        if z >= run.volume.shape[0]:
            return []
        recorded = RunSlice(run, z)
        kept = [each for each in differences if recorded.witness(each.finding.region) == each.witness]
        reasons = defaultdict(list)
        for difference in kept:
            for block in run.tables.grids.blocks.cover(difference.finding.region):
                reasons[block].append(f"{difference.finding.place} {difference.finding.reason}")
        for block, why in reasons.items():
            _take_back(run, block, "; ".join(why))
            self.marked[run.name] = self.marked.get(run.name, 0) + 1
        return kept


def _take_back(run: Run, block: Triple, reason: str) -> None:
    """Call a block failed. Whenever the process is killed, no old record vouches for what is written here."""
    run.tables.take_back(block)
    # The levels are made again too, where not by the block then by who finds that this key is not theirs.
    run.pyramid_key.write((slice(block[0], block[0] + 1),), ABSENT)
    if run.painting is not None:
        run.painting.tables.pyramid_key.write((slice(block[0], block[0] + 1),), ABSENT)
    for name, table in run.arrays.items():
        cells = run.cells(name, block)
        values, damaged = table.survey(cells)
        if damaged:  # else whoever reads all of a slice fails too
            table.write(cells, values)
    run.tables.disown(block, reason)


def _reopened(run: Run) -> Run:
    """Open a run anew, whose lock is held now.

    Raises
    ------
    ExistsError
        If it is not the run that was read any more.
    """
    now = Run(Volume(run.volume.path), run.name)
    if (now.tables.recipe, now.tables.block, now.truths) != (run.tables.recipe, run.tables.block, run.truths):
        raise ExistsError("another process has changed the run meanwhile; verify again")
    return now


def _refusal(error: Exception) -> str:
    return str(error) if isinstance(error, PipelineError) else f"may not be read ({error})"


def _slice_of(difference: Difference) -> int:
    return difference.finding.region.start[0]


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
