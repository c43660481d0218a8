"""Whole probes: what is planted in the audio is found, by the right layer, on held-out speakers, once."""

from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from torch import Tensor

from closeness import assert_close_to_scale
from openwavlm.audio.frames import num_frames, num_samples_of
from openwavlm.audio.mfcc import mfcc_features
from openwavlm.evaluation import measure as measure_module
from openwavlm.evaluation import probe as probe_module
from openwavlm.evaluation.conditions import CONDITIONS, change_of, conditions_in_turn
from openwavlm.evaluation.features import (
    EncoderFeatures,
    LogMelFeatures,
    MfccFeatures,
    spectral_baselines,
    stream,
    with_context,
)
from openwavlm.evaluation.measure import ProbeSettings, cache_name, measure
from openwavlm.evaluation.measured import Measured
from openwavlm.evaluation.mix_sets import mix_set
from openwavlm.evaluation.mixtures import probe_mixtures
from openwavlm.evaluation.probe import probe_model
from openwavlm.evaluation.sets import ProbeSet, ProbeUtterance
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM

TONES_HZ = np.array([400, 900, 1500, 2200, 3000])
SETTINGS = ProbeSettings(clusters=5, codebook_seeds=(0, 1), codebook_frames=500, degraded_seconds=6.0)
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


def tones(speaker: str, seconds: float, seed: int) -> ProbeUtterance:
    """Speech of a machine: a tone a phone, each 10 frames long, detuned by the speaker; some frames have no phone."""
    voice = np.random.default_rng([ord(letter) for letter in speaker])
    rng = np.random.default_rng(seed)
    frames = num_frames(round(seconds * 16_000))
    phones = np.repeat(rng.integers(0, 5, frames // 10 + 1), 10)[:frames]
    frequency_hz = np.append(np.repeat(TONES_HZ[phones], 320), [TONES_HZ[phones[-1]]] * 80) * voice.uniform(0.97, 1.03)
    signal = 6000 * np.sin(2 * np.pi * np.cumsum(frequency_hz) / 16_000) + 40 * rng.standard_normal(num_samples_of(frames))
    return ProbeUtterance(signal.astype(np.int16), np.where(rng.random(frames) < 0.1, -1, phones), speaker, f"{speaker}-{seed}")


def tone_set(speakers: str, utterances: int = 4) -> ProbeSet:
    made = [
        tones(speaker, 1.5 + 0.3 * (number % 3), 100 * ord(speaker) + number)
        for speaker in speakers
        for number in range(utterances)
    ]
    return ProbeSet(tuple(made), tuple("vwxyz"))


TRAIN, DEV, TEST = tone_set("abcd"), tone_set("ef"), tone_set("ghi")


class NoiseThenLogMel(LogMelFeatures):
    """Layer 0 is noise, layer 1 the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.dims = (40, 40)
        self.standardise = True

    def __call__(self, waveforms: np.ndarray, layers: object) -> list[Tensor]:
        frames = super().__call__(waveforms, [0])[0]
        noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(waveforms.shape[1]))
        return [frames if layer else noise for layer in layers]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def measured() -> Measured:
    return measure(NoiseThenLogMel(), TRAIN, DEV, TEST, SETTINGS)


def test_the_layer_that_knows_is_chosen_and_the_one_that_does_not_finds_nothing(measured: Measured) -> None:
    assert measured.chosen == measured.units_layer == 1
    assert measured.accuracy(1) > 0.85 and measured.dev_accuracy[1] > 0.85
    assert measured.accuracy(0) < 0.4
    known = [int((utterance.phones >= 0).sum()) for utterance in TEST.utterances]
    assert measured.frames[0].tolist() == known
    assert measured.units[0].sum(axis=(1, 2, 3)).tolist() == [sum(known)] * 2
    by_speaker = [sum(k for k, one in zip(known, TEST.utterances, strict=True) if one.speaker == name) for name in TEST.speakers]
    assert measured.units[0].sum(axis=(2, 3)).tolist() == [by_speaker] * 2


def test_degraded_audio_is_judged_for_the_chosen_layer_on_fewer_utterances(measured: Measured) -> None:
    assert CONDITIONS == ("clean", "telephone", "noise10")
    for place in (1, 2):
        judged = measured.frames[place] > 0
        assert 0 < judged.sum() < len(TEST)
        assert (measured.correct[place, 0] == -1).all()
        assert (measured.correct[place, 1][~judged] == 0).all()
        assert (measured.frames[place][judged] == measured.frames[0][judged]).all()
    assert measured.accuracy(1, "noise10") < measured.accuracy(1)


def test_named_layers_are_judged_in_degraded_audio_too(measured: Measured) -> None:
    both = measure(NoiseThenLogMel(), TRAIN, DEV, TEST, SETTINGS, judged_layers=[0])
    judged = both.frames[1] > 0
    for of in (both.correct[1:], both.correct_multi[1:]):
        assert (of[:, :, ~judged] == 0).all() and (of[:, 1, judged] > 0).any()
        assert (of[:, 0, judged] >= 0).all() and (of[:, 0, judged] > 0).any()
    np.testing.assert_array_equal(both.correct[:, 1], measured.correct[:, 1])
    np.testing.assert_array_equal(both.correct[0], measured.correct[0])
    np.testing.assert_array_equal(both.units, measured.units)
    assert (measured.correct_multi[:, 0] == -1).all() and np.isnan(measured.penalty_multi).tolist() == [True, False]
    np.testing.assert_array_equal(both.correct_multi[:, 1], measured.correct_multi[:, 1])


def test_multi_condition_probes_are_fitted_on_speech_in_the_three_conditions_in_turn(measured: Measured) -> None:
    def changed(utterance: ProbeUtterance, change: object) -> ProbeUtterance:
        return replace(utterance, audio=change(utterance.waveform())) if change else utterance  # type: ignore[operator]

    def in_turn(clean: ProbeSet) -> ProbeSet:
        # Four utterances a speaker; the speaker in place s begins with condition s.
        changes = [change_of(CONDITIONS[(number // 4 + number % 4) % 3], SETTINGS.seed) for number in range(len(clean))]
        return ProbeSet(tuple(map(changed, clean.utterances, changes)), clean.inventory)

    expected = [(speaker + number) % 3 for speaker in range(4) for number in range(4)]
    found = conditions_in_turn([utterance.speaker for utterance in TRAIN.utterances], 0)
    assert [change is None for change in found] == [turn == 0 for turn in expected]
    assert found[1] is change_of("telephone", 0)
    wanted = measure(NoiseThenLogMel(), in_turn(TRAIN), in_turn(DEV), TEST, SETTINGS)
    np.testing.assert_array_equal(measured.correct_multi[:, 1], wanted.correct[:, 1])
    assert measured.penalty_multi[1] == wanted.penalty[1] and wanted.chosen == 1
    assert (measured.correct_multi[:, 1] != measured.correct[:, 1]).any()


def test_penalties_of_multi_condition_probes_are_chosen_on_such_dev_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = []

    def in_turn(speakers: list[str], seed: int) -> list:
        changed.append((speakers, seed))
        return conditions_in_turn(speakers, seed)

    monkeypatch.setattr(measure_module, "conditions_in_turn", in_turn)
    measure(MfccFeatures(), TRAIN, DEV, TEST, replace(SETTINGS, seed=7), judged_layers=[0])
    assert changed == [([one.speaker for one in part.utterances], 7) for part in (TRAIN, DEV)]


def test_frames_that_do_not_fit_into_memory_are_extracted_again_with_the_same_figures(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "_KEPT_BYTES", 0)
    again = measure(NoiseThenLogMel(), TRAIN, DEV, TEST, SETTINGS)
    np.testing.assert_array_equal(again.units, measured.units)
    np.testing.assert_array_equal(again.correct, measured.correct)
    assert again.audio_seconds > measured.audio_seconds


def test_a_cached_baseline_is_not_measured_again_unless_something_changes(tmp_path: Path) -> None:
    calls = []

    def note(part: str, seconds: float) -> None:
        calls.append(part)

    first = measure(MfccFeatures(), TRAIN, DEV, TEST, SETTINGS, units_layer=0, cache=tmp_path, progress=note)
    assert set(calls) == {"training", "dev", "multi-condition training", "multi-condition dev", *CONDITIONS}
    calls.clear()
    second = measure(MfccFeatures(), TRAIN, DEV, TEST, SETTINGS, units_layer=0, cache=tmp_path, progress=note)
    assert not calls
    np.testing.assert_array_equal(first.units, second.units)
    names = {
        cache_name(MfccFeatures(), (TRAIN, DEV, TEST), SETTINGS),
        cache_name(LogMelFeatures(), (TRAIN, DEV, TEST), SETTINGS),
        cache_name(MfccFeatures(), (TRAIN, DEV, DEV), SETTINGS),
        cache_name(MfccFeatures(), (TRAIN, DEV, TEST), replace(SETTINGS, clusters=6)),
        cache_name(MfccFeatures(), (TRAIN, DEV, TEST), SETTINGS, 0),
        cache_name(MfccFeatures(normalised=True), (TRAIN, DEV, TEST), SETTINGS),
        cache_name(LogMelFeatures(normalised=False), (TRAIN, DEV, TEST), SETTINGS),
    }
    assert len(names) == 7


def test_every_frame_comes_once_and_equals_its_own_utterance() -> None:
    model = EncoderFeatures(WavLM(CONFIG))
    seen = np.zeros(len(TEST), dtype=int)
    for piece in stream(model, TEST, [0, 2], batch_seconds=5):
        utterance = TEST.utterances[piece.utterance]
        seen[piece.utterance] += len(piece.phones)
        alone = model.model.extract(torch.from_numpy(utterance.waveform()).float()[None] / 32768, layers=[0, 2])
        for features, expected in zip(piece.features, alone, strict=True):
            assert_close_to_scale(features, expected[0])
        assert piece.phones.tolist() == utterance.phones.tolist()
    assert seen.tolist() == [utterance.frames for utterance in TEST.utterances]


def test_long_utterances_are_cut_on_the_grid() -> None:
    parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for piece in stream(MfccFeatures(), TEST, [0], max_seconds=0.7):
        parts.setdefault(piece.utterance, []).append((piece.features[0], piece.phones))
        assert len(piece.phones) <= 35
    utterance, pieces = TEST.utterances[0], parts[0]
    assert sum(len(phones) for _, phones in pieces) == utterance.frames
    whole = mfcc_features(utterance.waveform())[:, :13]
    assert {tuple(row) for features, _ in pieces for row in features[:, :13].tolist()} == {tuple(row) for row in whole.tolist()}


def test_context_is_the_neighbours_with_the_ends_repeated() -> None:
    frames = torch.arange(8.0).reshape(1, 4, 2)
    wide = with_context(frames, 1)
    assert wide[0, 0].tolist() == [0, 1, 0, 1, 2, 3]
    assert wide[0, 2].tolist() == [2, 3, 4, 5, 6, 7]
    assert wide[0, 3].tolist() == [4, 5, 6, 7, 6, 7]


def test_a_models_figures_stand_beside_its_baselines_and_training_does_not_notice(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = WavLM(CONFIG).train()
    before = torch.get_rng_state()
    figures = probe_model(model, TRAIN, DEV, TEST, SETTINGS, cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    phones, units = figures["phones"], figures["units"]
    assert len(phones["layers"]) == len(phones["layers_dev"]) == 3
    assert phones["chosen"] == phones["layers"][phones["chosen_layer"]]
    assert phones["chosen_layer"] == int(np.argmax(phones["layers_dev"]))
    assert phones["logmel"] > 0.85 and phones["logmel_raw"] > 0.85 and phones["mfcc_context"] > phones["majority"]
    low, high = phones["intervals"]["mfcc"]
    assert low <= phones["mfcc"] <= high
    difference, low, high, visible = phones["differences"]["mfcc"]
    assert difference == pytest.approx(phones["chosen"] - phones["mfcc"], abs=2e-5) and low <= difference <= high
    assert visible > high - difference
    for condition in CONDITIONS:
        assert {"chosen", *spectral_baselines(), "untrained", "spread", "differences", "verdicts"} <= units[condition].keys()
        assert units[condition]["by_speaker"]["speakers"] == list(TEST.speakers)
    baselines = {name + context for name in spectral_baselines() for context in ("", "_context")} | {"untrained"}
    for judged in (phones, phones["noise10"], phones["multi"], phones["multi"]["telephone"]):
        assert judged.keys() >= baselines | {"chosen"} and judged["differences"].keys() == baselines
    assert figures["speakers"]["chosen"] == figures["speakers"]["layers"][figures["speakers"]["chosen_layer"]]
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == sorted([*spectral_baselines(), "untrained"])
    again = probe_model(model, TRAIN, DEV, TEST, SETTINGS, cache=tmp_path)
    assert {name: again[name] for name in ("phones", "units", "speakers")} == {
        name: figures[name] for name in ("phones", "units", "speakers")
    }
    side_by_side = probe_model(model, TRAIN, DEV, TEST, SETTINGS, workers=2)
    assert list(side_by_side["units"]["clean"]) == list(figures["units"]["clean"])
    assert {name: side_by_side[name] for name in again if name != "cost"} == {
        name: again[name] for name in again if name != "cost"
    }
    other = probe_model(WavLM(CONFIG), TRAIN, DEV, TEST, SETTINGS, cache=tmp_path)
    assert other["phones"]["layers"] != phones["layers"] and other["phones"]["mfcc"] == phones["mfcc"], (
        "no model's figures are kept"
    )


def test_an_error_in_one_measurement_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended, another = [], [], Event()

    def planted(features, train, dev, test, settings, *, progress, **rest):
        if features.settings is None:
            assert another.wait(60)
            raise ValueError("planted")
        begun.append(features.settings["name"])
        another.set()
        try:
            for _ in range(1_000_000):
                progress("training", 0.0)
        except CancelledError:
            ended.append(features.settings["name"])
            raise

    monkeypatch.setattr(probe_module, "measure", planted)
    with pytest.raises(ValueError, match="planted"):
        probe_model(WavLM(CONFIG), TRAIN, DEV, TEST, SETTINGS, workers=2, show_progress=False)
    assert sorted(ended) == sorted(begun), "whatever had begun was ended"
    assert 1 <= len(begun) <= 3, "those in the queue did not begin"


def test_voices_shared_between_parts_and_unequal_inventories_are_refused() -> None:
    model = WavLM(CONFIG)
    with pytest.raises(ValueError, match="different people"):
        probe_model(model, TRAIN, DEV, DEV, SETTINGS)
    with pytest.raises(ValueError, match="one inventory"):
        probe_model(model, TRAIN, DEV, ProbeSet(TEST.utterances, tuple("uvwxyz")), SETTINGS)


def test_mixtures_have_another_speaker_at_the_wanted_ratio_where_they_are_marked() -> None:
    mixtures = mix_set(TEST, seed=3)
    shares = []
    for clean, mixed, heard in zip(TEST.utterances, mixtures.mixed.utterances, mixtures.overlapped, strict=True):
        assert mixed.name == clean.name and len(heard) == clean.frames
        difference = mixed.waveform().astype(float) - clean.waveform()
        frames = np.array([np.abs(difference[320 * frame : 320 * frame + 400]).max() for frame in range(clean.frames)])
        assert frames[heard].min(initial=1e9) > 100 and frames[~heard].max(initial=0) < 600
        shares.append(heard.mean())
        if heard.sum() > 5:
            inside = np.flatnonzero(np.abs(difference) > 1)
            ratio_db = 10 * np.log10(
                np.mean(difference[inside[0] : inside[-1]] ** 2) / np.mean(clean.waveform().astype(float) ** 2)
            )
            assert abs(ratio_db) < 0.5
    assert 0.1 < np.mean(shares) < 0.5
    again = mix_set(TEST, seed=3)
    assert all(
        np.array_equal(a.waveform(), b.waveform()) for a, b in zip(again.mixed.utterances, mixtures.mixed.utterances, strict=True)
    )
    with pytest.raises(ValueError, match="second speaker"):
        mix_set(tone_set("a"), seed=0)


def test_a_second_voice_is_detected_and_hurts_the_first_ones_phones() -> None:
    figures = probe_mixtures(NoiseThenLogMel(), TRAIN, DEV, TEST)
    overlap, phones = figures["overlap"], figures["phones"]
    assert overlap["chosen_layer"] == phones["chosen_layer"] == 1
    assert overlap["layers"][0] < overlap["share"] + 0.1 < overlap["chosen"] - 0.2
    assert 0.3 < phones["chosen"] < 0.8
    assert phones["pseudo_values"]["speakers"] == list(TEST.speakers)
    clean = figures["clean_phones"]
    assert sum(clean["by_speaker"]["correct"]) / sum(clean["by_speaker"]["frames"]) == pytest.approx(clean["chosen"], rel=1e-4)


def test_each_spectral_baseline_is_raw_or_normalised_over_the_utterance() -> None:
    audio = np.stack([one.waveform() for one in TEST.utterances if one.frames == TEST.utterances[0].frames])
    kinds = spectral_baselines()
    found = {name: features(audio, [0, 1]) for name, features in kinds.items()}
    for name in ("mfcc_norm", "logmel"):
        frames = found[name][0]
        assert frames.mean(dim=1).abs().max() < 1e-4 and (frames.var(dim=1, unbiased=False) - 1).abs().max() < 2e-2
    for raw, normalised in (("mfcc", "mfcc_norm"), ("logmel_raw", "logmel")):
        one, other = found[raw][0], found[normalised][0]
        shift, scale = one.mean(dim=1, keepdim=True), one.std(dim=1, keepdim=True, unbiased=False)
        assert (shift.abs() > 1).any()
        assert_close_to_scale((one - shift) / scale, other, 2e-2)
        louder, quieter = (kinds[normalised](each, [0])[0] for each in (audio, audio // 2))
        assert (louder - quieter).abs().mean() < 0.2
    torch.testing.assert_close(found["mfcc"][0][0], mfcc_features(audio[0]))
    for frames, wide in found.values():
        torch.testing.assert_close(wide, with_context(frames))
    assert {name: features.settings["name"] for name, features in kinds.items() if features.settings} == {
        name: name for name in kinds
    }
    silent = kinds["mfcc_norm"](np.zeros((1, 4000), dtype=np.int16), [0])[0]
    assert silent.abs().max() < 0.1, "rounding is not made large"
