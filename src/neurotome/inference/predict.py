"""predict: a model applied to an image, a stack or a folder of them; label files of the same shape come out."""

from __future__ import annotations

import math
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from neurotome.errors import ImageError, SettingsError
from neurotome.inference.grey_scale import GreyScales, measure_scales
from neurotome.inference.jobs import Job, Output, list_sources, plan_jobs
from neurotome.inference.predict_settings import PredictSettings
from neurotome.inference.volume_job import find_extremes, flip_grey
from neurotome.inference.volume_settings import VolumeSettings
from neurotome.io.axes import looks_like_colours
from neurotome.io.chunks import list_chunks
from neurotome.io.opening import check_grey, open_volume
from neurotome.predictor import Predictor
from neurotome.progress import Progress
from neurotome.volume import Volume, note_unknown_size

MOST_LISTED = 20
"""Images of a folder that could not be predicted and are listed with their reasons."""


def predict(
    model: str | Path,
    input: str | Path | NDArray[Any],
    output: str | Path | None = None,
    *,
    settings: Annotated[PredictSettings, Parameter(name="*")] = PredictSettings(),
    options: Annotated[VolumeSettings, Parameter(name="*")] = VolumeSettings(),
) -> NDArray[np.uint8] | list[Path] | dict[str, str]:
    """Labels images with a trained model, in memory that does not grow with their number of slices.

    Where the output is an OME-Zarr (OUT.zarr, or IMAGE.zarr/labels/NAME), a volume of any size is labelled block by block: a
    run that was killed goes on where it was, and several processes or machines may share it.

    Args:
        model: Run folder, model folder or the name of a packaged model.
        input: An image or stack, a folder of them, or an array (y, x) or (z, y, x).
        output: Label file (.png, .tif, .npy or .zarr), or for a folder the folder to write label files to; not needed for
            an array.
        settings: How the model is applied.
        options: How a volume is done whose labels go into an OME-Zarr.

    Returns:
        For an array its labels as they are stored, uint8, same shape; otherwise the label files written, or for a dry run
        what a run would take.

    Raises:
        ModelError: The model cannot be loaded.
        ImageError: An image cannot be read or does not fit the model. In a folder, the other images are done first.
        RunError: An output is there already, or is an input; nothing has been read then.
        SettingsError: A setting is out of range.
    """
    model = _state_version(str(model))
    if isinstance(input, (str, Path)) and output is not None:
        from neurotome.inference.volumes import is_volume_output, predict_volume

        if is_volume_output(Path(output)):
            return predict_volume(model, Path(input), Path(output), settings, options)
    options.refuse_given("name an output that ends in .zarr, or IMAGE.zarr/labels/NAME")
    image = Path(input) if isinstance(input, (str, Path)) else _open(input, settings)
    jobs, legend, sources = _plan(image, output, settings)
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
    scales = measure_scales(
        predictor, sources, partial(_open, settings=settings), reference=settings.reference, invert=settings.invert
    )
    for number, job in enumerate(jobs, start=1):
        try:
            volume = _open(job.source, settings)
            noted = noted or note_unknown_size(volume, predictor.voxel_size_um)
            title = f"predicting {volume.name}" + (f" ({number} of {len(jobs)})" if len(jobs) > 1 else "")
            progress = Progress(title, math.prod(volume.shape) / 1e6, "Mpixel")
            prepared = _prepare(predictor, volume, scales)
            scale = scales.choose(job.source, prepared)
            probs = predict_slices(
                predictor, prepared, scale, tile=settings.tile, halo=settings.halo, on_progress=progress.update
            )
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


def _state_version(name: str) -> str:
    """Returns a packaged model's name with its version, and says so where none was asked for."""
    from neurotome.models.model_folder import name_version

    model = name_version(name)
    if model != name:
        sys.stderr.write(f"note: {name} is {model}; give this name to have the same model after an update.\n")
    return model


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
    from neurotome.load import load_predictor

    volume = _open(image, settings)
    predictor = load_predictor(Path(model), settings.device) if isinstance(model, (str, Path)) else model
    return np.stack(list(iterate_probs(predictor, volume, settings)), axis=1)


def iterate_probs(
    predictor: Predictor,
    volume: Volume,
    settings: PredictSettings = PredictSettings(),
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Yields class probabilities of a volume slice by slice, float32, shape (classes, y, x), as `predict` finds them.

    Args:
        predictor: What `load_predictor` returned.
        volume: The image; may be lazy.
        settings: How the model is applied; what concerns files is left aside.
        on_progress: Called with the Mpixels done so far; what it raises ends the prediction.

    Raises:
        NeurotomeError: As for `predict`.
    """
    from neurotome.inference.slices import predict_slices

    read = partial(_open, settings=settings)
    scales = measure_scales(predictor, [volume], read, reference=settings.reference, invert=settings.invert)
    volume = _prepare(predictor, volume, scales)
    scale = scales.choose(volume, volume)
    yield from predict_slices(predictor, volume, scale, tile=settings.tile, halo=settings.halo, on_progress=on_progress)


def _plan(
    image: Path | Volume, output: str | Path | None, settings: PredictSettings
) -> tuple[list[Job], Path | None, list[Path | Volume]]:
    """Returns what is to be predicted, with the files to write, the legend if there is one to write, and all images."""
    wanted: dict[Output, bool] = {"confidence": settings.confidence, "overlay": settings.overlay}
    beside = [kind for kind, is_wanted in wanted.items() if is_wanted]
    if output is None and (isinstance(image, Path) or beside):
        raise SettingsError(
            "no output named; expected a file, or a folder where the input is one. Overlay and confidence are files beside "
            "an output; for an array without one use predict_probs."
        )
    plain = [Job(image, {})] if isinstance(image, Volume) else []
    if output is None:
        return plain, None, [image]
    pairs, legend = list_sources(image, Path(output))
    jobs, written = plan_jobs(pairs, legend, beside, settings.existing)
    return jobs or plain, written, [source for source, _ in pairs]


def _open(source: str | Path | NDArray[Any] | Volume, settings: PredictSettings) -> Volume:
    """Returns a file, or an array (y, x) or (z, y, x) checked as a file would be, as a volume."""
    if isinstance(source, Volume):
        return source
    edge = None if settings.voxel_size_um == "auto" else float(settings.voxel_size_um)
    if isinstance(source, (str, Path)):
        channel, time = (None if choice == "auto" else choice for choice in (settings.channel, settings.time))
        return open_volume(Path(source), channel=channel, time=time, voxel_size_um=edge)
    if source.ndim not in (2, 3) or looks_like_colours(source.shape):
        raise ImageError(f"the array: shape {source.shape}; expected (y, x) or (z, y, x), grey values without colours.")
    data = source if source.ndim == 3 else source[None]
    check_grey(data, "the array")
    return Volume(data, "array", None if edge is None else (edge, edge, edge))


def _prepare(predictor: Predictor, volume: Volume, scales: GreyScales) -> Volume:
    """Flips the grey values if asked to, and says so if they are unlike the training data's."""
    chunks = list_chunks(volume.data)
    if chunks is not None and chunks.note:
        warnings.warn(f"{volume.path}: {chunks.note} If they should be there, copy or export it again.", stacklevel=3)
    volume = scales.prepare(volume)
    predictor.normalization.note_unlike(volume)
    return volume


def invert_grey(volume: Volume) -> Volume:
    """Returns a volume whose grey values are flipped between its lowest and its highest when they are read; same dtype."""
    return flip_grey(volume, *find_extremes(volume))
