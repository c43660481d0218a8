"""Span masks: the statistics of SPEC §2.1, uniform starts, keys, and rows of a few frames."""

from itertools import combinations
from math import comb, floor

import numpy as np
import pytest

from openwavlm.batches import masking as masking_module
from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.settings import SpanMasking
from openwavlm.runtime.randomness import words

PAPER = SpanMasking()


def draw(masking, frames, seed=0, source=3, epoch=0, micro=0):
    return draw_span_mask(masking, np.asarray(frames), seed, source=source, epoch=epoch, micro=micro)


def shares(masking, frames, batch, draws):
    return np.concatenate([draw(masking, np.full(batch, frames), seed).mean(axis=1) for seed in range(draws)])


@pytest.mark.parametrize(
    ("frames", "mean", "deviation"), [(99, 0.572, 0.068), (249, 0.568, 0.044), (499, 0.567, 0.032), (780, 0.566, 0.025)]
)
def test_the_masked_share_has_the_mean_and_deviation_of_the_reference(frames, mean, deviation):
    masked = shares(PAPER, frames, 50, 80)
    assert masked.mean() == pytest.approx(mean, abs=0.0025)
    assert masked.std() == pytest.approx(deviation, abs=0.0025)


@pytest.mark.parametrize(
    ("frames", "batch", "mean"),
    [
        *((780, batch, mean) for batch, mean in zip((2, 6, 14, 24), (0.552, 0.534, 0.522, 0.516), strict=True)),
        *((499, batch, mean) for batch, mean in zip((2, 6, 14, 24), (0.549, 0.526, 0.512, 0.504), strict=True)),
        *((99, batch, mean) for batch, mean in zip((2, 6, 14, 24), (0.534, 0.483, 0.450, 0.434), strict=True)),
    ],
)
def test_equal_counts_thin_the_mask_as_in_the_reference(frames, batch, mean):
    masked = shares(SpanMasking(same_count=True), frames, batch, 4000 // batch if frames == 99 else 150)
    assert masked.mean() == pytest.approx(mean, abs=0.005)


def test_equal_counts_are_equal_and_only_take_frames_away():
    frames = np.array([300, 280, 250, 299])
    free, cut = draw(PAPER, frames), draw(SpanMasking(same_count=True), frames)
    assert set(cut.sum(axis=1)) == {free.sum(axis=1).min()}
    assert not np.any(cut & ~free)


def test_equal_counts_take_every_masked_frame_away_with_the_same_probability():
    masking, frames = SpanMasking(prob=0.8, length=4, min_masks=1, same_count=True), np.array([12, 40])
    taken, offered = np.zeros(40), np.zeros(40)
    for seed in range(1500):
        free, cut = draw(SpanMasking(prob=0.8, length=4, min_masks=1), frames, seed), draw(masking, frames, seed)
        taken += free[1] & ~cut[1]
        offered += free[1]
    rates = taken[2:38] / offered[2:38]
    assert rates.max() - rates.min() < 0.12
    assert abs(rates[:18].mean() - rates[18:].mean()) < 0.02


def masked_probability(masking, frames):
    """Exact probability of each frame to be masked, where the spans of a row cannot cover all of it."""
    exact = masking.prob * frames / masking.length
    probability = np.zeros(frames)
    for count, share in ((floor(exact), 1 - exact % 1), (floor(exact) + 1, exact % 1)):
        spans = min(max(count, masking.min_masks), frames - 1)
        room = frames - masking.length if frames - masking.length > spans else spans + 1
        for frame in range(frames):
            covering = min(frame + 1, room) - max(0, frame - masking.length + 1)  # starts whose span holds the frame
            probability[frame] += share * (1 - comb(room - max(0, covering), spans) / comb(room, spans))
    return probability


def test_short_rows_beside_long_ones_are_masked_by_their_own_length():
    rows = np.repeat([60, 200, 780], [12, 6, 2])
    draws = 250
    counts = np.sum([draw(PAPER, rows, seed) for seed in range(draws)], axis=0)
    for frames in (60, 200, 780):
        expected, number = masked_probability(PAPER, frames), draws * np.count_nonzero(rows == frames)
        found = counts[rows == frames].sum(axis=0)
        assert not found[frames - 1 :].any() and expected[-1] == 0  # no start is so late that its span holds the last frame
        error = np.sqrt(number * expected * (1 - expected))[:-1]
        assert np.abs((found[: frames - 1] - number * expected[:-1]) / error).max() < 5
        assert found[:frames].mean() / number == pytest.approx(expected.mean(), abs=0.005)


def test_each_row_of_a_mixed_batch_has_the_spans_of_its_own_length():
    # Spans of one frame are countable: prob · frames of them, rounded at random.
    frames = np.array([10, 50, 505, 30, 1000])
    counts = np.array([draw(SpanMasking(prob=0.05, length=1, min_masks=0), frames, seed).sum(axis=1) for seed in range(400)])
    assert [set(column) for column in counts.T] == [{0, 1}, {2, 3}, {25, 26}, {1, 2}, {50}]
    assert np.abs(counts.mean(axis=0) - 0.05 * frames).max() < 4 * 0.5 / 400**0.5


def test_a_row_of_two_frames_is_masked_in_its_second_one_three_times_out_of_four():
    # One start among both frames. From the second frame only that one is covered; from the first both, and one is given back.
    for rows in ([2] * 40, [2] * 39 + [300]):
        masks = np.concatenate([draw(PAPER, rows, seed)[:39, :2] for seed in range(100)])
        assert np.all(masks.sum(axis=1) == 1)
        assert masks[:, 1].mean() == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 3900) ** 0.5)


def test_a_row_with_as_many_starts_as_spans_has_one_start_more():
    # Two spans of ten in twelve frames start in two of the frames 0, 1 and 2; started at 0 and 2 they cover all, and one frame is
    # given back: the last frame is masked with (0 + 11/12 + 1) / 3, the middle ones with (1 + 11/12 + 1) / 3.
    masks = np.concatenate([draw(PAPER, np.full(40, 12), seed) for seed in range(100)])
    expected = np.array([(1 + 11 / 12) / 3, *[(2 + 11 / 12) / 3] * 10, (1 + 11 / 12) / 3])
    error = np.sqrt(expected * (1 - expected) / len(masks))
    assert np.abs((masks.mean(axis=0) - expected) / error).max() < 4.5


@pytest.mark.parametrize("masking", [PAPER, SpanMasking(same_count=True)])
def test_all_draws_are_keyed_by_seed_source_epoch_and_micro_batch_and_none_is_used_twice(masking, monkeypatch):
    asked = []

    def record(seed, purpose, count, **place):
        asked.append((seed, purpose, place))
        return words(seed, purpose, count, **place)

    monkeypatch.setattr(masking_module, "words", record)
    draw(masking, [30, 300, 299], seed=8, source=3, epoch=4, micro=5)
    purposes = ["mask.count", "mask.starts", *(["mask.truncate"] if masking.same_count else [])]
    assert asked == [(8, purpose, {"source": 3, "epoch": 4, "micro": 5}) for purpose in purposes]


def test_equal_counts_are_those_of_the_row_with_the_fewest_masked_frames():
    for seed in range(20):
        frames = np.array([1, 40, 0, 100, 400])
        free, cut = draw(PAPER, frames, seed).sum(axis=1), draw(SpanMasking(same_count=True), frames, seed).sum(axis=1)
        smallest = free[[1, 3, 4]].min()
        assert cut.tolist() == [0, smallest, 0, smallest, smallest] and smallest > 0


def test_masked_runs_have_the_length_of_the_reference():
    mask = np.concatenate([draw(PAPER, np.full(20, 780), seed) for seed in range(40)])
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    runs = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
    assert runs.mean() == pytest.approx(16, abs=1)
    assert np.median(runs) == pytest.approx(12, abs=1)


def test_every_set_of_starts_is_equally_probable():
    # Spans of one frame show the starts: 2 of the first 6 of 7 frames, 15 sets.
    masking = SpanMasking(prob=0.0, length=1, min_masks=2)
    masks = np.concatenate([draw(masking, np.full(100, 7), seed) for seed in range(150)])
    assert not masks[:, 6].any()
    counts = dict.fromkeys(combinations(range(6), 2), 0)
    for pair in map(tuple, np.nonzero(masks)[1].reshape(-1, 2).tolist()):
        counts[pair] += 1
    expected = len(masks) / len(counts)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 36.1  # The 99.9 % quantile at 14 degrees of freedom.


def test_the_number_of_spans_is_rounded_at_random_for_each_row():
    # 0.5 · 50 / 10 = 2.5 spans: half of the rows get 2, half 3; spans of one frame make them countable.
    masks = np.concatenate([draw(SpanMasking(prob=0.05, length=1, min_masks=0), np.full(50, 50), s) for s in range(40)])
    counts = masks.sum(axis=1)
    assert set(counts) == {2, 3}
    assert counts.mean() == pytest.approx(2.5, abs=0.05)


def test_a_mask_is_a_function_of_its_key_alone():
    frames = np.array([200, 180, 190])
    first = draw(PAPER, frames)
    assert np.array_equal(first, draw(PAPER, frames.astype(np.int32)))
    for key in ({"seed": 1}, {"source": 4}, {"epoch": 1}, {"micro": 1}):
        assert not np.array_equal(first, draw(PAPER, frames, **key)), key


def test_global_generators_are_neither_read_nor_moved():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    draw(PAPER, [100, 100])
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_masked_frames_lie_within_their_row():
    frames = np.array([0, 1, 2, 9, 30, 31, 200, 57])
    for seed in range(50):
        mask = draw(PAPER, frames, seed)
        assert mask.shape == (8, 200)
        assert mask.dtype == bool
        assert not mask[np.arange(200) >= frames[:, None]].any()


def test_a_row_of_any_length_keeps_an_unmasked_frame_and_is_masked_from_two_frames_on():
    frames = np.arange(40)
    for masking in (PAPER, SpanMasking(prob=10.0), SpanMasking(min_masks=50), SpanMasking(prob=1.0, length=1)):
        for seed in range(20):
            masked = draw(masking, frames, seed).sum(axis=1)
            assert masked[:2].tolist() == [0, 0]
            assert np.all(masked[1:] < frames[1:])
            assert np.all(masked[2:] >= 1)


def test_rows_without_frames_do_not_thin_the_others_under_equal_counts():
    masked = draw(SpanMasking(same_count=True), [0, 400, 1, 400]).sum(axis=1)
    assert masked[[0, 2]].tolist() == [0, 0]
    assert masked[1] == masked[3] > 150


@pytest.mark.parametrize("same_count", [False, True])
def test_a_batch_without_frames_has_an_empty_mask(same_count):
    masking = SpanMasking(same_count=same_count)
    assert draw(masking, np.zeros(3, dtype=np.int64)).shape == (3, 0)
    assert draw(masking, np.zeros(0, dtype=np.int64)).shape == (0, 0)


def test_no_probability_and_no_least_number_mask_nothing():
    assert not draw(SpanMasking(prob=0.0, min_masks=0), np.full(6, 300)).any()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"length": 0}, r"masking\.length .*is 0"),
        ({"min_masks": -1}, r"masking\.min_masks .*is -1"),
        ({"prob": -0.1}, r"masking\.prob .*is -0\.1"),
        ({"prob": 80.0}, r"masking\.prob .*is 80\.0"),
        ({"prob": float("nan")}, r"masking\.prob .*is nan"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting, message):
    with pytest.raises(ValueError, match=message):
        SpanMasking(**setting)
