"""The rows of a training batch that was built again: whose voice, which mask and labels, what was mixed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openwavlm.audio.frames import FRAME_RATE_HZ, SAMPLE_RATE_HZ, num_frames
from openwavlm.batches.batch import PretrainBatch
from openwavlm.batches.settings import Mixing
from openwavlm.report.content import Example
from openwavlm.report.pictures import runs_of
from openwavlm.report.rebuild import mixtures
from openwavlm.shards.index import Index


@dataclass(frozen=True, eq=False)
class BatchRow:
    """One row of a micro-batch.

    Attributes:
        facts: What `batch.json` says of it: plain values.
        example: Its audio, mask and labels.
    """

    facts: dict[str, Any]
    example: Example


def describe_rows(
    batch: PretrainBatch, mixing: Mixing | None, index: Index, *, step: int, noise: Sequence[tuple[str, float]] = ()
) -> list[BatchRow]:
    """Describes the rows of a micro-batch.

    Args:
        batch: The micro-batch.
        mixing: How its mixtures are applied.
        index: The index of its source.
        step: The update that trained on it, from 1.
        noise: Key of each noise clip of the batch, and the second from which it was read.

    Returns:
        One entry a row, in the batch's order.
    """
    mixed = {mixture["row"]: mixture for mixture in mixtures(batch, mixing)}
    named = [_name(index, int(row)) for row in batch.rows]
    return [_row(batch, place, named, mixed.get(place), step, noise) for place in range(len(batch.rows))]


def _name(index: Index, row: int) -> dict[str, Any]:
    """Who speaks in a row; None where it is not known."""
    return {
        "row": row,
        "key": index.keys[row] if index.keys else f"{int(index.key[row]):016x}",
        "speaker": index.speakers[int(index.speaker[row])] or None,
        "recording": index.recordings[int(index.recording[row])] or None,
    }


def _row(
    batch: PretrainBatch,
    place: int,
    named: list[dict[str, Any]],
    mixture: dict[str, Any] | None,
    step: int,
    noise: Sequence[tuple[str, float]],
) -> BatchRow:
    size = int(batch.num_samples[place])
    frames = num_frames(size)
    clean = batch.waveforms[place, :size].numpy().astype(np.float32) / 32768
    mask = batch.mask[place, :frames].numpy()
    labels = batch.labels[0, place, :frames].numpy().astype(np.int64)
    facts = {
        "place": place,
        **named[place],
        "start_s": int(batch.start_frame[place]) / FRAME_RATE_HZ,
        "duration_s": size / SAMPLE_RATE_HZ,
        "readable": size > 0,
        "frames": frames,
        "masked_frames": int(mask.sum()),
        "mask_spans": _spans(mask),
        "label_runs": [list(run) for run in runs_of(labels)],
        "mixture": _mixture(mixture, batch, named, noise) if mixture else None,
    }
    example = Example(
        step=step,
        name=facts["key"],
        clean=clean,
        mixed=mixture["mixed"] if mixture else clean,
        start=mixture["start"] if mixture else 0,
        length=mixture["length"] if mixture else 0,
        energy_ratio_db=mixture["drawn_db"] if mixture else float("nan"),
        overlap_snr_db=mixture["overlap_snr_db"] if mixture else float("nan"),
        mask=mask,
        labels=labels,
    )
    return BatchRow(facts, example)


def _spans(mask: np.ndarray) -> list[list[int]]:
    """[first frame, frames] of each masked stretch."""
    spans, begin = [], 0
    for masked, frames in runs_of(mask):
        if masked:
            spans.append([begin, frames])
        begin += frames
    return spans


def _mixture(
    mixture: dict[str, Any], batch: PretrainBatch, named: list[dict[str, Any]], noise: Sequence[tuple[str, float]]
) -> dict[str, Any]:
    partner, rows = mixture["partner"], len(named)
    if mixture["noise"]:
        key, begins = noise[partner - rows]
        added = {"with": "noise", "partner_place": None, "partner_key": key, "partner_speaker": None}
    else:
        added = {"with": "speech", "partner_place": partner, "partner_key": named[partner]["key"]}
        added |= {"partner_speaker": named[partner]["speaker"]}
        begins = int(batch.start_frame[partner]) / FRAME_RATE_HZ
    snr_db = mixture["overlap_snr_db"]
    return added | {
        "start_s": mixture["start"] / SAMPLE_RATE_HZ,
        "length_s": mixture["length"] / SAMPLE_RATE_HZ,
        "partner_start_s": begins + mixture["partner_start"] / SAMPLE_RATE_HZ,
        "start_sample": mixture["start"],
        "length_samples": mixture["length"],
        "partner_start_sample": mixture["partner_start"],
        "energy_ratio_db": mixture["drawn_db"],
        "overlap_snr_db": snr_db if np.isfinite(snr_db) else None,
    }
