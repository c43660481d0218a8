"""The frames of a sample, computed on the fly and kept in memory alone: each process computes those of its own places.

An utterance goes through a teacher alone (`teacher`): a group norm would see padding, and neighbours in a batch would decide the last
bits. Alone, fifteen seconds of audio are enough work for a GPU in float32. A task takes its utterances from the longest to the
shortest, so that its first one shows how much memory it needs and the others use that again.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openwavlm.audio.frames import num_frames
from openwavlm.labels.chunks import ChunkedFrames, own_places
from openwavlm.labels.features import extract_feature_chunks
from openwavlm.labels.kmeans import one_torch_thread
from openwavlm.labels.sample import Sample
from openwavlm.runtime.collectives import Ranks
from openwavlm.runtime.pool import run_jobs
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader, UnreadableAudio

log = logging.getLogger(__name__)

# A layer costs a hundred times what MFCC cost, and its frames are wider.
_UTTERANCES_A_TASK = {"mfcc": 256, "layer": 32}
_LINE_EVERY_S = 60.0


@dataclass(frozen=True)
class _Block:
    """Neighbouring utterances of the sample, and where their frames stand in the stream of all sampled frames.

    Attributes:
        indexes: Of the shard sets.
        settings: Of the features.
        teacher: The model of layer features.
        device: Where it runs.
        numbers: Of the utterances, in the sample.
        source: Which index, for each.
        row: Which row of it.
        first_frame: In the stream of all sampled frames.
        count: Frames.
        places: First place that is wanted, and the first one that is not.
        total: Frames of the whole sample.
        keep: Frames that stay of them.
    """

    indexes: tuple[Path, ...]
    settings: dict[str, Any]
    teacher: Path | None
    device: str
    numbers: np.ndarray
    source: np.ndarray
    row: np.ndarray
    first_frame: np.ndarray
    count: np.ndarray
    places: tuple[int, int]
    total: int
    keep: int


def thinned_places(first: int, count: int, *, total: int, keep: int) -> np.ndarray:
    """Where frames [first, first + count] of a stream of `total` stand once it is thinned out evenly to `keep` frames.

    Returns:
        int64 (count + 1,); frame i stays if the next entry is larger.
    """
    return np.arange(first, first + count + 1, dtype=np.int64) * min(keep, total) // total


def num_places(sample: Sample, max_frames: int) -> int:
    """Frames of a sample that are kept, if all of it can be read."""
    return min(int(num_frames(sample.num_samples).sum()), max_frames)


def sampled_frames(
    indexes: Sequence[Index],
    sample: Sample,
    settings: dict[str, Any],
    teacher: Path | None,
    *,
    max_frames: int,
    chunk: int,
    workers: int,
    device: torch.device,
    clustered_on: torch.device,
    ranks: Ranks,
) -> tuple[ChunkedFrames, int]:
    """Computes this process's share of the frames of a sample.

    Args:
        indexes: Of the shard sets.
        sample: The utterances.
        settings: Of the features.
        teacher: The model of layer features.
        max_frames: Frames that are kept, evenly thinned out.
        chunk: Frames a chunk.
        workers: Processes that this one may start; a GPU is used by this one alone.
        device: Where a teacher runs.
        clustered_on: Where k-means will.
        ranks: This process among the others.

    Returns:
        The frames, and how many utterances of the sample could not be read, by all processes.

    Raises:
        ValueError: If the teacher is not the one of `settings`.
    """
    places = num_places(sample, max_frames)
    on = str(device) if settings["name"] == "layer" else "cpu"
    own = own_places(places, chunk, ranks)
    blocks = _blocks(indexes, sample, settings, teacher, max_frames, own, on)
    features, filled, unreadable = ranks.together(
        lambda: _computed(blocks, own, settings["dim"], workers if on == "cpu" else 1, ranks)
    )
    lost = set[int]().union(*ranks.gather(unreadable))
    mask = None if filled.all() else torch.from_numpy(filled)
    return ChunkedFrames(_placed(features, clustered_on), places, chunk, mask, ranks, clustered_on), len(lost)


def _computed(
    blocks: list[_Block], own: tuple[int, int], dim: int, workers: int, ranks: Ranks
) -> tuple[torch.Tensor, np.ndarray, set[int]]:
    """Features of this process's places, which places are filled, and the utterances that could not be read."""
    first, stop = own
    features = torch.empty(stop - first, dim)
    filled, unreadable = np.zeros(stop - first, dtype=bool), set[int]()
    said = time.monotonic()
    jobs = run_jobs(_block_features, blocks, workers=workers, description="features", visible=ranks.rank == 0)
    for done, (place, found, held, failed) in enumerate(jobs, start=1):
        here = slice(place - first, place - first + len(found))
        mask = torch.from_numpy(held)
        features[here][mask] = torch.from_numpy(found)[mask]
        filled[here] |= held
        unreadable.update(failed)
        if time.monotonic() - said > _LINE_EVERY_S:
            said = time.monotonic()
            log.info(f"features: {done} of {len(blocks)} tasks" + (f" of process {ranks.rank}" if ranks.size > 1 else ""))
    return features, filled, unreadable


def _placed(features: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The features on a GPU if they take less than half of what is free there; else they travel to it chunk by chunk."""
    if device.type != "cuda" or features.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return features
    return features.to(device)


def _blocks(
    indexes: Sequence[Index],
    sample: Sample,
    settings: dict[str, Any],
    teacher: Path | None,
    max_frames: int,
    places: tuple[int, int],
    device: str,
) -> list[_Block]:
    frames = num_frames(sample.num_samples)
    total = int(frames.sum())
    keep = min(max_frames, total)
    before = np.cumsum(frames) - frames
    # Frames i and i + 1 stand at the same place if frame i does not stay.
    wanted = np.flatnonzero(((before + frames) * keep // total > places[0]) & (before * keep // total < places[1]))
    step = _UTTERANCES_A_TASK[settings["name"]]
    paths = tuple(index.path for index in indexes)
    blocks = []
    for start in range(0, len(wanted), step):
        numbers = wanted[start : start + step]
        own = (numbers, sample.source[numbers], sample.row[numbers], before[numbers], frames[numbers])
        blocks.append(_Block(paths, settings, teacher, device, *own, places, total, keep))
    return blocks


def _block_features(block: _Block) -> tuple[int, np.ndarray, np.ndarray, list[int]]:
    """First place of a block, its features (places, dim), which of them there are, and the utterances that could not be read."""
    readers = [ShardReader(path) for path in block.indexes]
    ends = (int(block.first_frame[0]), int(block.first_frame[-1] + block.count[-1]))
    first, stop = (min(max(end * block.keep // block.total, block.places[0]), block.places[1]) for end in ends)
    features = np.zeros((stop - first, block.settings["dim"]), dtype=np.float32)
    filled, unreadable = np.zeros(stop - first, dtype=bool), []
    for item in np.argsort(-block.count, kind="stable"):
        standing = thinned_places(int(block.first_frame[item]), int(block.count[item]), total=block.total, keep=block.keep)
        stays = (np.diff(standing) > 0) & (standing[:-1] >= first) & (standing[:-1] < stop)
        if not stays.any():
            continue
        try:
            waveform = readers[block.source[item]].read(int(block.row[item]))
        except UnreadableAudio as error:
            log.warning(f"skipped: {error}")
            unreadable.append(int(block.numbers[item]))
            continue
        with one_torch_thread():
            for start, (found,) in extract_feature_chunks([block.settings], waveform, block.teacher, device=block.device):
                kept = stays[start : start + len(found)]
                features[standing[start : start + len(found)][kept] - first] = found.numpy()[kept]
        filled[standing[:-1][stays] - first] = True
    return first, features, filled, unreadable
