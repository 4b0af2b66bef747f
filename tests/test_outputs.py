from __future__ import annotations

import os
from pathlib import Path

import pytest

from neurotome.errors import RunError
from neurotome.outputs import plan_outputs


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, in which a.png and b.png are."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_free_paths_are_returned_in_their_order(there: Path) -> None:
    outputs = [there / "new" / "deep" / "z.png", there / "c.png"]
    assert plan_outputs(outputs, inputs=[there / "a.png"]) == outputs
    assert sorted(p.name for p in there.iterdir()) == ["a.png", "b.png"]


def test_what_is_there_is_refused_skipped_or_replaced(there: Path) -> None:
    outputs = [there / "a.png", there / "c.png"]
    with pytest.raises(RunError, match=r"a\.png: is there already"):
        plan_outputs(outputs)
    assert plan_outputs(outputs, existing="skip") == [there / "c.png"]
    assert plan_outputs(outputs, existing="replace") == outputs


@pytest.mark.parametrize("existing", ["refuse", "skip", "replace"])
@pytest.mark.parametrize("spelling", ["absolute", "relative", "dotted", "symbolic link", "hard link"])
def test_an_input_is_never_an_output(there: Path, existing: str, spelling: str) -> None:
    output = {
        "absolute": there / "a.png",
        "relative": Path("a.png"),
        "dotted": there / "x" / ".." / "a.png",
        "symbolic link": there / "link.png",
        "hard link": there / "hard.png",
    }[spelling]
    (there / "x").mkdir()
    (there / "link.png").symlink_to(there / "a.png")
    os.link(there / "a.png", there / "hard.png")
    with pytest.raises(RunError, match=r"would overwrite the input .*a\.png"):
        plan_outputs([output], inputs=[there / "a.png"], existing=existing)  # type: ignore[arg-type]


def test_nothing_is_written_into_or_around_an_input_folder(there: Path) -> None:
    (there / "v.zarr" / "0").mkdir(parents=True)
    for output in (there / "v.zarr" / "labels.zarr", there / "v.zarr"):
        with pytest.raises(RunError, match=r"would overwrite the input .*v\.zarr"):
            plan_outputs([output], inputs=[there / "v.zarr"], existing="replace")
    with pytest.raises(RunError, match="would overwrite the input"):
        plan_outputs([there / "v.zarr"], inputs=[there / "v.zarr" / "0"], existing="replace")


def test_two_outputs_of_one_name_are_refused(there: Path) -> None:
    with pytest.raises(RunError, match=r"c\.png: would be written twice, as .*c\.png too"):
        plan_outputs([there / "c.png", Path("c.png")], existing="replace")


def test_folders_in_the_way(there: Path) -> None:
    (there / "folder.png").mkdir()
    (there / "old.zarr").mkdir()
    with pytest.raises(RunError, match=r"folder\.png: is a folder"):
        plan_outputs([there / "folder.png"], existing="replace")
    with pytest.raises(RunError, match=r"old\.zarr: is there already"):
        plan_outputs([there / "old.zarr"])
    assert plan_outputs([there / "old.zarr"], existing="replace") == [there / "old.zarr"]
    with pytest.raises(RunError, match=r"a\.png is a file; expected a folder"):
        plan_outputs([there / "a.png" / "deep" / "c.png"])


@pytest.mark.parametrize("name", ["", ".", "/", "..", "x/.."])
def test_paths_without_a_name_are_refused(there: Path, name: str) -> None:
    with pytest.raises(RunError, match="expected the name of a file"):
        plan_outputs([Path(name)], existing="replace")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_impossible_names_are_refused(there: Path, name: str) -> None:
    with pytest.raises(RunError, match="cannot be used as a path"):
        plan_outputs([there / name])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_folders_that_may_not_be_written_to(there: Path) -> None:
    (there / "closed").mkdir(mode=0o500)
    with pytest.raises(RunError, match="may not be written to"):
        plan_outputs([there / "closed" / "c.png"])


def test_a_link_to_nothing_counts_as_there(there: Path) -> None:
    (there / "link.png").symlink_to(there / "gone")
    with pytest.raises(RunError, match="is there already"):
        plan_outputs([there / "link.png"])
