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
        self._arrays: dict[str, NDArray[Any]] = {}
        self._flat: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """C-contiguous array with undefined content, valid until the next call with the same name."""
        array = self._arrays.get(name)
        if array is not None and array.shape == shape and array.dtype == dtype:
            return array
        size = math.prod(shape) * np.dtype(dtype).itemsize
        flat = self._flat.get(name)
        if flat is None or flat.nbytes < size:
            flat = self._flat[name] = np.empty(size, np.uint8)
        array = self._arrays[name] = np.ndarray(shape, dtype, flat)
        return array


scratch = Scratch()
