"""What readers of several formats check: claims of headers, lossy compression, colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError

GREY_DTYPES = ("uint8", "uint16", "float32")


def say_remedy(labels: bool) -> str:
    """Returns what to do about colours."""
    if labels:
        return "Save the class ids themselves (0, 1, 2, ...) as one grey channel; making colours grey gives other ids."
    return "Save it as one grey channel (in Fiji: Image > Type > 8-bit)."


def check_claim(path: Path, claimed: int, ratio: int) -> None:
    """Raises an `ImageError` if a file, packed at most to one `ratio`-th, cannot hold the bytes of pixels it claims."""
    size = path.stat().st_size
    if claimed > ratio * size:
        raise ImageError(
            f"{path}: the header claims {claimed} bytes of pixels, but the file has {size} bytes, which "
            "cannot hold them; it is damaged. Copy or export it again."
        )


def note_loss(path: Path, codec: str, *, labels: bool) -> str:
    """Returns what to tell about an image that was compressed with loss; refuses labels with an `ImageError`."""
    if labels:
        raise ImageError(
            f"{path}: may have lost detail to compression ({codec}), which turns class ids into others. Save labels as PNG "
            "or as TIFF with deflate, LZW or no compression, from where they were drawn."
        )
    return f"Images compressed with {codec} may have lost detail; fine structures suffer first. Use what was recorded."


def merge_colours(path: Path, colours: NDArray[Any], *, labels: bool) -> NDArray[Any]:
    """Returns the grey values (y, x) of an image whose colours are all grey, others are refused with an `ImageError`.

    Args:
        path: The file, for the message.
        colours: Shape (y, x), returned as it is, or (y, x, samples): 3 colours or 1 grey, and opacity if there are 4 or 2.
        labels: They are class ids, for the message.
    """
    if colours.ndim == 2:
        return colours
    has_opacity = colours.shape[-1] in (2, 4)
    grey = colours[..., 0]
    if (colours[..., : colours.shape[-1] - has_opacity] != grey[..., None]).any():
        raise ImageError(f"{path}: found RGB colours; expected one grey channel. {say_remedy(labels)}")
    if has_opacity and (colours[..., -1] != np.iinfo(colours.dtype).max).any():
        raise ImageError(f"{path}: found transparent pixels; expected one grey channel. {say_remedy(labels)}")
    return grey
