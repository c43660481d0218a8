"""Builds the index of a shard set from the done-files beside its tars."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.data.index import COLUMNS, FORMAT_VERSION, MEMBER, TABLES, Index, ShardInfo, shard_identity, write_index


def build_index(shards_dir: Path | str) -> Index:
    """Builds the index from the done-files of a shard set, without opening a tar.

    Args:
        shards_dir: Folder that holds `shards/*/*.json` beside the tars.

    Raises:
        ValueError: If there is no finished shard, a done-file is newer or damaged, or two rows have one key.
    """
    shards_dir = Path(shards_dir)
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
        rows, first = done["columns"], len(keys)
        shards.append(ShardInfo(**{field: done[field] for field in ("name", "rows", "nbytes", "checksum", "identity")}))
        for name, table in zip(("speaker", "recording", "source", "language"), TABLES, strict=True):
            known = ids[table]
            parts[name].append(np.array([known.setdefault(text, len(known)) for text in rows[name]], COLUMNS[name]))
        for name in ("offset", "nbytes", "num_samples", "key", "pcm"):
            parts[name].append(np.array(rows[name], COLUMNS[name]))
        parts["shard"].append(np.full(done["rows"], number, np.uint32))
        keys.extend(rows["keys"])
        joined = np.array([tuple(member) for member in done["members"]], MEMBER)
        joined["row"] += first
        members.append(joined)
        identity = shard_identity(parts["pcm"][-1], parts["key"][-1], parts["num_samples"][-1])
        if identity != done["identity"]:
            raise ValueError(f"{file} contradicts itself: delete it and run data_prep/make_shards.py again")
    return write_index(
        shards_dir,
        columns={name: np.concatenate(arrays) for name, arrays in parts.items()},
        tables={name: list(known) for name, known in ids.items()},
        shards=shards,
        keys=keys,
        members=np.concatenate(members),
    )


def read_done_file(file: Path) -> dict[str, Any]:
    """Reads the done-file of a shard.

    Raises:
        ValueError: If it is damaged or of a newer format.
    """
    try:
        done = json.loads(file.read_text())
        version = done["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: delete it and run data_prep/make_shards.py again") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{file} has format {version}, but this version of OpenWavLM reads up to {FORMAT_VERSION}: update OpenWavLM"
        )
    return done
