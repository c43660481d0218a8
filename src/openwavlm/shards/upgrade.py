"""Brings a shard set of format 1 to the present one, in place: done-files, index and settings are written again, tars are not opened.

Format 1 had no identity of the names and no checksums over the index. The names of the done-files are compared with those of the index
before anything is written, so that an index that was changed since is noticed instead of replaced.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.runtime.atomic import writer_lock
from openwavlm.runtime.files import Fields, read_array, read_json, read_lines
from openwavlm.runtime.sealed import write_sealed
from openwavlm.shards.done import check_task_done, is_done
from openwavlm.shards.index import COLUMNS, FORMAT_VERSION, MEMBER, NAMES, TABLES, Index, shard_metadata
from openwavlm.shards.index_writer import build_index, index_content, write_index
from openwavlm.shards.tasks import task_lines

_REMEDY = "restore it from a copy"


def upgrade_shards(path: Path) -> bool:
    """Upgrades a shard set; killed and called again it goes on.

    Args:
        path: The shard set.

    Returns:
        False if it had the present format already.

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
        for file in others[-1:]:  # last: until then make_shards refuses the set
            _seal(file, versions.get(file, FORMAT_VERSION))
        if mark.is_file():
            Index.open(path)
    return True


def _version(file: Path) -> int:
    version = read_json(file, remedy=_REMEDY).integer("format_version", 1)
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{file} has format {version}, but this version of OpenWavLM reads up to {FORMAT_VERSION}: update OpenWavLM"
        )
    return version


def _seal(file: Path, version: int) -> None:
    if version < FORMAT_VERSION:
        write_sealed(file, read_json(file, remedy=_REMEDY).values | {"format_version": FORMAT_VERSION})


def _seal_done_file(file: Path) -> None:
    """Adds the identity of the names to a shard's done-file; what it says is checked when the index is built from it."""
    found = read_json(file, remedy=_REMEDY)
    columns = Fields(found.mapping("columns"), f"{file}, columns", _REMEDY)
    names = {name: columns.texts(name, found.integer("rows")) for name in NAMES}
    content = found.values | {"format_version": FORMAT_VERSION, "metadata": shard_metadata(names)}
    write_sealed(file, content, indent=None)


def _compare(path: Path, content: dict[str, Any]) -> None:
    """Compares the files of an index of format 1 with the content that the done-files give it."""
    folder, rows = path / "index", len(content["columns"]["shard"])
    same = {f"{name}.npy": _equal(folder / f"{name}.npy", content["columns"][name], dtype) for name, dtype in COLUMNS.items()}
    same["members.npy"] = _equal(folder / "members.npy", content["members"], MEMBER)
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
            f"changed since they were written: restore {folder} from a copy; or, if it was changed by mistake, delete it and run the same "
            "command again, which builds it from the done-files"
        )


def _equal(file: Path, wanted: np.ndarray, dtype: Any) -> bool:
    found = read_array(file, dtype, remedy=_REMEDY)
    return np.array_equal(found, wanted)
