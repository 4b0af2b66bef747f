"""The page of a reproduction: claims with verdicts, tables, figures and how it was run, in one file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from neurotome.atomic import write_text
from neurotome.progress import format_duration
from neurotome.report.judged import Judged, Pair, show_signed
from neurotome.report.page import fill_template
from neurotome.report.side_table import NOT_RUN, SideTable, write_csv, write_latex
from neurotome.report.slides import to_url
from neurotome.statistics import Difference, Estimate, Rank

PAGE = "reproduction.html"
LARGEST_PNG = 200_000  # bytes; larger ones, which show images, are compressed for the page
WIDEST = 1400  # pixels

CAPTIONS = {
    "samples": "Figure 1. Slices and their labels.",
    "workflow": "Figure 2. From slices over patches, augmentation and the network to labels and scores.",
    "augmentation": "Figure 3. Slices before and after the augmentation of each recipe.",
    "settings": "Figure 4. Macro precision, recall and F1 of every setting beside the pixel baselines, split test.",
    "predictions": "Figure 5. Image, ground truth, prediction and errors of {best}.",
}
"""By the name of the file in figures/; `{best}` is a run."""


@dataclass(frozen=True)
class Ranked:
    """A method among all: what it reached, and what it cost. Memory in MiB, speed in megapixel/s."""

    name: str
    runs: int
    f1: Estimate
    rank: Rank
    difference: Difference | None
    seconds: float | None
    memory: float | None
    speed: float | None

    @property
    def first_in(self) -> str:
        """Returns the share of draws in which it is first, as text."""
        return f"{100 * self.rank.share_first:.0f} %" if self.rank.share_first >= 0 else "–"  # not a number: too few slices


@dataclass(frozen=True)
class Reproduction:
    """What a page shows.

    Attributes:
        comparable: Whether the data are the report's.
        best: Name of the run of Figure 5.
        same: The same network in both recipes.
        reference: The method that `ranking` compares the others with, "" for none.
        facts: How it was run.
        warnings: What limits the intervals.
    """

    dataset: str
    classes: Sequence[str]
    comparable: bool
    scored_on: str
    runs_planned: int
    single: bool
    scaled: Sequence[str]
    judged: Sequence[Judged]
    tables: Sequence[SideTable]
    ranking: Sequence[Ranked]
    same: Sequence[Pair]
    reference: str
    failures: Mapping[str, str]
    missing: Sequence[str]
    facts: Mapping[str, str]
    warnings: Sequence[str]
    memory_note: str
    best: str


def write_reproduction(content: Reproduction, out: Path) -> Path:
    """Writes the page, and every table as CSV and LaTeX in `tables/`; shows what pictures there are in `figures/`.

    Returns:
        The page, which needs no other file and no network.
    """
    for table in content.tables:
        write_text(out / "tables" / f"{table.key}.csv", table.to_csv())
        write_text(out / "tables" / f"{table.key}.tex", table.to_latex())
    if content.ranking:
        _write_ranking(content.ranking, out / "tables")
    pictures = []
    for key, caption in CAPTIONS.items():
        path = out / "figures" / f"{key}.png"
        if path.is_file():
            pictures.append({"key": key, "caption": caption.format(best=content.best), **_embed(path)})
    claims: dict[str, list[Judged]] = {}
    for one in content.judged:
        claims.setdefault(one.claim, []).append(one)
    page = fill_template(
        "reproduction.html.j2",
        {"signed": show_signed},
        title=f"The founding report on {content.dataset}",
        figures=pictures,
        runs_done=content.runs_planned - len(content.missing),
        not_run=NOT_RUN,
        claims=claims,
        version=metadata.version("neurotome"),
        **{name: getattr(content, name) for name in content.__dataclass_fields__},
    )
    write_text(out / PAGE, page)
    return out / PAGE


def _write_ranking(ranking: Sequence[Ranked], folder: Path) -> None:
    """Writes all methods as `networks.csv`, unrounded, and `networks.tex`."""
    head = ["method", "runs", "macro F1", "low", "high", "rank", "rank low", "rank high", "share first"]
    head += ["difference", "difference low", "difference high", "p corrected", "training s", "memory MiB", "Mpixel per s"]
    lines, texts = [], []
    for row in ranking:
        other = row.difference
        compared = (other.effect, other.low, other.high, other.p_corrected) if other else (None,) * 4
        place = (row.rank.rank, row.rank.low, row.rank.high, row.rank.share_first if row.rank.share_first >= 0 else None)
        lines.append([row.name, row.runs, row.f1.value, row.f1.low, row.f1.high, *place, *compared])
        lines[-1] += [row.seconds, row.memory, row.speed]
        interval = "" if row.f1.low is None else f" [{row.f1.low:.3f}–{row.f1.high:.3f}]"
        difference = "–" if other is None else show_signed(other.effect, "F1")
        texts.append([row.name, f"{row.f1.value:.3f}{interval}", f"{place[0]} ({place[1]}–{place[2]})", difference])
    write_text(folder / "networks.csv", write_csv([head, *lines]))
    latex = write_latex("All methods, split test", ["method", "macro F1", "rank", "difference"], texts)
    write_text(folder / "networks.tex", latex)


def _embed(path: Path) -> dict[str, Any]:
    """Returns a picture's address and width; what shows images is compressed, since PNG makes it large."""
    from PIL import Image

    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as picture:
        width = round(picture.width * 96 / 150)  # CSS pixels; figures have 150 dots per inch
        if len(content) <= LARGEST_PNG:
            return {"source": to_url("png", content), "width": width}
        smaller = picture.convert("RGB")
        smaller.thumbnail((WIDEST, 4 * WIDEST))
        packed = io.BytesIO()
        smaller.save(packed, "JPEG", quality=80)
    return {"source": to_url("jpeg", packed.getvalue()), "width": width}


def list_facts(
    environment: Mapping[str, Any], seeds: Sequence[int], seconds: float, devices: Sequence[str]
) -> dict[str, str]:
    """Returns how a grid was run, by what it is."""
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    return {
        "Command": str(environment.get("command") or "–"),
        "Machine": f"{environment.get('platform', '–')}, {environment.get('cores', '–')} cores",
        "Trained on": ", ".join(devices) or "–",
        "neurotome": f"{environment.get('neurotome', '–')}, commit {environment.get('git_commit') or 'not known'}",
        "Python and packages": f"Python {environment.get('python', '–')}, {packages}",
        "Seeds": ", ".join(map(str, seeds)),
        "Training, all runs together": format_duration(seconds),
    }
