import json
import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from neurotome.errors import RunError
from neurotome.io.block_ledger import BlockLedger, read_head

MODEL = {"model": {"sha256": "aa"}, "halo": 32, "input": {"sha256": "cc"}}


def add(ledger, block, **facts):
    ledger.add(block, **{"sha256": f"digest {block}", "counts": {0: 7, 255: 1}, "tiles": "all", **facts})


def test_blocks_are_found_by_every_reader(tmp_path):
    first, second = (BlockLedger(tmp_path, MODEL, writer=name) for name in ("a", "b/c:d"))
    add(first, 3, seconds=1.5)
    add(second, 4, tiles=[8, 9], confidence_sha256="x")
    assert second.find(3) is None
    second.refresh()
    entry = second.find(3)
    assert (entry["sha256"], entry["counts"], entry["tiles"], entry["seconds"]) == ("digest 3", {0: 7, 255: 1}, "all", 1.5)
    again = BlockLedger(tmp_path, MODEL, writer="e")
    assert dict(again.find_all()) == {3: first.find(3), 4: second.find(4)}
    assert again.find(4)["tiles"] == [8, 9]
    assert again.find(5) is None


def test_the_last_line_of_a_block_counts_whatever_the_clocks_say(tmp_path, monkeypatch):
    monkeypatch.setattr("neurotome.io.block_ledger._now", lambda: "2020-01-01")
    first = BlockLedger(tmp_path, MODEL, writer="z")
    add(first, 0, sha256="old")
    add(first, 1)
    monkeypatch.setattr("neurotome.io.block_ledger._now", lambda: "2010-01-01")
    verifier = BlockLedger(tmp_path, MODEL, writer="m")
    verifier.undo(0, "a byte has flipped")
    assert verifier.find(0) is None
    assert dict(BlockLedger(tmp_path, MODEL, writer="n").find_all()).keys() == {1}
    second = BlockLedger(tmp_path, MODEL, writer="a")
    add(second, 0, sha256="new")
    for ledger in (first, second, BlockLedger(tmp_path, MODEL, writer="o")):
        ledger.refresh()
        assert ledger.find(0)["sha256"] == "new"


def test_failures_are_remembered_until_the_block_is_done(tmp_path):
    ledger = BlockLedger(tmp_path, MODEL, writer="a")
    add(ledger, 2)
    ledger.fail(1, "ValueError: poison", attempts=3)
    ledger.fail(2, "its second tile", attempts=1)
    assert ledger.find(1) is None
    assert ledger.find(2)["sha256"] == "digest 2"
    again = BlockLedger(tmp_path, MODEL, writer="b")
    assert {block: entry["message"] for block, entry in again.failures.items()} == {
        1: "ValueError: poison",
        2: "its second tile",
    }
    add(again, 2)
    add(again, 1)
    assert again.failures == {}
    again.fail(1, "verified and done anew, which failed", attempts=3)
    assert BlockLedger(tmp_path, MODEL, writer="c").failures.keys() == {1}


@pytest.mark.parametrize("left", [b'{"block": 1, "turn": 1, "sha', b"\x00" * 30, b"\xff{", b"[]\n", b'"x": 1}\n'])
def test_a_line_that_was_cut_off_is_dropped(tmp_path, left):
    ledger = BlockLedger(tmp_path, MODEL, writer="a")
    add(ledger, 0)
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(left)
    again = BlockLedger(tmp_path, MODEL, writer="a")
    assert dict(again.find_all()).keys() == {0}
    add(again, 1)
    add(again, 2)
    ledger.refresh()
    assert dict(ledger.find_all()).keys() == {0, 1, 2}


def test_a_line_that_is_still_being_written_is_read_when_whole(tmp_path):
    ledger = BlockLedger(tmp_path, MODEL, writer="a")
    add(ledger, 0)
    line = (tmp_path / "a.jsonl").read_bytes()
    with (tmp_path / "b.jsonl").open("ab", buffering=0) as file:
        for part in (line.replace(b'"block": 0', b'"block": 1')[:50], line[50:]):
            file.write(part)
            ledger.refresh()
    assert ledger.find(1)["sha256"] == "digest 0"


def test_lines_of_threads_do_not_mix(tmp_path):
    ledger = BlockLedger(tmp_path, MODEL, writer="a")
    threads = [threading.Thread(target=add, args=(ledger, block), kwargs={"text": "x" * 500}) for block in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(BlockLedger(tmp_path, MODEL, writer="b").find_all()).keys() == set(range(40))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_told_with_the_path(tmp_path):
    ledger = BlockLedger(tmp_path, MODEL, writer="a")
    (tmp_path / "a.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.jsonl'"):
        add(ledger, 0)
    assert ledger.find(0) is None


def begin(folder, ready, number):
    ready.wait()
    ledger = BlockLedger(folder, MODEL, writer=f"{number}", chosen={"halo": number})
    add(ledger, number, halo=ledger.head["chosen"]["halo"])


def test_of_jobs_that_begin_at_once_one_does_and_all_keep_to_its_choices(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(4)
    jobs = [context.Process(target=begin, args=(tmp_path / "new", ready, number)) for number in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    ledger = BlockLedger(tmp_path / "new", MODEL, writer="x")
    assert {entry["halo"] for _, entry in ledger.find_all()} == {read_head(tmp_path / "new")["chosen"]["halo"]}
    assert dict(ledger.find_all()).keys() == set(range(4))
    assert not list((tmp_path / "new").glob(".*"))


def test_other_settings_are_refused_with_the_difference(tmp_path):
    BlockLedger(tmp_path, MODEL, writer="a")
    other = {**MODEL, "model": {"sha256": "bb"}, "axes": "zyx", "input": {"sha256": "cc"}}
    message = r"was begun with something else: axes .found nothing, wanted 'zyx'.; model.sha256 .found 'aa', wanted 'bb'.. "
    with pytest.raises(RunError, match=message):
        BlockLedger(tmp_path, other, writer="b")
    with pytest.raises(RunError, match=r"k108 \(found nothing, wanted 1\); \.\.\. \(103 differ\)") as refused:
        BlockLedger(tmp_path, {f"k{i}": 1 for i in range(10, 110)}, writer="b")
    assert "--overwrite" in str(refused.value)
    BlockLedger(tmp_path, {**MODEL, "halo": 32.0}, writer="b")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": 1}', '{"format": 1, "fingerprint": [], "chosen": {}}'])
def test_a_damaged_head_is_refused(tmp_path, content):
    (tmp_path / "head.json").write_text(content)
    with pytest.raises(RunError, match="Restore it, or begin anew with --overwrite"):
        BlockLedger(tmp_path, MODEL, writer="a")


def test_another_format_is_refused_with_both_versions(tmp_path):
    BlockLedger(tmp_path, MODEL, writer="a")
    head = {**json.loads((tmp_path / "head.json").read_text()), "format": 2, "neurotome": "9.9"}
    (tmp_path / "head.json").write_text(json.dumps(head))
    with pytest.raises(RunError, match=r"found format 2, of neurotome '9.9'; neurotome 0.* reads format 1"):
        read_head(tmp_path)


def test_blocks_without_a_head_are_refused(tmp_path):
    add(BlockLedger(tmp_path, MODEL, writer="a"), 0)
    (tmp_path / "head.json").unlink()
    assert read_head(tmp_path) is None
    with pytest.raises(RunError, match=r"no head\.json"):
        BlockLedger(tmp_path, MODEL, writer="a")


def test_many_blocks_are_read_at_once(tmp_path):
    ledger = BlockLedger(tmp_path, MODEL, writer="a")
    add(ledger, 0, sha256="5" * 64, counts=dict.fromkeys(range(6), 1000), seconds=1.234)
    line = (tmp_path / "a.jsonl").read_text()
    for writer in range(100):
        lines = (line.replace('"block": 0', f'"block": {block}') for block in range(writer, 100_000, 100))
        (tmp_path / f"{writer}.jsonl").write_text("".join(lines))
    start = time.process_time()
    ledger = BlockLedger(tmp_path, MODEL, writer="b")
    assert time.process_time() - start < 2
    assert ledger.find(99_999)["sha256"] == "5" * 64
