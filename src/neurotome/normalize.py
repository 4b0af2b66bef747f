"""Intensity scaling, stored with the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError, SettingsError, unknown
from neurotome.volume import Volume

MODES = ("dataset", "image")


@dataclass(frozen=True)
class Scale:
    """Maps a grey value g to (g - mean) / std."""

    mean: float
    std: float

    def apply(self, grey: NDArray[Any]) -> NDArray[np.float32]:
        """Returns scaled grey values as float32, same shape."""
        return (grey.astype(np.float32) - np.float32(self.mean)) * np.float32(1 / self.std)


@dataclass(frozen=True)
class Normalization:
    """How grey values are scaled before a predictor sees them.

    Attributes:
        mode: `dataset`: by the training data's mean and standard deviation; `image`: by each volume's own.
        mean: Mean of the training data's grey values.
        std: Standard deviation of the training data's grey values.
        dtype: Their dtype; in mode `dataset` other grey scales are refused.
    """

    mode: str
    mean: float
    std: float
    dtype: str

    def scale_for(self, volume: Volume) -> Scale:
        """Returns the scale for one volume.

        Raises:
            ImageError: The mode is `dataset` and the volume has another dtype, or `image` and it is constant.
        """
        if self.mode == "dataset":
            if volume.data.dtype.name != self.dtype:
                raise ImageError(
                    f"{volume.path or volume.name}: dtype {volume.data.dtype}, but the training images were {self.dtype}, "
                    f"whose grey values have mean {self.mean:.4g} and standard deviation {self.std:.4g}. Convert the image "
                    "to that scale, or train with --train.normalization image."
                )
            return Scale(self.mean, self.std)
        mean, std = measure_grey([volume.data])
        if std == 0:
            raise ImageError(f"{volume.path or volume.name}: every pixel is {mean:g}; a constant image has no scale.")
        return Scale(mean, std)

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads."""
        return {"mode": self.mode, "mean": self.mean, "std": self.std, "dtype": self.dtype}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Normalization:
        """Rebuilds a Normalization from `to_json`.

        Raises:
            ValueError: The mode is not known or the standard deviation is not positive.
        """
        mode, std = str(content["mode"]), float(content["std"])
        if mode not in MODES or not std > 0:
            raise ValueError(f"normalisation {mode!r} with standard deviation {std}")
        return cls(mode, float(content["mean"]), std, str(content["dtype"]))


def measure_grey(arrays: Iterable[NDArray[Any]]) -> tuple[float, float]:
    """Returns mean and standard deviation of all grey values, summed in float64 slice by slice.

    Args:
        arrays: Volumes (z, y, x) of any real dtype.
    """
    count, mean, squares = 0, 0.0, 0.0
    for array in arrays:
        for plane in array:
            values = np.asarray(plane, np.float64)
            # Chan, Golub, LeVeque (1983), doi:10.1080/00031305.1983.10483115: merges two sets without cancellation
            delta = values.mean() - mean
            total = count + values.size
            squares += float(((values - values.mean()) ** 2).sum()) + delta**2 * count * values.size / total
            mean += delta * values.size / total
            count = total
    if count == 0:
        raise ImageError("no image to measure; expected at least one.")
    return float(mean), float(np.sqrt(squares / count))


def fit_normalization(volumes: Iterable[Volume], mode: str = "dataset") -> Normalization:
    """Measures the training data's grey values.

    Args:
        volumes: The training volumes.
        mode: `dataset` or `image`, see `Normalization`.

    Raises:
        SettingsError: The mode is not known.
        ImageError: Every pixel has the same value, or the volumes' dtypes differ in mode `dataset`.
    """
    if mode not in MODES:
        raise SettingsError(unknown("normalisation", mode, MODES))
    volumes = list(volumes)
    dtypes = sorted({volume.data.dtype.name for volume in volumes})
    if mode == "dataset" and len(dtypes) > 1:
        raise ImageError(
            f"the training images have the dtypes {', '.join(dtypes)}, so they share no grey scale; convert them to one, or "
            "use --train.normalization image."
        )
    mean, std = measure_grey(volume.data for volume in volumes)
    if std == 0:
        raise ImageError(f"every pixel of the training images is {mean:g}; constant images cannot be learned from.")
    return Normalization(mode, mean, std, dtypes[0])
