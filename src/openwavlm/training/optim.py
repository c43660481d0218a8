"""The optimiser and its schedule: AdamW, linear warm-up from 0, linear decay (fairseq's `polynomial_decay` with power 1)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.squeeze().ndim > 1  # gains of shape (1, 1, kernel) and (1, heads, 1, 1) are vectors


@dataclass(frozen=True)
class Optim:
    """Hyper-parameters of the update (HuBERT Base's by default).

    Attributes:
        updates: Optimiser steps of the whole run.
        lr: Peak learning rate.
        warmup_updates: Steps of linear warm-up from 0.
        final_share: Share of `lr` that is left at the last update.
        betas: Adam's moments.
        eps: Adam's epsilon.
        weight_decay: Decoupled weight decay.
        decay: Which parameters decay: `all` (as fairseq does) or `matrices` (no biases, norms or other vectors).
        clip_norm: Largest L2 norm of the gradient per masked frame.

    Raises:
        ValueError: If a value is out of range.
    """

    updates: int
    lr: float = 5e-4
    warmup_updates: int = 32_000
    final_share: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    decay: Literal["all", "matrices"] = "matrices"
    clip_norm: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.updates < 1:
            raise ValueError(f"optim.updates must be at least 1, but is {self.updates}")
        if not 0 <= self.warmup_updates < self.updates:
            raise ValueError(
                f"optim.warmup_updates must lie in [0, optim.updates), but is {self.warmup_updates} of {self.updates}: "
                "8 % of the updates is the usual choice"
            )
        if not (0 < self.lr < math.inf and self.clip_norm > 0 and 0 <= self.final_share <= 1):
            raise ValueError(
                "optim.lr and optim.clip_norm must be positive and optim.final_share in [0, 1], but are "
                f"{self.lr}, {self.clip_norm}, {self.final_share}"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"optim.betas must be two numbers in [0, 1), but are {list(self.betas)}: [0.9, 0.98] is the usual choice"
            )
        if not (self.eps > 0 and 0 <= self.weight_decay < math.inf):
            raise ValueError(
                f"optim.eps must be positive and optim.weight_decay not negative, but are {self.eps}, {self.weight_decay}"
            )
        if self.decay not in ("all", "matrices"):
            raise ValueError(f"optim.decay must be all or matrices, but is {self.decay!r}")

    def learning_rate(self, step: int) -> float:
        """Rate of update `step`, counted from 0; the first update already moves, the peak is reached at `warmup_updates`."""
        if step < self.warmup_updates:
            return self.lr * (step + 1) / (self.warmup_updates + 1)
        left = (self.updates - step) / (self.updates - self.warmup_updates)
        return self.lr * (self.final_share + (1 - self.final_share) * left)

    def groups(self, module: nn.Module) -> list[dict[str, nn.Parameter]]:
        """The trained parameters by name: those that decay, then those that do not; a group without members is left out."""
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        decayed = {name: p for name, p in trained.items() if self.decay == "all" or _is_matrix(p)}
        others = {name: p for name, p in trained.items() if name not in decayed}
        return [group for group in (decayed, others) if group]

    def optimizer(self, module: nn.Module) -> torch.optim.AdamW:
        """AdamW in its fused form, the one that can skip a void update without a host synchronisation."""
        groups = []
        for group in self.groups(module):
            members = list(group.values())
            decays = self.decay == "all" or _is_matrix(members[0])
            groups.append({"params": members, "weight_decay": self.weight_decay if decays else 0.0})
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
