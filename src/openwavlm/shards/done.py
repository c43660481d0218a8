"""Done-files: one per task (finished shards, skipped utterances) and one per shard (everything that the index holds of its rows)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.runtime.atomic import atomic_file
from openwavlm.runtime.files import Fields
from openwavlm.runtime.sealed import write_sealed
from openwavlm.shards.index import COLUMNS, FORMAT_VERSION, MEMBER, NAMES, ShardInfo, read_record, shard_identity, shard_metadata
from openwavlm.shards.tasks import TaskLine

_NUMBERS = ("offset", "nbytes", "num_samples", "key", "pcm")
_REMEDY = "delete it and run openwavlm make-shards again"
_COUNTS = ("planned", "utterances", "samples", "joined", "joined_clips", "short", "clipped_samples", "clipped_files")
log = logging.getLogger(__name__)


def task_file(output: Path, number: int) -> Path:
    """Path of the done-file of a task."""
    return output / "done" / f"{number // 1000:03d}" / f"{number:06d}.json"


def task_done(output: Path, number: int) -> dict[str, Any] | None:
    """Content of the done-file of a task; None if the task is not finished or the file is damaged, so that the task is done again."""
    file = task_file(output, number)
    if not file.is_file():
        return None
    try:
        found = read_record(file, output, remedy="the task is done again")
        check_task_done(found)
    except ValueError as error:
        log.warning("%s", error)
        return None
    return found.values


def check_task_done(found: Fields) -> None:
    """Checks types and ranges of the fields of a task's done-file; a ValueError names file and field."""
    shards = Fields(found.mapping("shards"), f"{found.where}, shards", found.remedy)
    for name in shards.values:
        shards.integer(name)
    found.texts("again")
    for entry in found.objects("skipped"):
        for name in ("name", "path", "reason", "detail"):
            entry.text(name)
    for name in _COUNTS:
        if name in found.values:
            found.integer(name)


def is_done(output: Path, number: int) -> bool:
    """True if a task's done-file and shards exist and have their size."""
    done = task_done(output, number)
    if done is None:
        return False
    for name, nbytes in done["shards"].items():
        tar = output / name
        if not tar.with_suffix(".json").is_file() or not tar.is_file() or tar.stat().st_size != nbytes:
            return False
    return True


def skipped(output: Path, lines: Sequence[TaskLine]) -> dict[str, dict[str, Any]]:
    """Unusable utterances by name; a later task with the repaired file overrides an earlier one."""
    unusable: dict[str, dict[str, Any]] = {}
    for line in lines:
        if (done := task_done(output, line.number)) is not None:
            for name in done["again"]:
                unusable.pop(name, None)
            unusable |= {entry["name"]: entry for entry in done["skipped"]}
    return unusable


def write_skipped(output: Path, unusable: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `skipped.tsv`: path, name, reason and detail of every unusable utterance."""
    with atomic_file(output / "skipped.tsv") as file:
        file.write(b"path\tname\treason\tdetail\n")
        for entry in sorted(unusable.values(), key=lambda entry: entry["name"]):
            cells = (" ".join(entry[name].split()) for name in ("path", "name", "reason", "detail"))
            file.write(("\t".join(cells) + "\n").encode("utf-8", "backslashreplace"))


def refuse_many_skipped(output: Path, unusable: Mapping[str, Mapping[str, Any]], total: int, max_skip_rate: float) -> None:
    """Raises a ValueError if more than `max_skip_rate` of `total` utterances are unusable."""
    if len(unusable) <= max_skip_rate * total:
        return
    entries = sorted(unusable.values(), key=lambda entry: entry["name"])[:3]
    first = "; ".join(f"{entry['path']}: {entry['reason']}, {entry['detail']}" for entry in entries)
    raise ValueError(
        f"{len(unusable)} of {total} utterances cannot be used ({len(unusable) / total:.2%}), more than "
        f"max_skip_rate={max_skip_rate:g} allows (first: {first}): repair or remove the files that {output / 'skipped.tsv'} lists "
        "and run again, or raise max_skip_rate"
    )


@dataclass(frozen=True)
class ShardDone:
    """Content of the done-file of a shard: columns of numbers and of names, (rows,) each, and `members` (dtype `MEMBER`, rows from 0)."""

    info: ShardInfo
    columns: dict[str, np.ndarray]
    names: dict[str, list[str]]
    keys: list[str]
    members: np.ndarray


def write_done_file(tar: Path, name: str, nbytes: int, checksum: str, columns: Mapping[str, Sequence[Any]], members: Any) -> None:
    """Writes the done-file of the shard `tar`, with the path `name` in its set.

    `columns` are lists by name, as `Row.append_to` fills them, `members` are as `MEMBER`.
    """
    identity = shard_identity(*(np.array(columns[column], np.uint64) for column in ("pcm", "key", "num_samples")))
    info = ShardInfo(name, len(columns["keys"]), nbytes, checksum, identity, shard_metadata(columns))
    content = {"format_version": FORMAT_VERSION, **asdict(info), "columns": dict(columns), "members": members}
    write_sealed(tar.with_suffix(".json"), content, indent=None)


def read_done_file(file: Path) -> ShardDone:
    """Reads the done-file of a shard and checks it against itself; a ValueError if it is missing, damaged or of another format."""
    found = read_record(file, file.parents[2], remedy=_REMEDY)
    info = ShardInfo.of(found)
    columns = Fields(found.mapping("columns"), f"{file}, columns", _REMEDY)
    numbers = {name: columns.integers(name, COLUMNS[name], info.rows) for name in _NUMBERS}
    names = {name: columns.texts(name, info.rows) for name in NAMES}
    done = ShardDone(info, numbers, names, columns.texts("keys", info.rows), _members(found, info.rows))
    identity = shard_identity(*(numbers[name] for name in ("pcm", "key", "num_samples")))
    if (identity, shard_metadata(names)) != (info.identity, info.metadata):
        raise ValueError(f"{file} is damaged (it contradicts itself): {_REMEDY}")
    own = file.with_suffix(".tar").relative_to(file.parents[2]).as_posix()
    if info.name != own:
        raise ValueError(f"{file} must describe {own}, but describes {info.name}: {_REMEDY}")
    _check_ranges(file, done)
    return done


def _check_ranges(file: Path, done: ShardDone) -> None:
    """Checks that each row's payload lies in its tar and each clip in its row."""
    columns, members = done.columns, done.members
    samples = columns["num_samples"]
    # Exact in float64: a tar has less than 2**53 bytes.
    wrong = {
        "payload outside of the tar": columns["offset"].astype(np.float64) + columns["nbytes"] > done.info.nbytes,
        "payload of no bytes": columns["nbytes"] == 0,
        "length of no samples": samples == 0,
        "clip outside of it": np.isin(
            np.arange(done.info.rows),
            members["row"][members["offset"].astype(np.int64) + members["num_samples"] > samples[members["row"]]],
        ),
    }
    for what, rows in wrong.items():
        if rows.any():
            raise ValueError(f"{file} is damaged (row {int(np.argmax(rows))} has a {what}): {_REMEDY}")
    if (np.diff(members["row"].astype(np.int64)) < 0).any():
        raise ValueError(f"{file} is damaged (its clips do not lie in row order): {_REMEDY}")


def _members(found: Fields, rows: int) -> np.ndarray:
    entries = found.lists("members")
    bounds = [rows, *(2 ** (8 * MEMBER[name].itemsize) for name in (MEMBER.names or ())[1:])]
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != len(bounds):
            raise found.refusal("members", f"lists of {len(bounds)} whole numbers", entry)
        if not all(type(value) is int and 0 <= value < bound for value, bound in zip(entry, bounds, strict=True)):
            raise found.refusal("members", f"lists of whole numbers below {bounds}", entry)
    return np.array([tuple(entry) for entry in entries], MEMBER)
