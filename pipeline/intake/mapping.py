"""What the values of a label's files mean: one mapping for each label, decided over all its files and then binding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import LabelValueError
from pipeline.kernels.histogram import TRUTH_BACKGROUND, TRUTH_UNLABELLED, TRUTH_VESSEL

LISTED_VALUES = 12


@dataclass(frozen=True, slots=True)
class Mapping:
    """What the values of a label's files mean; one for each label, binding for all its files.

    Attributes
    ----------
    vessel : int or None
        The one value that is vessel, 0 being background; None as long as no file has held another value than 0.
    vessel_above : float or None
        Alternatively the level above which values are vessel.
    unlabelled : int or None
        The value that means "not annotated".
    """

    vessel: int | None
    vessel_above: float | None = None
    unlabelled: int | None = None

    def apply(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Stored values of a label: 0 background, 255 vessel, 127 not annotated."""
        vessel = values > self.vessel_above if self.vessel_above is not None else values == (self.vessel or -1)
        stored = np.where(vessel, np.uint8(TRUTH_VESSEL), np.uint8(TRUTH_BACKGROUND))
        if self.unlabelled is not None:
            stored[values == self.unlabelled] = TRUTH_UNLABELLED
        return stored

    def __str__(self) -> str:
        """What the values mean, in words."""
        if self.vessel_above is not None:
            vessel = f"vessel above {self.vessel_above:g}"
        else:
            vessel = f"0 background, {'any one value' if self.vessel is None else self.vessel} vessel"
        return vessel + ("" if self.unlabelled is None else f", {self.unlabelled} not annotated")

    def document(self) -> dict[str, Any]:
        """The mapping as plain values."""
        return {"vessel": self.vessel, "vessel_above": self.vessel_above, "unlabelled": self.unlabelled}


class Wording(NamedTuple):
    """How the options of a label are written where its user writes them."""

    label: str
    vessel_above: str
    unlabelled: str


COMMAND_LINE = Wording("--label", "--vessel-above LEVEL", "--unlabelled VALUE")


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """How files become a label.

    Attributes
    ----------
    name : str
    start_z : int or None
        Slice of the first file; without it, files are placed by their names.
    vessel_above, unlabelled : see `Mapping`
    wording : Wording
        For messages.
    """

    name: str
    start_z: int | None = None
    vessel_above: float | None = None
    unlabelled: int | None = None
    wording: Wording = COMMAND_LINE


def decide_mapping(values: Sequence[int], label: LabelOptions, stored: Mapping | None) -> Mapping:
    """What the values of a label's files mean, over all of them.

    Raises
    ------
    LabelValueError
        If they do not say it by themselves, or contradict what is stored.
    """
    called = f"{label.wording.label} {label.name}"
    asked = Mapping(None, label.vessel_above, label.unlabelled)
    if stored is not None:
        given = {key: value for key, value in asked.document().items() if value is not None}
        if any(getattr(stored, key) != value for key, value in given.items()):
            raise LabelValueError(
                f"{called}: its first files were read as {stored}, got {asked}; leave the options out, or "
                "ingest under another name"
            )
        asked = Mapping(None, stored.vessel_above, stored.unlabelled)
    if asked.vessel_above is not None:
        return asked
    others = [value for value in values if value not in (0, asked.unlabelled)]
    vessel = stored.vessel if stored is not None else None
    if len(others) > 1 or (vessel is not None and others not in ([], [vessel])):
        listed = ", ".join(map(str, values[:LISTED_VALUES])) + (", ..." if len(values) > LISTED_VALUES else "")
        if stored is None:
            raise LabelValueError(
                f"{called}: its files hold {len(values)} values ({listed}), expected 0 and one other; "
                f"say which are vessel with {label.wording.vessel_above}, and what nobody annotated with "
                f"{label.wording.unlabelled}"
            )
        raise LabelValueError(
            f"{called}: these files hold {len(values)} values ({listed}), its first files were read as "
            f"{stored}; convert these, or ingest under another name"
        )
    return Mapping(others[0] if others else vessel, None, asked.unlabelled)
