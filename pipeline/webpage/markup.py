"""HTML that is made of text of users: everything is escaped, unless it was made here."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from shlex import quote
from typing import Any

_VOID = {"br", "col", "hr", "img", "input", "link", "meta", "wbr"}
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """Any value as HTML text, which also fits between quotes; `Markup` stays as it is.

    What would be invisible, turn the text around it, or cannot be encoded (a file name may be any bytes) becomes the
    replacement character.
    """
    return value if isinstance(value, Markup) else Markup(html.escape(_CONTROLS.sub("\ufffd", str(value))))


def join(parts: Iterable[object], between: str = "") -> Markup:
    """Put parts behind each other, those that are no markup escaped."""
    return Markup(escape(between).join(map(escape, parts)))


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """Make an element.

    Parameters
    ----------
    name : str
    *content
        Escaped, unless it is `Markup`.
    **attributes
        By their names, ``_`` for ``-``, and ``class_``, ``for_``. None and False are left out, True has no value.
    """
    words = [name]
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(attribute)
        elif value is not None and value is not False:
            words.append(f'{attribute}="{escape(value)}"')
    opened = f"<{' '.join(words)}>"
    return Markup(opened if name in _VOID else f"{opened}{join(content)}</{name}>")


def rows(cells: Iterable[Iterable[object]], head: bool = False) -> Markup:
    """Rows of a table; those of a body begin with what they are about."""
    made = []
    for row in cells:
        first, *others = row
        names = [tag("th", first, scope="col" if head else "row")]
        made.append(tag("tr", *names, *(tag("th", cell, scope="col") if head else tag("td", cell) for cell in others)))
    return join(made)


def table(caption: object, head: Iterable[object], body: Iterable[Iterable[object]], **attributes: object) -> Markup:
    """Make a table that says what it holds; wide ones scroll by themselves."""
    made = tag(
        "table",
        tag("caption", caption),
        tag("thead", rows([head], head=True)),
        tag("tbody", rows(body)),
        **attributes,
    )
    return tag("div", made, class_="scroll", tabindex="0", role="group", aria_label=caption)


def left_out(total: int, shown: int, what: str) -> list[Markup]:
    """Say how many more there are of what is shown; nothing where that is all."""
    return [tag("p", f"{total - shown:,} more {what} are not shown.")] if total > shown else []


def facts(pairs: Iterable[tuple[object, object]]) -> Markup:
    """Make a list of names and values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_="facts")


def number(value: float | None, text: str, key: str | None = None) -> Markup:
    """Show a number as people read it, which keeps its whole value for programs; ``key`` is its place in the JSON."""
    if value is None:
        return tag("span", "none", data_key=key)
    return tag("data", text, value=json.dumps(value), data_key=key)


def island(document: Mapping[str, Any]) -> Markup:
    """Make JSON that may stand inside a script element, where nothing is unescaped, and that no text can end."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026"))


def score(value: float | None, key: str | None = None, undefined: bool = False) -> Markup:
    """Show a score with four decimals; of one that is 0 / 0, that it is ``undefined``."""
    shown = number(value, "" if value is None else f"{value:.4f}".replace("-", "−"), key)
    return join([shown, " ", tag("span", "(undefined)", class_="mark")]) if undefined else shown


def count(value: int, key: str | None = None) -> Markup:
    """Show a whole number."""
    return number(value, f"{value:,}", key)


def command_code(words: Sequence[str]) -> Markup:
    """A command to type, which wraps between its words: ``--`` at the end of a line would be typed as a word."""
    return tag("code", join((tag("span", quote(word)) for word in words), " "), class_="words")


def path_code(path: object) -> Markup:
    """A path, which wraps behind its slashes rather than inside of names."""
    return tag("code", join(str(path).split("/"), join(["/", tag("wbr")])))


def bar(value: float | None) -> Markup:
    """A score as a bar, beside its number."""
    width = 0 if value is None else max(0.0, min(1.0, value)) * 96
    full = tag("rect", width=f"{width:.1f}", height=12, class_="full")
    return tag("svg", tag("rect", width=96, height=12), full, viewBox="0 0 96 12", class_="bar", aria_hidden="true")
