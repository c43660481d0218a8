"""The batches that a training config makes hold what it promises: masked frames, mixed rows, energy ratios, overlaps, row lengths."""

import itertools
import math

import numpy as np
import pytest
import torch

from openwavlm.audio.frames import num_frames
from openwavlm.batches.batch import PretrainBatch
from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.settings import SpanMasking
from openwavlm.runs.check import open_data
from openwavlm.runs.compose import plain
from openwavlm.shards.reader import ShardReader, UnreadableAudio
from openwavlm.training.build import make_builder
from openwavlm.training.config import RunConfig
from openwavlm.training.forward import prepare_waveforms
from runs import SETTINGS, compose, make_data

MASKING, PROB, NOISE_PROB, STEPS = SpanMasking(prob=0.3, length=3), 0.6, 0.3, 200


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_data(tmp_path_factory.mktemp("data"))


def config_of(data: list[str], *overrides: str) -> RunConfig:
    masks = ("masking.prob=0.3", "masking.length=3", "mixing.speech_db=[-3,5]", "mixing.noise_db=[0,10]", "mixing.max_share=0.4")
    return RunConfig.of(plain(compose([*SETTINGS, *data, *masks, *overrides])))


def built(config: RunConfig, steps: int = STEPS) -> list[PretrainBatch]:
    opened = open_data(config)
    schedule, builder = opened.schedule(), make_builder(config, opened, training=True)
    batches = [builder[spec] for step in range(steps) for spec in schedule.step(step).specs]
    opened.close()
    return batches


@pytest.fixture(scope="module", params=["all rows readable", "a quarter unreadable"])
def batches(data: list[str], request: pytest.FixtureRequest) -> list[PretrainBatch]:
    real = ShardReader.read

    def read(self: ShardReader, row: int, *places: object, **named: object) -> np.ndarray:
        if request.param != "all rows readable" and row % 4 == 1 and "noise" not in self.index.path.parts:
            raise UnreadableAudio("it is gone")
        return real(self, row, *places, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardReader, "read", read)
        return built(config_of(data))


# --- masks --------------------------------------------------------------------------------------------------------------


def masked_frames(masking: SpanMasking, frames: int) -> float:
    """Expected masked frames of a row, where its spans cannot cover all of it: C(R - c, k) / C(R, k) is the probability that a
    frame, which c of the R places reach, stays unmasked by k spans (HuBERT §II-C)."""
    exact, total = masking.prob * frames / masking.length, 0.0
    for spans, share in ((math.floor(exact), 1 - exact % 1), (math.floor(exact) + 1, exact % 1)):
        spans = min(max(spans, masking.min_masks), frames - 1)
        places = frames - masking.length if frames - masking.length > spans else spans + 1
        for frame in range(frames):
            reach = max(0, min(frame + 1, places) - max(0, frame - masking.length + 1))
            total += share * (1 - math.comb(places - reach, spans) / math.comb(places, spans))
    return total


def test_as_many_frames_are_masked_as_the_spans_of_the_config_cover_on_average(batches: list[PretrainBatch]) -> None:
    found = expected = scatter = 0.0
    for batch in batches:
        for mask, samples in zip(batch.mask.numpy(), batch.num_samples.tolist(), strict=True):
            masked, promised = int(mask.sum()), masked_frames(MASKING, int(num_frames(samples))) if samples else 0.0
            found, expected, scatter = found + masked, expected + promised, scatter + (masked - promised) ** 2
    assert abs(found - expected) < 5 * scatter**0.5 < 0.02 * expected


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
def test_the_drawn_masks_of_a_short_row_have_the_mean_over_all_choices_of_starts(frames: int, masking: SpanMasking) -> None:
    """SPEC §2.1: `num` starts without replacement out of sz − length places, or num + 1 places where those are too few."""
    exact, expected = masking.prob * frames / masking.length, 0.0
    for spans, share in ((math.floor(exact), 1 - exact % 1), (math.floor(exact) + 1, exact % 1)):
        spans = min(max(masking.min_masks, spans), frames - 1)
        places = frames - masking.length if frames - masking.length > spans else spans + 1
        counts = [
            min(frames - 1, len({f for start in starts for f in range(start, start + masking.length) if f < frames}))
            for starts in itertools.combinations(range(places), spans)
        ]
        expected += share * float(np.mean(counts)) if frames > 1 else 0.0
    drawn = draw_span_mask(masking, np.full(4000, frames), 7, source=1, epoch=0, micro=0).sum(axis=1)
    assert abs(drawn.mean() - expected) <= 5 * drawn.std() / 4000**0.5 + 1e-9


# --- mixtures -----------------------------------------------------------------------------------------------------------


def test_as_many_rows_are_mixed_with_speech_and_with_noise_as_the_config_says(batches: list[PretrainBatch]) -> None:
    found, expected, variance = np.zeros(2), np.zeros(2), np.zeros(2)
    for batch in batches:
        rows = len(batch.num_samples)
        readable = int((batch.num_samples > 0).sum())
        # A partner is another row of the batch, and no mixture if that row was not read.
        chances = np.array([PROB * (1 - NOISE_PROB) * max(0, readable - 1) / max(1, rows - 1), PROB * NOISE_PROB])
        noisy = int((batch.mix.partner >= rows).sum())
        found += len(batch.mix) - noisy, noisy
        expected += readable * chances
        variance += readable * chances * (1 - chances)
        assert batch.noise_num_samples.all(), "every clip was read"
        assert len(set(batch.mix.row.tolist())) == len(batch.mix), "a row is mixed once"
    assert np.all(np.abs(found - expected) < 5 * variance**0.5)
    assert np.all(5 * variance**0.5 < 0.4 * expected), "enough were drawn to notice a third less"


def test_energy_ratios_lie_in_the_range_of_the_config_with_their_mean_in_its_middle(batches: list[PretrainBatch]) -> None:
    ratios: tuple[list[float], list[float]] = ([], [])
    for batch in batches:
        for partner, ratio in zip(batch.mix.partner.tolist(), batch.mix.energy_ratio_db.tolist(), strict=True):
            ratios[partner >= len(batch.num_samples)].append(ratio)
    for found, (low, high) in zip(ratios, ((-3.0, 5.0), (0.0, 10.0)), strict=True):
        assert low - 1e-3 <= min(found) and max(found) <= high + 1e-3
        chance = 5 * (high - low) / math.sqrt(12 * len(found))
        assert abs(np.mean(found) - (low + high) / 2) < chance < 2


def test_what_is_added_to_the_audio_has_the_drawn_energy_ratio(batches: list[PretrainBatch], data: list[str]) -> None:
    measured, mixing = 0, config_of(data).mixing
    for batch in [batch for batch in batches if len(batch.mix)][:40]:
        clean, noise = batch.waveforms.double() / 32768, batch.noise.double() / 32768
        added = prepare_waveforms(batch, mixing, normalised=False).double() - clean
        rows = len(clean)
        columns = (batch.mix.row, batch.mix.partner, batch.mix.start, batch.mix.partner_start, batch.mix.length)
        for row, partner, start, other, length, ratio in zip(
            *(c.tolist() for c in columns), batch.mix.energy_ratio_db, strict=True
        ):
            whole = clean[partner, : batch.num_samples[partner]] if partner < rows else noise[partner - rows]
            if partner >= rows:
                whole = whole[: batch.noise_num_samples[partner - rows]]
            piece = whole[other : other + length]
            if not piece.square().sum() > 1e-3:
                continue  # silence has no ratio
            scale = (added[row, start : start + length] * piece).sum() / piece.square().sum()
            energy = clean[row, : batch.num_samples[row]].square().mean() / (scale**2 * whole.square().mean())
            assert 10 * torch.log10(energy) == pytest.approx(float(ratio), abs=0.1)
            measured += 1
    assert measured > 50


@pytest.mark.parametrize("mode", ["paper", "unispeech"])
def test_overlaps_are_as_short_as_the_config_says_and_lie_within_both_utterances(data: list[str], mode: str) -> None:
    mixtures = 0
    for batch in built(config_of(data, f"mixing.mode={mode}"), 20):
        width, own = batch.waveforms.shape[1], mode == "unispeech"
        samples = np.full(len(batch.num_samples), width) if own else batch.num_samples.numpy()
        lengths = np.concatenate([samples, batch.noise_num_samples.numpy()])
        record = batch.mix
        columns = (record.row, record.partner, record.start, record.partner_start, record.length)
        for row, partner, start, partner_start, length in zip(*(column.tolist() for column in columns), strict=True):
            assert 0 <= row < len(samples) and 0 <= partner < len(lengths) and lengths[partner] > 0
            assert own or row != partner, "no row is its own partner"
            assert (0 if own else 1) <= length <= math.floor(0.4 * samples[row])
            assert start >= 0 and start + length <= samples[row]
            assert partner_start >= 0 and partner_start + length <= lengths[partner]
            mixtures += 1
    assert mixtures > 50


def test_partners_are_rows_that_were_read(batches: list[PretrainBatch]) -> None:
    for batch in batches:
        lengths = torch.cat([batch.num_samples, batch.noise_num_samples])
        assert torch.all(lengths[batch.mix.partner] > 0) and torch.all(batch.num_samples[batch.mix.row] > 0)


# --- rows ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "shortest"), [("split", 24), ("pad", 24), ("fairseq_crop", 24)])
def test_rows_lie_on_the_frame_grid_and_micro_batches_within_their_budget(data: list[str], policy: str, shortest: int) -> None:
    """Half a second has 24 frames, two seconds have 99, four seconds 199; 400 samples make a frame and 320 each further one."""
    config = config_of(data, f"batch.policy={policy}", "batch.min_seconds=0.5")
    assert (config.batch.min_frames, config.batch.max_frames, config.batch.micro_frames) == (24, 99, 199)
    lengths: set[int] = set()
    for batch in built(config, 20):
        assert not ((batch.num_samples - 400) % 320).any()
        frames = num_frames(batch.num_samples)
        assert int(frames.min()) >= shortest and int(frames.max()) <= 99
        assert len(frames) * num_frames(batch.waveforms.shape[1]) <= 199
        lengths |= set(frames.tolist())
    assert len(lengths) > 3
