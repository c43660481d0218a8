"""Synthetic speech as shards, a codebook of K = 500 on MFCC, labels, and a noise bank: what all trainings of the program read."""

import multiprocessing
from pathlib import Path
from typing import Any

from gpu_parts.child import Reporter, timed
from gpu_parts.setting import Setting
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.shards.prepare import make_shards
from synthetic import write_speech_like


def _write(job: tuple[Path, float, int, str]) -> float:
    path, seconds, seed, speaker = job
    write_speech_like(path, seconds, seed, speaker)
    return seconds


def make_shard_set(
    folder: Path, speakers: int, utterances: int, seconds: tuple[float, float], cores: int, seed: int = 0
) -> tuple[Path, float]:
    """Shards of `utterances` of each of `speakers`, of lengths spread evenly over `seconds`, made on `cores` cores.

    Returns:
        The shard set, and seconds of audio.
    """
    shortest, longest = seconds
    jobs = []
    for speaker in range(speakers):
        for number in range(utterances):
            length = shortest + (longest - shortest) * ((number + speaker / speakers) / utterances)
            path = folder / "corpus" / f"spk{speaker:03d}" / f"utt{number:02d}.flac"
            jobs.append((path, length, seed * 100_000 + number, f"{seed}/{speaker}"))
    with multiprocessing.get_context("fork").Pool(cores) as pool:
        audio_s = sum(pool.imap_unordered(_write, jobs, chunksize=4))
    shards = folder / "shard-set"
    make_shards(
        input=folder / "corpus",
        output=shards,
        source="synthetic",
        speaker_folder=1,
        min_seconds=0.5,
        task_hours=0.1,
        utterances_per_shard=32,
        workers=cores,
    )
    return shards, audio_s


def measure(setting: Setting, report: Reporter) -> None:
    """Makes the data below `setting.data` and reports how long each stage took."""
    data, cores = setting.data, setting.workers
    speakers, lengths = (20, (9.0, 16.0)) if setting.full else (2, (1.0, 4.0))
    seconds, (shards, audio_s) = timed(make_shard_set, data / "speech", speakers, 16, lengths, cores)
    report(audio_s=round(audio_s, 1), shards_s=seconds)
    seconds, _ = timed(make_shard_set, data / "noise", 1, 6, (2.0, 8.0), cores, seed=9)
    report(noise_s=seconds)
    settings: dict[str, Any] = {"clusters": setting.classes, "min_frames_per_cluster": 20, "validation_share": 0.0}
    seconds, book = timed(fit_codebook, [shards], data / "codebook", **settings, device="cpu", workers=cores)
    report(codebook_s=seconds, clusters=len(book))
    seconds, _ = timed(assign_labels, shards, data / "codebook", data / "labels", workers=cores)
    report(labels_s=seconds)
