"""The documentation: it builds, what its pages say to run does, and none names a command or an option that is not there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import neurotome
from conftest import make_images, run, write_dataset
from neurotome.cli import COMMANDS, make_app
from neurotome.datasets.phantom import stream
from neurotome.documents import find_config
from neurotome.experiments import fine_tune

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))

SMALLER = re.compile(r'<!-- tested with: "(.+?)" for "(.*?)" -->')
"""What a tutorial's test puts for some of its words, so that it takes seconds; each has to occur."""

EXECUTED = re.compile(r"<!-- executed -->\n```bash\n(.*?)```\n(?:```text\n(.*?)```\n)?", re.DOTALL)
"""Commands of a how-to page that its test executes, the last of which fails where a message follows."""

HOW_TO = [page for page in PAGES if EXECUTED.search(page.read_text(encoding="utf-8"))]

BLOCK = re.compile(r"```(bash|yaml)\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ |time )*((?:neurotome|python benchmarks/\S+\.py) .*)")


def read_commands(page: Path) -> list[str]:
    """Returns the command lines in a page's blocks, indented ones too; one that goes on after a backslash is one."""
    text = re.sub(r"\\\n\s*", " ", EXECUTED.sub("", page.read_text(encoding="utf-8")))
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


def write_wrong_data(folder: Path) -> None:
    """Writes the datasets that docs/problems.md names after what is wrong with them."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder / "my_data", folder / name))

    def change(path: Path, **settings: object) -> None:
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text(encoding="utf-8")), **settings}), encoding="utf-8")

    grey, labels = make_images(0)
    wrong = labels.copy()
    wrong[0, :7] = 9
    Image.fromarray(wrong).save(copy("wrong_labels") / "labels/a.png")
    Image.fromarray(labels[:-1]).save(copy("smaller_labels") / "labels/a.png")
    Image.fromarray(np.stack([grey, grey // 2, grey], -1)).save(copy("coloured") / "images/a.png")
    cut = copy("cut_file") / "images/a.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    masks = copy("masks") / "labels"
    for name in "abcd":
        Image.fromarray(np.where(labels, 255, 0).astype(np.uint8)).save(masks / f"{name}.png")
    change(copy("misspelt") / "dataset.yaml", voxelsize=1)
    change(copy("leaking") / "dataset.yaml", splits={"train": ["a", "b"], "val": ["b"]})
    change(copy("scribbles") / "dataset.yaml", classes={1: "vessel", 2: "cell"}, ignore=0)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the executed commands of how-to pages find: `my_data`, an image, and two trained models."""
    folder = tmp_path_factory.mktemp("workplace")
    write_dataset(folder / "my_data")
    write_wrong_data(folder)
    Image.fromarray(make_images(9)[0]).save(folder / "new_slice.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("baseline", "my_data", "--out", "runs/lr", "--learner", "lr", "--features", "identity") == 0
    shutil.copytree(folder / "runs/lr", folder / "runs/first")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # which a terminal shows as notes
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_page_says_what_happens(
    page: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shutil.copytree(workplace, tmp_path / "here"))
    text = page.read_text(encoding="utf-8")
    for language, block in BLOCK.findall(text):
        if language == "yaml":
            Path(block.splitlines()[0].removeprefix("# ")).write_text(block, encoding="utf-8")
    for block, message in EXECUTED.findall(text):
        capsys.readouterr()
        *before, last = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
        assert all(run(*arguments) == 0 for arguments in before)
        assert (run(*last) == 0) == (not message), last
        said = "".join(capsys.readouterr())
        expected = re.escape(" ".join(message.split())).replace(r"\.\.\.", ".*")  # a message is one line
        assert re.search(expected, said), said


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
