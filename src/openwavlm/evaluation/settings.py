"""Settings of the probes of a training run and of `openwavlm quality`. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from openwavlm.evaluation.conditions import CONDITIONS


@dataclass(frozen=True)
class LiveProbes:
    """Probes during a run; nothing here changes the trajectory.

    Attributes:
        every: Updates between two probes; 0 = none. One is made at the end too.
        train: Shard set that probes are fitted on: clean speech of other speakers than `dev`'s, usually training speech.
        dev: Shard set of held-out speakers that are judged on.
        alignments: Table `path start end phone` that covers both.
        fold_stress: Whether the stress of ARPAbet's vowels is dropped.
        train_seconds: Most audio that is fitted on.
        dev_seconds: Most audio that is judged on.

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
                f"probes.every={self.every} needs probes.train and dev (shard sets) and alignments (table of phone times), but "
                f"probes.{missing[0]} is null: set it, or probes.every=0"
            )


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """Keys of `conf/quality.yaml`, explained there.

    Raises:
        ValueError: If abx has no phones, or a value is out of range or unknown.
    """

    output: str
    shards: str
    alignments: str | None = None
    format: str = "auto"
    tier: str = "phones"
    folding: str = "arpabet"
    with_silence: bool = True
    max_unmatched_share: float = 0.05
    seconds: float = 3600.0
    labels: str | list[str] | None = None
    encoder: str | None = None
    layers: str | list[int] | None = None
    fit: str | None = None
    fit_seconds: float = 3600.0
    held_out: float | None = None
    split_seed: int = 0
    clusters: int | None = None
    codebook_seeds: tuple[int, ...] = (0, 1, 2)
    fit_frames: int = 50_000
    frames_per_cluster: int = 20
    memory_gb: float = 2.0
    conditions: tuple[str, ...] = ("clean",)
    abx: bool = False
    device: str = "auto"
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        if not self.seconds > 0 or not self.fit_seconds > 0 or not 0 <= self.max_unmatched_share <= 1:
            raise ValueError(
                "seconds and fit_seconds must be positive and max_unmatched_share a share, but are "
                f"{self.seconds}, {self.fit_seconds} and {self.max_unmatched_share}"
            )
        if self.abx and self.alignments is None:
            raise ValueError("abx compares phones, but alignments is null: set alignments=PATH, or abx=false")
        if self.held_out is not None and (not 0 <= self.held_out < 1 or self.fit):
            raise ValueError(
                f"held_out must be in [0, 1) and without fit, which has other speakers, but is {self.held_out}"
                f"{' beside fit=' + self.fit if self.fit else ''}: remove one of them, or set a share of speakers"
            )
        for name, values, allowed in (
            ("conditions", self.conditions, CONDITIONS),
            ("device", [self.device], ("auto", "cpu", "cuda")),
        ):
            wrong = [value for value in values if value not in allowed]
            if wrong or not values:
                raise ValueError(f"{name} must be out of {', '.join(allowed)}, but is {wrong or 'empty'}")

    @property
    def labellings(self) -> list[Path]:
        """Folders of labels."""
        given = [self.labels] if isinstance(self.labels, str) else self.labels or []
        return [Path(folder) for folder in given]
