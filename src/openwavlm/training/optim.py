"""The optimiser, AdamW, and its learning rate: linear warm-up from 0, then one of three schedules.

`linear` falls straight to the last update (fairseq's `polynomial_decay` with power 1). `wsd` is constant and falls straight over the last
share: until then a run can be extended, or ended from any checkpoint by a branch. `tri_stage` falls exponentially there (fairseq's
`tri_stage`, usual in fine-tuning: 10 % warm-up, 40 % constant, 50 % decay to .05).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn


def is_matrix(parameter: "nn.Parameter") -> bool:
    """Whether a parameter has more than one dimension longer than 1, so that it decays under `decay=matrices`."""
    return parameter.squeeze().ndim > 1  # gains of shape (1, 1, kernel) and (1, heads, 1, 1) are vectors


@dataclass(frozen=True)
class Optim:
    """Hyper-parameters of the update (HuBERT Base's by default).

    Attributes:
        updates: Optimiser steps of the whole run.
        lr: Peak learning rate.
        warmup_updates: Steps of linear warm-up from 0.
        schedule: `linear`, `wsd` (warm-up, stable, decay) or `tri_stage` (the same with an exponential decay).
        decay_share: Share of the updates over which `wsd` and `tri_stage` decay, at the end.
        final_share: Share of `lr` that is left at the last update; above 0 for `tri_stage`.
        betas: Adam's moments.
        eps: Adam's epsilon.
        weight_decay: Decoupled weight decay.
        decay: Parameters that decay: `all` (as fairseq does) or `matrices` (no biases, norms or other vectors).
        clip_norm: Largest L2 norm of the gradient per masked frame.
        max_skip_rate: Share of the updates that may be skipped, their gradient not being finite, before the run ends with an error.
        ema: Decay of a running mean of the weights that can be exported instead of them (`export weights=ema`); 0 = none. It takes
            the memory of the weights once more, and the first updates count more (see `ema_decay`).

    Raises:
        ValueError: If a value is out of range.
    """

    updates: int
    lr: float = 5e-4
    warmup_updates: int = 32_000
    schedule: Literal["linear", "wsd", "tri_stage"] = "linear"
    decay_share: float = 0.2
    final_share: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    decay: Literal["all", "matrices"] = "matrices"
    clip_norm: float = 10.0
    max_skip_rate: float = 0.01
    ema: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        warm_up = f"{self.warmup_updates} of {self.updates}"
        rules = (
            (self.updates >= 1, "updates must be at least 1", self.updates),
            (
                0 <= self.warmup_updates < self.updates,
                "warmup_updates must lie in [0, optim.updates)",
                f"{warm_up}: 8 % of the updates is the usual choice",
            ),
            (0 < self.lr < math.inf, "lr must be a positive number", self.lr),
            (self.clip_norm > 0, "clip_norm must be positive", self.clip_norm),
            (0 <= self.final_share <= 1, "final_share must lie in [0, 1]", self.final_share),
            (self.schedule != "tri_stage" or self.final_share > 0, "final_share must be above 0 for tri_stage", self.final_share),
            (
                0 < self.decay_share <= 1 and self.warmup_updates + self.decay_updates <= self.updates,
                "decay_share must lie in (0, 1] and leave room for the warm-up",
                f"{self.decay_share}, with a warm-up of {warm_up} updates: lower one of them",
            ),
            (0 <= self.max_skip_rate <= 1, "max_skip_rate must lie in [0, 1]", self.max_skip_rate),
            (0 <= self.ema < 1, "ema must lie in [0, 1)", f"{self.ema}: 0.999 is a usual choice, 0 for none"),
            (all(0 <= beta < 1 for beta in self.betas), "betas must lie in [0, 1)", list(self.betas)),
            (self.eps > 0, "eps must be positive", self.eps),
            (0 <= self.weight_decay < math.inf, "weight_decay must not be negative", self.weight_decay),
        )
        for fits, rule, found in rules:
            if not fits:
                raise ValueError(f"optim.{rule}, but is {found}")

    @property
    def decay_updates(self) -> int:
        """Updates over which `wsd` and `tri_stage` decay; 0 under `linear`."""
        return max(1, round(self.decay_share * self.updates)) if self.schedule != "linear" else 0

    def ema_decay(self, step: int) -> float:
        """Decay of the running mean at update `step`: min(ema, (1 + step) / (10 + step)), so that the initial weights fade."""
        return min(self.ema, (1 + step) / (10 + step))

    def learning_rate(self, step: int) -> float:
        """Rate of update `step`, counted from 0; that of the first update is not 0; the peak is at `warmup_updates`."""
        if step < self.warmup_updates:
            return self.lr * (step + 1) / (self.warmup_updates + 1)
        falls = self.updates - self.warmup_updates if self.schedule == "linear" else self.decay_updates
        left = min(1.0, (self.updates - step) / falls)
        if self.schedule == "tri_stage":
            return self.lr * self.final_share ** (1 - left)
        return self.lr * (self.final_share + (1 - self.final_share) * left)

    def groups(self, module: "nn.Module") -> "list[dict[str, nn.Parameter]]":
        """The trained parameters by name: those that decay, then those that do not; a group without members is left out."""
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        decayed = {name: p for name, p in trained.items() if self.decay == "all" or is_matrix(p)}
        others = {name: p for name, p in trained.items() if name not in decayed}
        return [group for group in (decayed, others) if group]

    def optimizer(self, module: "nn.Module") -> "torch.optim.AdamW":
        """AdamW in its fused form, the one that can skip an update without a host synchronisation."""
        import torch  # not at the top: settings are checked before torch is imported

        groups = []
        for group in self.groups(module):
            members = list(group.values())
            decays = self.decay == "all" or is_matrix(members[0])
            groups.append({"params": members, "weight_decay": self.weight_decay if decays else 0.0})
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
