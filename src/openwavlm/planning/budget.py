"""Hours, gigabytes and days of a run, computed from its config (the arithmetic of `openwavlm plan`)."""

import bisect
import functools
from dataclasses import dataclass, replace

import numpy as np

from openwavlm.audio.frames import FRAME_RATE_HZ, SAMPLE_RATE_HZ, num_samples_of
from openwavlm.batches.masking import draw_span_mask
from openwavlm.model.costs import Costs, MicroBatchShape, build_without_data, count_costs, count_parameters
from openwavlm.planning.memory import Memory, estimate_memory
from openwavlm.training.config import RunConfig

GIB = 1 << 30
USABLE_SHARE = 0.9  # of a GPU's memory; the CUDA context, fragmentation and cuDNN's workspaces take the rest
_BYTES_A_SAMPLE = 2
_BYTES_A_LABEL = 2


@dataclass(frozen=True)
class Gpu:
    """Peaks of a device: dense, of its matrix units in 16 bits, and in float32 without TF32, as `precision: 32-true` computes."""

    memory_gib: float
    tflops_16_bit: float
    tflops_32_bit: float
    bfloat16: bool
    source: str


GPUS = {
    "h100": Gpu(80, 989.4, 66.9, True, "NVIDIA H100 datasheet, SXM5, without sparsity"),
    "h200": Gpu(141, 989.4, 66.9, True, "NVIDIA H200 datasheet, SXM, without sparsity"),
    "a100": Gpu(80, 312, 19.5, True, "NVIDIA A100 datasheet, SXM4 80 GB, without sparsity"),
    "v100": Gpu(32, 125, 15.7, False, "NVIDIA V100 datasheet, SXM2"),
    "l40s": Gpu(48, 362.05, 91.6, True, "NVIDIA L40S datasheet, without sparsity"),
}


@dataclass(frozen=True)
class PublishedRun:
    """A published pre-training: model, hardware and speed; source of the speed; utilisation."""

    what: str
    source: str
    utilisation: float


# Utilisation: operations a second, counted as by `Recipe` in rows of 15.6 s, over the GPU's dense peak in 16 bits;
# `tests/unit/test_budget.py` derives each from the published speed. The last two crop their batches: upper bounds.
PUBLISHED = (
    # 100,000 · 2,800 s / (32 · 9.5 h) = 256 s of audio a second and GPU
    PublishedRun("HuBERT Base, 32 V100, 9.5 h for 100,000 updates of 2,800 s", "HuBERT, arXiv 2106.07447", 0.094),
    # 400,000 · 2,800 s / 160 h = 1,944; an easier model: no gated bias, no mixing
    PublishedRun("HuBERT Base, 16 H100, 10 h for 400,000 updates of 2,800 s", "README of github.com/mxmpl/minimal_hubert", 0.091),
    PublishedRun(
        "WavLM Large, 8 H100, compiled layers, 605 s of audio a second and GPU", "timing notes of ESPnet's wavlm1 recipe", 0.073
    ),
    PublishedRun("the same without compiled layers, 452 s of audio a second and GPU", "the same notes", 0.055),
)


@dataclass(frozen=True)
class Recipe:
    """Cost of a training's updates; `classes` is the number of pseudo-labels of each label set."""

    config: RunConfig
    classes: tuple[int, ...]

    @functools.cached_property
    def parameters(self) -> dict[str, int]:
        """Parameters by part of the model."""
        return count_parameters(build_without_data(self.config.model, self.config.head, self.classes))

    @functools.cached_property
    def micro_batch(self) -> MicroBatchShape:
        """A full micro-batch of the longest rows: the one with the most operations and bytes per second of audio."""
        frames = self.config.batch.max_frames
        rows = self.config.batch.micro_frames // frames
        masked = int(draw_span_mask(self.config.masking, np.full(rows, frames), 0, source=0, epoch=0, micro=0).sum())
        predicted = rows * frames if self.config.loss.unmasked > 0 else masked
        return MicroBatchShape(rows=rows, samples=num_samples_of(frames), predicted_frames=predicted)

    @property
    def costs(self) -> Costs:
        """Operations and kept bytes of that micro-batch."""
        return self.costs_of(self.micro_batch)

    def costs_of(self, batch: MicroBatchShape) -> Costs:
        """Operations and kept bytes of a micro-batch."""
        config = self.config
        return count_costs(config.model, config.head, self.classes, batch, precision=config.precision)

    def flops_a_second(self) -> float:
        """Operations for a second of audio, forward and backward."""
        batch = self.micro_batch
        return self.costs.operations * SAMPLE_RATE_HZ / (batch.rows * batch.samples)

    def memory(self, processes: int = 1, batch: MicroBatchShape | None = None) -> Memory:
        """Memory of a training process on a GPU at that micro-batch, or at another one."""
        config, batch = self.config, batch or self.micro_batch
        return estimate_memory(
            config.model,
            sum(self.parameters.values()),
            self.costs_of(batch),
            batch,
            precision=config.precision,
            processes=processes,
            strategy=config.trainer.strategy,
            ema=config.optim.ema > 0,
        )

    @property
    def most_slots(self) -> int:
        """Micro-batches of an update if each is a single longest row."""
        return int(self.config.batch.seconds / self.config.batch.max_seconds + 1e-9)

    def with_slots(self, slots: int) -> "Recipe":
        """The same update in another number of micro-batches."""
        batching = self.config.batch
        return Recipe(replace(self.config, batch=replace(batching, micro_seconds=batching.seconds / slots)), self.classes)

    def fitting_slots(self, gigabytes: float, processes: int) -> int | None:
        """The fewest micro-batches of a step, a multiple of `processes`, of which one fits into a GPU of `gigabytes` GiB.

        None if not even micro-batches of a single longest row fit.
        """
        usable = USABLE_SHARE * gigabytes * GIB
        numbers = range(processes, self.most_slots + 1, processes)
        at = bisect.bisect_left(numbers, True, key=lambda slots: self.with_slots(slots).memory(processes).total <= usable)
        return numbers[at] if at < len(numbers) else None


def wasted_share(slots: int, processes: int) -> float:
    """Share of padding micro-batches in the work of `processes` that share `slots` micro-batches."""
    waste = -slots % processes
    return waste / (slots + waste)


def peak_flops(gpu: Gpu, precision: str) -> float:
    """Peak operations a second of a GPU in a precision; `ValueError` if it does not support it."""
    if precision == "bf16-mixed" and not gpu.bfloat16:
        raise ValueError(
            "the matrix units of this GPU have no bfloat16, but precision is bf16-mixed: use precision=32-true, or another gpu"
        )
    return 1e12 * (gpu.tflops_32_bit if precision == "32-true" else gpu.tflops_16_bit)


def seconds_of_run(recipe: Recipe, processes: int, flops_per_second: float) -> float:
    """Wall-clock seconds of the updates, padding micro-batches included, where each process does `flops_per_second`."""
    batching = recipe.config.batch
    rounds = -(-batching.slots // processes)
    a_micro_batch = recipe.flops_a_second() * batching.seconds / batching.slots
    return recipe.config.optim.updates * rounds * a_micro_batch / flops_per_second


def disk_bytes(hours: float, flac_share: float, parameters: int, checkpoints: int, *, ema: bool = False) -> dict[str, float]:
    """Bytes of the shards and labels of a corpus, and of a run's checkpoints.

    Args:
        hours: Of audio.
        flac_share: Size of FLAC over that of the samples.
        parameters: Of the model; a checkpoint holds each with its two moments.
        checkpoints: Number kept, the newest included.
        ema: Whether a checkpoint holds a running mean too.
    """
    seconds = 3600 * hours
    return {
        "shards": seconds * SAMPLE_RATE_HZ * _BYTES_A_SAMPLE * flac_share,
        "labels": seconds * FRAME_RATE_HZ * _BYTES_A_LABEL,
        "checkpoints": (16.0 if ema else 12.0) * parameters * checkpoints,
    }
