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


LEAST_CENTRE, MOST_CENTRE = -1.5, 2.2
LEAST_DARK, MOST_DARK = -1.0, 2.0
MOST_AIR = -2.0
"""Where an image's tissue and its darkest pixels may lie on another image's scale if both are of one scan, in its units from
the other's own, and how bright air is at most.

Measured on two slices of brain at the scale of the whole slice, 137 windows of 256 and 622 of 128 pixels: tissue lies from
-0.7 (nothing but neuropil) to 2.05 (nothing but white matter), the darkest pixels from 0 to 1.8 (no vessel within).
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
        reference: In mode `tissue` the scale of the images that training was told to measure it over, of dtype `dtype`;
            volumes that fit it are scaled by it. None: by what they hold themselves.
        alone: Whether training was told to scale each volume by itself, even beside others that share its grey scale.
    """

    mode: str
    mean: float
    std: float
    dtype: str
    reference: Scale | None = None
    alone: bool = False

    def scale_for(self, volume: Volume) -> Scale:
        """Returns the scale for one volume by itself, all of it even if only some of its slices are labelled.

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
            if self.reference and self.dtype == volume.data.dtype.name and find_tissue(volume).fits(self.reference):
                return self.reference
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
        told = content.get("reference")
        reference = Scale(float(told["mean"]), float(told["std"]), str(told["source"])) if told else None
        if reference and not (abs(reference.mean) < most and 1 / most < reference.std < most):
            raise ValueError(f"a reference with grey {reference.mean} and unit {reference.std}")
        return cls(mode, mean, std, str(content["dtype"]), reference, bool(content.get("alone")))


def largest_grey(volume: Volume) -> float:
    """Returns the largest value that a volume's integer dtype holds; ImageError for floats, which have no range."""
    if volume.data.dtype.kind not in "ui":
        raise ImageError(
            f"{volume.path or volume.name}: dtype {volume.data.dtype}, but normalisation by range divides by the largest "
            "value of an integer dtype. Convert the image to uint8 or uint16, or train with --train.normalization image."
        )
    return float(np.iinfo(volume.data.dtype).max)


@dataclass(frozen=True)
class Tissue:
    """Grey values by which an image of tissue is scaled.

    Attributes:
        dark: The darkest pixels, the 0.1st percentile.
        centre: The median of the tissue, which is what lies above a quarter of the range from `dark` to `bright`.
        bright: The 99.9th percentile.
        below, above: From `centre` to the 1st and to the 99th percentile.
        source: What was read.
    """

    dark: float
    centre: float
    bright: float
    below: float
    above: float
    source: str

    @property
    def is_inverted(self) -> bool:
        """Whether the bright end is far longer than the dark one."""
        return self.below < FEWEST_DARK * self.above

    @property
    def scale(self) -> Scale:
        """Tissue at 0, the darkest pixels at -4."""
        return Scale(self.centre, (self.centre - self.dark) / 4, self.source)

    def fits(self, scale: Scale) -> bool:
        """Returns whether these may be grey values of the scan that a scale was measured on: tissue of any kind, or air."""
        dark, centre, bright = ((grey - scale.mean) / scale.std for grey in (self.dark, self.centre, self.bright))
        if bright <= MOST_AIR:
            return dark + 4 >= LEAST_DARK
        return not self.is_inverted and LEAST_DARK <= dark + 4 <= MOST_DARK and LEAST_CENTRE <= centre <= MOST_CENTRE


def find_tissue(volume: Volume) -> Tissue:
    """Returns the grey values by which a volume is scaled, from a stated sample of it; of a constant one all are equal."""
    sample = sample_grey(volume.stack, MOST_VALUES)
    return describe_tissue(sample.values, sample.source)


def describe_tissue(values: NDArray[Any], source: str) -> Tissue:
    """Returns the grey values by which tissue is scaled that has `values`, flat; `source` says what they are."""
    low, dark, bright, high = (float(v) for v in np.percentile(values, (0.1, 1, 99, 99.9)))
    if low == high:  # fewer than 1 pixel in 1000 differs
        low, high = float(values.min()), float(values.max())
    # a hair below the quarter, so that rounding does not decide about a grey value that lies on it
    within = values[values > low + (0.25 - 1e-4) * (high - low)]
    centre = float(np.median(within)) if low < high else low
    return Tissue(low, centre, high, centre - dark, bright - centre, source)


def measure_tissue(volume: Volume) -> Scale:
    """Returns the scale by which tissue lies at 0 and the darkest pixels at -4, whatever the scanner's grey scale.

    Both ends are fixed by what every image of brain holds: neuropil, its most frequent grey, and vessels, nuclei or air,
    its darkest. Neither moves much with the share of cells, as mean and standard deviation do. Any map g -> a * g + b with
    a > 0 leaves the scaled image as it is. What moves is the median of an image that is mostly white matter, by up to 2
    units in 128 x 128 pixels: `shared_scale` measures images of one scan together. A volume that is constant, or whose
    bright end is far longer than its dark one, is refused.
    """
    return check_tissue(find_tissue(volume), volume).scale


def check_tissue(found: Tissue, volume: Volume) -> Tissue:
    """Returns what was found in a volume; raises ImageError if it is constant or its contrast is inverted."""
    where = volume.path or volume.name
    if found.dark == found.bright:
        raise ImageError(f"{where}: every pixel is {found.dark:g}; a constant image has no scale.")
    if found.is_inverted:
        raise ImageError(
            f"{where}: the contrast seems inverted: tissue has grey {found.centre:.4g}, the darkest 1 % lie "
            f"{found.below:.4g} below and the brightest 1 % {found.above:.4g} above, a ratio of "
            f"{found.below / found.above:.2f}; expected about 2, at least {FEWEST_DARK}, because cells, vessels and air are "
            "darker than tissue. Predict with --invert if the image's contrast is inverted; images to train on must be "
            "inverted before."
        )
    return found


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
