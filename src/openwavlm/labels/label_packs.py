"""Label format on disk (docs/data.md): writer of packs, writer and reader of `meta.json`, the finished mark.

A row of unreadable audio has 0 frames; the loader treats it as unreadable.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from openwavlm.audio.frames import FRAME_RATE_HZ, HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, num_frames
from openwavlm.labels.kmeans import MAX_CLUSTERS, Codebook, UnknownCodebook, read_meta
from openwavlm.runtime.atomic import atomic_file, digest_of, write_json
from openwavlm.runtime.files import Fields
from openwavlm.runtime.sealed import CHECKSUM, checksum_of, sealed
from openwavlm.shards.index import Index, ShardInfo

# 1 and 2 (of labels without centroids) have no checksum of `meta.json` itself; `labelling.upgrade_labels` adds it.
FORMAT_VERSION = 3
MAX_PACKS = 256
ROW_DTYPE = np.dtype([("offset", "<u8"), ("key", "<u8"), ("pcm", "<u8"), ("frames", "<u4")])
GRID = {"hop_samples": HOP_SAMPLES, "receptive_field_samples": RECEPTIVE_FIELD_SAMPLES, "label_rate_hz": FRAME_RATE_HZ}
MADE_BY = "openwavlm assign-labels"
AGAIN = f"copy the folder again, or delete it and make it again with {MADE_BY}"
_FIRST_WITH_CHECKSUM = 3
_TOTALS = ("rows", "frames", "unreadable_rows")


def labels_file(folder: Path, pack: str) -> Path:
    """Path of a pack's labels."""
    return folder / f"{pack}.u16"


def rows_file(folder: Path, pack: str) -> Path:
    """Path of a pack's table of rows."""
    return folder / f"{pack}.rows.npy"


def new_checksum() -> "hashlib.blake2b":
    """Empty checksum, as used for every file and shard of labels."""
    return hashlib.blake2b(digest_size=16)


def file_checksum(path: Path) -> str:
    """Checksum of a file's bytes."""
    return digest_of(path, new_checksum)


class PackResult(NamedTuple):
    """A finished pack's entry in `meta.json`, and frames of each label, int64 (classes,)."""

    record: dict[str, Any]
    label_counts: np.ndarray


def write_packs(
    folders: Sequence[Path],
    pack: str,
    index: Index,
    shards: Sequence[int],
    labels_of_row: Callable[[int], Sequence[np.ndarray | None]],
    num_classes: Sequence[int],
) -> list[PackResult]:
    """Writes the pack of the same shards in several labellings; each row is read once.

    Args:
        folders: Labellings.
        pack: Name of the pack, `pack-00000`, in all of them.
        index: Index of the shard set.
        shards: Consecutive shards of the index.
        labels_of_row: Labels (frames,) of an index row in each labelling; None where its audio is unreadable.
        num_classes: Number of clusters K of each labelling.
    """
    parts = [np.arange(index.first_row[shard], index.first_row[shard + 1]) for shard in shards]
    rows = np.concatenate(parts)
    expected = num_frames(np.asarray(index.num_samples[rows], dtype=np.int64))
    with ExitStack() as stack:
        files = [stack.enter_context(atomic_file(labels_file(folder, pack))) for folder in folders]
        writers = [_PackWriter(file, classes) for file, classes in zip(files, num_classes, strict=True)]
        for shard, part in zip(shards, parts, strict=True):
            found = [labels_of_row(row) for row in part.tolist()]
            for number, writer in enumerate(writers):
                writer.add(index.shards[shard], [of_row[number] for of_row in found], expected[len(writer.frames) :])
    results = []
    for folder, writer in zip(folders, writers, strict=True):
        table = np.zeros(len(rows), dtype=ROW_DTYPE)
        table["key"], table["pcm"], table["frames"] = index.key[rows], index.pcm[rows], writer.frames
        table["offset"] = np.cumsum(writer.frames, dtype=np.int64) - writer.frames
        with atomic_file(rows_file(folder, pack)) as file:
            np.save(file, table)
        record = {
            "name": pack,
            "rows": len(table),
            "frames": sum(writer.frames),
            "unreadable_rows": int(np.count_nonzero((table["frames"] == 0) & (expected > 0))),
            "labels_bytes": labels_file(folder, pack).stat().st_size,
            "labels_checksum": file_checksum(labels_file(folder, pack)),
            "rows_bytes": rows_file(folder, pack).stat().st_size,
            "rows_checksum": file_checksum(rows_file(folder, pack)),
            "shards": writer.shards,
        }
        results.append(PackResult(record, writer.counts))
    return results


class _PackWriter:
    """Writer of one pack: frames of each row, frames of each label, and the entry in `meta.json` of each shard so far."""

    def __init__(self, file: BinaryIO, num_classes: int) -> None:
        self._file, self.counts = file, np.zeros(num_classes, dtype=np.int64)
        self.frames: list[int] = []
        self.shards: list[dict[str, Any]] = []

    def add(self, shard: ShardInfo, found: Sequence[np.ndarray | None], expected: np.ndarray) -> None:
        """Appends the labels of a shard's rows, of these lengths unless they are None."""
        rows = [np.zeros(0, dtype="<u2") if of_row is None else of_row.astype("<u2") for of_row in found]
        frames = [len(row) for row in rows]
        assert all(of_row is None or len(of_row) == count for of_row, count in zip(found, expected.tolist(), strict=False))
        labels = np.concatenate([np.zeros(0, dtype="<u2"), *rows])
        self.counts += np.bincount(labels, minlength=len(self.counts))
        record = {
            "rows": len(rows),
            "frames": len(labels),
            "checksum": checksum_of_rows(labels, np.array(frames, dtype=np.int64)),
        }
        self.shards.append({"identity": shard.identity, "metadata": shard.metadata, **record})
        self.frames += frames
        self._file.write(labels.tobytes())


def checksum_of_rows(labels: np.ndarray, frames: np.ndarray) -> str:
    """Checksum of a shard's labels; it covers the number of labels of each row (uint32) too, so that a moved border changes it."""
    begins = np.cumsum(frames, dtype=np.int64) - frames
    lengths = np.ascontiguousarray(frames, dtype="<u4").view("<u2")
    checksum = new_checksum()
    checksum.update(np.insert(labels, np.repeat(begins, 2), lengths).data)
    return checksum.hexdigest()


def write_labels_meta(folder: Path, codebook: Codebook, packs: list[dict[str, Any]], label_counts: np.ndarray) -> dict[str, Any]:
    """Writes and returns `meta.json`, the finished mark; all files that it names must exist.

    Args:
        folder: Labelling.
        codebook: Its codebook; training reads in the record of its fit which speakers were held out.
        packs: `PackResult.record` of every pack, in order.
        label_counts: int64 (classes,) frames of each label, over all packs.
    """
    meta = {
        "format_version": FORMAT_VERSION,
        "kind": "labels",
        **({"centroids": "unknown"} if isinstance(codebook, UnknownCodebook) else {}),
        "codebook_hash": codebook.hash,
        "num_classes": len(label_counts),
        **GRID,
        "dtype": "<u2",
        "features": codebook.features,
        "codebook_fitted": codebook.fitted,
        "shards": sum(len(pack["shards"]) for pack in packs),
        **{name: sum(pack[name] for pack in packs) for name in _TOTALS},
        "label_counts": [int(count) for count in label_counts],
        "packs": packs,
    }
    meta = sealed(meta)
    write_json(folder / "meta.json", meta)
    return meta


def read_labels_meta(folder: Path) -> dict[str, Any]:
    """Reads `meta.json` of a labelling of any format; checks names, types, ranges, totals and checksum.

    Raises:
        ValueError: If the labelling is not finished, has a newer format or another frame grid, or its `meta.json` is damaged.
    """
    head = read_meta(folder, kind="labels", newest=FORMAT_VERSION, made_by=MADE_BY)
    for name, expected in GRID.items():
        if (found := head.number(name)) != expected:
            raise ValueError(
                f"labels must lie on the model's frame grid, {name} = {expected:g}, but those in {folder} have {name} = "
                f"{found:g}: make them again with {MADE_BY}"
            )
    _check_head(head)
    packs = head.objects("packs")
    for pack in packs:
        check_record(pack)
    names = [pack.text("name") for pack in packs]
    identities = [shard.text("identity") for pack in packs for shard in pack.objects("shards")]
    if len(set(names)) < len(names) or len(set(identities)) < len(identities):
        raise ValueError(f"{head.where} names a pack or a shard twice: {AGAIN}")
    _check_sum(head, "shards", len(identities))
    for name in _TOTALS:
        _check_sum(head, name, sum(pack.integer(name) for pack in packs))
    has_checksum = head.integer("format_version", 1) >= _FIRST_WITH_CHECKSUM or CHECKSUM in head.values
    if has_checksum and head.text(CHECKSUM) != checksum_of(head.values):
        raise ValueError(f"{head.where} is damaged (its own checksum does not hold): {AGAIN}")
    return head.values


def _check_head(head: Fields) -> None:
    classes = head.integer("num_classes", 1, MAX_CLUSTERS)
    head.text("codebook_hash")
    head.mapping("features")
    fitted = Fields(head.mapping("codebook_fitted"), f"{head.where}, codebook_fitted", AGAIN)
    if "split_seed" in fitted.values:
        fitted.integer("split_seed", -(2**63))
        if not 0 <= fitted.number("validation_share") < 1:
            raise fitted.refusal("validation_share", "a number in [0, 1)", fitted.values["validation_share"])
        if "indexes" in fitted.values:
            fitted.texts("indexes")
    for name, allowed in (("dtype", "<u2"), ("centroids", "unknown")):
        if name in head.values and head.text(name) != allowed:
            raise head.refusal(name, allowed, head.values[name])
    counts = head.lists("label_counts")
    if len(counts) != classes or not all(type(count) is int and count >= 0 for count in counts):
        raise head.refusal("label_counts", f"a list of {classes} whole numbers from 0 on", counts)
    _check_sum(head, "frames", sum(counts))


def check_record(pack: Fields) -> None:
    """Raises `ValueError` if a field of a pack's record is absent or out of range, or its shards do not add up."""
    # Files are opened by this name, so it must not contain the path of another folder.
    if not re.fullmatch(r"pack-[0-9]{5,9}|shard-[0-9a-f]{32}", pack.text("name")):
        raise pack.refusal("name", "a name as pack-00000", pack.values["name"])
    for name in ("labels_checksum", "rows_checksum"):
        _check_checksum(pack, name)
    if "computed_on" in pack.values:
        pack.text("computed_on")
    shards = pack.objects("shards")
    for shard in shards:
        shard.text("identity")
        _check_checksum(shard, "checksum")
    for name in ("rows", "frames"):
        _check_sum(pack, name, sum(shard.integer(name) for shard in shards))
    _check_sum(pack, "labels_bytes", 2 * pack.integer("frames"))
    pack.integer("unreadable_rows", 0, pack.integer("rows"))
    pack.integer("rows_bytes", pack.integer("rows") * ROW_DTYPE.itemsize)


def _check_checksum(fields: Fields, name: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{32}", fields.text(name)):
        raise fields.refusal(name, "a checksum of 32 hexadecimal digits", fields.values[name])


def _check_sum(fields: Fields, name: str, total: int) -> None:
    if fields.integer(name) != total:
        raise ValueError(f"{fields.where}: {name} is {fields.integer(name)}, but its parts add up to {total}: {AGAIN}")
