"""What the config promises is what the draws keep on average, and what they break is counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from openwavlm.augment.mixing import Mixing, draw_mixing, draw_noise_clips
from openwavlm.batch import MicroBatchId, MixRecord, PretrainBatch
from openwavlm.data.plan import Batching
from openwavlm.frames import num_samples_of
from openwavlm.masking import SpanMasking, draw_span_mask
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
