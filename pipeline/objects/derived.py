"""Labels that are derived from the mask of a run: without small objects and small holes, found in three dimensions.

A mask that is cleaned keeps its own label, and the run its counts. What is derived has a ledger, as the image has: what
it was made from, by whom and with what result stands in its metadata. It is listed when all of it is written; killed
before, nothing is there, and the next cleaning sweeps what is left.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DamageError, ExistsError, MemoryLimitError, MissingInputError
from pipeline.geometry import Box
from pipeline.intake.ingest import changing
from pipeline.kernels.components import CONNECTIVITIES
from pipeline.machine import allowed_bytes, gb
from pipeline.objects.sieve import SPAN_BYTES, Sieve, Sifter, Verdict
from pipeline.runner import Runner
from pipeline.segmentation.budget import CODEC_SHARDS, PROCESS_BYTES
from pipeline.settings.model import check_name
from pipeline.storage.ledger import Ledger, stretches
from pipeline.storage.lock import now, whoami
from pipeline.storage.pyramid import Pyramid
from pipeline.storage.store import ABSENT, SHARD, digest_bytes, read_document
from pipeline.storage.tables import RunTables, Status, has_documents, run_lock, way_on
from pipeline.storage.volume import Volume

ALGORITHM = 1  # raised only when other voxels are kept for the same mask and settings
MOST_SPANS = 2**24  # of a slab: 1400 slices of one shard with the real tile's texture, and more makes nothing faster


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What is cleaned, and how.

    Attributes
    ----------
    run, label : str
        Whose mask, and the name of what is derived from it.
    min_size : int
        Voxels of the smallest object that stays.
    max_hole : int or None
        Voxels of the largest hole that is filled; None: holes stay as they are.
    connectivity, hole_connectivity : int
        6, 18 or 26 neighbours of a voxel of an object, and of a hole.
    """

    run: str
    label: str
    min_size: int
    max_hole: int | None = None
    connectivity: int = 26
    hole_connectivity: int = 6

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises
        ------
        ConfigError
        """
        check_name(self.label, "--out")
        if self.label == self.run:
            raise ConfigError(f"--out: got {self.label!r}, which is the mask that is cleaned; choose another name")
        for option in ("connectivity", "hole_connectivity"):
            if getattr(self, option) not in CONNECTIVITIES:
                words = f"--{option.replace('_', '-')}: got {getattr(self, option)}"
                raise ConfigError(f"{words}, expected 6, 18 or 26 neighbours of a voxel")
        for option in ("min_size", "max_hole"):
            if (getattr(self, option) or 1) < 1:
                raise ConfigError(
                    f"--{option.replace('_', '-')}: got {getattr(self, option)}, expected at least 1 voxel"
                )

    @property
    def sieves(self) -> list[Sieve]:
        """What is sifted, one after the other: objects, then the background of what is left of them."""
        objects = Sieve(self.min_size, self.connectivity)
        if self.max_hole is None:
            return [objects]
        return [objects, Sieve(self.max_hole + 1, self.hole_connectivity, background=True)]


@dataclass(frozen=True, slots=True)
class Room:
    """What may be held: spans of a slab in each thread, and bytes of what lies in several slabs."""

    spans: int
    kept_bytes: int


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was made.

    Attributes
    ----------
    slices : mapping
        Numbers of slices: ``cleaned``, ``absent`` from the volume, and ``left_out``, which the run has not done whole.
    vessel_voxels : mapping
        ``before`` and ``after``.
    objects, holes : mapping
        How many were ``found``, how many were ``removed`` or ``filled``, and ``removed_voxels`` or ``filled_voxels``;
        None where holes were not looked for.
    reused : bool
        Whether the label was there, made from the same.
    """

    volume: str
    cleaning: Cleaning
    slices: Mapping[str, int]
    vessel_voxels: Mapping[str, int]
    objects: Mapping[str, int]
    holes: Mapping[str, int] | None
    reused: bool
    elapsed_s: float

    def document(self) -> dict[str, Any]:
        """The result as the JSON object of the command line."""
        found = asdict(self)
        return {"schema": 1, "volume": found.pop("volume"), **found.pop("cleaning"), **found}

    def lines(self) -> list[str]:
        """The result for a person."""
        asked, slices = self.cleaning, self.slices
        others = [
            f", {slices[key]:,} {word}" for key, word in (("absent", "absent"), ("left_out", "left out")) if slices[key]
        ]
        lines = [
            f"{asked.label}: {slices['cleaned']:,} slices of {asked.run} cleaned{''.join(others)}"
            f"{', as they were already' if self.reused else ''}",
            f"objects: {self.objects['found']:,} found, {self.objects['removed']:,} with fewer than {asked.min_size:,} "
            f"voxels removed ({self.objects['removed_voxels']:,} voxels)",
        ]
        if self.holes is not None:
            lines.append(
                f"holes: {self.holes['found']:,} found, {self.holes['filled']:,} with at most {asked.max_hole:,} "
                f"voxels filled ({self.holes['filled_voxels']:,} voxels)"
            )
        before, after = self.vessel_voxels["before"], self.vessel_voxels["after"]
        return [*lines, f"vessel voxels: {before:,} before, {after:,} after"]


def slab_room(volume: Volume, threads: int, memory: int | None = None) -> Room:
    """Share out the memory: half of it, at most, for slabs in work, the rest for what lies in several of them.

    Parameters
    ----------
    volume : Volume
    threads : int
        Slabs in work at the same time.
    memory : int, optional
        Bytes of the whole process; default: most of what is free.

    Raises
    ------
    MemoryLimitError
        If the slabs of one slice, as noisy as can be, do not fit.
    """
    limit = allowed_bytes(memory)
    _, height, width = volume.shape
    rows, row = min(height, SHARD[1]), min(width, SHARD[2])
    most = rows * ((row + 1) // 2)
    # Spans of a slice as they are found and copied, and shards: then nothing but the levels of a slice.
    fixed = CODEC_SHARDS * SHARD[1] * SHARD[2] + max(12 * most + 2 * rows * row, height * width // 3)
    least = PROCESS_BYTES + 2 * threads * (fixed + most * SPAN_BYTES)
    if least > limit:
        raise MemoryLimitError(
            f"memory: {gb(limit)} are allowed, {gb(least)} are needed for {threads} slabs of one "
            "slice of a shard; allow more with --memory, or use fewer --threads"
        )
    spans = min(((limit - PROCESS_BYTES) // 2 // threads - fixed) // SPAN_BYTES, MOST_SPANS, volume.shape[0] * most)
    return Room(spans, limit - PROCESS_BYTES - threads * (fixed + spans * SPAN_BYTES))


def clean(
    path: Path, cleaning: Cleaning, runner: Runner, room: Room, partial: bool = False, replace: bool = False
) -> Cleaned:
    """Derive a label from the mask of a run, which keeps its own: first small objects go, then small holes.

    Parameters
    ----------
    path : Path
        Of the volume.
    cleaning : Cleaning
    runner : callable
        Calls a function on every part of the volume, several at a time.
    room : Room
    partial : bool
        Whether slices that the run has not done whole are left out, as gaps; else they are refused.
    replace : bool
        Whether a label of this name that was derived before is made again.

    Raises
    ------
    ConfigError, MissingInputError
        If there is no such mask, it is not done, or the name is that of something else.
    ExistsError
        If the label was derived from something else.
    DamageError
        If the mask cannot be read; nothing is changed.
    MemoryLimitError
        If too much lies in several slabs.
    LockedError
        If another process works on the run or the volume.
    """
    clock, started = time.monotonic(), now()
    cleaning.check()
    with changing(path, "clean") as (volume, staging), run_lock(volume, cleaning.run):
        mask = _Mask(volume, cleaning.run, partial)
        inputs = {"algorithm": ALGORITHM, "mask": mask.fingerprint, **asdict(cleaning)}
        stored = _stored(volume, cleaning.label)
        if stored is not None and not replace:
            return _reuse(volume, cleaning, stored, inputs, time.monotonic() - clock)
        sifter = Sifter(mask.array.shards, mask.known, mask.read, runner, room.spans, room.kept_bytes)
        verdicts: list[Verdict] = []
        for sieve in cleaning.sieves:
            verdicts.append(sifter.survey(sieve, verdicts, "holes" if sieve.background else "objects"))
        with _target(volume, cleaning) as (label, ledger):
            digests = _write(label, sifter, verdicts, staging)
            if label.levels[1:]:
                runner(lambda z: label.rebuild_levels(z, digests[z], staging), mask.slices, "levels")
            for z in mask.slices:
                ledger.record(z, digests[z], cleaning.run, 0)
            cleaned = Cleaned(
                str(volume.path), cleaning, mask.counts, *_counts(verdicts), reused=False,
                elapsed_s=round(time.monotonic() - clock, 3),
            )  # fmt: skip
            signature = {"started": started, "ended": now(), **whoami(), "command": sys.argv}
            volume.sign_mask(cleaning.label, signature | {"inputs": inputs, "result": cleaned.document()})
            volume.publish_label(cleaning.label)
    return cleaned


class _Mask:
    """The mask of a run, as far as it is done.

    Attributes
    ----------
    array : ShardedArray
    known : ndarray
        bool (z,): slices that are there and done whole.
    digests : ndarray
        uint64 (z, y, x) of the shard grid: what was recorded of them; 0 of the others.
    counts : dict
        Numbers of slices.
    """

    def __init__(self, volume: Volume, name: str, partial: bool) -> None:
        tables = RunTables(volume, name)
        self.array = volume.label(name).full
        present = volume.slices.present()
        self.known = present & (tables.status.read() == Status.DONE).all(axis=(1, 2))
        missing = np.flatnonzero(present & ~self.known).tolist()
        if missing and not partial:
            raise MissingInputError(
                f"{volume.path}: run {name!r} has not done slices {stretches(missing)} whole; finish it: "
                f"{way_on(volume.path, name)}, or leave them out, as gaps, with --partial"
            )
        if not self.known.any():
            raise MissingInputError(
                f"{volume.path}: run {name!r} has no slice that is done; finish it: {way_on(volume.path, name)}"
            )
        self.digests = tables.shard_digest.read()
        self.digests[~self.known] = ABSENT
        lost = np.flatnonzero((self.digests[self.known] == ABSENT).any(axis=(1, 2)))
        if lost.size:
            z = int(np.flatnonzero(self.known)[lost[0]])
            raise DamageError(
                f"{tables.shard_digest.path}: the digests of slice {z} are missing; do run {name!r} again"
            )
        self.counts = {
            "cleaned": int(self.known.sum()), "absent": int((~present).sum()), "left_out": len(missing)
        }  # fmt: skip

    @property
    def slices(self) -> list[int]:
        """Those that are known."""
        found: list[int] = np.flatnonzero(self.known).tolist()
        return found

    @property
    def fingerprint(self) -> str:
        """Digest of the digests, 16 hexadecimal digits."""
        return f"{digest_bytes(self.digests.tobytes()):016x}"

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Read a shard, which must be what was recorded."""
        return np.asarray(self.array.read_checked(box, self.digests[box.start[0]])[0])


def _stored(volume: Volume, name: str) -> dict[str, Any] | None:
    """How the label of this name was derived; None where there is none."""
    known = volume.labels().get(name)
    if (known is not None and known.kind != "derived") or (known is None and has_documents(volume, name)):
        raise ConfigError(f"--out: {name!r} is a label or run of {volume.path} already; choose another name")
    if known is None:
        return None
    document = read_document(volume.path / "labels" / name) or {}
    provenance: dict[str, Any] = document.get("kesm", {}).get("provenance", {})
    return provenance


def _reuse(
    volume: Volume, cleaning: Cleaning, stored: Mapping[str, Any], inputs: Mapping[str, Any], elapsed_s: float
) -> Cleaned:
    """Answer from what is there, if it was derived from the same."""
    before = stored.get("inputs", {})
    changed = [key for key, value in inputs.items() if before.get(key) != value]
    if changed:
        differs = ", ".join(f"{key} {before.get(key)} -> {inputs[key]}" for key in changed)
        raise ExistsError(
            f"{volume.path}: label {cleaning.label!r} was derived from something else ({differs}); choose another "
            "--out, or make it again with --replace"
        )
    found = stored["result"]
    kept = {key: found[key] for key in ("slices", "vessel_voxels", "objects", "holes")}
    return Cleaned(str(volume.path), cleaning, **kept, reused=True, elapsed_s=round(elapsed_s, 3))


@contextmanager
def _target(volume: Volume, cleaning: Cleaning) -> Iterator[tuple[Pyramid, Ledger]]:
    """Make an empty label in place of an older one; it is removed if it cannot be finished."""
    name = cleaning.label
    if name in volume.labels():
        volume.withdraw_label(name)
    volume.remove_truth(name)  # that one, or one of a process that died here
    try:
        yield volume.create_derived(name, cleaning.run)
    except BaseException:
        volume.remove_truth(name)
        raise


def _write(label: Pyramid, sifter: Sifter, verdicts: Sequence[Verdict], staging: Path) -> NDArray[np.uint64]:
    """Write level 0, and return the digests of its shards, (z, y, x) of the shard grid."""
    digests = np.zeros(label.full.shards.cells, np.uint64)

    def write(box: Box, plane: NDArray[np.uint8]) -> None:
        digests[label.full.shards.cover(box).slices] = label.full.write(box, plane[None], staging)

    sifter.write(verdicts, write, "writing")
    return digests


def _counts(
    verdicts: Sequence[Verdict],
) -> tuple[dict[str, int], dict[str, int], dict[str, int] | None]:
    """Voxels of vessels, objects and holes."""
    objects, *rest = verdicts
    after = objects.voxels - objects.dropped_voxels + sum(holes.dropped_voxels for holes in rest)
    removed = {"found": objects.found, "removed": objects.dropped, "removed_voxels": objects.dropped_voxels}
    filled = [{"found": holes.found, "filled": holes.dropped, "filled_voxels": holes.dropped_voxels} for holes in rest]
    return {"before": objects.voxels, "after": after}, removed, filled[0] if filled else None
