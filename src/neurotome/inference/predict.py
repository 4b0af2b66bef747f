"""predict: a model applied to an image, a stack or a folder of them; label files of the same shape come out."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from neurotome.classes import Palette
from neurotome.errors import ImageError, RunError, SettingsError
from neurotome.inference.resample import choose_shape, resize
from neurotome.io.files import OUTPUT_SUFFIXES as SUFFIXES
from neurotome.io.images import check_grey, read_image, write_colours, write_image, write_labels
from neurotome.load import load_predictor
from neurotome.normalize import Scale
from neurotome.predictor import TILE, Predictor, Slice, predict_slice
from neurotome.progress import Progress
from neurotome.volume import Volume, to_display


@dataclass(frozen=True)
class PredictSettings:
    """How a model is applied."""

    tile: int | Literal["auto"] = "auto"
    """Edge of a tile in pixels; larger images are predicted in overlapping tiles. auto: the edge that suits the model."""

    halo: int | Literal["auto"] = "auto"
    """Pixels read around a tile; auto: as many as the model can see, so that tiles equal the whole image."""

    overlay: bool = False
    """Write OUTPUT_overlay.png (a .tif for stacks): the image with the classes laid over it."""

    show: tuple[str, ...] = ()
    """Classes that the overlay shows; all but class 0 if none is named."""

    confidence: bool = False
    """Write OUTPUT_confidence.png (a .tif for stacks): the probability of the chosen class times 255."""

    palette: Palette = "colour-blind-safe"
    """Colours of the overlay."""

    invert: bool = False
    """Flip the grey values first: for images in which vessels and cells are brighter than the tissue around them."""

    voxel_size_um: float | Literal["auto"] = "auto"
    """Edge of the image's pixels in micrometres; auto: what the file says. Where the model's differs, slices are resampled
    to it and the labels brought back."""

    existing: Literal["refuse", "skip", "replace"] = "refuse"
    """What to do where an output is there already; skip finishes a folder that was stopped."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to predict."""


def predict(
    model: str | Path,
    input: str | Path | NDArray[Any],
    output: str | Path | None = None,
    *,
    settings: Annotated[PredictSettings, Parameter(name="*")] = PredictSettings(),
) -> NDArray[np.uint8] | list[Path]:
    """Labels images with a trained model.

    Args:
        model: Run folder, model folder or the name of a packaged model.
        input: An image or stack (.png, .tif, .npy), a folder of them, or an array (y, x) or (z, y, x).
        output: Label file, or for a folder the folder to write label files to; not needed for an array.
        settings: How the model is applied.

    Returns:
        For an array its labels, uint8, same shape; otherwise the label files written.

    Raises:
        ModelError: The model cannot be loaded.
        ImageError: An image cannot be read or does not fit the model.
        RunError: An output is there already.
    """
    _check_settings(settings)
    predictor = load_predictor(Path(model), settings.device)
    shown = [predictor.classes.index(name) for name in settings.show] or list(range(1, len(predictor.classes)))
    if not isinstance(input, (str, Path)):
        if input.ndim not in (2, 3):
            raise ImageError(f"the array: shape {input.shape}; expected (y, x) or (z, y, x).")
        volume = Volume(input if input.ndim == 3 else input[None], "array")
        check_grey(volume.data, "the array")
        volume = _place_voxels(volume, settings)
        _note_unknown_size(volume, predictor.voxel_size_um)
        labels, _ = predict_volume(predictor, volume, settings)
        if output is not None:
            _check_free(Path(output), settings)
            write_labels(output, labels)
        return labels.reshape(input.shape)
    if output is None:
        raise SettingsError("no output named; expected a file, or a folder where the input is one.")
    pairs = _pair_files(Path(input), Path(output), settings)
    noted = False
    for number, (source, target) in enumerate(pairs, start=1):
        volume = _place_voxels(read_image(source), settings)
        noted = noted or _note_unknown_size(volume, predictor.voxel_size_um)
        if volume.shape[0] > 1 and target.suffix.lower() == ".png":
            raise RunError(f"{target}: a PNG file holds one slice, {source} has {volume.shape[0]}. Use the suffix .tif.")
        title = f"predicting {source.name}" + (f" ({number} of {len(pairs)})" if len(pairs) > 1 else "")
        progress = Progress(title, volume.data.size / 1e6, "Mpixel")
        labels, confidence = predict_volume(predictor, volume, settings, progress.update)
        if volume.shape[0] == 1:
            labels, confidence, grey = labels[0], confidence[0], volume.data[0]
        else:
            grey = volume.data
        if settings.confidence:
            write_image(_beside(target, "confidence"), confidence)
        if settings.overlay:
            classes = predictor.classes.with_palette(settings.palette)
            coloured = classes.overlay(to_display(grey), np.where(np.isin(labels, shown), labels, 0))
            write_colours(_beside(target, "overlay"), coloured)
        write_labels(target, labels)
        progress.finish(f"{target}")
    return [target for _, target in pairs]


def predict_volume(
    predictor: Predictor,
    volume: Volume,
    settings: PredictSettings = PredictSettings(),
    on_progress: Callable[[float], None] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Labels a volume slice by slice, at the predictor's voxel size if both sizes are known and differ.

    Args:
        predictor: A network or pixel classifier.
        volume: What to label.
        settings: Tile and halo.
        on_progress: Called with the Mpixels done so far.

    Returns:
        Labels, and the probability of the chosen class times 255; uint8, shape (z, y, x).

    Raises:
        ImageError: The volume has no scale that fits the predictor, or a voxel size that cannot be right.
    """
    shape = choose_shape(volume, predictor.voxel_size_um)
    tile = (predictor.preferred_tile or TILE) if settings.tile == "auto" else settings.tile
    halo = None if settings.halo == "auto" else settings.halo
    if max(shape) > tile and not predictor.bounded:
        warnings.warn(
            f"{volume.path or volume.name}: this network looks at the whole image at once, so tiles of "
            f"{tile} pixels only approximate it. Raise tile above {max(shape)} if memory allows.",
            stacklevel=2,
        )
    if settings.invert:
        volume = invert_grey(volume)
    scale = predictor.normalization.scale_for(volume)
    labels = np.empty(volume.shape, np.uint8)
    confidence = np.empty(volume.shape, np.uint8)
    done = 0.0

    def count(pixels: int) -> None:
        nonlocal done
        done += pixels * (volume.shape[1] * volume.shape[2]) / (shape[0] * shape[1])
        if on_progress is not None:
            on_progress(done / 1e6)

    for z in range(volume.shape[0]):
        image: Slice = Context(volume, z, predictor.in_channels, scale)
        if shape != volume.shape[1:]:
            image = resize(image[:, :, :], shape)
        probs = resize(predict_slice(predictor, image, tile, halo, count), volume.shape[1:])
        labels[z] = probs.argmax(0)
        confidence[z] = (probs.max(0) * 255).round()
    return labels, confidence


@dataclass(frozen=True)
class Context:
    """A slice of a volume with its neighbours, scaled piece by piece: hundreds of slices would not fit into memory whole."""

    volume: Volume
    z: int
    slices: int
    scale: Scale

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, y and x."""
        return self.slices, self.volume.shape[1], self.volume.shape[2]

    def __getitem__(self, key: tuple[slice, slice, slice]) -> NDArray[np.float32]:
        """Returns a piece of all slices."""
        return self.scale.apply(self.volume.read_context(self.z, self.slices, *key[1:]))


def _place_voxels(volume: Volume, settings: PredictSettings) -> Volume:
    """Returns a volume of the voxel size that was asked for, if one was."""
    edge = settings.voxel_size_um
    return volume if edge == "auto" else dataclasses.replace(volume, voxel_size_um=(edge, edge, edge))


def _check_settings(settings: PredictSettings) -> None:
    if settings.tile != "auto" and settings.tile < 32:
        raise SettingsError(f"tile is {settings.tile}; expected at least 32 pixels, or auto.")
    if settings.halo != "auto" and settings.halo < 0:
        raise SettingsError(f"halo is {settings.halo}; expected 0 pixels or more, or auto.")
    if settings.voxel_size_um != "auto" and not 0 < settings.voxel_size_um < math.inf:
        raise SettingsError(f"voxel_size_um is {settings.voxel_size_um}; expected micrometres, or auto.")


def _note_unknown_size(volume: Volume, expected_um: tuple[float, float, float] | None) -> bool:
    """Says so if the model has a voxel size and the volume has none, and returns whether it has said so."""
    if expected_um is None or volume.voxel_size_um is not None:
        return False
    warnings.warn(
        f"{volume.path or volume.name}: the image's voxel size is not known; the model expects {expected_um[1]:.4g} x "
        f"{expected_um[2]:.4g} um (y x x). If it differs, give --voxel-size-um, or sizes will mislead the model.",
        stacklevel=3,
    )
    return True


def invert_grey(volume: Volume) -> Volume:
    """Returns a volume whose grey values are flipped between its lowest and its highest; same dtype."""
    low = min(plane.min() for plane in volume.data)
    high = max(plane.max() for plane in volume.data)
    # in this order every step fits into the dtype
    return dataclasses.replace(volume, data=(high - volume.data) + low)


def _pair_files(source: Path, target: Path, settings: PredictSettings) -> list[tuple[Path, Path]]:
    """Returns input and output files; every output's place is checked before the first image is read."""
    if not source.exists():
        raise ImageError(f"{source}: no such file or folder; expected an image, a stack or a folder of them.")
    if not source.is_dir():
        if target.is_dir():
            target = target / _name_labels(source)
        pairs = [(source, target)]
    else:
        if target.suffix in SUFFIXES:
            raise RunError(f"{target}: the input is a folder, so the output must be a folder too.")
        images = sorted(p for p in source.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        if not images:
            raise ImageError(f"{source}: no {', '.join(SUFFIXES)} file in this folder; expected at least one image.")
        stems = [image.stem for image in images]
        for stem in stems:
            if stems.count(stem) > 1:
                raise ImageError(f"{source}: more than one image is named {stem!r}; their label files would collide.")
        pairs = [(image, target / _name_labels(image)) for image in images]
    kept = [pair for pair in pairs if settings.existing != "skip" or not pair[1].exists()]
    for _, place in kept:
        _check_free(place, settings)
    return kept


def _name_labels(image: Path) -> str:
    return f"{image.stem}{'.png' if image.suffix.lower() == '.png' else '.tif'}"


def _check_free(place: Path, settings: PredictSettings) -> None:
    if place.suffix.lower() not in SUFFIXES:
        raise RunError(f"{place}: cannot write labels as {place.suffix!r}; expected {', '.join(SUFFIXES)}.")
    if place.exists() and settings.existing == "refuse":
        raise RunError(
            f"{place}: is there already. Choose another output, or say --existing replace, or --existing skip to finish "
            "a folder."
        )


def _beside(target: Path, what: str) -> Path:
    suffix = ".tif" if target.suffix.lower() in (".tif", ".tiff", ".npy") else ".png"
    return target.with_name(f"{target.stem}_{what}{suffix}")
