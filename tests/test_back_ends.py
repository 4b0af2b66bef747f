"""Back ends: what computes a network in torch's place gives torch's result."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurotome.classes import ClassSet
from neurotome.errors import ModelError, SettingsError
from neurotome.load import load_predictor
from neurotome.models.back_ends import attach, choose, open_vino
from neurotome.models.back_ends.attach import attach_back_end
from neurotome.models.back_ends.choose import choose_back_end
from neurotome.models.back_ends.folded import fold_network
from neurotome.models.back_ends.memory import CAUTIOUS, measure_bytes_per_pixel, measure_process_peak
from neurotome.models.model_folder import save_model
from neurotome.models.net_predictor import NetPredictor, Runtime
from neurotome.models.networks import ModelSettings, build_network
from neurotome.normalize import Normalization, Scale

AS_IS = Normalization("dataset", 0.0, 1.0, "float32")
SMALL = ModelSettings("unet", "resnet18", in_channels=1, encoder_depth=3)


def build_predictor(settings: ModelSettings = SMALL) -> NetPredictor:
    """A network as if trained: statistics of its normalisations that are not the usual 0 and 1, and mixed labels."""
    torch.manual_seed(0)
    net = build_network(settings, 3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    net.eval()
    channels = int(settings.in_channels)
    with torch.no_grad():
        net.core.segmentation_head[0].bias -= net(torch.randn(1, channels, 128, 128)).mean((0, 2, 3))
    return NetPredictor(net, settings, ClassSet(("background", "vessel", "cell")), AS_IS, 64)


def make_patches(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def predictor() -> NetPredictor:
    return build_predictor()


@pytest.fixture(scope="module")
def attached(predictor: NetPredictor) -> dict[str, NetPredictor]:
    return {name: attach_back_end(predictor, name) for name in ("torch", "onnxruntime", "openvino")}


@pytest.mark.parametrize(
    "settings",
    [
        ModelSettings("unet", "resnet18", in_channels=3, encoder_depth=3),
        ModelSettings("fpn", "tu-efficientnet_b0", in_channels=1, encoder_depth=5),  # normalisations that hold activations
        ModelSettings("linknet", "mobilenetv3_small_050", in_channels=1, encoder_depth=3),
    ],
    ids=lambda settings: settings.decoder,
)
def test_folding_keeps_the_result(settings: ModelSettings) -> None:
    net = build_predictor(settings).net
    before = sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    folded = fold_network(net, int(settings.in_channels))
    left = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in net.modules()) == before > 0
    assert left <= before // 10
    images = torch.from_numpy(make_patches(1, int(settings.in_channels), 70, 50))
    with torch.inference_mode():
        torch.testing.assert_close(folded(images).softmax(1), net(images).softmax(1), rtol=0, atol=1e-5)


class Reused(nn.Module):
    """A convolution that is read twice, once past its normalisation, which therefore must not be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.convolution, self.normalisation = nn.Identity(), nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        nn.init.constant_(self.normalisation.running_mean, 0.5)

    def forward(self, images: Tensor) -> Tensor:
        made = self.convolution(images)
        normalised: Tensor = self.normalisation(made)
        return made * normalised


def test_what_cannot_be_folded_is_left() -> None:
    from neurotome.models.net import Network

    net = Network(Reused()).eval()
    folded = fold_network(net, 1)
    images = torch.from_numpy(make_patches(1, 1, 32, 32))
    assert any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), net(images))


@pytest.mark.parametrize("shape", [(1, 1, 64, 96), (3, 1, 45, 33)], ids=["fits", "padded"])
@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_back_ends_agree(
    predictor: NetPredictor, attached: dict[str, NetPredictor], name: str, shape: tuple[int, ...]
) -> None:
    patches = make_patches(*shape)
    expected, found = predictor.predict_probs(patches), attached[name].predict_probs(patches)
    assert len(np.unique(expected.argmax(1))) == 3
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_records_name_the_back_end(attached: dict[str, NetPredictor]) -> None:
    import onnxruntime

    assert attached["onnxruntime"].back_end == f"ONNX Runtime {onnxruntime.__version__}, cpu, float32"
    assert attached["openvino"].back_end.startswith("OpenVINO 20")
    assert attached["torch"].back_end.startswith("torch 2")


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_neither_threads_nor_a_new_runtime_change_a_bit(attached: dict[str, NetPredictor], name: str) -> None:
    patches = make_patches(1, 1, 160, 128)
    expected = attached[name].predict_probs(patches)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            runtime = attached[name].runtime
            again = dataclasses.replace(attached[name], runtime=runtime._replace(run=runtime.build()))
            np.testing.assert_array_equal(again.predict_probs(patches), expected)
    finally:
        torch.set_num_threads(threads)


def test_the_fastest_that_agrees_is_chosen(predictor: NetPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, same, other = 0.05, 0.0, 0.0

    def attach_fake(predictor: NetPredictor, back_end: str, ranges: object = None) -> NetPredictor:
        import time

        def run(images: Tensor) -> Tensor:
            time.sleep({"torch": slow, "onnxruntime": same, "openvino": other}[back_end])
            logits = predictor.net(images)
            return -logits if back_end == "openvino" else logits

        return dataclasses.replace(predictor, runtime=Runtime(back_end, "float32", lambda: run, run))

    monkeypatch.setattr(attach, "attach_back_end", attach_fake)
    monkeypatch.setattr(attach, "is_installed", lambda name: True)
    chosen, reports = choose_back_end(predictor, make_patches(1, 1, 32, 32))
    assert chosen.back_end == "onnxruntime, cpu, float32"
    assert {report.back_end: report.chosen for report in reports} == {"torch": False, "onnxruntime": True, "openvino": False}
    wrong = next(report for report in reports if report.back_end == "openvino")
    assert wrong.agreement < 0.9
    assert "no longer the model's own labels" in wrong.sentence
    monkeypatch.setattr(attach, "is_installed", lambda name: name != "onnxruntime")
    chosen, reports = choose_back_end(predictor, make_patches(1, 1, 32, 32))
    assert chosen.back_end == "torch, cpu, float32"
    assert [report.back_end for report in reports] == ["torch", "openvino"]
    chosen, _ = choose_back_end(predictor, make_patches(1, 1, 32, 32), ["openvino"])
    assert chosen.back_end == "openvino, cpu, float32"
    assert choose_back_end(predictor, make_patches(1, 1, 32, 32), voxels=1000)[0].back_end == "torch, cpu, float32"


def test_a_network_that_cannot_be_converted_is_told(predictor: NetPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such operator: roll\nand much more")

    monkeypatch.setattr(open_vino, "build_openvino", fail)
    with pytest.raises(ModelError, match=r"openvino cannot run this network \(no such operator: roll\); use"):
        choose_back_end(predictor, make_patches(1, 1, 32, 32), ["openvino"])
    chosen, reports = choose_back_end(predictor, make_patches(1, 1, 32, 32), ["torch", "openvino"])
    assert chosen.back_end.startswith("torch")
    assert reports[0].sentence.startswith("openvino: not used, back end openvino cannot run")


def test_a_conversion_that_is_wrong_is_refused(predictor: NetPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_wrong(predictor: NetPredictor) -> Runtime:
        return Runtime("wrong", "float32", lambda: predictor.net, lambda images: predictor.net(images).roll(1, 3))

    monkeypatch.setattr(open_vino, "build_openvino", build_wrong)
    with pytest.raises(
        ModelError, match=r"openvino cannot run this network \(probabilities differ by 0\.\d+ from torch's\)"
    ):
        attach_back_end(predictor, "openvino")


def test_eight_bits_are_close_and_the_same_from_their_ranges(predictor: NetPredictor) -> None:
    patches = make_patches(2, 1, 64, 64)
    chosen, reports = choose_back_end(predictor, patches, ["openvino-int8"])
    report = next(report for report in reports if report.chosen)
    assert chosen.back_end.endswith("cpu, int8")
    assert 0.9 < report.agreement < 1
    assert 1e-4 < report.difference < 0.2
    assert f"labels equal torch's on {choose.floor_percent(report.agreement)} %" in report.sentence
    again = attach_back_end(predictor, "openvino-int8", report.ranges)
    np.testing.assert_array_equal(again.predict_probs(patches), chosen.predict_probs(patches))
    with pytest.raises(ModelError, match="ranges of 1 convolutions were measured"):
        attach_back_end(predictor, "openvino-int8", [(0.0, 1.0)])
    with pytest.raises(SettingsError, match="needs tiles"):
        attach_back_end(predictor, "openvino-int8")


def test_what_is_not_installed_says_how_to_install_it(predictor: NetPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attach.NEEDED, "openvino", ("openvino", ("no_such_package",)))
    with pytest.raises(SettingsError, match=r"needs no_such_package: pip install 'neurotome\[openvino\]'"):
        attach_back_end(predictor, "openvino")
    with pytest.raises(SettingsError, match=r"pip install 'neurotome\[openvino\]'"):
        choose_back_end(predictor, make_patches(1, 1, 32, 32), ["openvino-int8"])
    with pytest.raises(SettingsError, match="unknown back end 'openvno'"):
        attach_back_end(predictor, "openvno")


def test_a_model_is_loaded_with_a_back_end(predictor: NetPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(predictor, tmp_path / "model")
    patches = make_patches(1, 1, 64, 64)
    loaded = load_predictor(tmp_path, "cpu")
    np.testing.assert_allclose(loaded.predict_probs(patches), predictor.predict_probs(patches), rtol=0, atol=1e-5)
    asked = []
    monkeypatch.setattr(attach, "attach_back_end", lambda _, *arguments: asked.append(arguments))
    load_predictor(tmp_path, "cpu", "openvino-int8", [(0.0, 1.0)])
    assert asked == [("openvino-int8", [(0.0, 1.0)])]


def test_openvino_reports_to_nobody() -> None:
    """In a process of its own: other libraries that a test has used import it as it comes."""
    script = (
        "import sys; from neurotome.models.back_ends import open_vino; print(open_vino.import_openvino().__name__); "
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino", "[]"]


def test_memory_of_a_forward_pass_is_measured(predictor: NetPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Copies:
        """Holds 40 float32 per pixel for a moment."""

        in_channels = 1

        def predict_probs(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.repeat(patches, 40, axis=1)[:, :2].copy()

    assert 160 <= measure_bytes_per_pixel(Copies()) < 250  # type: ignore[arg-type]
    monkeypatch.setattr("neurotome.models.back_ends.memory.Path.write_text", lambda *_: (_ for _ in ()).throw(OSError()))
    assert measure_process_peak(lambda: None) is None
    assert measure_bytes_per_pixel(Copies()) == CAUTIOUS  # type: ignore[arg-type]


def test_sixteen_bits_are_told_and_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = build_predictor(ModelSettings("linknet", "mobilenetv3_small_050", in_channels=1, encoder_depth=3))
    monkeypatch.setattr("neurotome.models.net_predictor.HALF", {"cpu": torch.float16})  # as on a GPU
    monkeypatch.setattr(choose, "ROUNDS", 1)
    patches, whole = make_patches(1, 1, 64, 64), (slice(0, 64), slice(0, 64))
    chosen, (report,) = choose_back_end(predictor, patches, ["torch"])
    assert 0.95 < report.agreement < 1
    assert f"labels equal those in 32 bit on {choose.floor_percent(report.agreement)} %, chosen" in report.sentence
    huge = Scale(0.0, 1e-5)  # features leave the range of float16
    expected = predictor.predict_probs(huge.apply(patches)).argmax(1)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(chosen.label_patches(patches, huge, whole, False)[0], expected)


def test_percentages_are_never_rounded_up_to_all() -> None:
    assert choose.floor_percent(0.9999999) == "99.9999"
    assert choose.floor_percent(1.0) == "100.0000"
