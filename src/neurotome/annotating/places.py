"""Places: squares of an image that might be annotated, how unlike each other they are, and which are chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurotome.datasets.base import Dataset
from neurotome.datasets.scales import scale_dataset
from neurotome.inference.slices import resize
from neurotome.normalize import Scale
from neurotome.progress import track
from neurotome.resampling import choose_factors, count_resampled
from neurotome.volume import Volume

if TYPE_CHECKING:
    from neurotome.models.net_predictor import NetPredictor
    from neurotome.pixels.predictor import PixelPredictor

By = Literal["both", "uncertainty", "difference"]
"""What makes a place worth annotating."""

USUAL_EDGE = 256
"""Pixels along an edge, where a model does not say on which it was trained."""

FEWEST_TISSUE = 0.5
"""Share of a place that must be tissue."""

MOST_KNOWN = 1000
"""Places of the training set that are looked at, evenly spread over its slices."""

Vector = NDArray[np.float32]
"""Mean features of a place, shape (features,)."""


@dataclass(frozen=True)
class Place:
    """A square within a slice of an image.

    Attributes:
        image: Number of the image.
        z, y, x: Slice, and the first row and column, in voxels of the image.
        edge: Pixels along an edge.
        reach: Slices in either direction that are taken to show the same.
        uncertainty: Mean over the place, in nats.
        features: What the model makes of it.
    """

    image: int
    z: int
    y: int
    x: int
    edge: int
    reach: int
    uncertainty: float
    features: Vector = field(repr=False, compare=False)

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.y, self.y + self.edge), slice(self.x, self.x + self.edge)

    def repeats(self, other: Place) -> bool:
        """Says whether two places share pixels, or would if they were as deep as wide."""
        is_near = self.image == other.image and abs(self.z - other.z) < self.reach
        return is_near and abs(self.y - other.y) < self.edge and abs(self.x - other.x) < self.edge


@dataclass(frozen=True)
class Chosen:
    """A place that was chosen.

    Attributes:
        place: Where it is.
        difference: Distance of its features from the nearest of the training set and the places chosen before, nan for the
            first where there is neither.
    """

    place: Place
    difference: float


def choose_edge(volume: Volume, predictor: NetPredictor | PixelPredictor, edge: int | Literal["auto"]) -> int:
    """Returns the edge of places in an image, in its pixels: what is asked for, or that of the model's training patches."""
    if edge == "auto":
        factors = choose_factors(volume, "z", predictor.voxel_size_um)
        trained = int(getattr(predictor, "patch", USUAL_EDGE))
        return min(max(8, round(trained / max(factors))), *volume.shape[1:])
    return min(edge, *volume.shape[1:])


def list_windows(shape: tuple[int, int], edge: int, step: int) -> Iterator[tuple[slice, slice]]:
    """Yields squares of a slice (y, x), `step` pixels apart; the last of a row or column ends with the slice."""
    rows, columns = ([*range(0, size - edge, step), size - edge] for size in shape)
    for y in rows:
        for x in columns:
            yield slice(y, y + edge), slice(x, x + edge)


def describe(
    predictor: NetPredictor | PixelPredictor, volume: Volume, scale: Scale, z: int, window: tuple[slice, slice]
) -> Vector:
    """Returns what a model makes of a place: the mean of its encoder's last features, of a pixel classifier its features.

    They are those in which the core-set of Sener and Savarese (2018, arXiv 1708.00489) keeps its distances.
    """
    from neurotome.pixels.predictor import PixelPredictor

    patch = scale.apply(volume.read_context(z, predictor.in_channels, *window))
    factors = choose_factors(volume, "z", predictor.voxel_size_um)
    height, width = (count_resampled(size, factor) for size, factor in zip(patch.shape[1:], factors, strict=True))
    patch = resize(patch, (height, width))
    if isinstance(predictor, PixelPredictor):
        return np.asarray(predictor.extractor.prepare(patch)(slice(0, height), slice(0, width)).mean((1, 2)), np.float32)
    import torch

    encoder: Any = predictor.net.core.encoder
    with torch.inference_mode():
        images = torch.from_numpy(np.ascontiguousarray(patch[None])).to(predictor.device)
        features = predictor.net.run_padded(lambda padded: encoder(padded)[-1], images)
        vector: Vector = features[0].float().mean((-2, -1)).cpu().numpy()
    return vector


def describe_dataset(
    predictor: NetPredictor | PixelPredictor, dataset: Dataset, edge: int | Literal["auto"]
) -> list[Vector]:
    """Returns what a model makes of the labelled places of a dataset's splits train and val, side by side."""
    scales = scale_dataset(predictor.normalization, dataset)
    found = []
    for cutout in (*dataset.split("train"), *dataset.splits.get("val", ())):
        labelled = np.flatnonzero(cutout.label_counts[:, : len(dataset.classes)].any(1))
        size = choose_edge(cutout.volume, predictor, edge)
        windows = list(list_windows(cutout.volume.shape[1:], size, size))
        found += [(cutout, int(z), window) for z in labelled for window in windows]
    picked = found[:: -(-len(found) // MOST_KNOWN)] if found else []
    return [
        describe(predictor, cutout.volume, scales.scale_for(cutout.volume), z, window)
        for cutout, z, window in track(picked, "looking at the training set", len(picked), "place")
        if (cutout.read_labels(z, *window) < len(dataset.classes)).any()
    ]


def choose_places(places: Sequence[Place], known: Sequence[Vector], count: int, by: By) -> list[Chosen]:
    """Chooses one place after another: the most uncertain, the most different, or the one for which the product is largest.

    The difference is the distance from the nearest of what is known and what was chosen before (farthest first, the greedy
    core-set of Sener and Savarese 2018, arXiv 1708.00489). Of a product the units do not matter, and a place that is certain
    or known is not chosen. Where nothing is known, the first is the most
    uncertain, or by difference the first of all.

    Args:
        places: From which to choose.
        known: Features of the training set; may be none.
        count: How many; fewer where all others would repeat one that is chosen.
        by: What counts.
    """
    features = np.stack([place.features for place in places]).astype(np.float64)
    uncertainty = np.array([place.uncertainty for place in places])
    difference = np.full(len(places), np.inf)
    for vector in known:
        difference = np.minimum(difference, np.linalg.norm(features - vector, axis=1))
    free = np.ones(len(places), bool)
    chosen: list[Chosen] = []
    while free.any() and len(chosen) < count:
        merit = np.ones(len(places)) if by == "difference" else uncertainty
        if by != "uncertainty" and np.isfinite(difference[0]):
            merit = merit * difference
        best = int(np.where(free, merit, -1).argmax())
        chosen.append(Chosen(places[best], float(difference[best]) if np.isfinite(difference[best]) else float("nan")))
        difference = np.minimum(difference, np.linalg.norm(features - features[best], axis=1))
        free &= [not place.repeats(places[best]) for place in places]
    return chosen
