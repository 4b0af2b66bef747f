"""TIFF stacks, slice by slice: what is read of one is what is asked for, exactly as it was meant, or it is refused."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import operator
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError
from neurotome.io.axes import Choice, Layout, choose_axes, find_unit, keep_plausible
from neurotome.io.files import check_claim
from neurotome.io.lazy_array import LazyArray, Place, Source
from neurotome.io.raster import merge_colours, note_loss, say_remedy
from neurotome.volume import Size

# A claim of more pixels than the file can hold would fill the memory before the decoder notices. Deflate
# packs at most 1032 bytes into one (zlib's technical details); other codecs of TIFF pack equal pixels more.
TIFF_RATIO = 100_000

# old JPEG, JPEG, JPEG 2000 (Aperio's too), JPEG XR, JPEG XL, WebP, LERC: what of them is lossless does not show
LOSSY = frozenset((6, 7, 33003, 33004, 33005, 34712, 22610, 34934, 34892, 50001, 50002, 52546, 34887))

KEPT_SLICES = 4
"""Decoded slices that stay in memory, for windows that are read one after the other and for neighbours as channels."""

_COLLECTED = threading.local()

SLICES = "A stack of 3 or 4 slices that was taken for colours: write it with photometric='minisblack'."
"""What else colours may be: tifffile writes so few slices as planes of colours unless it is told otherwise."""


def _collect(record: logging.LogRecord) -> bool:
    """Keeps what tifffile only logs in the thread that reads: what it cannot find is dropped with a log line."""
    complaints: list[str] | None = getattr(_COLLECTED, "complaints", None)
    if complaints is None:
        return True
    changes_no_pixel = record.levelno < logging.WARNING or "coercing invalid ASCII" in record.getMessage()
    if not changes_no_pixel:
        complaints.append(record.getMessage())
    return False


logging.getLogger("tifffile").addFilter(_collect)


@contextlib.contextmanager
def refuse_complaints(path: Path) -> Iterator[None]:
    """Raises an `ImageError` if tifffile logs a warning within the block."""
    complaints: list[str] = []
    _COLLECTED.complaints = complaints
    try:
        yield
    finally:
        _COLLECTED.complaints = None
    if complaints:
        raise ImageError(
            f"{path} is damaged or incomplete ({complaints[0]}). Copy or export it again (in Fiji: File > Save As > Tiff)."
        )


def open_tiff(path: Path, choice: Choice, *, labels: bool) -> Source:
    """Opens a TIFF file, whose slices are read when they are asked for; of labels palette indices are read too."""
    import tifffile

    with refuse_complaints(path), _open_pages(path) as file:
        series, notes = _choose_series(path, file)
        page = series.keyframe
        compression = int(page.compression)
        if compression in LOSSY:
            notes.append(note_loss(path, tifffile.COMPRESSION(compression).name, labels=labels))
        check_claim(path, series.nbytes, TIFF_RATIO)
        axes = "".join("z" if axis in "QI" and "Z" not in series.axes else axis for axis in series.axes)
        samples = page.samplesperpixel if "S" in axes else 1
        sizes = [size for axis, size in zip(axes, series.shape, strict=True) if axis != "S"]
        layout = choose_axes(path, axes.replace("S", ""), sizes, choice)
        if layout.axes[-2:] != "yx":
            raise ImageError(f"{path}: found axes {series.axes}; expected y and x last. Export it as a stack of slices.")
        invert = _check_colours(path, page, samples, labels=labels)
        size = _read_size(file)
        mapped = series.dataoffset is not None and samples == 1
        if mapped:
            read = _map_pixels(path, series, np.dtype(file.byteorder + page.dtype.char), layout)
        else:
            read = _plan_pages(path, series, layout, labels)
    data = LazyArray(path, layout.shape_zyx, page.dtype, (lambda place: ~read(place)) if invert else read)
    data.chunk_zyx = None if mapped else (1, *layout.shape_zyx[1:])
    return Source(data, size, tuple(notes))


@contextlib.contextmanager
def _open_pages(path: Path) -> Iterator[Any]:
    """Opens a TIFF file; pages that tifffile wrote one by one, each of which says it is an image, are one stack if alike."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        kinds = {(series.kind, series.shape, series.dtype) for series in file.series}
        if len(file.series) == 1 or len(kinds) > 1 or file.series[0].kind != "shaped" or len(file.series[0].shape) != 2:
            yield file
            return
    with tifffile.TiffFile(path, is_shaped=False) as file:
        yield file


def _choose_series(path: Path, file: Any) -> tuple[Any, list[str]]:
    """Returns the image of a file, the only one or the one beside which all others are thumbnails, and what to tell."""
    sizes = [series.shape for series in file.series]
    series = max(file.series, key=lambda candidate: int(candidate.size))
    rows, columns = series.keyframe.shape[:2]
    others = [other.keyframe.shape for other in file.series if other is not series]
    if not all(2 * shape[0] <= rows and 2 * shape[1] <= columns for shape in others):
        raise ImageError(
            f"{path}: found {len(sizes)} images of shapes {', '.join(map(str, sizes[:5]))}; expected one slice (y, x) or "
            "one stack (z, y, x). Save them as separate files."
        )
    slices = series.size // series.keyframe.size
    if series.kind in ("imagej", "ome") and len(file.series) == 1 and len(file.pages) > slices:
        raise ImageError(
            f"{path}: its description speaks of {slices} slices, but there are {len(file.pages)}. Which are meant "
            "cannot be known; export it again (in Fiji: File > Save As > Tiff)."
        )
    return series, [f"{path}: read the image of shape {series.shape}; left out {len(others)} smaller."] if others else []


def _check_colours(path: Path, page: Any, samples: int, *, labels: bool) -> bool:
    """Refuses colours; returns whether white is stored as 0 and must be turned round to look as it is shown."""
    import tifffile

    kind = tifffile.PHOTOMETRIC(page.photometric)
    if kind == tifffile.PHOTOMETRIC.MINISWHITE and samples == 1:
        if not labels and page.dtype.kind == "f":
            raise ImageError(
                f"{path}: white is stored as 0 (photometric MINISWHITE) in float pixels; expected black as 0. In Fiji: "
                "Edit > Invert and then Image > Lookup Tables > Invert LUT, which together keep what is seen; then save."
            )
        return not labels and page.dtype.kind == "u"
    grey = (tifffile.PHOTOMETRIC.MINISBLACK, *([tifffile.PHOTOMETRIC.PALETTE] if labels else []))
    colours = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    if not (kind in grey and samples == 1) and not (kind in colours and samples in (3, 4)):
        raise ImageError(
            f"{path}: found {kind.name} with {samples} samples per pixel; expected one grey channel. {say_remedy(labels)} "
            f"{SLICES}"
        )
    return False


def _read_size(file: Any) -> Size | None:
    """Returns what a `tifffile.TiffFile` says about the size of its voxels, None for nothing or nothing plausible.

    Believed are ImageJ's and OME's descriptions and plain resolutions per centimetre. A resolution per inch is a printer's
    or a default. A file that gives no distance of slices gets its pixels' height.
    """
    try:
        return keep_plausible(_read_ome_size(file) if file.is_ome else _read_tag_size(file))
    except (OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None  # a size that cannot be read is not known


def _read_tag_size(file: Any) -> Size | None:
    import tifffile

    tags = file.pages.first.tags
    described = file.imagej_metadata or {}
    unit = find_unit(described.get("unit", ""))
    if unit is None and not file.is_imagej and tags["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER:
        unit = 1e4
    unit_y, unit_z = (find_unit(described[name]) if name in described else unit for name in ("yunit", "zunit"))
    if unit is None or unit_y is None or unit_z is None:
        return None
    x, y = (tags[name].value[1] / tags[name].value[0] for name in ("XResolution", "YResolution"))
    return unit_z * float(described["spacing"]) if "spacing" in described else unit_y * y, unit_y * y, unit * x


def _read_ome_size(file: Any) -> Size | None:
    import tifffile

    image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
    sizes = {
        axis: float(pixels[f"PhysicalSize{axis}"]) * (find_unit(pixels.get(f"PhysicalSize{axis}Unit", "µm")) or math.nan)
        for axis in "XYZ"
        if f"PhysicalSize{axis}" in pixels
    }
    return sizes.get("Z", sizes["Y"]), sizes["Y"], sizes["X"]


def _map_pixels(path: Path, series: Any, dtype: np.dtype[Any], layout: Layout) -> Callable[[Place], NDArray[Any]]:
    end = series.dataoffset + series.nbytes
    if end > path.stat().st_size:
        raise ImageError(f"{path} ends at byte {path.stat().st_size} of {end}; it was cut. Copy or export it again.")
    offset = series.dataoffset
    # mapped anew for each read, so that neither open files nor mapped memory grow with what was read
    return lambda place: np.array(layout.read(np.memmap(path, dtype, "r", offset, layout.shape), place))


def _plan_pages(path: Path, series: Any, layout: Layout, labels: bool) -> Callable[[Place], NDArray[Any]]:
    pages, shape = list(series), layout.shape[:-2]
    if len(pages) < np.prod(shape) or None in pages:
        raise ImageError(f"{path}: found {len(pages)} slices for shape {series.shape}; it is damaged.")
    files = [page.parent.filehandle for page in pages]  # an OME-TIFF may be spread over several
    if any(Path(file.path).parent.resolve() != path.parent.resolve() for file in files):
        raise ImageError(f"{path}: some of its slices lie in another folder; expected them beside it. Copy them there.")
    for page, file in zip(pages, files, strict=True):
        if max(map(operator.add, page.dataoffsets, page.databytecounts)) > file.size:
            raise ImageError(f"{path} ends within its pixels; it was cut. Copy or export it again.")
    numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    lock = threading.Lock()

    @functools.lru_cache(KEPT_SLICES)
    def decode(number: int) -> NDArray[Any]:
        with lock, refuse_complaints(path), contextlib.closing(files[number]) as file:  # open for this slice alone
            file.open()
            pixels = pages[number].asarray(maxworkers=1)
        separate = pages[number].axes.startswith("S")
        colours, more = (np.moveaxis(pixels, 0, -1), f" {SLICES}") if separate else (pixels, "")
        return merge_colours(path, colours, labels=labels, more=more)

    def read(place: Place) -> NDArray[Any]:
        index = tuple(place[0] if axis == "z" else layout.fixed[axis] for axis in layout.axes[:-2])
        planes = [decode(number)[place[1:]] for number in np.atleast_1d(numbers[index]).tolist()]
        return np.array(planes, series.keyframe.dtype).reshape([part.stop - part.start for part in place])

    return read
