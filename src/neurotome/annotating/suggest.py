"""suggest: where to annotate next, by what a model is unsure of and what its training set does not hold."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from neurotome.annotating.disagreement import Seen, measure_disagreement, pick_slices, turn_all
from neurotome.annotating.places import (
    FEWEST_TISSUE,
    Chosen,
    Place,
    Vector,
    choose_edge,
    choose_places,
    describe,
    describe_dataset,
    list_windows,
)
from neurotome.annotating.suggest_settings import SuggestSettings
from neurotome.annotating.suggestion import check_out, write_suggestion
from neurotome.datasets import open_dataset
from neurotome.datasets.base import DatasetOrName
from neurotome.errors import ImageError, ModelError
from neurotome.inference.grey_scale import measure_scales
from neurotome.inference.jobs import list_sources
from neurotome.io.opening import open_volume
from neurotome.load import load_predictor
from neurotome.models.model_folder import name_version, read_digest
from neurotome.normalize import find_tissue
from neurotome.tables import Shown, Table
from neurotome.volume import Volume

if TYPE_CHECKING:
    from neurotome.models.net_predictor import NetPredictor
    from neurotome.pixels.predictor import PixelPredictor

MAP_CELLS = 32
"""Cells along a patch's edge in the map of uncertainty that pictures show."""


@dataclass(frozen=True, repr=False)
class Suggested(Shown):
    """What `suggest` chose, the most useful first, and of which files."""

    folder: Path
    files: Sequence[Path]
    chosen: Sequence[Chosen]

    def _show(self) -> Sequence[str | Table]:
        rows = [
            (
                str(rank),
                str(self.files[place.image]),
                *(str(number) for number in (place.z, place.y, place.x, place.edge)),
                f"{place.uncertainty:.4f}",
                f"{difference:.3g}" if np.isfinite(difference) else "–",
            )
            for rank, (place, difference) in enumerate(((one.place, one.difference) for one in self.chosen), start=1)
        ]
        table = Table(("rank", "file", "z", "y", "x", "edge", "uncertainty", "difference"), rows)
        return [
            table,
            f"Correct the labels in {self.folder / 'dataset' / 'labels'}, then train on {self.folder / 'dataset'}.",
        ]


def suggest(
    model: str | Path,
    images: Path,
    *,
    out: Path,
    against: DatasetOrName | None = None,
    settings: Annotated[SuggestSettings, Parameter(name="*")] = SuggestSettings(),
) -> Suggested:
    """Says which patches of images to annotate next, and cuts them out, with the model's labels to begin with.

    A patch is worth annotating where the model contradicts itself when it sees the image turned and mirrored, or models
    contradict each other (--also), and where the tissue is unlike what the training set holds (--against). Patches do not
    overlap, and the more two are alike, the less the second counts. OUT gets suggested.csv, a picture of each slice with
    numbered frames, and dataset/, a folder dataset of the crops. Slice by slice, in memory that does not grow with a volume.

    Args:
        model: Run folder, model folder or the name of a packaged model.
        images: An image or stack, or a folder of them.
        out: Folder to write; it must be new, empty, or with --overwrite an earlier suggestion that nobody has changed.
        against: The dataset the model was trained on; without it patches are compared with each other alone.
        settings: How patches are looked for.

    Returns:
        The patches, the most useful first.

    Raises:
        ModelError: A model cannot be loaded, or models have other classes than the first.
        ImageError: An image cannot be read or does not fit the model, or none shows tissue.
        RunError: OUT holds something else, or labels that somebody has corrected.
    """
    out = Path(out)
    pairs, _ = list_sources(Path(images), out / "labels")
    sources = [source for source, _ in pairs if isinstance(source, Path)]
    read = [Path(against)] if isinstance(against, (str, Path)) and Path(against).exists() else []
    check_out(out, [*sources, *read], settings.overwrite)
    names = [name_version(str(name)) for name in (model, *settings.also)]
    predictors = [load_predictor(name, settings.device) for name in names]
    for name, predictor in zip(names, predictors, strict=True):
        if predictor.classes.names != predictors[0].classes.names:
            raise ModelError(
                f"{name}: has the classes {', '.join(predictor.classes.names)}, and {names[0]} has "
                f"{', '.join(predictors[0].classes.names)}; expected the same. Leave one of them out."
            )
    dataset = None if against is None else open_dataset(against)
    views = _open_views(predictors, sources, settings)
    known = [] if dataset is None else describe_dataset(predictors[0], dataset, settings.edge)
    places: list[Place] = []
    maps: dict[tuple[int, int], NDArray[np.float32]] = {}
    for number, seen in enumerate(views):
        found, coarse = look_at(seen, number, settings, f" ({number + 1} of {len(views)})" * (len(views) > 1))
        places += found
        maps |= {(number, z): plane for z, plane in coarse.items()}
    if not places:
        raise ImageError(
            f"{images}: no patch of which half is tissue; expected tissue brighter than air. Say which grey value is air "
            "with --air-below, or choose a smaller --edge."
        )
    chosen = choose_places(places, known, settings.patches, settings.by)
    if len(chosen) < settings.patches:
        warnings.warn(
            f"{images}: found {len(chosen)} patches instead of {settings.patches}; any other would overlap one of them or "
            "lie right above or below. A smaller --edge or more images give more.",
            stacklevel=2,
        )
    members = len(turn_all(views[0]))
    facts: Mapping[str, Any] = {
        "models": [{"name": name, "weights_sha256": read_digest(name)} for name in names],
        "against": None if dataset is None else dataset.name,
        "uncertainty": f"mutual information over {members} predictions, nats" if members > 1 else "entropy, nats",
        "places": len(places),
        "settings": dataclasses.asdict(settings),
    }
    write_suggestion(out, views, chosen, maps, facts)
    return Suggested(out, sources, chosen)


def _open_views(
    predictors: Sequence[NetPredictor | PixelPredictor], sources: Sequence[Path], settings: SuggestSettings
) -> list[list[Seen]]:
    """Returns every image as each model sees it."""
    edge = None if settings.voxel_size_um == "auto" else float(settings.voxel_size_um)
    read = partial(open_volume, voxel_size_um=edge)
    views: list[list[Seen]] = [[] for _ in sources]
    for predictor in predictors:
        scales = measure_scales(
            predictor,
            list(sources),
            lambda source: source if isinstance(source, Volume) else read(source),
            reference=settings.reference,
            invert=settings.invert,
        )
        for view, source in zip(views, sources, strict=True):
            volume = scales.prepare(read(source))
            scale = scales.choose(source, volume) or predictor.normalization.scale_for(volume)
            view.append(Seen(predictor, volume, scale))
    return views


def look_at(
    seen: Sequence[Seen], number: int, settings: SuggestSettings, which: str = ""
) -> tuple[list[Place], dict[int, NDArray[np.float32]]]:
    """Looks at an image, or at some slices of a volume.

    Args:
        seen: The image as each model sees it.
        number: Which image it is.
        settings: How.
        which: For the progress that is shown.

    Returns:
        All places that show tissue, half a patch apart; and a coarse map of the uncertainty for each slice by its number.
    """
    predictor, volume, scale = seen[0]
    edge = choose_edge(volume, predictor, settings.edge)
    size = volume.voxel_size_um
    reach = edge if size is None else max(1, round(edge * size[1] / size[0]))
    every = max(1, reach // 4) if settings.every == "auto" else settings.every
    depth = volume.shape[0]
    slices = np.arange(min(every, depth) // 2, depth, every)
    picked = [one._replace(volume=pick_slices(one.volume, slices)) for one in turn_all(seen)]
    tissue = find_tissue(volume)
    air = tissue.dark + (tissue.bright - tissue.dark) / 4 if settings.air_below == "auto" else settings.air_below
    cell = max(1, edge // MAP_CELLS)
    places, maps = [], {}
    planes = measure_disagreement(picked, f"looking at {volume.name}{which}")
    for z, (_, uncertainty) in zip(slices.tolist(), planes, strict=True):
        maps[z] = _coarsen(uncertainty, cell)
        inside = np.asarray(volume.data[z]) >= air
        for window in list_windows(volume.shape[1:], edge, max(1, edge // 2)):
            if inside[window].mean() >= FEWEST_TISSUE:
                features: Vector = describe(predictor, volume, scale, z, window)
                mean = float(uncertainty[window].mean())
                places.append(Place(number, z, window[0].start, window[1].start, edge, reach, mean, features))
    return places, maps


def _coarsen(plane: NDArray[np.float32], cell: int) -> NDArray[np.float32]:
    """Returns the means of square cells of a plane (y, x), which leaves out what is less than a cell at its ends."""
    rows, columns = (size // cell for size in plane.shape)
    cells = plane[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell)
    return np.asarray(cells.mean((1, 3)), np.float32)
