"""What several test files share."""

import signal

import numpy as np
import pytest
import yaml
from PIL import Image

from neurotome import cli
from neurotome.atomic import write_text
from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.lazy import mend_torchvision
from neurotome.training.prepare import prepare, settle_recipe
from neurotome.volume import Volume

mend_torchvision()


def compute_features(patch, extractor):
    """The features of every pixel of a patch (channels, y, x), shape (features, y, x)."""
    height, width = patch.shape[-2:]
    return extractor.prepare(patch)(slice(0, height), slice(0, width))


LONGEST = (
    "documentation",
    "grid",
    "cli",
    "training_fit",
    "training_resume",
    "fine_tune",
    "kill_points",
    "configs",
    "figures",
    "demo",
    "microct_base",
    "mtneuro_fetch",
    "training_devices",
    "three_dimensions",
    "measuring_vessels",
    "export",
)


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONGEST)


TINY = ["--model.decoder", "linknet", "--model.encoder", "mobilenetv3_small_050", "--model.encoder-depth", "3"]
TINY += ["--sample.patch", "32", "--sample.batch", "2"]
QUICK = [*TINY, "--train.epochs", "1", "--train.steps-per-epoch", "2", "--train.device", "cpu"]


def run(*arguments):
    """Returns the exit status of a command."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    show = cli.warnings.showwarning
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(a) for a in arguments])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        cli.warnings.showwarning = show
    return stopped.value.code


@pytest.fixture
def short_report(monkeypatch):
    """A run's page is a line: to draw it takes longer than these trainings, and test_report looks at it."""

    def write(run, *_):
        write_text(run.report, "not drawn")
        return run.report

    monkeypatch.setattr("neurotome.experiments.evaluate.build_report", write)


def make_images(seed):
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 48), np.uint8)
    labels[8:24, 10:30] = 1
    labels[30:36, 5:40] = 2
    grey = np.array([100, 180, 30])[labels] + rng.normal(0, 8, labels.shape)
    return grey.clip(0, 255).astype(np.uint8), labels


def write_dataset(folder, names=("background", "vessel", "cell")):
    splits = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed, name in enumerate("abcd"):
        image, labels = make_images(seed)
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    content = {"name": "toy", "classes": dict(enumerate(names)), "ignore": 255, "splits": splits}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    return folder


def make_dataset(dtype=np.uint8, slices=1):
    rng = np.random.default_rng(0)

    def make_cutout(name):
        labels = np.zeros((slices, 48, 64), np.uint8)
        labels[:, 10:30, 10:30] = 1
        labels[:, :3] = 255
        grey = np.where(labels == 1, 180, 80) + rng.normal(0, 10, labels.shape)
        return Cutout(Volume(grey.clip(0, 255).astype(dtype), name), labels)

    splits = {split: (make_cutout(f"{split}0"), make_cutout(f"{split}1")) for split in ("train", "val", "test")}
    return Dataset("toy", ClassSet(("background", "cell")), splits)


def build(dataset, recipe):
    return prepare(dataset, settle_recipe(dataset, recipe))
