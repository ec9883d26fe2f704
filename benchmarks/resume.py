"""A full volume that is done: what `kesm run`, `plan`, `status`, `tables` and `report` cost, and a run of one slice.

python benchmarks/resume.py [--slices 799] [--folder DIR] [--quick] [--json FILE]

One full-size slice with its truth is made and run; its shards are linked, and its records copied, for all others.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from command import kesm
from record import parse, save, show
from specimen import TRUTH, build_volume, link_slices, multiply, volume_bytes, work_folder
from texture import SHAPE

from pipeline.segmentation.runs import run
from pipeline.settings.config import RunConfig
from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume


def copy_run(volume: Volume) -> None:
    """Make the mask and the tables of every slice equal to those of slice 0, which is done."""
    for array in volume.label("otsu").levels:
        link_slices(array, 1)
    tables = RunTables(volume, "otsu")
    compared = tables.truth(TRUTH)
    for table in (*tables.all, *compared.all):
        row = table.read((slice(0, 1),))
        for z in range(1, table.shape[0]):
            table.write((slice(z, z + 1),), row)


def measure(folder: Path, slices: int, shape: tuple[int, int]) -> list[dict[str, Any]]:
    """Time the commands on a volume that is done, and a run after one of its slices was taken back."""
    path = build_volume(folder / "brain.zarr", 1, shape)
    run(RunConfig(volume=path, truth=TRUTH))
    multiply(path, slices)
    copy_run(Volume(path))
    rows = []
    for what, words in {
        "kesm run, all done": ["run", path, "--truth", TRUTH],
        "kesm plan": ["plan", path, "--truth", TRUTH],
        "kesm status": ["status", path],
        "kesm status --qc": ["status", path, "--qc"],
        "kesm tables, CSV": ["tables", path, "--out", folder / "tiles.csv"],
        "kesm tables, Parquet": ["tables", path, "--out", folder / "tiles.parquet"],
        "kesm report": ["report", path, "--out", folder / "report"],
    }.items():
        finished = kesm(*words)
        rows.append({"what": what, "slices": slices, "seconds": finished.seconds})
        if what.startswith("kesm run") and (tiles := finished.document["tiles"])["reused"] != tiles["total"]:
            sys.exit(f"not all tiles were reused: {tiles}")
    RunTables(Volume(path), "otsu").disown((slices // 2, 0, 0), "taken back by the benchmark")
    finished = kesm("run", path, "--truth", TRUTH)
    rows.append({"what": "kesm run, one slice to do", "slices": slices, "seconds": finished.seconds})
    return rows


def main() -> None:
    options = parse(
        __doc__,
        ("--slices", {"type": int, "default": 799, "quick": 3, "help": "slices of the volume"}),
        SHAPE,
        ("--folder", {"type": Path, "help": "where to work"}),
    )
    shape = tuple(options.shape)
    with work_folder(options.folder, volume_bytes(options.slices, 2, shape)) as folder:
        rows = measure(folder, options.slices, shape)
    show(rows)
    save(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
