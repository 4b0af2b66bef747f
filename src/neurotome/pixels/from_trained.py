"""What scikit-learn and LightGBM have learned, as the plain numbers of a `Classifier`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.pixels.classifiers import Linear, Trees

Nodes = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
"""Left, right, feature, threshold and values of one tree; below 0 for the left child of a leaf."""


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
    adds_to: list[int] = []
    base = np.asarray(booster._baseline_prediction, np.float64).reshape(-1)
    two = len(base) == 1  # of two classes only the second one's scores are kept, the first one's are 0
    for step in booster._predictors:
        for i, nodes in enumerate(tree.nodes for tree in step):
            leaf = nodes["is_leaf"].astype(bool)
            left, right = (np.where(leaf, -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
            trees.append((left, right, nodes["feature_idx"], nodes["num_threshold"], nodes["value"][:, None]))
            adds_to.append(1 if two else i)
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
