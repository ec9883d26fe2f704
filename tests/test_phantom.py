from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from pipeline.errors import ConfigError, RegionError
from pipeline.phantom import NOT_ANNOTATED, VESSEL, Phantom

SMALL = (3, 300, 700)
WHOLE = Phantom()


@lru_cache
def whole_volume():
    """Image and truth of the default phantom."""
    slices = [WHOLE.slice(z) for z in range(WHOLE.shape[0])]
    return np.stack([image for image, _ in slices]), np.stack([truth for _, truth in slices])


def complete_tiles(volume):
    """All complete 512 tiles of a volume, as (slice, row, column, 512, 512)."""
    depth, height, width = volume.shape
    rows, columns = height // 512, width // 512
    inner = volume[:, : rows * 512, : columns * 512].reshape(depth, rows, 512, columns, 512)
    return inner.swapaxes(2, 3)


def test_same_seed_gives_same_bits():
    for z in range(SMALL[0]):
        for first, second in zip(Phantom(SMALL, seed=7).slice(z), Phantom(SMALL, seed=7).slice(z), strict=True):
            np.testing.assert_array_equal(first, second)


def test_slice_does_not_depend_on_what_was_made_before():
    last_first = {z: Phantom(SMALL, seed=3).slice(z) for z in (2, 0, 1)}
    for other in range(20, 26):  # more phantoms than trees are kept
        Phantom((1, 64, 64), seed=other).slice(0)
    for z in range(SMALL[0]):
        image, truth = Phantom(SMALL, seed=3).slice(z)
        np.testing.assert_array_equal(image, last_first[z][0])
        np.testing.assert_array_equal(truth, last_first[z][1])


def test_other_seed_gives_other_vessels_and_noise():
    image, truth = Phantom(SMALL, seed=0).slice(1)
    other_image, other_truth = Phantom(SMALL, seed=1).slice(1)
    assert (image != other_image).any()
    assert (truth != other_truth).any()


def test_noise_differs_between_slices():
    (first, _), (second, _) = Phantom(SMALL).slice(0), Phantom(SMALL).slice(1)
    assert (first != second).mean() > 0.5


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 2), (1, 64, 64), (2, 300, 700), (3, 17, 530)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_shape_and_dtype(shape, dtype):
    phantom = Phantom(shape, dtype=dtype)
    for z in range(shape[0]):
        image, truth = phantom.slice(z)
        assert image.shape == truth.shape == shape[1:]
        assert image.dtype == dtype
        assert truth.dtype == np.uint8
        assert set(np.unique(truth)) <= {0, VESSEL}


def test_uint16_holds_the_same_grey_levels_more_finely():
    coarse, _ = Phantom(SMALL).slice(0)
    fine, _ = Phantom(SMALL, dtype="uint16").slice(0)
    np.testing.assert_allclose(fine / 257, coarse, atol=0.502)
    assert len(np.unique(fine)) > 2000


def test_small_phantom_has_vessel_and_tissue():
    _, truth = Phantom((1, 64, 64)).slice(0)
    assert 0 < (truth == VESSEL).mean() < 0.5


def test_truth_is_that_of_slice():
    phantom = Phantom(SMALL)
    np.testing.assert_array_equal(phantom.truth(2), phantom.slice(2)[1])


def test_some_tiles_have_no_vessel_and_others_have():
    share = (complete_tiles(whole_volume()[1]) == VESSEL).mean(axis=(3, 4))
    np.testing.assert_array_equal(share[:, 1, 2], 0)
    others = np.delete(share.reshape(len(share), -1), 5, axis=1)
    assert others.min() > 0.01
    assert others.max() < 0.2


def test_a_single_tile_has_vessels():
    assert (Phantom((1, 512, 512)).truth(0) == VESSEL).any()


def test_vessels_are_darker_than_tissue():
    image, truth = whole_volume()
    vessel, tissue = image[truth == VESSEL], image[truth == 0]
    assert np.median(vessel) < np.median(tissue) - 50
    assert np.percentile(vessel, 90) < np.percentile(tissue, 5)


def test_vessels_of_several_radii():
    radius = ndimage.distance_transform_edt(WHOLE.truth(3))
    peaks = radius[(ndimage.maximum_filter(radius, 9) == radius) & (radius > 0)]
    counts, _ = np.histogram(peaks, [1.5, 4, 8.5, 16])
    capillaries, venules, large = counts
    assert capillaries > 200
    assert venules > 10
    assert large > 5


def test_out_of_focus_slice_is_the_least_sharp():
    sharpness = [ndimage.laplace(image.astype(np.float32)).var() for image in whole_volume()[0]]
    assert int(np.argmin(sharpness)) == WHOLE.out_of_focus
    assert min(sharpness) < 0.8 * np.partition(sharpness, 1)[1]


def test_one_slice_is_in_focus():
    assert Phantom((1, 64, 64)).out_of_focus is None
    assert Phantom((2, 64, 64)).out_of_focus == 1


def test_vessels_go_on_into_the_next_slice():
    vessel = whole_volume()[1] == VESSEL
    for above, below in pairwise(vessel):
        both, either = (above & below).sum(), (above | below).sum()
        assert 0.5 < both / either < 0.99


def test_every_other_slice_is_partly_annotated():
    annotated = [WHOLE.partial_truth(z) for z in range(4)]
    assert [truth is not None for truth in annotated] == [True, False, True, False]


def test_partial_truth_agrees_with_the_truth_where_annotated():
    for z in (0, 2):
        partial = WHOLE.partial_truth(z)
        known = partial != NOT_ANNOTATED
        assert 0.7 < known.mean() < 0.8
        np.testing.assert_array_equal(partial[known], whole_volume()[1][z][known])


def test_light_is_uneven():
    image, truth = whole_volume()
    tissue = np.where(truth == 0, image, np.nan)
    left, middle = np.nanmedian(tissue[0, :, :100]), np.nanmedian(tissue[0, :, 1000:1200])
    assert middle - left > 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (0, 64, 64)}, r"shape \(0, 64, 64\), expected three positive"),
        ({"shape": (1, 64, -1)}, r"shape \(1, 64, -1\), expected three positive"),
        ({"shape": (64, 64)}, r"shape \(64, 64\), expected three positive"),
        ({"seed": -1}, "seed -1, expected 0 or more"),
        ({"dtype": "float32"}, "dtype 'float32', expected 'uint8' or 'uint16'"),
    ],
    ids=["no slice", "negative side", "two axes", "negative seed", "float"],
)
def test_bad_phantom_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Phantom(**arguments)


@pytest.mark.parametrize("z", [-1, 3])
@pytest.mark.parametrize("method", ["slice", "truth", "partial_truth"])
def test_slice_outside_the_volume_is_refused(method, z):
    with pytest.raises(RegionError, match=rf"slice {z}, expected 0 to 2"):
        getattr(Phantom(SMALL), method)(z)
