"""Completeness of compressed files. FFmpeg does not report bytes that it skips, nor the second of two joined files."""

import re
import struct
from collections import Counter

from openwavlm.audio.containers.file_bytes import FileBytes, check_rest
from openwavlm.audio.containers.matroska import check_matroska
from openwavlm.audio.containers.ogg import Link, check_ogg
from openwavlm.audio.errors import AudioError

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot")


def check_structure(descriptor: int, size: int) -> tuple[list[Link], Counter[int]]:
    """Walks a file of compressed audio from its first byte to its last, by the kind that its first bytes name.

    Returns:
        The audio streams of an Ogg file in their order; the number of blocks of each track of a Matroska file; empty for others.

    Raises:
        AudioError: With reason `truncated`, `undecoded` or `unreadable`.
    """
    content = FileBytes(descriptor, size)
    head = content[0:16]
    if head[:4] == b"OggS":
        return check_ogg(content), Counter()
    if head[:4] == b"\x1aE\xdf\xa3":
        return [], check_matroska(content)
    if head[4:8] in _FIRST_BOXES:
        _check_boxes(content)
    elif head == _ASF_HEADER:
        _check_asf(content)
    elif head[:4] == b"MAC ":
        _check_ape(content)
    return [], Counter()


def _check_boxes(content: FileBytes) -> None:
    """Checks that the boxes of an MP4 file (ISO/IEC 14496-12) fill it, and that it has one moov box."""
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
            raise AudioError("truncated", f"the box {name.decode('latin-1')} at byte {position} exceeds the end of the file")
        descriptions += name == b"moov"
        position += length
    if descriptions == 0:
        raise AudioError("truncated", "the file has no moov box: the recording was not finished")
    if descriptions > 1:
        raise AudioError("undecoded", f"{descriptions} recordings are joined in one MP4 file, and FFmpeg reads one: split it")
    check_rest(content.descriptor, position, len(content))


def _check_asf(content: FileBytes) -> None:
    """Checks that the top-level objects of an ASF file fill it."""
    position, names = 0, []
    while position + 24 <= len(content):
        names.append(content[position : position + 16])
        length = int.from_bytes(content[position + 16 : position + 24], "little")
        if length == 0 and names[-1] == _ASF_DATA:
            return  # a live recording, which extends to the end
        if length < 24:
            break
        if position + length > len(content):
            raise AudioError("truncated", f"the object at byte {position} exceeds the end of the file")
        position += length
    if names.count(_ASF_DATA) > 1:
        raise AudioError("undecoded", "several recordings are joined in one ASF file, and FFmpeg reads one: split it")
    check_rest(content.descriptor, position, len(content))


def _check_ape(content: FileBytes) -> None:
    """Checks that the parts of a Monkey's Audio file fill it; before version 3.98 the header lacks their lengths."""
    version = int.from_bytes(content[4:6], "little")
    if version < 3980:
        return
    # Lengths of descriptor, header, seek table, WAV header, audio (64 bits) and the WAV file's trailer.
    end = max(36, sum(struct.unpack("<4IQI", content[8:36].ljust(28, b"\0"))))
    if end > len(content):
        raise AudioError("truncated", f"the header announces {end} bytes, the file has {len(content)}")
    check_rest(content.descriptor, end, len(content))
