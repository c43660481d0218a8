"""One pack of labels, mapped into memory, and its checks against `meta.json`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.audio.frames import num_frames
from openwavlm.labels.label_packs import AGAIN, MADE_BY, ROW_DTYPE, checksum_of_rows, labels_file, new_checksum, rows_file
from openwavlm.runtime.files import map_open, release
from openwavlm.shards.index import Index

_MAGIC = b"\x93NUMPY\x01\x00"


class Pack:
    """One pack, by its entry in `meta.json`. Its files are mapped once, so that a file replaced later does not change what is read.

    Attributes:
        table: One `ROW_DTYPE` record a row; `offset` and `frames` are its columns.
        labels: uint16 (frames,), labels of all rows in their order; read-only.

    Raises:
        ValueError: If a file is absent or differs in size from `meta.json`, or the table of rows is malformed.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any], num_classes: int) -> None:
        self.labels_file, self.rows_file = labels_file(folder, record["name"]), rows_file(folder, record["name"])
        self.record, self._num_classes = record, num_classes
        self._label_bytes, labels_state = _mapped(self.labels_file, record["labels_bytes"])
        self._row_bytes, rows_state = _mapped(self.rows_file, record["rows_bytes"])
        self.state = (labels_state, rows_state)
        self._whole = False
        self.labels = self._label_bytes.view("<u2")
        self.table = _table(self._row_bytes, self.rows_file, record["rows"])
        self.offset, self.frames = self.table["offset"], self.table["frames"]
        self._first_rows = np.cumsum([0, *(shard["rows"] for shard in record["shards"])])
        self._first_labels = np.cumsum([0, *(shard["frames"] for shard in record["shards"])])

    def check_rows(self) -> None:
        """Raises `ValueError` if the table of rows differs from its checksum, or a row's place from the lengths before it."""
        self._check_checksum(self.rows_file, self._row_bytes, self.record["rows_checksum"])
        found = np.append(self.offset, np.uint64(self.record["frames"]))
        wrong = np.flatnonzero(found != np.insert(np.cumsum(self.frames, dtype=np.uint64), 0, 0))
        if len(wrong):
            where = f"row {wrong[0]} of the table" if wrong[0] < len(self.offset) else "the last row"
            raise ValueError(f"{self.rows_file} must list the rows without gaps, but {where} does not fit: {AGAIN}")

    def check_audio(self, number: int, index: Index, shard: int) -> None:
        """Compares the rows of the pack's shard `number` with those of an index's `shard`, and each place with the lengths before.

        Raises:
            ValueError: If rows belong to other audio, differ from it in their number of frames, or are not contiguous.
        """
        name, rows = index.shards[shard].name, slice(int(index.first_row[shard]), int(index.first_row[shard + 1]))
        table = self.table[int(self._first_rows[number]) : int(self._first_rows[number + 1])]
        frames, offset = table["frames"], table["offset"]
        expected = num_frames(np.asarray(index.num_samples[rows], dtype=np.int64))
        begins = int(self._first_labels[number]) + np.cumsum(frames, dtype=np.int64) - frames
        if len(frames) != len(expected):
            wrong, found, wanted = rows.start, f"{len(frames)} rows", f"{len(expected)}"
        elif (other := (table["pcm"] != index.pcm[rows]) | (table["key"] != index.key[rows])).any():
            raise ValueError(
                f"{self.rows_file} must list the audio of {index.path}, by key and content, but lists other audio from row "
                f"{rows.start + int(np.argmax(other))} ({name}) on: {AGAIN}"
            )
        elif ((frames != expected) & (frames != 0)).any():
            first = int(np.argmax((frames != expected) & (frames != 0)))
            wrong, found, wanted = rows.start + first, f"{frames[first]} frames", f"{expected[first]}"
        elif (offset != begins).any():
            first = int(np.argmax(offset != begins))
            wrong, found, wanted = rows.start + first, f"labels from {offset[first]} on", f"{begins[first]}"
        else:
            return
        raise ValueError(
            f"labels must have exactly one entry a model frame, but from row {wrong} ({name}) on there are {found} instead of {wanted} "
            f"in {self.rows_file}: make the labels of these shards again with {MADE_BY}"
        )

    def check_shard(self, number: int) -> None:
        """Raises `ValueError` if the labels of a shard differ from their checksum or exceed the number of clusters."""
        shard = self.record["shards"][number]
        labels = self._labels_of(number)
        frames = self.frames[int(self._first_rows[number]) : int(self._first_rows[number + 1])]
        largest = int(labels.max(initial=0))
        if largest >= self._num_classes:
            raise ValueError(
                f"labels must be below the {self._num_classes} clusters of their codebook, but {self.labels_file} has the label "
                f"{largest}: {AGAIN}"
            )
        if int(frames.sum(dtype=np.uint64)) != len(labels) or checksum_of_rows(labels, frames) != shard["checksum"]:
            raise ValueError(
                f"{self.labels_file} must hold the labels that meta.json names, but those of its shard {number + 1} (identity "
                f"{shard['identity'][:12]}) have another checksum: {AGAIN}"
            )

    def check(self) -> np.ndarray:
        """Compares the whole pack with `meta.json`; returns int64 (classes,), frames of each label.

        Raises:
            ValueError: If a file differs from its checksum.
        """
        self.check_rows()
        counts = np.zeros(self._num_classes, dtype=np.int64)
        for number in range(len(self.record["shards"])):
            self.check_shard(number)
            counts += np.bincount(self._labels_of(number), minlength=len(counts))
        self._check_checksum(self.labels_file, self._label_bytes, self.record["labels_checksum"])
        self._whole = True
        # Otherwise all labels of a corpus would count as memory of this process; the pages stay in the file cache.
        release(self._label_bytes)
        return counts

    def check_once(self) -> None:
        """Checks the whole pack on the first call."""
        if not self._whole:
            self.check()

    def check_changed(self) -> bool:
        """Checks the pack again if size, time or inode of a mapped file has changed; returns True if files were replaced.

        Raises:
            ValueError: If the content or size of a mapped file has changed.
        """
        if self.state == (_state(self.labels_file), _state(self.rows_file)):
            return False
        replaced = False
        found = []
        for file, before in ((self.labels_file, self.state[0]), (self.rows_file, self.state[1])):
            now = _state(file)
            found.append(before if now is None or now[:2] != before[:2] else now)
            replaced |= now is None or now[:2] != before[:2]
            if found[-1][2] != before[2]:  # a read beyond the end of a mapped file would kill the process
                raise ValueError(f"{file} must keep its {before[2]} bytes while in use, but has {found[-1][2]} now: {AGAIN}")
        self.check()
        self.state = (found[0], found[1])
        return replaced

    def _labels_of(self, number: int) -> np.ndarray:
        """Labels of one shard of the pack."""
        return self.labels[int(self._first_labels[number]) : int(self._first_labels[number + 1])]

    @staticmethod
    def _check_checksum(file: Path, content: np.ndarray, expected: str) -> None:
        checksum = new_checksum()
        checksum.update(content.data)
        if checksum.hexdigest() != expected:
            raise ValueError(
                f"{file} must have the checksum {expected[:12]} that meta.json names, but has {checksum.hexdigest()[:12]}: {AGAIN}"
            )


State = tuple[int, int, int, int]


def _state_of(found: os.stat_result) -> State:
    """Device, inode, size in bytes and time of the last change of a file."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _state(file: Path) -> State | None:
    try:
        return _state_of(file.stat())
    except FileNotFoundError:
        return None


def check_size(file: Path, expected: int) -> None:
    """Raises `ValueError` if a file of labels is absent or has another size in bytes."""
    found = file.stat().st_size if file.is_file() else None
    if found != expected:
        raise ValueError(f"{file} must have {expected} bytes, but {'is absent' if found is None else f'has {found}'}: {AGAIN}")


def check_sizes(folder: Path, record: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a file of a pack is absent or differs in size from its checked record."""
    check_size(labels_file(folder, record["name"]), record["labels_bytes"])
    check_size(rows_file(folder, record["name"]), record["rows_bytes"])


def _mapped(file: Path, size: int) -> tuple[np.ndarray, State]:
    """Bytes of a file of that size, mapped read-only, and the state of the file."""
    check_size(file, size)
    with file.open("rb") as opened:
        state = _state_of(os.fstat(opened.fileno()))
        if state[2] != size:
            raise ValueError(f"{file} must have {size} bytes, but has {state[2]}: {AGAIN}")
        return map_open(opened.fileno(), size, file), state


def _table(content: np.ndarray, file: Path, rows: int) -> np.ndarray:
    """Records of a table of rows, `ROW_DTYPE` (rows,); the header is compared and never evaluated."""
    expected = f"{{'descr': {ROW_DTYPE.descr}, 'fortran_order': False, 'shape': ({rows},), }}"
    head = content[:10].tobytes()
    length = int.from_bytes(head[8:10], "little")
    header = content[10 : 10 + length].tobytes().rstrip(b" \n")
    if head[:8] != _MAGIC or header != expected.encode() or len(content) != 10 + length + rows * ROW_DTYPE.itemsize:
        raise ValueError(f"{file} must be a table of {rows} rows (offset, key, pcm, frames), but is not: {AGAIN}")
    return content[10 + length :].view(ROW_DTYPE)
