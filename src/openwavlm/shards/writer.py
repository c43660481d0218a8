"""Runs a task: decodes its recordings once, shuffles their utterances and writes them as webdataset tars with done-files.

Every byte is a function of the task's line, the settings and the audio (formats: docs/data.md).
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, BinaryIO

import numpy as np
import webdataset

from openwavlm.audio.containers.flac import flac_md5
from openwavlm.audio.encode import encode_flac, pcm_id, pcm_md5
from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.audio.read import decoders
from openwavlm.runtime.atomic import atomic_file
from openwavlm.runtime.randomness import stable_hash
from openwavlm.runtime.sealed import write_sealed
from openwavlm.shards.corpora.utterance import Utterance, utterance_key
from openwavlm.shards.decoding_tasks import TaskDecoder
from openwavlm.shards.done import task_file, write_done_file
from openwavlm.shards.index import FORMAT_VERSION
from openwavlm.shards.tasks import JOIN_SILENCE_S, Item, TaskLine, read_task

_TAR_BLOCK = 512
_JOIN_SILENCE = np.zeros(int(JOIN_SILENCE_S * SAMPLE_RATE_HZ), np.int16)
_FIELDS = ("num_samples", "speaker", "recording", "text", "language", "source", "start_s", "end_s", "members")
# Of the FLAC of a task (some 250 MB for 4 h); more is written to an unnamed file in the output folder.
_MOST_BYTES_IN_MEMORY = 1 << 28


@dataclass
class Row:
    """One row of a shard; `members` are (offset, samples, key hash, audio identity) of joined clips."""

    key: str
    flac: bytes
    fields: dict[str, Any]
    members: list[tuple[int, int, int, int]] = field(default_factory=list)
    stored: tuple[int, int] = (0, 0)

    def store(self, payloads: SpooledTemporaryFile[bytes]) -> None:
        """Moves the FLAC to a file, so that a task of many hours needs little memory; `stored` is its place there."""
        self.stored = payloads.tell(), len(self.flac)
        if sum(self.stored) > _MOST_BYTES_IN_MEMORY:
            payloads.rollover()  # Before the write, since a row of hours would be in memory twice.
        payloads.write(self.flac)
        self.flac = b""

    def append_to(self, columns: dict[str, list[Any]], offset: int, flac: bytes) -> None:
        """Appends the row to the columns of a done-file: its FLAC begins at byte `offset` of the tar, its names become `SOURCE/name`."""
        source = self.fields["source"]
        names = {name: f"{source}/{self.fields[name]}" if self.fields[name] else "" for name in ("speaker", "recording")}
        values = {
            "offset": offset,
            "nbytes": len(flac),
            "num_samples": self.fields["num_samples"],
            "key": stable_hash(self.key),
            "pcm": pcm_id(flac_md5(flac)),
            "keys": self.key,
            **names,
            "source": source,
            "language": self.fields["language"],
        }
        for name, value in values.items():
            columns[name].append(value)


def make_row(good: list[tuple[Utterance, np.ndarray]], source: str) -> Row:
    """Makes a row of one clip, or of several clips with silence between them."""
    first, samples = good[0]
    members: list[dict[str, Any]] = []
    name = first.name
    if len(good) > 1:
        pieces, offset = [], 0
        for utterance, clip in good:
            member = {
                "key": utterance_key(source, utterance.name),
                "offset": offset,
                "num_samples": len(clip),
                "pcm": pcm_id(pcm_md5(clip)),
                **_segment(utterance, clip),
                **{name: getattr(utterance, name) for name in ("recording", "text", "language")},
            }
            members.append(_extra(utterance, member.keys()) | member)
            pieces += [clip, _JOIN_SILENCE]
            offset += len(clip) + len(_JOIN_SILENCE)
        samples = np.concatenate(pieces[:-1])
        name = first.name + "+" + hashlib.blake2b("\n".join(u.name for u, _ in good).encode(), digest_size=8).hexdigest()
    same_recording = all(utterance.recording == first.recording for utterance, _ in good)
    languages = {utterance.language for utterance, _ in good}
    fields = _extra(first, _FIELDS) if len(good) == 1 else {}
    fields |= {
        "num_samples": len(samples),
        "speaker": first.speaker,
        "recording": first.recording if same_recording else "",
        "text": " ".join(utterance.text for utterance, _ in good if utterance.text),
        "language": languages.pop() if len(languages) == 1 else "",
        "source": source,
        **(_segment(first, samples) if len(good) == 1 else {"start_s": None, "end_s": None, "members": members}),
    }
    flat = [(member["offset"], member["num_samples"], stable_hash(member["key"]), member["pcm"]) for member in members]
    return Row(utterance_key(source, name), encode_flac(samples), fields, flat)


def _extra(utterance: Utterance, taken: Iterable[str]) -> dict[str, Any]:
    """Channel and additional fields of an utterance; names that are taken get a prefix."""
    fields: dict[str, Any] = {} if utterance.channel is None else {"channel": utterance.channel}
    taken = {*taken, *fields}
    for name, value in utterance.extra.items():
        free = name
        while free in taken or (free != name and free in utterance.extra):
            free = f"manifest_{free}"
        fields[free] = value
    return fields


def _segment(utterance: Utterance, clip: np.ndarray) -> dict[str, float]:
    return {"start_s": utterance.start_s, "end_s": round(utterance.start_s + len(clip) / SAMPLE_RATE_HZ, 6)}


def run_task(output: Path, root: Path, settings: Mapping[str, Any], line: TaskLine) -> dict[str, Any]:
    """Decodes the files of one task below `root`, shuffles and writes it; returns the content of its done-file."""
    # Joined clips have one channel, so a group holds one channel of a long file in memory.
    groups: dict[tuple[str, int | None], list[Item]] = defaultdict(list)
    task = read_task(output / "tasks.jsonl", line)
    for item in task.items:
        groups[item[0].path, item[0].channel].append(item)
    rows: list[Row] = []
    decoder = TaskDecoder(root, settings["channels"], settings["max_hours"])
    with SpooledTemporaryFile(dir=str(output)) as payloads:
        for group in groups.values():
            try:
                for clips in decoder.decode_items(group):
                    rows.append(make_row(clips, settings["source"]))
                    rows[-1].store(payloads)
            except OSError as error:
                if error.filename is None:  # a full disk
                    raise OSError(error.errno, error.strerror, str(output / "shards")) from error
                raise
        rows.sort(key=lambda row: (stable_hash(f"{settings['seed']}/shuffle/{row.key}"), row.key))
        number_of_shards = -(-len(rows) // settings["utterances_per_shard"])
        borders = [len(rows) * part // number_of_shards for part in range(number_of_shards + 1)] if rows else [0]
        name = f"shards/{line.number // 1000:03d}/{line.number:06d}"
        tars = [
            _write_shard(output, f"{name}-{part:03d}.tar", rows[start:end], payloads)
            for part, (start, end) in enumerate(pairwise(borders))
        ]
    _remove_other_parts(output / name, len(tars))
    lengths = [row.fields["num_samples"] for row in rows]
    result = {
        "format_version": FORMAT_VERSION,
        "task": line.number,
        "shards": dict(tars),
        "planned": sum(len(item) for item in task.items),
        "utterances": len(rows),
        "samples": sum(lengths),
        "joined": sum(bool(row.members) for row in rows),
        "joined_clips": sum(len(row.members) for row in rows),
        "short": sum(length < settings["min_seconds"] * SAMPLE_RATE_HZ for length in lengths),
        "clipped_samples": sum(decoder.clipped.values()),
        "clipped_files": len(decoder.clipped),
        "out_of_phase": sorted(decoder.out_of_phase),
        "seconds_of_files": dict(sorted(decoder.seconds.items())),
        "decoders": decoders(),
        "skipped": decoder.skipped,
        "again": task.again,
    }
    write_sealed(task_file(output, line.number), result)
    return result


def _remove_other_parts(task: Path, parts: int) -> None:
    """Removes shards `task`-PART of an earlier attempt beyond the present number; they would enter the index."""
    for suffix in ("json", "tar"):
        for file in task.parent.glob(f"{task.name}-*.{suffix}"):
            part = file.stem.removeprefix(f"{task.name}-")
            if part.isdecimal() and int(part) >= parts:
                file.unlink()


class _HashingFile:
    """Hashes the bytes that it writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _write_shard(output: Path, name: str, rows: list[Row], payloads: IO[bytes]) -> tuple[str, int]:
    """Writes one tar and its done-file; returns its name and size."""
    path = output / name
    columns: dict[str, list[Any]] = defaultdict(list)
    with atomic_file(path) as file:
        hashing = _HashingFile(file)
        # An integer time avoids a PAX header for every member and gives equal bytes for equal input.
        with webdataset.TarWriter(hashing, encoder=False, mtime=0) as tar:
            for row in rows:
                payloads.seek(row.stored[0])
                flac = payloads.read(row.stored[1])
                offset = tar.tarstream.offset + _TAR_BLOCK
                text = json.dumps(row.fields, ensure_ascii=False, sort_keys=True).encode("utf-8", "backslashreplace")
                tar.write({"__key__": row.key, "flac": flac, "json": text})
                blocks = [-(-len(member) // _TAR_BLOCK) for member in (flac, text)]
                assert tar.tarstream.offset == offset + _TAR_BLOCK * (sum(blocks) + 1)
                row.append_to(columns, offset, flac)
        nbytes = file.tell()
    members = [(number, *member) for number, row in enumerate(rows) for member in row.members]
    write_done_file(path, name, nbytes, hashing.digest.hexdigest(), columns, members)
    return name, nbytes
