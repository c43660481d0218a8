"""Compressed audio: all of a file, equal to what another decoder finds in it, or its name and what is wrong with it."""

import errno
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from encoders import KINDS, encode
from openwavlm.audio.errors import AudioError
from openwavlm.audio.formats import EXTENSIONS
from openwavlm.audio.read import decode, decoders, probe_channels, probe_seconds
from synthetic import speech_like

SECONDS = 4.0
SPEECH = speech_like(SECONDS, seed=3, speaker="a")


def at_rate(rate: int) -> np.ndarray:
    """The same speech, as if it were spoken slower or faster."""
    return np.resize(SPEECH, int(SECONDS * rate))


def encoded(folder: Path, kind: str, **options: str) -> bytes:
    path = folder / f"whole.{kind}"
    encode(path, at_rate(KINDS[kind][2]), kind, **options)
    return path.read_bytes()


def write(folder: Path, content: bytes, suffix: str) -> Path:
    path = folder / f"a.{suffix}"
    path.write_bytes(content)
    return path


def reason(path: Path, **settings: float) -> str:
    with pytest.raises(AudioError) as caught:
        decode(path, **settings)
    return caught.value.reason


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine of two signals of about the same length, aligned at their beginnings."""
    count = min(len(first), len(second))
    a, b = first[:count].astype(np.float64), second[:count].astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("amr", "wma")])
def test_what_was_encoded_is_decoded_from_its_first_sample_to_its_last(tmp_path: Path, kind: str) -> None:
    encoded(tmp_path, kind)
    path = tmp_path / f"whole.{kind}"
    rate = KINDS[kind][2]
    samples = decode(path).samples
    original = tmp_path / "original.wav"
    soundfile.write(original, at_rate(rate), rate)
    expected = decode(original).samples
    delay = 1024 if kind == "aac" else 0  # ADTS has no place to write the encoder's delay to.
    assert 0 <= len(samples) - len(expected) - delay < 1300
    assert similarity(samples[delay:], expected) > 0.9
    assert similarity(samples[delay:][len(expected) - 4000 :], expected[-4000:]) > 0.9
    assert probe_channels(path) == 1
    assert probe_seconds(path) == pytest.approx(len(samples) / 16_000, rel=0.03)


@pytest.mark.parametrize("kind", ["amr", "wma"])
def test_codecs_with_a_delay_of_their_own_keep_duration_and_level(tmp_path: Path, kind: str) -> None:
    encoded(tmp_path, kind)
    samples = decode(tmp_path / f"whole.{kind}").samples
    soundfile.write(tmp_path / "original.wav", at_rate(KINDS[kind][2]), KINDS[kind][2])
    assert len(samples) == pytest.approx(SECONDS * 16_000, abs=1600)
    assert samples.std() == pytest.approx(decode(tmp_path / "original.wav").samples.std(), rel=0.2)


INDEPENDENT = [
    ("MP3", "MPEG_LAYER_III", "mp3", 16_000),
    ("MP3", "MPEG_LAYER_III", "mp3", 44_100),
    ("OGG", "VORBIS", "ogg", 16_000),
    ("OGG", "OPUS", "opus", 48_000),
]


@pytest.mark.parametrize(("container", "subtype", "suffix", "rate"), INDEPENDENT)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.6])
def test_the_samples_are_those_of_libsndfile(
    tmp_path: Path, container: str, subtype: str, suffix: str, rate: int, channels: int, seconds: float
) -> None:
    path, wav = tmp_path / f"a.{suffix}", tmp_path / "a.wav"
    speech = np.resize(SPEECH, int(seconds * rate)) / 32_768
    soundfile.write(path, np.stack([speech, 0.5 * speech], axis=1)[:, :channels], rate, format=container, subtype=subtype)
    theirs, their_rate = soundfile.read(path, dtype="float32", always_2d=True)
    soundfile.write(wav, theirs, their_rate, subtype="FLOAT")
    ours, expected = decode(path).samples, decode(wav).samples
    assert len(ours) == len(expected)
    # FFmpeg's decoder of Opus is not libopus.
    assert np.square(ours - expected.astype(float)).mean() <= 1e-4 * np.square(expected.astype(float)).mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.97])
def test_a_file_that_was_cut_off_is_truncated(tmp_path: Path, kind: str, share: float) -> None:
    whole = encoded(tmp_path, kind)
    assert reason(write(tmp_path, whole[: int(share * len(whole))], kind)) == "truncated"


@pytest.mark.parametrize("kind", KINDS)
def test_two_files_in_one_are_decoded_whole_or_refused(tmp_path: Path, kind: str) -> None:
    whole = encoded(tmp_path, kind)
    once = decode(tmp_path / f"whole.{kind}").samples
    path = write(tmp_path, whole + whole, kind)
    if kind not in ("mp3", "opus", "webm", "aac"):
        assert reason(path) in ("undecoded", "unreadable")
        return
    twice = decode(path).samples
    assert 0 <= len(twice) - 2 * len(once) < 2900
    assert similarity(twice, once) > 0.99
    # The second encoder's delay stays where the format does not say that it begins there.
    assert max(similarity(twice[len(once) + delay :], once) for delay in range(2900)) > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_in_the_middle_is_noticed(tmp_path: Path, kind: str) -> None:
    content = bytearray(encoded(tmp_path, kind))
    middle = len(content) // 2
    content[middle : middle + 1500] = np.random.default_rng(7).bytes(1500)
    assert reason(write(tmp_path, bytes(content), kind)) in ("unreadable", "truncated", "undecoded")


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_at_the_end_is_noticed(tmp_path: Path, kind: str) -> None:
    content = encoded(tmp_path, kind) + np.random.default_rng(7).bytes(40_000)
    assert reason(write(tmp_path, content, kind)) in ("unreadable", "truncated", "undecoded")


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_equals_that_slice_of_the_whole(tmp_path: Path, kind: str) -> None:
    encoded(tmp_path, kind)
    path = tmp_path / f"whole.{kind}"
    whole = decode(path).samples
    for start_s, end_s in ((0.0, 1.0), (1.2345, 2.5), (3.0, None)):
        piece = decode(path, start_s=start_s, end_s=end_s).samples
        first = round(start_s * 16_000)
        expected = whole[first : None if end_s is None else round(end_s * 16_000)]
        assert abs(len(piece) - len(expected)) <= 1
        count = min(len(piece), len(expected))
        assert np.abs(piece[:count].astype(int) - expected[:count]).max() <= 1 + 0.02 * np.abs(expected).max() * (
            start_s == 1.2345
        )
    assert reason(path, start_s=3.0, end_s=SECONDS + 1.0) == "out-of-range"
    assert reason(path, start_s=9.0) == "out-of-range"
    assert reason(path, max_hours=1.0 / 3600) == "too-long"


# --- MP3 ----------------------------------------------------------------------------------------------------------------


def frame_starts(path: Path) -> list[int]:
    """Where the frames of a file that holds nothing else begin."""
    with av.open(str(path)) as file:
        return [packet.pos for packet in file.demux() if packet.pos is not None and packet.size]


@pytest.mark.parametrize("kind", ["mp3", "aac"])
def test_a_few_bytes_between_frames_are_noticed(tmp_path: Path, kind: str) -> None:
    content = encoded(tmp_path, kind, **({"write_xing": "0"} if kind == "mp3" else {}))
    place = frame_starts(tmp_path / f"whole.{kind}")[40]
    assert reason(write(tmp_path, content[:place] + b"\x01" * 100 + content[place:], kind)) in ("unreadable", "undecoded")


def test_an_mp3_without_a_header_that_ends_within_a_frame_is_truncated(tmp_path: Path) -> None:
    content = encoded(tmp_path, "mp3", write_xing="0")
    start = frame_starts(tmp_path / "whole.mp3")[-1]
    for kept in (10, 50, len(content) - start - 1):
        assert reason(write(tmp_path, content[: start + kept], "mp3")) == "truncated"


def xing(content: bytes) -> int:
    """Where the Xing or Info header of an MP3 begins."""
    found = re.search(rb"Xing|Info", content)
    assert found
    return found.start()


def frames_field(value: int | None) -> Callable[[bytes], bytes]:
    """Writes a number of frames into the Xing header; None clears the flag that there is one."""

    def change(content: bytes) -> bytes:
        start = xing(content)
        if value is None:
            return (
                content[: start + 7] + bytes([content[start + 7] & 0xFE]) + content[start + 8 : start + 8] + content[start + 8 :]
            )
        return content[: start + 8] + value.to_bytes(4, "big") + content[start + 12 :]

    return change


@pytest.mark.parametrize("frames", [None, 0, 1, 40])
def test_an_mp3_whose_header_announces_too_little_is_decoded_whole(tmp_path: Path, frames: int | None) -> None:
    content = encoded(tmp_path, "mp3")
    whole = decode(tmp_path / "whole.mp3").samples
    samples = decode(write(tmp_path, frames_field(frames)(content), "mp3")).samples
    assert 0 <= len(samples) - len(whole) < 2300  # the encoder's delay and padding
    assert max(similarity(samples[delay:], whole) for delay in (0, 1105)) > 0.999


@pytest.mark.parametrize(("delay", "padding"), [(4000, 0), (0, 4000)])
def test_a_damaged_delay_of_an_mp3_costs_no_audio(tmp_path: Path, delay: int, padding: int) -> None:
    content = encoded(tmp_path, "mp3")
    whole = decode(tmp_path / "whole.mp3").samples
    # Twelve bits each, 21 bytes behind the quality that ends the Xing header.
    place = xing(content) + 141
    before = int.from_bytes(content[place : place + 3], "big")
    assert 500 < before >> 12 < 2000
    changed = content[:place] + (delay << 12 | padding).to_bytes(3, "big") + content[place + 3 :]
    samples = decode(write(tmp_path, changed, "mp3")).samples
    assert len(samples) >= len(whole)
    assert max(similarity(samples[skipped:], whole) for skipped in range(1200)) > 0.999


@pytest.mark.parametrize("seconds", [3.5, 40.0])
@pytest.mark.parametrize("joined", [1, 3])
def test_an_mp3_of_variable_bit_rate_without_a_header_is_decoded_whole(tmp_path: Path, seconds: float, joined: int) -> None:
    # Loud noise, then speech: the bit rate of the first frame says nothing of the others.
    noise = np.random.default_rng(0).normal(0, 8000, 8000).clip(-32_768, 32_767).astype(np.int16)
    audio = np.concatenate([noise, np.resize(SPEECH, int(seconds * 16_000) - len(noise))])
    encode(tmp_path / "whole.mp3", audio, "mp3", write_xing="0")
    path = write(tmp_path, (tmp_path / "whole.mp3").read_bytes() * joined, "mp3")
    samples = decode(path).samples
    encode(tmp_path / "header.mp3", audio, "mp3")
    expected = decode(tmp_path / "header.mp3").samples
    assert len(expected) == len(audio)
    period = len(samples) // joined
    assert len(samples) == joined * period and 0 <= period - len(audio) < 2300
    for part in range(joined):
        assert similarity(samples[part * period + 1105 : (part + 1) * period], expected) > 0.99


def test_an_mp3_that_announces_more_frames_than_it_has_is_truncated(tmp_path: Path) -> None:
    assert reason(write(tmp_path, frames_field(10_000)(encoded(tmp_path, "mp3")), "mp3")) == "truncated"


def test_tags_around_an_mp3_are_no_audio(tmp_path: Path) -> None:
    content = encoded(tmp_path, "mp3", write_xing="0")
    whole = decode(tmp_path / "whole.mp3").samples
    size = 30_000
    picture = b"ID3\x04\x00\x00" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + bytes(size)
    ape = b"APETAGEX" + (2000).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(16)
    lyrics = b"LYRICSBEGIN" + b"la" * 50 + b"000111LYRICS200"
    footer = ape[:12] + (32).to_bytes(4, "little") + ape[16:]
    for tagged in (picture + content + footer + b"TAG" + bytes(125), content + lyrics, content + footer, content + bytes(5000)):
        np.testing.assert_array_equal(decode(write(tmp_path, tagged, "mp3")).samples, whole)


APE_ITEM = (5).to_bytes(4, "little") + bytes(4) + b"Title\0hello"


def ape_tag(*, header: bool) -> bytes:
    """APEv2: the length holds items and footer; bit 31 of the flags says that there is a header, bit 29 that this is it."""
    fields = (2000).to_bytes(4, "little") + (32 + len(APE_ITEM)).to_bytes(4, "little") + (1).to_bytes(4, "little")
    head = b"APETAGEX" + fields + (0xA000_0000).to_bytes(4, "little") + bytes(8)
    foot = b"APETAGEX" + fields + (0x8000_0000 * header).to_bytes(4, "little") + bytes(8)
    return (head if header else b"") + APE_ITEM + foot


@pytest.mark.parametrize("kind", ["mp3", "aac", "wv", "tta"])
@pytest.mark.parametrize("tag", [ape_tag(header=True), ape_tag(header=False), b""], ids=["with a header", "without", "no APE"])
@pytest.mark.parametrize("last", [b"", b"TAG" + b"x" * 125], ids=["alone", "before ID3v1"])
def test_tags_behind_the_audio_are_no_audio(tmp_path: Path, kind: str, tag: bytes, last: bytes) -> None:
    content = encoded(tmp_path, kind)
    whole = decode(tmp_path / f"whole.{kind}").samples
    np.testing.assert_array_equal(decode(write(tmp_path, content + tag + last, kind)).samples, whole)
    assert reason(write(tmp_path, content + tag + b"\x01" + last, kind)) in ("undecoded", "unreadable", "truncated")


def test_a_tag_that_is_longer_than_the_file_hides_no_audio(tmp_path: Path) -> None:
    content = encoded(tmp_path, "mp3")
    ape = (
        b"APETAGEX" + (2000).to_bytes(4, "little") + (1 << 30).to_bytes(4, "little") + bytes(4) + (1 << 29).to_bytes(4, "little")
    )
    for tag in (ape + bytes(8), b"ID3\x04\0\0" + bytes([127, 127, 127, 127])):
        assert reason(write(tmp_path, content + tag + content, "mp3")) in ("undecoded", "unreadable")


@pytest.mark.parametrize("kind", ["mp3", "aac", "tta"])
def test_an_id3_tag_with_a_footer_is_no_audio(tmp_path: Path, kind: str) -> None:
    content = encoded(tmp_path, kind)
    whole = decode(tmp_path / f"whole.{kind}").samples
    # ID3v2.4 §3: bit 4 of the flags says that a footer follows; the length counts neither it nor the header.
    rest = b"\x04\0\x10" + bytes([0, 0, 2, 44]) + bytes(300)
    tag = b"ID3" + rest + b"3DI" + rest[:7]
    np.testing.assert_array_equal(decode(write(tmp_path, content + tag, kind)).samples, whole)


def silent_ape(samples: int) -> bytes:
    """A file of Monkey's Audio 3.99, stereo of 44.1 kHz in one frame, with the mark of a silent frame."""
    frame = struct.pack("<II", zlib.crc32(bytes(4 * samples)) >> 1 | 1 << 31, 3) + bytes(8)
    lengths = struct.pack("<4IQI", 52, 24, 4, 0, len(frame), 0)
    description = b"MAC " + struct.pack("<HH", 3990, 0) + lengths + bytes(16)
    header = struct.pack("<HHIIIHHI", 2000, 0, 73_728, samples, 1, 16, 2, 44_100)
    return description + header + struct.pack("<I", 52 + 24 + 4) + frame


def test_monkeys_audio_is_decoded_whole(tmp_path: Path) -> None:
    content = silent_ape(44_100)
    samples = decode(write(tmp_path, content + ape_tag(header=True), "ape")).samples
    assert len(samples) == 16_000 and not samples.any()
    assert reason(write(tmp_path, content[:-4], "ape")) == "truncated"
    assert reason(write(tmp_path, content + content, "ape")) == "undecoded"
    assert reason(write(tmp_path, content[:8], "ape")) in ("truncated", "unreadable")


# --- Ogg ----------------------------------------------------------------------------------------------------------------


def ogg_pages(content: bytes) -> list[bytes]:
    pages, position = [], 0
    while position < len(content):
        table = content[position + 27 : position + 27 + content[position + 26]]
        pages.append(content[position : position + 27 + len(table) + sum(table)])
        position += len(pages[-1])
    return pages


def with_checksum(page: bytes) -> bytes:
    """RFC 3533: CRC-32 with the polynomial 0x04c11db7, most significant bit first, no inversion."""
    crc = 0
    for byte in page[:22] + bytes(4) + page[26:]:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
    return page[:22] + crc.to_bytes(4, "little") + page[26:]


@pytest.mark.parametrize(("subtype", "rate"), [("OPUS", 48_000), ("VORBIS", 44_100)])
def test_an_ogg_file_without_the_flag_of_its_end_is_decoded_whole(tmp_path: Path, subtype: str, rate: int) -> None:
    soundfile.write(tmp_path / "whole.ogg", at_rate(rate), rate, format="OGG", subtype=subtype)
    pages = ogg_pages((tmp_path / "whole.ogg").read_bytes())
    assert pages[-1][5] & 4
    pages[-1] = with_checksum(pages[-1][:5] + bytes([pages[-1][5] & 0xFB]) + pages[-1][6:])
    path = write(tmp_path, b"".join(pages), "ogg")
    np.testing.assert_array_equal(decode(path).samples, decode(tmp_path / "whole.ogg").samples)


@pytest.mark.parametrize(("subtype", "rate"), [("OPUS", 48_000), ("VORBIS", 44_100)])
@pytest.mark.parametrize("seconds", [0.2, 4.0])
def test_a_chained_ogg_file_holds_all_of_its_links(tmp_path: Path, subtype: str, rate: int, seconds: float) -> None:
    parts = []
    for number in range(3):
        path = tmp_path / f"{number}.ogg"
        soundfile.write(path, np.roll(at_rate(rate), 1000 * number)[: int(seconds * rate)], rate, format="OGG", subtype=subtype)
        parts.append(path)
    chained = decode(write(tmp_path, b"".join(part.read_bytes() for part in parts), "ogg")).samples
    expected = np.concatenate([soundfile.read(part, dtype="float32")[0] for part in parts])
    soundfile.write(tmp_path / "all.wav", expected, rate, subtype="FLOAT")
    expected = decode(tmp_path / "all.wav").samples
    assert len(chained) == len(expected)
    assert similarity(chained, expected) > 0.999


def test_an_ogg_file_that_lacks_a_page_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.ogg", np.resize(SPEECH, 30 * 16_000), 16_000)
    pages = ogg_pages((tmp_path / "whole.ogg").read_bytes())
    assert len(pages) > 6
    assert reason(write(tmp_path, b"".join(pages[:4] + pages[5:]), "ogg")) == "unreadable"
    assert reason(write(tmp_path, b"".join(pages[2:]), "ogg")) == "unreadable"


@pytest.mark.parametrize("hours", [0, 1])
def test_an_opus_stream_that_was_recorded_from_its_middle_on_is_whole(tmp_path: Path, hours: int) -> None:
    soundfile.write(tmp_path / "whole.ogg", at_rate(48_000), 48_000, format="OGG", subtype="OPUS")
    whole, pages = decode(tmp_path / "whole.ogg").samples, ogg_pages((tmp_path / "whole.ogg").read_bytes())
    for number, page in enumerate(pages[2:], start=2):
        position = int.from_bytes(page[6:14], "little") + hours * 3600 * 48_000
        pages[number] = with_checksum(page[:6] + position.to_bytes(8, "little") + page[14:])
    samples = decode(write(tmp_path, b"".join(pages), "ogg")).samples
    assert 0 <= len(samples) - len(whole) < hours * 1000 + 1
    assert similarity(samples, whole) > 0.999


def test_audio_behind_the_position_that_an_ogg_file_announces_is_kept(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.ogg", at_rate(48_000), 48_000, format="OGG", subtype="OPUS")
    whole, pages = decode(tmp_path / "whole.ogg").samples, ogg_pages((tmp_path / "whole.ogg").read_bytes())
    position = int.from_bytes(pages[-1][6:14], "little") - 48_000
    pages[-1] = pages[-1][:6] + position.to_bytes(8, "little") + pages[-1][14:]
    assert reason(write(tmp_path, b"".join(pages), "ogg")) == "unreadable"  # the checksum is that of before
    pages[-1] = with_checksum(pages[-1])
    samples = decode(write(tmp_path, b"".join(pages), "ogg")).samples
    assert len(samples) >= len(whole)
    assert similarity(samples, whole) > 0.999


def test_an_ogg_packet_without_its_end_is_truncated(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.ogg", at_rate(48_000), 48_000, format="OGG", subtype="OPUS")
    pages = ogg_pages((tmp_path / "whole.ogg").read_bytes())
    last = pages[-1]
    count = last[26]
    # One packet more, of which this page holds the first 255 bytes and no other page the rest.
    grown = (
        last[:26] + bytes([count + 1]) + last[27 : 27 + count] + b"\xff" + last[27 + count :] + bytes([last[27 + count]]) * 255
    )
    assert reason(write(tmp_path, b"".join([*pages[:-1], with_checksum(grown)]), "ogg")) == "truncated"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOSPC])
def test_an_error_of_the_machine_within_ffmpeg_is_no_verdict_on_the_file(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded(tmp_path, "opus")

    def fail(*args: object, **settings: object) -> None:
        raise av.error.FFmpegError(number, "refused")

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(OSError, match=r"whole\.opus") as caught:
        decode(tmp_path / "whole.opus")
    assert caught.value.errno == number


# --- what the decoder is given --------------------------------------------------------------------------------------------


def test_joined_ogg_streams_of_several_kinds_are_named(tmp_path: Path) -> None:
    joined = b""
    for rate, channels in ((44_100, 1), (22_050, 1), (44_100, 2)):
        samples = np.tile(SPEECH[:8000, None], (1, channels))
        soundfile.write(tmp_path / "a.ogg", samples, rate, format="OGG", subtype="VORBIS")
        joined += (tmp_path / "a.ogg").read_bytes()
    kinds = "Vorbis of 44100 Hz and 1 channels, Vorbis of 22050 Hz and 1 channels, Vorbis of 44100 Hz and 2 channels"
    with pytest.raises(AudioError, match=rf"undecoded: streams of several kinds were joined \({kinds}\): split the file"):
        decode(write(tmp_path, joined, "ogg"))


# --- MP4, AMR, WAV with a codec ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_mulaw", "pcm_f32le"])
def test_pcm_in_mov_is_decoded_whole(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "mov", (codec, "mov", 16_000))
    content = encoded(tmp_path, "mov")
    samples = decode(tmp_path / "whole.mov").samples
    assert len(samples) == len(SPEECH)
    assert similarity(samples, SPEECH) > 0.999
    assert reason(write(tmp_path, content[: len(content) * 2 // 3], "mov")) == "truncated"


def test_a_box_that_goes_on_to_the_end_of_the_file_is_read_to_it(tmp_path: Path) -> None:
    content = encoded(tmp_path, "m4a", movflags="faststart")
    whole, place = decode(tmp_path / "whole.m4a").samples, content.rindex(b"mdat") - 4
    assert place + int.from_bytes(content[place : place + 4], "big") == len(content)
    path = write(tmp_path, content[:place] + bytes(4) + content[place + 4 :], "m4a")
    np.testing.assert_array_equal(decode(path).samples, whole)


def test_a_file_of_two_recordings_is_not_taken_for_its_first(tmp_path: Path) -> None:
    path = tmp_path / "a.mka"
    with av.open(str(path), "w", format="matroska") as file:
        streams = [file.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(2)]
        frame = av.AudioFrame.from_ndarray(SPEECH[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for stream in streams:
            file.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(AudioError, match="undecoded: the file has 2 audio streams, but one is needed"):
        decode(path)


def test_what_an_edit_list_leaves_out_is_named(tmp_path: Path) -> None:
    content = encoded(tmp_path, "m4a")
    # ISO/IEC 14496-12 §8.6.6: version and flags, number of edits, duration, begin, rate.
    duration = content.index(b"elst") + 12
    half = int.from_bytes(content[duration : duration + 4], "big") // 2
    path = write(tmp_path, content[:duration] + half.to_bytes(4, "big") + content[duration + 4 :], "m4a")
    with pytest.raises(AudioError, match=r"undecoded: an edit list leaves out \d\d of \d\d packets: convert the file"):
        decode(path)


@pytest.mark.parametrize("table", [b"stts", b"stsc", b"stsz"])
def test_a_damaged_length_that_asks_for_all_memory_is_no_lack_of_memory(tmp_path: Path, table: bytes) -> None:
    content = bytearray(encoded(tmp_path, "mp4", movflags="frag_keyframe+empty_moov"))
    count = content.index(table) + (12 if table == b"stsz" else 8)
    content[count : count + 4] = b"\x7f\xff\xff\xff"
    path = write(tmp_path, bytes(content), "mp4")
    try:
        assert similarity(decode(path).samples, decode(tmp_path / "whole.mp4").samples) > 0.99
    except AudioError as error:
        assert error.reason == "unreadable"


@pytest.mark.parametrize("kind", ["amr", "opus.mp4"])
def test_a_part_that_was_never_written_does_not_become_sound(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "opus.mp4", ("libopus", "mp4", 48_000))
    content = bytearray(encoded(tmp_path, kind))
    middle = len(content) // 2
    content[middle : middle + 1000] = bytes(1000)
    assert reason(write(tmp_path, bytes(content), kind)) == "unreadable"


def test_what_is_wrong_with_mp3_in_wav_is_said_by_the_error_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(KINDS, "mp3.wav", ("libmp3lame", "wav", 16_000))
    content = encoded(tmp_path, "mp3.wav")
    assert similarity(decode(tmp_path / "whole.mp3.wav").samples[1105:], SPEECH) > 0.9
    assert reason(write(tmp_path, content[: content.index(b"data") + 108], "mp3.wav")) == "truncated"
    assert capfd.readouterr().err == ""


def test_g721_in_wav_is_refused_where_the_order_of_its_bits_is_unknown(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SPEECH, 16_000, format="WAV", subtype="G721_32")
    assert reason(tmp_path / "a.wav") == "unreadable"


def test_gsm_is_decoded_and_so_are_ranges_of_it(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", at_rate(8_000), 8_000, subtype="GSM610")
    whole = decode(tmp_path / "a.wav").samples
    assert len(whole) == pytest.approx(SECONDS * 16_000, abs=700)
    piece = decode(tmp_path / "a.wav", start_s=1.0, end_s=2.0).samples
    assert np.abs(piece.astype(int) - whole[16_000:32_000]).max() <= 1


def test_without_pyav_compressed_audio_is_refused_with_the_line_that_installs_it(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.mp3", SPEECH, 16_000, format="MP3")
    soundfile.write(tmp_path / "a.flac", SPEECH, 16_000)
    program = """
import sys
sys.modules["av"] = None
from pathlib import Path
from openwavlm.audio.read import decode, decoders, probe_seconds
assert len(decode(Path("a.flac")).samples) == 64_000
assert decoders()["av"] == "not installed" and probe_seconds(Path("a.mp3")) is None
try:
    decode(Path("a.mp3"))
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("no-decoder: ") and "pip install 'openwavlm[media]'" in done.stdout


def test_play_lists_open_no_other_file(tmp_path: Path) -> None:
    encoded(tmp_path, "aac")
    for name, content in {
        "a.mp3": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nwhole.aac\n#EXT-X-ENDLIST\n",
        "b.mp3": "ffconcat version 1.0\nfile whole.aac\n",
    }.items():
        (tmp_path / name).write_text(content)
        assert reason(tmp_path / name) == "unreadable"


def test_a_file_is_recognised_by_its_content_whatever_its_name(tmp_path: Path) -> None:
    whole = encoded(tmp_path, "opus")
    odd = tmp_path / "http:x\udcff.wav"
    odd.write_bytes(whole)
    np.testing.assert_array_equal(decode(odd).samples, decode(tmp_path / "whole.opus").samples)
    (tmp_path / "text.au").write_text("no audio at all " * 100)
    assert reason(tmp_path / "text.au") == "unreadable"


def test_every_decoder_is_named_with_its_version() -> None:
    assert {name: bool(re.match(r"\d+\.\d+", version)) for name, version in decoders().items()} == {
        "soundfile": True,
        "av": True,
        "soxr": True,
    }
    assert {
        ".aiff",
        ".aif",
        ".w64",
        ".caf",
        ".au",
        ".snd",
        ".wv1",
        ".wave",
        ".rf64",
        ".m4a",
        ".aac",
        ".mp4",
        ".webm",
    } < EXTENSIONS


def test_the_length_of_a_recording_is_what_was_decoded_where_no_header_tells(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 8000, 8000).clip(-32_768, 32_767).astype(np.int16)
    encode(tmp_path / "a.mp3", np.concatenate([noise, np.resize(SPEECH, 160_000)]), "mp3", write_xing="0")
    with pytest.raises(AudioError) as caught:
        decode(tmp_path / "a.mp3", start_s=1.0, end_s=60.0)
    assert (caught.value.reason, caught.value.recording_s) == ("out-of-range", len(decode(tmp_path / "a.mp3").samples) / 16_000)
