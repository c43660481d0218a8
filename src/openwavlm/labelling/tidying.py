"""Removes what the finished calls of a labelling left behind, and nothing that is a call's unfinished work on other shards."""

import json
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from openwavlm.data.atomic import remove_temporaries
from openwavlm.targets.label_packs import labels_file, rows_file

_RECORDS = r"(meta|stats)\.json|(codebook|feature_norm)\.npy"
FILES = rf"{_RECORDS}|pack-\d+\.(u16|rows\.npy)|tasks/pack-\d+\.json|tasks/shards/[^/]+"


def tidy(output: Path, meta: dict[str, Any], *, alone: bool) -> None:
    """Removes parts, packs and done-files of shards that a labelling covers by now, and temporary files.

    Args:
        output: The labelling.
        meta: What its `meta.json` says.
        alone: Whether no other process can be writing packs there; then packs without a readable done-file go as well.
    """
    covered = {shard["identity"] for pack in meta["packs"] for shard in pack["shards"]}
    named = {pack["name"] for pack in meta["packs"]}
    remove_temporaries(output, FILES if alone else _RECORDS)
    for mark in (output / "tasks").glob("pack-*.json"):
        if mark.stem in named or not _is_unfinished_work(_shards_of_pack(mark), covered, alone=alone):
            mark.unlink(missing_ok=True)
    kept = named | {mark.stem for mark in (output / "tasks").glob("pack-*.json")}
    for file in output.glob("pack-*"):
        if file.name.partition(".")[0] not in kept and alone:
            file.unlink(missing_ok=True)
    parts = output / "tasks" / "shards"
    for mark in parts.glob("*.json"):
        if not _is_unfinished_work(_shard_of_part(mark), covered, alone=alone):
            for file in (mark, labels_file(parts, mark.stem), rows_file(parts, mark.stem)):
                file.unlink(missing_ok=True)
    if alone:
        marked = {mark.stem for mark in parts.glob("*.json")}
        for file in parts.glob("shard-*"):
            if file.name.partition(".")[0] not in marked:
                file.unlink(missing_ok=True)
    for folder in (parts, parts.parent):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _is_unfinished_work(shards: AbstractSet[str] | None, covered: AbstractSet[str], *, alone: bool) -> bool:
    """Whether a done-file is of shards that have no labels yet; of an unreadable one that is so if somebody may be writing it."""
    return not alone if shards is None else not shards <= covered


def _shards_of_pack(mark: Path) -> set[str] | None:
    try:
        return {shard["identity"] for shard in json.loads(mark.read_text())["record"]["shards"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _shard_of_part(mark: Path) -> set[str] | None:
    try:
        return {json.loads(mark.read_text())["key"].rpartition(" ")[2]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
