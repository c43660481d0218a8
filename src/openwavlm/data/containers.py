"""What libsndfile does not tell about audio files: a WAV, SPHERE or Ogg file that was cut off, an MP3 that does not know its length."""

import re
import struct
from typing import BinaryIO


class AudioError(ValueError):
    """A recording or segment that cannot become an utterance.

    Attributes:
        reason: One of `missing`, `unreadable`, `truncated`, `zero-length`, `all-zero`, `not-finite`, `too-short`, `too-long`,
            `out-of-range`, `over-scale`, `no-such-channel`, `undecoded` (bytes remain that the decoder did not take).
        detail: What exactly was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def check_complete(file: BinaryIO, size: int) -> None:
    """Compares the sizes that WAV, NIST SPHERE and Ogg announce with the bytes that exist; leaves the file at its beginning.

    Raises:
        AudioError: With reason `truncated`.
    """
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        _check_wav(file, size)
    elif head[:7] == b"NIST_1A":
        _check_sphere(file, size)
    elif head[:4] == b"OggS":
        _check_ogg(file, size)
    file.seek(0)


def _check_wav(file: BinaryIO, size: int) -> None:
    position = 12
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            # Programs that write to a pipe leave 0 or the largest number here.
            if position + 8 + length > size and length < 0x7FFF0000:
                raise AudioError(
                    "truncated", f"the header announces {length} bytes of samples, the file has {size - position - 8}"
                )
            return
        position += 8 + length + length % 2


def _check_sphere(file: BinaryIO, size: int) -> None:
    file.seek(0)
    head = file.read(4096)
    length = re.match(rb"NIST_1A\n *(\d+)\n", head)
    fields = dict(re.findall(rb"^(sample_count|sample_n_bytes|channel_count) -i (\d+)", head, re.MULTILINE))
    # A compressed file announces the size that it had before; libsndfile refuses it.
    if length is None or len(fields) < 3 or re.search(rb"^sample_coding .*embedded", head, re.MULTILINE):
        return
    start, announced = (
        int(length[1]),
        int(fields[b"sample_count"]) * int(fields[b"sample_n_bytes"]) * int(fields[b"channel_count"]),
    )
    if start + announced > size:
        raise AudioError("truncated", f"the header announces {announced} bytes of samples, the file has {max(0, size - start)}")


def _check_ogg(file: BinaryIO, size: int) -> None:
    tail_start = max(0, size - 0x20000)
    file.seek(tail_start)
    tail = file.read()
    page = tail.rfind(b"OggS")
    segments = tail[page + 26] if page >= 0 and page + 27 <= len(tail) else 255
    table = tail[page + 27 : page + 27 + segments]
    if page < 0 or len(table) < segments or page + 27 + segments + sum(table) > len(tail):
        raise AudioError("truncated", "the last Ogg page is incomplete")


def has_xing_header(file: BinaryIO) -> bool:
    """Whether an MP3 announces its length (a Xing or Info tag in its first frame); keeps the file's position."""
    position = file.tell()
    file.seek(0)
    head = file.read(10)
    skip = 0
    if head[:3] == b"ID3" and len(head) == 10:
        skip = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    file.seek(skip)
    start = file.read(4096)
    file.seek(position)
    return b"Xing" in start or b"Info" in start
