"""CorrectPanel: crops cut out of layers, corrected with the brush, saved, and collected into a dataset."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QCheckBox, QFileDialog, QLineEdit

from neurotome.annotating.collect import collect
from neurotome.annotating.crop import CropSettings, cut_out
from neurotome.annotating.crop_folder import Crop, read_crop, save_labels
from neurotome.errors import SettingsError
from neurotome.napari.commands import write_command
from neurotome.napari.fields import NO_IMAGE, LayerBox, SizeEdit, is_image, is_labels, is_shapes
from neurotome.napari.layers import (
    find_box,
    find_classes,
    find_middle,
    find_path,
    name_file,
    open_layer,
    read_data,
    read_size,
    read_triple,
)
from neurotome.napari.panel import Panel
from neurotome.viewing.scene import LabelLayer, find_contrast
from neurotome.viewing.window import describe_labels

MIDDLE = "middle of the view"

CROP = "neurotome crop"
"""Key of a layer's metadata that holds its `Crop`."""


class CorrectPanel(Panel):
    """Cuts out, saves and collects crops; painting is napari's."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.image = LayerBox(napari_viewer, is_image, "image layer")
        self.labels = LayerBox(
            napari_viewer, lambda layer: is_labels(layer) and CROP not in layer.metadata, "layer of labels", ("none",)
        )
        self.classes = QLineEdit("background, blood vessel, cell, axon")
        self.classes.setToolTip("Names by id, used where the labels do not say what their ids mean.")
        self.voxel_size = SizeEdit(self.image)
        self.where = LayerBox(napari_viewer, is_shapes, "layer of shapes", (MIDDLE,), follow=False)
        self.where.setToolTip("Or a layer of shapes: the box around the shape that is selected or drawn last.")
        self.size = QLineEdit("1 128 128")
        self.size.setToolTip("Voxels of a crop, z y x. A shape says y and x.")
        self.invert = QCheckBox("vessels and cells are bright")
        self.invert.setToolTip("Flip the grey values of the crop, where the model was given flipped ones.")
        self.form.addRow("image", self.image)
        self.form.addRow("labels", self.labels)
        self.form.addRow("classes", self.classes)
        self.form.addRow("voxel size (um)", self.voxel_size)
        self.form.addRow("where", self.where)
        self.form.addRow("size (z y x)", self.size)
        self.form.addRow("invert", self.invert)
        self.folder = self.add_path("crops", "Folder in which crops are kept, a folder each.")
        self.crop = LayerBox(napari_viewer, lambda layer: CROP in layer.metadata and is_labels(layer), "crop")
        self.form.addRow("crop", self.crop)
        self.dataset = self.add_path("dataset", "Folder of a dataset, to which a crop is added; made if missing.")
        self.add_button("Cut out", self.cut, "Cut a crop out and open its labels to be corrected.")
        self.add_button("Open", self.ask_and_open, "Open a crop that was cut out before.")
        self.add_button("Save", self.save, "Save the corrected labels of the crop.")
        self.add_button("Add to dataset", self.add, "Save the crop, and put it into the dataset.")
        self.stop.hide()

    def cut(self) -> None:
        """Cuts a crop out and opens it."""
        with self.saying_errors():
            layer, labels, shapes = self.image.need(), self.labels.layer, self.where.layer
            size_um = read_size(self.voxel_size.text())
            size = read_triple(self.size.text(), "size")
            at = find_middle(self.viewer, layer)
            if shapes is not None:
                at, (height, width) = find_box(shapes, layer)
                size = (size[0], height, width)
            stated = [name.strip() for name in self.classes.text().split(",") if name.strip()]
            classes = find_classes(labels, stated)
            settings = CropSettings(at=at, size=size, invert=self.invert.isChecked())
            folder = _need_folder(self.folder.text(), "crops")
            self.show_command(
                write_command(
                    "crop",
                    find_path(layer) or f"{name_file(layer.name)}.tif",
                    None if labels is None else find_path(labels) or f"{name_file(labels.name)}.tif",
                    at=at,
                    size=size,
                    invert=settings.invert,
                    classes=tuple(stated) if labels is None else (),
                    voxel_size_um=size_um,
                    out=folder,
                )
            )
            stored = None if labels is None else read_data(labels)
            path = cut_out(open_layer(layer, size_um), stored, classes, folder, settings)
            if labels is not None:
                labels.visible = False  # it would lie over what is painted
            self.open(path, like=layer)

    def ask_and_open(self) -> None:
        """Asks for the folder of a crop and opens it."""
        if chosen := QFileDialog.getExistingDirectory(self, "Crop", self.folder.text()):
            with self.saying_errors():
                self.open(Path(chosen))

    def open(self, folder: Path, like: Any = None) -> None:
        """Opens a crop to be corrected, with the brush in the hand.

        Args:
            folder: That `crop` made.
            like: The image layer over whose voxels it is laid; None: it is laid where its voxel size puts it.
        """
        crop = read_crop(folder)
        edges = crop.image.voxel_size_um
        place: dict[str, Any] = {"scale": edges or (1, 1, 1), "units": ["um" if edges else "pixel"] * 3}
        if like is not None:
            place = {
                "scale": _to_three(like.scale, 1.0),
                "units": [like.units[-1]] * (3 - len(like.units)) + [*like.units][-3:],
            }
        corner = [edge * start for edge, start in zip(place["scale"], crop.image.origin_zyx, strict=True)]
        shift = _to_three(like.translate, 0.0) if like is not None else (0.0, 0.0, 0.0)
        place["translate"] = [a + b for a, b in zip(corner, shift, strict=True)]
        grey = crop.image.data
        limits = find_contrast(grey) if like is None else like.contrast_limits
        self.viewer.add_image(grey, name=folder.name, metadata={NO_IMAGE: "crop"}, contrast_limits=limits, **place)
        options = describe_labels(LabelLayer(f"{folder.name} labels", crop.labels, folder, crop.classes))
        options["metadata"][CROP] = crop
        layer = self.viewer.add_labels(crop.labels.copy(), **options, **place)
        layer.bounding_box.visible = True  # nothing outside can be painted
        layer.selected_label, layer.mode = crop.classes.first_id or 1, "paint"
        self.viewer.dims.set_point(range(self.viewer.dims.ndim - 3, self.viewer.dims.ndim), place["translate"])
        self.viewer.layers.selection.active = layer
        self.crop.choose(layer)
        meanings = {**dict(enumerate(crop.classes.names, crop.classes.first_id)), crop.classes.stored_ignore: "not labelled"}
        self.say(f"{folder}\nPaint with {', '.join(f'{value} {name}' for value, name in meanings.items())}; then Save.")

    def save(self) -> Crop | None:
        """Writes the labels of the crop that is chosen; returns it as it is on the disk then, None if it cannot."""
        with self.saying_errors():
            layer = self.crop.need()
            saved = save_labels(layer.metadata[CROP], layer.data)
            layer.metadata[CROP] = saved
            self.say(f"{saved.folder}: saved.")
            return saved
        return None

    def add(self) -> None:
        """Saves the crop that is chosen and puts it into the dataset."""
        crop = self.save()
        if crop is None:
            return
        with self.saying_errors(), warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", UserWarning)
            folder = _need_folder(self.dataset.text(), "dataset")
            self.show_command(write_command("collect", crop.folder, out=folder))
            collect(crop.folder, out=folder)
            self.say("\n".join([f"{crop.folder.name}: in {folder}.", *(str(note.message) for note in notes)]))


def _to_three(values: Any, fill: float) -> list[float]:
    """Returns what a layer says of its axes z, y and x; `fill` for an axis that it has not."""
    found = [float(value) for value in values][-3:]
    return [fill] * (3 - len(found)) + found


def _need_folder(text: str, what: str) -> Path:
    if not text.strip():
        raise SettingsError(f"no folder of {what} is named. Type or choose one; it is made if it is not there.")
    return Path(text.strip()).expanduser()
