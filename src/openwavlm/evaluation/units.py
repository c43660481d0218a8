"""k-means units of layers: codebooks fitted on some speakers, units of other speakers counted; choice of a layer."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openwavlm.audio.frames import FRAME_RATE_HZ
from openwavlm.evaluation.conditions import Change
from openwavlm.evaluation.features import Features, Thinning, stream
from openwavlm.evaluation.sets import ProbeSet
from openwavlm.evaluation.unit_figures import UnitTally
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.lloyd import fit_lloyd_kmeans, whole
from openwavlm.labels.quality import phone_quality

log = logging.getLogger(__name__)

FRAMES_PER_CLUSTER = 20
Progress = Callable[[str, float], None]


def fit_units(
    features: Tensor, clusters: int, seed: int, max_iter: int = 40, *, frames_per_cluster: int = FRAMES_PER_CLUSTER
) -> Codebook:
    """Fits a probe's codebook on features (frames, dim) by full passes on one thread.

    K is lowered where a cluster would have fewer than `frames_per_cluster` frames. The k-means++ start is drawn from 50 frames a
    cluster, thinned evenly: on all frames it costs twice as much as the passes.
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


@dataclass(frozen=True, kw_only=True)
class UnitSettings:
    """Settings of codebooks.

    Attributes:
        clusters: Units K.
        codebook_seeds: Seeds of the codebooks; three or more measure the spread by chance.
        fit_frames: Frames that a codebook is fitted on, thinned evenly.
        frames_per_cluster: K is lowered where there are fewer frames a cluster than this.
        memory_gb: Most memory for frames of layers; further layers cost further passes.
        quick: Fit by `labels.lloyd`, which takes a fraction of the time and ends within a hundredth of the distance: to compare
            layers, not for published figures.

    Raises:
        ValueError: If a number is not positive, or there is no seed.
    """

    clusters: int = 100
    codebook_seeds: tuple[int, ...] = (0, 1, 2)
    fit_frames: int = 50_000
    frames_per_cluster: int = FRAMES_PER_CLUSTER
    memory_gb: float = 2.0
    quick: bool = False

    def __post_init__(self) -> None:
        for name in ("clusters", "fit_frames", "frames_per_cluster", "memory_gb"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, but is {getattr(self, name)}")
        if not self.codebook_seeds:
            raise ValueError("codebook_seeds must name at least one seed, but is empty: set [0, 1, 2] to measure the spread")


@dataclass(frozen=True)
class LayerCodebooks:
    """One codebook a seed, and the standardisation of a layer's features."""

    shift: Tensor
    scale: Tensor
    codebooks: tuple[Codebook, ...]

    def units(self, features: Tensor) -> list[np.ndarray]:
        """Units (frames,) of each codebook."""
        standard = (features.cpu() - self.shift) * self.scale
        return [codebook.assign(standard) for codebook in self.codebooks]


def fit_layers(
    extract: Features, fit: ProbeSet, layers: Sequence[int], settings: UnitSettings, progress: Progress | None = None
) -> dict[int, LayerCodebooks]:
    """Fits the codebooks of some layers on the speech of `fit`, without its phones; on standardised features where `standardise` is set."""
    keep = min(settings.fit_frames, fit.frames)
    fitting = keep // settings.frames_per_cluster
    if fitting < settings.clusters:
        log.warning(
            f"K is lowered from {settings.clusters} to {max(1, fitting)}: {keep} frames are fewer than {settings.frames_per_cluster} "
            "a cluster; add speech (fit, fit_seconds, fit_frames) or choose fewer clusters"
        )
    found = {}
    for group in _groups(extract.dims, layers, keep, settings.memory_gb * 1e9):
        frames = [torch.empty(keep, extract.dims[layer]) for layer in group]
        thinning, filled = Thinning(fit.frames, keep), 0
        for piece in stream(extract, fit, group):
            stays = thinning.next(len(piece.phones))
            added = int(stays.sum())
            for into, features in zip(frames, piece.features, strict=True):
                into[filled : filled + added] = features.cpu()[stays]
            filled += added
            if progress:
                progress("fitting", len(piece.phones) / FRAME_RATE_HZ)
        for layer in group:
            found[layer] = _fit(frames.pop(0), settings, standardise=extract.standardise)
    return found


def _fit(frames: Tensor, settings: UnitSettings, *, standardise: bool) -> LayerCodebooks:
    shift, scale = torch.zeros(frames.shape[1]), torch.ones(frames.shape[1])
    if standardise:
        shift, deviation = frames.mean(dim=0), frames.std(dim=0, unbiased=False)
        scale = torch.where(deviation > 1e-6 * frames.abs().amax(dim=0), 1 / deviation, scale)
        frames = (frames - shift) * scale
    clusters = max(1, min(settings.clusters, len(frames) // settings.frames_per_cluster))
    if settings.quick:
        books = [fit_lloyd_kmeans(whole(frames, clusters), clusters, seed) for seed in settings.codebook_seeds]
    else:
        books = [fit_units(frames, clusters, seed, frames_per_cluster=1) for seed in settings.codebook_seeds]
    return LayerCodebooks(shift, scale, tuple(books))


def _groups(dims: Sequence[int], layers: Sequence[int], frames: int, most_bytes: float) -> Iterator[list[int]]:
    group: list[int] = []
    for layer in layers:
        if group and 4 * frames * sum(dims[of] for of in [*group, layer]) > most_bytes:
            yield group
            group = []
        group.append(layer)
    yield group


def tally_layers(
    extract: Features,
    books: dict[int, LayerCodebooks],
    judged: ProbeSet,
    *,
    change: Change | None = None,
    progress: Progress | None = None,
) -> dict[int, list[UnitTally]]:
    """Counts the units of utterances of other speakers, in one pass over the audio: layer → one tally a codebook seed."""
    layers = sorted(books)
    size = len(judged.inventory)
    tallies = {layer: [UnitTally(size, len(book), judged.speakers) for book in books[layer].codebooks] for layer in layers}
    for piece in stream(extract, judged, layers, change=change):
        speaker, phones = judged.utterances[piece.utterance].speaker, piece.phones.cpu().numpy()
        for layer, features in zip(layers, piece.features, strict=True):
            for tally, units in zip(tallies[layer], books[layer].units(features), strict=True):
                tally.add(speaker, units, phones, piece.utterance)
        if progress:
            progress("judging", len(phones) / FRAME_RATE_HZ)
    return tallies


def layer_pnmi(extract: Features, fit: ProbeSet, judged: ProbeSet, settings: UnitSettings) -> dict[int, float]:
    """Corrected PNMI of the units of layers 1, 2, …, mean over codebook seeds; input of `choose_layer`.

    Args:
        fit: Speech of training speakers.
        judged: Utterances of development speakers, with phones.

    Raises:
        ValueError: If no frame of `judged` has a phone.
    """
    layers = range(1, len(extract.dims))  # the encoder's input is never chosen
    tallies = tally_layers(extract, fit_layers(extract, fit, layers, settings), judged)
    return {
        layer: float(np.mean([phone_quality(tally.joint.sum(axis=0)).pnmi_corrected for tally in of]))
        for layer, of in tallies.items()
    }


def choose_layer(iteration: int, layers: int, pnmi: Mapping[int, float] | None = None) -> int:
    """Layer with the best units on development speakers; without alignments a depth by iteration (HuBERT §III-A, table II).

    Args:
        iteration: Iteration that trained the model, from 1.
        layers: Number of layers of the model.
        pnmi: Layer → corrected PNMI of its units on development speakers; layer 0, the encoder's input, is never chosen.

    Returns:
        The measured best, of equal layers the lowest; else half the depth after iteration 1, three quarters later, at least 1.

    Raises:
        ValueError: If `iteration` or `layers` is below 1, or a layer of `pnmi` is above `layers`.
    """
    if iteration < 1 or layers < 1:
        raise ValueError(f"iterations and layers are counted from 1, but are {iteration} and {layers}")
    measured = {layer: value for layer, value in (pnmi or {}).items() if layer > 0}
    if measured and max(measured) > layers:
        raise ValueError(f"the model has layers 1 … {layers}, but there is a figure of layer {max(measured)}: measure this model")
    if measured:
        return max(sorted(measured), key=lambda layer: measured[layer])
    return max(1, round(layers * (0.5 if iteration == 1 else 0.75)))
