"""Log-mel features lie on the model's frame grid."""

import numpy as np
import pytest
import torch

from openwavlm.frames import num_frames
from openwavlm.targets.logmel import LOGMEL_SETTINGS, NUM_BANDS, log_mel, normalised_log_mel


def waveform(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(samples, generator=torch.Generator().manual_seed(seed)) - 0.5


def test_every_length_gives_exactly_the_models_frames() -> None:
    for samples in [0, 399, 400, 719, 720, 721, *range(400, 1361, 7), *range(1361, 40_000, 1237)]:
        assert log_mel(waveform(samples)).shape == (num_frames(samples), NUM_BANDS)
    assert log_mel(torch.zeros(3, 2, 1000)).shape == (3, 2, 2, NUM_BANDS)
    assert LOGMEL_SETTINGS["dim"] == NUM_BANDS


@pytest.mark.parametrize("frame", [0, 1, 7, 24])
def test_a_frame_depends_on_the_models_400_samples_and_on_no_other(frame: int) -> None:
    audio = waveform(320 * 24 + 400)
    first, stop = 320 * frame, 320 * frame + 400
    outside = audio.clone()
    outside[:first], outside[stop:] = 0.3, -0.3
    assert torch.equal(log_mel(outside)[frame], log_mel(audio)[frame])
    for edge in (first + 1, stop - 2):
        inside = audio.clone()
        inside[edge] += 0.9
        assert not torch.equal(log_mel(inside)[frame], log_mel(audio)[frame])


@pytest.mark.parametrize("frequency_hz", [150.0, 600.0, 1000.0, 3000.0, 7000.0])
def test_a_tone_is_loudest_in_the_band_that_holds_it(frequency_hz: float) -> None:
    tone = 0.5 * torch.sin(2 * torch.pi * frequency_hz * torch.arange(4000) / 16_000)
    edges = np.linspace(2595 * np.log10(1 + 20 / 700), 2595 * np.log10(1 + 8000 / 700), NUM_BANDS + 2)
    centre_hz = 700 * (10 ** (edges[1:-1] / 2595) - 1)
    loudest = int(log_mel(tone).mean(dim=0).argmax())
    assert abs(loudest - int(np.abs(centre_hz - frequency_hz).argmin())) <= 1


def test_normalised_bands_have_mean_zero_and_variance_one_and_forget_the_level() -> None:
    audio = waveform(32_000) * torch.linspace(0.01, 1, 32_000)
    spectra = normalised_log_mel(audio)
    assert spectra.mean(dim=0).abs().max() < 1e-4
    torch.testing.assert_close(spectra.var(dim=0, unbiased=False), torch.ones(NUM_BANDS), rtol=0.02, atol=0.02)
    torch.testing.assert_close(normalised_log_mel(audio * 0.5), spectra, rtol=0.01, atol=0.01)


def test_silence_is_finite_and_integers_are_refused() -> None:
    assert torch.isfinite(normalised_log_mel(torch.zeros(4000))).all()
    with pytest.raises(ValueError, match="must be floating point"):
        log_mel(torch.zeros(4000, dtype=torch.int16))
