"""k-means codebooks: what they are, assignment by one matrix product, and how many clusters a sample affords (SPEC §4.4)."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openwavlm.runtime.atomic import atomic_file, write_json
from openwavlm.runtime.files import Fields, read_array, read_json
from openwavlm.runtime.sealed import CHECKSUM, checksum_of, sealed

FORMAT_VERSION = 1
MIN_FRAMES_PER_CLUSTER = 1000
# One fixed size, so that a distance never depends on how much else was asked for.
CHUNK_FRAMES = 65_536
MAX_CLUSTERS = 65_536

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Codebook:
    """The centroids of one clustering.

    Attributes:
        centroids: float32 (clusters, dim).
        features: What the features are (`MFCC_SETTINGS`, or a teacher's hash and layer); as written to `meta.json`.
        fitted: How the codebook came about: index fingerprints, frames, seconds, seed, inertia, usage, perplexity.
        norm: float32 (2, dim): mean and deviation by which every feature is standardised before it is compared with the
            centroids, which live on that scale; None = the features as they are.
    """

    centroids: Tensor
    features: dict[str, Any] = field(default_factory=dict)
    fitted: dict[str, Any] = field(default_factory=dict)
    norm: Tensor | None = None

    def __post_init__(self) -> None:
        if self.centroids.ndim != 2 or self.centroids.dtype != torch.float32:
            raise ValueError(
                "centroids must be float32 (clusters, dim), but are "
                f"{self.centroids.dtype} {tuple(self.centroids.shape)}: convert them first"
            )
        if not 1 <= len(self.centroids) <= MAX_CLUSTERS:
            raise ValueError(f"a codebook must have 1 to {MAX_CLUSTERS} clusters (labels are uint16), but has {len(self)}")
        if self.norm is not None and not _is_norm(self.norm, self.centroids.shape[1]):
            raise ValueError(
                f"a feature norm must be float32 (2, {self.centroids.shape[1]}), finite means and positive deviations, but is "
                f"{self.norm.dtype} {tuple(self.norm.shape)}: copy the folder again or fit it again"
            )

    def __len__(self) -> int:
        return self.centroids.shape[0]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of shape and little-endian bytes of the centroids and, if there is one, of the feature norm."""
        digest = hashlib.sha256()
        for tensor in (self.centroids,) if self.norm is None else (self.centroids, self.norm):
            array = np.ascontiguousarray(tensor.cpu().numpy(), dtype="<f4")
            digest.update(str(array.shape).encode() + array.tobytes())
        return digest.hexdigest()

    @cached_property
    def _projection(self) -> tuple[Tensor, Tensor]:
        return self.centroids.square().sum(dim=1), self.centroids.T.contiguous()

    def _scores(self, features: Tensor) -> Tensor:
        """Squared distances less the frame's own square: (frames, clusters)."""
        squares, directions = self._projection
        return torch.addmm(squares, features, directions, alpha=-2)

    def assign(self, features: Tensor | np.ndarray) -> np.ndarray:
        """Nearest centroid of every frame.

        Args:
            features: float32 (frames, dim), not yet standardised.

        Returns:
            uint16 (frames,); of equally near centroids the one with the lowest number.

        Raises:
            ValueError: If the features have another number of dimensions than the centroids, or some are not finite.
        """
        frames = self._checked(features)
        _check_finite(frames)
        labels = [self._scores(self._normalised(chunk)).argmin(dim=1) for chunk in frames.split(CHUNK_FRAMES)]
        return torch.cat(labels).numpy().astype(np.uint16)

    def inertia(self, features: Tensor | np.ndarray) -> tuple[float, np.ndarray]:
        """Mean squared distance to the nearest centroid, and int64 (clusters,) frames of each cluster."""
        frames = self._checked(features)
        total, counts = 0.0, np.zeros(len(self), dtype=np.int64)
        for chunk in map(self._normalised, frames.split(CHUNK_FRAMES)):
            scores, labels = self._scores(chunk).min(dim=1)
            total += float((scores.double() + chunk.double().square().sum(dim=1)).sum())
            counts += torch.bincount(labels, minlength=len(self)).numpy()
        return total / max(len(frames), 1), counts

    def _checked(self, features: Tensor | np.ndarray) -> Tensor:
        frames = torch.as_tensor(features)
        if frames.ndim != 2 or frames.shape[1] != self.centroids.shape[1]:
            raise ValueError(
                f"features must be (frames, {self.centroids.shape[1]}) for this codebook, but are {tuple(frames.shape)}: "
                "use the features that it was fitted on"
            )
        return frames.to(torch.float32)

    def _normalised(self, frames: Tensor) -> Tensor:
        return frames if self.norm is None else (frames - self.norm[0]) / self.norm[1]

    def save_array(self, folder: Path) -> None:
        """Writes `codebook.npy` alone or, if there is a norm, with `feature_norm.npy`."""
        for name, tensor in (("codebook.npy", self.centroids), ("feature_norm.npy", self.norm)):
            if tensor is not None:
                with atomic_file(folder / name) as file:
                    np.save(file, tensor.cpu().numpy().astype("<f4"))

    def save(self, folder: Path) -> None:
        """Writes the arrays and then, as the finished mark, `meta.json`."""
        self.save_array(folder)
        meta = {
            "format_version": FORMAT_VERSION,
            "kind": "codebook",
            "hash": self.hash,
            "num_classes": len(self),
            "dim": self.centroids.shape[1],
            "features": self.features,
            "fitted": self.fitted,
        }
        write_json(folder / "meta.json", sealed(meta))

    @classmethod
    def load(cls, folder: Path | str) -> "Codebook":
        """Opens a codebook folder.

        Raises:
            ValueError: If the folder is no finished codebook, is of a newer format, or its array is not the one that was written.
        """
        folder = Path(folder)
        meta = read_meta(folder, kind="codebook", newest=FORMAT_VERSION, made_by="data_prep/fit_kmeans.py")
        said = Fields(meta, str(folder / "meta.json"), "copy the folder again or fit it again")
        if CHECKSUM in meta and said.text(CHECKSUM) != checksum_of(meta):
            raise ValueError(f"{said.where} is damaged (its checksum differs): {said.remedy}")
        codebook = cls.load_arrays(folder, said.mapping("features"), said.mapping("fitted"))
        if codebook.hash != said.text("hash"):
            raise ValueError(
                f"the array in {folder / 'codebook.npy'} must have the hash {meta['hash'][:12]} that its meta.json names, but has "
                f"{codebook.hash[:12]}: copy the folder again or fit it again"
            )
        return codebook

    @classmethod
    def load_arrays(cls, folder: Path, features: dict[str, Any], fitted: dict[str, Any]) -> "Codebook":
        """Reads the arrays of a codebook or a labelling, whose `meta.json` says the rest; the hash is the caller's to check.

        Raises:
            ValueError: If an array is missing or damaged.
        """
        norm = _load_array(folder / "feature_norm.npy") if features.get("feature_norm") == "standardise" else None
        file = folder / "codebook.npy"
        try:
            return cls(_load_array(file), features, fitted, norm)
        except ValueError as error:
            if file.name in str(error) or "feature_norm.npy" in str(error):
                raise
            raise ValueError(f"{file} is damaged or of another codebook: {error}") from error


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Runs torch on one thread: sums then have one order, whatever the machine's cores and the number of workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load_array(file: Path) -> Tensor:
    return torch.from_numpy(read_array(file, "<f4", shape=(None, None), remedy="copy the folder again or make it again"))


def _is_norm(norm: Tensor, dim: int) -> bool:
    return norm.shape == (2, dim) and norm.dtype == torch.float32 and bool(norm.isfinite().all() and (norm[1] > 0).all())


def _check_finite(frames: Tensor) -> None:
    finite = frames.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"features must be finite, but {int((~finite).sum())} of {len(frames)} frames are not, the first is frame "
            f"{int((~finite).nonzero()[0])}: look at the audio and at the teacher"
        )


def standardise(frames: np.ndarray) -> Tensor:
    """Brings each dimension to mean 0 and deviation 1, in place.

    A dimension that never moves, whose deviation is below 1e-6 of its largest value, is only centred.

    Args:
        frames: float32 (frames, dim); overwritten.

    Returns:
        float32 (2, dim): the means and deviations, as `Codebook.norm` has them.

    Raises:
        ValueError: If there are no frames, or some are not finite.
    """
    mean = frames.mean(axis=0, dtype=np.float64) if len(frames) else np.full(frames.shape[1], np.nan)
    if not np.isfinite(mean).all():
        raise ValueError(
            f"features must be finite and at least one frame, but are {frames.shape} with a mean that is not: look at the audio and "
            "at the teacher"
        )
    variance = np.zeros_like(mean)
    chunks = [frames[start : start + CHUNK_FRAMES] for start in range(0, len(frames), CHUNK_FRAMES)]
    for chunk in chunks:
        variance += np.square(chunk - mean).sum(axis=0)
    deviation = np.sqrt(variance / len(frames))
    # Without copies: wide features of a large sample fill the memory once already.
    deviation[deviation <= 1e-6 * np.maximum(frames.max(axis=0), -frames.min(axis=0))] = 1
    norm = np.stack([mean, deviation]).astype(np.float32)
    for chunk in chunks:
        chunk -= norm[0]
        chunk /= norm[1]
    return torch.from_numpy(norm)


def check_amount(frames: int, clusters: int) -> None:
    """Checks that every cluster can have a frame.

    Raises:
        ValueError: If `clusters` is not positive, or there are fewer frames.
    """
    if clusters < 1:
        raise ValueError(f"the number of clusters must be positive, but is {clusters}")
    if frames < clusters:
        raise ValueError(
            f"k-means needs a frame for every cluster, but has {frames} for {clusters}: give more audio or ask for fewer"
        )


def affordable_clusters(frames: int, clusters: int, min_frames_per_cluster: int) -> int:
    """Number of clusters that so many frames are enough for; a warning says if that is fewer than were asked for.

    Args:
        frames: Sampled frames.
        clusters: Number of clusters asked for.
        min_frames_per_cluster: Frames that each must have on average.

    Raises:
        ValueError: If a number is not positive; if there are not enough frames for one cluster.
    """
    if clusters < 1 or min_frames_per_cluster < 1:
        raise ValueError(
            f"clusters and min_frames_per_cluster must be positive, but are {clusters} and {min_frames_per_cluster}: correct them"
        )
    enough = frames // min_frames_per_cluster
    if not enough:
        raise ValueError(
            f"k-means needs {min_frames_per_cluster} frames a cluster (min_frames_per_cluster), but the sample has {frames} in all: "
            "give more audio, or lower min_frames_per_cluster"
        )
    if enough < clusters:
        log.warning(
            f"{frames} frames are {frames / clusters:.1f} a cluster, but min_frames_per_cluster={min_frames_per_cluster}: K is lowered "
            f"from {clusters} to {enough}; to keep {clusters}, give more audio (sample_hours, max_frames) or lower "
            "min_frames_per_cluster"
        )
    return min(clusters, enough)


def read_meta(folder: Path, *, kind: str, newest: int, made_by: str) -> dict[str, Any]:
    """Reads the finished mark `meta.json` of a codebook or a labelling.

    Args:
        folder: Where it lies.
        kind: `codebook` or `labels`.
        newest: Newest `format_version` that this program reads.
        made_by: The script that makes such a folder, for the message.

    Raises:
        ValueError: If it is absent, unreadable, of another kind or of a newer format.
    """
    path = folder / "meta.json"
    if not path.is_file():
        raise ValueError(
            f"a folder of {kind} must have meta.json, written last as its finished mark, but {folder} has none: "
            f"run {made_by} (again; finished work is kept) or correct the path"
        )
    said = read_json(path, remedy=f"copy the folder again or make it again with {made_by}")
    meta, version, found = said.values, said.integer("format_version", 1), said.text("kind")
    if found != kind:
        raise ValueError(f"{folder} must hold {kind}, but its meta.json says {found}: correct the path")
    if version > newest:
        raise ValueError(
            f"{folder} has {kind} of format_version {version}, but this OpenWavLM reads up to {newest}: update OpenWavLM, or restore "
            f"{path.name} if it is damaged"
        )
    return meta
