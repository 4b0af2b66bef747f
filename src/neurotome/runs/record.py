"""Record: what a run is, written down when it is made: method, seed, and what it was trained and scored on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from neurotome.datasets.base import Dataset
from neurotome.documents import flatten
from neurotome.runs.contents import check_types

FORMAT = 1

NAMED = ("init", "encoder.model", "train.reference")
"""Settings that name a model or images, which are told apart by their content."""

HARMLESS = ("train.checkpoint_every", "train.data_on_device", "train.devices")
"""Settings that change nothing of what a training comes to; for the number of devices see docs/cluster.md."""

LEARNERS = {"rf": "forest", "gbdt": "boosting", "lr": "logistic"}
"""Settings that a learner reads, and the others do not."""

Kind = Literal["network", "pixels"]
KINDS = {"pixels": "a pixel classifier (baseline)", "network": "a network (train)"}


@dataclass(frozen=True)
class Record:
    """The content of `run.json`.

    Attributes:
        method: Short name of the method, such as `unet, resnet18`.
        method_sha256: The same for runs that differ in nothing but their seeds: a digest of settings, training data and
            the method of the model that training began with.
        ignore: Label of pixels that have none.
        splits: For each split that the dataset has, for each image by its name: SHA-256 of its `pixels` and its `labels`,
            and `voxel_size_um` (z, y, x) or None.
        init_sha256: Weights that training began with, None if they were random.
        reference_sha256: Images over which the grey scale was measured, None if they were the training images.
    """

    kind: Kind
    method: str
    method_sha256: str
    seed: int
    classes: tuple[str, ...]
    ignore: int
    splits: Mapping[str, Mapping[str, Mapping[str, Any]]]
    init_sha256: str | None = None
    reference_sha256: str | None = None
    format: int = FORMAT

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Record:
        """Reads JSON values; raises LookupError, TypeError, ValueError or AttributeError where they are no record."""
        check_types(content, {"format": int, "method": str, "method_sha256": str, "seed": int, "ignore": int})
        check_types(content, {"classes": [str], "init_sha256": str | None})
        check_types([image for images in content["splits"].values() for image in images.values()], [dict], "an image")
        if content["format"] != FORMAT or content["kind"] not in KINDS:
            raise ValueError(f"{content['kind']!r} in format {content['format']}, this version reads {FORMAT}")
        return cls(**{**content, "classes": tuple(content["classes"])})


def record_run(
    kind: Kind,
    method: str,
    config: Mapping[str, Any],
    dataset: Dataset,
    seed: int,
    init_method: str | None = None,
    init_sha256: str | None = None,
    reference_sha256: str | None = None,
) -> Record:
    """Returns the record of a run that is to be made, of a method's short name and the complete settings.

    Where training begins with a model, `init_sha256` are its weights, and `init_method` is the `method_sha256` of the run
    that made it, if that is known, so that beginning with another seed of one method is no other method.
    """
    splits = {split: {c.name: dict(c.digests) for c in cutouts} for split, cutouts in dataset.splits.items() if cutouts}
    names, ignore = dataset.classes.names, dataset.classes.ignore
    # tissue that is made while training differs with the seed, which makes no other method
    data = None if dataset.source is not None else {name: splits.get(name) for name in ("train", "val")}
    methodical = {key: value for key, value in list_settings(config).items() if key not in NAMED}
    content = json.dumps(
        [kind, methodical, names, ignore, data, init_method or init_sha256, *filter(None, [reference_sha256])],
        sort_keys=True,
    )
    digest = hashlib.sha256(content.encode()).hexdigest()
    return Record(kind, method, digest, seed, names, ignore, splits, init_sha256, reference_sha256)


def compare_configs(there: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that differ, by dotted name, with both values.

    Where the dataset, the models and the reference lie makes no difference: they are compared by content. Nor do settings
    that change nothing of what a training comes to.
    """
    before, now = flatten(there), flatten(asked)
    keys = [key for key in before | now if key not in ("dataset", *NAMED, *HARMLESS)]
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def list_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that make a method, by dotted name: no seeds, no places, nothing that it does not use."""
    idle = [key for key in LEARNERS.values() if "learner" in config and key != LEARNERS.get(config["learner"])]
    idle += [key for key in ("filters", "encoder") if "features" in config and key != config["features"]]
    return {
        key: value
        for key, value in flatten(config).items()
        if key not in ("dataset", *HARMLESS) and key.rpartition(".")[2] != "seed" and key.partition(".")[0] not in idle
    }


def compare_data(there: Record, now: Record, splits: tuple[str, ...]) -> list[str]:
    """Returns in words how the data of some splits differ; nothing if they are the same."""
    changes = []
    if there.classes != now.classes:
        changes.append(f"classes {', '.join(there.classes)} there, {', '.join(now.classes)} now")
    if there.ignore != now.ignore:
        changes.append(f"ignore value {there.ignore} there, {now.ignore} now")
    for split in splits:
        before, images = there.splits.get(split, {}), now.splits.get(split, {})
        if gone := [name for name in before if name not in images]:
            changes.append(f"{split} has lost {', '.join(gone)}")
        if new := [name for name in images if name not in before]:
            changes.append(f"{split} has {', '.join(new)} more")
        for key, what in (("voxel_size_um", "voxel size"), ("pixels", "pixels"), ("labels", "labels")):
            if other := [name for name in before if name in images and before[name].get(key) != images[name].get(key)]:
                changes.append(f"{what} of {', '.join(other)} in {split}")
    return changes
