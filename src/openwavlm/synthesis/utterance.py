"""One utterance before its channel: a sentence in a voice with drawn prosody, pauses around it, phone times.

espeak-ng marks stress (`'` `,` `%` `=`) and has names for allophones (`t#` a flap, `@2` the vowel of "the"). The 45 classes are ARPAbet's
with the British `oh` (lot), `ea` (square) and `ia` (near), `ax` (comma), `el` (little) and `sil`. A phone has the class of its
pronunciation in the accent: Lancaster's "cup" has `uh`, America's "lot" has `aa`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import soxr

from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.runtime.randomness import integers, stable_hash, uniform, words
from openwavlm.synthesis import espeak
from openwavlm.synthesis.sentences import sentence
from openwavlm.synthesis.voices import Voice

_PAUSE_S = (0.1, 0.3)
_PITCH_SPREAD, _RATE_SPREAD = 6, 0.08

SILENCE = "sil"
_STRESS = "',%=|"
_PAUSES = frozenset({"_", "_:", "_::", "_!", "_|", "_^_"})

_NAMES = {
    "aa": "A: A@", "ae": "a aa", "ah": "V", "ao": "O: O@ o@ O2 O", "oh": "0", "aw": "aU", "ax": "@ @2 @- a# 3", "el": "@L",
    "ay": "aI aI2 aI3 aI@", "eh": "E E2", "er": "3: IR VR", "ea": "e@", "ey": "eI", "ih": "I I2 I#", "iy": "i i:", "ia": "i@ i@3",
    "ow": "oU oU#", "oy": "OI", "uh": "U U@", "uw": "u: u",
    "b": "b", "d": "d", "g": "g", "p": "p", "t": "t t2 t# t[ ?", "k": "k", "ch": "tS", "jh": "dZ",
    "f": "f", "v": "v", "th": "T", "dh": "D", "s": "s", "z": "z", "sh": "S", "zh": "Z", "h": "h",
    "m": "m", "n": "n n-", "ng": "N", "l": "l l#", "r": "r r-", "w": "w w#", "j": "j ;",
}  # fmt: skip
_CLASS_OF = {name: phone for phone, names in _NAMES.items() for name in names.split()}
_OF_ACCENT = {"us": {"0": "aa", "3": "er"}, "rp": {"aa": "aa", "U@": "ao"}, "scotland": {"3": "er"}, "lancaster": {"V": "uh"}}
CLASSES = (SILENCE, *sorted(_NAMES))

# espeak-ng counts the silent closure of a stop to the phone before it.
_CLOSURE_SAMPLES = espeak.SAMPLE_RATE_HZ // 200
_SILENT_LEVEL = 4


class PhoneSegment(NamedTuple):
    """Samples [start, end) at espeak-ng's rate, with the phone's class and espeak-ng's name with stress."""

    start: int
    end: int
    phone: str
    name: str


def phone_class(name: str, accent: str) -> str:
    """Class of espeak-ng's phone `name` (with stress marks) in an accent; an unknown name is a ValueError."""
    bare = name.lstrip(_STRESS)
    if bare in _PAUSES or not bare:
        return SILENCE
    phone = _OF_ACCENT.get(accent, {}).get(bare) or _CLASS_OF.get(bare)
    if phone is None:
        raise ValueError(
            f"espeak-ng's phone {name!r} has no class: install espeakng-loader 0.2, or add it to synthesis/utterance.py"
        )
    return phone


def segments(speech: espeak.Speech, accent: str) -> list[PhoneSegment]:
    """Cuts speech into phones from the first sample to the last, none empty; neighbouring pauses become one.

    5 ms or more of silence at the end of a phone belong to the following phone, as the closure of a stop.
    """
    loud = np.flatnonzero(np.abs(speech.samples.astype(np.int32)) > _SILENT_LEVEL)
    borders = [0, *speech.starts.tolist(), len(speech.samples)]
    found: list[PhoneSegment] = []
    for start, end, name in zip(borders[:-1], borders[1:], ["_", *speech.phones], strict=True):
        phone = phone_class(name, accent)
        if end <= start:
            continue
        if found and SILENCE not in (phone, found[-1].phone):
            start = _closure_start(loud, found[-1].start, start)
            found[-1] = found[-1]._replace(end=start)
        if found and phone == found[-1].phone == SILENCE:
            found[-1] = found[-1]._replace(end=end)
        else:
            found.append(PhoneSegment(start, end, phone, name))
    return found


def _closure_start(loud: np.ndarray, first: int, border: int) -> int:
    """First sample of the silence that ends at `border`, if it is as long as a closure and follows sound since `first`."""
    before = int(np.searchsorted(loud, border))
    last = int(loud[before - 1]) + 1 if before else 0
    return last if last > first and border - last >= _CLOSURE_SAMPLES else border


@dataclass(frozen=True, eq=False)
class Utterance:
    """One utterance before its channel.

    Attributes:
        text: The sentence.
        waveform: float64 (samples,) at 16 kHz, silent at both ends.
        segments: (start_s, end_s, phone class, espeak-ng's name), without gaps.
    """

    text: str
    waveform: np.ndarray
    segments: list[tuple[float, float, str, str]]


def utterance(voice: Voice, *, seed: int, key: str) -> Utterance:
    """Synthesises a sentence with pauses of .1 to .3 s around it; `seed` and `key` decide sentence, prosody and pauses.

    The speaker's formant scale is a change of the sampling rate: speech of a slower rate is played faster, at higher frequencies.
    """
    speaker = voice.speaker
    raw = words(seed, "synthesis.prosody", 5, source=stable_hash(key))
    pitch = speaker.pitch + int(integers(raw[:1], 2 * _PITCH_SPREAD + 1)[0]) - _PITCH_SPREAD
    rate, before, after = uniform(raw[1:4])
    rate_wpm = round(speaker.rate_wpm * (1 + _RATE_SPREAD * (2 * rate - 1)) / speaker.formant_scale)
    text = sentence(seed, key)
    voice_seed = int(raw[4] >> np.uint64(33))
    speech = espeak.speak(text, voice.espeak_voice, pitch=pitch, rate_wpm=rate_wpm, seed=voice_seed)
    played_hz = round(espeak.SAMPLE_RATE_HZ * speaker.formant_scale)
    said = soxr.resample(speech.samples / 32768, played_hz, SAMPLE_RATE_HZ, quality="HQ")
    low, high = _PAUSE_S
    lead, rest = (round((low + share * (high - low)) * SAMPLE_RATE_HZ) for share in (before, after))
    waveform = np.concatenate([np.zeros(lead), said, np.zeros(rest)])
    return Utterance(text, waveform, _in_seconds(segments(speech, voice.accent), played_hz, lead, len(waveform)))


def _in_seconds(cut: list[PhoneSegment], played_hz: int, lead: int, num_samples: int) -> list[tuple[float, float, str, str]]:
    """Segments in seconds of the padded waveform; the pauses at both ends are silence."""
    lead_s = lead / SAMPLE_RATE_HZ
    inner = [segment for segment in cut if segment.phone != SILENCE]
    first, last = cut.index(inner[0]), cut.index(inner[-1])
    borders = [round(lead_s + segment.start / played_hz, 6) for segment in cut[first : last + 1]]
    borders.append(round(lead_s + cut[last].end / played_hz, 6))
    times = zip(borders, borders[1:], cut[first:], strict=False)
    spoken = [(start_s, end_s, segment.phone, segment.name) for start_s, end_s, segment in times]
    silence = (SILENCE, "_")
    return [(0.0, borders[0], *silence), *spoken, (borders[-1], round(num_samples / SAMPLE_RATE_HZ, 6), *silence)]
