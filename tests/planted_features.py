"""Features that are written into the audio itself, so that a test decides what each frame of each layer holds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from openwavlm.audio.frames import num_frames
from openwavlm.evaluation.sets import ProbeSet, ProbeUtterance

NUMBERS = 8  # of one frame
_SAMPLES = 40  # that carry one number
STEP = 1 / 4096  # of a number, so that int16 holds −8 … 8


def audio_of(values: np.ndarray) -> np.ndarray:
    """Audio int16 (320 (frames − 1) + 400,) that carries `values` (frames, at most 8) in −8 … 8, rounded to `STEP`."""
    whole = np.zeros((len(values), NUMBERS))
    whole[:, : values.shape[1]] = values
    return np.append(np.repeat(np.round(whole / STEP).ravel(), _SAMPLES), np.zeros(80)).astype(np.int16)


class Planted:
    """Reads the numbers back: layer n of a frame is its numbers `columns[n]`.

    Args:
        columns: Numbers of each layer.
        standardise: As of `Features`.
    """

    def __init__(self, columns: Sequence[Sequence[int]], *, standardise: bool = False) -> None:
        self.columns = [list(numbers) for numbers in columns]
        self.dims = tuple(len(numbers) for numbers in columns)
        self.settings: dict[str, Any] | None = {"name": "planted"}
        self.device = torch.device("cpu")
        self.standardise = standardise
        self.waveforms: list[np.ndarray] = []

    def __call__(self, waveforms: np.ndarray, layers: Sequence[int]) -> list[torch.Tensor]:
        self.waveforms += list(waveforms)
        frames = num_frames(waveforms.shape[1])
        carried = waveforms[:, : 320 * frames].reshape(len(waveforms), frames, NUMBERS, _SAMPLES).mean(axis=3) * STEP
        return [torch.from_numpy(carried[..., self.columns[layer]]).float() for layer in layers]


def planted_set(speakers: dict[str, list[tuple[np.ndarray, np.ndarray]]], inventory: Sequence[str]) -> ProbeSet:
    """Speaker → (values (frames, numbers), phones (frames,)) of each utterance, as a probe set."""
    return ProbeSet(
        tuple(
            ProbeUtterance(audio_of(values), phones, speaker, f"{speaker}-{number}")
            for speaker, utterances in speakers.items()
            for number, (values, phones) in enumerate(utterances)
        ),
        tuple(inventory),
    )


def frames_of(probe_set: ProbeSet, columns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers `columns` float64 (frames, columns) and phones of all frames of a set, utterance after utterance."""
    values = [
        utterance.recorded()[: 320 * utterance.frames].reshape(-1, NUMBERS, _SAMPLES).mean(axis=2)[:, list(columns)] * STEP
        for utterance in probe_set.utterances
    ]
    return np.concatenate(values), np.concatenate([utterance.phones for utterance in probe_set.utterances])
