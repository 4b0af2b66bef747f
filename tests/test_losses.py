from __future__ import annotations

import importlib.util
import math
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from neurotome.classes import ClassSet
from neurotome.errors import SettingsError, TrainingError
from neurotome.losses import (
    NAMES,
    LossSettings,
    Pixels,
    build_loss,
    dice,
    focal,
    parse_terms,
    sigmoid_focal,
    weigh_classes,
    weigh_rehearsal,
)

CLASSES = ClassSet(("background", "vessel", "cell", "axon"))
COUNTS = np.array([70, 20, 10, 0])
cross_entropy = partial(focal, gamma=0.0)
LOSSES = {"cross_entropy": cross_entropy, "focal": focal, "sigmoid_focal": sigmoid_focal, "dice": dice}


def draw_batch(seed: int = 0, classes: int = 4, ignored: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((2, classes, 5, 6), generator=generator) * 3
    labels = torch.randint(0, classes, (2, 5, 6), generator=generator).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return logits, labels


@pytest.fixture(scope="module")
def smp_losses() -> ModuleType:
    """Losses of segmentation_models_pytorch, loaded without its encoders and what these import."""
    package = importlib.util.find_spec("segmentation_models_pytorch")
    assert package is not None
    assert package.origin is not None
    init = Path(package.origin).parent / "losses" / "__init__.py"
    spec = importlib.util.spec_from_file_location("smp_losses", init, submodule_search_locations=[str(init.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["smp_losses"] = module
    spec.loader.exec_module(module)
    return module


def loop_pixels(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[np.ndarray, int]]:
    """Logits (classes,) in float64 and label of each pixel that is not ignored."""
    pixels = []
    for n, y, x in np.ndindex(*labels.shape):
        if labels[n, y, x] != 255:
            pixels.append((logits[n, :, y, x].double().numpy(), int(labels[n, y, x])))
    return pixels


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 3.0, 2.0], [0.0, 0.5, 1.0, 0.0]])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_cross_entropy_equals_torch(weights: list[float] | None, dtype: torch.dtype) -> None:
    logits, labels = draw_batch()
    weight = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(logits, labels.long(), weight, ignore_index=255)
    torch.testing.assert_close(cross_entropy(Pixels(logits, labels.to(dtype), 255), weight), expected)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, None), (0.5, None), (1.5, 0.25)])
@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 0.0, 2.0]])
def test_focal_equals_double_loop(gamma: float, alpha: float | None, weights: list[float] | None) -> None:
    logits, labels = draw_batch()
    above = below = 0.0
    for z, label in loop_pixels(logits, labels):
        p = softmax(z)[label]
        share = 1.0 if weights is None else weights[label]
        side = 1.0 if alpha is None else (1 - alpha if label == 0 else alpha)
        above += share * side * -((1 - p) ** gamma) * math.log(p)
        below += share
    weight = None if weights is None else torch.tensor(weights)
    found = focal(Pixels(logits, labels, 255), weight, gamma, alpha)
    assert found.item() == pytest.approx(above / below, rel=1e-5)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, None), (0.5, None), (1.5, 0.25)])
def test_sigmoid_focal_equals_double_loop(gamma: float, alpha: float | None) -> None:
    logits, labels = draw_batch()
    pixels = loop_pixels(logits, labels)
    total = 0.0
    for z, label in pixels:
        for c in range(4):
            p = sigmoid(z[c]) if c == label else sigmoid(-z[c])
            side = 1.0 if alpha is None else (alpha if c == label else 1 - alpha)
            total += side * -((1 - p) ** gamma) * math.log(p)
    found = sigmoid_focal(Pixels(logits, labels, 255), gamma, alpha)
    assert found.item() == pytest.approx(total / len(pixels), rel=1e-5)


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_sigmoid_focal_is_the_sum_that_smp_averages(smp_losses: ModuleType, alpha: float | None) -> None:
    logits, labels = draw_batch()
    peer = smp_losses.FocalLoss("multiclass", alpha=alpha, gamma=2.0, ignore_index=255)
    torch.testing.assert_close(sigmoid_focal(Pixels(logits, labels, 255), 2.0, alpha), peer(logits, labels.long()) * 4)
    torch.testing.assert_close(sigmoid_focal(Pixels(logits, labels, 255), 2.0, alpha, "mean"), peer(logits, labels.long()))


def test_dice_equals_double_loop() -> None:
    logits, labels = draw_batch()
    shared, total = np.zeros(4), np.zeros(4)
    for z, label in loop_pixels(logits, labels):
        p = softmax(z)
        shared[label] += p[label]
        total += p
        total[label] += 1
    assert dice(Pixels(logits, labels, 255)).item() == pytest.approx((1 - 2 * shared / total).mean(), rel=1e-5)


def test_dice_equals_smp_where_all_classes_are_present(smp_losses: ModuleType) -> None:
    logits, labels = draw_batch()
    peer = smp_losses.DiceLoss("multiclass", ignore_index=255)
    torch.testing.assert_close(dice(Pixels(logits, labels, 255)), peer(logits, labels.long()))


def test_dice_leaves_absent_classes_out_of_the_mean(smp_losses: ModuleType) -> None:
    logits, labels = draw_batch()
    labels[labels == 2] = 0
    labels[labels == 3] = 1
    peer = smp_losses.DiceLoss("multiclass", ignore_index=255)
    # smp divides the same sum by all four classes
    torch.testing.assert_close(dice(Pixels(logits, labels, 255)), peer(logits, labels.long()) * 4 / 2)
    torch.testing.assert_close(dice(Pixels(logits, labels, 255), "all"), peer(logits, labels.long()))
    labels[:] = 255
    assert dice(Pixels(logits, labels, 255), "all").item() == 0


def test_dice_punishes_false_positives_of_an_absent_class() -> None:
    labels = torch.zeros((1, 4, 4), dtype=torch.uint8)
    logits = torch.zeros((1, 4, 4, 4))
    logits[:, 3] = 2.0
    logits.requires_grad_()
    dice(Pixels(logits, labels, 255)).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 3] > 0).all()
    assert (logits.grad[:, 0] < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_perfect_prediction_costs_nothing(name: str) -> None:
    _, labels = draw_batch(ignored=0.0)
    logits = (F.one_hot(labels.long(), 4).movedim(-1, 1) * 2.0 - 1) * 50
    assert LOSSES[name](Pixels(logits, labels, 255)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_ignored_pixels_change_nothing(name: str) -> None:
    logits, labels = draw_batch()
    other = logits.clone()
    other.movedim(1, -1)[labels == 255] = torch.tensor([9.0, -9.0, 5.0, 0.0])
    other.requires_grad_()
    value = LOSSES[name](Pixels(other, labels, 255))
    assert value.item() == LOSSES[name](Pixels(logits, labels, 255)).item()
    (gradient,) = torch.autograd.grad(value, other)
    assert not gradient.movedim(1, -1)[labels == 255].any()
    assert gradient.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_all_ignored_is_exactly_0_without_gradient(name: str, class_weights: str, gamma: float, scale: float) -> None:
    class_weights = class_weights if name in ("cross_entropy", "focal") else "none"
    loss = build_loss(LossSettings(name, class_weights, gamma), CLASSES, COUNTS)
    logits, labels = draw_batch()
    logits = (logits * scale).requires_grad_()
    value = loss(logits, torch.full_like(labels, 255))
    assert value.item() == 0
    value.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_pixels_of_weight_0_only_are_like_ignored() -> None:
    logits, labels = draw_batch()
    loss = build_loss(LossSettings("cross_entropy", "balanced"), CLASSES, COUNTS)
    assert loss(logits, torch.full_like(labels, 3)).item() == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_extreme_logits_keep_a_finite_gradient(name: str, gamma: float) -> None:
    logits, labels = draw_batch()
    logits = (logits * 1e4).requires_grad_()
    value = build_loss(LossSettings(name, gamma=gamma), CLASSES, COUNTS)(logits, labels)
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, labels = draw_batch()
    logits = logits.to(dtype).requires_grad_()
    loss = build_loss(LossSettings(" + ".join(NAMES)), CLASSES, COUNTS)
    value = loss(logits, labels)
    assert value.dtype == torch.float32
    assert value.item() == loss(logits.float(), labels).item()
    value.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype


def test_autocast_changes_nothing() -> None:
    logits, labels = draw_batch()
    loss = build_loss(LossSettings(" + ".join(NAMES), "balanced"), CLASSES, COUNTS)
    expected = loss(logits.bfloat16(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(logits.bfloat16(), labels)
    assert found.dtype == torch.float32
    assert found.item() == expected.item()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 6), st.sampled_from(NAMES))
def test_losses_do_not_depend_on_the_order_of_images_or_pixels(seed: int, classes: int, name: str) -> None:
    logits, labels = draw_batch(seed, classes)
    expected = LOSSES[name](Pixels(logits, labels, 255)).item()
    assert expected >= 0
    assert LOSSES[name](Pixels(logits.flip(0, 3), labels.flip(0, 2), 255)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_fit_are_refused(name: str) -> None:
    logits, labels = draw_batch()
    for wrong in (labels[:1], labels[:, None], labels[:, :4]):
        with pytest.raises(TrainingError, match=r"expected \(n, classes, y, x\) and \(n, y, x\)"):
            LOSSES[name](Pixels(logits, wrong, 255))


def test_terms_are_summed_by_their_factors() -> None:
    logits, labels = draw_batch()
    found = build_loss(LossSettings("cross_entropy + 0.5*dice"), CLASSES, COUNTS)(logits, labels)
    torch.testing.assert_close(found, cross_entropy(Pixels(logits, labels, 255)) + 0.5 * dice(Pixels(logits, labels, 255)))


def test_settings_reach_the_losses() -> None:
    logits, labels = draw_batch()
    weight = torch.tensor([1.0, 3.0, 3.0, 2.0])
    for name, expected in {
        "cross_entropy": cross_entropy(Pixels(logits, labels, 255), weight),
        "focal": focal(Pixels(logits, labels, 255), weight, 1.0, 0.25),
    }.items():
        alpha = 0.25 if name == "focal" else None
        chosen = LossSettings(name, (1.0, 3.0, 3.0, 2.0), gamma=1.0, alpha=alpha)
        torch.testing.assert_close(build_loss(chosen, CLASSES, COUNTS)(logits, labels), expected)
    found = build_loss(LossSettings("sigmoid_focal", gamma=1.0, alpha=0.25), CLASSES, COUNTS)(logits, labels)
    torch.testing.assert_close(found, sigmoid_focal(Pixels(logits, labels, 255), 1.0, 0.25))
    labels[labels == 3] = 0
    summed = build_loss(LossSettings("sigmoid_focal + dice"), CLASSES, COUNTS)(logits, labels)
    other = LossSettings("sigmoid_focal + dice", focal_over="mean", dice_over="all")
    parts = sigmoid_focal(Pixels(logits, labels, 255)), dice(Pixels(logits, labels, 255))
    torch.testing.assert_close(summed, parts[0] + parts[1])
    torch.testing.assert_close(build_loss(other, CLASSES, COUNTS)(logits, labels), parts[0] / 4 + parts[1] * 3 / 4)


@pytest.mark.parametrize(
    ("name", "floor"),
    [
        ("cross_entropy", math.log(math.e + 3) - 1),
        (
            "sigmoid_focal",
            -((1 - sigmoid(1)) ** 2) * math.log(sigmoid(1)) + 3 * 0.25 * math.log(2),
        ),
    ],
)
def test_softmax_first_leaves_a_floor_under_a_perfect_prediction(name: str, floor: float) -> None:
    _, labels = draw_batch()
    logits = F.one_hot(labels.long().clamp(0, 3), 4).movedim(-1, 1) * 100.0
    loss = build_loss(LossSettings(name, softmax_first=True), CLASSES, COUNTS)
    assert loss(logits, labels).item() == pytest.approx(floor, rel=1e-5)
    assert floor == pytest.approx({"cross_entropy": 0.744, "sigmoid_focal": 0.5425}[name], abs=5e-4)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("focal", {"focal": 1.0}),
        ("0.5*focal + dice", {"focal": 0.5, "dice": 1.0}),
        (" 2 * cross_entropy+1e-3*dice ", {"cross_entropy": 2.0, "dice": 1e-3}),
    ],
)
def test_parse_terms(expression: str, expected: dict[str, float]) -> None:
    assert parse_terms(expression) == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "unknown loss ''.* Write a name or number.name, joined by"),
        ("dice +", "unknown loss ''"),
        ("dice - focal", "unknown loss 'dice - focal'"),
        ("dice*0.5", "unknown loss '0.5'"),
        ("-1*dice", "factor of dice is -1; expected a positive number"),
        ("nan*dice", "expected a positive number"),
        ("1.2.3*dice", "'1.2.3' is not a number"),
        ("0*dice", "expected a positive number"),
        ("dice + dice", "dice twice"),
        ("cross_entrpy", "unknown loss 'cross_entrpy'. Did you mean 'cross_entropy'"),
    ],
)
def test_parse_terms_refuses(expression: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_terms(expression)


def test_balanced_weights_equal_sklearn() -> None:
    labels = np.repeat(np.arange(4), [70, 20, 9, 1])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    found = weigh_classes("balanced", CLASSES, np.bincount(labels))
    assert found is not None
    np.testing.assert_array_equal(found, expected)


def test_balanced_weights_by_hand_with_an_absent_class() -> None:
    found = weigh_classes("balanced", CLASSES, COUNTS)
    assert found is not None
    np.testing.assert_allclose(found, [100 / 210, 100 / 60, 100 / 30, 0])
    assert (found * COUNTS).sum() == pytest.approx(COUNTS.sum())


@pytest.mark.parametrize("given_weights", [(1.0, 3.0, 3.0, 2.0), [1, 3, 3, 2], "1,3,3,2", "[1, 3, 3, 2]"])
def test_weights_are_read_from_numbers_and_text(given_weights: str | tuple[float, ...]) -> None:
    found = weigh_classes(given_weights, CLASSES, COUNTS)
    assert found is not None
    assert found.tolist() == [1, 3, 3, 2]
    assert weigh_classes("none", CLASSES, COUNTS) is None


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (LossSettings(class_weights=(1.0, 2.0)), r"found 2 class weights \(1, 2\); expected 4, one for each of background"),
        (LossSettings(class_weights=(1.0, 2.0, -1.0, 1.0)), "finite and at least 0"),
        (LossSettings(class_weights=(0.0, 0.0, 0.0, 0.0)), "not all 0"),
        (LossSettings(class_weights=(1.0, 1.0, 1.0, math.nan)), "expected 4, .* finite"),
        (LossSettings(class_weights="balancd"), "unknown class weights 'balancd'. Did you mean 'balanced'"),
        (LossSettings(class_weights="1,2,x,4"), "class weight 'x' is not a number"),
        (LossSettings(gamma=-1.0), "gamma is -1.0"),
        (LossSettings(focal_over="men"), r"unknown loss\.focal_over 'men'. Did you mean 'mean'"),  # type: ignore[arg-type]
        (LossSettings(dice_over="any"), r"unknown loss\.dice_over 'any'"),  # type: ignore[arg-type]
        (LossSettings(gamma=math.nan), "gamma is nan"),
        (LossSettings("focal", alpha=1.5), "alpha is 1.5"),
        (LossSettings("dice", "balanced"), "class_weights acts on cross_entropy and focal only"),
        (LossSettings("dice", alpha=0.5), "alpha acts on focal and sigmoid_focal only"),
    ],
)
def test_build_loss_refuses(chosen: LossSettings, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build_loss(chosen, CLASSES, COUNTS)


def test_rehearsal_counts_by_weight_and_not_by_pixels() -> None:
    loss = build_loss(LossSettings("cross_entropy"), ClassSet(("background", "cell")), np.array([1, 1]))
    logits = torch.randn((3, 2, 4, 5), generator=torch.Generator().manual_seed(0))
    labels = torch.zeros((3, 4, 5), dtype=torch.uint8)
    labels[0, 1:] = 255
    total = weigh_rehearsal(loss, 1, 0.5, [])(logits, labels)
    torch.testing.assert_close(total, (loss(logits[:1], labels[:1]) + 0.5 * loss(logits[1:], labels[1:])) / 1.5)


def test_what_own_images_do_not_show_is_learned_from_the_others_alone() -> None:
    classes = ClassSet(("background", "cell", "axon"))
    loss = build_loss(LossSettings("cross_entropy"), classes, np.array([1, 1, 1]))
    logits = torch.randn((2, 3, 1, 2), generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([[[0, 1]], [[0, 2]]], dtype=torch.uint8)
    total = weigh_rehearsal(loss, 1, 1.0, [2])(logits, labels)
    probs = logits.softmax(1)
    own = -torch.log(probs[0, 0, 0, 0] + probs[0, 2, 0, 0]) - torch.log(probs[0, 1, 0, 1])
    others = -torch.log(probs[1, 0, 0, 0]) - torch.log(probs[1, 2, 0, 1])
    torch.testing.assert_close(total, (own + others) / 4)
    total.backward()
    assert logits.grad is not None
    # background's pixel of the own image: both grow in proportion to what they are, so that their ratio stays
    background, _, axon = logits.grad[0, :, 0, 0]
    torch.testing.assert_close(background / axon, (probs[0, 0, 0, 0] / probs[0, 2, 0, 0]).detach())
