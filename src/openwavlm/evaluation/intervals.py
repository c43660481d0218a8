"""The one interval of every figure and difference: over clusters of speakers and seeds, which are crossed (DESIGN §8).

Frames of one speaker are not independent, nor are speakers of one cluster (a synthetic name in several accents), and models or
codebooks of one seed share its luck. The variance is that of a two-way layout of jackknife pseudo-values, and the quantile is
Student's with Satterthwaite's degrees of freedom. Resampling both factors, as percentiles of a bootstrap, covers less than it says
with three to five seeds: the variance of S draws is (S − 1) / S of that of the seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Literal

import numpy as np
from scipy import stats

Outcome = Literal["higher", "lower", "equal"]
_POWER = 0.8


@dataclass(frozen=True)
class Interval:
    """A figure, or a difference of two, with its interval.

    Attributes:
        value: On all clusters, mean over seeds.
        low, high: Ends of the interval; NaN for a single cluster.
        visible: Smallest true difference from 0 that this design shows with a probability of 80 %; NaN for a single cluster.
        clusters: Clusters of speakers.
        seeds: Seeds; with one, the interval says nothing about others.
    """

    value: float
    low: float
    high: float
    visible: float
    clusters: int
    seeds: int = 1

    @property
    def outcome(self) -> Outcome:
        """Sign of a difference: `equal` where the interval contains 0 or is unknown."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "equal"


def by_cluster(values: np.ndarray, clusters: Sequence[str]) -> np.ndarray:
    """Sums per utterance (…, utterances) → per cluster (…, clusters), clusters in order of their names."""
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((*values.shape[:-1], len(names)))
    np.add.at(sums.T, place, np.asarray(values, dtype=np.float64).T)
    return sums


def interval(pseudo: np.ndarray, value: float, *, confidence: float = 0.95) -> Interval:
    """Interval of a figure from its jackknife pseudo-values, float64 (seeds, clusters).

    Clusters and seeds are random and crossed: the variance is that of the clusters' means plus that of the seeds' means, less the
    interaction, which both contain.
    """
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
    outside = stats.t.ppf((1 + confidence) / 2, freedom)
    half = float(outside) * error
    return Interval(value, value - half, value + half, half + float(stats.t.ppf(_POWER, freedom)) * error, clusters, seeds)


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Interval of Σ numerator / Σ denominator, mean over seeds.

    Correct frames over frames is an accuracy, the difference of two systems' correct frames over the same frames a paired difference.

    Args:
        numerator: (clusters,), or (seeds, clusters).
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
    """Pseudo-values (clusters,) of a figure of summed counts.

    Args:
        joint: Counts (clusters, …).
        figure: Maps counts (number, …) to values (number,).
    """
    total, count = joint.sum(axis=0), len(joint)
    whole = figure(total[None])
    return whole if count < 2 else count * whole - (count - 1) * figure(total[None] - joint)
