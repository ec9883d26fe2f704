"""What a run would do, decided before anything starts: blocks, memory, bytes; and refusal of what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import (
    ConfigError,
    DamageError,
    ExistsError,
    MemoryLimitError,
    MissingInputError,
    NotAVolumeError,
)
from pipeline.geometry import Box, Triple, check_nesting
from pipeline.kernels.confusion import Undefined
from pipeline.kernels.flags import Flag
from pipeline.kernels.median import is_fast
from pipeline.machine import allowed_bytes, gb
from pipeline.segmentation.budget import PROCESS_BYTES, choose_block, parallelism, smallest_block, task_bytes
from pipeline.segmentation.classifier import file_digest, image_of, load_classifier
from pipeline.settings.config import LocalCluster, RunConfig
from pipeline.settings.recipe import ClassifierSegmenter, MedianDenoise, PythonDenoise, PythonSegmenter, Recipe, Valid
from pipeline.settings.targets import find_target
from pipeline.storage.painting import check_paintable
from pipeline.storage.tables import Grids, RunTables, has_documents, run_names
from pipeline.storage.volume import Volume

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Plan:
    """A run before it starts.

    Attributes
    ----------
    replaces : bool
        Whether a run of this name, made with another recipe, is thrown away.
    region : Box
        Voxels that are scored: whole tiles.
    pools, refit : bool
        Whether the level of the whole volume is found first, and if so, although there is one.
    confusion : bool
        Whether the label that shows where the mask is wrong is written: it is asked for, or was, with this truth.
    undefined : str
        What a score is that is 0 / 0; see `kernels.confusion.scores`.
    excluded : Flag
        Tiles with one of these are not scored.
    passes : int
        How often the image is read.
    blocks : Box
        Blocks that are worked on, as a box of the block grid.
    engine : str
        On a cluster (``"address"``) tasks and memory are those of one worker thread: how many there are is not known.
    tasks : int
        Blocks in work at the same time.
    task_bytes, peak_bytes, limit_bytes : int
        Planned peak of one task and of the whole run, and what the run may use.
    read_bytes : int
        Bytes of decoded image and truth that are read; of whatever is done already, too, before
        `segmentation.remainder.look_ahead`.
    written_bytes : int
        The same of mask and confusion that are written, but for their upper levels, a third more.
    tiles_done : int
        Tiles of the region whose mask and counts are recorded already; 0 before that.
    """

    volume: Path
    name: str
    recipe: Recipe
    truth: str | None
    region: Box
    whole: bool
    block: Triple
    replaces: bool
    pools: bool
    refit: bool
    confusion: bool
    undefined: Undefined
    excluded: Flag
    passes: int
    grids: Grids
    blocks: Box
    engine: str
    tasks: int
    task_bytes: int
    peak_bytes: int
    limit_bytes: int
    read_bytes: int = 0
    written_bytes: int = 0
    tiles_done: int = 0

    def document(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        return {
            "schema": 1,
            "name": self.name,
            "volume": str(self.volume),
            "truth": self.truth,
            "region": None if self.whole else str(self.region),
            "recipe": self.recipe.document(),
            "block": list(self.block),
            "blocks": self.blocks.size,
            "tiles": self.grids.tiles.cover(self.region).size,
            "tiles_done": self.tiles_done,
            "confusion": self.confusion,
            "engine": self.engine,
            "tasks": self.tasks,
            "passes": self.passes,
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "task_bytes": self.task_bytes,
            "peak_bytes": self.peak_bytes,
            "limit_bytes": self.limit_bytes,
        }

    @property
    def fast_filter(self) -> bool:
        """Whether the filter has a compiled kernel; others go through SciPy, a hundred times slower."""
        stage = self.recipe.denoise
        return not isinstance(stage, MedianDenoise) or is_fast(stage.window)


def make_plan(config: RunConfig, volume: Volume | None = None, replace: bool = False) -> Plan:
    """Decide blocks and memory of a run; touches nothing.

    Parameters
    ----------
    config : RunConfig
    volume : Volume, optional
        That of the configuration, if it is open already.
    replace : bool
        Whether a run of this name that was made with another recipe may be thrown away.

    Raises
    ------
    ConfigError, RegionError, MissingInputError
        If the volume cannot be run so.
    MemoryLimitError
        If the smallest block does not fit, or that of a run that exists.
    """
    volume = volume or Volume(config.volume)
    name = config.run_name
    recipe = _with_model(config.recipe, volume)
    _check_stages(recipe, volume)
    if config.truth is not None:
        volume.truth(config.truth)
    asked = config.region.box(volume.shape) if config.region else Box.whole(volume.shape)
    processes, threads = parallelism(config)
    tasks = processes * threads
    # The process that starts the others has no task, but their scheduler.
    fixed = (processes + isinstance(config.cluster, LocalCluster)) * PROCESS_BYTES
    limit = allowed_bytes(config.memory)
    replaces = replace and _differs(volume, name, recipe)
    confusion = _shows_confusion(volume, name, config, replaces)
    block = _existing_block(volume, name, recipe, replace)
    allowed = (limit - fixed) // tasks
    if block is None:
        least = fixed + tasks * task_bytes(volume, recipe, smallest_block(volume, recipe), confusion)
        if least > limit:
            which = (
                "whole slices, which the recipe looks at" if recipe.slicewise else "the smallest blocks, of one shard"
            )
            raise MemoryLimitError(
                f"memory: {gb(limit)} are allowed, {gb(least)} are needed for {tasks} tasks on {which}; "
                "allow more with --memory, or use fewer --threads"
            )
        block = choose_block(volume, recipe, allowed, confusion)
    grids = Grids.of(volume.shape, recipe.tile, block)
    check_nesting(grids.tiles, grids.shards, grids.blocks)
    needed = task_bytes(volume, recipe, block, confusion)
    if needed > allowed:
        raise MemoryLimitError(
            f"memory: {gb(limit)} are allowed, {gb(fixed + tasks * needed)} are needed for "
            f"{tasks} tasks on blocks of {block[1]} x {block[2]} voxels; allow more with --memory, "
            "or use fewer --threads"
        )
    blocks = grids.blocks.cover(asked)
    pools = _pools(volume, name, config, replaces)
    plan = Plan(
        volume=volume.path, name=name, recipe=recipe, truth=config.truth, region=grids.tiles.round_out(asked),
        whole=config.region is None, block=block, replaces=replaces, pools=pools, refit=config.refit,
        confusion=confusion, undefined=config.undefined, excluded=config.excluded, passes=_passes(recipe, grids, pools),
        grids=grids, blocks=blocks, engine=config.cluster.engine,
        tasks=tasks, task_bytes=needed, peak_bytes=fixed + tasks * needed, limit_bytes=limit,
    )  # fmt: skip
    nothing = np.zeros(blocks.shape, np.bool_)
    return with_bytes(plan, volume, nothing, nothing)


def _shows_confusion(volume: Volume, name: str, config: RunConfig, replaces: bool) -> bool:
    """Whether the confusion is asked for, or kept since it was asked for with the same truth."""
    if config.confusion:
        if config.truth is None:
            raise ConfigError("confusion: got true, but no truth to compare the mask with; add `truth: NAME`")
        check_paintable(volume, name)
        return True
    kept = volume.confusion(name)
    return not replaces and kept is not None and kept.truth is not None and kept.truth == config.truth


def _pools(volume: Volume, name: str, config: RunConfig, replaces: bool) -> bool:
    """Whether a level of the whole volume is wanted that no earlier attempt has found."""
    if config.threshold.scope != "volume":
        return False
    if config.refit or replaces or name not in run_names(volume):
        return True
    return RunTables(volume, name).level is None


def _passes(recipe: Recipe, grids: Grids, pools: bool) -> int:
    """How often the image is read: once, unless a level needs more of it than a block has."""
    parts = grids.blocks.cells[1] * grids.blocks.cells[2]
    return 1 + pools + (parts if recipe.shares and parts > 1 else 0)


def with_bytes(plan: Plan, volume: Volume, masked: Flags, compared: Flags) -> Plan:
    """The plan with the bytes of its blocks, but for those whose mask is made, or is made and compared with the truth.

    Parameters
    ----------
    plan : Plan
    volume : Volume
    masked, compared : ndarray
        bool, of the shape of ``plan.blocks``.
    """
    rows = plan.blocks.slices[0]
    voxels = plan.grids.blocks.sizes(plan.blocks)
    present, traced = volume.slices.present(), np.zeros(volume.shape[0], np.bool_)
    if plan.truth is not None:
        traced = present & volume.truth(plan.truth)[1].present()
    work = ~(masked & compared)
    of_image = int(voxels[work & present[rows, None, None]].sum())
    of_truth = int(voxels[work & traced[rows, None, None]].sum())
    of_mask = int(voxels[~masked & present[rows, None, None]].sum())
    pooled = plan.pools * int(present.sum()) * volume.shape[1] * volume.shape[2]  # of all slices, whatever the region
    image_bytes = volume.dtype.itemsize * (2 * plan.recipe.halo[0] + 1)
    return replace(
        plan, read_bytes=image_bytes * (of_image * (plan.passes - plan.pools) + pooled) + of_truth,
        written_bytes=of_mask + plan.confusion * of_truth,
    )  # fmt: skip


def _with_model(recipe: Recipe, volume: Volume) -> Recipe:
    """The recipe with what its model's file says: digest and halo; a file that has changed makes another recipe."""
    segmenter = recipe.segmenter
    if not isinstance(segmenter, ClassifierSegmenter):
        return recipe
    path = Path(segmenter.model)
    digest = file_digest(path)
    if segmenter.digest not in (None, digest):
        raise ConfigError(f"segmenter.digest: got {segmenter.digest}, but {path} has {digest}; leave it out")
    classifier = load_classifier(path, digest)
    classifier.check_image(image_of(recipe.document(), volume.dtype.name), str(path))
    found = {"model": str(path.resolve()), "digest": digest, "halo": (0, classifier.halo, classifier.halo)}
    return recipe.model_copy(update={"segmenter": segmenter.model_copy(update=found)})


def _existing_block(volume: Volume, name: str, recipe: Recipe, replace: bool) -> Triple | None:
    """Block shape of the run of this name, whose recipe must be the same unless it is replaced."""
    if name not in run_names(volume):
        check_free(volume, name)
        return None
    if replace and _differs(volume, name, recipe):
        return None
    tables = RunTables(volume, name)
    changed = _changes(tables.recipe, recipe.document())
    if changed:
        raise ExistsError(
            f"{volume.path}: run {name!r} was made with another recipe:\n"
            + "".join(f"  {key}: {before} -> {now}\n" for key, before, now in changed)
            + "keep it, and give this one a name of its own with --name; or throw it away with --replace"
        )
    return tables.block


def check_free(volume: Volume, name: str) -> None:
    """Refuse a name that belongs to a label; but a mask whose tables are lost is made again.

    Raises
    ------
    ConfigError
    """
    label = volume.labels().get(name)
    if label is not None and not (label.kind == "mask" and has_documents(volume, name)):
        raise ConfigError(f"name: {name!r} is a label of {volume.path} already; choose another --name")


def _differs(volume: Volume, name: str, recipe: Recipe) -> bool:
    """Whether the run of this name, if there is one, is not of this recipe, or so damaged that it cannot be opened."""
    if name not in run_names(volume):
        return False
    try:
        tables = RunTables(volume, name)
        opened = tables.all + [table for truth in tables.truths() for table in tables.truth(truth).all]
        return tables.recipe != recipe.document() or not (opened and volume.label(name).levels)
    except (DamageError, MissingInputError, NotAVolumeError):  # or killed while it was replaced
        return True


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Keys, dotted, in which two recipes differ, with the values of both."""
    flat = [_flat(before), _flat(now)]
    keys = sorted({*flat[0], *flat[1]})
    return [(key, *(one.get(key, "-") for one in flat)) for key in keys if flat[0].get(key) != flat[1].get(key)]


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    sections = {key: value for key, value in recipe.items() if isinstance(value, dict)}
    plain = {key: value for key, value in recipe.items() if key not in sections}
    return plain | {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def _check_stages(recipe: Recipe, volume: Volume) -> None:
    top = int(np.iinfo(volume.dtype).max)
    if recipe.valid is not None:
        _check_valid(recipe.valid, volume, top)
    if recipe.correct is not None and recipe.correct.match is not None:
        _check_match(recipe.correct.match, volume)
    if not recipe.threshold.fits(top):
        got = recipe.threshold.model_dump(by_alias=True)["level"]
        raise ConfigError(f"threshold.level: got {got:g}, {volume.dtype} images have levels 0 to {top}")
    for section, stage in (("denoise", recipe.denoise), ("segmenter", recipe.segmenter)):
        if isinstance(stage, PythonDenoise | PythonSegmenter):
            _check_target(section, stage.target)


def _check_valid(valid: Valid, volume: Volume, top: int) -> None:
    if (valid.padding or 0) > top:
        raise ConfigError(f"valid.padding: got {valid.padding}, {volume.dtype} images have levels 0 to {top}")
    if valid.label is not None:
        try:
            volume.truth(valid.label)
        except MissingInputError as error:
            raise MissingInputError(f"valid.label: {error}") from error


def _check_match(z: int, volume: Volume) -> None:
    if z >= volume.shape[0]:
        raise ConfigError(f"correct.match: got {z}, the volume has slices 0 to {volume.shape[0] - 1}")
    if not volume.slices.present()[z]:
        raise ConfigError(f"correct.match: got {z}, a slice that does not exist; add it, or match another one")


def _check_target(section: str, target: str) -> None:
    try:
        find_target(target)
    except ConfigError as error:
        raise ConfigError(f"{section}.{error}") from error
