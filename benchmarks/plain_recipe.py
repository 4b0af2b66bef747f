"""A training as one writes it in an afternoon, in the founding report's style: what neurotome's is compared with.

Lightning, a DataLoader, torchvision's transforms on each sample, float32, a network of segmentation_models_pytorch, nothing
of neurotome. It is no straw man: crops are random, Dice stands beside cross-entropy, and the learning rate falls.
"""

import math
import os
from pathlib import Path

import lightning
import numpy as np
import segmentation_models_pytorch as smp
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2


class Patches(Dataset):
    """Random patches of a folder's training slices, turned and flipped; what rotation invents is not learned."""

    def __init__(self, folder: Path, patch: int, length: int) -> None:
        names = yaml.safe_load((folder / "dataset.yaml").read_text())["splits"]["train"]
        self.pairs = [
            [np.array(Image.open(folder / kind / f"{name}.png")) for kind in ("images", "labels")] for name in names
        ]
        self.length = length
        self.transform = v2.Compose(
            [
                v2.RandomCrop(patch, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.RandomRotation(180, v2.InterpolationMode.BILINEAR, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}),
                v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
            ]
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, labels = self.pairs[number % len(self.pairs)]
        return self.transform(tv_tensors.Image(image[None]), tv_tensors.Mask(labels))


class Plain(lightning.LightningModule):
    def __init__(self, decoder: str, encoder: str, classes: int, share) -> None:
        super().__init__()
        self.net = smp.create_model(decoder, encoder, encoder_weights=None, in_channels=1, classes=classes)
        self.entropy = torch.nn.CrossEntropyLoss(ignore_index=255)
        self.dice = smp.losses.DiceLoss("multiclass", ignore_index=255)
        self.share = share  # of the training that is done after a number of steps; it ends with 1

    def training_step(self, batch, number):
        images, labels = batch
        logits = self.net(images)
        return self.entropy(logits, labels) + self.dice(logits, labels)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        fall = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5 + 0.5 * math.cos(math.pi * min(1, self.share(n))))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": fall, "interval": "step"}}

    def on_train_batch_end(self, *_) -> None:
        self.trainer.should_stop = self.share(self.global_step) >= 1


def train(folder, decoder, encoder, classes, patch, batch, share, accelerator="auto", seed=0, workers=None):
    """Trains until `share` of the steps done says 1, and returns the network."""
    lightning.seed_everything(seed, workers=True)
    workers = min(8, os.cpu_count()) if workers is None else workers
    patches = Patches(Path(folder), patch, 250 * batch)
    loader = DataLoader(patches, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    module = Plain(decoder, encoder, classes, share)
    lightning.Trainer(accelerator=accelerator, devices=1, max_epochs=-1, **silent).fit(module, loader)
    return module.net.eval()
