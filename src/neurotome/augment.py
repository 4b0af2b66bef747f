"""Augmentation of training batches, on the device: every sample draws its own transform.

Flips and quarter turns only move pixels, so they are index operations and exact. Rotation, zoom and elastic deformation
share one sampling grid, so an image is interpolated once; a sample that draws none of them is not interpolated at all.
Intensities are expected standardised (mean about 0, standard deviation about 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from neurotome.errors import ImageError, SettingsError
from neurotome.lazy import lazy_import

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor

    Change = Callable[[Tensor, "AugmentSettings", "Draws"], Tensor]
else:
    torch = lazy_import("torch")

# Choi, Lee (2000), doi:10.1006/gmod.2000.0531: a 2D cubic B-spline deformation cannot fold while every
# coefficient is below spacing / 2.046392675
FOLDING = 2.046392675


@dataclass(frozen=True)
class AugmentSettings:
    """What may happen to a training sample; a probability is per sample."""

    enabled: bool = True
    """Augment at all."""
    flip_vertical: float = 0.5
    """Probability of exchanging top and bottom."""
    flip_horizontal: float = 0.5
    """Probability of exchanging left and right."""
    flip_depth: float = 0.5
    """Probability of exchanging the first and the last slices of a 3D patch; nothing else moves voxels along z."""
    quarter_turns: bool = True
    """Turn by 0, 90, 180 or 270 degrees, each equally likely; needs square patches."""
    rotate_degrees: tuple[float, float] = (-45.0, 45.0)
    """Range of rotation, counter-clockwise; (0, 0) is off. Quarter turns and -45..45 reach every angle."""
    rotate_probability: float = 0.15
    """Probability of rotating."""
    scale: tuple[float, float] = (0.85, 1.2)
    """Range of zoom factors, drawn log-uniformly; above 1 enlarges, (1, 1) is off."""
    scale_probability: float = 0.15
    """Probability of zooming."""
    elastic_pixels: float = 6.0
    """Largest elastic displacement along an axis, in pixels (about 0.28 of it is typical); 0 is off."""
    elastic_spacing: float = 32.0
    """Distance between the control points of the elastic deformation, in pixels."""
    elastic_probability: float = 0.1
    """Probability of deforming."""
    interpolation: Literal["bilinear", "nearest"] = "bilinear"
    """How a grey value between pixels is found; nearest takes one of them (torchvision's default, the founding report's)."""
    padding: Literal["reflection", "constant"] = "reflection"
    """Image beyond its border: mirrored, or `fill`."""
    fill: float = 0.0
    """Scaled grey value of constant padding: 0 is the training mean, -mean/std is grey value 0."""
    corners: Literal["ignore", "background"] = "ignore"
    """Label of pixels from beyond the border: not labelled, or class 0 (the founding report's recipe)."""
    brightness: float = 0.2
    """Largest value added or subtracted, in standard deviations of the training images; 0 is off."""
    contrast: tuple[float, float] = (0.8, 1.25)
    """Range of factors on the distance from the sample's mean, drawn log-uniformly; (1, 1) is off."""
    gamma: tuple[float, float] = (0.8, 1.25)
    """Range of exponents on grey values rescaled to the sample's range, log-uniform; (1, 1) is off."""
    noise: float = 0.15
    """Largest standard deviation of added Gaussian noise, in that of the training images; 0 is off."""
    blur: float = 1.0
    """Largest standard deviation of Gaussian blur, in pixels; 0 is off."""
    intensity_probability: float = 0.15
    """Probability of each of brightness, contrast, gamma, noise and blur."""


_PROBABILITY = (lambda value: 0 <= value <= 1, "a probability from 0 to 1")
_LARGEST = (lambda value: 0 <= value < math.inf, "0 (off) or more")
_FACTORS = (lambda pair: 0 < pair[0] <= pair[1] < math.inf, "0 < low <= high; 1, 1 is off")

_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("flip_vertical", "flip_horizontal", "flip_depth", "rotate_probability"), _PROBABILITY),
    **dict.fromkeys(("scale_probability", "elastic_probability", "intensity_probability"), _PROBABILITY),
    **dict.fromkeys(("elastic_pixels", "brightness", "noise", "blur"), _LARGEST),
    **dict.fromkeys(("scale", "contrast", "gamma"), _FACTORS),
    "rotate_degrees": (lambda pair: -math.inf < pair[0] <= pair[1] < math.inf, "low <= high; 0, 0 is off"),
    "elastic_spacing": (lambda value: 1 <= value < math.inf, "1 pixel or more"),
    "fill": (math.isfinite, "a finite scaled grey value"),
    "interpolation": (lambda word: word in ("bilinear", "nearest"), "bilinear or nearest"),
    "padding": (lambda word: word in ("reflection", "constant"), "reflection or constant"),
    "corners": (lambda word: word in ("ignore", "background"), "ignore or background"),
}
"""What the value of a field must fulfil, and how a message says it."""


def check_augment(settings: AugmentSettings) -> None:
    """Raises a SettingsError that names the field, its value and what is expected, unless the settings can work."""
    for name, (fits, expected) in _RULES.items():
        if not fits(getattr(settings, name)):
            raise SettingsError(f"augment.{name} is {getattr(settings, name)}; expected {expected}.")
    if settings.elastic_pixels * FOLDING > settings.elastic_spacing:
        raise SettingsError(
            f"augment.elastic_pixels is {settings.elastic_pixels}, which can fold the image over itself at elastic_spacing "
            f"{settings.elastic_spacing}; expected at most {settings.elastic_spacing / FOLDING:.3g}. Lower it or widen the "
            "spacing."
        )


def scale_augment(settings: AugmentSettings, strength: float) -> AugmentSettings:
    """Returns settings whose changes are `strength` times as large and as likely; 1: as they are, 0: none.

    Probabilities end at 1, rotations at half a turn and elastic displacements where they would fold; ranges of factors are
    taken to the power of `strength`. Flips and quarter turns stay, because a slice is as likely one way round as the other.

    Raises:
        SettingsError: The strength is negative or not finite.
    """
    if not 0 <= strength < math.inf:
        raise SettingsError(f"augment.strength is {strength}; expected a finite factor of 0 (no change) or more.")
    names = ("rotate_probability", "scale_probability", "elastic_probability", "intensity_probability")
    changed: dict[str, Any] = {name: min(1.0, getattr(settings, name) * strength) for name in names}
    changed |= {name: getattr(settings, name) * strength for name in ("brightness", "noise", "blur")}
    for name in ("scale", "contrast", "gamma"):
        low, high = getattr(settings, name)
        changed[name] = (low**strength, high**strength)
    low, high = settings.rotate_degrees
    changed["rotate_degrees"] = (max(-180.0, low * strength), min(180.0, high * strength))
    folding = math.nextafter(settings.elastic_spacing / FOLDING, 0)
    changed["elastic_pixels"] = min(folding, settings.elastic_pixels * strength)
    return replace(settings, **changed)


def augment(
    images: Tensor,
    labels: Tensor,
    settings: AugmentSettings,
    ignore: int,
    generator: Generator,
    first: int = 0,
    count: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Transforms every sample of a batch in its own way.

    All channels of a sample (neighbouring slices) get the same geometry and grey-value curve; noise is independent per pixel
    and channel. The inputs are left as they are. 3D patches are such samples, whose slices are all labelled: they are
    turned, zoomed, bent and blurred within their slices only, since voxels may be deeper than wide, and flipped along z too.

    Args:
        images: Scaled grey values, float32, shape (n, c, y, x), on any device; of 3D patches (n, z, y, x).
        labels: Class ids or the ignore value, integers 0..255, shape (n, y, x) or (n, z, y, x), on the same device.
        settings: What may happen.
        ignore: Label value that means "not labelled".
        generator: Source of all randomness, on the CPU, so that a seed gives the same draws on every device; only the noise
            of single pixels is drawn on the device, from a seed of this generator, and differs between kinds of devices.
        first: Where in its batch the first of these samples is, if others of it are elsewhere.
        count: Samples of that batch; None: these are all. Each is transformed as if all were here.

    Returns:
        Images and labels of the same shapes, dtypes and device.

    Raises:
        SettingsError: A setting cannot work, or quarter turns meet patches that are not square.
        ImageError: The tensors are not of these shapes and dtypes.
    """
    check_augment(settings)
    fits = images.ndim == 4 and labels.shape in ((len(images), *images.shape[2:]), images.shape)
    if not fits or images.dtype != torch.float32 or labels.is_floating_point():
        raise ImageError(
            f"images are {images.dtype} {tuple(images.shape)}, labels {labels.dtype} {tuple(labels.shape)}; "
            "expected float32 (n, c, y, x) and integers (n, y, x), or (n, z, y, x) both."
        )
    if not settings.enabled:
        return images, labels
    draws = Draws(generator, len(images) if count is None else count, slice(first, first + len(images)))
    if labels.ndim == 4:
        turned = draws.chance(settings.flip_depth)
        images, labels = _move_some(turned[draws.rows], images, labels, lambda batch: batch.flip(-3))
    images, labels = _flip_and_turn(images, labels, settings, draws)
    images, labels = _warp(images, labels, settings, ignore, draws)
    if settings.blur:
        images = _change_some(images, settings, draws, _blur)
    images = _change_contrast(images, settings, draws)
    if settings.gamma != (1, 1):
        images = _change_some(images, settings, draws, _change_gamma)
    if settings.noise:
        images = _change_some(images, settings, draws, _add_noise)
    return images, labels


class Draws:
    """What is drawn for the samples of a batch, of which only some, `rows`, may be here.

    It is drawn for all of them, so that those here get the same wherever the others are.
    """

    def __init__(self, generator: Generator, count: int, rows: slice) -> None:
        self.generator, self.count, self.rows = generator, count, rows

    def uniform(self, low: float, high: float) -> Tensor:
        """Returns a number for each sample of the batch, float64."""
        return low + (high - low) * torch.rand(self.count, generator=self.generator, dtype=torch.float64)

    def log_uniform(self, bounds: tuple[float, float]) -> Tensor:
        """Returns a factor for each sample of the batch, float64."""
        return self.uniform(math.log(bounds[0]), math.log(bounds[1])).exp()

    def chance(self, probability: float) -> Tensor:
        """Returns for each sample of the batch whether something happens to it."""
        return torch.rand(self.count, generator=self.generator, dtype=torch.float64) < probability

    def among(self, picked: Tensor) -> tuple[Tensor, Draws]:
        """Returns which of the samples here are picked, by their places here, and the draws for all that are.

        Args:
            picked: Places in the batch, increasing.
        """
        start, stop = (int((picked < end).sum()) for end in (self.rows.start, self.rows.stop))
        return picked[start:stop] - self.rows.start, Draws(self.generator, len(picked), slice(start, stop))


def _send(values: Tensor, device: torch.device) -> Tensor:
    """Returns values on a device, without waiting for what that still has to do."""
    return values.to(device, non_blocking=True)


def _per_sample(values: Tensor, device: torch.device) -> Tensor:
    return _send(values.to(torch.float32), device).view(-1, 1, 1, 1)


def _flip_and_turn(images: Tensor, labels: Tensor, settings: AugmentSettings, draws: Draws) -> tuple[Tensor, Tensor]:
    """Flips, then turns counter-clockwise; equal to `torch.flip` and `torch.rot90`."""
    height, width = images.shape[-2:]
    upside = draws.chance(settings.flip_vertical)
    sideways = draws.chance(settings.flip_horizontal)
    if settings.quarter_turns:
        if height != width:
            raise SettingsError(
                f"augment.quarter_turns needs square patches, found {height} x {width} pixels; take square "
                "patches or set quarter_turns to false."
            )
        turns = torch.randint(4, (draws.count,), generator=draws.generator)
        # a quarter turn is a transposition and a flip; a flip before a transposition is the other one after
        transposed = turns % 2 == 1
        upside, sideways = sideways.where(transposed, upside), upside.where(transposed, sideways)
        upside, sideways = upside ^ (turns % 3 != 0), sideways ^ (turns >= 2)
        images, labels = _move_some(transposed[draws.rows], images, labels, lambda batch: batch.transpose(-1, -2))
    images, labels = _move_some(upside[draws.rows], images, labels, lambda batch: batch.flip(-2))
    return _move_some(sideways[draws.rows], images, labels, lambda batch: batch.flip(-1))


def _move_some(chosen: Tensor, images: Tensor, labels: Tensor, move: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Moves the pixels of the chosen samples."""
    if not chosen.any():
        return images, labels
    at = _send(chosen.nonzero()[:, 0], images.device)
    return images.index_copy(0, at, move(images[at])), labels.index_copy(0, at, move(labels[at]))


def _warp(images: Tensor, labels: Tensor, settings: AugmentSettings, ignore: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Rotates, zooms and deforms the samples that drew any of it."""
    angle = draws.uniform(*settings.rotate_degrees).deg2rad()
    angle = angle * draws.chance(settings.rotate_probability)
    zoom = draws.log_uniform(settings.scale)
    zoom = zoom.where(draws.chance(settings.scale_probability), 1.0)
    bend = draws.chance(settings.elastic_probability if settings.elastic_pixels else 0.0)
    picked = ((angle != 0) | (zoom != 1) | bend).nonzero()[:, 0]
    here, some = draws.among(picked)
    grid = _build_grid(images, angle[picked], zoom[picked], bend[picked], settings, some)
    if not len(here):
        return images, labels
    at = _send(here, images.device)
    sample = torch.nn.functional.grid_sample
    # mirrored tissue beyond the border: a constant would draw an edge that no image has, and the network
    # would see it from the labelled pixels beside it
    if settings.padding == "reflection":
        warped = sample(images[at], grid, settings.interpolation, "reflection", align_corners=False)
    else:
        warped = sample(images[at] - settings.fill, grid, settings.interpolation, align_corners=False) + settings.fill
    # shifted so that the zeros beyond the border are the invented pixels' label, whatever the classes
    invented = ignore if settings.corners == "ignore" else 0
    shifted = labels[at].to(torch.float32).view(len(at), -1, *labels.shape[-2:]) - invented
    moved = sample(shifted, grid, mode="nearest", align_corners=False) + invented
    moved = moved.reshape(len(at), *labels.shape[1:]).to(labels.dtype)
    return images.index_copy(0, at, warped), labels.index_copy(0, at, moved)


def _build_grid(
    images: Tensor, angle: Tensor, zoom: Tensor, bend: Tensor, settings: AugmentSettings, draws: Draws
) -> Tensor:
    """Returns where each pixel of the result comes from, shape (n, y, x, 2), for `align_corners=False`.

    The samples are turned counter-clockwise by `angle` (radians), enlarged by `zoom`, and deformed where `bend`; n of them
    are here.
    """
    height, width = images.shape[-2:]
    device = images.device
    y = (torch.arange(height, device=device) + (0.5 - height / 2)).view(1, -1, 1)
    x = (torch.arange(width, device=device) + (0.5 - width / 2)).view(1, 1, -1)
    if bend.any():
        rows = _bspline_weights(height, settings.elastic_spacing)
        columns = _bspline_weights(width, settings.elastic_spacing)
        knots = 2 * torch.rand(draws.count, 2, rows.shape[1], columns.shape[1], generator=draws.generator) - 1
        knots = (knots * (settings.elastic_pixels * bend).to(torch.float32).view(-1, 1, 1, 1))[draws.rows]
        shift = _send(rows, device) @ _send(knots, device) @ _send(columns, device).T
        # in pixels of the result, where zoom cannot make the deformation fold
        y, x = y + shift[:, 0], x + shift[:, 1]
    cosine = _per_sample((angle.cos() / zoom)[draws.rows], device)[..., 0]
    sine = _per_sample((angle.sin() / zoom)[draws.rows], device)[..., 0]
    source_x = (x * cosine - y * sine) * (2 / width)
    source_y = (x * sine + y * cosine) * (2 / height)
    return torch.stack((source_x, source_y), dim=-1)


def _bspline_weights(size: int, spacing: float) -> Tensor:
    """Returns the weight of each control point at each pixel centre, float32, shape (size, control points).

    The uniform cubic B-spline of free-form deformation (Rueckert et al. 1999, doi:10.1109/42.796284). Weights are not
    negative and sum to 1, so no pixel moves further than a control point.
    """
    position = (torch.arange(size, dtype=torch.float64) + 0.5) / spacing
    knots = torch.arange(-1, math.ceil(size / spacing) + 2, dtype=torch.float64)
    distance = (position[:, None] - knots).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far).to(torch.float32)


def _change_some(images: Tensor, settings: AugmentSettings, draws: Draws, change: Change) -> Tensor:
    """Changes the samples that drew it."""
    here, some = draws.among(draws.chance(settings.intensity_probability).nonzero()[:, 0])
    picked = _send(here, images.device)
    return images.index_copy(0, picked, change(images[picked], settings, some)) if some.count else images


def _blur(images: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
    """Blurs with a Gaussian cut at three of the largest standard deviations; border pixels are repeated."""
    # a sampled Gaussian narrower than this is 1 at its centre in float32, and 0 would divide by 0
    sigma = draws.uniform(0.0, settings.blur).clamp(min=0.05)[draws.rows]
    if not len(images):  # which cannot be groups of a convolution
        return images
    reach = math.ceil(3 * settings.blur)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma[:, None]) ** 2)
    taps = (taps / taps.sum(dim=1, keepdim=True)).repeat_interleave(images.shape[1], dim=0)
    kernels = _per_sample(taps, images.device).view(len(taps), 1, 1, -1)
    planes = images.flatten(0, 1)[None]  # every channel of every sample is a channel of one image
    planes = torch.nn.functional.pad(planes, (reach, reach, reach, reach), mode="replicate")
    for kernel in (kernels, kernels.transpose(-1, -2)):
        planes = torch.nn.functional.conv2d(planes, kernel, groups=len(taps))
    return planes.view(images.shape)


def _change_contrast(images: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
    """Stretches grey values about the sample's mean, then adds brightness."""
    added = draws.uniform(-settings.brightness, settings.brightness)
    added = (added * draws.chance(settings.intensity_probability))[draws.rows]
    factor = draws.log_uniform(settings.contrast)
    factor = factor.where(draws.chance(settings.intensity_probability), 1.0)[draws.rows]
    picked = ((added != 0) | (factor != 1)).nonzero()[:, 0]
    if not len(picked):
        return images
    at = _send(picked, images.device)
    some, stretch = images[at], _per_sample(factor[picked], images.device)
    mean = some.mean(dim=(1, 2, 3), keepdim=True)
    changed = some * stretch + (mean * (1 - stretch) + _per_sample(added[picked], images.device))
    return images.index_copy(0, at, changed)


def _change_gamma(images: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
    """Raises grey values, rescaled to 0..1 over the sample, to a power, and scales them back."""
    exponent = _per_sample(draws.log_uniform(settings.gamma)[draws.rows], images.device)
    low = images.amin(dim=(1, 2, 3), keepdim=True)
    span = images.amax(dim=(1, 2, 3), keepdim=True) - low
    share = (images - low) / torch.where(span > 0, span, 1.0)
    return share**exponent * span + low


def _add_noise(images: Tensor, settings: AugmentSettings, draws: Draws) -> Tensor:
    """Adds independent Gaussian noise to every pixel."""
    sigma = _per_sample(draws.uniform(0.0, settings.noise)[draws.rows], images.device)
    # drawn where the images are: sending so many numbers would make the host wait for all that a GPU still has to do
    seed = int(torch.randint(2**62, (), generator=draws.generator))
    generator = torch.Generator(images.device).manual_seed(seed)
    noise = torch.randn((draws.count, *images.shape[1:]), generator=generator, device=images.device)[draws.rows]
    return images + noise * sigma
