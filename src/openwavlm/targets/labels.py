"""Reading pseudo-labels: memory-mapped packs, bound to the audio by the identities of its shards."""

import hashlib
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.data.index import Index
from openwavlm.frames import num_frames
from openwavlm.targets.kmeans import Codebook, read_meta
from openwavlm.targets.label_packs import GRID, NEWEST_FORMAT_VERSION, labels_file, rows_file
from openwavlm.targets.unknown_codebook import IMPORTED, UnknownCodebook

_MADE_BY = "data_prep/assign_labels.py"
# Labels ≥ K are looked for in this many chunks of this many packs: the whole of a small labelling, seconds of a large one.
_SAMPLED_PACKS = 16
_SAMPLED_CHUNKS = 4
_CHUNK_LABELS = 65_536


class Pack:
    """One pack, mapped into memory.

    Attributes:
        table: One `ROW_DTYPE` record a row.
        labels: uint16 (frames,), all rows' labels one after another.
    """

    def __init__(self, folder: Path, name: str, *, frames: int):
        table = np.load(rows_file(folder, name), mmap_mode="r").view(np.ndarray)
        self.table = table
        self.offset, self.frames = table["offset"], table["frames"]
        # An empty file cannot be mapped.
        self.labels = (
            np.memmap(labels_file(folder, name), dtype="<u2", mode="r").view(np.ndarray) if frames else np.zeros(0, dtype="<u2")
        )


class LabelPacks:
    """A labelling by itself: `meta.json`, its packs and its codebook, not yet bound to any audio.

    Attributes:
        path: The folder.
        meta: What `meta.json` says.
        codebook: The centroids, checked against the hash in `meta.json`.
    """

    def __init__(self, path: Path, meta: dict[str, Any], codebook: Codebook):
        self.path, self.meta, self.codebook = path, meta, codebook
        self.place = {
            shard["identity"]: (number, place, first_label)
            for number, pack in enumerate(meta["packs"])
            for shard, place, first_label in zip(pack["shards"], _begins(pack, "rows"), _begins(pack, "frames"), strict=True)
        }

    @classmethod
    def open(cls, path: Path | str) -> "LabelPacks":
        """Opens a labelling.

        Raises:
            ValueError: If it is not finished, is of a newer format, lies on another frame grid, has another codebook than its
                `meta.json` names, or has a file of another size.
        """
        path = Path(path)
        meta = read_meta(path, kind="labels", newest=NEWEST_FORMAT_VERSION, made_by=_MADE_BY)
        for name, expected in GRID.items():
            if meta[name] != expected:
                raise ValueError(
                    f"labels must lie on the model's frame grid, {name} = {expected:g}, but those in {path} have {name} = "
                    f"{meta[name]:g}: make them again with {_MADE_BY}"
                )
        codebook = _codebook_of(path, meta)
        if len(codebook) != meta["num_classes"]:
            raise ValueError(
                f"{path / 'codebook.npy'} must have the {meta['num_classes']} clusters that meta.json names, but has "
                f"{len(codebook)}: copy the folder again or make the labels again with {_MADE_BY}"
            )
        if codebook.hash != meta["codebook_hash"]:
            raise ValueError(
                f"{path / 'codebook.npy'} must have the hash {meta['codebook_hash'][:12]} that meta.json names, but has "
                f"{codebook.hash[:12]}: copy the folder again or make the labels again with {_MADE_BY}"
            )
        for pack in meta["packs"]:
            for file, size in (
                (labels_file(path, pack["name"]), pack["labels_bytes"]),
                (rows_file(path, pack["name"]), pack["rows_bytes"]),
            ):
                found = file.stat().st_size if file.is_file() else None
                if found != size:
                    raise ValueError(
                        f"{file} must have {size} bytes, but {'is absent' if found is None else f'has {found}'}: copy the folder "
                        f"again, or delete it and make the labels again with {_MADE_BY}"
                    )
        return cls(path, meta, codebook)

    def pack(self, number: int) -> Pack:
        """Maps one pack."""
        return Pack(self.path, self.meta["packs"][number]["name"], frames=self.meta["packs"][number]["frames"])

    def missing(self, index: Index) -> list[int]:
        """Shards of the index that have no labels here, in index order."""
        return [number for number, shard in enumerate(index.shards) if shard.identity not in self.place]


def _codebook_of(path: Path, meta: dict[str, Any]) -> Codebook:
    """The centroids; of labels that were imported without them only their number and the hash of the files."""
    if meta.get("centroids") == "unknown" and meta["features"].get("name") == IMPORTED:
        return UnknownCodebook.of(meta["num_classes"], meta["codebook_hash"], meta["features"], meta["codebook_fitted"])
    return Codebook.load_arrays(path, meta["features"], meta["codebook_fitted"])


def _begins(pack: dict[str, Any], what: str) -> list[int]:
    """Number of the pack's first row, or first label (`frames`), of each of its shards."""
    return np.cumsum([0, *(shard[what] for shard in pack["shards"])])[:-1].tolist()


class LabelStore:
    """The labels of one index's rows; pickles as a path and small tables, and maps packs on first use.

    Attributes:
        path: The labelling.
        num_classes: Number of clusters K.
        codebook_hash: Hash of the codebook that all labels come from.
        codebook_fitted: What the codebook was fitted on (index fingerprints, held-out share, …); empty if unknown.
        fingerprint: Hash of the codebook and of the labels of this index's shards; packs and other shards do not enter.
        label_counts: int64 (classes,) frames of each label in the whole labelling.
    """

    path: Path
    num_classes: int
    codebook_hash: str
    fingerprint: str
    label_counts: np.ndarray

    def __init__(self, packs: LabelPacks, index: Index):
        self.path = packs.path
        self.num_classes = int(packs.meta["num_classes"])
        self.codebook_hash = str(packs.meta["codebook_hash"])
        self.codebook_fitted = packs.codebook.fitted
        self.label_counts = np.array(packs.meta["label_counts"], dtype=np.int64)
        self._pack_frames = [(pack["name"], int(pack["frames"])) for pack in packs.meta["packs"]]
        # Plain lists: indexing them costs a tenth of indexing an array on the hot path.
        self._first_row: list[int] = np.asarray(index.first_row).tolist()
        places = [packs.place[shard.identity] for shard in index.shards]
        self._pack_of_shard = [pack for pack, _, _ in places]
        self._shift = [place - first for (_, place, _), first in zip(places, self._first_row, strict=False)]
        self._packs: dict[int, Pack] = {}
        checksums = {shard["identity"]: shard["checksum"] for pack in packs.meta["packs"] for shard in pack["shards"]}
        entries = sorted(f"{shard.identity} {checksums[shard.identity]}" for shard in index.shards)
        self.fingerprint = hashlib.blake2b("\n".join([self.codebook_hash, *entries]).encode(), digest_size=16).hexdigest()

    @classmethod
    def open(cls, path: Path | str, index: Index) -> "LabelStore":
        """Opens a labelling for an index, with every check that can be made without audio.

        Raises:
            ValueError: What `LabelPacks.open` refuses; a shard of the index without labels; a row whose number of frames is not
                that of its audio, or whose labels do not begin where those of the row before it end; a label that the codebook does
                not have.
        """
        packs = LabelPacks.open(path)
        _check_covered(packs, index)
        store = cls(packs, index)
        store._check_frames(index, packs)
        store._check_classes()
        return store

    def read(self, row: int, start_frame: int = 0, num_frames: int | None = None) -> np.ndarray:
        """Labels of a row of the index, or of some of its frames.

        Args:
            row: Row of the index.
            start_frame: First frame.
            num_frames: How many; None: to the end.

        Returns:
            uint16 (frames,), read-only, mapped from the file. Empty for a row whose audio could not be read when it was labelled.

        Raises:
            ValueError: If the row has not that many frames.
        """
        shard = bisect_right(self._first_row, row) - 1
        number = self._pack_of_shard[shard]
        pack = self._packs.get(number) or self._map(number)
        place = row + self._shift[shard]
        frames, offset = int(pack.frames[place]), int(pack.offset[place])
        if frames == 0:
            return pack.labels[:0]
        stop = frames if num_frames is None else start_frame + num_frames
        if not 0 <= start_frame <= stop <= frames:
            raise ValueError(
                f"frames [{start_frame}, {stop}) were asked of row {row} of {self.path}, which has {frames}: the plan and the labels "
                "must come from the same index"
            )
        return pack.labels[offset + start_frame : offset + stop]

    def _map(self, number: int) -> Pack:
        name, frames = self._pack_frames[number]
        self._packs[number] = Pack(self.path, name, frames=frames)
        return self._packs[number]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packs": {}}

    def _check_frames(self, index: Index, packs: LabelPacks) -> None:
        """Compares the row tables with the index, and each row's place with the lengths of the rows before it in the pack."""
        for shard, number in enumerate(self._pack_of_shard):
            rows = slice(self._first_row[shard], self._first_row[shard + 1])
            places = slice(rows.start + self._shift[shard], rows.stop + self._shift[shard])
            pack = self._packs.get(number) or self._map(number)
            frames, offset = pack.frames[places], pack.offset[places]
            expected = num_frames(np.asarray(index.num_samples[rows], dtype=np.int64))
            _, _, first_label = packs.place[index.shards[shard].identity]
            begins = first_label + np.cumsum(frames, dtype=np.int64) - frames
            if len(frames) != len(expected):
                wrong, found, wanted = rows.start, f"{len(frames)} rows", f"{len(expected)}"
            elif ((frames != expected) & (frames != 0)).any():
                first = int(np.argmax((frames != expected) & (frames != 0)))
                wrong, found, wanted = rows.start + first, f"{frames[first]} frames", f"{expected[first]}"
            elif (offset != begins).any():
                first = int(np.argmax(offset != begins))
                wrong, found, wanted = rows.start + first, f"labels from {offset[first]} on", f"{begins[first]}"
            else:
                continue
            raise ValueError(
                f"labels must have exactly one entry a model frame, but from row {wrong} ({index.shards[shard].name}) on there are "
                f"{found} instead of {wanted} in {self.path}: make the labels of these shards again with {_MADE_BY}"
            )

    def _check_classes(self) -> None:
        """Looks for labels that the codebook does not have, in a sample."""
        used = sorted(set(self._pack_of_shard))
        for number in used[:: max(1, len(used) // _SAMPLED_PACKS)]:
            labels = self._packs[number].labels
            step = max(_CHUNK_LABELS, len(labels) // _SAMPLED_CHUNKS)
            for start in range(0, len(labels), step):
                largest = int(labels[start : start + _CHUNK_LABELS].max())
                if largest >= self.num_classes:
                    raise ValueError(
                        f"labels must be below the {self.num_classes} clusters of their codebook, but "
                        f"{labels_file(self.path, self._pack_frames[number][0])} has the label {largest}: copy the folder again, or "
                        f"delete it and make the labels again with {_MADE_BY}"
                    )


def _check_covered(packs: LabelPacks, index: Index) -> None:
    missing = packs.missing(index)
    if missing:
        raise ValueError(
            f"every shard of {index.path} must have labels in {packs.path}, but {len(missing)} of {len(index.shards)} have none (for "
            f"example {index.shards[missing[0]].name}): label them with `python {_MADE_BY} shards={index.path} codebook=FOLDER "
            f"output={packs.path}`, by the codebook of those labels, or carry labels of the same audio over with mode=rebind"
        )
