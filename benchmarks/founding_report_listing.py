"""The founding report's training as a plain script, and how near `--config founding_report/as_reported` is to it.

    python benchmarks/founding_report_listing.py check
    python benchmarks/founding_report_listing.py train --data FOLDER --epochs 100 --loss focal --rate 0.03

`train` follows the report's listing with the means that it used (segmentation_models_pytorch, torch, torchvision) and shares
no code with neurotome; it prints the scores of the last epoch. `check` makes a small phantom and trains on it without
augmentation, from the same first weights, three times for each loss: by this script, by this script with images and weights
in another memory layout (channels last), and by neurotome. The losses of the first step must agree; afterwards Adam turns
rounding into noise, and neurotome can stay no nearer to the script than the script stays to itself.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import yaml

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
IGNORE = 255
WEIGHTS = [0.1, 0.3, 0.3, 0.2]  # the only ones in the listing; which rows of its tables had them is not said
LOSSES = ("cross-entropy", "weighted cross-entropy", "focal", "focal averaged", "dice")


def read_split(folder: Path, split: str, edge: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns grey values (n, 1, edge, edge), float32 from 0 to 1, and labels (n, edge, edge) of a split, in its order."""
    import tifffile
    from PIL import Image

    def read(kind: str, name: str) -> np.ndarray:
        (path,) = (folder / kind).glob(f"{name}.*")
        array = tifffile.imread(path) if path.suffix in (".tif", ".tiff") else np.asarray(Image.open(path))
        return array if array.ndim == 3 else array[None]

    images, labels = [], []
    for name in yaml.safe_load((folder / "dataset.yaml").read_text())["splits"][split]:
        for image, mask in zip(read("images", name), read("labels", name), strict=True):
            for y in range(0, image.shape[0], edge):
                for x in range(0, image.shape[1], edge):
                    top, left = min(y, image.shape[0] - edge), min(x, image.shape[1] - edge)
                    images.append(image[top : top + edge, left : left + edge])
                    labels.append(mask[top : top + edge, left : left + edge])
    grey = torch.from_numpy(np.stack(images))[:, None]
    return grey.float() / torch.iinfo(grey.dtype).max, torch.from_numpy(np.stack(labels)).long()


def build_loss(name: str) -> Loss:
    """Returns a loss; all are given probabilities, and treat them as logits."""
    import segmentation_models_pytorch as smp

    focal = smp.losses.FocalLoss("multiclass", gamma=2.0, ignore_index=IGNORE)

    def sum_over_classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What the library returned before version 0.6."""
        known = labels != IGNORE
        terms = [
            smp.losses._functional.focal_loss_with_logits(
                logits[:, c][known], (labels[known] == c).float(), gamma=2.0, alpha=None
            )
            for c in range(logits.shape[1])
        ]
        return torch.stack(terms).sum()

    losses: dict[str, Loss] = {
        "cross-entropy": torch.nn.CrossEntropyLoss(ignore_index=IGNORE),
        "weighted cross-entropy": torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS), ignore_index=IGNORE),
        "focal": sum_over_classes,
        "focal averaged": focal,
        "dice": smp.losses.DiceLoss("multiclass", ignore_index=IGNORE),
    }
    return losses[name]


def turn(image: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flips and rotates an image and its labels alike; what rotation invents is 0, in both."""
    from torchvision.transforms import functional

    pair = torch.cat([image, labels[None].float()])
    if torch.rand(1) < 0.5:
        pair = functional.vflip(pair)
    if torch.rand(1) < 0.5:
        pair = functional.hflip(pair)
    pair = functional.rotate(pair, float(torch.rand(1)) * 180)
    return pair[:1], pair[1].long()


def run_steps(
    net: torch.nn.Module,
    loss: Loss,
    images: torch.Tensor,
    labels: torch.Tensor,
    batch: int,
    rate: float,
    augment: bool,
    layout: torch.memory_format = torch.contiguous_format,
) -> Iterator[float]:
    """Trains without end, in fixed order, and yields the loss of each step."""
    net.train().to(memory_format=layout)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    while True:
        for start in range(0, len(images), batch):
            pairs = list(zip(images[start : start + batch], labels[start : start + batch], strict=True))
            x, y = (
                torch.stack(tensors) for tensors in zip(*(turn(*pair) if augment else pair for pair in pairs), strict=True)
            )
            value = loss(torch.softmax(net(x.contiguous(memory_format=layout)), 1), y)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            yield value.item()


def train(arguments: argparse.Namespace) -> None:
    """Trains as listed and prints the scores of the last epoch."""
    import segmentation_models_pytorch as smp
    from sklearn.metrics import classification_report

    torch.manual_seed(0)
    classes = list(yaml.safe_load((arguments.data / "dataset.yaml").read_text())["classes"].values())
    net = smp.create_model(arguments.decoder, arguments.encoder, arguments.weights, in_channels=1, classes=len(classes))
    images, labels = read_split(arguments.data, "train", arguments.patch)
    steps = run_steps(net, build_loss(arguments.loss), images, labels, arguments.batch, arguments.rate, augment=True)
    in_epoch = -(-len(images) // arguments.batch)
    for epoch in range(arguments.epochs):
        print(f"epoch {epoch}: loss {np.mean([next(steps) for _ in range(in_epoch)]):.4f}", flush=True)
    net.eval()
    images, labels = read_split(arguments.data, "test", arguments.patch)
    with torch.inference_mode():
        found = torch.cat([net(part).argmax(1) for part in images.split(8)])
    known = labels != IGNORE
    numbers = list(range(len(classes)))
    print(
        classification_report(labels[known], found[known], labels=numbers, target_names=classes, digits=3, zero_division=0)
    )


def compare(folder: Path, name: str, edge: int, batch: int, steps: int) -> dict[str, list[float]]:
    """Returns the losses of the first steps by this script, by itself in another memory layout, and by neurotome."""
    import lightning
    import segmentation_models_pytorch as smp

    from neurotome import open_dataset
    from neurotome.documents import find_config
    from neurotome.keywords import replace_settings
    from neurotome.training.fit import make_trainer, tame_lightning
    from neurotome.training.prepare import prepare, settle_recipe
    from neurotome.training.recipe import Recipe

    terms = {"focal": "sigmoid_focal", "focal averaged": "sigmoid_focal", "dice": "dice"}
    asked = yaml.safe_load(find_config("founding_report/as_reported").read_text())
    asked["loss"] |= {"terms": terms.get(name, "cross_entropy"), "focal_over": "mean" if "averaged" in name else "sum"}
    asked["loss"]["class_weights"] = WEIGHTS if "weighted" in name else "none"
    asked["model"]["encoder_weights"] = "none"
    asked["augment"]["enabled"] = False
    asked["sample"] |= {"patch": edge, "batch": batch}
    asked["train"] |= {"epochs": 1, "steps_per_epoch": steps, "device": "cpu"}
    dataset = open_dataset(folder)
    module = prepare(dataset, settle_recipe(dataset, replace_settings(Recipe(), asked)))
    first = {key: value.clone() for key, value in module.net.core.state_dict().items()}
    images, labels = read_split(folder, "train", edge)
    losses = {}
    for side, layout in (("listing", torch.contiguous_format), ("other layout", torch.channels_last)):
        net = smp.create_model("unet", "resnet18", None, in_channels=1, classes=len(dataset.classes))
        net.load_state_dict(first)
        running = run_steps(net, build_loss(name), images, labels, batch, asked["train"]["learning_rate"], False, layout)
        losses[side] = [next(running) for _ in range(steps)]
    criterion, noted = module.loss, []

    def note(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value = criterion(logits, labels)
        noted.append(value.item())
        return value

    module.loss = note
    with tame_lightning():
        make_trainer(module, lightning.Callback(), max_epochs=1, logger=False).fit(module)
    return losses | {"neurotome": noted}


def check(arguments: argparse.Namespace) -> None:
    """Prints how near neurotome and the listing are."""
    from neurotome.datasets.phantom.make import PhantomSettings, phantom

    shown = [1, 2, *range(5, arguments.steps, 5)]
    print(
        f"UNet on ResNet18, {arguments.batch} patches of {arguments.edge} x {arguments.edge}, Adam at 0.03. After so many "
        "steps: neurotome's loss less the listing's / that of the listing in another memory layout less the listing's; the "
        f"ratio is the geometric mean of the {arguments.steps - 1} steps after the first.\n"
    )
    columns = [f"after {n}" for n in shown]
    print(f"| loss | first step, listing | neurotome | relative difference | {' | '.join(columns)} | ratio |")
    print("|-" * (5 + len(shown)) + "|")
    for name in LOSSES:
        with tempfile.TemporaryDirectory() as temporary:
            settings = PhantomSettings(height=arguments.edge, width=arguments.edge, train_depth=4, val_depth=1, test_depth=1)
            folder = phantom(out=Path(temporary) / "data", settings=settings)
            losses = compare(folder, name, arguments.edge, arguments.batch, arguments.steps)
        listing, other, ours = losses["listing"], losses["other layout"], losses["neurotome"]
        cells = [f"{abs(ours[n] - listing[n]):.1e} / {abs(other[n] - listing[n]):.1e}" for n in shown]
        relative = abs(ours[0] - listing[0]) / listing[0]
        apart = [np.abs(np.subtract(side, listing)[1:]) + 1e-6 for side in (ours, other)]
        ratio = np.exp(np.mean(np.log(apart[0] / apart[1])))
        first = f"{listing[0]:.8f} | {ours[0]:.8f} | {relative:.1e}"
        print(f"| {name} | {first} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    checking = commands.add_parser("check")
    checking.set_defaults(run=check)
    checking.add_argument("--edge", type=int, default=64)
    checking.add_argument("--batch", type=int, default=8)
    checking.add_argument("--steps", type=int, default=21)
    training = commands.add_parser("train")
    training.set_defaults(run=train)
    training.add_argument("--data", type=Path, required=True)
    training.add_argument("--decoder", default="unet")
    training.add_argument("--encoder", default="resnet18")
    training.add_argument("--weights", help="imagenet, as the report had it, or nothing")
    training.add_argument("--loss", choices=LOSSES, default="focal")
    training.add_argument("--rate", type=float, default=0.03)
    training.add_argument("--epochs", type=int, default=100)
    training.add_argument("--patch", type=int, default=256)
    training.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    from neurotome.lazy import mend_torchvision

    mend_torchvision()  # torchvision for GPUs does not load beside a torch for CPUs otherwise
    arguments.run(arguments)


if __name__ == "__main__":
    main()
