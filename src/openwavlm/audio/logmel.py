"""Log-mel spectra as a control beside every learnt feature and as a warm-up target (DESIGN §8); the arithmetic is `spectra`'s."""

from openwavlm.audio.frames import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ
from openwavlm.audio.spectra import FFT_SAMPLES, FLOOR, LOW_HZ, NUM_BANDS, log_mel, normalised_log_mel

__all__ = ["LOGMEL_SETTINGS", "NUM_BANDS", "log_mel", "normalised_log_mel"]

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
