"""Hand-made pixel features at several scales, for classifiers that see one pixel at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError, SettingsError

KINDS = (
    "gaussian",
    "laplacian",
    "gradient",
    "hessian_large",
    "hessian_small",
    "structure_large",
    "structure_small",
)

TRUNCATE = 4.0
"""A Gaussian kernel ends at this many standard deviations."""


@dataclass(frozen=True)
class FeatureSettings:
    """Which features are computed."""

    sigmas: tuple[float, ...] = (1, 2, 4, 8)
    """Standard deviations of the Gaussians in pixels, increasing."""

    def __post_init__(self) -> None:
        if not self.sigmas or not all(0 < sigma < math.inf for sigma in self.sigmas):
            raise SettingsError(f"features.sigmas is {self.sigmas}; expected one or more numbers above 0.")
        if any(a >= b for a, b in pairwise(self.sigmas)):
            raise SettingsError(f"features.sigmas is {self.sigmas}; list each sigma once, smallest first.")


def feature_names(settings: FeatureSettings) -> tuple[str, ...]:
    """Returns one name per feature, in the order of `compute_features`."""
    return (
        "grey",
        *(f"{kind}_{sigma:g}" for sigma in settings.sigmas for kind in KINDS),
        *(f"difference_{a:g}_{b:g}" for a, b in pairwise(settings.sigmas)),
    )


def halo(settings: FeatureSettings) -> int:
    """Returns how many pixels around a pixel its features depend on.

    The structure tensor reaches farthest: its derivatives are smoothed once more.
    """
    largest = settings.sigmas[-1]
    return _reach(largest) + _reach(largest / 2)


def compute_features(image: NDArray[np.float32], settings: FeatureSettings) -> NDArray[np.float32]:
    """Computes the features of every pixel; beyond the border the image is mirrored.

    Per sigma, by Gaussian derivatives: the Gaussian, the Laplacian of Gaussian, the gradient magnitude, the
    eigenvalues, larger first, of the Hessian and of the structure tensor (Bigun and Granlund, 1987: the outer
    product of the gradient, here averaged by a Gaussian of sigma / 2). Between neighbouring sigmas: the
    difference of Gaussians.

    Args:
        image: Scaled grey values, shape (y, x).
        settings: The scales.

    Returns:
        float32, shape (features, y, x); features as in `feature_names`.

    Raises:
        ImageError: The image is not 2D, is empty, or holds NaN or infinity.
    """
    if image.ndim != 2 or image.size == 0:
        raise ImageError(f"found an image of shape {image.shape}; expected (y, x) with at least one pixel.")
    image = image.astype(np.float32, copy=False)
    # a forest would take NaN for a value like any other
    if not np.isfinite(image).all():
        raise ImageError(
            f"{np.count_nonzero(~np.isfinite(image))} of {image.size} grey values are NaN or infinite; "
            "expected finite ones. Replace them before computing features."
        )
    features = np.empty((len(feature_names(settings)), *image.shape), np.float32)
    for i, feature in enumerate(_iterate_features(image, settings)):
        features[i] = feature
    return features


def _iterate_features(image: NDArray[np.float32], settings: FeatureSettings) -> Iterator[NDArray[np.float32]]:
    """Yields one feature after another, in the order of `feature_names`."""
    yield image
    smoothed = []
    for sigma in settings.sigmas:
        smoothed.append(_filter(image, sigma))
        yield smoothed[-1]
        dy, dx = _filter(image, sigma, (1, 0)), _filter(image, sigma, (0, 1))
        dyy, dxx = _filter(image, sigma, (2, 0)), _filter(image, sigma, (0, 2))
        yield dyy + dxx
        yield np.hypot(dy, dx)
        yield from _eigenvalues(dyy, _filter(image, sigma, (1, 1)), dxx)
        yield from _eigenvalues(*(_filter(product, sigma / 2) for product in (dy * dy, dy * dx, dx * dx)))
    for fine, coarse in pairwise(smoothed):
        yield fine - coarse


def _reach(sigma: float) -> int:
    """Returns the radius of scipy's Gaussian kernel."""
    return int(TRUNCATE * sigma + 0.5)


def _filter(image: NDArray[np.float32], sigma: float, order: tuple[int, int] = (0, 0)) -> NDArray[np.float32]:
    """Returns the image smoothed by a Gaussian, or its derivatives of `order` along (y, x)."""
    from scipy import ndimage

    return np.asarray(ndimage.gaussian_filter(image, sigma, order, mode="reflect", truncate=TRUNCATE), np.float32)


def _eigenvalues(
    yy: NDArray[np.float32], yx: NDArray[np.float32], xx: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the eigenvalues of the symmetric matrices [[yy, yx], [yx, xx]], larger first."""
    half = np.float32(0.5)
    middle, spread = (yy + xx) * half, np.hypot((yy - xx) * half, yx)
    return middle + spread, middle - spread
