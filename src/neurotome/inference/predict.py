"""predict: a model applied to an image, a stack or a folder of them; label files of the same shape come out."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from neurotome.classes import Palette
from neurotome.errors import ImageError, SettingsError
from neurotome.inference.jobs import Job, Output, list_sources, plan_jobs
from neurotome.io.chunks import ChunkMap, list_chunks
from neurotome.io.lazy_array import LazyArray, Place
from neurotome.io.opening import check_grey, looks_like_colours, open_volume
from neurotome.outputs import Existing
from neurotome.predictor import Device, Predictor
from neurotome.progress import Progress
from neurotome.sampling import is_large, sample_boxes
from neurotome.volume import Volume

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

    device: Device = "auto"
    """Where to predict: auto (a GPU if there is one), cpu, cuda, cuda:1 (the second GPU) or mps."""


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
    image = Path(input) if isinstance(input, (str, Path)) else _open(input, settings)
    jobs, legend = _plan(image, output, settings)
    if not jobs and legend is None:
        return []
    from neurotome.inference.overlay import Painter, write_legend
    from neurotome.inference.slices import label_slices, predict_slices
    from neurotome.load import load_predictor

    predictor = load_predictor(Path(model), settings.device)
    classes = predictor.classes.with_palette(settings.palette)
    shown = [classes.index(name) for name in settings.show] or list(range(1 - classes.first_id, len(classes)))
    failures: list[str] = []
    noted = False
    for number, job in enumerate(jobs, start=1):
        try:
            volume = job.source if isinstance(job.source, Volume) else _open(job.source, settings)
            noted = noted or _note_unknown_size(volume, predictor.voxel_size_um)
            title = f"predicting {volume.name}" + (f" ({number} of {len(jobs)})" if len(jobs) > 1 else "")
            progress = Progress(title, math.prod(volume.shape) / 1e6, "Mpixel")
            prepared = _prepare(predictor, volume, settings)
            probs = predict_slices(predictor, prepared, tile=settings.tile, halo=settings.halo, on_progress=progress.update)
            painter = Painter(volume, classes, shown) if "overlay" in job.files else None
            slices = label_slices(probs, job.files, volume, classes, painter)
            if isinstance(input, (str, Path)):
                deque(slices, maxlen=0)
            else:
                labels = classes.to_stored(np.stack(list(slices)).reshape(input.shape))
            progress.finish(str(job.files.get("labels", "")))
        except ImageError as error:
            if len(jobs) == 1:
                raise
            failures.append(str(error))
    if legend is not None:
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
    volume = _open(image, settings)
    predictor = load_predictor(Path(model), settings.device) if isinstance(model, (str, Path)) else model
    volume = _prepare(predictor, volume, settings)
    return np.stack(list(predict_slices(predictor, volume, tile=settings.tile, halo=settings.halo)), axis=1)


def _plan(image: Path | Volume, output: str | Path | None, settings: PredictSettings) -> tuple[list[Job], Path | None]:
    """Returns what is to be predicted, with the files to write, and the legend if there is one to write."""
    wanted: dict[Output, bool] = {"confidence": settings.confidence, "overlay": settings.overlay}
    beside = [kind for kind, is_wanted in wanted.items() if is_wanted]
    if output is None and (isinstance(image, Path) or beside):
        raise SettingsError(
            "no output named; expected a file, or a folder where the input is one. Overlay and confidence are files beside "
            "an output; for an array without one use predict_probs."
        )
    plain = [Job(image, {})] if isinstance(image, Volume) else []
    if output is None:
        return plain, None
    jobs, legend = plan_jobs(*list_sources(image, Path(output)), beside, settings.existing)
    return jobs or plain, legend


def _open(source: str | Path | NDArray[Any], settings: PredictSettings) -> Volume:
    """Returns a file, or an array (y, x) or (z, y, x) checked as a file would be, as a volume."""
    edge = settings.voxel_size_um
    size_um = None if edge == "auto" else (edge, edge, edge)
    if isinstance(source, (str, Path)):
        channel, time = (None if choice == "auto" else choice for choice in (settings.channel, settings.time))
        return open_volume(Path(source), channel=channel, time=time, voxel_size_um=size_um)
    if source.ndim not in (2, 3) or looks_like_colours(source.shape):
        raise ImageError(f"the array: shape {source.shape}; expected (y, x) or (z, y, x), grey values without colours.")
    data = source if source.ndim == 3 else source[None]
    check_grey(data, "the array")
    return Volume(data, "array", size_um)


def _prepare(predictor: Predictor, volume: Volume, settings: PredictSettings) -> Volume:
    """Flips the grey values if asked to, and says so if they are unlike the training data's."""
    volume = invert_grey(volume) if settings.invert else volume
    predictor.normalization.note_unlike(volume)
    return volume


def invert_grey(volume: Volume) -> Volume:
    """Returns a volume whose grey values are flipped between its lowest and its highest when they are read; same dtype.

    Of a large volume the extremes are those of a sample (`sampling.sample_boxes`), and what lies beyond them becomes one.
    """
    if is_large(volume.data):
        sample = sample_boxes(volume.data)
        low, high = volume.data.dtype.type(sample.low), volume.data.dtype.type(sample.high)
    else:
        extremes = [(plane.min(), plane.max()) for plane in volume.data]
        low, high = min(lowest for lowest, _ in extremes), max(highest for _, highest in extremes)

    def read(place: Place) -> NDArray[Any]:
        grey = np.asarray(volume.data[place]).clip(low, high)
        flipped: NDArray[Any] = (high - grey) + low  # in this order every step fits into the dtype
        return flipped

    def list_flipped() -> ChunkMap | None:
        chunks = list_chunks(volume.data)
        return chunks and dataclasses.replace(chunks, fill=float(high) + float(low) - float(np.clip(chunks.fill, low, high)))

    where = volume.path or Path(volume.name)
    inverted = LazyArray(where, volume.shape, volume.data.dtype, read)
    inverted.chunk_zyx = getattr(volume.data, "chunk_zyx", None)
    inverted.listing = list_flipped
    return dataclasses.replace(volume, data=inverted)


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
