"""Probes find what is there, and only that: known answers on made-up features, labels and audio."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from openwavlm.audio.frames import num_frames
from openwavlm.batches.batch import MixRecord
from openwavlm.evaluation.conditions import add_noise, telephone
from openwavlm.evaluation.detection import average_precision
from openwavlm.evaluation.intervals import by_cluster, ratio_interval
from openwavlm.evaluation.mix_sets import audible_overlap
from openwavlm.evaluation.phones.alignment_files import read_tsv
from openwavlm.evaluation.phones.alignments import Segment, frame_phones, inventory_of
from openwavlm.evaluation.ridge import RidgeStatistics
from openwavlm.evaluation.sets import ProbeSet, ProbeUtterance
from openwavlm.evaluation.speakers import LinearDiscriminant, frame_means, speaker_accuracy
from openwavlm.evaluation.unit_figures import unit_quality
from openwavlm.evaluation.units import fit_units
from openwavlm.evaluation.unseen import check_disjoint_speakers, check_unseen_audio
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader
from synthetic import make_shard_set, speech_like


def one_utterance(samples: int = 8000, speaker: str = "a", name: str = "") -> ProbeUtterance:
    audio = np.random.default_rng(samples).integers(-9000, 9000, samples).astype(np.int16)
    return ProbeUtterance(audio, np.zeros(num_frames(samples), dtype=np.int64), speaker, name)


# Ridge


def classes_on_a_line(frames: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (frames,), generator=generator)
    features = torch.randn(frames, 6, generator=generator)
    features[:, 0] += 6.0 * (labels == 1)
    features[:, 1] += 6.0 * (labels == 2)
    # A huge offset, a tiny scale and a constant: none may matter.
    return features * torch.tensor([1, 1, 1e-3, 1, 1, 0]) + torch.tensor([1000.0, 0, 0, 0, 0, 7]), labels


def test_ridge_separates_classes_that_are_apart_whatever_the_scale_of_the_features() -> None:
    statistics = RidgeStatistics(6, 3)
    features, labels = classes_on_a_line(3000, 0)
    for start in range(0, 3000, 700):
        statistics.add(features[start : start + 700], labels[start : start + 700])
    test, truth = classes_on_a_line(2000, 1)
    accuracy = statistics.solve().correct(test, truth).float().mean(dim=1)
    assert accuracy[:6].min() > 0.98


def test_ridge_weights_are_scikit_learns() -> None:
    features, labels = classes_on_a_line(500, 2)
    features = features[:, :5]
    statistics = RidgeStatistics(5, 3)
    statistics.add(torch.cat([features, features[:9]]), torch.cat([labels, torch.full((9,), -1)]))
    family = statistics.solve([0.01, 0.5])
    mean, deviation = features.mean(dim=0), features.std(dim=0, unbiased=False)
    standard = ((features - mean) / deviation).numpy().astype(np.float64)
    for place, penalty in enumerate([0.01, 0.5]):
        reference = Ridge(alpha=penalty * 500, fit_intercept=True).fit(standard, np.eye(3)[labels.numpy()])
        np.testing.assert_allclose(family.scores(features)[place].numpy(), reference.predict(standard), atol=2e-3)
        assert torch.equal(family.only(place).scores(features)[0], family.scores(features)[place])


def test_ridge_finds_nothing_in_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    statistics = RidgeStatistics(8, 4)
    statistics.add(torch.randn(4000, 8, generator=generator), torch.randint(0, 4, (4000,), generator=generator))
    right = statistics.solve().correct(
        torch.randn(4000, 8, generator=generator), torch.randint(0, 4, (4000,), generator=generator)
    )
    assert right.float().mean(dim=1).max() < 0.29


def test_ridge_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="needs labelled frames"):
        RidgeStatistics(2, 2).solve()


# Speakers, overlap, intervals, units


def test_discriminants_tell_speakers_apart_by_other_utterances() -> None:
    generator = np.random.default_rng(0)
    voices = generator.normal(size=(5, 10))
    means, speakers = [], []
    for utterance in range(40):
        means.append(frame_means(voices[utterance % 5] + generator.normal(size=(250, 10))))
        speakers.append(f"s{utterance % 5}")
    assert means[0].shape == (2, 10)
    assert frame_means(np.ones((60, 3))).shape == (1, 3)
    accuracy = speaker_accuracy(means, speakers)
    assert accuracy is not None and accuracy[0] > 0.99 and accuracy[1] == 5
    mixed = [str(name) for name in generator.permutation(speakers)]
    shuffled = speaker_accuracy(means, mixed)
    assert shuffled is not None and shuffled[0] < 0.45
    assert speaker_accuracy(means[:5], speakers[:5]) is None


def test_discriminants_use_the_covariance() -> None:
    # Two voices differ along a direction with little variance, hidden under a loud one shared by both dimensions.
    generator = np.random.default_rng(1)
    loud, small = generator.normal(size=2000) * 10, generator.normal(size=2000) * 0.1
    speaker = np.arange(2000) % 2
    features = np.stack([loud, loud + small + 0.5 * speaker], axis=1)
    predicted = LinearDiscriminant(features[:1000], speaker[:1000], shrinkage=1e-6).predict(features[1000:])
    assert (predicted == speaker[1000:]).mean() > 0.95


def test_average_precision_counts_higher_scores_first_and_ties_together() -> None:
    truth = np.array([True, False, True, False])
    assert average_precision(np.array([4.0, 3.0, 2.0, 1.0]), truth) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.array([2.0, 2.0, 1.0, 1.0]), truth) == pytest.approx(truth.mean())
    with pytest.raises(ValueError, match="at least one positive frame"):
        average_precision(np.zeros(4), ~truth & truth)


def test_a_second_voice_is_audible_where_it_is_mixed_in_and_loud() -> None:
    waveforms = torch.zeros(2, 32_000)
    waveforms[0] = 1.0
    waveforms[1, 8000:16_000] = torch.randn(8000, generator=torch.Generator().manual_seed(0)) * 500
    waveforms[1, 16_000:20_000] = torch.randn(4000, generator=torch.Generator().manual_seed(1)) * 500 * 10 ** (-40 / 20)
    one = torch.tensor([0])
    record = MixRecord(one, one + 1, one + 3200, one + 6400, one + 12_800, torch.zeros(1), 12_800)
    audible = audible_overlap(waveforms, torch.tensor([32_000, 32_000]), record)
    assert audible.shape == (2, num_frames(32_000)) and not audible[1].any()
    # The second voice's samples 8000 … 16000 lie at 4800 … 12800 of the first.
    frames = np.arange(num_frames(32_000))
    inside = (320 * frames >= 4800) & (320 * frames + 400 <= 12_800)
    apart = (320 * frames + 400 <= 4800) | (320 * frames >= 12_800)
    assert audible[0].numpy()[inside].all() and not audible[0].numpy()[apart].any()
    padded = audible_overlap(waveforms, torch.tensor([6400, 32_000]), record)
    assert padded[0, num_frames(6400) - 1] and not padded[0, num_frames(6400) :].any()


def test_intervals_cover_the_truth_and_shrink_with_more_speakers() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    width = {10: 0.0, 160: 0.0}
    for speakers in (10, 160):
        for _ in range(60):
            frames = generator.integers(200, 400, speakers)
            correct = frames * np.clip(generator.normal(0.6, 0.1, speakers), 0, 1)
            interval = ratio_interval(correct, frames)
            covered += interval.low <= 0.6 <= interval.high
            assert interval.low <= interval.value <= interval.high and interval.clusters == speakers
            width[speakers] += (interval.high - interval.low) / 60
    assert covered >= 0.9 * 120
    assert width[160] < width[10] / 2


def test_sums_by_speaker_follow_the_names_order() -> None:
    assert by_cluster(np.array([1, 2, 4]), ["b", "a", "b"]).tolist() == [2, 5]


def test_units_find_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    phones = torch.randint(0, 5, (2000,), generator=generator)
    features = torch.eye(5)[phones] * 20 + torch.randn(2000, 5, generator=generator)
    codebook = fit_units(features, 5, seed=0)
    assert len(fit_units(features[:50], 5, seed=0)) == 2
    joint = np.zeros((5, 5), dtype=np.int64)
    np.add.at(joint, (phones.numpy(), codebook.assign(features)), 1)
    quality = unit_quality(np.stack([joint, joint]))
    assert quality["pnmi"] > 0.7 and quality["spread"] == 0 and quality["frames"] == 2000 and quality["phones"] == 5


# Audio


def test_noise_has_the_wanted_ratio_and_belongs_to_seed_and_utterance() -> None:
    clean = (0.3 * speech_like(2.0).astype(np.float64)).astype(np.int16)
    noisy = add_noise(clean, 10.0, seed=0, name=5)
    noise = noisy.astype(np.float64) - clean
    ratio_db = 10 * np.log10(np.mean(clean.astype(np.float64) ** 2) / np.mean(noise**2))
    assert ratio_db == pytest.approx(10, abs=0.1)
    np.testing.assert_array_equal(add_noise(clean, 10.0, seed=0, name=5), noisy)
    assert not np.array_equal(add_noise(clean, 10.0, seed=1, name=5), noisy)
    assert not np.array_equal(add_noise(clean, 10.0, seed=0, name=6), noisy)
    assert not add_noise(np.zeros(500, np.int16), 10.0, seed=0, name=1).any()


def test_loud_audio_becomes_quieter_instead_of_clipping() -> None:
    loud = (32_000 * np.sign(np.sin(np.arange(16_000) * 0.05))).astype(np.int16)
    noisy = add_noise(loud, 0.0, seed=0, name=0).astype(np.float64)
    assert np.sum(np.abs(noisy) >= 32_767) <= 1
    assert np.corrcoef(noisy, loud)[0, 1] > 0.65


def test_the_telephone_keeps_its_band_and_nothing_else() -> None:
    time_s = np.arange(16_000) / 16_000
    for frequency_hz, kept in [(100, False), (290, False), (310, True), (1000, True), (3390, True), (3410, False), (6000, False)]:
        tone = (8000 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.int16)
        gain = np.abs(telephone(tone)).max() / 8000
        assert gain > 0.98 if kept else gain < 0.02


# Alignments and sets


def test_a_frames_phone_is_the_one_at_its_centre() -> None:
    # Centres at 200, 520, 840, 1160, 1480, 1800 samples.
    segments = [
        Segment(0.0, 520 / 16_000, "A"),
        Segment(520 / 16_000, 0.06, "B"),
        Segment(0.08, 0.1, "?"),
        Segment(0.1, 0.2, "A"),
    ]
    assert frame_phones(segments, 6, ["A", "B"]).tolist() == [0, 1, 1, -1, -1, 0]
    assert frame_phones(segments, 3, ["A", "B"], shift_s=0.02).tolist() == [-1, 0, 1]
    assert frame_phones([], 2, ["A"]).tolist() == [-1, -1]


def test_tables_are_read_by_the_names_of_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "phones.tsv"
    path.write_text("set\tpath\tstart\tend\tphone\nx\tb.wav\t0.5\t1.0\tAH0\nx\tb.wav\t0.0\t0.5\t'\nx\ta.wav\t0\t1\tS\n")
    table = read_tsv(path)
    assert table == {"b.wav": [(0.0, 0.5, "'"), (0.5, 1.0, "AH0")], "a.wav": [(0.0, 1.0, "S")]}
    assert inventory_of(table, ignored=["'"]) == ("AH0", "S")
    path.write_text("path\tstart\tphone\n")
    with pytest.raises(ValueError, match="lacks end"):
        read_tsv(path)
    path.write_text("path\tstart\tend\tphone\na\t2\t1\tS\n")
    with pytest.raises(ValueError, match="line 2"):
        read_tsv(path)


def test_audio_and_phones_of_an_utterance_must_agree() -> None:
    with pytest.raises(ValueError, match="one phone a model frame"):
        ProbeUtterance(np.zeros(8000, np.int16), np.zeros(99, np.int64), "a").waveform()
    with pytest.raises(ValueError, match="int16"):
        ProbeUtterance(np.zeros(400), np.zeros(1, np.int64), "a").waveform()
    assert len(one_utterance(8000).waveform()) == 320 * 23 + 400
    with pytest.raises(ValueError, match="inventory"):
        ProbeSet((one_utterance(),), ())
    with pytest.raises(ValueError, match="at least one"):
        ProbeSet((), ("A",))


def test_a_set_is_named_by_audio_phones_and_speakers() -> None:
    base = ProbeSet((one_utterance(8000), one_utterance(9000)), ("A",))
    assert base.fingerprint == ProbeSet((one_utterance(8000), one_utterance(9000)), ("A",)).fingerprint
    others = [
        ProbeSet((one_utterance(9000), one_utterance(8000)), ("A",)),
        ProbeSet((one_utterance(8000), one_utterance(9000, "b")), ("A",)),
        ProbeSet((one_utterance(8000), one_utterance(9000)), ("B",)),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_a_shorter_set_takes_turns_among_speakers() -> None:
    utterances = tuple(one_utterance(16_000 + number, "abc"[number // 5]) for number in range(15))
    chosen = ProbeSet(utterances, ("A",)).spread_over_speakers(6.0)
    assert [utterance.speaker for utterance in chosen.utterances] == ["a", "a", "b", "b", "c", "c"]


def test_sets_that_share_a_speaker_are_refused() -> None:
    check_disjoint_speakers(train=ProbeSet((one_utterance(),), ("A",)), dev=ProbeSet((one_utterance(speaker="b"),), ("A",)))
    with pytest.raises(ValueError, match="'a' is in train and test"):
        check_disjoint_speakers(train=ProbeSet((one_utterance(),), ("A",)), test=ProbeSet((one_utterance(),), ("A",)))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return Index.open(make_shard_set(tmp_path_factory.mktemp("guard"), speakers=2, utterances=3))


def test_test_audio_that_was_trained_on_is_refused_and_named(index: Index) -> None:
    audio = ShardReader(index).read(4)
    known = ProbeUtterance(audio, np.zeros(num_frames(len(audio)), np.int64), "a", "known")
    quieter = ProbeUtterance(audio // 2, known.phones, "a", "other")
    clean, tainted = ProbeSet((quieter,), ("A",)), ProbeSet((quieter, known), ("A",))
    check_unseen_audio(clean, [(index, None)])
    with pytest.raises(ValueError, match=r"1 of 2 test utterances are in the training data \(known\)"):
        check_unseen_audio(tainted, [(index, None)])
    check_unseen_audio(tainted, [(index, np.arange(len(index)) != 4)])


@pytest.mark.parametrize("turned", [False, True])
def test_test_audio_is_looked_up_in_every_source_of_the_training_data(index: Index, tmp_path: Path, *, turned: bool) -> None:
    second = Index.open(make_shard_set(tmp_path, speakers=1, utterances=2, seed=7))
    of_each = {"first": ShardReader(index).read(4), "second": ShardReader(second).read(1)}
    of_each["neither"] = of_each["first"] // 2
    utterances = tuple(
        ProbeUtterance(audio, np.zeros(num_frames(len(audio)), np.int64), "a", name) for name, audio in of_each.items()
    )
    heard = [(index, None), (second, None)]
    with pytest.raises(ValueError, match=r"2 of 3 test utterances are in the training data \(first, second\)"):
        check_unseen_audio(ProbeSet(utterances, ("A",)), heard[::-1] if turned else heard)
