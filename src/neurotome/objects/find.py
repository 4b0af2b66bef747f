"""ObjectFinder: objects of a class in the truth and the prediction of an image, slice by slice.

Voxels that share a face are one object, as in `measure`. Parts are found in each slice; parts that touch the slice below are
joined at the end. So no volume is held, and memory grows with the number of objects alone; where touching cells are parted,
with up to 50 bytes for each of their voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.objects.masks import Mask, Sides
from neurotome.objects.splitting import LARGEST, split_touching
from neurotome.volume import Size

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Objects:
    """Objects of one class in one image.

    Attributes:
        voxels: How many each has where the truth is known, int64 (n,).
        ignored: How many it has besides, where the truth is not known, int64 (n,).
        centres: Mean place of the former (z, y, x) in voxels of the image, float64 (n, 3); NaN where there are none.
    """

    voxels: Numbers
    ignored: Numbers
    centres: NDArray[np.float64]


@dataclass(frozen=True)
class Shared:
    """Voxels that true and found objects share.

    Attributes:
        pairs: Number of the true object and of the found one, int64 (m, 2); each pair once.
        voxels: How many they share, int64 (m,).
    """

    pairs: Numbers
    voxels: Numbers


@dataclass(frozen=True)
class Parting:
    """How touching cells are parted, as in `measure`.

    Attributes:
        neck: See `split_touching`.
        size_um: Edges of a voxel (z, y, x), in any unit.
    """

    neck: float
    size_um: Size


class ObjectFinder:
    """Finds the objects of one class in the truth and the prediction of one image."""

    def __init__(self, parting: Parting | None = None) -> None:
        """Begins an image; without `parting` what touches is one object."""
        self._parting = parting
        self._true, self._found = (_Parts(keep_voxels=parting is not None) for _ in range(2))
        self._shared: list[tuple[Numbers, Numbers]] = []

    def add(self, truth: Mask, found: Mask, known: Mask) -> None:
        """Adds the next slice: where the class is truly, where it was found, and where the truth is known, (y, x)."""
        true_parts, found_parts = self._true.add(truth, known), self._found.add(found, known)
        if self._parting is None:
            self._shared.append(count_shared(true_parts, found_parts))

    def finish(self) -> tuple[Objects, Objects, Shared]:
        """Returns the true objects, those that were found, and what they share."""
        if self._parting is not None:
            true, found = (parts.list_parted(self._parting) for parts in (self._true, self._found))
            _, first, second = np.intersect1d(true.places, found.places, assume_unique=True, return_indices=True)
            owned, voxels = np.stack([true.owners[first], found.owners[second]], 1), np.ones(len(first))
            objects = true.sum_up(), found.sum_up()
        else:
            (owners, true_objects), (found_owners, found_objects) = self._true.join(), self._found.join()
            pairs = np.concatenate([np.zeros((0, 2), np.int64), *(pairs for pairs, _ in self._shared)])
            voxels = np.concatenate([np.zeros(0, np.int64), *(voxels for _, voxels in self._shared)])
            owned = np.stack([owners[pairs[:, 0] - 1], found_owners[pairs[:, 1] - 1]], 1)
            objects = true_objects, found_objects
        unique, inverse = np.unique(owned, axis=0, return_inverse=True)
        summed = np.bincount(inverse.ravel(), voxels, len(unique)).astype(np.int64)
        return *objects, Shared(unique, summed)


def count_shared(first: NDArray[Any], second: NDArray[Any]) -> tuple[Numbers, Numbers]:
    """Returns which numbers above 0 of two images of one shape lie on each other, int64 (m, 2), and in how many voxels."""
    both = (first > 0) & (second > 0)
    base = int(second.max(initial=0)) + 1
    keys, counts = np.unique(first[both].astype(np.int64) * base + second[both], return_counts=True)
    return np.stack(np.divmod(keys, base), 1), counts.astype(np.int64)


@dataclass(frozen=True)
class _Voxels:
    """The voxels of all objects of a class in an image.

    Attributes:
        places: Their numbers in the image, increasing.
        owners: The object of each.
        known: Whether the truth is known there.
        shape: Voxels of the image (z, y, x).
    """

    places: Numbers
    owners: Numbers
    known: NDArray[np.bool_]
    shape: tuple[int, int, int]

    def part(self, parting: Parting) -> _Voxels:
        """Returns the same with every object parted into what touches."""
        owners, count = self.owners.copy(), int(self.owners.max(initial=-1)) + 1
        order = np.argsort(self.owners, kind="stable")
        for chosen in np.split(order, np.flatnonzero(np.diff(self.owners[order])) + 1):
            places = np.stack(np.unravel_index(self.places[chosen], self.shape), 1)
            low, stop = places.min(0, initial=max(self.shape)), places.max(0, initial=-1) + 1
            if not 0 < np.prod(stop - low) <= LARGEST:
                continue
            mask, inside = np.zeros(stop - low, bool), tuple((places - low).T)
            mask[inside] = True
            cut: Sides = [(int(a == 0), int(b == size)) for a, b, size in zip(low, stop, self.shape, strict=True)]
            if self.shape[0] == 1:  # a profile
                cut = [(1, 1), *cut[1:]]
            parts = split_touching(mask, parting.size_um, parting.neck, cut)[inside]
            owners[chosen[parts > 1]] = count + parts[parts > 1] - 2
            count += int(parts.max()) - 1
        return replace(self, owners=owners)

    def sum_up(self) -> Objects:
        """Returns the objects."""
        count = int(self.owners.max(initial=-1)) + 1
        return _make_objects(_sum_voxels(self.owners, count, self.known, *np.unravel_index(self.places, self.shape)))


class _Parts:
    """Parts of objects, each within a slice, and which of them are one object."""

    def __init__(self, *, keep_voxels: bool) -> None:
        self._sums = [np.zeros((0, 5))]
        self._links = [np.zeros((0, 2), np.int64)]
        self._voxels: list[tuple[Numbers, NDArray[Any], NDArray[np.bool_]]] | None = [] if keep_voxels else None
        self._last: NDArray[Any] | None = None
        self._count = self._slices = 0

    def add(self, mask: Mask, known: Mask) -> NDArray[Any]:
        """Returns the part of each pixel of the next slice, from 1 on; 0 where there is none."""
        from scipy import ndimage

        parts, count = ndimage.label(mask)
        places = np.flatnonzero(mask)
        number, inside = parts.ravel()[places] - 1, known.ravel()[places]
        y, x = np.divmod(places, mask.shape[1])
        self._sums.append(_sum_voxels(number, count, inside, self._slices, y, x))
        parts[mask] += self._count
        if self._voxels is not None:
            self._voxels.append((places + self._slices * mask.size, parts[mask], inside))
        if self._last is not None:
            self._links.append(count_shared(self._last, parts)[0])
        self._last, self._count, self._slices = parts, self._count + count, self._slices + 1
        return parts

    def join(self) -> tuple[Numbers, Objects]:
        """Returns the object of each part, and the objects."""
        from scipy import sparse

        links = np.concatenate(self._links).T - 1
        graph = sparse.coo_array((np.ones(links.shape[1], bool), (links[0], links[1])), shape=(self._count,) * 2)
        count, owners = sparse.csgraph.connected_components(graph, directed=False) if self._count else (0, np.zeros(0, int))
        summed = np.stack([np.bincount(owners, column, count) for column in np.concatenate(self._sums).T], 1)
        return owners.astype(np.int64), _make_objects(summed)

    def list_parted(self, parting: Parting) -> _Voxels:
        """Returns the voxels that were kept, objects parted."""
        assert self._voxels
        assert self._last is not None
        places, parts, known = (np.concatenate(column) for column in zip(*self._voxels, strict=True))
        shape = self._slices, self._last.shape[0], self._last.shape[1]
        return _Voxels(places, self.join()[0][parts - 1], known, shape).part(parting)


def _sum_voxels(owners: NDArray[Any], count: int, known: NDArray[np.bool_], z: Any, y: Any, x: Any) -> NDArray[np.float64]:
    """Returns for each owner its known voxels, its others, and the sums of z, y and x of the former."""
    columns = (known, ~known, known * z, known * y, known * x)
    return np.stack([np.bincount(owners, column, count) for column in columns], 1)


def _make_objects(summed: NDArray[Any]) -> Objects:
    voxels, ignored = summed[:, 0].astype(np.int64), summed[:, 1].astype(np.int64)
    centres = np.divide(summed[:, 2:], summed[:, :1], out=np.full((len(summed), 3), np.nan), where=summed[:, :1] > 0)
    return Objects(voxels, ignored, centres)
