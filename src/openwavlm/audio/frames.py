"""Sample ↔ frame arithmetic of the 16 kHz convolutional front end (WavLM §III; kernel 10-3-3-3-3-2-2, stride 5-2-2-2-2-2-2).

Frame `f` of the model covers exactly the samples [320 f, 320 f + 400). Crops, masks, labels and mixing marks all use this grid.
"""

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = 320
RECEPTIVE_FIELD_SAMPLES = 400
FRAME_RATE_HZ = SAMPLE_RATE_HZ / HOP_SAMPLES

Integers = TypeVar("Integers", int, np.ndarray, "torch.Tensor")


def num_frames(num_samples: Integers) -> Integers:
    """Number of model frames of `num_samples` samples: `1 + (n − 400) // 320`, and 0 below one receptive field."""
    frames = (num_samples - RECEPTIVE_FIELD_SAMPLES) // HOP_SAMPLES + 1
    if isinstance(frames, int):
        return max(frames, 0)
    return np.maximum(frames, 0) if isinstance(frames, np.ndarray | np.integer) else frames.clamp(min=0)


def num_samples_of(frames: Integers) -> Integers:
    """Samples that `frames` ≥ 1 consecutive frames cover: `320 (n − 1) + 400`."""
    return (frames - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES


def frames_of_seconds(seconds: float) -> int:
    """Largest number of frames whose samples fit into `seconds`."""
    return num_frames(round(seconds * SAMPLE_RATE_HZ))
