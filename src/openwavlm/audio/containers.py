"""Where the samples of a PCM container lie, and whether the file holds all of them and nothing that would be left out.

libsndfile reads what a header announces. A file can hold less (it was cut off) or more (its length was never filled in, or another
file was appended); neither is an error to it.
"""

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

# Programs that write to a pipe leave 0 or a number from here up as the length.
_STREAMED_LENGTH = 0x7FFF_0000
_UNKNOWN_LENGTH = 1 << 62
# Fewer bytes after the last chunk than this are padding.
_SLACK_BYTES = 1024
_PADDING_BYTES = 16
_SAMPLES = {b"data", b"SSND"}
_BEGINNINGS = re.compile(
    rb"RIFF|RIFX|RF64|BW64|riff|FORM|caff|\.snd|NIST_1A|fLaC|OggS|ID3(?! )|\x1aE\xdf\xa3|#!AMR|MAC |wvpk|TTA1|....ftyp", re.DOTALL
)


class AudioError(ValueError):
    """A recording or segment that cannot become an utterance.

    Attributes:
        reason: One of `missing`, `unreadable`, `truncated`, `undecoded` (bytes remain that the decoder does not take),
            `no-decoder` (the extra `media` is not installed), `zero-length`, `all-zero`, `not-finite`, `too-short`, `too-long`,
            `out-of-range`, `over-scale`, `no-such-channel`.
        detail: What exactly was found.
        recording_s: With `out-of-range`: duration of the recording, seconds, as decoded where the header does not tell.
    """

    def __init__(self, reason: str, detail: str, recording_s: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.recording_s = recording_s


@dataclass(frozen=True)
class Extent:
    """The bytes of a file that are samples.

    Attributes:
        start: Offset of the first.
        length: Their number.
        announced: Whether the header gives this number; otherwise they go on to the end of the file.
    """

    start: int
    length: int
    announced: bool = True


@dataclass(frozen=True)
class _Chunk:
    name: bytes
    start: int
    length: int
    end: int


def read_at(descriptor: int, nbytes: int, offset: int) -> bytes:
    """Reads up to `nbytes` at `offset`, fewer only at the end of the file; leaves the descriptor's position alone.

    Raises:
        OSError: If the file cannot be read.
    """
    parts: list[bytes] = []
    while nbytes > 0 and (part := os.pread(descriptor, nbytes, offset)):
        parts.append(part)
        nbytes -= len(part)
        offset += len(part)
    return b"".join(parts)


def read_parts(descriptor: int, offset: int = 0) -> Iterator[bytes]:
    """Reads a file from `offset` to its end.

    Raises:
        OSError: If it cannot be read.
    """
    while part := read_at(descriptor, 1 << 22, offset):
        yield part
        offset += len(part)


def audio_extent(descriptor: int, size: int) -> Extent | None:
    """Finds the samples of a WAV, RF64, W64, AIFF, CAF, AU or NIST SPHERE file.

    Args:
        descriptor: The open file.
        size: Its bytes.

    Returns:
        Where they are; None for any other format, and where there are none.

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
    """Whether a file is a WAV, RF64 or W64 container of MP3 (WAVE_FORMAT_MPEGLAYER3, 0x55)."""
    for chunk in _chunks(descriptor, size, read_at(descriptor, 40, 0)):
        if chunk.name == b"fmt ":
            head = read_at(descriptor, 26, chunk.start)
            return b"\x55\0" in (head[:2], head[24:26] if head[:2] == b"\xfe\xff" else b"")
    return False


def _chunks(descriptor: int, size: int, head: bytes) -> Iterator[_Chunk]:
    """Walks the chunks of an IFF-like container; a length of 64 bits is taken from where the container keeps it."""
    order, position, kind = "<", 12, head[:4]
    if kind in (b"RIFX", b"FORM"):
        order = ">"
    elif kind == b"caff":
        position = 8
    elif kind == b"riff":
        position = 40
    elif kind not in (b"RIFF", b"RF64", b"BW64"):
        return
    long_length = None
    while position < size:
        header = read_at(descriptor, 40, position)
        if kind == b"riff":
            if len(header) < 24:
                break
            name, length = header[:4], struct.unpack("<Q", header[16:24])[0] - 24
            start, end = position + 24, position + 24 + length + -length % 8
        elif kind == b"caff":
            if len(header) < 12:
                break
            name, length = struct.unpack(">4sq", header[:12])
            start, length = position + 12, _UNKNOWN_LENGTH if length == -1 else length
            end = start + length
        else:
            if len(header) < 8:
                break
            name, length = struct.unpack(order + "4sI", header[:8])
            if name == b"data" and length == 0xFFFF_FFFF and long_length:
                length = long_length
            start, end = position + 8, position + 8 + length + length % 2
            if name == b"ds64" and len(header) >= 24:
                long_length = struct.unpack("<Q", header[16:24])[0]
        if length < 0 or not re.fullmatch(rb"[ -~\xa9]{4}", name) or _BEGINNINGS.match(header):
            break
        # The first bytes of these two are no samples: offset and block size of AIFF, the count of edits of CAF.
        skipped = 8 if name == b"SSND" else 4 if name == b"data" and kind == b"caff" else 0
        yield _Chunk(name, start + skipped, max(0, length - skipped), end)
        position = end


def _checked(descriptor: int, size: int, found: _Chunk, following: Iterator[_Chunk] | tuple[()]) -> Extent:
    """The extent of a chunk of samples, compared with the bytes that exist and with what follows it."""
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
    # Samples behind the announced ones do not look like the head of a chunk, as a damaged note of the recorder does.
    is_chunk = re.match(rb"[ -~]{4}", read_at(descriptor, 4, end)) is not None
    check_rest(descriptor, min(end, size), size, slack=_SLACK_BYTES if is_chunk else _PADDING_BYTES)
    return Extent(found.start, found.length)


def check_rest(descriptor: int, end: int, size: int, *, slack: int = _SLACK_BYTES) -> None:
    """Refuses what follows the last byte that a decoder or the container accounts for, unless it is padding or a tag.

    Raises:
        AudioError: With reason `undecoded`.
    """
    end = after_tags(descriptor, end, size)
    rest = size - end
    if rest <= 0 or (rest <= slack and not _BEGINNINGS.match(read_at(descriptor, 12, end))):
        return
    raise AudioError("undecoded", f"{rest} bytes follow the end of the audio that the header announces: repair or split the file")


def after_tags(descriptor: int, position: int, size: int) -> int:
    """Where the ID3, APE and Lyrics3 tags and the zeros that begin at `position` end, at most `size`."""
    while position < size:
        end = _end_of_tag(descriptor, position, size)
        # The length of a tag is believed only if the file has so many bytes: audio may follow a damaged one.
        if end is None or end > os.fstat(descriptor).st_size:
            break
        position = end
    return min(position, size)


def _end_of_tag(descriptor: int, position: int, size: int) -> int | None:
    """End of the tag or the zeros at a position, None if there are none."""
    head = read_at(descriptor, 32, position)
    if head[:3] == b"ID3" and len(head) >= 10:
        length = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        # A tag of ID3v2.4 behind the audio has a footer of ten bytes.
        return position + length + (20 if head[5] & 0x10 else 10)
    if head[:3] == b"TAG":
        return position + 128
    if head[:8] == b"APETAGEX" and len(head) == 32:
        # The size includes the footer; a header, if this is one, comes on top.
        flags, length = int.from_bytes(head[20:24], "little"), int.from_bytes(head[12:16], "little")
        return position + (32 + length if flags & 1 << 29 else 32)
    if head[:11] == b"LYRICSBEGIN":
        found = read_at(descriptor, 1 << 16, position).find(b"LYRICS200")
        return position + found + 9 if found >= 0 else None
    if head[:1] == b"\0":
        return position + len(head) - len(head.lstrip(b"\0"))
    return _end_of_ape_items(descriptor, position, size)


def _end_of_ape_items(descriptor: int, position: int, size: int) -> int | None:
    """End of an APE tag without a header, whose items begin at `position`; its footer is the last of a file, or before an ID3v1 tag."""
    for end in (size, size - 128):
        footer = read_at(descriptor, 32, end - 32) if end - 32 > position else b""
        if footer[:8] == b"APETAGEX" and end - int.from_bytes(footer[12:16], "little") == position:
            return end
    return None


def _sphere_extent(descriptor: int, size: int) -> Extent | None:
    head = read_at(descriptor, 4096, 0)
    length = re.match(rb"NIST_1A\n *(\d+)\n", head)
    fields = dict(re.findall(rb"^(sample_count|sample_n_bytes|channel_count) -i (\d+)", head, re.MULTILINE))
    # A compressed file announces the size that it had before; libsndfile refuses it.
    if length is None or len(fields) < 3 or re.search(rb"^sample_coding .*embedded", head, re.MULTILINE):
        return None
    start, announced = int(length[1]), 1
    for count in fields.values():
        announced *= int(count)
    return _checked(descriptor, size, _Chunk(b"data", start, announced, start + announced), ())
