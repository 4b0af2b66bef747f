"""prepare and fit: train a network into a run folder; after any interruption, fit goes on where it was."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neurotome.atomic import sweep_partials
from neurotome.augment import AugmentSettings, check_augment
from neurotome.datasets.base import Dataset
from neurotome.datasets.phantom_stream import StreamSettings
from neurotome.datasets.statistics import list_seen
from neurotome.errors import DatasetError, RunError, SettingsError
from neurotome.lazy import import_extra, mend_torchvision
from neurotome.losses import LossSettings, build_loss
from neurotome.models.build import ModelSettings, build_network
from neurotome.models.folder import Storage, read_digest
from neurotome.normalize import fit_normalization
from neurotome.training.sampler import PatchSampler, SampleSettings, collect_slices
from neurotome.training.start import add_tissue, load_init, settle_recipe
from neurotome.volume import note_other_size

if TYPE_CHECKING:
    from neurotome.training.module import SegmentationModule


@dataclass(frozen=True)
class TrainSettings:
    """How the network is trained."""

    epochs: int = 100
    """Most epochs; after each one the validation slices are scored and a checkpoint is written."""

    steps_per_epoch: int = 0
    """Steps per epoch; 0: one pass over the training pixels, but at least 50 where patches are random."""

    max_time: str = ""
    """Most training time, such as 90s, 12m or 2h; the schedule ends with it. Empty: no limit."""

    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Optimiser; sgd has Nesterov momentum 0.9."""

    learning_rate: float = 0.0
    """Highest learning rate; 0: 3e-3, or 3e-4 with --init."""

    weight_decay: float = 0.01
    """Weight decay."""

    schedule: Literal["cosine", "one-cycle", "constant"] = "cosine"
    """How the learning rate falls."""

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

    patience: int = 0
    """Stop after this many epochs without a better validation macro F1; 0: never."""

    val_slices: int = 0
    """Validate on this many slices, evenly spread; 0: on all."""

    normalization: Literal["dataset", "image", "tissue"] = "dataset"
    """Scale grey values by the training data's mean and standard deviation, by each image's own, or by the grey of each
    image's tissue and darkest pixels, which survives another scanner's grey scale."""

    replay: float = 0.0
    """Share of the training pixels that are synthetic tissue, so that fine-tuning does not forget it; 0: none."""

    storage: Storage = "float32"
    """How the model's weights are written; float16 halves the file and rounds them to 3 digits."""

    seed: int = 0
    """Seed of the weights, the patches and the augmentation."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""

    tensorboard: bool = False
    """Write TensorBoard logs too (extra: track)."""

    @property
    def max_seconds(self) -> float:
        """`max_time` in seconds, 0 for no limit."""
        return parse_duration(self.max_time)


def parse_duration(text: str) -> float:
    """Returns the seconds of 90s, 12m, 1.5h or a plain number of seconds; 0 for an empty text.

    Raises:
        SettingsError: It is none of these.
    """
    if not text:
        return 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", str(text).strip())
    if match is None or float(match[1]) == 0:
        raise SettingsError(f"train.max_time is {text!r}; expected a time such as 90s, 12m or 2h.")
    return float(match[1]) * {"s": 1, None: 1, "m": 60, "min": 60, "h": 3600}[match[2]]


def check_training(settings: TrainSettings) -> None:
    """Checks that settings can work.

    Raises:
        SettingsError: Names the field, its value, and what is expected.
    """
    checks = {
        "epochs": settings.epochs >= 1,
        "steps_per_epoch": settings.steps_per_epoch >= 0,
        "learning_rate": 0 <= settings.learning_rate < math.inf,
        "weight_decay": 0 <= settings.weight_decay < math.inf,
        "warmup": 0 <= settings.warmup < 1,
        "clip": 0 <= settings.clip < math.inf,
        "average": 0 <= settings.average < 1,
        "replay": 0 <= settings.replay < 1,
        "patience": settings.patience >= 0,
        "val_slices": settings.val_slices >= 0,
        "seed": 0 <= settings.seed < 2**31,
    }
    for name, fine in checks.items():
        if not fine:
            raise SettingsError(f"train.{name} is {getattr(settings, name)}; out of range, see neurotome train --help.")
    parse_duration(settings.max_time)


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
    grey values are the model's; a split val is then not needed. For few images use configs/fine_tune.yaml too."""


def prepare(dataset: Dataset, recipe: Recipe = Recipe()) -> SegmentationModule:
    """Builds all that training needs and checks every setting; writes nothing.

    Args:
        dataset: Has the splits train and val; with `recipe.init` val may be missing.
        recipe: Settings.

    Raises:
        NeurotomeError: A setting cannot work, or the data do not suit it.
    """
    check_training(recipe.train)
    check_augment(recipe.augment)
    init = load_init(dataset, recipe.init) if recipe.init else None
    recipe = settle_recipe(dataset, recipe, init)
    model, sample, train = recipe.model, recipe.sample, recipe.train
    if init is None:
        normalization = fit_normalization((c.volume for c in dataset.split("train")), train.normalization)
    else:
        normalization = init.normalization
    held_out = dataset.split("val") if "val" in list_splits(dataset, recipe) else ()
    if not held_out:
        warnings.warn(
            f"{dataset.name}: no split val, so nothing is validated and the weights of the last epoch are kept, not the "
            "best ones.",
            stacklevel=2,
        )
    for cutout in held_out:
        normalization.scale_for(cutout.volume)
    seen = add_tissue(dataset, train.replay, sample.patch, model.in_channels, train.seed) if train.replay else dataset
    sampler = PatchSampler(seen, sample, normalization, model.in_channels, train.seed)
    if init is None:
        list_seen(dataset, sampler.counts.sum(0))
    criterion = build_loss(recipe.loss, dataset.classes, sampler.counts.sum(0))

    mend_torchvision()  # torchmetrics imports it, and lightning torchmetrics
    import torch

    from neurotome.models.net import NetPredictor, choose_device, measure_halo
    from neurotome.training.module import SegmentationModule

    choose_device(train.device)
    torch.manual_seed(train.seed)
    if init is None:
        net = build_network(model, len(dataset.classes))
        halo, bounded = measure_halo(net, model.in_channels)
    else:
        net, halo, bounded = init.net, init.halo, init.bounded
    facts: dict[str, Any] = {
        "dataset": dataset.name,
        "licence": dataset.licence,
        "citation": dataset.citation,
        "training_data_sha256": dataset.fingerprint("train"),
    }
    if init is not None:
        origin = {key: init.facts[key] for key in ("dataset", "licence", "citation", "init") if key in init.facts}
        facts["init"] = {"name": recipe.init, "weights_sha256": read_digest(Path(recipe.init)), **origin}
        note_other_size(recipe.init, init.voxel_size_um, dataset.voxel_size_um)
    predictor = NetPredictor(
        net, model, dataset.classes, normalization, halo, bounded, sample.patch, dataset.voxel_size_um, facts
    )
    net.train()
    validation = [(held_out[c], z) for c, z in collect_slices(held_out, train.val_slices)]
    steps = train.steps_per_epoch or choose_steps(sampler)
    return SegmentationModule(predictor, criterion, sampler, validation, recipe.augment, train, steps)


def list_splits(dataset: Dataset, recipe: Recipe) -> tuple[str, ...]:
    """Returns the splits that training reads: train and val, or train alone where fine-tuning finds no val.

    Raises:
        DatasetError: One that training needs is missing or empty.
    """
    names = ("train",) if recipe.init and not dataset.splits.get("val") else ("train", "val")
    dataset.split("train")
    if "val" in names and "val" not in dataset.splits:
        raise DatasetError(
            f"{dataset.name}: found no split val, by which training chooses its best weights. Name some images under "
            "splits: val in dataset.yaml, other ones than in train and test; or start from a trained model with --init, "
            "which needs none."
        )
    dataset.split(names[-1])
    return names


def fit(module: SegmentationModule, run: Path) -> None:
    """Trains a network; goes on from `checkpoints/last.ckpt` if the run has one.

    Writes, after every epoch: `model/` (the best by validation macro F1, or the last where nothing is validated),
    `checkpoints/last.ckpt` and `best.ckpt`, `metrics.csv` and `training.json`.

    Args:
        module: From `prepare`.
        run: Run folder; the caller has checked that it belongs to these settings.

    Raises:
        TrainingError: The loss is not finite.
    """
    import lightning

    from neurotome.training.keeper import Keeper

    settings = module.settings
    sweep_partials(run)
    last = run / "checkpoints" / "last.ckpt"
    with _quiet_lightning():
        trainer = lightning.Trainer(
            accelerator={"auto": "auto", "cuda": "gpu"}.get(settings.device, settings.device),
            devices=1,
            precision=choose_precision(settings),
            max_epochs=settings.epochs,
            gradient_clip_val=settings.clip or None,
            logger=_build_logger(run) if settings.tensorboard else False,
            callbacks=[Keeper(run, module)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if module.validation else 0,
            log_every_n_steps=10,
            default_root_dir=run,
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, ckpt_path=last if last.is_file() else None, weights_only=True)
        except SystemExit as stopped:
            # Lightning turns Ctrl-C into an exit and leaves the signal ignored
            raise KeyboardInterrupt from stopped
        finally:
            if signal.getsignal(signal.SIGINT) is not handler and handler is not None:
                signal.signal(signal.SIGINT, handler)


def is_finished(run: Path) -> bool:
    """Says whether a run's training has come to its end."""
    path = run / "training.json"
    return path.is_file() and bool(json.loads(path.read_text())["finished"])


def choose_steps(sampler: PatchSampler) -> int:
    """Returns the steps of an epoch: one pass, or 50 if that is more, so that scoring does not take most of the time."""
    passes = sampler.steps_per_pass
    return passes if sampler.settings.order == "sequential" else max(50, passes)


def choose_precision(settings: TrainSettings) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """Returns Lightning's name of the arithmetic; `auto` is mixed only where that was measured to be faster.

    UNet on ResNet18, 8 patches of 192 x 192, on 2 cores with AMX: 0.5 s a step in 32 bit, 0.19 to 0.27 s in bf16. A CPU
    without such units converts back and forth and gains nothing.
    """
    import torch

    from neurotome.models.net import choose_device, has_fast_bf16

    if settings.precision == "auto":
        if settings.device in ("auto", "cuda") and torch.cuda.is_available():
            return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
        return "bf16-mixed" if choose_device(settings.device) == "cpu" and has_fast_bf16() else "32-true"
    names: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
        "32": "32-true",
        "bf16": "bf16-mixed",
        "16": "16-mixed",
    }
    return names[settings.precision]


def _build_logger(run: Path) -> Any:
    import_extra("tensorboard", "track")
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=run, name="tensorboard", version="")


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's advertisements and hints about settings that are chosen on purpose from the terminal."""
    import logging

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def check_run_folder(run: Path) -> None:
    """Checks that a folder is new, empty, or a run.

    Raises:
        RunError: It holds something else.
    """
    if run.exists() and not run.is_dir():
        raise RunError(f"{run}: a file is in the way; choose another run folder with --out.")
    if run.is_dir() and any(run.iterdir()) and not (run / "config.yaml").is_file():
        raise RunError(f"{run}: this folder holds files that are not a run; choose a new folder with --out.")
