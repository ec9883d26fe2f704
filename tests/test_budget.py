"""Memory of a task, and the largest block for which it is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.segmentation.budget import choose_block, parallelism, task_bytes
from pipeline.storage.volume import Volume
from tests.builders import run_config

FULL = (2, 8026, 17480)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Full-size volume that holds nothing yet."""
    return Volume.create(tmp_path_factory.mktemp("full") / "brain.zarr", FULL, "uint8")


@pytest.mark.parametrize(
    "block",
    [(1, 8026, 17480), (1, 6144, 17480), (1, 2048, 17480), (1, 2048, 16384)],
    ids=["whole slice", "rows of shards", "one row", "part of a row"],
)
def test_block_is_the_largest_that_fits(full: Volume, block: tuple[int, int, int]) -> None:
    recipe = run_config(full, denoise={"method": "median", "size": [3, 3, 3]}).recipe
    needed = task_bytes(full, recipe, block)
    assert choose_block(full, recipe, needed) == block
    assert np.prod(choose_block(full, recipe, needed - 1)) < np.prod(block)


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({"engine": "threads", "threads": 3}, (1, 3)),
        ({"engine": "local", "workers": 3, "threads": 2}, (3, 2)),
        ({"engine": "address", "address": "tcp://host:1"}, (1, 1)),
    ],
    ids=["threads", "local", "address"],
)
def test_parallelism_is_that_of_the_engine(full: Volume, cluster: dict[str, object], expected: tuple[int, int]) -> None:
    assert parallelism(run_config(full, cluster=cluster)) == expected


def test_memory_of_a_task_grows_with_type_and_window(full: Volume, tmp_path: Path) -> None:
    deep = Volume.create(tmp_path / "deep.zarr", FULL, "uint16")
    block = (1, 8026, 17480)
    plain = task_bytes(full, run_config(full).recipe, block)
    volumetric = run_config(full, denoise={"method": "median", "size": [3, 3, 3]}).recipe
    assert task_bytes(deep, run_config(full).recipe, block) > plain + 2048 * 17480
    assert task_bytes(full, volumetric, block) > plain + 2 * 2048 * 17480
