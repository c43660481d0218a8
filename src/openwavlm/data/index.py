"""The index of a shard set: one memory-mapped column a property, so that a row is found without opening a tar.

<shard set>/index/shard.npy … language.npy   one array a column, one entry a row, rows in shard order
                  members.npy                the clips inside joined rows
                  speakers.txt …             text tables: line `id` of the columns speaker, recording, source, language
                  keys.txt                   the key of every row
                  shards.json                format version, fingerprint, one entry a shard; the finished mark
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.data.atomic import atomic_file, sync_folder, write_json

FORMAT_VERSION = 1
COLUMNS: dict[str, type[np.unsignedinteger[Any]]] = {
    "shard": np.uint32,
    "offset": np.uint64,
    "nbytes": np.uint32,
    "num_samples": np.uint32,
    "key": np.uint64,
    "pcm": np.uint64,
    "speaker": np.uint32,
    "recording": np.uint32,
    "source": np.uint16,
    "language": np.uint16,
}
TABLES = ("speakers", "recordings", "sources", "languages")
MEMBER = np.dtype([("row", "<u4"), ("offset", "<u4"), ("num_samples", "<u4"), ("key", "<u8"), ("pcm", "<u8")])
_IDENTITY = np.dtype([("pcm", "<u8"), ("key", "<u8"), ("num_samples", "<u4")])


@dataclass(frozen=True)
class ShardInfo:
    """One tar of a shard set.

    Attributes:
        name: Path relative to the shard set.
        rows: Number of utterances.
        nbytes: Size of the tar.
        checksum: SHA-256 of the tar.
        identity: Hash over its rows in order: what labels are bound to.
    """

    name: str
    rows: int
    nbytes: int
    checksum: str
    identity: str


def shard_identity(pcm: np.ndarray, key: np.ndarray, num_samples: np.ndarray) -> str:
    """Hash over the rows of a shard in order: PCM, key and length, but no place and no time."""
    rows = np.empty(len(pcm), _IDENTITY)
    rows["pcm"], rows["key"], rows["num_samples"] = pcm, key, num_samples
    return hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest()


def index_fingerprint(identities: Iterable[str]) -> str:
    """Hash over the sorted identities of the shards."""
    return hashlib.blake2b("\n".join(sorted(identities)).encode(), digest_size=16).hexdigest()


class Index:
    """Read-only view of a shard set's index.

    Opening maps the columns and reads nothing else; a pickled index is its path. Columns are 1-d arrays with one entry a row
    (`COLUMNS` gives their types); ids of `speaker`, `recording`, `source` and `language` point into the text tables, 0 is unknown.

    Attributes:
        path: Folder of the shard set.
        fingerprint: Hash over the sorted shard identities.
        shards: The tars, in index order.
        first_row: int64 (shards + 1,): the rows of shard s are `first_row[s]:first_row[s + 1]`.
    """

    shard: np.ndarray
    offset: np.ndarray
    nbytes: np.ndarray
    num_samples: np.ndarray
    key: np.ndarray
    pcm: np.ndarray
    speaker: np.ndarray
    recording: np.ndarray
    source: np.ndarray
    language: np.ndarray

    def __init__(self, path: Path, shards: list[ShardInfo], columns: Mapping[str, np.ndarray]) -> None:
        self.path = path
        self.shards = shards
        self.fingerprint = index_fingerprint(shard.identity for shard in shards)
        self.first_row = np.concatenate([[0], np.cumsum([shard.rows for shard in shards])]).astype(np.int64)
        for name in COLUMNS:
            setattr(self, name, columns[name])

    @classmethod
    def open(cls, path: Path | str) -> "Index":
        """Opens the index of a shard set.

        Args:
            path: Folder that `make_shards` wrote.

        Raises:
            ValueError: If there is no finished index, it has a newer format, or it is damaged.
        """
        path = Path(path)
        mark = path / "index" / "shards.json"
        if not mark.is_file():
            raise ValueError(
                f"{path} has no finished index (index/shards.json): run data_prep/make_shards.py output={path} again"
            )
        again = f"delete {path / 'index'} and run data_prep/make_shards.py again"
        try:
            head = json.loads(mark.read_text())
            version = head["format_version"]
            if version > FORMAT_VERSION:
                raise ValueError(
                    f"the index of {path} has format {version}, but this version of OpenWavLM reads up to {FORMAT_VERSION}: "
                    "update OpenWavLM"
                )
            shards = [ShardInfo(**entry) for entry in head["shards"]]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"the index of {path} is damaged (shards.json): {again}") from error
        columns = {}
        for name, dtype in COLUMNS.items():
            try:
                # A plain view: indexing an np.memmap costs a microsecond more a row.
                columns[name] = np.load(mark.with_name(f"{name}.npy"), mmap_mode="r").view(np.ndarray)
            except (OSError, ValueError) as error:
                raise ValueError(f"the index of {path} is damaged ({name}.npy): {again}") from error
            if columns[name].dtype != dtype or columns[name].shape != (head["rows"],):
                raise ValueError(f"the index of {path} is damaged ({name}.npy does not hold {head['rows']} rows): {again}")
        index = cls(path, shards, columns)
        if index.first_row[-1] != head["rows"] or index.fingerprint != head["fingerprint"]:
            raise ValueError(f"the index of {path} is damaged (shards.json contradicts itself): {again}")
        return index

    def __len__(self) -> int:
        return int(self.first_row[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return Index.open, (self.path,)

    def _table(self, name: str) -> list[str]:
        return (self.path / "index" / f"{name}.txt").read_text(encoding="utf-8").split("\n")[:-1]

    @cached_property
    def speakers(self) -> list[str]:
        """Names `SOURCE/speaker` by id; read on first use."""
        return self._table("speakers")

    @cached_property
    def recordings(self) -> list[str]:
        """Names `SOURCE/recording` by id; read on first use."""
        return self._table("recordings")

    @cached_property
    def sources(self) -> list[str]:
        """Names of the sources by id."""
        return self._table("sources")

    @cached_property
    def languages(self) -> list[str]:
        """Language codes by id."""
        return self._table("languages")

    @cached_property
    def keys(self) -> list[str]:
        """Key of every row, as in the tars; read on first use. Empty for an index written without keys."""
        return self._table("keys")

    @cached_property
    def members(self) -> np.ndarray:
        """Clips inside joined rows, ascending by row; dtype `MEMBER`, offsets and lengths in samples."""
        return np.load(self.path / "index" / "members.npy")


def write_index(
    path: Path | str,
    *,
    columns: Mapping[str, np.ndarray],
    tables: Mapping[str, Sequence[str]],
    shards: Sequence[ShardInfo],
    keys: Sequence[str] = (),
    members: np.ndarray | None = None,
) -> Index:
    """Writes the index of a shard set from arrays, in place of an earlier one.

    Args:
        path: Folder of the shard set.
        columns: All of `COLUMNS`, each (rows,), rows in shard order.
        tables: All of `TABLES`; entry 0 must be the empty text.
        shards: The tars in order.
        keys: Key of every row; may be left out for synthetic indexes.
        members: Clips of joined rows, dtype `MEMBER`.

    Returns:
        The opened index.

    Raises:
        ValueError: If two rows have one key, the shards' rows do not match the columns, or the shards are not in order.
    """
    path = Path(path)
    _check_keys(columns["key"], keys)
    arrays = {name: np.ascontiguousarray(columns[name], dtype) for name, dtype in COLUMNS.items()}
    rows = np.array([shard.rows for shard in shards], np.int64)
    if not np.array_equal(arrays["shard"], np.repeat(np.arange(len(shards)), rows)):
        raise ValueError(f"the rows of an index lie in shard order, but those of {path} do not: sort them by shard")
    head = {
        "format_version": FORMAT_VERSION,
        "fingerprint": index_fingerprint(shard.identity for shard in shards),
        "rows": int(rows.sum()),
        "shards": [asdict(shard) for shard in shards],
    }
    final, building, old = path / "index", path / "index.tmp", path / "index.old"
    for leftover in (building, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for name, array in arrays.items():
        _save(building / f"{name}.npy", array)
    _save(building / "members.npy", np.zeros(0, MEMBER) if members is None else members)
    for name, lines in [*((name, tables[name]) for name in TABLES), ("keys", keys)]:
        with atomic_file(building / f"{name}.txt") as file:
            file.writelines(f"{line}\n".encode() for line in lines)
    write_json(building / "shards.json", head)
    # A training run that has mapped the old files keeps them: they are renamed and unlinked, never rewritten.
    if final.exists():
        final.rename(old)
    building.rename(final)
    sync_folder(path)
    shutil.rmtree(old, ignore_errors=True)
    return Index.open(path)


def _check_keys(key: np.ndarray, keys: Sequence[str]) -> None:
    order = np.argsort(key, kind="stable")
    same = np.flatnonzero(key[order[1:]] == key[order[:-1]])
    if len(same):
        rows = sorted(int(row) for row in order[same[0] : same[0] + 2])
        name = repr(keys[rows[0]]) if len(keys) else f"hash {int(key[rows[0]]):#x}"
        raise ValueError(
            f"every utterance needs a key of its own, but rows {rows[0]} and {rows[1]} share {name} ({len(same)} such pairs): "
            "the same utterance was prepared twice; remove one of them from the input and start with an empty output"
        )


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_file(path) as file:
        np.save(file, array)
