"""Trained estimators of scikit-learn and LightGBM as `Classifier`s: plain numbers wherever there is a form for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import NeurotomeError
from neurotome.pixels.classifiers import Classifier, Dense, Linear
from neurotome.pixels.skops_file import PLAIN, Estimator, is_class
from neurotome.pixels.trees import (
    from_bagging,
    from_boosting,
    from_forest,
    from_gradient,
    from_lightgbm_classifier,
    from_tree,
)


def convert(estimator: Any) -> Classifier:
    """Returns a trained estimator as numbers, or as it is where it has no such form here.

    Raises:
        NeurotomeError: It cannot be kept without pickle.
    """
    take = find_form(type(estimator))
    return Estimator(estimator) if take is None else take(estimator)


def list_savable() -> list[str]:
    """Returns the import paths of the classes that can be saved without pickle."""
    return sorted([*_list_own(), *PLAIN])


def find_form(kind: type) -> Callable[[Any], Classifier] | None:
    """Returns what makes numbers of an estimator of a class; None where it has no form of its own here."""
    return next((take for path, take in _list_own().items() if is_class(kind, path)), None)


def _list_own() -> dict[str, Callable[[Any], Classifier]]:
    """Returns the classes of estimators that have a form of their own here."""
    return {
        "lightgbm.LGBMClassifier": from_lightgbm_classifier,
        "sklearn.discriminant_analysis.LinearDiscriminantAnalysis": from_logistic,
        "sklearn.ensemble.BaggingClassifier": from_bagging,
        "sklearn.ensemble.ExtraTreesClassifier": from_forest,
        "sklearn.ensemble.GradientBoostingClassifier": from_gradient,
        "sklearn.ensemble.HistGradientBoostingClassifier": from_boosting,
        "sklearn.ensemble.RandomForestClassifier": from_forest,
        "sklearn.linear_model.LogisticRegression": from_logistic,
        "sklearn.linear_model.LogisticRegressionCV": from_logistic,
        "sklearn.neural_network.MLPClassifier": from_layers,
        "sklearn.tree.DecisionTreeClassifier": from_tree,
        "sklearn.tree.ExtraTreeClassifier": from_tree,
    }


def from_logistic(found: Any, mean: NDArray[np.float64] | float = 0, std: NDArray[np.float64] | float = 1) -> Linear:
    """Returns a logistic regression, or what is one in the end, with the scaling of its features in its weights.

    Raises:
        NeurotomeError: It holds one regression per class, whose probabilities are no softmax.
    """
    if len(found.coef_) > 1 and (getattr(found, "multi_class", "") == "ovr" or found.solver == "liblinear"):
        raise NeurotomeError(
            "a logistic regression of one class against the others at a time cannot be saved. Leave out the options solver "
            "and multi_class."
        )
    weights, bias = np.asarray(found.coef_, np.float64), np.asarray(found.intercept_, np.float64)
    if len(weights) == 1:  # two classes: scikit-learn keeps the second one's scores, the first one's are 0
        weights, bias = np.concatenate([np.zeros_like(weights), weights]), np.concatenate([[0.0], bias])
    weights = weights / std
    return Linear(weights.astype(np.float32), (bias - (weights * mean).sum(1)).astype(np.float32))


def from_layers(found: Any) -> Dense:
    """Returns a trained MLPClassifier; of two classes it keeps the second one's scores, the first one's are 0."""
    weights = [np.asarray(one, np.float32).T for one in found.coefs_]
    biases = [np.asarray(one, np.float32) for one in found.intercepts_]
    if len(biases[-1]) == 1:
        weights[-1] = np.concatenate([np.zeros_like(weights[-1]), weights[-1]])
        biases[-1] = np.concatenate([np.zeros_like(biases[-1]), biases[-1]])
    return Dense(tuple(map(np.ascontiguousarray, weights)), tuple(biases), found.activation)
