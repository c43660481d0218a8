"""Unfinished work of a labelling, under `tasks/`: done-files of packs, finished shards of a pack in the making, and their removal.

A killed task continues after its last finished shard; the shards become the bytes of the pack at its end.
"""

import json
import re
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.labels.label_packs import AGAIN, check_record, labels_file, rows_file, write_packs
from openwavlm.labels.pack import Pack, check_sizes
from openwavlm.runtime.atomic import remove_temporaries, write_json
from openwavlm.runtime.files import Fields, read_json
from openwavlm.runtime.resources import check_of_the_file
from openwavlm.shards.index import Index

FILES = re.compile(
    r"(meta|stats)\.json|(codebook|feature_norm)\.npy|(?P<pack>pack-\d+)\.(u16|rows\.npy)|tasks/(?P<mark>pack-\d+)\.json"
    r"|tasks/shards/shard-(?P<shard>\w+)\..+"
)


def read_done(mark: Path, folder: Path, pack: str) -> tuple[Fields, Fields]:
    """Reads a done-file and its record.

    Args:
        mark: Done-file.
        folder: Folder of the pack's files.
        pack: Name of the pack.

    Raises:
        ValueError: If it is absent, damaged or of another pack, or a file of the pack has another size.
    """
    done = read_json(mark, remedy=AGAIN)
    record = Fields(done.mapping("record"), done.where, AGAIN)
    check_record(record)
    if record.text("name") != pack:
        raise record.refusal("name", pack, record.values["name"])
    check_sizes(folder, record.values)
    return done, record


class ShardParts:
    """Labels of single shards of one labelling, under `tasks/shards/` until their pack is complete.

    Args:
        output: Labelling.
        index: Index of the shard set.
        book_key: Hash of the codebook and of the settings of its features.
        num_classes: Number of clusters K.
    """

    def __init__(self, output: Path, index: Index, book_key: str, num_classes: int):
        self.folder, self._index, self._book_key = output / "tasks" / "shards", index, book_key
        self._num_classes = num_classes
        self._open: tuple[int, Pack] | None = None

    def done(self, shard: int) -> int | None:
        """Frames of a finished shard; None if it is not finished, of other audio or another codebook, or damaged."""
        record = self._record(shard)
        try:
            return None if record is None else len(self._pack(record).labels)
        except ValueError:
            return None

    def computed_on(self, shard: int) -> str | None:
        """GPU that computed a finished shard; None for a CPU."""
        record = self._record(shard)
        return record.text("computed_on") if record is not None and "computed_on" in record.values else None

    def finish(self, shard: int, record: dict[str, Any], computed_on: str | None) -> None:
        """Marks a shard as finished; `record` is the `PackResult.record` of its files."""
        named = {"computed_on": computed_on} if computed_on else {}
        write_json(self._mark(shard), {"key": self._key(shard), "record": record | named})

    def labels(self, row: int) -> np.ndarray | None:
        """Labels of a row of a finished shard; None if its audio was unreadable."""
        shard = int(self._index.shard[row])
        if self._open is None or self._open[0] != shard:
            record = self._record(shard)
            assert record is not None
            self._open = (shard, self._pack(record))
        pack = self._open[1]
        place = row - int(self._index.first_row[shard])
        offset, count = int(pack.offset[place]), int(pack.frames[place])
        return pack.labels[offset : offset + count] if count else None

    def remove(self, shards: Sequence[int]) -> None:
        """Deletes the files of some shards, marks first."""
        for shard in shards:
            name = self.name(shard)
            for file in (self._mark(shard), labels_file(self.folder, name), rows_file(self.folder, name)):
                file.unlink(missing_ok=True)

    def name(self, shard: int) -> str:
        """Name of a shard's files, from its identity, so that calls for other shards use other files."""
        return f"shard-{self._index.shards[shard].identity}"

    def _pack(self, record: Fields) -> Pack:
        # Unchecked, a damaged shard would become part of a pack with valid checksums.
        pack = Pack(self.folder, record.values, self._num_classes)
        pack.check()
        return pack

    def _record(self, shard: int) -> Fields | None:
        """Record of a finished shard; None if it is not finished, or of other audio or another codebook."""
        try:
            mark, record = read_done(self._mark(shard), self.folder, self.name(shard))
            return record if mark.text("key") == self._key(shard) else None
        except ValueError:  # absent or damaged: the shard is labelled again
            return None

    def _mark(self, shard: int) -> Path:
        return self.folder / f"{self.name(shard)}.json"

    def _key(self, shard: int) -> str:
        return f"{self._book_key} {self._index.shards[shard].identity}"


def write_parts(
    parts: Sequence[ShardParts],
    index: Index,
    shards: Sequence[int],
    computer: Callable[[Sequence[int]], Callable[[int], Sequence[np.ndarray | None]]],
    num_classes: Sequence[int],
    computed_on: Sequence[str | None],
) -> None:
    """Labels the unfinished ones of some shards, one after another.

    Args:
        parts: Shards of each labelling.
        index: Index of the shard set.
        shards: Shards of the index.
        computer: Returns, for the numbers of some labellings, the function that labels a row for them.
        num_classes: Number of clusters of each labelling.
        computed_on: GPU that computes each labelling, for the record.
    """
    for shard in shards:
        lacking = [number for number, part in enumerate(parts) if part.done(shard) is None]
        if not lacking:
            continue
        folders, sizes = [parts[number].folder for number in lacking], [num_classes[number] for number in lacking]
        results = write_packs(folders, parts[0].name(shard), index, [shard], computer(lacking), sizes)
        for number, result in zip(lacking, results, strict=True):
            parts[number].finish(shard, result.record, computed_on[number])


def tidy(output: Path, meta: dict[str, Any], *, alone: bool) -> None:
    """Removes shards, packs and done-files that a finished labelling has superseded, and temporary files; keeps unfinished work.

    Args:
        output: Labelling.
        meta: Content of its `meta.json`.
        alone: Whether no other process writes packs there; packs and shards without a readable done-file are then removed too.
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
        if mark.stem in named or not _is_unfinished(mark, _shards_of_pack, covered, alone=alone):
            mark.unlink(missing_ok=True)
    if alone:
        kept = named | {mark.stem for mark in (output / "tasks").glob("pack-*.json")}
        for file in output.glob("pack-*"):
            if file.name.partition(".")[0] not in kept:
                file.unlink(missing_ok=True)
    parts = output / "tasks" / "shards"
    unfinished = {mark.stem for mark in parts.glob("*.json") if _is_unfinished(mark, _shard_of_part, covered, alone=alone)}
    for file in parts.glob("shard-*"):
        stem = file.name.partition(".")[0]
        if stem.removeprefix("shard-") in covered or (alone and stem not in unfinished):
            file.unlink(missing_ok=True)
    for folder in (parts, parts.parent):
        with suppress(OSError):  # absent, or not empty
            folder.rmdir()


def _is_unfinished(mark: Path, shards_of: Callable[[Any], set[str]], covered: AbstractSet[str], *, alone: bool) -> bool:
    """Whether a done-file names shards without labels. An unreadable one counts as such if another process may be writing it."""
    try:
        return not shards_of(json.loads(mark.read_text())) <= covered
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        check_of_the_file(error, mark)
        return not alone


def _shards_of_pack(done: Any) -> set[str]:
    return {shard["identity"] for shard in done["record"]["shards"]}


def _shard_of_part(done: Any) -> set[str]:
    return {done["key"].rpartition(" ")[2]}
