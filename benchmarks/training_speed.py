"""How fast training is: neurotome beside the step limit, a plain script, MONAI, nnU-Net and volume-segmantics, in turn.

    python benchmarks/training_speed.py peers --peers runs/peers
    python benchmarks/training_speed.py --peers runs/peers --out runs/training_speed

The first command makes the peers' environments; a method whose environment is not there is left out and named. Each
measurement is a process of its own. Methods take turns (a b c a b c), and ratios are those of one repetition. All train the
same network on patches of the same size, and are timed alike: from the end of one optimiser step to the end of the next, so
that waiting for a batch counts. The CPU of a step is that of the training process and its threads, without worker processes;
it hardly depends on other work on the machine. A GPU launches steps ahead, so there only images per second tell. The first
step is counted from the start of the process, with all preparations. Each result is a file under `--out`; a run that was
stopped goes on with the same command.

Methods:
    limit              forward, backward and fused AdamW on one random batch on the device, channels last, in the arithmetic
                       and on a CPU with the heap that neurotome chooses: nothing with these steps is faster
    limit, compiled    the same after torch.compile (GPU only)
    neurotome          `neurotome.train` with its defaults
    neurotome, compiled  the same with train.compile on, which long trainings on a GPU choose themselves (GPU only)
    plain              `plain_recipe.py`: Lightning, DataLoader, torchvision's transforms on each sample, float32
    monai              CacheDataset, its transforms, its ThreadDataLoader and its SupervisedTrainer
    nnunet             nnU-Net's trainer, with its augmentation and loss, on this network instead of its own
    volume-segmantics  its Lightning trainer, which has U-Nets only; PNG files of the patches' size are cut beforehand

`--small` does two steps on tiny patches of whatever is installed, to see that all still runs.
"""

import argparse
import os
import statistics
from pathlib import Path

from peers import make_environments
from training_jobs import describe_data, find_missing, measure, name_processor, write_slices

from neurotome.datasets.phantom.make import PhantomSettings

METHODS = ("limit", "limit, compiled", "neurotome", "neurotome, compiled", "plain", "monai", "nnunet", "volume-segmantics")
NETWORKS = ("unet/resnet18", "unet/resnet50", "linknet/resnet18")

IMAGES = {"cpu": 320, "cuda": 19200}
"""Patches that a measurement times, whatever the batch."""

BATCHES = {"cpu": (8, 32), "cuda": (64,)}


def plan_jobs(arguments: argparse.Namespace, methods: list[str]) -> list[tuple[str, dict]]:
    """Returns the jobs in their order, each with the name of its result."""
    jobs = []
    for repetition in range(arguments.repetitions):
        for network in arguments.networks:
            decoder, encoder = network.split("/")
            for batch in arguments.batches:
                timed = 1 if arguments.small else max(4, arguments.images // batch)
                for method in methods:
                    if method == "volume-segmantics" and decoder != "unet":
                        continue
                    job = {
                        "method": method, "decoder": decoder, "encoder": encoder, "patch": arguments.patch, "batch": batch,
                        "warmup": arguments.warmup, "steps": arguments.warmup + timed, "threads": arguments.threads,
                        "device": arguments.device, "seed": 0, "small": arguments.small, "dataset": arguments.data,
                        "repetition": repetition,
                    }  # fmt: skip
                    jobs.append((f"{decoder}-{encoder}-{batch}-{repetition}-{method.replace(', ', '-')}", job))
    return jobs


def tabulate(results: list[dict]) -> str:
    """Returns a table in Markdown for each network and batch; ratios are medians, with ranges, over the repetitions."""
    cells: dict[str, dict[str, dict[int, dict]]] = {}
    for result in results:
        job = result["job"]
        cell = f"{job['decoder']} on {job['encoder']}, {job['batch']} patches of {job['patch']} x {job['patch']}"
        cells.setdefault(cell, {}).setdefault(job["method"], {})[job["repetition"]] = result["found"]
    lines = []
    for cell, methods in cells.items():
        others = [other for other in ("limit", "limit, compiled", "plain") if other in methods]
        heads = ["method", "images/s", *(f"times {other}" for other in others)]
        heads += ["median step, s", "CPU of a step, s", "first step after, s", "peak memory, GB"]
        lines += ["", cell, "", "| " + " | ".join(heads) + " |", "|-" * len(heads) + "|"]
        for method, found in methods.items():
            columns = [spread([run["images_per_second"] for run in found.values()], 2)]
            columns += [spread(compare(found, methods[other]), 2) for other in others]
            seconds = ("median_step_s", "cpu_step_s", "first_step_s")
            columns += [spread([run[key] for run in found.values()], 2) for key in seconds]
            columns.append(f"{max(run['peak_memory_bytes'] for run in found.values()) / 1e9:.2f}")
            lines.append(f"| {method} | {' | '.join(columns)} |")
        whole = methods.get("neurotome", {}).values()
        if whole:
            rates = spread([run["run_images_per_second"] for run in whole], 2)
            steps = spread([run["own_median_step_s"] for run in whole], 3)
            lines += ["", f"neurotome over the whole run, validation and checkpoint included: {rates} images/s; median step"]
            lines[-1] += f" by its training.json {steps} s."
    return "\n".join(lines)


def compare(found: dict[int, dict], other: dict[int, dict]) -> list[float]:
    """Returns how many times as fast a method is as another, in each repetition that has both."""
    key = "images_per_second"
    return [run[key] / other[repetition][key] for repetition, run in found.items() if repetition in other]


def spread(values: list[float], digits: int) -> str:
    """Returns median and range of some values."""
    if not values:
        return ""
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def parse_arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("measure", "peers"), default="measure")
    parser.add_argument("--out", type=Path, default=Path("runs/training_speed"))
    parser.add_argument("--peers", type=Path, default=Path("runs/peers"), help="folder of the peers' environments")
    parser.add_argument("--data", default="phantom", help="a dataset of uint8 images, as for neurotome train")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="DECODER/ENCODER")
    parser.add_argument("--batches", nargs="+", type=int, help="default: 8 and 32 on a CPU, 64 on a GPU")
    parser.add_argument("--patch", type=int, default=256)
    parser.add_argument("--images", type=int, help=f"patches that a measurement times; default: {IMAGES}")
    parser.add_argument("--warmup", type=int, help="steps before; default: 2 on a CPU, 20 on a GPU")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--small", action="store_true", help="two steps on tiny patches, one network, one repetition")
    arguments = parser.parse_args(given)
    if arguments.device is None:
        import torch

        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.batches = arguments.batches or BATCHES[arguments.device]
    arguments.images = arguments.images or IMAGES[arguments.device]
    arguments.warmup = arguments.warmup or {"cpu": 2, "cuda": 20}[arguments.device]
    if arguments.small:
        arguments.networks, arguments.batches, arguments.patch = arguments.networks[:1], (2,), 64
        arguments.warmup = arguments.repetitions = 1
    return arguments


def main(given: list[str] | None = None) -> None:
    arguments = parse_arguments(given)
    if arguments.command == "peers":
        make_environments(arguments.peers)
        return
    methods = [method for method in arguments.methods if arguments.device == "cuda" or "compiled" not in method]
    missing = find_missing(methods, arguments.peers)
    edge, depth = (arguments.patch, 1) if arguments.small else (max(384, arguments.patch), 6)
    folder = arguments.out / "data"
    sizes = PhantomSettings(height=edge, width=edge, train_depth=depth, val_depth=1, test_depth=1)
    write_slices(arguments.data, folder, sizes)
    data, results = describe_data(folder), []
    for name, job in plan_jobs(arguments, [method for method in methods if method not in missing]):
        if result := measure(arguments.out / "results" / f"{name}.json", job, data, arguments.peers):
            results.append(result)
    print(f"{name_processor()}, {arguments.threads} threads, device {arguments.device}")
    print(tabulate(results))
    if missing:
        print(f"\nnot installed under {arguments.peers}: {', '.join(missing)}; `{Path(__file__).name} peers` does that")
    busy = [result["facts"]["busy"] for result in results]
    print(f"\nother work kept the processor busy before a measurement by {spread(busy, 0)} %")


if __name__ == "__main__":
    main()
