"""PixelPredictor: features and a trained classifier as a Predictor."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.blocks import Slices, plan_blocks
from neurotome.classes import ClassSet
from neurotome.errors import ModelError
from neurotome.features import Extractor, FeatureSettings, Read
from neurotome.normalize import Normalization, Scale
from neurotome.pixels.classifiers import Classifier
from neurotome.predictor import WHOLE, label_by_probs


@dataclass(frozen=True)
class PixelPredictor:
    """A classifier of single pixels with all that prediction needs; see `Predictor`.

    Before they are made to sum to 1, probabilities are multiplied by `weights`, which bring what was learned from a balanced
    sample back to the frequencies of the training data.
    """

    classes: ClassSet
    normalization: Normalization
    settings: FeatureSettings  # of the extractor
    extractor: Extractor = field(repr=False)
    classifier: Classifier = field(repr=False)  # its outputs are the classes of `seen`
    seen: NDArray[np.int64]  # class ids it was trained on, increasing
    weights: NDArray[np.float32]  # one per seen class
    voxel_size_um: tuple[float, float, float] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)  # carried along, not used

    @property
    def in_channels(self) -> int:
        """Neighbouring slices read as channels."""
        return self.extractor.in_channels

    @property
    def halo_zyx(self) -> tuple[int, int, int]:
        """Voxels around a voxel that its features depend on; neighbouring slices are channels."""
        return 0, self.extractor.halo, self.extractor.halo

    @property
    def stride_zyx(self) -> tuple[int, int, int]:
        """Tiles must begin at multiples of this."""
        return 1, self.extractor.stride, self.extractor.stride

    @property
    def bounded(self) -> bool:
        """False if the features look at the whole image, so that no halo makes tiles exact."""
        return self.extractor.bounded

    @property
    def preferred_tile(self) -> int | None:
        """Edge of the tiles that suit it; None: any."""
        if self.settings.kind == "encoder":
            return None
        # whole where features are computed window by window, so that no halo is computed twice; but many slices take memory
        return 2 * self.extractor.window if self.in_channels > 1 else WHOLE

    @property
    def back_end(self) -> str:
        """What computes it; an encoder's features come from torch, all else is numpy's."""
        return f"numpy {np.__version__}, {self.settings.kind} features"

    def label_patches(
        self, grey: NDArray[Any], scale: Scale, crop: tuple[slice, slice], confidence: bool
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Labels unscaled patches; see `Predictor`."""
        return label_by_probs(self, grey, scale, crop, confidence)

    def predict_probs(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns class probabilities, 0 for a class that was not seen in training; shapes as of `Predictor`.

        Windows are computed in as many threads as there are cores; only their features are in memory.

        Raises:
            ModelError: The patches have another number of channels.
            ImageError: They hold NaN or infinity.
        """
        if patches.ndim != 4:
            raise ModelError(f"found patches of shape {patches.shape}; expected (n, {self.in_channels}, y, x).")
        n, _, height, width = patches.shape
        probs = np.zeros((n, len(self.classes), height, width), np.float32)
        windows = list_windows((height, width), self.extractor.window)
        for patch, target in zip(patches, probs, strict=True):
            predict = functools.partial(self._predict_window, self.extractor.prepare(patch))
            for (rows, columns), shares in zip(windows, iterate_windows(predict, windows), strict=True):
                target[self.seen, rows, columns] = shares
        return probs

    def _predict_window(self, read: Read, window: Slices) -> NDArray[np.float32]:
        """Returns the probabilities of the seen classes, float32, shape (seen classes, y, x)."""
        features = read(*window)
        shares = self.classifier.predict(features.reshape(len(features), -1)) * self.weights[:, None]
        shares /= shares.sum(0)
        if not np.isfinite(shares).all():
            raise ModelError("the classifier gives probabilities that are no numbers; its file is damaged. Train again.")
        return shares.reshape(-1, *features.shape[1:])


def list_windows(shape: Sequence[int], edge: int) -> list[Slices]:
    """Cuts a patch (y, x) into windows of at most `edge` pixels, last axis fastest."""
    return [block.core for block in plan_blocks(shape, (edge, edge), (0, 0))]


def iterate_windows(work: Callable[[Slices], Any], windows: list[Slices]) -> Iterator[Any]:
    """Yields what `work` returns for every window, in their order, in as many threads as this process may use cores.

    Within a thread the matrix products are single-threaded: threads over windows are the better ones, and more of both would
    only wait for each other.
    """
    from threadpoolctl import threadpool_limits

    workers = max(1, min(count_cores(), len(windows)))
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        # one window more than there are threads: what is done and not yet taken stays in memory
        waiting: deque[Future[Any]] = deque()
        for window in windows:
            waiting.append(pool.submit(work, window))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def count_cores() -> int:
    """Returns how many cores this process may use; `OMP_NUM_THREADS` makes it fewer, as for everything else here."""
    # macOS and Windows have no affinity
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdigit() and int(asked) > 0 else cores
