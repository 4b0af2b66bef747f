"""SegmentationModule: what Lightning runs at each step, and what a checkpoint holds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import EVAL_DATALOADERS, TRAIN_DATALOADERS
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from neurotome.augment import AugmentSettings, augment
from neurotome.datasets.base import Cutout
from neurotome.errors import TrainingError
from neurotome.metrics import confusion, scores
from neurotome.models.net import Network
from neurotome.models.net_predictor import NetPredictor
from neurotome.predictor import predict_slice
from neurotome.training.sampler import PatchSampler

if TYPE_CHECKING:
    from neurotome.training.recipe import TrainSettings


class BatchStream(IterableDataset[Any]):
    """The batches of one epoch, counted from the step at which it begins."""

    def __init__(self, sampler: PatchSampler, steps: int, next_step: Callable[[], int]) -> None:
        self.sampler, self.steps, self.next_step = sampler, steps, next_step

    def __iter__(self) -> Iterator[Any]:
        start = self.next_step()
        for step in range(start, start + self.steps):
            images, labels = self.sampler.draw(step)
            yield torch.from_numpy(images), torch.from_numpy(labels)


class SegmentationModule(lightning.LightningModule):
    """A network in training.

    Attributes:
        predictor: The network that is validated and saved: the trained one, or its moving average.
        history: One row per epoch, in checkpoints too, so that metrics.csv is whole after a resume.
        best: Highest validation macro F1 so far.
        seconds: Time spent training, summed over all sessions.
    """

    def __init__(
        self,
        predictor: NetPredictor,
        loss: Callable[[Tensor, Tensor], Tensor],
        sampler: PatchSampler,
        validation: Sequence[tuple[Cutout, int]],
        augment_settings: AugmentSettings,
        settings: TrainSettings,
    ) -> None:
        super().__init__()
        self.net = predictor.net
        self.predictor = predictor
        self.average: AveragedModel | None = None
        if settings.average:
            self.average = AveragedModel(
                self.net,
                multi_avg_fn=get_ema_multi_avg_fn(settings.average),  # type: ignore[no-untyped-call]
                use_buffers=True,
            )
            averaged = self.average.module
            assert isinstance(averaged, Network)
            predictor.net = averaged.eval()
        self.loss, self.sampler, self.validation = loss, sampler, validation
        # once, because an image's own scale is measured on the whole image
        cutouts = {id(cutout): cutout for cutout, _ in validation}
        self.scales = {key: predictor.normalization.scale_for(cutout.volume) for key, cutout in cutouts.items()}
        self.augment_settings, self.settings = augment_settings, settings
        self.steps_per_epoch, self.rate = int(settings.steps_per_epoch), float(settings.learning_rate)
        norms = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.instancenorm._InstanceNorm)
        self.frozen = [m for m in self.net.modules() if isinstance(m, norms)] if settings.freeze_statistics else []
        self.total_steps = self.steps_per_epoch * settings.epochs
        self.history: list[dict[str, float | None]] = []
        self.best = -math.inf
        self.stale = 0
        self.seconds = 0.0
        self.clock = time.monotonic()
        self.losses: list[Tensor] = []
        self.confusion = np.zeros((len(predictor.classes),) * 2, np.int64)
        self.surprise = np.zeros(2)
        self.last_loss = math.nan

    def share_done(self) -> float:
        """Returns how much of the training is done, 0 to 1, by steps or by time, whichever is further."""
        by_steps = self.global_step / self.total_steps
        limit = self.settings.max_seconds
        return min(1.0, max(by_steps, self.elapsed() / limit if limit else 0.0))

    def elapsed(self) -> float:
        """Returns the seconds spent training, all sessions together."""
        return self.seconds + time.monotonic() - self.clock

    def train_dataloader(self) -> TRAIN_DATALOADERS:
        """Returns the batches of an epoch."""
        return DataLoader(BatchStream(self.sampler, self.steps_per_epoch, lambda: self.global_step), batch_size=None)

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """Returns the positions of the validation slices."""
        return DataLoader(range(len(self.validation)), batch_size=None)  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns the optimiser; its learning rate is set before every step."""
        settings = self.settings
        parameters = list(self.net.parameters())
        # on a GPU, gradient scaling and clipping do not go with fused steps
        common: dict[str, Any] = {
            "lr": self.rate,
            "weight_decay": settings.weight_decay,
            "fused": self.device.type == "cpu",
        }
        match settings.optimizer:
            case "adam":
                return torch.optim.Adam(parameters, **common)
            case "adamw":
                return torch.optim.AdamW(parameters, **common)
            case "sgd":
                return torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **common)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Limits the norm of the gradient."""
        if self.device.type != "cpu":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            # Lightning refuses this beside fused steps in mixed precision, for the sake of a scaling that bf16 does not
            # have; fused steps take a third of the time of others
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), gradient_clip_val)

    def on_train_start(self) -> None:
        """Starts the clock."""
        self.clock = time.monotonic()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets the learning rate from the share of training that is done; keeps frozen statistics frozen."""
        for norm in self.frozen:
            norm.eval()
        factor = schedule_factor(self.settings.schedule, self.share_done(), self.settings.warmup)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.rate * factor

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Augments a batch on the device and returns its loss.

        Raises:
            TrainingError: The loss is not a finite number.
        """
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.global_step)
        # only the network runs in mixed precision: rounded to 8 bits, deformations jump and losses lose their small terms
        with torch.autocast(self.device.type, enabled=False):
            images, labels = augment(*batch, self.augment_settings, self.predictor.classes.ignore, generator)
        logits = self.net(images.contiguous(memory_format=torch.channels_last))
        with torch.autocast(self.device.type, enabled=False):
            loss = self.loss(logits.float(), labels)
        self.last_loss = loss.item()
        if not math.isfinite(self.last_loss):
            raise TrainingError(
                f"the loss became {self.last_loss} at step {self.global_step}; expected a finite number. The last good "
                "checkpoint is kept. Lower --train.learning-rate, set --train.clip 1, or use --train.precision 32, in a "
                "new run folder."
            )
        self.losses.append(loss.detach())
        if self.logger is not None:
            self.log("train_loss", loss.detach())
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Moves the average of the weights."""
        if self.average is not None:
            self.average.update_parameters(self.net)

    def on_validation_epoch_start(self) -> None:
        """Empties the counts."""
        self.confusion[:] = 0
        self.surprise[:] = 0
        self.predictor.net.eval()

    def validation_step(self, index: int, batch_idx: int) -> None:
        """Predicts a whole slice and counts it."""
        cutout, z = self.validation[index]
        classes = self.predictor.classes
        image = self.scales[id(cutout)].apply(cutout.volume.read_context(z, self.predictor.in_channels))
        probs = predict_slice(self.predictor, image)
        truth = cutout.read_labels(z)
        self.confusion += confusion(truth, probs.argmax(0), classes)
        known = truth != classes.ignore
        right = np.take_along_axis(probs, np.where(known, truth, 0)[None], 0)[0][known]
        self.surprise += (-np.log(np.maximum(right, 1e-12)).sum(dtype=np.float64), known.sum())

    def on_validation_epoch_end(self) -> None:
        """Adds the epoch's row to the history."""
        self.add_row()

    def add_row(self) -> None:
        """Adds a row to the history; its scores are empty if nothing was validated."""
        found = scores(self.confusion, self.predictor.classes.names)
        row: dict[str, float | None] = {
            "epoch": self.current_epoch,
            "step": self.global_step,
            "seconds": round(self.elapsed(), 3),
            "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": float(torch.stack(self.losses).mean()) if self.losses else None,
            "val_loss": float(self.surprise[0] / self.surprise[1]) if self.surprise[1] else None,
            "val_macro_f1": found["macro"]["f1"],
        }
        row |= {f"val_f1_{name}": found["per_class"][name]["f1"] for name in self.predictor.classes.names}
        self.losses.clear()
        self.history.append(row)
        if self.logger is not None:
            self.log_dict({k: v for k, v in row.items() if k.startswith("val_") and v is not None})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a resumed run must know."""
        checkpoint["neurotome"] = {
            "history": self.history,
            "best": self.best,
            "stale": self.stale,
            "seconds": self.elapsed(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores it."""
        kept = checkpoint["neurotome"]
        self.history, self.best = kept["history"], kept["best"]
        self.stale, self.seconds = kept["stale"], kept["seconds"]


def schedule_factor(schedule: str, done: float, warmup: float) -> float:
    """Returns the factor on the learning rate.

    Args:
        schedule: `constant`, `cosine` (Loshchilov and Hutter 2017, arXiv 1608.03983) or `one-cycle` (Smith and Topin
            2018, arXiv 1708.07120: cosine up from 1/25 over 30 %, then down to 1/10000).
        done: Share of the training that is done, 0 to 1.
        warmup: Share over which constant and cosine rise linearly.
    """
    if schedule == "one-cycle":
        if done < 0.3:
            return 1 / 25 + (1 - 1 / 25) * 0.5 * (1 - math.cos(math.pi * done / 0.3))
        return 1e-4 + (1 - 1e-4) * 0.5 * (1 + math.cos(math.pi * (done - 0.3) / 0.7))
    if done < warmup:
        return max(done, 0.01 * warmup) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
