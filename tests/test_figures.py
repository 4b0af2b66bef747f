from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.text import Text
from PIL import Image

from neurotome import figures
from neurotome.classes import ClassSet
from neurotome.datasets.base import Cutout, Dataset
from neurotome.datasets.statistics import measure_dataset
from neurotome.errors import RunError
from neurotome.figures.style import STYLE
from neurotome.scoring import score_images
from neurotome.volume import Volume

CLASSES = ClassSet(("background", "vessel", "cell", "axon"))
OTHERS = ClassSet(("background", "nucleus"))
TRUTH = np.array([[0, 0, 0, 1], [0, 0, 1, 1], [3, 3, 255, 255]], np.uint8)
PREDICTED = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [3, 0, 0, 1]], np.uint8)
GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
DRAWN_SCORES = ("precision", "recall", "f1", "iou")


def score(images: int = 1, classes: ClassSet = CLASSES, truth: Any = TRUTH, predicted: Any = PREDICTED) -> dict[str, Any]:
    """Scores in which class 2, cell, is absent."""
    return score_images("tiny", "test", classes, [(f"image{i}", truth, predicted) for i in range(images)])


def row(epoch: int, **changed: float | None) -> dict[str, float | None]:
    """A row of metrics.csv."""
    found: dict[str, float | None] = {
        "epoch": epoch,
        "step": 10 * (epoch + 1),
        "seconds": 60.0 * (epoch + 1),
        "learning_rate": 1e-3 / (epoch + 1),
        "train_loss": 1 / (epoch + 1),
        "val_loss": 1.5 / (epoch + 1),
        "val_macro_f1": 0.5 + 0.1 * epoch,
        **{f"val_f1_{name}": 0.4 + 0.1 * epoch for name in CLASSES.names},
    }
    return {**found, **changed}


def make_dataset(shape: tuple[int, int, int] = (2, 6, 8)) -> Dataset:
    """Two splits without any cell; the test split has one image."""
    rng = np.random.default_rng(0)

    def cutout(name: str) -> Cutout:
        grey = rng.integers(0, 200, shape).astype(np.uint8)
        return Cutout(Volume(grey, name), rng.choice(np.array([0, 0, 1, 3, 255], np.uint8), shape))

    return Dataset("tiny", CLASSES, {"train": (cutout("a"), cutout("b")), "test": (cutout("c"),)})


def render(figure: Figure, folder: Any) -> np.ndarray:
    """Pixels of the saved figure, which shows that it can be drawn without a warning."""
    path = folder / "figure.png"
    figures.save_figure(figure, path)
    return np.asarray(Image.open(path).convert("RGB"))


def lay_out(figure: Figure) -> Any:
    """Moves all parts to their places and returns what measures them."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    with matplotlib.rc_context(STYLE):
        figure.get_layout_engine().execute(figure)
    return renderer


def heights(axes: Axes) -> list[float]:
    """Heights of the bars from left to right."""
    bars = sorted((p for p in axes.patches if isinstance(p, Rectangle)), key=lambda bar: bar.get_x())
    return [bar.get_height() for bar in bars]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


class TestSaveFigure:
    def test_writes_a_png_of_150_dots_per_inch_and_the_same_bytes_for_the_same(self, tmp_path):
        for name in ("a", "b"):
            figure = Figure(figsize=(2, 1))
            figure.subplots().plot([0, 1])
            figures.save_figure(figure, tmp_path / "new" / f"{name}.png")
        with Image.open(tmp_path / "new" / "a.png") as image:
            assert image.format == "PNG"
            assert image.size == (300, 150)
        assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "new" / "b.png").read_bytes()

    def test_keeps_the_old_file_if_drawing_fails(self, tmp_path):
        class Broken(Figure):
            def savefig(self, fname: Any, **_: Any) -> None:
                fname.write_bytes(b"half")
                raise OSError("disk full")

        path = tmp_path / "a.png"
        path.write_bytes(b"old")
        with pytest.raises(OSError, match="disk full"):
            figures.save_figure(Broken(), path)
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["a.png"]

    def test_leaves_global_state_alone(self, tmp_path):
        before = dict(matplotlib.rcParams)
        render(figures.plot_class_scores(score(), CLASSES), tmp_path)
        assert dict(matplotlib.rcParams) == before

    def test_does_not_import_pyplot(self):
        code = (
            "import sys; from neurotome import figures; from neurotome.classes import ClassSet;"
            "from neurotome.scoring import score_images; import numpy as np; labels = np.zeros((4, 4), int);"
            "figures.plot_methods({'m': [score_images('d', 's', ClassSet(('a', 'b')), [('x', labels, labels)])]});"
            "sys.exit('matplotlib.pyplot' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


class TestTraining:
    def test_draws_what_the_rows_say(self, tmp_path):
        rows = [row(0), row(1), row(2, val_macro_f1=0.2)]
        figure = figures.plot_training(rows, CLASSES)
        losses, f1, rate = figure.axes
        train, val = losses.get_lines()
        np.testing.assert_array_equal(train.get_xdata(), [10, 20, 30])
        np.testing.assert_allclose(train.get_ydata(), [1, 1 / 2, 1 / 3])
        np.testing.assert_allclose(val.get_ydata(), [1.5, 0.75, 0.5])
        curves = {line.get_label(): line.get_ydata() for line in f1.get_lines()}
        np.testing.assert_allclose(curves["cell"], [0.4, 0.5, 0.6])
        np.testing.assert_allclose(curves["macro mean"], [0.5, 0.6, 0.2])
        assert "0.600 at step 20" in f1.get_title("left")
        assert "3.0 minutes" in f1.get_xlabel()
        assert rate.get_ylabel() == "learning rate (× 10⁻³)"
        assert legend(figure) == [*CLASSES.names, "macro mean"]
        render(figure, tmp_path)

    def test_one_epoch_is_drawn_as_points(self, tmp_path):
        figure = figures.plot_training([row(0)], CLASSES)
        assert all(line.get_marker() == "o" for line in figure.axes[0].get_lines())
        render(figure, tmp_path)

    def test_missing_values_are_gaps(self, tmp_path):
        absent: dict[str, None] = dict.fromkeys(("val_loss", "val_macro_f1", *(f"val_f1_{n}" for n in CLASSES.names)))
        figure = figures.plot_training([row(0, **absent), row(1, **absent)], CLASSES)
        assert all(np.isnan(line.get_ydata()).all() for line in figure.axes[1].get_lines())
        assert figure.axes[1].get_title("left") == "Validation F1"
        render(figure, tmp_path)

    def test_a_wild_first_epoch_does_not_flatten_the_rest(self, tmp_path):
        figure = figures.plot_training([row(0, val_loss=600), row(1), row(2)], CLASSES)
        assert figure.axes[0].get_yscale() == "log"
        assert "logarithmic" in figure.axes[0].get_ylabel()
        render(figure, tmp_path)

    def test_names_what_is_missing(self):
        with pytest.raises(RunError, match="val_f1_nucleus"):
            figures.plot_training([row(0)], OTHERS)


class TestClassScores:
    def test_bars_are_as_high_as_the_scores_and_an_absent_class_is_a_gap(self, tmp_path):
        scores = score()
        assert scores["per_class"]["cell"]["f1"] is None
        figure = figures.plot_class_scores(scores, CLASSES)
        (axes,) = figure.axes
        expected = []
        for key in DRAWN_SCORES:
            expected += [scores["per_class"][name][key] for name in ("background", "vessel", "axon")]
            expected.append(scores["macro"][key])
        np.testing.assert_allclose(heights(axes), expected)
        assert texts(axes).count("absent") == 4
        assert len(axes.collections) == 0
        assert legend(figure) == [*CLASSES.names, "macro mean"]
        render(figure, tmp_path)

    def test_whiskers_are_the_intervals(self, tmp_path):
        rng = np.random.default_rng(0)
        images = [(str(i), TRUTH, np.where(rng.random(TRUTH.shape) < 0.3, 0, TRUTH)) for i in range(6)]
        images = [(name, truth, np.where(found == 255, 0, found).astype(np.uint8)) for name, truth, found in images]
        scores = score_images("tiny", "test", CLASSES, images)
        figure = figures.plot_class_scores(scores, CLASSES)
        drawn = [line.get_segments()[0][:, 1].tolist() for line in figure.axes[0].collections]
        intervals = scores["intervals"]
        measured = [intervals["per_class"][name] for name in ("background", "vessel", "axon")] + [intervals["macro"]]
        assert drawn == [bounds[key] for bounds in measured for key in ("precision", "recall", "f1", "iou")]
        assert "95 %" in figure.axes[0].get_xlabel()
        render(figure, tmp_path)

    def test_nothing_labelled_is_all_absent(self, tmp_path):
        figure = figures.plot_class_scores(score(truth=np.full_like(TRUTH, 255)), CLASSES)
        assert heights(figure.axes[0]) == []
        assert set(texts(figure.axes[0])) == {"absent"}
        render(figure, tmp_path)

    def test_bars_have_the_class_colours(self):
        figure = figures.plot_class_scores(score(), CLASSES)
        bars = [bar for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]
        colours = {tuple(round(255 * part) for part in bar.get_facecolor()[:3]) for bar in bars}
        assert CLASSES.colours[1] in colours
        assert CLASSES.colours[0] not in colours  # too dark beside the others


class TestConfusion:
    def test_text_is_share_and_count(self, tmp_path):
        figure = figures.plot_confusion(score(), CLASSES)
        axes = figure.axes[0]
        # background 4 right and 1 called vessel; vessel 3 right; no cell; axon 1 right and 1 called background
        rows = [texts(axes)[4 * i : 4 * i + 4] for i in range(4)]
        assert rows[0] == ["80.0 %\n4", "20.0 %\n1", "0.0 %\n0", "0.0 %\n0"]
        assert rows[1] == ["0.0 %\n0", "100.0 %\n3", "0.0 %\n0", "0.0 %\n0"]
        assert rows[2] == ["0", "0", "0", "0"]
        assert rows[3] == ["50.0 %\n1", "0.0 %\n0", "0.0 %\n0", "50.0 %\n1"]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["background", "vessel", "cell\n(absent)", "axon"]
        shown = np.ma.filled(axes.images[0].get_array(), np.nan)
        np.testing.assert_allclose(np.nansum(shown, 1), [1, 1, 0, 1])
        render(figure, tmp_path)

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.lists(st.integers(0, 10**9), min_size=3, max_size=3), min_size=3, max_size=3))
    def test_every_count_is_written(self, confusion):
        classes = ClassSet(("a", "b", "c"))
        scores = {"dataset": "d", "split": "s", "classes": ["a", "b", "c"], "confusion": confusion}
        drawn = [
            int(text.split("\n")[-1].replace(",", "")) for text in texts(figures.plot_confusion(scores, classes).axes[0])
        ]
        assert drawn == [count for line in confusion for count in line]

    def test_a_dollar_is_a_dollar(self, tmp_path):
        classes = ClassSet(("back$ground", r"$\bad$"))
        scores = {"dataset": "$_$", "split": "s", "classes": list(classes.names), "confusion": [[1, 2], [3, 4]]}
        render(figures.plot_confusion(scores, classes), tmp_path)


class TestMethods:
    def test_bars_are_as_high_as_the_scores(self, tmp_path):
        methods = {"network": score(6), "majority": score(1, predicted=np.zeros_like(TRUTH))}
        figure = figures.plot_methods({name: [scores] for name, scores in methods.items()})
        for axes, mean in zip(figure.axes, ("macro", "weighted"), strict=True):
            expected = [methods[name][mean][key] for key in ("precision", "recall", "f1") for name in methods]
            np.testing.assert_allclose(heights(axes), expected)
        drawn = [whisker.get_segments()[0][:, 1].tolist() for whisker in figure.axes[0].collections]
        assert drawn == [methods["network"]["intervals"]["macro"][key] for key in ("precision", "recall", "f1")]
        assert legend(figure) == ["network", "majority"]
        render(figure, tmp_path)

    def test_one_method_with_nothing_to_score(self, tmp_path):
        figure = figures.plot_methods({"network": [score(6, truth=np.full_like(TRUTH, 255))]})
        assert heights(figure.axes[0]) == []
        render(figure, tmp_path)


class TestExamples:
    def test_errors_are_the_labelled_pixels_that_differ(self, tmp_path):
        figure = figures.plot_examples([figures.Example("slice 7", GREY, TRUTH, PREDICTED)], CLASSES)
        image, truth, _, errors = figure.axes
        assert image.get_ylabel() == "slice 7\n3 × 4 pixels (height × width)"
        np.testing.assert_array_equal(image.images[0].get_array(), GREY)
        red = (np.asarray(errors.images[0].get_array()) == (190, 0, 70)).all(-1)
        np.testing.assert_array_equal(red, (TRUTH != PREDICTED) & (TRUTH != 255))
        assert errors.get_xlabel() == "20.0 % of labelled pixels wrong"
        shown = np.asarray(truth.images[0].get_array())
        np.testing.assert_array_equal(shown[TRUTH == 0][:, 0], GREY[TRUTH == 0])  # class 0 stays as the image is
        assert legend(figure) == ["vessel", "cell", "axon", "not labelled", "wrong"]
        render(figure, tmp_path)

    def test_images_of_different_sizes_and_all_ignored(self, tmp_path):
        wide = figures.Example(
            "wide", np.zeros((2, 9), np.uint8), np.full((2, 9), 255, np.uint8), np.zeros((2, 9), np.uint8)
        )
        figure = figures.plot_examples([figures.Example("a", GREY, TRUTH, PREDICTED), wide], CLASSES)
        assert figure.axes[7].get_xlabel() == "0.0 % of labelled pixels wrong"
        render(figure, tmp_path)


class TestSamples:
    @pytest.mark.parametrize("count", [1, 4, 5])
    def test_each_slice_has_its_name_above_and_its_labels_below(self, tmp_path, count):
        figure = figures.plot_samples([(f"s{i}", GREY, TRUTH) for i in range(count)], CLASSES)
        titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
        assert titles == [f"s{i}" for i in range(count)]
        assert sum(len(axes.images) for axes in figure.axes) == 2 * count
        assert "not labelled" in legend(figure)
        render(figure, tmp_path)

    def test_fully_labelled_needs_no_word_for_unlabelled(self):
        figure = figures.plot_samples([("s", GREY, np.zeros_like(TRUTH))], CLASSES)
        assert legend(figure) == ["vessel", "cell", "axon"]


def test_augmentation_shows_each_draw_and_its_labels(tmp_path):
    figure = figures.plot_augmentation((GREY, TRUTH), [(GREY // 2, TRUTH), (GREY[::-1], TRUTH[::-1])], CLASSES)
    whites = [int(np.asarray(axes.images[0].get_array()).max()) for axes in figure.axes[:3]]
    assert whites == [220, 110, 220]
    assert [axes.get_title() for axes in figure.axes[:3]] == ["As it is", "Augmented 1", "Augmented 2"]
    assert legend(figure) == ["vessel", "cell", "axon", "not labelled"]
    render(figure, tmp_path)


def test_each_augmentation_of_a_slice_stands_beside_it_with_its_labels(tmp_path):
    turned = (GREY[::-1], TRUTH[::-1])
    figure = figures.plot_augmented(
        [("slice 7: a, z 2", (GREY, TRUTH), [turned, (GREY // 2, TRUTH)])], ["as-reported", "ours"], CLASSES
    )
    assert [axes.get_title("left") for axes in figure.axes] == [
        "As it is",
        "labels",
        "as-reported",
        "labels",
        "ours",
        "labels",
    ]
    for axes, grey in zip(figure.axes[::2], (GREY, GREY[::-1], GREY // 2), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), grey)
    assert figure.axes[0].get_ylabel() == "slice 7\na, z 2"
    assert legend(figure) == ["vessel", "cell", "axon", "not labelled"]
    render(figure, tmp_path)


class TestSettings:
    def test_a_row_per_setting_under_the_name_of_its_group(self, tmp_path):
        rows = [
            figures.Setting("as-reported", "unet", (0.25, None), (0.5, (0.4, 0.6)), (0.75, None)),
            figures.Setting("as-reported", "linknet", (0.3, None), (None, None), (0.7, None)),
            figures.Setting("pixels", "rf", (0.2, None), (0.1, None), (0.15, None)),
        ]
        figure = figures.plot_settings(rows, "all", "whiskers: something")
        precision, recall, f1 = figure.axes
        assert [axes.get_title("left") for axes in figure.axes] == ["Precision", "Recall", "F1"]
        widths = [[bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)] for axes in figure.axes]
        assert widths == [[0.25, 0.3, 0.2], [0.5, 0, 0.1], [0.75, 0.7, 0.15]]
        assert [label.get_text() for label in precision.get_yticklabels()] == ["unet", "linknet", "rf"]
        assert texts(precision) == ["as-reported", "0.250", "0.300", "pixels", "0.200"]
        assert texts(recall) == ["0.500", "–", "0.100"]
        (whisker,) = recall.collections
        assert whisker.get_segments()[0][:, 0].tolist() == [0.4, 0.6]
        assert not f1.collections
        assert figure.get_supxlabel().endswith("; whiskers: something")
        render(figure, tmp_path)

    def test_thirty_rows_do_not_touch(self, tmp_path):
        rows = [figures.Setting("ours", f"unet-resnet{i}-focal-lr3e-2", *[(0.9, (0.8, 1.0))] * 3) for i in range(30)]
        figure = figures.plot_settings(rows)
        render(figure, tmp_path)
        renderer = lay_out(figure)
        boxes = [label.get_window_extent(renderer) for label in figure.axes[0].get_yticklabels()]
        assert all(above.y0 >= below.y1 for above, below in pairwise(boxes))
        assert min(box.x0 for box in boxes) >= 0


def test_words_of_the_workflow_lie_in_their_boxes(tmp_path):
    figure = figures.plot_workflow()
    render(figure, tmp_path)
    (axes,) = figure.axes
    assert {"patches", "augmentation", "encoder", "decoder", "loss", "labels", "scores"} <= set(texts(axes))
    renderer = lay_out(figure)
    words = [text.get_window_extent(renderer) for text in axes.texts]
    boxes = [patch.get_window_extent(renderer) for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    assert len(boxes) == 8
    for box in boxes:
        (inside,) = [word for word in words if box.x0 < word.x0 < box.x1 and box.y0 < word.y0 < box.y1]
        assert inside.x1 < box.x1
        assert inside.y1 < box.y1


class TestStatistics:
    def test_histograms_are_percentages_of_each_class(self, tmp_path):
        statistics = measure_dataset(make_dataset())
        figure = figures.plot_histograms(statistics, "train", CLASSES)
        (axes,) = figure.axes
        lines = [patch for patch in axes.patches if not patch.get_fill()]
        for patch, name in zip(lines, ("background", "vessel", "axon"), strict=True):
            values, edges, _ = patch.get_data()
            counts = np.asarray(statistics["splits"]["train"]["histogram"][name])
            np.testing.assert_allclose(values, 100 * counts / counts.sum())
            np.testing.assert_allclose(edges, statistics["histogram_edges"])
        assert legend(figure) == ["background", "vessel", "cell (absent)", "axon"]
        assert "not shown" not in axes.get_xlabel()
        render(figure, tmp_path)

    def test_a_far_outlier_does_not_squash_the_rest(self, tmp_path):
        grey = np.random.default_rng(0).normal(0, 1, (1, 80, 80)).astype(np.float32)
        grey[0, 0, 0] = 50
        dataset = Dataset("far", OTHERS, {"train": (Cutout(Volume(grey, "a"), np.zeros(grey.shape, np.uint8)),)})
        figure = figures.plot_histograms(measure_dataset(dataset), "train", OTHERS)
        assert figure.axes[0].get_xlim()[1] < 6
        assert "outermost 0.1 % of pixels not shown" in figure.axes[0].get_xlabel()
        render(figure, tmp_path)

    def test_shares_are_percentages_per_split(self, tmp_path):
        statistics = measure_dataset(make_dataset())
        figure = figures.plot_class_shares(statistics, CLASSES)
        (axes,) = figure.axes
        expected = [
            100 * split["share"][name]
            for split in statistics["splits"].values()
            for name in ("background", "vessel", "axon")
        ]
        np.testing.assert_allclose(heights(axes), expected)
        assert texts(axes).count("absent") == 2
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels == ["train\n2 images, 4 slices", "test\n1 image, 2 slices"]
        render(figure, tmp_path)

    def test_a_rare_class_is_never_written_as_none(self):
        statistics = measure_dataset(make_dataset())
        statistics["splits"]["test"]["share"]["axon"] = 0.00032
        assert "0.03" in texts(figures.plot_class_shares(statistics, CLASSES).axes[0])


class TestUncertainty:
    def share(self, labelled: Any, wrong: Any, uncertainty: Any) -> str:
        truth = np.where(np.asarray(labelled, bool), 0, 255).astype(np.uint8)
        predicted = np.asarray(wrong, np.uint8)
        example = figures.Example("a", np.zeros_like(truth), truth, predicted)
        return figures.plot_uncertainty([(example, np.asarray(uncertainty, np.uint8))], OTHERS).axes[2].get_xlabel()

    @pytest.mark.parametrize("where", [slice(0, 2), slice(-2, None), slice(4, 6)])
    def test_equally_unsure_pixels_say_nothing_wherever_the_errors_are(self, where):
        labelled, wrong, unsure = np.ones((10, 10)), np.zeros((10, 10)), np.full((10, 10), 40)
        wrong[where] = 1
        assert (
            self.share(labelled, wrong, unsure) == "10 % of the errors are in the least\nsure tenth of the labelled pixels"
        )

    def test_by_hand(self):
        # 20 pixels: the tenth is 2, the one of 200 and a quarter of the four of 100
        unsure = [[200, 100, 100, 100, 100, *[50] * 15]]
        labelled = np.ones((1, 20))
        for errors, share in (((0,), 100), ((1,), 25), ((0, 1), 62), ((1, 2), 25), ((0, 1, 2, 10), 38), ((10,), 0)):
            wrong = np.zeros((1, 20))
            wrong[0, list(errors)] = 1
            assert self.share(labelled, wrong, unsure).startswith(f"{share} % "), errors

    def test_unlabelled_pixels_do_not_count(self):
        # 10 labelled ones among 30; those without a label are the least sure
        unsure = np.array([[*range(10), *[250] * 20]])
        labelled = np.arange(30)[None] < 10
        wrong = np.isin(np.arange(30)[None], (9, 3))
        assert self.share(labelled, wrong, unsure).startswith("50 % ")

    def test_no_error(self):
        assert self.share(np.ones((2, 3)), np.zeros((2, 3)), np.zeros((2, 3))) == "no error"
        assert self.share(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3))) == "no error"


def test_names_of_any_script_and_with_dollars_are_drawn(tmp_path):
    strange = ClassSet(("background", r"$\frac$", "细胞", "axon"))
    scores = score(classes=strange)
    for number, figure in enumerate((figures.plot_class_scores(scores, strange), figures.plot_confusion(scores, strange))):
        figures.save_figure(figure, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5000


def test_a_clipped_value_does_not_hide_the_rest():
    labels = np.repeat(np.array([[[0], [1]]], np.uint8), 400, 2)
    grey = np.stack([np.arange(400) % 200, np.where(np.arange(400) < 300, 0, np.arange(400) % 200)])[None].astype(np.uint8)
    dataset = Dataset("clipped", OTHERS, {"train": (Cutout(Volume(grey, "a"), labels),)})
    axes = figures.plot_histograms(measure_dataset(dataset), "train", OTHERS).axes[0]
    assert axes.get_ylim()[1] < 3
    assert "nucleus: 75 % at 0" in texts(axes)


MANY = ClassSet(tuple(f"region number {i}" for i in range(40)))
UNWRITABLE = ClassSet(("\ue010\ue011", "\ue012", "cell"))  # of the private use area, which no font has
LONG = ClassSet(("background", "vessel of the outer layer " * 4 + "left", "vessel of the outer layer " * 4 + "right"))


def score_many(classes: ClassSet) -> dict[str, Any]:
    truth = np.repeat(np.arange(len(classes), dtype=np.uint8), 4).reshape(-1, 4)
    predicted = truth.copy()
    predicted[:, 0] = 0
    return score(classes=classes, truth=truth, predicted=predicted)


@cache
def draw_all(classes: ClassSet) -> dict[str, Figure]:
    """Every figure that names classes."""
    truth = np.repeat(np.arange(len(classes), dtype=np.uint8), 40).reshape(-1, 10)
    grey = np.arange(truth.size, dtype=np.uint8).reshape(truth.shape)
    dataset = Dataset("tiny", classes, {"train": (Cutout(Volume(grey[None], "a"), truth[None]),)})
    statistics = measure_dataset(dataset)
    metrics = {k: v for k, v in row(0).items() if not k.startswith("val_f1_")} | {f"val_f1_{n}": 0.5 for n in classes.names}
    return {
        "scores": figures.plot_class_scores(score_many(classes), classes),
        "confusion": figures.plot_confusion(score_many(classes), classes),
        "shares": figures.plot_class_shares(statistics, classes),
        "histograms": figures.plot_histograms(statistics, "train", classes),
        "training": figures.plot_training([metrics], classes),
        "examples": figures.plot_examples([figures.Example("a", grey, truth, truth)], classes),
        "samples": figures.plot_samples([("a", grey, truth)], classes),
    }


def all_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: isinstance(artist, Text))]


class TestManyLongAndUnwritableNames:
    @pytest.mark.parametrize("classes", [CLASSES, MANY, UNWRITABLE, LONG], ids=["few", "many", "unwritable", "long"])
    def test_legends_lie_below_all_panels_and_within_the_figure(self, classes):
        for name, figure in draw_all(classes).items():
            renderer = lay_out(figure)
            for found in figure.legends:
                box = found.get_window_extent(renderer)
                assert box.y1 <= min(axes.get_tightbbox(renderer).y0 for axes in figure.axes), name
                assert box.x0 >= 0, name
                assert box.y0 >= 0, name
                assert box.x1 <= figure.bbox.x1, name
            for axes in (axes for axes in figure.axes if axes.get_label() != "<colorbar>"):
                assert axes.get_window_extent(renderer).width > 40, name
                assert axes.get_window_extent(renderer).height > 40, name

    def test_each_of_many_classes_has_its_id(self):
        for name, figure in draw_all(MANY).items():
            drawn = all_texts(figure)
            assert {f"{i} region number {i}" for i in range(1, 40)} <= set(drawn), name

    def test_ids_of_many_classes_are_written_where_the_class_is(self):
        figure = draw_all(MANY)["examples"]
        places = {text.get_text(): text.get_position() for text in figure.axes[1].texts}
        # four rows of each class, ten pixels wide; a class is deepest in one of its two middle rows
        assert sorted(map(int, places)) == list(range(1, 40))
        for number, (x, y) in ((int(text), place) for text, place in places.items()):
            assert y in (4 * number + 1, 4 * number + 2)
            assert 1 <= x <= 8

    def test_a_few_classes_need_no_ids(self):
        for name, figure in draw_all(CLASSES).items():
            assert not {"1", "1 vessel", "class 1"} & set(all_texts(figure)), name

    def test_many_rows_are_as_long_as_the_scores(self):
        scores = score_many(MANY)
        precision, recall = draw_all(MANY)["scores"].axes[:2]
        lengths = [bar.get_width() for bar in recall.patches if isinstance(bar, Rectangle)]
        np.testing.assert_allclose(
            lengths, [*(scores["per_class"][n]["recall"] for n in MANY.names), scores["macro"]["recall"]]
        )
        assert precision.get_title("left") == "Precision"

    def test_a_name_without_letters_is_the_class_id(self):
        assert figures.label_classes(UNWRITABLE) == ["class 0", "class 1", "cell"]
        for name, figure in draw_all(UNWRITABLE).items():
            assert not any("\ue010" in text or "\ue012" in text for text in all_texts(figure)), name

    def test_long_names_lose_their_middle_and_stay_different(self):
        labels = figures.label_classes(LONG)
        assert labels[0] == "background"
        assert labels[1] == "1 vessel of the outer…layer left"
        assert labels[2] == "2 vessel of the outer…layer right"


def test_ranges_of_many_classes_are_quantiles():
    edges = np.arange(101.0)
    names = MANY.names
    histogram = {name: np.eye(100)[5].astype(int).tolist() for name in names} | {names[3]: [1] * 100, names[4]: [0] * 100}
    statistics = {
        "dataset": "d",
        "classes": list(names),
        "histogram_edges": edges.tolist(),
        "splits": {"train": {"histogram": histogram}},
    }
    (axes,) = figures.plot_histograms(statistics, "train", MANY).axes
    thin, thick = (axes.collections[i].get_segments()[0][:, 0].tolist() for i in (6, 7))
    assert thin == pytest.approx([4.5, 94.5], abs=1)
    assert thick == pytest.approx([24.5, 74.5], abs=1)
    assert texts(axes) == ["absent"]


@pytest.mark.parametrize("backend", ["inline", "nonsense"])
def test_figures_need_no_backend(tmp_path, backend):
    code = (
        "import os, sys; from pathlib import Path; from neurotome import figures; from neurotome.classes import ClassSet;"
        "scores = dict(dataset='d', split='s', classes=['a', 'b'], confusion=[[1, 2], [3, 4]]);"
        "figure = figures.plot_confusion(scores, ClassSet(('a', 'b')));"
        "figures.save_figure(figure, Path(sys.argv[1]));"
        "print(os.environ['MPLBACKEND'])"  # as it was, for others
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.png"],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": backend},
    )
    assert done.stdout.strip() == backend
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_backend_that_is_there_stays_for_others():
    code = "from neurotome import figures; import matplotlib; print(matplotlib.get_backend())"
    env = {**os.environ, "MPLBACKEND": "svg"}
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env).stdout == "svg\n"
    )


@pytest.mark.parametrize("rate", [0.0, 3e-6, None])
def test_learning_rate_of_one_epoch_has_a_readable_axis(tmp_path, rate):
    rates = figures.plot_training([row(0, learning_rate=rate)], CLASSES).axes[2]
    low, high = rates.get_ylim()
    assert low == 0
    assert high > (rate or 0.5)
    assert rates.get_ylabel() == ("learning rate (× 10⁻⁶)" if rate else "learning rate")


def test_without_a_background_all_classes_are_painted_and_ids_are_those_of_the_files():
    classes = ClassSet(("vessel", "cell"), first_id=1)
    truth = np.array([[0, 0, 1, 255]], np.uint8)
    figure = figures.plot_samples([("a", np.zeros((1, 4), np.uint8), truth)], classes)
    assert legend(figure) == ["vessel", "cell", "not labelled"]
    assert len(set(map(tuple, np.asarray(figure.axes[1].images[0].get_array())[0, :3]))) == 2
    many = ClassSet(tuple(f"c{i}" for i in range(12)), first_id=1)
    assert figures.label_classes(many)[0] == "1 c0"
    samples = figures.plot_samples([("a", np.zeros((1, 4), np.uint8), truth)], many)
    assert texts(samples.axes[1]) == ["1", "2"]
    assert legend(samples) == ["1 c0", "2 c1", "not labelled"]
