"""The delay and padding that encoders add to compressed audio, removed where they are and nowhere else.

FFmpeg removes padding where a header says that the audio ends: in the middle of a file whose header is wrong or that was joined from
several. A Vorbis stream of one page it cuts by one block too many (FFmpeg 8.1).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Padding is part of a packet; what is longer is audio that the length in the file does not cover.
_LONGEST_PADDING_S = 0.25


@dataclass(frozen=True)
class Link:
    """One of the streams that an Ogg file holds one after another.

    Attributes:
        samples: Samples of each channel by the positions that the pages announce.
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
    """

    samples: np.ndarray
    delay: int
    padding: int


def trim_mp3(frames: Iterable[Frame]) -> Iterator[np.ndarray]:
    """Drops the delay, and the padding of those frames that no other follows."""
    held: list[Frame] = []
    for frame in _without_delay(frames):
        if frame.padding:
            held.append(frame)
            continue
        yield from (earlier.samples for earlier in held)
        held.clear()
        yield frame.samples
    for frame in held:
        yield frame.samples[: max(0, len(frame.samples) - frame.padding)]


def trim_ogg(frames: Iterable[Frame], links: Sequence[Link]) -> Iterator[np.ndarray]:
    """Drops the delay of each link, which marks its beginning, and what is beyond the length that its pages announce."""
    beyond: list[np.ndarray] = []
    number, position = -1, 0
    for frame, begins in _marked(frames):
        if begins:
            yield from _kept(beyond, links, number)
            beyond.clear()
            number, position = number + 1, 0
        end = links[number].samples if number < len(links) and links[number].exact else position + len(frame.samples)
        inside = max(0, end - position)
        yield frame.samples[:inside]
        beyond.append(frame.samples[inside:])
        position += len(frame.samples)
    yield from _kept(beyond, links, number)


def _marked(frames: Iterable[Frame]) -> Iterator[tuple[Frame, bool]]:
    begins = True

    def seen() -> Iterator[Frame]:
        nonlocal begins
        for frame in frames:
            begins = begins or frame.delay > 0
            yield frame

    for frame in _without_delay(seen()):
        yield frame, begins
        begins = False


def _without_delay(frames: Iterable[Frame]) -> Iterator[Frame]:
    left = 0
    for frame in frames:
        left += frame.delay
        dropped = min(left, len(frame.samples))
        left -= dropped
        yield Frame(frame.samples[dropped:], 0, frame.padding)


def _kept(beyond: Sequence[np.ndarray], links: Sequence[Link], number: int) -> Sequence[np.ndarray]:
    surplus = sum(map(len, beyond))
    return beyond if surplus and surplus > _LONGEST_PADDING_S * links[number].rate else ()
