"""Fields of panels: a layer of the viewer, its voxel size, and a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

from qtpy.QtWidgets import QComboBox, QFileDialog, QHBoxLayout, QLineEdit, QToolButton, QWidget

from neurotome.errors import SettingsError
from neurotome.models.model_folder import list_packaged
from neurotome.napari.layers import find_size

NO_IMAGE = "neurotome, no image"
"""Key of a layer's metadata, that of one which is shown and which no panel takes as its input."""


class LayerBox(QComboBox):
    """A choice among the layers of a viewer that fit, the newest first, and among `more` that is no layer.

    What is new is chosen, unless `follow` is False.
    """

    def __init__(
        self, viewer: Any, fits: Callable[[Any], bool], what: str, more: tuple[str, ...] = (), follow: bool = True
    ) -> None:
        super().__init__()
        self._viewer, self._fits, self._what, self._more, self._follow = viewer, fits, what, more, follow
        self._layers: list[Any] = []
        events, refresh = viewer.layers.events, self.refresh
        for event in (events.inserted, events.removed, events.reordered):
            event.connect(refresh)
            self.destroyed.connect(lambda *_, event=event: event.disconnect(refresh))  # a panel may be closed
        self.refresh()

    def refresh(self, _: Any = None) -> None:
        """Lists the layers that are there now; what was chosen stays chosen, unless a new one is."""
        chosen = self.layer
        found = [layer for layer in reversed(self._viewer.layers) if self._fits(layer)]
        new = [layer for layer in found if layer not in self._layers]
        self._layers = found
        self.clear()
        self.addItems([*self._more, *(layer.name for layer in found)])
        if new and self._follow:
            self.choose(new[0])
        elif chosen in found:
            self.choose(chosen)

    def showPopup(self) -> None:  # noqa: N802 - Qt's name
        """Lists the layers as they are named now, then opens the list."""
        self.refresh()
        super().showPopup()

    def choose(self, layer: Any) -> None:
        """Chooses a layer."""
        self.setCurrentIndex(len(self._more) + self._layers.index(layer))

    @property
    def layer(self) -> Any:
        """The layer that is chosen, None if none is."""
        index = self.currentIndex() - len(self._more)
        return self._layers[index] if 0 <= index < len(self._layers) else None

    def need(self) -> Any:
        """Returns the layer that is chosen; SettingsError if there is none."""
        if self.layer is None:
            raise SettingsError(f"no {self._what} is chosen. Open one, and choose it.")
        return self.layer


class ModelBox(QWidget):
    """A model: packaged, typed, a folder or package that is chosen, or a run that was trained in this window."""

    _boxes: ClassVar[WeakSet[ModelBox]] = WeakSet()

    def __init__(self) -> None:
        super().__init__()
        self.box, layout = QComboBox(), QHBoxLayout(self)
        self.box.setEditable(True)
        self.box.setToolTip("Packaged model, run folder, model folder or package (.zip).")
        self.box.addItems(list_packaged()[::-1])
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.box, 1)
        for text, tip, choose in (
            ("run", "Choose a folder.", self._choose_folder),
            (".zip", "Choose a file.", self._choose),
        ):
            button = QToolButton()
            button.setText(text)
            button.setToolTip(tip)
            button.clicked.connect(choose)
            layout.addWidget(button)
        ModelBox._boxes.add(self)

    @property
    def model(self) -> str:
        """What is chosen or typed."""
        return str(self.box.currentText()).strip()

    def offer(self, model: Path | str) -> None:
        """Puts a model first and chooses it."""
        self.box.insertItem(0, str(model))
        self.box.setCurrentIndex(0)

    def _choose_folder(self, *_: Any) -> None:
        if chosen := QFileDialog.getExistingDirectory(self, "Run or model folder"):
            self.offer(chosen)

    def _choose(self, *_: Any) -> None:
        if chosen := QFileDialog.getOpenFileName(self, "Package", filter="Packages (*.zip)")[0]:
            self.offer(chosen)


def offer_model(model: Path | str) -> None:
    """Offers a new model in every panel that is open."""
    for box in list(ModelBox._boxes):
        box.offer(model)


class SizeEdit(QLineEdit):
    """The voxel size, which begins with what the image layer that is chosen says."""

    def __init__(self, image: LayerBox) -> None:
        super().__init__()
        self.setPlaceholderText("not known")
        self.setToolTip("One edge, or z y x. A layer says it if its scale has a unit of length.")
        self._image = image
        image.currentIndexChanged.connect(self.refresh)
        self.refresh()

    def refresh(self, *_: Any) -> None:
        """Shows what the layer says."""
        size_um = None if self._image.layer is None else find_size(self._image.layer)
        edges = () if size_um is None else size_um[:1] if len(set(size_um)) == 1 else size_um
        self.setText(" ".join(f"{edge:.6g}" for edge in edges))


def is_image(layer: Any) -> bool:
    """Says whether a layer is an image that can be predicted or cut."""
    return bool(layer._type_string == "image") and NO_IMAGE not in layer.metadata


def is_labels(layer: Any) -> bool:
    """Says whether a layer is one of labels."""
    return bool(layer._type_string == "labels")


def is_shapes(layer: Any) -> bool:
    """Says whether a layer is one of shapes."""
    return bool(layer._type_string == "shapes")
