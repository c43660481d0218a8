"""The report's section on health: each rule, whether it fired, when, and with which value."""

from collections.abc import Mapping, Sequence
from typing import Any

from openwavlm.report.content import Iteration
from openwavlm.report.verdicts import number
from openwavlm.training.health.rules import RULES


def health_rows(findings: Sequence[Mapping[str, str]], states: Mapping[str, Any] | None) -> list[list[str]]:
    """One line a rule: what holds in a sound run, how it stands, when it fired, value, threshold.

    A rule that fired shows the value with which it first did, one that did not the last value that was judged.

    Args:
        findings: Rows of `health.csv`.
        states: `health` of `summary.json`; None where the run has not ended in order.
    """
    lines = []
    for rule in RULES:
        fired = [row for row in findings if row["rule"] == rule.name]
        state = (states or {}).get(rule.name) or {}
        if fired:
            steps = ", ".join(row["step"] for row in fired[:3]) + (f" and {len(fired) - 3} times more" if len(fired) > 3 else "")
            lines.append([rule.title, "✗ fired", f"update {steps}", *map(_figure, (fired[0]["value"], fired[0]["threshold"]))])
        elif state.get("judged"):
            times = f"{state['judged']} windows"
            lines.append([rule.title, "✓ held", times, *map(_figure, (state["value"], state["threshold"]))])
        elif states is None:
            lines.append([rule.title, "did not fire", "", "", ""])
        else:
            lines.append([rule.title, "not judged", f"judged {rule.judged}", "", ""])
    return lines


def _figure(value: str | float) -> str:
    figure = float(value)
    return number(figure, 0) if figure == round(figure) else number(figure)


def health_warnings(iteration: Iteration, *, of_machine: bool) -> list[str]:
    """One sentence for each rule that fired, at its first finding.

    Args:
        iteration: The run.
        of_machine: Whether to return the rules on the machine's speed, or those on what was trained.
    """
    wanted = {rule.name for rule in RULES if rule.of_machine == of_machine}
    first: dict[str, Mapping[str, str]] = {}
    for row in iteration.findings:
        if row["rule"] in wanted:
            first.setdefault(row["rule"], row)
    return [f"Health, update {row['step']}: {row['sentence']}." for row in first.values()]


def health_said(iteration: Iteration) -> str:
    """What the section begins with."""
    settings = iteration.config.get("health")
    if not settings or not settings.get("enabled"):
        return "The run was not watched (health.enabled)."
    fired = {row["rule"] for row in iteration.findings}
    verdict = f"{len(fired)} of {len(RULES)} rules fired." if fired else "No rule fired."
    return (
        f"{verdict} What a sound run keeps, judged in windows of {settings['window']} updates (value: when a rule first fired, else in "
        "the last window that was judged)."
    )
