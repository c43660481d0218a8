"""Decoded frames of FFmpeg as arrays."""

from typing import Any

import numpy as np

from openwavlm.audio.errors import AudioError

# With 8 planes PyAV 18.1 reads beyond FFmpeg's list of them and ends the process (`Frame.planes` looks for a null pointer).
_MOST_PLANES = 7
_SCALES = {"u8": 2.0**-7, "s16": 2.0**-15, "s32": 2.0**-31, "s64": 2.0**-63, "flt": 1.0, "dbl": 1.0}


def samples_of(frame: Any) -> np.ndarray:
    """Samples of a frame, (frames, channels), int16 or float32 in [−1, 1].

    Raises:
        AudioError: With reason `unreadable` for too many planes.
    """
    channels = len(frame.layout.channels)
    if frame.format.is_planar and channels > _MOST_PLANES:
        raise AudioError(
            "unreadable", f"{channels} channels of compressed audio, more than {_MOST_PLANES}: convert it to WAV or FLAC"
        )
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    kind = frame.format.name.removesuffix("p")
    if kind == "s16":
        return values
    if kind == "u8":
        values = values.astype(np.int16) - 128
    return values.astype(np.float32) * np.float32(_SCALES[kind])


def skips_of(frame: Any) -> tuple[int, int]:
    """Samples to drop at the beginning and at the end of a frame, from its side data."""
    for data in frame.side_data:
        if data.type.name == "SKIP_SAMPLES":
            content = bytes(data)
            return int.from_bytes(content[:4], "little"), int.from_bytes(content[4:8], "little")
    return 0, 0
