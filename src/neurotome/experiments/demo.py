"""demo: the main job on a phantom, without network or data of one's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from neurotome.atomic import write_json
from neurotome.baselines.forest import ForestSettings, fit_forest
from neurotome.baselines.majority import fit_majority
from neurotome.datasets import open_dataset
from neurotome.datasets.base import Dataset
from neurotome.datasets.phantom import PhantomSettings, make_phantom, write_phantom
from neurotome.evaluate import format_scores
from neurotome.experiments.commands import score_split, train
from neurotome.inference.predict import PredictSettings, predict
from neurotome.io.images import write_image
from neurotome.predictor import Predictor
from neurotome.report import build_report
from neurotome.report.describe import describe
from neurotome.training.fit import TrainSettings
from neurotome.training.sampler import SampleSettings

BASELINES: dict[str, Callable[[Dataset], Predictor]] = {
    "majority class": fit_majority,
    "random forest": lambda dataset: fit_forest(dataset, ForestSettings()),
}


@dataclass(frozen=True)
class DemoSettings:
    """How long the demo takes."""

    train_time: str = "120s"
    """Time for training the network."""

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
    data = out / "data"
    if not (data / "dataset.yaml").is_file():
        _say(f"1/5 making a phantom in {data}")
        write_phantom(data, PhantomSettings(seed=settings.seed))
    dataset = open_dataset(data)
    _say(f"2/5 describing it in {out / 'describe'}")
    describe(dataset, out=out / "describe", seed=settings.seed)

    _say("3/5 two baselines: majority class, random forest on pixel features")
    comparisons = {}
    for name, fit in BASELINES.items():
        scores = out / "baselines" / name.replace(" ", "-") / "scores" / "test.json"
        if not scores.is_file():
            write_json(scores, score_split(fit(dataset), dataset, "test"))
        comparisons[name] = json.loads(scores.read_text())

    _say(f"4/5 training a network for {settings.train_time}")
    run = out / "network"
    train(
        data,
        out=run,
        sample=SampleSettings(patch=128, batch=8),
        train=TrainSettings(max_time=settings.train_time, seed=settings.seed),
    )
    report = build_report(run, dataset, comparisons=comparisons, title="neurotome demo: a phantom of brain microCT")

    _say("5/5 labelling new slices with it")
    unseen = out / "new" / "images"
    if not unseen.is_dir():
        _write_unseen(unseen, settings.seed + 1)
    predict(run, unseen, out / "new" / "labels", settings=PredictSettings(overlay=True, existing="replace"))
    scores = json.loads((run / "scores" / "test.json").read_text())
    _say(f"\n{format_scores(scores)}\n")
    for name, found in {"network": scores, **comparisons}.items():
        _say(f"test macro F1 {found['macro']['f1']:.3f}  {name}")
    _say(f"\nreport: {report.resolve()}\nlabels of new slices, with overlays: {(out / 'new' / 'labels').resolve()}")
    return report


def _write_unseen(folder: Path, seed: int) -> None:
    settings = PhantomSettings(seed=seed, height=384, width=384, train_depth=1, val_depth=1, test_depth=1)
    for cutout in make_phantom(settings).split("test"):
        write_image(folder / f"{cutout.name.removeprefix('test_')}.png", cutout.volume.data)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
