"""The finished shards of a pack in the making: a killed task goes on behind them, and they become the pack's bytes at its end."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.labels.label_meta import AGAIN, check_record
from openwavlm.labels.label_packs import labels_file, rows_file, write_packs
from openwavlm.labels.pack import Pack, check_size
from openwavlm.runtime.atomic import write_json
from openwavlm.runtime.files import Fields, read_json
from openwavlm.shards.index import Index


class ShardParts:
    """Labels of single shards of one labelling, under `tasks/` until their pack is whole.

    Args:
        output: The labelling.
        index: The shard set.
        book_key: Hash of the codebook and of what its features are.
        num_classes: Number of clusters K.
    """

    def __init__(self, output: Path, index: Index, book_key: str, num_classes: int):
        self._num_classes = num_classes
        self.folder, self._index, self._book_key = output / "tasks" / "shards", index, book_key
        self._open: tuple[int, Pack] | None = None

    def done(self, shard: int) -> int | None:
        """Frames of a finished shard; None if it is not finished, is of other audio or another codebook, or was damaged since."""
        record = self._record(shard)
        try:
            return None if record is None else len(self._pack(record).labels)
        except ValueError:
            return None

    def computed_on(self, shard: int) -> str | None:
        """The GPU that a finished shard was computed on."""
        record = self._record(shard)
        return record.text("computed_on") if record is not None and "computed_on" in record.values else None

    def finish(self, shard: int, record: dict[str, Any], computed_on: str | None) -> None:
        """Marks a shard whose files have been written, as `PackResult.record` says, as finished."""
        named = {"computed_on": computed_on} if computed_on else {}
        write_json(self._mark(shard), {"key": self._key(shard), "record": record | named})

    def labels(self, row: int) -> np.ndarray | None:
        """Labels of a row of a finished shard, None if its audio could not be read."""
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
        """Deletes the files of some shards; the marks first. Those of other audio or another codebook have other names."""
        for shard in shards:
            name = self.name(shard)
            for file in (self._mark(shard), labels_file(self.folder, name), rows_file(self.folder, name)):
                file.unlink(missing_ok=True)

    def name(self, shard: int) -> str:
        """Name of a shard's files: by its identity, so that a call for other shards does not write to them."""
        return f"shard-{self._index.shards[shard].identity}"

    def _pack(self, record: Fields) -> Pack:
        # A shard that was damaged since it was finished would become part of a pack with checksums that hold.
        pack = Pack(self.folder, record.values, self._num_classes)
        pack.check()
        return pack

    def _record(self, shard: int) -> Fields | None:
        """What was written of a finished shard; None if it is not finished, or is of other audio or another codebook."""
        try:
            mark = read_json(self._mark(shard), remedy=AGAIN)
            record = Fields(mark.mapping("record"), mark.where, AGAIN)
            check_record(record)
            check_size(labels_file(self.folder, self.name(shard)), record.integer("labels_bytes"))
            check_size(rows_file(self.folder, self.name(shard)), record.integer("rows_bytes"))
            return record if mark.text("key") == self._key(shard) and record.text("name") == self.name(shard) else None
        except ValueError:  # absent or damaged: it is written again
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
    """Finishes, one after another, those of some shards that are not finished.

    Args:
        parts: Of each labelling.
        index: The shard set.
        shards: Shards of the index.
        computer: Gives, for the numbers of some labellings, what labels a row for them.
        num_classes: Clusters of each labelling.
        computed_on: The GPU of each labelling, to be noted.
    """
    for shard in shards:
        lacking = [number for number, part in enumerate(parts) if part.done(shard) is None]
        if not lacking:
            continue
        folders, sizes = [parts[number].folder for number in lacking], [num_classes[number] for number in lacking]
        results = write_packs(folders, parts[0].name(shard), index, [shard], computer(lacking), sizes)
        for number, result in zip(lacking, results, strict=True):
            parts[number].finish(shard, result.record, computed_on[number])
