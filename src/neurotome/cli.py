"""Table: subcommand -> function. Everything else here is how errors and results reach a terminal."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import cyclopts
import yaml

from neurotome import __version__
from neurotome.errors import NeurotomeError, SettingsError

app = cyclopts.App(
    name="neurotome",
    version=__version__,
    help="Segment brain microstructure in X-ray microCT: train, compare, apply and measure.",
    help_epilogue=(
        "Every option can stand in a YAML file given with --config FILE; options win over the file. "
        "--debug shows the traceback of an error."
    ),
    default_parameter=cyclopts.Parameter(negative_iterable=()),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
COMMANDS = {
    "demo": ("neurotome.experiments.demo", "The main job on a phantom: data, training, comparison, report."),
    "describe": ("neurotome.report.describe", "Statistics of a dataset, sample and augmentation pictures."),
    "fetch": ("neurotome.datasets.fetch", "Get MTNeuro, or a box of any volume, from BossDB; goes on where it was."),
    "phantom": ("neurotome.datasets.phantom.make", "Write a synthetic dataset in the likeness of brain microCT."),
    "train": ("neurotome.experiments.train", "Train a network, score it on every split, write a report."),
    "baseline": ("neurotome.experiments.baseline", "Train a pixel classifier, score it on every split, write a report."),
    "compare": ("neurotome.experiments.compare", "Draw the scores of several runs side by side."),
    "evaluate": ("neurotome.experiments.evaluate", "Score a trained model on a split of a dataset."),
    "predict": ("neurotome.inference.predict", "Label an image, a stack or a folder with a trained model."),
}
for name, (module, summary) in COMMANDS.items():
    app.command(f"{module}:{name}", name=name, help=summary)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line and exits: 0 done, 1 an error that the message explains, 2 wrong usage, 130 stopped."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    if debug:
        tokens.remove("--debug")
    warnings.showwarning = _show_warning
    signal.signal(signal.SIGTERM, _stop)
    try:
        app.config = _take_config(tokens)
        _show(app(tokens))
    except NeurotomeError as error:
        _fail(error, str(error), debug)
    except KeyboardInterrupt as error:
        _fail(error, "stopped. What was finished is kept; the same command goes on from there.", debug, status=130)
    except MemoryError as error:
        hint = (
            "out of memory. Use a smaller --sample.batch or --sample.patch to train a network; a smaller --max-memory, and "
            "fewer or smaller --filters.sigmas, for a pixel classifier; a smaller --tile to predict."
        )
        _fail(error, hint, debug)
    except OSError as error:
        _fail(error, _explain(error), debug)
    sys.exit(0)


def _take_config(tokens: list[str]) -> list[cyclopts.config.Dict]:
    """Removes `--config FILE` from the tokens and returns the settings that the file holds.

    Raises:
        SettingsError: There is no such file, or it does not hold settings.
    """
    for index, token in enumerate(tokens):
        if token == "--config" or token.startswith("--config="):
            value = token.partition("=")[2] if "=" in token else "".join(tokens[index + 1 : index + 2])
            del tokens[index : index + (1 if "=" in token else 2)]
            if not Path(value).is_file():
                raise SettingsError(f"--config {value}: no such file; expected a YAML file of settings.")
            try:
                content = yaml.safe_load(Path(value).read_text())
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise SettingsError(f"--config {value}: not a YAML file ({error}).") from error
            if not isinstance(content, dict):
                raise SettingsError(f"--config {value}: expected settings such as 'train: {{epochs: 10}}'.")
            # under the command's name, because `train` is a command and a group of settings too
            command = next((name for name in tokens if name in COMMANDS), "")
            return [cyclopts.config.Dict({command: content}, source=value)]
    return []


def _show(result: Any) -> None:
    """Prints what a command returns: a scores table, statistics, a list of datasets, or the paths of what it wrote."""
    if isinstance(result, dict) and "per_class" in result:
        from neurotome.scoring import format_scores

        print(format_scores(result))
    elif isinstance(result, dict) and "splits" not in result:
        from neurotome.report.describe import format_datasets

        print(format_datasets(result))
    elif isinstance(result, dict):
        from neurotome.report.describe import format_statistics

        print(format_statistics(result))
    elif isinstance(result, list):
        for path in result:
            print(path)
    elif result is not None:
        print(result)


def _fail(error: BaseException, message: str, debug: bool, status: int = 1) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    sys.stderr.write(f"neurotome: {message}\n")
    sys.exit(status)


def _explain(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return (
            f"{where}no space left on the disk. Nothing half-written was left; free some space and give the same command "
            "again."
        )
    return f"{where}{error.strerror or error}. Check the path and its permissions."


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        sys.stderr.write(f"neurotome: note: {message}\n")


def _stop(*_: object) -> NoReturn:
    """Treats a request to end like Ctrl-C, so that it is answered the same way."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
