"""make_phantom: synthetic tissue with its labels, as sample data of napari."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neurotome.datasets.phantom.make import PhantomSettings
from neurotome.datasets.phantom.make import make_phantom as make_dataset
from neurotome.viewing.scene import LabelLayer, find_contrast
from neurotome.viewing.window import describe_labels

SETTINGS = PhantomSettings(regions=("cortex",), height=256, width=256, train_depth=16, val_depth=1, test_depth=1)


def make_phantom() -> list[tuple[Any, dict[str, Any], str]]:
    """Returns an image and its true labels, both (16, 256, 256) voxels of 1.17 um, as layers of napari."""
    dataset = make_dataset(SETTINGS)
    (cutout,) = dataset.split("train")
    place = {"scale": cutout.volume.voxel_size_um, "units": ["um"] * 3}
    labels = describe_labels(LabelLayer("phantom truth", cutout.labels, Path("phantom"), dataset.classes))
    image = {"name": "phantom", "contrast_limits": find_contrast(cutout.volume.data), **place}
    return [(cutout.volume.data, image, "image"), (cutout.labels, {**labels, **place}, "labels")]
