"""True and found objects in pairs, each object in one pair at most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neurotome.objects.find import Numbers, Objects, Shared

Floats = NDArray[np.float64]


def match_by_overlap(true: Objects, found: Objects, shared: Shared) -> Numbers:
    """Returns the pairs, int64 (m, 2), whose intersection is more than half of their union.

    No search for the best pairs is needed: who shares more than half of a union with one object can do so with no other
    (Kirillov et al. 2019, doi:10.1109/CVPR.2019.00963, section 4.1). At just one half it could, with two.
    """
    both = true.voxels[shared.pairs[:, 0]] + found.voxels[shared.pairs[:, 1]]
    return shared.pairs[3 * shared.voxels > both]  # n / (both - n) > 1 / 2


def match_by_distance(true: Floats, found: Floats, within: float) -> Numbers:
    """Returns as many pairs of places at most `within` apart as there can be, int64 (m, 2), at the least sum of distances.

    This is the assignment problem (Kuhn 1955, doi:10.1002/nav.3800020109), solved for each group of places that have no
    partner in another group.

    Args:
        true: Places of true objects, float64 (n, 3).
        found: Places of found objects, float64 (m, 3), in the same unit.
        within: Largest distance, in this unit.
    """
    from scipy import sparse
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial import KDTree

    if not (len(true) and len(found)):
        return np.zeros((0, 2), np.int64)
    near = KDTree(true).sparse_distance_matrix(KDTree(found), within, output_type="ndarray")
    total = len(true) + len(found)
    graph = sparse.coo_array((np.ones(len(near), bool), (near["i"], len(true) + near["j"])), shape=(total, total))
    _, groups = sparse.csgraph.connected_components(graph, directed=False)
    alone = np.bincount(groups[near["i"]], minlength=total)[groups[near["i"]]] == 1
    pairs = [np.stack([near["i"], near["j"]], 1)[alone]]
    near = near[~alone]
    near = near[np.argsort(groups[near["i"]], kind="stable")]
    begins = np.flatnonzero(np.diff(groups[near["i"]])) + 1
    for group in np.split(near, begins) if len(near) else ():
        rows, row = np.unique(group["i"], return_inverse=True)
        columns, column = np.unique(group["j"], return_inverse=True)
        # what is too far apart costs more than all pairs together, so that no pair is lost to save distance
        far = (min(len(rows), len(columns)) + 1) * within
        costs = np.full((len(rows), len(columns)), far)
        costs[row, column] = group["v"]
        chosen = np.stack(linear_sum_assignment(costs), 1)
        chosen = chosen[costs[chosen[:, 0], chosen[:, 1]] < far]
        pairs.append(np.stack([rows[chosen[:, 0]], columns[chosen[:, 1]]], 1))
    return np.concatenate(pairs)
