"""Any recording → 16 kHz mono int16, and the FLAC payload that shards store; what is wrong with a bad file gets a name.

libsndfile decodes WAV, FLAC, Ogg Vorbis, Opus, MP3 and NIST SPHERE; soxr (HQ) resamples.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from openwavlm.data.containers import AudioError, check_complete, has_xing_header
from openwavlm.frames import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ

EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".sph"})
# Listed with the others so that they are reported as skipped instead of vanishing.
UNREADABLE_EXTENSIONS = frozenset({".m4a", ".aac", ".wma", ".mp4", ".webm", ".amr", ".ape"})

_BLOCK_FRAMES = 1 << 18
_UNKNOWN_FRAMES = 1 << 62
_LOSSY_TOLERANCE_S = 0.1
# Tags at the end of an MP3 (ID3v1, APE) and one read-ahead buffer.
_MP3_REST_BYTES = 1 << 14
_FLAC_MD5 = slice(26, 42)


@dataclass(frozen=True)
class Decoded:
    """A decoded recording.

    Attributes:
        samples: int16 (samples,) at 16 kHz, mono.
        num_clipped: Samples that lay beyond full scale after mixing down and resampling, and were cut to it.
        channel: Number of the channel that the samples are, from 0; None for the mean of all channels.
        out_of_phase: Whether the mean was wanted, but the channels cancel each other and `channel` was taken instead.
    """

    samples: np.ndarray
    num_clipped: int
    channel: int | None = None
    out_of_phase: bool = False


class SequentialFile(soundfile.SoundFile):
    """A sound file read forwards only.

    python-soundfile seeks after every read of a seekable file and never reads past the length that the header claims: that fails
    at the end of a FLAC of unknown length and drops the end of an MP3 whose length is a guess (soundfile 0.14).
    """

    def seekable(self) -> bool:
        """No: the position is never asked for."""
        return False


def probe_seconds(path: Path) -> float | None:
    """Duration that the header claims, or None where it cannot be known; never decodes."""
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError, RuntimeError):
        return None
    return None if info.frames >= _UNKNOWN_FRAMES else info.frames / info.samplerate


def probe_channels(path: Path) -> int | None:
    """Number of channels, or None where the file cannot be read; never decodes."""
    try:
        return int(soundfile.info(str(path)).channels)
    except (soundfile.SoundFileError, OSError, RuntimeError):
        return None


def decoders() -> dict[str, str]:
    """Names and versions of the libraries that decode and resample, for the records of what they made."""
    return {"soundfile": f"{soundfile.__version__} (libsndfile {soundfile.__libsndfile_version__})", "soxr": soxr.__version__}


def decode(
    path: Path, *, start_s: float = 0.0, end_s: float | None = None, max_hours: float = 12.0, channel: int | None = None
) -> Decoded:
    """Decodes a recording, or a range of it, to 16 kHz mono int16: channels averaged, soxr HQ, rounded to nearest.

    16 kHz mono 16-bit PCM passes through bit for bit.

    Args:
        path: WAV, FLAC, Ogg, Opus, MP3 or NIST SPHERE file of any rate and number of channels.
        start_s: Where to begin, seconds.
        end_s: Where to end, seconds; None for the end of the file. Up to half a second past the end is forgiven.
        max_hours: Longest range that is decoded.
        channel: The only channel to decode, from 0; None for the mean of all channels. Channels that cancel each other, as those
            of a recording with one microphone reversed do, are not averaged: the first is taken, and `out_of_phase` set.

    Returns:
        The samples, how many of them clipped, and which channel they are.

    Raises:
        AudioError: With reason `missing`, `zero-length`, `unreadable`, `out-of-range`, `too-long`, `not-finite`, `truncated`,
            `over-scale` or `no-such-channel`.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size == 0:
                raise AudioError("zero-length", "the file is empty")
            check_complete(file, size)
            return _decode_open(file, size, start_s, end_s, max_hours, channel)
    except FileNotFoundError as error:
        raise AudioError("missing", "no such file") from error
    except OSError as error:
        raise AudioError("unreadable", error.strerror or str(error)) from error


def _decode_open(
    file: BinaryIO, size: int, start_s: float, end_s: float | None, max_hours: float, channel: int | None
) -> Decoded:
    try:
        sound = SequentialFile(file)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise AudioError("unreadable", f"no audio format that libsndfile knows ({_message(error)})") from error
    with sound:
        sound_format = sound.format
        rate, known = sound.samplerate, sound.frames < _UNKNOWN_FRAMES
        if channel is not None and not 0 <= channel < sound.channels:
            raise AudioError("no-such-channel", f"channel {channel} of a recording with {sound.channels}, counted from 0")
        if sound.frames == 0:
            raise AudioError("zero-length", "the header announces 0 samples")
        first = int(start_s * rate)
        last = sound.frames if end_s is None else int(np.ceil(end_s * rate))
        if known and (first >= sound.frames or last > sound.frames + rate // 2):
            end = "the end" if end_s is None else f"{end_s:g} s"
            raise AudioError("out-of-range", f"segment {start_s:g} s to {end} of a recording of {sound.frames / rate:.3f} s")
        limit = int(max_hours * 3600 * rate)
        wanted = min(last, sound.frames) - first
        if known and wanted > limit:
            raise AudioError("too-long", f"{wanted / rate / 3600:.2f} hours, more than max_hours={max_hours:g}")
        # Only an MP3 with a Xing header knows its length; others are estimated from the bit rate.
        counts = known and (sound.format != "MP3" or has_xing_header(file))
        tolerance = 0 if sound.subtype.startswith("PCM") else int(_LOSSY_TOLERANCE_S * rate)
        if sound.format == "MP3" and not counts and end_s is None:
            wanted = _UNKNOWN_FRAMES
        if first:
            sound.seek(first)
        chunks, num_clipped, decoded = [], 0, 0
        for block, frames in _blocks(sound, file, wanted, channel):
            decoded += frames
            if decoded > limit:
                raise AudioError("too-long", f"more than max_hours={max_hours:g}")
            pcm, clipped = _to_int16(block)
            chunks.append(pcm)
            num_clipped += clipped
    if counts and decoded < wanted - tolerance:
        raise AudioError("truncated", f"{decoded} samples could be decoded where the header announces {wanted}")
    if wanted == _UNKNOWN_FRAMES and sound_format == "MP3" and size - file.tell() > _MP3_REST_BYTES:
        rest = size - file.tell()
        raise AudioError(
            "unreadable", f"libsndfile stops {rest} bytes before the end of this MP3, which has no Xing header: convert it"
        )
    samples = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
    if 2 * num_clipped > len(samples):
        raise AudioError(
            "over-scale", f"{num_clipped} of {len(samples)} samples lie beyond full scale: scale the file to ±1 first"
        )
    return Decoded(samples, num_clipped, channel)


def _blocks(sound: soundfile.SoundFile, file: BinaryIO, wanted: int, channel: int | None) -> Iterator[tuple[np.ndarray, int]]:
    """Yields mono 16 kHz blocks (int16 if stored so, else float32) with the number of frames that each took from the file."""
    plain = sound.samplerate == SAMPLE_RATE_HZ and sound.channels == 1 and sound.subtype == "PCM_16"
    stream = None
    if sound.samplerate != SAMPLE_RATE_HZ:
        stream = soxr.ResampleStream(sound.samplerate, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
    left = wanted
    while left > 0:
        try:
            block = sound.read(min(left, _BLOCK_FRAMES), dtype="int16" if plain else "float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            # An error after the last byte was consumed means that the file was cut; before it, that bytes are wrong.
            reason = "truncated" if not file.read(1) else "unreadable"
            raise AudioError(reason, f"decoding fails after {wanted - left} samples ({_message(error)})") from error
        if len(block) == 0:
            break
        left -= len(block)
        mono = block[:, channel or 0] if channel is not None or block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
        if not plain and not np.isfinite(mono).all():
            raise AudioError("not-finite", "the samples contain NaN or infinity")
        yield (mono if stream is None else stream.resample_chunk(mono)), len(block)
    if stream is not None:
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True), 0


def _to_int16(block: np.ndarray) -> tuple[np.ndarray, int]:
    if block.dtype == np.int16:
        return block, 0
    scaled = np.rint(block * np.float32(32768))
    clipped = int(np.count_nonzero((scaled > 32767) | (scaled < -32768)))
    return np.clip(scaled, -32768, 32767).astype(np.int16), clipped


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
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def flac_md5(payload: bytes) -> bytes:
    """MD5 (16 bytes) of the PCM, read from the STREAMINFO block of a FLAC file (RFC 9639 §8.2); empty if it is no FLAC file."""
    return payload[_FLAC_MD5] if payload[:4] == b"fLaC" and len(payload) >= _FLAC_MD5.stop else b""


def pcm_md5(samples: np.ndarray) -> bytes:
    """MD5 (16 bytes) of int16 samples as FLAC defines it: little-endian."""
    return hashlib.md5(np.ascontiguousarray(samples, dtype="<i2").tobytes()).digest()


def pcm_id(md5: bytes) -> int:
    """First 64 bits of a PCM MD5, the `pcm` column of the index."""
    return int.from_bytes(md5[:8], "little")


def _message(error: Exception) -> str:
    return getattr(error, "error_string", str(error)).removeprefix("Error : ").rstrip(".")
