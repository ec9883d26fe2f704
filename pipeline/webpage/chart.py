"""Charts as SVG inside of a page: its style sheet gives the colours, so they suit light, dark and paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.webpage.markup import Markup, escape, join, tag

WIDTH = 680
RIGHT, TOP, BOTTOM = 14, 10, 38
LEAST_LEFT = 62  # holds four digits, so that most charts begin at one place
_LABEL, _GAP = 22, 7  # of the label up the axis, and between numbers and axis
_DIGIT = 7.7  # of 12 px text: 0.636 em in DejaVu Sans, the widest of the page's fonts

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers from ``low`` to ``high`` along a length of a picture, as they are or by their logarithm."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Place of a number."""
        low, high, value = map(math.log10, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers within, about so many; powers of ten of a logarithm."""
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            return [10.0**power for power in range(first, last + 1, max(1, (last - first) // count + 1))]
        rough = (self.high - self.low) / count
        unit = 10 ** math.floor(math.log10(rough))
        step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [step * number for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def span(
    values: Iterable[float], least: float = 1e-3, possible: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float]:
    """Lowest and highest of the finite values, with a little room around, but none beyond what is possible; apart."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    room = max(0.06 * (high - low), least)
    return max(low - room, possible[0]), min(high + room, possible[1])


def left_room(y: tuple[float, float], log: bool = False) -> float:
    """Width that the numbers along an axis of y take with its label; more where they are long, as of 16 bit."""
    ticks = Scale(*y, 0, 1, log).ticks(_ROWS)
    return max(LEAST_LEFT, _LABEL + _GAP + max((_width(_tick(value, log)) for value in ticks), default=0.0))


@dataclass(slots=True)
class Chart:
    """One pair of axes, and what is drawn between them.

    Parameters
    ----------
    name : str
        Identifies it on its page.
    title, description : str
        What it shows and what is seen: all that a reader who cannot see it gets.
    x, y : tuple of float
        Limits of the axes.
    left : float
        Width beside the axis at least; that of charts below each other is the same, so that their x are.
    """

    name: str
    title: str
    description: str
    x: tuple[float, float]
    y: tuple[float, float]
    left: float = LEAST_LEFT
    x_label: str = ""
    y_label: str = ""
    height: int = 220
    width: int = WIDTH
    log: bool = False
    whole: bool = False  # whether only whole numbers mean something along x
    _drawn: list[Markup] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left = max(self.left, left_room(self.y, self.log))

    @property
    def across(self) -> Scale:
        """Scale of x."""
        return Scale(*self.x, self.left, self.width - RIGHT)

    @property
    def up(self) -> Scale:
        """Scale of y."""
        return Scale(*self.y, self.height - BOTTOM, TOP, self.log)

    def line(self, points: Sequence[Point], kind: str) -> None:
        """Draw a line; where y is not a number it has a gap, and a point alone is a dot."""
        for part in _parts(points):
            places = [self._place((x, y)) for x, y in part]
            if len(places) == 1:
                (x, y) = places[0]
                self._drawn.append(tag("circle", cx=_short(x), cy=_short(y), r=2.5, class_=f"dot {kind}"))
            else:
                self._drawn.append(tag("polyline", points=_pairs(places), class_=f"line {kind}"))

    def band(self, points: Sequence[tuple[float, float, float]], kind: str) -> None:
        """Fill from a lower to an upper y, ``(x, lower, upper)``; with a gap where there is none."""
        for part in _parts(points):
            lower = [self._place((x, y)) for x, y, _ in part]
            upper = [self._place((x, y)) for x, _, y in part]
            self._drawn.append(tag("polygon", points=_pairs([*lower, *reversed(upper)]), class_=f"band {kind}"))

    def dot(self, point: Point, kind: str, words: str) -> None:
        """Mark a point, which has a name."""
        x, y = self._place(point)
        title = tag("title", words)
        self._drawn.append(tag("circle", title, cx=_short(x), cy=_short(y), r=5, class_=f"dot {kind}"))

    def rule(self, x: float, kind: str, words: str) -> None:
        """Mark a place along x, which has a name."""
        at = _short(self.across(x))
        title = tag("title", words)
        self._drawn.append(tag("line", title, x1=at, x2=at, y1=TOP, y2=self.height - BOTTOM, class_=f"rule {kind}"))

    def svg(self) -> Markup:
        """The chart as an element."""
        return tag(
            "svg",
            tag("title", self.title, id=f"{self.name}-title"),
            tag("desc", self.description, id=f"{self.name}-desc"),
            *self._axes(),
            tag("g", *self._drawn, clip_path=f"url(#{self.name}-frame)"),
            tag("clipPath", self._frame(), id=f"{self.name}-frame"),
            id=self.name, viewBox=f"0 0 {self.width} {self.height}", role="img", class_="chart",
            aria_labelledby=f"{self.name}-title {self.name}-desc",
            data_left=_short(self.left), data_right=self.width - RIGHT, data_low=self.x[0], data_high=self.x[1],
        )  # fmt: skip

    def _frame(self) -> Markup:
        return tag(
            "rect", x=_short(self.left - 6), y=TOP - 6, width=_short(self.width - self.left - RIGHT + 12),
            height=self.height - TOP - BOTTOM + 12,
        )  # fmt: skip

    def _axes(self) -> Iterable[Markup]:
        left, bottom, right = self.left, self.height - BOTTOM, self.width - RIGHT
        for value in self.up.ticks(_ROWS):
            y = _short(self.up(value))
            yield tag("line", x1=_short(left), x2=right, y1=y, y2=y, class_="grid")
            yield tag("text", _tick(value, self.log), x=_short(left - _GAP), y=y, dy="0.32em", class_="tick end")
        for value in self.across.ticks(8):
            if self.whole and value != int(value):
                continue
            x = _short(self.across(value))
            yield tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis")
            yield tag("text", _tick(value), x=x, y=bottom + 15, class_="tick middle")
        yield tag("line", x1=_short(left), x2=right, y1=bottom, y2=bottom, class_="axis")
        yield tag("text", self.x_label, x=_short((left + right) / 2), y=self.height - 5, class_="label middle")
        middle = (TOP + bottom) / 2
        yield tag("text", self.y_label, x=13, y=middle, class_="label middle", transform=f"rotate(-90 13 {middle})")

    def _place(self, point: Point) -> Point:
        return self.across(point[0]), self.up(point[1])


def legend(entries: Iterable[tuple[str, str, str]]) -> Markup:
    """Say what is drawn in a chart: ``(shape, kind, words)``, of shape ``line``, ``rule``, ``band`` or ``dot``."""
    shapes = {
        "line": lambda kind: tag("line", x1=1, x2=27, y1=7, y2=7, class_=f"line {kind}"),
        "rule": lambda kind: tag("line", x1=14, x2=14, y1=0, y2=14, class_=f"rule {kind}"),
        "band": lambda kind: tag("rect", x=1, y=2, width=26, height=10, class_=f"band {kind}"),
        "dot": lambda kind: tag("circle", cx=14, cy=7, r=5, class_=f"dot {kind}"),
    }
    items = [
        tag("li", tag("svg", shapes[shape](kind), viewBox="0 0 28 14", class_="key", aria_hidden="true"), words)
        for shape, kind, words in entries
    ]
    return tag("ul", join(items), class_="legend")


def _parts(points: Sequence[tuple[float, ...]]) -> Iterable[list[tuple[float, ...]]]:
    """Runs of points whose numbers are all there."""
    part: list[tuple[float, ...]] = []
    for point in points:
        if all(map(math.isfinite, point)):
            part.append(point)
        elif part:
            yield part
            part = []
    if part:
        yield part


def _pairs(points: Iterable[Point]) -> Markup:
    return escape(" ".join(f"{_short(x)},{_short(y)}" for x, y in points))


def _short(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _width(text: str) -> float:
    """Of a number on the page, at most: commas and points are half as wide as digits, a minus as a digit and a half."""
    return sum(_DIGIT * {",": 0.5, ".": 0.5, "−": 1.4}.get(letter, 1.0) for letter in text)


_ROWS = 4  # numbers along y, about
_POWERS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def _tick(value: float, power: bool = False) -> str:
    if power and (value >= 10_000 or value < 0.01):
        return f"10{str(round(math.log10(value))).translate(_POWERS)}"
    return f"{value:,.10g}".replace("-", "−")
