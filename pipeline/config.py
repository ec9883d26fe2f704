"""Recipe, run options, cluster and source folders as closed models.

A recipe is what decides the bits of a mask. Everything else (where, how much of it, on which machines) is beside it.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
)

from pipeline.errors import ConfigError, RegionError
from pipeline.geometry import Box, Triple
from pipeline.threshold import LEVEL_OF, levels_of

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
TAGS = {"denoise": ("method", "median"), "threshold": ("method", "otsu"), "cluster": ("engine", "threads")}
"""The key of each section that says of which kind it is, and the kind of a section that leaves it out."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_UNITS_S = {"s": 1, "m": 60, "h": 3600}


class Frozen(BaseModel):
    """A value: immutable, and closed against keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _of_kind(section: str) -> BeforeValidator:
    tag, default = TAGS[section]

    def fill(value: object) -> object:
        if isinstance(value, BaseModel):
            return value
        if not isinstance(value, Mapping):
            problem = f"got {show(value)}, expected keys below it, such as `{tag}: {default}`"
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
            raise ValueError(f"got {show(size)}, expected one odd number, or three as [z, y, x]")
        for length in lengths:
            if not 1 <= length <= 99:
                raise ValueError(f"got {show(length)}, a median window has 1 to 99 voxels")
            if length % 2 == 0:
                raise ValueError(f"got {length}, a median needs an odd size; use {length + 1}")
        # one recipe has one form, and so one key
        return lengths[1] if len(lengths) == 3 and lengths[0] == 1 and lengths[1] == lengths[2] else size

    @property
    def window(self) -> Triple:
        """Filter window (z, y, x) in voxels."""
        return (1, self.size, self.size) if isinstance(self.size, int) else self.size


class HistogramThreshold(Frozen):
    """A level that is found from a histogram: see `pipeline.threshold` for the methods."""

    method: Literal["otsu", "li", "yen", "triangle", "isodata", "mean", "minimum"] = "otsu"
    scope: Literal["tile", "slice", "volume"] = Field("tile", description="voxels that share a level")

    def fits(self, top: int) -> bool:  # noqa: ARG002
        """Whether the method makes sense for an image whose highest level is ``top``."""
        return True

    @property
    def decides(self) -> bool:
        """Whether any histogram has a level; a minimum needs two peaks."""
        return self.method != "minimum"

    def levels(self, tables: NDArray[np.uint32]) -> NDArray[np.float64]:
        """Level of each of some joint tables, (tiles, 3, levels), on their own scale; NaN where there is none."""
        return levels_of(self.method, tables)

    def level(self, counts: NDArray[np.int64]) -> float:
        """Level of a pooled histogram, (levels,)."""
        return float(LEVEL_OF[self.method](counts))


class FixedThreshold(Frozen):
    """One level for every tile."""

    method: Literal["fixed"] = "fixed"
    scope: Literal["tile"] = Field("tile", description="voxels that share a level")
    level_value: float = Field(alias="level", ge=0, le=65535, description="grey level on the filtered scale")

    def fits(self, top: int) -> bool:
        """Whether the level exists in an image whose highest level is ``top``."""
        return self.level_value <= top

    @property
    def decides(self) -> bool:
        """Whether there always is a level."""
        return True

    def levels(self, tables: NDArray[np.uint32]) -> NDArray[np.float64]:
        """Level of each of some joint tables: the one that was given."""
        return np.full(len(tables), self.level_value)

    def level(self, counts: NDArray[np.int64]) -> float:  # noqa: ARG002
        """Level of any histogram: the one that was given."""
        return self.level_value


Denoise = Annotated[NoDenoise | MedianDenoise, Field(discriminator="method"), _of_kind("denoise")]
Threshold = Annotated[HistogramThreshold | FixedThreshold, Field(discriminator="method"), _of_kind("threshold")]


class Recipe(Frozen):
    """What decides a mask's bits."""

    foreground: Literal["dark", "bright"] = Field(
        "dark", description="whether vessels are darker or brighter than tissue"
    )
    tile: int = Field(512, ge=16, le=2048, description="side in voxels of the tile that is thresholded by itself")
    denoise: Denoise = MedianDenoise()
    threshold: Threshold = HistogramThreshold()

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
        # tls:// would need certificates, which nothing here can be given
        if not isinstance(address, str) or not re.fullmatch(r"tcp://.+", address):
            raise ValueError(f"got {show(address)}, expected a tcp:// address such as tcp://host:8786")
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
        raise ValueError(f"got {show(value)}, which is no amount of memory; write it as 4GB or 500MB")
    return size


def parse_duration(value: object) -> float:
    """``10s``, ``15m`` or ``2h`` as seconds."""
    match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*([smh])\s*", value) if isinstance(value, str) else None
    if not match:
        raise ValueError(f"got {show(value)}, which is no duration; write it as 10s, 15m or 2h")
    return float(match[1]) * _UNITS_S[match[2]]


def _parse_region(value: object) -> object:
    if value is None or isinstance(value, Region | Mapping):
        return value
    parts = value.split(",") if isinstance(value, str) else [""]
    matches = [re.fullmatch(r"\s*([zyx])\s*=\s*(\d{1,18})\s*:\s*(\d{1,18})\s*", part) for part in parts]
    spans = {match[1]: (int(match[2]), int(match[3])) for match in matches if match}
    if len(spans) < len(parts):
        raise ValueError(f"got {show(value)}, which is no region; write it as z=0:10,y=0:4096,x=0:4096")
    return spans


def _parse_name(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"got {show(name)}, a name is text; put it in quotes")  # noqa: TRY004
    if not re.fullmatch(NAME_PATTERN, name) or name.lower() == "zarr.json":  # the latter is a file of every Zarr group
        raise ValueError(
            f"got {show(name)}, a name starts with a letter or digit, and goes on with at most 99 letters, digits, "
            "'.', '_' and '-'"
        )
    return name


def _parse_path(path: object) -> object:
    if not isinstance(path, str | Path) or not str(path):
        raise ValueError(f"got {show(path)}, expected the folder of a volume, such as brain.zarr")
    return path


def _parse_folder(path: object) -> object:
    if not isinstance(path, str | Path) or not str(path):
        raise ValueError(f"got {show(path)}, expected a folder of image files, such as slices")
    return path


def _parse_pattern(pattern: object) -> object:
    if pattern is None:
        return None
    if not isinstance(pattern, str):
        raise ValueError(f"got {show(pattern)}, a pattern is text; put it in single quotes")  # noqa: TRY004
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"got {show(pattern)}, which is no regular expression ({error})") from error
    if groups != 1:
        raise ValueError(
            f"got {show(pattern)}, which has {groups or 'no'} groups; put one pair of parentheses around the number, "
            r"such as 'slice_(\d+)', and write others as (?:...)"
        )
    return pattern


def _parse_channel(channel: object) -> object:
    if channel in (None, "red", "green", "blue", "luminance") or (type(channel) is int and channel >= 0):
        return channel
    raise ValueError(f"got {show(channel)}, expected red, green, blue, luminance or the number of a channel, from 0")


def _parse_voxel_size(size: object) -> object:
    lengths = list(size) if isinstance(size, list | tuple) else []
    if size is None or (
        len(lengths) == 3 and all(type(length) in (int, float) and 0 < length < float("inf") for length in lengths)
    ):
        return size
    raise ValueError(f"got {show(size)}, expected [z, y, x] in micrometres, such as [1, 0.7, 0.6]")


def _of_keys(example: str, optional: bool = False) -> BeforeValidator:
    """Say of a section without keys what it could have."""

    def check(value: object) -> object:
        if isinstance(value, Mapping | BaseModel) or (optional and value is None):
            return value
        raise ValueError(f"got {show(value)}, expected keys below it, such as `{example}`")

    return BeforeValidator(check)


Duration = Annotated[
    float, BeforeValidator(parse_duration), PlainSerializer(lambda seconds: f"{seconds:g}s", when_used="json")
]


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
        raise ValueError(f"got {show(span)}, expected [start, stop] in voxels")

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
            if start >= stop:
                raise RegionError(f"region: got {axis}={start}:{stop}, which is empty; the end is not part of it")
            if not 0 <= start < stop <= length:
                raise RegionError(
                    f"region: got {axis}={start}:{stop}, the volume has {axis}=0:{length}; choose a part of that"
                )
            spans.append((start, stop))
        (z0, z1), (y0, y1), (x0, x1) = spans
        return Box((z0, y0, x0), (z1, y1, x1))


class SourceFolder(Frozen):
    """A folder of image files, one for each slice."""

    folder: Annotated[Path, BeforeValidator(_parse_folder)] = Field(
        description="folder of the files; relative to the configuration file"
    )
    number: Annotated[str | None, BeforeValidator(_parse_pattern)] = Field(
        None, description="regular expression whose one group is the slice's number in a file's name"
    )
    first: int = Field(0, ge=0, le=10**12, description="the number that is slice 0")
    channel: Annotated[str | int | None, BeforeValidator(_parse_channel)] = Field(
        None, description="what is taken of images in colour: red, green, blue, luminance, or a number from 0"
    )

    @field_validator("first")
    @classmethod
    def _of_number(cls, first: int, info: ValidationInfo) -> int:
        if first and info.data.get("number", "") is None:
            raise ValueError(f"got {first}, but no pattern that finds numbers; add `number: '(\\d+)'`")
        return first


class ImageFolder(SourceFolder):
    """Where image slices arrive; without ``number``, each new one goes after the last."""


class TruthFolder(SourceFolder):
    """Where an expert's slices arrive; without ``number``, each is for the image of the same name."""

    vessel_above: float | None = Field(None, allow_inf_nan=False, description="values above this level are vessel")
    unlabelled: int | None = Field(None, ge=0, le=65535, description="the value of what nobody annotated")


class SyncOptions(Frozen):
    """Where slices arrive, and when they are taken."""

    images: Annotated[ImageFolder, _of_keys("folder: slices")]
    truth: Annotated[TruthFolder | None, _of_keys("folder: traced", optional=True)] = None
    settle: Duration = Field("10s", description="how long a file must stay as it is before it is read")  # type: ignore[assignment]  # as written
    voxel_size_um: Annotated[tuple[float, float, float] | None, BeforeValidator(_parse_voxel_size)] = Field(
        None, description="(z, y, x) in micrometres, of a volume that is made"
    )


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
    refit: bool = Field(False, description="find the level of the volume anew, where that is the scope")
    cluster: Cluster = ThreadsCluster()
    sync: Annotated[SyncOptions | None, _of_keys("images: {folder: slices}", optional=True)] = Field(
        None, description="source folders of `kesm sync`"
    )

    @field_validator("sync")
    @classmethod
    def _truth_has_a_name(cls, sync: SyncOptions | None, info: ValidationInfo) -> SyncOptions | None:
        if sync is not None and sync.truth is not None and info.data.get("truth", "") is None:
            raise ValueError("got `truth` files, but no name for their label; add `truth: groundtruth` outside `sync`")
        return sync

    @property
    def recipe(self) -> Recipe:
        """The recipe by itself."""
        return Recipe.model_validate(self.document())

    @property
    def run_name(self) -> str:
        """Name of the run: as given, else the threshold's method."""
        return self.name or self.threshold.method


def check_name(name: str, what: str) -> str:
    """Return a name of a label or run that can be a folder on every file system."""
    try:
        return _parse_name(name)
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error


def show(value: object) -> str:
    """Value for a message, cut where it is long."""
    return "nothing" if value is None else _short.repr(value)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
