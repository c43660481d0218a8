"""Completeness of WAV, RF64, W64, AIFF, CAF, AU and NIST SPHERE files.

libsndfile reads the samples that a header announces. It does not report a file that holds fewer (it was cut off) or more (its length was
never filled in, or another file was appended).
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from openwavlm.audio.containers.file_bytes import BEGINNINGS, SLACK_BYTES, check_rest, read_at
from openwavlm.audio.errors import AudioError

# Programs that write to a pipe leave 0 or a number from here up as the length.
_STREAMED_LENGTH = 0x7FFF_0000
_UNKNOWN_LENGTH = 1 << 62
_PADDING_BYTES = 16
_SAMPLES = {b"data", b"SSND"}


@dataclass(frozen=True)
class Extent:
    """The bytes of a file that are samples.

    Attributes:
        start: Offset of the first.
        length: Their number.
        announced: True if the header states this number; otherwise they extend to the end of the file.
    """

    start: int
    length: int
    announced: bool = True


class _Chunk(NamedTuple):
    name: bytes
    start: int
    length: int
    end: int


def audio_extent(descriptor: int, size: int) -> Extent | None:
    """Finds the samples of a file; None for another format, and for a file without samples.

    Raises:
        AudioError: With reason `truncated` if the file ends before them, `undecoded` if audio follows them.
    """
    head = read_at(descriptor, 40, 0)
    if head[:7] == b"NIST_1A":
        return _sphere_extent(descriptor, size)
    if head[:4] == b".snd" and len(head) >= 12:
        start, length = struct.unpack(">II", head[4:12])
        return _checked(descriptor, size, _Chunk(b"data", start, length, start + length), ())
    chunks = _chunks(descriptor, size, head)
    for chunk in chunks:
        if chunk.name in _SAMPLES:
            return _checked(descriptor, size, chunk, chunks)
    return None


def holds_mp3(descriptor: int, size: int) -> bool:
    """True for a WAV, RF64 or W64 container of MP3 (WAVE_FORMAT_MPEGLAYER3, 0x55)."""
    for chunk in _chunks(descriptor, size, read_at(descriptor, 40, 0)):
        if chunk.name == b"fmt ":
            head = read_at(descriptor, 26, chunk.start)
            return b"\x55\0" in (head[:2], head[24:26] if head[:2] == b"\xfe\xff" else b"")
    return False


def _chunks(descriptor: int, size: int, head: bytes) -> Iterator[_Chunk]:
    """Walks the chunks of an IFF-like container, whose lengths have 32 or 64 bits."""
    kind, long_length = head[:4], None
    if kind not in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"caff", b"riff"):
        return
    order = ">" if kind in (b"RIFX", b"FORM") else "<"
    position, shortest = {b"caff": (8, 12), b"riff": (40, 24)}.get(kind, (12, 8))
    while position < size and len(header := read_at(descriptor, 40, position)) >= shortest:
        if kind == b"riff":
            name, length = header[:4], struct.unpack("<Q", header[16:24])[0] - 24
            start, end = position + 24, position + 24 + length + -length % 8
        elif kind == b"caff":
            name, length = struct.unpack(">4sq", header[:12])
            start, length = position + 12, _UNKNOWN_LENGTH if length == -1 else length
            end = start + length
        else:
            name, length = struct.unpack(order + "4sI", header[:8])
            if name == b"data" and length == 0xFFFF_FFFF and long_length:
                length = long_length
            start, end = position + 8, position + 8 + length + length % 2
            if name == b"ds64" and len(header) >= 24:
                long_length = struct.unpack("<Q", header[16:24])[0]
        if length < 0 or not re.fullmatch(rb"[ -~\xa9]{4}", name) or BEGINNINGS.match(header):
            break
        # The first bytes of these two chunks are no samples: offset and block size of AIFF, the count of edits of CAF.
        skipped = 8 if name == b"SSND" else 4 if name == b"data" and kind == b"caff" else 0
        yield _Chunk(name, start + skipped, max(0, length - skipped), end)
        position = end


def _checked(descriptor: int, size: int, found: _Chunk, following: Iterator[_Chunk] | tuple[()]) -> Extent:
    """Extent of a chunk of samples; compares it with the size of the file and the bytes that follow."""
    available = max(0, size - found.start)
    if found.length >= _STREAMED_LENGTH and found.length > available:
        return Extent(found.start, available, announced=False)
    if found.length > available:
        raise AudioError("truncated", f"the header announces {found.length} bytes of samples, the file has {available}")
    end = found.end
    for chunk in following:
        if chunk.name in _SAMPLES:
            raise AudioError("undecoded", f"a second chunk of samples ({chunk.length} bytes) follows the first: split the file")
        if chunk.end > size + 1:
            break
        end = chunk.end
    if found.length == 0 and end < size:
        return Extent(found.start, available, announced=False)
    # A damaged chunk of notes still begins with a name of four letters, unannounced samples hardly ever do.
    is_chunk = re.match(rb"[ -~]{4}", read_at(descriptor, 4, end)) is not None
    check_rest(descriptor, min(end, size), size, slack=SLACK_BYTES if is_chunk else _PADDING_BYTES)
    return Extent(found.start, found.length)


def _sphere_extent(descriptor: int, size: int) -> Extent | None:
    head = read_at(descriptor, 4096, 0)
    length = re.match(rb"NIST_1A\n *(\d+)\n", head)
    fields = dict(re.findall(rb"^(sample_count|sample_n_bytes|channel_count) -i (\d+)", head, re.MULTILINE))
    # A compressed file announces its uncompressed size; libsndfile refuses it.
    if length is None or len(fields) < 3 or re.search(rb"^sample_coding .*embedded", head, re.MULTILINE):
        return None
    start, announced = int(length[1]), prod(map(int, fields.values()))
    return _checked(descriptor, size, _Chunk(b"data", start, announced, start + announced), ())
