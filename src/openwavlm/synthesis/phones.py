"""Maps espeak-ng's phone names to 45 classes, and its events to segments.

espeak-ng marks stress (`'` `,` `%` `=`) and has names for allophones (`t#` a flap, `@2` the vowel of "the"); the classes are ARPAbet's
with the British `oh` (lot), `ea` (square) and `ia` (near), `ax` (comma), `el` (little) and `sil`. A phone has the class of its
pronunciation in the accent: Lancaster's "cup" has `uh`, America's "lot" has `aa`.
"""

from typing import NamedTuple

import numpy as np

from openwavlm.synthesis.espeak import SAMPLE_RATE_HZ, Speech

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
_ACCENTS_OWN = {
    "us": {"0": "aa", "3": "er"},
    "rp": {"aa": "aa", "U@": "ao"},
    "scotland": {"3": "er"},
    "lancaster": {"V": "uh"},
}

CLASSES = (SILENCE, *sorted(_NAMES))

# espeak-ng counts the silent closure of a stop to the phone before it.
_CLOSURE_SAMPLES = SAMPLE_RATE_HZ // 200
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
    phone = _ACCENTS_OWN.get(accent, {}).get(bare) or _CLASS_OF.get(bare)
    if phone is None:
        raise ValueError(
            f"espeak-ng's phone {name!r} has no class: add it to src/openwavlm/synthesis/phones.py, or install espeakng-loader 0.2"
        )
    return phone


def segments(speech: Speech, accent: str) -> list[PhoneSegment]:
    """Cuts speech into phones without gaps.

    5 ms or more of silence at the end of a phone belong to the following phone, as the closure of a stop. Neighbouring pauses
    become one segment.

    Returns:
        Segments from the first sample to the last, none empty.
    """
    total = len(speech.samples)
    loud = np.flatnonzero(np.abs(speech.samples.astype(np.int32)) > _SILENT_LEVEL)
    starts = [0, *speech.starts.tolist()]
    classes = [SILENCE, *(phone_class(name, accent) for name in speech.phones)]
    names = ["_", *speech.phones]
    found: list[PhoneSegment] = []
    for place, (start, phone, name) in enumerate(zip(starts, classes, names, strict=True)):
        end = starts[place + 1] if place + 1 < len(starts) else total
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
