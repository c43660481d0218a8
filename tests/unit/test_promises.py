"""What the config promises is what the draws keep on average, and what they break is counted."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from openwavlm.audio.frames import num_samples_of
from openwavlm.batches.batch import MicroBatchId, MixRecord, PretrainBatch
from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.mixing import draw_mixing, draw_noise_clips
from openwavlm.batches.settings import Batching, Mixing, SpanMasking
from openwavlm.training.health.promises import PROMISED, Promises, expected_masked_frames

BATCHING = Batching(seconds=32, micro_seconds=32, max_seconds=2, min_seconds=0.5)
KEY = {"source": 1, "epoch": 0}


@pytest.mark.parametrize("frames", [2, 5, 9, 14, 40, 99, 781])
@pytest.mark.parametrize(
    "masking", [SpanMasking(), SpanMasking(prob=0.65, length=8), SpanMasking(prob=0.3, length=4, min_masks=1)]
)
def test_the_expected_mask_is_the_mean_of_the_drawn_ones(masking, frames):
    rows = 4000 if frames < 200 else 500
    counts = draw_span_mask(masking, np.full(rows, frames), 7, micro=0, **KEY).sum(axis=1)
    error = counts.std() / rows**0.5
    assert abs(counts.mean() - expected_masked_frames(masking, frames)) < 5 * error + 1e-9


def batch(
    mixing: Mixing, micro: int, *, unreadable: int = 0, masking: SpanMasking | None = None, rows: int = 16
) -> PretrainBatch:
    frames = np.full(rows, 99)
    samples = num_samples_of(frames)
    readable = np.arange(rows) >= unreadable
    mask = draw_span_mask(masking or SpanMasking(), frames, 7, micro=micro, **KEY) & readable[:, None]
    clips = np.zeros(0, dtype=np.int64)
    if mixing.noise_prob:
        chosen = draw_noise_clips(mixing, rows, 5, 7, micro=micro, **KEY)
        clips = np.full(np.count_nonzero(chosen >= 0), 20_000)
    record = draw_mixing(mixing, samples, readable, 7, micro=micro, noise_num_samples=clips, **KEY)
    return PretrainBatch(
        waveforms=torch.zeros(rows, int(samples.max()), dtype=torch.int16),
        num_samples=torch.from_numpy(np.where(readable, samples, 0)),
        labels=torch.zeros(rows, 99, dtype=torch.int32),
        mask=torch.from_numpy(mask),
        masked_index=torch.from_numpy(np.flatnonzero(mask)),
        unmasked_index=torch.from_numpy(np.flatnonzero(~mask)),
        layer_keep=torch.ones(1, dtype=torch.bool),
        mix=record,
        noise=torch.zeros(len(clips), 20_000, dtype=torch.int16),
        noise_num_samples=torch.from_numpy(clips),
        rows=torch.arange(rows),
        start_frame=torch.zeros(rows, dtype=torch.int64),
        id=MicroBatchId("speech", 0, 0, micro),
    )


def total(promises: Promises, batches: list[PretrainBatch]) -> dict[str, float]:
    return dict(zip(PROMISED, np.sum([promises.figures(part) for part in batches], axis=0).tolist(), strict=True))


@pytest.mark.parametrize(
    "mixing", [Mixing(prob=0.5), Mixing(prob=0.8, noise_prob=0.4), Mixing(prob=0.5, mode="unispeech"), Mixing(prob=0.0)]
)
def test_drawn_mixtures_keep_their_promise(mixing):
    promises = Promises(SpanMasking(), mixing, BATCHING)
    found = total(promises, [batch(mixing, micro, unreadable=micro % 3) for micro in range(200)])
    for kind in ("speech", "noise"):
        assert abs(found[kind] - found[f"expected_{kind}"]) <= 4 * found[f"{kind}_variance"] ** 0.5
    assert not any(found[name] for name in PROMISED if name.startswith("wrong"))
    assert abs(found["mask"] - found["expected_mask"]) < 4 * found["mask_variance"] ** 0.5


def changed(part: PretrainBatch, **columns) -> PretrainBatch:
    return replace(part, mix=replace(part.mix, **columns))


def test_impossible_mixtures_are_counted():
    mixing = Mixing(prob=1.0)
    promises, sound = Promises(SpanMasking(), mixing, BATCHING), batch(mixing, 0)
    record: MixRecord = sound.mix
    some = len(record)
    assert some == 16
    assert total(promises, [changed(sound, partner=record.row)])["wrong_partners"] == some
    assert total(promises, [changed(sound, partner=record.partner + 16)])["wrong_partners"] == some, "there is no noise"
    whole = torch.full_like(record.length, int(sound.num_samples[0]))
    moved = changed(sound, length=whole, start=record.start * 0, partner_start=record.start * 0)
    assert total(promises, [moved])["wrong_overlaps"] == some, "longer than max_share"
    assert total(promises, [changed(sound, start=record.start * 0 + 31_000)])["wrong_overlaps"] > 0, "beyond the primary"
    louder = total(promises, [changed(sound, energy_ratio_db=record.energy_ratio_db + 10.1)])
    assert louder["wrong_levels"] == some and louder["wrong_partners"] == louder["wrong_overlaps"] == 0
    gone = replace(sound, num_samples=torch.where(torch.arange(16) == record.partner[0], 0, sound.num_samples))
    assert total(promises, [gone])["wrong_partners"] > 0, "a partner that could not be read"


def test_rows_off_the_grid_or_out_of_range_are_counted():
    mixing = Mixing(prob=0.0)
    sound = batch(mixing, 0)
    promises = Promises(SpanMasking(), mixing, BATCHING)
    assert total(promises, [sound])["wrong_rows"] == 0
    odd = torch.where(torch.arange(16) == 3, sound.num_samples - 1, sound.num_samples)
    assert total(promises, [replace(sound, num_samples=odd)])["wrong_rows"] == 1
    shorter = Promises(SpanMasking(), mixing, replace(BATCHING, max_seconds=1.0))
    assert total(shorter, [sound])["wrong_rows"] == 16
    smaller = Promises(SpanMasking(), mixing, replace(BATCHING, seconds=16, micro_seconds=16))
    assert total(smaller, [sound])["wrong_rows"] == 16


def test_a_padding_micro_batch_counts_for_nothing():
    mixing = Mixing(prob=0.5)
    assert not Promises(SpanMasking(), mixing, BATCHING).figures(replace(batch(mixing, 0), weight=0.0)).any()


@pytest.mark.parametrize(
    ("frames", "masking"),
    [
        (12, SpanMasking(prob=0.65, length=3)),  # 2.6 spans: two or three
        (12, SpanMasking(prob=0.5, length=4, min_masks=1)),  # 1.5 spans
        (9, SpanMasking(prob=0.1, length=2)),  # 0.45 spans: the least, two
        (12, SpanMasking(prob=0.65, length=10)),  # as many places as spans, which are too few
        (6, SpanMasking(prob=0.8, length=5)),  # fewer places than spans: spans + 1 of them
        (3, SpanMasking(prob=0.9, length=10)),
        (1, SpanMasking()),
    ],
)
def test_the_expected_mask_is_the_mean_over_all_choices_of_starts(frames, masking):
    """SPEC §2.1: `num` starts without replacement out of sz − length places, or num + 1 places where those are too few."""
    exact = masking.prob * frames / masking.length
    expected = 0.0
    for spans, share in (
        (math.floor(exact), 1 - (exact - math.floor(exact))),
        (math.floor(exact) + 1, exact - math.floor(exact)),
    ):
        spans = min(max(masking.min_masks, spans), frames - 1)
        places = frames - masking.length
        if places <= spans:
            places = spans + 1
        counts = [
            len({f for start in starts for f in range(start, start + masking.length) if f < frames})
            for starts in itertools.combinations(range(places), spans)
        ]
        expected += share * float(np.mean(counts)) if frames > 1 else 0.0
    assert expected_masked_frames(masking, frames) == pytest.approx(min(expected, max(0.0, frames - 1.0)), rel=1e-9)


@pytest.mark.parametrize(("mode", "meets"), [("paper", 2 / 3), ("unispeech", 3 / 4)])
def test_the_sums_of_a_micro_batch_are_those_counted_by_hand(mode, meets):
    """Four rows of which three are readable; one mixture with speech and two with noise, one of whose clips is not readable."""
    mixing = Mixing(prob=1.0, noise_prob=0.5, mode=mode)
    masking = SpanMasking(prob=0.5, length=10)
    part = batch(Mixing(prob=0.0), 0, unreadable=1, masking=masking, rows=4)
    columns = [torch.tensor(values) for values in ([1, 2, 3], [2, 4, 4], [0, 10, 20], [0, 0, 5], [100, 200, 300])]
    part = replace(
        part,
        mix=MixRecord(*columns, torch.tensor([1.5, 10.0, -4.0]), 300),
        noise=torch.zeros(2, 20_000, dtype=torch.int16),
        noise_num_samples=torch.tensor([20_000, 0]),
    )
    found = total(Promises(masking, mixing, BATCHING), [part])
    counts = part.mask.numpy()[1:].sum(axis=1)
    expected = expected_masked_frames(masking, 99)
    assert found == pytest.approx(
        {
            "mask": counts.sum(),
            "expected_mask": 3 * expected,
            "mask_variance": ((counts - expected) ** 2).sum(),
            "speech": 1,
            "expected_speech": 3 * 0.5 * meets,
            "speech_variance": 3 * 0.5 * meets * (1 - 0.5 * meets),
            "noise": 2,
            "expected_noise": 3 * 0.5 - 1,
            "noise_variance": 3 * 0.5 * 0.5,
            "speech_db": 1.5,
            "noise_db": 6.0,
            "wrong_partners": 0,
            "wrong_overlaps": 0,
            "wrong_levels": 0,
            "wrong_rows": 0,
        },
        rel=1e-12,
    )


@pytest.mark.parametrize(
    ("column", "value", "name"),
    [
        ("energy_ratio_db", 5.01, "wrong_levels"),
        ("energy_ratio_db", -5.01, "wrong_levels"),
        ("row", 4, "wrong_partners"),
        ("row", -1, "wrong_partners"),
        ("partner", 1, "wrong_partners"),  # itself
        ("partner", 0, "wrong_partners"),  # not readable
        ("partner", 4, "wrong_partners"),  # noise, of which there is none
        ("length", 0, "wrong_overlaps"),
        ("length", 15_881, "wrong_overlaps"),  # more than half of 31,760 samples
        ("start", -1, "wrong_overlaps"),
        ("start", 31_661, "wrong_overlaps"),  # with a length of 100
        ("partner_start", -1, "wrong_overlaps"),
        ("partner_start", 31_661, "wrong_overlaps"),
    ],
)
def test_one_impossible_number_of_a_mixture_is_counted_once_and_the_last_possible_one_is_not(column, value, name):
    mixing = Mixing(prob=1.0)
    sound = batch(Mixing(prob=0.0), 0, unreadable=1, rows=4)
    columns = {"row": 1, "partner": 2, "start": 0, "partner_start": 0, "length": 100, "energy_ratio_db": 5.0}

    def wrong(**changes: float) -> dict[str, float]:
        values = {key: torch.tensor([entry]) for key, entry in (columns | changes).items()}
        found = total(Promises(SpanMasking(), mixing, BATCHING), [replace(sound, mix=MixRecord(**values, max_length=100))])
        return {key: count for key, count in found.items() if key.startswith("wrong") and count}

    assert wrong(**{column: value}) == {name: 1}
    last = {5.01: 5.0, -5.01: -5.0, 15_881: 15_880, 31_661: 31_660}.get(value, columns[column])
    assert wrong(**{column: last}) == {}


@pytest.mark.parametrize(
    ("policy", "min_seconds", "frames", "wrong"),
    [
        ("pad", 0.5, 24, 0),
        ("pad", 0.5, 23, 1),
        ("pad", 0.5, 99, 0),
        ("pad", 0.5, 100, 1),
        ("split", 1.5, 50, 0),
        ("split", 1.5, 49, 1),
        ("fairseq_crop", 1.5, 50, 1),
    ],
)
def test_the_shortest_and_the_longest_row_are_allowed_and_one_frame_beyond_is_not(policy, min_seconds, frames, wrong):
    """24 frames are half a second and 99 are two; a split row of 100 frames, just over the longest, leaves halves of 50."""
    batching = replace(BATCHING, policy=policy, min_seconds=min_seconds)
    sound = batch(Mixing(prob=0.0), 0, rows=1)
    samples = num_samples_of(np.array([frames]))
    part = replace(sound, num_samples=torch.from_numpy(samples), waveforms=torch.zeros(1, int(samples[0]), dtype=torch.int16))
    assert total(Promises(SpanMasking(), Mixing(prob=0.0), batching), [part])["wrong_rows"] == wrong


def test_a_micro_batch_may_fill_its_budget_and_is_wrong_as_a_whole_beyond_it():
    sound = batch(Mixing(prob=0.0), 0, unreadable=1, rows=3)
    for budget, wrong in ((3 * 99, 0), (3 * 99 - 1, 3)):
        seconds = num_samples_of(budget) / 16_000
        batching = replace(BATCHING, seconds=seconds, micro_seconds=seconds)
        assert batching.micro_frames == budget
        assert total(Promises(SpanMasking(), Mixing(prob=0.0), batching), [sound])["wrong_rows"] == wrong
