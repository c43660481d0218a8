"""MFCC features on the model's frame grid: the teacher of the first k-means iteration (HuBERT §III-A, SPEC §4.2).

Kaldi's frames without padding (`snip_edges`) cover 400 samples every 160. Frame 2i is samples [320 i, 320 i + 400), those of the model's
frame i, so the even frames are kept, after the deltas were taken at 100 Hz.
"""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openwavlm.audio.frames import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, num_frames

NUM_CEPSTRA = 13
NUM_FEATURES = 3 * NUM_CEPSTRA
DELTA_WINDOW = 5
SHIFT_SAMPLES = 160
FFT_SAMPLES = 512
NUM_BANDS = 23
LOW_HZ = 20.0
PRE_EMPHASIS = 0.97
LIFTER = 22.0
ENERGY_FLOOR = torch.finfo(torch.float32).eps
FRAMES_AT_A_TIME = 4000  # 40 s of audio in 35 MB, however long the recording

# Part of every label pack's identity, Kaldi's defaults included.
KALDI_SETTINGS: dict[str, float | int | bool | str] = {
    "sample_frequency": float(SAMPLE_RATE_HZ),
    "frame_length": 25.0,
    "frame_shift": 10.0,
    "num_ceps": NUM_CEPSTRA,
    "num_mel_bins": NUM_BANDS,
    "low_freq": LOW_HZ,
    "high_freq": 0.0,
    "preemphasis_coefficient": PRE_EMPHASIS,
    "remove_dc_offset": True,
    "window_type": "povey",
    "cepstral_lifter": LIFTER,
    "use_energy": False,
    "dither": 0.0,
    "snip_edges": True,
}

MFCC_SETTINGS: dict[str, object] = {
    "name": "mfcc",
    "dim": NUM_FEATURES,
    "waveform_scale": "[-1, 1)",
    "kaldi": KALDI_SETTINGS,
    "delta_window": DELTA_WINDOW,
    "delta_orders": 2,
    "kept_frames": "even",
}


@lru_cache(maxsize=1)
def _tables() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Window (400,), mel bands (23, 257), cosine transform (23, 13) and lifter (13,), float32 as in Kaldi's `feature-functions`.

    Povey's window is a Hann window to the power of .85. The triangular bands have equal width on the scale 1127 ln(1 + f / 700) and
    exclude the Nyquist frequency. The transform is orthonormal (type II).
    """
    window = torch.hann_window(RECEPTIVE_FIELD_SAMPLES, periodic=False).pow(0.85)
    lowest, highest = (1127 * math.log(1 + hertz / 700) for hertz in (LOW_HZ, SAMPLE_RATE_HZ / 2))
    width = (highest - lowest) / (NUM_BANDS + 1)
    edges = lowest + torch.arange(NUM_BANDS + 2)[:, None] * width
    frequencies = SAMPLE_RATE_HZ / FFT_SAMPLES * torch.arange(FFT_SAMPLES / 2)
    mel = 1127 * (1 + frequencies / 700).log()
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    bands = F.pad(torch.minimum(rising, falling).clamp(min=0), (0, 1))
    order = torch.arange(float(NUM_CEPSTRA))
    cosines = torch.cos(math.pi / NUM_BANDS * (torch.arange(float(NUM_BANDS)) + 0.5)[:, None] * order)
    cosines[:, 0] = math.sqrt(0.5)
    lifter = 1 + 0.5 * LIFTER * torch.sin(math.pi * order / LIFTER)
    return window, bands, cosines * math.sqrt(2 / NUM_BANDS), lifter


def _cepstra(samples: Tensor) -> Tensor:
    """Liftered cepstra at 100 Hz, float32 (frames, 13); samples (at least 400,), int16, or floating point in [-1, 1)."""
    window, bands, cosines, lifter = _tables()
    parts = []
    for frames in samples.unfold(0, RECEPTIVE_FIELD_SAMPLES, SHIFT_SAMPLES).split(FRAMES_AT_A_TIME):
        # Converted part by part: twelve hours in float32 are 2.8 GB.
        frames = frames.to(torch.float32) / 32768 if frames.dtype == torch.int16 else frames.to(torch.float32)
        centred = frames - frames.mean(dim=1, keepdim=True)
        # A frame's first sample has itself as its predecessor.
        emphasised = centred - PRE_EMPHASIS * torch.cat([centred[:, :1], centred[:, :-1]], dim=1)
        power = torch.fft.rfft(emphasised * window, n=FFT_SAMPLES).abs().square()
        parts.append((power @ bands.T).clamp(min=ENERGY_FLOOR).log() @ cosines * lifter)
    return torch.cat(parts)


def _deltas(frames: Tensor) -> Tensor:
    """Slope of the regression over five frames, the first and the last frame repeated; (frames, features) → the same shape."""
    padded = torch.cat([frames[:1], frames[:1], frames, frames[-1:], frames[-1:]])
    before2, before1, after1, after2 = (padded[start : start + len(frames)] for start in (0, 1, 3, 4))
    # Every product with 1 or 2 is exact, so fused and separate multiplication and addition agree on every CPU.
    return (after1 - (2 * before2 + before1) + 2 * after2) / 10


def mfcc_features(waveform: np.ndarray | Tensor) -> Tensor:
    """Computes 13 cepstra with their first and second differences, one row a model frame, not normalised.

    Args:
        waveform: (samples,) at 16 kHz, int16, or floating point in [-1, 1); any other shape or type is a ValueError.

    Returns:
        float32 (frames, 39) with exactly `frames.num_frames(samples)` rows.
    """
    samples = torch.as_tensor(waveform)
    if samples.ndim != 1:
        raise ValueError(f"a waveform must have one dimension (samples,), but has the shape {tuple(samples.shape)}")
    if samples.dtype != torch.int16 and not samples.is_floating_point():
        raise ValueError(f"a waveform must be int16 or floating point, but is {samples.dtype}: convert it first")
    if len(samples) < RECEPTIVE_FIELD_SAMPLES:
        return torch.zeros((0, NUM_FEATURES))
    values = _cepstra(samples)
    features = torch.empty((num_frames(len(samples)), NUM_FEATURES))
    for start in range(0, NUM_FEATURES, NUM_CEPSTRA):
        features[:, start : start + NUM_CEPSTRA] = values[::2]
        values = _deltas(values)
    return features
