"""Memory that a thread keeps."""

from __future__ import annotations

import numpy as np

from pipeline.scratch import Scratch


def test_scratch_reuses_its_memory_and_grows() -> None:
    scratch = Scratch()
    large = scratch.array("a", (10, 10), np.uint16)
    small = scratch.array("a", (5,), np.uint8)
    assert np.shares_memory(large, small)
    assert small.flags.c_contiguous
    assert not np.shares_memory(large, scratch.array("b", (5,), np.uint8))
    assert scratch.array("a", (1000,), np.float64).shape == (1000,)
