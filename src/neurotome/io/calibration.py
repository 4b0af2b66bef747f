"""Sizes of voxels as files say them, mostly TIFF, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from neurotome.io.lazy_array import Size

UNITS_UM = {
    **dict.fromkeys(("angstrom", "å"), 1e-4),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    # the micro sign comes as either of two letters, or written out by ImageJ
    **dict.fromkeys(("um", "µm", "μm", "\\u00b5m", "micron", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
}


def find_unit(unit: Any) -> float | None:
    """Returns micrometres per unit, named in any case, in singular or plural; None for one that is not known."""
    name = str(unit).strip().lower()
    return UNITS_UM.get(name.removesuffix("s") if len(name) > 3 else name)


def keep_plausible(sizes: Size | None) -> Size | None:
    """Returns voxel sizes of 1e-4 to 1e4 um, None for others; a negative size is one counted downwards."""
    if sizes is None:
        return None
    z, y, x = (abs(size) for size in sizes)
    return (z, y, x) if all(1e-4 <= size <= 1e4 for size in (z, y, x)) else None


def read_tiff_size(file: Any) -> Size | None:
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
        axis: float(pixels[f"PhysicalSize{axis}"]) * UNITS_UM[str(pixels.get(f"PhysicalSize{axis}Unit", "µm")).lower()]
        for axis in "XYZ"
        if f"PhysicalSize{axis}" in pixels
    }
    return sizes.get("Z", sizes["Y"]), sizes["Y"], sizes["X"]


def describe_stack(slices: int, sizes: Size | None, classes: Mapping[int, str]) -> str:
    """Returns a description of a stack as ImageJ writes it, so that Fiji shows micrometres and knows the axes.

    `classes` maps stored ids to names and may be empty; ImageJ leaves the line alone.
    """
    lines = ["ImageJ=1.54f", f"images={slices}", f"slices={slices}"]
    if sizes is not None:
        lines += ["unit=micron", f"spacing={sizes[0]!r}"]
    if classes:
        lines.append(f"classes={json.dumps(classes)}")
    return "\n".join([*lines, "loop=false", ""])
