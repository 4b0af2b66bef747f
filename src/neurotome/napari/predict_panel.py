"""PredictPanel: an image layer labelled by a trained model, as the command predict does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QCheckBox

from neurotome.inference.predict_settings import PredictSettings
from neurotome.napari.commands import write_command
from neurotome.napari.fields import NO_IMAGE, LayerBox, ModelBox, SizeEdit, is_image
from neurotome.napari.layers import find_path, name_file, open_layer, read_size
from neurotome.napari.panel import Panel
from neurotome.napari.predicting import Predicted, label_volume
from neurotome.viewing.scene import LabelLayer
from neurotome.viewing.window import describe_labels


class PredictPanel(Panel):
    """Labels an image layer; its labels become a layer in the colours of their classes."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.image = LayerBox(napari_viewer, is_image, "image layer")
        self.model, self.size = ModelBox(), SizeEdit(self.image)
        self.invert = QCheckBox("vessels and cells are bright")
        self.invert.setToolTip("Flip the grey values first, for images unlike the model's, in which they are dark.")
        self.confidence = QCheckBox("add a layer of it")
        self.confidence.setToolTip("The probability of the class that was chosen, times 255.")
        self.form.addRow("image", self.image)
        self.form.addRow("model", self.model)
        self.form.addRow("voxel size (um)", self.size)
        self.form.addRow("invert", self.invert)
        self.form.addRow("confidence", self.confidence)
        self.add_button("Predict", self.predict)

    def predict(self) -> None:
        """Starts to label the image."""
        with self.saying_errors():
            layer, model = self.image.need(), self.model.model
            size_um = read_size(self.size.text())
            settings = PredictSettings(invert=self.invert.isChecked(), confidence=self.confidence.isChecked())
            self.show_command(
                write_command(
                    "predict",
                    model,
                    find_path(layer) or f"{name_file(layer.name)}.tif",
                    f"{name_file(layer.name)}_labels.tif",
                    invert=settings.invert,
                    confidence=settings.confidence,
                    voxel_size_um=None if size_um is None else size_um[1],
                )
            )
            volume = open_layer(layer, size_um)
            self.start(
                lambda report: label_volume(model, volume, settings, report), lambda found: self._add_labels(layer, found)
            )

    def _add_labels(self, layer: Any, found: Predicted) -> str:
        """Adds what was found over the layer that was predicted."""
        data = layer.data[0] if layer.multiscale else layer.data
        place = {name: getattr(layer, name) for name in ("scale", "translate", "units", "rotate", "shear", "affine")}
        name = f"{layer.name} labels"
        options = describe_labels(LabelLayer(name, found.labels, find_path(layer) or Path(name_file(name)), found.classes))
        self.viewer.add_labels(found.labels.reshape(data.shape), **options, **place)
        if found.confidence is not None:
            options = {"name": f"{layer.name} confidence", "visible": False, "metadata": {NO_IMAGE: "confidence"}, **place}
            self.viewer.add_image(found.confidence.reshape(data.shape), **options)
        return f"{name}: {', '.join(f'{i} {text}' for i, text in enumerate(found.classes.names, found.classes.first_id))}"
