import os
import shutil

import numpy as np
import pytest
import zarr
from PIL import Image

from neurotome.errors import ImageError
from neurotome.io.identity import check_unchanged, compare_by, identify_input

VOXELS = np.arange(4 * 20 * 24, dtype=np.uint16).reshape(4, 20, 24) % 251


def write_npy(folder):
    np.save(folder / "image.npy", VOXELS)
    return folder / "image.npy", [folder / "image.npy"]


def write_slices(folder):
    files = [folder / "image" / f"{z:03}.png" for z in range(4)]
    files[0].parent.mkdir()
    for file, plane in zip(files, VOXELS, strict=True):
        Image.fromarray(plane.astype(np.uint8)).save(file)
    return folder / "image", files


def write_zarr(folder, version, **options):
    root = zarr.open_group(folder / "image.zarr", mode="w", zarr_format=version)
    multiscales = [{"datasets": [{"path": "s0"}]}]
    root.attrs.update({"ome": {"multiscales": multiscales}} if version == 3 else {"multiscales": multiscales})
    root.create_array("s0", shape=VOXELS.shape, chunks=(2, 10, 12), dtype="u2", **options)[:] = VOXELS
    root.create_array("s1", shape=(2, 10, 12), chunks=(2, 10, 12), dtype="u2")[:] = VOXELS[::2, ::2, ::2]
    files = [path for path in (folder / "image.zarr" / "s0").rglob("*") if path.is_file() and path.name[0] not in "z."]
    assert len(files) == (1 if "shards" in options else 8)
    return folder / "image.zarr", files


WRITERS = {
    "npy": write_npy,
    "slices": write_slices,
    "zarr 2": lambda folder: write_zarr(folder, 2),
    "zarr 2, /": lambda folder: write_zarr(folder, 2, chunk_key_encoding={"name": "v2", "separator": "/"}),
    "zarr 3": lambda folder: write_zarr(folder, 3),
    "zarr 3, sharded": lambda folder: write_zarr(folder, 3, shards=(4, 20, 24)),
}


@pytest.fixture(params=WRITERS)
def image(request, tmp_path):
    return WRITERS[request.param](tmp_path)


def flip(file):
    """Changes a byte in the middle, and nothing else."""
    content, status = bytearray(file.read_bytes()), file.stat()
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_is_moved_renamed_and_touched_is_the_same(image, tmp_path):
    path, files = image
    before = identify_input(path)
    assert (before["files"], before["bytes"]) == (len(files), sum(file.stat().st_size for file in files))
    assert before == identify_input(str(path))
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / f"other{path.suffix}"
    shutil.copytree(path, moved) if path.is_dir() else shutil.copy(path, moved)
    assert compare_by(identify_input(moved)) == compare_by(before)
    check_unchanged(path, before)


def test_a_changed_byte_makes_it_another(image):
    path, files = image
    before = identify_input(path)
    flip(files[-1])
    assert compare_by(identify_input(path)) != compare_by(before)
    with pytest.raises(ImageError, match=r"changed while it was read: its content\. The blocks done until now are kept"):
        check_unchanged(path, before)


def test_what_is_written_while_it_is_read_is_named(image):
    path, files = image
    before = identify_input(path)
    os.utime(files[0], ns=(0, before["modified"] + 1))
    name = files[0].relative_to(path) if path.is_dir() else path.name
    with pytest.raises(ImageError, match=rf"a file was written \({name}\)"):
        check_unchanged(path, before)
    assert compare_by(identify_input(path)) == compare_by(before)


def test_what_is_lost_while_it_is_read_is_said(image):
    path, files = image
    before = identify_input(path)
    files[-1].unlink()
    message = (
        rf"the number of files \({len(files)} before, {len(files) - 1} now\)" if path.is_dir() else "could be read when"
    )
    with pytest.raises(ImageError, match=message):
        check_unchanged(path, before)


def test_labels_and_levels_may_be_added_to_an_image(tmp_path):
    path, _ = write_zarr(tmp_path, 3)
    before = identify_input(path)
    root = zarr.open_group(path, mode="a")
    root.create_array("labels/cells/0", shape=VOXELS.shape, dtype="u1")[:] = 1
    root["s1"][:] = 0
    root.attrs.update({"omero": {"channels": []}})
    assert identify_input(path) == before


def test_a_plain_array_with_absent_chunks_has_an_identity(tmp_path):
    array = zarr.create_array(tmp_path / "image.zarr", shape=(40, 40), chunks=(10, 10), dtype="u1")
    array[:10, :20] = 1
    before = identify_input(tmp_path / "image.zarr")
    assert before["files"] == 2
    array[30:, 30:] = 1
    with pytest.raises(ImageError, match=r"the number of files \(2 before, 3 now\)"):
        check_unchanged(tmp_path / "image.zarr", before)
    array[:10, :20] = 0  # which deletes the files
    assert identify_input(tmp_path / "image.zarr")["files"] == 1


def test_of_an_image_of_very_many_files_a_sample_is_looked_at(tmp_path):
    array = zarr.create_array(tmp_path / "image.zarr", shape=(10**4,) * 3, chunks=(64,) * 3, dtype="u1")
    array[:64, :64, :64] = 1
    before = identify_input(tmp_path / "image.zarr")
    assert before["files"] == 1
    assert before["sampled"].startswith("4096 of 3869893 files were looked for")
    assert before["sha256"] == identify_input(tmp_path / "image.zarr")["sha256"]


def test_an_array_in_a_file_is_another_than_its_neighbour(tmp_path):
    (tmp_path / "a.h5").write_bytes(bytes(10**6 * 5))
    first, second = (identify_input(f"{tmp_path / 'a.h5'}:/{name}") for name in "ab")
    assert first["sha256"] != second["sha256"]
    assert first["bytes"] == 5 * 10**6


@pytest.mark.parametrize("name", ["absent.npy", "broken.zarr"])
def test_what_cannot_be_read_is_an_error(tmp_path, name):
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    with pytest.raises(ImageError, match=name):
        identify_input(tmp_path / name)
