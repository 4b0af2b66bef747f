"""The sample of a large volume: which voxels it reads, and that it stands for the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from neurotome import sampling
from neurotome.errors import ImageError
from neurotome.inference.predict import invert_grey
from neurotome.io import open_volume, opening
from neurotome.io.lazy_array import LazyArray, Place
from neurotome.normalize import Normalization, fit_normalization
from neurotome.sampling import choose_edges, sample_boxes
from neurotome.volume import Volume

SHAPE = (40, 48, 64)


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes of 4 x 4 x 4 voxels stand for all volumes of more than 1000."""
    monkeypatch.setattr(sampling, "LARGE", 1000)
    monkeypatch.setattr(sampling, "EDGE", 4)
    monkeypatch.setattr(opening, "SAMPLED", 1000)


def make_grey(seed: int = 0) -> NDArray[np.uint8]:
    """Returns tissue of grey 150 with dark vessels, and air of exactly 0 in a third of the volume."""
    rng = np.random.default_rng(seed)
    grey = np.where(rng.random(SHAPE) < 0.1, 60, 150) + rng.normal(0, 6, SHAPE)
    grey[:, :16] = 0
    return grey.clip(0, 255).astype(np.uint8)


def record_places(grey: NDArray[Any], chunk: tuple[int, int, int] | None = None) -> tuple[LazyArray, list[Place]]:
    places: list[Place] = []

    def read(place: Place) -> NDArray[Any]:
        places.append(place)
        return grey[place]

    data = LazyArray(Path("a"), grey.shape, grey.dtype, read)
    data.chunk_zyx = chunk
    return data, places


@pytest.mark.parametrize(
    ("shape", "chunk", "edges"),
    [
        ((720, 1420, 5805), (64, 64, 64), (64, 64, 64)),
        ((720, 1420, 5805), (16, 32, 32), (64, 64, 64)),
        ((720, 1420, 5805), (1, 1420, 5805), (1, 1420, 5805)),
        ((720, 1420, 5805), None, (64, 64, 64)),
        ((1, 9000, 9000), None, (1, 512, 512)),
        ((2, 3, 4), (64, 64, 64), (2, 3, 4)),
    ],
)
def test_boxes_are_whole_chunks(shape: Any, chunk: Any, edges: Any) -> None:
    data = LazyArray(Path("a"), shape, np.uint8, lambda _: np.zeros(1))
    data.chunk_zyx = chunk
    assert choose_edges(data) == edges


@pytest.mark.usefixtures("small_is_large")
def test_boxes_lie_on_the_chunks_grid_all_over_and_are_the_same_every_time() -> None:
    data, places = record_places(make_grey(), (4, 4, 4))
    first, again = sample_boxes(data), sample_boxes(data)
    assert (first.values == again.values).all()
    assert all(part.start % 4 == 0 and part.stop - part.start == 4 for place in places for part in place)
    assert len(places) < 2 * 64 * 4
    for axis, size in enumerate(SHAPE):
        starts = [place[axis].start for place in places]
        assert min(starts) < size / 8
        assert max(starts) >= size * 3 / 4
    assert first.source == "50 boxes of 4 x 4 x 4 voxels spread over 40 x 48 x 64; 65 of one value each left out"
    assert (first.low, first.high) == (first.values.min(), first.values.max())
    assert first.values.min() > 0


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("mode", ["image", "tissue"])
def test_the_sample_gives_the_tissues_scale(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = make_grey()
    scaling = Normalization(mode, 1, 1, "uint8")
    sampled = scaling.scale_for(Volume(grey, "a"))
    assert "boxes of 4 x 4 x 4 voxels" in sampled.source
    monkeypatch.setattr(sampling, "LARGE", grey.size)
    whole = scaling.scale_for(Volume(grey[:, 16:], "a"))
    assert whole.source == "all of its voxels"
    assert sampled.mean == pytest.approx(whole.mean, rel=0.02)
    assert sampled.std == pytest.approx(whole.std, rel=0.1)


@pytest.mark.usefixtures("small_is_large")
def test_training_measures_large_volumes_from_boxes_too() -> None:
    data, places = record_places(make_grey())
    fitted = fit_normalization([Volume(data, "a"), Volume(np.array([[[0, 255]]], np.uint8), "b")])
    expected = sample_boxes(data).values.mean() * data.size + 255
    assert fitted.mean == pytest.approx(expected / (data.size + 2))
    assert sum(np.prod([part.stop - part.start for part in place]) for place in places) < data.size / 2


@pytest.mark.usefixtures("small_is_large")
def test_only_stored_chunks_are_sampled(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(64, 64, 64), chunks=(4, 4, 4), dtype="uint8")
    array[40:44, 20:28, 60:64] = np.random.default_rng(0).integers(90, 200, (4, 8, 4))
    sample = sample_boxes(open_volume(tmp_path / "a.zarr").data)
    assert sample.source == "2 boxes of 4 x 4 x 4 voxels spread over 64 x 64 x 64"
    assert sample.values.min() >= 90


@pytest.mark.usefixtures("small_is_large")
def test_a_constant_volume_has_no_scale() -> None:
    with pytest.raises(ImageError, match="every pixel is 7; a constant image has no scale"):
        Normalization("image", 1, 1, "uint8").scale_for(Volume(np.full(SHAPE, 7, np.uint8), "a"))


@pytest.mark.usefixtures("small_is_large")
def test_large_volumes_are_flipped_between_the_samples_extremes() -> None:
    grey = make_grey()
    grey[20, 20, 20] = 255
    data, places = record_places(grey)
    sample = sample_boxes(data)
    low, high = int(sample.low), int(sample.high)
    assert high < 255
    before = len(places)
    flipped = invert_grey(Volume(data, "a")).data
    assert sum(np.prod([part.stop - part.start for part in place]) for place in places[before:]) < grey.size / 2
    np.testing.assert_array_equal(flipped[:], high + low - grey.clip(low, high).astype(int))
