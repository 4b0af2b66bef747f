from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neurotome.datasets.phantom.regions import REGIONS
from neurotome.datasets.phantom.stream import StreamSettings, make_piece, open_stream
from neurotome.datasets.phantom.traced import (
    Fibres,
    Labels,
    bend_map,
    compose_labels,
    draw_style,
    make_traced,
    measure_depth,
    paint_labels,
    read_maps,
)
from neurotome.errors import DatasetError, SettingsError
from neurotome.models.networks import ModelSettings
from neurotome.training.prepare import settle_recipe
from neurotome.training.recipe import Recipe
from neurotome.training.sampler import SampleSettings

BACKGROUND, VESSEL, CELL, AXON = range(4)


def draw_map() -> Labels:
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 40:60] = AXON
    y, x = np.indices(labels.shape)
    labels[(y - 20) ** 2 + (x - 20) ** 2 <= 36] = CELL
    labels[(y - 45) ** 2 + (x - 15) ** 2 <= 81] = VESSEL
    return labels


@pytest.fixture
def maps() -> Mapping[str, tuple[Labels, ...]]:
    return {"vp": (draw_map(),), "cortex": (np.zeros((48, 48), np.uint8),)}


def write_maps(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_same_generator_same_slices(maps: Mapping[str, tuple[Labels, ...]]) -> None:
    first, second = (make_traced(maps, 2, 48, np.random.default_rng(3)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.shape == (2, 48, 48)
        assert one.dtype == np.uint8
        assert np.array_equal(one, other)
    assert not np.array_equal(first[0][0], first[0][1])


def test_depth_of_a_square_is_the_distance_to_its_edge() -> None:
    mask = np.zeros((7, 7), bool)
    mask[2:5, 2:5] = True
    assert measure_depth(mask)[3].tolist() == [-1.5, -0.5, 0.5, 1.5, 0.5, -0.5, -1.5]


def test_bent_maps_hold_the_same_classes_in_about_the_same_shares() -> None:
    rng = np.random.default_rng(0)
    shares = [np.bincount(bend_map((draw_map(),), 64, rng).ravel(), minlength=4) / 64**2 for _ in range(40)]
    assert np.allclose(np.mean(shares, 0), np.bincount(draw_map().ravel()) / 64**2, atol=0.06)


def test_joined_maps_hold_white_matter_wider_than_any_map(maps: Mapping[str, tuple[Labels, ...]]) -> None:
    rng = np.random.default_rng(1)
    shares = [(compose_labels({"cortex": maps["cortex"]}, 64, rng)[1] == AXON).mean() for _ in range(30)]
    assert min(shares) == 0  # no map of this region has axons
    assert max(shares) > 0.7


def test_painted_structures_have_their_greys() -> None:
    rng = np.random.default_rng(2)
    region = replace(
        REGIONS["vp"], neuropil=120.0, lumen=0.0, soma=60.0, cell_contrast=(1.0, 1.0), faint_cells=0.0, specks_per_mvox=0.0
    )
    style = replace(draw_style(rng), axon_contrast=40.0, axon_change=0.0, weak_cells=0.0, gaps=0.0, thin_vessels=0.0)
    labels = draw_map()
    image = paint_labels(labels, region, replace(style, cell_edge=0.0, vessel_edge=0.0, edge_spread=0.0), rng)
    inside = {kind: np.median(image[(labels == kind) & (measure_depth(labels == kind) > 3)]) for kind in range(4)}
    assert abs(inside[VESSEL]) < 1
    assert inside[VESSEL] < inside[CELL] < 95
    assert inside[CELL] < inside[BACKGROUND] - 25
    assert 25 < inside[AXON] - inside[BACKGROUND] < 55


def test_a_wider_drawn_edge_leaves_the_labels_and_shrinks_what_is_painted() -> None:
    labels = draw_map()
    style = replace(draw_style(np.random.default_rng(0)), edge_spread=0.0, thin_vessels=0.0)
    dark = [
        (paint_labels(labels, REGIONS["vp"], replace(style, vessel_edge=edge), np.random.default_rng(5)) < 30).sum()
        for edge in (-1.0, 0.0, 1.0)
    ]
    assert dark[0] > dark[1] > dark[2] > 150


def test_texture_runs_along_the_bundles() -> None:
    bundles = np.zeros((96, 96), bool)
    bundles[:, 30:60] = True  # upright
    rng = np.random.default_rng(0)
    fields = [Fibres(bundles, rng).draw_field(1.0, 12.0, rng)[24:-24, 34:56] for _ in range(8)]
    along = np.mean([(f[4:] * f[:-4]).mean() for f in fields])
    across = np.mean([(f[:, 4:] * f[:, :-4]).mean() for f in fields])
    assert along > across + 0.3


def test_the_stream_draws_from_the_maps(tmp_path: Path) -> None:
    path = write_maps(tmp_path / "maps.npz", vp=np.full((1, 40, 40), AXON, np.uint8))
    settings = StreamSettings(edge=40, depth=2, start=1, pool=1, held_out=1, workers=0, maps=str(path), traced=1.0)
    _, labels = make_piece(settings, 0, 0, 2)
    assert (labels == AXON).all()
    drawn = np.array([(make_piece(replace(settings, traced=0.5), 0, n, 1)[1] == AXON).all() for n in range(20)])
    assert 4 <= drawn.sum() <= 16
    assert len(open_stream(settings).split("train")) == 1


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"thalamus": np.zeros((1, 40, 40), np.uint8)}, "thalamus"),
        ({"vp": np.zeros((1, 40, 40), np.int64)}, "int64"),
        ({"vp": np.zeros((40, 40), np.uint8)}, "(40, 40)"),
        ({"vp": np.full((1, 40, 40), 4, np.uint8)}, "label 4"),
        ({}, "no array"),
    ],
)
def test_other_maps_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], found: str) -> None:
    path = write_maps(tmp_path / "maps.npz", **arrays)
    with pytest.raises(DatasetError) as refused:
        open_stream(StreamSettings(maps=str(path), workers=0))
    assert found in str(refused.value)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "maps.npz").write_bytes(b"no archive")
    with pytest.raises(DatasetError, match="cannot be read as label maps"):
        read_maps(tmp_path / "maps.npz")
    with pytest.raises(DatasetError, match="none"):
        read_maps(tmp_path / "none.npz")


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(SettingsError, match="traced is 2"):
        open_stream(StreamSettings(traced=2.0))


def test_networks_that_see_several_slices_are_refused(tmp_path: Path) -> None:
    path = write_maps(tmp_path / "maps.npz", vp=np.zeros((1, 40, 40), np.uint8))
    settings = StreamSettings(edge=40, depth=2, start=1, pool=1, held_out=1, workers=0, maps=str(path), traced=1.0)
    recipe = Recipe(ModelSettings(in_channels=3), SampleSettings(patch=32), stream=settings)
    with pytest.raises(SettingsError, match="sees 3 slices"):
        settle_recipe(open_stream(settings), recipe)
