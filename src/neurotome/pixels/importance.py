"""Which features a trained pixel classifier relies on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurotome.datasets.base import Dataset
from neurotome.datasets.statistics import count_slices, is_labelled
from neurotome.metrics import confusion, scores
from neurotome.pixels.predictor import PixelPredictor
from neurotome.pixels.sample import draw_pixels, limit_rows

REPEATS = 5
MOST_GROUPS = 120  # more features than this are shuffled together, layer by layer


def measure_importance(
    predictor: PixelPredictor, dataset: Dataset, seed: int = 0, pixels_per_class: int = 2_000
) -> dict[str, Any]:
    """Measures how much macro F1 falls when a feature's values are shuffled among drawn pixels.

    Permutation importance, Breiman (2001), doi:10.1023/A:1010933404324. Features that say the same as others seem
    unimportant, because the others stand in for them; so importances compare, they do not add up.

    Args:
        predictor: Trained.
        dataset: Of the same classes; the split val is taken, or train where none of it is labelled.
        seed: Of the draw of pixels and of the shuffling.
        pixels_per_class: Drawn from each class, so that rare ones count.

    Returns:
        Ready for JSON: `split`, `pixels`, `repeats`, `macro_f1` of the drawn pixels, and `features`, the most important
        first, each with `name`, `drop` (mean fall of macro F1) and `std` over the repeats.
    """
    split = "val" if is_labelled(dataset, "val") else "train"
    rows = limit_rows(count_slices(dataset, split).sum(axis=0), pixels_per_class)
    table, labels = draw_pixels(dataset, split, rows, predictor.extractor, predictor.normalization, seed)
    return {
        "split": split,
        "pixels": len(labels),
        **shuffle_features(predictor, np.ascontiguousarray(table.T), labels, predictor.extractor.names, seed),
    }


def shuffle_features(
    predictor: PixelPredictor, table: NDArray[np.float32], labels: NDArray[np.uint8], names: Sequence[str], seed: int
) -> dict[str, Any]:
    """Shuffles one feature after another, table (features, pixels), labels (pixels,); see `measure_importance`.

    Where there are many features, those whose names differ only in the number at their end are one group.
    """
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(name if len(names) <= MOST_GROUPS else name.rpartition("_")[0] or name, []).append(i)
    rng = np.random.default_rng(seed)
    whole = _score(predictor, table, labels)
    features: list[dict[str, Any]] = []
    for name, members in groups.items():
        drops = []
        for _ in range(REPEATS):
            shuffled = table.copy()
            shuffled[members] = table[members][:, rng.permutation(table.shape[1])]
            drops.append(whole - _score(predictor, shuffled, labels))
        features.append({"name": name, "drop": float(np.mean(drops)), "std": float(np.std(drops))})
    features.sort(key=lambda feature: -feature["drop"])
    return {"repeats": REPEATS, "macro_f1": whole, "features": features}


def _score(predictor: PixelPredictor, table: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    """Returns macro F1 where every class counts the same, as the pixels were drawn."""
    chosen = predictor.seen[predictor.classifier.predict(table).argmax(0)]
    matrix = confusion(labels, chosen, predictor.classes)
    return float(scores(matrix, predictor.classes.names)["macro"]["f1"] or 0.0)
