"""build_openvino: a network in OpenVINO, on the CPU, in 32 or in 8 bit."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurotome.models.back_ends.folded import fold_network
from neurotome.models.net import Network
from neurotome.models.net_predictor import NetPredictor, Run, Runtime
from neurotome.predictor import Ranges

LEVELS = 256
"""Steps of a feature in 8 bit; weights, which are symmetric about 0, have one less."""


def build_openvino(predictor: NetPredictor, ranges: Ranges | None = None) -> Runtime:
    """Returns the network converted once, for any number and size of images, in as many threads as torch has.

    Args:
        predictor: The network.
        ranges: Of what its convolutions read; where they are given, the convolutions between the first and the last compute
            in 8 bit.
    """
    net = predictor.net
    model = convert(fold_network(net, predictor.in_channels), predictor.in_channels)
    if ranges is not None:
        quantise(model, ranges)

    def build() -> Run:
        request = compile_model(model).create_infer_request()

        def compute(images: Tensor) -> Tensor:
            return torch.from_numpy(request.infer([images.contiguous().numpy()], share_inputs=True)[0])

        return lambda images: net.run_padded(compute, images)

    version = import_openvino().__version__.partition("-")[0]
    return Runtime(f"OpenVINO {version}", "float32" if ranges is None else "int8", build, build())


def measure_ranges(predictor: NetPredictor, patches: NDArray[np.float32]) -> Ranges:
    """Returns the range of what every convolution reads, over scaled patches (n, in_channels, y, x)."""
    import_openvino()
    from openvino import opset13 as ops

    model = convert(fold_network(predictor.net, predictor.in_channels), predictor.in_channels)
    first = len(model.outputs)
    for convolution in _list_convolutions(model):
        read, axes = convolution.input_value(0), ops.constant(np.arange(4))
        model.add_results([ops.result(reduce(read, axes)) for reduce in (ops.reduce_min, ops.reduce_max)])
    request = compile_model(model).create_infer_request()
    found = []

    def note(images: Tensor) -> Tensor:
        results = request.infer([images.contiguous().numpy()])
        found.append([float(results[number]) for number in range(first, len(model.outputs))])
        return images

    for patch in patches:
        predictor.net.run_padded(note, torch.from_numpy(patch[None]))
    limits = np.array(found).reshape(len(patches), -1, 2)
    return list(zip(limits[..., 0].min(0).tolist(), limits[..., 1].max(0).tolist(), strict=True))


def import_openvino() -> Any:
    """Imports openvino without its telemetry, which would report every import to its maker."""
    absent = object()
    before = sys.modules.get("openvino_telemetry", absent)
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # importing it fails, and openvino does without
    try:
        import openvino
    finally:
        if before is absent:
            sys.modules.pop("openvino_telemetry", None)
    return openvino


def convert(net: Network, in_channels: int) -> Any:
    """Returns an openvino.Model of a network's core."""
    import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    edge = max(2 * net.stride, net.minimum)
    images = torch.zeros(2, in_channels, edge, edge + net.stride)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch no longer likes that its graphs are traced
        front_end = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(net.core, example_input=(images,), shared_memory=False)
        return front_end.convert(front_end.load(decoder))


def compile_model(model: Any) -> Any:
    """Compiles for this CPU.

    32 bit is asked for, because OpenVINO takes bfloat16 where the CPU has it, with other labels on another machine. Threads
    are not pinned, because those of all worker processes would be pinned to the same cores.
    """
    threads = torch.get_num_threads()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    return import_openvino().Core().compile_model(model, "CPU", settings)


def quantise(model: Any, ranges: Ranges) -> None:
    """Tells OpenVINO to compute the convolutions between the first and the last in 8 bit.

    What they read is rounded to 256 steps of its range, their weights to 255 steps of each filter's own (Jacob et al. 2018,
    arXiv:1712.05877). The first and the last, which cost little and where rounding shows most, stay in 32 bit.
    """
    from openvino import opset13 as ops

    convolutions = _list_convolutions(model)
    if len(convolutions) != len(ranges):
        raise ValueError(f"ranges of {len(ranges)} convolutions were measured, and this network has {len(convolutions)}")
    for convolution, (low, high) in list(zip(convolutions, ranges, strict=True))[1:-1]:
        weights = _read_weights(convolution)
        if weights is None:
            continue
        least, most = np.float32(min(low, 0)), np.float32(max(high, low + 1e-6, 1e-6))
        rounded = ops.fake_quantize(convolution.input_value(0), least, most, least, most, LEVELS)
        convolution.input(0).replace_source_output(rounded.output(0))
        largest = np.abs(weights).max((-3, -2, -1), keepdims=True).clip(1e-12).astype(np.float32)
        rounded = ops.fake_quantize(convolution.input_value(1), -largest, largest, -largest, largest, LEVELS - 1)
        convolution.input(1).replace_source_output(rounded.output(0))
    model.validate_nodes_and_infer_types()


def _list_convolutions(model: Any) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() in ("Convolution", "GroupConvolution")]


def _read_weights(convolution: Any) -> NDArray[Any] | None:
    source = convolution.input_value(1).get_node()
    return source.get_data() if source.get_type_name() == "Constant" else None
