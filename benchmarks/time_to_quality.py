"""Test macro F1 against wall-clock minutes: neurotome, the plain recipe and nnU-Net, from the start of the process.

    python benchmarks/training_speed.py peers --peers runs/peers
    python benchmarks/time_to_quality.py --data ../shared/data/vnc_sstem --peers runs/peers --out runs/time_to_quality

Every method is started anew for each limit, as a process of its own, and methods take turns. The clock runs from the start
of its process to the trained network: imports, reading, nnU-Net's planning and preprocessing, validation and saving count,
prediction does not. Learning rates fall with the time, so that each training is whole at its limit. All networks start from
random weights. Scores are macro F1 over all test pixels, counted alike, from label images. Every result is a file under
`--out`; a run that was stopped goes on with the same command.

Methods:
    neurotome     `neurotome.train` with its defaults and a time limit: UNet on ResNet18, 8 patches of 256 x 256 at most
    plain         `plain_recipe.py` with the same network, patches and batch
    nnunet        nnU-Net's 2D configuration as it plans it; its learning rate follows the time instead of 1000 epochs
    nnunet, 256   the same planned for patches of 256 x 256, 8 at once, which takes more steps in the same time

`--small` trains for seconds on tiny slices whatever is installed, to see that all still runs.
"""

import argparse
import itertools
import os
import statistics
from pathlib import Path

import numpy as np
from PIL import Image
from training_jobs import describe_data, find_missing, measure, name_processor, write_slices

from neurotome.classes import ClassSet
from neurotome.datasets.phantom.make import PhantomSettings
from neurotome.metrics import confusion, scores

METHODS = ("neurotome", "plain", "nnunet", "nnunet, 256")
MINUTES = {"cpu": (5, 15, 40), "cuda": (1, 3, 10)}
# Okabe and Ito (2008), distinct under the common forms of colour blindness; line and mark differ too
STYLES = {
    "neurotome": ("#0072B2", "-", "o"),
    "plain": ("#E69F00", "--", "s"),
    "nnunet": ("#009E73", ":", "^"),
    "nnunet, 256": ("#CC79A7", "-.", "D"),
}


def score(labels: Path, data: dict) -> dict:
    """Returns the scores of label images of the split test."""
    classes, folder = ClassSet(tuple(data["classes"])), Path(data["data"])
    counts = np.zeros((len(classes),) * 2, np.int64)
    for name in data["splits"]["test"]:
        truth, found = (np.asarray(Image.open(place / f"{name}.png")) for place in (folder / "labels", labels))
        counts += confusion(truth, found, classes)
    return scores(counts, classes.names)


def tabulate(rows: list[dict]) -> str:
    """Returns a table in Markdown, a line for each dataset, limit and method; ranges are over seeds."""
    heads = ("data", "limit, min", "method", "macro F1", "seeds", "needed, min", "steps", "F1 of the classes")
    lines = ["| " + " | ".join(heads) + " |", "|-" * len(heads) + "|"]
    for (dataset, minutes, method), found in group(rows).items():
        values = [row["macro_f1"] for row in found]
        spread = f"{statistics.mean(values):.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")
        needed = max(row["seconds"] for row in found) / 60
        steps = statistics.median_low(row["steps"] for row in found)
        names = found[0]["per_class"]
        each = ", ".join(f"{name} {statistics.mean(row['per_class'][name] or 0 for row in found):.2f}" for name in names)
        cells = (dataset, f"{minutes:g}", method, spread, str(len(found)), f"{needed:.1f}", str(steps), each)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def group(rows: list[dict]) -> dict[tuple[str, float, str], list[dict]]:
    """Returns the rows of each dataset, limit and method; seeds go together."""
    found: dict[tuple[str, float, str], list[dict]] = {}
    for row in sorted(rows, key=lambda row: (row["dataset"], row["minutes"], METHODS.index(row["method"]))):
        found.setdefault((row["dataset"], row["minutes"], row["method"]), []).append(row)
    return found


def draw(rows: list[dict], path: Path) -> None:
    """Draws macro F1 against minutes, a panel for each dataset: lines through the means, a mark for each seed."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    from neurotome.figures.style import STYLE, draw_legend, save_figure

    datasets = sorted({row["dataset"] for row in rows})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1 + 4 * len(datasets), 4))
        panels = figure.subplots(1, len(datasets), squeeze=False)[0]
        for axes, dataset in zip(panels, datasets, strict=True):
            for method in METHODS:
                own = [row for row in rows if (row["dataset"], row["method"]) == (dataset, method)]
                colour, line, mark = STYLES[method]
                means = {
                    minutes: statistics.mean(row["macro_f1"] for row in found)
                    for (_, minutes, _), found in group(own).items()
                }
                axes.plot(list(means), list(means.values()), line, color=colour, marker=mark, label=method, linewidth=2)
                axes.plot([row["minutes"] for row in own], [row["macro_f1"] for row in own], mark, color=colour, alpha=0.4)
            axes.set_xscale("log")
            axes.set_xticks(sorted({row["minutes"] for row in rows}))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set(title=dataset, xlabel="wall-clock time from the start of the process (minutes)", ylim=(0, 1))
            axes.grid(True)
        panels[0].set_ylabel("macro F1 on the test slices")
        draw_legend(figure, panels[0].get_legend_handles_labels()[0])
        save_figure(figure, path)


def parse_arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[], help="datasets of uint8 images beside the phantom")
    parser.add_argument("--out", type=Path, default=Path("runs/time_to_quality"))
    parser.add_argument("--peers", type=Path, default=Path("runs/peers"), help="folder of the peers' environments")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--minutes", nargs="+", type=float, help="limits; default: 5, 15, 40 on a CPU, 1, 3, 10 on a GPU")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--known", action="store_true", help="train nothing; table and picture of what has been measured")
    parser.add_argument("--small", action="store_true", help="seconds on tiny slices of the phantom, one seed")
    arguments = parser.parse_args(given)
    if arguments.device is None:
        import torch

        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.minutes = arguments.minutes or MINUTES[arguments.device]
    if arguments.small:
        arguments.data, arguments.minutes, arguments.seeds = [], (0.02,), 1
    return arguments


def main(given: list[str] | None = None) -> None:
    arguments = parse_arguments(given)
    missing = find_missing(arguments.methods, arguments.peers)
    edge, depths = (64, (1, 1, 1)) if arguments.small else (384, (12, 4, 8))
    depth = dict(zip(("train_depth", "val_depth", "test_depth"), depths, strict=True))
    datasets = {}
    for source in (*arguments.data, "phantom"):
        folder = arguments.out / "data" / Path(source).name
        write_slices(source, folder, PhantomSettings(height=edge, width=edge, **depth))
        datasets[Path(source).name] = describe_data(folder)
    rows = []
    orders = itertools.product(range(arguments.seeds), arguments.minutes, datasets, arguments.methods)
    for seed, minutes, dataset, method in orders:
        if method in missing:
            continue
        job = {
            "method": method, "dataset": dataset, "seconds": 60 * minutes, "seed": seed, "decoder": "unet",
            "encoder": "resnet18", "patch": 64 if arguments.small else 256, "batch": 2 if arguments.small else 8,
            "threads": arguments.threads, "device": arguments.device, "small": arguments.small,
        }  # fmt: skip
        path = arguments.out / "results" / f"{dataset}-{minutes:g}-{seed}-{method.replace(', ', '-')}.json"
        if arguments.known and not path.is_file():
            continue
        if result := measure(path, job, datasets[dataset], arguments.peers):
            found = score(path.with_suffix(""), datasets[dataset])
            per_class = {name: values["f1"] for name, values in found["per_class"].items()}
            row = {
                "macro_f1": found["macro"]["f1"],
                "per_class": per_class,
                "minutes": minutes,
                "busy": result["facts"]["busy"],
            }
            rows.append({**job, **result["found"], **row})
    if not rows:
        raise SystemExit("no method could be run; see above")
    print(f"{name_processor()}, {arguments.threads} threads, device {arguments.device}\n")
    print(tabulate(rows))
    draw(rows, arguments.out / "time_to_quality.png")
    if missing:
        print(f"\nnot installed under {arguments.peers}: {', '.join(missing)}; `training_speed.py peers` does that")
    print(f"\nother work kept the processor busy before a training by at most {max(row['busy'] for row in rows):.0f} %")


if __name__ == "__main__":
    main()
