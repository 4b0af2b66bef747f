"""The mean of the weights of several networks that began as the same model: one network, often better than each.

    python benchmarks/mean_weights.py runs/seed2 runs/seed3 runs/seed4 --out runs/mean

Wortsman et al. (2022), Model soups, arXiv 2203.05482.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from neurotome.models.model_folder import load_model, save_model
from neurotome.models.net_predictor import mix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="run folders or models of the same network")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    mean, *others = [load_model(model) for model in arguments.models]
    for number, other in enumerate(others, start=2):
        mean = mix(mean, other, 1 / number)
    save_model(mean, arguments.out, {**mean.facts, "mean_of": len(others) + 1}, "float16")


if __name__ == "__main__":
    main()
