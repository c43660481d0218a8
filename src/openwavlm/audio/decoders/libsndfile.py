"""Decoder of PCM containers and FLAC: libsndfile, which opens files by descriptor.

A Python file would turn an exception in its methods (Ctrl-C, an I/O error) into the end of the file; a path would decide some formats by
the name (a text file `x.au` would be µ-law).
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import soundfile

from openwavlm.audio.containers.file_bytes import read_at
from openwavlm.audio.containers.flac import check_end, check_frames, stored_bytes, stream_info
from openwavlm.audio.containers.pcm import Extent, audio_extent, holds_mp3
from openwavlm.audio.errors import AudioError

_BLOCK_FRAMES = 1 << 18
_BLOCK_VALUES = 1 << 22
_UNKNOWN_FRAMES = 1 << 62
_SYSTEM_ERROR = 2
_MAGIC = re.compile(rb"fLaC|RIFF|RIFX|RF64|BW64|riff|FORM|caff|\.snd|NIST_1A")
_WIDTHS = {"PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}


class SequentialFile(soundfile.SoundFile):
    """A sound file, given by its descriptor, that is only read forwards.

    python-soundfile seeks after every read of a seekable file, which fails at the end of a FLAC of unknown length (soundfile 0.14).
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, closefd=False)

    def seekable(self) -> bool:
        """Always false."""
        return False


@contextmanager
def file_in_memory(content: bytes = b"") -> Iterator[int]:
    """Yields the descriptor of a file in memory, which libsndfile reads or writes without a callback."""
    descriptor = os.memfd_create("audio", os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


class UnsupportedFormat(ValueError):  # noqa: N818
    """A file that is neither PCM nor FLAC."""


class SoundFileSource:
    """An open PCM or FLAC file.

    Attributes:
        rate: Samples a second.
        channels: Number of channels.
        frames: Samples of each channel; None if unknown before decoding.
        claimed_s: Duration in the header, seconds; None if unknown.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        """Opens a file; raises `UnsupportedFormat`, or an AudioError (`truncated`, `undecoded`) if header and bytes disagree."""
        # libsndfile would search any file for MP3 frames and print errors about them.
        if not _MAGIC.match(read_at(descriptor, 12, 0)) or holds_mp3(descriptor, size):
            raise UnsupportedFormat("no PCM or FLAC file")
        os.lseek(descriptor, 0, os.SEEK_SET)
        self._descriptor, self._size = descriptor, size
        try:
            self._sound = SequentialFile(descriptor)
        except (soundfile.SoundFileError, RuntimeError) as error:
            _raise_system_error(error)
            raise UnsupportedFormat(_message(error)) from error
        self._flac = stream_info(read_at(descriptor, 42, 0)) if self._sound.format == "FLAC" else None
        if self._flac is None and (self._sound.format == "FLAC" or self._sound.subtype not in _WIDTHS):
            raise UnsupportedFormat(f"{self._sound.format} with {self._sound.subtype}")
        self.rate, self.channels = self._sound.samplerate, self._sound.channels
        self._plain = self._sound.subtype == "PCM_16"
        frames = int(self._sound.frames)
        self.frames = frames if 0 <= frames < _UNKNOWN_FRAMES else None
        self.claimed_s: float | None = None
        self._raw: Extent | None = None
        if self._flac is None:
            self._compare_extent()
        if self.frames is not None and self.rate:
            self.claimed_s = self.frames / self.rate

    def _compare_extent(self) -> None:
        """Compares the length that libsndfile reads from the header with the samples of the file."""
        extent = audio_extent(self._descriptor, self._size)
        if extent is None:
            raise UnsupportedFormat(f"{self._sound.format} with {self._sound.subtype}")
        align = self.channels * _WIDTHS[self._sound.subtype]
        held = extent.length // align
        is_raw = self._sound.format in ("WAV", "WAVEX") and "LAW" not in self._sound.subtype
        if is_raw and not extent.announced and held != self.frames:
            self.frames, self._raw = held, extent
        elif self.frames is not None and held <= self.frames:
            # In W64 and SPHERE libsndfile counts bytes after the samples as samples.
            self.frames = held
        else:
            raise AudioError("undecoded", f"the file has {held} samples, but its header announces {self.frames}: repair it")

    def blocks(self, first: int, last: int | None) -> Iterator[np.ndarray]:
        """Decodes samples `first` to `last` (None: to the end): (frames, channels), int16 if the file has 16 bits, else float32 in [−1, 1].

        Raises:
            AudioError: With reason `truncated`, `undecoded` or `unreadable`.
            OSError: If the file cannot be read.
        """
        end = self.frames if last is None or (self.frames is not None and last > self.frames) else last
        if self._raw is not None:
            yield from self._raw_blocks(self._raw.start, first, end or 0)
            return
        if first:
            self._seek(first)
        digest = hashlib.md5() if self._flac and any(self._flac.md5) and first == 0 and end == self.frames else None
        position = first
        while end is None or position < end:
            count = max(1, min(_BLOCK_FRAMES, _BLOCK_VALUES // self.channels))
            block = self._read(count if end is None else min(count, end - position), position)
            if len(block) == 0:
                break
            position += len(block)
            if digest is not None and self._flac is not None:
                digest.update(stored_bytes(block, self._flac.bits))
            yield block if block.dtype != np.int32 else block.astype(np.float32) * np.float32(2.0**-31)
        if end is not None and position < end:
            raise AudioError("truncated", f"{position} samples could be decoded where the header announces {end}")
        if self._flac is None:
            return
        if end == self.frames:
            check_end(self._descriptor, self._size, self._flac, position)
            if digest is not None and digest.digest() != self._flac.md5:
                raise AudioError("unreadable", f"the {position} decoded samples do not have the MD5 that the header announces")
        if digest is None:
            check_frames(self._descriptor, position)

    def _seek(self, first: int) -> None:
        try:
            self._sound.seek(first)
        except (soundfile.SoundFileError, RuntimeError) as error:
            _raise_system_error(error)
            raise AudioError("unreadable", f"sample {first} is not found ({_message(error)}): the file is damaged") from error

    def _read(self, count: int, position: int) -> np.ndarray:
        kind = "int16" if self._plain else "int32" if self._flac else "float32"
        try:
            return self._sound.read(count, dtype=kind, always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            _raise_system_error(error)
            # An error after the last byte was consumed means that the file was cut; before it, that bytes are wrong.
            reason = "truncated" if os.lseek(self._descriptor, 0, os.SEEK_CUR) >= self._size else "unreadable"
            raise AudioError(reason, f"decoding fails after {position} samples ({_message(error)})") from error

    def _raw_blocks(self, start: int, first: int, end: int) -> Iterator[np.ndarray]:
        """Samples of a WAV file with an unknown length in its header; they begin at byte `start`."""
        subtype = self._sound.subtype
        align = self.channels * _WIDTHS[subtype]
        for position in range(first, end, _BLOCK_FRAMES):
            count = min(_BLOCK_FRAMES, end - position)
            content = read_at(self._descriptor, count * align, start + position * align)
            yield _from_bytes(content[: len(content) // align * align], subtype).reshape(-1, self.channels)

    def close(self) -> None:
        """Closes the decoder; the descriptor stays open."""
        self._sound.close()


def _from_bytes(content: bytes, subtype: str) -> np.ndarray:
    """Samples of a little-endian WAV file, equal to those of libsndfile."""
    if subtype == "PCM_16":
        return np.frombuffer(content, "<i2").astype(np.int16)
    if subtype == "PCM_24":
        wide = np.zeros((len(content) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0].astype(np.float32) * np.float32(2.0**-31)
    if subtype == "PCM_32":
        return np.frombuffer(content, "<i4").astype(np.float32) * np.float32(2.0**-31)
    if subtype == "PCM_U8":
        return (np.frombuffer(content, np.uint8).astype(np.float32) - 128) / 128
    return np.frombuffer(content, "<f4" if subtype == "FLOAT" else "<f8").astype(np.float32)


def _raise_system_error(error: Exception) -> None:
    """Raises an `OSError` if libsndfile reports a failed system call, which does not depend on the file's content."""
    if getattr(error, "code", None) == _SYSTEM_ERROR:
        raise OSError(errno.EIO, f"libsndfile cannot read the file ({_message(error)})") from error


def _message(error: Exception) -> str:
    return getattr(error, "error_string", str(error)).removeprefix("Error : ").rstrip(".")
