"""Recipe, run options and cluster as closed models; YAML in, all errors out at once.

A recipe is what decides the bits of a mask. Everything else (where, how much of it, on which machines) is beside it.
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from pipeline.errors import ConfigError, MissingInputError, RegionError
from pipeline.geometry import Box, Triple
from pipeline.histogram import otsu_level

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
TAGS = {"denoise": ("method", "median"), "threshold": ("method", "otsu"), "cluster": ("engine", "threads")}
"""The key of each section that says of which kind it is, and the kind of a section that leaves it out."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class Frozen(BaseModel):
    """A value: immutable, and closed against keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _of_kind(section: str) -> BeforeValidator:
    tag, default = TAGS[section]

    def fill(value: object) -> object:
        if isinstance(value, BaseModel):
            return value
        if not isinstance(value, Mapping):
            problem = f"got {_show(value)}, expected keys below it, such as `{tag}: {default}`"
            raise ValueError(problem)  # noqa: TRY004  (pydantic collects these)
        return {tag: default, **value}

    return BeforeValidator(fill)


class NoDenoise(Frozen):
    """Thresholds the image as it is."""

    method: Literal["none"] = "none"

    @property
    def window(self) -> Triple:
        """Filter window (z, y, x) in voxels."""
        return 1, 1, 1


class MedianDenoise(Frozen):
    """Median of a window; equals ``scipy.ndimage.median_filter(..., mode="reflect")`` on the whole volume."""

    method: Literal["median"] = "median"
    size: int | Triple = Field(3, description="odd window in voxels: one number in plane, or [z, y, x]")

    @field_validator("size", mode="before")
    @classmethod
    def _odd(cls, size: Any) -> Any:
        lengths = list(size) if isinstance(size, list | tuple) else [size]
        if not (len(lengths) == 3 or lengths == [size]) or {type(length) for length in lengths} != {int}:
            raise ValueError(f"got {_show(size)}, expected one odd number, or three as [z, y, x]")
        for length in lengths:
            if not 1 <= length <= 99:
                raise ValueError(f"got {_show(length)}, a median window has 1 to 99 voxels")
            if length % 2 == 0:
                raise ValueError(f"got {length}, a median needs an odd size; use {length + 1}")
        return size

    @property
    def window(self) -> Triple:
        """Filter window (z, y, x) in voxels."""
        return (1, self.size, self.size) if isinstance(self.size, int) else self.size


class OtsuThreshold(Frozen):
    """Level that maximises the variance between the two classes (Otsu 1979)."""

    method: Literal["otsu"] = "otsu"
    scope: Literal["tile"] = Field("tile", description="voxels that share a level")

    def level(self, counts: NDArray[np.integer[Any]]) -> float:
        """Level of a histogram, on its own scale."""
        return float(otsu_level(counts))


class FixedThreshold(Frozen):
    """One level for every tile."""

    method: Literal["fixed"] = "fixed"
    scope: Literal["tile"] = Field("tile", description="voxels that share a level")
    level_value: float = Field(alias="level", ge=0, le=65535, description="grey level on the filtered scale")

    def level(self, counts: NDArray[np.integer[Any]]) -> float:  # noqa: ARG002
        """Level of any histogram: the one that was given."""
        return self.level_value


Denoise = Annotated[NoDenoise | MedianDenoise, Field(discriminator="method"), _of_kind("denoise")]
Threshold = Annotated[OtsuThreshold | FixedThreshold, Field(discriminator="method"), _of_kind("threshold")]


class Recipe(Frozen):
    """What decides a mask's bits."""

    foreground: Literal["dark", "bright"] = Field(
        "dark", description="whether vessels are darker or brighter than tissue"
    )
    tile: int = Field(512, ge=16, le=2048, description="side in voxels of the tile that is thresholded by itself")
    denoise: Denoise = MedianDenoise()
    threshold: Threshold = OtsuThreshold()

    @property
    def halo(self) -> Triple:
        """Voxels beyond a block that its filter reads, (z, y, x)."""
        z, y, x = self.denoise.window
        return z // 2, y // 2, x // 2

    def document(self) -> dict[str, Any]:
        """The recipe as plain values."""
        return self.model_dump(mode="json", by_alias=True, include=set(Recipe.model_fields))


class ThreadsCluster(Frozen):
    """Threads of this process."""

    engine: Literal["threads"] = "threads"
    threads: int | None = Field(None, ge=1, le=1024, description="threads; default one for each CPU")


class LocalCluster(Frozen):
    """Processes on this machine, with a dashboard."""

    engine: Literal["local"] = "local"
    workers: int | None = Field(None, ge=1, le=1024, description="processes; default one for each CPU")
    threads: int = Field(1, ge=1, le=1024, description="threads of each process")


class AddressCluster(Frozen):
    """A Dask scheduler that runs somewhere; its workers see the volume under the same path."""

    engine: Literal["address"] = "address"
    address: str = Field(description="such as tcp://host:8786")

    @field_validator("address", mode="before")
    @classmethod
    def _has_protocol(cls, address: object) -> object:
        if not isinstance(address, str) or not re.fullmatch(r"(tcp|tls|ws|wss|inproc)://.+", address):
            raise ValueError(f"got {_show(address)}, expected an address such as tcp://host:8786")
        return address


Cluster = Annotated[ThreadsCluster | LocalCluster | AddressCluster, Field(discriminator="engine"), _of_kind("cluster")]


def parse_bytes(value: object) -> int | None:
    """``4GB`` as 4 * 10^9 bytes, ``4GiB`` as 4 * 2^30; numbers are bytes."""
    if value is None:
        return None
    text = str(value) if type(value) is int else value
    match = re.fullmatch(r"\s*(\d{0,18}\.?\d{1,18})\s*([A-Za-z]*)\s*", text) if isinstance(text, str) else None
    size = int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
    if size < 1:
        raise ValueError(f"got {_show(value)}, which is no amount of memory; write it as 4GB or 500MB")
    return size


def _parse_region(value: object) -> object:
    if value is None or isinstance(value, Region | Mapping):
        return value
    parts = value.split(",") if isinstance(value, str) else [""]
    matches = [re.fullmatch(r"\s*([zyx])\s*=\s*(\d{1,18})\s*:\s*(\d{1,18})\s*", part) for part in parts]
    spans = {match[1]: (int(match[2]), int(match[3])) for match in matches if match}
    if len(spans) < len(parts):
        raise ValueError(f"got {_show(value)}, which is no region; write it as z=0:10,y=0:4096,x=0:4096")
    return spans


def _parse_name(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"got {_show(name)}, a name is text; put it in quotes")  # noqa: TRY004
    if not re.fullmatch(NAME_PATTERN, name) or name.lower() == "zarr.json":  # the latter is a file of every Zarr group
        raise ValueError(
            f"got {_show(name)}, a name starts with a letter or digit, and goes on with at most 99 letters, digits, "
            "'.', '_' and '-'"
        )
    return name


def _parse_path(path: object) -> object:
    if not isinstance(path, str | Path) or not str(path):
        raise ValueError(f"got {_show(path)}, expected the folder of a volume, such as brain.zarr")
    return path


class Region(Frozen):
    """Part of a volume in voxels, half-open; an axis that is left out is whole."""

    z: tuple[int, int] | None = None
    y: tuple[int, int] | None = None
    x: tuple[int, int] | None = None

    @field_validator("z", "y", "x", mode="before")
    @classmethod
    def _span(cls, span: object) -> object:
        match span:
            case None | [int(), int()]:
                return span
        raise ValueError(f"got {_show(span)}, expected [start, stop] in voxels")

    def box(self, shape: Triple) -> Box:
        """The region in a volume of this shape.

        Raises
        ------
        RegionError
            If it is empty or reaches outside.
        """
        spans = []
        for axis, span, length in zip("zyx", (self.z, self.y, self.x), shape, strict=True):
            start, stop = span or (0, length)
            if not 0 <= start < stop <= length:
                raise RegionError(
                    f"region: got {axis}={start}:{stop}, the volume has {axis}=0:{length}; choose a part of that"
                )
            spans.append((start, stop))
        (z0, z1), (y0, y1), (x0, x1) = spans
        return Box((z0, y0, x0), (z1, y1, x1))


class RunConfig(Recipe):
    """A recipe, the volume that it is for, and the run options."""

    volume: Annotated[Path, BeforeValidator(_parse_path)] = Field(
        description="the OME-Zarr volume; relative to the configuration file"
    )
    name: Annotated[str, BeforeValidator(_parse_name)] | None = Field(
        None, description="name of run and mask; default: the method"
    )
    truth: Annotated[str, BeforeValidator(_parse_name)] | None = Field(
        None, description="label to compare the mask with"
    )
    region: Annotated[Region | None, BeforeValidator(_parse_region)] = None
    memory: Annotated[int | None, BeforeValidator(parse_bytes)] = Field(None, description="bytes of the whole run")
    cluster: Cluster = ThreadsCluster()

    @property
    def recipe(self) -> Recipe:
        """The recipe by itself."""
        return Recipe.model_validate(self.document())

    @property
    def run_name(self) -> str:
        """Name of the run: as given, else the threshold's method."""
        return self.name or self.threshold.method


def load_config(source: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a YAML configuration, or take the default recipe for a volume's folder.

    Parameters
    ----------
    source : Path
        A ``.yaml`` file, or the folder of a volume.
    overrides : mapping, optional
        Dotted keys and their values, applied over the file. To set a section's ``method`` or ``engine`` drops what the
        file says of another one.

    Raises
    ------
    MissingInputError
        If the file is not there.
    ConfigError
        With every error of the file, each with its line and dotted path.
    """
    values: dict[str, Any] = {"volume": str(source)}
    places = _Places("options", {}, set(overrides or {}))
    problems: list[tuple[float, str]] = []
    if source.suffix in {".yaml", ".yml"}:
        node, values = _read_yaml(source)
        problems = [(line, f"{source}:{line}: {text}") for line, text in _duplicates(node)]
        places = _Places(str(source), dict(_lines(node)), places.options)
        if isinstance(values.get("volume"), str) and values["volume"]:
            values["volume"] = str(source.parent / Path(values["volume"]).expanduser())
    for key, value in sorted((overrides or {}).items(), key=lambda item: not _is_tag(item[0])):
        _override(values, key, value)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        problems += [_describe(problem, places) for problem in error.errors()]
    if problems:
        raise ConfigError("\n".join(text for _, text in sorted(problems)))
    return config


def parse_assignment(text: str) -> tuple[str, Any]:
    """``threshold.level=79`` as its dotted key and its YAML value."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key.strip()):
        raise ConfigError(f"--set: got {_show(text)}, write it as key=value, such as threshold.method=fixed")
    try:
        return key.strip(), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--set {key}: got {_show(value)}, which is no YAML value") from error


def check_name(name: str, what: str) -> str:
    """Return a name of a label or run that can be a folder on every file system."""
    try:
        return _parse_name(name)
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error


def suggest(word: str, known: Sequence[str]) -> str:
    """Text that names the nearest of the known words, or all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else f"expected one of {', '.join(sorted(known))}"


def _is_tag(key: str) -> bool:
    section, _, last = key.partition(".")
    return section in TAGS and TAGS[section][0] == last


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        values[section] = dict(inner) if isinstance(inner, Mapping) else {}
        values = values[section]
    if _is_tag(key) and values.get(last, TAGS[sections[0]][1]) != value:
        values.clear()
    values[last] = value


def _read_yaml(path: Path) -> tuple[yaml.MappingNode, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such configuration file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{path}:{mark.line + 1 if mark else 1}: is not YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # dates such as 2024-13-45 are ValueErrors
        raise ConfigError(f"{path}: is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(node, yaml.MappingNode):
        got = "is empty" if node is None else f"got {_show(values)}"
        raise ConfigError(f"{path}: {got}, expected keys and values such as `volume: brain.zarr`")
    return node, values


def _lines(node: yaml.MappingNode) -> Iterator[tuple[str, int]]:
    """Dotted keys and their lines; sections hold no sections, and aliases could make deeper ones endless."""
    for key, value in node.value:
        yield key.value, key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            yield from ((f"{key.value}.{inner.value}", inner.start_mark.line + 1) for inner, _ in value.value)


def _duplicates(node: yaml.MappingNode) -> Iterator[tuple[int, str]]:
    first: dict[str, int] = {}
    for dotted, line in _lines(node):
        if first.setdefault(dotted, line) != line:
            yield line, f"{dotted}: stands twice, first in line {first[dotted]}; keep one"


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the values of a configuration come from."""

    origin: str
    lines: dict[str, int]
    options: set[str]

    def find(self, keys: Sequence[str]) -> tuple[float, str]:
        """Line, or infinity, and text of the place of a key, or of the nearest section around it."""
        for length in range(len(keys), 0, -1):
            dotted = ".".join(keys[:length])
            if dotted in self.options:
                return math.inf, "options"
            if dotted in self.lines:
                return self.lines[dotted], f"{self.origin}:{self.lines[dotted]}"
        return math.inf, self.origin


def _describe(problem: Any, places: _Places) -> tuple[float, str]:
    """Line and text for one error of pydantic: where, what was got, what is wanted."""
    keys = [str(part) for part in problem["loc"]]
    tag = TAGS[keys[0]][0] if keys[0] in TAGS else ""
    kind = keys.pop(1) if tag and len(keys) > 1 else ""  # pydantic puts the kind of a section after its name
    where = keys
    match problem["type"]:
        case "extra_forbidden":
            text = _unknown(keys, kind)
        case "missing":
            text = f"is required by `{tag}: {kind}`" if kind else "is required"
            where = [keys[0], tag] if kind else keys
        case "union_tag_invalid":
            got = problem["input"][tag]
            keys.append(tag)
            text = f"got {_show(got)}, {suggest(str(got), list(_KINDS[keys[0]]))}"
        case _:
            text = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            text = text if text.startswith("got ") else f"got {_show(problem['input'])}, {text}"
    line, place = places.find(where)
    return line, f"{place}: {'.'.join(keys)}: {text}"


def _unknown(keys: Sequence[str], kind: str) -> str:
    """Text about a key that its section does not have."""
    section, key = keys[0], keys[-1]
    others = [f"`{TAGS[section][0]}: {other}`" for other, known in _KINDS.get(section, {}).items() if key in known]
    if kind and others:
        return f"is a key of {' and '.join(others)}, not of `{kind}`"
    if kind:
        return f"unknown key; {suggest(key, _KINDS[section][kind])}"
    return f"unknown key; {suggest(key, _keys(RunConfig if len(keys) == 1 else Region))}"


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


_KINDS = {
    section: {kind.model_fields[TAGS[section][0]].default: _keys(kind) for kind in get_args(get_args(union)[0])}
    for section, union in (("denoise", Denoise), ("threshold", Threshold), ("cluster", Cluster))
}


def _show(value: object) -> str:
    """Value for a message, cut where it is long."""
    return "nothing" if value is None else _short.repr(value)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
