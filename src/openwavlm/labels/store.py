"""Labels of an index's rows: memory-mapped packs, checked against their checksums and bound to audio by its identity."""

import hashlib
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.labels.label_packs import MADE_BY
from openwavlm.labels.labelling import LabelPacks, check_names
from openwavlm.labels.pack import Pack
from openwavlm.runtime.randomness import stable_hash
from openwavlm.shards.index import Index

# Labels of about 1,490 h; their checksums take seconds.
AT_ONCE_BYTES = 512 << 20


class LabelStore:
    """Labels of one index's rows. Pickles as a path and small tables; maps packs on first use.

    Attributes:
        path: Labelling.
        num_classes: Number of clusters K.
        codebook_hash: Hash of the codebook.
        codebook_fitted: Record of its fit (index fingerprints, held-out share, …); empty if unknown.
        fingerprint: Hash of the codebook and of the labels of this index's shards, independent of packs and other shards.
        label_counts: int64 (classes,) frames of each label in the whole labelling.
    """

    def __init__(self, packs: LabelPacks, index: Index):
        self.path = packs.path
        self.num_classes = int(packs.meta["num_classes"])
        self.codebook_hash = str(packs.meta["codebook_hash"])
        self.codebook_fitted = packs.codebook.fitted
        self.label_counts = np.array(packs.meta["label_counts"], dtype=np.int64)
        self._labelling: LabelPacks | None = packs
        # Plain lists: access in `read`, the hot path, costs a tenth of that of arrays.
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
        """Opens a labelling for an index, with all checks that need no audio.

        Args:
            path: Labelling.
            index: Index of the shard set.
            at_once_bytes: Labels up to this size are compared with their checksums here. Of larger ones this much is, at least one
                shard of each pack; the other shards are compared before one of their rows is read. None: nothing is compared.

        Raises:
            ValueError: If `LabelPacks.open` or `check_names` refuse it; if a shard has no labels; if a row is of other audio, has
                another number of frames, or leaves a gap; if a label is not in the codebook; if a file differs from its checksum.
        """
        packs = LabelPacks.open(path)
        if missing := packs.missing(index):
            raise ValueError(
                f"every shard of {index.path} must have labels in {packs.path}, but {len(missing)} of {len(index.shards)} have none "
                f"(for example {index.shards[missing[0]].name}): label them with `{MADE_BY} shards={index.path} codebook=FOLDER "
                f"output={packs.path}`, by the codebook of those labels, or carry labels of the same audio over with mode=rebind"
            )
        check_names(packs, index)
        store = cls(packs, index)
        for shard, number in enumerate(store._pack_of_shard):
            store.pack(number).check_audio(store._shard_of_pack[shard], index, shard)
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
        """Labels of a row of the index, or of `num_frames` of its frames: uint16 (frames,), read-only, mapped from the file.

        Empty for a row that had unreadable audio when it was labelled.

        Raises:
            ValueError: If the row has fewer frames, or the labels of its shard differ from their checksum.
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
        """One pack, mapped on first use."""
        return self._packs.get(number) or self._map(number)

    @property
    def unchecked(self) -> list[int]:
        """Numbers of the packs with labels that have not been compared with their checksums."""
        return sorted({number for number, checked in zip(self._pack_of_shard, self._checked, strict=True) if not checked})

    def leave_to_watch(self) -> None:
        """Lets `read` return rows of unchecked shards: the label watch checks them in the background."""
        self._checked = [True] * len(self._checked)

    def _map(self, number: int) -> Pack:
        if self._labelling is None:  # unpickled in another process
            self._labelling = LabelPacks.open(self.path)
        pack = self._labelling.pack(number)
        if self._states.setdefault(number, pack.state) != pack.state:  # the files were replaced after the check
            self._checked = [checked and own != number for checked, own in zip(self._checked, self._pack_of_shard, strict=True)]
        self._packs[number] = pack
        return pack

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packs": {}, "_labelling": None}

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
        # One shard of each pack, so that exchanged packs are found, then others in a fixed order.
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
