"""What the founding report claims, judged by measured runs alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from neurotome.experiments.reproduction.measured import Measured, Method, compare_methods
from neurotome.experiments.reproduction.side_by_side import find_memory
from neurotome.report.judged import Judged, Pair
from neurotome.statistics import Difference, compare_metrics, correct_holm

DECODERS = ("unet", "linknet")
ENCODERS = ("resnet18", "resnet34", "resnet50")
ENTROPIES = ("ce", "wce")
LEARNERS = ("lr", "rf", "gbdt")

MEMORY_NOISE = 0.02
"""Share by which the peak memory of a process may differ without a reason."""

Named = tuple[str, str]
"""Labels of a pair in one recipe: what is said to be better, and the other."""


@dataclass(frozen=True)
class Claim:
    """A claim whose pairs are compared by macro F1 on the split test.

    `network_only` names a recipe's own loss where the label's is another one.
    """

    title: str
    reported: str
    pairs: tuple[Named, ...]
    network_only: bool = False


def _lower_rate() -> Iterable[Named]:
    for decoder in DECODERS:
        for loss in ENTROPIES:
            yield f"{decoder}-resnet18-{loss}-lr3e-2", f"{decoder}-resnet18-{loss}-lr5e-2"


def _focal() -> Iterable[Named]:
    for decoder in DECODERS:
        for loss in ENTROPIES:
            yield f"{decoder}-resnet18-focal-lr3e-2", f"{decoder}-resnet18-{loss}-lr3e-2"


CLAIMS = (
    Claim(
        "A lower learning rate helps (3e-2 instead of 5e-2)",
        "Table 2: macro F1 rises from 0.62 to 0.65 (UNet18) and from 0.74 to 0.83 (LinkNet18).",
        tuple(_lower_rate()),
    ),
    Claim(
        "The focal loss beats cross-entropy",
        "Table 3: 0.89 instead of 0.65 (UNet18), 0.88 instead of 0.83 (LinkNet18).",
        tuple(_focal()),
    ),
    Claim(
        "ResNet50 is worse than ResNet18",
        "Tables 4 and 5: macro F1 0.83 beside 0.89 (UNet), 0.86 beside 0.88 (LinkNet).",
        tuple((f"{decoder}-resnet18-focal-lr3e-2", f"{decoder}-resnet50-focal-lr3e-2") for decoder in DECODERS),
        network_only=True,
    ),
)


def judge_claims(measured: Measured) -> list[Judged]:
    """Returns the verdict on every claim in every recipe, the p-values corrected over all pairs of all claims.

    Args:
        measured: The runs of a grid.
    """
    asked: dict[str, tuple[Method, Method]] = {}
    drafts: list[tuple[Claim, str, list[tuple[str, Named]], list[str]]] = []
    for claim in (*CLAIMS, _beat_pixels(measured)):
        for recipe in measured.recipes:
            ready, missing = [], []
            for first, second in claim.pairs:
                ours = measured.find(recipe, first, claim.network_only)
                theirs = measured.find("pixels", second) or measured.find(recipe, second, claim.network_only)
                if ours is None or theirs is None:
                    continue  # not in this grid
                key = f"{claim.title}: {ours.name} - {theirs.name}"
                names = (ours.label, theirs.label)
                if ours.read_scores("test") and theirs.read_scores("test"):
                    asked[key] = (ours, theirs)
                    ready.append((key, names))
                else:
                    missing.append(" against ".join(names))
            drafts.append((claim, recipe, ready, missing))
    differences = compare_methods(asked)
    judged = [
        Judged(
            claim.title,
            claim.reported,
            recipe,
            "macro F1",
            tuple(to_pair(*names, differences[key]) for key, names in ready if key in differences),
            tuple(missing),
        )
        for claim, recipe, ready, missing in drafts
    ]
    for judge in (_judge_memory, _judge_means):
        judged += [judge(measured, recipe) for recipe in measured.recipes]
    return judged


def _beat_pixels(measured: Measured) -> Claim:
    """Returns the claim about the networks of the report, against the pixel classifier that is best on the split val."""

    def rate(method: Method) -> float:
        values = [scores["macro"]["f1"] for scores in method.read_scores("val").values()]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else -1.0

    learners = [
        method for learner in LEARNERS if (method := measured.find("pixels", learner)) and method.read_scores("test")
    ]
    best = max(learners, key=rate).label if learners else LEARNERS[1]
    networks = [f"{decoder}-{encoder}-focal-lr3e-2" for decoder in DECODERS for encoder in ENCODERS]
    return Claim(
        "Networks beat pixel baselines",
        "Figure 4 sets every setting beside logistic regression, a random forest and boosted trees; here beside the one of "
        "them that is best on the split val.",
        tuple((network, best) for network in networks),
        network_only=True,
    )


def to_pair(first: str, second: str, found: Difference) -> Pair:
    """Returns a measured difference of two methods under their names."""
    return Pair(first, second, found.effect, found.low, found.high, found.p_corrected, found.note)


def _judge_memory(measured: Measured, recipe: str) -> Judged:
    """Returns the verdict on memory: how much less LinkNet needs, beyond what a process' memory differs without a reason."""
    pairs, missing = [], []
    for encoder in ENCODERS:
        linknet, unet = (measured.find(recipe, f"{decoder}-{encoder}-focal-lr3e-2", True) for decoder in ("linknet", "unet"))
        if linknet is None or unet is None:
            continue
        less, more = find_memory(linknet), find_memory(unet)
        if less is None or more is None or less.value is None or more.value is None:
            missing.append(f"{linknet.label} against {unet.label}")
            continue
        spread = sum((found.high or 0) - (found.low or 0) for found in (less, more))
        noise = max(MEMORY_NOISE * more.value, spread)
        saved = more.value - less.value
        pairs.append(Pair(linknet.label, unet.label, saved, saved - noise, saved + noise, None))
    return Judged(
        "LinkNet needs less memory than UNet",
        "Table 4: 7956 beside 10544 (ResNet18), 8820 beside 11412 (34), 15622 beside 16204 (50), in MiB by their size.",
        recipe,
        "MiB",
        tuple(pairs),
        tuple(missing),
    )


def _judge_means(measured: Measured, recipe: str) -> Judged:
    """Returns the verdict on means: how far weighted F1 lies above macro F1 in the same runs."""
    methods = (
        measured.find(recipe, f"{decoder}-{encoder}-focal-lr3e-2", True) for decoder in DECODERS for encoder in ENCODERS
    )
    found = {
        method.label: compare_metrics(scores, "weighted.f1", "macro.f1")
        for method in methods
        if method and (scores := list(method.read_scores("test").values()))
    }
    corrected = dict(zip(found, correct_holm([one.p if one.p is not None else 1.0 for one in found.values()]), strict=True))
    pairs = [
        to_pair(
            f"{label}, weighted", "macro", dataclasses.replace(one, p_corrected=None if one.p is None else corrected[label])
        )
        for label, one in found.items()
    ]
    return Judged(
        "The weighted mean hides rare classes: it lies above the macro mean",
        "Tables 4 and 5 give both: weighted F1 0.87 to 0.94, macro F1 0.83 to 0.89.",
        recipe,
        "F1",
        tuple(pairs),
    )
