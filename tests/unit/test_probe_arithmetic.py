"""The arithmetic of probes against written-out float64: frames and phones, closed forms, discriminants, overlap, features, sets."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from openwavlm.audio.frames import num_frames
from openwavlm.audio.mfcc import mfcc_features
from openwavlm.audio.spectra import normalised_log_mel
from openwavlm.batches.batch import MixRecord
from openwavlm.evaluation.conditions import add_noise, telephone
from openwavlm.evaluation.features import EncoderFeatures, LogMelFeatures, MfccFeatures, stream
from openwavlm.evaluation.mix_sets import audible_overlap, frame_energies
from openwavlm.evaluation.phones.alignments import Segment, frame_phones
from openwavlm.evaluation.phones.matching import Clip, Matches
from openwavlm.evaluation.ridge import RidgeStatistics
from openwavlm.evaluation.sets import ProbeSet, ProbeUtterance, readable
from openwavlm.evaluation.shard_sets import _in_turn, inventory, judged_set, probe_set, read_phone_times, speech_set
from openwavlm.evaluation.speakers import LinearDiscriminant, frame_means, speaker_accuracy
from openwavlm.evaluation.units import fit_units
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.runtime.randomness import stable_hash
from openwavlm.shards.index import Index
from openwavlm.shards.reader import UnreadableAudio
from planted_features import Planted, frames_of, planted_set
from runs import phone_times
from synthetic import make_shard_set, speech_like

# Frames and phones


def phone_by_hand(segments: list[tuple[Fraction, Fraction, int]], frame: int) -> int:
    """The phone that lasts from at most the centre of the frame's 400 samples to after it, in exact seconds."""
    centre = Fraction(320 * frame + 200, 16_000)
    return next((phone for start, end, phone in segments if start <= centre < end), -1)


def test_frames_of_a_phone_are_those_whose_centre_lies_in_it_to_the_sample() -> None:
    rng = np.random.default_rng(0)
    samples = np.sort(rng.choice(np.arange(1, 16_000), 60, replace=False))
    # Borders on a centre, one sample before and one after it.
    samples = np.unique(np.concatenate([samples, [320 * f + 200 + d for f, d in ((3, 0), (7, -1), (11, 1), (15, 0), (30, 1))]]))
    exact = [
        (Fraction(int(start), 16_000), Fraction(int(end), 16_000), place % 3)
        for place, (start, end) in enumerate(pairwise(samples))
        if place % 5  # every fifth is a gap
    ]
    said = [Segment(float(start), float(end), "abc"[phone]) for start, end, phone in exact]
    wanted = [phone_by_hand(exact, frame) for frame in range(49)]
    assert frame_phones(said, 49, ["a", "b", "c"]).tolist() == wanted and wanted.count(-1) > 3
    later = [(start + Fraction(1, 50), end + Fraction(1, 50), phone) for start, end, phone in exact]
    shifted = frame_phones(said, 49, ["a", "b", "c"], shift_s=0.02)
    assert shifted.tolist() == [phone_by_hand(later, frame) for frame in range(49)] == [-1, *wanted[:-1]]
    assert shifted.tolist() != wanted, "phones one frame late are other phones"


def test_the_end_of_a_phone_at_a_centre_does_not_belong_to_it() -> None:
    # The centre of frame 2 is sample 840 = 0.0525 s.
    for end, expected in ((0.0525, [0, 0, -1]), (0.0525 + 1 / 16_000, [0, 0, 0])):
        assert frame_phones([Segment(0.0, end, "a")], 3, ["a"]).tolist() == expected
    for start, expected in ((0.0525, [-1, -1, 0]), (0.0525 + 1 / 16_000, [-1, -1, -1])):
        assert frame_phones([Segment(start, 0.055, "a")], 3, ["a"]).tolist() == expected


def test_times_with_six_decimals_are_the_samples_that_they_were_rounded_from() -> None:
    for frame in range(200):
        centre = 320 * frame + 200
        for sample in (centre, centre + 1):
            written = float(f"{sample / 16_000:.6f}")
            before, after = frame_phones([Segment(0.0, written, "a"), Segment(written, 9.0, "b")], frame + 1, ["a", "b"])[
                [0, frame]
            ]
            assert after == int(sample <= centre) and (before == 0 or frame == 0)


# Ridge


def ridge_by_hand(x: np.ndarray, y: np.ndarray, penalty: float, classes: int, judged: np.ndarray) -> np.ndarray:
    """(XᵀX / N + λ I)⁻¹ XᵀY / N of standardised features and centred one-hot classes, in float64."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    scale = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0)
    standard, onehot = (x - mean) * scale, np.eye(classes)[y]
    share = onehot.mean(axis=0)
    weight = np.linalg.solve(
        standard.T @ standard / len(x) + penalty * np.eye(x.shape[1]), standard.T @ (onehot - share) / len(x)
    )
    return (judged - mean) * scale @ weight + share


@pytest.mark.parametrize("penalty", [1e-5, 0.01, 0.3, 1.0])
def test_ridge_is_its_closed_form(penalty: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 5)) @ rng.standard_normal((5, 5)) * [1, 10, 0.1, 1, 1] + [0, 3, -1, 0, 2]
    x[:, 3] = 7.0  # a number that never changes has no weight
    y = rng.choice(3, 600, p=[0.6, 0.3, 0.1])
    x[:, 0] += y
    statistics = RidgeStatistics(5, 3)
    for first in range(0, 600, 250):
        statistics.add(torch.from_numpy(x[first : first + 250]), torch.from_numpy(y[first : first + 250]))
    statistics.add(torch.full((9, 5), 1e3), torch.full((9,), -1))  # without a label
    assert statistics.frames == 600
    family = statistics.solve([penalty, 0.5])
    judged = rng.standard_normal((50, 5)) * 3 + [0, 3, -1, 4, 2]
    wanted = ridge_by_hand(x, y, penalty, 3, judged)
    found = family.scores(torch.from_numpy(judged))[0].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    assert family.only(1).penalties == (0.5,)
    np.testing.assert_allclose(
        family.only(1).scores(torch.from_numpy(judged))[0].numpy(), ridge_by_hand(x, y, 0.5, 3, judged), atol=1e-3
    )
    right = family.correct(torch.from_numpy(judged), torch.from_numpy(wanted.argmax(axis=1)))
    margin = np.sort(wanted, axis=1)[:, -1] - np.sort(wanted, axis=1)[:, -2]
    assert right[0].numpy()[margin > 1e-3].all()


def test_a_number_that_moves_by_less_than_a_hundred_thousandth_of_its_value_has_no_weight() -> None:
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(0, 2, 400))
    x = torch.from_numpy(np.stack([rng.standard_normal(400), 1000 + 1e-3 * (y.numpy() * 2 - 1)], axis=1))
    statistics = RidgeStatistics(2, 2)
    statistics.add(x, y)
    family = statistics.solve([0.1])
    assert family.scale[1] == 0 and family.scale[0] == pytest.approx(1 / float(x[:, 0].std(unbiased=False)), rel=1e-5)
    for penalties in ([0.0], [0.1, -1.0], []):
        with pytest.raises(ValueError, match="penalties must be positive"):
            statistics.solve(penalties)


# Speakers


@pytest.mark.parametrize("shrinkage", [0.1, 0.6])
def test_discriminants_are_scikit_learns(shrinkage: float) -> None:
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((6, 6))
    speakers = np.repeat(np.arange(4), 50)  # as many of each: then both pool the covariance alike
    means = rng.standard_normal((200, 6)) @ spread + rng.standard_normal((4, 6))[speakers] * 2 + 5
    mean, deviation = means.mean(axis=0), means.std(axis=0)
    judged = rng.standard_normal((300, 6)) @ spread + rng.standard_normal((4, 6))[rng.integers(0, 4, 300)] * 2 + 5
    standard = (means - mean) / deviation
    # scikit-learn shrinks each class's covariance; of classes that share one covariance's estimate that is the pooled one's.
    centres = np.stack([standard[speakers == name].mean(axis=0) for name in range(4)])
    inner = standard - centres[speakers]
    pooled = inner.T @ inner / (200 - 4)
    pooled = (1 - shrinkage) * pooled + shrinkage * np.trace(pooled) / 6 * np.eye(6)
    scores = (judged - mean) / deviation @ np.linalg.inv(pooled) @ centres.T
    scores -= 0.5 * np.einsum("cd,de,ce->c", centres, np.linalg.inv(pooled), centres)
    found = LinearDiscriminant(means, speakers, shrinkage).predict(judged)
    assert (found == scores.argmax(axis=1)).all()
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=np.full(4, 0.25)).fit(standard, speakers)
    assert (found == reference.predict((judged - mean) / deviation)).mean() > 0.99
    assert (LinearDiscriminant(means, speakers).predict(judged) == LinearDiscriminant(means, speakers, 0.1).predict(judged)).all()


def test_a_discriminant_of_one_speaker_is_refused_and_constant_numbers_play_no_part() -> None:
    with pytest.raises(ValueError, match="at least two speakers, but has 1"):
        LinearDiscriminant(np.ones((3, 2)), np.array(["a", "a", "a"]))
    means = np.array([[0.0, 7.0], [0.1, 7.0], [5.0, 7.0], [5.1, 7.0]])
    probe = LinearDiscriminant(means, np.array(["a", "a", "b", "b"]))
    assert probe.predict(np.array([[1.0, -900.0], [4.0, 900.0]])).tolist() == ["a", "b"]


def test_means_are_of_whole_stretches_of_two_seconds() -> None:
    features = np.arange(250.0)[:, None] * [1.0, -2.0]
    found = frame_means(features)
    np.testing.assert_allclose(found, [[49.5, -99.0], [149.5, -299.0]])
    np.testing.assert_allclose(frame_means(features[:30]), [[14.5, -29.0]])
    np.testing.assert_allclose(frame_means(features[:199]), [[49.5, -99.0]])
    np.testing.assert_allclose(frame_means(features[:200]), [[49.5, -99.0], [149.5, -299.0]])


def test_speakers_are_fitted_on_every_other_utterance_and_judged_on_the_rest() -> None:
    def utterance(level: float, stretches: int) -> np.ndarray:
        # Two stretches at least, so that no class is a single point.
        return level + np.tile([[0.1], [-0.1]], (stretches, 1))[:stretches]

    # Utterances 1 and 3 of each speaker fit, 2 and 4 are judged. "a" is 0 and "b" is 10 where fitted; the second utterances are
    # exchanged, the fourth ones are not: 2 + 4 of 12 judged stretches are right. "c" spoke once, nearer to the last of "b", and is
    # no class.
    plan = [
        ("a", 0, 2),
        ("b", 10, 2),
        ("a", 10, 4),
        ("b", 0, 2),
        ("c", 11, 2),
        ("a", 0, 2),
        ("b", 10, 2),
        ("a", 0, 2),
        ("b", 12, 4),
    ]
    found = speaker_accuracy([utterance(level, count) for _, level, count in plan], [name for name, _, _ in plan])
    assert found == (pytest.approx(6 / 12), 2)
    assert speaker_accuracy([utterance(0, 2)] * 3, ["a", "a", "b"]) is None


# Overlap


def pair(second: np.ndarray, samples: int = 16_000) -> tuple[torch.Tensor, torch.Tensor]:
    """A first speaker of constant 1 beside `second`, and their samples."""
    batch = torch.zeros(2, samples)
    batch[0] = 1.0
    batch[1, : len(second)] = torch.from_numpy(second.astype(np.float32))
    return batch, torch.tensor([samples, len(second)])


def record(start: int, partner_start: int, length: int) -> MixRecord:
    one = torch.tensor([0])
    return MixRecord(one, one + 1, one + start, one + partner_start, one + length, torch.tensor([7.0]), length)


@pytest.mark.parametrize(("below_db", "audible"), [(0, True), (20, True), (29, True), (31, False), (40, False)])
def test_a_second_speaker_is_audible_down_to_30_db_below_its_loudest_frame(below_db: int, audible: bool) -> None:
    # The loudest second is not mixed in: the level is held against the whole second utterance.
    second = np.concatenate([np.full(8000, 1000.0), np.full(8000, 1000.0 * 10 ** (-below_db / 20))])
    batch, num_samples = pair(second)
    found = audible_overlap(batch, num_samples, record(3200, 9600, 4800))[0].numpy()
    inside = [frame for frame in range(49) if 320 * frame >= 3200 and 320 * frame + 400 <= 8000]
    outside = [frame for frame in range(49) if 320 * frame + 400 <= 3200 or 320 * frame >= 8000]
    assert len(inside) == 14 and found[inside].all() == found[inside].any() == audible and not found[outside].any()


def test_frames_that_reach_into_the_overlap_by_a_part_are_marked_by_their_energy() -> None:
    # A frame that has 80 of its 400 samples in the overlap has a fifth of the energy, 7 dB less.
    batch, num_samples = pair(np.full(16_000, 100.0))
    for audible_db, wanted in ((7.1, True), (6.9, False)):
        found = audible_overlap(batch, num_samples, record(3200, 0, 3200), audible_db=audible_db)[0]
        # Frames 9 (samples 2880 … 3280) and 20 (6400 … 6800, none) around frames 10 … 19.
        assert bool(found[9]) == wanted and not found[20] and found[10:19].all() and not found[8]
    even = audible_overlap(batch, num_samples, record(3200, 0, 3200), audible_db=0.0)[0]
    assert even[10:19].all(), "as loud as the loudest is within 0 dB"


def test_what_lies_behind_the_second_speakers_end_plays_no_part() -> None:
    second = np.full(8000, 100.0)
    batch, num_samples = pair(second)
    batch[1, 8000:] = 1e5
    assert audible_overlap(batch, num_samples, record(0, 1600, 6400))[0, :19].all()
    assert not audible_overlap(torch.zeros_like(batch), num_samples, record(0, 0, 6400)).any()
    ended = audible_overlap(batch, torch.tensor([3600, 8000]), record(0, 1600, 6400))[0]
    assert ended[: num_frames(3600)].all() and not ended[num_frames(3600) :].any()


def test_frame_energies_are_mean_squares_of_400_samples() -> None:
    signal = np.random.default_rng(0).standard_normal(2000)
    wanted = [np.mean(signal[320 * frame : 320 * frame + 400] ** 2) for frame in range(6)]
    np.testing.assert_allclose(frame_energies(torch.from_numpy(signal)).numpy(), wanted, rtol=1e-5)
    assert len(frame_energies(torch.zeros(399))) == 0


# Degraded audio


def test_the_telephone_passes_300_to_3400_hz_of_any_length() -> None:
    rng = np.random.default_rng(0)
    for samples in (16_000, 15_999, 4321):
        noise = np.round(2000 * rng.standard_normal(samples)).astype(np.int16)
        found = telephone(noise)
        power, before = (np.abs(np.fft.rfft(x.astype(float))) ** 2 for x in (found, noise))
        hertz = np.fft.rfftfreq(samples, 1 / 16_000)
        band = (hertz >= 300) & (hertz <= 3400)
        assert power[~band].mean() < 1e-4 * before[~band].mean()  # rounding to integers alone
        np.testing.assert_allclose(power[band].sum(), before[band].sum(), rtol=1e-3)
        assert found.dtype == np.int16 and len(found) == samples
    assert len(telephone(np.zeros(0, np.int16))) == 0


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
def test_the_noise_is_white_at_the_asked_ratio(snr_db: float) -> None:
    clean = np.round(3000 * np.sin(0.2 * np.arange(32_000))).astype(np.int16)
    noise = add_noise(clean, snr_db, seed=1, name=7).astype(float) - clean
    assert 10 * np.log10(np.mean(clean.astype(float) ** 2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.05)
    power = np.abs(np.fft.rfft(noise)) ** 2
    quarters = np.array([part.mean() for part in np.array_split(power, 4)])
    np.testing.assert_allclose(quarters / quarters.mean(), 1, atol=4 / np.sqrt(4000))


# Features


def context_by_hand(frames: np.ndarray, width: int) -> np.ndarray:
    last = len(frames) - 1
    return np.stack(
        [np.concatenate([frames[min(max(at + step, 0), last)] for step in range(-width, width + 1)]) for at in range(len(frames))]
    )


def test_mfcc_and_log_mel_stand_with_five_frames_to_each_side() -> None:
    audio = np.stack([speech_like(0.5, seed) for seed in (0, 1)])
    mfcc = [mfcc_features(one).numpy() for one in audio]
    raw, wide = MfccFeatures()(audio, [0, 1])
    spectra, wide_spectra = LogMelFeatures()(audio, [0, 1])
    for row in (0, 1):
        np.testing.assert_allclose(raw[row].numpy(), mfcc[row])
        np.testing.assert_allclose(wide[row].numpy(), context_by_hand(mfcc[row], 5))
        np.testing.assert_allclose(wide_spectra[row].numpy(), context_by_hand(spectra[row].numpy(), 5))
    assert MfccFeatures().dims == (raw.shape[2], wide.shape[2]) == (39, 429)
    assert LogMelFeatures().dims == (spectra.shape[2], wide_spectra.shape[2]) == (40, 440)
    only_wide = MfccFeatures()(audio, [1])
    assert len(only_wide) == 1 and torch.equal(only_wide[0], wide)
    # Samples are taken in [−1, 1), where the floor of the log-mels is 1e-7: faint audio lies on it.
    faint = np.round(audio / 3000).astype(np.int16)
    (found,) = LogMelFeatures()(faint, [0])
    wanted, unscaled = (normalised_log_mel(torch.from_numpy(faint).double() / scale) for scale in (32768, 1))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert (wanted - unscaled).abs().max() > 0.5


@pytest.mark.parametrize("pre_norm", [True, False])
def test_features_of_an_encoder_are_its_hidden_states_in_evaluation(pre_norm: bool) -> None:
    sizes = {"conv_dims": (8,) * 7, "dim": 16, "ffn_dim": 16, "heads": 2, "layers": 2, "positional_kernel": 8}
    config = WavLMConfig(**sizes, positional_groups=2, pre_norm=pre_norm)
    torch.manual_seed(3)
    wanted = WavLM(config)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    untrained = EncoderFeatures.untrained(config, 3, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(untrained.model.parameters(), wanted.parameters(), strict=True))
    assert untrained.settings is not None and untrained.settings["seed"] == 3
    assert untrained.standardise == pre_norm and untrained.dims == (16, 16, 16)
    audio = speech_like(0.5)[None] // 2 + 4000  # a constant part that nothing may take away
    with torch.no_grad():
        states = wanted.eval().extract(torch.from_numpy(audio).float() / 32768, layers=[2, 0])
    for found, state in zip(untrained(audio, [2, 0]), states, strict=True):
        torch.testing.assert_close(found, state, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_seconds", [30.0, 0.7])
def test_every_frame_keeps_its_own_phone_also_where_an_utterance_is_cut(max_seconds: float) -> None:
    lengths = (30, 35, 36, 100, 101, 30)
    # Each frame carries its number, its phone is its number modulo 7.
    made = planted_set(
        {f"s{n}": [(np.arange(length)[:, None] / 100 + n, np.arange(length) % 7)] for n, length in enumerate(lengths)}, "abcdefg"
    )
    seen: dict[int, list[int]] = {}
    batches = []

    class Batches(Planted):
        def __call__(self, waveforms, layers):
            batches.append(waveforms.shape)
            return super().__call__(waveforms, layers)

    for piece in stream(Batches(((0,),)), made, [0], max_seconds=max_seconds, batch_seconds=2.0):
        numbers = np.round((piece.features[0][:, 0].numpy() - piece.utterance) * 100).astype(int)
        assert (np.diff(numbers) == 1).all() and piece.phones.tolist() == (numbers % 7).tolist()
        assert len(numbers) <= max_seconds * 50
        seen.setdefault(piece.utterance, []).extend(numbers.tolist())
    assert {number: sorted(frames) for number, frames in seen.items()} == {n: list(range(of)) for n, of in enumerate(lengths)}
    assert all(rows * num_frames(samples) <= 100 or rows == 1 for rows, samples in batches), "2 s are 100 frames"
    assert [shape[1] for shape in batches] == sorted(shape[1] for shape in batches), "shortest first"


def test_audio_is_changed_as_a_whole_before_it_is_cut() -> None:
    made = planted_set({"a": [(np.tile(np.arange(100)[:, None] / 100, 8), np.zeros(100, dtype=int))]}, "x")
    found = [
        piece.features[0][:, 0].numpy()
        for piece in stream(
            Planted(((7,),)), made, [0], max_seconds=0.7, change=lambda audio: np.append(audio[:-80][::-1], audio[-80:])
        )
    ]
    assert np.concatenate(found) == pytest.approx(np.arange(99, -1, -1) / 100, abs=1e-3)


def test_units_start_from_their_own_seed_and_have_twenty_frames_each() -> None:
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.standard_normal((900, 3)).astype(np.float32))
    books = [fit_units(frames, 12, seed) for seed in (0, 1, 0)]
    assert torch.equal(books[0].centroids, books[2].centroids) and not torch.equal(books[0].centroids, books[1].centroids)
    assert [len(fit_units(frames[:count], 12, 0)) for count in (900, 240, 239, 40, 19)] == [12, 12, 11, 2, 1]
    assert len(fit_units(frames, 12, 0, frames_per_cluster=100)) == 9


def test_units_are_the_means_of_all_frames_nearest_to_them() -> None:
    # 6,000 frames are far more than the 50 a cluster that the start is drawn from.
    rng = np.random.default_rng(3)
    frames = (rng.integers(0, 3, 6000)[:, None] * 4 + rng.standard_normal((6000, 2))).astype(np.float32)
    book = fit_units(torch.from_numpy(frames), 3, 0)
    nearest = np.square(frames[:, None].astype(np.float64) - book.centroids.numpy()).sum(axis=2).argmin(axis=1)
    means = np.stack([frames[nearest == unit].astype(np.float64).mean(axis=0) for unit in range(3)])
    # The passes stop when the centroids move by less than a hundredth of the deviation together.
    np.testing.assert_allclose(book.centroids.numpy(), means, atol=0.01 * frames.std())
    sample = frames[:: len(frames) // 150]
    assert np.abs(np.sort(means, axis=0) - np.sort(sample.mean(axis=0))).max() > 1, "means of the sample lie elsewhere"
    one_pass = fit_units(torch.from_numpy(frames), 3, 0, max_iter=1)
    assert not torch.equal(one_pass.centroids, book.centroids)


def test_units_start_from_frames_spread_over_all_that_they_are_fitted_on() -> None:
    # The first 500 of 2,000 frames are of one of four far clusters: started from them alone k-means never finds the others.
    rng = np.random.default_rng(0)
    blob = np.concatenate([np.zeros(500, dtype=int), rng.integers(1, 4, 1500)])
    centres = np.array([[0.0, 0.0], [90.0, 0.0], [0.0, 90.0], [90.0, 90.0]])
    frames = (centres[blob] + rng.standard_normal((2000, 2))).astype(np.float32)
    for seed in range(3):
        units = fit_units(torch.from_numpy(frames), 4, seed).assign(frames)
        assert len(set(zip(units.tolist(), blob.tolist(), strict=True))) == 4


# Sets


def utterance(frames: int, speaker: str, name: str = "", phones: int = 0) -> ProbeUtterance:
    audio = np.random.default_rng(frames).integers(-9000, 9000, 320 * (frames - 1) + 400).astype(np.int16)
    return ProbeUtterance(audio, np.full(frames, phones, dtype=np.int64), speaker, name)


def test_a_set_of_so_many_seconds_takes_an_utterance_of_each_speaker_in_turn_until_the_next_would_be_too_much() -> None:
    sizes = (("a", 50), ("a", 50), ("a", 50), ("b", 50), ("c", 60), ("c", 50))
    made = ProbeSet(tuple(utterance(frames, speaker, f"{speaker}{n}") for n, (speaker, frames) in enumerate(sizes)), ("x",))
    assert made.frames == 310 and made.seconds == 6.2

    def taken(seconds: float) -> list[str]:
        return [one.name for one in made.spread_over_speakers(seconds).utterances]

    assert taken(3.2) == ["a0", "b3", "c4"], "exactly as much as is allowed"
    assert taken(3.18) == ["a0", "b3"] and taken(0.1) == ["a0"]
    assert taken(4.2) == ["a0", "a1", "b3", "c4"] and taken(5.2) == ["a0", "a1", "b3", "c4", "c5"]
    assert made.spread_over_speakers(6.2) is made


def test_the_name_of_a_set_changes_with_its_phones_speakers_audio_and_inventory() -> None:
    base = (utterance(50, "a"), utterance(60, "b"))
    sets = [
        ProbeSet(base, ("x", "y")),
        ProbeSet((utterance(50, "a", phones=1), base[1]), ("x", "y")),
        ProbeSet((utterance(50, "c"), base[1]), ("x", "y")),
        ProbeSet((base[0], utterance(61, "b")), ("x", "y")),
        ProbeSet(base, ("x", "z")),
        ProbeSet(base[:1], ("x", "y")),
    ]
    assert len({one.fingerprint for one in sets}) == len(sets)
    assert ProbeSet((utterance(50, "a", "other name"), base[1]), ("x", "y")).fingerprint == sets[0].fingerprint


def test_one_utterance_or_one_in_a_thousand_may_be_unreadable() -> None:
    def broken() -> np.ndarray:
        raise UnreadableAudio("row 3 does not decode")

    sound = utterance(50, "a")
    damaged = ProbeUtterance(broken, sound.phones, "a")
    assert readable([sound, damaged, sound]) == [0, 2]
    with pytest.raises(ValueError, match="2 of 4 are"):
        readable([sound, damaged, damaged, sound])
    assert len(readable([sound] * 2997 + [damaged] * 3)) == 2997
    with pytest.raises(ValueError, match="4 of 3000 are"):
        readable([sound] * 2996 + [damaged] * 4)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    made = make_shard_set(folder, speakers=3, utterances=4, seconds=(0.8, 1.6), seed=5)
    phone_times(made, folder / "phones.tsv")
    return made


def test_codebooks_are_fitted_on_rows_in_the_order_of_their_audios_hashes(shards: Path) -> None:
    index = Index.open(shards)
    rows = np.array([1, 2, 3, 5, 7, 8, 10, 11])
    frames = {row: num_frames(int(index.num_samples[row])) for row in rows.tolist()}
    for seed in (0, 6):
        order = sorted(frames, key=lambda row: stable_hash(f"{seed}/{int(index.pcm[row])}"))
        for seconds in (0.1, 3.0, (sum(frames[row] for row in order[:4]) + 0.5) / 50, 99.0):
            total, wanted = 0, []
            for row in order:
                total += frames[row]
                if wanted and total > seconds * 50:
                    break
                wanted.append(row)
            found = speech_set(shards, rows, seconds, ("a", "b"), seed)
            assert [index.recordings[int(index.recording[row])].split("/", 1)[1] for row in wanted] == [
                one.name for one in found.utterances
            ]
            assert [one.speaker for one in found.utterances] == [index.speakers[int(index.speaker[row])] for row in wanted]


def test_judged_rows_are_an_utterance_of_each_speaker_in_turn(shards: Path) -> None:
    index = Index.open(shards)
    frames = [num_frames(int(count)) for count in index.num_samples[:]]
    speaker = index.speaker[:].tolist()
    own = [row for row in range(12) if speaker[row] == speaker[0]]
    few = [*own[:3], *(row for row in range(12) if row not in own and row > own[1])]
    for rows in (list(range(12)), few):
        in_turn = sorted(rows, key=lambda row: (sum(speaker[other] == speaker[row] for other in rows if other < row), row))
        for count in (1, 2, 3, 5, len(rows)):
            seconds = (sum(frames[row] for row in in_turn[:count]) + 0.5) / 50
            assert _in_turn(index, rows, seconds) == sorted(in_turn[:count])
        assert _in_turn(index, rows, 0.01) == in_turn[:1]
    assert in_turn[:2] != few[:2], "the first speaker has the first two rows"


def test_recordings_without_an_alignment_are_refused_and_phones_are_folded(shards: Path) -> None:
    times = read_phone_times(shards.parent / "phones.tsv")
    renamed = {
        name: [segment._replace(phone={"a": "AA1", "b": "B"}[segment.phone]) for segment in of] for name, of in times.items()
    }
    for folding, wanted in (("none", ("AA1", "B")), ("arpabet", ("aa", "b"))):
        assert judged_set(shards, np.arange(12), renamed, folding=folding).utterances.inventory == wanted
    half = dict(list(times.items())[::2])
    with pytest.raises(ValueError, match="may lack an alignment, but 6 of 12 do"):
        judged_set(shards, np.arange(12), half)
    assert len(judged_set(shards, np.arange(12), half, max_unmatched_share=0.5).rows) == 6


@pytest.mark.parametrize("phones", [23, 25])
def test_more_or_fewer_phones_than_frames_are_refused(phones: int) -> None:
    sound = np.zeros(320 * 23 + 400, np.int16)
    assert len(ProbeUtterance(sound, np.zeros(24, dtype=np.int64), "a").recorded()) == len(sound)
    with pytest.raises(ValueError, match=f"has 24 frames and {phones} phones"):
        ProbeUtterance(sound, np.zeros(phones, dtype=np.int64), "a").recorded()


def test_silences_count_as_a_phone_or_as_none_and_frames_get_their_rows_phones(shards: Path) -> None:
    times = read_phone_times(shards.parent / "phones.tsv")
    as_silence = {
        name: [segment._replace(phone={"b": "sil"}.get(segment.phone, "a")) for segment in of] for name, of in times.items()
    }
    with_it = judged_set(shards, np.arange(12), as_silence)
    without = judged_set(shards, np.arange(12), as_silence, with_silence=False)
    assert with_it.utterances.inventory == ("a", "sil") and without.utterances.inventory == ("a",)
    found = probe_set(shards, times, inventory(times))
    by_name = {one.name: one for one in found.utterances}
    assert len(by_name) == 12 and with_it.rows == tuple(range(12))
    for row, one, bare in zip(with_it.rows, with_it.utterances.utterances, without.utterances.utterances, strict=True):
        centres = 320 * np.arange(one.frames) + 200
        last = round(float(times[one.name][-1].end_s) * 16_000)
        wanted = np.where(centres < last, centres // 3200 % 2, -1)
        assert one.phones.tolist() == wanted.tolist() == by_name[one.name].phones.tolist()
        assert bare.phones.tolist() == np.where(wanted == 1, -1, wanted).tolist()
        assert np.array_equal(one.waveform(), by_name[one.name].waveform()) and with_it.keys[row].startswith(one.name[-6:])


def test_a_share_of_unmatched_recordings_is_of_all_recordings() -> None:
    def of(found: int, unknown: int, ambiguous: int) -> Matches:
        clips = {row: [Clip("x", 0, 400, 0.0)] for row in range(found)}
        return Matches(clips, ["u"] * unknown, ["m"] * ambiguous, [])

    of(9, 1, 0).check(0.1, "here")
    of(8, 1, 1).check(0.2, "here")
    for found, unknown, ambiguous, share in ((8, 1, 1, 0.19), (9, 1, 0, 0.09), (0, 0, 0, 1.0)):
        with pytest.raises(ValueError, match="may lack an alignment"):
            of(found, unknown, ambiguous).check(share, "here")


def test_planted_numbers_are_read_back_as_they_were_written() -> None:
    rng = np.random.default_rng(0)
    values, phones = rng.uniform(-7, 7, (60, 8)), rng.integers(0, 2, 60)
    made = planted_set({"a": [(values, phones)]}, "xy")
    found, known = frames_of(made, range(8))
    np.testing.assert_allclose(found, values, atol=1 / 8000)
    assert known.tolist() == phones.tolist()
