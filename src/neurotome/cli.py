"""Table: subcommand -> function. Everything else here is how errors and results reach a terminal."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
import warnings
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from neurotome import __version__
from neurotome.errors import NeurotomeError, SettingsError, explain_system_error
from neurotome.stopping import StopRequest, TerminatedError

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.config import Dict

COMMANDS = {
    "demo": ("neurotome.experiments.demo", "The main job on a phantom: data, training, comparison, report."),
    "describe": ("neurotome.report.describe", "Statistics of a dataset, sample and augmentation pictures."),
    "fetch": ("neurotome.datasets.fetch", "Get MTNeuro, or a box of any volume, from BossDB; goes on where it was."),
    "phantom": ("neurotome.datasets.phantom.make", "Write a synthetic dataset in the likeness of brain microCT."),
    "train": ("neurotome.experiments.train", "Train a network, score it on every split, write a report."),
    "fine-tune": ("neurotome.experiments.fine_tune", "Make a trained model better by a few annotated images."),
    "baseline": ("neurotome.experiments.baseline", "Train a pixel classifier, score it on every split, write a report."),
    "grid": ("neurotome.experiments.grids.grid", "Train and score every setting of a grid; several processes may share it."),
    "search": ("neurotome.experiments.searches.search", "Find good settings by many short trainings (extra: hpo)."),
    "compare": ("neurotome.experiments.compare", "Draw the scores of several runs side by side."),
    "evaluate": ("neurotome.experiments.evaluate", "Score a trained model on a split of a dataset."),
    "reproduce": (
        "neurotome.experiments.reproduction.reproduce",
        "The founding report beside what is measured.",
    ),
    "predict": ("neurotome.inference.predict", "Label an image, a stack, a folder or a whole volume with a trained model."),
    "suggest": ("neurotome.annotating.suggest", "Where to annotate next: a list, pictures and crops ready to annotate."),
    "crop": ("neurotome.annotating.crop", "Cut a small piece of an image and its labels out, to be corrected by hand."),
    "collect": ("neurotome.annotating.collect", "Put corrected crops into a dataset, for fine-tune to learn from."),
    "interpolate": ("neurotome.annotating.interpolate", "Label the slices between labelled ones, with their uncertainty."),
    "measure": ("neurotome.experiments.measure", "From labels to numbers: volume fractions and cells, with intervals."),
    "view": ("neurotome.viewing.view", "Look at an image and its labels in a browser, or in napari (extras: view, napari)."),
    "export": ("neurotome.sharing.export", "Make of a model an ONNX file, a bioimage.io package, or a folder for a hub."),
    "verify": ("neurotome.inference.verify", "Check every block of a predicted OME-Zarr against its checksum; repair."),
}

BUILT_IN = {"fine-tune": "fine_tune"}
"""Built-in settings that a command begins with; those of --config win over them."""

STOPPED = "stopped. Files that were finished are kept, half-written ones are not"
"""What is true of every command; `GO_ON` says what to do next."""

GO_ON = {
    **dict.fromkeys(
        ("demo", "fetch", "train", "fine-tune", "baseline", "grid", "search", "reproduce"),
        "; the same command goes on from there.",
    ),
    "predict": "; the same command does the others, with --existing skip where the output is no .zarr.",
}


@cache
def make_app() -> App:
    """Returns the command line; a command's module is imported when the command is given."""
    import cyclopts

    app = cyclopts.App(
        name="neurotome",
        version=__version__,
        help="Segment brain microstructure in X-ray microCT: train, compare, apply and measure.",
        help_epilogue=(
            "Every option can stand in a YAML file given with --config FILE, or --config NAME for one that comes with "
            "neurotome; options win over the file. --debug shows the traceback of an error. Exit status: 0 done, 1 error, "
            "2 wrong usage, 130 stopped by Ctrl-C, 143 stopped by SIGTERM."
        ),
        default_parameter=cyclopts.Parameter(negative_iterable=()),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for name, (module, summary) in COMMANDS.items():
        app.command(f"{module}:{name.replace('-', '_')}", name=name, help=summary)
    return app


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line and exits.

    The status is 0 when all is done, 1 after an error that the message explains, 2 after wrong usage, 130 where Ctrl-C and
    143 where SIGTERM has stopped it.
    """
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    if debug:
        tokens.remove("--debug")
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # notebooks have streams of their own
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter must not cost the result
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is usual:  # nohup ignores SIGINT, and so do we then
            signal.signal(number, _stop)
    command = next((token for token in tokens if token in COMMANDS), "")
    try:
        app = make_app()
        app.config = _take_config(tokens, command)
        _show(app(tokens))
        sys.stdout.flush()
    except NeurotomeError as error:
        _fail(error, str(error), debug)
    except KeyboardInterrupt as error:
        status = 128 + (signal.SIGTERM if isinstance(error, TerminatedError) else signal.SIGINT)
        _fail(error, STOPPED + GO_ON.get(command, "."), debug, status)
    except BrokenPipeError:
        # whoever reads, such as head, has read enough; what is left to write goes nowhere, so that the exit is quiet too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)
    except Exception as error:
        message = explain_system_error(error)
        if message is None:
            raise
        _fail(error, message, debug)
    sys.exit(0)


def _take_config(tokens: list[str], command: str) -> list[Dict]:
    """Removes `--config FILE` from the tokens, of which none may be empty, and returns the settings that the file holds."""
    built_in = BUILT_IN.get(command, "")
    for before, token in zip(["", *tokens], tokens, strict=False):
        if not token or (token.startswith("--") and token.endswith("=")):
            raise SettingsError(f"found an empty text after {before or 'neurotome'}; expected a value. Give one.")
    index = next((i for i, token in enumerate(tokens) if token.partition("=")[0] == "--config"), None)
    configs = []
    if index is not None:
        _, assigned, value = tokens.pop(index).partition("=")
        if not assigned:
            if index == len(tokens):
                raise SettingsError(
                    "--config: found nothing after it, expected a YAML file or the name of built-in settings."
                )
            value = tokens.pop(index)
        configs.append(_read_config(value, command))
    return [*configs, _read_config(built_in, command)] if built_in else configs


def _read_config(name: str, command: str) -> Dict:
    """Returns the settings of a file, or of a name of built-in ones."""
    from cyclopts.config import Dict

    from neurotome.documents import find_config, read_yaml

    path = find_config(name)
    content = read_yaml(path, SettingsError, "Expected settings such as 'train: {epochs: 10}'.")
    parameters = make_app()[command].assemble_argument_collection() if command else []
    groups = {name for parameter in parameters if parameter.children for name in parameter.names}
    _check_plain(dict(content), groups, path)
    # under the command's name, because `train` is a command and a group of settings too
    return Dict({command: content}, source=name)


def _check_plain(content: dict[Any, Any], groups: set[str], path: Path, key: str = "") -> None:
    """Checks that settings are named by text, groups hold settings, and the others text, numbers or lists, but no dates."""
    for name, value in content.items():
        where = f"{key}.{name}" if key else str(name)
        if not isinstance(name, str):
            raise SettingsError(f"{path}: found the key {where}, a {type(name).__name__}; expected the name of a setting.")
        if isinstance(value, dict):
            _check_plain(value, groups, path, where)
        elif f"--{where.replace('_', '-')}" in groups:
            raise SettingsError(f"{path}: {where} is {value!r:.50}; expected settings, as in '{where}: {{name: value}}'.")
        for entry in value if isinstance(value, list) else [value]:
            if not isinstance(entry, (str, int, float, dict, type(None))):
                raise SettingsError(f"{path}: {where} holds {entry!r:.50}; expected text or a number. Quote it.")


def _show(result: Any) -> None:
    """Prints what a command returns: paths, names with what they mean, or what prints itself as a table."""
    if type(result) is dict:  # statistics and scores are tables of their own
        width = max(map(len, result))
        result = [f"{name:<{width}}  {meaning}" for name, meaning in result.items()]
    if isinstance(result, list):
        print(*result, sep="\n")
    elif result is not None:
        print(result)


def _fail(error: BaseException, message: str, debug: bool, status: int = 1) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    sys.stderr.write(f"neurotome: {message}\n")
    sys.exit(status)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        sys.stderr.write(f"neurotome: note: {message}\n")


def _stop(number: int, frame: FrameType | None) -> None:
    """Answers the first request to end with an exception, so that files are closed; modules that load cannot take one."""
    request = StopRequest(number)

    def lose_patience(again: int, _: object) -> None:
        if not request.is_echoed_by(again):
            _leave(again)

    signal.signal(signal.SIGINT, lose_patience)
    signal.signal(signal.SIGTERM, lose_patience)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _leave(number)  # torch half loaded crashes at the exit
        frame = frame.f_back
    raise request.to_error()


def _leave(number: int) -> NoReturn:
    """Ends the process at once."""
    os.write(2, f"neurotome: {STOPPED}.\n".encode())
    os._exit(128 + number)
