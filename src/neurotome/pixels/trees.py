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
    return _join([_take_nodes(one, _share(one)) for one in forest.estimators_], forest.n_features_in_, (), np.zeros(0))


def from_tree(tree: Any) -> Trees:
    """Returns a trained DecisionTreeClassifier or ExtraTreeClassifier as a forest of one."""
    return _join([_take_nodes(tree, _share(tree))], tree.n_features_in_, (), np.zeros(0))


def from_bagging(found: Any) -> Trees:
    """Returns a trained BaggingClassifier of decision trees, each of some features and perhaps not of all classes."""
    trees: list[Nodes] = []
    for one, picked in zip(found.estimators_, found.estimators_features_, strict=True):
        shares = np.zeros((one.tree_.node_count, len(found.classes_)))
        shares[:, np.asarray(one.classes_, np.int64)] = _share(one)
        left, right, feature, threshold, values = _take_nodes(one, shares)
        trees.append((left, right, np.asarray(picked)[feature], threshold, values))
    return _join(trees, found.n_features_in_, (), np.zeros(0))


def from_gradient(found: Any) -> Trees:
    """Returns a trained GradientBoostingClassifier as arrays."""
    two = found.estimators_.shape[1] == 1  # of two classes only the second one's scores are kept, the first one's are 0
    # what the exponential loss fits is half of a logistic score
    scale = 2.0 if found.loss == "exponential" else 1.0
    base = scale * np.asarray(found._raw_predict_init(np.zeros((1, found.n_features_in_), np.float32)), np.float64)[0]
    trees: list[Nodes] = []
    adds_to: list[int] = []
    for step in found.estimators_:
        for i, one in enumerate(step):
            trees.append(_take_nodes(one, scale * found.learning_rate * one.tree_.value[:, 0, :]))
            adds_to.append(1 if two else i)
    return _join(trees, found.n_features_in_, adds_to, np.concatenate([[0.0], base]) if two else base)


def _take_nodes(one: Any, values: NDArray[Any]) -> Nodes:
    tree = one.tree_
    return tree.children_left, tree.children_right, tree.feature, tree.threshold, values


def _share(one: Any) -> NDArray[np.float64]:
    """Returns the class probabilities in every node of a decision tree."""
    values = np.asarray(one.tree_.value[:, 0, :], np.float64)
    shares: NDArray[np.float64] = values / values.sum(1, keepdims=True)
    return shares


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


def from_lightgbm_classifier(found: Any) -> Trees:
    """Returns a trained LGBMClassifier as arrays; its objective must be binary or multiclass."""
    content, classes = found.booster_.dump_model(), len(found.classes_)
    if classes > 2:
        return from_lightgbm(content, found.n_features_in_, classes)
    # of two classes only the second one's scores are kept, the first one's are 0
    trees = [_flatten(one["tree_structure"]) for one in content["tree_info"]]
    return _join(trees, found.n_features_in_, [1] * len(trees), np.zeros(2))


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
