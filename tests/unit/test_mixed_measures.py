"""Measures on mixtures beside computations by hand: level, detection by loudness, labels under the pre-training head."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from openwavlm.audio.frames import num_samples_of
from openwavlm.batches.batch import MixRecord
from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.settings import SpanMasking
from openwavlm.evaluation.detection import average_precision, levels, precision_by_speaker
from openwavlm.evaluation.mix_sets import Mixtures, audible, mix_set, with_level_of
from openwavlm.evaluation.mixed_labels import mixed_label_figures
from openwavlm.evaluation.mixtures import _target_marks
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


def test_the_target_is_judged_where_the_second_speaker_is_audible() -> None:
    mixtures = Mixtures(noises("ab", 1), (np.array([True, True, False, False]),) * 2, (np.array([True, False, True, False]),) * 2)
    assert [marks.tolist() for marks in _target_marks(mixtures)] == [[1, 0, -1, -1]] * 2


def test_pseudo_values_of_a_precision_leave_one_speaker_out() -> None:
    rng = np.random.default_rng(1)
    scores, truth, speakers = rng.random(60), rng.random(60) < 0.4, np.repeat(["b", "a", "c"], 20)
    found = precision_by_speaker(scores, truth, speakers)
    assert found["speakers"] == ["a", "b", "c"]

    def by_hand(kept: np.ndarray) -> float:
        ranked = truth[kept][np.argsort(-scores[kept])]
        return float(np.mean([ranked[: place + 1].mean() for place in np.flatnonzero(ranked)]))

    everything = by_hand(np.ones(60, dtype=bool))
    wanted = [3 * everything - 2 * by_hand(speakers != name) for name in "abc"]
    assert found["pseudo_values"] == pytest.approx(wanted)
    only = precision_by_speaker(scores, speakers == "a", speakers)
    assert np.isnan(only["pseudo_values"][0]) and np.isfinite(only["pseudo_values"][1:]).all()


@pytest.mark.parametrize("normalised", [False, True])
def test_labels_in_mixtures_are_scored_as_by_hand(normalised: bool) -> None:
    torch.manual_seed(0)
    model = WavLMForPretraining(WavLM(replace(CONFIG, normalise_waveform=normalised)), Head(final_dim=8), CLASSES).eval()
    mixtures, masking = mix_set(noises("abc", 2), seed=5), SpanMasking(prob=0.5, length=5)
    counts = np.array([5, 0, 9, 1, 2, 3])
    figures = mixed_label_figures(model, mixtures, masking, counts, mask_seed=7)
    sums = {speaker: np.zeros(5) for speaker in "abc"}  # nats, correct, frames, masked nats, masked frames
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
                sums[utterance.speaker][first] += nats
                if spans is None:
                    sums[utterance.speaker][1] += cosine.argmax() == special + label
                    truth.append(label)
                sums[utterance.speaker][2 if spans is None else 4] += 1
    found = figures["by_speaker"]
    assert found["speakers"] == list("abc")
    for place, name in enumerate(("nats", "correct", "frames", "masked_nats", "masked_frames")):
        assert found[name] == pytest.approx([sums[speaker][place] for speaker in "abc"], rel=1e-4), name
    total = sum(sums.values())
    overlapped = figures["overlapped"]
    assert overlapped["cross_entropy"] == pytest.approx(total[0] / total[2], rel=1e-4)
    assert overlapped["accuracy"] == pytest.approx(total[1] / total[2]) and overlapped["frames"] == total[2]
    assert figures["masked"] == {"cross_entropy": pytest.approx(total[3] / total[4], rel=1e-4), "frames": total[4]}
    share = (counts + 1) / 26
    assert overlapped["unigram"]["cross_entropy"] == pytest.approx(-np.mean(np.log(share[truth])))
    assert overlapped["unigram"]["accuracy"] == pytest.approx(np.mean(np.array(truth) == 2))


def test_mixtures_without_a_labelled_overlap_are_refused() -> None:
    model = WavLMForPretraining(WavLM(CONFIG), Head(final_dim=8), CLASSES).eval()
    mixtures = mix_set(noises("ab", 1), seed=0)
    nowhere = mixtures._replace(overlapped=tuple(np.zeros(FRAMES, dtype=bool) for _ in mixtures.overlapped))
    with pytest.raises(ValueError, match="but have 0 and"):
        mixed_label_figures(model, nowhere, SpanMasking(), np.ones(CLASSES))
