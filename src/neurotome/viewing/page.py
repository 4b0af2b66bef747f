"""open_page: a scene served to a browser on this machine by neuroglancer, whose client comes with its package.

neuroglancer (extra view) must be there before this module is imported.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import neuroglancer
import numpy as np
import tornado.web
from neuroglancer.server import Server
from neuroglancer.viewer_base import ViewerBase
from numpy.typing import NDArray

from neurotome.errors import NeurotomeError, RunError, SettingsError, show
from neurotome.io.lazy_array import Coarser
from neurotome.viewing.levels import Repeated, choose_limit, choose_source
from neurotome.viewing.scene import OPACITY, LabelLayer, Scene, find_coarser
from neurotome.viewing.state import KEPT, State, restore_state
from neurotome.volume import Size

ADDRESS = "127.0.0.1"
PANEL = 600
"""Pixels that the image's longest edge takes of a page at first, if it is shown alone."""

OVERSEEN = 1024
"""Voxels on the longest axis of a stored level that are few enough to begin with the whole volume in view."""

MESH_VOXELS = 1 << 24
"""Labels up to this size are shown as surfaces too: a mesh is made of all of them at once, 0.5 s for a million voxels."""

SHADER = "#uicontrol invlerp normalized\nvoid main() { emitGrayscale(normalized()); }\n"


@dataclass(frozen=True)
class Page:
    """A scene that is served until its block ends.

    Attributes:
        url: Where; whoever does not know its token sees nothing.
        viewer: neuroglancer's own object.
    """

    url: str
    port: int
    viewer: ViewerBase

    def read_state(self) -> State:
        """Returns what is shown now, as neuroglancer describes it."""
        state: State = json.loads(json.dumps(self.viewer.state.to_json()))
        return state


@contextlib.contextmanager
def open_page(scene: Scene, *, port: int = 0, state: State | None = None) -> Iterator[Page]:
    """Serves a scene on the loopback interface.

    Args:
        scene: What is shown; it is read while it is looked at.
        port: 0: any that is free.
        state: Of an earlier page, to begin with.

    Raises:
        SettingsError: The port cannot be used.
        RunError: The state is of other layers.
    """
    server = _start(port)
    try:
        viewer = ViewerBase(allow_credentials=False)
        server.viewers[viewer.token] = viewer
        names = f"{server.server_url}/names/{viewer.token}"
        server.app.add_handlers(r".*", [(rf"/names/{viewer.token}/(\d+)/info", _Names, {"layers": scene.layers})])
        viewer.set_state(_describe(scene, names))
        if state is not None:
            restored = restore_state(json.loads(json.dumps(viewer.shared_state.raw_state)), state)
            _check_state(restored)
            viewer.set_state(restored)
        yield Page(f"{server.server_url}/v/{viewer.token}/", server.port, viewer)
    finally:
        server.stop()


def _start(port: int) -> Server:
    try:
        socket.create_server((ADDRESS, port)).close()  # tornado leaves a socket open where this fails
        return Server(bind_address=ADDRESS, bind_port=port)  # one of our own: others of this process are left alone
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        reason = "is used by another program" if error.errno == errno.EADDRINUSE else "may not be used by you"
        raise SettingsError(f"port {port} {reason}; expected a free one. Choose another --port, or 0 for any.") from error


def _describe(scene: Scene, names: str) -> neuroglancer.ViewerState:
    image, *labels = [find_coarser(data) for data in (scene.image.data, *(layer.data for layer in scene.layers))]
    flat = scene.image.shape[0] == 1 or _is_cut_in_slices(scene.image.data)
    state = neuroglancer.ViewerState()
    state.dimensions = _make_space(scene, "xyz")  # the order on the screen; voxels keep theirs
    state.position = [size / 2 for size in reversed(scene.image.shape)]
    state.layout = "xy" if flat else "4panel"
    edges = np.multiply(scene.image.shape, scene.size_um or (1, 1, 1)) / min(scene.size_um or (1,))  # the scales' unit
    fitting = float(max(edges)) / (PANEL if flat else PANEL / 2)
    # all of a large volume takes long to read, where no coarse level is stored: it begins at its middle, a voxel for a pixel
    state.cross_section_scale = fitting if _can_be_overseen(scene, [image, *labels]) else min(fitting, 1.0)
    state.projection_scale = 1.2 * float(max(edges))
    state.show_slices = state.show_axis_lines = False
    state.layers["image"] = neuroglancer.ImageLayer(
        source=_serve(scene, scene.image.data, image, "image"),
        shader=SHADER,
        shader_controls={"normalized": {"range": list(scene.contrast)}},
    )
    for number, (layer, coarser) in enumerate(zip(scene.layers, labels, strict=True)):
        sources: list[Any] = [_serve(scene, layer.data, coarser, "segmentation")]
        if layer.names:
            sources.append(f"precomputed://{names}/{number}")
        shown = neuroglancer.SegmentationLayer(
            source=sources,
            segments=list(layer.colours),
            segment_colors={i: "#{:02x}{:02x}{:02x}".format(*colour) for i, colour in layer.colours.items()},
            selected_alpha=OPACITY,
            hide_segment_zero=True,
            tab="segments",
        )
        state.layers.append(name=layer.name, layer=shown, visible=number == 0)
    if scene.layers:
        state.selected_layer = neuroglancer.SelectedLayerState(layer=scene.layers[0].name, visible=True)
    return state


def _check_state(state: State) -> None:
    typed = neuroglancer.ViewerState(state)
    for key in KEPT:
        try:
            getattr(typed, key)
        except (TypeError, ValueError) as error:
            raise RunError(
                f"the saved view says {key}: {show(state.get(key))}, which neuroglancer does not know; expected what "
                "--save-state wrote. Take it out, or leave --from-state out."
            ) from error


def _can_be_overseen(scene: Scene, coarser: Sequence[Sequence[Coarser]]) -> bool:
    layers = (scene.image.data, *(layer.data for layer in scene.layers))
    return all(
        isinstance(data, np.ndarray) or any(max(level.data.shape) <= OVERSEEN for level in levels)
        for data, levels in zip(layers, coarser, strict=True)
    )


def _serve(scene: Scene, data: Any, coarser: Sequence[Coarser], kind: str) -> Any:
    subsources = {"default": True}
    if kind == "segmentation" and isinstance(data, np.ndarray) and data.shape[0] > 1 and data.size <= MESH_VOXELS:
        subsources["meshes"] = True
    volume = _Pyramid(
        data,
        coarser,
        sizes=scene.size_um or (1, 1, 1),
        dimensions=_make_space(scene, "zyx"),
        volume_type=kind,
        encoding="npz",  # its raw form fails with numpy 2.4
        downsampling="2d" if _is_cut_in_slices(data) else "3d",
        mesh_options={"max_quadrics_error": -1.0},  # nothing is simplified, which takes 20 times as long
    )
    return neuroglancer.LayerDataSource(url=volume, enable_default_subsources=False, subsources=subsources)


def _make_space(scene: Scene, names: str) -> Any:
    sizes = dict(zip("zyx", scene.size_um or (1, 1, 1), strict=True))
    unit = "um" if scene.size_um else ""
    return neuroglancer.CoordinateSpace(names=list(names), units=unit, scales=[sizes[name] for name in names])


def _is_cut_in_slices(data: Any) -> bool:
    """Says whether a file stores every slice by itself, so that other directions than xy take long."""
    chunk = getattr(data, "chunk_zyx", None)
    return chunk is not None and chunk[0] == 1


class _Pyramid(neuroglancer.LocalVolume):  # type: ignore[misc]
    """A layer that answers from the stored level of which the fewest voxels are read."""

    def __init__(self, data: Any, coarser: Sequence[Coarser], *, sizes: Size, **described: Any) -> None:
        self._levels, self._sizes, self._described = (Coarser((1, 1, 1), data), *coarser), sizes, described
        self._factors = [level.factors for level in self._levels]
        self._flat, self._said = described["downsampling"] == "2d", threading.Event()
        limit = choose_limit(data.shape, self._factors, sizes, flat=self._flat)
        super().__init__(_Served(data, data.dtype, self._said), max_downsampling=limit, **described)

    def get_encoded_subvolume(self, data_format: str, start: Any, end: Any, scale_key: str) -> Any:
        """Returns voxels `start` up to `end` (z, y, x) of a scale, as neuroglancer's server asks for them."""
        z, y, x = (int(by) for by in scale_key.split(","))
        if min(z, y, x) < 1:
            raise ValueError("Invalid downsampling factor.")  # which the server answers as a bad request
        source = choose_source((z, y, x), self._factors, self._sizes, flat=self._flat)
        stored = Repeated(self._levels[source.level], source.repeats, self.shape)
        level = neuroglancer.LocalVolume(_Served(stored, self._levels[0].data.dtype, self._said), **self._described)
        return level.get_encoded_subvolume(data_format, start, end, ",".join(map(str, source.thinned)))


class _Served:
    """The array that neuroglancer reads; what cannot be read is said, once for a layer, and stays black."""

    def __init__(self, data: Any, dtype: np.dtype[Any], said: threading.Event) -> None:
        self._data, self.shape, self._said = data, data.shape, said
        self.dtype = np.dtype(f"u{dtype.itemsize}") if dtype.kind == "i" else dtype  # labels have no sign there

    def __getitem__(self, place: Any) -> NDArray[Any]:
        try:
            return np.asarray(self._data[place]).astype(self.dtype, copy=False)
        except NeurotomeError as error:
            if not self._said.is_set():
                self._said.set()
                sys.stderr.write(f"neurotome: note: {error} Not shown there.\n")
            raise ValueError(str(error)) from error  # which the server answers as a bad request

    def transpose(self) -> NDArray[Any]:
        """Returns the whole array (x, y, z), of which meshes are made."""
        if not isinstance(self._data, np.ndarray) or self._data.size > MESH_VOXELS:
            raise ValueError("too large for meshes")
        return np.asarray(self._data, self.dtype).transpose()


class _Names(tornado.web.RequestHandler):
    """Answers with the names of a layer's classes, as a precomputed source of segment properties.

    References:
        https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/segment_properties.md
    """

    def initialize(self, layers: list[LabelLayer]) -> None:
        self._layers = layers

    def get(self, number: str) -> None:
        names = self._layers[int(number)].names
        labels = {"id": "label", "type": "label", "values": list(names.values())}
        inline = {"ids": [str(i) for i in names], "properties": [labels]}
        self.finish({"@type": "neuroglancer_segment_properties", "inline": inline})
