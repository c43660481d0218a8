"""Frames to cluster, in chunks with one result at any number of threads and processes.

One torch thread computes a chunk, so its products have one order of sums. Sums over chunks are taken in the order of the chunks, or
are of numbers on a grid on which float64 sums are exact in any order.
"""

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from openwavlm.labels.kmeans import one_torch_thread
from openwavlm.runtime.collectives import Ranks

Result = TypeVar("Result")
# Scores of a chunk, float32 (chunk, clusters), take at most 4 MiB, on a GPU 64 MiB.
_SCORES = 1 << 20
_MAX_CHUNK_FRAMES, _MIN_CHUNK_FRAMES, _GPU_FACTOR = 2048, 64, 16
_EXACT_BITS = 53


def chunk_frames(clusters: int, device: torch.device) -> int:
    """Frames a chunk, a power of two: fewer for more clusters, more for a GPU with its thousands of cores."""
    power = 1 << (max(_SCORES // clusters, 1).bit_length() - 1)
    frames = max(_MIN_CHUNK_FRAMES, min(_MAX_CHUNK_FRAMES, power))
    return frames if device.type == "cpu" else frames * _GPU_FACTOR


def own_places(total: int, chunk: int, ranks: Ranks) -> tuple[int, int]:
    """First place of this process's share of `total` places in whole chunks, and the first one after it."""
    chunks = -(-total // chunk)
    first, stop = (chunks * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    return min(first * chunk, total), min(stop * chunk, total)


@dataclass(frozen=True)
class Chunk:
    """Neighbouring frames, float32 (frames, dim), their places in this process, and the chunk's number over all processes."""

    number: int
    places: slice | Tensor
    frames: Tensor


@dataclass
class ChunkedFrames:
    """This process's share of the frames.

    Attributes:
        features: float32 (places, dim) of this process.
        total: Places of all processes.
        chunk: Places a chunk.
        filled: bool (places,), True = holds a frame; None = all do.
        ranks: This process in its group.
        device: Device that computes chunks; features stay on their device and are copied chunk by chunk if it is another one.
    """

    features: Tensor
    total: int
    chunk: int
    filled: Tensor | None = None
    ranks: Ranks = field(default_factory=Ranks)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        first, stop = own_places(self.total, self.chunk, self.ranks)
        assert len(self.features) == stop - first
        self.first = first
        self._run: Callable[..., Iterator[Any]] | None = None
        self.num_chunks = -(-self.total // self.chunk)
        held = len(self.features) if self.filled is None else int(self.filled.sum())
        self.count = int(self.ranks.sum(torch.tensor(held)))

    @property
    def dim(self) -> int:
        """Width of a frame."""
        return self.features.shape[1]

    def _chunk(self, start: int) -> Chunk:
        places: slice | Tensor = slice(start, start + self.chunk)
        if self.filled is not None and not bool(self.filled[places].all()):
            places = start + self.filled[places].nonzero()[:, 0]
        return Chunk((self.first + start) // self.chunk, places, self.features[places].to(self.device))

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Keeps the threads of `each` for several calls: the first matrix product of a new thread costs milliseconds."""
        number = min(torch.get_num_threads(), -(-len(self.features) // self.chunk)) if self.device.type == "cpu" else 1
        with one_torch_thread(), ThreadPoolExecutor(max(number, 1)) as pool:
            self._run = pool.map if number > 1 else map
            try:
                yield
            finally:
                self._run = None

    def each(self, function: Callable[[Chunk], Result]) -> list[Result]:
        """Calls `function` for each chunk of this process on one torch thread each, in as many threads as torch may use."""
        if self._run is None:
            with self.threads():
                return self.each(function)
        starts = range(0, len(self.features), self.chunk)
        return list(self._run(lambda start: function(self._chunk(start)), starts))

    def accumulated(self, function: Callable[[Chunk, Tensor], None], shape: tuple[int, ...]) -> Tensor:
        """Exact float64 sums, of a shape, over the chunks of all processes; `function` adds a chunk's numbers, which lie on a grid."""
        made: list[Tensor] = []
        free: queue.SimpleQueue[Tensor] = queue.SimpleQueue()

        def add(chunk: Chunk) -> None:
            try:
                sums = free.get_nowait()
            except queue.Empty:
                sums = torch.zeros(shape, dtype=torch.float64, device=self.device)
                made.append(sums)
            function(chunk, sums)
            free.put(sums)

        self.each(add)
        return self.ranks.sum(torch.stack(made).sum(dim=0) if made else torch.zeros(shape, dtype=torch.float64))

    def by_chunk(self, function: Callable[[Chunk], Tensor], width: int) -> Tensor:
        """One float64 vector for each chunk of all processes: (chunks, width) on the CPU."""
        table = torch.zeros(self.num_chunks, width, dtype=torch.float64)
        for number, row in self.each(lambda chunk: (chunk.number, function(chunk))):
            table[number] = row
        return self.ranks.sum(table)

    def even_places(self, wanted: int) -> Tensor:
        """At most `wanted` of all places, evenly spread: int64, ascending."""
        wanted = min(wanted, self.total)
        return torch.arange(wanted) * self.total // wanted if wanted else torch.zeros(0, dtype=torch.int64)

    def at(self, places: Tensor) -> Tensor:
        """Frames at these of all places, float32 (frames, dim) on the CPU of every process; empty places are left out."""
        own = places - self.first
        mine = (own >= 0) & (own < len(self.features))
        if self.filled is not None:
            mine[mine.clone()] = self.filled[own[mine]].cpu()
        held = self.features[own[mine]].cpu()
        if self.ranks.size == 1:  # saves copies of hundreds of megabytes, which take longer than a pass
            return held
        frames = torch.zeros(len(places), self.dim)
        frames[mine] = held
        found = self.ranks.sum(mine.to(torch.int32)) > 0
        return self.ranks.sum(frames)[found]


def standardise(frames: ChunkedFrames) -> Tensor:
    """Brings each dimension to mean 0 and deviation 1, in place; the same at any number of processes.

    A constant dimension (deviation below 1e-6 of its largest value) is only centred.

    Returns:
        float32 (2, dim): means and deviations.

    Raises:
        ValueError: If there are no frames, or some are not finite.
    """
    count = max(frames.count, 1)
    mean = frames.by_chunk(lambda chunk: chunk.frames.double().sum(dim=0).cpu(), frames.dim).sum(dim=0) / count
    if not frames.count or not bool(mean.isfinite().all()):
        raise ValueError(
            f"features must be finite and at least one frame, but are ({frames.count}, {frames.dim}) with a mean that is not: look at "
            "the audio and at the teacher"
        )
    centre = mean.to(frames.device)
    squares = frames.by_chunk(lambda chunk: (chunk.frames - centre).square().sum(dim=0).cpu(), frames.dim).sum(dim=0)
    deviation = (squares / count).sqrt()
    deviation[deviation <= 1e-6 * _largest(frames)] = 1
    norm = torch.stack([mean, deviation]).float()
    for part in frames.features.split(frames.chunk):
        part.sub_(norm[0].to(part.device)).div_(norm[1].to(part.device))
    return norm


def _largest(frames: ChunkedFrames) -> Tensor:
    """Largest absolute value of each dimension: float64 (dim,)."""

    def largest(chunk: Chunk) -> Tensor:
        held = chunk.frames if len(chunk.frames) else chunk.frames.new_zeros(1, frames.dim)
        return held.abs().amax(dim=0).double().cpu()

    return frames.by_chunk(largest, frames.dim).amax(dim=0)


def snap_to_grid(frames: ChunkedFrames) -> None:
    """Rounds the features, in place, to a grid on which any sum of all frames is exact in float64.

    The step of each dimension is a power of two: for eight million frames 2⁻³⁰ of the largest value, so that values above a hundredth
    of it do not change.

    Raises:
        ValueError: If a feature is not finite.
    """
    largest = _largest(frames)
    if not bool(largest.isfinite().all()):
        raise ValueError("features must be finite, but some are not: look at the audio and at the teacher")
    exponent = torch.frexp(largest).exponent
    scale = torch.exp2((_EXACT_BITS - max(frames.count - 1, 1).bit_length() - exponent).double()).to(frames.features.device)
    for part in frames.features.split(frames.chunk):
        part.copy_((part * scale).round_().div_(scale))
