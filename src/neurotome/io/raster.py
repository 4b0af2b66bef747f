"""PNG, JPEG and BMP images, read whole: each as it was meant, or refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from neurotome.errors import ImageError
from neurotome.io.tiff import (
    GREY_REMEDY,
    LABELS_REMEDY,
    LOSSY_LABELS,
    LOSSY_NOTE,
    Source,
    check_claim,
    merge_colours,
)

# Deflate packs at most 1032 bytes into one; JPEG at most 64 pixels of 3 bytes into 6 codes.
PNG_RATIO, PLAIN_RATIO = 1100, 1100

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
KINDS = {GREY: "grey", RGB: "RGB colours", PALETTE: "palette colours", GREY_ALPHA: "grey with alpha", RGBA: "RGBA colours"}

# Adam7, ISO/IEC 15948, 8.2: first column and row of each pass, and their steps
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def open_png(path: Path, *, labels: bool) -> Source:
    """Reads a PNG file: grey of 8 or 16 bits, colours that are all grey; as labels, palette indices and masks of 1 bit too.

    Raises:
        ImageError: It is damaged, has colours, or is an animation.
    """
    from PIL.PngImagePlugin import PngImageFile

    with path.open("rb") as stream:
        header = stream.read(29)
    if len(header) < 29 or header[:8] != b"\x89PNG\r\n\x1a\n" or header[12:16] != b"IHDR":
        raise ImageError(f"{path} is damaged or not a PNG file, whatever its suffix says. Export it again.")
    # Read here because the decoder narrows or stretches what it does not know: 16-bit colours,
    # 1 to 4 bits of grey.
    width, height, bits, kind, _, _, interlaced = struct.unpack(">IIBBBBB", header[16:29])
    remedy = LABELS_REMEDY if labels else GREY_REMEDY
    if (kind == PALETTE and not labels) or kind not in KINDS or (kind not in (GREY, PALETTE) and bits != 8):
        raise ImageError(f"{path}: found {KINDS.get(kind, f'colour type {kind}')}; expected one grey channel. {remedy}.")
    if kind == GREY and bits not in ((1, 8, 16) if labels else (8, 16)):
        raise ImageError(f"{path}: found {bits} bits per pixel; expected 8 or 16. {remedy}.")
    samples = {RGB: 3, GREY_ALPHA: 2, RGBA: 4}.get(kind, 1)
    check_claim(path, width * height * samples * bits // 8, PNG_RATIO)
    _check_whole(path, width, height, bits * samples, interlaced)
    # The class rather than Image.open: that one warns of large honest images, with a limit
    # global to the process.
    with PngImageFile(path) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise ImageError(f"{path}: found an animation of {image.n_frames} frames; expected one image.")
        image.load()
        pixels = np.asarray(image)
    return Source(merge_colours(path, pixels, labels=labels)[None])


def open_plain(path: Path, *, labels: bool) -> Source:
    """Reads a JPEG or BMP file.

    Raises:
        ImageError: It is damaged, has colours, or labels are to be read from a JPEG.
    """
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.JpegImagePlugin import JpegImageFile

    lossy = path.suffix.lower() != ".bmp"
    if lossy and labels:
        raise ImageError(f"{path}: {LOSSY_LABELS.format('JPEG')}")
    with (JpegImageFile if lossy else BmpImageFile)(path) as image:
        check_claim(path, image.width * image.height * len(image.getbands()), PLAIN_RATIO)
        if image.mode not in ("L", "RGB", *(("P",) if labels else ())):
            remedy = LABELS_REMEDY if labels else GREY_REMEDY
            raise ImageError(f"{path}: found pixels of mode {image.mode}; expected one grey channel. {remedy}.")
        image.load()
        pixels = np.asarray(image)
    return Source(merge_colours(path, pixels, labels=labels)[None], notes=(LOSSY_NOTE.format("JPEG"),) if lossy else ())


def _check_whole(path: Path, width: int, height: int, bits: int, interlaced: int) -> None:
    """Checks that a PNG file has all its rows: the decoder is content with the end of the compressed data."""
    passes = PASSES if interlaced else ((0, 0, 1, 1),)
    expected = 0
    for x, y, step_x, step_y in passes:
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        expected += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    unpack = zlib.decompressobj()
    count = 0
    with path.open("rb") as stream:
        stream.seek(8)
        while True:
            head = stream.read(8)
            length, name = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
            content = stream.read(length + 4) if name and length <= path.stat().st_size else b""
            if not name or len(content) < length + 4:
                break
            if name == b"IDAT" and count < expected:
                count += len(unpack.decompress(content[:-4], expected - count))
            if name == b"IEND":
                if count >= expected:
                    return
                break
    raise ImageError(
        f"{path} is damaged or incomplete (found {count} of {expected} bytes of rows, or no end). Copy or export it again."
    )
