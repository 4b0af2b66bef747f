"""Annotated images: one way to open every kind of dataset."""

from __future__ import annotations

import re
from pathlib import Path

from neurotome.datasets.base import Dataset
from neurotome.datasets.folder import open_folder
from neurotome.datasets.mtneuro.variants import VARIANTS, open_mtneuro
from neurotome.datasets.phantom.stream import StreamSettings, open_stream
from neurotome.errors import DatasetError, unknown


def list_datasets() -> dict[str, str]:
    """Returns what `open_dataset` opens: every kind and every variant with one line that says what it is."""
    return {
        "<folder>": "your own: dataset.yaml, images/ and labels/",
        "phantom": "a synthetic tissue, made when it is asked for",
        "phantom-stream": "synthetic tissue made while a network trains on it",
        "mtneuro:<folder>": "the same as mtneuro:<folder>@4class; the folder is of neurotome fetch mtneuro",
        **{f"mtneuro:<folder>@{name}": variant.description for name, variant in VARIANTS.items()},
    }


def open_dataset(spec: str | Path | Dataset, stream: StreamSettings = StreamSettings()) -> Dataset:
    """Opens a dataset of any kind; an open one is returned as it is.

    Args:
        spec: A folder with dataset.yaml, `mtneuro:<folder>`, `phantom`, or another of those that `list_datasets` names.
            Write `./phantom` for a folder of that name.
        stream: How the tissue of `phantom-stream` is made.

    Raises:
        DatasetError: There is no such folder or kind, or the dataset contradicts itself.
        ImageError: One of its files cannot be used.
    """
    if isinstance(spec, Dataset):
        return spec
    if spec == "phantom":
        from neurotome.datasets.phantom.make import PhantomSettings, make_phantom

        if Path("phantom", "dataset.yaml").is_file():
            raise DatasetError(
                "phantom is the built-in synthetic tissue, but there is a data set in a folder of that name too. Write "
                "./phantom for the folder, or rename the folder."
            )
        return make_phantom(PhantomSettings())
    if spec == "phantom-stream":
        return open_stream(stream)
    # Two letters at least: a single one is a drive of Windows.
    prefix = re.match(r"(\w[\w-]+):(.*)", str(spec), re.DOTALL)
    if prefix is None or Path(spec).exists():
        return open_folder(spec)
    if prefix[1] != "mtneuro":
        raise DatasetError(f"{spec}: {unknown('kind of dataset', prefix[1], list_datasets())}")
    folder, at, variant = prefix[2].rpartition("@")
    return open_mtneuro(folder, variant) if at and "/" not in variant else open_mtneuro(prefix[2])
