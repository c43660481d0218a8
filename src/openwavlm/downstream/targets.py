"""Targets of the rows of a shard set: a field of the shards' JSON, or a column of a table."""

import csv
import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openwavlm.downstream.settings import Task
from openwavlm.downstream.vocabulary import prepared
from openwavlm.shards.index import Index
from openwavlm.shards.reader import read_all_fields

_SHOWN = 5


def read_targets(index: Index, task: Task, table: Mapping[str, str] | None) -> list[str | None]:
    """Prepared target of each row; None for a row that a table does not name.

    Raises:
        ValueError: If a row lacks the field, its value is neither text nor a number, or its target is empty.
    """
    found: list[str | None] = []
    empty: list[str] = []
    stored = read_all_fields(index) if table is None else itertools.repeat({})
    for row, (key, fields) in enumerate(zip(index.keys, stored, strict=table is None)):
        target = _of_row(fields, index, key, task) if table is None else _in_table(table, index, row, key)
        if target is not None:
            target = prepared(target, task)
            if not target:
                empty.append(key)
        found.append(target)
    if empty:
        raise ValueError(
            f"every target must have at least one symbol, but {len(empty)} of {len(found)} rows of {index.path} have none "
            f"({_listed(empty)}): correct them, or name the rows to train on in task.table"
        )
    return found


def _of_row(fields: Mapping[str, Any], index: Index, key: str, task: Task) -> str:
    value = fields.get(task.target)
    if value is None or isinstance(value, bool | list | dict):
        known = ", ".join(sorted(name for name, one in fields.items() if isinstance(one, str | int | float)))
        raise ValueError(
            f"task.field={task.target} must be a text or number in the shards' JSON, but is {value!r} in row {key} of {index.path}: its "
            f"fields are {known}; or give the targets as task.table"
        )
    return str(value)


def _in_table(table: Mapping[str, str], index: Index, row: int, key: str) -> str | None:
    recording = index.recordings[int(index.recording[row])]
    for name in (key, recording, recording.partition("/")[2]):
        if name in table:
            return table[name]
    return None


def read_table(path: Path, task: Task) -> dict[str, str]:
    """Targets by `key` of a TSV file with a header; no quoting, so that apostrophes and quotation marks are letters.

    Raises:
        ValueError: If the file or a column is missing, a row has too few fields, or a key is there twice with different targets.
    """
    if not path.is_file():
        raise ValueError(f"task.table must be a TSV file, but {path} does not exist")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): convert it to UTF-8") from error
    header = rows[0] if rows else []
    missing = [name for name in ("key", task.target) if name not in header]
    if missing:
        raise ValueError(
            f"{path} must have the columns key and {task.target} (task.field), but has {', '.join(header) or 'none'}"
        )
    key, target = header.index("key"), header.index(task.target)
    found: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) <= max(key, target):
            raise ValueError(f"{path}, line {number}: it must have {len(header)} fields, but has {len(row)}")
        if found.setdefault(row[key], row[target]) != row[target]:
            raise ValueError(f"{path}, line {number}: {row[key]} has another target before: remove one")
    return found


def fingerprint_of(targets: list[str | None]) -> str:
    """Hash over the targets of a shard set in the order of its rows."""
    return hashlib.blake2b(json.dumps(targets).encode(), digest_size=16).hexdigest()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
