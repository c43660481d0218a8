"""Decoder of compressed audio: FFmpeg (PyAV, the extra `media`), for MP3, Ogg, MP4, Matroska, AAC, WMA, AMR, and WAV with a codec.

FFmpeg reads a descriptor, opens nothing else (no play lists, no network), and decodes from the first packet on: a range is a slice of
the decoded whole. The file's bytes show where FFmpeg ended early, left gaps or ignored errors.
"""

import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np

from openwavlm.audio.containers.compressed import check_structure
from openwavlm.audio.containers.file_bytes import after_tags, check_rest, read_at
from openwavlm.audio.containers.ogg import Link
from openwavlm.audio.containers.pcm import audio_extent
from openwavlm.audio.decoders.ffmpeg_errors import ffmpeg_errors
from openwavlm.audio.decoders.ffmpeg_frames import Frame, samples_of, skips_of, trim_links, trim_mp3
from openwavlm.audio.errors import AudioError
from openwavlm.runtime.interrupt import signals_blocked

_FORMATS = "mp3,aac,amr,ogg,mov,matroska,asf,wav,w64,aiff,caf,au,nistsphere,flac,wv,tta,ape"
# Formats of frames alone: every byte belongs to a frame or a tag.
_FRAMES_ONLY = ("mp3", "aac", "amr")
_LOSSLESS = ("wavpack", "tta", "flac", "ape", "alac")
# A recording of a broadcast begins within a frame, of at most this many bytes.
_LONGEST_FRAME = 2881
_LOSSY_TOLERANCE_S = 0.05
# Less than the shortest packet of a codec in a WAV file (GSM 6.10: 65 bytes).
_LONGEST_REST_BYTES = 64
# The tag of G.726 in WAV files with a known order of the bits; libsndfile writes another tag and the other order.
_G726_TAG = "\x45"
_BLOCK_FRAMES = 1 << 16


def media_version() -> str:
    """Version of PyAV and of the FFmpeg in it; `not installed` without the extra `media`."""
    try:
        import av
    except ImportError:
        return "not installed"
    return f"{av.__version__} (FFmpeg {av.ffmpeg_version_info})"


class MediaSource:
    """An open file of compressed audio, with the attributes of `SoundFileSource`; `claimed_s` may be an estimate from the bit rate."""

    frames: int | None = None

    def __init__(self, descriptor: int, size: int) -> None:
        """Opens a file.

        Raises:
            AudioError: With reason `no-decoder` without PyAV; `unreadable`, `truncated` or `undecoded`.
            OSError: If the file cannot be read.
        """
        self._descriptor, self._size = descriptor, size
        self._extent = audio_extent(descriptor, size)
        self._links, self._blocks = check_structure(descriptor, size)
        try:
            import av
        except ImportError as error:
            raise AudioError("no-decoder", "PyAV must be installed to decode it: pip install 'openwavlm[media]'") from error
        os.lseek(descriptor, 0, os.SEEK_SET)
        options = {"fd": str(descriptor), "protocol_whitelist": "fd", "format_whitelist": _FORMATS}
        with ffmpeg_errors("unknown audio format"):
            self._container = av.open("fd:", options=options, metadata_errors="ignore")
        try:
            self._prepare(self._container.streams.audio, av.codec.context.Flags2.skip_manual)
        except BaseException:
            self._container.close()
            raise

    def _prepare(self, streams: Any, skip_manual: Any) -> None:
        """Chooses the audio stream and sets up its decoder."""
        if len(streams) != 1:
            reason = "undecoded" if streams else "unreadable"
            raise AudioError(reason, f"the file has {len(streams)} audio streams, but one is needed: extract one of them")
        self._stream = streams[0]
        context = self._stream.codec_context
        if context is None:
            raise AudioError("unreadable", "the codec that the file announces has no decoder here")
        self.rate, self.channels, self.format = context.sample_rate or 0, context.channels, self._container.format.name
        if context.name == "g726" and self.format == "wav" and not context.codec_tag.startswith(_G726_TAG):
            raise AudioError("unreadable", "G.721 or G.726 in an order of bits that WAV does not name: convert the file to PCM")
        duration, base = self._stream.duration, self._stream.time_base
        self.claimed_s: float | None = self._container.duration / 1e6 if self._container.duration else None
        if self._links:
            self.claimed_s = sum(link.samples / link.rate for link in self._links)
        elif duration is not None and base is not None:
            self.claimed_s = float(duration * base)
        self._is_pcm = context.name.startswith("pcm_")
        # Decoders of these codecs turn zeros, which no encoder writes, into sound.
        self._is_speech = context.name in ("opus", "amrnb", "amrwb")
        context.thread_count = 1
        # FFmpeg conceals errors in lossy codecs, which are common; in a lossless codec they are refused.
        context.options = {"err_detect": "crccheck+explode" if context.name in _LOSSLESS else "crccheck"}
        if self.format in ("mp3", "ogg", "caf"):
            context.flags2 |= skip_manual
        self._count, self._begin, self._end = 0, 0, 0  # packets; bytes of the first and after the last one
        self._last: Any = None
        self._begins = True

    def blocks(self, first: int, last: int | None) -> Iterator[np.ndarray]:
        """Decodes from the beginning and yields samples `first` to `last`, as `SoundFileSource.blocks` does."""
        position = 0
        pending: list[np.ndarray] = []
        for frame in self._frames():
            start, position = position, position + len(frame)
            if position > first:
                pending.append(frame[max(0, first - start) : len(frame) if last is None else max(0, last - start)])
                if sum(map(len, pending)) >= _BLOCK_FRAMES:
                    yield np.concatenate(pending)
                    pending.clear()
            if last is not None and position >= last:
                break
        else:
            self._check_end(position)
        if pending:
            yield np.concatenate(pending)

    def close(self) -> None:
        """Closes the decoder; the descriptor stays open."""
        self._container.close()

    def _frames(self) -> Iterator[np.ndarray]:
        """Decodes every packet; yields (frames, channels) without the delay and padding of the encoder."""
        frames = map(self._frame, self._decoded())
        if self.format == "mp3":
            yield from trim_mp3(frames)
        elif self.format == "ogg":
            yield from trim_links(frames, self._links)
        elif self.format == "caf" and self.claimed_s is not None:
            yield from trim_links(frames, [Link(round(self.claimed_s * self.rate), self.rate, exact=True)])
        else:
            yield from (frame.samples for frame in frames)

    def _frame(self, frame: Any) -> Frame:
        before, now = (self.rate, self.channels), (frame.sample_rate, len(frame.layout.channels))
        if now != before:
            raise AudioError("unreadable", f"rate (Hz) and channels change from {before} to {now} within the file: split it")
        if frame.is_corrupt:
            raise AudioError("unreadable", f"packet {self._count} is damaged")
        samples = samples_of(frame)
        delay, padding = skips_of(frame)
        begins, self._begins = self._begins or delay > 0, False
        if begins and self._stream.codec_context.name == "vorbis":
            # The first block only overlaps with the second; FFmpeg does not report this delay for later links.
            delay = len(samples)
        return Frame(samples, delay, padding, begins)

    def _decoded(self) -> Iterator[Any]:
        import av

        tag_end = 0
        packets = self._container.demux(self._stream)
        while (packet := self._read(packets)) is not None:
            if packet.size:
                if packet.pos is not None and packet.pos + packet.size <= tag_end:
                    self._end = packet.pos + packet.size
                    continue
                self._take(packet)
            try:
                with ffmpeg_errors(""):
                    frames = packet.decode()
            except AudioError as error:
                rest = self._after_tag(packet)
                if rest is None:
                    reason = "truncated" if self._end >= self._size and self.format != "ogg" else "unreadable"
                    raise AudioError(reason, f"packet {self._count} cannot be decoded ({error.detail})") from error
                tag_end = packet.pos + packet.size - len(rest) if rest else after_tags(self._descriptor, packet.pos, self._size)
                with ffmpeg_errors(f"packet {self._count} cannot be decoded"):
                    frames = self._stream.codec_context.decode(av.Packet(rest)) if rest else []
            else:
                self._last = packet if packet.size else self._last
            self._begins = self._begins or (self.format == "ogg" and packet.has_sidedata("new_extradata"))
            yield from frames

    def _read(self, packets: Iterator[Any]) -> Any:
        """The next packet; None at the end or if only tags follow, which FFmpeg 8.1 takes for damaged blocks of WavPack."""
        # PyAV loses a KeyboardInterrupt that arrives while it builds its exception for the end of a file (PyAV 18.1: 11 of 1,300).
        blocked = signals_blocked(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        try:
            with ffmpeg_errors(f"reading fails after {self._count} packets"), blocked:
                return next(packets, None)
        except AudioError:
            if self.format != "wv" or after_tags(self._descriptor, self._end, self._size) < self._size:
                raise
            return None

    def _after_tag(self, packet: Any) -> bytes | None:
        """Rest of a packet after the tag at its beginning, as before the second of two joined files; None without a tag."""
        if self.format not in _FRAMES_ONLY or not packet.size or packet.pos is None:
            return None
        tag_end = after_tags(self._descriptor, packet.pos, self._size)
        return bytes(packet)[tag_end - packet.pos :] if tag_end > packet.pos else None

    def _take(self, packet: Any) -> None:
        """Counts a packet and compares its position with the end of the previous one."""
        start = packet.pos
        if start is not None and self.format in _FRAMES_ONLY and start != self._end:
            unknown = start - after_tags(self._descriptor, self._end, start)
            if unknown > (0 if self._count else _LONGEST_FRAME):
                raise AudioError("unreadable", f"{unknown} bytes before byte {start} are no frames of {self.format}: repair it")
        if packet.is_corrupt and not (self._is_pcm and self._extent is not None and not self._extent.announced):
            raise AudioError("truncated", f"packet {self._count + 1} is incomplete")
        if self._is_speech and packet.size > 2 and not any(bytes(packet)):
            raise AudioError("unreadable", f"packet {self._count + 1} consists of zeros: a part of the file was not written")
        if self._count == 0:
            self._begin = start or 0
        self._count += 1
        if start is not None:
            self._end = start + packet.size
        if self.format == "amr" and bytes(packet)[:5] == b"#!AMR":
            raise AudioError("undecoded", f"another AMR file follows at byte {start}: split the file")

    def _check_end(self, position: int) -> None:
        """Compares the number of decoded samples with the header and the size of the file."""
        is_mp4 = self.format.startswith("mov")
        is_exact = self._links or is_mp4 or self.format in ("caf", "asf", "wv", "tta", "ape", "flac")
        seconds, announced = position / self.rate, self.claimed_s if is_exact else None
        if announced is not None and seconds < announced - _LOSSY_TOLERANCE_S:
            raise AudioError("truncated", f"{seconds:.2f} s could be decoded where the file announces {announced:.2f} s")
        if position == 0:
            raise AudioError("unreadable", "no audio could be decoded")
        if len(self._blocks) > len(self._container.streams):
            raise AudioError("unreadable", "some blocks belong to no track of the file: repair it")
        packets = self._announced_packets()
        found = position if is_mp4 and self._is_pcm else self._count
        missing = packets - found
        if missing > 0 and missing * position / found > _LOSSY_TOLERANCE_S * self.rate:
            if is_mp4 and announced is not None:
                raise AudioError("undecoded", f"an edit list leaves out {missing} of {packets} packets: convert the file to WAV")
            raise AudioError("truncated", f"{found} packets were found where the file announces {packets}")
        if self.format == "mp3" and not self._last_is_whole():
            raise AudioError("truncated", "the last frame is incomplete")
        if self._extent is not None:
            rest = self._extent.start + self._extent.length - self._end
            if rest > _LONGEST_REST_BYTES:
                raise AudioError("undecoded", f"{rest} bytes of the audio were not decoded")
        elif self.format in (*_FRAMES_ONLY, "wv", "tta", "flac"):
            check_rest(self._descriptor, self._end, self._size, slack=0)

    def _announced_packets(self) -> int:
        """Number of packets, or of PCM samples, in the header (for MP3: Xing or Info, before the first frame); 0 if unknown."""
        if self.format == "mp3":
            head = read_at(self._descriptor, min(self._begin, _LONGEST_FRAME), max(0, self._begin - _LONGEST_FRAME))
            found = re.search(rb"(?:Xing|Info)\0\0\0(.)(.{4})", head, re.DOTALL)
            return int.from_bytes(found[2], "big") if found and found[1][0] & 1 else 0
        if self.format.startswith("mov"):
            return int(self._stream.frames)
        return self._blocks.total() if len(self._container.streams) == 1 else 0

    def _last_is_whole(self) -> bool:
        """True if the last packet of an MP3 is a whole frame; FFmpeg decodes incomplete ones too."""
        import av

        parser = av.CodecContext.create(self._stream.codec_context.name, "r")
        with ffmpeg_errors("the last frame"):
            return sum(packet.size for packet in parser.parse(bytes(self._last))) == self._last.size
