"""From the channels of a recording to one int16 channel at 16 kHz, block by block in bounded memory."""

from dataclasses import dataclass
from math import gcd

import numpy as np
import soxr

from openwavlm.audio.errors import AudioError
from openwavlm.audio.frames import SAMPLE_RATE_HZ

# Channels cancel where the energy of their sum is below this share of the sum of their energies, which independent channels have.
_CANCELLING_ENERGY_SHARE = 0.5
# Largest share of a recording's energy in stretches that cancel for which the mean is used.
_CANCELLING_STRETCHES_SHARE = 0.1
_STRETCH = 1 << 13  # samples: half a second at 16 kHz, independent of the blocks of the decoders
_LEAST_CHANNEL_SHARE = 0.1


@dataclass(frozen=True)
class Decoded:
    """A decoded recording.

    Attributes:
        samples: int16 (samples,) at 16 kHz, mono.
        num_clipped: Samples beyond full scale after mixing down and resampling, which were clipped.
        channel: The decoded channel, from 0; None for the mean of all.
        out_of_phase: True if `channel` replaces the mean because the channels cancel each other.
    """

    samples: np.ndarray
    num_clipped: int
    channel: int | None = None
    out_of_phase: bool = False


class MixDown:
    """Takes one channel, or the mean of all, and measures the energy that the mean loses."""

    def __init__(self, channel: int | None) -> None:
        self._channel = channel
        self._energies: np.ndarray | float = 0.0
        self._cancelled = 0.0
        self._rest: np.ndarray | None = None

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """One channel (frames,) of int16 or float32 (frames, channels); NaN and infinity are an AudioError (`not-finite`)."""
        if self._channel is not None or block.shape[1] == 1:
            mono = block[:, self._channel or 0]
        else:
            floats = block.astype(np.float32) / np.float32(32768) if block.dtype == np.int16 else block
            mono = floats.mean(axis=1, dtype=np.float32)
            self._measure(floats)
        if mono.dtype != np.int16 and not np.isfinite(mono).all():
            raise AudioError("not-finite", "the samples contain NaN or infinity")
        return mono

    def _measure(self, floats: np.ndarray) -> None:
        floats = floats if self._rest is None else np.concatenate([self._rest, floats])
        whole = len(floats) // _STRETCH * _STRETCH
        self._add(floats[:whole].reshape(-1, _STRETCH, floats.shape[1]))
        self._rest = floats[whole:].copy()

    def _add(self, stretches: np.ndarray) -> None:
        """Adds stretches (number, frames, channels) to the sums."""
        if stretches.size == 0:
            return
        # Variances, so that offsets of opposite sign do not count as channels that cancel.
        energies = stretches.shape[1] * stretches.var(axis=1, dtype=np.float64)
        of_sums = stretches.shape[1] * stretches.sum(axis=2, dtype=np.float32).var(axis=1, dtype=np.float64)
        self._energies = self._energies + energies.sum(axis=0)
        self._cancelled += float(energies[of_sums < _CANCELLING_ENERGY_SHARE * energies.sum(axis=1)].sum())

    def replacement(self) -> int | None:
        """Channel to use instead of a mean that cancels; None where the mean can be used."""
        if self._rest is not None:
            self._add(self._rest[None])
            self._rest = None
        total = float(np.sum(self._energies))
        if total == 0 or not self._cancelled > _CANCELLING_STRETCHES_SHARE * total:
            return None
        energies = np.asarray(self._energies)
        return int(np.flatnonzero(energies >= _LEAST_CHANNEL_SHARE * energies.mean())[0])


class Resampler:
    """Resamples a range of a recording so that it equals that range of the whole recording resampled.

    Attributes:
        lead: First sample to feed, before `first`: the filter needs a margin, and the output the grid of the whole recording.
        tail: Sample to stop before, after `last`; None for the end of the recording.
    """

    def __init__(self, rate: int, first: int, last: int | None) -> None:
        self.lead, self.tail = first, last
        self._stream, self._drop, self._left = None, 0, None
        if rate == SAMPLE_RATE_HZ:
            return
        self._stream = soxr.ResampleStream(rate, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
        step, margin = rate // gcd(rate, SAMPLE_RATE_HZ), rate // 10
        self.lead = max(0, first - margin) // step * step
        self._drop = _at_16_khz(first, rate) - self.lead * SAMPLE_RATE_HZ // rate
        if last is not None:
            self.tail = last + margin
            self._left = _at_16_khz(last, rate) - _at_16_khz(first, rate)

    def __call__(self, mono: np.ndarray, *, last: bool = False) -> np.ndarray:
        """Resamples the next samples; with `last`, flushes the filter too."""
        if self._stream is None:
            return mono
        floats = mono.astype(np.float32) / np.float32(32768) if mono.dtype == np.int16 else mono
        resampled = self._stream.resample_chunk(np.ascontiguousarray(floats), last=last)
        dropped = min(self._drop, len(resampled))
        self._drop -= dropped
        kept = resampled[dropped:] if self._left is None else resampled[dropped : dropped + self._left]
        if self._left is not None:
            self._left -= len(kept)
        return kept


def _at_16_khz(sample: int, rate: int) -> int:
    return (2 * sample * SAMPLE_RATE_HZ + rate) // (2 * rate)


class Samples:
    """int16 samples collected from blocks in one buffer, so that twelve hours are in memory only once."""

    def __init__(self, expected: int) -> None:
        self._buffer = np.empty(max(1, expected), np.int16)
        self._length = 0
        self.num_clipped = 0

    def append(self, block: np.ndarray) -> None:
        """Adds int16, or float32 in [−1, 1] rounded to the nearest step and cut to full scale."""
        if block.dtype != np.int16:
            scaled = np.rint(block * np.float32(32768))
            self.num_clipped += int(np.count_nonzero((scaled > 32767) | (scaled < -32768)))
            block = np.clip(scaled, -32768, 32767).astype(np.int16)
        end = self._length + len(block)
        if end > len(self._buffer):
            self._buffer.resize(max(end, len(self._buffer) * 3 // 2), refcheck=False)
        self._buffer[self._length : end] = block
        self._length = end

    def finish(self) -> np.ndarray:
        """All samples, int16 (samples,); an AudioError (`over-scale`) if most of them were clipped."""
        if 2 * self.num_clipped > self._length:
            raise AudioError("over-scale", f"{self.num_clipped} of {self._length} samples exceed full scale: scale them to ±1")
        self._buffer.resize(self._length, refcheck=False)
        return self._buffer
