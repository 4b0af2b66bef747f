import json

import numpy as np
import pytest
from PIL import Image

from neurotome import demo
from neurotome.experiments.demo import BASELINES, DemoSettings
from neurotome.pixels.learners import ForestSettings
from neurotome.pixels.train import BaselineSettings, fit_baseline


@pytest.mark.slow
def test_the_demo_goes_from_data_to_report_and_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    few = BaselineSettings(pixels_per_class=300, forest=ForestSettings(trees=10))
    monkeypatch.setitem(BASELINES, "random forest", lambda dataset: fit_baseline(dataset, few))
    settings = DemoSettings(train_time="2s", edge=64)
    report = demo(out=tmp_path / "demo", settings=settings)
    said = capsys.readouterr().err
    page = report.read_text()
    for word in ("random forest", "majority class", "macro F1"):
        assert word in said
        assert word.lower() in page.lower()
    assert str(report.resolve()) in said
    for method in ("majority-class", "random-forest"):
        found = json.loads((tmp_path / "demo" / "baselines" / method / "scores" / "test.json").read_text())
        assert found["classes"] == ["background", "blood vessel", "cell", "axon"]
    for region in ("cortex", "striatum", "vp", "zi"):
        labels = np.asarray(Image.open(tmp_path / "demo" / "new" / "labels" / f"{region}.png"))
        assert labels.shape == (128, 128)
        assert (tmp_path / "demo" / "new" / "labels" / f"{region}_overlay.png").is_file()

    weights = tmp_path / "demo" / "network" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert demo(out=tmp_path / "demo", settings=settings) == report
    assert weights.stat().st_mtime_ns == before
