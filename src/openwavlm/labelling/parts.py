"""The finished shards of a pack in the making: a killed task goes on behind them, and they become the pack's bytes at its end."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from openwavlm.data.atomic import write_json
from openwavlm.data.index import Index
from openwavlm.targets.label_packs import labels_file, rows_file, write_packs
from openwavlm.targets.labels import Pack


class ShardParts:
    """Labels of single shards of one labelling, under `tasks/` until their pack is whole.

    Args:
        output: The labelling.
        index: The shard set.
        book_key: Hash of the codebook and of what its features are.
    """

    def __init__(self, output: Path, index: Index, book_key: str):
        self.folder, self._index, self._book_key = output / "tasks" / "shards", index, book_key
        self._open: tuple[int, Pack] | None = None

    def done(self, shard: int) -> int | None:
        """Frames of a finished shard; None if it is not finished, or is of other audio or another codebook."""
        name = self.name(shard)
        try:
            mark = json.loads(self._mark(shard).read_text())
            sizes = [labels_file(self.folder, name).stat().st_size, rows_file(self.folder, name).stat().st_size]
        except (OSError, ValueError):
            return None
        return int(mark["frames"]) if mark["key"] == self._key(shard) and mark["sizes"] == sizes else None

    def computed_on(self, shard: int) -> str | None:
        """The GPU that a finished shard was computed on."""
        found = json.loads(self._mark(shard).read_text())["computed_on"]
        return None if found is None else str(found)

    def finish(self, shard: int, frames: int, computed_on: str | None) -> None:
        """Marks a shard whose files have been written as finished."""
        name = self.name(shard)
        sizes = [labels_file(self.folder, name).stat().st_size, rows_file(self.folder, name).stat().st_size]
        mark = {"key": self._key(shard), "frames": frames, "sizes": sizes, "computed_on": computed_on}
        write_json(self._mark(shard), mark)

    def labels(self, row: int) -> np.ndarray | None:
        """Labels of a row of a finished shard, None if its audio could not be read."""
        shard = int(self._index.shard[row])
        if self._open is None or self._open[0] != shard:
            frames = self.done(shard)
            assert frames is not None
            self._open = (shard, Pack(self.folder, self.name(shard), frames=frames))
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
            parts[number].finish(shard, result.record["frames"], computed_on[number])
