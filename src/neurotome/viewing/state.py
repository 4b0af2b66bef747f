"""What a page shows, as a file: where one looks and how, but no voxels, no addresses and no programs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from neurotome.atomic import write_json_once
from neurotome.documents import read_json
from neurotome.errors import RunError

State = dict[str, Any]

FORMAT = "neurotome view 1"

KEPT = (
    *("position", "crossSectionOrientation", "crossSectionScale", "crossSectionDepth", "projectionOrientation"),
    *("projectionScale", "projectionDepth", "showSlices", "showAxisLines", "showScaleBar", "layout", "selectedLayer"),
)
"""What is kept of a state; a shader or an address in a file of a stranger is not."""

KEPT_OF_LAYER = ("visible", "tab", "opacity", "selectedAlpha", "objectAlpha", "shaderControls", "segments")

ANNOTATIONS = ("annotations", "annotationColor", "tool")
"""What is kept of a layer of points and boxes that somebody drew."""


def write_state(path: Path, state: State) -> None:
    """Writes what is worth keeping of a page's state as JSON; RunError if the file is there."""
    layers = [
        _reduce(layer) for layer in state.get("layers", []) if layer.get("type") in ("image", "segmentation", "annotation")
    ]
    kept = {"format": FORMAT, **{key: state[key] for key in KEPT if key in state}, "layers": layers}
    if not write_json_once(path, kept):
        raise RunError(f"{path}: has appeared since this command began, and is left as it is; the view is not saved.")


def read_state(path: Path) -> State:
    """Reads what `write_state` wrote; RunError if it is something else."""
    if not path.is_file():
        raise RunError(f"{path}: no such file; expected one that --save-state wrote.")
    state = read_json(path, RunError, "Expected a file that --save-state wrote.")
    layers = state.get("layers")
    well = isinstance(layers, list) and all(
        isinstance(layer, dict) and isinstance(layer.get("name"), str) for layer in layers
    )
    if state.get("format") != FORMAT or not well:
        raise RunError(f"{path}: no view of this version of neurotome; expected a file that --save-state wrote.")
    return state


def restore_state(default: State, saved: State) -> State:
    """Returns a page's own state as it was saved.

    Args:
        default: Of the page; it has the voxels.
        saved: From `read_state`.

    Raises:
        RunError: It shows layers that the page does not have.
    """
    state = copy.deepcopy(default)
    own = {layer["name"]: layer for layer in state["layers"]}
    for layer in map(_reduce, saved["layers"]):
        name = layer["name"]
        if layer.get("type") == "annotation":
            space = {"outputDimensions": default["dimensions"]}
            source = {"url": "local://annotations", "transform": space}
            state["layers"].append({**layer, "source": source})
        elif name in own and own[name]["type"] == layer.get("type"):
            for key in KEPT_OF_LAYER:  # what a file does not say is neuroglancer's default, not this page's
                own[name].pop(key, None)
            own[name].update(layer)
        else:
            raise RunError(
                f"the saved view shows a layer {name!r}, and these files are {', '.join(own)}; expected the same ones. Give "
                "the files that it was saved with, or leave --from-state out."
            )
    others = {key: value for key, value in state.items() if key not in KEPT}
    return {**others, **{key: saved[key] for key in KEPT if key in saved}}


def _reduce(layer: State) -> State:
    kept = ANNOTATIONS if layer.get("type") == "annotation" else ()
    return {key: layer[key] for key in ("name", "type", *KEPT_OF_LAYER, *kept) if key in layer}
