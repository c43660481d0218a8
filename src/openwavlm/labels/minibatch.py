"""k-means by scikit-learn's mini-batches (HuBERT §III-B, SPEC §4.4): the second engine, and the reference of `lloyd`."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from openwavlm.labels.kmeans import Codebook, check_amount, one_torch_thread
from openwavlm.labels.quality import perplexity, used_clusters


def fit_minibatch_kmeans(
    features: Tensor | np.ndarray, clusters: int, seed: int, *, n_init: int = 5, batch_size: int = 10_000
) -> Codebook:
    """Fits k-means by mini-batches with k-means++ starts (SPEC §4.4; fairseq's `learn_kmeans.py`).

    Makes at most 100 passes, on one thread, so that the codebook is the same on any number of cores.

    Args:
        features: float32 (frames, dim).
        clusters: Number of clusters K.
        seed: Seed of the starts and of the mini-batches.
        n_init: Starts, of which the best is kept; 20 in fairseq, where they are most of the cost of wide features.
        batch_size: Frames a mini-batch.

    Raises:
        ValueError: If the features are not finite (frames, dim), or there are fewer frames than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    frames = np.ascontiguousarray(torch.as_tensor(features).numpy(), dtype=np.float32)
    if frames.ndim != 2 or not np.isfinite(frames).all():
        raise ValueError(f"features must be finite and of the shape (frames, dim), but are {frames.shape}: look at the audio")
    check_amount(len(frames), clusters)
    with threadpool_limits(limits=1):
        model = MiniBatchKMeans(
            n_clusters=clusters,
            init="k-means++",
            n_init=n_init,
            max_iter=100,
            batch_size=batch_size,
            tol=0.0,
            max_no_improvement=100,
            reassignment_ratio=0.0,
            compute_labels=False,
            random_state=seed,
        ).fit(frames)
        codebook = Codebook(torch.from_numpy(np.ascontiguousarray(model.cluster_centers_, dtype=np.float32)))
    with one_torch_thread():
        inertia, counts = codebook.inertia(frames)
    fitted = {
        "frames": len(frames),
        "seed": seed,
        "n_init": n_init,
        "batch_size": batch_size,
        "mini_batches": int(model.n_steps_),
        "mean_squared_distance": inertia,
        "used_clusters": used_clusters(counts),
        "perplexity": perplexity(counts),
    }
    return replace(codebook, fitted=fitted)
