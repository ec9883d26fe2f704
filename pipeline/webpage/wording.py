"""A recipe and the names of scores in words, for people who have never run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SCORE_NAMES = {
    "mcc": "MCC",
    "f1": "F1",
    "precision": "Precision",
    "recall": "Recall",
    "accuracy": "Accuracy",
    "specificity": "Specificity",
    "iou": "IoU",
    "balanced_accuracy": "Balanced accuracy",
    "kappa": "Kappa",
}

MEANINGS = {
    "mcc": "Agreement of mask and truth over all four kinds of voxels: 1 is perfect, 0 no better than chance, −1 all "
    "wrong. Fair where vessels are rare.",
    "f1": "Overlap of the vessels of mask and truth, also called Dice: 1 is the same vessels, 0 none in common.",
    "precision": "Part of the mask's vessel voxels that are vessel in the truth.",
    "recall": "Part of the truth's vessel voxels that the mask has found.",
    "accuracy": "Part of all annotated voxels that is right. High wherever vessels are rare, even for an empty mask.",
    "specificity": "Part of the truth's background that the mask leaves alone.",
    "iou": "Vessels that mask and truth share, over those that either has, also called Jaccard.",
    "balanced_accuracy": "Mean of recall and specificity.",
    "kappa": "Agreement beyond what chance would give, also called Cohen's kappa.",
}

_METHODS = {
    "otsu": "Otsu's method", "li": "Li's method", "yen": "Yen's method", "triangle": "The triangle method",
    "isodata": "The isodata method", "mean": "The mean grey level", "minimum": "The minimum between two peaks",
    "local_mean": "The mean", "local_gaussian": "A Gaussian mean", "local_median": "The median",
    "niblack": "Niblack's method", "sauvola": "Sauvola's method",
}  # fmt: skip


def recipe_sentences(recipe: Mapping[str, Any]) -> list[str]:
    """Say, stage by stage, what a stored recipe does to an image."""
    said = [
        "Vessels are darker than the tissue around them, so the image was inverted first."
        if recipe["foreground"] == "dark"
        else "Vessels are brighter than the tissue around them."
    ]
    said += _valid(recipe.get("valid") or {})
    said += _correct(recipe.get("correct") or {}, recipe["tile"])
    said.append(_denoise(recipe["denoise"]))
    if "segmenter" in recipe:
        segmenter = recipe["segmenter"]
        what = f"the trained model {segmenter['model']}" if "model" in segmenter else f"{segmenter.get('target')}"
        said.append(f"Vessels were then found by {what}.")
    else:
        said += _threshold(recipe["threshold"], recipe["tile"])
    return said + list(_clean(recipe.get("clean") or {}))


def _valid(valid: Mapping[str, Any]) -> Iterator[str]:
    if "label" in valid:
        yield f"Only voxels inside of the label {valid['label']} count."
    elif "padding" in valid:
        yield f"Voxels of grey level {valid['padding']}, where nothing was imaged, do not count."


def _correct(correct: Mapping[str, Any], tile: int) -> Iterator[str]:
    if "flat_field" in correct:
        yield f"Uneven light was evened out over {correct['flat_field']:g} voxels."
    if "match" in correct:
        yield f"Grey levels of each slice were matched to those of slice {correct['match']}."
    if "gamma" in correct:
        yield f"Grey levels were changed by a gamma of {correct['gamma']:g}."
    if "clahe" in correct:
        yield f"Contrast was equalised over regions of {tile} voxels (CLAHE, clip limit {correct['clahe']:g})."


def _denoise(denoise: Mapping[str, Any]) -> str:
    match denoise["method"]:
        case "none":
            return "No filter was used."
        case "median":
            size = denoise["size"]
            lengths = size if isinstance(size, list) else [size, size]
            plane = "" if isinstance(size, list) else " in the plane of the slice"
            return f"Noise was removed by a median of {' × '.join(map(str, lengths))} voxels{plane}."
        case "gaussian":
            return f"Noise was removed by a Gaussian with a standard deviation of {denoise['sigma']:g} voxels."
        case _:
            return f"Noise was removed by the function {denoise.get('target')}."


def _threshold(threshold: Mapping[str, Any], tile: int) -> Iterator[str]:
    method, scope = threshold["method"], threshold["scope"]
    if method == "fixed":
        yield f"Voxels above the fixed grey level {threshold['level']:g} are vessel."
        return
    named, size = _METHODS.get(method, method), threshold.get("size")
    over = {
        "tile": f"for each tile of {tile} × {tile} voxels by itself",
        "smooth": f"for each tile of {tile} × {tile} voxels, and levels go over smoothly from tile to tile",
        "slice": "for each slice as a whole",
        "volume": "for the whole volume",
        "voxel": f"for each voxel, from the {size} × {size} voxels around it",
    }
    yield f"{named} gave a grey level {over.get(scope, scope)}; voxels above it are vessel."
    if threshold.get("min_separability") is not None or threshold.get("min_contrast") is not None:
        gets = {"slice": "get the level of their slice", "empty": "get an empty mask", "keep": "keep their own level"}
        yield f"Tiles without a signal {gets.get(threshold.get('on_no_signal', 'slice'), '')}."


def _clean(clean: Mapping[str, Any]) -> Iterator[str]:
    for key in ("opening", "closing"):
        if key in clean:
            yield f"The mask was cleaned by {key} with a disk of radius {clean[key]} voxels."
    if "small_objects" in clean:
        yield f"Objects of a slice with fewer than {clean['small_objects']} voxels were removed."
    if "small_holes" in clean:
        yield f"Holes of a slice with fewer than {clean['small_holes']} voxels were filled."


def level_words(level: float) -> str:
    """Write a grey level: whole ones whole, others with one decimal."""
    return f"{level:.0f}" if level == int(level) else f"{level:.1f}"
