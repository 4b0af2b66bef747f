"""Trees of scikit-learn and LightGBM as plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.pixels.classifiers import Trees

Nodes = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
"""Left, right, feature, threshold and values of one tree; -1 for the children of a leaf."""


def from_forest(forest: Any) -> Trees:
    """Returns a trained RandomForestClassifier or ExtraTreesClassifier as arrays."""
    found: list[Nodes] = []
    for one in forest.estimators_:
        tree = one.tree_
        values = tree.value[:, 0, :]
        shares = values / values.sum(1, keepdims=True)
        found.append((tree.children_left, tree.children_right, tree.feature, tree.threshold, shares))
    return _join(found, forest.n_features_in_, (), np.zeros(0))


def from_boosting(found: Any) -> Trees:
    """Returns a trained HistGradientBoostingClassifier as arrays."""
    trees: list[Nodes] = []
    adds_to: list[int] = []
    base = np.asarray(found._baseline_prediction, np.float64).reshape(-1)
    two = len(base) == 1  # of two classes only the second one's scores are kept, the first one's are 0
    for step in found._predictors:
        for i, one in enumerate(step):
            nodes = one.nodes
            leaf = nodes["is_leaf"].astype(bool)
            left, right = (np.where(leaf, -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
            trees.append((left, right, nodes["feature_idx"], nodes["num_threshold"], nodes["value"][:, None]))
            adds_to.append(1 if two else i)
    return _join(trees, found.n_features_in_, adds_to, np.concatenate([[0.0], base]) if two else base)


def from_lightgbm(content: Mapping[str, Any], features: int, classes: int) -> Trees:
    """Returns boosted trees of LightGBM, from its `dump_model`, as arrays; the starting score is in their leaves."""
    trees = [_flatten(one["tree_structure"]) for one in content["tree_info"]]
    return _join(trees, features, [i % classes for i in range(len(trees))], np.zeros(classes))


def _flatten(root: Mapping[str, Any]) -> Nodes:
    """Returns a nested tree as arrays, parents before children."""
    left: list[int] = []
    right: list[int] = []
    feature: list[int] = []
    threshold: list[float] = []
    values: list[list[float]] = []
    waiting: list[tuple[Mapping[str, Any], int, list[int]]] = [(root, -1, left)]
    while waiting:
        node, parent, side = waiting.pop()
        place = len(left)
        if parent >= 0:
            side[parent] = place
        leaf = "split_feature" not in node
        assert leaf or node["decision_type"] == "<="
        left.append(-1)
        right.append(-1)
        feature.append(0 if leaf else node["split_feature"])
        threshold.append(0.0 if leaf else node["threshold"])
        values.append([node["leaf_value"] if leaf else 0.0])
        if not leaf:
            waiting += [(node["right_child"], place, right), (node["left_child"], place, left)]
    return np.array(left), np.array(right), np.array(feature), np.array(threshold), np.array(values)


def _join(trees: Sequence[Nodes], features: int, adds_to: Sequence[int], base: NDArray[Any]) -> Trees:
    left, right, feature, threshold, values = (np.concatenate(parts) for parts in zip(*trees, strict=True))
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
