"""What the health rules need of each update: promises kept on the host, and now and then predictions, channels and gradients.

Everything is summed over ranks in the vector that the step's other figures travel in, one step late: no further synchronisation.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from openwavlm.batches.loader import StepBatch
from openwavlm.model.pretraining import PretrainingOutput
from openwavlm.training.health.promises import PROMISED, Promises
from openwavlm.training.health.settings import Health


@dataclass(frozen=True, eq=False)
class HealthRecord:
    """An update's figures, summed over all ranks.

    Attributes:
        promised: What masks, mixtures and rows were and should have been, by the names of `PROMISED`.
        marginal: float64 (classes,), predicted probabilities summed over the masked frames; None unless measured.
        activations: float64 (channels,), the extractor's absolute outputs, summed over rows and frames; None unless measured.
        gradients: L2 norm of each block's gradient before clipping; None unless measured.
    """

    promised: dict[str, float]
    marginal: np.ndarray | None = None
    activations: np.ndarray | None = None
    gradients: dict[str, float] | None = None


def block_of(name: str) -> str | None:
    """The block that a parameter of the training module belongs to; None for one whose gradient says nothing.

    The map to log-mels is left out, whose loss falls to 0 by design, as is a running mean of the weights.
    """
    if not name.startswith("model."):
        return None
    parts = name.removeprefix("model.").split(".")
    if parts[0] != "wavlm":
        return "head"
    if parts[1] == "extractor":
        return "extractor"
    if parts[1] != "encoder":
        return "projection"
    return f"layer_{int(parts[3]) + 1:02d}" if parts[2] == "layers" else "positions"


def block_gradients(module: nn.Module, *, count: bool) -> dict[str, Tensor]:
    """Squared gradient norms by block, float64 () each: this rank's share, which sums to the whole over ranks.

    Args:
        module: The training module, after its last backward and before clipping.
        count: Whether gradients that every rank holds whole count here (on one rank only).
    """
    squares: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        block = block_of(name)
        if block is None or not parameter.requires_grad:
            continue
        square = _local_square(parameter.grad, parameter.device, count=count)
        squares[block] = squares[block] + square if block in squares else square
    return squares


def _local_square(gradient: Tensor | None, device: torch.device, *, count: bool) -> Tensor:
    """A gradient's squared norm, as far as this rank is to count it."""
    if isinstance(gradient, DTensor):
        placed = zip(gradient.device_mesh.shape, gradient.placements, strict=True)
        copies = math.prod(size for size, placement in placed if placement.is_replicate())
        return torch.linalg.vector_norm(gradient.to_local()).double().square() / copies
    if gradient is None or not count:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.linalg.vector_norm(gradient).double().square()


class HealthFigures:
    """Collects an update's figures on one rank.

    Args:
        settings: How often what is measured.
        promises: What the config promises.
        num_classes: Labels.
        channels: Output channels of the extractor.
        rank: This process.
    """

    def __init__(self, settings: Health, promises: Promises, *, num_classes: int, channels: int, rank: int = 0) -> None:
        self._every, self._promises, self._rank = settings.every, promises, rank
        self._sizes = (num_classes, channels)
        self._promised: dict[int, np.ndarray] = {}
        self._parts: list[Tensor] | None = None
        self._squares: dict[str, Tensor] = {}

    def before_copy(self, batch: StepBatch) -> None:
        """Takes what the host knows of a batch, before it goes to the device."""
        self._promised[batch.step] = np.sum([self._promises.figures(micro) for micro in batch.micro_batches], axis=0)

    def begin(self, step: int) -> bool:
        """Begins update `step`, counted from 0; returns whether predictions, channels and gradients are measured."""
        measured = (step + 1) % self._every == 0
        self._parts = [] if measured else None
        return measured

    @torch.no_grad()
    def add(self, output: PretrainingOutput) -> None:
        """Takes a micro-batch's predictions and channels, where this update is measured."""
        if self._parts is None:
            return
        assert output.marginal is not None
        heard = output.features.detach().abs().sum((0, 2), dtype=torch.float64)
        self._parts.append(torch.cat([output.marginal.double(), heard]))

    @torch.no_grad()
    def gradients(self, module: nn.Module) -> None:
        """Takes the gradients, unscaled and not clipped yet, where this update is measured."""
        if self._parts is not None:
            self._squares = block_gradients(module, count=self._rank == 0)

    @torch.no_grad()
    def end(self, step: int) -> "PendingFigures":
        """Everything of update `step`; nothing is waited for."""
        promised = torch.from_numpy(self._promised.pop(step))
        if self._parts is None:
            return PendingFigures(promised, None, self._sizes, [])
        last = torch.stack(list(self._squares.values()))
        # A rank that ran only padding has no part.
        first = torch.stack(self._parts).sum(0) if self._parts else last.new_zeros(sum(self._sizes))
        return PendingFigures(promised, torch.cat([first, last]), self._sizes, list(self._squares))


@dataclass(frozen=True, eq=False)
class PendingFigures:
    """One rank's figures of an update, on their way to the host.

    Attributes:
        promised: float64 (promised,), on the host.
        measured: float64 (classes + channels + blocks,), on the device; None unless measured.
        sizes: How many of these are classes and how many channels.
        blocks: Names of the others.
    """

    promised: Tensor
    measured: Tensor | None
    sizes: tuple[int, int]
    blocks: list[str]

    def joined(self, sums: Tensor) -> Tensor:
        """One vector on the host of `sums`, what was measured, and what was promised: a single copy from the device."""
        known = sums if self.measured is None else torch.cat([sums, self.measured])
        return torch.cat([known.cpu(), self.promised])

    def record(self, values: np.ndarray) -> HealthRecord:
        """The record from what followed `sums`, summed over ranks."""
        promised = dict(zip(PROMISED, values[-len(PROMISED) :].tolist(), strict=True))
        if self.measured is None:
            return HealthRecord(promised)
        marginal, activations, squares = np.split(values[: -len(PROMISED)], np.cumsum(self.sizes))
        return HealthRecord(promised, marginal, activations, dict(zip(self.blocks, np.sqrt(squares).tolist(), strict=True)))
