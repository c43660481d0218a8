"""Plan of one data epoch: the pieces of utterances in each micro-batch, a pure function of (seed, epoch, index).

    shards ── permute (seed, epoch) ── deal to streams ── blocks of ~20 shards
                                                            │
    block:  cut long utterances ─ sort by length ─ cut to a budget of padded frames ─ shuffle groups of neighbours

Only the number of micro-batches of each block and a digest are kept; a block's rows are derived again when needed, so
an epoch of 23.5 million utterances costs megabytes. Everything is integer arithmetic on keyed words, and every sort key is unique
(it ends in the position), so ties are ordered equally on every machine.
"""

import hashlib
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np

from openwavlm.audio.frames import num_frames
from openwavlm.batches.batch import MicroBatchId
from openwavlm.batches.settings import Batching
from openwavlm.runtime.randomness import integers, permutation, words

PLAN_VERSION = 1
_POSITION_BITS = 22
_TIE_BITS = 26
_TARGET_SHARE = 0.9  # target length of pieces, as a share of the longest piece, so that borders can move


@dataclass(frozen=True)
class MicroBatchSpec:
    """Planned rows of one micro-batch."""

    id: MicroBatchId  # name, the key of its random draws
    rows: np.ndarray  # uint32 (batch,), rows of the source's index, longest piece first
    start_frame: np.ndarray  # int64 (batch,), first frame of each piece in its utterance
    num_frames: np.ndarray  # int64 (batch,), frames of each piece
    weight: float = 1.0  # 0 for a padding micro-batch


@dataclass
class PlanStatistics:
    """Frames of one epoch: available, trained on, with padding; and utterances that are too short."""

    available: int = 0
    planned: int = 0
    padded: int = 0
    too_short: int = 0

    def __add__(self, other: "PlanStatistics") -> "PlanStatistics":
        return PlanStatistics(*(sum(pair) for pair in zip(astuple(self), astuple(other), strict=True)))

    @property
    def padding_share(self) -> float:
        """Padding frames over all frames of the micro-batches."""
        return 1 - self.planned / max(1, self.padded)

    @property
    def lost_share(self) -> float:
        """Frames of the source that this epoch leaves out."""
        return 1 - self.planned / max(1, self.available)


@dataclass(frozen=True)
class _Block:
    rows: np.ndarray
    start: np.ndarray
    frames: np.ndarray
    bounds: np.ndarray  # (micro-batches + 1,) in sorted order
    order: np.ndarray  # (micro-batches,) shuffled → sorted
    statistics: PlanStatistics


class EpochPlan:
    """One data epoch of one stream of one source.

    Args:
        num_samples: Integer (rows,), lengths of the index (a memory map is fine).
        first_row: int64 (shards + 1,), rows of shard s are first_row[s]:first_row[s + 1].
        usable: bool (rows,), the rows of this view (training or validation).
        stream: Number of this stream; the permuted shards are dealt to `streams` of them.
    """

    def __init__(
        self,
        num_samples: np.ndarray,
        first_row: np.ndarray,
        usable: np.ndarray,
        batching: Batching,
        *,
        seed: int,
        source: str,
        epoch: int,
        stream: int = 0,
        streams: int = 1,
    ) -> None:
        self._num_samples, self._first_row, self._usable = num_samples, first_row, usable
        self.batching, self.seed, self.source, self.epoch, self.stream = batching, seed, source, epoch, stream
        shards = permutation(self._words("plan.shards", len(first_row) - 1, stream=0))[stream::streams]
        size = batching.shards_per_block
        self._shards = [shards[i : i + size] for i in range(0, len(shards), size)]
        self._block = lru_cache(maxsize=2)(self._derive)
        self.statistics = PlanStatistics()
        digest = hashlib.blake2b(f"{PLAN_VERSION} {source} {epoch} {stream}".encode(), digest_size=8)
        counts = []
        for number in range(len(self._shards)):
            block = self._block(number)
            for array in (block.rows, block.start, block.frames, block.bounds, block.order):
                digest.update(array.data)
            counts.append(len(block.order))
            self.statistics += block.statistics
        self._ends = np.cumsum(np.array(counts, dtype=np.int64))
        self.digest = int.from_bytes(digest.digest(), "little")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def spec(self, index: int) -> MicroBatchSpec:
        """Rows of micro-batch `index` of this epoch."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        block = self._block(number)
        chosen = block.order[index - (self._ends[number] - len(block.order))]
        piece = slice(block.bounds[chosen], block.bounds[chosen + 1])
        return MicroBatchSpec(
            MicroBatchId(self.source, self.epoch, self.stream, index),
            block.rows[piece],
            block.start[piece].astype(np.int64),
            block.frames[piece].astype(np.int64),
        )

    def _words(self, purpose: str, count: int, *, stream: int | None = None, block: int = 0) -> np.ndarray:
        stream = self.stream if stream is None else stream
        return words(self.seed, purpose, count, **MicroBatchId(self.source, self.epoch, stream, block).place)

    def _derive(self, number: int) -> _Block:
        shards = self._shards[number]
        rows = np.concatenate([np.arange(self._first_row[s], self._first_row[s + 1], dtype=np.uint32) for s in shards])
        rows = rows[self._usable[rows]]
        frames = num_frames(self._num_samples[rows].astype(np.int64))
        available = int(frames.sum())
        kept = frames >= self.batching.min_frames
        rows, frames = rows[kept], frames[kept]
        if self.batching.policy == "split":
            rows, start, frames = self._split(rows, frames, number)
            whole = frames
        else:
            whole, start = frames, np.zeros(len(rows), dtype=np.int64)
            frames = np.minimum(frames, self.batching.max_frames)
        order = self._by_length(frames, number)
        rows, start, frames, whole = rows[order], start[order], frames[order], whole[order]
        bounds = self._bounds(frames)
        if self.batching.policy != "split" and len(rows):
            if self.batching.policy == "fairseq_crop":
                frames = np.repeat(np.minimum.reduceat(frames, bounds[:-1]), np.diff(bounds))
            start = integers(self._words("plan.crop", len(rows), block=number), whole - frames + 1)
        padded = int((frames[bounds[:-1]] * np.diff(bounds)).sum()) if len(rows) else 0
        statistics = PlanStatistics(available, int(frames.sum()), padded, int((~kept).sum()))
        shuffled = self._shuffled(len(bounds) - 1, number).astype(np.uint32)
        return _Block(rows, start.astype(np.uint32), frames.astype(np.uint16), bounds, shuffled, statistics)

    def _split(self, rows: np.ndarray, frames: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cuts long utterances into nearly equal pieces; all inner borders of an utterance move by one keyed offset."""
        longest = self.batching.max_frames
        target = max(1, int(longest * _TARGET_SHARE))
        pieces = np.where(frames > longest, -(-frames // target), 1)
        if not (pieces > 1).any():
            return rows, np.zeros(len(rows), dtype=np.int64), frames
        slack = np.minimum(longest - -(-frames // pieces), frames // pieces - self.batching.min_frames).clip(min=0)
        raw = self._words("plan.borders", len(rows), block=number)
        offset = np.where(pieces > 1, integers(raw, 2 * slack + 1) - slack, 0)
        which = np.repeat(np.arange(len(rows)), pieces)
        piece = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        total, parts, moved = frames[which], pieces[which], offset[which]
        start = np.where(piece == 0, 0, piece * total // parts + moved)
        end = np.where(piece == parts - 1, total, (piece + 1) * total // parts + moved)
        return rows[which], start, end - start

    def _by_length(self, frames: np.ndarray, number: int) -> np.ndarray:
        """Order by falling length with keyed ties: one sort of unique 64-bit keys (length, tie, position)."""
        if len(frames) >> _POSITION_BITS:
            raise ValueError(
                f"a block of {len(frames)} pieces is too large: lower batch.shards_per_block, now {self.batching.shards_per_block}"
            )
        ties = self._words("plan.ties", len(frames), block=number) >> np.uint64(64 - _TIE_BITS)
        keys = (np.uint64(0xFFFF) - frames.astype(np.uint64)) << np.uint64(_TIE_BITS + _POSITION_BITS)
        keys |= ties << np.uint64(_POSITION_BITS)
        keys |= np.arange(len(frames), dtype=np.uint64)
        keys.sort()
        return (keys & np.uint64((1 << _POSITION_BITS) - 1)).astype(np.int64)

    def _bounds(self, frames: np.ndarray) -> np.ndarray:
        """Cuts rows sorted by falling length so that rows × longest stays within the budget."""
        sizes = (self.batching.micro_frames // np.maximum(frames, 1)).tolist()
        bounds, position = [], 0
        while position < len(sizes):
            bounds.append(position)
            position += sizes[position]
        bounds.append(len(sizes))
        return np.array(bounds, dtype=np.uint32)

    def _shuffled(self, count: int, number: int) -> np.ndarray:
        group = self.batching.group
        groups = permutation(self._words("plan.groups", -(-count // group), block=number))
        order = (groups[:, None] * group + np.arange(group)).ravel()
        return order[order < count]
