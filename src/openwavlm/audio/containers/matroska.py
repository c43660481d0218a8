"""Completeness of Matroska and WebM files (RFC 9559): whole elements, and the number of blocks of each track."""

from collections import Counter

from openwavlm.audio.containers.file_bytes import FileBytes
from openwavlm.audio.errors import AudioError

_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_SIMPLE_BLOCK, _BLOCK_GROUP, _BLOCK = 0xA3, 0xA0, 0xA1
# Level-1 elements of a segment: seek head, info, tracks, cluster, cues, attachments, chapters, tags, void, CRC-32.
_LEVEL_1 = {0x114D9B74, 0x1549A966, 0x1654AE6B, _CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, 0xEC, 0xBF}
# Elements of a cluster: timestamp, position, previous size, simple block, block group, silent tracks, encrypted block, void, CRC-32.
_LEVEL_2 = {0xE7, 0xA7, 0xAB, _SIMPLE_BLOCK, _BLOCK_GROUP, 0x5854, 0xAF, 0xEC, 0xBF}


def check_matroska(content: FileBytes) -> Counter[int]:
    """Walks the elements of a file, which may hold several recordings, and returns the number of blocks by track.

    Raises:
        AudioError: With reason `truncated` or `unreadable`.
    """
    position, blocks = 0, Counter[int]()
    # Names and ends of the elements around the position; one of unknown length ends where an outer element begins.
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
            raise AudioError("unreadable", f"the bytes from {position} on are not a Matroska element: repair the file")
        end = len(content) + 1 if unknown else start + length
        if not unknown and end > (open_elements[-1][1] if open_elements else len(content)):
            if end > len(content):
                raise AudioError("truncated", f"the element at byte {position} exceeds the end of the file")
            raise AudioError("unreadable", f"the element at byte {position} exceeds its parent element: repair the file")
        if name in (_SEGMENT, _CLUSTER):
            open_elements.append((name, end))
            position = start
        else:
            if name in (_SIMPLE_BLOCK, _BLOCK_GROUP):
                blocks[_track(content, name, start, end)] += 1
            position = end
    return blocks


def _track(content: FileBytes, name: int, start: int, end: int) -> int:
    """Number of a block's track, 0 without a block."""
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


def _ebml_number(content: FileBytes, position: int, *, keep_marker: bool = False) -> tuple[int, int]:
    """Reads a number of variable width (RFC 8794 §4); returns it and the position after it."""
    width = _width(content[position : position + 1])
    if width > 8 and position < len(content):
        raise AudioError("unreadable", f"the bytes from {position} on are not a Matroska element: repair the file")
    if position + width > len(content):
        raise AudioError("truncated", "the last Matroska element is incomplete")
    number = int.from_bytes(content[position : position + width], "big")
    return (number if keep_marker else number & (1 << 7 * width) - 1), position + width
