"""Formats: one small file of each, made by its reference library, opened lazily; damaged and hostile ones are refused."""

from __future__ import annotations

import json
import pickle
import re
import struct
import sys
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from neurotome.errors import ImageError, NeurotomeError
from neurotome.io import find_image, list_images, open_labels, open_volume, read_image, read_labels, write_labels
from neurotome.io.lazy_array import LazyArray
from neurotome.io.ome_zarr import create_ome_zarr
from neurotome.volume import Volume

STACK = (np.arange(5 * 6 * 7, dtype=np.uint16).reshape(5, 6, 7) * 7 % 251).astype(np.uint8)
SIZE = (2.0, 0.65, 0.5)
IMAGEJ = "ImageJ=1.54f\nimages=5\nslices=5\n{}loop=false\n"


def save_hdf5(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["exported"] = STACK
        file["exported"].attrs["element_size_um"] = SIZE


def save_nifti(path: Path, slope: float | None = None, data: NDArray[Any] = STACK) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(data.T, np.diag([0.5, 0.65, 2.0, 1.0]), dtype=data.dtype)
    image.header.set_xyzt_units("micron")
    image.header.set_slope_inter(slope, 0 if slope else None)
    nibabel.save(image, path)


def save_nrrd(path: Path, encoding: str = "gzip") -> None:
    nrrd = pytest.importorskip("nrrd")
    header = {"space directions": np.diag([0.5, 0.65, 2.0]), "space units": ["microns"] * 3, "encoding": encoding}
    nrrd.write(str(path), STACK, {**header, "space dimension": 3}, index_order="C")


def save_mrc(path: Path) -> None:
    mrcfile = pytest.importorskip("mrcfile")
    with mrcfile.new(path) as file:
        file.set_data(STACK.astype(np.float32))
        file.voxel_size = (5000.0, 6500.0, 20000.0)  # Angstrom, x y z


def save_zarr(path: Path, version: int = 3, axes: str = "zyx", data: NDArray[Any] = STACK, unit: str = "nanometer") -> None:
    kinds = {"c": "channel", "t": "time"}
    spaces = [{"name": axis, "type": kinds.get(axis, "space"), **({} if axis in kinds else {"unit": unit})} for axis in axes]
    scale = [1.0] * (len(axes) - 3) + [1000.0 * size for size in SIZE][-len(axes) :]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    described: dict[str, Any] = {"multiscales": [{"axes": spaces, "datasets": [level], "version": "0.4"}]}
    if "c" in axes:
        described["omero"] = {"channels": [{"label": "nuclei"}, {"label": "myelin"}]}
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == 2 else 3)
    group.attrs.update(described if version == 2 else {"ome": {"version": "0.5", **described}})
    group.create_array("0", shape=data.shape, dtype=data.dtype, chunks=(1,) * (data.ndim - 2) + data.shape[-2:])[:] = data


def save_tiff(path: Path, **options: Any) -> None:
    resolution = {
        "resolution": (1 / 0.5, 1 / 0.65),
        "imagej": True,
        "metadata": {"unit": "um", "spacing": 2.0, "axes": "ZYX"},
    }
    tifffile.imwrite(path, STACK, photometric="minisblack", **{**resolution, **options})


FORMATS = {
    "a.tif": save_tiff,
    "packed.tif": lambda path: save_tiff(path, compression="zlib", rowsperstrip=4),
    "a.npy": lambda path: np.save(path, STACK),
    "three.zarr": save_zarr,
    "two.ome.zarr": lambda path: save_zarr(path, 2),
    "a.h5": save_hdf5,
    "a.nii": save_nifti,
    "a.nii.gz": save_nifti,
    "raw.nrrd": lambda path: save_nrrd(path, "raw"),
    "packed.nrrd": save_nrrd,
    "a.mrc": save_mrc,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_as_zyx_with_its_voxel_size(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    FORMATS[name](path)
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.data[:], STACK)
    assert volume.name == name.split(".")[0]
    assert volume.data.dtype == ("float32" if name == "a.mrc" else "uint8")
    assert volume.voxel_size_um == (None if name == "a.npy" else pytest.approx(SIZE, rel=1e-5))
    assert open_volume(path, voxel_size_um=(3.0, 3.0, 3.0)).voxel_size_um == (3.0, 3.0, 3.0)
    # a pixel's edge says nothing of how far slices are apart, where the file says that this is another length
    apart = 3.0 if name == "a.npy" else pytest.approx(SIZE[0], rel=1e-5)
    assert open_volume(path, voxel_size_um=3.0).voxel_size_um == (apart, 3.0, 3.0)
    np.testing.assert_array_equal(read_image(path).data, STACK)
    if name != "a.mrc":
        np.testing.assert_array_equal(read_labels(path), STACK)
    np.testing.assert_array_equal(volume.read_context(4, 3, slice(1, 3), slice(2, 6)), STACK[[3, 4, 4], 1:3, 2:6])


@pytest.mark.parametrize("name", ["packed.tif", "a.tif", "three.zarr", "a.h5", "a.nii", "raw.nrrd", "a.mrc"])
def test_a_lazy_array_is_indexed_like_an_array(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path / name)
    data = open_volume(tmp_path / name).data
    assert isinstance(data, LazyArray)
    assert (len(data), data.size, data.ndim, data.shape) == (5, STACK.size, 3, STACK.shape)
    for index in [
        2,
        -1,
        slice(1, 4),
        (slice(None), 3),
        (0, 1, 2),
        (slice(None, None, 2), slice(4, 1, -2), -3),
        (slice(3, 3),),
    ]:
        np.testing.assert_array_equal(data[index], STACK[index])
    assert [int(plane[0, 0]) for plane in data] == STACK[:, 0, 0].tolist()
    np.testing.assert_array_equal(np.asarray(data, np.float32), STACK)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data))[3], STACK[3])
    with pytest.raises(IndexError, match="index"):
        data[5]
    with pytest.raises(TypeError, match="whole numbers or slices"):
        data[[0, 1]]


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    """Slice 3 is damaged in each file: whoever does not ask for it does not notice."""
    noise = np.random.default_rng(0).integers(0, 255, (5, 40, 40)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", noise, compression="zlib", photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        start = file.pages[3].dataoffsets[0]
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[start : start + 20] = bytes(20)
    (tmp_path / "a.tif").write_bytes(content)
    save_zarr(tmp_path / "a.zarr", data=noise)
    (tmp_path / "a.zarr/0/c/3/0/0").write_bytes(b"damaged")
    for name in ("a.tif", "a.zarr"):
        data = open_volume(tmp_path / name).data
        for z in (0, 1, 2, 4):
            np.testing.assert_array_equal(data[z], noise[z])
        with pytest.raises(ImageError, match=re.escape(name)):
            data[3]
        with pytest.raises(ImageError, match=re.escape(name)):
            read_image(tmp_path / name)


def test_floats_that_are_no_numbers_are_refused_where_they_are_read(tmp_path: Path) -> None:
    data = STACK.astype(np.float32)
    data[3, 2, 1] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack")
    volume = open_volume(tmp_path / "a.tif")
    assert volume.data[:3].max() == STACK[:3].max()
    with pytest.raises(ImageError, match=r"a\.tif: 1 pixels are NaN or infinite, the first at \(z=3, y=2, x=1\)"):
        volume.data[2:, 1:]
    with pytest.raises(ImageError, match="NaN"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("save", ["zarr", "tiff", "h5"])
def test_channel_and_time_are_chosen(tmp_path: Path, save: str) -> None:
    data = np.stack([np.stack([STACK + 10 * t + 100 * c for c in range(2)]) for t in range(3)])  # t, c, z, y, x
    path = tmp_path / f"a.{save}"
    if save == "zarr":
        save_zarr(path, axes="tczyx", data=data)
    elif save == "tiff":
        tifffile.imwrite(path, data.swapaxes(1, 2), imagej=True, metadata={"axes": "TZCYX"})
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["data"] = data.transpose(0, 2, 3, 4, 1)
            file["data"].attrs["axistags"] = json.dumps({"axes": [{"key": key} for key in "tzyxc"]})
    np.testing.assert_array_equal(open_volume(path, channel=1, time=2).data[:], STACK + 120)
    np.testing.assert_array_equal(open_volume(path, channel=0, time=1).data[1:3, 2], STACK[1:3, 2] + 10)
    np.testing.assert_array_equal(open_labels(path, channel=1, time=0)[4], STACK[4] + 100)
    with pytest.raises(ImageError, match=r"3 times.*Choose with time=0\.\.2"):
        open_volume(path, channel=0)
    names = r".*0: nuclei, 1: myelin" if save == "zarr" else ""
    with pytest.raises(ImageError, match=f"2 channels{names}.*Choose with channel"):
        open_volume(path, time=0)
    with pytest.raises(ImageError, match="channel 2 asked for; there are 2"):
        open_volume(path, channel=2, time=0)


def test_a_channel_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in ("a.npy", "a.tif"):
        FORMATS[name](tmp_path / name)
        assert open_volume(tmp_path / name, channel=0, time=0).shape == STACK.shape
        with pytest.raises(ImageError, match="channel 1 asked for"):
            open_volume(tmp_path / name, channel=1)


def test_an_image_that_fetch_writes_is_read(tmp_path: Path) -> None:
    array = create_ome_zarr(
        tmp_path / "a.zarr", STACK.shape, STACK.dtype, SIZE, name="a", origin_zyx=(9, 9, 9), shard=(4, 8, 8), chunk=(2, 4, 4)
    )
    array[:] = STACK
    for path in (tmp_path / "a.zarr", tmp_path / "a.zarr/0"):
        np.testing.assert_array_equal(open_volume(path).data[1:4], STACK[1:4])
    assert open_volume(tmp_path / "a.zarr").voxel_size_um == SIZE


def test_a_fetch_that_was_not_finished_is_refused(tmp_path: Path) -> None:
    for complete in (False, True):
        cut = {"shard": STACK.shape, "chunk": STACK.shape, "notes": {"complete": complete}}
        array = create_ome_zarr(tmp_path / "a.zarr", STACK.shape, STACK.dtype, SIZE, name="a", **cut)  # type: ignore[arg-type]
        array[:] = STACK
        if complete:
            np.testing.assert_array_equal(open_volume(tmp_path / "a.zarr").data[:], STACK)
        else:
            with pytest.raises(ImageError, match="fetch was not finished"):
                open_volume(tmp_path / "a.zarr")


def test_a_nifti_with_a_scale_is_scaled(tmp_path: Path) -> None:
    save_nifti(tmp_path / "a.nii", 0.5, STACK.astype(np.int16))
    volume = open_volume(tmp_path / "a.nii")
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data[2], STACK[2] * np.float32(0.5))


def test_signed_integers_of_16_bits_become_floats(tmp_path: Path) -> None:
    signed = STACK.astype(np.int16) - 100
    np.save(tmp_path / "a.npy", signed)
    save_nifti(tmp_path / "a.nii", None, signed)
    tifffile.imwrite(tmp_path / "a.tif", signed, photometric="minisblack")
    for name in ("a.npy", "a.nii", "a.tif"):
        data = open_volume(tmp_path / name).data
        assert data.dtype == data[0].dtype == np.float32
        np.testing.assert_array_equal(data[1:3], signed[1:3])
        assert read_labels(tmp_path / name).dtype == np.int16


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(NeurotomeError, match=r"^h5py is not installed.*pip install 'neurotome\[formats\]'"):
        open_volume(tmp_path / "a.h5")


def test_an_array_within_hdf5_is_named(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["volumes/raw"], file["volumes/ids"], file["text"] = STACK, STACK // 100, "x"
        file["away"] = h5py.ExternalLink(str(tmp_path / "b.h5"), "/data")
        file.create_dataset("outside", STACK.shape, np.uint8, external=[(str(tmp_path / "c.raw"), 0, STACK.nbytes)])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["data"] = STACK
    np.testing.assert_array_equal(open_volume(f"{tmp_path}/a.h5:/volumes/raw").data[:], STACK)
    np.testing.assert_array_equal(read_labels(f"{tmp_path}/a.h5:volumes/ids"), STACK // 100)
    assert open_volume(f"{tmp_path}/a.h5:/volumes/raw").name == "a"
    with pytest.raises(ImageError, match=r"found 3 arrays: .*volumes/raw.*Name it"):
        open_volume(tmp_path / "a.h5")
    for name in ("away", "absent", "volumes"):
        with pytest.raises(ImageError, match=f"no array '{name}' in the file itself"):
            open_volume(f"{tmp_path}/a.h5:/{name}")
    with pytest.raises(ImageError, match="its values lie in other files"):
        open_volume(f"{tmp_path}/a.h5:/outside")


def test_zarr_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    save_zarr(tmp_path / "secret.zarr")
    for place in ("../secret.zarr/0", str(tmp_path / "secret.zarr/0")):
        save_zarr(tmp_path / "a.zarr")
        group = zarr.open_group(tmp_path / "a.zarr")
        described = dict(group.attrs["ome"])  # type: ignore[arg-type]
        described["multiscales"][0]["datasets"][0]["path"] = place
        group.attrs["ome"] = described
        with pytest.raises(ImageError, match="its pixels lie outside"):
            open_volume(tmp_path / "a.zarr")


def test_zarr_without_an_image_is_refused(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w").create_group("plate")
    with pytest.raises(ImageError, match=r"a\.zarr: found no image \(`multiscales`\) but plate"):
        open_volume(tmp_path / "a.zarr")
    zarr.open_group(tmp_path / "a.zarr").attrs["ome"] = {"multiscales": [{"axes": "zyx"}]}
    with pytest.raises(ImageError, match=r"a\.zarr cannot be read"):
        open_volume(tmp_path / "a.zarr")


@pytest.mark.parametrize("name", [name for name in FORMATS if name.split(".")[-1] in ("h5", "nii", "gz", "nrrd", "mrc")])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_cut_file_is_refused(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for keep in (5, len(content) // 2, len(content) - 30):
        (tmp_path / name).write_bytes(content[:keep])
        with pytest.raises(ImageError, match=re.escape(str(tmp_path / name))):
            read_image(tmp_path / name)


def test_colours_are_refused_whatever_holds_them(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    h5py, nrrd = pytest.importorskip("h5py"), pytest.importorskip("nrrd")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = colours
    zarr.create_array(tmp_path / "a.zarr", data=colours)
    nrrd.write(str(tmp_path / "a.nrrd"), colours, index_order="C")
    for name in ("a.h5", "a.zarr", "a.nrrd"):
        for read in (open_volume, read_labels):
            with pytest.raises(ImageError, match=r"\(40, 50, 3\) looks like RGB\(A\) colours"):
                read(tmp_path / name)
    nrrd.write(str(tmp_path / "b.nrrd"), colours, {"kinds": ["RGB-color", "domain", "domain"]}, index_order="C")
    with pytest.raises(ImageError, match="3 channels"):
        open_volume(tmp_path / "b.nrrd")


def test_one_of_several_channels_or_times_is_chosen_in_every_format(tmp_path: Path) -> None:
    nibabel, nrrd = pytest.importorskip("nibabel"), pytest.importorskip("nrrd")
    both = np.random.default_rng(0).integers(0, 255, (4, 5, 6, 2)).astype(np.uint8)
    nibabel.Nifti1Image(both.transpose(2, 1, 0, 3), np.eye(4)).to_filename(tmp_path / "a.nii")
    nrrd.write(str(tmp_path / "a.nrrd"), both, index_order="C")
    nrrd.write(str(tmp_path / "b.nrrd"), both, {"kinds": ["list", *["domain"] * 3]}, index_order="C")
    with pytest.raises(ImageError, match=r"2 times; .*time=0\.\.1"):
        open_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(open_volume(tmp_path / "a.nii", time=1).data[:], both[..., 1])
    for name in ("a.nrrd", "b.nrrd"):
        np.testing.assert_array_equal(open_volume(tmp_path / name, channel=1).data[:], both[..., 1])


@pytest.mark.parametrize("signed", [True, False])
def test_bytes_of_imod_have_a_sign_only_if_it_says_so(tmp_path: Path, signed: bool) -> None:
    mrcfile = pytest.importorskip("mrcfile")
    grey = np.arange(2 * 16 * 16).reshape(2, 16, 16).astype(np.uint8)
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(grey.view(np.int8))
        stamped = bytearray(file.header.extra2.tobytes())
        stamped[40:48] = (1146047817).to_bytes(4, "little") + int(signed).to_bytes(4, "little")
        file.header.extra2 = bytes(stamped)
    found = open_volume(tmp_path / "a.mrc").data
    np.testing.assert_array_equal(found[:], grey.view(np.int8) if signed else grey)


def test_nrrd_with_pixels_elsewhere_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("nrrd")
    header = "NRRD0004\ntype: uint8\ndimension: 2\nsizes: 2 2\nencoding: raw\ndata file: /etc/passwd\n\n"
    (tmp_path / "a.nrrd").write_text(header)
    with pytest.raises(ImageError, match="pixels lie in another file"):
        open_volume(tmp_path / "a.nrrd")


# names


def test_images_are_found_whatever_their_case_and_unicode_form(tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "échantillon")
    names = ["a.TIF", f"{unicodedata.normalize('NFD', composed)}.png", "b.OME.tif", "c.nii.gz", "._a.png", ".d.png", "e.txt"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "f.ome.zarr").mkdir()
    (tmp_path / "g.tif").mkdir()
    assert {path.name for path in list_images(tmp_path)} == {*names[:4], "f.ome.zarr"}
    for image_id, name in [("a", "a.TIF"), (composed, names[1]), ("b", names[2]), ("b.OME", names[2]), ("c", names[3])]:
        assert find_image(tmp_path, image_id).name == name
    with pytest.raises(ImageError, match="found nothing of that name"):
        find_image(tmp_path, "d")


# pixels that other tools store otherwise


def save_palette(path: Path) -> None:
    if path.suffix == ".tif":
        colours = np.zeros((3, 256), np.uint16)
        colours[0, 1] = colours[1, 2] = 65535
        tifffile.imwrite(path, STACK[0] % 3, photometric="palette", colormap=colours)
        return
    image = Image.fromarray(STACK[0] % 3)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    assert image.mode == "P"
    image.save(path)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_palette_indices_are_ids(tmp_path: Path, name: str) -> None:
    save_palette(tmp_path / name)
    np.testing.assert_array_equal(read_labels(tmp_path / name), STACK[:1] % 3)
    with pytest.raises(ImageError, match=r"(?i)palette|mode P|RGB"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.npy"])
def test_masks_are_labels_0_and_1(tmp_path: Path, name: str) -> None:
    mask = STACK[0] > 100
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, mask)
    elif name == "a.png":
        Image.fromarray(mask).save(tmp_path / name)
    else:
        np.save(tmp_path / name, mask)
    labels = read_labels(tmp_path / name)
    assert labels.dtype == np.uint8
    assert labels[0].tolist() == mask.astype(int).tolist()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_white_stored_as_0_is_read_as_it_is_shown(tmp_path: Path, dtype: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK.astype(dtype), photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").data, np.iinfo(dtype).max - STACK.astype(dtype))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), STACK)  # ids are what is stored


STORED_COLOURS = {".png": ("RGB", "RGBA", "LA"), ".tif": ("RGB", "RGBA"), ".bmp": ("RGB",)}
"""What pillow stores as such."""


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in STORED_COLOURS.items() for mode in modes])
def test_grey_stored_as_colours_is_grey(tmp_path: Path, suffix: str, mode: str) -> None:
    Image.fromarray(STACK[0]).convert(mode).save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}").data, STACK[:1])


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_grey_stored_as_a_stack_of_colours_is_grey(tmp_path: Path, planar: str) -> None:
    colours = np.stack([STACK] * 3, -1 if planar == "contig" else 1)
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb", planarconfig=planar, compression="lzw")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").data, STACK)


def test_lossy_images_are_read_with_a_note_and_labels_refused(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
    for name, format_name in [
        ("a.jpg", "JPEG"),
        ("b.JPEG", "JPEG"),
        ("a.tif", "JPEG"),
        ("b.tif", "WEBP"),
        ("c.tif", "JPEG2000"),
    ]:
        if name.endswith(".tif"):
            colours = np.stack([smooth] * 3, -1) if format_name == "WEBP" else smooth
            tifffile.imwrite(tmp_path / name, colours, compression=format_name.lower())
        else:
            Image.fromarray(smooth).save(tmp_path / name, "JPEG", quality=95)
        with pytest.warns(UserWarning, match=f"compressed with {format_name}.* may have lost detail"):
            grey = read_image(tmp_path / name).data
        assert np.abs(grey[0].astype(int) - smooth).max() < 12
        with pytest.raises(ImageError, match=f"{name}: may have lost detail to compression .{format_name}"):
            read_labels(tmp_path / name)


def test_text_that_is_no_ascii_changes_no_pixel(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK[0], description=b"pixel 1.17 \xff\x81\x8d um", metadata=None)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").data, STACK[:1])


# voxel sizes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unit=micron\nspacing=-2.0\n", (2.0, 1.17, 1.17)),
        ("unit=nanometer\nspacing=2.0\n", (0.002, 0.00117, 0.00117)),
        ("unit=micron\nyunit=micron\nzunit=mm\nspacing=0.002\n", (2.0, 1.17, 1.17)),
        ("unit=mm\nyunit=micron\nzunit=cm\nspacing=0.001\n", (10.0, 1.17, 1170.0)),
        ("unit=Micron\n", (1.17, 1.17, 1.17)),
        ("unit=micron\nzunit=furlong\nspacing=2.0\n", None),
        ("unit=inch\nspacing=2.0\n", None),
        ("spacing=2.0\n", None),
    ],
)
def test_voxel_sizes_of_imagej(tmp_path: Path, text: str, expected: tuple[float, ...] | None) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        STACK,
        description=IMAGEJ.format(text).encode(),
        metadata=None,
        photometric="minisblack",
        resolution=(1 / 1.17,) * 2,
        resolutionunit="NONE",
    )
    size = open_volume(tmp_path / "a.tif").voxel_size_um
    assert size == (None if expected is None else pytest.approx(expected, rel=1e-5))


# which image of several


def test_a_thumbnail_is_left_out_and_said(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(STACK[0, :2, :3], photometric="minisblack")
        writer.write(STACK, photometric="minisblack")
    with pytest.warns(UserWarning, match=r"a\.tif: read the image of shape \(5, 6, 7\); left out 1 smaller"):
        volume = open_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume.data[:], STACK)


def test_of_a_pyramid_the_full_image_is_read(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(STACK, photometric="minisblack", subifds=1, tile=(16, 16))
        writer.write(STACK[:, ::2, ::2], photometric="minisblack", subfiletype=1, tile=(16, 16))
    np.testing.assert_array_equal(open_volume(tmp_path / "a.tif").data[:], STACK)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_slices_that_the_description_leaves_out_are_refused(tmp_path: Path, compression: str | None) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for z, plane in enumerate(STACK):
            text = None if z else "ImageJ=1.54f\nimages=3\nslices=3\n"
            writer.write(plane, compression=compression, metadata=None, description=text)
    with pytest.raises(ImageError, match="speaks of 3 slices, but there are 5"):
        open_volume(tmp_path / "a.tif")


OME = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{}"><Image ID="Image:0">
<Pixels DimensionOrder="XYZCT" ID="Pixels:0" Type="uint8" SizeX="7" SizeY="6" SizeZ="2" SizeC="1" SizeT="1">
<TiffData IFD="0" FirstZ="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:0</UUID></TiffData>
<TiffData IFD="0" FirstZ="1" PlaneCount="1"><UUID FileName="{}b.ome.tif">urn:uuid:1</UUID></TiffData>
</Pixels></Image></OME>"""


def test_slices_in_several_files_are_read_from_their_folder_only(tmp_path: Path) -> None:
    for folder in ("", "../"):
        (tmp_path / "in").mkdir(exist_ok=True)
        for z, path in enumerate([tmp_path / "in/a.ome.tif", tmp_path / f"in/{folder}b.ome.tif"]):
            tifffile.imwrite(path, STACK[z], description=OME.format(z, folder), metadata=None, photometric="minisblack")
        if not folder:
            np.testing.assert_array_equal(open_volume(tmp_path / "in/a.ome.tif").data[:], STACK[:2])
            continue
        with pytest.raises(ImageError, match=r"a\.ome\.tif: some of its slices lie in another folder"):
            open_volume(tmp_path / "in/a.ome.tif")


# damage


def make_png(rows: bytes, interlaced: int = 0) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 7, 6, 8, 0, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_png_cut_within_its_last_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    rows = b"".join(b"\0" + plane.tobytes() for plane in STACK[0])
    path.write_bytes(make_png(rows))
    np.testing.assert_array_equal(read_image(path).data, STACK[:1])
    path.write_bytes(make_png(rows[:-3]))
    with pytest.raises(ImageError, match=r"a\.png cannot be read \(.*Not enough image data"):
        read_image(path)
    whole = make_png(rows)
    for cut in range(1, 30):
        path.write_bytes(whole[:-cut])
        with pytest.raises(ImageError, match=r"a\.png"):
            read_image(path)


def test_interlaced_png_is_read(tmp_path: Path) -> None:
    passes = [STACK[0, y::dy, x::dx] for x, y, dx, dy in [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]]  # fmt: skip  # noqa: E501
    rows = b"".join(b"\0" + row.tobytes() for part in passes for row in part)
    (tmp_path / "a.png").write_bytes(make_png(rows, 1))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").data, STACK[:1])
    (tmp_path / "a.png").write_bytes(make_png(rows[:-1], 1))
    with pytest.raises(ImageError, match="Not enough image data"):
        read_image(tmp_path / "a.png")


def test_a_cut_stack_is_refused(tmp_path: Path) -> None:
    for name in ("a.tif", "packed.tif"):
        FORMATS[name](tmp_path / name)
        content = (tmp_path / name).read_bytes()
        for keep in (20, 300, len(content) // 2, 400):
            (tmp_path / name).write_bytes(content[:keep])
            with pytest.raises(ImageError, match=name):
                read_image(tmp_path / name)


def test_what_is_written_like_a_volume_has_its_voxel_size(tmp_path: Path) -> None:
    volume = Volume(STACK, "a", SIZE)
    write_labels(tmp_path / "a.tif", STACK % 3, like=volume)
    write_labels(tmp_path / "a.zarr", STACK % 3, like=volume)
    for name in ("a.tif", "a.zarr"):
        assert open_volume(tmp_path / name).voxel_size_um == pytest.approx(SIZE, rel=1e-6)
