"""Labels and grey maps as OME-Zarr, block by block: any writer's torn file is replaced, and other tools read the result."""

from __future__ import annotations

import hashlib
import json
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from neurotome.classes import ClassSet
from neurotome.errors import ImageError, RunError, SettingsError
from neurotome.io.block_array import NO_FILES, choose_chunk
from neurotome.io.label_store import LabelStore, create_label_store, open_label_store
from neurotome.io.ome_zarr import create_ome_zarr

CLASSES = ClassSet(("background", "vessel", "cell"))
SHAPE, BLOCK, CHUNK = (10, 9, 12), (8, 8, 8), (4, 4, 4)
SIZE = (1.0, 0.5, 0.5)
VOXELS = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
FIRST = (slice(0, 8), slice(0, 8), slice(0, 8))
CORNER = (slice(8, 10), slice(8, 9), slice(8, 12))
BOTH = pytest.mark.parametrize("version", ["0.5", "0.4"])


def list_places(shape: Any = SHAPE, block: Any = BLOCK) -> list[tuple[slice, slice, slice]]:
    spans = [[slice(i, min(i + n, size)) for i in range(0, size, n)] for size, n in zip(shape, block, strict=True)]
    return list(product(*spans))


def create(path: Path, *, filled: bool = True, **changed: Any) -> LabelStore:
    options: dict[str, Any] = {"classes": CLASSES, "block_zyx": BLOCK, "chunk_zyx": CHUNK, "voxel_size_um": SIZE}
    store = create_label_store(path, SHAPE, **(options | changed))
    for place in list_places() if filled else ():
        store.write_block(place, VOXELS[place])
    return store


def create_image(path: Path, version: str) -> None:
    if version == "0.5":
        create_ome_zarr(path, SHAPE, np.dtype("u1"), SIZE, name="image", shard=BLOCK, chunk=CHUNK)[:] = VOXELS
    else:
        image = create(path, classes=None, version="0.4")
        assert image.levels == ["0"]


@BOTH
def test_what_is_written_is_read_and_the_ledger_may_lie_inside(tmp_path: Path, version: Any) -> None:
    store = create(tmp_path / "a.zarr", version=version, attributes={"model": "m"})
    (tmp_path / "a.zarr/0/ledger").mkdir()
    (tmp_path / "a.zarr/0/ledger/head.json").write_text("{}")
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert [name for name, _ in group.members(max_depth=None)] == ["0"]
    np.testing.assert_array_equal(group["0"][:], VOXELS)  # type: ignore[index]
    again = open_label_store(tmp_path / "a.zarr")
    box = (slice(3, 9), slice(2, 9), slice(7, 12))
    np.testing.assert_array_equal(again.read(box), VOXELS[box])
    assert (again.shape_zyx, again.block_zyx, again.levels, again.voxel_size_um) == (SHAPE, BLOCK, ["0"], SIZE)
    again.set_attributes(halo=3)
    assert (store.attributes["model"], store.attributes["halo"]) == ("m", 3)


@BOTH
def test_digest_is_of_the_files_and_finds_a_flipped_or_missing_one(tmp_path: Path, version: Any) -> None:
    store = create(tmp_path / "a.zarr", filled=False, version=version)
    written = store.write_block(CORNER, VOXELS[CORNER])
    assert store.digest_block(CORNER) == written != NO_FILES
    assert store.digest_block(FIRST) == NO_FILES
    if version == "0.5":
        file = tmp_path / "a.zarr/0/c/1/1/1"
        assert written == hashlib.sha256(file.read_bytes()).hexdigest()
    else:
        file = tmp_path / "a.zarr/0/2/2/2"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert store.digest_block(CORNER) != written
    file.unlink()
    assert store.digest_block(CORNER) != written
    assert store.write_block(CORNER, VOXELS[CORNER]) == written


@pytest.mark.parametrize("place", [FIRST, CORNER])
@pytest.mark.parametrize("keep", [0, 3, 60])
def test_torn_shard_is_replaced(tmp_path: Path, place: Any, keep: int) -> None:
    store = create(tmp_path / "a.zarr")
    file = tmp_path / "a.zarr/0/c" / "/".join(str(part.start // 8) for part in place)
    written = store.digest_block(place)
    file.write_bytes(file.read_bytes()[:keep])
    left = file.with_name(f".{file.name}.1.ab.partial")
    left.write_bytes(b"half")
    with pytest.raises(ImageError, match="damaged"):
        store.read(place)
    assert store.digest_block(place) != written
    store.write_block(place, VOXELS[place])
    np.testing.assert_array_equal(store.read(tuple(slice(0, size) for size in SHAPE)), VOXELS)  # type: ignore[arg-type]
    assert not left.exists()


@pytest.mark.parametrize("where", [0, 0.3, 0.6, -100, -3])  # in chunks, in the index, in its checksum
def test_flipped_byte_is_noticed_when_it_is_read(tmp_path: Path, where: float) -> None:
    store = create(tmp_path / "a.zarr")
    file = tmp_path / "a.zarr/0/c/0/0/0"
    content = bytearray(file.read_bytes())
    content[int(where * len(content)) if 0 <= where < 1 else int(where)] ^= 4
    file.write_bytes(content)
    with pytest.raises(ImageError, match="damaged"):
        store.read(FIRST)


def test_writing_takes_little_memory_beside_the_block(tmp_path: Path) -> None:
    store = create_label_store(tmp_path / "a.zarr", (64, 256, 256), classes=CLASSES, block_zyx=(64, 256, 256))
    block = np.random.default_rng(0).integers(0, 3, (64, 256, 256), np.uint8)  # packed into a quarter of its 4 MB
    place = (slice(0, 64), slice(0, 256), slice(0, 256))
    store.write_block(place, block)
    tracemalloc.start()
    store.write_block(place, block)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.9 * block.nbytes


@BOTH
def test_block_of_nothing_has_no_file_and_takes_the_old_one_away(tmp_path: Path, version: Any) -> None:
    store = create(tmp_path / "a.zarr", version=version)
    assert store.write_block(FIRST, np.full(BLOCK, 255, np.uint8)) == NO_FILES
    assert (store.read(FIRST) == 255).all()
    background = store.write_block(FIRST, np.zeros(BLOCK, np.uint8))
    assert background not in (NO_FILES, None)
    assert not store.read(FIRST).any()


def test_only_whole_blocks_of_bytes_are_written(tmp_path: Path) -> None:
    store = create(tmp_path / "a.zarr", filled=False)
    for place in ((slice(0, 4), slice(0, 8), slice(0, 8)), (slice(4, 10), slice(0, 8), slice(0, 8))):
        with pytest.raises(ValueError, match="no block"):
            store.write_block(place, VOXELS[place])
    with pytest.raises(ValueError, match="expected uint8 of shape"):
        store.write_block(FIRST, VOXELS[FIRST].astype(np.int64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected uint8 of shape"):
        store.write_block(FIRST, VOXELS[CORNER])


@BOTH
def test_opened_again_it_keeps_its_blocks_and_refuses_another(tmp_path: Path, version: Any) -> None:
    path = tmp_path / "a.zarr"
    create(path, version=version)
    np.testing.assert_array_equal(create(path, filled=False, version=version).read(FIRST), VOXELS[FIRST])
    for changed in ({"block_zyx": (4, 8, 8)}, {"voxel_size_um": None}, {"version": "0.4" if version == "0.5" else "0.5"}):
        with pytest.raises(RunError, match=r"was begun with .* instead of .*Choose another output, or --overwrite"):
            create(path, filled=False, **({"version": version} | changed))
    with pytest.raises(RunError, match="no grey map"):
        create(path, filled=False, classes=None, version=version)
    with pytest.raises(RunError, match="expected"):
        create_label_store(path, (9, 9, 9), classes=CLASSES, block_zyx=BLOCK, voxel_size_um=SIZE, version=version)


def test_foreign_content_is_not_touched(tmp_path: Path) -> None:
    create_image(tmp_path / "image.zarr", "0.5")
    zarr.create_array(tmp_path / "plain.zarr", shape=SHAPE, dtype="u1")
    before = (tmp_path / "image.zarr/zarr.json").read_bytes()
    with pytest.raises(RunError, match="no output of predict"):
        create(tmp_path / "image.zarr")
    with pytest.raises(RunError, match="found a Zarr array"):
        create(tmp_path / "plain.zarr")
    assert (tmp_path / "image.zarr/zarr.json").read_bytes() == before
    for name in ("image.zarr", "nothing.zarr"):
        with pytest.raises(ImageError, match="expected an output of predict"):
            open_label_store(tmp_path / name)


def test_class_that_is_stored_as_255_is_refused(tmp_path: Path) -> None:
    classes = ClassSet(tuple(f"c{i}" for i in range(255)), first_id=1)
    with pytest.raises(SettingsError, match="c254 is stored as 255, which means not predicted"):
        create(tmp_path / "a.zarr", classes=classes)
    assert not (tmp_path / "a.zarr").exists()
    with pytest.raises(SettingsError, match="no multiple of chunks"):
        create(tmp_path / "a.zarr", chunk_zyx=(3, 4, 4))


@BOTH
def test_labels_beneath_an_image_are_listed_beside_others(tmp_path: Path, version: Any) -> None:
    image = tmp_path / "image.zarr"
    create_image(image, version)
    for name in ("first", "second", "first"):
        create(image / "labels" / name, version=version)
    create(image / "labels/confidence", classes=None, version=version)
    attributes = zarr.open_group(image / "labels", mode="r").attrs.asdict()
    described = attributes["ome"] if version == "0.5" else attributes
    assert described["labels"] == ["first", "second"]
    assert described.get("version") == ("0.5" if version == "0.5" else None)
    label = zarr.open_group(image / "labels/first", mode="r").attrs.asdict()
    label = label["ome"] if version == "0.5" else label
    assert label["image-label"]["source"] == {"image": "../../"}
    assert {entry["label-value"]: entry["name"] for entry in label["image-label"]["properties"]} == {
        **dict(enumerate(CLASSES.names)),
        255: "not predicted",
    }


@BOTH
def test_jobs_that_begin_at_once_make_one_store(tmp_path: Path, version: Any) -> None:
    create_image(tmp_path / "image.zarr", version)
    path, begin = tmp_path / "image.zarr/labels/a", threading.Barrier(6)

    def work(number: int) -> str:
        begin.wait()
        store = create(path, filled=False, version=version, attributes={"model": "m"})
        place = list_places()[number]
        return store.write_block(place, VOXELS[place]) + str(store.attributes["model"])

    with ThreadPoolExecutor(6) as pool:
        written = list(pool.map(work, range(6)))
    assert [text[64:] for text in written] == ["m"] * 6
    store = open_label_store(path)
    for place in list_places()[6:]:
        store.write_block(place, VOXELS[place])
    np.testing.assert_array_equal(zarr.open_array(path / "0", mode="r")[:], VOXELS)


@BOTH
def test_job_that_comes_second_takes_the_array_of_the_first(
    tmp_path: Path, version: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = zarr.create_array

    def make_after_another(*arguments: Any, **options: Any) -> Any:
        make(*arguments, **options)
        return make(*arguments, **options)

    monkeypatch.setattr(zarr, "create_array", make_after_another)
    np.testing.assert_array_equal(create(tmp_path / "a.zarr", version=version).read(CORNER), VOXELS[CORNER])


@BOTH
def test_image_of_the_other_version_is_refused(tmp_path: Path, version: Any) -> None:
    other = "0.4" if version == "0.5" else "0.5"
    create_image(tmp_path / "image.zarr", other)
    with pytest.raises(RunError, match=f"is an OME-Zarr {other}.*Use --ome-version {other}"):
        create(tmp_path / "image.zarr/labels/a", version=version)
    with pytest.raises(RunError, match=r"none\.zarr: found no OME-Zarr image"):
        create(tmp_path / "none.zarr/labels/a", version=version)
    assert not (tmp_path / "image.zarr/labels").exists()


@BOTH
@pytest.mark.parametrize("place", ["a.zarr", "image.zarr/labels/a"])
def test_validator_accepts_labels_and_grey_maps(tmp_path: Path, version: Any, place: str) -> None:
    import ome_zarr_models

    create_image(tmp_path / "image.zarr", version)
    create(tmp_path / place, version=version)
    create(tmp_path / "confidence.zarr", classes=None, version=version)
    names = [place, "confidence.zarr", "image.zarr", *(["image.zarr/labels"] if "labels" in place else [])]
    for name in names:
        checked = ome_zarr_models.open_ome_zarr(zarr.open_group(tmp_path / name, mode="r"))
        assert checked.ome_zarr_version == version
    model = ome_zarr_models.open_ome_zarr(zarr.open_group(tmp_path / place, mode="r"))
    assert type(model).__name__ == "ImageLabel"


@BOTH
def test_tensorstore_reads_the_same_voxels(tmp_path: Path, version: Any) -> None:
    import tensorstore

    create(tmp_path / "a.zarr", version=version)
    driver = "zarr3" if version == "0.5" else "zarr"
    source = {"driver": driver, "kvstore": {"driver": "file", "path": str(tmp_path / "a.zarr/0")}}
    np.testing.assert_array_equal(tensorstore.open(source).result().read().result(), VOXELS)


def test_full_resolution_metadata_place_the_voxels(tmp_path: Path) -> None:
    create(tmp_path / "a.zarr", origin_zyx=(2, 0, 4), filled=False)
    described = json.loads((tmp_path / "a.zarr/zarr.json").read_text())["attributes"]["ome"]
    (level,) = described["multiscales"][0]["datasets"]
    assert [step[step["type"]] for step in level["coordinateTransformations"]] == [[1.0, 0.5, 0.5], [2.0, 0.0, 2.0]]


@pytest.mark.parametrize(
    ("block", "chunk"),
    [
        ((64, 512, 512), (64, 64, 64)),
        ((8, 1024, 1024), (8, 256, 128)),
        ((1, 1423, 64), (1, 1423, 64)),
        ((2, 3, 5), (2, 3, 5)),
    ],
)
def test_chunks_divide_a_block_and_are_near_to_cubes(block: Any, chunk: Any) -> None:
    assert choose_chunk(block) == chunk
