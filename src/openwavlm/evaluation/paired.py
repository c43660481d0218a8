"""Paired comparison of two arms on the same held-out speakers: differences by seed, interval over speakers and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openwavlm.evaluation.intervals import PLACES, Interval, Outcome, interval, ratio_interval


@dataclass(frozen=True, eq=False)
class Sums:
    """A figure of one model, by test speaker: Σ numerator / Σ denominator, float64 (speakers,) each."""

    speakers: tuple[str, ...]
    numerator: np.ndarray  # correct frames, or nats
    denominator: np.ndarray  # frames

    @property
    def value(self) -> float:
        """The figure on all speakers."""
        return float(self.numerator.sum() / self.denominator.sum())


@dataclass(frozen=True, eq=False)
class Pseudo:
    """A figure of one model that is no ratio of sums (average precision), with its jackknife pseudo-values by test speaker."""

    speakers: tuple[str, ...]
    value: float
    pseudo_values: np.ndarray  # float64 (speakers,), NaN for a speaker without an effect that can be computed


@dataclass(frozen=True)
class Difference:
    """Difference of two arms, `of` less `against`.

    Attributes:
        of, against, differences: The arms' figures and their difference, by seed.
        interval: Mean difference with its 95 % interval over speakers and seeds.
    """

    of: tuple[float, ...]
    against: tuple[float, ...]
    differences: tuple[float, ...]
    interval: Interval

    @property
    def verdict(self) -> Outcome:
        """Outcome of the interval."""
        return self.interval.outcome

    @property
    def seeds_agree(self) -> bool:
        """True if the difference has one sign in all seeds."""
        return len({np.sign(difference) for difference in self.differences}) == 1

    def as_json(self) -> dict[str, Any]:
        """Plain values, rounded to 5 places, None for an unknown end."""
        by_seed = {"of": self.of, "against": self.against, "differences": self.differences}
        value, low, high, visible = (_rounded(number) for number in self.interval.as_list())
        return {name: [_rounded(value) for value in values] for name, values in by_seed.items()} | {
            "difference": value,
            "interval": [low, high],
            "smallest_visible": visible,
            "speakers": self.interval.clusters,
            "verdict": self.verdict,
            "seeds_agree": self.seeds_agree,
        }


def _rounded(value: float) -> float | None:
    return round(value, PLACES) if np.isfinite(value) else None


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
                "a paired comparison needs the same frames of the same speakers, but two models were measured on different ones: compare "
                "figures of one test set, and masked figures only of one set of labels"
            )
    apart = np.stack([a.numerator - b.numerator for a, b in zip(of, against, strict=True)])
    return Difference(
        of=tuple(sums.value for sums in of),
        against=tuple(sums.value for sums in against),
        differences=tuple(a.value - b.value for a, b in zip(of, against, strict=True)),
        interval=ratio_interval(apart, first.denominator),
    )


def pseudo_difference(of: Sequence[Pseudo], against: Sequence[Pseudo]) -> Difference:
    """Compares two arms by pseudo-values.

    Args:
        of: Figures of one model for each seed.
        against: Figures of the other arm, for the same seeds in the same order.

    Raises:
        ValueError: If the numbers of seeds differ, or the models were judged on different speakers.
    """
    if len(of) != len(against) or not of:
        raise ValueError(f"a paired comparison needs the same seeds on both sides, but has {len(of)} and {len(against)}")
    if any(figure.speakers != of[0].speakers for figure in (*of, *against)):
        raise ValueError("a paired comparison needs the same speakers, but two models were measured on different ones")
    differences = tuple(a.value - b.value for a, b in zip(of, against, strict=True))
    apart = np.stack([a.pseudo_values - b.pseudo_values for a, b in zip(of, against, strict=True)])
    return Difference(
        of=tuple(figure.value for figure in of),
        against=tuple(figure.value for figure in against),
        differences=differences,
        interval=interval(apart, float(np.mean(differences))),
    )
