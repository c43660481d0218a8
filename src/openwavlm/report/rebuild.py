"""Training batches built again from the plan, bit-equal to those that were trained on: the one way of report and replay."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count, islice
from typing import Any

import numpy as np

from openwavlm.audio.frames import SAMPLE_RATE_HZ, num_frames
from openwavlm.batches.batch import PretrainBatch
from openwavlm.batches.collate import MicroBatchBuilder
from openwavlm.batches.mixing import mix
from openwavlm.batches.schedule import Schedule
from openwavlm.batches.settings import Mixing
from openwavlm.batches.sources import OpenData
from openwavlm.report.content import Realised
from openwavlm.training.build import make_builder
from openwavlm.training.config import RunConfig


class TrainingData:
    """Data, plan and draws of a run's config; the caller compares `opened.fingerprints()` with the run's record before it builds.

    `validation_share` is that of the launch (`segments.share_of`), or None for a run without launches.
    """

    def __init__(self, config: RunConfig, validation_share: float | None = None) -> None:
        self.config = config
        self.opened = OpenData(config.data, config.batch, config.seed, validation_share=validation_share)

    def close(self) -> None:
        """Closes the data."""
        self.opened.close()

    @cached_property
    def schedule(self) -> Schedule:
        """The training schedule, as if this config and data were the run's first."""
        return self.opened.schedule()

    @cached_property
    def builder(self) -> MicroBatchBuilder:
        """The training builder."""
        return make_builder(self.config, self.opened, training=True)


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """A micro-batch that was built again.

    Attributes:
        step: The update that trained on it, from 1.
        batch: Its tensors.
        noise: Key of each of its noise clips, and the second at which it starts.
        ends_step: Whether it is the update's last.
    """

    step: int
    batch: PretrainBatch
    noise: list[tuple[str, float]]
    ends_step: bool


def rebuild_step(data: TrainingData, step: int) -> Iterator[Rebuilt]:
    """The micro-batches of an update (from 1, as in `metrics.csv`), in slot order."""
    specs, noise_index = data.schedule.step(step - 1).specs, data.opened.noise_index
    for number, spec in enumerate(specs, start=1):
        excerpts = data.builder.noise_excerpts(spec) if noise_index is not None else []
        noise = [(noise_index.keys[row], start / SAMPLE_RATE_HZ) for row, start, _ in excerpts if noise_index is not None]
        yield Rebuilt(step, data.builder[spec], noise, number == len(specs))


def rebuild_steps(data: TrainingData, micro_batches: int) -> Iterator[Rebuilt]:
    """The first micro-batches of a run."""
    return islice(chain.from_iterable(rebuild_step(data, step) for step in count(1)), micro_batches)


def _decibel(primary: float, secondary: float) -> float:
    return float(10 * np.log10(primary / secondary)) if primary > 0 and secondary > 0 else float("nan")


def mixtures(batch: PretrainBatch, mixing: Mixing | None) -> Iterator[dict[str, Any]]:
    """Every mixture of a batch with its levels, measured on the waveforms."""
    if mixing is None:
        return
    clean, clips = batch.waveforms.float() / 32768, batch.noise.float() / 32768
    mixed = mix(clean, batch.num_samples, batch.mix, clips, batch.noise_num_samples, mode=mixing.mode)
    record, rows = batch.mix, len(batch.rows)
    columns = (record.row, record.partner, record.start, record.partner_start, record.length)
    for number in range(len(record)):
        row, partner, start, partner_start, length = (int(column[number]) for column in columns)
        size, noise = int(batch.num_samples[row]), partner >= rows
        secondary = clips[partner - rows] if noise else clean[partner]
        whole = int(batch.noise_num_samples[partner - rows] if noise else batch.num_samples[partner])
        taken = secondary[partner_start:][:length]
        overlap = slice(start, start + length)
        added = (mixed[row, overlap] - clean[row, overlap]).square().mean().item()
        excerpt = taken.square().mean().item() if len(taken) else 0.0
        # The added sound is the excerpt times a gain, which gives the level of the whole secondary.
        gain_squared = added / excerpt if excerpt > 0 else 0.0
        yield {
            "row": row,
            "noise": noise,
            "partner": partner,
            "partner_start": partner_start,
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


def measure_realised(data: TrainingData, metrics: dict[str, np.ndarray] | None, *, micro_batches: int) -> Realised:
    """Measures masking and mixing on a run's first micro-batches, and compares them with the columns of `metrics.csv`, if given."""
    sums: Counter[str] = Counter()
    levels: dict[str, list[float]] = {"energy_ratio_db": [], "overlap_snr_db": [], "overlap_share": []}
    of_step: dict[int, tuple[int, int]] = {}
    whole = []
    for built in rebuild_steps(data, micro_batches):
        batch, (masked, mixed) = built.batch, of_step.get(built.step, (0, 0))
        of_step[built.step] = (masked + batch.num_masked, mixed + len(batch.mix))
        whole += [built.step] if built.ends_step else []
        sums["micro_batches"] += 1
        sums["rows"] += int((batch.num_samples > 0).sum())
        sums["valid"] += int(num_frames(batch.num_samples).sum())
        sums["masked"] += int(batch.mask.sum())
        for mixture in mixtures(batch, data.builder.draws.mixing):
            sums["mixed"] += 1
            sums["noise"] += int(mixture["noise"])
            for name, values in levels.items():
                values.append(mixture[name])
    recorded = {}
    if metrics:
        counts = zip(metrics["masked_frames"], metrics["mixed_rows"], strict=True)
        recorded = dict(zip(metrics["step"].tolist(), counts, strict=True))
    agreed = [of_step[step] == recorded[step] for step in whole if step in recorded]
    return Realised(
        tuple(of_step),
        sums["micro_batches"],
        sums["rows"],
        sums["mixed"],
        sums["noise"],
        sums["masked"] / max(1, sums["valid"]),
        **{name: np.array(values) for name, values in levels.items()},
        as_recorded=all(agreed) if agreed else None,
    )
