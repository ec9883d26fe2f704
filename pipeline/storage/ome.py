"""OME-Zarr 0.5 metadata as plain values [1]_.

Few enough to be written out; that they are right is proved by `yaozarrs` and `ome-zarr-models` in the tests.

References
----------
.. [1] https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

from typing import Any

from pipeline.geometry import is_voxel_side

VERSION = "0.5"
VoxelSize = tuple[float, float, float]

# "Each dictionary SHOULD contain the key rgba": what nobody annotated must not hide the image.
TRUTH_COLOURS = {127: (0, 0, 0, 0), 255: (0, 255, 255, 255)}
MASK_COLOURS = {255: (255, 64, 64, 255)}
CONFUSION_COLOURS = {1: (0, 255, 255, 255), 2: (255, 0, 255, 255), 3: (255, 255, 0, 255)}
CONFUSION_NAMES = {1: "true positive", 2: "false positive", 3: "false negative"}


def image_metadata(name: str, levels: int, voxel_size_um: VoxelSize | None, downscaling: str) -> dict[str, Any]:
    """Return ``multiscales`` of an image whose levels halve in the plane.

    Without a voxel size the axes carry no unit and level 0 has scale 1: a made-up unit would be a wrong measurement.
    """
    unit = {} if voxel_size_um is None else {"unit": "micrometer"}
    size = voxel_size_um or (1.0, 1.0, 1.0)
    return {
        "version": VERSION,
        "multiscales": [
            {
                "name": name,
                "axes": [{"name": axis, "type": "space", **unit} for axis in "zyx"],
                "datasets": [
                    {"path": str(level), "coordinateTransformations": _transformations(level, size)}
                    for level in range(levels)
                ],
                "type": downscaling,
            }
        ],
    }


def label_metadata(
    name: str, levels: int, voxel_size_um: VoxelSize | None, colours: dict[int, tuple[int, int, int, int]]
) -> dict[str, Any]:
    """Return metadata of a label image: those of an image, and the colours of its values."""
    return image_metadata(name, levels, voxel_size_um, "vessel survives") | {
        "image-label": {
            "version": VERSION,
            "colors": [{"label-value": value, "rgba": list(rgba)} for value, rgba in colours.items()],
            "source": {"image": "../../"},
        }
    }


def confusion_metadata(name: str, levels: int, voxel_size_um: VoxelSize | None) -> dict[str, Any]:
    """Return metadata of a confusion: those of a label image, and the names of its values."""
    metadata = label_metadata(name, levels, voxel_size_um, CONFUSION_COLOURS)
    metadata["multiscales"][0]["type"] = "most errors"
    properties = [{"label-value": value, "name": words} for value, words in CONFUSION_NAMES.items()]
    return metadata | {"image-label": metadata["image-label"] | {"properties": properties}}


def voxel_size(metadata: dict[str, Any]) -> VoxelSize | None:
    """Voxel size in micrometres that an image's metadata states, or None: also of lengths that no voxel has."""
    scales = metadata["multiscales"][0]
    if any(axis.get("unit") != "micrometer" for axis in scales["axes"]):
        return None
    z, y, x = scales["datasets"][0]["coordinateTransformations"][0]["scale"]
    return (float(z), float(y), float(x)) if all(map(is_voxel_side, (z, y, x))) else None


def _transformations(level: int, size: VoxelSize) -> list[dict[str, Any]]:
    z, y, x = size
    factor = 2**level
    scale = [{"type": "scale", "scale": [z, y * factor, x * factor]}]
    # The centre of a voxel of level n lies (2^n - 1) / 2 voxels of level 0 further in than that of level 0.
    shift = (factor - 1) / 2
    return scale + ([{"type": "translation", "translation": [0.0, y * shift, x * shift]}] if level else [])
