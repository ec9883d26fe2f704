"""How kernels are compiled: without the GIL, and kept on disk where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile a function on plain arrays when it is first called; never with reordered arithmetic.

    The machine code is cached beside the module or in the user's cache folder. Where neither can be written (a
    read-only installation of a user without a home), every process compiles anew.
    """
    try:
        compiled: Function = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # "no locator available for file"
        compiled = njit(nogil=True)(function)
    return compiled
