"""Targets of the rows of a shard set: a field of the shards' JSON, or a column of a table (TSV, Parquet, Hugging Face dataset)."""

import csv
import hashlib
import importlib
import itertools
import json
from collections.abc import Iterator, Mapping
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
    """Targets by `key` of a TSV file, a `.parquet` file or a folder of `datasets.Dataset.save_to_disk`.

    Raises:
        ValueError: If the file or a column is missing, a row has too few fields or no target, or a key is there twice with different
            targets; for Parquet and folders, if pyarrow is not installed or the file is damaged.
    """
    if not path.exists():
        raise ValueError(f"task.table must be a TSV file, a .parquet file or a folder of save_to_disk, but {path} does not exist")
    columnar = path.is_dir() or path.suffix == ".parquet"
    rows = _of_columns(path, task.target) if columnar else _of_lines(path, task.target)
    found: dict[str, str] = {}
    for number, key, target in rows:
        if found.setdefault(key, target) != target:
            place = f"{path}, {'row' if columnar else 'line'} {number}"
            raise ValueError(f"{place}: {key} has another target before: remove one")
    return found


def _of_lines(path: Path, field: str) -> Iterator[tuple[int, str, str]]:
    """(line, key, target) of the rows of a TSV file with a header; no quoting, so that apostrophes and quotation marks are letters."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): convert it to UTF-8") from error
    header = rows[0] if rows else []
    _check_columns(path, header, field)
    key, target = header.index("key"), header.index(field)
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) <= max(key, target):
            raise ValueError(f"{path}, line {number}: it must have {len(header)} fields, but has {len(row)}")
        yield number, row[key], row[target]


def _of_columns(path: Path, field: str) -> Iterator[tuple[int, str, str]]:
    """(row, key, target) of Arrow data, rows counted from 0, classes by their names; other columns are not decoded."""
    files = _arrow_files(path)
    try:
        arrow = importlib.import_module("pyarrow")
        importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError(f"task.table={path} is read by pyarrow, which is not installed: pip install pyarrow") from error
    row = 0
    for file in files:
        try:
            of_parquet = file.suffix == ".parquet"
            reader = arrow.parquet.ParquetFile(file) if of_parquet else arrow.ipc.open_stream(arrow.memory_map(str(file)))
            schema = reader.schema_arrow if of_parquet else reader.schema
            _check_columns(path, schema.names, field)
            names = _class_names(schema.metadata or {}, field)
            for batch in reader.iter_batches(columns=["key", field]) if of_parquet else reader:
                for key, value in zip(batch.column("key").to_pylist(), batch.column(field).to_pylist(), strict=True):
                    yield row, _as_text(key, None, path, row, "key"), _as_text(value, names, path, row, field)
                    row += 1
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"{file} cannot be read ({' '.join(str(error).split())[:200]}): write it again") from error


def _arrow_files(path: Path) -> list[Path]:
    """The Parquet file, or the files of a folder of `datasets.Dataset.save_to_disk` in order."""
    if path.is_file():
        return [path]
    parts = [one.parent.name for one in sorted(path.glob("*/state.json"))]
    if not (path / "state.json").is_file():
        cure = f"name one of its parts, {', '.join(parts)}" if parts else "write one by Dataset.save_to_disk"
        raise ValueError(f"task.table={path} must be a folder of Dataset.save_to_disk, but has no state.json: {cure}")
    try:
        return [path / one["filename"] for one in json.loads((path / "state.json").read_text())["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / 'state.json'} does not list the data files ({error}): write the folder again") from error


def _class_names(metadata: Mapping[bytes, bytes], field: str) -> list[str] | None:
    """Names of a column of type ClassLabel, from the features that `datasets` writes into the schema; None for another column."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    feature = features.get(field, {})
    return feature["names"] if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None


def _as_text(value: object, names: list[str] | None, path: Path, row: int, column: str) -> str:
    if names is not None and isinstance(value, int):
        if not 0 <= value < len(names):
            raise ValueError(
                f"{path}, row {row}: {column} is the class {value}, but there are {len(names)} names: remove the row"
            )
        return names[value]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        found = str(value)[:60]
        raise ValueError(f"{path}, row {row}: {column} must be a text or number, but is {found}: correct or remove the row")
    return str(value)


def _check_columns(path: Path, header: list[str], field: str) -> None:
    if any(name not in header for name in ("key", field)):
        raise ValueError(f"{path} must have the columns key and {field} (task.field), but has {', '.join(header) or 'none'}")


def fingerprint_of(targets: list[str | None]) -> str:
    """Hash over the targets of a shard set in the order of its rows."""
    return hashlib.blake2b(json.dumps(targets).encode(), digest_size=16).hexdigest()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
