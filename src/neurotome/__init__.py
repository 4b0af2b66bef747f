"""neurotome: segment brain microstructure in X-ray microCT; train, compare, apply and measure.

Each command of the command line is a function here: `describe`, `fetch`, `train`, `baseline`, `evaluate`, `predict`,
`compare`, `phantom`, `demo`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from neurotome.datasets import open_dataset
    from neurotome.datasets.fetch import fetch
    from neurotome.datasets.phantom.make import phantom
    from neurotome.experiments.baseline import baseline
    from neurotome.experiments.compare import compare
    from neurotome.experiments.demo import demo
    from neurotome.experiments.evaluate import evaluate
    from neurotome.experiments.train import train
    from neurotome.inference.predict import predict, predict_probs
    from neurotome.load import load_predictor
    from neurotome.models.model_folder import load_model
    from neurotome.report.describe import describe

__all__ = [
    "baseline",
    "compare",
    "demo",
    "describe",
    "evaluate",
    "fetch",
    "load_model",
    "load_predictor",
    "open_dataset",
    "phantom",
    "predict",
    "predict_probs",
    "train",
]

_HOMES = {
    "baseline": "neurotome.experiments.baseline",
    "compare": "neurotome.experiments.compare",
    "demo": "neurotome.experiments.demo",
    "describe": "neurotome.report.describe",
    "evaluate": "neurotome.experiments.evaluate",
    "fetch": "neurotome.datasets.fetch",
    "load_model": "neurotome.models.model_folder",
    "load_predictor": "neurotome.load",
    "open_dataset": "neurotome.datasets",
    "phantom": "neurotome.datasets.phantom.make",
    "predict": "neurotome.inference.predict",
    "predict_probs": "neurotome.inference.predict",
    "train": "neurotome.experiments.train",
}


def __getattr__(name: str) -> Any:
    """Imports a public function when it is asked for, so that `import neurotome` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'neurotome' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
