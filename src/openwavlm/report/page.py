"""`report.html`: one self-contained page for a reader who did not make the run, with the verdicts in its first lines."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.labels.quality import perplexity, used_clusters
from openwavlm.report import charts, pictures
from openwavlm.report.content import Example, Iteration, Realised
from openwavlm.report.facts import health_note, health_rows, health_warnings, warnings_of, what_ran
from openwavlm.report.probe_tables import phone_table, phones_note, speakers_note, units_table
from openwavlm.report.recipe import commands_of, differences, recipe_of
from openwavlm.report.summary import iteration_summary
from openwavlm.report.templating import render_page
from openwavlm.report.verdicts import (
    Verdict,
    beats,
    compare_iterations,
    good_for,
    headline,
    unmeasured,
    wins,
)
from openwavlm.report.words import grouped, number, plural
from openwavlm.runtime.atomic import write_atomically, write_json
from openwavlm.training.run_files import read_summary


def write_report(directory: Path, title: str, iterations: list[Iteration], commands: Sequence[tuple[str, str]] = ()) -> Path:
    """Writes `report.html`, and the figures into `summary.json` beside it; the other entries of that file stay.

    Args:
        directory: Folder of both; made if it does not exist.
        title: Title of the page.
        iterations: Runs in order; the last one is the result.
        commands: (purpose, command) of the next steps; empty: made from the last run's record.

    Returns:
        Path of the page.

    Raises:
        ValueError: If there is no iteration.
    """
    if not iterations:
        raise ValueError("a report needs at least one run, but got none: give the folder of a run, as in run=runs/NAME")
    write_atomically(directory / "report.html", render(title, iterations, commands).encode())
    path = directory / "summary.json"
    kept = read_summary(path) if path.is_file() else {"format_version": 1}
    write_json(path, kept | {"iterations": [iteration_summary(iteration) for iteration in iterations]})
    return directory / "report.html"


def render(title: str, iterations: list[Iteration], commands: Sequence[tuple[str, str]] = ()) -> str:
    """The page as text."""
    figures, last = [iteration_summary(iteration) for iteration in iterations], iterations[-1]
    several, verdicts = len(iterations) > 1, beats(figures[-1])
    return render_page(
        "report.html.j2",
        title,
        several=several,
        names=[iteration.name for iteration in iterations],
        subject=f"The last run ({last.name}):" if several else "",
        headline=headline(verdicts),
        good_for=good_for(figures[-1]),
        worse=_outcomes(verdicts, "behind"),
        equal=_outcomes(verdicts, "ties"),
        better=wins(verdicts),
        missing=unmeasured(figures[-1]),
        note=_note(last, verdicts),
        limits=_of_each(iterations, warnings_of),
        recipes=_recipes(iterations),
        differences=differences(iterations),
        side_by_side=_side_by_side(figures),
        progress=_progress(iterations, figures),
        runs=[_run(iterations[place], figures[place], f"i{place}") for place in reversed(range(len(figures)))],
        mixture=_mixture(last.mixtures) if last.mixtures else None,
        machine=_of_each(iterations, partial(health_warnings, of_machine=True)),
        commands=commands or commands_of(last),
    )


def _outcomes(verdicts: list[Verdict], outcome: str) -> list[tuple[str, str]]:
    """(comparison, figures) of each verdict with this outcome."""
    parts = [verdict.sentence.partition(": ") for verdict in verdicts if verdict.outcome == outcome]
    return [(head, figures) for head, _, figures in parts]


def _note(iteration: Iteration, verdicts: list[Verdict]) -> str:
    held_out = verdicts and (iteration.data or {}).get("validation_speakers")
    note = "All figures are of held-out speakers, which the model was not trained on." if held_out else ""
    if any(verdict.interval for verdict in verdicts):
        note += " Ranges after “difference” are 95 % intervals over the test speakers."
    return note


def _of_each(iterations: list[Iteration], sentences: Callable[[Iteration], list[str]]) -> list[str]:
    """Sentences on each iteration, with its name in front where there are several."""
    several = len(iterations) > 1
    return [f"{iteration.name}: {text}" if several else text for iteration in iterations for text in sentences(iteration)]


def _recipes(iterations: list[Iteration]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(name, rows) of each iteration; of a later one only the rows that differ from the one before."""
    tables, before = [], dict[str, str]()
    for place, iteration in enumerate(iterations):
        facts = dict([*what_ran(iteration), *recipe_of(iteration)])
        shown = {topic: text for topic, text in facts.items() if before.get(topic) != text}
        if len(shown) < len(facts):
            shown["all else"] = f"as in {iterations[place - 1].name}"
        tables.append((iteration.name, list(shown.items())))
        before = facts
    return tables


def _side_by_side(figures: list[dict[str, Any]]) -> list[list[str]]:
    """[figure, value of each run]; figures that no run has are left out."""
    topics = (
        ("updates", None, "updates", 0),
        ("masked cross-entropy, nats", "masked", "cross_entropy", 3),
        ("masked accuracy", "masked", "accuracy", 3),
        ("phones, share of frames right", "phones", "chosen", 3),
        ("speakers, share of 2-s stretches right", "speakers", "chosen", 3),
    )
    rows = []
    for topic, part, key, places in topics:
        values = [((run.get(part) or {}) if part else run).get(key) for run in figures]
        if any(value is not None for value in values):
            rows.append([topic, *("–" if value is None else number(value, places) for value in values)])
    return rows


def _progress(iterations: list[Iteration], figures: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """(title, sentences) of each iteration against the one before."""
    return [
        (f"{iterations[place].name} against {iterations[place - 1].name}", sentences)
        for place in range(1, len(iterations))
        if (sentences := compare_iterations(figures[place - 1], figures[place]))
    ]


def _run(iteration: Iteration, figures: dict[str, Any], name: str) -> dict[str, Any]:
    """Values of one run in the template."""
    phones, units, speakers = (figures.get(key) or {} for key in ("phones", "units", "speakers"))
    counts = iteration.cluster_counts if iteration.cluster_counts is not None and iteration.cluster_counts.sum() else None
    watched = (iteration.config.get("health") or {}).get("enabled")
    phones_header, phone_rows = phone_table(phones)
    return {
        "id": name,
        "name": iteration.name,
        "learning_charts": charts.learning_charts(iteration, name),
        "learning_note": _learning_note(iteration),
        "points": _other_runs(iteration),
        "live_chart": charts.probe_map(iteration, name),
        "probed": bool(phones or units or speakers),
        "phones_note": phones_note(phones),
        "layer_charts": charts.layer_charts(phones, speakers, name),
        "speakers_note": speakers_note(speakers),
        "phones_header": phones_header,
        "phones": phone_rows,
        "units": units_table(units),
        "labels_note": _labels_note(counts),
        "realised_note": _measured(iteration.realised),
        "data_charts": charts.data_charts(iteration, name),
        "health_note": health_note(iteration),
        "fired": bool(iteration.findings),
        "health": health_rows(iteration.findings, iteration.health) if watched else [],
    }


def _learning_note(iteration: Iteration) -> str:
    masked = iteration.masked or {}
    if masked.get("frames"):
        speakers = "Figures of the test speakers" if masked.get("set") else "Held-out figures"
        return f"{speakers} are means over {grouped(masked['frames'])} masked frames, without mixing."
    return "" if len(iteration.validation.get("step", ())) else "No figures of held-out speakers over the updates."


def _other_runs(iteration: Iteration) -> list[list[str]]:
    """Published points with as many clusters."""
    return [
        [
            point.run,
            grouped(point.updates) if point.updates else "not stated",
            number(point.nats, 2) if point.nats is not None else "",
            number(point.accuracy),
            number(point.unmasked_accuracy) if point.unmasked_accuracy is not None else "",
            point.outcome,
            point.source,
        ]
        for point in charts.points_of(iteration)
    ]


def _labels_note(counts: np.ndarray | None) -> str:
    if counts is None:
        return "The labels were not opened, so their frequencies are not known."
    return (
        f"{used_clusters(counts)} of {len(counts)} labels occur in the training rows, with the entropy of {perplexity(counts):.1f} "
        f"equally frequent ones. The commonest label has {100 * counts.max() / counts.sum():.1f} % of the frames."
    )


def _measured(realised: Realised | None) -> str:
    if realised is None:
        return "Masking and mixing were not measured: the data were not opened."
    steps = realised.steps
    updates = f"update {steps[0]}" if len(steps) == 1 else f"updates {steps[0]} to {steps[-1]}"
    text = (
        f"On {plural(realised.micro_batches, 'micro-batch')} ({plural(realised.rows, 'row')}) of {updates}, built again from the plan: "
        f"{100 * realised.mask_coverage:.1f} % of the valid frames hidden, {plural(realised.mixed_rows, 'row')} mixed "
        f"({realised.noise_rows} with noise)"
    )
    within = realised.overlap_snr_db[np.isfinite(realised.overlap_snr_db)]
    if len(within):
        low, middle, high = np.quantile(within, [0.1, 0.5, 0.9])
        text += (
            f", overlapping {100 * realised.overlap_share.mean():.0f} % of their row on average; within the overlap the main speaker is "
            f"{number(middle, 1)} dB above the added sound (median; 10 % below {number(low, 1)}, 10 % above {number(high, 1)})"
        )
    if realised.as_recorded is None:
        return f"{text}."
    agree = "agree" if realised.as_recorded else "do not agree"
    return f"{text}. Masked frames and mixed rows {agree} with metrics.csv."


def _mixture(examples: list[Example]) -> dict[str, Any]:
    """Picture, sounds and captions of mixed rows, one after the other."""
    clean, mixed = (np.concatenate([getattr(example, name) for example in examples]) for name in ("clean", "mixed"))
    peak = float(max(np.abs(clean).max(), np.abs(mixed).max()))
    captions, begin = [], 0
    for example in examples:
        start_s, end_s = ((begin + place) / SAMPLE_RATE_HZ for place in (example.start, example.start + example.length))
        within = f", {number(example.overlap_snr_db, 1)} dB within the overlap" if np.isfinite(example.overlap_snr_db) else ""
        captions.append(
            f"{example.name} (update {example.step}): second speaker from {start_s:.2f} to {end_s:.2f} s, level "
            f"{number(example.energy_ratio_db, 1)} dB over whole utterances{within}"
        )
        begin += len(example.clean)
    return {
        "rows": "A row" if len(examples) == 1 else f"{len(examples)} rows, one after the other,",
        "captions": captions,
        "picture": pictures.mixture_picture(examples),
        "players": [
            (name, pictures.audio_uri(signal, peak)) for name, signal in (("before mixing", clean), ("after mixing", mixed))
        ],
    }
