"""What a worker must know of a run, and the volume as it has it open."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.settings.recipe import Recipe
from pipeline.storage.ledger import Ledger
from pipeline.storage.painting import Painting
from pipeline.storage.pyramid import Pyramid
from pipeline.storage.tables import RunTables, TruthTables
from pipeline.storage.volume import Volume, beside


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker must know of a run; small, and the same for all its blocks.

    ``token`` is new for each attempt, so that a worker never uses handles on a volume that has grown since.
    """

    volume: Path
    name: str
    recipe: Recipe
    truth: str | None
    token: str
    confusion: bool = False  # whether what the truth says of the mask is shown

    @property
    def staging(self) -> Path:
        """Folder where this attempt's shards are written before they are renamed.

        It is also its licence: the next attempt removes it, and who has lost it records nothing any more. (Tasks of a
        cluster go on for a while after their client has gone.)
        """
        return beside(self.volume, "staging") / f"run-{self.name}" / self.token


@dataclass(frozen=True, slots=True)
class Handles:
    """A volume as one process has it open for one attempt."""

    volume: Volume
    mask: Pyramid
    tables: RunTables
    truth: tuple[Pyramid, Ledger] | None
    truth_tables: TruthTables | None
    painting: Painting | None


@lru_cache(maxsize=4)
def open_job(job: Job) -> Handles:
    """Open what a job is about; once in a process."""
    volume = Volume(job.volume)
    tables = RunTables(volume, job.name)
    truth_tables = tables.truth(job.truth) if job.truth else None
    if truth_tables is not None:
        _ = truth_tables.all  # opened now: one that is damaged must not be met when something was taken back already
    return Handles(
        volume=volume,
        mask=volume.label(job.name),
        tables=tables,
        truth=volume.truth(job.truth) if job.truth else None,
        truth_tables=truth_tables,
        painting=Painting.of(volume, tables),
    )
