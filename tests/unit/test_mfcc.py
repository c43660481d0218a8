"""MFCC features lie on the model's frame grid."""

import numpy as np
import pytest
import torch

from closeness import assert_close_to_scale
from openwavlm.audio.frames import num_frames
from openwavlm.audio.mfcc import MFCC_SETTINGS, NUM_FEATURES, mfcc_features
from openwavlm.labels.minibatch import fit_minibatch_kmeans
from synthetic import speech_like
from torch_audio import torchaudio


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


def reference(audio: np.ndarray) -> np.ndarray:
    """What fairseq's HuBERT takes its labels from, at 100 Hz, thinned to even frames; differences in float64."""
    samples = torch.from_numpy(audio).float() / 32768
    cepstra = torchaudio().compliance.kaldi.mfcc(samples[None], sample_frequency=16_000, use_energy=False).double().numpy()
    slope = differences(cepstra)
    return np.concatenate([cepstra, slope, differences(slope)], axis=1)[::2]


@pytest.mark.parametrize("samples", [400, 560, 1000, 16_000, 33_333])
def test_the_values_are_fairseqs_hundred_hertz_features_thinned_to_even_frames(samples: int) -> None:
    assert_close_to_scale(mfcc_features(waveform(samples)), reference(waveform(samples)))


def kinds_of_audio() -> dict[str, np.ndarray]:
    """Ten seconds each of what differs in level, colour and range."""
    generator, time = np.random.default_rng(1), np.arange(160_000) / 16_000
    noise = generator.standard_normal(160_000)
    return {
        "digital silence": np.zeros(160_000),
        "last bit": generator.integers(-1, 2, 160_000),
        "constant": np.full(160_000, 12_000.0),
        "clipped": np.clip(40_000 * noise, -32_768, 32_767),
        "tone": 32_000 * np.sin(2 * np.pi * 440 * time),
        "rumble": np.cumsum(20 * noise),
        "bursts": 8000 * noise * (np.sin(2 * np.pi * time) > 0.9),
    }


@pytest.mark.parametrize("kind", kinds_of_audio())
def test_the_values_are_torchaudios_for_any_level_and_colour(kind: str) -> None:
    audio = kinds_of_audio()[kind].astype(np.int16)
    assert_close_to_scale(mfcc_features(audio), reference(audio))


def test_every_label_of_a_corpus_is_the_one_of_torchaudios_features() -> None:
    corpus = [speech_like(4.0, seed=seed) for seed in range(30)]
    ours, theirs = ([features(audio) for audio in corpus] for features in (mfcc_features, reference))
    codebook = fit_minibatch_kmeans(np.concatenate(ours), 100, seed=0)
    for mine, other in zip(ours, theirs, strict=True):
        assert np.array_equal(codebook.assign(mine.numpy()), codebook.assign(other.astype(np.float32)))


@pytest.mark.parametrize("frames_at_a_time", [1, 7, 1000])
def test_features_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch, frames_at_a_time: int) -> None:
    audio = waveform(50_000)
    whole = mfcc_features(audio)
    monkeypatch.setattr("openwavlm.audio.mfcc.FRAMES_AT_A_TIME", frames_at_a_time)
    assert_close_to_scale(mfcc_features(audio), whole, 1e-6)


def test_a_long_recording_keeps_a_part_of_its_frames_in_memory() -> None:
    largest = []
    real = torch.fft.rfft

    def rfft(frames: torch.Tensor, **named: int) -> torch.Tensor:
        largest.append(len(frames))
        return real(frames, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.fft, "rfft", rfft)
        assert len(mfcc_features(waveform(120 * 16_000))) == num_frames(120 * 16_000)
    assert max(largest) <= 4000 and sum(largest) == 1 + (120 * 16_000 - 400) // 160


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


def test_the_settings_that_existing_codebooks_name_have_not_changed() -> None:
    assert MFCC_SETTINGS == {
        "name": "mfcc",
        "dim": 39,
        "waveform_scale": "[-1, 1)",
        "kaldi": {
            "sample_frequency": 16_000.0,
            "frame_length": 25.0,
            "frame_shift": 10.0,
            "num_ceps": 13,
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
        },
        "delta_window": 5,
        "delta_orders": 2,
        "kept_frames": "even",
    }
