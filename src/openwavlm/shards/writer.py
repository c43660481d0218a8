"""The shard task: decodes its recordings once, shuffles their utterances and writes them as webdataset tars with done-files.

    <shard set>/settings.json                  what may not change between runs
                tasks.jsonl                    which recordings each task holds
                shards/000/000007-000.tar       shard 0 of task 7: KEY.flac and KEY.json of every utterance
                shards/000/000007-000.json      its done-file: count, bytes, checksum, identities, index rows
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
from tempfile import SpooledTemporaryFile
from typing import IO, Any, BinaryIO

import webdataset

from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.audio.read import decoders
from openwavlm.runtime.atomic import atomic_file
from openwavlm.runtime.randomness import stable_hash
from openwavlm.runtime.sealed import write_sealed
from openwavlm.shards.decoding_tasks import TaskDecoder
from openwavlm.shards.index import FORMAT_VERSION
from openwavlm.shards.rows import Row, make_row
from openwavlm.shards.shard_done import write_done_file
from openwavlm.shards.tasks import Item, TaskLine, read_task

_TAR_BLOCK = 512
# Of the FLAC of a task, 4 h of which are some 250 MB; what is beyond lies in a nameless file of the output.
_MOST_BYTES_IN_MEMORY = 1 << 28


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
    rows: list[_StoredRow] = []
    decoder = TaskDecoder(job.root, job.channels, job.max_hours)
    with SpooledTemporaryFile(dir=str(job.output)) as payloads:
        for group in groups.values():
            try:
                rows += [_store(make_row(clips, job.source), payloads) for clips in decoder.decode_items(group)]
            except OSError as error:
                if error.filename is None:  # a full disk
                    raise OSError(error.errno, error.strerror, str(job.output / "shards")) from error
                raise
        rows.sort(key=lambda stored: (stable_hash(f"{job.seed}/shuffle/{stored.row.key}"), stored.row.key))
        number_of_shards = -(-len(rows) // job.utterances_per_shard)
        borders = [len(rows) * part // number_of_shards for part in range(number_of_shards + 1)] if rows else [0]
        tars = [_write_shard(job, part, rows[start:end], payloads) for part, (start, end) in enumerate(pairwise(borders))]
    _remove_other_parts(job, len(tars))
    lengths = [stored.row.fields["num_samples"] for stored in rows]
    result = {
        "format_version": FORMAT_VERSION,
        "task": job.line.number,
        "shards": dict(tars),
        "planned": sum(len(item) for item in task.items),
        "utterances": len(rows),
        "samples": sum(lengths),
        "joined": sum(bool(stored.row.members) for stored in rows),
        "joined_clips": sum(len(stored.row.members) for stored in rows),
        "short": sum(length < job.min_seconds * SAMPLE_RATE_HZ for length in lengths),
        "clipped_samples": sum(decoder.clipped.values()),
        "clipped_files": len(decoder.clipped),
        "out_of_phase": sorted(decoder.out_of_phase),
        "seconds_of_files": dict(sorted(decoder.seconds.items())),
        "decoders": decoders(),
        "skipped": decoder.skipped,
        "again": task.again,
    }
    write_sealed(task_file(job.output, job.line.number), result)
    return result


def _remove_other_parts(job: ShardJob, parts: int) -> None:
    """Removes what an earlier attempt at the task wrote beyond its present number of shards; the index would take it up."""
    number = job.line.number
    folder = job.output / "shards" / f"{number // 1000:03d}"
    for mark in sorted(folder.glob(f"{number:06d}-*.json")) + sorted(folder.glob(f"{number:06d}-*.tar")):
        part = mark.stem.removeprefix(f"{number:06d}-")
        if part.isdecimal() and int(part) >= parts:
            mark.unlink()


@dataclass
class _StoredRow:
    """A row while its FLAC lies in the file of payloads, so that a task of many hours needs little memory."""

    row: Row
    start: int
    nbytes: int

    def load(self, payloads: IO[bytes]) -> Row:
        """The row with its FLAC."""
        payloads.seek(self.start)
        return replace(self.row, flac=payloads.read(self.nbytes))


def _store(row: Row, payloads: SpooledTemporaryFile[bytes]) -> _StoredRow:
    start = payloads.tell()
    if start + len(row.flac) > _MOST_BYTES_IN_MEMORY:
        payloads.rollover()  # before the write: a row of hours would be in memory twice
    payloads.write(row.flac)
    return _StoredRow(replace(row, flac=b""), start, len(row.flac))


class _HashingFile:
    """Passes writes on and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _write_shard(job: ShardJob, part: int, rows: list[_StoredRow], payloads: IO[bytes]) -> tuple[str, int]:
    """Writes one tar and its done-file; returns its name and size."""
    number = job.line.number
    name = f"shards/{number // 1000:03d}/{number:06d}-{part:03d}.tar"
    path = job.output / name
    columns: dict[str, list[Any]] = defaultdict(list)
    with atomic_file(path) as file:
        hashing = _HashingFile(file)
        # An integer time keeps tarfile from adding a PAX header to every member, and makes equal input give equal bytes.
        with webdataset.TarWriter(hashing, encoder=False, mtime=0) as tar:
            for stored in rows:
                row = stored.load(payloads)
                offset = tar.tarstream.offset + _TAR_BLOCK
                text = json.dumps(row.fields, ensure_ascii=False, sort_keys=True).encode("utf-8", "backslashreplace")
                tar.write({"__key__": row.key, "flac": row.flac, "json": text})
                blocks = [-(-len(member) // _TAR_BLOCK) for member in (row.flac, text)]
                assert tar.tarstream.offset == offset + _TAR_BLOCK * (sum(blocks) + 1)
                row.append_to(columns, offset)
        nbytes = file.tell()
    members = [(number, *member) for number, stored in enumerate(rows) for member in stored.row.members]
    write_done_file(path, name, nbytes, hashing.digest.hexdigest(), columns, members)
    return name, nbytes
