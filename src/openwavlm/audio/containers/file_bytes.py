"""Bytes of an open file by offset, and the tags and padding that may follow its audio."""

import os
import re
from collections.abc import Iterator

from openwavlm.audio.errors import AudioError

# Fewer bytes after the last chunk than this are padding.
SLACK_BYTES = 1024
_WINDOW_BYTES = 1 << 17
BEGINNINGS = re.compile(
    rb"RIFF|RIFX|RF64|BW64|riff|FORM|caff|\.snd|NIST_1A|fLaC|OggS|ID3(?! )|\x1aE\xdf\xa3|#!AMR|MAC |wvpk|TTA1|....ftyp", re.DOTALL
)


class FileBytes:
    """A file by offsets, `content[start:stop]`. No `mmap`: a failing disk would end the process with a signal instead of an error."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor, self._size = descriptor, size
        self._start, self._window = 0, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> bytes:
        start, stop = where.start, min(where.stop, self._size)
        if start < self._start or stop > self._start + len(self._window):
            self._start, self._window = start, read_at(self.descriptor, max(_WINDOW_BYTES, stop - start), start)
        return self._window[start - self._start : stop - self._start]


def read_at(descriptor: int, nbytes: int, offset: int) -> bytes:
    """Reads up to `nbytes` at `offset`, fewer only at the end of the file; does not move the descriptor's position."""
    parts: list[bytes] = []
    while nbytes > 0 and (part := os.pread(descriptor, nbytes, offset)):
        parts.append(part)
        nbytes -= len(part)
        offset += len(part)
    return b"".join(parts)


def read_parts(descriptor: int, offset: int = 0) -> Iterator[bytes]:
    """Reads a file from `offset` to its end."""
    while part := read_at(descriptor, 1 << 22, offset):
        yield part
        offset += len(part)


def check_rest(descriptor: int, end: int, size: int, *, slack: int = SLACK_BYTES) -> None:
    """Raises an AudioError (`undecoded`) if bytes follow `end`, the end of the audio, that are neither padding nor tags."""
    end = after_tags(descriptor, end, size)
    rest = size - end
    if rest <= 0 or (rest <= slack and not BEGINNINGS.match(read_at(descriptor, 12, end))):
        return
    raise AudioError("undecoded", f"{rest} bytes follow the end of the audio that the header announces: repair or split the file")


def after_tags(descriptor: int, position: int, size: int) -> int:
    """End of the ID3, APE and Lyrics3 tags and zeros that begin at `position`, at most `size`."""
    while position < size:
        end = _end_of_tag(descriptor, position, size)
        # A tag longer than the file is damaged, and audio may follow it.
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
        # The size includes the footer but not the header, which this is if bit 29 is set.
        flags, length = int.from_bytes(head[20:24], "little"), int.from_bytes(head[12:16], "little")
        return position + (32 + length if flags & 1 << 29 else 32)
    if head[:11] == b"LYRICSBEGIN":
        found = read_at(descriptor, 1 << 16, position).find(b"LYRICS200")
        return position + found + 9 if found >= 0 else None
    if head[:1] == b"\0":
        return position + len(head) - len(head.lstrip(b"\0"))
    # An APE tag without a header: its footer is at the end of the file, or before an ID3v1 tag.
    for end in (size, size - 128):
        footer = read_at(descriptor, 32, end - 32) if end - 32 > position else b""
        if footer[:8] == b"APETAGEX" and end - int.from_bytes(footer[12:16], "little") == position:
            return end
    return None
