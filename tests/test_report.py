import csv
import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.errors import ImageError, NeurotomeError, RunError
from neurotome.io import write_image, write_labels
from neurotome.report import build_report, verdict
from neurotome.report.slides import LARGEST, Slide, encode_layers, load_slides, rank_images, spread
from neurotome.runs import Run
from neurotome.runs.record import Record
from neurotome.scoring import score_images
from neurotome.volume import Volume

SCRIPT = "<script>alert(1)</script>"


def make_cutout(name, seed, depth=1, size=24):
    rng = np.random.default_rng(seed)
    labels = np.zeros((depth, size, size + 4), np.uint8)
    labels[:, 2:9, 3:15] = 1
    labels[:, 12:20, 5:20] = 2
    labels[:, :, 0] = 255
    return Cutout(Volume(rng.integers(0, 200, labels.shape).astype(np.uint8), name), labels)


def make_dataset(names=("background", "vessel", "cell"), depth=1, name="toy"):
    cutouts = [make_cutout(f"s{i}", i, depth) for i in range(6)]
    splits = {"train": tuple(cutouts[:2]), "val": (cutouts[2],), "test": tuple(cutouts[3:])}
    return Dataset(name, ClassSet(names), splits, licence="CC0", citation="Someone (2020)")


def predict(cutout, wrong):
    """The truth, of which the first `wrong` rows are said to be background."""
    labels = np.where(cutout.labels == 255, 0, cutout.labels).astype(np.uint8)
    labels[:, :wrong] = 0
    return labels


def write_run(run, dataset, splits=("val", "test")):
    for split in splits:
        images = []
        for i, cutout in enumerate(dataset.split(split)):
            labels = predict(cutout, 4 * i)
            flat = len(labels) == 1
            write_labels(run / "predictions" / split / f"{cutout.name}{'.png' if flat else '.tif'}", labels)
            for z in range(len(labels)):
                name = cutout.name if flat else f"{cutout.name}/{z:04d}"
                images.append((name, cutout.read_labels(z), labels[z]))
        (run / "scores").mkdir(parents=True, exist_ok=True)
        scores = score_images(dataset.name, split, dataset.classes, images)
        (run / "scores" / f"{split}.json").write_text(json.dumps(scores))
    return run


def complete_run(run, dataset):
    """Adds all that a training writes."""
    model = {"decoder": "unet", "encoder": "resnet18"}
    train = {"epochs": 2, "max_time": ""}
    (run / "config.yaml").write_text(yaml.safe_dump({"dataset": "toy", "model": model, "train": train}))
    record = Record("network", "unet, resnet18", "0", 0, dataset.classes.names, 255, {})
    (run / "run.json").write_text(json.dumps(dataclasses.asdict(record)))
    environment = {
        "started": "2025-01-02T03:04:05+00:00",
        "command": "neurotome train toy --out runs/a",
        "packages": {"torch": "2.9"},
        "git_commit": None,
    }
    (run / "environment.json").write_text(json.dumps(environment))
    training = {
        "finished": True,
        "epochs": 2,
        "steps": 1234,
        "seconds": 75.2,
        "best_val_macro_f1": 0.5,
        "peak_memory_bytes": 2_500_000_000,
        "precision": "32-true",
        "device": "cpu",
    }
    (run / "training.json").write_text(json.dumps(training))
    keys = ["epoch", "step", "seconds", "learning_rate", "train_loss", "val_loss", "val_macro_f1"]
    keys += [f"val_f1_{name}" for name in dataset.classes.names]
    with (run / "metrics.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(keys)
        writer.writerow([0, 10, 3.0, 1e-3, 1.5, "", *[""] * (len(keys) - 6)])
        writer.writerow([1, 20, 6.0, 1e-4, 1.2, 1.3, 0.5, *[0.5] * (len(keys) - 7)])


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def find(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def dataset():
    return make_dataset()


@pytest.fixture
def run(tmp_path, dataset):
    run = write_run(tmp_path / "a run", dataset)
    complete_run(run, dataset)
    return run


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A complete run whose report is written."""
    dataset = make_dataset()
    run = write_run(tmp_path_factory.mktemp("reported") / "a run", dataset)
    complete_run(run, dataset)
    assert build_report(Run(run), dataset) == run / "report.html"
    return run


def build(run, dataset, **others):
    return Page(build_report(Run(run), dataset, **others).read_text(encoding="utf-8"))


def read_scores(run, split="test"):
    return json.loads((run / "scores" / f"{split}.json").read_text())


def test_complete_run(reported):
    page = Page((reported / "report.html").read_text(encoding="utf-8"))
    assert not page.open
    assert f"{read_scores(reported)['macro']['f1']:.3f}" in page.text
    for expected in ("unet, resnet18 on toy", "1 min 15 s", "2.50 GB", "2025-01-02 03:04:05 UTC", "CC0", "Someone (2020)"):
        assert expected in page.text
    assert "neurotome train toy --out runs/a" in page.text
    assert f"neurotome train --config '{reported / 'config.yaml'}' --out '{reported}-again'" in page.text
    assert "encoder: resnet18" in page.text
    assert "24 × 28 pixels (height × width)" in page.text
    assert "2 epochs, 1,234 steps" in page.text
    assert page.text.index("Split test,") < page.text.index("Split val,")
    assert "Macro F1, split test" in page.text
    assert "MTNeuro" not in page.text
    drawn = {path.stem for path in (reported / "figures").glob("*.png")}
    assert drawn == {"class_scores", "confusion", "class_shares", "histograms_train", "training", "examples"}
    assert {"id": "verdict"} in page.find("section")
    for sentence in verdict(Run(reported)):
        assert sentence in page.text


def test_is_one_file_without_network(reported):
    text = (reported / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)\s*=\s*\"(?!data:image/|#)", text)
    assert not re.search(r"url\(|@import|https?://", text)
    page = Page(text)
    assert all(image["alt"] for image in page.find("img"))
    assert len(page.find("img")) == 6 + 3 * 4  # figures, and three slides of an image and three layers


def test_same_run_gives_same_page(reported):
    first = (reported / "report.html").read_bytes()
    assert build_report(Run(reported), make_dataset()).read_bytes() == first


def test_baseline_folder_has_scores_only(tmp_path, dataset):
    run = write_run(tmp_path / "forest", dataset)
    page = build(run, dataset)
    assert "forest on toy" in page.text
    assert "Complete settings" not in page.text
    assert {"id": "training"} not in page.find("section")
    assert {"id": "viewer"} in page.find("section")


def test_without_predictions(tmp_path, dataset):
    run = write_run(tmp_path / "run", dataset, splits=("val",))
    for path in (run / "predictions" / "val").iterdir():
        path.unlink()
    (run / "predictions" / "val").rmdir()
    page = build(run, dataset)
    assert {"id": "viewer"} not in page.find("section")
    assert "Macro F1, split val" in page.text


def test_comparison(run, dataset):
    other = read_scores(run)
    other["macro"]["f1"] = 0.12345
    page = build(run, dataset, comparisons={"a forest": [other]}, title="Both")
    assert (run / "figures" / "methods.png").is_file()
    assert page.text.index("unet, resnet18") < page.text.index("a forest")
    assert "0.123" in page.text
    assert page.text.count("Both") == 2  # title and heading


def test_comparison_may_not_hide_this_run(run, dataset):
    other = read_scores(run)
    with pytest.raises(RunError, match="'unet, resnet18' is this run's own name"):
        build_report(Run(run), dataset, comparisons={"unet, resnet18": [other]})


def test_comparison_is_of_one_split_with_all_seeds(run, dataset):
    own, other = (read_scores(run, "val") for _ in range(2))
    test = read_scores(run)
    assert own["macro"]["f1"] != test["macro"]["f1"]
    second = json.loads(json.dumps(own))
    own_f1, second["macro"]["f1"], other["macro"]["f1"] = own["macro"]["f1"], 0.25, 0.125
    other["weighted"]["precision"] = 0.0625
    text = build(run, dataset, comparisons={"a forest": [other]}, seeds=[second]).text
    section = text[text.index("toy, split val: pooled") : text.index("The rest of this page is about the run a run alone")]
    mine, others = section[section.index("unet, resnet18") :].split("a forest")
    assert f"{(own_f1 + 0.25) / 2:.3f}0.250–{own_f1:.3f}" in mine
    assert f"{test['macro']['f1']:.3f}" not in mine
    assert "0.125" in others
    assert "0.062" in others  # every number of the figure is in the table
    assert "0.125–" not in others


def test_seeds_without_other_methods(run, dataset):
    scores = read_scores(run)
    assert "their mean, below it the lowest and the highest" in build(run, dataset, seeds=[scores]).text


def test_comparison_of_other_images_is_refused(run, dataset):
    test, val = (read_scores(run, split) for split in ("test", "val"))
    with pytest.raises(RunError, match="scores of toy test, toy val, and this run"):
        build_report(Run(run), dataset, comparisons={"a": [test], "b": [val]})
    with pytest.raises(RunError, match="scores of toy test, toy val, and this run"):
        build_report(Run(run), dataset, comparisons={"a": [test]}, seeds=[val])
    for change in ({"split": "train"}, {"dataset": "elsewhere"}):
        with pytest.raises(RunError, match="scores of one split, which the run has too"):
            build_report(Run(run), dataset, comparisons={"a": [{**test, **change}]})


def test_strangers_names_are_text(tmp_path):
    dataset = make_dataset(("background", SCRIPT, '"><img src=x onerror=alert(1)>'), name=f"toy{SCRIPT}")
    run = write_run(tmp_path / "run", dataset)
    complete_run(run, dataset)
    record = Record("network", SCRIPT, "0", 0, dataset.classes.names, 255, {})
    (run / "run.json").write_text(json.dumps(dataclasses.asdict(record)))
    config = {"dataset": "</pre><b>", "train": {"epochs": 2, "max_time": ""}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    other = read_scores(run)
    text = build_report(Run(run), dataset, comparisons={SCRIPT * 2: [other]}).read_text(encoding="utf-8")
    assert SCRIPT not in text
    page = Page(text)
    assert SCRIPT in page.text
    assert len(page.find("script")) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not [image for image in page.find("img") if not image["src"].startswith("data:image/")]


def test_absent_class_is_a_dash(tmp_path):
    dataset = make_dataset(("background", "vessel", "cell", "axon"))
    page = build(write_run(tmp_path / "run", dataset), dataset)
    assert "–: class absent" in page.text
    assert re.search(r"axon\s*––––", page.text)


def test_intervals(tmp_path):
    dataset = make_dataset(depth=3)
    run = write_run(tmp_path / "run", dataset)
    low, high = read_scores(run)["intervals"]["macro"]["f1"]
    page = build(run, dataset)
    assert f"95 % interval {low:.3f} to {high:.3f}" in page.text
    assert "9 slices count as" in page.text
    assert "below 20 the interval may be too narrow" in page.text
    assert "8 of 9 images of split test" in page.text


@pytest.mark.parametrize(
    "name", ["scores/test.json", "config.yaml", "run.json", "training.json", "environment.json", "metrics.csv"]
)
def test_damaged_file_is_named(run, dataset, name):
    (run / name).write_text("epoch\n[1\n" if name != "config.yaml" else "[1")
    with pytest.raises(RunError, match=re.escape(name.split("/")[-1])):
        build_report(Run(run), dataset)
    assert not (run / "report.html").exists()


def test_run_without_scores(tmp_path, dataset):
    with pytest.raises(RunError, match="found no scores, so there is nothing to report"):
        build_report(Run(tmp_path), dataset)


def test_other_dataset(run):
    with pytest.raises(RunError, match="but the dataset has background, vessel, axon"):
        build_report(Run(run), make_dataset(("background", "vessel", "axon")))


def test_missing_prediction(run, dataset):
    (run / "predictions" / "test" / "s4.png").unlink()
    with pytest.raises(ImageError, match="s4"):
        build_report(Run(run), dataset)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.zeros((1, 5, 5), np.uint8), "has \\(1, 24, 28\\)"), (np.full((1, 24, 28), 7, np.uint8), "672 pixels")],
)
def test_prediction_that_does_not_fit(run, dataset, labels, message):
    write_labels(run / "predictions" / "test" / "s3.png", labels)
    with pytest.raises(RunError, match=message):
        load_slides(Run(run), dataset, "test", [("s3", 0.5)])


def test_scores_of_unknown_image(run, dataset):
    with pytest.raises(NeurotomeError, match="name the image 'nowhere'"):
        load_slides(Run(run), dataset, "test", [("nowhere", 0.5)])


def test_slides_of_stacks(tmp_path):
    dataset = make_dataset(depth=2)
    run = write_run(tmp_path, dataset)
    cutout = dataset.split("test")[1]
    (slide,) = load_slides(Run(run), dataset, "test", [("s4/0001", 0.5)])
    np.testing.assert_array_equal(slide.grey, cutout.volume.data[1])
    np.testing.assert_array_equal(slide.truth, cutout.labels[1])
    np.testing.assert_array_equal(slide.predicted, predict(cutout, 4)[1])
    assert slide.size == slide.grey.shape


def test_large_slice_shows_its_middle(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (1, 5, LARGEST + 3)).astype(np.uint8)
    cutout = Cutout(Volume(rng.integers(0, 255, labels.shape).astype(np.uint8), "wide"), labels)
    dataset = Dataset("wide", ClassSet(("a", "b")), {"test": (cutout,)})
    write_labels(tmp_path / "predictions" / "test" / "wide.png", labels)
    (slide,) = load_slides(Run(tmp_path), dataset, "test", [("wide", 1.0)])
    assert slide.size == (5, LARGEST + 3)
    np.testing.assert_array_equal(slide.truth, labels[0, :, 1 : LARGEST + 1])
    np.testing.assert_array_equal(slide.grey, cutout.volume.data[0, :, 1 : LARGEST + 1])


def test_layers_have_exact_colours(tmp_path):
    import base64
    import io

    classes = ClassSet(("background", "vessel", "cell"))
    truth = np.array([[0, 1, 2, 255]], np.uint8)
    predicted = np.array([[1, 1, 0, 2]], np.uint8)
    slide = Slide("x", 0.5, np.array([[0, 80, 160, 240]], np.uint8), truth, predicted, (1, 4))

    def decode(url):
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))[0].tolist()

    layers = encode_layers(slide, classes)
    vessel, cell = ([*classes.colours[i], 255] for i in (1, 2))
    assert decode(layers["truth"])[0][3] == 0
    assert decode(layers["truth"])[1:] == [vessel, cell, [128, 128, 128, 255]]
    assert decode(layers["predicted"])[:2] == [vessel, vessel]
    assert decode(layers["predicted"])[2][3] == 0
    assert [pixel[3] for pixel in decode(layers["errors"])] == [255, 0, 255, 0]


def test_ranks_and_spreads():
    scores = {"per_image": {"name": ["a", "b", "c"], "macro_f1": [0.5, None, 0.2]}}
    assert rank_images(scores) == [("c", 0.2), ("a", 0.5)]
    assert spread([1], 8) == [1]
    assert spread([], 8) == []
    assert spread(list(range(10)), 4) == [0, 3, 6, 9]
    assert spread(list(range(3)), 8) == [0, 1, 2]


def test_a_map_of_a_sure_classifier_is_drawn(run, dataset):
    for cutout in dataset.split("test"):
        write_image(run / "uncertainty" / "test" / f"{cutout.name}.png", np.zeros(cutout.volume.shape, np.uint8))
    page = build(run, dataset)
    assert (run / "figures" / "uncertainty.png").is_file()
    assert {"id": "pixels"} in page.find("section")


def test_one_epoch_of_mtneuro_by_the_clock(tmp_path):
    dataset = make_dataset(name="mtneuro-3class")
    run = write_run(tmp_path / "run", dataset)
    complete_run(run, dataset)
    training = json.loads((run / "training.json").read_text())
    (run / "training.json").write_text(json.dumps({**training, "epochs": 1, "schedule_by": "time"}))
    text = build(run, dataset).text
    assert "1 epoch, 1,234 steps" in text
    assert "The learning rate follows the clock" in text
    assert "MTNeuro" in text


def test_names_that_figures_cannot_write_have_their_id(tmp_path):
    dataset = make_dataset(("background", "\ue010", "cell"))
    text = build(write_run(tmp_path / "run", dataset), dataset).text
    assert "1 \ue010" in text
    assert "1 cell" not in text


def test_a_finished_command_says_what_to_do_next(run, dataset, capsys):
    from neurotome.experiments.evaluate import finish

    assert finish(Run(run), dataset, "colour-blind-safe") == run / "report.html"
    said = capsys.readouterr().err
    assert all(f"- {sentence}\n" in said for sentence in verdict(Run(run)))
    assert "- Split test has 3 images" in said
