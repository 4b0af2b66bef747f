"""The model card: what a stranger must know of a model, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neurotome.models.stored_model import StoredModel, open_place

OWN = "README.md"
"""A card that was written by hand, in the model's folder, goes before ours."""

SCALES = {
    "tissue": "any grey scale: the tissue's median and the darkest pixels of the image, or of all images of a scan, give it",
    "image": "any grey scale: mean and standard deviation of the image give it",
    "dataset": "{dtype}, on the grey scale of the training images (mean {mean:.4g}, standard deviation {std:.4g})",
    "range": "integers, the brightest possible grey is 1; trained on {dtype}",
}


def write_card(stored: StoredModel, name: str, head: str = "") -> str:
    """Returns the card of a model: the one that lies in its folder, or what its description says.

    Args:
        stored: The model.
        name: What it is called.
        head: Goes before it, such as front matter.
    """
    own = open_place(stored.folder) / OWN
    return head + (own.read_text(encoding="utf-8") if own.is_file() else _describe(stored, name))


def describe_shortly(stored: StoredModel) -> str:
    """Returns one sentence that says what the model labels."""
    return f"Labels {', '.join(stored.classes.names[1:]) or stored.classes.names[0]} in grey images, slice by slice."


def _describe(stored: StoredModel, name: str) -> str:
    facts, classes = stored.facts, stored.classes
    scale = SCALES[stored.normalization.mode].format(**vars(stored.normalization))
    rows = {
        "kind": stored.kind + (f", {_name_network(stored.content['model'])}" if "model" in stored.content else ""),
        "input": f"one grey channel, {scale}",
        "voxel size (um z, y, x)": _list(stored.voxel_size_um),
        "output": ", ".join(f"{classes.first_id + i} {text}" for i, text in enumerate(classes.names)),
        "looks": f"{stored.halo} pixels far",
        "training data": _or(facts.get("dataset")),
        "their licence": _or(facts.get("licence")),
        "citation": _or(facts.get("citation")),
        "trained on from": _or(_name_origin(facts.get("init"))),
        "weights, SHA-256": str(stored.content["weights_sha256"]),
    }
    scores = facts.get("macro_f1")
    found = [f"| {split} | {value:.3f} |" for split, value in scores.items()] if isinstance(scores, Mapping) else []
    lines = [
        f"# {name}",
        "",
        describe_shortly(stored),
        "",
        "    pip install neurotome",
        f"    neurotome predict {name} slice.tif labels.tif --overlay",
        "",
        "| | |",
        "|-|-|",
        *(f"| {key} | {_cell(value)} |" for key, value in rows.items()),
        "",
        "## Validation",
        "",
        *(["| split | macro F1 |", "|-|-|", *found] if found else ["No split of the data was scored."]),
        "",
        "Scores hold for images like those it was trained on. Look at what it makes of yours before you count with it.",
        "",
    ]
    return "\n".join(lines)


def _name_network(model: Mapping[str, Any]) -> str:
    return f"{model['decoder']} on {model['encoder']}, {model['in_channels']} neighbouring slices"


def _name_origin(init: Any) -> str:
    return str(init.get("name", "")) if isinstance(init, Mapping) else ""


def _list(size: tuple[float, float, float] | None) -> str:
    return "not known" if size is None else " x ".join(f"{edge:.4g}" for edge in size)


def _or(value: Any) -> str:
    return str(value) if value else "not stated"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
