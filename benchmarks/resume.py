"""A full volume that is done: what `kesm run`, `plan` and `status` cost, and a run in which one slice is missing.

python benchmarks/resume.py [--slices 799] [--folder DIR] [--json FILE]

One full-size slice with its truth is made and run; its shards are linked, and its records copied, for all others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import parse, save, show
from specimen import TRUTH, build_volume, volume_bytes, work_folder

from pipeline.config import RunConfig
from pipeline.runs import run
from pipeline.store import ShardedArray
from pipeline.tables import RunTables, resize_volume
from pipeline.volume import Volume

KESM = Path(sys.executable).with_name("kesm")


def multiply(volume: Volume, slices: int) -> None:
    """Make the slices 1, 2, ... of a volume equal to slice 0, which is done."""
    resize_volume(volume, slices)
    volume = Volume(volume.path)
    truth, truth_ledger = volume.truth(TRUTH)
    for pyramid in (volume.image, truth, volume.label("otsu")):
        for array in pyramid.levels:
            link_slices(array, slices)
    for ledger in (volume.slices, truth_ledger):
        digests = ledger.shard_digests(0, 1)
        for z in range(1, slices):
            ledger.record(z, digests[0], f"{z:04d}.png", 0)
    tables = RunTables(volume, "otsu")
    compared = tables.truth(TRUTH)
    every = (tables.threshold, tables.status, tables.mask_key, tables.shard_digest, tables.pyramid_key)
    for table in (*every, compared.counts, compared.counts_key, compared.histogram):
        row = table.read((slice(0, 1),))
        for z in range(1, slices):
            table.write((slice(z, z + 1),), row)


def link_slices(array: ShardedArray, slices: int) -> None:
    """Link the shards of slice 0 as those of all others."""
    for first in (array.path / "c" / "0").rglob("*"):
        for z in range(1, slices):
            other = array.path / "c" / str(z) / first.relative_to(array.path / "c" / "0")
            other.mkdir(parents=True) if first.is_dir() else os.link(first, other)


def timed(*words: object) -> tuple[float, dict[str, Any]]:
    """Seconds that a command took, the start of Python and its imports included, and the JSON object it printed."""
    start = time.perf_counter()
    done = subprocess.run(
        [KESM, *map(str, words), "--json"], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - start, json.loads(done.stdout)


def measure(folder: Path, slices: int) -> list[dict[str, Any]]:
    """Time the commands on a volume that is done, and a run after one of its slices was taken back."""
    path = build_volume(folder / "brain.zarr", 1)
    run(RunConfig(volume=path, truth=TRUTH))
    multiply(Volume(path), slices)
    rows = []
    for what, words in {
        "kesm run, all done": ["run", path, "--truth", TRUTH],
        "kesm plan": ["plan", path, "--truth", TRUTH],
        "kesm status": ["status", path],
    }.items():
        seconds, document = timed(*words)
        rows.append({"what": what, "slices": slices, "seconds": seconds})
        if what.startswith("kesm run") and document["tiles"]["reused"] != document["tiles"]["total"]:
            sys.exit(f"not all tiles were reused: {document['tiles']}")
    RunTables(Volume(path), "otsu").disown((slices // 2, 0, 0), "taken back by the benchmark")
    seconds, document = timed("run", path, "--truth", TRUTH)
    rows.append({"what": "kesm run, one slice to do", "slices": slices, "seconds": seconds})
    return rows


def main() -> None:
    options = parse(
        __doc__, ("--slices", {"type": int, "default": 799}), ("--folder", {"type": Path, "help": "where to work"})
    )
    with work_folder(options.folder, volume_bytes(2)) as folder:
        rows = measure(folder, options.slices)
    show(rows)
    save(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
