"""What all sections of a configuration have in common: closed values, and how a wrong one is shown."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from pipeline.errors import ConfigError

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
TAGS = {
    "denoise": ("method", "median"),
    "threshold": ("method", "otsu"),
    "segmenter": ("kind", "python"),
    "cluster": ("engine", "threads"),
}
"""The key of each section that says of which kind it is, and the kind of a section that leaves it out."""


class Frozen(BaseModel):
    """A value: immutable, and closed against keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _parse_number(number: object) -> object:
    if isinstance(number, bool):  # which pydantic takes for 1: ``clahe: true`` would be a limit of 1
        raise ValueError(f"got {number}, expected a number")  # noqa: TRY004  (pydantic collects these)
    return number


Integer = Annotated[int, BeforeValidator(_parse_number)]
Number = Annotated[float, BeforeValidator(_parse_number)]


def of_kind(section: str, optional: bool = False) -> BeforeValidator:
    """Let a section leave out the key that says of which kind it is."""
    tag, default = TAGS[section]

    def fill(value: object) -> object:
        if isinstance(value, BaseModel) or (optional and value is None):
            return value
        if not isinstance(value, Mapping):
            problem = f"got {show(value)}, expected keys below it, such as `{tag}: {default}`"
            raise ValueError(problem)  # noqa: TRY004  (pydantic collects these)
        return {tag: default, **value}

    return BeforeValidator(fill)


def of_keys(example: str, optional: bool = False) -> BeforeValidator:
    """Say of a section without keys what it could have."""

    def check(value: object) -> object:
        if isinstance(value, Mapping | BaseModel) or (optional and value is None):
            return value
        raise ValueError(f"got {show(value)}, expected keys below it, such as `{example}`")

    return BeforeValidator(check)


def parse_name(name: object) -> str:
    """Return a name, or say in a `ValueError` what is wrong with it."""
    if not isinstance(name, str):
        raise ValueError(f"got {show(name)}, a name is text; put it in quotes")  # noqa: TRY004
    if not re.fullmatch(NAME_PATTERN, name) or name.lower() == "zarr.json":  # the latter is a file of every Zarr group
        raise ValueError(
            f"got {show(name)}, a name starts with a letter or digit, and goes on with at most 99 letters, digits, "
            "'.', '_' and '-'"
        )
    return name


def check_name(name: str, what: str) -> str:
    """Return a name of a label or run that can be a folder on every file system."""
    try:
        return parse_name(name)
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error


def show(value: object) -> str:
    """Value for a message, cut where it is long."""
    return "nothing" if value is None else _short.repr(value)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
