"""`report.html`: one self-contained page for a person who did not make the run, with the verdicts in its first lines."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.labels.quality import perplexity, used_clusters
from openwavlm.report import pictures
from openwavlm.report.content import Example, Iteration, Realised, ReportContent
from openwavlm.report.facts import commands_of, warnings_of, what_ran
from openwavlm.report.glossary import GLOSSARY
from openwavlm.report.health import health_rows, health_said, health_warnings
from openwavlm.report.markup import document, escaped, paragraph, sound, table
from openwavlm.report.summary import iteration_summary, merge_summary
from openwavlm.report.verdicts import CONDITIONS, CONTROLS, Verdict, beats, compare_iterations, headline, number, unmeasured, wins
from openwavlm.runtime.atomic import atomic_file


def write_report(directory: Path, content: ReportContent) -> Path:
    """Writes `report.html`, and puts the figures into `summary.json` beside it, whose other entries stay.

    Args:
        directory: Where both go; made if it does not exist.
        content: What to show.

    Returns:
        Path of the page.

    Raises:
        ValueError: If there is no iteration.
    """
    if not content.iterations:
        raise ValueError("a report needs at least one run, but got none: give the folder of a run, as in run=runs/NAME")
    directory.mkdir(parents=True, exist_ok=True)
    page = directory / "report.html"
    with atomic_file(page) as file:
        file.write(render(content).encode())
    merge_summary(directory / "summary.json", content.iterations)
    return page


def render(content: ReportContent) -> str:
    """The page as text."""
    last = content.iterations[-1]
    figures = [iteration_summary(iteration) for iteration in content.iterations]
    parts = [
        f"<h1>{escaped(content.title)}</h1>",
        paragraph(content.about),
        _verdicts(last, figures[-1], several=len(figures) > 1),
        _warnings(content),
        _what_ran(content.iterations),
        _progress(content.iterations, figures),
        _slow_machine(content),
    ]
    several = len(figures) > 1
    places = reversed(range(len(figures)))
    parts += [_iteration(content.iterations[place], figures[place], place, several=several) for place in places]
    parts += [_commands(content.commands or commands_of(last)), _glossary()]
    return document(content.title, "\n".join(parts))


def _list(items: Iterable[str], css: str) -> str:
    lines = "".join(f"<li>{escaped(item)}</li>" for item in items)
    return f'<ul class="{css}">{lines}</ul>' if lines else ""


def _verdicts(iteration: Iteration, figures: dict[str, Any], *, several: bool) -> str:
    verdicts = beats(figures)
    subject = paragraph(f"The last iteration ({iteration.name}):") if several else ""
    lost = [verdict for verdict in verdicts if verdict.outcome != "beats"]
    missing = unmeasured(figures)
    blocks = [_verdict_list(map(_split, lost), "lost"), _verdict_list(wins(verdicts), "won")]
    held_out = verdicts and iteration.data is not None and iteration.data["validation_speakers"]
    note = "All figures are of held-out voices, which the model was not trained on." if held_out else ""
    if any(verdict.interval for verdict in verdicts):
        note += " Ranges after “difference” are 95 % intervals over the test voices."
    return (
        f'<section class="verdict">{subject}<p class="headline">{escaped(headline(verdicts))}</p>'
        + "".join(blocks)
        + _list(missing, "missing")
        + paragraph(note)
        + "</section>"
    )


def _split(verdict: Verdict) -> tuple[str, str]:
    head, _, figures = verdict.sentence.partition(": ")
    return head, figures


def _verdict_list(lines: Iterable[tuple[str, str]], css: str) -> str:
    items = "".join(f"<li><strong>{escaped(head)}</strong>: {escaped(figures)}</li>" for head, figures in lines)
    return f'<ul class="{css}">{items}</ul>' if items else ""


def _of_each(iterations: list[Iteration], sentences: Callable[[Iteration], list[str]]) -> list[str]:
    """Sentences on each iteration, with its name in front where there are several."""
    several = len(iterations) > 1
    return [f"{iteration.name}: {text}" if several else text for iteration in iterations for text in sentences(iteration)]


def _warnings(content: ReportContent) -> str:
    found = [*content.warnings, *_of_each(content.iterations, warnings_of)]
    return f"<h2>Before you believe a figure</h2>{_list(found, 'warnings')}" if found else ""


def _slow_machine(content: ReportContent) -> str:
    """Findings on the machine's speed, apart from the doubts about figures: they change none."""
    found = _of_each(content.iterations, partial(health_warnings, of_machine=True))
    if not found:
        return ""
    return f"<h2>Speed of the machine</h2>{paragraph('No figure of this page depends on it.')}{_list(found, 'plain')}"


def _what_ran(iterations: list[Iteration]) -> str:
    """A table an iteration; of a later one only what differs from the one before."""
    tables, before = [], dict[str, str]()
    for place, iteration in enumerate(iterations):
        facts = dict(what_ran(iteration))
        shown = {topic: text for topic, text in facts.items() if before.get(topic) != text}
        if len(shown) < len(facts):
            shown["all else"] = f"as in {iterations[place - 1].name}"
        rows = "".join(f"<tr><th>{escaped(topic)}</th><td>{escaped(text)}</td></tr>" for topic, text in shown.items())
        title = f"<h3>{escaped(iteration.name)}</h3>" if len(iterations) > 1 else ""
        tables.append(f'{title}<table class="facts">{rows}</table>')
        before = facts
    return f"<h2>What ran</h2>{''.join(tables)}"


def _progress(iterations: list[Iteration], figures: list[dict[str, Any]]) -> str:
    """Iteration against iteration."""
    found = ""
    for place in range(1, len(iterations)):
        sentences = compare_iterations(figures[place - 1], figures[place])
        title = f"{iterations[place].name} against {iterations[place - 1].name}"
        if sentences:
            found += f"<h3>{escaped(title)}</h3>{_list(sentences, 'plain')}"
    return f"<h2>What each iteration brought</h2>{found}" if found else ""


def _iteration(iteration: Iteration, figures: dict[str, Any], place: int, *, several: bool) -> str:
    name = f"i{place}"
    title = f"<h2>{escaped(iteration.name)}</h2>" if several else ""
    return title + "".join(
        [
            _learning(iteration, name),
            _live_probes(iteration, name),
            _probes(figures, name),
            _clusters(iteration, name),
            _mixture(iteration.mixtures[0] if iteration.mixtures else None),
            _levels(iteration, name),
            _health(iteration),
        ]
    )


def _figures(*charts: str | None) -> str:
    drawn = "".join(f"<figure>{chart}</figure>" for chart in charts if chart)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def _learning(iteration: Iteration, name: str) -> str:
    charts = _figures(pictures.loss_curves(iteration, f"{name}loss"), pictures.accuracy_curve(iteration, f"{name}acc"))
    said = "" if len(iteration.validation.get("step", ())) else "There are no figures of held-out speakers over the updates."
    masked = iteration.masked or {}
    if masked.get("frames"):
        voices = "Figures of the test voices" if masked.get("set") else "Held-out figures"
        said = f"{voices} stand on {int(masked['frames']):,} masked frames, without mixing.".replace(",", " ")
    explained = (
        "Part of each utterance is hidden and the model names the label of every hidden frame. The horizontal lines are what can "
        "be reached without hearing anything."
    )
    return f"<h3>Learning: masked prediction</h3>{paragraph(explained)}{charts}{paragraph(said)}{_other_runs(iteration)}"


def _other_runs(iteration: Iteration) -> str:
    """Published points with as many clusters, for orientation."""
    rows = [
        [
            point.run,
            f"{point.updates:,}".replace(",", " ") if point.updates else "not said",
            number(point.nats, 2) if point.nats is not None else "",
            number(point.accuracy),
            number(point.unmasked_accuracy) if point.unmasked_accuracy is not None else "",
            point.outcome,
            point.source,
        ]
        for point in pictures.points_of(iteration)
    ]
    if not rows:
        return ""
    said = "Where others were with as many clusters, on other data: for orientation, no run passes or fails by it."
    header = ["run", "updates", "nats", "masked accuracy", "unmasked accuracy", "outcome", "source"]
    return paragraph(said) + table(header, rows)


def _live_probes(iteration: Iteration, name: str) -> str:
    """What the probes of the run itself saw, by layer and update."""
    chart = pictures.probe_map(iteration, f"{name}live")
    if chart is None:
        return ""
    said = "While it trained, a linear classifier was fitted on every layer and read on development voices; brighter is better."
    return f"<h3>Probes while training</h3>{paragraph(said)}{_figures(chart)}"


def _probes(figures: dict[str, Any], name: str) -> str:
    phones, units = figures.get("phones") or {}, figures.get("units") or {}
    if not phones and not units:
        return "<h3>Probes</h3><p>No probe was run on this iteration.</p>"
    parts = ["<h3>Probes: what the layers hold</h3>"]
    chart = pictures.layer_chart(phones, f"{name}layers")
    if phones:
        voices = f" of {phones['speakers']} voices" if phones.get("speakers") else ""
        frames = f" on {int(phones['frames']):,} test frames".replace(",", " ") if phones.get("frames") else ""
        chosen = phones.get("chosen_layer")
        picked = (
            f" Layer {chosen} was chosen on other (dev) voices; its interval over voices is shaded." if chosen is not None else ""
        )
        parts.append(paragraph(f"A linear classifier names the phone of each frame{frames}{voices}.{picked}"))
    parts.append(f'<div class="beside">{_figures(chart)}{_phone_table(phones)}</div>')
    parts.append(_units_table(units))
    return "".join(parts)


def _phone_table(phones: dict[str, Any]) -> str:
    names = {"chosen": "model, chosen layer", **{key: CONTROLS[key] for key in CONTROLS if key in phones}}
    names |= {"majority": "always the commonest phone"}
    conditions = [condition for condition in CONDITIONS if condition != "clean" and phones.get(condition)]
    intervals, differences = phones.get("intervals") or {}, phones.get("differences") or {}
    rows = []
    for key, label in names.items():
        values = [figures.get(key) for figures in (phones, *(phones[condition] for condition in conditions))]
        if any(isinstance(value, int | float) for value in values):
            cells = ["" if value is None else number(value) for value in values]
            rows.append([label, cells[0], _range(intervals.get(key)), *cells[1:], _range((differences.get(key) or [])[1:])])
    header = ["phones, share of frames right", "clean", "95 % interval", *map(CONDITIONS.__getitem__, conditions)]
    return table([*header, "model less this, 95 % interval"], rows) if rows else ""


def _range(ends: Sequence[float | None] | None) -> str:
    low, high = ends if ends is not None and len(ends) == 2 else (None, None)
    return "" if low is None or high is None else f"{number(low)} … {number(high)}"


_WORDS = {"higher": "model higher", "equal": "equal", "lower": "model lower"}


def _units_table(units: dict[str, Any]) -> str:
    if not units:
        return "<p>Units were not measured.</p>"
    rows = []
    for condition, figures in units.items():
        if not figures or figures.get("chosen") is None:
            continue
        verdicts = figures.get("verdicts") or {}
        cells = [CONDITIONS.get(condition, condition), number(figures["chosen"])]
        for control in ("mfcc", "logmel", "untrained"):
            value = figures.get(control)
            word = _WORDS.get(verdicts.get(control, ""), "")
            cells.append("" if value is None else number(value) + (f" ({word})" if word else ""))
        rows.append([*cells, number(figures.get("spread") or 0.0)])
    explained = (
        "Units: each frame is replaced by its nearest of k cluster centres. PNMI is the share of the phone's uncertainty that the "
        "unit takes away, less what shuffled units reach. “Equal” means closer than twice the spread over codebook seeds. "
        "Codebooks are fitted on undegraded speech of training voices."
    )
    header = ["PNMI of units", "model", "MFCC", "log-mel", "untrained", "spread"]
    return table(header, rows) + paragraph(explained) if rows else "<p>Units were not measured.</p>"


def _clusters(iteration: Iteration, name: str) -> str:
    counts = iteration.cluster_counts
    if counts is None or not counts.sum():
        return "<h3>Labels in use</h3><p>The labels were not opened, so their frequencies are not known.</p>"
    used, even = used_clusters(counts), perplexity(counts)
    said = (
        f"{used} of {len(counts)} labels occur in the training rows; they carry as much as {even:.1f} equally frequent ones. The "
        f"commonest label has {100 * counts.max() / counts.sum():.1f} % of the frames."
    )
    return f"<h3>Labels in use</h3>{paragraph(said)}{_figures(pictures.usage_chart(counts, f'{name}use'))}"


def _mixture(example: Example | None) -> str:
    if example is None:
        return "<h3>One mixture</h3><p>There is no mixture to show: mixing is off, or the data were not opened.</p>"
    peak = float(max(np.abs(example.clean).max(), np.abs(example.mixed).max()))
    begin, end = example.start / 16_000, (example.start + example.length) / 16_000
    within = f"; within the overlap it is {number(example.overlap_snr_db, 1)} dB" if np.isfinite(example.overlap_snr_db) else ""
    said = (
        f"A row of update {example.step} ({example.name}), as the model got it: the first one in which both voices can be heard well, "
        f"if there is such a one. A second voice of the same batch was added from {begin:.2f} to {end:.2f} s. Taken over whole "
        f"utterances the main voice stands at {number(example.energy_ratio_db, 1)} dB over it, as drawn{within} (0 dB: equally "
        "strong). The labels to be predicted stay those of the main voice."
    )
    sounds = sound("before mixing", example.clean, peak) + sound("after mixing", example.mixed, peak)
    image = f'<img alt="spectrograms before and after mixing, mask and labels" src="{pictures.mixture_picture(example)}">'
    return f'<h3>One mixture</h3>{paragraph(said)}<figure class="mixture">{image}</figure><div class="sounds">{sounds}</div>'


def _levels(iteration: Iteration, name: str) -> str:
    realised = iteration.realised
    if realised is None:
        return "<h3>Masking and mixing as measured</h3><p>Not measured: the data were not opened.</p>"
    mixing = iteration.config.get("mixing") or {}
    chart = pictures.level_chart(realised, mixing.get("speech_db"), f"{name}level")
    return f"<h3>Masking and mixing as measured</h3>{paragraph(_measured(realised))}{_figures(chart)}"


def _measured(realised: Realised) -> str:
    steps = realised.steps
    updates = f"update {steps[0]}" if len(steps) == 1 else f"updates {steps[0]} to {steps[-1]}"
    text = (
        f"On {realised.micro_batches} micro-batches ({realised.rows} rows) of {updates}, built again from the plan: "
        f"{100 * realised.mask_coverage:.1f} % of the valid frames hidden, {realised.mixed_rows} rows mixed "
        f"({realised.noise_rows} with noise)"
    )
    within = realised.overlap_snr_db[np.isfinite(realised.overlap_snr_db)]
    if len(within):
        low, middle, high = np.quantile(within, [0.1, 0.5, 0.9])
        text += (
            f", overlapping {100 * realised.overlap_share.mean():.0f} % of their row on average; within the overlap the main voice "
            f"stands at {number(middle, 1)} dB (median; 10 % below {number(low, 1)}, 10 % above {number(high, 1)})"
        )
    if realised.as_recorded is None:
        return text + "."
    agree = "agree" if realised.as_recorded else "do not agree"
    return text + f". Masked frames and mixed rows {agree} with metrics.csv."


def _health(iteration: Iteration) -> str:
    said = f"<h3>Health</h3>{paragraph(health_said(iteration))}"
    if not (iteration.config.get("health") or {}).get("enabled"):
        return said
    header = ["what a sound run keeps", "", "when", "value", "threshold"]
    return said + table(header, health_rows(iteration.findings, iteration.health))


def _commands(commands: list[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escaped(what)}</dt><dd><code>{escaped(command)}</code></dd>" for what, command in commands)
    return f"<h2>Going on</h2><dl>{rows}</dl>" if rows else ""


def _glossary() -> str:
    rows = "".join(f"<dt>{escaped(word)}</dt><dd>{escaped(meaning)}</dd>" for word, meaning in GLOSSARY)
    return f'<h2>Words</h2><dl class="words">{rows}</dl>'
