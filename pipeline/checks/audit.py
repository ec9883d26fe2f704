"""One slice of a run as it was recorded, and what differs from that now: tables, mask, and counts made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.checks.readback import Array, Checked, Finding, Flags, Kind, Part, Readback, RecordSlice, decoding
from pipeline.checks.repaint import Repaint, known_digests
from pipeline.geometry import Box, Grid, Triple
from pipeline.kernels.histogram import TRUTH_BACKGROUND, TRUTH_UNLABELLED, TRUTH_VESSEL, counts_above, joint_histogram
from pipeline.kernels.quality import Measure
from pipeline.scratch import scratch
from pipeline.segmentation.tile import count_vessels
from pipeline.settings.recipe import LocalThreshold, Recipe
from pipeline.storage.keys import counts_keys
from pipeline.storage.painting import Painting
from pipeline.storage.store import ABSENT, ALL_FILL, SHARD, digest_bytes
from pipeline.storage.tables import RunTables, Status
from pipeline.storage.volume import Volume

MASK_VALUES = (0, 255, 255)
TRUTH_VALUES = (TRUTH_BACKGROUND, TRUTH_UNLABELLED, TRUTH_VESSEL)


class Run:
    """A run: its mask, and its tables in the order in which they are read: first those that vouch for the others."""

    def __init__(self, volume: Volume, name: str) -> None:
        self.volume, self.name, self.folder = volume, name, f"tiles/{name}"
        self.tables = tables = RunTables(volume, name)
        self.pyramid_key = tables.pyramid_key
        self.kind = Kind(volume.label(name), Path("labels") / name, MASK_VALUES, name)
        self.recipe = Recipe.model_validate(tables.recipe)
        # Of 16 bits, tables of 256 bins tell no level; and what is drawn has more than a level.
        self.resolves_levels = volume.dtype.itemsize == 1 and not self.recipe.drawn
        self.truths = [truth for truth in tables.truths() if truth in volume.labels()]
        compared = {truth: tables.truth(truth) for truth in self.truths}
        self.painting = Painting.of(volume, tables)
        painted = {}
        if self.painting is not None and self.painting.truth in compared:
            folder, of_label = f"truth/{self.painting.truth}", self.painting.tables
            painted = {f"{folder}/confusion_key": of_label.key, f"{folder}/confusion_digest": of_label.digest}
            _ = self.painting.label.levels  # opened now, as those of the mask are
        self.keys = {
            "status": tables.status,
            "mask_key": tables.mask_key,
            "shard_digest": tables.shard_digest,
            **{f"truth/{truth}/counts_key": of_truth.counts_key for truth, of_truth in compared.items()},
            **painted,
        }
        self.arrays = {
            **self.keys,
            **tables.of_mask,
            **{f"truth/{truth}/counts": of_truth.counts for truth, of_truth in compared.items()},
            **{f"truth/{truth}/histogram": of_truth.histogram for truth, of_truth in compared.items()},
        }

    def is_level(self, level: float, table: Array) -> bool:
        """Whether a tile with this joint table can have this level; one that a slice shares is not found again."""
        threshold = self.recipe.threshold
        if threshold.scope == "slice" or isinstance(threshold, LocalThreshold):
            return True
        shared = self.tables.level
        expected = threshold.levels(table[None])[0] if shared is None else shared
        return bool(np.array_equal(level, expected, equal_nan=True))

    def grid(self, name: str) -> Grid:
        """What the cells of a table stand for."""
        return self.tables.grids.shards if name.endswith("_digest") else self.tables.grids.tiles

    def cells(self, name: str, block: Triple) -> tuple[slice, slice, slice]:
        """Cells of a block in a table."""
        return self.grid(name).cover(self.tables.grids.blocks.box(block)).slices


class RunSlice(Part):
    """One slice of a run."""

    def __init__(self, run: Run, z: int) -> None:
        self.source = run
        self.folder, self.findings = run.folder, []
        self._z, self._grids = z, run.tables.grids
        self._region = Box.of_slice(z, run.volume.shape)
        self._blocks = self._grids.blocks.cover(self._region)
        surveys = {name: table.survey((slice(z, z + 1),)) for name, table in run.arrays.items()}
        self._values: dict[str, Array] = {name: values[0] for name, (values, _) in surveys.items()}
        self._damaged = [name for name, (_, reasons) in surveys.items() if reasons]

    def witness(self, region: Box) -> int:
        """Digest of status, keys and digests of the blocks that a region touches."""
        blocks = self._grids.blocks.cover(region)
        return digest_bytes(
            b"".join([self._of(name, block).tobytes() for block in blocks for name in self.source.keys])
        )

    def again(self) -> RunSlice:
        """The slice as it is recorded now."""
        return RunSlice(self.source, self._z)

    def prepare(self, truths: Mapping[str, RecordSlice]) -> None:
        """Judge the tables by themselves, and decide which voxels are compared with them."""
        self._usable = {name: np.ones(values.shape[:2], np.bool_) for name, values in self._values.items()}
        self._done: Flags = np.zeros(self._values["status"].shape, np.bool_)
        self._vessel = np.full(self._done.shape, -1, np.int64)  # of the masks that are as recorded
        digests = np.zeros_like(self._values["shard_digest"])
        for block in self._blocks:
            self._judge(block)
            digests[self._cells("shard_digest", block)] = self._known_digests(block)
        self.voxels = Readback(self.source.kind, self._z, digests if self._done.any() else np.zeros_like(digests))
        self._has_levels = self._judge_levels()
        known = {name: truth for name, truth in truths.items() if truth.known and name in self.source.truths}
        self._comparisons = [self._comparison(name, truth) for name, truth in known.items()]
        self._repaint = self._open_painting(known)

    def read(self, part: Box, traced: Mapping[str, Array | None]) -> None:
        """Read a shard of the mask, and count its tiles."""
        mask = self.voxels.read(part, "mask")
        if mask is not None and self.voxels.right[part.start[1] // SHARD[1], part.start[2] // SHARD[2]]:
            rows, columns = self._grids.tiles.cover(part).slices[1:]
            self._vessel[rows, columns] = count_vessels(mask[0], self._grids.tiles.step[1])
        for comparison in self._comparisons:
            truth = traced.get(comparison.name)
            if mask is not None and truth is not None:
                self._count(comparison, part, mask, truth)
        if self._repaint is not None:
            self._read_painting(self._repaint, part, mask, traced.get(self._repaint.truth))

    def finish(self) -> None:
        """Compare the levels, and the tables with what was counted."""
        if self._has_levels:
            self.voxels.compare_levels()
        if self._repaint is not None:
            self._repaint.finish()
            self.findings += self._repaint.findings
        for block in self._blocks:
            self._compare_vessels(block)
        for comparison in self._comparisons:
            for block in self._blocks:
                self._compare(comparison, block)

    def checked(self) -> Checked:
        """Shards, tiles that were counted, and bytes read."""
        tiles = sum(int(comparison.made.sum()) for comparison in self._comparisons)
        read = [self.voxels] if self._repaint is None else [self.voxels, self._repaint.voxels]
        return Checked(
            shards=sum(label.shards for label in read), tiles=tiles, bytes=sum(label.bytes for label in read)
        )

    def _judge(self, block: Triple) -> None:
        """Find what is damaged, missing or impossible in the tables of a block."""
        where = self._cells("status", block)
        status = self._of("status", block)
        for name, reason in self._unusable(block).items():
            self._usable[name][self._cells(name, block)] = False
            self._tell(name, block, self._grids.blocks.box(block), reason)
        masked = self._of("mask_key", block) != ABSENT
        words = {int(state): state.name.lower() for state in Status}
        self._differ(
            "status",
            block,
            (masked & (status != Status.DONE)) | ~np.isin(status, list(words)),
            lambda tile: f"is {words.get(status[tile], status[tile])} where a mask is recorded",
        )
        done = self._done[where] = (status == Status.DONE) & self._usable["status"][where]
        nowhere = done & np.isnan(self._of("threshold", block)) & self.source.recipe.decides
        self._differ("threshold", block, nowhere, lambda _: "has no level")
        self._usable["threshold"][where] &= ~nowhere
        unmeasured = done & ~np.isfinite(self._of("quality", block)[..., Measure.MEAN])
        self._differ("quality", block, unmeasured, lambda _: "has no measures")
        undigested = (self._of("shard_digest", block) == ABSENT) & done.any()
        self._differ("shard_digest", block, undigested, lambda _: "has no digest")

    def _unusable(self, block: Triple) -> dict[str, str]:
        """Tables that cannot be read for a block, or have lost it, and why."""
        stored = {name: bool(self._stored(name, block)) for name in self.source.arrays}
        written = set()
        if any(stored.values()):
            written.add("status")  # before all others
        if (self._of("status", block) == Status.DONE).any():
            written |= {"mask_key", "shard_digest", *self.source.tables.of_mask}
        for truth in self.source.truths:
            counts, histogram, key = (f"truth/{truth}/{name}" for name in ("counts", "histogram", "counts_key"))
            if stored[counts] or stored[histogram] or self._of(key, block).any():
                written |= {counts, histogram, key}
            key, digest = (f"truth/{truth}/confusion_{name}" for name in ("key", "digest"))
            if key in self.source.keys and (stored[digest] or self._of(key, block).any()):
                written |= {key, digest}
        wrong = {name: "is missing" for name in self.source.arrays if name in written and not stored[name]}
        for name in self._damaged:
            table = self.source.arrays[name]
            _, reasons = table.survey(self.source.cells(name, block))
            if reasons:
                wrong[name] = decoding(reasons)
        return wrong

    def _known_digests(self, block: Triple) -> Array:
        """Digests that the shards of a block must have; ``ABSENT`` where they may be in work, or differ already."""
        where, shards = self._cells("status", block), self._cells("shard_digest", block)
        digests, states = self._of("shard_digest", block), set(np.unique(self._of("status", block)).tolist())
        unknown = np.full_like(digests, ABSENT)
        if not (self._usable["status"][where].all() and self._usable["shard_digest"][shards].all()):
            return unknown
        if Status.DONE in states:
            return digests if states <= {Status.DONE, Status.FAILED} else unknown
        empty = states <= {Status.ABSENT, Status.FAILED} and np.isin(digests, (ABSENT, ALL_FILL)).all()
        return np.full_like(digests, ALL_FILL) if empty else unknown

    def _judge_levels(self) -> bool:
        """Whether the levels of the mask are recorded as those of level 0."""
        recorded, reasons = self.source.pyramid_key.survey((slice(self._z, self._z + 1),))
        digests = self._values["shard_digest"]
        if reasons:
            self._tell_levels(decoding(reasons))
        elif recorded[0] == digest_bytes(digests.tobytes()):
            return True
        # The block of a whole slice has recorded its levels before it is done; those of many blocks follow these.
        elif self._blocks.size == 1 and self._done.any() and self._usable["shard_digest"].all():
            self._tell_levels("is not that of the mask" if recorded[0] else "is missing")
        return False

    def _tell_levels(self, reason: str) -> None:
        folder = f"{self.folder}/pyramid_key"
        self.findings.append(Finding(folder, f"c/{self._z}", self._region, reason, self.source.name))

    def _comparison(self, name: str, truth: RecordSlice) -> _Comparison:
        masks, recorded = self._values["mask_key"], self._values[f"truth/{name}/counts_key"]
        tiles = self._grids.tiles.cover(self._region)
        keys = counts_keys(masks[None], truth.digests[None], self._grids, tiles)[0]
        wanted = self._done & (keys == recorded) & (masks != ABSENT)
        if self.source.recipe.valid is not None:  # mask and truth alone do not tell: the tables must fit each other
            return _Comparison(name, truth, np.zeros_like(wanted), wanted, self._values[f"truth/{name}/counts"])
        absent = not truth.digests.any()  # then nothing is annotated, and nothing need be read to know the counts
        made = wanted.copy() if absent else np.zeros_like(wanted)
        return _Comparison(name, truth, wanted, made, np.zeros((*wanted.shape, 4), np.int64))

    def _open_painting(self, truths: Mapping[str, RecordSlice]) -> Repaint | None:
        """Return what shows the confusion, and decide which of its tiles are compared with mask and truth."""
        painting = self.source.painting
        if painting is None or painting.truth not in self.source.truths:
            return None
        masks, recorded = self._values["mask_key"], self._values[f"truth/{painting.truth}/confusion_key"]
        truth, tiles = truths.get(painting.truth), self._grids.tiles.cover(self._region)
        self._painted_of, wanted = truth, np.zeros_like(self._done)
        if truth is not None:
            keys = counts_keys(masks[None], truth.digests[None], self._grids, tiles)[0]
            wanted = self._done & (keys == recorded) & (masks != ABSENT)
        counts = self._values[f"truth/{painting.truth}/counts"]
        missed = None if self.source.recipe.valid is None else counts[..., 2]
        return Repaint(painting, self.source.name, self._z, known_digests(painting, self._z), wanted, missed)

    def _read_painting(self, repaint: Repaint, part: Box, mask: Array | None, truth: Array | None) -> None:
        """Read a shard of what shows the confusion; where nobody annotated the slice, nothing is to be shown."""
        shard, of_truth = (part.start[1] // SHARD[1], part.start[2] // SHARD[2]), self._painted_of
        if of_truth is None:
            truth = None
        elif not of_truth.digests.any():
            truth = scratch.array("no truth", part.shape, np.uint8)
            truth[...] = TRUTH_UNLABELLED
        elif not of_truth.voxels.right[shard]:
            truth = None
        known = mask[0] if mask is not None and self.voxels.right[shard] else None
        repaint.read(part, known, None if truth is None else truth[0])

    def _count(self, comparison: _Comparison, part: Box, mask: Array, truth: Array) -> None:
        """Count the tiles of a shard whose mask and truth are as recorded."""
        joint = scratch.array("joint", (3, 256), np.uint32)
        right = self.voxels.right & comparison.truth.voxels.right
        for tile in self._grids.tiles.cover(part):
            box = self._grids.tiles.box(tile)
            if comparison.wanted[tile[1:]] and right[box.start[1] // SHARD[1], box.start[2] // SHARD[2]]:
                local = box.relative_to(part.start).slices
                joint_histogram(mask[local][0], truth[local][0], joint)
                comparison.counts[tile[1:]] = counts_above(joint, 0)
                comparison.made[tile[1:]] = True

    def _compare_vessels(self, block: Triple) -> None:
        """Compare how much is vessel with the masks of the tiles that are done, as far as these are as recorded."""
        where = self._cells("status", block)
        recorded, counted = self._of("vessel", block), self._vessel[where]
        wrong = self._done[where] & (counted >= 0) & (recorded != counted)
        self._differ(
            "vessel", block, wrong, lambda tile: f"has {recorded[tile]} where the mask has {counted[tile]} voxels"
        )

    def _compare(self, comparison: _Comparison, block: Triple) -> None:
        """Compare the tables of a block with the counts that were made again."""
        where = self._cells("status", block)
        made, counts = comparison.made[where], comparison.counts[where]
        if not made.any():
            return
        folder = f"truth/{comparison.name}"
        recorded, histogram = self._of(f"{folder}/counts", block), self._of(f"{folder}/histogram", block)
        self._differ(
            f"{folder}/counts",
            block,
            made & (recorded != counts).any(axis=-1),
            lambda tile: f"has {recorded[tile].tolist()} where mask and truth give {counts[tile].tolist()}",
        )
        tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
        sizes = self._grids.tiles.sizes(self._grids.block_tiles(block))[0]
        classes = np.stack([fp + tn, tp + fn, sizes - tp - fp - fn - tn], axis=-1)
        rows = 3 if self.source.recipe.valid is None else 2  # of the third, only valid voxels are counted
        fits = made & (histogram.sum(axis=-1, dtype=np.int64) == classes)[..., :rows].all(axis=-1)
        levelled = fits.copy()
        for tile in (
            map(tuple, np.argwhere(fits & self._usable["threshold"][where])) if self.source.resolves_levels else ()
        ):
            table, level = histogram[tile], self._of("threshold", block)[tile]
            levelled[tile] = self.source.is_level(level, table)
            fits[tile] &= not levelled[tile] or counts_above(table, level) == tuple(counts[tile])
        self._differ(f"{folder}/histogram", block, made & ~fits, lambda _: "does not give the counts of mask and truth")
        self._differ("threshold", block, fits & ~levelled, lambda _: "is not the level that the histogram gives")

    def _differ(self, name: str, block: Triple, wrong: Flags, reason: Callable[[tuple[int, int]], str]) -> None:
        """Tell which cells of a block are wrong in a table, unless it is told already that all of them are."""
        cells = self._cells(name, block)
        found = np.argwhere(wrong & self._usable[name][cells])
        if not len(found):
            return
        grid, (rows, columns) = self.source.grid(name), cells
        first, last = found.min(axis=0).tolist(), found.max(axis=0).tolist()
        region = grid.voxels(
            Box(
                (self._z, rows.start + first[0], columns.start + first[1]),
                (self._z + 1, rows.start + last[0] + 1, columns.start + last[1] + 1),
            )
        )
        y, x = found[0].tolist()
        cell = f"{'shard' if name == 'shard_digest' else 'tile'} {self._z}, {rows.start + y}, {columns.start + x}"
        others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        self._tell(name, block, region, f"{cell} {reason((y, x))}{others}")

    def _tell(self, name: str, block: Triple, region: Box, reason: str) -> None:
        table = self.source.arrays[name]
        chunk = "/".join(map(str, (*block, *[0] * (len(table.shape) - 3))))
        folder = f"{self.folder}/{name}"
        self.findings.append(Finding(folder, f"c/{chunk}", region, reason, self.source.name))

    def _cells(self, name: str, block: Triple) -> tuple[slice, slice]:
        """Cells of a block in a slice of a table."""
        return self.source.cells(name, block)[1:]

    def _of(self, name: str, block: Triple) -> Array:
        return self._values[name][self._cells(name, block)]

    def _stored(self, name: str, block: Triple) -> bool:
        return bool(self.source.arrays[name].stored(self.source.cells(name, block)).all())


@dataclass(slots=True)
class _Comparison:
    """Counts of one slice of a mask against one truth, made again.

    Attributes
    ----------
    wanted, made : ndarray
        Tiles whose recorded counts are of this mask and this truth; of those, the ones that could be counted.
    counts : ndarray
        int64 (y, x, 4) of the tile grid.
    """

    name: str
    truth: RecordSlice
    wanted: Flags
    made: Flags
    counts: NDArray[np.int64]
