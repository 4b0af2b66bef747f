"""A bioimage.io package (format 0.5): graph, test tensors, cover, card, and the model itself, so that it can come back."""

from __future__ import annotations

import gc
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.atomic import atomic_path, write_bytes, write_text
from neurotome.datasets.phantom.make import make_cutout
from neurotome.datasets.phantom.regions import INSTRUMENT, REGIONS
from neurotome.errors import ImageError, SettingsError
from neurotome.io.opening import open_volume
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.stored_model import StoredModel, copy_model
from neurotome.sharing.card import describe_shortly, write_card
from neurotome.sharing.graph import FIXED, build_graph, choose_scale, describe_scale, say_fixed
from neurotome.volume import to_display

MODEL_FILES = ("model.json", "model.safetensors")
"""What `predict PACKAGE.zip` reads."""

SHORTEST_NAME = 5
"""Letters, as the format asks."""

DOI = re.compile(r"10\.\d{4,9}/[^\s,;)]+[^\s,;).]")


def write_package(
    stored: StoredModel,
    predictor: NetPredictor,
    out: Path,
    *,
    name: str,
    licence: str,
    authors: Sequence[str],
    citation: str,
    sample: Path | None,
    scratch: Path,
) -> None:
    """Writes the package, whole or not at all.

    Args:
        stored: The model as it is stored.
        predictor: The same as it runs.
        out: The file, which ends in .zip.
        name: Of the model.
        licence: SPDX identifier.
        authors: Their names.
        citation: A text with a DOI.
        sample: An image for the test tensors; synthetic tissue if not given.
        scratch: A folder for the parts.

    Raises:
        SettingsError: The format refuses a licence, a name or a citation.
        ImageError: The sample is too small.
        ModelError: The network cannot be exported.
    """
    from bioimageio.spec import save_bioimageio_package

    edge = find_edge(predictor)
    grey = _cut_sample(sample, predictor.in_channels, edge)
    probs = predictor.predict_probs(choose_scale(predictor, grey).apply(grey)[None])
    np.save(scratch / "test_input.npy", grey[None])
    np.save(scratch / "test_output.npy", probs)
    write_bytes(scratch / "model.onnx", build_graph(predictor, True, {"licence": licence, "citation": citation}))
    copy_model(stored.folder, scratch)
    write_text(scratch / "card.md", write_card(stored, name))
    _draw_cover(scratch / "cover.png", grey[predictor.in_channels // 2], probs[0].argmax(0), predictor)
    # the format's library leaves the parts' files open until they are collected, and they are deleted soon
    with warnings.catch_warnings(), atomic_path(out) as temporary:
        warnings.simplefilter("ignore", ResourceWarning)
        save_bioimageio_package(
            _describe(stored, predictor, name, licence, authors, citation, scratch), output_path=temporary
        )
        gc.collect()


def _describe(
    stored: StoredModel,
    predictor: NetPredictor,
    name: str,
    licence: str,
    authors: Sequence[str],
    citation: str,
    scratch: Path,
) -> Any:
    """Returns what the format says of a model; SettingsError if it refuses that."""
    from bioimageio.spec.model import v0_5 as form
    from pydantic import ValidationError

    edge = find_edge(predictor)
    space = None if predictor.voxel_size_um is None else predictor.voxel_size_um[1:]
    is_fixed = describe_scale(predictor, True)[0] == FIXED
    holds = f", rightly for {say_fixed(predictor.normalization)}" if is_fixed else ""

    def place(axis: str) -> dict[str, Any]:
        return {} if space is None else {"unit": "micrometer", "scale": space["yx".index(axis)]}

    def follow(axis: str) -> Any:
        size = form.SizeReference(tensor_id=form.TensorId("grey"), axis_id=form.AxisId(axis))
        if not predictor.bounded or not predictor.halo:
            return form.SpaceOutputAxis(id=form.AxisId(axis), size=size, **place(axis))
        return form.SpaceOutputAxisWithHalo(id=form.AxisId(axis), size=size, halo=predictor.halo, **place(axis))

    stride = predictor.net.stride
    try:
        return form.ModelDescr(
            name=re.sub(r"[^A-Za-z0-9_+\- ()]", " ", name if len(name) >= SHORTEST_NAME else f"neurotome {name}"),
            description=describe_shortly(stored),
            authors=[form.Author(name=author) for author in authors],
            cite=[form.CiteEntry(text=citation, doi=form.Doi(_find_doi(citation)))],
            license=form.LicenseId(licence),
            documentation=form.FileDescr(source=scratch / "card.md"),
            covers=[form.FileDescr(source=scratch / "cover.png")],
            attachments=[form.FileDescr(source=scratch / file) for file in MODEL_FILES],
            tags=["segmentation", "semantic-segmentation", "2d", "neurotome", *stored.classes.names[1:]],
            inputs=[
                form.InputTensorDescr(
                    id=form.TensorId("grey"),
                    description=f"Grey values as they are in the file; the graph scales them{holds}.",
                    axes=[
                        form.BatchAxis(),
                        form.ChannelAxis(channel_names=_name_channels(predictor.in_channels)),
                        *(
                            form.SpaceInputAxis(
                                id=form.AxisId(axis), size=form.ParameterizedSize(min=edge, step=stride), **place(axis)
                            )
                            for axis in "yx"
                        ),
                    ],
                    data=form.IntervalOrRatioDataDescr(type="float32"),
                    test_tensor=form.FileDescr(source=scratch / "test_input.npy"),
                )
            ],
            outputs=[
                form.OutputTensorDescr(
                    id=form.TensorId("probs"),
                    description=f"Probability of each class: {', '.join(stored.classes.names)}.",
                    axes=[
                        form.BatchAxis(),
                        form.ChannelAxis(channel_names=_name_classes(stored.classes.names)),
                        follow("y"),
                        follow("x"),
                    ],
                    data=form.IntervalOrRatioDataDescr(type="float32", range=(0.0, 1.0)),
                    test_tensor=form.FileDescr(source=scratch / "test_output.npy"),
                )
            ],
            weights=form.WeightsDescr(
                onnx=form.OnnxWeightsDescr(source=scratch / "model.onnx", opset_version=_read_opset(scratch))
            ),
        )
    except (ValidationError, ValueError) as error:
        reasons = error.errors() if isinstance(error, ValidationError) else [{"loc": (), "msg": str(error)}]
        said = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'package'}: {one['msg']}" for one in reasons[:3])
        raise SettingsError(
            f"the bioimage.io format refuses this model's description ({said}). Give --licence, an SPDX identifier such as "
            "CC-BY-4.0, --author and --citation."
        ) from error


def find_edge(predictor: NetPredictor) -> int:
    """Returns the smallest edge of an image that a package asks for: halo on both sides, and something within."""
    stride = predictor.net.stride
    return -(-max(predictor.net.minimum, 2 * predictor.halo * predictor.bounded + stride) // stride) * stride


def _cut_sample(sample: Path | None, depth: int, edge: int) -> NDArray[np.float32]:
    """Returns grey values (depth, edge, edge) from the middle of an image, or of synthetic tissue."""
    if sample is None:
        image, _ = make_cutout(REGIONS["striatum"], INSTRUMENT, (depth, edge, edge), np.random.default_rng(0))
        return image.astype(np.float32)
    volume = open_volume(sample)
    if any(have < want for have, want in zip(volume.shape, (1, edge, edge), strict=True)):
        raise ImageError(
            f"{sample}: {' x '.join(map(str, volume.shape))} voxels (z y x); the package's test image needs {edge} x {edge} "
            "pixels. Name a larger one, or leave --sample out for synthetic tissue."
        )
    top, left = ((size - edge) // 2 for size in volume.shape[1:])
    middle = volume.shape[0] // 2
    slices = np.clip(np.arange(depth) - depth // 2 + middle, 0, volume.shape[0] - 1)
    planes = [np.asarray(volume.data[z])[top : top + edge, left : left + edge] for z in slices]
    return np.stack(planes).astype(np.float32)


def _draw_cover(path: Path, grey: NDArray[np.float32], labels: NDArray[Any], predictor: NetPredictor) -> None:
    """Draws the test image beside its labels."""
    from PIL import Image

    low, high = (float(value) for value in np.percentile(grey, (0.5, 99.5)))
    shown = to_display(grey, low, high)
    painted = predictor.classes.overlay(shown, labels.astype(np.uint8))
    pair = np.concatenate([np.repeat(shown[..., None], 3, 2), painted], 1)
    with atomic_path(path) as temporary:
        Image.fromarray(pair).save(temporary, format="PNG")


def _find_doi(citation: str) -> str:
    found = DOI.search(citation)
    if not found:
        raise ValueError(f"no DOI in the citation {citation[:80]!r}")
    return found[0]


def _name_channels(count: int) -> list[Any]:
    return ["grey"] if count == 1 else [f"slice_{z - count // 2}".replace("-", "minus_") for z in range(count)]


def _name_classes(names: Sequence[str]) -> list[Any]:
    plain = [re.sub(r"\W+", "_", name).strip("_") or "class" for name in names]
    return [name if plain.count(name) == 1 and name.isidentifier() else f"class_{i}" for i, name in enumerate(plain)]


def _read_opset(scratch: Path) -> int:
    import onnx

    return int(next(one.version for one in onnx.load(scratch / "model.onnx").opset_import if not one.domain))
