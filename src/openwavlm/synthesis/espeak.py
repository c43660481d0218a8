"""espeak-ng through ctypes: text → 16-bit speech with the time of every phone, a pure function of its arguments.

The library keeps state between utterances (oscillator phases, position in its flutter, random numbers), and neither `espeak_Terminate`
nor `espeak_ng_SetRandSeed` resets all of it. So every utterance loads the library again (10 ms).
"""

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

SAMPLE_RATE_HZ = 22_050

_SYNCHRONOUS = 2
_PHONEME_EVENTS, _DO_NOT_EXIT = 0x0001, 0x8000
_UTF8 = 1
_RATE, _PITCH = 1, 3
_EVENT_END, _EVENT_PHONEME = 0, 7


class _Name(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("pointer", ctypes.c_void_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Name),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Speech:
    """Speech of espeak-ng."""

    samples: np.ndarray  # int16 (samples,) at 22.05 kHz
    starts: np.ndarray  # int64 (phones,): first sample of each phone, where the previous one ends
    phones: tuple[str, ...]  # espeak-ng's names with stress marks; pauses are `_` and `_:`


def check_available() -> None:
    """Raises a ValueError if the wheel of the library is not installed."""
    if importlib.util.find_spec("espeakng_loader") is None:
        raise ValueError("speech synthesis needs the library espeak-ng, which is not installed: pip install 'openwavlm[demo]'")


def speak(text: str, voice: str, *, pitch: int = 50, rate_wpm: int = 175, seed: int = 0) -> Speech:
    """Synthesises one sentence; equal arguments give equal samples, independent of earlier calls.

    Args:
        text: The sentence.
        voice: Voice file with an optional variant, `gmw/en-US+m1`.
        pitch: 0 … 99, where 50 is the voice's own.
        rate_wpm: 80 … 450 words a minute.
        seed: Seed of the noise in the voice.

    Raises:
        ValueError: If pitch or rate are out of range, the library is missing or in use, or there is no such voice.
    """
    if not (0 <= pitch <= 99 and 80 <= rate_wpm <= 450):
        raise ValueError(f"pitch must lie in [0, 99] and rate_wpm in [80, 450], but they are {pitch} and {rate_wpm}")
    chunks: list[bytes] = []
    found: list[tuple[int, str]] = []

    def receive(samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        current = takewhile(lambda event: event.type != _EVENT_END, events)
        found.extend(
            (event.sample, event.id.string.decode("utf-8", "replace")) for event in current if event.type == _EVENT_PHONEME
        )
        return 0

    callback = _Callback(receive)
    with _fresh_library() as library:
        library.espeak_SetSynthCallback(callback)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}: name a file below espeak-ng-data/lang, as in gmw/en-US+m1")
        library.espeak_SetParameter(_PITCH, pitch, 0)
        library.espeak_SetParameter(_RATE, rate_wpm, 0)
        data = text.encode()
        status = library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 0, 0, _UTF8, None, None)
        if status != 0:
            raise OSError(f"espeak-ng failed with status {status} on {text!r}")
    samples = np.frombuffer(b"".join(chunks), dtype=np.int16)
    starts = np.array([sample for sample, _ in found], dtype=np.int64)
    return Speech(samples, np.minimum(starts, len(samples)), tuple(name for _, name in found))


@contextmanager
def _fresh_library() -> Iterator[ctypes.CDLL]:
    """Loads and initialises the library, and unloads it after the block."""
    check_available()
    import espeakng_loader  # type: ignore[import-untyped]

    path = espeakng_loader.get_library_path()
    if _is_loaded(path):
        raise ValueError("espeak-ng is in use in this process, and its samples depend on earlier sentences: use another process")
    library = ctypes.CDLL(path)
    try:
        data = espeakng_loader.get_data_path().encode()
        if library.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS | _DO_NOT_EXIT) != SAMPLE_RATE_HZ:
            raise OSError(f"espeak-ng cannot read its data in {data.decode()}: install espeakng-loader again")
        yield library
        library.espeak_Terminate()
    finally:
        _unload(library)


def _is_loaded(path: str) -> bool:
    try:
        library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    # Opening the library took a reference.
    _unload(library)
    return True


def _unload(library: ctypes.CDLL) -> None:
    process = ctypes.CDLL(None)
    process.dlclose.argtypes = [ctypes.c_void_p]
    process.dlclose(library._handle)
