"""One run's figures against those of another, as sentences with paired intervals."""

from typing import Any

import numpy as np

from openwavlm.evaluation.intervals import Interval, interval, ratio_interval
from openwavlm.evaluation.unit_figures import paired_pseudo_values
from openwavlm.report.verdicts import CONDITIONS, ends_text, has, phones_in, visible_text
from openwavlm.report.words import number


def compare_iterations(earlier: dict[str, Any], later: dict[str, Any]) -> list[str]:
    """Differences between two models with their intervals; without one where the test speakers or frames differ or are unknown."""
    sentences = []
    for condition in CONDITIONS:
        first, second = (phones_in(part.get("phones") or {}, condition) for part in (earlier, later))
        if has(first, "chosen") and has(second, "chosen"):
            sums, others = second.get("by_speaker"), first.get("by_speaker")
            gain = None
            if sums and others and _same_frames(others, sums):
                gain = ratio_interval(np.subtract(sums["correct"], others["correct"]), np.asarray(sums["frames"]))
            words = f"{number(second['chosen'])} after {number(first['chosen'])} ({_gain_text(gain)})"
            sentences.append(f"Phones, {CONDITIONS[condition]}: {words}")
    for condition in CONDITIONS:
        before, after = ((part.get("units") or {}).get(condition) or {} for part in (earlier, later))
        if has(before, "chosen") and has(after, "chosen"):
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
