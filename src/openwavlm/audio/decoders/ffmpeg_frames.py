"""Decoded frames of FFmpeg: as arrays, and without the delay and padding that encoders add.

FFmpeg removes padding where a header announces the end of the audio, which is in the middle of a file with a wrong header or of several
joined files. It cuts one block too many off a Vorbis stream of one page, and nonexistent padding off ALAC in CAF (FFmpeg 8.1).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from openwavlm.audio.containers.ogg import Link
from openwavlm.audio.errors import AudioError

# With 8 planes PyAV 18.1 reads beyond FFmpeg's list of them and ends the process (`Frame.planes` looks for a null pointer).
_MOST_PLANES = 7
_SCALES = {"u8": 2.0**-7, "s16": 2.0**-15, "s32": 2.0**-31, "s64": 2.0**-63, "flt": 1.0, "dbl": 1.0}
# Padding is part of a packet; anything longer is audio beyond a wrong length in the file.
_LONGEST_PADDING_S = 0.25
_LONGEST_MP3_DELAY = 2880


def samples_of(frame: Any) -> np.ndarray:
    """Samples of a frame, (frames, channels), int16 or float32 in [−1, 1]; too many planes are an AudioError (`unreadable`)."""
    channels = len(frame.layout.channels)
    if frame.format.is_planar and channels > _MOST_PLANES:
        raise AudioError("unreadable", f"{channels} compressed channels, more than {_MOST_PLANES}: convert the file to WAV")
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


@dataclass(frozen=True)
class Frame:
    """A decoded packet.

    Attributes:
        samples: (frames, channels).
        delay: Samples to drop from here on.
        padding: Samples to drop at the end of this frame.
        begins: True for the first packet of a stream of an Ogg file.
    """

    samples: np.ndarray
    delay: int
    padding: int
    begins: bool


def trim_mp3(frames: Iterable[Frame]) -> Iterator[np.ndarray]:
    """Drops the delay, and the padding of the last frames."""
    held: list[Frame] = []
    # No encoder's delay or padding is longer: a damaged header must not cost audio.
    plausible = (replace(frame, delay=frame.delay if frame.delay <= _LONGEST_MP3_DELAY else 0) for frame in frames)
    for frame in _without_delay(plausible):
        if frame.padding:
            held.append(frame)
            continue
        yield from (earlier.samples for earlier in held)
        held.clear()
        yield frame.samples
    is_padding = sum(frame.padding for frame in held) <= _LONGEST_MP3_DELAY
    for frame in held:
        yield frame.samples[: max(0, len(frame.samples) - frame.padding)] if is_padding else frame.samples


def trim_links(frames: Iterable[Frame], links: Sequence[Link]) -> Iterator[np.ndarray]:
    """Drops the delay of each stream, and the padding beyond its announced length."""
    beyond: list[np.ndarray] = []
    number, position = -1, 0
    for frame in _without_delay(frames):
        if frame.begins:
            yield from _kept(beyond, links, number)
            beyond.clear()
            number, position = number + 1, 0
        end = links[number].samples if number < len(links) and links[number].exact else position + len(frame.samples)
        inside = max(0, end - position)
        yield frame.samples[:inside]
        beyond.append(frame.samples[inside:])
        position += len(frame.samples)
    yield from _kept(beyond, links, number)


def _without_delay(frames: Iterable[Frame]) -> Iterator[Frame]:
    left = 0
    for frame in frames:
        left += frame.delay
        dropped = min(left, len(frame.samples))
        left -= dropped
        yield replace(frame, samples=frame.samples[dropped:], delay=0)


def _kept(beyond: Sequence[np.ndarray], links: Sequence[Link], number: int) -> Sequence[np.ndarray]:
    surplus = sum(map(len, beyond))
    return beyond if surplus and surplus > _LONGEST_PADDING_S * links[number].rate else ()
