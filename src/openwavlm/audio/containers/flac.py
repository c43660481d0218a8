"""Completeness of FLAC files (RFC 9639): frames, length and MD5, which libsndfile does not compare with the decoded samples."""

import os
import re
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import numpy as np

from openwavlm.audio.containers.file_bytes import check_rest, read_at, read_parts
from openwavlm.audio.errors import AudioError

_BLOCK_SIZES = {1: 192} | {code: 576 << code - 2 for code in range(2, 6)} | {code: 256 << code - 8 for code in range(8, 16)}
_MD5 = slice(26, 42)
_SYNC = re.compile(rb"\xff[\xf8\xf9](?=[\x10-\xff])")
_LONGEST_HEADER = 16
# Most that libFLAC reads ahead of the frame that it decodes.
_READ_AHEAD = 1 << 16


class StreamInfo(NamedTuple):
    """The STREAMINFO block (§8.2)."""

    block_size: int  # samples in a frame of a file with frames of one size
    bits: int  # of a sample
    md5: bytes  # 16, of all samples; zeros if unknown


def stream_info(head: bytes) -> StreamInfo | None:
    """Reads the STREAMINFO block from the first 42 bytes of a FLAC file; None if it is no FLAC file."""
    if len(head) < _MD5.stop or head[:4] != b"fLaC" or head[4] & 0x7F:
        return None
    packed = int.from_bytes(head[18:26], "big")
    return StreamInfo(int.from_bytes(head[8:10], "big"), (packed >> 36 & 31) + 1, head[_MD5])


def flac_md5(payload: bytes) -> bytes:
    """MD5 (16 bytes) of the PCM, read from the STREAMINFO block of a FLAC file; empty if it is no FLAC file."""
    return payload[_MD5] if payload[:4] == b"fLaC" and len(payload) >= _MD5.stop else b""


def stored_bytes(block: np.ndarray, bits: int) -> bytes:
    """Input of FLAC's MD5: interleaved, little-endian samples of 4 to 32 `bits` in whole bytes.

    `block` is (frames, channels), int16 or int32, with the samples in the highest bits, as libsndfile returns them.
    """
    width = (bits + 7) // 8
    values = np.ascontiguousarray(block >> (8 * block.itemsize - bits)).astype(block.dtype.newbyteorder("<"), copy=False)
    return values.view(np.uint8).reshape(*values.shape, block.itemsize)[..., :width].tobytes()


def check_end(descriptor: int, size: int, info: StreamInfo, position: int) -> None:
    """Raises an AudioError (`undecoded`) if anything follows the last sample that the header announces.

    Args:
        descriptor: The file, with its position where libFLAC stopped after that sample.
        size: Bytes of the file.
        info: Its STREAMINFO block.
        position: Number of decoded samples.
    """
    consumed = os.lseek(descriptor, 0, os.SEEK_CUR)
    tail = read_at(descriptor, 2 * _READ_AHEAD, max(_MD5.stop, consumed - _READ_AHEAD))
    if re.search(rb"fLaC[\0\x80]\0\0\x22", tail):
        raise AudioError("undecoded", f"another FLAC file follows the first {position} samples: split the file")
    end = _last_frame_end(tail, info)
    if end is not None and end > position:
        raise AudioError("undecoded", f"the header announces {position} samples, but the frames extend to {end}: repair it")
    check_rest(descriptor, consumed, size, slack=0)


def check_frames(descriptor: int, until: int) -> None:
    """Raises an AudioError (`unreadable`) if a frame before sample `until` is missing, which libFLAC replaces by silence."""
    position, header = 4, read_at(descriptor, 4, 4)
    while len(header) == 4:
        position += 4 + int.from_bytes(header[1:], "big")
        if header[0] & 0x80:  # the last metadata block
            break
        header = read_at(descriptor, 4, position)
    start = missing_frame(read_parts(descriptor, position), until)
    if start is not None:
        raise AudioError("unreadable", f"the frame that begins at sample {start} is missing")


def _last_frame_end(tail: bytes, info: StreamInfo) -> int | None:
    """Number of samples up to the end of the last frame that begins in `tail`, by the frame's own count; None without a frame."""
    for found in reversed(list(_SYNC.finditer(tail))):
        frame = _frame(tail[found.start() : found.start() + _LONGEST_HEADER])
        if frame is not None:
            number, samples = frame
            return number * (1 if tail[found.start() + 1] & 1 else info.block_size) + samples
    return None


def missing_frame(parts: Iterable[bytes], until: int) -> int | None:
    """First sample before `until` that no frame contains; `parts` are the file from its first frame on. None if all are there."""
    expected, block_size, rest = 0, 0, b""
    for part in chain(parts, [bytes(_LONGEST_HEADER)]):
        content = rest + part
        last = len(content) - _LONGEST_HEADER
        for found in _SYNC.finditer(content, 0, max(0, last + 3)):
            frame = _frame(content[found.start() : found.start() + _LONGEST_HEADER])
            if frame is None:
                continue
            number, samples = frame
            block_size = samples if expected == number == 0 else block_size
            # Other bytes that look like a header by chance have another number.
            if number * (1 if content[found.start() + 1] & 1 else block_size) == expected:
                expected += samples
        if expected >= until:
            return None
        rest = content[max(0, last + 1) :]
    return expected


def _frame(header: bytes) -> tuple[int, int] | None:
    """Number of a frame (of its first sample, if frames differ in size) and its samples, from its header (§9.1); None if it is none."""
    if len(header) < _LONGEST_HEADER:
        return None
    lead = header[4]
    follow = 0 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length() - 1
    if lead == 0xFF or (lead >= 0x80 and follow < 1) or any(byte & 0xC0 != 0x80 for byte in header[5 : 5 + follow]):
        return None
    number = lead if lead < 0x80 else lead & (0x3F >> follow)
    for byte in header[5 : 5 + follow]:
        number = number << 6 | byte & 0x3F
    position, code = 5 + follow, header[2] >> 4
    extra = {6: 1, 7: 2}.get(code, 0)
    samples = _BLOCK_SIZES.get(code, int.from_bytes(header[position : position + extra], "big") + 1)
    position += extra + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if position >= len(header) or _crc8(header[:position]) != header[position]:
        return None
    return number, samples


def _crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x107 if crc & 0x80 else crc << 1) & 0xFF
    return crc
