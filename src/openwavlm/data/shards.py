"""The shard task: decodes its recordings once, shuffles their utterances and writes them as webdataset tars with done-files.

    <shard set>/settings.json                  what may not change between runs
                tasks.jsonl                    which recordings each task holds
                shards/000/000007-000.tar       shard 0 of task 7: KEY.flac and KEY.json of every utterance
                shards/000/000007-000.json      its done-file: count, bytes, checksum, identity, index rows
                done/000/000007.json           the task is finished: its shards, and what was skipped
                index/                         see `index.py`

Everything is a function of the task's line, the settings and the audio: who runs a task, when and how often changes no byte.
"""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import webdataset

from openwavlm.data.atomic import atomic_file, write_json
from openwavlm.data.audio import AudioError, Decoded, check_clip, decode, decoders, probe_channels, probe_seconds
from openwavlm.data.corpora.utterance import Utterance
from openwavlm.data.index import FORMAT_VERSION, shard_identity
from openwavlm.data.rows import Row, make_row
from openwavlm.data.tasks import Item, TaskLine, read_task
from openwavlm.frames import SAMPLE_RATE_HZ
from openwavlm.randomness import stable_hash

_TAR_BLOCK = 512


@dataclass(frozen=True)
class ShardJob:
    """A task with all it needs.

    Attributes:
        output: The shard set.
        root: Folder that the audio paths are relative to.
        line: Which task of `tasks.jsonl`.
        source: Name of the corpus.
        seed: Seed of the shuffle.
        min_seconds: Length below which an utterance counts as short.
        max_hours: Longest recording that is decoded.
        utterances_per_shard: Most utterances in a shard.
        channels: What becomes of several channels: `mean`, `first`, or `split` (the task's utterances then name their channels).
    """

    output: Path
    root: Path
    line: TaskLine
    source: str
    seed: int
    min_seconds: float
    max_hours: float
    utterances_per_shard: int
    channels: str = "mean"


def task_file(output: Path, number: int) -> Path:
    """The done-file of a task."""
    return output / "done" / f"{number // 1000:03d}" / f"{number:06d}.json"


def run_task(job: ShardJob) -> dict[str, Any]:
    """Decodes, shuffles and writes one task.

    Returns:
        The content of the task's done-file.
    """
    # Clips that are joined are of one channel, so a group holds one channel of a long file in memory, not all.
    groups: dict[tuple[str, int | None], list[Item]] = defaultdict(list)
    task = read_task(job.output / "tasks.jsonl", job.line)
    for item in task.items:
        groups[item[0].path, item[0].channel].append(item)
    rows: list[Row] = []
    skipped: list[dict[str, Any]] = []
    clipped: dict[str, int] = {}
    out_of_phase: set[str] = set()
    for group in groups.values():
        rows += _make_rows(group, job, skipped, clipped, out_of_phase)
    rows.sort(key=lambda row: (stable_hash(f"{job.seed}/shuffle/{row.key}"), row.key))
    number_of_shards = -(-len(rows) // job.utterances_per_shard)
    borders = [len(rows) * part // number_of_shards for part in range(number_of_shards + 1)] if rows else [0]
    tars = [_write_shard(job, part, rows[start:end]) for part, (start, end) in enumerate(pairwise(borders))]
    _remove_other_parts(job, len(tars))
    lengths = [row.fields["num_samples"] for row in rows]
    result = {
        "format_version": FORMAT_VERSION,
        "task": job.line.number,
        "shards": dict(tars),
        "planned": sum(len(item) for item in task.items),
        "utterances": len(rows),
        "samples": sum(lengths),
        "joined": sum(bool(row.members) for row in rows),
        "joined_clips": sum(len(row.members) for row in rows),
        "short": sum(length < job.min_seconds * SAMPLE_RATE_HZ for length in lengths),
        "clipped_samples": sum(clipped.values()),
        "clipped_files": len(clipped),
        "out_of_phase": sorted(out_of_phase),
        "decoders": decoders(),
        "skipped": skipped,
        "again": task.again,
    }
    write_json(task_file(job.output, job.line.number), result)
    return result


def file_stamp(path: Path) -> list[int] | None:
    """Size and time of change, by which a repaired file is recognised; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _make_rows(
    group: list[Item], job: ShardJob, skipped: list[dict[str, Any]], clipped: dict[str, int], out_of_phase: set[str]
) -> list[Row]:
    """Decodes some items and encodes what is good of them; the decoded audio is released at the end."""
    clips = _decode_group(group, job, skipped, clipped, out_of_phase)
    rows = []
    for item in group:
        good = [clips[utterance.name] for utterance in item if utterance.name in clips]
        if good:
            rows.append(make_row(good, job.source))
    return rows


def _decode_group(
    group: list[Item], job: ShardJob, skipped: list[dict[str, Any]], clipped: dict[str, int], out_of_phase: set[str]
) -> dict[str, tuple[Utterance, np.ndarray]]:
    """Decodes the audio files of some items, once for each channel that is asked for.

    Returns:
        Utterances, with the channel that was taken, and their clips by utterance name; what is bad is appended to `skipped`,
        clipped samples by file are added to `clipped`, files with channels that cancel each other to `out_of_phase`.
    """
    by_channel: dict[tuple[str, int | None], list[Utterance]] = defaultdict(list)
    for item in group:
        for utterance in item:
            by_channel[utterance.path, utterance.channel].append(utterance)
    clips: dict[str, tuple[Utterance, np.ndarray]] = {}
    for (name, channel), utterances in by_channel.items():
        path = job.root / name
        audio, start_s, utterances = _decode_all(utterances, path, channel, job, skipped)
        if audio is None:
            continue
        if audio.num_clipped:
            clipped[name] = clipped.get(name, 0) + audio.num_clipped
        if audio.out_of_phase:
            out_of_phase.add(name)
        for utterance in utterances:
            try:
                clip = _cut(audio.samples, utterance, start_s)
                check_clip(clip)
            except AudioError as error:
                skipped.append(_skip(utterance, path, error))
            else:
                clips[utterance.name] = (replace(utterance, channel=audio.channel), clip)
    return clips


def _cut(samples: np.ndarray, utterance: Utterance, start_s: float) -> np.ndarray:
    """Cuts an utterance out of audio that begins at `start_s` and ends with the recording or later than the utterance."""
    first = round((utterance.start_s - start_s) * SAMPLE_RATE_HZ)
    last = None if utterance.end_s is None else round((utterance.end_s - start_s) * SAMPLE_RATE_HZ)
    if first > len(samples) or (last is not None and last > len(samples) + SAMPLE_RATE_HZ // 2):
        raise _beyond(utterance, start_s + len(samples) / SAMPLE_RATE_HZ)
    return samples[first:last]


def _decode_all(
    utterances: list[Utterance], path: Path, channel: int | None, job: ShardJob, skipped: list[dict[str, Any]]
) -> tuple[Decoded | None, float, list[Utterance]]:
    """Decodes the range of a file that holds some utterances; those beyond its end do not take the others with them.

    Returns:
        The audio, or None if there is none; the second at which it begins; the utterances that it holds.
    """
    start_s = min(utterance.start_s for utterance in utterances)
    try:
        return _decode(path, start_s, _latest(utterances), channel, job), start_s, utterances
    except AudioError as error:
        length_s = probe_seconds(path) if error.reason == "out-of-range" and len(utterances) > 1 else None
        if length_s is None:
            skipped += [_skip(utterance, path, error) for utterance in utterances]
            return None, start_s, []
    inside = [utterance for utterance in utterances if _is_within(utterance, length_s)]
    inside = inside if len(inside) < len(utterances) else []
    skipped += [_skip(utterance, path, _beyond(utterance, length_s)) for utterance in utterances if utterance not in inside]
    return _decode_all(inside, path, channel, job, skipped) if inside else (None, start_s, [])


def _beyond(utterance: Utterance, length_s: float) -> AudioError:
    end = "the end" if utterance.end_s is None else f"{utterance.end_s:g} s"
    return AudioError("out-of-range", f"segment {utterance.start_s:g} s to {end} of a recording of {length_s:.3f} s")


def _is_within(utterance: Utterance, length_s: float) -> bool:
    return utterance.start_s < length_s and (utterance.end_s or 0.0) <= length_s


def _decode(path: Path, start_s: float, end_s: float | None, channel: int | None, job: ShardJob) -> Decoded:
    if channel is None and job.channels == "first":
        channel = 0
    audio = decode(path, start_s=start_s, end_s=end_s, max_hours=job.max_hours, channel=channel)
    if channel is None and job.channels == "split" and (number := probe_channels(path)) != 1:
        raise AudioError("no-such-channel", f"planned as one channel, but the file has {number or 'an unknown number of them'}")
    return audio


def _remove_other_parts(job: ShardJob, parts: int) -> None:
    """Removes what an earlier attempt at the task wrote beyond its present number of shards; the index would take it up."""
    number = job.line.number
    folder = job.output / "shards" / f"{number // 1000:03d}"
    for mark in sorted(folder.glob(f"{number:06d}-*.json")) + sorted(folder.glob(f"{number:06d}-*.tar")):
        part = mark.stem.removeprefix(f"{number:06d}-")
        if part.isdecimal() and int(part) >= parts:
            mark.unlink()


def _latest(utterances: list[Utterance]) -> float | None:
    ends = [utterance.end_s for utterance in utterances]
    known = [end for end in ends if end is not None]
    return max(known) if len(known) == len(ends) else None


def _skip(utterance: Utterance, path: Path, error: AudioError) -> dict[str, Any]:
    return {
        "name": utterance.name,
        "path": utterance.path,
        "reason": error.reason,
        "detail": error.detail,
        "stamp": file_stamp(path),
    }


class _HashingFile:
    """Passes writes on and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _write_shard(job: ShardJob, part: int, rows: list[Row]) -> tuple[str, int]:
    """Writes one tar and its done-file; returns its name and size."""
    number = job.line.number
    name = f"shards/{number // 1000:03d}/{number:06d}-{part:03d}.tar"
    path = job.output / name
    columns: dict[str, list[Any]] = defaultdict(list)
    with atomic_file(path) as file:
        hashing = _HashingFile(file)
        # An integer time keeps tarfile from adding a PAX header to every member, and makes equal input give equal bytes.
        with webdataset.TarWriter(hashing, encoder=False, mtime=0) as tar:
            for row in rows:
                offset = tar.tarstream.offset + _TAR_BLOCK
                text = json.dumps(row.fields, ensure_ascii=False, sort_keys=True).encode("utf-8", "backslashreplace")
                tar.write({"__key__": row.key, "flac": row.flac, "json": text})
                blocks = [-(-len(member) // _TAR_BLOCK) for member in (row.flac, text)]
                assert tar.tarstream.offset == offset + _TAR_BLOCK * (sum(blocks) + 1)
                row.append_to(columns, offset)
        nbytes = file.tell()
    identity = shard_identity(*(np.array(columns[column], np.uint64) for column in ("pcm", "key", "num_samples")))
    done = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "rows": len(rows),
        "nbytes": nbytes,
        "checksum": hashing.digest.hexdigest(),
        "identity": identity,
        "columns": columns,
        "members": [(number, *member) for number, row in enumerate(rows) for member in row.members],
    }
    write_json(path.with_suffix(".json"), done, indent=None)
    return name, nbytes
