"""The count table guesses what can be guessed without audio: against loops, and against the best possible guess."""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from openwavlm.evaluation.contexts import Contexts, LabelSequences
from openwavlm.evaluation.counts import CountTable, _DirectTable
from openwavlm.runtime.randomness import integers, words


def chain(rng: np.random.Generator, transition: np.ndarray, frames: int) -> np.ndarray:
    labels = np.zeros(frames, dtype=np.int64)
    labels[0] = rng.integers(len(transition))
    cumulative = transition.cumsum(axis=1)
    for frame, draw in enumerate(rng.random(frames - 1), start=1):
        labels[frame] = np.searchsorted(cumulative[labels[frame - 1]], draw)
    return labels


def spans(rng: np.random.Generator, frames: int, length: int = 8, share: float = 0.65) -> np.ndarray:
    mask = np.zeros(frames, dtype=bool)
    for start in rng.integers(0, max(frames - length, 1), max(1, round(share * frames / length))):
        mask[start : start + length] = True
    return mask


def corpus(seed: int, count: int, transition: np.ndarray, frames: int = 100) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [chain(rng, transition, frames) for _ in range(count)], [spans(rng, frames) for _ in range(count)]


def sticky(classes: int, seed: int = 0) -> np.ndarray:
    transition = np.random.default_rng(seed).dirichlet(np.full(classes, 0.2), classes) * 0.2 + 0.8 * np.eye(classes)
    return transition / transition.sum(axis=1, keepdims=True)


def loop_contexts(labels: np.ndarray, mask: np.ndarray, classes: int) -> list[tuple[int, ...]]:
    """(label, left, right, left lag, right lag) of each masked frame, searched step by step."""
    found = []
    for frame in range(len(labels)):
        if not mask[frame] or labels[frame] < 0:
            continue
        left, right = frame - 1, frame + 1
        while left >= 0 and (mask[left] or labels[left] < 0):
            left -= 1
        while right < len(labels) and (mask[right] or labels[right] < 0):
            right += 1
        ends = (labels[left] if left >= 0 else classes, labels[right] if right < len(labels) else classes)
        found.append((labels[frame], *ends, frame - left, right - frame))
    return found


def test_contexts_and_pairs_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(-1, 4, frames) for frames in (1, 7, 30, 2)]
    masks = [rng.random(len(sequence)) < 0.6 for sequence in labels]
    masks[1][:] = True
    sequences = LabelSequences(labels, 4)
    expected = [entry for sequence, mask in zip(labels, masks, strict=True) for entry in loop_contexts(sequence, mask, 4)]
    assert np.stack(sequences.contexts(masks), axis=1).tolist() == [list(map(int, entry)) for entry in expected]
    for lag in (1, 2, 5):
        wanted = []
        for sequence in labels:
            closed = [4, *sequence, 4]
            wanted += [(a, b) for a, b in zip(closed, closed[lag:], strict=False) if a >= 0 and b >= 0]
        first, second = sequences.pairs(lag)
        assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == sorted((int(a), int(b)) for a, b in wanted)


def test_direct_counts_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(1)
    events = Contexts(*(rng.integers(low, high, 400) for low, high in ((0, 3), (0, 4), (0, 4), (1, 6), (1, 6))))
    table = _DirectTable(events, 3, np.array([3]))
    asked = Contexts(*(rng.integers(low, high, 50) for low, high in ((0, 3), (0, 4), (0, 4), (1, 6), (1, 6))))
    counts = table.dense(asked)
    for place in range(50):
        left, right, left_lag, right_lag = (int(column[place]) for column in asked[1:])
        same = (events.left == left) & (events.right == right)
        same &= ((events.left_lag >= 3) == (left_lag >= 3)) & ((events.right_lag >= 3) == (right_lag >= 3))
        assert counts[place].tolist() == np.bincount(events.label[same], minlength=3).tolist()


def test_on_a_markov_chain_the_guess_is_nearly_the_best_possible() -> None:
    classes = 12
    transition = sticky(classes)
    table = CountTable(classes).fit(*corpus(0, 300, transition), *corpus(1, 60, transition))
    labels, masks = corpus(2, 100, transition)
    score = table.score(labels, masks)
    powers = [np.linalg.matrix_power(transition, lag) for lag in range(101)]
    stationary = powers[100][0]
    loss, correct, frames = 0.0, 0, 0
    for sequence, mask in zip(labels, masks, strict=True):
        for label, left, right, left_lag, right_lag in loop_contexts(sequence, mask, classes):
            # A chain starts with any class equally often, which is what is known at the utterance's beginning.
            start = powers[left_lag - 1].mean(axis=0) if left == classes else powers[left_lag][left]
            best = start * (powers[right_lag][:, right] if right < classes else 1)
            loss -= np.log(best[label] / best.sum())
            correct += int(best.argmax()) == label
            frames += 1
    assert score.frames == frames
    assert loss / frames <= score.cross_entropy < 1.03 * loss / frames
    assert score.accuracy > 0.96 * correct / frames
    unigram = -float(np.log(stationary)[np.concatenate(labels)].mean())
    assert score.cross_entropy < 0.75 * unigram


class Reference:
    """The count table of the module's docstring by loops and dictionaries, in float64.

    Args:
        labels: Training sequences.
        masks: Their masks.
        classes: K; the number K itself is an utterance's end.
        events: The drawn (label, left, right, left lag, right lag) of the direct counts.
    """

    LAST_LAGS = (*range(1, 17), 20, 24, 32, 48, 64)

    def __init__(self, labels: list[np.ndarray], classes: int, events: list[tuple[int, ...]]) -> None:
        self.classes, frames = classes, np.concatenate(labels)
        counts = np.bincount(frames[frames >= 0], minlength=classes) + 0.5
        self.unigram = counts / counts.sum()
        self.pairs = np.zeros((21, classes + 1, classes + 1))
        for sequence in labels:
            closed = [classes, *sequence.tolist(), classes]
            for first, second in itertools.combinations(range(len(closed)), 2):
                if second - first <= 64 and min(closed[first], closed[second]) >= 0:
                    self.pairs[self.bucket(second - first), closed[first], closed[second]] += 1
        self.events = events
        self.counted: dict[tuple[int, ...], Counter[tuple[int, ...]]] = {}
        self.once = int((frames >= 0).sum()) / len(events)

    def bucket(self, lag: int) -> int:
        return next((place for place, last in enumerate(self.LAST_LAGS) if lag <= last), 20)

    def smoothed(self, counts: np.ndarray, weight: float, prior: np.ndarray) -> np.ndarray:
        """Each lag's conditionals shrunk to half the longer lag's and half "the same again, else the prior"."""
        found, longer = np.zeros_like(counts), np.tile(prior, (counts.shape[1], 1))
        for bucket in reversed(range(len(counts))):
            labels = min(counts.shape[1:])
            again = sum(counts[bucket, z, z] for z in range(labels)) / max(counts[bucket, :labels].sum(), 1)
            for row in range(counts.shape[1]):
                blind = prior.copy()
                if row < labels:
                    blind = (1 - again) * prior + again * np.eye(counts.shape[2])[row]
                own = counts[bucket, row]
                found[bucket, row] = (own + weight * (longer[row] + blind) / 2) / (own.sum() + weight)
            longer = found[bucket]
        return found

    def fit_lags(self, smoothing: float, tempering: float) -> None:
        k = self.classes
        ends, followed = self.pairs[0, :k, k].sum(), max(self.pairs[0, :k].sum(), 1)
        following = np.append(self.unigram, (ends + 0.5) / followed)
        self.after = self.smoothed(self.pairs[:, :, :k], smoothing, self.unigram)
        self.before = self.smoothed(self.pairs[:, :k].transpose(0, 2, 1), smoothing, self.unigram)
        self.towards = self.smoothed(self.pairs[:, :k], smoothing, following / following.sum())
        self.tempering = tempering

    def bridge(self, left: int, right: int, left_lag: int, right_lag: int) -> np.ndarray:
        by_chain = self.after[self.bucket(left_lag), left] * self.towards[self.bucket(right_lag), :, right] / self.unigram
        guess = self.unigram * by_chain**self.tempering
        return guess / guess.sum()

    @staticmethod
    def cell(context: Sequence[int], edges: tuple[int, ...]) -> tuple[int, ...]:
        left, right, *lags = context
        return left, right, *(sum(lag >= edge for edge in edges) for lag in lags)

    def direct(self, context: Sequence[int], edges: tuple[int, ...]) -> np.ndarray:
        if edges not in self.counted:
            self.counted[edges] = Counter((label, *self.cell(other, edges)) for label, *other in self.events)
        cell = self.cell(context, edges)
        return self.once * np.array([self.counted[edges][label, *cell] for label in range(self.classes)])

    def estimates(self, context: Sequence[int]) -> np.ndarray:
        """Twelve guesses (estimates, classes): unigram, both copies, left, right, bridge, and three times coarse and fine counts."""
        left, right, left_lag, right_lag = context
        bridge = self.bridge(*context)
        copies = [self.unigram if side == self.classes else np.eye(self.classes)[side] for side in (left, right)]
        found = [
            self.unigram,
            *copies,
            self.after[self.bucket(left_lag), left],
            self.before[self.bucket(right_lag), right],
            bridge,
        ]
        coarse, fine = self.direct(context, (3,)), self.direct(context, (2, 3, 5, 9))
        for weight in (0.3, 3.0, 30.0):
            near = (coarse + weight * bridge) / (coarse.sum() + weight)
            found += [near, (fine + weight * near) / (fine.sum() + weight)]
        return np.stack(found)

    @staticmethod
    def group(context: Sequence[int]) -> tuple[int, int, bool]:
        left, right, left_lag, right_lag = context
        return sum(left_lag >= e for e in (2, 3, 5)), sum(right_lag >= e for e in (2, 3, 5)), left == right

    def fit_weights(self, dev: list[tuple[int, ...]]) -> None:
        """Expectation-maximisation on dev labels: 50 rounds; each group has 20 frames of the common weights."""
        likelihood = np.stack([self.estimates(context)[:, label] for label, *context in dev])
        groups = [self.group(context) for _, *context in dev]
        every = list(itertools.product(range(4), range(4), (False, True)))
        weights = {group: np.full(12, 1 / 12) for group in every}
        for _ in range(50):
            sums = {group: np.zeros(12) for group in every}
            for row, group in zip(likelihood, groups, strict=True):
                sums[group] += row * weights[group] / (row @ weights[group])
            common = sum(sums.values()) + 1
            common /= common.sum()
            weights = {group: (own + 20 * common) / (own.sum() + 20) for group, own in sums.items()}
        self.weights = weights

    def guess(self, context: Sequence[int]) -> np.ndarray:
        return self.weights[self.group(context)] @ self.estimates(context)


@pytest.mark.parametrize(("sequences", "dev_chain", "last_is_best"), [(12, 1, True), (30, 0, False)])
def test_the_guess_is_the_written_out_interpolation_of_counts(
    sequences: int, dev_chain: int, *, last_is_best: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On dev labels of another chain than training's the last smoothing and tempering that are tried are the best; of the same, neither."""
    classes = 4
    rng = np.random.default_rng(3)
    train, dev = corpus(3, sequences, sticky(classes), 50), corpus(4, 6 if last_is_best else 10, sticky(classes, dev_chain), 50)
    test = corpus(5, 3, sticky(classes), 50)
    for labels, _ in (train, dev, test):
        for sequence in labels:
            sequence[rng.random(len(sequence)) < 0.05] = -1
    train[0].append(np.array([2, 1, 1] * 30))  # longer than the longest lag of the tables
    train[1].append((np.arange(90) > 2) & (np.arange(90) < 80))
    test[1][0][:3] = test[1][1][-2:] = True  # nothing is known to the left, or to the right
    drawn: list[Contexts] = []
    original = LabelSequences.draw
    monkeypatch.setattr(LabelSequences, "draw", lambda *given: drawn.append(original(*given)) or drawn[-1])
    table = CountTable(classes).fit(*train, *dev)
    (events,) = drawn
    assert len(events.label) > 15 * sum((sequence >= 0).sum() for sequence in train[0])
    reference = Reference(train[0], classes, [tuple(int(v) for v in event) for event in np.stack(events, axis=1)])
    held = [entry for sequence, mask in zip(*dev, strict=True) for entry in loop_contexts(sequence, mask, classes)]
    losses = {}
    for smoothing, tempering in itertools.product((0.5, 2.0, 8.0, 32.0, 128.0), (0.5, 0.65, 0.8, 1.0)):
        reference.fit_lags(smoothing, tempering)
        losses[smoothing, tempering] = -sum(np.log(reference.bridge(*context)[label]) for label, *context in held)
    best = min(losses, key=lambda choice: losses[choice])
    assert losses[table.smoothing, table.tempering] == pytest.approx(losses[best], rel=1e-5), "the best on dev labels"
    assert [table.smoothing == 128, table.tempering == 1] == [last_is_best] * 2 == [best[0] == 128, best[1] == 1]
    for smoothing in (0.5, 128.0, table.smoothing):
        reference.fit_lags(smoothing, table.tempering)
        table._fit_tables(smoothing)
        np.testing.assert_allclose(table._after, reference.after, rtol=1e-4)
        np.testing.assert_allclose(table._before, reference.before, rtol=1e-4)
        np.testing.assert_allclose(table._towards, reference.towards.transpose(0, 2, 1), rtol=1e-4)
    given = LabelSequences(test[0], classes).contexts(test[1])
    estimates = np.stack(list(table._estimates(given)), axis=1)
    contexts = np.stack(given[1:], axis=1).tolist()
    np.testing.assert_allclose(estimates, np.stack([reference.estimates(context) for context in contexts]), rtol=1e-3, atol=1e-6)
    reference.fit_weights(held)
    asked = [entry for sequence, mask in zip(*test, strict=True) for entry in loop_contexts(sequence, mask, classes)]
    found = table.distribution(given)
    wanted = np.stack([reference.guess(context) for _, *context in asked])
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    score = table.score(*test)
    labels = [label for label, *_ in asked]
    assert score.frames == len(asked)
    assert score.cross_entropy == pytest.approx(
        -np.mean([np.log(row[label]) for row, label in zip(wanted, labels, strict=True)]), rel=1e-3
    )
    assert score.accuracy == pytest.approx(np.mean(wanted.argmax(axis=1) == labels), abs=2 / len(asked))


def test_drawn_contexts_have_the_distances_of_real_masks_cut_at_the_utterances_ends() -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 5, frames) for frames in (30, 4, 61)]
    labels[0][[3, 17]] = -1
    masks = [spans(rng, len(sequence)) for sequence in labels]
    sequences = LabelSequences(labels, 5)
    lags = sequences.contexts(masks)
    events = sequences.draw(lags, 3000, seed=2)
    flat = np.concatenate([[5], *([*sequence, 5] for sequence in labels)])
    at = sequences.inner[integers(words(2, "counts.frame", 3000), len(sequences.inner))]
    pick = integers(words(2, "counts.lags", 3000), len(lags.label))
    wanted = []
    for place, event in zip(at.tolist(), pick.tolist(), strict=True):
        left = right = place
        for _ in range(int(lags.left_lag[event])):
            left -= flat[left] != 5
        for _ in range(int(lags.right_lag[event])):
            right += flat[right] != 5
        if min(flat[left], flat[right]) >= 0:
            wanted.append((flat[place], flat[left], flat[right], place - left, right - place))
    assert np.stack(events, axis=1).tolist() == [[int(value) for value in one] for one in wanted]
    assert {len(sequences.draw(lags, 300, seed).label) for seed in (0, 1)} and not np.array_equal(
        sequences.draw(lags, 300, 0).label[:100], sequences.draw(lags, 300, 1).label[:100]
    )


def test_without_dev_labels_every_tenth_sequence_is_set_aside() -> None:
    labels, masks = corpus(6, 23, sticky(6))
    kept = [number for number in range(23) if number not in (0, 10, 20)]
    aside = CountTable(6).fit(labels, masks).score(labels, masks)
    named = CountTable(6).fit([labels[number] for number in kept], [masks[number] for number in kept], labels[::10], masks[::10])
    assert aside == named.score(labels, masks)
    with pytest.raises(ValueError, match="at least two training sequences, but has 1"):
        CountTable(6).fit(labels[:1], masks[:1])
    with pytest.raises(ValueError, match="dev part has none"):
        CountTable(6).fit(labels, masks, labels, [np.zeros_like(mask) for mask in masks])


def test_what_only_both_sides_together_tell_is_found() -> None:
    # z = left + right (mod 5): neither side alone says anything, nor does a chain of pairs.
    rng = np.random.default_rng(0)
    labels, masks = [], []
    for _ in range(600):
        sequence = rng.integers(0, 5, 41)
        sequence[1:-1:2] = (sequence[:-2:2] + sequence[2::2]) % 5
        mask = np.zeros(41, dtype=bool)
        mask[1:-1:2] = rng.random(20) < 0.5
        labels.append(sequence)
        masks.append(mask)
    score = CountTable(5).fit(labels[:500], masks[:500]).score(labels[500:], masks[500:])
    assert score.accuracy > 0.9 and score.cross_entropy < 0.9


def test_labels_without_structure_cost_their_entropy() -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 20, 100) for _ in range(300)]
    masks = [spans(rng, 100) for _ in range(300)]
    score = CountTable(20).fit(labels[:200], masks[:200]).score(labels[200:], masks[200:])
    assert score.cross_entropy == pytest.approx(np.log(20), abs=0.02)


def test_the_same_labels_give_the_same_figures_and_misuse_is_refused() -> None:
    labels, masks = corpus(6, 20, sticky(6))
    assert CountTable(6).fit(labels, masks).score(labels, masks) == CountTable(6).fit(labels, masks).score(labels, masks)
    with pytest.raises(ValueError, match="must be fitted before"):
        CountTable(6).score(labels, masks)
    with pytest.raises(ValueError, match="below num_classes 3"):
        CountTable(3).fit(labels, masks)
    with pytest.raises(ValueError, match="mask of its own length"):
        CountTable(6).fit(labels, [mask[1:] for mask in masks])
    with pytest.raises(ValueError, match="training part has none"):
        CountTable(6).fit(labels, [np.zeros_like(mask) for mask in masks])
