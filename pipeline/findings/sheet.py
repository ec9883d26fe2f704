"""What a run found of each tile as one file, for people's own analysis."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.findings.census import census, choose_run
from pipeline.findings.columns import COLUMNS, rows, write_csv
from pipeline.findings.parquet import check_parquet, write_parquet
from pipeline.geometry import Box
from pipeline.kernels.confusion import Undefined
from pipeline.printable import printable
from pipeline.storage.draft import check_place, draft_file
from pipeline.storage.volume import Volume

SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Topic:
    """What a table is of.

    Attributes
    ----------
    name : str or None
        The run; default: that which was worked on last.
    truth : str or None
        Default: the only one that the run was compared with.
    region : Box or None
        Voxels; default: all.
    undefined : str
        What a score is where it is 0 / 0; see `kernels.confusion.scores`.
    """

    name: str | None = None
    truth: str | None = None
    region: Box | None = None
    undefined: Undefined = "article"


@dataclass(frozen=True, slots=True)
class Sheet:
    """A file that was written.

    Attributes
    ----------
    volume, name : str
        The run.
    truth : str or None
    region : str or None
    undefined : str
        Rule for scores that are 0 / 0.
    out : str
    rows, done : int
        Tiles, and those that are done.
    columns : tuple of str
    failures : tuple
        Voxels and reason of each part of the run's tables that cannot be read.
    """

    volume: str
    name: str
    truth: str | None
    region: str | None
    undefined: str
    out: str
    rows: int
    done: int
    columns: tuple[str, ...]
    failures: tuple[dict[str, str], ...]

    def document(self) -> dict[str, Any]:
        """The JSON object of the command line."""
        return {"schema": 1, **asdict(self)}

    def __str__(self) -> str:
        truth = "no truth" if self.truth is None else f"truth {self.truth}"
        return f"{self.out}: {self.rows:,} tiles of run {self.name}, {truth}, {self.done:,} done"

    def gaps(self) -> list[str]:
        """Lines about what could not be read."""
        return [f"not read: {failure['region']}: {failure['reason']}" for failure in self.failures]


def check_sheet(out: Path, replace: bool) -> None:
    """Refuse a file that cannot be written, before anything has cost time.

    Raises
    ------
    ConfigError
        If its ending is none of ours, or Parquet is not installed.
    ExistsError, MissingInputError
        As `check_place`.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out: got {out}, expected a file that ends in {' or '.join(SUFFIXES)}")
    if out.suffix.lower() == ".parquet":
        check_parquet()
    check_place(out, replace)


def write_sheet(volume: Volume, topic: Topic, out: Path, replace: bool = False) -> Sheet:
    """Write one row for each tile that a region touches, or for all: CSV or Parquet, by the ending of the file.

    Parameters
    ----------
    volume : Volume
    topic : Topic
    out : Path
    replace : bool
        Whether a file that is there is overwritten.

    Raises
    ------
    ConfigError, ExistsError, MissingInputError
        As `check_sheet` and `findings.census.census`.
    StorageError
        If the system refuses to write.
    """
    check_sheet(out, replace)
    name, undefined = choose_run(volume, topic.name), topic.undefined
    box = topic.region or Box.whole(volume.shape)
    whole = Box((box.start[0], 0, 0), (box.stop[0], *volume.shape[1:]))
    found = census(volume, name, topic.truth, whole)
    tiles = found.grid.cover(box)
    parts = rows(found, tiles, volume.voxel_size_um, undefined)
    about = {"volume": printable(str(volume.path)), "run": name, "truth": found.truth or "", "undefined": undefined}
    with draft_file(out, replace) as partial:
        is_csv = out.suffix.lower() == ".csv"
        written = write_csv(partial, parts) if is_csv else write_parquet(partial, parts, about)
    region = None if topic.region is None else str(topic.region)
    return Sheet(
        volume=str(volume.path), name=name, truth=found.truth, region=region, undefined=undefined,
        out=str(out), rows=written, done=int(np.count_nonzero(found.cut(tiles).done)),
        columns=tuple(column.name for column in COLUMNS),
        failures=tuple({"region": str(part), "reason": reason} for part, reason in found.damage),
    )  # fmt: skip
