"""Figures of a volume and its runs, drawn by matplotlib; only this package imports it.

>>> from pipeline import Volume, figures
>>> figure = figures.draw("overlay", Volume("brain.zarr"), figures.Request(z=3))  # doctest: +SKIP
>>> figures.save(figure, Path("overlay.pdf"))  # doctest: +SKIP

Figures are made without pyplot: no state is shared, and nobody's settings change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from matplotlib.figure import Figure

from pipeline.errors import ConfigError
from pipeline.figures.canvas import Style, format_of, save
from pipeline.figures.charts import draw_curves, draw_histogram, draw_profile
from pipeline.figures.exhibit import read_gallery, read_map, read_overlay, read_overview, read_profile
from pipeline.figures.pictures import (
    MAP_IN,
    OVERLAY_IN,
    OVERVIEW_IN,
    draw_gallery,
    draw_map,
    draw_overlay,
    draw_overview,
    draw_trial,
)
from pipeline.figures.subject import Request, Subject
from pipeline.figures.tryout import read_curves, read_distribution, read_trial
from pipeline.storage.volume import Volume

__all__ = ["KINDS", "Kind", "Request", "Style", "draw", "draw_subject", "find_kind", "format_of", "save"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of figure.

    Attributes
    ----------
    read : callable
        What it shows, from a volume, a request, and the output pixels along a picture's longer side.
    draw : callable
        The figure of what was read, in a style.
    options : frozenset of str
        What it takes beside run, region, slice and resolution.
    side : float
        Longer side of a picture in inches.
    """

    read: Callable[[Volume, Request, int], Any]
    draw: Callable[[Any, Style], Figure]
    options: frozenset[str]
    side: float = 1.0


_COLOURED = frozenset({"colours", "palette", "alpha"})
KINDS = {
    "overview": Kind(read_overview, draw_overview, frozenset({"truth", "at", "level"}), OVERVIEW_IN),
    "histogram": Kind(read_distribution, draw_histogram, frozenset({"truth", "at"})),
    "try-all": Kind(read_trial, draw_trial, frozenset({"truth", "at"})),
    "overlay": Kind(read_overlay, draw_overlay, frozenset({"truth", "at", "level"}) | _COLOURED, OVERLAY_IN),
    "profile": Kind(read_profile, draw_profile, frozenset({"truth"})),
    "map": Kind(read_map, draw_map, frozenset({"truth", "level", "metric"}), MAP_IN),
    "curves": Kind(read_curves, draw_curves, frozenset({"truth", "at"})),
    "worst": Kind(read_gallery, draw_gallery, frozenset({"truth", "metric"}) | _COLOURED),
}


def find_kind(name: str) -> Kind:
    """Find a kind of figure by its name.

    Raises
    ------
    ConfigError
        If there is none; it says which is alike.
    """
    if name not in KINDS:
        alike = get_close_matches(name, KINDS, 1)
        hint = f"; did you mean {alike[0]}?" if alike else ""
        raise ConfigError(f"figure: got {name!r}, expected one of: {', '.join(KINDS)}{hint}")
    return KINDS[name]


def draw(kind: str, volume: Volume, request: Request = Request(), style: Style = Style()) -> Figure:  # noqa: B008
    """Draw a figure of a volume.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    volume : Volume
    request : Request, optional
        Run, truth and voxels.
    style : Style, optional
        Colours and resolution.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot; a notebook shows it.

    Raises
    ------
    ConfigError, MissingInputError, RegionError
        If something that it needs does not exist, or is not named where there are several.
    """
    return draw_subject(kind, volume, request, style)[0]


def draw_subject(kind: str, volume: Volume, request: Request, style: Style) -> tuple[Figure, Subject]:
    """As `draw`; also what is shown, and what could not be read of the run's tables, which the figure leaves out."""
    found = find_kind(kind)
    shown = found.read(volume, request, round(found.side * style.dpi))
    return found.draw(shown, style), shown.subject
