"""MFCC features on the model's frame grid: the teacher of the first k-means iteration (HuBERT §III-A, SPEC §4.2).

Kaldi's frames without padding (`snip_edges`) come every 160 samples and cover 400; frame 2i is samples [320 i, 320 i + 400), which is
what the model's frame i sees. So the even frames are kept, after the deltas were taken at 100 Hz.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from openwavlm.frames import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, num_frames

with warnings.catch_warnings():
    # Some torchaudio releases (2.8, 2.9) announce deprecations on import; nothing used here is among them.
    warnings.simplefilter("ignore")
    from torchaudio.compliance import kaldi
    from torchaudio.functional import compute_deltas

NUM_CEPSTRA = 13
NUM_FEATURES = 3 * NUM_CEPSTRA
DELTA_WINDOW = 5

# Spelt out although many are Kaldi's defaults: they are part of every labelling's identity.
KALDI_SETTINGS: dict[str, float | int | bool | str] = {
    "sample_frequency": float(SAMPLE_RATE_HZ),
    "frame_length": 25.0,
    "frame_shift": 10.0,
    "num_ceps": NUM_CEPSTRA,
    "num_mel_bins": 23,
    "low_freq": 20.0,
    "high_freq": 0.0,
    "preemphasis_coefficient": 0.97,
    "remove_dc_offset": True,
    "window_type": "povey",
    "cepstral_lifter": 22.0,
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


def mfcc_features(waveform: np.ndarray | Tensor) -> Tensor:
    """Computes 13 cepstra with their first and second differences, one row a model frame.

    Args:
        waveform: (samples,) at 16 kHz; int16, or floating point in [-1, 1).

    Returns:
        float32 (frames, 39) with exactly `frames.num_frames(samples)` rows; no normalisation of mean or variance.

    Raises:
        ValueError: If the waveform is not one-dimensional, or neither int16 nor floating point.
    """
    samples = torch.as_tensor(waveform)
    if samples.ndim != 1:
        raise ValueError(f"a waveform must have one dimension (samples,), but has the shape {tuple(samples.shape)}")
    if samples.dtype == torch.int16:
        samples = samples.to(torch.float32) / 32768
    elif samples.is_floating_point():
        samples = samples.to(torch.float32)
    else:
        raise ValueError(f"a waveform must be int16 or floating point, but is {samples.dtype}: convert it first")
    if len(samples) < RECEPTIVE_FIELD_SAMPLES:
        return samples.new_zeros((0, NUM_FEATURES))
    cepstra = kaldi.mfcc(samples[None], **KALDI_SETTINGS).T
    deltas = compute_deltas(cepstra, win_length=DELTA_WINDOW)
    delta_deltas = compute_deltas(deltas, win_length=DELTA_WINDOW)
    features = torch.cat([cepstra, deltas, delta_deltas])[:, ::2].T.contiguous()
    assert features.shape == (num_frames(len(samples)), NUM_FEATURES)
    return features
