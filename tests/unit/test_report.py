"""The report's first lines follow from the figures, and a missing part is said in a sentence."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openwavlm.evaluation.intervals import interval
from openwavlm.report.content import Example, Iteration, Realised, read_findings, read_iteration, read_table
from openwavlm.report.facts import health_note, health_rows, health_warnings, warnings_of, what_ran
from openwavlm.report.page import render, write_report
from openwavlm.report.probe_tables import phone_table, units_table
from openwavlm.report.progress import compare_iterations
from openwavlm.report.recipe import commands_of, differences, overrides_of, recipe_of
from openwavlm.report.reference_points import POINTS, comparable
from openwavlm.report.verdicts import (
    CONDITIONS,
    PHONE_CONTROLS,
    UNIT_CONTROLS,
    beats,
    good_for,
    headline,
    unmeasured,
    wins,
)
from openwavlm.report.words import duration, plural
from openwavlm.training.health.rules import RULES
from openwavlm.training.records import CsvRecord
from openwavlm.training.tables import HEALTH_COLUMNS

MASKED = {
    "cross_entropy": 3.0,
    "accuracy": 0.2,
    "unigram": {"cross_entropy": 3.8, "accuracy": 0.05},
    "count_table": {"cross_entropy": 3.3, "accuracy": 0.25},
    "differences": {
        "unigram": {"cross_entropy": [-0.8, -0.9, -0.7, 0.14], "accuracy": [0.15, 0.13, 0.17, 0.03]},
        "count_table": {"cross_entropy": [-0.3, -0.4, -0.2, 0.14], "accuracy": [-0.05, -0.07, -0.03, 0.03]},
    },
}
PHONES = {
    "layers": [0.30, 0.42, 0.46],
    "chosen_layer": 2,
    "chosen": 0.46,
    "mfcc": 0.37,
    "mfcc_context": 0.45,
    "logmel_context": 0.52,
    "untrained": 0.31,
    "frames": 16200,
    "intervals": {"chosen": [0.44, 0.48]},
    "differences": {
        "mfcc": [0.09, 0.07, 0.11, 0.028],
        "mfcc_context": [0.01, -0.01, 0.03, 0.0284],
        "logmel_context": [-0.06, -0.08, -0.04, 0.028],
        "untrained": [0.15, 0.13, 0.17, 0.028],
        "mfcc_norm": [0.1, 0.08, 0.12, 0.028],
    },
    "mfcc_norm": 0.36,
    "noise10": {
        "chosen": 0.4,
        "mfcc": 0.2,
        "mfcc_norm_context": 0.35,
        "frames": 900,
        "differences": {"mfcc": [0.2, 0.18, 0.22, 0.03], "mfcc_norm_context": [0.05, 0.03, 0.07, 0.03]},
    },
    "multi": {"chosen": 0.45, "mfcc": 0.33, "noise10": {"chosen": 0.43, "mfcc_norm_context": 0.44}},
}
UNITS = {
    "clean": {
        "chosen": 0.36,
        "mfcc": 0.355,
        "untrained": 0.2,
        "spread": 0.004,
        "differences": {"mfcc": [0.005, -0.004, 0.014, 0.013], "untrained": [0.16, 0.14, 0.18, 0.03]},
    },
    "noise10": {"chosen": 0.15, "mfcc": 0.16, "spread": 0.004, "differences": {"mfcc": [-0.01, -0.014, -0.006, 0.006]}},
}


def outcomes(**figures) -> dict[tuple[str, str], str]:
    return {(verdict.measure, verdict.control): verdict.outcome for verdict in beats(figures)}


def iteration(tmp_path, **parts) -> Iteration:
    return Iteration("first", tmp_path, **parts)


def test_a_lower_cross_entropy_beats_and_a_lower_accuracy_does_not():
    found = outcomes(masked=MASKED)
    assert found == {("masked cross-entropy", "count_table"): "beats", ("masked accuracy", "count_table"): "behind"}, (
        "one a figure"
    )
    lower, accuracy = (verdict.sentence for verdict in beats({"masked": MASKED}))
    assert lower == (
        "better than the best baseline, the count table, in masked cross-entropy: 3.000 nats against 3.300, 9.1 % lower; difference "
        "−0.300, 95 % interval −0.400 … −0.200"
    )
    assert accuracy == (
        "worse than the best baseline, the count table, in masked accuracy: 0.200 against 0.250; difference −0.050, 95 % interval "
        "−0.070 … −0.030"
    )


def test_a_higher_cross_entropy_does_not_beat():
    of_table = {"cross_entropy": [0.1, 0.02, 0.18, 0.1]}
    masked = MASKED | {"cross_entropy": 3.4, "differences": MASKED["differences"] | {"count_table": of_table}}
    verdict = next(v for v in beats({"masked": masked}) if v.measure == "masked cross-entropy")
    assert (verdict.outcome, verdict.control) == ("behind", "count_table") and "3.0 % higher" in verdict.sentence


def test_masked_prediction_is_judged_by_its_interval_and_not_by_its_sign():
    near = {"cross_entropy": 3.0, "accuracy": 0.1681, "count_table": {"cross_entropy": 3.0001, "accuracy": 0.168}}
    for none in ({}, {"count_table": {"cross_entropy": [-0.0001, None, None, None]}}):
        assert [verdict.outcome for verdict in beats({"masked": near | {"differences": none}})] == ["open", "open"]
    ends = {"cross_entropy": [-1e-4, -0.02, 0.02, 0.03], "accuracy": [1e-4, -0.01, 0.01, 0.014]}
    found = beats({"masked": near | {"differences": {"count_table": ends}}})
    assert [verdict.outcome for verdict in found] == ["ties", "ties"]
    assert found[1].sentence.endswith("interval −0.010 … 0.010, which contains 0; smallest visible difference 0.014")
    # The table is far below the unigram and decides nothing: the unigram is the stronger baseline.
    strong = MASKED | {
        "unigram": {"cross_entropy": 3.1},
        "differences": MASKED["differences"] | {"unigram": {"cross_entropy": [0, -1, 1]}},
    }
    (verdict,) = (v for v in beats({"masked": strong}) if v.measure == "masked cross-entropy")
    assert (verdict.control, verdict.outcome) == ("unigram", "ties")


def test_a_weaker_baseline_that_is_not_beaten_decides():
    def said(**baselines: tuple[float, float, float]):
        differences = {name: [0.5 - value, low, high, 0.02] for name, (value, low, high) in baselines.items()}
        figures = {"chosen": 0.5, **{name: value for name, (value, *_) in baselines.items()}, "differences": differences}
        (verdict,), (of_units,) = beats({"phones": figures}), beats({"units": {"clean": {**figures}}})
        if all(name in UNIT_CONTROLS for name in baselines):
            assert (of_units.outcome, of_units.control) == (verdict.outcome, verdict.control)
        return verdict, good_for({"phones": figures})

    tie, use = said(logmel=(0.49, 0.002, 0.018), mfcc_norm=(0.488, -0.004, 0.028))
    assert (tie.outcome, tie.control, tie.theirs, tie.interval, tie.visible) == (
        "ties",
        "mfcc_norm",
        0.488,
        (-0.004, 0.028),
        0.02,
    )
    assert tie.sentence.startswith(
        "no clear difference from a baseline, one frame of MFCC (normalised), in phones (clean speech): 0.500"
    )
    assert use.startswith("Good for speech sounds, about as much as spectra") and "beyond" not in use
    worse, use = said(logmel=(0.515, -0.035, 0.005), mfcc_norm=(0.513, -0.02, -0.006))
    assert (worse.outcome, worse.control) == ("behind", "mfcc_norm") and worse.sentence.startswith(
        "worse than a baseline, one frame of"
    )
    assert use.startswith("For speech sounds, spectra are still the better features")
    first, _ = said(logmel=(0.52, -0.03, -0.01), mfcc=(0.51, -0.02, -0.001), mfcc_norm=(0.6, -0.2, 0.01))
    assert first.control == "logmel", "of those that it is behind, the highest"
    best, _ = said(logmel=(0.49, 0.002, 0.018), mfcc=(0.4, 0.01, 0.19))
    assert (best.outcome, best.control) == ("beats", "logmel")
    first_lines = said(untrained=(0.55, -0.06, -0.04), mfcc=(0.4, 0.01, 0.19))[1]
    assert first_lines.startswith("For speech sounds, the untrained encoder still has the better features")


def test_without_an_interval_nothing_is_decided_and_nothing_is_won():
    alone = {"chosen": 0.5, "mfcc": 0.1, "differences": {"mfcc": [0.4, None, None, None]}}
    (verdict,) = beats({"phones": alone})
    assert verdict.outcome == "open" and verdict.interval is None
    nan = alone | {"differences": {"mfcc": [0.4, np.nan, np.nan, np.nan]}}
    assert beats({"phones": nan}) == [verdict], "before it is written"
    assert verdict.sentence == (
        "not decided against the best baseline, one frame of MFCC (raw), in phones (clean speech): 0.500 against 0.100 of the frames "
        "right; no interval: one test speaker"
    )
    assert good_for({"phones": alone}).startswith(
        "Not decided for speech sounds (no interval): the model names the phone of 50.0 %"
    )
    for older in ({}, {"verdicts": {"mfcc": "higher"}}, {"verdicts": {"mfcc": "lower"}}):
        (verdict,) = found = beats({"units": {"clean": {"chosen": 0.5, "mfcc": 0.1, **older}}})
        assert verdict.outcome == "open" and verdict.sentence.endswith("; no interval") and wins(found) == []
        assert headline(found) == "Against its baselines in 1 comparison: better in 0, not decided in 1."
    # A baseline without an interval leaves it open, unless the model is below another.
    both = alone | {"mfcc_norm": 0.2, "differences": {"mfcc_norm": [0.3, 0.2, 0.4]}}
    assert [verdict.outcome for verdict in beats({"phones": both})] == ["open"]
    below = both | {"logmel": 0.6, "differences": both["differences"] | {"logmel": [-0.1, -0.2, -0.05]}}
    assert [verdict.outcome for verdict in beats({"phones": below})] == ["behind"]


def test_a_difference_whose_interval_contains_0_does_not_beat():
    found = outcomes(phones=PHONES)
    assert found == {
        ("phones (clean speech)", "logmel_context"): "behind",
        ("phones (10 dB noise)", "mfcc_norm_context"): "beats",
    }, "one a condition"
    rest = {key: value for key, value in PHONES.items() if key != "logmel_context"}
    (said,) = (v.sentence for v in beats({"phones": rest}) if v.control == "mfcc_context")
    assert said.startswith("no clear difference from the best baseline, MFCC ± 5 frames (raw), in phones (clean speech): 0.460")
    assert said.endswith("95 % interval −0.010 … 0.030, which contains 0; smallest visible difference 0.028")
    old = rest | {"differences": rest["differences"] | {"mfcc_context": [0.01, -0.01, 0.03]}}
    (said,) = (v.sentence for v in beats({"phones": old}) if v.control == "mfcc_context")
    assert said.endswith("which contains 0"), "a summary from before the smallest visible difference"


def test_units_are_compared_by_the_interval_of_their_difference():
    found = outcomes(units=UNITS)
    assert found == {("units (clean speech)", "mfcc"): "ties", ("units (10 dB noise)", "mfcc"): "behind"}
    said = {(v.measure, v.control): v.sentence for v in beats({"units": UNITS})}
    assert said["units (clean speech)", "mfcc"] == (
        "no clear difference from the best baseline, units of MFCC (raw), in units (clean speech): PNMI 0.360 against 0.355; "
        "difference 0.005, 95 % interval −0.004 … 0.014, which contains 0; smallest visible difference 0.013"
    )
    old = {"noise10": {"chosen": 0.17, "mfcc": 0.16, "spread": 0.004, "verdicts": {"mfcc": "equal"}}}
    (verdict,) = beats({"units": old})
    assert verdict.sentence.endswith("PNMI 0.170 against 0.160; no interval"), "a summary from before these intervals"
    assert verdict.outcome == "ties", "its word for a tie is kept"


def test_the_headline_counts_what_was_not_beaten():
    assert headline(beats({"masked": MASKED})) == "Against its baselines in 2 comparisons: better in 1, worse in 1."
    assert "all 2" in headline(beats({"masked": MASKED | {"count_table": {}}}))
    without = {name: value for name, value in MASKED.items() if name != "differences"}
    said = headline(beats({"masked": without, "phones": PHONES, "units": UNITS}))
    assert said == "Against its baselines in 6 comparisons: better in 1, equal in 1, worse in 2, not decided in 2."
    assert headline(beats({"phones": PHONES})) == "Against its baselines in 2 comparisons: better in 1, worse in 1."
    assert headline([]) == "No figures on held-out speakers yet."


def test_the_use_of_a_model_follows_from_its_strongest_baseline_in_phones():
    said = good_for({"phones": PHONES, "masked": MASKED})
    assert said.startswith("For speech sounds, spectra are still the better features: layer 2 names the phone of 46.0 %")
    assert said.endswith(
        "46.0 % of the frames, log-mel ± 5 frames (normalised) of 52.0 %; in 10 dB noise of 40.0 % of the frames, MFCC ± 5 frames "
        "(normalised) of 35.0 % (ahead)."
    )
    rest = {key: value for key, value in PHONES.items() if key != "logmel_context"}
    said = good_for({"phones": rest})
    assert said.startswith("Good for speech sounds, about as much as spectra") and "MFCC ± 5" in said
    single = {
        "chosen": 0.46,
        "mfcc": 0.37,
        "differences": {"mfcc": [0.09, 0.07, 0.11]},
        "noise10": {"chosen": 0.4, "mfcc": 0.2, "differences": {"mfcc": [0.2, -0.1, 0.5]}},
        "telephone": {"chosen": 0.1, "mfcc": 0.2, "differences": {"mfcc": [-0.1, -0.2, -0.05]}},
    }
    assert good_for({"phones": single}).startswith("Good for speech sounds, beyond spectra: the model names")
    assert good_for({"phones": single}).endswith(
        "; in telephone band of 10.0 % of the frames, one frame of MFCC (raw) of 20.0 % (behind); in 10 dB noise of 40.0 % of the "
        "frames, one frame of MFCC (raw) of 20.0 % (no clear difference)."
    )


def test_without_probes_the_use_of_a_model_follows_from_its_masked_predictions():
    assert good_for({}) == ""
    assert "run the probes" in good_for({"masked": MASKED | {"count_table": {}}})
    assert "train it longer" in good_for({"masked": MASKED})
    without = {name: value for name, value in MASKED.items() if name != "differences"}
    assert good_for({"masked": without}).startswith("Not decided whether it predicts hidden labels better than label statistics")


def test_wins_are_listed_by_measure_with_the_figures_of_the_controls():
    lines = dict(wins(beats({"phones": PHONES})))
    assert lines == {
        "better in phones (10 dB noise), at 0.400": "MFCC ± 5 frames (normalised) (0.350; difference 0.030 … 0.070)",
    }


def test_what_was_not_measured_is_said():
    assert len(unmeasured({})) == 3 and unmeasured({"masked": MASKED, "phones": PHONES, "units": UNITS}) == []
    old = {key: value for key, value in PHONES.items() if key != "mfcc_norm"}
    assert "older version" in unmeasured({"masked": MASKED, "phones": old, "units": UNITS})[0]
    assert "count table" in unmeasured({"masked": {"cross_entropy": 1.0}, "phones": PHONES, "units": UNITS})[0]


def test_a_later_iteration_is_compared_in_pairs_by_speaker():
    sums = {"speakers": ["a", "b", "c"], "frames": [1000.0, 2000.0, 1500.0], "correct": [400.0, 800.0, 600.0]}
    better = sums | {"correct": [450.0, 900.0, 670.0]}
    earlier, later = {"phones": {"chosen": 0.4, "by_speaker": sums}}, {"phones": {"chosen": 0.449, "by_speaker": better}}
    assert compare_iterations(earlier, later)[0].endswith(": higher)")
    assert compare_iterations(later, earlier)[0].endswith(": lower)")
    other = {"phones": {"chosen": 0.4, "by_speaker": sums | {"speakers": ["a", "b", "d"]}}}
    assert compare_iterations(other, later) == ["Phones, clean speech: 0.449 after 0.400 (no paired interval)"]


def test_an_interval_whose_end_is_0_is_no_win():
    # A difference above 0 alone does not count: the lower end of its interval does.
    for low, high, outcome in ((0.001, 0.05, "beats"), (0.0, 0.05, "ties"), (-0.05, 0.0, "ties"), (-0.05, -0.001, "behind")):
        phones = {"chosen": 0.4, "mfcc": 0.3, "differences": {"mfcc": [0.1, low, high]}}
        assert outcomes(phones=phones)["phones (clean speech)", "mfcc"] == outcome


def units_of(chosen: float, gain: float = 0.0, *, seeds: int = 3, speakers: str = "abcd") -> dict:
    """Units of a model: pseudo-values that vary over speakers and codebook seeds in one way, and by `gain` in another."""
    rng = np.random.default_rng(0)
    pseudo = chosen + 0.1 * rng.standard_normal((1, len(speakers))) + 0.01 * rng.standard_normal((seeds, 1))
    pseudo += gain * np.random.default_rng(1).standard_normal((seeds, len(speakers)))
    by_speaker = {"speakers": list(speakers), "frames": [100] * len(speakers), "pseudo_values": pseudo.tolist()}
    return {"units": {"clean": {"chosen": chosen, "by_speaker": by_speaker}}}


def test_units_of_a_later_iteration_are_compared_in_pairs_by_speaker_and_seed():
    (said,) = compare_iterations(units_of(0.30), units_of(0.321, 0.001))
    assert said.startswith("Units, clean speech: PNMI 0.321 after 0.300 (difference 0.021, 95 % interval 0.0")
    assert said.endswith(": higher)")
    (said,) = compare_iterations(units_of(0.321, 0.001), units_of(0.30))
    assert said.endswith(": lower)")
    (said,) = compare_iterations(units_of(0.30), units_of(0.321, 0.1))
    before, after = (
        np.array(of["units"]["clean"]["by_speaker"]["pseudo_values"]) for of in (units_of(0.3), units_of(0.321, 0.1))
    )
    apart = interval(after - before, 0.021)
    assert said.endswith(f": equal; smallest visible difference {apart.visible:.3f})")
    (said,) = compare_iterations(units_of(0.30), units_of(0.321, 0.001, seeds=1))
    assert "95 % interval" in said, "one codebook against three"


def test_units_of_other_speakers_seeds_or_an_older_summary_have_no_paired_interval():
    without = {"units": {"clean": {"chosen": 0.321, "spread": 0.01}}}
    for later in (units_of(0.321, speakers="abce"), units_of(0.321, seeds=2), units_of(0.321, speakers="abc"), without):
        (said,) = compare_iterations(units_of(0.30), later)
        assert said == "Units, clean speech: PNMI 0.321 after 0.300 (no paired interval)"


def test_phones_of_a_later_iteration_are_compared_in_every_condition():
    def of(right: float) -> dict:
        return {"chosen": right / 100, "by_speaker": {"speakers": ["a", "b"], "frames": [50.0, 50.0], "correct": [right / 2] * 2}}

    said = compare_iterations({"phones": of(50) | {"noise10": of(35)}}, {"phones": of(52) | {"noise10": of(28)}})
    assert [sentence.partition(" (")[0] for sentence in said] == [
        "Phones, clean speech: 0.520 after 0.500",
        "Phones, 10 dB noise: 0.280 after 0.350",
    ]
    assert said[1].endswith(": lower)")


FIGURES = st.dictionaries(st.sampled_from(["chosen", *PHONE_CONTROLS]), st.floats(0, 1), min_size=1)


def with_differences(figures: dict, rng: np.random.Generator) -> dict:
    """Figures with an interval of each difference, which is around it; some have none, or none of one speaker."""
    apart = {
        name: figures.get("chosen", 0.5) - value for name, value in figures.items() if name != "chosen" and rng.random() < 0.95
    }
    found = {}
    for name, value in apart.items():
        half = (abs(value) + 0.01) * 1.5 * rng.random()
        found[name] = [value, None, None, None] if rng.random() < 0.05 else [value, value - half, value + half, 0.1]
    return figures | {"differences": found}


def words_of(own: dict, names: list[str], sign: int = 1) -> dict[str, str]:
    """Outcome against each baseline, from the ends of its interval as written."""
    found = {}
    for name in names:
        low, high = (own["differences"].get(name) or [None] * 4)[1:3]
        low, high = (low, high) if low is None or sign > 0 else (-high, -low)
        found[name] = "open" if low is None else "beats" if round(low, 5) > 0 else "behind" if round(high, 5) < 0 else "ties"
    return found


def expected(words: dict[str, str]) -> str:
    """Outcome against all baselines."""
    if "behind" in words.values():
        return "behind"
    return "open" if "open" in words.values() else "beats" if set(words.values()) == {"beats"} else "ties"


SAYS = {"beats": "better than", "ties": "no clear difference from", "behind": "worse than", "open": "not decided against"}


@settings(max_examples=300, deadline=None)
@given(st.lists(FIGURES, min_size=6, max_size=6), st.integers(0, 2**32 - 1))
def test_no_sentence_of_superiority_is_contradicted_by_any_baseline(drawn: list[dict], seed: int) -> None:
    rng = np.random.default_rng(seed)
    conditions = list(CONDITIONS)
    each = {condition: with_differences(figures, rng) for condition, figures in zip(conditions, drawn[:3], strict=True)}
    phones = each["clean"] | {condition: each[condition] for condition in conditions[1:]}
    of_units = {condition: with_differences(figures, rng) for condition, figures in zip(conditions, drawn[3:], strict=True)}
    figures = {"phones": phones, "units": of_units}
    verdicts = {verdict.measure: verdict for verdict in beats(figures)}
    lines = dict(wins(verdicts.values()))
    for kind, controls, measured in (("phones", PHONE_CONTROLS, each), ("units", UNIT_CONTROLS, of_units)):
        for condition, own in measured.items():
            theirs = {name: own[name] for name in controls if name in own}
            verdict = verdicts.get(f"{kind} ({CONDITIONS[condition]})")
            assert (verdict is None) == (not theirs or "chosen" not in own)
            if verdict is None:
                continue
            words = words_of(own, list(theirs))
            assert verdict.outcome == expected(words) == words[verdict.control] and verdict.ours == own["chosen"]
            assert (
                verdict.theirs == theirs[verdict.control] == max(theirs[name] for name in words if words[name] == verdict.outcome)
            )
            ends = own["differences"].get(verdict.control, [None] * 4)[1:3]
            assert verdict.interval == (None if None in ends else tuple(ends))
            assert verdict.sentence.startswith(
                f"{SAYS[verdict.outcome]} {'the best' if verdict.theirs == max(theirs.values()) else 'a'} "
            )
            better = verdict.outcome == "beats"
            assert not better or own["chosen"] > max(theirs.values())
            assert better == any(line.startswith(f"better in {verdict.measure}") for line in lines)
    said, clean = good_for(figures), verdicts.get("phones (clean speech)")
    assert ("beyond spectra" in said) == (clean is not None and clean.outcome == "beats")
    for condition in conditions[1:] if clean else ():
        verdict = verdicts.get(f"phones ({CONDITIONS[condition]})")
        part = re.search(rf"; in {CONDITIONS[condition]} of ([\d.]+) % of the frames, (.+?) of ([\d.]+) % \(([^)]*)\)", said)
        assert (part is None) == (verdict is None)
        if part and verdict:
            assert part[2] == verdict.baseline and (part[4] == "ahead") == (verdict.outcome == "beats")
            assert [float(part[1]), float(part[3])] == [round(100 * verdict.ours, 1), round(100 * verdict.theirs, 1)]
    everywhere = bool(verdicts) and all(verdict.outcome == "beats" for verdict in verdicts.values())
    assert headline(verdicts.values()).startswith("Better than its baselines in all") == everywhere


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["chosen", "unigram", "count_table", "nearest_label"]), st.floats(0.01, 5), min_size=1),
    st.integers(0, 2**32 - 1),
)
def test_masked_prediction_is_better_only_than_baselines_that_it_all_beats(drawn: dict, seed: int) -> None:
    for figure, sign in (("cross_entropy", -1), ("accuracy", 1)):
        own = with_differences(drawn, np.random.default_rng(seed))
        theirs = {name: value for name, value in drawn.items() if name != "chosen"}
        masked = {name: {figure: value} for name, value in theirs.items()}
        masked["differences"] = {name: {figure: ends} for name, ends in own["differences"].items()}
        found = beats({"masked": masked | ({figure: own["chosen"]} if "chosen" in own else {})})
        assert len(found) == (1 if theirs and "chosen" in own else 0), "one verdict for each figure"
        for verdict in found:
            words = words_of(own, list(theirs), sign)
            assert verdict.outcome == expected(words)
            best = max(sign * theirs[name] for name in words if words[name] == verdict.outcome)
            assert sign * verdict.theirs == best and verdict.sentence.startswith(SAYS[verdict.outcome])


def test_tables_hold_every_baseline_and_probes_of_multi_condition_speech():
    header, rows = phone_table(PHONES)
    assert header[3:4] == ["10 dB noise"]
    cells = {row[0]: (row[1], row[3]) for row in rows}
    assert cells["model, chosen layer"] == ("0.460", "0.400") and cells["MFCC ± 5 frames (normalised)"] == (
        "",
        "0.350 (model higher)",
    )
    assert cells["model, chosen layer; multi-condition probe"] == ("0.450", "0.430")
    assert cells["MFCC ± 5 frames (normalised); multi-condition probe"] == ("", "0.440")
    header, rows = units_table({"clean": {"chosen": 0.4, "mfcc": 0.3, "mfcc_norm": 0.2, "logmel_raw": 0.1, "untrained": 0.05}})
    assert header[2:] == ["MFCC (raw)", "MFCC (normalised)", "log-mel (raw)", "untrained encoder", "spread"]
    assert rows == [["clean speech", "0.400", "0.300", "0.200", "0.100", "0.050", "0.000"]]


def test_other_frames_or_speakers_are_not_compared_in_pairs():
    sums = {"speakers": ["a", "b"], "frames": [1000.0, 2000.0], "correct": [400.0, 800.0]}
    earlier = {"phones": {"chosen": 0.4, "by_speaker": sums}}
    for change in ({"frames": [1000.0, 2001.0]}, {"speakers": ["a", "c"]}):
        later = {"phones": {"chosen": 0.45, "by_speaker": sums | change}}
        assert compare_iterations(earlier, later) == ["Phones, clean speech: 0.450 after 0.400 (no paired interval)"]
    gain = {"phones": {"chosen": 0.43, "by_speaker": sums | {"correct": [440.0, 850.0]}}}
    assert "difference 0.030, 95 % interval" in compare_iterations(earlier, gain)[0], "90 of 3000 frames"


def test_a_report_of_nothing_is_a_page_of_sentences(tmp_path):
    page = write_report(tmp_path, "bare", [iteration(tmp_path)]).read_text()
    for sentence in (
        "No figures on held-out speakers yet",
        "No probe was run",
        "No update was recorded",
        "There is no mixture",
        "Nothing was validated",
    ):
        assert sentence in page
    assert json.loads((tmp_path / "summary.json").read_text())["iterations"][0]["masked"] is None


def test_a_report_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs at least one run"):
        write_report(tmp_path, "none", [])


def full(tmp_path) -> Iteration:
    steps = np.arange(1.0, 11)
    signal = np.sin(np.arange(16_000) / 9).astype(np.float32)
    metrics = {"step": steps, "cross_entropy": 4 - steps / 10, "accuracy": np.full(10, 0.98765), "audio_s": np.full(10, 30.0)}
    metrics |= {"lr": steps / 1000, "grad_norm": 3 / steps}
    validation = {"step": steps[4::5], "cross_entropy": np.array([3.5, 3.0]), "accuracy": np.array([0.1, 0.2])}
    return iteration(
        tmp_path,
        config={"optim": {"updates": 10}, "mixing": None},
        metrics=metrics,
        validation=validation,
        masked=MASKED,
        probes={"phones": PHONES, "units": UNITS, "speakers": {"layers": [0.4, 0.5, 0.6], "chosen_layer": 1, "chosen": 0.5}},
        cluster_counts=np.array([5, 0, 20, 10]),
        mixtures=[Example(1, "a <b>", signal, 1.2 * signal, 3000, 6000, 1.0, 2.0, np.arange(49) % 16 < 8, np.arange(49) % 50)],
        realised=Realised((1,), 2, 20, 4, 1, 0.5, np.zeros(4), np.array([1.0, 2, np.nan, 60]), np.full(4, 0.3), as_recorded=True),
    )


def test_a_full_page_loads_nothing_and_names_no_training_accuracy(tmp_path):
    page = render("a & b", [full(tmp_path), full(tmp_path)])
    assert not re.search(r"https?://|<script|<link|@import|url\((?!#)", page)
    assert len(re.findall(r'src="data:audio/wav;base64,', page)) == 2, "the example stands once"
    drawn = re.findall(r"<(?:svg|img)\b[^>]*>", page)
    assert page.count("<svg") == 16 and all(re.search(r'aria-label="[^"]{10,}"', tag) for tag in drawn)
    assert not re.search(r'src="(?!data:)|href="(?!#)', page)
    assert "0.988" not in page and "98.8" not in page
    assert "a &amp; b" in page and "a &lt;b&gt;" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert ids and len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', page)) <= set(ids)


def test_the_first_lines_hold_the_verdicts(tmp_path):
    page = render("run", [full(tmp_path)])
    first = re.sub(r"<[^>]+>", " ", page[page.index("</h1>") :])[:1200]
    assert "better in 2, equal in 1, worse in 3" in first
    assert "of 46.0 % of the frames, log-mel ± 5 frames (normalised) of 52.0 %; in 10 dB noise of 40.0 %" in first
    assert "worse than the best baseline, log-mel ± 5 frames (normalised), in phones (clean speech)" in first
    assert "better in phones (10 dB noise), at 0.400" in first


def test_runs_stand_side_by_side_with_their_phones_in_every_condition(tmp_path):
    without = iteration(tmp_path, probes={"phones": {"chosen": 0.3}})
    page = re.sub(r"(\s|<[^>]+>)+", " ", render("runs", [without, full(tmp_path)]))
    assert "phones, share of frames right 0.300 0.460 phones in 10 dB noise – 0.400" in page


def test_text_of_users_is_escaped_everywhere(tmp_path):
    bad = "<script>alert('x')</script>&"
    found = full(tmp_path)
    found.name = found.config["name"] = bad
    found.config["data"] = {"sources": {bad: {"shards": bad, "labels": [bad]}}}
    found.record = {
        "segments": [{"from_step": 0, "host": bad, "command": f"train.py data.sources.{bad}", "versions": {bad: bad}}]
    }
    found.notes, found.mixtures[0] = [bad], Example(1, bad, *list(vars(found.mixtures[0]).values())[2:])
    found.findings = [{"step": bad, "rule": "perplexity", "value": "1", "threshold": "1", "sentence": bad}]
    other = full(tmp_path)
    other.config["data"] = {"sources": {}}
    page = render(bad, [other, found], [(bad, bad)])
    assert "<script" not in page and page.count("&lt;script&gt;") > 12
    assert "&amp;lt;" not in page, "and once only"


def test_the_contents_name_every_section_in_its_order(tmp_path):
    page = render("run", [full(tmp_path), full(tmp_path)])
    navigation = re.search(r"<nav.*?</nav>", page, re.DOTALL)[0]
    assert re.findall(r'href="#([^"]+)"', navigation) == ["verdict", *re.findall(r'<h2 id="([^"]+)"', page)]


def test_charts_take_the_colours_of_the_page(tmp_path):
    page = render("run", [full(tmp_path)])
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    colours = {colour.lower() for colour in re.findall(r"#[0-9a-fA-F]{6}\b", drawn)}
    assert "currentColor" in drawn and "var(--blue)" in drawn and colours <= {"#ffffff"}, colours
    assert "prefers-color-scheme: dark" in page


RECIPE = {
    "optim": {
        "updates": 400,
        "lr": 5e-4,
        "warmup_updates": 32,
        "schedule": "linear",
        "final_share": 0.02,
        "betas": [0.9, 0.98],
        "eps": 1e-6,
        "weight_decay": 0.01,
        "decay": "matrices",
        "clip_norm": 10.0,
    },
    "batch": {"seconds": 16, "micro_seconds": 8},
    "precision": "32-true",
}
LAUNCH = {
    "from_step": 0,
    "host": "box",
    "threads": 2,
    "world_size": 2,
    "python": "3.11.7",
    "commit": "abc",
    "command": "train.py seed=1",
}


def test_the_recipe_is_that_of_config_record_and_log(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-0000.log").write_text(
        "2026-01-02 03:04:05,678 INFO start\n  more\n2026-01-02 04:05:06,789 INFO end\n"
    )
    record = {"segments": [LAUNCH | {"versions": {"openwavlm": "0.1.0"}}, LAUNCH | {"from_step": 200, "world_size": 1}]}
    found = dict(recipe_of(iteration(tmp_path, config=RECIPE, record=record)))
    assert found == {
        "optimiser": "AdamW, betas 0.9, 0.98, epsilon 1e-06, weight decay 0.01 (matrices only); gradient clipped at a norm of 10",
        "learning rate": "0.0005 at its peak: linear warm-up over 32 updates, linear decay to 2 % until update 400",
        "batch": "16 s of audio an update, in micro-batches of 8 s on 1 process, precision 32-true",
        "date": "2026-01-02 03:04 to 04:05",
        "software": "Python 3.11.7, commit abc",
        "machine": "box, 2 threads a process",
        "launches": "2; from updates 0, 200",
        "command": "openwavlm train seed=1",
    }
    wsd = {"optim": RECIPE["optim"] | {"schedule": "wsd", "decay_share": 0.2, "ema": 0.999}}
    found = dict(recipe_of(iteration(tmp_path, config=wsd)))
    assert found["learning rate"].endswith("constant, then linear decay to 2 % over the last 20 % of the updates")
    assert found["optimiser"].endswith("running mean of the weights with decay 0.999")
    assert recipe_of(Iteration("bare", tmp_path / "none")) == []


def test_what_differs_between_runs_is_shown_and_nothing_else(tmp_path):
    first = iteration(tmp_path, config=RECIPE | {"name": "a"}, record={"segments": [LAUNCH]})
    changed = RECIPE | {"name": "b", "optim": RECIPE["optim"] | {"lr": 1e-3}, "init_from": "x"}
    second = iteration(tmp_path, config=changed, record={"segments": [LAUNCH | {"commit": "def"}]})
    assert differences([first, second]) == [
        ["optim.lr", "0.0005", "0.001"],
        ["launch.commit", "abc", "def"],
        ["init_from", "–", "x"],
    ]
    assert differences([first, first]) == [] and differences([first]) == []


def test_the_page_is_a_function_of_its_content(tmp_path):
    assert render("run", [full(tmp_path)]) == render("run", [full(tmp_path)])


def test_the_summary_keeps_what_others_wrote(tmp_path):
    (tmp_path / "summary.json").write_text('{"format_version": 1, "complete": true}')
    write_report(tmp_path, "run", [full(tmp_path)])
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert (
        kept["complete"] and kept["iterations"][0]["phones"]["chosen"] == 0.46 and kept["iterations"][0]["audio_seconds"] == 300
    )


def test_a_torn_last_line_and_empty_fields_are_read_over(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,unmasked_accuracy\n1,2.5,\n2,2.25,0.5\n3,2")
    table = read_table(path)
    assert table["step"].tolist() == [1, 2] and np.isnan(table["unmasked_accuracy"][0])
    path.write_text("step,loss\n")
    assert read_table(path) == {} and read_table(tmp_path / "none.csv") == {}


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no run directory"):
        read_iteration(tmp_path)


def test_warnings_tell_of_skipped_updates_lost_rows_and_an_early_end(tmp_path):
    metrics = {"step": np.array([1.0, 2]), "void": np.array([0.0, 1]), "unreadable_rows": np.array([2.0, 1])}
    said = " ".join(warnings_of(iteration(tmp_path, metrics=metrics, config={"optim": {"updates": 5}})))
    assert "2 of 5 updates" in said and "not finite: 1 update." in said and "without loss: 3 rows." in said


def test_what_ran_is_said_with_the_figures_of_its_records(tmp_path):
    config = {
        "seed": 5,
        "model": {"conv_dims": [8, 8], "layers": 3, "dim": 64, "heads": 4, "pre_norm": False},
        "data": {"sources": {"speech": {"shards": "s", "labels": ["first", "second"]}}},
        "optim": {"updates": 40},
        "batch": {"seconds": 90.0, "max_seconds": 15.6},
        "masking": {"length": 10},
        "mixing": {"prob": 0.2, "noise_prob": 0.1, "speech_db": [-5.0, 5.0], "max_share": 0.5},
    }
    metrics = {
        "step": np.array([10.0, 20]),
        "audio_s": np.array([3600.0, 5400]),
        "mask_coverage": np.array([0.5, 0.6]),
        "mixed_rows": np.array([10.0, 20]),
        "rows": np.array([100.0, 150]),
        "padding_share": np.array([0.01, 0.03]),
    }
    data = {
        "training_hours": 1.25,
        "training_speakers": 12,
        "validation_rows": 3,
        "validation_hours": 0.5,
        "validation_speakers": 4,
    }
    plan = {"codebook": 50.0, "lost_share": 0.015, "too_short": 7}
    launch = {"audio_seconds": 600.0, "wall_seconds": 50.0}
    parts = {"metrics": metrics, "data": data, "plan": plan, "launch": launch, "wall_seconds": 7260.0, "parameters": 1_234_567}
    said = dict(what_ran(iteration(tmp_path, config=config, **parts)))
    assert said == {
        "model": "WavLM, 3 layers of width 64 (4 heads, post-norm), 1.23 M parameters; waveform convolutions of 8-8 channels",
        "data": "1.25 h of 12 speakers to train on (source speech); held out: 0.50 h of 4 speakers",
        "training": "20 of 40 updates of 90 s of audio each, in rows of at most 15.6 s; about 2.0 passes over the data; seed 5",
        "labels": "50 clusters, first, second",
        "masking": "spans of 10 frames (200 ms); on average 55.0 % of the valid frames were hidden",
        "mixing": (
            "a second speaker or noise is added to 20 % of the rows (10 % of these: noise); speakers at −5.0 to 5.0 dB, at most 50 % of a "
            "row; 12.0 % of all rows were mixed"
        ),
        "speed": (
            "12 s of audio a second (validation and start included); 2.0 h in all; 2.00 % of the input was padding; 1.50 % of the audio "
            "was left out (7 utterances too short)"
        ),
    }


@pytest.mark.parametrize(
    ("seconds", "said"), [(119, "119 s"), (120, "2 min"), (7190, "120 min"), (7200, "2.0 h"), (9000, "2.5 h")]
)
def test_a_duration_is_said_in_seconds_minutes_or_hours(seconds, said):
    assert duration(seconds) == said


def test_each_warning_is_given_where_it_holds_and_only_there(tmp_path):
    def said(**parts) -> list[str]:
        metrics = {"step": np.array([1.0, 5]), "void": np.zeros(2), "unreadable_rows": np.zeros(2)}
        data = {"validation_speakers": 5}
        sound = {"metrics": metrics, "validation": {"step": np.array([5.0])}, "data": data, "config": {"optim": {"updates": 5}}}
        return warnings_of(iteration(tmp_path, **(sound | parts)))

    assert said() == []
    assert said(data={"validation_speakers": 4}) == [
        "Only 4 speakers held out: masked-prediction figures may change with other speakers."
    ]
    assert said(data={"validation_speakers": 0})[0].startswith("Speakers are not known")
    assert said(config={"optim": {"updates": 6}}) == ["The run is not finished: 5 of 6 updates."]
    assert said(validation={})[0].startswith("Nothing was validated")
    built = Realised((1,), 1, 1, 0, 0, 0.5, *[np.zeros(0)] * 3, as_recorded=False)
    assert said(realised=built)[0].startswith("The batches that were built again differ")
    built = Realised((1,), 1, 1, 0, 0, 0.5, *[np.zeros(0)] * 3, as_recorded=None)
    assert said(realised=built) == []
    record = {"segments": [{"changes": {"seed": [1, 2]}}, {}, {"changes": {"loss": [1, 2]}}]}
    assert said(record=record) == ["The config was changed between launches: seed, loss."]


def test_the_command_to_train_longer_repeats_the_first_launch(tmp_path):
    command = "/x/train.py experiment=wavlm_nano name=n data.sources.speech.shards=my shards/a optim.updates=7"
    record = {"segments": [{"command": command}, {"command": "train.py other=1"}]}
    assert overrides_of(record)[2] == "data.sources.speech.shards=my shards/a"
    made = "openwavlm train experiment=wavlm_nano name=n 'data.sources.speech.shards=my shards/a' optim.updates=7"
    first = {"segments": [{"from_step": 0, "command": command}]}
    assert dict(recipe_of(iteration(tmp_path, record=first)))["command"] == made
    commands = dict(commands_of(iteration(tmp_path, record=record, config={"optim": {"updates": 7}})))
    longer = next(text for text in commands.values() if "optim.updates" in text)
    assert (
        "'data.sources.speech.shards=my shards/a'" in longer and "optim.updates=14" in longer and "optim.updates=7 " not in longer
    )
    assert not any("optim.updates" in text for _, text in commands_of(iteration(tmp_path)))


# --- health -------------------------------------------------------------------------------------------------------------


def watched(tmp_path, **parts) -> Iteration:
    return iteration(tmp_path, config={"health": {"enabled": True, "window": 100}}, **parts)


def test_each_health_rule_is_shown_as_fired_held_or_not_judged(tmp_path):
    state = {"judged": 3, "value": 2.5, "threshold": 3.0}
    table = CsvRecord(tmp_path / "health.csv", HEALTH_COLUMNS)
    for step in (200, 2400):
        table.write({"step": step, "rule": "perplexity", "value": 4.25, "threshold": 10.0, "sentence": "predictions, all alike"})
    table.close()
    with (tmp_path / "health.csv").open("a") as file:
        file.write('2500,"unigram",1.0')  # torn by a kill
    found = watched(tmp_path, findings=read_findings(tmp_path / "health.csv"), health={"unigram": state})
    rows = {row[0]: row[1:] for row in health_rows(found.findings, found.health)}
    assert len(rows) == len(RULES)
    assert rows["predictions spread over the labels"] == ["✗ fired", "update 200, 2400", "predictions, all alike"]
    assert rows["masked loss below guessing by label frequency"] == ["✓ held", "in 3 windows", ""]
    assert rows["not slower than before"][0] == "not judged"
    page = render("run", [found])
    assert "1 of 11 rules fired" in page and "✗ fired" in page
    assert warnings_of(found).count("Health, update 200: predictions, all alike.") == 1


def test_a_rule_that_fired_often_shows_its_first_value_and_is_warned_of_once(tmp_path):
    rules = [("perplexity", "predictions"), ("throughput", "speed")]
    rows = [
        {"step": str(step), "rule": rule, "value": str(step / 8), "threshold": "10.0", "sentence": f"{text} at {step}"}
        for step in (100, 200, 300, 400, 500)
        for rule, text in rules
    ]
    found = watched(tmp_path, findings=rows)
    shown = {row[0]: row[1:] for row in health_rows(rows, {})}
    assert shown["predictions spread over the labels"] == [
        "✗ fired",
        "update 100, 200, 300 and 2 more updates",
        "predictions at 100",
    ]
    assert health_warnings(found, of_machine=False) == ["Health, update 100: predictions at 100."]
    assert health_warnings(found, of_machine=True) == ["Health, update 100: speed at 100."]
    assert health_note(found).startswith("2 of 11 rules fired.")


def test_one_window_is_no_windows(tmp_path):
    rows = {row[0]: row for row in health_rows([], {"unigram": {"judged": 1, "value": 2.5, "threshold": 3.0}})}
    assert rows["masked loss below guessing by label frequency"][1:] == ["✓ held", "in 1 window", ""]
    assert [plural(count, "micro-batch") for count in (1, 2, 12_345)] == [
        "1 micro-batch",
        "2 micro-batches",
        "12\u202f345 micro-batches",
    ]
    assert [plural(count, noun) for count, noun in ((0, "row"), (2, "process"))] == ["0 rows", "2 processes"]


def test_a_slow_machine_stands_in_a_place_of_its_own(tmp_path):
    row = {"step": "100", "rule": "throughput", "value": "1", "threshold": "2", "sentence": "40 s of audio a second"}
    validation = {"step": np.array([1.0]), "cross_entropy": np.ones(1), "accuracy": np.ones(1)}
    found = watched(tmp_path, findings=[row], metrics={"step": np.array([1.0])}, validation=validation)
    page = render("run", [found])
    assert "Limits of these figures" not in page
    assert "40 s of audio a second" in page[page.index('id="machine"') : page.index('id="next"')]


def test_a_run_that_was_not_watched_or_was_killed_says_so(tmp_path):
    assert "not watched" in render("run", [iteration(tmp_path, config={"health": {"enabled": False}})])
    assert "not watched" in render("run", [iteration(tmp_path)])
    assert {row[1] for row in health_rows([], None)} == {"did not fire"}
    assert "No rule fired." in render("run", [watched(tmp_path)])


def _long(tmp_path, clusters: int, updates: int = 400_000) -> Iteration:
    steps = np.array([100_000.0, 400_000.0])
    metrics = {"step": steps, "cross_entropy": np.array([3.0, 2.4])}
    plan = {"codebook": clusters, "padding_share": 0.0, "lost_share": 0.0, "too_short": 0}
    return iteration(tmp_path, config={"optim": {"updates": updates}}, plan=plan, metrics=metrics)


def test_points_of_others_stand_beside_a_long_run_with_as_many_clusters(tmp_path):
    page = render("title", [_long(tmp_path, 100)])
    assert "fairseq #4907" in page and page.count("twice the paper") == 2 and "no run passes or fails by it" in page
    assert "2.31" in page and "2.18" in page, "3.329 and 3.144 bits, in nats"
    assert "1.53" not in page, "that point has 500 clusters"
    for other in (_long(tmp_path, 50), _long(tmp_path, 100, updates=2_000)):
        assert "fairseq #4907" not in render("title", [other])


def test_a_run_that_was_probed_shows_its_layers_over_the_updates(tmp_path):
    assert "Probes while training" not in render("title", [iteration(tmp_path)])
    (tmp_path / "probes.csv").write_text("step,layer_0,layer_1\n100,0.2,0.3\n200,0.3,0.5\n")
    (tmp_path / "probe_baselines.json").write_text('{"baselines": {"logmel_context": 0.42}}')
    page = render("title", [iteration(tmp_path)])
    assert "Probes while training" in page and "log-mel ± 5 normalised 0.420" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_points_of_others_are_those_of_their_sources():
    # fairseq #4907: bits and shares of the two iterations at 250,000 and 400,000 updates.
    reported = {
        (100, 250_000): (3.329, 0.365, 0.049),
        (100, 400_000): (3.144, 0.390, 0.089),
        (500, 250_000): (3.712, 0.383, 0.635),
        (500, 400_000): (3.422, 0.417, 0.662),
    }
    found = {(point.clusters, point.updates): point for point in POINTS if point.source == "fairseq #4907"}
    assert found.keys() == reported.keys()
    for key, (bits, accuracy, unmasked) in reported.items():
        assert found[key].nats == pytest.approx(bits * np.log(2))
        assert (found[key].accuracy, found[key].unmasked_accuracy) == (accuracy, unmasked)
    assert [point.clusters for point in comparable(500, 10_000)] == [500] * 3 and comparable(500, 9_999) == []
