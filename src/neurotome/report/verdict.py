"""verdict: what to do after a run, told from what was measured."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neurotome.runs import Run
from neurotome.statistics import compare_pairs
from neurotome.tables import count

RISEN = 0.01  # macro F1 that counts as better: less is the noise between epochs
WIDE = 0.1  # 95 % interval of macro F1 from which on most differences between methods drown in it
TELLING = ("test", "val", "train")  # splits by how much their scores say

Scores = Mapping[str, Any]


def read_scores(run: Run) -> dict[str, Scores]:
    """Returns the scores of every split that has them, the most telling first."""
    return {split: scores for split in TELLING if (scores := run.read_scores(split)) is not None}


def verdict(run: Run, comparisons: Mapping[str, Sequence[Scores]] | None = None) -> list[str]:
    """Returns what to do next, each in a sentence or two that say the numbers they rest on.

    What was not measured is not spoken of. `comparisons` are scores of the runs of other methods, as for `build_report`.
    """
    if not (scored := read_scores(run)):
        return []
    scores = next(iter(scored.values()))
    config = run.read_config()
    is_network = "train" in config
    sentences = _judge_training(run.read_metrics(), config) if is_network else []
    sentences += _judge_others(scores, comparisons or {})
    if config and not comparisons:
        other, command = ("random forest", "baseline") if is_network else ("network", "train")
        out = f"{run.folder}-{other.split()[-1]}"
        commands = [
            ["neurotome", command, str(config["dataset"]), "--out", out],
            ["neurotome", "compare", str(run.folder), out, "--out", f"{run.folder}-compared"],
        ]
        sentences.append(f"Is a {other} better? Try it: {' && '.join(map(shlex.join, commands))}")
    return sentences + _judge_classes(scores) + _judge_images(scores)


def _judge_training(rows: Sequence[Mapping[str, float | None]], config: Mapping[str, Any]) -> list[str]:
    """Returns whether a network was trained too short, too long, or long enough, by validation macro F1."""
    f1s = [row["val_macro_f1"] for row in rows if row["val_macro_f1"] is not None]
    epochs = len(rows)
    if not epochs or len(f1s) < epochs:
        return []
    last = math.ceil(epochs / 4)
    longer = _say_longer(config, epochs)
    if epochs < 4:
        trained = count(epochs, "epoch")
        return [f"{trained} of training, validation macro F1 {max(f1s):.3f}: too few to tell where it ends. {longer}"]
    best = max(range(epochs), key=lambda epoch: f1s[epoch])
    before = max(f1s[:-last])
    if f1s[best] - before >= RISEN:
        return [
            f"Still improving: validation macro F1 reached {before:.3f} in the first {epochs - last} of {epochs} and "
            f"{f1s[best]:.3f} in the last {count(last, 'epoch')}. {longer}"
        ]
    first, end = rows[best]["train_loss"], rows[-1]["train_loss"]
    if f1s[best] - f1s[-1] >= RISEN and first is not None and end is not None:
        kept = "last" if config["train"].get("keep") == "last" else "best"
        fell = (
            f"validation macro F1 was best in epoch {best + 1} of {epochs}, {f1s[best]:.3f}, and fell to {f1s[-1]:.3f} while"
        )
        losses = f"from {first:.3f} to {end:.3f}. The weights of the {kept} epoch are kept;"
        if end < first:
            return [
                f"Learned by heart: {fell} the training loss fell {losses} more labelled images or stronger augmentation "
                "help, longer training does not."
            ]
        return [f"Became unstable: {fell} the training loss went {losses} a lower --train.learning-rate helps."]
    return [
        f"Trained long enough: validation macro F1 reached {before:.3f} in the first {epochs - last} of {epochs} and "
        f"{max(f1s[-last:]):.3f} in the last {count(last, 'epoch')}."
    ]


def _judge_others(scores: Scores, comparisons: Mapping[str, Sequence[Scores]]) -> list[str]:
    """Returns how a run stands beside the best other method on the same slices, by their paired difference."""
    own = scores["macro"]["f1"]
    others, same = {}, {}
    for name, runs in comparisons.items():
        same[name] = [run for run in runs if run["split"] == scores["split"]]
        f1s = [run["macro"]["f1"] for run in same[name]]
        if f1s and None not in f1s:
            others[name] = sum(f1s) / len(f1s)
    if own is None or not others:
        return []
    name, best = max(others.items(), key=lambda other: other[1])
    numbers = f"macro F1 {best:.3f} on split {scores['split']}, this run {own:.3f}"
    (found,) = compare_pairs({f"{name} beside this run": (same[name], [scores])}).values()
    if found.low is not None and found.high is not None and found.low <= 0 <= found.high:
        bounds = f"{found.low:+.3f} to {found.high:+.3f}"
        return [f"No clear winner: {name} reaches {numbers}; the 95 % interval of the difference is {bounds}."]
    if best >= own:
        return [f"{name} is better: {numbers}. Use it, or train this one longer."]
    return [f"Better than {name}: it reaches {numbers}."]


def _judge_classes(scores: Scores) -> list[str]:
    """Returns which classes are never predicted though there are some, or have nothing to be scored on."""
    supports = {name: scores["per_class"][name]["support"] for name in scores["classes"]}
    predicted = np.asarray(scores["confusion"]).sum(0)
    absent = [name for name, support in supports.items() if not support]
    missed = [
        f"{name} ({n:,} pixels)" for (name, n), given in zip(supports.items(), predicted, strict=True) if n > given == 0
    ]
    sentences = []
    if missed:
        sentences.append(
            f"Never predicted in split {scores['split']}, though it has them: {_join(missed)}. Label more of them"
            ", and look whether they can be told apart in the pictures at all."
        )
    if absent:
        sentences.append(f"Not a pixel in split {scores['split']}, so nothing is known of them: {_join(absent)}.")
    return sentences


def _judge_images(scores: Scores) -> list[str]:
    """Returns how far the images suffice to compare methods by."""
    images = count(len(scores["per_image"]["name"]), "image")
    interval = scores["intervals"]["macro"]["f1"]
    if interval is None:
        return [f"Split {scores['split']} has {images}, too few to say how sure these scores are. Label more of them."]
    warning = scores["intervals"]["warning"]
    sentences = [f"How sure the scores of split {scores['split']} are is itself unsure: {warning}."] if warning else []
    low, high = interval
    if high - low < WIDE:
        return sentences
    return [
        *sentences,
        f"The 95 % interval of macro F1 is wide, {low:.3f} to {high:.3f} by {images}: methods that differ by less than "
        f"{high - low:.2f} cannot be ranked. Label more images for split {scores['split']}.",
    ]


def _say_longer(config: Mapping[str, Any], epochs: int) -> str:
    train = config["train"]
    by_clock = train.get("max_time") and epochs < train["epochs"]
    option, now = ("--train.max-time", train["max_time"]) if by_clock else ("--train.epochs", train["epochs"])
    # a duration is 90s, 1.5h or 120
    twice = re.sub(r"[\d.]+", lambda number: f"{2 * float(number[0]):.12g}", str(now), count=1)
    return f"Train longer: give the same command again, for the same folder, with {option} {twice} (now {now})."


def _join(names: Sequence[str]) -> str:
    """Returns up to ten names, and how many more there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
