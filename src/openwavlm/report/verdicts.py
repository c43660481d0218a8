"""A model's figures against its baselines, as sentences computed from the figures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from openwavlm.evaluation.features import SPECTRA
from openwavlm.evaluation.intervals import Interval, interval, outcome_of, ratio_interval, sign_places
from openwavlm.evaluation.unit_figures import paired_pseudo_values
from openwavlm.report.words import number

Outcome = Literal["beats", "ties", "behind"]

_MASKED_CONTROLS = {
    "unigram": "the label frequencies (unigram)",
    "count_table": "the count table",
    "nearest_label": "repeating the nearest unmasked label",
}
PHONE_CONTROLS = {
    **{key: f"one frame of {name}" for key, name in SPECTRA.items()},
    **{f"{key}_context": name.replace(" (", " ± 5 frames (") for key, name in SPECTRA.items()},
    "untrained": "the untrained encoder",
}
UNIT_CONTROLS = {**{key: f"units of {name}" for key, name in SPECTRA.items()}, "untrained": "units of the untrained encoder"}
CONDITIONS = {"clean": "clean speech", "telephone": "telephone band", "noise10": "10 dB noise"}


@dataclass(frozen=True)
class Verdict:
    """One comparison.

    Attributes:
        outcome: `beats`, `ties` (no clear difference) or `behind`.
        measure: "masked cross-entropy", "phones (clean speech)", "units (10 dB noise)".
        control: Key of the baseline; `baseline` is its name.
        sentence: The comparison with its figures: `ours` of the model, `theirs` of the baseline.
        interval: Lower and upper end of the difference over speakers and seeds, if there is one.
        visible: Smallest visible difference, if it is known.
    """

    outcome: Outcome
    measure: str
    control: str
    baseline: str
    sentence: str
    ours: float
    theirs: float
    interval: tuple[float, float] | None = None
    visible: float | None = None


def beats(iteration: dict[str, Any]) -> list[Verdict]:
    """Compares masked prediction with every baseline, phones and units with the best baseline of each condition.

    The best baseline is the one with the highest figure of those that were measured. A difference whose interval over speakers and
    seeds contains 0 is a tie. Figures without an interval are compared as they are: masked labels, a single test speaker, units of a
    summary from before these intervals.

    Args:
        iteration: An entry of `summary.json`'s `iterations`: `masked`, `phones`, `units`, each of which may be missing or None.
    """
    phones, units = iteration.get("phones") or {}, iteration.get("units") or {}
    found = [*_masked(iteration.get("masked") or {})]
    for condition in CONDITIONS:
        found += _against_best("phones", condition, phones_in(phones, condition), PHONE_CONTROLS)
    for condition in CONDITIONS:
        found += _against_best("units", condition, units.get(condition) or {}, UNIT_CONTROLS)
    return found


def phones_in(phones: dict[str, Any], condition: str) -> dict[str, Any]:
    """Phone figures of one condition; those of clean speech are not in a group of their own. Empty where not measured."""
    return phones if condition == "clean" else phones.get(condition) or {}


def _against_best(measure: str, condition: str, figures: dict[str, Any], controls: dict[str, str]) -> list[Verdict]:
    """Comparison with the best baseline of one condition; empty where there is none, or no figure of the model."""
    measured = [key for key in controls if _has(figures, key)]
    if not measured or not _has(figures, "chosen"):
        return []
    best = max(measured, key=lambda key: figures[key])
    return [_compared(measure, condition, best, controls[best], figures)]


def _outcome(gain: float) -> Outcome:
    return "beats" if gain > 0 else "behind" if gain < 0 else "ties"


_SAYS = {"beats": "better than", "ties": "no clear difference from", "behind": "worse than"}


def _masked(masked: dict[str, Any]) -> list[Verdict]:
    verdicts = []
    for control, name in _MASKED_CONTROLS.items():
        theirs = masked.get(control) or {}
        for figure, sign in (("cross_entropy", -1), ("accuracy", 1)):
            if not _has(masked, figure) or not _has(theirs, figure):
                continue
            ours, other = masked[figure], theirs[figure]
            outcome, words = _outcome(sign * (ours - other)), f"{number(ours)} against {number(other)}"
            if figure == "cross_entropy":
                share = 100 * abs(1 - ours / other)
                words = f"{number(ours)} nats against {number(other)}, {share:.1f} % {'lower' if ours < other else 'higher'}"
            measure = f"masked {figure.replace('_', '-')}"
            verdicts.append(
                Verdict(outcome, measure, control, name, f"{_SAYS[outcome]} {name} in {measure}: {words}", ours, other)
            )
    return verdicts


def _compared(measure: str, condition: str, control: str, name: str, figures: dict[str, Any]) -> Verdict:
    """Verdict by the interval of the difference, where `figures` have one."""
    ours, theirs = figures["chosen"], figures[control]
    # Value, lower and upper end, smallest visible difference.
    given: Sequence[float | None] | None = (figures.get("differences") or {}).get(control)
    both = f"{number(ours)} against {number(theirs)}"
    words = f"{both} of the frames right" if measure == "phones" else f"PNMI {both}"
    outcome, ends, visible = _outcome(ours - theirs), None, None
    if given and None not in given:
        difference, low, high, visible = (*given, None)[:4]
        assert difference is not None and low is not None and high is not None
        outcome, ends = _OF_WORD[outcome_of(low, high)], (low, high)
        words += f"; difference {number(difference)}, 95 % interval {ends_text(low, high)}"
        words += f", which contains 0{visible_text(visible)}" if outcome == "ties" else ""
    else:
        words += "; no interval"
    measure = f"{measure} ({CONDITIONS[condition]})"
    sentence = f"{_SAYS[outcome]} the best baseline, {name}, in {measure}: {words}"
    return Verdict(outcome, measure, control, name, sentence, ours, theirs, ends, visible)


_OF_WORD: dict[str, Outcome] = {"higher": "beats", "equal": "ties", "lower": "behind"}


def ends_text(low: float, high: float) -> str:
    """Both ends of an interval, with as many places as its outcome needs."""
    places = sign_places(low, high, 3)
    return f"{number(low, places)} … {number(high, places)}"


def visible_text(visible: float | None) -> str:
    """The smallest visible difference, as the end of a sentence; empty where it is unknown."""
    return "" if visible is None or visible != visible else f"; smallest visible difference {number(visible)}"


def compare_iterations(earlier: dict[str, Any], later: dict[str, Any]) -> list[str]:
    """Differences between two models with their intervals; without one where the test speakers or frames differ or are unknown."""
    sentences = []
    for condition in CONDITIONS:
        first, second = (phones_in(part.get("phones") or {}, condition) for part in (earlier, later))
        if _has(first, "chosen") and _has(second, "chosen"):
            sums, others = second.get("by_speaker"), first.get("by_speaker")
            gain = None
            if sums and others and _same_frames(others, sums):
                gain = ratio_interval(np.subtract(sums["correct"], others["correct"]), np.asarray(sums["frames"]))
            words = f"{number(second['chosen'])} after {number(first['chosen'])} ({_gain_text(gain)})"
            sentences.append(f"Phones, {CONDITIONS[condition]}: {words}")
    for condition in CONDITIONS:
        before, after = ((part.get("units") or {}).get(condition) or {} for part in (earlier, later))
        if _has(before, "chosen") and _has(after, "chosen"):
            words = f"PNMI {number(after['chosen'])} after {number(before['chosen'])} ({_gain_text(_units_gain(before, after))})"
            sentences.append(f"Units, {CONDITIONS[condition]}: {words}")
    return sentences


def _same_frames(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """True if the sums by speaker are of the same speakers with the same numbers of frames."""
    return first["speakers"] == second["speakers"] and list(first["frames"]) == list(second["frames"])


def _units_gain(before: dict[str, Any], after: dict[str, Any]) -> Interval | None:
    first, second = before.get("by_speaker"), after.get("by_speaker")
    if not first or not second or not _same_frames(first, second):
        return None
    earlier, later = (np.array(part["pseudo_values"], dtype=np.float64) for part in (first, second))
    if earlier.shape != later.shape and 1 not in (len(earlier), len(later)):
        return None  # other numbers of codebook seeds
    return interval(paired_pseudo_values(later, earlier), after["chosen"] - before["chosen"])


def _gain_text(gain: Interval | None) -> str:
    """Difference, interval and outcome in words."""
    if gain is None or gain.outcome == "unknown":
        return "no paired interval"
    words = f"difference {number(gain.value)}, 95 % interval {ends_text(gain.low, gain.high)}: {gain.outcome}"
    return words + (visible_text(gain.visible) if gain.outcome == "equal" else "")


def headline(verdicts: Iterable[Verdict]) -> str:
    """The outcomes of all comparisons, counted."""
    outcomes = [verdict.outcome for verdict in verdicts]
    if not outcomes:
        return "No figures on held-out speakers yet."
    better, equal, worse = (outcomes.count(outcome) for outcome in ("beats", "ties", "behind"))
    if better == len(outcomes):
        return f"Better than its baselines in all {better} comparisons."
    counts = [f"better in {better}", f"equal in {equal}" if equal else "", f"worse in {worse}" if worse else ""]
    return f"Against its baselines in {len(outcomes)} comparisons: {', '.join(filter(None, counts))}."


def good_for(iteration: dict[str, Any]) -> str:
    """One sentence on the use of a model, by the best baseline in phones, or by its masked predictions."""
    phones = iteration.get("phones") or {}
    verdicts = {
        condition: verdict
        for condition in CONDITIONS
        for verdict in _against_best("phones", condition, phones_in(phones, condition), PHONE_CONTROLS)
    }
    if "clean" in verdicts:
        rival = verdicts["clean"]
        layer = phones.get("chosen_layer")
        model = "the model" if layer is None else f"layer {layer}"
        words = (
            f"{model} names the phone of {100 * rival.ours:.1f} % of the frames, {rival.baseline} of {100 * rival.theirs:.1f} %"
        )
        parts = [
            (words, [CONDITIONS[key] for key in verdicts if key != "clean" and verdicts[key].outcome == outcome])
            for outcome, words in (("beats", "ahead of"), ("ties", "no better than"), ("behind", "behind"))
        ]
        more = "".join(f"; {words} the best baseline in {' and '.join(where)}" for words, where in parts if where)
        return {
            "beats": f"Good for speech sounds, beyond spectra: {words}{more}.",
            "ties": f"Good for speech sounds, about as much as spectra: {words}{more}{visible_text(rival.visible)}.",
            "behind": f"For speech sounds, spectra are still the better features: {words}{more}.",
        }[rival.outcome]
    masked = _masked(iteration.get("masked") or {})
    if not masked:
        return ""
    if all(verdict.outcome == "beats" for verdict in masked):
        return "It predicts hidden labels better than label statistics; run the probes to see what its layers are good for."
    return "It is not ready for use: label statistics still predict hidden labels as well in places; train it longer."


def wins(verdicts: Iterable[Verdict]) -> list[tuple[str, str]]:
    """Comparisons with a better outcome, one (measure with the model's figure, baselines with theirs) a measure."""
    grouped: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.outcome == "beats":
            grouped.setdefault(verdict.measure, []).append(verdict)
    lines = []
    for measure, members in grouped.items():
        controls = [
            f"{verdict.baseline} ({number(verdict.theirs)}"
            + (f"; difference {ends_text(*verdict.interval)})" if verdict.interval else ")")
            for verdict in members
        ]
        lines.append((f"better in {measure}, at {number(members[0].ours)}", ", ".join(controls)))
    return lines


def unmeasured(iteration: dict[str, Any]) -> list[str]:
    """Sentences on the baselines and measures that are missing."""
    masked, missing = iteration.get("masked"), []
    if not masked:
        missing.append("Masked prediction was not measured on held-out speakers (no validation).")
    elif not _has(masked.get("count_table") or {}, "cross_entropy"):
        missing.append("The count table, the strongest baseline without audio, was not measured.")
    if not iteration.get("phones"):
        missing.append("Phones were not probed, so the content of the layers is unknown.")
    elif not _has(iteration["phones"], "mfcc_norm"):
        missing.append(
            "The probes are of an older version, without normalised MFCC and raw log-mel, so the best baseline may be a weaker one: "
            "probe the model again."
        )
    if not iteration.get("units"):
        missing.append("Units (k-means of the features against phones) were not measured.")
    return missing


def _has(figures: dict[str, Any], name: str) -> bool:
    return isinstance(figures.get(name), int | float)
