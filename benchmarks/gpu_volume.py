"""A GPU's bare forward rate, the rate of label_patches, and `neurotome predict` from disk to disk; prints JSON.

    python benchmarks/gpu_volume.py --shape 64,2048,2048 --edge 1024 --batch 8

Rates are Mpixels that enter the network per second, so that halos count alike on both sides; `written` are voxels of
the result. The volume is predicted twice, half of it and all of it, and the difference tells the rate without the start.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import zarr

from neurotome.classes import ClassSet
from neurotome.inference.geometry import Geometry, count_read_share
from neurotome.inference.predict import predict
from neurotome.inference.predict_settings import PredictSettings
from neurotome.inference.volume_settings import VolumeSettings
from neurotome.models.back_ends.attach import attach_back_end
from neurotome.models.back_ends.memory import measure_bytes_per_pixel
from neurotome.models.model_folder import save_model
from neurotome.models.net import choose_device, measure_halo
from neurotome.models.net_predictor import NetPredictor
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization, Scale


def build(device: str) -> NetPredictor:
    torch.manual_seed(0)
    settings = ModelSettings("unet", "resnet18", in_channels=1, encoder_depth=5)
    net = build_network(settings, 4)
    net.eval()
    with torch.no_grad():  # so that every class is somewhere the most likely
        net.core.segmentation_head[0].bias -= net(torch.randn(1, 1, 256, 256)).mean((0, 2, 3))
    halo, _ = measure_halo(net, 1)
    classes = ClassSet(("background", "vessel", "cell", "axon"))
    predictor = NetPredictor(net, settings, classes, Normalization("dataset", 123.0, 31.0, "uint8"), halo)
    predictor.net.to(device)
    return predictor


def time_rounds(work, pixels: int, rounds: int, wait) -> dict[str, float]:
    for _ in range(3):
        work()
    seconds = []
    for _ in range(rounds):
        wait()
        began = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - began)
    rates = sorted(pixels / second / 1e6 for second in seconds)
    return {"mpixels_per_s": statistics.median(rates), "lowest": rates[0], "highest": rates[-1]}


def make_volume(path: Path, shape: tuple[int, int, int], chunk: int) -> None:
    slab = np.random.default_rng(0).normal(123, 31, shape[1:]).clip(0, 255).astype(np.uint8)
    array = zarr.create_array(path, shape=shape, chunks=tuple(min(chunk, n) for n in shape), dtype="uint8")
    for z in range(0, shape[0], chunk):
        stop = min(z + chunk, shape[0])
        array[z:stop] = np.stack([np.roll(slab, number, 1) for number in range(z, stop)])


def predict_once(folder: Path, model: Path, volume: Path, shape, arguments) -> dict[str, object]:
    out = folder / f"labels_{shape[0]}.zarr"
    settings = PredictSettings(
        halo=arguments.halo if arguments.halo >= 0 else "auto",
        tile=arguments.tile if arguments.tile else "auto",
        device=arguments.device,
    )
    options = VolumeSettings(
        bbox=f"0:{shape[0]},0:{shape[1]},0:{shape[2]}",
        back_end="torch",
        threads=arguments.threads if arguments.threads else "auto",
        workers=arguments.workers if arguments.workers else "auto",
        max_memory=arguments.max_memory,
    )
    began = time.perf_counter()
    predict(model, volume, out, settings=settings, options=options)
    seconds = time.perf_counter() - began
    head = json.loads((out / "0" / "ledger" / "head.json").read_text())
    geometry = Geometry.from_json(head["chosen"]["geometry"])
    return {
        "shape": shape,
        "seconds": seconds,
        "tile_zyx": geometry.grid.tile_zyx,
        "block_zyx": geometry.grid.block_zyx,
        "halo": geometry.halo,
        "pixels_read_per_written": count_read_share(geometry),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="64,2048,2048", help="z,y,x of the volume")
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--edge", type=int, default=1024, help="of the tiles in memory")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--halo", type=int, default=-1, help="of predict; -1: auto")
    parser.add_argument("--tile", type=int, default=0, help="of predict; 0: auto")
    parser.add_argument("--threads", type=int, default=0, help="of predict; 0: auto")
    parser.add_argument("--workers", type=int, default=0, help="of predict; 0: auto")
    parser.add_argument("--max-memory", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    parser.add_argument("--no-volume", action="store_true", help="only tiles in memory")
    arguments = parser.parse_args()
    shape = tuple(int(n) for n in arguments.shape.split(","))
    device = choose_device(arguments.device)
    on_gpu = device.startswith("cuda")
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    plain = build(device)
    predictor = attach_back_end(plain, "torch")
    tile = (arguments.batch, 1, arguments.edge, arguments.edge)
    images = torch.randn(tile, device=device).contiguous(memory_format=torch.channels_last)
    grey = np.random.default_rng(0).integers(0, 256, tile, np.uint8)
    whole = slice(0, arguments.edge), slice(0, arguments.edge)

    def forward(net, half=torch.bfloat16):
        def work() -> None:
            with torch.inference_mode(), torch.autocast(device.partition(":")[0], half, enabled=on_gpu):
                net(images)

        return work

    assert predictor.runtime is not None
    works = {
        "bare": forward(plain.net),
        "bare_folded": forward(predictor.runtime.run),
        "bare_float16_folded": forward(predictor.runtime.run, torch.float16),
        "label_patches": lambda: predictor.label_patches(grey, Scale(123.0, 31.0), whole, False),
        "label_patches_confidence": lambda: predictor.label_patches(grey, Scale(123.0, 31.0), whole, True),
    }
    if arguments.compile:
        works["bare_compiled"] = forward(torch.compile(plain.net))
    found: dict[str, object] = {"back_end": predictor.back_end, "torch": torch.__version__, "tile": tile}
    pixels = math.prod(tile)
    for name, work in works.items():
        found[name] = time_rounds(work, pixels, arguments.rounds, wait)
        print(name, json.dumps(found[name]), flush=True)
    found["bytes_per_pixel"] = measure_bytes_per_pixel(predictor)
    exact = plain.predict_probs(Scale(123.0, 31.0).apply(grey[:1])).argmax(1)
    found["labels_equal_to_float32"] = float(
        (predictor.label_patches(grey[:1], Scale(123.0, 31.0), whole, False)[0] == exact).mean()
    )
    if not arguments.no_volume:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_model(plain, folder / "model")
            make_volume(folder / "volume.zarr", shape, arguments.chunk)
            half = (shape[0] // 2 // arguments.chunk * arguments.chunk or shape[0] // 2, *shape[1:])
            runs = [
                predict_once(folder, folder / "model", folder / "volume.zarr", part, arguments) for part in (half, shape)
            ]
            voxels = math.prod(shape) - math.prod(half)
            seconds = float(runs[1]["seconds"]) - float(runs[0]["seconds"])
            share = float(runs[1]["pixels_read_per_written"])
            found |= {
                "runs": runs,
                "written_mvoxels_per_s": voxels / seconds / 1e6,
                "network_mpixels_per_s": voxels * share / seconds / 1e6,
                "whole_run_mvoxels_per_s": math.prod(shape) / float(runs[1]["seconds"]) / 1e6,
            }
            found["share_of_bare"] = found["network_mpixels_per_s"] / found["bare"]["mpixels_per_s"]
    print(json.dumps(found, indent=1, default=str))


if __name__ == "__main__":
    main()
