"""Precision and recall of objects: cells and vessels of the prediction, matched one to one with the true ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.block_bootstrap import IntervalSettings, Units, list_metrics, plan_tiles
from neurotome.classes import KINDS, ClassSet
from neurotome.errors import SettingsError
from neurotome.objects.find import ObjectFinder, Objects, Parting, Shared
from neurotome.objects.match import match_by_distance, match_by_overlap
from neurotome.objects.splitting import NECK
from neurotome.statistics import FEWEST_SLICES, estimate_units, find_stack, say_method
from neurotome.volume import Size

RATES = ("precision", "recall", "f1")
MATCHINGS = {"overlap": "IoU > 0.5", "distance": "centres"}
"""How objects are matched, and what tables call it."""
COUNTED = ("true", "found", *MATCHINGS)
"""Columns of counts in a file of scores: true objects, found ones, and pairs by each matching."""


@dataclass(frozen=True)
class ObjectSettings:
    """Which objects are scored, and how they are matched."""

    classes: tuple[str, ...] = ("auto",)
    """Classes whose objects are scored; auto: those that `measure` takes for cells and for vessels; none: no objects."""

    smallest: float = 4.0
    """Smaller objects, by the diameter of a sphere of their volume (in slices: a disc of their area), are none, as in
    `measure`; in micrometres where the voxel size is known, else in pixels. Vessels are all kept."""

    within: float | Literal["auto"] = "auto"
    """How far the centres of a pair may lie apart, in the same unit; auto: half of the mean diameter of the true objects."""

    neck: float = NECK
    """Touching objects are parted where the neck between them is narrower than this share of the smaller one, as in
    `measure`; vessels never are. 0: what touches is one."""

    as_slices: bool = False
    """Take every slice of a stack by itself, as `measure --as-slices` does."""

    def __post_init__(self) -> None:
        if not 0 <= self.smallest < math.inf:
            raise SettingsError(f"objects.smallest is {self.smallest}; expected a diameter, 0 or more.")
        if not 0 <= self.neck <= 1:
            raise SettingsError(f"objects.neck is {self.neck}; expected a share, 0 to 1.")
        if self.within != "auto" and not 0 < self.within < math.inf:
            raise SettingsError(f"objects.within is {self.within}; expected a distance, more than 0, or auto.")

    def choose(self, classes: ClassSet) -> list[int]:
        """Returns the ids of the classes whose objects are scored; SettingsError if one is not known."""
        if self.classes == ("none",):
            return []
        if self.classes == ("auto",):
            return sorted(i for kind in ("cells", "vessels") if (i := classes.find_kind(kind)) is not None)
        return sorted({classes.index(name) for name in self.classes})


class _Image(NamedTuple):
    """Objects of one class in one image, the number of its first slice, its name, and its shape (y, x)."""

    true: Objects
    found: Objects
    shared: Shared
    first: int
    name: str
    shape: tuple[int, int]


class ObjectScorer:
    """Takes labels slice by slice, and scores the objects in them; memory is that of `ObjectFinder`."""

    def __init__(self, classes: ClassSet, settings: ObjectSettings, sizes_um: Mapping[str, Size]) -> None:
        """Begins a split.

        Args:
            classes: What the labels mean.
            settings: How.
            sizes_um: Edges of a voxel (z, y, x) by the name of the slice; unless every slice has one, pixels are counted.
        """
        self._classes, self._settings, self._sizes = classes, settings, sizes_um
        self._ids = settings.choose(classes)
        self._images: dict[int, list[_Image]] = {number: [] for number in self._ids}
        self._open: dict[int, ObjectFinder] = {}
        self._names: list[str] = []
        self._first, self._shape, self._deep = 0, (0, 0), False

    def add(self, name: str, truth: NDArray[Any], predicted: NDArray[Any]) -> None:
        """Adds a slice (y, x); slices of a stack follow each other, named `stack/0000` and so on."""
        joined = bool(self._open) and not self._settings.as_slices and find_stack(name) != ""
        joined = joined and find_stack(name) == find_stack(self._names[-1]) and truth.shape == self._shape
        if not joined:
            self._close()
            parting = Parting(self._settings.neck, self._sizes.get(name, (1.0, 1.0, 1.0))) if self._settings.neck else None
            self._open = {number: ObjectFinder(None if self._is_vessel(number) else parting) for number in self._ids}
            self._first, self._shape = len(self._names), (truth.shape[0], truth.shape[1])
        self._deep |= joined
        self._names.append(name)
        known = truth != self._classes.ignore
        for number, finder in self._open.items():
            finder.add(truth == number, predicted == number, known)

    def finish(self, interval: IntervalSettings) -> dict[str, Any] | None:
        """Returns what `scores/<split>.json` says of objects, None if none are scored."""
        self._close()
        if not self._ids:
            return None
        in_um = all(name in self._sizes for name in self._names)
        names = [self._classes.names[number] for number in self._ids]
        counts = np.zeros((len(self._names), len(names), len(COUNTED)), np.int64)
        grids: dict[tuple[str, int, int], NDArray[np.int64]] = {}
        per_class: dict[str, dict[str, Any]] = {}
        for place, number in enumerate(self._ids):
            smallest, neck = (0.0, 0.0) if self._is_vessel(number) else (self._settings.smallest, self._settings.neck)
            kept = [self._keep(image, in_um, smallest) for image in self._images[number]]
            diameters = np.concatenate([diameters for *_, diameters in kept])
            mean = float(diameters.mean()) if len(diameters) else None
            within = (mean or 0.0) / 2 if self._settings.within == "auto" else self._settings.within
            for image, *_ in kept:
                size = self._find_size(image.name, in_um)
                pairs = {
                    "overlap": match_by_overlap(image.true, image.found, image.shared),
                    "distance": match_by_distance(image.true.centres * size, image.found.centres * size, within),
                }
                matched = [image.true.centres[pairs[key][:, 0]] for key in MATCHINGS]
                ends = plan_tiles(image.shape)
                key = (find_stack(image.name), len(ends[0]) - 1, len(ends[1]) - 1)
                grid = grids.setdefault(key, np.zeros((key[1] * key[2], len(names), len(COUNTED)), np.int64))
                for column, centres in enumerate((image.true.centres, image.found.centres, *matched)):
                    slices = image.first + np.rint(centres[:, 0]).astype(np.int64)
                    counts[:, place, column] += np.bincount(slices, minlength=len(counts))
                    y, x = (np.searchsorted(ends[axis], centres[:, 1 + axis], "right") - 1 for axis in (0, 1))
                    grid[:, place, column] += np.bincount(y * key[2] + x, minlength=len(grid))
            per_class[names[place]] = {
                **dict(zip(COUNTED[:2], counts[:, place, :2].sum(0).tolist(), strict=True)),
                "left_out": sum(unknown for _, unknown, _ in kept),
                "mean_diameter": mean,
                "smallest": smallest,
                "neck": neck,
                "within": within,
            }
        content: dict[str, Any] = {
            "dimensions": 3 if self._deep else 2,
            "unit": "um" if in_um else "pixels",
            "per_class": per_class,
            "per_image": {"name": self._names, "counts": counts.tolist()},
            "tiles": [
                {"grid": list(key[1:]), "counts": grid.tolist()}
                for key, grid in grids.items()
                if len(self._names) < FEWEST_SLICES
            ],
        }
        return {**content, **{matching: _score(content, matching, interval) for matching in MATCHINGS}}

    def _is_vessel(self, number: int) -> bool:
        return self._classes.names[number].lower() in KINDS["vessels"]

    def _close(self) -> None:
        for number, finder in self._open.items():
            image = _Image(*finder.finish(), self._first, self._names[self._first], self._shape)
            self._images[number].append(image)
        self._open = {}

    def _find_size(self, name: str, in_um: bool) -> Size:
        return self._sizes[name] if in_um else (1.0, 1.0, 1.0)

    def _keep(self, image: _Image, in_um: bool, smallest: float) -> tuple[_Image, int, NDArray[np.float64]]:
        """Returns an image without objects that do not count, how many are mostly ignored, diameters of the true ones."""
        _, y_edge, x_edge = size = self._find_size(image.name, in_um)

        def measure(objects: Objects) -> NDArray[np.float64]:
            if self._deep:
                return np.asarray(np.cbrt(6 / math.pi * objects.voxels * math.prod(size)))
            return np.asarray(np.sqrt(4 / math.pi * objects.voxels * y_edge * x_edge))

        true, found = image.true, image.found
        unknown = found.ignored > found.voxels
        keep_true, keep_found = measure(true) >= smallest, (measure(found) >= smallest) & ~unknown
        first, second = image.shared.pairs.T
        both = keep_true[first] & keep_found[second]
        places = [np.cumsum(keep) - 1 for keep in (keep_true, keep_found)]
        pairs = np.stack([places[0][first[both]], places[1][second[both]]], 1)
        kept = image._replace(
            true=_select(true, keep_true), found=_select(found, keep_found), shared=Shared(pairs, image.shared.voxels[both])
        )
        return kept, int(unknown.sum()), measure(kept.true)


def _select(objects: Objects, keep: NDArray[np.bool_]) -> Objects:
    return Objects(objects.voxels[keep], objects.ignored[keep], objects.centres[keep])


def read_units(objects: Mapping[str, Any], matching: str) -> list[Units]:
    """Returns counts of objects from scores, slices first and tiles if there are: matched, true and found of each class."""
    columns = [COUNTED.index(name) for name in (matching, "true", "found")]

    def order(counts: Any) -> NDArray[np.float64]:
        return np.moveaxis(np.asarray(counts, np.float64)[None, :, :, columns], -1, -2)

    stacks = itertools.groupby(objects["per_image"]["name"], find_stack)
    units = [Units("slices", order(objects["per_image"]["counts"]), [(len(list(group)), 1) for _, group in stacks])]
    if tiles := objects["tiles"]:
        shapes = [(group["grid"][0], group["grid"][1]) for group in tiles]
        units.append(Units("tiles", order([tile for group in tiles for tile in group["counts"]]), shapes))
    return units


def _score(objects: Mapping[str, Any], matching: str, settings: IntervalSettings) -> dict[str, Any]:
    """Returns the scores of one matching with their intervals."""
    names = list(objects["per_class"])
    asked = {"macro.f1", *(f"per_class.{name}.{rate}" for name in names for rate in RATES)}
    # the others divide by true objects alone, of which a draw may hold none beside a match that is counted in another tile
    metrics = {metric: place for place, metric in enumerate(list_metrics(names)) if metric in asked}
    found = estimate_units(read_units(objects, matching), metrics, settings)
    matched = np.sum(objects["per_image"]["counts"], 0)[:, COUNTED.index(matching)].tolist()

    def list_rates(name: str, build: Any) -> dict[str, Any]:
        return {rate: build(found[f"per_class.{name}.{rate}"]) for rate in RATES}

    return {
        "level": settings.level,
        "method": say_method(found["macro.f1"], settings.resamples),
        "warning": found["macro.f1"].note or None,
        "per_class": {
            name: {
                "matched": number,
                **list_rates(name, lambda one: one.value),
                "intervals": list_rates(name, lambda one: None if one.low is None else [one.low, one.high]),
            }
            for name, number in zip(names, matched, strict=True)
        },
    }


def describe_objects(objects: Mapping[str, Any]) -> Iterable[str]:
    """Yields, in sentences, what the scores of objects mean."""
    unit = objects["unit"]
    joined = "voxels that share faces, in a volume" if objects["dimensions"] == 3 else "pixels that share edges, in a slice"
    yield f"Objects are {joined}; matched one to one, by IoU above 0.5 or by the distance of their centres."
    for name, one in objects["per_class"].items():
        said = [f"centres at most {one['within']:.3g} {unit} apart"]
        if one["smallest"]:
            said.append(f"none below {one['smallest']:g} {unit} in diameter")
        if one.get("neck"):
            said.append(f"parted at necks below {one['neck']:g} of the smaller one")
        if one["left_out"]:
            said.append(f"{one['left_out']} found ones lie mostly where nothing is labelled, and are left out")
        yield f"{name}: {', '.join(said)}."


def list_object_rows(objects: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a row per class and matching: its counts, its scores, and their intervals."""
    return [
        {"class": name, "by": called, "true": one["true"], "found": one["found"], **objects[matching]["per_class"][name]}
        for name, one in objects["per_class"].items()
        for matching, called in MATCHINGS.items()
    ]


def show_rates(row: Mapping[str, Any]) -> Sequence[str]:
    """Returns precision, recall and F1 of such a row as text, each with its interval."""

    def show(rate: str) -> str:
        if row[rate] is None:
            return "–"
        bounds = row["intervals"][rate]
        return f"{row[rate]:.3f}" + ("" if bounds is None else f" ({bounds[0]:.3f} to {bounds[1]:.3f})")

    return [show(rate) for rate in RATES]
