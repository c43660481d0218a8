"""A model's figures against its baselines, as sentences computed from the figures."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openwavlm.evaluation.features import SPECTRA
from openwavlm.evaluation.intervals import Outcome as IntervalOutcome
from openwavlm.evaluation.intervals import deciding, outcome_of, sign_places
from openwavlm.report.words import number, plural

Outcome = Literal["beats", "ties", "behind", "open"]
# Value, lower and upper end, smallest visible difference; None for an unknown end, fewer entries in older summaries.
Given = Sequence[float | None] | None

CROSS_ENTROPY = "masked cross-entropy"

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
    """One comparison with all baselines of a measure.

    Attributes:
        outcome: `behind` one of them, `beats` all, else `open` (not decided) if one has no interval, else `ties` (no clear difference).
        measure: "masked cross-entropy", "phones (clean speech)", "units (10 dB noise)".
        control: Key of the baseline that decides: the best of those with this outcome; `baseline` is its name.
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
    """Compares masked prediction, and phones and units in each condition, with all baselines that were measured.

    The rule is `intervals.deciding`, on intervals over speakers and seeds. Without them nothing is decided: a single test speaker, a
    run that was only validated, a summary from before these intervals.

    Args:
        iteration: An entry of `summary.json`'s `iterations`: `masked`, `phones`, `units`, each of which may be missing or None.
    """
    phones, units = iteration.get("phones") or {}, iteration.get("units") or {}
    found = [*_masked(iteration.get("masked") or {})]
    for condition in CONDITIONS:
        found += _in_condition("phones", condition, phones_in(phones, condition), PHONE_CONTROLS)
    for condition in CONDITIONS:
        found += _in_condition("units", condition, units.get(condition) or {}, UNIT_CONTROLS)
    return found


def phones_in(phones: dict[str, Any], condition: str) -> dict[str, Any]:
    """Phone figures of one condition; those of clean speech are not in a group of their own. Empty where not measured."""
    return phones if condition == "clean" else phones.get(condition) or {}


def _in_condition(measure: str, condition: str, figures: dict[str, Any], controls: dict[str, str]) -> list[Verdict]:
    """Comparison with the baselines of one condition; empty where there is none, or no figure of the model."""
    theirs = {key: figures[key] for key in controls if has(figures, key)}
    if not theirs or not has(figures, "chosen"):
        return []
    # Summaries from before these intervals: their word for a tie is kept, those for a difference came from narrower intervals.
    older = {} if figures.get("differences") else figures.get("verdicts") or {}
    ties = {key for key, word in older.items() if word == "equal"}
    described = f"{measure} ({CONDITIONS[condition]})"
    return [_verdict(described, figures["chosen"], theirs, figures.get("differences") or {}, controls, ties=ties)]


def _masked(masked: dict[str, Any]) -> list[Verdict]:
    """Comparisons of masked cross-entropy and of masked accuracy, as far as measured."""
    verdicts, given = [], masked.get("differences") or {}
    for figure in ("cross_entropy", "accuracy"):
        theirs = {key: masked[key][figure] for key in _MASKED_CONTROLS if has(masked.get(key) or {}, figure)}
        if theirs and has(masked, figure):
            differences = {key: (given.get(key) or {}).get(figure) for key in theirs}
            described = f"masked {figure.replace('_', '-')}"
            verdicts.append(_verdict(described, masked[figure], theirs, differences, _MASKED_CONTROLS))
    return verdicts


def _verdict(
    measure: str,
    ours: float,
    theirs: Mapping[str, float],
    differences: Mapping[str, Given],
    names: Mapping[str, str],
    *,
    ties: Collection[str] = (),
) -> Verdict:
    """Comparison with all of `theirs`: the sentence is on the baseline that decides.

    Args:
        differences: Baseline → value, lower and upper end of the model's figure less its own, smallest visible difference.
        ties: Baselines without an interval that count as a tie.
    """
    sign = -1 if measure == CROSS_ENTROPY else 1
    outcomes = {key: _word(differences.get(key), sign, tie=key in ties) for key in theirs}
    control, word = deciding(outcomes, {key: sign * value for key, value in theirs.items()})
    outcome, given, other = _OF_WORD[word], differences.get(control), theirs[control]
    words, ends, visible = _both(measure, ours, other), None, None
    if (known := _ends(given)) is not None:
        ends, visible = known, given[3] if given is not None and len(given) > 3 else None
        words += f"; difference {number(given[0] if given and given[0] is not None else ours - other)}, 95 % interval {ends_text(*ends)}"
        words += f", which contains 0{visible_text(visible)}" if outcome == "ties" else ""
    else:
        words += f"; {_NONE}: one test speaker" if given else f"; {_NONE}"
    best = "the best" if sign * other == max(sign * value for value in theirs.values()) else "a"
    sentence = f"{_SAYS[outcome]} {best} baseline, {names[control]}, in {measure}: {words}"
    return Verdict(outcome, measure, control, names[control], sentence, ours, other, ends, visible)


def _ends(given: Given) -> tuple[float, float] | None:
    """Ends of the interval of a difference, if it has one."""
    low, high = given[1:3] if given else (None, None)
    return None if low is None or high is None or low != low or high != high else (low, high)


def _word(given: Given, sign: int, *, tie: bool) -> IntervalOutcome:
    """Outcome of a difference; `sign` −1 where lower is better."""
    ends = _ends(given)
    if ends is None:
        return "equal" if tie and not given else "unknown"
    low, high = ends if sign > 0 else (-ends[1], -ends[0])
    return outcome_of(low, high)


_OF_WORD: dict[str, Outcome] = {"higher": "beats", "equal": "ties", "lower": "behind", "unknown": "open"}
_SAYS = {
    "beats": "better than",
    "ties": "no clear difference from",
    "behind": "worse than",
    "open": "not decided against",
}
_NONE = "no interval"


def _both(measure: str, ours: float, theirs: float) -> str:
    """Both figures in words."""
    both = f"{number(ours)} against {number(theirs)}"
    if measure == CROSS_ENTROPY:
        share = f", {100 * abs(1 - ours / theirs):.1f} % {'lower' if ours < theirs else 'higher'}" if theirs else ""
        return f"{number(ours)} nats against {number(theirs)}{share}"
    if measure.startswith("units"):
        return f"PNMI {both}"
    return f"{both} of the frames right" if measure.startswith("phones") else both


def ends_text(low: float, high: float) -> str:
    """Both ends of an interval, with as many places as its outcome needs."""
    places = sign_places(low, high, 3)
    return f"{number(low, places)} … {number(high, places)}"


def visible_text(visible: float | None) -> str:
    """The smallest visible difference, as the end of a sentence; empty where it is unknown."""
    return "" if visible is None or visible != visible else f"; smallest visible difference {number(visible)}"


def headline(verdicts: Iterable[Verdict]) -> str:
    """The outcomes of all comparisons, counted."""
    outcomes = [verdict.outcome for verdict in verdicts]
    if not outcomes:
        return "No figures on held-out speakers yet."
    better, *others = (outcomes.count(outcome) for outcome in ("beats", "ties", "behind", "open"))
    if better == len(outcomes):
        return f"Better than its baselines in all {plural(better, 'comparison')}."
    counts = [f"{word} in {count}" for word, count in zip(("equal", "worse", "not decided"), others, strict=True) if count]
    return f"Against its baselines in {plural(len(outcomes), 'comparison')}: {', '.join([f'better in {better}', *counts])}."


def good_for(iteration: dict[str, Any]) -> str:
    """One sentence on the use of a model, by its phones in every condition, or else by its masked predictions."""
    phones = iteration.get("phones") or {}
    verdicts = {
        condition: verdict
        for condition in CONDITIONS
        for verdict in _in_condition("phones", condition, phones_in(phones, condition), PHONE_CONTROLS)
    }
    if "clean" not in verdicts:
        return _of_masked(_masked(iteration.get("masked") or {}))
    clean, layer = verdicts.pop("clean"), phones.get("chosen_layer")
    model = "the model" if layer is None else f"layer {layer}"
    words = f"{model} names the phone of {_percent(clean)}, {clean.baseline} of {100 * clean.theirs:.1f} %"
    words += "".join(f"; in {CONDITIONS[condition]} {_in_words(verdict)}" for condition, verdict in verdicts.items())
    rival, have = ("the untrained encoder", "still has") if clean.control == "untrained" else ("spectra", "are still")
    return {
        "beats": f"Good for speech sounds, beyond spectra: {words}.",
        "ties": f"Good for speech sounds, about as much as {rival}: {words}{visible_text(clean.visible)}.",
        "behind": f"For speech sounds, {rival} {have} the better features: {words}.",
        "open": f"Not decided for speech sounds ({_NONE}): {words}.",
    }[clean.outcome]


def _percent(verdict: Verdict) -> str:
    return f"{100 * verdict.ours:.1f} % of the frames"


def _in_words(verdict: Verdict) -> str:
    """Figures and outcome in another condition than clean speech."""
    word = {"beats": "ahead", "ties": "no clear difference", "behind": "behind", "open": "not decided"}[verdict.outcome]
    return f"of {_percent(verdict)}, {verdict.baseline} of {100 * verdict.theirs:.1f} % ({word})"


def _of_masked(verdicts: list[Verdict]) -> str:
    """Sentence on the use of a model without probes of phones; empty without masked predictions."""
    outcomes = {verdict.outcome for verdict in verdicts}
    if not outcomes:
        return ""
    if outcomes & {"behind", "ties"}:
        return "It is not ready for use: label statistics still predict hidden labels as well in places; train it longer."
    if "open" in outcomes:
        return (
            f"Not decided whether it predicts hidden labels better than label statistics ({_NONE} over speakers); run the probes."
        )
    return "It predicts hidden labels better than label statistics; run the probes to see what its layers are good for."


def wins(verdicts: Iterable[Verdict]) -> list[tuple[str, str]]:
    """Comparisons with a better outcome: (measure with the model's figure, best baseline with its figure and the difference)."""
    return [
        (
            f"better in {verdict.measure}, at {number(verdict.ours)}",
            f"{verdict.baseline} ({number(verdict.theirs)}; difference {ends_text(*verdict.interval)})",
        )
        for verdict in verdicts
        if verdict.outcome == "beats" and verdict.interval
    ]


def unmeasured(iteration: dict[str, Any]) -> list[str]:
    """Sentences on the baselines and measures that are missing."""
    masked, missing = iteration.get("masked"), []
    if not masked:
        missing.append("Masked prediction was not measured on held-out speakers (no validation).")
    elif not has(masked.get("count_table") or {}, "cross_entropy"):
        missing.append("The count table, the strongest baseline without audio, was not measured.")
    if not iteration.get("phones"):
        missing.append("Phones were not probed, so the content of the layers is unknown.")
    elif not has(iteration["phones"], "mfcc_norm"):
        missing.append(
            "The probes are of an older version, without normalised MFCC and raw log-mel, so the best baseline may be a weaker one: "
            "probe the model again."
        )
    if not iteration.get("units"):
        missing.append("Units (k-means of the features against phones) were not measured.")
    return missing


def has(figures: dict[str, Any], name: str) -> bool:
    """True if the figure was measured."""
    return isinstance(figures.get(name), int | float)
