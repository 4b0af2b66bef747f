"""Grey scales of images that belong together, on tissue whose true scale is known, and on crops of real slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from neurotome.errors import ImageError
from neurotome.normalize import Normalization, Scale, find_tissue, measure_tissue
from neurotome.reference import describe_misfit, list_reference, measure_reference
from neurotome.shared_scale import DatasetScales, look_at, note_alone, share_scales
from neurotome.volume import Volume

SLICES = Path(__file__).resolve().parents[2] / "shared/data/microct_patches/unlabelled"
TISSUE = Normalization("tissue", 100, 25, "uint8")
NEUROPIL, WHITE = 120, 158


def make_scene(white: float, seed: int, edge: int = 64) -> NDArray[np.uint8]:
    """Neuropil and a share of white matter, with dark lumina and grey cells within."""
    rng = np.random.default_rng(seed)
    grey = np.where(
        rng.random((edge, edge)) < white, rng.normal(WHITE, 13, (edge, edge)), rng.normal(NEUROPIL, 13, (edge, edge))
    )
    kind = rng.random((edge, edge))
    grey[kind < 0.05] = 70
    grey[kind < 0.02] = rng.integers(0, 12)  # whose darkest grey is not the same everywhere
    return grey.clip(0, 255).round().astype(np.uint8)


def as_volumes(images: Sequence[NDArray[np.generic]]) -> list[Volume]:
    return [Volume(image[None], f"image{number}") for number, image in enumerate(images)]


def share(images: Sequence[NDArray[np.generic]], normalization: Normalization = TISSUE) -> list[Scale | None]:
    return list(share_scales(normalization, [look_at(volume, len(images)) for volume in as_volumes(images)]).scales)


def stretch(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = image.astype(float)
    return ((grey - grey.min()) / (grey.max() - grey.min()) * 255).round().astype(np.uint8)


def test_an_image_of_white_matter_alone_is_scaled_as_the_others() -> None:
    images = [make_scene(white, seed) for seed, white in enumerate((0, 0.1, 0.3, 0.1, 1.0))]
    whole = measure_tissue(Volume(np.concatenate(images)[None], "whole"))
    found = share(images)
    assert len(set(found)) == 1
    assert found[4] is not None
    assert (found[4].mean, found[4].std) == pytest.approx((whole.mean, whole.std), abs=1)
    # alone its own white matter would be its 0
    assert measure_tissue(Volume(images[4][None], "alone")).mean > whole.mean + 0.9 * whole.std


def test_images_count_by_their_voxels() -> None:
    large, small = make_scene(0, 0, 128), make_scene(1, 1, 32)
    found = share([large, small])[0]
    assert found is not None
    assert found.mean == pytest.approx(NEUROPIL, abs=3)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_shared_scale_follows_any_affine_map(dtype: type) -> None:
    images = [make_scene(white, seed) for seed, white in enumerate((0.1, 0.9, 0.2))]
    plain = share(images)[0]
    mapped = share([(image.astype(np.float64) * 200 + 3000).astype(dtype) for image in images])[0]
    assert plain is not None
    assert mapped is not None
    assert (mapped.mean, mapped.std) == pytest.approx((plain.mean * 200 + 3000, plain.std * 200))


def test_images_stretched_one_by_one_are_not_pooled() -> None:
    images = [stretch(make_scene(white, seed)) for seed, white in enumerate((0, 0.2, 0.5, 1))]
    assert share(images) == [None] * 4
    volumes = as_volumes(images)
    shared = share_scales(TISSUE, [look_at(volume, 4) for volume in volumes])
    assert "stretched by itself" in shared.said[0]
    scales = DatasetScales(TISSUE, volumes)
    assert [scales.scale_for(volume) for volume in volumes] == [measure_tissue(volume) for volume in volumes]


def test_whole_slices_that_are_clipped_at_both_ends_are_pooled() -> None:
    images = [
        (2.6 * (make_scene(white, seed).astype(float) - 50)).clip(0, 255).astype(np.uint8)
        for seed, white in enumerate((0.3, 0.9))
    ]
    assert [(image.min(), image.max()) for image in images] == [(0, 255)] * 2
    assert None not in share(images)


@pytest.mark.parametrize(
    "other",
    [
        lambda image: image.astype(np.uint16) * 3,
        lambda image: (image * 0.4).astype(np.uint8),
        lambda image: stretch(image // 2 + 40),  # its levels are twice as far apart
    ],
    ids=["another dtype", "another exposure", "stretched"],
)
def test_what_has_another_scale_keeps_its_own(other: object) -> None:
    images: list[NDArray[np.generic]] = [make_scene(0.2, seed) for seed in range(4)]
    assert callable(other)
    images[2] = other(images[2])
    found = share(images)
    assert found[2] is None
    assert found[0] is not None
    assert found == [found[0], found[0], None, found[0]]


def test_air_takes_the_scale_of_the_tissue_beside_it() -> None:
    air = np.random.default_rng(0).integers(0, 9, (64, 64)).astype(np.uint8)
    found = share([make_scene(0.1, 0), air, make_scene(0.2, 1)])
    assert found[1] == found[0] is not None


def test_other_modes_and_single_images_share_nothing() -> None:
    scales = DatasetScales(Normalization("image", 100, 25, "uint8"), as_volumes([make_scene(0, 0), make_scene(1, 1)]))
    assert not scales.known
    volume = as_volumes([make_scene(0, 0)])[0]
    assert DatasetScales(TISSUE, [volume]).scale_for(volume) == measure_tissue(volume)


def test_only_a_small_image_is_noted() -> None:
    assert "4096 pixels alone" in note_alone(as_volumes([make_scene(0, 0)])[0])
    assert note_alone(Volume(np.broadcast_to(np.uint8(1), (1, 1024, 1024)), "large")) == ""


def write(folder: Path, images: Sequence[NDArray[np.generic]]) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def read(path: Path) -> Volume:
    return Volume(np.asarray(Image.open(path))[None], path.stem, path=path)


def test_a_reference_gives_its_scale_to_a_set_of_white_matter(tmp_path: Path) -> None:
    folder = write(tmp_path / "reference", [make_scene(white, seed) for seed, white in enumerate((0, 0.1))])
    measured = measure_reference(list_reference(folder), read)
    assert measured.reference is not None
    assert measured.reference.mean == pytest.approx(NEUROPIL, abs=4)
    assert str(folder) in measured.reference.source
    white = [make_scene(1, 10 + seed) for seed in range(3)]
    assert share(white, measured) == [measured.reference] * 3
    # without it they agree with each other, on a scale that is a unit off
    own = share(white)[0]
    assert own is not None
    assert own.mean > measured.reference.mean + measured.reference.std
    # a model keeps it, and takes it for what fits alone
    kept = Normalization.from_json({**vars(measured), "reference": vars(measured.reference)})
    volume = as_volumes(white)[0]
    assert kept.scale_for(volume) == measured.reference
    other = Volume(volume.data.astype(np.uint16), "other")
    assert kept.scale_for(other) == measure_tissue(other)


def test_bad_references_are_refused(tmp_path: Path) -> None:
    good = make_scene(0.2, 0)
    with pytest.raises(ImageError, match="contrast seems inverted"):
        measure_reference(list_reference(write(tmp_path / "inverted", [255 - make_scene(0, 0)])), read)
    with pytest.raises(ImageError, match="contrast seems inverted"):
        measure_reference(
            list_reference(write(tmp_path / "one_inverted", [good, make_scene(0.1, 1), 255 - make_scene(0, 2)])), read
        )
    with pytest.raises(ImageError, match="2 images share no grey scale"):
        measure_reference(list_reference(write(tmp_path / "stretched", [stretch(good), stretch(make_scene(1, 1))])), read)
    with pytest.raises(ImageError, match="no image in this folder"):
        list_reference(write(tmp_path / "empty", []))


def test_an_image_unlike_the_reference_is_said(tmp_path: Path) -> None:
    measured = measure_reference(list_reference(write(tmp_path / "reference", [make_scene(0.1, 0)])), read)
    assert describe_misfit(measured, as_volumes([make_scene(1, 1)])[0]) == ""
    assert "two grey scales" in describe_misfit(measured, as_volumes([make_scene(0.1, 1) // 3])[0])
    with pytest.raises(ImageError, match="dtype uint16, but the reference is uint8"):
        describe_misfit(measured, as_volumes([make_scene(1, 1).astype(np.uint16)])[0])
    with pytest.raises(ImageError, match="contrast seems inverted"):
        describe_misfit(measured, as_volumes([255 - make_scene(0, 1)])[0])


@pytest.mark.skipif(not SLICES.is_dir(), reason="needs the real slices of ../shared/data, which are not part of the project")
def test_white_matter_of_a_real_slice_beside_its_other_crops() -> None:
    grey = np.asarray(Image.open(SLICES / "slice_z159_1420x5805.png"))
    crops = [grey[y : y + 128, x : x + 128] for y in range(256, 1152, 128) for x in range(1280, 4864, 256)]
    own = [find_tissue(volume) for volume in as_volumes(crops)]
    white = int(np.argmax([tissue.centre for tissue in own]))
    whole = measure_tissue(Volume(grey[None], "whole"))
    assert own[white].centre > whole.mean + 0.9 * whole.std
    found = share(crops)
    scale = found[white]
    assert scale is not None
    assert abs(scale.mean - whole.mean) < 0.15 * whole.std
    assert scale.std == pytest.approx(whole.std, rel=0.05)
    assert sum(other == scale for other in found) >= 0.97 * len(crops)
