"""PNG, JPEG and BMP images, read whole: each as it was meant, or refused; what is said of lossy or coloured images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError
from neurotome.io.files import check_claim
from neurotome.io.lazy_array import Source

PACKED_RATIO = 1100
"""Deflate packs at most 1032 bytes into one; JPEG at most 64 pixels of 3 bytes into 6 codes."""

# what pillow reads as it is stored; it narrows or stretches 16-bit colours and 2 or 4 bits of grey
GREYS = ("L", "I;16B", "RGB", "LA", "RGBA")
IDS = ("1", "P", "P;1", "P;2", "P;4")

PNG_END = b"IEND\xaeB`\x82"


def read_picture_header(path: Path, suffix: str) -> tuple[tuple[int, int], str]:
    """Returns the shape (y, x) of a PNG, JPEG or BMP file, and how its pixels are stored, without reading them."""
    with _open(path, suffix) as image:
        return (image.height, image.width), image.tile[0][3] if suffix == ".png" else image.mode


def open_picture(path: Path, suffix: str, *, labels: bool) -> Source:
    """Reads a PNG, JPEG or BMP file: grey, colours that are all grey; as labels, palette indices and masks of 1 bit too."""
    import imagecodecs

    notes = () if suffix in (".png", ".bmp") else (note_loss(path, "JPEG", labels=labels),)
    with _open(path, suffix) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise ImageError(f"{path}: found an animation of {frames} frames; expected one image.")
        stored = image.tile[0][3] if suffix == ".png" else image.mode
        if stored not in GREYS and not (labels and stored in IDS):
            kind = "palette colours" if image.mode == "P" else f"pixels of mode {stored}"
            raise ImageError(f"{path}: found {kind}; expected one grey channel of 8 or 16 bits. {say_remedy(labels)}")
        nbytes = image.width * image.height * len(image.getbands()) // (8 if stored in IDS else 1)
        check_claim(path, nbytes, PACKED_RATIO)
        if suffix == ".png":  # pillow is content with rows or an end that are missing
            content = path.read_bytes()
            decoded = imagecodecs.png_decode(content)
            if PNG_END not in content:
                raise ImageError(f"{path} ends without the mark of its end; it was cut. Copy or export it again.")
            if stored in ("L", "I;16B") and decoded.ndim == 2:  # as pillow would read it once more
                return Source(decoded[None])
        image.load()
        pixels = np.asarray(image)
    return Source(merge_colours(path, pixels, labels=labels)[None], notes=notes)


def _open(path: Path, suffix: str) -> Any:
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    # not Image.open, which warns of large honest images, with a limit global to the process
    return {".png": PngImageFile, ".bmp": BmpImageFile}.get(suffix, JpegImageFile)(path)


def say_remedy(labels: bool) -> str:
    """Returns what to do about colours."""
    if labels:
        return "Save the class ids themselves (0, 1, 2, ...) as one grey channel; making colours grey gives other ids."
    return "Save it as one grey channel (in Fiji: Image > Type > 8-bit)."


def note_loss(path: Path, codec: str, *, labels: bool) -> str:
    """Returns what to tell about an image that was compressed with loss; refuses labels with an `ImageError`."""
    if labels:
        raise ImageError(
            f"{path}: may have lost detail to compression ({codec}), which turns class ids into others. Save labels as PNG "
            "or as TIFF with deflate, LZW or no compression, from where they were drawn."
        )
    return f"Images compressed with {codec} may have lost detail; fine structures suffer first. Use what was recorded."


def merge_colours(path: Path, colours: NDArray[Any], *, labels: bool, more: str = "") -> NDArray[Any]:
    """Returns the grey values (y, x) of an image; colours that are not all grey are refused with an `ImageError`.

    `colours` has the shape (y, x), or (y, x, samples): 3 colours or 1 grey, and opacity if there are 4 or 2. `more` is said
    where there are colours.
    """
    if colours.ndim == 2:
        return colours
    has_opacity = colours.shape[-1] in (2, 4)
    grey = colours[..., 0]
    if (colours[..., : colours.shape[-1] - has_opacity] != grey[..., None]).any():
        raise ImageError(f"{path}: found RGB colours; expected one grey channel. {say_remedy(labels)}{more}")
    if has_opacity and (colours[..., -1] != np.iinfo(colours.dtype).max).any():
        raise ImageError(f"{path}: found transparent pixels; expected one grey channel. {say_remedy(labels)}")
    return grey
