"""Reading pseudo-labels: memory-mapped packs, checked against their checksums and bound to the audio by its identities."""

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.label_meta import AGAIN, MADE_BY, read_labels_meta
from openwavlm.labels.label_packs import labels_file, rows_file
from openwavlm.labels.pack import Pack, check_size
from openwavlm.labels.unknown_codebook import IMPORTED, UnknownCodebook
from openwavlm.runtime.randomness import stable_hash
from openwavlm.shards.index import Index

# Labels of about 1,490 h: compared with their checksums in seconds.
AT_ONCE_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where the labels of a shard lie.

    Attributes:
        pack: Number of the pack.
        shard: Number of the shard within it.
        first_row: The shard's first row in the pack's table.
    """

    pack: int
    shard: int
    first_row: int


class LabelPacks:
    """A labelling by itself: `meta.json`, its packs and its codebook, not yet bound to any audio.

    Attributes:
        path: The folder.
        meta: What `meta.json` says.
        codebook: The centroids, checked against the hash in `meta.json`.
        place: Where the labels of each shard lie, by its identity.
    """

    def __init__(self, path: Path, meta: dict[str, Any], codebook: Codebook):
        self.path, self.meta, self.codebook = path, meta, codebook
        self._packs: dict[int, Pack] = {}
        self.place = {
            shard["identity"]: Place(pack, number, first_row)
            for pack, record in enumerate(meta["packs"])
            for number, (shard, first_row) in enumerate(zip(record["shards"], _first_rows(record), strict=True))
        }

    @classmethod
    def open(cls, path: Path | str) -> "LabelPacks":
        """Opens a labelling.

        Raises:
            ValueError: If it is not finished, is of a newer format, lies on another frame grid, has another codebook than its
                `meta.json` names, or has a file of another size.
        """
        path = Path(path)
        meta = read_labels_meta(path)
        codebook = _codebook_of(path, meta)
        if len(codebook) != meta["num_classes"]:
            raise ValueError(
                f"{path / 'codebook.npy'} must have the {meta['num_classes']} clusters that meta.json names, but has "
                f"{len(codebook)}: copy the folder again or make the labels again with {MADE_BY}"
            )
        if codebook.hash != meta["codebook_hash"]:
            raise ValueError(
                f"{path / 'codebook.npy'} must have the hash {meta['codebook_hash'][:12]} that meta.json names, but has "
                f"{codebook.hash[:12]}: copy the folder again or make the labels again with {MADE_BY}"
            )
        for pack in meta["packs"]:
            check_size(labels_file(path, pack["name"]), pack["labels_bytes"])
            check_size(rows_file(path, pack["name"]), pack["rows_bytes"])
        return cls(path, meta, codebook)

    def pack(self, number: int) -> Pack:
        """Maps one pack, once, without looking at its content.

        Raises:
            ValueError: As `Pack` does.
        """
        if number not in self._packs:
            self._packs[number] = Pack(self.path, self.meta["packs"][number], self.meta["num_classes"])
        return self._packs[number]

    def check(self) -> None:
        """Reads all packs against their checksums.

        Raises:
            ValueError: If a file is not the one that was written, or the labels' counts are not those of `meta.json`.
        """
        counts = sum(self.pack(number).check() for number in range(len(self.meta["packs"])))
        self.check_counts(np.asarray(counts))

    def check_counts(self, counts: np.ndarray) -> None:
        """Compares `label_counts` of `meta.json` with a count.

        Args:
            counts: int64 (classes,): frames of each label, over all packs.

        Raises:
            ValueError: If they differ.
        """
        if counts.tolist() != self.meta["label_counts"]:
            raise ValueError(f"{self.path / 'meta.json'} must count the labels of its packs, but has other label_counts: {AGAIN}")

    def missing(self, index: Index) -> list[int]:
        """Shards of the index that have no labels here, in index order."""
        return [number for number, shard in enumerate(index.shards) if shard.identity not in self.place]


def _codebook_of(path: Path, meta: dict[str, Any]) -> Codebook:
    """The centroids; of labels that were imported without them only their number and the hash of the files."""
    if meta.get("centroids") == "unknown" and meta["features"].get("name") == IMPORTED:
        return UnknownCodebook.of(meta["num_classes"], meta["codebook_hash"], meta["features"], meta["codebook_fitted"])
    try:
        return Codebook.load_arrays(path, meta["features"], meta["codebook_fitted"])
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"the codebook in {path} is damaged ({error})") from error


def _first_rows(pack: dict[str, Any]) -> list[int]:
    """Number of the first row of each of a pack's shards in its table."""
    return np.cumsum([0, *(shard["rows"] for shard in pack["shards"])])[:-1].tolist()


class LabelStore:
    """The labels of one index's rows; pickles as a path and small tables, and maps packs on first use.

    Labels are compared with their checksums before a row of their shard is read, at the latest.

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
        self._labelling: LabelPacks | None = packs
        # Plain lists: indexing them costs a tenth of indexing an array on the hot path.
        self._first_row: list[int] = np.asarray(index.first_row).tolist()
        places = [packs.place[shard.identity] for shard in index.shards]
        self._pack_of_shard = [place.pack for place in places]
        self._shard_of_pack = [place.shard for place in places]
        self._shift = [place.first_row - first for place, first in zip(places, self._first_row, strict=False)]
        self._checked = [False] * len(places)
        self._packs: dict[int, Pack] = {}
        self._states: dict[int, tuple[Any, ...]] = {}
        checksums = {shard["identity"]: shard["checksum"] for pack in packs.meta["packs"] for shard in pack["shards"]}
        entries = sorted(f"{shard.identity} {checksums[shard.identity]}" for shard in index.shards)
        self.fingerprint = hashlib.blake2b("\n".join([self.codebook_hash, *entries]).encode(), digest_size=16).hexdigest()

    @classmethod
    def open(cls, path: Path | str, index: Index, *, at_once_bytes: int | None = AT_ONCE_BYTES) -> "LabelStore":
        """Opens a labelling for an index, with every check that can be made without audio.

        Args:
            path: The labelling.
            index: The shard set.
            at_once_bytes: Labels of up to this size are compared with their checksums as a whole; of larger ones so much is, at least
                one shard of each pack, and of the rest each shard before a row of it is read. None: nothing is compared.

        Raises:
            ValueError: What `LabelPacks.open` refuses; a shard of the index without labels, or with other speakers, recordings, sources
                or languages than when it was labelled; a row that is of other audio than the
                index's, whose number of frames is not that of its audio, or whose labels do not begin where those of the row before
                it end; a label that the codebook does not have; a file that is not the one that was written.
        """
        packs = LabelPacks.open(path)
        _check_covered(packs, index)
        check_names(packs, index)
        store = cls(packs, index)
        for number in store.used:
            store._map(number)
        store._check_rows(index)
        if at_once_bytes is None:
            store.leave_to_watch()
        else:
            store._check_content(at_once_bytes)
        return store

    @property
    def used(self) -> list[int]:
        """Numbers of the packs that hold rows of the index."""
        return sorted(set(self._pack_of_shard))

    def read(self, row: int, start_frame: int = 0, num_frames: int | None = None) -> np.ndarray:
        """Labels of a row of the index, or of some of its frames.

        Args:
            row: Row of the index.
            start_frame: First frame.
            num_frames: How many; None: to the end.

        Returns:
            uint16 (frames,), read-only, mapped from the file. Empty for a row whose audio could not be read when it was labelled.

        Raises:
            ValueError: If the row has not that many frames, or the labels of its shard are not those that were written.
        """
        shard = bisect_right(self._first_row, row) - 1
        number = self._pack_of_shard[shard]
        pack = self._packs.get(number) or self._map(number)
        if not self._checked[shard]:
            self._check_shard(shard)
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

    def pack(self, number: int) -> Pack:
        """One pack, mapped."""
        return self._packs.get(number) or self._map(number)

    @property
    def unchecked(self) -> list[int]:
        """Numbers of the packs of which labels have not been compared with their checksums yet."""
        return sorted({number for number, checked in zip(self._pack_of_shard, self._checked, strict=True) if not checked})

    def leave_to_watch(self) -> None:
        """Reads rows of shards that have not been checked, too: something else checks them meanwhile."""
        self._checked = [True] * len(self._checked)

    def _map(self, number: int) -> Pack:
        if self._labelling is None:  # in another process than the one that checked it
            self._labelling = LabelPacks.open(self.path)
        pack = self._labelling.pack(number)
        if self._states.setdefault(number, pack.state) != pack.state:  # other files than those that were checked
            self._checked = [checked and own != number for checked, own in zip(self._checked, self._pack_of_shard, strict=True)]
        self._packs[number] = pack
        return pack

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packs": {}, "_labelling": None}

    def _check_rows(self, index: Index) -> None:
        for shard, number in enumerate(self._pack_of_shard):
            self._packs[number].check_audio(self._shard_of_pack[shard], index, shard)

    def _check_content(self, at_once_bytes: int) -> None:
        """Compares tables of rows, and all labels or a sample of them, with their checksums."""
        used = self.used
        if sum(self._packs[number].record["labels_bytes"] for number in used) <= at_once_bytes:
            counts = sum(self._packs[number].check() for number in used)
            if self._labelling is not None and len(used) == len(self._labelling.meta["packs"]):
                self._labelling.check_counts(np.asarray(counts))
            self._checked = [True] * len(self._checked)
            return
        for number in used:
            self._packs[number].check_rows()
        # A shard of each pack, so that one in the place of another is found, and then any; always the same ones.
        order = sorted(range(len(self._checked)), key=lambda shard: stable_hash(f"labels/{self.fingerprint}/{shard}"))
        first = set({self._pack_of_shard[shard]: shard for shard in order}.values())
        left = at_once_bytes
        for shard in sorted(order, key=lambda shard: shard not in first):
            left -= 2 * self._packs[self._pack_of_shard[shard]].record["shards"][self._shard_of_pack[shard]]["frames"]
            if left >= 0 or shard in first:
                self._check_shard(shard)

    def _check_shard(self, shard: int) -> None:
        self._packs[self._pack_of_shard[shard]].check_shard(self._shard_of_pack[shard])
        self._checked[shard] = True


def _check_covered(packs: LabelPacks, index: Index) -> None:
    missing = packs.missing(index)
    if missing:
        raise ValueError(
            f"every shard of {index.path} must have labels in {packs.path}, but {len(missing)} of {len(index.shards)} have none (for "
            f"example {index.shards[missing[0]].name}): label them with `python {MADE_BY} shards={index.path} codebook=FOLDER "
            f"output={packs.path}`, by the codebook of those labels, or carry labels of the same audio over with mode=rebind"
        )


def check_names(packs: LabelPacks, index: Index) -> None:
    """Compares the names of the shards that are labelled with those at the time of labelling.

    Raises:
        ValueError: If the speakers, recordings, sources or languages of a shard were others, or the labels do not say.
    """
    known = {shard["identity"]: shard.get("metadata") for pack in packs.meta["packs"] for shard in pack["shards"]}
    for shard in index.shards:
        if shard.identity in known and known[shard.identity] is None:
            raise ValueError(
                f"{packs.path / 'meta.json'} does not say which speakers and other names its shards had (labels of an older format): add "
                f"them, labels untouched, by `openwavlm upgrade {index.path} {packs.path}`"
            )
        if known.get(shard.identity, shard.metadata) != shard.metadata:
            raise ValueError(
                f"the speakers, recordings, sources or languages of {index.path / shard.name} are not those that it had when it was "
                f"labelled for {packs.path}: restore the shard set's index, or, if the names were corrected, carry the labels over with "
                "mode=rebind (after fitting a codebook again that was fitted on these shards)"
            )
