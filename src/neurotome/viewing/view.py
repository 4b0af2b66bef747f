"""view: the command that shows an image with its labels."""

from __future__ import annotations

import sys
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from neurotome.classes import Palette
from neurotome.errors import SettingsError
from neurotome.lazy import import_extra
from neurotome.outputs import plan_outputs
from neurotome.stopping import TerminatedError
from neurotome.tables import Table
from neurotome.viewing.scene import LabelLayer, Scene, open_scene, show_size
from neurotome.viewing.state import read_state, write_state
from neurotome.viewing.window import check_display, has_display, show_window
from neurotome.volume import state_size


@dataclass(frozen=True)
class ViewSettings:
    """What is shown beside the labels, and where."""

    compare: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    """More label files of this image, or run folders whose predictions hold an image of this name; each is a layer. A run
    predicts nothing now: give what predict wrote."""

    classes: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    """Names of the classes by their ids, the first is id 0, for label files that do not say them."""

    voxel_size_um: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = ()
    """Edges of a voxel in micrometres, z y x, or one number for all three; none: what the files say."""

    channel: int | Literal["auto"] = "auto"
    """Which channel of an image of several, from 0; auto: the only one."""

    time: int | Literal["auto"] = "auto"
    """Which time of an image of several, from 0; auto: the only one."""

    palette: Palette = "colour-blind-safe"
    """Colours of the classes."""

    port: int = 0
    """Port of this machine at which the page is; 0: any that is free."""

    open: bool = True
    """Open the page in a browser, where this machine has a display."""

    from_state: str = ""
    """File that --save-state wrote, of the same files: begin where that page ended."""

    save_state: str = ""
    """New file for what the page shows when it ends: place, zoom, layers, contrast, points that were set; no voxels."""

    napari: bool = False
    """Show the same layers in napari (extra: napari) instead of a browser."""

    def __post_init__(self) -> None:
        state_size(self.voxel_size_um)
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port is {self.port}; expected 1 to 65535, or 0 for any that is free.")
        if self.napari and (self.port or self.from_state or self.save_state):
            raise SettingsError(
                "port, from_state and save_state are of the page in a browser; leave them out with --napari."
            )


def view(
    image: Path, labels: Path | None = None, *, settings: Annotated[ViewSettings, Parameter(name="*")] = ViewSettings()
) -> None:
    """Shows an image, and labels laid over it in the colours of their classes, until Ctrl-C.

    The page is neuroglancer's (extra: view). It is served by this machine to itself alone, at an address that holds a
    token, and fetches nothing from elsewhere. Volumes of any size are read where they are looked at.

    Args:
        image: An image, a volume, or a folder of slices, as predict reads it.
        labels: Its labels, as measure reads them.
        settings: What is shown beside them, and where.

    Raises:
        ImageError: A file cannot be read, or labels have another shape.
        NeurotomeError: The extra is not installed; with --napari, there is no display.
        RunError: A run holds no prediction of the image, the saved view is of other files, or --save-state is there.
        SettingsError: A setting cannot work, or the port is in use.
    """
    if settings.napari:
        check_display()
    import_extra(*(("napari", "napari") if settings.napari else ("neuroglancer", "view")))
    compared = [Path(path) for path in settings.compare]
    image, labels, kept = Path(image), None if labels is None else Path(labels), Path(settings.save_state)
    if settings.save_state:
        plan_outputs([kept], inputs=[path for path in (image, labels, *compared) if path])
    state = read_state(Path(settings.from_state)) if settings.from_state else None
    scene = open_scene(
        image,
        labels,
        compared,
        classes=settings.classes,
        palette=settings.palette,
        size_um=state_size(settings.voxel_size_um),
        channel=None if settings.channel == "auto" else settings.channel,
        time=None if settings.time == "auto" else settings.time,
    )
    if settings.napari:
        show_window(scene)
        return
    from neurotome.viewing.page import open_page

    with open_page(scene, port=settings.port, state=state) as page:
        lines = [_tabulate(scene).to_text(), f"voxels of {show_size(scene.size_um)}", page.url]
        if settings.open and (not has_display() or not webbrowser.open(page.url)):
            lines.append(f"No browser here. From another machine: ssh -L {page.port}:127.0.0.1:{page.port} THIS_MACHINE")
        try:
            sys.stdout.write("\n".join([*lines, "Ctrl-C ends it.\n"]))
            sys.stdout.flush()
            while True:
                time.sleep(1)
        except TerminatedError:
            raise
        except KeyboardInterrupt:  # the way in which looking ends
            pass
        finally:
            if settings.save_state:
                write_state(kept, page.read_state())


def _tabulate(scene: Scene) -> Table:
    low, high = scene.contrast
    kind = f"{scene.image.data.dtype}, {' x '.join(map(str, scene.image.shape))} (z y x)"
    rows = [("image", str(scene.image.path), f"{kind}, {low:.4g} black to {high:.4g} white")]
    rows += [(layer.name, str(layer.path), _list_shown(layer)) for layer in scene.layers]
    return Table(("layer", "file", "shown"), rows)


def _list_shown(layer: LabelLayer) -> str:
    return ", ".join(f"{i} {name}" for i, name in layer.names.items()) or "every id but 0"
