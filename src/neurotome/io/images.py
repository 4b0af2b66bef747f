"""PNG, TIFF and npy files: grey images and label images, read strictly, written whole.

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

from neurotome.atomic import atomic_path
from neurotome.errors import ImageError
from neurotome.volume import Volume

SUFFIXES = (".png", ".tif", ".tiff", ".npy")
GREY_DTYPES = ("uint8", "uint16", "float32")

# A claim of more pixels than the file can hold would fill the memory before the decoder notices. Deflate
# packs at most 1032 bytes into one (zlib's technical details); other codecs of TIFF pack equal pixels more.
PNG_RATIO = 1100
TIFF_RATIO = 100_000

UNITS_UM = {"nm": 1e-3, "mm": 1e3, "cm": 1e4} | dict.fromkeys(
    ("um", "µm", "μm", "\\u00B5m", "micron", "microns", "micrometer", "micrometers"), 1.0
)
"""Micrometres per unit; the micro sign comes as either of two letters, or written out by ImageJ."""

GREY_REMEDY = "Save it as one grey channel (in Fiji: Image > Type > 8-bit)"
STACK_REMEDY = (
    "expected one slice (y, x) or one stack (z, y, x) of one channel and one time. Save channels and times "
    "as separate files, and mark the remaining axis as z (tifffile: metadata={'axes': 'ZYX'}; Fiji: "
    "Image > Properties)"
)


def read_image(path: str | Path, *, voxel_size_um: tuple[float, float, float] | None = None) -> Volume:
    """Reads a grey image or stack.

    Args:
        path: .png, .tif, .tiff or .npy, 2D or 3D, uint8, uint16 or float32.
        voxel_size_um: Edge lengths (z, y, x) in micrometres; None: what the file says, see `read_voxel_size`.

    Returns:
        A volume named after the file; a 2D image has one slice. The data of a .npy file are memory-mapped.

    Raises:
        ImageError: The file is missing, empty, damaged or of another kind, has colours, has pixels that are
            no finite numbers, or has the same value everywhere.
    """
    path = Path(path)
    data = _read_array(path)
    check_grey(data, str(path))
    return Volume(data, path.stem, voxel_size_um or read_voxel_size(path), path=path)


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


def read_labels(path: str | Path) -> NDArray[Any]:
    """Reads a label image or stack.

    Args:
        path: .png, .tif, .tiff or .npy, 2D or 3D, any integer dtype.

    Returns:
        Integers as stored, shape (z, y, x). Whether they are class ids is for `check_labels` to say.

    Raises:
        ImageError: The file is missing, empty, damaged or of another kind, has colours, or does not hold
            integers.
    """
    path = Path(path)
    labels = _read_array(path)
    if labels.dtype.kind not in "iu":
        raise ImageError(
            f"{path}: labels have dtype {labels.dtype}; expected integers, one class id per pixel. Save them as uint8."
        )
    return labels


def check_grey(data: NDArray[Any], where: str) -> None:
    """Checks that an array can be used as a grey volume; reads slice by slice.

    Args:
        data: Shape (z, y, x), uint8, uint16 or float32; may be memory-mapped.
        where: File or name for the message.

    Raises:
        ImageError: Other dtype or shape, pixels that are NaN or infinite, or one value everywhere.
    """
    if data.dtype.name not in GREY_DTYPES:
        raise ImageError(
            f"{where}: dtype {data.dtype}; expected {', '.join(GREY_DTYPES)}. Convert it first, for example "
            "with array.astype('float32'), so that no value changes unnoticed."
        )
    if data.ndim != 3 or data.size == 0:
        raise ImageError(f"{where}: shape {data.shape}; expected (z, y, x) with at least one pixel.")
    first = data[0, 0, 0]
    varies = False
    not_finite, position = 0, ""
    for z, plane in enumerate(data):
        varies = varies or bool((plane != first).any())
        if data.dtype.kind == "f":
            bad = ~np.isfinite(plane)
            count = int(np.count_nonzero(bad))
            if count and not not_finite:
                y, x = np.unravel_index(int(bad.argmax()), bad.shape)
                position = f"(z={z}, y={y}, x={x})"
            not_finite += count
        elif varies:
            return
    if not_finite:
        raise ImageError(
            f"{where}: {not_finite} pixels are NaN or infinite, the first at {position}; expected finite "
            "grey values. Replace them, for example with numpy.nan_to_num, or crop the image."
        )
    if not varies:
        raise ImageError(
            f"{where}: every pixel is {first:g}; a constant image shows nothing. Check how it was exported, or leave it out."
        )


def find_image(folder: Path, image_id: str) -> Path:
    """Returns the file of an image: `<folder>/<image_id>` with one of the known suffixes.

    Raises:
        ImageError: There is none, or more than one.
    """
    found = [path for suffix in SUFFIXES if (path := folder / f"{image_id}{suffix}").is_file()]
    if len(found) == 1:
        return found[0]
    expected = f"expected one file {folder / image_id} with suffix {', '.join(SUFFIXES)}"
    if found:
        raise ImageError(f"{', '.join(path.name for path in found)} all exist; {expected}. Remove the others.")
    near = sorted(path.name for path in folder.iterdir() if path.stem == image_id) if folder.is_dir() else []
    raise ImageError(f"{expected}; found {', '.join(near) or 'nothing of that name'}. Add or convert the file.")


def write_image(path: str | Path, data: NDArray[Any]) -> None:
    """Writes a grey image in one step.

    Args:
        path: .png (one slice, uint8 or uint16), .tif, .tiff or .npy.
        data: Shape (y, x) or (z, y, x), uint8, uint16 or float32.

    Raises:
        ImageError: The format cannot hold these data.
    """
    if data.dtype.name not in GREY_DTYPES:
        raise ImageError(f"{path}: dtype {data.dtype} cannot be written as an image; use {', '.join(GREY_DTYPES)}.")
    _write_array(Path(path), data)


def write_labels(path: str | Path, labels: NDArray[Any]) -> None:
    """Writes labels as uint8 in one step.

    Args:
        path: .png (one slice), .tif, .tiff or .npy.
        labels: Integers 0..255, shape (y, x) or (z, y, x).

    Raises:
        ImageError: Not integers, a value outside 0..255, or a format that cannot hold them.
    """
    if labels.dtype.kind not in "iu":
        raise ImageError(f"{path}: labels have dtype {labels.dtype}; expected integers 0..255.")
    if labels.size and not 0 <= labels.min() <= labels.max() <= 255:
        raise ImageError(f"{path}: labels lie in {labels.min()}..{labels.max()}; expected 0..255, which fit uint8.")
    _write_array(Path(path), labels.astype(np.uint8))


def write_colours(path: str | Path, colours: NDArray[np.uint8]) -> None:
    """Writes a colour picture in one step.

    Args:
        path: .png (one slice), .tif or .tiff.
        colours: uint8, shape (y, x, 3) or (z, y, x, 3).

    Raises:
        ImageError: The format cannot hold these data.
    """
    path = Path(path)
    if path.suffix.lower() == ".png":
        _write_png(path, colours, ndim=3)
        return
    import tifffile

    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, colours, compression="zlib", photometric="rgb")


def _write_array(path: Path, data: NDArray[Any]) -> None:
    if data.ndim not in (2, 3) or data.size == 0:
        raise ImageError(f"{path}: shape {data.shape}; expected (y, x) or (z, y, x) with at least one pixel.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageError(_describe_suffix(path))
    if suffix == ".png":
        _write_png(path, data)
        return
    with atomic_path(path) as temporary:
        if suffix == ".npy":
            np.save(temporary, data, allow_pickle=False)
        else:
            import tifffile

            axes = "YX" if data.ndim == 2 else "ZYX"
            # photometric is said because a stack with 3 or 4 columns would else be taken for colours
            tifffile.imwrite(temporary, data, compression="zlib", photometric="minisblack", metadata={"axes": axes})


def _write_png(path: Path, data: NDArray[Any], ndim: int = 2) -> None:
    if data.ndim == ndim + 1 and data.shape[0] == 1:
        data = data[0]
    if data.ndim != ndim:
        raise ImageError(f"{path}: a PNG file holds one slice, found {data.shape[0]}. Use the suffix .tif or .npy.")
    if data.dtype.kind == "f":
        raise ImageError(f"{path}: a PNG file holds integers, found {data.dtype}. Use the suffix .tif or .npy.")
    from PIL import Image

    plane = np.ascontiguousarray(data)
    with atomic_path(path) as temporary:
        Image.fromarray(plane).save(temporary, format="PNG")


def _describe_suffix(path: Path) -> str:
    return f"{path}: unknown suffix {path.suffix!r}; expected {', '.join(SUFFIXES)}. Convert the file."


def _read_array(path: Path) -> NDArray[Any]:
    """Returns the pixels of a file, shape (z, y, x), as stored but in the machine's byte order."""
    readers: dict[str, Callable[[Path], NDArray[Any]]] = {
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
        raise ImageError(_describe_suffix(path))
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes); copy or export it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", DeprecationWarning)
            data = readers[path.suffix.lower()](path)
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


def _check_claim(path: Path, claimed: int, ratio: int) -> None:
    size = path.stat().st_size
    if claimed > ratio * size:
        raise ImageError(
            f"{path}: the header claims {claimed} bytes of pixels, but the file has {size} bytes, which "
            "cannot hold them; it is damaged. Copy or export it again."
        )


def _read_png(path: Path) -> NDArray[Any]:
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
        raise ImageError(f"{path}: found {found}; expected one grey channel. {GREY_REMEDY}.")
    if bits not in (8, 16):
        raise ImageError(f"{path}: found {bits} bits per pixel; expected 8 or 16. {GREY_REMEDY}.")
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


def _read_tiff(path: Path) -> NDArray[Any]:
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
                f"one grey channel. {GREY_REMEDY}."
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


def _read_npy(path: Path) -> NDArray[Any]:
    # A memory map holds plain numbers only: object arrays, which could run code when loaded, are
    # refused by numpy.
    data = np.lib.format.open_memmap(path, mode="r")
    if data.ndim == 3 and data.shape[-1] in (3, 4) and min(data.shape[:2]) > 16:
        raise ImageError(f"{path}: shape {data.shape} looks like RGB(A) colours; expected (z, y, x). {GREY_REMEDY}.")
    return data
