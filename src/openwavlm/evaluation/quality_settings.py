"""What `openwavlm quality` is asked for."""

from dataclasses import dataclass
from pathlib import Path

from openwavlm.evaluation.layer_units import UnitSettings
from openwavlm.evaluation.measured import CONDITIONS

_MFCC_NORMS = ("none", "utterance")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The keys of `conf/quality.yaml`, which says what they mean.

    Raises:
        ValueError: If nothing is to be judged by phones, or a key has no such value.
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
    mfcc_norm: str = "none"
    conditions: tuple[str, ...] = ("clean",)
    abx: bool = False
    device: str = "auto"
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        if not self.seconds > 0 or not self.fit_seconds > 0 or not 0 <= self.max_unmatched_share <= 1:
            raise ValueError(
                "seconds and fit_seconds must be positive and max_unmatched_share a share, but are "
                f"{self.seconds}, {self.fit_seconds} and {self.max_unmatched_share}: correct them"
            )
        if self.abx and self.alignments is None:
            raise ValueError("abx compares phones, but alignments=null gives none: give alignments=PATH, or leave abx out")
        if self.held_out is not None and (not 0 <= self.held_out < 1 or self.fit):
            raise ValueError(
                f"held_out is the share of the speakers of shards that are judged, in [0, 1), where fit names no other voices, but is "
                f"{self.held_out}{' beside fit=' + self.fit if self.fit else ''}: correct it or leave it out"
            )
        for name, values, allowed in (
            ("mfcc_norm", [self.mfcc_norm], _MFCC_NORMS),
            ("conditions", self.conditions, CONDITIONS),
            ("device", [self.device], ("auto", "cpu", "cuda")),
        ):
            wrong = [value for value in values if value not in allowed]
            if wrong or not values:
                raise ValueError(f"{name} must be out of {', '.join(allowed)}, but is {wrong or 'empty'}: correct it")

    @property
    def labellings(self) -> list[Path]:
        """The folders of labels."""
        given = [self.labels] if isinstance(self.labels, str) else self.labels or []
        return [Path(folder) for folder in given]

    def units(self, clusters: int) -> UnitSettings:
        """How codebooks of K units are fitted."""
        return UnitSettings(
            clusters=clusters,
            codebook_seeds=tuple(self.codebook_seeds),
            fit_frames=self.fit_frames,
            frames_per_cluster=self.frames_per_cluster,
            memory_gb=self.memory_gb,
        )
