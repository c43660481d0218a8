"""Rows of a training batch that was built again: speaker, mask, labels, and the added sound."""

from typing import Any

import numpy as np

from openwavlm.audio.frames import FRAME_RATE_HZ, SAMPLE_RATE_HZ, num_frames
from openwavlm.batches.settings import Mixing
from openwavlm.report.content import Example
from openwavlm.report.pictures import runs_of
from openwavlm.report.rebuild import Rebuilt, TrainingData, mixtures, rebuild_steps
from openwavlm.shards.index import Index


def describe_rows(built: Rebuilt, mixing: Mixing | None, index: Index) -> list[Example]:
    """Describes the rows of a micro-batch in its order; `index` is that of its source."""
    mixed = {mixture["row"]: mixture for mixture in mixtures(built.batch, mixing)}
    named = [_name(index, int(row)) for row in built.batch.rows]
    return [_row(built, place, named, mixed.get(place)) for place in range(len(named))]


def find_mixtures(data: TrainingData, *, micro_batches: int = 32, seconds: float = 4.0) -> list[Example]:
    """Example rows of a run's first batches that a second speaker was mixed into.

    A row counts if its overlap lasts .3 s or longer and neither speaker is more than 12 dB above the other in it.

    Returns:
        The first such row that lasts `seconds`; else the first ones that reach it together; else the first row that a speaker
        was mixed into; empty without any.
    """
    clear: list[Example] = []
    faint: list[Example] = []
    for built in rebuild_steps(data, micro_batches):
        for example in describe_rows(built, data.builder.draws.mixing, data.opened.indexes[built.batch.id.source]):
            mixture = example.facts["mixture"]
            if mixture is None or mixture["with"] != "speech":
                continue
            is_clear = example.length >= 0.3 * SAMPLE_RATE_HZ and abs(example.overlap_snr_db) <= 12
            if is_clear and example.facts["duration_s"] >= seconds:
                return [example]
            (clear if is_clear else faint).append(example)
    reached = np.cumsum([len(example.clean) / SAMPLE_RATE_HZ for example in clear])
    return clear[: int((reached < seconds).sum()) + 1] or faint[:1]


def _name(index: Index, row: int) -> dict[str, Any]:
    """Key, speaker and recording of a row; None where unknown."""
    return {
        "row": row,
        "key": index.keys[row] if index.keys else f"{int(index.key[row]):016x}",
        "speaker": index.speakers[int(index.speaker[row])] or None,
        "recording": index.recordings[int(index.recording[row])] or None,
    }


def _row(built: Rebuilt, place: int, named: list[dict[str, Any]], mixture: dict[str, Any] | None) -> Example:
    batch = built.batch
    size = int(batch.num_samples[place])
    frames = num_frames(size)
    clean = batch.waveforms[place, :size].numpy().astype(np.float32) / 32768
    mask = batch.mask[place, :frames].numpy()
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    labels = batch.labels[0, place, :frames].numpy().astype(np.int64)
    facts = {
        "place": place,
        **named[place],
        "start_s": int(batch.start_frame[place]) / FRAME_RATE_HZ,
        "duration_s": size / SAMPLE_RATE_HZ,
        "readable": size > 0,
        "frames": frames,
        "masked_frames": int(mask.sum()),
        "mask_spans": [[begin, end - begin] for begin, end in edges.reshape(-1, 2).tolist()],
        "label_runs": [[label, length] for label, length in runs_of(labels)],
        "mixture": _mixture(mixture, built, named) if mixture else None,
    }
    return Example(
        step=built.step,
        name=f"{facts['recording'] or facts['key']}, from {facts['start_s']:.2f} s",
        clean=clean,
        mixed=mixture["mixed"] if mixture else clean,
        start=mixture["start"] if mixture else 0,
        length=mixture["length"] if mixture else 0,
        energy_ratio_db=mixture["drawn_db"] if mixture else float("nan"),
        overlap_snr_db=mixture["overlap_snr_db"] if mixture else float("nan"),
        mask=mask,
        labels=labels,
        facts=facts,
    )


def _mixture(mixture: dict[str, Any], built: Rebuilt, named: list[dict[str, Any]]) -> dict[str, Any]:
    partner, rows = mixture["partner"], len(named)
    if mixture["noise"]:
        key, begins = built.noise[partner - rows]
        kind, place, speaker = "noise", None, None
    else:
        kind, place, key, speaker = "speech", partner, named[partner]["key"], named[partner]["speaker"]
        begins = int(built.batch.start_frame[partner]) / FRAME_RATE_HZ
    snr_db = mixture["overlap_snr_db"]
    return {
        "with": kind,
        "partner_place": place,
        "partner_key": key,
        "partner_speaker": speaker,
        "start_s": mixture["start"] / SAMPLE_RATE_HZ,
        "length_s": mixture["length"] / SAMPLE_RATE_HZ,
        "partner_start_s": begins + mixture["partner_start"] / SAMPLE_RATE_HZ,
        "start_sample": mixture["start"],
        "length_samples": mixture["length"],
        "partner_start_sample": mixture["partner_start"],
        "energy_ratio_db": mixture["drawn_db"],
        "overlap_snr_db": snr_db if np.isfinite(snr_db) else None,
    }
