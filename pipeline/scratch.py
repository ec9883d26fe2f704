"""Memory that a thread keeps from block to block."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Scratch(threading.local):
    """Buffers of one thread, kept from block to block: fresh large ones cost a page fault for every 4096 bytes."""

    def __init__(self) -> None:
        self._flat: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """C-contiguous array with undefined content, valid until the next call with the same name."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        flat = self._flat.get(name)
        if flat is None or flat.nbytes < size:
            flat = self._flat[name] = np.empty(size, np.uint8)
        return np.ndarray(shape, dtype, flat)


scratch = Scratch()
