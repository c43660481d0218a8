"""Completeness of Ogg files (RFC 3533): whole pages without gaps, and the length of each stream."""

import struct
import zlib
from dataclasses import dataclass

from openwavlm.audio.containers.file_bytes import FileBytes
from openwavlm.audio.errors import AudioError

# A stream whose first page ends later than this was recorded from its middle on.
_START_S = 10
_REVERSED_BYTES = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Link:
    """One of the consecutive streams of an Ogg file; any other file is one.

    Attributes:
        samples: Samples of each channel by the positions of the pages, or by the header.
        rate: Samples a second.
        exact: True if they begin at 0; a stream that was recorded from its middle on holds up to a page more.
    """

    samples: int
    rate: int
    exact: bool


def check_ogg(content: FileBytes) -> list[Link]:
    """Checks that whole pages follow one another without a gap, and returns the audio streams in their order.

    Raises:
        AudioError: With reason `truncated`, `undecoded` or `unreadable`.
    """
    position = 0
    links: dict[bytes, _Stream] = {}
    finished: list[_Stream] = []
    while position < len(content):
        header = content[position : position + 27]
        if header[:4] != b"OggS"[: len(header)]:
            raise AudioError("undecoded", f"the bytes from {position} on are not an Ogg page: repair the file")
        table = content[position + 27 : position + 27 + header[26]] if len(header) == 27 else b""
        end = position + 27 + len(table) + sum(table)
        if len(header) < 27 or len(table) < header[26] or end > len(content):
            raise AudioError("truncated", "the last Ogg page is incomplete")
        flags, granule, serial, number, checksum = struct.unpack("<xBq4sII", header[4:26])
        if _checksum(header[:22] + bytes(4) + content[position + 26 : end]) != checksum:
            raise AudioError("unreadable", f"the Ogg page at byte {position} does not have its checksum")
        if flags & 2:
            if serial in links:
                finished.append(links.pop(serial))
            links[serial] = _Stream(content[end - sum(table) : end])
        elif serial not in links:
            raise AudioError("unreadable", f"the Ogg page at byte {position} belongs to no stream: the file's start is missing")
        links[serial].add(number, granule, table, position)
        position = end
    finished += links.values()
    sounds = [stream for stream in finished if stream.rate]
    if any(stream.open_packet for stream in sounds):
        raise AudioError("truncated", "the last Ogg packet is incomplete")
    kinds = list(dict.fromkeys(f"{stream.codec} of {stream.rate} Hz and {stream.channels} channels" for stream in sounds))
    if len(kinds) > 1:
        raise AudioError("undecoded", f"streams of several kinds were joined ({', '.join(kinds)}): split the file")
    return [stream.link() for stream in sounds]


class _Stream:
    """One logical stream of an Ogg file, page by page."""

    def __init__(self, header: bytes) -> None:
        def number(start: int, stop: int) -> int:
            return int.from_bytes(header[start:stop], "little")

        self.codec, self.rate, self.channels, self._start = "", 0, 0, 0
        if header[:8] == b"OpusHead" and len(header) >= 12:
            self.codec, self.rate, self.channels, self._start = "Opus", 48_000, header[9], number(10, 12)
        elif header[:7] == b"\x01vorbis":
            self.codec, self.rate, self.channels = "Vorbis", number(12, 16), number(11, 12)
        elif header[:5] == b"\x7fFLAC":
            self.codec, self.rate, self.channels = (
                "FLAC",
                int.from_bytes(header[27:30], "big") >> 4,
                (number(29, 30) >> 1 & 7) + 1,
            )
        elif header[:8] == b"Speex   ":
            self.codec, self.rate, self.channels = "Speex", number(36, 40), number(48, 52)
        self.open_packet = False
        self._next_number: int | None = None
        self._first: int | None = None
        self._last = 0

    def link(self) -> Link:
        """Length by the position in the last page, less that in the first if the stream was recorded from its middle on."""
        exact = self._first is None or self._first < _START_S * self.rate
        start = self._start if exact or self._first is None else self._first
        return Link(max(0, self._last - start), self.rate, exact)

    def add(self, number: int, granule: int, table: bytes, position: int) -> None:
        """Adds the next page; a missing one is an AudioError (`unreadable`)."""
        if self._next_number is not None and number != self._next_number:
            raise AudioError(
                "unreadable", f"Ogg pages before byte {position} are missing: {number} follows {self._next_number - 1}"
            )
        self._next_number = number + 1 & 0xFFFF_FFFF
        self.open_packet = bool(table) and table[-1] == 255
        if granule > 0:
            self._first = granule if self._first is None else self._first
            self._last = granule


def _checksum(page: bytes) -> int:
    """CRC-32 of Ogg: the polynomial of zlib with the bits in opposite order, without inversion."""
    return int(f"{~zlib.crc32(page.translate(_REVERSED_BYTES), 0xFFFF_FFFF) & 0xFFFF_FFFF:032b}"[::-1], 2)
