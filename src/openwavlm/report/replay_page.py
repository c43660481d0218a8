"""`page.html` of a replay: what one update was trained on, row by row, for a person who did not make the run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from openwavlm.audio.frames import FRAME_RATE_HZ
from openwavlm.report import pictures
from openwavlm.report.content import Example
from openwavlm.report.markup import document, escaped, paragraph, sound, table
from openwavlm.report.verdicts import number

_FIGURES = ("loss", "accuracy", "grad_norm", "lr")
_STYLE = (
    "<style>.row { border-top: 1px solid #d5d9df; margin-top: 1.6rem; } h2 + .row { border-top: 0; }"
    " .row img { width: 100%; height: auto; display: block; } summary { cursor: pointer; }"
    " details { font-size: .88rem; margin: .4rem 0; overflow-wrap: anywhere; }</style>"
)


def render_replay(record: Mapping[str, Any], examples: Mapping[tuple[int, int], Example]) -> str:
    """The page as text.

    Args:
        record: What `batch.json` holds.
        examples: (slot, row) → audio, mask and labels of the rows that are to be shown.
    """
    parts = [
        _STYLE,
        f"<h1>What update {record['step']} of the run {escaped(record['run'])} was trained on</h1>",
        _proof(record),
        _overview(record, examples),
    ]
    if examples:
        parts.append(_reading())
    parts += [_micro_batch(micro, examples) for micro in record["micro_batches"]]
    return document(f"Update {record['step']} of {record['run']}", "\n".join(parts))


def _plural(count: int, one: str) -> str:
    return f"{count} {one}" if count == 1 else f"{count} {one}{'es' if one.endswith('ch') else 's'}"


def _proof(record: Mapping[str, Any]) -> str:
    micro_batches, recorded, launch = record["micro_batches"], record["recorded"], record["launch"]
    rows = sum(len(micro["rows"]) for micro in micro_batches)
    head = (
        f"{_plural(len(micro_batches), 'micro-batch')}, {_plural(rows, 'row')}, {recorded['audio_s']:.1f} s of audio, bit for bit"
    )
    figures = ", ".join(f"{name} {recorded[name]:.4g}" for name in _FIGURES if recorded.get(name) is not None)
    versions = launch["versions"]
    began = f"went on after update {launch['from_step']}" if launch["from_step"] else "began it"
    said = [
        "Built again from the run's records and its shards, labels and noise, whose content is what the run was launched with. The "
        f"number of rows, of masked frames ({recorded['masked_frames']:.0f}) and of mixed rows ({recorded['mixed_rows']:.0f}) and the "
        "seconds of audio are those that metrics.csv has for this update.",
        f"What the update brought, by metrics.csv: {figures}.",
        f"Trained by launch {launch['number'] + 1} of the run, which {began}, with openwavlm "
        f"{versions['openwavlm']} and torch {versions['torch']} on {launch['host']}.",
    ]
    changes = launch.get("changes") or {}
    if changes:
        named = ", ".join(f"{key} from {before} to {after}" for key, (before, after) in changes.items())
        said.append(f"That launch changed {named}.")
    return f'<section class="verdict"><p class="headline">{escaped(head)}</p>{"".join(map(paragraph, said))}</section>'


def _overview(record: Mapping[str, Any], examples: Mapping[tuple[int, int], Example]) -> str:
    rows = [
        [
            str(micro["slot"]),
            f"{micro['source']}: {micro['epoch']} / {micro['stream']} / {micro['index']}",
            str(len(micro["rows"])),
            number(micro["samples"] / 16_000, 2),
            str(micro["masked_frames"]),
            str(sum(row["mixture"] is not None for row in micro["rows"])),
            "".join("●" if kept else "○" for kept in micro["layer_keep"]),
            micro["fingerprint"],
        ]
        for micro in record["micro_batches"]
    ]
    header = [
        "micro-batch",
        "source: data epoch / stream / place",
        "rows",
        "longest, s",
        "masked frames",
        "mixed rows",
        "layers",
        "hash",
    ]
    explained = (
        "An update is made of micro-batches, each of one source; source, data epoch, stream and place name it in the plan, and all that "
        "is random about it was drawn from these and the seed. Layers: ● runs, ○ is left out (LayerDrop). The hash is that of all its "
        "tensors: two batches with the same one are equal to the last bit."
    )
    return f"<h2>The micro-batches</h2>{paragraph(explained)}{table(header, rows)}{_mixed_rows(record, examples)}"


def _mixed_rows(record: Mapping[str, Any], examples: Mapping[tuple[int, int], Example]) -> str:
    """Links to the rows on this page into which something was mixed."""
    places = [
        (micro["slot"], row["place"])
        for micro in record["micro_batches"]
        for row in micro["rows"]
        if row["mixture"] and (micro["slot"], row["place"]) in examples
    ]
    links = ", ".join(f'<a href="#{slot}-{place}">micro-batch {slot}, row {place}</a>' for slot, place in places)
    return f"<p>Shown here with another sound mixed in: {links}.</p>" if links else ""


def _reading() -> str:
    explained = (
        "Each picture has one time axis. Above, the sound as a spectrogram (bright: loud), before and, where something was mixed in, "
        "after mixing; dashed lines bound the overlap. Below, the mask: what is dark was hidden from the encoder, which had to name the "
        "label of each of these frames (of 20 ms) from the rest. Then the labels, found beforehand by clustering the clean sound; "
        "neighbouring frames of one label have one colour, and its number where there is room. They stay those of the main voice, "
        "whatever is mixed in."
    )
    return f"<h2>How to read a row</h2>{paragraph(explained)}"


def _micro_batch(micro: Mapping[str, Any], examples: Mapping[tuple[int, int], Example]) -> str:
    shown = [(row, examples[micro["slot"], row["place"]]) for row in micro["rows"] if (micro["slot"], row["place"]) in examples]
    if not shown:
        return ""
    left = len(micro["rows"]) - len(shown)
    more = f"{_plural(left, 'further row')} of this micro-batch: in batch.json, or here with a larger rows=." if left else ""
    rows = "".join(_row(micro["slot"], row, example) for row, example in shown)
    title = f"Micro-batch {micro['slot']}: {micro['source']}, data epoch {micro['epoch']}, place {micro['index']}"
    return f"<h2>{escaped(title)}</h2>{rows}{paragraph(more)}"


def _row(slot: int, row: Mapping[str, Any], example: Example) -> str:
    speaker = f"speaker {row['speaker']}" if row["speaker"] else "speaker unknown"
    title = f'<h3 id="{slot}-{row["place"]}">Row {row["place"]}: {escaped(speaker)}</h3>'
    if not row["readable"]:
        said = f"{row['key']} could not be read: silence, no loss, no partner."
        return f'<section class="row">{title}{paragraph(said)}</section>'
    end_s = row["start_s"] + row["duration_s"]
    said = f"{row['key']}, {row['start_s']:.2f} to {end_s:.2f} s. "
    spans = row["mask_spans"]
    share = 100 * row["masked_frames"] / max(1, row["frames"])
    said += f"{row['masked_frames']} of {row['frames']} frames masked ({share:.0f} %), in {_plural(len(spans), 'stretch')}."
    peak = max(1.0, float(np.abs(example.mixed).max()), float(np.abs(example.clean).max()))
    names = ("before mixing", "after mixing") if row["mixture"] else ("as trained on",)
    sounds = "".join(
        sound(name, signal, peak, flac=True) for name, signal in zip(names, (example.clean, example.mixed), strict=False)
    )
    image = (
        f'<img alt="spectrograms, mask and labels of row {row["place"]}" src="{pictures.mixture_picture(example, wide=True)}">'
    )
    return (
        f'<section class="row">{title}{paragraph(said)}{paragraph(_mixture(row["mixture"]))}<figure>{image}</figure>'
        f'<div class="sounds">{sounds}</div>{_details(row)}</section>'
    )


def _mixture(mixture: Mapping[str, Any] | None) -> str:
    if mixture is None:
        return "Nothing was mixed in."
    begin, end = mixture["start_s"], mixture["start_s"] + mixture["length_s"]
    if mixture["with"] == "noise":
        added = f"Noise ({mixture['partner_key']}"
    else:
        speaker = mixture["partner_speaker"] or "an unknown speaker"
        added = f"The voice of row {mixture['partner_place']} ({speaker}, {mixture['partner_key']}"
    snr_db = mixture["overlap_snr_db"]
    within = f", and {number(snr_db, 1)} dB within the overlap" if snr_db is not None else ""
    return (
        f"{added}, from {mixture['partner_start_s']:.2f} s) was mixed in from {begin:.2f} to {end:.2f} s of this row. The main voice "
        f"stands at {number(mixture['energy_ratio_db'], 1)} dB over it by whole utterances, as drawn{within} (0 dB: equally strong)."
    )


def _details(row: Mapping[str, Any]) -> str:
    spans = ", ".join(
        f"{begin / FRAME_RATE_HZ:.2f} – {(begin + frames) / FRAME_RATE_HZ:.2f} s" for begin, frames in row["mask_spans"]
    )
    labels = " ".join(f"{label}×{frames}" if frames > 1 else str(label) for label, frames in row["label_runs"])
    said = paragraph(f"Masked: {spans or 'nothing'}.") + paragraph(f"Labels, label×frames: {labels}.")
    return f"<details><summary>mask and labels in figures</summary>{said}</details>"
