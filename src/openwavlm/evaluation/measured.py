"""What a probe is asked for and what came out: settings, figures as arrays, and their names in a cache."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.evaluation.features import Features
from openwavlm.evaluation.ridge import PENALTIES
from openwavlm.evaluation.sets import ProbeSet
from openwavlm.runtime.atomic import atomic_file
from openwavlm.runtime.resources import check_of_the_file, read_again

# Raise it when a figure of unchanged features changes: cached baselines are then measured again.
VERSION = 1
CONDITIONS = ("clean", "telephone", "noise10")
NOISE_SNR_DB = 10.0


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """What a probe does; part of the key of every cached baseline.

    Attributes:
        clusters: Units of the codebooks.
        codebook_seeds: Seeds of the codebooks.
        codebook_frames: Training frames that a codebook is fitted on, thinned evenly.
        degraded_seconds: Test audio that is judged in its degraded versions too, in turn from all speakers.
        penalties: Regularisations to choose from.
        seed: Seed of the noise and of the untrained encoder.
    """

    clusters: int = 100
    codebook_seeds: tuple[int, ...] = (0, 1, 2)
    codebook_frames: int = 20_000
    degraded_seconds: float = 300.0
    penalties: tuple[float, ...] = PENALTIES
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Measured:
    """What came out for one kind of features; arrays only, so that it is stored as `.npz`.

    Attributes:
        dev_accuracy: (layers,) share of dev frames whose phone is right, at the best penalty.
        penalty: (layers,) that penalty.
        chosen: () the layer with the best dev accuracy.
        frames: int64 (conditions, utterances): test frames with a phone; 0 where an utterance is not judged in that condition.
        correct: int64 (conditions, layers, utterances): how many of them are right. −1 for layers not judged in that condition.
        units: int64 (conditions, seeds, phones, clusters): frames by phone and unit of the unit layer.
        units_layer: () which layer the units are of.
        speaker_dev: (layers,) accuracy of the speaker probe among dev speakers; NaN where there are too few.
        speaker_test: (layers,) the same among test speakers.
        audio_seconds: () audio that went through the features.
    """

    dev_accuracy: np.ndarray
    penalty: np.ndarray
    chosen: np.ndarray
    frames: np.ndarray
    correct: np.ndarray
    units: np.ndarray
    units_layer: np.ndarray
    speaker_dev: np.ndarray
    speaker_test: np.ndarray
    audio_seconds: np.ndarray

    def accuracy(self, layer: int, condition: str = "clean") -> float:
        """Share of test frames whose phone is right."""
        place = CONDITIONS.index(condition)
        return float(self.correct[place, layer].sum() / max(self.frames[place].sum(), 1))

    def save(self, path: Path) -> None:
        """Writes all arrays, atomically."""
        with atomic_file(path) as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "Measured":
        """Reads what `save` wrote.

        Raises:
            ValueError: If it is damaged.
        """
        try:
            return read_again(lambda: cls._read(path), path)
        except Exception as error:  # an archive that is damaged fails in many ways
            check_of_the_file(error, path)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path} is damaged ({reason}): delete it, and it is measured again") from error

    @classmethod
    def _read(cls, path: Path) -> "Measured":
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def cache_name(extract: Features, sets: Sequence[ProbeSet], settings: ProbeSettings, units_layer: int | None = None) -> str:
    """File name of a cached measurement: a hash over features, settings, sets and this module's version."""
    assert extract.settings is not None
    content = {
        "version": VERSION,
        "features": extract.settings,
        "sets": [probe_set.fingerprint for probe_set in sets],
        "settings": asdict(settings),
        "units_layer": units_layer,
    }
    digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()
    return f"{extract.settings['name']}-{digest}.npz"


def summary(value: Any) -> Any:
    """A figure rounded to 5 places for JSON, None for one that is not finite; lists and dictionaries entry by entry."""
    if isinstance(value, dict):
        return {name: summary(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [summary(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 5) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
