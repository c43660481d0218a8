"""One utterance before its channel: a sentence of a speaker with drawn prosody, pauses around it, phone times."""

from dataclasses import dataclass

import numpy as np
import soxr

from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.runtime.randomness import integers, stable_hash, uniform, words
from openwavlm.synthesis import espeak, phones
from openwavlm.synthesis.sentences import sentence
from openwavlm.synthesis.voices import Speaker

_PAUSE_S = (0.1, 0.3)
_PITCH_SPREAD, _RATE_SPREAD = 6, 0.08


@dataclass(frozen=True, eq=False)
class Utterance:
    """One utterance before its channel.

    Attributes:
        text: The sentence.
        waveform: float64 (samples,) at 16 kHz, silent at both ends.
        segments: (start_s, end_s, phone, espeak-ng's name), without gaps.
    """

    text: str
    waveform: np.ndarray
    segments: list[tuple[float, float, str, str]]


def utterance(speaker: Speaker, *, seed: int, key: str) -> Utterance:
    """Synthesises a sentence with pauses of .1 to .3 s around it; `seed` and `key` decide sentence, prosody and pauses."""
    raw = words(seed, "synthesis.prosody", 5, source=stable_hash(key))
    pitch = speaker.voice.pitch + int(integers(raw[:1], 2 * _PITCH_SPREAD + 1)[0]) - _PITCH_SPREAD
    rate, before, after = uniform(raw[1:4])
    rate_wpm = round(speaker.voice.rate_wpm * (1 + _RATE_SPREAD * (2 * rate - 1)))
    text = sentence(seed, key)
    voice_seed = int(raw[4] >> np.uint64(33))
    speech = espeak.speak(text, speaker.espeak_voice, pitch=pitch, rate_wpm=rate_wpm, seed=voice_seed)
    said = soxr.resample(speech.samples / 32768, espeak.SAMPLE_RATE_HZ, SAMPLE_RATE_HZ, quality="HQ")
    low, high = _PAUSE_S
    lead, rest = (round((low + share * (high - low)) * SAMPLE_RATE_HZ) for share in (before, after))
    waveform = np.concatenate([np.zeros(lead), said, np.zeros(rest)])
    return Utterance(text, waveform, _in_seconds(phones.segments(speech, speaker.accent), lead, len(waveform)))


def _in_seconds(cut: list[phones.PhoneSegment], lead: int, num_samples: int) -> list[tuple[float, float, str, str]]:
    """Segments in seconds of the padded waveform; the pauses at both ends are silence."""
    lead_s = lead / SAMPLE_RATE_HZ
    total_s = num_samples / SAMPLE_RATE_HZ
    inner = [segment for segment in cut if segment.phone != phones.SILENCE]
    first, last = cut.index(inner[0]), cut.index(inner[-1])
    borders = [round(lead_s + segment.start / espeak.SAMPLE_RATE_HZ, 6) for segment in cut[first : last + 1]]
    borders.append(round(lead_s + cut[last].end / espeak.SAMPLE_RATE_HZ, 6))
    spoken = [
        (start_s, end_s, segment.phone, segment.name)
        for start_s, end_s, segment in zip(borders, borders[1:], cut[first:], strict=False)
    ]
    silence = (phones.SILENCE, "_")
    return [(0.0, borders[0], *silence), *spoken, (borders[-1], round(total_s, 6), *silence)]
