"""neurotome from Python: names, keywords, and the scripts of docs/from_python.md."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from cyclopts import Parameter

import neurotome
from conftest import make_images, write_dataset
from neurotome.errors import SettingsError
from neurotome.keywords import accept_keywords


@dataclass(frozen=True)
class Inner:
    seed: int = 0
    rate: float | Literal["auto"] = "auto"
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    first: Inner = Inner()
    second: Inner = dataclasses.field(default_factory=lambda: Inner(seed=5))
    title: str = "none"
    mode: Literal["a", "b"] = "a"


@accept_keywords
def command(
    data: str | Path,
    *,
    out: Path | None = None,
    settings: Annotated[Outer, Parameter(name="*")] = Outer(),
    extra: Inner = Inner(),
) -> tuple[Any, ...]:
    """Does it."""
    return data, out, settings, extra


def test_keywords_are_fields_of_settings() -> None:
    assert command("d", out="o", title="x", mode="b") == ("d", Path("o"), Outer(title="x", mode="b"), Inner())
    assert command("d", **{"first.seed": 3})[2] == Outer(first=Inner(seed=3))
    assert command("d", **{"extra.seed": 3})[3] == Inner(seed=3)
    assert command("d", first={"seed": 3, "sizes": [1, 2]})[2] == Outer(first=Inner(3, sizes=(1, 2)))
    assert command("d", first=Inner(rate=1))[2] == Outer(first=Inner(rate=1))
    assert command("d", settings={"title": "x"}, mode="b")[2] == Outer(title="x", mode="b")
    assert command("d", settings=Outer(title="x"), mode="b")[2] == Outer(title="x", mode="b")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"titel": "x"}, r"unknown keyword 'titel'\. Did you mean 'title'"),
        ({"seed": 1}, r"'seed' may mean first\.seed or second\.seed or extra\.seed; say which, as in \*\*\{\"first\.seed\""),
        ({"first": {"sede": 1}}, r"unknown field of first 'sede'\. Did you mean 'seed'"),
        ({"mode": "c"}, r"mode is 'c'; expected Literal\['a', 'b'\]"),
        ({"first.seed": "1"}, r"first\.seed is '1'; expected int"),
        ({"first.seed": True}, r"first\.seed is True; expected int"),
        ({"first.rate": "fast"}, r"first\.rate is 'fast'; expected float | Literal"),
        ({"first.sizes": ["a"]}, r"first\.sizes is \('a',\); expected tuple"),
        ({"first": 3}, r"first is 3; expected Inner"),
    ],
)
def test_keywords_that_cannot_work_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        command("d", **keywords)


def test_help_lists_the_keywords() -> None:
    assert "first.rate" in command.__doc__
    assert "max_time" in (neurotome.train.__doc__ or "")


def test_several_paths_may_be_a_list() -> None:
    @accept_keywords
    def several(*runs: Path, out: Path) -> tuple[Any, ...]:
        return runs, out

    for runs in (("a", "b"), (["a", "b"],)):
        assert several(*runs, out="c") == ((Path("a"), Path("b")), Path("c"))


@pytest.mark.parametrize("name", neurotome.__all__)
def test_public_names_are_there_and_no_module_takes_them(name: str) -> None:
    assert importlib.util.find_spec(f"neurotome.{name}") is None
    assert callable(getattr(neurotome, name))
    assert name in dir(neurotome)


def test_importing_neurotome_is_quick() -> None:
    program = (
        "import sys, neurotome; print(len([n for n in sys.modules if n.split('.')[0] in ('numpy', 'torch', 'cyclopts')]))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "0\n"


@pytest.mark.slow
def test_the_pages_scripts_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand there, but for trainings of two steps."""
    page = (Path(__file__).parents[1] / "docs/from_python.md").read_text(encoding="utf-8")
    scripts = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert scripts
    write_dataset(tmp_path / "my_data")
    monkeypatch.chdir(tmp_path)
    quick = {"epochs": 1, "steps_per_epoch": 2, "encoder": "mobilenetv3_small_050", "patch": 32, "batch": 2}
    train = neurotome.train
    monkeypatch.setattr(neurotome, "train", lambda *a, **k: train(*a, **{**k, **quick}))
    names: dict[str, Any] = {"image": make_images(9)[0]}
    for script in scripts:
        exec(script, names)
    assert names["report"].is_file()
    assert names["labels"].shape == names["image"].shape
    labels, output = names["labels"], tmp_path / "labels.png"
    neurotome.predict("runs/first", names["image"], output, confidence=True)
    assert output.is_file()
    assert (tmp_path / "labels_confidence.png").is_file()
    assert np.array_equal(neurotome.predict(Path("runs/first"), names["image"], tile=64), labels)
