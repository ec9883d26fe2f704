"""Features of voxels against SciPy and NumPy, and in any cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.kernels.features import count_features, features, features_halo


def slow_features(plane: np.ndarray, scales: tuple[float, ...]) -> np.ndarray:
    """The definition, an array at a time, in 64 bits."""
    found = [plane.astype(float)]
    for scale in scales:
        smooth = ndimage.gaussian_filter(plane.astype(float), scale)
        e = np.pad(smooth, 1, mode="symmetric")
        gy, gx = (e[2:, 1:-1] - e[:-2, 1:-1]) * scale / 2, (e[1:-1, 2:] - e[1:-1, :-2]) * scale / 2
        yy = (e[2:, 1:-1] - 2 * smooth + e[:-2, 1:-1]) * scale**2
        xx = (e[1:-1, 2:] - 2 * smooth + e[1:-1, :-2]) * scale**2
        xy = (e[2:, 2:] - e[2:, :-2] - e[:-2, 2:] + e[:-2, :-2]) * scale**2 / 4
        low, high = np.moveaxis(np.linalg.eigvalsh(np.stack([yy, xy, xy, xx], -1).reshape(*plane.shape, 2, 2)), -1, 0)
        found += [smooth, np.hypot(gy, gx), yy + xx, high, low]
    return np.stack(found, axis=-1)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [(40, 61), (5, 90), (1, 1)])
def test_features_are_their_definition(dtype: str, shape: tuple[int, int]) -> None:
    top = np.iinfo(dtype).max
    plane = np.random.default_rng(3).integers(0, top, shape, dtype, endpoint=True)
    found = features(plane, (0.7, 2.0, 4.0))
    assert found.dtype == np.float32
    assert found.shape == (*shape, count_features((0.7, 2.0, 4.0)))
    np.testing.assert_allclose(found, slow_features(plane, (0.7, 2.0, 4.0)), atol=1e-5 * top)  # smoothed in 32 bits


def test_bright_line_is_a_ridge() -> None:
    plane = np.zeros((41, 41), np.uint8)
    plane[:, 20] = 200
    _, smooth, gradient, laplacian, high, low = features(plane, (2.0,))[20, 20]
    assert smooth > 30
    assert gradient == pytest.approx(0, abs=1e-4)
    assert high == pytest.approx(0, abs=1e-3)
    assert laplacian < -20
    assert low == pytest.approx(laplacian, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["uint8", "uint16"]),
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    scales=st.sampled_from([(1.0, 2.0, 4.0), (0.5,), (1.3, 3.0)]),
    data=st.data(),
)
def test_any_cut_with_its_halo_has_the_same_bits(seed, dtype, shape, scales, data) -> None:
    plane = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    (top, bottom), (left, right) = (
        sorted(data.draw(st.tuples(st.integers(0, length - 1), st.integers(0, length - 1)))) for length in shape
    )
    halo = features_halo(scales)
    around = np.pad(plane, halo, mode="symmetric")[top : bottom + 1 + 2 * halo, left : right + 1 + 2 * halo]
    cut = features(np.ascontiguousarray(around), scales)[halo : halo + bottom + 1 - top, halo : halo + right + 1 - left]
    np.testing.assert_array_equal(cut, features(plane, scales)[top : bottom + 1, left : right + 1])


@pytest.mark.parametrize("scales", [(1.0, 2.0, 4.0), (0.5,), (1.3, 3.0)])
def test_halo_is_as_far_as_they_look(scales: tuple[float, ...]) -> None:
    halo = features_halo(scales)
    plane = np.zeros((1, 2 * halo + 10), np.uint16)
    plane[0, 0] = 65535
    found = features(plane, scales)[0]
    assert found[halo].any()
    assert not found[halo + 1 :].any()
