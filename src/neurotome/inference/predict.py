"""predict: a model applied to an image, a stack or a folder of them; label files of the same shape come out."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from neurotome.classes import ClassSet, Palette
from neurotome.errors import ImageError, SettingsError
from neurotome.inference.jobs import Job, Output, list_sources, name_beside, plan_jobs
from neurotome.io.lazy_array import LazyArray, Place
from neurotome.io.opening import check_grey, looks_like_colours, open_volume
from neurotome.outputs import Existing
from neurotome.predictor import Predictor
from neurotome.progress import Progress
from neurotome.volume import Volume

if TYPE_CHECKING:
    from neurotome.inference.slices import LabelledSlice

MOST_LISTED = 20
"""Images of a folder that could not be predicted and are listed with their reasons."""


@dataclass(frozen=True)
class PredictSettings:
    """How a model is applied."""

    tile: int | Literal["auto"] = "auto"
    """Edge of a tile in pixels; larger images are predicted in overlapping tiles. auto: the edge that suits the model."""

    halo: int | Literal["auto"] = "auto"
    """Pixels read around a tile; auto: as many as the model can see, so that tiles equal the whole image."""

    overlay: bool = False
    """Write OUTPUT_overlay.png (a .tif for stacks), the image with the classes laid over it, and OUTPUT_legend.png."""

    show: tuple[str, ...] = ()
    """Classes that the overlay shows; all but the first if none is named."""

    confidence: bool = False
    """Write OUTPUT_confidence.png (a .tif for stacks): the probability of the chosen class times 255."""

    palette: Palette = "colour-blind-safe"
    """Colours of the overlay and of label files that have colours."""

    invert: bool = False
    """Flip the grey values first: for images in which vessels and cells are brighter than the tissue around them."""

    voxel_size_um: float | Literal["auto"] = "auto"
    """Edge of the image's pixels in micrometres; auto: what the file says. Where the model's differs, slices are resampled
    to it and the labels brought back."""

    channel: int | Literal["auto"] = "auto"
    """Which channel of an image of several, from 0; auto: the only one."""

    time: int | Literal["auto"] = "auto"
    """Which time of an image of several, from 0; auto: the only one."""

    existing: Existing = "refuse"
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
    """Labels images with a trained model, in memory that does not grow with the number of slices.

    Args:
        model: Run folder, model folder or the name of a packaged model.
        input: An image or stack, a folder of them, or an array (y, x) or (z, y, x).
        output: Label file (.png, .tif, .npy or .zarr), or for a folder the folder to write label files to; not needed for
            an array.
        settings: How the model is applied.

    Returns:
        For an array its labels as they are stored, uint8, same shape; otherwise the label files written.

    Raises:
        ModelError: The model cannot be loaded.
        ImageError: An image cannot be read or does not fit the model. In a folder, the other images are done first.
        RunError: An output is there already, or is an input; nothing has been read then.
        SettingsError: A setting is out of range.
    """
    _check_settings(settings)
    asked: dict[Output, bool] = {"confidence": settings.confidence, "overlay": settings.overlay}
    beside = [kind for kind, wanted in asked.items() if wanted]
    plan = partial(plan_jobs, beside=beside, existing=settings.existing)
    if isinstance(input, (str, Path)):
        if output is None:
            raise SettingsError("no output named; expected a file, or a folder where the input is one.")
        jobs, legend = plan(*list_sources(Path(input), Path(output)))
    elif output is not None:
        array = wrap_array(input, settings)
        jobs, legend = plan([(array, Path(output))], name_beside(Path(output), "legend", ".png"))
        jobs = jobs or [Job(array, {})]
    elif beside:
        raise SettingsError("overlay and confidence are files beside an output: name one, or use predict_probs.")
    else:
        jobs, legend = [Job(wrap_array(input, settings), {})], None
    if not jobs and legend is None:
        return []
    from neurotome.load import load_predictor

    predictor = load_predictor(Path(model), settings.device)
    classes, shown = _choose_shown(predictor, settings)
    failures: list[str] = []
    noted = False
    for number, job in enumerate(jobs, start=1):
        try:
            volume = job.source if isinstance(job.source, Volume) else _open(job.source, settings)
            noted = noted or _note_unknown_size(volume, predictor.voxel_size_um)
            title = f"predicting {volume.name}" + (f" ({number} of {len(jobs)})" if len(jobs) > 1 else "")
            slices = _label(predictor, volume, job, settings, title)
            if not isinstance(input, (str, Path)):
                labels = classes.to_stored(np.stack([labelled.labels for labelled in slices]).reshape(input.shape))
            else:
                deque(slices, maxlen=0)
        except ImageError as error:
            if len(jobs) == 1:
                raise
            failures.append(str(error))
    if legend is not None:
        from neurotome.inference.overlay import write_legend

        write_legend(legend, classes, shown)
    if failures:
        listed = "\n".join(failures[:MOST_LISTED] + ["..."] * (len(failures) > MOST_LISTED))
        raise ImageError(
            f"{input}: {len(failures)} of {len(jobs)} images could not be predicted; the others are done. Mend them, or "
            f"take them out, and give the same command with --existing skip:\n{listed}"
        )
    return [job.files["labels"] for job in jobs if "labels" in job.files] if isinstance(input, (str, Path)) else labels


def predict_probs(
    model: str | Path | Predictor, image: str | Path | NDArray[Any], *, settings: PredictSettings = PredictSettings()
) -> NDArray[np.float32]:
    """Returns class probabilities of an image or stack, all of them in memory.

    Args:
        model: Run folder, model folder, the name of a packaged model, or what `load_predictor` returned.
        image: A file, or an array (y, x) or (z, y, x).
        settings: How the model is applied; what concerns files is left aside.

    Returns:
        float32, shape (classes, z, y, x), summing to 1 over the classes.

    Raises:
        NeurotomeError: As for `predict`.
    """
    from neurotome.inference.slices import predict_slices
    from neurotome.load import load_predictor

    _check_settings(settings)
    volume = _open(Path(image), settings) if isinstance(image, (str, Path)) else wrap_array(image, settings)
    predictor = load_predictor(Path(model), settings.device) if isinstance(model, (str, Path)) else model
    volume = _prepare(predictor, volume, settings)
    return np.stack(list(predict_slices(predictor, volume, tile=settings.tile, halo=settings.halo)), axis=1)


def _label(predictor: Predictor, volume: Volume, job: Job, settings: PredictSettings, title: str) -> Iterator[LabelledSlice]:
    """Yields labelled slices and writes the files of a job meanwhile."""
    from neurotome.inference.overlay import Painter
    from neurotome.inference.slices import label_slices, write_slices

    classes, shown = _choose_shown(predictor, settings)
    progress = Progress(title, math.prod(volume.shape) / 1e6, "Mpixel")
    prepared = _prepare(predictor, volume, settings)
    slices = label_slices(predictor, prepared, tile=settings.tile, halo=settings.halo, on_progress=progress.update)
    painter = Painter(volume, classes, shown) if "overlay" in job.files else None
    yield from write_slices(slices, job.files, volume, classes, painter)
    progress.finish(str(job.files.get("labels", "")))


def _choose_shown(predictor: Predictor, settings: PredictSettings) -> tuple[ClassSet, list[int]]:
    """Returns the classes in the colours that were asked for, and the ids of those that an overlay shows."""
    classes = predictor.classes.with_palette(settings.palette)
    return classes, [classes.index(name) for name in settings.show] or list(range(1 - classes.first_id, len(classes)))


def wrap_array(array: NDArray[Any], settings: PredictSettings = PredictSettings()) -> Volume:
    """Returns an array (y, x) or (z, y, x) as a volume, checked as a file would be."""
    if array.ndim not in (2, 3) or looks_like_colours(array.shape):
        raise ImageError(f"the array: shape {array.shape}; expected (y, x) or (z, y, x), grey values without colours.")
    data = array if array.ndim == 3 else array[None]
    check_grey(data, "the array")
    return Volume(data, "array", _choose_size(settings))


def _open(source: Path, settings: PredictSettings) -> Volume:
    channel, time = (None if choice == "auto" else choice for choice in (settings.channel, settings.time))
    return open_volume(source, channel=channel, time=time, voxel_size_um=_choose_size(settings))


def _choose_size(settings: PredictSettings) -> tuple[float, float, float] | None:
    edge = settings.voxel_size_um
    return None if edge == "auto" else (edge, edge, edge)


def _prepare(predictor: Predictor, volume: Volume, settings: PredictSettings) -> Volume:
    """Flips the grey values if asked to, and says so if they are unlike the training data's."""
    volume = invert_grey(volume) if settings.invert else volume
    predictor.normalization.note_unlike(volume)
    return volume


def invert_grey(volume: Volume) -> Volume:
    """Returns a volume whose grey values are flipped between its lowest and its highest when they are read; same dtype."""
    extremes = [(plane.min(), plane.max()) for plane in volume.data]
    low, high = min(lowest for lowest, _ in extremes), max(highest for _, highest in extremes)

    def read(place: Place) -> NDArray[Any]:
        flipped: NDArray[Any] = (high - np.asarray(volume.data[place])) + low  # in this order every step fits into the dtype
        return flipped

    where = volume.path or Path(volume.name)
    return dataclasses.replace(volume, data=LazyArray(where, volume.shape, volume.data.dtype, read))


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


def _check_settings(settings: PredictSettings) -> None:
    if settings.tile != "auto" and settings.tile < 32:
        raise SettingsError(f"tile is {settings.tile}; expected at least 32 pixels, or auto.")
    if settings.halo != "auto" and settings.halo < 0:
        raise SettingsError(f"halo is {settings.halo}; expected 0 pixels or more, or auto.")
    if settings.voxel_size_um != "auto" and not 0 < settings.voxel_size_um < math.inf:
        raise SettingsError(f"voxel_size_um is {settings.voxel_size_um}; expected micrometres, or auto.")
