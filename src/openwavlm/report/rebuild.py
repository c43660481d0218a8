"""Training batches built again from the plan: what the model really saw, to look at and to measure."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from openwavlm.audio.frames import num_frames
from openwavlm.batches.batch import PretrainBatch
from openwavlm.batches.collate import MicroBatchBuilder
from openwavlm.batches.mixing import mix
from openwavlm.batches.schedule import Schedule
from openwavlm.batches.settings import Mixing
from openwavlm.batches.sources import OpenData
from openwavlm.report.content import Example, Realised


def rebuild_micro_batch(schedule: Schedule, builder: MicroBatchBuilder, step: int, slot: int = 0) -> PretrainBatch:
    """One micro-batch of a run, bit-equal to the one that was trained on.

    Args:
        schedule: The run's training schedule.
        builder: The run's training builder.
        step: The update, from 1 as in `metrics.csv`.
        slot: Which of the update's micro-batches, from 0.

    Raises:
        ValueError: If the update has no such slot.
    """
    specs = schedule.step(step - 1).specs
    if not 0 <= slot < len(specs):
        raise ValueError(f"update {step} has the micro-batches 0 … {len(specs) - 1}, but {slot} was asked for")
    return builder[specs[slot]]


def rebuild_steps(
    schedule: Schedule, builder: MicroBatchBuilder, *, first: int = 1, micro_batches: int = 16
) -> Iterator[tuple[int, PretrainBatch, bool]]:
    """Micro-batches of the updates from `first` on, at most so many: (update from 1, batch, whether it is the update's last)."""
    step, built = first, 0
    while built < micro_batches:
        specs = schedule.step(step - 1).specs
        for number, spec in enumerate(specs[: micro_batches - built]):
            yield step, builder[spec], number + 1 == len(specs)
        built, step = built + len(specs), step + 1


def before_and_after(batch: PretrainBatch, mixing: Mixing | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms in −1 … 1, clean and mixed; (batch, samples) each."""
    clean = batch.waveforms.float() / 32768
    if mixing is None:
        return clean, clean
    return clean, mix(clean, batch.num_samples, batch.mix, batch.noise.float() / 32768, batch.noise_num_samples, mode=mixing.mode)


def _decibel(primary: float, secondary: float) -> float:
    return float(10 * np.log10(primary / secondary)) if primary > 0 and secondary > 0 else float("nan")


def mixtures(batch: PretrainBatch, mixing: Mixing | None) -> Iterator[dict[str, Any]]:
    """Every mixture of a batch with its levels, measured on the waveforms alone."""
    clean, mixed = before_and_after(batch, mixing)
    record, rows = batch.mix, len(batch.rows)
    for number in range(len(record)):
        row, partner, start, length = (int(x[number]) for x in (record.row, record.partner, record.start, record.length))
        size = int(batch.num_samples[row])
        noise = partner >= rows
        secondary = batch.noise[partner - rows].float() / 32768 if noise else clean[partner]
        whole = int(batch.noise_num_samples[partner - rows]) if noise else int(batch.num_samples[partner])
        taken = secondary[int(record.partner_start[number]) :][:length]
        overlap = slice(start, start + length)
        added = (mixed[row, overlap] - clean[row, overlap]).square().mean().item()
        excerpt = taken.square().mean().item() if len(taken) else 0.0
        # What was added is the excerpt times a gain: the gain gives the level of the whole secondary.
        gain_squared = added / excerpt if excerpt > 0 else 0.0
        yield {
            "row": row,
            "noise": noise,
            "partner": partner,
            "partner_start": int(record.partner_start[number]),
            "start": start,
            "length": length,
            "drawn_db": float(record.energy_ratio_db[number]),
            "energy_ratio_db": _decibel(
                clean[row, :size].square().mean().item(), gain_squared * secondary[:whole].square().mean().item()
            ),
            "overlap_snr_db": _decibel(clean[row, overlap].square().mean().item(), added),
            "overlap_share": length / max(size, 1),
            "clean": clean[row, :size].numpy(),
            "mixed": mixed[row, :size].numpy(),
        }


def measure_realised(
    schedule: Schedule,
    builder: MicroBatchBuilder,
    metrics: dict[str, np.ndarray] | None = None,
    *,
    first: int = 1,
    micro_batches: int = 16,
) -> Realised:
    """Measures masking and mixing on some of a run's batches.

    Args:
        schedule: The run's training schedule.
        builder: The run's training builder.
        metrics: Columns of `metrics.csv`, to check that the batches are those that were trained on; None: not checked.
        first: First update, from 1.
        micro_batches: How many micro-batches are built.
    """
    steps: list[int] = []
    sums = dict.fromkeys(("micro_batches", "rows", "mixed", "noise", "masked", "valid", "step_masked", "step_mixed"), 0)
    levels: dict[str, list[float]] = {"energy_ratio_db": [], "overlap_snr_db": [], "overlap_share": []}
    agreed: list[bool] = []
    for step, batch, last in rebuild_steps(schedule, builder, first=first, micro_batches=micro_batches):
        steps += [] if step in steps else [step]
        valid = num_frames(batch.num_samples)
        sums["micro_batches"] += 1
        sums["rows"] += int((batch.num_samples > 0).sum())
        sums["valid"] += int(valid.sum())
        sums["masked"] += int(batch.mask.sum())
        sums["step_masked"] += batch.num_masked
        sums["step_mixed"] += len(batch.mix)
        for mixture in mixtures(batch, builder.draws.mixing):
            sums["mixed"] += 1
            sums["noise"] += int(mixture["noise"])
            for name, values in levels.items():
                values.append(mixture[name])
        if last:
            agreed += _agrees(metrics, step, sums)
            sums["step_masked"] = sums["step_mixed"] = 0
    return Realised(
        tuple(steps),
        sums["micro_batches"],
        sums["rows"],
        sums["mixed"],
        sums["noise"],
        sums["masked"] / max(1, sums["valid"]),
        **{name: np.array(values) for name, values in levels.items()},
        as_recorded=all(agreed) if agreed else None,
    )


def _agrees(metrics: dict[str, np.ndarray] | None, step: int, sums: dict[str, int]) -> list[bool]:
    place = np.flatnonzero(metrics["step"] == step) if metrics and "step" in metrics else np.zeros(0)
    if metrics is None or len(place) != 1:
        return []
    recorded = [metrics[name][place[0]] for name in ("masked_frames", "mixed_rows")]
    return [recorded == [sums["step_masked"], sums["step_mixed"]]]


def first_mixture(opened: OpenData, schedule: Schedule, builder: MicroBatchBuilder, *, micro_batches: int = 32) -> Example | None:
    """The first row of a run with another voice in it; None if there is none.

    The first one that shows something is preferred: at least .3 s of overlap in which neither voice is 12 dB over the other.
    """
    found: Example | None = None
    for step, batch, _ in rebuild_steps(schedule, builder, micro_batches=micro_batches):
        for mixture in mixtures(batch, builder.draws.mixing):
            telling = mixture["length"] >= 4800 and abs(mixture["overlap_snr_db"]) <= 12
            if mixture["noise"] or (found is not None and not telling):
                continue
            row = mixture["row"]
            frames = num_frames(int(batch.num_samples[row]))
            number = int(batch.rows[row])
            index = opened.indexes[batch.id.source]
            recording = index.recordings[int(index.recording[number])] or f"row {number}"
            found = Example(
                step=step,
                name=f"{recording}, from {float(batch.start_frame[row]) * 0.02:.2f} s",
                clean=mixture["clean"],
                mixed=mixture["mixed"],
                start=mixture["start"],
                length=mixture["length"],
                energy_ratio_db=mixture["drawn_db"],
                overlap_snr_db=mixture["overlap_snr_db"],
                mask=batch.mask[row, :frames].numpy(),
                labels=batch.labels[0, row, :frames].numpy().astype(np.int64),
            )
            if telling:
                return found
    return found
