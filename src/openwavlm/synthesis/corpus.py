"""Synthesises the embedded corpus of sentences, speakers, accents and channels as FLAC files, manifests and phone times.

    OUTPUT/train/m1_us/0000.flac …     dev/… test/…            each with its own channel
    OUTPUT/train_clean/… dev_clean/… test_clean/…              the same utterances without a channel (of train, some)
    OUTPUT/train.tsv train_clean.tsv dev.tsv …                 manifests of the six sets, for `make_shards layout=manifest`
    OUTPUT/phones.tsv                  path start end phone raw: seconds, without gaps
    OUTPUT/parts/…                     done-files, one a voice; stats.json is written last

The folder is the voice, a speaker in an accent; the speaker of the manifests is the same in all accents. Dev and test are shard sets of
their own, never mixed into training's.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openwavlm.audio.encode import encode_flac
from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.runtime.atomic import atomic_file, remove_temporaries, write_atomically, write_json, writer_lock
from openwavlm.runtime.files import read_json
from openwavlm.runtime.pool import run_jobs
from openwavlm.runtime.resources import check_of_the_file
from openwavlm.synthesis import espeak
from openwavlm.synthesis.channel import Channel, clean_recording, to_pcm, transmit
from openwavlm.synthesis.utterance import CLASSES, Utterance, utterance
from openwavlm.synthesis.voices import ACCENTS, HELD_OUT_ACCENTS, SPEAKERS, SPLITS, Voice, voices_of

FORMAT_VERSION = 2
_FILES = re.compile(r"(settings|stats)\.json|[^/]+\.tsv|parts/.+|[^/]+/[^/]+/\d+\.flac")
MIN_SECONDS, MAX_SECONDS = 2.0, 8.0
MANIFEST_COLUMNS = ("path", "speaker", "recording", "text", "language", "split", "accent", "variant", "seconds")
PHONE_COLUMNS = ("path", "start", "end", "phone", "raw")

_HALF_UTTERANCE_S = 1.9


@dataclass(frozen=True)
class Part:
    """Utterances of one voice in one split of the corpus in `output`, the unit of resuming."""

    output: Path
    split: str
    voice: Voice
    seconds: float  # target duration, reached to half an utterance
    clean_seconds: float  # audio with a clean twin, from the first utterance on
    seed: int

    @property
    def done_file(self) -> Path:
        """Path of the part's done-file."""
        return self.output / "parts" / self.split / f"{self.voice.name}.json"

    def read_done(self) -> list[dict[str, Any]] | None:
        """Utterances in the done-file; None if it is missing or damaged."""
        try:
            done: list[dict[str, Any]] = json.loads(self.done_file.read_text())["utterances"]
        except (OSError, ValueError, KeyError) as error:
            check_of_the_file(error, self.done_file)
            return None
        return done

    def is_done(self) -> bool:
        """True if the done-file exists and all audio files have their size."""
        done = self.read_done()
        if done is None:
            return False
        files = [(self.output / path, nbytes) for row in done for path, nbytes in row["nbytes"].items()]
        return all(file.is_file() and file.stat().st_size == nbytes for file, nbytes in files)


def synthesize(
    *,
    output: Path | str,
    minutes: float = 90.0,
    dev_minutes: float = 7.0,
    test_minutes: float = 12.0,
    clean_minutes: float = 15.0,
    seed: int = 0,
    workers: int = 1,
) -> dict[str, Any]:
    """Synthesises the corpus, or resumes an unfinished one; equal settings give equal bytes.

    Args:
        output: Folder to write.
        minutes: Training audio; at least one utterance (about 4 s) of each of the 128 voices, 64 speakers in two accents each.
        dev_minutes: Audio of the 6 development speakers.
        test_minutes: Audio of the 12 test speakers.
        clean_minutes: Training audio with a clean twin, for probes; dev and test have a clean twin of all audio.
        seed: Seed of sentences, prosody and channels.
        workers: Local processes; the result is the same.

    Returns:
        Content of `stats.json`.

    Raises:
        ValueError: If an amount is not positive, the output was made with other settings, another process writes there, or espeak-ng is
            not installed.
    """
    output = Path(output)
    amounts = {"minutes": minutes, "dev_minutes": dev_minutes, "test_minutes": test_minutes, "clean_minutes": clean_minutes}
    for name, amount in amounts.items():
        if not 0 < amount < float("inf"):
            raise ValueError(f"{name} must be above 0, but is {amount}")
    settings = {**amounts, "seed": seed}
    espeak.check_available()
    of_splits = zip(SPLITS, (minutes, dev_minutes, test_minutes), (clean_minutes, math.inf, math.inf), strict=True)
    with writer_lock(output):
        _bind_settings(output, settings)
        remove_temporaries(output, _FILES.fullmatch)
        parts = [
            Part(output, split, voice, 60 * wanted / len(voices), 60 * clean / len(voices), seed)
            for split, wanted, clean in of_splits
            for voices in [voices_of(split)]
            for voice in voices
        ]
        missing = [part for part in parts if not part.is_done()]
        for _ in run_jobs(run_part, missing, workers=workers, description="synthesising"):
            pass
        return _finish(output, parts, settings)


def _bind_settings(output: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a new corpus, or compares them with those of an existing one."""
    path = output / "settings.json"
    settings = {"format_version": FORMAT_VERSION, **settings}
    if not path.exists():
        if any((output / name).exists() for name in ("parts", "phones.tsv")):
            raise ValueError(f"{output} holds a corpus without its settings.json: give another output")
        write_json(path, settings)
        return
    bound = read_json(path, remedy="give another output").values
    changed = sorted(name for name in settings.keys() | bound.keys() if settings.get(name) != bound.get(name))
    if changed:
        was, now = (", ".join(f"{name}={values.get(name)}" for name in changed) for values in (bound, settings))
        raise ValueError(f"{output} was made with {was}, but this run has {now}: repeat the settings, or give another output")


def run_part(part: Part) -> int:
    """Synthesises a part and writes its done-file last; returns the number of utterances."""
    sets = (part.split, f"{part.split}_clean")
    rows: list[dict[str, Any]] = []
    made_s, attempt = 0.0, 0
    while not rows or made_s + _HALF_UTTERANCE_S < part.seconds:
        key = f"{part.split}/{part.voice.name}/{attempt}"
        attempt += 1
        said = utterance(part.voice, seed=part.seed, key=key)
        seconds = len(said.waveform) / SAMPLE_RATE_HZ
        if not MIN_SECONDS <= seconds <= MAX_SECONDS:
            continue
        rows.append(_write(part, said, len(rows), sets if made_s < part.clean_seconds else sets[:1]))
        made_s += seconds
    write_json(part.done_file, {"utterances": rows}, indent=None)
    return len(rows)


def _write(part: Part, said: Utterance, number: int, folders: tuple[str, ...]) -> dict[str, Any]:
    """Writes an utterance with its channel and, in a folder `…_clean`, without."""
    nbytes = {}
    for folder in folders:
        name = f"{folder}/{part.voice.name}/{number:04d}"
        channel = Channel.draw(part.seed, name)
        recorded = clean_recording(said.waveform, channel.key) if folder.endswith("_clean") else transmit(said.waveform, channel)
        payload = encode_flac(to_pcm(recorded))
        write_atomically(part.output / f"{name}.flac", payload)
        nbytes[f"{name}.flac"] = len(payload)
    return {"nbytes": nbytes, "text": said.text, "num_samples": len(said.waveform), "segments": said.segments}


def _finish(output: Path, parts: list[Part], settings: dict[str, Any]) -> dict[str, Any]:
    """Writes manifests, phone times and statistics from the done-files."""
    manifests: dict[str, list[tuple[str, ...]]] = {}
    times: list[tuple[str, ...]] = []
    seconds: dict[str, float] = {}
    phone_seconds = dict.fromkeys(CLASSES, 0.0)
    for part in parts:
        speaker = part.voice.speaker
        for row in part.read_done() or ():
            length_s = row["num_samples"] / SAMPLE_RATE_HZ
            for path in row["nbytes"]:
                name, recording = path.split("/", 1)[0], path.removesuffix(".flac")
                of_voice = (part.voice.accent, speaker.variant, f"{length_s:.4f}")
                manifests.setdefault(name, []).append((path, speaker.name, recording, row["text"], "en", name, *of_voice))
                seconds[name] = seconds.get(name, 0.0) + length_s
                times += [(path, f"{start:.6f}", f"{end:.6f}", phone, raw) for start, end, phone, raw in row["segments"]]
            if part.split == "train":
                for start, end, phone, _ in row["segments"]:
                    phone_seconds[phone] += end - start
    for name, rows in manifests.items():
        _write_table(output / f"{name}.tsv", [MANIFEST_COLUMNS, *rows])
    _write_table(output / "phones.tsv", [PHONE_COLUMNS, *times])
    stats = {
        "settings": settings,
        "sets": {
            name: {"utterances": len(rows), "minutes": round(seconds[name] / 60, 4), "speakers": len({row[1] for row in rows})}
            for name, rows in manifests.items()
        },
        "speakers": {split: [speaker.name for speaker in SPEAKERS if speaker.split == split] for split in SPLITS},
        "accents": sorted(ACCENTS),
        "held_out_accents": sorted(HELD_OUT_ACCENTS),
        "phone_classes": len(CLASSES),
        "train_phone_seconds": {phone: round(length, 3) for phone, length in phone_seconds.items()},
    }
    write_json(output / "stats.json", stats)
    return stats


def _write_table(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    with atomic_file(path) as file:
        file.writelines(("\t".join(row) + "\n").encode() for row in rows)
