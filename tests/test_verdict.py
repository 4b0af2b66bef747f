import json

import numpy as np
import pytest
import yaml

from neurotome.classes import ClassSet
from neurotome.report import verdict
from neurotome.runs import Run
from neurotome.scoring import score_images

CLASSES = ClassSet(("background", "vessel", "cell"))
SETTINGS = {"dataset": "my data", "train": {"epochs": 8, "max_time": ""}}


def score(images=6, wrong=0, classes=CLASSES, split="test", missed=False, spread=0):
    """Scores of images of 30 pixels, ten of each of the three classes, of which `wrong` vessels are called cells."""
    truth = np.repeat(np.arange(3, dtype=np.uint8), 10)[None]
    scored = []
    for number in range(images):
        predicted = truth.copy()
        predicted[0, 10 : 10 + wrong + spread * number] = 2
        scored.append(
            (f"s{number}", truth, np.where(predicted == 2, 0, predicted).astype(np.uint8) if missed else predicted)
        )
    return score_images("toy", split, classes, scored)


def make_run(folder, scores, f1s=(), losses=None, config=SETTINGS):
    run = Run(folder)
    run.write_scores(scores["split"], scores)
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if f1s:
        losses = losses or [1.0] * len(f1s)
        rows = zip(f1s, losses, strict=True)
        run.write_metrics(
            [
                {"epoch": epoch, "step": 10 * epoch, "val_macro_f1": f1, "train_loss": loss}
                for epoch, (f1, loss) in enumerate(rows)
            ]
        )
    return run


def test_still_improving_says_by_how_much_and_how_to_go_on(tmp_path):
    first, *_ = verdict(make_run(tmp_path, score(), [0.1, 0.2, 0.3, 0.4, 0.5, 0.52, 0.55, 0.6]))
    assert first == (
        "Still improving: validation macro F1 reached 0.520 in the first 6 of 8 and 0.600 in the last 2 epochs. "
        "Train longer: give the same command again, for the same folder, with --train.epochs 16 (now 8)."
    )


@pytest.mark.parametrize(
    ("now", "then"), [("4m", "8m"), ("90s", "180s"), ("1.5h", "3h"), ("120", "240"), ("2 min", "4 min")]
)
def test_training_by_the_clock_is_prolonged_by_the_clock(tmp_path, now, then):
    config = {"dataset": "d", "train": {"epochs": 100, "max_time": now}}
    first, *_ = verdict(make_run(tmp_path, score(), [0.1, 0.2, 0.3], config=config))
    assert first == (
        "3 epochs of training, validation macro F1 0.300: too few to tell where it ends. Train longer: give the same "
        f"command again, for the same folder, with --train.max-time {then} (now {now})."
    )


def test_all_epochs_before_the_time_was_up_are_prolonged_by_epochs(tmp_path):
    config = {"dataset": "d", "train": {"epochs": 4, "max_time": "2h"}}
    assert "--train.epochs 8 (now 4)" in verdict(make_run(tmp_path, score(), [0.1, 0.2, 0.3, 0.4], config=config))[0]


def test_learned_by_heart(tmp_path):
    first, *_ = verdict(make_run(tmp_path, score(), [0.3, 0.6, 0.5, 0.4], [1, 0.5, 0.3, 0.1]))
    assert "best in epoch 2 of 4, 0.600, and fell to 0.400 while the training loss fell from 0.500 to 0.100" in first
    assert "--train" not in first
    assert "The weights of the best epoch are kept" in first
    last = {**SETTINGS, "train": {**SETTINGS["train"], "keep": "last"}}
    first, *_ = verdict(make_run(tmp_path / "last", score(), [0.3, 0.6, 0.5, 0.4], [1, 0.5, 0.3, 0.1], config=last))
    assert "The weights of the last epoch are kept" in first


@pytest.mark.parametrize(
    ("f1s", "losses"),
    [
        ([0.3, 0.6, 0.604, 0.605], [1, 0.5, 0.4, 0.3]),  # less than 0.01 better
        ([0.3, 0.6, 0.597, 0.595], [1, 0.5, 0.4, 0.3]),  # less than 0.01 worse
    ],
)
def test_level_is_long_enough(tmp_path, f1s, losses):
    first, *_ = verdict(make_run(tmp_path, score(), f1s, losses))
    assert first.startswith("Trained long enough: validation macro F1 reached 0.6")


def test_a_training_that_diverged_was_not_long_enough(tmp_path):
    first, *_ = verdict(make_run(tmp_path, score(), [0.3, 0.6, 0.5, 0.4], [0.5, 0.5, 0.6, 0.7]))
    assert first.startswith("Became unstable: validation macro F1 was best in epoch 2 of 4, 0.600, and fell to 0.400 while")
    assert "the training loss went from 0.500 to 0.700" in first


def test_what_was_not_validated_is_not_judged(tmp_path):
    sentences = verdict(make_run(tmp_path, score(), [None, None, None, None]))
    assert not any("validation" in sentence for sentence in sentences)


def test_a_network_and_a_classifier_are_told_how_to_try_the_other(tmp_path):
    network = verdict(make_run(tmp_path / "a net", score()))
    assert any(f"neurotome baseline 'my data' --out '{tmp_path}/a net-forest' && neurotome compare" in s for s in network)
    pixels = verdict(make_run(tmp_path / "rf", score(), config={"dataset": "d", "learner": "rf"}))
    assert any(f"neurotome train d --out {tmp_path}/rf-network && neurotome compare" in s for s in pixels)


def test_the_better_method_is_named_with_both_numbers(tmp_path):
    run = make_run(tmp_path, score(wrong=5))
    own = run.read_scores("test")["macro"]["f1"]
    best = score(wrong=1)["macro"]["f1"]
    sentences = verdict(run, {"a forest": [score(wrong=1)], "majority": [score(wrong=10), score(wrong=9)]})
    assert (
        sentences[0]
        == f"a forest is better: macro F1 {best:.3f} on split test, this run {own:.3f}. Use it, or train this one longer."
    )
    assert not any("Try it" in sentence for sentence in sentences)


def test_worse_methods_and_those_within_the_interval(tmp_path):
    run = make_run(tmp_path, score(wrong=2))
    assert verdict(run, {"majority": [score(wrong=9)]})[0].startswith("Better than majority: it reaches macro F1 0.")
    unsure = make_run(tmp_path / "unsure", score(wrong=0, spread=2))
    assert verdict(unsure, {"forest": [score(wrong=4)]})[0].startswith("No clear winner: forest reaches macro F1 0.")
    assert "the 95 % interval of the difference is -0." in verdict(unsure, {"forest": [score(wrong=4)]})[0]
    # both are unsure, but the forest is better on every image
    better = verdict(make_run(tmp_path / "paired", score(wrong=1, spread=1)), {"forest": [score(wrong=0, spread=1)]})
    assert better[0].startswith("forest is better: macro F1 0.")
    (only,) = verdict(run, {"of other images": [score(split="val")]})
    assert "6 slices count as 6 independent ones; below 20 the interval may be too narrow" in only
    assert verdict(make_run(tmp_path / "many", score(30, wrong=2)), {"of other images": [score(split="val")]}) == []


def test_classes_that_are_never_predicted_or_never_there(tmp_path):
    classes = ClassSet((*CLASSES.names, "axon"))
    sentences = verdict(make_run(tmp_path, score(missed=True, classes=classes)))
    assert any("Never predicted in split test, though it has them: cell (60 pixels)." in sentence for sentence in sentences)
    assert "Not a pixel in split test, so nothing is known of them: axon." in sentences


def test_few_images_and_wide_intervals(tmp_path):
    assert any("Split test has 1 image, too few" in s for s in verdict(make_run(tmp_path / "one", score(1))))
    assert any("Split test has 4 images, too few" in s for s in verdict(make_run(tmp_path / "four", score(4))))
    wide = score(6, spread=2)
    low, high = wide["intervals"]["macro"]["f1"]
    assert high - low > 0.1
    sentences = verdict(make_run(tmp_path / "wide", wide))
    assert any(f"is wide, {low:.3f} to {high:.3f} by 6 images" in sentence for sentence in sentences)
    assert not any("is wide" in s for s in verdict(make_run(tmp_path / "narrow", score(6, wrong=3))))


def test_test_scores_lead_and_a_run_without_scores_says_nothing(tmp_path):
    run = make_run(tmp_path, score(1, split="val"))
    run.write_scores("test", score(2))
    assert any("Split test has 2 images" in sentence for sentence in verdict(run))
    (tmp_path / "empty").mkdir()
    assert verdict(Run(tmp_path / "empty")) == []
    assert json.loads((tmp_path / "scores" / "val.json").read_text())["split"] == "val"
