"""Labelling as a folder, not yet bound to audio: opening, packs, codebook, statistics, upgrade."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openwavlm.audio.frames import FRAME_RATE_HZ
from openwavlm.labels.kmeans import IMPORTED, Codebook, UnknownCodebook
from openwavlm.labels.label_packs import AGAIN, FORMAT_VERSION, read_labels_meta
from openwavlm.labels.pack import Pack, check_sizes
from openwavlm.labels.quality import perplexity, used_clusters
from openwavlm.runtime.atomic import write_json, writer_lock
from openwavlm.runtime.sealed import CHECKSUM, sealed
from openwavlm.shards.index import Index

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Place of a shard's labels: numbers of the pack, of the shard in the pack, and of its first row in the pack's table."""

    pack: int
    shard: int
    first_row: int


class LabelPacks:
    """`meta.json`, packs and codebook of a labelling.

    Attributes:
        path: Folder.
        meta: Content of `meta.json`.
        codebook: Codebook, checked against the hash in `meta.json`.
        place: Place of the labels of each shard, by its identity.
    """

    def __init__(self, path: Path, meta: dict[str, Any], codebook: Codebook):
        self.path, self.meta, self.codebook = path, meta, codebook
        self._packs: dict[int, Pack] = {}
        self.place: dict[str, Place] = {}
        for pack, record in enumerate(meta["packs"]):
            first_row = 0
            for number, shard in enumerate(record["shards"]):
                self.place[shard["identity"]] = Place(pack, number, first_row)
                first_row += shard["rows"]

    @classmethod
    def open(cls, path: Path | str) -> "LabelPacks":
        """Opens a labelling.

        Raises:
            ValueError: If `read_labels_meta` refuses it, or its codebook or the size of a file differs from `meta.json`.
        """
        path = Path(path)
        meta = read_labels_meta(path)
        classes, content = meta["num_classes"], meta["codebook_hash"]
        features, fitted = meta["features"], meta["codebook_fitted"]
        if meta.get("centroids") == "unknown" and features.get("name") == IMPORTED:
            codebook: Codebook = UnknownCodebook.of(classes, content, features, fitted)
        else:
            codebook = Codebook.load_arrays(path, features, fitted)
        if len(codebook) != classes or codebook.hash != content:
            raise ValueError(
                f"{path / 'codebook.npy'} must have the hash {content[:12]} and the {classes} clusters that meta.json names, but has "
                f"{codebook.hash[:12]} and {len(codebook)}: {AGAIN}"
            )
        for pack in meta["packs"]:
            check_sizes(path, pack)
        return cls(path, meta, codebook)

    def pack(self, number: int) -> Pack:
        """One pack, mapped on first use; its content is not checked."""
        if number not in self._packs:
            self._packs[number] = Pack(self.path, self.meta["packs"][number], self.meta["num_classes"])
        return self._packs[number]

    def check(self) -> None:
        """Raises `ValueError` if a pack differs from its checksums, or the counts of labels from `meta.json`."""
        counts = sum(self.pack(number).check() for number in range(len(self.meta["packs"])))
        self.check_counts(np.asarray(counts))

    def check_counts(self, counts: np.ndarray) -> None:
        """Raises `ValueError` if int64 (classes,) frames of each label, over all packs, differ from `meta.json`."""
        if counts.tolist() != self.meta["label_counts"]:
            raise ValueError(f"{self.path / 'meta.json'} must count the labels of its packs, but has other label_counts: {AGAIN}")

    def missing(self, index: Index) -> list[int]:
        """Shards of the index that have no labels here, in index order."""
        return [number for number, shard in enumerate(index.shards) if shard.identity not in self.place]


def check_names(packs: LabelPacks, index: Index) -> None:
    """Raises `ValueError` if speakers, recordings, sources or languages of a shard differ from those that were labelled."""
    known = {shard["identity"]: shard.get("metadata") for pack in packs.meta["packs"] for shard in pack["shards"]}
    for shard in index.shards:
        if shard.identity in known and known[shard.identity] is None:
            raise ValueError(
                f"{packs.path / 'meta.json'} lacks the speakers and other names of its shards (an older format): add them, without a "
                f"change of labels, by `openwavlm upgrade {index.path} {packs.path}`"
            )
        if known.get(shard.identity, shard.metadata) != shard.metadata:
            raise ValueError(
                f"the speakers, recordings, sources or languages of {index.path / shard.name} differ from those that it had when it "
                f"was labelled for {packs.path}: restore the shard set's index, or, if the names were corrected, carry the labels over "
                "with mode=rebind (a codebook that was fitted on these shards must be fitted again first)"
            )


def write_stats(folder: Path, meta: dict[str, Any], command: str, **more: float) -> None:
    """Writes `stats.json`, totals and usage of clusters, with the further values in `more`, and logs a line."""
    counts = np.array(meta["label_counts"])
    stats = {
        "command": command,
        **{name: meta[name] for name in ("num_classes", "codebook_hash", "shards", "rows", "unreadable_rows", "frames")},
        "hours": round(meta["frames"] / FRAME_RATE_HZ / 3600, 4),
        "used_clusters": used_clusters(counts),
        "perplexity": perplexity(counts),
        **more,
    }
    write_json(folder / "stats.json", stats)
    log.info(
        f"{meta['rows']} rows, {stats['hours']:.2f} h, {stats['used_clusters']} of {meta['num_classes']} clusters in use, perplexity "
        f"{stats['perplexity']:.1f}, {meta['unreadable_rows']} unreadable -> {folder}"
    )


def upgrade_labels(folder: Path | str, add: Callable[[dict[str, Any]], None] = lambda meta: None) -> bool:
    """Checks a labelling of an older format and writes its `meta.json` in the newest; returns True if that changed it.

    Args:
        folder: Labelling; a kill leaves it unchanged or upgraded.
        add: Adds missing values to the content of `meta.json`, in place.

    Raises:
        ValueError: If it is not finished, has a newer format or is damaged, or another process writes to it.
    """
    folder = Path(folder)
    with writer_lock(folder):
        packs = LabelPacks.open(folder)
        if packs.meta["format_version"] != FORMAT_VERSION:
            packs.check()
        meta = packs.meta | {"format_version": FORMAT_VERSION}
        add(meta)
        changed = sealed(meta)[CHECKSUM] != packs.meta.get(CHECKSUM)
        if changed:
            write_json(folder / "meta.json", sealed(meta))
    return changed
