"""Figures of a finished shard set, above all how well it is shuffled: how often two utterances that may be mixed share a speaker."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from openwavlm.data.index import Index
from openwavlm.frames import SAMPLE_RATE_HZ
from openwavlm.randomness import permutation, words

_SUMMED = ("joined", "joined_clips", "short", "clipped_samples", "clipped_files")


def shard_set_stats(
    index: Index, done: Sequence[Mapping[str, Any]], unusable: Mapping[str, Mapping[str, Any]], *, source: str, seed: int
) -> dict[str, Any]:
    """Collects what `stats.json` of a shard set holds.

    Args:
        index: Its index.
        done: The done-files of its tasks.
        unusable: What was skipped, by name.
        source: Name of the corpus.
        seed: Seed of the permutation.

    Returns:
        Counts (`joined` rows are made of `joined_clips`; `short` rows stayed below `min_seconds`), hours, bytes and shares.
    """
    samples = int(index.num_samples.sum(dtype=np.int64))
    return {
        "source": source,
        "fingerprint": index.fingerprint,
        "utterances": len(index),
        "hours": round(samples / SAMPLE_RATE_HZ / 3600, 6),
        "speakers": len(index.speakers) - 1,
        "recordings": len(index.recordings) - 1,
        "shards": len(index.shards),
        "nbytes": sum(shard.nbytes for shard in index.shards),
        "skipped": len(unusable),
        "skipped_by_reason": dict(sorted(Counter(entry["reason"] for entry in unusable.values()).items())),
        **{name: sum(entry[name] for entry in done) for name in _SUMMED},
        **partner_shares(index, seed=seed),
    }


def partner_shares(index: Index, *, seed: int = 0, block_shards: int = 20) -> dict[str, float | None]:
    """Expected share of random pairs within a plan's block that have the same speaker, and the same recording.

    Blocks are made of `block_shards` shards in permuted order, as the training plan does; pairs with an unknown name count
    neither as same nor at all.

    Args:
        index: The shard set.
        seed: Seed of the permutation.
        block_shards: Shards in a block.

    Returns:
        `same_speaker_share` and `same_recording_share`, each in [0, 1], or None where no pair has known names.
    """
    order = permutation(words(seed, "stats.blocks", len(index.shards)))
    blocks = [order[start : start + block_shards] for start in range(0, len(order), block_shards)]
    return {f"same_{name}_share": _share(index, getattr(index, name), blocks) for name in ("speaker", "recording")}


def _share(index: Index, ids: np.ndarray, blocks: list[np.ndarray]) -> float | None:
    same = pairs = 0
    for block in blocks:
        rows = np.concatenate([ids[index.first_row[shard] : index.first_row[shard + 1]] for shard in block])
        counts = np.unique(rows[rows > 0], return_counts=True)[1].astype(np.int64)
        same += int((counts * (counts - 1)).sum())
        pairs += int(counts.sum()) * (int(counts.sum()) - 1)
    return round(same / pairs, 6) if pairs else None
