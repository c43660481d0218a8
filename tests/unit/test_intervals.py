"""95 % intervals over clusters of speakers and seeds, by hand and by simulation, and the one rule for "equal"."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from learn_page import FIGURES
from openwavlm.evaluation.intervals import (
    MAX_GROUPS,
    Interval,
    by_cluster,
    deciding,
    group_places,
    interval,
    jackknife,
    outcome_of,
    ratio_interval,
    sign_places,
)
from openwavlm.evaluation.paired import Sums, difference
from openwavlm.evaluation.probe import summary
from openwavlm.evaluation.quality_rows import QualityRow, cells, rows_of, tsv, verdict_text
from openwavlm.evaluation.unit_figures import (
    UnitFigures,
    UnitTally,
    paired_pseudo_values,
    pnmi_pseudo_values,
    shuffled_tally,
    unit_quality,
)
from openwavlm.report.probe_tables import phone_table, units_table
from openwavlm.report.verdicts import beats
from openwavlm.runtime.randomness import stable_hash
from tables import sentence, table

RIGHT = np.array([10.0, 150.0, 33.0, 2.0, 71.0, 40.0])
FRAMES = np.array([100.0, 200.0, 37.0, 90.0, 111.0, 300.0])


def ratio_pseudo_values(right: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Delete-one jackknife by a loop: float64 (seeds, clusters)."""
    seeds, clusters = right.shape
    pseudo = np.empty((seeds, clusters))
    for seed in range(seeds):
        for out in range(clusters):
            others = [cluster for cluster in range(clusters) if cluster != out]
            without = sum(right[seed, cluster] for cluster in others) / sum(frames[cluster] for cluster in others)
            pseudo[seed, out] = clusters * right[seed].sum() / frames.sum() - (clusters - 1) * without
    return pseudo


def ends_by_hand(pseudo: np.ndarray, value: float, confidence: float = 0.95) -> tuple[float, float, float]:
    """Lower and upper end and smallest visible difference from three components of the variance, by loops."""
    seeds, clusters = pseudo.shape
    mean = sum(sum(row) for row in pseudo) / pseudo.size
    of_cluster = [sum(pseudo[s, c] for s in range(seeds)) / seeds for c in range(clusters)]
    of_seed = [sum(pseudo[s, c] for c in range(clusters)) / clusters for s in range(seeds)]
    by_clusters = sum((x - mean) ** 2 for x in of_cluster) / (clusters - 1) / clusters
    if seeds == 1:
        variance, freedom = by_clusters, float(clusters - 1)
    else:
        by_seeds = sum((x - mean) ** 2 for x in of_seed) / (seeds - 1) / seeds
        rest = [pseudo[s, c] - of_cluster[c] - of_seed[s] + mean for s in range(seeds) for c in range(clusters)]
        both = sum(x**2 for x in rest) / ((seeds - 1) * (clusters - 1)) / (seeds * clusters)
        variance = max(by_clusters + by_seeds - both, by_clusters, by_seeds)
        below = by_clusters**2 / (clusters - 1) + by_seeds**2 / (seeds - 1) + both**2 / ((seeds - 1) * (clusters - 1))
        freedom = max(1.0, variance**2 / below)
    outside, error = stats.t.ppf((1 + confidence) / 2, freedom), np.sqrt(variance)
    shift = outside
    while stats.nct.sf(outside, freedom, shift) < 0.8:  # power of a true difference of `shift` standard errors
        shift += 1e-3
    return value - outside * error, value + outside * error, shift * error


def test_quantile_and_degrees_of_freedom_are_students_and_satterthwaites() -> None:
    # Four clusters, two seeds: clusters' means 1, 2, 3, 6, seeds' means 2 and 4, no interaction.
    pseudo = np.array([[0.0, 1, 2, 5], [2, 3, 4, 7]])
    of_clusters, of_seeds = (4 + 1 + 0 + 9) / 3 / 4, (1 + 1) / 1 / 2
    variance = of_clusters + of_seeds
    freedom = variance**2 / (of_clusters**2 / 3 + of_seeds**2 / 1)
    found = interval(pseudo, 3.0)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half)) and (found.clusters, found.seeds) == (4, 2)
    one = interval(pseudo[:1], 2.0)
    half = stats.t.ppf(0.975, 3) * np.sqrt((4 + 1 + 0 + 9) / 3 / 4)
    assert (one.low, one.high) == pytest.approx((2 - half, 2 + half)) and one.seeds == 1


@pytest.mark.parametrize(("seeds", "confidence"), [(1, 0.95), (1, 0.5), (2, 0.95), (3, 0.95), (5, 0.8)])
def test_the_interval_of_a_ratio_is_that_of_a_jackknife_and_three_components_by_loops(seeds: int, confidence: float) -> None:
    rng = np.random.default_rng(seeds)
    right = RIGHT * rng.uniform(0.5, 1, (seeds, 6)) * rng.uniform(0.8, 1, (seeds, 1))
    found = ratio_interval(right if seeds > 1 else right[0], FRAMES, confidence=confidence)
    value = np.mean([row.sum() / FRAMES.sum() for row in right])
    low, high, visible = ends_by_hand(ratio_pseudo_values(right, FRAMES), value, confidence)
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), rel=1e-10)
    assert found.visible == pytest.approx(visible, rel=1e-3) and (found.clusters, found.seeds) == (6, seeds)
    if confidence == 0.95:
        assert ratio_interval(right, FRAMES) == found, "the default"


@pytest.mark.parametrize("of_one", ["clusters", "seeds", "neither"])
def test_the_variance_is_never_below_that_of_one_factor(of_one: str) -> None:
    # An interaction larger than a factor would give a negative component.
    rng = np.random.default_rng(4)
    pseudo = rng.standard_normal((3, 8))
    pseudo += {"clusters": 3 * rng.standard_normal((1, 8)), "seeds": 3 * rng.standard_normal((3, 1)), "neither": 0.0}[of_one]
    found = interval(pseudo, float(pseudo.mean()))
    assert (found.low, found.high) == pytest.approx(ends_by_hand(pseudo, float(pseudo.mean()))[:2], rel=1e-10)


def test_a_paired_difference_leaves_out_both_systems_frames_of_a_cluster_together() -> None:
    other = RIGHT - 0.02 * FRAMES
    found = ratio_interval(RIGHT - other, FRAMES)
    assert (found.low, found.value, found.high) == pytest.approx((0.02, 0.02, 0.02)) and found.outcome == "higher"
    own = ratio_interval(RIGHT, FRAMES)
    assert own.high - own.low > 0.2, "though the speakers differ ten times as much"


def test_clusters_without_frames_are_left_out_and_an_interval_of_nothing_is_refused() -> None:
    found = ratio_interval(np.append(RIGHT, [0.0, 0.0]), np.append(FRAMES, [0.0, 0.0]))
    assert found == ratio_interval(RIGHT, FRAMES) and found.clusters == 6
    assert interval(np.array([[1.0, np.nan, 2.0, 4.0]]), 2.0) == interval(np.array([[1.0, 2.0, 4.0]]), 2.0)
    for right, frames in (([], []), ([0.0], [0.0])):
        with pytest.raises(ValueError, match="at least one speaker with frames"):
            ratio_interval(np.array(right), np.array(frames))


def test_one_cluster_has_no_interval_and_its_outcome_is_unknown() -> None:
    for seeds in (1, 3):
        alone = ratio_interval(np.full((seeds, 1), 4.0), np.array([10.0]))
        assert alone.value == pytest.approx(0.4) and np.isnan([alone.low, alone.high, alone.visible]).all()
        assert (alone.clusters, alone.seeds, alone.outcome) == (1, seeds, "unknown")
        assert verdict_text(alone) == "no interval: one speaker"
    two = ratio_interval(np.array([4.0, 5.0]), np.array([10.0, 10.0]))
    assert np.isfinite([two.low, two.high, two.visible]).all() and two.clusters == 2


def test_sums_by_cluster_add_their_utterances() -> None:
    values, speakers = np.array([1.0, 2, 4, 8, 16]), ["b", "a", "b", "c", "a"]
    by_hand = [sum(v for v, s in zip(values, speakers, strict=True) if s == name) for name in "abc"]
    assert by_cluster(values, speakers).tolist() == by_hand == [18, 5, 8]
    assert by_cluster(np.stack([values, 2 * values]), speakers).tolist() == [by_hand, [36, 10, 16]]


# Coverage and power

DESIGNS = [(12, 1, "clusters")] + [(c, s, kind) for c, s in ((12, 3), (20, 3), (12, 5)) for kind in ("clusters", "seeds", "both")]
EFFECTS = {"clusters": (0.03, 0.0), "seeds": (0.001, 0.02), "both": (0.03, 0.01)}


def simulated(clusters: int, seeds: int, kind: str, trials: int, shift: float, seed: int) -> list[Interval]:
    """Intervals of a difference of `shift` in fresh clusters of 300 to 3,000 frames and fresh seeds."""
    rng = np.random.default_rng(seed)
    of_cluster, of_seed = EFFECTS[kind]
    found = []
    for _ in range(trials):
        frames = rng.uniform(300, 3000, clusters)
        noise = 0.3 * rng.standard_normal((seeds, clusters)) / np.sqrt(frames)
        gains = shift + of_cluster * rng.standard_normal(clusters) + of_seed * rng.standard_normal((seeds, 1)) + noise
        found.append(ratio_interval(gains * frames, frames))
    return found


@pytest.mark.parametrize(("clusters", "seeds", "kind"), DESIGNS)
def test_intervals_cover_other_clusters_and_seeds_in_95_of_100_cases(clusters: int, seeds: int, kind: str) -> None:
    # 4,000 trials: a standard error of .34 %.
    covered = np.mean([found.low <= 0.05 <= found.high for found in simulated(clusters, seeds, kind, 4000, 0.05, seed=1)])
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize(("clusters", "seeds", "kind"), DESIGNS)
def test_the_smallest_visible_difference_is_found_in_about_80_of_100_cases(clusters: int, seeds: int, kind: str) -> None:
    before = simulated(clusters, seeds, kind, 1000, 0.0, seed=2)
    visible = float(np.sqrt(np.mean([found.visible**2 for found in before])))
    shown = np.mean([found.outcome == "higher" for found in simulated(clusters, seeds, kind, 1000, visible, seed=3)])
    assert 0.7 <= shown <= 0.9
    assert np.mean([found.outcome == "lower" for found in before]) < 0.05, "half of 5 %, where there is no difference"


def test_more_clusters_and_more_seeds_narrow_the_interval() -> None:
    def width(clusters: int, seeds: int) -> float:
        return float(np.mean([found.high - found.low for found in simulated(clusters, seeds, "both", 200, 0.0, seed=4)]))

    assert width(80, 3) < width(20, 3) < width(8, 3) and width(20, 9) < 0.7 * width(20, 2)


# One rule for "equal"

ENDS = st.floats(-1, 1) | st.floats(-1e-4, 1e-4) | st.sampled_from([0.0, 1e-6, -1e-6, 5e-6, -5e-6])
INTERVALS = st.tuples(ENDS, ENDS).map(
    lambda ends: Interval((min(ends) + max(ends)) / 2, min(ends), max(ends), max(ends) - min(ends), 12, 3)
)


def holds(word: str, low: float, high: float) -> bool:
    """True if a word fits the printed ends of an interval."""
    return {"higher": low > 0, "lower": high < 0, "equal": low <= 0 <= high}[word]


def printed(text: str) -> tuple[float, float]:
    """Ends of the interval in a text, behind "interval" if there are other figures before it."""
    words = text.replace("−", "-").replace("…", "to").partition("interval ")[2].split(" to ")
    return float(words[0]), float(words[1].split()[0].rstrip(",):;"))


@settings(max_examples=300, deadline=None)
@given(INTERVALS)
def test_no_word_contradicts_the_interval_beside_it(apart: Interval) -> None:
    word = apart.outcome
    low, high = (summary(end) for end in (apart.low, apart.high))
    assert holds(word, low, high) and outcome_of(low, high) == word, "as written into a file"
    # Rows of `quality`.
    row = QualityRow("mine", "labels", None, "clean", UnitFigures.of([tally(0)]), apart)
    assert row.verdict == row.as_json()["verdict"] == word and cells(row)[-1].startswith(word)
    assert ("visible" in cells(row)[-1]) == (word == "equal")
    assert holds(word, *printed(cells(row)[-2].replace("(", "interval ")))
    header, line = (entry.split("\t") for entry in tsv([row]).splitlines())
    assert holds(word, *(float(line[header.index(name)]) for name in ("difference_low", "difference_high")))
    # Sentences and tables of the report, from its files.
    given_ = summary(apart.as_list())
    for figures in (
        {"phones": {"chosen": 0.5, "mfcc": 0.4, "differences": {"mfcc": given_}}},
        {"units": {"clean": {"chosen": 0.5, "mfcc": 0.4, "differences": {"mfcc": given_}}}},
    ):
        (verdict,) = beats(figures)
        assert verdict.outcome == {"higher": "beats", "lower": "behind", "equal": "ties"}[word]
        assert holds(word, *printed(verdict.sentence)) and ("smallest visible" in verdict.sentence) == (word == "equal")
    (_, (_, *between)) = phone_table({"chosen": 0.5, "mfcc": 0.4, "differences": {"mfcc": given_}})[1]
    assert holds(word, *printed(f"interval {between[-1]}")) and ("equal, visible from" in between[-1]) == (word == "equal")
    noisy = {"chosen": 0.5, "mfcc": 0.4, "differences": {"mfcc": given_}}
    cell = phone_table({"chosen": 0.5, "mfcc": 0.4, "noise10": noisy})[1][1][3]
    assert word in cell and ("visible from" in cell) == (word == "equal")
    ((_, _, cell, *_),) = units_table({"clean": {"chosen": 0.5, "mfcc": 0.4, "differences": {"mfcc": given_}}})[1]
    assert word in cell and ("visible from" in cell) == (word == "equal")


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-6, 1e-3, 0.05]))
def test_no_verdict_of_two_arms_contradicts_its_interval(seeds: int, clusters: int, seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    names = tuple(f"s{number}" for number in range(clusters))
    frames = rng.integers(50, 2000, clusters).astype(float)
    of, against = (
        [Sums(names, frames * (0.4 + gain + 0.01 * rng.standard_normal(clusters)), frames) for _ in range(seeds)]
        for gain in (shift, 0.0)
    )
    found = difference(of, against)
    written = found.as_json()
    assert written["verdict"] == found.verdict and holds(found.verdict, *written["interval"])
    words, cell = sentence(FIGURES["phones"], "one", "other", found), table({"phones": found}, FIGURES, "one", "other")[-1]
    assert holds(found.verdict, *printed(words)) and found.verdict in words and found.verdict in cell
    assert ("smallest visible difference" in words) == ("visible from" in cell) == (found.verdict == "equal")


@pytest.mark.parametrize(
    ("ends", "wanted"),
    [
        ({"a": (0.002, 0.018), "b": (-0.004, 0.028)}, ("b", "equal")),
        ({"a": (-0.035, 0.005), "b": (-0.02, -0.006)}, ("b", "lower")),
        ({"a": (0.001, 0.02), "b": (0.002, 0.03)}, ("a", "higher")),
        ({"a": (-0.03, -0.01), "b": (-0.02, -0.006)}, ("a", "lower")),
        ({"a": (-0.01, 0.01), "b": (np.nan, np.nan)}, ("b", "unknown")),
        ({"a": (np.nan, np.nan), "b": (-0.02, -0.006)}, ("b", "lower")),
        ({"a": (0.0, 0.01), "b": (-0.01, 0.0)}, ("a", "equal")),
    ],
)
def test_several_baselines_are_decided_by_the_least_favourable_outcome(ends: dict, wanted: tuple[str, str]) -> None:
    outcomes = {name: outcome_of(*pair) for name, pair in ends.items()}
    assert deciding(outcomes, {"a": 0.515, "b": 0.513}) == wanted


def test_an_interval_is_printed_with_as_many_places_as_its_sign_needs() -> None:
    assert sign_places(0.0123, 0.02, 3) == 3 and sign_places(0.0004, 0.02, 3) == 4 and sign_places(-0.02, -0.00004, 3) == 5
    assert sign_places(-0.0004, 0.02, 3) == 3 and sign_places(np.nan, np.nan, 4) == 4
    assert [outcome_of(low, high) for low, high in ((1e-5, 1.0), (4e-6, 1.0), (-1.0, -4e-6), (-1.0, -1e-5))] == [
        "higher",
        "equal",
        "equal",
        "lower",
    ]


# Two arms of a comparison


def test_a_difference_of_arms_is_the_mean_over_seeds_with_seeds_and_speakers_in_its_interval() -> None:
    rng = np.random.default_rng(0)
    names = tuple("uvwxyz")
    of, against = ([Sums(names, rng.uniform(0, FRAMES), FRAMES) for _ in range(3)] for _ in range(2))
    found = difference(of, against)
    assert found.of == pytest.approx([float(sums.numerator.sum() / FRAMES.sum()) for sums in of])
    apart = np.stack([a.numerator - b.numerator for a, b in zip(of, against, strict=True)])
    value = float(np.mean(apart.sum(axis=1) / FRAMES.sum()))
    low, high, visible = ends_by_hand(ratio_pseudo_values(apart, FRAMES), value)
    assert (found.interval.value, found.interval.low, found.interval.high) == pytest.approx((value, low, high), rel=1e-10)
    assert found.interval.visible == pytest.approx(visible, rel=1e-3) and found.interval.clusters == 6
    assert found.as_json()["interval"] == [round(low, 5), round(high, 5)]
    assert found.as_json()["difference"] == round(value, 5)


def test_seeds_that_disagree_widen_the_interval_of_a_gain_that_is_the_same_for_all_speakers() -> None:
    names, frames = tuple(f"s{number:02d}" for number in range(20)), np.full(20, 1000.0)
    base = [Sums(names, 0.4 * frames, frames)] * 3
    alike = difference([Sums(names, (0.4 + gain) * frames, frames) for gain in (0.01, 0.01, 0.01)], base)
    apart = difference([Sums(names, (0.4 + gain) * frames, frames) for gain in (0.03, 0.01, -0.01)], base)
    assert alike.verdict == "higher" and apart.verdict == "equal"
    # Student's quantile with two degrees of freedom times the standard error of three seeds.
    assert apart.interval.high - apart.interval.value == pytest.approx(stats.t.ppf(0.975, 2) * 0.02 / np.sqrt(3))


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
    """Units that are the phone with the probability `agreement`, more or less by speaker."""
    rng = np.random.default_rng(seed)
    names = [f"s{number}" for number in range(speakers)]
    made = UnitTally(3, 4, names)
    for number, name in enumerate(names):
        phones = rng.integers(0, 3, 60 + 20 * number)
        units = np.where(rng.random(len(phones)) < agreement * (number + 1) / speakers, phones, rng.integers(0, 4, len(phones)))
        made.add(name, units, phones, number)
    return made


def pseudo_by_hand(made: UnitTally) -> np.ndarray:
    """Delete-one jackknife of PNMI by a loop: float64 (clusters,)."""
    clusters, whole = len(made.joint), pnmi_by_hand(made.joint.sum(axis=0))
    without = [pnmi_by_hand(np.delete(made.joint, out, axis=0).sum(axis=0)) for out in range(clusters)]
    return np.array([clusters * whole - (clusters - 1) * one for one in without])


def test_pseudo_values_of_pnmi_leave_out_each_cluster_in_turn() -> None:
    tallies = [tally(0, speakers=120), tally(1, speakers=120)]
    found = pnmi_pseudo_values(made.joint for made in tallies)
    np.testing.assert_allclose(found, [pseudo_by_hand(made) for made in tallies], rtol=1e-9, atol=1e-9)


def test_a_cluster_without_frames_has_no_pseudo_value_and_one_cluster_has_no_interval() -> None:
    made = tally(0)
    joint = np.insert(made.joint, 2, 0, axis=0)
    (found,) = pnmi_pseudo_values([joint])
    assert np.isnan(found[2]) and np.delete(found, 2) == pytest.approx(pseudo_by_hand(made))
    assert interval(found[None], 0.3).low == pytest.approx(interval(pseudo_by_hand(made)[None], 0.3).low)
    alone = UnitFigures.of([tally(0, speakers=1)])
    assert np.isnan([alone.pnmi_low, alone.pnmi_high]).all()
    assert np.isnan(jackknife(np.zeros((3, 2, 2)), lambda counts: counts.sum(axis=(1, 2)))).all()


def test_the_interval_of_pnmi_is_over_speakers_and_codebook_seeds_around_the_corrected_figure() -> None:
    tallies = [tally(0), tally(1), tally(2, agreement=0.7)]
    figures = UnitFigures.of(tallies)
    low, high, _ = ends_by_hand(np.stack([pseudo_by_hand(made) for made in tallies]), figures.pnmi)
    assert (figures.pnmi_low, figures.pnmi_high) == pytest.approx((low, high), rel=1e-9)


def test_a_difference_of_units_is_paired_and_one_labelling_stands_against_every_seed() -> None:
    one, others = [tally(5, agreement=0.9)], [tally(0), tally(1), tally(2)]
    ours, theirs = UnitFigures.of(one), UnitFigures.of(others)
    pseudo = np.stack([pseudo_by_hand(one[0]) - pseudo_by_hand(made) for made in others])
    low, high, visible = ends_by_hand(pseudo, ours.pnmi - theirs.pnmi)
    found = ours.minus(theirs)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-8) and found.seeds == 3
    assert found.visible == pytest.approx(visible, rel=1e-3)
    turned = theirs.minus(ours)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), rel=1e-8)
    same = ours.minus(ours)
    assert (same.low, same.value, same.high, same.outcome) == (0, 0, 0, "equal")
    for left, right in (((2, 5), (3, 5)), ((1, 5), (1, 4))):
        with pytest.raises(ValueError, match="equally many seeds on both sides, or one"):
            paired_pseudo_values(np.zeros(left), np.zeros(right))


def simulated_units(rng: np.random.Generator, clusters: int, agreement: np.ndarray) -> np.ndarray:
    """Histograms (seeds, clusters, phones, units): a unit is its phone with the probability `agreement` (seeds, clusters)."""
    right = np.eye(4)[None, None] * agreement[..., None, None]
    shares = (right + (1 - agreement[..., None, None]) / 4) / 4
    return rng.multinomial(400, shares.reshape(*agreement.shape, 16)).reshape(*agreement.shape, 4, 4)


def test_the_interval_of_a_difference_of_pnmi_covers_other_speakers_and_seeds() -> None:
    rng = np.random.default_rng(0)
    # Equal expectations on both sides, with their own seeds and common speakers.
    found = []
    for _ in range(1000):
        speakers = rng.normal(0.6, 0.05, 12)
        sides = [np.clip(speakers + rng.normal(0, 0.02, 12) + rng.normal(0, 0.01, (3, 1)), 0, 1) for _ in range(2)]
        pseudo = [pnmi_pseudo_values(simulated_units(rng, 12, side)) for side in sides]
        apart = paired_pseudo_values(*pseudo)
        found.append(interval(apart, float(apart.mean())))
    assert 0.93 <= np.mean([one.outcome == "equal" for one in found]) <= 0.97


def test_up_to_256_speakers_are_counted_one_by_one_and_more_in_equal_groups() -> None:
    assert MAX_GROUPS == 256
    for speakers, groups in ((5, 5), (256, 256), (600, 256)):
        names = [f"s{number}" for number in range(speakers)]
        made = UnitTally(2, 3, names)
        for name in names:
            made.add(name, np.array([1]), np.array([0]), 0)
        assert made.joint.shape == (groups, 2, 3) and made.by_speaker.shape == (speakers, 3)
        sizes = made.joint.sum(axis=(1, 2))
        assert sizes.max() - sizes.min() <= 1 and sizes.sum() == speakers
    assert group_places(["b", "a", "c", "a"]) == {"a": 0, "b": 1, "c": 2}, "in order of the names"
    # The groups follow the names' hashes, so that neighbours in the order of names are not grouped.
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


def test_speaker_information_is_corrected_for_chance() -> None:
    # Four speakers with the same habits and few frames: the information in their counts is chance.
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


def test_a_row_is_compared_with_the_best_baseline_of_its_own_number() -> None:
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
    weaker = {size: of(size, (0.0, 0.0, 0.0)) for size in mfcc}
    rows = rows_of(tallies, {"mfcc": weaker, "logmel": mfcc}, "clean")
    assert [row.baseline for row in rows[:3]] == ["logmel"] * 3 == [row.as_json()["best_baseline"] for row in rows[:3]]
    other_way = rows_of(tallies, {"mfcc": {**mfcc, 4: weaker[4]}, "logmel": {**weaker, 4: mfcc[4]}}, "clean")
    assert [row.baseline for row in other_way[:3]] == ["logmel", "mfcc", "mfcc"], "the best of each K"
    assert [row.difference for row in other_way[:3]] == [row.difference for row in rows[:3]]
    figures = {clusters: UnitFigures.of(made) for clusters, made in mfcc.items()}
    for row, clusters in zip(rows, (4, 8, 8), strict=False):
        assert row.difference is not None
        of_mfcc = [pseudo_by_hand(made) for made in mfcc[clusters]]
        pseudo = np.stack([pseudo_by_hand(made) for made in tallies[row.name, row.kind, row.layer]]) - of_mfcc
        low, high, visible = ends_by_hand(pseudo, row.figures.pnmi - figures[clusters].pnmi)
        assert (row.difference.low, row.difference.high) == pytest.approx((low, high), rel=0, abs=1e-12 * (high - low))
        assert row.difference.visible == pytest.approx(visible, rel=1e-3) and row.verdict == row.difference.outcome
    assert rows[0].verdict == "higher" and rows[1].verdict == "equal", "baseline units of three very different seeds"
    spectral = [f"{name}, K = {size}" for name in ("MFCC (raw)", "log-mel (normalised)") for size in (4, 8)]
    assert [row.name for row in rows[3:]] == [*spectral, "MFCC (raw), shuffled, K = 8"]
    assert isinstance(rows[0], QualityRow) and cells(rows[0])[2] == f"{rows[0].figures.pnmi:.3f}"
    header, *lines = (line.split("\t") for line in tsv(rows).splitlines())
    assert float(lines[0][header.index("difference_low")]) == pytest.approx(rows[0].difference.low, abs=1e-5)
