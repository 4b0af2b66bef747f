"""SegmentationModule: what is done at each step, and what a checkpoint holds.

Steps and epochs are counted here and not by Lightning, whose own count begins anew with every session.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurotome.augment import AugmentSettings
from neurotome.datasets.base import Cutout, Dataset
from neurotome.errors import TrainingError
from neurotome.metrics import confusion, scores
from neurotome.models.net import Network
from neurotome.models.net_predictor import NetPredictor
from neurotome.predictor import TILE, predict_slice
from neurotome.training.across import ShareStatistics
from neurotome.training.average import MovingAverage
from neurotome.training.batches import Batch, BatchMaker, BatchStream, seed_of_step
from neurotome.training.checkpoints import AVERAGED
from neurotome.training.machine import choose_machine, compile_forward, seed_device
from neurotome.training.rank import Rank
from neurotome.training.recorded import Compute, record_step
from neurotome.training.sampler import PatchSampler, group_runs, group_slices
from neurotome.training.schedule import schedule_factor

if TYPE_CHECKING:
    from neurotome.training.recipe import Recipe, TrainSettings

DROPOUT, OF_RANK = 1 << 62, 1 << 52
"""Added to the seed of a step for what the network itself draws, and for each rank once more, so that augmentation and
dropout do not draw alike, nor dropout on two ranks."""

TOGETHER = {"cpu": 1 << 17, "cuda": TILE**2}
"""Most pixels of slices that are validated together. On one core, 8 slices of 128 x 128 take 0.7 of the time that they take
one by one, 4 of 256 x 256 as long, and 16 of these 1.1 times as long; a GPU is not busy with few."""


class SegmentationModule(lightning.LightningModule):
    """A network in training.

    Attributes:
        rank: Which part of every batch and of the validation is done here; the network is the same on all ranks.
        origin: What another process makes the same module of; None where only this one is meant to have it.
        predictor: The network that is validated and saved: the trained one, or its moving average.
        machine: What was chosen for the hardware.
        batches: Makes what each step learns from, once the device is known.
        step: Steps done, in all sessions.
        history: One row per epoch, in checkpoints too, so that metrics.csv is whole after a resume.
        losses: Of the steps since the last row.
        checked: How many of them have been read and are finite.
        best: Highest validation macro F1 so far.
        stale: Epochs since then.
    """

    def __init__(
        self,
        predictor: NetPredictor,
        loss: Callable[[Tensor, Tensor], Tensor],
        sampler: PatchSampler,
        validation: Sequence[tuple[Cutout, int]],
        augment_settings: AugmentSettings,
        settings: TrainSettings,
        rank: Rank,
        origin: tuple[Dataset, Recipe] | None = None,
    ) -> None:
        super().__init__()
        self.rank, self.origin = rank, origin
        self.net = predictor.net
        self.predictor = predictor
        self.average: MovingAverage | None = None
        if settings.average:
            self.average = MovingAverage(self.net, settings.average)
            averaged = self.average.module
            assert isinstance(averaged, Network)
            predictor.net = averaged.eval()
        self.loss, self.sampler, self.validation = loss, sampler, validation
        self.machine = choose_machine(settings, sampler)
        self.batches: BatchMaker | None = None
        self.compiled: Callable[[Tensor], Tensor] | None = None
        self.recorded: Compute | None = None
        # once, because an image's own scale is measured on the whole image
        cutouts = {id(cutout): cutout for cutout, _ in validation}
        self.scales = {key: sampler.scales.scale_for(cutout.volume) for key, cutout in cutouts.items()}
        self.augment_settings, self.settings = augment_settings, settings
        self.steps_per_epoch, self.rate = int(settings.steps_per_epoch), float(settings.learning_rate)
        norms = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.instancenorm._InstanceNorm)
        still = ("",) if settings.freeze_statistics else () if settings.encoder_rate else ("core.encoder.",)
        self.frozen = [m for name, m in self.net.named_modules() if isinstance(m, norms) and name.startswith(still)]
        named = dict(self.net.named_parameters())
        encoder = [parameter for name, parameter in named.items() if name.startswith("core.encoder.")]
        others = [parameter for name, parameter in named.items() if not name.startswith("core.encoder.")]
        is_one = settings.encoder_rate == 1
        self.groups = [(list(self.net.parameters()), 1.0)] if is_one else [(others, 1.0), (encoder, settings.encoder_rate)]
        self.start = [parameter.detach().clone() for parameter in self.net.parameters()] if settings.anchor else []
        self.step, self.total_steps = 0, self.steps_per_epoch * settings.epochs
        self.history: list[dict[str, float | None]] = []
        self.losses: list[Tensor] = []
        self.checked = 0
        self.best = -math.inf
        self.stale = 0
        self.seconds = 0.0
        self.clock: float | None = None
        self.told: float | None = None
        self.restored: Mapping[str, Any] = {}
        self.last_loss = math.nan

    def share_done(self) -> float:
        """Returns how much of the training is done, 0 to 1, by steps or by time, whichever is further."""
        return min(1.0, max(self.step / self.total_steps, self.share_of_time()))

    def share_of_time(self) -> float:
        """Returns how much of the time limit has passed; 0 where there is none."""
        return self.elapsed() / self.settings.max_seconds if self.settings.max_seconds else 0.0

    def elapsed(self) -> float:
        """Returns the seconds spent training, all sessions together; with other ranks, as of when they last met."""
        return self._read_clock() if self.told is None else self.told

    def _read_clock(self) -> float:
        return self.seconds + (time.monotonic() - self.clock if self.clock is not None else 0.0)

    def meet(self, *values: float) -> list[float]:
        """Returns the largest of what the ranks give; they go by one time from here on until they meet again."""
        if self.rank.count == 1:
            return list(values)
        self.told, *largest = self.rank.agree([self._read_clock(), *values])
        return largest

    def is_over(self) -> bool:
        """Says whether the training has come to its end, which it does with an epoch."""
        patience = self.settings.patience
        ended = len(self.history) >= self.settings.epochs or self.share_of_time() >= 1 or 0 < patience <= self.stale
        return ended and not self.losses

    def make_batches(self) -> Iterator[Batch]:
        """Yields the batches that the epoch under way still has."""
        assert self.batches is not None
        end = self.step if self.share_of_time() >= 1 else self._count_before() + self.steps_per_epoch
        return self.batches.make_ahead(self.step, end)

    def _wait_for_batches(self) -> None:
        """Waits until no batch is being made."""
        if self.batches is not None:
            self.batches.wait()

    def train_dataloader(self) -> Any:
        """Returns what gives the batches of an epoch whenever it is iterated over."""
        return BatchStream(self.make_batches)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns the optimiser; its learning rate is set before every step."""
        kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
        }
        optimizer = kinds[self.settings.optimizer](
            [{"params": parameters} for parameters, _ in self.groups],
            lr=self.rate,
            weight_decay=0.0 if self.start else self.settings.weight_decay,
            # with the scaling of float16, fused steps would take it back themselves, after clipping
            fused=self.device.type in ("cpu", "cuda") and self.machine.precision != "16-mixed",
        )
        if self.restored:
            optimizer.load_state_dict(self.restored["optimizer"])
        return optimizer

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *limits: Any, **named_limits: Any) -> None:
        """Limits the norm of the gradient."""
        if self.machine.precision == "16-mixed":  # Lightning takes back the scaling first
            super().configure_gradient_clipping(optimizer, *limits, **named_limits)
        elif self.settings.clip:
            # Lightning refuses this beside fused steps in mixed precision, for the sake of a scaling that bf16 does not
            # have; fused steps take a third of the time of others
            weights = list(self.net.parameters())
            norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
            # a CPU spares itself the way through gradients that are short enough; asking a GPU would mean to wait for it
            if self.device.type != "cpu" or not norm + 1e-6 <= self.settings.clip:
                torch.nn.utils.clip_grads_with_norm_(weights, self.settings.clip, norm)

    def on_fit_start(self) -> None:
        """Takes up what depends on the device, to which the network has been moved."""
        self.recorded = None  # of weights that lay elsewhere
        settings, is_resident = self.settings, self.machine.is_resident
        self.batches = BatchMaker(self.sampler, self.augment_settings, settings.seed, self.rank, self.device, is_resident)
        is_asked = self.settings.compile == "on"
        self.compiled = compile_forward(self.net, is_asked) if self.machine.is_compiled else None
        if self.average is not None:
            self.average.attach(self.net)

    def on_fit_end(self) -> None:
        """Gives back the memory of recorded steps."""
        self.recorded = None

    def on_train_start(self) -> None:
        """Starts the clock."""
        if self.restored:
            self.trainer.precision_plugin.load_state_dict(self.restored["precision"])
            self.restored = {}
        self.clock = time.monotonic()
        self.meet()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets the learning rate from the share of training that is done; keeps frozen statistics frozen."""
        for norm in self.frozen:
            norm.eval()
        factor = schedule_factor(self.settings, self.share_done(), self.step // self.steps_per_epoch)
        for group, (_, own_factor) in zip(self.trainer.optimizers[0].param_groups, self.groups, strict=True):
            group["lr"] = self.rate * factor * own_factor

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss of a batch; raises TrainingError as `check_losses` does."""
        if self.machine.is_recorded and self.recorded is None:
            self._wait_for_batches()
            self.recorded = record_step(self.net, self.compute_loss, *batch, self.settings.cuda_graph == "on")
        # on a GPU the layers that need it have been exchanged
        is_shared = self.rank.count > 1 and self.device.type == "cpu"
        shared = ShareStatistics(self.rank) if is_shared else contextlib.nullcontext()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []), shared:
            seed = seed_of_step(self.settings.seed, self.step)
            seed_device(seed + DROPOUT + OF_RANK * self.rank.number, self.device)
            loss = (self.recorded or self.compute_loss)(*batch)
        self.losses.append(loss.detach())
        if len(self.losses) % self.look_every == 0:
            self.check_losses()
        return loss

    def compute_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of a batch."""
        forward = self.compiled or self.net
        if self.sampler.depth is None:
            logits = forward(images.to(memory_format=torch.channels_last))
        else:  # losses do not ask where a pixel is
            logits = forward(images[:, None]).flatten(2, 3)
            labels = labels.flatten(1, 2)
        # only the network runs in mixed precision: rounded to 8 bits, losses lose their small terms
        with torch.autocast(self.device.type, enabled=False):
            return self.loss(logits.float(), labels)

    @property
    def look_every(self) -> int:
        """Steps after which losses are read; a GPU works on without being waited for until then."""
        return 20 if self.device.type == "cuda" else 1

    def check_losses(self) -> None:
        """Reads the losses not read yet, for which it waits for the device; TrainingError if one is not finite."""
        fresh = self.losses[self.checked :]
        if not fresh:
            return
        for loss in torch.stack(fresh).tolist():
            step = self._count_before() + self.checked
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss became {loss} at step {step}; expected a finite number. The last good checkpoint is kept. "
                    "Lower --train.learning-rate, set --train.clip 1, or use --train.precision 32, in a new run folder."
                )
            self.last_loss, self.checked = loss, self.checked + 1
            if self.logger is not None:
                self.logger.log_metrics({"train_loss": loss}, step=step)

    def _count_before(self) -> int:
        """Returns the steps before the epoch under way."""
        return int(self.history[-1]["step"] or 0) if self.history else 0

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Does a step, counts it, and moves the average of the weights."""
        super().optimizer_step(*args, **kwargs)
        if self.start:
            self._draw_back()
        self.step += 1
        if self.average is not None:
            self.average.follow(self.step)

    @torch.no_grad()
    def _draw_back(self) -> None:
        """Moves the weights towards those that training began with, as decoupled weight decay moves them towards 0.

        L2-SP, Li et al. (2018), arXiv 1802.01483, decoupled from the gradient as in Loshchilov and Hutter (2019),
        arXiv 1711.05101.
        """
        self.start = [weights.to(self.device) for weights in self.start]
        share = min(1.0, self.settings.anchor * self.trainer.optimizers[0].param_groups[0]["lr"])
        torch._foreach_lerp_(list(self.net.parameters()), self.start, share)

    def validate(self, check: Callable[[], None]) -> tuple[NDArray[np.int64], float | None]:
        """Predicts the validation slices; returns confusion counts (truth, predicted) and cross-entropy, if there are any.

        Each rank predicts its share of them. `check` is called after each prediction, by all ranks equally often, and may
        end the training by an exception.
        """
        self._wait_for_batches()  # where time ended the epoch
        classes, pixels, surprise = self.predictor.classes, 0, 0.0
        counts = np.zeros((len(classes),) * 2, np.int64)
        self.predictor.net.eval()
        with self.trainer.precision_plugin.val_step_context():
            groups = list(self._group_validation())
            for first in range(0, len(groups), self.rank.count):
                for group in groups[first : first + self.rank.count][self.rank.number : self.rank.number + 1]:
                    found = self._predict_group(group)
                    for (cutout, z), probs in zip(group, found, strict=True):
                        truth = cutout.read_labels(z)
                        counts += confusion(truth, probs.argmax(0), classes)
                        known = truth != classes.ignore
                        right = np.take_along_axis(probs, np.where(known, truth, 0)[None], 0)[0][known]
                        surprise -= float(np.log(np.maximum(right, 1e-12)).sum(dtype=np.float64))
                        pixels += int(known.sum())
                check()
        self.net.train()
        counts = self.rank.count_all(counts)
        surprise, pixels = self.rank.count_all(np.array([surprise, pixels], np.float64))
        return counts, float(surprise / pixels) if pixels else None

    def _group_validation(self) -> Iterable[list[tuple[Cutout, int]]]:
        """Returns the validation slices that are predicted together: of volumes those that follow each other."""
        if self.sampler.depth is None:
            return group_slices(self.validation, TOGETHER.get(self.device.type, 0))
        return group_runs(self.validation)

    def _predict_group(self, group: Sequence[tuple[Cutout, int]]) -> NDArray[np.float32]:
        """Returns class probabilities of validation slices, shape (n, classes, y, x)."""
        if self.sampler.depth is None:
            images = [self.scales[id(c)].apply(c.volume.read_context(z, self.predictor.in_channels)) for c, z in group]
            return predict_slice(self.predictor, np.stack(images))
        (cutout, first), (_, last) = group[0], group[-1]
        grey, kept = cutout.volume.read_slab(first, last + 1, self.predictor.halo_zyx[0])
        return predict_slice(self.predictor, self.scales[id(cutout)].apply(grey)[:, None])[kept]

    def add_row(self, validated: tuple[NDArray[np.int64], float | None]) -> None:
        """Adds a row to the history, from what `validate` returned; its scores are empty if nothing was validated."""
        counts, loss = validated
        epoch_scores = scores(counts, self.predictor.classes.names)
        row: dict[str, float | None] = {
            "epoch": len(self.history),
            "step": self.step,
            "seconds": round(self.elapsed(), 3),
            "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": float(self._stack_losses().mean()) if self.losses else None,
            "val_loss": loss,
            "val_macro_f1": epoch_scores["macro"]["f1"],
        }
        row |= {f"val_f1_{name}": epoch_scores["per_class"][name]["f1"] for name in self.predictor.classes.names}
        self.losses.clear()
        self.checked = 0
        self.history.append(row)
        if self.logger is not None:
            metrics = {key: value for key, value in row.items() if key.startswith("val_") and value is not None}
            self.logger.log_metrics(metrics, step=self.step)

    def make_checkpoint(self) -> dict[str, Any]:
        """Returns all that a resumed training must know; tensors and JSON values."""
        return {
            "state_dict": self.state_dict(),
            "optimizer": self.trainer.optimizers[0].state_dict(),
            "precision": self.trainer.precision_plugin.state_dict(),
            "step": self.step,
            "history": self.history,
            "losses": self._stack_losses().cpu() if self.losses else torch.empty(0),
            "best": self.best,
            "stale": self.stale,
            "seconds": self.elapsed(),
        }

    def _stack_losses(self) -> Tensor:
        """Returns the losses since the last row, of which those from a checkpoint may lie elsewhere."""
        return torch.stack([loss.to(self.device) for loss in self.losses])

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes up the training where a checkpoint was made; many errors of Python and torch if it is not this network's."""
        weights = dict(checkpoint["state_dict"])
        if self.average is not None and not any(key.startswith(AVERAGED) for key in weights):  # of a finished run
            weights |= {key.replace("net.", AVERAGED, 1): value for key, value in weights.items() if key.startswith("net.")}
        self.load_state_dict(weights)
        self.step, self.history, self.best = checkpoint["step"], checkpoint["history"], checkpoint["best"]
        self.stale, self.seconds = checkpoint["stale"], checkpoint["seconds"]
        self.losses = list(checkpoint["losses"])
        self.checked = len(self.losses)
        self.restored = {key: checkpoint[key] for key in ("optimizer", "precision")}
