"""Losses of semantic segmentation, their class weights, and weighted sums of them.

All take the `Pixels` of a batch, compute in float32, leave ignored pixels out, and return a scalar: exactly 0 with a
gradient of 0 for a batch without a labelled pixel. Where only a part of the batch is here, `add_up` makes the sums those of
all of it, and the loss is that of the batch, not a mean over its parts: these differ where unlike numbers of pixels are
labelled, and a ratio of sums, such as Dice, is no mean of ratios.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurotome.classes import ClassSet
from neurotome.errors import SettingsError, TrainingError, unknown
from neurotome.lazy import lazy_import

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy_import("torch")

NAMES = ("cross_entropy", "focal", "sigmoid_focal", "dice")
WEIGHTED = ("cross_entropy", "focal")
FOCAL = ("focal", "sigmoid_focal")

# Keeps 1 - p away from 0, where the slope of its power is infinite for gamma < 1.
SMALLEST_MISS = 1e-8

NEVER = -1e4
"""Logit of a class that is not; finite, so that what it is multiplied by stays a number."""


@dataclass(frozen=True)
class LossSettings:
    """What is minimised."""

    terms: str = "cross_entropy + dice"
    """Weighted sum of cross_entropy, focal, sigmoid_focal and dice, such as "0.5*focal + dice"."""
    class_weights: str | tuple[float, ...] = "none"
    """Weights in cross_entropy and focal: none, balanced (by pixel counts), or one per class (1,3,3,2)."""
    gamma: float = 2.0
    """How strongly the focal losses turn away from pixels that are right already; 0 turns that off."""
    alpha: float | None = None
    """Weight (0 to 1) of the positive side in the focal losses, 1 - alpha the negative; none: both 1."""
    focal_over: Literal["sum", "mean"] = "sum"
    """How sigmoid_focal takes the classes together: segmentation_models_pytorch summed before 0.6 and averages since."""
    dice_over: Literal["present", "all"] = "present"
    """Classes that dice divides by: those that the batch contains, or all, as segmentation_models_pytorch does."""
    softmax_first: bool = False
    """Give the loss probabilities where it expects logits: the founding report's mistake, to reproduce it."""


AddUp = Callable[["Tensor"], "Tensor"]
"""Sums of a part of a batch to those of the whole batch."""


def is_whole(sums: Tensor) -> Tensor:
    """Is `AddUp` where the whole batch is here."""
    return sums


class Pixels:
    """A batch, or a part of it, as losses see it; what several of them need is computed once.

    Attributes:
        logits: Float32, shape (n, classes, y, x).
        target: Class ids or the ignore value, int64, shape (n, y, x).
        valid: 1 where a pixel is labelled and 0 elsewhere, float32, shape (n, y, x).
        member: 1 where a pixel's label is the class and 0 elsewhere, float32, shape (n, classes, y, x).
    """

    def __init__(self, logits: Tensor, labels: Tensor, ignore: int, add_up: AddUp = is_whole) -> None:
        """Takes logits of any float dtype and labels as uint8 or int64.

        Labels are class ids or the ignore value, which lies beyond the ids; whoever built the dataset checked that.

        Raises:
            TrainingError: The shapes do not fit.
        """
        if logits.ndim != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
            raise TrainingError(
                f"logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)} do not fit; "
                "expected (n, classes, y, x) and (n, y, x)."
            )
        # in the labels' order in memory: where tensors of two orders meet, each of the sums below takes longer than a copy
        self.logits, self.target = logits.float().contiguous(), labels.long()
        self.valid = (self.target != ignore).float()
        classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
        self.member = (self.target[:, None] == classes).float()
        self.add_up = add_up

    @cached_property
    def log_probs(self) -> Tensor:
        """Logarithms of the softmax probabilities, shape of the logits."""
        return torch.log_softmax(self.logits, 1)

    @cached_property
    def surprise(self) -> Tensor:
        """-log p of the true class, 0 where ignored, shape of the labels."""
        # a product is as fast as picking, and on a GPU the same sum each time
        return -(self.log_probs * self.member).sum(1)

    def average(self, values: Tensor, share: Tensor) -> Tensor:
        """Returns the mean of values weighted by share over the pixels of the batch, 0 if all shares are 0."""
        sums = self.add_up(torch.stack(((values * share).sum(), share.sum())))
        return sums[0] / sums[1].clamp_min(torch.finfo(torch.float32).tiny)


def focal(pixels: Pixels, weights: Tensor | None = None, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Returns the mean over pixels of -(1 - p)^gamma log p, p the softmax probability of the true class.

    Lin et al. (2017), doi:10.1109/ICCV.2017.324, on softmax probabilities; with gamma 0 it is the cross-entropy. With
    `weights`, one per class, the mean is sum(w * loss) / sum(w) with w the weight of a pixel's true class, as in
    `torch.nn.functional.cross_entropy`. With `alpha`, pixels of class 0 (background) count 1 - alpha, all others alpha,
    which for two classes is the paper's alpha; it does not enter the divisor.
    """
    loss = pixels.surprise
    if gamma:
        loss = (-torch.expm1(-loss)).clamp_min(SMALLEST_MISS).pow(gamma) * loss
    if alpha is not None:
        loss = torch.where(pixels.target == 0, 1 - alpha, alpha) * loss
    share = pixels.valid if weights is None else (pixels.member * weights[:, None, None]).sum(1)
    return pixels.average(loss, share)


def sigmoid_focal(
    pixels: Pixels, gamma: float = 2.0, alpha: float | None = None, over: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Returns the focal loss of one yes-or-no question per class, summed over classes, averaged over pixels.

    The multiclass FocalLoss of segmentation_models_pytorch before 0.6, which the founding report used; since 0.6 that
    library averages over the classes, as `over="mean"` does. Lin et al. (2017), doi:10.1109/ICCV.2017.324, with the sigmoid
    of each class's logit as its probability: a softmax of the result is not calibrated. With `alpha` the true class counts
    alpha, every other 1 - alpha.
    """
    # Logit of the wrong answer; where(member, -logits, logits) is several times slower.
    wrong = pixels.logits * (1.0 - 2.0 * pixels.member)
    loss = torch.nn.functional.softplus(wrong)
    loss = torch.sigmoid(wrong).clamp_min(SMALLEST_MISS).pow(gamma) * loss
    if alpha is not None:
        loss = torch.where(pixels.member > 0, alpha, 1 - alpha) * loss
    return pixels.average(loss.sum(1) if over == "sum" else loss.mean(1), pixels.valid)


def dice(pixels: Pixels, over: Literal["present", "all"] = "present") -> Tensor:
    """Returns 1 - soft Dice, averaged over the classes that the batch contains.

    For class c, 1 - 2 sum(p t) / (sum(p) + sum(t)), with p the softmax probability, t 1 where the label is c and 0
    elsewhere, and the sums over all labelled pixels of the batch together: Milletari et al. (2016), doi:10.1109/3DV.2016.79,
    with the divisor of plain rather than squared sums (Sudre et al. 2017, doi:10.1007/978-3-319-67558-9_28).

    A class without a labelled pixel in the batch has Dice 0 whatever is predicted, and is left out of the mean: to divide
    by all classes, as segmentation_models_pytorch and `over="all"` do, shrinks the other classes' part. Its false positives
    are punished all the same, through the softmax: what it takes is missing from the true class's sum(p t).
    """
    probs = pixels.log_probs.exp() * pixels.valid[:, None]
    sums = [values.sum((0, 2, 3)) for values in (probs * pixels.member, pixels.member, probs)]
    shared, true, guessed = pixels.add_up(torch.stack(sums)).unbind()
    present = true > 0
    total = torch.where(present, guessed + true, 1.0)
    missed = (1 - 2 * shared / total) * present
    return missed.sum() / present.sum().clamp_min(1) if over == "present" else missed.mean()


def weigh_rehearsal(
    loss: Callable[[Tensor, Tensor], Tensor], own: int, weight: float, absent: Sequence[int]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the loss of batches whose first `own` images are one's own, and whose others are seen again.

    Both kinds have a loss of their own, a mean over their own pixels, so that neither their numbers nor how much of them is
    labelled decides which of them counts: (own + weight * others) / (1 + weight).

    Args:
        loss: A function of logits and labels.
        own: Number of images, of those that are here.
        weight: Of the others.
        absent: Classes without a labelled pixel in one's own images, class 0 not among them. In those images class 0 stands
            for all of them, so that they say nothing about where such a class is, which would be forgotten otherwise: the
            marginal loss of Shi et al. (2021), doi:10.1016/j.media.2021.101979.
    """
    send_unknown, send_absent = (_send_once(torch.tensor(classes)) for classes in ((0, *absent), tuple(absent)))

    def total(logits: Tensor, labels: Tensor) -> Tensor:
        mine = logits[:own]
        if absent:
            unknown = torch.logsumexp(mine.index_select(1, send_unknown(logits.device)), 1)
            mine = mine.index_fill(1, send_absent(logits.device), NEVER)
            mine[:, 0] = unknown
        return (loss(mine, labels[:own]) + weight * loss(logits[own:], labels[own:])) / (1 + weight)

    return total


def _send_once(values: Tensor) -> Callable[[torch.device], Tensor]:
    """Returns a function that returns values on a device, to which they are sent at its first call.

    To send them each time would make a GPU's steps depend on the host, so that they could not be recorded.
    """
    return cache(lambda device: values.to(device))


def parse_terms(expression: str) -> dict[str, float]:
    """Returns the factor of each loss in a weighted sum such as "cross_entropy + 0.5*dice", in the order written."""
    terms: dict[str, float] = {}
    for term in expression.split("+"):
        factor, star, name = (piece.strip() for piece in term.rpartition("*"))
        if name not in NAMES:
            raise SettingsError(
                f"the loss {expression!r}: {unknown('loss', name, NAMES)} Write a name or number*name, joined by +, such as "
                '"cross_entropy + 0.5*dice".'
            )
        if name in terms:
            raise SettingsError(f"the loss {expression!r} has {name} twice; write it once, with one factor.")
        terms[name] = _read_number(factor, f"factor of {name}") if star else 1.0
        if not 0 < terms[name] < math.inf:
            raise SettingsError(f"the factor of {name} is {factor}; expected a positive number.")
    return terms


def weigh_classes(
    class_weights: str | Sequence[float], classes: ClassSet, counts: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Returns one weight per class, None for no weights.

    `balanced` gives class c the weight n / (k * n_c), with n_c its pixels, n all pixels and k the number of classes that
    have any: scikit-learn's `compute_class_weight("balanced")`. A class without a pixel has weight 0.

    Args:
        class_weights: `none`, `balanced`, or one number per class, also as text with commas.
        classes: The classes.
        counts: Labelled pixels per class in the training data, shape (classes,).
    """
    if class_weights == "none":
        return None
    if class_weights == "balanced":
        shares = counts * np.count_nonzero(counts)
        return np.asarray(np.divide(counts.sum(), shares, out=np.zeros(len(classes)), where=counts > 0))
    values: Sequence[Any] = class_weights
    if isinstance(class_weights, str):
        if not re.search(r"\d", class_weights):
            raise SettingsError(unknown("class weights", class_weights, ("none", "balanced", "1,3,3,2")))
        values = class_weights.strip("[]() ").split(",")
    weights = np.array([_read_number(value, "class weight") for value in values])
    listed = ", ".join(f"{weight:g}" for weight in weights)
    if len(weights) != len(classes) or not np.isfinite(weights).all() or weights.min() < 0 or weights.max() == 0:
        raise SettingsError(
            f"found {len(weights)} class weights ({listed}); expected {len(classes)}, one for each of "
            f"{', '.join(classes.names)}, finite and at least 0, not all 0."
        )
    return weights


def _read_number(value: Any, what: str) -> float:
    """Returns a number, SettingsError if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise SettingsError(f"{what} {value!r} is not a number.") from None


def build_loss(
    settings: LossSettings, classes: ClassSet, counts: NDArray[np.int64], add_up: AddUp = is_whole
) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the loss that settings describe, a function of logits and labels on any device.

    Args:
        settings: What is minimised.
        classes: The classes and the ignore value.
        counts: Labelled pixels per class in the training data, shape (classes,); used by balanced weights only.
        add_up: Where logits and labels are a part of a batch.

    Raises:
        SettingsError: A setting cannot work, or has no effect on the chosen terms.
    """
    terms = parse_terms(settings.terms)
    weights = weigh_classes(settings.class_weights, classes, counts)
    gamma, alpha, ignore = settings.gamma, settings.alpha, classes.ignore
    for name, value, known in (
        ("loss.focal_over", settings.focal_over, ("sum", "mean")),
        ("loss.dice_over", settings.dice_over, ("present", "all")),
    ):
        if value not in known:
            raise SettingsError(unknown(name, value, known))
    if not 0 <= gamma < math.inf:
        raise SettingsError(f"gamma is {gamma}; expected a finite number of at least 0.")
    if alpha is not None and not 0 <= alpha <= 1:
        raise SettingsError(f"alpha is {alpha}; expected a number from 0 to 1, or none.")
    for name, is_given, users in (("class_weights", weights is not None, WEIGHTED), ("alpha", alpha is not None, FOCAL)):
        if is_given and not set(terms) & set(users):
            raise SettingsError(
                f"{name} acts on {' and '.join(users)} only, the loss is {settings.terms!r}; leave {name} out or add one of "
                "these terms."
            )

    send_weights = None if weights is None else _send_once(torch.tensor(weights, dtype=torch.float32))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        logits = torch.softmax(logits.float(), 1) if settings.softmax_first else logits
        class_weights = None if send_weights is None else send_weights(logits.device)
        pixels = Pixels(logits, labels, ignore, add_up)
        total = torch.zeros((), device=logits.device)
        functions: dict[str, Callable[[], Tensor]] = {
            "cross_entropy": lambda: focal(pixels, class_weights, gamma=0.0),
            "focal": lambda: focal(pixels, class_weights, gamma, alpha),
            "sigmoid_focal": lambda: sigmoid_focal(pixels, gamma, alpha, settings.focal_over),
            "dice": lambda: dice(pixels, settings.dice_over),
        }
        for name, factor in terms.items():
            total = total + factor * functions[name]()
        return total

    return loss
