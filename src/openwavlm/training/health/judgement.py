"""Thresholds and baselines of the health rules, and a rule's judgement."""

from dataclasses import dataclass, field

from openwavlm.training.health.settings import Health

# Ours: a process that shares its core with one busy loop waits about half of the time.
_SHARED_SHARE = 0.1


@dataclass(frozen=True)
class References:
    """Baselines that guess the labels without audio; None where not computed.

    Attributes:
        unigram: Cross-entropy of guessing by label frequency, nats.
        perplexity: exp of the labels' entropy.
        count_table: Cross-entropy of guessing from the nearest unmasked labels, nats.
    """

    unigram: float | None = None
    perplexity: float | None = None
    count_table: float | None = None

    def complete(self, settings: Health, updates: int) -> bool:
        """Whether no baseline is missing that a run of `updates` is compared with."""
        labels = updates < settings.settled(updates) or self.unigram is not None
        return labels and (not settings.count_rows or updates < settings.counted(updates) or self.count_table is not None)


@dataclass(frozen=True)
class Lap:
    """Wall time of a window on rank 0, validation and saving left out.

    Attributes:
        seconds: Its length.
        waited: Seconds of waiting for the loader's workers; None if the process reads by itself.
        without_core: Longest wait of a process for a core, seconds; None if unknown, or if the step runs on a GPU.
    """

    seconds: float
    waited: float | None
    without_core: float | None = None

    @property
    def shared(self) -> bool:
        """Whether other programs took so much of the cores that the window's times say nothing about this run."""
        return (self.without_core or 0.0) > _SHARED_SHARE * self.seconds


@dataclass
class Known:
    """Thresholds and figures that a window is judged by.

    Attributes:
        settings: Thresholds.
        updates: Updates of the whole run.
        from_random: Whether the run began with random weights.
        references: Baselines of the labels.
        gradients: Median gradient norms of each block in earlier windows.
        speeds: Seconds of audio per second in earlier windows of the launch.
        lap: Wall time of the window; None if not measured.
        on_cpu: Whether the step runs on a CPU.
        held_until: Updates over which only the head is trained.
    """

    settings: Health
    updates: int
    from_random: bool
    references: References = References()
    gradients: dict[str, list[float]] = field(default_factory=dict)
    speeds: list[float] = field(default_factory=list)
    lap: Lap | None = None
    on_cpu: bool = False
    held_until: int = 0


@dataclass(frozen=True)
class Judgement:
    """One rule on one window: the figure, its threshold, whether the rule is broken, and the message in that case."""

    value: float
    threshold: float
    broken: bool
    sentence: str
