"""`page.html` of a replay: the rows that one update was trained on, for a reader who did not make the run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from openwavlm.audio.frames import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from openwavlm.report import pictures
from openwavlm.report.content import Example
from openwavlm.report.templating import render_page
from openwavlm.report.words import number, plural

_FIGURES = ("loss", "accuracy", "grad_norm", "lr")


def render_replay(record: Mapping[str, Any], examples: Mapping[tuple[int, int], Example]) -> str:
    """The page as text, from the content of `batch.json` and (slot, row) → audio, mask and labels of the rows to be shown."""
    micro_batches = record["micro_batches"]
    rows = sum(len(micro["rows"]) for micro in micro_batches)
    counts = f"{plural(len(micro_batches), 'micro-batch')}, {plural(rows, 'row')}, {record['recorded']['audio_s']:.1f} s of audio"
    return render_page(
        "replay.html.j2",
        f"Update {record['step']} of {record['run']}",
        heading=f"Training batches of update {record['step']} of the run {record['run']}",
        headline=f"{counts}, bit for bit",
        proof=_proof(record),
        overview=[_overview(micro) for micro in micro_batches],
        mixed=[
            (micro["slot"], row["place"])
            for micro in micro_batches
            for row in micro["rows"]
            if row["mixture"] and (micro["slot"], row["place"]) in examples
        ],
        parts=[part for micro in micro_batches if (part := _micro_batch(micro, examples))["rows"]],
    )


def _proof(record: Mapping[str, Any]) -> list[str]:
    recorded, launch = record["recorded"], record["launch"]
    figures = ", ".join(f"{name} {recorded[name]:.4g}" for name in _FIGURES if recorded.get(name) is not None)
    versions = launch["versions"]
    began = f"resumed after update {launch['from_step']}" if launch["from_step"] else "began it"
    said = [
        "Built again from the run's records and its shards, labels and noise, which have the content they had at launch. The number of "
        f"rows, of masked frames ({recorded['masked_frames']:.0f}) and of mixed rows ({recorded['mixed_rows']:.0f}) and the seconds of "
        "audio are those of metrics.csv for this update.",
        f"Figures of the update in metrics.csv: {figures}.",
        f"Trained by launch {launch['number'] + 1} of the run, which {began}, with openwavlm "
        f"{versions['openwavlm']} and torch {versions['torch']} on {launch['host']}.",
    ]
    changes = launch.get("changes") or {}
    if changes:
        named = ", ".join(f"{key} from {before} to {after}" for key, (before, after) in changes.items())
        said.append(f"That launch changed {named}.")
    return said


def _overview(micro: Mapping[str, Any]) -> list[str]:
    return [
        str(micro["slot"]),
        f"{micro['source']}: {micro['epoch']} / {micro['stream']} / {micro['index']}",
        str(len(micro["rows"])),
        number(micro["samples"] / SAMPLE_RATE_HZ, 2),
        str(micro["masked_frames"]),
        str(sum(row["mixture"] is not None for row in micro["rows"])),
        "".join("●" if kept else "○" for kept in micro["layer_keep"]),
        micro["fingerprint"],
    ]


def _micro_batch(micro: Mapping[str, Any], examples: Mapping[tuple[int, int], Example]) -> dict[str, Any]:
    """Its title and the rows to be shown."""
    slot = micro["slot"]
    shown = [_row(row, examples[slot, row["place"]]) for row in micro["rows"] if (slot, row["place"]) in examples]
    left = len(micro["rows"]) - len(shown)
    more = f"{plural(left, 'further row')} of this micro-batch: in batch.json, or here with a larger rows=." if left else ""
    title = f"Micro-batch {slot}: {micro['source']}, data epoch {micro['epoch']}, place {micro['index']}"
    return {"slot": slot, "title": title, "rows": shown, "more": more}


def _row(row: Mapping[str, Any], example: Example) -> dict[str, Any]:
    speaker = f"speaker {row['speaker']}" if row["speaker"] else "speaker unknown"
    found = {"place": row["place"], "speaker": speaker, "picture": ""}
    if not row["readable"]:
        return found | {"said": f"{row['key']} could not be read: silence, no loss, no partner."}
    end_s, spans = row["start_s"] + row["duration_s"], row["mask_spans"]
    share = 100 * row["masked_frames"] / max(1, row["frames"])
    peak = max(1.0, float(np.abs(example.mixed).max()), float(np.abs(example.clean).max()))
    sounds = {"before mixing": example.clean, "after mixing": example.mixed}
    if not row["mixture"]:
        sounds = {"as trained on": example.clean}
    return found | {
        "said": (
            f"{row['key']}, {row['start_s']:.2f} to {end_s:.2f} s. {row['masked_frames']} of {row['frames']} frames masked "
            f"({share:.0f} %), in {plural(len(spans), 'stretch')}."
        ),
        "mixture": _mixture(row["mixture"]),
        "picture": pictures.mixture_picture([example], wide=True),
        "players": [(name, pictures.audio_uri(signal, peak, flac=True)) for name, signal in sounds.items()],
        "spans": ", ".join(f"{begin / FRAME_RATE_HZ:.2f} – {(begin + frames) / FRAME_RATE_HZ:.2f} s" for begin, frames in spans),
        "labels": " ".join(f"{label}×{frames}" if frames > 1 else str(label) for label, frames in row["label_runs"]),
    }


def _mixture(mixture: Mapping[str, Any] | None) -> str:
    if mixture is None:
        return "Nothing was mixed in."
    begin, end = mixture["start_s"], mixture["start_s"] + mixture["length_s"]
    if mixture["with"] == "noise":
        added = f"Noise ({mixture['partner_key']}"
    else:
        speaker = mixture["partner_speaker"] or "an unknown speaker"
        added = f"Row {mixture['partner_place']} ({speaker}, {mixture['partner_key']}"
    snr_db = mixture["overlap_snr_db"]
    within = f", {number(snr_db, 1)} dB within the overlap" if snr_db is not None else ""
    return (
        f"{added}, from {mixture['partner_start_s']:.2f} s) was mixed in from {begin:.2f} to {end:.2f} s of this row. The main speaker is "
        f"{number(mixture['energy_ratio_db'], 1)} dB above it over whole utterances, as drawn{within} (0 dB: equally strong)."
    )
