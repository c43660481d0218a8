"""Log-mel spectra on the model's frame grid: a baseline feature, a warm-up target and the front end of `model=nano_mel`.

Frame i is the power spectrum of samples [320 i, 320 i + 400), those of the model's frame i.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from openwavlm.audio.frames import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, num_frames

NUM_BANDS = 40
FFT_SAMPLES = 512
LOW_HZ = 20.0
# Power of a frame of about −80 dBFS in one band, so that digital silence and the faintest noise look alike.
FLOOR = 1e-7

LOGMEL_SETTINGS: dict[str, object] = {
    "name": "logmel",
    "dim": NUM_BANDS,
    "waveform_scale": "[-1, 1)",
    "window": "hann",
    "frame_samples": RECEPTIVE_FIELD_SAMPLES,
    "fft_samples": FFT_SAMPLES,
    "low_hz": LOW_HZ,
    "high_hz": SAMPLE_RATE_HZ / 2,
    "mel_scale": "htk",
    "floor": FLOOR,
    "normalised": "mean and variance of each band over the utterance",
}


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


@lru_cache(maxsize=4)
def _window_and_bands(device: torch.device) -> tuple[Tensor, Tensor]:
    """Hann window (400,) and triangular bands (257, 40) of equal width on the mel scale."""
    edges = np.linspace(_mel(LOW_HZ), _mel(SAMPLE_RATE_HZ / 2), NUM_BANDS + 2)
    bins = _mel(np.arange(FFT_SAMPLES // 2 + 1) * SAMPLE_RATE_HZ / FFT_SAMPLES)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bands = torch.from_numpy(np.maximum(0, np.minimum(rising, falling)).astype(np.float32))
    return torch.hann_window(RECEPTIVE_FIELD_SAMPLES, periodic=False, device=device), bands.to(device)


def log_mel(waveforms: Tensor) -> Tensor:
    """Logarithms of the energies in 40 mel bands, not normalised; float32 under autocast too.

    Args:
        waveforms: Floating point (…, samples) at 16 kHz in [−1, 1); any other type is a ValueError.

    Returns:
        float32 (…, frames, 40) with exactly `frames.num_frames(samples)` frames, on the waveforms' device.
    """
    if not waveforms.is_floating_point():
        raise ValueError(f"waveforms must be floating point, but are {waveforms.dtype}: divide 16-bit samples by 32768")
    if num_frames(waveforms.shape[-1]) == 0:
        return waveforms.new_zeros((*waveforms.shape[:-1], 0, NUM_BANDS), dtype=torch.float32)
    window, bands = _window_and_bands(waveforms.device)
    pieces = waveforms.float().unfold(-1, RECEPTIVE_FIELD_SAMPLES, HOP_SAMPLES)
    power = torch.fft.rfft(pieces * window, n=FFT_SAMPLES).abs().square()
    with torch.autocast(waveforms.device.type, enabled=False):
        return (power @ bands + FLOOR).log()


def normalised_log_mel(waveforms: Tensor, num_samples: Tensor | None = None) -> Tensor:
    """`log_mel` with mean 0 and variance 1 of each band over the utterance, which removes the channel's spectral envelope.

    `num_samples`, int64 (…,), are the valid samples (None: all); frames beyond them are 0.
    """
    spectra = log_mel(waveforms)
    if num_samples is not None:
        frames = num_frames(num_samples)[..., None, None]
        valid = torch.arange(spectra.shape[-2], device=spectra.device)[:, None] < frames
        count = frames.clamp(min=1)
        centred = (spectra - (spectra * valid).sum(dim=-2, keepdim=True) / count) * valid
        return centred * torch.rsqrt(centred.square().sum(dim=-2, keepdim=True) / count + 1e-3)
    centred = spectra - spectra.mean(dim=-2, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=-2, keepdim=True) + 1e-3)
