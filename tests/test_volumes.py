"""Whole volumes from the command to the finished store: the same labels however the work was cut, shared or interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from conftest import make_dataset, run
from neurotome.classes import ClassSet
from neurotome.errors import NeurotomeError, RunError, SettingsError
from neurotome.inference import block_worker, geometry, volumes
from neurotome.inference.predict import predict, predict_probs
from neurotome.inference.predict_settings import PredictSettings
from neurotome.inference.verify import verify
from neurotome.inference.volume_settings import VolumeSettings
from neurotome.io.block_ledger import BlockLedger
from neurotome.io.label_store import open_label_store
from neurotome.models.model_folder import save_model
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization, measure_tissue
from neurotome.volume import Volume

CLASSES = ClassSet(("background", "vessel", "cell"))
SHAPE = (10, 40, 70)
HALO = 64  # as measure_halo finds it of this network
CPU = PredictSettings(device="cpu", tile=32)
PLAIN = VolumeSettings(back_end="torch", tolerance=0, threads=1)


def make_model(folder: Path, in_channels: int = 1, mode: str = "image") -> Path:
    torch.manual_seed(3)
    settings = ModelSettings(decoder="linknet", encoder="resnet18", encoder_depth=3, in_channels=in_channels)
    net = build_network(settings, 3)
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(4, in_channels, 64, 64))
    save_model(NetPredictor(net, settings, CLASSES, Normalization(mode, 100, 25, "uint8"), HALO), folder)
    return folder


def make_grey(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(1)
    grey = rng.normal(100, 12, shape)
    grey[:, : shape[1] // 4] -= 60
    grey[:, :, shape[2] // 2 :] += 40
    return grey.clip(1, 255).round().astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    """A measurement would take longer than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neurotome.inference.volume_plan.measure_bytes_per_pixel", lambda predictor: 2000.0)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, an image, and the labels of the whole image from a plain run."""
    folder = tmp_path_factory.mktemp("volumes")
    make_model(folder / "model")
    image = zarr.create_array(folder / "image.zarr", shape=SHAPE, chunks=(4, 32, 32), dtype="uint8")
    image[:] = make_grey()
    predict(folder / "model", folder / "image.zarr", folder / "whole.zarr", settings=CPU, options=PLAIN)
    return folder


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that are computed while a test runs."""
    computed: list[int] = []
    label_block = block_worker.label_block

    def count(predictor: Any, volume: Any, scale: Any, geometry: Any, block: int, *arguments: Any, **keywords: Any) -> Any:
        computed.append(block)
        return label_block(predictor, volume, scale, geometry, block, *arguments, **keywords)

    monkeypatch.setattr(block_worker, "label_block", count)
    return computed


def read(path: Path) -> np.ndarray:
    store = open_label_store(path)
    return store.read(tuple(slice(0, size) for size in store.shape_zyx))  # type: ignore[arg-type]


def label(home: Path, out: Path, settings: PredictSettings = CPU, **options: Any) -> np.ndarray:
    predict(home / "model", home / "image.zarr", out, settings=settings, options=replace(PLAIN, **options))
    return read(out)


def test_labels_are_those_of_whole_slices(home: Path) -> None:
    by_slice = predict(home / "model", make_grey(), settings=PredictSettings(device="cpu"))
    whole = read(home / "whole.zarr")
    assert len(np.unique(whole)) == 3
    assert (whole == by_slice).mean() >= 0.9999


def test_a_region_is_bit_equal_to_the_whole(home: Path, tmp_path: Path) -> None:
    region = label(home, tmp_path / "region.zarr", bbox="3:5,30:33,10:30")
    whole, done = read(home / "whole.zarr"), region != 255
    assert done[3:5, 30:33, 10:30].all()
    assert not done.all()
    np.testing.assert_array_equal(region[done], whole[done])


def test_threads_and_block_sizes_change_no_voxel(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(home / "whole.zarr")
    np.testing.assert_array_equal(label(home, tmp_path / "threads.zarr", threads=3), whole)
    monkeypatch.setattr(geometry, "FEWEST_BLOCKS", 2)
    np.testing.assert_array_equal(label(home, tmp_path / "large.zarr"), whole)
    sizes = [open_label_store(path).block_zyx for path in (home / "whole.zarr", tmp_path / "large.zarr")]
    assert sizes[0] != sizes[1]


def test_it_goes_on_with_what_is_missing(home: Path, tmp_path: Path, blocks: list[int]) -> None:
    out = tmp_path / "out.zarr"
    shutil.copytree(home / "whole.zarr", out)
    [lines] = (out / "0" / "ledger").glob("*.jsonl")
    kept = lines.read_text().splitlines(keepends=True)
    assert len(kept) > 2
    lines.write_text("".join(kept[:1] + kept[2:]))
    np.testing.assert_array_equal(label(home, out), read(home / "whole.zarr"))
    assert blocks == [json.loads(kept[1])["block"]]


def test_killed_between_data_and_ledger(
    home: Path, tmp_path: Path, blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    add, out = BlockLedger.add, tmp_path / "out.zarr"

    def killed(ledger: BlockLedger, block: int, **facts: Any) -> None:
        if block == 1:
            raise KeyboardInterrupt
        add(ledger, block, **facts)

    monkeypatch.setattr(BlockLedger, "add", killed)
    monkeypatch.setattr("neurotome.inference.volumes.open_engine", Plain)
    with pytest.raises(KeyboardInterrupt):
        label(home, out)
    monkeypatch.setattr(BlockLedger, "add", add)
    assert blocks == [0, 1]
    np.testing.assert_array_equal(label(home, out), read(home / "whole.zarr"))
    assert sorted(blocks) == sorted([*range(max(blocks) + 1), 1])


class Plain:
    """An engine without threads, so that an interrupt in a block ends the run as a kill would."""

    def __init__(self, *_: Any) -> None: ...
    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None: ...
    def run(self, build: Any, tasks: Any) -> Iterator[Any]:
        from neurotome.engines import Outcome

        work = build()
        return (Outcome(task, work(task), None, 1, 0.0) for task in tasks)


def test_other_settings_are_refused_with_the_difference_and_begun_anew(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    shutil.copytree(home / "whole.zarr", out)
    before = read(out)
    with pytest.raises(RunError, match=r"settings\.axes \(found 'z', wanted 'y'\)"):
        label(home, out, axes="y")
    other = tmp_path / "image.zarr"
    shutil.copytree(home / "image.zarr", other)
    zarr.open_array(other, mode="r+")[0, 0, 0] = 7
    with pytest.raises(RunError, match=r"input\.sha256 \(found"):
        predict(home / "model", other, out, settings=CPU, options=PLAIN)
    np.testing.assert_array_equal(read(out), before)
    assert (label(home, out, axes="y", overwrite=True) != before).any()


def test_a_confidence_of_labels_that_are_overwritten_is_named(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.zarr"
    shutil.copytree(home / "whole.zarr", out)
    shutil.copytree(home / "whole.zarr", tmp_path / "out_confidence.zarr")
    label(home, out, overwrite=True)
    assert "out_confidence.zarr is of an earlier prediction, and stays as it is" in capsys.readouterr().err


def test_what_overwriting_left_when_it_was_killed_is_not_taken_for_done(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.zarr"
    shutil.copytree(home / "whole.zarr", out)

    def delete_and_die(path: Path) -> None:
        delete(path)
        raise KeyboardInterrupt

    delete = shutil.rmtree
    with monkeypatch.context() as patched:
        patched.setattr(volumes.shutil, "rmtree", delete_and_die)
        with pytest.raises(KeyboardInterrupt):
            label(home, out, overwrite=True)
    np.testing.assert_array_equal(label(home, out), read(home / "whole.zarr"))


def test_three_axes_into_the_older_format(home: Path, tmp_path: Path) -> None:
    labels = label(home, tmp_path / "out.zarr", axes="zyx", ome_version="0.4", bbox=":2,:20,:20")
    assert (labels[:2, :20, :20] != 255).all()
    assert (tmp_path / "out.zarr" / ".zattrs").is_file()


def test_a_store_without_a_ledger_is_not_touched(home: Path, tmp_path: Path) -> None:
    for name in ("other.zarr", "plain.zarr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
        with pytest.raises(RunError, match="no output of predict"):
            label(home, tmp_path / name, overwrite=name == "plain.zarr")
        assert (tmp_path / name / "notes.txt").read_text() == "mine"
    with pytest.raises(RunError, match="would overwrite the input"):
        label(home, home / "image.zarr", overwrite=True)
    zarr.create_array(tmp_path / "data.zarr", name="0", shape=SHAPE, dtype="uint8")[:] = 7
    zarr.open_group(tmp_path / "data.zarr").attrs["ome"] = {"multiscales": []}
    with pytest.raises(RunError, match="a Zarr that is no output of predict"):  # somebody's image
        label(home, tmp_path / "data.zarr", overwrite=True)
    assert (zarr.open_array(tmp_path / "data.zarr/0")[:] == 7).all()  # type: ignore[operator]


def test_a_larger_box_keeps_what_is_done(
    home: Path, tmp_path: Path, blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry, "FEWEST_BLOCKS", 2)
    out = tmp_path / "out.zarr"
    label(home, out, bbox=":1,:20,:20")
    first = list(blocks)
    label(home, out, bbox=":1,:10,:10")
    assert blocks == first
    np.testing.assert_array_equal(label(home, out), read(home / "whole.zarr"))
    label(home, out)
    assert len(first) == 1
    assert sorted(blocks) == sorted([*first, *set(blocks)])  # once each; the first again, because it was done in part


def test_mask_air_and_confidence(home: Path, tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2, 5, 5] = 1
    np.save(tmp_path / "mask.npy", mask)
    settings = replace(CPU, confidence=True)
    masked = label(home, tmp_path / "out.zarr", settings, mask=str(tmp_path / "mask.npy"))
    whole = read(home / "whole.zarr")
    assert masked[2, 5, 5] == whole[2, 5, 5]
    assert 0 < (masked != 255).mean() < 1
    confidence = read(tmp_path / "out_confidence.zarr")
    assert (confidence[masked != 255] > 255 / 3 - 1).all()
    assert (confidence[masked == 255] == 0).all()
    assert (label(home, tmp_path / "air.zarr", air_below=300) == 255).all()


def test_a_dry_run_writes_nothing(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", home / "model", home / "image.zarr", tmp_path / "out.zarr", "--device", "cpu", "--dry-run") == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("blocks", "time", "memory", "disk"))
    assert not list(tmp_path.iterdir())


def test_two_jobs_share_the_blocks(home: Path, tmp_path: Path, blocks: list[int]) -> None:
    out = tmp_path / "out.zarr"
    label(home, out, shard="1/2")
    assert "report" not in open_label_store(out).attributes
    assert set(np.array(blocks) % 2) == {0}
    np.testing.assert_array_equal(label(home, out, shard="2/2"), read(home / "whole.zarr"))
    assert len(blocks) == len(set(blocks))
    assert "report" in open_label_store(out).attributes


def test_a_block_that_fails_is_named_and_tried_again(
    home: Path, tmp_path: Path, blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = block_worker.label_block

    def fail(predictor: Any, volume: Any, scale: Any, geometry: Any, block: int, *arguments: Any, **keywords: Any) -> Any:
        found = counted(predictor, volume, scale, geometry, block, *arguments, **keywords)
        if block == 1:
            raise ValueError("poisoned")
        return found

    monkeypatch.setattr(block_worker, "label_block", fail)
    with pytest.raises(RunError, match=r"1 of \d+ blocks failed.*\nblock 1 at z .*poisoned"):
        label(home, tmp_path / "out.zarr")
    assert blocks.count(1) == 3
    assert "poisoned" in open_label_store(tmp_path / "out.zarr").attributes["failures"]["1"]
    monkeypatch.setattr(block_worker, "label_block", counted)
    tried = len(blocks)
    np.testing.assert_array_equal(label(home, tmp_path / "out.zarr"), read(home / "whole.zarr"))
    assert blocks[tried:] == [1]
    assert open_label_store(tmp_path / "out.zarr").attributes["failures"] == {}


def test_labels_within_the_image(home: Path, tmp_path: Path) -> None:
    from neurotome.io.ome_zarr import create_ome_zarr

    image = create_ome_zarr(
        tmp_path / "image.zarr", SHAPE, np.dtype(np.uint8), None, name="image", shard=(16, 64, 64), chunk=(16, 32, 32)
    )
    image[:] = make_grey()
    out = tmp_path / "image.zarr" / "labels" / "tissue"
    predict(home / "model", tmp_path / "image.zarr", out, settings=replace(CPU, confidence=True), options=PLAIN)
    np.testing.assert_array_equal(read(out), read(home / "whole.zarr"))
    labels: Any = zarr.open_group(out.parent, mode="r").attrs["ome"]
    assert labels["labels"] == ["tissue"]
    assert (tmp_path / "image_tissue_confidence.zarr").is_dir()
    with pytest.raises(RunError, match=r"labels of 0\.4 cannot lie beneath it. Use --ome-version 0\.5"):
        predict(home / "model", tmp_path / "image.zarr", out.with_name("old"), options=replace(PLAIN, ome_version="0.4"))
    assert not out.with_name("old").exists()
    predict(home / "model", tmp_path / "image.zarr", out, settings=replace(CPU, confidence=True), options=PLAIN)


def test_neighbouring_slices_and_pixel_classifiers(home: Path, tmp_path: Path) -> None:
    from neurotome.pixels.saving import save_pixels
    from neurotome.pixels.train import BaselineSettings, fit_baseline

    make_model(tmp_path / "three", in_channels=3)
    save_pixels(fit_baseline(make_dataset(), BaselineSettings("lr", "identity")), tmp_path / "pixels")
    for name in ("three", "pixels"):
        predict(tmp_path / name, home / "image.zarr", tmp_path / f"{name}.zarr", settings=CPU, options=PLAIN)
        by_slice = predict(tmp_path / name, make_grey(), settings=PredictSettings(device="cpu"))
        assert (read(tmp_path / f"{name}.zarr") == by_slice).mean() >= 0.9999


def test_the_output_says_how_it_was_made(home: Path) -> None:
    attributes = open_label_store(home / "whole.zarr").attributes
    inference, report = attributes["inference"], attributes["report"]
    assert len(inference["model_sha256"]) == 64
    assert {"scale", "halo", "geometry", "axes", "back_end", "device", "input", "normalization"} <= set(inference)
    whole = read(home / "whole.zarr")
    assert report["predicted"] == whole.size
    assert report["shares"]["cell"] == pytest.approx((whole == 2).mean(), abs=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shard": "3/2"}, "shard is '3/2'"),
        ({"tolerance": 2}, "tolerance is 2"),
        ({"back_end": "torsch"}, "Did you mean 'torch'"),
        ({"max_memory": "much"}, "max_memory is 'much'"),
        ({"workers": 0}, "workers is 0"),
        ({"max_memory": "1MB"}, r"may take 1 MB of memory, and the program .* alone takes .*Raise --max-memory"),
    ],
)
def test_impossible_settings(home: Path, tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        label(home, tmp_path / "out.zarr", **wrong)
    assert not (tmp_path / "out.zarr").exists()


def test_settings_of_volumes_need_a_volume(home: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--bbox: only for a volume"):
        predict(home / "model", home / "image.zarr", tmp_path / "a.tif", settings=CPU, options=VolumeSettings(bbox=":1,,"))
    for given in (replace(CPU, overlay=True), replace(CPU, existing="replace")):
        with pytest.raises(NeurotomeError, match="not for a volume"):
            label(home, tmp_path / "a.zarr", given)


def test_a_folder_of_slices_is_one_volume(home: Path, tmp_path: Path) -> None:
    (tmp_path / "slices").mkdir()
    for z, plane in enumerate(make_grey()):
        Image.fromarray(plane).save(tmp_path / "slices" / f"scan_{z}.png")
    predict(home / "model", tmp_path / "slices", tmp_path / "out.zarr", settings=CPU, options=PLAIN)
    np.testing.assert_array_equal(read(tmp_path / "out.zarr"), read(home / "whole.zarr"))


def test_chunks_that_are_missing_are_told_and_not_predicted(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sparse = shutil.copytree(home / "image.zarr", tmp_path / "sparse.zarr")
    for z in range(3):
        (sparse / "c" / str(z) / "0" / "0").unlink()
    predict(home / "model", sparse, tmp_path / "out.zarr", settings=CPU, options=PLAIN)
    assert "3 of 18 chunks are missing; read as fill value 0." in capsys.readouterr().err
    found = read(tmp_path / "out.zarr")
    assert (found[:, :32, :32] == 255).all()
    assert (found != 255).sum() == found.size - 10 * 32 * 32
    small = zarr.create_array(tmp_path / "small.zarr", shape=(1, 32, 40), chunks=(1, 32, 32), dtype="uint8")
    small[0, :, :32] = make_grey()[0, :32, :32]
    with pytest.warns(UserWarning, match=r"small.zarr: 1 of 2 chunks are missing"):
        predict_probs(home / "model", tmp_path / "small.zarr", settings=CPU)


def test_a_damaged_chunk_is_named(home: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(home / "image.zarr", tmp_path / "damaged.zarr")
    file = damaged / "c" / "2" / "1" / "2"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(NeurotomeError, match=r"c/2/1/2: this chunk is damaged or was cut \(20 bytes"):
        predict(home / "model", damaged, tmp_path / "out.zarr", settings=CPU, options=replace(PLAIN, retries=1))


def test_a_reference_gives_the_scale_and_another_is_refused(home: Path, tmp_path: Path) -> None:
    model, out = make_model(tmp_path / "tissue", mode="tissue"), tmp_path / "out.zarr"
    for number, name in enumerate(("one", "other")):
        Image.fromarray(make_grey((1, 40, 90))[0] + np.uint8(number)).save(tmp_path / f"{name}.png")
    settled = replace(CPU, reference=str(tmp_path / "one.png"))
    predict(model, home / "image.zarr", out, settings=settled, options=PLAIN)
    expected = measure_tissue(Volume(make_grey((1, 40, 90)), "one"))
    scale = open_label_store(out).attributes["inference"]["scale"]
    assert (scale["mean"], scale["std"]) == (expected.mean, expected.std)
    assert scale["source"].endswith(f"of the reference {tmp_path / 'one.png'}")
    assert str(tmp_path / "one.png") in verify(out)["grey scale"]
    predict(model, home / "image.zarr", out, settings=settled, options=PLAIN)
    for reference in (str(tmp_path / "other.png"), "own", ""):
        with pytest.raises(RunError, match="was begun with something else: reference"):
            predict(model, home / "image.zarr", out, settings=replace(CPU, reference=reference), options=PLAIN)
