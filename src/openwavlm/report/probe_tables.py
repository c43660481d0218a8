"""The probes' figures as tables and sentences."""

from collections.abc import Sequence
from typing import Any

from openwavlm.evaluation.intervals import outcome_of
from openwavlm.report.verdicts import CONDITIONS, PHONE_CONTROLS, UNIT_CONTROLS, ends_text
from openwavlm.report.words import grouped, number, plural


def phones_note(phones: dict[str, Any]) -> str:
    """A sentence on the phone probe; empty without its figures."""
    if not phones:
        return ""
    speakers = f" of {plural(phones['speakers'], 'speaker')}" if phones.get("speakers") else ""
    frames = f" on {grouped(phones['frames'])} test frames" if phones.get("frames") else ""
    chosen = phones.get("chosen_layer")
    picked = f" Layer {chosen} was chosen on other (dev) speakers; its interval is shaded." if chosen is not None else ""
    return f"A linear classifier names the phone of each frame{frames}{speakers}.{picked}"


def speakers_note(speakers: dict[str, Any]) -> str:
    """A sentence on the speaker probe; empty without its figures."""
    if not speakers.get("layers"):
        return ""
    note = "The speaker probe names the speaker of 2 s of audio among the test speakers, fitted on other utterances of theirs"
    if speakers.get("chosen_layer") is None:
        return f"{note}."
    return f"{note}: right for {100 * speakers['chosen']:.1f} % at layer {speakers['chosen_layer']}, chosen on dev speakers."


def phone_table(phones: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the model, its baselines, the commonest phone; then probes fitted on multi-condition speech."""
    conditions = [condition for condition in CONDITIONS if condition != "clean" and phones.get(condition)]
    rows = _phone_rows(phones, conditions, "")
    rows += _phone_rows(phones.get("multi") or {}, conditions, "; multi-condition probe")
    header = ["phones, share of frames right", "clean", "95 % interval", *map(CONDITIONS.__getitem__, conditions)]
    return [*header, "model minus baseline, 95 % interval"], rows


def _phone_rows(phones: dict[str, Any], conditions: Sequence[str], probe: str) -> list[list[str]]:
    names = {"chosen": "model, chosen layer", **PHONE_CONTROLS, "majority": "always the commonest phone"}
    intervals, gains = phones.get("intervals") or {}, phones.get("differences") or {}
    rows = []
    for key, label in names.items():
        values = [figures.get(key) for figures in (phones, *(phones.get(condition) or {} for condition in conditions))]
        if any(isinstance(value, int | float) for value in values):
            others = [_compared(phones.get(condition) or {}, key) for condition in conditions]
            clean = "" if values[0] is None else number(values[0])
            rows.append([label + probe, clean, _range(intervals.get(key)), *others, _difference(gains.get(key))])
    return rows


def _range(ends: Sequence[float | None] | None) -> str:
    low, high = ends if ends is not None and len(ends) == 2 else (None, None)
    return "" if low is None or high is None else ends_text(low, high)


def _difference(given: Sequence[float | None] | None) -> str:
    """Interval of a difference, with the outcome where it contains 0."""
    outcome, text = _outcome(given), _range((given or [])[1:3])
    return f"{text}: {outcome}" if outcome.startswith("equal") else text


def _outcome(given: Sequence[float | None] | None) -> str:
    """Outcome of a difference (value, lower and upper end, smallest visible difference), which follows `equal`; empty without it."""
    if not given or given[1] is None or given[2] is None:
        return ""
    outcome, visible = outcome_of(given[1], given[2]), given[3] if len(given) > 3 else None
    return f"equal, visible from {number(visible)}" if outcome == "equal" and visible is not None else outcome


def units_table(units: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: condition, model, each baseline that was measured, spread."""
    shown = {condition: figures for condition, figures in units.items() if figures and figures.get("chosen") is not None}
    controls = [key for key in UNIT_CONTROLS if any(figures.get(key) is not None for figures in shown.values())]
    rows = []
    for condition, figures in shown.items():
        cells = [CONDITIONS.get(condition, condition), number(figures["chosen"])]
        cells += [_compared(figures, control) for control in controls]
        rows.append([*cells, number(figures.get("spread") or 0.0)])
    names = [UNIT_CONTROLS[key].removeprefix("units of ").removeprefix("the ") for key in controls]
    return ["PNMI of units", "model", *names, "spread"], rows


def _compared(figures: dict[str, Any], name: str) -> str:
    """A figure, for a baseline with the model's outcome against it; empty without the figure."""
    value, outcome = figures.get(name), _outcome((figures.get("differences") or {}).get(name))
    compared = f" ({'' if outcome.startswith('equal') else 'model '}{outcome})" if outcome else ""
    return "" if value is None else number(value) + compared
