"""attach_back_end: another runtime for a trained network, by name."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any, get_args

import numpy as np
import torch

from neurotome.errors import ModelError, SettingsError, unknown
from neurotome.models.net_predictor import NetPredictor, Runtime
from neurotome.predictor import BackEnd, Ranges

NEEDED = {"onnxruntime": ("onnx", ("onnx", "onnxscript", "onnxruntime")), "openvino": ("openvino", ("openvino",))}
"""By back end: the extra that installs it, and the packages."""

MOST_DIFFERENT = 1e-3
"""Difference of a probability from torch's that no rounding makes."""


def is_installed(back_end: BackEnd) -> bool:
    """Says whether the packages that a back end needs are there; nothing is imported."""
    _, packages = NEEDED.get(back_end.removesuffix("-int8"), ("", ()))
    return all(importlib.util.find_spec(package) is not None for package in packages)


def attach_back_end(predictor: NetPredictor, back_end: BackEnd, ranges: Ranges | None = None) -> NetPredictor:
    """Returns the predictor with another runtime.

    Args:
        predictor: A trained network, where it is to run.
        back_end: auto is torch, until `choose_back_end` has seen a tile.
        ranges: What `measure_ranges` or `choose_back_end` found; openvino-int8 needs them, the others do not.

    Raises:
        SettingsError: It is unknown or not installed, does not run on this device, or lacks the ranges.
        ModelError: It cannot take this network.
    """
    if back_end not in get_args(BackEnd):
        raise SettingsError(unknown("back end", back_end, get_args(BackEnd)))
    if back_end in ("auto", "torch"):
        return dataclasses.replace(predictor, runtime=_build_torch(predictor))
    if predictor.device.type != "cpu":
        raise SettingsError(f"back end {back_end} runs on a CPU; on {predictor.device} use torch, or give --device cpu.")
    if predictor.halo_zyx[0]:
        raise ModelError(f"back end {back_end} cannot run a network of 3 dimensions; use --back-end torch.")
    if not is_installed(back_end):
        extra, packages = NEEDED[back_end.removesuffix("-int8")]
        raise SettingsError(f"back end {back_end} needs {', '.join(packages)}: pip install 'neurotome[{extra}]'")
    if back_end == "openvino-int8" and ranges is None:
        raise SettingsError("back end openvino-int8 needs tiles of the image to measure ranges; choose_back_end does it.")
    build: Any
    if back_end == "onnxruntime":
        from neurotome.models.back_ends.onnx_runtime import build_onnx_runtime as build
    else:
        from neurotome.models.back_ends.open_vino import build_openvino as build
    try:
        runtime = build(predictor, ranges) if back_end == "openvino-int8" else build(predictor)
        attached = dataclasses.replace(predictor, runtime=runtime)
        _check_size(predictor, attached, exact=back_end != "openvino-int8")
    except Exception as error:  # whatever a converter raises on an operator that it does not know
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"back end {back_end} cannot run this network ({reason:.200}); use --back-end torch.") from error
    return attached


def _check_size(predictor: NetPredictor, attached: NetPredictor, exact: bool) -> None:
    """Raises a ValueError if images of another size than that of the conversion give something else than torch does."""
    edges = (max(factor * predictor.net.stride, predictor.net.minimum) for factor in (3, 5))
    patches = np.random.default_rng(0).standard_normal((1, predictor.in_channels, *edges), np.float32)
    difference = np.abs(attached.predict_probs(patches) - predictor.predict_probs(patches)).max()
    if exact and not difference < MOST_DIFFERENT:
        raise ValueError(f"probabilities differ by {difference:.2g} from torch's")


def _build_torch(predictor: NetPredictor) -> Runtime:
    from neurotome.models.back_ends.folded import fold_network

    net = fold_network(predictor.net, predictor.in_channels)
    return Runtime(f"torch {torch.__version__.partition('+')[0]}", "float32", lambda: net, net)
