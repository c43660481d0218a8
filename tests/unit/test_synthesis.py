"""The parts of the embedded corpus: sentences, voices, espeak-ng, phones and channels."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from openwavlm.synthesis import channel as channels
from openwavlm.synthesis import espeak, sentences
from openwavlm.synthesis.channel import Channel, clean_recording, to_pcm, transmit
from openwavlm.synthesis.sentences import plural, sentence, with_articles
from openwavlm.synthesis.utterance import CLASSES, SILENCE, phone_class, segments, utterance
from openwavlm.synthesis.voices import ACCENTS, HELD_OUT_ACCENTS, SPEAKERS, SPLITS, Speaker, Voice, voices_of

installed = importlib.util.find_spec("espeakng_loader") is not None
with_espeak = pytest.mark.skipif(not installed, reason="espeak-ng is not installed: pip install 'openwavlm[demo]'")


def a_channel(**changes: object) -> Channel:
    settings = {
        "tilt_db_per_octave": 0.0,
        "ripple_db": (0.0,),
        "rt60_s": 0.3,
        "direct_to_reverberant_db": 10.0,
        "snr_db": 200.0,
        "noise_slope": 0.0,
        "key": 1,
    }
    return Channel(**settings | changes)


def decibels(ratio: float) -> float:
    return 10 * float(np.log10(ratio))


def test_sentences_hardly_ever_repeat_and_a_key_always_gives_the_same_one():
    drawn = [sentence(0, f"train/{number}") for number in range(1000)]
    assert drawn == [sentence(0, f"train/{number}") for number in range(1000)]
    assert len(set(drawn)) > 990
    assert sentence(1, "train/0") != drawn[0]
    said = {word for text in drawn for word in text.lower().replace(".", "").replace(",", "").replace("?", "").split()}
    lists = [entries for slot, entries in sentences.WORDS.items() if slot not in ("when", "near", "the")]
    words = {form.lower() for entries in lists for word in entries for form in word.split(":")}
    assert len(words) >= 300 and len(words & said) >= 300
    assert not any("{" in text or "|" in text or ":" in text for text in drawn)


def test_plurals_and_articles_are_english():
    nouns = {"potato": "potatoes", "cherry": "cherries", "donkey": "donkeys", "box": "boxes", "mouse": "mice", "rope": "ropes"}
    assert {noun: plural(noun) for noun in nouns} == nouns
    text = "a old uncle, a uncle, a usual horse, a young eagle, a eagle, a umbrella, this a"
    assert with_articles(text) == "an old uncle, an uncle, a usual horse, a young eagle, an eagle, an umbrella, this a"


def test_no_speaker_and_no_variant_is_in_two_splits_and_one_accent_is_only_tested():
    voices = {split: voices_of(split) for split in SPLITS}
    for of in (lambda voice: voice.speaker.name, lambda voice: voice.speaker.variant):
        found = [{of(voice) for voice in voices[split]} for split in SPLITS]
        assert len(set.union(*found)) == sum(map(len, found))
    speakers = {split: len({voice.speaker.name for voice in voices[split]}) for split in SPLITS}
    assert speakers == {"train": 64, "dev": 6, "test": 12} and sum(speakers.values()) == len(SPEAKERS)
    assert {split: len({voice.speaker.variant for voice in voices[split]}) for split in SPLITS} == {
        "train": 32,
        "dev": 6,
        "test": 12,
    }
    accents = {split: {voice.accent for voice in voices[split]} for split in SPLITS}
    assert set(HELD_OUT_ACCENTS) and accents["train"] == accents["dev"] == set(ACCENTS) - set(HELD_OUT_ACCENTS)
    assert accents["test"] == set(ACCENTS)
    assert len({voice.name for split in SPLITS for voice in voices[split]}) == 32 * 4 + 6 * 4 + 12 * 5


def test_two_speakers_of_one_variant_differ_in_pitch_rate_and_vocal_tract_and_share_no_accent():
    of_variant: dict[str, list[Speaker]] = {}
    for speaker in SPEAKERS:
        assert 0.88 <= speaker.formant_scale <= 1.14
        of_variant.setdefault(speaker.variant, []).append(speaker)
    pairs = [found for found in of_variant.values() if len(found) > 1]
    assert len(pairs) == 32
    for one, other in pairs:
        assert abs(one.pitch - other.pitch) >= 10 and abs(one.rate_wpm - other.rate_wpm) >= 10
        assert abs(one.formant_scale / other.formant_scale - 1) > 0.07
        assert sorted(one.accents + other.accents) == sorted(set(ACCENTS) - set(HELD_OUT_ACCENTS))


@with_espeak
def test_the_formant_scale_moves_the_spectrum_and_keeps_the_rate():
    """The same voice with a vocal tract 15 % shorter: formants 15 % higher, in about the same time."""

    def spoken(scale: float) -> np.ndarray:
        speaker = Speaker("one", "test", "m3", 50, 170, scale, ("us",))
        return utterance(Voice(speaker, "us"), seed=0, key="test/3").waveform

    plain, scaled = spoken(1.0), spoken(1.15)
    assert len(scaled) == pytest.approx(len(plain), rel=0.05)
    stretch = 1.0 + np.arange(-5, 31) / 100
    frequency_hz = np.fft.rfftfreq(512, 1 / 16_000)
    before, after = (
        np.log(
            np.mean(np.abs(np.fft.rfft(np.lib.stride_tricks.sliding_window_view(one, 512)[::160] * np.hanning(512))) ** 2, axis=0)
        )
        for one in (plain, scaled)
    )
    band = (frequency_hz > 400) & (frequency_hz < 4500)
    fit = [np.corrcoef(np.interp(frequency_hz[band] / by, frequency_hz, before), after[band])[0, 1] for by in stretch]
    assert stretch[int(np.argmax(fit))] == pytest.approx(1.15, abs=0.04)


@with_espeak
def test_an_utterance_is_the_same_bytes_whatever_was_said_before():
    text = "The old gardener carried nine heavy baskets over the bridge."
    alone = espeak.speak(text, "gmw/en-US+m1", pitch=45, rate_wpm=170, seed=3)
    espeak.speak("Something else entirely, and rather longer.", "gmw/en-029+f1", pitch=80, rate_wpm=230)
    again = espeak.speak(text, "gmw/en-US+m1", pitch=45, rate_wpm=170, seed=3)
    assert alone.samples.tobytes() == again.samples.tobytes()
    assert alone.phones == again.phones and (alone.starts == again.starts).all()
    for changes in ({"pitch": 60}, {"rate_wpm": 200}):
        assert (
            espeak.speak(text, "gmw/en-US+m1", **{"pitch": 45, "rate_wpm": 170} | changes).samples.tobytes()
            != alone.samples.tobytes()
        )


@with_espeak
def test_another_process_says_the_same():
    program = (
        "import hashlib, json; from openwavlm.synthesis.espeak import speak; s = speak('A quiet river.', 'gmw/en-GB-x-rp+m3', seed=5);"
        "print(json.dumps([hashlib.md5(s.samples.tobytes()).hexdigest(), s.starts.tolist(), list(s.phones)]))"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout for _ in range(2)
    ]
    here = espeak.speak("A quiet river.", "gmw/en-GB-x-rp+m3", seed=5)
    digest = hashlib.md5(here.samples.tobytes()).hexdigest()
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0]) == [digest, here.starts.tolist(), list(here.phones)]


@with_espeak
def test_every_accent_is_cut_into_known_phones_without_gaps():
    seen = set()
    for accent, voice in ACCENTS.items():
        for number in range(12):
            speech = espeak.speak(sentence(0, f"{accent}/{number}"), voice)
            cut = segments(speech, accent)
            assert cut[0].start == 0 and cut[-1].end == len(speech.samples)
            assert all(before.end == after.start for before, after in pairwise(cut))
            assert all(segment.end > segment.start for segment in cut)
            seen |= {segment.phone for segment in cut}
    assert seen <= set(CLASSES)
    assert len(CLASSES) == 45 and len(seen) >= 42


@with_espeak
def test_accents_differ_in_the_phones_where_they_should():
    def classes(accent: str) -> list[str]:
        cut = segments(espeak.speak("Cup. Lot. Path.", ACCENTS[accent]), accent)
        return [segment.phone for segment in cut if segment.phone != SILENCE]

    assert classes("us") == ["k", "ah", "p", "l", "aa", "t", "p", "ae", "th"]
    assert classes("rp") == ["k", "ah", "p", "l", "oh", "t", "p", "aa", "th"]
    assert classes("lancaster") == ["k", "uh", "p", "l", "oh", "t", "p", "ae", "th"]


def test_the_closure_belongs_to_the_stop_and_neighbouring_pauses_are_one():
    sound = np.full(1000, 500, dtype=np.int16)
    closure = np.zeros(600, dtype=np.int16)
    samples = np.concatenate([sound, closure, sound, 0 * sound, 0 * sound])
    speech = espeak.Speech(samples, np.array([0, 1600, 2600, 3600]), ("'a", "k", "_:", "_"))
    cut = segments(speech, "us")
    assert [(segment.start, segment.end, segment.phone) for segment in cut] == [
        (0, 1000, "ae"),
        (1000, 2600, "k"),
        (2600, 4600, "sil"),
    ]


def test_an_unknown_phone_is_refused():
    with pytest.raises(ValueError, match=r"Q9.* has no class"):
        phone_class("'Q9", "us")


@with_espeak
@pytest.mark.parametrize(
    ("settings", "message"), [({"pitch": 120}, "pitch must lie"), ({"voice": "gmw/xx"}, "no voice 'gmw/xx'")]
)
def test_bad_settings_of_a_voice_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        espeak.speak("Hello.", **{"voice": "gmw/en-US"} | settings)
    assert len(espeak.speak("Hello.", "gmw/en-US").samples) > 0


@with_espeak
def test_a_library_that_somebody_else_holds_is_refused():
    program = (
        "import ctypes, espeakng_loader; held = ctypes.CDLL(espeakng_loader.get_library_path());"
        "from openwavlm.synthesis.espeak import speak; speak('Hello.', 'gmw/en-US')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0 and "in use in this process" in done.stderr


def test_without_the_wheel_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'openwavlm\[demo\]'"):
        espeak.speak("Hello.", "gmw/en-US")


def test_channels_are_drawn_by_recording_and_stay_within_their_ranges():
    drawn = [Channel.draw(0, f"train/m1_us/{number:04d}") for number in range(400)]
    assert drawn[7] == Channel.draw(0, "train/m1_us/0007") != Channel.draw(1, "train/m1_us/0007")
    ranges = {
        "tilt_db_per_octave": channels.TILT_DB_PER_OCTAVE,
        "rt60_s": (0.15, 0.4),
        "snr_db": (10, 25),
        "noise_slope": channels.NOISE_SLOPE,
        "direct_to_reverberant_db": channels.DIRECT_TO_REVERBERANT_DB,
    }
    for name, (low, high) in ranges.items():
        values = np.array([getattr(channel, name) for channel in drawn])
        assert low <= values.min() < low + 0.05 * (high - low) and high - 0.05 * (high - low) < values.max() <= high
    assert len({channel.key for channel in drawn}) == 400


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_the_noise_has_the_wanted_power_and_colour(slope):
    speech = np.random.default_rng(0).standard_normal(160_000)
    recorded = transmit(speech, a_channel(snr_db=13.0, noise_slope=slope))
    assert decibels(np.mean(recorded.speech**2) / np.mean(recorded.noise**2)) == pytest.approx(13.0, abs=0.01)
    power = np.abs(np.fft.rfft(recorded.noise)) ** 2
    frequency_hz = np.fft.rfftfreq(len(recorded.noise), 1 / 16_000)
    bands = [np.mean(power[(frequency_hz >= low) & (frequency_hz < 2 * low)]) for low in (125, 250, 500, 1000, 2000, 4000)]
    falls_db = -np.diff([decibels(band) for band in bands])
    assert np.mean(falls_db) == pytest.approx(3.01 * slope, abs=0.3)


def test_the_direct_path_is_not_delayed_and_the_room_decays_by_60_db_in_its_time():
    click = np.zeros(16_000)
    click[4000] = 1
    for number in range(8):
        drawn = Channel.draw(3, str(number))
        assert np.abs(transmit(click, drawn).speech).argmax() == 4000
    response = transmit(click, a_channel(rt60_s=0.3)).speech[4000:]
    assert np.allclose(transmit(click, a_channel()).speech[:4000], 0, atol=1e-9)
    assert decibels(1 / np.sum(response[1:] ** 2)) == pytest.approx(10.0, abs=0.01)
    left_db = 10 * np.log10(np.cumsum(response[:0:-1] ** 2)[::-1])
    at_s = np.arange(len(left_db)) / 16_000
    early = (at_s > 0.01) & (at_s < 0.15)
    slope_db_per_s = np.polyfit(at_s[early], left_db[early], 1)[0]
    assert -60 / slope_db_per_s == pytest.approx(0.3, rel=0.1)


def test_the_equaliser_tilts_around_1_khz():
    click = np.zeros(16_000)
    click[8000] = 1
    heard = transmit(click, a_channel(tilt_db_per_octave=-3.0, direct_to_reverberant_db=150.0)).speech
    gain_db = 20 * np.log10(np.abs(np.fft.rfft(heard)))
    assert gain_db[[500, 1000, 2000, 4000]] == pytest.approx([3, 0, -3, -6], abs=0.05)


def test_recordings_have_one_level_and_never_clip():
    speech = np.random.default_rng(0).standard_normal(16_000)
    pcm = to_pcm(transmit(speech, a_channel(snr_db=20.0)))
    assert pcm.dtype == np.int16
    assert decibels(np.mean((pcm / 32768.0) ** 2)) == pytest.approx(-26, abs=0.1)
    spiky = np.zeros(16_000)
    spiky[8000] = 1
    assert 32_000 < np.abs(to_pcm(clean_recording(spiky, key=1)).astype(int)).max() < 32_767


def test_the_clean_twin_has_only_a_sound_cards_noise():
    speech = np.sin(np.arange(16_000) / 10)
    recorded = clean_recording(speech, key=1)
    assert (recorded.speech == speech).all()
    assert decibels(np.mean(speech**2) / np.mean(recorded.noise**2)) == pytest.approx(60, abs=0.01)


def test_phone_times_are_those_of_the_sounds_in_the_padded_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """A click where each phone begins, at espeak-ng's 22,050 Hz times the formant scale, is found at the phone's time."""
    starts, asked = np.array([1500, 4000, 9000, 15_000, 21_000]), []

    def speak(text: str, voice: str, *, pitch: int, rate_wpm: int, seed: int) -> espeak.Speech:
        asked.append((pitch, rate_wpm))
        samples = np.full(24_000, 40, dtype=np.int16)  # never silent: no closure is looked for
        samples[starts] = 30_000
        return espeak.Speech(samples, starts, ("'a", "n", "m", "i:", "_"))

    monkeypatch.setattr("openwavlm.synthesis.utterance.espeak.speak", speak)
    voice = voices_of("dev")[0]
    speaker, scale = voice.speaker, voice.speaker.formant_scale
    assert scale != 1
    played_hz = 22_050 * scale
    leads, rests = [], []
    for number in range(60):
        made = utterance(voice, seed=1, key=f"dev/{number}")
        clicks = np.flatnonzero(np.abs(made.waveform) > 0.3)
        found_s = clicks[np.append(True, np.diff(clicks) > 100)] / 16_000
        names = [phone for _, _, phone, _ in made.segments]
        assert names == ["sil", "ae", "n", "m", "iy", "sil"]
        begins = [start for start, _, _, _ in made.segments]
        np.testing.assert_allclose(begins[1:], found_s, atol=3e-4)
        assert begins[0] == 0 and all(before[1] == after[0] for before, after in pairwise(made.segments))
        assert made.segments[-1][1] == pytest.approx(len(made.waveform) / 16_000, abs=1e-6)
        lead = begins[1] - 1500 / played_hz
        leads.append(lead)
        rests.append(len(made.waveform) / 16_000 - lead - 24_000 / played_hz)
        assert not made.waveform[: round(lead * 16_000)].any()
    for pauses in (leads, rests):
        assert 0.0995 < min(pauses) < 0.12 and 0.28 < max(pauses) < 0.3005
    assert abs(np.corrcoef(leads, rests)[0, 1]) < 0.5
    pitches, rates = (np.array(values) for values in zip(*asked, strict=True))
    assert set(pitches - speaker.pitch) <= set(range(-6, 7)) and len(set(pitches)) > 8
    assert abs(rates * scale / speaker.rate_wpm - 1).max() <= 0.084 and rates.max() / rates.min() > 1.1
