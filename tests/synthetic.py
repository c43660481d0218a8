"""Speech-like audio, corpora and shard sets that tests and benchmarks make for themselves."""

import hashlib
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE_HZ = 16_000


def _generator(*key: object) -> np.random.Generator:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _resonate(signal: np.ndarray, frequencies_hz: np.ndarray, bandwidth_hz: float = 120.0) -> np.ndarray:
    """Shapes a spectrum by a sum of Gaussian bumps (a cheap vocal tract)."""
    bins_hz = np.fft.rfftfreq(len(signal), 1 / SAMPLE_RATE_HZ)
    bumps = np.exp(-0.5 * ((bins_hz[None, :] - frequencies_hz[:, None]) / bandwidth_hz) ** 2)
    gain = (bumps / np.sqrt(1 + frequencies_hz[:, None] / 500)).sum(axis=0) + 0.02
    return np.fft.irfft(np.fft.rfft(signal) * gain, len(signal))


def speech_like(seconds: float, seed: int = 0, speaker: str | int = 0) -> np.ndarray:
    """Makes a sound that behaves like speech: voiced syllables with a moving pitch, noise bursts and short pauses.

    Args:
        seconds: Duration at 16 kHz.
        seed: What is said; other seeds give other syllables.
        speaker: Who says it: sets the pitch range and the size of the vocal tract.

    Returns:
        int16 (samples,), never all zero.
    """
    total = round(seconds * SAMPLE_RATE_HZ)
    voice, speech = _generator("voice", speaker), _generator("speech", speaker, seed)
    pitch_hz, tract = voice.uniform(85, 240), voice.uniform(0.85, 1.2)
    vowels = _generator("vowels").uniform([250, 900, 2200], [850, 2100, 3200], size=(12, 3))
    pieces, made = [], 0
    while made < total:
        length = int(speech.uniform(0.06, 0.25) * SAMPLE_RATE_HZ)
        kind = speech.uniform()
        envelope = np.hanning(length + 2)[1:-1] ** 0.5
        if kind < 0.65:
            contour_hz = pitch_hz * np.linspace(speech.uniform(0.8, 1.2), speech.uniform(0.8, 1.2), length)
            phase = 2 * np.pi * np.cumsum(contour_hz) / SAMPLE_RATE_HZ
            pulses = sum(np.cos(k * phase) for k in range(1, 25))
            piece = _resonate(np.asarray(pulses), vowels[speech.integers(12)] * tract) * envelope
        elif kind < 0.9:
            piece = 4 * _resonate(speech.standard_normal(length), np.array([speech.uniform(2500, 6500)]), 800) * envelope
        else:
            piece = np.zeros(length)
        pieces.append(piece + 0.01 * speech.standard_normal(length))
        made += length
    signal = np.concatenate(pieces)[:total]
    return np.round(signal / np.abs(signal).max() * 0.6 * 32767).astype(np.int16)


def write_speech_like(path: Path | str, seconds: float, seed: int = 0, speaker: str | int = 0) -> Path:
    """Writes `speech_like` as a 16 kHz, mono, 16-bit file whose format follows from the extension."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speech_like(seconds, seed, speaker), SAMPLE_RATE_HZ)
    return path


def make_corpus(
    directory: Path | str,
    *,
    speakers: int = 4,
    utterances: int = 6,
    seconds: tuple[float, float] = (2.0, 6.0),
    seed: int = 0,
    extension: str = "flac",
) -> Path:
    """Writes `directory/spkNN/uttNNN.flac`: `utterances` of each of `speakers`, durations uniform in `seconds`."""
    directory = Path(directory)
    durations = _generator("durations", seed).uniform(*seconds, size=(speakers, utterances))
    for s in range(speakers):
        for u in range(utterances):
            path = directory / f"spk{s:02d}" / f"utt{u:03d}.{extension}"
            write_speech_like(path, float(durations[s, u]), seed * 100_000 + u, f"{seed}/{s}")
    return directory


def make_shard_set(directory: Path | str, *, corpus: Path | str | None = None, **settings: object) -> Path:
    """Builds a shard set `directory/shard-set` in this process, from `corpus` or from a corpus that it makes.

    Args:
        directory: Where to work.
        corpus: Folder laid out as `make_corpus` does; None makes one in `directory/corpus`.
        settings: Arguments of `make_corpus` (`speakers`, `utterances`, `seconds`, `extension`, `seed`) and of `make_shards`;
            by default source `synthetic`, `speaker_folder=1`, at most eight utterances a shard.

    Returns:
        Folder of the shard set.
    """
    from openwavlm.shards.prepare import make_shards

    corpus_names = ("speakers", "utterances", "seconds", "extension", "seed")
    if corpus is None:
        corpus = make_corpus(Path(directory) / "corpus", **{name: settings[name] for name in corpus_names if name in settings})
    chosen = {"source": "synthetic", "speaker_folder": 1, "utterances_per_shard": 8, "min_seconds": 0.5}
    chosen |= {name: value for name, value in settings.items() if name not in corpus_names[:-1]}
    output = Path(directory) / "shard-set"
    make_shards(input=corpus, output=output, **chosen)
    return output
