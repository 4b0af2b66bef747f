"""demo: the main job on a phantom, without network or data of one's own."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from neurotome.atomic import write_json
from neurotome.datasets import open_dataset
from neurotome.datasets.base import Dataset
from neurotome.datasets.phantom.make import PhantomSettings, make_phantom, phantom
from neurotome.documents import read_json
from neurotome.errors import RunError
from neurotome.experiments.evaluate import score_split
from neurotome.experiments.run_network import train_and_score
from neurotome.inference.predict import predict
from neurotome.inference.predict_settings import PredictSettings
from neurotome.io import write_image
from neurotome.pixels.train import fit_baseline, fit_majority
from neurotome.predictor import Predictor
from neurotome.report import build_report
from neurotome.report.describe import describe
from neurotome.runs import Run
from neurotome.runs.run import redo_damaged
from neurotome.scoring import Scores
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.sampler import SampleSettings

BASELINES: dict[str, Callable[[Dataset], Predictor]] = {"majority class": fit_majority, "random forest": fit_baseline}


@dataclass(frozen=True)
class DemoSettings:
    """How long the demo takes."""

    train_time: str = "140s"
    """Time for training the network."""

    edge: int = 320
    """Edge of the phantom's slices in pixels."""

    seed: int = 0
    """Seed of the phantom and of the training."""


def demo(
    *, out: Path = Path("neurotome-demo"), settings: Annotated[DemoSettings, Parameter(name="*")] = DemoSettings()
) -> Path:
    """Shows the main job on a phantom: data, training, comparison with two baselines, prediction, report.

    Takes under five minutes on two cores; stopped, the same command goes on where it was.

    Args:
        out: Folder for everything.
        settings: How long it takes.

    Returns:
        The report.

    Raises:
        RunError: `out` holds something else, or a demo of other settings.
    """
    out = Path(out)  # text from Python
    _claim(out, settings)
    data = out / "data"
    if not (data / "dataset.yaml").is_file():
        _say(f"1/5 making a phantom in {data}")
        # wide and thin: slices of one depth resemble each other, so area teaches more
        edge = settings.edge
        tissue = PhantomSettings(settings.seed, height=edge, width=edge, train_depth=6, val_depth=3, test_depth=4)
        phantom(out=data, settings=tissue)
    dataset = open_dataset(data)
    _say(f"2/5 describing it in {out / 'describe'}")
    describe(dataset, out=out / "describe", seed=settings.seed)

    _say("3/5 two baselines: majority class, random forest on pixel features")
    comparisons = {}
    for name, fit in BASELINES.items():
        simple = Run(out / "baselines" / name.replace(" ", "-"))
        if (scores := redo_damaged(partial(simple.read_scores, "test"))) is None:
            simple.write_scores("test", scores := score_split(fit(dataset), dataset, "test"))
        comparisons[name] = [scores]

    _say(f"4/5 training a network for {settings.train_time}")
    recipe = Recipe(
        sample=SampleSettings(patch=min(128, settings.edge), batch=8),
        train=TrainSettings(max_time=settings.train_time, seed=settings.seed),
    )
    run = train_and_score(dataset, str(data), out / "network", recipe)
    report = build_report(run, dataset, comparisons=comparisons, title="neurotome demo: a phantom of brain microCT")

    _say("5/5 labelling new slices with it")
    images, labels = out / "new" / "images", out / "new" / "labels"
    edge = 2 * settings.edge
    unseen = PhantomSettings(settings.seed + 1, height=edge, width=edge, train_depth=1, val_depth=1, test_depth=1)
    for cutout in make_phantom(unseen).split("test"):
        write_image(images / f"{cutout.name.removeprefix('test_')}.png", cutout.volume.data)
    new = PredictSettings(overlay=True, existing="replace")
    if dataset.voxel_size_um is not None:  # PNG files do not say it
        new = dataclasses.replace(new, voxel_size_um=dataset.voxel_size_um[1])
    predict(run.folder, images, labels, settings=new)
    scores = run.read_scores("test") or {}
    _say(f"\n{Scores(scores)}\n")
    for name, (content,) in {"network": [scores], **comparisons}.items():
        _say(f"test macro F1 {content['macro']['f1']:.3f}  {name}")
    _say(f"\nreport: {report.resolve()}\nlabels of new slices, with overlays: {labels.resolve()}")
    return report


def _claim(out: Path, settings: DemoSettings) -> None:
    """Marks a new folder as a demo of these settings, and refuses any other."""
    mark, wanted = out / "demo.json", dataclasses.asdict(settings)
    if mark.is_file():
        if read_json(mark, RunError, "Choose another folder with --out.") != wanted:
            raise RunError(f"{out}: holds a demo of other settings; choose another folder with --out.")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: holds something else; choose a new folder with --out.")
    write_json(mark, wanted)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
