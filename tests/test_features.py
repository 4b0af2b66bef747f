from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

from neurotome.blocks import plan_blocks
from neurotome.classes import ClassSet
from neurotome.errors import DatasetError, ImageError, ModelError, SettingsError
from neurotome.features import EncoderSettings, FeatureSettings, FilterSettings, build_extractor
from neurotome.features.filters import Filters, find_eigenvalues, reach
from neurotome.features.frozen import enlarge
from neurotome.models.model_folder import save_model
from neurotome.models.net import measure_halo
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization
from tests.conftest import compute_features


def build_filters(*sigmas, voxel_size_um=None, **more):
    return build_extractor(FeatureSettings("filters", FilterSettings(sigmas or (1, 2), **more)), voxel_size_um)


def compute(image, *sigmas, **more):
    bank = build_filters(*sigmas, **more)
    patch = image if image.ndim == 3 else image[None]
    return dict(zip(bank.names, compute_features(patch.astype(np.float32), bank), strict=True))


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)


def mirror(image, width=40):
    """The image that the filters see: structure at the border is that of the mirrored image."""
    return np.pad(image.astype(np.float64), width, "symmetric")


def test_identity_is_the_image(image):
    extractor = build_extractor(FeatureSettings("identity"))
    np.testing.assert_array_equal(compute_features(image[None], extractor), image[None])
    assert (extractor.names, extractor.halo, extractor.in_channels) == (("grey",), 0, 1)


def test_names_match_features(image):
    bank = build_filters(1, 2.5)
    features = compute_features(image[None], bank)
    assert features.shape == (len(bank.names), 40, 50)
    assert features.dtype == np.float32
    assert len(set(bank.names)) == len(bank.names) == 1 + 2 * 7 + 1
    assert (bank.names[0], bank.names[-1]) == ("grey", "difference_1_2.5")
    assert len(build_filters(1).names) == 8
    np.testing.assert_array_equal(features[0], image)


def test_agrees_with_scipy(image):
    found = compute(image, 1, 2)
    double = image.astype(np.float64)
    expected = {
        "gaussian_2": ndimage.gaussian_filter(double, 2),
        "laplacian_2": ndimage.gaussian_laplace(double, 2),
        "gradient_2": ndimage.gaussian_gradient_magnitude(double, 2),
        "difference_1_2": ndimage.gaussian_filter(double, 1) - ndimage.gaussian_filter(double, 2),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("sigma", [0.7, 2, 5])
def test_eigenvalues_agree_with_linear_algebra(image, sigma):
    found = compute(image, sigma)
    padded = mirror(image)

    def smooth(array, width, order=(0, 0)):
        return ndimage.gaussian_filter(array, width, order)

    dy, dx = smooth(padded, sigma, (1, 0)), smooth(padded, sigma, (0, 1))
    hessian = smooth(padded, sigma, (2, 0)), smooth(padded, sigma, (1, 1)), smooth(padded, sigma, (0, 2))
    structure = (smooth(product, sigma / 2) for product in (dy * dy, dy * dx, dx * dx))
    for kind, matrix in {"hessian": hessian, "structure": structure}.items():
        yy, yx, xx = (part[40:-40, 40:-40] for part in matrix)
        small, large = np.moveaxis(np.linalg.eigvalsh(np.stack([yy, yx, yx, xx], -1).reshape(40, 50, 2, 2)), -1, 0)
        np.testing.assert_allclose(found[f"{kind}_large_{sigma:g}"], large, atol=2e-6)
        np.testing.assert_allclose(found[f"{kind}_small_{sigma:g}"], small, atol=2e-6)


def test_slope_and_bowl_by_hand():
    y, x = np.mgrid[:41, :41].astype(np.float32) - 20
    slope = compute(3 * y + 4 * x, 1)
    centre = (20, 20)
    assert slope["gradient_1"][centre] == pytest.approx(5, rel=1e-3)
    assert slope["structure_large_1"][centre] == pytest.approx(25, rel=1e-3)
    assert slope["structure_small_1"][centre] == pytest.approx(0, abs=1e-3)
    assert slope["laplacian_1"][centre] == pytest.approx(0, abs=1e-3)
    bowl = compute(y**2 + 2 * x**2, 2)
    assert bowl["hessian_large_2"][centre] == pytest.approx(4, rel=1e-2)
    assert bowl["hessian_small_2"][centre] == pytest.approx(2, rel=1e-2)
    assert bowl["laplacian_2"][centre] == pytest.approx(6, rel=1e-2)


def test_three_dimensions_agree_with_scipy():
    volume = np.random.default_rng(0).normal(size=(13, 20, 24)).astype(np.float32)
    bank = build_filters(1, dimensions=3)
    assert bank.in_channels == 2 * (reach(1) + reach(0.5)) + 1 == 13
    found = compute(volume, 1, dimensions=3)
    padded = np.pad(volume.astype(np.float64), ((0, 0), (12, 12), (12, 12)), "symmetric")

    def smooth(array, sigma, order=(0, 0, 0)):
        return ndimage.gaussian_filter(array, sigma, order)

    def crop(array):
        return array[6, 12:-12, 12:-12]

    def order(*axes):
        return tuple(axes.count(axis) for axis in range(3))

    np.testing.assert_allclose(found["gaussian_1"], crop(smooth(padded, 1)), atol=1e-6)
    np.testing.assert_allclose(found["gradient_1"], crop(ndimage.gaussian_gradient_magnitude(padded, 1)), atol=1e-6)
    np.testing.assert_allclose(found["laplacian_1"], crop(ndimage.gaussian_laplace(padded, 1)), atol=1e-6)
    first = [smooth(padded, 1, order(axis)) for axis in range(3)]
    for kind, matrix in {
        "hessian": [[smooth(padded, 1, order(a, b)) for b in range(3)] for a in range(3)],
        "structure": [[smooth(first[a] * first[b], 0.5) for b in range(3)] for a in range(3)],
    }.items():
        stacked = np.stack([np.stack([crop(part) for part in row], -1) for row in matrix], -1)
        values = np.linalg.eigvalsh(stacked)
        for name, expected in zip(("small", "middle", "large"), np.moveaxis(values, -1, 0), strict=True):
            np.testing.assert_allclose(found[f"{kind}_{name}_1"], expected, atol=1e-5, err_msg=f"{kind} {name}")


def test_eigenvalues_of_special_matrices():
    # multiples of the identity, diagonal, and one whose formula divides 0 by 0
    rows = np.array([[2, 0, 0, 2, 0, 2], [1, 0, 0, 5, 0, 3], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], np.float32).T
    np.testing.assert_allclose(np.stack(find_eigenvalues(list(rows))), [[2, 5, 0, 3], [2, 3, 0, 0], [2, 1, 0, 0]], atol=1e-6)


def test_micrometres_are_pixels_of_that_size(image):
    # halved on a voxel of 2 um; derivatives are per um
    found = compute(image, 2, unit="um", voxel_size_um=(7.0, 2.0, 2.0))
    expected = compute(image, 1)
    np.testing.assert_allclose(found["gaussian_2"], expected["gaussian_1"], atol=1e-6)
    np.testing.assert_allclose(found["gradient_2"], expected["gradient_1"] / 2, atol=1e-6)
    np.testing.assert_allclose(found["laplacian_2"], expected["laplacian_1"] / 4, atol=1e-6)
    np.testing.assert_allclose(found["hessian_large_2"], expected["hessian_large_1"] / 4, atol=1e-6)


def test_unequal_voxels_agree_with_scipy(image):
    found = compute(image, 2, unit="um", voxel_size_um=(1.0, 1.0, 2.0))
    np.testing.assert_allclose(found["gaussian_2"], ndimage.gaussian_filter(image.astype(float), (2, 1)), atol=1e-6)
    y, x = np.mgrid[:60, :60].astype(np.float32)
    slope = compute(3 * y + 8 * x, 2, unit="um", voxel_size_um=(1.0, 1.0, 2.0))
    assert slope["gradient_2"][30, 30] == pytest.approx(5, rel=1e-3)


def test_micrometres_need_a_voxel_size():
    with pytest.raises(DatasetError, match=r"voxel_size_um.*--filters.unit pixel"):
        build_filters(1, unit="um")


def test_constant_image_has_no_structure():
    for name, values in compute(np.full((9, 5), 7, np.float32), 1, 4).items():
        expected = 7 if name == "grey" or name.startswith("gaussian") else 0
        # scipy's cut-off second derivative, which these kernels equal, sums to -7e-5, not 0
        np.testing.assert_allclose(values, expected, atol=2e-3, err_msg=name)


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    edge=st.integers(5, 70),
    sigmas=st.sampled_from([(1,), (0.7, 1.5), (1, 3)]),
    dimensions=st.sampled_from([2, 2, 3]),
)
def test_blocks_with_halo_equal_the_whole(height, width, edge, sigmas, dimensions):
    bank = build_filters(*sigmas, dimensions=dimensions)
    shape = (bank.in_channels, height, width)
    image = np.random.default_rng(height * 64 + width).normal(size=shape).astype(np.float32)
    whole = compute_features(image, bank)
    read = bank.prepare(image)
    margin = bank.halo
    for block in plan_blocks(shape[1:], (edge, edge), (margin, margin)):
        part = compute_features(image[(slice(None), *block.read)], bank)
        # float32 rounding of grey values of order 1, should a matrix product be summed in another order
        expected = whole[(slice(None), *block.core)]
        np.testing.assert_allclose(part[(slice(None), *block.crop)], expected, atol=1e-6, rtol=0)
        np.testing.assert_allclose(read(*block.core), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["identity", "filters"])
def test_refuses_patches(kind):
    extractor = build_extractor(FeatureSettings(kind, FilterSettings((1,))))
    with pytest.raises(ModelError, match=r"\(3, 8, 8\).*\(1, y, x\)"):
        extractor.prepare(np.zeros((3, 8, 8), np.float32))
    with pytest.raises(ImageError, match="1 of 64 grey values are NaN"):
        extractor.prepare(np.where(np.arange(64).reshape(1, 8, 8) == 5, np.nan, 0).astype(np.float32))
    with pytest.raises(ImageError, match="at least one pixel"):
        extractor.prepare(np.zeros((1, 0, 8), np.float32))


@pytest.mark.parametrize("sigmas", [(), (0,), (-1, 2), (2, 1), (1, 1), (float("nan"),), (float("inf"),)])
def test_refuses_sigmas(sigmas):
    with pytest.raises(SettingsError, match="sigmas"):
        FilterSettings(sigmas)


def test_refuses_kind():
    with pytest.raises(SettingsError, match="Did you mean 'filters'"):
        FeatureSettings("filter")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A model folder of a small network with random weights."""
    torch.manual_seed(0)
    model = ModelSettings(encoder="resnet18", encoder_depth=3)
    net = build_network(model, 3)
    predictor = NetPredictor(
        net, model, ClassSet(("a", "b", "c")), Normalization("dataset", 1, 2, "uint8"), *measure_halo(net, 1)
    )
    folder = tmp_path_factory.mktemp("network")
    save_model(predictor, folder)
    return folder, predictor


def build_layers(**settings):
    return build_extractor(FeatureSettings("encoder", encoder=EncoderSettings(**settings)))


def test_layers_of_a_trained_model_by_hand(network):
    folder, predictor = network
    extractor = build_layers(model=str(folder), stages=("1", "3", "decoder"))
    image = np.random.default_rng(0).normal(size=(1, 128, 160)).astype(np.float32)
    found = compute_features(image, extractor)
    with torch.inference_mode():
        layers = predictor.net.core.encoder(torch.from_numpy(image[None]))
        decoded = predictor.net.core.decoder(layers)
    expected = [image[None], *(layers[1], layers[3], decoded)]
    large = [F.interpolate(torch.as_tensor(layer), (128, 160), mode="bilinear")[0].numpy() for layer in expected]
    np.testing.assert_allclose(found, np.concatenate(large), atol=1e-4)
    assert extractor.names[:2] == ("grey", "stage1_0")
    assert extractor.names[-1] == f"decoder_{decoded.shape[1] - 1}"
    assert extractor.normalization == predictor.normalization


def test_layers_do_not_depend_on_windows_or_tiles(network):
    extractor = build_layers(model=str(network[0]))
    image = np.random.default_rng(0).normal(size=(1, 250, 290)).astype(np.float32)
    whole = compute_features(image, extractor)
    read = extractor.prepare(image)
    for block in plan_blocks((250, 290), (128, 160), (extractor.halo,) * 2, (extractor.stride,) * 2):
        expected = whole[(slice(None), *block.core)]
        # interpolation rounds as torch's kernel for that size does
        np.testing.assert_allclose(read(*block.core), expected, atol=1e-5)
        part = compute_features(image[(slice(None), *block.read)], extractor)
        np.testing.assert_allclose(part[(slice(None), *block.crop)], expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(64, 288), (288, 288), (7, 261)])
def test_first_layer_does_not_depend_on_a_narrow_last_tile(shape):
    extractor = build_layers(stages=("1",))
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    whole = compute_features(image, extractor)
    for block in plan_blocks(shape, (256, 256), (extractor.halo,) * 2, (extractor.stride,) * 2):
        part = compute_features(image[(slice(None), *block.read)], extractor)
        np.testing.assert_allclose(part[(slice(None), *block.crop)], whole[(slice(None), *block.core)], atol=1e-5)


def test_encoders_that_have_no_layer_at_half_resolution():
    extractor = build_layers(name="mit_b0")
    assert extractor.net.stages == ("2", "3")
    with pytest.raises(ModelError, match="unknown stage of unet on mit_b0 '1'"):
        build_layers(name="mit_b0", stages=("1",))


def test_encoders_of_one_image_size_are_refused():
    with pytest.raises(ModelError, match="does not take images of any size"):
        build_layers(name="tu-swin_tiny_patch4_window7_224")


@pytest.mark.parametrize("sigma", [1e-300, 0.01, 3000, 1e308])
def test_refuses_sigmas_that_no_image_has(sigma):
    with pytest.raises(SettingsError, match=r"filters\.sigmas has .* pixels; expected 0.1 to 200"):
        Filters(FilterSettings((sigma,)))


def test_another_voxel_size_than_the_networks_is_noted():
    settings = FeatureSettings("encoder", encoder=EncoderSettings(model="microct-base"))
    with pytest.warns(UserWarning, match=r"microct-base was trained on voxels of 1\.17 x 1\.17 um .* have 5 x 5 um"):
        build_extractor(settings, (5.0, 5.0, 5.0))
    build_extractor(settings, (1.2, 1.2, 1.2))


def test_enlarge_is_bilinear_everywhere():
    layer = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32))
    whole = F.interpolate(layer[None], scale_factor=8, mode="bilinear")[0].numpy()
    for rows, columns in ((slice(0, 48), slice(0, 40)), (slice(3, 9), slice(39, 40)), (slice(40, 48), slice(0, 17))):
        np.testing.assert_allclose(enlarge(layer, 8, rows, columns), whole[:, rows, columns], atol=1e-6)


def test_untrained_encoder_is_the_same_each_time():
    image = np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32)
    state = torch.get_rng_state()
    first, second = (compute_features(image, build_layers(stages=("1",), in_channels=3)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(first, second)
    assert first.shape == (65, 64, 64)


def test_refuses_other_input_channels(network):
    with pytest.raises(ModelError, match=r"reads 1 neighbouring slices.*in_channels is 3"):
        build_layers(model=str(network[0]), in_channels=3)
    extractor = build_layers(model=str(network[0]))
    with pytest.raises(ModelError, match=r"\(3, 64, 64\)"):
        extractor.prepare(np.zeros((3, 64, 64), np.float32))


def test_refuses_stages(network):
    with pytest.raises(ModelError, match="unknown stage of unet on resnet18 '5'"):
        build_layers(model=str(network[0]), stages=("5",))
    with pytest.raises(ModelError, match="once"):
        build_layers(model=str(network[0]), stages=("1", "1"))
    with pytest.raises(ModelError, match="without a trained decoder"):
        build_layers(stages=("decoder",))


def test_import_is_light():
    code = (
        "import sys, neurotome.pixels.train, neurotome.features, neurotome.load;"
        "sys.exit(' '.join({'sklearn', 'scipy', 'torch', 'lightgbm'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
