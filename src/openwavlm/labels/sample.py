"""Sample of a codebook: utterances chosen by the hash of their audio, and their frames, computed on the fly and kept in memory.

An utterance goes through a teacher alone: a group norm would see padding, and the last bits would depend on the batch; fifteen seconds
of audio are enough work for a GPU in float32.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openwavlm.audio.frames import SAMPLE_RATE_HZ, num_frames
from openwavlm.labels.chunks import ChunkedFrames, own_places
from openwavlm.labels.features import extract_feature_chunks
from openwavlm.labels.kmeans import one_torch_thread
from openwavlm.runtime.collectives import Ranks
from openwavlm.runtime.pool import run_jobs
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader, UnreadableAudio
from openwavlm.shards.splits import validation_rows

log = logging.getLogger(__name__)

_SAMPLES_AN_HOUR = 3600 * SAMPLE_RATE_HZ
# A layer costs a hundred times as much as MFCC, and its frames are wider.
_UTTERANCES_A_TASK = {"mfcc": 256, "layer": 32}
_LINE_EVERY_S = 60.0


@dataclass(frozen=True)
class Sample:
    """Sampled utterances in the order of their hashes.

    Attributes:
        source: Number of the index; this and the next two are int64 (utterances,).
        row: Row of that index.
        num_samples: Audio samples.
        hours: Sampled hours of each source, by name; the empty name is an unknown source.
    """

    source: np.ndarray
    row: np.ndarray
    num_samples: np.ndarray
    hours: dict[str, float]

    def __len__(self) -> int:
        return len(self.row)

    @property
    def frames(self) -> int:
        """Frames of all utterances."""
        return int(num_frames(self.num_samples).sum())


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

    Arguments are those of `fit.fit_codebook`; a source may lie in several indexes.

    Raises:
        ValueError: If no row belongs to a training speaker; see `quotas`.
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
    """Amount to take of each source: proportional to its amount times its weight, and at most its amount.

    Args:
        held: Source → available amount.
        wanted: Total; the larger sources make up for small ones that are exhausted.
        weights: Source → factor; 1 for unnamed sources.

    Raises:
        ValueError: If a weight names an unknown source or is negative, or all are 0.
    """
    unknown = sorted(weights.keys() - held.keys())
    if unknown:
        raise ValueError(
            f"source_weights must name sources of the shard sets ({', '.join(map(repr, sorted(held)))}), but names "
            f"{', '.join(map(repr, unknown))}"
        )
    open_ = {name: amount * weights.get(name, 1.0) for name, amount in held.items()}
    if min(open_.values()) < 0 or not max(open_.values()) > 0:
        raise ValueError(f"source_weights must not be negative nor all 0, but are {dict(weights)}")
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


@dataclass(frozen=True)
class _Block:
    """Neighbouring utterances of the sample, for one task.

    `utterances` is int64 (utterances, 5): number in the sample, number of the index, row, first frame and frames, counted in the
    stream of all sampled frames. Of these `total` frames `keep` have a place; `places` are those of this process, first and end.
    """

    indexes: tuple[Path, ...]
    settings: dict[str, Any]
    teacher: Path | None
    device: str
    places: tuple[int, int]
    total: int
    keep: int
    utterances: np.ndarray


def thinned_places(first: int, count: int, *, total: int, keep: int) -> np.ndarray:
    """Places of frames [first, first + count] of a stream of `total` frames that is thinned evenly to `keep` frames.

    int64 (count + 1,); frame i is kept if entry i + 1 is larger than entry i.
    """
    return np.arange(first, first + count + 1, dtype=np.int64) * min(keep, total) // total


def sampled_frames(
    indexes: Sequence[Index],
    sample: Sample,
    settings: dict[str, Any],
    teacher: Path | None,
    keep: int,
    chunk: int,
    *,
    workers: int,
    device: torch.device,
    clustered_on: torch.device,
    ranks: Ranks,
) -> tuple[ChunkedFrames, int]:
    """Computes this process's share of the frames of a sample, in chunks for k-means on `clustered_on`.

    Args:
        indexes: Indexes of the shard sets.
        sample: Utterances.
        settings: Settings of the features.
        teacher: Model of layer features, on `device`.
        keep: Frames to keep, at most `sample.frames`; the sample is thinned evenly.
        chunk: Frames a chunk.
        workers: Worker processes; with a teacher on a GPU there are none.

    Returns:
        The frames, and the number of unreadable utterances over all processes.

    Raises:
        ValueError: If the teacher differs from that of `settings`.
    """
    on = str(device) if settings["name"] == "layer" else "cpu"
    own = own_places(keep, chunk, ranks)
    total, frames = sample.frames, num_frames(sample.num_samples)
    before = np.cumsum(frames) - frames
    # Frames i and i + 1 have the same place if frame i is dropped.
    wanted = ((before + frames) * keep // total > own[0]) & (before * keep // total < own[1])
    utterances = np.stack([np.arange(len(sample)), sample.source, sample.row, before, frames], axis=1)[wanted]
    work = _Block(tuple(index.path for index in indexes), settings, teacher, on, own, total, keep, utterances)
    step = _UTTERANCES_A_TASK[settings["name"]]
    blocks = [replace(work, utterances=utterances[start : start + step]) for start in range(0, len(utterances), step)]
    features, filled, unreadable = ranks.together(
        lambda: _computed(blocks, own, settings["dim"], workers if on == "cpu" else 1, ranks)
    )
    lost = set[int]().union(*ranks.gather(unreadable))
    mask = None if filled.all() else torch.from_numpy(filled)
    return ChunkedFrames(_placed(features, clustered_on), keep, chunk, mask, ranks, clustered_on), len(lost)


def _computed(
    blocks: list[_Block], own: tuple[int, int], dim: int, workers: int, ranks: Ranks
) -> tuple[torch.Tensor, np.ndarray, set[int]]:
    """Features of this process's places, mask of the filled places, and numbers of unreadable utterances."""
    first, stop = own
    features = torch.empty(stop - first, dim)
    filled, unreadable = np.zeros(stop - first, dtype=bool), set[int]()
    logged = time.monotonic()
    jobs = run_jobs(_block_features, blocks, workers=workers, description="features", visible=ranks.rank == 0)
    for done, (place, found, held, failed) in enumerate(jobs, start=1):
        here = slice(place - first, place - first + len(found))
        mask = torch.from_numpy(held)
        features[here][mask] = torch.from_numpy(found)[mask]
        filled[here] |= held
        unreadable.update(failed)
        if time.monotonic() - logged > _LINE_EVERY_S:
            logged = time.monotonic()
            log.info(f"features: {done} of {len(blocks)} tasks" + (f" of process {ranks.rank}" if ranks.size > 1 else ""))
    return features, filled, unreadable


def _placed(features: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Features on the GPU if they fit in half of its free memory; else on the CPU, copied chunk by chunk later."""
    if device.type != "cuda" or features.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return features
    return features.to(device)


def _block_features(block: _Block) -> tuple[int, np.ndarray, np.ndarray, list[int]]:
    """First place of a block, features (places, dim), mask of the filled places, and numbers of unreadable utterances."""
    readers = [ShardReader(path) for path in block.indexes]
    utterances = block.utterances
    ends = (int(utterances[0, 3]), int(utterances[-1, 3:].sum()))
    first, stop = (min(max(end * block.keep // block.total, block.places[0]), block.places[1]) for end in ends)
    features = np.zeros((stop - first, block.settings["dim"]), dtype=np.float32)
    filled, unreadable = np.zeros(stop - first, dtype=bool), []
    # The longest utterance first: the allocator reuses its memory for the shorter ones.
    for number, source, row, frame, count in utterances[np.argsort(-utterances[:, 4], kind="stable")].tolist():
        standing = thinned_places(frame, count, total=block.total, keep=block.keep)
        stays = (np.diff(standing) > 0) & (standing[:-1] >= first) & (standing[:-1] < stop)
        if not stays.any():
            continue
        try:
            waveform = readers[source].read(row)
        except UnreadableAudio as error:
            log.warning(f"skipped: {error}")
            unreadable.append(number)
            continue
        with one_torch_thread():
            for start, (found,) in extract_feature_chunks([block.settings], waveform, block.teacher, device=block.device):
                kept = stays[start : start + len(found)]
                features[standing[start : start + len(found)][kept] - first] = found.numpy()[kept]
        filled[standing[:-1][stays] - first] = True
    return first, features, filled, unreadable
