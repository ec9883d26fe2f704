"""Exact segmentation of KESM volumes: one pass, bounded memory, resumable.

>>> import pipeline as kesm
>>> summary = kesm.run(kesm.RunConfig(volume="brain.zarr", truth="groundtruth"))  # doctest: +SKIP
>>> summary.counts, summary.scores.mcc  # doctest: +SKIP
>>> mask = kesm.lazy_array(kesm.Volume("brain.zarr").label("otsu").full)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.findings.summary import Summary, summarise
    from pipeline.kernels.confusion import Counts, Scores
    from pipeline.phantom import Phantom
    from pipeline.segmentation.execute import lazy_array
    from pipeline.segmentation.plan import make_plan
    from pipeline.segmentation.runs import run
    from pipeline.settings.config import RunConfig
    from pipeline.settings.configfile import load_config
    from pipeline.settings.recipe import Recipe
    from pipeline.storage.volume import Volume

__all__ = [
    "Counts",
    "Phantom",
    "Recipe",
    "RunConfig",
    "Scores",
    "Summary",
    "Volume",
    "lazy_array",
    "load_config",
    "make_plan",
    "run",
    "summarise",
]

_OWNERS = {
    "Counts": "kernels.confusion",
    "Phantom": "phantom",
    "Recipe": "settings.recipe",
    "RunConfig": "settings.config",
    "Scores": "kernels.confusion",
    "Summary": "findings.summary",
    "Volume": "storage.volume",
    "lazy_array": "segmentation.execute",
    "load_config": "settings.configfile",
    "make_plan": "segmentation.plan",
    "run": "segmentation.runs",
    "summarise": "findings.summary",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the stack takes seconds, and ``kesm --help`` must not."""
    if name not in _OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_OWNERS[name]}"), name)
