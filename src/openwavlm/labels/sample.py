"""Which utterances a codebook is fitted on: by the hash of their audio, of each source as much as its hours and its weight give it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from openwavlm.audio.frames import SAMPLE_RATE_HZ, num_frames
from openwavlm.shards.index import Index
from openwavlm.shards.splits import validation_rows

_SAMPLES_AN_HOUR = 3600 * SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Sample:
    """Sampled utterances in the order of their hashes.

    Attributes:
        source: int64 (utterances,), which index.
        row: int64 (utterances,), row of that index.
        num_samples: int64 (utterances,), audio samples.
        hours: Sampled hours of each source, by name; the empty name is unknown.
    """

    source: np.ndarray
    row: np.ndarray
    num_samples: np.ndarray
    hours: dict[str, float]

    def __len__(self) -> int:
        return len(self.row)


def keyed_hash(pcm: np.ndarray, seed: int) -> np.ndarray:
    """Hashes audio identities with a seed, element by element: the finaliser of SplitMix64 (Steele et al. 2014); uint64."""
    mixed = pcm.astype(np.uint64) ^ np.random.Philox(key=seed).random_raw(1)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def draw_sample(
    indexes: Sequence[Index],
    *,
    sample_hours: float,
    seed: int,
    validation_share: float,
    split_seed: int,
    source_weights: Mapping[str, float] | None = None,
) -> Sample:
    """Chooses training utterances by the hash of their audio until each source has its part of `sample_hours`.

    Args:
        indexes: Of the shard sets. A source is what their recordings were prepared under (`source=` of make_shards), whichever shard
            sets it lies in.
        sample_hours: Hours in all.
        seed: Of the hashes.
        validation_share: Share of speakers that is held out.
        split_seed: Seed of that split.
        source_weights: Source → factor on its hours; 1 for those not named.

    Raises:
        ValueError: If no row belongs to a training speaker; if a weight is of no source, negative, or leaves nothing.
    """
    parts = []
    names = sorted({name for index in indexes for name in index.sources})
    for number, index in enumerate(indexes):
        training = ~validation_rows(index, share=validation_share, split_seed=split_seed)
        rows = np.flatnonzero(training & (num_frames(np.asarray(index.num_samples[:], dtype=np.int64)) > 0))
        name = np.array([names.index(name) for name in index.sources], dtype=np.int64)[np.asarray(index.source[rows])]
        parts.append((np.full(len(rows), number), rows, np.asarray(index.num_samples[rows], np.int64), index.pcm[rows], name))
    source, row, num_samples, pcm, name = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if not len(row):
        raise ValueError(
            f"a codebook is fitted on training speakers, but validation_share={validation_share:g} leaves no utterance of "
            f"{', '.join(str(index.path) for index in indexes)}: lower it or give more audio"
        )
    held = np.bincount(name, weights=num_samples, minlength=len(names))
    present = {names[i]: float(held[i]) for i in np.flatnonzero(held)}
    parts_of = quotas(present, sample_hours * _SAMPLES_AN_HOUR, source_weights or {})
    order = np.lexsort((pcm, keyed_hash(pcm, seed)))
    taken = np.zeros(len(order), dtype=bool)
    for place, quota in parts_of.items():
        own = order[name[order] == names.index(place)]
        taken[own[np.cumsum(num_samples[own]) - num_samples[own] < quota]] = True
    chosen = order[taken[order]]
    sampled = np.bincount(name[chosen], weights=num_samples[chosen], minlength=len(names)) / _SAMPLES_AN_HOUR
    hours = {names[i]: round(float(sampled[i]), 4) for i in np.flatnonzero(sampled)}
    return Sample(source[chosen], row[chosen], num_samples[chosen], hours)


def quotas(held: Mapping[str, float], wanted: float, weights: Mapping[str, float]) -> dict[str, float]:
    """How much of each source is taken: in proportion to what it holds times its weight, and never more than it holds.

    Args:
        held: Source → what there is of it.
        wanted: What is wanted in all; what a small source cannot give, the others do.
        weights: Source → factor; 1 for those not named.

    Raises:
        ValueError: If a weight is of no source, negative, or leaves nothing.
    """
    unknown = sorted(weights.keys() - held.keys())
    if unknown:
        raise ValueError(
            f"source_weights must name sources of the shard sets ({', '.join(map(repr, sorted(held)))}), but names "
            f"{', '.join(map(repr, unknown))}: correct the name"
        )
    open_ = {name: amount * weights.get(name, 1.0) for name, amount in held.items()}
    if min(open_.values()) < 0 or not max(open_.values()) > 0:
        raise ValueError(f"source_weights must not be negative nor all 0, but are {dict(weights)}: correct them")
    found = {name: 0.0 for name, amount in open_.items() if amount == 0}
    open_ = {name: amount for name, amount in open_.items() if amount > 0}
    while open_:
        total = sum(open_.values())
        share = {name: wanted * (amount / total) for name, amount in open_.items()}
        full = [name for name in open_ if share[name] >= held[name]] or list(open_)
        for name in full:
            found[name] = min(share[name], held[name])
            wanted -= found[name]
            del open_[name]
    return found
