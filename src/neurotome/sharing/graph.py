"""A trained network as an ONNX graph that takes grey values as they are in the file and gives class probabilities."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurotome.errors import ModelError
from neurotome.models.back_ends.folded import fold_network
from neurotome.models.back_ends.onnx_runtime import export_onnx
from neurotome.models.net_predictor import NetPredictor
from neurotome.normalize import Normalization, Scale
from neurotome.volume import Volume

MOST_DIFFERENT = 1e-4
"""Difference of a probability from torch's that is taken for rounding."""

INPUTS = ["grey", "scale"]

GIVEN = "given"
MEASURED = "measured in the image"
FIXED = "fixed"


class ScaledNetwork(nn.Module):
    """Scales grey values and computes class probabilities.

    Attributes:
        core: Computes logits of scaled images.
        scale: mean and std by which every image is scaled; None: given as second input, or measured by `mode`.
        mode: Of the normalisation, if the scale is measured in each image: `tissue` or `image`; "" if it is given.
    """

    def __init__(self, core: nn.Module, scale: Scale | None, mode: str = "") -> None:
        super().__init__()
        self.core, self.scale, self.mode = core, scale, mode

    def forward(self, grey: Tensor, scale: Tensor | None = None) -> Tensor:
        """Returns probabilities (n, classes, y, x) of grey values (n, in_channels, y, x); `scale` holds mean and std."""
        mean: Tensor | float
        std: Tensor | float
        if self.scale is not None:
            mean, std = self.scale.mean, self.scale.std
        elif scale is not None:
            mean, std = scale[0], scale[1]
        else:
            mean, std = measure_in_graph(grey, self.mode)
        logits: Tensor = self.core((grey - mean) / std)
        return logits.softmax(1)


def measure_in_graph(grey: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Returns mean and std of each image of a batch, as `Normalization.scale_for` measures them, by what ONNX knows.

    Args:
        grey: Grey values, shape (n, in_channels, y, x).
        mode: `tissue` or `image`.

    Returns:
        Two tensors of the shape (n, 1, 1, 1). A constant image, which a graph cannot refuse, has a std of 1e-6.
    """
    values = grey.flatten(1)
    mean, std = _measure_tissue(values) if mode == "tissue" else (values.mean(1), values.std(1, correction=0))
    return mean.reshape(-1, 1, 1, 1), std.clamp_min(1e-6).reshape(-1, 1, 1, 1)


def _measure_tissue(values: Tensor) -> tuple[Tensor, Tensor]:
    """Does what `normalize.describe_tissue` does."""
    values = values.sort(1).values
    last = torch.ones_like(values).sum(1, keepdim=True, dtype=torch.float64) - 1

    def find(share: float) -> Tensor:
        place = last * share
        below = place.floor()
        after = torch.minimum(below + 1, last)
        low, high = (values.gather(1, index.long()) for index in (below, after))
        return low + (place - below).float() * (high - low)

    dark, bright = find(0.001), find(0.999)
    air = (values <= dark + (0.25 - 1e-4) * (bright - dark)).sum(1, keepdim=True)
    air = torch.minimum(air, last.long())  # all of a constant image lies at the threshold
    within = last.long() + 1 - air
    left, right = (air + torch.div(n, 2, rounding_mode="floor") for n in (within - 1, within))
    centre = (values.gather(1, left) + values.gather(1, right)) / 2
    return centre, (centre - dark) / 4


def describe_scale(predictor: NetPredictor, measured: bool) -> tuple[str, Scale | None]:
    """Returns how a graph comes by the scale, and the scale if it is the same for all images.

    Args:
        predictor: The network.
        measured: Whether the graph may measure it; otherwise it is asked for as a second input.
    """
    normalization = predictor.normalization
    if normalization.mode in ("dataset", "range"):
        return FIXED, Scale(normalization.mean, normalization.std)
    if normalization.reference is not None:
        return FIXED, normalization.reference
    return (MEASURED if measured else GIVEN), None


def say_fixed(normalization: Normalization) -> str:
    """Returns for which images a scale that is part of the graph is the one that `predict` would use."""
    scan = " of the same scan as the reference" if normalization.reference is not None else ""
    return f"images{scan} with grey values as they are in {normalization.dtype}"


def build_graph(predictor: NetPredictor, measured: bool, facts: Mapping[str, Any]) -> bytes:
    """Returns a network as ONNX whose probabilities are those of torch.

    The graph takes `grey`, float32 (n, in_channels, y, x), unscaled, y and x multiples of the stride; and `scale`, float32
    (2,), mean and std of it, if each image has its own and the graph may not measure it. It gives `probs`, float32
    (n, classes, y, x). What a reader must know stands as JSON under `neurotome` in the file's metadata.

    Args:
        predictor: The network, on the CPU.
        measured: Whether the graph measures the scale of an image by itself.
        facts: What else the metadata say.

    Raises:
        ModelError: The network cannot be exported, or the graph gives something else than torch.
    """
    import onnx

    if predictor.settings.dimensions == 3:
        raise ModelError("a network of 3 dimensions has no ONNX form; share its folder by --format hub.")
    kind, scale = describe_scale(predictor, measured)
    core = fold_network(predictor.net, predictor.in_channels)
    module = ScaledNetwork(core.core, scale, predictor.normalization.mode if kind == MEASURED else "").eval()
    beside = (torch.tensor([0.0, 1.0]),) if kind == GIVEN else ()
    try:
        model = onnx.load_from_string(
            export_onnx(module, core, predictor.in_channels, beside, INPUTS[: 1 + len(beside)], ["probs"])
        )
    except Exception as error:  # whatever a converter raises on an operator that it does not know
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"this network cannot be exported to ONNX ({reason:.200}); share its folder by --format hub."
        ) from error
    onnx.helper.set_model_props(model, {"neurotome": json.dumps(describe_graph(predictor, kind, scale) | dict(facts))})
    model.doc_string = "Class probabilities of grey values as they are in the file; see the metadata under neurotome."
    content: bytes = model.SerializeToString()
    _check_graph(content, predictor, kind)
    return content


def describe_graph(predictor: NetPredictor, kind: str, scale: Scale | None) -> dict[str, Any]:
    """Returns all that a reader of the graph must know, ready for JSON."""
    stride, normalization = predictor.net.stride, predictor.normalization
    measure = {
        "tissue": "mean: median of the grey values above low + 0.2499 (high - low), where low and high are the 0.1st and "
        "99.9th percentile; std: a quarter of mean - low. Measured over the whole image, or over all images of a scan.",
        "image": "mean and standard deviation of the whole image.",
    }
    return {
        "classes": list(predictor.classes.names),
        "label_ids": predictor.classes.to_stored(np.arange(len(predictor.classes), dtype=np.uint8)).tolist(),
        "scale": kind,
        "scale_values": None if scale is None else [scale.mean, scale.std],
        "scale_rule": "" if kind == FIXED else measure[normalization.mode],
        "scale_holds_for": say_fixed(normalization) if kind == FIXED else "",
        "normalization": dataclasses.asdict(normalization),
        "multiple_of": stride,
        "smallest": -(-predictor.net.minimum // stride) * stride,
        "padding": "repeat the last row and column, below and to the right; crop the result",
        "halo": predictor.halo,
        "tiles_are_exact": predictor.bounded,
        "in_channels": predictor.in_channels,
        "channels": "neighbouring slices along z, the labelled one in the middle; the first and the last slice are repeated",
        "voxel_size_um": None if predictor.voxel_size_um is None else list(predictor.voxel_size_um),
    }


def _check_graph(content: bytes, predictor: NetPredictor, kind: str) -> None:
    """Raises a ModelError if the graph's probabilities are not torch's on images of two sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for factor in (2, 3):
        edges = (max(n * predictor.net.stride, predictor.net.minimum) for n in (factor, factor + 1))
        grey = rng.normal(110, 25, (predictor.in_channels, *edges)).clip(0, 255).astype(np.float32)
        scale = choose_scale(predictor, grey)
        expected = predictor.predict_probs(scale.apply(grey)[None])
        found = run_graph(session, grey[None], scale if kind == GIVEN else None)
        difference = float(np.abs(found - expected).max())
        if not difference < MOST_DIFFERENT:
            raise ModelError(
                f"the exported graph's probabilities differ by {difference:.2g} from torch's; nothing was written."
            )


def choose_scale(predictor: NetPredictor, grey: NDArray[np.float32]) -> Scale:
    """Returns the scale that the graph uses, or must be given, for an image (in_channels, y, x) by itself."""
    _, scale = describe_scale(predictor, True)
    return scale or predictor.normalization.scale_for(Volume(grey, "the image"))


def run_graph(session: Any, grey: NDArray[np.float32], scale: Scale | None) -> NDArray[np.float32]:
    """Returns probabilities (n, classes, y, x) of a graph in ONNX Runtime; edges must be multiples of its stride."""
    given = {} if scale is None else {"scale": np.array([scale.mean, scale.std], np.float32)}
    probs: NDArray[np.float32] = session.run(None, {"grey": grey, **given})[0]
    return probs
