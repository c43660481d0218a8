"""The structure of Ogg, MP4, Matroska, ASF and APE files, by which a file that was cut off, joined or damaged is recognised.

FFmpeg skips what it cannot read and ends where the first of two joined files ends; neither is an error to it.
"""

import re
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field

from openwavlm.audio.containers import AudioError, check_rest, read_at
from openwavlm.audio.gapless import Link

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot")
_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_SIMPLE_BLOCK, _BLOCK_GROUP, _BLOCK = 0xA3, 0xA0, 0xA1
# Level-1 elements of a segment: seek head, info, tracks, cluster, cues, attachments, chapters, tags, void, CRC-32.
_LEVEL_1 = {0x114D9B74, 0x1549A966, 0x1654AE6B, _CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, 0xEC, 0xBF}
# What a cluster holds: timestamp, position, previous size, simple block, block group, silent tracks, encrypted block, void, CRC-32.
_LEVEL_2 = {0xE7, 0xA7, 0xAB, _SIMPLE_BLOCK, _BLOCK_GROUP, 0x5854, 0xAF, 0xEC, 0xBF}

# A stream whose first page ends later than this was recorded from its middle on.
_OGG_START_S = 10
_WINDOW_BYTES = 1 << 17
_REVERSED_BYTES = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Structure:
    """What a container says about its audio.

    Attributes:
        links: The audio streams of an Ogg file, one after another.
        blocks: Blocks of a Matroska file by the number of their track.
    """

    links: list[Link] = field(default_factory=list)
    blocks: Counter[int] = field(default_factory=Counter)


def check_structure(descriptor: int, size: int) -> Structure:
    """Walks a file of compressed audio from its first byte to its last.

    Args:
        descriptor: The open file.
        size: Its bytes, at least 1.

    Returns:
        What it says of its audio; nothing for formats without a structure (MP3, AAC, AMR …).

    Raises:
        AudioError: With reason `truncated`, `undecoded` or `unreadable`.
    """
    content = _Bytes(descriptor, size)
    head = content[0:16]
    if head[:4] == b"OggS":
        return Structure(links=_check_ogg(content))
    if head[4:8] in _FIRST_BOXES:
        _check_boxes(content, descriptor)
    elif head[:4] == b"\x1aE\xdf\xa3":
        return Structure(blocks=_check_matroska(content))
    elif head == _ASF_HEADER:
        _check_asf(content, descriptor)
    elif head[:4] == b"MAC ":
        _check_ape(content, descriptor)
    return Structure()


class _Bytes:
    """A file by offsets. No `mmap`: a disk that fails would end the process with a signal instead of an error."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size = descriptor, size
        self._start, self._window = 0, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> bytes:
        start, stop = where.start, min(where.stop, self._size)
        if start < self._start or stop > self._start + len(self._window):
            self._start, self._window = start, read_at(self._descriptor, max(_WINDOW_BYTES, stop - start), start)
        return self._window[start - self._start : stop - self._start]


class _OggStream:
    """One logical stream of an Ogg file, page by page."""

    def __init__(self, header: bytes) -> None:
        self.rate, self._start, self.codec, self.channels = 0, 0, "", 0
        if header[:8] == b"OpusHead" and len(header) >= 12:
            self.rate, self._start = 48_000, int.from_bytes(header[10:12], "little")
            self.codec, self.channels = "Opus", header[9]
        elif header[:7] == b"\x01vorbis":
            self.rate = int.from_bytes(header[12:16], "little")
            self.codec, self.channels = "Vorbis", int.from_bytes(header[11:12], "little")
        elif header[:5] == b"\x7fFLAC":
            self.rate = int.from_bytes(header[27:30], "big") >> 4
            self.codec, self.channels = "FLAC", (int.from_bytes(header[29:30], "little") >> 1 & 7) + 1
        elif header[:8] == b"Speex   ":
            self.rate = int.from_bytes(header[36:40], "little")
            self.codec, self.channels = "Speex", int.from_bytes(header[48:52], "little")
        self.open_packet = False
        self._next_number: int | None = None
        self._first: int | None = None
        self._last = 0

    def link(self) -> Link:
        """Length by the position that the last page announces; a stream that was recorded from its middle on starts there."""
        exact = self._first is None or self._first < _OGG_START_S * self.rate
        start = self._start if exact or self._first is None else self._first
        return Link(max(0, self._last - start), self.rate, exact)

    def add(self, number: int, granule: int, table: bytes, position: int) -> None:
        """Takes the next page.

        Raises:
            AudioError: With reason `unreadable` if one is missing.
        """
        if self._next_number is not None and number != self._next_number:
            raise AudioError(
                "unreadable", f"Ogg pages are missing before byte {position}: {number} follows {self._next_number - 1}"
            )
        self._next_number = number + 1 & 0xFFFF_FFFF
        self.open_packet = bool(table) and table[-1] == 255
        if granule > 0:
            self._first = granule if self._first is None else self._first
            self._last = granule


def _check_ogg(content: _Bytes) -> list[Link]:
    """Checks that whole pages follow one another without a gap (RFC 3533), and sums the lengths of all links."""
    position = 0
    links: dict[bytes, _OggStream] = {}
    finished: list[_OggStream] = []
    while position < len(content):
        header = content[position : position + 27]
        if header[:4] != b"OggS"[: len(header)]:
            raise AudioError("undecoded", f"the bytes from {position} on are no Ogg page: repair the file")
        table = content[position + 27 : position + 27 + header[26]] if len(header) == 27 else b""
        end = position + 27 + len(table) + sum(table)
        if len(header) < 27 or len(table) < header[26] or end > len(content):
            raise AudioError("truncated", "the last Ogg page is incomplete")
        flags, granule, serial, number, checksum = struct.unpack("<xBq4sII", header[4:26])
        if _ogg_checksum(header[:22] + bytes(4) + content[position + 26 : end]) != checksum:
            raise AudioError("unreadable", f"the Ogg page at byte {position} does not have its checksum")
        if flags & 2:
            if serial in links:
                finished.append(links.pop(serial))
            links[serial] = _OggStream(content[end - sum(table) : end])
        elif serial not in links:
            raise AudioError(
                "unreadable", f"the Ogg page at byte {position} belongs to no stream: the file's beginning is missing"
            )
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


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 of Ogg: the polynomial of zlib's, bits in the opposite order, no inversion."""
    return int(f"{~zlib.crc32(page.translate(_REVERSED_BYTES), 0xFFFF_FFFF) & 0xFFFF_FFFF:032b}"[::-1], 2)


def _check_boxes(content: _Bytes, descriptor: int) -> None:
    """Checks that the boxes of an MP4 file (ISO/IEC 14496-12) fill it, and that there is one description of one recording."""
    position, descriptions = 0, 0
    while position + 8 <= len(content):
        length, name = struct.unpack(">I4s", content[position : position + 8])
        if not re.fullmatch(rb"[ -~\xa9]{4}", name):
            break
        if length == 1:
            length = int.from_bytes(content[position + 8 : position + 16], "big")
        elif length == 0:
            length = len(content) - position
        if length < 8 or position + length > len(content):
            raise AudioError(
                "truncated", f"the box {name.decode('latin-1')} at byte {position} goes on beyond the end of the file"
            )
        descriptions += name == b"moov"
        position += length
    if descriptions == 0:
        raise AudioError("truncated", "the file has no moov box: the recording was not finished")
    if descriptions > 1:
        raise AudioError(
            "undecoded", f"{descriptions} recordings were joined in one MP4 file, of which one would be read: split it"
        )
    check_rest(descriptor, position, len(content))


def _check_asf(content: _Bytes, descriptor: int) -> None:
    """Checks that the top-level objects of an ASF file fill it."""
    position, names = 0, []
    while position + 24 <= len(content):
        names.append(content[position : position + 16])
        length = int.from_bytes(content[position + 16 : position + 24], "little")
        if length == 0 and names[-1] == _ASF_DATA:
            return  # A live recording, whose length was never filled in, goes on to the end.
        if length < 24:
            break
        if position + length > len(content):
            raise AudioError("truncated", f"the object at byte {position} goes on beyond the end of the file")
        position += length
    if names.count(_ASF_DATA) > 1:
        raise AudioError("undecoded", "several recordings were joined in one ASF file, of which one would be read: split it")
    check_rest(descriptor, position, len(content))


def _check_ape(content: _Bytes, descriptor: int) -> None:
    """Checks that the parts of a Monkey's Audio file fill it; before version 3.98 the header does not say how long they are."""
    version = int.from_bytes(content[4:6], "little")
    if version < 3980:
        return
    # Lengths of descriptor, header, seek table, WAV header, audio (64 bits) and what followed the samples in the WAV file.
    end = max(36, sum(struct.unpack("<4IQI", content[8:36].ljust(28, b"\0"))))
    if end > len(content):
        raise AudioError("truncated", f"the header announces {end} bytes, the file has {len(content)}")
    check_rest(descriptor, end, len(content))


def _check_matroska(content: _Bytes) -> Counter[int]:
    """Walks the elements of a Matroska or WebM file down to the blocks; recordings may follow one another."""
    position, blocks = 0, Counter[int]()
    # Ends of the elements that the position lies in, with their names; an unknown length ends where an outer element begins.
    open_elements: list[tuple[int, int]] = []
    while position < len(content):
        while open_elements and position >= open_elements[-1][1]:
            open_elements.pop()
        name, start = _ebml_number(content, position, keep_marker=True)
        length, start = _ebml_number(content, start)
        unknown = length == (1 << 7 * (start - position - _width(content[position : position + 1]))) - 1
        while open_elements and open_elements[-1][1] == len(content) + 1 and name not in _children(open_elements[-1][0]):
            open_elements.pop()
        allowed = _children(open_elements[-1][0]) if open_elements else {_EBML, _SEGMENT, 0xEC}
        if name not in allowed or (unknown and name not in (_SEGMENT, _CLUSTER)):
            raise AudioError("unreadable", f"the bytes from {position} on are no Matroska element: repair the file")
        end = len(content) + 1 if unknown else start + length
        if not unknown and end > (open_elements[-1][1] if open_elements else len(content)):
            if end > len(content):
                raise AudioError("truncated", f"the element at byte {position} goes on beyond the end of the file")
            raise AudioError(
                "unreadable", f"the element at byte {position} goes on beyond the one that holds it: repair the file"
            )
        if name in (_SEGMENT, _CLUSTER):
            open_elements.append((name, end))
            position = start
        else:
            if name in (_SIMPLE_BLOCK, _BLOCK_GROUP):
                blocks[_track(content, name, start, end)] += 1
            position = end
    return blocks


def _track(content: _Bytes, name: int, start: int, end: int) -> int:
    """Number of the track that a block belongs to, 0 where there is no block."""
    while name == _BLOCK_GROUP and start < end:
        child, start = _ebml_number(content, start, keep_marker=True)
        length, start = _ebml_number(content, start)
        if child == _BLOCK:
            break
        start += length
    return _ebml_number(content, start)[0] if start < end else 0


def _children(name: int) -> set[int]:
    return _LEVEL_1 if name == _SEGMENT else _LEVEL_2


def _width(lead: bytes) -> int:
    return 9 - lead[0].bit_length() if lead else 9


def _ebml_number(content: _Bytes, position: int, *, keep_marker: bool = False) -> tuple[int, int]:
    """Reads a number of variable width (RFC 8794 §4); returns it and the position after it."""
    width = _width(content[position : position + 1])
    if width > 8 and position < len(content):
        raise AudioError("unreadable", f"the bytes from {position} on are no Matroska element: repair the file")
    if position + width > len(content):
        raise AudioError("truncated", "the last Matroska element is incomplete")
    number = int.from_bytes(content[position : position + width], "big")
    return (number if keep_marker else number & (1 << 7 * width) - 1), position + width
