"""How much k-means units of some features say about phones, with the spread over codebook seeds (HuBERT §IV-C, DESIGN §8)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.quality import phone_quality

FRAMES_PER_CLUSTER = 20


def fit_units(
    features: Tensor, clusters: int, seed: int, max_iter: int = 40, *, frames_per_cluster: int = FRAMES_PER_CLUSTER
) -> Codebook:
    """Fits a small codebook by full passes on one thread; a probe's codebook, never training's.

    The k-means++ start is drawn from 50 frames a cluster, thinned evenly: on all frames it costs twice as much as the passes.

    Args:
        features: float32 (frames, dim), clean training speech.
        clusters: Number of clusters; lowered to one for `frames_per_cluster` frames where there are too few.
        seed: Seed of the start.
        max_iter: Passes at most.
        frames_per_cluster: See `clusters`.
    """
    from sklearn.cluster import KMeans, kmeans_plusplus
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    frames = features.cpu().numpy().astype(np.float32)
    clusters = max(1, min(clusters, len(frames) // frames_per_cluster))
    with threadpool_limits(limits=1):
        few = frames[:: max(1, len(frames) // (50 * clusters))]
        start, _ = kmeans_plusplus(few, clusters, random_state=seed)
        model = KMeans(clusters, init=start, n_init=1, max_iter=max_iter, tol=1e-4, random_state=seed).fit(frames)
    return Codebook(torch.from_numpy(np.ascontiguousarray(model.cluster_centers_, dtype=np.float32)))


@dataclass(frozen=True)
class UnitQuality:
    """Units against phones over several codebook seeds.

    Attributes:
        pnmi: Mean over the seeds of PNMI less that of shuffled labels: the figure to compare.
        spread: Standard deviation over the seeds (n − 1); 0 for one seed.
        seeds: `pnmi` of each seed.
        pnmi_raw: Mean PNMI as published, biased upwards on few frames.
        pnmi_shuffled: Mean PNMI of shuffled labels.
        phone_purity: Mean phone purity.
        cluster_purity: Mean cluster purity.
        frames: Frames N.
        classes: Clusters in use K, mean.
        phones: Phones P.
    """

    pnmi: float
    spread: float
    seeds: tuple[float, ...]
    pnmi_raw: float
    pnmi_shuffled: float
    phone_purity: float
    cluster_purity: float
    frames: int
    classes: float
    phones: int

    @classmethod
    def of(cls, joints: np.ndarray) -> "UnitQuality":
        """From int64 histograms (seeds, phones, classes).

        Raises:
            ValueError: If one is empty.
        """
        qualities = [phone_quality(joint) for joint in joints]
        corrected = [quality.pnmi_corrected for quality in qualities]

        def mean(name: str) -> float:
            return float(np.mean([getattr(quality, name) for quality in qualities]))

        return cls(
            pnmi=float(np.mean(corrected)),
            spread=float(np.std(corrected, ddof=1)) if len(corrected) > 1 else 0.0,
            seeds=tuple(corrected),
            pnmi_raw=mean("pnmi"),
            pnmi_shuffled=mean("pnmi_shuffled"),
            phone_purity=mean("phone_purity"),
            cluster_purity=mean("cluster_purity"),
            frames=qualities[0].frames,
            classes=mean("classes"),
            phones=qualities[0].phones,
        )


def verdict(figure: float, baseline: float, spread: float) -> Literal["higher", "lower", "equal"]:
    """How a figure stands to a baseline: `equal` where they differ by less than twice the spread over codebook seeds."""
    if abs(figure - baseline) < 2 * spread or figure == baseline:
        return "equal"
    return "higher" if figure > baseline else "lower"
