"""fetch mtneuro: whatever happens on the way, the end is the same data, verified, each block asked for once."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
import zarr

import fetch_child
from neurotome import cli
from neurotome.datasets import open_dataset
from neurotome.datasets.mtneuro import download
from neurotome.datasets.mtneuro import variants as mtneuro
from neurotome.datasets.mtneuro.download import import_mtneuro
from neurotome.datasets.mtneuro.variants import REGIONS
from neurotome.datasets.phantom.make import PhantomSettings, phantom
from neurotome.datasets.statistics import measure_dataset
from neurotome.errors import DatasetError, FetchError, NeurotomeError, RunError
from neurotome.io.bossdb import Connection
from tests.fake_bossdb import FAULTS, TABLE_1, make_image, make_labels, make_table_1, serve

SMALL = {"train": (110, 112), "val": (380, 381), "test": (420, 421)}
NAMES = ("background", "blood vessel", "cell", "axon")


def truth(z_range, region, make):
    y, x = REGIONS[region]
    z, y, x = np.ogrid[z_range[0] : z_range[1], y : y + 256, x : x + 256]
    return make(z, y, x)


def count(z_ranges):
    return {
        split: np.bincount(np.concatenate([truth(zs, one, make_labels).ravel() for one in REGIONS]), minlength=4).tolist()
        for split, zs in z_ranges.items()
    }


def fetch_small(server, out, z_ranges=SMALL, connection=None, counts=None, block_slices=32, **options):
    settings = {"timeout_s": 20, "backoff_s": 0.01, "attempts": 2, "workers": 2, **(connection or {})}
    with mock.patch.multiple(download, Z_RANGES=z_ranges, TABLE_1=counts or count(z_ranges), BLOCK_SLICES=block_slices):
        return download.fetch_mtneuro(out, Connection(server.host, "http", **settings), **options)


def check_voxels(out, z_ranges=SMALL):
    for split, zs in z_ranges.items():
        for region in REGIONS:
            group = zarr.open_group(out / "task2.zarr", mode="r")
            np.testing.assert_array_equal(group[f"{split}/{region}/image"][:], truth(zs, region, make_image))
            np.testing.assert_array_equal(group[f"{split}/{region}/labels"][:], truth(zs, region, make_labels))


def cutouts(server):
    return [path for path, _ in server.record.requests if "/cutout/" in path]


@pytest.fixture
def server():
    with serve(stall_s=5) as running:
        yield running


def test_fetched_data_open_as_a_dataset(server, tmp_path, capsys):
    out = fetch_small(server, tmp_path / "mt")
    assert "train, val, test verified; pixels per class equal Table 1" in capsys.readouterr().err
    check_voxels(out)
    dataset = open_dataset(f"mtneuro:{out}@4class-with-zi")
    for split, zs in SMALL.items():
        for cutout, region in zip(dataset.split(split), REGIONS, strict=True):
            assert (cutout.name, cutout.volume.origin_zyx) == (region, (zs[0], *REGIONS[region]))
            assert (cutout.volume.data.dtype, cutout.labels.dtype) == (np.uint8, np.uint8)
            np.testing.assert_array_equal(cutout.labels, truth(zs, region, make_labels))
    found = measure_dataset(dataset)["splits"]
    assert {split: list(found[split]["counts"].values()) for split in SMALL} == count(SMALL)
    assert [c.name for c in open_dataset(f"mtneuro:{out}").split("test")] == ["cortex", "striatum", "vp"]


def test_provenance(server, tmp_path):
    out = fetch_small(server, tmp_path / "mt", block_slices=1, token="S3CRET")
    content = json.loads((out / "provenance.json").read_text())
    assert content["source"] == {
        "host": server.host,
        "image": "bossdb://prasad/prasad2020/image",
        "labels": "bossdb://prasad/prasad_analysis/pixel_labels",
    }
    assert content["regions"]["val"]["vp"] == {"z": [380, 381], "y": [850, 1106], "x": [3063, 3319]}
    assert content["source_dtypes"] == {"image": ["uint8"], "labels": ["uint64"]}
    assert content["times"]["first"] <= content["times"]["last"]
    assert {"neurotome", "zarr", "httpx2", "numcodecs"} <= set(content["versions"])
    assert content["licence"] == "CC BY 4.0"
    assert "arXiv:2301.00345" in content["citation"]
    assert content["verification"]["counts"] == count(SMALL)
    assert len(content["blocks"]) == 2 * 4 * 4
    assert not any("S3CRET" in path.read_text(errors="replace") for path in out.rglob("*") if path.is_file())


def test_nothing_is_asked_twice(server, tmp_path):
    out = fetch_small(server, tmp_path / "mt")
    asked = len(server.record.requests)
    assert sorted(cutouts(server)) == sorted(set(cutouts(server)))
    assert fetch_small(server, out) == out
    assert len(server.record.requests) == asked


def test_requests_at_once_are_bounded(tmp_path):
    with serve(delay_s=0.01) as server:
        fetch_small(server, tmp_path / "mt", connection={"workers": 3})
        assert server.record.most_at_once <= 3


REMEDIES = ("same command", "heck", "set BOSSDB_TOKEN", "smaller", "tell the operators", "give that")
PASSING = {"429", "500", "stall", "stall-mid", "cut", "reset", "corrupt", "short"}


@pytest.mark.parametrize(
    ("kind", "channel"),
    [
        (kind, channel)
        for kind in FAULTS
        for channel in ("image", "pixel_labels")
        if kind != "channel-dtype" and (kind, channel) != ("labels", "image")  # any grey value is one
    ],
)
def test_every_fault_leaves_what_a_rerun_finishes(server, tmp_path, kind, channel):
    out = tmp_path / "mt"
    # the val split is asked for in the middle
    server.fail(kind, times=-1, match=f"{channel}/0/3700:3956/500:756/380:381")
    with pytest.raises(FetchError) as found:
        fetch_small(server, out, connection={"timeout_s": 0.3} if "stall" in kind else {})
    assert any(remedy in str(found.value) for remedy in REMEDIES), found.value
    assert not (out / "provenance.json").exists()
    with pytest.raises(DatasetError, match=r"the fetch has not ended\. Go on with"):
        open_dataset(f"mtneuro:{out}")
    assert not (out / f"task2.zarr/val/striatum/{'image' if channel == 'image' else 'labels'}/c").exists()
    done = set((out / "ledger.jsonl").read_text().split('"block": "')[1:])
    server.faults.clear()
    before = len(cutouts(server))
    fetch_small(server, out)
    check_voxels(out)
    assert len(cutouts(server)) - before == 24 - len(done)


@pytest.mark.parametrize("kind", sorted(PASSING))
def test_what_passes_is_not_even_noticed(server, tmp_path, kind):
    server.fail(kind, times=1)
    out = fetch_small(server, tmp_path / "mt", connection={"attempts": 4, "timeout_s": 1.0 if "stall" in kind else 20})
    check_voxels(out)


def test_wrong_labels_name_values_and_numbers(server, tmp_path):
    server.fail("labels", match="pixel_labels/0/")
    with pytest.raises(FetchError, match=r"labels, 0:\d.*outside 0\.\.3: 7 \(1 voxels\), 1099511627776 \(1 voxels\)"):
        fetch_small(server, tmp_path / "mt")


def test_an_image_of_another_dtype_is_refused(server, tmp_path):
    server.fail("channel-dtype", match="/channel/image")
    with pytest.raises(FetchError, match="datatype uint16; expected uint8"):
        fetch_small(server, tmp_path / "mt")


def test_other_counts_name_split_and_class_and_keep_the_data(server, tmp_path, capsys):
    out, wrong = tmp_path / "mt", count(SMALL)
    wrong["val"] = [wrong["val"][0] + 1000, wrong["val"][1], wrong["val"][2] - 1000, wrong["val"][3]]
    with pytest.raises(FetchError) as found:
        fetch_small(server, out, counts=wrong)
    message = str(found.value)
    there = count(SMALL)["val"]
    assert f"val, background: {there[0]:,} pixels, expected {there[0] + 1000:,} (-1,000)" in message
    assert f"val, cell: {there[2]:,} pixels, expected {there[2] - 1000:,} (+1,000)" in message
    assert "train" not in message
    assert "blood vessel" not in message
    check_voxels(out)
    with pytest.raises(DatasetError, match=r"val, background: .*--no-verify-counts"):
        open_dataset(f"mtneuro:{out}")
    asked = len(server.record.requests)
    fetch_small(server, out, counts=wrong, verify_counts=False)
    assert len(server.record.requests) == asked
    assert "differ from Table 1, as accepted" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="not MTNeuro's data, or not all of them: val, background: .* called unverified-"):
        dataset = open_dataset(f"mtneuro:{out}")
    assert dataset.name == "unverified-mtneuro-4class"
    assert len(dataset.split("val")) == 3


def test_grey_values_are_compared_to_the_printed_digits_whichever_deviation_is_meant(server, tmp_path, monkeypatch, capsys):
    images = {split: [truth(zs, region, make_image) for region in REGIONS] for split, zs in SMALL.items()}
    deviations = {
        "train": np.concatenate(images["train"]).std(),
        "val": np.mean([plane.std() for image in images["val"] for plane in image]),
        "test": np.concatenate(images["test"]).std(),
    }
    means = {split: np.concatenate(stack).mean() for split, stack in images.items()}
    assert f"{deviations['val']:.5f}" != f"{np.concatenate(images['val']).std():.5f}"
    printed = {split: (f"{means[split]:.1f}", f"{deviations[split]:.5f}") for split in SMALL}
    monkeypatch.setattr(download, "TABLE_1_GREY", printed)
    out = fetch_small(server, tmp_path / "mt")
    assert "; mean and standard deviation as well" in capsys.readouterr().err
    grey = json.loads((out / "provenance.json").read_text())["verification"]["grey"]
    assert grey["train"] == {
        "mean": pytest.approx(means["train"]),
        "std": pytest.approx(deviations["train"]),
        "mean_std_of_slices": pytest.approx(np.mean([plane.std() for image in images["train"] for plane in image])),
        "agrees": True,
    }
    printed["test"] = (printed["test"][0], "33.324")
    fetch_small(server, out)
    shown = capsys.readouterr().err
    assert f"grey values differ: test mean {means['test']:.5g}, printed {printed['test'][0]}, standard deviation" in shown
    assert "of a slice on average, printed 33.324" in shown
    assert open_dataset(f"mtneuro:{out}").name == "mtneuro-4class"  # a note, no error


def test_damaged_and_lost_blocks_are_noticed_and_fetched_alone(server, tmp_path):
    out = fetch_small(server, tmp_path / "mt")
    store = out / "task2.zarr"
    damaged, lost = store / "train/zi/labels/c/0/0/0", store / "val/cortex/image/c/0/0/0"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))
    with pytest.raises(DatasetError, match=r"train/zi/labels/c/0/0/0: this block is absent or damaged; it alone"):
        open_dataset(f"mtneuro:{out}@4class-with-zi")
    lost.unlink()
    with pytest.raises(DatasetError, match="val/cortex/image/c/0/0/0: this block is absent"):
        open_dataset(f"mtneuro:{out}")
    before = len(cutouts(server))
    fetch_small(server, out)
    assert len(cutouts(server)) - before == 2
    check_voxels(out)
    (store / "test/vp/image/zarr.json").unlink()
    with pytest.raises(DatasetError, match="test/vp/image is absent or damaged"):
        open_dataset(f"mtneuro:{out}")
    (out / "provenance.json").write_text("{")
    with pytest.raises(DatasetError, match=r"provenance\.json: no valid JSON .*neurotome fetch mtneuro"):
        open_dataset(f"mtneuro:{out}")


def test_a_stored_block_without_a_line_is_not_fetched_again(server, tmp_path):
    """A kill between the two leaves just that; a line cut off by a crash is dropped."""
    out = fetch_small(server, tmp_path / "mt")
    ledger = out / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:-2]) + lines[-1][:20])
    (out / "provenance.json").unlink()
    before = len(cutouts(server))
    fetch_small(server, out)
    assert len(cutouts(server)) == before
    assert len(ledger.read_text().splitlines()) == len(lines)


def test_sources_do_not_mix(server, tmp_path):
    out = fetch_small(server, tmp_path / "mt")
    with serve() as other, pytest.raises(RunError, match="was begun from another source"):
        fetch_small(other, out)
    (out / "ledger.jsonl").unlink()
    with pytest.raises(RunError, match="nobody knows where it comes from"):
        fetch_small(server, out)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunError, match="a file is in the way"):
        fetch_small(server, file)


def stored_paths(out, z_ranges):
    """Paths of the requests whose blocks lie under their final names."""
    names = {"image": "prasad2020/image", "labels": "prasad_analysis/pixel_labels"}
    paths = set()
    for file in (out / "task2.zarr").glob("*/*/*/c/*/0/[0-9]*"):
        split, region, kind, _, z = file.relative_to(out / "task2.zarr").parts[:5]
        (y, x), first = REGIONS[region], z_ranges[split][0] + int(z)
        ranges = f"{x}:{x + 256}/{y}:{y + 256}/{first}:{first + 1}"
        paths.add(f"/v1/cutout/prasad/{names[kind]}/0/{ranges}/?access-mode=no-cache")
    return paths


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill so")
def test_killed_twenty_times(tmp_path):
    z_ranges = {"train": (110, 124), "val": (380, 383), "test": (420, 425)}
    seed = random.SystemRandom().randrange(1 << 30)
    generator = random.Random(seed)
    out, verified, kills = tmp_path / "killed", set(), 0
    context = multiprocessing.get_context("forkserver")  # a process that imports all takes a second, twenty times
    context.set_forkserver_preload(["fetch_child"])
    with serve(delay_s=0.01) as server:
        while True:
            begin = len(server.record.requests)
            child = context.Process(target=fetch_child.fetch, args=(server.host, out, z_ranges))
            child.start()
            if kills < 20:
                wanted, deadline = begin + generator.randrange(1, 10), time.monotonic() + 60
                while len(server.record.requests) < wanted and child.is_alive() and time.monotonic() < deadline:
                    time.sleep(0.001)
                time.sleep(generator.uniform(0, 0.015))
                child.kill()
                kills += 1
            child.join(120)
            again = verified & {path for path, _ in server.record.requests[begin:]}
            assert not again, f"seed {seed}: fetched again after {kills} kills: {sorted(again)[:3]}"
            verified = stored_paths(out, z_ranges)
            if child.exitcode == 0:
                break
            assert child.exitcode == -signal.SIGKILL, f"seed {seed}"
        assert kills == 20
        assert len(verified) == 22 * 4 * 2
        undisturbed = fetch_small(server, tmp_path / "whole", z_ranges, block_slices=1)
    check_voxels(out, z_ranges)
    files = sorted(path.relative_to(out) for path in (out / "task2.zarr").rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(undisturbed) for path in (undisturbed / "task2.zarr").rglob("*") if path.is_file()
    )
    for file in files:
        assert (out / file).read_bytes() == (undisturbed / file).read_bytes()


def test_ctrl_c_leaves_what_goes_on(tmp_path):
    with serve(delay_s=0.05) as server:
        program = "import fetch_child; from pathlib import Path; "
        program += f"fetch_child.fetch({server.host!r}, Path({str(tmp_path / 'mt')!r}), {SMALL!r})"
        child = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # a test run in the background ignores Ctrl-C, and its children would inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while len(server.record.requests) < 8 and child.poll() is None:
            time.sleep(0.005)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
        assert child.returncode != 0
        assert b"KeyboardInterrupt" in errors
        server.delay_s = 0
        done = stored_paths(tmp_path / "mt", SMALL)
        assert done
        begin = len(cutouts(server))
        fetch_small(server, tmp_path / "mt", block_slices=1)
        assert not done & set(cutouts(server)[begin:])
    check_voxels(tmp_path / "mt")


def write_caches(folder, monkeypatch, splits=SMALL, dtype=np.uint64):
    monkeypatch.setattr(mtneuro, "Z_RANGES", SMALL)
    monkeypatch.setattr(download, "TABLE_1", count(SMALL))
    folder.mkdir()
    for split in splits:
        for kind, make in (("images", make_image), ("labels", make_labels)):
            stacked = np.concatenate([truth(SMALL[split], region, make) for region in REGIONS])
            np.save(folder / f"task2_2D_4class{split}{kind}.npy", stacked.astype(np.uint8 if kind == "images" else dtype))
    return folder


def test_caches_are_imported_and_verified_alike(server, tmp_path, monkeypatch, capsys):
    caches = write_caches(tmp_path / "caches", monkeypatch)
    monkeypatch.setattr(download, "BLOCK_SLICES", 1)
    out = import_mtneuro(caches, tmp_path / "imported")
    assert "pixels per class equal Table 1" in capsys.readouterr().err
    check_voxels(out)
    fetched = fetch_small(server, tmp_path / "fetched", block_slices=1)
    for file in (fetched / "task2.zarr").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (out / file.relative_to(fetched)).read_bytes()
    content = json.loads((out / "provenance.json").read_text())
    assert content["source"] == {"cache": str(caches.resolve())}
    assert content["source_dtypes"]["labels"] == ["uint64"]
    monkeypatch.setattr(download, "TABLE_1", mtneuro.TABLE_1)
    with pytest.raises(FetchError, match="train, background"):
        import_mtneuro(caches, tmp_path / "wrong")


def test_wrong_caches(tmp_path, monkeypatch, capsys):
    caches = write_caches(tmp_path / "caches", monkeypatch, ["val"])
    labels_path = caches / "task2_2D_4classvallabels.npy"
    out = import_mtneuro(caches, tmp_path / "val")
    assert "val verified; pixels per class equal Table 1; no files of train, test" in capsys.readouterr().err
    assert list(open_dataset(f"mtneuro:{out}").splits) == ["val"]
    labels = np.load(labels_path)
    labels[1, 5, 5] = 4
    np.save(labels_path, labels)
    with pytest.raises(
        FetchError, match=r"val, striatum, labels, 0:1,0:256,0:256: label values outside 0\.\.3: 4 \(1 voxels\)"
    ):
        import_mtneuro(caches, tmp_path / "bad")
    np.save(labels_path, labels.astype(np.float32))
    with pytest.raises(NeurotomeError, match="labels have dtype float32"):
        import_mtneuro(caches, tmp_path / "float")
    labels_path.unlink()
    with pytest.raises(DatasetError, match="is there, but"):
        import_mtneuro(caches, tmp_path / "half")
    with pytest.raises(DatasetError, match="no such folder"):
        import_mtneuro(tmp_path / "gone", tmp_path / "none")
    phantom(out=tmp_path / "phantom", layout="mtneuro", settings=PhantomSettings(height=32, width=32))
    with pytest.raises(DatasetError, match="this is a phantom"):
        import_mtneuro(tmp_path / "phantom", tmp_path / "none")


def run(*arguments):
    handler, show = signal.getsignal(signal.SIGTERM), cli.warnings.showwarning
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)
        cli.warnings.showwarning = show
    return stopped.value.code


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mtneuro"], "--out"),
        (["mtneuroo", "--out", "x"], "Did you mean 'mtneuro'"),
        (["mtneuro", "--out", "x", "--range", "0:1,0:1,0:1"], "--range and --voxel-size-um are for a channel"),
        (["mtneuro", "--out", "x", "--host", "http://a"], "without http://"),
        (["mtneuro", "--out", "x", "--workers", "0"], "at least 1"),
        (["mtneuro", "--out", "x", "--from-cache", "gone"], "no such folder"),
        (["bossdb://a/b", "--out", "x"], "expected bossdb://collection/experiment/channel"),
        (["bossdb://a/b/c", "--out", "x"], "--range z0:z1,y0:y1,x0:x1"),
        (["bossdb://a/b/c", "--out", "x", "--range", "0:1,0:1"], "expected z0:z1,y0:y1,x0:x1"),
        (["bossdb://a/b/c", "--out", "x", "--range", "0:1,5:5,0:1"], "y is 5:5"),
        (["bossdb://a/b/c", "--out", "x", "--range=-1:1,0:5,0:1"], "expected z0:z1,y0:y1,x0:x1"),
        (["bossdb://a/b/c", "--out", "x", "--range", "0:1,0:5,0:1", "--no-verify-counts"], "are for mtneuro"),
    ],
)
def test_wrong_commands(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert run("fetch", *arguments) in (1, 2)
    shown = capsys.readouterr()
    assert says in " ".join((shown.out + shown.err).split())
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_whole_of_task_2_has_table_1s_counts(tmp_path, capsys, monkeypatch):
    """The command as a user types it, on all 91 million voxels; the server's labels have Table 1's numbers by design."""
    monkeypatch.setenv("BOSSDB_TOKEN", "mine")
    with serve(labels=make_table_1, token="mine") as server:
        options = ["--out", tmp_path / "mt", "--host", server.host, "--protocol", "http"]
        assert run("fetch", "mtneuro", *options) == 0
        assert len(cutouts(server)) == len(set(cutouts(server))) == 96
    found = measure_dataset(open_dataset(f"mtneuro:{tmp_path / 'mt'}@4class-with-zi"))["splits"]
    assert [list(found[split]["counts"].values()) for split in SMALL] == [list(counts) for counts in TABLE_1.values()]
    assert [found[split]["slices"] for split in SMALL] == [1076, 116, 200]
    described = {}
    for name, variant in mtneuro.VARIANTS.items():
        dataset = open_dataset(f"mtneuro:{tmp_path / 'mt'}@{name}")
        described[name] = "/".join(str(sum(len(c.volume.data) for c in dataset.split(split))) for split in SMALL)
        assert variant.description.endswith(f"; {described[name]} slices")
    assert described["4class"] == "807/87/150"
    shutil.rmtree(tmp_path / "mt")
