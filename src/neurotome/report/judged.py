"""A claim, judged: the pairs of methods that speak for or against it, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Answer = Literal["holds", "does not hold", "undecided", "not measured"]

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Pair:
    """What the claim says is larger minus the other: effect with interval, in the claim's unit.

    Attributes:
        first: What is said to be better, or larger.
        p: Corrected for all comparisons; None where there is no test.
        note: What limits it, "" for nothing.
    """

    first: str
    second: str
    effect: float
    low: float | None
    high: float | None
    p: float | None
    note: str = ""

    @property
    def decided(self) -> bool:
        """Whether it differs from zero: by its p-value, or by its interval where there is none."""
        if self.p is not None:
            return self.p < SIGNIFICANT
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Judged:
    """A claim of the founding report and whether it holds in one recipe on these data.

    Attributes:
        claim: As a sentence.
        reported: Where the report says it, with its numbers; they have no part in the answer.
        recipe: Of the runs that were compared.
        unit: Of effects: `macro F1` or `MiB`.
        missing: Pairs of which a run is missing.
    """

    claim: str
    reported: str
    recipe: str
    unit: str
    pairs: tuple[Pair, ...]
    missing: tuple[str, ...] = ()

    @property
    def pooled(self) -> Pair | None:
        """The mean over the pairs.

        The ends of its interval are the means of the pairs' ends: right where the errors of the pairs go together, as on the
        same slices they mostly do, and too wide otherwise; never too narrow.
        """
        if not self.pairs:
            return None
        lows, highs = (_mean([getattr(pair, end) for pair in self.pairs]) for end in ("low", "high"))
        return Pair("", "", sum(pair.effect for pair in self.pairs) / len(self.pairs), lows, highs, None)

    @property
    def answer(self) -> Answer:
        """The verdict.

        It holds where the mean over the pairs lies above zero with its whole interval, a pair by itself differs from zero,
        and none is decidedly against it; one that is refutes the claim, for it is made in general.
        """
        pooled = self.pooled
        if pooled is None:
            return "not measured"
        if any(pair.decided and pair.effect < 0 for pair in self.pairs):
            return "does not hold"
        if pooled.low is not None and pooled.low > 0 and any(pair.decided for pair in self.pairs):
            return "holds"
        return "undecided"

    @property
    def reason(self) -> str:
        """Why, as a sentence."""
        pooled = self.pooled
        if pooled is None:
            return f"No pair was run: {', '.join(self.missing)}." if self.missing else "No pair of such runs is in the grid."
        mean = show_signed(pooled.effect, self.unit)
        if pooled.low is not None and pooled.high is not None:
            mean += f" [{show_signed(pooled.low, self.unit)} to {show_signed(pooled.high, self.unit)}]"
        against = [pair for pair in self.pairs if pair.decided and pair.effect < 0]
        favour = [pair for pair in self.pairs if pair.decided and pair.effect > 0]
        text = (
            f"{mean} {self.unit}, mean of {len(self.pairs)} pair{'s' * (len(self.pairs) != 1)}, of which {len(favour)} "
            f"decidedly for it and {len(against)} against it."
        )
        return text + (f" Not measured: {', '.join(self.missing)}." if self.missing else "")


def show_signed(value: float, unit: str) -> str:
    """Returns a difference in a unit, with its sign."""
    digits = f"{abs(value):,.0f}" if unit == "MiB" else f"{abs(value):.3f}"
    return ("−" if value < 0 else "+") + digits


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
