"""How good a mask is, in a sentence, and which of its scores are 0 / 0, so that no number praises what is not there."""

from __future__ import annotations

from dataclasses import asdict

from pipeline.kernels.confusion import Counts, Undefined, scores

RULES: dict[Undefined, str] = {
    "article": "Where a score is undefined, 0 / 0, it counts as 1 if every voxel is right, else as the lowest; the "
    "balanced accuracy is the mean of its two in any case.",
    "zero": "Where a score is undefined, 0 / 0, it counts as 0; the balanced accuracy is the one of its two that is "
    "defined.",
    "nan": "Where a score is undefined, 0 / 0, it has no value, and no part in a mean.",
}
"""What a score is that is 0 / 0: `kernels.confusion.scores` in words."""


def undefined_scores(counts: Counts | None) -> frozenset[str]:
    """Names of the scores that are 0 / 0 of these counts; none where nothing is annotated, and so nothing scored."""
    if counts is None or not counts.total:
        return frozenset()
    return frozenset(name for name, value in asdict(scores(counts, "nan")).items() if value is None)


def verdict(counts: Counts) -> str:
    """Say in a sentence or two how good a mask is; where it has no MCC, why."""
    if not counts.total:
        return "No voxel that is done has a truth, so nothing can be said of how good the mask is."
    voxels = f"{counts.total:,} annotated voxel{'' if counts.total == 1 else 's'}"
    mcc = scores(counts, "nan").mcc
    if mcc is None:
        return f"Measured on {voxels}: {_lack(counts)}"
    agreement = f"{mcc:.3f}".replace("-", "−")
    return (
        f"Measured on {voxels}, mask and truth agree with an MCC of {agreement}. {_recall(counts)}; of 100 voxels that "
        f"it calls vessel, {_hundredths(counts.tp, counts.tp + counts.fp)} are."
    )


def _lack(counts: Counts) -> str:
    """What truth or mask has none of, and what can still be said."""
    vessel, marked = counts.tp + counts.fn, counts.tp + counts.fp
    if not vessel and not marked:
        return (
            "there is no vessel in the truth, and none in the mask. No voxel is wrong, but this does not show that the "
            "mask would find a vessel: its MCC is undefined."
        )
    if not vessel:
        return f"there is no vessel in the truth. The mask calls {marked:,} vessel, all wrongly; its MCC is undefined."
    if not marked:
        return f"there is no vessel in the mask. The truth has {vessel:,}, all missed; the MCC is undefined."
    if vessel == counts.total:
        return f"there is no background in the truth. {_recall(counts)}; its MCC is undefined."
    share = _hundredths(vessel, counts.total)
    return f"there is no background in the mask. Of 100 voxels that it calls vessel, {share} are; its MCC is undefined."


def _recall(counts: Counts) -> str:
    return f"Of 100 vessel voxels of the truth the mask finds {_hundredths(counts.tp, counts.tp + counts.fn)}"


def _hundredths(part: int, whole: int) -> str:
    """A share in hundredths, one that is not all or nothing never said to be; none of nothing."""
    if not whole:
        return "0"
    percent = round(100 * part / whole)
    return "less than 1" if percent == 0 < part else "more than 99" if percent == 100 and part < whole else str(percent)
