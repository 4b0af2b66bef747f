"""The documentation: it builds, its tutorials run, and no page names a command or an option that is not there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import neurotome
from conftest import run
from neurotome.cli import COMMANDS, make_app
from neurotome.datasets.phantom import stream
from neurotome.documents import find_config
from neurotome.experiments import fine_tune

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))

SMALLER = re.compile(r'<!-- tested with: "(.+?)" for "(.*?)" -->')
"""What a tutorial's test puts for some of its words, so that it takes seconds; each has to occur."""

BLOCK = re.compile(r"```(bash|yaml)\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ |time )*((?:neurotome|python benchmarks/\S+\.py) .*)")


def read_commands(page: Path) -> list[str]:
    """Returns the command lines in a page's blocks, indented ones too; one that goes on after a backslash is one."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    lines = [line for language, block in BLOCK.findall(text) if language == "bash" for line in block.splitlines()]
    lines += [line.strip() for line in BLOCK.sub("", text).splitlines() if line.startswith("    ")]
    return [match[1] for line in lines if (match := COMMAND.match(line))]


def test_pages_build_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", ROOT / "docs", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "reference/commands.html").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"<h2>{name}<" not in commands] == []
    functions = (tmp_path / "reference/python.html").read_text(encoding="utf-8")
    assert [name for name in neurotome.__all__ if f'id="neurotome.{name}"' not in functions] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # which a terminal shows as notes
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_as_it_stands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("REPLAYED", "CHECKED"):  # of many slices of synthetic tissue
        monkeypatch.setattr(stream, name, 2)
    monkeypatch.setattr(fine_tune, "ALPHAS", (0.0, fine_tune.USUAL_ALPHA))
    text = page.read_text(encoding="utf-8")
    blocks = SMALLER.sub("", text)
    for shown, tested in SMALLER.findall(text):
        assert shown in blocks, shown
        blocks = blocks.replace(shown, tested)
    for language, block in BLOCK.findall(blocks):
        if language == "yaml":
            Path(block.splitlines()[0].removeprefix("# ")).write_text(block, encoding="utf-8")
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "neurotome"
            assert run(*arguments) == 0, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_on_a_page_are_there_with_their_options(page: Path) -> None:
    for command in read_commands(page):
        plain = re.sub(r"[\[\]](?!\d)| -- .*", "", command).replace("${SLURM_ARRAY_TASK_ID}", "1")
        program, *arguments = shlex.split(plain, comments=True)
        if program == "python":
            script = (ROOT / arguments[0]).read_text(encoding="utf-8")
            options = [word.partition("=")[0] for word in arguments[1:] if word.startswith("--")]
            assert not [option for option in options if f'"{option}"' not in script], command
            continue
        if "--config" in arguments:
            at = arguments.index("--config")
            del arguments[at]
            if not (name := arguments.pop(at)).endswith(".yaml"):
                assert find_config(name).is_file()
        make_app().parse_args(arguments, exit_on_error=False, print_error=False)
