"""`report.html`: one self-contained page for a reader who did not make the run, with the verdicts in its first lines."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.report import charts, pictures
from openwavlm.report.content import Example, Iteration
from openwavlm.report.facts import health_note, health_rows, health_warnings, labels_note, realised_note, warnings_of, what_ran
from openwavlm.report.probe_tables import phone_table, phones_note, speakers_note, units_table
from openwavlm.report.progress import compare_iterations
from openwavlm.report.recipe import commands_of, differences, recipe_of
from openwavlm.report.templating import render_page
from openwavlm.report.verdicts import (
    Verdict,
    beats,
    good_for,
    headline,
    unmeasured,
    wins,
)
from openwavlm.report.words import grouped, number
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
    write_json(path, kept | {"iterations": [_summary(iteration) for iteration in iterations]})
    return directory / "report.html"


def _summary(iteration: Iteration) -> dict[str, Any]:
    """An iteration's entry: figures on held-out speakers alone, None where not measured."""
    probes, realised = iteration.probes or {}, iteration.realised
    kept = ("micro_batches", "mixed_rows", "rows", "as_recorded")
    measured = realised and {
        "mask_coverage": round(realised.mask_coverage, 5),
        **{name: getattr(realised, name) for name in kept},
    }
    return {
        "name": iteration.name,
        "run": str(iteration.run),
        "updates": iteration.updates,
        "masked": iteration.masked,
        "phones": probes.get("phones"),
        "units": probes.get("units"),
        "speakers": probes.get("speakers"),
        "realised": measured,
        "health": sorted({row["rule"] for row in iteration.findings}) if iteration.health is not None else None,
        "audio_seconds": round(iteration.audio_seconds, 1),
        "wall_seconds": None if iteration.wall_seconds is None else round(iteration.wall_seconds, 1),
    }


def render(title: str, iterations: list[Iteration], commands: Sequence[tuple[str, str]] = ()) -> str:
    """The page as text."""
    figures, last = [_summary(iteration) for iteration in iterations], iterations[-1]
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
        undecided=_outcomes(verdicts, "open"),
        missing=unmeasured(figures[-1]),
        note=_note(last, verdicts),
        limits=_of_each(iterations, warnings_of),
        recipes=_recipes(iterations),
        differences=differences(iterations),
        side_by_side=_side_by_side(figures),
        progress=[
            (f"{later['name']} against {earlier['name']}", sentences)
            for earlier, later in pairwise(figures)
            if (sentences := compare_iterations(earlier, later))
        ],
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
    note = f"All figures are of held-out speakers, which {_untrained(iteration)}." if held_out else ""
    if any(verdict.interval for verdict in verdicts):
        note += " Ranges after “difference” are 95 % intervals over test speakers and codebook seeds; they do not cover other trainings."
    return note


def _untrained(iteration: Iteration) -> str:
    """End of the sentence on held-out speakers: the training that did not have them, with that of the initial model."""
    begun = iteration.record.get("init_from")
    seen = 0 if begun is None else begun.get("held_out_seen")
    if seen == 0:
        return "the model was not trained on"
    perhaps = "may have been trained on any of them" if seen is None else f"was perhaps trained on {seen} of them"
    return f"this run was not trained on; the model that it was initialised from {perhaps}"


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
        ("updates", "updates", 0),
        ("masked cross-entropy, nats", "masked.cross_entropy", 3),
        ("masked accuracy", "masked.accuracy", 3),
        ("phones, share of frames right", "phones.chosen", 3),
        ("phones in the telephone band", "phones.telephone.chosen", 3),
        ("phones in 10 dB noise", "phones.noise10.chosen", 3),
        ("speakers, share of 2-s stretches right", "speakers.chosen", 3),
    )
    rows = []
    for topic, path, places in topics:
        values = [_figure(run, path) for run in figures]
        if any(value is not None for value in values):
            rows.append([topic, *("–" if value is None else number(value, places) for value in values)])
    return rows


def _figure(run: dict[str, Any], path: str) -> float | None:
    """Figure under dotted names; None where a part is missing."""
    found: Any = run
    for name in path.split("."):
        found = (found or {}).get(name)
    return found


def _run(iteration: Iteration, figures: dict[str, Any], name: str) -> dict[str, Any]:
    """Values of one run in the template."""
    phones, units, speakers = (figures.get(key) or {} for key in ("phones", "units", "speakers"))
    counts = iteration.cluster_counts if iteration.cluster_counts is not None and iteration.cluster_counts.sum() else None
    watched = (iteration.config.get("health") or {}).get("enabled")
    phones_header, phone_rows = phone_table(phones)
    units_header, unit_rows = units_table(units)
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
        "units_header": units_header,
        "units": unit_rows,
        "labels_note": labels_note(counts),
        "realised_note": realised_note(iteration.realised),
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
