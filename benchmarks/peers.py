"""The packages that neurotome is compared with: how their environments are made, and how a measurement in one is run.

Scripts that run in such an environment import this too, so it needs nothing but Python until a function is called.
"""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"

SEGMANTICS_NEEDS = (
    "albumentations<2 h5py imagecodecs imageio matplotlib monai==1.6.1 mrcfile pytorch-lightning scikit-image setuptools<81 "
    "rich sparse tensorboard tensorboardX termcolor termplotlib torchmetrics"
)

PEERS = {
    "monai": (["monai==1.6.1", "pytorch-ignite==0.5.5"],),
    "nnunet": (["nnunetv2==2.8.1"],),
    # its own pins, torch below 2.11 and numpy below 2, would give it another torch than the others have
    "volume-segmantics": (SEGMANTICS_NEEDS.split(), ["--no-deps", "volume-segmantics==0.4.0"]),
}
"""What pip installs for each peer, one call after another."""

SHARED = ("torch", "torchvision", "segmentation_models_pytorch", "pillow", "zarr")
"""What every environment holds beside, in the versions that neurotome is tested with."""


def make_environments(folder: Path) -> None:
    """Makes the environments that are not there, one folder a peer; a peer that does not install is told, others go on."""
    for peer, calls in PEERS.items():
        if find_python(folder, peer):
            continue
        print(f"{peer}: installing into {folder / peer}", flush=True)
        venv.create(folder / peer, with_pip=True, clear=True)
        pip = [str(locate_python(folder, peer)), "-m", "pip", "install", "--quiet"]
        # torch first and by its version, so that no larger build of it is taken for what needs torch
        pins = [line for line in CONSTRAINTS.read_text().splitlines() if line.split("==")[0] in SHARED]
        first, *others = calls
        for call in ([pin for pin in pins if pin.startswith("torch==")], [*pins, *first], *others):
            if subprocess.run([*pip, *call], check=False, env=make_environment()).returncode:
                print(f"{peer}: does not install; pip says above why", file=sys.stderr)
                break
        else:
            (folder / peer / "complete").touch()


def locate_python(folder: Path, peer: str) -> Path:
    return folder / peer / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def find_python(folder: Path, peer: str) -> Path | None:
    """Returns the Python of a peer's environment, or None where it has not been made, or not to its end."""
    return locate_python(folder, peer).absolute() if (folder / peer / "complete").is_file() else None


def make_environment(threads: int = 0) -> dict[str, str]:
    """Returns the variables of a process in another environment: ours without our sources, and with a number of threads."""
    theirs = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return theirs | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


def run_child(method: str, command: list[str], environment: dict[str, str]) -> dict:
    """Runs a measurement, whose last line is its result as JSON; ends the script if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{method}: {done.stderr[-3000:]}")
    line = done.stdout.strip().splitlines()[-1]
    print(f"{method}: {line}", file=sys.stderr, flush=True)
    return json.loads(line)


def declare_operators() -> None:
    """Lets torchvision's build for GPUs be imported beside a torch for CPUs, which cannot load its compiled operators."""
    try:
        import torchvision as torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):  # nothing here calls them
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
