"""MFCC features lie on the model's frame grid."""

import numpy as np
import pytest
import torch
import torchaudio

from openwavlm.frames import num_frames
from openwavlm.targets.mfcc import MFCC_SETTINGS, NUM_FEATURES, mfcc_features


def waveform(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-12_000, 12_000, samples).astype(np.int16)


def test_every_length_gives_exactly_the_models_frames() -> None:
    # Steps that share no factor with the hop meet every remainder class.
    lengths = [*range(400, 1361, 7), *range(1361, 40_000, 1237), 399, 400, 719, 720, 721, 15 * 16_000]
    for samples in lengths:
        assert mfcc_features(waveform(samples)).shape == (num_frames(samples), NUM_FEATURES)


def test_audio_below_one_receptive_field_has_no_frames() -> None:
    assert mfcc_features(waveform(399)).shape == (0, NUM_FEATURES)
    assert mfcc_features(waveform(0)).shape == (0, NUM_FEATURES)


@pytest.mark.parametrize("samples", [400, 560, 1000, 16_000, 33_333])
def test_the_values_are_fairseqs_hundred_hertz_features_thinned_to_even_frames(samples: int) -> None:
    audio = torch.from_numpy(waveform(samples)).float() / 32768
    cepstra = torchaudio.compliance.kaldi.mfcc(audio[None], sample_frequency=16_000, use_energy=False)
    slow = differences(differences(cepstra.numpy().astype(np.float64)))
    reference = np.concatenate([cepstra.numpy(), differences(cepstra.numpy().astype(np.float64)), slow], axis=1)[::2]
    np.testing.assert_allclose(mfcc_features(waveform(samples)).numpy(), reference, rtol=1e-4, atol=1e-4)


def differences(frames: np.ndarray) -> np.ndarray:
    """Regression over five frames with repeated ends, written out."""
    padded = np.concatenate([frames[:1]] * 2 + [frames] + [frames[-1:]] * 2)
    count = len(frames)
    return sum(n * (padded[2 + n : 2 + n + count] - padded[2 - n : 2 - n + count]) for n in (1, 2)) / 10


@pytest.mark.parametrize("frame", [0, 1, 7, 23, 24])
def test_a_frames_cepstra_depend_on_the_models_400_samples_and_on_no_other(frame: int) -> None:
    audio = waveform(320 * 24 + 400)
    first, stop = 320 * frame, 320 * frame + 400
    outside = audio.copy()
    outside[:first], outside[stop:] = 5000, -5000
    before = mfcc_features(audio)[frame, :13]
    assert torch.equal(mfcc_features(outside)[frame, :13], before)
    for edge in (first, stop - 1):
        inside = audio.copy()
        inside[edge] += 9000
        assert not torch.equal(mfcc_features(inside)[frame, :13], before)


def test_integers_and_floats_of_the_same_audio_agree() -> None:
    audio = waveform(5000)
    as_float = torch.from_numpy(audio).double() / 32768
    assert torch.equal(mfcc_features(audio), mfcc_features(as_float))


def test_silence_gives_finite_features() -> None:
    assert torch.isfinite(mfcc_features(np.zeros(4000, dtype=np.int16))).all()


@pytest.mark.parametrize("wrong", [np.zeros((1, 4000), np.int16), np.zeros(4000, np.int32)])
def test_other_shapes_and_types_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a waveform must"):
        mfcc_features(wrong)


def test_the_named_settings_say_what_is_computed() -> None:
    assert MFCC_SETTINGS["dim"] == NUM_FEATURES == mfcc_features(waveform(4000)).shape[1]
