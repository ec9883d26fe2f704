"""Functions of the user's own, named ``module:function`` in a recipe: found, called, and not trusted."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, TargetError

Array = NDArray[Any]
Function = Callable[[Array], Any]


@lru_cache(maxsize=16)
def find_target(target: str) -> Function:
    """Return the function that ``module:function`` names; modules are looked for in the current folder too.

    Raises
    ------
    ConfigError
        If there is none.
    """
    module, _, name = target.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:  # noqa: PTH109  (entries of sys.path are text)
        sys.path.append(os.getcwd())  # noqa: PTH109
    try:
        function = getattr(import_module(module), name, None)
    except (Exception, SystemExit) as error:  # whatever a module raises: also a script that parses its command line
        raise ConfigError(
            f"target: {target!r} cannot be imported ({type(error).__name__}: {error}); put the module into the current "
            "folder or install it, on all workers"
        ) from error
    if not callable(function):
        raise ConfigError(f"target: {target!r}: the module has no function {name!r}")
    found: Function = function
    return found


def call_target(target: str, block: Array) -> Array:
    """Call a target on a block of grey levels, (z, y, x), and return the array that it made.

    Raises
    ------
    TargetError
        If it raises, or returns no array; with its traceback.
    """
    function = find_target(target)
    try:
        made = function(block)
    except (Exception, SystemExit) as error:  # whatever the function raises: its block fails, and the others go on
        text = "".join(traceback.format_exception(error))
        raise TargetError(f"{target} raised {type(error).__name__}: {error}", text) from error
    if not isinstance(made, np.ndarray):
        raise TargetError(f"{target} returned {type(made).__name__}, expected an array")
    return made


def grey_block(target: str, block: Array) -> Array:
    """Return what a filter made of a block: of the same shape and type.

    Raises
    ------
    TargetError
    """
    made = call_target(target, block)
    if (made.shape, made.dtype) != (block.shape, block.dtype):
        raise TargetError(
            f"{target} returned {made.dtype} {made.shape}, expected the type and shape of its block, "
            f"{block.dtype} {block.shape}"
        )
    return made


def binary_plane(target: str, block: Array) -> NDArray[np.uint8]:
    """Return what a segmenter made of the middle plane of a block, (y, x): 255 vessel, 0 background.

    It may return that plane, or the whole block, of bool, or of integers where anything but 0 is vessel.

    Raises
    ------
    TargetError
    """
    made = call_target(target, block)
    if made.dtype.kind not in "bui" or made.shape not in {block.shape, block.shape[1:]}:
        raise TargetError(
            f"{target} returned {made.dtype} {made.shape}, expected bool or integers of its block's shape, "
            f"{block.shape}, or of a plane of it, {block.shape[1:]}"
        )
    plane = made if made.ndim == 2 else made[len(made) // 2]
    return np.where(plane != 0, np.uint8(255), np.uint8(0))
