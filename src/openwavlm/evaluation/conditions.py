"""Conditions of judged audio: clean, through a telephone's band, with noise. Pure functions of waveform and seed."""

from collections.abc import Callable, Sequence

import numpy as np

from openwavlm.audio.encode import pcm_id, pcm_md5
from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.runtime.randomness import stable_hash

CONDITIONS = ("clean", "telephone", "noise10")
NOISE_SNR_DB = 10.0
TELEPHONE_HZ = (300.0, 3400.0)

Change = Callable[[np.ndarray], np.ndarray]


def change_of(condition: str, seed: int) -> Change | None:
    """Change that one of `CONDITIONS` makes to a waveform; None for `clean`."""
    if condition == "clean":
        return None
    if condition == "telephone":
        return telephone
    return lambda waveform: add_noise(waveform, NOISE_SNR_DB, seed=seed, name=pcm_id(pcm_md5(waveform)))


def conditions_in_turn(speakers: Sequence[str], seed: int) -> list[Change | None]:
    """Change of each utterance such that the conditions take turns within every speaker: multi-condition speech.

    Args:
        speakers: Speaker of each utterance.
        seed: Seed of the noise.
    """
    changes = [change_of(condition, seed) for condition in CONDITIONS]
    # The first condition differs between speakers, so that speakers with one utterance do not all have clean speech.
    turn = {speaker: place for place, speaker in enumerate(sorted(set(speakers)))}
    found = []
    for speaker in speakers:
        found.append(changes[turn[speaker] % len(changes)])
        turn[speaker] += 1
    return found


def telephone(waveform: np.ndarray) -> np.ndarray:
    """Removes everything outside 300 … 3400 Hz; int16 (samples,) → int16 (samples,)."""
    if len(waveform) == 0:
        return waveform.copy()
    spectrum = np.fft.rfft(waveform.astype(np.float64))
    frequency_hz = np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE_HZ)
    spectrum[(frequency_hz < TELEPHONE_HZ[0]) | (frequency_hz > TELEPHONE_HZ[1])] = 0
    return to_int16(np.fft.irfft(spectrum, len(waveform)))


def add_noise(waveform: np.ndarray, snr_db: float, *, seed: int, name: int) -> np.ndarray:
    """Adds white Gaussian noise.

    Args:
        waveform: int16 (samples,).
        snr_db: Mean energy of the waveform over that of the noise, both over the whole utterance.
        seed: Seed of the measurement.
        name: Identity of the utterance (its PCM hash), which keys its noise.

    Returns:
        int16 (samples,); silence stays silence.
    """
    clean = waveform.astype(np.float64)
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, stable_hash(f"probe.noise/{name}")], dtype=np.uint64)
    noise = np.random.Generator(np.random.Philox(key=key)).standard_normal(len(clean))
    energy = np.mean(clean**2) if len(clean) else 0.0
    if energy == 0:
        return waveform.copy()
    noise *= np.sqrt(energy * 10 ** (-snr_db / 10) / np.mean(noise**2))
    return to_int16(clean + noise)


def to_int16(signal: np.ndarray) -> np.ndarray:
    """Rounds to int16; a signal that would clip is made quieter as a whole."""
    peak = float(np.abs(signal).max(initial=0.0))
    return np.round(signal * min(1.0, 32767 / max(peak, 1.0))).astype(np.int16)
