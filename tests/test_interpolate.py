"""interpolate: shapes between labelled slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull, Delaunay
from sklearn.metrics import f1_score, roc_auc_score

from conftest import run
from neurotome import interpolate
from neurotome.annotating import walks
from neurotome.annotating.interpolate import InterpolateSettings
from neurotome.annotating.shapes import blend, measure_gap
from neurotome.annotating.walks import walk_gap
from neurotome.classes import ClassSet
from neurotome.datasets.phantom.make import PhantomSettings, make_phantom
from neurotome.errors import ImageError, RunError, SettingsError
from neurotome.io import open_labels, write_labels
from neurotome.io.meanings import read_meanings
from neurotome.volume import Volume


def fill(folder: Path, labels: np.ndarray, **settings: object) -> tuple[np.ndarray, np.ndarray]:
    np.save(folder / "sparse.npy", labels)
    out, unsure = interpolate(
        folder / "sparse.npy", out=folder / "full.npy", settings=InterpolateSettings(existing="replace", **settings)
    )
    return np.asarray(open_labels(out)), np.asarray(open_labels(unsure))


def test_a_bar_whose_width_grows_by_a_pixel_a_slice_is_found_exactly(tmp_path: Path) -> None:
    truth = np.zeros((9, 12, 40), np.uint8)
    for z in range(9):
        truth[z, :, 10 : 20 + z] = 1
    sparse = truth.copy()
    sparse[1:8] = 255
    found, uncertainty = fill(tmp_path, sparse)
    np.testing.assert_array_equal(found, truth)
    assert uncertainty[0].max() == uncertainty[8].max() == 0
    assert uncertainty[4, 6, 24] > 200  # beside the border that moves
    assert uncertainty[4, 6, 0] < 10  # far from it, beside one that stays


def test_a_cone_is_found_to_the_pixels_that_its_border_crosses(tmp_path: Path) -> None:
    y, x = np.mgrid[:60, :60]
    radius = np.hypot(y - 30, x - 29)
    edges = np.linspace(8.0, 20.0, 13)
    truth = np.stack([(radius < edge).astype(np.uint8) for edge in edges])
    sparse = truth.copy()
    sparse[1:12] = 255
    found, _ = fill(tmp_path, sparse)
    wrong = found != truth
    off = np.abs(radius - edges[:, None, None])
    assert not (wrong & (off > 1)).any()
    assert wrong.mean() < 0.01


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 6))
def test_both_slices_come_back_and_equal_ones_are_all_there_is_between(seed: int, most: int, steps: int) -> None:
    pair = np.random.default_rng(seed).integers(0, most, (2, 7, 8)).astype(np.uint8)
    gap = measure_gap(*pair)
    for step in range(steps + 1):
        labels, uncertainty = blend(gap, step / steps)
        assert set(np.unique(labels)) <= set(np.unique(pair))
        assert 0 <= uncertainty.min() <= uncertainty.max() <= 1
        if step in (0, steps):
            np.testing.assert_array_equal(labels, pair[step // steps])
            assert uncertainty.max() == 0
        np.testing.assert_array_equal(blend(measure_gap(pair[0], pair[0]), step / steps)[0], pair[0])


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 7), st.integers(2, 7), st.integers(8, 14), st.integers(8, 14))
def test_a_moving_square_stays_within_the_hull_of_both(first: int, second: int, y: int, x: int) -> None:
    before, after = np.zeros((2, 24, 24), np.uint8)
    before[4 : 4 + first, 5 : 5 + first] = 1
    after[y : y + second, x : x + second] = 1
    corners = np.concatenate(
        [np.argwhere(plane) + corner for plane in (before, after) for corner in ([0, 0], [0, 1], [1, 0], [1, 1])]
    )
    hull = Delaunay(corners[ConvexHull(corners).vertices])
    found = np.argwhere(blend(measure_gap(before, after), 0.5)[0]) + 0.5  # centres of pixels
    assert not len(found) or (hull.find_simplex(found) >= 0).all()


def test_a_class_that_one_slice_lacks_ends_half_way(tmp_path: Path) -> None:
    sparse = np.full((7, 15, 15), 255, np.uint8)
    sparse[0] = sparse[6] = 0
    sparse[0, 4:11, 4:11] = 2
    found, _ = fill(tmp_path, sparse)
    assert [int((plane == 2).sum()) for plane in found] == [49, 49, 49, 0, 0, 0, 0]
    sparse[0], sparse[6] = 1, 3
    found, _ = fill(tmp_path, sparse)
    assert found[1:3].max() == 1
    assert found[4:].min() == 3


def test_hand_made_slices_and_what_lies_outside_them_stay(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sparse = np.zeros((12, 9, 11), np.uint8)
    sparse[[2, 5, 6, 9]] = rng.integers(0, 4, (4, 9, 11))
    found, uncertainty = fill(tmp_path, sparse, ignore=0)
    np.testing.assert_array_equal(found[[2, 5, 6, 9]], sparse[[2, 5, 6, 9]])
    assert not found[[0, 1, 10, 11]].any()
    assert (uncertainty[[0, 1, 10, 11]] == 255).all()
    assert not uncertainty[[2, 5, 6, 9]].any()
    assert (uncertainty[[3, 4, 7, 8]] > 0).any()


def test_labelled_slices_alone_are_put_where_they_belong(tmp_path: Path) -> None:
    full = np.full((10, 8, 8), 255, np.uint8)
    full[3], full[7] = 1, 0
    full[7, 2:6, 2:6] = 1
    wanted = fill(tmp_path, full)
    found = fill(tmp_path, full[[3, 7]], slices=(3, 7), depth=10)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


def test_a_vessel_that_runs_aslant_is_followed(tmp_path: Path) -> None:
    truth = np.zeros((5, 12, 30), np.uint8)
    for z in range(5):
        truth[z, 4:8, 3 + 2 * z : 7 + 2 * z] = 1  # 4 pixels from one labelled slice to the next, where it shares none
    sparse = truth.copy()
    sparse[[1, 3]] = 255
    found, _ = fill(tmp_path, sparse)
    np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize("region", ["cortex", "vp"])
def test_every_second_slice_of_the_phantom_is_found_better_than_by_the_nearest(tmp_path: Path, region: str) -> None:
    settings = PhantomSettings(height=128, width=128, train_depth=17, val_depth=2, test_depth=2, regions=(region,))
    (cutout,) = make_phantom(settings).split("train")
    truth = np.asarray(cutout.labels)
    sparse = truth.copy()
    sparse[1::2] = 255
    found, uncertainty = fill(tmp_path, sparse)
    np.save(tmp_path / "image.npy", cutout.volume.data)
    followed, unsure = fill(tmp_path, sparse, image=tmp_path / "image.npy")

    def score(labels: np.ndarray) -> float:
        return float(f1_score(truth[1::2].ravel(), labels.ravel(), average="macro"))

    assert score(followed[1::2]) - 0.02 > score(found[1::2]) > max(score(truth[:-1:2]), score(truth[2::2]))
    for labels, doubts in ((found, uncertainty), (followed, unsure)):
        assert roc_auc_score((labels != truth)[1::2].ravel(), doubts[1::2].ravel()) > 0.9


def test_an_image_shows_what_the_labelled_slices_do_not(tmp_path: Path) -> None:
    edges = 12 + np.array([0, 1, 2, 3, 2, 1, 0])  # a wall that moves and comes back
    truth = np.broadcast_to((np.arange(30) >= edges[:, None])[:, None], (7, 9, 30)).astype(np.uint8)
    sparse = truth.copy()
    sparse[1:-1] = 255
    assert (fill(tmp_path, sparse)[0] != truth).any()
    np.save(tmp_path / "image.npy", truth * 100 + 50)
    found, uncertainty = fill(tmp_path, sparse, image=tmp_path / "image.npy")
    np.testing.assert_array_equal(found, truth)
    assert not uncertainty[[0, -1]].any()
    found, uncertainty = fill(tmp_path, sparse[[0, 6]], slices=(1, 7), depth=7 + 1, image=pad(tmp_path, truth))
    np.testing.assert_array_equal(found[1:], truth)
    assert (found[0] == 255).all()
    assert (uncertainty[0] == 255).all()


def pad(folder: Path, truth: np.ndarray) -> Path:
    np.save(folder / "padded.npy", np.concatenate([truth[:1], truth]) * 100)
    return folder / "padded.npy"


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(3, 5))
def test_walks_solve_the_equations_of_the_method(seed: int, most: int, depth: int) -> None:
    random = np.random.default_rng(seed)
    image = random.normal(0, 20, (depth, 3, 4))
    before, after = random.integers(0, most, (2, 3, 4))
    places = list(np.ndindex(image.shape))
    pairs = [(a, b) for a in places for b in places if sum(abs(i - j) for i, j in zip(a, b, strict=True)) == 1]
    square = np.mean([(image[a] - image[b]) ** 2 for a, b in pairs])
    weights = {pair: 0.001 + float(np.exp(-((image[pair[0]] - image[pair[1]]) ** 2) / (2 * square))) for pair in pairs}
    inner = [place for place in places if 0 < place[0] < depth - 1]
    matrix, met = np.zeros((len(inner),) * 2), np.zeros((len(inner), most))
    for (a, b), weight in weights.items():
        if a in inner:
            matrix[inner.index(a), inner.index(a)] += weight
            if b in inner:
                matrix[inner.index(a), inner.index(b)] -= weight
            else:
                met[inner.index(a), (after if b[0] else before)[b[1:]]] += weight
    shares = np.linalg.solve(matrix, met)
    first, second = np.sort(np.pad(shares, ((0, 0), (1, 0))), axis=1).T[[-1, -2]]
    labels, uncertainty = walk_gap(before, after, image)
    np.testing.assert_allclose(uncertainty.ravel(), 1 - (first - second), atol=1e-3)
    clear = first - second > 1e-3
    np.testing.assert_array_equal(labels.ravel()[clear], shares.argmax(1)[clear])


def test_tiles_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PhantomSettings(height=96, width=96, train_depth=5, val_depth=1, test_depth=1, regions=("vp",))
    (cutout,) = make_phantom(settings).split("train")
    labels, image = np.asarray(cutout.labels), np.asarray(cutout.volume.data)
    whole = walk_gap(labels[0], labels[-1], image)
    monkeypatch.setattr(walks, "TILE", 24)
    shares: list[float] = []
    tiles = walk_gap(labels[0], labels[-1], image, shares.append)
    assert np.abs(whole[1] - tiles[1]).max() < 0.01
    assert (whole[0] == tiles[0])[whole[1] < 0.98].all()
    assert shares == [3 * i / 16 for i in range(16)]


def test_an_image_without_contrast_is_no_error() -> None:
    before, after = np.zeros((2, 6, 6), int)
    after[:] = 1
    labels, uncertainty = walk_gap(before, after, np.full((4, 6, 6), 7))
    assert labels[:, 0, 0].tolist() == [0, 1]
    np.testing.assert_allclose(uncertainty, 2 / 3, atol=1e-4)


def test_an_image_of_another_shape_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.arange(120, dtype=np.uint8).reshape(4, 6, 5))
    sparse = np.full((4, 5, 5), 255, np.uint8)
    sparse[[0, 3]] = 1
    with pytest.raises(ImageError, match=r"image.npy has 4 x 6 x 5 voxels .* 4 x 5 x 5; expected the image"):
        fill(tmp_path, sparse, image=tmp_path / "image.npy")
    assert not (tmp_path / "full.npy").exists()


def test_the_command_keeps_classes_and_voxel_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = ClassSet(("vessel", "cell"), first_id=1)
    labels = np.full((5, 6, 6), classes.ignore, np.uint8)
    labels[0], labels[4] = 0, 1
    volume = Volume(labels, "labels", (2.0, 1.0, 1.0))
    write_labels(tmp_path / "sparse.tif", labels, classes, volume)
    assert run("interpolate", tmp_path / "sparse.tif", "--out", tmp_path / "full.tif", "--ignore", 0) == 0
    assert str(tmp_path / "full_uncertainty.tif") in capsys.readouterr().out
    assert np.asarray(open_labels(tmp_path / "full.tif"))[:, 0, 0].tolist()[:2] == [1, 1]
    found, _ = read_meanings(tmp_path / "full.tif")
    assert found is not None
    assert found.names == ("vessel", "cell")
    assert run("interpolate", tmp_path / "sparse.tif", "--out", tmp_path / "full.tif", "--ignore", 0) == 1
    assert "is there already" in capsys.readouterr().err


def test_what_stays_without_label_is_not_a_class_of_the_file(tmp_path: Path) -> None:
    labels = np.zeros((6, 4, 4), np.uint8)
    labels[1, :3], labels[4, :3] = 1, 2
    classes = ClassSet(("background", "vessel", "cell"))
    write_labels(tmp_path / "sparse.tif", labels, classes, Volume(labels, "labels"))
    full, _ = interpolate(tmp_path / "sparse.tif", out=tmp_path / "full.tif", ignore=0)
    found = np.asarray(open_labels(full))
    assert (found[[0, 5]] == classes.ignore).all()
    np.testing.assert_array_equal(found[[1, 4]], labels[[1, 4]])  # as they are in the file
    assert (found[2:4, 3] == classes.ignore).all()
    assert set(np.unique(found[2:4, :3])) == {1, 2}


def test_what_cannot_be_filled_is_said(tmp_path: Path) -> None:
    labels = np.zeros((4, 5, 5), np.uint8)
    with pytest.raises(ImageError, match=r"every one of 4 slices has a label.*--slices.*--ignore"):
        fill(tmp_path, labels)
    with pytest.raises(ImageError, match="0 of 4 slices have a label; expected at least two"):
        fill(tmp_path, labels, ignore=0)
    with pytest.raises(SettingsError, match="slice 4 is named"):
        fill(tmp_path, labels, slices=(0, 4))
    with pytest.raises(SettingsError, match="increasing"):
        InterpolateSettings(slices=(3, 1))
    with pytest.raises(SettingsError, match="depth is 3"):
        InterpolateSettings(slices=(0, 3), depth=3)
    with pytest.raises(RunError, match="would overwrite the input"):
        interpolate(tmp_path / "sparse.npy", out=tmp_path / "sparse.npy")
