"""Log-mel features lie on the model's frame grid."""

import numpy as np
import pytest
import torch

from openwavlm.audio.frames import num_frames
from openwavlm.audio.spectra import LOGMEL_SETTINGS, NUM_BANDS, log_mel, normalised_log_mel


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


def log_mel_by_hand(audio: np.ndarray) -> np.ndarray:
    """Power of 400 Hann-weighted samples at 512 frequencies, in 40 triangles of equal width on the HTK mel scale from 20 to 8,000 Hz."""

    def mel(hertz: np.ndarray) -> np.ndarray:
        return 2595 * np.log10(1 + hertz / 700)

    edges = mel(np.array(20.0)) + np.arange(42) / 41 * (mel(np.array(8000.0)) - mel(np.array(20.0)))
    bins = mel(np.arange(257) * 16_000 / 512)
    width = edges[1] - edges[0]
    bands = np.maximum(0, 1 - np.abs(bins[:, None] - edges[None, 1:-1]) / width)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)
    found = []
    for start in range(0, len(audio) - 399, 320):
        power = np.abs(np.fft.rfft(audio[start : start + 400] * window, 512)) ** 2
        found.append(np.log(power @ bands + 1e-7))
    return np.array(found)


@pytest.mark.parametrize("level", [1.0, 1e-3, 1e-5])
def test_log_mels_are_the_written_out_formula(level: float) -> None:
    audio = level * waveform(5000).double()
    wanted = log_mel_by_hand(audio.numpy())
    np.testing.assert_allclose(log_mel(audio).numpy(), wanted, atol=2e-4)
    centred = wanted - wanted.mean(axis=0)
    normalised = centred / np.sqrt(np.mean(centred**2, axis=0) + 1e-3)
    np.testing.assert_allclose(normalised_log_mel(audio).numpy(), normalised, atol=3e-3)


def test_padding_counts_for_nothing_in_the_norm_and_comes_out_as_zero() -> None:
    samples = [5000, 2400, 300]  # of 15, 7 and no frames
    audio = torch.zeros(3, 5000)
    for row, count in enumerate(samples):
        audio[row, :count] = waveform(count, seed=row) * 10.0**-row
    loud = audio.clone()
    loud[1, 2400:] = 0.7
    for given in (audio, loud):
        found = normalised_log_mel(given, torch.tensor(samples)).numpy()
        for row, count in enumerate(samples):
            frames = num_frames(count)
            if frames:
                spectra = log_mel_by_hand(audio[row, :count].double().numpy())
                centred = spectra - spectra.mean(axis=0)
                wanted = centred / np.sqrt(np.mean(centred**2, axis=0) + 1e-3)
                np.testing.assert_allclose(found[row, :frames], wanted, atol=3e-3)
            assert np.isfinite(found[row]).all() and not found[row, frames:].any()


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
