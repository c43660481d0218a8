"""Starts of k-means: greedy k-means++ (Arthur & Vassilvitskii 2007, §2.2 and its closing remark), on a bounded number of frames."""

import math

import numpy as np
import torch
from torch import Tensor

from openwavlm.randomness import uniform, words
from openwavlm.targets.chunks import Chunk, ChunkedFrames

SEEDING_FRAMES_PER_CLUSTER = 64
_CHUNK_FRAMES = 1024


def greedy_seeds(frames: Tensor, clusters: int, seed: int, start: int, *, device: torch.device) -> Tensor:
    """Chooses frames as first centroids: each time the best of 2 + ln K frames drawn by their squared distance to those chosen.

    Args:
        frames: float32 (frames, dim) on the CPU, at least as many as clusters.
        clusters: Number of clusters K.
        seed: Of the draws.
        start: Which start: each has its own draws.
        device: Where distances are computed.

    Returns:
        float32 (clusters, dim) on the CPU.
    """
    # Small chunks, for many threads; a GPU takes all frames at once.
    chunk = _CHUNK_FRAMES if device.type == "cpu" else len(frames)
    own = ChunkedFrames(frames.to(device), len(frames), chunk, device=device)
    with own.threads():
        chosen = _chosen(own, clusters, seed, start)
    return frames[chosen]


def _chosen(own: ChunkedFrames, clusters: int, seed: int, start: int) -> list[int]:
    frames, device = own.features, own.device
    squares = torch.cat(own.each(lambda part: part.frames.square().sum(dim=1)))
    trials = 2 + int(math.log(clusters))
    first = int(_draws(seed, start, 0, 1)[0] * len(frames))
    chosen = [first]
    nearest = torch.full((len(frames),), torch.inf, device=device)
    nearest = _closer(own, squares, nearest, own.features[[first]])[0][:, 0]
    for step in range(1, clusters):
        reach = np.cumsum(nearest.cpu().numpy(), dtype=np.float64)
        drawn = np.searchsorted(reach, _draws(seed, start, step, trials) * reach[-1], side="right").clip(max=len(frames) - 1)
        candidates = torch.from_numpy(drawn)
        left, potentials = _closer(own, squares, nearest, own.features[candidates.to(device)])
        best = int(potentials.argmin())
        nearest = left[:, best].contiguous()
        chosen.append(int(drawn[best]))
    return chosen


def _draws(seed: int, start: int, step: int, count: int) -> np.ndarray:
    """float64 (count,), uniform in [0, 1)."""
    return uniform(words(seed, "kmeans.seeding", count, epoch=start, micro=step))


def _closer(own: ChunkedFrames, squares: Tensor, nearest: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of the squared distances with each candidate: float32 (frames, candidates); and their sums, float64."""
    own_squares = candidates.square().sum(dim=1)
    directions = candidates.T.contiguous()

    def left(part: Chunk) -> tuple[Tensor, Tensor]:
        distances = torch.addmm(own_squares, part.frames, directions, alpha=-2).add_(squares[part.places, None]).clamp_(min=0)
        distances = torch.minimum(distances, nearest[part.places, None])
        return distances, distances.sum(dim=0, dtype=torch.float64)

    parts = own.each(left)
    return torch.cat([distances for distances, _ in parts]), torch.stack([sums for _, sums in parts]).sum(dim=0)
