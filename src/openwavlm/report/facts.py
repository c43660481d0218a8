"""A run's configuration, data, limits and health in words, from its own records."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from openwavlm.labels.quality import perplexity, used_clusters
from openwavlm.report.content import Iteration, Realised
from openwavlm.report.words import duration, number, plural
from openwavlm.training.health.rules import RULES


def what_ran(iteration: Iteration) -> list[tuple[str, str]]:
    """(topic, sentence) on model, data, updates, masking and mixing; topics without a record are left out."""
    makers = {
        "model": _model,
        "data": _data,
        "training": _updates,
        "labels": _labels,
        "masking": _masking,
        "mixing": _mixing,
        "speed": _speed,
    }
    return [(topic, text) for topic, make in makers.items() if (text := make(iteration, iteration.config))]


def _model(iteration: Iteration, config: dict[str, Any]) -> str:
    model = config.get("model") or {}
    if not model:
        return ""
    size = f", {iteration.parameters / 1e6:.2f} M parameters" if iteration.parameters else ""
    channels = "-".join(str(channels) for channels in model["conv_dims"])
    front_end = f"waveform convolutions of {channels} channels"
    if model.get("front_end", "conv") == "logmel":
        front_end = "a log-mel front end (a control)"
    return (
        f"WavLM, {model['layers']} layers of width {model['dim']} ({model['heads']} heads, "
        f"{'pre' if model['pre_norm'] else 'post'}-norm){size}; {front_end}"
    )


def _data(iteration: Iteration, config: dict[str, Any]) -> str:
    data = iteration.data
    sources = ", ".join((config.get("data") or {}).get("sources") or {})
    if data is None:
        return f"source {sources} (its folders were not opened, so hours and speakers are not known)" if sources else ""
    speakers = f"{data['training_speakers']} speakers" if data["training_speakers"] else "unknown speakers"
    text = f"{data['training_hours']:.2f} h of {speakers} to train on (source {sources}); held out: "
    if not data["validation_rows"]:
        return text + "nothing"
    held = f"{data['validation_speakers']} speakers" if data["validation_speakers"] else "whole recordings of unknown speakers"
    return text + f"{data['validation_hours']:.2f} h of {held}"


def _updates(iteration: Iteration, config: dict[str, Any]) -> str:
    planned = (config.get("optim") or {}).get("updates")
    batch = config.get("batch") or {}
    text = f"{iteration.updates} of {planned} updates" if planned else f"{iteration.updates} updates"
    if batch:
        text += f" of {batch['seconds']:g} s of audio each, in rows of at most {batch['max_seconds']:g} s"
    if iteration.data and iteration.data["training_hours"]:
        text += f"; about {iteration.audio_seconds / 3600 / iteration.data['training_hours']:.1f} passes over the data"
    return text + f"; seed {config['seed']}" if "seed" in config else text


def _labels(iteration: Iteration, config: dict[str, Any]) -> str:
    sources = (config.get("data") or {}).get("sources") or {}
    clusters = (iteration.plan or {}).get("codebook")
    if not sources:
        return ""
    named = [source["labels"] for source in sources.values()]
    folders = ", ".join(str(folder) for one in named for folder in (one if isinstance(one, list) else [one]))
    return f"{int(clusters)} clusters, {folders}" if clusters else folders


def _masking(iteration: Iteration, config: dict[str, Any]) -> str:
    masking = config.get("masking")
    if not masking:
        return ""
    text = f"spans of {masking['length']} frames ({masking['length'] * 20} ms)"
    valid = iteration.metrics.get("mask_coverage")
    if valid is not None and len(valid):
        text += f"; on average {100 * np.nanmean(valid):.1f} % of the valid frames were hidden"
    return text


def _mixing(iteration: Iteration, config: dict[str, Any]) -> str:
    mixing, metrics = config.get("mixing"), iteration.metrics
    if not mixing:
        return ""
    if not mixing["prob"]:
        return "off"
    low, high = mixing["speech_db"]
    noise = f" ({100 * mixing['noise_prob']:.0f} % of these: noise)" if mixing["noise_prob"] else ""
    text = f"a second speaker{' or noise' if noise else ''} is added to {100 * mixing['prob']:.0f} % of the rows{noise}"
    text += f"; speakers at {number(low, 1)} to {number(high, 1)} dB, at most {100 * mixing['max_share']:.0f} % of a row"
    if len(metrics.get("rows", ())):
        share = metrics["mixed_rows"].sum() / max(1.0, metrics["rows"].sum())
        text += f"; {100 * share:.1f} % of all rows were mixed"
    return text


def _speed(iteration: Iteration, config: dict[str, Any]) -> str:
    parts = []
    if iteration.audio_s_per_s:
        parts.append(f"{iteration.audio_s_per_s:.0f} s of audio a second (validation and start included)")
    if iteration.wall_seconds:
        parts.append(f"{duration(iteration.wall_seconds)} in all")
    if len(iteration.metrics.get("padding_share", ())):
        parts.append(f"{100 * np.nanmean(iteration.metrics['padding_share']):.2f} % of the input was padding")
    if iteration.plan is not None:
        lost, short = 100 * iteration.plan["lost_share"], iteration.plan["too_short"]
        parts.append(f"{lost:.2f} % of the audio was left out ({plural(short, 'utterance')} too short)")
    return "; ".join(parts)


def labels_note(counts: np.ndarray | None) -> str:
    """Sentences on the frequencies of the labels."""
    if counts is None:
        return "The labels were not opened, so their frequencies are not known."
    return (
        f"{used_clusters(counts)} of {len(counts)} labels occur in the training rows, with the entropy of {perplexity(counts):.1f} "
        f"equally frequent ones. The commonest label has {100 * counts.max() / counts.sum():.1f} % of the frames."
    )


def realised_note(realised: Realised | None) -> str:
    """Sentences on the realised masking and mixing."""
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


def warnings_of(iteration: Iteration) -> list[str]:
    """Limits of a run's figures, from its own records."""
    found, metrics = list(iteration.notes), iteration.metrics
    planned = (iteration.config.get("optim") or {}).get("updates")
    if not iteration.updates:
        found.append("No update was recorded.")
    elif planned and iteration.updates < planned:
        found.append(f"The run is not finished: {iteration.updates} of {planned} updates.")
    data = iteration.data or {}
    if data.get("validation_rows") and not data.get("usable_validation_rows", 1):
        found.append("Nothing was validated: every held-out utterance is shorter than batch.min_seconds.")
    elif not len(iteration.validation.get("step", ())):
        found.append("Nothing was validated: there are no held-out speakers, or no validation was due yet.")
    elif iteration.data is not None and not iteration.data["validation_speakers"]:
        found.append("Speakers are not known: whole recordings were held out, so a speaker may be on both sides of the split.")
    elif iteration.data is not None and iteration.data["validation_speakers"] < 5:
        count = plural(iteration.data["validation_speakers"], "speaker")
        found.append(f"Only {count} held out: masked-prediction figures may change with other speakers.")
    void, unreadable = (np.nansum(metrics.get(name, np.zeros(1))) for name in ("void", "unreadable_rows"))
    if void:
        found.append(f"Skipped because the gradient was not finite: {plural(void, 'update')}.")
    if unreadable:
        found.append(f"Unreadable, without loss: {plural(unreadable, 'row')}.")
    found += health_warnings(iteration, of_machine=False)
    changes = {key: values for part in iteration.record.get("segments", []) for key, values in part.get("changes", {}).items()}
    if changes:
        found.append(f"The config was changed between launches: {', '.join(changes)}.")
    realised = iteration.realised
    if realised is not None and realised.as_recorded is False:
        found.append(
            "The batches that were built again differ from those of metrics.csv, because data or config changed since: mixture and "
            "levels below are not the run's own."
        )
    return found


def health_rows(findings: Sequence[Mapping[str, str]], states: Mapping[str, Any] | None) -> list[list[str]]:
    """One line a rule, those that fired first: the rule, its result, when it was judged or fired, its first finding.

    `states` is `health` of `summary.json`; None for a run that has not ended in order.
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
    """The first finding of each rule that fired: of the rules on the machine's speed, or of those on the training."""
    wanted = {rule.name for rule in RULES if rule.of_machine == of_machine}
    first: dict[str, str] = {}
    for row in iteration.findings:
        if row["rule"] in wanted:
            first.setdefault(row["rule"], f"Health, update {row['step']}: {row['sentence']}.")
    return list(first.values())


def health_note(iteration: Iteration) -> str:
    """First sentences of the health section."""
    settings = iteration.config.get("health") or {}
    if not settings.get("enabled"):
        return "The run was not watched (health.enabled)."
    fired = {row["rule"] for row in iteration.findings}
    verdict = f"{len(fired)} of {len(RULES)} rules fired." if fired else "No rule fired."
    return f"{verdict} Each rule states what a sound run keeps, and is judged in windows of {settings['window']} updates."
