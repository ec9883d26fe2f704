"""Run options, cluster and source folders beside the recipe: where, how much of it, on which machines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationInfo, field_validator

from pipeline.errors import RegionError
from pipeline.geometry import LARGEST_UM, SMALLEST_UM, Box, Triple, is_voxel_side
from pipeline.kernels.confusion import Undefined
from pipeline.kernels.flags import FLAG_NAMES, Flag, flag_of
from pipeline.settings.model import Frozen, of_keys, of_kind, parse_name, show
from pipeline.settings.recipe import Recipe

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_UNITS_S = {"s": 1, "m": 60, "h": 3600}


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


Cluster = Annotated[ThreadsCluster | LocalCluster | AddressCluster, Field(discriminator="engine"), of_kind("cluster")]


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


def _parse_flags(flags: object) -> object:
    if isinstance(flags, bool | None):
        return FLAG_NAMES if flags else ()
    named = list(flags) if isinstance(flags, list | tuple) else [flags]
    for flag in named:
        if flag not in FLAG_NAMES:
            raise ValueError(f"got {show(flag)}, expected true, false, or a list of {', '.join(FLAG_NAMES)}")
    return tuple(name for name in FLAG_NAMES if name in named)


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
        len(lengths) == 3 and all(type(length) in (int, float) and is_voxel_side(length) for length in lengths)
    ):
        return size
    raise ValueError(
        f"got {show(size)}, expected [z, y, x] in micrometres, each from {SMALLEST_UM:g} to {LARGEST_UM:,.0f}, such as "
        "[1, 0.7, 0.6]"
    )


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

    images: Annotated[ImageFolder, of_keys("folder: slices")]
    truth: Annotated[TruthFolder | None, of_keys("folder: traced", optional=True)] = None
    settle: Duration = Field("10s", description="how long a file must stay as it is before it is read")  # type: ignore[assignment]  # as written
    voxel_size_um: Annotated[tuple[float, float, float] | None, BeforeValidator(_parse_voxel_size)] = Field(
        None, description="(z, y, x) in micrometres, of a volume that is made"
    )


class RunConfig(Recipe):
    """A recipe, the volume that it is for, and the run options."""

    volume: Annotated[Path, BeforeValidator(_parse_path)] = Field(
        description="the OME-Zarr volume; relative to the configuration file"
    )
    name: Annotated[str, BeforeValidator(parse_name)] | None = Field(
        None, description="name of run and mask; default: the method"
    )
    truth: Annotated[str, BeforeValidator(parse_name)] | None = Field(
        None, description="label to compare the mask with"
    )
    confusion: bool = Field(False, description="write a label that shows where the mask is right, wrong or misses")
    region: Annotated[Region | None, BeforeValidator(_parse_region)] = None
    memory: Annotated[int | None, BeforeValidator(parse_bytes)] = Field(None, description="bytes of the whole run")
    undefined: Undefined = Field("article", description="what a score is that is 0 / 0: article, zero or nan")
    exclude_flagged: Annotated[tuple[str, ...], BeforeValidator(_parse_flags)] = Field(
        (), description="flags whose tiles are not scored, or true for all; their mask is the same"
    )
    refit: bool = Field(False, description="find the level of the volume anew, where that is the scope")
    cluster: Cluster = ThreadsCluster()
    sync: Annotated[SyncOptions | None, of_keys("images: {folder: slices}", optional=True)] = Field(
        None, description="source folders of `kesm sync`"
    )

    @field_validator("sync")
    @classmethod
    def _truth_has_a_name(cls, sync: SyncOptions | None, info: ValidationInfo) -> SyncOptions | None:
        if sync is not None and sync.truth is not None and info.data.get("truth", "") is None:
            raise ValueError("got `truth` files, but no name for their label; add `truth: groundtruth` outside `sync`")
        return sync

    @field_validator("confusion")
    @classmethod
    def _needs_a_truth(cls, confusion: bool, info: ValidationInfo) -> bool:
        if confusion and info.data.get("truth", "") is None:
            raise ValueError("got true, but no truth to compare the mask with; add `truth: NAME`, or --truth NAME")
        return confusion

    @property
    def recipe(self) -> Recipe:
        """The recipe by itself."""
        return Recipe.model_validate(self.document())

    @property
    def excluded(self) -> Flag:
        """Flags whose tiles are not scored."""
        return flag_of(self.exclude_flagged)

    @property
    def run_name(self) -> str:
        """Name of the run: as given, else the threshold's method."""
        return self.name or self.method
