"""The done-file of a shard, written beside its tar: everything that the index holds of its rows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.runtime.files import Fields
from openwavlm.runtime.sealed import read_newest, write_sealed
from openwavlm.shards.index import COLUMNS, FORMAT_VERSION, MEMBER, NAMES, ShardInfo, shard_identity, shard_metadata

_NUMBERS = ("offset", "nbytes", "num_samples", "key", "pcm")
_REMEDY = "delete it and run data_prep/make_shards.py again"


@dataclass(frozen=True)
class ShardDone:
    """A finished shard.

    Attributes:
        info: Its entry in `shards.json`.
        columns: The columns `offset`, `nbytes`, `num_samples`, `key` and `pcm`, (rows,) each.
        names: The texts of the columns `speaker`, `recording`, `source` and `language`, (rows,) each.
        keys: Key of every row.
        members: Clips of joined rows, dtype `MEMBER`, rows from 0.
    """

    info: ShardInfo
    columns: dict[str, np.ndarray]
    names: dict[str, list[str]]
    keys: list[str]
    members: np.ndarray


def write_done_file(tar: Path, name: str, nbytes: int, checksum: str, columns: Mapping[str, Sequence[Any]], members: Any) -> None:
    """Writes the done-file of a shard.

    Args:
        tar: The shard.
        name: Its path relative to the shard set.
        nbytes: Its size.
        checksum: Its SHA-256.
        columns: Lists by name, as `Row.append_to` fills them.
        members: `(row, offset, num_samples, key, pcm)` of every clip of a joined row.
    """
    identity = shard_identity(*(np.array(columns[column], np.uint64) for column in ("pcm", "key", "num_samples")))
    info = ShardInfo(name, len(columns["keys"]), nbytes, checksum, identity, shard_metadata(columns))
    content = {"format_version": FORMAT_VERSION, **asdict(info), "columns": dict(columns), "members": members}
    write_sealed(tar.with_suffix(".json"), content, indent=None)


def read_done_file(file: Path) -> ShardDone:
    """Reads the done-file of a shard and compares both identities with its columns.

    Raises:
        ValueError: If it is missing, damaged or of another format.
    """
    upgrade = f"openwavlm upgrade {file.parents[2]}"
    found = read_newest(file, newest=FORMAT_VERSION, what=str(file), upgrade=upgrade, remedy=_REMEDY)
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
