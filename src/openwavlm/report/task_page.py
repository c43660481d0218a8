"""`report.html` of a fine-tuning: error rates, curves, and the test rows with the most errors."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from openwavlm.report.charts import BLUE, PALE, chart, smoothed
from openwavlm.report.content import Iteration, read_iteration
from openwavlm.report.recipe import recipe_of
from openwavlm.report.templating import render_page
from openwavlm.report.words import grouped, number
from openwavlm.runtime.atomic import write_atomically
from openwavlm.training.run_files import read_summary

RATES = {
    "word_error": "word error rate",
    "character_error": "character error rate",
    "phone_error": "phone error rate",
    "class_error": "share of wrong classes",
}
_SHOWN = 20


def write_task_report(run: Path, output: Path | None = None, *, title: str | None = None) -> Path:
    """Writes the page of a fine-tuning into `output`, by default its run directory; returns its path.

    Raises:
        ValueError: If the run's records are missing or damaged.
    """
    iteration = read_iteration(run, None)
    path = (output or run) / "report.html"
    write_atomically(path, render(iteration, title or f"OpenWavLM: fine-tuning {iteration.name}").encode())
    return path


def render(iteration: Iteration, title: str) -> str:
    """The page."""
    summary = read_summary(iteration.run / "summary.json") if (iteration.run / "summary.json").is_file() else {}
    test = summary.get("test")
    rows = _test_rows(iteration.run / "test.tsv") if test else []
    worst = sorted(rows, key=lambda row: (-int(row[4]) / max(1, int(row[5])), row[0]))[:_SHOWN]
    return render_page(
        "task.html.j2",
        title,
        headline=_headline(iteration, test),
        sentences=_sentences(iteration, test),
        limits=_limits(iteration, test),
        recipe=recipe_of(iteration),
        charts=_charts(iteration),
        by_speaker=_by_speaker(rows),
        rows=worst,
        rows_title=f"Test rows with the most errors ({len(worst)} of {len(rows)})",
        health_note=f"{len(iteration.findings)} findings of the health rules." if iteration.findings else "No rule fired.",
        findings=[[row["step"], row["rule"], row["sentence"]] for row in iteration.findings],
    )


def _rates(figures: Any) -> list[tuple[str, str]]:
    return [(name, words) for name, words in RATES.items() if name in figures]


def _headline(iteration: Iteration, test: dict[str, Any] | None) -> str:
    if test is not None:
        name, words = _rates(test)[0]
        ends = f" ({number(test['interval'][0])} … {number(test['interval'][1])})" if test.get("interval") else ""
        speakers = f"{test['speakers']} speaker" + ("s" if test["speakers"] != 1 else "")
        return (
            f"{words.capitalize()} on the test part: {number(test[name])}{ends}, over {grouped(test['rows'])} rows of {speakers}."
        )
    last = {name: values[-1] for name, values in iteration.validation.items() if len(values)}
    if last:
        name, words = _rates(last)[0]
        rate = number(float(last[name]))
        return f"{words.capitalize()} on the validation part: {rate} after {int(last['step'])} updates. No test was made."
    return "Nothing has been measured on held-out rows."


def _sentences(iteration: Iteration, test: dict[str, Any] | None) -> list[str]:
    config, init = iteration.config, iteration.record.get("init") or {}
    task = config.get("task") or {}
    encoder = f"{config.get('init')} ({init.get('dialect', 'unknown')})" + (
        ", with random weights" if config.get("untrained") else ""
    )
    found = [f"Task {task.get('name')} on the encoder {encoder}; {(config.get('trained') or {}).get('encoder')} training."]
    if test is not None:
        others = ", ".join(f"{words} {number(test[name])}" for name, words in _rates(test)[1:])
        chosen = "chosen on the validation part" if test["chosen"] == "best" else "the last one"
        found.append(
            f"Measured once, with the checkpoint after {test['checkpoint']} updates, {chosen}{'; ' + others if others else ''}."
        )
        if "beam" in test:
            found.append(_by_beam_search(test["beam"]))
    return found


def _by_beam_search(beam: dict[str, Any]) -> str:
    rates = ", ".join(f"{words} {number(beam[name])}" for name, words in _rates(beam))
    files = [
        f"{words} {beam[key]['path']}"
        for key, words in (("lexicon", "lexicon"), ("language_model", "language model"))
        if key in beam
    ]
    weight = f" of weight {number(beam['lm_weight'])}" if "language_model" in beam else ""
    return f"By beam search ({', '.join(files) + weight if files else 'without lexicon and language model'}): {rates}."


def _limits(iteration: Iteration, test: dict[str, Any] | None) -> list[str]:
    seen = ((iteration.record.get("init") or {}).get("held_out_seen")) or {}
    found = []
    if seen.get("rows"):
        found.append(f"{seen['rows']} held-out rows are in the pre-training of the encoder.")
    elif not seen.get("known", True):
        found.append("The encoder's training data are not on record: held-out rows may be among them.")
    if test is not None and not test.get("interval"):
        found.append("One test speaker gives no interval.")
    found.append("No control stands beside these figures: train the same task with init=mfcc, init=log_mel and untrained=true.")
    return found


def _charts(iteration: Iteration) -> list[Markup]:
    metrics, validation, drawn = iteration.metrics, iteration.validation, list[Markup]()
    if len(metrics.get("step", ())):
        with chart(drawn, "loss", "Loss (lower is better)", "updates", "nats a symbol or row") as axes:
            axes.plot(*smoothed(metrics, "loss"), color=PALE, linewidth=1.2, label="training batches")
            if len(validation.get("step", ())):
                axes.plot(validation["step"], validation["loss"], "o-", color=BLUE, markersize=4, label="validation part")
    if len(validation.get("step", ())):
        for name, words in _rates(validation):
            with chart(drawn, name, f"{words.capitalize()} (lower is better)", "updates", words) as axes:
                axes.plot(validation["step"], validation[name], "o-", color=BLUE, markersize=4, label="validation part")
                axes.set_ylim(0, None)
    if len(metrics.get("step", ())):
        with chart(drawn, "rate", "Learning rate", "updates", "learning rate") as axes:
            axes.plot(metrics["step"], metrics["lr"], color=BLUE, linewidth=1.4)
            axes.set_ylim(0, None)
    return drawn


def _test_rows(path: Path) -> list[list[str]]:
    """Rows of `test.tsv`; empty without one."""
    if not path.is_file():
        return []
    return [row[:6] for line in path.read_text().splitlines()[1:] if len(row := line.split("\t")) >= 6]


def _by_speaker(rows: list[list[str]]) -> list[list[str]]:
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for _, speaker, _, _, edits, length in rows:
        for place, value in enumerate((1, int(edits), int(length))):
            found[speaker][place] += value
    return [
        [speaker, *map(str, sums), number(sums[1] / max(1, sums[2]))]
        for speaker, sums in sorted(found.items(), key=lambda one: -one[1][1] / max(1, one[1][2]))
    ]
