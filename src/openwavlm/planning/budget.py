"""From a recipe to hours, gigabytes and days: what a run will take, before there are data (the arithmetic of `openwavlm plan`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from openwavlm.audio.frames import FRAME_RATE_HZ, SAMPLE_RATE_HZ, num_samples_of
from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.settings import Batching, SpanMasking
from openwavlm.model.config import WavLMConfig
from openwavlm.model.costs import Flops, HeadShape, MicroBatchShape, Recompute, count_flops
from openwavlm.planning.memory import Memory, estimate_memory
from openwavlm.training.config import RunConfig

GIB = 1 << 30
USABLE_SHARE = 0.9  # of a GPU's memory: the rest is for the CUDA context, fragmentation and cuDNN's workspaces
_BYTES_A_SAMPLE = 2
_BYTES_A_LABEL = 2


@dataclass(frozen=True)
class Gpu:
    """A device of the table.

    Attributes:
        memory_gib: Its memory.
        tflops_16_bit: Dense peak of the matrix units in float16, and in bfloat16 where they know it, 10¹² operations a second.
        tflops_32_bit: Peak in float32 without TF32, which is what `precision: 32-true` computes matrix products in.
        bfloat16: Whether its matrix units know bfloat16.
        source: Where the figures are from.
    """

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
class Recipe:
    """What the cost of a run depends on.

    Attributes:
        model: The encoder.
        head: The head's sizes.
        batching: How audio becomes micro-batches.
        masking: Decides how many frames are predicted.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        updates: Of the whole run.
        recompute: Which activations the backward computes again.
        learns_unmasked: Whether unmasked frames are predicted with a gradient too (`config.loss.unmasked`).
        strategy: `ddp` or `fsdp` (`trainer.strategy`).
        ema: Whether a running mean of the weights is kept (`optim.ema`).
    """

    model: WavLMConfig
    head: HeadShape
    batching: Batching
    masking: SpanMasking
    precision: str
    updates: int
    recompute: Recompute = "none"
    learns_unmasked: bool = False
    strategy: Literal["ddp", "fsdp"] = "ddp"
    ema: bool = False

    def micro_batch(self) -> MicroBatchShape:
        """A full micro-batch of the longest rows: the one with the most operations and bytes a second of audio."""
        frames = self.batching.max_frames
        rows = self.batching.micro_frames // frames
        masked = int(draw_span_mask(self.masking, np.full(rows, frames), 0, source=0, epoch=0, micro=0).sum())
        predicted = rows * frames if self.learns_unmasked else masked
        return MicroBatchShape(rows=rows, samples=num_samples_of(frames), predicted_frames=predicted)

    def flops(self) -> Flops:
        """Operations of that micro-batch."""
        return count_flops(self.model, self.head, self.micro_batch(), recompute=self.recompute)

    def flops_a_second(self) -> float:
        """Operations for a second of audio, forward and backward."""
        batch = self.micro_batch()
        return self.flops().total * SAMPLE_RATE_HZ / (batch.rows * batch.samples)

    def memory(self, processes: int = 1) -> Memory:
        """Memory of a training process on a GPU."""
        return estimate_memory(
            self.model,
            self.head,
            self.micro_batch(),
            precision=self.precision,
            recompute=self.recompute,
            processes=processes,
            strategy=self.strategy,
            ema=self.ema,
        )

    def with_slots(self, slots: int) -> "Recipe":
        """The same update in another number of micro-batches."""
        return replace(self, batching=replace(self.batching, micro_seconds=self.batching.seconds / slots))

    def fitting_slots(self, gigabytes: float, processes: int) -> int | None:
        """The fewest micro-batches of a step, a multiple of `processes`, of which one fits into a GPU of `gigabytes` GiB.

        Returns:
            Their number; None if not even micro-batches of a single longest row fit.
        """
        most = int(self.batching.seconds / self.batching.max_seconds + 1e-9)
        for slots in range(processes, most + 1, processes):
            if self.with_slots(slots).memory(processes).total <= USABLE_SHARE * gigabytes * GIB:
                return slots
        return None


def wasted_share(slots: int, processes: int) -> float:
    """Share of the work that padding micro-batches are when `processes` share out `slots`."""
    waste = -slots % processes
    return waste / (slots + waste)


def peak_flops(gpu: Gpu, precision: str) -> float:
    """Peak operations a second of a GPU in a precision.

    Raises:
        ValueError: If the GPU does not know the precision.
    """
    if precision == "bf16-mixed" and not gpu.bfloat16:
        raise ValueError(
            "the matrix units of this GPU have no bfloat16, but precision is bf16-mixed: use precision=32-true, or another gpu"
        )
    return 1e12 * (gpu.tflops_32_bit if precision == "32-true" else gpu.tflops_16_bit)


def seconds_of_run(recipe: Recipe, processes: int, flops_per_second: float) -> float:
    """Wall-clock seconds of the updates, padding micro-batches included, where each process does `flops_per_second`."""
    slots = recipe.batching.slots
    rounds = -(-slots // processes)
    a_micro_batch = recipe.flops_a_second() * recipe.batching.seconds / slots
    return recipe.updates * rounds * a_micro_batch / flops_per_second


def disk_bytes(hours: float, flac_share: float, parameters: int, checkpoints: int, *, ema: bool = False) -> dict[str, float]:
    """Bytes of a corpus and of a run.

    Args:
        hours: Of audio.
        flac_share: FLAC's size over that of the samples.
        parameters: Of the model; a checkpoint holds each with its two moments.
        checkpoints: How many are kept, the newest included.
        ema: Whether a checkpoint holds a running mean too.

    Returns:
        `shards`, `labels` and `checkpoints`.
    """
    seconds = 3600 * hours
    return {
        "shards": seconds * SAMPLE_RATE_HZ * _BYTES_A_SAMPLE * flac_share,
        "labels": seconds * FRAME_RATE_HZ * _BYTES_A_LABEL,
        "checkpoints": (16.0 if ema else 12.0) * parameters * checkpoints,
    }


def recipe_of(config: RunConfig, num_classes: int | Sequence[int]) -> Recipe:
    """What the cost of a run depends on."""
    head, model = config.head, config.model
    classes = [num_classes] if isinstance(num_classes, int) else list(num_classes)
    return Recipe(
        model,
        HeadShape(
            final_dim=head.final_dim,
            embeddings=sum(head.special_rows + size for size in classes),
            projections=len(classes),
        ),
        config.batch,
        config.masking,
        config.precision,
        config.optim.updates,
        recompute=model.recompute,
        learns_unmasked=config.loss.unmasked > 0,
        strategy=config.trainer.strategy,
        ema=config.optim.ema > 0,
    )
