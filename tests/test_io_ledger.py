import threading

import pytest

from neurotome.errors import RunError
from neurotome.io.ledger import Ledger


def test_blocks_are_remembered_and_checked(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    ledger = Ledger(tmp_path / "ledger.jsonl", tmp_path, {"host": "x"})
    ledger.add("a", dtype="uint8")
    again = Ledger(tmp_path / "ledger.jsonl", tmp_path, {"host": "x"})
    assert again.entries == ledger.entries
    assert again.holds("a")
    assert not again.holds("b")
    (tmp_path / "a").write_text("damaged")
    assert not again.holds("a")


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
    (tmp_path / "a").write_text("a")
    path = tmp_path / "ledger.jsonl"
    Ledger(path, tmp_path, {}).add("a")
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[1][:30])
    ledger = Ledger(path, tmp_path, {})
    assert list(ledger.entries) == ["a"]
    assert path.read_text() == whole
    path.write_bytes(whole.encode() + b"\xff\x00{")
    assert list(Ledger(path, tmp_path, {}).entries) == ["a"]


def test_lines_of_threads_do_not_mix(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", tmp_path, {})
    names = [f"{i}" for i in range(40)]
    for name in names:
        (tmp_path / name).write_text(name)
    threads = [threading.Thread(target=ledger.add, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(Ledger(ledger.path, tmp_path, {}).entries) == set(names)


@pytest.mark.parametrize("content", ["", "nonsense\n", "[]\n", "{}\n"])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "ledger.jsonl"
    path.write_text(content)
    with pytest.raises(RunError, match="is no ledger"):
        Ledger(path, tmp_path, {})
    assert path.read_text() == content


def test_a_source_that_gave_nothing_can_be_corrected(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "zarr.json").write_text("{}")
    Ledger(tmp_path / "ledger.jsonl", store, {"host": "x"})
    Ledger(tmp_path / "ledger.jsonl", store, {"host": "y"})
    (store / "block").write_text("")
    with pytest.raises(RunError, match='"host": "y"'):
        Ledger(tmp_path / "ledger.jsonl", store, {"host": "x"})


def test_another_source_is_refused(tmp_path):
    (tmp_path / "a").write_text("")
    Ledger(tmp_path / "ledger.jsonl", tmp_path, {"host": "x"}).add("a")
    with pytest.raises(RunError, match=r'"host": "x".*"host": "y"'):
        Ledger(tmp_path / "ledger.jsonl", tmp_path, {"host": "y"})
