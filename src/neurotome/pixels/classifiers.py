"""Classifiers: a table of features in, class probabilities out; all that is left of a learner once it is trained.

`predict` of each returns class probabilities, float32, shape (classes it has seen, pixels), for features, float32, shape
(features, pixels); it may be called from several threads at once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Linear:
    """Multinomial logistic regression."""

    weights: NDArray[np.float32]  # (classes, features); for features as they are, the scaling is in them
    bias: NDArray[np.float32]  # (classes,)

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the softmax of the linear scores."""
        return _softmax(self.weights @ features + self.bias[:, None])


@dataclass(frozen=True)
class Trees:
    """A random forest or gradient boosted trees, whoever has grown them: nodes as arrays, tree after tree.

    The trees are walked by scikit-learn's compiled code, one tree at a time over many pixels, so that a tree stays in the
    cache. The arrays are checked when loaded, because that code trusts them: a child that is no node would be read from
    anywhere.
    """

    starts: NDArray[np.int64]  # (trees + 1,): first node of each tree, and the number of all
    left: NDArray[np.int32]  # (nodes,): child where feature <= threshold, counted from the tree's first; -1 in a leaf
    right: NDArray[np.int32]  # (nodes,): the other child
    feature: NDArray[np.int32]  # (nodes,): which feature a node asks for; 0 in a leaf
    threshold: NDArray[np.float64]  # (nodes,); 0 in a leaf
    values: NDArray[np.float32]  # (nodes, classes): a leaf's probabilities; of boosted trees (nodes, 1): what a leaf adds
    adds_to: NDArray[np.int32]  # (trees,): class that each boosted tree adds to; empty for a forest
    base: NDArray[np.float32]  # (classes,): scores that boosting starts from; empty for a forest
    features: int  # how many there are

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the mean of a forest's leaves, or the softmax of what boosted trees add up to."""
        pixels = features.shape[1]
        table = features.T
        if not self.base.size:
            total = np.zeros((pixels, self.values.shape[1]), np.float32)
            for tree, values in self._walkers:
                total += values[tree.apply(table)]
            total /= np.float32(len(self._walkers))
            return total.T
        scores = np.repeat(self.base[:, None], pixels, axis=1)
        for (tree, values), target in zip(self._walkers, self.adds_to, strict=True):
            scores[target] += values[tree.apply(table), 0]
        return _softmax(scores)

    @functools.cached_property
    def _walkers(self) -> list[tuple[Any, NDArray[np.float32]]]:
        """Per tree scikit-learn's compiled one, of which only `apply` is used, and the values of its nodes."""
        from sklearn.tree._tree import NODE_DTYPE, Tree

        walkers = []
        for start, stop in itertools.pairwise(self.starts.tolist()):
            span, count = slice(start, stop), stop - start
            nodes = np.zeros(count, NODE_DTYPE)
            nodes["left_child"], nodes["right_child"] = self.left[span], self.right[span]
            nodes["feature"], nodes["threshold"] = self.feature[span], self.threshold[span]
            tree = Tree(self.features, np.ones(1, np.intp), 1)
            tree.__setstate__({"max_depth": 0, "node_count": count, "nodes": nodes, "values": np.zeros((count, 1, 1))})
            walkers.append((tree, self.values[span]))
        return walkers


Classifier = Linear | Trees

DTYPES: dict[str, dict[str, Any]] = {
    "linear": {"weights": np.float32, "bias": np.float32},
    "trees": {
        "starts": np.int64,
        "left": np.int32,
        "right": np.int32,
        "feature": np.int32,
        "threshold": np.float64,
        "values": np.float32,
        "adds_to": np.int32,
        "base": np.float32,
    },
}
"""Names under which they are saved, and the arrays of each."""


def rebuild(kind: str, arrays: Mapping[str, NDArray[Any]], features: int, classes: int) -> Classifier:
    """Rebuilds a classifier from arrays of finite numbers; raises a ValueError or KeyError before a wrong one is used."""
    arrays = {name: arrays[name] for name in DTYPES[kind]}
    for name, dtype in DTYPES[kind].items():
        # another dtype could be cast to numbers that look right, such as 2**32 + 1 to 1
        if arrays[name].dtype != dtype:
            raise ValueError(f"{name} of dtype {arrays[name].dtype}; expected {np.dtype(dtype)}")
    if kind == "trees":
        trees = Trees(**arrays, features=features)
        _check_trees(trees, classes)
        return trees
    linear = Linear(**arrays)
    if linear.weights.shape != (classes, features) or linear.bias.shape != (classes,):
        raise ValueError(f"weights of shape {linear.weights.shape} for {features} features and {classes} classes")
    return linear


def _check_trees(trees: Trees, classes: int) -> None:
    nodes, starts = len(trees.left), trees.starts
    # within the nodes before they are subtracted: the difference of two huge numbers wraps around to what looks like a size
    inside = starts.ndim == 1 and len(starts) > 1 and ((starts >= 0) & (starts <= nodes)).all()
    if not inside or starts[0] != 0 or starts[-1] != nodes or (np.diff(starts) < 1).any():
        raise ValueError("trees that do not begin and end where they should")
    if any(array.shape != (nodes,) for array in (trees.left, trees.right, trees.feature, trees.threshold)):
        raise ValueError("arrays of nodes that differ in length")
    sizes = np.diff(starts)
    place = np.arange(nodes) - np.repeat(starts[:-1], sizes)
    leaf = trees.left == -1
    ends = np.repeat(sizes, sizes)
    for child in (trees.left, trees.right):
        # children come after their parents, so there is no circle to be caught in
        if not np.where(leaf, child == -1, (child > place) & (child < ends)).all():
            raise ValueError("a node whose child is no later node of its tree")
    if ((trees.feature < 0) | (trees.feature >= trees.features)).any():
        raise ValueError(f"a node that asks for a feature beyond the {trees.features} there are")
    boosted = trees.base.size > 0
    if boosted and (
        trees.base.shape != (classes,)
        or trees.adds_to.shape != (len(starts) - 1,)
        or ((trees.adds_to < 0) | (trees.adds_to >= classes)).any()
    ):
        raise ValueError(f"boosted trees of other classes than {classes}")
    if trees.values.shape != (nodes, 1 if boosted else classes):
        raise ValueError(f"values of shape {trees.values.shape} for {nodes} nodes and {classes} classes")
    shares = trees.values[leaf]
    if not boosted and ((shares < 0).any() or (np.abs(shares.sum(1) - 1) > 1e-3).any()):
        raise ValueError("a leaf whose class probabilities are negative or do not sum to 1")


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the softmax over the first axis, in place."""
    scores -= scores.max(0)
    np.exp(scores, out=scores)
    scores /= scores.sum(0)
    return scores
