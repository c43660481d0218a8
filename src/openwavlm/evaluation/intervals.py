"""Intervals of figures and differences over clusters of speakers and seeds, and the one rule for "equal" (DESIGN §8).

Frames of one speaker are not independent, and neither are the models or codebooks of one seed. Clusters and seeds are crossed: the
variance is that of a two-way layout of jackknife pseudo-values, the quantile Student's with Satterthwaite's degrees of freedom
(docs/decisions/0009). A percentile bootstrap is too narrow here: resampling S seeds gives (S − 1) / S of their variance.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Literal

import numpy as np
from scipy.special import nctdtrinc, stdtrit

from openwavlm.runtime.randomness import stable_hash

Outcome = Literal["higher", "lower", "equal", "unknown"]
PLACES = 5  # of the ends in every JSON file; the outcome is that of the ends as written
# More clusters than this are counted in groups, which bounds the memory of histograms; the interval hardly changes.
MAX_GROUPS = 256
_POWER = 0.8
_AT_ONCE = 50


@dataclass(frozen=True)
class Interval:
    """A figure or a difference of two figures, with its interval.

    Attributes:
        value: On all clusters, mean over seeds.
        low, high: Ends of the interval; NaN for a single cluster.
        visible: Smallest true difference from 0 that this design shows with a probability of 80 %; NaN for a single cluster.
        clusters: Number of clusters of speakers with frames.
        seeds: Number of seeds; with one seed the interval does not cover other seeds.
    """

    value: float
    low: float
    high: float
    visible: float
    clusters: int
    seeds: int = 1

    @property
    def outcome(self) -> Outcome:
        """Sign of a difference; see `outcome_of`."""
        return outcome_of(self.low, self.high)

    def as_list(self) -> list[float]:
        """Value, low, high and visible, for JSON."""
        return [self.value, self.low, self.high, self.visible]


def outcome_of(low: float, high: float) -> Outcome:
    """Sign of a difference: `equal` where its interval, as written, contains 0, `unknown` where there is no interval."""
    if isnan(low) or isnan(high):
        return "unknown"
    if round(low, PLACES) > 0:
        return "higher"
    return "lower" if round(high, PLACES) < 0 else "equal"


def deciding(outcomes: Mapping[str, Outcome], figures: Mapping[str, float]) -> tuple[str, Outcome]:
    """Outcome against several baselines at once, and the baseline that decides it.

    `lower` than one is `lower`, `higher` than all is `higher`. Otherwise it is `unknown` if one has no interval, else `equal`. The
    baseline that decides is the highest of those with that outcome.

    Args:
        outcomes: Baseline → outcome of the difference to it; not empty.
        figures: Baseline → its figure, higher is better.
    """
    order: tuple[Outcome, ...] = ("lower", "unknown", "equal", "higher")
    decided = min(outcomes.values(), key=order.index)
    return max((name for name, outcome in outcomes.items() if outcome == decided), key=lambda name: figures[name]), decided


def sign_places(low: float, high: float, least: int) -> int:
    """Decimal places, at least `least`, with which an interval prints the outcome that it has."""
    wanted = outcome_of(low, high)
    for places in range(least, PLACES):
        above, below = round(low, places) > 0, round(high, places) < 0
        if wanted == ("higher" if above else "lower" if below else "equal"):
            return places
    return least if wanted == "unknown" else max(least, PLACES)


def by_cluster(values: np.ndarray, clusters: Sequence[str]) -> np.ndarray:
    """Sums per utterance (…, utterances) → per cluster (…, clusters), clusters in order of their names; float64."""
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((*values.shape[:-1], len(names)))
    np.add.at(sums.T, place, np.asarray(values, dtype=np.float64).T)
    return sums


def group_places(clusters: Sequence[str]) -> dict[str, int]:
    """Row of each cluster in histograms by cluster: in order of the names, beyond `MAX_GROUPS` in groups by the names' hashes."""
    names = sorted(set(clusters))
    if len(names) > MAX_GROUPS:
        names = sorted(names, key=stable_hash)
    return {name: place % MAX_GROUPS for place, name in enumerate(names)}


def interval(pseudo: np.ndarray, value: float, *, confidence: float = 0.95) -> Interval:
    """Interval of a figure from its jackknife pseudo-values.

    Clusters and seeds are random and crossed. The variance is that of the clusters' means plus that of the seeds' means, less the
    interaction, which both contain.

    Args:
        pseudo: float64 (seeds, clusters); NaN for clusters without frames, which are left out.
        value: The figure.
        confidence: Probability with which the interval contains the figure of other clusters and seeds.
    """
    pseudo = pseudo[:, ~np.isnan(pseudo).any(axis=0)]
    seeds, clusters = pseudo.shape
    if clusters < 2:
        return Interval(value, nan, nan, nan, clusters, seeds)
    parts = [(pseudo.mean(axis=0).var(ddof=1) / clusters, clusters - 1)]
    variance = parts[0][0]
    if seeds > 1:
        rest = pseudo - pseudo.mean(axis=0) - pseudo.mean(axis=1, keepdims=True) + pseudo.mean()
        both = (seeds - 1) * (clusters - 1)
        parts += [(pseudo.mean(axis=1).var(ddof=1) / seeds, seeds - 1), (np.square(rest).sum() / both / pseudo.size, both)]
        variance = max(parts[0][0] + parts[1][0] - parts[2][0], parts[0][0], parts[1][0])
    below = sum(part**2 / freedom for part, freedom in parts)
    freedom = max(1.0, variance**2 / below) if below > 0 else clusters - 1
    error = float(np.sqrt(variance))
    outside = float(stdtrit(freedom, (1 + confidence) / 2))
    visible = float(nctdtrinc(freedom, 1 - _POWER, outside)) * error
    return Interval(value, value - outside * error, value + outside * error, visible, clusters, seeds)


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Interval of Σ numerator / Σ denominator, mean over seeds.

    Correct frames over frames is an accuracy, the difference of two systems' correct frames over the same frames a paired difference.

    Args:
        numerator: (clusters,) or (seeds, clusters).
        denominator: (clusters,), not negative.
        confidence: Probability with which the interval contains the figure of other clusters and seeds.

    Raises:
        ValueError: If there is no cluster, or the denominators sum to 0.
    """
    top, bottom = np.atleast_2d(np.asarray(numerator, dtype=np.float64)), np.asarray(denominator, dtype=np.float64)
    top, bottom = top[:, bottom > 0], bottom[bottom > 0]
    if bottom.sum() <= 0:
        raise ValueError("an interval over speakers needs at least one speaker with frames, but has none")
    whole, count = top.sum(axis=1) / bottom.sum(), len(bottom)
    pseudo = np.broadcast_to(whole[:, None], top.shape)
    if count > 1:
        without = (top.sum(axis=1, keepdims=True) - top) / (bottom.sum() - bottom)
        pseudo = count * whole[:, None] - (count - 1) * without
    return interval(pseudo, float(whole.mean()), confidence=confidence)


def jackknife(joint: np.ndarray, figure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Pseudo-values of a figure of summed counts: float64 (clusters,), NaN for clusters without counts.

    Args:
        joint: Counts (clusters, …).
        figure: Maps float64 counts (number, …) to values (number,).
    """
    filled = np.flatnonzero(joint.reshape(len(joint), -1).any(axis=1))
    total, count = joint.sum(axis=0, dtype=np.float64), len(filled)
    pseudo = np.full(len(joint), np.nan)
    if count == 0:
        return pseudo
    whole = figure(total[None])[0]
    for start in range(0, count, _AT_ONCE):
        places = filled[start : start + _AT_ONCE]
        without = figure(total - joint[places]) if count > 1 else whole
        pseudo[places] = count * whole - (count - 1) * without
    return pseudo
