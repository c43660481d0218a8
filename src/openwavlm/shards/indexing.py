"""Builds the index of a shard set from the done-files beside its tars."""

from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.shards.index import COLUMNS, MEMBER, NAMES, TABLES, Index, ShardInfo
from openwavlm.shards.index_writer import write_index
from openwavlm.shards.shard_done import read_done_file


def build_index(shards_dir: Path | str) -> Index:
    """Builds the index from the done-files of a shard set, without opening a tar.

    Args:
        shards_dir: Folder that holds `shards/*/*.json` beside the tars.

    Raises:
        ValueError: If there is no finished shard, a done-file is damaged or of another format, or two rows have one key.
    """
    return write_index(Path(shards_dir), **index_content(Path(shards_dir)))


def index_content(shards_dir: Path) -> dict[str, Any]:
    """Collects the content of the index of a shard set from its done-files.

    Returns:
        The arguments of `write_index`: `columns`, `tables`, `shards`, `keys`, `members`.

    Raises:
        ValueError: If there is no finished shard, or a done-file is damaged, of another format or of a tar of another size.
    """
    files = sorted((shards_dir / "shards").glob("*/*.json"))
    if not files:
        raise ValueError(f"{shards_dir} has no finished shard: run data_prep/make_shards.py with this output first")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    ids: dict[str, dict[str, int]] = {name: {"": 0} for name in TABLES}
    shards: list[ShardInfo] = []
    keys: list[str] = []
    members: list[np.ndarray] = []
    for number, file in enumerate(files):
        done = read_done_file(file)
        _check_size(file, done.info.nbytes)
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


def _check_size(file: Path, nbytes: int) -> None:
    tar = file.with_suffix(".tar")
    if tar.is_file() and tar.stat().st_size != nbytes:
        raise ValueError(
            f"{file} must describe {tar.name}, which has {tar.stat().st_size} bytes, but describes a tar of {nbytes}: delete both and run "
            "data_prep/make_shards.py again"
        )
