"""Intervals over speakers: frames of one speaker are not independent, so whole speakers are resampled (DESIGN §8)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openwavlm.runtime.randomness import integers, words


@dataclass(frozen=True)
class Interval:
    """A figure on all speakers and its interval over speakers; below about 10 speakers it is rough and too narrow."""

    value: float
    low: float
    high: float
    speakers: int


def by_speaker(values: np.ndarray, speakers: Sequence[str]) -> np.ndarray:
    """Sums per utterance (utterances,) → per speaker (speakers,), speakers in order of their names."""
    names, place = np.unique(np.asarray(speakers), return_inverse=True)
    return np.bincount(place, weights=values, minlength=len(names))


def ratio_interval(
    numerator: np.ndarray, denominator: np.ndarray, *, draws: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of Σ numerator / Σ denominator over speakers drawn with replacement.

    Correct frames over frames is an accuracy, the difference of two systems' correct frames over the same frames a paired difference.

    Args:
        numerator: (speakers,).
        denominator: (speakers,), not negative.
        draws: Number of draws; equal seeds draw equal speakers, so that intervals of two systems are comparable.
        confidence: Share of the draws inside.

    Raises:
        ValueError: If there is no speaker, or the denominators sum to 0.
    """
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    count = len(bottom)
    if count == 0 or bottom.sum() <= 0:
        raise ValueError("an interval over speakers needs at least one speaker with frames, but has none")
    drawn = integers(words(seed, "probe.bootstrap", draws * count), count).reshape(draws, count)
    below = bottom[drawn].sum(axis=1)
    ratios = top[drawn].sum(axis=1)[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high), count)
