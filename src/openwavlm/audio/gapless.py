"""The delay and padding that encoders add to compressed audio, removed where they are and nowhere else.

FFmpeg removes padding where a header says that the audio ends: in the middle of a file whose header is wrong or that was joined from
several. It cuts one block too many off a Vorbis stream of one page, and off ALAC in CAF the padding that it has not (FFmpeg 8.1).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

# Padding is part of a packet; what is longer is audio that the length in the file does not cover.
_LONGEST_PADDING_S = 0.25
_LONGEST_MP3_DELAY = 2880


@dataclass(frozen=True)
class Link:
    """One of the streams that an Ogg file holds one after another; any other file is one.

    Attributes:
        samples: Samples of each channel by the positions that the pages, or the header, announce.
        rate: Samples a second.
        exact: Whether they begin at 0; a stream that was recorded from its middle on holds up to a page more.
    """

    samples: int
    rate: int
    exact: bool


@dataclass(frozen=True)
class Frame:
    """A decoded packet.

    Attributes:
        samples: (frames, channels).
        delay: Samples to drop from here on.
        padding: Samples to drop at the end of this frame.
        begins: Whether it is the first of a link.
    """

    samples: np.ndarray
    delay: int
    padding: int
    begins: bool


def trim_mp3(frames: Iterable[Frame]) -> Iterator[np.ndarray]:
    """Drops the delay, and the padding of those frames that no other follows."""
    held: list[Frame] = []
    # A damaged header must not cost audio: no encoder's delay or padding is longer.
    believable = (replace(frame, delay=frame.delay if frame.delay <= _LONGEST_MP3_DELAY else 0) for frame in frames)
    for frame in _without_delay(believable):
        if frame.padding:
            held.append(frame)
            continue
        yield from (earlier.samples for earlier in held)
        held.clear()
        yield frame.samples
    believed = sum(frame.padding for frame in held) <= _LONGEST_MP3_DELAY
    for frame in held:
        yield frame.samples[: max(0, len(frame.samples) - frame.padding)] if believed else frame.samples


def trim_links(frames: Iterable[Frame], links: Sequence[Link]) -> Iterator[np.ndarray]:
    """Drops the delay of each link, and what is beyond its announced length."""
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
