"""Upgrades a shard set of format 1, without checksums over names and index, in place; opens no tar."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.runtime.atomic import writer_lock
from openwavlm.runtime.files import Fields, read_array, read_json, read_lines
from openwavlm.runtime.sealed import write_sealed
from openwavlm.shards.done import check_task_done, is_done
from openwavlm.shards.index import COLUMNS, FORMAT_VERSION, MEMBER, NAMES, TABLES, Index, check_not_newer, shard_metadata
from openwavlm.shards.index_writer import build_index, index_content, write_index
from openwavlm.shards.tasks import task_lines

_REMEDY = "restore it from a copy"


def upgrade_shards(path: Path) -> bool:
    """Upgrades a shard set, or resumes an upgrade; returns False if the set has the present format already.

    Raises:
        ValueError: If a file is damaged, is of a newer format, or the index does not agree with the done-files; if another process
            writes there.
    """
    with writer_lock(path):
        done_files = sorted((path / "shards").glob("*/*.json"))
        others = [*sorted((path / "done").glob("*/*.json")), path / "settings.json"]
        versions = {file: _version(file) for file in [*done_files, *others] if file.is_file()}
        mark = path / "index" / "shards.json"
        old_index = mark.is_file() and _version(mark) < FORMAT_VERSION
        if not old_index and all(version == FORMAT_VERSION for version in versions.values()) and mark.is_file():
            return False
        for file in done_files:
            if versions[file] < FORMAT_VERSION:
                _seal_done_file(file)
        for file in others[:-1]:
            check_task_done(read_json(file, remedy=_REMEDY))
            _seal(file, versions[file])
        if old_index:
            content = index_content(path)
            _compare(path, content)
            write_index(path, **content)
        elif not mark.is_file() and all(is_done(path, line.number) for line in task_lines(path / "tasks.jsonl")):
            build_index(path)
        _seal(others[-1], versions.get(others[-1], FORMAT_VERSION))  # Last: until then make_shards refuses the set.
        if mark.is_file():
            Index.open(path)
    return True


def _version(file: Path) -> int:
    return check_not_newer(read_json(file, remedy=_REMEDY))


def _seal(file: Path, version: int) -> None:
    if version < FORMAT_VERSION:
        write_sealed(file, read_json(file, remedy=_REMEDY).values | {"format_version": FORMAT_VERSION})


def _seal_done_file(file: Path) -> None:
    """Adds the identity of the names to a shard's done-file, which is checked when the index is built from it."""
    found = read_json(file, remedy=_REMEDY)
    columns = Fields(found.mapping("columns"), f"{file}, columns", _REMEDY)
    names = {name: columns.texts(name, found.integer("rows")) for name in NAMES}
    content = found.values | {"format_version": FORMAT_VERSION, "metadata": shard_metadata(names)}
    write_sealed(file, content, indent=None)


def _compare(path: Path, content: dict[str, Any]) -> None:
    """Compares an index of format 1 with the content of the done-files, so that a later change of the index is not overwritten."""
    folder, rows = path / "index", len(content["columns"]["shard"])
    arrays, types = content["columns"] | {"members": content["members"]}, {**COLUMNS, "members": MEMBER}
    same = {
        f"{name}.npy": np.array_equal(read_array(folder / f"{name}.npy", dtype, remedy=_REMEDY), arrays[name])
        for name, dtype in types.items()
    }
    for name, lines in [*((name, content["tables"][name]) for name in TABLES), ("keys", content["keys"])]:
        same[f"{name}.txt"] = read_lines(folder / f"{name}.txt", remedy=_REMEDY) == lines
    head = read_json(folder / "shards.json", remedy=_REMEDY)
    fields = ("name", "rows", "nbytes", "checksum", "identity")
    shards = [{name: getattr(shard, name) for name in fields} for shard in content["shards"]]
    same["shards.json"] = head.values.get("shards") == json.loads(json.dumps(shards)) and head.values.get("rows") == rows
    different = [name for name, equal in same.items() if not equal]
    if different:
        raise ValueError(
            f"the index of {path} does not agree with the done-files beside its tars ({', '.join(different)}), so one of the two was "
            f"changed later: restore {folder} from a copy; or, if it was changed by mistake, delete it and run the same "
            "command again, which builds it from the done-files"
        )
