"""What the config promises about masks, mixtures and rows, held against the batches that were made: sums known on the host.

The expectations are computed here from the rules themselves and not by drawing again, so a fault of the draws does not hide in them.
"""

from dataclasses import dataclass, field

import numpy as np

from openwavlm.audio.frames import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, num_frames
from openwavlm.batches.batch import PretrainBatch
from openwavlm.batches.settings import Batching, Mixing, SpanMasking

PROMISED = [
    "mask",  # masked frames
    "expected_mask",
    "mask_variance",  # squared errors of the rows
    "speech",  # rows mixed with speech
    "expected_speech",
    "speech_variance",
    "noise",  # rows mixed with noise
    "expected_noise",
    "noise_variance",
    "speech_db",  # sum of their energy ratios
    "noise_db",
    "wrong_partners",
    "wrong_overlaps",
    "wrong_levels",
    "wrong_rows",
]
_SLACK_DB = 1e-3  # float32 rounding of a ratio drawn at its limit


def expected_masked_frames(masking: SpanMasking, frames: int) -> float:
    """Expected number of masked frames in a row of `frames`, without the cut of `same_count` (HuBERT §II-C, `draw_span_mask`).

    With k spans, started without replacement at R places of which c(t) reach frame t, a frame stays unmasked with probability
    C(R − c, k) / C(R, k); k is prob · frames / length, rounded up as often as its fraction says.
    """
    if frames < 2:
        return 0.0
    exact = masking.prob * frames / masking.length
    position = np.arange(frames)
    total = 0.0
    for spans, share in ((int(exact), 1 - exact % 1), (int(exact) + 1, exact % 1)):
        spans = min(max(spans, masking.min_masks), frames - 1)
        places = frames - masking.length if frames - masking.length > spans else spans + 1
        reaching = np.minimum(position, places - 1) - np.maximum(position - masking.length + 1, 0) + 1
        drawn = np.arange(spans)
        left = np.clip(places - reaching.clip(min=0)[:, None] - drawn, 0, None) / (places - drawn)
        total += share * float((1 - left.prod(axis=1)).sum())
    return min(total, frames - 1.0)


@dataclass(eq=False)
class Promises:
    """What the config promises, and how a micro-batch keeps it.

    Attributes:
        masking: Span masks.
        mixing: Mixtures.
        batching: Lengths of rows and micro-batches.
    """

    masking: SpanMasking
    mixing: Mixing
    batching: Batching
    _expected: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)  # by the row's frames; NaN = not yet needed

    def figures(self, batch: PretrainBatch) -> np.ndarray:
        """Sums of one micro-batch on the host, float64 (promised,) in the order of `PROMISED`; zeros for a padding micro-batch."""
        if not batch.weight:
            return np.zeros(len(PROMISED))
        samples = batch.num_samples.numpy()
        found = {**self._masks(batch, samples), **self._mixtures(batch, samples), "wrong_rows": self._wrong_rows(batch, samples)}
        return np.array([found[name] for name in PROMISED], dtype=np.float64)

    def _masks(self, batch: PretrainBatch, samples: np.ndarray) -> dict[str, float]:
        readable = samples > 0
        frames = num_frames(samples[readable])
        missing = max(0, int(frames.max(initial=0)) + 1 - len(self._expected))
        self._expected = np.append(self._expected, np.full(missing, np.nan))
        for length in np.unique(frames[np.isnan(self._expected[frames])]).tolist():
            self._expected[length] = expected_masked_frames(self.masking, length)
        expected = self._expected[frames]
        counts = np.count_nonzero(batch.mask.numpy()[readable], axis=1)
        return {
            "mask": counts.sum(),
            "expected_mask": expected.sum(),
            "mask_variance": np.square(counts - expected).sum(),
        }

    def _mixtures(self, batch: PretrainBatch, samples: np.ndarray) -> dict[str, float]:
        mixing, record, rows = self.mixing, batch.mix, len(samples)
        readable = int(np.count_nonzero(samples))
        own = mixing.mode == "unispeech"  # there a row may be its own partner
        meets = readable / max(1, rows) if own else max(0, readable - 1) / max(1, rows - 1)
        long_enough = np.count_nonzero(np.floor(samples * mixing.max_share) >= 1)
        speech = mixing.prob * (1 - mixing.noise_prob) * meets
        noise = mixing.prob * mixing.noise_prob
        partner, ratio = record.partner.numpy(), record.energy_ratio_db.numpy()
        noisy = partner >= rows
        lowest, highest = np.where(noisy[:, None], mixing.noise_db, mixing.speech_db).T
        return {
            "speech": np.count_nonzero(~noisy),
            "expected_speech": long_enough * speech,
            "speech_variance": long_enough * speech * (1 - speech),
            "noise": np.count_nonzero(noisy),
            "expected_noise": max(0.0, long_enough * noise - np.count_nonzero(batch.noise_num_samples.numpy() == 0)),
            "noise_variance": long_enough * noise * (1 - noise),
            "speech_db": ratio[~noisy].sum(dtype=np.float64),
            "noise_db": ratio[noisy].sum(dtype=np.float64),
            "wrong_levels": np.count_nonzero((ratio < lowest - _SLACK_DB) | (ratio > highest + _SLACK_DB)),
            **self._wrong_mixtures(batch, samples, own=own),
        }

    def _wrong_mixtures(self, batch: PretrainBatch, samples: np.ndarray, *, own: bool) -> dict[str, float]:
        """Mixtures that cannot be: with oneself, with nothing, longer than allowed, or out of one of the two."""
        record = batch.mix
        columns = (record.row, record.partner, record.start, record.partner_start, record.length)
        row, partner, start, partner_start, length = (column.numpy() for column in columns)
        sizes = np.full(len(samples), batch.waveforms.shape[1]) if own else samples
        audible = np.concatenate([np.where(samples > 0, sizes, 0), batch.noise_num_samples.numpy()])
        outside = (row < 0) | (row >= len(samples)) | (partner < 0) | (partner >= len(audible))
        row, partner = np.where(outside, 0, row), np.where(outside, 0, partner)
        wrong = outside | (audible[partner] == 0) | ((row == partner) & (not own))
        longest = np.floor(sizes[row] * self.mixing.max_share)
        wrong_overlap = (length < (0 if own else 1)) | (length > longest) | (start < 0) | (start + length > sizes[row])
        wrong_overlap |= (partner_start < 0) | (partner_start + length > audible[partner])
        return {"wrong_partners": int(np.count_nonzero(wrong)), "wrong_overlaps": int(np.count_nonzero(wrong_overlap & ~wrong))}

    def _wrong_rows(self, batch: PretrainBatch, samples: np.ndarray) -> int:
        """Rows off the frame grid or out of the config's range; all of them where the micro-batch is over its budget."""
        batching = self.batching
        shortest = batching.min_frames
        if batching.policy == "split":  # an utterance just over the longest row makes two halves
            shortest = min(shortest, (batching.max_frames + 1) // 2)
        present = samples[samples > 0]
        frames = num_frames(present)
        off_grid = (present - RECEPTIVE_FIELD_SAMPLES) % HOP_SAMPLES != 0
        if len(samples) * num_frames(batch.waveforms.shape[1]) > batching.micro_frames:
            return len(samples)
        return int(np.count_nonzero(off_grid | (frames < shortest) | (frames > batching.max_frames)))
