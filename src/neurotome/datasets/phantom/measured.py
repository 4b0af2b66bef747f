"""Numbers of unlabelled slices: grey values, edges, noise, texture, slow changes, tails.

All grey values are on the phantom's scale: 0 is the darkest of an image (lumens, air), `GREY` its neuropil. So a
map g -> a * g + b with a > 0 of an image changes none of them. Axes yx, lengths in voxels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.datasets.phantom.regions import INSTRUMENT, REGIONS

GREY = REGIONS["cortex"].neuropil

DARK_SHARE = 0.72  # of neuropil's grey; what is darker, after a little smoothing, is a cell or a vessel
MARGIN = 4  # voxels around dark structures that are not flat: halo and partial volume
FINE_SIGMA = 4.0  # what is slower than this is no noise
SLOW_SIGMA = 12.0
LAGS = 4  # covariances at lags 0..3
SPECK_GREY = 220.0
ALONG_LAG = 6  # noise does not reach that far, fibres' texture does
SOMA_AREA = (32, 110)  # voxels of a profile of diameter 6.4 to 12
LUMEN_RADIUS = 3.5  # of the largest disc within a lumen
EMPTY = 0.15  # of neuropil's grey: a lumen is darker within
REACH = (-3, 9)  # voxels from a lumen's edge, inside and outside
DRAWN_OUT = 0.87  # vessels are seldom cut straight across: of blurs of 0.85 to 1.4 in phantoms 1.15 times as much is found
FEWEST_FLAT = 1500  # voxels of a tile, from which noise is measured

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]
Numbers = dict[str, float]


def smooth_within(values: Plane, mask: Mask, sigma: float) -> Plane:
    """Returns the Gaussian mean of the masked values around every voxel of (y, x), wherever some are near."""
    from scipy.ndimage import gaussian_filter

    weight = gaussian_filter(mask.astype(np.float32), sigma)
    total = gaussian_filter(np.where(mask, values, 0).astype(np.float32), sigma)
    smoothed: Plane = np.divide(total, np.maximum(weight, 1e-3), dtype=np.float32)
    return smoothed


def find_flat(tile: Plane, neuropil: float) -> Mask:
    """Returns which voxels of a tile (y, x) are neuropil or fibres, away from cells, vessels, air and specks."""
    from scipy.ndimage import binary_dilation, gaussian_filter

    smoothed = gaussian_filter(tile, 1.5)
    unlike = (smoothed < DARK_SHARE * neuropil) | (smoothed > 1.75 * neuropil)
    flat: Mask = ~binary_dilation(unlike, iterations=MARGIN)
    return flat


def find_modes(tiles: Sequence[Plane], darkest: float, centre: float) -> tuple[float, float | None]:
    """Returns the grey of neuropil and of white matter, if there are two kinds of tissue in tiles (y, x).

    Two Gaussians are fitted to the smoothed grey values by expectation maximisation (Dempster et al. 1977,
    doi:10.1111/j.2517-6161.1977.tb01600.x). They are two kinds of tissue if each has a share of at least 5 % and
    they lie 18 of `GREY` apart or more.

    Args:
        tiles: Grey values as they are in the image.
        darkest: Its darkest grey.
        centre: Its most frequent grey, roughly.
    """
    values = []
    for tile in tiles:
        flat = find_flat(tile - np.float32(darkest), centre - darkest)
        values.append(smooth_within(tile, flat, 2.5)[flat][::7])
    grey = (np.concatenate(values).astype(np.float64) - darkest) / (centre - darkest) * GREY
    if not len(grey):
        return centre, None
    low, high = np.percentile(grey, (20, 90))
    means, variances, shares = np.array([low, max(high, low + 20)]), np.full(2, max(grey.var() / 2, 4.0)), np.full(2, 0.5)
    for _ in range(60):
        density = shares * np.exp(-((grey[:, None] - means) ** 2) / (2 * variances)) / np.sqrt(variances)
        weight = density / np.maximum(density.sum(1, keepdims=True), 1e-30)
        total = weight.sum(0) + 1e-9
        means = (weight * grey[:, None]).sum(0) / total
        variances = np.maximum((weight * (grey[:, None] - means) ** 2).sum(0) / total, 4.0)
        shares = total / len(grey)
    to_image = (centre - darkest) / GREY
    if shares.min() < 0.05 or means[1] - means[0] < 18:
        return darkest + float(np.median(grey)) * to_image, None
    return darkest + means[0] * to_image, darkest + means[1] * to_image


def measure_tile(tile: Plane, white: float | None, step: float = 0.0) -> Numbers:
    """Returns what can be measured of a tile (y, x) on the phantom's grey scale; what cannot is left out.

    Args:
        tile: Grey values.
        white: Grey of white matter, where there is any.
        step: Distance of two grey values of the image: their rounding is not taken for noise.
    """
    from scipy.ndimage import binary_erosion, label

    flat = find_flat(tile, GREY)
    level = smooth_within(tile, flat, 3.0)
    middle = np.inf if white is None else (GREY + white) / 2
    neuropil, bundles = (binary_erosion(flat & kind, iterations=2) for kind in (level < middle, level >= middle))
    found: Numbers = {"dark_share": float((tile < GREY / 2).mean())}
    found["specks_per_mpx"] = label(tile >= SPECK_GREY)[1] / tile.size * 1e6
    if somas := measure_somas(tile):
        found["soma_grey"] = float(np.median(somas))
    if neuropil.sum() >= FEWEST_FLAT:
        found["neuropil_grey"] = float(np.median(tile[neuropil]))
        found |= measure_noise(tile, neuropil, step)
        slow = smooth_within(tile, neuropil, SLOW_SIGMA)[neuropil]
        found["slow_sd"] = float(slow.std())
        found["neuropil_along"] = measure_along(tile, neuropil)
    if bundles.sum() >= FEWEST_FLAT:
        found["white_grey"] = float(np.median(tile[bundles]))
        found["white_along"] = measure_along(tile, bundles)
    return found


def measure_somas(tile: Plane) -> list[float]:
    """Returns the grey within every dark profile of a tile (y, x) that has the size of a cell and is no lumen."""
    from scipy.ndimage import distance_transform_edt, find_objects, gaussian_filter, label

    dark = gaussian_filter(tile, 1.0) < DARK_SHARE * GREY
    depth = distance_transform_edt(dark)
    marked, _ = label(dark)
    somas = []
    for number, box in enumerate(find_objects(marked), start=1):
        own = marked[box] == number
        core = own & (depth[box] >= 2.5)
        if SOMA_AREA[0] <= own.sum() <= SOMA_AREA[1] and core.sum() >= 4:
            grey = float(np.mean(tile[box][core]))
            somas += [grey] if grey > EMPTY * GREY else []
    return somas


def measure_noise(tile: Plane, mask: Mask, step: float) -> Numbers:
    """Returns variance and covariances along y and x of what is fast in the masked part of a tile (y, x)."""
    fast = tile - smooth_within(tile, mask, FINE_SIGMA)
    found = {"fine_variance": float(np.mean(fast[mask] ** 2)) - step**2 / 12}
    for axis, name in ((0, "y"), (1, "x")):
        for lag in range(1, LAGS):
            near, far = np.moveaxis(fast, axis, 0), np.moveaxis(mask, axis, 0)
            both = far[lag:] & far[:-lag]
            found[f"fine_covariance_{name}{lag}"] = float((near[lag:] * near[:-lag])[both].mean()) if both.any() else 0.0
    return found


def measure_along(tile: Plane, mask: Mask) -> float:
    """Returns the covariance over `ALONG_LAG` voxels along the fibres less that across them.

    The local direction is that of the structure tensor (Bigun and Granlund 1987, Proc. ICCV, 433-438) over 12 voxels.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    fast = np.where(mask, tile - smooth_within(tile, mask, 2 * FINE_SIGMA), 0).astype(np.float32)
    gy, gx = (gaussian_filter(fast, 1.5, order=order) for order in ((1, 0), (0, 1)))
    yy, xx, xy = (gaussian_filter(product, 12.0) for product in (gy * gy, gx * gx, gy * gx))
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)  # of the steepest change: across the fibres
    y, x = np.nonzero(mask)
    y, x = y[::5], x[::5]

    def covariance(dy: NDArray[np.float32], dx: NDArray[np.float32]) -> float:
        places = np.stack([y + dy, x + dx])
        inside = map_coordinates(mask.astype(np.float32), places, order=1) > 0.99
        other = map_coordinates(fast, places, order=1)
        return float((fast[y, x] * other)[inside].mean()) if inside.any() else 0.0

    sine, cosine = ALONG_LAG * np.sin(angle[y, x]), ALONG_LAG * np.cos(angle[y, x])
    return covariance(cosine, -sine) - covariance(sine, cosine)


def predict_covariances(sigma_yx: tuple[float, float]) -> NDArray[np.float64]:
    """Returns what `measure_noise` finds of smoothed white noise of variance 1: lag 0, lags 1..3 along y, and along x."""
    size = 64
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    squares = (2 * np.pi) ** 2
    power = np.exp(-squares * ((sigma_yx[0] * fy) ** 2 + (sigma_yx[1] * fx) ** 2))
    kept = (1 - np.exp(-squares / 2 * FINE_SIGMA**2 * (fy**2 + fx**2))) ** 2
    covariances = np.fft.ifft2(power * kept).real / np.fft.ifft2(power).real[0, 0]
    return np.concatenate([[covariances[0, 0]], covariances[1:LAGS, 0], covariances[0, 1:LAGS]])


def fit_noise(covariances: NDArray[np.float64]) -> tuple[float, float, float]:
    """Returns sd and correlation sigma along y and x of the noise whose covariances (7,) `measure_noise` has found."""
    from scipy.optimize import least_squares

    shape = covariances / max(covariances[0], 1e-6)

    def miss(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        predicted = predict_covariances((float(np.exp(logs[0])), float(np.exp(logs[1]))))
        difference: NDArray[np.float64] = predicted[1:] / predicted[0] - shape[1:]
        return difference

    start = np.log([1.4, 1.0])
    sigma_y, sigma_x = np.exp(least_squares(miss, start, bounds=(np.log(0.25), np.log(3.5))).x)
    kept = predict_covariances((float(sigma_y), float(sigma_x)))[0]
    return float(np.sqrt(max(covariances[0], 0.01) / kept)), float(sigma_y), float(sigma_x)


def find_lumens(tile: Plane) -> tuple[NDArray[Any], list[int]]:
    """Returns marked dark profiles of a tile (y, x), and the numbers of those that are whole and empty within."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt, find_objects, label

    dark = binary_fill_holes(tile < GREY / 2)
    depth = distance_transform_edt(dark)
    marked, _ = label(dark)
    lumens = []
    for number, box in enumerate(find_objects(marked), start=1):
        if any(p.start == 0 or p.stop == n for p, n in zip(box, tile.shape, strict=True)):
            continue
        own = marked[box] == number
        # wider than a capillary along its course, emptier than any cell
        if depth[box][own].max() >= LUMEN_RADIUS and np.median(tile[box][own & (depth[box] >= 2.5)]) < EMPTY * GREY:
            lumens.append(number)
    return marked, lumens


def measure_lumens(tile: Plane) -> tuple[list[NDArray[np.float64]], list[float]]:
    """Returns the mean grey at each of `REACH`'s distances from the edge of every lumen in a tile (y, x), and their radii.

    The tissue around is at `GREY`.
    """
    from scipy.ndimage import distance_transform_edt, find_objects

    marked, lumens = find_lumens(tile)
    boxes = find_objects(marked)
    profiles, radii = [], []
    for number in lumens:
        grown = tuple(
            slice(max(p.start - 16, 0), min(p.stop + 16, n)) for p, n in zip(boxes[number - 1], tile.shape, strict=True)
        )
        own = marked[grown] == number
        others = (marked[grown] > 0) & ~own
        grey = tile[grown]
        clear = distance_transform_edt(~others) > 5 if others.any() else np.ones(own.shape, bool)
        distance = distance_transform_edt(~own) - distance_transform_edt(own) + np.where(own, 0.5, -0.5)
        around = clear & (distance > 10) & (distance < 16)
        # beside an obliquely cut vessel the edge is as sharp as it is, at its ends it is drawn out
        places = np.argwhere(own)
        course = np.linalg.eigh(np.cov(places.T))
        along = np.moveaxis(np.indices(own.shape), 0, -1) - places.mean(0)
        clear &= abs(along @ course[1][:, 1]) < np.sqrt(course[0][1])
        rings = [clear & (abs(distance - (d + 0.5)) <= 0.5) for d in range(*REACH)]
        if around.sum() < 50 or any(ring.sum() < 4 for ring in rings):
            continue
        level = float(np.median(grey[around]))
        profiles.append(np.array([grey[ring].mean() for ring in rings]) / level * GREY)
        radii.append(float(np.sqrt(own.sum() / np.pi)))
    return profiles, radii


def fit_edges(profile: NDArray[np.float64], radii: Sequence[float], lumen: float) -> tuple[float, float, float]:
    """Returns blur sigma, edge gain and edge sigma with which round lumens look like a measured mean profile.

    Discs of the radii found are drawn, recorded as `image.record_image` does, and measured as the image was.

    Args:
        profile: Mean of what `measure_lumens` returned.
        radii: The radii it returned.
        lumen: Grey painted within them.
    """
    from scipy.ndimage import gaussian_filter
    from scipy.optimize import minimize

    discs = []
    for number, radius in enumerate(np.quantile(radii, (0.25, 0.5, 0.75))):
        edge = int(2 * radius) + 36
        fine = np.hypot(*(np.mgrid[: 4 * edge, : 4 * edge] / 4 - edge / 2 - 0.25 * number)) < radius
        share = fine.reshape(edge, 4, edge, 4).mean((1, 3))
        discs.append((GREY + (lumen - GREY) * share).astype(np.float32))

    def record(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        blur, gain, wider = numbers
        looks = []
        for disc in discs:
            sharp, wide = gaussian_filter(disc, blur), gaussian_filter(disc, wider)
            looks += measure_lumens(np.clip(sharp + gain * (sharp - wide), 0, None))[0]
        return np.mean(looks, axis=0) if looks else np.zeros(len(profile))

    def miss(numbers: NDArray[np.float64]) -> float:
        blur, gain, wider = (float(number) for number in numbers)
        outside = max(0.3 - blur, 0) + max(-gain, 0) + max(blur + 0.4 - wider, 0) + max(wider - 6, 0) + max(gain - 5, 0)
        if outside > 0:
            return 1e4 * (1 + outside)
        # a little blur more and a little gain more look alike, and so do a weak halo's gain and width
        prior = 100 * np.log(wider / INSTRUMENT.edge_sigma) ** 2
        prior += 20 * np.log(blur / INSTRUMENT.blur_sigma) ** 2 + 5 * np.log((gain + 0.01) / INSTRUMENT.edge_gain) ** 2
        return float(np.mean((record(numbers) - profile) ** 2) + prior)

    found = minimize(miss, (1.1, 1.5, 2.8), method="Nelder-Mead", options={"maxfev": 60, "xatol": 0.03, "fatol": 0.1}).x
    return DRAWN_OUT * float(found[0]), float(found[1]), float(found[2])


def pool(tiles: Iterable[Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    """Returns for every number the values of the tiles that have it."""
    pooled: dict[str, list[float]] = {}
    for numbers in tiles:
        for name, value in numbers.items():
            pooled.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in pooled.items()}
