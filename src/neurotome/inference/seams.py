"""Seam score: how much more often labels change across the borders of tiles than elsewhere.

Pairs of neighbouring voxels are compared across borders, and across the middle of the tile before, in the same window, so
that both see the same tissue. Without seams the shares of pairs that differ are alike, and the score, their ratio, is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.io.label_store import NOT_PREDICTED

Place = tuple[slice, slice, slice]

BORDERS = 200
"""Windows that are compared, of all axes together."""

WINDOW = 128
"""Voxels of a window along each of its two axes, at most."""

TRIES = 30
"""How many windows are looked at for each that is wanted; the others hold nothing that was predicted."""

RESAMPLES = 1000


@dataclass(frozen=True)
class SeamScore:
    """What was found along one axis, or along all.

    Attributes:
        score: Share of pairs that differ across borders, over that across the middles of tiles; None where it cannot be
            told, because labels never change in the middles, or there are no borders.
        low: Lower end of its 95 % interval, by resampling the windows.
        high: Upper end.
        borders: Windows that were compared.
        border_pairs: Pairs of predicted voxels across borders.
        border_changes: Of which so many differ.
        middle_pairs: Pairs across middles.
        middle_changes: Of which so many differ.
    """

    score: float | None
    low: float | None
    high: float | None
    borders: int
    border_pairs: int
    border_changes: int
    middle_pairs: int
    middle_changes: int


def measure_seams(
    read: Callable[[Place], NDArray[np.uint8]],
    shape_zyx: Sequence[int],
    tile_zyx: Sequence[int],
    *,
    along: str = "zyx",
    within: Sequence[Place] | None = None,
    borders: int = BORDERS,
    seed: int = 0,
) -> dict[str, SeamScore]:
    """Measures seams in a sample of windows at borders of tiles, drawn evenly from the whole volume, none twice.

    At most two voxels times `WINDOW`^2 are read at once.

    Args:
        read: Returns the labels of a box, 255 where nothing was predicted (`LabelStore.read`).
        shape_zyx: Voxels of the volume.
        tile_zyx: Voxels of a tile. Tiles of one voxel along an axis have no middle, and that axis is left out.
        along: Axes across which there may be seams: slices that are predicted one by one have none between them.
        within: Boxes in which windows are drawn, all alike in size, such as the blocks that were predicted; None: anywhere.
        borders: Windows to compare, shared among the axes.
        seed: Of the sample.

    Returns:
        A score for each axis that has borders ("z", "y", "x"), and one for "all".
    """
    axes = [axis for axis in range(3) if "zyx"[axis] in along and 1 < tile_zyx[axis] < shape_zyx[axis]]
    rng = np.random.default_rng(seed)
    boxes = [(slice(0, shape_zyx[0]), slice(0, shape_zyx[1]), slice(0, shape_zyx[2]))] if within is None else within
    found = {"zyx"[axis]: _compare(read, shape_zyx, tile_zyx, axis, boxes, borders // len(axes), rng) for axis in axes}
    together = np.concatenate([np.zeros((0, 4), np.int64), *found.values()])
    return {name: _score(counts, seed) for name, counts in {**found, "all": together}.items()}


def describe_seams(scores: dict[str, SeamScore]) -> dict[str, Any]:
    """Returns scores as JSON for a report, with a sentence that says them."""
    total = scores["all"]
    if total.score is None:
        untold = f"cannot be told from {total.borders} windows at borders of tiles"
        sentence = f"Seam score: {'tiles have no borders' if len(scores) == 1 else untold}"
    else:
        sentence = (
            f"Seam score {total.score:.3f} ({total.low:.3f} to {total.high:.3f}): how much more often labels change across "
            f"borders of tiles than within them, from {total.borders} windows; 1 means no seams"
        )
    return {"sentence": sentence, "window": WINDOW, **{name: asdict(score) for name, score in scores.items()}}


def _compare(
    read: Callable[[Place], NDArray[np.uint8]],
    shape: Sequence[int],
    tile: Sequence[int],
    axis: int,
    boxes: Sequence[Place],
    wanted: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Returns pairs and changes at borders, pairs and changes in middles, a row per window, shape (windows, 4)."""
    steps = [tile[d] if d == axis else WINDOW for d in range(3)]
    rows: list[list[int]] = []
    seen = set()
    for _ in range(TRIES * wanted if boxes else 0):
        if len(rows) == wanted:
            break
        box = boxes[int(rng.integers(len(boxes)))]
        index = tuple(int(rng.integers(part.start // n, -(-part.stop // n))) for part, n in zip(box, steps, strict=True))
        border = index[axis] * tile[axis]
        if index in seen or not border:
            continue
        seen.add(index)
        place = [slice(i * n, min((i + 1) * n, size)) for i, n, size in zip(index, steps, shape, strict=True)]
        counts: list[int] = []
        for between in (border, border - tile[axis] // 2):
            place[axis] = slice(between - 1, between + 1)
            before, after = np.moveaxis(read((place[0], place[1], place[2])), axis, 0)
            predicted = (before != NOT_PREDICTED) & (after != NOT_PREDICTED)
            counts += [int(predicted.sum()), int((predicted & (before != after)).sum())]
            if not counts[-2]:
                break
        else:
            rows.append(counts)
    return np.array(rows, np.int64).reshape(-1, 4)


def _score(counts: NDArray[np.int64], seed: int) -> SeamScore:
    """Returns the ratio of shares over all windows."""
    border_pairs, border_changes, middle_pairs, middle_changes = (int(n) for n in counts.sum(0))
    score = low = high = None
    if middle_changes:
        chosen = np.random.default_rng(seed).integers(len(counts), size=(RESAMPLES, len(counts)))
        sums = counts[chosen].sum(1, dtype=np.float64)
        ratios = (sums[:, 1] / sums[:, 0]) / np.maximum(sums[:, 3] / sums[:, 2], 1 / sums[:, 2])  # at least one change
        score = (border_changes / border_pairs) / (middle_changes / middle_pairs)
        low, high = (float(end) for end in np.percentile(ratios, (2.5, 97.5)))
    elif border_pairs and not border_changes:
        score = low = high = 1.0  # one label everywhere has no seams
    return SeamScore(score, low, high, len(counts), border_pairs, border_changes, middle_pairs, middle_changes)
