"""TIFF stacks, slice by slice: what is read of one is what is asked for, exactly as it was meant, or it is refused."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import ImageError
from neurotome.io.axes import Choice, Layout, choose_axes
from neurotome.io.calibration import Size, read_tiff_size
from neurotome.io.lazy_array import LazyArray, Place

# A claim of more pixels than the file can hold would fill the memory before the decoder notices. Deflate
# packs at most 1032 bytes into one (zlib's technical details); other codecs of TIFF pack equal pixels more.
TIFF_RATIO = 100_000

# old JPEG, JPEG, JPEG 2000 (Aperio's too), JPEG XR, JPEG XL, WebP, LERC: what of them is lossless does not show
LOSSY = frozenset((6, 7, 33003, 33004, 33005, 34712, 22610, 34934, 34892, 50001, 50002, 52546, 34887))

KEPT_SLICES = 4
"""Decoded slices that stay in memory, for windows that are read one after the other and for neighbours as channels."""

GREY_REMEDY = "Save it as one grey channel (in Fiji: Image > Type > 8-bit)"
LABELS_REMEDY = (
    "Save the class ids themselves (0, 1, 2, ...) as one grey channel, not their colours; making colours grey gives other "
    "ids"
)
LOSSY_LABELS = (
    "may have lost detail to compression ({}), which turns class ids into others. Save labels as PNG or as TIFF with "
    "deflate, LZW or no compression, from where they were drawn."
)
LOSSY_NOTE = (
    "Images compressed with {} may have lost detail; fine structures suffer first. Use what was recorded if you have it."
)


class Source(NamedTuple):
    """What a format's reader returns: voxels (z, y, x), in memory or lazy, their sizes in micrometres, and what to tell."""

    data: Any
    voxel_size_um: Size | None = None
    notes: tuple[str, ...] = ()


class _Complaints(logging.Filter):
    """Collects what tifffile only logs in the thread that reads: what it cannot find is dropped with a log line."""

    collected = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        complaints: list[str] | None = getattr(self.collected, "complaints", None)
        # text that is no ASCII changes no pixel
        if (
            complaints is not None
            and record.levelno >= logging.WARNING
            and "coercing invalid ASCII" not in record.getMessage()
        ):
            complaints.append(record.getMessage())
        return complaints is None


_COMPLAINTS = _Complaints()
logging.getLogger("tifffile").addFilter(_COMPLAINTS)


@contextlib.contextmanager
def refuse_complaints(path: Path) -> Iterator[None]:
    """Raises an `ImageError` if tifffile logs a warning within the block."""
    complaints: list[str] = []
    _COMPLAINTS.collected.complaints = complaints
    try:
        yield
    finally:
        _COMPLAINTS.collected.complaints = None
    if complaints:
        raise ImageError(
            f"{path} is damaged or incomplete ({complaints[0]}). Copy or export it again (in Fiji: File > Save As > Tiff)."
        )


def check_claim(path: Path, claimed: int, ratio: int) -> None:
    """Checks that a file can hold the pixels that it claims.

    Args:
        path: The file.
        claimed: Bytes of pixels.
        ratio: How far its compression can go.

    Raises:
        ImageError: It cannot.
    """
    size = path.stat().st_size
    if claimed > ratio * size:
        raise ImageError(
            f"{path}: the header claims {claimed} bytes of pixels, but the file has {size} bytes, which "
            "cannot hold them; it is damaged. Copy or export it again."
        )


def open_tiff(path: Path, choice: Choice, *, labels: bool) -> Source:
    """Opens a TIFF file; its slices are read when they are asked for.

    Args:
        path: The file.
        choice: Channel and time.
        labels: Class ids rather than grey values: palette indices are read, lossy compression and colours are not.

    Raises:
        ImageError: It is damaged, or several images, or has colours.
    """
    import tifffile

    with refuse_complaints(path), tifffile.TiffFile(path) as file:
        series, notes = _choose_series(path, file)
        page = series.keyframe
        compression = int(page.compression)
        if compression in LOSSY:
            name = tifffile.COMPRESSION(compression).name
            if labels:
                raise ImageError(f"{path}: {LOSSY_LABELS.format(name)}")
            notes.append(LOSSY_NOTE.format(name))
        check_claim(path, series.nbytes, TIFF_RATIO)
        axes = "".join("z" if axis in "QI" and "Z" not in series.axes else axis for axis in series.axes)
        samples = page.samplesperpixel if "S" in axes else 1
        layout = choose_axes(
            str(path),
            axes.replace("S", ""),
            [size for axis, size in zip(axes, series.shape, strict=True) if axis != "S"],
            choice,
        )
        if layout.axes[-2:] != "yx":
            raise ImageError(
                f"{path}: found axes {series.axes}; expected y and x last. Export it again as a stack of slices."
            )
        invert = _check_colours(path, page, samples, labels=labels)
        size = read_tiff_size(file)
        if series.dataoffset is not None and samples == 1:
            end = series.dataoffset + series.nbytes
            if end > path.stat().st_size:
                raise ImageError(f"{path} ends at byte {path.stat().st_size} of {end}; it was cut. Copy or export it again.")
            stored = np.dtype(file.byteorder + page.dtype.char)
            read = functools.partial(_read_contiguous, path, stored, series.dataoffset, layout)
        else:
            pages = list(series)
            _ = page.decode, page.jpegheader  # they look into the file, and remember
            if len(pages) < np.prod(layout.shape[:-2]) or any(slice_page is None for slice_page in pages):
                raise ImageError(
                    f"{path}: found {len(pages)} slices for axes {axes} of shape {series.shape}; it is damaged."
                )
            # an OME-TIFF may be spread over several files
            files = [Path(slice_page.parent.filehandle.path) for slice_page in pages]
            if any(file_path.parent.resolve() != path.parent.resolve() for file_path in files):
                raise ImageError(
                    f"{path}: some of its slices lie in another folder; expected them beside it. Copy them there."
                )

            @functools.lru_cache(KEPT_SLICES)
            def decode(number: int) -> NDArray[Any]:
                return _decode_page(files[number], pages[number], labels)

            read = functools.partial(_read_pages, layout, decode)
    if invert:
        read = functools.partial(_read_inverted, read)
    return Source(LazyArray(path, layout.shape_zyx, page.dtype, read), size, tuple(notes))


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
    remedy = LABELS_REMEDY if labels else GREY_REMEDY
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
            f"{path}: found {kind.name} with {samples} samples per pixel; expected one grey channel. {remedy}. A stack of 3 "
            "or 4 slices that was taken for colours: write it with photometric='minisblack'."
        )
    return False


def _read_contiguous(path: Path, stored: np.dtype[Any], offset: int, layout: Layout, place: Place) -> NDArray[Any]:
    # mapped anew for each read, so that neither open files nor mapped memory grow with what was read
    return np.array(layout.read(np.memmap(path, stored, "r", offset, layout.shape), place))


def _read_pages(layout: Layout, decode: Any, place: Place) -> NDArray[Any]:
    leading, shape = layout.axes[:-2], layout.shape[:-2]
    planes = []
    for z in range(place[0].start, place[0].stop):
        index = [z if axis == "z" else layout.fixed[axis] for axis in leading]
        planes.append(decode(int(np.ravel_multi_index(index, shape)) if shape else 0)[place[1], place[2]])
    return np.stack(planes) if planes else np.empty([part.stop - part.start for part in place])


def _read_inverted(read: Any, place: Place) -> NDArray[Any]:
    voxels: NDArray[Any] = read(place)
    return np.asarray(np.iinfo(voxels.dtype).max - voxels)


def _decode_page(path: Path, page: Any, labels: bool) -> NDArray[Any]:
    """Decodes one slice, with a file opened for it alone: nothing is shared between threads or processes."""
    keyframe = page.keyframe
    pixels = np.zeros(keyframe.shaped, keyframe.dtype)
    with refuse_complaints(path), path.open("rb") as file:
        for number, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
            file.seek(offset)
            content = file.read(count)
            if len(content) < count:
                raise ImageError(f"{path} ends within its pixels; it was cut. Copy or export it again.")
            segment, (s, d, y, x, _), shape = keyframe.decode(
                content or None, number, jpegtables=page.jpegtables, jpegheader=keyframe.jpegheader
            )
            if segment is None:
                pixels[s, d : d + shape[0], y : y + shape[1], x : x + shape[2]] = keyframe.nodata
                continue
            inner = segment[: keyframe.imagedepth - d, : keyframe.imagelength - y, : keyframe.imagewidth - x]
            pixels[s, d : d + shape[0], y : y + shape[1], x : x + shape[2]] = inner
    if keyframe.samplesperpixel == 1:
        return pixels.reshape(keyframe.imagelength, keyframe.imagewidth)
    separate = keyframe.shaped[0] > 1
    colours = pixels[:, 0].transpose(1, 2, 0, 3)[..., 0] if separate else pixels[0, 0]
    return merge_colours(path, colours, labels=labels)


def merge_colours(path: Path, colours: NDArray[Any], *, labels: bool) -> NDArray[Any]:
    """Returns the grey values of an image that was stored as colours.

    Args:
        path: The file, for the message.
        colours: Shape (y, x), returned as it is, or (y, x, samples): 3 colours or 1 grey, and opacity if there are 4 or 2.
        labels: They are class ids, for the message.

    Raises:
        ImageError: The colours differ, or pixels are transparent.
    """
    if colours.ndim == 2:
        return colours
    samples = colours.shape[-1]
    greys = colours[..., : samples - 1 if samples in (2, 4) else samples]
    remedy = LABELS_REMEDY if labels else GREY_REMEDY
    if (greys != greys[..., :1]).any():
        raise ImageError(f"{path}: found RGB colours; expected one grey channel. {remedy}.")
    if samples in (2, 4) and (colours[..., -1] != np.iinfo(colours.dtype).max).any():
        raise ImageError(f"{path}: found transparent pixels; expected one grey channel. {remedy}.")
    return greys[..., 0]
