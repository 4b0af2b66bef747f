"""What each back end makes of the same tiles on this CPU: rate, agreement with torch, and what 8 bit costs in macro F1.

    python benchmarks/back_ends.py --slice ../shared/data/microct_patches/unlabelled/slice_z159_1420x5805.png \\
        --dataset ../shared/data/microct_patches

Back ends run in turn in one process, so that a machine whose speed drifts treats all alike; the ratio to plain torch is that
of each round. Plain torch is the network as it was trained, channels last, 32 bit.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from neurotome.classes import ClassSet
from neurotome.datasets import open_dataset
from neurotome.io import open_volume
from neurotome.load import load_predictor
from neurotome.metrics import confusion, scores
from neurotome.models.back_ends.attach import attach_back_end, is_installed
from neurotome.models.back_ends.memory import measure_bytes_per_pixel
from neurotome.models.back_ends.open_vino import measure_ranges
from neurotome.models.model_folder import load_model
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization

BACK_ENDS = ("torch", "onnxruntime", "openvino", "openvino-int8")


def build_usual() -> NetPredictor:
    torch.manual_seed(0)
    settings = ModelSettings("unet", "resnet18", in_channels=1, encoder_depth=5)
    net = build_network(settings, 4).eval()
    with torch.no_grad():  # so that every class is somewhere the most likely
        net.core.segmentation_head[0].bias -= net(torch.randn(1, 1, 256, 256)).mean((0, 2, 3))
    classes = ClassSet(("background", "vessel", "cell", "axon"))
    return NetPredictor(net, settings, classes, Normalization("image", 0.0, 1.0, "uint8"), 288)


def cut_tiles(predictor: NetPredictor, path: Path, edge: int, count: int) -> np.ndarray:
    volume = open_volume(path)
    scale = predictor.normalization.scale_for(volume)
    height, width = volume.shape[1:]
    y = (height - edge) // 2
    starts = np.linspace(0, width - edge, count + 2)[1:-1].astype(int)
    tiles = [volume.read_context(0, predictor.in_channels, slice(y, y + edge), slice(x, x + edge)) for x in starts]
    return scale.apply(np.stack(tiles))


def compare(predictor: NetPredictor, tiles: np.ndarray, calibration: np.ndarray, rounds: int) -> dict[str, object]:
    ranges = measure_ranges(predictor, calibration)
    candidates = {"plain torch": predictor}
    candidates |= {name: attach_back_end(predictor, name, ranges) for name in BACK_ENDS if is_installed(name)}
    expected = predictor.predict_probs(tiles)
    found, seconds = {}, {name: [] for name in candidates}
    for name, candidate in candidates.items():
        probs = candidate.predict_probs(tiles)
        found[name] = {
            "name": candidate.back_end,
            "labels_equal": float((probs.argmax(1) == expected.argmax(1)).mean()),
            "largest_difference": float(np.abs(probs - expected).max()),
        }
    for _ in range(rounds):
        for name, candidate in candidates.items():
            began = time.perf_counter()
            candidate.predict_probs(tiles)
            seconds[name].append(time.perf_counter() - began)
    pixels = math.prod(tiles.shape[-2:]) * len(tiles)
    for name, taken in seconds.items():
        ratios = sorted(plain / own for plain, own in zip(seconds["plain torch"], taken, strict=True))
        found[name] |= {
            "mpixels_per_s": pixels / statistics.median(taken) / 1e6,
            "lowest": pixels / max(taken) / 1e6,
            "highest": pixels / min(taken) / 1e6,
            "times_plain": statistics.median(ratios),
            "times_plain_range": [ratios[0], ratios[-1]],
            "bytes_per_pixel": measure_bytes_per_pixel(candidates[name]),
        }
    return found


def measure_f1(folder: Path) -> dict[str, object]:
    """Macro F1 of the packaged model on labelled images; ranges are measured on these images, without their labels."""
    dataset, plain = open_dataset(folder), load_predictor("microct-base", "cpu")
    assert isinstance(plain, NetPredictor)
    images = {}
    for split in ("train", "test"):
        cutouts = dataset.splits[split]
        scales = [plain.normalization.scale_for(cutout.volume) for cutout in cutouts]
        patches = [s.apply(np.asarray(c.volume.data[:])[:, None]) for s, c in zip(scales, cutouts, strict=True)]
        images[split] = [(patch, cutout.labels) for patch, cutout in zip(patches, cutouts, strict=True)]
    everything = np.concatenate([patch for pairs in images.values() for patch, _ in pairs])
    ranges = measure_ranges(plain, everything)
    found: dict[str, object] = {}
    for name in ("torch", "openvino-int8"):
        predictor = attach_back_end(plain, name, ranges)
        for split, pairs in images.items():
            counts = sum(
                confusion(np.asarray(labels[:]), predictor.predict_probs(patch).argmax(1), dataset.classes)
                for patch, labels in pairs
            )
            found[f"{name}, {split}"] = scores(np.asarray(counts), dataset.classes.names)["macro"]["f1"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slice", type=Path, required=True)
    parser.add_argument("--dataset", type=Path, help="for macro F1 in 8 bit")
    parser.add_argument("--edge", type=int, default=1024)
    parser.add_argument("--tiles", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[str, object] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    for title, predictor in {"unet, resnet18": build_usual(), "microct-base": load_model("microct-base")}.items():
        tiles = cut_tiles(predictor, arguments.slice, arguments.edge, arguments.tiles)
        calibration = cut_tiles(predictor, arguments.slice, 512, 3)  # other tiles than those that are compared
        found[title] = compare(predictor, tiles, calibration, arguments.rounds)
        print(title, json.dumps(found[title], indent=1), flush=True)
    if arguments.dataset is not None:
        found["macro_f1"] = measure_f1(arguments.dataset)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
