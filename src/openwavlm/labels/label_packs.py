"""The label format on disk and its writers: packs of uint16 labels with a table of rows, and `meta.json` as the finished mark.

    labels/NAME/pack-00000.u16        labels of whole consecutive shards, one little-endian uint16 a model frame
                pack-00000.rows.npy   one record a row: offset (first label), key, pcm, frames
                codebook.npy          float32 (clusters, dim); not of imported labels whose centroids nobody has
                feature_norm.npy      float32 (2, dim), mean and deviation; only of standardised features
                meta.json             what the labels are, and which shards (by identity) each pack covers

A row of audio that could not be read has 0 frames: the loader treats it as unreadable.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from openwavlm.audio.frames import FRAME_RATE_HZ, HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, num_frames
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.unknown_codebook import UnknownCodebook
from openwavlm.runtime.atomic import atomic_file, digest_of, write_json
from openwavlm.runtime.sealed import sealed
from openwavlm.shards.index import Index

# 1 and 2 (of labels without centroids) have no checksum of `meta.json` itself; `labels.upgrade` adds it.
FORMAT_VERSION = 3
MAX_PACKS = 256
ROW_DTYPE = np.dtype([("offset", "<u8"), ("key", "<u8"), ("pcm", "<u8"), ("frames", "<u4")])
GRID = {"hop_samples": HOP_SAMPLES, "receptive_field_samples": RECEPTIVE_FIELD_SAMPLES, "label_rate_hz": FRAME_RATE_HZ}


def labels_file(folder: Path, pack: str) -> Path:
    """Where a pack's labels lie."""
    return folder / f"{pack}.u16"


def rows_file(folder: Path, pack: str) -> Path:
    """Where a pack's table of rows lies."""
    return folder / f"{pack}.rows.npy"


def new_checksum() -> "hashlib.blake2b":
    """The checksum of every file and shard of labels, to be updated with bytes."""
    return hashlib.blake2b(digest_size=16)


def file_checksum(path: Path) -> str:
    """Checksum of a file's bytes."""
    return digest_of(path, new_checksum)


@dataclass(frozen=True)
class PackResult:
    """One finished pack.

    Attributes:
        record: The pack's entry in `meta.json`.
        label_counts: int64 (classes,) frames of each label.
    """

    record: dict[str, Any]
    label_counts: np.ndarray


def write_pack(
    folder: Path,
    pack: str,
    index: Index,
    shards: Sequence[int],
    label_row: Callable[[int], np.ndarray | None],
    num_classes: int,
) -> PackResult:
    """Writes the labels of whole shards; `write_packs` of one labelling.

    Args:
        folder: The labelling.
        pack: The pack's name, `pack-00000`.
        index: The shard set.
        shards: Consecutive shards of the index.
        label_row: Labels (frames,) of an index row, or None if its audio cannot be read.
        num_classes: Number of clusters K.

    Returns:
        The pack's entry for `meta.json` and its label counts.
    """
    return write_packs([folder], pack, index, shards, lambda row: [label_row(row)], [num_classes])[0]


def write_packs(
    folders: Sequence[Path],
    pack: str,
    index: Index,
    shards: Sequence[int],
    labels_of_row: Callable[[int], Sequence[np.ndarray | None]],
    num_classes: Sequence[int],
) -> list[PackResult]:
    """Writes the pack of the same shards in several labellings, row by row, so that each row is read once.

    Args:
        folders: The labellings.
        pack: The pack's name in all of them.
        index: The shard set.
        shards: Consecutive shards of the index.
        labels_of_row: Labels (frames,) of an index row in each labelling, None where its audio cannot be read.
        num_classes: Number of clusters K of each.

    Returns:
        Each labelling's entry for `meta.json` and its label counts.
    """
    rows = np.concatenate([np.arange(index.first_row[shard], index.first_row[shard + 1]) for shard in shards])
    expected = num_frames(np.asarray(index.num_samples[rows], dtype=np.int64))
    empty = np.zeros(len(rows), dtype=ROW_DTYPE)
    empty["key"], empty["pcm"] = index.key[rows], index.pcm[rows]
    with ExitStack() as stack:
        writers = [
            _PackWriter(stack.enter_context(atomic_file(labels_file(folder, pack))), empty.copy(), classes)
            for folder, classes in zip(folders, num_classes, strict=True)
        ]
        place = 0
        for shard in shards:
            for row in range(int(index.first_row[shard]), int(index.first_row[shard + 1])):
                for writer, labels in zip(writers, labels_of_row(row), strict=True):
                    writer.add(labels, int(expected[place]))
                place += 1
            for writer in writers:
                writer.end_shard(index.shards[shard].identity, index.shards[shard].metadata)
    results = []
    for folder, writer in zip(folders, writers, strict=True):
        with atomic_file(rows_file(folder, pack)) as file:
            np.save(file, writer.table)
        record = {
            "name": pack,
            "rows": len(writer.table),
            "frames": int(writer.table["frames"].sum()),
            "unreadable_rows": int(np.count_nonzero((writer.table["frames"] == 0) & (expected > 0))),
            "labels_bytes": labels_file(folder, pack).stat().st_size,
            "labels_checksum": file_checksum(labels_file(folder, pack)),
            "rows_bytes": rows_file(folder, pack).stat().st_size,
            "rows_checksum": file_checksum(rows_file(folder, pack)),
            "shards": writer.shards,
        }
        results.append(PackResult(record, writer.counts))
    return results


class _PackWriter:
    """A pack that grows by a row at a time.

    Attributes:
        table: One `ROW_DTYPE` record a row; keys are filled in already, places as the rows come.
        counts: int64 (classes,) frames of each label so far.
        shards: The entry in `meta.json` of each finished shard.
    """

    def __init__(self, file: BinaryIO, table: np.ndarray, num_classes: int) -> None:
        self._file, self.table = file, table
        self.counts = np.zeros(num_classes, dtype=np.int64)
        self.shards: list[dict[str, Any]] = []
        self._place, self._first, self._checksum = 0, 0, new_checksum()

    def add(self, found: np.ndarray | None, frames: int) -> None:
        """Appends the labels of the next row, which has so many frames."""
        labels = np.zeros(0, dtype="<u2") if found is None else np.ascontiguousarray(found, dtype="<u2")
        assert found is None or len(labels) == frames
        self.table["offset"][self._place] = self._file.tell() // labels.itemsize
        self.table["frames"][self._place] = len(labels)
        self.counts += np.bincount(labels, minlength=len(self.counts))
        # The length goes in first: moving a border between rows must change the sum.
        self._checksum.update(len(labels).to_bytes(4, "little") + labels.tobytes())
        self._file.write(labels.tobytes())
        self._place += 1

    def end_shard(self, identity: str, metadata: str) -> None:
        """Notes that the rows since the last shard are this one's."""
        frames = int(self.table["frames"][self._first : self._place].sum())
        checksum, rows = self._checksum.hexdigest(), self._place - self._first
        self.shards.append({"identity": identity, "metadata": metadata, "rows": rows, "frames": frames, "checksum": checksum})
        self._first, self._checksum = self._place, new_checksum()


def write_labels_meta(folder: Path, codebook: Codebook, packs: list[dict[str, Any]], label_counts: np.ndarray) -> dict[str, Any]:
    """Writes `meta.json`, the finished mark, by rename; everything that it names must be there already.

    Args:
        folder: The labelling.
        codebook: The codebook in it; what it was fitted on is kept, so that a run can tell whether it heard held-out speakers.
        packs: `PackResult.record` of every pack, in order.
        label_counts: int64 (classes,) frames of each label, over all packs.

    Returns:
        What was written.
    """
    unknown = isinstance(codebook, UnknownCodebook)
    meta = {
        "format_version": FORMAT_VERSION,
        "kind": "labels",
        **({"centroids": "unknown"} if unknown else {}),
        "codebook_hash": codebook.hash,
        "num_classes": len(label_counts),
        **GRID,
        "dtype": "<u2",
        "features": codebook.features,
        "codebook_fitted": codebook.fitted,
        "shards": sum(len(pack["shards"]) for pack in packs),
        "rows": sum(pack["rows"] for pack in packs),
        "frames": sum(pack["frames"] for pack in packs),
        "unreadable_rows": sum(pack["unreadable_rows"] for pack in packs),
        "label_counts": [int(count) for count in label_counts],
        "packs": packs,
    }
    write_json(folder / "meta.json", sealed(meta))
    return sealed(meta)
