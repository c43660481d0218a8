"""Removes what the finished calls of a labelling left behind, and nothing that is a call's unfinished work on other shards."""

import json
import re
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Any

from openwavlm.runtime.atomic import remove_temporaries
from openwavlm.runtime.resources import check_of_the_file

FILES = re.compile(
    r"(meta|stats)\.json|(codebook|feature_norm)\.npy|(?P<pack>pack-\d+)\.(u16|rows\.npy)|tasks/(?P<mark>pack-\d+)\.json"
    r"|tasks/shards/shard-(?P<shard>\w+)\..+"
)


def tidy(output: Path, meta: dict[str, Any], *, alone: bool) -> None:
    """Removes parts, packs and done-files of shards that a labelling covers by now, and temporary files.

    Args:
        output: The labelling.
        meta: What its `meta.json` says.
        alone: Whether no other process can be writing packs there; then packs and parts without a readable done-file go as well.
    """
    covered = {shard["identity"] for pack in meta["packs"] for shard in pack["shards"]}
    named = {pack["name"] for pack in meta["packs"]}

    def is_own(path: str) -> bool:
        found = FILES.fullmatch(path)
        if found is None or alone:
            return found is not None
        pack = found["pack"] or found["mark"]
        return (pack is None or pack in named) and (found["shard"] is None or found["shard"] in covered)

    remove_temporaries(output, is_own)
    for mark in (output / "tasks").glob("pack-*.json"):
        if mark.stem in named or not _is_unfinished_work(_shards_of_pack(mark), covered, alone=alone):
            mark.unlink(missing_ok=True)
    if alone:
        kept = named | {mark.stem for mark in (output / "tasks").glob("pack-*.json")}
        for file in output.glob("pack-*"):
            if file.name.partition(".")[0] not in kept:
                file.unlink(missing_ok=True)
    parts = output / "tasks" / "shards"
    unfinished = {mark.stem for mark in parts.glob("*.json") if _is_unfinished_work(_shard_of_part(mark), covered, alone=alone)}
    for file in parts.glob("shard-*"):
        stem = file.name.partition(".")[0]
        if stem.removeprefix("shard-") in covered or (alone and stem not in unfinished):
            file.unlink(missing_ok=True)
    for folder in (parts, parts.parent):
        with suppress(OSError):  # absent, or not empty
            folder.rmdir()


def _is_unfinished_work(shards: AbstractSet[str] | None, covered: AbstractSet[str], *, alone: bool) -> bool:
    """Whether a done-file is of shards that have no labels yet; of an unreadable one that is so if somebody may be writing it."""
    return not alone if shards is None else not shards <= covered


def _shards_of_pack(mark: Path) -> set[str] | None:
    try:
        return {shard["identity"] for shard in json.loads(mark.read_text())["record"]["shards"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        check_of_the_file(error, mark)
        return None


def _shard_of_part(mark: Path) -> set[str] | None:
    try:
        return {json.loads(mark.read_text())["key"].rpartition(" ")[2]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        check_of_the_file(error, mark)
        return None
