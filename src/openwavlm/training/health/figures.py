"""Figures for the health rules at every `health.every` updates, summed over ranks in the vector of the step's other figures."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True, eq=False)
class HealthRecord:
    """Figures of one update, summed over all ranks.

    Attributes:
        marginal: float64 (classes,), predicted probabilities summed over the masked frames.
        activations: float64 (channels,), the extractor's absolute outputs, summed over rows and frames.
        gradients: L2 norm of each block's gradient before clipping.
    """

    marginal: np.ndarray
    activations: np.ndarray
    gradients: dict[str, float]


def block_of(name: str) -> str | None:
    """Block of a parameter of the training module; None outside the model (the log-mel map, a running mean of the weights)."""
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
    """Squared gradient norms of the training module by block, float64 () each: this rank's share, which sums to the whole over ranks.

    Gradients that every rank holds whole `count` on one rank only.
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
    """This rank's part of a gradient's squared norm."""
    if isinstance(gradient, DTensor):
        placed = zip(gradient.device_mesh.shape, gradient.placements, strict=True)
        copies = math.prod(size for size, placement in placed if placement.is_replicate())
        return torch.linalg.vector_norm(gradient.to_local()).double().square() / copies
    if gradient is None or not count:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.linalg.vector_norm(gradient).double().square()


class HealthFigures:
    """Collects an update's figures on one rank, at every `every` updates; `channels` are the extractor's outputs."""

    def __init__(self, every: int, *, num_classes: int, channels: int, rank: int = 0) -> None:
        self._every, self._rank = every, rank
        self._sizes = (num_classes, channels)
        self._parts: list[Tensor] | None = None
        self._squares: dict[str, Tensor] = {}

    def begin(self, step: int) -> bool:
        """Begins update `step`, counted from 0; returns whether it is measured."""
        measured = (step + 1) % self._every == 0
        self._parts = [] if measured else None
        return measured

    @torch.no_grad()
    def add(self, marginal: Tensor | None, features: Tensor) -> None:
        """Adds a micro-batch, where this update is measured.

        Args:
            marginal: float32 (classes,), its predicted probabilities, summed over frames.
            features: (batch, channels, frames), the extractor's output.
        """
        if self._parts is None:
            return
        assert marginal is not None
        levels = features.detach().abs().sum((0, 2), dtype=torch.float64)
        self._parts.append(torch.cat([marginal.double(), levels]))

    @torch.no_grad()
    def gradients(self, module: nn.Module) -> None:
        """Adds the unscaled gradients, before clipping, where this update is measured."""
        if self._parts is not None:
            self._squares = block_gradients(module, count=self._rank == 0)

    @torch.no_grad()
    def end(self) -> Tensor | None:
        """The update's figures, float64 (classes + channels + blocks,) on the device; None unless it is measured."""
        if self._parts is None:
            return None
        squares = torch.stack(list(self._squares.values()))
        # A rank that ran only padding has no part.
        first = torch.stack(self._parts).sum(0) if self._parts else squares.new_zeros(sum(self._sizes))
        return torch.cat([first, squares])

    def record(self, values: np.ndarray) -> HealthRecord:
        """The record of the last measured update, from its figures summed over ranks."""
        marginal, activations, squares = np.split(values, np.cumsum(self._sizes))
        return HealthRecord(marginal, activations, dict(zip(self._squares, np.sqrt(squares).tolist(), strict=True)))
