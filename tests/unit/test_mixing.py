"""Utterance mixing: what is drawn (Algorithm 1 of WavLM), what is added (measured in dB), and Microsoft's own behaviour."""

import math

import numpy as np
import pytest
import torch

from openwavlm.batches import mixing as mixing_module
from openwavlm.batches.batch import MixRecord
from openwavlm.batches.mixing import check_noise_bank, draw_mixing, draw_noise_clips, mix
from openwavlm.batches.settings import Mixing
from openwavlm.runtime.randomness import words

ALWAYS = Mixing(prob=1.0)


def draw(mixing, num_samples, readable=None, seed=0, noise_num_samples=None, source=5, epoch=0, micro=0):
    num_samples = np.asarray(num_samples)
    readable = np.ones(len(num_samples), dtype=bool) if readable is None else np.asarray(readable)
    return draw_mixing(
        mixing, num_samples, readable, seed, source=source, epoch=epoch, micro=micro, noise_num_samples=noise_num_samples
    )


def record_of(*mixtures):
    """A record from tuples (row, partner, start, partner_start, length, ratio_db)."""
    *integers, ratios = zip(*mixtures, strict=True)
    return MixRecord(*(torch.tensor(column) for column in integers), torch.tensor(ratios), max_length=max(integers[4]))


def signals(num_samples, seed=0, padding=0.0):
    """Noise of a different level a row, `padding` after the valid samples."""
    generator = torch.Generator().manual_seed(seed)
    waveforms = torch.randn(len(num_samples), max(num_samples), generator=generator)
    waveforms *= torch.logspace(-2, 0, len(num_samples))[:, None]
    for waveform, valid in zip(waveforms, num_samples, strict=True):
        waveform[valid:] = padding
    return waveforms, torch.tensor(num_samples)


def naive_mixing(waveforms, num_samples, record, noise=None, noise_num_samples=None):
    """Algorithm 1, line by line, in float64."""
    clean, output = waveforms.double(), waveforms.double().clone()
    for i in range(len(record)):
        row, partner, length = int(record.row[i]), int(record.partner[i]), int(record.length[i])
        primary = clean[row, : num_samples[row]]
        if partner < len(clean):
            secondary = clean[partner, : num_samples[partner]]
        else:
            secondary = noise[partner - len(clean), : noise_num_samples[partner - len(clean)]].double()
        if secondary.square().mean() == 0:
            continue
        scale = math.sqrt(primary.square().mean() / (10 ** (float(record.energy_ratio_db[i]) / 10) * secondary.square().mean()))
        for offset in range(length):
            output[row, record.start[i] + offset] += scale * secondary[record.partner_start[i] + offset]
    return output.float()


# What is drawn.


def test_one_row_in_five_is_mixed():
    mixed = np.concatenate([np.bincount(draw(Mixing(), [1000] * 50, seed=s).row, minlength=50) for s in range(400)])
    assert mixed.max() == 1
    assert mixed.mean() == pytest.approx(0.2, abs=0.01)


def test_lengths_are_uniform_from_one_sample_to_half_of_the_primary():
    lengths = np.concatenate([draw(ALWAYS, [21] * 50, seed=s).length for s in range(100)])
    counts = np.bincount(lengths, minlength=11)
    assert len(counts) == 11
    assert counts[0] == 0
    assert np.abs(counts[1:] / 500 - 1).max() < 0.2


def test_a_length_is_measured_on_the_primary_and_never_passes_its_partner():
    num_samples = np.array([1000, 300, 10])
    for seed in range(200):
        record = draw(ALWAYS, num_samples, seed=seed)
        own, other = num_samples[record.row.numpy()], num_samples[record.partner.numpy()]
        length = record.length.numpy()
        assert np.all((length >= 1) & (length <= own // 2) & (length <= other))
        assert np.all((record.start.numpy() >= 0) & (record.start.numpy() + length <= own))
        assert np.all((record.partner_start.numpy() >= 0) & (record.partner_start.numpy() + length <= other))
        assert record.max_length == length.max()


def test_positions_reach_both_ends():
    records = [draw(ALWAYS, [6] * 20, seed=s) for s in range(100)]
    for column in ("start", "partner_start"):
        start = np.concatenate([getattr(record, column) for record in records])
        length = np.concatenate([record.length for record in records])
        for chosen in (1, 2, 3):
            counts = np.bincount(start[length == chosen], minlength=7 - chosen)
            assert len(counts) == 7 - chosen
            assert np.abs(counts / counts.mean() - 1).max() < 0.3


def test_energy_ratios_are_uniform_between_their_limits():
    ratios = np.concatenate([draw(ALWAYS, [1000] * 50, seed=s).energy_ratio_db for s in range(100)])
    counts, _ = np.histogram(ratios, bins=10, range=(-5, 5))
    assert counts.sum() == 5000
    assert np.abs(counts / 500 - 1).max() < 0.2


def test_a_row_is_never_its_own_partner_and_all_others_are_equally_probable():
    counts = np.zeros((5, 5))
    for seed in range(1500):
        record = draw(ALWAYS, [1000] * 5, seed=seed)
        counts[record.row, record.partner] += 1
    assert np.all(np.diag(counts) == 0)
    assert np.abs(counts[~np.eye(5, dtype=bool)] / 375 - 1).max() < 0.25


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_with_probability_one_every_row_is_mixed_once(batch):
    for seed in range(20):
        assert draw(ALWAYS, [1000] * batch, seed=seed).row.tolist() == list(range(batch))


def test_all_draws_are_keyed_by_seed_source_epoch_and_micro_batch_and_none_is_used_twice(monkeypatch):
    asked = []

    def record(seed, purpose, count, **place):
        asked.append((purpose, seed, count, place))
        return words(seed, purpose, count, **place)

    monkeypatch.setattr(mixing_module, "words", record)
    noisy, place = Mixing(prob=1.0, noise_prob=1.0), {"source": 5, "epoch": 6, "micro": 7}
    draw_noise_clips(noisy, 4, 9, 8, **place)
    assert sorted(asked) == [(f"mix.{purpose}", 8, 4, place) for purpose in ("clip", "kind", "trigger")]
    asked.clear()
    draw(noisy, [1000] * 4, seed=8, noise_num_samples=np.full(4, 500), **place)
    purposes = ("kind", "length", "partner", "partner_start", "ratio", "start", "trigger")
    assert sorted(asked) == [(f"mix.{purpose}", 8, 4, place) for purpose in purposes]


def test_the_longest_overlap_is_that_of_a_mixture_and_not_of_a_row_that_is_not_mixed():
    records = [draw(Mixing(prob=0.3), [1000] * 5, seed=seed) for seed in range(50)]
    assert [record.max_length for record in records] == [max(record.length.tolist(), default=0) for record in records]
    assert {len(record) for record in records} > {0, 1, 2}


def test_partner_length_places_and_ratio_of_a_mixture_are_independent():
    records = [draw(ALWAYS, [4001] * 50, seed=seed) for seed in range(100)]
    row, partner, start, partner_start, length, ratio = (
        np.concatenate([getattr(record, name) for record in records]).astype(np.float64)
        for name in ("row", "partner", "start", "partner_start", "length", "energy_ratio_db")
    )
    columns = [(partner - row) % 50, start / (4001 - length), partner_start / (4001 - length), length, ratio, row]
    correlation = np.corrcoef(columns) - np.eye(6)
    assert np.abs(correlation).max() < 4.5 / len(row) ** 0.5


def test_a_row_alone_in_its_batch_stays_as_it_is_or_takes_noise():
    assert len(draw(ALWAYS, [1000])) == 0
    record = draw(Mixing(prob=1.0, noise_prob=1.0), [1000], noise_num_samples=np.array([700]))
    assert record.partner.tolist() == [1]


def test_an_unreadable_row_is_no_primary_and_no_partner_and_moves_no_other_draw():
    readable = np.array([True, True, False, True, True, True])
    for seed in range(100):
        whole, part = draw(ALWAYS, [1000] * 6, seed=seed), draw(ALWAYS, [1000] * 6, readable, seed=seed)
        kept = (whole.row != 2) & (whole.partner != 2)
        for column in ("row", "partner", "start", "partner_start", "length", "energy_ratio_db"):
            assert torch.equal(getattr(part, column), getattr(whole, column)[kept])


def test_an_unreadable_noise_clip_is_not_mixed_and_moves_no_other_draw():
    mixing = Mixing(prob=1.0, noise_prob=1.0)
    whole = draw(mixing, [1000] * 4, noise_num_samples=np.array([500, 500, 500, 500]))
    part = draw(mixing, [1000] * 4, noise_num_samples=np.array([500, 0, 500, 500]))
    assert part.row.tolist() == [0, 2, 3]
    assert part.partner.tolist() == [4, 6, 7]
    assert torch.equal(part.length, whole.length[[0, 2, 3]])


def test_noise_is_mixed_into_its_share_of_the_mixtures_with_its_own_ratios():
    mixing, noisy, speech, ratios = Mixing(prob=0.5, noise_prob=0.3), 0, 0, []
    for seed in range(200):
        clips = draw_noise_clips(mixing, 50, 7, seed, source=5, epoch=0, micro=0)
        assert clips.shape == (50,)
        assert clips.dtype == np.int64
        chosen = clips[clips >= 0]
        record = draw(mixing, [1000] * 50, seed=seed, noise_num_samples=np.full(len(chosen), 800))
        with_noise = record.partner >= 50
        assert record.row[with_noise].tolist() == np.flatnonzero(clips >= 0).tolist()
        assert record.partner[with_noise].tolist() == list(range(50, 50 + len(chosen)))
        noisy, speech = noisy + len(chosen), speech + int((~with_noise).sum())
        ratios.append(record.energy_ratio_db[with_noise].numpy())
    assert noisy / (noisy + speech) == pytest.approx(0.3, abs=0.02)
    counts, _ = np.histogram(np.concatenate(ratios), bins=5, range=(-5, 20))
    assert counts.sum() == noisy
    assert np.abs(counts / counts.mean() - 1).max() < 0.2


def test_every_noise_clip_is_equally_probable():
    mixing = Mixing(prob=1.0, noise_prob=1.0)
    clips = np.concatenate([draw_noise_clips(mixing, 50, 7, seed, source=5, epoch=0, micro=0) for seed in range(100)])
    assert np.abs(np.bincount(clips, minlength=7) / (5000 / 7) - 1).max() < 0.2


def test_a_noise_clip_shorter_than_the_overlap_is_used_whole():
    mixing = Mixing(prob=1.0, noise_prob=1.0)
    record = draw(mixing, [10_000] * 20, noise_num_samples=np.full(20, 5))
    assert int((record.length == 5).sum()) >= 19
    assert torch.all(record.partner_start[record.length == 5] == 0)


def test_switching_noise_on_moves_no_speech_mixture():
    off, on = Mixing(prob=0.6), Mixing(prob=0.6, noise_prob=0.4)
    clips = draw_noise_clips(on, 40, 3, 0, source=5, epoch=0, micro=0)
    before = draw(off, [1000] * 40)
    after = draw(on, [1000] * 40, noise_num_samples=np.full((clips >= 0).sum(), 900))
    speech = after.partner < 40
    assert 0 < int(speech.sum()) < len(after)
    kept = torch.isin(before.row, after.row[speech])
    for column in ("row", "partner", "start", "partner_start", "length", "energy_ratio_db"):
        assert torch.equal(getattr(after, column)[speech], getattr(before, column)[kept])


def test_a_record_is_a_function_of_its_key_alone():
    assert draw(ALWAYS, [1000] * 8).fingerprint() == draw(ALWAYS, [1000] * 8).fingerprint()
    for key in ({"seed": 1}, {"source": 6}, {"epoch": 1}, {"micro": 1}):
        assert draw(ALWAYS, [1000] * 8).fingerprint() != draw(ALWAYS, [1000] * 8, **key).fingerprint(), key


@pytest.mark.parametrize("mode", ["paper", "unispeech"])
def test_no_rows_and_rows_without_samples_give_an_empty_record(mode):
    mixing = Mixing(prob=1.0, mode=mode)
    assert len(draw(mixing, np.zeros(0, dtype=np.int64))) == 0
    assert len(draw(mixing, [0, 0, 0])) == 0
    assert len(draw(mixing, [800, 800], readable=[False, False])) == 0


def test_a_primary_of_one_sample_is_too_short_to_be_mixed():
    record = draw(ALWAYS, [1, 1000])
    assert record.row.tolist() == [1]


def test_a_wrong_number_of_noise_clips_is_refused():
    with pytest.raises(ValueError, match="2, but has 0"):
        draw(Mixing(prob=1.0, noise_prob=1.0), [1000, 1000])


def test_noise_without_a_bank_is_refused():
    mixing = Mixing(noise_prob=0.1)
    with pytest.raises(ValueError, match=r"mixing\.noise_prob .*is 0\.1"):
        check_noise_bank(mixing, 0)
    with pytest.raises(ValueError, match="noise bank"):
        draw_noise_clips(mixing, 4, 0, 0, source=0, epoch=0, micro=0)
    check_noise_bank(mixing, 1)
    check_noise_bank(Mixing(prob=0.0, noise_prob=0.1), 0)
    assert draw_noise_clips(Mixing(), 4, 0, 0, source=0, epoch=0, micro=0).tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"prob": 1.2}, r"mixing\.prob .*is 1\.2"),
        ({"noise_prob": -0.1}, r"mixing\.noise_prob .*is -0\.1"),
        ({"speech_db": (5, -5)}, r"mixing\.speech_db .*is \[5\.0, -5\.0\]"),
        ({"noise_db": (0, float("inf"))}, r"mixing\.noise_db"),
        ({"noise_db": (1,)}, r"mixing\.noise_db"),
        ({"speech_db": (-float("inf"), 0)}, r"mixing\.speech_db"),
        ({"speech_db": (1, 2, 3)}, r"mixing\.speech_db"),
        ({"speech_db": (0, float("nan"))}, r"mixing\.speech_db"),
        ({"prob": -0.1}, r"mixing\.prob .*is -0\.1"),
        ({"noise_prob": 1.01}, r"mixing\.noise_prob .*is 1\.01"),
        ({"max_share": 1.01}, r"mixing\.max_share .*is 1\.01"),
        ({"max_share": 0.0}, r"mixing\.max_share .*is 0\.0"),
        ({"mode": "espnet"}, r"mixing\.mode .*is 'espnet'"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting, message):
    with pytest.raises(ValueError, match=message):
        Mixing(**setting)


@pytest.mark.parametrize("name", ["speech_db", "noise_db"])
def test_settings_at_the_borders_of_their_ranges_are_allowed(name):
    """A single energy ratio too: it is then that of every mixture."""
    fixed = Mixing(**{"prob": 1.0, "noise_prob": float(name == "noise_db"), name: (3, 3), "max_share": 1.0})
    noise = np.full(40, 700) if name == "noise_db" else None
    record = draw(fixed, [1000] * 40, **({} if noise is None else {"noise_num_samples": noise}))
    assert len(record) == 40 and record.energy_ratio_db.tolist() == [3.0] * 40
    assert getattr(fixed, name) == (3.0, 3.0) and all(isinstance(limit, float) for limit in getattr(fixed, name))
    assert len(draw(Mixing(prob=0.0), [1000] * 40)) == 0


def test_limits_may_come_as_lists_and_leave_the_settings_hashable():
    assert Mixing(speech_db=[-5, 5]) == Mixing()
    assert hash(Mixing(speech_db=[-5, 5])) == hash(Mixing())


# What is added.


def test_the_added_signal_has_the_drawn_energy_ratio():
    # Long overlaps of stationary noise: the energy of the overlap stands for the energy of the utterance.
    num_samples = [64_000, 64_000, 48_000, 64_000]
    waveforms, valid = signals(num_samples)
    record = record_of((0, 3, 100, 0, 30_000, -5.0), (1, 0, 0, 9, 32_000, 0.0), (2, 1, 24_000, 7, 24_000, 5.0))
    difference = mix(waveforms, valid, record) - waveforms
    for row, start, length, ratio_db in zip(record.row, record.start, record.length, record.energy_ratio_db, strict=True):
        added = difference[row, start : start + length]
        energy = waveforms[row, : num_samples[row]].square().mean()
        assert 10 * torch.log10(energy / added.square().mean()) == pytest.approx(float(ratio_db), abs=0.1)


@pytest.mark.parametrize(("ratio_db", "gain"), [(0.0, 3.0), (20.0, 0.3), (-20.0, 30.0), (10 * np.log10(9), 1.0)])
@pytest.mark.parametrize("noisy", [False, True])
def test_the_secondary_is_scaled_to_the_primarys_energy_over_the_ratio(ratio_db, gain, noisy):
    # Mean energies 9 and 1: gain = sqrt(9 / (1 · 10^(ratio / 10))).
    alternating = np.tile([1.0, -1.0], 50)
    waveforms = torch.from_numpy(np.stack([3 * alternating, alternating])).float()
    record = record_of((0, 2 if noisy else 1, 10, 20, 30, ratio_db))
    noise = (waveforms[1:], torch.tensor([100])) if noisy else ()
    output = mix(waveforms, torch.tensor([100, 100]), record, *noise).double().numpy()
    expected = 3 * alternating
    expected[10:40] += gain * alternating[20:50]
    np.testing.assert_allclose(output[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(output[1], alternating)


def test_the_ratio_holds_for_the_whole_utterance_not_for_the_overlap():
    # The secondary is silent but for its last tenth, which alone is mixed in: over the whole utterance it is 10 dB weaker.
    waveforms = torch.ones(2, 1000)
    waveforms[1, :900] = 0
    output = mix(waveforms, torch.tensor([1000, 1000]), record_of((0, 1, 200, 900, 100, 3.0)))
    added = (output - waveforms)[0, 200:300]
    assert 10 * torch.log10(1 / added.square().mean()) == pytest.approx(3.0 - 10.0, abs=0.01)


def test_nothing_changes_outside_of_the_overlap():
    waveforms, valid = signals([900, 1000, 500], padding=7.0)
    output = mix(waveforms, valid, record_of((0, 1, 600, 0, 300, 0.0), (2, 0, 0, 650, 250, 0.0)))
    changed = output != waveforms
    expected = torch.zeros_like(changed)
    expected[0, 600:900] = expected[2, :250] = True
    assert torch.equal(changed, expected)


def test_partners_are_taken_from_the_clean_batch_and_the_input_stays_as_it_is():
    waveforms, valid = signals([1000] * 3)
    before = waveforms.clone()
    chain = record_of((0, 1, 0, 0, 500, -5.0), (1, 2, 0, 0, 500, -5.0), (2, 0, 0, 0, 500, -5.0))
    output = mix(waveforms, valid, chain)
    assert torch.equal(waveforms, before)
    for i in range(3):
        alone = MixRecord(
            **{name: value[i : i + 1] for name, value in vars(chain).items() if name != "max_length"}, max_length=500
        )
        assert torch.equal(mix(waveforms, valid, alone)[i], output[i])


@pytest.mark.parametrize("silent", [0, 1])
def test_where_one_of_the_two_is_silent_nothing_is_added(silent):
    waveforms, valid = signals([1000, 1000, 1000])
    waveforms[silent] = 0
    output = mix(
        waveforms, valid, record_of((0, 1, 0, 0, 400, 0.0), (2, 0, 50, 50, 400, 0.0) if silent == 1 else (2, 1, 0, 0, 9, 0.0))
    )
    assert torch.equal(output[0], waveforms[0])
    assert torch.isfinite(output).all()
    assert not torch.equal(output[2], waveforms[2])


def test_padding_enters_no_energy():
    num_samples = [1000, 400, 700]
    record = record_of((0, 1, 10, 5, 300, 2.0), (1, 2, 0, 0, 200, 1.0), (2, 0, 0, 0, 350, -3.0))
    quiet, loud = signals(num_samples)[0], signals(num_samples, padding=50.0)[0]
    valid = torch.tensor(num_samples)
    difference = [mix(waveforms, valid, record) - waveforms for waveforms in (quiet, loud)]
    torch.testing.assert_close(difference[0], difference[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("noisy", [False, True])
def test_the_vectorised_mixing_equals_algorithm_1_line_by_line(noisy):
    num_samples = [1000, 731, 400, 999, 640, 2]
    mixing = Mixing(prob=0.8, noise_prob=0.5 if noisy else 0.0)
    mixed = 0
    for seed in range(20):
        waveforms, valid = signals(num_samples, seed)
        clips = draw_noise_clips(mixing, 6, 9, seed, source=5, epoch=0, micro=0)
        clip_samples = [50 + 300 * (i % 4) for i in range((clips >= 0).sum())]
        noise, noise_valid = signals(clip_samples, seed + 100, padding=3.0) if clip_samples else (None, None)
        record = draw(mixing, num_samples, seed=seed, noise_num_samples=np.array(clip_samples, dtype=np.int64))
        mixed += len(record)
        output = mix(waveforms, valid, record, noise, noise_valid)
        torch.testing.assert_close(output, naive_mixing(waveforms, valid, record, noise, noise_valid), atol=2e-6, rtol=2e-5)
    assert mixed > 50


def test_several_mixtures_of_one_row_add_up():
    waveforms, valid = signals([800, 800, 800])
    one, other = (0, 1, 100, 0, 300, 0.0), (0, 2, 200, 50, 400, 0.0)
    both = mix(waveforms, valid, record_of(one, other)) - waveforms
    apart = sum(mix(waveforms, valid, record_of(mixture)) - waveforms for mixture in (one, other))
    torch.testing.assert_close(both, apart, atol=1e-6, rtol=1e-5)


def test_a_short_overlap_at_the_end_of_the_last_row_stays_within_the_batch():
    waveforms, valid = signals([800, 800])
    record = record_of((0, 1, 0, 0, 400, 0.0), (1, 0, 797, 797, 3, 0.0))
    torch.testing.assert_close(mix(waveforms, valid, record), naive_mixing(waveforms, valid, record))


def test_an_empty_record_changes_nothing():
    waveforms, valid = signals([800, 700])
    assert torch.equal(mix(waveforms, valid, MixRecord.empty()), waveforms)
    assert torch.equal(mix(waveforms, valid, MixRecord.empty(), mode="unispeech", normalise=True), waveforms)


# Microsoft's behaviour.


def literal_unispeech(source, mixtures, noises, normalise):
    """The reference's row loop, in NumPy, on numbers that were already drawn."""
    source = source.copy()
    batch = len(source)
    for i, j, start, secondary_start, length, ratio_db in mixtures:
        reference_power = np.mean(source[i] ** 2)
        secondary = source[j] if j < batch else noises[j - batch]
        secondary_power = np.mean(secondary**2)
        scale = 0.0
        if secondary_power != 0:
            scale = (reference_power / (secondary_power * 10 ** (ratio_db / 10))) ** 0.5
        source[i, start : start + length] += scale * secondary[secondary_start : secondary_start + length].copy()
        if normalise:
            source[i] = (source[i] - source[i].mean()) / np.sqrt(source[i].var() + 1e-5)
    return source


@pytest.mark.parametrize("normalise", [False, True])
def test_the_unispeech_mode_equals_a_literal_row_loop(normalise):
    num_samples = [600, 551, 600, 400, 320]
    mixing = Mixing(prob=0.9, noise_prob=0.3, max_share=0.1, mode="unispeech")
    selves = zeros = contaminated = 0
    for seed in range(60):
        waveforms, valid = signals(num_samples, seed)
        waveforms[4] = 0
        clips = draw_noise_clips(mixing, 5, 9, seed, source=5, epoch=0, micro=0)
        clip_samples = np.array([20 + 200 * (i % 3) for i in range((clips >= 0).sum())], dtype=np.int64)
        noise = signals(clip_samples.tolist(), seed)[0] if len(clip_samples) else torch.zeros(0, 0)
        record = draw(mixing, num_samples, seed=seed, noise_num_samples=clip_samples)
        output = mix(waveforms, valid, record, noise, torch.from_numpy(clip_samples), mode="unispeech", normalise=normalise)
        columns = (record.row, record.partner, record.start, record.partner_start, record.length, record.energy_ratio_db)
        mixtures = list(zip(*(column.tolist() for column in columns), strict=True))
        noises = [clip[:n].double().numpy() for clip, n in zip(noise, clip_samples, strict=True)]
        expected = torch.from_numpy(literal_unispeech(waveforms.double().numpy(), mixtures, noises, normalise)).float()
        torch.testing.assert_close(output, expected, atol=2e-5, rtol=2e-4)
        selves += sum(i == j for i, j, *_ in mixtures)
        zeros += sum(length == 0 for *_, length, _ in mixtures)
        contaminated += sum(j < i and j in record.row.tolist() for i, j, *_ in mixtures)
    assert selves > 10
    assert zeros > 0
    assert contaminated > 10


def test_the_unispeech_mode_draws_over_the_padded_width():
    mixing, num_samples = Mixing(prob=1.0, mode="unispeech"), [10, 4, 4, 4]
    records = [draw(mixing, num_samples, seed=seed) for seed in range(1000)]
    length = np.concatenate([record.length for record in records])
    counts = np.bincount(length)
    assert len(counts) == 6  # 0 … T // 2
    assert np.abs(counts / counts.mean() - 1).max() < 0.2
    end = np.concatenate([record.start + record.length for record in records])
    assert end.max() == 10
    own = np.mean(np.concatenate([record.row == record.partner for record in records]))
    assert own == pytest.approx(1 / 4, abs=0.03)


def test_the_unispeech_mode_mixes_with_what_is_already_mixed_and_leaves_its_input_alone():
    waveforms, valid = signals([1000] * 3)
    before = waveforms.clone()
    record = record_of((0, 1, 0, 0, 500, 0.0), (2, 0, 0, 0, 500, 0.0))
    dirty = mix(waveforms, valid, record, mode="unispeech")
    clean = mix(waveforms, valid, record)
    assert torch.equal(waveforms, before)
    torch.testing.assert_close(dirty[0], clean[0])
    assert (dirty[2] - clean[2]).abs().max() > 0.1
