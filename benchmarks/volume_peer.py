"""One peer's way from a volume on disk to labels on disk, run with the Python of the environment it is installed in.

`benchmarks/volume_peers.py` starts this script once per measurement. Every peer gets the same network (a U-Net of
segmentation_models_pytorch with the same weights), the same grey scale and the same Zarr array, and writes labels as Zarr.
The clock runs from opening the volume to the last byte written; importing and building the network are left out.

    python benchmarks/volume_peer.py monai JOB_FOLDER OUT.zarr
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.append(str(Path(__file__).parent))  # at the end, so that no file there hides a package
from peers import declare_operators

WINDOW = 512
"""Edge of the windows of MONAI and nnU-Net; neither chooses one for a network that was not trained with it."""


def load_net(job, weights, smp, torch, load_file):
    net = smp.Unet(encoder_weights=None, **job["network"])
    tensors = {name: tensor.float() for name, tensor in load_file(str(weights)).items()}
    missing, unexpected = net.load_state_dict(tensors, strict=False)
    # a shallow encoder's last stage is built by the library, but never run
    if unexpected or any(not name.startswith("encoder.layer4") for name in missing):
        raise SystemExit(f"the weights do not fit: {missing} {unexpected}")
    return net.eval().to(torch.float32)


def open_arrays(folder, out, zarr):
    volume = zarr.open_array(str(folder / "volume.zarr"), mode="r")
    labels = zarr.create_array(store=str(out), shape=volume.shape, chunks=volume.chunks, dtype="uint8")
    return volume, labels


def prepare_plain(net, job, torch):
    """Tiles side by side, without overlap, as one writes it in an afternoon."""

    def predict(volume, labels, scale):
        with torch.inference_mode():
            for z in range(volume.shape[0]):
                image = scale(volume[z])[None, None]
                found = torch.empty(volume.shape[1:], dtype=torch.uint8)
                for y in range(0, image.shape[2], 1024):
                    for x in range(0, image.shape[3], 1024):
                        tile = image[..., y : y + 1024, x : x + 1024]
                        height, width = tile.shape[2:]
                        padded = torch.nn.functional.pad(tile, (0, -width % 32, 0, -height % 32))
                        classes = net(padded).softmax(1).argmax(1)
                        found[y : y + height, x : x + width] = classes[0, :height, :width].to(torch.uint8)
                labels[z] = found.numpy()

    return predict


def prepare_monai(net, job, torch):
    from monai.inferers import SlidingWindowInferer

    inferer = SlidingWindowInferer(roi_size=(WINDOW, WINDOW), sw_batch_size=4, overlap=0.25)

    def predict(volume, labels, scale):
        with torch.inference_mode():
            for z in range(volume.shape[0]):
                logits = inferer(scale(volume[z])[None, None], net)
                labels[z] = logits[0].argmax(0).to(torch.uint8).numpy()

    return predict


def prepare_nnunet(net, job, torch):
    """nnU-Net's own predictor for 2D networks: half-overlapping windows weighted by a Gaussian, mirroring off."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=False, device=torch.device("cpu"),
        perform_everything_on_device=False, allow_tqdm=False,
    )  # fmt: skip
    predictor.network = net
    predictor.configuration_manager = SimpleNamespace(patch_size=(WINDOW, WINDOW))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=job["network"]["classes"])

    def predict(volume, labels, scale):
        with torch.inference_mode():
            logits = predictor.predict_sliding_window_return_logits(scale(volume[:])[None])
            labels[:] = logits.argmax(0).to(torch.uint8).numpy()

    return predict


def prepare_volume_segmantics(net, job, torch):
    """Its predictor of one axis, whole slices, one at a time: its usual 8 at once would not fit into memory."""
    from volume_segmantics.model.operations.vol_seg_2d_predictor import VolSeg2dPredictor
    from volume_segmantics.utilities import config

    config.SMALL_CUDA_BATCH = 1
    predictor = VolSeg2dPredictor.__new__(VolSeg2dPredictor)  # its constructor reads a pickled model
    predictor.settings = SimpleNamespace(use_imagenet_norm=False, use_2_5d_prediction=False, cuda_device=0)
    predictor.model, predictor.model_device_num = net, "cpu"
    predictor.num_labels = job["network"]["classes"]
    predictor.use_2_5d_prediction = predictor.use_sliding_window = False
    predictor.sw_roi_size, predictor.sw_overlap, predictor.sw_batch_size, predictor.sw_mode = (512, 512), 0.25, 4, "gaussian"
    predictor._last_additional_tasks = None

    def predict(volume, labels, scale):
        labels[:] = predictor._predict_single_axis(scale(volume[:]).numpy(), output_probs=False)[0]

    return predict


PREPARE = {
    "volume-segmantics": prepare_volume_segmantics,
    "plain": prepare_plain,
    "monai": prepare_monai,
    "nnunet": prepare_nnunet,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=sorted(PREPARE))
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    import torch

    declare_operators()
    import segmentation_models_pytorch as smp
    import zarr
    from safetensors.torch import load_file

    job = json.loads((arguments.folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    shutil.rmtree(arguments.out, ignore_errors=True)
    net = load_net(job, arguments.folder / "net.safetensors", smp, torch, load_file)
    predict = PREPARE[arguments.peer](net, job, torch)

    def scale(grey):
        return (torch.from_numpy(grey.astype("float32")) - job["mean"]) / job["std"]

    started = time.perf_counter()
    volume, labels = open_arrays(arguments.folder, arguments.out, zarr)
    predict(volume, labels, scale)
    seconds = time.perf_counter() - started
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "peak": int(peak.split()[1]) * 1024}))


if __name__ == "__main__":
    main()
