"""Threshold methods: the level of a histogram.

Each kernel maps counts, ``(levels,)`` of any integer dtype, to one level, and vessel is ``> level``. With all voxels at
one level it is that level, so that the mask is empty, or NaN (`minimum_level`); without any voxel it is NaN. They agree
with scikit-image on the image itself; that one rounds counts to float32, and sums here are exact in float64 up to
1.1e11 voxels of 16 bit.

Measured on one core of an EPYC (Zen 4), tiles of 512x512 a second: with 256 levels 300,000 and more, with 65536 levels
1,900 (Yen's) to 25,000. `minimum_level` takes the time of its rounds: 290,000 of the tile of KESM, 12,000 of uniform
noise, 900 at worst; of 65536 levels 70 to 110 where noise leaves it undecided, and 5 at worst.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.kernels.compiled import kernel
from pipeline.kernels.histogram import level_counts, otsu_level, otsu_levels

Line = NDArray[np.float64]

LI_TOLERANCE = 0.5
"""Change of Li's level, in grey levels, that ends the iteration: scikit-image's for integers."""

MINIMUM_ROUNDS = 9_999
"""Rounds of smoothing within which two maxima must be left: scikit-image gives up in its round 10000."""

_EXACT_ROUNDS = 20
# Rounds before the first division: the sums of a tile's counts, three times as large each round, are integers < 2**53.

_WINDOW, _WINDOW_HALO = 3200, 800
# Levels of a window that is smoothed by itself, and of those the ones at each side that what lies beyond may change.
# As E[exp(tX)] = (1 + 2 cosh t) / 3 <= exp(t*t / 3) of a step X of -1, 0 or 1, a walk of n steps ever gets 800 levels
# up with a chance below 2 exp(-3 * 800**2 / (4 n)), which is 3e-21 in all rounds.

_FIRST_WINDOW_ROUND = 128
# When one window is tried, and again whenever the rounds have doubled: where none is found, little is lost.


@kernel
def li_level(counts: NDArray[Any]) -> float:
    """Level of least cross entropy between the image and the means of its two classes, by iteration [1]_, [2]_.

    It is not an integer, as a rule.

    Notes
    -----
    Agrees with ``skimage.filters.threshold_li`` up to the rounding of its float32 counts: the same steps from the same
    start, the mean, until one is not longer than `LI_TOLERANCE`. A level above another gives two means, and so a next
    level, above the other's: the steps all go one way, and end.

    References
    ----------
    .. [1] C.H. Li, C.K. Lee, "Minimum cross entropy thresholding", Pattern Recognition 26 (1993), 617-625.
       :doi:`10.1016/0031-3203(93)90115-D`
    .. [2] C.H. Li, P.K.S. Tam, "An iterative algorithm for minimum cross entropy thresholding", Pattern Recognition
       Letters 19 (1998), 771-776. :doi:`10.1016/S0167-8655(98)00057-9`

    Examples
    --------
    >>> round(li_level(np.array([5, 1, 0, 0, 6])), 3)
    1.206
    """
    total, moment = _sums(counts)
    if total == 0.0:
        return np.nan
    lowest = _ends(counts)[0]
    moment -= lowest * total  # of levels above the lowest, as all below: logarithms need positive means
    level, previous = moment / total, -1.0
    end, below, below_moment = lowest, 0.0, 0.0  # of the levels from the lowest up to `end`, which is not one of them
    while abs(level - previous) > LI_TOLERANCE:
        previous = level
        while end - lowest <= level:
            below += counts[end]
            below_moment += float(counts[end]) * (end - lowest)
            end += 1
        while end - 1 - lowest > level:
            end -= 1
            below -= counts[end]
            below_moment -= float(counts[end]) * (end - lowest)
        if below_moment == 0.0:  # only the lowest level is left below, and 0 has no logarithm
            break
        mean, mean_above = below_moment / below, (moment - below_moment) / (total - below)
        level = (mean - mean_above) / (np.log(mean) - np.log(mean_above))
    return level + lowest


@kernel
def yen_level(counts: NDArray[Any]) -> float:
    """Level that maximises the entropic correlation of the two classes [1]_.

    Of levels that are equally good it is the first.

    Notes
    -----
    Agrees with ``skimage.filters.threshold_yen`` on an image of 8 bit within one level; that one sums float32, which
    on 16 bit can be some levels where the criterion is flat. It is without the logarithm here, which orders alike.

    References
    ----------
    .. [1] J.C. Yen, F.J. Chang, S. Chang, "A new criterion for automatic multilevel thresholding", IEEE Transactions
       on Image Processing 4 (1995), 370-378. :doi:`10.1109/83.366472`

    Examples
    --------
    >>> yen_level(np.array([5, 1, 0, 0, 6]))
    1.0
    """
    above = 0.0
    squares_above = np.zeros(counts.size + 1)  # added up: the rest of a volume's 1e22 would be rounding
    for level in range(counts.size - 1, -1, -1):
        above += counts[level]
        squares_above[level] = squares_above[level + 1] + float(counts[level]) * float(counts[level])
    below = squares_below = 0.0
    best_level, best_criterion = np.nan, -1.0
    for level in range(counts.size):
        if counts[level] == 0:  # the same two classes as one level before, and the first maximum wins
            continue
        below += counts[level]
        above -= counts[level]
        squares_below += float(counts[level]) * float(counts[level])
        criterion = 0.0
        if above > 0.0:
            criterion = (below * above) * (below * above) / (squares_below * squares_above[level + 1])
        if criterion > best_criterion:
            best_level, best_criterion = float(level), criterion
    return best_level


@kernel
def triangle_level(counts: NDArray[Any]) -> float:
    """Level farthest below the line from the peak of the histogram to the end of its longer tail [1]_.

    Of levels that are equally far it is the first from that end towards the peak; of tails of one length that of the
    lower levels counts, of peaks of one height the lowest.

    Notes
    -----
    Agrees with ``skimage.filters.threshold_triangle``, which rounds lengths where these are integers below 2**53; so it
    may take another one of levels that are equally far.

    References
    ----------
    .. [1] G.W. Zack, W.E. Rogers, S.A. Latt, "Automatic measurement of sister chromatid exchange frequency", Journal
       of Histochemistry and Cytochemistry 25 (1977), 741-753. :doi:`10.1177/25.7.70454`

    Examples
    --------
    >>> triangle_level(np.array([1, 9, 3, 0, 0, 1]))
    3.0
    """
    first, last = _ends(counts)
    if last < 0:
        return np.nan
    peak = first
    for level in range(first, last + 1):
        if counts[level] > counts[peak]:
            peak = level
    end, step = (last, -1) if peak - first < last - peak else (first, 1)
    height, width = float(counts[peak]), abs(peak - end)
    best_level, best_length = end, -np.inf
    for along in range(width):
        length = height * along - width * float(counts[end + step * along])
        if length > best_length:
            best_level, best_length = end + step * along, length
    return float(best_level)


@kernel
def isodata_level(counts: NDArray[Any]) -> float:
    """Lowest level halfway between the means of its two classes [1]_.

    It is the first level with less than one grey level from there up to the middle of the two means.

    Notes
    -----
    Agrees with ``skimage.filters.threshold_isodata`` within one level. The middle rises with the level: it starts above
    and is at most half a level above the last but one level, so the first level less than one below it is not above it.

    References
    ----------
    .. [1] T.W. Ridler, S. Calvard, "Picture thresholding using an iterative selection method", IEEE Transactions on
       Systems, Man, and Cybernetics 8 (1978), 630-632. :doi:`10.1109/TSMC.1978.4310039`

    Examples
    --------
    >>> isodata_level(np.array([5, 1, 0, 0, 6]))
    2.0
    """
    total, moment = _sums(counts)
    below = below_moment = 0.0
    for level in range(counts.size):
        below += counts[level]
        below_moment += float(counts[level]) * level
        if below == 0.0:
            continue
        above = total - below
        # Both means times both sizes: integers, exact on a tile, where quotients would round what is just one above.
        means = below_moment * above + (moment - below_moment) * below
        if above == 0.0 or means < 2.0 * (level + 1) * below * above:
            return float(level)
    return np.nan


@kernel
def mean_level(counts: NDArray[Any]) -> float:
    """Mean grey level [1]_, as ``skimage.filters.threshold_mean``.

    References
    ----------
    .. [1] C.A. Glasbey, "An analysis of histogram-based thresholding algorithms", CVGIP: Graphical Models and Image
       Processing 55 (1993), 532-537. :doi:`10.1006/cgip.1993.1040`

    Examples
    --------
    >>> mean_level(np.array([5, 1, 0, 0, 6]))
    2.0833333333333335
    """
    total, moment = _sums(counts)
    return np.nan if total == 0.0 else moment / total


@kernel
def minimum_level(counts: NDArray[Any]) -> float:
    """Lowest level between the two maxima that are left when the histogram is smoothed over and over [1]_.

    Of levels that are equally low it is the first. It is NaN, which is an empty mask, also where the method does not
    decide: fewer than two maxima are left, as with all voxels at one or two levels, or more than two after
    `MINIMUM_ROUNDS` rounds, as usual in the noise of 16 bit.

    Notes
    -----
    Agrees with ``skimage.filters.threshold_minimum``, which raises RuntimeError where this one is NaN: the first level
    can be a maximum and the last one cannot. That one rounds to float32 each round; in an empty gap between two modes
    the level may be another one, but the mask is the same.

    Rounding keeps order, so it makes no maxima on the slopes of a histogram. Once three maxima of one window are sure
    to be there up to the last round, the outcome is known, and the rounds of all other levels are spared.

    References
    ----------
    .. [1] J.M.S. Prewitt, M.L. Mendelsohn, "The analysis of cell images", Annals of the New York Academy of Sciences
       128 (1966), 1035-1053. :doi:`10.1111/j.1749-6632.1965.tb11715.x`

    Examples
    --------
    >>> minimum_level(np.array([1, 9, 3, 0, 0, 1, 4, 1, 1]))
    4.0
    """
    first, last = _ends(counts)
    if last - first < 3:  # two maxima take a fall, a rise and a fall
        return np.nan
    new = np.zeros(last - first + 3)  # with a copy of each end beside it: reflection
    new[1:-1] = counts[first : last + 1]
    old = np.empty_like(new)
    next_window = _FIRST_WINDOW_ROUND
    for done in range(MINIMUM_ROUNDS + 1):
        old, new = new, old
        old[0], old[-1] = old[1], old[-2]
        peaks = _smooth(old, 1.0 if done < _EXACT_ROUNDS else 1 / 3, 0.0, new)
        if done > 0 and peaks < 3:
            maxima, left, right = _maxima(old[1:-1])
            if maxima < 3:
                return float(first + left + np.argmin(old[1 + left : 2 + right])) if maxima == 2 else np.nan
        if done == next_window and old.size > 2 * _WINDOW:
            if _outlast(old, MINIMUM_ROUNDS - done):
                break
            next_window *= 2
    return np.nan


@kernel
def _smooth(old: Line, scale: float, margin: float, new: Line) -> int:
    """Sum each with its neighbours, all but the ends; count those of `old` that are above both by a margin."""
    left, middle, right, out = old[:-2], old[1:-1], old[2:], new[1:-1]
    peaks = 0
    for at in range(out.size):  # vectorised: 0.2 ns each
        peaks += (left[at] + margin < middle[at]) & (right[at] + margin < middle[at])
        out[at] = (left[at] + right[at] + middle[at]) * scale  # of its mirror image the mirror image, to the last bit
    return peaks


@kernel
def _maxima(line: Line) -> tuple[int, int, int]:
    """Number of maxima, each where it starts to fall, and the last two of them; no more than three are looked for."""
    maxima, left, right, rising = 0, 0, 0, True
    for at in range(line.size - 1):
        if rising and line[at + 1] < line[at]:
            maxima, left, right, rising = maxima + 1, right, at, False
            if maxima == 3:
                break
        elif line[at + 1] > line[at]:
            rising = True
    return maxima, left, right


@kernel
def _outlast(line: Line, rounds: int) -> bool:
    """Whether three maxima in one window are sure to be there in each of some more rounds."""
    old, start, most = np.empty(_WINDOW), 0, -1
    for other in range(0, line.size - _WINDOW + 1, _WINDOW_HALO):
        peaks = _smooth(line[other + _WINDOW_HALO : other + _WINDOW - _WINDOW_HALO], 1.0, 0.0, old)
        if peaks > most:
            start, most = other, peaks
    old[:] = line[start : start + _WINDOW]
    new = old.copy()
    # Rounding: three a round, each below 2**-53 of the sum. What lies beyond the window: see its halo.
    margin = 1e-10 * old.max() + 1e-19 * line.max()
    for _ in range(rounds + 1):
        _smooth(old[: _WINDOW_HALO + 2], 1 / 3, 0.0, new[: _WINDOW_HALO + 2])
        _smooth(old[-_WINDOW_HALO - 2 :], 1 / 3, 0.0, new[-_WINDOW_HALO - 2 :])
        if _smooth(old[_WINDOW_HALO:-_WINDOW_HALO], 1 / 3, margin, new[_WINDOW_HALO:-_WINDOW_HALO]) < 3:
            return False
        old, new = new, old
    return True


@kernel
def _ends(counts: NDArray[Any]) -> tuple[int, int]:
    """First and last level that have voxels; the last is -1 without any."""
    first, last = 0, counts.size - 1
    while last >= 0 and counts[last] == 0:
        last -= 1
    while first < last and counts[first] == 0:
        first += 1
    return first, last


@kernel
def _sums(counts: NDArray[Any]) -> tuple[float, float]:
    """Voxels, and the sum of their levels."""
    total = moment = 0.0
    for level in range(counts.size):
        total += counts[level]
        moment += float(counts[level]) * level
    return total, moment


LEVEL_OF: dict[str, Callable[[NDArray[Any]], float]] = {
    "otsu": otsu_level,
    "li": li_level,
    "yen": yen_level,
    "triangle": triangle_level,
    "isodata": isodata_level,
    "mean": mean_level,
    "minimum": minimum_level,
}
"""Kernel of each method, in the order of `_levels`."""


def levels_of(method: str, tables: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Level of each of some joint tables.

    Parameters
    ----------
    method
        A key of `LEVEL_OF`.
    tables
        ``(tiles, 3, levels)`` uint32, see `kernels.histogram.joint_histograms`.

    Returns
    -------
    ndarray
        ``(tiles,)`` float64: the method's level of all voxels of a tile, annotated or not.

    Raises
    ------
    ConfigError
        There is no such method.
    """
    if method not in LEVEL_OF:
        raise ConfigError(f"method: got {method!r}, expected one of {', '.join(LEVEL_OF)}")
    if method == "otsu":  # most runs need no other, and to load all seven takes 0.1 s more
        return otsu_levels(tables)
    return _levels(tuple(LEVEL_OF).index(method), tables)


@kernel
def _levels(number: int, tables: NDArray[np.uint32]) -> Line:
    """As `levels_of`, by a method's number, from 1: the cache keeps no code that takes a kernel as an argument."""
    levels = np.empty(tables.shape[0])
    for index in range(levels.size):
        counts = level_counts(tables[index])
        if number == 1:
            levels[index] = li_level(counts)
        elif number == 2:
            levels[index] = yen_level(counts)
        elif number == 3:
            levels[index] = triangle_level(counts)
        elif number == 4:
            levels[index] = isodata_level(counts)
        elif number == 5:
            levels[index] = mean_level(counts)
        else:
            levels[index] = minimum_level(counts)
    return levels
