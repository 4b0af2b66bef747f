"""train and evaluate: what a person asks for, from dataset to report."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from cyclopts import Parameter

import neurotome
from neurotome.atomic import hold_folder, write_json, write_text
from neurotome.classes import Palette
from neurotome.datasets import open_dataset
from neurotome.datasets.base import SPLITS, Cutout, Dataset, DatasetOrName
from neurotome.errors import ModelError, RunError
from neurotome.inference.slices import predict_volume
from neurotome.io.images import write_image, write_labels
from neurotome.load import load_predictor
from neurotome.models.model_folder import add_facts
from neurotome.predictor import Predictor
from neurotome.progress import Progress
from neurotome.scoring import format_scores, score_images
from neurotome.training.fit import check_run_folder, fit, is_finished
from neurotome.training.prepare import prepare
from neurotome.training.recipe import Recipe
from neurotome.training.start import list_splits, settle_recipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def train(
    dataset: DatasetOrName,
    *,
    out: Path,
    recipe: Annotated[Recipe, Parameter(name="*")] = Recipe(),
    palette: Palette = "colour-blind-safe",
) -> Path:
    """Trains a network, scores it on every split and writes a report.

    The same command given again goes on where it was stopped; once all is done it changes nothing.

    Args:
        dataset: Folder with dataset.yaml, mtneuro:FOLDER, phantom, or phantom-stream.
        out: Run folder; new, or one of the same settings.
        recipe: Settings of model, sample, augment, loss, train and stream, and the model to start from.
        palette: Colours of the report's pictures.

    Returns:
        The report, `out/report.html`.

    Raises:
        NeurotomeError: The data, a setting or the run folder cannot be used; nothing has been changed then.
    """
    out = Path(out)  # text from Python
    data = open_dataset(dataset, recipe.stream)
    coloured = dataclasses.replace(data, classes=data.classes.with_palette(palette))
    name = str(dataset) if isinstance(dataset, (str, Path)) else data.name
    train_and_score(data, name, out, recipe)
    last = next(split for split in reversed(SPLITS) if (out / "scores" / f"{split}.json").is_file())
    sys.stderr.write(f"\n{format_scores(json.loads((out / 'scores' / f'{last}.json').read_text()))}\n\n")
    from neurotome.report import build_report

    return build_report(out, coloured)


def train_and_score(data: Dataset, name: str, out: Path, recipe: Recipe) -> None:
    """Does what `train` does, but for the report.

    Args:
        data: What to train on.
        name: What `config.yaml` calls it, so that its settings repeat the run.
        out: Run folder.
        recipe: Settings.
    """
    check_run_folder(out)
    splits = list_splits(data, recipe)
    settled = settle_recipe(data, recipe)
    config = {"dataset": name, **dataclasses.asdict(settled.recipe)}
    hashes = {split: data.fingerprint(split) for split in splits}
    init = settled.init_sha256
    check_same_run(out, config, hashes, init)
    module = None if is_finished(out) else prepare(data, settled)
    with hold_folder(out):
        if module is not None:
            claim_run(out, config, hashes, init)
            fit(module, out)
            del module  # the optimiser's memory is not needed for scoring
        score_splits(load_predictor(out, recipe.train.device), data, out)
        note_scores(out)


def evaluate(
    model: str | Path,
    *,
    data: DatasetOrName,
    split: Literal["train", "val", "test"] = "test",
    out: Path | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> dict[str, Any]:
    """Scores a trained model on a split of a dataset.

    Args:
        model: Run folder, model folder or the name of a packaged model.
        data: Dataset with the same classes as the model.
        split: Which images.
        out: File to write the scores to.
        device: Where it runs; auto takes a GPU if there is one.

    Returns:
        The scores, as `scores/<split>.json` holds them.

    Raises:
        NeurotomeError: Model or data cannot be used, or their classes differ.
    """
    opened = open_dataset(data)
    opened.split(split)
    predictor = load_predictor(Path(model), device)
    check_classes(predictor, opened, str(model))
    found = score_split(predictor, opened, split)
    if out is not None:
        write_json(Path(out), found)
    return found


def score_splits(predictor: Predictor, dataset: Dataset, run: Path, *, uncertainty: bool = False) -> None:
    """Predicts and scores every split that has images; a split that has its scores already is left alone.

    Scores that an earlier version wrote without the classes' means per image are made anew.

    Args:
        predictor: A network or pixel classifier.
        dataset: Of the same classes.
        run: Gets `predictions/<split>/` and `scores/<split>.json`.
        uncertainty: Whether it gets `uncertainty/<split>/` too.
    """
    for split in SPLITS:
        scores = run / "scores" / f"{split}.json"
        if dataset.splits.get(split) and not (scores.is_file() and '"note": "' in scores.read_text()):
            maps = run / "uncertainty" / split if uncertainty else None
            write_json(scores, score_split(predictor, dataset, split, run / "predictions" / split, maps))


def score_split(
    predictor: Predictor,
    dataset: Dataset,
    split: str,
    predictions: Path | None = None,
    uncertainty: Path | None = None,
) -> dict[str, Any]:
    """Predicts the images of a split and scores them slice by slice.

    Args:
        predictor: A network or pixel classifier.
        dataset: Of the same classes.
        split: Which images.
        predictions: Folder to write label files to, if any.
        uncertainty: Folder to write images to, if any: 1 - the probability of the chosen class, times 255.

    Returns:
        The content of `scores/<split>.json`.
    """
    cutouts = dataset.split(split)
    progress = Progress(f"scoring {split}", sum(c.volume.data.size for c in cutouts) / 1e6, "Mpixel")

    def predict_all() -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
        done = 0.0
        for cutout in cutouts:
            labels, confidence = predict_volume(predictor, cutout.volume, on_progress=partial(_add, progress, done))
            done += cutout.volume.data.size / 1e6
            if predictions is not None:
                _write_slices(write_labels, predictions, cutout, labels)
            if uncertainty is not None:
                _write_slices(write_image, uncertainty, cutout, 255 - confidence)
            depth = cutout.volume.shape[0]
            for z in range(depth):
                name = cutout.name if depth == 1 else f"{cutout.name}/{z:04d}"
                yield name, cutout.read_labels(z), labels[z]

    found = score_images(dataset.name, split, dataset.classes, predict_all())
    progress.finish(f"macro F1 {found['macro']['f1']:.3f}" if found["macro"]["f1"] is not None else "")
    return found


def note_scores(run: Path) -> None:
    """Adds the scores to the model, so that they go with it when it is shared."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((run / "scores").glob("*.json"))}
    add_facts(run / "model", {"macro_f1": {split: content["macro"]["f1"] for split, content in found.items()}})


def _add(progress: Progress, before: float, mpixels: float) -> None:
    progress.update(before + mpixels)


def check_classes(predictor: Predictor, dataset: Dataset, where: str) -> None:
    """Checks that a model predicts the classes of a dataset.

    Raises:
        ModelError: They differ.
    """
    if predictor.classes.names != dataset.classes.names:
        raise ModelError(
            f"{where}: the model's classes are {', '.join(predictor.classes.names)}, the dataset {dataset.name} has "
            f"{', '.join(dataset.classes.names)}. Choose a dataset with the model's classes, or train on this one."
        )


def describe_environment() -> dict[str, Any]:
    """Returns versions, machine, command and commit, enough to say where a number came from."""
    packages = ("torch", "lightning", "segmentation-models-pytorch", "timm", "numpy", "scikit-learn", "scipy")
    return {
        "neurotome": neurotome.__version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_commit": _find_commit(),
    }


def check_same_run(run: Path, config: Mapping[str, Any], data: Mapping[str, str], init: str | None = None) -> None:
    """Checks that a folder is free, holds a run that trained nothing, or holds the run of these settings and data.

    Args:
        run: Run folder.
        config: The complete settings.
        data: SHA-256 per split.
        init: SHA-256 of the weights that training starts from, if any.

    Raises:
        RunError: It holds a run of other settings, other data or other first weights.
    """
    if (run / "config.yaml").is_file() and not _is_only_claimed(run):
        there = yaml.safe_load((run / "config.yaml").read_text())
        if ("learner" in there) != ("learner" in config):
            kinds = {True: "a pixel classifier (baseline)", False: "a network (train)"}
            raise RunError(
                f"{run}: holds the run of {kinds['learner' in there]}; asked for is {kinds['learner' in config]}. Choose "
                "another folder with --out."
            )
        differing = _compare(there, json.loads(json.dumps(config)))
        if differing:
            raise RunError(
                f"{run}: holds another run, which differs in {'; '.join(differing[:5])}. Choose another folder with --out, "
                "or repeat that run's settings to go on with it."
            )
        environment = json.loads((run / "environment.json").read_text())
        if environment.get("init_sha256") != init:
            named = f"init {config['init']}" if config.get("init") else f"encoder.model {config['encoder']['model']}"
            raise RunError(
                f"{run}: the model that this run began with ({named}) has other weights now. Restore it to go "
                "on, or use a new --out."
            )
        if environment["data_sha256"] != dict(data):
            raise RunError(f"{run}: the training or validation data changed since this run began. Use a new --out.")


def claim_run(run: Path, config: Mapping[str, Any], data: Mapping[str, str], init: str | None) -> None:
    """Writes `config.yaml` and `environment.json` into a run folder in which nothing was trained yet.

    The caller holds the folder; arguments as of `check_same_run`.

    Raises:
        RunError: Since the caller's check another process has trained something else there.
    """
    if (run / "config.yaml").is_file() and not _is_only_claimed(run):
        check_same_run(run, config, data, init)
        return
    plain = json.loads(json.dumps(config))
    # config.yaml first: with it alone the folder is still a run's, in which nothing was trained
    write_text(run / "config.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    write_json(run / "environment.json", {**describe_environment(), "data_sha256": dict(data), "init_sha256": init})


def _is_only_claimed(run: Path) -> bool:
    """Says whether a run folder holds its settings and nothing that was trained, as after an error at the start.

    Hidden files are what killed writers and file managers leave.
    """
    return {path.name for path in run.iterdir() if not path.name.startswith(".")} <= {"config.yaml", "environment.json"}


def _compare(there: Any, now: Any, key: str = "") -> list[str]:
    if isinstance(there, dict) and isinstance(now, dict):
        return [
            line
            for name in dict.fromkeys((*there, *now))
            for line in _compare(there.get(name), now.get(name), f"{key}.{name}" if key else name)
        ]
    old, new = ("nothing" if value in ("", None) else value for value in (there, now))
    return [] if there == now else [f"{key} ({old} there, {new} asked)"]


def _write_slices(
    write: Callable[[Path, NDArray[np.uint8]], None], folder: Path, cutout: Cutout, values: NDArray[np.uint8]
) -> None:
    flat = values.shape[0] == 1
    write(folder / f"{cutout.name}{'.png' if flat else '.tif'}", values[0] if flat else values)


def _find_commit() -> str | None:
    """Returns the commit of the source tree that runs, None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
