"""Image files: what is written is read back, what other tools write is read, what is wrong is refused."""

from __future__ import annotations

import contextlib
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from neurotome.errors import ImageError
from neurotome.io import (
    check_grey,
    find_image,
    read_image,
    read_labels,
    write_image,
    write_labels,
)

RAMP = np.arange(6 * 20 * 30, dtype=np.uint16).reshape(6, 20, 30)
FIXTURE_OK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


def ramp(dtype: str, slices: int = 6) -> NDArray[Any]:
    return (RAMP[:slices] % 251).astype(dtype)


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".npy", ".TIF"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("slices", [1, 6])
def test_image_comes_back(tmp_path: Path, suffix: str, dtype: str, slices: int) -> None:
    path = tmp_path / f"stack.v2{suffix}"
    write_image(path, ramp(dtype, slices))
    volume = read_image(path, voxel_size_um=(3.0, 2.0, 1.0))
    assert volume.data.dtype == dtype
    np.testing.assert_array_equal(volume.data, ramp(dtype, slices))
    assert (volume.name, volume.voxel_size_um, volume.path) == ("stack.v2", (3.0, 2.0, 1.0), path)


PER_UM = (1 / 0.65, 1 / 0.5)
OME = {"PhysicalSizeX": 650, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5, "axes": "ZYX"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"imagej": True, "resolution": PER_UM, "metadata": {"unit": "um", "axes": "ZYX"}}, (0.5, 0.5, 0.65)),
        (
            {"imagej": True, "resolution": PER_UM, "metadata": {"unit": "\\u00B5m", "spacing": 2.0, "axes": "ZYX"}},
            (2.0, 0.5, 0.65),
        ),
        ({"imagej": True, "resolution": PER_UM, "metadata": {"unit": "mm", "axes": "ZYX"}}, (500, 500, 650)),
        ({"imagej": True, "resolution": PER_UM, "metadata": {"unit": "pixel", "axes": "ZYX"}}, None),
        ({"imagej": True, "resolution": PER_UM, "metadata": {"axes": "ZYX"}}, None),
        ({"resolution": (1e4 / 0.65, 1e4 / 0.5), "resolutionunit": "CENTIMETER"}, (0.5, 0.5, 0.65)),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({"resolution": (1e-9, 1e-9), "resolutionunit": "CENTIMETER"}, None),
        ({"ome": True, "metadata": {**OME, "PhysicalSizeZ": 2}}, (2.0, 0.5, 0.65)),
        ({"ome": True, "metadata": OME}, (0.5, 0.5, 0.65)),
        ({"ome": True, "metadata": {"axes": "ZYX"}}, None),
        ({"ome": True, "metadata": {**OME, "PhysicalSizeYUnit": "pixel"}}, None),
        ({}, None),
    ],
)
def test_voxel_sizes_in_tiff_files(tmp_path: Path, options: dict[str, Any], expected: tuple[float, ...] | None) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp("uint8"), photometric="minisblack", **options)
    assert read_image(path).voxel_size_um == (None if expected is None else pytest.approx(expected, rel=1e-6))
    assert read_image(path, voxel_size_um=(3.0, 2.0, 1.0)).voxel_size_um == (3.0, 2.0, 1.0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_comes_back(tmp_path: Path, dtype: str) -> None:
    plane = (RAMP[0] * 97).astype(dtype)
    write_image(tmp_path / "flat.png", plane)
    volume = read_image(tmp_path / "flat.png")
    assert volume.data.dtype == dtype
    np.testing.assert_array_equal(volume.data, plane[None])
    with Image.open(tmp_path / "flat.png") as image:
        np.testing.assert_array_equal(np.asarray(image), plane)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "uint64"])
def test_labels_come_back_as_uint8(tmp_path: Path, suffix: str, dtype: str) -> None:
    labels = np.array([[0, 1, 2], [3, 255, 0]], dtype)
    write_labels(tmp_path / f"a{suffix}", labels)
    found = read_labels(tmp_path / f"a{suffix}")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, labels[None])


def test_constant_labels_are_labels(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.tif", np.zeros((3, 4, 5), np.uint8))
    assert read_labels(tmp_path / "a.tif").shape == (3, 4, 5)


@pytest.mark.parametrize("columns", [1, 3, 4])
def test_narrow_stacks_are_no_colours(tmp_path: Path, columns: int) -> None:
    data = RAMP[:3, :, :columns].astype(np.uint8)
    write_image(tmp_path / "a.tif", data)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").data, data)


def test_npy_is_memory_mapped_and_keeps_wide_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ramp("uint8"))
    np.save(tmp_path / "b.npy", ramp("uint64"))
    assert isinstance(read_image(tmp_path / "a.npy").data, np.memmap)
    assert isinstance(read_labels(tmp_path / "b.npy"), np.memmap)
    assert read_labels(tmp_path / "b.npy").dtype == np.uint64


def test_foreign_writers_are_understood(tmp_path: Path) -> None:
    data = ramp("uint8")
    pages = [Image.fromarray(plane) for plane in data]
    pages[0].save(tmp_path / "pillow.tif", save_all=True, append_images=pages[1:])
    tifffile.imwrite(tmp_path / "imagej.tif", data, imagej=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "plain.tif", data, metadata=None, photometric="minisblack")
    tifffile.imwrite(tmp_path / "ome.tif", data, ome=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "lzw.tif", data, compression="lzw", tile=(16, 16), metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "big.tif", data.astype(">u2"), byteorder=">", photometric="minisblack")
    np.save(tmp_path / "big.npy", data.astype(">u2"))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(data))
    names = [
        "pillow.tif",
        "imagej.tif",
        "plain.tif",
        "ome.tif",
        "lzw.tif",
        "big.tif",
        "big.npy",
        "fortran.npy",
    ]
    for name in names:
        found = read_image(tmp_path / name).data
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, data, err_msg=name)


def make_png(width: int, height: int, bits: int, kind: int, pixels: bytes) -> bytes:
    """Writes a PNG file by hand (ISO/IEC 15948), so that headers can lie."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def test_large_honest_png_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    write_image(tmp_path / "a.png", ramp("uint8", 1))
    assert read_image(tmp_path / "a.png").shape == (1, 20, 30)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_absurd_headers_are_not_believed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(make_png(2_000_000, 2_000_000, 8, 0, b"\0\1\2"))
    with pytest.raises(ImageError, match=r"a\.png: the header claims 4000000000000 bytes"):
        read_image(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", ramp("uint8", 1)[0], compression="zlib", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            file.pages[0].tags[name].overwrite(60_000)
    with pytest.raises(ImageError, match=r"a\.tif"):
        read_image(tmp_path / "a.tif")


def save_rgb_tiff(path: Path) -> None:
    tifffile.imwrite(path, np.moveaxis(ramp("uint8")[:3], 0, -1), photometric="rgb")


def save_inverted(path: Path) -> None:
    tifffile.imwrite(path, ramp("float32", 1)[0], photometric="miniswhite")


def save_4d(path: Path) -> None:
    data = np.stack([ramp("uint8")] * 2)
    if path.suffix == ".npy":
        np.save(path, data)
    else:
        tifffile.imwrite(path, data, photometric="minisblack")


def save_sizes(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        writer.write(ramp("uint8", 1)[0], photometric="minisblack")
        writer.write(ramp("uint8", 1)[0, :5], photometric="minisblack")


def save_times(path: Path) -> None:
    tifffile.imwrite(path, ramp("uint8"), imagej=True, metadata={"axes": "TYX"})


def save_nan(path: Path) -> None:
    data = ramp("float32")
    data[2, 3, 4], data[2, 3, 5], data[4, 0, 0] = np.nan, np.inf, -np.inf
    np.save(path, data)


def save_animation(path: Path) -> None:
    pages = [Image.fromarray(plane) for plane in ramp("uint8")]
    pages[0].save(path, save_all=True, append_images=pages[1:])


def save_mode(mode: str) -> Any:
    return lambda path: Image.fromarray(ramp("uint8", 1)[0]).convert(mode).save(path)


def save_colours(mode: str) -> Any:
    """Saves an image whose channels differ, as `save_mode` does one whose channels are equal."""

    def save(path: Path) -> None:
        image = Image.fromarray(ramp("uint8", 1)[0]).convert(mode)
        image.paste(tuple(range(50, 240, 50))[: len(image.getbands())], (0, 0, 16, 16))
        image.save(path)

    return save


def save_bytes(content: bytes) -> Any:
    return lambda path: path.write_bytes(content)


def save_array(array: NDArray[Any]) -> Any:
    return lambda path: np.save(path, array, allow_pickle=True)


REFUSED = [
    ("a.png", lambda path: None, "does not exist"),
    ("a.png", lambda path: path.mkdir(), "is a folder"),
    ("a.png", save_bytes(b""), "empty"),
    ("a.tif", save_bytes(b""), "empty"),
    ("a.npy", save_bytes(b""), "empty"),
    ("a.png", save_bytes(b"GIF89a, not a PNG at all"), "not a PNG file"),
    ("a.tif", save_bytes(b"no TIFF"), "cannot be read"),
    ("a.npy", save_bytes(b"no numpy array"), "cannot be read"),
    ("a.jp2", save_bytes(b"x"), "unknown suffix '.jp2'"),
    ("a.jpg", save_bytes(b"x"), "cannot be read"),
    ("a.png", save_colours("RGB"), "RGB colours; expected one grey channel"),
    ("a.jpg", save_colours("RGB"), "RGB colours; expected one grey channel"),
    ("a.bmp", save_colours("RGB"), "RGB colours; expected one grey channel"),
    ("a.png", save_colours("RGBA"), "RGB colours"),
    ("a.png", save_colours("LA"), "transparent"),
    ("a.png", save_mode("P"), "palette colours"),
    ("a.png", save_mode("1"), "pixels of mode 1"),
    ("a.png", save_bytes(make_png(2, 1, 16, 2, bytes(13))), "pixels of mode RGB;16B"),
    ("a.png", save_animation, "animation of 6 frames"),
    ("a.tif", save_rgb_tiff, "RGB colours; expected one"),
    ("a.tif", save_mode("P"), "PALETTE"),
    ("a.tif", save_inverted, "MINISWHITE.*Edit > Invert"),
    ("a.tif", save_4d, "axes"),
    ("a.npy", save_4d, r"shape \(2, 6, 20, 30\)"),
    ("a.tif", save_sizes, "2 images of shapes"),
    ("a.tif", save_times, "axes TYX"),
    ("a.npy", save_nan, r"2 pixels are NaN or infinite, the first at \(z=2, y=3, x=4\)"),
    ("a.npy", save_array(np.full((2, 3, 4), 7, np.uint8)), "every pixel is 7"),
    ("a.npy", save_array(np.full((2, 3, 4), 7, np.float32)), "every pixel is 7"),
    ("a.npy", save_array(RAMP.astype(np.float64)), "dtype float64"),
    ("a.npy", save_array(RAMP.astype(np.int32)), "dtype int32"),
    ("a.npy", save_array(RAMP > 5), "dtype bool"),
    ("a.npy", save_array(np.zeros((20, 30, 3), np.uint8)), "RGB"),
    ("a.npy", save_array(np.array([[{"code": 1}]], object)), "cannot be read"),
    ("a.npy", save_array(np.zeros((0, 3), np.uint8)), "cannot be read|shape"),
    ("a.npy", save_array(np.zeros(3, np.uint8)), "shape"),
]


@pytest.mark.parametrize(("name", "save", "message"), REFUSED)
def test_wrong_images_are_refused_by_name(tmp_path: Path, name: str, save: Any, message: str) -> None:
    save(tmp_path / name)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        ("a.npy", save_array(RAMP.astype(np.float32)), "dtype float32; expected integers"),
        ("a.png", save_colours("RGB"), "RGB colours; .* making colours grey gives other ids"),
        ("a.tif", save_rgb_tiff, "RGB colours; .* making colours grey gives other ids"),
        ("a.jpg", save_mode("L"), "lost detail to compression"),
    ],
)
def test_wrong_labels_are_refused_by_name(tmp_path: Path, name: str, save: Any, message: str) -> None:
    save(tmp_path / name)
    with pytest.raises(ImageError, match=message) as caught:
        read_labels(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def save_truncatable(path: Path, data: NDArray[Any]) -> None:
    if path.suffix == ".png":
        data = data[:1]
    write_image(path, data)


def read_or_refuse(path: Path) -> NDArray[Any] | None:
    """Returns the pixels, or None where an ImageError refuses the file; any other error is a bug."""
    with contextlib.suppress(ImageError):
        return read_image(path).data
    return None


@FIXTURE_OK
@given(name=st.sampled_from(["a.png", "a.tif", "a.npy"]), keep=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_never_yields_other_pixels(tmp_path: Path, name: str, keep: float) -> None:
    path = tmp_path / name
    data = np.random.default_rng(0).integers(0, 255, (4, 20, 30)).astype(np.uint8)
    save_truncatable(path, data)
    whole, content = read_image(path).data.copy(), path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    found = read_or_refuse(path)
    if found is not None:
        np.testing.assert_array_equal(found, whole)


@FIXTURE_OK
@given(
    name=st.sampled_from(["a.png", "a.tif", "a.npy"]),
    place=st.integers(0, 400),
    value=st.integers(0, 255),
)
def test_a_damaged_byte_is_refused_or_harmless(tmp_path: Path, name: str, place: int, value: int) -> None:
    path = tmp_path / name
    save_truncatable(path, np.random.default_rng(0).integers(0, 255, (4, 20, 30)).astype(np.uint8))
    content = bytearray(path.read_bytes())
    content[place] = value
    path.write_bytes(content)
    found = read_or_refuse(path)
    assert found is None or found.ndim == 3


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.npy"])
def test_half_a_file_is_refused(tmp_path: Path, name: str) -> None:
    save_truncatable(tmp_path / name, ramp("uint8"))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"cannot be read|damaged"):
        read_image(tmp_path / name)


def test_pages_lost_at_the_end_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ramp("uint8"), metadata=None, photometric="minisblack")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with tifffile.TiffFile(path) as file:
        assert file.series[0].shape == (20, 30), "the decoder alone takes it for one slice"
    caplog.clear()
    with pytest.raises(ImageError, match=r"a\.tif is damaged or incomplete"):
        read_image(path)
    assert not caplog.records
    assert logging.getLogger("tifffile").propagate


def test_find_image(tmp_path: Path) -> None:
    (tmp_path / "a.b.png").touch()
    (tmp_path / "c.jp2").touch()
    assert find_image(tmp_path, "a.b") == tmp_path / "a.b.png"
    with pytest.raises(ImageError, match=r"found c\.jp2"):
        find_image(tmp_path, "c")
    with pytest.raises(ImageError, match="found nothing of that name"):
        find_image(tmp_path / "absent", "c")
    (tmp_path / "a.b.npy").touch()
    with pytest.raises(ImageError, match=r"a\.b\.npy, a\.b\.png all exist"):
        find_image(tmp_path, "a.b")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.png", np.zeros((2, 3, 4), np.uint8), "one slice, found 2. Use the suffix .tif"),
        ("a.jpg", np.zeros((3, 4), np.uint8), "unknown suffix"),
        ("a.npy", np.zeros((3, 4), np.float32), "expected integers"),
        ("a.npy", np.array([[0, 256]]), r"lie in 0\.\.256"),
        ("a.npy", np.array([[-1, 2]]), r"lie in -1\.\.2"),
        ("a.npy", np.zeros((1, 2, 3, 4), np.uint8), "shape"),
        ("a.npy", np.zeros((0, 4), np.uint8), "shape"),
    ],
)
def test_labels_that_cannot_be_written(tmp_path: Path, name: str, data: NDArray[Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        write_labels(tmp_path / name, data)
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="float32"):
        write_image(tmp_path / "a.png", ramp("float32", 1))
    with pytest.raises(ImageError, match="dtype float64"):
        write_image(tmp_path / "a.npy", RAMP.astype(np.float64))
    assert list(tmp_path.iterdir()) == []


def test_check_grey_takes_arrays() -> None:
    check_grey(RAMP, "ramp")
    with pytest.raises(ImageError, match=r"ramp: shape \(20, 30\)"):
        check_grey(RAMP[0], "ramp")


def test_real_slice_is_read() -> None:
    path = Path(__file__).resolve().parents[2] / "shared/data/microct_patches/unlabelled/slice_z159_1420x5805.png"
    if not path.exists():
        pytest.skip("real images are not beside this checkout")
    volume = read_image(path)
    assert volume.shape == (1, 1420, 5805)
    assert volume.data.dtype == np.uint8
