"""Unfinished work of a labelling, under `tasks/`: done-files of packs, finished shards of a pack in the making, and their removal.

A killed task resumes after its last finished shard; when all shards are finished, the pack is written from them.
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


def read_done(mark: Path, folder: Path, pack: str, *, classes: int | None = None, **key: str) -> Fields:
    """Reads a done-file.

    Args:
        mark: Done-file.
        folder: Folder of the pack's files.
        pack: Name of the pack.
        classes: Length of the field `label_counts`, if the file has one.
        key: Name and value of the field that identifies the work.

    Raises:
        ValueError: If it is absent, damaged or of other work, or a file of the pack has another size: the work is done again.
    """
    done = read_json(mark, remedy=AGAIN)
    record = Fields(done.mapping("record"), done.where, AGAIN)
    check_record(record)
    check_sizes(folder, record.values)
    if classes is not None:
        done.integers("label_counts", np.int64, classes)
    if record.text("name") != pack or any(done.text(name) != value for name, value in key.items()):
        raise ValueError(f"{mark} must be of {pack} and of this call's audio and codebook, but is not: {AGAIN}")
    return done


class ShardParts:
    """Labels of single shards of the labelling `output`, under `tasks/shards/` until their pack is complete.

    `book_key` is a hash of the codebook and of the settings of its features.
    """

    def __init__(self, output: Path, index: Index, book_key: str, num_classes: int):
        self.folder, self.index, self.num_classes = output / "tasks" / "shards", index, num_classes
        self._book_key = book_key
        self._open: tuple[int, Pack] | None = None

    def done(self, shard: int) -> bool:
        """True if a shard is finished; False also if it is of other audio or another codebook, or damaged."""
        try:
            self._pack(shard)
        except ValueError:
            return False
        return True

    def computed_on(self, shard: int) -> str | None:
        """GPU that computed a finished shard; None for a CPU."""
        return self._pack(shard).record.get("computed_on")

    def finish(self, shard: int, record: dict[str, Any], computed_on: str | None) -> None:
        """Marks a shard as finished; `record` is the `PackResult.record` of its files."""
        named = {"computed_on": computed_on} if computed_on else {}
        write_json(self._mark(shard), {"key": self._key(shard), "record": record | named})

    def labels(self, row: int) -> np.ndarray | None:
        """Labels of a row of a finished shard; None if its audio was unreadable."""
        shard = int(self.index.shard[row])
        if self._open is None or self._open[0] != shard:
            self._open = (shard, self._pack(shard))
        pack = self._open[1]
        place = row - int(self.index.first_row[shard])
        offset, count = int(pack.offset[place]), int(pack.frames[place])
        return pack.labels[offset : offset + count] if count else None

    def remove(self, shards: Sequence[int]) -> None:
        """Deletes the files of some shards, marks first."""
        for shard in shards:
            name = self.name(shard)
            for file in (self._mark(shard), labels_file(self.folder, name), rows_file(self.folder, name)):
                file.unlink(missing_ok=True)

    def name(self, shard: int) -> str:
        """Name of a shard's files, from its identity: calls for other shards use other files."""
        return f"shard-{self.index.shards[shard].identity}"

    def _pack(self, shard: int) -> Pack:
        done = read_done(self._mark(shard), self.folder, self.name(shard), key=self._key(shard))
        # Unchecked, a damaged shard would become part of a pack with valid checksums.
        pack = Pack(self.folder, done.mapping("record"), self.num_classes)
        pack.check()
        return pack

    def _mark(self, shard: int) -> Path:
        return self.folder / f"{self.name(shard)}.json"

    def _key(self, shard: int) -> str:
        return f"{self._book_key} {self.index.shards[shard].identity}"


def write_parts(
    parts: Sequence[ShardParts],
    shards: Sequence[int],
    computer: Callable[[Sequence[int]], Callable[[int], Sequence[np.ndarray | None]]],
    computed_on: Sequence[str | None],
) -> None:
    """Labels the unfinished ones of some shards in all labellings that lack them, one shard after another.

    `computer` returns, for the numbers of some labellings, the function that labels a row for them; `computed_on` names the GPU of each
    labelling, if there is one.
    """
    for shard in shards:
        numbers = [number for number, part in enumerate(parts) if not part.done(shard)]
        if not numbers:
            continue
        lacking = [parts[number] for number in numbers]
        folders, sizes = [part.folder for part in lacking], [part.num_classes for part in lacking]
        results = write_packs(folders, lacking[0].name(shard), lacking[0].index, [shard], computer(numbers), sizes)
        for number, result in zip(numbers, results, strict=True):
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
        if mark.stem in named or not _is_unfinished(mark, covered, alone=alone):
            mark.unlink(missing_ok=True)
    if alone:
        kept = named | {mark.stem for mark in (output / "tasks").glob("pack-*.json")}
        for file in output.glob("pack-*"):
            if file.name.partition(".")[0] not in kept:
                file.unlink(missing_ok=True)
    parts = output / "tasks" / "shards"
    unfinished = {mark.stem for mark in parts.glob("*.json") if _is_unfinished(mark, covered, alone=alone)}
    for file in parts.glob("shard-*"):
        stem = file.name.partition(".")[0]
        if stem.removeprefix("shard-") in covered or (alone and stem not in unfinished):
            file.unlink(missing_ok=True)
    for folder in (parts, parts.parent):
        with suppress(OSError):  # absent, or not empty
            folder.rmdir()


def _is_unfinished(mark: Path, covered: AbstractSet[str], *, alone: bool) -> bool:
    """True if a done-file names shards without labels, or is unreadable while another process may be writing it."""
    try:
        return not {shard["identity"] for shard in json.loads(mark.read_text())["record"]["shards"]} <= covered
    except (OSError, ValueError, KeyError, TypeError) as error:
        check_of_the_file(error, mark)
        return not alone
