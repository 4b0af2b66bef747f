"""An image and its labels to look at: in a browser (neuroglancer) or in napari."""
