"""Hand-made pixel features at several scales, 2D or 3D, as ilastik has them (Berg et al., 2019).

doi:10.1038/s41592-019-0582-9. A filter along one axis is a product with a banded matrix: a matrix product of single
precision runs some twenty times faster than a loop over the kernel, although it multiplies with many zeros.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import DatasetError, SettingsError
from neurotome.features.base import Extractor, Read, check_patch

TRUNCATE = 4.0
"""A Gaussian kernel ends at this many standard deviations."""

EDGE = 64
"""Rows of a banded matrix. Every block is filtered in pieces of this many pixels, wherever it begins, so that rounding does
not depend on how an image is cut into blocks."""

SIGMA_PIXELS = (0.1, 200.0)
"""Smallest and largest standard deviation, in pixels."""

EIGENVALUES = {2: ("large", "small"), 3: ("large", "middle", "small")}

Axes = tuple[float, float, float]


@dataclass(frozen=True)
class FilterSettings:
    """Which filters are computed."""

    sigmas: tuple[float, ...] = (1, 2, 4, 8, 16)
    """Standard deviations of the Gaussians, increasing."""

    unit: Literal["pixel", "um"] = "pixel"
    """What sigmas are counted in; um needs data whose voxel size is known, and then holds for voxels of unequal edges
    too."""

    dimensions: Literal[2, 3] = 2
    """2: each slice by itself; 3: with its neighbours, as far as the Gaussians reach. In 3 choose small sigmas, such as 1, 2
    and 4: those of 16 look at 193 slices for one and take minutes for a Mpixel."""

    def __post_init__(self) -> None:
        if not self.sigmas or not all(0 < sigma < math.inf for sigma in self.sigmas):
            raise SettingsError(f"filters.sigmas is {self.sigmas}; expected one or more numbers above 0.")
        if any(a >= b for a, b in pairwise(self.sigmas)):
            raise SettingsError(f"filters.sigmas is {self.sigmas}; list each sigma once, smallest first.")
        if self.dimensions not in (2, 3):
            raise SettingsError(f"filters.dimensions is {self.dimensions}; expected 2 or 3.")


class Filters(Extractor):
    """The filters of given settings for voxels of a given size.

    Per sigma, by Gaussian derivatives: the Gaussian, the Laplacian of Gaussian, the gradient magnitude, the eigenvalues,
    largest first, of the Hessian and of the structure tensor (Bigun and Granlund, 1987: the outer product of the gradient,
    here averaged by a Gaussian of sigma / 2). Between neighbouring sigmas: the difference of Gaussians. Derivatives are
    per pixel, or per micrometre where sigmas are in micrometres. Beyond the border a slice is mirrored, and beyond the ends
    of a stack its last slice repeated.
    """

    def __init__(self, settings: FilterSettings, voxel_size_um: Axes | None = None) -> None:
        """Checks that the sigmas suit the voxels (z, y, x); raises what `choose.build_extractor` does."""
        size = voxel_size_um if settings.unit == "um" else (1.0, 1.0, 1.0)
        if size is None:
            raise DatasetError(
                "filters.unit is um, but the voxel size of the data is not known, or not the same for all images. Add "
                "voxel_size_um to dataset.yaml, or give sigmas in pixels with --filters.unit pixel."
            )
        for sigma in settings.sigmas:
            for edge in size[3 - settings.dimensions :]:
                if not SIGMA_PIXELS[0] <= sigma / edge <= SIGMA_PIXELS[1]:
                    raise SettingsError(
                        f"filters.sigmas has {sigma:g} {settings.unit}, which is {sigma / edge:.3g} pixels; expected "
                        f"{SIGMA_PIXELS[0]:g} to {SIGMA_PIXELS[1]:g}: smaller ones change nothing, larger ones take far too "
                        "long."
                    )
        self.settings = settings
        self.size: Axes = size
        reach = [max(sum(self._reaches(sigma, axis)) for sigma in settings.sigmas) for axis in range(3)]
        self.halo = max(reach[1:])
        self.in_channels = 2 * reach[0] + 1 if settings.dimensions == 3 else 1
        self.window = 448 if settings.dimensions == 2 else 192
        values = EIGENVALUES[settings.dimensions]
        kinds = ("gaussian", "laplacian", "gradient", *(f"{kind}_{v}" for kind in ("hessian", "structure") for v in values))
        self.names = (
            "grey",
            *(f"{kind}_{sigma:g}" for sigma in settings.sigmas for kind in kinds),
            *(f"difference_{a:g}_{b:g}" for a, b in pairwise(settings.sigmas)),
        )

    def prepare(self, patch: NDArray[np.float32]) -> Read:
        """Mirrors the border of a patch, shape (in_channels, y, x), once for all its windows."""
        check_patch(patch, self.in_channels)
        # to the right and below also what fills up the last piece of a window
        width = (self.halo, self.halo + 2 * EDGE)
        padded = np.pad(patch.astype(np.float32, copy=False), ((0, 0), width, width), "symmetric")
        return functools.partial(self._read, padded)

    def _read(self, padded: NDArray[np.float32], rows: slice, columns: slice) -> NDArray[np.float32]:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        features = np.empty((len(self.names), height, width), np.float32)
        for i, feature in enumerate(self._compute(padded[:, rows.start :, columns.start :], height, width)):
            features[i] = feature
        return features

    def _compute(self, padded: NDArray[np.float32], height: int, width: int) -> Iterator[NDArray[np.float32]]:
        """Yields the features, in the order of `names`, of the first height x width pixels after `halo` others."""
        middle = padded.shape[0] // 2
        yield padded[middle, self.halo : self.halo + height, self.halo : self.halo + width]
        smoothed = []
        for sigma in self.settings.sigmas:
            features = self._filter_scale(padded, sigma, height, width)
            smoothed.append(next(features))
            yield smoothed[-1]
            yield from features
        for fine, coarse in pairwise(smoothed):
            yield fine - coarse

    def _reaches(self, sigma: float, axis: int) -> tuple[int, int]:
        """Returns the radii of the kernels of sigma and sigma / 2 along an axis, in pixels."""
        pixels = sigma / self.size[axis]
        return reach(pixels), reach(pixels / 2)

    def _filter_scale(
        self, padded: NDArray[np.float32], sigma: float, height: int, width: int
    ) -> Iterator[NDArray[np.float32]]:
        """Yields the features of one sigma."""
        axes = tuple(range(3 - self.settings.dimensions, 3))
        widths = [self._reaches(sigma, axis) for axis in range(3)]
        # the gradient is needed around the window too, because its products are smoothed
        rows, columns = (_round_up(_round_up(n) + 2 * widths[axis][1]) for axis, n in ((1, height), (2, width)))
        starts = [self.halo - sum(widths[axis]) for axis in (1, 2)]
        ends = [start + n + 2 * widths[axis][0] for axis, start, n in zip((1, 2), starts, (rows, columns), strict=True)]
        region = padded[:, starts[0] : ends[0], starts[1] : ends[1]]
        if region.shape[1:] != (ends[0] - starts[0], ends[1] - starts[1]):
            # a large sigma's pieces end beyond the border; what lies there reaches no pixel that is asked for
            missing = [end - start - n for start, end, n in zip(starts, ends, region.shape[1:], strict=True)]
            region = np.pad(region, ((0, 0), (0, missing[0]), (0, missing[1])))
        planes = self._derive_z(region, sigma, widths[0]) if len(axes) == 3 else {0: region}
        middle = planes[0].shape[0] // 2
        inner = (slice(widths[1][1], widths[1][1] + height), slice(widths[2][1], widths[2][1] + width))

        def kernel(order: int, axis: int) -> NDArray[np.float32]:
            return make_band(sigma / self.size[axis], order, 1 / self.size[axis])

        along_y = {(z, y): filter_rows(plane, kernel(y, 1)) for z, plane in planes.items() for y in range(3 - z)}

        def derive(*axes_of: int) -> NDArray[np.float32]:
            """Returns the derivative along the axes named, of every plane that is there."""
            z, y, x = (axes_of.count(axis) for axis in range(3))
            return filter_columns(along_y[z, y], kernel(x, 2))

        yield derive()[middle][inner]
        gradient = {axis: derive(axis) for axis in axes}
        pairs = list(combinations_with_replacement(axes, 2))
        hessian = {pair: derive(*pair) for pair in pairs}
        seconds = [hessian[pair][hessian[pair].shape[0] // 2][inner] for pair in pairs]
        laplacian = sum(second for pair, second in zip(pairs, seconds, strict=True) if pair[0] == pair[1])
        yield np.asarray(laplacian, np.float32)
        length = sum(gradient[axis][middle][inner] ** 2 for axis in axes)
        yield np.sqrt(np.asarray(length, np.float32))
        yield from find_eigenvalues(seconds)
        yield from find_eigenvalues([self._smooth(gradient[a] * gradient[b], sigma, (height, width)) for a, b in pairs])

    def _derive_z(
        self, region: NDArray[np.float32], sigma: float, widths: tuple[int, int]
    ) -> dict[int, NDArray[np.float32]]:
        """Returns the derivatives along z by their order, for all slices that the structure tensor needs."""
        outer, around = widths
        middle = region.shape[0] // 2
        planes = {}
        for order in range(3):
            weights = make_kernel(sigma / self.size[0], order, 1 / self.size[0])
            reach = around if order < 2 else 0
            # the kernel at each offset is a row of a banded matrix
            band = np.zeros((2 * reach + 1, 2 * (reach + outer) + 1), np.float32)
            for i in range(len(band)):
                band[i, i : i + len(weights)] = weights
            planes[order] = np.tensordot(band, region[middle - reach - outer : middle + reach + outer + 1], 1)
        return planes

    def _smooth(self, products: NDArray[np.float32], sigma: float, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Smooths the gradient's products, shape (z, y, x), by half of sigma, to the middle slice of the given shape."""
        if len(products) > 1:
            products = np.tensordot(make_kernel(sigma / 2 / self.size[0], 0, 1), products, 1)[None]
        bands = [make_band(sigma / 2 / self.size[axis], 0, 1) for axis in (1, 2)]
        rows, columns = (_round_up(n) + band.shape[1] - EDGE for n, band in zip(shape, bands, strict=True))
        smooth = filter_columns(filter_rows(products[:, :rows, :columns], bands[0]), bands[1])
        return smooth[0, : shape[0], : shape[1]]


def _round_up(pixels: int) -> int:
    return -(-pixels // EDGE) * EDGE


def reach(sigma: float) -> int:
    """Returns the radius of a Gaussian kernel, in pixels."""
    return int(TRUNCATE * sigma + 0.5)


@functools.lru_cache(maxsize=256)
def make_kernel(sigma: float, order: int, unit: float) -> NDArray[np.float32]:
    """Returns a Gaussian kernel or its derivative, to be slid over an image as it is (a correlation); scipy's values.

    Sigma is in pixels; derivatives, of order 1 or 2, are multiplied by `unit`, 1 / pixel edge, to the power of `order`.
    """
    x = np.arange(-reach(sigma), reach(sigma) + 1, dtype=np.float64)
    gauss = np.exp(-0.5 * (x / sigma) ** 2)
    gauss /= gauss.sum()
    factors = (np.ones_like(x), x / sigma**2, x**2 / sigma**4 - 1 / sigma**2)
    return np.asarray(gauss * factors[order] * unit**order, np.float32)


@functools.lru_cache(maxsize=256)
def make_band(sigma: float, order: int, unit: float) -> NDArray[np.float32]:
    """Returns the matrix that filters `EDGE` pixels at once, shape (EDGE, EDGE + 2 * radius)."""
    weights = make_kernel(sigma, order, unit)
    band = np.zeros((EDGE, EDGE + len(weights) - 1), np.float32)
    for i in range(EDGE):
        band[i, i : i + len(weights)] = weights
    return band


def filter_rows(planes: NDArray[np.float32], band: NDArray[np.float32]) -> NDArray[np.float32]:
    """Filters along y; what remains is shorter by twice the kernel's radius and must be a multiple of `EDGE`."""
    length = planes.shape[1] - (band.shape[1] - EDGE)
    out = np.empty((planes.shape[0], length, planes.shape[2]), np.float32)
    for source, target in zip(planes, out, strict=True):
        for start in range(0, length, EDGE):
            np.matmul(band, source[start : start + band.shape[1]], out=target[start : start + EDGE])
    return out


def filter_columns(planes: NDArray[np.float32], band: NDArray[np.float32]) -> NDArray[np.float32]:
    """Filters along x; what remains is shorter by twice the kernel's radius and must be a multiple of `EDGE`."""
    length = planes.shape[2] - (band.shape[1] - EDGE)
    out = np.empty((planes.shape[0], planes.shape[1], length), np.float32)
    for source, target in zip(planes, out, strict=True):
        for start in range(0, length, EDGE):
            np.matmul(source[:, start : start + band.shape[1]], band.T, out=target[:, start : start + EDGE])
    return out


def find_eigenvalues(entries: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], ...]:
    """Returns the eigenvalues, largest first, of symmetric 2 x 2 or 3 x 3 matrices: 3 or 6 arrays, upper triangle by row.

    For 3 x 3 by the formula of Smith (1961), doi:10.1145/355578.366316.
    """
    if len(entries) == 3:
        yy, yx, xx = entries
        half = np.float32(0.5)
        middle, spread = (yy + xx) * half, (yy - xx) * half
        spread *= spread
        spread += yx * yx
        np.sqrt(spread, out=spread)
        return middle + spread, middle - spread
    # in float64: the formula takes differences of nearly equal numbers
    a, d, e, b, f, c = (entry.astype(np.float64) for entry in entries)
    mean = (a + b + c) / 3
    a, b, c = a - mean, b - mean, c - mean
    size = np.sqrt((a**2 + b**2 + c**2 + 2 * (d**2 + e**2 + f**2)) / 6)
    determinant = a * (b * c - f**2) - d * (d * c - f * e) + e * (d * f - b * e)
    with np.errstate(divide="ignore", invalid="ignore"):
        angle = np.arccos(np.clip(np.where(size > 0, determinant / (2 * size**3), 1), -1, 1)) / 3
    large = mean + 2 * size * np.cos(angle)
    small = mean + 2 * size * np.cos(angle + 2 * np.pi / 3)
    return tuple(np.asarray(value, np.float32) for value in (large, 3 * mean - large - small, small))
