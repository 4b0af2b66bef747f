"""Learners: scikit-learn and LightGBM train; what they have learned comes out as a `Classifier`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from neurotome.errors import SettingsError, unknown
from neurotome.lazy import import_extra
from neurotome.pixels.classifiers import Classifier, Linear, Trees
from neurotome.pixels.predictor import count_cores

LearnerName = Literal["rf", "lr", "gbdt"]
LEARNERS: tuple[LearnerName, ...] = get_args(LearnerName)
Engine = Literal["auto", "lightgbm", "sklearn"]

Nodes = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
"""Left, right, feature, threshold and values of one tree; below 0 for the left child of a leaf."""


@dataclass(frozen=True)
class ForestSettings:
    """How a random forest is grown."""

    trees: int = 24
    """Number of trees."""

    max_depth: int | None = None
    """Depth at which trees stop growing; without limit if not given."""

    min_leaf: int = 10
    """Training pixels a leaf holds at least; more makes smaller, faster trees and smoother probabilities."""

    def __post_init__(self) -> None:
        _check_positive("forest", self, ("trees", "max_depth", "min_leaf"))


@dataclass(frozen=True)
class BoostingSettings:
    """How gradient boosted trees are grown."""

    rounds: int = 60
    """Trees per class."""

    leaves: int = 31
    """Leaves of a tree at most."""

    rate: float = 0.15
    """Learning rate: how much a tree adds."""

    engine: Engine = "auto"
    """auto: LightGBM where it is installed, otherwise scikit-learn's histogram booster."""

    def __post_init__(self) -> None:
        _check_positive("boosting", self, ("rounds", "leaves", "rate"))
        if self.leaves < 2:
            raise SettingsError(f"boosting.leaves is {self.leaves}; expected at least 2.")
        if self.engine not in get_args(Engine):
            raise SettingsError(unknown("boosting.engine", self.engine, get_args(Engine)))


@dataclass(frozen=True)
class LogisticSettings:
    """How a logistic regression is fitted."""

    strength: float = 1.0
    """Inverse of the penalty on large weights."""

    steps: int = 300
    """Steps of the solver at most."""

    def __post_init__(self) -> None:
        _check_positive("logistic", self, ("strength", "steps"))


@dataclass(frozen=True)
class Learner:
    """What trains a classifier.

    `train` takes features, float32 (pixels, features), classes 0, 1, ... (pixels,), and a weight per pixel.
    """

    name: str  # for people
    train: Callable[[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]], Classifier]
    tables: float  # what training holds at most, in sizes of the table of features, that table included
    pixel_bytes: float  # what it holds of a pixel besides: classes, weights, scores, nodes of trees

    def count_bytes(self, features: int) -> float:
        """Returns the bytes that training holds per pixel, as measured on trees of real images."""
        return 4 * features * self.tables + self.pixel_bytes


def make_forest(seed: int, settings: ForestSettings) -> Learner:
    """Returns a random forest; Breiman (2001), doi:10.1023/A:1010933404324."""

    def train(table: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64]) -> Classifier:
        from sklearn.ensemble import RandomForestClassifier

        grown = {"max_depth": settings.max_depth, "min_samples_leaf": settings.min_leaf}
        forest = RandomForestClassifier(settings.trees, **grown, random_state=seed, n_jobs=count_cores())
        return from_forest(forest.fit(table, labels, weights))

    # about 13 bytes a tree for its nodes: one node for eighteen pixels, as scikit-learn's and as ours
    return Learner("random forest", train, 1.0, 200 + 13 * settings.trees * 10 / settings.min_leaf)


def make_logistic(seed: int, settings: LogisticSettings) -> Learner:
    """Returns a multinomial logistic regression on standardised features."""

    def train(table: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64]) -> Classifier:
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

        mean, std = table.mean(0, dtype=np.float64), table.std(0, dtype=np.float64)
        std[std == 0] = 1
        logistic = LogisticRegression(C=settings.strength, max_iter=settings.steps, random_state=seed)
        scaled = table - mean.astype(np.float32)
        scaled /= std.astype(np.float32)
        # hundreds of small products: threads would spend more time waiting for each other than multiplying
        with threadpool_limits(1, "blas"):
            logistic.fit(scaled, labels, weights)
        return from_logistic(logistic, mean, std)

    return Learner("logistic regression", train, 2.0, 200)


def make_boosting(seed: int, settings: BoostingSettings) -> Learner:
    """Returns gradient boosted trees of the engine that is asked for or installed."""
    installed = importlib.util.find_spec("lightgbm") is not None
    if settings.engine == "lightgbm" or (settings.engine == "auto" and installed):
        return _make_lightgbm(seed, settings)

    def train(table: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64]) -> Classifier:
        from sklearn.ensemble import HistGradientBoostingClassifier

        grown = {"max_iter": settings.rounds, "max_leaf_nodes": settings.leaves, "learning_rate": settings.rate}
        booster = HistGradientBoostingClassifier(**grown, early_stopping=False, random_state=seed)
        return from_boosting(booster.fit(table, labels, weights))

    return Learner("gradient boosted trees (scikit-learn)", train, 3.5, 180)


def _make_lightgbm(seed: int, settings: BoostingSettings) -> Learner:
    """Returns gradient boosted trees of LightGBM; Ke et al. (2017), NeurIPS 30."""
    lightgbm = import_extra("lightgbm", "gbm")

    def train(table: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64]) -> Classifier:
        classes = int(labels.max()) + 1
        options = {
            "objective": "multiclass",
            "num_class": classes,
            "num_leaves": settings.leaves,
            "learning_rate": settings.rate,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,  # otherwise it times both ways first, and which wins changes the sums
            "num_threads": count_cores(),
            "verbosity": -1,
        }
        data = lightgbm.Dataset(table, labels, weight=weights)
        return from_lightgbm(lightgbm.train(options, data, settings.rounds).dump_model(), table.shape[1], classes)

    return Learner("gradient boosted trees (LightGBM)", train, 2.25, 120)


def from_logistic(logistic: Any, mean: NDArray[np.float64], std: NDArray[np.float64]) -> Linear:
    """Returns a trained LogisticRegression, with the scaling of its features by mean and std in its weights."""
    weights, bias = np.asarray(logistic.coef_, np.float64), np.asarray(logistic.intercept_, np.float64)
    if len(weights) == 1:  # two classes: scikit-learn keeps the second one's scores, the first one's are 0
        weights, bias = np.concatenate([np.zeros_like(weights), weights]), np.concatenate([[0.0], bias])
    weights = weights / std
    return Linear(weights.astype(np.float32), (bias - (weights * mean).sum(1)).astype(np.float32))


def from_forest(forest: Any) -> Trees:
    """Returns a trained RandomForestClassifier."""
    trees: list[Nodes] = []
    for tree in (estimator.tree_ for estimator in forest.estimators_):
        counts = np.asarray(tree.value[:, 0, :], np.float64)
        shares = counts / counts.sum(1, keepdims=True)
        trees.append((tree.children_left, tree.children_right, tree.feature, tree.threshold, shares))
    return _join(trees, forest.n_features_in_, (), np.zeros(0))


def from_boosting(booster: Any) -> Trees:
    """Returns a trained HistGradientBoostingClassifier."""
    trees: list[Nodes] = []
    base = np.asarray(booster._baseline_prediction, np.float64).reshape(-1)
    two = len(base) == 1  # of two classes only the second one's scores are kept, the first one's are 0
    for nodes in (tree.nodes for step in booster._predictors for tree in step):
        leaf = nodes["is_leaf"].astype(bool)
        left, right = (np.where(leaf, -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
        trees.append((left, right, nodes["feature_idx"], nodes["num_threshold"], nodes["value"][:, None]))
    adds_to = [1 if two else i % len(base) for i in range(len(trees))]
    return _join(trees, booster.n_features_in_, adds_to, np.concatenate([[0.0], base]) if two else base)


def from_lightgbm(content: Mapping[str, Any], features: int, classes: int) -> Trees:
    """Returns boosted trees of LightGBM, from its `dump_model`; the starting score is in their leaves."""
    trees = [_flatten(tree["tree_structure"]) for tree in content["tree_info"]]
    return _join(trees, features, [i % classes for i in range(len(trees))], np.zeros(classes))


def _flatten(root: Mapping[str, Any]) -> Nodes:
    """Returns a nested tree as arrays, parents before children."""
    rows: list[list[float]] = []  # left, right, feature, threshold, value
    waiting: list[tuple[Mapping[str, Any], int, int]] = [(root, -1, 0)]
    while waiting:
        node, parent, side = waiting.pop()
        if parent >= 0:
            rows[parent][side] = len(rows)
        if "split_feature" not in node:
            rows.append([-1, -1, 0, 0, node["leaf_value"]])
            continue
        assert node["decision_type"] == "<="
        waiting += [(node["right_child"], len(rows), 1), (node["left_child"], len(rows), 0)]
        rows.append([-1, -1, node["split_feature"], node["threshold"], 0])
    left, right, feature, threshold, values = np.array(rows, np.float64).T
    return left, right, feature, threshold, values[:, None]


def _join(trees: Sequence[Nodes], features: int, adds_to: Sequence[int], base: NDArray[Any]) -> Trees:
    left, right, feature, threshold, values = (np.concatenate(arrays) for arrays in zip(*trees, strict=True))
    leaf = left < 0
    return Trees(
        np.concatenate([[0], np.cumsum([len(tree[0]) for tree in trees])]).astype(np.int64),
        np.where(leaf, -1, left).astype(np.int32),
        np.where(leaf, -1, right).astype(np.int32),
        np.where(leaf, 0, feature).astype(np.int32),
        np.where(leaf, 0, threshold).astype(np.float64),
        values.astype(np.float32),
        np.asarray(adds_to, np.int32),
        base.astype(np.float32),
        features,
    )


def _check_positive(group: str, settings: Any, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise SettingsError(f"{group}.{name} is {value}; expected more than 0.")
