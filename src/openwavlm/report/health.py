"""The health section: each rule, its result, when it was judged, and its first finding."""

from collections.abc import Mapping, Sequence
from typing import Any

from openwavlm.report.content import Iteration
from openwavlm.report.words import plural
from openwavlm.training.health.rules import RULES


def health_rows(findings: Sequence[Mapping[str, str]], states: Mapping[str, Any] | None) -> list[list[str]]:
    """One line a rule, those that fired first: the rule, its result, when it was judged or fired, its first finding.

    Args:
        findings: Rows of `health.csv`.
        states: `health` of `summary.json`; None where the run has not ended in order.
    """
    lines = []
    for rule in RULES:
        fired = [row for row in findings if row["rule"] == rule.name]
        judged = ((states or {}).get(rule.name) or {}).get("judged")
        if fired:
            steps = ", ".join(row["step"] for row in fired[:3])
            more = f" and {plural(len(fired) - 3, 'more update')}" if len(fired) > 3 else ""
            lines.append([rule.title, "✗ fired", f"update {steps}{more}", fired[0]["sentence"]])
        elif judged:
            lines.append([rule.title, "✓ held", f"in {plural(judged, 'window')}", ""])
        elif states is None:
            lines.append([rule.title, "did not fire", "", ""])
        else:
            lines.append([rule.title, "not judged", f"judged {rule.judged}", ""])
    return sorted(lines, key=lambda line: line[1] != "✗ fired")


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
    """First sentences of the section."""
    settings = iteration.config.get("health")
    if not settings or not settings.get("enabled"):
        return "The run was not watched (health.enabled)."
    fired = {row["rule"] for row in iteration.findings}
    verdict = f"{len(fired)} of {len(RULES)} rules fired." if fired else "No rule fired."
    return f"{verdict} Each rule states what a sound run keeps, and is judged in windows of {settings['window']} updates."
