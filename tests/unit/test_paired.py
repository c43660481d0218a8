"""Paired comparisons find a difference that is there, call chance equal, and refuse what is not paired."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from learn_page import FIGURES, page
from openwavlm.evaluation.intervals import Interval
from openwavlm.evaluation.paired import Difference, Pseudo, Sums, difference, pseudo_difference
from tables import seeds, sentence, table

SPEAKERS = tuple(f"demo/voice{number:02d}" for number in range(20))
FRAMES = np.full(20, 1000.0)


def sums(share: float, seed: int, *, gain: float = 0.0, jitter: float = 0.0) -> Sums:
    """Voices differ widely, and equally for all arms; `jitter` is what an arm adds of its own."""
    voices = np.random.default_rng(0).uniform(-0.1, 0.1, 20)
    own = np.random.default_rng(seed + 1).normal(0, jitter, 20) if jitter else 0.0
    return Sums(SPEAKERS, FRAMES * (share + voices + gain + own), FRAMES)


def test_a_small_gain_on_every_voice_is_found_though_voices_differ_far_more():
    found = difference([sums(0.4, s, gain=0.01) for s in range(3)], [sums(0.4, s) for s in range(3)])
    apart = found.interval
    assert apart.value == pytest.approx(0.01) and apart.low == pytest.approx(0.01) == apart.high
    assert found.verdict == "higher" and found.seeds_agree and (apart.clusters, apart.seeds) == (20, 3)
    assert found.of[0] - found.against[0] == pytest.approx(found.differences[0]) == pytest.approx(0.01)


def test_what_is_chance_is_equal_and_its_interval_contains_zero():
    of = [sums(0.4, s, jitter=0.02) for s in range(3)]
    found = difference(of, [sums(0.4, s + 10, jitter=0.02) for s in range(3)])
    assert found.interval.low < 0 < found.interval.high and found.verdict == "equal"
    assert difference(of, of).verdict == "equal"


def test_the_value_is_the_mean_over_seeds_and_turns_its_sign_with_the_arms():
    of = [sums(0.4, s, gain=g) for s, g in enumerate((0.02, -0.01, 0.05))]
    against = [sums(0.4, s) for s in range(3)]
    found, turned = difference(of, against), difference(against, of)
    assert found.interval.value == pytest.approx(0.02) == pytest.approx(np.mean(found.differences))
    assert not found.seeds_agree
    apart, other = found.interval, turned.interval
    assert (other.value, other.low, other.high) == pytest.approx((-apart.value, -apart.high, -apart.low))


def test_averaging_seeds_narrows_the_interval():
    def width(count: int) -> float:
        found = difference(
            [sums(0.4, s, jitter=0.02) for s in range(count)], [sums(0.4, s + 50, jitter=0.02) for s in range(count)]
        )
        return found.interval.high - found.interval.low

    assert width(9) < 0.6 * width(1)


def test_unpaired_figures_are_refused():
    one = sums(0.4, 0)
    with pytest.raises(ValueError, match="needs the same seeds on both sides, but has 2 and 1"):
        difference([one, one], [one])
    with pytest.raises(ValueError, match="needs the same seeds on both sides, but has 0 and 0"):
        difference([], [])
    for other in (
        dataclasses.replace(one, denominator=FRAMES + 1),
        dataclasses.replace(one, speakers=tuple(reversed(SPEAKERS))),
    ):
        with pytest.raises(ValueError, match="needs the same frames of the same speakers"):
            difference([one], [other])


@pytest.mark.parametrize(
    ("differences", "agree"),
    [((0.1, 0.2), True), ((-0.1, -0.2), True), ((0.1, -0.2), False), ((0.1, 0.0), False), ((0.0, 0.0), True), ((0.1,), True)],
)
def test_seeds_agree_where_all_differences_have_one_sign(differences: tuple[float, ...], agree: bool):
    assert Difference((0.5,), (0.4,), differences, Interval(0.1, 0.0, 0.2, 0.15, 20)).seeds_agree is agree


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"),
    [
        (-0.1, 0.1, 0.2, "equal"),
        (0.0, 0.1, 0.2, "equal"),
        (-0.2, -0.1, 0.0, "equal"),
        (0.0, 0.0, 0.0, "equal"),
        (1e-5, 0.1, 0.2, "higher"),
        (-0.2, -0.1, -1e-5, "lower"),
        (1e-6, 0.1, 0.2, "equal"),  # 0 as written
    ],
)
def test_an_interval_that_contains_zero_to_its_ends_says_equal(low: float, value: float, high: float, verdict: str):
    assert Difference((0.5,), (0.4,), (0.1,), Interval(value, low, high, 0.15, 20)).verdict == verdict


def test_the_value_is_the_mean_of_the_seeds_and_its_interval_has_students_quantile():
    # Two speakers with the same frames; the seeds' differences are alike, so that only the speakers vary.
    one = Sums(("a", "b"), np.array([5.0, 9.0]), np.array([10.0, 10.0]))
    base = Sums(("a", "b"), np.array([1.0, 2.0]), np.array([10.0, 10.0]))
    found = difference([one, one], [base, base])
    # Speaker a: 4 of 10 frames, speaker b: 7 of 10; a standard error of 0.15 with one degree of freedom.
    half = scipy.stats.t.ppf(0.975, 1) * 0.15
    assert (found.interval.value, found.interval.low, found.interval.high) == pytest.approx((0.55, 0.55 - half, 0.55 + half))
    assert found.of == pytest.approx((0.7, 0.7)) and found.against == pytest.approx((0.15, 0.15)) and found.interval.clusters == 2


def test_figures_of_a_comparison_are_written_with_five_places():
    found = Difference(
        (0.1234567, 0.2), (0.3, 0.4444444), (-0.1765433, -0.24444), Interval(-0.2104938, -0.3000001, -0.1234561, 0.1000001, 7)
    )
    assert found.as_json() == {
        "of": [0.12346, 0.2],
        "against": [0.3, 0.44444],
        "differences": [-0.17654, -0.24444],
        "difference": -0.21049,
        "interval": [-0.3, -0.12346],
        "smallest_visible": 0.1,
        "speakers": 7,
        "verdict": "lower",
        "seeds_agree": True,
    }


def model(masked: float, phones: float, untrained: float, **more: float | None) -> dict:
    """Figures of one model as `summary.json` has them; the baselines differ in every place."""
    given = {"count_table": 2.75, "overlapped_phones": None, "train_seconds": 60.0, "probe_seconds": 30.0} | more
    baselines = {"mfcc": 0.21, "mfcc_context": 0.22, "mfcc_norm": 0.25, "mfcc_norm_context": 0.26, "logmel_raw": 0.27}
    baselines |= {"logmel_raw_context": 0.28, "logmel": 0.23, "logmel_context": 0.24, "majority": 0.05}
    return given | {"masked": masked, "phones": {"chosen": phones, "untrained": untrained, **baselines}}


def test_the_page_has_every_models_figures_under_their_names():
    gain = Difference((3.1, 3.3), (3.5, 3.6), (-0.4, -0.3), Interval(-0.35, -0.4, -0.3, 0.07, 20, 2))
    following = Difference((0.62, 0.64), (0.5, 0.54), (0.12, 0.1), Interval(0.11, 0.08, 0.14, 0.04, 20, 2))
    summary = {
        "seeds": [3, 5],
        "updates": [400, 900],
        "primary": {"comparison": "gain", "figure": "masked"},
        "comparisons": {
            "gain": {"of": "iteration_1", "against": "nano_mel"},
            "next": {"of": "iteration_2", "against": "iteration_1"},
        },
        "arms": {
            "iteration_1": [
                model(3.1, 0.5, 0.31, overlapped_phones=0.41, train_seconds=100.0, probe_seconds=60.0),
                model(3.3, 0.54, 0.33, overlapped_phones=0.43, train_seconds=200.0, probe_seconds=120.0),
            ],
            "iteration_2": [model(4.0, 0.62, 0.35, count_table=2.5), model(4.2, 0.64, 0.37)],
            "nano_mel": [model(3.5, 0.4, 0.39, count_table=None), model(3.6, 0.42, 0.3, count_table=None)],
        },
        "mixture_baselines": {"mfcc": [0.111, 0.122], "logmel": [0.133, 0.144]},
    }
    text = page(summary, {"gain": {"masked": gain}, "next": {"phones": following}})
    rows = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in text.splitlines() if line.startswith("| ")}
    rows = {name: [cell.removesuffix(" |") for cell in cells] for name, cells in rows.items()}
    names = ["masked, nats", "... count table", "phones", "... untrained", "overlapped phones"]
    assert rows["held-out speakers, mean (seeds)"] == names
    assert rows["iteration 1"] == [
        "3.200 (3.100, 3.300)",
        "2.750 (2.750)",  # one for all seeds
        "0.5200 (0.5000, 0.5400)",
        "0.3200 (0.3100, 0.3300)",
        "0.4200 (0.4100, 0.4300)",
    ]
    assert rows["iteration 2"] == [
        "4.100 (4.000, 4.200)",
        "2.625 (2.500, 2.750)",
        "0.6300 (0.6200, 0.6400)",
        "0.3600 (0.3500, 0.3700)",
        "–",
    ]
    assert rows["nano_mel"] == ["3.550 (3.500, 3.600)", "–", "0.4100 (0.4000, 0.4200)", "0.3450 (0.3900, 0.3000)", "–"]
    for name, phones, overlapped in (
        ("MFCC (raw), one frame", "0.2100", "0.1110"),
        ("MFCC (raw), ± 5", "0.2200", "0.1220"),
        ("MFCC (normalised), ± 5", "0.2600", "–"),
        ("log-mel (raw), one frame", "0.2700", "–"),
        ("log-mel (normalised), one frame", "0.2300", "0.1330"),
        ("log-mel (normalised), ± 5", "0.2400", "0.1440"),
        ("commonest phone", "0.0500", "–"),
    ):
        assert rows[name] == ["–", "–", phones, "–", overlapped]
    lines = text.splitlines()
    assert "2 seeds (3, 5), 400 and 900 updates each." in text and "over the 20 test speakers and 2 seeds" in text
    (primary,) = [line for line in lines if line.startswith("**Primary outcome")]
    assert primary.startswith(
        "**Primary outcome, fixed before the run** (gain, masked cross-entropy (nats)): Masked cross-entropy: "
    )
    assert "iteration 1 is lower, which is better, than nano_mel by 0.350 " in primary
    assert "### iteration 1 against nano_mel" in lines and "### iteration 2 against iteration 1" in lines
    compared = [line for line in lines if line.startswith(f"| {FIGURES['phones'].title} |")]
    assert compared == [
        f"| {FIGURES['phones'].title} | 0.6300 (0.6200, 0.6400) | 0.5200 (0.5000, 0.5400) | +0.1100 (+0.1200, +0.1000) | "
        "+0.0800 to +0.1400 | higher |"
    ]
    assert sum("Masked figures are not compared" in line for line in lines) == 1
    # Trainings of 100, 200 and four times 60 s; probes of 60, 120 and four times 30 s.
    assert lines[-1] == ("Cost: 6 trainings of 60 to 200 s, 9 minutes in all if one after the other; probes 5 minutes.")


def test_words_say_which_way_is_good():
    def found(low: float, value: float, high: float, differences: tuple[float, ...] = (0.1, 0.1)) -> Difference:
        return Difference((0.5, 0.5), (0.4, 0.4), differences, Interval(value, low, high, 0.15, 20, 2))

    higher, lower, equal = found(0.01, 0.1, 0.2), found(-0.2, -0.1, -0.01), found(-0.1, 0.01, 0.1, (0.1, -0.08))
    assert "one is higher, which is better, than two by 0.1000" in sentence(FIGURES["phones"], "one", "two", higher)
    assert "one is higher, which is worse, than two by 0.100" in sentence(FIGURES["masked"], "one", "two", higher)
    assert "one is lower, which is better, than two" in sentence(FIGURES["masked"], "one", "two", lower)
    assert "one and two are equal" in sentence(FIGURES["phones"], "one", "two", equal)
    assert "; smallest visible difference 0.1500." in sentence(FIGURES["phones"], "one", "two", equal)
    assert table({"phones": equal}, FIGURES, "one", "two")[-1].endswith("| equal (visible from 0.1500) |")
    assert sentence(FIGURES["phones"], "one", "two", equal).endswith("The seeds do not agree on its sign.")
    assert not sentence(FIGURES["phones"], "one", "two", higher).endswith("sign.")
    lines = table({"phones": higher, "masked": lower}, FIGURES, "one", "two")
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 4
    assert FIGURES["masked"].title in lines[3] and lines[3].endswith("-0.200 to -0.010 | lower |")
    assert seeds(FIGURES["masked"], (1.0, 2.0)) == "1.500 (1.000, 2.000)"
    assert all(
        line.endswith(")") for line in (row[:-2] for row in table({"phones": higher}, FIGURES, "a", "b", visible=True)[2:])
    )
    assert "visible" not in lines[2], "of a difference that is there it is said only on demand"


def test_figures_that_are_no_ratio_are_compared_by_pseudo_values():
    speakers = ("a", "b", "c")
    of = [Pseudo(speakers, 0.7, np.array([0.6, 0.7, 0.8])), Pseudo(speakers, 0.6, np.array([0.5, 0.6, 0.7]))]
    against = [Pseudo(speakers, 0.5, np.array([0.4, 0.5, 0.9])), Pseudo(speakers, 0.5, np.array([0.4, 0.5, 0.9]))]
    found = pseudo_difference(of, against)
    assert found.of == (0.7, 0.6) and found.against == (0.5, 0.5) and found.differences == pytest.approx((0.2, 0.1))
    assert found.interval.value == pytest.approx(0.15) and (found.interval.clusters, found.interval.seeds) == (3, 2)
    # One seed: Student's interval of the speakers' differences .2, .2 and −.1, of deviation √.03, with two degrees of freedom.
    half = scipy.stats.t.ppf(0.975, 2) * np.sqrt(0.03 / 3)
    one = pseudo_difference(of[:1], against[:1]).interval
    assert (one.low, one.high) == pytest.approx((0.2 - half, 0.2 + half))
    with pytest.raises(ValueError, match="needs the same seeds on both sides, but has 2 and 1"):
        pseudo_difference(of, against[:1])
    with pytest.raises(ValueError, match="needs the same speakers"):
        pseudo_difference(of[:1], [dataclasses.replace(against[0], speakers=("a", "b", "d"))])
