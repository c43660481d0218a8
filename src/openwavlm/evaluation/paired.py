"""Paired comparison of two arms on the same held-out speakers: differences by seed, intervals over speakers, sentences and tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from openwavlm.evaluation.bootstrap import ratio_interval


class Figure(NamedTuple):
    """A figure that can be compared, its title in tables and the decimal places of its values."""

    title: str
    higher_is_better: bool
    places: int


FIGURES = {
    "phones": Figure("phones, chosen layer (share of frames)", higher_is_better=True, places=4),
    "overlapped_phones": Figure("phones of the first speaker in overlapped frames (share)", higher_is_better=True, places=4),
    "masked": Figure("masked cross-entropy (nats)", higher_is_better=False, places=3),
}


@dataclass(frozen=True, eq=False)
class Sums:
    """A figure of one model, by test speaker: Σ numerator / Σ denominator.

    Attributes:
        speakers: Their names.
        numerator: float64 (speakers,): right frames, or nats.
        denominator: float64 (speakers,): frames.
    """

    speakers: tuple[str, ...]
    numerator: np.ndarray
    denominator: np.ndarray

    @property
    def value(self) -> float:
        """The figure on all speakers."""
        return float(self.numerator.sum() / self.denominator.sum())


@dataclass(frozen=True)
class Difference:
    """Difference of two arms, `of` less `against`.

    Attributes:
        of: The first arm's figure by seed.
        against: The second arm's figure by seed.
        differences: Their difference by seed.
        value: Mean difference.
        low: Lower end of its 95 % interval over speakers, with the seeds' sums averaged.
        high: Upper end.
        speakers: Number of speakers.
    """

    of: tuple[float, ...]
    against: tuple[float, ...]
    differences: tuple[float, ...]
    value: float
    low: float
    high: float
    speakers: int

    @property
    def verdict(self) -> Literal["higher", "lower", "equal"]:
        """`equal` where the interval contains 0."""
        if self.low <= 0 <= self.high:
            return "equal"
        return "higher" if self.value > 0 else "lower"

    @property
    def seeds_agree(self) -> bool:
        """Whether the difference has one sign in all seeds."""
        return len({np.sign(difference) for difference in self.differences}) == 1

    def as_json(self) -> dict[str, Any]:
        """Plain values, rounded to 5 places."""
        by_seed = {"of": self.of, "against": self.against, "differences": self.differences}
        return {name: [round(value, 5) for value in values] for name, values in by_seed.items()} | {
            "difference": round(self.value, 5),
            "interval": [round(self.low, 5), round(self.high, 5)],
            "speakers": self.speakers,
            "verdict": self.verdict,
            "seeds_agree": self.seeds_agree,
        }


def difference(of: Sequence[Sums], against: Sequence[Sums]) -> Difference:
    """Compares two arms.

    Args:
        of: Sums of one model for each seed.
        against: Sums of the other arm, for the same seeds in the same order.

    Raises:
        ValueError: If the numbers of seeds differ, or the models were judged on different frames or speakers.
    """
    if len(of) != len(against) or not of:
        raise ValueError(f"a paired comparison needs the same seeds on both sides, but has {len(of)} and {len(against)}")
    first = of[0]
    for sums in (*of, *against):
        if sums.speakers != first.speakers or not np.array_equal(sums.denominator, first.denominator):
            raise ValueError(
                "a paired comparison needs the same frames of the same speakers, but two models were judged on different ones: compare "
                "figures of one test set, and masked figures only of one set of labels"
            )
    pooled = np.mean([a.numerator - b.numerator for a, b in zip(of, against, strict=True)], axis=0)
    interval = ratio_interval(pooled, first.denominator)
    return Difference(
        of=tuple(sums.value for sums in of),
        against=tuple(sums.value for sums in against),
        differences=tuple(a.value - b.value for a, b in zip(of, against, strict=True)),
        value=interval.value,
        low=interval.low,
        high=interval.high,
        speakers=interval.speakers,
    )


def sentence(figure: str, of: str, against: str, found: Difference) -> str:
    """The verdict in words."""
    title, higher_is_better, places = FIGURES[figure]
    name = title.split(" (", 1)[0]
    between = f"95 % interval {found.low:+.{places}f} to {found.high:+.{places}f} over {found.speakers} speakers"
    if found.verdict == "equal":
        words = f"{of} and {against} are equal: the difference of {found.value:+.{places}f} is within chance ({between})."
    else:
        worth = "better" if (found.verdict == "higher") == higher_is_better else "worse"
        words = f"{of} is {found.verdict}, which is {worth}, than {against} by {abs(found.value):.{places}f} ({between})."
    if len(found.differences) > 1 and not found.seeds_agree:
        words += " The seeds do not agree on its sign."
    return f"{name[0].upper()}{name[1:]}: {words}"


def table(figures: dict[str, Difference], of: str, against: str) -> list[str]:
    """Lines of a Markdown table with a row for each figure."""
    lines = [
        f"| figure | {of}: mean (seeds) | {against}: mean (seeds) | difference (seeds) | 95 % interval | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in figures.items():
        places = FIGURES[name].places
        cells = [
            FIGURES[name].title,
            seeds(name, found.of),
            seeds(name, found.against),
            seeds(name, found.differences, signed=True),
            f"{found.low:+.{places}f} to {found.high:+.{places}f}",
            found.verdict,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def seeds(figure: str, values: Sequence[float], *, signed: bool = False) -> str:
    """`mean (value, value, …)`."""
    form = f"{'+' if signed else ''}.{FIGURES[figure].places}f"
    return f"{np.mean(values):{form}} ({', '.join(f'{value:{form}}' for value in values)})"
