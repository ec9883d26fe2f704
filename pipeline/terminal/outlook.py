"""What a run would do, and its recipe, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.machine import gb
from pipeline.printable import printable
from pipeline.segmentation.plan import Plan
from pipeline.storage.confusion_label import confusion_name
from pipeline.terminal.console import make_console

SCOPES = {"smooth": "smoothed tile"}


def show_plan(plan: Plan, console: Console | None = None) -> None:
    """Print what a run would do."""
    console = console or make_console()
    table = Table(title=f"plan of run {plan.name}", title_justify="left", show_header=False, min_width=50)
    for key, value in plan_rows(plan):
        table.add_row(key, printable(value))
    console.print(table)


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    """The plan in words."""
    total = plan.grids.tiles.cover(plan.region).size
    return [
        ("volume", f"{plan.volume}, {' x '.join(map(str, plan.grids.tiles.shape))} voxels (z, y, x)"),
        ("recipe", recipe_words(plan.recipe.document())),
        ("filter", "compiled" if plan.fast_filter else "SciPy: exact, but a hundred times slower than size 3 or 5"),
        ("truth", plan.truth or "none: no scores"),
        ("region", str(plan.region)),
        ("blocks", f"{plan.blocks.size} of {' x '.join(map(str, plan.block))} voxels; each writes whole shards of "
         f"{' x '.join(map(str, plan.grids.shards.step))}, no shard is written by two"),
        ("tiles", f"{total:,}, of which {plan.tiles_done:,} are done already"),
        ("reads", f"{gb(plan.read_bytes)} (decoded), in "
         f"{'one pass' if plan.passes == 1 else f'{plan.passes} passes'}"),
        ("writes", f"{gb(plan.written_bytes)} (decoded): the mask"
         + (f", and {confusion_name(plan.name)}, which shows its errors" if plan.confusion else "")),
        ("tasks at once", "one for each thread of the workers" if plan.engine == "address" else str(plan.tasks)),
        ("peak memory", f"{gb(plan.peak_bytes)} of {gb(plan.limit_bytes)} allowed "
         f"({gb(plan.task_bytes)} a task)" + (", for each thread" if plan.engine == "address" else "")),
    ]  # fmt: skip


def recipe_words(recipe: Mapping[str, Any]) -> str:
    """A recipe, as it is stored, in one line."""
    stages = [f"{recipe['foreground']} vessels"]
    stages += [f"{name} {_settings(recipe[name])}" for name in ("valid", "correct") if name in recipe]
    stages.append(_filter_words(recipe["denoise"]))
    if "segmenter" in recipe:
        stages.append(f"segmented by {recipe['segmenter'].get('target') or recipe['segmenter'].get('model')}")
    else:
        threshold = recipe["threshold"]
        level = f" {threshold['level']:g}" if "level" in threshold else ""
        sizes = {"tile": f" of {recipe['tile']}", "smooth": f" of {recipe['tile']}"}
        of = (
            f" from {threshold['size']} around it"
            if threshold["scope"] == "voxel"
            else sizes.get(threshold["scope"], "")
        )
        stages.append(f"{threshold['method']}{level} per {SCOPES.get(threshold['scope'], threshold['scope'])}{of}")
        rule = {key: threshold[key] for key in ("min_separability", "min_contrast", "on_no_signal") if key in threshold}
        stages += [_settings(rule)] if rule else []
    if "clean" in recipe:
        stages.append(f"clean {_settings(recipe['clean'])}")
    return ", ".join(stages)


def _filter_words(denoise: Mapping[str, Any]) -> str:
    if denoise["method"] == "median":
        size = denoise["size"]
        return "median " + " x ".join(map(str, size if isinstance(size, list) else (1, size, size)))
    words = {"none": "no filter", "gaussian": f"gaussian {denoise.get('sigma', 1):g}"}
    return words.get(denoise["method"], f"filter {denoise.get('target')}")


def _settings(values: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
