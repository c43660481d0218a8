"""Initial centroids of k-means: greedy k-means++ (Arthur & Vassilvitskii 2007, §2.2 and its closing remark)."""

import math

import numpy as np
import torch
from torch import Tensor

from openwavlm.labels.chunks import Chunk, ChunkedFrames
from openwavlm.runtime.randomness import uniform, words

SEEDING_FRAMES_PER_CLUSTER = 64
_CHUNK_FRAMES = 4096
# A product with 32 candidates takes about as long as one with 8.
_ROUND = 4


def greedy_seeds(frames: Tensor, clusters: int, seed: int, start: int, *, device: torch.device) -> Tensor:
    """Chooses frames as initial centroids: each the best of 2 + ln K or more candidates, drawn by squared distance to those chosen.

    Args:
        frames: float32 (frames, dim) on the CPU, at least as many as clusters.
        clusters: Number of clusters K.
        seed: Seed of the draws.
        start: Number of the start; each has its own draws.
        device: Device that computes distances; the result is on the CPU.
    """
    # Small chunks, for many threads; a GPU takes all frames at once.
    chunk = _CHUNK_FRAMES if device.type == "cpu" else len(frames)
    own = ChunkedFrames(frames.to(device), len(frames), chunk, device=device)
    with own.threads():
        chosen = _chosen(own, clusters, seed, start)
    return frames[chosen]


def _chosen(own: ChunkedFrames, clusters: int, seed: int, start: int) -> list[int]:
    """Numbers of the chosen frames. One matrix product serves a round of several choices, each of which depends on those before."""
    frames, device = own.features, own.device
    squares = torch.cat(own.each(lambda part: part.frames.square().sum(dim=1)))
    trials = 2 + int(math.log(clusters))
    chosen = [int(_draws(seed, start, 0, 1)[0] * len(frames))]
    nearest = _distances(own, squares, frames[chosen])[0].clone()
    while len(chosen) < clusters:
        reach = np.cumsum(nearest.cpu().numpy(), dtype=np.float64)
        drawn = np.searchsorted(reach, _draws(seed, start, len(chosen), _ROUND * trials) * reach[-1], side="right")
        drawn = drawn.clip(max=len(frames) - 1)
        distances = _distances(own, squares, frames[torch.from_numpy(drawn).to(device)])
        potentials = _potentials(own, distances, nearest)
        for _ in range(min(_ROUND, clusters - len(chosen))):
            best = int(potentials.argmin())
            chosen.append(int(drawn[best]))
            # The potentials change only by the few frames that are nearer to the new one.
            nearer = (distances[best] < nearest).nonzero()[:, 0]
            there, before, after = distances[:, nearer], nearest[nearer], distances[best, nearer]
            potentials -= (torch.minimum(there, before).double() - torch.minimum(there, after).double()).sum(dim=1)
            nearest[nearer] = after
    return chosen


def _distances(own: ChunkedFrames, squares: Tensor, candidates: Tensor) -> Tensor:
    """Squared distances of the frames to each candidate: float32 (candidates, frames)."""
    own_squares, directions = candidates.square().sum(dim=1), candidates.T.contiguous()
    found = torch.empty(len(candidates), len(own.features), device=own.device)

    def distances(part: Chunk) -> None:
        products = torch.addmm(own_squares, part.frames, directions, alpha=-2)
        found[:, part.places] = products.T.add(squares[part.places]).clamp_(min=0)

    own.each(distances)
    return found


def _potentials(own: ChunkedFrames, distances: Tensor, nearest: Tensor) -> Tensor:
    """Sum of the squared distances to the chosen frames and each candidate: float64 (candidates,)."""

    def potential(part: Chunk) -> Tensor:
        return torch.minimum(distances[:, part.places], nearest[part.places]).sum(dim=1, dtype=torch.float64)

    return torch.stack(own.each(potential)).sum(dim=0)


def _draws(seed: int, start: int, step: int, count: int) -> np.ndarray:
    """float64 (count,), uniform in [0, 1)."""
    return uniform(words(seed, "kmeans.seeding", count, epoch=start, micro=step))
