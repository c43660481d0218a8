"""95 % intervals over speakers, by hand: all n^n equally likely draws of n speakers, and NumPy's quantiles of the drawn ones."""

import itertools

import numpy as np
import pytest

from learn_page import sentence
from openwavlm.evaluation.bootstrap import by_speaker, ratio_interval
from openwavlm.evaluation.paired import Sums, difference
from openwavlm.evaluation.quality_rows import QualityRow, cells, rows_of, tsv
from openwavlm.evaluation.unit_figures import (
    MAX_GROUPS,
    UnitFigures,
    UnitTally,
    pnmi_interval,
    shuffled_tally,
    unit_quality,
    verdict,
)
from openwavlm.runtime.randomness import integers, stable_hash, words


def every_draw(speakers: int) -> np.ndarray:
    """All draws with replacement as numbers of speakers: int (speakers^speakers, speakers)."""
    return np.array(list(itertools.product(range(speakers), repeat=speakers)))


def band(exact: np.ndarray, share: float, draws: int) -> tuple[float, float]:
    """Where the `share` quantile of `draws` draws lies but in one of some 300 cases: three binomial standard deviations."""
    deviation = 3 * np.sqrt(share * (1 - share) / draws)
    low, high = np.quantile(exact, [max(share - deviation, 0), min(share + deviation, 1)])
    return float(low) - 1e-12, float(high) + 1e-12


RIGHT = np.array([10.0, 150.0, 33.0, 2.0, 71.0, 40.0])
FRAMES = np.array([100.0, 200.0, 37.0, 90.0, 111.0, 300.0])


@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_the_interval_of_a_ratio_has_the_quantiles_of_all_equally_likely_draws(confidence: float) -> None:
    drawn = every_draw(6)
    exact = RIGHT[drawn].sum(axis=1) / FRAMES[drawn].sum(axis=1)
    found = ratio_interval(RIGHT, FRAMES, confidence=confidence)
    assert found.value == pytest.approx(RIGHT.sum() / FRAMES.sum()) and found.speakers == 6
    for share, end in (((1 - confidence) / 2, found.low), ((1 + confidence) / 2, found.high)):
        low, high = band(exact, share, 2000)
        assert low <= end <= high


@pytest.mark.parametrize(("seed", "draws", "confidence"), [(0, 2000, 0.95), (7, 150, 0.8)])
def test_the_interval_is_numpys_quantiles_of_the_drawn_speakers(seed: int, draws: int, confidence: float) -> None:
    chosen = integers(words(seed, "probe.bootstrap", draws * 6), 6).reshape(draws, 6)
    ratios = [sum(RIGHT[speaker] for speaker in draw) / sum(FRAMES[speaker] for speaker in draw) for draw in chosen]
    found = ratio_interval(RIGHT, FRAMES, seed=seed, draws=draws, confidence=confidence)
    tail = (1 - confidence) / 2
    assert (found.low, found.high) == pytest.approx((np.quantile(ratios, tail), np.quantile(ratios, 1 - tail)), rel=1e-12)
    if (seed, draws, confidence) == (0, 2000, 0.95):
        assert ratio_interval(RIGHT, FRAMES) == found, "the defaults"


def test_a_paired_difference_draws_both_systems_speakers_together() -> None:
    other = RIGHT - 0.02 * FRAMES
    found = ratio_interval(RIGHT - other, FRAMES)
    assert (found.low, found.value, found.high) == pytest.approx((0.02, 0.02, 0.02))
    own = ratio_interval(RIGHT, FRAMES)
    assert own.high - own.low > 0.2, "though the speakers differ ten times as much"


def test_draws_without_a_frame_are_left_out_and_an_interval_of_nothing_is_refused() -> None:
    found = ratio_interval(np.array([0.0, 0.0, 3.0]), np.array([0.0, 0.0, 5.0]))
    assert (found.low, found.value, found.high) == pytest.approx((0.6, 0.6, 0.6))
    for right, frames in (([], []), ([0.0], [0.0])):
        with pytest.raises(ValueError, match="at least one speaker with frames"):
            ratio_interval(np.array(right), np.array(frames))


def test_sums_by_speaker_add_their_utterances() -> None:
    values, speakers = np.array([1.0, 2, 4, 8, 16]), ["b", "a", "b", "c", "a"]
    by_hand = [sum(v for v, s in zip(values, speakers, strict=True) if s == name) for name in "abc"]
    assert by_speaker(values, speakers).tolist() == by_hand == [18, 5, 8]


# Two arms of a comparison


def test_a_difference_of_arms_is_the_mean_over_seeds_on_the_drawn_speakers() -> None:
    rng = np.random.default_rng(0)
    names = tuple("uvwxyz")
    of, against = ([Sums(names, rng.uniform(0, FRAMES), FRAMES) for _ in range(3)] for _ in range(2))
    found = difference(of, against)
    assert found.of == pytest.approx([float(sums.numerator.sum() / FRAMES.sum()) for sums in of])
    mean = sum((a.numerator - b.numerator) / 3 for a, b in zip(of, against, strict=True))
    chosen = integers(words(0, "probe.bootstrap", 2000 * 6), 6).reshape(2000, 6)
    ratios = mean[chosen].sum(axis=1) / FRAMES[chosen].sum(axis=1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), rel=1e-12)
    assert found.value == pytest.approx(mean.sum() / FRAMES.sum()) and found.speakers == 6
    assert found.as_json()["interval"] == [round(found.low, 5), round(found.high, 5)]
    assert found.as_json()["difference"] == round(found.value, 5)


def test_an_interval_that_touches_zero_is_equal() -> None:
    # One speaker of two has no difference: of four draws one is that speaker alone, so the interval begins at 0 exactly.
    one, other = (Sums(("a", "b"), np.array(right), np.array([10.0, 10.0])) for right in ([5.0, 9.0], [5.0, 4.0]))
    found = difference([one], [other])
    assert (found.low, found.high) == (0.0, 0.5) and found.verdict == "equal"
    turned = difference([other], [one])
    assert (turned.low, turned.high) == (-0.5, 0.0) and turned.verdict == "equal"
    assert "equal" in sentence("phones", "one", "other", turned)


# PNMI of units


def pnmi_by_hand(joint: np.ndarray) -> float:
    """Mutual information over the entropy of the phone, term by term."""
    total, information, entropy = joint.sum(), 0.0, 0.0
    for y in range(joint.shape[0]):
        share = joint[y].sum() / total
        entropy -= share * np.log(share) if share else 0.0
        for c in range(joint.shape[1]):
            if joint[y, c]:
                information += joint[y, c] / total * np.log(joint[y, c] * total / joint[y].sum() / joint[:, c].sum())
    return information / entropy if entropy else 0.0


def tally(seed: int, speakers: int = 5, agreement: float = 0.6) -> UnitTally:
    """Units that are the phone with the chance `agreement`, by speaker more or less; a row a speaker, in the order of drawing."""
    rng = np.random.default_rng(seed)
    names = [f"s{number}" for number in range(speakers)]
    made = UnitTally(3, 4, names)
    for number, name in enumerate(names):
        phones = rng.integers(0, 3, 60 + 20 * number)
        units = np.where(rng.random(len(phones)) < agreement * (number + 1) / speakers, phones, rng.integers(0, 4, len(phones)))
        made.add(name, units, phones, number)
    return made


def all_pnmi(made: UnitTally) -> np.ndarray:
    return np.array([pnmi_by_hand(made.joint[draw].sum(axis=0)) for draw in every_draw(len(made.joint))])


def test_the_interval_of_pnmi_has_the_quantiles_of_all_draws_moved_to_its_figure() -> None:
    tallies = [tally(0), tally(1)]
    exact = np.mean([all_pnmi(one) for one in tallies], axis=0)
    found = pnmi_interval(tallies, 0.3)
    assert (found.value, found.speakers) == (0.3, 5)
    for share, end in ((0.025, found.low), (0.975, found.high)):
        low, high = band(exact - exact.mean() + 0.3, share, 1000)
        # The mean of a thousand draws is off by three standard errors at most.
        slack = 3 * exact.std() / np.sqrt(1000)
        assert low - slack <= end <= high + slack


@pytest.mark.parametrize(("seed", "draws", "confidence"), [(0, 1000, 0.95), (3, 60, 0.8)])
def test_the_interval_of_pnmi_is_numpys_quantiles_of_the_drawn_speakers(seed: int, draws: int, confidence: float) -> None:
    one, other = tally(0), tally(1, agreement=0.3)
    chosen = integers(words(seed, "quality.bootstrap", draws * 5), 5).reshape(draws, 5)
    drawn = [np.array([pnmi_by_hand(made.joint[draw].sum(axis=0)) for draw in chosen]) for made in (one, other)]
    tail = (1 - confidence) / 2
    settings = {} if (seed, draws) == (0, 1000) else {"seed": seed, "draws": draws, "confidence": confidence}

    def by_hand(values: np.ndarray, value: float) -> tuple[float, float]:
        return tuple(value + np.quantile(values - values.mean(), [tail, 1 - tail]))

    found = pnmi_interval([one], 0.25, **settings)
    assert (found.low, found.high) == pytest.approx(by_hand(drawn[0], 0.25), rel=1e-9)
    apart = pnmi_interval([one], 0.1, [other], **settings)
    assert (apart.low, apart.high) == pytest.approx(by_hand(drawn[0] - drawn[1], 0.1), rel=1e-9)
    both = pnmi_interval([one, other], 0.25, **settings)
    assert (both.low, both.high) == pytest.approx(by_hand((drawn[0] + drawn[1]) / 2, 0.25), rel=1e-9)
    assert both.low < 0.25 < both.high


def test_one_speaker_has_no_interval_and_two_have_one() -> None:
    alone, two = pnmi_interval([tally(0, speakers=1)], 0.4), pnmi_interval([tally(0, speakers=2)], 0.4)
    assert alone.value == 0.4 and np.isnan([alone.low, alone.high]).all() and alone.speakers == 1
    assert np.isfinite([two.low, two.high]).all() and two.speakers == 2


def test_up_to_256_speakers_are_drawn_one_by_one_and_more_in_equal_groups() -> None:
    assert MAX_GROUPS == 256
    for speakers, groups in ((5, 5), (256, 256), (600, 256)):
        names = [f"s{number}" for number in range(speakers)]
        made = UnitTally(2, 3, names)
        for name in names:
            made.add(name, np.array([1]), np.array([0]), 0)
        assert made.joint.shape == (groups, 2, 3) and made.by_speaker.shape == (speakers, 3)
        sizes = made.joint.sum(axis=(1, 2))
        assert sizes.max() - sizes.min() <= 1 and sizes.sum() == speakers
    # The groups follow the names' hashes, so that corpora listed speaker by speaker are not drawn neighbour by neighbour.
    order = sorted(names, key=stable_hash)
    fresh = UnitTally(2, 3, names)
    fresh.add(order[3], np.array([2]), np.array([1]), 0)
    fresh.add(order[3 + 256], np.array([2]), np.array([1]), 1)
    assert fresh.joint[3, 1, 2] == 2 and fresh.joint.sum() == 2


def test_figures_of_units_are_those_of_their_counts() -> None:
    made = UnitTally(4, 5, ["a", "b"])  # of four phones three occur
    # Runs: 0 0 0 | 1 | 2 2 and 4 | 0 0 | 4: lengths 3 1 2 1 2 1, median 1 (three of six), mean 10 / 6.
    made.add("a", np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 1, 1, 2, -1]), 0)
    made.add("b", np.array([4, 0, 0, -1, 4]), np.array([2, 0, -1, 0, 2]), 1)
    figures = UnitFigures.of([made])
    joint = np.array([[3, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 2], [0, 0, 0, 0, 0]])
    assert made.joint.sum(axis=0).tolist() == joint.tolist()
    assert (figures.frames, figures.clusters, figures.phones, figures.speakers) == (8, 5, 3, 2)
    assert figures.phone_purity == pytest.approx((3 + 1 + 1 + 2) / 8) and figures.cluster_purity == pytest.approx((3 + 1 + 2) / 8)
    assert figures.pnmi_raw == pytest.approx(pnmi_by_hand(joint))
    assert figures.pnmi == pytest.approx(figures.pnmi_raw - figures.pnmi_shuffled) and figures.pnmi_shuffled > 0
    counts = np.array([5, 1, 2, 0, 2]) / 10
    assert figures.used == 4 / 5
    assert figures.perplexity == pytest.approx(np.exp(-sum(p * np.log(p) for p in counts if p)))
    assert figures.run_frames == pytest.approx(10 / 6) and figures.run_median == 1
    assert figures.spread == 0 and figures.seeds == (figures.pnmi,) and figures.speaker_accuracy is None
    long = UnitTally(1, 2, ["a"])
    long.add("a", np.array([0, 1, 1, 1, 1, 0, 0, 0, 0]), np.zeros(9, dtype=int), 0)
    assert UnitFigures.of([long]).run_median == 4 and UnitFigures.of([long]).speaker_information == 0
    interval = pnmi_interval([made], figures.pnmi)
    assert (figures.pnmi_low, figures.pnmi_high) == (interval.low, interval.high), "around the corrected figure"


def test_speaker_information_is_corrected_for_chance() -> None:
    # Four speakers with the same habits and few frames: what their counts seem to tell is chance.
    rng = np.random.default_rng(0)
    made = UnitTally(1, 6, list("abcd"))
    for name in "abcd":
        made.add(name, rng.integers(0, 6, 40), np.zeros(40, dtype=int), 0)
    raw = pnmi_by_hand(made.by_speaker)
    bias = 3 * 5 / (2 * 160 * np.log(4))
    assert raw > 0.5 * bias and abs(UnitFigures.of([made]).speaker_information - (raw - bias)) < 0.5 * bias


def test_several_codebooks_are_averaged_and_their_spread_has_n_minus_1() -> None:
    tallies = [tally(seed, agreement=0.3 + 0.2 * seed) for seed in range(3)]
    each = [UnitFigures.of([one]).pnmi for one in tallies]
    figures = UnitFigures.of(tallies)
    mean = sum(each) / 3
    assert figures.seeds == pytest.approx(each) and figures.pnmi == pytest.approx(mean)
    assert figures.spread == pytest.approx(np.sqrt(sum((value - mean) ** 2 for value in each) / 2))
    joints = np.stack([one.joint.sum(axis=0) for one in tallies])
    quality = unit_quality(joints)
    assert quality["pnmi"] == pytest.approx(mean) and quality["spread"] == pytest.approx(figures.spread)
    assert quality["pnmi_raw"] == pytest.approx(np.mean([pnmi_by_hand(joint) for joint in joints]))
    assert (quality["frames"], quality["phones"]) == (joints[0].sum(), 3)
    one_unused = np.stack([joints[0], np.concatenate([joints[1][:, :3], 0 * joints[1][:, 3:]], axis=1)])
    assert unit_quality(one_unused)["classes"] == 3.5
    assert quality["phone_purity"] == pytest.approx(np.mean([joint.max(axis=0).sum() / joint.sum() for joint in joints]))


def test_shuffled_units_keep_both_margins_and_have_the_runs_of_independent_draws() -> None:
    made = tally(0)
    shuffled = shuffled_tally(made, seed=1)
    np.testing.assert_array_equal(shuffled.joint.sum(axis=(0, 1)), made.joint.sum(axis=(0, 1)))
    np.testing.assert_array_equal(shuffled.joint.sum(axis=2), made.joint.sum(axis=2))
    np.testing.assert_array_equal(shuffled.by_speaker.sum(axis=0), made.by_speaker.sum(axis=0))
    shares = made.by_speaker.sum(axis=0) / made.by_speaker.sum()
    # A run goes on with the chance Σ p², so its mean length is 1 / (1 − Σ p²).
    assert UnitFigures.of([shuffled]).run_frames == pytest.approx(1 / (1 - np.sum(shares**2)), rel=1e-3)


@pytest.mark.parametrize(
    ("figure", "baseline", "spread", "expected"),
    [
        (0.75, 0.25, 0.25, "higher"),  # twice the spread exactly is no longer equal
        (0.25, 0.75, 0.25, "lower"),
        (0.75, 0.25, 0.26, "equal"),
        (0.75, 0.25, 0.2, "higher"),
        (0.5, 0.5, 0.0, "equal"),
        (0.5, 0.25, 0.0, "higher"),
    ],
)
def test_figures_are_equal_below_twice_the_spread(figure: float, baseline: float, spread: float, expected: str) -> None:
    assert verdict(figure, baseline, spread) == expected


def test_a_row_stands_beside_mfcc_units_of_its_own_number_with_the_larger_spread() -> None:
    def of(clusters: int, agreements: tuple[float, ...]) -> list[UnitTally]:
        rng = np.random.default_rng(clusters)
        made = []
        for agreement in agreements:
            one = UnitTally(3, clusters, ["a", "b", "c"])
            for number, name in enumerate("abc"):
                phones = rng.integers(0, 3, 400)
                one.add(name, np.where(rng.random(400) < agreement, phones, rng.integers(0, clusters, 400)), phones, number)
            made.append(one)
        return made

    mfcc = {4: of(4, (0.3, 0.3, 0.3)), 8: of(8, (0.2, 0.6, 0.9))}
    tallies = {
        ("l4", "layer", 1): of(4, (0.8, 0.8, 0.8)),
        ("l8", "layer", 2): of(8, (0.7, 0.7, 0.7)),
        ("l7", "labels", None): of(7, (0.9,)),
    }
    rows = rows_of(tallies, mfcc, "clean")
    figures = {clusters: UnitFigures.of(made) for clusters, made in mfcc.items()}
    for row, clusters in zip(rows, (4, 8, 8), strict=False):
        assert row.difference is not None
        value = row.figures.pnmi - figures[clusters].pnmi
        interval = pnmi_interval(tallies[row.name, row.kind, row.layer], value, mfcc[clusters])
        assert row.difference == pytest.approx((value, interval.low, interval.high), abs=1e-12)
        assert interval.high - value != pytest.approx(value - interval.low, rel=1e-3), "not the same with its sides exchanged"
    assert rows[0].verdict == "higher"
    spreads = rows[1].figures.spread, figures[8].spread
    apart = abs(rows[1].figures.pnmi - figures[8].pnmi)
    assert 2 * min(spreads) < apart < 2 * max(spreads) and rows[1].verdict == "equal"
    assert [row.name for row in rows[3:]] == ["MFCC, K = 4", "MFCC, K = 8", "the same, shuffled, K = 8"]
    assert isinstance(rows[0], QualityRow) and cells(rows[0])[2] == f"{rows[0].figures.pnmi:.3f}"
    header, *lines = (line.split("\t") for line in tsv(rows).splitlines())
    assert float(lines[0][header.index("difference_low")]) == pytest.approx(rows[0].difference[1], abs=1e-5)
