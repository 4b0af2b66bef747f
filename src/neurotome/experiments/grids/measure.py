"""How fast networks and pixel classifiers are on this machine and data, measured in seconds rather than minutes."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from neurotome.datasets.base import Cutout, Dataset
from neurotome.errors import NeurotomeError, is_out_of_memory
from neurotome.experiments.grids.plan import PlannedRun
from neurotome.pixels.train import BaselineSettings
from neurotome.predictor import predict_slice
from neurotome.progress import Progress
from neurotome.training.recipe import Recipe

SMALL_EDGE = 64
"""Edge of the smaller patch of which the time of a step is measured."""

FEW = 2
"""Patches of a measured step."""

PIECE = 256
"""Edge of the image that is predicted, or classified, for its time."""

CLASSIFIED = 4000
"""Pixels with made-up features that a classifier is timed on."""

Key = TypeVar("Key", bound=Hashable)
Speed = TypeVar("Speed")


@dataclass(frozen=True)
class NetSpeed:
    """Seconds that a network takes.

    Attributes:
        prepare: Before its first step.
        step: Of a step, whatever its size.
        pixel: Of a step, for each pixel of its batch.
        predict: To predict a pixel.
    """

    prepare: float
    step: float
    pixel: float
    predict: float

    def time_step(self, batch: int, patch: int) -> float:
        """Returns the seconds of a step."""
        return self.step + self.pixel * batch * patch**2


@dataclass(frozen=True)
class PixelSpeed:
    """Seconds that a pixel classifier takes.

    Attributes:
        pixel: For each pixel of the images that it learns from.
        row: For each pixel that it learns.
        predict: To predict a pixel of an image.
        classify: To predict a pixel whose features are there, as often as there are features.
    """

    pixel: float
    row: float
    predict: float
    classify: float


def measure_all(
    runs: Mapping[Key, PlannedRun], measure: Callable[[PlannedRun], Speed], title: str, deadline: float
) -> dict[Key, Speed]:
    """Measures one run after another until the monotonic clock passes a deadline, but at least one that can be measured.

    What cannot work has no speed: it fails when its turn comes, and the other runs go on.
    """
    found: dict[Key, Speed] = {}
    progress = Progress(title, len(runs))
    for done, (key, run) in enumerate(runs.items(), start=1):
        if found and time.monotonic() > deadline:
            break
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the run itself will say so
                found[key] = measure(run)
        except (NeurotomeError, MemoryError, RuntimeError) as error:
            if not isinstance(error, NeurotomeError) and not is_out_of_memory(error):
                raise
        finally:
            progress.update(done, run.label)
    progress.finish(f"{len(found)} of {len(runs)} measured")
    return found


def fill_in(found: Mapping[Key, Speed], keys: Iterable[Key]) -> dict[Key, Speed]:
    """Returns a speed for every key: where none was measured, one as slow in everything as the slowest that was."""
    values = [dataclasses.astuple(speed) for speed in found.values()]  # type: ignore[call-overload]
    slowest = type(next(iter(found.values())))(*map(max, zip(*values, strict=True))) if values else None
    return {key: speed for key in keys if (speed := found.get(key, slowest)) is not None}


def measure_network(dataset: Dataset, run: PlannedRun) -> NetSpeed:
    """Measures a network by a few small steps, from which larger ones follow: their time grows with the pixels.

    A GPU is measured with whole batches, because it is not busy with small ones.
    """
    from neurotome.models.networks import import_smp

    import_smp()  # first: it mends what lightning imports
    import neurotome.training.module  # noqa: F401  # lightning, whose import is not this network's time
    from neurotome.models.net import choose_device
    from neurotome.training.prepare import prepare, settle_recipe
    from neurotome.training.sampler import PatchSampler
    from neurotome.training.timing import time_steps

    began = time.monotonic()
    recipe = run.build()
    assert isinstance(recipe, Recipe)
    # compiling would take longer than all that is measured here, and more devices only make it faster
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, compile="off", devices=1))
    settled = settle_recipe(dataset, recipe)
    module = prepare(dataset, settled)
    ready = time.monotonic()
    sample, channels = settled.recipe.sample, int(settled.recipe.model.in_channels)
    patch, depth = int(sample.patch), module.sampler.depth
    device = choose_device(settled.recipe.train.device)
    is_gpu = device.startswith("cuda")
    sizes = ((FEW, patch), (sample.batch, patch)) if is_gpu else ((FEW, min(SMALL_EDGE, patch)), (FEW, patch))
    times = {}
    for batch, edge in sizes:
        asked = dataclasses.replace(sample, batch=batch, patch=edge)
        module.sampler = PatchSampler(dataset, asked, module.predictor.normalization, channels, run.seed, None, depth)
        # the fastest: other work on the machine only ever adds, and networks must be priced alike
        times[batch * edge**2] = min(time_steps(module, groups=3, group=3 if is_gpu else 1).seconds)
    step, pixel = split_time(times)
    image = np.zeros((channels, PIECE, PIECE), np.float32)
    module.predictor.net.to(device).eval()  # after a training Lightning brings it back
    predict = min(_time(lambda: predict_slice(module.predictor, image)) for _ in range(2)) / PIECE**2
    return NetSpeed(ready - began, step, pixel, predict)


def split_time(times: Mapping[int, float]) -> tuple[float, float]:
    """Returns what a step takes in any case and what each pixel adds, from the seconds of steps by their pixels.

    Where noise lets the larger step seem the faster, everything is the pixels'.
    """
    (fewer, short), (more, long) = min(times.items()), max(times.items())
    if more == fewer or long <= short:
        return 0.0, long / more
    pixel = min((long - short) / (more - fewer), long / more)
    return long - pixel * more, pixel


def measure_pixels(dataset: Dataset, run: PlannedRun) -> PixelSpeed:
    """Measures a pixel classifier on a piece of an image."""
    from neurotome.pixels.train import fit_baseline

    settings = run.build()
    assert isinstance(settings, BaselineSettings)
    piece = cut_piece(dataset)
    fewest = dataclasses.replace(settings, pixels_per_class=1)
    fit_baseline(piece, fewest)  # imports what is not this classifier's time
    features = _time(lambda: fit_baseline(piece, fewest))
    few = dataclasses.replace(settings, pixels_per_class=min(settings.pixels_per_class or 1000, 1000))
    began = time.monotonic()
    predictor = fit_baseline(piece, few)
    rows = sum(predictor.facts["training"]["pixels"].values())
    learning = max(0.0, time.monotonic() - began - features)
    volume = piece.split("train")[0].volume
    image = predictor.normalization.scale_for(volume).apply(volume.read_context(0, predictor.in_channels))
    predict = _time(lambda: predict_slice(predictor, image)) / volume.data.size
    names = len(predictor.extractor.names)
    table = np.random.default_rng(0).standard_normal((names, CLASSIFIED), np.float32)
    classify = _time(lambda: predictor.classifier.predict(table)) / CLASSIFIED * names
    return PixelSpeed(features / count_pixels(piece, ("train", "val")), learning / rows, predict, classify)


def cut_piece(dataset: Dataset) -> Dataset:
    """Returns a dataset of one piece of a slice per split, of the slice with the most classes."""
    splits = {}
    for split, cutouts in dataset.splits.items():
        classes = len(dataset.classes)
        present = [(c.label_counts[:, :classes] > 0).sum(1) for c in cutouts]
        best = int(np.argmax([counts.max() for counts in present]))
        cutout, z = cutouts[best], int(present[best].argmax())
        labels, rows, columns = cutout.read_labels(z), slice(0, PIECE), slice(0, PIECE)
        if len(np.unique(labels[rows, columns][labels[rows, columns] < classes])) < 2:
            rows = columns = slice(None)
        volume = dataclasses.replace(cutout.volume, data=np.asarray(cutout.volume.data[z : z + 1, rows, columns]))
        splits[split] = (Cutout(volume, labels[None, rows, columns]),)
    return dataclasses.replace(dataset, splits=splits, source=None)


def count_pixels(dataset: Dataset, splits: Iterable[str]) -> int:
    """Returns the pixels of all images of some splits, as far as the dataset has them."""
    return sum(int(np.prod(cutout.volume.shape)) for split in splits for cutout in dataset.splits.get(split, ()))


def _time(function: Callable[[], object]) -> float:
    began = time.monotonic()
    function()
    return time.monotonic() - began
