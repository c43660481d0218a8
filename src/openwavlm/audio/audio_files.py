"""Any recording → 16 kHz mono int16, and the FLAC payload that shards store; what is wrong with a bad file gets a name.

libsndfile decodes PCM containers and FLAC (`sound_files.py`), FFmpeg everything else (`media.py`, the extra `media`); soxr (HQ)
resamples. Each decoder ends with a check that no audio of the file remains undecoded.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import soundfile
import soxr

from openwavlm.audio.containers import AudioError, read_at, read_parts
from openwavlm.audio.downmix import Decoded, MixDown, Resampler, Samples
from openwavlm.audio.flac import flac_md5 as flac_md5
from openwavlm.audio.frames import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ
from openwavlm.audio.media import MediaSource, media_version
from openwavlm.audio.sound_files import SoundFileSource, UnsupportedFormat, file_in_memory

_PCM_EXTENSIONS = {
    ".wav",
    ".wave",
    ".rf64",
    ".bwf",
    ".w64",
    ".aiff",
    ".aif",
    ".aifc",
    ".caf",
    ".au",
    ".snd",
    ".sph",
    ".nist",
    ".wv1",
    ".wv2",
}
_MEDIA_EXTENSIONS = {
    *(".mp3", ".mp2", ".mpa", ".mpga", ".ogg", ".oga", ".ogx", ".ogv", ".opus", ".spx", ".aac", ".adts"),
    *(".m4a", ".m4b", ".m4r", ".m4v", ".mp4", ".mov", ".3gp", ".3g2", ".webm", ".weba", ".mka", ".mkv"),
    *(".wma", ".wmv", ".asf", ".amr", ".awb", ".wv", ".tta", ".ape"),
}
EXTENSIONS = frozenset(_PCM_EXTENSIONS | _MEDIA_EXTENSIONS | {".flac"})
# Audio that no decoder here takes; listed with the others so that it is reported as skipped instead of vanishing.
UNREADABLE_EXTENSIONS = frozenset(
    {
        *(".ra", ".rm", ".shn", ".mpc", ".ac3", ".eac3", ".dts", ".dsf", ".vox", ".gsm", ".voc"),
        *(".g722", ".qcp", ".tak", ".ofr", ".ofs", ".dff", ".aax", ".aa", ".avi", ".flv"),
    }
)

# What an error in opening says about the file, not about the machine: everything else (EMFILE, EIO, ESTALE, ENOMEM …) is raised.
_PATH_ERRORS = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO), "unreadable"),
}
_FILE_TYPES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Verdicts that a failing disk could cause as well.
_CONTENT_REASONS = {"unreadable", "truncated", "undecoded", "zero-length", "not-finite"}
# No recording is longer than eleven days; a header that claims so is damaged.
_LONGEST_CLAIM_S = 1e6
_LOWEST_RATE_HZ, _HIGHEST_RATE_HZ = 1_000, 1_000_000


_Found = TypeVar("_Found")


class Source(Protocol):
    """An open recording.

    Attributes:
        rate: Samples a second.
        channels: Number of channels.
        frames: Samples of each channel; None if only decoding them all will tell.
        claimed_s: Duration that the header claims, seconds; None where it claims none.
    """

    rate: int
    channels: int
    frames: int | None
    claimed_s: float | None

    def blocks(self, first: int, last: int | None) -> Iterator[np.ndarray]:
        """Decodes samples `first` to `last` (None: to the end): int16, or float32 in [−1, 1], (frames, channels).

        Raises:
            AudioError: If the file cannot be decoded, or holds more audio than is decoded.
            OSError: If it cannot be read.
        """

    def close(self) -> None:
        """Closes the decoder."""


def decoders() -> dict[str, str]:
    """Names and versions of the libraries that decode and resample, for the records of what they made."""
    return {
        "soundfile": f"{soundfile.__version__} (libsndfile {soundfile.__libsndfile_version__})",
        "av": media_version(),
        "soxr": f"{soxr.__version__}",
    }


def probe_seconds(path: Path) -> float | None:
    """Duration that the header claims, or None where it cannot be known; never decodes.

    Raises:
        OSError: If the machine fails to read the file (not: if there is none, or it is unreadable).
    """
    claimed_s = _probe(path, lambda source: source.claimed_s)
    return claimed_s if claimed_s is not None and 0 < claimed_s < _LONGEST_CLAIM_S else None


def probe_channels(path: Path) -> int | None:
    """Number of channels, or None where the file cannot be decoded; never decodes.

    Raises:
        OSError: If the machine fails to read the file (not: if there is none, or it is unreadable).
    """
    return _probe(path, lambda source: source.channels)


def _probe(path: Path, read: Callable[[Source], _Found]) -> _Found | None:
    """What a file's header says; None where it cannot be opened as audio."""
    try:
        with _opened(path) as (descriptor, size), closing(_source(descriptor, size)) as source:
            return read(source)
    except AudioError:
        return None


def decode(
    path: Path, *, start_s: float = 0.0, end_s: float | None = None, max_hours: float = 12.0, channel: int | None = None
) -> Decoded:
    """Decodes a recording, or a range of it, to 16 kHz mono int16: channels averaged, soxr HQ, rounded to nearest.

    16 kHz mono 16-bit PCM passes through bit for bit.

    Args:
        path: File of any format that libsndfile or FFmpeg decodes, of any rate and number of channels; recognised by its content.
        start_s: Where to begin, seconds.
        end_s: Where to end, seconds; None for the end of the file. Up to half a second past the end is forgiven.
        max_hours: Longest range that is decoded.
        channel: The only channel to decode, from 0; None for the mean of all channels. Channels that cancel each other, as those
            of a recording with one microphone reversed do, are not averaged: one is taken, and `out_of_phase` set.

    Returns:
        The samples, how many of them clipped, and which channel they are.

    Raises:
        AudioError: With reason `missing`, `zero-length`, `unreadable`, `no-decoder`, `no-such-channel`, `out-of-range`, `too-long`,
            `not-finite`, `truncated`, `undecoded` or `over-scale`.
        OSError: If the machine fails to open or read the file: no verdict on its content.
    """
    with _opened(path) as (descriptor, size):
        try:
            decoded, instead = _decode_once(descriptor, size, start_s, end_s, max_hours, channel)
            if instead is not None:
                decoded, _ = _decode_once(descriptor, size, start_s, end_s, max_hours, instead)
                decoded = replace(decoded, out_of_phase=True)
        except AudioError as error:
            if error.reason in _CONTENT_REASONS:
                for _ in read_parts(descriptor):  # a failing disk is not taken for bad audio
                    pass
            raise
    return decoded


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """Opens a regular file; an OSError from within the block gets the file's name.

    Yields:
        The descriptor and the size.
    """
    try:
        try:
            kind = stat.S_IFMT(path.stat().st_mode)
            if kind != stat.S_IFREG:
                raise AudioError("unreadable", f"it is {_FILE_TYPES.get(kind, 'no regular file')}, not a file of audio")
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            reason = _PATH_ERRORS.get(error.errno or 0)
            if reason is None:
                raise
            raise AudioError(reason, "no such file" if reason == "missing" else error.strerror or str(error)) from error
        try:
            size = os.fstat(descriptor).st_size
            if size == 0:
                raise AudioError("zero-length", "the file is empty")
            yield descriptor, size
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _source(descriptor: int, size: int) -> Source:
    try:
        return SoundFileSource(descriptor, size)
    except UnsupportedFormat:
        return MediaSource(descriptor, size)


def _decode_once(
    descriptor: int, size: int, start_s: float, end_s: float | None, max_hours: float, channel: int | None
) -> tuple[Decoded, int | None]:
    """Decodes with one choice of channels; also returns the channel to take instead, where the mean is no good."""
    with closing(_source(descriptor, size)) as source:
        rate, frames = source.rate, source.frames
        if not _LOWEST_RATE_HZ <= rate <= _HIGHEST_RATE_HZ:
            raise AudioError("unreadable", f"a rate of {rate} Hz, outside {_LOWEST_RATE_HZ} Hz … {_HIGHEST_RATE_HZ} Hz")
        if channel is not None and not 0 <= channel < source.channels:
            raise AudioError("no-such-channel", f"channel {channel} of a recording with {source.channels}, counted from 0")
        first, last = int(start_s * rate), None if end_s is None else int(np.ceil(end_s * rate))
        limit = int(max_hours * 3600 * rate)
        if frames is not None:
            _check_range(first, last, frames, rate, start_s, end_s)
            wanted = (frames if last is None else min(last, frames)) - first
            if wanted > limit:
                raise AudioError("too-long", f"{wanted / rate / 3600:.2f} hours, more than max_hours={max_hours:g}")
        resampler = Resampler(rate, first, last if last is None or frames is None or last < frames else None)
        mix, samples = MixDown(channel), Samples(0 if frames is None else -(-wanted * SAMPLE_RATE_HZ // rate))
        position = resampler.lead
        for block in source.blocks(resampler.lead, resampler.tail):
            position += len(block)
            if min(position, position if last is None else last) - first > limit:
                raise AudioError("too-long", f"more than max_hours={max_hours:g}")
            samples.append(resampler(mix(block)))
        samples.append(resampler(np.zeros(0, np.float32), last=True))
        if frames is None:
            _check_range(first, last, position, rate, start_s, end_s)
        return Decoded(samples.finish(), samples.num_clipped, channel), mix.replacement()


def _check_range(first: int, last: int | None, frames: int, rate: int, start_s: float, end_s: float | None) -> None:
    if frames == 0:
        raise AudioError("zero-length", "the file has 0 samples")
    if first >= frames or (last is not None and last > frames + rate // 2):
        end = "the end" if end_s is None else f"{end_s:g} s"
        length_s = frames / rate
        raise AudioError("out-of-range", f"segment {start_s:g} s to {end} of a recording of {length_s:.3f} s", length_s)


def check_clip(samples: np.ndarray, *, min_samples: int = RECEPTIVE_FIELD_SAMPLES) -> None:
    """Refuses a clip from which nothing can be learnt.

    Raises:
        AudioError: With reason `zero-length`, `too-short` (below one receptive field of the model) or `all-zero`.
    """
    if len(samples) == 0:
        raise AudioError("zero-length", "0 samples")
    if len(samples) < min_samples:
        raise AudioError("too-short", f"{len(samples)} samples at 16 kHz, fewer than {min_samples}")
    if not samples.any():
        raise AudioError("all-zero", f"all {len(samples)} samples are zero")


def encode_flac(samples: np.ndarray) -> bytes:
    """Encodes int16 (samples,) as a 16 kHz mono 16-bit FLAC file; the same samples always give the same bytes."""
    return encode(samples, "FLAC", "PCM_16")


def encode(samples: np.ndarray, container: str, subtype: str) -> bytes:
    """Encodes (samples,), int16 or float in [−1, 1], as a 16 kHz mono file of a container and subtype that libsndfile writes."""
    with file_in_memory() as descriptor:
        soundfile.write(descriptor, samples, SAMPLE_RATE_HZ, format=container, subtype=subtype, closefd=False)
        return read_at(descriptor, os.fstat(descriptor).st_size, 0)


def pcm_md5(samples: np.ndarray) -> bytes:
    """MD5 (16 bytes) of int16 samples as FLAC defines it: little-endian."""
    return hashlib.md5(np.ascontiguousarray(samples, dtype="<i2").tobytes()).digest()


def pcm_id(md5: bytes) -> int:
    """First 64 bits of a PCM MD5, the `pcm` column of the index."""
    return int.from_bytes(md5[:8], "little")
