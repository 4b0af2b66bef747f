"""build_onnx_runtime: a network in ONNX Runtime, on the CPU."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurotome.models.back_ends.folded import fold_network
from neurotome.models.net import Network
from neurotome.models.net_predictor import NetPredictor, Run, Runtime


def build_onnx_runtime(predictor: NetPredictor) -> Runtime:
    """Returns the network exported once, for any number and size of images, in as many threads as torch has."""
    import onnxruntime

    net = predictor.net
    folded = fold_network(net, predictor.in_channels)
    content = export_onnx(folded.core, folded, predictor.in_channels)

    def build() -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.enable_mem_pattern = False  # the plan of a tile's memory comes on top of the memory that its first run took
        # threads that spin while they wait take the cores from those that read and write
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def compute(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {name: images.contiguous().numpy()})[0])

        return lambda images: net.run_padded(compute, images)

    return Runtime(f"ONNX Runtime {onnxruntime.__version__}", "float32", build, build())


def export_onnx(
    module: nn.Module,
    net: Network,
    in_channels: int,
    beside: tuple[Tensor, ...] = (),
    inputs: Sequence[str] | None = None,
    output: Sequence[str] | None = None,
) -> bytes:
    """Returns a module as ONNX, for any number of images with edges that are multiples of a network's stride.

    Args:
        module: Takes images (n, in_channels, y, x), and what is `beside` them, of that very shape.
        net: What it is made of.
        in_channels: The network's.
        beside: Further inputs.
        inputs: Their names in the graph.
        output: Its name in the graph.
    """
    edge = max(2 * net.stride, net.minimum)
    images = torch.zeros(2, in_channels, edge, edge + net.stride)
    rows, columns = (net.stride * torch.export.Dim(name, max=1 << 16) for name in ("rows", "columns"))
    shapes = ({0: torch.export.Dim("images"), 2: rows, 3: columns}, *({} for _ in beside))
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            quiet.setLevel(logging.ERROR)
            program = torch.onnx.export(
                module,
                (images, *beside),
                dynamo=True,
                dynamic_shapes=shapes,
                verbose=False,
                input_names=inputs,
                output_names=output,
            )
        finally:
            quiet.setLevel(level)
    if program is None:
        raise ValueError("torch exported nothing")
    content: bytes = program.model_proto.SerializeToString()
    return content
