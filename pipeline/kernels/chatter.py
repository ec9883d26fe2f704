"""Chatter of the knife: periodic bands along its edge, found in the profile of a tile's rows or columns.

A knife that vibrates cuts sections that are now thicker, now thinner, and lights them so. The profile of a tile is the
mean of each row, or column. It is windowed by ``(1 - u**2)**2``, for u from -1 to 1, and transformed. A line's power,
less four times the geometric mean of what is around it on its two sides, is the square of the amplitude. It comes out
up to a third too low, as the window takes something off. Bands at another angle are not seen, nor may be weak ones
beside a vessel that runs along them from end to end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.compiled import kernel

Floats = NDArray[np.float64]

SIDE = 32
"""Voxels that a tile must have along both axes for its bands to be told from anything else."""


# A band of chatter is a line in a spectrum. It repeats at least 8 times in a tile, each time in 2.5 voxels or more, and
# stands out from what is around it: further than the line is wide (3 bins to each side), but near (10 bins). What is
# around takes off four times its power, as chance alone makes a few of the 200 bins that much stronger.
_REPEATS, _HIGHEST, _NEAR, _FAR, _EXCESS = 8, 0.4, 3, 10, 4.0


@kernel
def fill_profile(sums: NDArray[np.int64], across: int, profile: Floats) -> None:
    """Write the means of rows (or columns), less their mean, windowed, so that a transform gives amplitudes."""
    length = sums.size
    mean, weight = 0.0, 0.0
    for at in range(length):
        mean += sums[at] / (across * length)
        weight += _weight(at, length)
    for at in range(length):
        profile[at] = (sums[at] / across - mean) * _weight(at, length) * (2.0 / weight)


@kernel
def _weight(at: int, length: int) -> float:
    """Weight of one value of a profile."""
    place = (2 * at + 1 - length) / length
    return (1.0 - place * place) ** 2


@kernel
def strongest_line(power: Floats, spread: float) -> float:
    """Power of the strongest line of a spectrum beyond what is around it, for so many bins to a repeat in the tile."""
    near, far, last = int(np.ceil(_NEAR * spread)), int(_FAR * spread), power.size - 1
    strongest = 0.0
    for at in range(int(np.ceil(_REPEATS * spread)), int(2 * _HIGHEST * last) + 1):
        if power[at] > strongest:
            left = _mean(power, max(1, at - far), at - near)
            right = _mean(power, at + near, min(last, at + far))
            strongest = max(strongest, power[at] - _EXCESS * np.sqrt(left * right))
    return strongest


@kernel
def _mean(values: Floats, first: int, last: int) -> float:
    total = 0.0
    for at in range(first, last + 1):
        total += values[at]
    return total / (last + 1 - first)
