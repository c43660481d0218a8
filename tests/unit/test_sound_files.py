"""PCM containers and FLAC: every sample that the file holds, or what does not fit together."""

import errno
import itertools
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
import soundfile

from openwavlm.audio import read
from openwavlm.audio.containers.flac import missing_frame
from openwavlm.audio.containers.pcm import Extent, audio_extent
from openwavlm.audio.encode import encode_flac
from openwavlm.audio.errors import AudioError
from openwavlm.audio.read import decode, probe_channels, probe_seconds
from synthetic import speech_like

SPEECH = speech_like(2.0, seed=1, speaker="a")
CONTAINERS = {
    "wav": ("WAV", "PCM_16"),
    "wave": ("WAVEX", "PCM_24"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_32"),
    "aiff": ("AIFF", "PCM_16"),
    "aif": ("AIFF", "FLOAT"),
    "caf": ("CAF", "PCM_16"),
    "au": ("AU", "ULAW"),
    "snd": ("AU", "PCM_16"),
    "sph": ("NIST", "PCM_16"),
    "flac": ("FLAC", "PCM_24"),
}


def write(path: Path, samples: np.ndarray = SPEECH, kind: str = "wav", **settings: object) -> bytes:
    container, subtype = CONTAINERS[kind]
    soundfile.write(path, samples / 32_768, 16_000, format=container, subtype=subtype, **settings)
    return path.read_bytes()


def reason(path: Path, content: bytes | bytearray | None = None, **settings: float) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AudioError) as caught:
        decode(path, **settings)
    return caught.value.reason


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_container_is_decoded_whole(tmp_path: Path, kind: str, channels: int) -> None:
    path = tmp_path / f"a.{kind}"
    write(path, np.tile(SPEECH[:, None], channels), kind)
    expected = soundfile.read(path, dtype="float32", always_2d=True)[0][:, 0] * 32_768
    assert np.abs(decode(path).samples - expected).max() <= 0.5
    assert len(expected) == len(SPEECH)
    assert (probe_seconds(path), probe_channels(path)) == (2.0, channels)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_container_that_lacks_its_end_is_truncated(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    content = write(path, kind=kind)
    for share in (0.3, 0.95):
        assert reason(path, content[: int(share * len(content))]) == "truncated"


@pytest.mark.parametrize("kind", CONTAINERS)
def test_what_follows_a_container_is_not_left_out_in_silence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    content = write(path, kind=kind)
    assert reason(path, content + content) == "undecoded"
    assert reason(path, content + np.random.default_rng(0).bytes(50_000)) == "undecoded"
    path.write_bytes(content + bytes(3000) + b"TAG" + bytes(125))
    assert len(decode(path).samples) == len(SPEECH)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("length", [0, 0x7FFF_F000, 0xFFFF_FFFF])
@pytest.mark.parametrize("riff_length", [0, 36, 0xFFFF_FFFF, None])
def test_a_wav_whose_length_was_never_written_is_read_whole(
    tmp_path: Path, subtype: str, length: int, riff_length: int | None
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.tile(SPEECH[:, None], 2) / 32_768, 16_000, subtype=subtype)
    whole, content = decode(path).samples, bytearray(path.read_bytes())
    at = content.index(b"data")
    content[at + 4 : at + 8] = length.to_bytes(4, "little")
    if riff_length is not None:
        content[4:8] = riff_length.to_bytes(4, "little")
    path.write_bytes(content)
    np.testing.assert_array_equal(decode(path).samples, whole)
    np.testing.assert_array_equal(decode(path, start_s=0.5, end_s=1.5).samples, whole[8000:24_000])
    assert probe_seconds(path) == 2.0


@pytest.mark.parametrize("length", [0x7FFF_F000, 0x9000_0000])
def test_a_wav_of_more_than_two_gigabytes_has_the_length_that_it_announces(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.wav"
    content = bytearray(write(path))
    at = content.index(b"data") + 8
    content[at - 4 : at] = length.to_bytes(4, "little")
    path.write_bytes(content[:at])
    with path.open("r+b") as file:
        file.truncate(at + length)  # zeros that take no space
        file.seek(at + length)
        file.write(b"LIST" + (4).to_bytes(4, "little") + b"INFO")
        assert audio_extent(file.fileno(), at + length + 12) == Extent(at, length, announced=True)


def test_a_flac_file_without_an_md5_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    content = bytearray(write(path, kind="flac"))
    content[26:42] = bytes(16)
    path.write_bytes(content)
    np.testing.assert_array_equal(decode(path).samples, SPEECH)


@pytest.mark.parametrize("size", [192, 256, 576, 1000, 1152, 2304, 4608])
def test_a_flac_file_is_whole_whatever_the_size_of_its_frames(tmp_path: Path, size: int) -> None:
    path, samples = tmp_path / "a.flac", SPEECH[: len(SPEECH) // size * size]  # the last frame is of that size too
    with av.open(str(path), "w") as file:
        stream = file.add_stream("flac", rate=16_000, layout="mono", options={"frame_size": str(size)})
        frame = av.AudioFrame.from_ndarray(samples[None].copy(), format="s16", layout="mono")
        frame.sample_rate = 16_000
        file.mux([*stream.encode(frame), *stream.encode(None)])
    content = path.read_bytes()
    assert int.from_bytes(content[8:10], "big") == size  # RFC 9639 §8.2
    np.testing.assert_array_equal(decode(path).samples, samples)
    np.testing.assert_array_equal(decode(path, start_s=0.5, end_s=1.5).samples, SPEECH[8000:24_000])
    for total in (len(samples) - 1, len(samples) // 2):
        short = with_total(content, total)
        short[26:42] = bytes(16)  # or the MD5 would tell
        assert reason(path, short) == "undecoded"
    first = content.index(b"\xff\xf8")
    second = content.index(b"\xff\xf8", first + 2)
    lacking = bytearray(content[:first] + content[second:])
    lacking[26:42] = bytes(16)
    assert reason(path, lacking) in ("truncated", "unreadable")


def test_a_call_of_the_system_that_fails_within_libsndfile_is_no_verdict_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.wav")

    def fail(*args: object, **settings: object) -> None:
        raise soundfile.LibsndfileError(2)  # SF_ERR_SYSTEM

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(OSError, match=r"libsndfile cannot read the file .*a\.wav"):
        decode(tmp_path / "a.wav")


def test_a_wav_whose_length_is_too_small_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    content = bytearray(write(path))
    content[40:44] = (32_000).to_bytes(4, "little")
    assert reason(path, content) == "undecoded"


@pytest.mark.parametrize("missing", [20, 200, 1000])
def test_a_wav_whose_length_lacks_a_few_samples_is_refused(tmp_path: Path, missing: int) -> None:
    content = bytearray(write(tmp_path / "a.wav"))
    content[40:44] = (len(content) - 44 - missing).to_bytes(4, "little")
    assert reason(tmp_path / "a.wav", content) == "undecoded"


@pytest.mark.parametrize("note", [b"LIST\xff\xff\0\0INFO" + b"x" * 500, b"\r\n", b"\xff" * 16])
def test_a_damaged_note_behind_the_samples_is_no_audio(tmp_path: Path, note: bytes) -> None:
    content = write(tmp_path / "a.wav")
    (tmp_path / "a.wav").write_bytes(content + note)
    np.testing.assert_array_equal(decode(tmp_path / "a.wav").samples, SPEECH)


@pytest.mark.parametrize(("kind", "order"), [("wav", "little"), ("aiff", "big")])
def test_a_chunk_that_holds_a_tag_is_no_audio(tmp_path: Path, kind: str, order: Literal["little", "big"]) -> None:
    content = write(tmp_path / f"a.{kind}", kind=kind)
    tag = b"ID3\x04\0\0" + bytes([0, 0, 0, 100]) + b"TIT2" + bytes(96)
    (tmp_path / f"a.{kind}").write_bytes(content + b"ID3 " + len(tag).to_bytes(4, order) + tag)
    np.testing.assert_array_equal(decode(tmp_path / f"a.{kind}").samples, SPEECH)


def test_a_second_chunk_of_samples_is_not_left_out_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    content = write(path)
    assert reason(path, content + struct.pack("<4sI", b"data", 32_000) + content[-32_000:]) == "undecoded"
    path.write_bytes(content + struct.pack("<4sI", b"LIST", 5000) + b"x" * 5000)
    np.testing.assert_array_equal(decode(path).samples, SPEECH)


def test_an_empty_wav_with_a_note_behind_it_has_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    content = write(path, SPEECH[:0])
    assert reason(path, content + struct.pack("<4sI", b"LIST", 600) + b"x" * 600) == "zero-length"


# --- FLAC ---------------------------------------------------------------------------------------------------------------


def with_total(content: bytes, total: int) -> bytearray:
    """RFC 9639 §8.2: the last 36 bits before the MD5."""
    changed = bytearray(content)
    changed[21] = changed[21] & 0xF0 | total >> 32
    changed[22:26] = (total & 0xFFFF_FFFF).to_bytes(4, "big")
    return changed


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("total", [len(SPEECH) // 2, len(SPEECH) - 1, len(SPEECH) - 4096, 1])
@pytest.mark.parametrize("has_md5", [True, False])
def test_a_flac_file_whose_length_is_too_small_is_refused(
    tmp_path: Path, subtype: str, channels: int, total: int, has_md5: bool
) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.tile(SPEECH[:, None], channels), 16_000, subtype=subtype)
    content = with_total(path.read_bytes(), total)
    assert len(decode(path).samples) == len(SPEECH)
    if not has_md5:
        content[26:42] = bytes(16)
    assert reason(path, content) == "undecoded"


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("total", [0, len(SPEECH)])
def test_a_flac_file_is_compared_with_its_md5(tmp_path: Path, subtype: str, total: int) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.stack([SPEECH, SPEECH[::-1]], axis=1), 16_000, subtype=subtype)
    whole, content = decode(path).samples, with_total(path.read_bytes(), total)
    path.write_bytes(content)
    np.testing.assert_array_equal(decode(path).samples, whole)
    content[30] ^= 1
    assert reason(path, content) == "unreadable"


def frames_of(content: bytes) -> list[int]:
    """Offsets of the frames of a mono FLAC file of 16 bits, by their numbers (RFC 9639 §9.1: fixed blocks, below 128 frames)."""
    found: list[int] = []
    while after := re.compile(rb"\xff\xf8..%c" % len(found), re.DOTALL).search(content, found[-1] + 1 if found else 0):
        found.append(after.start())
    return found


@pytest.mark.parametrize("settings", [{}, {"start_s": 0.1}, {"end_s": 1.9}, {"start_s": 1.9}])
def test_a_flac_file_that_lacks_frames_is_not_filled_with_silence(tmp_path: Path, settings: dict[str, float]) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, SPEECH, 16_000)
    content = bytearray(path.read_bytes())
    frames = frames_of(bytes(content))
    assert len(frames) == -(-len(SPEECH) // 4096)
    content[26:42] = bytes(16)  # the MD5
    path.write_bytes(content)
    first = round(settings.get("start_s", 0) * 16_000)
    np.testing.assert_array_equal(decode(path, **settings).samples, SPEECH[first : round(settings.get("end_s", 2) * 16_000)])
    path.write_bytes(content[: frames[3]] + content[frames[5] :])
    with pytest.raises(AudioError, match=f"unreadable: the frame that begins at sample {3 * 4096} is missing"):
        decode(path, **settings)
    # What lies before is there.
    np.testing.assert_array_equal(decode(path, end_s=0.5).samples, SPEECH[:8000])


def test_frames_are_found_however_the_file_is_read() -> None:
    payload = encode_flac(SPEECH)
    start = frames_of(payload)[0]
    for size in (1, 7, 15, 16, 17, 4096, len(payload)):
        parts = [payload[at : at + size] for at in range(start, len(payload), size)]
        assert missing_frame(parts, len(SPEECH)) is None
        assert missing_frame(parts, len(SPEECH) + 1) == len(SPEECH)


def test_a_range_beyond_the_place_where_a_flac_file_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, SPEECH, 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(AudioError, match=r"unreadable: sample 30400 is not found .*: the file is damaged"):
        decode(path, start_s=1.9)


@pytest.mark.parametrize("behind", [b"", b"info" + (8).to_bytes(8, "big") + bytes(8)])
def test_a_caf_file_of_unknown_length_is_read_to_its_end(tmp_path: Path, behind: bytes) -> None:
    # Apple's specification of CAF: a size of −1 if the chunk of samples is the last.
    path = tmp_path / "a.caf"
    description = struct.pack(">4sqd4sIIIII", b"desc", 32, 16_000.0, b"lpcm", 2, 2, 1, 1, 16)
    samples = bytes(4) + SPEECH.astype("<i2").tobytes()
    length = len(samples) if behind else -1
    path.write_bytes(b"caff\0\1\0\0" + description + struct.pack(">4sq", b"data", length) + samples + behind)
    np.testing.assert_array_equal(decode(path).samples, SPEECH)


def test_a_length_that_no_recording_has_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, SPEECH, 16_000)
    content = bytearray(path.read_bytes())
    assert probe_seconds(path) == 2.0
    content[21:26] = bytes([content[21] | 15]) + b"\xff" * 4  # 2^36 − 1 samples: 50 days
    path.write_bytes(content)
    assert probe_seconds(path) is None


# --- channels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [1.0, 0.7, 1.4])
@pytest.mark.parametrize("noise", [0, 30, 1000])
def test_channels_that_cancel_each_other_are_not_averaged(tmp_path: Path, gain: float, noise: float) -> None:
    residue = np.random.default_rng(2).normal(0, noise, len(SPEECH))
    other = np.clip(-gain * SPEECH + residue, -32_768, 32_767).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", np.stack([SPEECH, other], axis=1), 16_000)
    decoded = decode(tmp_path / "a.wav")
    assert (decoded.channel, decoded.out_of_phase) == (0, True)
    np.testing.assert_array_equal(decoded.samples, SPEECH)


def two_sided() -> Iterator[tuple[str, np.ndarray]]:
    rng, other = np.random.default_rng(3), speech_like(2.0, seed=9, speaker="b")
    yield "equal", np.stack([SPEECH, SPEECH], axis=1)
    yield "two speakers", np.stack([SPEECH, other], axis=1)
    yield "one silent", np.stack([0 * SPEECH, SPEECH], axis=1)
    yield "delayed", np.stack([SPEECH, np.roll(SPEECH, 16)], axis=1)
    yield "opposite offsets", np.stack([SPEECH // 8 + 4000, SPEECH // 8 - 4000], axis=1)
    yield "weak copy reversed", np.stack([SPEECH, -SPEECH // 5], axis=1)
    yield "independent noise", rng.normal(0, 3000, (32_000, 2))
    yield "eight microphones", SPEECH[:, None] + rng.normal(0, 3000, (32_000, 8))
    yield "silence", np.zeros((32_000, 2))


@pytest.mark.parametrize(("name", "channels"), list(two_sided()))
def test_channels_that_do_not_cancel_are_averaged(tmp_path: Path, name: str, channels: np.ndarray) -> None:
    stored = np.clip(channels, -32_768, 32_767).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", stored, 16_000)
    decoded = decode(tmp_path / "a.wav")
    assert (decoded.channel, decoded.out_of_phase) == (None, False)
    assert np.abs(decoded.samples - stored.astype(np.float64).mean(axis=1)).max() <= 0.5


def test_a_nearly_silent_channel_is_not_the_one_that_is_taken(tmp_path: Path) -> None:
    # A third channel without a microphone, before two that cancel each other.
    noise = np.random.default_rng(0).normal(0, 3, len(SPEECH)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", np.stack([noise, SPEECH, -SPEECH], axis=1), 16_000)
    decoded = decode(tmp_path / "a.wav")
    assert (decoded.channel, decoded.out_of_phase) == (1, True)
    np.testing.assert_array_equal(decoded.samples, SPEECH)


def test_one_reversed_part_of_a_recording_is_enough(tmp_path: Path) -> None:
    long = np.resize(SPEECH, 3 << 18)
    other = long.copy()
    other[1 << 18 : 2 << 18] *= -1
    soundfile.write(tmp_path / "a.wav", np.stack([long, other], axis=1), 16_000)
    decoded = decode(tmp_path / "a.wav")
    assert decoded.out_of_phase
    np.testing.assert_array_equal(decoded.samples, long)


def test_channels_are_judged_alike_in_every_format_and_in_short_recordings(tmp_path: Path) -> None:
    other = SPEECH.copy()
    other[8192:24_576] *= -1
    both = np.stack([SPEECH, other], axis=1)
    soundfile.write(tmp_path / "a.wav", both, 16_000)
    soundfile.write(tmp_path / "a.ogg", both, 16_000, format="OGG", subtype="VORBIS")
    for path in (tmp_path / "a.wav", tmp_path / "a.ogg"):
        decoded = decode(path)
        assert (decoded.channel, decoded.out_of_phase) == (0, True)


# --- what is no file of audio -------------------------------------------------------------------------------------------


def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "device.wav").symlink_to("/dev/zero")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    for name, word in {"pipe": "named pipe", "device": "device", "folder": "folder", "loop": "symbolic links"}.items():
        with pytest.raises(AudioError, match=word) as caught:
            decode(tmp_path / f"{name}.wav")
        assert caught.value.reason == "unreadable"
        assert probe_seconds(tmp_path / f"{name}.wav") is None


@pytest.mark.parametrize("rate", [1, 8, 999, 2_000_000_000])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, rate: int) -> None:
    content = bytearray(write(tmp_path / "a.wav"))
    content[24:28] = rate.to_bytes(4, "little")
    assert reason(tmp_path / "a.wav", content) == "unreadable"


def test_a_range_of_a_resampled_recording_equals_that_slice_of_the_whole(tmp_path: Path) -> None:
    for rate in (8_000, 22_050, 44_100, 48_000):
        soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 4 * rate), rate, subtype="FLOAT")
        whole = decode(tmp_path / "a.wav").samples
        for start_s, end_s in ((0.0, 1.7), (1.0, 2.0), (1.2345, 2.7183), (2.5, 4.0)):
            piece = decode(tmp_path / "a.wav", start_s=start_s, end_s=end_s).samples
            # The samples of the file that the range touches, on the grid of 16 kHz.
            first, last = (round(sample * 16_000 / rate) for sample in (np.floor(start_s * rate), np.ceil(end_s * rate)))
            expected = whole[first:last]
            assert len(piece) == len(expected)
            assert np.abs(piece.astype(int) - expected).max() <= 1


def test_a_long_recording_is_held_once(tmp_path: Path) -> None:
    seconds = 600
    soundfile.write(tmp_path / "a.wav", np.resize(SPEECH, seconds * 48_000), 48_000)
    tracemalloc.start()
    try:
        samples = decode(tmp_path / "a.wav").samples
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(samples) == seconds * 16_000
    assert peak < samples.nbytes + (12 << 20)


# --- errors that are not the file's -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EINTR, errno.ENOSPC])
@pytest.mark.parametrize("function", ["open", "pread"])
@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg"])
def test_an_error_of_the_machine_is_no_verdict_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, function: str, kind: str
) -> None:
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, SPEECH, 16_000)

    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fails)
        for call in (decode, probe_seconds, probe_channels):
            with pytest.raises(OSError) as caught:
                call(path)
            assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert len(decode(path).samples) >= len(SPEECH)


def test_a_disk_that_fails_within_a_bad_file_is_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(write(path, kind="flac")[:20_000])
    assert reason(path) == "truncated"

    def fails(descriptor: int) -> list[bytes]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(read, "read_parts", fails)
    with pytest.raises(OSError, match="Input/output error"):
        decode(path)


@pytest.mark.parametrize("kind", ["wav", "mp3"])
def test_too_many_open_files_are_no_verdict_on_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, SPEECH, 16_000)
    assert len(decode(path).samples) >= len(SPEECH)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    outcomes = set()
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 60, hard))
    try:
        while len(held) < 80:
            try:
                outcomes.add(len(decode(path).samples))
            except OSError as error:
                outcomes.add(error.errno or 0)
            try:
                held.append(os.dup(0))
            except OSError:
                break
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert outcomes == {len(decode(path).samples), errno.EMFILE}


_INTERRUPTED = """
import signal, sys
from pathlib import Path
from openwavlm.audio.read import decode
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
for path in map(Path, sys.argv[1:]):
    expected = len(decode(path).samples)
    for _ in range(8):
        try:
            print("decoding", flush=True)
            for _ in range(1000):
                assert len(decode(path).samples) == expected, "samples were lost"
            print("lost", flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""


def test_a_signal_while_a_file_is_decoded_is_never_lost(tmp_path: Path) -> None:
    paths = [tmp_path / f"a.{kind}" for kind in ("wav", "flac", "mp3", "ogg")]
    for path in paths:
        soundfile.write(path, np.resize(SPEECH, 5 * 44_100), 44_100)
    program = [sys.executable, "-c", _INTERRUPTED, *map(str, paths)]
    outcomes, delays = [], itertools.cycle(np.linspace(0.02, 0.1, 8))
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        for line in child.stdout:
            if line == "decoding\n":
                time.sleep(next(delays))
                child.send_signal(signal.SIGINT)
            else:
                outcomes.append(line.strip())
        said = child.stderr.read()
    assert outcomes == ["interrupted"] * 8 * len(paths), said
    assert "callback" not in said


def test_a_signal_at_the_end_of_compressed_audio_is_raised_when_the_decoder_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    soundfile.write(tmp_path / "a.ogg", SPEECH, 16_000)
    demux, seen = av.container.InputContainer.demux, []

    class Container:
        """An open file that sends a signal whenever it reads a packet; one that came at once would be within `demux`."""

        def __init__(self, opened: av.container.InputContainer) -> None:
            self._opened = opened

        def __getattr__(self, name: str) -> object:
            return getattr(self._opened, name)

        def demux(self, stream: object) -> Iterator[object]:
            packets = demux(self._opened, stream)
            while (packet := next(packets, None)) is not None:
                signal.pthread_kill(threading.get_ident(), signal.SIGINT)
                seen.append("within demux")
                yield packet

    opening = av.open
    monkeypatch.setattr(av, "open", lambda *places, **names: Container(opening(*places, **names)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            decode(tmp_path / "a.ogg")
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["within demux"]


def test_the_bytes_of_a_flac_payload_are_those_of_a_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", SPEECH, 16_000, subtype="PCM_16")
    assert encode_flac(SPEECH) == (tmp_path / "a.flac").read_bytes()


def test_libsndfile_is_given_descriptors_and_never_a_file_of_python() -> None:
    # An exception in a callback, KeyboardInterrupt among them, is printed and forgotten by cffi, and looks like the end of the file.
    source = Path(read.__file__).parents[1]
    calls = {
        f"{path.relative_to(source)}: {call}"
        for path in source.rglob("*.py")
        for call in re.findall(r"(?:soundfile\.(?:read|write|blocks|info|SoundFile)|SequentialFile)\([^,)]*", path.read_text())
    }
    assert calls == {
        "audio/encode.py: soundfile.write(descriptor",
        "shards/reader.py: SequentialFile(descriptor",
        "audio/decoders/libsndfile.py: SequentialFile(soundfile.SoundFile",
        "audio/decoders/libsndfile.py: SequentialFile(descriptor",
    }
