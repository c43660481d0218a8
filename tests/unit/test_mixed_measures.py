"""Measures on mixtures beside computations by hand: level, detection by loudness, labels under the pre-training head."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from openwavlm.audio.frames import num_frames, num_samples_of
from openwavlm.batches.batch import MixRecord
from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.settings import SpanMasking
from openwavlm.evaluation.detection import Scored, average_precision, detection_figures, levels
from openwavlm.evaluation.intervals import interval
from openwavlm.evaluation.mix_sets import Mixtures, audible, mix_set, share_of, with_level_of
from openwavlm.evaluation.mixed_labels import mixed_label_figures
from openwavlm.evaluation.mixtures import _fit_phones, _target_marks
from openwavlm.evaluation.sets import ProbeSet, ProbeUtterance
from openwavlm.model.config import Head, WavLMConfig
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM

FRAMES, CLASSES = 100, 6
CONFIG = WavLMConfig(
    conv_dims=(8,) * 7,
    dim=16,
    ffn_dim=16,
    heads=2,
    layers=2,
    pre_norm=True,
    positional_kernel=8,
    positional_groups=2,
    layer_drop=0,
)


def noises(speakers: str = "abcd", utterances: int = 6) -> ProbeSet:
    """Stationary noise of speakers of different loudness; a label a frame, some without."""
    made = []
    for place, speaker in enumerate(speakers):
        for number in range(utterances):
            rng = np.random.default_rng([place, number])
            audio = np.round(500 * 2**place * rng.standard_normal(num_samples_of(FRAMES))).astype(np.int16)
            labels = np.where(rng.random(FRAMES) < 0.1, -1, rng.integers(0, CLASSES, FRAMES))
            made.append(ProbeUtterance(audio, labels, speaker, f"{speaker}{number}"))
    return ProbeSet(tuple(made), tuple(map(str, range(CLASSES))))


def loudness(mixtures: Mixtures) -> tuple[np.ndarray, np.ndarray]:
    """Score of a detector of loudness, and truth, of all frames."""
    scores = np.concatenate([levels(utterance.waveform()) for utterance in mixtures.mixed.utterances])
    return scores, np.concatenate(mixtures.overlapped)


def test_loudness_detects_raw_mixtures_and_is_at_chance_once_the_gain_is_normalised() -> None:
    (raw, truth), (levelled, same) = (loudness(mix_set(noises(), seed=2, gain_normalised=normal)) for normal in (False, True))
    np.testing.assert_array_equal(truth, same)
    share = truth.mean()
    assert 0.1 < share < 0.5
    assert average_precision(raw, truth) > share + 0.4, "two noises of equal energy are 3 dB louder than one"
    # Scores drawn at random have this precision; the spread over draws bounds what is chance.
    rng = np.random.default_rng(0)
    chance = [average_precision(rng.random(len(truth)), truth) for _ in range(200)]
    assert np.min(chance) < average_precision(levelled, truth) < np.max(chance) + 2 * np.std(chance)


def test_a_normalised_interval_has_the_mean_energy_that_its_first_speaker_has_there() -> None:
    clean = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 1000))).float()
    mixed = clean.clone()
    mixed[0, 200:500] += 3 * torch.sin(torch.arange(300.0))
    mixed[2, 100:150] += 5.0
    clean[2, 100:150] = 0.0  # the first speaker is silent there
    columns = {"row": [0, 2], "partner": [1, 1], "start": [200, 100], "partner_start": [0, 0], "length": [300, 50]}
    record = MixRecord(
        **{name: torch.tensor(column) for name, column in columns.items()}, energy_ratio_db=torch.zeros(2), max_length=300
    )
    before = mixed.clone()
    found = with_level_of(mixed, clean, record)
    assert torch.equal(mixed, before), "the mixture stays as it is"
    energy = (found[0, 200:500].double() ** 2).mean()
    assert float(energy) == pytest.approx(float((clean[0, 200:500].double() ** 2).mean()), rel=1e-5)
    gain = found[0, 200:500] / mixed[0, 200:500]
    assert float(gain.std()) < 1e-5 and float(gain.mean()) < 0.9, "one gain for the interval"
    assert torch.equal(found[0, :200], mixed[0, :200]) and torch.equal(found[0, 500:], mixed[0, 500:])
    assert torch.equal(found[1:], mixed[1:])


def test_the_first_speaker_is_audible_within_30_db_of_its_loudest_frame() -> None:
    amplitudes = np.repeat([1000.0, 40.0, 20.0, 0.0], 1600)  # 0, 28, 34 dB below the loudest, and silence
    found = audible(torch.from_numpy(amplitudes).float()).numpy()
    assert found[:4].all() and found[5:9].all() and not found[10:14].any() and not found[15:].any()
    assert not audible(torch.zeros(4000)).any() and audible(torch.zeros(100)).shape == (0,)


class Lengths:
    """Features of one number a frame that note how long the audio of each call is."""

    dims, settings, device, standardise = (1,), None, torch.device("cpu"), False

    def __init__(self) -> None:
        self.samples: list[int] = []

    def __call__(self, waveforms: np.ndarray, layers: range) -> list[torch.Tensor]:
        self.samples.append(waveforms.shape[1])
        return [torch.arange(float(num_frames(waveforms.shape[1])))[None, :, None]]


def test_phones_are_fitted_on_whole_utterances_as_they_are_judged() -> None:
    frames = 40 * 50  # longer than the 30 s of other probes
    audio, labels = np.zeros(num_samples_of(frames), dtype=np.int16), np.arange(frames) % 2
    extract = Lengths()
    _fit_phones(extract, ProbeSet((ProbeUtterance(audio, labels, "a", "a0"),), ("x", "y")))
    assert extract.samples == [len(audio)]


def test_the_target_is_judged_where_the_second_speaker_is_audible() -> None:
    overlapped, active = (np.array(marks) for marks in ([True, True, False, False], [True, False, True, False]))
    mixtures = Mixtures(noises("ab", 1), (overlapped,) * 2, (active,) * 2, ("b", "a"))
    assert [marks.tolist() for marks in _target_marks(mixtures)] == [[1, 0, -1, -1]] * 2


def test_pseudo_values_leave_a_speaker_out_as_first_and_as_second_one() -> None:
    rng = np.random.default_rng(1)
    made = mix_set(noises("abc", 4), seed=3)
    roles = list(zip((one.speaker for one in made.mixed.utterances), made.partners, strict=True))
    assert all(first != second for first, second in roles) and set(made.partners) == set("abc")
    utterance = np.repeat(np.arange(len(roles)), 5)
    scores, truth = rng.random(len(utterance)), rng.random(len(utterance)) < 0.4

    def by_hand(kept: np.ndarray) -> float:
        ranked = truth[kept][np.argsort(-scores[kept])]
        return float(np.mean([ranked[: place + 1].mean() for place in np.flatnonzero(ranked)]))

    scored = Scored(scores[None, None], truth, rng.random(len(utterance)), utterance)
    found = detection_figures(scored, scored, made)
    without = [np.array([name not in roles[number] for number in utterance]) for name in "abc"]
    wanted = [3 * by_hand(truth | True) - 2 * by_hand(kept) for kept in without]
    assert found["pseudo_values"] == {"speakers": ["a", "b", "c"], "chosen": pytest.approx(wanted)}
    correct, frames = rng.integers(0, 9, len(roles)), np.full(len(roles), 9)
    shares = made.pseudo_values(share=share_of(correct, frames))["share"]
    kept = [np.array([name not in pair for pair in roles]) for name in "abc"]
    assert shares == pytest.approx([3 * correct.mean() / 9 - 2 * correct[of].mean() / 9 for of in kept])
    assert np.isnan(share_of(correct, frames)(np.zeros(len(roles), dtype=bool)))


@pytest.mark.parametrize(("partner", "seeds"), [(0.03, 1), (0.03, 5), (0.0, 5)])
def test_intervals_of_mixtures_cover_other_speakers_in_both_roles(partner: float, seeds: int) -> None:
    """A difference that depends on both speakers of a mixture: without the second role 87 of 100 intervals contain it."""
    rng, inside, trials = np.random.default_rng(5), 0, 1000
    names, first, frames = [f"s{number}" for number in range(12)], np.repeat(np.arange(12), 15), np.full(180, 50.0)
    silence, nowhere = np.zeros(400, np.int16), (np.zeros(1, dtype=bool),) * 180
    utterances = tuple(ProbeUtterance(silence, np.zeros(1, dtype=np.int64), names[one]) for one in first)
    for _ in range(trials):
        second = (first + rng.integers(1, 12, 180)) % 12
        made = Mixtures(ProbeSet(utterances, ("x",)), nowhere, nowhere, tuple(names[one] for one in second))
        of_pair = (0.03 * rng.standard_normal(12))[first] + (partner * rng.standard_normal(12))[second]
        # One seed does not show how seeds differ.
        own = of_pair + 0.01 * (seeds > 1) * rng.standard_normal((seeds, 1)) + 0.03 * rng.standard_normal((seeds, 180))
        pseudo = [made.pseudo_values(share=share_of(of_seed * frames, frames))["share"] for of_seed in own]
        found = interval(np.array(pseudo), float(own.mean()))
        inside += found.low <= 0 <= found.high
    assert 0.93 <= inside / trials <= 0.97


@pytest.mark.parametrize("normalised", [False, True])
def test_labels_in_mixtures_are_scored_as_by_hand(normalised: bool) -> None:
    torch.manual_seed(0)
    model = WavLMForPretraining(WavLM(replace(CONFIG, normalise_waveform=normalised)), Head(final_dim=8), CLASSES).eval()
    mixtures, masking = mix_set(noises("abc", 3), seed=5), SpanMasking(prob=0.5, length=5)
    counts = np.array([5, 0, 9, 1, 2, 3])
    figures = mixed_label_figures(model, mixtures, masking, counts, mask_seed=7)
    sums = np.zeros((len(mixtures.mixed), 5))  # nats, correct, frames, masked nats, masked frames
    truth = []
    embeddings = model.label_embeddings.detach().double().numpy()
    special = len(embeddings) - CLASSES
    for number, utterance in enumerate(mixtures.mixed.utterances):
        audio = utterance.waveform().astype(np.float64)
        audio = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-5) if normalised else audio / 32768
        mask = draw_span_mask(masking, np.array([FRAMES]), 7, source=0, epoch=0, micro=number)
        for spans, first in ((None, 0), (torch.from_numpy(mask), 3)):
            with torch.no_grad():
                final = model.wavlm(torch.from_numpy(audio).float()[None], None, mask=spans).final
                projected = model.final_proj(final)[0].double().numpy()
            judged = mixtures.overlapped[number] if spans is None else mask[0]
            for frame in np.flatnonzero(judged & (utterance.phones >= 0)):
                x, label = projected[frame], int(utterance.phones[frame])
                cosine = embeddings @ x / np.linalg.norm(embeddings, axis=1) / np.linalg.norm(x) / model.logit_temperature
                nats = np.log(np.exp(cosine).sum()) - cosine[special + label]
                sums[number, first] += nats
                if spans is None:
                    sums[number, 1] += cosine.argmax() == special + label
                    truth.append(label)
                sums[number, 2 if spans is None else 4] += 1
    total = sums.sum(axis=0)
    roles = list(zip((one.speaker for one in mixtures.mixed.utterances), mixtures.partners, strict=True))
    without = [sums[[name not in pair for pair in roles]].sum(axis=0) for name in "abc"]
    places = {("overlapped", "cross_entropy"): (0, 2), ("overlapped", "accuracy"): (1, 2), ("masked", "cross_entropy"): (3, 4)}
    for (entry, title), (top, bottom) in places.items():
        with np.errstate(invalid="ignore"):
            wanted = [3 * total[top] / total[bottom] - 2 * of[top] / of[bottom] for of in without]
        found = figures[entry]["pseudo_values"]
        assert found["speakers"] == list("abc") and found[title] == pytest.approx(wanted, rel=1e-4, nan_ok=True), (entry, title)
    overlapped = figures["overlapped"]
    assert overlapped["cross_entropy"] == pytest.approx(total[0] / total[2], rel=1e-4)
    assert overlapped["accuracy"] == pytest.approx(total[1] / total[2]) and overlapped["frames"] == total[2]
    assert figures["masked"]["cross_entropy"] == pytest.approx(total[3] / total[4], rel=1e-4)
    assert figures["masked"]["frames"] == total[4]
    share = (counts + 1) / 26
    assert overlapped["unigram"]["cross_entropy"] == pytest.approx(-np.mean(np.log(share[truth])))
    assert overlapped["unigram"]["accuracy"] == pytest.approx(np.mean(np.array(truth) == 2))


def test_mixtures_without_a_labelled_overlap_are_refused() -> None:
    model = WavLMForPretraining(WavLM(CONFIG), Head(final_dim=8), CLASSES).eval()
    mixtures = mix_set(noises("ab", 1), seed=0)
    nowhere = mixtures._replace(overlapped=tuple(np.zeros(FRAMES, dtype=bool) for _ in mixtures.overlapped))
    with pytest.raises(ValueError, match="but have 0 and"):
        mixed_label_figures(model, nowhere, SpanMasking(), np.ones(CLASSES))
