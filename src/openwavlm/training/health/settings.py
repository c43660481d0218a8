"""Thresholds of the health rules of a training run (docs/training.md)."""

import math
from dataclasses import dataclass, fields
from typing import Literal

_NOT_NEGATIVE = ("recovery", "chance", "settle_updates", "count_rows", "count_updates", "unmasked_margin", "dead_level")


@dataclass(frozen=True)
class Health:
    """Thresholds, and the updates from which they hold; nothing here changes the trajectory. Without a source a value is ours.

    Attributes:
        enabled: Whether anything is measured at all.
        action: `warn`: a rule that fires is logged. `stop`: it also ends the launch with a checkpoint, resumable.
        window: Updates that are judged together.
        every: Updates between two measurements of gradients, predictions and channels; at most `window`.
        recovery: Windows that a rule has to hold after it fired before it can fire again.
        chance: Standard deviations by which the unmasked accuracy may be lower, where these are more than `unmasked_margin`.
        settle_share: Share of the updates after which the loss is compared with the unigram, and the predictions with the labels.
        settle_updates: Least number of updates for that.
        unigram_ratio: Factor on the unigram's cross-entropy; the masked loss is below the product.
        count_rows: Rows that the count table (DESIGN §8) is fitted on, and judged on a quarter more; 0 = no count table.
        count_share: Share of the updates after which the loss is compared with the count table.
        count_updates: Least number of updates for that.
        count_ratio: Factor on the count table's cross-entropy; the masked loss is below the product.
        early_share: Share of the updates, from random weights, over which unmasked accuracy is compared with masked accuracy. Later,
            sound runs fall to .05-.09 unmasked at .37-.39 masked (fairseq #4907), since unmasked frames are not trained.
        unmasked_margin: Difference by which the unmasked accuracy may be lower (torchaudio #2716: masked/unmasked .08/.11 when
            sound, .06/.04 with a wrong initialisation).
        perplexity_share: Least perplexity of the predicted labels over that of the labels; a model no better than the unigram
            predicts with the labels' own.
        gradient_growth: Largest median gradient norm of a block in a window over that of its earlier windows; at most 1.2 in 40 nano
            runs, single updates reached 4.9.
        dead_level: Mean absolute output of a dead channel over that of the channels' mean.
        dead_share: Largest share of dead channels.
        skipped_share: Largest share of updates that may be skipped; ESPnet's overflow guard never fired while its loss scale grew to
            1e29.
        wait_share: Largest share of wall time for waiting for the loader's workers; ESPnet lost 76 % to label files.
        throughput_share: Least seconds of audio per second, over the launch's median; at most .5 on a CPU, since other
            programs share its clock and caches.
        unreadable_share: Largest share of rows that may be unreadable; data.max_skip_rate of all rows ends the run.

    Raises:
        ValueError: If a value is out of its range.
    """

    enabled: bool = True
    action: Literal["warn", "stop"] = "warn"
    window: int = 100
    every: int = 10
    recovery: int = 10
    chance: float = 5.0
    settle_share: float = 0.02
    settle_updates: int = 2000
    unigram_ratio: float = 1.0
    count_rows: int = 500
    count_share: float = 0.15
    count_updates: int = 2000
    count_ratio: float = 1.0
    early_share: float = 0.05
    unmasked_margin: float = 0.015
    perplexity_share: float = 0.5
    gradient_growth: float = 5.0
    dead_level: float = 1e-3
    dead_share: float = 0.05
    skipped_share: float = 0.01
    wait_share: float = 0.05
    throughput_share: float = 0.8
    unreadable_share: float = 1e-4

    def __post_init__(self) -> None:
        if not 1 <= self.every <= self.window:
            raise ValueError(f"health.every must lie in 1 … health.window, but is {self.every} of {self.window}")
        for name in (each.name for each in fields(self) if each.name.endswith("_share")):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"health.{name} is a share and must lie in 0 … 1, but is {getattr(self, name)}")
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"health.{name} must be a number that is not negative, but is {getattr(self, name)}")
        for name in ("unigram_ratio", "count_ratio", "gradient_growth"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"health.{name} must be a positive number, but is {getattr(self, name)}")

    def settled(self, updates: int) -> int:
        """First update at which a run of `updates` is compared with the unigram and the labels' perplexity."""
        return max(self.settle_updates, math.ceil(self.settle_share * updates))

    def counted(self, updates: int) -> int:
        """First update at which a run of `updates` is compared with the count table."""
        return max(self.count_updates, math.ceil(self.count_share * updates))

    def early(self, updates: int) -> int:
        """Last update at which unmasked accuracy is compared with masked accuracy."""
        return math.floor(self.early_share * updates)
