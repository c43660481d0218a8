"""Settings of the probes that a training run makes. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LiveProbes:
    """When and on what a run is probed; nothing here changes the trajectory.

    Attributes:
        every: Updates between two probes; 0 = none. One is made at the end too.
        train: Shard set that probes are fitted on: clean speech of other voices than `dev`'s, training speech as a rule.
        dev: Shard set of the voices that are judged on, unheard by the run.
        alignments: Table `path start end phone` that covers both.
        fold_stress: Whether the stress of ARPAbet's vowels is dropped.
        train_seconds: At most so much is fitted on.
        dev_seconds: At most so much is judged on.

    Raises:
        ValueError: If a number is negative, or if something is missing while `every` is not 0.
    """

    every: int = 0
    train: str | None = None
    dev: str | None = None
    alignments: str | None = None
    fold_stress: bool = False
    train_seconds: float = 300.0
    dev_seconds: float = 300.0

    def __post_init__(self) -> None:
        if self.every < 0 or self.train_seconds <= 0 or self.dev_seconds <= 0:
            raise ValueError(
                "probes.every must not be negative, train_seconds and dev_seconds must be positive, but are "
                f"{self.every}, {self.train_seconds}, {self.dev_seconds}"
            )
        missing = [name for name in ("train", "dev", "alignments") if getattr(self, name) is None]
        if self.every and missing:
            raise ValueError(
                f"probes.every is {self.every}, but probes.{missing[0]} is not given: name a shard set (train, dev) or the table of phone "
                "times (alignments), or set probes.every=0"
            )
