"""show_window: a scene in napari, which needs its extra and a display."""

from __future__ import annotations

import os
import sys
from typing import Any

from neurotome.errors import NeurotomeError
from neurotome.io.lazy_array import LazyArray
from neurotome.lazy import import_extra
from neurotome.viewing.scene import OPACITY, LabelLayer, Scene, find_coarser

CLEAR = (0.0, 0.0, 0.0, 0.0)

UNCHUNKED = (1, 512, 512)
"""Voxels (z, y, x) that are read together of a file that stores no chunks."""


def has_display() -> bool:
    """Says whether programs with windows can run here."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def check_display() -> None:
    """Checks that a window can be opened; without a display napari would end the process, or draw nothing."""
    if not has_display():
        raise NeurotomeError(
            "napari opens a window, and no display was found (DISPLAY and WAYLAND_DISPLAY are not set). Leave out --napari "
            "and look with a browser, or give this command on a machine with a screen."
        )


def show_window(scene: Scene) -> None:
    """Shows a scene in a window of napari, until it is closed."""
    napari = import_extra("napari", "napari")
    add_layers(napari.Viewer(title=f"{scene.image.path}"), scene)
    napari.run()


def add_layers(viewer: Any, scene: Scene) -> None:
    """Adds image and labels to a napari viewer (or to its `ViewerModel`, which needs no display)."""
    place: dict[str, Any] = {"scale": scene.size_um or (1, 1, 1), "units": ["um" if scene.size_um else "pixel"] * 3}
    viewer.add_image(name="image", contrast_limits=scene.contrast, **_list_levels(scene.image.data), **place)
    for number, layer in enumerate(scene.layers):
        described = describe_labels(layer) | _list_levels(layer.data)
        viewer.add_labels(visible=number == 0, **described, **place)
    viewer.canvas.overlays.scale_bar.visible = scene.size_um is not None


def _list_levels(data: Any) -> dict[str, Any]:
    """Returns the levels of a layer as napari takes them; it reads what is in view, of the level that fits the screen."""
    if not isinstance(data, LazyArray):
        return {"data": data, "multiscale": False}
    from dask.array import from_array  # napari brings it, and cuts out what is in view before it picks a slice

    levels = [data, *(level.data for level in find_coarser(data))]
    lazy = [from_array(level, level.chunk_zyx or UNCHUNKED, asarray=False) for level in levels]  # type: ignore[no-untyped-call]
    return {"data": lazy, "multiscale": True}


def describe_labels(layer: LabelLayer) -> dict[str, Any]:
    """Returns name, colours and names of classes as napari takes them for a layer of labels; needs napari."""
    colours: dict[str, Any] = {"colormap": _make_colours(layer)} if layer.colours else {}
    features = {"index": list(layer.names), "class": list(layer.names.values())}  # named where the mouse is
    return {
        "name": layer.name,
        "opacity": OPACITY,
        "features": features if layer.names else None,
        "multiscale": False,
        "metadata": {"neurotome": {"classes": layer.classes.to_json()}} if layer.classes else {},
        **colours,
    }


def _make_colours(layer: LabelLayer) -> Any:
    from napari.utils.colormaps import DirectLabelColormap

    colours: dict[int | None, tuple[float, ...]] = {None: CLEAR, 0: CLEAR}
    colours |= {i: (*(part / 255 for part in colour), 1.0) for i, colour in layer.colours.items()}
    return DirectLabelColormap(color_dict=colours)
