"""Decoding for commands that skip bad recordings: a failing machine is not taken for bad audio."""

from pathlib import Path
from typing import Any

from openwavlm.audio.audio_files import Decoded, decode
from openwavlm.audio.containers import AudioError
from openwavlm.runtime.resources import retried

# What a read looks like that failed once, in a library of C that keeps the error to itself.
_PERHAPS_NOT_READ = ("unreadable", "truncated", "zero-length", "not-finite", "undecoded")


def decode_or_stop(path: Path, **arguments: Any) -> Decoded:
    """`audio.decode`, for a file that is skipped if it cannot be decoded; a failure is believed the second time.

    Args:
        path: The recording.
        arguments: Those of `decode`.

    Returns:
        What `decode` returns.

    Raises:
        AudioError: If the file is bad.
        OSError: If the machine fails again and again (too many open files, a disk or file server), with the file.
        MemoryError: If there is none left.
    """

    def attempt() -> Decoded:
        try:
            return decode(path, **arguments)
        except AudioError as error:
            if error.reason not in _PERHAPS_NOT_READ:
                raise
        return decode(path, **arguments)

    return retried(attempt, path)
