"""MTNeuro: regions and ranges are cut rightly, and nothing is expanded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from neurotome.datasets import open_dataset
from neurotome.datasets.base import view
from neurotome.datasets.leaks import check_leaks
from neurotome.datasets.mtneuro import variants as mtneuro
from neurotome.datasets.mtneuro.variants import open_mtneuro
from neurotome.datasets.phantom.make import PhantomSettings, make_phantom, phantom
from neurotome.datasets.statistics import count_slices, measure_dataset
from neurotome.errors import DatasetError, ImageError, SettingsError
from neurotome.io.lazy_array import LazyArray

DEPTHS = {"train": 3, "val": 1, "test": 2}


@pytest.fixture(autouse=True)
def few_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = {split: (start, start + DEPTHS[split]) for split, (start, _) in mtneuro.Z_RANGES.items()}
    monkeypatch.setattr(mtneuro, "Z_RANGES", ranges)


def write_split(folder: Path, split: str, variant: str = "2D_4class") -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    slices = 4 * DEPTHS[split]
    generator = np.random.default_rng(slices)
    images = generator.integers(0, 255, (slices, 256, 256)).astype(np.uint8)
    labels = generator.integers(0, 4, (slices, 256, 256)).astype(np.uint64)
    np.save(folder / f"task2_{variant}{split}images.npy", images)
    np.save(folder / f"task2_{variant}{split}labels.npy", labels)
    return images, labels


def test_published_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    slices = {split: 4 * (stop - start) for split, (start, stop) in mtneuro.Z_RANGES.items()}
    assert slices == {"train": 1076, "val": 116, "test": 200}


@pytest.mark.parametrize(("variant", "regions", "classes"), [("4class", 3, 4), ("4class-with-zi", 4, 4), ("3class", 4, 3)])
def test_regions_are_cut(tmp_path: Path, variant: str, regions: int, classes: int) -> None:
    written = {split: write_split(tmp_path, split) for split in DEPTHS}
    dataset = open_dataset(f"mtneuro:{tmp_path}@{variant}")
    assert dataset.name == f"mtneuro-{variant}"
    assert dataset.classes.names == ("background", "blood vessel", "cell", "axon")[:classes]
    assert dataset.voxel_size_um == (1.17, 1.17, 1.17)
    origins = [(900, 4600), (500, 3700), (850, 3063), (650, 1543)][:regions]
    for split, first in (("train", 110), ("val", 380), ("test", 420)):
        images, labels = written[split]
        if classes == 3:
            labels = np.where(labels == 3, 0, labels)
        cutouts = dataset.split(split)
        assert [c.name for c in cutouts] == ["cortex", "striatum", "vp", "zi"][:regions]
        assert [c.volume.origin_zyx for c in cutouts] == [(first, y, x) for y, x in origins]
        depth = DEPTHS[split]
        for i, cutout in enumerate(cutouts):
            part = slice(i * depth, (i + 1) * depth)
            np.testing.assert_array_equal(cutout.volume.data, images[part])
            np.testing.assert_array_equal(cutout.labels, labels[part])
            np.testing.assert_array_equal(cutout.read_labels(0, slice(9), slice(5)), labels[part][0, :9, :5])
        expected = np.bincount(labels[: regions * depth].astype(int).ravel(), minlength=classes)
        np.testing.assert_array_equal(count_slices(dataset, split).sum(0), expected)


def test_arrays_stay_on_the_disk(tmp_path: Path) -> None:
    write_split(tmp_path, "train")
    cutout = open_mtneuro(tmp_path).split("train")[1]
    assert isinstance(cutout.volume.data, np.memmap)
    assert isinstance(cutout.labels, np.memmap)
    assert cutout.labels.dtype == np.uint64
    merged = open_mtneuro(tmp_path, "3class").split("train")[1].labels
    assert isinstance(merged, LazyArray)


def test_default_variant_and_any_file_name(tmp_path: Path) -> None:
    write_split(tmp_path, "test", "3D_3class")
    dataset = open_dataset(f"mtneuro:{tmp_path}")
    assert dataset.name == "mtneuro-4class"
    assert list(dataset.splits) == ["test"]
    folder = tmp_path / "at@home"
    folder.mkdir()
    write_split(folder, "val")
    assert list(open_dataset(f"mtneuro:{folder}/").splits) == ["val"]


def test_merged_labels_behave_as_an_array() -> None:
    source = np.arange(4, dtype=np.uint64).reshape(2, 1, 2)
    table = np.arange(256, dtype=np.uint8)
    table[3] = 0
    merged, expected = view(source, table=table), np.array([[[0, 1]], [[2, 0]]], np.uint8)
    assert (merged.shape, merged.ndim, merged.dtype, len(merged)) == ((2, 1, 2), 3, np.uint8, 2)
    np.testing.assert_array_equal(np.asarray(merged), expected)
    assert np.asarray(merged, np.int64).dtype == np.int64
    np.testing.assert_array_equal(np.stack(list(merged)), expected)
    np.testing.assert_array_equal(merged[:, 0, 1:], expected[:, 0, 1:])


def test_statistics_of_merged_labels(tmp_path: Path) -> None:
    _, labels = write_split(tmp_path, "val")
    found = measure_dataset(open_mtneuro(tmp_path, "3class"))["splits"]["val"]["counts"]
    assert found == {
        "background": int(np.isin(labels, (0, 3)).sum()),
        "blood vessel": int((labels == 1).sum()),
        "cell": int((labels == 2).sum()),
    }


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no file of MTNeuro task 2"):
        open_mtneuro(tmp_path)
    with pytest.raises(DatasetError, match="is not a folder"):
        open_mtneuro(tmp_path / "absent")
    with pytest.raises(DatasetError, match=r"unknown variant of mtneuro '4clas'\. Did you mean '4class'"):
        open_dataset(f"mtneuro:{tmp_path}@4clas")
    write_split(tmp_path, "val")
    (tmp_path / "task2_2D_4classvallabels.npy").unlink()
    with pytest.raises(DatasetError, match=r"valimages\.npy is there, but task2_2D_4classvallabels\.npy is not"):
        open_mtneuro(tmp_path)


def test_wrong_contents_are_refused(tmp_path: Path) -> None:
    images, labels = write_split(tmp_path, "val")
    images_path, labels_path = (tmp_path / f"task2_2D_4classval{kind}.npy" for kind in ("images", "labels"))

    np.save(labels_path, labels[:3])
    with pytest.raises(DatasetError, match=r"labels\.npy: shape \(3, 256, 256\); expected \(4, 256, 256\)"):
        open_mtneuro(tmp_path)

    labels[1, 0, 0] = 2**40
    np.save(labels_path, labels)
    with pytest.raises(DatasetError, match=r"labels\.npy, striatum: .* 1099511627776 \(1 pixels\)"):
        open_mtneuro(tmp_path)

    labels[1, 0, 0] = 0
    np.save(labels_path, labels)
    images[2] = 9
    np.save(images_path, images)
    with pytest.raises(ImageError, match=r"images\.npy, vp: every pixel is 9"):
        open_mtneuro(tmp_path)

    content = images_path.read_bytes()
    images_path.write_bytes(content[:-1])
    with pytest.raises(ImageError, match=r"images\.npy cannot be read"):
        open_mtneuro(tmp_path)


def test_variants_choose_regions_and_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = {"train": (110, 172), "val": (380, 382), "test": (438, 442)}
    monkeypatch.setattr(mtneuro, "Z_RANGES", ranges)
    for split, (start, stop) in ranges.items():
        monkeypatch.setitem(DEPTHS, split, stop - start)
        write_split(tmp_path, split)

    def names(variant: str, split: str) -> list[str]:
        return [cutout.name for cutout in open_mtneuro(tmp_path, variant).split(split)]

    official = ["cortex", "striatum", "vp"]
    for left_out in official:
        others = [name for name in official if name != left_out]
        variant = f"leave-out-{left_out}"
        assert (names(variant, "train"), names(variant, "val"), names(variant, "test")) == (others, others, [left_out])
    assert (names("leave-out-zi", "train"), names("leave-out-zi", "test")) == (official, ["zi"])

    whole, gap = open_mtneuro(tmp_path), open_mtneuro(tmp_path, "4class-wide-gap")
    for one, other in zip(whole.split("train"), gap.split("train"), strict=True):
        np.testing.assert_array_equal(one.volume.data[:22], other.volume.data)
        np.testing.assert_array_equal(one.labels[:22], other.labels)
        assert one.volume.origin_zyx == other.volume.origin_zyx
    assert [c.volume.shape[0] for c in gap.split("val")] == [2, 2, 2]

    human = open_mtneuro(tmp_path, "human")
    assert names("human", "train") == [f"{name}_z{z}" for name in official for z in (140, 170)]
    assert names("human", "val") == [f"{name}_z380" for name in official]
    assert names("human", "test") == [f"{name}_z440" for name in official]
    assert names("human-with-zi", "val") == [f"{name}_z380" for name in (*official, "zi")]
    for i, cutout in enumerate(human.split("train")[:2]):
        assert cutout.volume.shape == (1, 256, 256)
        assert cutout.volume.origin_zyx == (140 + 30 * i, 900, 4600)
        np.testing.assert_array_equal(cutout.volume.data[0], whole.split("train")[0].volume.data[30 + 30 * i])
        np.testing.assert_array_equal(cutout.labels[0], whole.split("train")[0].labels[30 + 30 * i])


def test_the_gap_of_the_wide_variant_is_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (_, train), (val, _), (test, _) = mtneuro.Z_RANGES.values()
    assert val - (train - mtneuro.VARIANTS["4class-wide-gap"].left_out) == test - train == 41


def test_no_two_splits_of_a_variant_share_a_voxel(tmp_path: Path) -> None:
    for split in DEPTHS:
        write_split(tmp_path, split)
    for variant in set(mtneuro.VARIANTS) - {"human", "human-with-zi", "4class-wide-gap"}:  # three slices hold no plane
        boxes = [
            (c.volume.origin_zyx, c.volume.shape)
            for cutouts in open_mtneuro(tmp_path, variant).splits.values()
            for c in cutouts
        ]
        for i, (start, shape) in enumerate(boxes):
            for other, size in boxes[:i]:
                assert any(a + n <= b or b + m <= a for a, n, b, m in zip(start, shape, other, size, strict=True))


def test_files_of_any_size_open_but_are_not_called_mtneuro(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (20, 24, 40)).astype(np.uint8), rng.integers(0, 4, (20, 24, 40)).astype(np.uint64)
    paths = [tmp_path / f"task2_2D_4classtest{kind}.npy" for kind in ("images", "labels")]
    for path, array in zip(paths, (images, labels), strict=True):
        np.save(path, array)
    with pytest.warns(UserWarning, match=r"test has regions of shape \(5, 24, 40\), expected \(2, 256, 256\)"):
        dataset = open_mtneuro(tmp_path, "4class-with-zi")
    assert dataset.name == "unverified-mtneuro-4class-with-zi"
    for i, cutout in enumerate(dataset.split("test")):
        np.testing.assert_array_equal(cutout.volume.data, images[5 * i : 5 * i + 5])
        np.testing.assert_array_equal(cutout.labels, labels[5 * i : 5 * i + 5])
        assert cutout.volume.origin_zyx == (0, 0, 0)  # from where is not known
    for path, array in zip(paths, (images, labels), strict=True):
        np.save(path, array[:19])
    with pytest.raises(DatasetError, match="19 slices; expected as many of each of 4 regions"):
        open_mtneuro(tmp_path)


@pytest.mark.parametrize("depth", [3, 4])  # MTNeuro's own here, and another
def test_a_phantom_in_this_layout_is_the_phantom_and_says_so(tmp_path: Path, depth: int) -> None:
    edge = 256 if depth == DEPTHS["train"] else 32
    settings = PhantomSettings(height=edge, width=edge, train_depth=depth, val_depth=1, test_depth=2)
    folder = phantom(out=tmp_path / "mt", layout="mtneuro", settings=settings)
    assert {path.name for path in folder.iterdir()} == {
        "provenance.json",
        "truth",
        *(f"task2_2D_4class{split}{kind}.npy" for split in DEPTHS for kind in ("images", "labels")),
    }
    dataset, made = open_dataset(f"mtneuro:{folder}@4class-with-zi"), make_phantom(settings)
    assert dataset.name == "phantom-mtneuro-4class-with-zi"
    assert (dataset.licence, dataset.citation) == (made.licence, made.citation)
    for split in DEPTHS:
        for opened, cutout in zip(dataset.split(split), made.split(split), strict=True):
            assert f"{split}_{opened.name}" == cutout.name
            assert opened.labels.dtype == np.uint64
            assert opened.volume.origin_zyx == (0, 0, 0)  # as if nowhere, so that no two splits look like neighbours
            np.testing.assert_array_equal(opened.volume.data, cutout.volume.data)
            np.testing.assert_array_equal(opened.labels, cutout.labels)
    assert check_leaks(dataset) == []
    with pytest.raises(DatasetError, match="train has none of the slices that the variant human keeps"):
        open_mtneuro(folder, "human")
    with pytest.raises(DatasetError, match="train has none of the slices that the variant 4class-wide-gap keeps"):
        open_mtneuro(folder, "4class-wide-gap")
    (folder / "provenance.json").write_text('{"licence": 3}')
    with pytest.raises(DatasetError, match=r"provenance\.json is damaged"):
        open_mtneuro(folder)


def test_a_phantom_in_this_layout_has_all_regions(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="regions are vp, but MTNeuro's layout has cortex, striatum, vp, zi"):
        phantom(out=tmp_path / "mt", layout="mtneuro", settings=PhantomSettings(regions=("vp",)))
    assert not (tmp_path / "mt").exists()
