"""Recording channels: an equaliser, a room and noise, drawn by key.

Clean formant synthesis is almost a function of its MFCC, which would make the first teacher too good to be improved upon.
The direct path is not delayed and the equaliser has zero phase, so phone times stay valid.
"""

from dataclasses import dataclass

import numpy as np

from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.runtime.randomness import stable_hash, uniform, words

TILT_DB_PER_OCTAVE = (-4.0, 4.0)
RIPPLE_DB = 3.0
RT60_S = (0.15, 0.4)
# A close microphone. PNMI of MFCC-50: .28 in rooms of 0 to 8 dB, .25 on LibriSpeech, .45 without channels.
DIRECT_TO_REVERBERANT_DB = (8.0, 18.0)
SNR_DB = (10.0, 25.0)
NOISE_SLOPE = (0.0, 2.0)
CLEAN_SNR_DB = 60.0
LEVEL_DBFS = -26.0

_EARLIEST_REFLECTION_S = 0.0025
_LOWEST_HZ = 60.0
_RIPPLES = 4


@dataclass(frozen=True)
class Channel:
    """Channel of one recording.

    Attributes:
        tilt_db_per_octave: Slope of the equaliser, with 0 dB at 1 kHz.
        rt60_s: Reverberation time (decay by 60 dB).
        direct_to_reverberant_db: Energy of the direct path over that of all reflections.
        snr_db: Mean power of the reverberant speech over that of the noise, both over the whole recording.
        noise_slope: Exponent a of the noise's power spectrum 1 / f^a: 0 white, 1 pink, 2 brown.
        ripple_db: (ripples,) amplitudes of cosines over the octaves, added to the equaliser's slope.
        key: Key of the reflections and of the noise.
    """

    tilt_db_per_octave: float
    rt60_s: float
    direct_to_reverberant_db: float
    snr_db: float
    noise_slope: float
    ripple_db: tuple[float, ...]
    key: int

    @classmethod
    def draw(cls, seed: int, recording: str) -> "Channel":
        """Draws the channel of a recording; equal arguments give equal channels."""
        raw = words(seed, "synthesis.channel", 5 + _RIPPLES + 1, source=stable_hash(recording))
        at = uniform(raw)
        ranges = (TILT_DB_PER_OCTAVE, RT60_S, DIRECT_TO_REVERBERANT_DB, SNR_DB, NOISE_SLOPE)
        tilt, rt60_s, ratio_db, snr_db, slope = (
            float(low + share * (high - low)) for (low, high), share in zip(ranges, at, strict=False)
        )
        ripples = tuple(float(RIPPLE_DB * (2 * share - 1) / (1 + n / 2)) for n, share in enumerate(at[5 : 5 + _RIPPLES]))
        return cls(tilt, rt60_s, ratio_db, snr_db, slope, ripples, int(raw[-1]))


@dataclass(frozen=True, eq=False)
class Recorded:
    """Recording as the sum of equalised and reverberant `speech` and of `noise`, float64 (samples,) each."""

    speech: np.ndarray
    noise: np.ndarray


def transmit(waveform: np.ndarray, channel: Channel) -> Recorded:
    """Applies a channel to a waveform, float (samples,) at 16 kHz and not silent; length and times are kept."""
    generator = np.random.Generator(np.random.Philox(key=channel.key))
    response = _room(channel, generator)
    size = _transform_size(len(waveform) + len(response))
    spectrum = np.fft.rfft(waveform, size) * np.fft.rfft(response, size) * _equaliser(channel, size)
    speech = np.fft.irfft(spectrum, size)[: len(waveform)]
    return Recorded(speech, _noise(speech, channel.noise_slope, channel.snr_db, generator))


def clean_recording(waveform: np.ndarray, key: int) -> Recorded:
    """Recording without a channel: speech, and white noise 60 dB below, since digital silence has no logarithm."""
    generator = np.random.Generator(np.random.Philox(key=key))
    return Recorded(waveform, _noise(waveform, 0.0, CLEAN_SNR_DB, generator))


def to_pcm(recorded: Recorded) -> np.ndarray:
    """Scales to −26 dB of full scale (less where that would clip) and rounds; int16 (samples,)."""
    total = recorded.speech + recorded.noise
    wanted = 10 ** (LEVEL_DBFS / 20) / np.sqrt(np.mean(total**2))
    gain = min(wanted, 0.99 / np.abs(total).max())
    return np.round(total * gain * 32767).astype(np.int16)


def _transform_size(samples: int) -> int:
    """Length of at least `samples` with a fast Fourier transform."""
    return -(-samples // 4096) * 4096


def _frequencies_hz(size: int) -> np.ndarray:
    return np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ), _LOWEST_HZ)


def _equaliser(channel: Channel, size: int) -> np.ndarray:
    """Real gain of each frequency of a transform."""
    octaves = np.log2(_frequencies_hz(size) / 1000)
    place = (octaves - octaves[0]) / (octaves[-1] - octaves[0])
    gain_db = channel.tilt_db_per_octave * octaves
    for number, ripple_db in enumerate(channel.ripple_db, 1):
        gain_db = gain_db + ripple_db * np.cos(np.pi * number * place)
    return 10 ** (gain_db / 20)


def _room(channel: Channel, generator: np.random.Generator) -> np.ndarray:
    """Impulse response: 1 at sample 0, then noise that decays exponentially (Moorer 1979)."""
    time_s = np.arange(round(channel.rt60_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tail = generator.standard_normal(len(time_s)) * 10 ** (-3 * time_s / channel.rt60_s)
    tail[time_s < _EARLIEST_REFLECTION_S] = 0
    tail *= np.sqrt(10 ** (-channel.direct_to_reverberant_db / 10) / np.sum(tail**2))
    tail[0] = 1
    return tail


def _noise(speech: np.ndarray, slope: float, snr_db: float, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise with the power spectrum 1 / f^slope and exactly the given power."""
    noise = generator.standard_normal(len(speech))
    if slope:
        size = _transform_size(len(noise))
        noise = np.fft.irfft(np.fft.rfft(noise, size) * _frequencies_hz(size) ** (-slope / 2), size)[: len(noise)]
    return noise * np.sqrt(np.mean(speech**2) * 10 ** (-snr_db / 10) / np.mean(noise**2))
