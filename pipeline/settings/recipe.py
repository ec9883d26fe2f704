"""A recipe: what decides the bits of a mask, stage by stage, and of each stage how far around a voxel it looks.

    image -> correct -> denoise -> threshold or segmenter -> clean -> mask, within the valid area

Each stage has a *support*: a halo in voxels, or the whole slice, which then is what one task works on.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from pipeline.geometry import Triple
from pipeline.kernels.cleaning import opening_halo
from pipeline.kernels.local import gaussian_halo, local_halo
from pipeline.kernels.threshold import LEVEL_OF, levels_of
from pipeline.settings.model import Frozen, Integer, Number, of_keys, of_kind, parse_name, show

TARGET_PATTERN = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"


def _parse_odd(size: object) -> object:
    if type(size) is not int or not 3 <= size <= 999 or size % 2 == 0:
        raise ValueError(f"got {show(size)}, expected an odd number of voxels from 3 to 999")
    return size


def _parse_target(target: object) -> object:
    if not isinstance(target, str) or not re.fullmatch(TARGET_PATTERN, target):
        raise ValueError(f"got {show(target)}, expected module:function, such as mylab.vessels:segment")
    return target


def _parse_halo(halo: object) -> object:
    lengths = list(halo) if isinstance(halo, list | tuple) else []
    if len(lengths) != 3 or any(type(length) is not int or not 0 <= length <= 512 for length in lengths):
        raise ValueError(f"got {show(halo)}, expected voxels as [z, y, x], such as [0, 8, 8], each at most 512")
    return halo


Odd = Annotated[int, BeforeValidator(_parse_odd)]
Target = Annotated[str, BeforeValidator(_parse_target)]
Halo = Annotated[Triple, BeforeValidator(_parse_halo)]
Version = Annotated[
    Integer, Field(0, ge=0, description="raise it when the function changes: what it made is made again")
]


class Valid(Frozen):
    """Voxels that count: others are in no level and no score, and background in the mask."""

    label: Annotated[str, BeforeValidator(parse_name)] | None = Field(
        None, description="label that is vessel (255) where voxels are valid"
    )
    padding: Integer | None = Field(
        None, ge=0, le=65535, description="grey level of the image where nothing was imaged"
    )

    @model_validator(mode="after")
    def _one(self) -> Valid:
        if (self.label is None) == (self.padding is None):
            raise ValueError("got " + ("neither" if self.label is None else "both") + ", expected `label` or `padding`")
        return self


class Correct(Frozen):
    """What is done to the image first, in this order; all but gamma look at whole slices."""

    flat_field: Number | None = Field(
        None, ge=16, le=10_000, description="voxels over which illumination varies: the Gaussian that smooths it"
    )
    match: Integer | None = Field(None, ge=0, le=10**6, description="slice whose histogram the others take on")
    gamma: Number | None = Field(None, gt=0, le=10, description="exponent; below 1 it brightens")
    clahe: Number | None = Field(
        None, gt=0, le=1, description="clip limit of contrast equalisation, over regions of a tile's size"
    )

    @property
    def slicewise(self) -> bool:
        """Whether a voxel depends on its whole slice."""
        return (self.flat_field, self.match, self.clahe) != (None, None, None)


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


class GaussianDenoise(Frozen):
    """Gaussian in the plane, rounded to whole grey levels; equals SciPy's on the whole slice."""

    method: Literal["gaussian"] = "gaussian"
    sigma: Number = Field(1.0, gt=0, le=32, description="standard deviation in voxels")

    @property
    def window(self) -> Triple:
        """Filter window (z, y, x) in voxels."""
        side = 2 * gaussian_halo(self.sigma) + 1
        return 1, side, side


class PythonDenoise(Frozen):
    """A function of your own, from a block of grey levels (z, y, x) to one of the same shape and type."""

    method: Literal["python"] = "python"
    target: Target = Field(description="module:function")
    halo: Halo = Field((0, 0, 0), description="voxels around one that it looks at, [z, y, x]")
    version: Version = 0

    @property
    def window(self) -> Triple:
        """Filter window (z, y, x) in voxels."""
        z, y, x = self.halo
        return 2 * z + 1, 2 * y + 1, 2 * x + 1


class HistogramThreshold(Frozen):
    """A level that is found from a histogram: see `kernels.threshold` for the methods."""

    method: Literal["otsu", "li", "yen", "triangle", "isodata", "mean", "minimum"] = "otsu"
    scope: Literal["tile", "slice", "volume", "smooth"] = Field(
        "tile", description="voxels that share a level; smooth: levels of tiles that go over into each other"
    )
    min_separability: Number | None = Field(
        None, ge=0, le=1, description="share of the variance between the classes, below which a tile has no signal"
    )
    min_contrast: Number | None = Field(
        None, ge=0, le=65535, description="grey levels between the classes' means, below which a tile has no signal"
    )
    on_no_signal: Literal["slice", "empty", "keep"] = Field(
        "slice", description="what a tile without signal gets: the slice's level, an empty mask, or its own level"
    )

    @field_validator("on_no_signal")
    @classmethod
    def _of_rule(cls, then: str, info: ValidationInfo) -> str:
        if then != "slice" and all(info.data.get(key, 0) is None for key in ("min_separability", "min_contrast")):
            raise ValueError(f"got {then}, but nothing says what has no signal; add `min_contrast: 30`")
        return then

    def fits(self, top: int) -> bool:  # noqa: ARG002
        """Whether the method makes sense for an image whose highest level is ``top``."""
        return True

    @property
    def judges(self) -> bool:
        """Whether tiles are looked at for a signal."""
        return self.min_separability is not None or self.min_contrast is not None

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
    level_value: Number = Field(alias="level", ge=0, le=65535, description="grey level on the filtered scale")

    def fits(self, top: int) -> bool:
        """Whether the level exists in an image whose highest level is ``top``."""
        return self.level_value <= top

    @property
    def judges(self) -> bool:
        """Whether tiles are looked at for a signal."""
        return False

    def levels(self, tables: NDArray[np.uint32]) -> NDArray[np.float64]:
        """Level of each of some joint tables: the one that was given."""
        return np.full(len(tables), self.level_value)

    def level(self, counts: NDArray[np.int64]) -> float:  # noqa: ARG002
        """Level of any histogram: the one that was given."""
        return self.level_value


class LocalThreshold(Frozen):
    """A level for every voxel, from its neighbourhood: scikit-image's."""

    method: Literal["local_mean", "local_gaussian", "local_median", "niblack", "sauvola"]
    scope: Literal["voxel"] = Field("voxel", description="voxels that share a level")
    size: Odd = Field(51, description="side of the neighbourhood in voxels")
    offset: Number = Field(0.0, ge=-65535, le=65535, description="subtracted from the level; of local_ methods")
    k: Number = Field(
        -0.2, ge=-10, le=10, description="of niblack and sauvola; below 0 it lifts the level above the background"
    )

    @field_validator("offset", "k")
    @classmethod
    def _of_method(cls, value: float, info: ValidationInfo) -> float:
        method, default = str(info.data.get("method")), cls.model_fields[str(info.field_name)].default
        if value != default and (info.field_name == "offset") != method.startswith("local_"):
            raise ValueError(f"got {value:g}, which {method} has no use for; leave it out")
        return value

    @property
    def judges(self) -> bool:
        """Whether tiles are looked at for a signal."""
        return False

    @property
    def reach(self) -> int:
        """Voxels around one, in the plane, that it looks at."""
        return local_halo(self.method, self.size)

    def fits(self, top: int) -> bool:  # noqa: ARG002
        """Whether the method makes sense for an image whose highest level is ``top``."""
        return True


class Clean(Frozen):
    """What is done to the mask last, in this order."""

    opening: Integer | None = Field(
        None, ge=1, le=32, description="radius in voxels of the disk that it is opened with"
    )
    closing: Integer | None = Field(
        None, ge=1, le=32, description="radius in voxels of the disk that it is closed with"
    )
    small_objects: Integer | None = Field(
        None, ge=2, le=10**9, description="objects of a slice with fewer voxels than this are removed"
    )
    small_holes: Integer | None = Field(
        None, ge=2, le=10**9, description="holes of a slice with fewer voxels than this are filled"
    )

    @property
    def slicewise(self) -> bool:
        """Whether a voxel depends on its whole slice."""
        return (self.small_objects, self.small_holes) != (None, None)

    @property
    def reach(self) -> int:
        """Voxels around one, in the plane, that opening and then closing look at."""
        return opening_halo(self.opening or 0) + opening_halo(self.closing or 0)


class PythonSegmenter(Frozen):
    """A function of your own, from a block of grey levels (z, y, x) to its binary middle plane or block."""

    kind: Literal["python"] = "python"
    target: Target = Field(description="module:function")
    halo: Halo = Field((0, 0, 0), description="voxels around one that it looks at, [z, y, x]")
    version: Version = 0


class ClassifierSegmenter(Frozen):
    """A model that ``kesm train`` made."""

    kind: Literal["classifier"] = "classifier"
    model: str = Field(min_length=1, description="file of the model; relative to the configuration file")
    digest: str | None = Field(None, description="of the file; found when a run is planned")
    halo: Halo | None = Field(None, description="voxels around one that it looks at; found when a run is planned")


Denoise = Annotated[
    NoDenoise | MedianDenoise | GaussianDenoise | PythonDenoise, Field(discriminator="method"), of_kind("denoise")
]
Threshold = Annotated[
    HistogramThreshold | FixedThreshold | LocalThreshold, Field(discriminator="method"), of_kind("threshold")
]
Segmenter = Annotated[PythonSegmenter | ClassifierSegmenter, Field(discriminator="kind")]


class Recipe(Frozen):
    """What decides a mask's bits."""

    foreground: Literal["dark", "bright"] = Field(
        "dark", description="whether vessels are darker or brighter than tissue"
    )
    tile: Integer = Field(512, ge=16, le=2048, description="side in voxels of the tile that is thresholded by itself")
    valid: Annotated[Valid | None, of_keys("padding: 0", optional=True)] = Field(
        None, description="voxels that count; default all"
    )
    correct: Annotated[Correct | None, of_keys("gamma: 0.8", optional=True)] = None
    denoise: Denoise = MedianDenoise()
    threshold: Threshold = HistogramThreshold()
    segmenter: Annotated[Segmenter | None, of_kind("segmenter", optional=True)] = None
    clean: Annotated[Clean | None, of_keys("small_objects: 30", optional=True)] = None

    @field_validator("correct", "clean")
    @classmethod
    def _does_something(cls, stage: Correct | Clean | None) -> Correct | Clean | None:
        # one recipe has one form, and so one key
        return stage if stage is not None and stage.model_dump(exclude_none=True) else None

    @field_validator("segmenter")
    @classmethod
    def _alone(cls, segmenter: Segmenter | None, info: ValidationInfo) -> Segmenter | None:
        if segmenter is not None and info.data.get("threshold", HistogramThreshold()) != HistogramThreshold():
            raise ValueError("got a segmenter and a threshold, which make the same mask; leave one out")
        return segmenter

    @property
    def around(self) -> Triple:
        """Voxels (z, y, x) around one, of the filtered image, that its mask depends on."""
        z = y = x = 0
        if self.segmenter is not None:
            z, y, x = self.segmenter.halo or (0, 0, 0)
        elif isinstance(self.threshold, LocalThreshold):
            y = x = self.threshold.reach
        reach = self.clean.reach if self.clean else 0
        return z, y + reach, x + reach

    @property
    def halo(self) -> Triple:
        """Voxels (z, y, x) beyond a block that its image is read to."""
        (z, y, x), (below, rows, columns) = self.denoise.window, self.around
        return z // 2 + below, y // 2 + rows, x // 2 + columns

    @property
    def slicewise(self) -> bool:
        """Whether a voxel of the mask depends on its whole slice, which then is a block."""
        return any(stage is not None and stage.slicewise for stage in (self.correct, self.clean))

    @property
    def drawn(self) -> bool:
        """Whether a tile's mask is more than a level that its histogram gives."""
        threshold = self.threshold
        return (
            any(stage is not None for stage in (self.valid, self.segmenter, self.clean))
            or isinstance(threshold, LocalThreshold)
            or threshold.judges
            or threshold.scope == "smooth"
        )

    @property
    def surveys(self) -> bool:
        """Whether the levels of a slice's tiles are found together, before any of them becomes a mask."""
        return self.drawn and self.segmenter is None and isinstance(self.threshold, HistogramThreshold)

    @property
    def has_levels(self) -> bool:
        """Whether tiles have a level."""
        return self.segmenter is None and not isinstance(self.threshold, LocalThreshold)

    @property
    def decides(self) -> bool:
        """Whether every tile has a level."""
        return isinstance(self.threshold, FixedThreshold) or (
            isinstance(self.threshold, HistogramThreshold) and self.threshold.method != "minimum" and not self.drawn
        )

    @property
    def shares(self) -> bool:
        """Whether a level depends on the whole slice."""
        return self.segmenter is None and (self.threshold.scope == "slice" or self.surveys)

    @property
    def method(self) -> str:
        """What a run is called that has no other name."""
        return self.threshold.method if self.segmenter is None else self.segmenter.kind

    def document(self) -> dict[str, Any]:
        """The recipe as plain values; stages that it does not have are left out."""
        document = self.model_dump(mode="json", by_alias=True, include=set(Recipe.model_fields), exclude_none=True)
        if self.segmenter is not None:
            del document["threshold"]
        elif not (isinstance(self.threshold, HistogramThreshold) and self.threshold.judges):
            document["threshold"].pop("on_no_signal", None)
        return document
