"""Figures that are summed over micro-batches and ranks: one vector for the all-reduce, each entry by its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openwavlm.batches.batch import PretrainBatch
from openwavlm.model.pretraining import PretrainingOutput
from openwavlm.training.health.figures import HealthRecord


def of_set(name: str, number: int) -> str:
    """Name of a figure of label set `number`, counted from 0: `NAME`, `NAME_2`, `NAME_3`, …"""
    return name if number == 0 else f"{name}_{number + 1}"


def of_further_sets(names: Sequence[str], sets: int) -> list[str]:
    """`names` of every label set but the first, which has the plain names."""
    return [of_set(name, number) for number in range(1, sets) for name in names]


class NamedSums:
    """Layout of a vector of sums: the name of each entry."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._place = {name: place for place, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def zeros(self, device: torch.device | str = "cpu") -> Tensor:
        """float64 (entries,)."""
        return torch.zeros(len(self.names), dtype=torch.float64, device=device)

    def vector(
        self, known: Mapping[str, float], measured: Mapping[str, Tensor] | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """float64 (entries,) of the figures of one micro-batch on `device`; 0 for a name that is not given.

        Args:
            known: Figures on the host, copied at once, without waiting.
            measured: Tensors of one element on the device.
        """
        values = torch.tensor([known.get(name, 0.0) for name in self.names], dtype=torch.float64).to(device, non_blocking=True)
        for name, value in (measured or {}).items():
            values[self._place[name]] = value
        return values

    def named(self, vector: Tensor) -> dict[str, float]:
        """The entries of a summed vector by name."""
        return dict(zip(self.names, vector.tolist(), strict=True))


_OF_SETS = ("cross_entropy", "correct")
_MEASURED = ("penalty", "unmasked_correct", "logmel_error")
_COUNTED = ("masked", "unmasked", "samples", "padded_samples", "rows", "unreadable", "mixtures", "mask_frames", "valid_frames")
SUMS = (*_OF_SETS, *_MEASURED, *_COUNTED)


@dataclass(frozen=True)
class StepRecord:
    """Figures of one update, summed over all ranks; read back after the next step has begun.

    Attributes:
        step: Updates so far.
        sums: By the names of `step_sums`.
        grad_norm: L2 norm of the gradient per masked frame, before clipping.
        lr: Learning rate.
        with_unmasked: Whether the accuracy on unmasked frames was measured.
        health: Figures for the health rules; None unless measured.
    """

    step: int
    sums: dict[str, float]
    grad_norm: float
    lr: float
    with_unmasked: bool
    health: HealthRecord | None = None


def step_sums(sets: int) -> NamedSums:
    """Layout of a step's sums with `sets` label sets."""
    return NamedSums([*SUMS, *of_further_sets(_OF_SETS, sets)])


def micro_batch_sums(
    layout: NamedSums, output: PretrainingOutput, logmel: Tensor | None, micro: PretrainBatch, device: torch.device
) -> Tensor:
    """A micro-batch's part of the step's sums; only losses and hits come from the device."""
    rows, samples = micro.waveforms.shape
    masked, unmasked = micro.num_masked, micro.unmasked_index.shape[0]
    known = {
        "masked": masked,
        "samples": micro.valid_samples,
        "padded_samples": rows * samples,
        "rows": rows,
        "unreadable": micro.num_unreadable,
        "mixtures": len(micro.mix),
        "mask_frames": masked,
        "valid_frames": masked + unmasked,
    }
    measured = {"penalty": output.feature_penalty.detach() * masked}
    for number, figures in enumerate(output.sets):
        measured[of_set("cross_entropy", number)] = figures.cross_entropy_sum.detach()
        measured[of_set("correct", number)] = figures.num_correct
    if output.sets[0].num_unmasked_correct is not None:
        measured["unmasked_correct"] = output.sets[0].num_unmasked_correct
        known["unmasked"] = unmasked
    if logmel is not None:
        measured["logmel_error"] = logmel.detach() * masked
    return layout.vector(known, measured, device)
