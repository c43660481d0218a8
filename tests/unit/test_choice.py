"""Whatever is chosen is chosen on development speakers: on planted data the test part would choose otherwise."""

from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.linear_model import Ridge

from openwavlm.evaluation import measure as measure_module
from openwavlm.evaluation import probe as probe_module
from openwavlm.evaluation.conditions import CONDITIONS, change_of
from openwavlm.evaluation.detection import Scored, detection_figures
from openwavlm.evaluation.intervals import interval, outcome_of
from openwavlm.evaluation.measure import ProbeSettings, cache_name, development_accuracy, measure
from openwavlm.evaluation.measured import Measured
from openwavlm.evaluation.mix_sets import Mixtures, mix_set
from openwavlm.evaluation.mixtures import _mixed_phone_figures, _phone_figures, _Read, probe_mixtures
from openwavlm.evaluation.probe import probe_model, summary
from openwavlm.evaluation.ridge import PENALTIES
from openwavlm.evaluation.sets import ProbeSet, ProbeUtterance
from openwavlm.evaluation.unit_figures import pnmi_pseudo_values
from openwavlm.evaluation.units import UnitSettings, fit_layers, layer_pnmi, tally_layers
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.pipeline.iteration import pnmi_by_layer
from planted_features import Planted, frames_of, planted_set

SPEAKERS = {"train": ("a", "b", "c"), "dev": ("d", "e"), "test": ("f", "g")}
# Layers: two pairs of correlated numbers, the speaker's own numbers, and the phone on a small scale beside a large one.
LAYERS = ((0, 1), (2, 3), (4, 5), (6, 7))
FRAMES, UTTERANCES = 200, 4


def pair(rng: np.random.Generator, signs: np.ndarray, small: float, large: float) -> np.ndarray:
    """Two numbers s + d and s − d: d is small and follows `small` times the sign, s is large and follows `large` times it."""
    d = 0.06 * (2.0 * small * signs + rng.standard_normal(len(signs)))
    s = large * signs + rng.standard_normal(len(signs))
    return np.stack([s + d, s - d], axis=1)


# How the small and the large direction of the layers 0 and 1 follow the phone. In training both do; elsewhere only one of them, so
# that a small penalty (which reads the small direction) is right where a large one is wrong, and the other way round.
FOLLOWS = {
    "train": ((1.0, 1.0), (1.0, 1.0)),
    "dev": ((1.0, -1.0), (-1.0, 0.7)),
    "test": ((-1.0, 1.0), (1.0, -1.0)),
}


def part(name: str, seed: int) -> ProbeSet:
    """Speech of one part, whose frames without a phone hold nonsense."""
    rng = np.random.default_rng(seed)
    speakers: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for place, speaker in enumerate(SPEAKERS[name]):
        speakers[speaker] = []
        for _ in range(UTTERANCES):
            phones = rng.integers(0, 2, FRAMES)
            signs = 2.0 * phones - 1
            own = 2.0 * place if name == "dev" else 0.0  # only dev speakers have numbers of their own
            tiny = 0.02 * signs + 0.001 * rng.standard_normal(FRAMES)
            big = 4.0 * (2 * rng.integers(0, 2, FRAMES) - 1) + 0.2 * rng.standard_normal(FRAMES)
            values = np.concatenate(
                [
                    *(pair(rng, signs, small, large) for small, large in FOLLOWS[name]),
                    own + 0.3 * rng.standard_normal((FRAMES, 2)),
                    np.stack([tiny, big], axis=1),
                ],
                axis=1,
            )
            phones[rng.random(FRAMES) < 0.1] = -1
            values[phones < 0, :6] = rng.standard_normal((int((phones < 0).sum()), 6))
            speakers[speaker].append((values.clip(-7.9, 7.9), phones))
    return planted_set(speakers, ("x", "y"))


TRAIN, DEV, TEST = (part(name, seed) for seed, name in enumerate(SPEAKERS))


class Reference(NamedTuple):
    """Right frames of each penalty on one set, per utterance: int (penalties, utterances), and frames with a phone (utterances,)."""

    right: np.ndarray
    frames: np.ndarray


def ridge_by_scikit_learn(layer: int, judged: ProbeSet, penalties: tuple[float, ...] = PENALTIES) -> Reference:
    """Ridge on standardised features of training frames with a phone, in float64; frames too close to call fail the test."""
    train, phones = frames_of(TRAIN, LAYERS[layer])
    known = phones >= 0
    mean, deviation = train[known].mean(axis=0), train[known].std(axis=0)
    values, truth = frames_of(judged, LAYERS[layer])
    utterance = np.repeat(np.arange(len(judged)), [one.frames for one in judged.utterances])
    right = np.zeros((len(penalties), len(judged)), dtype=int)
    for place, penalty in enumerate(penalties):
        model = Ridge(alpha=penalty * known.sum()).fit((train[known] - mean) / deviation, np.eye(2)[phones[known]])
        scores = model.predict((values - mean) / deviation)
        assert np.abs(scores[truth >= 0, 0] - scores[truth >= 0, 1]).min() > 1e-6
        np.add.at(right[place], utterance, (scores.argmax(axis=1) == truth) & (truth >= 0))
    return Reference(right, np.array([(one.phones >= 0).sum() for one in judged.utterances]))


SETTINGS = ProbeSettings(clusters=4, codebook_seeds=(3, 7), codebook_frames=800, degraded_seconds=20.0, seed=5)
CLOSE = 2  # frames of some 1,400 that float32 may call otherwise


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted(LAYERS, standardise=True)


@pytest.fixture(scope="module")
def measured(planted: Planted) -> Measured:
    return measure(planted, TRAIN, DEV, TEST, SETTINGS)


def test_each_layers_penalty_is_the_best_on_dev_and_not_the_best_on_test(measured: Measured) -> None:
    for layer in (0, 1):
        dev, test = ridge_by_scikit_learn(layer, DEV), ridge_by_scikit_learn(layer, TEST)
        best = int(dev.right.sum(axis=1).argmax())
        assert abs(best - int(test.right.sum(axis=1).argmax())) >= 3, "the parts were made to disagree"
        chosen = PENALTIES.index(float(measured.penalty[layer]))
        shares = dev.right.sum(axis=1) / dev.frames.sum()
        assert shares[chosen] == pytest.approx(shares[best], abs=CLOSE / dev.frames.sum())
        assert measured.dev_accuracy[layer] == pytest.approx(shares[best], abs=CLOSE / dev.frames.sum())
        np.testing.assert_allclose(measured.correct[0, layer], test.right[chosen], atol=CLOSE)
    assert PENALTIES.index(float(measured.penalty[0])) < 3 < PENALTIES.index(float(measured.penalty[1])) - 1


def test_the_layer_is_the_best_on_dev_though_another_is_better_on_test(measured: Measured) -> None:
    without_three = np.delete(measured.dev_accuracy, 3)
    assert measured.chosen == 3 and int(without_three.argmax()) == 0
    two = measure(Planted(LAYERS[:2]), TRAIN, DEV, TEST, SETTINGS)
    assert two.chosen == two.units_layer == 0
    assert two.accuracy(0) < two.accuracy(1), "by the test part the other layer would be chosen"
    # 12, 8 and 8 utterances of 200 frames, the first two sets clean and in conditions; five of the last 8 in both degraded versions.
    assert two.audio_seconds == pytest.approx((2 * (12 + 8) + 8 + 2 * 5) * 200 / 50)
    known = np.array([(one.phones >= 0).sum() for one in TEST.utterances])
    assert two.frames[0].tolist() == known.tolist()
    assert two.accuracy(1) == pytest.approx(two.correct[0, 1].sum() / known.sum())


def test_frames_of_an_utterance_that_is_cut_are_added_up() -> None:
    # 1,600 frames are more than 30 s, so that it is extracted in two parts.
    values, phones = frames_of(TEST, range(8))
    long = planted_set({"f": [(values, phones)], "g": [(values[:300], phones[:300])]}, ("x", "y"))
    parts = planted_set(
        {"f": [(values[:800], phones[:800]), (values[800:], phones[800:])], "g": [(values[:300], phones[:300])]}, ("x", "y")
    )
    whole, apart = (measure(Planted(LAYERS[:2]), TRAIN, DEV, judged, SETTINGS) for judged in (long, parts))
    assert whole.frames[0].tolist() == [(phones >= 0).sum(), (phones[:300] >= 0).sum()]
    assert whole.correct[0].tolist() == [[first + second, last] for first, second, last in apart.correct[0].tolist()]


def test_development_accuracy_never_reads_another_part() -> None:
    for fitted, judged in ((TRAIN, DEV), (TRAIN, TEST)):
        found = development_accuracy(Planted(LAYERS[:2]), fitted, judged)
        best = [ridge_by_scikit_learn(layer, judged) for layer in (0, 1)]
        wanted = [reference.right.sum(axis=1).max() / reference.frames.sum() for reference in best]
        np.testing.assert_allclose(found, wanted, atol=CLOSE / best[0].frames.sum())


def test_of_equally_good_layers_the_lowest_is_chosen() -> None:
    found = measure(Planted((LAYERS[1], LAYERS[0], LAYERS[0])), TRAIN, DEV, TEST, SETTINGS)
    assert found.dev_accuracy[1] == found.dev_accuracy[2] > found.dev_accuracy[0]
    assert found.chosen == 1 == found.units_layer


def test_speaker_accuracies_are_of_the_part_that_they_are_named_after(measured: Measured) -> None:
    assert measured.speaker_dev[2] == 1.0, "dev speakers have numbers of their own"
    assert measured.speaker_test[2] < 0.9 and measured.speaker_test.shape == (4,)


def test_units_of_a_named_layer_are_found_on_standardised_features() -> None:
    # The phone's number is 200 times smaller than the one beside it, so k-means sees it only on one scale.
    for standardise, pure in ((True, True), (False, False)):
        found = measure(Planted(LAYERS[3:] + LAYERS[3:], standardise=standardise), TRAIN, DEV, TEST, SETTINGS, units_layer=1)
        assert found.units_layer == 1 and found.chosen == 0
        for joint in found.units[0].sum(axis=1):
            assert joint.sum() == found.frames[0].sum()
            assert (joint.max(axis=0).sum() / joint.sum() > 0.99) == pure
    moved = measure(Planted((LAYERS[0], LAYERS[3]), standardise=True), TRAIN, DEV, TEST, SETTINGS, units_layer=1)
    joint = moved.units[0, 0].sum(axis=0)
    assert joint.max(axis=0).sum() / joint.sum() > 0.99, "standardised by its own layer's deviations"


@pytest.mark.parametrize("standardise", [True, False])
def test_units_are_assigned_on_the_scale_that_their_codebook_was_fitted_on(standardise: bool) -> None:
    # Four levels of one number, far from 0 and close together: on any other scale they are one unit.
    rng = np.random.default_rng(0)

    def levels(speaker: str) -> ProbeSet:
        made = [
            (phones[:, None] * 0.02 + 3 + 0.001 * rng.standard_normal((100, 1)), phones)
            for phones in rng.integers(0, 4, (4, 100))
        ]
        return planted_set({speaker: made}, "wxyz")

    found = measure(Planted(((0,),), standardise=standardise), levels("a"), levels("b"), levels("c"), SETTINGS)
    for joint in found.units[0]:
        assert joint.sum() == 400 and joint.max(axis=0).sum() == joint.max(axis=1).sum() == 400


def test_codebooks_are_fitted_on_evenly_thinned_training_frames_with_the_given_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[tuple[torch.Tensor, int, int]] = []
    original = measure_module.fit_units

    def recorded(frames: torch.Tensor, clusters: int, seed: int) -> object:
        fitted.append((frames, clusters, seed))
        return original(frames, clusters, seed)

    monkeypatch.setattr(measure_module, "fit_units", recorded)
    measure(Planted(LAYERS[3:]), TRAIN, DEV, TEST, SETTINGS)
    assert [(clusters, seed) for _, clusters, seed in fitted] == [(4, 3), (4, 7)]
    values, _ = frames_of(TRAIN, LAYERS[3])
    stays = [frame for frame in range(len(values)) if (frame + 1) * 800 // len(values) > frame * 800 // len(values)]
    np.testing.assert_allclose(fitted[0][0].numpy(), values[stays], atol=1e-6)


def test_degraded_conditions_are_of_fewer_utterances_of_all_speakers_at_the_measured_ratio() -> None:
    planted = Planted(LAYERS[:2])
    found = measure(planted, TRAIN, DEV, TEST, SETTINGS, units_layer=1)
    clean = {one.name: one.waveform().astype(float) for one in TEST.utterances}
    # 20 s are 1,000 frames: five of the eight utterances of 200, in turn from both speakers.
    judged = [name for name, frames in zip(clean, found.frames[2], strict=True) if frames]
    assert judged == ["f-0", "f-1", "f-2", "g-0", "g-1"]
    assert (found.correct[1:, 0, :].max(axis=1) >= 0).all() and (found.correct[1:, 1, :].max(axis=1) >= 0).all()
    noises = []
    for noisy in planted.waveforms[-5:]:
        ratios = [(abs(np.corrcoef(noisy, one)[0, 1]), name) for name, one in clean.items()]
        name = max(ratios)[1]
        noise = noisy - clean[name] * (noisy @ clean[name]) / (clean[name] @ clean[name])
        # What would clip is made quieter as a whole: the ratio is of the two parts of what is left.
        ratio_db = 10 * np.log10(np.sum((noisy - noise) ** 2) / np.sum(noise**2))
        assert ratio_db == pytest.approx(10, abs=0.2)
        noises.append(noise / np.linalg.norm(noise))
    likeness = np.abs(np.array(noises) @ np.array(noises).T - np.eye(5))
    assert likeness.max() < 0.05, "each utterance has noise of its own"
    tone = np.round(8000 * np.sin(np.arange(8000) * 0.3)).astype(np.int16)
    one, other = change_of("noise10", 0), change_of("noise10", 1)
    assert one is not None and other is not None and change_of("clean", 0) is None
    assert not np.array_equal(one(tone), other(tone)) and not np.array_equal(one(tone), one(tone // 2))


def test_the_noise_of_a_measurement_is_of_its_own_seed() -> None:
    noisy = []
    for seed in (0, 5):
        planted = Planted(LAYERS[:1])
        measure(planted, TRAIN, DEV, TEST, replace(SETTINGS, seed=seed))
        noisy.append(planted.waveforms[-1])
    assert not np.array_equal(*noisy)


def test_the_next_labels_layer_is_chosen_by_corrected_pnmi_on_dev() -> None:
    # Layer 1 follows the phone in dev only, layer 2 in test only; both do in training, which the choice never looks at.
    rng = np.random.default_rng(0)

    def one(follows: tuple[float, float, float], speakers: str) -> ProbeSet:
        made = {}
        for speaker in speakers:
            phones = rng.integers(0, 4, 400)
            columns = [np.where(rng.random(400) < share, phones, rng.integers(0, 4, 400)) - 1.5 for share in follows]
            made[speaker] = [(np.stack(columns, axis=1) + 0.02 * rng.standard_normal((400, 3)), phones)]
        return planted_set(made, "wxyz")

    train, dev, test = one((0.9, 0.9, 0.9), "ab"), one((1.0, 0.8, 0.2), "cd"), one((1.0, 0.2, 0.8), "ef")
    planted = Planted(((0,), (1,), (2,)))
    settings = UnitSettings(clusters=4, fit_frames=800, codebook_seeds=(0, 1))
    on_dev, on_test = (layer_pnmi(planted, train, judged, settings) for judged in (dev, test))
    assert set(on_dev) == {1, 2}, "the encoder's input, though it is the best here, is never chosen"
    assert on_dev[1] > on_dev[2] + 0.2 and on_test[2] > on_test[1] + 0.2
    # Four separate clusters: the unit is the value, up to its name.
    for layer in (1, 2):
        values, phones = frames_of(dev, (layer,))
        joint = np.zeros((4, 4), dtype=int)
        np.add.at(joint, (phones, np.round(values[:, 0] + 1.5).astype(int)), 1)
        p = joint / joint.sum()
        outer = p.sum(axis=1, keepdims=True) * p.sum(axis=0)
        entropy = -np.sum(p.sum(axis=1) * np.log(p.sum(axis=1)))
        raw = float(np.sum(p[p > 0] * np.log(p[p > 0] / outer[p > 0])) / entropy)
        bias = 9 / (2 * joint.sum() * entropy)  # (K − 1)(P − 1) / (2 N H)
        assert on_dev[layer] == pytest.approx(raw - bias, abs=bias) and on_dev[layer] < raw - 0.3 * bias


def test_codebooks_of_layers_are_fitted_on_the_speech_to_fit_on() -> None:
    # Training speech has only the lowest of four levels, so its codebook cannot tell the three others apart.
    rng = np.random.default_rng(0)

    def levels(speaker: str, most: int) -> ProbeSet:
        phones = rng.integers(0, 4, 800)
        values = np.minimum(phones, most)[:, None] + 0.02 * rng.standard_normal((800, 1))
        return planted_set({speaker: [(values, phones)]}, "wxyz")

    planted, settings = Planted(((0,), (0,))), UnitSettings(clusters=4, fit_frames=800, codebook_seeds=(0,))
    judged = levels("c", 3)
    whole, lowest = (layer_pnmi(planted, levels("a", most), judged, settings)[1] for most in (3, 0))
    assert whole > 0.95 and lowest < 0.7


@pytest.mark.parametrize("phone_scale", [0.02, 4.0])
def test_units_of_a_layer_are_found_on_standardised_numbers_whichever_is_the_larger(phone_scale: float) -> None:
    # One number has the phone, the other is as bimodal and says nothing; they differ 200 times in scale and both lie off 0.
    rng = np.random.default_rng(0)
    other_scale = 0.08 / phone_scale

    def two(speaker: str) -> ProbeSet:
        phones, others = rng.integers(0, 2, (2, 600))
        signs = np.stack([2 * phones - 1, 2 * others - 1], axis=1) + 0.05 * rng.standard_normal((600, 2))
        return planted_set({speaker: [(2 + signs * [phone_scale, other_scale] / 1.5, phones)]}, "xy")

    planted, settings = Planted(((0,), (0, 1)), standardise=True), UnitSettings(clusters=4, fit_frames=600, codebook_seeds=(0,))
    assert layer_pnmi(planted, two("a"), two("b"), settings)[1] > 0.98


def test_units_of_degraded_audio_are_those_of_the_changed_audio() -> None:
    phones = np.arange(400) % 4
    made = planted_set({"a": [(phones[:, None] - 1.5, phones)]}, "wxyz")
    books = fit_layers(Planted(((0,), (0,))), made, [1], UnitSettings(clusters=4, codebook_seeds=(0,)))
    clean, turned = (
        tally_layers(Planted(((0,), (0,))), books, made, change=change)[1][0].joint.sum(axis=0)
        for change in (None, lambda audio: -audio)
    )
    assert sorted(clean.max(axis=1).tolist()) == [100] * 4 == sorted(clean.max(axis=0).tolist())
    assert turned.tolist() == clean[::-1].tolist(), "the level of phone 0 is that of phone 3 with its sign turned"


CONFIG = WavLMConfig(
    conv_dims=(8,) * 7, dim=16, ffn_dim=16, heads=2, layers=2, positional_kernel=8, positional_groups=2, layer_drop=0
)


def test_the_loops_layers_are_measured_on_dev_with_codebooks_of_training_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def measured(extract: object, fit: ProbeSet, judged: ProbeSet, settings: UnitSettings) -> dict[int, float]:
        asked.update(fit=fit, judged=judged, settings=settings)
        return {2: 0.1234567, 1: 0.3}

    monkeypatch.setattr("openwavlm.pipeline.iteration.layer_pnmi", measured)
    wanted = ProbeSettings(clusters=6, codebook_seeds=(4,), codebook_frames=123)
    assert pnmi_by_layer(WavLM(CONFIG), TRAIN, DEV, wanted) == [0.3, 0.12346]
    assert asked["fit"] is TRAIN and asked["judged"] is DEV
    settings = asked["settings"]
    assert (settings.clusters, settings.codebook_seeds, settings.fit_frames, settings.quick) == (6, (4,), 123, True)


# A model beside its baselines, from planted measurements.


def made_up(seed: int, chosen: int, layers: int = 3, speakers_dev: tuple[float, ...] = (0.1, 0.9, 0.5)) -> Measured:
    """Figures of a measurement on `TEST` (8 utterances), drawn."""
    rng = np.random.default_rng(seed)
    known = np.array([(one.phones >= 0).sum() for one in TEST.utterances])
    frames = np.stack([known, known * (np.arange(8) % 2), known * (np.arange(8) % 2)])
    correct = rng.binomial(frames[:, None, :], rng.uniform(0.3, 0.7, (3, layers, 1)))
    if layers == 3:  # an encoder's other layers are judged on clean speech only
        correct[1:, [layer for layer in range(layers) if layer != chosen]] = -1
    multi = np.where(correct >= 0, rng.binomial(frames[:, None, :], 0.5), -1)
    multi[0] = np.where(correct[1] >= 0, multi[0], -1)  # on clean speech too
    return Measured(
        dev_accuracy=rng.random(layers),
        penalty=np.full(layers, 0.1),
        chosen=np.array(chosen),
        frames=frames,
        correct=correct,
        correct_multi=multi,
        penalty_multi=np.full(layers, 0.1),
        units=rng.poisson(20.0, (3, 2, 2, 2, 4)),
        units_layer=np.array(chosen),
        speaker_dev=np.array(speakers_dev[:layers]),
        speaker_test=rng.random(layers),
        audio_seconds=np.array(1.0),
    )


@pytest.fixture
def stood_beside(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Measured], dict]:
    """Planted measurements by name, and the figures of `probe_model` made of them."""
    spectral = {name: made_up(seed, 0, 2) for seed, name in enumerate(("mfcc", "mfcc_norm", "logmel_raw", "logmel"), 10)}
    made = {**spectral, "untrained": made_up(3, 2), "chosen": made_up(4, 1)}
    # Units of the model follow the phone, those of the log-mels even more.
    for name, extra in (("chosen", 150), ("logmel", 900)):
        made[name].units[..., [0, 1], [1, 3]] += extra
    units_layers = []

    def planted(features, train, dev, test, settings, *, units_layer, judged_layers, cache, progress):
        assert (train, dev, test) == (TRAIN, DEV, TEST)
        if features.settings is None:
            assert (units_layer, list(judged_layers)) == (None, [])
            return made["chosen"]
        name = str(features.settings["name"])
        units_layers.append((name, units_layer, list(judged_layers), features.settings.get("seed")))
        return made[name]

    monkeypatch.setattr(probe_module, "measure", planted)
    figures = probe_model(WavLM(CONFIG), TRAIN, DEV, TEST, SETTINGS, show_progress=False)
    expected = [*((name, 0, [0, 1], None) for name in spectral), ("untrained", None, [], SETTINGS.seed)]
    assert sorted(units_layers, key=str) == sorted(expected, key=str)
    return made, figures


def two_speakers(right: np.ndarray, frames: np.ndarray) -> tuple[float, float, float]:
    """Ratio of the sums with its interval from two pseudo-values: Student's quantile has one degree of freedom."""
    value = right.sum() / frames.sum()
    half = scipy.stats.t.ppf(0.975, 1) * np.std(2 * value - right / frames, ddof=1) / np.sqrt(2)
    return value, value - half, value + half


def test_figures_stand_under_their_names(stood_beside: tuple[dict[str, Measured], dict]) -> None:
    made, figures = stood_beside
    phones = figures["phones"]
    names = {"chosen": ("chosen", 1), "untrained": ("untrained", 2)}
    for kind in ("mfcc", "mfcc_norm", "logmel_raw", "logmel"):
        names |= {kind: (kind, 0), f"{kind}_context": (kind, 1)}
    for name, (of, layer) in names.items():
        share = made[of].correct[0, layer].sum() / made[of].frames[0].sum()
        assert phones[name] == pytest.approx(share, abs=1e-5)
        low, high = phones["intervals"][name]
        assert low <= phones[name] <= high
    # Two speakers of four utterances each: the other's figure is each one's delete-one figure.
    for (place, condition), fit in product(enumerate(CONDITIONS), ("correct", "correct_multi")):
        fitted = phones if fit == "correct" else phones["multi"]
        judged = fitted if condition == "clean" else fitted[condition]
        frames = made["chosen"].frames[place].reshape(2, 4).sum(axis=1)
        ours = vars(made["chosen"])[fit][place, 1].reshape(2, 4).sum(axis=1)
        known = names.keys()
        assert judged["intervals"].keys() == known and judged["differences"].keys() == known - {"chosen"}
        assert judged["by_speaker"] == {"speakers": ["f", "g"], "correct": ours.tolist(), "frames": frames.tolist()}
        for name in known:
            of, layer = names[name]
            theirs = vars(made[of])[fit][place, layer].reshape(2, 4).sum(axis=1)
            assert judged[name] == pytest.approx(theirs.sum() / frames.sum(), abs=1e-5)
            assert judged["intervals"][name] == pytest.approx(two_speakers(theirs, frames)[1:], abs=1e-5)
            if name != "chosen":
                assert judged["differences"][name][:3] == pytest.approx(two_speakers(ours - theirs, frames), abs=1e-5)
    for condition, place in (("telephone", 1), ("noise10", 2)):
        judged = phones[condition]
        assert judged.keys() >= names.keys(), "every baseline is judged in every condition"
        assert judged["frames"] == made["chosen"].frames[place].sum()
        share = made["untrained"].correct[place, 2].sum() / made["untrained"].frames[place].sum()
        assert judged["untrained"] == pytest.approx(share, abs=1e-5)
    cost = figures["cost"]
    assert cost["set_seconds"] == {"train": 48.0, "dev": 32.0, "test": 32.0}
    assert cost["set_speakers"] == {"train": 3, "dev": 2, "test": 2} and set(cost["seconds"]) == {*made, "model"} - {"chosen"}
    assert (phones["chosen_layer"], phones["untrained_layer"], phones["speakers"]) == (1, 2, 2)


def test_the_speakers_layer_is_the_best_on_dev(stood_beside: tuple[dict[str, Measured], dict]) -> None:
    made, figures = stood_beside
    speakers = figures["speakers"]
    assert speakers["chosen_layer"] == 1 != int(made["chosen"].speaker_test.argmax())
    assert speakers["chosen"] == pytest.approx(made["chosen"].speaker_test[1], abs=1e-5)
    assert speakers["layers"] == pytest.approx(made["chosen"].speaker_test.tolist(), abs=1e-5)
    assert speakers["layers_dev"] == [0.1, 0.9, 0.5]


def test_no_speakers_layer_is_chosen_where_dev_has_too_few_speakers() -> None:
    measured = made_up(4, 1, speakers_dev=(np.nan, np.nan, np.nan))
    assert np.isfinite(measured.speaker_test).all() and set(probe_module._speakers(measured)) == {"layers", "layers_dev"}
    one_missing = replace(measured, speaker_dev=np.array([0.2, 0.1, 0.3]), speaker_test=np.array([np.nan, 0.5, 0.4]))
    assert probe_module._speakers(one_missing)["chosen_layer"] == 2


def test_the_majority_is_trainings_most_frequent_phone_though_test_has_another() -> None:
    def of(phones: list[int], speaker: str) -> ProbeSet:
        return planted_set({speaker: [(np.zeros((len(phones), 1)), np.array(phones))]}, "xyz")

    train, test = of([0, 0, 0, 1, 2, -1, -1, -1, -1], "a"), of([0, 1, 1, 1, 1, 2, 2, 2, -1, -1], "b")
    assert probe_module._majority(train, test) == 1 / 8


def test_units_are_compared_by_the_interval_over_speakers_and_codebook_seeds(
    stood_beside: tuple[dict[str, Measured], dict],
) -> None:
    made, figures = stood_beside
    for place, condition in enumerate(CONDITIONS):
        units = figures["units"][condition]
        spreads = {name: details["spread"] for name, details in units["details"].items()}
        assert units["spread"] == max(spreads.values()) > min(spreads.values())
        assert units["details"]["mfcc"]["frames"] == made["mfcc"].units[place, 0].sum()
        pseudo = {name: pnmi_pseudo_values(of.units[place]) for name, of in made.items()}
        assert units["by_speaker"]["speakers"] == ["f", "g"]
        assert units["by_speaker"]["frames"] == made["chosen"].units[place, 0].sum(axis=(1, 2)).tolist()
        np.testing.assert_allclose(units["by_speaker"]["pseudo_values"], pseudo["chosen"], atol=1e-5)
        assert units["differences"].keys() == units["verdicts"].keys() == made.keys() - {"chosen"}
        for name, given in units["differences"].items():
            apart = interval(pseudo["chosen"] - pseudo[name], units["chosen"] - units[name])
            assert given == pytest.approx(apart.as_list(), abs=1e-4)
            assert units["verdicts"][name] == outcome_of(*given[1:3])


def test_a_cached_measurement_is_of_one_version_of_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    name = cache_name(Planted(LAYERS), (TRAIN, DEV, TEST), SETTINGS)
    monkeypatch.setattr("openwavlm.evaluation.measure.VERSION", 10**6)
    assert cache_name(Planted(LAYERS), (TRAIN, DEV, TEST), SETTINGS) != name


@pytest.mark.parametrize(
    "changed",
    [
        {"clusters": 5},
        {"codebook_seeds": (3, 8)},
        {"codebook_frames": 801},
        {"degraded_seconds": 21.0},
        {"penalties": PENALTIES[:-1]},
        {"seed": 6},
    ],
)
def test_a_cached_measurement_is_of_its_own_settings(changed: dict) -> None:
    assert replace(SETTINGS, **changed) != SETTINGS and len(vars(SETTINGS)) == 6
    planted, parts = Planted(LAYERS), (TRAIN, DEV, TEST)
    assert cache_name(planted, parts, SETTINGS) == cache_name(Planted(LAYERS), parts, replace(SETTINGS))
    assert cache_name(planted, parts, SETTINGS) != cache_name(planted, parts, replace(SETTINGS, **changed))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("changed", ["phone", "audio", "speaker", "inventory"])
def test_a_cached_measurement_is_of_its_own_sets(place: int, changed: str) -> None:
    parts = [TRAIN, DEV, TEST]
    first, *others = parts[place].utterances
    samples, phones = first.recorded().copy(), first.phones.copy()
    if changed == "phone":
        phones[7] = {0: 1, 1: 0, -1: 0}[int(phones[7])]
    if changed == "audio":
        samples[-1] += 1
    other = replace(first, audio=samples, phones=phones, speaker="z" if changed == "speaker" else first.speaker)
    inventory = ("x", "z") if changed == "inventory" else parts[place].inventory
    one = cache_name(Planted(LAYERS), parts, SETTINGS)
    parts[place] = ProbeSet((other, *others), inventory)
    assert cache_name(Planted(LAYERS), parts, SETTINGS) != one
    parts[place] = ProbeSet((replace(first, phones=first.phones.astype(np.int16)), *others), ("x", "y"))
    assert cache_name(Planted(LAYERS), parts, SETTINGS) == one, "whatever type holds the phones"


def test_the_name_of_a_set_says_which_audio_has_which_phones() -> None:
    first, second = TEST.utterances[:2]
    assert first.frames == second.frames and first.speaker == second.speaker
    one = ProbeSet((first, second), TEST.inventory)
    exchanged = ProbeSet((replace(first, audio=second.audio), replace(second, audio=first.audio)), TEST.inventory)
    assert exchanged.fingerprint != one.fingerprint != ProbeSet((second, first), TEST.inventory).fingerprint


def test_a_cached_measurement_is_of_its_own_features_and_of_the_layer_of_its_units() -> None:
    planted, parts = Planted(LAYERS), (TRAIN, DEV, TEST)
    names = [cache_name(planted, parts, SETTINGS, layer) for layer in (None, 0, 1)]
    names += [cache_name(planted, parts, SETTINGS, 0, [1])]
    planted.settings = {"name": "planted", "seed": 1}
    names.append(cache_name(planted, parts, SETTINGS))
    assert len(set(names)) == 5 and all(name.startswith("planted-") and name.endswith(".npz") for name in names)


def test_the_bar_is_as_long_as_the_audio_of_all_kinds_of_features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    totals: list[float] = []
    done: dict[str, dict[str, float]] = {}

    class Noting:
        def __init__(self, total: float, **settings: bool) -> None:
            totals.append(total)

        def __enter__(self) -> "Noting":
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def advance(self, amount: float, description: str) -> None:
            name, part = description.removeprefix("probe ").split(", ")
            into = done.setdefault(name, {})
            what = "done" if part == "done" else "read"
            into[what] = into.get(what, 0.0) + amount

    monkeypatch.setattr(probe_module, "ProgressBar", Noting)
    # Utterances of 4 s: three, two and two; of the last two one in both degraded versions.
    parts = [ProbeSet(each.utterances[:: len(each) // size], each.inventory) for each, size in ((TRAIN, 3), (DEV, 2), (TEST, 2))]
    fast = ProbeSettings(clusters=2, codebook_seeds=(0,), codebook_frames=100, degraded_seconds=5.0)
    probe_model(WavLM(CONFIG), *parts, fast)
    twice = 2 * (12 + 8) + 8  # training and dev speech is clean, then in three conditions in turn
    kinds = ("mfcc", "mfcc_norm", "logmel_raw", "logmel", "untrained", "model")
    assert totals == [pytest.approx(6 * (twice + 2 * 5))], "the bar takes the seconds that were asked for"
    assert done == {name: {"read": pytest.approx(twice + 2 * 4), "done": pytest.approx(2 * 1)} for name in kinds}
    totals.clear()
    done.clear()
    probe_model(WavLM(CONFIG), *parts, replace(fast, degraded_seconds=8.0), cache=tmp_path)
    assert totals == [pytest.approx(6 * (twice + 2 * 8))]
    assert {name: of["read"] for name, of in done.items()} == dict.fromkeys(kinds, pytest.approx(twice + 2 * 8))
    done.clear()
    probe_model(WavLM(CONFIG), *parts, replace(fast, degraded_seconds=8.0), cache=tmp_path)
    assert done["mfcc"] == {"done": pytest.approx(twice + 2 * 8)}, "a cached baseline is done at once"


def test_figures_for_json_are_rounded_to_five_places_and_none_where_they_are_no_number() -> None:
    given = {"a": np.array([1.23456789, np.nan]), "b": (np.int64(3), "x", None), "c": {"d": float("inf"), "e": np.float32(0.5)}}
    assert summary(given) == {"a": [1.23457, None], "b": [3, "x", None], "c": {"d": None, "e": 0.5}}


# Mixtures


def scored(scores: np.ndarray, truth: np.ndarray) -> Scored:
    """Frames of one utterance each of "a" and "b", in turn, of rising energy."""
    return Scored(scores, truth, np.arange(len(truth), dtype=float), np.arange(len(truth)) % 2)


def test_overlap_layers_and_penalties_are_chosen_on_dev() -> None:
    # Two layers, two penalties: on dev layer 0 by penalty 1 is perfect, on test layer 1 by penalty 0.
    truth = np.array([True, False, True, False])
    right, inverted, medium = np.array([2.0, 0, 1, -1]), np.array([0.0, 2, -1, 1]), np.array([2.0, 1.5, 1, 0])
    dev = scored(np.array([[inverted, right], [medium, inverted]]), truth)
    test = scored(np.array([[right, inverted], [right, inverted]]), np.array([True, True, True, False]))
    figures = detection_figures(dev, test, mixtures_of("ab", "cc"))
    # Mean precision at the positive frames, ranked by score.
    order = np.argsort(-inverted, kind="stable")
    hits = test.truth[order]
    by_hand = np.mean([hits[: place + 1].mean() for place in range(4) if hits[place]])
    ranked = truth[np.argsort(-medium, kind="stable")]
    medium_dev = np.mean([ranked[: place + 1].mean() for place in range(4) if ranked[place]])
    assert figures["chosen_layer"] == 0 and figures["chosen"] == pytest.approx(by_hand)
    assert figures["layers"] == pytest.approx([by_hand, 1.0]) and figures["layers_dev"] == pytest.approx([1.0, medium_dev])
    assert figures["share"] == 0.75
    assert figures["level"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3), (
        "ranked by energy: the frame that is not marked comes first"
    )
    # Without "a" frames 1 and 3 remain, of which the marked one is ranked first; without "b" frames 0 and 2, both marked; without "c" none.
    pseudo = [3 * by_hand - 2.0, 3 * by_hand - 2.0]
    found = figures["pseudo_values"]
    assert found["speakers"] == ["a", "b", "c"] and found["chosen"][:2] == pytest.approx(pseudo) and np.isnan(found["chosen"][2])


def test_phone_layers_of_mixtures_are_chosen_on_dev() -> None:
    utterances = tuple(ProbeUtterance(np.zeros(400, np.int16), np.zeros(1, dtype=np.int64), name) for name in ("b", "a", "b"))
    test_set = ProbeSet(utterances, ("x",))
    # dev: layer 0 by penalty 1 has 15 of 20, layer 1 by penalty 0 has 10
    dev = _Read(np.array([[[2, 1], [8, 7]], [[5, 5], [1, 0]]]), np.array([10, 10]))
    test = _Read(np.array([[[9, 9, 9], [1, 2, 3]], [[9, 8, 7], [10, 10, 10]]]), np.array([10, 20, 10]))
    figures = _phone_figures(dev, test, test_set)
    assert figures["chosen_layer"] == 0 and figures["chosen"] == pytest.approx(6 / 40)
    assert figures["layers"] == pytest.approx([6 / 40, 24 / 40]) and figures["layers_dev"] == pytest.approx([0.75, 0.5])
    assert figures["by_speaker"]["speakers"] == ["a", "b"]
    assert figures["by_speaker"]["correct"].tolist() == [2, 4] and figures["by_speaker"]["frames"].tolist() == [20, 20]
    assert figures["interval"] == pytest.approx(two_speakers(np.array([2, 4]), np.array([20, 20]))[1:])
    # In mixtures each speaker is left out as the second one too.
    mixed = _mixed_phone_figures(dev, test, mixtures_of("bab", "aca"))
    assert {name: mixed[name] for name in ("chosen", "chosen_layer", "layers")} == {
        name: figures[name] for name in ("chosen", "chosen_layer", "layers")
    }
    pseudo = mixed["pseudo_values"]
    assert pseudo["speakers"] == ["a", "b", "c"] and np.isnan(pseudo["chosen"][0]), "a is in every mixture"
    assert pseudo["chosen"][1:] == pytest.approx([3 * 6 / 40 - 2 * 2 / 20, 3 * 6 / 40 - 2 * 4 / 20])
    two = interval(np.array([pseudo["chosen"]]), 6 / 40)
    assert mixed["interval"] == [two.low, two.high] and two.clusters == 2


def mixtures_of(first: str, second: str) -> Mixtures:
    """Mixtures of silence, one of each pair of speakers."""
    utterances = tuple(ProbeUtterance(np.zeros(400, np.int16), np.zeros(1, dtype=np.int64), name) for name in first)
    nowhere = tuple(np.zeros(1, dtype=bool) for _ in first)
    return Mixtures(ProbeSet(utterances, ("x",)), nowhere, nowhere, tuple(second))


def test_mixtures_are_made_of_each_part_at_the_asked_ratio_and_seed() -> None:
    planted = Planted(((0,), (1,)))
    figures = probe_mixtures(planted, TRAIN, DEV, TEST, seed=4, energy_ratio_db=3.0)
    raw, levelled = (
        [mix_set(each, seed=4, energy_ratio_db=3.0, gain_normalised=normalised).mixed for each in (TRAIN, DEV, TEST)]
        for normalised in (False, True)
    )
    parts = [TRAIN, *raw, *levelled, *raw[1:], DEV, TEST]  # phones, detectors raw and with the gain normalised, phones read twice
    wanted = [one.waveform().tobytes() for each in parts for one in each.utterances]
    given = [waveform.tobytes() for waveform in planted.waveforms]
    places = np.cumsum([0, *map(len, parts)])
    for first, stop in pairwise(places):
        assert sorted(given[first:stop]) == sorted(wanted[first:stop])
    mixed = mix_set(TEST, seed=4, energy_ratio_db=3.0)
    overlapped, active = np.concatenate(mixed.overlapped), np.concatenate(mixed.active)
    assert figures["overlap"]["share"] == figures["overlap_normalised"]["share"] == pytest.approx(overlapped.mean(), abs=1e-5)
    assert figures["target"]["share"] == pytest.approx(active[overlapped].mean(), abs=1e-5)
    everywhere = [int((one.phones >= 0).sum()) for one in TEST.utterances]
    assert figures["clean_phones"]["by_speaker"]["frames"] == pytest.approx([sum(everywhere[:4]), sum(everywhere[4:])])
    known = [int((both & (one.phones >= 0)).sum()) for both, one in zip(mixed.overlapped, TEST.utterances, strict=True)]
    assert sum(known) > 0 and figures["phones"]["pseudo_values"]["speakers"] == ["f", "g"]


@pytest.mark.parametrize("ratio_db", [-5.0, 0.0, 5.0])
def test_a_mixtures_second_speaker_is_another_one_at_the_asked_ratio(ratio_db: float) -> None:
    rng = np.random.default_rng(0)
    rates = {"a": 0.05, "b": 0.11, "c": 0.23}
    utterances = tuple(
        ProbeUtterance(
            np.round(3000 * np.sin(rates[speaker] * np.arange(15_760) + rng.uniform(0, 6))).astype(np.int16),
            np.zeros(49, dtype=np.int64),
            speaker,
            f"{speaker}{number}",
        )
        for speaker in rates
        for number in range(12)
    )
    mixtures = mix_set(ProbeSet(utterances, ("x",)), seed=1, energy_ratio_db=ratio_db)
    places, seconds = set(), set()
    for clean, mixed in zip(utterances, mixtures.mixed.utterances, strict=True):
        added = mixed.recorded().astype(float) - clean.recorded()
        assert added.any(), "every utterance is mixed"
        inside = np.flatnonzero(np.abs(added) > 20)
        if len(inside) < 4000:
            continue
        first, stop = inside[0], inside[-1] + 1
        places.add((first, stop))
        assert stop - first <= 7880, "half of the first speaker's samples at most"
        # All tones have the same energy, so the added part's energy is that of the second speaker's scaled tone.
        assert 10 * np.log10(np.mean(clean.recorded().astype(float) ** 2) / np.mean(added[first:stop] ** 2)) == pytest.approx(
            ratio_db, abs=0.3
        )
        spectrum = np.abs(np.fft.rfft(added[first:stop] * np.hanning(stop - first)))
        rate = 2 * np.pi * spectrum.argmax() / (stop - first)
        second = min(rates, key=lambda name: abs(rates[name] - rate))
        assert second != clean.speaker
        seconds.add((clean.speaker, second))
    assert len(places) >= 5, "each mixture has its own place"
    assert len(seconds) >= 4, "partners are drawn among all other speakers"


def test_another_seed_gives_other_partners_and_other_places() -> None:
    rates = {"a": 0.05, "b": 0.11, "c": 0.23, "d": 0.37}
    tones = tuple(
        ProbeUtterance(np.round(3000 * np.sin(rate * np.arange(15_760))).astype(np.int16), np.zeros(49, int), speaker)
        for speaker, rate in rates.items()
    )
    seconds, starts = set(), set()
    for seed in range(8):
        clean, mixed = tones[0].recorded(), mix_set(ProbeSet(tones, ("x",)), seed=seed).mixed.utterances[0].recorded()
        again = mix_set(ProbeSet(tones, ("x",)), seed=seed).mixed.utterances[0].recorded()
        np.testing.assert_array_equal(mixed, again)
        added = mixed.astype(float) - clean
        inside = np.flatnonzero(np.abs(added) > 20)
        starts.add(int(inside[0]))
        part = added[inside[0] : inside[-1] + 1]
        rate = 2 * np.pi * np.abs(np.fft.rfft(part * np.hanning(len(part)))).argmax() / len(part)
        seconds.add(min(rates, key=lambda name: abs(rates[name] - rate)))
    assert len(starts) >= 6 and len(seconds - {"a"}) >= 2


# Refusals


def renamed(probe_set: ProbeSet, old: str, new: str) -> ProbeSet:
    """The set with one speaker under another name."""
    return ProbeSet(
        tuple(replace(one, speaker=new if one.speaker == old else one.speaker) for one in probe_set.utterances),
        probe_set.inventory,
    )


@pytest.mark.parametrize("place", [0, 1, 2])
def test_parts_that_number_phones_otherwise_are_refused(place: int) -> None:
    parts = [TRAIN, DEV, TEST]
    parts[place] = ProbeSet(parts[place].utterances, ("y", "x"))
    with pytest.raises(ValueError, match="must number phones by one inventory"):
        probe_model(WavLM(CONFIG), *parts, SETTINGS)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ((TRAIN, renamed(DEV, "d", "b"), TEST), "'b' is in train and dev"),
        ((TRAIN, DEV, renamed(TEST, "g", "c")), "'c' is in train and test"),
        ((TRAIN, DEV, renamed(TEST, "f", "e")), "'e' is in dev and test"),
    ],
)
@pytest.mark.parametrize("entry", ["probe", "mixtures"])
def test_parts_that_share_a_speaker_are_refused_before_anything_is_extracted(
    entry: str, parts: tuple[ProbeSet, ProbeSet, ProbeSet], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = Planted(LAYERS)
    monkeypatch.setattr(probe_module, "measure", lambda *_, **__: pytest.fail("features are computed"))
    with pytest.raises(ValueError, match=f"must be different people, but {named}: split by speaker") as refusal:
        if entry == "probe":
            probe_model(WavLM(CONFIG), *parts, SETTINGS)
        else:
            probe_mixtures(planted, *parts)
    assert "\n" not in str(refusal.value) and not planted.waveforms
