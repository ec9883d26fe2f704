"""How the same work on many things is given out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Runner(Protocol):
    """Calls a function on every item, several at a time, and returns the results in order."""

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item], what: str = "") -> list[Result]:
        """Return ``[function(item) for item in items]``; ``what`` names the step, where there are several."""
