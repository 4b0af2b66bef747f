from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.feature import hessian_matrix, hessian_matrix_eigvals

from neurotome.blocks import plan_blocks
from neurotome.errors import ImageError, SettingsError
from neurotome.features import FeatureSettings, compute_features, feature_names, halo


def compute(image, sigmas=(1, 2)):
    chosen = FeatureSettings(sigmas)
    return dict(zip(feature_names(chosen), compute_features(image, chosen), strict=True))


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)


def test_names_match_features(image):
    chosen = FeatureSettings((1, 2.5))
    features = compute_features(image, chosen)
    names = feature_names(chosen)
    assert features.shape == (len(names), 40, 50)
    assert features.dtype == np.float32
    assert len(set(names)) == len(names) == 1 + 2 * 7 + 1
    assert names[0] == "grey"
    assert names[-1] == "difference_1_2.5"
    np.testing.assert_array_equal(features[0], image)


def test_one_sigma_has_no_difference():
    assert len(feature_names(FeatureSettings((1,)))) == 8


def test_agrees_with_scipy(image):
    found = compute(image)
    double = image.astype(np.float64)
    expected = {
        "gaussian_2": ndimage.gaussian_filter(double, 2),
        "laplacian_2": ndimage.gaussian_laplace(double, 2),
        "gradient_2": ndimage.gaussian_gradient_magnitude(double, 2),
        "difference_1_2": ndimage.gaussian_filter(double, 1) - ndimage.gaussian_filter(double, 2),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)


def test_eigenvalues_agree_with_linear_algebra(image):
    found = compute(image)
    double = image.astype(np.float64)

    def smooth(array, sigma, order=(0, 0)):
        return ndimage.gaussian_filter(array, sigma, order)

    dy, dx = smooth(double, 2, (1, 0)), smooth(double, 2, (0, 1))
    hessian = smooth(double, 2, (2, 0)), smooth(double, 2, (1, 1)), smooth(double, 2, (0, 2))
    structure = smooth(dy * dy, 1), smooth(dy * dx, 1), smooth(dx * dx, 1)
    for kind, (yy, yx, xx) in {"hessian": hessian, "structure": structure}.items():
        small, large = np.moveaxis(np.linalg.eigvalsh(np.stack([yy, yx, yx, xx], -1).reshape(40, 50, 2, 2)), -1, 0)
        np.testing.assert_allclose(found[f"{kind}_large_2"], large, atol=1e-6)
        np.testing.assert_allclose(found[f"{kind}_small_2"], small, atol=1e-6)


def test_hessian_agrees_with_skimage(image):
    found = compute(image, (3,))
    matrix = hessian_matrix(image.astype(np.float64), sigma=3, mode="reflect", use_gaussian_derivatives=True)
    large, small = hessian_matrix_eigvals(matrix)
    # skimage differentiates twice by narrower kernels, which differs by the sampling of the Gaussian
    inner = (slice(12, -12), slice(12, -12))
    scale = np.abs(large).max()
    np.testing.assert_allclose(found["hessian_large_3"][inner], large[inner], atol=0.02 * scale)
    np.testing.assert_allclose(found["hessian_small_3"][inner], small[inner], atol=0.02 * scale)


def test_slope_and_bowl_by_hand():
    y, x = np.mgrid[:41, :41].astype(np.float32) - 20
    slope = compute(3 * y + 4 * x, (1,))
    centre = (20, 20)
    assert slope["gradient_1"][centre] == pytest.approx(5, rel=1e-3)
    assert slope["structure_large_1"][centre] == pytest.approx(25, rel=1e-3)
    assert slope["structure_small_1"][centre] == pytest.approx(0, abs=1e-3)
    assert slope["laplacian_1"][centre] == pytest.approx(0, abs=1e-3)
    bowl = compute(y**2 + 2 * x**2, (2,))
    assert bowl["hessian_large_2"][centre] == pytest.approx(4, rel=1e-2)
    assert bowl["hessian_small_2"][centre] == pytest.approx(2, rel=1e-2)
    assert bowl["laplacian_2"][centre] == pytest.approx(6, rel=1e-2)


def test_constant_image_has_no_structure():
    for name, values in compute(np.full((9, 5), 7, np.float32), (1, 4)).items():
        expected = 7 if name == "grey" or name.startswith("gaussian") else 0
        # scipy's cut-off second derivative sums to -7e-5, not 0
        np.testing.assert_allclose(values, expected, atol=2e-3, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    edge=st.integers(5, 40),
    sigmas=st.sampled_from([(1,), (0.7, 1.5), (1, 2, 3)]),
)
def test_blocks_with_halo_equal_the_whole(height, width, edge, sigmas):
    image = np.random.default_rng(height * 64 + width).normal(size=(height, width)).astype(np.float32)
    chosen = FeatureSettings(sigmas)
    whole = compute_features(image, chosen)
    margin = halo(chosen)
    for block in plan_blocks(image.shape, (edge, edge), (margin, margin)):
        part = compute_features(image[block.read], chosen)
        # float32 rounding of grey values of order 1
        np.testing.assert_allclose(part[(slice(None), *block.crop)], whole[(slice(None), *block.core)], atol=1e-5, rtol=0)


def test_halo_is_not_larger_than_needed():
    chosen = FeatureSettings((1, 2))
    assert halo(chosen) == 8 + 4
    impulse = np.zeros((61, 61), np.float32)
    impulse[30, 30] = 1
    touched = np.abs(compute_features(impulse, chosen)).max(axis=0) > 0
    rows = np.flatnonzero(touched.any(axis=1))
    assert (rows[0], rows[-1]) == (30 - halo(chosen), 30 + halo(chosen))


@pytest.mark.parametrize("sigmas", [(), (0,), (-1, 2), (2, 1), (1, 1), (float("nan"),), (float("inf"),)])
def test_refuses_sigmas(sigmas):
    with pytest.raises(SettingsError, match="sigmas"):
        FeatureSettings(sigmas)


def test_refuses_images():
    with pytest.raises(ImageError, match=r"\(1, 4, 4\)"):
        compute_features(np.zeros((1, 4, 4), np.float32), FeatureSettings())
    with pytest.raises(ImageError, match=r"\(0, 4\)"):
        compute_features(np.zeros((0, 4), np.float32), FeatureSettings())
    image = np.zeros((4, 4), np.float32)
    image[0, 0] = np.nan
    with pytest.raises(ImageError, match="1 of 16"):
        compute_features(image, FeatureSettings())
