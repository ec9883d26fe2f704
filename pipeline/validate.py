"""Validation: any two label images of a volume compared, whoever made them; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.confusion import SCORE_PARTS, Counts, mean_scores, scores, sum_scores
from pipeline.disk import raise_refusal
from pipeline.errors import ConfigError, DamageError, PipelineError, ShapeMismatchError
from pipeline.geometry import Box, Grid
from pipeline.histogram import TRUTH_UNLABELLED, TRUTH_VESSEL, count_tiles, counts_above_levels, joint_histograms
from pipeline.ingest import Runner
from pipeline.report import Summary, Tiles
from pipeline.scratch import scratch
from pipeline.stack import Page, read_page
from pipeline.store import ABSENT, SHARD, ShardedArray, open_array, read_document
from pipeline.tables import RunTables, Status, run_names
from pipeline.volume import Volume
from pipeline.window import Lost

TILE = 512  # that of a run, unless its recipe says otherwise

Plane = NDArray[Any]
Read = Callable[[Box], Plane]  # part of one shard as uint8: 0 background, 127 not known, 255 vessel; until called again


@dataclass(frozen=True, slots=True)
class Label:
    """One of the two that are compared; ``open`` returns what reads a slice, None where that is absent."""

    name: str
    open: Callable[[int], Read | None]


def open_label(volume: Volume, name: str, is_truth: bool) -> Label:
    """Return a label of a volume, of the shape of its image, as the truth or as the mask of a comparison."""
    label, kind = volume.label(name), volume.labels()[name].kind
    if kind == "truth":
        return _truth_label(volume, name, is_truth)
    if kind == "mask" and name in run_names(volume):
        return _mask_label(volume, name, is_truth)
    attributes, first = read_document(label.path) or {}, "0"  # of another program, or of a run that is gone
    with suppress(KeyError, IndexError, TypeError, AttributeError):  # OME-Zarr 0.5, or 0.4
        first = str(attributes.get("ome", attributes)["multiscales"][0]["datasets"][0]["path"])
    array = open_array(path := label.path / first)
    _check_shape(name, tuple(array.shape), volume.shape)
    return Label(name, lambda z: lambda part: _read_foreign(path, array, part, is_truth))  # noqa: ARG005


def open_files(volume: Volume, pages: Sequence[Page], start_z: int) -> Label:
    """Return a mask in image files, one for each slice from ``start_z`` on; any value other than 0 is vessel."""
    slices, stop = volume.shape[0], start_z + len(pages)
    _check_shape(pages[0].name, pages[0].shape, volume.shape[1:])
    if stop > slices:
        raise ConfigError(
            f"--mask-files: got {len(pages)} slices from --start-z {start_z} on, the volume has {slices}; omit some"
        )

    def open_slice(z: int) -> Read | None:
        if not start_z <= z < stop:
            return None
        pixels = read_page(pages[z - start_z])
        return lambda part: _vessels(pixels[part.slices[1:]])

    return Label(" to ".join(dict.fromkeys([pages[0].name, pages[-1].name])), open_slice)


def _check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ShapeMismatchError(f"{name}: got shape {shape}, the image has {expected}; name one of the image's shape")


def validate(volume: Volume, mask: Label, truth: Label, runner: Runner, region: Box | None = None) -> Summary:
    """Compare a mask with a truth, in whole tiles of 512; what either does not know or loses counts nowhere."""
    begin, tiles = time.monotonic(), Grid(volume.shape, (1, TILE, TILE))
    box = tiles.round_out(region or Box.whole(volume.shape))

    def look(z: int) -> tuple[NDArray[np.int64], NDArray[np.int64], list[tuple[Box, str]]]:
        lost = Lost()
        counts = _compare_slice(mask, truth, Box((z, *box.start[1:]), (z + 1, *box.stop[1:])), volume.shape, lost)
        return counts.sum(axis=0), sum_scores(counts), lost.parts

    found = runner(look, range(box.start[0], box.stop[0]))
    counts = Counts(*sum((each for each, _, _ in found), np.zeros(4, np.int64)).tolist())
    macro = mean_scores(sum((each for _, each, _ in found), np.zeros(SCORE_PARTS, np.int64)))
    failures = [failure for _, _, each in found for failure in each]
    total, failed = tiles.cover(box).size, sum(tiles.cover(part).size for part, _ in failures)
    return Summary(
        name=mask.name, volume=str(volume.path), region=box if region else None, truth=truth.name,
        voxels=box.size - sum(part.size for part, _ in failures), annotated=counts.total, counts=counts,
        scores=scores(counts), macro=macro, levels=None, failures=failures,
        tiles=Tiles(total, total - failed, reused=0, failed=failed, pending=0, absent=0),
        elapsed_s=round(time.monotonic() - begin, 3),
    )  # fmt: skip


def document(summary: Summary) -> dict[str, Any]:
    """The summary of a validation as the JSON object of the command line."""
    known = summary.document()
    tiles = {key: known["tiles"][key] for key in ("total", "done", "failed")}
    return {"mask" if key == "name" else key: known[key] for key in known if key != "levels"} | {"tiles": tiles}


def _compare_slice(mask: Label, truth: Label, box: Box, shape: tuple[int, int, int], lost: Lost) -> NDArray[np.int64]:
    """Counts of the tiles of a box of one slice, (tiles, 4), as far as both know something of it and can be read."""
    counts = [np.zeros((0, 4), np.int64)]
    try:
        read_truth = truth.open(box.start[0])
        read_mask = mask.open(box.start[0]) if read_truth else None
    except PipelineError as error:
        lost.note(box, error)
        return counts[0]
    if read_truth and read_mask:
        for part in Grid(shape, SHARD).parts(box):
            try:
                counts.append(_compare(read_mask(part), read_truth(part)))
            except PipelineError as error:
                lost.note(part, error)
    return np.concatenate(counts)


def _compare(mask: Plane, truth: Plane) -> NDArray[np.int64]:
    np.copyto(truth, TRUTH_UNLABELLED, where=mask == TRUTH_UNLABELLED)
    tables = scratch.array("validated tables", (count_tiles(mask.shape, TILE), 3, 256), np.uint32)
    joint_histograms(mask, truth, TILE, 0, tables)
    return counts_above_levels(tables, np.zeros(len(tables)))


def _truth_label(volume: Volume, name: str, is_truth: bool) -> Label:
    """An ingested truth, checked against its ledger."""
    (label, ledger), buffer = volume.truth(name), f"validated {is_truth}"
    _check_shape(name, label.full.shape, volume.shape)

    def open_slice(z: int) -> Read | None:
        digests = ledger.shard_digests(z, z + 1)[0]
        return (lambda part: _read_stored(label.full, part, digests, buffer)) if digests.any() else None

    return Label(name, open_slice)


def _mask_label(volume: Volume, name: str, is_truth: bool) -> Label:
    """The mask of a run, checked against its tables; known where its tiles are done."""
    array, tables, buffer = volume.label(name).full, RunTables(volume, name), f"validated {is_truth}"
    _check_shape(name, array.shape, volume.shape)

    def open_slice(z: int) -> Read | None:
        row = (slice(z, z + 1),)
        done, digests = tables.status.read(row) == Status.DONE, tables.shard_digest.read(row)[0]
        if digests.any() and not tables.status.stored(row).all():
            raise DamageError(f"{tables.status.path}: a chunk of slice {z} is missing; do run {name!r} again")

        def read(part: Box) -> Plane:
            cells, shard = tables.grids.tiles.cover(part), array.shards.cover(part).start
            known = done[cells.moved(-z).slices]
            if not known.any():
                return np.full(part.shape[1:], TRUTH_UNLABELLED, np.uint8)
            if digests[shard[1:]] == ABSENT:
                raise DamageError(f"{array.shard_file(shard)}: its digest is missing; do run {name!r} again")
            plane = _read_stored(array, part, digests, buffer)
            for cell in (cell for cell, is_known in zip(cells, known.flat, strict=True) if not is_known):
                plane[(tables.grids.tiles.box(cell) & part).relative_to(part.start).slices[1:]] = TRUTH_UNLABELLED
            return plane

        return read if done.any() else None

    return Label(name, open_slice)


def _read_stored(array: ShardedArray, part: Box, digests: NDArray[np.uint64], buffer: str) -> Plane:
    """Read a whole shard, which can be checked, and return a part of it."""
    shard = array.shards.cover(part).start
    whole = array.shards.box(shard)
    values = scratch.array(buffer, whole.shape, array.dtype)
    array.check(shard, int(digests[shard[1:]]), array.read_shard(shard, whole, values))
    return np.asarray(values[part.relative_to(whole.start).slices][0])


def _read_foreign(path: Path, array: Any, part: Box, is_truth: bool) -> Plane:
    """Read a label of any type, chunks and codecs."""
    try:
        values = np.asarray(array[part.slices])[0]
    except Exception as error:  # ValueError, RuntimeError, OSError, ...
        raise_refusal(path, error)
        raise DamageError(f"{path}: cannot be decoded ({error}); restore it from a copy") from error
    plane = _vessels(values)
    np.copyto(plane, TRUTH_UNLABELLED, where=is_truth & (values == TRUTH_UNLABELLED))
    return plane


def _vessels(values: Plane) -> Plane:
    return np.array(values != 0, np.uint8) * np.uint8(TRUTH_VESSEL)
