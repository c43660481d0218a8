"""Builds the index of a shard set from the done-files beside its tars, in place of an earlier index."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.runtime.atomic import atomic_file, sha256_of, sync_folder
from openwavlm.runtime.sealed import write_sealed
from openwavlm.shards.done import read_done_file
from openwavlm.shards.index import (
    COLUMNS,
    FILES,
    FORMAT_VERSION,
    MEMBER,
    NAMES,
    TABLES,
    Index,
    ShardInfo,
    index_fingerprint,
    index_metadata,
    shard_metadata,
)


def build_index(path: Path | str) -> Index:
    """Writes the index of a shard set from its done-files; raises as `index_content` and `write_index`."""
    return write_index(path, **index_content(Path(path)))


def index_content(path: Path) -> dict[str, Any]:
    """Collects the arguments of `write_index` from the done-files of a shard set.

    Raises:
        ValueError: If there is no finished shard, or a done-file is damaged, of another format or of a tar of another size.
    """
    files = sorted((path / "shards").glob("*/*.json"))
    if not files:
        raise ValueError(f"{path} has no finished shard: run openwavlm make-shards with this output first")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    ids: dict[str, dict[str, int]] = {name: {"": 0} for name in TABLES}
    shards: list[ShardInfo] = []
    keys: list[str] = []
    members: list[np.ndarray] = []
    for number, file in enumerate(files):
        done = read_done_file(file)
        tar = file.with_suffix(".tar")
        if tar.is_file() and tar.stat().st_size != done.info.nbytes:
            raise ValueError(
                f"{file} must describe {tar.name}, which has {tar.stat().st_size} bytes, but describes a tar of {done.info.nbytes}: delete "
                "both and run openwavlm make-shards again"
            )
        shards.append(done.info)
        for name, table in NAMES.items():
            known = ids[table]
            parts[name].append(np.array([known.setdefault(text, len(known)) for text in done.names[name]], COLUMNS[name]))
        for name, column in done.columns.items():
            parts[name].append(column)
        parts["shard"].append(np.full(done.info.rows, number, np.uint32))
        joined = done.members.copy()
        joined["row"] += len(keys)
        keys.extend(done.keys)
        members.append(joined)
    return {
        "columns": {name: np.concatenate(arrays) for name, arrays in parts.items()},
        "tables": {name: list(known) for name, known in ids.items()},
        "shards": shards,
        "keys": keys,
        "members": np.concatenate(members, dtype=MEMBER),
    }


def write_index(
    path: Path | str,
    *,
    columns: Mapping[str, np.ndarray],
    tables: Mapping[str, Sequence[str]],
    shards: Sequence[ShardInfo],
    keys: Sequence[str] = (),
    members: np.ndarray | None = None,
) -> Index:
    """Writes the index of a shard set from arrays, in place of an earlier one, and opens it.

    Args:
        columns: All of `COLUMNS`, each (rows,), rows in shard order.
        tables: All of `TABLES`; entry 0 must be the empty text.
        shards: The tars in order.
        keys: Key of every row; empty for synthetic indexes.
        members: Clips of joined rows, dtype `MEMBER`.

    Raises:
        ValueError: If two rows have one key, or a column does not fit the shards or the tables.
    """
    path = Path(path)
    _check_keys(columns["key"], keys)
    arrays = {name: np.ascontiguousarray(columns[name], dtype) for name, dtype in COLUMNS.items()}
    _check_columns(path, arrays, tables, [shard.rows for shard in shards])
    members = np.zeros(0, MEMBER) if members is None else members
    texts = {**{name: tables[name] for name in TABLES}, "keys": keys}
    borders = np.cumsum([0, *(shard.rows for shard in shards)]).tolist()
    described = []
    for shard, (first, last) in zip(shards, pairwise(borders), strict=True):
        names = {name: [tables[table][number] for number in arrays[name][first:last].tolist()] for name, table in NAMES.items()}
        described.append(replace(shard, metadata=shard_metadata(names)))
    final, building, old = path / "index", path / "index.tmp", path / "index.old"
    for leftover in (building, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for name, array in [*arrays.items(), ("members", members)]:
        with atomic_file(building / f"{name}.npy") as file:
            np.save(file, array)
    for name, lines in texts.items():
        with atomic_file(building / f"{name}.txt") as file:
            file.writelines(f"{line}\n".encode() for line in lines)
    files = {name: {"nbytes": (building / name).stat().st_size, "sha256": sha256_of(building / name)} for name in FILES}
    for name, lines in texts.items():
        files[f"{name}.txt"]["lines"] = len(lines)
    head = {
        "format_version": FORMAT_VERSION,
        "fingerprint": index_fingerprint(shard.identity for shard in described),
        "metadata": index_metadata(described),
        "rows": borders[-1],
        "shards": [asdict(shard) for shard in described],
        "files": files,
    }
    write_sealed(building / "shards.json", head)
    # The old files are renamed and unlinked, never rewritten, since a training run may have mapped them.
    if final.exists():
        final.rename(old)
    building.rename(final)
    sync_folder(path)
    shutil.rmtree(old, ignore_errors=True)
    return Index.open(path, check=False)


def _check_columns(path: Path, columns: Mapping[str, np.ndarray], tables: Mapping[str, Sequence[str]], rows: list[int]) -> None:
    if not np.array_equal(columns["shard"], np.repeat(np.arange(len(rows)), rows)):
        raise ValueError(f"the rows of an index lie in shard order, but those of {path} do not: sort them by shard")
    for name, table in NAMES.items():
        broken = next((text for text in tables[table] if "\n" in text), None)
        if broken is not None:
            raise ValueError(f"a name must not hold a line feed, but {table} of {path} have {broken!r}: replace it")
        largest = int(columns[name].max(initial=0))
        if len(columns[name]) and largest >= len(tables[table]):
            raise ValueError(
                f"the column {name} of an index must name entries of {table}, but that of {path} names entry {largest} of "
                f"{len(tables[table])}"
            )


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
