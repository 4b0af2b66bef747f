"""Speed and memory: a training step and a large slice, beside a plain script on segmentation_models_pytorch.

    python benchmarks/speed.py --slice ../shared/data/microct_patches/unlabelled/slice_z159_1420x5805.png

Both sides run in turn in one process, so that a machine whose speed drifts treats them alike; the ratio is what counts. The
plain side is what one writes by hand: the same network, cross-entropy and Dice on logits, AdamW, no sampling or augmentation
of its own (it is given ready batches), and for a large slice its non-overlapping 1024-pixel tiles.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from neurotome.augment import AugmentSettings, augment
from neurotome.datasets.phantom.make import PhantomSettings, make_phantom
from neurotome.inference.slices import predict_slices
from neurotome.io import open_volume
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings, build_network, import_smp
from neurotome.normalize import Normalization
from neurotome.training.prepare import prepare, settle_recipe
from neurotome.training.recipe import Recipe, TrainSettings


def time_in_turn(functions: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    for function in functions.values():
        function()
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repetitions):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            found[name].append(time.perf_counter() - began)
    return found


def describe(title: str, found: dict[str, list[float]]) -> None:
    print(f"\n{title}")
    for name, seconds in found.items():
        low, high = min(seconds), max(seconds)
        print(f"  {name:<28} median {statistics.median(seconds):.3f} s ({low:.3f} to {high:.3f}, n = {len(seconds)})")
    ours, plain = found.values()
    ratios = sorted(p / o for o, p in zip(ours, plain, strict=True))
    print(f"  plain / ours: median {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def measure_step(repetitions: int) -> None:
    dataset = make_phantom(PhantomSettings(height=256, width=256, train_depth=2, val_depth=1, test_depth=1))
    module = prepare(dataset, settle_recipe(dataset, Recipe(train=TrainSettings(device="cpu"))))
    optimizer = module.configure_optimizers()
    step = iter(range(10**6))

    def ours() -> None:
        number = next(step)
        images, labels = (torch.from_numpy(a) for a in module.sampler.draw(number))
        generator = torch.Generator().manual_seed(number)
        images, labels = augment(images, labels, AugmentSettings(), 255, generator)
        loss = module.loss(module.net(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.net.parameters(), 1.0)
        optimizer.step()
        if module.average is not None:
            module.average.follow(number + 1)

    smp = import_smp()
    net = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=4)
    plain_optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    dice, entropy = smp.losses.DiceLoss("multiclass"), torch.nn.CrossEntropyLoss()
    batch = [torch.from_numpy(a) for a in module.sampler.draw(0)]

    def plain() -> None:
        logits = net(batch[0])
        target = batch[1].long()
        loss = entropy(logits, target) + dice(logits, target)
        plain_optimizer.zero_grad()
        loss.backward()
        plain_optimizer.step()

    describe(
        "one training step, 8 patches of 256 x 256, UNet on ResNet18; ours with sampling and augmentation",
        time_in_turn({"neurotome": ours, "plain loop, ready batch": plain}, repetitions),
    )


def measure_slice(path: Path, repetitions: int) -> None:
    volume = open_volume(path)
    torch.manual_seed(0)
    settings = ModelSettings()
    normalization = Normalization("dataset", 123.0, 31.0, volume.data.dtype.name)
    predictor = NetPredictor(build_network(settings, 4), settings, dataset_classes(), normalization, 288)
    image = torch.from_numpy(normalization.scale_for(volume).apply(volume.data))[:, None]
    net = import_smp().Unet("resnet18", encoder_weights=None, in_channels=1, classes=4).eval()

    def plain() -> None:
        with torch.inference_mode():
            for y in range(0, image.shape[2], 1024):
                for x in range(0, image.shape[3], 1024):
                    tile = image[..., y : y + 1024, x : x + 1024]
                    below, right = -tile.shape[2] % 32, -tile.shape[3] % 32
                    net(torch.nn.functional.pad(tile, (0, right, 0, below))).softmax(1).argmax(1)

    def ours() -> None:
        list(predict_slices(predictor, volume))

    describe(
        f"one slice of {volume.shape[1]} x {volume.shape[2]}; ours in overlapping tiles that equal the whole slice",
        time_in_turn({"neurotome": ours, "plain, tiles side by side": plain}, repetitions),
    )
    small = predictor.predict_probs
    patch = image[:1, :, :256, :256].numpy()
    seconds = sorted(time_in_turn({"a": lambda: small(patch), "b": lambda: None}, 15)["a"])
    print(f"\none image of 256 x 256: median {statistics.median(seconds) * 1e3:.0f} ms")


def dataset_classes():
    return make_phantom(PhantomSettings(height=64, width=64, train_depth=1, val_depth=1, test_depth=1)).classes


def measure_memory(path: Path) -> None:
    """Runs the slice in a process of its own, whose peak is then the slice's."""
    with tempfile.TemporaryDirectory() as folder:
        code = (
            "import sys; from pathlib import Path; import benchmarks.speed as s; "
            "from neurotome.models.model_folder import save_model; from neurotome.inference.predict import predict; "
            f"p = s.NetPredictor(s.build_network(s.ModelSettings(), 4), s.ModelSettings(), s.dataset_classes(), "
            f"s.Normalization('dataset', 123.0, 31.0, 'uint8'), 288); save_model(p, Path({folder!r}) / 'm'); "
            f"predict({folder!r} + '/m', {str(path)!r}, {folder!r} + '/out.png')"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parents[1])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"\npeak memory of a process that predicts it: {peak / 1e9:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slice", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, numpy {np.__version__}")
    measure_step(arguments.repetitions)
    measure_slice(arguments.slice.resolve(), max(3, arguments.repetitions // 2))
    measure_memory(arguments.slice.resolve())


if __name__ == "__main__":
    main()
