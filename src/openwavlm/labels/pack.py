"""One pack of labels, mapped into memory, and the checks of what lies in it against `meta.json`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.audio.frames import num_frames
from openwavlm.labels.label_meta import AGAIN, MADE_BY
from openwavlm.labels.label_packs import ROW_DTYPE, labels_file, new_checksum, rows_file
from openwavlm.runtime.mapped import map_open, release
from openwavlm.shards.index import Index

_BLOCK_BYTES = 1 << 24
_MAGIC = b"\x93NUMPY\x01\x00"


class Pack:
    """One pack. Its files are mapped once: a file that is later replaced by another one does not change what is read here.

    Args:
        folder: The labelling.
        record: The pack's entry in `meta.json`.
        num_classes: Number of clusters K.

    Attributes:
        table: One `ROW_DTYPE` record a row.
        offset: First label of each row, uint64 (rows,).
        frames: Labels of each row, uint32 (rows,).
        labels: uint16 (frames,), all rows' labels one after another; read-only.

    Raises:
        ValueError: If a file is absent or has another size than `meta.json` names, or the rows are no table of that many rows.
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
        """Compares the table of rows with its checksum, and each row's place with the lengths of the rows before it.

        Raises:
            ValueError: If it is not the table that was written.
        """
        self._check_checksum(self.rows_file, self._row_bytes, self.record["rows_checksum"])
        begins = np.cumsum(self.frames, dtype=np.uint64)
        wrong = np.flatnonzero(self.offset[1:] != begins[:-1]) + 1
        if len(self.offset) and self.offset[0]:
            wrong = np.array([0])
        if len(wrong) or (int(begins[-1]) if len(begins) else 0) != self.record["frames"]:
            where = f"row {wrong[0]} of the table" if len(wrong) else "the last row"
            raise ValueError(f"{self.rows_file} must list the rows without gaps, but {where} does not fit: {AGAIN}")

    def check_audio(self, number: int, index: Index, shard: int) -> None:
        """Compares the rows of one of the pack's shards with those of an index, and each row's place with the lengths before it.

        Args:
            number: Number of the shard in the pack.
            index: A shard set.
            shard: The same shard's number there.

        Raises:
            ValueError: If the rows are of other audio, have another number of frames than their audio, or do not follow one another.
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
        """Compares the labels of one of the pack's shards with their checksum and with the number of clusters.

        Raises:
            ValueError: If they are not those that were written.
        """
        first, stop = (int(row) for row in self._first_rows[number : number + 2])
        labels = self.labels[int(self._first_labels[number]) : int(self._first_labels[number + 1])]
        frames = self.frames[first:stop]
        self._check_classes(labels)
        if (
            int(frames.sum(dtype=np.uint64)) != len(labels)
            or _checksum_of_rows(labels, frames) != self._shard(number)["checksum"]
        ):
            raise ValueError(
                f"{self.labels_file} must hold the labels that meta.json names, but those of its shard {number + 1} (identity "
                f"{self._shard(number)['identity'][:12]}) have another checksum: {AGAIN}"
            )

    def check(self) -> np.ndarray:
        """Compares all of the pack with what `meta.json` names.

        Returns:
            int64 (classes,): frames of each label.

        Raises:
            ValueError: If a file is not the one that was written.
        """
        self.check_rows()
        counts = np.zeros(self._num_classes, dtype=np.int64)
        for number in range(len(self.record["shards"])):
            self.check_shard(number)
            labels = self.labels[int(self._first_labels[number]) : int(self._first_labels[number + 1])]
            counts += np.bincount(labels, minlength=len(counts))
        self._check_checksum(self.labels_file, self._label_bytes, self.record["labels_checksum"])
        self._whole = True
        # Or all labels of a corpus would count as this process's memory; the pages stay in the machine's file cache.
        release(self._label_bytes)
        return counts

    def check_once(self) -> None:
        """Checks all of the pack on the first call."""
        if not self._whole:
            self.check()

    def changed(self) -> bool:
        """Compares size, time and inode of both files with those of the mapped ones."""
        return self.state != (_state(self.labels_file), _state(self.rows_file))

    def check_changed(self) -> bool:
        """Checks a pack again whose files have changed since they were mapped.

        Returns:
            True if other files have taken the place of the mapped ones, which are read on.

        Raises:
            ValueError: If the mapped files themselves have other content or another size now.
        """
        if not self.changed():
            return False
        replaced = False
        found = []
        for file, before in ((self.labels_file, self.state[0]), (self.rows_file, self.state[1])):
            now = _state(file)
            found.append(before if now is None or now[:2] != before[:2] else now)
            replaced |= now is None or now[:2] != before[:2]
            if found[-1][2] != before[2]:  # to read beyond the end of a mapped file would end the process
                raise ValueError(
                    f"{file} must keep its {before[2]} bytes while it is in use, but has {found[-1][2]} now: {AGAIN}"
                )
        self.check()
        self.state = (found[0], found[1])
        return replaced

    def _shard(self, number: int) -> Mapping[str, Any]:
        shard: Mapping[str, Any] = self.record["shards"][number]
        return shard

    def _check_classes(self, labels: np.ndarray) -> None:
        largest = int(labels.max(initial=0))
        if largest >= self._num_classes:
            raise ValueError(
                f"labels must be below the {self._num_classes} clusters of their codebook, but {self.labels_file} has the label "
                f"{largest}: {AGAIN}"
            )

    @staticmethod
    def _check_checksum(file: Path, content: np.ndarray, expected: str) -> None:
        checksum = new_checksum()
        for start in range(0, len(content), _BLOCK_BYTES):
            checksum.update(content[start : start + _BLOCK_BYTES].data)
        if checksum.hexdigest() != expected:
            raise ValueError(
                f"{file} must have the checksum {expected[:12]} that meta.json names, but has {checksum.hexdigest()[:12]}: {AGAIN}"
            )


def _checksum_of_rows(labels: np.ndarray, frames: np.ndarray) -> str:
    """Checksum of a shard: of each row its number of labels as uint32, and its labels."""
    begins = np.cumsum(frames, dtype=np.int64) - frames
    lengths = np.ascontiguousarray(frames, dtype="<u4").view("<u2")
    checksum = new_checksum()
    checksum.update(np.insert(labels, np.repeat(begins, 2), lengths).data)
    return checksum.hexdigest()


State = tuple[int, int, int, int]


def _state(file: Path) -> State | None:
    """Device, inode, size in bytes and time of the last change of a file; None if there is none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def check_size(file: Path, expected: int) -> None:
    """Refuses a file of labels that is absent or of another size.

    Raises:
        ValueError: With both sizes in bytes.
    """
    found = file.stat().st_size if file.is_file() else None
    if found != expected:
        raise ValueError(f"{file} must have {expected} bytes, but {'is absent' if found is None else f'has {found}'}: {AGAIN}")


def _mapped(file: Path, size: int) -> tuple[np.ndarray, State]:
    """The bytes of a file of that size, mapped read-only; and the file's state."""
    check_size(file, size)
    with file.open("rb") as opened:
        found = os.fstat(opened.fileno())
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if found.st_size != size:
            raise ValueError(f"{file} must have {size} bytes, but has {found.st_size}: {AGAIN}")
        return map_open(opened.fileno(), size, file), state


def _table(content: np.ndarray, file: Path, rows: int) -> np.ndarray:
    """The records of a table of rows, `ROW_DTYPE` (rows,); the header is compared and never evaluated."""
    expected = f"{{'descr': {ROW_DTYPE.descr}, 'fortran_order': False, 'shape': ({rows},), }}"
    head = content[:10].tobytes()
    length = int.from_bytes(head[8:10], "little")
    header = content[10 : 10 + length].tobytes().rstrip(b" \n")
    if head[:8] != _MAGIC or header != expected.encode() or len(content) != 10 + length + rows * ROW_DTYPE.itemsize:
        raise ValueError(f"{file} must be a table of {rows} rows (offset, key, pcm, frames), but is not: {AGAIN}")
    return content[10 + length :].view(ROW_DTYPE)
