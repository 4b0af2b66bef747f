"""Images, stacks and labels: `open_volume` for all formats, sinks that write slice by slice, and BossDB."""

from neurotome.io.files import find_image, list_images
from neurotome.io.opening import check_grey, open_labels, open_volume, read_image, read_labels
from neurotome.io.sink import Sink, create_image, create_labels, write_image, write_labels

__all__ = [
    "Sink",
    "check_grey",
    "create_image",
    "create_labels",
    "find_image",
    "list_images",
    "open_labels",
    "open_volume",
    "read_image",
    "read_labels",
    "write_image",
    "write_labels",
]
