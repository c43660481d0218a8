"""Settings of data and batches: sources, lengths, span masks, mixing, loader; without torch, so that a command starts quickly."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from openwavlm.audio.frames import frames_of_seconds

_SOURCE_KEYS = ("shards", "labels", "weight", "share")
Mode = Literal["paper", "unispeech"]


@dataclass(frozen=True)
class Data:
    """Data of a run.

    Attributes:
        sources: Name → {shards: folder, labels: folder, or a list of folders, one for each head's codebook, weight: factor on its
            hours (1), share: instead of hours × weight}.
        validation: Name → {shards, labels}: separate sets for validation; then `validation_share` must be 0.
        noise: Shard set of noise clips, or None.
        validation_share: Expected share of the speakers that is held out: at least one speaker and not all; 0 for none.
        split_seed: Seed of that split and of the validation masks; separate from the run's seed.
        validation_seconds: Most seconds of audio in a validation pass.
        streams: Shard streams for the slots of a step; more than 1 only for large remote shard sets.
        max_skip_rate: Share of rows that may be unreadable before the run stops.

    Raises:
        ValueError: If a source has an unknown or missing key, or a number is out of range.
    """

    sources: dict[str, dict[str, Any]]
    validation: dict[str, dict[str, Any]] = field(default_factory=dict)
    noise: str | None = None
    validation_share: float = 0.02
    split_seed: int = 0
    validation_seconds: float = 3600.0
    streams: int = 1
    max_skip_rate: float = 1e-3

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError(
                "data.sources is empty: name at least one, as in data.sources.speech.shards=shards/x data.sources.speech.labels=labels/x"
            )
        self._check_validation()
        for name, source in self.sources.items():
            _check_source(f"data.sources.{name}", source)
        shared = [name for name, source in self.sources.items() if source.get("share") is not None]
        if shared and len(shared) < len(self.sources):
            only = f"only {', '.join(shared)} has one: set it for all"
            raise ValueError(f"data.sources must all have a share or none (a share replaces hours × weight), but {only}")
        if not (0 <= self.validation_share < 1 and self.streams >= 1 and 0 <= self.max_skip_rate < 1):
            raise ValueError(
                "data.validation_share and data.max_skip_rate must lie in [0, 1) and data.streams be at least 1, but are "
                f"{self.validation_share}, {self.max_skip_rate}, {self.streams}"
            )
        if not self.validation_seconds > 0:
            raise ValueError(
                f"data.validation_seconds must be positive, but is {self.validation_seconds}: callbacks.validate_every=0 validates nothing"
            )

    def _check_validation(self) -> None:
        for name, source in self.validation.items():
            if set(source) != {"shards", "labels"} or not all(source.values()):
                raise ValueError(f"data.validation.{name} takes shards and labels, each a folder, but is {source}")
            _check_label_folders(f"data.validation.{name}.labels", source["labels"])
            if name in self.sources:
                raise ValueError(f"data.validation.{name} has the name of a training source: choose another name")
        if self.validation and self.validation_share:
            raise ValueError(
                f"data.validation names held-out sets, so data.validation_share must be 0, but is {self.validation_share:g}"
            )

    @property
    def all_sets(self) -> dict[str, dict[str, Any]]:
        """Sources and validation sets."""
        return self.sources | self.validation


def label_folders(labels: Any) -> list[Path]:
    """Folders in a source's `labels`, one or a list."""
    return [Path(folder) for folder in (labels if isinstance(labels, list | tuple) else [labels])]


def _check_source(place: str, source: dict[str, Any]) -> None:
    unknown = set(source) - set(_SOURCE_KEYS)
    if unknown:
        raise ValueError(f"{place}.{min(unknown)} is not a known key; a source takes {', '.join(_SOURCE_KEYS)}")
    for key in ("shards", "labels"):
        if not source.get(key):
            raise ValueError(
                f"{place}.{key} must name a folder, as in {place}.{key}={key}/NAME (or remove the source with ~{place})"
            )
    _check_label_folders(f"{place}.labels", source["labels"])
    for key in ("weight", "share"):
        value = source.get(key)
        if value is not None and (not isinstance(value, int | float) or not 0 < value < math.inf):
            raise ValueError(f"{place}.{key} must be a positive number, but is {value!r}: ~{place} removes the source")


def _check_label_folders(key: str, labels: Any) -> None:
    folders = labels if isinstance(labels, list | tuple) else [labels]
    named = {str(folder) for folder in folders if isinstance(folder, str | Path) and str(folder)}
    if len(named) < len(folders):
        raise ValueError(f"{key} must be a folder or a list of different folders, one for each codebook, but is {labels!r}")


@dataclass(frozen=True)
class Batching:
    """Micro-batches and global steps.

    Attributes:
        seconds: Audio of a global step, padding included; a multiple of `micro_seconds`.
        max_seconds: Longest row; longer utterances are cut (`split`) or cropped (the other policies). 15.625 s as fairseq's
            max_sample_size 250,000.
        min_seconds: Shorter utterances are left out, and counted. 2 s as fairseq's min_sample_size 32,000.
        micro_seconds: Budget of a micro-batch: rows × longest row, padding included (fairseq: max_tokens).
        policy: `split` cuts long utterances into nearly equal pieces; `fairseq_crop` crops every row of a micro-batch to its shortest
            (HuBERT's and WavLM's rule); `pad` crops only to `max_seconds` and pads.
        shards_per_block: Shards of one block, the range of sorting and shuffling.
        group: Micro-batches of about equal length that stay together, so that the ranks of a step get equal lengths.

    Raises:
        ValueError: If a length is not positive, the order min ≤ max ≤ micro is broken, or the policy is unknown.
    """

    seconds: float
    micro_seconds: float
    max_seconds: float = 15.625
    min_seconds: float = 2.0
    policy: Literal["split", "fairseq_crop", "pad"] = "split"
    shards_per_block: int = 20
    group: int = 4

    def __post_init__(self) -> None:
        if not 0.025 <= self.min_seconds <= self.max_seconds <= self.micro_seconds:
            raise ValueError(
                "lengths must satisfy 0.025 ≤ min_seconds ≤ max_seconds ≤ micro_seconds, but are "
                f"{self.min_seconds}, {self.max_seconds}, {self.micro_seconds}"
            )
        if self.seconds < self.micro_seconds or abs(self.seconds / self.micro_seconds - self.slots) > 1e-6:
            raise ValueError(
                f"batch.seconds must be a multiple of batch.micro_seconds, but {self.seconds} / {self.micro_seconds} = "
                f"{self.seconds / self.micro_seconds:.3f}: {max(1, self.slots) * self.micro_seconds:g} is the nearest"
            )
        if self.max_seconds > 1200:
            raise ValueError(f"max_seconds must be at most 1200, but is {self.max_seconds}")
        if self.policy not in ("split", "fairseq_crop", "pad"):
            raise ValueError(f"batch.policy must be split, fairseq_crop or pad, but is {self.policy!r}")
        if self.shards_per_block < 1 or self.group < 1:
            raise ValueError(f"shards_per_block and group must be at least 1, but are {self.shards_per_block}, {self.group}")

    @property
    def slots(self) -> int:
        """M, the micro-batches of a global step."""
        return round(self.seconds / self.micro_seconds)

    @property
    def max_frames(self) -> int:
        """Longest row in frames."""
        return frames_of_seconds(self.max_seconds)

    @property
    def min_frames(self) -> int:
        """Shortest row in frames."""
        return max(1, frames_of_seconds(self.min_seconds))

    @property
    def micro_frames(self) -> int:
        """Budget of a micro-batch in frames, padding included."""
        return max(self.max_frames, frames_of_seconds(self.micro_seconds))


@dataclass(frozen=True)
class SpanMasking:
    """Settings of the static span mask.

    Attributes:
        prob: Summed length of the spans over the row's frames, 0 … `length`. Spans overlap, so the masked share is smaller:
            about `1 − exp(−prob)`, .57 at .80 (fairseq: mask_prob).
        length: Frames of a span, ≥ 1 (fairseq: mask_length).
        min_masks: Least number of spans of a row, ≥ 0 (fairseq: min_masks).
        same_count: Cut every row down to the batch's smallest number of masked frames by unmasking frames at random, as
            fairseq's `require_same_masks` does (about .52 at .80).

    Raises:
        ValueError: If `length`, `min_masks` or `prob` is out of its range.
    """

    prob: float = 0.80
    length: int = 10
    min_masks: int = 2
    same_count: bool = False

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"masking.length must be at least 1 frame, but is {self.length}: 10 is usual")
        if self.min_masks < 0:
            raise ValueError(f"masking.min_masks must be at least 0, but is {self.min_masks}: 2 is usual")
        if not (math.isfinite(self.prob) and 0 <= self.prob <= self.length):
            raise ValueError(
                "masking.prob (summed length of the spans over the frames) must lie in 0 … masking.length, "
                f"but is {self.prob} with length {self.length}: 0.8 is usual"
            )


@dataclass(frozen=True)
class Mixing:
    """Settings of utterance mixing.

    Attributes:
        prob: Probability that a row is mixed (UniSpeech: mixing_prob).
        noise_prob: Probability that a mixed row takes noise instead of speech (UniSpeech: mixing_noise_prob).
        speech_db: Lowest and highest energy ratio, primary over scaled secondary, of a mixture with speech.
        noise_db: The same with noise.
        max_share: Longest overlap as a share of the primary, in (0, 1]; at .5 the primary stays the main speaker (UniSpeech:
            1 / mixing_max_len).
        mode: `paper`, or `unispeech` for the behaviour of Microsoft's code.

    Raises:
        ValueError: If a value is out of its range.
    """

    prob: float = 0.2
    noise_prob: float = 0.0
    speech_db: tuple[float, float] = (-5.0, 5.0)
    noise_db: tuple[float, float] = (-5.0, 20.0)
    max_share: float = 0.5
    mode: Mode = "paper"

    def __post_init__(self) -> None:
        for name in ("prob", "noise_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"mixing.{name} must lie in 0 … 1, but is {getattr(self, name)}: 0.2 is one row in five")
        for name in ("speech_db", "noise_db"):
            limits = tuple(float(limit) for limit in getattr(self, name))
            if len(limits) != 2 or not -math.inf < limits[0] <= limits[1] < math.inf:
                raise ValueError(f"mixing.{name} must be two finite limits in dB, the lower one first, but is {list(limits)}")
            object.__setattr__(self, name, limits)
        if not 0 < self.max_share <= 1:
            raise ValueError(
                f"mixing.max_share must lie in (0, 1], but is {self.max_share}: 0.5 is usual, and mixing.prob=0 switches mixing off"
            )
        if self.mode not in ("paper", "unispeech"):
            raise ValueError(f"mixing.mode must be paper or unispeech, but is {self.mode!r}")


@dataclass(frozen=True)
class Loading:
    """Loading of batches; nothing here changes the training data.

    Attributes:
        workers: Loader processes of each rank; 0 reads in the training process.
        prefetch: Micro-batches that each worker reads ahead.
        pin_memory: Page-lock batches, so that copies to a GPU are asynchronous; None = with a GPU.
        label_check_mib: MiB of each labelling that are compared with their checksums before the first update; the rest is compared in
            the background, before a checkpoint is written.

    Raises:
        ValueError: If a number is negative.
    """

    workers: int = 2
    prefetch: int = 4
    pin_memory: bool | None = None
    label_check_mib: int = 512

    def __post_init__(self) -> None:
        if self.workers < 0 or self.prefetch < 1 or self.label_check_mib < 0:
            raise ValueError(
                "loader.workers must be ≥ 0 and loader.prefetch ≥ 1 and loader.label_check_mib ≥ 0, but are "
                f"{self.workers}, {self.prefetch}, {self.label_check_mib}"
            )
