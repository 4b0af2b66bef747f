"""What the benchmarks of training share: data that every method reads, and measurements in processes of their own, kept."""

import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import yaml
from peers import PEERS, find_python, make_environment, run_child
from PIL import Image

from neurotome.atomic import atomic_folder, write_json
from neurotome.datasets import open_dataset
from neurotome.datasets.base import Dataset
from neurotome.datasets.phantom.make import PhantomSettings, make_phantom
from neurotome.errors import DatasetError
from neurotome.training.prepare import prepare, settle_recipe
from neurotome.training.recipe import Recipe
from neurotome.training.timing import time_steps

HERE = Path(__file__).parent


def write_slices(source: str, folder: Path, phantom: PhantomSettings) -> None:
    """Writes a dataset as PNG slices with a `dataset.yaml`, which is what all methods read; kept if it is there."""
    if folder.is_dir():
        return
    dataset = make_phantom(phantom) if source == "phantom" else open_dataset(source)
    with atomic_folder(folder) as temporary:
        splits = {split: _write_split(dataset, split, temporary) for split in ("train", "val", "test")}
        names = dict(enumerate(dataset.classes.names))
        content = {"name": dataset.name, "classes": names, "ignore": dataset.classes.ignore, "splits": splits}
        (temporary / "dataset.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def _write_split(dataset: Dataset, split: str, folder: Path) -> list[str]:
    names = []
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for cutout in dataset.split(split):
        if cutout.volume.data.dtype != np.uint8:
            raise DatasetError(f"{cutout.name}: grey values are {cutout.volume.data.dtype}; peers are given PNG of uint8.")
        for z in range(cutout.volume.shape[0]):
            name = f"{split}_{len(names):04d}"
            Image.fromarray(np.asarray(cutout.volume.data[z])).save(folder / "images" / f"{name}.png")
            Image.fromarray(cutout.read_labels(z)).save(folder / "labels" / f"{name}.png")
            names.append(name)
    return names


def describe_data(folder: Path) -> dict:
    """Returns what a job says of its data: where they are, the classes, and the names of the slices of each split."""
    content = yaml.safe_load((folder / "dataset.yaml").read_text())
    return {"data": str(folder.absolute()), "classes": list(content["classes"].values()), "splits": content["splits"]}


def measure_step(data: Dataset, recipe: Recipe) -> float:
    """Returns the processor seconds of a training step: of ten, so that what comes before does not count."""
    module, spent = prepare(data, settle_recipe(data, recipe)), []
    for steps in (2, 12):
        begun = time.process_time()
        time_steps(module, groups=1, group=steps)
        spent.append(time.process_time() - begun)
    return (spent[1] - spent[0]) / 10


def find_missing(methods: list[str], peers: Path) -> list[str]:
    """Returns those of the methods that are peers whose environments are not there."""
    return [method for method in methods if (peer := find_peer(method)) and find_python(peers, peer) is None]


def find_peer(method: str) -> str | None:
    """Returns the peer in whose environment a method runs; methods of a peer begin with its name."""
    return next((peer for peer in PEERS if method.startswith(peer)), None)


def measure(path: Path, job: dict, data: dict, peers: Path) -> dict | None:
    """Returns the result of a job, from its file if it has been done; None, and a message, if it fails.

    Args:
        path: The result's file.
        job: Method and settings; a result of other settings is refused.
        data: From `describe_data`.
        peers: Folder of the peers' environments.
    """
    if path.is_file():
        known = json.loads(path.read_text())
        if known["job"] != job:
            raise SystemExit(
                f"{path}: measured with {known['job']}; expected {job}. Choose another --out, or delete the file."
            )
        return known
    scratch, labels = path.with_suffix(".scratch"), path.with_suffix("")
    for folder in (scratch, labels) if "seconds" in job else (scratch,):
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
        folder.mkdir(parents=True)
    facts = {"busy": psutil.cpu_percent(1.0), "processor": name_processor(), "date": time.strftime("%Y-%m-%d %H:%M")}
    places = {"scratch": str(scratch), "labels": str(labels), "started": time.time()}
    given = json.dumps({**job, **data, **places})
    peer = find_peer(job["method"])
    try:
        if peer is None:
            command = [sys.executable, str(HERE / "training_methods.py"), given]
            environment = dict(os.environ) | {"OMP_NUM_THREADS": str(job["threads"])}
        else:
            # -P: the files beside the script are no modules of theirs
            command = [str(find_python(peers, peer)), "-P", str(HERE / "training_peer.py"), given]
            environment = make_environment(job["threads"])
        found = run_child(path.stem, command, environment)
    except SystemExit as failure:
        print(f"failed, and is tried again by the next command: {failure}", file=sys.stderr, flush=True)
        return None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    result = {"job": job, "found": found, "facts": facts}
    write_json(path, result)
    return result


def name_processor() -> str:
    """Returns what the processor calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
