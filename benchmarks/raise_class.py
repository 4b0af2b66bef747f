"""Raises one class of a trained model: adds to its logit, so that it is found more often everywhere.

    python benchmarks/raise_class.py runs/microct-base "blood vessel" --by 0.693 --out runs/microct-base-raised

The last step of `make microct-base`: with twice the odds (0.693 is log 2) the number and area of vessels come nearer to
those that people drew (docs/benchmarks.md); no other factor was tried.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from neurotome.models.model_folder import load_model, save_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("name", help="of the class")
    parser.add_argument("--by", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    predictor = load_model(arguments.model)
    if arguments.name not in predictor.classes.names:
        raise SystemExit(f"{arguments.model} has no class {arguments.name!r}; it has {', '.join(predictor.classes.names)}.")
    bias = [weights for name, weights in predictor.net.named_parameters() if name.endswith("segmentation_head.0.bias")]
    if len(bias) != 1:
        raise SystemExit(f"{arguments.model} has {len(bias)} layers that give logits; expected one with a bias.")
    with torch.no_grad():
        bias[0][predictor.classes.names.index(arguments.name)] += arguments.by
    save_model(predictor, arguments.out, {**predictor.facts, "raised": {arguments.name: arguments.by}}, "float16")


if __name__ == "__main__":
    main()
