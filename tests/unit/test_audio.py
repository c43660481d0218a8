"""Decoding: any format comes out as 16 kHz mono int16, and every kind of bad file has its own name."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from openwavlm.audio.containers.flac import flac_md5
from openwavlm.audio.encode import encode_flac, pcm_id, pcm_md5
from openwavlm.audio.errors import AudioError
from openwavlm.audio.read import check_clip, decode, probe_channels, probe_seconds
from synthetic import speech_like

SPEECH = speech_like(2.0, seed=1, speaker="a")
TONE_HZ = 440.0


def tone(rate: int, seconds: float = 1.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * TONE_HZ * np.arange(int(seconds * rate)) / rate)


def reason(path: Path, **settings: float) -> str:
    with pytest.raises(AudioError) as caught:
        decode(path, **settings)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_16_khz_mono_16_bit_pcm_passes_bit_for_bit(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    soundfile.write(path, SPEECH, 16_000)
    decoded = decode(path)
    assert decoded.samples.dtype == np.int16
    assert decoded.num_clipped == 0
    np.testing.assert_array_equal(decoded.samples, SPEECH)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "settings"),
    [
        ("a.wav", 8_000, 1, {}),
        ("a.wav", 44_100, 2, {}),
        ("a.wav", 48_000, 6, {"subtype": "PCM_24"}),
        ("a.wav", 22_050, 1, {"subtype": "FLOAT"}),
        ("a.wav", 16_000, 1, {"subtype": "PCM_U8"}),
        ("a.flac", 44_100, 2, {"subtype": "PCM_24"}),
        ("a.ogg", 44_100, 2, {}),
        ("a.opus", 48_000, 1, {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", 44_100, 2, {"format": "MP3"}),
        ("a.sph", 16_000, 1, {"format": "NIST", "subtype": "PCM_16"}),
    ],
)
def test_every_format_keeps_duration_pitch_and_level(
    tmp_path: Path, name: str, rate: int, channels: int, settings: dict[str, str]
) -> None:
    soundfile.write(tmp_path / name, np.tile(tone(rate)[:, None], channels), rate, **settings)
    samples = decode(tmp_path / name).samples
    assert abs(len(samples) - 16_000) <= 2
    middle = samples[4000:12000].astype(np.float64) / 32768
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(np.argmax(spectrum) * 2 - TONE_HZ) <= 2
    assert abs(20 * np.log10(middle.std() / (0.3 / np.sqrt(2)))) < 0.3
    assert probe_seconds(tmp_path / name) == pytest.approx(1.0, abs=0.01)


def test_channels_are_averaged(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([np.full(800, 1000), np.full(800, 3000)], 1).astype(np.int16), 16_000)
    np.testing.assert_array_equal(decode(tmp_path / "a.wav").samples, np.full(800, 2000))


def test_samples_beyond_full_scale_are_cut_and_counted(tmp_path: Path) -> None:
    loud = np.concatenate([np.full(900, 0.5), np.full(60, 1.5), np.full(40, -1.5)])
    soundfile.write(tmp_path / "a.wav", loud, 16_000, subtype="FLOAT")
    decoded = decode(tmp_path / "a.wav")
    assert decoded.num_clipped == 100
    assert (decoded.samples.max(), decoded.samples.min()) == (32767, -32768)


def test_a_float_file_with_integer_scale_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SPEECH.astype(np.float32), 16_000, subtype="FLOAT")
    assert reason(tmp_path / "a.wav") == "over-scale"


def test_a_range_holds_exactly_its_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", SPEECH, 16_000)
    np.testing.assert_array_equal(decode(tmp_path / "a.flac", start_s=0.5, end_s=1.25).samples, SPEECH[8000:20000])
    np.testing.assert_array_equal(decode(tmp_path / "a.flac", start_s=1.5).samples, SPEECH[24000:])


def test_a_range_of_a_resampled_file_lies_where_it_should(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.concatenate([np.zeros(44_100), tone(44_100), np.zeros(44_100)]), 44_100)
    samples = decode(tmp_path / "a.wav", start_s=0.5, end_s=2.5).samples
    assert abs(len(samples) - 32_000) <= 1
    assert np.flatnonzero(np.abs(samples) > 500)[[0, -1]] == pytest.approx([8000, 24_000], abs=30)


def test_a_range_outside_the_recording_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SPEECH, 16_000)
    assert reason(tmp_path / "a.wav", start_s=1.0, end_s=9.0) == "out-of-range"
    assert reason(tmp_path / "a.wav", start_s=3.0) == "out-of-range"
    assert len(decode(tmp_path / "a.wav", start_s=1.0, end_s=2.2).samples) == 16_000


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.wav", {}),
        ("a.flac", {}),
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", {"format": "MP3"}),
    ],
)
@pytest.mark.parametrize("share", [0.35, 0.8])
def test_a_file_that_was_cut_off_is_truncated(tmp_path: Path, name: str, settings: dict[str, str], share: float) -> None:
    soundfile.write(tmp_path / name, speech_like(6.0, 3, "a"), 16_000, **settings)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    assert reason(tmp_path / name) == "truncated"


def test_wrong_bytes_inside_a_flac_file_are_unreadable(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", speech_like(8.0, 3, "a"), 16_000)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[20_000:20_050] = bytes(50)
    (tmp_path / "a.flac").write_bytes(content)
    assert reason(tmp_path / "a.flac") == "unreadable"


def test_a_flac_file_that_does_not_announce_its_length_is_read_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", SPEECH, 16_000)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    assert probe_seconds(tmp_path / "a.flac") is None
    np.testing.assert_array_equal(decode(tmp_path / "a.flac").samples, SPEECH)


def test_files_without_sound_have_their_own_reasons(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.flac").write_text("this is no audio file")
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.int16), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.r_[tone(16_000), np.nan], 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "long.wav", np.zeros(40_000, np.int16), 8_000)
    (tmp_path / "folder.wav").mkdir()
    assert reason(tmp_path / "absent.wav") == "missing"
    assert reason(tmp_path / "empty.wav") == "zero-length"
    assert reason(tmp_path / "text.flac") == "unreadable"
    assert reason(tmp_path / "folder.wav") == "unreadable"
    assert reason(tmp_path / "none.wav") == "zero-length"
    assert reason(tmp_path / "nan.wav") == "not-finite"
    assert reason(tmp_path / "long.wav", max_hours=4.9 / 3600) == "too-long"


@pytest.mark.parametrize(
    ("samples", "expected"), [(np.zeros(0), "zero-length"), (np.ones(399), "too-short"), (np.zeros(400), "all-zero")]
)
def test_a_clip_needs_one_receptive_field_and_a_sound(samples: np.ndarray, expected: str) -> None:
    with pytest.raises(AudioError) as caught:
        check_clip(samples.astype(np.int16))
    assert caught.value.reason == expected
    check_clip(np.ones(400, np.int16))


def test_flac_carries_the_md5_of_its_samples(tmp_path: Path) -> None:
    payload = encode_flac(SPEECH)
    assert payload == encode_flac(SPEECH)
    assert flac_md5(payload) == pcm_md5(SPEECH) != pcm_md5(SPEECH[:-1])
    assert pcm_id(flac_md5(payload)) == int.from_bytes(flac_md5(payload)[:8], "little")
    assert flac_md5(b"RIFF" + payload[4:]) == b""
    (tmp_path / "a.flac").write_bytes(payload)
    np.testing.assert_array_equal(decode(tmp_path / "a.flac").samples, SPEECH)


def test_a_range_between_samples_holds_every_sample_that_it_touches(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SPEECH, 16_000)
    decoded = decode(tmp_path / "a.wav", start_s=0.50003, end_s=1.00003)  # samples 8000.48 to 16000.48
    np.testing.assert_array_equal(decoded.samples, SPEECH[8000:16_001])


def test_half_a_second_past_the_end_is_forgiven_and_more_is_not(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", SPEECH, 16_000)
    assert len(decode(tmp_path / "a.wav", start_s=1.0, end_s=2.5).samples) == 16_000
    assert reason(tmp_path / "a.wav", start_s=1.0, end_s=2.51) == "out-of-range"


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_24", "PCM_32"])
def test_finer_samples_are_rounded_to_the_nearest_sixteen_bit_step(tmp_path: Path, subtype: str) -> None:
    steps = np.concatenate([np.arange(-400, 400), np.array([32_700.0, -32_700.0])])
    for part in (0.25, 0.75):
        soundfile.write(tmp_path / "a.wav", (steps + part) / 32_768, 16_000, subtype=subtype)
        np.testing.assert_array_equal(decode(tmp_path / "a.wav").samples, steps + round(part))


def test_all_of_many_channels_are_averaged(tmp_path: Path) -> None:
    levels = np.array([100, 200, 400, 800, 1600, 2900])
    soundfile.write(tmp_path / "a.wav", np.tile(levels.astype(np.int16), (800, 1)), 16_000)
    np.testing.assert_array_equal(decode(tmp_path / "a.wav").samples, np.full(800, 1000))


def test_a_recording_of_several_blocks_is_whole_whatever_its_channels(tmp_path: Path) -> None:
    long = np.resize(SPEECH, 2 * (1 << 18) + 777)
    soundfile.write(tmp_path / "mono.wav", long, 16_000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([long, long], axis=1), 16_000)
    for name in ("mono.wav", "stereo.wav"):
        np.testing.assert_array_equal(decode(tmp_path / name).samples, long)
    loud = np.zeros(len(long))
    loud[[5, 300_000, 300_001, len(long) - 1]] = 1.5
    soundfile.write(tmp_path / "loud.wav", loud, 16_000, subtype="FLOAT")
    assert decode(tmp_path / "loud.wav").num_clipped == 4


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_another_rate_is_resampled_as_soxr_does_the_whole_recording_at_once(tmp_path: Path, rate: int) -> None:
    time = np.arange((1 << 18) + 5000) / rate  # two blocks
    sweep = 0.4 * np.sin(2 * np.pi * (50 * time + 0.4 * rate / 2 / time[-1] * time**2))
    soundfile.write(tmp_path / "a.wav", sweep, rate, subtype="FLOAT")
    expected = soxr.resample(sweep.astype(np.float32), rate, 16_000, quality="HQ") * 32_768
    decoded = decode(tmp_path / "a.wav").samples
    assert abs(len(decoded) - len(expected)) <= 1
    count = min(len(decoded), len(expected))
    assert np.abs(decoded[:count] - expected[:count]).max() < 1.0  # half a step, and float32 rounding


def test_a_flac_file_that_lacks_a_few_of_the_announced_samples_is_truncated(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", SPEECH, 16_000)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[22:26] = (len(SPEECH) + 10).to_bytes(4, "big")  # RFC 9639, 8.2: the last 36 bits before the MD5
    (tmp_path / "a.flac").write_bytes(content)
    assert reason(tmp_path / "a.flac") == "truncated"


@pytest.mark.parametrize("channels", [1, 2])
def test_a_sphere_file_that_was_cut_off_is_truncated(tmp_path: Path, channels: int) -> None:
    # libsndfile takes the number of samples from the size of the file.
    soundfile.write(tmp_path / "a.sph", np.tile(SPEECH[:, None], channels), 16_000, format="NIST", subtype="PCM_16")
    np.testing.assert_array_equal(decode(tmp_path / "a.sph").samples, SPEECH)
    content = (tmp_path / "a.sph").read_bytes()
    assert content.startswith(b"NIST_1A\n   1024\n") and len(content) == 1024 + 2 * channels * len(SPEECH)
    (tmp_path / "a.sph").write_bytes(content[:-1])
    assert reason(tmp_path / "a.sph") == "truncated"


# --- containers ---------------------------------------------------------------------------------------------------------


def wav(samples: np.ndarray, *, before: bytes = b"", announced: int | None = None) -> bytes:
    """A WAV file by hand: `before` lies between the format and the samples."""
    content = samples.astype("<i2").tobytes()
    announced = len(content) if announced is None else announced
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    body = b"WAVE" + form + before + struct.pack("<4sI", b"data", announced) + content
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def test_a_chunk_of_odd_length_is_followed_by_a_byte_of_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # which would read such a file too
    note = struct.pack("<4sI", b"note", 5) + b"hello\0"
    (tmp_path / "a.wav").write_bytes(wav(SPEECH, before=note))
    np.testing.assert_array_equal(decode(tmp_path / "a.wav").samples, SPEECH)
    (tmp_path / "a.wav").write_bytes(wav(SPEECH[:-1], before=note, announced=2 * len(SPEECH)))
    assert reason(tmp_path / "a.wav") == "truncated"


def test_a_wav_that_was_written_to_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(SPEECH, announced=0xFFFF_FFFF))
    np.testing.assert_array_equal(decode(tmp_path / "a.wav").samples, SPEECH)


def test_one_channel_is_decoded_alone(tmp_path: Path) -> None:
    other = SPEECH[::-1].copy()
    soundfile.write(tmp_path / "a.wav", np.stack([SPEECH, other], axis=1), 16_000)
    assert probe_channels(tmp_path / "a.wav") == 2
    for channel, expected in enumerate([SPEECH, other]):
        decoded = decode(tmp_path / "a.wav", channel=channel)
        np.testing.assert_array_equal(decoded.samples, expected)
        assert (decoded.channel, decoded.out_of_phase) == (channel, False)
    assert decode(tmp_path / "a.wav").channel is None
    assert reason(tmp_path / "a.wav", channel=2) == "no-such-channel"
