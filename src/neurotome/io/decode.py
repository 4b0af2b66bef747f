"""Pixels of PNG, TIFF and npy files as arrays, and what a TIFF file says about the size of its voxels.

Decoders are kept from guessing: a file is read exactly as it was meant or refused with one `ImageError` that
names it and says what to do. Pixels of a .npy file stay on the disk (memory map) until they are used.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError

SUFFIXES = (".png", ".tif", ".tiff", ".npy")

# A claim of more pixels than the file can hold would fill the memory before the decoder notices. Deflate
# packs at most 1032 bytes into one (zlib's technical details); other codecs of TIFF pack equal pixels more.
PNG_RATIO = 1100
TIFF_RATIO = 100_000

UNITS_UM = {"nm": 1e-3, "mm": 1e3, "cm": 1e4} | dict.fromkeys(
    ("um", "µm", "μm", "\\u00B5m", "micron", "microns", "micrometer", "micrometers"), 1.0
)
"""Micrometres per unit; the micro sign comes as either of two letters, or written out by ImageJ."""

GREY_REMEDY = "Save it as one grey channel (in Fiji: Image > Type > 8-bit)"
LABELS_REMEDY = (
    "Save the class ids themselves (0, 1, 2, ...) as one grey channel, not their colours; making colours grey gives "
    "other ids"
)
STACK_REMEDY = (
    "expected one slice (y, x) or one stack (z, y, x) of one channel and one time. Save channels and times "
    "as separate files, and mark the remaining axis as z (tifffile: metadata={'axes': 'ZYX'}; Fiji: "
    "Image > Properties)"
)


def read_array(path: Path, remedy: str = GREY_REMEDY) -> NDArray[Any]:
    """Returns the pixels of a file, shape (z, y, x), as stored but in the machine's byte order.

    Args:
        path: .png, .tif, .tiff or .npy.
        remedy: What to do about colours, for the message.

    Raises:
        ImageError: The file is missing, empty, damaged, of another kind, or has colours, channels or times.
    """
    readers: dict[str, Callable[[Path, str], NDArray[Any]]] = {
        ".png": _read_png,
        ".tif": _read_tiff,
        ".tiff": _read_tiff,
        ".npy": _read_npy,
    }
    if not path.exists():
        raise ImageError(f"{path} does not exist; check the name.")
    if not path.is_file():
        raise ImageError(f"{path} is a folder; expected a file with suffix {', '.join(SUFFIXES)}.")
    if path.suffix.lower() not in readers:
        raise ImageError(describe_suffix(path))
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes); copy or export it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", DeprecationWarning)
            data = readers[path.suffix.lower()](path, remedy)
    except ImageError:
        raise
    except Exception as error:  # damaged bytes make decoders raise almost anything
        reason = f"{type(error).__name__}: {error}".rstrip(": ").replace("\n", " ")
        raise ImageError(
            f"{path} cannot be read ({reason}); it is damaged, incomplete or not a {path.suffix} file. "
            "Copy or export it again."
        ) from error
    if data.ndim not in (2, 3) or data.size == 0:
        raise ImageError(f"{path}: shape {data.shape}; {STACK_REMEDY}.")
    if not data.dtype.isnative:
        data = data.astype(data.dtype.newbyteorder("="))
    return data[None] if data.ndim == 2 else data


def read_voxel_size(path: Path) -> tuple[float, float, float] | None:
    """Returns what a TIFF file says about the size of its voxels, (z, y, x) in micrometres.

    Believed are ImageJ's and OME's descriptions and plain resolutions per centimetre. A resolution per inch is a printer's
    or a default. A file that gives no distance of slices gets its pixels' height.

    Returns:
        None for other files and for a TIFF file that says nothing, or nothing plausible (1e-4 to 1e4 um).
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    import tifffile

    try:
        with _tiff_complaints(), tifffile.TiffFile(path) as file:
            found = _find_ome_size(file) if file.is_ome else _find_tag_size(file)
    except (OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None  # a size that cannot be read is not known; the pixels were read before
    return found if found is not None and all(1e-4 <= size <= 1e4 for size in found) else None


def _find_tag_size(file: Any) -> tuple[float, float, float] | None:
    import tifffile

    tags = file.pages.first.tags
    described = file.imagej_metadata or {}
    unit = UNITS_UM.get(str(described.get("unit", "")).strip())
    if unit is None and not file.is_imagej and tags["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER:
        unit = 1e4
    if unit is None:
        return None
    x, y = (unit * tags[name].value[1] / tags[name].value[0] for name in ("XResolution", "YResolution"))
    return unit * float(described.get("spacing", y / unit)), y, x


def _find_ome_size(file: Any) -> tuple[float, float, float] | None:
    import tifffile

    image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    pixels = image["Pixels"]
    sizes = {
        axis: float(pixels[f"PhysicalSize{axis}"]) * UNITS_UM[pixels.get(f"PhysicalSize{axis}Unit", "µm")]
        for axis in "XYZ"
        if f"PhysicalSize{axis}" in pixels
    }
    return sizes.get("Z", sizes["Y"]), sizes["Y"], sizes["X"]


def describe_suffix(path: Path) -> str:
    """Says that a file has an unknown suffix."""
    return f"{path}: unknown suffix {path.suffix!r}; expected {', '.join(SUFFIXES)}. Convert the file."


def _check_claim(path: Path, claimed: int, ratio: int) -> None:
    size = path.stat().st_size
    if claimed > ratio * size:
        raise ImageError(
            f"{path}: the header claims {claimed} bytes of pixels, but the file has {size} bytes, which "
            "cannot hold them; it is damaged. Copy or export it again."
        )


def _read_png(path: Path, remedy: str) -> NDArray[Any]:
    from PIL.PngImagePlugin import PngImageFile

    with path.open("rb") as stream:
        header = stream.read(26)
    if len(header) < 26 or header[:8] != b"\x89PNG\r\n\x1a\n" or header[12:16] != b"IHDR":
        raise ImageError(f"{path} is damaged or not a PNG file, whatever its suffix says. Export it again.")
    # Read here because the decoder narrows or stretches what it does not know: 16-bit colours,
    # 1 to 4 bits of grey.
    width, height, bits, kind = struct.unpack(">IIBB", header[16:26])
    if kind != 0:
        found = {2: "RGB colours", 3: "palette colours", 4: "grey with alpha", 6: "RGBA colours"}.get(
            kind, f"colour type {kind}"
        )
        raise ImageError(f"{path}: found {found}; expected one grey channel. {remedy}.")
    if bits not in (8, 16):
        raise ImageError(f"{path}: found {bits} bits per pixel; expected 8 or 16. {remedy}.")
    _check_claim(path, width * height * bits // 8, PNG_RATIO)
    # The class rather than Image.open: that one warns of large honest images, with a limit
    # global to the process.
    with PngImageFile(path) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise ImageError(f"{path}: found an animation of {image.n_frames} frames; expected one image.")
        image.load()
        return np.asarray(image)


@contextlib.contextmanager
def _tiff_complaints() -> Iterator[list[str]]:
    """Collects what tifffile only logs: pages it cannot find are dropped with a log line."""
    complaints: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            complaints.append(record.getMessage())

    logger = logging.getLogger("tifffile")
    collector, level, propagate = Collector(logging.WARNING), logger.level, logger.propagate
    logger.addHandler(collector)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield complaints
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
        logger.propagate = propagate


def _read_tiff(path: Path, remedy: str) -> NDArray[Any]:
    import tifffile

    with _tiff_complaints() as complaints, tifffile.TiffFile(path) as file:
        series = file.series
        _check_complaints(path, complaints)
        if len(series) != 1:
            shapes = ", ".join(str(one.shape) for one in series[:5])
            raise ImageError(f"{path}: found {len(series)} images of shapes {shapes}; {STACK_REMEDY}.")
        image, page = series[0], series[0].keyframe
        photometric = tifffile.PHOTOMETRIC(page.photometric)
        if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            raise ImageError(
                f"{path}: white is stored as 0 (photometric MINISWHITE); expected black as 0. In Fiji: "
                "Image > Lookup Tables > Invert LUT, then save."
            )
        if photometric != tifffile.PHOTOMETRIC.MINISBLACK or page.samplesperpixel != 1:
            raise ImageError(
                f"{path}: found {photometric.name} with {page.samplesperpixel} samples per pixel; expected "
                f"one grey channel. {remedy}. A stack of 3 or 4 slices that was taken for colours: write it with "
                "photometric='minisblack'."
            )
        # Q and I are stacks whose third axis was not named
        if image.axes not in ("YX", "ZYX", "QYX", "IYX"):
            raise ImageError(f"{path}: found axes {image.axes} of shape {image.shape}; {STACK_REMEDY}.")
        _check_claim(path, image.nbytes, TIFF_RATIO)
        data = np.asarray(image.asarray())
        _check_complaints(path, complaints)
        return data


def _check_complaints(path: Path, complaints: list[str]) -> None:
    if complaints:
        raise ImageError(
            f"{path} is damaged or incomplete ({complaints[0]}). Copy or export it again (in Fiji: File > Save As > Tiff)."
        )


def _read_npy(path: Path, remedy: str) -> NDArray[Any]:
    # A memory map holds plain numbers only: object arrays, which could run code when loaded, are
    # refused by numpy.
    data = np.lib.format.open_memmap(path, mode="r")
    if data.ndim == 3 and data.shape[-1] in (3, 4) and min(data.shape[:2]) > 16:
        raise ImageError(f"{path}: shape {data.shape} looks like RGB(A) colours; expected (z, y, x). {remedy}.")
    return data
