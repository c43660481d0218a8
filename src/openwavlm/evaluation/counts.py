"""Baseline of masked prediction without audio: a guess from the nearest unmasked labels and their distances.

The guess for a frame uses only the label L at distance l to the left and the label R at distance r to the right; an utterance's ends
count as a label of their own. Five estimates of p(z | L, R, l, r) are interpolated:

    unigram   p(z)
    left      p(z | L, l)            all pairs of frames at lag l, masked or not: a mask does not depend on the labels
    right     p(z | R, r)
    bridge    ∝ p(z) (p(z | L, l) p(R | z, r) / p(z))^γ      with γ = 1 exact if the labels are a Markov chain
    direct    p(z | L, R, distances in coarse and in fine cells), counted, shrunk towards the bridge

Each is smoothed by the estimate that it refines; the weights are fitted by expectation-maximisation on held-out labels.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from openwavlm.evaluation.contexts import Contexts, LabelSequences

# Lags above 16 share a table up to each of these; the last table serves every longer lag.
_LAST_LAG = np.array([*range(1, 17), 20, 24, 32, 48, 64])
_CELL_EDGES = np.array([2, 3, 5, 9])
_CLASS_EDGES = np.array([2, 3, 5])
_SMOOTHING = (0.5, 2.0, 8.0, 32.0, 128.0)
_TEMPERING = (0.5, 0.65, 0.8, 1.0)
_SHRINKAGE = (0.3, 3.0, 30.0)
# Share of a lag's smoothing target that is the same for all labels: the label again with this lag's overall frequency, else the
# unigram. The rest is the next longer lag's estimate.
_BLIND_SHARE = 0.5
COUNTED_FRAMES = 4_000_000  # whole sequences, up to the one that reaches it
_DRAWN_EVENTS = 3_000_000
_CHUNK_CELLS = 1 << 21


class MaskedScore(NamedTuple):
    """Score of guesses of masked labels."""

    cross_entropy: float  # nats a masked frame
    accuracy: float
    frames: int  # masked and labelled

    @classmethod
    def of(cls, nats: np.ndarray, correct: np.ndarray) -> "MaskedScore":
        """Means over frames, of the result of `CountTable.guesses`."""
        return cls(float(nats.sum() / len(nats)), int(correct.sum()) / len(nats), len(nats))


def _smooth(counts: np.ndarray, weight: float, prior: np.ndarray) -> np.ndarray:
    """Conditionals over the last axis of counts (buckets, rows, columns), each bucket shrunk to the next longer lag's."""
    smoothed = np.empty(counts.shape, dtype=np.float32)
    labels = min(counts.shape[1:])
    same = np.arange(labels)
    longer: np.ndarray = np.broadcast_to(prior, counts.shape[1:])
    for bucket in reversed(range(len(counts))):
        repeated = counts[bucket, same, same].sum() / max(counts[bucket, :labels].sum(), 1.0)
        blind = np.tile(prior, (counts.shape[1], 1))
        blind[:labels] *= 1 - repeated
        blind[same, same] += repeated
        below = (1 - _BLIND_SHARE) * longer + _BLIND_SHARE * blind
        longer = (counts[bucket] + weight * below) / (counts[bucket].sum(axis=1, keepdims=True) + weight)
        smoothed[bucket] = longer
    return smoothed


class _DirectTable:
    """Sparse counts of z in each context (cell, L, R)."""

    def __init__(self, contexts: Contexts, num_classes: int, edges: np.ndarray, weight: float = 1.0) -> None:
        self._classes, self._edges, self._weight = num_classes, edges, weight
        entries, self._count = np.unique(self._keys(contexts) * num_classes + contexts.label, return_counts=True)
        self._key, self._label = np.divmod(entries, num_classes)

    def _keys(self, contexts: Contexts) -> np.ndarray:
        cell = np.digitize(contexts.left_lag, self._edges) * (len(self._edges) + 1) + np.digitize(contexts.right_lag, self._edges)
        return (cell * (self._classes + 1) + contexts.left) * (self._classes + 1) + contexts.right

    def dense(self, contexts: Contexts) -> np.ndarray:
        """Counts of every label in each context; float32 (events, classes)."""
        keys = self._keys(contexts)
        first, stop = np.searchsorted(self._key, keys, side="left"), np.searchsorted(self._key, keys, side="right")
        size = stop - first
        entry = np.repeat(first - np.cumsum(size) + size, size) + np.arange(size.sum())
        counts = np.zeros((len(keys), self._classes), dtype=np.float32)
        counts[np.repeat(np.arange(len(keys)), size), self._label[entry]] = self._count[entry] * self._weight
        return counts


class CountTable:
    """Guess from the nearest unmasked labels; a strong baseline of masked prediction (DESIGN §8)."""

    def __init__(self, num_classes: int, seed: int = 0) -> None:
        self.num_classes = num_classes
        self.seed = seed
        self.smoothing, self.tempering = _SMOOTHING[0], 1.0
        self._weights = np.zeros((0, 0))

    def fit(
        self,
        labels: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        dev_labels: Sequence[np.ndarray] | None = None,
        dev_masks: Sequence[np.ndarray] | None = None,
    ) -> "CountTable":
        """Counts training labels and fits smoothing and weights on dev labels.

        Args:
            labels: Training label sequences, integers (frames,) each, −1 where there is none.
            masks: Training masks, bool (frames,) each, True = masked.
            dev_labels: Sequences of other speakers; None sets every tenth training sequence aside.
            dev_masks: Their masks.

        Returns:
            Itself.

        Raises:
            ValueError: If sequences and masks do not match, a label is not below `num_classes`, or no frame is masked in one part.
        """
        if dev_labels is None or dev_masks is None:
            if len(labels) < 2:
                raise ValueError(f"a count table needs dev labels or at least two training sequences, but has {len(labels)}")
            dev_labels, dev_masks = labels[::10], masks[::10]
            kept = [number for number in range(len(labels)) if number % 10]
            labels, masks = [labels[number] for number in kept], [masks[number] for number in kept]
        self._check(labels, masks)
        self._check(dev_labels, dev_masks)
        enough = int(np.searchsorted(np.cumsum([len(sequence) for sequence in labels]), COUNTED_FRAMES)) + 1
        sequences = LabelSequences(labels[:enough], self.num_classes)
        lags = sequences.contexts(masks[:enough])
        dev = LabelSequences(dev_labels, self.num_classes).contexts(dev_masks)
        for name, contexts in (("training", lags), ("dev", dev)):
            if not len(contexts.label):
                raise ValueError(f"a count table needs masked, labelled frames, but the {name} part has none")
        self._count(sequences, lags)
        self._fit_smoothing(dev)
        self._fit_weights(dev)
        return self

    def score(self, labels: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> MaskedScore:
        """Scores the guesses on held-out labels; errors as of `guesses`."""
        return MaskedScore.of(*self.guesses(labels, masks))

    def guesses(self, labels: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Guesses held-out labels: float64 nats and bool correctness, (frames,) each, of all masked, labelled frames in order.

        Raises:
            ValueError: If the table was not fitted, sequences and masks do not match, or no frame is masked.
        """
        if not self._weights.size:
            raise ValueError("a count table must be fitted before it scores: call fit with the training labels")
        self._check(labels, masks)
        contexts = LabelSequences(labels, self.num_classes).contexts(masks)
        if not len(contexts.label):
            raise ValueError("a count table is judged on masked, labelled frames, but there is none")
        nats, correct = [], []
        for part in self._chunks(contexts):
            guess = self.distribution(part)
            nats.append(-np.log(guess[np.arange(len(part.label)), part.label]).astype(np.float64))
            correct.append(guess.argmax(axis=1) == part.label)
        return np.concatenate(nats), np.concatenate(correct)

    def distribution(self, contexts: Contexts) -> np.ndarray:
        """p(z | L, R, l, r) of some frames; float32 (events, classes), every entry positive, rows sum to 1."""
        weights = self._weights[self._classes_of(contexts)].astype(np.float32)
        mixed = np.zeros((len(contexts.label), self.num_classes), dtype=np.float32)
        for place, estimate in enumerate(self._estimates(contexts)):
            mixed += weights[:, place, None] * estimate
        return mixed

    def _check(self, labels: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> None:
        if [len(sequence) for sequence in labels] != [len(mask) for mask in masks]:
            raise ValueError("a label sequence needs a mask of its own length, but the lengths differ: pass both in one order")
        highest = max((int(sequence.max(initial=-1)) for sequence in labels), default=-1)
        if highest >= self.num_classes:
            raise ValueError(f"labels must lie below num_classes {self.num_classes}, but {highest} occurs: raise num_classes")

    def _count(self, sequences: LabelSequences, lags: Contexts) -> None:
        symbols = self.num_classes + 1
        self._pairs = np.zeros((len(_LAST_LAG), symbols, symbols), dtype=np.float64)
        for lag in range(1, int(_LAST_LAG[-1]) + 1):
            first, second = sequences.pairs(lag) if lag < len(sequences.symbols) else (np.zeros(0, int), np.zeros(0, int))
            counted = np.bincount(first * symbols + second, minlength=symbols * symbols)
            self._pairs[np.searchsorted(_LAST_LAG, lag)] += counted.reshape(symbols, symbols)
        counts = np.bincount(sequences.symbols[sequences.inner], minlength=self.num_classes)
        self._unigram = ((counts + 0.5) / (counts + 0.5).sum()).astype(np.float32)
        events = sequences.draw(lags, min(_DRAWN_EVENTS, 20 * len(sequences.inner)), self.seed)
        # All draws of a frame, with several distances, together count as one.
        once = len(sequences.inner) / max(len(events.label), 1)
        self._fine = _DirectTable(events, self.num_classes, _CELL_EDGES, once)
        self._coarse = _DirectTable(events, self.num_classes, _CELL_EDGES[1:2], once)

    def _fit_tables(self, weight: float) -> None:
        """Smoothed estimates from pairs, float32 (lag buckets, K + 1, K): p(z | L, lag), p(z | R, lag) and p(R | z, lag), first by R."""
        classes = self.num_classes
        ends = self._pairs[0, :classes, classes].sum()
        following = np.append(self._unigram, np.float32((ends + 0.5) / max(self._pairs[0, :classes].sum(), 1.0)))
        self._after = _smooth(self._pairs[:, :, :classes], weight, self._unigram)
        self._before = _smooth(self._pairs[:, :classes].transpose(0, 2, 1), weight, self._unigram)
        towards = _smooth(self._pairs[:, :classes], weight, following / following.sum())
        self._towards = np.ascontiguousarray(towards.transpose(0, 2, 1))

    def _fit_smoothing(self, dev: Contexts) -> None:
        losses = {}
        for smoothing in _SMOOTHING:
            self._fit_tables(smoothing)
            for self.tempering in _TEMPERING:
                bridges = ((part.label, self._pairwise(part)[2]) for part in self._chunks(dev))
                losses[smoothing, self.tempering] = -sum(
                    float(np.log(bridge[np.arange(len(label)), label]).sum()) for label, bridge in bridges
                )
        self.smoothing, self.tempering = min(losses, key=lambda choice: losses[choice])
        self._fit_tables(self.smoothing)

    def _pairwise(self, contexts: Contexts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Estimates from the left, from the right, and the bridge; float32 (events, classes) each."""
        left_bucket = np.minimum(np.searchsorted(_LAST_LAG, contexts.left_lag), len(_LAST_LAG) - 1)
        right_bucket = np.minimum(np.searchsorted(_LAST_LAG, contexts.right_lag), len(_LAST_LAG) - 1)
        left = self._after[left_bucket, contexts.left]
        bridge = (left * self._towards[right_bucket, contexts.right]) ** self.tempering
        bridge *= self._unigram ** (1 - self.tempering)
        bridge /= bridge.sum(axis=1, keepdims=True)
        return left, self._before[right_bucket, contexts.right], np.maximum(bridge, np.float32(1e-12))

    def _estimates(self, contexts: Contexts) -> Iterator[np.ndarray]:
        left, right, bridge = self._pairwise(contexts)
        yield np.broadcast_to(self._unigram, left.shape)
        yield self._copies(contexts.left)
        yield self._copies(contexts.right)
        yield left
        yield right
        yield bridge
        coarse, fine = self._coarse.dense(contexts), self._fine.dense(contexts)
        for weight in _SHRINKAGE:
            direct = (coarse + weight * bridge) / (coarse.sum(axis=1, keepdims=True) + weight)
            yield direct
            yield (fine + weight * direct) / (fine.sum(axis=1, keepdims=True) + weight)

    def _copies(self, symbols: np.ndarray) -> np.ndarray:
        """Puts all weight on the neighbouring label; the unigram at an utterance's end."""
        copies = np.zeros((len(symbols), self.num_classes), dtype=np.float32)
        inside = symbols < self.num_classes
        copies[inside, symbols[inside]] = 1
        copies[~inside] = self._unigram
        return copies

    def _classes_of(self, contexts: Contexts) -> np.ndarray:
        """Number of each context's set of weights, by both distances and by the agreement of left and right."""
        near = np.digitize(contexts.left_lag, _CLASS_EDGES) * (len(_CLASS_EDGES) + 1)
        return (near + np.digitize(contexts.right_lag, _CLASS_EDGES)) * 2 + (contexts.left == contexts.right)

    def _fit_weights(self, dev: Contexts, iterations: int = 50, prior_frames: float = 20.0) -> None:
        rows = [
            np.stack([estimate[np.arange(len(part.label)), part.label] for estimate in self._estimates(part)], axis=1)
            for part in self._chunks(dev)
        ]
        likelihood = np.concatenate(rows).astype(np.float64)
        classes = self._classes_of(dev)
        num_sets, parts = 2 * (len(_CLASS_EDGES) + 1) ** 2, likelihood.shape[1]
        weights = np.full((num_sets, parts), 1 / parts)
        for _ in range(iterations):
            shares = likelihood * weights[classes]
            shares /= shares.sum(axis=1, keepdims=True)
            sums = np.stack([np.bincount(classes, weights=shares[:, part], minlength=num_sets) for part in range(parts)], axis=1)
            common = (sums.sum(axis=0) + 1) / (sums.sum() + parts)
            weights = (sums + prior_frames * common) / (sums.sum(axis=1, keepdims=True) + prior_frames)
        self._weights = weights

    def _chunks(self, contexts: Contexts) -> Iterator[Contexts]:
        size = max(1, _CHUNK_CELLS // self.num_classes)
        for start in range(0, len(contexts.label), size):
            yield Contexts(*(column[start : start + size] for column in contexts))
