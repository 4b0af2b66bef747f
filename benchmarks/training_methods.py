"""One training in neurotome's own environment, timed or scored: the step limit, neurotome, or the plain recipe.

`benchmarks/training_speed.py` and `benchmarks/time_to_quality.py` start this script, once per measurement, with a job as
JSON. The last line that it prints is what was found, as JSON.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from step_clock import StepClock

from neurotome import train
from neurotome.lazy import mend_torchvision
from neurotome.models.back_ends.heap import share_heap
from neurotome.models.networks import ModelSettings, build_network
from neurotome.training.fit import choose_precision
from neurotome.training.recipe import Recipe, TrainSettings
from neurotome.training.sampler import SampleSettings

RESERVE_S = {"cpu": 10, "cuda": 20}
"""Left of a time limit for what neurotome does before its own clock runs, and for the last validation."""

UNLIMITED = 1_000_000
"""Epochs of a training that time ends."""


def time_limit(job: dict, clock: StepClock, compiled: bool = False) -> None:
    """Does nothing but steps, on one batch that stays on the device: what no training with these steps can beat."""
    kind = job["device"].partition(":")[0]
    if kind == "cpu":
        share_heap()
    mixed = choose_precision(TrainSettings(device=job["device"])) != "32-true"
    net = build_network(ModelSettings(job["decoder"], job["encoder"]), len(job["classes"])).train()
    net = net.to(job["device"], memory_format=torch.channels_last)
    run = torch.compile(net) if compiled else net
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, fused=True)
    shape = (job["batch"], 1, job["patch"], job["patch"])
    images = torch.randn(shape, device=job["device"]).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(len(job["classes"]), (shape[0], *shape[2:]), device=job["device"])
    with clock:
        for _ in range(job["steps"]):
            with torch.autocast(kind, torch.bfloat16, enabled=mixed):
                logits = run(images)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def time_compiled_limit(job: dict, clock: StepClock) -> None:
    time_limit(job, clock, compiled=True)


def time_neurotome(job: dict, clock: StepClock, compiled: bool = False) -> dict:
    """Trains by the public function for one epoch, with defaults but for network, sizes and number of steps."""
    run = Path(job["scratch"]) / "run"
    recipe = Recipe(
        model=ModelSettings(job["decoder"], job["encoder"]),
        sample=SampleSettings(patch=job["patch"], batch=job["batch"]),
        train=TrainSettings(
            epochs=1, steps_per_epoch=job["steps"], device=job["device"], compile="on" if compiled else "auto"
        ),
    )
    with clock:
        train(Path(job["data"]), out=run, recipe=recipe)
    training = json.loads((run / "training.json").read_text())
    return {
        "own_median_step_s": training["median_step_seconds"],
        "run_images_per_second": job["batch"] * training["steps"] / training["seconds"],
        "precision": training["precision"],
    }


def time_compiled_neurotome(job: dict, clock: StepClock) -> dict:
    return time_neurotome(job, clock, compiled=True)


def time_plain(job: dict, clock: StepClock) -> None:
    with clock:
        train_plain(job, lambda step: step / job["steps"])


def train_plain(job: dict, share) -> torch.nn.Module:
    mend_torchvision()  # torchvision for GPUs does not load beside a torch for CPUs otherwise
    import plain_recipe

    # in small jobs nothing is timed, and starting workers takes longest
    few = {"workers": 0} if job["small"] else {}
    sizes = {key: job[key] for key in ("decoder", "encoder", "patch", "batch", "seed")}
    accelerator = "gpu" if job["device"].startswith("cuda") else job["device"]
    return plain_recipe.train(job["data"], classes=len(job["classes"]), share=share, accelerator=accelerator, **sizes, **few)


def learn_neurotome(job: dict) -> dict:
    """Trains with defaults until the limit; what follows the training, scores and a report, is not counted."""
    run = Path(job["scratch"]) / "run"
    seconds = job["seconds"] - (time.time() - job["started"]) - RESERVE_S[job["device"].partition(":")[0]]
    limits = TrainSettings(epochs=UNLIMITED, max_time=f"{max(1, seconds):.0f}s", seed=job["seed"], device=job["device"])
    small = {"sample": SampleSettings(patch=job["patch"], batch=job["batch"])} if job["small"] else {}
    train(Path(job["data"]), out=run, recipe=Recipe(train=limits, **small))
    training = json.loads((run / "training.json").read_text())
    for path in (run / "predictions" / "test").iterdir():
        path.rename(Path(job["labels"]) / path.name)
    ended = max(path.stat().st_mtime for path in (run / "checkpoints").iterdir())  # written last, when training has ended
    return {"seconds": ended - job["started"], "steps": training["steps"]}


def learn_plain(job: dict) -> dict:
    """Trains until the limit and predicts whole slices."""
    steps = 0

    def share(step: int) -> float:
        nonlocal steps
        steps = max(steps, step)
        return (time.time() - job["started"]) / job["seconds"]

    net = train_plain(job, share)
    ended = time.time()
    for name in job["splits"]["test"]:
        image = np.array(Image.open(Path(job["data"]) / "images" / f"{name}.png"), np.float32) / 255
        height, width = image.shape
        padded = np.pad(image, ((0, -height % 32), (0, -width % 32)), mode="edge")
        with torch.inference_mode():
            found = net(torch.from_numpy(padded)[None, None])[0, :, :height, :width].argmax(0)
        Image.fromarray(found.numpy().astype(np.uint8)).save(Path(job["labels"]) / f"{name}.png")
    return {"seconds": ended - job["started"], "steps": steps}


SPEED = {
    "limit": time_limit,
    "limit, compiled": time_compiled_limit,
    "neurotome": time_neurotome,
    "neurotome, compiled": time_compiled_neurotome,
    "plain": time_plain,
}

QUALITY = {"neurotome": learn_neurotome, "plain": learn_plain}


def do_job(job: dict) -> dict:
    torch.set_num_threads(job["threads"])
    if "seconds" in job:
        return QUALITY[job["method"]](job)
    clock = StepClock(job["warmup"], job["steps"], job["batch"], job["started"])
    more = SPEED[job["method"]](job, clock) or {}
    return clock.summarise() | more


if __name__ == "__main__":
    print(json.dumps(do_job(json.loads(sys.argv[1]))))
