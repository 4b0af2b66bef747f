"""Graph: a skeleton as chains of points between nodes, traced from which voxels touch, and cleaned of what is false."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SMALLEST_LOOP = 4
"""Voxels of a loop below which it is none."""


@dataclass
class Graph:
    """Segments as lists of points, and which meet at each node; points from `voxels` on are nodes."""

    voxels: int
    segments: dict[int, list[int]] = field(default_factory=dict)
    at: dict[int, list[int]] = field(default_factory=dict)  # by node, its segments; a loop twice

    def add(self, chain: list[int], number: int | None = None) -> None:
        """Adds a segment, as a stated number or the next one."""
        number = len(self.segments) if number is None else number
        self.segments[number] = chain
        if len(chain) > 1:
            for end in (chain[0], chain[-1]):
                if end >= self.voxels:
                    self.at[end].append(number)

    def remove(self, number: int) -> None:
        """Takes a segment out."""
        chain = self.segments.pop(number)
        for end in (chain[0], chain[-1]):
            if end >= self.voxels:
                self.at[end].remove(number)

    def dissolve(self, node: int) -> int | None:
        """Joins the two segments that meet at a node; returns the number of what remains, None if they are one."""
        one, two = self.at[node]
        if one == two:
            return None
        before, after = self.segments[one], self.segments[two]
        before = before if before[-1] == node else before[::-1]
        after = after if after[0] == node else after[::-1]
        self.remove(one)
        self.remove(two)
        self.add(before + after[1:], one)
        return one


def trace_graph(pairs: Ints, degree: Ints, node_of: Ints, nodes: int) -> Graph:
    """Follows voxels with at most two neighbours from node to node, to an end, or around."""
    count = len(degree)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    # memory views give plain whole numbers, much faster than arrays do
    begin = np.concatenate([[0], np.cumsum(degree)]).astype(np.int64).data
    beside, node = np.ascontiguousarray(both[:, 1]).data, node_of.data
    seen = bytearray(count)
    graph = Graph(count, at={count + number: [] for number in range(nodes)})

    def follow(chain: list[int], before: int, voxel: int) -> list[int]:
        while True:
            if node[voxel] >= 0:
                return [*chain, node[voxel]]
            seen[voxel] = True
            chain.append(voxel)
            around = [other for other in beside[begin[voxel] : begin[voxel + 1]] if other != before]
            if not around:
                return chain
            before, voxel = voxel, around[0]
            if voxel == chain[0]:
                return [*chain, voxel]

    for voxel in np.flatnonzero(node_of >= 0).tolist():
        for other in beside[begin[voxel] : begin[voxel + 1]]:
            if node[other] < 0 and not seen[other]:
                graph.add(follow([node[voxel]], voxel, other))
    for few in (0, 1, 2):
        for voxel in np.flatnonzero((degree == few) & (node_of < 0)).tolist():
            if not seen[voxel]:
                chain = follow([], -1, voxel)
                graph.add(chain[:1] if few == 2 and len(chain) <= SMALLEST_LOOP else chain)
    for single, segments in graph.at.items():
        if not segments:
            graph.add([single])
    return graph


def clean_graph(graph: Graph, where: Floats, reach: Floats) -> None:
    """Takes out false side branches and loops, shortest first, until there is none; see the module."""
    lengths = dict(zip(graph.segments, _measure_lengths(list(graph.segments.values()), where), strict=True))

    def is_false(number: int) -> bool:
        chain = graph.segments[number]
        nodes = [end for end in (chain[0], chain[-1]) if len(graph.at.get(end, ())) > 1]
        if len(nodes) == 0 or len(chain) == 1 or len(graph.at[nodes[0]]) == 2:
            return False
        if len(nodes) == 2:
            return nodes[0] == nodes[1] and len(chain) - 2 < SMALLEST_LOOP
        return bool(lengths[number] <= reach[nodes[0] - graph.voxels])

    doubtful = set(graph.segments)
    while doubtful:
        changed: set[int] = set()
        for number in sorted(doubtful, key=lambda each: (lengths[each], each)):
            if number not in graph.segments or not is_false(number):
                continue
            chain = graph.segments[number]
            graph.remove(number)
            for node in {chain[0], chain[-1]}:
                if node >= graph.voxels and len(graph.at[node]) == 2:
                    joined = graph.dissolve(node)
                    if joined is not None:
                        lengths[joined] = _measure_lengths([graph.segments[joined]], where)[0]
                        changed.add(joined)
                if node >= graph.voxels:
                    changed |= set(graph.at[node])
        doubtful = changed


def _measure_lengths(chains: list[list[int]], where: Floats) -> list[float]:
    """Returns the length of each chain; of all at once, since numpy takes longer to begin than for a chain."""
    points = np.concatenate([np.zeros(0, np.int64), *map(np.asarray, chains)])
    owner = np.repeat(np.arange(len(chains)), list(map(len, chains)))
    steps = np.linalg.norm(np.diff(where[points], axis=0), axis=1)
    within = owner[1:] == owner[:-1]
    lengths: list[float] = np.bincount(owner[1:][within], steps[within], len(chains)).tolist()
    return lengths
