"""neurotome: segment brain microstructure in X-ray microCT; train, compare, apply and measure.

Each command of the command line is a function here: `describe`, `fetch`, `train`, `fine_tune`, `baseline`, `evaluate`,
`predict`, `suggest`, `crop`, `collect`, `interpolate`, `measure`, `view`, `export`, `verify`, `compare`, `search`,
`phantom`, `demo`. What are options there are keywords here, by the last part of their name: `train("my_data",
out="runs/first", max_time="12m", encoder="resnet34")`. Where two have it, write the whole name, `**{"train.seed": 1}`, or
the group, `train={"seed": 1}`; or give the settings as they are, `recipe=Recipe(...)`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from neurotome.annotating.collect import collect as collect
    from neurotome.annotating.crop import CropSettings as CropSettings
    from neurotome.annotating.crop import crop as crop
    from neurotome.annotating.interpolate import InterpolateSettings as InterpolateSettings
    from neurotome.annotating.interpolate import interpolate as interpolate
    from neurotome.annotating.suggest import suggest as suggest
    from neurotome.annotating.suggest_settings import SuggestSettings as SuggestSettings
    from neurotome.augment import AugmentSettings as AugmentSettings
    from neurotome.datasets import open_dataset as open_dataset
    from neurotome.datasets.fetch import fetch as fetch
    from neurotome.datasets.phantom.make import PhantomSettings as PhantomSettings
    from neurotome.datasets.phantom.make import phantom as phantom
    from neurotome.datasets.phantom.stream import StreamSettings as StreamSettings
    from neurotome.errors import NeurotomeError as NeurotomeError
    from neurotome.experiments.baseline import baseline as baseline
    from neurotome.experiments.compare import compare as compare
    from neurotome.experiments.demo import DemoSettings as DemoSettings
    from neurotome.experiments.demo import demo as demo
    from neurotome.experiments.evaluate import evaluate as evaluate
    from neurotome.experiments.fine_tune import fine_tune as fine_tune
    from neurotome.experiments.grids.grid import grid as grid
    from neurotome.experiments.grids.plan import read_grid as read_grid
    from neurotome.experiments.measure import measure as measure
    from neurotome.experiments.reproduction.reproduce import reproduce as reproduce
    from neurotome.experiments.searches.search import SearchSettings as SearchSettings
    from neurotome.experiments.searches.search import search as search
    from neurotome.experiments.train import train as train
    from neurotome.features import EncoderSettings as EncoderSettings
    from neurotome.features import FeatureSettings as FeatureSettings
    from neurotome.features import FilterSettings as FilterSettings
    from neurotome.inference.predict import predict as predict
    from neurotome.inference.predict import predict_probs as predict_probs
    from neurotome.inference.predict_settings import PredictSettings as PredictSettings
    from neurotome.inference.verify import VerifySettings as VerifySettings
    from neurotome.inference.verify import verify as verify
    from neurotome.inference.volume_settings import VolumeSettings as VolumeSettings
    from neurotome.load import load_predictor as load_predictor
    from neurotome.losses import LossSettings as LossSettings
    from neurotome.measuring.settings import MeasureSettings as MeasureSettings
    from neurotome.models.model_folder import load_model as load_model
    from neurotome.models.networks import ModelSettings as ModelSettings
    from neurotome.pixels.learners import BoostingSettings as BoostingSettings
    from neurotome.pixels.learners import ForestSettings as ForestSettings
    from neurotome.pixels.learners import LogisticSettings as LogisticSettings
    from neurotome.pixels.train import BaselineSettings as BaselineSettings
    from neurotome.report.describe import describe as describe
    from neurotome.sharing.export import export as export
    from neurotome.statistics import IntervalSettings as IntervalSettings
    from neurotome.training.recipe import Recipe as Recipe
    from neurotome.training.recipe import TrainSettings as TrainSettings
    from neurotome.training.sampler import SampleSettings as SampleSettings
    from neurotome.viewing.view import ViewSettings as ViewSettings
    from neurotome.viewing.view import view as view

_NAMES = {
    "annotating.collect": "collect",
    "annotating.crop": "CropSettings crop",
    "annotating.interpolate": "InterpolateSettings interpolate",
    "annotating.suggest": "suggest",
    "annotating.suggest_settings": "SuggestSettings",
    "augment": "AugmentSettings",
    "datasets": "open_dataset",
    "datasets.fetch": "fetch",
    "datasets.phantom.make": "PhantomSettings phantom",
    "datasets.phantom.stream": "StreamSettings",
    "errors": "NeurotomeError",
    "experiments.baseline": "baseline",
    "experiments.compare": "compare",
    "experiments.demo": "DemoSettings demo",
    "experiments.evaluate": "evaluate",
    "experiments.fine_tune": "fine_tune",
    "experiments.grids.grid": "grid",
    "experiments.grids.plan": "read_grid",
    "experiments.measure": "measure",
    "experiments.reproduction.reproduce": "reproduce",
    "experiments.searches.search": "SearchSettings search",
    "experiments.train": "train",
    "features": "EncoderSettings FeatureSettings FilterSettings",
    "inference.predict": "predict predict_probs",
    "inference.predict_settings": "PredictSettings",
    "inference.verify": "VerifySettings verify",
    "inference.volume_settings": "VolumeSettings",
    "load": "load_predictor",
    "losses": "LossSettings",
    "measuring.settings": "MeasureSettings",
    "models.model_folder": "load_model",
    "models.networks": "ModelSettings",
    "pixels.learners": "BoostingSettings ForestSettings LogisticSettings",
    "pixels.train": "BaselineSettings",
    "report.describe": "describe",
    "sharing.export": "export",
    "statistics": "IntervalSettings",
    "training.recipe": "Recipe TrainSettings",
    "training.sampler": "SampleSettings",
    "viewing.view": "ViewSettings view",
}
"""Public names by module, those that are imported above for whoever reads types."""

_HOMES = {name: f"neurotome.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)

_COMMANDS = (
    *("baseline", "collect", "compare", "crop", "demo", "describe", "evaluate", "export", "fetch", "fine_tune", "grid"),
    *("interpolate", "measure", "phantom", "predict", "predict_probs", "reproduce", "search", "suggest", "train", "verify"),
    "view",
)


def __getattr__(name: str) -> Any:
    """Imports a public name when it is asked for, so that `import neurotome` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'neurotome' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    if name in _COMMANDS:
        from neurotome.keywords import accept_keywords

        value = accept_keywords(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
