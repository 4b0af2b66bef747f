"""Blocks from a source into an array: errors of either side end it without a hang, and what was checked is stored."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import zarr

from neurotome.errors import FetchError
from neurotome.io.ledger import Ledger
from neurotome.io.transfer import Transfer, find_missing, transfer_blocks
from neurotome.io.zarr_store import open_or_create, plan_files, read_block, write_block

VOXELS = (np.arange(12 * 8 * 8) % 4).astype(np.uint64).reshape(12, 8, 8)


def prepare(folder, read=lambda place: VOXELS[place], largest=3):
    ledger = Ledger(folder / "ledger.jsonl", folder / "store", {})
    array = open_or_create(folder / "store", "a", VOXELS.shape, np.dtype(np.uint8), (1, 8, 8))
    return Transfer(array, read, "toy", largest), ledger


def run(transfer, ledger, workers=3):
    missing = find_missing([transfer], ledger)
    transfer_blocks([transfer], missing, ledger, workers)
    return len(missing)


def test_voxels_counts_and_what_is_left(tmp_path):
    transfer, ledger = prepare(tmp_path)
    assert run(transfer, ledger) == 12
    np.testing.assert_array_equal(transfer.array[:], VOXELS)
    counts = np.sum([entry["counts"] for entry in ledger.entries.values()], axis=0)
    np.testing.assert_array_equal(counts, np.bincount(VOXELS.ravel().astype(int)))
    assert {entry["dtype"] for entry in ledger.entries.values()} == {"uint64"}
    assert run(transfer, ledger) == 0
    assert len(plan_files(transfer.array)) == 12


@pytest.mark.parametrize("workers", [1, 3, 20])
def test_an_error_of_the_source_ends_it_and_keeps_the_rest(tmp_path, workers):
    def read(place):
        if place[0].start == 5:
            raise FetchError("gone")
        return VOXELS[place]

    transfer, ledger = prepare(tmp_path, read)
    with pytest.raises(FetchError, match="gone"):
        run(transfer, ledger, workers)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("transfer-")]
    stored = len(ledger.entries)
    assert stored < 12
    again = Transfer(transfer.array, lambda place: VOXELS[place], "toy", 3)
    assert run(again, Ledger(ledger.path, ledger.folder, {})) == 12 - stored
    np.testing.assert_array_equal(transfer.array[:], VOXELS)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_the_disk_ends_it(tmp_path, monkeypatch, workers):
    transfer, ledger = prepare(tmp_path)
    add = ledger.add

    def fill_the_disk(name, **facts):
        if len(ledger.entries) >= 4:
            raise OSError(28, "No space left on device")
        add(name, **facts)

    monkeypatch.setattr(ledger, "add", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        run(transfer, ledger, workers)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("transfer-")]
    assert 4 <= len(ledger.entries) < 4 + 2 * workers  # threads that had looked just before still write theirs


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (np.full((1, 8, 8), 4, np.uint64), r"outside 0\.\.3: 4 \(64 voxels\)"),
        (np.full((1, 8, 8), 256, np.uint64), "256"),
        (np.full((1, 8, 8), -1, np.int64), "-1"),
        (np.zeros((1, 8, 7), np.uint64), "found shape"),
        (np.zeros((1, 8, 8), np.float32), "float32"),
    ],
)
def test_wrong_voxels_are_never_narrowed(tmp_path, wrong, says):
    transfer, ledger = prepare(tmp_path, lambda place: wrong if place[0].start == 3 else VOXELS[place])
    with pytest.raises(FetchError, match=says):
        run(transfer, ledger)
    assert not (tmp_path / "store/a/c/3/0/0").exists()


def test_grey_values_are_not_narrowed_either(tmp_path):
    transfer, ledger = prepare(tmp_path, largest=None)
    with pytest.raises(FetchError, match="uint64 does not fit into uint8"):
        run(transfer, ledger)


@pytest.mark.parametrize("left", [0, 10, -1])
def test_a_file_that_was_cut_is_no_block_and_can_be_written_again(tmp_path: Path, left: int) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(4, 8, 8), shards=(4, 8, 8), chunks=(2, 4, 4), dtype="uint8")
    voxels = np.random.default_rng(0).integers(1, 255, array.shape).astype(np.uint8)
    (block,) = plan_files(array)
    write_block(array, block, voxels)
    path = tmp_path / "a.zarr" / block.file
    path.write_bytes(path.read_bytes()[:left])
    assert read_block(array, block) is None
    write_block(array, block, voxels)
    np.testing.assert_array_equal(read_block(array, block), voxels)
