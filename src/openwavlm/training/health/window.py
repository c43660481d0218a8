"""Sums over a window of updates; plain values, so that a checkpoint can hold a part of a window."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from openwavlm.training.health.figures import HealthRecord

_ADDED = ("cross_entropy", "masked", "rows", "unreadable", "samples")


@dataclass(eq=False)
class Window:
    """Sums over consecutive updates.

    Attributes:
        first: Its first update, from 1.
        updates: Updates so far.
        skipped: Those that were skipped; their losses and predictions are not in the figures below.
        sums: `cross_entropy`, `masked`, `rows`, `unreadable`, `samples`, as in the step's record.
        seen: `masked`, `correct`, `unmasked`, `unmasked_correct` of the updates that measured unmasked frames.
        marginal: Predicted probabilities, summed; empty until measured.
        activations: The channels' absolute outputs, summed; empty until measured.
        gradients: Each block's measured norms.
    """

    first: int
    updates: int = 0
    skipped: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_ADDED, 0.0))
    seen: dict[str, float] = field(default_factory=dict)
    marginal: list[float] = field(default_factory=list)
    activations: list[float] = field(default_factory=list)
    gradients: dict[str, list[float]] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """Its last update so far."""
        return self.first + self.updates - 1

    def add(self, sums: Mapping[str, float], grad_norm: float, health: HealthRecord | None) -> None:
        """Adds one update, and its measured figures if there are any."""
        skipped = not math.isfinite(grad_norm)
        self.updates += 1
        self.skipped += skipped
        for name in ("rows", "unreadable", "samples"):
            self.sums[name] += sums[name]
        if health is not None:
            for block, norm in health.gradients.items():
                self.gradients.setdefault(block, []).append(norm)
        if skipped:
            return
        for name in ("cross_entropy", "masked"):
            self.sums[name] += sums.get(name, 0.0)  # of pre-training
        if sums.get("unmasked"):
            for name in ("masked", "correct", "unmasked", "unmasked_correct"):
                self.seen[name] = self.seen.get(name, 0.0) + sums[name]
        if health is not None:
            self.marginal = np.add(self.marginal or 0.0, health.marginal).tolist()
            self.activations = np.add(self.activations or 0.0, health.activations).tolist()

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> "Window":
        """The window of `asdict`, also of an earlier version, which counted skipped updates as `void` and kept more sums."""
        known = {each.name for each in fields(cls)}
        renamed = {"skipped" if name == "void" else name: value for name, value in state.items()}
        return cls(**{name: value for name, value in renamed.items() if name in known})
