"""Where models, or one model and its view of the image turned, disagree: the uncertainty that labels would lower.

The measure is the mutual information of the class and the member that predicts it, the entropy of the mean probabilities
less the mean of the members' entropies (BALD: Houlsby, Huszar, Ghahramani and Lengyel 2011, arXiv 1112.5745). The entropy
alone is high along every border, since no pixel there belongs to one class, however much is learned; where all members say
so alike, that share falls out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.inference.slices import predict_slices
from neurotome.io.picked import PickedSlices
from neurotome.normalize import Scale
from neurotome.progress import Progress
from neurotome.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor

    from neurotome.models.net_predictor import NetPredictor
    from neurotome.pixels.predictor import PixelPredictor

TURNS = 8
"""Ways in which a square lies on itself: turned by quarters, mirrored or not."""


class Seen(NamedTuple):
    """A model and an image as it sees it: on the grey scale that the image has for it."""

    predictor: NetPredictor | PixelPredictor
    volume: Volume
    scale: Scale


def pick_slices(volume: Volume, numbers: NDArray[np.int64]) -> Volume:
    """Returns some slices of a volume, by increasing numbers, whose neighbours can still be read."""
    data = PickedSlices(volume.data, numbers, volume.path or Path(volume.name))
    return dataclasses.replace(volume, data=data)


def turn(predictor: NetPredictor, number: int) -> NetPredictor:
    """Returns a network that sees every image turned or mirrored in the plane, and turns back what it says of it.

    Args:
        predictor: A trained network.
        number: 0 (as it is) to 7: mirrored along x with bit 1, along y with bit 2, axes exchanged with bit 4.
    """
    from neurotome.models.net_predictor import Runtime

    compute = predictor.net if predictor.runtime is None else predictor.runtime.run
    axes = [axis for axis, bit in ((-1, 1), (-2, 2)) if number & bit]

    def run(images: Tensor) -> Tensor:
        turned = images.flip(axes)
        logits: Tensor = compute(turned.transpose(-1, -2) if number & 4 else turned)
        return (logits.transpose(-1, -2) if number & 4 else logits).flip(axes)

    return dataclasses.replace(predictor, runtime=Runtime(f"torch, turned ({number})", "float32", lambda: run, run))


def turn_all(seen: Sequence[Seen]) -> list[Seen]:
    """Returns each network in its `TURNS` turns; of a pixel classifier, whose features hardly have a direction, itself."""
    from neurotome.models.net_predictor import NetPredictor

    members = []
    for one in seen:
        if isinstance(one.predictor, NetPredictor):
            members += [one._replace(predictor=turn(one.predictor, number)) for number in range(TURNS)]
        else:
            members.append(one)
    return members


def measure_disagreement(
    members: Sequence[Seen], title: str = ""
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Predicts a volume by all members, slice by slice.

    Args:
        members: Models of the same classes, each with the same volume.
        title: Of the progress that is shown; empty: none.

    Yields:
        For each slice the mean probabilities, float32, shape (classes, y, x), and the mutual information in nats, float32,
        shape (y, x); of a single member, which nobody can contradict, the entropy.
    """
    shape = members[0].volume.shape
    done = [0.0] * len(members)
    progress = Progress(title, len(members) * math.prod(shape) / 1e6, "Mpixel") if title else None

    def count(number: int, pixels: float) -> None:
        done[number] = pixels
        if progress is not None:
            progress.update(sum(done))

    with contextlib.ExitStack() as stack:
        streams = []
        for number, (predictor, volume, scale) in enumerate(members):
            stream = predict_slices(predictor, volume, scale, on_progress=partial(count, number))
            streams.append(stack.enter_context(contextlib.closing(stream)))  # type: ignore[type-var]
        for _ in range(shape[0]):
            mean = np.zeros((len(members[0].predictor.classes), *shape[1:]), np.float32)
            own = np.zeros(shape[1:], np.float32)
            for stream in streams:
                probs = next(stream)
                mean += probs / len(members)
                own += compute_entropy(probs) / len(members)
            entropy = compute_entropy(mean)
            yield mean, np.maximum(entropy - own, 0) if len(members) > 1 else entropy
    if progress is not None:
        progress.finish()


def compute_entropy(probs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the entropy in nats, shape (y, x), of class probabilities (classes, y, x)."""
    entropy: NDArray[np.float32] = -(probs * np.log(np.maximum(probs, 1e-12))).sum(0)
    return entropy
