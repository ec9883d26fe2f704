"""Everything of a volume read back: image and truths against their ledgers, masks and tables against their runs.

What a run has made can be made again, and is taken back: its blocks count as failed until the next run has done them.
An image or truth cannot, and is only named.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from pipeline.audit import TRUTH_VALUES, Checked, Difference, Part, Record, RecordSlice, Run, RunSlice
from pipeline.errors import PipelineError
from pipeline.geometry import Box
from pipeline.ingest import Runner
from pipeline.plan import CODEC_SHARDS, DEFAULT_SHARE
from pipeline.readback import Finding, strips
from pipeline.store import SHARD
from pipeline.tables import run_names
from pipeline.volume import Volume


@dataclass(frozen=True, slots=True)
class Verified:
    """What was read back, and what differed.

    Attributes
    ----------
    truths, runs : int
        How many the volume has.
    findings : tuple of Finding
        By slice; in each the image first, then truths, then runs.
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
        what = ", ".join([*(_number(*each) for each in amount), f"{self.checked.bytes / 1e9:.2f} GB"])
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
        Whether blocks of runs that differ are taken back, so that the next run makes them again.

    Raises
    ------
    PipelineError
        If an array or document that tells how to read the others is damaged; all else is a finding.
    """
    begin = time.monotonic()
    specimen = _Specimen(volume)
    looks = runner(specimen.look, range(volume.shape[0]))
    differences = [difference for look in looks for difference in look.differences]
    marked: dict[str, int] = {}
    notes = []
    for run in specimen.runs if mark else ():
        of_run = [difference for difference in differences if difference.source is run]
        try:
            written, blocks = run.take_back(of_run) if of_run else ([], 0)
            differences = [difference for difference in differences if difference not in written]
            marked |= {run.name: blocks} if blocks else {}
        except PipelineError as error:  # it is at work, or nothing can be written: then it is only reported
            notes.append(f"run {run.name}: what differs is not marked as failed: {error}")
    return Verified(
        volume=str(volume.path),
        truths=len(specimen.truths),
        runs=len(specimen.runs),
        checked=sum((look.checked for look in looks), Checked()),
        findings=(*specimen.missing(), *(difference.finding for difference in differences)),
        marked=marked,
        notes=tuple(notes),
        elapsed_s=round(time.monotonic() - begin, 3),
    )


def slice_bytes(volume: Volume) -> tuple[int, int]:
    """Decoded bytes of one slice with all its labels, and the planned peak memory of looking at it.

    The peak: a row of shards of the image, of each truth and of a mask; level 1 of each, and those above one of them;
    the shards that the codec holds.
    """
    itemsize, (_, height, width) = volume.dtype.itemsize, volume.shape
    kinds = [label.kind for label in volume.labels().values()]
    rows = (itemsize + kinds.count("truth") + 1) * min(height, SHARD[1]) * width
    levels = (2 * itemsize + len(kinds)) * height * width // 3
    return (itemsize + len(kinds)) * height * width, rows + levels + CODEC_SHARDS * SHARD[1] * SHARD[2] * itemsize


def verify_threads(volume: Volume, cpus: int) -> int:
    """Slices to look at at once: one for each CPU, fewer where the memory does not hold them."""
    _, peak = slice_bytes(volume)
    return max(1, min(cpus, int(psutil.virtual_memory().available * DEFAULT_SHARE) // peak))


class _Specimen:
    """A volume as it is open while it is read back."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        labels, names = volume.labels(), run_names(volume)
        self._image = Record(volume, "slices/image", volume.image, volume.slices)
        self.truths = {
            name: Record(volume, f"slices/labels/{name}", *volume.truth(name), TRUTH_VALUES)
            for name, label in labels.items()
            if label.kind == "truth"
        }
        self.runs = [Run(volume, name) for name in names if name in labels]
        self._unlisted = [name for name in names if name not in labels]

    def missing(self) -> list[Finding]:
        """Masks that are gone, and were gone at the start: that of a run which is being created comes last."""
        names = set(self._unlisted) & set(run_names(self._volume)) - self._volume.labels().keys()
        whole, reason = Box.whole(self._volume.shape), "is missing; the next run of this name makes it again"
        return [Finding(f"labels/{name}", None, whole, reason) for name in sorted(names)]

    def look(self, z: int) -> _Look:
        """Read one slice of everything, strip by strip."""
        image = RecordSlice(self._image, z)
        truths = {name: RecordSlice(record, z) for name, record in self.truths.items()}
        runs = [RunSlice(run, z) for run in self.runs]
        for run in runs:
            run.prepare(truths)
        for strip in strips(z, *self._volume.shape[1:]):
            image.voxels.read(strip, "image")
            traced = {name: truth.voxels.read(strip, f"truth {name}") for name, truth in truths.items()}
            for run in runs:
                run.read(strip, traced)
        parts: list[Part] = [image, *truths.values(), *runs]
        return _Look(
            [difference for part in parts for difference in part.differences()],
            sum((part.checked() for part in parts), Checked(slices=int(image.exists))),
        )


@dataclass(frozen=True, slots=True)
class _Look:
    """What was found in one slice."""

    differences: list[Difference]
    checked: Checked


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
