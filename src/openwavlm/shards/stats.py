"""Statistics of a finished shard set, among them the quality of its shuffle: the share of mixable pairs with one speaker."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.runtime.randomness import permutation, words
from openwavlm.shards.corpora.files import counted
from openwavlm.shards.corpora.listing import Corpus
from openwavlm.shards.corpora.overlaps import find_overlaps
from openwavlm.shards.index import Index
from openwavlm.shards.splits import settled_share, split_names, validation_rows

_SUMMED = ("joined", "joined_clips", "short", "clipped_samples", "clipped_files")
_TRIED_SHARE = 0.1  # the default of fit_kmeans
# Sentence of each count of a possible fault of the corpus.
_FAULTS = {
    "out_of_phase_files": "{out_of_phase_files} files have channels that cancel each other: one channel is used",
    "hours_outside_segments": "{hours_outside_segments:.2f} hours of the listed files lie outside all segments and are not used",
    "overlapping_segments": "{overlapping_segments} segments overlap an earlier segment of their file ({overlapping_hours:.2f} hours are "
    "counted twice), {overlapping_speakers} of them a segment of another speaker",
    "repeated_audio": "{repeated_audio} clips repeat the audio of another clip sample for sample ({repeated_hours:.2f} hours are counted "
    "twice); {audio_of_several_speakers} clips are listed under several speakers",
    "changed_in_input": "{changed_in_input} utterances changed in the input after they were prepared; the shard set is not changed",
    "gone_from_input": "{gone_from_input} utterances are no longer in the input; the shard set keeps them",
}


def shard_set_stats(
    index: Index, done: Sequence[Mapping[str, Any]], unusable: Mapping[str, Mapping[str, Any]], *, source: str, seed: int
) -> dict[str, Any]:
    """Statistics of a shard set for `stats.json`, from its index, its tasks' done-files and its skipped utterances by name."""
    samples = int(index.num_samples.sum(dtype=np.int64))
    return {
        "source": source,
        "fingerprint": index.fingerprint,
        "utterances": len(index),
        "hours": round(samples / SAMPLE_RATE_HZ / 3600, 6),
        "speakers": len(index.speakers) - 1,
        "recordings": len(index.recordings) - 1,
        "shards": len(index.shards),
        "nbytes": sum(shard.nbytes for shard in index.shards),
        "skipped": len(unusable),
        "skipped_by_reason": dict(sorted(Counter(entry["reason"] for entry in unusable.values()).items())),
        **{name: sum(entry[name] for entry in done) for name in _SUMMED},
        # Tasks of older versions have no such list.
        "out_of_phase_files": len({path for entry in done for path in entry.get("out_of_phase", ())}),
        **repeated_audio(index),
        **partner_shares(index, seed=seed),
        "split": split_stats(index),
        "decoders": _decoders(done),
    }


def _decoders(done: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Versions of the decoders, each with its number of tasks."""
    tasks = Counter(json.dumps(entry.get("decoders", {}), sort_keys=True) for entry in done)
    return [{"tasks": number, "versions": json.loads(versions)} for versions, number in sorted(tasks.items())]


def corpus_stats(corpus: Corpus, done: Sequence[Mapping[str, Any]], unusable: AbstractSet[str]) -> dict[str, Any]:
    """Statistics of the input at the last run, in which every file is used, skipped (`unusable` utterances) or ignored.

    Returns:
        `files` = `files_used` (with at least one used utterance) + `files_skipped` + `files_ignored` (of other suffixes, by
        `ignored_by_suffix`); utterances `with_text`; `overlapping_…` utterances of a file; and `hours_outside_segments`, audio outside
        all segments of a file.
    """
    # Tasks of older versions have no such durations.
    seconds = {path: length_s for entry in done for path, length_s in entry.get("seconds_of_files", {}).items()}
    files = {os.path.normpath(utterance.path) for utterance in corpus.utterances}
    used = {os.path.normpath(utterance.path) for utterance in corpus.utterances if utterance.name not in unusable}
    ignored = sum(corpus.ignored.values())
    overlaps = find_overlaps(corpus.utterances, seconds.get)
    return {
        "files": len(files) + ignored,
        "files_used": len(used),
        "files_skipped": len(files) - len(used),
        "files_ignored": ignored,
        "ignored_by_suffix": dict(corpus.ignored),
        "with_text": sum(bool(utterance.text) for utterance in corpus.utterances),
        "overlapping_segments": overlaps.segments,
        "overlapping_speakers": overlaps.of_several_speakers,
        "overlapping_hours": round(overlaps.seconds / 3600, 6),
        "hours_outside_segments": round(overlaps.outside_seconds / 3600, 6),
    }


def sentences(stats: Mapping[str, Any]) -> list[str]:
    """Sentences for the terminal from `stats.json`: counts of files, then each positive count of a possible fault of the corpus."""
    kinds = f" ({counted(stats['ignored_by_suffix'])})" if stats["files_ignored"] else ""
    files = "{files} files: {files_used} used, {files_skipped} skipped, {files_ignored} ignored".format_map(stats)
    return [files + kinds, *(sentence.format_map(stats) for name, sentence in _FAULTS.items() if stats[name])]


def split_stats(index: Index, share: float = _TRIED_SHARE) -> dict[str, float | int]:
    """Result of a held-out share on this shard set alone.

    Returns:
        `validation_share`: the share; `speakers` and `recordings` (of unknown speakers) in the set; `held_out` of them, 0 where there
        are fewer than two; `held_out_seconds`: their audio.
    """
    names = split_names(index)
    speakers = int(np.count_nonzero(np.unique(index.speaker[:])))
    rows = np.zeros(len(index), dtype=bool)
    if len(names) > 1:
        settled = settled_share([index], share=share, split_seed=0, key="validation_share")
        rows = validation_rows(index, share=settled, split_seed=0)
    known = rows & (index.speaker[:] > 0)
    return {
        "validation_share": share,
        "speakers": speakers,
        "recordings": len(names) - speakers,
        "held_out": len(np.unique(index.speaker[known])) + len(np.unique(index.recording[rows & ~known])),
        "held_out_seconds": round(int(index.num_samples.sum(where=rows, dtype=np.int64)) / SAMPLE_RATE_HZ, 1),
    }


def split_sentence(stats: Mapping[str, Any]) -> str:
    """Sentence for the terminal from `split` of `stats.json`."""
    split = stats["split"]
    kinds = {"speaker": split["speakers"], "recording": split["recordings"]}
    names = " and ".join(f"{count} {kind}{'s' * (count != 1)}" for kind, count in kinds.items() if count)
    names += " of unknown speakers" if split["recordings"] else ""
    if not split["held_out"]:
        return f"the set has {names}, and a held-out share needs at least two: train on it alone with validation_share=0"
    return (
        f"validation_share={split['validation_share']:g} holds out {split['held_out']} of {names}, {split['held_out_seconds']:.1f} s of "
        f"{3600 * stats['hours']:.1f} s"
    )


def repeated_audio(index: Index) -> dict[str, Any]:
    """Counts rows, and clips in joined rows, with equal audio (every sample).

    Returns:
        `repeated_audio`: rows and clips with the audio of an earlier one; `repeated_hours`: their length;
        `audio_of_several_speakers`: audio that is listed under more than one known speaker.
    """
    members = index.members
    alone = np.ones(len(index), dtype=bool)
    alone[members["row"]] = False
    pcm = np.concatenate([index.pcm[alone], members["pcm"]])
    samples = np.concatenate([index.num_samples[alone], members["num_samples"]]).astype(np.int64)
    speaker = np.concatenate([index.speaker[alone], index.speaker[:][members["row"]]])
    order = np.argsort(pcm, kind="stable")
    again = np.zeros(len(pcm), dtype=bool)
    again[1:] = pcm[order][1:] == pcm[order][:-1]
    repeats = order[again]
    several = np.isin(pcm, pcm[repeats]) & (speaker > 0)
    pairs = np.unique(np.stack([pcm[several], speaker[several].astype(np.uint64)], axis=1), axis=0)
    return {
        "repeated_audio": len(repeats),
        "repeated_hours": round(int(samples[repeats].sum()) / SAMPLE_RATE_HZ / 3600, 6),
        "audio_of_several_speakers": int((np.unique(pairs[:, 0], return_counts=True)[1] > 1).sum()),
    }


def partner_shares(index: Index, *, seed: int = 0, block_shards: int = 20) -> dict[str, float | None]:
    """Expected share of random pairs in a block of shards, as the training plan makes them, with the same speaker or recording.

    Returns:
        `same_speaker_share` and `same_recording_share`, each in [0, 1], or None where no pair has known names.
    """
    order = permutation(words(seed, "stats.blocks", len(index.shards)))
    blocks = [order[start : start + block_shards] for start in range(0, len(order), block_shards)]
    return {f"same_{name}_share": _share(index, name, blocks) for name in ("speaker", "recording")}


def _share(index: Index, name: str, blocks: list[np.ndarray]) -> float | None:
    ids = getattr(index, name)
    same = pairs = 0
    for block in blocks:
        rows = np.concatenate([ids[index.first_row[shard] : index.first_row[shard + 1]] for shard in block])
        counts = np.unique(rows[rows > 0], return_counts=True)[1].astype(np.int64)
        same += int((counts * (counts - 1)).sum())
        pairs += int(counts.sum()) * (int(counts.sum()) - 1)
    return round(same / pairs, 6) if pairs else None
