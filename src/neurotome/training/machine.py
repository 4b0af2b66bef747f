"""Machine: what a training does on which hardware, and how: arithmetic, compiled or not, where the training images lie."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from neurotome.errors import SettingsError
from neurotome.lazy import lazy_import
from neurotome.quantities import format_bytes
from neurotome.tables import count
from neurotome.training.recipe import TrainSettings
from neurotome.training.resident import STORED, find_dtype, measure_images
from neurotome.training.sampler import PatchSampler, SampleSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = lazy_import("torch")

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: dict[str, Precision] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
"""Lightning's names of the arithmetic."""

RESIDENT_SHARE = 0.25
"""Most of a GPU's free memory that the training images may take; the rest is for the network and its batches."""

FEWEST_PATCHES = 8
"""Patches of a batch with which a GPU is worth taking."""

LARGE_BATCH, LONG_STEPS, LONG_SECONDS = 24 * 256**2, 5000, 1200
"""Pixels of a batch and steps of the largest batches, or seconds, from which on compiling pays back.

UNet on ResNet18, one H200, steps recorded: compiling took 30 s, and a step with 64 patches of 256 x 256 20.0 ms instead of
26.8 ms. A step with 8 patches took 8.3 ms, for an eighth of the work: the GPU waits for what the host launches, and has
nothing to gain from being faster still (not measured compiled).
"""

LARGEST_BATCH = 64 * 256**2
"""Pixels of the batches that `LONG_STEPS` counts; smaller ones gain less in a step."""


@dataclass(frozen=True)
class Machine:
    """What was chosen for a training; as text, one line that says it.

    Attributes:
        device: Name of the device.
        precision: Lightning's name of the arithmetic.
        is_compiled: Whether the network is compiled.
        is_recorded: Whether a GPU repeats recorded steps.
        is_resident: Whether batches are cut on the device, where the training images lie.
        images: How many bytes they are, and where they lie.
        devices: Processes that share a batch, each with such a device.
        threads: Of torch, on the CPU, in each of them.
    """

    device: str
    precision: Precision
    is_compiled: bool
    is_recorded: bool
    is_resident: bool
    images: str
    devices: int
    threads: int

    def __str__(self) -> str:
        name = f" ({torch.cuda.get_device_name(self.device)})" if self.device.startswith("cuda") else ""
        threads = count(self.threads, "thread")
        if self.devices > 1:
            threads = f"{self.devices} of them, {threads} each" if name else f"{self.devices} processes, {threads} each"
        how = f"{self.precision}, channels_last, {'compiled' if self.is_compiled else 'not compiled'}"
        how += ", steps recorded" if self.is_recorded else ""
        return f"training on {self.device}{name}, {threads}, {how}; images {self.images}"


def choose_machine(settings: TrainSettings, sampler: PatchSampler) -> Machine:
    """Chooses what the settings leave open, from the hardware and the training images."""
    from neurotome.models.net import choose_device

    device = choose_device(settings.device)
    size = measure_images(sampler)
    is_resident = choose_resident(settings, sampler, device, size)
    if is_resident:
        where = "on the device"
    else:
        data = [cutout.volume.data for pool in sampler.pools for cutout in pool.cutouts]
        in_memory = all(type(array) is np.ndarray for array in data)
        where = "in memory" if in_memory else "on disk, read as they are needed"
    return Machine(
        device,
        choose_precision(settings),
        choose_compile(settings, device, sampler.settings.batch * (sampler.depth or 1) * sampler.pools[0].edge ** 2),
        choose_recorded(settings, device),
        is_resident,
        f"({format_bytes(size)}) {where}",
        int(settings.devices),
        max(1, torch.get_num_threads() // int(settings.devices)),
    )


def choose_devices(settings: TrainSettings, sample: SampleSettings, dimensions: int) -> int:
    """Returns how many processes train together.

    Raises:
        SettingsError: So many cannot.
    """
    from neurotome.models.net import choose_device

    asked, is_ordered, is_deep = settings.devices, sample.order == "sequential", dimensions == 3
    if asked == 1 or (asked == "auto" and (is_ordered or is_deep or settings.device not in ("auto", "cuda"))):
        return 1
    device = choose_device(settings.device)
    there = {"cuda": torch.cuda.device_count(), "cpu": os.cpu_count() or 1}.get(device, 1)
    if asked == "auto":
        most = min(there, sample.batch // FEWEST_PATCHES) if device == "cuda" else 1
        return next((number for number in range(most, 1, -1) if sample.batch % number == 0), 1)
    what = f"train.devices is {asked}, but"
    if asked > there:
        have = {"cuda": count(there, "GPU"), "cpu": count(there, "CPU core")}.get(device, f"one device {device}")
        raise SettingsError(f"{what} this machine has {have} to train on. Use --train.devices {there} or auto.")
    if sample.batch % asked:
        fitting = ", ".join(str(number) for number in range(1, there + 1) if sample.batch % number == 0)
        raise SettingsError(
            f"{what} sample.batch is {sample.batch}, of which each would have an equal part. Use --train.devices {fitting}, "
            f"or a --sample.batch of which {asked} is a divisor."
        )
    if is_ordered:
        raise SettingsError(
            f"{what} sample.order is sequential, whose last batch cannot be shared equally. Use --train.devices 1, or "
            "--sample.order random."
        )
    if is_deep:
        raise SettingsError(f"{what} a network of volumes is trained on one. Use --train.devices 1.")
    if device == "cpu" and settings.compile == "on":
        raise SettingsError(
            f"{what} train.compile is on, and on a CPU a compiled network would not share the statistics of its batches. "
            "Use --train.compile off or --train.devices 1."
        )
    if sys.platform == "win32":
        raise SettingsError(f"{what} on Windows a training has one. Use --train.devices 1.")
    return asked


def choose_precision(settings: TrainSettings) -> Precision:
    """Returns Lightning's name of the arithmetic; `auto` is mixed only where that was measured to be faster.

    UNet on ResNet18, 8 patches of 192 x 192, on 2 cores with AMX: 0.5 s a step in 32 bit, 0.19 to 0.27 s in bf16. A CPU
    without such units converts back and forth and gains nothing.
    """
    from neurotome.models.net import choose_device, has_fast_bf16

    if settings.precision != "auto":
        return PRECISIONS[settings.precision]
    device = choose_device(settings.device)
    if device.startswith("cuda"):
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "bf16-mixed" if device == "cpu" and has_fast_bf16() else "32-true"


def choose_compile(settings: TrainSettings, device: str, pixels: int) -> bool:
    """Says whether a network is compiled for batches of so many pixels; `auto` compiles on a GPU where it pays back.

    On 2 cores without AMX, UNet on ResNet18, 8 patches of 192 x 192: 1.88 s a step instead of 2.01 s, after 50 s of
    compiling, which is paid back after 400 steps at best; most trainings on a CPU gain nothing.
    """
    if settings.compile != "auto":
        return settings.compile == "on"
    steps = int(settings.steps_per_epoch) * settings.epochs * min(1.0, pixels / LARGEST_BATCH)
    is_long = steps >= LONG_STEPS and not 0 < settings.max_seconds < LONG_SECONDS
    return pixels >= LARGE_BATCH and is_long and device.startswith("cuda") and importlib.util.find_spec("triton") is not None


def choose_recorded(settings: TrainSettings, device: str) -> bool:
    """Says whether a GPU repeats recorded steps; `auto` has it do so unless others share them, for whom steps wait.

    Raises:
        SettingsError: It is asked for where it cannot be.
    """
    fits = device.startswith("cuda") and settings.devices == 1
    if settings.cuda_graph == "on" and not fits:
        what = f"{settings.devices} processes train together" if device.startswith("cuda") else f"the device is {device}"
        raise SettingsError(
            f"train.cuda_graph is on, but {what}; only the steps of one process on a GPU can be recorded. Use "
            "--train.cuda-graph auto."
        )
    return fits and settings.cuda_graph != "off"


def choose_resident(settings: TrainSettings, sampler: PatchSampler, device: str, size: int) -> bool:
    """Says whether training images of `size` bytes are put on the device; `auto` does so on a GPU with room for them."""
    if settings.data_on_device != "auto":
        return settings.data_on_device == "on"
    if sampler.is_changing or not device.startswith("cuda") or find_dtype(sampler).name not in STORED:
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return size <= RESIDENT_SHARE * free


def compile_forward(net: nn.Module, is_asked: bool) -> Callable[[Tensor], Tensor]:
    """Returns the forward pass of a network, compiled when it is first called; its weights stay the network's.

    Where it cannot be compiled, calling it raises a SettingsError if that `is_asked` for; otherwise it says so and goes on
    as the network is.
    """
    run = torch.compile(net.forward, dynamic=False)

    def forward(images: Tensor) -> Tensor:
        nonlocal run
        try:
            logits: Tensor = run(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            if is_asked:
                raise SettingsError(
                    f"train.compile is on, but the network cannot be compiled on this machine ({reason}). Use "
                    "--train.compile off."
                ) from error
            warnings.warn(
                f"the network cannot be compiled on this machine ({reason}); it is trained as it is.", stacklevel=2
            )
            run = net.forward
            logits = run(images)
        return logits

    return forward


def seed_device(seed: int, device: torch.device) -> None:
    """Does what `torch.manual_seed` does, which takes 1 ms for asking after all kinds of devices that are not there."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
