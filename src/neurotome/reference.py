"""--reference: images of a scan over which its grey scale is measured, for those that show too little of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from neurotome.errors import ImageError
from neurotome.io.files import list_images
from neurotome.io.identity import identify_input
from neurotome.io.ome_zarr import is_zarr
from neurotome.io.opening import open_volume
from neurotome.normalize import Normalization, Scale, check_tissue, find_tissue
from neurotome.shared_scale import OWN, look_at, share_scales
from neurotome.volume import Volume


def list_reference(reference: str | Path) -> list[Path]:
    """Returns the image that is named, or those of the folder; ImageError if there is none."""
    path = Path(reference)
    if not path.is_dir() or is_zarr(path):
        return [path]
    images = list_images(path)
    if not images:
        raise ImageError(f"{path}: no image in this folder; expected images of the scan for --reference.")
    return images


def measure_reference(images: Sequence[Path], read: Callable[[Path], Volume]) -> Normalization:
    """Measures the grey scale of a scan.

    Args:
        images: As `list_reference` returns them.
        read: Opens one.

    Returns:
        A normalisation of mode `tissue` whose reference that scale is, and its dtype that of the images.

    Raises:
        ImageError: What predict raises for such images, or they share no grey scale.
    """
    if len(images) == 1:
        volume = read(images[0])
        return _remember(check_tissue(find_tissue(volume), volume).scale, volume, images)
    shared = share_scales(Normalization("tissue", 0.0, 1.0, ""), [look_at(read(image), len(images)) for image in images])
    for image, scale in zip(images, shared.scales, strict=True):
        if scale is None:
            volume = read(image)
            check_tissue(find_tissue(volume), volume)
    first = next((i for i, scale in enumerate(shared.scales) if scale), None)
    if first is None or len(set(shared.scales)) > 1:
        raise ImageError(
            f"{images[0].parent}: its {len(images)} images share no grey scale, so they are no reference. "
            f"{' '.join(shared.said)} Name images that were exported together, without stretching each."
        )
    scale = shared.scales[first]
    assert scale is not None
    return _remember(scale, read(images[first]), images)


def _remember(scale: Scale, volume: Volume, images: Sequence[Path]) -> Normalization:
    where = images[0] if len(images) == 1 else images[0].parent
    scale = Scale(scale.mean, scale.std, f"{scale.source} of the reference {where}")
    return Normalization("tissue", scale.mean, scale.std, volume.data.dtype.name, scale)


def identify_reference(reference: str) -> str | None:
    """Returns a digest of what a reference is, by which a changed one is told; None without one."""
    return str(identify_input(reference)["sha256"]) if reference not in ("", OWN) else reference or None


def refer(normalization: Normalization, reference: str) -> Normalization:
    """Returns a normalisation that scales by a reference whatever fits it; own: each image by itself."""
    if reference == OWN:
        return dataclasses.replace(normalization, reference=None, alone=True)
    measured = measure_reference(list_reference(reference), open_volume)
    return dataclasses.replace(normalization, dtype=measured.dtype, reference=measured.reference, alone=False)


def describe_misfit(normalization: Normalization, volume: Volume) -> str:
    """Returns what is unlike the reference in a volume's grey values, "" if nothing is.

    Raises:
        ImageError: It is of another dtype than the reference, or its contrast is inverted.
    """
    where, reference = volume.path or volume.name, normalization.reference
    assert reference is not None
    if volume.data.dtype.name != normalization.dtype:
        raise ImageError(
            f"{where}: dtype {volume.data.dtype}, but the reference is {normalization.dtype}, so they share no grey scale. "
            "Name a reference of the same scan and dtype, or leave --reference out."
        )
    found = find_tissue(volume)
    if found.fits(reference):
        return ""
    check_tissue(found, volume)
    return (
        f"{where}: tissue has grey {found.centre:.4g} and the darkest pixels {found.dark:.4g}, in the reference "
        f"{reference.mean:.4g} and {reference.mean - 4 * reference.std:.4g}; these seem to be two grey scales, so labels "
        "may be wrong. Name a reference of the same scan, or leave --reference out."
    )
