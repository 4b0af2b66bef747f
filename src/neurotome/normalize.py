"""Intensity scaling, stored with the model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError, SettingsError, unknown
from neurotome.sampling import ALL, MOST_VALUES, is_large, sample_boxes, sample_grey
from neurotome.volume import Volume

MODES = ("dataset", "image", "tissue", "range")

FARTHEST = 1.0
"""Standard deviations that an image's mean may lie off the training data's; within the real sets it is at most 0.7."""

FEWEST_DARK = 0.6
"""Distance of the 1st percentile from the tissue's grey over that of the 99th, below which an image must be inverted.

Measured on two real slices of brain, whole (1.5) and in 712 windows of 128 and 256 pixels (median 1.9, none less than 0.6).
Inverted, windows have 0.63 (the median), whole slices 0.9: only clear cases are found; refusing real images would be worse.
"""


@dataclass(frozen=True)
class Scale:
    """Maps a grey value g to (g - mean) / std; `source` says what they were measured from, for a record."""

    mean: float
    std: float
    source: str = field(default="", compare=False)

    def apply(self, grey: NDArray[Any], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Returns scaled grey values as float32, same shape; in `out` if that is given."""
        scaled = np.empty(grey.shape, np.float32) if out is None else out
        scaled[...] = grey
        scaled -= np.float32(self.mean)
        scaled *= np.float32(1 / self.std)
        return scaled


@dataclass(frozen=True)
class Normalization:
    """How grey values are scaled before a predictor sees them.

    Attributes:
        mode: `dataset`: by the training data's mean and standard deviation; `image`: by each volume's own; `tissue`: by
            the grey of each volume's tissue and of its darkest pixels, see `measure_tissue`; `range`: by the largest value
            of each volume's integer dtype alone, so that black is 0 and the brightest possible grey 1.
        mean: Mean of the training data's grey values; in mode `tissue` the median of the volumes' tissue grey.
        std: Standard deviation of the training data's grey values; in mode `tissue` the median of the volumes' unit.
        dtype: Their dtype; in mode `dataset` other grey scales are refused.
    """

    mode: str
    mean: float
    std: float
    dtype: str

    def scale_for(self, volume: Volume) -> Scale:
        """Returns the scale for one volume, all of it even if only some of its slices are labelled.

        Raises:
            ImageError: The volume is of another dtype (mode `dataset`), constant, or of inverted contrast (`tissue`).
        """
        if self.mode == "dataset":
            if volume.data.dtype.name != self.dtype:
                raise ImageError(
                    f"{volume.path or volume.name}: dtype {volume.data.dtype}, but the training images were {self.dtype}, "
                    f"whose grey values have mean {self.mean:.4g} and standard deviation {self.std:.4g}. Convert the image "
                    "to that scale, or train with --train.normalization image (baseline: --normalization image)."
                )
            return Scale(self.mean, self.std, "the training data")
        if self.mode == "tissue":
            return measure_tissue(volume)
        if self.mode == "range":
            return Scale(0.0, largest_grey(volume), f"the range of {volume.data.dtype}")
        if is_large(volume.stack):
            sample = sample_boxes(volume.stack)
            mean, std, source = float(sample.values.mean()), float(sample.values.std()), sample.source
        else:
            (mean, std), source = measure_grey([volume.stack]), ALL
        if std == 0:
            raise ImageError(f"{volume.path or volume.name}: every pixel is {mean:g}; a constant image has no scale.")
        return Scale(mean, std, source)

    def note_unlike(self, volume: Volume) -> None:
        """Says so if the mode is `dataset` and a volume's grey values are unlike the training data's."""
        if self.mode != "dataset" or volume.data.dtype.name != self.dtype:
            return
        mean = float(sample_grey(volume.stack).values.mean())
        if abs(mean - self.mean) > FARTHEST * self.std:
            warnings.warn(
                f"{volume.path or volume.name}: grey values have mean {mean:.4g}, the training data {self.mean:.4g}; that "
                f"is {abs(mean - self.mean) / self.std:.1f} of their standard deviations off, so labels may be wrong. Bring "
                "the image to their scale, or train with --train.normalization image (baseline: --normalization image).",
                stacklevel=2,
            )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Normalization:
        """Rebuilds a Normalization from its fields; ValueError if it cannot scale."""
        mode, mean, std = str(content["mode"]), float(content["mean"]), float(content["std"])
        most = float(np.finfo(np.float32).max)  # grey values are scaled in float32, by the inverse of the deviation
        if mode not in MODES or not (abs(mean) < most and 1 / most < std < most):
            raise ValueError(f"normalisation {mode!r} with mean {mean} and standard deviation {std}")
        return cls(mode, mean, std, str(content["dtype"]))


def largest_grey(volume: Volume) -> float:
    """Returns the largest value that a volume's integer dtype holds; ImageError for floats, which have no range."""
    if volume.data.dtype.kind not in "ui":
        raise ImageError(
            f"{volume.path or volume.name}: dtype {volume.data.dtype}, but normalisation by range divides by the largest "
            "value of an integer dtype. Convert the image to uint8 or uint16, or train with --train.normalization image."
        )
    return float(np.iinfo(volume.data.dtype).max)


def measure_tissue(volume: Volume) -> Scale:
    """Returns the scale by which tissue lies at 0 and the darkest pixels at -4, whatever the scanner's grey scale.

    Both ends are fixed by what every image of brain holds: neuropil, its most frequent grey, and vessels, nuclei or air,
    its darkest. Neither moves much with the share of cells or fibres, as mean and standard deviation do. Tissue is
    what lies above a quarter of the range between the 0.1st and the 99.9th percentile. Any map g -> a * g + b with a > 0
    leaves the scaled image as it is. A volume that is constant, or whose bright end is far longer than its dark one, is
    refused.
    """
    where = volume.path or volume.name
    sample = sample_grey(volume.stack, MOST_VALUES)
    values = sample.values
    low, dark, bright, high = (float(v) for v in np.percentile(values, (0.1, 1, 99, 99.9)))
    if low == high:  # fewer than 1 pixel in 1000 differs
        low, high = float(values.min()), float(values.max())
    if low == high:
        raise ImageError(f"{where}: every pixel is {low:g}; a constant image has no scale.")
    # a hair below the quarter, so that rounding does not decide about a grey value that lies on it
    centre = float(np.median(values[values > low + (0.25 - 1e-4) * (high - low)]))
    below, above = centre - dark, bright - centre
    if below < FEWEST_DARK * above:
        raise ImageError(
            f"{where}: the contrast seems inverted: tissue has grey {centre:.4g}, the darkest 1 % lie {below:.4g} below and "
            f"the brightest 1 % {above:.4g} above, a ratio of {below / above:.2f}; expected about 2, at least "
            f"{FEWEST_DARK}, because cells, vessels and air are darker than tissue. Predict with --invert if the image's "
            "contrast is inverted; images to train on must be inverted before."
        )
    return Scale(centre, (centre - low) / 4, sample.source)


def measure_grey(arrays: Iterable[NDArray[Any]]) -> tuple[float, float]:
    """Returns mean and standard deviation of all grey values of volumes (z, y, x), summed in float64 slice by slice.

    Of a large volume boxes stand for all, see `sampling.sample_boxes`.
    """
    measured = []
    for array in arrays:
        parts = [sample_boxes(array).values] if is_large(array) else array
        found = [(plane.size, plane.mean(), plane.var()) for plane in (np.asarray(part, np.float64) for part in parts)]
        weight = array.size / sum(size for size, _, _ in found)
        measured += [(size * weight, mean, variance) for size, mean, variance in found]
    if not measured:
        raise ImageError("no image to measure; expected at least one.")
    sizes, means, variances = np.array(measured).T
    mean = np.average(means, weights=sizes)
    return float(mean), float(np.sqrt(np.average(variances + (means - mean) ** 2, weights=sizes)))


def fit_normalization(volumes: Iterable[Volume], mode: str = "dataset") -> Normalization:
    """Measures the training data's grey values.

    Args:
        volumes: The training volumes.
        mode: `dataset`, `image`, `tissue` or `range`, see `Normalization`.

    Raises:
        SettingsError: The mode is not known.
        ImageError: Every pixel has the same value, the volumes' dtypes differ in mode `dataset` or are no integers in mode
            `range`, or a volume's contrast is inverted in mode `tissue`.
    """
    if mode not in MODES:
        raise SettingsError(unknown("normalisation", mode, MODES))
    volumes = list(volumes)
    dtypes = sorted({volume.data.dtype.name for volume in volumes})
    if mode == "dataset" and len(dtypes) > 1:
        raise ImageError(
            f"the training images have the dtypes {', '.join(dtypes)}, so they share no grey scale; convert them to one, or "
            "use --train.normalization image (baseline: --normalization image)."
        )
    if mode == "tissue" and volumes:
        scales = [measure_tissue(volume) for volume in volumes]
        mean, std = float(np.median([s.mean for s in scales])), float(np.median([s.std for s in scales]))
        return Normalization(mode, mean, std, dtypes[0])
    mean, std = measure_grey(volume.data for volume in volumes)
    if std == 0:
        raise ImageError(f"every pixel of the training images is {mean:g}; constant images cannot be learned from.")
    if mode == "range":
        return Normalization(mode, 0.0, max(largest_grey(volume) for volume in volumes), dtypes[0])
    return Normalization(mode, mean, std, dtypes[0])
