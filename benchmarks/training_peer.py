"""One peer's training, run with the Python of the environment it is installed in (`benchmarks/peers.py` makes that).

`benchmarks/training_speed.py` and `benchmarks/time_to_quality.py` start this script, once per measurement, with a job as
JSON. The last line that it prints is what was found, as JSON.
"""

import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.append(str(Path(__file__).parent))  # at the end, so that no file there hides a package
from peers import declare_operators
from step_clock import StepClock

PIXEL = 255
"""Largest grey value; images are PNG of uint8."""


def list_pairs(job: dict, split: str) -> list[tuple[Path, Path]]:
    """Returns image and label file of each slice of a split."""
    return [
        tuple(Path(job["data"]) / kind / f"{name}.png" for kind in ("images", "labels")) for name in job["splits"][split]
    ]


def build_network(job: dict) -> torch.nn.Module:
    """Returns the network that all methods train."""
    declare_operators()
    import segmentation_models_pytorch as smp

    options = {"encoder_weights": None, "in_channels": 1, "classes": len(job["classes"])}
    return smp.create_model(job["decoder"], job["encoder"], **options)


def train_monai(job: dict, clock: StepClock) -> None:
    """MONAI as its guide to fast training has it: cached slices, several crops of each, a thread that draws ahead."""
    net = build_network(job).to(job["device"])
    from monai.data import CacheDataset, ThreadDataLoader
    from monai.engines import SupervisedTrainer
    from monai.losses import DiceCELoss
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        RandFlipd,
        RandRotated,
        RandScaleIntensityd,
        RandSpatialCropSamplesd,
        ScaleIntensityRanged,
    )

    both, crops = ["image", "label"], min(4, job["batch"])
    transforms = Compose(
        [
            LoadImaged(both),
            EnsureChannelFirstd(both, channel_dim="no_channel"),
            ScaleIntensityRanged("image", 0, PIXEL, 0, 1),
            RandSpatialCropSamplesd(both, (job["patch"],) * 2, crops, random_size=False),
            RandFlipd(both, 0.5, 0),
            RandFlipd(both, 0.5, 1),
            RandRotated(both, 3.14, prob=0.5, mode=["bilinear", "nearest"]),
            RandScaleIntensityd("image", 0.2, 0.5),
        ]
    )
    items = [dict(zip(both, map(str, pair), strict=True)) for pair in list_pairs(job, "train")]
    slices = CacheDataset(items, transforms, progress=False)
    loader = ThreadDataLoader(slices, batch_size=job["batch"] // crops, shuffle=True, num_workers=0, drop_last=True)
    trainer = SupervisedTrainer(
        device=torch.device(job["device"]),
        max_epochs=1,
        epoch_length=job["steps"],
        train_data_loader=loader,
        network=net,
        optimizer=torch.optim.AdamW(net.parameters(), 1e-3),
        loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
        amp=job["device"].startswith("cuda"),
        decollate=False,
        optim_set_to_none=True,
    )
    with clock:
        trainer.run()


def plan_nnunet(job: dict, patch: int | None) -> tuple[dict, dict]:
    """Gives nnU-Net the data, lets it plan and preprocess its 2D configuration, and returns plans and dataset.json.

    Args:
        job: The job.
        patch: Edge of the patches that it shall plan for, with the job's batch; None: its own choice of both.
    """
    scratch = Path(job["scratch"])
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(scratch / name)
    os.environ.setdefault("nnUNet_n_proc_DA", str(min(12, os.cpu_count())))
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiment_dataset,
        preprocess,
    )

    class Planner(ExperimentPlanner):
        """Plans for images as large as the patches that are wanted."""

        def get_plans_for_configuration(self, spacing, median_shape, *others):
            shape = median_shape if patch is None else [patch] * len(median_shape)
            plan = super().get_plans_for_configuration(spacing, shape, *others)
            return plan if patch is None else plan | {"batch_size": job["batch"]}

    raw = scratch / "raw" / "Dataset001_slices"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for image, labels in list_pairs(job, "train") + list_pairs(job, "val"):
        shutil.copy(image, raw / "imagesTr" / f"{image.stem}_0000.png")
        shutil.copy(labels, raw / "labelsTr" / labels.name)
    names = {"background": 0} | {f"class {number}": number for number in range(1, len(job["classes"]))}
    count = len(list_pairs(job, "train")) + len(list_pairs(job, "val"))
    content = {"channel_names": {"0": "grey"}, "labels": names, "numTraining": count, "file_ending": ".png"}
    (raw / "dataset.json").write_text(json.dumps(content))
    (raw / "splits_final.json").write_text(json.dumps([{split: job["splits"][split] for split in ("train", "val")}]))
    workers = min(8, os.cpu_count())
    extract_fingerprints([1], num_processes=workers, show_progress_bar=False, verbose=False)
    plans, name = plan_experiment_dataset(1, Planner)
    preprocess([1], name, ("2d",), (workers,), show_progress_bar=False)
    return plans | {"continue_training": False}, content


def train_nnunet(job: dict, clock: StepClock) -> None:
    """nnU-Net's trainer, with its augmentation, loss and optimiser, on the network that all methods train."""
    plans, dataset = plan_nnunet(job, job["patch"])
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class Trainer(nnUNetTrainer):
        @staticmethod
        def build_network_architecture(plans_manager, configuration_manager, inputs, outputs, enable_deep_supervision):
            return build_network(job)

        def set_deep_supervision_enabled(self, enabled):
            """The network has one output."""

    trainer = Trainer(plans, "2d", 0, dataset, torch.device(job["device"]))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, job["steps"], 1
    trainer.enable_deep_supervision, trainer.disable_checkpointing = False, True
    with clock:
        trainer.run_training()


def train_volume_segmantics(job: dict, clock: StepClock) -> None:
    """volume-segmantics' own command from sliced data on: PNG files of the patches' size, which it reads at each step."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would look for a newer one on the network
    os.environ["VOLSEG_NUM_WORKERS"] = str(0 if job["small"] else min(8, os.cpu_count()))
    declare_operators()
    from volume_segmantics.data import legacy_settings_to_pipeline_config
    from volume_segmantics.scripts.train_2d_model import run_trainer_lightning
    from volume_segmantics.utilities import config

    config.SMALL_CUDA_BATCH = config.BIG_CUDA_TRAIN_BATCH = job[
        "batch"
    ]  # it looks at the GPU's memory, and takes one of these
    share, scratch = 0.9, Path(job["scratch"])
    cut_patches(job, scratch, -(-job["steps"] * job["batch"] // share))
    settings = SimpleNamespace(
        model={"encoder_name": job["encoder"], "encoder_weights": None}, image_size=job["patch"],
        training_set_proportion=share, num_cyc_frozen=0, num_cyc_unfrozen=1, use_imagenet_norm=False, starting_lr=1e-3,
        model_output_fn="model",
    )  # fmt: skip
    settings.pipeline_config = legacy_settings_to_pipeline_config(settings)
    with clock:
        run_trainer_lightning(scratch / "images", scratch / "labels", len(job["classes"]), settings, scratch)


def cut_patches(job: dict, folder: Path, number: float) -> None:
    """Writes patches from random places of the training slices as PNG files."""
    from PIL import Image

    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    pairs, draw = list_pairs(job, "train"), random.Random(0)
    for patch in range(int(number)):
        image, labels = (Image.open(path) for path in pairs[patch % len(pairs)])
        left, top = (draw.randint(0, max(0, size - job["patch"])) for size in image.size)
        box = (left, top, left + job["patch"], top + job["patch"])
        image.crop(box).save(folder / "images" / f"data{patch:06d}.png")
        labels.crop(box).save(folder / "labels" / f"seg{patch:06d}.png")


class TimeIsUp(Exception):  # noqa: N818
    """Ends nnU-Net's training."""


def learn_nnunet(job: dict) -> dict:
    """nnU-Net's 2D configuration until the limit, its learning rate falling with the time; predicts with mirroring."""
    plans, dataset = plan_nnunet(job, None if job["method"] == "nnunet" else job["patch"])
    import numpy as np
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from PIL import Image

    prepared, steps = time.time() - job["started"], 0

    class Trainer(nnUNetTrainer):
        def train_step(self, batch):
            nonlocal steps
            share = check_time()
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * (1 - share) ** 0.9
            steps += 1
            return super().train_step(batch)

        def validation_step(self, batch):
            check_time()
            return super().validation_step(batch)

    def check_time() -> float:
        share = (time.time() - job["started"]) / job["seconds"]
        if share >= 1:
            raise TimeIsUp
        return share

    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])  # noqa: NPY002  # what its workers draw from
    trainer = Trainer(plans, "2d", 0, dataset, torch.device(job["device"]))
    try:
        trainer.run_training()
    except TimeIsUp:
        trainer.on_train_end()
    ended = time.time()
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    on_gpu = job["device"].startswith("cuda")
    predictor = nnUNetPredictor(
        device=torch.device(job["device"]), perform_everything_on_device=on_gpu, verbose=False, allow_tqdm=False
    )
    # its compiled network names its weights otherwise
    network = getattr(trainer.network, "_orig_mod", trainer.network)
    predictor.manual_initialization(
        network, trainer.plans_manager, trainer.configuration_manager, [network.state_dict()], dataset,
        "nnUNetTrainer", trainer.inference_allowed_mirroring_axes,
    )  # fmt: skip
    for path, _ in list_pairs(job, "test"):
        image, properties = NaturalImage2DIO().read_images((str(path),))
        found = predictor.predict_single_npy_array(image, properties)
        Image.fromarray(found[0].astype(np.uint8)).save(Path(job["labels"]) / path.name)
    plan = trainer.configuration_manager
    sizes = {"patch": [int(edge) for edge in plan.patch_size], "batch": int(plan.batch_size)}
    return {"seconds": ended - job["started"], "steps": steps, "prepared_s": prepared, **sizes}


SPEED = {"monai": train_monai, "nnunet": train_nnunet, "volume-segmantics": train_volume_segmantics}

QUALITY = {"nnunet": learn_nnunet, "nnunet, 256": learn_nnunet}


def do_job(job: dict) -> dict:
    torch.set_num_threads(job["threads"])
    if "seconds" in job:
        return QUALITY[job["method"]](job)
    clock = StepClock(job["warmup"], job["steps"], job["batch"], job["started"])
    SPEED[job["method"]](job, clock)
    return clock.summarise()


if __name__ == "__main__":
    print(json.dumps(do_job(json.loads(sys.argv[1]))))
