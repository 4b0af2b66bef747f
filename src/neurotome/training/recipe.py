"""Recipe: everything that is decided before a network is trained."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from neurotome.augment import AugmentSettings
from neurotome.datasets.phantom.stream import StreamSettings
from neurotome.errors import SettingsError
from neurotome.losses import LossSettings
from neurotome.models.model_folder import Storage
from neurotome.models.networks import ModelSettings
from neurotome.predictor import Device, check_device
from neurotome.training.sampler import SampleSettings


@dataclass(frozen=True)
class TrainSettings:
    """How the network is trained."""

    epochs: int = 100
    """Most epochs; after each one the validation slices are scored and a checkpoint is written."""

    checkpoint_every: str = "5m"
    """Longest training time between two checkpoints, which is what a kill costs at most, such as 90s, 5m or 1h; it changes
    nothing of what is trained. Empty: one after each epoch alone."""

    steps_per_epoch: int | Literal["auto"] = "auto"
    """Steps per epoch; auto: one pass over the training pixels, but 50 to 2000 where patches are random."""

    max_time: str = ""
    """Most training time, such as 90s, 12m or 2h; the schedule ends with it. Empty: no limit."""

    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Optimiser; sgd has Nesterov momentum 0.9."""

    learning_rate: float | Literal["auto"] = "auto"
    """Highest learning rate; auto: 3e-3, or 3e-4 with --init."""

    encoder_rate: float = 1.0
    """Factor on the learning rate of the encoder, whose features serve other images too; 0: the encoder stays as it is."""

    weight_decay: float = 0.01
    """Weight decay."""

    anchor: float = 0.0
    """Pull towards the weights of --init, in the place of the pull towards 0 of weight_decay; 0: none."""

    schedule: Literal["cosine", "one-cycle", "constant", "step"] = "cosine"
    """How the learning rate falls; step multiplies it by step_factor after every step_epochs epochs."""

    step_epochs: int = 30
    """Epochs between two falls of the schedule step."""

    step_factor: float = 0.1
    """Factor on the learning rate at each fall of the schedule step."""

    warmup: float = 0.05
    """Share of the training over which the learning rate rises; one-cycle has its own."""

    freeze_statistics: bool = False
    """Keep the statistics of batch normalisation as they are; for few images, with --init: their own are too noisy."""

    clip: float = 1.0
    """Largest norm of the gradient; 0: not clipped."""

    average: float = 0.98
    """Decay of a moving average of the weights that is validated and saved instead of them; 0: none."""

    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    """Arithmetic; auto: mixed precision on a GPU and on a CPU with AMX (measured: 2 to 3 times faster), 32 bit elsewhere."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the network, which takes up to a minute before the first step; auto: on a GPU, for 5000 steps or more with 64
    patches of 256 x 256, and for batches of at least 24 of them, since a GPU waits for smaller ones anyway."""

    cuda_graph: Literal["auto", "on", "off"] = "auto"
    """Record the operations of a step once and have a GPU repeat them as a whole, which spares the processor launching
    each; auto: on a GPU, unless train.devices is more."""

    data_on_device: Literal["auto", "on", "off"] = "auto"
    """Keep the training images on the device and cut patches there; auto: on a GPU where they take at most a quarter of
    its free memory. Otherwise patches are cut while the step before is computed."""

    keep: Literal["best", "last"] = "best"
    """Which epoch's weights become the model: the best by validation macro F1, or the last; then no split val is needed."""

    patience: int = 0
    """Stop after this many epochs without a better validation macro F1; 0: never."""

    val_slices: int = 0
    """Validate on this many slices, evenly spread; 0: on all."""

    normalization: Literal["auto", "dataset", "image", "tissue", "range"] = "auto"
    """Scale grey values by the training data's mean and standard deviation, by each image's own, by the grey of each
    image's tissue and darkest pixels, which survives another scanner's grey scale, or by the largest value of the integer
    dtype (range: 255 for uint8; black is 0); auto: dataset, or as the model of --init does."""

    reference: str = ""
    """Image, or folder of images, of the same scan over which normalization tissue measures the grey scale, by which the
    model then scales whatever fits it. Empty: over those images of train and val that share a grey scale; own: each by
    itself."""

    replay: float = 0.0
    """Share of the drawn patches that show synthetic tissue, so that fine-tuning does not forget it; 0: none. Classes that
    no pixel of one's own images has are then learned from the tissue alone."""

    replay_weight: float = 1.0
    """Weight of the synthetic tissue's loss beside that of one's own images, however many patches show it."""

    storage: Storage = "float32"
    """How the model's weights are written; float16 halves the file and rounds them to 3 digits."""

    seed: int = 0
    """Seed of the weights, the patches and the augmentation."""

    device: Device = "auto"
    """Where to train: auto (a GPU if there is one), cpu, cuda, cuda:1 (the second GPU) or mps."""

    devices: int | Literal["auto"] = "auto"
    """GPUs of this machine, or processes on its CPU, that share every batch, so that what is learned does not depend on
    their number; auto: GPUs as long as each has 8 patches of a batch, one process on a CPU."""

    deterministic: bool = False
    """Take algorithms that end with the same weights to the bit each time on the same GPU, which may be slower; an operation
    that has none is an error. On a CPU trainings end so anyway; where max_time ends the schedule, none does."""

    tensorboard: bool = False
    """Write TensorBoard logs too (extra: track)."""

    @property
    def max_seconds(self) -> float:
        """`max_time` in seconds, 0 for no limit."""
        return parse_duration(self.max_time)

    @property
    def checkpoint_seconds(self) -> float:
        """`checkpoint_every` in seconds, 0 for never."""
        return parse_duration(self.checkpoint_every, "train.checkpoint_every")


def parse_duration(text: str, setting: str = "train.max_time") -> float:
    """Returns the seconds of 90s, 12m, 1.5h or a plain number of seconds; 0 for an empty text, the value of `setting`.

    Raises:
        SettingsError: It is none of these.
    """
    if not text:
        return 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", str(text).strip())
    if match is None or float(match[1]) == 0:
        raise SettingsError(f"{setting} is {text!r}; expected a time such as 90s, 12m or 2h.")
    return float(match[1]) * {"s": 1, None: 1, "m": 60, "min": 60, "h": 3600}[match[2]]


def check_training(settings: TrainSettings) -> None:
    """Checks that settings can work.

    Raises:
        SettingsError: Names the field, its value, and what is expected.
    """
    checks = {
        "epochs": settings.epochs >= 1,
        "steps_per_epoch": settings.steps_per_epoch == "auto" or settings.steps_per_epoch >= 1,
        "learning_rate": settings.learning_rate == "auto" or 0 < settings.learning_rate < math.inf,
        "encoder_rate": 0 <= settings.encoder_rate < math.inf,
        "weight_decay": 0 <= settings.weight_decay < math.inf,
        "anchor": 0 <= settings.anchor < math.inf,
        "warmup": 0 <= settings.warmup < 1,
        "schedule": settings.schedule in ("cosine", "one-cycle", "constant", "step"),
        "step_epochs": settings.step_epochs >= 1,
        "step_factor": 0 < settings.step_factor <= 1,
        "keep": settings.keep in ("best", "last"),
        "compile": settings.compile in ("auto", "on", "off"),
        "cuda_graph": settings.cuda_graph in ("auto", "on", "off"),
        "data_on_device": settings.data_on_device in ("auto", "on", "off"),
        "clip": 0 <= settings.clip < math.inf,
        "average": 0 <= settings.average < 1,
        "replay": 0 <= settings.replay < 1,
        "replay_weight": 0 < settings.replay_weight < math.inf,
        "patience": settings.patience >= 0,
        "val_slices": settings.val_slices >= 0,
        "devices": settings.devices == "auto" or settings.devices >= 1,
        "seed": 0 <= settings.seed < 2**31,
    }
    for name, fine in checks.items():
        if not fine:
            raise SettingsError(f"train.{name} is {getattr(settings, name)}; out of range, see neurotome train --help.")
    check_device(None, settings.device)
    parse_duration(settings.max_time)
    parse_duration(settings.checkpoint_every, "train.checkpoint_every")


@dataclass(frozen=True)
class Recipe:
    """Everything that is decided before training."""

    model: ModelSettings = ModelSettings()
    """Which network."""

    sample: SampleSettings = SampleSettings()
    """How patches are drawn."""

    augment: AugmentSettings = AugmentSettings()
    """What may happen to them."""

    loss: LossSettings = LossSettings()
    """What is minimised."""

    train: TrainSettings = TrainSettings()
    """How."""

    stream: StreamSettings = StreamSettings()
    """How tissue is made during training; only for the dataset phantom-stream."""

    init: str = ""
    """Model to start from: the name of a packaged model, a run or a model folder. Weights, network, classes and scaling of
    grey values are the model's; a split val is then not needed. For few images use neurotome fine-tune instead."""
