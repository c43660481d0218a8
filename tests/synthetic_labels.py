"""Indexes and labellings without audio, for tests of the label store."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from openwavlm.audio.frames import num_frames
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.label_packs import PackResult, write_labels_meta, write_packs
from openwavlm.shards.index import COLUMNS, TABLES, Index, ShardInfo, shard_identity
from openwavlm.shards.index_writer import write_index

CLUSTERS = 10


def make_index(path: Path, shard_rows: dict[int, int], *, seed: int = 0, num_samples: int = 0) -> Index:
    """An index without audio: the lengths, keys and hashes of a shard depend on `seed` and the shard's number alone."""
    parts = []
    for number, rows in shard_rows.items():
        generator = np.random.default_rng([seed, number])
        lengths = generator.integers(400, 30_000, rows) if num_samples == 0 else np.full(rows, num_samples)
        parts.append((lengths, generator.integers(2**63, size=rows), generator.integers(2**63, size=rows)))
    lengths, key, pcm = (np.concatenate(column).astype(np.uint64) for column in zip(*parts, strict=True))
    shard = np.repeat(np.arange(len(shard_rows)), list(shard_rows.values()))
    columns = {name: np.zeros(len(shard), dtype) for name, dtype in COLUMNS.items()}
    columns |= {"shard": shard, "num_samples": lengths, "key": key, "pcm": pcm}
    shards = [
        ShardInfo(f"shards/{number:05d}.tar", rows, 0, "", shard_identity(part[2], part[1], part[0]))
        for (number, rows), part in zip(shard_rows.items(), parts, strict=True)
    ]
    return write_index(path, columns=columns, tables={name: [""] for name in TABLES}, shards=shards)


def true_labels(index: Index, row: int) -> np.ndarray:
    return np.random.default_rng(int(index.pcm[row])).integers(CLUSTERS, size=num_frames(int(index.num_samples[row])))


def write_pack(
    folder: Path, pack: str, index: Index, shards: Sequence[int], label_row: Callable[[int], np.ndarray | None], classes: int
) -> PackResult:
    """Writes a pack of one labelling."""
    return write_packs([folder], pack, index, shards, lambda row: [label_row(row)], [classes])[0]


def write_labels(
    folder: Path,
    index: Index,
    packs: list[list[int]],
    label_row: Callable[[int], np.ndarray | None] | None = None,
) -> dict:
    codebook = Codebook(torch.arange(CLUSTERS * 3, dtype=torch.float32).reshape(CLUSTERS, 3), {"name": "test"})
    codebook.save_array(folder)
    label_row = label_row or (lambda row: true_labels(index, row))
    results = [
        write_pack(folder, f"pack-{number:05d}", index, shards, label_row, CLUSTERS) for number, shards in enumerate(packs)
    ]
    counts = np.sum([result.label_counts for result in results], axis=0)
    return write_labels_meta(folder, codebook, [result.record for result in results], counts)
