"""Validation: any two label images of a volume compared, whoever made them; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DamageError, PipelineError, ShapeMismatchError
from pipeline.findings.summary import Summary, Tiles
from pipeline.geometry import Box, Grid
from pipeline.images.stack import Page, read_page
from pipeline.kernels.confusion import SCORE_PARTS, Counts, Undefined, mean_scores, scores, sum_scores
from pipeline.kernels.histogram import (
    TRUTH_UNLABELLED,
    TRUTH_VESSEL,
    count_tiles,
    counts_above_levels,
    joint_histograms,
)
from pipeline.kernels.outline import BoundaryF1, ClDice, Matches, boundary_f1, cl_dice
from pipeline.machine import fitting_threads
from pipeline.runner import Runner
from pipeline.scratch import scratch
from pipeline.segmentation.window import Lost
from pipeline.storage.disk import raise_refusal
from pipeline.storage.ledger import Ledger
from pipeline.storage.pyramid import Pyramid
from pipeline.storage.store import ABSENT, SHARD, ShardedArray, open_array, read_document
from pipeline.storage.tables import RunTables, Status, run_names
from pipeline.storage.volume import Volume
from pipeline.views.rendition import open_outside

TILE = 512  # that of a run, unless its recipe says otherwise
SHAPE_BYTES = {"boundary": 2, "cl_dice": 6}  # of a voxel of a slice: both labels; one that is thinned, and its copies

_REPORTED = (  # of a summary; the rest is about how a run has made its mask
    "schema", "name", "volume", "region", "truth", "voxels", "annotated", "counts", "scores", "macro", "failures",
    "elapsed_s",
)  # fmt: skip

Plane = NDArray[Any]
Read = Callable[[Box], Plane]  # part of one shard as uint8: 0 background, 127 not known, 255 vessel; until called again


@dataclass(frozen=True, slots=True)
class Label:
    """One of the two that are compared; ``open`` returns what reads a slice, None where that is absent."""

    name: str
    open: Callable[[int], Read | None]


def open_label(volume: Volume, name: str, is_truth: bool) -> Label:
    """Return a label of a volume, of the shape of its image, as the truth or as the mask of a comparison.

    Outside of the valid area of its run, if it has one, nothing is known: so a run is scored, too.
    """
    label, outside = _open_whole(volume, name, is_truth), open_outside(volume, name)
    if outside is None:
        return label

    def open_slice(z: int) -> Read | None:
        read = label.open(z)
        return None if read is None else lambda part: _read_valid(read, outside, part)

    return Label(name, open_slice)


def _read_valid(read: Read, outside: Callable[[Box], NDArray[np.bool_]], part: Box) -> Plane:
    plane = read(part)
    plane[outside(part)] = TRUTH_UNLABELLED
    return plane


def _open_whole(volume: Volume, name: str, is_truth: bool) -> Label:
    label, kind = volume.label(name), volume.labels()[name].kind
    if kind in ("truth", "derived"):
        return _recorded_label(volume, name, volume.truth(name) if kind == "truth" else volume.derived(name), is_truth)
    if kind == "confusion":
        info, option = volume.labels()[name], "truth" if is_truth else "mask"
        raise ConfigError(
            f"--{option}: {name!r} shows where run {info.run!r} differs from {info.truth!r}, and is neither; "
            f"name {info.truth if is_truth else info.run!r}"
        )
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


@dataclass(frozen=True, slots=True)
class Measures:
    """What is measured beside the scores of voxels, and what any score is where it is 0 / 0."""

    undefined: Undefined = "article"
    """See `kernels.confusion.scores`."""
    boundary: int | None = None
    """Voxels within which outlines match; None: they are not compared."""
    cl_dice: bool = False

    @property
    def slice_bytes(self) -> int:
        """Memory for each voxel of a slice, beside what the scores of voxels take."""
        return max(SHAPE_BYTES["boundary"] * (self.boundary is not None), SHAPE_BYTES["cl_dice"] * self.cl_dice)


VOXELS_ONLY = Measures()


@dataclass(frozen=True, slots=True)
class Shape:
    """Scores of shape that were asked for, of a slice or, from summed counts, of all that have annotated voxels."""

    boundary: BoundaryF1 | None
    cl_dice: ClDice | None


@dataclass(frozen=True, slots=True)
class Validation:
    """What a comparison has found; ``slices`` are those of which shapes were compared, by their number."""

    summary: Summary
    measures: Measures
    shape: Shape
    slices: Mapping[int, Shape]

    def document(self) -> dict[str, Any]:
        """The JSON object of the command line."""
        known = self.summary.document()
        tiles = {key: known["tiles"][key] for key in ("total", "done", "failed", "absent")}
        shape = asdict(self.shape)
        if shape["boundary"] is not None:
            shape["boundary"] = {"tolerance": self.measures.boundary} | shape["boundary"]
        return (
            {"mask" if key == "name" else key: known[key] for key in _REPORTED}
            | {"tiles": tiles, "undefined": self.measures.undefined}
            | shape
            | {"slices": [{"z": z} | asdict(each) for z, each in self.slices.items()]}
        )


def validate_threads(volume: Volume, measures: Measures, cpus: int) -> int:
    """Slices to look at at once: one for each CPU, fewer where the memory does not hold them."""
    each = volume.shape[1] * volume.shape[2] * measures.slice_bytes
    return fitting_threads(cpus, each)


def validate(
    volume: Volume,
    mask: Label,
    truth: Label,
    runner: Runner,
    region: Box | None = None,
    measures: Measures = VOXELS_ONLY,
) -> Validation:
    """Compare a mask with a truth, in whole tiles of 512; what either does not know or loses counts nowhere.

    Tiles of slices that either has not are absent. For scores of shape, both labels of a slice are held in memory, as
    far as they lie in the region.
    """
    begin, tiles = time.monotonic(), Grid(volume.shape, (1, TILE, TILE))
    box = tiles.round_out(region or Box.whole(volume.shape))

    def look(z: int) -> _Compared:
        return _compare_slice(mask, truth, Box((z, *box.start[1:]), (z + 1, *box.stop[1:])), volume.shape, measures)

    found = runner(look, range(box.start[0], box.stop[0]))
    counts = Counts(*sum((each.counts for each in found), np.zeros(4, np.int64)).tolist())
    failures = [failure for each in found for failure in each.lost.parts]
    total, done = tiles.cover(box).size, sum(each.tiles for each in found)
    failed = sum(tiles.cover(part).size for part, _ in failures)
    summary = Summary(
        name=mask.name, volume=str(volume.path), region=box if region else None, truth=truth.name,
        voxels=sum(each.voxels for each in found), annotated=counts.total, counts=counts,
        scores=scores(counts, measures.undefined), levels=None, failures=failures,
        macro=mean_scores(sum((each.scores for each in found), _no_scores()), measures.undefined),
        tiles=Tiles(total, done, reused=0, failed=failed, pending=0, absent=total - done - failed),
        elapsed_s=round(time.monotonic() - begin, 3),
    )  # fmt: skip
    slices = {z: each.shape for z, each in enumerate(found, box.start[0]) if each.shape is not None}
    return Validation(summary, measures, _sum_shapes(list(slices.values()), measures), slices)


def _sum_shapes(shapes: Sequence[Shape], measures: Measures) -> Shape:
    """Scores of summed counts; all None where there is no shape."""
    outlines = sum((each.boundary.counts for each in shapes if each.boundary), Matches())
    lines = sum((each.cl_dice.counts for each in shapes if each.cl_dice), Matches())
    return Shape(
        None if measures.boundary is None else BoundaryF1.of(outlines, measures.undefined),
        ClDice.of(lines, measures.undefined) if measures.cl_dice else None,
    )


def _no_scores() -> NDArray[np.int64]:
    return np.zeros(SCORE_PARTS, np.int64)


@dataclass(slots=True)
class _Compared:
    """What was compared of one slice: sums over its tiles, which only those are that were read from both labels."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(4, np.int64))
    scores: NDArray[np.int64] = field(default_factory=_no_scores)
    tiles: int = 0
    voxels: int = 0
    shape: Shape | None = None  # not asked for, or nothing is annotated
    lost: Lost = field(default_factory=Lost)

    def add(self, counts: NDArray[np.int64], part: Box, undefined: Undefined) -> None:
        """Add the counts of the tiles of a part, (tiles, 4)."""
        self.counts += counts.sum(axis=0)
        self.scores += sum_scores(counts, undefined)
        self.tiles += len(counts)
        self.voxels += part.size


def _compare_slice(mask: Label, truth: Label, box: Box, shape: tuple[int, int, int], measures: Measures) -> _Compared:
    """Compare a box of one slice, as far as both know something of it and can be read."""
    found = _Compared()
    try:
        read_truth = truth.open(box.start[0])
        read_mask = mask.open(box.start[0]) if read_truth else None
    except PipelineError as error:
        found.lost.note(box, error)
        return found
    if not read_truth or not read_mask:
        return found
    planes = _Planes(box) if measures.slice_bytes else None
    for part in Grid(shape, SHARD).parts(box):
        try:
            judged, right = read_mask(part), read_truth(part)
            found.add(_compare(judged, right), part, measures.undefined)
        except PipelineError as error:
            found.lost.note(part, error)
        else:
            if planes:
                planes.put(part, judged, right)
    if planes and found.counts.any():
        found.shape = planes.shape(measures)
    return found


class _Planes:
    """Mask and truth of one slice, or of a box of it, put together; what was not read is not annotated."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._mask = scratch.array("plane of the mask", box.shape[1:], np.uint8)
        self._truth = scratch.array("plane of the truth", box.shape[1:], np.uint8)
        self._truth[:] = TRUTH_UNLABELLED

    def put(self, part: Box, mask: Plane, truth: Plane) -> None:
        """Take in a part as it was compared."""
        place = part.relative_to(self._box.start).slices[1:]
        self._mask[place], self._truth[place] = mask, truth

    def shape(self, measures: Measures) -> Shape:
        """The scores that were asked for."""
        tolerance, undefined = measures.boundary, measures.undefined
        return Shape(
            None if tolerance is None else boundary_f1(self._mask, self._truth, tolerance, undefined),
            cl_dice(self._mask, self._truth, undefined) if measures.cl_dice else None,
        )


def _compare(mask: Plane, truth: Plane) -> NDArray[np.int64]:
    """Counts of the tiles of a part, (tiles, 4); the truth is not annotated where the mask is not known."""
    np.copyto(truth, TRUTH_UNLABELLED, where=mask == TRUTH_UNLABELLED)
    tables = scratch.array("validated tables", (count_tiles(mask.shape, TILE), 3, 256), np.uint32)
    joint_histograms(mask, truth, TILE, 0, tables)
    return counts_above_levels(tables, np.zeros(len(tables)))


def _recorded_label(volume: Volume, name: str, recorded: tuple[Pyramid, Ledger], is_truth: bool) -> Label:
    """A label whose slices are recorded, checked against its ledger."""
    (label, ledger), buffer = recorded, f"validated {is_truth}"
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
