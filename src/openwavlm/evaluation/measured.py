"""Figures of one kind of features as arrays, and their cache file."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from openwavlm.evaluation.conditions import CONDITIONS
from openwavlm.runtime.atomic import atomic_file
from openwavlm.runtime.resources import check_of_the_file, read_again


@dataclass(frozen=True, eq=False)
class Measured:
    """Figures of one kind of features, all as arrays for `.npz`.

    Attributes:
        dev_accuracy: (layers,) phone accuracy on dev frames, at the best penalty.
        penalty: (layers,) that penalty.
        chosen: () the layer with the best dev accuracy.
        frames: int64 (conditions, utterances): test frames with a phone; 0 where an utterance is not judged in that condition.
        correct: int64 (conditions, layers, utterances): those with the right phone; −1 for layers not judged in that condition.
        correct_multi: The same of probes fitted on multi-condition training speech, with their penalties chosen on multi-condition dev
            speech; −1 for layers without such a probe.
        penalty_multi: (layers,) penalty of those probes; NaN without one.
        units: int32 (conditions, seeds, speakers, phones, units): frames by phone and unit of the unit layer, in rows of speakers as in
            `intervals.group_places`.
        units_layer: () layer of the units.
        speaker_dev: (layers,) accuracy of the speaker probe among dev speakers; NaN where there are too few.
        speaker_test: (layers,) the same among test speakers.
        audio_seconds: () audio that went through the features.
    """

    dev_accuracy: np.ndarray
    penalty: np.ndarray
    chosen: np.ndarray
    frames: np.ndarray
    correct: np.ndarray
    correct_multi: np.ndarray
    penalty_multi: np.ndarray
    units: np.ndarray
    units_layer: np.ndarray
    speaker_dev: np.ndarray
    speaker_test: np.ndarray
    audio_seconds: np.ndarray

    def accuracy(self, layer: int, condition: str = "clean") -> float:
        """Phone accuracy on test frames."""
        place = CONDITIONS.index(condition)
        return float(self.correct[place, layer].sum() / max(self.frames[place].sum(), 1))

    def save(self, path: Path) -> None:
        """Writes all arrays, atomically."""
        with atomic_file(path) as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "Measured":
        """Reads what `save` wrote.

        Raises:
            ValueError: If it is damaged.
        """

        def read() -> "Measured":
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{field.name: arrays[field.name] for field in fields(cls)})

        try:
            return read_again(read, path)
        except Exception as error:  # an archive that is damaged fails in many ways
            check_of_the_file(error, path)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path} is damaged ({reason}): delete it, and it is measured again") from error
