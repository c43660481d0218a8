"""k-means of 500 clusters on 768-d features against scikit-learn's mini-batches: `python benchmarks/kmeans.py --json FILE`.

Without `--features FILE.npy` (float32, frames × dim; of a model, say) the features are a mixture of 2,000 Gaussians of unequal weight
whose deviations fall as a power of the dimension, turned by a random rotation, in runs of a few frames.
"""

import argparse
import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.cluster import MiniBatchKMeans

from openwavlm.audio.frames import FRAME_RATE_HZ
from openwavlm.labels.kmeans import Codebook, one_torch_thread
from openwavlm.labels.lloyd import fit_lloyd_kmeans, whole


def synthetic_features(frames: int, dim: int, seed: int = 0) -> torch.Tensor:
    """float32 (frames, dim) with the spectrum and the crowding that hidden states have."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, dim + 1).float() ** -0.75
    centres = 10 * scale * torch.randn(2000, dim, generator=generator)
    weights = 1 / torch.arange(1, 2001).float()
    owner = torch.multinomial(weights, -(-frames // 5), replacement=True, generator=generator).repeat_interleave(5)[:frames]
    features = torch.empty(frames, dim)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    for start in range(0, frames, 8192):
        part = owner[start : start + 8192]
        noise = 5 * scale * torch.randn(len(part), dim, generator=generator)
        features[start : start + 8192] = (centres[part] + noise) @ rotation
    return features


class TimedMiniBatch(MiniBatchKMeans):
    """Knows how long its starts took."""

    seeding_s = 0.0

    def _init_centroids(self, *arguments: Any, **settings: Any) -> Any:
        began = time.perf_counter()
        found = super()._init_centroids(*arguments, **settings)
        self.seeding_s += time.perf_counter() - began
        return found


def mini_batches(features: torch.Tensor, clusters: int, n_init: int) -> dict[str, Any]:
    """fairseq's settings (SPEC §4.4) with as many starts as asked for; fairseq's own is 20."""
    began = time.perf_counter()
    model = TimedMiniBatch(
        n_clusters=clusters,
        init="k-means++",
        n_init=n_init,
        max_iter=100,
        batch_size=10_000,
        tol=0.0,
        max_no_improvement=100,
        reassignment_ratio=0.0,
        compute_labels=False,
        random_state=0,
    ).fit(features.numpy())
    seconds = time.perf_counter() - began
    book = Codebook(torch.from_numpy(np.ascontiguousarray(model.cluster_centers_, dtype=np.float32)))
    return {
        "seconds": round(seconds, 1),
        "of_these_seeding": round(model.seeding_s, 1),
        "mini_batches": int(model.n_steps_),
        "mean_squared_distance": book.inertia(features)[0],
    }


def full_passes(features: torch.Tensor, clusters: int) -> tuple[dict[str, Any], Codebook]:
    """Ours, seeding and fit."""
    frames = whole(features, clusters)
    began = time.perf_counter()
    book = fit_lloyd_kmeans(frames, clusters, 0)
    seconds = time.perf_counter() - began
    distances = book.fitted["mean_squared_distance_by_iteration"]
    figures = {"seconds": round(seconds, 1), "iterations": len(distances) - 1, "hash": book.hash}
    return figures | {"mean_squared_distance": book.inertia(features)[0]}, book


def assignment(book: Codebook, features: torch.Tensor) -> float:
    """Seconds of audio a second that one core gives the nearest centroid; the best of three."""
    with one_torch_thread():
        times = []
        for _ in range(3):
            began = time.perf_counter()
            book.assign(features)
            times.append(time.perf_counter() - began)
    return len(features) / FRAME_RATE_HZ / min(times)


def main() -> None:
    """Times both in one run, ours before and after, and prints the ratio of time and inertia."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--n-init-20", action="store_true", help="fairseq's twenty starts too: ten minutes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.features:
        features = torch.from_numpy(np.load(arguments.features).astype(np.float32))
    else:
        features = synthetic_features(arguments.frames, arguments.dim)
    ours, book = full_passes(features, arguments.clusters)
    print(json.dumps(ours), flush=True)
    reference = mini_batches(features, arguments.clusters, 1)
    print(json.dumps(reference), flush=True)
    again, _ = full_passes(features, arguments.clusters)
    print(json.dumps(again), flush=True)
    assert again["hash"] == ours["hash"]
    seconds = (ours["seconds"] + again["seconds"]) / 2  # before and after: the machine has neighbours
    twenty = mini_batches(features, arguments.clusters, 20) if arguments.n_init_20 else None
    result = {
        "features": str(arguments.features or "synthetic mixture"),
        "frames": len(features),
        "dim": features.shape[1],
        "clusters": arguments.clusters,
        "lloyd": ours,
        "lloyd_again": again["seconds"],
        "mini_batch_n_init_1": reference,
        "times_faster": round(reference["seconds"] / seconds, 2),
        "distance_over_mini_batch": round(ours["mean_squared_distance"] / reference["mean_squared_distance"], 5),
        "mini_batch_n_init_20": twenty or "not measured: --n-init-20",
        "assignment_times_real_time_one_core": round(assignment(book, features[:100_000])),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "scikit_learn": sklearn.__version__,
        "machine": platform.processor() or platform.machine(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
