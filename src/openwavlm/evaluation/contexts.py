"""Nearest unmasked labels of every masked frame, for many sequences at once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from openwavlm.runtime.randomness import integers, words


class Contexts(NamedTuple):
    """Frames with their nearest unmasked labels: true label, labels left and right, distances in frames; int64 (events,) each."""

    label: np.ndarray
    left: np.ndarray
    right: np.ndarray
    left_lag: np.ndarray
    right_lag: np.ndarray


class LabelSequences:
    """Label sequences laid end to end with one boundary symbol between: K is a boundary, −1 an unknown label."""

    def __init__(self, labels: Sequence[np.ndarray], num_classes: int) -> None:
        parts = [np.array([num_classes])]
        for sequence in labels:
            parts += [np.where(np.asarray(sequence) < 0, -1, np.asarray(sequence)).astype(np.int64), np.array([num_classes])]
        self.symbols = np.concatenate(parts)
        boundary = self.symbols == num_classes
        position = np.arange(len(self.symbols))
        self.inner = np.flatnonzero(~boundary & (self.symbols >= 0))
        # At a boundary itself: the one before and the one after it.
        self.previous = np.concatenate([[0], np.maximum.accumulate(np.where(boundary, position, 0))[:-1]])
        self.next = np.concatenate([np.minimum.accumulate(np.where(boundary, position, len(boundary) - 1)[::-1])[::-1][1:], [0]])
        self.next[-1] = len(boundary) - 1

    def pairs(self, lag: int) -> tuple[np.ndarray, np.ndarray]:
        """Symbols at i and i + lag for all i where both are known and belong to one utterance or its ends."""
        first = np.arange(len(self.symbols) - lag)
        inside = (first + lag <= self.next[first]) & (self.symbols[first] >= 0) & (self.symbols[first + lag] >= 0)
        first = first[inside]
        return self.symbols[first], self.symbols[first + lag]

    def contexts(self, masks: Sequence[np.ndarray]) -> Contexts:
        """Contexts of all masked, labelled frames."""
        none = np.zeros(1, dtype=bool)
        masked = np.concatenate([none, *(part for mask in masks for part in (np.asarray(mask, dtype=bool), none))])
        known = ~masked & (self.symbols >= 0)
        position = np.arange(len(known))
        before = np.maximum.accumulate(np.where(known, position, 0))
        after = np.minimum.accumulate(np.where(known, position, len(known) - 1)[::-1])[::-1]
        at = np.flatnonzero(masked & (self.symbols >= 0))
        return self._between(at, before[at], after[at])

    def draw(self, lags: Contexts, count: int, seed: int) -> Contexts:
        """Draws `count` frames anywhere with distances as in `lags`, cut at the utterance's ends."""
        at = self.inner[integers(words(seed, "counts.frame", count), len(self.inner))]
        pick = integers(words(seed, "counts.lags", count), len(lags.label))
        left = np.maximum(at - lags.left_lag[pick], self.previous[at])
        right = np.minimum(at + lags.right_lag[pick], self.next[at])
        usable = (self.symbols[left] >= 0) & (self.symbols[right] >= 0)
        return self._between(at[usable], left[usable], right[usable])

    def _between(self, at: np.ndarray, left: np.ndarray, right: np.ndarray) -> Contexts:
        return Contexts(self.symbols[at], self.symbols[left], self.symbols[right], at - left, right - at)
