"""reproduce: the page, its tables and verdicts from a grid folder's own files."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from conftest import run, write_dataset
from neurotome.atomic import write_json
from neurotome.classes import ClassSet
from neurotome.errors import RunError
from neurotome.experiments.grids.plan import read_grid
from neurotome.experiments.reproduction.claims import judge_claims
from neurotome.experiments.reproduction.measured import Measured
from neurotome.experiments.reproduction.reproduce import choose_data, find_best, write_page
from neurotome.experiments.reproduction.side_by_side import list_tables
from neurotome.runs import Run
from neurotome.scoring import score_images
from neurotome.statistics import IntervalSettings, compare_metrics

pytestmark = pytest.mark.filterwarnings("ignore:nowhere does not exist")  # where the data are: pages come from runs

CLASSES = ClassSet(("background", "blood vessel", "cell", "axon"))
SLICES = 24
MIB = 2**20

ENTRIES = [
    {
        "recipe": "as-reported",
        "label": "{decoder}-{encoder}-focal-lr3e-2",
        "model.decoder": ["unet", "linknet"],
        "model.encoder": ["resnet18", "resnet50"],
        "loss.terms": "sigmoid_focal",
    },
    {
        "recipe": "as-reported",
        "label": "{decoder}-{encoder}-ce-lr{learning_rate}",
        "model.decoder": ["unet", "linknet"],
        "model.encoder": "resnet18",
        "loss.terms": "cross_entropy",
        "train.learning_rate": [0.03, 0.05],
    },
    {"recipe": "ours", "label": "{decoder}-{encoder}", "model.decoder": ["unet", "linknet"], "model.encoder": "resnet18"},
    {"kind": "pixels", "recipe": "pixels", "label": "{learner}", "learner": ["lr", "rf"]},
]

WRONG = {
    "as-reported/unet-resnet18-focal-lr3e-2": 0.10,
    "as-reported/linknet-resnet18-focal-lr3e-2": 0.11,
    "as-reported/unet-resnet50-focal-lr3e-2": 0.20,
    "as-reported/linknet-resnet50-focal-lr3e-2": 0.22,
    "as-reported/unet-resnet18-ce-lr3e-2": 0.15,
    "as-reported/linknet-resnet18-ce-lr3e-2": 0.05,  # better than focal: refutes the claim
    "as-reported/unet-resnet18-ce-lr5e-2": 0.15,
    "as-reported/linknet-resnet18-ce-lr5e-2": 0.05,  # the same as 3e-2: nothing decided
    "ours/unet-resnet18": 0.02,
    "ours/linknet-resnet18": 0.03,
    "pixels/lr": 0.40,
    "pixels/rf": 0.35,
}
"""By method the share of pixels that it gets wrong."""


def make_scores(wrong, split, classes=CLASSES, seed=0, name="toy"):
    """Scores of labels in which a share of pixels is wrong; which slices are hard, all methods share."""
    rng = np.random.default_rng(5)
    hard = 1 + 0.5 * np.sin(np.arange(SLICES)) * rng.random(SLICES)
    truth = rng.choice(len(classes), (SLICES, 24, 24), p=[0.5, *[0.5 / (len(classes) - 1)] * (len(classes) - 1)])
    noise = np.random.default_rng([7, seed, round(1000 * wrong)])
    images = []
    for z in range(SLICES):
        hit = noise.random(truth[z].shape) < wrong * hard[z]
        predicted = np.where(hit, (truth[z] + 1) % len(classes), truth[z])
        images.append((f"s/{z:04d}", truth[z].astype(np.uint8), predicted.astype(np.uint8)))
    return score_images(name, split, classes, images)


def write_run(folder, planned, wrong, classes=CLASSES, name="toy"):
    run = Run(folder / "runs" / planned.name)
    for split in planned.splits:
        run.write_scores(split, make_scores(wrong, split, classes, planned.seed, name))
    memory = (400 if "linknet" in planned.label else 500) * MIB
    summary = {"finished": True, "device": "cpu", "precision": "32", "seconds": 60.0, "peak_memory_bytes": memory}
    kind = {"pixels": {}, "method": "forest"} if planned.kind == "pixels" else {"epochs": 1, "steps": 10}
    run.write_training({**summary, **kind, "scoring_mpixel_per_s": 1.5})


def write_grid(folder, entries=ENTRIES, seeds=(0,)):
    content = {"recipes": {"as-reported": {}, "ours": {}}, "seeds": list(seeds), "runs": entries}
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(content))
    plan = read_grid(path)
    folder.mkdir(exist_ok=True)
    write_json(folder / "grid.json", {**plan.to_json(), "dataset": "nowhere", "scaled": ["batches of 8 instead of 64"]})
    return plan


@pytest.fixture(autouse=True)
def _without_figures(request, monkeypatch):
    """Drawing takes longer than all else; one test of the whole command does it."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr("neurotome.experiments.reproduction.reproduce.draw_figures", lambda *_: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A grid folder whose runs are all scored."""
    out = tmp_path_factory.mktemp("grids") / "whole"
    for planned in write_grid(out).runs:
        write_run(out, planned, WRONG[planned.method])
    return out


def find_table(folder, key, statistics=None):
    (table,) = [table for table in list_tables(Measured(folder), statistics) if table.key == key]
    return table


def judge(folder, recipe="as-reported"):
    return {one.claim: one for one in judge_claims(Measured(folder)) if one.recipe == recipe}


class Cells(HTMLParser):
    """Counts the cells of every row, with their spans, and what a page loads from elsewhere."""

    def __init__(self, page):
        super().__init__()
        self.widths, self.loaded, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "tr":
            self.widths.append(0)
        elif tag in ("td", "th"):
            self.widths[-1] += int(attrs.get("colspan", 1))
        if tag in ("img", "script", "link") and not attrs.get("src", "").startswith("data:"):
            self.loaded.append(tag)

    def handle_data(self, data):
        self.text += data


def test_a_measured_score_stands_beside_the_printed_one(folder):
    table = find_table(folder, "table-04")
    row = next(row for row in table.rows if row.name == "LinkNet18")
    f1, memory = row.cells[2], row.cells[3]
    scores = Run(folder / "runs/as-reported/linknet-resnet18-focal-lr3e-2/seed-0").read_scores("test")
    assert f1.printed == 0.88
    assert f1.measured["as-reported"].value == pytest.approx(scores["macro"]["f1"])
    assert f1.measured["as-reported"].low < scores["macro"]["f1"] < f1.measured["as-reported"].high
    assert f1.find_difference("as-reported") == pytest.approx(scores["macro"]["f1"] - 0.88)
    ours = Run(folder / "runs/ours/linknet-resnet18/seed-0").read_scores("test")
    assert f1.measured["ours"].value == pytest.approx(ours["macro"]["f1"])
    assert (memory.printed, memory.show("as-reported")) == (7956, "400")


def test_what_is_not_in_the_grid_is_not_run(folder):
    table = find_table(folder, "table-04")
    row = next(row for row in table.rows if row.name == "UNet34")
    assert [cell.show("as-reported") for cell in row.cells] == ["not run"] * 4
    assert row.cells[0].show_printed() == "0.87"


def test_losses_and_rates_are_never_those_of_another_run(folder):
    # ours has no run of focal loss at this rate, only its own loss
    assert find_table(folder, "table-03").rows[0].cells[2].measured["ours"] is None


def test_classes_of_other_data_get_rows_of_their_own(tmp_path):
    out = tmp_path / "other"
    classes = ClassSet(("background", "synapse", "cell"))
    for planned in write_grid(out).runs:
        write_run(out, planned, WRONG[planned.method], classes)
    table = find_table(out, "table-09")
    shown = {row.name: (row.cells[2].show_printed(), row.cells[2].show("as-reported")) for row in table.rows}
    assert shown["axon"] == ("0.94", "–")
    assert shown["synapse"][0] == "–"
    assert float(shown["synapse"][1]) > 0.5
    assert shown["background"][0] == "0.95"
    assert "no class blood vessel, axon" in table.notes[0]


def test_a_class_absent_from_the_split_has_no_value(tmp_path):
    out = tmp_path / "absent"
    for planned in write_grid(out).runs:
        write_run(out, planned, WRONG[planned.method])
        run = Run(out / "runs" / planned.name)
        truth = np.zeros((24, 24), np.uint8)
        truth[:9] = 2
        images = [(f"s/{z:04d}", truth, np.roll(truth, z % 3, 0)) for z in range(SLICES)]
        run.write_scores("test", score_images("toy", "test", CLASSES, images))
    row = next(row for row in find_table(out, "table-09").rows if row.name == "axon")
    assert [cell.show("as-reported") for cell in row.cells] == ["–"] * 3
    assert write_page(out).is_file()


def test_table_1_counts_the_data(folder):
    values = {"counts": {"background": 10, "glia": 3}, "slices": 2, "std": 31.0184, "mean": 123.236}
    table = find_table(folder, "table-01", {"splits": {"train": values}})
    shown = {row.name: row.cells[0] for row in table.rows}
    assert (shown["background"].show_printed(), shown["background"].show("data")) == ("39,665,515", "10")
    assert (shown["axon"].show("data"), shown["glia"].show_printed(), shown["glia"].show("data")) == ("–", "–", "3")
    assert shown["grey mean"].show("data") == "123.24"
    assert shown["grey std"].show_difference("data") == "+0.0004"


def test_verdicts_follow_from_the_runs(folder):
    judged = judge(folder)
    answers = {claim: one.answer for claim, one in judged.items()}
    assert answers == {
        "A lower learning rate helps (3e-2 instead of 5e-2)": "undecided",
        "The focal loss beats cross-entropy": "does not hold",
        "ResNet50 is worse than ResNet18": "holds",
        "Networks beat pixel baselines": "holds",
        "LinkNet needs less memory than UNet": "holds",
        "The weighted mean hides rare classes: it lies above the macro mean": "holds",
    }
    focal = judged["The focal loss beats cross-entropy"]
    assert sorted(pair.effect > 0 for pair in focal.pairs) == [False, True]
    assert all(pair.p < 0.05 for pair in focal.pairs)
    networks = judged["Networks beat pixel baselines"]
    assert {pair.second for pair in networks.pairs} == {"rf"}  # the better of the two on val


def test_claims_whose_runs_are_missing_are_not_measured(folder):
    judged = judge(folder, "ours")
    assert judged["The focal loss beats cross-entropy"].answer == "not measured"
    assert judged["ResNet50 is worse than ResNet18"].answer == "not measured"
    assert judged["LinkNet needs less memory than UNet"].answer == "holds"


def test_memory_that_differs_by_its_noise_decides_nothing(tmp_path):
    out = tmp_path / "memory"
    for planned in write_grid(out).runs:
        write_run(out, planned, WRONG[planned.method])
        run = Run(out / "runs" / planned.name)
        peak = (500 if "linknet" in planned.label else 505) * MIB  # 1 % apart
        run.write_training({**run.read_training(), "peak_memory_bytes": peak})
    assert judge(out)["LinkNet needs less memory than UNet"].answer == "undecided"


def test_the_page_is_whole(folder):
    page = write_page(folder).read_text(encoding="utf-8")
    cells = Cells(page)
    assert not cells.loaded
    assert "absolute numbers cannot be compared" in cells.text
    assert cells.text.index("absolute numbers") < cells.text.index("What the report claims")
    assert "batches of 8 instead of 64" in cells.text
    assert "12 of 12" in cells.text
    for number in range(1, 15):
        assert f"Table {number}. " in cells.text
    for key in ("table-04", "table-09"):  # every row of a table is as wide as its head
        (table,) = re.findall(rf'id="{key}".*?</table>', page, re.DOTALL)
        assert len(set(Cells(table).widths)) == 1
    assert len(page) < 1_000_000


def test_the_reports_own_data_can_be_compared(tmp_path):
    out = tmp_path / "own"
    for planned in write_grid(out, ENTRIES[:1]).runs:
        write_run(out, planned, WRONG[planned.method], name="mtneuro-4class-with-zi")
    page = write_page(out).read_text(encoding="utf-8")
    assert "cannot be compared" not in page
    assert 'class="muted"' not in page


def test_published_results_stand_beside_ours_on_mtneuro(tmp_path):
    out = tmp_path / "mtneuro"
    for planned in write_grid(out, ENTRIES[2:3]).runs:
        write_run(out, planned, WRONG[planned.method], name="mtneuro-4class")
    table = find_table(out, "mtneuro")
    unet = next(row for row in table.rows if row.name == "unet")
    scores = Run(out / "runs/ours/unet-resnet18/seed-0").read_scores("test")
    assert [cell.printed for cell in unet.cells] == [0.97, 0.82, 0.87, 0.94, 0.90]
    assert unet.cells[1].measured["ours"].value == pytest.approx(scores["per_class"]["blood vessel"]["f1"])
    assert table.rows[1].cells[0].show("ours") == "not run"


def test_tables_are_written_as_csv_and_latex(folder):
    write_page(folder)
    rows = list(csv.DictReader(io.StringIO((folder / "tables/table-04.csv").read_text())))
    row = next(row for row in rows if (row["row"], row["column"]) == ("UNet18", "F1"))
    assert float(row["printed"]) == 0.89
    assert float(row["difference as-reported"]) == pytest.approx(float(row["measured as-reported"]) - 0.89)
    missing = next(row for row in rows if row["row"] == "UNet34")
    assert missing["measured as-reported"] == ""
    ranked = list(csv.DictReader(io.StringIO((folder / "tables/networks.csv").read_text())))
    assert ranked[0]["method"] == "ours/unet-resnet18"
    assert float(ranked[1]["difference"]) < 0
    assert len((folder / "tables/networks.tex").read_text().splitlines()) == 12 + 7
    latex = (folder / "tables/table-04.tex").read_text()
    body = [line for line in latex.splitlines() if line.startswith(("UNet", "LinkNet"))]
    # a name, then for each of four columns printed, two recipes and the difference
    assert [line.count("&") for line in body] == [16] * 6
    assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 1


def test_a_grid_with_failed_runs_gives_a_page_and_an_error(tmp_path):
    out = tmp_path / "failed"
    plan = write_grid(out)
    for planned in plan.runs[2:]:
        write_run(out, planned, WRONG[planned.method])
    message = "training diverged <b>"
    write_json(
        out / "failures" / f"{plan.runs[0].name.replace('/', '__')}.json", {"run": plan.runs[0].name, "message": message}
    )
    with pytest.raises(RunError, match="1 of 12 runs failed"):
        write_page(out)
    page = (out / "reproduction.html").read_text(encoding="utf-8")
    assert plan.runs[0].name in page
    assert "training diverged &lt;b&gt;" in page
    assert ">not run<" in page
    assert "2 runs without scores" in page


def test_nothing_run_yet_gives_a_page(tmp_path):
    out = tmp_path / "empty"
    write_grid(out)
    page = write_page(out).read_text(encoding="utf-8")
    assert "0 of 12" in page
    assert all(one.answer == "not measured" for one in judge_claims(Measured(out)))


def test_a_grid_of_pixel_classifiers_gives_a_page(tmp_path):
    out = tmp_path / "pixels"
    for planned in write_grid(out, ENTRIES[3:]).runs:
        write_run(out, planned, WRONG[planned.method])
    text = Cells(write_page(out).read_text(encoding="utf-8")).text
    assert "2 of 2" in text
    assert "pixels/rf" in text
    assert {one.answer for one in judge_claims(Measured(out))} == {"not measured"}


def test_damaged_scores_count_as_not_run(folder, tmp_path):
    out = tmp_path / "damaged"
    plan = write_grid(out)
    for planned in plan.runs:
        write_run(out, planned, WRONG[planned.method])
    broken = out / "runs" / plan.runs[0].name / "scores/test.json"
    broken.write_text("{")
    with pytest.warns(UserWarning, match=r"test\.json"):
        write_page(out)
    assert plan.runs[0].name in (out / "reproduction.html").read_text(encoding="utf-8")


def test_figure_5_shows_the_network_that_is_best_on_val(folder):
    assert find_best(Measured(folder)).name == "ours/unet-resnet18"


def test_several_seeds_are_one_method(tmp_path):
    out = tmp_path / "seeds"
    for planned in write_grid(out, seeds=(0, 1)).runs:
        write_run(out, planned, WRONG[planned.method])
    cell = find_table(out, "table-04").rows[0].cells[2]
    both = [
        Run(out / f"runs/as-reported/unet-resnet18-focal-lr3e-2/seed-{seed}").read_scores("test")["macro"]["f1"]
        for seed in (0, 1)
    ]
    assert cell.measured["as-reported"].seeds == 2
    assert cell.measured["as-reported"].value == pytest.approx(np.mean(both))


def test_a_folder_without_a_grid_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"grid\.json"):
        write_page(tmp_path)
    assert json.dumps(list(tmp_path.iterdir()), default=str) == "[]"


def write_tiny_grid(path, epochs=1):
    """A grid of a network in both recipes and a pixel classifier, each done in a few seconds."""
    tiny = {
        "model.decoder": "linknet",
        "model.encoder": "mobilenetv3_small_050",
        "model.encoder_depth": 3,
        "model.encoder_weights": "none",
        "sample.patch": 32,
        "sample.batch": 2,
        "train.epochs": epochs,
        "train.steps_per_epoch": 2,
        "train.device": "cpu",
    }
    runs = [
        {"recipe": "as-reported", "label": "linknet-resnet18-focal-lr3e-2", "loss.terms": "sigmoid_focal", **tiny},
        {"recipe": "ours", "label": "linknet-resnet18", **tiny},
        {"kind": "pixels", "learner": "rf", "pixels_per_class": 50, "forest.trees": 3},
    ]
    path.write_text(yaml.safe_dump({"recipes": {"as-reported": "founding_report/as_reported", "ours": {}}, "runs": runs}))
    return path


@pytest.mark.slow
def test_one_command_runs_a_grid_and_writes_the_page(tmp_path):
    data = write_dataset(tmp_path / "data")
    grid = write_tiny_grid(tmp_path / "grid.yaml")
    out = tmp_path / "out"
    assert run("reproduce", "--data", data, "--grid", grid, "--out", out) == 0
    page = out / "reproduction.html"
    cells = Cells(page.read_text(encoding="utf-8"))
    assert "3 of 3" in cells.text
    assert {path.stem for path in (out / "figures").iterdir()} >= {"samples", "workflow", "augmentation", "settings"}
    names = {"as-reported/linknet-resnet18-focal-lr3e-2", "ours/linknet-resnet18", "pixels/rf"}
    assert set(Measured(out).methods) == names
    trained = {path: path.stat().st_mtime_ns for path in out.glob("runs/**/model/*")}
    page.unlink()
    assert run("reproduce", "--out", out, "--grid", grid) == 0  # with the data that the folder names
    assert page.is_file()
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/**/model/*")} == trained
    assert run("reproduce", "--out", out, "--grid", write_tiny_grid(tmp_path / "other.yaml", epochs=2)) == 1


def test_data_without_a_test_split_are_refused_before_anything_is_written(tmp_path, capsys):
    data = write_dataset(tmp_path / "data")
    content = yaml.safe_load((data / "dataset.yaml").read_text())
    content["splits"] = {"train": ["a", "b"], "val": ["c", "d"]}
    (data / "dataset.yaml").write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    assert run("reproduce", "--data", data, "--grid", write_tiny_grid(tmp_path / "grid.yaml"), "--out", out) == 1
    assert "test" in capsys.readouterr().err
    assert not out.exists()


def test_the_phantom_stands_in_where_the_reports_data_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="phantom stands in"):
        assert choose_data(None) == "phantom"
    (tmp_path / "mtneuro").mkdir()
    assert choose_data(None) == "mtneuro:mtneuro@4class-with-zi"


def test_weighted_minus_macro_varies_as_drawn_slices_say():
    scores = make_scores(0.2, "test")
    found = compare_metrics([scores], "weighted.f1", "macro.f1", IntervalSettings(block=1))
    assert found.effect == pytest.approx(scores["weighted"]["f1"] - scores["macro"]["f1"])
    confusions = np.array(scores["per_image"]["confusion"])
    rng = np.random.default_rng(1)
    gaps = []
    for _ in range(2000):  # the plain bootstrap over slices, scored by scikit-learn's definition
        drawn = confusions[rng.integers(0, SLICES, SLICES)].sum(0)
        f1 = 2 * np.diag(drawn) / (drawn.sum(0) + drawn.sum(1))
        gaps.append(np.average(f1, weights=drawn.sum(1)) - f1.mean())
    width = np.subtract(*np.quantile(gaps, (0.975, 0.025)))
    assert found.high - found.low == pytest.approx(width, rel=0.35)
    assert found.low < np.mean(gaps) < found.high
