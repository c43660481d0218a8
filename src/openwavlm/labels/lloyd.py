"""k-means by full passes over all frames (Lloyd 1982), on a CPU, a GPU or in several processes.

Centroids are means summed in float64 and rounded to float32 once. A cluster without frames takes the frame that is farthest from its
own centroid. On a CPU the codebook is the same, bit for bit, at any number of threads and processes (`chunks`).
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from openwavlm.labels.chunks import Chunk, ChunkedFrames, chunk_frames, snap_to_grid
from openwavlm.labels.kmeans import Codebook, check_amount
from openwavlm.labels.quality import perplexity, used_clusters
from openwavlm.labels.seeding import SEEDING_FRAMES_PER_CLUSTER, greedy_seeds
from openwavlm.runtime.progress import ProgressBar

log = logging.getLogger(__name__)
Report = Callable[[str, int, float | None], None]
_LINE_EVERY_S = 30.0
_SEEDING_ITERATIONS = 10


@dataclass(frozen=True)
class _Pass:
    """Result of one pass over all frames.

    Attributes:
        inertia: Sum of the squared distances to the nearest centroid.
        totals: float64 (clusters, dim + 1): sum of the frames of each cluster, and their number.
        labels: int64 (places,), nearest centroid of this process's frames; -1 at empty places.
        distances: float32 (places,), squared distance to it.
    """

    inertia: float
    totals: Tensor
    labels: Tensor
    distances: Tensor

    @property
    def counts(self) -> Tensor:
        """Frames of each cluster: int64 (clusters,)."""
        return self.totals[:, -1].long()


@dataclass(frozen=True)
class _Fit:
    """Centroids of one start, inertia of each pass, frames of each cluster, and number of reseeded clusters."""

    centroids: Tensor
    inertias: list[float]
    counts: Tensor
    reseeded: int


def fit_lloyd_kmeans(
    frames: ChunkedFrames, clusters: int, seed: int, *, n_init: int = 1, iterations: int = 50, tolerance: float = 2e-3
) -> Codebook:
    """Fits k-means to all frames; every process of the group calls it with its share and gets the same codebook.

    Args:
        frames: Features; rounded in place (`chunks.snap_to_grid`).
        clusters: Number of clusters K.
        seed: Seed of the starts.
        n_init: Starts, of which the one with the lowest inertia is kept.
        iterations: Largest number of passes that move the centroids.
        tolerance: The fit stops when a pass lowers the squared distance by less than this share and no cluster is empty.

    Raises:
        ValueError: If a number is not positive; if there are fewer frames than clusters; if the features are not finite.
    """
    check_passes(n_init, iterations, tolerance)
    check_amount(frames.count, clusters)
    snap_to_grid(frames)
    sample = frames.at(frames.even_places(SEEDING_FRAMES_PER_CLUSTER * clusters))
    squares = _squares(frames)
    best: _Fit | None = None
    with _reporting(iterations, visible=frames.ranks.rank == 0) as report:
        for start in range(n_init):
            report(f"start {start + 1} of {n_init}", 0, None)
            if len(sample) < clusters:  # most of the evenly spread places are empty
                sample = frames.at(torch.arange(frames.total))
            seeds = _settled_seeds(frames, sample, clusters, seed, start)
            with frames.threads():
                found = _lloyd(frames, squares, frames.ranks.of_rank_zero(seeds), iterations, tolerance, report)
            if best is None or found.inertias[-1] < best.inertias[-1]:
                best = found
    assert best is not None
    means = [inertia / frames.count for inertia in best.inertias]
    counts = best.counts.numpy()
    fitted = {
        "engine": "lloyd",
        "frames": frames.count,
        "seed": seed,
        "n_init": n_init,
        "iterations": iterations,
        "tolerance": tolerance,
        "seeding_frames": len(sample),
        "mean_squared_distance_by_iteration": means,
        "reseeded_clusters": best.reseeded,
        "mean_squared_distance": means[-1],
        "used_clusters": used_clusters(counts),
        "perplexity": perplexity(counts),
    }
    return replace(Codebook(best.centroids), fitted=fitted)


def check_passes(n_init: int, iterations: int, tolerance: float) -> None:
    """Raises `ValueError` if the number of starts or passes or the tolerance is out of range."""
    if min(n_init, iterations) < 1 or not tolerance >= 0:
        raise ValueError(
            f"n_init and iterations must be at least 1 and tolerance at least 0, but are {n_init}, {iterations} and {tolerance}"
        )


def _squares(frames: ChunkedFrames) -> Tensor:
    """Squared norm of each frame of this process: float32 (places,)."""
    squares = torch.zeros(len(frames.features), device=frames.device)

    def square(chunk: Chunk) -> None:
        squares[chunk.places] = chunk.frames.square().sum(dim=1)

    frames.each(square)
    return squares


def _settled_seeds(frames: ChunkedFrames, sample: Tensor, clusters: int, seed: int, start: int) -> Tensor:
    """Seeds after some passes over the seeding frames only, each of which saves a costlier pass over all frames."""
    seeds = greedy_seeds(sample, clusters, seed, start, device=frames.device)
    own = ChunkedFrames(sample.to(frames.device), len(sample), frames.chunk, device=frames.device)
    with own.threads():
        return _lloyd(own, _squares(own), seeds, _SEEDING_ITERATIONS, 1e-3, lambda *_: None).centroids


def _lloyd(frames: ChunkedFrames, squares: Tensor, centroids: Tensor, iterations: int, tolerance: float, report: Report) -> _Fit:
    inertias: list[float] = []
    reseeded = 0
    found: _Pass | None = None
    for iteration in range(iterations + 1):
        found = _pass(frames, squares, centroids, found)
        inertias.append(found.inertia)
        report("k-means", iteration, found.inertia / frames.count)
        empty = (found.counts == 0).nonzero()[:, 0]
        farthest = _farthest(frames, squares, found.distances, len(empty))
        settled = iteration > 0 and inertias[-2] - inertias[-1] <= tolerance * inertias[-2] and not len(farthest)
        if settled or iteration == iterations:
            break
        moved = centroids.double()
        used = found.counts > 0
        moved[used] = found.totals[used, :-1] / found.totals[used, -1:]
        centroids = moved.float()
        centroids[empty[: len(farthest)]] = farthest
        reseeded += len(farthest)
    assert found is not None
    return _Fit(centroids, inertias, found.counts, reseeded)


def _pass(frames: ChunkedFrames, squares: Tensor, centroids: Tensor, before: _Pass | None) -> _Pass:
    """One pass. Sums are exact, so only frames that changed their cluster are added to those of the pass before."""
    clusters, dim = centroids.shape
    there = centroids.to(frames.device)
    own_squares, directions = there.square().sum(dim=1), there.T.contiguous()
    distances = torch.zeros(len(frames.features), device=frames.device)
    labels = torch.full((len(frames.features),), -1, device=frames.device)

    def nearest(chunk: Chunk, changes: Tensor) -> None:
        best, new = torch.addmm(own_squares, chunk.frames, directions, alpha=-2).min(dim=1)
        distances[chunk.places] = best.add_(squares[chunk.places]).clamp_(min=0)
        labels[chunk.places] = new
        if before is None:
            _add(changes, new, chunk.frames, 1)
        else:
            old = before.labels[chunk.places]
            moved = (new != old).nonzero()[:, 0]
            _add(changes, new[moved], chunk.frames[moved], 1)
            _add(changes, old[moved], chunk.frames[moved], -1)

    totals = frames.accumulated(nearest, (clusters, dim + 1)).cpu()
    if before is not None:
        totals += before.totals
    inertia = frames.by_chunk(lambda chunk: distances[chunk.places].sum(dtype=torch.float64).cpu(), 1).sum()
    return _Pass(float(inertia), totals, labels, distances)


def _add(totals: Tensor, labels: Tensor, frames: Tensor, sign: int) -> None:
    """Adds frames to the sums and counts of their clusters, or subtracts them with sign -1."""
    totals[:, :-1].index_add_(0, labels, frames.double(), alpha=sign)
    totals[:, -1] += sign * torch.bincount(labels, minlength=len(totals))


def _farthest(frames: ChunkedFrames, squares: Tensor, distances: Tensor, wanted: int) -> Tensor:
    """Frames of all processes that are farthest from their centroids, without those on a centroid: float32 (≤ wanted, dim)."""
    if not wanted:
        return torch.zeros(0, frames.dim)
    # Below a millionth of the frame's square a distance is float32's rounding: the frame lies on a centroid.
    own = torch.where(distances > 1e-6 * squares, distances, 0).cpu()
    # Stable: of equally far frames the first.
    order = own.argsort(descending=True, stable=True)[:wanted]
    mine = [(-float(own[place]), frames.first + int(place)) for place in order if own[place] > 0]
    chosen = sorted(found for part in frames.ranks.gather(mine) for found in part)[:wanted]
    return frames.at(torch.tensor([place for _, place in chosen], dtype=torch.int64))


@contextmanager
def _reporting(iterations: int, *, visible: bool) -> Iterator[Report]:
    """Shows a progress bar on a terminal; elsewhere logs a line every half minute."""
    logged = time.monotonic()
    with ProgressBar(iterations, "k-means", visible=visible) as bar:

        def report(what: str, iteration: int, mean: float | None) -> None:
            nonlocal logged
            figure = "" if mean is None else f"mean squared distance {mean:.6g}"
            bar.set(iteration, what, figure)
            if visible and not bar.on_terminal and time.monotonic() - logged > _LINE_EVERY_S:
                logged = time.monotonic()
                log.info(f"{what}: iteration {iteration}, {figure}" if figure else what)

        yield report


def whole(features: Tensor, clusters: int, *, device: str | torch.device = "cpu") -> ChunkedFrames:
    """Copies float32 (frames, dim) of a single process, since fitting rounds them, in chunks for a number of clusters."""
    kept = features.to(device, torch.float32, copy=True)
    where = torch.device(device)
    return ChunkedFrames(kept, len(features), chunk_frames(clusters, where), device=where)
