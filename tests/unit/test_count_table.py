"""The count table guesses what can be guessed without audio: against loops, and against the best possible guess."""

import numpy as np
import pytest

from openwavlm.probes.contexts import Contexts, LabelSequences
from openwavlm.probes.counts import CountTable, _DirectTable


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


def test_the_distribution_is_the_written_out_interpolation() -> None:
    classes = 4
    table = CountTable(classes).fit(*corpus(3, 40, sticky(classes)), *corpus(4, 10, sticky(classes)))
    labels, masks = corpus(5, 3, sticky(classes))
    contexts = table.contexts(labels, masks)
    guess = table.distribution(contexts)
    np.testing.assert_allclose(guess.sum(axis=1), 1, atol=1e-5)
    assert guess.min() > 0
    score = table.score(labels, masks)
    np.testing.assert_allclose(score.cross_entropy, -np.mean(np.log(guess[np.arange(len(guess)), contexts.label])), rtol=1e-5)
    assert score.accuracy == np.mean(guess.argmax(axis=1) == contexts.label)


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
    with pytest.raises(ValueError, match="was fitted"):
        CountTable(6).score(labels, masks)
    with pytest.raises(ValueError, match="below num_classes 3"):
        CountTable(3).fit(labels, masks)
    with pytest.raises(ValueError, match="mask of its own length"):
        CountTable(6).fit(labels, [mask[1:] for mask in masks])
    with pytest.raises(ValueError, match="training part has none"):
        CountTable(6).fit(labels, [np.zeros_like(mask) for mask in masks])
