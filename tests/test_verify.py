"""Bit rot: whatever happens to the files of a segmentation is found, named, and put right by the command that wrote it."""

import subprocess
import sys

import numpy as np
import pytest
import zarr

from conftest import run
from neurotome.atomic import hold_output
from neurotome.blocks import Grid
from neurotome.classes import ClassSet
from neurotome.engines.serial import Serial
from neurotome.errors import ImageError, RunError
from neurotome.inference.verify import VerifySettings, verify
from neurotome.io.block_ledger import BlockLedger
from neurotome.io.label_store import count_ids, create_label_store, name_confidence, open_label_store
from neurotome.io.pyramid import build_pyramid

SHAPE, BLOCK = (4, 12, 300), (4, 8, 128)
GRID = Grid(SHAPE, BLOCK, BLOCK)
LABELS = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
LABELS[GRID.place(4)] = 255  # which takes no file
FINGERPRINT = {"model": "x"}


def write_blocks(out, *, without=(), version="0.5"):
    """Writes labels and confidence as a job does, all blocks that are not written down."""
    classes = ClassSet(("background", "vessel", "cell"))
    labels = create_label_store(out, SHAPE, classes=classes, block_zyx=BLOCK, version=version)
    confidence = create_label_store(name_confidence(out), SHAPE, classes=None, block_zyx=BLOCK, version=version)
    ledger = BlockLedger(out / "0" / "ledger", FINGERPRINT, writer=f"{len(list((out / '0/ledger').glob('*')))}")
    missing = [block for block in range(len(GRID)) if block not in without and ledger.find(block) is None]
    for block in missing:
        place = GRID.place(block)
        ledger.add(
            block,
            sha256=labels.write_block(place, LABELS[place]),
            confidence_sha256=confidence.write_block(place, LABELS[place] + 1),
            counts=count_ids(LABELS[place]),
            tiles="all",
        )
    for store in (labels, confidence):
        build_pyramid(store, Serial(1, 0).run)
    return missing


@pytest.fixture
def out(tmp_path):
    assert write_blocks(tmp_path / "out.zarr") == list(range(6))
    return tmp_path / "out.zarr"


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-7])


def remove(file):
    file.unlink()


def rewrite(file):
    """Other labels, in a file that is sound."""
    store = open_label_store(file.parents[4])
    z, y, x = (int(part) for part in file.parts[-3:])
    place = GRID.place((z * 2 + y) * 3 + x)
    store.write_block(place, np.ones([part.stop - part.start for part in place], np.uint8))


def test_what_is_as_it_was_written_passes(out, capsys):
    assert run("verify", out, "--deep") == 0
    printed = capsys.readouterr().out
    assert "6 of 6 are written down as done" in printed
    assert "coarser levels  2" in printed


@pytest.mark.parametrize(
    ("harm", "what"),
    [(flip, "other bytes"), (truncate, "other bytes"), (remove, "is missing"), (rewrite, "other bytes")],
)
@pytest.mark.parametrize(("name", "block"), [("0/0/0", 0), ("0/1/2", 5)], ids=["inside", "at the border"])
def test_a_damaged_block_is_found_and_done_again(out, capsys, harm, what, name, block):
    harm(out / "0" / "c" / name)
    assert run("verify", out) == 1
    message = capsys.readouterr().err
    assert "1 blocks are not what was written down" in message
    assert f"out.zarr/0, block {block} (" in message
    assert what in message
    assert "--repair" in message
    assert run("verify", out, "--repair") == 0
    assert f"block {block} (" in capsys.readouterr().out
    assert open_label_store(out).read(GRID.place(block)).min() == 255
    assert write_blocks(out) == [block]
    np.testing.assert_array_equal(open_label_store(out).read(GRID.place(block)), LABELS[GRID.place(block)])
    assert run("verify", out, "--deep") == 0


def test_blocks_of_many_files_are_checked_too(tmp_path):
    out = tmp_path / "image.zarr" / "labels" / "tissue"
    create_label_store(tmp_path / "image.zarr", SHAPE, classes=None, block_zyx=BLOCK, version="0.4")
    write_blocks(out, version="0.4")
    assert name_confidence(out) == tmp_path / "image_tissue_confidence.zarr"
    verify(out, settings=VerifySettings(deep=True))
    remove(next(path for path in (out / "0/0").rglob("2") if path.is_file()))
    with pytest.raises(RunError, match=r"1 blocks are not .*\ntissue/0, block 2 \(0:4,0:8,256:300\): "):
        verify(out)
    verify(out, settings=VerifySettings(repair=True))
    assert write_blocks(out, version="0.4") == [2]
    verify(out)


def test_damaged_confidence_is_found_and_done_again(out):
    flip(name_confidence(out) / "0/c/0/0/1")
    with pytest.raises(RunError, match=r"out_confidence\.zarr/0, block 1 \(0:4,0:8,128:256\): holds other bytes"):
        verify(out)
    verify(out, settings=VerifySettings(repair=True))
    assert write_blocks(out) == [1]
    verify(out)


@pytest.mark.parametrize("harm", [flip, truncate, remove])
def test_a_damaged_coarser_level_is_made_again_at_once(out, harm):
    expected = zarr.open_array(out / "1")[:]
    harm(next(path for path in (out / "1/c").rglob("*") if path.is_file()))
    with pytest.raises(RunError, match=r"out\.zarr/1, block 0"):
        verify(out)
    assert "made again" in verify(out, settings=VerifySettings(repair=True))["repaired"]
    assert write_blocks(out) == []
    np.testing.assert_array_equal(zarr.open_array(out / "1")[:], expected)
    verify(out)


def test_a_block_that_nobody_wrote_down_is_found(out, tmp_path):
    """What a kill between the data and their line leaves, where nobody gave the command again."""
    other = tmp_path / "other.zarr"
    write_blocks(other, without=[3])
    (other / "0/c/0/1").mkdir(exist_ok=True)
    (other / "0/c/0/1/0").write_bytes((out / "0/c/0/1/0").read_bytes())
    (other / "0/c/0/1/.0.7.ab.partial").write_bytes(b"half")
    with pytest.raises(RunError, match=r"block 3 .*: is there, but nobody wrote down that it is done"):
        verify(other)
    assert "5 of 6" in verify(other, settings=VerifySettings(repair=True))["blocks"]
    assert not list((other / "0/c/0/1").glob("*0*"))
    assert write_blocks(other) == [3]
    verify(other)


def test_wrong_counts_are_found_by_counting(out):
    ledger = BlockLedger(out / "0/ledger", FINGERPRINT, writer="x")
    ledger.add(2, **{**{key: ledger.find(2)[key] for key in ("sha256", "confidence_sha256", "tiles")}, "counts": {0: 5}})
    verify(out)
    with pytest.raises(RunError, match=r"block 2 .*: has its bytes, but other counts"):
        verify(out, settings=VerifySettings(deep=True))


def test_all_damage_is_counted_and_some_of_it_listed(out, monkeypatch):
    monkeypatch.setattr("neurotome.inference.verify.MOST_LISTED", 2)
    for file in (out / "0/c").rglob("?"):
        if file.is_file():
            remove(file)
    with pytest.raises(RunError, match=r"5 blocks are not.*\n.*block 0.*\n.*block 1.*\n\.\.\.\n"):
        verify(out)


def test_nothing_is_repaired_under_a_running_job(out):
    remove(out / "0/c/0/0/0")
    script = "import sys; from pathlib import Path; from neurotome.atomic import hold_output\n"
    script += "with hold_output(Path(sys.argv[1]), (1, 2)): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(out / "0/ledger")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        job.stdout.readline()
        with pytest.raises(RunError, match=f"process {job.pid} on .* is working on this output, part 1 of 2"):
            verify(out, settings=VerifySettings(repair=True))
        with pytest.raises(RunError, match="is missing"):
            verify(out)
        job.stdin.close()
    with hold_output(out / "0/ledger"):
        pass


def test_what_is_no_output_of_predict_is_refused(tmp_path):
    with pytest.raises(ImageError, match="no labels or grey map that neurotome wrote"):
        verify(tmp_path)
    create_label_store(tmp_path / "out.zarr", SHAPE, classes=None, block_zyx=BLOCK)
    with pytest.raises(ImageError, match="found no ledger of blocks"):
        verify(tmp_path / "out.zarr")
