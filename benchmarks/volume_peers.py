"""Whole volumes, disk to disk: neurotome beside a plain loop, MONAI, nnU-Net and volume-segmantics, in turn, on one machine.

Every method gets the same network, grey scale, Zarr array and number of threads; each measurement is a process of its own
(`benchmarks/volume_peer.py` for the peers, which live in environments of their own). neurotome's clock includes what the
others' leaves out: loading the model, choosing back end and halo, the pyramid, checksums and synced files.

    python benchmarks/training_speed.py peers --peers runs/peers
    python benchmarks/volume_peers.py --slice SLICE.png --depth 4 --repetitions 3 --peers runs/peers

The first command makes the peers' environments; a peer whose environment is not there is left out.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from peers import PEERS, find_python, make_environment, run_child

HERE = Path(__file__).parent

OURS = """
import json, sys, time
from pathlib import Path
import numpy, torch, zarr
from neurotome.models.networks import import_smp
import_smp()
from neurotome import predict
from neurotome.inference.predict import PredictSettings
from neurotome.inference.volume_settings import VolumeSettings
torch.set_num_threads(int(sys.argv[4]))
started = time.perf_counter()
settings, options = PredictSettings(device="cpu"), VolumeSettings(**json.loads(sys.argv[5]))
predict(sys.argv[1], sys.argv[2], sys.argv[3], settings=settings, options=options)
seconds = time.perf_counter() - started
report = json.loads((Path(sys.argv[3]) / "zarr.json").read_text())["attributes"]["neurotome"]["report"]
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
blocks = report["job"]["seconds"]
print(json.dumps({"seconds": seconds, "peak": int(peak.split()[1]) * 1024, "blocks": blocks}))
"""


def write_job(folder: Path, model: str, slice_path: Path, depth: int, threads: int) -> None:
    """Writes the volume, a stack of the slice and its mirror images, the network's weights, and what a peer must know."""
    import zarr
    from safetensors.torch import save_file

    from neurotome.io.opening import read_image
    from neurotome.load import load_predictor
    from neurotome.volume import Volume

    plane = np.asarray(read_image(slice_path).data)[0]
    faces = [plane, plane[::-1], plane[:, ::-1], plane[::-1, ::-1]]
    stack = np.stack([faces[z % 4] for z in range(depth)])
    chunks = (min(4, depth), 512, 512)
    array = zarr.create_array(store=str(folder / "volume.zarr"), shape=stack.shape, chunks=chunks, dtype=stack.dtype)
    array[:] = stack
    predictor = load_predictor(model, "cpu")
    scale = predictor.normalization.scale_for(Volume(stack, "stack"))
    depth_of_encoder = int(predictor.settings.encoder_depth)
    network = {
        "encoder_name": predictor.settings.encoder,
        "encoder_depth": depth_of_encoder,
        "decoder_channels": (256, 128, 64, 32, 16)[-depth_of_encoder:],
        "in_channels": 1,
        "classes": len(predictor.classes),
    }
    tensors = {name: tensor.contiguous() for name, tensor in predictor.net.core.state_dict().items()}
    save_file(tensors, str(folder / "net.safetensors"))
    job = {"network": network, "mean": scale.mean, "std": scale.std, "threads": threads}
    (folder / "job.json").write_text(json.dumps(job))


def label_whole_slices(folder: Path, model: str) -> np.ndarray:
    """Returns the labels of a forward pass over each slice in one piece, the measure of agreement."""
    import zarr

    from neurotome.load import load_predictor
    from neurotome.normalize import Scale

    job = json.loads((folder / "job.json").read_text())
    predictor, scale = load_predictor(model, "cpu"), Scale(job["mean"], job["std"])
    volume = zarr.open_array(str(folder / "volume.zarr"), mode="r")
    planes = (predictor.predict_probs(scale.apply(np.asarray(volume[z]))[None, None])[0] for z in range(volume.shape[0]))
    return np.stack([plane.argmax(0).astype(np.uint8) for plane in planes])


def time_bare_forward(folder: Path, model: str, repetitions: int) -> dict[str, list[float]]:
    """Returns Mpixel/s of every back end's forward alone, on a tile that is in memory, several times in turn."""
    import time

    import zarr

    from neurotome.load import load_predictor
    from neurotome.normalize import Scale

    job = json.loads((folder / "job.json").read_text())
    volume = zarr.open_array(str(folder / "volume.zarr"), mode="r")
    tile = np.ascontiguousarray(volume[0, :1408, :1024])[None, None]
    crop = (slice(0, tile.shape[2]), slice(0, tile.shape[3]))
    rates: dict[str, list[float]] = {}
    predictors = {name: load_predictor(model, "cpu", back_end=name) for name in ("torch", "onnxruntime", "openvino")}
    for _ in range(repetitions + 1):
        for name, predictor in predictors.items():
            started = time.perf_counter()
            predictor.label_patches(tile, Scale(job["mean"], job["std"]), crop, False)
            rates.setdefault(name, []).append(tile.size / 1e6 / (time.perf_counter() - started))
    return {name: values[1:] for name, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slice", type=Path, required=True, help="a grey slice; the volume is a stack of its mirror images")
    parser.add_argument("--model", default="microct-base")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--nnunet-repetitions", type=int, default=2, help="it takes five times as long as we do")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a JSON file of all figures")
    parser.add_argument("--peers", type=Path, default=Path("runs/peers"), help="folder of the peers' environments")
    arguments = parser.parse_args()
    pythons = {"plain": Path(sys.executable)} | {peer: find_python(arguments.peers, peer) for peer in PEERS}
    ours = {"neurotome": {}, "neurotome, openvino": {"back_end": "openvino"}}
    found: dict[str, list[dict[str, float]]] = {}
    agreement: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_job(folder, arguments.model, arguments.slice, arguments.depth, arguments.threads)
        reference = label_whole_slices(folder, arguments.model)
        voxels = reference.size / 1e6
        bare = time_bare_forward(folder, arguments.model, arguments.repetitions)
        print(f"bare forward: {bare}", file=sys.stderr, flush=True)
        for repetition in range(arguments.repetitions):
            for method, options in ours.items():
                out = folder / f"{method}-{repetition}.zarr"
                volume = str(folder / "volume.zarr")
                code = [sys.executable, "-c", OURS, arguments.model, volume, str(out), str(arguments.threads)]
                found.setdefault(method, []).append(run_child(method, [*code, json.dumps(options)], dict(os.environ)))
                agreement[method] = measure_agreement(out / "0", reference)
            for peer, python in pythons.items():
                if python is not None and (peer != "nnunet" or repetition < arguments.nnunet_repetitions):
                    out = folder / f"{peer}.zarr"
                    # -P: the files beside the script are no modules of theirs
                    script = [str(python), "-P", str(HERE / "volume_peer.py"), peer, str(folder), str(out)]
                    found.setdefault(peer, []).append(run_child(peer, script, make_environment()))
                    agreement[peer] = measure_agreement(out, reference)
    report(voxels, found, agreement, bare, arguments)


def measure_agreement(path: Path, reference: np.ndarray) -> float:
    import zarr

    return float((np.asarray(zarr.open_array(str(path), mode="r")[:]) == reference).mean())


def report(voxels, found, agreement, bare, arguments) -> None:
    print(f"{voxels:.1f} Mvoxel, {arguments.threads} threads, {arguments.repetitions} repetitions, {platform.processor()}")
    rates = {method: [voxels / run["seconds"] for run in runs] for method, runs in found.items()}
    for method, values in rates.items():
        ratios = sorted(a / b for a, b in zip(rates["neurotome"], values, strict=False))
        print(
            f"{method:<22} {statistics.median(values):6.3f} Mvoxel/s ({min(values):.3f} to {max(values):.3f}); "
            f"neurotome / it {statistics.median(ratios):5.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); as whole slices "
            f"{100 * agreement[method]:8.4f} %; peak {max(run['peak'] for run in found[method]) / 1e9:.2f} GB"
        )
    for method in [name for name, runs in found.items() if "blocks" in runs[0]]:
        steady = sorted(voxels / run["blocks"] for run in found[method])
        print(f"{method}, blocks alone: {statistics.median(steady):.3f} Mvoxel/s ({steady[0]:.3f} to {steady[-1]:.3f})")
    for name, values in bare.items():
        print(f"bare forward, {name:<12} {statistics.median(values):6.3f} Mpixel/s ({min(values):.3f} to {max(values):.3f})")
    if arguments.out:
        settings = {key: str(value) for key, value in vars(arguments).items()}
        content = {"settings": settings, "voxels": voxels * 1e6, "runs": found, "agreement": agreement, "bare": bare}
        arguments.out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
