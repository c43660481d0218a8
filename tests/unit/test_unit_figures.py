"""Figures of units against NumPy references, whatever the histogram; layers are chosen by them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openwavlm.audio.frames import num_frames
from openwavlm.evaluation.quality_rows import COLUMNS, cells, rows_of, text_table, tsv
from openwavlm.evaluation.sets import ProbeSet, ProbeUtterance
from openwavlm.evaluation.unit_figures import (
    UnitFigures,
    UnitTally,
    run_lengths,
    shuffled_tally,
)
from openwavlm.evaluation.units import UnitSettings, choose_layer, fit_layers, layer_pnmi, tally_layers
from openwavlm.labels.quality import phone_quality, pnmi
from planted_features import Planted, planted_set

JOINTS = arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.integers(0, 40)).filter(
    lambda j: j.sum() > 0
)


def written_out(joint: np.ndarray) -> tuple[float, float, float]:
    """Phone purity, cluster purity and PNMI as their definitions read (HuBERT §IV-C), frame by frame."""
    phones, units = np.array([(y, c) for y, c in np.ndindex(*joint.shape) for _ in range(joint[y, c])]).T
    total = len(phones)
    of_unit = {c: phones[units == c] for c in set(units.tolist())}
    of_phone = {y: units[phones == y] for y in set(phones.tolist())}
    phone_purity = sum(np.bincount(of).max() for of in of_unit.values()) / total
    cluster_purity = sum(np.bincount(of).max() for of in of_phone.values()) / total
    entropy = -sum(len(of) / total * np.log(len(of) / total) for of in of_phone.values())
    left = 0.0
    for of in of_unit.values():
        shares = np.bincount(of) / len(of)
        left -= len(of) / total * float(np.sum(shares[shares > 0] * np.log(shares[shares > 0])))
    return phone_purity, cluster_purity, (entropy - left) / entropy if entropy > 0 else 0.0


@settings(max_examples=60, deadline=None)
@given(JOINTS)
def test_purities_and_pnmi_are_what_their_definitions_say(joint: np.ndarray) -> None:
    quality = phone_quality(joint, shuffles=1)
    expected = written_out(joint)
    assert (quality.phone_purity, quality.cluster_purity, quality.pnmi) == pytest.approx(expected, abs=1e-9)
    assert 0 <= quality.pnmi <= 1 + 1e-12 and quality.pnmi_corrected <= quality.pnmi


@settings(max_examples=60, deadline=None)
@given(JOINTS, st.randoms(use_true_random=False))
def test_names_of_phones_and_units_do_not_matter(joint: np.ndarray, random) -> None:
    rows, columns = list(range(joint.shape[0])), list(range(joint.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    renamed = joint[rows][:, columns]
    assert pnmi(renamed) == pytest.approx(pnmi(joint), abs=1e-9)
    one, other = phone_quality(joint, shuffles=1), phone_quality(renamed, shuffles=1)
    assert (one.phone_purity, one.cluster_purity) == (other.phone_purity, other.cluster_purity)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(2, 80), st.integers(0, 2**32 - 1))
def test_independent_labels_are_corrected_to_nothing(phones: int, clusters: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    shares = np.outer(generator.dirichlet(np.ones(phones) * 3), generator.dirichlet(np.ones(clusters) * 3))
    joint = generator.multinomial(20_000, shares.ravel() / shares.sum()).reshape(phones, clusters)
    quality = phone_quality(joint)
    assert abs(quality.pnmi_corrected) < 0.01 and abs(quality.pnmi_corrected) <= quality.pnmi + 0.01


@settings(max_examples=40, deadline=None)
@given(arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 2)))
def test_run_lengths_are_counted_as_one_counts_by_hand(units: np.ndarray) -> None:
    by_hand = [1]
    for before, after in itertools.pairwise(units):
        if before == after:
            by_hand[-1] += 1
        else:
            by_hand.append(1)
    assert run_lengths(units).tolist() == by_hand


def tally_of(agreement: float, seed: int, *, speakers: int = 12, habit: float = 0.0) -> UnitTally:
    """Units that are the phone with the chance `agreement`, else anything; `habit`: or the speaker's own unit."""
    generator = np.random.default_rng(seed)
    tally = UnitTally(5, 8, [f"v{number}" for number in range(speakers)])
    for utterance, number in enumerate([*range(speakers)] * 2):
        phones = generator.integers(5, size=300)
        units = np.where(generator.random(300) < agreement, phones, generator.integers(8, size=300))
        units = np.where(generator.random(300) < habit, number % 8, units)
        tally.add(f"v{number}", units, phones, utterance)
    return tally


def test_units_that_follow_phones_or_speakers_say_so() -> None:
    phones, speakers, nothing = (
        UnitFigures.of([tally_of(*of, habit=habit)]) for *of, habit in ((0.9, 0, 0), (0.0, 1, 0.5), (0, 2, 0))
    )
    assert phones.pnmi > 0.7 and abs(nothing.pnmi) < 0.01 and abs(speakers.pnmi) < 0.01
    assert (
        speakers.speaker_information > 0.1 and abs(nothing.speaker_information) < 0.01 and abs(phones.speaker_information) < 0.01
    )
    assert speakers.speaker_accuracy is not None and speakers.speaker_accuracy > 0.5 and speakers.speakers_probed == 12
    assert nothing.speaker_accuracy is not None and nothing.speaker_accuracy < 0.3
    assert nothing.used == 1 and nothing.perplexity == pytest.approx(8, abs=0.1)
    assert nothing.run_frames == pytest.approx(8 / 7, abs=0.03) and nothing.run_median == 1
    assert phones.spread == 0 and (phones.clusters, phones.phones, phones.speakers, phones.frames) == (8, 5, 12, 7200)


def test_speakers_are_told_on_other_utterances_than_those_that_a_long_recording_was_cut_into() -> None:
    """Each utterance has units of its own and speakers nothing: who learns from one part of it would tell the next."""
    fit, judged = toy_set(["a"], 0), long_set(6, 2)
    tallies = tally_layers(Toy(), fit_layers(Toy(), fit, [1], UnitSettings(clusters=4, fit_frames=200)), judged)
    for tally in tallies[1]:
        assert tally.speaker_accuracy is not None and tally.speaker_accuracy[1] == 6
        assert tally.speaker_accuracy[0] < 0.5
    alone = tally_layers(Toy(), fit_layers(Toy(), fit, [1], UnitSettings(clusters=4, fit_frames=200)), long_set(6, 1))
    assert [tally.speaker_accuracy for tally in alone[1]] == [None] * 3, "parts of one utterance are no two utterances"


def test_speaker_figures_are_means_over_codebooks_and_nothing_of_shuffled_units() -> None:
    tallies = [tally_of(0.0, seed, habit=habit) for seed, habit in ((1, 0.5), (2, 0.0), (3, 0.2))]
    accuracies = [tally.speaker_accuracy for tally in tallies]
    assert all(accuracies) and len({found[0] for found in accuracies if found}) == 3
    figures = UnitFigures.of(tallies)
    assert figures.speaker_accuracy == pytest.approx(np.mean([found[0] for found in accuracies if found]))
    told = [phone_quality(tally.by_speaker).pnmi_corrected for tally in tallies]
    assert figures.speaker_information == pytest.approx(np.mean(told)) and told[0] > 0.1
    shuffled = shuffled_tally(tallies[0], 4)
    for axis in (0, 1):
        assert shuffled.by_speaker.sum(axis=axis).tolist() == tallies[0].by_speaker.sum(axis=axis).tolist()
        assert (
            shuffled.joint.sum(axis=(0, 1) if axis else 2).tolist() == tallies[0].joint.sum(axis=(0, 1) if axis else 2).tolist()
        )
    assert abs(UnitFigures.of([shuffled]).speaker_information) < 0.01


def test_an_interval_lies_around_its_figure_and_is_wider_for_fewer_speakers() -> None:
    wide, narrow = (UnitFigures.of([tally_of(0.5, 3, speakers=count)]) for count in (4, 40))
    for figures in (wide, narrow):
        assert figures.pnmi_low < figures.pnmi < figures.pnmi_high
    assert wide.pnmi_high - wide.pnmi_low > narrow.pnmi_high - narrow.pnmi_low
    alone = UnitFigures.of([tally_of(0.5, 3, speakers=1)])
    assert np.isnan([alone.pnmi_low, alone.pnmi_high]).all()
    crowd = UnitTally(2, 2, [f"v{number}" for number in range(700)])
    assert crowd.joint.shape[0] == 256 and crowd.by_speaker.shape[0] == 700


def test_a_difference_is_paired() -> None:
    better, worse = UnitFigures.of([tally_of(0.6, 4)]), UnitFigures.of([tally_of(0.4, 4)])
    apart, same = better.minus(worse), better.minus(better)
    assert apart.low > 0 and apart.outcome == "higher" and apart.clusters == 12
    assert (same.low, same.high, same.outcome) == (0, 0, "equal")


def test_rows_stand_beside_mfcc_of_their_own_number_and_beside_shuffled_units() -> None:
    good = [tally_of(0.9, seed) for seed in range(3)]
    mfcc = {8: [tally_of(0.3, seed) for seed in (5, 6, 7)]}
    rows = rows_of({("layer 2", "layer", 2): good, ("labels", "labels", None): mfcc[8][:1]}, {"mfcc": mfcc}, "clean")
    assert [row.kind for row in rows] == ["layer", "labels", "mfcc", "shuffled"]
    assert rows[0].verdict == "higher" and rows[0].difference is not None and rows[0].difference.low > 0
    assert rows[1].verdict == "equal" and rows[2].difference is None
    assert abs(rows[3].figures.pnmi) < 0.005 and rows[3].figures.run_frames == pytest.approx(8 / 7, abs=0.03)
    assert rows[3].figures.speaker_accuracy is None and abs(shuffled_tally(good[0]).joint.sum() - good[0].joint.sum()) == 0
    table, lines = text_table(rows).splitlines(), tsv(rows).splitlines()
    assert len(table) == len(lines) == 5 and len({len(line) for line in table}) == 1
    assert {line.count("\t") for line in lines} == {lines[0].count("\t")} and len(cells(rows[0])) == len(COLUMNS)


class Toy:
    """Layer 0 is the loudness and noise, layer 1 the phone in one dimension, on a scale of its own, beside a loud constant."""

    dims = (2, 3)
    settings = None
    device = torch.device("cpu")
    standardise = True

    def __call__(self, waveforms: np.ndarray, layers: list[int]) -> list[torch.Tensor]:
        frames = num_frames(waveforms.shape[1])
        audio = torch.from_numpy(waveforms[:, : 320 * frames].astype(np.float32)).unfold(1, 320, 320)[:, :frames]
        noise = torch.sin(1e4 * audio[..., :2])
        phone = audio.mean(dim=2, keepdim=True)
        states = [noise, torch.cat([phone * 1e-5, torch.full_like(noise, 1e3)], dim=2)]
        return [states[layer] for layer in layers]


def toy_set(speakers: list[str], seed: int) -> ProbeSet:
    generator = np.random.default_rng(seed)
    utterances = []
    for speaker in speakers:
        for _ in range(2):
            phones = np.repeat(generator.integers(4, size=25), 4)
            audio = np.repeat(phones * 4000 - 6000, 320) + generator.integers(-300, 300, 32_000)
            utterances.append(ProbeUtterance(np.append(audio, np.zeros(80)).astype(np.int16), phones, speaker))
    return ProbeSet(tuple(utterances), ("a", "b", "c", "d"))


def long_set(speakers: int, utterances: int) -> ProbeSet:
    """Utterances of 64 s, each with its own habit of phones, which another utterance of another speaker has too."""
    generator = np.random.default_rng(5)
    made = []
    for turn in range(utterances):
        for speaker in range(speakers):
            habit = np.random.default_rng((speaker + turn) % speakers).dirichlet(np.ones(4))
            phones = np.repeat(generator.choice(4, size=800, p=habit), 4)
            audio = np.append(np.repeat(phones * 4000 - 6000, 320), np.zeros(80)).astype(np.int16)
            made.append(ProbeUtterance(audio, phones, f"v{speaker}"))
    return ProbeSet(tuple(made), ("a", "b", "c", "d"))


def test_layers_are_fitted_on_some_speakers_and_judged_on_others_in_any_grouping() -> None:
    fit, judged = toy_set(["a", "b", "c"], 0), toy_set(["x", "y"], 1)
    wanted = UnitSettings(clusters=4, fit_frames=400)
    found = layer_pnmi(Toy(), fit, judged, wanted)
    assert found.keys() == {1} and found[1] > 0.9
    assert layer_pnmi(Toy(), fit, judged, UnitSettings(clusters=4, fit_frames=400, memory_gb=1e-9)) == found
    quick = layer_pnmi(Toy(), fit, judged, UnitSettings(clusters=4, fit_frames=400, quick=True))
    assert quick[1] > 0.85
    both = tally_layers(Toy(), fit_layers(Toy(), fit, [0, 1], wanted), judged)
    assert phone_quality(both[0][0].joint.sum(axis=0)).pnmi_corrected < 0.3
    tallies = tally_layers(Toy(), fit_layers(Toy(), fit, [1], wanted), judged)
    assert [tally.joint.sum() for tally in tallies[1]] == [judged.frames] * 3


@pytest.mark.parametrize(("numbers", "passes"), [(9, 1), (8, 2), (7, 2), (5, 2), (4, 3), (1, 3)])
def test_as_many_layers_are_fitted_in_one_pass_as_fit_into_memory(numbers: int, passes: int) -> None:
    # Three layers of 2, 3 and 4 numbers a frame, 4 bytes each; 100 frames of an utterance of 200 are kept.
    rng = np.random.default_rng(0)
    made = planted_set({"a": [(rng.standard_normal((200, 8)).clip(-7, 7), np.zeros(200, dtype=int))]}, ("x",))
    planted = Planted(((0, 1), (2, 3, 4), (4, 5, 6, 7)))
    memory_gb = numbers * 4 * 100 / 1e9
    done: list[float] = []
    settings = UnitSettings(clusters=2, codebook_seeds=(0,), fit_frames=100, memory_gb=memory_gb)
    books = fit_layers(planted, made, [0, 1, 2], settings, lambda part, seconds: done.append(seconds))
    assert sorted(books) == [0, 1, 2] and len(planted.waveforms) == passes and sum(done) == pytest.approx(passes * 4.0)
    assert [book.codebooks[0].centroids.shape for _, book in sorted(books.items())] == [(2, 2), (2, 3), (2, 4)]


def test_too_little_speech_lowers_k_aloud(caplog: pytest.LogCaptureFixture) -> None:
    books = fit_layers(Toy(), toy_set(["a"], 0), [1], UnitSettings(clusters=100, frames_per_cluster=40))
    assert len(books[1].codebooks[0]) == 5 and "K is lowered from 100 to 5" in caplog.text
    caplog.clear()
    few = fit_layers(Toy(), toy_set(["a"], 0), [1], UnitSettings(clusters=3, frames_per_cluster=40, fit_frames=90))
    assert len(few[1].codebooks[0]) == 2 and "K is lowered from 3 to 2: 90 frames are fewer than 40 a cluster" in caplog.text


@pytest.mark.parametrize("key", ["clusters", "fit_frames", "frames_per_cluster", "memory_gb"])
def test_settings_refuse_what_cannot_be(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} must be positive, but is 0"):
        UnitSettings(**{key: 0})
    with pytest.raises(ValueError, match="at least one seed"):
        UnitSettings(codebook_seeds=())


def test_the_next_layer_is_the_measured_best_or_half_and_three_quarters_of_the_depth() -> None:
    assert [choose_layer(iteration, 12) for iteration in (1, 2, 3)] == [6, 9, 9]
    assert [choose_layer(1, layers) for layers in (1, 3, 24)] == [1, 2, 12]
    assert choose_layer(1, 12, {0: 0.9, 4: 0.5, 7: 0.6, 9: 0.6}) == 7, (
        "the input is no layer, and of equals the lower one is taken"
    )
    assert choose_layer(2, 12, {0: 0.9}) == 9
    with pytest.raises(ValueError, match="figure of layer 13"):
        choose_layer(1, 12, {13: 0.5})
    with pytest.raises(ValueError, match="counted from 1"):
        choose_layer(0, 12)
