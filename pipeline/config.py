"""Recipe, run options and cluster as closed models; YAML in, all errors out at once.

A recipe is what decides the bits of a mask. Everything else (where, how much of it, on which machines) is beside it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from pipeline.errors import ConfigError, MissingInputError, RegionError
from pipeline.geometry import Box, Triple
from pipeline.histogram import otsu_level

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class Frozen(BaseModel):
    """A value: immutable, and closed against keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


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

    @field_validator("size")
    @classmethod
    def _odd(cls, size: int | Triple) -> int | Triple:
        for length in (size,) if isinstance(size, int) else size:
            if length < 1 or length % 2 == 0:
                raise ValueError(f"got {length}, a median needs an odd size of at least 1; use {max(1, length) | 1}")
            if length > 99:
                raise ValueError(f"got {length}, windows of more than 99 voxels are not supported")
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


Denoise = Annotated[NoDenoise | MedianDenoise, Field(discriminator="method")]
Threshold = Annotated[OtsuThreshold | FixedThreshold, Field(discriminator="method")]


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
    address: str = Field(pattern=r"^(tcp|tls|ws|wss|inproc)://.+$", description="such as tcp://host:8786")


Cluster = Annotated[ThreadsCluster | LocalCluster | AddressCluster, Field(discriminator="engine")]


def parse_bytes(value: object) -> object:
    """``4GB`` as 4 * 10^9 bytes, ``4GiB`` as 4 * 2^30; numbers are bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", value)
    if not match or match[2].upper() not in _UNITS:
        raise ValueError(f"got {value!r}, which is no amount of memory; write it as 4GB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _parse_region(value: object) -> object:
    if not isinstance(value, str):
        return value
    spans: dict[str, tuple[int, int]] = {}
    for part in value.split(","):
        match = re.fullmatch(r"\s*([zyx])\s*=\s*(\d+)\s*:\s*(\d+)\s*", part)
        if not match or match[1] in spans:
            raise ValueError(f"got {value!r}, which is no region; write it as z=0:10,y=0:4096,x=0:4096")
        spans[match[1]] = int(match[2]), int(match[3])
    return spans


class Region(Frozen):
    """Part of a volume in voxels, half-open; an axis that is left out is whole."""

    z: tuple[int, int] | None = None
    y: tuple[int, int] | None = None
    x: tuple[int, int] | None = None

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

    volume: Path = Field(description="the OME-Zarr volume; relative to the configuration file")
    name: str | None = Field(None, pattern=f"^{NAME_PATTERN}$", description="name of run and mask; default: the method")
    truth: str | None = Field(None, pattern=f"^{NAME_PATTERN}$", description="label to compare the mask with")
    region: Annotated[Region | None, BeforeValidator(_parse_region)] = None
    memory: Annotated[int | None, BeforeValidator(parse_bytes)] = Field(
        None, ge=1, description="bytes of the whole run"
    )
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
        Dotted keys and their values, applied over the file in order. To set a section's ``method`` or ``engine`` drops
        what the file says of the one before.

    Raises
    ------
    MissingInputError
        If the file is not there.
    ConfigError
        With every error of the file, each with its line and dotted path.
    """
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    if source.suffix in {".yaml", ".yml"}:
        values, lines = _read_yaml(source)
        if isinstance(values.get("volume"), str):
            values["volume"] = str(source.parent / Path(values["volume"]).expanduser())
    else:
        values["volume"] = str(source)
    origin = str(source) if lines else "options"
    for key, value in (overrides or {}).items():
        _override(values, key, value)
        lines = {path: line for path, line in lines.items() if path != key}
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = [_describe(problem, lines, origin) for problem in error.errors()]
        raise ConfigError("\n".join(problems)) from error


def parse_assignment(text: str) -> tuple[str, Any]:
    """``threshold.level=79`` as its dotted key and its YAML value."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", key.strip()):
        raise ConfigError(f"--set: got {text!r}; write it as key=value, such as threshold.method=fixed")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: got {value!r}, which is no YAML value") from error


def check_name(name: str, what: str) -> str:
    """Return a name of a label or run that can be a folder on every file system."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"{what}: got {name!r}; a name starts with a letter or digit, then letters, digits, '.', '_' and '-'"
        )
    return name


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        values[section] = dict(inner) if isinstance(inner, Mapping) else {}
        values = values[section]
    if last in {"method", "engine"} and values.get(last) != value:
        values.clear()
    values[last] = value


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if not isinstance(values, dict) or node is None:
        raise ConfigError(f"{path}: got {type(values).__name__}, expected keys and values such as `volume: brain.zarr`")
    lines: dict[str, int] = {}
    for dotted, line in _lines(node):
        if dotted in lines:
            raise ConfigError(f"{path}:{line}: {dotted}: stands twice, first in line {lines[dotted]}; keep one")
        lines[dotted] = line
    return values, lines


def _lines(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            yield dotted, key.start_mark.line + 1
            yield from _lines(value, f"{dotted}.")


def _describe(problem: Any, lines: Mapping[str, int], origin: str) -> str:
    """One line for one error of pydantic: where, what was got, what is wanted."""
    sections = _sections()
    keys = [str(part) for part in problem["loc"] if not str(part).startswith("function-")]
    # The tag of a discriminated union stands in `loc` after its section: it is no key of the file.
    if len(keys) > 1 and keys[0] in sections and keys[1] in sections[keys[0]].tags:
        del keys[1]
    dotted = ".".join(keys)
    line = next((lines[path] for path in _parents(keys) if path in lines), None)
    where = f"{origin}:{line}: {dotted}" if line else f"{origin}: {dotted}"
    if problem["type"] == "extra_forbidden":
        known = sections[keys[0]].keys if len(keys) > 1 and keys[0] in sections else list(RunConfig.model_fields)
        return f"{where}: unknown key{suggest(keys[-1], known)}"
    if problem["type"] == "missing":
        return f"{where}: is required"
    if problem["type"].startswith("union_tag"):
        tags = sections[keys[0]].tags
        got = problem["ctx"].get("tag")
        wanted = f"expected one of {', '.join(sorted(tags))}"
        return f"{where}: got {got!r}, {wanted}{suggest(got, tags)}" if got else f"{where}: needs `method`, {wanted}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if message.startswith("got ") else f"{where}: got {problem['input']!r}: {message}"


def suggest(word: str, known: Sequence[str]) -> str:
    """Text that names the nearest of the known words, or all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean `{near[0]}`?" if near else f"; known here: {', '.join(sorted(known))}"


def _parents(keys: Sequence[str]) -> Iterator[str]:
    for length in range(len(keys), 0, -1):
        yield ".".join(keys[:length])


class _Section(Frozen):
    """Keys and tags that one section of the file may have, over all its variants."""

    keys: list[str]
    tags: list[str]


def _sections() -> dict[str, _Section]:
    found = {}
    for name, union in (("denoise", Denoise), ("threshold", Threshold), ("cluster", Cluster), ("region", Region)):
        variants = get_args(get_args(union)[0]) if get_args(union) else (union,)
        fields = [field for variant in variants for field in variant.model_fields.items()]
        found[name] = _Section(
            keys=sorted({field.alias or key for key, field in fields}),
            tags=[field.default for key, field in fields if key in {"method", "engine"}],
        )
    return found
