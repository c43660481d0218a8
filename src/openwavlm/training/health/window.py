"""The figures of a stretch of updates, added up; plain values, so that a checkpoint carries a window that is half full."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from openwavlm.training.health.figures import HealthRecord

_ADDED = ("cross_entropy", "masked", "rows", "unreadable", "samples")


@dataclass(eq=False)
class Window:
    """What a stretch of updates did.

    Attributes:
        first: Its first update, from 1.
        updates: How many there are so far.
        void: Those whose gradient was not finite; their losses and predictions are not in the figures below.
        sums: `cross_entropy`, `masked`, `rows`, `unreadable`, `samples`, as in the step's record.
        seen: `masked`, `correct`, `unmasked`, `unmasked_correct` of the updates that measured unmasked frames.
        promised: Sums by the names of `PROMISED`.
        marginal: Predicted probabilities, summed; empty until measured.
        activations: The channels' absolute outputs, summed; empty until measured.
        gradients: Each block's measured norms.
    """

    first: int
    updates: int = 0
    void: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_ADDED, 0.0))
    seen: dict[str, float] = field(default_factory=dict)
    promised: dict[str, float] = field(default_factory=dict)
    marginal: list[float] = field(default_factory=list)
    activations: list[float] = field(default_factory=list)
    gradients: dict[str, list[float]] = field(default_factory=dict)

    def add(self, sums: Mapping[str, float], grad_norm: float, health: HealthRecord) -> None:
        """Takes one update."""
        void = not math.isfinite(grad_norm)
        self.updates += 1
        self.void += void
        for name, value in health.promised.items():
            self.promised[name] = self.promised.get(name, 0.0) + value
        for block, norm in (health.gradients or {}).items():
            self.gradients.setdefault(block, []).append(norm)
        for name in ("rows", "unreadable", "samples"):
            self.sums[name] += sums[name]
        if void:
            return
        for name in ("cross_entropy", "masked"):
            self.sums[name] += sums[name]
        if sums["unmasked"]:
            for name in ("masked", "correct", "unmasked", "unmasked_correct"):
                self.seen[name] = self.seen.get(name, 0.0) + sums[name]
        if health.marginal is not None and health.activations is not None:
            self.marginal = np.add(self.marginal or 0.0, health.marginal).tolist()
            self.activations = np.add(self.activations or 0.0, health.activations).tolist()

    def state(self) -> dict[str, Any]:
        """Plain values, from which `Window(**state)` makes the same window."""
        return asdict(self)
