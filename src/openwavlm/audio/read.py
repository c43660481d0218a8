"""Reads any recording as 16 kHz mono int16, and names the fault of a bad file.

libsndfile decodes PCM containers and FLAC, FFmpeg (the extra `media`) everything else; each decoder checks that the file is complete
(`containers`). soxr (HQ) resamples.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile
import soxr

from openwavlm.audio.containers.file_bytes import read_parts
from openwavlm.audio.decoders.ffmpeg import MediaSource, media_version
from openwavlm.audio.decoders.libsndfile import SoundFileSource, UnsupportedFormat
from openwavlm.audio.downmix import Decoded, MixDown, Resampler, Samples
from openwavlm.audio.errors import AudioError
from openwavlm.audio.frames import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ
from openwavlm.runtime.resources import naming, retried

# Errors in opening that describe the file; others (EMFILE, EIO, ESTALE, ENOMEM …) describe the machine and are raised.
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
# A failing disk can cause these too, through a C library that hides the error.
_CONTENT_REASONS = {"unreadable", "truncated", "undecoded", "zero-length", "not-finite"}
# Eleven days; a header that claims more is damaged.
_LONGEST_CLAIM_S = 1e6
_LOWEST_RATE_HZ, _HIGHEST_RATE_HZ = 1_000, 1_000_000

_Source = SoundFileSource | MediaSource
_Found = TypeVar("_Found")


def decoders() -> dict[str, str]:
    """Names and versions of the libraries that decode and resample, for the records of a shard set."""
    return {
        "soundfile": f"{soundfile.__version__} (libsndfile {soundfile.__libsndfile_version__})",
        "av": media_version(),
        "soxr": f"{soxr.__version__}",
    }


def probe_seconds(path: Path) -> float | None:
    """Duration in the header, seconds, None if unknown; never decodes, and raises an OSError only if the machine fails."""
    claimed_s = _probe(path, lambda source: source.claimed_s)
    return claimed_s if claimed_s is not None and 0 < claimed_s < _LONGEST_CLAIM_S else None


def probe_channels(path: Path) -> int | None:
    """Number of channels, None for an unreadable file; never decodes, and raises an OSError only if the machine fails."""
    return _probe(path, lambda source: source.channels)


def _probe(path: Path, read: Callable[[_Source], _Found]) -> _Found | None:
    """A value from a file's header; None if the file cannot be opened as audio."""
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
        path: File of any format that libsndfile or FFmpeg decodes, recognised by its content.
        start_s: Beginning of the range, seconds.
        end_s: End of the range, seconds, at most half a second after that of the recording; None for the end of the recording.
        max_hours: Longest range.
        channel: Channel to decode, from 0; None for the mean of all. Where channels cancel each other, as with one microphone reversed,
            one of them replaces the mean, and `out_of_phase` is set.

    Raises:
        AudioError: With reason `missing`, `zero-length`, `unreadable`, `no-decoder`, `no-such-channel`, `out-of-range`, `too-long`,
            `not-finite`, `truncated`, `undecoded` or `over-scale`.
        OSError: If the machine fails to open or read the file.
    """
    with _opened(path) as (descriptor, size):
        try:
            decoded, instead = _decode_once(descriptor, size, start_s, end_s, max_hours, channel)
            if instead is not None:
                decoded, _ = _decode_once(descriptor, size, start_s, end_s, max_hours, instead)
                decoded = replace(decoded, out_of_phase=True)
        except AudioError as error:
            if error.reason in _CONTENT_REASONS:
                for _ in read_parts(descriptor):  # raises an OSError if the disk fails
                    pass
            raise
    return decoded


def decode_or_stop(path: Path, **arguments: Any) -> Decoded:
    """Runs `decode`, with its arguments, for a command that skips bad files: a file is bad if it fails twice.

    Raises:
        AudioError: If the file is bad.
        OSError: If the machine fails repeatedly (too many open files, a disk or file server); names the file.
        MemoryError: If memory runs out.
    """

    def attempt() -> Decoded:
        try:
            return decode(path, **arguments)
        except AudioError as error:
            if error.reason not in _CONTENT_REASONS:
                raise
        return decode(path, **arguments)

    return retried(attempt, path)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """Opens a regular file, yields its descriptor and size, and adds its name to an OSError from within the block."""
    with naming(path):
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


def _source(descriptor: int, size: int) -> _Source:
    """Opens a file with the decoder of its content."""
    try:
        return SoundFileSource(descriptor, size)
    except UnsupportedFormat:
        return MediaSource(descriptor, size)


def _decode_once(
    descriptor: int, size: int, start_s: float, end_s: float | None, max_hours: float, channel: int | None
) -> tuple[Decoded, int | None]:
    """Decodes a channel or the mean; also returns the channel to take instead of a mean that cancels."""
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


def check_clip(samples: np.ndarray) -> None:
    """Refuses a clip that is empty, shorter than one frame, or silent.

    Raises:
        AudioError: With reason `zero-length`, `too-short` (below one receptive field of the model) or `all-zero`.
    """
    if len(samples) == 0:
        raise AudioError("zero-length", "0 samples")
    if len(samples) < RECEPTIVE_FIELD_SAMPLES:
        raise AudioError("too-short", f"{len(samples)} samples at 16 kHz, fewer than {RECEPTIVE_FIELD_SAMPLES}")
    if not samples.any():
        raise AudioError("all-zero", f"all {len(samples)} samples are zero")
